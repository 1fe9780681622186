"""Where simulated requests come from: the log of a server that had them, or a shape.

A request needs a time of arrival and a duration. uWSGI's own request line (and ours) has both. nginx writes its line at
the end of a request, and its duration only if the log format has `$request_time`: as the last field, or as `rt=` or
`request_time=`.
"""

import math
import random
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import groupby
from pathlib import Path

from wsgimaster.errors import StartError
from wsgimaster.simulate.engine import Request

UWSGI = re.compile(r"\[(?P<at>\w{3} \w{3} [ \d]\d [\d:]{8} \d{4})\] .* in (?P<takes>\d+) (?P<unit>msecs|micros)\b")
UNITS = {"msecs": 1e-3, "micros": 1e-6}
NGINX = re.compile(r"\[(?P<at>\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] \"(?:[^\"\\]|\\.)*\" \d{3} ")
NGINX_TIMES = (re.compile(r" (?:rt|request_time)=\"?(\d+\.\d{3}|-)"), re.compile(r"\s\"?(\d+\.\d{3}|-)\"?\s*$"))


def from_log(path: str, service_time: float | None) -> list[Request]:
    """The requests of a log of uWSGI's or nginx's; other lines, and requests that never ended, are passed over.

    service_time: seconds, for lines without a duration. Times in logs are whole seconds: the requests of one are spread
    over it evenly. Raises StartError if the file can't be read, has no such line, or durations are missing.
    """
    found: list[Request] = []
    try:
        with Path(path).open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    request = _from_line(line, service_time)
                except _NoDurationError:
                    raise StartError(
                        f"{path}:{number}: no duration in this line; add $request_time to nginx's log_format as its"
                        " last field, or say how long a request takes: --service-time 0.05"
                    ) from None
                if request is not None:
                    found.append(request)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from error
    if not found:
        raise StartError(f"{path}: no line looks like uWSGI's request log or nginx's access log (combined)")
    return list(_spread(sorted(found, key=lambda request: request.at)))


class _NoDurationError(Exception):
    pass


def _from_line(line: str, service_time: float | None) -> Request | None:
    if match := UWSGI.search(line):
        at = datetime.strptime(match["at"], "%a %b %d %H:%M:%S %Y").timestamp()
        return Request(at, (int(match["takes"]) + 0.5) * UNITS[match["unit"]])  # it was cut to a whole number
    if match := NGINX.search(line):
        ended = datetime.strptime(match["at"], "%d/%b/%Y:%H:%M:%S %z").timestamp()
        for pattern in NGINX_TIMES:
            if timed := pattern.search(line, match.end()):
                takes = timed[1]
                return None if takes == "-" else Request(ended - float(takes), float(takes))
        if service_time is None:
            raise _NoDurationError
        return Request(ended, service_time)
    return None


def _spread(requests: list[Request]) -> Iterator[Request]:
    """From the first one's second on, evenly within each second."""
    first = math.floor(requests[0].at)
    for second, group in groupby(requests, key=lambda request: math.floor(request.at)):
        together = list(group)
        for place, request in enumerate(together):
            yield Request(second - first + (place + 0.5) / len(together), request.takes)


# ---- shapes: requests a second, at each moment ----

LOW = 0.05  # of the capacity of all workers
HIGH = 0.8
HOUR, DAY = 3600.0, 86400.0
LONG = 30.0  # seconds that the long request takes


def step(at: float) -> float:
    """Twenty minutes of little, twenty of much, twenty of little."""
    return HIGH if HOUR / 3 <= at % HOUR < 2 * HOUR / 3 else LOW


def saw_tooth(at: float) -> float:
    """Rises for five minutes, and falls at once."""
    return LOW + (HIGH - LOW) * (at % 300) / 300


def daily(at: float) -> float:
    """Least at four in the morning, most at four in the afternoon."""
    return LOW + (HIGH - LOW) * (1 - math.cos(2 * math.pi * (at - DAY / 6) / DAY)) / 2


def little(at: float) -> float:
    return LOW


# name: (load of 1, its length in seconds)
SHAPES: dict[str, tuple[Callable[[float], float], float]] = {
    "step": (step, HOUR),
    "saw-tooth": (saw_tooth, HOUR),
    "daily": (daily, DAY),
    "long": (little, HOUR),
}


def from_shape(name: str, cores: int, service_time: float, seed: int = 1) -> Iterator[Request]:
    """Requests at random times, at the shape's rate, that take `service_time` seconds on average (exponential).

    cores: of all workers; with a load of 1 all of them would be busy all the time. "long": beside little load, one of
    thirty seconds a minute.
    """
    load, seconds = SHAPES[name]
    chance = random.Random(seed)
    most = cores / service_time  # requests a second
    longs = iter([30.0 + minute * 60 for minute in range(int(seconds // 60))] if name == "long" else [])
    next_long = next(longs, math.inf)
    at = 0.0
    while True:  # a Poisson process, thinned: Lewis and Shedler, 1979
        at += chance.expovariate(most * HIGH)
        if at >= seconds:
            return
        while next_long <= at:
            yield Request(next_long, LONG)
            next_long = next(longs, math.inf)
        if chance.random() < load(at) / HIGH:
            yield Request(at, chance.expovariate(1 / service_time))
