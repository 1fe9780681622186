"""How many cores should be awake: the wake-up rule, while cores pull for themselves.

Every core that is awake costs: with sixteen awake where two would do, a small request takes twice the CPU time. A core
that has nothing to do but small requests (a *grinder*) is done sooner than another one could be woken, and more
grinders than CPUs make nothing faster. But a core that waits for a database keeps no CPU busy, and one that computes
for a second keeps everybody behind it waiting: beside those, cores are woken freely while there is CPU time left over,
and when there isn't, for those who would otherwise wait behind something long.

A core's *use* is the share of a CPU that it would take if it never had to wait for one: time that it ran over time
that passed less time that it could have run but had no CPU. It says the same on an idle and on a crowded machine.

Pure: see tests/test_wakeups.py.
"""

from typing import NamedTuple

# Where these come from: docs/decisions/0007-who-is-awake.md.
# A request is small if the core's requests took less CPU time than this on average, seconds.
SMALL = 0.0002
# A core that doesn't wait for anything in its requests has at least this use while it is in them.
STEADY = 0.85
# Cores are woken freely while the sum of uses leaves this many CPUs over.
MARGIN = 0.25


class Decision(NamedTuple):
    watch: bool  # wake a core for every connection that no core waits for
    wake: int  # so many cores now, for connections that wait already
    rest: int  # so many cores may go to sleep after their request


def is_grinder(use: float, cpu_seconds: float, requests: int) -> bool:
    """Whether a core does nothing but small requests. use: while it was in requests, not waiting for one; cpu_seconds,
    requests: since it was measured last."""
    return requests > 0 and use >= STEADY and cpu_seconds / requests < SMALL


def decide(cpus: float, use: float, grinders: int, overdue: int) -> Decision:
    """cpus: that the server may use; use: the sum over all cores that are awake; grinders: how many of them do nothing
    but small requests (is_grinder); overdue: connections that have waited for longer than the threshold."""
    enough = max(1, round(cpus))
    if grinders >= enough:  # who waits is served as fast as this machine can
        return Decision(watch=False, wake=0, rest=grinders - enough)
    return Decision(watch=use < cpus - MARGIN, wake=overdue, rest=0)
