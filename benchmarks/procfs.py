"""What processes have spent, read from the kernel.

A process tree's CPU time is the sum over its live processes of their own time and of the time of the children
that they have already reaped. That sum never loses a process that ends inside the measured window, as long as
something in the tree reaps it: its time only moves from its own entry to its parent's `cutime`.

The own time of a live process comes from its CPU clock (nanoseconds, user and system together).
`/proc/PID/stat` has the same figure, but cut to whole clock ticks of 10 ms, for user and for system apart:
with 64 workers that alone is an error of several percent. Its ticks serve to split user from system, and for
children that were reaped.
"""

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
OWN_PID = os.getpid()
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Process:
    pid: int
    state: str
    parent: int
    session: int
    started: int
    user: float
    system: float
    reaped_children: float

    @property
    def identity(self) -> tuple[int, int]:
        """Tells a process from a later one that got the same number."""
        return self.pid, self.started


@dataclass(frozen=True)
class TreeTime:
    """CPU seconds of a process tree since it began."""

    total: float
    user_by_ticks: float
    system_by_ticks: float
    processes: int

    def __sub__(self, earlier: "TreeTime") -> "TreeTime":
        return TreeTime(
            self.total - earlier.total,
            self.user_by_ticks - earlier.user_by_ticks,
            self.system_by_ticks - earlier.system_by_ticks,
            self.processes,
        )


def read_process(pid: int) -> Process | None:
    """One row of the process table, or None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # its name may be cut anywhere
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in brackets and may hold anything, brackets and blanks too: begin behind the last one.
    fields = text[text.rindex(")") + 2 :].split()
    numbers = [int(field) for field in fields[1:20]]
    user, system, children_user, children_system = numbers[10:14]
    return Process(
        pid,
        state=fields[0],
        parent=numbers[0],
        session=numbers[2],
        started=numbers[18],
        user=user / TICKS,
        system=system / TICKS,
        reaped_children=(children_user + children_system) / TICKS,
    )


def all_processes() -> list[Process]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [process for pid in pids if (process := read_process(pid)) is not None]


def tree_of(root: int) -> list[Process]:
    """The process, its descendants, and whatever else lives in the session that it leads."""
    processes = all_processes()
    members = {process.pid for process in processes if root in (process.pid, process.session)}
    grew = True
    while grew:
        children = {process.pid for process in processes if process.parent in members} - members
        members |= children
        grew = bool(children)
    return [process for process in processes if process.pid in members]


def own_seconds(process: Process) -> float:
    clock = ctypes.c_int32()
    try:
        if LIBC.clock_getcpuclockid(process.pid, ctypes.byref(clock)) == 0:
            return time.clock_gettime(clock.value)
    except OSError:  # it ended in between
        pass
    return process.user + process.system


def tree_time(root: int) -> TreeTime:
    tree = tree_of(root)
    return TreeTime(
        total=sum(own_seconds(process) + process.reaped_children for process in tree),
        user_by_ticks=sum(process.user for process in tree),
        system_by_ticks=sum(process.system for process in tree),
        processes=len(tree),
    )


def others_seconds(ours: set[int]) -> float:
    """CPU seconds of every process but `ours`, kernel threads and ended children included.

    Not the machine's busy time of /proc/stat: that is sampled at each tick, and short spells of running, which are
    all that a server of small requests has, are counted wrong by up to a quarter.
    """
    return sum(own_seconds(process) + process.reaped_children for process in all_processes() if process.pid not in ours)


def stolen_seconds() -> float:
    """What the hypervisor gave to others, since the machine booted, over all cores."""
    first_line = Path("/proc/stat").read_text().splitlines()[0]
    return int(first_line.split()[8]) / TICKS
