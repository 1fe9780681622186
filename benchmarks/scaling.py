"""`cheaper` beside uWSGI's: four shapes of load, simulated, and two of them on real servers; and 500 processes at once.
Writes the figures of docs/scaling.md.

    make bench-scaling                  about a quarter of an hour
    make bench-scaling ARGS=--render    the page once more, from the figures that are there

uWSGI's busyness is simulated as its plugin computes it: requests count when they have ended, for the worker that had
them; a worker that is busy in one of the looks (once a second) and ended nothing counts as busy all the time; a worker
counts from the fork on; the oldest idle one ends. (In its favour: it sees the queue, which uWSGI doesn't on a unix
socket.) Whether that is so, the real servers say.
"""

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import prepare
import procfs
import special
from clients import ClientError, run_load
from contenders import QUIET_WINDOW, VENV, ServerError, Service

from wsgimaster.scaling import flapping, policy
from wsgimaster.scaling.facts import Decision, Sample
from wsgimaster.settings import Algorithm, Cheaper
from wsgimaster.simulate import loads
from wsgimaster.simulate.command import milliseconds, share
from wsgimaster.simulate.engine import Engine, Kind, Outcome, Pool, Request, Worker
from wsgimaster.simulate.picture import draw

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
FIGURES = HERE / "scaling.json"

PROCESSES, LEAST, STEP = 16, 2, 4
CLIENTS = 32  # of 20 ms each
MINUTE = 60.0
TOOTH, TEETH = 60.0, 4  # seconds; saw-tooth on the real servers
ENOUGH = 14  # workers
MANY = 500
IDLE_SECONDS = 5.0
BACK = 90.0  # seconds to come back to the least number

OPTIONS = {
    "processes": PROCESSES,
    "cheaper": LEAST,
    "cheaper-step": STEP,
    "cheaper-algo": "busyness",
    "cheaper-overload": 1,
    "cheaper-busyness-multiplier": 3,
}
UWSGI = "{venv}/bin/uwsgi --socket {socket} --module sleep20:application --master --listen 1024 --die-on-term"
OURS = "{python} -m wsgimaster --socket {socket} --module sleep20:application"
SERVERS = {"wsgimaster": (OURS, 1), "uWSGI": (UWSGI, 0)}  # command, children of the master that are no workers


# ---- real servers ---------------------------------------------------------------------------------


@dataclass
class Watch:
    """Counts the workers of a master, fifty times a second."""

    pid: int
    others: int

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.seen: list[tuple[float, int]] = []  # (seconds, workers), at each change
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._count)
        self.thread.start()

    def workers(self) -> int:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return len(children) - self.others

    def _count(self) -> None:
        while not self.over.wait(0.02):
            count = self.workers()
            if not self.seen or self.seen[-1][1] != count:
                self.seen.append((round(time.monotonic() - self.began, 2), count))

    def end(self) -> None:
        self.over.set()
        self.thread.join()


@contextmanager
def running(name: str, python: str) -> Iterator[tuple[Watch, Path]]:
    command, others = SERVERS[name]
    words = [f"--{option}={value}" for option, value in OPTIONS.items()] + ["--disable-logging"]
    with tempfile.TemporaryDirectory(prefix="wsgimaster-bench-") as folder:
        path = Path(folder) / "server.sock"
        line = command.format(venv=VENV, python=python, socket=path).split()
        with Service(name, [*line, *words], Path(folder) / "server.log") as server:
            server.wait_until_ready(1 + others + LEAST, path.exists)
            watch = Watch(server.process.pid, others)
            try:
                yield watch, path
                server.check_alive()
            finally:
                watch.end()


def real_step(name: str, python: str) -> dict[str, Any]:
    """From nothing to 32 clients for a minute, then until the workers have ended again."""
    with running(name, python) as (watch, path):
        time.sleep(3)
        began = time.monotonic() - watch.began
        seen = run_load(path, MINUTE, clients=CLIENTS)
        ended = time.monotonic() - watch.began
        while watch.workers() > LEAST and time.monotonic() - watch.began < ended + BACK:
            time.sleep(0.1)
        back = time.monotonic() - watch.began
        left = watch.workers()
    enough = [at for at, count in watch.seen if at >= began and count >= ENOUGH]
    return {
        "enough_after": round(enough[0] - began, 2) if enough else None,
        "p99_ms": seen["p99_us"] / 1000,
        "max_ms": seen["max_us"] / 1000,
        "requests": seen["requests"],
        "failed": seen["bad"],
        "back_after": round(back - ended, 1) if left == LEAST else None,
        "workers": watch.seen,
    }


def changes(seen: list[tuple[float, int]]) -> int:
    """How many; what happens within half a second is one."""
    return sum(after[0] - before[0] > 0.5 for before, after in itertools.pairwise(seen))


def real_saw_tooth(name: str, python: str) -> dict[str, Any]:
    """The arrival rate rises to 80 % of what all workers can serve and falls at once; again and again."""
    capacity = PROCESSES / 0.02
    rates = [round(capacity * (loads.LOW + (loads.HIGH - loads.LOW) * part / 9)) for part in range(10)]
    with running(name, python) as (watch, path):
        found = [run_load(path, TOOTH / 10, clients=256, rate=rate) for _ in range(TEETH) for rate in rates]
    return {
        "changes_an_hour": round(changes(watch.seen) * 3600 / (TOOTH * TEETH)),
        "p99_ms": max(one["p99_us"] for one in found) / 1000,
        "failed": sum(one["bad"] for one in found),
        "requests": sum(one["requests"] for one in found),
        "workers": watch.seen,
    }


def many(name: str, python: str) -> dict[str, Any]:
    """500 processes: until all are there, what they hold and do when nobody asks, some requests, and the end."""
    command, others = SERVERS[name]
    with tempfile.TemporaryDirectory(prefix="wsgimaster-bench-") as folder:
        path = Path(folder) / "server.sock"
        words = command.format(venv=VENV, python=python, socket=path).split()
        began = time.monotonic()
        with Service(name, [*words, f"--processes={MANY}", "--disable-logging"], Path(folder) / "server.log") as server:
            server.wait_until_ready(1 + others + MANY, path.exists)
            started = time.monotonic() - began - QUIET_WINDOW
            tree = [process.pid for process in procfs.tree_of(server.process.pid)]
            held = sum(map(special.pss, tree)) / 1024
            before, switches = server.time(), sum(map(special.wakeups, tree))
            time.sleep(IDLE_SECONDS)
            idle = (server.time() - before).total / IDLE_SECONDS
            woken = (sum(map(special.wakeups, tree)) - switches) / IDLE_SECONDS
            seen = run_load(path, 3, clients=256)
            server.check_alive()
            began = time.monotonic()
            server.stop()
    return {
        "started_after": round(started, 2),
        "pss_mib": round(held, 1),
        "idle_cores": round(idle, 4),
        "idle_wakeups": round(woken, 1),
        "throughput": round(seen["throughput"]),
        "failed": seen["bad"],
        "requests": seen["requests"],
        "stopped_after": round(time.monotonic() - began, 2),
    }


# ---- simulated ------------------------------------------------------------------------------------


class UwsgiEngine(Engine):
    """Measures as uWSGI's busyness plugin does, ends the oldest worker, has no eye for the queue between rounds, and
    learns nothing from ends that were too early (but what busyness learns)."""

    def __init__(self, pool: Pool) -> None:
        self.took: dict[Worker, float] = {}  # of the request that it has, seconds
        self.ended: dict[int, float] = {}  # seconds of requests that ended in this window, by number
        self.caught: set[int] = set()  # workers that were busy in a look
        self.rounds = 0
        self.shown = (0.0, 0.0)  # busy and core seconds, as the plugin sees them
        super().__init__(pool)

    def sample(self) -> Sample:
        self.rounds += 1
        self.caught |= {worker.number for worker in self.workers.values() if worker.running}
        window = self.settings.overload
        if self.rounds > 1 and (self.rounds - 1) % window == 0:
            shares = [min(window, self.ended.get(number, 0.0)) for number in self.workers]
            for place, number in enumerate(self.workers):
                if number in self.caught and number not in self.ended:
                    shares[place] = window
            self.shown = (self.shown[0] + sum(shares), self.shown[1] + window * len(self.workers))
            self.ended, self.caught = {}, set()
        return replace(super().sample(), busy_seconds=self.shown[0], core_seconds=self.shown[1])

    def victim(self) -> Worker | None:
        return next((one for one in self.workers.values() if one.ready and not one.running), None)  # the oldest

    def _plan(self, at: float, kind: Kind, what: Worker | Request | None = None) -> None:
        if kind is Kind.DONE and isinstance(what, Worker):
            self.took[what] = at - self.now
        super()._plan(at, kind, what)

    def _done(self, worker: Worker) -> None:
        self.ended[worker.number] = self.ended.get(worker.number, 0.0) + self.took.pop(worker)
        super()._done(worker)

    def _carry_out(self, decision: Decision, memory: policy.Memory) -> None:
        super()._carry_out(decision, replace(memory, missed=flapping.UNTROUBLED))

    def _look(self) -> None:
        pass  # and `looking` stays true: no other look is planned


ENGINES: dict[str, type[Engine]] = {"wsgimaster": Engine, "uWSGI": UwsgiEngine}


def simulated(shape: str, engine: type[Engine], algorithm: Algorithm = Algorithm.BUSYNESS) -> Outcome:
    """Options at their defaults, sixteen processes, requests of 0.1 s on average; of 1 s, if they come for a day."""
    settings = Cheaper(minimum=LEAST, step=STEP, algorithm=algorithm)
    requests = loads.from_shape(shape, PROCESSES, 1.0 if shape == "daily" else 0.1)
    return engine(Pool(settings, PROCESSES, LEAST)).run(requests, loads.SHAPES[shape][1], lambda at: None)


# ---- the page -------------------------------------------------------------------------------------


BEGIN = "<!-- From here on: make bench-scaling -->"


def simulated_tables(outcomes: dict[str, dict[str, Outcome]]) -> Iterator[str]:
    for shape, found in outcomes.items():
        yield from (f"### {shape}", "", f"![{shape}](scaling-{shape}.svg)", "")
        yield "| | changes an hour | workers, average | waited, 99 % | waited, longest |"
        yield "|---|---|---|---|---|"
        hours = loads.SHAPES[shape][1] / 3600
        for name, one in found.items():
            waits = sorted(one.waits)
            yield (
                f"| {name} | {len(one.changes) / hours:.0f} | {one.worker_seconds / (3600 * hours):.1f}"
                f" | {milliseconds(share(waits, 0.99))} | {milliseconds(share(waits, 1.0))} |"
            )
        yield ""


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:g} s"


def real_tables(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("### step, for real", "")
    yield f"| | {ENOUGH} workers after | waited and served, 99 % | longest | failed | {LEAST} workers again after |"
    yield "|---|---|---|---|---|---|"
    for name, one in figures["step"].items():
        yield (
            f"| {name} | {seconds(one['enough_after'])} | {one['p99_ms']:.0f} ms | {one['max_ms']:.0f} ms"
            f" | {one['failed']} of {one['requests']} | {seconds(one['back_after'])} |"
        )
    yield from ("", "### saw-tooth, for real", "")
    yield "| | changes an hour | waited and served, 99 % of the worst slice | failed |"
    yield "|---|---|---|---|"
    for name, one in figures["saw-tooth"].items():
        yield (f"| {name} | {one['changes_an_hour']} | {one['p99_ms']:.0f} ms | {one['failed']} of {one['requests']} |")
    yield from ("", f"### {MANY} processes on this machine", "")
    yield (
        "| | all there after | memory of all (PSS) | idle: CPU time a second | idle: wake-ups a second"
        " | 20 ms requests a second | failed | ended after |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, one in figures["many"].items():
        yield (
            f"| {name} | {seconds(one['started_after'])} | {one['pss_mib']:.0f} MiB | {1000 * one['idle_cores']:.1f} ms"
            f" | {one['idle_wakeups']:.0f} | {one['throughput']} | {one['failed']} of {one['requests']}"
            f" | {seconds(one['stopped_after'])} |"
        )
    yield ""


def render(figures: dict[str, Any]) -> None:
    """Simulates anew (it is quick, and always the same), draws, and replaces the page's figures."""
    outcomes: dict[str, dict[str, Outcome]] = {}
    others = [one for one in Algorithm if one not in (Algorithm.BUSYNESS, Algorithm.MANUAL)]
    for shape in loads.SHAPES:
        found = {f"{name}, busyness": simulated(shape, engine) for name, engine in ENGINES.items()}
        draw(found, shape, str(DOCS / f"scaling-{shape}.svg"))
        for one in others:
            found[f"wsgimaster, {one}"] = simulated(shape, Engine, one)
            if one is not Algorithm.SPARE2:  # no release of uWSGI has it
                found[f"uWSGI, {one}"] = simulated(shape, UwsgiEngine, one)
        outcomes[shape] = found
    page = DOCS / "scaling.md"
    kept = page.read_text().partition(BEGIN)[0]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    lines = [BEGIN, "", *simulated_tables(outcomes), *real_tables(figures), f"{figures['machine']}; {versions}."]
    page.write_text(kept + "\n".join(lines) + "\n")


def measure(python: str, only: list[str]) -> dict[str, Any]:
    """only: these measurements; of the others the figures that are there are kept."""
    prepare.check_tools(with_nginx=False)
    prepare.compile_programs()
    prepare.make_venv()
    prepare.check_wsgimaster(python)
    prepare.check_same_python(python)
    machine, versions = prepare.describe_machine(), prepare.describe_versions(python)
    figures: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    figures |= {
        "machine": f"{machine['what']}, {machine['kernel']}",
        "versions": {name: versions[name] for name in ("wsgimaster", "uWSGI", "Python")},
    }
    for shape in only:
        figures[shape], ask = {}, MEASUREMENTS[shape]
        for name in SERVERS:
            print(f"{shape}: {name}", flush=True)
            figures[shape][name] = ask(name, python)
            print({key: value for key, value in figures[shape][name].items() if key != "workers"}, flush=True)
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


MEASUREMENTS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "step": real_step,
    "saw-tooth": real_saw_tooth,
    "many": many,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python that has wsgimaster")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="of the real ones")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page once more")
    options = parser.parse_args()
    try:
        figures = json.loads(FIGURES.read_text()) if options.render else measure(options.python, options.only)
    except (prepare.MissingError, ServerError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    render(figures)
    failed = sum(one["failed"] for shape in MEASUREMENTS for one in figures[shape].values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
