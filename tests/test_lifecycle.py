"""What happens to the zygote and the workers: whole stories, without a process."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgimaster.events import (
    Cheaped,
    CloseDoor,
    Exit,
    Forget,
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
    Retire,
    RetireZygote,
    RoomFound,
    Say,
    StopAsked,
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
from wsgimaster.events import Fork as ForkIn
from wsgimaster.events import ReloadEnded as ReloadEndedIn
from wsgimaster.events import StartZygote as StartZygoteIn
from wsgimaster.events import Switch as SwitchIn
from wsgimaster.lifecycle import MAX_ASKED, TRANSITIONS, Overseer, Phase, backoff, damn
from wsgimaster.recycling import Figures
from wsgimaster.settings import App, Cheaper, Processes, Recycling, Reloading, Settings

NEVER = Recycling()


def StartZygote(generation, kind=None):  # noqa: N802
    return StartZygoteIn(generation, None, kind)


def ReloadEnded(generation, error="", tickets=(7,)):  # noqa: N802
    return ReloadEndedIn(generation, frozenset(tickets), error)


def Switch(generation):  # noqa: N802
    return SwitchIn(generation, None)


def Fork(slot, number, generation=1, proof=False):  # noqa: N802
    return ForkIn(slot, number, generation, proof)


class Story:
    """An overseer and a clock that only moves when told to."""

    def __init__(self, processes=2, *, initial=None, required=False, recycling=NEVER, surge=0):
        cheaper = Cheaper(minimum=initial, cheap=not initial) if initial not in (None, processes) else Cheaper()
        settings = Settings(
            processes=Processes(processes=processes),
            app=App(required=required),
            recycling=recycling,
            cheaper=cheaper,
            reloading=Reloading(surge=surge),
        )
        self.overseer = Overseer(settings)
        self.now = 100.0
        self.told = []
        self.begun = self.note(self.overseer.start())

    def do(self, event, after=0.0):
        """The effects, without what is only said, and without settings."""
        self.now += after
        return self.note(self.overseer.handle(event, self.now))

    def note(self, effects):
        self.told += effects
        told = [effect for effect in effects if not isinstance(effect, Say)]
        return [replace(one, settings=None) if hasattr(one, "settings") else one for one in told]

    def reload(self, kind, after=0.0, ticket=7, settings=None, **more):
        settings = settings or self.overseer.settings
        return self.do(ReloadAsked(kind, settings, tickets=frozenset({ticket}), **more), after)

    def ready(self, slot):
        return self.do(Forked(slot, 1000 + slot, 0.5)) + self.do(WorkerReady(slot))

    def serving(self):
        self.do(ZygoteLoaded(1))
        for post in self.overseer.posts[: self.overseer.wanted]:
            self.ready(post.number)
        return self

    def phases(self):
        return [slot.phase for slot in self.overseer.slots if slot.place <= self.overseer.processes]

    def said(self):
        return "\n".join(effect.text for effect in self.told if isinstance(effect, Say))


def test_every_phase_has_its_row():
    assert set(TRANSITIONS) == set(Phase)


def test_the_start():
    story = Story()
    assert story.begun == [StartZygote(1)]
    assert story.do(ZygoteLoaded(1)) == [Fork(1, 1), Fork(2, 2)]
    assert story.ready(1) + story.ready(2) == []
    assert story.phases() == [Phase.READY, Phase.READY]
    assert "spawned uWSGI worker 2 (pid: 1002, cores: 1)" in story.said()


def test_ready_may_come_before_the_fork_is_reported():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    story.do(WorkerReady(1))
    story.do(Forked(1, 7, 0.5))
    assert story.phases() == [Phase.READY]


def test_a_dead_worker_is_replaced_at_once():
    story = Story().serving()
    assert story.do(WorkerGone(2, -9, 0), after=5) == [Forget(2), Fork(2, 2)]
    assert "DAMN ! worker 2 (pid: 1002) died, killed by signal 9 :( trying respawn ..." in story.said()


def test_a_crash_loop_backs_off_in_its_own_slot():
    story = Story().serving()
    waits = []
    for _ in range(8):
        effects = story.do(WorkerGone(1, 1, 0), after=0.1)
        if Fork(1, 1) not in effects:
            waits.append(round(story.overseer.wake_at - story.now, 3))
            assert story.do(Tick(0), after=waits[-1]) == [Fork(1, 1)]
        story.ready(1)
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert story.phases()[1] is Phase.READY  # the neighbour never noticed


def test_while_nobody_serves_the_back_off_is_a_second_at_most():
    story, waits = Story(1).serving(), []
    for _ in range(6):
        if Fork(1, 1) not in story.do(WorkerGone(1, -9, 0), after=0.1):
            waits.append(round(story.overseer.wake_at - story.now, 3))
            assert story.do(Tick(0), after=waits[-1]) == [Fork(1, 1)]
        story.ready(1)
    assert waits == [1] * 5


def test_a_worker_that_lived_ends_the_loop():
    story = Story(1).serving()
    story.do(WorkerGone(1, 1, 0), after=0.1)
    story.ready(1)
    story.do(WorkerGone(1, 1, 0), after=10)
    assert story.overseer.posts[0].crashes == 0


@pytest.mark.parametrize(
    ("crashes", "seconds"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (7, 30), (100, 30), (5000, 30)]
)
def test_the_backoff(crashes, seconds):
    assert backoff(crashes) == seconds


def test_a_failed_fork_is_tried_again():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    assert story.do(ForkFailed(1, "Cannot allocate memory")) == [Forget(1)]
    assert story.do(Tick(0), after=1.0) == [Fork(1, 1)]
    assert "Cannot allocate memory" in story.said()


def test_need_app_ends_the_start_with_22():
    assert Story(required=True).do(ZygoteGone(1, 22)) == [Exit(22)]


def test_need_app_under_lazy_apps_ends_the_start_with_22():
    story = Story(1, required=True)
    story.do(ZygoteLoaded(1))
    story.do(Forked(1, 7, 0.5))
    assert story.do(WorkerGone(1, 22, 0))[-1] == Exit(22)


def test_a_zygote_that_crashes_at_the_start_ends_it_with_1():
    assert Story().do(ZygoteGone(1, -11)) == [Exit(1)]


def test_a_zygote_that_dies_later_is_started_again_and_the_workers_stay():
    story = Story().serving()
    assert story.do(ZygoteGone(1, -9)) == []
    assert story.phases() == [Phase.READY, Phase.READY]
    assert story.do(WorkerGone(1, -9, 0), after=0.1) == [Forget(1)]  # nobody there to fork
    assert story.do(Tick(0), after=0.9) == [StartZygote(2, Reload.RESTART)]
    assert story.do(ZygoteLoaded(2)) == [Fork(1, 1, 2, proof=True)]


def test_a_zygote_that_lived_is_replaced_at_once():
    story = Story().serving()
    story.do(ZygoteGone(1, -9), after=1)
    assert story.do(Tick(0)) == [StartZygote(2, Reload.RESTART)]


def test_while_nobody_serves_a_zygote_waits_for_a_second_at_most():
    story = Story(1).serving()
    story.do(WorkerGone(1, -9, 0))
    for generation in range(1, 7):
        story.do(ZygoteGone(generation, -9))
        assert story.overseer.wake_at <= story.now + 1
        assert StartZygote(generation + 1, Reload.RESTART) in story.do(Tick(0), after=1.0)


def test_who_has_served_is_no_crash_loop():
    story = Story(1).serving()
    for _ in range(5):
        assert story.do(WorkerGone(1, -11, served=1), after=0.1) == [Forget(1), Fork(1, 1)]
        story.ready(1)


def test_crashes_are_forgotten_when_a_worker_has_lived_whatever_its_end():
    story = Story(1).serving()
    for _ in range(5):
        story.do(WorkerGone(1, 1, 0), after=0.1)
        story.ready(1)
        story.do(WorkerStuck(1), after=100)
        story.ready(2)
        story.do(WorkerGone(1, -9, 0))
        story.do(WorkerWorn(2, "grew old"), after=100)
        story.ready(1)
        story.do(WorkerGone(2, 0, 0))
        assert story.overseer.posts[0].crashes == 0


def test_forks_that_the_zygote_took_with_it_are_asked_again():
    story = Story().serving()
    story.do(WorkerGone(1, 0, 0), after=5)
    assert story.do(ZygoteGone(1, -9)) == [Forget(1)]
    assert story.phases() == [Phase.EMPTY, Phase.READY]


def test_a_zygote_that_dies_in_the_middle_of_a_fork_does_not_hold_up_the_end():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    story.do(StopAsked(fast=True))
    assert story.do(ZygoteGone(1, -9)) == [Forget(1), Exit(0)]


def test_a_fork_that_failed_because_the_zygote_is_gone():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    story.overseer.ever_ready = True
    assert story.do(ZygoteGone(1, -9)) == [Forget(1)]
    assert story.do(ForkFailed(1, "Broken pipe")) == []


def test_a_graceful_stop_finishes_the_work_first():
    story = Story().serving()
    assert story.do(StopAsked(fast=False)) == [CloseDoor()]
    assert story.do(Tick(work_left=3), after=1) == []
    assert story.do(Tick(work_left=0), after=1) == [Retire(1), Retire(2)]
    assert story.do(WorkerGone(1, 0, 0)) == [Forget(1)]
    assert story.do(WorkerGone(2, 0, 0)) == [Forget(2), Exit(0)]
    assert "DAMN" not in story.said()


def test_a_worker_that_dies_while_work_is_left_is_still_replaced():
    story = Story(1).serving()
    story.do(StopAsked(fast=False))
    assert story.do(WorkerGone(1, -9, 0), after=5) == [Forget(1), Fork(1, 1)]


def test_a_graceful_stop_ends_with_the_mercy():
    story = Story(1).serving()
    story.do(StopAsked(fast=False))
    assert story.overseer.wake_at == story.now + 60
    assert story.do(Tick(work_left=2), after=60) == [RefuseWaiting(), Retire(1), Kill(1)]
    assert story.do(WorkerGone(1, -9, 0)) == [Forget(1), Exit(0)]
    assert "2 requests are cut" in story.said()


@pytest.mark.parametrize("story", ["fast", "twice"])
def test_a_fast_stop_waits_a_second(story):
    how, story = story, Story(1).serving()
    if how == "twice":
        story.do(StopAsked(fast=False))
    effects = story.do(StopAsked(fast=how == "fast"))
    assert effects[-2:] == [RefuseWaiting(), Retire(1)]
    assert (CloseDoor() in effects) == (how == "fast")
    assert story.do(Tick(work_left=1), after=1.0) == [Kill(1)]


def test_a_stop_before_the_application_is_loaded():
    story = Story()
    assert story.do(StopAsked(fast=True)) == [CloseDoor(), RefuseWaiting(), Exit(0)]


def test_a_stop_ends_although_the_zygote_never_answers():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    story.do(StopAsked(fast=True))
    assert story.do(Tick(work_left=0), after=1.0) == [Forget(1), Exit(0)]


def test_a_worker_without_a_channel_is_replaced_at_once_and_may_finish():
    story = Story(2).serving()
    assert story.do(WorkerBroken(2), after=5) == [Retire(2), Fork(3, 2)]
    assert story.do(WorkerBroken(2)) == []
    assert story.do(WorkerGone(2, 1, 0)) == [Forget(2)]
    assert "DAMN" not in story.said()


def test_a_worker_without_a_channel_is_killed_after_the_mercy():
    story = Story(1).serving()
    story.do(WorkerBroken(1))
    story.ready(2)
    assert story.overseer.wake_at == story.now + 60
    assert story.do(Tick(work_left=1), after=60) == [Kill(1)]


# ---- harakiri ----


def test_a_stuck_worker_is_replaced_before_it_is_killed():
    story = Story(2).serving()
    assert story.do(WorkerStuck(2), after=0.5) == [Retire(2), Fork(3, 2)]
    assert story.do(WorkerGone(2, -9, 0)) == [Forget(2)]
    assert "DAMN ! worker 2 (pid: 1002) died, killed by signal 9" in story.said()
    assert story.overseer.posts[1].crashes == 0  # no crash: the next one doesn't wait


def test_a_stuck_worker_that_ends_by_itself_is_no_death():
    story = Story(1).serving()
    story.do(WorkerStuck(1))
    story.do(WorkerGone(1, 0, 0))
    assert "DAMN" not in story.said()


# ---- forks that hang ----


def test_a_worker_that_hangs_in_the_fork_is_killed():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    story.do(Forked(1, 7, 0.5))
    assert story.overseer.wake_at == story.now + 60
    assert story.do(Tick(0), after=60) == [Kill(1)]
    assert "worker 1 (pid: 7) gave no sign of life within 60 s (spawn-timeout)" in story.said()
    assert story.do(WorkerGone(1, -9, 0)) == [Forget(1), Fork(1, 1)]


def test_a_zygote_that_hangs_in_the_fork_is_killed():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    assert story.do(Tick(0), after=60) == [KillZygote(1)]
    assert "the zygote has not forked worker 1" in story.said()


def test_a_zygote_that_hangs_after_the_fork_is_killed_although_the_worker_serves():
    """The child is through the fork, its parent isn't: nobody knows the child's pid."""
    story = Story(1)
    story.do(ZygoteLoaded(1))
    story.do(WorkerAlive(1))
    story.do(WorkerReady(1))
    assert story.do(Tick(1), after=60) == [KillZygote(1)]
    assert story.do(ZygoteGone(1, -9)) == [Forget(1)]


def test_a_fork_that_fails_while_everybody_leaves_does_not_hold_up_the_end():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    story.do(StopAsked(fast=True))
    assert story.do(ForkFailed(1, "no memory")) == [Forget(1), Exit(0)]


def test_a_worker_may_load_the_application_for_as_long_as_it_likes():
    story = Story(1)
    story.do(ZygoteLoaded(1))
    story.do(WorkerAlive(1))
    story.do(Forked(1, 7, 0.5))
    assert story.overseer.wake_at is None
    assert story.do(Tick(0), after=1000) == []


# ---- recycling ----


def served(**requests):
    """The figures of workers that have served so many: w1=300."""
    return Looked({int(name[1:]): Figures(count, 0, 0) for name, count in requests.items()})


HUNDRED = Recycling(max_requests=100, min_lifetime=5)


def test_the_replacement_is_ready_before_the_old_one_leaves():
    story = Story(2, recycling=HUNDRED).serving()
    assert story.do(served(w1=100, w2=99), after=5) == [Fork(3, 1)]
    assert story.do(served(w1=150, w2=99), after=1) == []  # it is on its way
    assert story.do(Forked(3, 1003, 0.5)) == []
    assert story.do(WorkerReady(3)) == [Retire(1)]
    assert story.do(WorkerGone(1, 0, 0), after=0.5) == [Forget(1)]
    said = story.said()
    assert "worker 1 has served 100 requests (its max-requests is 100)" in said
    assert "...The work of process 1001 is done. Seeya!" in said
    assert "spawned uWSGI worker 1 (pid: 1003, cores: 1)" in said
    assert "DAMN" not in said


def test_a_worker_that_is_too_young_goes_on():
    assert Story(2, recycling=HUNDRED).serving().do(served(w1=100), after=4.9) == []


def test_a_tenth_at_a_time_and_at_least_one():
    story = Story(20, recycling=HUNDRED).serving()
    everybody = served(**{f"w{slot}": 100 for slot in range(1, 21)})
    assert story.do(everybody, after=10) == [Fork(21, 1), Fork(22, 2)]
    story.do(Forked(22, 7, 0.5))
    assert story.do(WorkerReady(22)) == [Retire(2), Fork(23, 3)]


def test_memory_does_not_wait_for_the_budget():
    story = Story(2, recycling=Recycling(rss=1 << 20, min_lifetime=0)).serving()
    large = Figures(0, 2 << 20, 0)
    assert story.do(Looked({1: large, 2: large}), after=1) == [Fork(3, 1), Fork(4, 2)]


def test_evil_means_at_once():
    story = Story(1, recycling=Recycling(evil_rss=1 << 20)).serving()
    large = Looked({1: Figures(0, 2 << 20, 0)})
    assert story.do(large, after=5) == [Kill(1), Fork(2, 1)]
    assert story.do(large) == []
    assert "*** EVIL RELOAD ON WORKER 1 RSS: 2097152 (pid: 1001) ***" in story.said()
    assert story.do(WorkerGone(1, -9, 0)) == [Forget(1)]


def test_evil_comes_after_a_milder_reason_too():
    story = Story(1, recycling=Recycling(rss=1, evil_rss=1 << 20, min_lifetime=0)).serving()
    assert story.do(Looked({1: Figures(0, 2, 0)})) == [Fork(2, 1)]
    assert story.do(Looked({1: Figures(0, 2 << 20, 0)})) == [Kill(1)]


def test_a_replacement_that_fails_changes_nothing():
    story = Story(1, recycling=HUNDRED).serving()
    assert story.do(served(w1=100), after=5) == [Fork(2, 1)]
    story.do(Forked(2, 7, 0.5))
    assert story.do(WorkerGone(2, 1, 0), after=0.1) == [Forget(2), Fork(2, 1)]
    story.do(Forked(2, 8, 0.5))
    assert story.do(WorkerGone(2, 1, 0), after=0.1) == [Forget(2)]  # its second young death: the post waits
    assert story.phases() == [Phase.READY]
    assert story.overseer.wake_at == pytest.approx(story.now + 1)
    assert story.do(Tick(1), after=1) == [Fork(2, 1)]


def test_an_old_worker_that_dies_meanwhile_has_its_replacement():
    story = Story(1, recycling=HUNDRED).serving()
    story.do(served(w1=100), after=5)
    assert story.do(WorkerGone(1, -9, 0)) == [Forget(1)]
    story.do(Forked(2, 7, 0.5))
    assert story.do(WorkerReady(2)) == []


def test_a_post_is_filled_although_two_of_its_workers_are_still_leaving():
    story = Story(1, recycling=HUNDRED).serving()
    story.do(served(w1=100), after=5)
    story.do(Forked(2, 7, 0.5))
    assert story.do(WorkerReady(2)) == [Retire(1)]
    assert story.do(WorkerStuck(2)) == [Retire(2), Fork(3, 1)]


def test_an_old_worker_with_a_long_request_gets_the_mercy():
    story = Story(1, recycling=HUNDRED).serving()
    story.do(served(w1=100), after=5)
    story.do(Forked(2, 7, 0.5))
    story.do(WorkerReady(2))
    assert story.overseer.wake_at == story.now + 60
    assert story.do(Tick(1), after=60) == [Kill(1)]
    assert "worker 1 (pid: 1001) is taking too much time to die...NO MERCY !!!" in story.said()


def test_nothing_is_recycled_while_the_server_stops():
    story = Story(1, recycling=HUNDRED).serving()
    story.do(StopAsked(fast=False), after=5)
    assert story.do(served(w1=100), after=5) == []


def test_a_worker_without_descriptors_is_replaced():
    story = Story(1).serving()
    assert story.do(WorkerWorn(1, "had no free descriptor"), after=1) == [Fork(2, 1)]
    assert story.do(WorkerWorn(1, "had no free descriptor"), after=1) == []


HAPPENINGS = st.sampled_from(["ready", "gone", "crash", "look", "stuck", "tick"])


@given(st.lists(st.tuples(HAPPENINGS, st.integers(1, 8)), max_size=60))
def test_whatever_happens_recycling_takes_no_worker_away_before_its_time(happenings):
    """Every post has at most one worker that serves and one that comes, and a worker leaves only for a ready one."""
    story = Story(4, recycling=Recycling(max_requests=1, min_lifetime=0)).serving()
    for what, place in happenings:
        slot = story.overseer.slots[place - 1]
        serving = [one.number for one in story.overseer.slots if one.phase is Phase.READY]
        if what == "look":
            every = [one.place for one in story.overseer.slots if one.phase is Phase.READY]
            story.do(Looked({place: Figures(5, 0, 0) for place in every}), after=0.5)
            assert sorted(serving) == sorted(one.number for one in story.overseer.slots if one.phase is Phase.READY)
        elif what == "ready" and slot.phase in (Phase.ASKED, Phase.STARTING):
            story.ready(place)
        elif what == "gone" and slot.phase is Phase.LEAVING:
            story.do(WorkerGone(place, 0, 0), after=0.1)
        elif what == "crash" and slot.pid and slot.phase is not Phase.EMPTY:
            story.do(WorkerGone(place, -11, 0), after=5)
        elif what == "stuck" and slot.phase is Phase.READY:
            story.do(WorkerStuck(place), after=0.1)
        elif what == "tick":
            story.do(Tick(1), after=31)
        ready = [one.number for one in story.overseer.slots if one.phase is Phase.READY]
        coming = [one.number for one in story.overseer.slots if one.phase in (Phase.ASKED, Phase.STARTING)]
        assert len(set(ready)) == len(ready)
        assert len(set(coming)) == len(coming)
        if what in ("ready", "gone", "tick"):
            assert set(ready) >= set(serving)


# ---- reloads ----


def reloading(processes=2, kind=Reload.GRACEFUL, **more):
    """A new generation has loaded the application, its first worker is in the next free slot."""
    story = Story(processes, **more).serving()
    assert story.reload(kind, after=5) == [StartZygote(2, kind)]
    assert story.do(ZygoteLoaded(2)) == [Fork(processes + 1, 1, 2, proof=True)]
    return story


def generations(story):
    """Of the workers that serve, by their numbers."""
    serving = [slot for slot in story.overseer.slots if slot.phase is Phase.READY]
    return [slot.generation for slot in sorted(serving, key=lambda slot: slot.number)]


def test_a_reload_changes_nothing_until_a_new_worker_is_ready():
    story = reloading()
    assert story.do(Forked(3, 1003, 0.5)) == []
    assert generations(story) == [1, 1]
    assert story.do(WorkerReady(3)) == [Switch(2), RetireZygote(1), MeasureRoom(), Retire(1)]
    assert story.do(RoomFound(8)) == [Fork(4, 2, 2)]
    story.do(Forked(4, 1004, 0.5))
    assert story.do(WorkerReady(4)) == [Retire(2), ReloadEnded(2)]
    assert generations(story) == [2, 2]
    assert "gracefully reloaded: generation 2 serves with 2 worker(s)" in story.said()
    assert story.do(ZygoteGone(1, 0)) == []
    assert story.do(WorkerGone(1, 0, 9), after=5) == [Forget(1)]
    assert story.do(WorkerGone(4, -9, 9), after=5) == [Forget(4), Fork(1, 2, 2)]


def test_as_many_at_a_time_as_memory_has_room_for():
    story = reloading(8)
    story.ready(9)  # worker 1 is leaving, and holds its memory still
    assert story.do(RoomFound(3)) == [Fork(10, 2, 2), Fork(11, 3, 2)]
    assert story.do(WorkerGone(1, 0, 0)) == [Forget(1), Fork(1, 4, 2)]
    assert story.ready(10) == [Retire(2)]
    assert story.do(WorkerGone(2, 0, 0)) == [Forget(2), Fork(2, 5, 2)]


def test_one_at_a_time_where_memory_has_room_for_none():
    story = reloading(2)
    story.ready(3)
    assert story.do(RoomFound(0)) == []
    assert story.do(WorkerGone(1, 0, 0)) == [Forget(1), Fork(1, 2, 2)]


def test_reload_surge_is_what_people_want():
    story = reloading(8, surge=2)
    assert story.ready(9) == [Switch(2), RetireZygote(1), Retire(1), Fork(10, 2, 2)]


def test_a_chain_takes_one_worker_after_the_other():
    story = reloading(3, Reload.CHAIN)
    assert story.ready(4) == [Switch(2), RetireZygote(1), Retire(1)]
    assert story.do(WorkerGone(1, 0, 0)) == [Forget(1), Fork(1, 2, 2)]
    assert story.ready(1) == [Retire(2)]
    assert story.do(WorkerGone(2, 0, 0)) == [Forget(2), Fork(2, 3, 2)]
    assert story.ready(2) == [Retire(3), ReloadEnded(2)]
    assert "chain reload starting..." in story.said()
    assert "chain next victim is worker 3" in story.said()
    assert "chain reloading complete" in story.said()


# What goes wrong -> the effects; then the reason that whoever waits is told.
FAILURES = {
    "the application can't be loaded": (
        lambda story: story.do(ZygoteGone(2, 22)),
        [Forget(3), ReloadEnded(2, "the application could not be loaded")],
    ),
    "its zygote crashes": (
        lambda story: story.do(ZygoteGone(2, -11)),
        [Forget(3), ReloadEnded(2, "the process that loads the application died (killed by signal 11)")],
    ),
    "its first worker can't be forked": (
        lambda story: story.do(ForkFailed(3, "no memory")),
        [Forget(3), KillZygote(2), ReloadEnded(2, "its first worker could not be forked: no memory")],
    ),
    "its first worker has no application (lazy-apps)": (
        lambda story: story.do(Forked(3, 7, 0.5)) + story.do(WorkerGone(3, 22, 0)),
        [Forget(3), KillZygote(2), ReloadEnded(2, "its first worker ended before it was ready: it has no application")],
    ),
    "its first worker doesn't pass the check": (
        lambda story: story.do(Forked(3, 7, 0.5)) + story.do(WorkerGone(3, 23, 0)),
        [
            Forget(3),
            KillZygote(2),
            ReloadEnded(2, "its first worker ended before it was ready: it did not pass reload-check"),
        ],
    ),
    "its first worker is killed": (
        lambda story: story.do(Forked(3, 7, 0.5)) + story.do(WorkerGone(3, -9, 0)),
        [Forget(3), KillZygote(2), ReloadEnded(2, "its first worker ended before it was ready: killed by signal 9")],
    ),
    "its first worker hangs": (
        lambda story: story.do(Forked(3, 7, 0.5)) + story.do(WorkerAlive(3)) + story.do(Tick(0), after=120),
        [Kill(3), KillZygote(2), ReloadEnded(2, "it was not ready within 120 s (reload-timeout)")],
    ),
}


@pytest.mark.parametrize(("happens", "effects"), FAILURES.values(), ids=FAILURES)
def test_a_reload_that_fails_changes_nothing(happens, effects):
    story = reloading()
    assert happens(story) == effects
    assert generations(story) == [1, 1]
    assert "generation 1 goes on serving" in story.said()
    story.do(ZygoteGone(2, -9))
    assert story.overseer.wake_at is None
    assert story.reload(Reload.WORKERS) == [StartZygote(3, Reload.WORKERS)]
    (fork,) = story.do(ZygoteLoaded(3))
    story.ready(fork.slot)
    assert generations(story) == [3, 1]


def test_a_module_that_hangs_is_given_up():
    story = Story(2).serving()
    story.reload(Reload.GRACEFUL)
    assert story.overseer.wake_at == story.now + 120
    assert story.do(Tick(0), after=120) == [
        KillZygote(2),
        ReloadEnded(2, "it was not ready within 120 s (reload-timeout)"),
    ]
    assert story.do(ZygoteGone(2, -9)) == []


def test_an_old_worker_that_dies_during_the_trial_is_replaced_by_an_old_one():
    story = reloading()
    assert story.do(WorkerGone(1, -9, 5), after=5) == [Forget(1), Fork(1, 1, 1)]
    assert story.ready(3)[-1] == Retire(1)  # which is still coming
    assert story.do(Forked(1, 1001, 0.5)) == [Kill(1)]
    assert generations(story) == [2, 1]


def test_a_new_worker_that_dies_during_the_switch_is_tried_again():
    story = reloading()
    story.ready(3)
    story.do(RoomFound(8))
    story.do(Forked(4, 7, 0.5))
    assert story.do(WorkerGone(4, 1, 0)) == [Forget(4), Fork(4, 2, 2)]
    assert generations(story) == [2, 1]


def test_a_zygote_that_dies_during_a_trial_is_replaced_by_it():
    story = reloading()
    assert story.do(ZygoteGone(1, -9)) == []
    assert story.do(Tick(0), after=40) == []  # no other one is started meanwhile
    assert story.ready(3)[:1] == [Switch(2)]


def test_a_zygote_that_dies_and_a_trial_that_fails():
    story = reloading()
    story.do(ZygoteGone(1, -9))
    story.do(ZygoteGone(2, 22))
    assert generations(story) == [1, 1]
    assert story.do(Tick(0), after=30) == [StartZygote(3, Reload.RESTART)]


def test_a_restarted_zygote_proves_itself_like_any_new_generation():
    """What is on disk may be half a deploy by now."""
    story = Story(2).serving()
    story.do(ZygoteGone(1, -9), after=5)
    assert story.do(Tick(0)) == [StartZygote(2, Reload.RESTART)]
    assert story.do(Tick(0), after=9999) == []  # it may load for as long as it likes, as at the start
    assert story.do(ZygoteGone(2, 22)) == []
    assert generations(story) == [1, 1]
    assert story.do(Tick(0), after=30) == [StartZygote(3, Reload.RESTART)]
    assert story.do(ZygoteLoaded(3)) == [Fork(3, 1, 3, proof=True)]
    assert story.ready(3) == [Switch(3), MeasureRoom(), Retire(1)]


def test_a_reload_during_the_trial_of_another_takes_its_place():
    story = reloading()
    story.do(Forked(3, 7, 0.5))
    assert story.reload(Reload.WORKERS) == [Kill(3), KillZygote(2), StartZygote(3, Reload.GRACEFUL)]
    assert story.do(ZygoteGone(2, -9)) == []
    assert story.do(WorkerReady(3)) == [Retire(3)]  # it was faster than the signal: it leaves all the same
    assert story.do(WorkerGone(3, -9, 0)) == [Forget(3)]
    assert story.do(ZygoteLoaded(3)) == [Fork(3, 1, 3, proof=True)]


def test_a_worker_of_a_trial_that_was_given_up_never_serves():
    """It was asked for; nobody knew its pid when the trial ended. READY and its pid may come in any order."""
    for first, second in [(WorkerReady(3), Forked(3, 7, 0.5)), (Forked(3, 7, 0.5), WorkerReady(3))]:
        story = reloading()
        story.reload(Reload.WORKERS)
        assert sorted(map(repr, story.do(first) + story.do(second))) == [repr(Kill(3)), repr(Retire(3))]
        assert generations(story) == [1, 1]


def test_a_reload_during_the_switch_is_another_trial():
    """The code that is being switched to may be what it is to mend. Who waited for the first is told of both."""
    story = reloading()
    story.ready(3)
    assert story.reload(Reload.CHAIN, ticket=8) == [StartZygote(3, Reload.CHAIN)]
    assert story.do(RoomFound(8)) == [Fork(4, 2, 2)]
    assert story.do(ZygoteLoaded(3)) == [Fork(5, 1, 3, proof=True)]
    assert story.ready(5) == [Switch(3), RetireZygote(1), RetireZygote(2), Retire(4), Retire(3)]
    for gone in (1, 3, 4):
        story.do(WorkerGone(gone, 0, 0))
    assert story.ready(1) == [Retire(2), ReloadEnded(3, tickets=(7, 8))]


def test_a_reload_that_fails_during_the_switch_leaves_the_switch_alone():
    story = reloading()
    story.ready(3)
    story.reload(Reload.CHAIN, ticket=8)
    assert story.do(ZygoteGone(3, 22)) == [ReloadEnded(3, "the application could not be loaded", tickets=(8,))]
    story.do(RoomFound(8))
    assert story.ready(4) == [Retire(2), ReloadEnded(2)]


def test_old_workers_that_are_still_loading_at_the_switch_are_sent_away():
    """What they load may be what the new code was deployed to cure."""
    story = Story(2).serving()
    story.do(WorkerGone(2, -9, 5), after=5)
    story.do(Forked(2, 1002, 0.5))
    story.do(WorkerAlive(2))
    story.reload(Reload.GRACEFUL)
    story.do(ZygoteLoaded(2))
    assert Retire(2) in story.ready(3)
    assert Kill(2) in story.do(Tick(0), after=60)


def test_the_first_new_worker_has_the_new_limits():
    story = Story(1).serving()
    settings = story.overseer.settings.model_copy(update={"recycling": HUNDRED})
    story.reload(Reload.GRACEFUL, settings=settings)
    story.do(ZygoteLoaded(2))
    story.ready(2)
    story.do(WorkerGone(1, 0, 0))
    assert story.do(served(w2=100), after=10) == [Fork(1, 1, 2)]


def test_a_worker_whose_post_is_given_up_while_it_loads_leaves():
    story = reloading()
    story.do(NobodyWanted())
    story.do(WorkerGone(1, 0, 0))
    story.do(WorkerGone(2, 0, 0))
    assert story.ready(3) == [Switch(2), RetireZygote(1), MeasureRoom(), Retire(3), ReloadEnded(2)]
    assert story.overseer.wanted == 0


def test_cheaper_leaves_the_post_alone_whose_new_worker_is_coming():
    story = Story(3, initial=2).serving()
    story.reload(Reload.GRACEFUL)
    story.do(ZygoteLoaded(2))
    assert story.overseer.spare() == [2]


def test_a_reload_at_start_up_begins_when_the_application_is_loaded():
    story = Story(2)
    assert story.reload(Reload.GRACEFUL) == []
    assert story.do(ZygoteLoaded(1)) == [Fork(1, 1), Fork(2, 2), StartZygote(2, Reload.GRACEFUL)]


def test_without_a_worker_a_loaded_application_is_proof_enough():
    story = Story(2, initial=0).serving()
    story.reload(Reload.GRACEFUL)
    assert story.do(ZygoteLoaded(2)) == [Switch(2), RetireZygote(1), MeasureRoom(), ReloadEnded(2)]
    assert story.do(MoreWanted(1)) == [Fork(1, 1, 2)]


def test_a_stop_ends_the_trial():
    story = reloading()
    story.do(Forked(3, 7, 0.5))
    assert story.do(StopAsked(fast=False)) == [CloseDoor(), Kill(3), KillZygote(2), ReloadEnded(2, "the server stops")]
    assert story.reload(Reload.GRACEFUL) == [ReloadEnded(1, "the server stops")]
    assert story.do(Tick(0)) == [Retire(1), Retire(2)]


def test_a_stop_ends_the_switch():
    story = reloading()
    story.ready(3)
    assert story.do(StopAsked(fast=False)) == [CloseDoor(), ReloadEnded(2, "the server stops")]
    assert story.do(RoomFound(8)) == []
    assert story.do(Tick(0)) == [Retire(2), Retire(3)]


def test_brutal_means_a_second():
    story = Story(1).serving()
    story.reload(Reload.GRACEFUL, brutal=True)
    story.do(ZygoteLoaded(2))
    story.ready(2)
    assert story.do(Tick(1), after=1) == [Kill(1)]


def test_brutal_stays_brutal_when_another_reload_takes_its_place():
    story = Story(1).serving()
    story.reload(Reload.WORKERS, brutal=True)
    story.reload(Reload.GRACEFUL, ticket=8)
    story.do(ZygoteLoaded(3))
    story.ready(2)
    assert story.do(Tick(1), after=1) == [Kill(1)]


def test_the_zygote_comes_sooner_when_the_last_worker_has_died():
    story = Story(1).serving()
    for generation in range(1, 8):
        story.do(ZygoteGone(generation, -9), after=0.1)
        story.do(Tick(0), after=30)
    story.do(ZygoteGone(8, -9), after=0.1)
    assert story.overseer.wake_at == story.now + 30
    story.do(WorkerGone(1, -9, 5), after=5)
    assert story.overseer.wake_at <= story.now + 1


def test_cheaper_goes_on_during_a_switch():
    """Stale workers end first, and new ones are of the new generation."""
    story = Story(4, initial=3).serving()
    story.reload(Reload.GRACEFUL)
    story.do(ZygoteLoaded(2))
    story.ready(4)
    assert story.overseer.spare() == [3, 2, 4]
    assert Fork(5, 4, 2) in story.do(MoreWanted(1))


def test_nobody_is_wanted():
    story = Story(2).serving()
    story.do(WorkerGone(1, -9, 5), after=5)  # one has ended before: its slot is used again
    story.ready(1)
    assert story.do(NobodyWanted()) == [Retire(1), Retire(2)]
    assert story.do(WorkerGone(1, 0, 5)) == [Forget(1)]
    assert "uWSGI worker 1 cheaped." in story.said()
    assert story.do(MoreWanted(1)) == [Fork(1, 1)]


def let_everything_go_well(story):
    """Who loads has loaded, who was asked for is there, who is to leave has left."""
    overseer = story.overseer
    for _ in range(60):
        for generation, loaded_at in list(overseer.zygotes.items()):
            wanted = generation == overseer.generation or (overseer.trial and generation == overseer.trial.generation)
            if not wanted:
                story.do(ZygoteGone(generation, 0))
            elif loaded_at is None:
                story.do(ZygoteLoaded(generation))
        for slot in overseer.slots:
            if slot.phase is Phase.ASKED or (slot.phase is Phase.LEAVING and not slot.pid):
                story.do(Forked(slot.place, 1000 + slot.place, 0.5))
            if slot.phase is Phase.STARTING:
                story.do(WorkerReady(slot.place))
            elif slot.phase is Phase.LEAVING:
                story.do(WorkerGone(slot.place, 0, 0))
        story.do(Tick(1), after=1)


DURING = st.sampled_from(
    [
        *("reload", "loaded", "zygote gone", "tick", "room", "forked", "ready", "gone", "crash"),
        *("worn", "nobody", "more", "cheaped", "broken", "stuck"),
    ]
)


@given(st.lists(st.tuples(DURING, st.integers(1, 8)), max_size=80))
def test_whatever_happens_during_reloads_nobody_leaves_before_its_successor_is_there(happenings):
    """And in the end all that is wanted is there, of one generation, and everybody who waited was told."""
    story = Story(3).serving()
    asked = 0
    for what, place in happenings:
        overseer = story.overseer
        slot = overseer.slots[place - 1]
        serving = {one.number for one in overseer.slots if one.phase is Phase.READY}
        loading = [one for one, loaded_at in overseer.zygotes.items() if loaded_at is None]
        if what == "reload":
            asked += 1
            story.reload([Reload.GRACEFUL, Reload.WORKERS, Reload.CHAIN][place % 3], ticket=asked)
        elif what == "loaded" and loading:
            story.do(ZygoteLoaded(loading[place % len(loading)]), after=0.5)
        elif what == "zygote gone" and overseer.zygotes:
            generation = list(overseer.zygotes)[place % len(overseer.zygotes)]
            unknown = [one for one in overseer.slots if not one.pid and one.generation == generation]
            serving -= {one.number for one in unknown}  # nobody knows their pids: they are given up
            story.do(ZygoteGone(generation, -9), after=0.5)
        elif what == "tick":
            story.do(Tick(1), after=[1, 40, 200][place % 3])
        elif what == "room":
            story.do(RoomFound(place - 1))
        elif what == "forked" and slot.phase in (Phase.ASKED, Phase.LEAVING) and not slot.pid:
            story.do(Forked(place, 1000 + place, 0.5))
        elif what == "ready" and slot.phase in (Phase.ASKED, Phase.STARTING):
            story.do(WorkerReady(place))
        elif what == "gone" and slot.phase is Phase.LEAVING and slot.pid:
            story.do(WorkerGone(place, 0, 0), after=0.1)
        elif what == "crash" and slot.pid:
            story.do(WorkerGone(place, -11, 0), after=5)
            serving.discard(slot.number)
        elif what == "worn" and slot.phase is Phase.READY:
            story.do(WorkerWorn(place, "is tired"))
        elif what == "nobody":
            story.do(NobodyWanted())
            serving = set()
        elif what == "more":
            story.do(MoreWanted(place % 3))
        elif what == "cheaped" and place in overseer.spare():
            story.do(Cheaped(place))
            serving.discard(slot.number)
        elif what in ("broken", "stuck") and slot.phase is not Phase.EMPTY:
            story.do(WorkerBroken(place) if what == "broken" else WorkerStuck(place))
            serving.discard(slot.number)
        ready = [one for one in overseer.slots if one.phase is Phase.READY]
        assert len({one.number for one in ready}) == len(ready)
        assert {one.number for one in ready if not overseer.posts[one.number - 1].off} >= {
            number for number in serving if not overseer.posts[number - 1].off
        }
        assert all(one.generation <= overseer.generation for one in ready)
        assert overseer.wanted == sum(not post.off for post in overseer.posts)
    let_everything_go_well(story)
    overseer = story.overseer
    assert (overseer.trial, overseer.switching, overseer.pending) == (None, None, None)
    there = [(slot.number, slot.generation) for slot in overseer.slots if slot.phase is not Phase.EMPTY]
    assert sorted(there) == [(post.number, overseer.generation) for post in overseer.posts if not post.off]
    told = [ticket for one in story.told if isinstance(one, ReloadEndedIn) for ticket in one.tickets]
    assert sorted(told) == list(range(1, asked + 1))


# ---- the rest ----


def test_many_forks_are_asked_in_portions():
    story = Story(100)
    asked = story.do(ZygoteLoaded(1))
    assert asked == [Fork(slot, slot) for slot in range(1, MAX_ASKED + 1)]
    assert story.do(Tick(0), after=1) == []
    assert story.do(Forked(1, 7, 0.5)) == [Fork(MAX_ASKED + 1, MAX_ASKED + 1)]


def test_nothing_begins_after_the_exit():
    story = Story(required=True)
    assert story.do(ZygoteGone(1, 22)) == [Exit(22)]
    assert story.overseer.wake_at is None
    assert story.do(Tick(0), after=100) == []


def test_an_impossible_move_is_a_defect_that_shows():
    story = Story(1).serving()
    with pytest.raises(ValueError, match="READY can't become STARTING"):
        story.overseer.slots[0].move(Phase.STARTING)


def test_the_line_that_people_grep_for():
    assert damn(3, 42, 1) == "DAMN ! worker 3 (pid: 42) died :( trying respawn ..."


# ---- cheaper ----


def test_cheaper_starts_with_the_lowest_numbers():
    story = Story(8, initial=2)
    assert story.do(ZygoteLoaded(1)) == [Fork(1, 1), Fork(2, 2)]
    assert (story.overseer.wanted, story.overseer.crew()) == (2, (0, 2))
    story.ready(1)
    assert (story.overseer.wanted, story.overseer.crew()) == (2, (1, 1))


def test_more_are_wanted():
    story = Story(4, initial=2).serving()
    assert story.do(MoreWanted(1)) == [Fork(3, 3)]
    assert (story.overseer.wanted, story.overseer.crew()) == (3, (2, 1))
    assert story.do(MoreWanted(9)) == [Fork(4, 4)]  # there is room for no more than processes


def test_more_are_wanted_before_the_application_is_loaded():
    story = Story(4, initial=0)
    assert story.do(MoreWanted(2)) == []
    assert story.do(ZygoteLoaded(1)) == [Fork(1, 1), Fork(2, 2)]


def test_a_cheaped_worker_is_not_replaced():
    story = Story(3, initial=3).serving()
    assert story.do(Cheaped(3)) == [Retire(3)]
    assert story.do(WorkerGone(3, 0, 5), after=1) == [Forget(3)]
    assert "uWSGI worker 3 cheaped. (pid: 1003)" in story.said()
    assert story.overseer.wanted == 2
    assert story.do(MoreWanted(1)) == [Fork(3, 3)]


def test_a_dead_worker_of_a_post_that_is_wanted_is_replaced():
    story = Story(4, initial=2).serving()
    assert story.do(WorkerGone(1, -9, 5), after=5) == [Forget(1), Fork(1, 1)]
    assert story.overseer.wanted == 2


def test_a_cheaped_worker_that_does_not_end_is_killed_after_the_mercy():
    """Meanwhile its number may be wanted again."""
    story = Story(2).serving()
    story.do(Cheaped(2))
    assert story.do(MoreWanted(1)) == [Fork(3, 2)]
    assert Kill(2) in story.do(Tick(0), after=60.1)


def test_who_ends_first():
    """Those that are to be replaced anyway, then the highest numbers; not while a replacement is on its way."""
    story = Story(4).serving()
    assert story.overseer.spare() == [4, 3, 2, 1]
    story.do(WorkerWorn(1, "is tired"))  # asks for its replacement at once
    assert story.overseer.spare() == [4, 3, 2]
    story.do(ForkFailed(5, "no memory"))
    assert story.overseer.spare() == [1, 4, 3, 2]


def test_with_no_worker_wanted_nobody_is_in_a_hurry():
    story = Story(1).serving()
    story.do(Cheaped(1))
    story.do(WorkerGone(1, 0, 0), after=1)
    assert story.overseer.wake_at is None
    assert story.do(StopAsked(fast=False)) == [CloseDoor()]
    assert story.do(Tick(0)) == [Exit(0)]
