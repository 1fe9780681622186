"""What should happen to the zygote and its workers: events in, effects out, nothing else.

Theory of operation

    post     a worker's number, 1 to `processes`: somebody has to be serving there
    slot     a place for a worker process; there are more than twice as many, so that a replacement can be ready first

    slot     EMPTY --Fork--> ASKED --Forked--> STARTING --WorkerReady--> READY
               ^                                                           |
               +------------- WorkerGone (from any phase) <--- LEAVING <---+ Retire

A slot is registered before its worker is spawned, so a fork that fails and a worker that dies at once end in the same
place. A worker that gives no sign of life within `spawn-timeout` after it was asked for hangs in the fork and is
killed (a lock that another thread of the zygote held); a zygote that doesn't even fork is killed itself.

A post is filled as soon as nobody is on it: a worker that is LEAVING isn't any more. Where workers die young again and
again, the post waits 1, 2, 4 ... 30 seconds, and the other posts don't. While nobody serves at all, one of them waits
no longer than a second: clients are waiting as well.

Replacing. A worker that is worn (recycling.py, or it has lost a descriptor) stays READY until its successor is
READY in another slot; only then it is sent away. At most `budget` posts do that at a time, memory excepted. A successor
that never becomes ready changes nothing: it is tried again after the post's back-off.

Scaling. How many workers there should be is decided elsewhere (scaling/). A post that isn't to be filled is *off*: the
lowest posts are filled first, and only a worker that had nothing to do, and can get nothing to do any more, is told to
leave its post (Cheaped).

Stopping. Gracefully: the door is closed, what runs and what waits is finished (workers are still replaced when they
die, since somebody has to), then all workers are sent away; after the mercy they are killed. Fast: the
waiting are refused, the workers sent away at once and killed after a second.

Only the beginning is fatal: when the first zygote ends without an application under `need-app` (exit code 22, as
uWSGI's), or ends by itself. Once a worker has served, everything is tried again for ever.

`handle` is the only door. It reads no clock (now is seconds, monotonic) and touches nothing; `wake_at` says
when it wants to be called with a Tick.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from wsgimaster import recycling
from wsgimaster.errors import EXIT_NO_APP
from wsgimaster.recycling import Figures, Limits, Reason, Urgency
from wsgimaster.settings import Recycling

# Deaths within this many seconds of becoming ready, or before it, without a request served, count as a crash loop.
YOUNG = 1.0
LONGEST_BACKOFF = 30.0
NOBODY_SERVES = 1.0  # the longest back-off then
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
    chance: float  # uniform in [0, 1): spreads the limits of workers that are born together


@dataclass(frozen=True, slots=True)
class ForkFailed:
    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class WorkerAlive:
    """It is through the fork. What follows (lazy-apps: loading the application) may take as long as it likes."""

    slot: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    slot: int


@dataclass(frozen=True, slots=True)
class WorkerBroken:
    """It runs, but can't be given requests any more."""

    slot: int


@dataclass(frozen=True, slots=True)
class WorkerWorn:
    """It serves, but a fresh one would do it better. why: "worker 3 " and this is a sentence."""

    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class WorkerStuck:
    """A request of its has passed its deadline: it gets no more, and will be killed (harakiri.py)."""

    slot: int


@dataclass(frozen=True, slots=True)
class Looked:
    """The figures of all workers that serve."""

    figures: Mapping[int, Figures]  # by slot


@dataclass(frozen=True, slots=True)
class MoreWanted:
    """So many more workers than there are posts that are to be filled."""

    count: int


@dataclass(frozen=True, slots=True)
class Cheaped:
    """The worker is idle, gets no request any more, and isn't to be replaced."""

    slot: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    slot: int
    status: int
    served: int  # requests


@dataclass(frozen=True, slots=True)
class StopAsked:
    fast: bool


@dataclass(frozen=True, slots=True)
class Tick:
    work_left: int  # requests that run, wait or are being read; clients that are being drained


Event = (
    ZygoteLoaded
    | ZygoteGone
    | Forked
    | ForkFailed
    | WorkerAlive
    | WorkerReady
    | WorkerBroken
    | WorkerWorn
    | WorkerStuck
    | MoreWanted
    | Cheaped
    | WorkerGone
    | Looked
    | StopAsked
    | Tick
)


# ---- what to do ----


@dataclass(frozen=True, slots=True)
class StartZygote:
    pass


@dataclass(frozen=True, slots=True)
class Fork:
    slot: int
    number: int


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
class KillZygote:
    pass


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


Effect = StartZygote | Fork | Forget | Retire | Kill | KillZygote | CloseDoor | RefuseWaiting | Say | Exit


@dataclass(slots=True)
class Slot:
    place: int
    number: int = 0  # of the worker that is or was in it
    phase: Phase = Phase.EMPTY
    pid: int = 0
    alive: bool = False  # the worker has said so
    alive_by: float | None = None  # when that and the zygote's report of the fork are due; None once both are there
    ready_at: float | None = None
    kill_at: float | None = None  # LEAVING, while the rest goes on: the end of its mercy
    limits: Limits = recycling.NO_LIMITS
    worn: Reason | None = None  # READY: why it is to be replaced
    stuck: bool = False
    cheaped: bool = False  # LEAVING: it was one too many

    def move(self, phase: Phase) -> None:
        if phase not in TRANSITIONS[self.phase]:
            raise ValueError(f"slot {self.place}: {self.phase.name} can't become {phase.name}")
        self.phase = phase


@dataclass(slots=True)
class Post:
    number: int
    off: bool = False  # it isn't to be filled
    crashes: int = 0  # young deaths in a row
    not_before: float = 0.0


class Stopping(Enum):
    NO = auto()
    FINISHING = auto()  # the door is closed, requests are being served
    LEAVING = auto()  # the workers have been sent away


def slots_for(processes: int) -> int:
    """Twice as many as workers, for their replacements; and two, since those may have to be replaced as well."""
    return 2 * processes + 2


def backoff(crashes: int) -> float:
    """Seconds before the next try, after this many young deaths in a row: 0, 1, 2, 4, 8, 16, 30, 30 ..."""
    return 0.0 if crashes <= 1 else min(LONGEST_BACKOFF, 2.0 ** min(crashes - 2, 10))


@dataclass(slots=True)
class Overseer:
    """processes; initial: so many of them are wanted at first; threads: cores per process; required: `need-app`;
    mercy: `worker-reload-mercy`, seconds."""

    processes: int
    initial: int
    threads: int
    required: bool
    mercy: float
    spawn_timeout: float
    recycling: Recycling
    slots: list[Slot] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    wanted: int = 0  # workers: the posts that aren't off
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
        self.slots = [Slot(place) for place in range(1, slots_for(self.processes) + 1)]
        self.posts = [Post(number, off=number > self.initial) for number in range(1, self.processes + 1)]
        self.wanted = self.initial

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
            case Forked(slot, pid, chance):
                return self._forked(self._slot(slot), pid, chance, now)
            case ForkFailed(slot, why):
                return self._fork_failed(self._slot(slot), why, now)
            case WorkerAlive(slot):
                self._alive(self._slot(slot))
                return []
            case WorkerReady(slot):
                return self._ready(self._slot(slot), now)
            case WorkerBroken(slot):
                return self._broken(self._slot(slot), now)
            case WorkerWorn(slot, why):
                return self._worn(self._slot(slot), Reason(why, Urgency.NOW)) + self._fill(now)
            case WorkerStuck(slot):
                return self._stuck(self._slot(slot), now)
            case MoreWanted(count):
                return self._more(count, now)
            case Cheaped(slot):
                return self._cheaped(self._slot(slot), now)
            case WorkerGone(slot, status, served):
                return self._gone(self._slot(slot), status, served, now)
            case Looked(figures):
                return self._looked(figures, now)
            case StopAsked(fast):
                return self._stop(fast, now)
            case Tick(work_left):
                return self._tick(work_left, now)

    @property
    def wake_at(self) -> float | None:
        """When the next Tick is due without any other event, in seconds; None: never."""
        if self.exiting:
            return None
        due = [] if self.stopping is Stopping.LEAVING else [post.not_before for post, _ in self._openings()]
        if self.stopping is not Stopping.LEAVING and not self.zygote_running:
            due.append(self.zygote_not_before)
        times = [self.kill_at, *(slot.kill_at for slot in self.slots), *(slot.alive_by for slot in self.slots)]
        return min(due + [when for when in times if when is not None], default=None)

    def _slot(self, place: int) -> Slot:
        return self.slots[place - 1]

    # ---- posts and who is on them ----

    def _openings(self) -> Iterator[tuple[Post, Slot]]:
        """The posts that wait for a worker, each with an empty slot: first those that nobody is on, then those whose
        worker is worn, as far as the budget goes; no more than the zygote can be asked for."""
        if not self.zygote_loaded or self.stopping is Stopping.LEAVING:
            return
        room = MAX_ASKED - sum(slot.phase is Phase.ASKED for slot in self.slots)
        coming = {slot.number for slot in self.slots if slot.phase in (Phase.ASKED, Phase.STARTING)}
        serving = {slot.number: slot for slot in self.slots if slot.phase is Phase.READY}
        free = [slot for slot in self.slots if slot.phase is Phase.EMPTY]
        budget = recycling.budget(self.recycling, self.processes) - len(coming & serving.keys())
        taken = coming | serving.keys()
        vacant = [post for post in self.posts if not post.off and post.number not in taken]
        worn = []
        if self.stopping is Stopping.NO:
            for number in sorted(serving.keys() - coming):
                reason = serving[number].worn
                if reason is None or (reason.urgency is Urgency.BUDGET and budget <= 0):
                    continue
                budget -= 1
                worn.append(self.posts[number - 1])
        for post in (vacant + worn)[: min(max(0, room), len(free))]:
            own = next((slot for slot in free if slot.place == post.number), free[0])
            free.remove(own)
            yield post, own

    def _fill(self, now: float) -> list[Effect]:
        """Ask for a worker wherever one is wanted and its time has come."""
        due = [(post, slot) for post, slot in self._openings() if post.not_before <= now]
        for post, slot in due:
            slot.move(Phase.ASKED)
            slot.number, slot.pid, slot.ready_at, slot.kill_at = post.number, 0, None, None
            slot.worn, slot.stuck, slot.cheaped = None, False, False
            slot.alive, slot.alive_by = False, now + self.spawn_timeout
        return [Fork(slot.place, slot.number) for _, slot in due]

    def _leave(self, slot: Slot, now: float) -> list[Effect]:
        """No more requests; what runs is finished, within the mercy."""
        slot.move(Phase.LEAVING)
        slot.kill_at = now + self.mercy
        return [Retire(slot.place)]

    def _somebody_soon(self, now: float) -> None:
        """Shorten the shortest back-off if nobody serves and nobody is coming."""
        if any(slot.phase in (Phase.ASKED, Phase.STARTING, Phase.READY) for slot in self.slots):
            return
        first = min((post for post in self.posts if not post.off), key=lambda post: post.not_before, default=None)
        if first is not None:
            first.not_before = min(first.not_before, now + NOBODY_SERVES)

    def _empty(self, slot: Slot) -> None:
        slot.move(Phase.EMPTY)
        slot.kill_at = slot.alive_by = None

    def _zygote_gone(self, status: int, now: float) -> list[Effect]:
        self.zygote_running = self.zygote_loaded = False
        # Workers that it never told us of; one that exists all the same sees its channel end, and leaves.
        unknown = [slot for slot in self.slots if slot.phase is not Phase.EMPTY and not slot.pid]
        for slot in unknown:
            self._empty(slot)
        effects: list[Effect] = [Forget(slot.place) for slot in unknown]
        if self.stopping is Stopping.LEAVING:
            return effects + self._exit_when_empty()
        if not self.ever_ready:
            what = "ended without an application" if status == EXIT_NO_APP else f"died ({explain(status)})"
            return [*effects, Say(f"the process that loads the application {what}; exiting"), Exit(_start_code(status))]
        lived = self.zygote_loaded_at is not None and now - self.zygote_loaded_at >= YOUNG
        self.zygote_crashes = 0 if lived else self.zygote_crashes + 1
        self.zygote_loaded_at = None
        wait = backoff(self.zygote_crashes + 1)
        if not any(slot.phase is Phase.READY for slot in self.slots):
            wait = min(wait, NOBODY_SERVES)
        self.zygote_not_before = now + wait
        return [*effects, Say(f"the zygote died ({explain(status)}); another one starts in {wait:g} s")]

    def _forked(self, slot: Slot, pid: int, chance: float, now: float) -> list[Effect]:
        slot.pid, slot.limits = pid, recycling.draw(self.recycling, self.processes, chance)
        if slot.phase is Phase.ASKED:
            slot.move(Phase.STARTING)
        if slot.alive:
            slot.alive_by = None
        spawned: list[Effect] = [Say(f"spawned uWSGI worker {slot.number} (pid: {pid}, cores: {self.threads})")]
        return spawned + self._fill(now)

    def _fork_failed(self, slot: Slot, why: str, now: float) -> list[Effect]:
        if slot.phase is Phase.EMPTY:
            return []  # forgotten together with its zygote
        post = self.posts[slot.number - 1]
        self._empty(slot)
        post.crashes += 1
        post.not_before = now + max(1.0, backoff(post.crashes))
        self._somebody_soon(now)
        said = Say(f"worker {post.number} could not be forked: {why}; trying again")
        return [Forget(slot.place), said, *self._exit_when_empty()]

    def _alive(self, slot: Slot) -> None:
        slot.alive = True
        if slot.pid:  # or the zygote may hang in the fork although the child is through it
            slot.alive_by = None

    def _ready(self, slot: Slot, now: float) -> list[Effect]:
        self.ever_ready = True
        slot.ready_at = now
        self._alive(slot)
        if slot.phase not in (Phase.ASKED, Phase.STARTING):
            return []
        slot.move(Phase.READY)
        effects: list[Effect] = []
        for old in self.slots:
            if old.number == slot.number and old is not slot and old.phase is Phase.READY:
                effects += [Say(f"...The work of process {old.pid} is done. Seeya!"), *self._leave(old, now)]
        return effects + (self._fill(now) if effects else [])

    def _broken(self, slot: Slot, now: float) -> list[Effect]:
        """Its other cores finish what they have, within the mercy."""
        if slot.phase in (Phase.EMPTY, Phase.LEAVING):
            return []
        said: list[Effect] = [Say(f"worker {slot.number} (pid: {slot.pid}) has closed its channel; replacing it")]
        return said + self._leave(slot, now) + self._fill(now)

    def _stuck(self, slot: Slot, now: float) -> list[Effect]:
        slot.stuck = True
        if slot.phase in (Phase.EMPTY, Phase.LEAVING):
            return []
        return self._leave(slot, now) + self._fill(now)

    # ---- scaling ----

    def crew(self) -> tuple[int, int]:
        """(workers that serve, workers that are coming where nobody serves yet)."""
        serving = {slot.number for slot in self.slots if slot.phase is Phase.READY}
        coming = {slot.number for slot in self.slots if slot.phase in (Phase.ASKED, Phase.STARTING)}
        return len(serving), len(coming - serving)

    def spare(self) -> list[int]:
        """The slots of workers that could end, the first to end first: those that are worn anyway, then the highest
        numbers. Not those whose replacement is being started."""
        coming = {slot.number for slot in self.slots if slot.phase in (Phase.ASKED, Phase.STARTING)}
        serving = [slot for slot in self.slots if slot.phase is Phase.READY and slot.number not in coming]
        return [slot.place for slot in sorted(serving, key=lambda slot: (slot.worn is None, -slot.number))]

    def _more(self, count: int, now: float) -> list[Effect]:
        if self.stopping is Stopping.LEAVING:
            return []
        for post in [post for post in self.posts if post.off][:count]:
            post.off = False
            self.wanted += 1
        return self._fill(now)

    def _cheaped(self, slot: Slot, now: float) -> list[Effect]:
        if slot.phase is not Phase.READY:
            return []
        slot.cheaped = self.posts[slot.number - 1].off = True
        self.wanted -= 1
        return self._leave(slot, now)

    # ---- recycling ----

    def _looked(self, figures: Mapping[int, Figures], now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.stopping is not Stopping.NO:
            return effects
        for place, found in figures.items():
            slot = self._slot(place)
            if slot.phase is Phase.READY and slot.ready_at is not None and slot.pid:
                reason = recycling.judge(self.recycling, slot.limits, found, now - slot.ready_at)
                if reason is not None:
                    effects += self._worn(slot, reason)
        return effects + self._fill(now)

    def _worn(self, slot: Slot, reason: Reason) -> list[Effect]:
        """Remember the first reason; only a more urgent one counts after it."""
        if slot.phase is not Phase.READY:
            return []
        if slot.worn is not None and slot.worn.urgency >= reason.urgency:
            return []
        slot.worn = reason
        if reason.urgency is Urgency.KILL:
            return [
                Say(f"*** EVIL RELOAD ON WORKER {slot.number} {reason.text} (pid: {slot.pid}) ***"),
                Kill(slot.place),
            ]
        return [Say(f"worker {slot.number} {reason.text}; it leaves when its replacement is ready (pid: {slot.pid})")]

    # ---- ends ----

    def _gone(self, slot: Slot, status: int, served: int, now: float) -> list[Effect]:
        expected = slot.phase is Phase.LEAVING or self.stopping is Stopping.LEAVING
        young = not served and (slot.ready_at is None or now - slot.ready_at < YOUNG)
        post, pid = self.posts[slot.number - 1], slot.pid
        if not young:
            post.crashes = 0
        self._empty(slot)
        effects: list[Effect] = [Forget(slot.place)]
        if expected:
            killed = slot.stuck and status < 0
            line = damn(post.number, pid, status) if killed else buried(post.number, pid, status, slot.cheaped)
            effects.append(Say(line))
            return effects + (self._exit_when_empty() or self._fill(now))
        post.crashes += young
        post.not_before = now + backoff(post.crashes)
        self._somebody_soon(now)
        effects.append(Say(damn(post.number, pid, status)))
        if status == EXIT_NO_APP and self.required and not self.ever_ready:
            return [*effects, Exit(EXIT_NO_APP)]
        if post.not_before > now:
            wait = post.not_before - now
            effects.append(Say(f"worker {post.number} respawning too fast !!! waiting {wait:g} s for this slot"))
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
            effects += self._out_of_time(slot, now)
        if not self.zygote_running and self.stopping is not Stopping.LEAVING and self.zygote_not_before <= now:
            self.zygote_running = True
            effects.append(StartZygote())
        return effects + self._fill(now)

    def _out_of_time(self, slot: Slot, now: float) -> list[Effect]:
        if slot.kill_at is not None and now >= slot.kill_at:
            slot.kill_at = None
            return [Say(no_mercy(slot)), Kill(slot.place)]
        if slot.alive_by is None or now < slot.alive_by:
            return []
        slot.alive_by = None
        waited = f"within {self.spawn_timeout:g} s (spawn-timeout)"
        if not slot.pid:
            return [Say(f"the zygote has not forked worker {slot.number} {waited}; killing the zygote"), KillZygote()]
        return [
            Say(
                f"worker {slot.number} (pid: {slot.pid}) gave no sign of life {waited}, killing it: does a thread"
                f" that was running before the fork hold a lock? (lazy-apps = true starts it after the fork)"
            ),
            Kill(slot.place),
        ]

    def _send_away(self) -> list[Effect]:
        self.stopping = Stopping.LEAVING
        leaving = [slot for slot in self.slots if slot.phase not in (Phase.EMPTY, Phase.LEAVING)]
        for slot in leaving:
            slot.move(Phase.LEAVING)
            slot.alive_by = None
        return [Retire(slot.place) for slot in leaving] or self._exit_when_empty()

    def _kill(self, work_left: int) -> list[Effect]:
        self.kill_at = None
        effects: list[Effect] = []
        if self.stopping is Stopping.FINISHING:
            effects += [Say(f"the time is up: {work_left} requests are cut"), RefuseWaiting(), *self._send_away()]
        for slot in self.slots:
            if slot.phase is Phase.LEAVING and slot.pid:
                slot.kill_at = None
                effects += [Say(no_mercy(slot)), Kill(slot.place)]
            elif slot.phase is Phase.LEAVING:  # asked of a zygote that doesn't answer: nobody there to wait for
                self._empty(slot)
                effects.append(Forget(slot.place))
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


def buried(number: int, pid: int, status: int, cheaped: bool) -> str:
    how = f", {explain(status)}" if status else ""
    return (
        f"uWSGI worker {number} cheaped. (pid: {pid}{how})" if cheaped else f"worker {number} buried (pid: {pid}){how}"
    )


def no_mercy(slot: Slot) -> str:
    return f"worker {slot.number} (pid: {slot.pid}) is taking too much time to die...NO MERCY !!!"


def damn(number: int, pid: int, status: int) -> str:
    """uWSGI's line for a worker's unexpected death: people and log alarms grep for it."""
    how = f", killed by signal {-status}" if status < 0 else ""
    return f"DAMN ! worker {number} (pid: {pid}) died{how} :( trying respawn ..."
