"""Workers that come and go with the load, and what that costs their clients."""

from __future__ import annotations

from collections import Counter

from bench import Bench, now, scenario
from clients import Load, latencies_ms, tally
from support.wait import paced

LEAST, STEADY = 3, 2  # workers; clients that never stop: there is always an idle worker for them
BUSY, PER_END, SETTLED = 4, 1.2, 61  # seconds: a burst; until the next worker ends; until no end counts as too early
OPTIONS = f"""
cheaper = {LEAST}
cheaper-step = 8
cheaper-algo = spare
cheaper-overload = 1
"""  # one worker ends each second, as long as two have nothing to do


@scenario("scaling", bound="no request fails or is executed twice, and after each burst all but six workers end")
def scaling(bench: Bench) -> None:
    """A burst of clients makes 3 workers 40 (`cheaper`); when it is over, one worker ends each second, while two
    clients go on. Then the next burst, for ten minutes."""
    seconds, processes = bench.scale(600, 20), bench.scale(40, 12)
    more = processes - LEAST
    quiet = more * PER_END + bench.scale(SETTLED, 0)
    with (
        bench.case(f"{LEAST} to {processes} workers, {seconds} s") as case,
        bench.start(OPTIONS, processes=processes, loaded=LEAST) as server,
    ):
        replies, began, bursts = [], now(), 0
        with Load(server.address, STEADY, "/work?ms=5") as steady:
            while now() < began + seconds:
                with Load(server.address, 2 * processes, "/work?ms=20", first=1000 * (bursts + 1)) as burst:
                    for _ in paced(range(1), BUSY):
                        pass
                    replies += burst.stop()
                bursts += 1
                for _ in paced(range(1), quiet):
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
        least = bursts * (more - 6)
        case.at_least("workers that ended", server.count_in_log(r"cheaped\.", least), least)
