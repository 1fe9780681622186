"""What a master leaves to the one that it becomes by exec (upgrading.py): what only it knows, as plain values, in a
memfd that the new one inherits.

The program before exec may be of another version than the one after it, so there are two parts:

    frame     what every version has: sockets, clients that wait, who is to be told what. A version that can't read
              another one's frame can't take over from it.
    running   the workers and everything that belongs to them. A version that can't read this, or shares memory with its
              workers in another way, can take over all the same, after the workers have ended.

The new version's proof (proving.py) reads both first, while the old master can still go on.

Runs in: the master, and the proof.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from wsgimaster.certificates import Certificate
from wsgimaster.config.reloadable import Values
from wsgimaster.errors import StartError
from wsgimaster.lifecycle import Overseer, Post, Slot
from wsgimaster.settings import Address, Daemon, Settings

VARIABLE = "WSGIMASTER_HANDOVER"  # in the new program's environment: PROOF or RESUME, and the numbers of memfds
PROOF, RESUME = "proof", "resume"
Text = str  # bytes, each as one character (latin-1)
# _front.Front.hand_over_clients; the first three: descriptors, or -1; the last two: bytes that it said of the next
# requests, and altogether
# fmt: off
Client = tuple[
    int, int, int, int, int, bool, int, int, int, int, int, int, bool, bool, int, int, bool, int, bool, int, int,
    Text, Text, int, int
]
# fmt: on
Core = tuple[int, int, int, int, int, int, int, int, int, int, int, Text, int, bool, bool]  # hand_over_cores
FORMAT: Literal[1] = 1  # of the frame


class Part(BaseModel):
    model_config = ConfigDict(from_attributes=True, extra="forbid")


class Listening(Part):
    """A listening socket. inode: device and number of the path that we made for it."""

    address: Address
    fd: int
    inode: tuple[int, int] | None


class ControlListening(Part):
    path: str | None
    fd: int
    inode: tuple[int, int]


class ActiveFifo(Part):
    fd: int
    active: int


class Notifying(Part):
    """How systemd is told."""

    address: str
    watchdog: float  # seconds
    is_ready: bool


class Conversation(Part):
    """Somebody who has connected to the control socket or for health, and what he has said so far."""

    fd: int
    heard: Text


class Process(Part):
    """A child of the master. partial: of a line that it hasn't ended; written: of tracebacks."""

    pid: int
    output: int
    tracebacks: int
    generation: int
    soft_signal: int
    partial: Text
    written: Text


class TlsProcess(Part):
    line: int  # -1: it was told to leave
    generation: int
    process: Process


class TlsProcesses(Part):
    """Those that end TLS, and what they were started with."""

    post: int
    theirs: int
    certificates: dict[int, Certificate]
    generation: int
    newest: int
    processes: list[TlsProcess]

    def inherited(self) -> Iterator[int]:
        yield from (self.post, self.theirs)
        yield from (fd for one in self.certificates.values() for fd in one.descriptors)
        for one in self.processes:
            yield from (fd for fd in (one.line, one.process.output) if fd >= 0)


class Frame(Part):
    format: Literal[1]  # FORMAT
    version: str  # of the wsgimaster that wrote this
    proved: str  # what its proof has left for a new version to start with: Proved.resume
    facts: dict[str, str]  # what %t, %u and so on meant at the first start
    directory: str  # in which the server works
    fixed: Values  # options that only a restart can change
    descriptors: tuple[int, int]  # (soft, hard) limit for the workers
    listeners: list[Listening]
    health: list[Listening]
    control: ControlListening
    fifo: ActiveFifo | None
    notifying: Notifying
    generation: int  # the newest one
    paused: bool
    reloads: bool  # somebody has asked for a reload that hasn't begun
    commanders: list[Conversation]
    probes: list[list[Conversation]]  # by health address
    clients: list[Client]
    touched: dict[str, int | None]  # when files that mean something were last changed, ns
    log: Text  # lines that are not written yet
    tls: TlsProcesses | None = None

    def inherited(self) -> Iterator[int]:
        """All descriptors that exec must keep."""
        yield self.control.fd
        yield from (one.fd for one in (*self.listeners, *self.health))
        yield from (one.fd for conversations in (self.commanders, *self.probes) for one in conversations)
        yield from (fd for client in self.clients for fd in client[:3] if fd >= 0)
        if self.fifo is not None:
            yield self.fifo.fd
        if self.tls is not None:
            yield from self.tls.inherited()


class ZygoteProcess(Part):
    generation: int
    lazy: bool
    soft_signal: int
    control: int
    process: Process


class Attached(Part):
    daemon: Daemon
    process: Process


class Posts(Part):
    """What the overseer knows; each field as it is called there."""

    slots: list[Slot]
    posts: list[Post]
    wanted: int
    zygotes: dict[int, float | None]
    generation: int
    newest: int
    zygote_crashes: int
    zygote_not_before: float
    ever_ready: bool

    def restore(self, overseer: Overseer) -> None:
        for name in type(self).model_fields:
            setattr(overseer, name, getattr(self, name))


class Cores(Part):
    rows: list[Core]
    passed_on: int
    own: int
    counters: list[int]


class Running(Part):
    layout: str  # _front.LAYOUT
    binding: Values  # options to which running workers are bound
    board: int
    doorbell: int
    posts: Posts
    workers: dict[int, Process]  # by slot
    zygotes: list[ZygoteProcess]
    daemons: list[Attached]
    ready_cores: dict[int, int]
    cores: Cores
    least: int  # `cheaper`, 0 for none
    target: int | None  # workers that somebody has asked for

    def inherited(self) -> Iterator[int]:
        yield from (self.board, self.doorbell)
        for row in self.cores.rows:
            yield from row[2:4]  # both ends of its channel
        zygotes = [one.process for one in self.zygotes]
        daemons = [one.process for one in self.daemons]
        for process in (*self.workers.values(), *zygotes, *daemons):
            yield from (fd for fd in (process.output, process.tracebacks) if fd >= 0)
        yield from (one.control for one in self.zygotes)


class State(Part):
    """running: None without workers, or if it isn't understood."""

    frame: Frame
    running: Running | None

    def inherited(self) -> Iterator[int]:
        yield from self.frame.inherited()
        yield from self.running.inherited() if self.running is not None else ()


class Proved(BaseModel):
    """What a proof has found out. Its version may say more than ours knows."""

    error: str = ""  # why it can't take over; "" if it can
    against_the_workers: list[str] = []  # why they can't be kept; nothing: they can
    package: str = ""  # the directory of its program
    stamp: str = ""  # stamp.stamp of it
    resume: str = ""  # for the same version after exec; nobody else reads it


class Resumed(BaseModel):
    """Proved.resume: the configuration as it was proved, since by now there may be another one on disk."""

    settings: Settings
    warnings: list[str]


def parse(text: str) -> tuple[str, int, int]:
    """VARIABLE's value: the purpose, the memfd of the state, and a second descriptor (the proof's answer, or where
    signals were noted). Raises StartError."""
    words = text.split()
    if len(words) != 3 or words[0] not in (PROOF, RESUME) or not all(word.isdigit() for word in words[1:]):
        raise StartError(f"{VARIABLE} = {text[:100]!r}: only wsgimaster itself sets that")
    return words[0], int(words[1]), int(words[2])


def memory(content: bytes = b"") -> int:
    """A memfd with that in it: its number. Raises OSError."""
    fd = os.memfd_create("wsgimaster-handover", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def write(state: State, said: list[bytes]) -> int:
    """Into a memfd: its number. said: what each client has sent so far. Raises OSError."""
    text = state.model_dump_json().encode()
    return memory(b"".join([struct.pack("<Q", len(text)), text, *said]))


def read(fd: int) -> tuple[State, list[bytes]]:
    """And close it. Raises StartError if it was written by a version whose frame we don't understand."""
    try:
        with open(fd, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            found = from_json(file.read(size))
            frame = Frame.model_validate(found["frame"])
            said = [file.read(client[-1]) for client in frame.clients]
    except (ValidationError, ValueError, KeyError, TypeError, struct.error, OSError) as error:
        why = f"this version can't take over from the one that runs: a restart is needed\n{error}"
        raise StartError(why) from None
    try:
        return State(frame=frame, running=Running.model_validate(found["running"])), said
    except (ValidationError, KeyError):
        return State(frame=frame, running=None), said
