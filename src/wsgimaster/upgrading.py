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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsgimaster import __version__, handover
from wsgimaster._front import LAYOUT
from wsgimaster.config.reloadable import fixed_values
from wsgimaster.exchange import Exchange
from wsgimaster.handover import (
    ActiveFifo,
    Attached,
    ControlListening,
    Conversation,
    Listening,
    Notifying,
    Posts,
    Process,
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
        say = self.master.log.say
        say("upgrade asked for...")
        async with self.master.reloader.one_reads:  # who asks for a reload meanwhile gets it from the new version
            error = await self._prove() or await self._settle() or self._become()
        self.master.reloader.failed += 1
        say(f"the upgrade is given up: {error}")
        return error

    # ---- prove ----

    async def _prove(self) -> str:
        """Why we can't be what is on disk now, or ""."""
        master = self.master
        limit = master.settings.reloading.timeout
        try:
            memory = handover.write(self._state({"fds": []}, b""))
            try:
                environment = {**os.environ, handover.VARIABLE: f"{handover.PROOF} {memory}"}
                self.proof = child = start_proof(self._command(), environment, self.origin.directory, memory)
            finally:
                os.close(memory)
        except OSError as error:
            return f"it can't be tried: {error.strerror}: {error.filename}"
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
            ended.set_result(None)

        master.loop.add_reader(child.output, take)
        master.loop.add_reader(child.pidfd, gone)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended, limit)
        status = self._end_proof()
        child.take_output(write)
        write(child.lines.feed(b""))
        os.close(child.output)
        if not status:
            return ""
        why = f"it doesn't work ({explain(status)})"
        if ended.cancelled():
            why = f"it was not ready within {limit:g} s (reload-timeout)"
        return f"{why}\n{b''.join(heard).decode('utf-8', 'backslashreplace')}".rstrip()

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

    async def _settle(self) -> str:
        """Until exec is possible: "", with all signals blocked. Or why it isn't."""
        until = time.monotonic() + PATIENCE
        while True:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            await asyncio.sleep(0)  # for those that came before, and what else the loop has to do
            await asyncio.sleep(0)
            if not (obstacle := self._obstacle()):
                return ""
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if time.monotonic() > until or self._stops():
                return obstacle
            await asyncio.sleep(LOOK)

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

    def _become(self) -> str:
        """Doesn't return, unless it fails: why."""
        master = self.master
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        kept: list[int] = []
        left = b""
        try:
            left = master.log.flush(LOG_PATIENCE)
            state = self._state(master.front.hand_over(), left)
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

    def _state(self, front: dict[str, Any], log: bytes) -> State:
        """As of now. front: what the front hands over; log: lines that aren't written yet."""
        master, prepared = self.master, self.master.prepared
        health = master.health.exchanges if master.health is not None else []
        assert master.control is not None
        return State(
            version=__version__,
            layout=LAYOUT,
            fixed=fixed_values(master.settings),
            descriptors=prepared.descriptors,
            board=master.board.fd,
            doorbell=master.board.doorbell,
            listeners=_listening(prepared.listeners),
            health=_listening(prepared.health),
            control=ControlListening(
                path=prepared.control.path, fd=prepared.control.socket.fileno(), inode=prepared.control.inode
            ),
            fifo=None if master.fifo is None else ActiveFifo(fd=master.fifo.fd, active=master.fifo.active),
            notifying=Notifying.model_validate(master.notifier),
            paused=master.commands.paused,
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
            commanders=_conversations([master.control.exchange])[0],
            probes=_conversations(health),
            front=front,
            log=log.decode("latin-1"),
        )


# ---- resume ----


def resume(master: Master, state: State) -> None:
    """Go on where the master before exec stood: everything that it had, this one has now."""
    for fd in state.inherited():
        os.set_inheritable(fd, False)
    master.log.write(state.log.encode("latin-1"))
    master.log.say(
        f"gracefully (RE)spawned uWSGI master process (pid: {os.getpid()}), from version {state.version}"
        f" to {__version__}"
    )
    state.posts.restore(master.overseer)
    master.ready_cores.update(state.ready_cores)
    for slot, process in state.workers.items():
        master.adopt_worker(slot, _child(process))
    for one in state.zygotes:
        control = socket.socket(fileno=one.control)
        control.setblocking(False)
        master.adopt_zygote(Zygote(one.generation, _child(one.process), control, master.settings))
    for attached in state.daemons:
        master.daemons.adopt(attached.daemon, _child(attached.process))
    master.front.take_up(state.front)
    master.commands.pause(state.paused)
    if master.overseer.wanted < master.overseer.processes:
        master.scaler.needed = True  # somebody may have asked for fewer
        master.keep_watching()
    assert master.control is not None
    assert master.health is not None
    for exchange, conversations in zip(
        [master.control.exchange, *master.health.exchanges], [state.commanders, *state.probes], strict=True
    ):
        for talk in conversations:
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


def _conversations(exchanges: Iterable[Exchange]) -> list[list[Conversation]]:
    return [
        [Conversation(fd=fd, heard=heard.decode("latin-1")) for fd, heard in one.conversations()] for one in exchanges
    ]
