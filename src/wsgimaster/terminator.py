"""The terminator: TLS on one side, what is in it on the other.

Theory of operation

A process of its own, so that handshakes (up to a millisecond of CPU each) delay nobody. It knows nothing of HTTP: the
master accepts, keeps one end of a socket pair as if that were the client, and sends us the other end together with
the client (tls.py):

    client  ~ TLS ~  terminator  - socket pair -  master, or the core that answers

What one side sends is passed to the other at once. While a side doesn't take it, nothing more is read from the other:
at most one piece per direction waits here. Time limits are the master's, who closes his end; we only see to clients who
don't take what is left for them, since he can't see that.

An end has two halves, as in TCP. A client's (close_notify, or FIN) becomes a SHUT_WR for the server, which may go on
answering. The server's becomes close_notify and SHUT_WR for the client. If the server has only half-closed, it would
linger (_front.pyx: a reset would destroy its answer), and we linger in its place.

Several processes take connections from one socket, each when it has time. When the line to the master ends, no more are
taken, and those that are open are served to their end, which is the process's, too. So it lives with the certificates
with which it was started; a reload starts others.

A plain loop around epoll: two descriptors per connection and no callbacks, futures or timers of each make it cheaper
than an event loop would, and there is nothing else to wait for.

    python -P -m wsgimaster.terminator PLAN

PLAN is JSON, see tls.plan; the certificates come over the line.

Runs in: a process of its own.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from enum import Enum
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Any

from wsgimaster._process import hide
from wsgimaster.certificates import Certificate, Files, context

RECORD = 16384  # bytes: the largest TLS record (RFC 8446 5.1), so that a read leaves nothing behind in OpenSSL
RECORDS = 8  # per turn of a client
PIECE = 65536  # bytes per read from the server
BATCH = 16  # connections that are taken at once
LINGER = 30.0  # seconds for a client to end after we have
HURRIED_LINGER = 2.0  # the same, of one who is waited for before this process can go
STRANGE = 5.0  # seconds for one whom an answer waits for, and who doesn't shake hands
MOST_DESCRIPTORS = 253  # in one message: SCM_MAX_FD, unix(7)
HIDDEN, READY = b"h", b"r"  # what we say on the line (tls.py)
TCP_NOTSENT_LOWAT = (
    25  # tcp(7); the socket module doesn't have it. So a slow client's buffer is refilled in small steps
)
LOOK = 1.0  # seconds between looks at clients that don't take anything
TELL = 60.0  # seconds between lines about failed handshakes
SPARE = 64  # descriptors for everything but connections
PROXY_LINE, LONGEST_LINE = b"PROXY ", 107  # bytes; version 1 of the PROXY protocol
PROXY_BLOCK, BLOCK_HEAD = b"\r\n\r\n\0\r\nQUIT\n", 16  # version 2: the signature, two bytes, and the rest's length
NOTHING = memoryview(b"")
PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This address speaks HTTPS: begin the URL with https://\n"
)


def proxy_header(said: bytes) -> int | None:
    """How many of these first bytes are a PROXY header, which comes before the handshake; None: all of them, and more
    is to come. What is wrong with it is found by who reads it (_http1.pyx)."""
    if said.startswith(PROXY_BLOCK):
        size = BLOCK_HEAD + int.from_bytes(said[BLOCK_HEAD - 2 : BLOCK_HEAD], "big")
        return size if len(said) >= max(size, BLOCK_HEAD) else None
    if said.startswith(PROXY_LINE):
        end = said.find(b"\r\n", 0, LONGEST_LINE)
        return end + 2 if end >= 0 else LONGEST_LINE if len(said) >= LONGEST_LINE else None
    return None if PROXY_BLOCK.startswith(said) or PROXY_LINE.startswith(said) else 0


def receive_certificates(line: socket.socket, files: dict[str, list[Any]]) -> dict[int, ssl.SSLContext]:
    """By the number of the listener. They come when the application's processes, which run as the same user, can't look
    into this one any more."""
    hide()
    said = b""
    descriptors: list[int] = []
    with contextlib.suppress(OSError):
        line.send(HIDDEN)
        said, descriptors, _, _ = socket.recv_fds(line, 1, MOST_DESCRIPTORS)
    if not said:  # told to leave
        sys.exit(0)
    left = iter(descriptors)
    found = {}
    for listener, words in files.items():
        one = Files(*words)
        certificate = Certificate(one, next(left), next(left), next(left) if one.ca else -1)
        found[int(listener)] = context(certificate)
        certificate.close()
    return found


def is_closed(end: int) -> bool:
    """Whether the other end of this socket pair is closed, and not only for writing."""
    poll = select.poll()
    poll.register(end, 0)  # POLLHUP is reported all the same
    return bool(poll.poll(0))


class Stage(Enum):
    GREETING = 1  # a PROXY header may come first
    HANDSHAKE = 2
    OPEN = 3
    LINGERING = 4  # the client has all that we had for it; TLS is over


class Connection:
    """client: as the master accepted it; server: our end of the socket pair; both non-blocking."""

    def __init__(self, owner: "Terminator", tls: ssl.SSLContext, client: socket.socket, server: socket.socket) -> None:
        self.owner, self.tls, self.client, self.server = owner, tls, client, server
        self.stage = Stage.GREETING
        self.greeting = b""  # as much of a PROXY header as has come
        self.for_client = self.for_server = NOTHING
        self.client_ended = self.server_ended = False  # nothing more comes from there
        self.answering = False  # OpenSSL has something of its own to write: a handshake's, a change of keys'
        self.since = 0.0  # LINGERING: when that began; or when the client last took something
        self.descriptors = client.fileno(), server.fileno()
        self.masks = [0, 0]  # what epoll waits for, of each
        self.watch()

    def watch(self) -> None:
        """Wait for what can go on, and for nothing else: mere ends would be told again and again."""
        slow = self.answering or (self.stage is Stage.OPEN and bool(self.for_client))
        listening = not self.client_ended and not self.for_server
        client = (EPOLLIN if listening else 0) | (EPOLLOUT if slow else 0)
        listening = not self.server_ended and not self.for_client
        server = (EPOLLIN if listening else 0) | (EPOLLOUT if self.for_server else 0)
        for fd, before, mask in zip(self.descriptors, self.masks, (client, server), strict=True):
            if mask == before:
                continue
            if not before:
                self.owner.epoll.register(fd, mask)
            elif not mask:
                self.owner.epoll.unregister(fd)
            else:
                self.owner.epoll.modify(fd, mask)
        self.masks = [client, server]
        if self.for_client or self.answering or self.stage is Stage.LINGERING:
            self.owner.slow.add(self)
        else:
            self.owner.slow.discard(self)

    def go_on(self, fd: int, events: int) -> None:
        """One of its descriptors is ready."""
        try:
            if fd == self.descriptors[1]:
                if self.for_server and events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
                    self.to_server()
                if events & (EPOLLIN | EPOLLHUP | EPOLLERR) and not self.for_client:
                    self.from_server()
            else:
                before, self.answering = self.answering, False
                if not self.client_ended and not self.for_server:
                    self.from_client()
                if self.for_client and self.stage is Stage.OPEN:
                    self.to_client()
                if self.answering and not before:
                    self.since = time.monotonic()
            if self.server_ended and not self.for_client and self.stage is not Stage.LINGERING:
                self.finish()
        except OSError:  # the client's, OpenSSL's among them
            self.owner.end(self)
        else:
            self.watch()

    # ---- from the client ----

    def from_client(self) -> None:
        try:
            match self.stage:
                case Stage.GREETING:
                    self.greet()
                case Stage.HANDSHAKE:
                    self.shake_hands()
                case Stage.OPEN:
                    self.pass_on()
                case Stage.LINGERING:
                    for _ in range(RECORDS):
                        if not self.client.recv(PIECE):
                            raise ConnectionResetError
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            self.answering = True

    def greet(self) -> None:
        said = self.greeting + self.client.recv(PIECE, socket.MSG_PEEK)
        if said == self.greeting:
            raise ConnectionResetError
        size = proxy_header(said)
        if size != 0:
            self.greeting += self.client.recv((len(said) if size is None else size) - len(self.greeting))
            if size is None:
                return
            self.for_server = memoryview(self.greeting)
            self.to_server()
        self.stage = Stage.HANDSHAKE
        self.client = self.tls.wrap_socket(self.client, server_side=True, do_handshake_on_connect=False)
        self.shake_hands()

    def shake_hands(self) -> None:
        assert isinstance(self.client, ssl.SSLSocket)
        try:
            self.client.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            reason = error.reason or "UNKNOWN"
            self.owner.failed[reason.replace("_", " ").lower()] += 1
            if reason != "HTTP_REQUEST":
                raise
            os.write(self.client.fileno(), PLAIN_HTTP)
            self.server.shutdown(socket.SHUT_RDWR)
            self.server_ended = True
            self.linger()
            return
        self.stage = Stage.OPEN
        with contextlib.suppress(OSError):  # a unix socket
            self.client.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, PIECE)
        self.pass_on()

    def pass_on(self) -> None:
        for _ in range(RECORDS):
            data = self.client.recv(RECORD)
            if not data:
                self.client_ended = True
            self.for_server = memoryview(data)
            self.to_server()
            if len(data) < RECORD or self.for_server:
                return

    def to_server(self) -> None:
        """What the client has sent, and that it has ended. A server that has closed its end takes anything; what it
        said before is read on."""
        try:
            if self.for_server:
                self.for_server = self.for_server[self.server.send(self.for_server) :]
            if self.client_ended and not self.for_server:
                self.server.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self.for_server = NOTHING

    # ---- from the server ----

    def from_server(self) -> None:
        try:
            data = self.server.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:  # it didn't read all that we had sent
            data = b""
        if not data:
            self.server_ended = True
            return
        self.for_client, self.since = memoryview(data), time.monotonic()
        if self.stage is Stage.OPEN:
            self.to_client()

    def to_client(self) -> None:
        with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            while self.for_client:
                self.for_client = self.for_client[self.client.send(self.for_client[:RECORD]) :]
                self.since = time.monotonic()

    def finish(self) -> None:
        """The server has ended, and the client has all of it. Raises ConnectionError if nothing is left to do."""
        if self.stage is not Stage.OPEN:
            raise ConnectionAbortedError
        assert isinstance(self.client, ssl.SSLSocket)
        try:
            self.client.unwrap()
        except ssl.SSLWantWriteError:
            self.answering, self.since = True, time.monotonic()
            return
        except OSError:  # close_notify is sent; the client's, which may come behind other data, isn't waited for
            pass
        self.linger()
        if self.client_ended or is_closed(self.descriptors[1]):
            raise ConnectionAbortedError

    def linger(self) -> None:
        """The client has all that is for it; what it still sends is read, and thrown away."""
        self.client = socket.socket(fileno=self.client.detach())
        self.client.setblocking(False)
        self.client.shutdown(socket.SHUT_WR)
        self.stage, self.since, self.for_server = Stage.LINGERING, time.monotonic(), NOTHING


class Terminator:
    """plan: see tls.plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.post, self.line = socket.socket(fileno=plan["post"]), socket.socket(fileno=plan["line"])
        self.patience = float(plan["patience"])
        self.tls = receive_certificates(self.line, plan["files"])
        self.epoll = select.epoll()
        self.epoll.register(self.line, EPOLLIN)
        self.epoll.register(self.post, EPOLLIN)
        self.connections: dict[int, Connection] = {}  # by either descriptor
        self.slow: set[Connection] = set()  # something is left for the client, or it hasn't ended
        self.most = 2 * max(1, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE) // 2)  # descriptors
        self.open = self.listens = True  # more may come; we want more
        self.failed: Counter[str] = Counter()  # handshakes, by OpenSSL's reason
        self.told_at = time.monotonic() - TELL

    def run(self) -> None:
        """Until we are told to leave and all connections have ended."""
        with contextlib.suppress(OSError):  # told to leave already
            self.line.send(READY)
        look_at = 0.0
        while self.open or self.connections:
            for fd, events in self.epoll.poll(LOOK if self.slow or self.failed else None):
                if fd in self.connections:
                    self.connections[fd].go_on(fd, events)
                elif fd == self.line.fileno():
                    self.leave()
                elif self.open:
                    self.take()
            now = time.monotonic()
            if now >= look_at:
                look_at = now + LOOK
                self.look(now)

    def take(self) -> None:
        """New connections."""
        for _ in range(BATCH):
            if len(self.connections) >= self.most:
                break
            try:
                data, descriptors, _, _ = socket.recv_fds(self.post, 4, 2)
            except BlockingIOError:
                break
            ends = [socket.socket(fileno=fd) for fd in descriptors]
            for end in ends:
                end.setblocking(False)
            if len(ends) == 2:  # else there was no descriptor for the other one
                connection = Connection(self, self.tls[struct.unpack("<i", data)[0]], *ends)
                self.connections.update(dict.fromkeys(connection.descriptors, connection))
        self.listen()

    def leave(self) -> None:
        """Nothing is said there: it is the end of the line."""
        self.open = False
        self.epoll.unregister(self.line)
        if self.listens:  # others hold the same post, so closing it wouldn't do that
            self.epoll.unregister(self.post)
        self.line.close()
        self.post.close()

    def listen(self) -> None:
        """Take no more than there are descriptors for: another process may have some, and who waits, waits."""
        wanted = len(self.connections) < self.most
        if self.open and wanted and not self.listens:
            self.epoll.register(self.post, EPOLLIN)
        elif self.open and self.listens and not wanted:
            self.epoll.unregister(self.post)
        self.listens = wanted

    def end(self, connection: Connection) -> None:
        self.slow.discard(connection)
        for fd in connection.descriptors:
            del self.connections[fd]
        connection.client.close()
        connection.server.close()
        self.listen()

    def look(self, now: float) -> None:
        for one in [one for one in self.slow if now - one.since > self.limit(one)]:
            self.end(one)
        if self.failed and now - self.told_at >= TELL:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.failed.most_common(5))
            with contextlib.suppress(OSError):  # the master is gone
                sys.stderr.write(f"TLS handshakes failed: {reasons}\n")
                sys.stderr.flush()
            self.failed.clear()
            self.told_at = now

    def limit(self, one: Connection) -> float:
        """How long it may take nothing, or go on after the end, in seconds."""
        if one.stage is Stage.LINGERING:
            return LINGER if self.open else HURRIED_LINGER
        return self.patience if one.stage is Stage.OPEN else min(self.patience, STRANGE)


def main(plan: dict[str, Any]) -> None:
    # What a terminal, or systemd, sends to all of us is meant for the master, who ends us when all have been served.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    Terminator(plan).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
