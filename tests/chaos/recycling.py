"""Workers that are replaced after a number of requests, and what that costs their clients."""

from __future__ import annotations

import statistics
import threading
from dataclasses import dataclass

from bench import Bench, Case, Victim, now, scenario
from clients import Load, Reply, latencies_ms, tally
from support.wait import paced

WORKERS, CLIENTS = 3, 6
SAMPLING = 0.02  # seconds
PER_WORKER = 300  # requests


@dataclass
class Run:
    replies: list[Reply]
    throughput: float  # complete 200s per second
    fewest_loaded: int
    samples: int
    replaced: int


class Watch:
    """The smallest number of workers that had finished loading, looked at every 20 ms."""

    def __init__(self, server: Victim) -> None:
        self.server = server
        self.fewest, self.samples = WORKERS, 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stopping.wait(SAMPLING):
            # One look lists and then checks: a worker that comes and one that goes in between would both be missing.
            number = max(len(self.server.loaded()), len(self.server.loaded())) if self._below() else WORKERS
            self.fewest = min(self.fewest, number)
            self.samples += 1

    def _below(self) -> bool:
        return len(self.server.loaded()) < WORKERS

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()


def run(bench: Bench, lazy: bool, options: str, seconds: float) -> Run:
    with bench.start(options, processes=WORKERS, lazy=lazy, import_seconds=2) as server:
        before = server.wait_loaded(WORKERS)
        began = now()
        with Load(server.address, CLIENTS, "/work?ms=20") as load:
            with Watch(server) as watch:
                for _ in paced(range(1), seconds):
                    pass
                ended = now()
            replies = load.stop()
        served = sum(reply.served and reply.ended <= ended for reply in replies)
        workers = {begun.pid for begun in server.begun()} - set(before)
        return Run(replies, served / (ended - began), watch.fewest, watch.samples, len(workers))


@scenario(
    "recycling",
    bound="no request fails, throughput is at least 0.97 of that without max-requests, no answer takes longer than the "
    "median and 150 ms, and there are never fewer loaded workers than `processes`",
)
def recycling(bench: Bench) -> None:
    """Three workers that are replaced after 300 requests (`max-requests = 300`, `min-worker-lifetime = 1`), of an
    application whose import takes 2 s and whose requests take 20 ms, against the same without max-requests, in
    interleaved pairs of runs."""
    pairs = bench.scale(5 if bench.ours else 2, 1)
    seconds = bench.scale(25, 15)
    for lazy in (False, True):
        with bench.case(f"{'lazy-apps' if lazy else 'eager'}, {WORKERS} x 1, {CLIENTS} clients") as case:
            plain, recycled = [], []
            for number in range(pairs):
                kinds = [(plain, ""), (recycled, f"max-requests = {PER_WORKER}\nmin-worker-lifetime = 1")]
                for runs, options in kinds if number % 2 == 0 else reversed(kinds):
                    runs.append(run(bench, lazy, options, seconds))
            judge(case, plain, recycled)


def judge(case: Case, plain: list[Run], recycled: list[Run]) -> None:
    replies = [reply for run in recycled for reply in run.replies]
    failed = [reply for reply in replies if not reply.served]
    case.note("requests", len(replies))
    # A worker goes on while its successor loads (2 s, 100 requests), and may be in the middle of its life at the end.
    expected = sum(len(run.replies) // (PER_WORKER + 150) - WORKERS for run in recycled)
    case.at_least("workers replaced", sum(run.replaced for run in recycled), max(1, expected))
    case.equal("failures", len(failed), 0)
    if failed:
        case.note("they were", tally(failed))
    ratios = [ours.throughput / reference.throughput for ours, reference in zip(recycled, plain, strict=True)]
    case.at_least("throughput, ratio", statistics.median(ratios), 0.97)
    times = latencies_ms(replies)
    middle = statistics.median(times)
    case.note("median, ms", middle)
    case.at_most("worst over the median, ms", times[-1] - middle, 150)
    reference = latencies_ms(reply for run in plain for reply in run.replies)
    case.note("worst without max-requests, ms", reference[-1])
    case.equal("fewest loaded workers", min(run.fewest_loaded for run in recycled), WORKERS)
    case.at_least("samples", sum(run.samples for run in recycled), 100)
