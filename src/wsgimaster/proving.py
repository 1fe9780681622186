"""The proof: before the master becomes a new version by exec, a child of that version shows that it works. It reads the
master's state and the configuration, loads the application and has one worker come up; then it ends.

What it has found out it writes as `Proved` into a memfd, at the end: who finds nothing there knows that it has failed
in a way that nobody thought of, and its output may say more.

Runs in: a process of its own. It takes no connection, and touches nothing of the server's.
"""

import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from functools import partial

from wsgimaster import _process, messages, processes, startup
from wsgimaster._front import LAYOUT, READY
from wsgimaster.config.options import Takes
from wsgimaster.config.reloadable import changes, values
from wsgimaster.errors import ConfigErrors, StartError
from wsgimaster.handover import Proved, Resumed, State
from wsgimaster.lifecycle import slots_for, why_no_proof, why_not_loaded
from wsgimaster.messages import Kind, Message
from wsgimaster.processes import Child
from wsgimaster.scoreboard import Scoreboard
from wsgimaster.settings import Settings
from wsgimaster.stamp import PACKAGE, stamp


def prove(read: Callable[[], tuple[Settings, list[str]]], state: State, answer: int, stamped: str) -> int:
    """Returns the exit code. read: the configuration and its warnings; answer: the memfd; stamped: the program's stamp
    before it was imported."""
    _process.die_with_parent(signal.SIGKILL, os.getppid())
    try:
        found_out = attempt(*read(), state, stamped)
    except ConfigErrors as errors:
        found_out = Proved(error="\n".join(str(one) for one in errors.errors))
    except StartError as error:
        found_out = Proved(error=str(error))
    with open(answer, "wb") as file:
        file.write(found_out.model_dump_json().encode())
    return 1 if found_out.error else 0


def attempt(settings: Settings, warnings: list[str], state: State, stamped: str) -> Proved:
    """Raises StartError with the reason why this version can't take over."""
    _process.become_subreaper()  # who is forked by a zygote with threads falls to us
    if found := changes(state.frame.fixed, values(settings, Takes.RESTART)):
        raise StartError("\n".join(f"{one}: an upgrade can't change that, a restart does" for one in found))
    startup.check_descriptors(processes.descriptors_needed(settings))
    startup.change_directory(state.frame.directory)
    Attempt(settings, state.frame.descriptors).run()
    if stamp(PACKAGE) != stamped:
        raise StartError(f"{PACKAGE}: the program has changed while it was proved; is an installation under way?")
    return Proved(
        against_the_workers=against_the_workers(settings, state),
        package=PACKAGE,
        stamp=stamped,
        resume=Resumed(settings=settings, warnings=warnings).model_dump_json(),
    )


def against_the_workers(settings: Settings, state: State) -> list[str]:
    """Why they can't go on with us."""
    version = state.frame.version
    if state.running is None:
        return [f"version {version} knows other things of its workers than we do"]
    if state.running.layout != LAYOUT:
        return [f"version {version} shares memory with its workers in another way than we do"]
    return changes(state.running.binding, values(settings, Takes.OTHER_WORKERS))


class Attempt:
    """A zygote and a worker, as a reload tries them (lifecycle.py: Reloading), but one after the other and without a
    loop."""

    def __init__(self, settings: Settings, descriptors: tuple[int, int]) -> None:
        self.settings = settings
        threads = settings.processes.threads
        board = Scoreboard(slots_for(settings.processes.processes) * threads)
        plan = processes.plan_for_zygote(settings, descriptors)
        plan["trial"] = True
        plan["hooks"].update(accepting=(), accepting1=())  # nobody will ask it anything
        environment = {**os.environ, **dict(settings.app.environment)}
        self.zygote, self.control = processes.start_zygote(plan, environment, board.fd, board.doorbell)
        self.worker: Child | None = None
        self.channels: list[socket.socket] = []
        self.ready = 0  # cores
        self.selector = selectors.DefaultSelector()
        for readable, act in {
            self.zygote.output: self.relay,
            self.control.fileno(): self.hear_zygote,
            self.zygote.pidfd: self.zygote_gone,
        }.items():
            self.selector.register(readable, selectors.EVENT_READ, act)

    def run(self) -> None:
        """Until the worker is ready. Raises StartError if it doesn't get so far. How long it may take is up to the
        master: it kills us."""
        while self.ready < self.settings.processes.threads:
            for key, _ in self.selector.select():
                key.data()
        self.control.close()
        for channel in self.channels:
            channel.close()  # the worker leaves
        patience = time.monotonic() + self.settings.processes.exit_deadline
        for child in [one for one in (self.worker, self.zygote) if one is not None]:
            with selectors.DefaultSelector() as gone:
                gone.register(child.pidfd, selectors.EVENT_READ)
                if not gone.select(max(0.0, patience - time.monotonic())):
                    child.kill()
            child.reap()
        self.relay()

    def relay(self) -> None:
        def write(lines: bytes) -> None:
            os.write(2, lines)

        if self.zygote.output in self.selector.get_map() and not self.zygote.take_output(write):
            self.selector.unregister(self.zygote.output)

    def hear_zygote(self) -> None:
        try:
            data = self.control.recv(messages.SIZE)
        except ConnectionResetError:  # it hadn't even read what we said first
            data = b""
        if not data:  # it ends: zygote_gone says how
            self.selector.unregister(self.control.fileno())
            return
        message = messages.decode(data)
        match message.kind:
            case Kind.LOADED:
                self.fork()
            case Kind.FORKED:
                pidfd = os.pidfd_open(message.pid)
                self.worker = Child(message.pid, pidfd, -1)
                self.selector.register(pidfd, selectors.EVENT_READ, self.worker_gone)
            case Kind.FORK_FAILED:
                raise StartError(f"its first worker could not be forked: {os.strerror(message.error)}")

    def fork(self) -> None:
        """Ask for worker 1, the proof of its generation. It writes where we do."""
        theirs = []
        for _ in range(self.settings.processes.threads):
            ours, far = processes.make_channel()
            channel = socket.socket(fileno=ours)
            self.channels.append(channel)
            self.selector.register(channel, selectors.EVENT_READ, partial(self.hear_core, channel))
            theirs.append(far)
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # for tracebacks that signals write
        asked = messages.encode(Message(Kind.FORK, 1, 1, proof=True))
        socket.send_fds(self.control, [asked], [*theirs, 2, nowhere])
        for fd in (*theirs, nowhere):
            os.close(fd)

    def hear_core(self, channel: socket.socket) -> None:
        data = channel.recv(1024)
        if not data:
            self.selector.unregister(channel)
        elif struct.unpack_from("<H", data)[0] == READY:  # MessageHead.kind
            self.ready += 1

    def zygote_gone(self) -> None:
        status = self.zygote.reap()
        self.relay()
        raise StartError(why_not_loaded(status))

    def worker_gone(self) -> None:
        assert self.worker is not None
        raise StartError(why_no_proof(self.worker.reap()))
