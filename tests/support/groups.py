"""A control group for memory, version 1, for tests that want to run out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.wait import wait_until

GROUPS = Path("/sys/fs/cgroup/memory")


class NoGroups(Exception):
    """This machine, or this user, can't make one."""


@contextmanager
def memory_group(size: int) -> Iterator[Path]:
    """size: bytes. Below our own group; removed when it is empty again. Raises NoGroups."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":")[2] for line in lines if line.split(":")[1] == "memory"), None)
    group = GROUPS / (own or "").lstrip("/") / f"wsgimaster-test-{os.getpid()}"
    if own is None or not os.access(group.parent, os.W_OK):
        raise NoGroups("needs root and the memory controller of control groups, version 1")
    group.mkdir()
    try:
        limit(group, size)
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def limit(group: Path, size: int) -> None:
    (group / "memory.limit_in_bytes").write_text(str(size))


def used(group: Path) -> int:
    """Bytes, without what the kernel can drop."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int((group / "memory.usage_in_bytes").read_text()) - int(stat["total_inactive_file"])


def oom_kills(group: Path) -> int:
    fields = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
    return int(fields["oom_kill"])


def entering(group: Path) -> list[str]:
    """What to put in front of a command, so that it runs in the group."""
    return ["sh", "-c", 'echo $$ > "$0"/cgroup.procs; exec "$@"', str(group)]
