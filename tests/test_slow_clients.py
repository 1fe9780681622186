"""A thousand clients that stop after half a head: they wait in the master, and cost the others nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
from support.client import Connection, cgi, http, packet, together, uwsgi
from support.harness import APPS, Nginx, Server, free_port
from support.wait import paced, wait_until

CLIENTS = 1000
MB = 1 << 20

LONG = packet({**cgi("/process"), "X_LONG": "x" * 60_000})
HALVES = {
    "one byte": LONG[:1],
    "the four bytes": LONG[:4],
    "half of a small head": packet(cgi("/process"))[:150],
    "half of the largest head": LONG[:30_000],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = f"""
        socket = app.sock
        socket = 127.0.0.1:{free_port()}
        pythonpath = {APPS}
        module = probe
        processes = 2
        listen = 2000
        socket-timeout = 60
        buffer-size = 65535
        disable-logging = true
        need-app = true
    """
    with Server(options) as server:
        yield server


def memory(server: Server) -> int:
    return sum(process.memory_info().rss for process in server.processes())


def descriptors(server: Server) -> int:
    return sum(process.num_fds() for process in server.processes())


def accepted(server: Server, idle: int) -> int:
    """About how many connections the server holds that it didn't when it was idle."""
    return descriptors(server) - idle


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("transport", [0, 1], ids=["unix", "TCP"])
def test_half_heads_hold_no_worker(server: Server, half: bytes, transport: int) -> None:
    address = server.addresses[transport]
    assert {uwsgi(address, "/hello").status for _ in range(20)} == {200}
    idle, idle_memory = descriptors(server), memory(server)
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(address)) for _ in range(CLIENTS)]
        for client in clients:
            client.send(half)
        wait_until(lambda: accepted(server, idle) > 0.95 * CLIENTS, message="they are accepted")
        answers = together(8, lambda _: [uwsgi(address, "/hello").status for _ in range(50)])
        assert answers == [[200] * 50] * 8
        assert memory(server) - idle_memory < 2 * CLIENTS * len(half) + 32 * MB
        # the two workers are both free: two requests of a second run side by side
        pids = together(2, lambda _: json.loads(uwsgi(address, "/process?seconds=1").body)["pid"])
        assert len(set(pids)) == 2
    wait_until(lambda: accepted(server, idle) < 10, message="they are forgotten when they leave")


def test_half_heads_beside_nginx(server: Server) -> None:
    with Nginx(server.address) as nginx, ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(Connection(server.address)).send(HALVES["half of a small head"])
        assert [http(nginx.address, "/hello").status for _ in range(100)] == [200] * 100


def test_heads_in_single_bytes(server: Server) -> None:
    """A hundred clients send their heads a byte at a time, in turns; all are served."""
    request = packet(cgi("/hello"))
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(server.address)) for _ in range(100)]
        for place in range(len(request)):
            for client in clients:
                client.send(request[place : place + 1])
        assert [client.answer().body for client in clients] == [b"hello"] * 100


def test_clients_that_come_and_go(server: Server) -> None:
    """Connections reset and closed at every place of the head leave nothing behind."""
    assert uwsgi(server.address, "/hello").status == 200
    idle = descriptors(server)
    request = packet(cgi("/hello"))
    for place in range(len(request) + 1):
        for address in server.addresses:
            with Connection(address) as client:
                client.send(request[:place])
            client = Connection(address)
            client.send(request[:place])
            client.reset()
    assert uwsgi(server.address, "/hello").status == 200
    wait_until(lambda: accepted(server, idle) < 10, message="they are forgotten")
    assert "Traceback" not in server.log()


DRIPS = {
    "a packet": (0, LONG[:300], b""),
    "an HTTP head": (1, b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 1000, b""),
    "the second one of a connection": (1, b"GET /hello HTTP/1.1\r\nX-Long: " + b"x" * 1000, b"first"),
}


def test_a_head_may_take_fifteen_timeouts_altogether() -> None:
    """Whoever sends a byte now and then would be there for ever otherwise: no pause is too long."""
    options = f"""
        socket = app.sock
        http-socket = http.sock
        pythonpath = {APPS}
        module = probe
        socket-timeout = 1
    """

    def drip(which: int, text: bytes, before: bytes) -> tuple[int, float]:
        with Connection(server.addresses[which]) as connection:
            if before:
                connection.send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.next_answer()[0].status == 200
            connection.socket.settimeout(0)
            began = time.monotonic()
            for byte in paced(text, 0.2):
                connection.send(bytes([byte]))
                with suppress(BlockingIOError):
                    return connection.answer().status, time.monotonic() - began
        raise AssertionError("nobody minded")

    with Server(options) as server, ThreadPoolExecutor() as pool:
        for status, seconds in [one.result() for one in [pool.submit(drip, *row) for row in DRIPS.values()]]:
            assert status == 408
            assert seconds > 10
