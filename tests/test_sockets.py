"""Listening: unix, abstract, TCP; modes and owners; and what is answered to those who don't speak uwsgi.

On a real uWSGI 2.0.31 malformed packets get no answer, abstract names end with a NUL, a live unix socket is
taken away from its owner, and there is no allow-from.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.client import Connection, End, block, cgi, exchange, packet, ping, uwsgi
from support.harness import APPS, Server, free_port

Start = Callable[..., Server]


def options(*lines: str) -> str:
    return "\n".join([f"pythonpath = {APPS}", "module = probe", "need-app = true", *lines]) + "\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(options("socket = app.sock", "buffer-size = 4096")) as server:
        yield server


# addresses


def test_unix(start: Start) -> None:
    server = start(options("socket = app.sock"))
    assert uwsgi(server.address, "/hello").body == b"hello"
    server.wait_log(r"uwsgi socket 0 bound to UNIX address \S*app\.sock fd \d+")


def test_abstract(start: Start) -> None:
    """The name in the kernel is the one that was written."""
    name = f"@wsgimaster-test-{os.getpid()}"
    server = start(options(f"socket = {name}"))
    assert uwsgi(name, "/hello").body == b"hello"
    assert server.address == name


TCP = ["127.0.0.1:{}", ":{}", "0.0.0.0:{}", "localhost:{}"]


@pytest.mark.parametrize("form", TCP, ids=[form.format("PORT") for form in TCP])
def test_tcp(start: Start, form: str) -> None:
    port = free_port()
    server = start(options(f"socket = {form.format(port)}"))
    assert uwsgi(("127.0.0.1", port), "/hello").body == b"hello"
    server.wait_log(rf"uwsgi socket 0 bound to TCP address \S*:{port} fd \d+")


def test_tcp_6(start: Start) -> None:
    port = free_port()
    server = start(options(f"socket = [::1]:{port}"), ready="spawned")
    server.addresses = []
    with socket.create_connection(("::1", port), 30) as connection:
        connection.sendall(packet({}, modifier1=100))
        assert connection.recv(100) == b"\x64\0\0\x01"


def test_tcp_port_of_the_kernels_choice(start: Start) -> None:
    server = start(options("socket = 127.0.0.1:0"), ready="spawned")
    (line,) = server.wait_log(r"uwsgi socket 0 bound to TCP address 127\.0\.0\.1:(\d+) \(port auto-assigned\) fd \d+")
    server.addresses = [("127.0.0.1", int(line[1]))]
    assert uwsgi(server.address, "/hello").body == b"hello"


def test_several(start: Start) -> None:
    """Each is served by every worker."""
    lines = [f"socket = {name}" for name in ("one.sock", "two.sock", f"127.0.0.1:{free_port()}")]
    server = start(options(*lines, f"uwsgi-socket = 127.0.0.1:{free_port()}", "processes = 2"))
    assert [uwsgi(address, "/hello").body for address in server.addresses * 5] == [b"hello"] * 20


def test_longest_unix_path(start: Start) -> None:
    server = start(options("socket = app.sock"))
    long = str(server.directory / "s").ljust(102, "s")
    second = start(options(f"socket = {long}"), name="second")
    assert second.address == long
    assert uwsgi(long, "/hello").body == b"hello"


# unix files


MODES = {"666": 0o666, "660": 0o660, "600": 0o600, "1": 0o666}


@pytest.mark.parametrize(("option", "mode"), MODES.items(), ids=MODES)
def test_chmod_socket(start: Start, option: str, mode: int) -> None:
    server = start(options("socket = app.sock", f"chmod-socket = {option}"))
    assert stat.S_IMODE(Path(server.address).stat().st_mode) == mode


def test_chown_socket(start: Start) -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    group = "www-data" if os.geteuid() == 0 else grp.getgrgid(os.getegid()).gr_name
    server = start(options("socket = app.sock", f"chown-socket = {user}:{group}"))
    found = Path(server.address).stat()
    assert (found.st_uid, found.st_gid) == (os.geteuid(), grp.getgrnam(group).gr_gid)


def test_stale_socket_is_replaced(start: Start, tmp_path: Path) -> None:
    first = start(options("socket = app.sock"))
    stale = str(first.directory / "stale.sock")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(stale)
        gone.listen()
    second = start(options(f"socket = {stale}"), name="second")
    assert uwsgi(second.address, "/hello").body == b"hello"


def test_live_socket_is_left_alone(start: Start) -> None:
    """The second server says why it doesn't start, and the first one goes on."""
    first = start(options("socket = app.sock"))
    second = start(options("socket = app.sock"), where=first.directory, name="second", ready="nothing")
    assert second.wait_exit() == 1
    second.addresses = []
    assert "app.sock" in second.log()
    assert uwsgi(first.address, "/hello").body == b"hello"


def test_file_that_is_no_socket_is_left_alone(start: Start) -> None:
    first = start(options("socket = app.sock"))
    precious = first.directory / "precious"
    precious.write_text("data")
    second = start(options(f"socket = {precious}"), name="second", ready="nothing")
    assert second.wait_exit() == 1
    assert precious.read_text() == "data"


def test_tcp_port_in_use(start: Start) -> None:
    first = start(options(f"socket = 127.0.0.1:{free_port()}"))
    host, port = first.address
    second = start(options(f"socket = {host}:{port}"), name="second", ready="nothing")
    assert second.wait_exit() == 1
    second.addresses = []
    second.wait_log(rf"probably another instance of uWSGI is running on the same address \({host}:{port}\)")
    assert uwsgi(first.address, "/hello").body == b"hello"


def test_restart_on_the_same_port(start: Start) -> None:
    """Connections in TIME_WAIT are no obstacle."""
    text = options(f"socket = 127.0.0.1:{free_port()}")
    for number in range(3):
        server = start(text, name=f"server {number}")
        assert [uwsgi(server.address, "/hello").status for _ in range(20)] == [200] * 20
        server.close()


def test_listen_beyond_the_kernels_limit(start: Start) -> None:
    """Clamped, with a line about it."""
    server = start(options("socket = app.sock", "listen = 1000000"))
    server.wait_log(r"(?i)listen.*1000000.*somaxconn|somaxconn.*1000000")
    assert uwsgi(server.address, "/hello").body == b"hello"


# who may


ALLOWED = {
    "network": ("127.0.0.0/30", ["127.0.0.1", "127.0.0.2"], ["127.0.0.9"]),
    "address": ("127.0.0.1", ["127.0.0.1"], ["127.0.0.2"]),
    "two": ("127.0.0.1\nallow-from = 127.0.0.4/32", ["127.0.0.1", "127.0.0.4"], ["127.0.0.2"]),
}


@pytest.mark.parametrize(("value", "allowed", "refused"), ALLOWED.values(), ids=ALLOWED)
def test_allow_from(start: Start, value: str, allowed: list[str], refused: list[str]) -> None:
    server = start(options(f"socket = 127.0.0.1:{free_port()}", "socket = app.sock", f"allow-from = {value}"))
    tcp, unix = server.addresses

    def status(source: str) -> int:
        with Connection(tcp, source=source) as connection:
            connection.send(packet(cgi("/hello")))
            return connection.answer().status

    assert [status(source) for source in allowed] == [200] * len(allowed)
    assert [status(source) for source in refused] == [403] * len(refused)
    assert uwsgi(unix, "/hello").status == 200  # it has a mode and an owner


# other peers


def test_ping(server: Server) -> None:
    assert ping(server.address) == b"\x64\x00\x00\x01"


def test_ping_with_variables(server: Server) -> None:
    assert exchange(server.address, packet({"A": "b"}, modifier1=100)).raw == b"\x64\x00\x00\x01"


@pytest.mark.parametrize("modifier", [1, 5, 7, 17, 18, 22, 72, 110, 111, 173, 250, 255])
def test_modifier_of_something_else_is_a_501(server: Server, modifier: int) -> None:
    assert exchange(server.address, packet(cgi("/hello"), modifier1=modifier)).status == 501
    assert uwsgi(server.address, "/hello").status == 200


CUTS = {
    "begins with it": ("/app", "/app/environ", "/environ"),
    "is it": ("/app/environ", "/app/environ", ""),
    "doesn't begin with it": ("/other", "/environ", "/environ"),
}


@pytest.mark.parametrize(("script", "path", "rest"), CUTS.values(), ids=CUTS)
def test_modifier_30_takes_script_name_off_path_info(start: Start, script: str, path: str, rest: str) -> None:
    server = start(options("socket = app.sock", "module = probe:any_path").replace("module = probe\n", ""))
    request = packet({**cgi(path), "SCRIPT_NAME": script}, modifier1=30)
    given = json.loads(exchange(server.address, request).body)["strings"]
    assert (given["SCRIPT_NAME"], given["PATH_INFO"]) == (script, rest)


CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(190)
STRANGERS = {
    "HTTP GET": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP"),
    "HTTP POST": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", "HTTP"),
    "HTTP HEAD": (b"HEAD / HTTP/1.0\r\n\r\n", "HTTP"),
    "HTTP OPTIONS": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP"),
    "TLS": (CLIENT_HELLO, "TLS"),
}


@pytest.mark.parametrize(("hello", "name"), STRANGERS.values(), ids=STRANGERS)
def test_hello_in_another_protocol(start: Start, hello: bytes, name: str) -> None:
    """One line in the log says what it probably was; nobody waits for the rest of a packet."""
    server = start(options("socket = app.sock"))
    log = server.settled_log()
    answer = exchange(server.address, hello)
    assert answer.status in (0, 400)
    log.wait(rf"(?m)^.*\b{name}\b.*$")
    uwsgi(server.address, "/hello?next")
    log.wait(r"/hello\?next")
    lines = [line for line in log.text().splitlines() if not line.startswith("[pid:")]
    assert len(lines) == 1, lines
    assert not re.search("Traceback", log.text())


GOOD = packet(cgi("/hello"))


def raw(data: bytes) -> bytes:
    """A packet with these bytes as its variable block."""
    return struct.pack("<BHB", 0, len(data), 0) + data


VARIABLES = block(cgi("/hello"))
MALFORMED = {
    "no variables": raw(b""),
    "empty name": raw(VARIABLES + b"\0\0\x05\0value"),
    "name longer than the rest": raw(VARIABLES + b"\xff\x7fNAME\x05\0value"),
    "value longer than the rest": raw(VARIABLES + b"\x04\0NAME\x06\0value"),
    "longest value": raw(VARIABLES + b"\x04\0NAME\xff\xffvalue"),
    "ends in a name's length": raw(VARIABLES + b"\x04"),
    "ends in a name": raw(VARIABLES + b"\x04\0NAM"),
    "ends after a name": raw(VARIABLES + b"\x04\0NAME"),
    "ends in a value's length": raw(VARIABLES + b"\x04\0NAME\x05"),
    "ends in a value": raw(VARIABLES + b"\x04\0NAME\x05\0valu"),
}


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_malformed_packet_is_a_400(server: Server, malformed: bytes) -> None:
    assert exchange(server.address, malformed).status == 400
    assert uwsgi(server.address, "/hello").status == 200


@pytest.mark.parametrize("cut", range(0, len(GOOD), 37))
def test_packet_in_two_pieces(server: Server, cut: int) -> None:
    assert exchange(server.address, GOOD[:cut], GOOD[cut:]).body == b"hello"


@pytest.mark.parametrize("cut", range(0, len(GOOD), 37))
def test_client_leaves_within_the_packet(server: Server, cut: int) -> None:
    """It isn't served, and not worth a traceback."""
    log = server.settled_log()
    with Connection(server.address) as connection:
        connection.send(GOOD[:cut])
        connection.half_close()
        assert connection.answer().status in (0, 400)
    assert uwsgi(server.address, "/hello?next").status == 200
    log.wait(r"/hello\?next")
    assert "Traceback" not in log.text()


def sized(size: int) -> bytes:
    """A request with a variable block of so many bytes."""
    short = packet({**cgi("/hello"), "X_FILL": ""})
    return packet({**cgi("/hello"), "X_FILL": "x" * (size + 4 - len(short))})


def test_buffer_size_is_the_largest_block(server: Server) -> None:
    assert exchange(server.address, sized(4096)).status == 200
    assert exchange(server.address, sized(4097)).status == 431
    assert exchange(server.address, sized(65_535)).status == 431
    assert uwsgi(server.address, "/hello").status == 200


def test_buffer_size_starts_at_the_largest(start: Start) -> None:
    server = start(options("socket = app.sock"))
    assert exchange(server.address, sized(65_535)).status == 200


def test_answer_to_a_refused_packet_is_whole(server: Server) -> None:
    """Even if the client has more to send than the server cares to read."""
    with Connection(server.address) as connection:
        connection.send(packet(cgi("/hello", "POST", b"x" * 1_000_000), modifier1=5))
        connection.send(b"x" * 1_000_000)
        answer = connection.answer()
    assert (answer.status, answer.end) == (501, End.EOF)


def test_empty_connections_are_silent(server: Server) -> None:
    log = server.settled_log()
    for _ in range(20):
        Connection(server.address).close()
    assert uwsgi(server.address, "/hello?after").status == 200
    log.wait(r"/hello\?after")
    assert len(log.text().splitlines()) == 1
