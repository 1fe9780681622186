"""System calls that fail, or wait for the test's word: seccomp(2) and seccomp_unotify(2).

A filter holds for the thread that installs it and for what that thread starts, for the rest of their lives.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

T = TypeVar("T")

# As the C library calls them: where there is no poll and no epoll_wait, it takes ppoll and epoll_pwait.
NUMBERS = {
    "x86_64": {"seccomp": 317, "socket": 41, "sendmsg": 46, "recvmsg": 47, "poll": 7, "epoll_wait": 232},
    "aarch64": {"seccomp": 277, "socket": 198, "sendmsg": 211, "recvmsg": 212, "poll": 73, "epoll_wait": 22},
}.get(platform.machine(), {})

# linux/prctl.h, linux/filter.h, linux/seccomp.h
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
ALLOW, FAIL, ASK = 0x7FFF0000, 0x00050000, 0x7FC00000  # FAIL: with the errno in the lower bits
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_AT, FIRST_ARGUMENT_AT = 0, 16  # in seccomp_data
NOTICE, ANSWER = struct.Struct("<QIIiIQ6Q"), struct.Struct("<QqiI")
RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1


class Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class Call(NamedTuple):
    id: int
    name: str


def install(verdict: int, calls: dict[str, int | None], flags: int = 0) -> int:
    """What seccomp(2) returns. calls: each with its first argument, None for any."""
    code = b""
    for name, first in calls.items():
        code += struct.pack("<HBBI", LOAD, 0, 0, NUMBER_AT)
        code += struct.pack("<HBBI", IF_EQUAL, 0, 1 if first is None else 3, NUMBERS[name])
        if first is not None:
            code += struct.pack("<HBBI", LOAD, 0, 0, FIRST_ARGUMENT_AT)
            code += struct.pack("<HBBI", IF_EQUAL, 0, 1, first)
        code += struct.pack("<HBBI", RETURN, 0, 0, verdict)
    code += struct.pack("<HBBI", RETURN, 0, 0, ALLOW)
    program = Program(len(code) // 8, code)
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        result = library.syscall(NUMBERS["seccomp"], SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))
        if result >= 0:
            return int(result)
    raise OSError(ctypes.get_errno(), "seccomp")


def failing(name: str, first: int, error: int, action: Callable[[], T]) -> T:
    """What `action` returns, in a thread in which these calls fail; also in the processes that it starts."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(install, FAIL | error, {name: first}).result()
        return thread.submit(action).result()


def asking(calls: dict[str, int | None]) -> int:
    """From now on these calls of this thread wait for an answer at the descriptor: `CallsOf`, in another process."""
    return install(ASK, calls, SECCOMP_FILTER_FLAG_NEW_LISTENER)


class CallsOf:
    """The system calls of somebody who asks, one at a time. `held` is the one that waits for our answer."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.held: Call | None = None

    def next(self) -> str:
        """Let the call that is held go, and hold the next one; its name."""
        self.go_on()
        assert select.select([self.descriptor], [], [], 20)[0], "no system call for 20 s"
        notice = bytearray(NOTICE.size)
        fcntl.ioctl(self.descriptor, RECEIVE, notice)
        number, _, _, called, *_ = NOTICE.unpack(notice)
        names = {number: name for name, number in NUMBERS.items()}
        self.held = Call(number, names[called])
        return self.held.name

    def until(self, name: str) -> None:
        """Hold the next call of this name."""
        while self.next() != name:
            pass

    def go_on(self) -> None:
        self._answer(0, CONTINUE)

    def fail(self, error: int) -> None:
        self._answer(-error, 0)

    def _answer(self, error: int, flags: int) -> None:
        if self.held is not None:
            fcntl.ioctl(self.descriptor, SEND, ANSWER.pack(self.held.id, 0, error, flags))
            self.held = None

    def close(self) -> None:
        os.close(self.descriptor)


def is_possible() -> bool:
    """Whether this machine, and the container that we may be in, allow it."""
    try:
        return failing("socket", 1 << 20, errno.EPERM, lambda: True)
    except (OSError, ValueError, KeyError):
        return False
