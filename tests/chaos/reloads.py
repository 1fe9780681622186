"""New code under load: what it costs the clients, and what becomes of them when it is broken."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench import Bench, Case, Missing, Victim, now, scenario, wait_until
from clients import Load, Reply, ask, latencies_ms, tally
from support import groups
from support.client import http
from support.harness import free_port
from support.wait import paced

CLIENTS, IMPORT, BEFORE, AFTER = 4, 2, 1.0, 1.0  # clients of 5 ms; seconds
FIFO = "master-fifo = fifo"
KINDS = {"graceful": "r", "workers": "w", "chain": "c"}


def write(server: Victim, letter: str) -> None:
    fd = os.open(server.directory / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, letter.encode())
    os.close(fd)


def run(bench: Bench, lazy: bool, workers: int, letter: str | None) -> tuple[list[Reply], list[Reply]]:
    """All replies, and those to requests that were sent after the reload. letter: the reload; None: the same seconds
    without one."""
    with bench.start(FIFO, processes=workers, lazy=lazy, import_seconds=IMPORT) as server:
        old = server.wait_loaded(workers)
        with Load(server.address, CLIENTS, "/work?ms=5") as load:
            for _ in paced(range(1), BEFORE):
                pass
            if letter is None:
                for _ in paced(range(1), IMPORT + AFTER):
                    pass
                return load.stop(), []
            write(server, letter)
            server.wait_loaded(workers, gone=old, timeout=60 + 10 * workers)
            done = now()
            for _ in paced(range(1), AFTER):
                pass
            replies = load.stop()
        by_old = {begun.id for begun in server.begun() if begun.pid in old}
    return replies, [reply for reply in replies if reply.sent > done and reply.id in by_old]


@scenario(
    "reload",
    bound="no request fails; the longest wait is that of a run without a reload and 50 ms, in the median of five "
    "pairs; afterwards no worker has the old code",
)
def reload(bench: Bench) -> None:
    """New code, whose import takes 2 s, under a closed loop of four clients whose requests take 5 ms: each kind of
    reload, with the import before and after the fork, one worker and eight. (uWSGI loads new code by `w` and `c` only
    after the fork, so those cases are left out for it.)"""
    pairs = bench.scale(5 if bench.ours else 1, 1)
    for kind, letter in KINDS.items():
        for lazy in (False, True):
            if not bench.ours and not lazy and kind != "graceful":
                continue
            for workers in [2] if bench.quick else [1, 8]:
                name = f"{kind}, {'lazy-apps' if lazy else 'eager'}, {workers} worker{'s' if workers > 1 else ''}"
                with bench.case(name) as case:
                    more, failed, requests, late = [], [], 0, 0
                    for _ in range(pairs):
                        plain, _ = run(bench, lazy, workers, None)
                        replies, by_old = run(bench, lazy, workers, letter)
                        more.append(latencies_ms(replies)[-1] - latencies_ms(plain)[-1])
                        failed += [reply for reply in replies if not reply.served]
                        requests, late = requests + len(replies), late + len(by_old)
                    case.note("requests", requests)
                    case.equal("failures", len(failed), 0)
                    if failed:
                        case.note("they were", tally(failed))
                    case.at_most("longest wait more than without, ms", statistics.median(more), 50)
                    case.equal("served by old code afterwards", late, 0)


# ---- code that is broken ----


def wait_for_reload(server: Victim) -> tuple[int, str]:
    """`reload --wait`: exit code and what it says."""
    command = [sys.executable, "-m", "wsgimaster", "reload", "--wait", "--pid", str(server.pid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


BREAK: dict[str, tuple[Callable[[Victim], None], str]] = {
    "an import that raises": (
        lambda server: append(server.directory / "victim.py", "\nraise RuntimeError('a broken deploy')\n"),
        "RuntimeError: a broken deploy",
    ),
    "an ini with a misspelt option (strict)": (
        lambda server: append(server.directory / "uwsgi.ini", "\nprcesses = 4\n"),
        "uwsgi.ini:",
    ),
    "an import that hangs": (
        lambda server: append(server.directory / "victim.py", "\ntime.sleep(3600)\n"),
        "was not ready within 3 s (reload-timeout)",
    ),
}


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@scenario(
    "broken-reload",
    bound="no request fails, the old workers serve on, `reload --wait` ends with 1 and the reason, and the next good "
    "reload succeeds",
)
def broken_reload(bench: Bench) -> None:
    """A graceful reload, under a closed loop of four clients, of code or a configuration that can't be loaded, then of
    one that can. (uWSGI gets SIGHUP, and ten seconds.)"""
    for name, (make, reason) in BREAK.items():
        options = "reload-timeout = 3" if bench.ours else ""
        with bench.case(name) as case, bench.start(options, processes=4) as server:
            old = server.wait_loaded(4)
            files = {path: path.read_text() for path in server.directory.glob("*.*") if path.suffix in (".py", ".ini")}
            make(server)
            with Load(server.address, CLIENTS, "/work?ms=5", timeout=10) as load:
                if bench.ours:
                    code, told = wait_for_reload(server)
                    case.equal("reload --wait", code, 1)
                    case.equal("it says why", reason in told, True)
                    case.equal("old workers serving", len(set(server.loaded()) & set(old)), 4)
                else:
                    server.signal(signal.SIGHUP)
                    for _ in paced(range(1), 10):
                        pass
                for path, text in files.items():
                    path.write_text(text)
                if bench.ours:
                    case.equal("the next reload --wait", wait_for_reload(server)[0], 0)
                else:
                    with suppress(ProcessLookupError):
                        server.signal(signal.SIGHUP)
                    with suppress(AssertionError):
                        server.wait_loaded(4, gone=old, timeout=10)
                replies = load.stop()
            judge(case, replies)


def judge(case: Case, replies: list[Reply]) -> None:
    failed = [reply for reply in replies if not reply.served]
    case.note("requests", len(replies))
    case.equal("failures", len(failed), 0)
    if failed:
        case.note("they were", tally(failed))


@scenario(
    "tight-reload",
    bound="no request fails, nobody is killed for memory, and the reload succeeds",
    only_wsgimaster="it never has old and new workers at a time",
)
def tight_reload(bench: Bench) -> None:
    """A reload in a control group whose limit is 1.2 times what the pool holds: eight workers that grow to 40 MiB in
    their first request."""
    with bench.case("8 workers of 40 MiB") as case:
        try:
            with groups.memory_group(4 << 30) as group:
                tight(bench, case, group)
        except groups.NoGroups as reason:
            raise Missing(str(reason)) from None


def tight(bench: Bench, case: Case, group: Path) -> None:
    command = bench.command
    bench.command = [*groups.entering(group), *command]
    try:
        with bench.start("", processes=8) as server:
            old = server.wait_loaded(8)
            while len({begun.pid for begun in server.begun()}) < 8:
                ask_all(server, 16)
            pool = groups.used(group)
            groups.limit(group, int(1.2 * pool))
            case.note("pool, MiB", pool >> 20)
            with Load(server.address, CLIENTS, "/grow?mb=40&ms=5") as load:
                code, told = wait_for_reload(server)
                server.wait_loaded(8, gone=old)
                for _ in paced(range(1), 2):
                    pass
                replies = load.stop()
            case.equal("reload --wait", code, 0)
            case.equal("killed for memory", groups.oom_kills(group), 0)
            if code:
                case.note("it said", told.splitlines()[0][:200])
            judge(case, replies)
    finally:
        bench.command = command


def ask_all(server: Victim, clients: int) -> None:
    """So many at once: every worker gets one."""
    threads = [
        threading.Thread(target=ask, args=(server.address, "/grow?mb=40&ms=50", f"first.{number}.{now()}"))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- the end of a server ----


@scenario(
    "drain",
    bound="no request of five seconds after SIGTERM fails; ready is 503 within 50 ms, live stays 200",
    only_wsgimaster="it has neither",
)
def drain(bench: Bench) -> None:
    """SIGTERM with `drain-delay = 5`, and four clients that go on connecting for five seconds."""
    port, seconds = free_port(), bench.scale(5, 1)
    options = f"drain-delay = {seconds}\nhealth = 127.0.0.1:{port}"
    with bench.case(f"drain-delay = {seconds}") as case, bench.start(options, processes=2) as server:
        health = ("127.0.0.1", port)
        with Load(server.address, CLIENTS, "/work?ms=5") as load:
            for _ in paced(range(1), BEFORE):
                pass
            case.equal("ready before", http(health, "/-/ready").status, 200)
            server.signal(signal.SIGTERM)
            began = now()
            wait_until(lambda: http(health, "/-/ready").status == 503, 5)
            case.at_most("not ready after, ms", 1000 * (now() - began), 50)
            live = [http(health, "/-/live").status for _ in paced(range(8 * seconds), 0.1)]
            replies = load.stop()
        case.equal("live", re.sub(r"\b(\d+)(, \1)+\b", r"\1", ", ".join(map(str, live))), "200")
        judge(case, replies)
        case.equal("exit code", server.wait_exit(), 0)
