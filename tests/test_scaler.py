"""What becomes of a decision about the number of workers; the front is simulated, the overseer is the real one."""

import asyncio
from dataclasses import replace

import pytest

from wsgimaster.events import Forked, MoreWanted, Retire, WorkerReady, ZygoteLoaded
from wsgimaster.lifecycle import Overseer, Stopping
from wsgimaster.scaler import KEPT, Scaler
from wsgimaster.scaling import policy, room
from wsgimaster.scaling.room import Holder
from wsgimaster.settings import Cheaper, Processes, Settings

MIB = 1 << 20
PLENTY = room.Memory(90 * MIB, 60 * MIB)
FULL = replace(PLENTY, holders=(Holder("the control group /web", 200 * MIB, 256 * MIB),))


class SimulatedFront:
    """claimed: slots whose workers can't be ended, although they were idle at the last look."""

    def __init__(self):
        self.waiting = self.busy = self.idle = self.served = 0
        self.claimed = set()

    def work(self):
        return 0.0, 0.0, self.busy

    def waits(self, longer_than):
        return self.waiting, max(0, self.waiting - 1), 0.06 if self.waiting else 0.0

    def retire_if_idle(self, slot):
        return slot + 1 not in self.claimed


class Pool:
    """Workers that are all there, and a scaler above them."""

    def __init__(self, workers, processes=4, threads=1, held=PLENTY, **settings):
        first = Cheaper(minimum=workers, cheap=not workers) if workers < processes else Cheaper()
        self.overseer = Overseer(Settings(processes=Processes(processes=processes), cheaper=first))
        self.front, self.effects, self.said, self.stopped = SimulatedFront(), self.overseer.start(), [], []
        self.handle(ZygoteLoaded(1))
        for slot in range(1, workers + 1):
            self.handle(Forked(slot, 1000 + slot, 0.5))
            self.handle(WorkerReady(slot))
        self.settings = Cheaper(**{"minimum": 1, "algorithm": "backlog", "step": 2, **settings})
        self.scaler = Scaler(
            self.settings,
            threads,
            self.front,
            self.overseer,
            dict,
            self.handle,
            self.stopped.append,
            self.said.append,
        )
        self.held, self.looks = held, 0
        self.scaler.workers_memory = self

    def look(self, requests, thorough):
        """Instead of what the workers really hold."""
        self.looks += 1
        return self.held

    def handle(self, event):
        self.effects += self.overseer.handle(event, 100.0)

    def decide(self, decide=policy.decide):
        asyncio.run(self.scaler.decide(decide))
        return self.overseer.wanted

    def ended(self):
        return [effect.slot for effect in self.effects if isinstance(effect, Retire)]


def test_one_ends_and_the_log_says_why():
    pool = Pool(3)
    assert pool.decide() == 2
    assert pool.ended() == [3]
    assert pool.said == ["cheaper: 3 -> 2 workers: 0 requests wait (cheaper-overload = 3)"]
    (change,) = pool.scaler.changes
    assert (change.workers, change.change, change.why) == (2, -1, "0 requests wait (cheaper-overload = 3)")


def test_who_got_a_request_in_this_moment_stays():
    pool = Pool(3)
    pool.front.claimed = {3}
    assert pool.decide() == 2
    assert pool.ended() == [2]


def test_if_nobody_can_end_the_decision_was_never_made():
    pool = Pool(3)
    pool.front.claimed = {1, 2, 3}
    assert pool.decide() == 3
    assert (pool.said, list(pool.scaler.changes)) == ([], [])
    assert pool.scaler.memory.missed.ended_at is None


def test_memory_is_read_anew_before_workers_are_added():
    """The last look may be a second old, from before the burst."""
    pool = Pool(1, held=FULL)
    pool.scaler.held = PLENTY
    pool.front.waiting = 9
    assert pool.decide() == 1
    assert "there is room for 0: the control group /web holds 200 MiB of 256 MiB" in pool.said[0]


def test_those_that_were_just_added_hold_memory_too():
    """Until the next look has seen them."""
    pool = Pool(1, held=replace(PLENTY, holders=(Holder("the machine", 100 * MIB, 256 * MIB),)))
    pool.front.waiting = 9
    assert pool.decide() == 3
    assert room.room(pool.settings, pool.scaler.held).workers == 0


def test_what_an_algorithm_counts_is_kept_from_round_to_round():
    pool = Pool(1, algorithm="spare")
    pool.front.busy = 1
    assert [pool.decide() for _ in range(4)] == [1, 1, 1, 3]


def test_what_the_policy_gets_to_see():
    pool = Pool(2, threads=3)
    pool.handle(MoreWanted(1))
    pool.front.busy, pool.front.idle, pool.front.waiting, pool.front.served = 1, 4, 9, 70
    seen = pool.scaler.look()
    assert (seen.wanted, seen.spawnable, seen.workers, seen.coming, seen.threads) == (3, 1, 3, 1, 3)
    assert (seen.busy, seen.free_cores, seen.served) == (1, 4, 70)
    assert (seen.waiting, seen.overdue, seen.oldest) == (9, 8, 0.06)


ROUNDS = {
    "nothing to do: only the first": ({}, {}, 1),
    "a request runs": ({}, {"busy": 1}, 5),
    "requests wait": ({"algorithm": "manual"}, {"waiting": 1}, 5),
    "a limit for the workers themselves": ({"rss_soft": 500 * MIB}, {}, 5),
    "without cheaper": ({"minimum": 0, "idle": 9999}, {"busy": 1}, 0),
}


@pytest.mark.parametrize(("settings", "front", "looks"), ROUNDS.values(), ids=ROUNDS)
def test_memory_is_looked_at_while_there_is_work(monkeypatch, settings, front, looks):
    """In five rounds."""
    monkeypatch.setattr("wsgimaster.scaler.ROUND", 0.001)
    pool = Pool(1, **settings)
    for name, value in front.items():
        setattr(pool.front, name, value)
    rounds = 0

    async def decide(_):
        nonlocal rounds
        rounds += 1
        if rounds == 5:
            pool.overseer.stopping = Stopping.LEAVING

    monkeypatch.setattr(pool.scaler, "decide", decide)
    asyncio.run(asyncio.wait_for(pool.scaler.watch(), 60))
    assert pool.looks == looks


def test_who_waits_is_no_reason_while_a_core_is_free():
    pool = Pool(1)
    pool.front.waiting, pool.front.idle = 9, 1
    assert pool.decide(policy.hurry) == 1
    pool.front.idle = 0
    assert pool.decide(policy.hurry) == 3


def idle_pool(**settings):
    pool = Pool(2, minimum=0, idle=1, **settings)
    pool.scaler.memory = replace(pool.scaler.memory, served_at=0.0)  # a long time ago
    return pool


def test_idle_all_end():
    pool = idle_pool()
    assert pool.decide() == 0
    assert (sorted(pool.ended()), pool.stopped) == ([1, 2], [])


def test_die_on_idle():
    pool = idle_pool(die_on_idle=True)
    assert pool.decide() == 0
    assert pool.stopped == ["die-on-idle"]


def test_idle_but_one_got_a_request_in_this_moment():
    """Then there is work, and the others are needed too."""
    pool = idle_pool(die_on_idle=True)
    pool.front.claimed = {1}
    assert pool.decide() == 2
    assert pool.stopped == []


LOOKS = {
    "there may be more": ({"minimum": 1}, 2, True),
    "all there are": ({"minimum": 1}, 4, False),
    "nobody hurries": ({"minimum": 1, "queue_wait": 0}, 2, False),
    "without cheaper": ({"minimum": 0, "idle": 9}, 2, False),
    "none at all (cheap)": ({"minimum": 0, "cheap": True}, 0, True),
}


@pytest.mark.parametrize(("settings", "workers", "expected"), LOOKS.values(), ids=LOOKS)
def test_whether_those_who_wait_are_looked_at(settings, workers, expected):
    pool = Pool(workers, **settings)
    pool.scaler.requests_wait()
    assert pool.scaler.somebody_waits.is_set() is expected


def test_the_last_hundred_changes_are_kept():
    pool = Pool(1, processes=KEPT + 20, step=1)
    pool.front.waiting = 9
    for _ in range(KEPT + 5):
        pool.decide()
    assert [change.workers for change in pool.scaler.changes] == list(range(7, KEPT + 7))
