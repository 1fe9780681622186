"""The master's hold on its children: how a zygote is started, and what the master keeps of each process.

The other side of each is zygote.py and worker.py. Nothing here decides.

Runs in: the master.
"""

import contextlib
import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from wsgimaster import _process, recycling
from wsgimaster.errors import StartError
from wsgimaster.lifecycle import slots_for
from wsgimaster.log import LineAssembler
from wsgimaster.settings import Settings, prefix_of

CHANNEL_BUFFER = 160 << 10  # bytes; the largest message has 82 KiB, and hosts differ in their default
TRACEBACK_ROOM = 1 << 20  # bytes
TITLE_ROOM = " " * 200  # in the zygote's command line, for its title and its workers'


@dataclass(slots=True, eq=False)
class Child:
    """A process and its output."""

    pid: int
    pidfd: int
    output: int  # our end of the pipe behind its fds 1 and 2, or -1
    tracebacks: int = -1  # of the pipe that its signal handlers write to; a zygote has none
    generation: int = 0
    soft_signal: int = 0  # that makes it raise an exception in its request; 0: it wasn't told of any
    lines: LineAssembler = field(default_factory=LineAssembler)
    written: bytes = b""  # from there, not yet asked for
    alive: bool = True  # not yet reaped
    process: psutil.Process | None = None  # for its figures; made when they are first asked for

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Its exit code, or minus the signal. Only after the pidfd became readable."""
        result = os.waitid(os.P_PID, self.pid, os.WEXITED)  # a pidfd that a loop watched is non-blocking
        os.close(self.pidfd)
        self.alive = False
        assert result is not None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def take_output(self, write: Callable[[bytes], None]) -> bool:
        """Pass whole lines on; False at the end of the output. Others get their turn after a megabyte."""
        for _ in range(16):
            try:
                data = os.read(self.output, 65536)
            except BlockingIOError:
                return True
            if lines := self.lines.feed(data):
                write(lines)
            if not data:
                return False
        return True

    def memory(self) -> tuple[int, int]:
        """(resident, address space) in bytes; zeros when it has just ended."""
        try:
            self.process = self.process or psutil.Process(self.pid)
            resident, address_space, *_ = self.process.memory_info()
        except psutil.Error:
            return 0, 0
        return resident, address_space

    def close_tracebacks(self) -> None:
        """At its end: whoever still waits for more gets nothing."""
        if self.tracebacks >= 0:
            os.close(self.tracebacks)
        self.tracebacks = -1

    def collect_tracebacks(self) -> bool:
        """Take what its signal handlers have written; whether there was anything."""
        if self.tracebacks < 0:
            return False
        if not self.written:
            with contextlib.suppress(OSError):  # room for many threads' tracebacks, if we may
                fcntl.fcntl(self.tracebacks, fcntl.F_SETPIPE_SZ, TRACEBACK_ROOM)
        try:
            data = os.read(self.tracebacks, TRACEBACK_ROOM)
        except BlockingIOError:
            return False
        self.written += data
        return bool(data)

    def traceback_of(self, name: str) -> str:
        """The part that was written for this request, and forget it. "" when there is none."""
        self.collect_tracebacks()
        mark = b"\2" + name.encode() + b"\n"
        before, found, rest = self.written.partition(mark)
        part, end, others = rest.partition(b"\2")
        if not found:
            return ""
        self.written = before + end + others
        return part.decode("utf-8", "backslashreplace").rstrip()

    def last_traceback(self) -> str:
        """At its end: what nobody has asked for."""
        self.collect_tracebacks()
        return re.sub(rb"\x02[0-9a-f]*\n?", b"", self.written).decode("utf-8", "backslashreplace").rstrip()


@dataclass(frozen=True, slots=True)
class Zygote:
    """The process that forks a generation's workers.

    lazy: they load the application; soft_signal: see Child.
    """

    generation: int
    child: Child
    control: socket.socket
    lazy: bool
    soft_signal: int


def output_pipe() -> tuple[int, int]:
    """Our end, non-blocking, and the child's, blocking."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    return ours, theirs


def make_channel() -> tuple[int, int]:
    """One core's channel: the master's end and the worker's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BUFFER)
    ends[0].setblocking(False)
    return ends[0].detach(), ends[1].detach()


class Reserve:
    """Descriptors that are kept, so that clients can't take the last ones: the next worker needs them."""

    def __init__(self, threads: int) -> None:
        """threads: cores per process."""
        self.size = 2 * threads + 4 + 8  # channels, two pipes; a pidfd, and as much for a zygote
        self._held: list[int] = []

    def fill(self) -> bool:
        """Whether all are held (again)."""
        with contextlib.suppress(OSError):
            while len(self._held) < self.size:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        return len(self._held) == self.size

    def release(self) -> None:
        """For the one who needs them, now."""
        while self._held:
            os.close(self._held.pop())


def interpreter(home: str | None) -> str:
    """The Python that loads the application: the virtualenv's, else ours."""
    if home is None:
        return sys.executable
    path = Path(home) / "bin" / "python"
    if not path.exists():
        raise StartError(f"home = {home}: no virtualenv there ({path} doesn't exist)")
    return str(path)


def soft_signal(settings: Settings) -> int:
    return settings.harakiri.graceful_signal if settings.harakiri.graceful_timeout else 0


def plan_for_zygote(settings: Settings, descriptors: tuple[int, int]) -> dict[str, Any]:
    """What zygote and workers need to know, as plain values: they have no pydantic."""
    app, processes, log = settings.app, settings.processes, settings.logging
    return {
        "python": list(sys.version_info[:2]),
        "home": app.home,
        "module": app.module,
        "file": app.file,
        "callable": app.callable,
        "pythonpath": list(app.pythonpath),
        "lazy": app.lazy,
        "required": app.required,
        "hooks": settings.hooks.model_dump(),
        "static": settings.static.model_dump() if settings.static.wanted else None,
        "check": settings.reloading.check,
        "trial": False,  # others serve meanwhile: without an application it has to end
        "processes": processes.processes,
        "cores": slots_for(processes.processes) * processes.threads,
        "threads": processes.threads,
        "timeout": settings.sockets.timeout,
        "buffer_size": settings.sockets.buffer_size,
        "allow_from": [(prefix.hex(), bits) for prefix, bits in map(prefix_of, settings.sockets.allow_from)],
        "forwarded_allow": [(prefix.hex(), bits) for prefix, bits in map(prefix_of, settings.sockets.forwarded_allow)],
        "graceful_signal": soft_signal(settings),
        "master": os.getpid(),
        "exit_deadline": processes.exit_deadline,
        "limit_as": processes.limit_as,
        "limit_nproc": processes.limit_nproc and max(processes.limit_nproc, settings.tasks),
        "thread_stack": 1024 * (processes.thread_stack_kib or 0),  # bytes; 0: the system's
        "cpu_affinity": processes.cpu_affinity,
        "descriptors": list(descriptors),
        "titles": settings.titles.model_dump(),
        "log_all": log.requests,
        "log_4xx": log.requests_4xx,
        "log_5xx": log.requests_5xx,
    }


def start_zygote(
    plan: dict[str, Any], environment: dict[str, str], board: int, doorbell: int
) -> tuple[Child, socket.socket]:
    """Exec a zygote, which begins to load the application; its process and the control socket. Raises OSError."""
    python = interpreter(plan["home"])
    script = str(Path(__file__).with_name("zygote.py"))
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.send(json.dumps(plan).encode())
    ours, output = output_pipe()
    numbers = [str(fd) for fd in (theirs.fileno(), board, doorbell, os.getpid())]
    inherited = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (theirs.fileno(), board, doorbell)]  # clears close-on-exec
    try:
        pid = os.posix_spawn(
            python,
            [python, "-P", script, *numbers, TITLE_ROOM],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
                *inherited,
            ],
            setsigmask=[],
        )
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.close(ours)  # a zygote that runs all the same finds its control socket closed
        control.close()
        raise
    finally:
        os.close(output)
        theirs.close()
    control.setblocking(False)
    return Child(pid, pidfd, ours), control


def start_program(
    command: list[str], environment: dict[str, str], directory: str | None, inherited: Sequence[int]
) -> Child:
    """Exec a program of ours in this directory (None: where we are), as the leader of a process group: the proof of an
    upgrade (proving.py), or a terminator. Raises OSError."""
    here = os.open(".", os.O_PATH | os.O_CLOEXEC) if directory is not None else -1
    try:
        ours, output = output_pipe()
        try:
            if directory is not None:
                os.chdir(directory)
            pid = os.posix_spawn(
                command[0],
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                    *[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherited],  # clears close-on-exec
                ],
                setpgroup=0,
                setsigmask=[],
            )
            return _watched(pid, ours)
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(output)
    finally:
        if here >= 0:
            os.fchdir(here)
            os.close(here)


def kill_group(leader: int, number: int) -> None:
    """Send the signal to the process group that this process leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def start_session(
    command: Sequence[str],
    environment: Mapping[str, str],
    limits: tuple[int, int],
    *,
    directory: str | None = None,
    uid: int | None = None,
    gid: int | None = None,
    outlives: bool = False,
) -> Child:
    """A program in a session of its own. It ends with us and writes to a pipe, or, if it outlives us, where we do (then
    the child has no output). limits: (soft, hard) of its descriptors; directory: to enter first; uid, gid: to become.
    Raises OSError."""
    name = command[0]
    program = shutil.which(os.path.join(directory, name) if directory and "/" in name else name)
    if program is None:
        raise FileNotFoundError(2, "there is no such program", name)
    if uid is not None and gid is None:
        with contextlib.suppress(KeyError):  # a user that isn't in the table keeps our group
            gid = pwd.getpwuid(uid).pw_gid
    ours, output = (-1, 2) if outlives else output_pipe()
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid = _process.spawn(
            os.fsencode(os.path.abspath(program)),
            [os.fsencode(word) for word in command],
            [os.fsencode(f"{name}={value}") for name, value in environment.items()],
            directory=None if directory is None else os.fsencode(directory),
            null=null,
            output=output,
            uid=-1 if uid is None else uid,
            gid=-1 if gid is None else gid,
            descriptors=limits,
            death_signal=0 if outlives else signal.SIGKILL,
        )
        return _watched(pid, ours)
    except OSError:
        if not outlives:
            os.close(ours)
        raise
    finally:
        os.close(null)
        if not outlives:
            os.close(output)


def _watched(pid: int, output: int) -> Child:
    """A child that leads a process group. If there is no descriptor to watch it with, it doesn't live: OSError."""
    try:
        return Child(pid, os.pidfd_open(pid), output)
    except OSError:
        kill_group(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def descriptors_needed(settings: Settings) -> int:
    """How many the master opens before the first client: two per core, three per process, and some of its own.

    While workers are replaced there are as many more as `recycle-budget` says.
    """
    workers = settings.processes.processes
    workers += min(workers, recycling.budget(settings.recycling, workers))
    reserve = Reserve(settings.processes.threads).size
    return (2 * settings.processes.threads + 3) * workers + len(settings.sockets.addresses) + reserve + 50
