"""Workers that come and go with the load, and what that costs their clients."""

from __future__ import annotations

from collections import Counter

from bench import Bench, now, scenario
from clients import Load, latencies_ms, tally
from support.wait import paced

CLIENTS, BUSY, QUIET = 24, 4, 6  # clients; seconds of each
OPTIONS = """
cheaper = 1
cheaper-step = 4
cheaper-algo = spare
cheaper-overload = 1
"""  # busyness learns from the first bursts to keep its workers: 24 of them ended in ten minutes


@scenario(
    "scaling",
    bound="no request fails or is executed twice, and workers do end: at least two for each burst",
)
def scaling(bench: Bench) -> None:
    """One to twelve workers (`cheaper`), and for ten minutes bursts of four seconds of 24 clients, then six seconds in
    which two clients go on: workers end while requests come."""
    seconds = bench.scale(600, 20)
    with bench.case(f"1 to 12 workers, {seconds} s") as case, bench.start(OPTIONS, processes=12, loaded=1) as server:
        replies, began, bursts = [], now(), 0
        with Load(server.address, 2, "/work?ms=5") as steady:
            while now() < began + seconds:
                with Load(server.address, CLIENTS, "/work?ms=20", first=1000 * (bursts + 1)) as burst:
                    for _ in paced(range(1), BUSY):
                        pass
                    replies += burst.stop()
                bursts += 1
                for _ in paced(range(1), QUIET):
                    pass
            replies += steady.stop()
        failed = [reply for reply in replies if not reply.served]
        executed = Counter(begun.id for begun in server.begun())
        case.note("requests", len(replies))
        case.note("p99, ms", latencies_ms(replies)[int(0.99 * len(replies))])
        case.equal("failures", len(failed), 0)
        if failed:
            case.note("they were", tally(failed))
        case.equal("executed twice", sum(count > 1 for count in executed.values()), 0)
        case.at_least("workers that ended", server.count_in_log(r"cheaped\.", 2 * bursts), 2 * bursts)
