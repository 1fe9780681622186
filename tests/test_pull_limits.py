"""Limits on what waits in the kernel: at several sockets, and where the kernel doesn't tell how many wait.

The master learns the backlog of a unix socket from sock_diag(7), that of a TCP socket from TCP_INFO.
"""

import errno
import os
import select
import socket
import time
from collections import Counter

import pytest
from support import syscalls
from support.client import Connection, cgi, packet
from support.harness import APPS, free_port
from support.wait import wait_until

from wsgimaster._proto import build
from wsgimaster.wakeups import Decision

THREE = ("first.sock", "second.sock", "third.sock")


@pytest.fixture
def busy(bench):
    """A bench whose core is in a request: what comes now waits at the sockets."""

    def make(**settings):
        made = bench(pull=True, **settings).start(0)
        made.send("/wait")
        made.until(lambda: made.application.begun)
        return made

    return make


def send_to_each(bench, counts):
    """So many requests to each socket, /wait0 and so on; their clients."""
    return [[bench.send(f"/wait{n}", listener) for n in range(count)] for listener, count in enumerate(counts)]


def all_of(lists):
    return [client for clients in lists for client in clients]


def statuses(bench, clients):
    return Counter(bench.answer(client)[9:12] for client in clients)


# ---- several sockets ----


def test_the_limit_is_one_for_all_sockets_and_they_take_turns(busy):
    """The oldest of each are turned away, and its last ones are served."""
    bench = busy(names=THREE, waiting_limit=6)
    clients = send_to_each(bench, [10, 10, 10])
    bench.until(lambda: bench.front.counters["refused"] >= 24)
    bench.application.let_go.release(7)
    assert [statuses(bench, some) for some in clients] == [{b"503": 8, b"200": 2}] * 3
    assert sorted(path for _, path in bench.application.begun[1:]) == ["/wait8"] * 3 + ["/wait9"] * 3


@pytest.mark.parametrize("counts", [(20, 0, 0), (0, 12, 1), (1, 2, 15), (3, 3, 0)], ids=str)
def test_the_limit_holds_wherever_they_wait(busy, counts):
    bench = busy(names=THREE, waiting_limit=6)
    clients = all_of(send_to_each(bench, counts))
    turned_away = sum(counts) - 6
    bench.until(lambda: bench.front.counters["refused"] >= turned_away)
    bench.application.let_go.release(7)
    assert statuses(bench, clients) == Counter({b"503": turned_away, b"200": 6})


def test_what_waits_in_the_master_counts_too(busy):
    """Its head came slowly."""
    bench = busy(names=THREE, waiting_limit=3)
    data = build([("PATH_INFO", "/wait")])
    slow = [bench.connect(data[:5], listener) for listener in range(3)]
    bench.application.let_go.release()
    bench.until(lambda: bench.front.reading == 3)
    bench.send("/wait")
    bench.until(lambda: len(bench.application.begun) == 2)
    for client in slow[:2]:
        client.sendall(data[5:])
    bench.until(lambda: bench.front.waiting == 2)
    clients = all_of(send_to_each(bench, [2, 2, 2]))
    bench.until(lambda: bench.front.counters["refused"] >= 5)
    bench.application.let_go.release(4)
    assert statuses(bench, clients) == {b"503": 5, b"200": 1}
    assert statuses(bench, slow[:2]) == {b"200": 2}


def test_who_waits_for_too_long_gets_503_at_each_socket(busy):
    bench = busy(names=THREE, queue_timeout=0.05)
    clients = send_to_each(bench, [5, 1, 2])
    assert [statuses(bench, some) for some in clients] == [{b"503": 5}, {b"503": 1}, {b"503": 2}]
    assert len(bench.application.begun) == 1


def test_who_is_turned_away_late_makes_room_for_others(busy):
    """More come than may wait, in the moment in which those who wait have waited for too long."""
    bench = busy(names=THREE, waiting_limit=6, queue_timeout=1.0)
    late = all_of(send_to_each(bench, [2, 2, 2]))
    since = time.monotonic()
    bench.until(lambda: time.monotonic() > since + 0.3)  # it has seen them; now it doesn't look for a while
    wait_until(lambda: time.monotonic() > since + 1.5)
    clients = all_of(send_to_each(bench, [2, 1, 1]))
    bench.until(lambda: bench.front.counters["refused"] >= 6)
    bench.application.let_go.release(5)
    assert statuses(bench, clients) == {b"200": 4}
    assert statuses(bench, late) == {b"503": 6}


@pytest.mark.parametrize("elsewhere", [0, 3])
def test_a_nearly_full_backlog_turns_people_away_before_the_kernel_does(busy, elsewhere):
    """Only there: at the other sockets there is room."""
    bench = busy(names=THREE)
    bench.listeners[1].listen(16)
    clients = send_to_each(bench, [elsewhere, 16, elsewhere])
    bench.until(lambda: bench.front.counters["refused"] >= 2)
    bench.application.let_go.release(15 + 2 * elsewhere)
    assert statuses(bench, clients[1]) == {b"503": 2, b"200": 14}
    assert statuses(bench, clients[0] + clients[2]) == Counter({b"200": 2 * elsewhere})


class Crowd:
    """Thirty requests, at a server's sockets in turn, while its only core is in another one; `listen` is five."""

    def __init__(self, start, gate, *sockets):
        os.mkfifo(gate)
        lines = [*(f"socket = {name}" for name in sockets), "listen = 5", f"pythonpath = {APPS}", "module = probe"]
        self.server, self.gate = start("\n".join(lines) + "\n"), gate
        self.first, *self.clients = self.clients_that_send(1, "/gated_generator", HTTP_X_GATE=str(gate))
        self.first.receive_until(b"first")
        self.clients = self.clients_that_send(30, "/hello")

    def clients_that_send(self, count, path, **variables):
        clients = []
        for number in range(count):
            clients.append(Connection(self.server.addresses[number % len(self.server.addresses)]))
            clients[-1].send(packet(cgi(path, **variables)))
        return clients

    def answered(self):
        """How many."""
        return len(select.select([client.socket for client in self.clients], [], [], 0)[0])

    def answers(self):
        """From now on the core goes on."""
        self.gate.write_bytes(b"")
        found = [client.answer() for client in self.clients]
        for client in [self.first, *self.clients]:
            client.close()
        return found


def test_unix_and_tcp_sockets_of_a_server(start, tmp_path):
    crowd = Crowd(start, tmp_path / "gate", "a.sock", "b.sock", f"127.0.0.1:{free_port()}")
    wait_until(lambda: crowd.answered() >= 25)
    answers = crowd.answers()
    assert Counter(answer.status for answer in answers) == {503: 25, 200: 5}
    assert {answer.header("Retry-After") for answer in answers if answer.status == 503} == {"1"}
    assert all(503 in [answer.status for answer in answers[socket::3]] for socket in range(3))


# ---- without sock_diag: a kernel that doesn't have it, or a policy that forbids it ----

without_sock_diag = pytest.mark.skipif(not syscalls.is_possible(), reason="needs seccomp(2)")


def with_sock_diag_forbidden(action):
    return syscalls.failing("socket", socket.AF_NETLINK, errno.EACCES, action)


@pytest.fixture
def unknowing(bench):
    """Like `busy`, with a master that doesn't know how many wait at its unix sockets."""

    def make(**settings):
        made = with_sock_diag_forbidden(lambda: bench(pull=True, **settings)).start(0)
        made.send("/wait")
        made.until(lambda: made.application.begun)
        return made

    return make


@without_sock_diag
def test_all_are_served_whose_number_is_unknown(unknowing):
    """A socket counts as one, whoever waits there, so that `listen` limits only what waits in the master."""
    bench = unknowing(names=THREE, waiting_limit=3)
    clients = all_of(send_to_each(bench, [10, 0, 5]))
    assert bench.front.waiting == 2
    bench.application.let_go.release(16)
    assert statuses(bench, clients) == {b"200": 15}
    assert bench.front.waiting == 0


@without_sock_diag
def test_more_than_may_wait_in_the_master_get_503(unknowing):
    bench = unknowing(waiting_limit=3)
    data = build([("PATH_INFO", "/x")])
    clients = [bench.connect(data[:5]) for _ in range(5)]
    bench.application.let_go.release()
    bench.until(lambda: bench.front.reading == 5)
    bench.send("/wait")
    bench.until(lambda: len(bench.application.begun) == 2)
    for client in clients:
        client.sendall(data[5:])
    bench.until(lambda: bench.front.counters["refused"] == 2)
    bench.application.let_go.release()
    assert statuses(bench, clients) == {b"503": 2, b"200": 3}


@without_sock_diag
def test_who_waits_for_too_long_gets_503_sooner_or_later(unknowing):
    """One after the other: of those behind the first nobody knows when they came."""
    bench = unknowing(names=THREE, queue_timeout=0.02)
    clients = all_of(send_to_each(bench, [4, 1, 0]))
    assert statuses(bench, clients) == {b"503": 5}
    assert len(bench.application.begun) == 1


@without_sock_diag
def test_cores_are_woken_for_those_whose_number_is_unknown(unknowing):
    """The rule says no to each connection, but yes to those that are overdue."""
    bench = unknowing(processes=3, most_waiting=1)
    bench.start(1, 2)
    bench.events.decide_wakeups = lambda use, grinders, overdue: Decision(watch=False, wake=overdue, rest=0)
    clients = [bench.send("/wait") for _ in range(2)]
    bench.until(lambda: len(bench.application.begun) == 3)
    bench.application.let_go.release(3)
    assert statuses(bench, clients) == {b"200": 2}


@without_sock_diag
@pytest.mark.parametrize(("name", "turned_away"), [("a.sock", 0), ("127.0.0.1:{}", 25)], ids=["unix", "TCP"])
def test_a_server_without_sock_diag(start, tmp_path, name, turned_away):
    crowd = with_sock_diag_forbidden(lambda: Crowd(start, tmp_path / "gate", name.format(free_port())))
    wait_until(lambda: crowd.answered() >= turned_away)
    assert Counter(answer.status for answer in crowd.answers()) == Counter({503: turned_away, 200: 30 - turned_away})
