"""Too much of something: requests, log lines, connections, descriptors."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import statistics
import threading
from collections.abc import Callable, Mapping

from bench import Bench, Case, Missing, Victim, largest, need_nginx, now, run_load, scenario
from clients import Load, Reply, ask, burst, connect_now, http_request, latencies_ms, tally
from support.client import Address, Connection, cgi, packet, together, uwsgi
from support.harness import Nginx, free_port
from support.wait import paced, wait_until

# ---- more requests than workers ----


@scenario(
    "overload",
    bound="no 502; whatever isn't 200 is a whole 503 with Retry-After, complete within 50 ms; an alarm line in the "
    "log; with the default `listen` every request is answered 200",
)
def overload(bench: Bench) -> None:
    """300 requests of 10 ms at once, on 2 workers with `listen = 100` behind nginx on a unix socket, in several waves;
    and 300 clients with two requests each and the default `listen`."""
    need_nginx()
    with (
        bench.trial("listen = 100, behind nginx, 300 at once", "listen = 100", processes=2) as (case, server),
        Nginx(server.address) as nginx,
    ):
        replies = waves(bench, nginx.address, lambda path: http_request(path))
        judge_overload(case, server, replies)
    name = "listen = 100, straight at the socket, 300 at once"
    with bench.trial(name, "listen = 100", processes=2) as (case, server):
        replies = waves(bench, server.address, lambda path: packet(cgi(path)))
        judge_overload(case, server, replies)
    with (
        bench.trial("default listen, behind nginx, 600 from 300 clients", processes=2) as (case, server),
        Nginx(server.address) as nginx,
    ):
        replies = []
        for wave in range(2):
            names = [f"{wave}.{number}" for number in range(300)]
            replies += burst(nginx.address, [(name, http_request(f"/work?ms=10&id={name}")) for name in names])
        case.equal("200", sum(reply.served for reply in replies), 600)
        case.note("answers", tally(replies))


def waves(bench: Bench, address: Address, request: Callable[[str], bytes]) -> list[Reply]:
    replies = []
    for wave in range(bench.scale(5, 2)):
        names = [f"{wave}.{number}" for number in range(300)]
        replies += burst(address, [(name, request(f"/work?ms=10&id={name}")) for name in names])
    return replies


def judge_overload(case: Case, server: Victim, replies: list[Reply]) -> None:
    refused = [reply for reply in replies if reply.status == 503]
    proper = [reply for reply in refused if reply.whole and reply.answer and reply.answer.header("Retry-After")]
    case.note("answers", tally(replies))
    case.equal("502", sum(reply.status == 502 for reply in replies), 0)
    served = sum(reply.served for reply in replies)
    case.equal("neither 200 nor 503", len(replies) - served - len(refused), 0)
    case.at_least("200", served, len(replies) / 3)
    case.at_least("503 with Retry-After", len(proper), 1)
    case.equal("503 without", len(refused) - len(proper), 0)
    case.equal("503 without an id", sum(reply.request_id is None for reply in refused), 0)
    case.at_most("slowest 503, ms", largest(latencies_ms(refused)), 50)
    case.at_least("alarm lines", server.count_in_log("(?i)listen queue.* full", 1), 1)
    begun = [begun.id for begun in server.begun()]
    case.equal("begun, but not answered 200", len(set(begun)) - served, 0)


# ---- a log that nobody reads ----


class Piped(Victim):
    """Its output goes into a pipe; nobody reads it before `read`."""

    def spawn(self, command: list[str], env: Mapping[str, str] | None = None, output: int | None = None) -> None:
        self.reading, writing = os.pipe()
        self.collected = bytearray()
        self.reader: threading.Thread | None = None
        try:
            super().spawn(command, env, writing)
        finally:
            os.close(writing)

    def log(self) -> str:
        return self.collected.decode("utf-8", "backslashreplace")

    def read(self) -> None:
        """Read it from now on."""
        if self.reader is None:
            self.reader = threading.Thread(target=self._collect)
            self.reader.start()

    def _collect(self) -> None:
        while data := os.read(self.reading, 1 << 20):
            self.collected += data

    def close(self) -> None:
        if not self.closed:
            self.read()
            super().close()
            self.reader.join()
            os.close(self.reading)


@contextlib.contextmanager
def piped(bench: Bench, *, processes: int):
    with Piped(bench.command, processes=processes) as server:
        server.wait_loaded(processes)
        yield server


@scenario(
    "unread-log",
    bound="every request is answered, none later than after 500 ms; lines and drops that are told add up to the number "
    "of requests; errors come out afterwards; lines of 64 KiB from 8 workers are whole",
)
def unread_log(bench: Bench) -> None:
    """A server whose log is a pipe that nobody reads, while 8 clients ask; then somebody reads. And eight workers that
    print lines of 64 KiB at the same time, into a pipe that is read."""
    total = bench.scale(100_000, 60_000)  # more than what the master keeps
    with bench.case(f"{total} requests, eager, 2 x 1") as case, piped(bench, processes=2) as server:
        seen = run_load(server.address, clients=8, seconds=120 if bench.ours else 15, count=total, timeout=5)
        case.equal("answered 200", seen["ok"], total)
        case.note("timed out", seen["timeouts"])
        case.at_most("slowest, ms", seen["max_us"] / 1000, 500)
        server.read()
        for number in range(10):
            ask(server.address, f"/complain?text=number{number}", f"c{number}", 10)
        complaints = server.count_in_log(r"^complaint number\d$", 10)
        case.equal("errors that come out afterwards", complaints, 10)
        text = server.log()
        dropped = sum(int(number) for number in re.findall(r"log lines were dropped .*\((\d+) of requests", text))
        lines = len(re.findall(r"^.*GET /articles/2026/hello.*$", text, re.MULTILINE))
        case.note("request lines that came out", lines)
        case.at_least("dropped lines told", dropped, 1)
        case.equal("lines and drops", lines + dropped, seen["requests"])
    with bench.case("lines of 64 KiB, eager, 8 x 1") as case, piped(bench, processes=8) as server:
        server.read()
        each = bench.scale(20, 5)
        together(8, lambda n: ask(server.address, f"/long_lines?lines={each}", f"l{n}"))
        whole = r"^<(\d+-\d{4}):([a-p])\2*:\1>$"
        case.equal("whole lines", server.count_in_log(whole, 8 * each, 10), 8 * each)
        lengths = {len(match[0]) for match in re.finditer(whole, server.log(), re.MULTILINE)}
        case.equal("their length", "/".join(map(str, sorted(lengths))) or None, "65535")
        case.equal("broken lines", len(re.findall(r"[a-p]{1000}", re.sub(whole, "", server.log(), flags=re.M))), 0)


# ---- connections that ask for nothing ----

IDLE, HALF = 10_000, 500


@scenario(
    "idle-connections",
    bound="with them, the throughput is at least 0.8 of that before, p50 at most 1.25 times, p99 at most 1.5 times "
    "(medians of interleaved runs), and every request is answered 200",
)
def idle_connections(bench: Bench) -> None:
    """10,000 connections that send nothing and 500 with half of a head, over TCP, beside 8 clients in a closed loop on
    a unix socket; measured without, with, without, with them."""
    raise_descriptor_limit(IDLE + HALF + 500)
    sockets = ["socket = app.sock", f"socket = 127.0.0.1:{free_port()}"]
    name = f"{IDLE} idle, {HALF} half heads, eager, 4 x 1"
    with bench.trial(name, "socket-timeout = 300", processes=4, sockets=sockets) as (case, server):
        compare(bench, case, server)


def compare(bench: Bench, case: Case, server: Victim) -> None:
    seconds = bench.scale(5, 2)
    without, beside = [], []

    def measure() -> dict:
        return run_load(server.address, clients=8, seconds=seconds, timeout=5)

    for _ in range(bench.scale(3, 1)):
        without.append(measure())
        with contextlib.ExitStack() as stack:
            held = hold_connections(server.addresses[1], stack)
            beside.append(measure())
            case.equal("connections held", len(held), IDLE + HALF)
            case.equal("closed by the server", sum(is_closed(connection) for connection in held), 0)
        # what they leave behind is over when a request is answered at once again
        if not bench.ours:
            with contextlib.suppress(AssertionError):
                wait_until(lambda: ask(server.address, "/work", "again", 5).served, 60)
    case.note("requests without, with", f"{sum(r['ok'] for r in without)}, {sum(r['ok'] for r in beside)}")
    case.equal("failures with them", sum(run["requests"] - run["ok"] for run in beside), 0)

    def ratio(name: str) -> float | None:
        if any(not run["ok"] for run in [*without, *beside]):
            return None
        return statistics.median(run[name] for run in beside) / statistics.median(run[name] for run in without)

    case.at_least("throughput, ratio", ratio("throughput"), 0.8)
    case.at_most("p50, ratio", ratio("p50_us"), 1.25)
    case.at_most("p99, ratio", ratio("p99_us"), 1.5)
    case.note("p99 without, ms", statistics.median(run["p99_us"] for run in without) / 1000)


def hold_connections(address: Address, stack: contextlib.ExitStack) -> list[Connection]:
    """Those that could be opened within 20 s, the last ones with half of a head."""
    half, held, deadline = packet(cgi("/"))[:40], [], now() + 20
    while len(held) < IDLE + HALF and now() < deadline:
        with contextlib.suppress(OSError):
            connection = connect_now(address, timeout=1)
            stack.callback(connection.close)
            if len(held) >= IDLE:
                connection.send(half)
            held.append(connection)
    return held


def is_closed(connection: Connection) -> bool:
    connection.socket.setblocking(False)
    try:
        return connection.socket.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def raise_descriptor_limit(wanted: int) -> None:
    """Of this process and of the servers that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    if hard < wanted and os.geteuid() != 0:
        raise Missing(f"{wanted} descriptors are needed, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))


# ---- no descriptors ----


@scenario("no-descriptors", bound="every request is answered 200 and executed once, and no worker dies")
def no_descriptors(bench: Bench) -> None:
    """An application that opens files until there is no descriptor left and gives them back after half a second,
    in the request or in a thread behind it, beside clients in a closed loop."""
    for where, processes, threads in (("request", 2, 1), ("request", 1, 4), ("thread", 2, 1), ("thread", 1, 4)):
        name = f"held by a {where}, eager, {processes} x {threads}"
        with bench.trial(name, "max-fd = 256", processes=processes, threads=threads) as (case, server):
            take_descriptors(bench, case, server, "/hog?ms=500" + ("&thread=1" if where == "thread" else ""))


def take_descriptors(bench: Bench, case: Case, server: Victim, path: str) -> None:
    # a first request opens the application's own notes in every process
    together(8, lambda n: ask(server.address, "/work?ms=100", f"warm{n}"))
    hogs = []
    with Load(server.address, 3, "/work?ms=5") as load:
        for number in paced(range(bench.scale(10, 3)), 0.6):  # longer than they are held
            hogs.append(uwsgi(server.address, f"{path}&turn={number}"))
        for _ in paced(range(1), 0.6):
            pass
        replies = load.stop()
    taken = [int(hog.body) for hog in hogs if hog.status == 200]
    # the second of two hogs in one process finds nothing left, and says so
    case.at_least("most descriptors taken at once", largest(taken), 100)
    case.equal("failures", sum(not reply.served for reply in replies) + len(hogs) - len(taken), 0)
    case.note("answers", tally(replies))
    case.note("slowest, ms", largest(latencies_ms(replies)))
    begun = [begun.id for begun in server.begun()]
    case.equal("executed twice", len(begun) - len(set(begun)), 0)
    case.equal("workers that died", len(re.findall("DAMN ! worker", server.log())), 0)
