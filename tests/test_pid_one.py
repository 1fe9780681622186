"""In a container: PID 1, a root file system that can't be written, a user without a name, no home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
from support.client import uwsgi
from support.harness import APPS, COMMAND, Server, directory, status_field
from support.wait import wait_until

UID = 54321
BECOME = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "HOME=/nonexistent"]

# $1, the server's directory, stays writable; what follows is the server's command
READ_ONLY = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro /
cd "$1"
shift
exec "$@"
"""

NAMESPACES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture(autouse=True)
def possible() -> None:
    tried = subprocess.run([*NAMESPACES, "sh", "-c", "mount -o remount,bind,ro /"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"needs the right to make namespaces and to mount: {tried.stderr.strip()}")


class Container(Server):
    """The server as PID 1 of a container. Numbers of processes are those outside, except in its log."""

    def __init__(self, readable: list[str], *lines: str, **more: Any) -> None:
        where = directory()
        os.chown(where, UID, UID)
        command = [*NAMESPACES, "sh", "-c", READ_ONLY, "sh", str(where), *readable, *BECOME, *COMMAND]
        text = ["socket = app.sock", f"pythonpath = {APPS}", "module = processes", "need-app = true", *lines]
        super().__init__("\n".join(text) + "\n", where=where, command=command, **more)
        self.owns_directory = True

    @property
    def pid(self) -> int:
        """The server's, which is the only child of `unshare`."""
        return self.children(super().pid)[0]

    @staticmethod
    def children(pid: int) -> list[int]:
        return [child.pid for child in psutil.Process(pid).children()]

    def is_server(self) -> bool:
        return status_field(self.pid, "Name")[0].startswith("python") and status_field(self.pid, "Uid")[0] == str(UID)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def handles(pid: int, number: int) -> bool:
    return bool(int(status_field(pid, "SigCgt")[0], 16) >> (number - 1) & 1)


def test_it_serves_and_has_nothing_to_complain_about(stack: ExitStack, readable: list[str]) -> None:
    server = stack.enter_context(Container(readable, "processes = 2"))
    server.wait_log(r"spawned uWSGI worker 2")
    assert status_field(server.pid, "NSpid")[-1] == "1"
    assert uwsgi(server.address, "/hello").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    for word in ("warning", "error", "denied", "read-only", "no such", "nonexistent", "traceback", "***"):
        complaints = [line for line in server.log().lower().splitlines() if word in line]
        assert [line for line in complaints if not line.startswith("*** starting wsgimaster")] == []


def test_orphans_are_reaped_and_mean_nothing(stack: ExitStack, readable: list[str]) -> None:
    """Exit codes that mean something of a worker, and deaths by signals, of processes that nobody knows."""
    server = stack.enter_context(Container(readable, "processes = 2"))
    server.wait_log(r"spawned uWSGI worker 2")
    known = sorted(server.children(server.pid))
    assert len(known) == 3, "a zygote and two workers"
    pids = {json.loads(uwsgi(server.address, "/orphans?50").body)["pid"] for _ in range(2)}
    assert pids
    wait_until(lambda: sorted(server.children(server.pid)) == known, message=lambda: str(server.children(server.pid)))
    assert uwsgi(server.address, "/hello").status == 200
    assert server.log().count("spawned uWSGI worker") == 2
    assert "DAMN" not in server.log()
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0


def test_orphans_of_a_dead_worker_stay_until_they_end(stack: ExitStack, readable: list[str]) -> None:
    server = stack.enter_context(Container(readable))
    server.wait_log(r"spawned uWSGI worker 1")
    assert json.loads(uwsgi(server.address, "/fork?3").body)["result"] == [3, ""]
    known = set(server.children(server.pid))
    (worker,) = [pid for pid in known if server.children(pid)]
    orphans = server.children(worker)
    os.kill(worker, signal.SIGKILL)
    server.wait_log(r"DAMN ! worker 1")
    server.wait_log(r"spawned uWSGI worker 1", 2)
    wait_until(lambda: set(orphans) <= set(server.children(server.pid)), message="they are the server's now")
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(server.children(server.pid)) == 2, message="a zygote and a worker")
    assert uwsgi(server.address, "/hello").status == 200
    assert server.log().count("DAMN") == 1


SLOW = """
print("importing {name}", flush=True)
open("{gate}").read()
"""

MOMENTS = {
    "while it imports its own libraries": "pydantic",
    "while it imports its event loop": "uvloop",
    "while the application is loaded": "slow",
}


@pytest.mark.parametrize("name", MOMENTS.values(), ids=MOMENTS)
def test_sigterm_during_the_start(stack: ExitStack, readable: list[str], tmp_path_factory: Any, name: str) -> None:
    """An import that doesn't come back; the kernel throws a signal away for which PID 1 has no handler."""
    place = directory()
    stack.callback(place.rmdir)
    gate, module = place / "gate", place / f"{name}.py"
    os.mkfifo(gate, 0o666)
    module.write_text(SLOW.format(name=name, gate=gate))
    stack.callback(gate.unlink)
    stack.callback(module.unlink)
    path = [str(place), os.environ.get("PYTHONPATH", "")]
    lines = ["module = slow"] if name == "slow" else []
    env = {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "yes"}
    server = stack.enter_context(Container(readable, *lines, env=env, ready="nothing"))
    server.wait_log(f"importing {name}")
    assert handles(server.pid, signal.SIGTERM)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    assert "Traceback" not in server.log()
