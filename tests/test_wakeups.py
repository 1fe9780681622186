"""The wake-up rule: which cores are grinders, and what is decided about the others."""

import pytest

from wsgimaster.wakeups import Decision, decide, is_grinder

CORES = {
    # use while in requests, CPU seconds, requests
    "a sleeper: 10 ms of waiting, 50 us of computing": (0.005, 50e-6, 1, False),
    "hello world, without a pause": (1.0, 9.8e-3, 980, True),
    "hello world, now and then": (1.0, 40e-6, 4, True),
    "hello world, and the measurement is a little off": (0.9, 9e-3, 900, True),
    "100 us of computing, 75 us of waiting": (0.57, 5.7e-3, 57, False),
    "2 ms of computing, without a pause": (1.0, 10e-3, 5, False),
    "stuck in one request, computing": (1.0, 10e-3, 0, False),
    "stuck in one request, waiting": (0.0, 0.0, 0, False),
    "has waited for a request": (0.0, 0.0, 0, False),
}


@pytest.mark.parametrize(("use", "cpu_seconds", "requests", "grinds"), CORES.values(), ids=CORES)
def test_is_grinder(use, cpu_seconds, requests, grinds):
    assert is_grinder(use, cpu_seconds, requests) is grinds


FREE = Decision(watch=True, wake=0, rest=0)
DECISIONS = {
    # cpus, use, grinders, overdue
    "the first request: nothing is known": (2, 0.0, 0, 0, FREE),
    "sleepers, however many": (2, 30 * 0.005, 0, 0, FREE),
    "sleepers, and somebody waits": (2, 0.15, 0, 5, Decision(watch=True, wake=5, rest=0)),
    "one core computes, one CPU is free": (2, 1.0, 0, 0, FREE),
    "one core grinds, one CPU is free": (2, 0.98, 1, 3, Decision(watch=True, wake=3, rest=0)),
    "CPU-bound, nobody waits for long": (2, 2.0, 0, 0, Decision(watch=False, wake=0, rest=0)),
    "CPU-bound, three wait behind it": (2, 2.0, 0, 3, Decision(watch=False, wake=3, rest=0)),
    "as many grinders as CPUs: who waits is served": (2, 1.9, 2, 200, Decision(watch=False, wake=0, rest=0)),
    "as many grinders as CPUs, with pauses": (2, 0.6, 2, 0, Decision(watch=False, wake=0, rest=0)),
    "more grinders than CPUs": (2, 15.0, 16, 200, Decision(watch=False, wake=0, rest=14)),
    "more grinders than CPUs, with pauses": (2, 0.6, 16, 0, Decision(watch=False, wake=0, rest=14)),
    "mixed: two compute, one grinds": (2, 2.9, 1, 4, Decision(watch=False, wake=4, rest=0)),
    "mixed: two compute, two grind": (2, 3.9, 2, 4, Decision(watch=False, wake=0, rest=0)),
    "mixed: two compute, five grind": (2, 6.9, 5, 4, Decision(watch=False, wake=0, rest=3)),
    "half a CPU of a cgroup": (0.5, 0.4, 1, 4, Decision(watch=False, wake=0, rest=0)),
    "half a CPU, three grinders": (0.5, 2.9, 3, 4, Decision(watch=False, wake=0, rest=2)),
}


@pytest.mark.parametrize(("cpus", "use", "grinders", "overdue", "decision"), DECISIONS.values(), ids=DECISIONS)
def test_decide(cpus, use, grinders, overdue, decision):
    assert decide(cpus, use, grinders, overdue) == decision


# ---- one decision after the other ----

MEASURE_MS = 10  # _front.pyx: what cores have used is measured every ten milliseconds, looked at every two

# What a core did since the last measurement: its use, its use while in requests, CPU seconds, requests
DOES = {
    "s": (0.005, 0.005, 50e-6, 1),  # its requests wait for something, 10 ms each
    "g": (0.98, 1.0, 9.8e-3, 980),  # small requests, without a pause
    "p": (0.3, 1.0, 3e-3, 300),  # small requests, with pauses
    "c": (1.0, 1.0, 10e-3, 5),  # computes
    "h": (0.5, 0.5, 5e-3, 50),  # half of both
}
ASLEEP = "."

# Looks of the front at a machine with two CPUs and eight cores, with what the cores do and how many connections are
# overdue; then what comes of it: whether a core is woken for every connection, how many are woken for those that are
# overdue, and how many are to go to sleep from now on.
TRACES = {
    "the first requests after the start: nobody is measured yet": [
        # ms, cores, overdue; watch, wake, to sleep
        (0, "c.......", 0, True, 0, 0),
        (2, "cc......", 3, True, 3, 0),
        (4, "ccccc...", 0, True, 0, 0),
        (10, "ccccc...", 1, True, 1, 0),  # one has been measured, the others have just been woken
        (20, "cccccc..", 0, False, 0, 0),
        (22, "cccccc..", 1, False, 1, 0),
    ],
    "sleepers: everybody gets a core": [
        (0, "s.......", 0, True, 0, 0),
        (10, "ssss....", 0, True, 0, 0),
        (20, "ssssss..", 2, True, 2, 0),
        (30, "ssssssss", 0, True, 0, 0),
        (40, "ssssssss", 9, True, 9, 0),
        (50, "s.......", 0, True, 0, 0),
    ],
    "small requests: as many cores as CPUs, however many wait": [
        (0, "g.......", 0, True, 0, 0),
        (10, "gggg....", 0, True, 0, 0),
        (20, "gggg....", 50, False, 0, 2),
        (22, "ggg.....", 50, False, 0, 1),
        (24, "gg......", 50, False, 0, 0),  # the figures are old, and would send two more
        (26, "gg......", 50, False, 0, 0),
        (30, "gg......", 50, False, 0, 0),
        (40, "g.......", 0, True, 0, 0),  # fewer come
        (50, "gg......", 0, True, 0, 0),
        (60, "gg......", 3, False, 0, 0),
    ],
    "small requests with pauses: a core that grinds is back before another has woken up": [
        (0, "p.......", 0, True, 0, 0),
        (10, "ppp.....", 0, True, 0, 0),
        (20, "pppp....", 0, False, 0, 1),  # the fourth was just woken
        (30, "pppp....", 0, False, 0, 2),
        (40, "pp......", 0, False, 0, 0),
        (50, "ps......", 0, True, 0, 0),  # one got something that waits
    ],
    "nobody has gone to sleep yet": [
        (0, "gggg....", 0, True, 0, 0),
        (10, "gggg....", 9, False, 0, 2),
        (14, "gggg....", 9, False, 0, 2),
        (20, "ggg.....", 9, False, 0, 1),  # measured again: it is two of four no more
        (30, "gg......", 9, False, 0, 0),
    ],
    "computing: cores only for those who would wait behind it": [
        (0, "cc......", 0, True, 0, 0),
        (10, "cc......", 0, False, 0, 0),
        (12, "cc......", 2, False, 2, 0),
        (20, "cccc....", 0, False, 0, 0),
        (30, "cccc....", 1, False, 1, 0),
        (40, "ccccc...", 0, False, 0, 0),  # none is sent to sleep: each is in something long
        (50, "c.......", 0, True, 0, 0),
    ],
    "mixed: two compute, and small requests come": [
        (0, "cc......", 0, True, 0, 0),
        (10, "cc......", 4, False, 4, 0),
        (12, "ccgggg..", 0, False, 0, 0),
        (20, "ccgggg..", 4, False, 4, 0),  # the four were woken since: nobody knows that they are grinders
        (30, "ccgggg..", 4, False, 0, 2),
        (32, "ccgg....", 4, False, 0, 0),
        (40, "ccgg....", 4, False, 0, 0),
        (50, "..gg....", 4, False, 0, 0),
        (60, "..gs....", 4, True, 4, 0),
    ],
    "half and half: up to the margin": [
        (0, "hhh.....", 0, True, 0, 0),
        (10, "hhh.....", 1, True, 1, 0),
        (20, "hhhh....", 0, True, 0, 0),
        (30, "hhhh....", 1, False, 1, 0),
        (40, "hhh.....", 0, True, 0, 0),
    ],
}


def replay(cpus, looks):
    """The front's `reconsider` and `measure`: a core is measured if it was awake at the last measurement, too; figures
    hold until the next one, and only fresh ones send cores to sleep."""
    measured_ms, measured, use, grinders, resting, awake = -MEASURE_MS, set(), 0.0, 0, 0, set()
    for ms, cores, overdue, *_ in looks:
        were_awake, awake = awake, {core for core, does in enumerate(cores) if does != ASLEEP}
        resting = max(0, resting - len(were_awake - awake))
        fresh = ms - measured_ms >= MEASURE_MS
        if fresh:
            figures = [DOES[cores[core]] for core in awake & measured]
            use, grinders = sum(figure[0] for figure in figures), sum(is_grinder(*figure[1:]) for figure in figures)
            measured_ms, measured = ms, awake
        decision = decide(cpus, use, grinders, overdue)
        if fresh:
            resting = decision.rest
        yield decision.watch, decision.wake, resting


@pytest.mark.parametrize("looks", TRACES.values(), ids=TRACES)
def test_trace(looks):
    found = list(replay(2, looks))
    lines = ["  ms  cores     overdue  watch wake sleep"]
    for (ms, cores, overdue, *expected), (watch, wake, resting) in zip(looks, found, strict=True):
        wrong = "" if expected == [watch, wake, resting] else f"  expected {expected}"
        lines.append(f"{ms:4}  {cores}  {overdue:7}  {watch!s:5} {wake:4} {resting:5}{wrong}")
    assert found == [tuple(expected) for _, _, _, *expected in looks], "\n".join(["", *lines])
