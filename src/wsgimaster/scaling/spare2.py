"""`cheaper-algo = spare2`: `cheaper` is the number of idle workers that are kept ready, not the least number of all.

Documented by uWSGI and in none of its releases. Missing ones are added at once (at most `cheaper-step` a second); one
ends after `cheaper-idle` (10) seconds with more of them than wanted.
"""

from dataclasses import dataclass

from wsgimaster.scaling.facts import NOTHING, Decision, Sample
from wsgimaster.settings import Cheaper


@dataclass(frozen=True, slots=True)
class Memory:
    idle: int = 0  # seconds with too many


def decide(settings: Cheaper, sample: Sample, room: int, memory: Memory, now: float) -> tuple[Decision, Memory]:
    """room: how many workers may be added at most."""
    idle = sample.workers - sample.busy
    wanted = f"{idle} of {sample.workers} workers are idle, cheaper = {settings.minimum} are to be"
    if idle < settings.minimum:
        change = min(settings.minimum - idle, room, settings.step)
        return (Decision(change, wanted) if change else NOTHING), Memory()
    if idle == settings.minimum:
        return NOTHING, Memory()
    if memory.idle + 1 < settings.idle_rounds:
        return NOTHING, Memory(memory.idle + 1)
    return Decision(-1, f"{wanted}, for {settings.idle_rounds} s"), Memory()


def added(settings: Cheaper, memory: Memory, now: float) -> tuple[tuple[str, ...], Memory]:
    return (), Memory()
