"""Differential fuzzing of _http1 against h11 and llhttp (as httptools): `make fuzz`.

What we accept, nobody may read as another request: another method or target, another body, or another place where the
next request begins. That they refuse what we accept is no danger, nor that we refuse what they accept. Inputs are sound
requests in which fields are repeated, and bytes and line ends changed. The same seed gives the same inputs.
"""

import random
import sys
from dataclasses import dataclass

import h11
import httptools

from wsgimaster._http1 import Dechunker, HeadError, read_request


@dataclass(frozen=True)
class Reading:
    """How somebody reads the bytes: the first request, and what is left for the next."""

    method: bytes
    target: bytes
    body: bytes
    complete: bool
    rest: bytes


def ours(data: bytes) -> Reading | None:
    """None: refused, or its head is incomplete."""
    try:
        head = read_request(data)
        if head is None:
            return None
        variables = dict(head.variables)
        body, complete, taken = head.body, not head.chunked, head.taken
        if head.chunked:
            chunks = Dechunker()
            body, _ = chunks.feed(data[head.size :])
            complete = chunks.ended
        elif head.content_length is not None:
            complete = len(body) == head.content_length
    except HeadError:
        return None
    return Reading(variables[b"REQUEST_METHOD"], variables[b"REQUEST_URI"], body, complete, data[taken:])


def by_h11(data: bytes) -> Reading | None:
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        peer.receive_data(data)
        request = peer.next_event()
        if not isinstance(request, h11.Request):
            return None
        body = b""
        while isinstance(event := peer.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return None
    complete = isinstance(event, h11.EndOfMessage)
    return Reading(request.method, request.target, body, complete, peer.trailing_data[0] if complete else b"")


class _Collector:
    def __init__(self) -> None:
        self.target = self.body = b""
        self.requests = 0
        self.complete = False

    def on_message_begin(self) -> None:
        self.requests += 1

    def on_url(self, url: bytes) -> None:
        if self.requests == 1:
            self.target += url

    def on_body(self, body: bytes) -> None:
        if self.requests == 1:
            self.body += body

    def on_message_complete(self) -> None:
        self.complete = True
        raise StopIteration  # what follows isn't its business


def by_llhttp(data: bytes) -> Reading | None:
    """The rest isn't known; a body that ends elsewhere is another body, or another completeness."""
    found = _Collector()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return None  # it stops there, as we do
    except httptools.HttpParserError:
        if not found.complete:
            return None
    if not found.requests or parser.should_upgrade():  # then it takes what follows for the other protocol; we close
        return None
    return Reading(parser.get_method() or b"", found.target, found.body, found.complete, b"")


METHODS = [b"GET", b"POST", b"PUT", b"OPTIONS", b"HEAD"]
TARGETS = [b"/", b"/a?b=c", b"/%2e%2e/x", b"*", b"http://b/c", b"/a b", b"//x", b"/\xe9"]
FIELDS = [
    b"Host: a",
    b"Host: b:80",
    b"Content-Length: 3",
    b"Content-Length: 0",
    b"Content-Length: +3",
    b"Content-Length: 3, 3",
    b"Content-Length:3 ",
    b"Content-Length : 3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked ",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer_Encoding: chunked",
    b"Connection: close",
    b"Connection: keep-alive, upgrade",
    b"Connection: content-length",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"X-A: b",
    b"X-A: b\rc",
    b"X-A: b\nContent-Length: 5",
    b" folded",
    b"X-A:\tb\xff",
    b"no colon",
    b": no name",
]
BODIES = [
    b"",
    b"abc",
    b"abcGET /next HTTP/1.1\r\nHost: a\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"3;x=y\r\nabc\r\n0\r\nT: r\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"3\nabc\r\n0\r\n\r\n",
    b"3\r\nabc0\r\n\r\n",
    b"0x3\r\nabc\r\n0\r\n\r\n",
    b"3 \r\nabc\r\n0\r\n\r\n",
    b"3;\nabc\r\n0\r\n\r\n",
    b"1_0\r\nabc",
    b"-1\r\nabc",
    b"FFFFFFFFFFFFFFFFF\r\nabc",
    b"00000000000000000000003\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\n: \r\n\r\n",
]
ODD = b"\0\t\n\r \x0b\x7f\x80\xff,:;_-+0369aAxX"


def make(dice: random.Random) -> bytes:
    """One input."""
    version = dice.choice([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/1.2", b"http/1.1", b"HTTP/2.0"])
    target = TARGETS[0] if dice.random() < 0.6 else dice.choice(TARGETS)
    fields = [b"Host: a"] if dice.random() < 0.9 else []
    fields += dice.choices(FIELDS, k=dice.randrange(4))
    dice.shuffle(fields)
    end = b"\r\n" if dice.random() < 0.95 else b"\n"
    data = bytearray(end.join([b" ".join([dice.choice(METHODS), target, version]), *fields]) + end + end)
    data += dice.choice(BODIES)
    for _ in range(dice.choice([0, 0, 0, 1, 2])):
        place = dice.randrange(len(data))
        match dice.randrange(3):
            case 0:
                data[place] = dice.choice(ODD)
            case 1:
                data.insert(place, dice.choice(ODD))
            case _:
                del data[place]
    return bytes(data)


def compare(data: bytes) -> bool:
    """Whether we accept it. Raises AssertionError if somebody reads it as another request."""
    us = ours(data)
    if us is None:
        return False
    for name, them in (("h11", by_h11(data)), ("llhttp", by_llhttp(data))):
        if them is None:
            continue
        same = (us.method, us.target, us.body, us.complete) == (them.method, them.target, them.body, them.complete)
        if name == "h11" and us.complete:
            same = same and us.rest == them.rest
        assert same, f"{name} reads {data!r}\nas {them}\nwe as {us}"
    return True


def run(count: int, seed: int) -> int:
    """Compare `count` inputs; how many of them we accept."""
    dice = random.Random(seed)
    return sum(compare(make(dice)) for _ in range(count))


if __name__ == "__main__":
    inputs, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    print(f"{run(inputs, seed)} of {inputs} requests are accepted, and read as h11 and llhttp read them (seed {seed})")
