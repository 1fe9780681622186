"""How many workers there should be: the algorithms of `cheaper-algo`, and what stands above all of them."""

from dataclasses import replace

import pytest

from wsgimaster.scaling import busyness, flapping, policy, room
from wsgimaster.scaling.facts import Sample
from wsgimaster.scaling.room import Holder
from wsgimaster.settings import Algorithm, Cheaper

MIB = 1 << 20
PROCESSES = 10
NO_WORK = Sample(
    wanted=2,
    spawnable=8,
    workers=2,
    coming=0,
    busy=0,
    free_cores=2,
    threads=1,
    busy_seconds=0.0,
    core_seconds=0.0,
    served=0,
    waiting=0,
)


def look(workers, busy=0, waiting=0, **more):
    values = {"wanted": workers, "spawnable": PROCESSES - workers, "free_cores": workers - busy, **more}
    return replace(NO_WORK, workers=workers, busy=busy, waiting=waiting, **values)


def changes(settings, looks, held=room.NOTHING_HELD):
    """What is decided in each second, whatever the workers do."""
    memory, found = policy.fresh(settings), []
    for second, sample in enumerate(looks):
        decision, memory = policy.decide(settings, sample, held, memory, float(second))
        found.append(decision.change)
    return found


# (settings, one look a second, the decisions): the reference's words for each algorithm, as numbers.
SPARE = {
    "three seconds of all busy are no reason": ({}, [look(2, 2)] * 3, [0, 0, 0]),
    "the fourth is, then it is counted anew": ({}, [look(2, 2)] * 8, [0, 0, 0, 1, 0, 0, 0, 1]),
    "one idle worker takes a busy second back": (
        {},
        [look(2, 2)] * 3 + [look(2, 1)] + [look(2, 2)] * 2,
        [0, 0, 0, 0, 0, 1],
    ),
    "cheaper-overload = 1": ({"overload": 1}, [look(2, 2)] * 4, [0, 1, 0, 1]),
    "cheaper-step = 4": ({"step": 4}, [look(2, 2)] * 4, [0, 0, 0, 4]),
    "no more than processes": ({"step": 4}, [look(8, 8)] * 4, [0, 0, 0, 2]),
    "all there are": ({}, [look(10, 10)] * 5, [0] * 5),
    "a long time at the limit is forgotten as soon": ({}, [look(10, 10)] * 60 + [look(10, 1)] * 3, [0] * 62 + [-1]),
    "one that died is no idle one": ({}, [look(2, 2, wanted=3)] * 4, [0, 0, 0, 1]),
    "two idle ones: every third second one ends": ({}, [look(6, 4)] * 7, [0, 0, -1, 0, 0, -1, 0]),
    "exactly one idle worker is right": ({}, [look(6, 5)] * 9, [0] * 9),
    "not below cheaper": ({}, [look(2, 0)] * 9, [0] * 9),
    "busy seconds must be forgotten first": ({}, [look(4, 4)] * 2 + [look(4, 0)] * 5, [0, 0, 0, 0, 0, -1, 0]),
}
SPARE2 = {
    "too few idle: what is missing": ({"step": 4}, [look(4, 3)], [1]),
    "at most cheaper-step of it": ({"minimum": 4}, [look(4, 4)] * 2, [1, 1]),
    "as many idle as wanted": ({}, [look(6, 4)] * 20, [0] * 20),
    "one too many for cheaper-idle seconds": ({"idle_rounds": 3}, [look(6, 1)] * 6, [0, 0, -1, 0, 0, -1]),
    "counted anew after a second of work": (
        {"idle_rounds": 3},
        [look(6, 1)] * 2 + [look(6, 4)] + [look(6, 1)] * 3,
        [0, 0, 0, 0, 0, -1],
    ),
}
BACKLOG = {
    "as many as the threshold": ({}, [look(4, 4, waiting=3)], [0]),
    "more than that": ({"step": 2}, [look(4, 4, waiting=4)] * 2, [2, 2]),
    "fewer: one less each second": ({}, [look(4, 2, waiting=2)] * 2, [-1, -1]),
    "not below cheaper": ({}, [look(2, 0)], [0]),
    "cheaper-overload = 0": ({"overload": 0}, [look(4, 4, waiting=1), look(4, 0)], [1, 0]),
}
MANUAL = {"whatever happens": ({}, [look(2, 2, waiting=100)] * 9 + [look(9, 0)] * 9, [0] * 18)}
TABLES = {
    Algorithm.SPARE: SPARE,
    Algorithm.SPARE2: SPARE2,
    Algorithm.BACKLOG: BACKLOG,
    Algorithm.MANUAL: MANUAL,
}
ROWS = [(algorithm, name, *row) for algorithm, table in TABLES.items() for name, row in table.items()]


@pytest.mark.parametrize(
    ("algorithm", "settings", "looks", "expected"),
    [(a, *r) for a, _, *r in ROWS],
    ids=[f"{a}: {n}" for a, n, *_ in ROWS],
)
def test_algorithms(algorithm, settings, looks, expected):
    assert changes(Cheaper(**{"minimum": 2, "algorithm": algorithm, **settings}), looks) == expected


# ---- busyness ----


class Windows:
    """Seconds in which all cores of the workers were busy to a certain percentage."""

    def __init__(self, **settings):
        self.settings = Cheaper(**{"minimum": 2, "algorithm": "busyness", "overload": 1, **settings})
        self.memory, self.second, self.said = policy.fresh(self.settings), 0, []
        self.sample = look(2)
        self.decide()  # the first look only begins a window

    def decide(self, **sample):
        self.sample = replace(self.sample, **sample)
        decision, self.memory = policy.decide(self.settings, self.sample, room.NOTHING_HELD, self.memory, self.second)
        self.said += [decision.why, *decision.also]
        return decision.change

    def pass_second(self, workers, percent, waiting=0, busy=None):
        self.second += 1
        busy = round(workers * percent / 100) if busy is None else busy
        return self.decide(
            wanted=workers,
            workers=workers,
            spawnable=PROCESSES - workers,
            busy=busy,
            free_cores=workers - busy,
            waiting=waiting,
            busy_seconds=self.sample.busy_seconds + workers * percent / 100,
            core_seconds=self.sample.core_seconds + workers,
        )

    def decisions(self, seconds):
        return [self.pass_second(*second) for second in seconds]

    @property
    def multiplier(self):
        return self.memory.algorithm.multiplier


# settings, (workers, percent[, waiting]) of each second, decisions
BUSYNESS = {
    "above max": ({}, [(2, 51)], [1]),
    "exactly max is in the band": ({}, [(2, 50)], [0]),
    "percents are whole, as in uWSGI": ({}, [(2, 50.9)], [0]),
    "cheaper-step at a time": ({"step": 4}, [(2, 100), (6, 100)], [4, 4]),
    "no more than processes": ({"step": 4}, [(8, 100), (10, 100)], [2, 0]),
    "a window has cheaper-overload seconds": ({"overload": 3}, [(2, 100)] * 6, [0, 0, 1, 0, 0, 1]),
    "below min, after multiplier windows": ({"multiplier": 3}, [(4, 10)] * 7, [0, 0, -1, 0, 0, -1, 0]),
    "exactly min is in the band": ({"multiplier": 1}, [(4, 25)] * 9, [0] * 9),
    "not below cheaper": ({"multiplier": 1}, [(2, 0)] * 5, [0] * 5),
    "a window in the band doesn't count": (
        {"multiplier": 3},
        [(4, 10), (4, 10), (4, 30), (4, 10), (4, 10)],
        [0, 0, 0, -1, 0],
    ),
    "three of them begin the wait anew": (
        {"multiplier": 3},
        [(4, 30)] * 3 + [(4, 10)] * 4,
        [0, 0, 0, 0, 0, -1, 0],
    ),
    "being above max begins it anew": (
        {"multiplier": 3},
        [(4, 10), (4, 10), (4, 60), (5, 10), (5, 10), (5, 10)],
        [0, 0, 1, 0, 0, -1],
    ),
    "more waiting than backlog-alert: emergency": ({}, [(2, 0, 34)], [1]),
    "as many as backlog-alert": ({}, [(2, 0, 33)], [0]),
    "emergency in every second, not only at the end of a window": (
        {"overload": 3, "backlog_step": 2},
        [(2, 0, 34), (4, 0, 34), (6, 0, 34)],
        [2, 2, 2],
    ),
    "above max comes before an emergency": ({"step": 4, "backlog_step": 1}, [(2, 100, 34)], [4]),
    "somebody waits for backlog-nonzero seconds": (
        {"backlog_nonzero": 3},
        [(2, 0, 1)] * 8,
        [0, 0, 0, 1, 0, 0, 1, 0],
    ),
    "an empty queue in between begins that anew": (
        {"backlog_nonzero": 3},
        [(2, 0, 1)] * 3 + [(2, 0, 0)] + [(2, 0, 1)] * 4,
        [0] * 7 + [1],
    ),
    "after a second emergency the wait is the shorter one": (
        {"multiplier": 9, "backlog_multiplier": 2},
        [(2, 0, 34), (3, 0, 34), (4, 0), (4, 0), (4, 0)],
        [1, 1, 0, -1, 0],
    ),
    "one worker is left alone": ({"minimum": 1, "multiplier": 1}, [(1, 0)] * 3, [0] * 3),
}


@pytest.mark.parametrize(("settings", "seconds", "expected"), BUSYNESS.values(), ids=BUSYNESS)
def test_busyness(settings, seconds, expected):
    assert Windows(**settings).decisions(seconds) == expected


def test_a_worker_that_is_missed_soon_makes_the_next_one_stay_longer():
    windows = Windows(multiplier=2, penalty=3)
    assert windows.decisions([(3, 0), (3, 0), (2, 100)]) == [0, -1, 1]
    assert windows.multiplier == 5
    assert windows.decisions([(3, 0)] * 6) == [0, 0, 0, 0, -1, 0]
    assert "[busyness] respawned too fast, increasing cheaper multiplier to 5 (+3)" in windows.said


def test_the_penalty_wears_off_when_workers_are_not_missed():
    windows = Windows(multiplier=1, penalty=2)
    assert windows.decisions([(9, 0), (8, 100)]) == [-1, 1]
    assert windows.multiplier == 3
    windows.decisions([(9, 0)] * 20)
    assert windows.multiplier == 1
    assert "[busyness] decreasing cheaper multiplier to 2" in windows.said


def test_the_first_workers_that_are_added_are_no_mistake():
    windows = Windows(multiplier=5)
    windows.decisions([(2, 100), (3, 100)])
    assert windows.multiplier == 5


def test_long_requests_count_while_they_run():
    """uWSGI counts them when they end, and guesses until then."""
    windows = Windows()
    windows.second += 1
    assert windows.decide(busy_seconds=1.2, core_seconds=2.0, busy=2) == 1


def test_an_hour_long_window_that_came_late_is_no_busier():
    windows = Windows()
    windows.second += 3600
    assert windows.decide(busy_seconds=0.49 * 7200, core_seconds=7200.0) == 0


def test_what_uwsgi_says_of_a_decision_can_be_found_in_the_log():
    windows = Windows(multiplier=1, verbose=True)
    windows.decisions([(2, 80), (3, 10)])
    assert "[busyness] 1s average busyness is at 80%, will spawn 1 new worker(s)" in windows.said
    assert "[busyness] 1s average busyness is at 10%, cheap one of 3 running workers" in windows.said


# ---- the queue ----

WAITING = look(4, busy=4, waiting=30, overdue=30, oldest=0.06)


def hurry(settings, sample, held=None, memory=None, now=100.0):
    settings = Cheaper(**{"minimum": 2, "step": 4, **settings})
    return policy.hurry(settings, sample, held or room.NOTHING_HELD, memory or policy.fresh(settings), now)


HURRIES = {
    "cheaper-step at once": ({}, WAITING, 4),
    "nobody for long": ({}, replace(WAITING, overdue=0), 0),
    "no more than wait": ({}, replace(WAITING, overdue=3), 3),
    "those that are coming count": ({}, replace(WAITING, overdue=6, coming=4), 2),
    "with all their cores": ({}, replace(WAITING, overdue=6, coming=2, threads=3), 0),
    "a core is free": ({}, replace(WAITING, free_cores=1), 0),
    "no more than processes": ({}, replace(WAITING, workers=9, spawnable=1), 1),
    "all there are": ({}, replace(WAITING, workers=10, spawnable=0), 0),
    "cheaper-queue-wait = 0": ({"queue_wait": 0}, WAITING, 0),
    "manual": ({"algorithm": "manual"}, WAITING, 0),
    "without cheaper": ({"minimum": 0, "idle": 5}, WAITING, 0),
    "no worker at all (cheap): cheaper of them": ({}, look(0, waiting=1), 2),
    "no worker, without cheaper: processes": ({"minimum": 0, "cheap": True}, look(0, waiting=1), 10),
    "no worker and nobody there": ({}, look(0), 0),
}


@pytest.mark.parametrize(("settings", "sample", "expected"), HURRIES.values(), ids=HURRIES)
def test_who_waits_makes_workers_start_at_once(settings, sample, expected):
    assert hurry(settings, sample)[0].change == expected


def test_one_step_at_a_time():
    """What was started gets the time to become ready, but no more than another queue-wait (lazy-apps)."""
    settings = Cheaper(minimum=2, step=4)
    _, memory = hurry({}, WAITING, now=100.0)
    ready = replace(WAITING, workers=8, wanted=8, spawnable=8)
    coming = replace(ready, coming=4)
    assert policy.hurry(settings, coming, room.NOTHING_HELD, memory, 100.04)[0].change == 0
    assert policy.hurry(settings, coming, room.NOTHING_HELD, memory, 100.06)[0].change == 4
    assert policy.hurry(settings, ready, room.NOTHING_HELD, memory, 100.01)[0].change == 4


def test_one_worker_at_a_time_until_it_is_known_what_one_needs():
    settings = Cheaper(minimum=2, step=4)
    unknown = room.Memory(known=False)
    decision, memory = hurry({}, WAITING, held=unknown, now=100.0)
    assert decision.change == 1
    assert policy.hurry(settings, WAITING, unknown, memory, 100.2)[0].change == 0
    assert policy.hurry(settings, WAITING, unknown, memory, 100.3)[0].change == 1
    assert policy.hurry(settings, WAITING, room.NOTHING_HELD, memory, 100.1)[0].change == 4


# ---- what somebody has asked for ----

# settings, target, looks, decisions
ASKED = {
    "more, at once": ({}, 6, [look(2), look(6, 5)], [4, 0]),
    "more than there may be": ({}, 99, [look(2), look(10, 9)], [8, 0]),
    "fewer: those that are idle": ({}, 2, [look(6, 4), look(4, 4), look(4, 0), look(2, 1)], [-2, 0, -2, 0]),
    "then the algorithm goes on": ({"algorithm": "backlog"}, 4, [look(4), look(4)], [0, -1]),
    "without cheaper, too": ({"minimum": 0}, 6, [look(10), look(6)], [-4, 0]),
}


@pytest.mark.parametrize(("settings", "target", "looks", "expected"), ASKED.values(), ids=ASKED)
def test_what_was_asked_for(settings, target, looks, expected):
    settings = Cheaper(**{"minimum": 2, **settings})
    memory, found = replace(policy.fresh(settings), target=target), []
    for second, sample in enumerate(looks):
        decision, memory = policy.decide(settings, sample, room.NOTHING_HELD, memory, float(second))
        found.append(decision.change)
    assert found == expected


def test_what_was_asked_for_comes_one_by_one_until_it_is_known_what_one_needs():
    settings = Cheaper(minimum=2)
    memory, unknown = replace(policy.fresh(settings), target=5), room.Memory(known=False)
    for workers in (2, 3):
        decision, memory = policy.decide(settings, look(workers), unknown, memory, float(workers))
        assert decision.change == 1
    assert policy.decide(settings, look(4), room.NOTHING_HELD, memory, 4.0)[0].change == 1


def test_the_load_outdoes_what_was_asked_for():
    settings = Cheaper(minimum=2, step=4)
    _, memory = hurry({}, WAITING, memory=replace(policy.fresh(settings), target=2))
    assert memory.target is None


def test_the_reason_has_its_numbers():
    decision, _ = hurry({}, WAITING)
    assert decision.why == (
        "30 requests have waited for more than 0.05 s (cheaper-queue-wait), the first for 0.060 s, and no core is free"
    )


def test_workers_that_the_queue_asked_for_count_for_busyness():
    """They don't end before the multiplier's windows are over, and one that was missed is one that ended too early."""
    windows = Windows(multiplier=2, penalty=3)
    windows.decisions([(4, 0), (4, 0)])
    settings = windows.settings
    waiting = replace(WAITING, workers=3, busy=3)
    decision, memory = policy.hurry(settings, waiting, room.NOTHING_HELD, windows.memory, windows.second + 0.5)
    assert decision.change == 1
    assert memory.algorithm.multiplier == 5
    assert decision.also == ("[busyness] respawned too fast, increasing cheaper multiplier to 5 (+3)",)


def test_a_burst_is_one_mistake_however_many_steps_it_takes():
    windows = Windows(multiplier=2, penalty=3)
    windows.decisions([(4, 0), (4, 0)])
    memory = windows.memory
    for step in range(5):
        waiting = replace(WAITING, workers=3, wanted=3, busy=3)
        moment = windows.second + 0.1 * step
        decision, memory = policy.hurry(windows.settings, waiting, room.NOTHING_HELD, memory, moment)
        assert decision.change == 1
    assert memory.algorithm.multiplier == 5


# ---- workers that are missed soon after they ended ----

# What happens, in seconds from the start: +, workers are added; -, one ends. How long the next ones stay, seconds.
FLAPPING = {
    "nothing": ([], 0),
    "more and more": ([(0, "+"), (1, "+")], 0),
    "fewer and fewer": ([(0, "-"), (1, "-")], 0),
    "missed within a minute": ([(0, "-"), (60, "+")], 10),
    "not missed": ([(0, "-"), (61, "+")], 0),
    "one burst is one mistake": ([(0, "-"), (1, "+"), (2, "+")], 10),
    "the last that ended counts": ([(0, "-"), (50, "-"), (100, "+")], 10),
    "twice as long each time": ([(0, "-"), (1, "+"), (20, "-"), (21, "+"), (60, "-"), (61, "+")], 40),
    "never more than five minutes": ([(at, "-+"[at % 2]) for at in range(100)], 300),
    "half as long after an end that was right": ([(0, "-"), (1, "+"), (2, "-"), (3, "+"), (9, "-"), (99, "+")], 10),
    "and in the end not at all": ([(0, "-"), (1, "+"), (20, "-"), (99, "+")], 0),
}


@pytest.mark.parametrize(("happened", "stay"), FLAPPING.values(), ids=FLAPPING)
def test_how_long_workers_stay(happened, stay):
    memory = flapping.UNTROUBLED
    for at, what in happened:
        memory = flapping.added(memory, at)[1] if what == "+" else flapping.ended(memory, at)
    assert memory.stay == stay


# One ends, and soon one is added: the next stays for ten seconds. (settings, a look each second, the decisions)
MISSED = {
    "spare": (
        {},
        [look(4, 2)] * 3 + [look(3, 3)] * 4 + [look(4, 1)] * 12,
        [0, 0, -1] + [0, 0, 0, 1] + [0] * 11 + [-1],
    ),
    "spare2": (
        {"idle_rounds": 2},
        [look(4, 1)] * 2 + [look(3, 2)] + [look(4, 1)] * 13,
        [0, -1] + [1] + [0] * 9 + [-1, 0, -1, 0],
    ),
    "backlog": (
        {},
        [look(4, 1)] + [look(3, 3, waiting=9)] + [look(4, 1)] * 11,
        [-1] + [1] + [0] * 9 + [-1, -1],
    ),
}


@pytest.mark.parametrize("algorithm", MISSED)
def test_a_worker_that_was_missed_stays(algorithm):
    settings, looks, expected = MISSED[algorithm]
    assert changes(Cheaper(minimum=2, algorithm=algorithm, **settings), looks) == expected


def test_nor_does_one_end_that_the_queue_has_brought_back():
    settings = Cheaper(minimum=2, algorithm="backlog")
    memory = policy.fresh(settings)
    decision, memory = policy.decide(settings, look(4), room.NOTHING_HELD, memory, 1.0)
    assert decision.change == -1
    decision, memory = policy.hurry(settings, WAITING, room.NOTHING_HELD, memory, 4.0)
    assert decision.also == (
        "cheaper: a worker ended 3 s ago and is missed: from now on those that are added stay for 10 s",
    )
    decision, memory = policy.decide(settings, look(5), room.NOTHING_HELD, memory, 13.0)
    assert (decision.change, decision.why.endswith("but workers stay for 1 more second(s)")) == (0, True)
    assert policy.decide(settings, look(5), room.NOTHING_HELD, memory, 14.0)[0].change == -1


def test_the_longest_stay_is_told_once():
    memory, said = flapping.UNTROUBLED, []
    for second in range(20):
        also, memory = flapping.added(flapping.ended(memory, second), second)
        said += also
    assert [text.rpartition(" for ")[2] for text in said] == ["10 s", "20 s", "40 s", "80 s", "160 s", "300 s"]


def test_busyness_has_its_own_rule_for_that():
    windows = Windows(multiplier=1, penalty=1)
    assert windows.decisions([(4, 0), (3, 100), (4, 0), (4, 0)]) == [-1, 1, 0, -1]
    assert "is missed" not in "".join(windows.said)


def test_memory_that_has_run_out_is_no_end_that_was_too_early():
    settings = Cheaper(minimum=2, rss_soft=60 * MIB, rss_hard=80 * MIB)
    held = room.Memory(90 * MIB, 30 * MIB)
    decision, memory = policy.decide(settings, look(4, 2), held, policy.fresh(settings), 1.0)
    assert decision.change == -1
    assert memory.missed.ended_at is None


# ---- who ends ----


def test_only_an_idle_worker_ends():
    """None is idle: the same decision comes again, as if this second hadn't been."""
    settings = Cheaper(minimum=2, algorithm="backlog")
    memory = policy.fresh(settings)
    decision, memory = policy.decide(settings, look(4, busy=4), room.NOTHING_HELD, memory, 1.0)
    assert (decision.change, decision.why.endswith("but no worker is idle")) == (0, True)
    assert policy.decide(settings, look(4, busy=3), room.NOTHING_HELD, memory, 2.0)[0].change == -1


def test_busyness_does_not_remember_an_end_that_never_was():
    """Every worker is busy at the moment of the look, little as they did before."""
    windows = Windows(multiplier=2)
    assert [windows.pass_second(4, 10), windows.pass_second(4, 10, busy=4)] == [0, 0]
    assert windows.memory.algorithm.ended_at is None
    assert windows.pass_second(4, 10, busy=3) == -1


def test_one_that_is_coming_is_not_idle():
    settings = Cheaper(minimum=2, algorithm="backlog")
    assert changes(settings, [look(4, busy=3, coming=1)]) == [0]


IDLE = {
    "not yet": ({"idle": 3}, [look(4)] * 4, [0, 0, 0, 0]),
    "after idle seconds all end": ({"idle": 3}, [look(4)] * 5, [0, 0, 0, 0, -4]),
    "a running request": ({"idle": 3}, [look(4, busy=1)] * 9, [0] * 9),
    "a served one begins it anew": (
        {"idle": 3},
        [look(4)] * 3 + [look(4, served=1)] * 4,
        [0] * 7,
    ),
    "without idle": ({}, [look(4)] * 99, [0] * 99),
    "as long as the application loads": ({"idle": 3}, [look(4, coming=4)] * 9, [0] * 9),
    "when all have ended, nothing starts by itself": (
        {"idle": 3, "minimum": 2},
        [look(0, wanted=0, spawnable=10)] * 9,
        [0] * 9,
    ),
}


@pytest.mark.parametrize(("settings", "looks", "expected"), IDLE.values(), ids=IDLE)
def test_idle(settings, looks, expected):
    assert changes(Cheaper(**settings), looks) == expected


# ---- memory ----

GROUP = Holder("the control group /web", used=100 * MIB, limit=256 * MIB)
LIMITS = {
    "no limit at all": ({}, room.Memory(500 * MIB, 60 * MIB), room.PLENTY),
    "no worker has served a request yet: one": ({}, room.Memory(9 * MIB, MIB, holders=(GROUP,), known=False), 1),
    "what is left of a group, less a twentieth": ({}, room.Memory(90 * MIB, 60 * MIB, holders=(GROUP,)), 2),
    "small workers will grow": ({}, room.Memory(90 * MIB, 60 * MIB, 40 * MIB, (GROUP,)), 1),
    "nothing is left": ({}, room.Memory(90 * MIB, 60 * MIB, 100 * MIB, (GROUP,)), 0),
    "the tighter of two": (
        {},
        room.Memory(90 * MIB, 60 * MIB, holders=(GROUP, Holder("the machine", 0, 80 * MIB))),
        1,
    ),
    "cheaper-rss-limit-soft: the last one may cross it": (
        {"rss_soft": 200 * MIB},
        room.Memory(90 * MIB, 60 * MIB),
        2,
    ),
    "it is crossed": ({"rss_soft": 80 * MIB}, room.Memory(90 * MIB, 60 * MIB), 0),
}


@pytest.mark.parametrize(("settings", "held", "expected"), LIMITS.values(), ids=LIMITS)
def test_room(settings, held, expected):
    assert room.room(Cheaper(**settings), held).workers == expected


FULL = room.Memory(90 * MIB, 60 * MIB, holders=(Holder("the control group /web", 200 * MIB, 256 * MIB),))


def test_no_worker_starts_into_a_full_group_and_the_log_says_so_once():
    settings = Cheaper(minimum=2, algorithm="backlog")
    memory, said = policy.fresh(settings), []
    for second in range(5):
        decision, memory = policy.decide(settings, look(4, 4, waiting=9), FULL, memory, float(second))
        assert decision.change == 0
        said += decision.also
    assert said == [
        "1 worker(s) are wanted (9 requests wait (cheaper-overload = 3)), there is room for 0:"
        " the control group /web holds 200 MiB of 256 MiB, another worker needs 60 MiB"
    ]


def test_workers_that_were_started_since_the_last_look_count():
    """There was room for two: another two don't fit."""
    held = room.Memory(90 * MIB, 60 * MIB, holders=(GROUP,))
    assert room.room(Cheaper(), held).workers == 2
    assert room.room(Cheaper(), room.charged(held, 2)).workers == 0
    assert room.room(Cheaper(rss_soft=200 * MIB), room.charged(room.Memory(90 * MIB, 60 * MIB), 2)).workers == 0
    assert room.charged(held, -2) == held  # it isn't free before the worker has ended


def test_nor_does_the_queue_start_one():
    decision, _ = hurry({}, WAITING, held=FULL)
    assert decision.change == 0
    assert "there is room for 0: the control group /web" in decision.also[0]


def test_the_hard_limit_ends_workers():
    settings = Cheaper(minimum=2, rss_soft=60 * MIB, rss_hard=80 * MIB)
    held = room.Memory(90 * MIB, 30 * MIB)
    assert changes(settings, [look(4, 2)] * 2, held) == [-1, -1]
    assert changes(settings, [look(1, 0)], held) == [0]


def test_busyness_does_not_learn_from_what_memory_forbids():
    """It would wait for longer and longer, for workers that it never got."""
    settings = Cheaper(minimum=2, algorithm="busyness", overload=1)
    memory = policy.fresh(settings)
    for second in range(30):
        sample = look(4, 4, busy_seconds=4.0 * second, core_seconds=4.0 * second)
        _, memory = policy.decide(settings, sample, FULL, memory, float(second))
    assert memory.algorithm == replace(
        busyness.Memory(multiplier=10), began=29.0, busy_seconds=116.0, core_seconds=116.0, not_before=10.0
    )
