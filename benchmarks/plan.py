"""What is measured: which servers, with which application, how many workers and clients, and for how long."""

from collections.abc import Iterator
from dataclasses import dataclass

APPS = {
    "hello": "a fixed answer, nothing computed",
    "cpu": "2 ms of CPU time",
    "sleep": "10 ms of sleep",
    "mix": "99 of 100 answered at once, every hundredth after 1 s of sleep",
}
SLOW_EVERY = 100  # requests; in `mix` every hundredth asks for the slow page

MATRIX_WORKERS = (2, 16, 64)
MATRIX_CLIENTS = (1, 4, 32, 256)
MANY_WORKERS = 128
LOADED_CLIENTS = (32, 256)  # the numbers of clients at which CPU time and throughput have goals

FLOOR = "floor"
UWSGI = ("uwsgi", "uwsgi-thunder")  # a ratio "to uWSGI" is to the better of the two, cell by cell
PUSH = "wsgimaster-push"
OURS = "wsgimaster-auto"
OURS_HTTP = "wsgimaster-http"
GRANIAN, GTHREAD = "granian", "gunicorn-gthread"
OTHERS = ("gunicorn", GTHREAD, GRANIAN)
COMPARED = (FLOOR, *UWSGI, OURS)


@dataclass(frozen=True)
class Group:
    """Servers that are compared with each other: all are started, then asked one after the other.

    way: "direct" (uwsgi protocol, straight at the server's socket), "nginx" (HTTP to an nginx in front of it) or "http"
    (straight at its socket, over connections that go on).
    logged: whether each request gets its line in the server's log.
    rate: arrivals a second, whether or not earlier ones were answered (`clients` are then the most at once); 0: each
    client asks again when it has its answer.
    """

    way: str
    app: str
    workers: int
    clients: tuple[int, ...]
    contenders: tuple[str, ...]
    threads: int = 1
    logged: bool = False
    rate: int = 0

    @property
    def name(self) -> str:
        shape = f"{self.workers} x {self.threads}" if self.threads > 1 else f"{self.workers} workers"
        rest = f"{', request log' if self.logged else ''}{f', {self.rate:,} requests/s' if self.rate else ''}"
        return f"{self.app}, {shape}, {self.way}{rest}"


def matrix(workers: tuple[int, ...] = MATRIX_WORKERS, clients: tuple[int, ...] = MATRIX_CLIENTS) -> Iterator[Group]:
    for app in APPS:
        contenders = (*COMPARED, PUSH) if app == "hello" else COMPARED
        for count in workers:
            yield Group("direct", app, count, clients, contenders)


def mix_at_a_rate() -> Iterator[Group]:
    """Slow requests keep more than half of the workers busy. In a closed loop a server that is quick with the fast
    requests gets the more slow ones for it, until all workers are in one; here all servers get the same."""
    for workers, rate in ((2, 120), (16, 1000), (64, 4000)):
        yield Group("direct", "mix", workers, (1024,), (*UWSGI, OURS), rate=rate)


# Behind nginx each server speaks the protocol that suits it best. These six cells have every server.
SIX_CELLS = (
    ("hello", 2, (32,)),
    ("hello", 16, (32, 256)),
    ("cpu", 2, (4,)),
    ("sleep", 16, (32,)),
    ("mix", 16, (32,)),
)


def behind_nginx() -> Iterator[Group]:
    for app, workers, clients in SIX_CELLS:
        yield Group("nginx", app, workers, clients, (*COMPARED, *OTHERS))
    yield Group("nginx", "hello", 64, (32,), COMPARED)


def over_http() -> Iterator[Group]:
    for app, workers, clients in (
        ("hello", 2, (32, 256)),
        ("hello", 16, (32, 256)),
        ("sleep", 2, (32,)),
        ("sleep", 16, (32,)),
    ):
        yield Group("http", app, workers, clients, (OURS_HTTP, GTHREAD, GRANIAN))


WITH_LOG = Group("direct", "hello", 16, (32,), (*UWSGI, OURS), logged=True)
WITH_THREADS = Group("direct", "cpu", 4, (32,), (*UWSGI, OURS), threads=4)


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: float  # of one measurement
    warmup: float  # seconds before it, not counted
    groups: tuple[Group, ...]
    specials: bool = True  # also special.py: memory, idling, the master stopped

    def minutes(self) -> float:
        """About how long it takes."""
        starts = sum(4 + 0.04 * group.workers * len(group.contenders) for group in self.groups)
        cells = sum(len(group.clients) * len(group.contenders) for group in self.groups)
        return self.rounds * (starts + cells * (self.seconds + self.warmup + 0.4) + 25 * self.specials) / 60


PLANS = {
    "normal": Plan(
        rounds=5,
        seconds=3,
        warmup=0.4,
        groups=(
            *matrix(),
            Group("direct", "hello", MANY_WORKERS, LOADED_CLIENTS, COMPARED),
            *mix_at_a_rate(),
            *behind_nginx(),
            *over_http(),
            WITH_LOG,
            WITH_THREADS,
        ),
    ),
    "quick": Plan(
        rounds=2,
        seconds=1,
        warmup=0.3,
        groups=(
            *matrix(workers=(2, 16), clients=(1, 32)),
            Group("direct", "hello", 64, LOADED_CLIENTS, COMPARED),
            *mix_at_a_rate(),
            Group("nginx", "hello", 16, (32,), (*COMPARED, *OTHERS)),
            Group("http", "hello", 2, (32,), (OURS_HTTP, GTHREAD, GRANIAN)),
            WITH_LOG,
            WITH_THREADS,
        ),
    ),
}
