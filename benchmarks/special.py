"""What load alone doesn't show: a master that stands still, memory, and how quietly a server idles.

Each measurement takes the Python that has wsgimaster, and returns rows for the raw file.
"""

import contextlib
import math
import os
import re
import resource
import signal
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import procfs
from clients import ClientError, run_load
from contenders import CONTENDERS, VENV, ServerError, Service, command_line
from plan import GRANIAN, GTHREAD, OURS, OURS_HTTP, PUSH, UWSGI, Group

PAUSE = 0.05  # seconds for which the master is stopped
OVER_PUSH = 1.2  # arrivals, as a multiple of what push can serve
OPEN_CLIENTS = 1024  # connections at once in the open loop; arrivals beyond wait, and their time counts
PAUSE_AT, OPEN_SECONDS = 2.0, 4.0
SLICE_MS = 100

HELD_CONNECTIONS = 10_000
IDLE_SECONDS = 5.0
CRAWLING = 200  # clients that send slowly, and as many that read slowly


@contextlib.contextmanager
def running(name: str, group: Group, python: str, environment: dict[str, str] | None = None) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="wsgimaster-bench-") as folder:
        path = Path(folder) / "server.sock"
        command = command_line(name, group, path, python)
        with Service(name, command, Path(folder) / "server.log", environment) as server:
            server.wait_until_ready(group.workers + CONTENDERS[name].helpers, lambda: is_listening(path))
            yield server, path


def is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def ask(path: Path, seconds: float, **options: Any) -> dict[str, Any]:
    """As run_load; raises ClientError if not all is well."""
    seen = run_load(path, seconds, **options)
    if seen["bad"]:
        raise ClientError(f"{seen['bad']} of {seen['requests']} requests weren't answered with a complete 200")
    return seen


# ---- the master stands still ----------------------------------------------------------------------


def stopped_master(python: str) -> list[dict[str, Any]]:
    """More requests a second than push could serve arrive, whether or not earlier ones were answered; in the middle the
    master is stopped for 50 ms. How long are waiting times longer than before?"""
    group = Group("direct", "hello", 16, (32,), ())
    with running(PUSH, group, python) as (_, path):
        ask(path, 0.5)
        capacity = ask(path, 2)["throughput"]
    with running(OURS, group, python) as (server, path):
        ask(path, 0.5)
        rate = round(OVER_PUSH * capacity)
        pause = threading.Timer(PAUSE_AT, stop_for, (server.process.pid, PAUSE))
        pause.start()
        try:
            seen = ask(path, OPEN_SECONDS, clients=OPEN_CLIENTS, rate=rate, series=SLICE_MS)
        finally:
            pause.cancel()
            pause.join()
        server.check_alive()
    p99 = {row["at_ms"]: row["p99_us"] for row in seen["series"] if row["requests"]}
    row = {"push_capacity": capacity, "rate": rate, "throughput": seen["throughput"]}
    return [row | recovery(p99) | {"p99_us_by_ms": p99}]


def stop_for(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def recovery(slices: dict[int, float]) -> dict[str, float]:
    """From p99 by slice of time: the usual and the worst slice before the pause, the worst after it, and how long after
    the pause's begin (milliseconds, in steps of a slice) three slices in a row are below twice the usual one.

    The first half second is left out: caches, and cores that have yet to wake up.
    """
    at = round(PAUSE_AT * 1000)
    before = [value for ms, value in slices.items() if 500 <= ms < at - SLICE_MS]
    after = {ms: value for ms, value in slices.items() if ms >= at - SLICE_MS}
    usual = statistics.median(before)
    return {
        "before_p99_us": usual,
        "worst_before_p99_us": max(before),
        "worst_after_p99_us": max(after.values()),
        "recovered_after_ms": next(
            (
                ms - at
                for ms in after
                if ms >= at and all(after.get(ms + i * SLICE_MS, math.inf) <= 2 * usual for i in range(3))
            ),
            round(1000 * (OPEN_SECONDS - PAUSE_AT)),
        ),
    }


# ---- memory ---------------------------------------------------------------------------------------


def memory_kib(pid: int, *names: str) -> int:
    """The sum of the named lines of smaps_rollup, which are in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE) if name in names)


def pss(pid: int) -> int:
    return memory_kib(pid, "Pss")


def uss(pid: int) -> int:
    return memory_kib(pid, "Private_Clean", "Private_Dirty")


def workers_of(name: str, master: int, count: int) -> list[int]:
    """Pids of the workers: ours say so in their title, uWSGI's are all children of its master."""
    found = [process.pid for process in procfs.tree_of(master) if process.pid != master]
    if CONTENDERS[name].helpers > 1:
        found = [pid for pid in found if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if len(found) != count:
        raise ServerError(f"{name}: {len(found)} workers found, not {count}")
    return found


def master_memory(python: str) -> list[dict[str, Any]]:
    """PSS of the master before, with, and after 10,000 connections at once that ask for nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with running(OURS, Group("direct", "hello", 4, (8,), ()), python) as (server, path):
            ask(path, 1, clients=8)
            row = {"before_kib": pss(server.process.pid)}
            with contextlib.ExitStack() as stack:
                for _ in range(HELD_CONNECTIONS):
                    held = stack.enter_context(socket.socket(socket.AF_UNIX))
                    # Not settimeout: with that, a full backlog is an error at once.
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
                    held.connect(str(path))
                time.sleep(0.5)
                row["with_kib"] = pss(server.process.pid)
            ask(path, 1, clients=8)
            row["after_kib"] = pss(server.process.pid)
        return [row]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def worker_memory(python: str) -> list[dict[str, Any]]:
    """USS of the workers of a Django project after 1,000 requests, and PSS of the whole tree."""
    group = Group("direct", "django_site", 4, (8,), ())
    packages = next(VENV.glob("lib/python*/site-packages"))
    rows = []
    for name in (UWSGI[0], OURS):
        with running(name, group, python, {"PYTHONPATH": str(packages)}) as (server, path):
            ask(path, 30, clients=8, count=1000, expect=None)
            master = server.process.pid
            mean = statistics.mean(map(uss, workers_of(name, master, group.workers)))
            tree = sum(pss(process.pid) for process in procfs.tree_of(master))
            rows.append({"contender": name, "worker_uss_kib": round(mean), "tree_pss_kib": tree})
    return rows


# ---- idling ---------------------------------------------------------------------------------------


def wakeups(pid: int) -> int:
    """Context switches of all threads since they began."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(count) for text in texts for count in re.findall(r"^\w+_ctxt_switches:\s+(\d+)", text, re.MULTILINE))


def idling(python: str) -> list[dict[str, Any]]:
    """Wake-ups a second, of all workers together and of all else, when nobody asks for anything."""
    rows = []
    group = Group("direct", "hello", 4, (8,), ())
    for name in (UWSGI[0], OURS):
        with running(name, group, python) as (server, path):
            ask(path, 1, clients=8)
            time.sleep(2)
            workers = workers_of(name, server.process.pid, group.workers)
            rest = [process.pid for process in procfs.tree_of(server.process.pid) if process.pid not in workers]
            before = sum(map(wakeups, rest)), sum(map(wakeups, workers))
            time.sleep(IDLE_SECONDS)
            after = sum(map(wakeups, rest)), sum(map(wakeups, workers))
            per_second = [round((b - a) / IDLE_SECONDS, 2) for a, b in zip(before, after, strict=True)]
            rows.append({"contender": name, "master": per_second[0], "workers": per_second[1]})
    return rows


# ---- slow clients ---------------------------------------------------------------------------------


def slow_clients(python: str) -> list[dict[str, Any]]:
    """How long eight others wait while 200 clients send 1 MB slowly and 200 read 1 MB slowly, beside how long they wait
    without those; and what the server's processes hold (PSS). `none`: nobody got an answer."""
    rows = []
    group = Group("http", "transfers", 2, (8,), ())
    for name in (OURS_HTTP, GTHREAD, GRANIAN):
        with running(name, group, python) as (server, path):
            usual = run_load(path, 3, http=True, clients=8)
            memory = sum(pss(process.pid) for process in procfs.tree_of(server.process.pid))
            with crawling(path):
                time.sleep(1)
                seen = run_load(path, 3, http=True, clients=8)
                with_them = sum(pss(process.pid) for process in procfs.tree_of(server.process.pid))
            row: dict[str, Any] = {"contender": name, "none": int(seen["ok"] == 0)}
            row |= {"p50_us": usual["p50_us"], "p99_us": usual["p99_us"], "pss_kib": memory}
            if seen["ok"]:
                row |= {"slow_p50_us": seen["p50_us"], "slow_p99_us": seen["p99_us"], "slow_pss_kib": with_them}
            rows.append(row)
    return rows


@contextlib.contextmanager
def crawling(path: Path) -> Iterator[None]:
    """Those 400, each of which moves 2 KB every 0.2 s."""
    upload = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    download = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(2 * CRAWLING):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
            client.sendall(download if number % 2 else upload)
            client.setblocking(False)
            clients.append(client)

        def crawl() -> None:
            while not stop.wait(0.2):
                for number, client in enumerate(clients):
                    with contextlib.suppress(OSError):
                        client.recv(2000) if number % 2 else client.send(b"x" * 2000)

        thread = threading.Thread(target=crawl)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


MEASUREMENTS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "stopped master": stopped_master,
    "memory of the master": master_memory,
    "memory of a worker": worker_memory,
    "idling": idling,
    "slow clients": slow_clients,
}
