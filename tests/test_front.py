"""Accept, queue, push, take back, finish: the master's side of a request's way (tests/support/one_process.py)."""

import os
import socket
import struct
import time

import pytest
from support.one_process import NO_REQUESTS, READY
from support.wait import wait_until

from wsgimaster._front import board_slots_offset
from wsgimaster._proto import build
from wsgimaster.processes import make_channel


def test_a_request_and_its_line(bench):
    bench = bench().start(0)
    assert bench.answer(bench.ask("/x")).startswith(b"HTTP/1.1 200 OK\r\n")
    bench.until(lambda: bench.front.tick() is False)
    bench.front.take_logs()
    assert "=> generated 6 bytes in 0 msecs (HTTP/1.1 200)" in bench.events.lines[0]


def test_what_is_scribbled_into_a_ring_never_comes_out_as_a_control_character(bench):
    bench = bench().start(0)
    bench.answer(bench.ask("/x"))
    bench.until(lambda: bench.front.in_progress == 0)
    bench.front.tick()
    place = bench.board.memory.find(b"=> generated")
    bench.board.memory[place : place + 2] = b"\x1b\x07"
    bench.front.take_logs()
    assert "?? generated 6 bytes" in bench.events.lines[0]


def test_a_head_request_that_is_turned_away_gets_no_body(bench):
    bench = bench(waiting_limit=1).start(0)
    bench.ask("/wait")
    bench.ask("/wait")
    client = bench.connect(build([("PATH_INFO", "/"), ("REQUEST_METHOD", "HEAD")]))
    head, _, body = bench.answer(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert body == b""


def test_a_request_that_is_over_at_once_still_has_its_tick(bench):
    bench = bench().start(0)
    client = bench.connect(build([("PATH_INFO", "/quick")]))
    bench.events.ticks = 0
    client.shutdown(socket.SHUT_WR)
    while not bench.application.begun or bench.front.in_progress:
        bench.front.on_ready()
    assert bench.events.ticks == 1  # or its line would stay in the ring until the next request
    bench.front.tick()
    bench.front.take_logs()
    assert len(bench.events.lines) == 1


ORDERS = [
    pytest.param(False, [0, 0, 0], id="warm: the core that served last"),
    pytest.param(True, [0, 1, 2], id="even: the core that has rested longest"),
]


@pytest.mark.parametrize(("even", "cores"), ORDERS)
def test_which_of_several_idle_processes(bench, even, cores):
    bench = bench(processes=3, even=even)
    bench.start(0, 1, 2) if even else bench.start(2, 1, 0)
    assert [bench.ask_and_answer() for _ in range(3)] == [b"core %d" % core for core in cores]


def test_the_least_busy_process_first_and_there_the_main_thread(bench):
    bench = bench(processes=2, threads=2).start(0, 1, 2, 3)
    for _ in range(4):
        begun = len(bench.application.begun)
        bench.ask("/wait")
        bench.until(lambda begun=begun: len(bench.application.begun) > begun)
    cores = [core for core, _ in bench.application.begun]
    assert sorted(cores[:2]) == [0, 2]  # one main thread in each process
    assert sorted(cores[2:]) == [1, 3]


def test_who_finds_no_core_waits_in_order(bench):
    bench = bench().start(0)
    clients = [bench.ask(f"/wait{number}") for number in range(4)]
    assert (bench.front.in_progress, bench.front.waiting) == (1, 3)
    for client in clients:
        bench.application.let_go.release()
        assert bench.answer(client).endswith(b"core 0")
    assert [path for _, path in bench.application.begun] == ["/wait0", "/wait1", "/wait2", "/wait3"]


def test_a_full_queue_answers_503_at_once(bench):
    bench = bench(waiting_limit=2).start(0)
    for _ in range(3):
        bench.ask("/wait")
    answer = bench.answer(bench.ask("/wait"))
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 1\r\n" in answer
    assert bench.answer(bench.ask("/wait")).startswith(b"HTTP/1.1 503 ")
    assert bench.events.edges == [("full", 2)]  # one line, however many are turned away
    bench.application.let_go.release(3)
    bench.until(lambda: bench.events.edges == [("full", 2), ("room", 2)])


def test_a_request_that_waits_for_too_long_gets_503(bench):
    bench = bench(queue_timeout=0.05).start(0)
    running, waiting = bench.ask("/wait"), bench.ask("/late")
    bench.until(lambda: bench.front.tick() and bench.front.waiting == 0)
    assert bench.answer(waiting).startswith(b"HTTP/1.1 503 ")
    bench.application.let_go.release()
    assert bench.answer(running).endswith(b"core 0")
    assert [path for _, path in bench.application.begun] == ["/wait"]


DEADLINE_NS = 152  # in a slot: _layout.pxd


def test_a_request_is_overdue_when_its_limit_is_over(bench):
    bench = bench(processes=2).start(0, 1)
    client = bench.ask("/wait")
    bench.until(lambda: bench.application.begun)
    (core,) = [core for core, _ in bench.application.begun]
    late, due = bench.front.overdue(60.0)
    assert late == []
    assert 59 < due - time.monotonic() <= 60
    request = bench.front.describe(core)
    wait_until(lambda: bench.front.overdue(0.05) == ([request], 0.0))
    assert bench.front.overdue(0.0) == ([], 0.0)  # no limit
    assert (request.core, request.uri, request.begun, request.sent) == (core, "", True, False)
    bench.front.condemn(core, request.seq)
    assert bench.front.overdue(0.05) == ([], 0.0)
    assert bench.front.is_stuck(core)
    bench.application.let_go.release()
    assert bench.answer(client).endswith(b"core %d" % core)
    assert not bench.front.is_stuck(core)


def test_the_applications_own_deadline_counts_if_it_is_earlier(bench):
    bench = bench().start(0)
    bench.ask("/wait")
    bench.until(lambda: bench.application.begun)
    slots = board_slots_offset(bench.cores)
    own = time.monotonic_ns() + 5_000_000_000
    struct.pack_into("<Q", bench.board.memory, slots + DEADLINE_NS, own)
    assert bench.front.overdue(60.0) == ([], pytest.approx(own / 1e9))
    assert bench.front.overdue(0.0) == ([], pytest.approx(own / 1e9))
    assert bench.front.overdue(2.0)[1] < own / 1e9
    struct.pack_into("<Q", bench.board.memory, slots + DEADLINE_NS, time.monotonic_ns())
    assert bench.front.overdue(60.0) == ([bench.front.describe(0)], 0.0)


def test_who_left_the_queue_is_not_executed(bench):
    bench = bench().start(0)
    bench.ask("/wait")
    waiting = [bench.ask(f"/{number}") for number in range(50)]
    for client in waiting[:40]:
        client.close()
    bench.application.let_go.release()
    for client in waiting[40:]:
        assert bench.answer(client).endswith(b"core 0")
    assert len(bench.application.begun) == 1 + 10
    assert bench.front.counters["clients_gone"] == 40


REQUEST, NOP = 1, 2
RETURNED = (5).to_bytes(2, "little")


@pytest.fixture
def stopped(bench):
    """Two cores of two processes: core 0 says that it is ready and then doesn't read, core 1 serves."""
    bench = bench(processes=2).start(1)
    worker = socket.socket(fileno=os.dup(bench.worker_ends[0]))
    worker.send(READY)
    bench.until(lambda: 0 in bench.events.ready)
    yield bench, worker
    worker.close()


def test_a_request_that_was_not_begun_is_taken_back_and_runs_once(stopped):
    bench, worker = stopped
    client = bench.ask("/once")
    assert bench.front.not_begun(0) == [0]
    assert bench.front.take_back(0)
    assert bench.answer(client).endswith(b"core 1")
    assert bench.application.begun == [(1, "/once")]
    # What the stopped worker finds when it goes on: no request, only the question whether it is there.
    assert int.from_bytes(worker.recv(200)[:2], "little") == NOP


def test_a_request_that_was_begun_cannot_be_taken_back(stopped):
    bench, worker = stopped
    bench.ask("/begun")
    worker.recv(200)
    assert not bench.front.take_back(0)
    assert bench.front.in_progress == 1


def test_what_a_dead_worker_had_not_begun_goes_to_another(stopped):
    bench, _ = stopped
    client = bench.ask("/again")
    bench.front.remove_core(0)
    assert bench.answer(client).endswith(b"core 1")
    assert bench.application.begun == [(1, "/again")]


def test_what_died_with_the_worker_inside_recvmsg_goes_to_another(stopped):
    bench, worker = stopped
    client = bench.ask("/again")
    worker.recv(200)
    bench.front.remove_core(0)
    assert bench.answer(client).endswith(b"core 1")


def test_what_a_dead_worker_had_begun_is_answered_502(stopped):
    bench, worker = stopped
    client = bench.ask("/lost")
    seq = int.from_bytes(worker.recv(200)[8:16], "little")
    bench.begin(0, seq)
    bench.front.remove_core(0)
    assert bench.answer(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert bench.application.begun == []


def test_a_new_worker_does_not_owe_what_its_predecessor_owed(stopped):
    bench, worker = stopped
    bench.ask("/returned")
    seq = int.from_bytes(worker.recv(200)[8:16], "little")
    worker.send(RETURNED + bytes(6) + seq.to_bytes(8, "little") + bytes(48))
    bench.until(lambda: bench.events.lost == [0])
    bench.front.remove_core(0)
    bench.until(
        lambda: bench.front.tick() or bench.front.idle == 1
    )  # core 1 has served it, and isn't the warmest any more
    ours, theirs = make_channel()
    bench.front.add_core(0, ours, theirs)
    with socket.socket(fileno=os.dup(theirs)) as successor:
        bench.events.ready.remove(0)
        successor.send(READY)
        bench.until(lambda: 0 in bench.events.ready)
        bench.ask("/next")
        bench.front.tick()
        assert int.from_bytes(successor.recv(200)[:2], "little") == REQUEST
        with pytest.raises(BlockingIOError):
            successor.recv(200, socket.MSG_DONTWAIT)  # no NOP behind it: `done` would be taken for the NOP's


def test_who_is_found_at_the_closing_door_is_looked_after(bench):
    bench = bench().start(0)
    bench.until(lambda: not bench.front.tick())
    client = bench.connect(build([("PATH_INFO", "/last")]))
    ticks = bench.events.ticks
    assert bench.front.accept_rest(0)
    assert bench.events.ticks == ticks + 1
    assert bench.answer(client).endswith(b"core 0")


def test_a_packet_in_single_bytes(bench):
    bench = bench().start(0)
    data = build([("PATH_INFO", "/slow")])
    client = bench.connect(data[:1])
    bench.until(lambda: bench.front.reading == 1)
    for byte in data[1:]:
        client.sendall(bytes([byte]))
        bench.front.on_ready()
    assert bench.answer(client).endswith(b"core 0")


@pytest.mark.parametrize(("data", "status_line", "event"), NO_REQUESTS)
def test_what_is_no_request_never_reaches_a_worker(bench, data, status_line, event):
    bench = bench().start(0)
    assert bench.answer(bench.connect(data)).partition(b"\r\n")[0] == status_line
    assert bench.events.refused == [event]
    assert bench.application.begun == []


def test_a_ping_is_answered(bench):
    bench = bench().start(0)
    assert bench.answer(bench.connect(b"\x64\x00\x00\x00")) == b"\x64\x00\x00\x01"


def test_a_scoreboard_that_was_scribbled_over_harms_nobody(bench):
    bench = bench(processes=2).start(0, 1)
    client = bench.ask("/wait")
    memory = bench.board.memory
    memory[:] = b"\xff" * len(memory)
    bench.front.tick()
    bench.front.take_logs()
    assert bench.front.in_progress <= 1
    bench.application.let_go.release()
    assert b"core" in client.recv(65536)
