"""What the machine and the control groups that we run in let us have: CPUs and memory.

A limit may stand in any group from our own up to the root, and counts wherever it stands. Version 1 (a hierarchy per
controller) and version 2 are read; in a container the path that /proc tells may begin above what is mounted, then only
the mounted part is seen.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from wsgimaster.scaling.room import Holder, Memory

ROOT = Path("/")
PAGE = os.sysconf("SC_PAGE_SIZE")
AT_A_TIME = 16  # workers whose memory is read in one look: 0.7 ms for 60 MB of it
LONGEST_LOOK = 0.02  # seconds, of which the last worker may take as long as it has memory
SCARCE = 0.5  # of a limit: from then on every look reads some, else one in
LEISURELY = 10


def groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """The directories of our control groups with this controller, innermost first, and their version."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            mount = root / "sys/fs/cgroup" / controllers
            own = mount / path.lstrip("/")
            for group in (own, *own.parents):
                if mount in (group, *group.parents):
                    yield group, 1 if controllers else 2


def cpus(root: Path = ROOT) -> float:
    """How many CPUs we may use: the affinity, or less if a control group has a quota. root: where /proc and /sys
    are."""
    quotas = (quota(group, version) for group, version in groups("cpu", root))
    return min([float(len(os.sched_getaffinity(0))), *quotas])


def quota(group: Path, version: int) -> float:
    """CPUs, infinite without a quota."""
    try:
        if version == 2:
            allowed, period = (group / "cpu.max").read_text().split()
        else:
            allowed, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if allowed in ("max", "-1") else int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


LIMITS = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
USED = {1: ("memory.usage_in_bytes", "total_inactive_file"), 2: ("memory.current", "inactive_file")}


def holders(root: Path = ROOT) -> list[Holder]:
    """Our control groups that have a limit for memory, and the machine."""
    machine = psutil.virtual_memory()
    found = [Holder("the machine", machine.total - machine.available, machine.total)]
    for group, version in groups("memory", root):
        limits = [_number(group / name) for name in LIMITS[version]]
        limit = min((one for one in limits if one is not None), default=None)
        used, droppable = USED[version]
        held = _number(group / used)
        if limit is not None and held is not None and limit < machine.total:
            name = f"the control group {Path('/') / group.relative_to(root / 'sys/fs/cgroup')}"
            found.append(Holder(name, max(0, held - _entry(group / "memory.stat", droppable)), limit))
    return found


def memory_limit(root: Path = ROOT) -> int:
    """Bytes that all of us may have."""
    return min(holder.limit for holder in holders(root))


def _number(path: Path) -> int | None:
    """None without a limit, or without the file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max"
        return None


def _entry(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


@dataclass(slots=True)
class WorkersMemory:
    """What the workers hold, as of the last looks at each. Not thread-safe: one look at a time."""

    always: bool  # there is a limit for the workers themselves: cheaper-rss-limit-soft
    root: Path = ROOT
    held: dict[int, tuple[int, int]] = field(default_factory=dict)  # by pid: (proportional, own); the oldest look first
    looks: int = 0
    typical: int = 0  # the most that a worker had for itself, when one that has served was last there

    def look(self, requests: dict[int, int], thorough: bool = False) -> Memory:
        """Blocks for some milliseconds, mostly in the kernel. requests: that the workers have served, by pid; thorough:
        read what they hold even if there is plenty of memory."""
        around = tuple(holders(self.root))
        self.held = {pid: one for pid, one in self.held.items() if pid in requests}
        scarce = any(holder.used >= SCARCE * holder.limit for holder in around)
        if thorough or self.always or scarce or self.looks % LEISURELY == 0:
            unknown = [pid for pid in requests if pid not in self.held]
            began = time.monotonic()
            for pid in [*unknown, *self.held][:AT_A_TIME]:
                self.held.pop(pid, None)
                self.held[pid] = self._read(pid)
                if time.monotonic() - began > LONGEST_LOOK:
                    break
        self.looks += 1
        own = [own for _, own in self.held.values()]
        largest = max(own, default=0)
        if any(requests.values()):
            self.typical = largest
        typical = max(largest, self.typical)
        missing = len(requests) - len(own)
        proportional = sum(share for share, _ in self.held.values()) + missing * typical
        growth = sum(typical - one for one in own) + missing * typical
        return Memory(proportional, typical, growth, around, known=self.typical > 0)

    def _read(self, pid: int) -> tuple[int, int]:
        """(its share of all pages, what nobody else has), bytes; zeros when it has just ended."""
        try:
            lines = (self.root / f"proc/{pid}/smaps_rollup").read_text().splitlines()
        except PermissionError:  # hardened systems; what it shares with the zygote is then counted as its own
            return self._read_sizes(pid)
        except OSError:
            return 0, 0
        kib = {name: int(value) for name, value, *_ in map(str.split, lines[1:])}
        return 1024 * kib["Pss:"], 1024 * (kib["Private_Clean:"] + kib["Private_Dirty:"])

    def _read_sizes(self, pid: int) -> tuple[int, int]:
        try:
            _, resident, shared, *_ = map(int, (self.root / f"proc/{pid}/statm").read_text().split())
        except OSError:
            return 0, 0
        return (resident - shared) * PAGE, (resident - shared) * PAGE
