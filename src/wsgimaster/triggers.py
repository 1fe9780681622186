"""What people do to a running server without a program of ours: files that they touch, letters that they write into
`master-fifo`.

Runs in: the master.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from wsgimaster.errors import StartError

FEW = 64  # bytes
LOOK = 1.0  # seconds between looks at touch files, as in uWSGI


def last_change(path: str) -> int | None:
    """When it was last written, nanoseconds; None: it isn't there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


class TouchFiles:
    """Files whose change, appearance or disappearance means something. Any other time than before is a change: rsync
    and git may set an older one (uWSGI wants a newer one, in whole seconds).

    actions: a path, and what to do then; seen: when they were changed, for those that were watched before.
    """

    def __init__(
        self, actions: Iterable[tuple[str, Callable[[], object]]], seen: Mapping[str, int | None] | None = None
    ) -> None:
        self.actions, before = list(actions), seen or {}
        self.seen = {path: before[path] if path in before else last_change(path) for path, _ in self.actions}

    def missing(self) -> list[str]:
        return [path for path, when in self.seen.items() if when is None]

    def changed(self) -> list[tuple[str, Callable[[], object]]]:
        """The paths that have changed since the last look, and what to do."""
        now = {path: last_change(path) for path in self.seen}
        found = [(path, act) for path, act in self.actions if now[path] != self.seen[path]]
        self.seen = now
        return found

    async def watch(self, say: Callable[[str], None]) -> None:
        """For ever."""
        for path in self.missing():
            say(f"unable to stat() {path}, events will be triggered as soon as the file is created")
        while True:
            await asyncio.sleep(LOOK)
            for path, act in self.changed():
                say(f"*** {path} has been touched... ***")
                act()


def _has_reader(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:  # ENXIO: nobody
        return False
    return True


class Fifo:
    """`master-fifo`: a named pipe; each byte is a command.

    paths: the digits 0 to 9 choose one of them; the first is open at the start, made before the drop of privileges for
    its owner (uid and gid, -1: as it is). It is opened for writing, too: then it never ends when the last writer goes.
    Raises StartError when it can't be made.
    """

    def __init__(self, paths: tuple[str, ...], owner: tuple[int, int], fd: int = -1, active: int = 0) -> None:
        """fd: of the active one, if it is open already."""
        self.paths, self.active, self.owner = paths, active, owner
        self.fd = fd if fd >= 0 else self._open(paths[active])

    def _open(self, path: str) -> int:
        try:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(path)
                letters = stat.S_ISREG(found.st_mode) and found.st_size <= FEW  # `echo r > fifo` while nobody ran
                if not (letters or stat.S_ISFIFO(found.st_mode)):
                    raise StartError(f"master-fifo = {path}: there is a file of another kind; remove it")
                if not letters and _has_reader(path):
                    raise StartError(f"master-fifo = {path}: another server reads it")
                Path(path).unlink()  # whoever made it, and whatever he may do with it
            os.mkfifo(path, 0o600)
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            found = os.fstat(fd)
            if not stat.S_ISFIFO(found.st_mode) or found.st_uid != os.geteuid():
                os.close(fd)
                raise StartError(f"master-fifo = {path}: somebody else has just put another file there")
            if self.owner != (-1, -1) and not os.geteuid():
                os.chown(fd, *self.owner)
            return fd
        except OSError as error:
            raise StartError(f"master-fifo = {path}: {error.strerror}") from error

    @property
    def path(self) -> str:
        return self.paths[self.active]

    def read(self) -> str:
        """The letters that were written since the last time."""
        try:
            return os.read(self.fd, 512).decode("latin-1")
        except BlockingIOError:
            return ""

    def choose(self, number: int) -> bool:
        """Listen at another path from now on; whether there is one with this number. Raises StartError."""
        if number >= len(self.paths):
            return False
        if number != self.active:
            fd = self._open(self.paths[number])
            self.remove()
            self.fd, self.active = fd, number
        return True

    def remove(self) -> None:
        """Close it, and remove the file if it is still ours."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.fd), os.lstat(self.path)):
                Path(self.path).unlink()
        os.close(self.fd)
