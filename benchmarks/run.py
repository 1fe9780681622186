#!/usr/bin/env python3
"""Measures what a request costs in uWSGI, wsgimaster and others on one machine, in one run.

    python benchmarks/run.py            # five rounds: writes results.md, results-*.svg, results/*.json
    python benchmarks/run.py --quick    # two short rounds of a part, under build/quick: does everything still work?
    python benchmarks/run.py --render   # the report again, from the newest raw file

A *group* starts the servers that are compared with each other (plan.py), asks one after the other, in random
order, for each number of clients, and ends them. A *round* runs every group once. README.md says why.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plan
import prepare
import procfs
import report
import special
from clients import ClientError, Nginx, is_answering, run_load
from contenders import BUILD, CONTENDERS, HERE, ServerError, Service, command_line
from plan import Group, Plan

MAX_OTHER = 0.25  # cores that other processes may take during a measurement
MAX_STOLEN = 0.10  # cores that the hypervisor may take away
RETRIES = 2  # of a refused measurement, on the same server
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CALM_TIMEOUT = 20.0  # seconds to wait for other work to end before a retry


@dataclass
class Run:
    """Everything that a run knows, as it stands in the raw file."""

    plan: Plan
    raw_file: Path
    python: str
    keep_noisy: bool
    dice: random.Random
    document: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    specials: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def save(self) -> None:
        """One line a record, so that the file can be read, and compared, by people too."""
        self.document["finished"] = now_text()
        lists = {"records": self.records, "specials": self.specials, "failures": self.failures}
        parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in self.document.items()]
        for key, rows in lists.items():
            parts.append(f' "{key}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]")
        self.raw_file.parent.mkdir(parents=True, exist_ok=True)
        self.raw_file.write_text("{\n" + ",\n".join(parts) + "\n}\n")

    def note_failure(self, where: str, contender: str, number: int, error: Exception) -> None:
        """Its text goes to the terminal only: it may be a long traceback with this machine's paths."""
        print(f"  {contender}, {where}: FAILED: {error}", file=sys.stderr)
        failure = {"round": number, "where": where, "contender": contender, "kind": type(error).__name__}
        self.failures.append(failure)

    def has_failed(self, where: str, contender: str) -> bool:
        return any((row["where"], row["contender"]) == (where, contender) for row in self.failures)


def now_text() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


# ---- one measurement ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """CPU seconds since the beginning, by who spent them."""

    server: procfs.TreeTime
    nginx: float
    clients: float
    others: float
    stolen: float
    clock: float


def spent_so_far(server: Service, nginx: Nginx | None) -> Spent:
    measured = {process.pid for process in procfs.tree_of(server.process.pid)}
    measured |= {process.pid for process in procfs.tree_of(nginx.process.pid)} if nginx else set()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(
        server.time(),
        nginx.time().total if nginx else 0.0,
        children.ru_utime + children.ru_stime,
        procfs.others_seconds(measured | {procfs.OWN_PID}),
        procfs.stolen_seconds(),
        time.monotonic(),
    )


def measure(server: Service, nginx: Nginx | None, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One window: it begins and ends with no request under way, so time and requests belong together."""
    before = spent_so_far(server, nginx)
    seen = ask()
    after = spent_so_far(server, nginx)
    cpu = after.server - before.server
    wall = after.clock - before.clock
    per_request = 1e6 / max(1, seen["requests"])
    figures = {
        "server_cpu_us": cpu.total * per_request,
        "server_user_ticks_us": cpu.user_by_ticks * per_request,
        "server_system_ticks_us": cpu.system_by_ticks * per_request,
        "nginx_cpu_us": (after.nginx - before.nginx) * per_request,
        "client_cpu_us": (after.clients - before.clients) * per_request,
        "other_load_cores": max(0.0, after.others - before.others) / wall,
        "stolen_cores": (after.stolen - before.stolen) / wall,
    }
    return {name: round(value, 3) for name, value in figures.items()} | {"processes": cpu.processes} | seen


def reason_to_refuse(record: dict[str, Any], keep_noisy: bool) -> str | None:
    if record["bad"]:
        return f"{record['bad']} of {record['requests']} requests weren't answered with a complete 200"
    if not record["requests"]:
        return "no requests"
    if keep_noisy:
        return None
    if record["other_load_cores"] > MAX_OTHER:
        return f"other work took {record['other_load_cores']:.2f} cores"
    if record["stolen_cores"] > MAX_STOLEN:
        return f"the hypervisor took {record['stolen_cores']:.2f} cores"
    return None


def measure_until_accepted(run: Run, take: Callable[[], dict[str, Any]], labels: dict[str, Any]) -> None:
    """Refused measurements are kept in the raw file, with the reason; the report leaves them out."""
    for _ in range(1 + RETRIES):
        record = labels | take()
        record["refused"] = reason_to_refuse(record, run.keep_noisy)
        run.records.append(record)
        print(describe(record), flush=True)
        if record["refused"] is None:
            return
        wait_for_calm()


def wait_for_calm() -> None:
    """Until the machine, which has nothing to do for us now, has been idle enough for a second."""
    deadline = time.monotonic() + CALM_TIMEOUT
    while time.monotonic() < deadline:
        before = procfs.others_seconds({procfs.OWN_PID})
        time.sleep(1)
        if procfs.others_seconds({procfs.OWN_PID}) - before < MAX_OTHER / 2:
            return


def describe(record: dict[str, Any]) -> str:
    text = f"  {record['contender']:16} {record['clients']:3} clients  {record['server_cpu_us']:7.1f} us CPU"
    text += f"  {record['throughput']:8.0f}/s  p50 {record['p50_us']:7.0f}  p99 {record['p99_us']:7.0f} us"
    return text + (f"  REFUSED: {record['refused']}" if record["refused"] else "")


# ---- groups and rounds ----------------------------------------------------------------------------


def run_group(run: Run, group: Group, number: int) -> None:
    print(group.name, flush=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsgimaster-bench-")))
        servers = dict(start_servers(run, group, number, directory, stack))
        sockets = {name: directory / f"{name}.sock" for name in servers}
        nginx = None
        if group.way == "nginx":
            nginx = stack.enter_context(Nginx(directory, sockets))
            nginx.wait_until_ready(2, nginx.is_answering)
        addresses = nginx.listeners if nginx else sockets
        for clients in run.dice.sample(group.clients, len(group.clients)):
            for name in run.dice.sample(list(servers), len(servers)):
                labels = {"round": number, **labels_of(group), "clients": clients, "contender": name}
                try:
                    measure_cell(run, group, labels, servers[name], nginx, addresses[name])
                except (ServerError, ClientError) as error:
                    run.note_failure(group.name, name, number, error)
                    servers.pop(name).stop()


def start_servers(
    run: Run, group: Group, number: int, directory: Path, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Service]]:
    """Those that are up, answer, and have been silent for a while: nobody is measured while somebody starts."""
    names = [name for name in group.contenders if not run.has_failed(group.name, name)]
    started = {}
    for name in names:
        command = command_line(name, group, directory / f"{name}.sock", run.python)
        started[name] = stack.enter_context(Service(name, command, directory / f"{name}.log"))
    for name, server in started.items():
        try:
            contender = CONTENDERS[name]
            answering = functools.partial(is_answering, directory / f"{name}.sock", http=contender.protocol == "http")
            server.wait_until_ready(group.workers + contender.helpers, answering)
        except (ServerError, ClientError) as error:
            run.note_failure(group.name, name, number, error)
            server.stop()
        else:
            yield name, server


def labels_of(group: Group) -> dict[str, Any]:
    fields = dataclasses.asdict(group)
    return {name: fields[name] for name in ("way", "app", "workers", "threads", "logged", "rate")}


def measure_cell(
    run: Run, group: Group, labels: dict[str, Any], server: Service, nginx: Nginx | None, address: Path
) -> None:
    options = {"clients": labels["clients"]}
    if group.app == "mix":
        options["slow_every"] = plan.SLOW_EVERY
    if group.rate:
        options["rate"] = group.rate
    http = group.way != "direct"

    def take() -> dict[str, Any]:
        return measure(server, nginx, lambda: run_load(address, run.plan.seconds, http=http, **options))

    run_load(address, run.plan.warmup, http=http, clients=min(labels["clients"], 256))
    measure_until_accepted(run, take, labels)
    server.check_alive()


def run_rounds(run: Run) -> None:
    for number in range(1, run.plan.rounds + 1):
        print(f"round {number} of {run.plan.rounds}", flush=True)
        for group in run.dice.sample(run.plan.groups, len(run.plan.groups)):
            try:
                run_group(run, group, number)
            except (ServerError, ClientError, OSError) as error:
                run.note_failure(group.name, "all", number, error)
            run.save()
        if run.plan.specials:
            for name, take in special.MEASUREMENTS.items():
                try:
                    rows = take(run.python)
                except (ServerError, ClientError, OSError, ValueError) as error:
                    run.note_failure(name, "all", number, error)
                else:
                    run.specials += [{"round": number, "what": name, **row} for row in rows]
                    print("\n".join(f"  {name}: {row}" for row in rows), flush=True)
            run.save()


# ---- command line ---------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", dest="mode", action="store_const", const="quick", default="normal")
    parser.add_argument("--render", nargs="?", const="newest", metavar="FILE", help="write the report again")
    parser.add_argument("--contenders", type=words, help=f"comma-separated, of {','.join(CONTENDERS)}")
    parser.add_argument("--apps", type=words, help=f"comma-separated, of {','.join(plan.APPS)}")
    parser.add_argument("--ways", type=words, help="comma-separated, of direct, nginx and http")
    parser.add_argument("--workers", type=numbers, help="comma-separated numbers of worker processes")
    parser.add_argument("--clients", type=numbers, help="comma-separated numbers of concurrent clients")
    parser.add_argument("--no-specials", action="store_true", help="no memory, idling, stopped master")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument("--keep-noisy", action="store_true", help="don't refuse for other load")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the random order")
    parser.add_argument("--python", default=sys.executable, help="the Python that has wsgimaster")
    parser.add_argument("--out", type=Path, help="folder of the report (benchmarks/; --quick: build/quick)")
    return parser.parse_args(arguments)


def plan_from(options: argparse.Namespace) -> Plan:
    """The mode's plan, narrowed to what the options name."""
    chosen = plan.PLANS[options.mode]
    if unknown := set(options.contenders or ()) - set(CONTENDERS) | set(options.apps or ()) - set(plan.APPS):
        raise prepare.MissingError(f"no such server or application: {', '.join(sorted(unknown))}")
    groups = []
    for group in chosen.groups:
        clients = tuple(n for n in group.clients if options.clients is None or n in options.clients)
        names = tuple(n for n in group.contenders if options.contenders is None or n in options.contenders)
        allowed = ((group.app, options.apps), (group.way, options.ways), (group.workers, options.workers))
        if clients and names and all(wanted is None or value in wanted for value, wanted in allowed):
            groups.append(dataclasses.replace(group, clients=clients, contenders=names))
    if not groups:
        raise prepare.MissingError("nothing is left to measure: no group of plan.py has all that was asked for")
    chosen = dataclasses.replace(chosen, groups=tuple(groups))
    changes = {name: getattr(options, name) for name in ("rounds", "seconds") if getattr(options, name) is not None}
    return dataclasses.replace(chosen, specials=not options.no_specials, **changes)


def prepare_run(options: argparse.Namespace, out: Path) -> Run:
    chosen = plan_from(options)
    prepare.check_tools(with_nginx=any(group.way == "nginx" for group in chosen.groups))
    prepare.check_wsgimaster(options.python)
    prepare.make_venv()
    prepare.check_same_python(options.python)
    prepare.compile_programs()
    names = [name for name in CONTENDERS if any(name in group.contenders for group in chosen.groups)]
    document = {
        "format": report.FORMAT,
        "mode": options.mode,
        "started": now_text(),
        "plan": dataclasses.asdict(chosen),
        "seed": options.seed,
        "keep_noisy": options.keep_noisy,
        "machine": prepare.describe_machine(),
        "versions": prepare.describe_versions(options.python),
        "contenders": prepare.describe_contenders(names),
    }
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    raw_file = out / "results" / f"{stamp}-{options.mode}.json"
    return Run(chosen, raw_file, options.python, options.keep_noisy, random.Random(options.seed), document)


def newest_raw_file(out: Path) -> Path:
    files = sorted((out / "results").glob("*.json"))
    if not files:
        raise prepare.MissingError(f"no raw files in {out / 'results'}")
    return files[-1]


def execute(options: argparse.Namespace) -> int:
    out = options.out or (BUILD / "quick" if options.mode == "quick" else HERE)
    if options.render:
        report.write(newest_raw_file(out) if options.render == "newest" else Path(options.render), out)
        return 0
    run = prepare_run(options, out)
    print(f"{run.plan.rounds} rounds: about {run.plan.minutes():.0f} minutes", flush=True)
    try:
        run_rounds(run)
    finally:
        run.save()
    report.write(run.raw_file, out)
    return 1 if run.failures or any(record["bad"] for record in run.records) else 0


def end(number: int, _frame: object) -> None:
    """Unwinds the `with` blocks, so that no server is left behind; that isn't to be interrupted."""
    for name in ENDINGS:
        signal.signal(name, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    for name in ENDINGS:
        if signal.getsignal(name) is not signal.SIG_IGN:  # as under nohup
            signal.signal(name, end)
    try:
        return execute(parse_arguments())
    except (prepare.MissingError, report.NothingMeasuredError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
