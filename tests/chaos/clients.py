"""Clients that never try twice: each request is one connection, one send, one answer, and one Reply that stays.

Times are seconds of the monotonic clock. `sent` is taken before the connect, so whatever a client waits for counts.
"""

from __future__ import annotations

import re
import selectors
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

from bench import now
from support.client import Address, Answer, Connection, End, cgi, kernel_name, packet

ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Reply:
    """What one client saw. `error` says why there is no answer at all."""

    id: str
    sent: float
    ended: float
    answer: Answer | None
    error: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.sent

    @property
    def status(self) -> int:
        """0 when nothing came, or nothing that has a status."""
        return self.answer.status if self.answer else 0

    @property
    def whole(self) -> bool:
        """A complete answer, as long as it says, and with the end of the connection behind it."""
        if self.answer is None or self.answer.end is not End.EOF or not self.answer.status:
            return False
        return self.answer.header("Content-Length") == str(len(self.answer.body))

    @property
    def served(self) -> bool:
        """The application's answer to this very request."""
        return self.status == 200 and self.whole and self.answer.body == self.id.encode()

    @property
    def request_id(self) -> str | None:
        """A well-formed X-Request-Id."""
        value = self.answer.header("X-Request-Id") if self.answer else None
        return value if value and ID.fullmatch(value) else None

    @property
    def closed(self) -> bool:
        """The connection ended without a byte, from which a web server makes a 502."""
        return self.answer is not None and not self.status

    @property
    def outcome(self) -> str:
        """For a count by kinds."""
        return self.error or (str(self.status) if self.status else "closed without an answer")


def ask(address: Address, path: str, name: str, timeout: float = 60, via_http: bool = False) -> Reply:
    """One request, with `id=name` added to its query."""
    path += ("&" if "?" in path else "?") + f"id={name}"
    data = http_request(path) if via_http else packet(cgi(path))
    sent = now()
    try:
        with Connection(address, timeout) as connection:
            connection.send(data)
            answer = connection.answer()
    except OSError as error:
        return Reply(name, sent, now(), None, error_name(error))
    return Reply(name, sent, now(), answer)


def http_request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def error_name(error: OSError) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


class Load:
    """Clients in a closed loop, each in a thread, from the beginning of the `with` block until `stop`."""

    def __init__(
        self, address: Address, clients: int, path: str = "/work?ms=10", timeout: float = 30, first: int = 0
    ) -> None:
        """first: the number of the first client, in its requests' names."""
        self.address, self.path, self.timeout = address, path, timeout
        self.replies: list[Reply] = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(first + number,)) for number in range(clients)]

    def _run(self, client: int) -> None:
        for number in count():
            if self.stopping.is_set():
                return
            reply = ask(self.address, self.path, f"{client}.{number}", self.timeout)
            self.replies.append(reply)
            if reply.status == 0:
                self.stopping.wait(0.01)  # a refused client that asks again at once would take the machine

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[Reply]:
        """Let every client finish its request: all replies."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.replies


def burst(address: Address, requests: Iterable[tuple[str, bytes]], timeout: float = 30) -> list[Reply]:
    """All of them at once: connect first, then send to all, then read. `ended` is when the answer was complete.

    One thread, and nothing is interpreted before the last answer is in, so the client's own time stays small.
    """
    replies: list[Reply] = []
    open_now: list[tuple[str, bytes, Connection]] = []
    for name, data in requests:
        before = now()
        try:
            open_now.append((name, data, connect_now(address)))
        except OSError as error:
            replies.append(Reply(name, before, now(), None, error_name(error)))
    raw: dict[str, tuple[float, float, bytes, End]] = {}
    with selectors.DefaultSelector() as selector:
        sent: dict[str, float] = {}
        for name, data, connection in open_now:
            connection.socket.setblocking(False)
            sent[name] = now()
            connection.send(data)
            selector.register(connection.socket, selectors.EVENT_READ, (name, connection, []))
        deadline = now() + timeout
        while selector.get_map() and now() < deadline:
            for key, _ in selector.select(0.5):
                name, connection, parts = key.data
                try:
                    piece = connection.receive()
                    end = End.EOF
                except OSError:
                    piece, end = b"", End.RESET
                if piece:
                    parts.append(piece)
                    continue
                raw[name] = (sent[name], now(), b"".join(parts), end)
                selector.unregister(connection.socket)
    for name, _, connection in open_now:
        connection.close()
        if name in raw:
            begun, ended, data, end = raw[name]
            replies.append(Reply(name, begun, ended, Answer(data, end)))
        else:
            replies.append(Reply(name, sent[name], now(), None, "no answer in time"))
    return replies


def connect_now(address: Address, timeout: float = 10) -> Connection:
    """Without waiting in a full backlog: a unix socket's connect would wait for ever."""
    connection = Connection.__new__(Connection)
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    connection.socket = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            connection.socket.setblocking(False)
        else:
            connection.socket.settimeout(timeout)
        connection.socket.connect(kernel_name(address))
    except BaseException:
        connection.socket.close()
        raise
    return connection


def tally(replies: Iterable[Reply], key: Callable[[Reply], str] = lambda reply: reply.outcome) -> str:
    """How many of each kind: "200: 90, 502: 10"."""
    counts: dict[str, int] = {}
    for reply in replies:
        counts[key(reply)] = counts.get(key(reply), 0) + 1
    return ", ".join(f"{kind}: {number}" for kind, number in sorted(counts.items())) or "none"


def latencies_ms(replies: Iterable[Reply]) -> list[float]:
    return sorted(reply.seconds * 1000 for reply in replies)
