"""A worker's serve loop without its process: the core, and what it is fed with when it is alone.

Also for benchmarks/instructions_program.py, which counts what it does.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from wsgimaster import _serve
from wsgimaster._front import board_bytes
from wsgimaster._proto import build

REQUEST, NOP, RETIRE, LISTENERS = 1, 2, 3, 7  # MESSAGE_* of _layout.pxd


def make_core(
    channel: int,
    memory: mmap.mmap,
    cores: int,
    doorbell: int,
    index: int,
    application: Callable[..., Any],
    environ: dict[str, Any],
) -> _serve.Core:
    """Core 0 of its process, which logs every request."""
    return _serve.Core(
        channel,
        memory,
        cores,
        doorbell,
        index,
        0,
        1,
        application,
        environ,
        4.0,
        buffer_size=65535,
        allow_from=(),
        forwarded_allow=(),
        log_all=True,
        log_4xx=False,
        log_5xx=False,
        complain=print,
        report=print,
    )


def message(kind: int, block: bytes = b"", number: int = 0) -> bytes:
    """What the master sends: a MessageHead of _layout.pxd (no body, a peer that isn't trusted), and the variables."""
    return struct.pack("<HHIQQqIB27x", kind, 0, len(block), number, number, -1, 0, 0) + block


def serve(
    requests: Iterable[Iterable[tuple[str, str]]], application: Callable[..., Any], environ: dict[str, Any]
) -> tuple[list[bytes], bytes]:
    """Serve requests (their variables), about 60 at most, one after the other on one core.

    environ: what every request's begins with. Returns the answers, and the scoreboard with its ring of request lines.
    """
    clients = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    doorbell = os.eventfd(0)
    with ours, theirs, mmap.mmap(-1, board_bytes(1)) as memory:
        core = make_core(theirs.fileno(), memory, 1, doorbell, 0, application, environ)
        for number, variables in enumerate(requests, start=1):
            client, served = socket.socketpair()
            with served:
                socket.send_fds(ours, [message(REQUEST, build(variables)[4:], number)], [served.fileno()])
            clients.append(client)
        ours.send(message(RETIRE))
        core.serve()
        board = memory[:]
        del core  # it holds the mapping
    os.close(doorbell)
    answers = []
    for client in clients:
        with client:
            answers.append(client.recv(65536))
    return answers, board
