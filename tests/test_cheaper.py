"""The number of workers follows the load: real processes, real requests, and none is lost on the way."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import groups
from support.client import Connection, cgi, http, packet, together, uwsgi
from support.harness import APPS, COMMAND, Nginx, Server
from support.wait import paced, wait_until

Start = Callable[..., Server]

WAYS = {"auto": "socket = app.sock", "push": "socket = app.sock\ndispatch = push", "http": "http-socket = app.sock"}
QUICK = ("cheaper-algo = busyness", "cheaper-overload = 1", "cheaper-busyness-multiplier = 1")


def options(*more: str, way: str = "auto") -> str:
    return "\n".join([WAYS[way], f"pythonpath = {APPS}", "module = scaling", *more]) + "\n"


def sizes(server: Server) -> list[int]:
    """How many workers there were after each change."""
    return [int(size) for size in re.findall(r"^cheaper: \d+ -> (\d+) workers", server.log(), re.MULTILINE)]


def http_request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def uwsgi_request(path: str) -> bytes:
    return packet(cgi(path))


REQUESTS = {"auto": uwsgi_request, "push": uwsgi_request, "http": http_request}


def serve_one(server: Server, way: str = "auto") -> None:
    """Afterwards a worker is ready: until then, requests wait as if all were busy."""
    with Connection(server.address) as client:
        client.send(REQUESTS[way]("/"))
        assert client.answer().status == 200


@contextmanager
def held(server: Server, gate: Path, count: int, way: str = "auto") -> Iterator[None]:
    """So many requests that don't end before the gate is there; all of them are answered."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(server.address)) for _ in range(count)]
        for client in clients:
            client.send(REQUESTS[way](f"/gate?{gate}"))
        yield
        gate.touch()
        assert {client.answer().status for client in clients} == {200}


@pytest.mark.parametrize("way", ["auto", "push"])
def test_workers_come_with_the_load_and_go_with_it(start: Start, tmp_path: Path, way: str) -> None:
    server = start(options("processes = 6", "cheaper = 2", "cheaper-step = 2", *QUICK, way=way))
    assert [worker.number for worker in server.wait_workers(2)] == [1, 2]
    with held(server, tmp_path / "gate", 6):
        assert [worker.number for worker in server.wait_workers(6)] == [1, 2, 3, 4, 5, 6]
    server.wait_log(r"uWSGI worker \d cheaped\.", 4)
    assert [worker.number for worker in server.wait_workers(2)] == [1, 2]  # the highest numbers went first
    assert sizes(server)[-5:] == [6, 5, 4, 3, 2]
    assert "DAMN" not in server.log()


WINDOW_OF_AN_HOUR = ("cheaper-algo = busyness", "cheaper-overload = 3600")


@pytest.mark.parametrize("way", WAYS)
def test_who_waits_for_too_long_gets_a_worker_between_the_rounds(start: Start, tmp_path: Path, way: str) -> None:
    """No algorithm has to agree."""
    server = start(options("processes = 4", "cheaper = 1", *WINDOW_OF_AN_HOUR, way=way))
    serve_one(server, way)
    with held(server, tmp_path / "gate", 1, way), Connection(server.address) as second:
        second.send(REQUESTS[way]("/"))
        assert second.answer().status == 200
    server.wait_log(
        r"^cheaper: 1 -> 2 workers: 1 requests have waited for more than 0\.05 s \(cheaper-queue-wait\),"
        r" the first for \d+\.\d{3} s, and no core is free$"
    )


@pytest.mark.parametrize("option", ["cheaper-queue-wait = 0", "cheaper-algo = manual"])
def test_nobody_is_in_a_hurry(start: Start, tmp_path: Path, option: str) -> None:
    server = start(options("processes = 4", "cheaper = 1", *WINDOW_OF_AN_HOUR, option))
    gate = tmp_path / "gate"
    with held(server, gate, 1), Connection(server.address) as second:
        second.send(packet(cgi()))
        second.socket.settimeout(1.5)
        with pytest.raises(TimeoutError):
            second.receive()
        gate.touch()
        second.socket.settimeout(60)
        assert second.answer().status == 200
    assert sizes(server) == []


def test_workers_that_are_loading_count_as_coming(start: Start, tmp_path: Path) -> None:
    """lazy-apps, and a second until one is ready: three wait, so three start and no fourth."""
    lines = ("processes = 9", "cheaper = 1", "lazy-apps = true")
    server = start(options(*lines, *WINDOW_OF_AN_HOUR), env={"SCALING_SLOW_START": "1"})
    with held(server, tmp_path / "gate", 4):
        server.wait_workers(4)
        server.wait_log(r"^cheaper: 3 -> 4 workers")
        wait_until(lambda: server.log().count("spawned uWSGI worker") == 4)
    assert max(sizes(server)) == 4


def test_a_worker_with_a_request_is_not_ended(start: Start, tmp_path: Path) -> None:
    """Three of four have to go: those without a request, whatever their numbers."""
    # one busy of four, and of three and two, is below min; nothing happens in the first three seconds
    algorithm = ("cheaper-busyness-min = 60", "cheaper-busyness-max = 90", "cheaper-busyness-multiplier = 3")
    server = start(options("processes = 4", "cheaper = 1", "cheaper-initial = 4", *QUICK[:2], *algorithm))
    server.wait_workers(4)
    gates = [tmp_path / f"gate-{number}" for number in range(4)]
    with ExitStack() as stack:
        clients = []
        for gate in gates:
            clients.append(stack.enter_context(Connection(server.address)))
            clients[-1].send(packet(cgi(f"/gate?{gate}")))
        for gate, client in zip(gates[:3], clients[:3], strict=True):
            gate.touch()
            assert client.answer().status == 200
        server.wait_log(r"uWSGI worker \d cheaped\.", 3)
        (left,) = server.workers()
        gates[3].touch()
        assert int(clients[3].answer().text) == left.pid


def test_a_worker_that_dies_is_replaced_whatever_the_load(start: Start) -> None:
    server = start(options("processes = 4", "cheaper = 2", *QUICK))
    old = server.wait_workers(2)[1]
    os.kill(old.pid, signal.SIGKILL)
    wait_until(lambda: len(server.workers()) == 2 and server.workers()[1].pid != old.pid)
    assert server.workers()[1].number == 2


@pytest.mark.parametrize("way", WAYS)
def test_cheap(start: Start, way: str) -> None:
    """No worker before the first request, and that one is served."""
    server = start(options("processes = 4", "cheaper = 2", "cheap = true", way=way), ready="nothing")
    server.wait_log(r"the application is loaded")
    assert server.workers() == []
    ask = http if way == "http" else uwsgi
    assert ask(server.address, "/").status == 200
    assert len(server.wait_workers(2)) == 2


def test_idle(start: Start) -> None:
    """Without requests all workers end; the next request brings them back."""
    server = start(options("processes = 3", "idle = 1"))
    server.wait_workers(3)
    server.wait_log(r"^cheaper: 3 -> 0 workers: workers have been inactive for more than 1 seconds$")
    server.wait_log(r"uWSGI worker \d cheaped\.", 3)
    assert uwsgi(server.address, "/").status == 200
    server.wait_log(r"^cheaper: 0 -> 3 workers: 1 requests wait and there is no worker$")


def test_die_on_idle(start: Start) -> None:
    server = start(options("processes = 2", "idle = 1", "die-on-idle = true"))
    assert server.wait_exit(30) == 0
    assert "goodbye to uWSGI." in server.log()


def test_the_stop_while_no_worker_is_there(start: Start) -> None:
    server = start(options("processes = 2", "cheap = true"), ready="nothing")
    server.wait_log(r"the application is loaded")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0


@pytest.mark.parametrize("dispatch", ["auto", "push"])
def test_nothing_is_lost_while_workers_come_and_go(start: Start, dispatch: str) -> None:
    """Bursts and pauses, and a pool that follows each of them: every request is answered 200."""
    lines = ("processes = 8", "cheaper = 1", "cheaper-step = 4", "cheaper-algo = backlog", "cheaper-overload = 1")
    server = start(options(*lines, "cheaper-queue-wait = 1", f"dispatch = {dispatch}"))
    ends = time.monotonic() + 12

    def client(number: int) -> list[int]:
        """Bursts, the longer the higher the number, and as long a pause after each."""
        statuses = []
        while time.monotonic() < ends:
            for _ in range(10 * number):
                statuses.append(uwsgi(server.address, "/sleep?0.01").status)
            for _ in paced(range(number), 0.1):
                pass
        return statuses

    found = [status for statuses in together(12, client) for status in statuses]
    assert set(found) == {200}
    steps = [after - before for before, after in zip([1, *sizes(server)], sizes(server), strict=False)]
    assert min(steps) < 0 < max(steps)
    assert "DAMN" not in server.log()


# ---- memory ----


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """Of 256 MiB."""
    try:
        with groups.memory_group(256 << 20) as group:
            yield group
    except groups.NoGroups as reason:
        pytest.skip(str(reason))


def test_it_does_not_scale_into_an_oom_kill(memory_group: Path) -> None:
    """Workers of 60 MB in a group of 256: there is work for sixteen, and room for a few."""
    lines = ("processes = 16", "cheaper = 1", "cheaper-step = 4", *QUICK)
    with Server(options(*lines), command=[*groups.entering(memory_group), *COMMAND]) as server:
        ends = time.monotonic() + 8

        def client(_: int) -> set[int]:
            statuses = set()
            while time.monotonic() < ends:
                statuses.add(uwsgi(server.address, "/grow?60").status)
            return statuses

        assert set().union(*together(16, client)) == {200}
        server.wait_log(
            r"there is room for \d: the control group \S+ holds \d+ MiB of 256 MiB, another worker needs 6\d MiB"
        )
        assert 2 <= max(sizes(server)) <= 3
        assert groups.oom_kills(memory_group) == 0
        assert "DAMN" not in server.log()


# ---- the customer's own configuration ----


def test_the_production_file_behind_nginx(start: Start, tmp_path: Path) -> None:
    """A file that people run, its one misspelt word mended: it serves, scales, and says why."""
    text = (Path(__file__).parent / "configs" / "production-busyness.ini").read_text()
    ini = tmp_path / "uwsgi.ini"
    ini.write_text(text)
    server = start(
        argv=[str(ini), "--socket", "app.sock", "--pythonpath", str(APPS), "--module", "scaling"], ready="nothing"
    )
    assert server.wait_exit(20) == 1
    assert "did you mean py-call-osafterfork?" in server.log()
    ini.write_text(text.replace("py-callos-afterfork", "py-call-osafterfork"))
    server = start(argv=[str(ini), "--socket", "app.sock", "--pythonpath", str(APPS), "--module", "scaling"])
    assert len(server.wait_workers(16)) == 16
    with Nginx(server.address) as nginx:
        began = time.monotonic()
        statuses: set[int] = set()

        def client(_: int) -> None:
            while time.monotonic() < began + 3:
                statuses.add(http(nginx.address, "/sleep?0.5").status)

        together(64, client)
        assert statuses == {200}
    assert 32 <= max(sizes(server)) <= 128
    server.wait_log(r"^cheaper: 16 -> \d+ workers: ")
