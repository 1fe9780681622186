"""The master's loop: what happens to processes becomes events, what lifecycle.py decides becomes deeds.

One request's way doesn't lead through here: see _front.pyx, which calls us only for what is rare.

Runs in: the master, on the loop's thread. Nothing here blocks.
"""

import asyncio
import contextlib
import errno
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wsgimaster import (
    __version__,
    autoreload,
    events,
    harakiri,
    lifecycle,
    machine,
    messages,
    processes,
    sockets,
    tls,
    upgrading,
    wakeups,
)
from wsgimaster._front import NO_ANSWER, Front, Request
from wsgimaster.commands import Commands
from wsgimaster.control import Control, ControlSocket
from wsgimaster.daemons import Daemons
from wsgimaster.errors import StartError
from wsgimaster.events import Effect, Event, Reload
from wsgimaster.exchange import Exchange
from wsgimaster.handover import State
from wsgimaster.health import Health
from wsgimaster.lifecycle import Overseer
from wsgimaster.log import LogWriter
from wsgimaster.messages import Kind, Message
from wsgimaster.processes import Child, Zygote
from wsgimaster.recycling import Figures
from wsgimaster.reloading import Reloader
from wsgimaster.scaler import Scaler
from wsgimaster.scaling import policy
from wsgimaster.scoreboard import Scoreboard
from wsgimaster.settings import Dispatch, Order, Settings, prefix_of
from wsgimaster.spooling import Spooler
from wsgimaster.systemd import Notifier
from wsgimaster.tls import Certificates, Terminators
from wsgimaster.triggers import Fifo, TouchFiles
from wsgimaster.upgrading import Origin, Upgrader

TICK = 0.1  # seconds between looks at timeouts and finished cores, while anything is open
HOUSEKEEPING = 1.0  # seconds between looks for orphans that fell to us
STOPPING_TICK = 0.05
# A request that its core hasn't begun after this many seconds is taken back, if another core is idle.
NOT_BEGUN = 1.0
RECYCLING_LOOK = 0.5  # seconds between looks at what the workers have served
LOG_MERCY = 2.0  # seconds for the last lines
# Seconds for answers that are whole, but not yet encrypted and taken, whatever mercy is left; and at a fast stop.
TLS_MERCY, TLS_HURRY = 5.0, 0.5
REPEAT = 60.0  # refusals of one kind are told once in this many seconds, with their number
MAX_KINDS = 200  # of refusals that are remembered
# Bytes of bodies and answers in the master's memory; but no more than one part in so many of what all of us may have.
MOST_BUFFERED = 256 << 20
MEMORY_PART = 8


async def keep_going(
    coroutine: Callable[[], Awaitable[None]],
    report: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None],
    pause: float = 1.0,
) -> None:
    """Run it for ever. A defect in it is reported, and after `pause` seconds it starts again: one request that
    can't be ended must not mean that none is, from then on."""
    while True:
        try:
            await coroutine()
        except Exception as error:
            report(asyncio.get_running_loop(), {"message": f"in {coroutine.__qualname__}", "exception": error})
        await asyncio.sleep(pause)


class Before(NamedTuple):
    """What the master before exec has left (upgrading.py)."""

    state: State
    clients_said: list[bytes]  # what each of its clients had sent
    signals: int  # a descriptor: those that have come since


class Again(NamedTuple):
    """What only start-up knows how to do again."""

    origin: Origin
    configuration: Callable[[], tuple[Settings, list[str]]]  # with warnings; takes a tenth of a second
    log_file: str | None  # its path
    open_log: Callable[[], None]  # once more, since somebody may have moved it
    write_pidfiles: Callable[[], None]
    retitle: Callable[[Settings], None]


class Prepared(NamedTuple):
    """What start-up has done. before: None at a start."""

    before: Before | None
    listeners: list[sockets.Listener]
    certificates: Certificates
    health: list[sockets.Listener]
    control: ControlSocket
    fifo: Fifo | None
    descriptors: tuple[int, int]  # (soft, hard) limit for the workers
    said: list[str]  # lines to log first
    notifier: Notifier
    again: Again


class Master:
    """Made inside the running loop."""

    def __init__(self, settings: Settings, prepared: Prepared) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings, self.prepared = settings, prepared
        self.listeners, self.notifier = prepared.listeners, prepared.notifier
        self.log = LogWriter(2)
        self.threads = settings.processes.threads
        cores = lifecycle.slots_for(settings.processes.processes) * self.threads
        before = prepared.before
        running = before.state.running if before is not None else None
        self.board = Scoreboard(cores, None if running is None else (running.board, running.doorbell))
        self.cpus = machine.cpus()
        self.reserve = processes.Reserve(self.threads)
        self.waiting_limit, warning = sockets.waiting_limit(settings.sockets.waiting_limit, sockets.largest_backlog())
        if warning:
            prepared.said.append(warning)
        self.front = Front(
            self.board.memory,
            cores,
            self.threads,
            self.board.doorbell,
            buffer_size=settings.sockets.buffer_size,
            timeout=settings.sockets.timeout,
            waiting_limit=self.waiting_limit,
            queue_timeout=settings.sockets.queue_timeout,
            queue_wait=settings.cheaper.queue_wait,
            even=settings.processes.dispatch_order is Order.EVEN,
            pull=settings.processes.dispatch is Dispatch.AUTO,
            most_waiting=0 if settings.processes.dispatch_order is Order.EVEN else max(1, round(self.cpus)),
            allow_from=[prefix_of(network) for network in settings.sockets.allow_from],
            forwarded_allow=[prefix_of(network) for network in settings.sockets.forwarded_allow],
            events=self,
            keepalive=settings.sockets.http_keepalive,
            http_buffer=settings.sockets.http_buffer,
            most_buffered=min(MOST_BUFFERED, machine.memory_limit() // MEMORY_PART),
            http_timeout=settings.sockets.http_timeout,
            proxied=settings.sockets.http_proxy_protocol,
            taken_over=running is not None,
        )
        self.spooler = Spooler(self.loop, self.front.spooled)
        self.spool = self.spooler.write
        self.overseer = Overseer(settings)
        self.harakiri = harakiri.Monitor(
            settings.harakiri,
            self.threads,
            settings.processes.reload_mercy,
            self.front,
            self.log,
            self.handle,
            self._worker_in,
        )
        self.scaler = Scaler(
            settings.cheaper,
            self.threads,
            self.front,
            self.overseer,
            self._requests_by_pid,
            self.handle,
            self._stop_gracefully,
            self.log.say,
        )
        self.reloader = Reloader(self._configuration, self.overseer, self.handle, self.log.say)
        self.upgrader = Upgrader(self, prepared.again.origin)
        self.zygotes: dict[int, Zygote] = {}  # by generation
        self.workers: dict[int, Child] = {}  # by slot
        self.pipes: dict[int, list[int]] = {}  # output and tracebacks of workers whose pid isn't known yet, by slot
        self.ready_cores: dict[int, int] = {}  # by slot: how many of its worker's cores have said READY
        self.door_closed_at = 0.0
        self.closing: set[int] = set()  # listeners whose door is closed and whose backlog isn't empty yet
        self.strangers: dict[int, int] = {}  # pid: status of children that nobody asked for
        self.timer: asyncio.TimerHandle | None = None
        self.refusals: dict[tuple[str, str], tuple[float, int]] = {}  # when told last, how many since
        self.commands = Commands(self)
        self.control: Control | None = None
        self.health: Health | None = None
        self.hurries = False  # it was told to stop at once
        self.draining = False  # SIGTERM has come, and drain-delay isn't over
        self.fifo = prepared.fifo
        self.daemons = Daemons(self.log.say, self.log.write, self._stop_gracefully, prepared.descriptors)
        self.terminators = Terminators(
            settings.sockets.tls_processes, settings.sockets.http_timeout, self.log.say, self.log.write
        )
        self.touch_files = TouchFiles(self._touch_actions(), before.state.frame.touched if before is not None else {})
        self.measuring: asyncio.Task[None] | None = None
        self.scales = True
        self.watching: dict[Callable[[], Awaitable[None]], asyncio.Task[None]] = {}
        self.exit_code: asyncio.Future[int] = self.loop.create_future()

    async def run(self) -> int:
        """From the first zygote to the last log line; returns the exit code."""
        self.commands.watch_signals()
        before = self.prepared.before
        if before is None:
            self._banner()
        self.loop.set_exception_handler(self._report_defect)
        sys.unraisablehook = self._report_unraisable
        for listener in self.listeners:
            self.front.add_listener(
                listener.socket.fileno(),
                listener.address.name,
                http=listener.http,
                local=listener.local,
                buffers=listener.address.buffers,
                tls=listener.address.tls is not None,
            )
        self.loop.add_reader(self.front.epoll_fd, self.front.on_ready)
        self.loop.call_later(HOUSEKEEPING, self._housekeep)
        self.keep_watching()
        if before is None and (said := self.prepared.control.listen()):
            self.log.say(said)
        self.control = Control(
            self.prepared.control.socket, self.commands.by_name, partial(self.report_defect, "in a command")
        )
        self.health = Health([one.socket for one in self.prepared.health], self.unready)
        if self.notifier.watchdog:
            self._feed_watchdog()
        if self.fifo is not None:
            self.loop.add_reader(self.fifo.fd, self._hear_fifo)
        if before is not None:
            upgrading.resume(self, before.state, before.clients_said)
        else:
            self.terminators.start(self.prepared.certificates)
        if before is None or before.state.running is None:
            self._perform(self.overseer.start())
        if before is not None:
            self.commands.finish_upgrade(before.state.running is not None, before.state.frame.reloads)
        self.daemons.attach(self.settings)
        if before is not None:
            upgrading.repeat(before.signals)
        try:
            code = await self.exit_code
            now = time.monotonic()
            mercy = max(self.door_closed_at + self.settings.processes.reload_mercy, now + TLS_MERCY)
            await self.terminators.end(now + TLS_HURRY if self.hurries else mercy)
            await self.daemons.end()
            return code
        finally:
            for task in self.watching.values():
                task.cancel()
            self._end()

    def keep_watching(self, scaling: bool | None = None) -> None:
        """Start the coroutines that these settings need, and end those that they don't. scaling: whether from now on
        workers may start or end because of the load; None: as it was."""
        self.scales = self.scales if scaling is None else scaling
        wanted: dict[Callable[[], Awaitable[None]], bool] = {
            self.harakiri.watch: True,
            self._look_at_workers: self.settings.recycling.wanted,
            self.scaler.watch: self.scaler.needed and self.scales,
            self._watch_touch_files: bool(self.touch_files.actions),
            self._watch_code: bool(self.settings.control.autoreload) and not autoreload.why_not(),
        }
        for coroutine, needed in wanted.items():
            task = self.watching.pop(coroutine, None)
            if needed:
                self.watching[coroutine] = task or self.loop.create_task(keep_going(coroutine, self._report_defect))
            elif task is not None:
                task.cancel()

    @property
    def exchanges(self) -> list[Exchange]:
        """Of the control socket, then of each health address."""
        assert self.control is not None
        assert self.health is not None
        return [self.control.exchange, *self.health.exchanges]

    def _report_defect(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception in a callback of ours: through our log, since asyncio's own logging would block."""
        error = context.get("exception")
        lines = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""
        self.log.say(f"*** a defect of wsgimaster, please report it: {context.get('message')}\n{lines.rstrip()}")

    def report_defect(self, where: str, error: Exception) -> None:
        self._report_defect(self.loop, {"message": where, "exception": error})

    def _report_unraisable(self, what: "sys.UnraisableHookArgs") -> None:
        """The same for an exception that nobody could take: Python itself would write to stderr, and wait for it."""
        context = {"message": f"{what.err_msg or 'ignored'} in {what.object!r:.100}", "exception": what.exc_value}
        self._report_defect(self.loop, context)

    def _banner(self) -> None:
        say = self.log.say
        say(f"*** Starting wsgimaster {__version__} on [{time.ctime()}] ***")
        for line in self.prepared.said:
            say(line)
        for number, listener in enumerate(self.listeners):
            say(listener.describe(number))
        say(f"{self.waiting_limit} requests may wait for a worker (listen)")
        for line in policy.describe(self.settings.cheaper, self.settings.first_workers, self.overseer.processes):
            say(line)
        if self.settings.control.autoreload and (why := autoreload.why_not()):
            say(why)
        mercy = self.settings.processes.reload_mercy
        say(f"your mercy for graceful operations on workers is {mercy:g} seconds")
        say(f"spawned uWSGI master process (pid: {os.getpid()})")

    def _end(self) -> None:
        """Whatever is left ends with us. Descriptors leave the loop before they are closed, or libuv aborts."""
        self.upgrader.give_up()
        for zygote in self.zygotes.values():
            self.loop.remove_reader(zygote.control.fileno())
        terminators = [one.child for one in self.terminators.members]
        for child in [*self.workers.values(), *(zygote.child for zygote in self.zygotes.values()), *terminators]:
            self.loop.remove_reader(child.pidfd)
            child.kill()
            child.reap()
            self._end_output(child)
        if self.fifo is not None:
            self.loop.remove_reader(self.fifo.fd)
        for one in (self.control, self.health):
            if one is not None:
                one.close()
        self.loop.remove_reader(self.front.epoll_fd)
        self.front.cut_relays()
        self.front.take_logs()
        self.log.say("goodbye to uWSGI.")
        self.log.close(LOG_MERCY)

    # ---- what others want to know ----

    def unready(self) -> str:
        """Why no requests should be sent to us; "" if they should."""
        if self.draining or self.overseer.stopping is not lifecycle.Stopping.NO:
            return "stopping"
        if self.commands.paused:
            return "paused"
        serving, _ = self.overseer.crew()
        resting = not self.overseer.wanted and self.overseer.zygotes.get(self.overseer.generation) is not None
        return "" if serving or resting else "no worker serves"  # resting: cheap, idle; a request brings some

    def _tell_if_ready(self) -> None:
        if not self.unready():
            self.notifier.ready()

    def _feed_watchdog(self) -> None:
        self.notifier.alive()
        self.loop.call_later(self.notifier.watchdog, self._feed_watchdog)

    # ---- stopping ----

    def drain(self, why: str) -> None:
        """A graceful stop that begins after `drain-delay`: until then clients that don't know yet are served, but we
        say that we aren't ready. Asked twice, it begins at once."""
        delay = self.settings.processes.drain_delay
        if not delay or self.draining or self.overseer.stopping is not lifecycle.Stopping.NO:
            self.stop(why, fast=self.overseer.stopping is not lifecycle.Stopping.NO)
            return
        self.draining = True
        self.front.announce_end()
        self.notifier.stopping()
        self.log.say(f"{why}not ready any more; stopping in {delay:g} s (drain-delay)")
        self.loop.call_later(delay, self._drained)

    def _drained(self) -> None:
        if self.overseer.stopping is lifecycle.Stopping.NO:
            self.stop("drain-delay is over: ", fast=False)

    def _stop_gracefully(self, why: str) -> None:
        if self.overseer.stopping is lifecycle.Stopping.NO:
            self.stop(f"{why}: ", fast=False)

    def stop(self, why: str, fast: bool) -> None:
        if not fast:
            self.commands.pause(False)  # who waits is served
        if fast:
            self.hurries = True
            self.terminators.until = min(self.terminators.until, time.monotonic() + TLS_HURRY)
        self.notifier.stopping()
        self.log.say(f"{why}stopping{' now' if fast else ' gracefully'}")
        self.handle(events.StopAsked(fast))
        if self.overseer.stopping is lifecycle.Stopping.FINISHING:
            mercy = self.settings.processes.reload_mercy
            self.log.say(f"waiting for {self._requests_left()} requests, at most {mercy:g} s")
            self._tick_while_stopping()

    def _tick_while_stopping(self) -> None:
        if self.overseer.stopping is lifecycle.Stopping.FINISHING:
            self._accept_rest()
            self.handle(events.Tick(self._work_left()))
            self.loop.call_later(STOPPING_TICK, self._tick_while_stopping)

    def _requests_left(self) -> int:
        front = self.front
        return front.in_progress + front.waiting + front.reading + front.draining

    def _work_left(self) -> int:
        return self._requests_left() + len(self.closing)

    # ---- events in, effects out ----

    def handle(self, event: Event) -> None:
        self._perform(self.overseer.handle(event, time.monotonic()))

    def _perform(self, effects: list[Effect]) -> None:
        if any(isinstance(effect, events.Fork | events.StartZygote) for effect in effects):
            self.reserve.release()  # nobody is accepted before it is filled again
        for effect in effects:
            self._do(effect)
        self._keep_reserve()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if (when := self.overseer.wake_at) is not None:
            # uvloop counts whole milliseconds; one more makes sure that the time has come
            delay = max(0.0, when - time.monotonic()) + 0.001
            self.timer = self.loop.call_later(delay, self._on_timer)

    def _keep_reserve(self) -> None:
        """Descriptors for the next process come before those for the next client."""
        self.front.hold(not self.reserve.fill())

    def _on_timer(self) -> None:
        self.timer = None
        self.handle(events.Tick(self._work_left()))

    def _do(self, effect: Effect) -> None:
        match effect:
            case events.StartZygote(generation, settings, kind):
                self._start_zygote(generation, settings, trial=kind is not None)
            case events.Fork(slot, number, generation, proof):
                self._fork(slot, number, self.zygotes[generation], proof)
            case events.Forget(slot):
                self._forget(slot)
            case events.Retire(slot):
                for core in self._cores(slot):
                    self.front.retire_core(core)
            case events.Kill(slot):
                if slot in self.workers:
                    self.workers[slot].kill()
            case events.KillZygote(generation):
                if generation in self.zygotes:
                    self.zygotes[generation].child.kill()
            case events.RetireZygote(generation):
                if generation in self.zygotes:
                    with contextlib.suppress(OSError):  # it has just died
                        self.zygotes[generation].control.shutdown(socket.SHUT_WR)
            case events.Switch(_, settings):
                self._switch(settings)
            case events.MeasureRoom():
                self.measuring = self.loop.create_task(self._measure_room())
            case events.ReloadEnded(generation, tickets, error):
                self.reloader.ended(generation, tickets, error)
            case events.CloseDoor():
                self._close_door()
            case events.RefuseWaiting():
                self.front.refuse_waiting()
            case events.Say(text):
                self.log.say(text)
            case events.Exit(code):
                if not self.exit_code.done():
                    self.exit_code.set_result(code)

    def _worker_in(self, slot: int) -> tuple[Child, int] | None:
        """The slot's process and its number."""
        child = self.workers.get(slot)
        return (child, self.overseer.slots[slot - 1].number) if child is not None else None

    def _requests_by_pid(self) -> dict[int, int]:
        """That the workers have served; without those that are leaving."""
        ready = [slot.place for slot in self.overseer.slots if slot.phase is lifecycle.Phase.READY]
        return {self.workers[place].pid: self.front.served_by(place - 1) for place in ready if place in self.workers}

    def _name(self, core: int) -> str:
        """ "worker 3", for the log."""
        return f"worker {self.overseer.slots[core // self.threads].number}"

    def _cores(self, slot: int) -> range:
        return range((slot - 1) * self.threads, slot * self.threads)

    # ---- reloads ----

    def _touch_actions(self) -> Iterator[tuple[str, Callable[[], object]]]:
        control = self.settings.control
        letters = {
            "r": control.touch_reload,
            "w": control.touch_workers,
            "c": control.touch_chain,
            "L": control.touch_rotate,
            "l": control.touch_reopen,
        }
        for letter, paths in letters.items():
            yield from ((path, partial(self.commands.obey, letter)) for path in paths)
        yield from ((path, partial(self.daemons.run_command, command)) for path, command in control.touch_exec)
        yield from ((path, partial(self.daemons.run_hook, hook)) for path, hook in control.touch_hooks)
        for daemon in self.settings.daemons.attached:
            yield from ((path, partial(self.daemons.restart, daemon)) for path in daemon.touch)

    async def _watch_touch_files(self) -> None:
        await self.touch_files.watch(self.log.say)

    async def _watch_code(self) -> None:
        def changed(path: str) -> None:
            self.commands.reload(Reload.GRACEFUL, f"{path} has changed")

        try:
            await autoreload.watch(autoreload.directories(self.settings.app, os.getcwd()), changed)
        except OSError as error:
            self.log.say(f"*** WARNING: py-autoreload has no effect: {error}")
            await asyncio.Event().wait()

    def _hear_fifo(self) -> None:
        assert self.fifo is not None
        for letter in self.fifo.read():
            if letter.isdigit() and letter.isascii():
                self._choose_fifo(int(letter))
            else:
                self.commands.obey(letter)

    def _choose_fifo(self, number: int) -> None:
        assert self.fifo is not None
        before = self.fifo.fd
        try:
            self.loop.remove_reader(before)
            if self.fifo.choose(number):
                self.log.say(f"active master fifo is now {self.fifo.path}")
        except StartError as error:
            self.log.say(str(error))
        self.loop.add_reader(self.fifo.fd, self._hear_fifo)

    def log_again(self) -> None:
        """Somebody has moved the log file: write to a new one."""
        try:
            self.prepared.again.open_log()
        except StartError as error:
            self.log.say(str(error))

    def rotate_log(self) -> None:
        """Move the log file away ourselves, with the time behind its name as uWSGI does, and write to a new one."""
        path = self.prepared.again.log_file
        if path is None:
            self.log.say("there is no log file to rotate (logto names one)")
            return
        moved = f"{path}.{time.time():.0f}"
        try:
            while Path(moved).exists():
                moved += "-"
            Path(path).rename(moved)
        except OSError as error:
            self.log.say(f"log file {path} can't be moved: {error.strerror}")
        self.log_again()

    def write_pidfiles(self) -> None:
        try:
            self.prepared.again.write_pidfiles()
        except StartError as error:
            self.log.say(str(error))

    def describe(self) -> list[str]:
        """What everybody does, for the log."""
        front = self.front
        lines = [
            f"*** pid {os.getpid()}, generation {self.overseer.generation}: {front.served} requests served,"
            f" {front.waiting} wait, {front.in_progress} run ***"
        ]
        for slot in sorted(self.overseer.slots, key=lambda one: one.number):
            if slot.phase is not lifecycle.Phase.EMPTY:
                lines.append(
                    f"worker {slot.number} (pid: {slot.pid}, generation {slot.generation}): {slot.phase.name.lower()},"
                    f" {front.served_by(slot.place - 1)} requests served, {front.running_in(slot.place - 1)} run"
                )
        return lines

    def _configuration(self) -> tuple[Settings, list[str]]:
        """As it is now, for a reload. On another thread."""
        settings, warnings = self.prepared.again.configuration()
        return settings, [*warnings, *tls.check(listener.address for listener in self.listeners)]

    def _switch(self, settings: Settings) -> None:
        """A generation has proved itself: its settings are ours from now on."""
        if settings is self.settings:
            return
        before, self.settings = self.settings, settings
        self.harakiri.settings, self.harakiri.mercy = settings.harakiri, settings.processes.reload_mercy
        self.scaler.reconfigure(settings.cheaper)
        self.touch_files = TouchFiles(self._touch_actions(), self.touch_files.seen)
        for coroutine in (self._watch_touch_files, self._watch_code):  # they begin anew, with what is to be watched now
            if (task := self.watching.pop(coroutine, None)) is not None:
                task.cancel()
        try:
            self.terminators.renew(listener.address for listener in self.listeners)
        except Exception as error:  # the workers' reload goes on
            self.report_defect("while certificates were read", error)
        try:
            self.daemons.reload(settings)
        except Exception as error:
            self.report_defect("while daemons were reloaded", error)
        self.keep_watching()
        self.prepared.again.retitle(settings)
        self.keep_enough_workers(before.cheaper.minimum)

    def keep_enough_workers(self, before: int) -> None:
        """With the new settings there may be too few. before: what `cheaper` was."""
        least, wanted = self.settings.cheaper.minimum, self.overseer.wanted
        if before and not least:
            least = self.overseer.processes
        if wanted and least > wanted:  # later: effects are under way
            self.loop.call_soon(self.handle, events.MoreWanted(least - wanted))

    async def _measure_room(self) -> None:
        """For workers beside those that serve: memory, and descriptors of ours."""
        held, limit = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        descriptors = (limit - held - self.reserve.size) // (2 * self.threads + 3)
        try:
            self.handle(events.RoomFound(min(await self.scaler.room(), descriptors)))
        except Exception as error:
            self._report_defect(self.loop, {"message": "while memory was measured", "exception": error})

    # ---- the zygotes ----

    def _start_zygote(self, generation: int, settings: Settings, trial: bool) -> None:
        environment = {**os.environ, **dict(settings.app.environment)}
        plan = processes.plan_for_zygote(settings, self.prepared.descriptors)
        plan["trial"] = trial
        try:
            child, control = processes.start_zygote(plan, environment, self.board.fd, self.board.doorbell)
        except (OSError, StartError) as error:
            self.log.say(f"the zygote can't be started: {error}")
            self.reloader.hear(generation, f"{error}\n".encode())
            self.loop.call_soon(self.handle, events.ZygoteGone(generation, 1))
            return
        child.generation = generation
        self.adopt_zygote(Zygote(generation, child, control, settings.app.lazy, processes.soft_signal(settings)))

    def adopt_zygote(self, zygote: Zygote) -> None:
        """From now on we hear of it."""
        self.zygotes[zygote.generation] = zygote
        self._watch_output(zygote.child)
        self.loop.add_reader(zygote.control.fileno(), self._hear_zygote, zygote)
        self.loop.add_reader(zygote.child.pidfd, self._zygote_gone, zygote)

    def _hear_zygote(self, zygote: Zygote) -> None:
        while True:
            try:
                data = zygote.control.recv(messages.SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.loop.remove_reader(zygote.control.fileno())
                return
            self._zygote_said(zygote, messages.decode(data))

    def _zygote_said(self, zygote: Zygote, message: Message) -> None:
        match message.kind:
            case Kind.LOADED:
                what = f"the application is loaded in {message.seconds:.1f} s"
                if message.error:
                    what = "each worker loads the application for itself" if zygote.lazy else "there is no application"
                self.log.say(f"{what} (zygote pid: {zygote.child.pid})")
                self.handle(events.ZygoteLoaded(zygote.generation))
                self._tell_if_ready()
            case Kind.FORKED:
                self._forked(message.slot, message.pid)
            case Kind.FORK_FAILED:
                self.handle(events.ForkFailed(message.slot, os.strerror(message.error)))
            case Kind.FORK:
                pass  # ours to say

    def _zygote_gone(self, zygote: Zygote) -> None:
        self.loop.remove_reader(zygote.child.pidfd)
        self._hear_zygote(zygote)  # what it said before it ended
        self.loop.remove_reader(zygote.control.fileno())
        zygote.control.close()
        status = zygote.child.reap()
        self._end_output(zygote.child)
        del self.zygotes[zygote.generation]
        self.handle(events.ZygoteGone(zygote.generation, status))

    # ---- workers ----

    def _fork(self, slot: int, number: int, zygote: Zygote, proof: bool) -> None:
        """Register the slot's cores, then ask the zygote for the process."""
        theirs: list[int] = []
        pipes: list[int] = []
        try:
            for core in self._cores(slot):
                ours, far = processes.make_channel()
                self.front.add_core(core, ours, far)
                theirs.append(far)
            self.ready_cores[slot] = 0
            ours_of_pipes = self.pipes[slot] = []
            for _ in ("output", "tracebacks"):
                end, pipe = processes.output_pipe()
                ours_of_pipes.append(end)
                pipes.append(pipe)
            asked = messages.encode(Message(Kind.FORK, slot, number, proof=proof))
            socket.send_fds(zygote.control, [asked], [*theirs, *pipes])
        except OSError as error:
            self.loop.call_soon(self.handle, events.ForkFailed(slot, error.strerror or str(error)))
        finally:
            for pipe in pipes:
                os.close(pipe)

    def _forked(self, slot: int, pid: int) -> None:
        pipes = self.pipes.pop(slot, None)
        if pipes is None:  # the slot was given up meanwhile
            os.kill(pid, signal.SIGKILL)
            return
        chance = random.random()
        try:
            self.reserve.release()
            pidfd = os.pidfd_open(pid)
            self._keep_reserve()
        except OSError as error:
            # It died so early that it was reaped as a stranger; or there is no descriptor to watch it with, and
            # a worker that nobody watches must not serve.
            for pipe in pipes:
                os.close(pipe)
            if not isinstance(error, ProcessLookupError):
                self.log.say(f"process {pid} can't be watched: {error.strerror}")
                os.kill(pid, signal.SIGKILL)  # still ours: nobody has reaped it
            self.handle(events.Forked(slot, pid, chance))
            self.handle(events.WorkerGone(slot, self.strangers.pop(pid, -signal.SIGKILL), 0))
            return
        output, tracebacks = pipes
        generation = self.overseer.slots[slot - 1].generation
        worker = Child(pid, pidfd, output, tracebacks, generation)
        if generation in self.zygotes:
            worker.soft_signal = self.zygotes[generation].soft_signal
        self.adopt_worker(slot, worker)
        self.handle(events.Forked(slot, pid, chance))

    def adopt_worker(self, slot: int, worker: Child) -> None:
        """From now on we hear of it."""
        self.workers[slot] = worker
        self._watch_output(worker)
        self.loop.add_reader(worker.pidfd, self._worker_gone, slot, worker)

    def _worker_gone(self, slot: int, worker: Child) -> None:
        self.loop.remove_reader(worker.pidfd)
        status = worker.reap()
        del self.workers[slot]
        try:
            self._end_output(worker)
            if text := worker.last_traceback():
                self.log.say(f"{self._name((slot - 1) * self.threads)} (pid: {worker.pid}) left a traceback:\n{text}")
            worker.close_tracebacks()
        finally:  # its requests must be answered, whatever it wrote
            self.handle(events.WorkerGone(slot, status, self.front.served_by(slot - 1)))

    def _forget(self, slot: int) -> None:
        for core in self._cores(slot):
            self.front.remove_core(core)
        self.ready_cores.pop(slot, None)
        for pipe in self.pipes.pop(slot, ()):
            os.close(pipe)

    # ---- recycling ----

    async def _look_at_workers(self) -> None:
        """Tell the lifecycle what every worker has served and what memory it holds."""
        memory_at = 0.0
        while True:
            await asyncio.sleep(RECYCLING_LOOK)
            settings = self.settings.recycling
            memory = settings.watches_memory and time.monotonic() >= memory_at
            if memory:
                memory_at = time.monotonic() + settings.memory_interval
            figures = {}
            for slot, child in list(self.workers.items()):
                rss, address_space = child.memory() if memory and child.alive else (0, 0)
                figures[slot] = Figures(self.front.served_by(slot - 1), rss, address_space)
                if memory:
                    await asyncio.sleep(0)  # 20 us each, and requests come first
            self.handle(events.Looked({slot: one for slot, one in figures.items() if slot in self.workers}))

    def _housekeep(self) -> None:
        """Reap orphans that fell to us (PID 1, subreaper): one by one, never a child that somebody waits for."""
        known = {child.pid for child in self.workers.values()} | {one.child.pid for one in self.zygotes.values()}
        known |= self.daemons.pids | self.terminators.pids
        known |= {self.upgrader.proof.pid} if self.upgrader.proof is not None else set()
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None or found.si_pid in known:
                break
            os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
            status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            self.strangers = {**dict(list(self.strangers.items())[-99:]), found.si_pid: status}
        self.notifier.say(f"generation {self.overseer.generation}, {self.overseer.crew()[0]} worker(s) serve")
        self.front.look_again()
        self.loop.call_later(HOUSEKEEPING, self._housekeep)

    # ---- output ----

    def _watch_output(self, child: Child) -> None:
        self.loop.add_reader(child.output, self._take_output, child)

    def _take_output(self, child: Child) -> None:
        if not child.take_output(self._writer_for(child)):
            self.loop.remove_reader(child.output)

    def _writer_for(self, child: Child) -> Callable[[bytes], None]:
        """What a generation that hasn't proved itself writes may be the reason why it can't."""
        if child.generation <= self.overseer.generation:
            return self.log.write

        def write(lines: bytes) -> None:
            self.reloader.hear(child.generation, lines)
            self.log.write(lines)

        return write

    def _end_output(self, child: Child) -> None:
        """What it wrote before it ended; a grandchild that still holds the pipe isn't waited for."""
        write = self._writer_for(child)
        child.take_output(write)
        if rest := child.lines.feed(b""):
            write(rest)
        self.loop.remove_reader(child.output)
        os.close(child.output)

    # ---- the door ----

    def _close_door(self) -> None:
        self.front.stop_pulling()
        for listener in self.listeners:
            try:
                sockets.close_door(listener)
            except OSError as error:  # it is closed below all the same; who connects in between may be cut
                self.log.say(f"{listener.address.name} can't be closed for new connections first: {error.strerror}")
        self.door_closed_at = time.monotonic()
        self.closing = set(range(len(self.listeners)))
        self._accept_rest()
        self.front.end_connections()

    def _accept_rest(self) -> None:
        """What was queued at the door; again and again if there is no descriptor for all of it."""
        grace = (
            self.overseer.stopping is lifecycle.Stopping.FINISHING
            and time.monotonic() < self.door_closed_at + sockets.DOOR_GRACE
        )
        for number in list(self.closing):
            if self.front.accept_rest(number, forget=not (grace and self.listeners[number].deferred)):
                self.closing.remove(number)
                if not self.listeners[number].inherited:
                    self.listeners[number].socket.close()

    # ---- what the front tells us (Events) ----

    def tick_wanted(self) -> None:
        """Something is open: look after it every TICK."""
        self.harakiri.busy.set()
        self.loop.call_later(TICK, self._tick)

    def requests_wait(self) -> None:
        self.scaler.requests_wait()

    is_grinder = staticmethod(wakeups.is_grinder)

    def decide_wakeups(self, use: float, grinders: int, overdue: int) -> wakeups.Decision:
        return wakeups.decide(self.cpus, use, grinders, overdue)

    def _tick(self) -> None:
        self._take_back_unbegun()
        self._keep_reserve()
        if self.front.in_progress or self.front.questioned:
            self.harakiri.busy.set()
        again = self.front.tick()
        self.front.take_logs()
        if again:
            self.loop.call_later(TICK, self._tick)

    def _take_back_unbegun(self) -> None:
        for core in self.front.not_begun(NOT_BEGUN):
            if self.front.idle and self.front.take_back(core):
                self.log.say(
                    f"{self._name(core)} core {core % self.threads} had not begun its request after {NOT_BEGUN:g} s "
                    f"(is it stopped?); another core has it now"
                )

    def worker_alive(self, core: int) -> None:
        self.handle(events.WorkerAlive(core // self.threads + 1))

    def core_ready(self, core: int) -> None:
        slot = core // self.threads + 1
        self.ready_cores[slot] = self.ready_cores.get(slot, 0) + 1
        if self.ready_cores[slot] == self.threads:
            self.handle(events.WorkerReady(slot))
            self._tell_if_ready()

    def request_lines(self, lines: bytes) -> None:
        self.log.write(lines, requests=True)

    def lines_dropped(self, core: int, count: int) -> None:
        self.log.say(f"*** {count} request lines of {self._name(core)} were dropped: the master was not running")

    def request_lost(self, request: Request, status: int) -> None:
        what = f"request {request.id} ({request.method} {request.uri} from {request.address or 'an unnamed client'})"
        how = f"was answered {status}" if status else "was cut, its answer begun"
        if status == NO_ANSWER:
            how = "got no answer, its connection was closed"
        if request.complete:
            how = "was answered, but not over"
        self.log.say(f"{self._name(request.core)} core {request.core % self.threads}: {what} {how}: its worker died")

    def queue_full(self, listener: int, waiting: int, oldest: float) -> None:
        name, fd = self.listeners[listener].address.name, self.listeners[listener].socket.fileno()
        self.log.say(
            f'*** uWSGI listen queue of socket "{name}" (fd: {fd}) full !!! ({waiting}/{self.waiting_limit}) ***'
            f" the oldest request has waited {oldest:.3f} s; more than these get 503"
        )

    def queue_has_room(self, turned_away: int, seconds: float) -> None:
        self.log.say(f"the listen queue has room again: {turned_away} requests got 503 within {seconds:.3f} s")

    def request_refused(self, listener: str, kind: str, status: int, why: str) -> None:
        answered = f"answered {status}" if status else "closed"
        self._complain(listener, kind, f"{listener}: a request was {answered}: {why}")

    def _complain(self, about: str, kind: str, text: str) -> None:
        """Told at once, then at most once a minute for each kind, with how many there were."""
        now = time.monotonic()
        key = (about, kind)
        told_at, since = self.refusals.get(key, (now - REPEAT, 0))
        if now - told_at < REPEAT:
            self.refusals[key] = (told_at, since + 1)
            return
        if len(self.refusals) > MAX_KINDS:
            self.refusals.clear()
        self.refusals[key] = (now, 0)
        self.log.say(text + (f" ({since} more of this kind since the last time)" if since else ""))

    def accepting_paused(self, why: str) -> None:
        self._complain("accept", "paused", f"*** no connections are accepted for a moment: {why} (max-fd sets a limit)")

    def end_tls(self, listener: int, client: int) -> int:
        """A client of a TLS listener: the descriptor that takes its place, or -1."""
        for last in (False, True):
            try:
                return self.terminators.give(listener, client)
            except OSError as error:
                if last or error.errno not in (errno.EMFILE, errno.ENFILE):
                    self._complain("accept", "tls", f"*** a TLS client was closed: {error.strerror}")
                    break
            self.reserve.release()  # he is there already, so he comes before a worker; nobody else is accepted then
            self.loop.call_soon(self._keep_reserve)
        os.close(client)
        return -1

    def push_refused(self, core: int, why: str) -> None:
        worker = self._name(core)
        self._complain(worker, "push", f"{worker} could not be given a request: {why}; trying again")

    def descriptor_lost(self, core: int) -> None:
        why = "had no free descriptor to take a request with (does the application leak them? ulimit -n is the limit)"
        self.loop.call_soon(self.handle, events.WorkerWorn(core // self.threads + 1, why))

    def channel_lost(self, core: int) -> None:
        """Called within the front's callback: what is to be done reaches into the front again, so later."""
        self.loop.call_soon(self.handle, events.WorkerBroken(core // self.threads + 1))
