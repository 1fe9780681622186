"""Clients that speak uwsgi and HTTP byte by byte: a test can split, stop, and see how a connection ends."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")

Address = str | tuple[str, int]  # a path, "@" and an abstract name, or host and port
Text = str | bytes  # str stands for latin-1
Variables = Mapping[Text, Text] | Iterable[tuple[Text, Text]]

TIMEOUT = 60.0  # ends a hang


class End(StrEnum):
    OPEN = "open"
    EOF = "eof"
    RESET = "reset"


@dataclass(frozen=True)
class Answer:
    """What came back until the connection ended, and how it ended."""

    raw: bytes
    end: End

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        """The bytes after the head as they came; see `text` for HTTP/1.1's chunks."""
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        """The status code; 0 when no head came."""
        words = self.raw.split(b" ", 2)
        return int(words[1]) if self.raw.startswith(b"HTTP/") and len(words) > 1 else 0

    @property
    def status_line(self) -> str:
        return self.head.split(b"\r\n")[0].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def content(self) -> bytes:
        """The body without HTTP/1.1's chunk framing, if there is any; a missing last chunk is an error."""
        if self.header("Transfer-Encoding") != "chunked":
            return self.body
        rest, parts = self.body, []
        while True:
            size, found, rest = rest.partition(b"\r\n")
            assert found, "the chunked body was cut"
            length = int(size, 16)
            if length == 0:
                return b"".join(parts)
            assert len(rest) >= length + 2, "the chunked body was cut"
            parts.append(rest[:length])
            rest = rest[length + 2 :]

    @property
    def text(self) -> str:
        return self.content.decode("utf-8")


def end_of_chunks(body: bytes) -> int:
    """Where a chunked body without trailers ends; -1: later."""
    at = 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end], 16)
        at = end + 2 + size + 2
        if size == 0:
            return at if len(body) >= at else -1
    return -1


def to_bytes(text: Text) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def block(variables: Variables) -> bytes:
    """The variable block: each name and value with its length in front."""
    pairs = variables.items() if isinstance(variables, Mapping) else variables
    parts = []
    for name, value in pairs:
        for item in (to_bytes(name), to_bytes(value)):
            parts += [struct.pack("<H", len(item)), item]
    return b"".join(parts)


def packet(variables: Variables, modifier1: int = 0, modifier2: int = 0, size: int | None = None) -> bytes:
    """Header and variable block. `size` lies about the block's length."""
    data = block(variables)
    return struct.pack("<BHB", modifier1, len(data) if size is None else size, modifier2) + data


def cgi(path: str = "/", method: str = "GET", body: bytes = b"", **others: str) -> dict[Text, Text]:
    """The variables that nginx's stock uwsgi_params send; `others` are added or replace them."""
    path_info, _, query = path.partition("?")
    return {
        "QUERY_STRING": query,
        "REQUEST_METHOD": method,
        "CONTENT_TYPE": "",
        "CONTENT_LENGTH": str(len(body)) if body else "",
        "REQUEST_URI": path,
        "PATH_INFO": path_info,
        "DOCUMENT_ROOT": "/usr/share/nginx/html",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_SCHEME": "http",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "40000",
        "SERVER_PORT": "80",
        "SERVER_NAME": "localhost",
        "HTTP_HOST": "localhost",
        **others,
    }


class Connection:
    """One client's connection."""

    def __init__(self, address: Address, timeout: float = TIMEOUT, source: str = "") -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            if source:
                self.socket.bind((source, 0))
            self.socket.connect(kernel_name(address))
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> bool:
        """Send all of it. False: the peer had closed before the last byte (it may have answered already)."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def receive(self, size: int = 65536) -> bytes:
        """What one read gives; empty at the end."""
        return self.socket.recv(size)

    def receive_until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            piece = self.receive()
            assert piece, f"the connection ended before {mark!r}: {data!r}"
            data += piece
        return data

    def answer(self, begun: bytes = b"") -> Answer:
        """Read to the end; `begun` is what the test has read already."""
        parts = [begun]
        try:
            while piece := self.receive(1 << 20):
                parts.append(piece)
        except (ConnectionResetError, BrokenPipeError):
            return Answer(b"".join(parts), End.RESET)
        return Answer(b"".join(parts), End.EOF)

    def next_answer(self, begun: bytes = b"", *, bodyless: bool = False) -> tuple[Answer, bytes]:
        """One answer of a connection that goes on, by its length or chunks; and what came after it."""
        data = begun
        while b"\r\n\r\n" not in data:
            piece = self.receive()
            assert piece, f"the connection ended within a head: {data!r}"
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        answer = Answer(head + b"\r\n\r\n", End.OPEN)
        if bodyless or answer.status in (204, 304):
            return answer, rest
        length = answer.header("Content-Length")
        chunked = answer.header("Transfer-Encoding") == "chunked"
        assert chunked or length is not None, f"nothing says how long the body is: {head!r}"
        while (end := end_of_chunks(rest) if chunked else int(length or 0)) < 0 or len(rest) < end:
            piece = self.receive(1 << 20)
            assert piece, f"the connection ended within a body: {head!r} {rest[-100:]!r}"
            rest += piece
        return Answer(answer.raw + rest[:end], End.OPEN), rest[end:]

    def reset(self) -> None:
        """Go away without a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.socket.close()


def kernel_name(address: Address) -> Address:
    if isinstance(address, str) and address.startswith("@"):
        return "\0" + address[1:]
    return address


def exchange(address: Address, *pieces: bytes) -> Answer:
    """Send the pieces, each in a write of its own, and read to the end."""
    with Connection(address) as connection:
        for piece in pieces:
            if not connection.send(piece):
                break
        return connection.answer()


def uwsgi(address: Address, path: str = "/", method: str = "GET", body: bytes = b"", **others: str) -> Answer:
    """One request as nginx would send it."""
    return exchange(address, packet(cgi(path, method, body, **others)) + body)


def http(
    address: Address,
    path: str = "/",
    method: str = "GET",
    body: bytes = b"",
    headers: Iterable[tuple[Text, Text]] = (),
    version: str = "1.1",
) -> Answer:
    """One HTTP request on a connection of its own."""
    given = [(to_bytes(name), to_bytes(value)) for name, value in headers]
    names = {name.lower() for name, _ in given}
    lines = [to_bytes(f"{method} {path} HTTP/{version}")]
    if b"host" not in names:
        lines.append(b"Host: localhost")
    if b"connection" not in names:
        lines.append(b"Connection: close")
    if (body or method in ("POST", "PUT", "PATCH")) and not names & {b"content-length", b"transfer-encoding"}:
        lines.append(b"Content-Length: %d" % len(body))
    lines += [name + b": " + value for name, value in given]
    return exchange(address, b"\r\n".join(lines) + b"\r\n\r\n", *([body] if body else []))


def ping(address: Address) -> bytes:
    return exchange(address, packet({}, modifier1=100)).raw


def together(count: int, call: Callable[[int], T]) -> list[T]:
    """Call it that often at the same time, each in a thread of its own: the results in order."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))
