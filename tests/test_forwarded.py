"""Whom a proxy speaks for: X-Forwarded-For and the PROXY protocol, and who may use them (`forwarded-allow`)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest
from support.client import Address, Connection, End, exchange
from support.harness import APPS, Server, free_port

from wsgimaster._http1 import HeadError, read_request
from wsgimaster.settings import prefix_of

Start = Callable[..., Server]

PROXIES = [prefix_of(ip_network(text)) for text in ("10.0.0.0/8", "2001:db8::/32")]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PEER = ("127.0.0.1", "1")


def client_of(data: bytes, *, trusted: bool = True, proxied: bool = False) -> tuple[str, str]:
    """REMOTE_ADDR and REMOTE_PORT of the request, which comes from 127.0.0.1 port 1."""
    head = read_request(data, forwarded_allow=PROXIES if trusted else None, proxied=proxied)
    assert head is not None
    variables = dict(head.variables)
    return variables[b"REMOTE_ADDR"].decode(), variables[b"REMOTE_PORT"].decode()


FORWARDED = {
    "one": (["192.0.2.1"], ("192.0.2.1", "")),
    "what the client claims comes first": (["1.2.3.4, 192.0.2.1"], ("192.0.2.1", "")),
    "proxies behind the first": (["192.0.2.1, 10.0.0.5, 10.9.9.9"], ("192.0.2.1", "")),
    "only proxies": (["10.0.0.5, 10.9.9.9"], ("10.0.0.5", "")),
    "several fields": (["192.0.2.1", "10.0.0.5, 10.0.0.6", "10.0.0.7"], ("192.0.2.1", "")),
    "spaces": (["  192.0.2.1 ,\t10.0.0.5  "], ("192.0.2.1", "")),
    "no spaces": (["192.0.2.1,10.0.0.5"], ("192.0.2.1", "")),
    "IPv6": (["2001:DB9::0:1"], ("2001:db9::1", "")),
    "an IPv6 proxy": (["192.0.2.1, 2001:db8::5"], ("192.0.2.1", "")),
    "IPv4 with a port": (["192.0.2.1:4711"], ("192.0.2.1", "4711")),
    "IPv6 with a port": (["[2001:db9::1]:4711"], ("2001:db9::1", "4711")),
    "IPv6 in brackets": (["[2001:db9::1]"], ("2001:db9::1", "")),
    "IPv4 in IPv6": (["::ffff:192.0.2.1"], ("192.0.2.1", "")),
    "unknown": (["unknown"], PEER),
    "empty": ([""], PEER),
    "nonsense at the end": (["192.0.2.1, x"], PEER),
    "nonsense behind a proxy": (["x, 10.0.0.5"], ("10.0.0.5", "")),
    "an empty place": (["192.0.2.1, , 10.0.0.5"], ("10.0.0.5", "")),
    "a name": (["localhost"], PEER),
    "a port that is none": (["192.0.2.1:65536"], PEER),
    "too long": (["1" * 100], PEER),
    "a NUL's neighbour": (["192.0.2.1\t"], ("192.0.2.1", "")),
    "a scope": (["fe80::1%eth0"], PEER),
}


@pytest.mark.parametrize(("fields", "expected"), FORWARDED.values(), ids=FORWARDED)
def test_forwarded_for(fields: list[str], expected: tuple[str, str]) -> None:
    lines = "".join(f"X-Forwarded-For: {field}\r\n" for field in fields)
    data = f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode()
    assert client_of(data) == expected
    assert client_of(data, trusted=False) == PEER


def proxy_2(command: int, family: int, addresses: bytes, size: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(addresses) if size is None else size) + addresses


V4 = ip_address("192.0.2.1").packed + ip_address("10.0.0.1").packed + struct.pack("!HH", 4711, 80)
V6 = ip_address("2001:db9::1").packed + ip_address("2001:db8::1").packed + struct.pack("!HH", 4711, 80)
KNOWN_4, KNOWN_6 = ("192.0.2.1", "4711"), ("2001:db9::1", "4711")
PROXY: dict[str, tuple[bytes, tuple[str, str]]] = {
    "TCP4": (b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n", KNOWN_4),
    "TCP6": (b"PROXY TCP6 2001:db9::1 2001:db8::1 4711 80\r\n", KNOWN_6),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", PEER),
    "UNKNOWN with more": (b"PROXY UNKNOWN ffff:f...f:ffff 1 2 3\r\n", PEER),
    "the longest line": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", PEER),
    "version 2, IPv4": (proxy_2(0x21, 0x11, V4), KNOWN_4),
    "version 2, IPv6": (proxy_2(0x21, 0x21, V6), KNOWN_6),
    "version 2, with extensions": (proxy_2(0x21, 0x11, V4 + b"\x04\0\x02ab"), KNOWN_4),
    "version 2, its own check": (proxy_2(0x20, 0x00, b""), PEER),
    "version 2, its own check, with addresses": (proxy_2(0x20, 0x11, V4), PEER),
    "version 2, unix": (proxy_2(0x21, 0x31, bytes(216)), PEER),
    "version 2, unspecified": (proxy_2(0x21, 0x00, b""), PEER),
}


@pytest.mark.parametrize(("line", "expected"), PROXY.values(), ids=PROXY)
def test_proxy(line: bytes, expected: tuple[str, str]) -> None:
    assert client_of(line + GET, proxied=True) == expected
    for at in range(len(line + GET)):
        assert read_request((line + GET)[:at], forwarded_allow=PROXIES, proxied=True) is None


def test_a_proxy_behind_the_one_that_speaks() -> None:
    """Whose address the PROXY header names counts as a client, unless it is a proxy itself."""
    forwarded = GET.replace(b"Host", b"X-Forwarded-For: 198.51.100.1\r\nHost")
    assert client_of(b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n" + forwarded, proxied=True) == KNOWN_4
    assert client_of(b"PROXY TCP4 10.0.0.7 10.0.0.1 4711 80\r\n" + forwarded, proxied=True) == ("198.51.100.1", "")
    assert client_of(b"PROXY UNKNOWN\r\n" + forwarded, proxied=True) == ("198.51.100.1", "")


NO_PROXY = {
    "none": GET,
    "a line without its end": b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80" + b"0" * 100,
    "too long": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "LF alone": b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\n" + GET,
    "small letters": b"proxy TCP4 192.0.2.1 10.0.0.1 4711 80\r\n" + GET,
    "two spaces": b"PROXY  TCP4 192.0.2.1 10.0.0.1 4711 80\r\n" + GET,
    "a word more": b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80 1\r\n" + GET,
    "a space at the end": b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80 \r\n" + GET,
    "a word less": b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n" + GET,
    "no words": b"PROXY \r\n" + GET,
    "UDP": b"PROXY UDP4 192.0.2.1 10.0.0.1 4711 80\r\n" + GET,
    "IPv6 as TCP4": b"PROXY TCP4 2001:db9::1 2001:db8::1 4711 80\r\n" + GET,
    "IPv4 as TCP6": b"PROXY TCP6 192.0.2.1 10.0.0.1 4711 80\r\n" + GET,
    "no address": b"PROXY TCP4 192.0.2 10.0.0.1 4711 80\r\n" + GET,
    "no port": b"PROXY TCP4 192.0.2.1 10.0.0.1 x 80\r\n" + GET,
    "a port too high": b"PROXY TCP4 192.0.2.1 10.0.0.1 65536 80\r\n" + GET,
    "behind an empty line": b"\r\nPROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n" + GET,
    "version 2, another version": proxy_2(0x31, 0x11, V4) + GET,
    "version 2, no command": proxy_2(0x22, 0x11, V4) + GET,
    "version 2, too small for IPv4": proxy_2(0x21, 0x11, V4[:11]) + GET,
    "version 2, too small for IPv6": proxy_2(0x21, 0x21, V4) + GET,
    "version 2, enormous": proxy_2(0x21, 0x11, V4, 65535) + GET,
    "version 2, another signature": proxy_2(0x21, 0x11, V4).replace(b"QUIT", b"quit") + GET,
}


@pytest.mark.parametrize("data", NO_PROXY.values(), ids=NO_PROXY)
def test_what_is_no_proxy_header(data: bytes) -> None:
    with pytest.raises(HeadError) as error:
        read_request(data, forwarded_allow=PROXIES, proxied=True)
    assert error.value.status == 400


# with a server


ENVIRON = b"GET /environ HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n%s\r\n"
LINE = b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n"


def options(*more: str) -> str:
    lines = [f"http-socket = 127.0.0.1:{free_port()}", "http = http.sock", f"pythonpath = {APPS}"]
    return "\n".join([*lines, "module = probe", "need-app = true", "processes = 2", *more])


@pytest.fixture(scope="module", params=["auto", "push"])
def behind_proxies(request: pytest.FixtureRequest) -> Iterator[Server]:
    more = ["http-enable-proxy-protocol = 1", "forwarded-allow = 127.0.0.0/8, unix"]
    with Server(options(f"dispatch = {request.param}", *more)) as server:
        yield server


@pytest.fixture(params=["TCP", "unix"])
def address(behind_proxies: Server, request: pytest.FixtureRequest) -> Address:
    return behind_proxies.addresses[request.param == "unix"]


def who(connection: Connection, forwarded: str = "") -> tuple[str, str, str]:
    connection.send(ENVIRON % (f"X-Forwarded-For: {forwarded}\r\n".encode() if forwarded else b""))
    found = json.loads(connection.next_answer()[0].body)["strings"]
    return found["REMOTE_ADDR"], found["REMOTE_PORT"], found["wsgi.url_scheme"]


@pytest.mark.parametrize("line", [LINE, proxy_2(0x21, 0x11, V4)], ids=["version 1", "version 2"])
@pytest.mark.parametrize("pieces", [1, 2, 3], ids=["with the head", "before the head", "in two pieces"])
def test_it_counts_for_every_request_of_the_connection(address: Address, line: bytes, pieces: int) -> None:
    with Connection(address) as connection:
        if pieces == 3:
            connection.send(line[:20])
            line = line[20:]
        if pieces == 2:
            connection.send(line)
        connection.send(b"" if pieces == 2 else line + b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
        if pieces != 2:
            assert connection.next_answer()[0].body == b"hello"
        for _ in range(5):
            assert who(connection) == ("192.0.2.1", "4711", "http")
        assert who(connection, "198.51.100.2") == ("192.0.2.1", "4711", "http")  # that is what the client says itself


@pytest.mark.parametrize("line", [LINE, proxy_2(0x21, 0x11, V4)], ids=["version 1", "version 2"])
def test_it_counts_once(address: Address, line: bytes) -> None:
    with Connection(address) as connection:
        connection.send(LINE)
        assert who(connection)[0] == "192.0.2.1"
        connection.send(line + GET)
        answer = connection.answer()
        assert (answer.status, answer.end) == (400, End.EOF)


def test_it_counts_at_the_beginning_only(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(LINE + b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(LINE) + LINE)
        assert connection.next_answer()[0].body == LINE
        assert who(connection)[0] == "192.0.2.1"
    assert exchange(address, b"\r\n" + LINE + GET).status == 400


def test_who_may_speak_so_has_to(start: Start) -> None:
    """A proxy that leaves it out would be its clients' address."""
    server = start(options("http-enable-proxy-protocol = 1", "forwarded-allow = 127.0.0.0/8, unix"))
    for address in server.addresses:
        assert exchange(address, GET).status == 400
    server.wait_log("answered 400: it doesn't begin with a PROXY line")


@pytest.mark.parametrize("line", [LINE, proxy_2(0x21, 0x11, V4)], ids=["version 1", "version 2"])
@pytest.mark.parametrize("more", ["http-enable-proxy-protocol = 1", "forwarded-allow = 127.0.0.0/8"])
def test_others_may_not(start: Start, line: bytes, more: str) -> None:
    server = start(options(more))
    for address in server.addresses:
        assert exchange(address, line + GET).status == 400
    server.wait_log(
        "answered 400: it begins with a PROXY header, which http-enable-proxy-protocol expects from those in"
    )


def test_without_the_option_headers_are_their_senders_own(start: Start) -> None:
    server = start(options())
    for address in server.addresses:
        with Connection(address) as connection:
            peer = "" if isinstance(address, str) else "127.0.0.1"
            for _ in range(3):
                found = who(connection, "192.0.2.1")
                assert (found[0], found[2]) == (peer, "http")


def test_the_request_line_and_the_published_request_name_the_client(start: Start) -> None:
    server = start(options("forwarded-allow = 127.0.0.1"))
    with Connection(server.address) as connection:
        who(connection, "192.0.2.7")
        server.wait_log(r"\] 192\.0\.2\.7 \(\) \{")
