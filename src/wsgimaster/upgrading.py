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
half second that Python needs to start. Signals pile up until the new program listens to them, so none is lost.

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
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from wsgimaster import __version__, events, handover
from wsgimaster._front import LAYOUT
from wsgimaster.config.options import Takes
from wsgimaster.config.reloadable import values
from wsgimaster.exchange import Exchange
from wsgimaster.handover import (
    ActiveFifo,
    Attached,
    ControlListening,
    Conversation,
    Cores,
    Frame,
    Listening,
    Notifying,
    Posts,
    Process,
    Proved,
    Running,
    State,
    TlsProcess,
    TlsProcesses,
    ZygoteProcess,
)
from wsgimaster.lifecycle import Phase, Stopping, explain
from wsgimaster.processes import Child, Zygote, kill_group, start_program
from wsgimaster.reloading import HEARD
from wsgimaster.sockets import Listener
from wsgimaster.stamp import stamp
from wsgimaster.tls import Terminator, Terminators

if TYPE_CHECKING:
    from wsgimaster.master import Master

PATIENCE = 30.0  # seconds for what is under way to end
LOOK = 0.02  # seconds between looks whether it has
LOG_PATIENCE = 0.2  # seconds for the log's last lines; what is left then goes along
SPOOL_PATIENCE = 2.0  # seconds for pieces of bodies that are being written to disk


@dataclass(frozen=True, slots=True)
class Origin:
    """How we were started, and are started again: arguments of Python, the directory, and the facts (config/system.py)
    of that moment, which the configuration may name."""

    arguments: tuple[str, ...]
    directory: str
    facts: dict[str, str]


class Upgrader:
    """master: who is to be another one."""

    def __init__(self, master: Master, origin: Origin) -> None:
        self.master, self.origin = master, origin
        self.task: asyncio.Task[str] | None = None
        self.ending: asyncio.Task[str] | None = None  # the rest of an upgrade that the master before exec has begun
        self.proof: Child | None = None
        self.heard = b""  # what the last proof has written, if it has failed: it may say more
        self.signals = Signals()

    def upgrade(self) -> asyncio.Task[str]:
        """Its result, if there is one, is why it has failed. Asked for while one is under way, it is that one."""
        if self.ending is not None:
            return self.ending
        if self.task is None or self.task.done():
            self.task = self.master.loop.create_task(self._upgrade())
        return self.task

    def end_with(self, task: asyncio.Task[str]) -> None:
        """Who has asked the master before exec gets this one's result; who asks from now on, another upgrade."""
        self.ending = task

        def forget() -> None:
            self.ending = None

        self.master.loop.call_soon(forget)  # behind the first steps of those who were handed over

    async def _upgrade(self) -> str:
        say = self.master.log.say
        say("upgrade asked for...")
        self.heard = b""
        try:
            async with self.master.reloader.one_reads:  # who asks for a reload meanwhile gets it from the new version
                error = await self._take_place()
        except Exception as failure:
            self.master.report_defect("in an upgrade", failure)
            error = f"a defect of wsgimaster, the log has more: {failure!r}"
        self.master.reloader.failed += 1
        say(f"the upgrade is given up: {error}")
        return f"{error}\n{self.heard.decode('utf-8', 'backslashreplace')}".rstrip()

    async def _take_place(self) -> str:
        """Returns only if it fails: why."""
        error, proved = await self._prove()
        if proved is None:
            return error
        if error := await self._wait_for_quiet():
            return error
        if not proved.against_the_workers:
            return await self._settle() or self._become(proved)
        if error := self._changed(proved):
            return error
        wanted = self.master.overseer.wanted
        try:
            return await self._end_workers(proved.against_the_workers) or await self._settle() or self._become(proved)
        finally:
            self._bring_back(wanted)

    # ---- prove ----

    async def _prove(self) -> tuple[str, Proved | None]:
        """(why we can't be what is on disk now, what the proof has found out)."""
        loop, limit = self.master.loop, self.master.settings.reloading.timeout
        memories: list[int] = []
        try:
            memories.append(handover.write(self._state(None), []))
            memories.append(handover.memory())
            self.proof = child = start_program(
                self._command(), self._environment(handover.PROOF, memories), self.origin.directory, memories
            )
        except OSError as error:
            for fd in memories:
                os.close(fd)
            return f"it can't be tried: {error.strerror}: {error.filename}", None
        ended: asyncio.Future[None] = loop.create_future()

        def write(lines: bytes) -> None:
            self.heard = (self.heard + lines)[-HEARD:]
            self.master.log.write(lines)

        def take() -> None:
            if not child.take_output(write):
                loop.remove_reader(child.output)

        def gone() -> None:
            loop.remove_reader(child.pidfd)
            ended.set_result(None)

        loop.add_reader(child.output, take)
        loop.add_reader(child.pidfd, gone)
        await asyncio.wait([ended], timeout=limit)
        late = not ended.done()
        kill_group(child.pid, signal.SIGKILL)  # whoever is left of it
        await ended
        status = self._end_proof()
        child.take_output(write)
        write(child.lines.feed(b""))
        os.close(child.output)
        os.close(memories[0])
        with open(memories[1], "rb") as answer:
            answer.seek(0)  # the position is the proof's, too
            text = answer.read()
        if late:
            return f"it was not ready within {limit:g} s (reload-timeout)", None
        try:
            proved = Proved.model_validate_json(text)
        except ValidationError:
            return f"it doesn't work ({explain(status)})", None
        if proved.error:
            return proved.error, None
        self.heard = b""
        return "", proved

    def _changed(self, proved: Proved) -> str:
        """Why what is on disk now isn't what was proved, or ""."""
        try:
            if stamp(proved.package) == proved.stamp:
                return ""
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return f"{proved.package}: the program has changed since it was proved; is an installation under way?"

    def _command(self) -> list[str]:
        return [sys.executable, *self.origin.arguments]

    def _environment(self, purpose: str, memories: Iterable[int]) -> dict[str, str]:
        return {**os.environ, handover.VARIABLE: " ".join([purpose, *map(str, memories)])}

    def give_up(self) -> None:
        """The server ends."""
        if self.task is not None:
            self.task.cancel()
        if self.proof is not None:
            kill_group(self.proof.pid, signal.SIGKILL)
            self._end_proof()

    def _end_proof(self) -> int:
        """It has been killed, or has ended: its exit code, or minus the signal."""
        child, self.proof = self.proof, None
        assert child is not None
        self.master.loop.remove_reader(child.output)
        self.master.loop.remove_reader(child.pidfd)
        return child.reap()

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
        """The same, and signals only pile up from then on."""
        while True:
            if obstacle := await self._wait_for_quiet():
                return obstacle
            try:
                self.signals.hold()
            except OSError as error:
                return f"signals can't be held: {error.strerror}"
            try:
                await asyncio.sleep(0)  # for signals that came before, and for whatever else the loop has to do
                await asyncio.sleep(0)
                if not self._obstacle():
                    return ""
            except BaseException:
                self.signals.release()
                raise
            self.signals.release()

    async def _end_workers(self, why: list[str]) -> str:
        """Requests wait, and the workers leave when they have finished theirs."""
        master = self.master
        master.log.say(f"this upgrade can't keep the workers ({'; '.join(why)}): requests wait until new ones serve")
        until = time.monotonic() + master.settings.processes.reload_mercy + PATIENCE
        master.keep_watching(scaling=False)
        master.front.suspend(True)
        master.handle(events.NobodyWanted())
        while master.workers or master.daemons.others:
            if self._stops():
                return "the server stops"
            if time.monotonic() > until:
                return "workers, or commands for touched files, don't end"
            await asyncio.sleep(LOOK)
        await master.daemons.end()
        return ""

    def _bring_back(self, wanted: int) -> None:
        """It has failed after all."""
        master = self.master
        if master.exit_code.done():
            return
        master.front.suspend(master.commands.paused)
        master.handle(events.MoreWanted(max(0, wanted - master.overseer.wanted)))
        master.daemons.attach(master.settings)
        master.keep_watching(scaling=True)

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
        if self.master.harakiri.ending:
            return "a request is being ended (harakiri)"
        if unsettled := self.master.daemons.unsettled or self.master.terminators.unsettled:
            return unsettled
        if any(exchange.sending for exchange in self.master.exchanges):
            return "somebody is being answered"
        return ""

    # ---- become ----

    def _become(self, proved: Proved) -> str:
        """Doesn't return, unless it fails: why. Then everything is as it was."""
        master = self.master
        left, why = b"", ""
        with ExitStack() as undo:
            undo.callback(self.signals.release)
            try:
                if not master.spooler.settle(SPOOL_PATIENCE):
                    return "a request's body is being written to a disk that is too slow"
                left = master.log.flush(LOG_PATIENCE)
                clients, said = master.front.hand_over_clients()
                if why := self._changed(proved):
                    return why
                state = self._state(proved, clients, left)
                memory = handover.write(state, said)
                undo.callback(os.close, memory)
                for fd in [memory, self.signals.heard, *state.inherited()]:
                    os.set_inheritable(fd, True)
                    undo.callback(os.set_inheritable, fd, False)
                here = os.open(".", os.O_PATH | os.O_CLOEXEC)
                undo.callback(os.close, here)
                undo.callback(os.fchdir, here)
                os.chdir(self.origin.directory)
                if master.notifier.watchdog:
                    master.notifier.alive()
                environment = self._environment(handover.RESUME, [memory, self.signals.heard])
                os.execve(sys.executable, self._command(), environment)
            except OSError as error:
                why = f"{error.strerror}: {error.filename}"
            finally:
                undo.callback(master.log.write, left)
        return why

    def _state(self, proved: Proved | None, clients: Sequence[tuple[Any, ...]] = (), log: bytes = b"") -> State:
        """As of now. proved: what the proof has found out, None before; clients: rows of the front; log: lines that
        aren't written yet."""
        master, prepared = self.master, self.master.prepared
        commanders, *probes = map(_conversations, master.exchanges)
        frame = Frame(
            format=handover.FORMAT,
            version=__version__,
            proved=proved.resume if proved is not None else "",
            facts=self.origin.facts,
            directory=os.getcwd(),
            fixed=values(master.settings, Takes.RESTART),
            descriptors=prepared.descriptors,
            listeners=_listening(prepared.listeners),
            health=_listening(prepared.health),
            control=ControlListening(
                path=prepared.control.path, fd=prepared.control.socket.fileno(), inode=prepared.control.inode
            ),
            fifo=None if master.fifo is None else ActiveFifo.model_validate(master.fifo),
            notifying=Notifying.model_validate(master.notifier),
            generation=master.overseer.newest,
            paused=master.commands.paused,
            reloads=bool(master.commands.under_way),
            commanders=commanders,
            probes=probes,
            clients=list(clients),
            touched=master.touch_files.seen,
            tls=_terminators(master.terminators),
            log=log.decode("latin-1"),
        )
        if proved is not None and proved.against_the_workers:
            return State(frame=frame, running=None)
        running = Running(
            layout=LAYOUT,
            binding=values(master.settings, Takes.OTHER_WORKERS),
            board=master.board.fd,
            doorbell=master.board.doorbell,
            posts=Posts.model_validate(master.overseer),
            workers={slot: _process(child) for slot, child in master.workers.items()},
            zygotes=[
                ZygoteProcess(
                    generation=one.generation,
                    lazy=one.lazy,
                    soft_signal=one.soft_signal,
                    control=one.control.fileno(),
                    process=_process(one.child),
                )
                for one in master.zygotes.values()
            ],
            daemons=[
                Attached(daemon=daemon, process=_process(child)) for daemon, child in master.daemons.attached.items()
            ],
            ready_cores=master.ready_cores,
            cores=Cores.model_validate(master.front.hand_over_cores()),
            least=master.settings.cheaper.minimum,
            target=master.scaler.memory.target,
        )
        return State(frame=frame, running=running)


class Signals:
    """Those that come while nobody can act on them, from before exec until the new program's loop runs.

    Blocking them isn't enough: other threads may take them, and then Python would have been told, which is forgotten by
    exec. Python writes the number of each into a descriptor; here it is one that exec keeps.
    """

    def __init__(self) -> None:
        self.heard, self.ours, self.usual = -1, -1, -1

    def hold(self) -> None:
        self.heard, self.ours = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.usual = signal.set_wakeup_fd(self.ours, warn_on_full_buffer=False)

    def release(self) -> None:
        signal.set_wakeup_fd(self.usual)
        os.close(self.ours)
        repeat(self.heard)


def repeat(heard: int) -> None:
    """Let the signals come that were noted there and those that were blocked; closes it."""
    numbers = b""
    with contextlib.suppress(BlockingIOError):
        numbers = os.read(heard, 1 << 16)
    os.close(heard)
    for number in set(numbers):
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


# ---- resume ----


def resume(master: Master, state: State, said: Sequence[bytes]) -> None:
    """Go on where the master before exec stood: everything that it had, this one has now. said: what each client has
    sent so far."""
    frame, running = state.frame, state.running
    master.log.write(frame.log.encode("latin-1"))
    versions = f"from version {frame.version} to {__version__}"
    master.log.say(f"gracefully (RE)spawned uWSGI master process (pid: {os.getpid()}), {versions}")
    for line in master.prepared.said:
        master.log.say(line)
    if running is not None:
        _take_up_processes(master, running)
    else:
        master.overseer.ever_ready = True  # we don't give up as at a first start: clients wait
        master.overseer.generation = master.overseer.newest = frame.generation + 1
    if frame.tls is not None:
        _take_up_terminators(master, frame.tls)
        if running is None:  # else the reload that comes next does it
            master.terminators.renew(listener.address for listener in master.listeners)
    cores = None if running is None else running.cores.model_dump()
    master.front.take_up(frame.clients, said, cores, frame.paused)
    master.commands.pause(frame.paused)
    conversations = [frame.commanders, *frame.probes]
    for exchange, some in zip(master.exchanges, conversations, strict=True):
        for talk in some:
            exchange.take_up(socket.socket(fileno=talk.fd), talk.heard.encode("latin-1"))
    if running is not None:
        master.handle(events.Tick(work_left=1))  # and what is due next is waited for


def _take_up_processes(master: Master, running: Running) -> None:
    running.posts.restore(master.overseer)
    master.ready_cores.update(running.ready_cores)
    for slot, process in running.workers.items():
        master.adopt_worker(slot, _child(process))
    for one in running.zygotes:
        control = socket.socket(fileno=one.control)
        control.setblocking(False)
        master.adopt_zygote(Zygote(one.generation, _child(one.process), control, one.lazy, one.soft_signal))
    for attached in running.daemons:
        master.daemons.adopt(attached.daemon, _child(attached.process))
    if running.target is not None:
        master.scaler.ask_for(running.target)
    if master.overseer.wanted < master.overseer.processes:
        master.scaler.needed = True  # somebody may have asked for fewer
    master.keep_watching()
    master.keep_enough_workers(running.least)


def _take_up_terminators(master: Master, tls: TlsProcesses) -> None:
    """They go on until the reload that comes next replaces them."""
    terminators = master.terminators
    terminators.post, terminators.theirs = socket.socket(fileno=tls.post), socket.socket(fileno=tls.theirs)
    terminators.certificates, terminators.generation, terminators.newest = tls.certificates, tls.generation, tls.newest
    for one in tls.processes:
        line = None if one.line < 0 else socket.socket(fileno=one.line)
        terminators.adopt(Terminator(_child(one.process), line, one.generation, time.monotonic(), ready=True))
    terminators.fill_up()


def _terminators(terminators: Terminators) -> TlsProcesses | None:
    if terminators.post is None or terminators.theirs is None:
        return None
    return TlsProcesses(
        post=terminators.post.fileno(),
        theirs=terminators.theirs.fileno(),
        certificates=terminators.certificates,
        generation=terminators.generation,
        newest=terminators.newest,
        processes=[
            TlsProcess(
                line=-1 if one.line is None else one.line.fileno(),
                generation=one.generation,
                process=_process(one.child),
            )
            for one in terminators.members
        ],
    )


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
