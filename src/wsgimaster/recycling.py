"""When a worker should be replaced by a fresh one: limits, figures and age in, a reason out.

A limit says when a replacement is asked for. The worker goes on serving until that one is ready (lifecycle.py).
"""

from dataclasses import dataclass
from enum import IntEnum

from wsgimaster.settings import Recycling


class Urgency(IntEnum):
    BUDGET = 1  # when `recycle-budget` allows another one
    NOW = 2  # a replacement at once, however many there are
    KILL = 3  # it is killed while its replacement is being asked for: the memory is needed


@dataclass(frozen=True, slots=True)
class Limits:
    """One worker's own; 0 is none."""

    requests: int
    lifetime: float  # seconds


NO_LIMITS = Limits(0, 0.0)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a worker has done and what it holds."""

    requests: int
    rss: int  # bytes
    address_space: int  # bytes


@dataclass(frozen=True, slots=True)
class Reason:
    text: str  # "worker 3 " and this is a sentence, except for KILL
    urgency: Urgency


def draw(settings: Recycling, processes: int, chance: float) -> Limits:
    """A new worker's limits, spread so that workers born together don't leave together.

    chance: uniform in [0, 1). uWSGI adds (worker - 1) x delta, so that high numbers live longer for ever; here it is
    chance x (processes - 1) x delta, the same range.
    """
    spread = processes - 1
    requests = settings.max_requests
    if requests:
        requests += int(chance * (settings.max_requests_delta * spread + 1))
    lifetime = settings.max_lifetime
    if lifetime:
        lifetime += chance * settings.max_lifetime_delta * spread
    return Limits(requests, lifetime)


def judge(settings: Recycling, limits: Limits, figures: Figures, age: float) -> Reason | None:
    """Why the worker is to be replaced, or None. age: seconds since it was ready."""
    if settings.evil_rss and figures.rss >= settings.evil_rss:
        return Reason(f"RSS: {figures.rss}", Urgency.KILL)
    if settings.evil_address_space and figures.address_space >= settings.evil_address_space:
        return Reason(f"ADDRESS SPACE: {figures.address_space}", Urgency.KILL)
    if limits.lifetime and age >= limits.lifetime:
        return Reason(f"lifetime reached, it was running for {age:.0f} second(s)", Urgency.BUDGET)
    if age < settings.min_lifetime:
        return None
    if settings.rss and figures.rss >= settings.rss:
        return Reason(f"holds {figures.rss} bytes of memory (reload-on-rss = {settings.rss >> 20})", Urgency.NOW)
    if settings.address_space and figures.address_space >= settings.address_space:
        text = f"holds {figures.address_space} bytes of address space (reload-on-as = {settings.address_space >> 20})"
        return Reason(text, Urgency.NOW)
    if limits.requests and figures.requests >= limits.requests:
        return Reason(f"has served {figures.requests} requests (its max-requests is {limits.requests})", Urgency.BUDGET)
    return None


def budget(settings: Recycling, processes: int) -> int:
    """How many workers may be in replacement at a time."""
    return settings.budget or max(1, processes // 10)
