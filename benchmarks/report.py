"""From a raw file to results.md and results.svg. Nothing is measured here, so a report can be made again."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chart
from contenders import REFERENCE

GOAL_WORKERS = (16, 64)
GOAL_AGAINST_UWSGI = 1.15  # at most this much of uWSGI's CPU per request
GOAL_AGAINST_GUNICORN = 3.0  # gunicorn's at least this many times ours

EN_DASH = "\u2013"

METHOD = """\
Every round starts each server afresh, in random order and one after the other, waits until all its workers
are up and silent, warms it up for {warmup:g} s and measures it for {seconds:g} s; there are {rounds} rounds.
All servers run the same application (a fixed answer of 1,024 bytes, nothing computed) with the same number of
single-threaded worker processes and no request log, and listen on a unix socket.
The client is a compiled closed loop of {clients} connections that speaks the uwsgi protocol, one request per
connection with 21 variables as a browser behind nginx produces them, and checks status and length of every
answer; behind nginx it is wrk with one thread and {wrk_connections} connections, and nginx has one worker.
*Server CPU per request* is the user and system time that the server's whole process tree spent in the window,
children that ended included, over the requests that it served in it; clients and nginx are not in it.
A measurement with a single answer other than a complete 200 is refused, and so is one during which other work
took more than {max_other_load:g} of a core, or the hypervisor more than 0.1.
"""

HOW_TO_READ = """\
- The numbers are medians over the rounds, with the quartiles in brackets. Where the brackets of two servers
  overlap, don't say that one is better.
- **Read the ratios, not the microseconds.** Each ratio is taken inside one round, between two servers
  measured shortly after each other, so a machine that is slower today cancels out. The microseconds of two
  different runs, let alone of two machines, can't be compared.
- Server CPU per request is the number that matters on a busy host, and the one that depends least on the
  client, which shares the cores with the server here. Throughput contains the client's own cost per request
  (and nginx's, where it is used) and so differs less between servers than they do.
- Latency is that of a closed loop: {clients} requests are always outstanding, so p50 is nearly the reverse of
  throughput and says little about a server at ordinary load. p99 over p50 shows how evenly it serves.
- The client's own CPU isn't the same for all, although the program is: the client's `connect` has to wake
  the processes that wait for connections. A server that has many of them woken for each connection makes its
  clients pay too, behind nginx the nginx.
- The application does nothing. One that takes 10 ms makes all of these servers alike in throughput; what is
  left then is what they do when something goes wrong, which this page doesn't measure.
- The bare C loop parses nothing and runs no Python: nobody gets there. It says how much of each number is the
  kernel's.
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


class Results:
    """The accepted measurements of a raw file, by way, number of workers and server."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.settings = document["settings"]
        self.labels = {row["name"]: row["label"] for row in document["contenders"]}
        self.accepted = [record for record in document["records"] if record["refused"] is None]

    def names(self) -> list[str]:
        return list(self.labels)

    def workers(self, way: str) -> list[int]:
        key = "workers" if way == "direct" else "nginx_workers"
        return sorted(self.settings[key])

    def by_round(self, way: str, workers: int, name: str, quantity: str) -> dict[int, float]:
        wanted = (way, workers, name)
        return {
            record["round"]: record[quantity]
            for record in self.accepted
            if (record["way"], record["workers"], record["contender"]) == wanted
        }

    def summary(self, way: str, workers: int, name: str, quantity: str) -> Summary | None:
        return summary_of(self.by_round(way, workers, name, quantity).values())

    def ratio(self, way: str, workers: int, name: str, reference: str = REFERENCE) -> Summary | None:
        """Of server CPU per request, round by round."""
        ours = self.by_round(way, workers, name, "server_cpu_us")
        theirs = self.by_round(way, workers, reference, "server_cpu_us")
        return summary_of(ours[number] / theirs[number] for number in ours if number in theirs)


def has_gaps(document: dict[str, Any]) -> bool:
    """Is there a server without any accepted measurement where there should be one?"""
    results = Results(document)
    return any(
        not results.by_round(way, workers, name, "server_cpu_us")
        for way in ("direct", "nginx")
        for workers in results.workers(way)
        for name in results.names()
    )


# ---- tables ---------------------------------------------------------------------------------------


def cell(summary: Summary | None, digits: int) -> str:
    return summary.text(digits) if summary else EN_DASH


def ratio_cell(results: Results, way: str, count: int, name: str) -> str:
    return "1" if name == REFERENCE else cell(results.ratio(way, count, name), 2)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def table_by_workers(results: Results, content: Callable[[str, int], str]) -> str:
    counts = results.workers("direct")
    rows = ([results.labels[name], *(content(name, count) for count in counts)] for name in results.names())
    return table(["server", *(f"{count} workers" for count in counts)], rows)


def latency_cell(results: Results, name: str, count: int) -> str:
    parts = (results.summary("direct", count, name, quantity) for quantity in ("p50_us", "p99_us"))
    return " / ".join(f"{part.median:,.0f}" if part else EN_DASH for part in parts)


def direct_section(results: Results) -> str:
    def of(quantity: str, digits: int) -> str:
        return table_by_workers(results, lambda n, w: cell(results.summary("direct", w, n, quantity), digits))

    ratios = table_by_workers(results, lambda name, count: ratio_cell(results, "direct", count, name))
    latencies = table_by_workers(results, lambda name, count: latency_cell(results, name, count))
    clients = results.settings["clients"]
    return (
        f"## Straight at the server's unix socket, {clients} clients\n\n"
        f"Server CPU per request, µs (lower is better):\n\n{of('server_cpu_us', 1)}\n"
        f"The same as a ratio to {results.labels.get(REFERENCE, REFERENCE)}, in the same round:\n\n{ratios}\n"
        f"Requests per second (client and server share the machine):\n\n{of('throughput', 0)}\n"
        f"Latency, µs, p50 / p99 (medians over the rounds):\n\n{latencies}\n"
        f"The client's own CPU per request, µs (the same program for all):\n\n{of('client_cpu_us', 1)}\n"
    )


def nginx_row(results: Results, name: str, count: int) -> list[str]:
    quantities = (("throughput", 0), ("server_cpu_us", 1), ("nginx_cpu_us", 1), ("p50_us", 0), ("p99_us", 0))
    cells = [cell(results.summary("nginx", count, name, quantity), digits) for quantity, digits in quantities]
    cells.insert(2, ratio_cell(results, "nginx", count, name))
    return [results.labels[name], *cells]


def nginx_section(results: Results) -> str:
    if not results.workers("nginx"):
        return ""
    head = ["server", "requests/s", "server CPU, µs", "ratio", "nginx CPU, µs", "p50, µs", "p99, µs"]
    parts = [f"## Behind nginx, {results.settings['wrk_connections']} connections\n"]
    for count in results.workers("nginx"):
        rows = (nginx_row(results, name, count) for name in results.names())
        parts.append(f"{count} workers:\n\n{table(head, rows)}")
    return "\n".join(parts) + "\n"


# ---- goals, circumstances -------------------------------------------------------------------------


def verdict(reached: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "not measured"}[reached]


def goal_row(results: Results, name: str, count: int) -> list[str]:
    against_uwsgi = results.ratio("direct", count, name)
    against_gunicorn = results.ratio("direct", count, "gunicorn", reference=name)
    cheap = against_uwsgi.median <= GOAL_AGAINST_UWSGI if against_uwsgi else None
    cheaper = against_gunicorn.median >= GOAL_AGAINST_GUNICORN if against_gunicorn else None
    parts = [cell(against_uwsgi, 2), verdict(cheap), cell(against_gunicorn, 1), verdict(cheaper)]
    return [f"{results.labels[name]}, {count} workers", *parts]


def goals_section(results: Results) -> str:
    ours = [name for name in results.names() if name.startswith("wsgimaster")]
    counts = [count for count in GOAL_WORKERS if count in results.workers("direct")]
    if not ours or not counts:
        return ""
    head = ["", "of uWSGI's CPU", f"at most {GOAL_AGAINST_UWSGI}?"]
    head += ["gunicorn's CPU over ours", f"at least {GOAL_AGAINST_GUNICORN:g}?"]
    rows = (goal_row(results, name, count) for name in ours for count in counts)
    return f"## Our goals\n\nServer CPU per request, uWSGI with thunder-lock:\n\n{table(head, rows)}\n"


def machine_section(results: Results) -> str:
    machine, versions = results.document["machine"], results.document["versions"]
    version_text = ", ".join(f"{name} {version}" for name, version in versions.items())
    commands = "\n".join(f"{row['label']}:\n    {row['command']}" for row in results.document["contenders"])
    return (
        "## Machine, versions, commands\n\n"
        f"{machine['what'].capitalize()} ({machine['processor']}, {machine['memory_gib']} GiB), "
        f"{machine['kernel']}. {version_text}. Mode `{results.document['mode']}`, "
        f"{results.document['started']} to {results.document['finished']}, "
        f"random seed {results.settings['seed']}.\n\n```text\n{commands}\n```\n\n"
    )


def left_out_section(results: Results) -> str:
    records, failures = results.document["records"], results.document["failures"]
    refused = Counter(record["contender"] for record in records if record["refused"])
    loads = [record["other_load_cores"] for record in results.accepted]
    loudest, usual = max(loads, default=0), statistics.median(loads or [0])
    text = f"## What was left out\n\nOf {len(records)} measurements {sum(refused.values())} were refused"
    text += f" ({', '.join(f'{n} of {name}' for name, n in refused.items())})" if refused else ""
    text += f". During the accepted ones other work took {usual:.2f} cores (median; at most {loudest:.2f}).\n"
    if results.settings["keep_noisy"]:
        text += "\n**This run was told to keep measurements with other load: don't publish it.**\n"
    for failure in failures:
        text += f"\n- {results.labels[failure['contender']]} failed with {failure['workers']} workers"
        text += f" in round {failure['round']} and was left out there from then on.\n"
    return text + "\n"


def markdown(results: Results, raw_name: str) -> str:
    settings = results.settings
    return (
        "# Benchmark results\n\n"
        f"Made by `python benchmarks/run.py` from `results/{raw_name}`: don't edit by hand.\n\n"
        "![Server CPU per request and throughput, by number of workers](results.svg)\n\n"
        + direct_section(results)
        + nginx_section(results)
        + goals_section(results)
        + f"## Method\n\n{METHOD.format(**settings)}\n"
        + f"## How to read it\n\n{HOW_TO_READ.format(**settings)}\n"
        + machine_section(results)
        + left_out_section(results).rstrip("\n")
        + "\n"
    )


def chart_panels(results: Results) -> list[chart.Row]:
    def bars(quantity: str, scale: float, count: int) -> list[chart.Bar]:
        found = ((name, results.summary("direct", count, name, quantity)) for name in results.names())
        return [
            chart.Bar(name, results.labels[name], s.median * scale, s.low * scale, s.high * scale)
            if s
            else chart.Bar(name, results.labels[name], None, 0, 0)
            for name, s in found
        ]

    def row(title: str, unit: str, quantity: str, scale: float) -> chart.Row:
        panels = [(f"{count} workers", bars(quantity, scale, count)) for count in results.workers("direct")]
        return chart.Row(title, unit, panels)

    return [
        row("Server CPU per request: lower is better", "µs of CPU per request", "server_cpu_us", 1),
        row("Throughput, client on the same cores: higher is better", "1,000 requests/s", "throughput", 1e-3),
    ]


def write(raw_file: Path, out: Path) -> None:
    results = Results(json.loads(raw_file.read_text()))
    if not results.accepted:
        raise NothingMeasuredError(f"{raw_file.name} has no accepted measurement; nothing was written")
    (out / "results.md").write_text(markdown(results, raw_file.name))
    note = f"{results.document['machine']['what']}, {results.settings['clients']} clients, unix socket; "
    note += "median and quartiles over the rounds"
    (out / "results.svg").write_text(chart.draw(chart_panels(results), note))
    print(f"{out / 'results.md'} and results.svg written, from {raw_file.name}")
