"""What happens to the zygote and the workers: whole stories, without a process."""

import pytest

from wsgimaster.lifecycle import (
    MAX_ASKED,
    TRANSITIONS,
    CloseDoor,
    Exit,
    Forget,
    Fork,
    Forked,
    ForkFailed,
    Kill,
    Overseer,
    Phase,
    RefuseWaiting,
    Retire,
    Say,
    StartZygote,
    StopAsked,
    Tick,
    WorkerBroken,
    WorkerGone,
    WorkerReady,
    ZygoteGone,
    ZygoteLoaded,
    backoff,
    damn,
)


class Story:
    """An overseer and a clock that only moves when told to."""

    def __init__(self, processes=2, *, required=False):
        self.overseer = Overseer(processes, threads=1, required=required, mercy=60.0)
        self.now = 100.0
        self.told = self.overseer.start()

    def do(self, event, after=0.0):
        """The effects, without what is only said."""
        self.now += after
        effects = self.overseer.handle(event, self.now)
        self.told += effects
        return [effect for effect in effects if not isinstance(effect, Say)]

    def ready(self, slot):
        return self.do(Forked(slot, 1000 + slot)) + self.do(WorkerReady(slot))

    def serving(self):
        self.do(ZygoteLoaded())
        for slot in self.overseer.slots:
            self.ready(slot.number)
        return self

    def phases(self):
        return [slot.phase for slot in self.overseer.slots]

    def said(self):
        return "\n".join(effect.text for effect in self.told if isinstance(effect, Say))


def test_every_phase_has_its_row():
    assert set(TRANSITIONS) == set(Phase)


def test_the_start():
    story = Story()
    assert story.told == [StartZygote()]
    assert story.do(ZygoteLoaded()) == [Fork(1), Fork(2)]
    assert story.ready(1) + story.ready(2) == []
    assert story.phases() == [Phase.READY, Phase.READY]
    assert "spawned uWSGI worker 2 (pid: 1002, cores: 1)" in story.said()


def test_ready_may_come_before_the_fork_is_reported():
    story = Story(1)
    story.do(ZygoteLoaded())
    story.do(WorkerReady(1))
    story.do(Forked(1, 7))
    assert story.phases() == [Phase.READY]


def test_a_dead_worker_is_replaced_at_once():
    story = Story().serving()
    assert story.do(WorkerGone(2, -9), after=5) == [Forget(2), Fork(2)]
    assert "DAMN ! worker 2 (pid: 1002) died, killed by signal 9 :( trying respawn ..." in story.said()


def test_a_crash_loop_backs_off_in_its_own_slot():
    story = Story().serving()
    waits = []
    for _ in range(8):
        effects = story.do(WorkerGone(1, 1), after=0.1)
        if Fork(1) not in effects:
            waits.append(round(story.overseer.wake_at - story.now, 3))
            assert story.do(Tick(0), after=waits[-1]) == [Fork(1)]
        story.ready(1)
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert story.phases()[1] is Phase.READY  # the neighbour never noticed


def test_a_worker_that_lived_ends_the_loop():
    story = Story(1).serving()
    story.do(WorkerGone(1, 1), after=0.1)
    story.ready(1)
    story.do(WorkerGone(1, 1), after=10)
    assert story.overseer.slots[0].crashes == 0


@pytest.mark.parametrize(
    ("crashes", "seconds"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (7, 30), (100, 30), (5000, 30)]
)
def test_the_backoff(crashes, seconds):
    assert backoff(crashes) == seconds


def test_a_failed_fork_is_tried_again():
    story = Story(1)
    story.do(ZygoteLoaded())
    assert story.do(ForkFailed(1, "Cannot allocate memory")) == [Forget(1)]
    assert story.do(Tick(0), after=1.0) == [Fork(1)]
    assert "Cannot allocate memory" in story.said()


def test_need_app_ends_the_start_with_22():
    assert Story(required=True).do(ZygoteGone(22)) == [Exit(22)]


def test_need_app_under_lazy_apps_ends_the_start_with_22():
    story = Story(1, required=True)
    story.do(ZygoteLoaded())
    story.do(Forked(1, 7))
    assert story.do(WorkerGone(1, 22))[-1] == Exit(22)


def test_a_zygote_that_crashes_at_the_start_ends_it_with_1():
    assert Story().do(ZygoteGone(-11)) == [Exit(1)]


def test_a_zygote_that_dies_later_is_started_again_and_the_workers_stay():
    story = Story().serving()
    assert story.do(ZygoteGone(-9)) == []
    assert story.phases() == [Phase.READY, Phase.READY]
    assert story.do(WorkerGone(1, -9), after=0.1) == [Forget(1)]  # nobody there to fork
    assert story.do(Tick(0), after=0.9) == [StartZygote()]
    assert story.do(ZygoteLoaded()) == [Fork(1)]


def test_forks_that_the_zygote_took_with_it_are_asked_again():
    story = Story().serving()
    story.do(WorkerGone(1, 0), after=5)
    assert story.do(ZygoteGone(-9)) == [Forget(1)]
    assert story.phases() == [Phase.EMPTY, Phase.READY]


def test_a_zygote_that_dies_in_the_middle_of_a_fork_does_not_hold_up_the_end():
    story = Story(1)
    story.do(ZygoteLoaded())
    story.do(StopAsked(fast=True))
    assert story.do(ZygoteGone(-9)) == [Forget(1), Exit(0)]


def test_a_fork_that_failed_because_the_zygote_is_gone():
    story = Story(1)
    story.do(ZygoteLoaded())
    story.overseer.ever_ready = True
    assert story.do(ZygoteGone(-9)) == [Forget(1)]
    assert story.do(ForkFailed(1, "Broken pipe")) == []


def test_a_graceful_stop_finishes_the_work_first():
    story = Story().serving()
    assert story.do(StopAsked(fast=False)) == [CloseDoor()]
    assert story.do(Tick(work_left=3), after=1) == []
    assert story.do(Tick(work_left=0), after=1) == [Retire(1), Retire(2)]
    assert story.do(WorkerGone(1, 0)) == [Forget(1)]
    assert story.do(WorkerGone(2, 0)) == [Forget(2), Exit(0)]
    assert "DAMN" not in story.said()


def test_a_worker_that_dies_while_work_is_left_is_still_replaced():
    story = Story(1).serving()
    story.do(StopAsked(fast=False))
    assert story.do(WorkerGone(1, -9), after=5) == [Forget(1), Fork(1)]


def test_a_graceful_stop_ends_with_the_mercy():
    story = Story(1).serving()
    story.do(StopAsked(fast=False))
    assert story.overseer.wake_at == story.now + 60
    assert story.do(Tick(work_left=2), after=60) == [RefuseWaiting(), Retire(1), Kill(1)]
    assert story.do(WorkerGone(1, -9)) == [Forget(1), Exit(0)]
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
    story.do(ZygoteLoaded())
    story.do(StopAsked(fast=True))
    assert story.do(Tick(work_left=0), after=1.0) == [Forget(1), Exit(0)]


def test_a_worker_without_a_channel_is_replaced_when_it_has_finished():
    story = Story(2).serving()
    assert story.do(WorkerBroken(2), after=5) == [Retire(2)]
    assert story.do(WorkerBroken(2)) == []
    assert story.do(WorkerGone(2, 1)) == [Forget(2), Fork(2)]
    assert "DAMN" not in story.said()


def test_a_worker_without_a_channel_is_killed_after_the_mercy():
    story = Story(1).serving()
    story.do(WorkerBroken(1))
    assert story.overseer.wake_at == story.now + 60
    assert story.do(Tick(work_left=1), after=60) == [Kill(1)]


def test_many_forks_are_asked_in_portions():
    story = Story(100)
    asked = story.do(ZygoteLoaded())
    assert asked == [Fork(slot) for slot in range(1, MAX_ASKED + 1)]
    assert story.overseer.wake_at is None
    assert story.do(Forked(1, 7)) == [Fork(MAX_ASKED + 1)]


def test_nothing_begins_after_the_exit():
    story = Story(required=True)
    assert story.do(ZygoteGone(22)) == [Exit(22)]
    assert story.overseer.wake_at is None
    assert story.do(Tick(0), after=100) == []


def test_an_impossible_move_is_a_defect_that_shows():
    story = Story(1).serving()
    with pytest.raises(ValueError, match="READY can't become STARTING"):
        story.overseer.slots[0].move(Phase.STARTING)


def test_the_line_that_people_grep_for():
    assert damn(3, 42, 1) == "DAMN ! worker 3 (pid: 42) died :( trying respawn ..."
