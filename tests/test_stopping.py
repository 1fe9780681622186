"""How it ends: nothing that was accepted is lost, the door closes first, and nothing is left behind.

A real uWSGI 2.0.31 reloads on SIGTERM; with `die-on-term`, which these tests give it, it drops what runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.client import Address, Connection, cgi, packet, uwsgi
from support.harness import APPS, Server, free_port, is_listening, is_running
from support.wait import wait_until

Start = Callable[..., Server]

TRANSPORTS = ["unix", "TCP"]
transport = pytest.mark.parametrize("transport", TRANSPORTS)


def options(*more: str) -> str:
    lines = [
        "socket = app.sock",
        f"socket = 127.0.0.1:{free_port()}",
        f"pythonpath = {APPS}",
        "module = probe",
        "listen = 1000",
        "need-app = true",
        "die-on-term = true",
    ]
    return "\n".join([*lines, *more]) + "\n"


class Requests:
    """Requests that were sent and not yet answered, and how many of them an application has begun."""

    def __init__(self, stack: ExitStack, address: Address, begun: Path, number: int, seconds: float) -> None:
        self.begun_file = begun
        self.connections = [stack.enter_context(Connection(address)) for _ in range(number)]
        for connection in self.connections:
            connection.send(packet(cgi(f"/count?seconds={seconds}", HTTP_X_FILE=str(begun))))

    def begun(self) -> int:
        return len(self.begun_file.read_text().splitlines()) if self.begun_file.exists() else 0

    def wait_begun(self, number: int) -> None:
        wait_until(lambda: self.begun() >= number, message=f"{number} requests run")

    def statuses(self) -> list[int]:
        return [connection.answer().status for connection in self.connections]


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@transport
def test_sigterm_finishes_what_runs_and_waits(start: Start, stack: ExitStack, tmp_path: Path, transport: str) -> None:
    """2 workers, 8 requests of a second, and SIGTERM while the first two run."""
    server = start(options("processes = 2"))
    server.wait_workers(2)
    address = server.addresses[TRANSPORTS.index(transport)]
    requests = Requests(stack, address, tmp_path / "begun", 8, seconds=1)
    requests.wait_begun(2)
    server.signal(signal.SIGTERM)
    assert requests.statuses() == [200] * 8
    assert requests.begun() == 8
    assert server.wait_exit() == 0
    assert "waiting for 8 requests, at most 60 s" in server.log()
    assert "goodbye to uWSGI." in server.log()


@transport
def test_sigterm_with_200_waiting(start: Start, stack: ExitStack, tmp_path: Path, transport: str) -> None:
    server = start(options("processes = 2"))
    server.wait_workers(2)
    address = server.addresses[TRANSPORTS.index(transport)]
    requests = Requests(stack, address, tmp_path / "begun", 200, seconds=0.02)
    server.signal(signal.SIGTERM)
    assert requests.statuses() == [200] * 200
    assert requests.begun() == 200
    assert server.wait_exit() == 0


def test_sigterm_when_idle(start: Start) -> None:
    server = start(options("processes = 2"))
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "goodbye to uWSGI." in server.log()


def test_long_request_does_not_keep_the_door_open(start: Start, stack: ExitStack, tmp_path: Path) -> None:
    """New connections are refused at once; a second SIGTERM ends the wait."""
    server = start(options())
    requests = Requests(stack, server.address, tmp_path / "begun", 1, seconds=30)
    requests.wait_begun(1)
    server.signal(signal.SIGTERM)
    wait_until(lambda: not server.listening(), 10, "the door is closed")
    assert server.running()
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    assert requests.statuses() != [200]


def test_mercy_ends(start: Start, stack: ExitStack, tmp_path: Path) -> None:
    """After worker-reload-mercy the worker is killed."""
    server = start(options("worker-reload-mercy = 1"))
    requests = Requests(stack, server.address, tmp_path / "begun", 1, seconds=30)
    requests.wait_begun(1)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    assert "waiting for 1 requests, at most 1 s" in server.log()
    assert requests.statuses() != [200]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
def test_fast_stop(start: Start, stack: ExitStack, tmp_path: Path, number: signal.Signals) -> None:
    server = start(options("processes = 2").replace("die-on-term = true\n", ""))
    server.wait_workers(2)
    requests = Requests(stack, server.address, tmp_path / "begun", 4, seconds=30)
    requests.wait_begun(2)
    server.signal(number)
    assert server.wait_exit(20) == 0
    assert "goodbye to uWSGI." in server.log()


def test_sighup_changes_nothing(start: Start) -> None:
    """It reloads in uWSGI; until it does here, it must not stop anything."""
    server = start(options("processes = 2"))
    before = server.wait_workers(2)
    log = server.log_from_here()
    server.signal(signal.SIGHUP)
    log.wait("SIGHUP")
    assert uwsgi(server.address, "/hello").status == 200
    assert server.workers() == before


# the master dies


def test_workers_follow_a_dead_master(start: Start) -> None:
    server = start(options("processes = 3", "threads = 2"))
    server.wait_workers(3)
    server.signal(signal.SIGKILL)
    server.wait_exit()
    wait_until(lambda: not server.processes(), message="nothing is left")
    assert not server.listening()


def test_next_start_binds_at_once(start: Start, stack: ExitStack, tmp_path: Path) -> None:
    """The old worker finishes its request; its sockets are closed long before."""
    text = options()
    first = start(text)
    requests = Requests(stack, first.address, tmp_path / "begun", 1, seconds=4)
    requests.wait_begun(1)
    first.signal(signal.SIGKILL)
    first.wait_exit()
    second = start(text, where=first.directory, name="second")
    old = first.workers()
    assert [uwsgi(address, "/hello").status for address in second.addresses] == [200, 200]
    assert old, "the old worker has its request still"
    assert requests.statuses() == [200]
    wait_until(lambda: not is_running(old[0].pid), message="the old worker is gone")


# what stays behind


def test_vacuum_removes_socket_and_pidfile(start: Start) -> None:
    server = start(options("vacuum = true", "pidfile = server.pid"))
    pidfile = server.directory / "server.pid"
    assert pidfile.read_text() == f"{server.pid}\n"
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    assert not pidfile.exists()
    assert not Path(server.address).exists()


def test_without_vacuum_they_stay(start: Start) -> None:
    server = start(options("pidfile = server.pid"))
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    assert (server.directory / "server.pid").exists()
    assert Path(server.address).is_socket()
    assert not is_listening(server.address)


def test_vacuum_leaves_another_server_alone(start: Start) -> None:
    """The path was taken over meanwhile: it isn't ours to remove."""
    first = start(options("vacuum = true"))
    path = Path(first.address)
    path.unlink()
    second = start(options("vacuum = true"), where=first.directory, name="second")
    first.addresses = first.addresses[1:]
    first.signal(signal.SIGINT)
    assert first.wait_exit() == 0
    assert uwsgi(second.address, "/hello").status == 200
    assert path.is_socket()


def test_pid_of_the_pidfile_takes_the_signal(start: Start) -> None:
    server = start(options("pidfile = server.pid"))
    os.kill(int((server.directory / "server.pid").read_text()), signal.SIGTERM)
    assert server.wait_exit() == 0


def test_daemonize(start: Start) -> None:
    """The command returns; the server goes on in a session of its own, with its log in the file."""
    server = start(options("daemonize = own.log", "pidfile = server.pid"), ready="nothing")
    assert server.wait_exit() == 0
    wait_until(server.listening, message="the daemon listens")
    pid = int((server.directory / "server.pid").read_text())
    assert pid != server.pid
    assert os.getsid(pid) != os.getsid(0)
    assert uwsgi(server.address, "/hello").status == 200
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not server.processes(), message="the daemon is gone")
    assert "goodbye to uWSGI." in (server.directory / "own.log").read_text()
