"""Keeps the number of workers in step with the load: a coroutine that looks, asks scaling/policy.py, and carries out.

Once a second, and every hundredth of a second while requests wait that may make workers start. It sleeps otherwise.

Runs in: the master. The look at the workers' memory, which takes milliseconds, is on another thread.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from wsgimaster import events
from wsgimaster._front import Front
from wsgimaster.events import Event
from wsgimaster.lifecycle import Overseer, Stopping
from wsgimaster.machine import WorkersMemory
from wsgimaster.scaling import policy, room
from wsgimaster.scaling.facts import Decision, Sample
from wsgimaster.settings import Cheaper

ROUND = 1.0  # seconds between decisions, as between uWSGI's
HURRY = 0.01  # seconds between looks at the queue
KEPT = 100


@dataclass(frozen=True, slots=True)
class Change:
    """One decision that was carried out, for people who ask why."""

    when: float  # Unix time
    workers: int  # afterwards
    change: int
    why: str


class Scaler:
    """threads: cores per process; requests: that the workers have served, by pid; handle: takes events of the
    lifecycle; stop: ends the server, gracefully; say: logs.

    Theory of operation: a worker that is to end is chosen by the overseer (who could go), and condemned by the front,
    which does so only if none of its cores has a request or can get one any more. Between these two nothing else
    happens, so no request is lost. If none can be condemned, somebody got something to do in this moment: then it is
    as if the decision had not been made, and the next round decides anew.
    """

    def __init__(
        self,
        settings: Cheaper,
        threads: int,
        front: Front,
        overseer: Overseer,
        requests: Callable[[], dict[int, int]],
        handle: Callable[[Event], None],
        stop: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.threads, self.front, self.overseer = settings, threads, front, overseer
        self.requests, self.handle, self.stop, self.say = requests, handle, stop, say
        self.memory = policy.fresh(settings)
        self.workers_memory = WorkersMemory(bool(settings.rss_soft))
        self.held = room.NOTHING_HELD
        self.served = -1  # total of requests, at the last look at memory
        self.needed = settings.wanted  # whether anything is to be watched
        self.changes: deque[Change] = deque(maxlen=KEPT)
        self.somebody_waits = asyncio.Event()
        self.one_looks = asyncio.Lock()

    def reconfigure(self, settings: Cheaper) -> None:
        """A reload has brought other settings: what was learned with the old ones is forgotten."""
        if settings != self.settings:
            self.settings, self.memory, self.needed = settings, policy.fresh(settings), settings.wanted
            self.workers_memory.always = bool(settings.rss_soft)

    def ask(self, change: int) -> None:
        """Somebody wants so many workers more, or, negative, fewer; each time on top of what was asked for before."""
        self.ask_for(change + (self.overseer.wanted if self.memory.target is None else self.memory.target))

    def ask_for(self, workers: int) -> None:
        target = max(1, min(self.overseer.processes, workers))
        self.memory, self.needed = replace(self.memory, target=target), True

    async def room(self) -> int:
        """How many more workers memory has room for, beside those that serve. If none of these has served a request,
        what they hold by now has to do."""
        async with self.one_looks:
            held = await asyncio.to_thread(self.workers_memory.look, self.requests(), True)
        return room.room(self.settings, replace(held, known=True)).workers

    def requests_wait(self) -> None:
        """Somebody waits: look soon, if that may make a worker start."""
        if (self.settings.hurries and self.overseer.wanted < self.overseer.processes) or not self.overseer.wanted:
            self.somebody_waits.set()

    async def watch(self) -> None:
        """Until the workers are sent away."""
        next_round = time.monotonic() + ROUND
        while self.overseer.stopping is not Stopping.LEAVING:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.somebody_waits.wait(), max(0.0, next_round - time.monotonic()))
            if (now := time.monotonic()) >= next_round:
                next_round = next_round + ROUND if now < next_round + ROUND else now + ROUND
                await self._watch_memory()
                await self.decide(policy.decide)
                if self.front.waiting:  # whatever may have been missed
                    self.requests_wait()
                continue
            self.somebody_waits.clear()
            await self.decide(policy.hurry)
            if self.front.waiting:
                self.requests_wait()
            await asyncio.sleep(HURRY)

    async def _watch_memory(self) -> None:
        """Not while the server does nothing: that would cost more than all else it does then."""
        seen = self.look()
        changes = self.settings.rss_soft or seen.busy or seen.waiting or seen.served != self.served
        if self.settings.minimum and changes:
            self.served = seen.served
            await self._look_at_memory(thorough=False)

    async def _look_at_memory(self, thorough: bool) -> None:
        async with self.one_looks:
            self.held = await asyncio.to_thread(self.workers_memory.look, self.requests(), thorough)

    async def decide(self, decide: Callable[..., tuple[Decision, policy.Memory]]) -> None:
        """decide: policy.decide or policy.hurry, whose decision is carried out."""
        decision, memory = decide(self.settings, self.look(), self.held, self.memory, time.monotonic())
        if decision.change > 0:
            await self._look_at_memory(thorough=True)  # workers may have grown with the first requests of a burst
            decision, memory = decide(self.settings, self.look(), self.held, self.memory, time.monotonic())
        if self._carry_out(decision) or decision.change >= 0:
            self.memory = memory

    def look(self) -> Sample:
        """Everything as of now."""
        busy_seconds, core_seconds, busy = self.front.work()
        waiting, overdue, oldest = self.front.waits(self.settings.queue_wait)
        serving, coming = self.overseer.crew()
        return Sample(
            wanted=self.overseer.wanted,
            spawnable=self.overseer.processes - self.overseer.wanted,
            workers=serving + coming,
            coming=coming,
            busy=busy,
            free_cores=self.front.idle,
            threads=self.threads,
            busy_seconds=busy_seconds,
            core_seconds=core_seconds,
            served=self.front.served,
            waiting=waiting,
            overdue=overdue,
            oldest=oldest,
        )

    def _carry_out(self, decision: Decision) -> int:
        """Returns the change that came of it."""
        before = self.overseer.wanted
        if decision.change > 0:
            self.handle(events.MoreWanted(decision.change))
        for _ in range(-decision.change):
            self._end_one()
        if decision.all_end and self.overseer.wanted:  # one got a request in this moment: then the others are needed
            self.handle(events.MoreWanted(before - self.overseer.wanted))
        change = self.overseer.wanted - before
        if change:
            self.held = room.charged(self.held, change)
            self.say(f"cheaper: {before} -> {before + change} workers: {decision.why}")
            self.changes.append(Change(time.time(), before + change, change, decision.why))
        elif decision.why and self.settings.verbose:
            self.say(decision.why)
        for text in decision.also:
            self.say(text)
        if decision.all_end and not self.overseer.wanted and self.settings.die_on_idle:
            self.stop("die-on-idle")
        return change

    def _end_one(self) -> None:
        for slot in self.overseer.spare():
            if self.front.retire_if_idle(slot - 1):
                self.handle(events.Cheaped(slot))
                return
