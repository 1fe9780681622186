"""From a raw file to results.md and its charts. Nothing is measured here, so a report can be made again."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import chart
from plan import (
    APPS,
    FLOOR,
    GRANIAN,
    GTHREAD,
    LOADED_CLIENTS,
    MANY_WORKERS,
    MATRIX_WORKERS,
    OURS,
    OURS_HTTP,
    PUSH,
    UWSGI,
)

EN_DASH = "\u2013"
FORMAT = 2  # of the raw file

# What we promise, as multiples of the better of uWSGI's two settings, by number of workers.
CPU_GOALS = {2: 1.0, 16: 0.65, 64: 0.6, 128: 0.5}
THROUGHPUT_GOALS = {2: 1.0, 16: 1.3, 64: 1.3, 128: 1.3}
FLOOR_GOAL = 1.4  # at most this much of the C loop's CPU per request, at 2 workers
LONE_CLIENT_GOAL = 1.25  # p50
LOWEST_THROUGHPUT = 0.97  # no cell of the matrix whose whole spread lies below
MASTER_GOAL_KIB = 45 * 1024
RECOVERY_GOAL_MS = 1000

METHOD = """\
There are {rounds} rounds. In each, the servers that are compared are started afresh together, and when all are up and
silent they are asked one after the other, in random order: {warmup:g} s to warm up and {seconds:g} s measured, for
each number of clients. So those whose figures are divided by each other were measured within seconds of each other.
All servers run the same application with the same number of worker processes and threads, and listen on a unix socket.
The client is a compiled closed loop (at a fixed rate an open one) that speaks the uwsgi protocol, one request per
connection, with 21 variables as a browser behind nginx produces them, and checks status and length (1,024 bytes) of
every answer; behind nginx, and over HTTP, the same program speaks HTTP with keep-alive; nginx has one worker and speaks
with each server the protocol that it speaks best. *Server CPU per request* is the user and system time that the
server's whole process tree spent in the window, children that ended included, over the requests that it served in it;
clients and nginx are not in it.
A measurement with a single answer other than a complete 200 is refused, and so is one during which other processes took
more than 0.25 of a core, or the hypervisor more than 0.1.
"""

HOW_TO_READ = """\
- The numbers are medians over the rounds, in brackets the quartiles. Where the brackets of two servers overlap, don't
  say that one is better. "Spread" in a goal means the quartiles, too: it is not below 1 if the upper one isn't.
- **Read the ratios, not the microseconds.** Each ratio is taken inside one round, between two servers measured shortly
  after each other, so a machine that is slower today cancels out. The microseconds of two different runs, let alone of
  two machines, can't be compared.
- "uWSGI" in a ratio is the better of its two settings, in that cell and for that quantity.
- Server CPU per request is the number that matters on a busy host, and the one that depends least on the client, which
  shares the cores with the server here. Throughput contains the client's own cost per request (and nginx's, where it is
  used) and so differs less between servers than they do.
- Except at a fixed rate, latency is that of a closed loop: with 32 clients, 32 requests are always outstanding, so p50
  is nearly the reverse of throughput and says little about a server at ordinary load.
- In `mix` the latencies are those of the fast requests: how long does somebody wait whose request takes nothing, while
  others take a second? No server can do anything about it once all workers are in slow requests.
- The bare C loop parses nothing and runs no Python: with two workers it says how much of each number is the kernel's.
  With more, all that are idle take turns, so that each connection wakes a process up; who keeps fewer awake can be
  cheaper.
"""


class NothingMeasuredError(Exception):
    """No record that could be reported."""


@dataclass(frozen=True)
class Summary:
    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}{EN_DASH}{self.high:,.{digits}f})"


def summary_of(values: Iterable[float]) -> Summary | None:
    known = sorted(values)
    if not known:
        return None
    if len(known) == 1:
        return Summary(known[0], known[0], known[0])
    low, median, high = statistics.quantiles(known, n=4, method="inclusive")
    return Summary(median, low, high)


@dataclass(frozen=True, order=True)
class Cell:
    """What stands side by side: everything that is the same for the servers that are compared."""

    way: str
    app: str
    workers: int
    clients: int
    threads: int = 1
    logged: bool = False
    rate: int = 0

    def text(self) -> str:
        return f"{self.app}, {self.workers} workers, {self.clients} {plural('client', self.clients)}"


def plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


class Results:
    """The accepted measurements of a raw file, by cell, server and round."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.labels = {row["name"]: row["label"] for row in document["contenders"]}
        self.accepted = [record for record in document["records"] if record["refused"] is None]
        self.planned: dict[Cell, list[str]] = {  # every cell that was to be measured, with its servers
            Cell(g["way"], g["app"], g["workers"], clients, g["threads"], g["logged"], g["rate"]): g["contenders"]
            for g in document["plan"]["groups"]
            for clients in g["clients"]
        }
        self.rows: dict[Cell, dict[str, dict[int, dict[str, Any]]]] = {}
        for record in self.accepted:
            cell = Cell(*(record[name] for name in ("way", "app", "workers", "clients", "threads", "logged", "rate")))
            self.rows.setdefault(cell, {}).setdefault(record["contender"], {})[record["round"]] = record

    def cells(self, way: str, app: str) -> list[Cell]:
        """Those that were planned, measured or not: of the matrix, or behind nginx."""
        return sorted(cell for cell in self.planned if cell == Cell(way, app, cell.workers, cell.clients))

    def rated_cells(self) -> list[Cell]:
        return sorted(cell for cell in self.planned if cell.rate)

    def names(self, cells: Iterable[Cell]) -> list[str]:
        """Servers that have something in these cells, in the order of the table of contenders."""
        present = {name for cell in cells for name in self.rows.get(cell, {})}
        return [name for name in self.labels if name in present]

    def by_round(self, cell: Cell, name: str, quantity: str) -> dict[int, float]:
        records = self.rows.get(cell, {}).get(name, {})
        return {number: record[quantity] for number, record in records.items()}

    def summary(self, cell: Cell, name: str, quantity: str) -> Summary | None:
        return summary_of(self.by_round(cell, name, quantity).values())

    def ratio(self, cell: Cell, quantity: str, name: str, reference: str) -> Summary | None:
        """Of the two servers' figures, round by round."""
        ours, theirs = self.by_round(cell, name, quantity), self.by_round(cell, reference, quantity)
        return summary_of(ours[number] / theirs[number] for number in ours if theirs.get(number))

    def to_uwsgi(self, cell: Cell, quantity: str, name: str = OURS) -> Summary | None:
        """The ratio to the better of uWSGI's settings."""
        medians = {
            other: summary.median for other in UWSGI if (summary := self.summary(cell, other, quantity)) is not None
        }
        if len(medians) < len(UWSGI):  # which one is better isn't known
            return None
        best = max if quantity == "throughput" else min
        return self.ratio(cell, quantity, name, best(medians, key=lambda other: medians[other]))

    def special(self, what: str, quantity: str, contender: str | None = None) -> Summary | None:
        return summary_of(
            row[quantity]
            for row in self.document["specials"]
            if row["what"] == what and contender in (None, row.get("contender"))
        )

    def special_ratio(self, what: str, quantity: str) -> Summary | None:
        """Ours to uWSGI's, round by round."""
        found: dict[str, dict[int, float]] = {OURS: {}, UWSGI[0]: {}}
        for row in self.document["specials"]:
            if row["what"] == what:
                found[row["contender"]][row["round"]] = row[quantity]
        ours, theirs = found[OURS], found[UWSGI[0]]
        return summary_of(ours[number] / theirs[number] for number in ours if number in theirs)


# ---- tables ---------------------------------------------------------------------------------------


def figure(summary: Summary | None, digits: int) -> str:
    return summary.text(digits) if summary else EN_DASH


def middle(summary: Summary | None) -> str:
    if summary is None:
        return EN_DASH
    return f"{summary.median:,.1f}" if summary.median < 100 else f"{summary.median:,.0f}"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def matrix_table(results: Results, cells: list[Cell], quantities: tuple[str, ...]) -> str:
    """A row for each cell, a column for each server; the last is ours to uWSGI's, for the last quantity."""
    names = results.names(cells)
    head = ["workers x clients", *(results.labels[name] for name in names), "wsgimaster / uWSGI"]
    rows = (
        [
            f"{cell.workers} x {cell.clients}",
            *(" / ".join(middle(results.summary(cell, name, quantity)) for quantity in quantities) for name in names),
            figure(results.to_uwsgi(cell, quantities[-1]), 2),
        ]
        for cell in cells
    )
    return table(head, rows)


def app_section(results: Results, app: str) -> str:
    cells = results.cells("direct", app)
    if not cells:
        return ""
    waiting = "Waiting times of the fast requests" if app == "mix" else "Waiting times"
    return (
        f"## {app}: {APPS[app]}\n\n![{app}: server CPU per request and throughput]({chart_name(app)})\n\n"
        f"Server CPU per request, µs (lower is better):\n\n{matrix_table(results, cells, ('server_cpu_us',))}\n"
        f"Requests per second (client and server share the machine; higher is better):\n\n"
        f"{matrix_table(results, cells, ('throughput',))}\n"
        f"{waiting}, µs, p50 / p99, and the ratio of p99:\n\n{matrix_table(results, cells, ('p50_us', 'p99_us'))}\n"
    )


SERVER_COLUMNS = (
    ("requests/s", "throughput", 0),
    ("server CPU, µs", "server_cpu_us", 1),
    ("nginx CPU, µs", "nginx_cpu_us", 1),
    ("p50, µs", "p50_us", 0),
    ("p99, µs", "p99_us", 0),
)


def servers_table(results: Results, cell: Cell) -> str:
    columns = [column for column in SERVER_COLUMNS if cell.way == "nginx" or column[1] != "nginx_cpu_us"]
    head = ["server", *(title for title, _, _ in columns), "throughput / uWSGI", "CPU / uWSGI"]
    rows = (
        [
            results.labels[name],
            *(figure(results.summary(cell, name, quantity), digits) for _, quantity, digits in columns),
            *(figure(results.to_uwsgi(cell, quantity, name), 2) for quantity in ("throughput", "server_cpu_us")),
        ]
        for name in results.names([cell])
    )
    return table(head, rows)


def nginx_section(results: Results) -> str:
    cells = sorted(cell for cell in results.rows if cell.way == "nginx")
    parts = [f"{cell.text()}:\n\n{servers_table(results, cell)}\n" for cell in cells]
    return "## Behind nginx\n\n" + "".join(parts) if parts else ""


def http_section(results: Results) -> str:
    cells = sorted(cell for cell in results.rows if cell.way == "http")
    columns = [column for column in SERVER_COLUMNS if column[1] != "nginx_cpu_us"]
    parts = []
    for cell in cells:
        head = ["server", *(title for title, _, _ in columns), "throughput / granian", "CPU / granian"]
        rows = (
            [
                results.labels[name],
                *(figure(results.summary(cell, name, quantity), digits) for _, quantity, digits in columns),
                *(
                    figure(results.ratio(cell, quantity, name, GRANIAN), 2)
                    for quantity in ("throughput", "server_cpu_us")
                ),
            ]
            for name in results.names([cell])
        )
        parts.append(f"{cell.text()}:\n\n{table(head, rows)}\n")
    return "## Over HTTP, on connections that go on\n\n" + "".join(parts) if parts else ""


def variants_section(results: Results) -> str:
    """The cells that differ from the matrix in one thing: a rate, threads, the request log."""
    text = ""
    rated = results.rated_cells()
    if rated:
        text += (
            "## mix at a fixed rate\n\nArrivals don't wait for answers, so that all servers get the same requests.\n\n"
        )
    for cell in rated:
        text += f"{cell.workers} workers, {cell.rate:,} requests/s:\n\n{servers_table(results, cell)}\n"
    for cell in sorted(cell for cell in results.rows if cell.threads > 1):
        shape = f"{cell.workers} workers with {cell.threads} threads"
        text += f"## Threads: {cell.app}, {shape}, {cell.clients} clients\n\n{servers_table(results, cell)}\n"
    for cell in sorted(cell for cell in results.rows if cell.logged):
        text += f"## What a line in the log costs: {cell.text()}\n\n{log_table(results, cell)}\n"
    return text


def log_table(results: Results, cell: Cell) -> str:
    """The same cell with and without a request log; both are in one round, but not side by side."""
    silent = replace(cell, logged=False)
    head = ["server", "server CPU, µs, without", "with", "requests/s, without", "with"]
    rows = (
        [
            results.labels[name],
            figure(results.summary(silent, name, "server_cpu_us"), 1),
            figure(results.summary(cell, name, "server_cpu_us"), 1),
            figure(results.summary(silent, name, "throughput"), 0),
            figure(results.summary(cell, name, "throughput"), 0),
        ]
        for name in results.names([cell])
    )
    return table(head, rows)


def special_section(results: Results) -> str:
    if not results.document["specials"]:
        return ""

    def of(what: str, quantity: str, digits: int = 0, contender: str | None = None, scale: float = 1) -> str:
        summary = results.special(what, quantity, contender)
        if summary is None:
            return EN_DASH
        return Summary(summary.median * scale, summary.low * scale, summary.high * scale).text(digits)

    stopped = "stopped master"
    pause_rows = [
        ["push serves, requests/s", of(stopped, "push_capacity")],
        ["arrivals, 1.2 times as many", of(stopped, "rate")],
        ["served by wsgimaster, requests/s", of(stopped, "throughput")],
        ["p99 in slices of 100 ms before the pause, µs", of(stopped, "before_p99_us")],
        ["the worst slice before it", of(stopped, "worst_before_p99_us")],
        ["the worst slice in it and after", of(stopped, "worst_after_p99_us")],
        ["until three slices in a row are below twice the usual, ms", of(stopped, "recovered_after_ms")],
    ]
    moments = {"before": "after a second of load", "with": "with 10,000 idle connections", "after": "after them"}
    memory_rows = [
        [f"master (PSS), {moment}", of("memory of the master", f"{key}_kib", 1, scale=1 / 1024)]
        for key, moment in moments.items()
    ]
    for name in (UWSGI[0], OURS):
        uss = of("memory of a worker", "worker_uss_kib", 1, name, 1 / 1024)
        tree = of("memory of a worker", "tree_pss_kib", 1, name, 1 / 1024)
        memory_rows.append([f"worker with a Django project (USS), {results.labels.get(name, name)}", uss])
        memory_rows.append([f"the whole server with four of them (PSS), {results.labels.get(name, name)}", tree])
    idle_rows = [
        [results.labels.get(name, name), of("idling", "master", 1, name), of("idling", "workers", 1, name)]
        for name in (UWSGI[0], OURS)
    ]
    slow_rows = []
    for name in (OURS_HTTP, GTHREAD, GRANIAN):
        times = [of("slow clients", key, 0, name) for key in ("p50_us", "slow_p50_us", "p99_us", "slow_p99_us")]
        memory = [of("slow clients", key, 1, name, 1 / 1024) for key in ("pss_kib", "slow_pss_kib")]
        slow_rows.append([results.labels.get(name, name), *times, *memory])
    slow_head = ["server", "p50, µs", "with them", "p99, µs", "with them", "MiB (PSS)", "with them"]
    return (
        "## The master stopped for 50 ms\n\n"
        "Requests arrive at a fixed rate that push couldn't serve, whether or not earlier ones were answered (hello, "
        "16 workers); in the middle the master gets SIGSTOP, and SIGCONT 50 ms later.\n\n"
        f"{table(['', 'median (quartiles)'], pause_rows)}\n"
        f"## Memory, MiB\n\n{table(['', 'median (quartiles)'], memory_rows)}\n"
        "## Slow clients\n\n"
        "Eight clients over HTTP, two workers, alone and beside 200 who send 1 MB slowly and 200 who read 1 MB slowly. "
        f"{EN_DASH}: none of the eight got an answer within ten seconds.\n\n"
        f"{table(slow_head, slow_rows)}\n"
        "## Idling: wake-ups a second with 4 workers\n\n"
        f"{table(['server', 'master and helpers', 'all workers together'], idle_rows)}\n"
    )


# ---- goals ----------------------------------------------------------------------------------------


def verdict(reached: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "not measured"}[reached]


def goal_row(what: str, summary: Summary | None, limit: float, *, most: bool, digits: int = 2) -> list[str]:
    reached = None if summary is None else summary.median <= limit if most else summary.median >= limit
    return [what, f"{'at most' if most else 'at least'} {limit:g}", figure(summary, digits), verdict(reached)]


def loaded_goals(results: Results) -> Iterable[list[str]]:
    for workers in (*MATRIX_WORKERS, MANY_WORKERS):
        for clients in LOADED_CLIENTS:
            cell = Cell("direct", "hello", workers, clients)
            where = f"hello, {workers} workers, {clients} clients"
            cpu, throughput = results.to_uwsgi(cell, "server_cpu_us"), results.to_uwsgi(cell, "throughput")
            yield goal_row(f"{where}: CPU / uWSGI", cpu, CPU_GOALS[workers], most=True)
            yield goal_row(f"{where}: throughput / uWSGI", throughput, THROUGHPUT_GOALS[workers], most=False)
    for clients in LOADED_CLIENTS:
        ratio = results.ratio(Cell("direct", "hello", 2, clients), "server_cpu_us", OURS, FLOOR)
        yield goal_row(f"hello, 2 workers, {clients} clients: CPU / C loop", ratio, FLOOR_GOAL, most=True)


def nginx_goals(results: Results) -> Iterable[list[str]]:
    for workers in MATRIX_WORKERS:
        cell = Cell("nginx", "hello", workers, 32)
        cpu, throughput = results.to_uwsgi(cell, "server_cpu_us"), results.to_uwsgi(cell, "throughput")
        where = f"hello behind nginx, {workers} workers, 32 clients"
        yield goal_row(f"{where}: CPU / uWSGI", cpu, CPU_GOALS[workers], most=True)
        reached = throughput.high >= 1 if throughput else None
        yield [f"{where}: throughput / uWSGI", "spread not below 1", figure(throughput, 2), verdict(reached)]


def matrix_goals(results: Results) -> Iterable[list[str]]:
    for workers in MATRIX_WORKERS:
        ratio = results.to_uwsgi(Cell("direct", "hello", workers, 1), "p50_us")
        yield goal_row(f"hello, {workers} workers, 1 client: p50 / uWSGI", ratio, LONE_CLIENT_GOAL, most=True)
    cells = [cell for app in APPS for cell in results.cells("direct", app)]
    ratios = {cell: ratio for cell in cells if (ratio := results.to_uwsgi(cell, "throughput")) is not None}
    below = {cell for cell in cells if cell not in ratios or ratios[cell].high < LOWEST_THROUGHPUT}
    limit = f"spread not below {LOWEST_THROUGHPUT}"
    yield exceptions_row("every cell: throughput / uWSGI", limit, cells, ratios, below)
    cells = results.cells("direct", "mix")
    ratios = {cell: ratio for cell in cells if (ratio := results.to_uwsgi(cell, "p99_us")) is not None}
    above = {cell for cell in cells if cell not in ratios or ratios[cell].low > 1}
    yield exceptions_row("mix, every cell: p99 of the fast / uWSGI", "spread not above 1", cells, ratios, above)
    for cell in results.rated_cells():
        what = f"mix, {cell.workers} workers, {cell.rate:,} requests/s: p99 of the fast / uWSGI"
        ratio = results.to_uwsgi(cell, "p99_us")
        reached = ratio.low <= 1 if ratio else None
        yield [what, "spread not above 1", figure(ratio, 2), verdict(reached)]


def exceptions_row(
    what: str, limit: str, cells: list[Cell], ratios: dict[Cell, Summary], exceptions: set[Cell]
) -> list[str]:
    seen = f"{len(cells) - len(exceptions)} of {len(cells)} cells"
    texts = [f"{cell.text()}: {figure(ratios.get(cell), 2)}" for cell in sorted(exceptions)]
    return [what, limit, "; not: ".join([seen, *texts]), verdict(not exceptions if ratios else None)]


def special_goals(results: Results) -> Iterable[list[str]]:
    cell = Cell("direct", "cpu", 4, 32, threads=4)
    throughput = results.to_uwsgi(cell, "throughput")
    reached = throughput.high >= 1 if throughput else None
    what = "cpu, 4 workers with 4 threads, 32 clients: throughput / uWSGI"
    yield [what, "spread not below 1", figure(throughput, 2), verdict(reached)]
    recovered = results.special("stopped master", "recovered_after_ms")
    yield goal_row("master stopped for 50 ms: over after, ms", recovered, RECOVERY_GOAL_MS, most=True, digits=0)
    memory = results.special("memory of the master", "with_kib")
    what = "memory of the master with 10,000 connections, KiB"
    yield goal_row(what, memory, MASTER_GOAL_KIB, most=True, digits=0)
    ratio = results.special_ratio("memory of a worker", "worker_uss_kib")
    yield goal_row("memory of a worker with Django / uWSGI", ratio, 1, most=True)
    yield goal_row("idle master, wake-ups a second", results.special("idling", "master", OURS), 5, most=True, digits=1)
    workers = results.special("idling", "workers", OURS)
    yield goal_row("idle workers, wake-ups a second", workers, 0, most=True, digits=1)


def goals_section(results: Results) -> str:
    rows = [*loaded_goals(results), *nginx_goals(results), *matrix_goals(results), *special_goals(results)]
    return f"## Our goals\n\n{table(['', 'goal', 'seen', 'reached?'], rows)}\n"


# ---- circumstances --------------------------------------------------------------------------------


def machine_section(results: Results) -> str:
    document = results.document
    machine, versions = document["machine"], document["versions"]
    version_text = ", ".join(f"{name} {version}" for name, version in versions.items())
    commands = "\n".join(
        f"{row['label']}:\n    " + " ".join(filter(None, (row["command"], row["threaded"], row["unlogged"])))
        for row in document["contenders"]
    )
    return (
        "## Machine, versions, commands\n\n"
        f"{machine['what'].capitalize()} ({machine['processor']}, {machine['memory_gib']} GiB), "
        f"{machine['kernel']}. {version_text}. Mode `{document['mode']}`, "
        f"{document['started']} to {document['finished']}, random seed {document['seed']}.\n\n"
        "`--threads` only where there are several, `--disable-logging` where there is no request log:\n\n"
        f"```text\n{commands}\n```\n\n"
    )


def left_out_section(results: Results) -> str:
    records, failures = results.document["records"], results.document["failures"]
    refused = Counter(record["contender"] for record in records if record["refused"])
    loads = [record["other_load_cores"] for record in results.accepted]
    text = f"## What was left out\n\nOf {len(records)} measurements {sum(refused.values())} were refused"
    text += f" ({', '.join(f'{n} of {name}' for name, n in refused.items())})" if refused else ""
    text += f". During the accepted ones other processes took {statistics.median(loads):.2f} cores "
    text += f"(median; at most {max(loads):.2f}).\n"
    if results.document["keep_noisy"]:
        text += "\n**This run was told to keep measurements with other load: don't publish it.**\n"
    for record in records:
        if record["bad"]:
            text += f"\n- {record['contender']}, {record['way']}, {record['app']}, {record['workers']} workers, "
            text += f"{record['clients']} clients, round {record['round']}: {record['refused']}\n"
    rounds = results.document["plan"]["rounds"]
    for cell, names in sorted(results.planned.items()):
        for name in names:
            if (seen := len(results.rows.get(cell, {}).get(name, {}))) < rounds:
                text += f"\n- {cell.way}, {cell.text()}: {name} has {seen} of {rounds} rounds\n"
    for failure in failures:
        label = results.labels.get(failure["contender"], failure["contender"])
        text += f"\n- {failure['where']}: {label} failed in round {failure['round']} ({failure['kind']})"
        text += " and was left out there from then on.\n" if failure["contender"] in results.labels else ".\n"
    return text


# ---- charts and files -----------------------------------------------------------------------------


def chart_name(app: str) -> str:
    return f"results-{app}.svg"


def chart_rows(results: Results, app: str) -> list[chart.Row]:
    cells = results.cells("direct", app)
    names = [name for name in results.names(cells) if name != PUSH]
    rows = []
    quantities = [("Server CPU per request", "µs: lower is better", "server_cpu_us", 1.0)]
    quantities += [("Throughput", "1,000 requests/s: higher is better", "throughput", 1e-3)]
    if app == "mix":
        quantities += [("p99 of the fast requests", "ms: lower is better", "p99_us", 1e-3)]
    for clients in sorted({cell.clients for cell in cells} & set(LOADED_CLIENTS)):
        chosen = [cell for cell in cells if cell.clients == clients]
        for title, unit, quantity, scale in quantities:
            panels = [
                (f"{cell.workers} workers", [bar(results, cell, name, quantity, scale) for name in names])
                for cell in chosen
            ]
            rows.append(chart.Row(f"{title}, {clients} clients", unit, panels))
    return rows


def bar(results: Results, cell: Cell, name: str, quantity: str, scale: float) -> chart.Bar:
    summary = results.summary(cell, name, quantity)
    if summary is None:
        return chart.Bar(name, results.labels[name], None, 0, 0)
    return chart.Bar(name, results.labels[name], summary.median * scale, summary.low * scale, summary.high * scale)


def markdown(results: Results, raw_name: str) -> str:
    return (
        "# Benchmark results\n\n"
        f"Made by `python benchmarks/run.py` from `results/{raw_name}`: don't edit by hand.\n\n"
        + goals_section(results)
        + "".join(app_section(results, app) for app in APPS)
        + nginx_section(results)
        + http_section(results)
        + variants_section(results)
        + special_section(results)
        + f"## Method\n\n{METHOD.format(**results.document['plan'])}\n"
        + f"## How to read it\n\n{HOW_TO_READ}\n"
        + machine_section(results)
        + left_out_section(results)
    )


def write(raw_file: Path, out: Path) -> None:
    document = json.loads(raw_file.read_text())
    if document["format"] != FORMAT:
        raise NothingMeasuredError(f"{raw_file.name} has format {document['format']}, not {FORMAT}")
    results = Results(document)
    if not results.accepted:
        raise NothingMeasuredError(f"{raw_file.name} has no accepted measurement; nothing was written")
    (out / "results.md").write_text(markdown(results, raw_file.name))
    note = f"{results.document['machine']['what']}, unix socket; median and quartiles over the rounds"
    for app in APPS:
        if rows := chart_rows(results, app):
            (out / chart_name(app)).write_text(chart.draw(rows, note))
    print(f"{out / 'results.md'} and its charts written, from {raw_file.name}")
