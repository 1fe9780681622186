"""Processes that die: workers, the zygote, the master."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bench import Bench, Case, Victim, is_child, largest, now, scenario, smallest
from clients import Load, Reply, ask, latencies_ms, tally
from support.client import Address, Connection, together
from support.harness import directory, free_port, is_running, kill
from support.wait import paced, wait_until


def kill_worker(server: Victim, pid: int) -> None:
    assert is_child(pid, server.pid), f"{pid} isn't a worker"
    os.kill(pid, signal.SIGKILL)


# ---- workers, under load ----


@scenario(
    "killed-workers",
    bound="every client gets a whole answer; each failure is a 502 with an id, or, if the worker had pulled the "
    "request, the end of the connection, for a request that the killed worker was executing, at most `threads` for "
    "each kill; nothing is executed twice",
)
def killed_workers(bench: Bench) -> None:
    """kill -9 for workers chosen at random, while clients in a closed loop ask for requests of 10 ms."""
    modes = [("eager", 8, 1, 6), ("eager", 8, 4, 20), ("lazy-apps", 8, 1, 6), ("eager", 1, 1, 2)]
    for mode, processes, threads, clients in modes:
        name, lazy = f"{mode}, {processes} x {threads}, {clients} clients", mode == "lazy-apps"
        with bench.trial(name, processes=processes, threads=threads, lazy=lazy) as (case, server):
            # a lone worker that dies within a second of its start again and again is kept waiting, by design
            pause, youngest = (0.25, 0.0) if processes > 1 else (0.1, 1.2)
            kills, replies = kill_under_load(bench, server, clients, pause, youngest)
            judge_kills(case, server, kills, replies, threads, bench.pulls)


def kill_under_load(
    bench: Bench, server: Victim, clients: int, pause: float, youngest: float
) -> tuple[dict[int, float], list[Reply]]:
    """Kills, by pid with the moment before, and what the clients saw. pause, youngest: seconds."""
    dice, kills = random.Random(7), {}
    deadline = now() + bench.scale(60, 8)
    with Load(server.address, clients) as load:
        for _ in paced(range(100_000), pause):
            at = now()
            if at > deadline:
                break
            old_enough = [pid for pid, since in server.loaded().items() if at - since >= youngest]
            if old_enough:
                pid = dice.choice(old_enough)
                kills[pid] = now()
                kill_worker(server, pid)
        return kills, load.stop()


def judge_kills(
    case: Case, server: Victim, kills: dict[int, float], replies: list[Reply], threads: int, pulls: bool
) -> None:
    begun = server.begun()
    by_id = defaultdict(list)
    for entry in begun:
        by_id[entry.id].append(entry)

    def killers(reply: Reply) -> list[int]:
        """The kills that hit a process while it executed the request. 50 ms: a kill comes after its time is noted."""
        return [b.pid for b in by_id.get(reply.id, ()) if b.pid in kills and b.at - 0.05 <= kills[b.pid] <= reply.ended]

    failed = [reply for reply in replies if not reply.served]
    proper = [reply for reply in failed if reply.status == 502 and reply.whole]
    per_kill = Counter(pid for reply in failed for pid in killers(reply))
    strangers = [reply for reply in failed if not killers(reply)]
    case.note("requests", len(replies))
    case.at_least("kills", len(kills), 3)
    case.note("kills of idle workers, without a failure", len(kills) - len(per_kill))
    case.note("failures", tally(failed))
    ended = [reply for reply in failed if reply.closed] if pulls else []
    case.at_least("502, or ended", len(proper) + len(ended), 1)
    case.equal("other failures", len(failed) - len(proper) - len(ended), 0)
    case.equal("502 without an id", sum(reply.request_id is None for reply in proper), 0)
    case.at_most("failures for one kill", largest(per_kill.values()), threads)
    # Between the moment when a core takes a request and the application's first line lie some ten microseconds; between
    # the accept of one that it pulls and that, up to 200 more, if the client is slow to say what it wants.
    case.at_most(
        "failures that no killed worker was executing", len(strangers), 1 + len(kills) // (10 if pulls else 50)
    )
    case.equal("executed twice", len(begun) - len(by_id), 0)
    case.note("slowest 200, ms", largest(latencies_ms(reply for reply in replies if reply.served)))


# ---- workers that die by themselves ----

DEATHS = {
    "a segfault in C": ("/segfault", r"died, killed by signal 11 "),
    "abort()": ("/abort", r"died, killed by signal 6 "),
    "os._exit(3)": ("/leave", r"died"),
}


@scenario(
    "crashes",
    bound="the client gets a whole 502 with an id (after os._exit in a pulled request: the end of the connection), "
    "the log has the true signal, the next request is answered 200; beyond limit-as it is a 500 and the worker stays",
)
def crashes(bench: Bench) -> None:
    """A request that kills its worker, one after the other, each when both workers have lived for more than a second;
    and one that asks for more memory than `limit-as` allows."""
    for threads in (1, 4):
        for name, (path, pattern) in DEATHS.items():
            with (
                bench.case(f"{name}, eager, 2 x {threads}") as case,
                bench.start(processes=2, threads=threads) as server,
            ):
                crash(bench, case, server, path, pattern)
    with bench.trial("limit-as exceeded, eager, 2 x 1", "limit-as = 2048", processes=2) as (case, server):
        before = server.wait_loaded(2)
        replies = [ask(server.address, "/eat", f"r{number}") for number in range(5)]
        case.equal("500, whole", sum(reply.status == 500 and reply.whole for reply in replies), 5)
        case.note("answers", tally(replies))
        case.at_least("MemoryError in the log", server.count_in_log("^MemoryError", 5), 5)
        case.equal("200 afterwards", sum(ask(server.address, "/work", f"n{n}").served for n in range(20)), 20)
        case.equal("workers lost", len(set(before) - set(server.loaded())), 0)


def crash(bench: Bench, case: Case, server: Victim, path: str, pattern: str) -> None:
    replies, number = [], bench.scale(5, 2)
    for turn in range(number):
        # deaths within a second of the start are a crash loop, which has a pause of its own
        wait_until(lambda: len(old := server.loaded()) == 2 and now() - max(old.values()) > 1.1, 60)
        replies.append(ask(server.address, path, f"r{turn}"))
        dead = server.wait_begun(f"r{turn}").pid
        case.equal("next request", ask(server.address, "/work", f"n{turn}").outcome, "200")
        server.wait_loaded(2, gone=[dead])
        line = server.count_in_log(rf"DAMN ! worker \d+ \(pid: {dead}\) {pattern}", 1)
        case.equal("lines that tell of it", line, 1)
    proper = [reply for reply in replies if reply.status == 502 and reply.whole]
    ended = [reply for reply in replies if reply.closed] if bench.pulls and path == "/leave" else []
    case.equal("502, whole, or ended", len(proper) + len(ended), number)
    case.note("answers", tally(replies))
    case.equal("ids in the log", sum((reply.request_id or "no id") in server.log() for reply in proper), len(proper))
    lost = server.count_in_log("got no answer, its connection was closed: its worker died", len(ended))
    case.equal("ends in the log", lost, len(ended))
    begun = [begun.id for begun in server.begun()]
    case.equal("executed twice", len(begun) - len(set(begun)), 0)


# ---- the zygote ----


@scenario(
    "killed-zygote",
    bound="no request fails; a worker that is killed later is replaced",
    only_wsgimaster="it has no zygote",
)
def killed_zygote(bench: Bench) -> None:
    """kill -9 for the process that loads the application, under load; afterwards a worker is killed."""
    number = bench.scale(3, 1)
    for mode in ("eager", "lazy-apps"):
        with bench.trial(f"{mode}, 8 x 1, 6 clients", processes=8, lazy=mode == "lazy-apps") as (case, server):
            with Load(server.address, 6) as load:
                zygotes = {kill_zygote(server) for _ in range(number)}
                replies = load.stop()
            case.equal("zygotes killed", len(zygotes), number)
            case.equal(
                "deaths of zygotes in the log", server.count_in_log(r"zygote died \(killed by signal 9", number), number
            )
            case.at_least("requests", len(replies), 100)
            case.equal("failures", sum(not reply.served for reply in replies), 0)
            case.note("slowest, ms", largest(latencies_ms(replies)))
            kill_and_replace(case, server)


def kill_zygote(server: Victim) -> int:
    """Its pid; the next one has had a second of load when this returns."""
    old = server.zygote()
    assert old is not None, "no zygote found"
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: server.zygote() not in (None, old), 60, "another zygote")
    for _ in paced(range(1), 1):
        pass
    return old


def kill_and_replace(case: Case, server: Victim) -> None:
    """Kill an idle worker."""
    pid = min(server.wait_loaded(8))
    began = now()
    kill_worker(server, pid)
    server.wait_loaded(8, gone=[pid])
    case.note("worker replaced, ms", (now() - began) * 1000)
    replies = together(8, lambda n: ask(server.address, "/work?ms=100", f"after{n}"))
    case.equal("200 afterwards", sum(reply.served for reply in replies), 8)


# ---- the master ----

REQUEST_SECONDS = 10


@scenario(
    "killed-master",
    bound="the address refuses within 100 ms and goes on refusing, a new server on the same address answers while the "
    "old request runs, nothing of the old one is left when its request has ended",
)
def killed_master(bench: Bench) -> None:
    """kill -9 for the master while a worker runs a request of 10 s, and another server at once."""
    for transport in ("unix", "TCP"):
        for mode in ("eager", "lazy-apps"):
            if bench.quick and mode == "lazy-apps":
                continue
            with bench.case(f"{transport}, {mode}, 2 x 1") as case:
                kill_master(bench, case, transport, mode == "lazy-apps")


def kill_master(bench: Bench, case: Case, transport: str, lazy: bool) -> None:
    where = directory()
    sockets = ["socket = app.sock" if transport == "unix" else f"socket = 127.0.0.1:{free_port()}"]
    try:
        with (
            Victim(bench.command, processes=2, lazy=lazy, sockets=sockets, where=where) as first,
            ThreadPoolExecutor(1) as pool,
        ):
            workers = first.wait_loaded(2)
            try:
                master_gone(bench, case, first, pool, sockets, lazy, workers)
            finally:
                for process in first.processes():  # what the bound says there isn't
                    kill(process)
    finally:
        for path in sorted(where.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        where.rmdir()


def master_gone(
    bench: Bench,
    case: Case,
    first: Victim,
    pool: ThreadPoolExecutor,
    sockets: list[str],
    lazy: bool,
    workers: list[int],
) -> None:
    running = pool.submit(ask, first.address, f"/work?ms={REQUEST_SECONDS * 1000}", "old", 30)
    busy = first.wait_begun("old")
    first.signal(signal.SIGKILL)
    killed = now()
    first.wait_exit()
    seen = []  # when, and whether the address refused a connection
    for _ in paced(range(200), 0.002):
        seen.append((now() - killed, is_refused(first.address)))
        if now() - killed > 0.5:
            break
    refused = smallest(at for at, closed in seen if closed)
    case.at_most("refused after, ms", None if refused is None else refused * 1000, 100)
    taken_later = largest(at for at, closed in seen if not closed) or 0.0
    case.at_most("last taken after, ms", taken_later * 1000, 100)
    began = now()
    replaced = replies = None
    try:
        with Victim(
            bench.command, processes=2, lazy=lazy, sockets=sockets, where=first.directory, name="second"
        ) as second:
            second.wait_loaded(2)
            replies = together(20, lambda n: ask(second.address, "/work", f"new{n}", 5))
            replaced = (now() - began) * 1000
            by_old = sum(begun.id != "old" for begun in first.begun())
            still = not running.done()
    except AssertionError as error:
        case.note("the new server", str(error).splitlines()[-1][-100:])
        by_old, still = None, not running.done()
    case.note("new server answers after, ms", replaced)
    case.equal("200 by the new server", sum(r.served for r in replies) if replies and still else None, 20)
    case.equal("requests that the old one took", by_old, 0)
    old = running.result()
    case.equal("the old request", old.outcome if not old.served else "200", "200")
    with suppress(AssertionError):
        wait_until(lambda: not first.processes(), 2)
    case.equal("processes left", len(first.processes()), 0)
    case.note("request ran for, s", old.ended - busy.at)
    case.note("idle workers left after", sum(is_running(pid) for pid in workers))


def is_refused(address: Address) -> bool:
    try:
        Connection(address, timeout=0.1).close()
    except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
        return True
    except (TimeoutError, BlockingIOError):
        pass  # a full backlog: nobody accepts, but the address is taken
    return False
