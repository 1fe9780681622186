"""One decision about the number of workers: what memory forbids, what waits in the queue, and what the algorithm says.

`decide` is asked once a second. Between those rounds `hurry` is asked, while requests wait: it only adds, for those who
have waited for longer than `cheaper-queue-wait` while no core was free. Each gets the memory that the one before has
returned. Neither knows what became of its decision, except by the next sample.
"""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from wsgimaster.scaling import backlog, busyness, flapping, manual, room, spare, spare2
from wsgimaster.scaling.facts import NOTHING, Decision, Sample
from wsgimaster.settings import Algorithm, Cheaper

# As long as nobody knows how much memory a worker needs, they come one at a time, with pauses of so many queue-waits.
UNKNOWN_PAUSE = 5

# Each has a Memory, decide(settings, sample, room, memory, now) and added(settings, memory, now).
ALGORITHMS: dict[Algorithm, ModuleType] = {
    Algorithm.SPARE: spare,
    Algorithm.SPARE2: spare2,
    Algorithm.BACKLOG: backlog,
    Algorithm.BUSYNESS: busyness,
    Algorithm.MANUAL: manual,
}


@dataclass(frozen=True, slots=True)
class Memory:
    algorithm: Any  # its own
    missed: flapping.Memory = flapping.UNTROUBLED
    hurried_at: float | None = None  # when workers were added for those who had waited for too long
    served: int = 0  # the total, when it last grew
    served_at: float | None = None
    target: int | None = None  # workers, that somebody has asked for
    refused: bool = False  # memory had no room for all that were wanted, the last time


def fresh(settings: Cheaper) -> Memory:
    """What is remembered at the start."""
    return Memory(ALGORITHMS[settings.algorithm].Memory())


def describe(settings: Cheaper, first: int, most: int) -> list[str]:
    """Lines for the log at the start. first: workers then; most: `processes`."""
    if not settings.minimum:
        return []
    hurry = f"{settings.queue_wait:g} s in the queue make more start" if settings.hurries else "no hurry"
    lines = [f"cheaper: {settings.minimum} to {most} workers, {first} at first, by {settings.algorithm}; {hurry}"]
    if settings.algorithm is Algorithm.BUSYNESS:
        lines += busyness.describe(settings)
    return lines


def decide(settings: Cheaper, sample: Sample, held: room.Memory, memory: Memory, now: float) -> tuple[Decision, Memory]:
    """What to do in this second. now: seconds, monotonic."""
    active = sample.served != memory.served or sample.busy or sample.waiting or sample.coming
    if active or memory.served_at is None:
        memory = replace(memory, served=sample.served, served_at=now)
    elif settings.idle and sample.workers and now - memory.served_at > settings.idle:
        why = f"workers have been inactive for more than {settings.idle} seconds"
        return Decision(-sample.workers, why, all_end=True), memory
    if memory.target is not None:
        return _towards(memory.target, settings, sample, held, memory)
    if not settings.minimum or not sample.wanted:
        return NOTHING, memory
    if sample.workers > 1 and (why := room.excess(settings, held)):
        return _if_idle(Decision(-1, why), sample, memory, memory)
    space = room.room(settings, held)
    algorithm = ALGORITHMS[settings.algorithm]
    most = min(sample.spawnable, space.workers)
    decision, own = algorithm.decide(settings, sample, most, memory.algorithm, now)
    later = replace(memory, algorithm=own)
    if decision.change < 0:
        return _end(decision, sample, memory, later, now)
    if decision.change > 0:
        decision, later = _add(settings, decision, later, now)
    if most < sample.spawnable:
        wish, _ = algorithm.decide(settings, sample, sample.spawnable, memory.algorithm, now)
        if wish.change > decision.change:
            return _short_of(space, wish, decision, later)
    return decision, replace(later, refused=memory.refused and most < sample.spawnable)


def hurry(settings: Cheaper, sample: Sample, held: room.Memory, memory: Memory, now: float) -> tuple[Decision, Memory]:
    """Whether workers are needed before the next second. They come `cheaper-step` at a time: as many again when those
    are ready, or after another `cheaper-queue-wait`; no more than there are overdue requests for them."""
    if not sample.wanted:  # cheap, or idle until now: somebody has to
        change = min(settings.minimum or sample.spawnable, sample.spawnable) if sample.waiting else 0
        return Decision(change, f"{sample.waiting} requests wait and there is no worker" if change else ""), memory
    if not settings.hurries or sample.free_cores:
        return NOTHING, memory
    pause = settings.queue_wait if held.known else UNKNOWN_PAUSE * settings.queue_wait
    if memory.hurried_at is not None and now - memory.hurried_at < pause and (sample.coming or not held.known):
        return NOTHING, memory
    wanted = min(settings.step, sample.overdue - sample.coming * sample.threads, sample.spawnable)
    if wanted <= 0:
        return NOTHING, memory
    space = room.room(settings, held)
    change = min(wanted, space.workers)
    why = (
        f"{sample.overdue} requests have waited for more than {settings.queue_wait:g} s (cheaper-queue-wait),"
        f" the first for {sample.oldest:.3f} s, and no core is free"
    )
    if not change:
        return _short_of(space, Decision(wanted, why), NOTHING, replace(memory, hurried_at=now))
    also, own = ALGORITHMS[settings.algorithm].added(settings, memory.algorithm, now)
    refused = memory.refused and change < wanted
    memory = replace(memory, algorithm=own, hurried_at=now, refused=refused, target=None)
    return _add(settings, Decision(change, why, also), memory, now)


def _add(settings: Cheaper, decision: Decision, memory: Memory, now: float) -> tuple[Decision, Memory]:
    if settings.algorithm is Algorithm.BUSYNESS:  # it has learned already
        return decision, memory
    also, learned = flapping.added(memory.missed, now)
    return replace(decision, also=(*decision.also, *also)), replace(memory, missed=learned)


def _end(decision: Decision, sample: Sample, before: Memory, after: Memory, now: float) -> tuple[Decision, Memory]:
    if left := flapping.remaining(before.missed, now):
        return Decision(0, f"{decision.why}, but workers stay for {left:.0f} more second(s)"), after
    return _if_idle(decision, sample, before, replace(after, missed=flapping.ended(before.missed, now)))


def _towards(
    target: int, settings: Cheaper, sample: Sample, held: room.Memory, memory: Memory
) -> tuple[Decision, Memory]:
    """What somebody has asked for, as far as memory and idle workers go: the algorithm rests until it is there."""
    reached = replace(memory, target=None)
    change, why = target - sample.wanted, f"{target} were asked for"
    if change > 0:
        space = room.room(settings, held)
        fits = min(change, sample.spawnable, space.workers)
        later = reached if held.known or fits == change else memory  # the others when it is known what one needs
        return Decision(fits, why if fits == change else f"{why}, {space.why}"), later
    idle = sample.workers - sample.coming - sample.busy
    return (Decision(-min(-change, idle), why), memory) if change else (NOTHING, reached)


def _if_idle(decision: Decision, sample: Sample, before: Memory, after: Memory) -> tuple[Decision, Memory]:
    """Only a worker that is idle ends. Without one, the decision is made again in the next second."""
    if sample.workers - sample.coming > sample.busy:
        return decision, after
    return Decision(0, f"{decision.why}, but no worker is idle"), before


def _short_of(space: room.Room, wish: Decision, decision: Decision, memory: Memory) -> tuple[Decision, Memory]:
    """Memory has no room for all that was wished. Told when it begins, not every second."""
    if memory.refused and not decision.change:
        return decision, memory
    text = f"{wish.change} worker(s) are wanted ({wish.why}), there is room for {decision.change}: {space.why}"
    return replace(decision, also=(*decision.also, text)), replace(memory, refused=True)
