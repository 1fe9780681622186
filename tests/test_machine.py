"""What the machine and the control groups let us have."""

import math
import os
from pathlib import Path

import psutil
import pytest

from wsgimaster import machine
from wsgimaster.machine import WorkersMemory, cpus, holders
from wsgimaster.scaling.room import Holder

MIB = 1 << 20


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


QUOTAS = {
    "none": ({}, math.inf),
    "version 2, half a CPU": (
        {"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "version 2, without a quota": (
        {"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "max 100000\n"},
        math.inf,
    ),
    "version 2, the group above has one": (
        {"proc/self/cgroup": "0::/slice/app\n", "sys/fs/cgroup/slice/cpu.max": "75000 100000\n"},
        0.75,
    ),
    "version 2, as a container sees its own": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "25000 100000\n"},
        0.25,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "7:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
        },
        0.5,
    ),
    "version 1, without a quota": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        math.inf,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000\n"}, math.inf),
}


@pytest.mark.parametrize(("files", "quota"), QUOTAS.values(), ids=QUOTAS)
def test_cpus(tmp_path, files, quota):
    """The smaller one of the affinity and the cgroups' quotas."""
    write(tmp_path, files)
    assert cpus(tmp_path) == min(quota, len(os.sched_getaffinity(0)))


V1 = {
    "proc/self/cgroup": "4:memory:/web/app\n0::/\n",
    "sys/fs/cgroup/memory/web/app/memory.limit_in_bytes": "268435456\n",
    "sys/fs/cgroup/memory/web/app/memory.usage_in_bytes": "209715200\n",
    "sys/fs/cgroup/memory/web/app/memory.stat": "cache 99\ninactive_file 1\ntotal_inactive_file 52428800\n",
}
UNLIMITED = {"sys/fs/cgroup/memory/web/memory.limit_in_bytes": "9223372036854771712\n"}
V2 = {
    "proc/self/cgroup": "0::/web/app\n",
    "sys/fs/cgroup/web/app/memory.max": "max\n",
    "sys/fs/cgroup/web/app/memory.high": "max\n",
    "sys/fs/cgroup/web/app/memory.current": "209715200\n",
    "sys/fs/cgroup/web/memory.max": "536870912\n",
    "sys/fs/cgroup/web/memory.high": "268435456\n",
    "sys/fs/cgroup/web/memory.current": "209715200\n",
    "sys/fs/cgroup/web/memory.stat": "anon 1\ninactive_file 52428800\n",
}
LIMITS = {
    # files, (name, used, limit) of every group that has one
    "no control groups": ({}, []),
    "version 1, without what the kernel can drop": (V1, [("/memory/web/app", 150, 256)]),
    "version 1, the group above has none": (V1 | UNLIMITED, [("/memory/web/app", 150, 256)]),
    "version 2, the group above, where memory.high is the lower": (V2, [("/web", 150, 256)]),
    "version 2, as a container sees its own": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "134217728\n",
            "sys/fs/cgroup/memory.current": "67108864\n",
        },
        [("/", 64, 128)],
    ),
    "a group that is gone": ({"proc/self/cgroup": "0::/gone\n"}, []),
}


@pytest.mark.parametrize(("files", "expected"), LIMITS.values(), ids=LIMITS)
def test_holders(tmp_path, files, expected):
    """The machine is always among them."""
    write(tmp_path, files)
    whole, *groups = holders(tmp_path)
    assert (whole.name, whole.limit) == ("the machine", psutil.virtual_memory().total)
    assert [(group.name, group.used / MIB, group.limit / MIB) for group in groups] == [
        (f"the control group {name}", used, limit) for name, used, limit in expected
    ]


def smaps(pss, private):
    lines = ("Rss: 99999 kB", f"Pss: {pss} kB", "Private_Clean: 24 kB", f"Private_Dirty: {private} kB")
    return "\n".join(["0-1 ---p 0 00:00 0 [rollup]", *lines, ""])


def test_what_workers_hold(tmp_path):
    """Each page once; the smaller ones are expected to become like the largest."""
    write(tmp_path, {"proc/11/smaps_rollup": smaps(2048, 1000), "proc/12/smaps_rollup": smaps(4096, 3048)})
    found = WorkersMemory(always=True, root=tmp_path).look({11: 5, 12: 5})
    assert (found.workers, found.typical, found.growth) == (6 * MIB, 3 * MIB, 2 * MIB)


def test_one_that_was_not_looked_at_yet_counts_as_the_largest(tmp_path):
    write(tmp_path, {f"proc/{pid}/smaps_rollup": smaps(2048, 1000) for pid in range(100, 120)})
    watch = WorkersMemory(always=True, root=tmp_path)
    found = watch.look(dict.fromkeys(range(100, 120), 1))
    assert (len(watch.held), found.workers) == (16, 16 * 2 * MIB + 4 * MIB)
    watch.look(dict.fromkeys(range(100, 120), 1))
    assert len(watch.held) == 20


def test_a_worker_that_has_ended_is_forgotten(tmp_path):
    write(tmp_path, {"proc/11/smaps_rollup": smaps(2048, 1000)})
    watch = WorkersMemory(always=True, root=tmp_path)
    watch.look({11: 1})
    assert watch.look({}).workers == 0
    assert watch.look({12: 1}).workers == 0  # gone before the look


def sizes_seen(watch, tmp_path, looks):
    """A worker that grows between the looks."""
    found = []
    for size in range(1, looks + 1):
        write(tmp_path, {"proc/11/smaps_rollup": smaps(2048, 1024 * size - 24)})
        found.append(watch.look({11: 1}).typical / MIB)
    return found


def test_while_there_is_plenty_every_tenth_look_reads_the_workers_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "holders", lambda root: [Holder("the machine", 40, 100)])
    assert sizes_seen(WorkersMemory(always=False, root=tmp_path), tmp_path, 12) == [1] * 10 + [11, 11]


def test_when_half_of_a_limit_is_used_every_look_does(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "holders", lambda root: [Holder("the machine", 50, 100)])
    assert sizes_seen(WorkersMemory(always=False, root=tmp_path), tmp_path, 4) == [1, 2, 3, 4]


def test_a_worker_whose_memory_we_may_not_read(tmp_path, monkeypatch):
    """What it shares with the zygote is then counted as its own."""
    write(tmp_path, {"proc/11/statm": "2000 768 256 1 0 300 0\n"})

    def forbidden(path, *_):
        if path.name == "smaps_rollup":
            raise PermissionError
        return read_text(path)

    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", forbidden)
    assert WorkersMemory(always=True, root=tmp_path).look({11: 1}).workers == 512 * machine.PAGE


def test_what_a_worker_needs_is_known_when_one_has_served(tmp_path):
    """And not forgotten when all have ended."""
    write(tmp_path, {"proc/11/smaps_rollup": smaps(2048, 1000)})
    watch = WorkersMemory(always=True, root=tmp_path)
    assert not watch.look({11: 0}).known
    assert watch.look({11: 1}).known
    nobody = watch.look({})
    assert (nobody.known, nobody.typical) == (True, MIB)
