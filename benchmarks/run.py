#!/usr/bin/env python3
"""Measures what a request costs in uWSGI, gunicorn, wsgimaster and a bare C loop, on one machine, in one run.

    python benchmarks/run.py            # five rounds: writes results.md, results.svg, results/*.json
    python benchmarks/run.py --quick    # two short rounds, under build/quick: does everything still work?
    python benchmarks/run.py --full     # more and longer rounds: for numbers that get published
    python benchmarks/run.py --render   # results.md and results.svg again, from the newest raw file

A *visit* starts one server with one number of workers, measures it straight at its socket and through nginx,
and ends it. A *round* visits every server at every number of workers, in random order. README.md says why.
"""

import argparse
import datetime
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import prepare
import procfs
import report
from clients import CLIENTS, WRK_CONNECTIONS, Answers, ClientError, Nginx, is_answering, run_load, run_wrk
from contenders import BUILD, CONTENDERS, HERE, Contender, ServerError, Service, command_line

MAX_STOLEN = 0.10  # cores that the hypervisor may take away during a measurement
RETRIES = 2  # of a refused measurement, on the same server
CALM_TIMEOUT = 20.0  # seconds to wait for other work to end before a retry


@dataclass(frozen=True)
class Settings:
    rounds: int = 5
    seconds: float = 3
    warmup: float = 1
    workers: tuple[int, ...] = (2, 16, 64)
    nginx_workers: tuple[int, ...] = (2, 16)
    contenders: tuple[str, ...] = tuple(contender.name for contender in CONTENDERS)
    max_other_load: float = 0.25  # cores
    keep_noisy: bool = False
    seed: int = 0

    def visits_per_round(self) -> int:
        return len(self.workers) * len(self.contenders)

    def estimated_minutes(self) -> float:
        one_way = self.warmup + self.seconds + 0.2
        each_direct = len(self.workers) * (2.2 + one_way)
        each_nginx = sum(n in self.nginx_workers for n in self.workers) * (0.6 + one_way)
        return self.rounds * len(self.contenders) * (each_direct + each_nginx) / 60


MODES = {
    "quick": Settings(rounds=2, seconds=1, warmup=0.3, nginx_workers=(2,)),
    "normal": Settings(),
    "full": Settings(rounds=9, seconds=5, nginx_workers=(2, 16, 64)),
}


@dataclass
class Run:
    """Everything that a run knows, as it stands in the raw file."""

    settings: Settings
    raw_file: Path
    python: str
    document: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def save(self) -> None:
        self.document["finished"] = now_text()
        self.document |= {"records": self.records, "failures": self.failures}
        self.raw_file.parent.mkdir(parents=True, exist_ok=True)
        self.raw_file.write_text(json.dumps(self.document, indent=1) + "\n")


def now_text() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


# ---- one measurement ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """CPU seconds since the beginning, by who spent them."""

    server: procfs.TreeTime
    nginx: float
    clients: float
    harness: float
    machine: procfs.MachineTime
    clock: float


def spent_so_far(server: Service, nginx: Nginx | None) -> Spent:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(
        server.time(),
        nginx.time().total if nginx else 0.0,
        children.ru_utime + children.ru_stime,
        time.process_time(),
        procfs.machine_time(),
        time.monotonic(),
    )


def measure(server: Service, nginx: Nginx | None, client: Callable[[], Answers]) -> dict[str, Any]:
    """One window: it begins and ends with no request under way, so time and requests belong together."""
    before = spent_so_far(server, nginx)
    answers = client()
    after = spent_so_far(server, nginx)
    wall = after.clock - before.clock
    cpu = after.server - before.server
    ours = cpu.total + after.nginx - before.nginx + after.clients - before.clients
    ours += after.harness - before.harness
    per_request = 1e6 / max(1, answers.requests)
    return {
        "server_cpu_us": cpu.total * per_request,
        "server_user_ticks_us": cpu.user_by_ticks * per_request,
        "server_system_ticks_us": cpu.system_by_ticks * per_request,
        "nginx_cpu_us": (after.nginx - before.nginx) * per_request,
        "client_cpu_us": (after.clients - before.clients) * per_request,
        "processes": cpu.processes,
        "other_load_cores": (after.machine.busy - before.machine.busy - ours) / wall,
        "stolen_cores": (after.machine.stolen - before.machine.stolen) / wall,
        **answers.as_dict(),
    }


def reason_to_refuse(record: dict[str, Any], settings: Settings) -> str | None:
    if record["bad"]:
        return f"{record['bad']} of {record['requests']} requests weren't answered with a complete 200"
    if not record["requests"]:
        return "no requests"
    if settings.keep_noisy:
        return None
    if record["other_load_cores"] > settings.max_other_load:
        return f"other work took {record['other_load_cores']:.2f} cores"
    if record["stolen_cores"] > MAX_STOLEN:
        return f"the hypervisor took {record['stolen_cores']:.2f} cores"
    return None


def measure_until_accepted(run: Run, take: Callable[[], dict[str, Any]], labels: dict[str, Any]) -> None:
    """Refused measurements are kept in the raw file, with the reason; the report leaves them out."""
    for _ in range(1 + RETRIES):
        record = labels | take()
        record["refused"] = reason_to_refuse(record, run.settings)
        run.records.append(record)
        print(describe(record), flush=True)
        if record["refused"] is None:
            return
        wait_for_calm(run.settings)


def wait_for_calm(settings: Settings) -> None:
    """Until the machine, on which nothing of ours runs now, has been idle enough for a second."""
    deadline = time.monotonic() + CALM_TIMEOUT
    while time.monotonic() < deadline:
        before = procfs.machine_time()
        time.sleep(1)
        if procfs.machine_time().busy - before.busy < settings.max_other_load / 2:
            return


def describe(record: dict[str, Any]) -> str:
    text = f"  {record['contender']:16} {record['workers']:3} workers, {record['way']:6}"
    text += f"  {record['server_cpu_us']:7.1f} us CPU  {record['throughput']:8.0f}/s"
    text += f"  p50 {record['p50_us']:6.0f}  p99 {record['p99_us']:6.0f} us"
    return text + (f"  REFUSED: {record['refused']}" if record["refused"] else "")


# ---- visits and rounds ----------------------------------------------------------------------------


def visit(run: Run, contender: Contender, workers: int, number: int) -> None:
    labels = {"round": number, "contender": contender.name, "workers": workers}
    with tempfile.TemporaryDirectory(prefix="wsgimaster-bench-") as name:
        directory = Path(name)
        socket = directory / "server.sock"
        command = command_line(contender, socket, workers, run.python)
        with Service(contender.name, command, directory / "server.log") as server:
            server.wait_until_ready(workers + 1, lambda: is_answering(socket))
            visit_directly(run, server, socket, labels)
            if workers in run.settings.nginx_workers:
                visit_through_nginx(run, server, socket, labels)
            server.check_alive()


def visit_directly(run: Run, server: Service, socket: Path, labels: dict[str, Any]) -> None:
    def take() -> dict[str, Any]:
        return measure(server, None, lambda: run_load(socket, run.settings.seconds))

    run_load(socket, run.settings.warmup)
    measure_until_accepted(run, take, labels | {"way": "direct"})


def visit_through_nginx(run: Run, server: Service, socket: Path, labels: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="wsgimaster-bench-") as name, Nginx(Path(name), socket) as nginx:
        nginx.wait_until_ready(2, nginx.is_answering)

        def take() -> dict[str, Any]:
            return measure(server, nginx, lambda: run_wrk(nginx, run.settings.seconds))

        run_wrk(nginx, run.settings.warmup)
        measure_until_accepted(run, take, labels | {"way": "nginx"})


def order_of_round(settings: Settings, dice: random.Random) -> Iterator[tuple[Contender, int]]:
    """All servers with one number of workers stand together: what is compared is measured close in time."""
    for workers in dice.sample(settings.workers, len(settings.workers)):
        field_of_servers = [contender for contender in CONTENDERS if contender.name in settings.contenders]
        for contender in dice.sample(field_of_servers, len(field_of_servers)):
            yield contender, workers


def run_rounds(run: Run) -> None:
    dice = random.Random(run.settings.seed)
    broken: set[tuple[str, int]] = set()
    for number in range(1, run.settings.rounds + 1):
        print(f"round {number} of {run.settings.rounds}", flush=True)
        for contender, workers in order_of_round(run.settings, dice):
            if (contender.name, workers) in broken:
                continue
            try:
                visit(run, contender, workers, number)
            except (ServerError, ClientError) as error:
                broken.add((contender.name, workers))
                note_failure(run, contender, workers, number, error)
        run.save()


def note_failure(run: Run, contender: Contender, workers: int, number: int, error: Exception) -> None:
    """Its text goes to the terminal only: it may be a long traceback with this machine's paths."""
    print(f"  {contender.name}, {workers} workers: FAILED, left out from now on: {error}", file=sys.stderr)
    failure = {"round": number, "contender": contender.name, "workers": workers, "kind": type(error).__name__}
    run.failures.append(failure)


# ---- command line ---------------------------------------------------------------------------------


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", dest="mode", action="store_const", const="quick", default="normal")
    mode.add_argument("--full", dest="mode", action="store_const", const="full")
    parser.add_argument("--render", nargs="?", const="newest", metavar="FILE", help="write the report again")
    names = ",".join(contender.name for contender in CONTENDERS)
    parser.add_argument("--contenders", help=f"comma-separated, of {names}")
    parser.add_argument("--workers", type=numbers, help="comma-separated numbers of worker processes")
    parser.add_argument("--nginx-workers", type=numbers, help="which of them are measured through nginx too")
    parser.add_argument("--no-nginx", dest="nginx_workers", action="store_const", const=())
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument("--warmup", type=float, help="seconds before it, not counted")
    parser.add_argument("--max-other-load", type=float, metavar="CORES", help="refuse above this (0.25)")
    parser.add_argument("--keep-noisy", action="store_true", default=None, help="don't refuse for other load")
    parser.add_argument("--seed", type=int, help="of the random order")
    parser.add_argument("--python", default=sys.executable, help="the Python that has wsgimaster")
    parser.add_argument("--out", type=Path, help="folder of the report (benchmarks/; --quick: build/quick)")
    return parser.parse_args(arguments)


def settings_from(options: argparse.Namespace) -> Settings:
    given = vars(options)
    changes = {name: given[name] for name in Settings.__dataclass_fields__ if given.get(name) is not None}
    if options.contenders is not None:
        changes["contenders"] = tuple(options.contenders.split(","))
        unknown = set(changes["contenders"]) - {contender.name for contender in CONTENDERS}
        if unknown:
            raise prepare.MissingError(f"no such contender: {', '.join(sorted(unknown))}")
    changes.setdefault("seed", random.randrange(2**32))
    settings = replace(MODES[options.mode], **changes)
    return replace(settings, nginx_workers=tuple(n for n in settings.nginx_workers if n in settings.workers))


def without_wsgimaster(settings: Settings, python: str) -> Settings:
    ours = [name for name in settings.contenders if name.startswith("wsgimaster")]
    if not ours or prepare.has_wsgimaster(python):
        return settings
    print("wsgimaster isn't installed for this Python (--python): measuring without it", file=sys.stderr)
    return replace(settings, contenders=tuple(name for name in settings.contenders if name not in ours))


def prepare_run(options: argparse.Namespace, out: Path) -> Run:
    settings = settings_from(options)
    prepare.check_tools(with_nginx=bool(settings.nginx_workers))
    prepare.make_venv()
    prepare.compile_programs()
    settings = without_wsgimaster(settings, options.python)
    document = {
        "format": 1,
        "mode": options.mode,
        "started": now_text(),
        "settings": asdict(settings) | {"clients": CLIENTS, "wrk_connections": WRK_CONNECTIONS},
        "machine": prepare.describe_machine(),
        "versions": prepare.describe_versions(options.python, list(settings.contenders)),
        "contenders": prepare.describe_contenders(list(settings.contenders)),
    }
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return Run(settings, out / "results" / f"{stamp}-{options.mode}.json", options.python, document)


def newest_raw_file(out: Path) -> Path:
    files = sorted((out / "results").glob("*.json"))
    if not files:
        raise prepare.MissingError(f"no raw files in {out / 'results'}")
    return files[-1]


def execute(options: argparse.Namespace) -> int:
    out = options.out or (BUILD / "quick" if options.mode == "quick" else HERE)
    if options.render:
        raw_file = newest_raw_file(out) if options.render == "newest" else Path(options.render)
        report.write(raw_file, out)
        return 0
    run = prepare_run(options, out)
    visits, minutes = run.settings.visits_per_round(), run.settings.estimated_minutes()
    print(f"{run.settings.rounds} rounds of {visits} visits: about {minutes:.0f} minutes", flush=True)
    try:
        run_rounds(run)
    finally:
        run.save()
    report.write(run.raw_file, out)
    return 1 if run.failures or report.has_gaps(run.document) else 0


def main() -> int:
    # An end by SIGTERM unwinds the `with` blocks too, so that no server is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return execute(parse_arguments())
    except (prepare.MissingError, report.NothingMeasuredError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
