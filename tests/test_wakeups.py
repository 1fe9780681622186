"""The wake-up rule: which cores are grinders, and what is decided about the others; and how many CPUs there are."""

import math
import os

import pytest

from wsgimaster.processes import cpus
from wsgimaster.wakeups import Decision, decide, is_grinder

CORES = {
    "a sleeper: 10 ms of waiting, 50 us of computing": (0.005, 50e-6, False),
    "hello world, without a pause": (0.98, 10e-6, True),
    "hello world, now and then": (0.3, 10e-6, False),
    "2 ms of computing, without a pause": (1.0, 2e-3, False),
    "stuck in one request": (1.0, 10e-3, False),
    "half computing, half waiting": (0.5, 100e-6, False),
    "unknown": (0.0, 0.0, False),
}


@pytest.mark.parametrize(("use", "cpu_per_request", "grinds"), CORES.values(), ids=CORES)
def test_is_grinder(use, cpu_per_request, grinds):
    assert is_grinder(use, cpu_per_request) is grinds


FREE = Decision(watch=True, wake=0, rest=0)
DECISIONS = {
    # cpus, use, grinders, overdue
    "the first request: nothing is known": (2, 0.0, 0, 0, FREE),
    "sleepers, however many": (2, 30 * 0.005, 0, 0, FREE),
    "sleepers, and somebody waits": (2, 0.15, 0, 5, Decision(watch=True, wake=5, rest=0)),
    "one core computes, one CPU is free": (2, 1.0, 0, 0, FREE),
    "one core grinds, one CPU is free": (2, 0.98, 1, 3, Decision(watch=True, wake=3, rest=0)),
    "CPU-bound, nobody waits for long": (2, 2.0, 0, 0, Decision(watch=False, wake=0, rest=0)),
    "CPU-bound, three wait behind it": (2, 2.0, 0, 3, Decision(watch=False, wake=3, rest=0)),
    "as many grinders as CPUs: who waits is served": (2, 1.9, 2, 200, Decision(watch=False, wake=0, rest=0)),
    "more grinders than CPUs": (2, 15.0, 16, 200, Decision(watch=False, wake=0, rest=14)),
    "mixed: two compute, one grinds": (2, 2.9, 1, 4, Decision(watch=False, wake=4, rest=0)),
    "mixed: two compute, two grind": (2, 3.9, 2, 4, Decision(watch=False, wake=0, rest=0)),
    "mixed: two compute, five grind": (2, 6.9, 5, 4, Decision(watch=False, wake=0, rest=3)),
    "half a CPU of a cgroup": (0.5, 0.4, 1, 4, Decision(watch=False, wake=0, rest=0)),
    "half a CPU, three grinders": (0.5, 2.9, 3, 4, Decision(watch=False, wake=0, rest=2)),
}


@pytest.mark.parametrize(("cpus", "use", "grinders", "overdue", "decision"), DECISIONS.values(), ids=DECISIONS)
def test_decide(cpus, use, grinders, overdue, decision):
    assert decide(cpus, use, grinders, overdue) == decision


CGROUPS = {
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


@pytest.mark.parametrize(("files", "quota"), CGROUPS.values(), ids=CGROUPS)
def test_cpus(tmp_path, files, quota):
    """The smaller one of the affinity and the cgroups' quotas."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpus(tmp_path) == min(quota, len(os.sched_getaffinity(0)))
