"""Accept, queue, push, take back, finish: the master's front and the workers' serve loop, face to face in one process.

The cores here are threads with real channels, a real scoreboard and real clients; only the processes are missing.
"""

import os
import select
import socket
import struct
import threading
import time

import pytest
from support.lone_core import make_core
from support.wait import wait_until

from wsgimaster._front import Front, board_slots_offset
from wsgimaster._proto import build
from wsgimaster.processes import make_channel
from wsgimaster.scoreboard import Scoreboard

SLOT_BYTES = 192  # _layout.pxd; its first field is `taken`


class Recorder:
    """The events that the master would get."""

    def __init__(self):
        self.ready, self.refused, self.lines, self.lost, self.edges = [], [], [], [], []
        self.ticks = 0

    def tick_wanted(self):
        self.ticks += 1

    def core_ready(self, core):
        self.ready.append(core)

    def worker_alive(self, core):
        pass

    def lines_dropped(self, core, count):
        raise AssertionError(count)

    def request_lost(self, request, status):
        self.refused.append(("lost", status))

    def queue_full(self, listener, waiting, oldest):
        self.edges.append(("full", waiting))

    def queue_has_room(self, turned_away, seconds):
        self.edges.append(("room", turned_away))

    def request_lines(self, lines):
        self.lines += lines.decode().splitlines()

    def request_refused(self, listener, kind, status, why):
        self.refused.append((kind, status))

    def accepting_paused(self, why):
        raise AssertionError(why)

    def push_refused(self, core, why):
        raise AssertionError(why)

    def descriptor_lost(self, core):
        self.lost.append(core)

    def channel_lost(self, core):
        self.lost.append(core)


class Application:
    """Answers "core N"; a request for /wait waits until it is let go."""

    def __init__(self):
        self.begun, self.let_go = [], threading.Semaphore(0)

    def on(self, core):
        def application(environ, start_response):
            path = environ["PATH_INFO"]
            self.begun.append((core, path))
            if path.startswith("/wait"):
                assert self.let_go.acquire(timeout=20)
            start_response("200 OK", [])
            return [b"core %d" % core]

        return application


class Bench:
    def __init__(self, tmp_path, processes=1, threads=1, waiting_limit=100, queue_timeout=0.0, even=False):
        self.cores = processes * threads
        self.board = Scoreboard(self.cores)
        self.events, self.application = Recorder(), Application()
        self.front = Front(
            self.board.memory,
            self.cores,
            threads,
            self.board.doorbell,
            buffer_size=65535,
            timeout=4.0,
            waiting_limit=waiting_limit,
            queue_timeout=queue_timeout,
            even=even,
            allow_from=(),
            forwarded_allow=(),
            events=self.events,
            read_http_head=None,
        )
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(tmp_path / "front.sock"))
        self.listener.listen(100)
        self.listener.setblocking(False)
        self.front.add_listener(self.listener.fileno(), "front.sock", http=False, local=True)
        self.serving, self.clients, self.worker_ends = [], [], {}
        for core in range(self.cores):
            ours, theirs = make_channel()
            self.front.add_core(core, ours, theirs)
            self.worker_ends[core] = os.dup(theirs)

    def start(self, *cores):
        """These cores begin to serve."""
        for number in cores:
            core = make_core(
                self.worker_ends[number],
                self.board.memory,
                self.cores,
                self.board.doorbell,
                number,
                self.application.on(number),
                {"SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "SERVER_NAME": "x"},
            )
            thread = threading.Thread(target=core.serve)
            thread.start()
            self.serving.append((number, thread))
            self.until(lambda number=number: number in self.events.ready)
        return self

    def until(self, predicate):
        """Run the front's callback until this is so."""

        def step():
            if select.select([self.front.epoll_fd], [], [], 0.01)[0]:
                self.front.on_ready()
            return predicate()

        wait_until(step, 20, f"{self.front.counters}")

    def begin(self, core, seq):
        """What a worker does first with a request: say in its slot that it has it."""
        slots = board_slots_offset(self.cores)
        struct.pack_into("<Q", self.board.memory, slots + core * SLOT_BYTES, seq)

    def connect(self, data):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(self.listener.getsockname())
        client.sendall(data)
        self.clients.append(client)
        return client

    def ask(self, path="/"):
        """Send a request and have the front take it."""
        accepted = self.front.counters["accepted"]
        client = self.connect(build([("PATH_INFO", path)]))
        self.until(lambda: self.front.counters["accepted"] > accepted)
        return client

    def answer(self, client):
        """Everything that the client gets."""
        found = []

        def ended():
            if select.select([client], [], [], 0)[0]:
                found.append(client.recv(65536))
            return found and not found[-1]

        self.until(ended)
        return b"".join(found)

    def ask_and_answer(self, path="/"):
        body = self.answer(self.ask(path)).rpartition(b"\r\n\r\n")[2]
        self.front.tick()  # the master would find the finished core at the next connection
        return body

    def close(self):
        for _ in range(50):
            self.application.let_go.release()
        for core, _ in self.serving:
            self.front.retire_core(core)
        self.until(lambda: not any(thread.is_alive() for _, thread in self.serving))
        for core in range(self.cores):
            self.front.remove_core(core)
            os.close(self.worker_ends[core])
        for client in self.clients:
            client.close()
        self.listener.close()
        os.close(self.board.doorbell)
        os.close(self.board.fd)


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(**settings):
        made.append(Bench(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


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
    wait_until(lambda: bench.front.overdue(0.05) == ([core], 0.0))
    assert bench.front.overdue(0.0) == ([], 0.0)  # no limit
    request = bench.front.describe(core)
    assert (request.core, request.uri, request.begun, request.sent) == (core, "", True, False)
    bench.front.condemn(core)
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
    assert bench.front.overdue(60.0) == ([0], 0.0)


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


READY = (4).to_bytes(2, "little") + bytes(38)  # kind and padding of a MessageHead, _layout.pxd
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
    worker.send(RETURNED + bytes(6) + seq.to_bytes(8, "little") + bytes(24))
    bench.until(lambda: bench.events.lost == [0])
    bench.front.remove_core(0)
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


REFUSED = [
    pytest.param(b"\x00\x03\x00\x00\x09\x00A", b"HTTP/1.1 400 Bad Request", ("LengthBeyondBlock", 400), id="malformed"),
    pytest.param(b"\x05\x00\x00\x00", b"HTTP/1.1 501 Not Implemented", ("UnservedModifier", 501), id="modifier"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request", ("PlainHttp", 400), id="plain HTTP"),
    pytest.param(b"\x16\x03\x01\x00\xc8\x01", b"", ("TlsHello", 0), id="TLS"),
]


@pytest.mark.parametrize(("data", "status_line", "event"), REFUSED)
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
