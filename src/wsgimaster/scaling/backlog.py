"""`cheaper-algo = backlog`: above `cheaper-overload` waiting requests `cheaper-step` workers are added each second,
below it one ends.

The queue is ours and the kernel's together, on unix sockets too, where uWSGI sees none.
"""

from dataclasses import dataclass

from wsgimaster.scaling.facts import NOTHING, Decision, Sample
from wsgimaster.settings import Cheaper


@dataclass(frozen=True, slots=True)
class Memory:
    pass


def decide(settings: Cheaper, sample: Sample, room: int, memory: Memory, now: float) -> tuple[Decision, Memory]:
    """room: how many workers may be added at most."""
    found = f"{sample.waiting} requests wait (cheaper-overload = {settings.overload})"
    if sample.waiting > settings.overload and room:
        return Decision(min(settings.step, room), found), memory
    if sample.waiting < settings.overload and sample.workers > settings.minimum:
        return Decision(-1, found), memory
    return NOTHING, memory


def added(settings: Cheaper, memory: Memory, now: float) -> tuple[tuple[str, ...], Memory]:
    return (), memory
