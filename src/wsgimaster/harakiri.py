"""The monitor of requests that take too long: a coroutine of the master, and one task for each request that it ends.

Theory of operation

A request's deadline is `harakiri` seconds after a core took it, or the application's own if that is earlier; never is
it ended before. Then, step by step:

    soft       under `harakiri-graceful-timeout` (one thread): a signal makes the worker's main thread raise
               RequestTimeout, so that `finally` and error reporters run. A request that ends has got its 504, and the
               worker lives on. Otherwise, after the timeout:
    condemn    the worker gets no more requests, and its replacement is asked for
    answer     a signal to the stuck thread, whose handler in C (_rescue.pxd) answers 504 and writes the traceback
    wait       for the worker's other threads: they have their own deadlines, and the mercy
    dump       the tracebacks of the other threads, last, since that can crash the worker
    kill       SIGKILL. What is left gets 502; a request that the handler could not answer (the process was stopped, or
               sleeps uninterruptibly) gets its 504 from the master's own descriptor

The log says all of it in one piece, with uWSGI's markers, which alarms grep for.

Runs in: the master.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from wsgimaster import events
from wsgimaster._front import Front, Request
from wsgimaster.events import Event
from wsgimaster.log import LogWriter
from wsgimaster.processes import Child
from wsgimaster.settings import Harakiri

LOOK = 0.1  # seconds between looks for deadlines of the applications' own
HANDLER_TIME = 0.05  # seconds for a signal handler to answer and to write a traceback
DUMP_TIME = 2.0  # seconds for all tracebacks of one worker: its threads take turns
EVERYBODY = f"{0:016x}"  # the name of a traceback of all threads
STEP = 0.002  # seconds between looks whether it has
NEIGHBOURS_STEP = 0.02
DEATH_TIME = 0.2  # seconds that a killed process takes at most, unless it sleeps uninterruptibly


def until_next_look(due: float, kills: list[float], now: float) -> float:
    """Seconds. due: the next deadline, 0.0 for none; kills: when requests that had their exception are killed.

    A deadline may have passed since it was computed: then at once. A kill that is past has been dealt with.
    """
    waits = [kill_at - now for kill_at in kills if kill_at > now]
    if due:
        waits.append(max(0.0, due - now))
    return min([LOOK, *(wait + 0.001 for wait in waits)])  # uvloop counts whole milliseconds


class Monitor:
    """threads: cores per process; mercy: `worker-reload-mercy`, seconds; handle: takes events of the events.

    worker_in: the process in a slot and the worker's number, or None.
    """

    def __init__(
        self,
        settings: Harakiri,
        threads: int,
        mercy: float,
        front: Front,
        log: LogWriter,
        handle: Callable[[Event], None],
        worker_in: Callable[[int], tuple[Child, int] | None],
    ) -> None:
        self.settings, self.threads, self.mercy = settings, threads, mercy
        self.front, self.log = front, log
        self.handle, self.worker_in = handle, worker_in
        self.busy = asyncio.Event()  # set whenever requests may be running
        self._softened: dict[int, tuple[str, float]] = {}  # by core: the request's id, when it is killed
        self._spared: dict[int, str] = {}  # by core: a request below harakiri-queue-threshold that was told of
        self._ending: Counter[int] = Counter()  # by pid: requests whose traceback is being taken
        self._tasks: set[asyncio.Task[None]] = set()
        self._killed: set[int] = set()  # pids of workers that a task is about to kill

    @property
    def ending(self) -> bool:
        """Whether it is about to end a request."""
        now = time.monotonic()
        return bool(self._tasks) or any(kill_at > now for _, kill_at in self._softened.values())

    async def watch(self) -> None:
        """For ever. Wakes at the next deadline, and ten times a second while requests run, else never."""
        while True:
            await self.busy.wait()
            overdue, due = self.front.overdue(self.settings.limit)
            for request in overdue:
                self._begin(request)
            for core in self.front.silent(self.settings.limit):
                self._bury(core)
            if not self.front.in_progress and not self.front.questioned:
                self.busy.clear()
                continue
            kills = [kill_at for _, kill_at in self._softened.values()]
            await asyncio.sleep(until_next_look(due, kills, time.monotonic()))

    def _begin(self, request: Request) -> None:
        """The request is past its deadline: the next step for it."""
        core = request.core
        worker = self.worker_in(core // self.threads + 1)
        if worker is None:
            return
        if self.front.waiting < self.settings.queue_threshold:
            if self._spared.get(core) != request.id:
                self._spared[core] = request.id
                self.log.say(f"HARAKIRI: Skipping harakiri on worker {worker[1]}: {self._why_spared()}")
            return
        if not request.begun and self.front.idle and self.front.take_back(core):
            return  # another core has it now
        softened, kill_at = self._softened.get(core, ("", 0.0))
        soft = self.settings.graceful_timeout and worker[0].soft_signal and self.threads == 1
        if softened != request.id and soft and request.begun:
            self._soften(request, *worker)
            return
        if softened == request.id and time.monotonic() < kill_at:
            return
        try_ = 2 if softened == request.id else 1
        self._softened.pop(core, None)
        state = self._kernel_state(request, worker[0]) if self.settings.verbose else []  # before a signal changes it
        self.front.condemn(core, request.seq)
        poked = self._poke(core, worker[0], every_thread=False)  # the client first: others may be as late
        lines = self._head(request, *worker, try_, soft=False)
        lines[1:1] = state
        self._ending[worker[0].pid] += 1  # before the task's first step: another one may be about to kill this worker
        task = asyncio.get_running_loop().create_task(self._end(request, *worker, lines, poked))
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "in the end of a request (harakiri)", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def _bury(self, core: int) -> None:
        """The core's request went to another one, since it didn't begin it, and it has said nothing since."""
        slot = core // self.threads + 1
        if (worker := self.worker_in(slot)) is not None:
            self.log.say(
                f"HARAKIRI: worker {worker[1]} (pid: {worker[0].pid}) has not stirred for {self.settings.limit:g} s"
                f" (harakiri); was it stopped? Killing it"
            )
            self.handle(events.WorkerStuck(slot))
            worker[0].kill()

    def _why_spared(self) -> str:
        waiting, threshold = self.front.waiting, self.settings.queue_threshold
        return f"{waiting} requests are waiting, harakiri-queue-threshold is {threshold}"

    def _soften(self, request: Request, child: Child, number: int) -> None:
        timeout = self.settings.graceful_timeout
        self._softened[request.core] = (request.id, time.monotonic() + timeout)
        lines = [*self._head(request, child, number, 1, soft=True), self._what_it_did(request)]
        lines.append(f"HARAKIRI: next harakiri (kill) on worker {number} in {timeout:g} s")
        self.log.say("\n".join(lines))
        self.front.soften(request.core, request.seq)
        signal.pidfd_send_signal(child.pidfd, child.soft_signal)

    async def _end(self, request: Request, child: Child, number: int, lines: list[str], poked: int) -> None:
        """Its thread has been told: see to what it writes, and to its worker. lines: what the log says first."""
        late = time.monotonic()
        try:
            self.handle(events.WorkerStuck(request.core // self.threads + 1))
            traceback = await self._written(request.core, child, poked, request.id)
            lines.append(self._how_it_ended(request))
            if traceback:
                lines.append(f"HARAKIRI: traceback of worker {number} core {request.core % self.threads}:\n{traceback}")
            lines.append(f"HARAKIRI triggered by worker {number} core {request.core % self.threads} !!!")
            self.log.say("\n".join(lines))
        finally:
            self._ending[child.pid] -= 1
            self._ending += Counter()  # without the zeros
        if child.pid not in self._killed:
            self._killed.add(child.pid)
            try:
                await self._kill(request.core, child, number, late + self.mercy - DEATH_TIME)
            finally:
                self._killed.discard(child.pid)

    def _how_it_ended(self, request: Request) -> str:
        """Take over the connection, if the handler has answered, and say so."""
        now = self.front.describe(request.core)
        there = now is not None and now.id == request.id
        answered = self.front.answered(request.core) == request.seq
        self.front.release(request.core)
        if now is not None and there and now.complete:
            return f"{self._what_it_did(now)}; its answer was complete"
        if answered or there:
            return self._what_it_did(request) + ("; answered 504" if answered else "")
        return f"HARAKIRI: request {request.id} ended by itself at the last moment"

    async def _kill(self, core: int, child: Child, number: int, patience: float) -> None:
        """When the other threads are done, or at the end of the patience (monotonic seconds)."""
        slot = core // self.threads + 1
        cores = range((slot - 1) * self.threads, slot * self.threads)
        while self._ending[child.pid] or self.front.running_in(slot - 1):
            if not child.alive or time.monotonic() > patience:
                break
            await asyncio.sleep(NEIGHBOURS_STEP)
        if not child.alive or not any(self.front.is_stuck(core) for core in cores):
            return  # it has left, or is about to: all its cores were told to
        others = await self._dump_others(core, child)
        if others:
            self.log.say(f"HARAKIRI: traceback of all threads of worker {number} (pid: {child.pid}):\n{others}")
        if not child.alive:  # the dump can do that
            return
        child.kill()
        over = time.monotonic() + DEATH_TIME
        while child.alive and time.monotonic() < over:
            await asyncio.sleep(NEIGHBOURS_STEP)
        for core in cores if child.alive else ():  # it sleeps uninterruptibly, and never comes back to its own code
            if self.front.is_stuck(core) and self.front.answer_for(core, 504):
                self.log.say(f"worker {number} (pid: {child.pid}) doesn't die; its request was answered 504")

    def _poke(self, core: int, child: Child, every_thread: bool) -> int:
        """Call the thread's handler. Returns what to wait for, -1 for nothing."""
        before = self.front.dumps(core)
        return before if child.alive and self.front.poke(core, child.pid, every_thread) else -1

    async def _written(self, core: int, child: Child, poked: int, name: str) -> str:
        """What the handler writes for the request of that name; until it is done, or has been silent for too long."""
        began = heard = time.monotonic()
        while poked >= 0 and self.front.dumps(core) == poked and child.alive:
            now = time.monotonic()
            heard = now if child.collect_tracebacks() else heard
            if now - heard > HANDLER_TIME or now - began > DUMP_TIME:
                break
            await asyncio.sleep(STEP)
        return child.traceback_of(name)

    async def _dump_others(self, core: int, child: Child) -> str:
        try:
            threads = psutil.Process(child.pid).num_threads()
        except psutil.Error:
            return ""
        if threads == 1:
            return ""
        return await self._written(core, child, self._poke(core, child, every_thread=True), EVERYBODY)

    # ---- what the log says ----

    def _head(self, request: Request, child: Child, number: int, try_: int, soft: bool) -> list[str]:
        graceful = "yes" if soft else "no"
        lines = [f"*** HARAKIRI ON WORKER {number} (pid: {child.pid}, try: {try_}, graceful: {graceful}) ***"]
        lines.append(f"HARAKIRI !!! worker {number} status !!!")
        first = request.core - request.core % self.threads
        for core in range(first, first + self.threads):
            if (one := self.front.describe(core)) is not None:
                since = int(time.time() - (time.monotonic() - one.started))
                where = f"{one.address} - {one.method} {one.uri}"
                lines.append(f"HARAKIRI [core {core - first}] {where} since {since}")
        lines.append(f"HARAKIRI !!! end of worker {number} status !!!")
        return lines

    def _what_it_did(self, request: Request) -> str:
        ran = time.monotonic() - request.started
        where = f"{request.method} {request.uri} from {request.address or 'an unnamed client'}"
        how = "was running for" if request.begun else "was not even begun by its worker within"
        text = f"HARAKIRI: request {request.id} ({where}) {how} {ran:.3f} s (harakiri = {self.settings.limit:g})"
        return f"{text} after {request.waited:.3f} s in the queue" + (", its answer begun" if request.sent else "")

    def _kernel_state(self, request: Request, child: Child) -> list[str]:
        """Where the kernel says that it is; often not readable for us, then nothing is said."""
        lines = []
        for name in ("syscall", "wchan"):
            try:
                text = Path(f"/proc/{child.pid}/task/{self.front.thread_of(request.core)}/{name}").read_text().strip()
            except OSError:
                continue
            lines.append(f"HARAKIRI: -- {name}> {text}")
        return lines
