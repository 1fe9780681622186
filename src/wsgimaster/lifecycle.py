"""What should happen to the zygotes and their workers: events in, effects out, nothing else (events.py has both).

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

Reloading. A generation is a zygote, the application as it loaded it, and the workers that it has forked. One generation
is the current one: it fills the posts. A reload is a *trial*: a zygote of the next generation loads the application and
forks one worker (the *proof*), in a slot beside those that serve. Until that one is ready, nothing has changed, and
whatever goes wrong ends the trial and nothing else. When it is ready, its generation becomes the current one; workers
of older ones are *stale*, and are replaced as worn ones are, `surge` at a time. A zygote that died is followed by
another trial: what is on disk may be half a deploy by now, so the old workers serve on until it has proved itself.

    asked during a trial       the trial is given up, another begins: it loads what is on disk now
    asked during a switch      another trial begins; if it succeeds, all others are stale
    asked before the first application is loaded     it begins afterwards
    a stop                     ends the trial; stale workers leave with the others

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
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from wsgimaster import recycling
from wsgimaster.errors import EXIT_CHECK_FAILED, EXIT_HOOK_FAILED, EXIT_NO_APP
from wsgimaster.events import (
    Cheaped,
    CloseDoor,
    Effect,
    Event,
    Exit,
    Forget,
    Fork,
    Forked,
    ForkFailed,
    Kill,
    KillZygote,
    Looked,
    MeasureRoom,
    MoreWanted,
    NobodyWanted,
    RefuseWaiting,
    Reload,
    ReloadAsked,
    ReloadEnded,
    Retire,
    RetireZygote,
    RoomFound,
    Say,
    StartZygote,
    StopAsked,
    Switch,
    Tick,
    WorkerAlive,
    WorkerBroken,
    WorkerGone,
    WorkerReady,
    WorkerStuck,
    WorkerWorn,
    ZygoteGone,
    ZygoteLoaded,
)
from wsgimaster.recycling import Figures, Limits, Reason, Urgency
from wsgimaster.settings import Settings

# Deaths within this many seconds of becoming ready, or before it, without a request served, count as a crash loop.
YOUNG = 1.0
LONGEST_BACKOFF = 30.0
NOBODY_SERVES = 1.0  # the longest back-off then
FAST_MERCY = 1.0
MAX_ASKED = 32  # forks that the zygote is asked for at a time: its socket holds some hundreds


class Phase(Enum):
    """The numbers are handed over to other versions (handover.py)."""

    EMPTY = 1
    ASKED = 2
    STARTING = 3
    READY = 4
    LEAVING = 5


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.EMPTY: frozenset({Phase.ASKED}),
    # READY can overtake Forked: they come over different sockets
    Phase.ASKED: frozenset({Phase.STARTING, Phase.READY, Phase.LEAVING, Phase.EMPTY}),
    Phase.STARTING: frozenset({Phase.READY, Phase.LEAVING, Phase.EMPTY}),
    Phase.READY: frozenset({Phase.LEAVING, Phase.EMPTY}),
    Phase.LEAVING: frozenset({Phase.EMPTY}),
}


@dataclass(slots=True)
class Slot:
    place: int
    number: int = 0  # of the worker that is or was in it
    generation: int = 0
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


@dataclass(slots=True)
class Trial:
    """A generation that isn't the current one yet."""

    generation: int
    asked: ReloadAsked
    give_up_at: float | None  # None: a zygote that had died may load for as long as it likes
    proof: int = 0  # the slot of its first worker; 0: it isn't asked for yet


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
    """settings: a reload may replace them; how many processes and threads there are doesn't change."""

    settings: Settings
    slots: list[Slot] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    wanted: int = 0  # workers: the posts that aren't off
    zygotes: dict[int, float | None] = field(default_factory=dict)  # by generation: loaded when; None: not yet
    generation: int = 1  # the current one
    newest: int = 1
    trial: Trial | None = None
    switching: ReloadAsked | None = None  # stale workers are being replaced
    surge: int = 1  # how many of them at a time
    pending: ReloadAsked | None = None  # can't begin yet
    zygote_crashes: int = 0
    zygote_not_before: float = 0.0
    ever_ready: bool = False
    stopping: Stopping = Stopping.NO
    kill_at: float | None = None
    exiting: bool = False

    def __post_init__(self) -> None:
        self.wanted = self.settings.first_workers
        self.slots = [Slot(place) for place in range(1, slots_for(self.processes) + 1)]
        self.posts = [Post(number, off=number > self.wanted) for number in range(1, self.processes + 1)]

    @property
    def processes(self) -> int:
        return self.settings.processes.processes

    def start(self) -> list[Effect]:
        self.zygotes[self.generation] = None
        return [StartZygote(self.generation, self.settings)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        """The effects, in the order in which they are to be carried out; none after an Exit."""
        if self.exiting:
            return []
        effects = self._decide(event, now)
        effects += self._end_of_switch(now)
        self.exiting = any(isinstance(effect, Exit) for effect in effects)
        return effects

    def _decide(self, event: Event, now: float) -> list[Effect]:
        match event:
            case ZygoteLoaded(generation):
                return self._zygote_loaded(generation, now)
            case ZygoteGone(generation, status):
                return self._zygote_gone(generation, status, now)
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
            case NobodyWanted():
                return self._nobody(now)
            case Cheaped(slot):
                return self._cheaped(self._slot(slot), now)
            case WorkerGone(slot, status, served):
                return self._gone(self._slot(slot), status, served, now)
            case Looked(figures):
                return self._looked(figures, now)
            case ReloadAsked():
                return self._reload(event, now)
            case RoomFound(workers):
                self.surge = max(1, workers)
                return self._fill(now)
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
        if self._zygote_missing:
            due.append(self.zygote_not_before)
        give_up_at = self.trial.give_up_at if self.trial else None
        times = [
            self.kill_at,
            give_up_at,
            *(slot.kill_at for slot in self.slots),
            *(slot.alive_by for slot in self.slots),
        ]
        return min(due + [when for when in times if when is not None], default=None)

    def _slot(self, place: int) -> Slot:
        return self.slots[place - 1]

    @property
    def _first_is_loading(self) -> bool:
        return self.zygotes.get(self.generation, 0.0) is None

    @property
    def _zygote_missing(self) -> bool:
        return self.stopping is not Stopping.LEAVING and self.trial is None and self.generation not in self.zygotes

    # ---- posts and who is on them ----

    def _openings(self) -> Iterator[tuple[Post, Slot]]:
        """The posts that wait for a worker, each with an empty slot: first those that nobody is on, then those whose
        worker is stale or worn, as far as surge and budget go; no more than the zygote can be asked for."""
        if self.zygotes.get(self.generation) is None or self.stopping is Stopping.LEAVING:
            return
        room = MAX_ASKED - sum(slot.phase is Phase.ASKED for slot in self.slots)
        coming = self._coming()
        serving = {slot.number: slot for slot in self.slots if slot.phase is Phase.READY}
        free = [slot for slot in self.slots if slot.phase is Phase.EMPTY]
        taken = coming | serving.keys()
        vacant = [post for post in self.posts if not post.off and post.number not in taken]
        replaced = self._replaced(serving, coming) if self.stopping is Stopping.NO else []
        for post in (vacant + replaced)[: min(max(0, room), len(free))]:
            own = next((slot for slot in free if slot.place == post.number), free[0])
            free.remove(own)
            yield post, own

    def _coming(self) -> set[int]:
        """The posts for which the current generation has a worker that isn't ready yet."""
        return {
            slot.number
            for slot in self.slots
            if slot.phase in (Phase.ASKED, Phase.STARTING) and slot.generation == self.generation
        }

    def _replaced(self, serving: Mapping[int, Slot], coming: set[int]) -> list[Post]:
        """The posts whose worker is to be replaced now. A stale worker that is leaving still holds its memory."""
        on_their_way = len(coming & serving.keys())
        budget = recycling.budget(self.settings.recycling, self.processes) - on_their_way
        stale = [slot for slot in self.slots if slot.phase is Phase.LEAVING and slot.generation != self.generation]
        surge = self.surge - on_their_way - len(stale)
        found = []
        for number in sorted(serving.keys() - coming):
            slot = serving[number]
            if slot.generation != self.generation:
                if surge <= 0:
                    continue
                surge -= 1
            elif slot.worn is None or (slot.worn.urgency is Urgency.BUDGET and budget <= 0):
                continue
            else:
                budget -= 1
            found.append(self.posts[number - 1])
        return found

    def _fill(self, now: float) -> list[Effect]:
        """Ask for a worker wherever one is wanted and its time has come."""
        effects: list[Effect] = []
        for post, slot in [one for one in self._openings() if one[0].not_before <= now]:
            if (
                self.switching
                and self.switching.kind is Reload.CHAIN
                and any(self._stale(old) for old in self._on(post.number))
            ):
                effects.append(Say(f"chain next victim is worker {post.number}"))
            effects.append(self._ask(slot, post.number, self.generation, now))
        return effects

    def _ask(self, slot: Slot, number: int, generation: int, now: float, proof: bool = False) -> Effect:
        slot.move(Phase.ASKED)
        slot.number, slot.generation, slot.pid, slot.ready_at, slot.kill_at = number, generation, 0, None, None
        slot.worn, slot.stuck, slot.cheaped = None, False, False
        slot.alive, slot.alive_by = False, now + self._settings_of(slot).processes.spawn_timeout
        return Fork(slot.place, number, generation, proof)

    def _on(self, number: int) -> list[Slot]:
        """The slots of the workers that serve at this post: one, or for a moment two."""
        return [slot for slot in self.slots if slot.phase is Phase.READY and slot.number == number]

    def _stale(self, slot: Slot) -> bool:
        return slot.generation != self.generation

    def _leave(self, slot: Slot, now: float) -> list[Effect]:
        """No more requests; what runs is finished, within the mercy."""
        slot.move(Phase.LEAVING)
        brutal = self.switching is not None and self.switching.brutal and self._stale(slot)
        mercy = FAST_MERCY if brutal else self.settings.processes.reload_mercy
        slot.kill_at = now + mercy
        return [Retire(slot.place)]

    def _somebody_soon(self, now: float) -> None:
        """Shorten the shortest back-off if nobody serves and nobody is coming."""
        if self._zygote_missing and not any(slot.phase is Phase.READY for slot in self.slots):
            self.zygote_not_before = min(self.zygote_not_before, now + NOBODY_SERVES)
        if any(slot.phase in (Phase.ASKED, Phase.STARTING, Phase.READY) for slot in self.slots):
            return
        first = min((post for post in self.posts if not post.off), key=lambda post: post.not_before, default=None)
        if first is not None:
            first.not_before = min(first.not_before, now + NOBODY_SERVES)

    def _empty(self, slot: Slot) -> None:
        slot.move(Phase.EMPTY)
        slot.pid = 0
        slot.kill_at = slot.alive_by = None

    # ---- zygotes ----

    def _zygote_loaded(self, generation: int, now: float) -> list[Effect]:
        self.zygotes[generation] = now
        if self.trial is None or self.trial.generation != generation:
            asked, self.pending = self.pending, None
            return self._fill(now) + (self._begin(asked, now) if asked is not None else [])
        served = {slot.number for slot in self.slots if slot.phase is Phase.READY}
        wanted = [post for post in self.posts if not post.off]
        first = min(wanted, key=lambda post: (post.number in served, post.number), default=None)
        if first is None:  # cheap, idle: there is nobody to replace
            return self._switch(now)
        slot = next((slot for slot in self.slots if slot.phase is Phase.EMPTY), None)
        if slot is None:
            return self._give_up("workers that are leaving hold all slots", now)
        self.trial.proof = slot.place
        return [self._ask(slot, first.number, generation, now, proof=True)]

    def _zygote_gone(self, generation: int, status: int, now: float) -> list[Effect]:
        loaded_at = self.zygotes.pop(generation, None)
        # Workers that it never told us of; one that exists all the same sees its channel end, and leaves.
        unknown = [
            slot
            for slot in self.slots
            if slot.phase is not Phase.EMPTY and not slot.pid and slot.generation == generation
        ]
        for slot in unknown:
            self._empty(slot)
        effects: list[Effect] = [Forget(slot.place) for slot in unknown]
        if self.stopping is Stopping.LEAVING:
            return effects + self._exit_when_empty()
        if self.trial is not None and self.trial.generation == generation:
            return effects + self._give_up(why_not_loaded(status), now)
        if generation != self.generation:  # it was retired, or its trial was given up
            return effects
        if not self.ever_ready:
            what = "ended without an application" if status == EXIT_NO_APP else f"died ({explain(status)})"
            return [*effects, Say(f"the process that loads the application {what}; exiting"), Exit(_start_code(status))]
        lived = loaded_at is not None and now - loaded_at >= YOUNG
        self.zygote_crashes = 0 if lived else self.zygote_crashes + 1
        wait = self._wait_for_zygote(now)
        after = "" if self.trial is None else ", unless the reload succeeds"
        return [*effects, Say(f"the zygote died ({explain(status)}); another one starts in {wait:g} s{after}")]

    def _wait_for_zygote(self, now: float) -> float:
        """Seconds, by the number of its crashes."""
        wait = backoff(self.zygote_crashes + 1)
        if not any(slot.phase is Phase.READY for slot in self.slots):
            wait = min(wait, NOBODY_SERVES)
        self.zygote_not_before = now + wait
        return wait

    # ---- reloads ----

    def _reload(self, asked: ReloadAsked, now: float) -> list[Effect]:
        if self.stopping is not Stopping.NO:
            return [ReloadEnded(self.generation, asked.tickets, "the server stops")]
        if self.trial is not None:
            asked = merged(self.trial.asked, asked)
            return self._abandon_trial("another reload has been asked for") + self._begin(asked, now)
        if self._first_is_loading:
            self.pending = asked if self.pending is None else merged(self.pending, asked)
            return [Say(f"the {asked.kind} reload begins when the application is loaded")]
        return self._begin(asked, now)

    def _begin(self, asked: ReloadAsked, now: float) -> list[Effect]:
        self.newest += 1
        self.zygotes[self.newest] = None
        give_up_at = None if asked.kind is Reload.RESTART else now + asked.settings.reloading.timeout
        self.trial = Trial(self.newest, asked, give_up_at)
        said = [] if asked.kind is Reload.RESTART else [Say(BEGINNINGS[asked.kind].format(self.newest))]
        return [*said, StartZygote(self.newest, asked.settings, asked.kind)]

    def _abandon_trial(self, why: str) -> list[Effect]:
        """Its zygote and its worker end; who waited for the reload isn't told yet."""
        assert self.trial is not None
        trial, self.trial = self.trial, None
        effects: list[Effect] = []
        if trial.asked.kind is not Reload.RESTART:
            effects.append(Say(f"the {trial.asked.kind} reload is given up: {why}"))
        proof = self.slots[trial.proof - 1] if trial.proof else None
        if proof is not None and proof.generation == trial.generation:
            if proof.phase in (Phase.ASKED, Phase.STARTING):
                proof.move(Phase.LEAVING)
            if proof.pid and proof.phase is Phase.LEAVING:
                effects.append(Kill(proof.place))
        if trial.generation in self.zygotes:
            effects.append(KillZygote(trial.generation))
        return effects

    def _give_up(self, why: str, now: float) -> list[Effect]:
        """The trial has failed: everything stays as it is."""
        assert self.trial is not None
        asked, generation = self.trial.asked, self.trial.generation
        effects = self._abandon_trial(f"{why}; generation {self.generation} goes on serving")
        if self.generation not in self.zygotes:
            self.zygote_crashes += 1
            wait = self._wait_for_zygote(now)
            effects.append(Say(f"the zygote can't be replaced: {why}; trying again in {wait:g} s"))
        if asked.tickets:
            effects.append(ReloadEnded(generation, asked.tickets, why))
        return effects

    def _switch(self, now: float) -> list[Effect]:
        """The trial has succeeded."""
        assert self.trial is not None
        trial, self.trial = self.trial, None
        self.generation, self.settings, self.zygote_crashes = trial.generation, trial.asked.settings, 0
        before = self.switching.tickets if self.switching else frozenset()  # theirs ends with this one
        self.switching = replace(trial.asked, tickets=trial.asked.tickets | before)
        wanted = self.settings.reloading.surge
        self.surge = 1 if trial.asked.kind is Reload.CHAIN else wanted or 1
        measure = [MeasureRoom()] if trial.asked.kind is not Reload.CHAIN and not wanted else []
        retired = [RetireZygote(one) for one in self.zygotes if one != self.generation]
        late: list[Effect] = []  # stale workers that were still loading
        for slot in self.slots:
            if slot.phase in (Phase.ASKED, Phase.STARTING) and self._stale(slot):
                late += self._leave(slot, now)
                slot.kill_at = slot.kill_at if slot.pid else None  # without a pid: killed as soon as it is known
        return [Switch(self.generation, self.settings), *retired, *measure, *late]

    def _end_of_switch(self, now: float) -> list[Effect]:
        """Every post that is wanted has a worker of the current generation, and nobody else serves."""
        if self.switching is None:
            return []
        if self.stopping is not Stopping.NO:
            asked, self.switching = self.switching, None
            return [ReloadEnded(self.generation, asked.tickets, "the server stops")] if asked.tickets else []
        serving = {slot.number for slot in self.slots if slot.phase is Phase.READY and not self._stale(slot)}
        if any(slot.phase is Phase.READY and self._stale(slot) for slot in self.slots):
            return []
        if any(not post.off and post.number not in serving for post in self.posts):
            return []
        asked, self.switching = self.switching, None
        done = Say(ENDS[asked.kind].format(generation=self.generation, workers=len(serving)))
        return [done, *([ReloadEnded(self.generation, asked.tickets)] if asked.tickets else [])]

    def _forked(self, slot: Slot, pid: int, chance: float, now: float) -> list[Effect]:
        settings = self._settings_of(slot)
        slot.pid, slot.limits = pid, recycling.draw(settings.recycling, self.processes, chance)
        if slot.phase is Phase.LEAVING and slot.kill_at is None and self.stopping is not Stopping.LEAVING:
            return [Kill(slot.place)]  # it was given up before anybody knew its pid
        if slot.phase is Phase.ASKED:
            slot.move(Phase.STARTING)
        if slot.alive:
            slot.alive_by = None
        spawned: list[Effect] = [
            Say(f"spawned uWSGI worker {slot.number} (pid: {pid}, cores: {self.settings.processes.threads})")
        ]
        return spawned + self._fill(now)

    def _fork_failed(self, slot: Slot, why: str, now: float) -> list[Effect]:
        if slot.phase is Phase.EMPTY:
            return []  # forgotten together with its zygote
        post, proof = self.posts[slot.number - 1], self._is_proof(slot)
        self._empty(slot)
        if proof or slot.generation != self.generation:
            effects: list[Effect] = [Forget(slot.place), *self._exit_when_empty()]
            return effects + (self._give_up(f"its first worker could not be forked: {why}", now) if proof else [])
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
        if slot.phase is Phase.LEAVING and slot.kill_at is None:
            return [Retire(slot.place)]  # given up
        if slot.phase not in (Phase.ASKED, Phase.STARTING):
            return []
        effects: list[Effect] = self._switch(now) if self._is_proof(slot) else []
        slot.move(Phase.READY)
        if self.posts[slot.number - 1].off:
            slot.cheaped = True
            return effects + self._leave(slot, now)
        for old in self._on(slot.number):
            if old is not slot:
                effects += [Say(f"...The work of process {old.pid} is done. Seeya!"), *self._leave(old, now)]
        return effects + (self._fill(now) if effects else [])

    def _settings_of(self, slot: Slot) -> Settings:
        return self.trial.asked.settings if self.trial is not None and self._is_proof(slot) else self.settings

    def _is_proof(self, slot: Slot) -> bool:
        trial = self.trial
        return trial is not None and trial.proof == slot.place and trial.generation == slot.generation

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
        return len(serving), len(self._coming() - serving)

    def spare(self) -> list[int]:
        """The slots of workers that could end, the first to end first: those that are worn or stale anyway, then the
        highest numbers. Not those whose replacement is being started."""
        coming = self._coming()
        if self.trial is not None and self.trial.proof:
            coming.add(self._slot(self.trial.proof).number)
        serving = [slot for slot in self.slots if slot.phase is Phase.READY and slot.number not in coming]

        def lasts(slot: Slot) -> tuple[bool, int]:
            return slot.worn is None and not self._stale(slot), -slot.number

        return [slot.place for slot in sorted(serving, key=lasts)]

    def _more(self, count: int, now: float) -> list[Effect]:
        if self.stopping is Stopping.LEAVING:
            return []
        for post in [post for post in self.posts if post.off][:count]:
            post.off = False
            self.wanted += 1
        return self._fill(now)

    def _nobody(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for post in self.posts:
            post.off = True
        self.wanted = 0
        for slot in self.slots:
            if slot.phase is Phase.READY:  # those that are coming leave when they are ready
                slot.cheaped = True
                effects += self._leave(slot, now)
        return effects

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
                reason = recycling.judge(self.settings.recycling, slot.limits, found, now - slot.ready_at)
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
        if self._is_proof(slot):
            return self._proof_gone(slot, status, now)
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
        if status == EXIT_NO_APP and self.settings.app.required and not self.ever_ready:
            return [*effects, Exit(EXIT_NO_APP)]
        if post.not_before > now:
            wait = post.not_before - now
            effects.append(Say(f"worker {post.number} respawning too fast !!! waiting {wait:g} s for this slot"))
        return effects + self._fill(now)

    def _proof_gone(self, slot: Slot, status: int, now: float) -> list[Effect]:
        pid, number = slot.pid, slot.number
        self._empty(slot)
        return [
            Forget(slot.place),
            Say(buried(number, pid, status, cheaped=False)),
            *self._give_up(why_no_proof(status), now),
        ]

    def _stop(self, fast: bool, now: float) -> list[Effect]:
        fast = fast or self.stopping is not Stopping.NO  # asking twice means now
        effects: list[Effect] = [CloseDoor()] if self.stopping is Stopping.NO else []
        tickets = frozenset() if self.pending is None else self.pending.tickets
        self.pending = None
        if self.trial is not None and (fast or self.trial.asked.kind is not Reload.RESTART):
            tickets |= self.trial.asked.tickets
            effects += self._abandon_trial("the server stops")
        if tickets:
            effects.append(ReloadEnded(self.newest, tickets, "the server stops"))
        if not fast:
            self.stopping = Stopping.FINISHING
            self.kill_at = now + self.settings.processes.reload_mercy
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
        if self.trial is not None and self.trial.give_up_at is not None and now >= self.trial.give_up_at:
            limit = self.trial.asked.settings.reloading.timeout
            effects += self._give_up(f"it was not ready within {limit:g} s (reload-timeout)", now)
        if self._zygote_missing and self.zygote_not_before <= now:
            effects += self._begin(ReloadAsked(Reload.RESTART, self.settings), now)
        return effects + self._fill(now)

    def _out_of_time(self, slot: Slot, now: float) -> list[Effect]:
        if slot.kill_at is not None and now >= slot.kill_at:
            slot.kill_at = None
            return [Say(no_mercy(slot)), Kill(slot.place)]
        if slot.alive_by is None or now < slot.alive_by:
            return []
        slot.alive_by = None
        waited = f"within {self._settings_of(slot).processes.spawn_timeout:g} s (spawn-timeout)"
        if not slot.pid:
            return [
                Say(f"the zygote has not forked worker {slot.number} {waited}; killing the zygote"),
                KillZygote(slot.generation),
            ]
        return [
            Say(
                f"worker {slot.number} (pid: {slot.pid}) gave no sign of life {waited}, killing it: does a thread"
                f" that was running before the fork hold a lock? (lazy-apps = true starts it after the fork)"
            ),
            Kill(slot.place),
        ]

    def _send_away(self) -> list[Effect]:
        self.stopping, self.trial = Stopping.LEAVING, None
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


def merged(one: ReloadAsked, later: ReloadAsked) -> ReloadAsked:
    """A reload that does what both ask for: with the later configuration, if any of them reads it."""
    kept = one if one.kind is Reload.GRACEFUL and later.kind is not Reload.GRACEFUL else later
    return replace(kept, brutal=one.brutal or later.brutal, tickets=one.tickets | later.tickets)


BEGINNINGS = {
    Reload.GRACEFUL: "...gracefully reloading: generation {} loads the application",
    Reload.WORKERS: "...reloading the workers: generation {} loads the application",
    Reload.CHAIN: "chain reload starting... generation {} loads the application",
}
ENDS = {
    Reload.GRACEFUL: "gracefully reloaded: generation {generation} serves with {workers} worker(s)",
    Reload.WORKERS: "workers reloaded: generation {generation} serves with {workers} worker(s)",
    Reload.CHAIN: "chain reloading complete: generation {generation} serves with {workers} worker(s)",
    Reload.RESTART: "the zygote is replaced: generation {generation} serves with {workers} worker(s)",
}


def _start_code(status: int) -> int:
    return EXIT_NO_APP if status == EXIT_NO_APP else 1


def explain(status: int) -> str:
    """An exit code, or minus a signal, in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit code {status}"


def why_not_loaded(status: int) -> str:
    """How the zygote of a trial has ended: exit code, or minus a signal."""
    reasons = {EXIT_NO_APP: "the application could not be loaded", EXIT_HOOK_FAILED: "a hook has failed"}
    return reasons.get(status, f"the process that loads the application died ({explain(status)})")


def why_no_proof(status: int) -> str:
    """How the first worker of a generation has ended: exit code, or minus a signal."""
    reasons = {
        EXIT_NO_APP: "it has no application",
        EXIT_CHECK_FAILED: "it did not pass reload-check",
        EXIT_HOOK_FAILED: "a hook has failed",
    }
    return f"its first worker ended before it was ready: {reasons.get(status, explain(status))}"


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
