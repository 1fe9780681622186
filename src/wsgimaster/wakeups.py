"""How many cores should be awake: the wake-up rule, while cores pull for themselves.

Every core that is awake costs: with sixteen awake where two would do, a small request takes twice the CPU time. But a
core that waits for a database keeps no CPU busy, and one that computes for a second keeps everybody behind it waiting.
So cores are woken freely while those that are awake leave CPU time over. When they don't, another one can't make
anything faster, except for those who would otherwise wait behind something long.

A core's *use* is the share of a CPU that it would take if it never had to wait for one: time that it ran over time
that passed less time that it could have run but had no CPU. It says the same on an idle and on a crowded machine.

Pure: see tests/test_wakeups.py.
"""

from typing import NamedTuple

# A request is small if the core's requests took less CPU time than this on average, seconds: twenty times what waking a
# core for it would cost.
SMALL = 0.0002
# A core that works through small requests without a pause has at least this use.
STEADY = 0.7
# Cores are woken freely while the sum of uses leaves this many CPUs over.
MARGIN = 0.25


class Decision(NamedTuple):
    watch: bool  # wake a core for every connection that no core waits for
    wake: int  # so many cores now, for connections that wait already
    rest: int  # so many cores may go to sleep after their request


def is_grinder(use: float, cpu_per_request: float) -> bool:
    """Whether a core does nothing but small requests: more such cores than CPUs only get in each other's way."""
    return use >= STEADY and cpu_per_request < SMALL


def decide(cpus: float, use: float, grinders: int, overdue: int) -> Decision:
    """cpus: that the server may use; use: the sum over all cores that are awake; grinders: how many of them do nothing
    but small requests (is_grinder); overdue: connections that have waited for longer than the threshold."""
    enough = max(1, round(cpus))
    if use < cpus - MARGIN:
        return Decision(watch=True, wake=overdue, rest=0)
    if grinders >= enough:  # who waits is served as fast as this machine can
        return Decision(watch=False, wake=0, rest=grinders - enough)
    return Decision(watch=False, wake=overdue, rest=0)
