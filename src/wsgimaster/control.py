"""The control socket: where `wsgimaster reload` and its like talk to the master (operate.py is their side).

One connection is one command: a line of JSON there, one back, `{"ok": true, ...}` or `{"ok": false, "error": "..."}`.

Without `control-socket` it is an abstract name with the master's pid in it: that needs no directory, leaves nothing
behind, and can't fail because of a right that is missing. Who connects must be root or the master's own user: the
kernel says who it is (SO_PEERCRED, unix(7)), and anybody else is told so.

Runs in: the master.
"""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from wsgimaster import sockets
from wsgimaster.errors import StartError, WsgimasterError
from wsgimaster.exchange import Exchange

LONGEST = 64 << 10  # bytes of a command
PATIENCE = 10.0  # seconds that somebody may take to say it
PREFIX = "wsgimaster/"  # of the abstract name, then the pid
TRIES = 10

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class CommandError(WsgimasterError):
    """A command that can't be carried out; its text goes to whoever gave it."""


def peer(connection: socket.socket) -> tuple[int, int]:
    """pid and uid at the other end; of a listening socket's clients: who called listen()."""
    pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


class ControlSocket:
    """The listening socket. path: None for an abstract name. Raises StartError if `path` can't be used.

    Made before the drop of privileges, since `path` may be where only root may write. owner: uid and gid, -1: as it is.
    It listens later, in the process that serves: the kernel notes who that is.
    """

    def __init__(self, path: str | None, owner: tuple[int, int]) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self.inode = (0, 0)
        if path is not None:
            self._bind(path, owner)

    @classmethod
    def inherited(cls, path: str | None, fd: int, inode: tuple[int, int]) -> "ControlSocket":
        """One that listens already."""
        made = cls(None, (-1, -1))
        made.socket.close()
        made.path, made.inode, made.socket = path, inode, socket.socket(fileno=fd)
        return made

    def _bind(self, path: str, owner: tuple[int, int]) -> None:
        try:
            sockets.remove_stale(path)
            before = os.umask(0o177)
            try:
                self.socket.bind(path)
            finally:
                os.umask(before)
            if owner != (-1, -1):
                os.chown(path, *owner, follow_symlinks=False)
            found = os.lstat(path)
            self.inode = (found.st_dev, found.st_ino)
        except OSError as error:
            raise StartError(f"control-socket = {path}: {error.strerror or error}") from error

    def listen(self) -> str:
        """Returns what people have to know, or ""."""
        said = ""
        if self.path is None:
            for number in range(TRIES):  # somebody may have taken the name to annoy us
                with contextlib.suppress(OSError):
                    self.socket.bind(f"\0{PREFIX}{os.getpid()}" + (f"-{number}" if number else ""))
                    break
            else:
                self.socket.bind("")
                said = "*** somebody holds our names for the control socket; control-socket = PATH would help"
        self.socket.listen()
        return said

    def remove(self) -> None:
        """Close it, and remove the file if it is still ours."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path or "")
            if (found.st_dev, found.st_ino) == self.inode:
                Path(self.path or "").unlink()
        self.socket.close()


class Control:
    """commands: by name; each gets the whole message and returns the answer, or raises CommandError. report: a defect.

    Made inside the running loop; the socket listens.
    """

    def __init__(
        self, listening: socket.socket, commands: Mapping[str, Command], report: Callable[[Exception], None]
    ) -> None:
        self.commands, self.report = commands, report
        self.exchange = Exchange(listening, b"\n", LONGEST, PATIENCE, self._talk)

    def close(self) -> None:
        self.exchange.close()

    async def _talk(self, line: bytes, connection: socket.socket) -> bytes:
        return json.dumps(await self._answer(line, peer(connection)[1])).encode() + b"\n"

    async def _answer(self, line: bytes, uid: int) -> dict[str, Any]:
        if uid not in (0, os.geteuid()):
            return failure(f"only root and the server's user (uid {os.geteuid()}) may command it, you are uid {uid}")
        try:
            if not line.endswith(b"\n"):
                raise ValueError("a line has an end")
            message = json.loads(line)
            command = self.commands[message["command"]]
        except (ValueError, TypeError, RecursionError):
            return failure('expected one line of JSON: {"command": "..."}')
        except KeyError as error:
            return failure(f"there is no command {error}; there are {', '.join(self.commands)}")
        try:
            return {"ok": True, **await command(message)}
        except CommandError as error:
            return failure(str(error))
        except Exception as error:
            self.report(error)
            return failure(f"a defect of wsgimaster, the log has more: {error!r}")


def failure(error: str) -> dict[str, Any]:
    return {"ok": False, "error": error}
