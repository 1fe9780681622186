"""Requests that never end, and workers that are stopped."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import psutil
from bench import Bench, Case, Victim, continue_all, largest, need_root, now, scenario, smallest
from clients import Reply, ask, latencies_ms, tally
from support.client import together
from support.harness import readable_interpreter
from support.wait import wait_until

TIMEOUT = 2  # seconds: harakiri
GIVE_UP = 10  # seconds
EARLIEST, LATEST = 2000, 2250  # ms, from the client's connect to the end of its answer

KINDS = {
    "time.sleep": "stuck_sleep",
    "a Python loop": "stuck_loop",
    "a lock taken twice": "stuck_lock",
    "C code that holds the GIL": "stuck_native",
}


def judge(case: Case, server: Victim, replies: list[Reply], deaths: int, function: str = "", requests: int = 0) -> None:
    """The bounds of requests that were all stuck. deaths: how many workers had them; function: where; requests: how
    many there were, if not all of them are judged."""
    wanted = len(replies)
    killed = [reply for reply in replies if reply.status == 504 and reply.whole]
    case.equal("504, whole", len(killed), wanted)
    case.note("answers", tally(replies))
    times = latencies_ms(replies)
    if wanted:
        case.at_least("fastest, ms", smallest(times), EARLIEST)
        case.at_most("slowest, ms", largest(times), LATEST)
    ids = {reply.request_id for reply in killed if reply.request_id}
    case.equal("different ids", len(ids), wanted)
    harakiri = r"^\*\*\* HARAKIRI ON WORKER \d+ \(pid: \d+, try: 1, graceful: no\) \*\*\*"
    case.equal("HARAKIRI lines", server.count_in_log(harakiri, requests or wanted), requests or wanted)
    died = r"DAMN ! worker \d+ \(pid: \d+\) died, killed by signal 9 "
    case.equal("deaths by signal 9", server.count_in_log(died, deaths), deaths)
    log = server.log()  # now: the client has its 504 before the log has anything
    case.equal("ids in the log", sum(name in log for name in ids), wanted)
    if function:
        # uWSGI's request lines name the path, which is /function: only a traceback has "in" before it
        named = server.count_in_log(rf"\bin {function}\b", wanted)
        case.at_least("tracebacks with the function", named, wanted)


def get_stuck(
    bench: Bench,
    name: str,
    kind: str,
    total: int,
    *,
    processes: int,
    threads: int = 1,
    options: str = "",
    lazy: bool = False,
) -> None:
    """As many at once as there are processes; the next ones when all workers are back."""
    options = f"harakiri = {TIMEOUT}\n{options}"
    with bench.trial(name, options, processes=processes, threads=threads, lazy=lazy) as (case, server):
        replies: list[Reply] = []
        while len(replies) < total:
            first, number = len(replies), min(processes, total - len(replies))
            replies += together(
                number, lambda n, first=first: ask(server.address, f"/{kind}", f"r{first + n}", GIVE_UP)
            )
            try:
                server.wait_loaded(processes, gone={begun.pid for begun in server.begun()}, timeout=GIVE_UP)
            except AssertionError as error:
                case.note("given up", str(error))
                break
        case.equal("requests", len(replies), total)
        begun = server.begun()
        workers = len({b.pid for b in begun})  # with threads, a worker that is ready a little earlier may get two
        case.note("workers that had them", workers)
        case.equal("begun, each once", len(begun) if len({b.id for b in begun}) == len(begun) else None, total)
        judge(case, server, replies, workers, kind)


@scenario(
    "harakiri",
    bound="each request is answered 2.00 to 2.25 s after it was sent, with a whole 504 whose id is in the log; the log "
    "has the traceback with the function's name, and the death by signal 9",
)
def harakiri(bench: Bench) -> None:
    """Requests that never end, with `harakiri = 2`, in four ways, never more of them than there are workers."""
    many, few = bench.scale(100, 8), bench.scale(8, 1)
    for kind, function in KINDS.items():
        for lazy in (False, True):
            mode = "lazy-apps" if lazy else "eager"
            if lazy and bench.quick and function != "stuck_sleep":
                continue
            get_stuck(bench, f"{kind}, {mode}, 8 x 1", function, many, processes=8, lazy=lazy)
        get_stuck(bench, f"{kind}, eager, 1 x 1", function, few, processes=1)
        get_stuck(bench, f"{kind}, eager, 8 x 4", function, 8, processes=8, threads=4)
    neighbours(bench)


@scenario("harakiri-nobody", bound="as for harakiri")
def harakiri_nobody(bench: Bench) -> None:
    """The same where the server was started as root and gave it up (`uid = nobody`)."""
    need_root()
    options = "uid = nobody\ngid = nogroup"
    with readable_interpreter() as prefix:
        bench.command = [*prefix, *bench.command]
        for kind, function in KINDS.items():
            get_stuck(bench, f"{kind}, eager, 4 x 1", function, bench.scale(8, 4), processes=4, options=options)


def neighbours(bench: Bench) -> None:
    """One stuck request and three of a second, in the same worker."""
    with bench.trial("a stuck one and three of 1 s, eager, 1 x 4", f"harakiri = {TIMEOUT}", threads=4) as (
        case,
        server,
    ):
        paths = ["/stuck_sleep", *["/work?ms=1000"] * 3]
        replies = together(4, lambda n: ask(server.address, paths[n], f"r{n}", GIVE_UP))
        case.equal("workers that had them", len({begun.pid for begun in server.begun()}), 1)
        case.equal("the three: 200", sum(reply.served for reply in replies[1:]), 3)
        judge(case, server, replies[:1], 1, "stuck_sleep")
        case.equal("workers again", len(server.wait_loaded(1, gone=[server.wait_begun("r0").pid], timeout=GIVE_UP)), 1)


@scenario(
    "stopped-worker",
    bound="a request in a stopped worker is answered as for harakiri, or, if the worker had pulled it, its connection "
    "ends in the same time; while an idle one is stopped, every request is answered 200",
)
def stopped(bench: Bench) -> None:
    """SIGSTOP for a worker that executes a request, and for one that is idle."""
    for threads in (1, 4):
        options = f"harakiri = {TIMEOUT}"
        with bench.trial(f"in execution, eager, 2 x {threads}", options, processes=2, threads=threads) as (
            case,
            server,
        ):
            in_execution(bench, case, server)
    with bench.trial("idle, eager, 2 x 1", processes=2) as (case, server):
        idle(bench, case, server)


def in_execution(bench: Bench, case: Case, server: Victim) -> None:
    replies = []
    with ThreadPoolExecutor(1) as pool:
        for number in range(bench.scale(5, 1)):
            future = pool.submit(ask, server.address, "/work?ms=10000", f"r{number}", GIVE_UP)
            begun = server.wait_begun(f"r{number}")
            os.kill(begun.pid, signal.SIGSTOP)
            try:
                replies.append(future.result())
                server.wait_loaded(2, gone=[begun.pid], timeout=GIVE_UP)
            except AssertionError as error:
                case.note("given up", str(error))
                break
            finally:
                continue_all([begun.pid])
    case.equal("requests", len(replies), bench.scale(5, 1))
    ended = [reply for reply in replies if reply.closed] if bench.pulls else []
    times = latencies_ms(ended)
    case.equal("ended in time", sum(EARLIEST <= ms <= LATEST for ms in times), len(ended))
    lost = server.count_in_log("got no answer, its connection was closed: its worker died", len(ended))
    case.equal("ends in the log", lost, len(ended))
    answered = [reply for reply in replies if reply not in ended]
    judge(case, server, answered, len(replies), requests=len(replies))


def idle(bench: Bench, case: Case, server: Victim) -> None:
    """The one that served last, which both servers may choose again; each request's answer names its worker."""
    replies, numbers = [], count()
    for _ in range(bench.scale(5, 2)):
        name = f"before{next(numbers)}"
        ask(server.address, "/work", name)
        pid = server.wait_begun(name).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
            began = now()
            replies += [ask(server.address, "/work", f"r{next(numbers)}", 10) for _ in range(20)]
            replies += together(20, lambda _: ask(server.address, "/work", f"r{next(numbers)}", 10))
            by_stopped = [b for b in server.begun() if b.pid == pid and b.at > began]
        finally:
            continue_all([pid])
        case.equal("begun by the stopped one", len(by_stopped), 0)
    case.equal("200", sum(reply.served for reply in replies), len(replies))
    case.note("answers", tally(replies))
    case.note("slowest, ms", largest(latencies_ms(replies)))
    begun = [b.id for b in server.begun()]
    case.equal("executed twice", len(begun) - len(set(begun)), 0)
