"""Keeps `spare`, `spare2` and `backlog` from ending workers that are needed again seconds later.

They end one as soon as a few seconds were quiet, and the queue brings it back with the next burst: thousands of changes
an hour under a steady load (docs/scaling.md). So an end that turns out to have been too early, because workers were
added within a minute, makes them stay: ten seconds from the last that was added, twice as long the next time, at most
five minutes. An end that was none is followed by half of it. As long as nothing was too early, the algorithms decide as
in uWSGI. `busyness` has its own rule for that (`cheaper-busyness-penalty`).
"""

from dataclasses import dataclass, replace

# Seconds. Simulated with the shapes of docs/scaling.md: 40 to 120 changes an hour; with MOST = 600 a quarter less and
# a twentieth more workers. SOON = 30 or FIRST = 30 made little difference.
SOON = 60.0
FIRST, MOST = 10.0, 300.0


@dataclass(frozen=True, slots=True)
class Memory:
    stay: float = 0.0  # seconds from the last addition in which no worker ends
    added_at: float | None = None
    ended_at: float | None = None  # the last one, if none was added since then


UNTROUBLED = Memory()


def added(memory: Memory, now: float) -> tuple[tuple[str, ...], Memory]:
    """Returns what is to be said of it."""
    if memory.ended_at is None:
        return (), replace(memory, added_at=now)
    gone = now - memory.ended_at
    if gone > SOON:
        stay = memory.stay / 2 if memory.stay > FIRST else 0.0
        return (), Memory(stay, now)
    stay = min(MOST, max(FIRST, 2 * memory.stay))
    if stay == memory.stay:
        return (), Memory(stay, now)
    text = f"a worker ended {gone:.0f} s ago and is missed: from now on those that are added stay for {stay:g} s"
    return (f"cheaper: {text}",), Memory(stay, now)


def ended(memory: Memory, now: float) -> Memory:
    return replace(memory, ended_at=now)


def remaining(memory: Memory, now: float) -> float:
    """Seconds until a worker may end."""
    return max(0.0, memory.added_at + memory.stay - now) if memory.added_at is not None else 0.0
