"""Ready or not: `health`, `drain-delay`, and what a service manager gets to hear."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.client import Connection, cgi, http, packet, uwsgi
from support.harness import APPS, Server, free_port
from support.wait import wait_until

from wsgimaster import health, systemd

Start = Callable[..., Server]


# ---- what the health address answers ----

ANSWERS = {
    "live": (b"GET /-/live HTTP/1.1", "", (200, "live")),
    "live, although not ready": (b"GET /-/live HTTP/1.1", "stopping", (200, "live")),
    "ready": (b"GET /-/ready HTTP/1.1", "", (200, "ready")),
    "not ready": (b"GET /-/ready HTTP/1.1", "stopping", (503, "stopping")),
    "with a query": (b"HEAD /-/ready?x=1 HTTP/1.0", "", (200, "ready")),
    "anything else": (b"GET / HTTP/1.1", "", (404, "there are /-/live and /-/ready")),
    "a POST": (b"POST /-/live HTTP/1.1", "", (405, "GET and HEAD are served")),
    "no HTTP": (b"\x00\x10\x00\x00", "", (400, "expected an HTTP request")),
}


@pytest.mark.parametrize(("line", "unready", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_answers(line: bytes, unready: str, expected: tuple[int, str]) -> None:
    assert health.answer(line + b"\r\nHost: x\r\n\r\n", lambda: unready) == expected


def options(port: int, *more: str) -> str:
    lines = ["socket = app.sock", f"pythonpath = {APPS}", "module = scaling", f"health = 127.0.0.1:{port}"]
    return "\n".join([*lines, *more]) + "\n"


def asked(port: int, path: str) -> tuple[int, str]:
    answer = http(("127.0.0.1", port), path)
    return answer.status, answer.text.strip()


def test_ready_when_a_worker_serves(start: Start, tmp_path: Path) -> None:
    port = free_port()
    loads, gate = tmp_path / "loads", tmp_path / "gate"
    loading = f"hook-post-fork = exec:while ! test -e {loads}; do sleep 0.01; done"
    server = start(options(port, loading), ready="nothing")
    wait_until(lambda: port in listening(server), 20)
    assert asked(port, "/-/ready") == (503, "no worker serves")
    assert asked(port, "/-/live") == (200, "live")
    loads.touch()
    wait_until(lambda: asked(port, "/-/ready") == (200, "ready"))
    with Connection(server.address) as busy, Connection(server.address) as waiting:
        for client in (busy, waiting):  # more than there are workers
            client.send(packet(cgi(f"/gate?{gate}")))
        assert asked(port, "/-/ready") == (200, "ready")
        gate.touch()
        assert (busy.answer().status, waiting.answer().status) == (200, 200)
    server.signal(signal.SIGTSTP)
    wait_until(lambda: asked(port, "/-/ready") == (503, "paused"))


@pytest.mark.parametrize("cheap", ["cheap = true", "processes = 2\ncheaper = 1\nidle = 1"])
def test_without_a_worker_it_is_ready_if_a_request_brings_one(start: Start, tmp_path: Path, cheap: str) -> None:
    port = free_port()
    with manager(str(tmp_path / "notify")) as heard:
        server = start(options(port, cheap), env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        wait_until(lambda: "READY=1" in heard())
        if "idle" in cheap:
            server.wait_log(r"worker 1 cheaped")
        assert asked(port, "/-/ready") == (200, "ready")
        assert uwsgi(server.address, "/").status == 200


def test_silent_clients_hold_nobody_up(start: Start) -> None:
    """More than there are places for; and the port is probed."""
    port = free_port()
    server = start(options(port))
    silent = [Connection(("127.0.0.1", port)) for _ in range(100)]
    wait_until(lambda: asked(port, "/-/live") == (200, "live"))
    for client in silent:
        client.close()
    assert server.running()


def test_it_answers_when_no_descriptor_is_left(start: Start) -> None:
    """Clients that send half a head hold all that the master may have."""
    port = free_port()
    server = start(options(port, "max-fd = 100", "socket-timeout = 60"), ready="nothing")
    wait_until(lambda: port in listening(server), 20)
    server.wait_log("spawned uWSGI worker 1")
    clients = []
    for _ in range(100):
        clients.append(Connection(server.address))
        clients[-1].send(b"\0")
    server.wait_log(r"no connections are accepted for a moment")
    for _ in range(3):
        assert asked(port, "/-/live") == (200, "live")
    for client in clients:
        client.close()


def listening(server: Server) -> set[int]:
    lines = Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]
    return {int(line.split()[1].rpartition(":")[2], 16) for line in lines if line.split()[3] == "0A"}


def test_while_requests_are_finished_it_lives_and_is_not_ready(start: Start, tmp_path: Path) -> None:
    port, gate = free_port(), tmp_path / "gate"
    server = start(options(port))
    with Connection(server.address) as client:
        client.send(packet(cgi(f"/gate?{gate}")))
        server.signal(signal.SIGTERM)
        wait_until(lambda: asked(port, "/-/ready") == (503, "stopping"))
        assert asked(port, "/-/live") == (200, "live")
        gate.touch()
        assert client.answer().status == 200
    assert server.wait_exit() == 0


def test_a_health_address_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = start(options(other.getsockname()[1]), ready="nothing")
        assert server.wait_exit() == 1


def test_drain_delay(start: Start) -> None:
    """Clients that don't know yet go on connecting, and all of them are served."""
    port = free_port()
    server = start(options(port, "drain-delay = 3600"))
    over, statuses = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):  # the door is closed
                statuses.append(uwsgi(server.address, "/").status)

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    server.signal(signal.SIGTERM)
    wait_until(lambda: asked(port, "/-/ready") == (503, "stopping"))
    before = len(statuses)
    wait_until(lambda: len(statuses) > before + 100)
    assert "not ready any more; stopping in 3600 s (drain-delay)" in server.log()
    server.signal(signal.SIGTERM)  # the delay is over
    server.wait_log("stopping gracefully")
    over.set()
    for client in clients:
        client.join()
    assert server.wait_exit() == 0
    assert set(statuses) == {200}


def test_asked_twice_it_does_not_wait(start: Start) -> None:
    server = start(options(free_port(), "drain-delay = 3600"))
    server.signal(signal.SIGTERM)
    server.wait_log("drain-delay")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0


# ---- service managers ----


@contextmanager
def manager(name: str) -> Iterator[Callable[[], list[str]]]:
    """A stand-in for systemd: gives the lines of all notes so far. name: a path, or with @ an abstract name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0" + name[1:] if name.startswith("@") else name)
        bound.setblocking(False)
        lines: list[str] = []

        def heard() -> list[str]:
            while True:
                try:
                    lines.extend(bound.recv(4096).decode().split("\n"))
                except BlockingIOError:
                    return lines

        yield heard


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_notify_reload(start: Start, tmp_path: Path, abstract: bool) -> None:
    """Type=notify-reload: READY when a worker serves; after SIGHUP RELOADING with the time, and READY when it is over,
    also if it has failed."""
    name = f"@wsgimaster-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with manager(name) as heard:
        broken = tmp_path / "broken"
        wsgi = tmp_path / "app.py"
        wsgi.write_text(
            f"import os\nassert not os.path.exists({str(broken)!r})\nfrom wsgimaster.demo import application"
        )
        server = start(
            f"socket = app.sock\nwsgi-file = {wsgi}\n", env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000"}
        )
        wait_until(lambda: "READY=1" in heard())
        assert f"MAINPID={server.pid}" in heard()
        for times, make in enumerate((broken.touch, broken.unlink), start=2):
            make()
            server.signal(signal.SIGHUP)
            wait_until(lambda times=times: heard().count("READY=1") == times)
            assert heard().count("RELOADING=1") == times - 1
        (since, _) = [int(line.partition("=")[2]) for line in heard() if line.startswith("MONOTONIC_USEC=")]
        assert since > 0
        wait_until(lambda: any(line.startswith("STATUS=generation 3, 1 worker(s) serve") for line in heard()))
        wait_until(lambda: heard().count("WATCHDOG=1") > 2)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "STOPPING=1" in heard()


def test_what_the_application_starts_does_not_believe_in_it(start: Start, tmp_path: Path) -> None:
    wsgi = tmp_path / "app.py"
    wsgi.write_text(
        "import os\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [' '.join(sorted(os.environ)).encode()]\n"
    )
    with manager(str(tmp_path / "notify")):
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000", "LISTEN_FDS": "1"}
        server = start(f"socket = app.sock\nwsgi-file = {wsgi}\n", env=variables)
        names = uwsgi(server.address, "/").text.split()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"} & set(names)


def test_a_manager_that_is_not_there_is_no_reason_not_to_serve(start: Start) -> None:
    server = start("socket = app.sock\nmodule = wsgimaster.demo\n", env={"NOTIFY_SOCKET": "/nowhere/at/all"})
    assert uwsgi(server.address, "/").status == 200


ENVIRONMENTS = {
    "one": ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, [(3, "")]),
    "two, with names": (
        {"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:uwsgi"},
        [(3, "http"), (4, "uwsgi")],
    ),
    "for somebody else": ({"LISTEN_PID": "8", "LISTEN_FDS": "2"}, []),
    "no number": ({"LISTEN_PID": "7", "LISTEN_FDS": "-1"}, []),
    "none": ({}, []),
}


@pytest.mark.parametrize(("environ", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_given_sockets(environ: dict[str, str], expected: list[tuple[int, str]]) -> None:
    environ = dict(environ)
    assert systemd.activated(environ, 7) == expected
    assert environ == {}


ACTIVATE = """
import os, sys
given, names, *command = sys.argv[1:]
for place, fd in enumerate(given.split(",")):
    os.dup2(int(fd), 100 + place)
for place in range(len(given.split(","))):
    os.dup2(100 + place, 3 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(place + 1), LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-m", "wsgimaster", *command])
"""


def test_socket_activation(tmp_path: Path) -> None:
    """One is in the configuration, too; one is for HTTP by its name. What comes while nobody serves waits for the next
    start: the sockets are the manager's."""
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as first, socket.create_server(("127.0.0.1", 0)) as second:
        first.bind(path)
        first.listen()
        given = (first.fileno(), second.fileno())
        command = [sys.executable, "-c", ACTIVATE, ",".join(map(str, given)), "uwsgi:http-web"]

        def served() -> subprocess.Popen[bytes]:
            ours = [*command, "--socket", path, "--module", "wsgimaster.demo"]
            return subprocess.Popen(ours, pass_fds=given, stderr=subprocess.PIPE)

        with Connection(path) as early:
            early.send(packet(cgi("/")))
            process = served()
            try:
                assert early.answer().status == 200
                assert http(second.getsockname(), "/").status == 200
            finally:
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
        assert log.count(b"inherited as fd") == 2
        with Connection(path) as late:
            late.send(packet(cgi("/")))
            process = served()
            try:
                assert late.answer().status == 200
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)
