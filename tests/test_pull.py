"""Pull: cores that take their next request from the listening sockets themselves (tests/support/one_process.py).

The master's callback runs only where a test says so (`until`, `answer`): what is served without it was pulled.
"""

import errno
import os
import resource
import select
import socket
import struct
import threading
import time

import pytest
from support.one_process import NO_REQUESTS, READY, Recorder
from support.wait import wait_until

from wsgimaster._front import board_slots_offset
from wsgimaster._proto import build
from wsgimaster.wakeups import Decision


@pytest.fixture
def pulling(bench):
    """Benches with cores that have begun to wait, as far as they may; the master has seen that."""

    def make(processes=1, serving=None, most_waiting=2, **settings):
        made = bench(processes=processes, pull=True, most_waiting=most_waiting, **settings)
        serving = range(processes) if serving is None else serving
        made.start(*serving)
        # the master needn't know that a core is parked before it needs one: the tick finds it
        made.until(lambda: not made.front.tick() and made.waiting() + made.front.parked == len(serving))
        return made

    return make


def received(client):
    """Everything that the client gets, without the master's help."""
    found = []
    while not found or found[-1]:
        found.append(client.recv(65536))
    return b"".join(found)


def body(client):
    return received(client).rpartition(b"\r\n\r\n")[2]


def test_a_waiting_core_serves_without_the_master(pulling):
    bench = pulling()
    assert [body(bench.send("/x")) for _ in range(20)] == [b"core 0"] * 20
    assert bench.front.counters["accepted"] == 0


def test_the_first_request_wakes_the_master_once(pulling):
    """It looks after logs and deadlines from then on."""
    bench = pulling()
    ticks = bench.events.ticks
    bench.send("/wait")
    bench.until(lambda: bench.events.ticks == ticks + 1)
    wait_until(lambda: bench.front.in_progress == 1)
    bench.application.let_go.release()
    bench.until(lambda: not bench.front.tick())
    bench.front.take_logs()
    assert len(bench.events.lines) == 1
    assert bench.events.ticks == ticks + 1


def test_who_comes_while_all_are_busy_is_served_in_order(pulling):
    bench = pulling()
    clients = [bench.send(f"/wait{number}") for number in range(5)]
    bench.application.let_go.release(5)
    assert [body(client) for client in clients] == [b"core 0"] * 5
    assert [path for _, path in bench.application.begun] == [f"/wait{number}" for number in range(5)]


def test_no_more_cores_wait_than_may(pulling):
    bench = pulling(processes=4, most_waiting=2)
    assert (bench.waiting(), bench.front.parked) == (2, 2)
    bench = pulling(processes=2, most_waiting=0, names=("other.sock",))
    assert (bench.waiting(), bench.front.parked) == (0, 2)


def test_the_master_wakes_a_parked_core_for_whom_nobody_waits(pulling):
    bench = pulling(processes=2, most_waiting=1)
    first = bench.send("/wait")
    bench.until(lambda: len(bench.application.begun) == 1)
    second = bench.send("/wait")
    bench.until(lambda: len(bench.application.begun) == 2)
    assert bench.front.counters["pushed"] == 1
    bench.application.let_go.release(2)
    assert {body(first), body(second)} == {b"core 0", b"core 1"}


def test_cores_are_not_woken_when_that_is_no_use(pulling):
    bench = pulling(processes=3, most_waiting=1)
    bench.events.decision = Decision(watch=False, wake=0, rest=0)
    clients = [bench.send("/wait")]
    bench.until(lambda: bench.application.begun)
    clients.append(bench.send("/wait"))
    bench.until(lambda: bench.events.decided)  # the second may have been pushed before
    clients.append(bench.send("/x"))
    for _ in range(10):
        bench.front.tick()
        bench.front.on_ready()
    assert bench.front.waiting >= 1
    assert bench.front.parked >= 1
    bench.events.decision = Decision(watch=False, wake=5, rest=0)
    bench.until(lambda: bench.front.waiting == 0)
    bench.application.let_go.release(2)
    assert {bench.answer(client)[:15] for client in clients} == {b"HTTP/1.1 200 OK"}


def test_cores_go_to_sleep_when_that_is_better(pulling):
    """Two of three, all of them at work, after their requests, although others wait."""
    bench = pulling(processes=3, most_waiting=2)
    clients = [bench.send("/wait") for _ in range(3)]
    bench.until(lambda: len(bench.application.begun) == 3)
    waiting = [bench.send("/wait") for _ in range(3)]
    bench.events.decision = Decision(watch=False, wake=0, rest=2)
    bench.until(lambda: bench.wanted() == 2)
    bench.events.decision = Decision(watch=False, wake=0, rest=0)
    bench.application.let_go.release(3)
    for client in clients:
        bench.answer(client)
    bench.until(lambda: bench.front.parked == 2)
    bench.application.let_go.release(3)
    assert [body(client) for client in waiting] == [body_of_last(bench)] * 3


def body_of_last(bench):
    return b"core %d" % bench.application.begun[-1][0]


class Measurements(Recorder):
    """For each decision, how many cores were measured for it. Cores are sent to rest as `rest` says, which is given
    that number."""

    def __init__(self):
        super().__init__()
        self.measured, self.cores, self.watched, self.wake = [], 0, lambda: None, 100

    def is_grinder(self, use, cpu_seconds, requests):
        self.cores += 1
        return True

    def decide_wakeups(self, use, grinders, overdue):
        self.measured.append((self.cores, grinders, self.watched()))
        self.cores, now = 0, self.cores
        return Decision(watch=False, wake=min(overdue, self.wake), rest=self.rest(now))

    def rest(self, cores):
        return 0


def test_cores_are_not_sent_to_sleep_for_old_figures(pulling):
    """Between two measurements, those who have gone to sleep since are among the grinders still."""
    events = Measurements()
    bench = pulling(processes=3, most_waiting=1, events=events)
    clients = [bench.send("/wait")]
    bench.until(lambda: len(bench.application.begun) == 1)
    clients.append(bench.send("/wait"))
    bench.until(lambda: any(cores == 2 for cores, _, _ in events.measured))
    events.rest, before, wanted = (lambda cores: 0 if cores else 1), len(events.measured), []
    bench.until(lambda: wanted.append(bench.wanted()) or len(events.measured) >= before + 20)
    assert (0, 2) in [(cores, grinders) for cores, grinders, _ in events.measured[before:]]
    assert set(wanted) == {0}
    events.rest = lambda cores: 1 if cores else 0
    bench.until(lambda: bench.wanted() == 1)
    events.rest = lambda cores: 0
    bench.until(lambda: bench.wanted() == 0)
    bench.application.let_go.release(2)
    assert {bench.answer(client)[-6:] for client in clients} == {
        b"core %d" % core for core, _ in bench.application.begun
    }


def test_when_nobody_is_accepted_any_more_the_cores_are_measured_at_each_look(pulling):
    """Those who have ground small requests until now may all be stuck."""
    events = Measurements()
    bench = pulling(processes=3, most_waiting=1, events=events)
    clients = [bench.send("/wait")]
    bench.until(lambda: len(bench.application.begun) == 1)
    events.wake = 0
    clients.append(bench.send("/wait"))
    bench.until(lambda: events.measured)  # the second may have been pushed before
    clients.append(bench.send("/x"))
    bench.until(lambda: bench.front.waiting and events.measured[-1][0])
    before, busy = len(events.measured), events.measured[-1][0]
    bench.until(lambda: len(events.measured) >= before + 5)
    assert [cores for cores, _, _ in events.measured[before : before + 5]] == [busy] * 5
    bench.application.let_go.release(2)
    for client in clients:
        bench.answer(client)


def test_a_core_that_grinds_is_not_helped_by_one_that_would_have_to_wake_up(pulling):
    """Also when nothing waited a moment ago, so that the master looks at the sockets itself."""
    bench = pulling(processes=2, most_waiting=1)
    bench.events.decision = Decision(watch=False, wake=0, rest=0)
    clients = [bench.send("/wait")]
    bench.until(lambda: len(bench.application.begun) == 1)
    clients.append(bench.send("/x"))
    bench.until(lambda: bench.events.decided)
    bench.application.let_go.release()
    for client in clients:
        bench.answer(client)
    bench.until(lambda: not select.select([bench.front.epoll_fd], [], [], 0.05)[0])  # all is calm: no timer
    assert bench.front.parked == 1
    pushed = bench.front.counters["pushed"]
    clients = [bench.send("/wait"), bench.send("/x")]
    decided = bench.events.decided
    bench.until(lambda: bench.events.decided > decided + 3)
    assert (bench.front.waiting, bench.front.counters["pushed"]) == (1, pushed)
    bench.application.let_go.release()
    assert len({bench.answer(client)[-6:] for client in clients}) == 1


def test_what_a_core_uses_while_it_waits_for_requests_does_not_count(pulling):
    """One that computes in every request has a high use, however few there are. The other one is in a long request."""
    events, uses = Measurements(), []
    bench = pulling(processes=2, most_waiting=1, events=events)
    events.is_grinder = lambda use, cpu_seconds, requests: uses.append(use) or True
    long = bench.send("/wait")
    bench.until(lambda: bench.application.begun)

    def measure():
        """Two requests, the second of which must wait: so the master looks."""
        uses.clear()
        clients = [bench.send("/compute"), bench.send("/x")]
        bench.until(lambda: len(uses) >= 2)
        for client in clients:
            bench.answer(client)
        return max(uses[:2])

    measure()
    measured_at = time.monotonic()
    bench.until(lambda: time.monotonic() > measured_at + 1)
    assert measure() > 0.6  # half of it is from before
    bench.application.let_go.release()
    bench.answer(long)


def test_a_core_that_was_woken_is_measured_from_then_on(pulling):
    """What it has used since it was measured last tells nothing: it slept."""
    events = Measurements()
    bench = pulling(processes=2, most_waiting=0, events=events)
    events.watched = lambda: bench.front.counters["pushed"]
    clients = [bench.send("/wait")]
    bench.until(lambda: len(bench.application.begun) == 1)
    clients.append(bench.send("/wait"))
    bench.until(lambda: (2, 2, 2) in events.measured)
    bench.application.let_go.release()
    bench.until(lambda: bench.front.parked == 1)
    bench.until(lambda: events.measured[-1][:2] == (1, 1))  # it sleeps, the other one doesn't
    clients.append(bench.send("/wait"))
    bench.until(lambda: (2, 2, 3) in events.measured)
    measured = [cores for cores, _, pushed in events.measured if cores and pushed == 3]
    assert measured[:2] == [1, 2]
    bench.application.let_go.release(2)
    for client in clients:
        bench.answer(client)


def test_what_waits_in_the_master_comes_before_what_waits_at_the_socket(pulling):
    bench = pulling()
    busy = bench.send("/wait")
    wait_until(lambda: bench.application.begun)
    data = build([("PATH_INFO", "/slow")])
    slow = bench.connect(data[:9])
    bench.application.let_go.release()
    received(busy)
    bench.until(lambda: bench.front.reading == 1)  # handed to the master, since its head isn't complete
    busy = bench.send("/wait")
    wait_until(lambda: len(bench.application.begun) == 2)
    later = [bench.send("/later") for _ in range(3)]
    slow.sendall(data[9:])
    bench.until(lambda: bench.front.waiting == 1 + 3)
    bench.application.let_go.release()
    for client in (busy, slow, *later):
        assert bench.answer(client).endswith(b"core 0")
    assert [path for _, path in bench.application.begun] == ["/wait", "/wait", "/slow", "/later", "/later", "/later"]


def test_a_slow_head_is_pushed_to_a_core_that_waits(pulling):
    bench = pulling()
    data = build([("PATH_INFO", "/slow")])
    client = bench.connect(data[:5])
    bench.until(lambda: bench.front.reading == 1)
    for byte in data[5:]:
        client.sendall(bytes([byte]))
        bench.front.on_ready()
    assert bench.answer(client).endswith(b"core 0")
    assert bench.front.counters["pushed"] == 1


@pytest.mark.parametrize(("data", "status_line", "event"), NO_REQUESTS)
def test_what_is_no_request_is_left_to_the_master(pulling, data, status_line, event):
    bench = pulling()
    assert bench.answer(bench.connect(data)).partition(b"\r\n")[0] == status_line
    assert bench.events.refused == [event]
    assert bench.application.begun == []


def test_a_ping_is_left_to_the_master(pulling):
    bench = pulling()
    assert bench.answer(bench.connect(b"\x64\x00\x00\x00")) == b"\x64\x00\x00\x01"


def test_a_probe_that_says_nothing_is_closed(pulling):
    bench = pulling()
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(bench.listeners[0].getsockname())
    assert body(bench.send("/x")) == b"core 0"


def test_a_head_of_64_kb_and_a_body_behind_it(pulling):
    bench = pulling()
    data = build([("PATH_INFO", "/large"), ("CONTENT_LENGTH", "20000"), *((f"X{n}", "y" * 6400) for n in range(10))])
    client = bench.connect(data)
    client.sendall(b"b" * 20_000)
    client.shutdown(socket.SHUT_WR)
    assert bench.answer(client).endswith(b"core 0")


@pytest.mark.parametrize("http", [False, True], ids=["", "beside an HTTP socket"])
def test_an_unread_body_is_drained_by_the_master(pulling, http):
    bench = pulling(http=http)
    client = bench.send("/unread", CONTENT_LENGTH="3000000")
    sender = threading.Thread(target=client.sendall, args=(b"b" * 3_000_000,))
    sender.start()
    assert bench.answer(client).endswith(b"core 0")  # and not destroyed by a reset
    bench.until(lambda: not sender.is_alive())
    client.close()
    bench.until(lambda: bench.front.draining == 0)


def test_the_listening_sockets_take_turns(pulling):
    """Requests of the second one come through although there is always one more at the first."""
    bench = pulling(names=("first.sock", "second.sock"))
    bench.send("/wait")
    bench.until(lambda: bench.application.begun)
    for _ in range(10):
        bench.send("/first")
    for _ in range(3):
        bench.send("/second", listener=1)
    bench.application.let_go.release()
    bench.until(lambda: len(bench.application.begun) == 14)
    order = [path for _, path in bench.application.begun[1:7]]
    assert sorted(order) == ["/first"] * 3 + ["/second"] * 3


def test_a_waiting_core_that_is_sent_away_leaves(pulling):
    bench = pulling(processes=2)
    bench.front.retire_core(0)
    bench.until(lambda: not bench.serving[0][1].is_alive())
    assert [body(bench.send("/x")) for _ in range(5)] == [b"core 1"] * 5


def test_a_busy_core_that_is_sent_away_takes_nothing_more(pulling):
    bench = pulling(processes=2, most_waiting=1)
    client = bench.send("/wait")
    bench.until(lambda: bench.application.begun)
    ((core, _),) = bench.application.begun
    bench.front.retire_core(core)
    others = [bench.send("/x") for _ in range(3)]
    bench.application.let_go.release()
    assert bench.answer(client).endswith(b"core %d" % core)
    assert [bench.answer(other)[-6:] for other in others] == [b"core %d" % (1 - core)] * 3


def test_a_pulled_request_that_its_worker_died_in(pulling):
    bench = pulling()
    bench.send("/wait", REQUEST_METHOD="POST", REQUEST_URI="/wait?\n", REMOTE_ADDR="192.0.2.1")
    wait_until(lambda: bench.application.begun)
    request = bench.front.describe(0)
    assert (request.method, request.uri, request.address) == ("POST", "/wait?\\n", "192.0.2.1")
    assert (request.begun, request.sent, len(request.id)) == (True, False, 16)
    bench.front.remove_core(0)
    assert bench.events.refused == [("lost", -1)]
    assert bench.front.in_progress == 0


def test_a_pulled_request_is_overdue_when_its_limit_is_over(pulling):
    bench = pulling()
    bench.send("/quick")
    bench.until(lambda: bench.application.begun)
    bench.send("/wait")
    bench.until(lambda: len(bench.application.begun) == 2)
    request = bench.front.describe(0)
    assert bench.front.overdue(60.0)[0] == []
    wait_until(lambda: bench.front.overdue(0.05) == ([request], 0.0))
    bench.front.condemn(0, request.seq)
    assert bench.front.overdue(0.05) == ([], 0.0)
    assert bench.front.is_stuck(0)
    assert bench.front.running_in(0) == 0
    bench.application.let_go.release()
    wait_until(lambda: not bench.front.is_stuck(0))


def test_more_than_may_wait_get_503(pulling):
    bench = pulling(waiting_limit=3)
    served = [bench.send("/wait")]
    bench.until(lambda: bench.application.begun)
    clients = [bench.send("/wait") for _ in range(10)]
    bench.until(lambda: bench.front.counters["refused"] == 7)
    assert bench.events.edges[0][0] == "full"
    bench.application.let_go.release(4)
    answers = [bench.answer(client) for client in [*served, *clients]]
    assert sum(answer.startswith(b"HTTP/1.1 503 ") for answer in answers) == 7
    assert sum(answer.endswith(b"core 0") for answer in answers) == 4
    bench.front.tick()
    assert [edge for edge, _ in bench.events.edges] == ["full", "room"]


def test_who_waits_for_too_long_gets_503(pulling):
    bench = pulling(queue_timeout=0.05)
    served = bench.send("/wait")
    bench.until(lambda: bench.application.begun)
    assert bench.answer(bench.send("/late")).startswith(b"HTTP/1.1 503 ")
    bench.application.let_go.release()
    assert bench.answer(served).endswith(b"core 0")
    assert [path for _, path in bench.application.begun] == ["/wait"]


def test_who_left_is_not_executed(pulling):
    bench = pulling()
    bench.send("/wait")
    wait_until(lambda: bench.application.begun)
    gone = [bench.send("/gone") for _ in range(5)]
    for client in gone:
        client.close()
    wait_until(lambda: bench.front.describe(0).started and bench.front.overdue(0.002)[0])  # long enough to look
    bench.application.let_go.release()
    assert body(bench.send("/x")) == b"core 0"
    assert [path for _, path in bench.application.begun] == ["/wait", "/x"]


def test_after_the_door_is_closed_the_rest_is_served_and_the_core_is_parked(pulling):
    bench = pulling()
    bench.send("/wait")
    wait_until(lambda: bench.application.begun)
    rest = [bench.send("/rest") for _ in range(3)]
    bench.listeners[0].shutdown(socket.SHUT_RD)
    bench.application.let_go.release()
    assert [body(client) for client in rest] == [b"core 0"] * 3
    bench.until(lambda: bench.front.parked == 1)
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(bench.listeners[0].getsockname())


def test_cores_stop_pulling_before_the_door_is_closed(pulling):
    """What waits there is the master's to take: a socket that was inherited stays open, and others go on with it."""
    bench = pulling()
    busy = bench.send("/wait")
    bench.until(lambda: bench.application.begun)
    bench.front.stop_pulling()
    left = bench.send("/x")
    bench.application.let_go.release()
    assert bench.answer(busy).startswith(b"HTTP/1.1 200 OK")
    assert bench.front.accept_rest(0)
    assert bench.answer(left).startswith(b"HTTP/1.1 200 OK")
    assert bench.front.counters["pushed"] == 1
    bench.until(lambda: bench.front.tick() is False and bench.front.parked == 1)


def test_a_bit_that_nobody_stands_behind_does_not_keep_the_master_awake(pulling):
    """The application may scribble; and a core that leaves may have been stopped while it waited."""
    bench = pulling(processes=2, serving=())
    bench.send("/x")
    bench.until(lambda: bench.front.waiting == 1)
    bench.set_waiting(1)
    bench.set_waiting(7)
    bench.front.retire_core(1)  # ends, as most calls do, with the question who is to wake the master
    bench.until(lambda: bench.waiting() == 0)
    bench.until(lambda: not select.select([bench.front.epoll_fd], [], [], 0)[0])


def test_a_full_ring_rings_for_the_master(pulling):
    """Its tick would come too late."""
    bench = pulling()
    for _ in range(300):
        received(bench.send("/x", REQUEST_URI="/" + "x" * 1000))
        if select.select([bench.front.epoll_fd], [], [], 0)[0]:
            bench.front.on_ready()
    bench.front.take_logs()
    assert len(bench.events.lines) == 300


@pytest.fixture
def scripted(bench):
    """A core that has got the listening sockets and does what the test says; its end of the channel."""
    bench = bench(processes=2, pull=True)
    with socket.socket(fileno=os.dup(bench.worker_ends[0])) as worker:
        yield bench, worker


def take_sockets(bench, worker):
    """Say READY, and take what comes then."""
    worker.send(READY)
    bench.until(lambda: bench.events.ready == [0])
    message, descriptors, _, _ = socket.recv_fds(worker, 200, 8)
    for fd in descriptors:
        os.close(fd)
    seq = int.from_bytes(message[8:16], "little")
    struct.pack_into("<QQQ", bench.board.memory, board_slots_offset(bench.cores), seq, 0, seq)  # taken, sent, done


def test_a_stopped_core_that_waits_is_found_by_the_tick(scripted):
    """The kernel passes over it, and nobody else is there. The master claims it, and sees that it doesn't begin."""
    bench, worker = scripted
    take_sockets(bench, worker)
    bench.set_waiting(0)
    bench.until(lambda: not bench.front.tick())
    bench.send("/x")
    bench.until(lambda: bench.front.tick() and bench.front.not_begun(0) == [0])
    assert int.from_bytes(worker.recv(200)[:2], "little") == 1  # REQUEST


def test_a_core_that_began_to_wait_while_the_master_queued_something(scripted):
    """It had looked before the master wanted a core, and the master had looked before it waited."""
    bench, worker = scripted
    bench.send("/x")
    bench.until(lambda: bench.front.waiting == 1)  # nobody serves yet
    take_sockets(bench, worker)
    bench.set_waiting(0)
    bench.front.retire_core(1)  # ends, as most calls do, with the question who is to wake the master
    bench.until(lambda: bench.front.counters["pushed"] == 1)


def take_all_descriptors(taken):
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))


def is_a_descriptor_free():
    try:
        os.close(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return False
    return True


def test_a_core_without_descriptors_stops_pulling(pulling):
    bench = pulling()
    soft = len(os.listdir("/proc/self/fd"))
    taken = []
    client = socket.socket(socket.AF_UNIX)
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft + 1, usual[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            take_all_descriptors(taken)
        client.connect(bench.listeners[0].getsockname())
        client.sendall(build([("PATH_INFO", "/x")]))
        wait_until(is_a_descriptor_free)  # it has closed its listening sockets
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        for fd in taken:
            os.close(fd)
    assert bench.answer(client).endswith(b"core 0")
    assert bench.events.lost == [0]
    client.close()


def test_a_scoreboard_that_was_scribbled_over_harms_nobody(pulling):
    bench = pulling(processes=2)
    client = bench.send("/wait")
    wait_until(lambda: bench.application.begun)
    memory = bench.board.memory
    memory[:] = b"\xff" * len(memory)
    for _ in range(3):
        bench.front.on_ready()
        bench.front.tick()
    bench.front.take_logs()
    bench.front.overdue(0.01)
    assert bench.front.in_progress <= 2
    bench.application.let_go.release()
    assert b"core" in client.recv(65536)
