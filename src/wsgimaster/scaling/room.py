"""How many more workers the memory has room for, and when there are too many.

Workers share what the zygote has loaded, so the sum of their resident sizes counts that many times over. Here each page
counts once (PSS). And a worker that has just been forked is small: it is expected to become like the largest of those
that serve.
"""

from dataclasses import dataclass, replace

from wsgimaster.settings import Cheaper

KEEP_FREE = 0.05  # of a control group's or the machine's memory: for everybody else in it, and for the next request
PLENTY = 1 << 20  # workers: no limit


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who has a limit: a control group, or the machine. Bytes; used: without what the kernel can drop."""

    name: str
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What workers and their surroundings hold, bytes."""

    workers: int = 0  # all of them together, each page once
    typical: int = 0  # the most that one of them holds for itself alone
    growth: int = 0  # what the others lack to be like that one
    holders: tuple[Holder, ...] = ()
    known: bool = True  # one of them has served a request; before that, it says nothing about what a worker needs


NOTHING_HELD = Memory()


def charged(memory: Memory, workers: int) -> Memory:
    """As if so many more workers held what one of them will."""
    more = max(0, workers) * memory.typical
    return replace(memory, workers=memory.workers + more, growth=memory.growth + more)


@dataclass(frozen=True, slots=True)
class Room:
    workers: int = PLENTY  # that may be added
    why: str = ""  # not more


def room(settings: Cheaper, memory: Memory) -> Room:
    """The tightest of all limits."""
    if not memory.known:
        return Room(1, "no worker has served a request yet, so nobody knows how much memory one needs")
    found = [_beside(holder, memory) for holder in memory.holders]
    if settings.rss_soft:
        found.append(_below(settings.rss_soft, memory))
    return min(found, key=lambda one: one.workers, default=Room())


def excess(settings: Cheaper, memory: Memory) -> str:
    """Why a worker has to go although there is work; "" if none has to."""
    if not settings.rss_hard or memory.workers < settings.rss_hard:
        return ""
    return f"the workers hold {_mib(memory.workers)} of memory (cheaper-rss-limit-hard = {settings.rss_hard})"


def _below(limit: int, memory: Memory) -> Room:
    """The last one may cross the soft limit, as in uWSGI."""
    left = limit - memory.workers
    why = f"the workers hold {_mib(memory.workers)} of memory (cheaper-rss-limit-soft = {limit})"
    return Room(max(0, -(-left // memory.typical) if memory.typical else PLENTY * (left > 0)), why)


def _beside(holder: Holder, memory: Memory) -> Room:
    if not memory.typical:
        return Room()
    left = holder.limit * (1 - KEEP_FREE) - holder.used - memory.growth
    why = (
        f"{holder.name} holds {_mib(holder.used)} of {_mib(holder.limit)}, another worker needs {_mib(memory.typical)}"
    )
    if memory.growth:
        why += f", and those that there are may take {_mib(memory.growth)} more"
    return Room(max(0, int(left // memory.typical)), why)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
