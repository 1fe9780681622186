"""An HTTP/1 request head becomes the packet that nginx would have sent for it.

One request per connection, bodies by Content-Length; everything else gets a clear refusal. Pure but for the
addresses, asked from the socket, and this machine's name.

Runs in: the master.
"""

import os
import socket
from urllib.parse import unquote_to_bytes

import httptools

from wsgimaster._front import HeadError
from wsgimaster._proto import build

# RFC 9110 5.3: values of one name are joined with a comma; RFC 6265 5.4: cookies with a semicolon.
JOINERS = {b"cookie": b"; "}
# A request's Proxy header would become HTTP_PROXY, which libraries obey for requests of their own (httpoxy).
NEVER_PASSED = {b"proxy"}


class _Head:
    """httptools' callbacks collect here."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[bytes, list[bytes]] = {}
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.setdefault(name.lower(), []).append(value)

    def on_headers_complete(self) -> None:
        self.complete = True


def read_head(head: bytes, fd: int, limit: int) -> tuple[bytes, int, bool]:
    """The packet for a complete head, the body's length in bytes (-1: none announced), and whether 100 is expected.

    fd: the client's socket. limit: largest variable block in bytes. Raises HeadError with the status to answer.
    """
    found = _Head()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade as error:
        raise HeadError(501, "it asks for another protocol (Upgrade or CONNECT)") from error
    except httptools.HttpParserError as error:
        raise HeadError(400, f"its head is no HTTP: {error}") from error
    if not found.complete:
        raise HeadError(400, "its head is no HTTP: it ends early")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise HeadError(505, f"HTTP/{version} is not spoken here")
    length = _check(found.headers, version)
    try:
        packet = build(_variables(parser.get_method(), version, found, fd))
    except ValueError as error:
        raise HeadError(431, f"its head is too large: {error}") from error
    if len(packet) - 4 > limit:
        raise HeadError(431, f"its head makes {len(packet) - 4} bytes of variables, buffer-size allows {limit}")
    expects = version == "1.1" and [value.lower() for value in found.headers.get(b"expect", ())] == [b"100-continue"]
    return packet, length, expects


def _check(headers: dict[bytes, list[bytes]], version: str) -> int:
    """RFC 9112 3.2, 6.1, 6.3: one Host, and one unambiguous length."""
    if version == "1.1" and len(headers.get(b"host", ())) != 1:
        raise HeadError(400, "it needs exactly one Host header")
    if b"transfer-encoding" in headers:
        raise HeadError(411, "its body is chunked; a Content-Length is needed")
    if b"upgrade" in headers and b"upgrade" in b",".join(headers.get(b"connection", ())).lower():
        raise HeadError(501, "it asks for another protocol (Upgrade)")
    lengths = headers.get(b"content-length", [])
    if not lengths:
        return -1
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise HeadError(400, "its Content-Length is not one number")
    return int(lengths[0])


def _path_and_query(target: bytes, method: bytes) -> tuple[bytes, bytes]:
    """RFC 9112 3.2: origin form, absolute form, or the asterisk of OPTIONS."""
    lowered = target[:8].lower()
    if lowered.startswith((b"http://", b"https://")):
        rest = target.partition(b"://")[2]
        slash = rest.find(b"/")
        target = rest[slash:] if slash >= 0 else b"/"
    elif not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        raise HeadError(400, f"its target {target[:100]!r} is no path")
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return unquote_to_bytes(path), query


def _variables(method: bytes, version: str, found: _Head, fd: int) -> list[tuple[bytes | str, bytes | str]]:
    """What uWSGI's http-socket produces, in its order."""
    path, query = _path_and_query(found.target, method)
    address, port, server_port = _names(fd)
    variables: list[tuple[bytes | str, bytes | str]] = [
        ("REQUEST_METHOD", method),
        ("REQUEST_URI", found.target),
        ("PATH_INFO", path),
        ("QUERY_STRING", query),
        ("SERVER_PROTOCOL", f"HTTP/{version}"),
        ("SCRIPT_NAME", ""),
        ("SERVER_NAME", os.uname().nodename),
        ("SERVER_PORT", server_port),
        ("REMOTE_ADDR", address),
        ("REMOTE_PORT", port),
    ]
    for name, values in found.headers.items():
        # An underscore would let a client overwrite what a dash means: X_Forwarded_For.
        if b"_" in name or name in NEVER_PASSED:
            continue
        key = name.upper().replace(b"-", b"_")
        if key not in (b"CONTENT_TYPE", b"CONTENT_LENGTH"):
            key = b"HTTP_" + key
        variables.append((key, JOINERS.get(name, b", ").join(values)))
    return variables


def _names(fd: int) -> tuple[str, str, str]:
    """The client's address and port, and our port; empty, empty and 80 on a unix socket."""
    client = socket.socket(fileno=fd)
    try:
        if client.family == socket.AF_UNIX:
            return "", "", "80"
        peer, own = client.getpeername(), client.getsockname()
        return str(peer[0]).removeprefix("::ffff:"), str(peer[1]), str(own[1])
    except OSError as error:  # gone already
        raise HeadError(400, "its client has left") from error
    finally:
        client.detach()
