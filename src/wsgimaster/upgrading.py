"""The upgrade: the master becomes another version of itself, or reads everything anew, without an end in between.

Theory of operation

    prove     a child, the program as it is on disk now, reads our state and the configuration, loads the application
              and has one worker come up (proving.py). If it can't, nothing has changed.
    settle    until nothing is under way that can't be passed on: a reload, a fork, the end of a request (harakiri).
    become    exec: the same process, with the same number, parent and children. Listening sockets, the connections of
              requests that wait or run, the channels of the workers and the shared memory stay open, and what only we
              know goes along in a memfd (handover.py).
    resume    the new program goes on with all of it: the workers serve as before. Then it reloads them, as it always
              does, so that they are of the new version, too. If that fails, the old workers go on.

Who serves in between? Workers that accept for themselves (dispatch = auto) go on, what needs the master waits for the
half second that Python needs to start. Signals are blocked until the new program listens to them, so none is lost.

A version that shares memory with its workers in another way, or a configuration with another number of them, can't
keep them. Then they end before exec, when they have finished what they had; whoever comes meanwhile waits, for as long
as the new workers need to start.

Runs in: the master, before and after exec.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsgimaster import __version__, events, handover
from wsgimaster._front import LAYOUT
from wsgimaster.config.options import Takes
from wsgimaster.config.reloadable import values
from wsgimaster.errors import EXIT_OTHER_WORKERS
from wsgimaster.exchange import Exchange
from wsgimaster.handover import (
    ActiveFifo,
    Attached,
    ControlListening,
    Conversation,
    Frame,
    Listening,
    Notifying,
    Posts,
    Process,
    Running,
    State,
    ZygoteProcess,
)
from wsgimaster.lifecycle import Phase, Stopping, explain
from wsgimaster.processes import Child, Zygote, start_proof
from wsgimaster.sockets import Listener

if TYPE_CHECKING:
    from wsgimaster.master import Master

PATIENCE = 30.0  # seconds for what is under way to end
LOOK = 0.02  # seconds between looks whether it has
LOG_PATIENCE = 0.2  # seconds for the log's last lines; what is left then goes along


@dataclass(frozen=True, slots=True)
class Origin:
    """How we were started, and are started again: arguments of Python, and the directory."""

    arguments: tuple[str, ...]
    directory: str


class Upgrader:
    """master: who is to be another one."""

    def __init__(self, master: Master, origin: Origin) -> None:
        self.master, self.origin = master, origin
        self.task: asyncio.Task[str] | None = None
        self.proof: Child | None = None

    def upgrade(self) -> asyncio.Task[str]:
        """Its result, if there is one, is why it has failed. Asked for while one is under way, it is that one."""
        if self.task is None or self.task.done():
            self.task = self.master.loop.create_task(self._upgrade())
        return self.task

    async def _upgrade(self) -> str:
        master = self.master
        master.log.say("upgrade asked for...")
        async with master.reloader.one_reads:  # who asks for a reload meanwhile gets it from the new version
            error = await self._take_place()
        master.reloader.failed += 1
        master.log.say(f"the upgrade is given up: {error}")
        return error

    async def _take_place(self) -> str:
        """Returns only if it fails: why."""
        error, keeps_workers = await self._prove()
        error = error or await self._wait_for_quiet()
        if error or keeps_workers:
            return error or await self._settle() or self._become(keeps_workers=True)
        wanted = self.master.overseer.wanted
        error = await self._end_workers() or await self._settle() or self._become(keeps_workers=False)
        self._bring_back(wanted)
        return error

    # ---- prove ----

    async def _prove(self) -> tuple[str, bool]:
        """(why we can't be what is on disk now, or ""; whether the workers could go on)."""
        master = self.master
        limit = master.settings.reloading.timeout
        try:
            memory = handover.write(self._state(True, [], {"fds": []}, b""))
            try:
                environment = {**os.environ, handover.VARIABLE: f"{handover.PROOF} {memory}"}
                self.proof = child = start_proof(self._command(), environment, self.origin.directory, memory)
            finally:
                os.close(memory)
        except OSError as error:
            return f"it can't be tried: {error.strerror}: {error.filename}", False
        heard: list[bytes] = []
        ended: asyncio.Future[None] = master.loop.create_future()

        def write(lines: bytes) -> None:
            heard.append(lines)
            master.log.write(lines)

        def take() -> None:
            if not child.take_output(write):
                master.loop.remove_reader(child.output)

        def gone() -> None:
            master.loop.remove_reader(child.pidfd)
            if not ended.done():
                ended.set_result(None)

        master.loop.add_reader(child.output, take)
        master.loop.add_reader(child.pidfd, gone)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended, limit)
        status = self._end_proof()
        child.take_output(write)
        write(child.lines.feed(b""))
        os.close(child.output)
        if not ended.cancelled() and status in (0, EXIT_OTHER_WORKERS):
            return "", status == 0
        why = f"it doesn't work ({explain(status)})"
        if ended.cancelled():
            why = f"it was not ready within {limit:g} s (reload-timeout)"
        return f"{why}\n{b''.join(heard).decode('utf-8', 'backslashreplace')}".rstrip(), False

    def give_up(self) -> None:
        """The server ends."""
        if self.task is not None:
            self.task.cancel()
        if self.proof is not None:
            self._end_proof()

    def _end_proof(self) -> int:
        """Kill it if it still runs; its exit code, or minus the signal."""
        child, self.proof = self.proof, None
        assert child is not None
        self.master.loop.remove_reader(child.output)
        self.master.loop.remove_reader(child.pidfd)
        child.kill()
        return child.reap()

    def _command(self) -> list[str]:
        return [sys.executable, *self.origin.arguments]

    # ---- settle ----

    async def _wait_for_quiet(self) -> str:
        """Until nothing is under way that can't be passed on: "". Or why that doesn't come."""
        until = time.monotonic() + PATIENCE
        while obstacle := self._obstacle():
            if time.monotonic() > until or self._stops():
                return obstacle
            await asyncio.sleep(LOOK)
        return ""

    async def _settle(self) -> str:
        """The same, and all signals are blocked afterwards; those that came before have been heard."""
        while True:
            if obstacle := await self._wait_for_quiet():
                return obstacle
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            await asyncio.sleep(0)  # for them, and for whatever else the loop has to do
            await asyncio.sleep(0)
            if not self._obstacle():
                return ""
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

    async def _end_workers(self) -> str:
        """Requests wait, and the workers leave when they have finished theirs."""
        master = self.master
        master.log.say("this upgrade can't keep the workers: requests wait until new ones serve")
        master.stop_scaling()
        master.front.suspend(True)
        master.handle(events.NobodyWanted())
        while master.workers:
            if self._stops():
                return "the server stops"
            await asyncio.sleep(LOOK)
        await master.daemons.end()
        return ""

    def _bring_back(self, wanted: int) -> None:
        """It has failed after all."""
        master = self.master
        master.handle(events.MoreWanted(wanted - master.overseer.wanted))
        master.front.suspend(master.commands.paused)
        master.daemons.attach(master.settings.daemons)
        master.keep_watching()

    def _stops(self) -> bool:
        return self.master.draining or self.master.overseer.stopping is not Stopping.NO

    def _obstacle(self) -> str:
        overseer = self.master.overseer
        if self._stops():
            return "the server stops"
        if overseer.trial is not None or overseer.switching is not None or overseer.pending is not None:
            return "a reload is under way"
        if any(slot.phase is Phase.ASKED for slot in overseer.slots) or self.master.pipes:
            return "a worker is being forked"
        if overseer.zygotes.get(overseer.generation) is None:
            return "the application is being loaded"
        return "a request is being ended (harakiri)" if self.master.harakiri.ending else ""

    # ---- become ----

    def _become(self, keeps_workers: bool) -> str:
        """Doesn't return, unless it fails: why."""
        master = self.master
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        kept: list[int] = []
        left = b""
        try:
            left = master.log.flush(LOG_PATIENCE)
            state = self._state(keeps_workers, *master.front.hand_over(), left)
            memory = handover.write(state)
            kept = [memory, *state.inherited()]
            for fd in kept:
                os.set_inheritable(fd, True)
            os.chdir(self.origin.directory)
            environment = {**os.environ, handover.VARIABLE: f"{handover.RESUME} {memory}"}
            os.execve(sys.executable, self._command(), environment)
        except OSError as error:
            why = f"{error.strerror}: {error.filename}"
        os.fchdir(here)
        os.close(here)
        for fd in kept:
            os.set_inheritable(fd, False)
        if kept:
            os.close(kept[0])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        master.log.write(left)
        return why

    def _state(
        self, keeps_workers: bool, clients: Sequence[tuple[Any, ...]], cores: dict[str, Any], log: bytes
    ) -> State:
        """As of now. clients, cores: what the front hands over; log: lines that aren't written yet."""
        master, prepared = self.master, self.master.prepared
        assert master.control is not None
        assert master.health is not None
        frame = Frame(
            version=__version__,
            fixed=values(master.settings, Takes.RESTART),
            descriptors=prepared.descriptors,
            listeners=_listening(prepared.listeners),
            health=_listening(prepared.health),
            control=ControlListening(
                path=prepared.control.path, fd=prepared.control.socket.fileno(), inode=prepared.control.inode
            ),
            fifo=None if master.fifo is None else ActiveFifo.model_validate(master.fifo),
            notifying=Notifying.model_validate(master.notifier),
            paused=master.commands.paused,
            commanders=_conversations(master.control.exchange),
            probes=[_conversations(one) for one in master.health.exchanges],
            clients=list(clients),
            log=log.decode("latin-1"),
        )
        if not keeps_workers:
            return State(frame=frame, running=None)
        running = Running(
            layout=LAYOUT,
            binding=values(master.settings, Takes.OTHER_WORKERS),
            board=master.board.fd,
            doorbell=master.board.doorbell,
            posts=Posts.model_validate(master.overseer),
            workers={slot: _process(child) for slot, child in master.workers.items()},
            zygotes=[
                ZygoteProcess(generation=one.generation, control=one.control.fileno(), process=_process(one.child))
                for one in master.zygotes.values()
            ],
            daemons=[
                Attached(daemon=daemon, process=_process(child)) for daemon, child in master.daemons.children.items()
            ],
            ready_cores=master.ready_cores,
            cores=cores,
        )
        return State(frame=frame, running=running)


# ---- resume ----


def resume(master: Master, state: State) -> None:
    """Go on where the master before exec stood: everything that it had, this one has now."""
    frame, running = state.frame, state.running
    master.log.write(frame.log.encode("latin-1"))
    versions = f"from version {frame.version} to {__version__}"
    master.log.say(f"gracefully (RE)spawned uWSGI master process (pid: {os.getpid()}), {versions}")
    for line in master.prepared.said:
        master.log.say(line)
    if running is not None:
        running.posts.restore(master.overseer)
        master.ready_cores.update(running.ready_cores)
        for slot, process in running.workers.items():
            master.adopt_worker(slot, _child(process))
        for one in running.zygotes:
            control = socket.socket(fileno=one.control)
            control.setblocking(False)
            master.adopt_zygote(Zygote(one.generation, _child(one.process), control, master.settings))
        for attached in running.daemons:
            master.daemons.adopt(attached.daemon, _child(attached.process))
        if master.overseer.wanted < master.overseer.processes:
            master.scaler.needed = True  # somebody may have asked for fewer
            master.keep_watching()
    master.front.take_up(frame.clients, running.cores if running is not None else None)
    master.commands.pause(frame.paused)
    assert master.control is not None
    assert master.health is not None
    conversations = [frame.commanders, *frame.probes]
    for exchange, some in zip([master.control.exchange, *master.health.exchanges], conversations, strict=True):
        for talk in some:
            exchange.take_up(socket.socket(fileno=talk.fd), talk.heard.encode("latin-1"))


def _child(process: Process) -> Child:
    child = Child(process.pid, os.pidfd_open(process.pid), process.output, process.tracebacks, process.generation)
    child.soft_signal = process.soft_signal
    child.lines.partial.extend(process.partial.encode("latin-1"))
    child.written = process.written.encode("latin-1")
    return child


def _listening(listeners: Iterable[Listener]) -> list[Listening]:
    return [Listening(address=one.address, fd=one.socket.fileno(), inode=one.inode) for one in listeners]


def _process(child: Child) -> Process:
    return Process(
        pid=child.pid,
        output=child.output,
        tracebacks=child.tracebacks,
        generation=child.generation,
        soft_signal=child.soft_signal,
        partial=child.lines.partial.decode("latin-1"),
        written=child.written.decode("latin-1"),
    )


def _conversations(exchange: Exchange) -> list[Conversation]:
    return [Conversation(fd=fd, heard=heard.decode("latin-1")) for fd, heard in exchange.conversations()]
