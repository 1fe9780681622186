"""`cheaper-algo = busyness`: more workers when the cores have been in requests for more than `cheaper-busyness-max`
percent of a window, fewer after many windows below `cheaper-busyness-min`.

A window has `cheaper-overload` seconds. Its busyness is exact: the time that cores were in requests, running ones
included, over the time that they could have been. (uWSGI counts requests when they end, and looks once a second whether
a worker is in one.)

    above max         `cheaper-step` workers more, and the wait below begins anew. If the last worker ended only a few
                      windows ago, that was too early: from now on one waits for `penalty` more windows
    below min         one worker ends, if `multiplier` windows have passed since the last change
    in between        a window doesn't count for that wait; three in a row begin it anew
    many are waiting  more than `backlog-alert` requests, or any for `backlog-nonzero` seconds: `backlog-step` emergency
                      workers more, in any second. While there are any, the wait has `backlog-multiplier` windows
"""

from dataclasses import dataclass, replace

from wsgimaster.scaling.facts import NOTHING, Decision, Sample
from wsgimaster.settings import Cheaper

# Rounds come once a second, a little more or less: a window must not wait for another round because of that, seconds.
SLACK = 0.05
CALM = 3  # windows between min and max after which the wait begins anew


@dataclass(frozen=True, slots=True)
class Memory:
    began: float | None = None  # the window; None: there was none yet
    busy_seconds: float = 0.0  # the sample's totals then
    core_seconds: float = 0.0
    multiplier: int = 0  # windows to wait before a worker ends; grows and shrinks, never below the option's
    not_before: float = 0.0  # then, if nothing happens
    ended_at: float | None = None  # the last worker that was one too many
    ended_last: bool = False  # since then none was added
    calm: int = 0  # windows between min and max, in a row
    emergency: int = 0  # workers, of those that were added because of the backlog
    waiting_since: float | None = None  # there is somebody in the queue


def describe(settings: Cheaper) -> list[str]:
    """uWSGI's lines at the start."""
    return [
        f"[busyness] settings: min={settings.busyness_min}%, max={settings.busyness_max}%,"
        f" overload={_window(settings)}, multiplier={settings.multiplier}, respawn penalty={settings.penalty}",
        f"[busyness] backlog alert is set to {settings.backlog_alert} request(s), step is {settings.backlog_step}",
        f"[busyness] backlog non-zero alert is set to {settings.backlog_nonzero} second(s)",
    ]


def decide(settings: Cheaper, sample: Sample, room: int, memory: Memory, now: float) -> tuple[Decision, Memory]:
    """Once a second. room: how many workers may be added at most."""
    began = memory.began
    if began is None:
        memory = _rewind(settings, replace(memory, multiplier=settings.multiplier), now)
        return NOTHING, _open_window(memory, sample, now)
    if not sample.waiting:
        memory = replace(memory, waiting_since=None)
    elif memory.waiting_since is None:
        memory = replace(memory, waiting_since=now)
    alarm = _alarm(settings, sample, memory, now)
    if now - began < _window(settings) - SLACK:
        return _emergency(settings, alarm, room, memory, now) if alarm and room else (NOTHING, memory)
    percent = _percent(sample, memory)
    memory = _open_window(memory, sample, now)
    if percent > settings.busyness_max:
        return _busy(settings, percent, room, memory, now)
    if alarm and room:
        return _emergency(settings, alarm, room, memory, now)
    if sample.workers <= 1:
        return NOTHING, memory
    if percent < settings.busyness_min:
        return _idle(settings, percent, sample, memory, now)
    memory = replace(memory, calm=memory.calm + 1, emergency=max(0, memory.emergency - 1))
    if memory.calm >= CALM:
        return NOTHING, _rewind(settings, memory, now)
    return NOTHING, replace(memory, not_before=memory.not_before + _window(settings))


def added(settings: Cheaper, memory: Memory, now: float) -> tuple[tuple[str, ...], Memory]:
    """Workers were added for another reason, perhaps several times in this window: what can be learned from that is
    learned once. Returns what is to be said of the multiplier."""
    if memory.began is None:
        return (), memory
    also, memory = _learn(settings, memory, now) if memory.ended_last else ((), memory)
    return also, _rewind(settings, replace(memory, ended_last=False, calm=0), now)


def _window(settings: Cheaper) -> int:
    return settings.overload or 1


def _open_window(memory: Memory, sample: Sample, now: float) -> Memory:
    return replace(memory, began=now, busy_seconds=sample.busy_seconds, core_seconds=sample.core_seconds)


def _percent(sample: Sample, memory: Memory) -> int:
    """0 without a worker that could have been busy."""
    possible = sample.core_seconds - memory.core_seconds
    return min(100, int(100 * (sample.busy_seconds - memory.busy_seconds) / possible)) if possible > 0 else 0


def _rewind(settings: Cheaper, memory: Memory, now: float) -> Memory:
    """The wait for the end of a worker begins anew."""
    multiplier = settings.backlog_multiplier if memory.emergency else memory.multiplier
    return replace(memory, not_before=now + _window(settings) * multiplier)


def _relax(settings: Cheaper, memory: Memory) -> tuple[tuple[str, ...], Memory]:
    """It went well: the wait is shortened again, if it was ever made longer."""
    if memory.multiplier <= settings.multiplier:
        return (), memory
    multiplier = memory.multiplier - 1
    return (f"[busyness] decreasing cheaper multiplier to {multiplier}",), replace(memory, multiplier=multiplier)


def _learn(settings: Cheaper, memory: Memory, now: float) -> tuple[tuple[str, ...], Memory]:
    """Workers had to be added. Was the last one that ended missing?"""
    if memory.ended_at is None or int((now - memory.ended_at) / _window(settings)) > memory.multiplier:
        return _relax(settings, memory)
    multiplier = memory.multiplier + settings.penalty
    text = f"[busyness] respawned too fast, increasing cheaper multiplier to {multiplier} (+{settings.penalty})"
    return (text,), replace(memory, multiplier=multiplier)


def _busy(settings: Cheaper, percent: int, room: int, memory: Memory, now: float) -> tuple[Decision, Memory]:
    found = f"[busyness] {_window(settings)}s average busyness is at {percent}%"
    change = min(settings.step, room)
    if not change:
        return Decision(0, f"{found} but no worker can be added"), replace(memory, calm=0)
    also, memory = _learn(settings, memory, now)
    memory = _rewind(settings, replace(memory, ended_last=False, calm=0), now)
    return Decision(change, f"{found}, will spawn {change} new worker(s)", also), memory


def _idle(settings: Cheaper, percent: int, sample: Sample, memory: Memory, now: float) -> tuple[Decision, Memory]:
    memory = replace(memory, calm=0)
    found = f"[busyness] {_window(settings)}s average busyness is at {percent}%"
    if sample.workers <= settings.minimum:
        return NOTHING, memory
    if now < memory.not_before - SLACK:
        return Decision(
            0, f"{found}, need to wait {memory.not_before - now:.0f} more second(s) to cheap worker"
        ), memory
    also, memory = _relax(settings, memory) if memory.ended_last else ((), memory)
    memory = _rewind(settings, memory, now)
    memory = replace(memory, ended_at=now, ended_last=True, emergency=max(0, memory.emergency - 1))
    return Decision(-1, f"{found}, cheap one of {sample.workers} running workers", also), memory


def _alarm(settings: Cheaper, sample: Sample, memory: Memory, now: float) -> str:
    """What makes it an emergency, or ""."""
    if sample.waiting > settings.backlog_alert:
        return f"{sample.waiting} requests in listen queue"
    if memory.waiting_since is not None and now - memory.waiting_since >= settings.backlog_nonzero:
        return f"the listen queue was not empty for {now - memory.waiting_since:.0f} s"
    return ""


def _emergency(settings: Cheaper, alarm: str, room: int, memory: Memory, now: float) -> tuple[Decision, Memory]:
    change = min(settings.backlog_step, room)
    memory = replace(memory, multiplier=settings.multiplier, ended_last=False)
    if memory.waiting_since is not None and now - memory.waiting_since >= settings.backlog_nonzero:
        memory = replace(memory, waiting_since=now)
    # The wait begins anew before these count: the first of them doesn't shorten it, as in uWSGI.
    memory = _rewind(settings, memory, now)
    memory = replace(memory, emergency=memory.emergency + change)
    return Decision(change, f"[busyness] {alarm}, spawning {change} emergency worker(s)"), memory
