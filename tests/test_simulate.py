"""`wsgimaster simulate`: loads, the simulated pool, the command."""

import random
import subprocess
import sys

import pytest

from wsgimaster.errors import StartError
from wsgimaster.settings import Cheaper
from wsgimaster.simulate import loads
from wsgimaster.simulate.engine import Engine, Pool, Request

UWSGI_LINE = (
    "[pid: 28|app: 0|req: 1/1] 127.0.0.1 () {{40 vars in 551 bytes}} [Sun Nov 22 03:39:{second:02} 2026] GET /"
    " => generated 12 bytes in {took} msecs (HTTP/1.1 200) 2 headers in 79 bytes (1 switches on core 0)"
)
NGINX_LINE = '127.0.0.1 - - [22/Nov/2026:03:39:{second:02} +0000] "GET / HTTP/1.1" 200 612 "-" "curl/8"'
LOGS = {
    "uWSGI, and lines that are none": (
        ["*** Starting uWSGI ***", UWSGI_LINE.format(second=1, took=20), UWSGI_LINE.format(second=3, took=1500)],
        None,
        [Request(0.5, 0.0205), Request(2.5, 1.5005)],
    ),
    "uWSGI with log-micros": (
        [UWSGI_LINE.format(second=1, took=20).replace("msecs", "micros")],
        None,
        [Request(0.5, 20.5e-6)],
    ),
    "several in one second": (
        [UWSGI_LINE.format(second=1, took=10)] * 4,
        None,
        [Request(at, 0.0105) for at in (0.125, 0.375, 0.625, 0.875)],
    ),
    "nginx, the duration at the end": (
        [NGINX_LINE.format(second=5) + " 2.000", NGINX_LINE.format(second=5) + ' "0.250"'],
        None,
        [Request(0.5, 2.0), Request(1.5, 0.25)],  # the first had come at second 3, the other at second 4
    ),
    "nginx, the duration with a name": (
        [NGINX_LINE.format(second=5) + ' rt=0.125 uct="0.000" urt="0.100"'],
        None,
        [Request(0.5, 0.125)],
    ),
    "nginx without a duration": ([NGINX_LINE.format(second=5)], 0.05, [Request(0.5, 0.05)]),
}


@pytest.mark.parametrize(("lines", "service_time", "expected"), LOGS.values(), ids=LOGS)
def test_logs(tmp_path, lines, service_time, expected):
    log = tmp_path / "access.log"
    log.write_text("\n".join(lines) + "\n")
    found = loads.from_log(str(log), service_time)
    assert [(one.at, one.takes) for one in found] == [pytest.approx((one.at, one.takes)) for one in expected]


NOT_LOGS = {
    "no file": (None, "No such file or directory"),
    "nothing in it": ("hello\n", "no line looks like"),
    "no duration": ("\n" + NGINX_LINE.format(second=5) + "\n", ":2: no duration in this line"),
}


@pytest.mark.parametrize(("text", "problem"), NOT_LOGS.values(), ids=NOT_LOGS)
def test_what_is_no_log(tmp_path, text, problem):
    log = tmp_path / "access.log"
    if text is not None:
        log.write_text(text)
    with pytest.raises(StartError, match=problem):
        loads.from_log(str(log), None)


@pytest.mark.parametrize("name", loads.SHAPES)
def test_a_shape_has_the_load_that_it_says(name):
    """And is the same again."""
    load, seconds = loads.SHAPES[name]
    requests = list(loads.from_shape(name, cores=4, service_time=1.0))
    assert requests == list(loads.from_shape(name, cores=4, service_time=1.0))
    assert requests == sorted(requests)
    assert all(0 <= request.at < seconds for request in requests)
    expected = sum(load(second) for second in range(int(seconds))) * 4 + (60 * loads.LONG if name == "long" else 0)
    assert sum(request.takes for request in requests) == pytest.approx(expected, rel=0.1)


# ---- the engine ----


def play(requests, seconds=60.0, processes=4, first=None, **settings):
    settings = Cheaper(**{"minimum": 1, "algorithm": "busyness", "overload": 1, **settings})
    pool = Pool(settings, processes, first or settings.minimum, start_seconds=0.02)
    return Engine(pool).run(requests, seconds, lambda at: None)


def test_one_worker_serves_one_after_the_other():
    outcome = play([Request(1.0, 0.1), Request(1.0, 0.1), Request(1.05, 0.1)], queue_wait=0)
    assert list(outcome.waits) == pytest.approx([0.0, 0.1, 0.15])


def test_a_worker_of_its_own_for_who_has_waited_for_too_long():
    outcome = play([Request(1.3, 30.0), Request(1.4, 1.0)])
    first = outcome.changes[0]
    assert (first.workers, first.change) == (2, 1)
    assert 1.45 <= first.at <= 1.47
    assert outcome.waits[1] == pytest.approx(first.at + 0.02 - 1.4)


def test_the_work_is_done():
    """Whatever the load: every request has begun exactly once, none before it came."""
    for seed in range(20):
        chance = random.Random(seed)
        requests = sorted(Request(chance.uniform(0, 50), chance.expovariate(2)) for _ in range(300))
        outcome = play(requests, seconds=1000.0, multiplier=2)
        assert len(outcome.waits) == 300
        assert min(outcome.waits) >= 0
        assert outcome.seconds[-1].waiting == 0
        assert {one.workers for one in outcome.seconds} <= {1, 2, 3, 4}


@pytest.mark.parametrize("shape", ["step", "saw-tooth", "long"])
@pytest.mark.parametrize("algorithm", ["busyness", "spare", "spare2", "backlog"])
def test_the_number_of_workers_does_not_flap(algorithm, shape):
    """An hour of requests at random times. Without scaling/flapping.py `spare` and `backlog` change 1,000 times."""
    settings = Cheaper(minimum=2, step=4, algorithm=algorithm)
    engine = Engine(Pool(settings, processes=16, first=2))
    changes = engine.run(loads.from_shape(shape, 16, 0.1), 3600.0, lambda at: None).changes
    assert 4 <= len(changes) <= 150
    assert all(one.why for one in changes)


def test_busyness_is_what_the_workers_did():
    outcome = play([Request(10.0, 5.0)], processes=2, queue_wait=0, algorithm="manual")
    assert [round(one.busyness, 3) for one in outcome.seconds[9:17]] == [0, 1, 1, 1, 1, 1, 0, 0]


def test_workers_that_have_ended_have_no_cores():
    engine = Engine(Pool(Cheaper(minimum=1, algorithm="busyness", overload=1, multiplier=3), 4, 4))
    engine.run([], 60.0, lambda at: None)
    assert (engine.sample().workers, engine.sample().free_cores, engine.sample().coming) == (1, 1, 0)


def test_workers_end_when_there_is_nothing_to_do():
    outcome = play([Request(1.0, 0.1)], first=4, multiplier=3)
    assert outcome.seconds[-1].workers == 1
    assert [change.change for change in outcome.changes] == [-1, -1, -1]


# ---- the command ----


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "wsgimaster", "simulate", *arguments], capture_output=True, text=True, timeout=120
    )


CHEAPER = ["--processes", "8", "--cheaper", "2", "--cheaper-algo", "busyness", "--cheaper-step", "2"]


def test_the_command(tmp_path):
    found = command("--load", "step", "--service-time", "1", "--explain", *CHEAPER)
    assert found.returncode == 0, found.stderr
    assert "workers      " in found.stdout
    assert "busyness is at" in found.stdout


def test_a_picture(tmp_path):
    picture = tmp_path / "step.svg"
    found = command("--load", "step", "--service-time", "1", "--picture", str(picture), *CHEAPER)
    assert found.returncode == 0, found.stderr
    assert "<svg" in picture.read_text()


REFUSED = {
    "an option of the server's is wrong": (
        ["--load", "step", "--cheaper", "9", "--processes", "4"],
        "must be lower than processes",
    ),
    "nothing to simulate": (["--load", "step", "--processes", "4"], "nothing to simulate without cheaper = N"),
    "no load": (CHEAPER, "--load"),
    "no such file": (["--load", "/nowhere", *CHEAPER], "/nowhere: No such file"),
    "a duration that is none": (["--load", "step", "--service-time", "0", *CHEAPER], "greater than 0"),
}


@pytest.mark.parametrize(("arguments", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_the_command_refuses(arguments, problem):
    found = command(*arguments)
    assert found.returncode != 0
    assert problem in found.stderr
    assert "Traceback" not in found.stderr
