"""`cheaper-algo = spare`, the default: more workers when all of them have been busy for a while, fewer when several
haven't.

A round is a second. `cheaper-overload` (3) is the number of rounds for both: with more than so many busy ones,
`cheaper-step` workers are added; every so many idle ones, one ends. One idle worker is what is wanted: then nothing
changes.
"""

from dataclasses import dataclass, replace

from wsgimaster.scaling.facts import NOTHING, Decision, Sample
from wsgimaster.settings import Cheaper


@dataclass(frozen=True, slots=True)
class Memory:
    overloaded: int = 0  # rounds in which all workers were busy, less those in which one wasn't
    idle: int = 0  # rounds with workers to spare


def decide(settings: Cheaper, sample: Sample, room: int, memory: Memory, now: float) -> tuple[Decision, Memory]:
    """room: how many workers may be added at most."""
    rounds = settings.overload or 1
    if sample.busy < sample.workers:
        memory = replace(memory, overloaded=max(0, memory.overloaded - 1))
    else:
        memory = Memory(memory.overloaded + 1, 0)
    if memory.overloaded > rounds:
        text = f"all {sample.workers} workers were busy for {memory.overloaded} rounds (cheaper-overload = {rounds})"
        return Decision(min(settings.step, room), text if room else ""), replace(memory, overloaded=0)
    spare = sample.workers - sample.busy
    if memory.overloaded or spare == 1:
        return NOTHING, memory
    memory = replace(memory, idle=memory.idle + 1)
    if sample.workers > settings.minimum and memory.idle % rounds == 0:
        return Decision(-1, f"{spare} of {sample.workers} workers have nothing to do, one would be enough"), memory
    return NOTHING, memory


def added(settings: Cheaper, memory: Memory, now: float) -> tuple[tuple[str, ...], Memory]:
    """Workers were added for another reason: what was counted was counted with fewer of them."""
    return (), Memory()
