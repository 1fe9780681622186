"""Plays requests through a pool of workers whose number scaling/policy.py decides: a discrete-event simulation.

A request takes as long as its load says, however many run beside it: right for applications that wait for something
(a database), too favourable for those that share too few CPUs. Everything else is the server's own: first come, first
served; the process with the fewest requests, among equals the lowest number; workers start and end as the overseer
does it; the same rounds and looks as in scaler.py.
"""

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from typing import NamedTuple

from wsgimaster.scaling import policy, room
from wsgimaster.scaling.facts import Decision, Sample
from wsgimaster.settings import Cheaper

ROUND = 1.0  # seconds: scaler.py
LOOK = 0.01


class Request(NamedTuple):
    at: float  # seconds from the beginning
    takes: float  # seconds in a core


class Change(NamedTuple):
    at: float
    workers: int  # afterwards
    change: int
    why: str


class Second(NamedTuple):
    """How it was at the end of a second; `worst_wait` and `busyness` of that second."""

    at: float
    workers: int
    busyness: float  # of 1
    waiting: int
    worst_wait: float  # seconds, of the requests that began


@dataclass
class Outcome:
    seconds: list[Second] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    waits: "array[float]" = field(default_factory=lambda: array("d"))  # seconds, of every request that has begun
    left: list[float] = field(default_factory=list)  # seconds that the others have waited at the end
    worker_seconds: float = 0.0


@dataclass(frozen=True)
class Pool:
    """threads: cores per worker; first: workers at the start; start_seconds: from the decision to a ready worker."""

    settings: Cheaper
    processes: int
    first: int
    threads: int = 1
    start_seconds: float = 0.05


@dataclass(slots=True, eq=False)
class Worker:
    number: int
    ready: bool = False
    running: int = 0
    leaving: bool = False


class Kind(IntEnum):
    """Of what happens; at the same moment in this order."""

    DONE = 1
    READY = 2
    ARRIVAL = 3
    LOOK = 4
    ROUND = 5


class Engine:
    """One run. Subclasses may measure in another way (benchmarks/scaling.py does, as uWSGI)."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.settings = pool, pool.settings
        self.memory = policy.fresh(pool.settings)
        self.outcome = Outcome()
        self.now = 0.0
        self.workers: dict[int, Worker] = {}  # that aren't leaving, by number
        self.queue: deque[Request] = deque()
        self.events: list[tuple[float, Kind, int, Worker | Request | None]] = []
        self.order = count()
        self.free: list[tuple[int, int, int, Worker]] = []  # (running, number, order, worker), some outdated
        self.ready = 0  # workers
        self.busy_cores = 0
        self.busy_seconds = self.core_seconds = 0.0
        self.served = 0
        self.looking = False
        self.worst_wait = 0.0
        self.before = (0.0, 0.0)  # busy and core seconds at the end of the last second
        for number in range(1, pool.first + 1):
            self.workers[number] = Worker(number)
            self._get_ready(self.workers[number])

    def run(self, requests: Iterable[Request], seconds: float, progress: Callable[[float], None]) -> Outcome:
        """requests: in order of time; seconds: when it ends; progress: is told the time, once a second."""
        coming = iter(requests)
        self._plan(ROUND, Kind.ROUND)
        if (request := next(coming, None)) is not None:
            self._plan(request.at, Kind.ARRIVAL, request)
        while self.events:
            at, kind, _, what = heapq.heappop(self.events)
            self._pass_time(min(at, seconds))
            if at > seconds:
                break
            if kind is Kind.ARRIVAL and isinstance(what, Request):
                self.queue.append(what)
                if (request := next(coming, None)) is not None:
                    self._plan(max(request.at, at), Kind.ARRIVAL, request)
            elif kind is Kind.DONE and isinstance(what, Worker):
                self._done(what)
            elif kind is Kind.READY and isinstance(what, Worker):
                self._get_ready(what)
            elif kind is Kind.LOOK:
                self._look()
            elif kind is Kind.ROUND:
                self._end_second()
                progress(at)
                self._carry_out(*policy.decide(self.settings, self.sample(), room.NOTHING_HELD, self.memory, at))
                self._plan(at + ROUND, Kind.ROUND)
            self._serve()
            if self.queue and not self.looking and self._may_hurry():
                self.looking = True
                self._plan(at, Kind.LOOK)
        self.outcome.left = [seconds - request.at for request in self.queue]
        return self.outcome

    def sample(self) -> Sample:
        """What the policy gets to see."""
        overdue = 0
        for request in self.queue:
            if self.now - request.at < self.settings.queue_wait:
                break
            overdue += 1
        workers = self.workers.values()
        return Sample(
            wanted=len(workers),
            spawnable=self.pool.processes - len(workers),
            workers=len(workers),
            coming=len(workers) - self.ready,
            busy=sum(worker.running > 0 for worker in workers),
            free_cores=self.ready * self.pool.threads - self.busy_cores,
            threads=self.pool.threads,
            busy_seconds=self.busy_seconds,
            core_seconds=self.core_seconds,
            served=self.served,
            waiting=len(self.queue),
            overdue=overdue,
            oldest=self.now - self.queue[0].at if self.queue else 0.0,
        )

    def victim(self) -> Worker | None:
        """The idle worker that ends."""
        idle = [worker for worker in self.workers.values() if worker.ready and not worker.running]
        return max(idle, key=lambda worker: worker.number, default=None)

    # ---- what happens ----

    def _plan(self, at: float, kind: Kind, what: Worker | Request | None = None) -> None:
        heapq.heappush(self.events, (at, kind, next(self.order), what))

    def _pass_time(self, at: float) -> None:
        passed, self.now = at - self.now, at
        self.busy_seconds += passed * self.busy_cores
        self.core_seconds += passed * self.ready * self.pool.threads
        self.outcome.worker_seconds += passed * len(self.workers)

    def _get_ready(self, worker: Worker) -> None:
        worker.ready = True
        self.ready += 1
        self._offer(worker)

    def _offer(self, worker: Worker) -> None:
        if len(self.free) > 4 * self.pool.processes * self.pool.threads:  # mostly outdated ones
            self.free = [one for one in self.free if not one[-1].leaving and one[-1].running == one[0]]
            heapq.heapify(self.free)
        if worker.ready and not worker.leaving and worker.running < self.pool.threads:
            heapq.heappush(self.free, (worker.running, worker.number, next(self.order), worker))

    def _serve(self) -> None:
        while self.queue and self.free:
            running, *_, worker = heapq.heappop(self.free)
            if worker.leaving or worker.running != running:
                continue
            request = self.queue.popleft()
            wait = self.now - request.at
            self.outcome.waits.append(wait)
            self.worst_wait = max(self.worst_wait, wait)
            worker.running += 1
            self.busy_cores += 1
            self._plan(self.now + request.takes, Kind.DONE, worker)
            self._offer(worker)

    def _done(self, worker: Worker) -> None:
        worker.running -= 1
        self.busy_cores -= 1
        self.served += 1
        self._offer(worker)

    def _look(self) -> None:
        self._carry_out(*policy.hurry(self.settings, self.sample(), room.NOTHING_HELD, self.memory, self.now))
        self.looking = bool(self.queue) and self._may_hurry()
        if self.looking:
            self._plan(self.now + LOOK, Kind.LOOK)

    def _may_hurry(self) -> bool:
        """As Scaler.requests_wait."""
        return (self.settings.hurries and len(self.workers) < self.pool.processes) or not self.workers

    def _carry_out(self, decision: Decision, memory: policy.Memory) -> None:
        self.memory = memory
        before = len(self.workers)
        for number in range(1, self.pool.processes + 1):
            if len(self.workers) >= before + decision.change:
                break
            if number not in self.workers:
                self.workers[number] = Worker(number)
                self._plan(self.now + self.pool.start_seconds, Kind.READY, self.workers[number])
        for _ in range(-decision.change):
            if (worker := self.victim()) is not None:
                worker.leaving = True
                self.ready -= 1
                del self.workers[worker.number]
        change = len(self.workers) - before
        if change:
            self.outcome.changes.append(Change(self.now, len(self.workers), change, decision.why))

    def _end_second(self) -> None:
        busy, possible = self.busy_seconds - self.before[0], self.core_seconds - self.before[1]
        self.before = (self.busy_seconds, self.core_seconds)
        busyness = min(1.0, busy / possible) if possible else 0.0
        self.outcome.seconds.append(Second(self.now, len(self.workers), busyness, len(self.queue), self.worst_wait))
        self.worst_wait = 0.0
