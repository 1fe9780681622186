"""What master and zygote say to each other: one fixed struct each, one SEQPACKET message each.

Runs in: master and zygote. (Requests travel on the channels of the cores: _layout.pxd.)
"""

import struct
from enum import IntEnum
from typing import NamedTuple

VERSION = 3
_FORMAT = struct.Struct("<BBiiiid?")  # version, then the fields of Message


class Kind(IntEnum):
    # master to zygote
    # slot, number, proof (it is the first of its generation); along come the channels of its cores and the pipes for
    # its output and its tracebacks
    FORK = 1
    # zygote to master
    LOADED = 2  # ready to fork; seconds: how long loading took; error: 0 with the application, 1 without
    FORKED = 3  # slot, pid
    FORK_FAILED = 4  # slot, error: an errno


class Message(NamedTuple):
    kind: Kind
    slot: int = 0
    number: int = 0  # of the worker, 1 to `processes`
    pid: int = 0
    error: int = 0
    seconds: float = 0.0
    proof: bool = False


SIZE = _FORMAT.size


def encode(message: Message) -> bytes:
    return _FORMAT.pack(VERSION, *message)


def decode(data: bytes) -> Message:
    """Raises ValueError for anything that isn't a message of this version."""
    if len(data) != SIZE or data[0] != VERSION:
        raise ValueError(f"{data[:16]!r} is no message of version {VERSION}")
    _, kind, *fields = _FORMAT.unpack(data)
    return Message(Kind(kind), *fields)
