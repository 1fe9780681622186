"""A core in a process of its own that is held at its system calls, until the test lets them go.

So a test can act between two steps of the real serve loop, and have a message to the master fail. The test is the
master: it has the other end of the channel, the scoreboard and the listening socket.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from support.lone_core import LISTENERS, make_core, message
from support.syscalls import CallsOf, asking
from wsgimaster._front import board_slots_offset
from wsgimaster._proto import build
from wsgimaster.processes import make_channel
from wsgimaster.scoreboard import Scoreboard

WANTED, WAITERS, PASSED_ON = 8, 12, 20  # in the board's head: _layout.pxd
MOST_PULLED = 64
NUMBER = 1 << 24  # of the master's first message that has one


class SteppedCore:
    """After construction it has the listening socket, and is about to look there for the first time."""

    def __init__(self, directory: Path) -> None:
        self.board = Scoreboard(1)
        self._set("<I", WAITERS, 1)
        channel, far = make_channel()
        self.channel, self.listener = socket.socket(fileno=channel), socket.socket(socket.AF_UNIX)
        self.channel.settimeout(20)
        self.listener.bind(str(directory / "core.sock"))
        self.listener.listen(10)
        self.listener.setblocking(False)
        control, theirs = socket.socketpair()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        passed = (far, self.board.fd, self.board.doorbell, theirs.fileno())
        with control, theirs, (directory / "log").open("wb") as log:
            self.log_path = directory / "log"
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, passed)],
                pass_fds=passed,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=log,
            )
            os.close(far)
            theirs.close()
            _, (descriptor,), _, _ = socket.recv_fds(control, 1, 1)
        self.calls = CallsOf(descriptor)
        self.calls.until("recvmsg")  # it has said READY
        self.channel.recv(100)
        head = message(LISTENERS, number=NUMBER) + bytes(4 * MOST_PULLED)
        socket.send_fds(self.channel, [head], [self.listener.fileno()])
        self.calls.until("poll")

    # the scoreboard

    def _get(self, form: str, at: int) -> int:
        return int(struct.unpack_from(form, self.board.memory, at)[0])

    def _set(self, form: str, at: int, value: int) -> None:
        struct.pack_into(form, self.board.memory, at, value)

    @property
    def _waiting_at(self) -> int:
        return (2 * board_slots_offset(0) + board_slots_offset(1)) // 3

    def want(self) -> None:
        """The master wants one core to report."""
        self._set("<i", WANTED, 1)

    def pass_on(self) -> None:
        """Some other core passes a connection on."""
        self._set("<I", PASSED_ON, self.passed_on + 1)

    def claim(self) -> None:
        assert self.waits
        self._set("<Q", self._waiting_at, 0)

    @property
    def passed_on(self) -> int:
        return self._get("<I", PASSED_ON)

    @property
    def waits(self) -> bool:
        return bool(self._get("<Q", self._waiting_at))

    @property
    def has_reported(self) -> bool:
        return bool(self._get("<Q", board_slots_offset(0)))

    @property
    def has_rung(self) -> bool:
        return bool(select.select([self.board.doorbell], [], [], 0)[0])

    # what comes to it

    def connect(self, data: bytes | None = None) -> socket.socket:
        """A client with a request, or with these bytes."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(self.listener.getsockname())
        client.sendall(build([("PATH_INFO", "/")]) if data is None else data)
        return client

    def send(self, kind: int) -> None:
        self.channel.send(message(kind, number=2 * NUMBER))

    def log(self) -> str:
        return self.log_path.read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.calls.close()
        self.channel.close()
        self.listener.close()
        os.close(self.board.doorbell)
        os.close(self.board.fd)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"served"]


def main() -> None:
    channel, board, doorbell, control = map(int, sys.argv[1:])
    environ = {"SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "SERVER_NAME": "x"}
    core = make_core(channel, mmap.mmap(board, 0), 1, doorbell, 0, application, environ)
    descriptor = asking({"poll": None, "epoll_wait": None, "recvmsg": channel, "sendmsg": channel})
    with socket.socket(fileno=control) as to_test:
        socket.send_fds(to_test, [b"."], [descriptor])
    os.close(descriptor)
    core.serve()


if __name__ == "__main__":
    main()
