"""What should happen to the zygote and its workers: events in, effects out, nothing else.

Theory of operation

    slot     EMPTY --Fork--> ASKED --Forked--> STARTING --WorkerReady--> READY
               ^                                                           |
               +------------- WorkerGone (from any phase) <--- LEAVING <---+ Retire

A slot is registered before its worker is spawned, so a fork that fails and a worker that dies at once end in the same
place. (A start that hangs isn't noticed yet.) A worker is replaced as soon as it is gone, unless it died young again
and again: then its slot waits 1, 2, 4 ... 30 seconds, and the other slots don't.

Stopping. Gracefully: the door is closed, what runs and what waits is finished (workers are still replaced
meanwhile, since somebody has to), then all workers are sent away; after the mercy they are killed. Fast: the
waiting are refused, the workers sent away at once and killed after a second.

Only the beginning is fatal: when the first zygote ends without an application under `need-app` (exit code 22, as
uWSGI's), or ends by itself. Once a worker has served, everything is tried again for ever.

`handle` is the only door. It reads no clock (now is seconds, monotonic) and touches nothing; `wake_at` says
when it wants to be called with a Tick.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from wsgimaster.errors import EXIT_NO_APP

# Deaths within this many seconds of becoming ready, or before it, count as a crash loop.
YOUNG = 1.0
LONGEST_BACKOFF = 30.0
FAST_MERCY = 1.0
MAX_ASKED = 32  # forks that the zygote is asked for at a time: its socket holds some hundreds


class Phase(Enum):
    EMPTY = auto()
    ASKED = auto()
    STARTING = auto()
    READY = auto()
    LEAVING = auto()


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.EMPTY: frozenset({Phase.ASKED}),
    # READY can overtake Forked: they come over different sockets
    Phase.ASKED: frozenset({Phase.STARTING, Phase.READY, Phase.LEAVING, Phase.EMPTY}),
    Phase.STARTING: frozenset({Phase.READY, Phase.LEAVING, Phase.EMPTY}),
    Phase.READY: frozenset({Phase.LEAVING, Phase.EMPTY}),
    Phase.LEAVING: frozenset({Phase.EMPTY}),
}


# ---- what happened ----


@dataclass(frozen=True, slots=True)
class ZygoteLoaded:
    pass


@dataclass(frozen=True, slots=True)
class ZygoteGone:
    status: int  # exit code, or minus the signal


@dataclass(frozen=True, slots=True)
class Forked:
    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class ForkFailed:
    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    slot: int


@dataclass(frozen=True, slots=True)
class WorkerBroken:
    """It runs, but can't be given requests any more."""

    slot: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    slot: int
    status: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    fast: bool


@dataclass(frozen=True, slots=True)
class Tick:
    work_left: int  # requests that run, wait or are being read; clients that are being drained


Event = ZygoteLoaded | ZygoteGone | Forked | ForkFailed | WorkerReady | WorkerBroken | WorkerGone | StopAsked | Tick


# ---- what to do ----


@dataclass(frozen=True, slots=True)
class StartZygote:
    pass


@dataclass(frozen=True, slots=True)
class Fork:
    slot: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Close the slot's channels: what its worker hadn't begun goes to others."""

    slot: int


@dataclass(frozen=True, slots=True)
class Retire:
    slot: int


@dataclass(frozen=True, slots=True)
class Kill:
    slot: int


@dataclass(frozen=True, slots=True)
class CloseDoor:
    pass


@dataclass(frozen=True, slots=True)
class RefuseWaiting:
    pass


@dataclass(frozen=True, slots=True)
class Say:
    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    code: int


Effect = StartZygote | Fork | Forget | Retire | Kill | CloseDoor | RefuseWaiting | Say | Exit


@dataclass(slots=True)
class Slot:
    number: int
    phase: Phase = Phase.EMPTY
    pid: int = 0
    ready_at: float | None = None
    kill_at: float | None = None  # LEAVING, while the rest goes on: the end of its mercy
    crashes: int = 0  # young deaths in a row
    not_before: float = 0.0

    def move(self, phase: Phase) -> None:
        if phase not in TRANSITIONS[self.phase]:
            raise ValueError(f"worker {self.number}: {self.phase.name} can't become {phase.name}")
        self.phase = phase


class Stopping(Enum):
    NO = auto()
    FINISHING = auto()  # the door is closed, requests are being served
    LEAVING = auto()  # the workers have been sent away


def backoff(crashes: int) -> float:
    """Seconds before the next try, after this many young deaths in a row: 0, 1, 2, 4, 8, 16, 30, 30 ..."""
    return 0.0 if crashes <= 1 else min(LONGEST_BACKOFF, 2.0 ** min(crashes - 2, 10))


@dataclass(slots=True)
class Overseer:
    """processes, cores per process; required: `need-app`; mercy: `worker-reload-mercy`, seconds."""

    processes: int
    threads: int
    required: bool
    mercy: float
    slots: list[Slot] = field(default_factory=list)
    zygote_loaded: bool = False
    zygote_running: bool = False
    zygote_loaded_at: float | None = None
    zygote_crashes: int = 0
    zygote_not_before: float = 0.0
    ever_ready: bool = False
    stopping: Stopping = Stopping.NO
    kill_at: float | None = None
    exiting: bool = False

    def __post_init__(self) -> None:
        self.slots = [Slot(number) for number in range(1, self.processes + 1)]

    def start(self) -> list[Effect]:
        self.zygote_running = True
        return [StartZygote()]

    def handle(self, event: Event, now: float) -> list[Effect]:
        """The effects, in the order in which they are to be carried out; none after an Exit."""
        if self.exiting:
            return []
        effects = self._decide(event, now)
        self.exiting = any(isinstance(effect, Exit) for effect in effects)
        return effects

    def _decide(self, event: Event, now: float) -> list[Effect]:
        match event:
            case ZygoteLoaded():
                self.zygote_loaded, self.zygote_loaded_at = True, now
                return self._fill(now)
            case ZygoteGone(status):
                return self._zygote_gone(status, now)
            case Forked(slot, pid):
                return self._forked(self._slot(slot), pid, now)
            case ForkFailed(slot, why):
                return self._fork_failed(self._slot(slot), why, now)
            case WorkerReady(slot):
                return self._ready(self._slot(slot), now)
            case WorkerBroken(slot):
                return self._broken(self._slot(slot), now)
            case WorkerGone(slot, status):
                return self._gone(self._slot(slot), status, now)
            case StopAsked(fast):
                return self._stop(fast, now)
            case Tick(work_left):
                return self._tick(work_left, now)

    @property
    def wake_at(self) -> float | None:
        """When the next Tick is due without any other event, in seconds; None: never."""
        if self.exiting:
            return None
        due = [slot.not_before for slot in self.slots if slot.phase is Phase.EMPTY and self.zygote_loaded]
        if self._asked() >= MAX_ASKED:
            due = []  # the next report of a fork goes on
        if self.stopping is Stopping.LEAVING:
            due = []
        elif not self.zygote_running:
            due.append(self.zygote_not_before)
        due += [when for when in (self.kill_at, *(slot.kill_at for slot in self.slots)) if when is not None]
        return min(due, default=None)

    def _slot(self, number: int) -> Slot:
        return self.slots[number - 1]

    def _fill(self, now: float) -> list[Effect]:
        """Ask for a worker in every empty slot whose time has come."""
        if not self.zygote_loaded or self.stopping is Stopping.LEAVING:
            return []
        due = [slot for slot in self.slots if slot.phase is Phase.EMPTY and slot.not_before <= now]
        due = due[: max(0, MAX_ASKED - self._asked())]
        for slot in due:
            slot.move(Phase.ASKED)
            slot.pid, slot.ready_at, slot.kill_at = 0, None, None
        return [Fork(slot.number) for slot in due]

    def _asked(self) -> int:
        return sum(slot.phase is Phase.ASKED for slot in self.slots)

    def _zygote_gone(self, status: int, now: float) -> list[Effect]:
        self.zygote_running = self.zygote_loaded = False
        # Workers that it never told us of; one that exists all the same sees its channel end, and leaves.
        unknown = [slot for slot in self.slots if slot.phase is not Phase.EMPTY and not slot.pid]
        for slot in unknown:
            slot.move(Phase.EMPTY)
        effects: list[Effect] = [Forget(slot.number) for slot in unknown]
        if self.stopping is Stopping.LEAVING:
            return effects + self._exit_when_empty()
        if not self.ever_ready:
            what = "ended without an application" if status == EXIT_NO_APP else f"died ({explain(status)})"
            return [*effects, Say(f"the process that loads the application {what}; exiting"), Exit(_start_code(status))]
        lived = self.zygote_loaded_at is not None and now - self.zygote_loaded_at >= LONGEST_BACKOFF
        self.zygote_crashes = 1 if lived else self.zygote_crashes + 1
        self.zygote_loaded_at = None
        wait = backoff(self.zygote_crashes + 1)
        self.zygote_not_before = now + wait
        return [*effects, Say(f"the zygote died ({explain(status)}); another one starts in {wait:g} s")]

    def _forked(self, slot: Slot, pid: int, now: float) -> list[Effect]:
        slot.pid = pid
        if slot.phase is Phase.ASKED:
            slot.move(Phase.STARTING)
        spawned: list[Effect] = [Say(f"spawned uWSGI worker {slot.number} (pid: {pid}, cores: {self.threads})")]
        return spawned + self._fill(now)

    def _fork_failed(self, slot: Slot, why: str, now: float) -> list[Effect]:
        if slot.phase is Phase.EMPTY:
            return []  # forgotten together with its zygote
        slot.move(Phase.EMPTY)
        slot.crashes += 1
        slot.not_before = now + max(1.0, backoff(slot.crashes))
        return [Forget(slot.number), Say(f"worker {slot.number} could not be forked: {why}; trying again")]

    def _ready(self, slot: Slot, now: float) -> list[Effect]:
        self.ever_ready = True
        slot.ready_at = now
        if slot.phase in (Phase.ASKED, Phase.STARTING):
            slot.move(Phase.READY)
        return []

    def _broken(self, slot: Slot, now: float) -> list[Effect]:
        """Its other cores finish what they have, within the mercy."""
        if slot.phase in (Phase.EMPTY, Phase.LEAVING):
            return []
        slot.move(Phase.LEAVING)
        slot.kill_at = now + self.mercy
        return [
            Say(f"worker {slot.number} (pid: {slot.pid}) has closed its channel; replacing it"),
            Retire(slot.number),
        ]

    def _gone(self, slot: Slot, status: int, now: float) -> list[Effect]:
        expected = slot.phase is Phase.LEAVING
        young = slot.ready_at is None or now - slot.ready_at < YOUNG
        pid, slot.kill_at = slot.pid, None
        slot.move(Phase.EMPTY)
        if expected or self.stopping is Stopping.LEAVING:
            buried: list[Effect] = [Forget(slot.number), Say(f"worker {slot.number} buried (pid: {pid})")]
            return buried + (self._exit_when_empty() or self._fill(now))
        slot.crashes = slot.crashes + 1 if young else 0
        slot.not_before = now + backoff(slot.crashes)
        effects: list[Effect] = [Forget(slot.number), Say(damn(slot.number, pid, status))]
        if status == EXIT_NO_APP and self.required and not self.ever_ready:
            return [*effects, Exit(EXIT_NO_APP)]
        if slot.not_before > now:
            wait = slot.not_before - now
            effects.append(Say(f"worker {slot.number} respawning too fast !!! waiting {wait:g} s for this slot"))
        return effects + self._fill(now)

    def _stop(self, fast: bool, now: float) -> list[Effect]:
        fast = fast or self.stopping is not Stopping.NO  # asking twice means now
        effects: list[Effect] = [CloseDoor()] if self.stopping is Stopping.NO else []
        if not fast:
            self.stopping = Stopping.FINISHING
            self.kill_at = now + self.mercy
            return effects
        self.kill_at = min(now + FAST_MERCY, self.kill_at or now + FAST_MERCY)
        return [*effects, RefuseWaiting(), *self._send_away()]

    def _tick(self, work_left: int, now: float) -> list[Effect]:
        if self.kill_at is not None and now >= self.kill_at:
            return self._kill(work_left)
        if self.stopping is Stopping.FINISHING and work_left == 0:
            return self._send_away()
        effects: list[Effect] = []
        for slot in self.slots:
            if slot.kill_at is not None and now >= slot.kill_at:
                slot.kill_at = None
                effects.append(Kill(slot.number))
        if not self.zygote_running and self.stopping is not Stopping.LEAVING and self.zygote_not_before <= now:
            self.zygote_running = True
            effects.append(StartZygote())
        return effects + self._fill(now)

    def _send_away(self) -> list[Effect]:
        self.stopping = Stopping.LEAVING
        leaving = [slot for slot in self.slots if slot.phase not in (Phase.EMPTY, Phase.LEAVING)]
        for slot in leaving:
            slot.move(Phase.LEAVING)
        return [Retire(slot.number) for slot in leaving] or self._exit_when_empty()

    def _kill(self, work_left: int) -> list[Effect]:
        self.kill_at = None
        effects: list[Effect] = []
        if self.stopping is Stopping.FINISHING:
            effects += [Say(f"the time is up: {work_left} requests are cut"), RefuseWaiting(), *self._send_away()]
        leaving = [slot for slot in self.slots if slot.phase is Phase.LEAVING]
        for slot in leaving:
            if not slot.pid:  # asked of a zygote that doesn't answer: nobody there to wait for
                slot.move(Phase.EMPTY)
        effects += [Kill(slot.number) if slot.pid else Forget(slot.number) for slot in leaving]
        return effects + self._exit_when_empty()

    def _exit_when_empty(self) -> list[Effect]:
        """The end of stopping."""
        if self.stopping is Stopping.LEAVING and all(slot.phase is Phase.EMPTY for slot in self.slots):
            return [Exit(0)]
        return []


def _start_code(status: int) -> int:
    return EXIT_NO_APP if status == EXIT_NO_APP else 1


def explain(status: int) -> str:
    """An exit code, or minus a signal, in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit code {status}"


def damn(number: int, pid: int, status: int) -> str:
    """uWSGI's line for a worker's unexpected death: people and log alarms grep for it."""
    how = f", killed by signal {-status}" if status < 0 else ""
    return f"DAMN ! worker {number} (pid: {pid}) died{how} :( trying respawn ..."
