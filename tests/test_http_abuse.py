"""Clients that go away at any moment, and heads that are made to be slow to read."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from support.client import Connection, http, together
from support.harness import APPS, Server, free_port
from support.wait import wait_until

from wsgimaster._http1 import HeadError, read_request

REQUESTS = (
    b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /hash HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20_000,
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nabcde\r\n" * 100 + b"0\r\n\r\n",
    b"GET /large?size=3000000 HTTP/1.1\r\nHost: a\r\n\r\n",
)
CLIENTS, EACH = 10, 1000


@pytest.fixture(scope="module", params=["http", "http-socket"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    options = f"""
        {request.param} = 127.0.0.1:{free_port()}
        {request.param} = http.sock
        pythonpath = {APPS}
        module = probe
        processes = 2
        disable-logging = true
        need-app = true
    """
    with Server(options) as server:
        yield server


def spent(server: Server) -> float:
    """CPU seconds of all processes."""
    return sum(sum(process.cpu_times()[:2]) for process in server.processes())


def is_idle(server: Server) -> bool:
    before, begin = spent(server), time.monotonic()
    wait_until(lambda: time.monotonic() > begin + 0.5)
    return spent(server) - before < 0.05


def test_ten_thousand_resets(server: Server) -> None:
    """Each after some bytes of a request, of its answer, or between two requests."""
    for address in server.addresses * 2:
        assert http(address, "/hello").status == 200
    wait_until(lambda: is_idle(server))
    before = {process.pid: process.num_fds() for process in server.processes()}

    def go_away(number: int) -> None:
        dice = random.Random(number)
        for _ in range(EACH):
            with Connection(dice.choice(server.addresses)) as connection:
                request = dice.choice(REQUESTS)
                if dice.random() < 0.3:
                    connection.send(REQUESTS[0])
                    connection.receive(dice.randrange(1, 200))
                connection.send(request[: dice.randrange(len(request) + 1)])
                if dice.random() < 0.2:
                    connection.half_close()
                connection.reset()

    together(CLIENTS, go_away)
    wait_until(lambda: is_idle(server), message="it goes on working for nobody")
    wait_until(
        lambda: all(psutil.Process(pid).num_fds() <= count + 2 for pid, count in before.items()),
        message=lambda: f"{before} descriptors before, now {[psutil.Process(pid).num_fds() for pid in before]}",
    )
    assert {process.pid for process in server.processes()} == set(before), "a process has died"
    for address in server.addresses:
        assert http(address, "/hello").status == 200


def seconds(data: bytes) -> float:
    """The best of some tries."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(20):
            with suppress(HeadError):
                read_request(data)
        times.append(time.perf_counter() - begin)
    return min(times)


GROWING = {
    "one long field": lambda n: b"X-A: " + b"a, " * n + b"\r\n",
    "a long name": lambda n: b"X" * (3 * n) + b": a\r\n",
    "spaces": lambda n: b"X-A:" + b" " * (3 * n) + b"a\r\n",
    "tabs at the end": lambda n: b"X-A: a" + b"\t" * (3 * n) + b"\r\n",
    "words of Connection": lambda n: b"Connection: " + b",," * n + b"\r\n",
    "cookies": lambda n: b"Cookie: " + b"a=b; " * (n // 2) + b"\r\n",
    "forwarded": lambda n: b"X-Forwarded-For: " + b"1," * n + b"\r\n",
    "the same field": lambda n: b"A:b\r\n" * (n // 200),
    "other fields": lambda n: b"".join(b"A%d:b\r\n" % number for number in range(n // 200)),
}


@pytest.mark.parametrize("field", GROWING.values(), ids=GROWING)
def test_the_time_grows_with_the_head(field: object) -> None:
    """Four times the head takes about four times as long; were it quadratic, sixteen times."""
    assert callable(field)
    heads = [b"GET / HTTP/1.1\r\nHost: a\r\n" + field(n) + b"\r\n" for n in (5_000, 20_000)]
    wait_until(lambda: seconds(heads[1]) < 9 * seconds(heads[0]), message="it isn't linear")
