"""What an application leaves running while it is loaded, and forked workers would share or miss.

A fork copies descriptors, so that all workers talk over the same connection; and it copies only the thread that
forks. Both are found in /proc when the application is loaded. Only the places in the code must be noted as
things happen: for that, Thread.start and socket's connect are wrapped, for as long as the load takes. (An audit
hook would tell the same, but can't be taken away again, and every worker would pay for it.)

Runs in: the zygote. Imports as little as it can: see zygote.py.
"""

import _socket  # an application may have replaced socket.socket (gevent)
import contextlib
import functools
import os
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

MOST = 20  # lines of each kind
SETTLE = 0.05  # seconds for threads that are about to end: a joined one is still in /proc for a moment
OURS = os.path.dirname(__file__) + os.sep
LIBRARY = os.path.dirname(os.__file__) + os.sep
INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
KINDS: dict[int, str] = {socket.SOCK_STREAM: "TCP", socket.SOCK_DGRAM: "UDP"}
NEXT_STEP = "for example with os.register_at_fork(after_in_child=...), or set lazy-apps = true"


class Watch:
    """Notes places within its `with` block, where the application is loaded; sockets open before are none of its.

    What an application puts over our wrappers meanwhile stays; below it they only pass calls through from then on.
    """

    def __init__(self) -> None:
        self._noting = False
        self._before = set(open_sockets())
        self._starts: weakref.WeakKeyDictionary[threading.Thread, str] = weakref.WeakKeyDictionary()
        self._connects: dict[int, str] = {}  # by the socket's inode
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> "Watch":
        self._noting = True
        self._wrap(threading.Thread, "start", self._note_start)
        self._wrap(socket.socket, "connect", self._note_connect)
        self._wrap(socket.socket, "connect_ex", self._note_connect)
        return self

    def __exit__(self, *_: object) -> None:
        self._noting = False
        for undo in self._undo:
            undo()
        self._undo.clear()

    def _wrap(self, owner: type, name: str, note: Callable[[Any], None]) -> None:
        original = getattr(owner, name)
        own = name in vars(owner)  # socket.socket inherits connect

        @functools.wraps(original)
        def wrapper(this: Any, *arguments: Any, **named: Any) -> Any:
            if self._noting:
                with contextlib.suppress(Exception):  # the call is the application's: it must not fail for us
                    note(this)
            return original(this, *arguments, **named)

        def undo() -> None:
            if vars(owner).get(name) is not wrapper:
                return
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

        setattr(owner, name, wrapper)
        self._undo.append(undo)

    def _note_start(self, thread: threading.Thread) -> None:
        self._starts[thread] = place()

    def _note_connect(self, connecting: socket.socket) -> None:
        fd = connecting.fileno()
        if fd >= 0:
            self._connects[os.fstat(fd).st_ino] = place()

    def report(self) -> list[str]:
        """One line for each thing that is left, or none; what was noted is forgotten."""
        try:
            if left_threads() or foreign_threads():
                time.sleep(SETTLE)
            return [printable(line) for line in (*self._about_threads(), *self._about_connections())]
        except Exception as error:  # whatever an application did to what we look with, it is to be served
            return [printable(f"*** what the application left running can't be looked at: {error!r}")]
        finally:
            self._starts.clear()
            self._connects.clear()

    def _about_threads(self) -> Iterator[str]:
        found = left_threads()
        for name, what, thread in found[:MOST]:
            started = self._starts.get(thread) if thread else None
            where = started or "a place that isn't known"
            yield (
                f"*** thread {name!r} exists only in the zygote, not in the workers. It runs {what} and was started "
                f"at {where} while the application was loaded. Start it after the fork, {NEXT_STEP}."
            )
        if len(found) > MOST:
            yield f"*** and {len(found) - MOST} more threads that exist only in the zygote"
        if foreign := foreign_threads():
            yield (
                f"*** {foreign} {'thread of C libraries exists' if foreign == 1 else 'threads of C libraries exist'} "
                f"only in the zygote, not in the workers. A library that doesn't start its own again is to be "
                f"initialised after the fork, {NEXT_STEP}."
            )

    def _about_connections(self) -> Iterator[str]:
        peers = {inode: peer(fd) for inode, fd in open_sockets().items() if inode not in self._before}
        found = [(inode, name) for inode, name in peers.items() if name]
        for inode, name in found[:MOST]:
            made = self._connects.get(inode)
            where = made or "a place that isn't known (a C library connects by itself)"
            yield (
                f"*** all workers share one {name}, made at {where} while the application was loaded. "
                f"Connect after the fork, {NEXT_STEP}."
            )
        if len(found) > MOST:
            yield f"*** and {len(found) - MOST} more connections that all workers share"


def place() -> str:
    """file:line of the application's innermost frame; where there is none, of an installed package's; else ""."""
    frame: FrameType | None = sys._getframe(1)
    installed = ""
    while frame is not None:
        name = frame.f_code.co_filename
        known = any(part in name for part in INSTALLED)
        if not name.startswith(("<", OURS)) and (known or not name.startswith(LIBRARY)):
            if not known:
                return f"{name}:{frame.f_lineno}"
            installed = installed or f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return installed


def left_threads() -> list[tuple[str, str, threading.Thread | None]]:
    """Python's threads besides the main one: name, what it runs, and its object if it was started through one."""
    objects = thread_objects()
    threads: list[tuple[str, str, threading.Thread | None]] = [
        (thread.name, target_of(thread), thread) for thread in objects.values() if thread is not threading.main_thread()
    ]
    for ident, frame in sys._current_frames().items():
        if ident not in objects:
            while frame.f_back is not None:
                frame = frame.f_back
            code = frame.f_code
            what = f"{frame.f_globals.get('__name__')}.{code.co_qualname}"
            threads.append((str(ident), f"{what} ({code.co_filename}:{code.co_firstlineno})", None))
    return threads


def foreign_threads() -> int:
    """How many threads Python knows nothing of."""
    known = thread_objects().keys() | sys._current_frames().keys()
    return max(0, len(os.listdir("/proc/self/task")) - len(known))


def thread_objects() -> dict[int | None, threading.Thread]:
    """By ident; without those that Python made up for threads that others started."""
    return {thread.ident: thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


def target_of(thread: threading.Thread) -> str:
    target = getattr(thread, "_target", None) or type(thread).run
    while isinstance(target, functools.partial):
        target = target.func
    name = f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', type(target).__qualname__)}"
    code = getattr(target, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def open_sockets() -> dict[int, int]:
    """Inode and one descriptor of each socket that this process holds."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:  # listdir's own, or closed by another thread
            continue
        if stat.S_ISSOCK(status.st_mode):
            found[status.st_ino] = int(name)
    return found


def peer(fd: int) -> str | None:
    """Kind and address of what a socket is connected to; None if it isn't, or to something without an address."""
    timeout = _socket.getdefaulttimeout()
    if timeout is not None:
        _socket.setdefaulttimeout(None)  # with one, a socket object would make the descriptor non-blocking
    try:
        looked_at = _socket.socket(fileno=fd)
    except OSError:
        return None
    finally:
        if timeout is not None:
            _socket.setdefaulttimeout(timeout)
    try:
        address: Any = looked_at.getpeername()
        family, kind = looked_at.family, looked_at.type
    except OSError:
        return None
    finally:
        looked_at.detach()
    if family == socket.AF_UNIX and address:
        return f"unix connection to {address if isinstance(address, str) else '@' + os.fsdecode(address[1:])}"
    if family in (socket.AF_INET, socket.AF_INET6):
        host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        return f"{KINDS.get(kind, 'IP')} connection to {host}:{address[1]}"
    return None


def printable(line: str) -> str:
    """Names are the application's: none of them may break a line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
