"""What a master leaves to the one that it becomes by exec (upgrading.py): everything that only it knows, as plain
values, in a memfd that the new one inherits.

The program before exec may be of another version than the one after it. So the new version's proof (proving.py) reads
the state first, while the old master can still go on.

Runs in: the master, and the proof.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from wsgimaster.errors import StartError
from wsgimaster.lifecycle import Overseer, Post, Slot
from wsgimaster.settings import Address, Daemon

VARIABLE = "WSGIMASTER_HANDOVER"  # in the environment of the new program: PROOF or RESUME, and the memfd's number
PROOF, RESUME = "proof", "resume"
Text = str  # bytes, each as one character (latin-1)


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


class Process(Part):
    """A zygote or a worker. partial: of a line that it hasn't ended; written: of tracebacks."""

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


class Conversation(Part):
    """Somebody who has connected to the control socket or for health, and what he has said so far."""

    fd: int
    heard: Text


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


class State(Part):
    version: str  # of the wsgimaster that wrote this
    layout: str  # _front.LAYOUT
    fixed: dict[str, str]  # config/reloadable.py: the options that the running workers are bound to
    descriptors: tuple[int, int]  # (soft, hard) limit for the workers
    board: int
    doorbell: int
    listeners: list[Listening]
    health: list[Listening]
    control: ControlListening
    fifo: ActiveFifo | None
    notifying: Notifying
    paused: bool
    posts: Posts
    workers: dict[int, Process]  # by slot
    zygotes: list[ZygoteProcess]
    daemons: list[Attached]
    ready_cores: dict[int, int]
    commanders: list[Conversation]
    probes: list[list[Conversation]]  # by health address
    front: dict[str, Any]  # _front.Front.take_up
    log: Text  # lines that are not written yet

    def inherited(self) -> Iterator[int]:
        """All descriptors that exec must keep."""
        yield from (self.board, self.doorbell, self.control.fd)
        yield from (one.fd for one in (*self.listeners, *self.health))
        yield from (one.fd for conversations in (self.commanders, *self.probes) for one in conversations)
        if self.fifo is not None:
            yield self.fifo.fd
        zygotes = [one.process for one in self.zygotes]
        daemons = [one.process for one in self.daemons]
        for process in (*self.workers.values(), *zygotes, *daemons):
            yield from (fd for fd in (process.output, process.tracebacks) if fd >= 0)
        yield from (one.control for one in self.zygotes)
        yield from self.front["fds"]


def write(state: State) -> int:
    """Into a memfd: its number. Raises OSError."""
    fd = os.memfd_create("wsgimaster-handover", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(state.model_dump_json().encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read(fd: int) -> State:
    """And close it. Raises StartError if it was written by a version whose state we don't understand."""
    with open(fd, "rb") as file:
        text = file.read()
    try:
        return State.model_validate_json(text)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, one["loc"])) for one in error.errors()[:3])
        raise StartError(
            f"this version can't take over from the one that runs ({where}): a restart is needed"
        ) from None
