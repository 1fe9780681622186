"""`cheaper-algo = manual`: nothing changes by itself. (`cheaper-queue-wait` is its own option; 0 turns it off.)"""

from dataclasses import dataclass

from wsgimaster.scaling.facts import NOTHING, Decision, Sample
from wsgimaster.settings import Cheaper


@dataclass(frozen=True, slots=True)
class Memory:
    pass


def decide(settings: Cheaper, sample: Sample, room: int, memory: Memory, now: float) -> tuple[Decision, Memory]:
    return NOTHING, memory


def added(settings: Cheaper, memory: Memory, now: float) -> tuple[tuple[str, ...], Memory]:
    return (), memory
