"""What an HTTP/1 request means, byte by byte: which heads are served and how, which are refused, and chunked bodies.

The numbers of sections are those of RFC 9112.
"""

from __future__ import annotations

import pytest
from support import http_fuzz

from wsgimaster._http1 import Dechunker, Head, HeadError, read_request


def head_of(*fields: bytes, line: bytes = b"POST /a HTTP/1.1", body: bytes = b"") -> bytes:
    return b"\r\n".join([line, *fields, b"", b""]) + body


def read(data: bytes, **more: object) -> Head:
    head = read_request(data, **more)  # type: ignore[arg-type]
    assert head is not None, "the head is incomplete"
    return head


HOST = b"Host: a"
CHUNKED = b"Transfer-Encoding: chunked"
LONG = b"x" * 8192

REFUSED = {
    # 6.3: how long the body is
    "a length and chunks": (head_of(HOST, b"Content-Length: 3", CHUNKED), 400, "Content-Length and Transfer-Encoding"),
    "two lengths": (head_of(HOST, b"Content-Length: 3", b"Content-Length: 4"), 400, "more than one Content-Length"),
    "one length twice": (head_of(HOST, b"Content-Length: 3", b"content-length: 3"), 400, "more than one"),
    "a list of lengths": (head_of(HOST, b"Content-Length: 5, 5"), 400, "no number"),
    "a signed length": (head_of(HOST, b"Content-Length: +5"), 400, "no number"),
    "a negative length": (head_of(HOST, b"Content-Length: -5"), 400, "no number"),
    "a hexadecimal length": (head_of(HOST, b"Content-Length: 0x5"), 400, "no number"),
    "an underscore in a length": (head_of(HOST, b"Content-Length: 1_0"), 400, "no number"),
    "no length": (head_of(HOST, b"Content-Length:"), 400, "no number"),
    "a length beyond 18 digits": (head_of(HOST, b"Content-Length: 1000000000000000000"), 400, "18 digits"),
    "a vertical tab before a length": (head_of(HOST, b"Content-Length:\x0b5"), 400, "control character"),
    "an unknown encoding": (head_of(HOST, b"Transfer-Encoding: xchunked"), 501, "isn't known"),
    "an encoding that we don't undo": (head_of(HOST, b"Transfer-Encoding: gzip, chunked"), 400, "something else"),
    "chunked twice": (head_of(HOST, b"Transfer-Encoding: chunked, chunked"), 400, "something else"),
    "chunked in two fields": (head_of(HOST, CHUNKED, CHUNKED), 400, "more than one Transfer-Encoding"),
    "chunked, and then not": (head_of(HOST, b"Transfer-Encoding: chunked, identity"), 400, "something else"),
    "identity": (head_of(HOST, b"Transfer-Encoding: identity"), 400, "something else"),
    "no encoding": (head_of(HOST, b"Transfer-Encoding:"), 400, "empty"),
    "a vertical tab before chunked": (head_of(HOST, b"Transfer-Encoding: \x0bchunked"), 400, "control character"),
    "a quoted encoding": (head_of(HOST, b'Transfer-Encoding: "chunked"'), 400, "something else"),
    "chunks in HTTP/1.0": (head_of(HOST, CHUNKED, line=b"POST / HTTP/1.0"), 400, "HTTP/1.0"),
    # 5: fields
    "a space before the colon": (head_of(HOST, b"X-A : v"), 400, "no token"),
    "a tab before the colon": (head_of(HOST, b"X-A\t: v"), 400, "no token"),
    "a space in a name": (head_of(HOST, b"X A: v"), 400, "no token"),
    "a name beyond ASCII": (head_of(HOST, b"X-\xe9: v"), 400, "no token"),
    "an empty name": (head_of(HOST, b": v"), 400, "no token"),
    "no colon": (head_of(HOST, b"nonsense"), 400, "no colon"),
    "a folded line": (head_of(HOST, b"X-A: v", b" w"), 400, "folding"),
    "a line folded with a tab": (head_of(HOST, b"X-A: v", b"\tw"), 400, "folding"),
    "a space before the first field": (head_of(b" Host: a"), 400, "folding"),
    "NUL in a value": (head_of(HOST, b"X-A: a\0b"), 400, "control character"),
    "DEL in a value": (head_of(HOST, b"X-A: a\x7fb"), 400, "control character"),
    "CR in a value": (head_of(HOST, b"X-A: a\rb"), 400, "control character"),
    "101 fields": (head_of(HOST, *[b"X-A: v"] * 100), 431, "100 fields"),
    # 2.2, 3: lines
    "LF alone": (b"GET / HTTP/1.1\nHost: a\n\n", 400, "without CR"),
    "LF alone after a field": (b"GET / HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n", 400, "without CR"),
    "LF alone at the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, "without CR"),
    "five empty lines before it": (b"\r\n" * 5 + head_of(HOST), 400, "empty lines"),
    "two spaces": (head_of(HOST, line=b"GET  / HTTP/1.1"), 400, "target is empty"),
    "a space in the target": (head_of(HOST, line=b"GET /a b HTTP/1.1"), 400, "version"),
    "a space after the version": (head_of(HOST, line=b"GET / HTTP/1.1 "), 400, "version"),
    "a tab in the line": (head_of(HOST, line=b"GET\t/ HTTP/1.1"), 400, "method"),
    "a control character in the target": (head_of(HOST, line=b"GET /\x01 HTTP/1.1"), 400, "control character"),
    "no version": (head_of(HOST, line=b"GET /"), 400, "no version"),
    "no target": (head_of(HOST, line=b"GET"), 400, "no target"),
    "HTTP/1.2": (head_of(HOST, line=b"GET / HTTP/1.2"), 505, "neither"),
    "HTTP/2.0": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "neither"),
    "HTTP/0.9": (head_of(HOST, line=b"GET / HTTP/0.9"), 505, "neither"),
    "http/1.1": (head_of(HOST, line=b"GET / http/1.1"), 400, "version"),
    "HTTP/1.10": (head_of(HOST, line=b"GET / HTTP/1.10"), 400, "version"),
    "a method that is no token": (head_of(HOST, line=b"G(T / HTTP/1.1"), 400, "method"),
    "a long method": (head_of(HOST, line=b"G" * 33 + b" / HTTP/1.1"), 400, "32 characters"),
    "a long line": (head_of(HOST, line=b"GET /" + LONG + b" HTTP/1.1"), 414, "8192 bytes"),
    "binary nonsense": (b"\0\1\2\3\r\n\r\n", 400, "begins with no method"),
    # 3.2: targets and Host
    "no Host": (head_of(), 400, "no Host"),
    "two Hosts": (head_of(HOST, b"Host: b"), 400, "more than one Host"),
    "the same Host twice": (head_of(HOST, HOST), 400, "more than one Host"),
    "two Hosts in HTTP/1.0": (head_of(HOST, HOST, line=b"GET / HTTP/1.0"), 400, "more than one Host"),
    "a path in Host": (head_of(b"Host: a/b"), 400, "Host is no host"),
    "a space in Host": (head_of(b"Host: a b"), 400, "Host is no host"),
    "a user in Host": (head_of(b"Host: u@a"), 400, "Host is no host"),
    "a relative target": (head_of(HOST, line=b"GET a HTTP/1.1"), 400, "no path"),
    "a target in another scheme": (head_of(HOST, line=b"GET ftp://a/ HTTP/1.1"), 400, "no path"),
    "a target without a host": (head_of(HOST, line=b"GET http:///x HTTP/1.1"), 400, "no host"),
    "a user in the target": (head_of(HOST, line=b"GET http://u@b/ HTTP/1.1"), 400, "no host"),
    "an asterisk for GET": (head_of(HOST, line=b"GET * HTTP/1.1"), 400, "no path"),
    "a tunnel": (head_of(HOST, line=b"CONNECT a:443 HTTP/1.1"), 501, "CONNECT"),
    "more variables than buffer-size": (head_of(HOST, b"X-A: " + b"v" * 66000), 431, "buffer-size"),
}


@pytest.mark.parametrize(("data", "status", "why"), REFUSED.values(), ids=REFUSED)
def test_refused(data: bytes, status: int, why: str) -> None:
    with pytest.raises(HeadError, match=why) as refusal:
        read_request(data)
    assert refusal.value.status == status


INCOMPLETE = {
    "nothing": b"",
    "an empty line": b"\r\n",
    "half an empty line": b"\r",
    "half a method": b"GE",
    "no empty line": b"GET / HTTP/1.1\r\nHost: a\r\n",
    "half an empty line at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\r",
}


@pytest.mark.parametrize("data", INCOMPLETE.values(), ids=INCOMPLETE)
def test_incomplete(data: bytes) -> None:
    assert read_request(data) is None


def test_every_prefix_of_a_head_is_incomplete() -> None:
    data = head_of(HOST, b"Content-Length: 3")
    assert [read_request(data[:size]) for size in range(len(data))] == [None] * len(data)


ACCEPTED: dict[str, tuple[bytes, dict[bytes, bytes | None]]] = {
    "the smallest": (
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        {b"REQUEST_METHOD": b"GET", b"PATH_INFO": b"/", b"SCRIPT_NAME": b"", b"QUERY_STRING": b"", b"HTTP_HOST": b""},
    ),
    "HTTP/1.0 without Host": (head_of(line=b"GET / HTTP/1.0"), {b"SERVER_PROTOCOL": b"HTTP/1.0", b"HTTP_HOST": None}),
    "four empty lines before it": (b"\r\n" * 4 + head_of(HOST), {b"PATH_INFO": b"/a"}),
    "a method of its own": (head_of(HOST, line=b"M-SEARCH / HTTP/1.1"), {b"REQUEST_METHOD": b"M-SEARCH"}),
    "a length among spaces and tabs": (head_of(HOST, b"Content-Length: \t 5 \t"), {b"CONTENT_LENGTH": b"5"}),
    "a type": (head_of(HOST, b"Content-Type: a/b"), {b"CONTENT_TYPE": b"a/b", b"HTTP_CONTENT_TYPE": None}),
    "a query": (head_of(HOST, line=b"GET /a?b?c#d HTTP/1.1"), {b"PATH_INFO": b"/a", b"QUERY_STRING": b"b?c"}),
    "a fragment": (head_of(HOST, line=b"GET /a#b?c HTTP/1.1"), {b"PATH_INFO": b"/a", b"QUERY_STRING": b""}),
    "percent": (
        head_of(HOST, line=b"GET /%2Fa%2fb%20%c3%A9?%20 HTTP/1.1"),
        {b"PATH_INFO": b"//a/b \xc3\xa9", b"QUERY_STRING": b"%20"},
    ),
    "percent of a percent": (head_of(HOST, line=b"GET /%2561 HTTP/1.1"), {b"PATH_INFO": b"/%61"}),
    "percent and no digits": (head_of(HOST, line=b"GET /%zz%4 HTTP/1.1"), {b"PATH_INFO": b"/%zz%4"}),
    "percent at the end": (head_of(HOST, line=b"GET /% HTTP/1.1"), {b"PATH_INFO": b"/%"}),
    "raw bytes": (head_of(HOST, line=b"GET /\xc3\xa9 HTTP/1.1"), {b"PATH_INFO": b"/\xc3\xa9"}),
    "an absolute target": (
        head_of(HOST, line=b"GET http://b:8/c?d HTTP/1.1"),
        {b"HTTP_HOST": b"b:8", b"PATH_INFO": b"/c", b"QUERY_STRING": b"d", b"REQUEST_URI": b"http://b:8/c?d"},
    ),
    "an absolute target without a path": (
        head_of(HOST, line=b"GET HTTPS://b?d HTTP/1.1"),
        {b"HTTP_HOST": b"b", b"PATH_INFO": b"/", b"QUERY_STRING": b"d"},
    ),
    "an absolute target in HTTP/1.0": (head_of(line=b"GET http://b/ HTTP/1.0"), {b"HTTP_HOST": b"b"}),
    "an asterisk": (head_of(HOST, line=b"OPTIONS * HTTP/1.1"), {b"PATH_INFO": b"*", b"REQUEST_URI": b"*"}),
    "an address as Host": (head_of(b"Host: [::1]:80"), {b"HTTP_HOST": b"[::1]:80"}),
    "repeated fields": (head_of(HOST, b"X-A: 1", b"Y: 2", b"x-a:3", b"X-a: "), {b"HTTP_X_A": b"1, 3, "}),
    "repeated cookies": (head_of(HOST, b"Cookie: a=1", b"cookie: b=2"), {b"HTTP_COOKIE": b"a=1; b=2"}),
    "any byte that is no control character": (
        head_of(HOST, b"X-A: \xff\x80 \t~"),
        {b"HTTP_X_A": b"\xff\x80 \t~"},
    ),
    "100 fields": (head_of(HOST, *[b"X-A: v"] * 99), {b"HTTP_X_A": b", ".join([b"v"] * 99)}),
    "a line of 8192 bytes": (head_of(HOST, line=b"GET /" + LONG[:8178] + b" HTTP/1.1"), {b"QUERY_STRING": b""}),
    # what a client could pretend
    "an underscore": (head_of(HOST, b"X_A: forged", b"X-A: real"), {b"HTTP_X_A": b"real"}),
    "an underscore afterwards": (head_of(HOST, b"X-A: real", b"X_A: forged"), {b"HTTP_X_A": b"real"}),
    "a length with an underscore": (head_of(HOST, b"Content_Length: 5"), {b"CONTENT_LENGTH": None}),
    "a proxy": (head_of(HOST, b"Proxy: evil"), {b"HTTP_PROXY": None}),
    "the client's address": (
        head_of(HOST, b"Remote-Addr: 1.2.3.4", b"Script-Name: /x"),
        {b"REMOTE_ADDR": b"127.0.0.1", b"REMOTE_PORT": b"1", b"SERVER_PORT": b"80", b"SCRIPT_NAME": b""},
    ),
}


@pytest.mark.parametrize(("data", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_variables(data: bytes, expected: dict[bytes, bytes | None]) -> None:
    head = read(data)
    variables = dict(head.variables)
    assert len(variables) == len(head.variables), "a variable is there twice"
    assert {name: variables.get(name) for name in expected} == expected
    assert head.size == head.taken == len(data)


def test_a_client_over_tls() -> None:
    head = read(head_of(HOST), address="192.0.2.7", port=65535, own_port=443, secure=True)
    variables = dict(head.variables)
    names = (b"REMOTE_ADDR", b"REMOTE_PORT", b"SERVER_PORT", b"HTTPS")
    assert [variables[name] for name in names] == [b"192.0.2.7", b"65535", b"443", b"on"]


KEEPS = {
    "1.1": (head_of(HOST), True),
    "1.1, close": (head_of(HOST, b"Connection: close"), False),
    "1.1, a list with close": (head_of(HOST, b"Connection: keep-alive , CLOSE"), False),
    "1.1, close in a second field": (head_of(HOST, b"Connection: keep-alive", b"Connection: close"), False),
    "1.1, close within a word": (head_of(HOST, b"Connection: closed"), True),
    "1.1, an upgrade that we ignore": (head_of(HOST, b"Connection: Upgrade", b"Upgrade: h2c"), False),
    "1.0": (head_of(HOST, line=b"GET / HTTP/1.0"), False),
    "1.0, keep-alive": (head_of(HOST, b"Connection: Keep-Alive", line=b"GET / HTTP/1.0"), True),
    "1.0, close and keep-alive": (head_of(HOST, b"Connection: close, keep-alive", line=b"GET / HTTP/1.0"), False),
    "1.0, keep-alive and close": (head_of(HOST, b"Connection: keep-alive, close", line=b"GET / HTTP/1.0"), False),
}


@pytest.mark.parametrize(("data", "keeps"), KEEPS.values(), ids=KEEPS)
def test_whether_the_connection_goes_on(data: bytes, keeps: bool) -> None:
    assert read(data).keeps == keeps


EXPECTS = {
    "with a length": (head_of(HOST, b"Content-Length: 3", b"Expect: 100-Continue"), True),
    "with chunks": (head_of(HOST, CHUNKED, b"Expect: 100-continue"), True),
    "without a body": (head_of(HOST, b"Expect: 100-continue"), False),
    "when the body has begun": (head_of(HOST, b"Content-Length: 3", b"Expect: 100-continue", body=b"a"), False),
    "in HTTP/1.0": (head_of(HOST, b"Content-Length: 3", b"Expect: 100-continue", line=b"PUT / HTTP/1.0"), False),
    "something else": (head_of(HOST, b"Content-Length: 3", b"Expect: 200-ok"), False),
}


@pytest.mark.parametrize(("data", "expects"), EXPECTS.values(), ids=EXPECTS)
def test_whether_100_is_expected(data: bytes, expects: bool) -> None:
    assert read(data).expects == expects


NEXT = b"GET /next HTTP/1.1\r\n"
BODIES = {
    "none": (head_of(HOST, body=NEXT), None, b"", NEXT),
    "length 0": (head_of(HOST, b"Content-Length: 0", body=NEXT), 0, b"", NEXT),
    "all of it": (head_of(HOST, b"Content-Length: 3", body=b"abc" + NEXT), 3, b"abc", NEXT),
    "a part of it": (head_of(HOST, b"Content-Length: 5", body=b"abc"), 5, b"abc", b""),
    "chunks": (head_of(HOST, CHUNKED, body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n" + NEXT), 5, b"abcde", NEXT),
    "chunks with a trailer": (head_of(HOST, CHUNKED, body=b"1\r\na\r\n0\r\nT: u\r\n\r\n" + NEXT), 1, b"a", NEXT),
    "no chunks": (head_of(HOST, CHUNKED, body=b"0\r\n\r\n"), 0, b"", b""),
    "some of the chunks": (head_of(HOST, CHUNKED, body=b"3\r\nabc\r\n"), None, b"3\r\nabc\r\n", b""),
}


@pytest.mark.parametrize(("data", "length", "body", "rest"), BODIES.values(), ids=BODIES)
def test_bodies(data: bytes, length: int | None, body: bytes, rest: bytes) -> None:
    head = read(data)
    assert (head.content_length, head.body, data[head.taken :]) == (length, body, rest)


def test_whole_chunks_become_a_length_for_the_application() -> None:
    variables = dict(read(head_of(HOST, CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n")).variables)
    assert variables[b"CONTENT_LENGTH"] == b"3"
    assert b"HTTP_TRANSFER_ENCODING" not in variables


def test_half_of_the_chunks_have_none() -> None:
    variables = dict(read(head_of(HOST, CHUNKED, body=b"3\r\nabc\r\n")).variables)
    assert variables[b"HTTP_TRANSFER_ENCODING"] == b"chunked"
    assert b"CONTENT_LENGTH" not in variables


CHUNKS = {
    "one": (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "upper and lower case": (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
    "leading zeros": (b"003\r\nabc\r\n000\r\n\r\n", b"abc"),
    "an extension": (b'3;a="b c";d\r\nabc\r\n0;e\r\n\r\n', b"abc"),
    "trailers": (b"0\r\nX-A: b\r\nY: \r\n\r\n", b""),
    "line ends in the data": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
}


@pytest.mark.parametrize(("data", "body"), CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_chunks(data: bytes, body: bytes, step: int) -> None:
    reader, found, rest = Dechunker(), b"", data + b"GET"
    while not reader.ended:
        piece, taken = reader.feed(rest[:step])
        found, rest = found + piece, rest[taken:]
    assert (found, rest) == (body, b"GET")


BROKEN_CHUNKS = {
    "an underscore": b"1_0\r\n",
    "a sign": b"-1\r\n",
    "0x": b"0x3\r\nabc\r\n",
    "17 digits": b"FFFFFFFFFFFFFFFFF\r\n",
    "16 digits": b"0000000000000003\r\n",
    "no size": b"\r\nabc\r\n",
    "only an extension": b";a\r\nabc\r\n",
    "a space after the size": b"3 \r\nabc\r\n",
    "a space before the size": b" 3\r\nabc\r\n",
    "LF after the size": b"3\nabc\r\n",
    "CR after the size": b"3\rabc\r\n",
    "LF in an extension": b"3;a\nabc\r\n",
    "CR in an extension": b"3;a\rb\r\n",
    "NUL in an extension": b"3;\0\r\n",
    "an endless extension": b"3;" + b"a" * 20_000,
    "data longer than its size": b"3\r\nabcd\r\n",
    "LF after the data": b"3\r\nabc\n0\r\n\r\n",
    "no CRLF after the data": b"3\r\nabc0\r\n\r\n",
    "LF at the end": b"0\r\n\n",
    "a trailer without a name": b"0\r\n: a\r\n\r\n",
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "LF after a trailer": b"0\r\nX: a\n\r\n",
    "endless trailers": b"0\r\n" + b"X: a\r\n" * 10_000,
    "endless short trailers": b"0\r\n" + b"a\r\n" * 20_000,
    "endless empty extensions": b"1;\r\nx\r\n" * 20_000,
}


@pytest.mark.parametrize("data", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
@pytest.mark.parametrize("step", [1, 100_000])
def test_broken_chunks(data: bytes, step: int) -> None:
    reader = Dechunker()
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    with pytest.raises(HeadError, match="not chunked"):
        any(reader.feed(piece) is None for piece in pieces)


def test_broken_chunks_beside_the_head_refuse_the_request() -> None:
    with pytest.raises(HeadError, match="not chunked"):
        read_request(head_of(HOST, CHUNKED, body=b"3\nabc"))


def test_read_as_h11_and_llhttp_read_it() -> None:
    """`make fuzz` compares more of them."""
    assert http_fuzz.run(20_000, seed=7) > 3_000
