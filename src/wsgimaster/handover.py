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
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from wsgimaster.config.reloadable import Values
from wsgimaster.errors import StartError
from wsgimaster.lifecycle import Overseer, Post, Slot
from wsgimaster.settings import Address, Daemon

VARIABLE = "WSGIMASTER_HANDOVER"  # in the environment of the new program: PROOF or RESUME, and the memfd's number
PROOF, RESUME = "proof", "resume"
Text = str  # bytes, each as one character (latin-1)
Waiting = tuple[int, int, int, bool, int, int, int, int, Text]  # _front.Front.as_values


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


class Frame(Part):
    version: str  # of the wsgimaster that wrote this
    fixed: Values  # options that only a restart can change
    descriptors: tuple[int, int]  # (soft, hard) limit for the workers
    listeners: list[Listening]
    health: list[Listening]
    control: ControlListening
    fifo: ActiveFifo | None
    notifying: Notifying
    paused: bool
    commanders: list[Conversation]
    probes: list[list[Conversation]]  # by health address
    clients: list[Waiting]
    log: Text  # lines that are not written yet

    def inherited(self) -> Iterator[int]:
        """All descriptors that exec must keep."""
        yield self.control.fd
        yield from (one.fd for one in (*self.listeners, *self.health))
        yield from (one.fd for conversations in (self.commanders, *self.probes) for one in conversations)
        yield from (client[0] for client in self.clients)
        if self.fifo is not None:
            yield self.fifo.fd


class Process(Part):
    """A zygote, a worker or an attached daemon. partial: of a line that it hasn't ended; written: of tracebacks."""

    pid: int
    output: int
    tracebacks: int
    generation: int
    soft_signal: int
    partial: Text
    written: Text


class ZygoteProcess(Part):
    generation: int
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
    cores: dict[str, Any]  # _front.Front.take_up

    def inherited(self) -> Iterator[int]:
        yield from (self.board, self.doorbell, *self.cores["fds"])
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


def write(state: State) -> int:
    """Into a memfd: its number. Raises OSError."""
    fd = os.memfd_create("wsgimaster-handover", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(state.model_dump_json().encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read(fd: int) -> State:
    """And close it. Raises StartError if it was written by a version whose frame we don't understand."""
    with open(fd, "rb") as file:
        found = from_json(file.read())
    try:
        frame = Frame.model_validate(found["frame"])
    except (ValidationError, KeyError, TypeError) as error:
        raise StartError(
            f"this version can't take over from the one that runs: a restart is needed ({error})"
        ) from None
    try:
        return State(frame=frame, running=Running.model_validate(found["running"]))
    except (ValidationError, KeyError):
        return State(frame=frame, running=None)
