"""http-socket and http: plain HTTP without a web server in front. Connections that go on: test_keepalive.py.

A real uWSGI 2.0.31 checks little: what is refused here reaches the application there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from support.client import Address, Connection, End, exchange, http, together, uwsgi
from support.harness import APPS, Server, free_port

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = f"""
        http-socket = 127.0.0.1:{free_port()}
        http-socket = http.sock
        socket = app.sock
        pythonpath = {APPS}
        module = probe
        need-app = true
    """
    with Server(options) as server:
        yield server


@pytest.fixture
def address(server: Server) -> Address:
    return server.addresses[0]


def test_get(address: Address) -> None:
    answer = http(address, "/hello")
    assert (answer.status_line, answer.body, answer.end) == ("HTTP/1.1 200 OK", b"hello", End.EOF)
    assert answer.header("Connection") == "close"


def test_get_over_unix(server: Server) -> None:
    assert http(server.addresses[1], "/hello").body == b"hello"


def test_uwsgi_socket_beside_it(server: Server) -> None:
    assert uwsgi(server.addresses[2], "/hello").body == b"hello"


@pytest.mark.parametrize("option", ["http", "http11-socket"])
def test_other_names_of_it(start: Start, option: str) -> None:
    lines = [f"{option} = 127.0.0.1:{free_port()}", f"pythonpath = {APPS}", "module = probe"]
    server = start("\n".join(lines))
    assert http(server.address, "/hello").body == b"hello"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
def test_body_by_content_length(address: Address, method: str, size: int) -> None:
    body = os.urandom(size)
    answer = http(address, "/echo", method, body, [("Content-Length", str(size))])
    assert (answer.status, answer.body == body) == (200, True)


def test_body_comes_later(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(b"POST /interleaved HTTP/1.0\r\nContent-Length: 6\r\n\r\nabc")
        begun = connection.receive_until(b"<abc>")
        connection.send(b"def")
        assert connection.answer(begun).body == b"<abc><def>"


def test_head_of_a_page(address: Address) -> None:
    answer = http(address, "/hello", "HEAD")
    assert (answer.status, answer.header("Content-Length"), answer.body) == (200, "5", b"")


def test_every_answer_has_a_date_and_names_the_server(address: Address) -> None:
    answer = http(address, "/hello")
    sent = parsedate_to_datetime(answer.header("Date") or "")
    assert abs((datetime.now(UTC) - sent).total_seconds()) < 60
    assert (answer.all("Server"), len(answer.all("Date"))) == (["wsgimaster"], 1)


@pytest.mark.parametrize("name", ["Date", "Server", "date", "SERVER"])
def test_what_the_application_says_about_itself_counts(address: Address, name: str) -> None:
    assert http(address, f"/head?header={name}:mine").all(name) == ["mine"]


HOP_BY_HOP = ["Connection", "connection", "Keep-Alive", "Transfer-Encoding", "TE", "Trailer", "Upgrade"]


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_the_connection_is_the_servers_business(address: Address, name: str) -> None:
    """PEP 3333: no hop-by-hop headers."""
    answer = http(address, f"/head?header={name}:keep-alive")
    assert answer.status == 200
    assert "keep-alive" not in answer.head.decode().lower().replace("keep-alive:", "")


def test_a_connection_header_is_checked_although_it_is_not_sent(address: Address) -> None:
    assert http(address, "/bad_head?nul_in_connection").status == 500


def test_http_1_0_without_host(address: Address) -> None:
    assert exchange(address, b"GET /hello HTTP/1.0\r\n\r\n").body == b"hello"


def test_head_in_single_bytes(address: Address) -> None:
    request = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert exchange(address, *(request[place : place + 1] for place in range(len(request)))).body == b"hello"


def test_unread_body(address: Address) -> None:
    """The answer comes although nobody looks at the 10 MB."""
    answers = together(8, lambda _: http(address, "/refuse", "POST", b"x" * 10_000_000))
    assert [(answer.status, answer.end) for answer in answers] == [(401, End.EOF)] * 8


@pytest.mark.parametrize("why", [b"Connection: close", b"Connection: Upgrade\r\nUpgrade: websocket"])
def test_nothing_is_read_after_the_last_request(server: Server, address: Address, why: bytes) -> None:
    """Nor after one that asks for another protocol, which we don't speak (RFC 9110 7.8)."""
    log = server.settled_log()
    request = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n"
    both = request % (b"hello", why) + request % (b"process?second", b"A: b")
    assert exchange(address, both).raw.count(b"HTTP/1.1 200") == 1
    http(address, "/hello?third")
    log.wait(r"/hello\?third")
    assert "/process?second" not in log.text()


def test_request_line_does_not_wait_for_the_next_request(server: Server, address: Address) -> None:
    log = server.settled_log()
    for number in range(50):
        assert exchange(address, b"nonsense\r\n\r\n").status == 400
        assert http(address, f"/hello?line-{number}").status == 200
        log.wait(rf"/hello\?line-{number} ")


def test_environ(server: Server, address: Address) -> None:
    answer = http(address, "/environ?a=%20b", "GET", headers=[("X-Name", "caf\u00e9"), ("Content-Type", "text/x")])
    given = json.loads(answer.body)["strings"]
    host, port = address
    expected = {
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/environ?a=%20b",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/environ",
        "QUERY_STRING": "a=%20b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_PORT": str(port),
        "REMOTE_ADDR": host,
        "HTTP_HOST": "localhost",
        "HTTP_X_NAME": "caf\u00e9",
        "CONTENT_TYPE": "text/x",
        "wsgi.url_scheme": "http",
    }
    assert {name: given.get(name) for name in expected} == expected
    assert given["SERVER_NAME"]


FORGED = {
    "forwarded protocol": ("X-Forwarded-Proto", "wsgi.url_scheme", "http"),
    "HTTPS": ("Https", "wsgi.url_scheme", "http"),
    "proxy": ("Proxy", "HTTP_PROXY", None),
    "script name": ("Script_Name", "SCRIPT_NAME", ""),
    "underscore": ("X_Forwarded_For", "HTTP_X_FORWARDED_FOR", None),
    "content length": ("Content_Length", "CONTENT_LENGTH", None),
}


@pytest.mark.parametrize(("header", "name", "expected"), FORGED.values(), ids=FORGED)
def test_header_that_pretends(address: Address, header: str, name: str, expected: str | None) -> None:
    """No header of a client reaches a variable that applications trust, or that another header owns."""
    given = json.loads(http(address, "/environ", headers=[(header, "https")]).body)["strings"]
    assert given.get(name) == expected


HOST = b"Host: a\r\n"
REFUSED = {  # test_http_head.py has all of them
    "nonsense": (b"\x00\x01\x02\x03\r\n\r\n", 400),
    "no Host": (b"GET /hello HTTP/1.1\r\n\r\n", 400),
    "LF alone": (b"GET /hello HTTP/1.1\nHost: a\n\n", 400),
    "two lengths": (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "broken chunks": (b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    "another encoding": (b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "a tunnel": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "a large head": (b"GET /hello HTTP/1.1\r\n" + HOST + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n", 431),
    "an endless head": (b"GET /hello HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 50_000, 431),
    "a long first line": (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "an endless first line": (b"GET /" + b"x" * 200_000, 414),
}


@pytest.mark.parametrize(("request_bytes", "status"), REFUSED.values(), ids=REFUSED)
def test_refused(server: Server, address: Address, request_bytes: bytes, status: int) -> None:
    """The application isn't asked, the log has no traceback, the next one is served."""
    log = server.settled_log()
    answer = exchange(address, request_bytes)
    assert (answer.status, answer.header("Connection")) == (status, "close")
    assert http(address, "/hello?next").status == 200
    log.wait(r"/hello\?next")
    assert log.text().count("[pid: ") == 1
    assert "Traceback" not in log.text()


def test_tls_on_a_plain_socket(server: Server, address: Address) -> None:
    """Nothing that we could say would be understood: one line in the log, and the end."""
    log = server.settled_log()
    assert exchange(address, bytes.fromhex("16030100c8010000c40303") + bytes(190)).raw == b""
    log.wait("a TLS handshake came to a plain HTTP socket")


def test_uwsgi_on_an_http_socket(address: Address) -> None:
    assert uwsgi(address, "/hello").status == 400


# how an answer ends


@pytest.mark.parametrize("path", ["/generator", "/write_calls"])
def test_an_old_client_reads_to_the_end(address: Address, path: str) -> None:
    answer = http(address, path, version="1.0")
    assert (answer.header("Transfer-Encoding"), answer.header("Content-Length"), answer.end) == (None, None, End.EOF)
    assert answer.body == http(address, path).content != b""


@pytest.mark.parametrize("path", ["/generator", "/write_calls"])
def test_an_answer_of_unknown_length_comes_in_chunks(address: Address, path: str) -> None:
    answer = http(address, path)
    assert (answer.header("Transfer-Encoding"), answer.header("Content-Length")) == ("chunked", None)
    assert answer.body.endswith(b"0\r\n\r\n")
    assert answer.content


LENGTHS = {
    "bytes": ("/body?bytes", b"abc"),
    "several pieces in a list": ("/body?list", b"abc"),
    "a tuple": ("/body?tuple", b"abc"),
    "none": ("/body?empty_list", b""),
}


@pytest.mark.parametrize(("path", "body"), LENGTHS.values(), ids=LENGTHS)
def test_a_body_that_is_there_gets_its_length(address: Address, path: str, body: bytes) -> None:
    answer = http(address, path)
    assert (answer.header("Content-Length"), answer.body) == (str(len(body)), body)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_answers_without_a_body(address: Address, status: str) -> None:
    answer = http(address, f"/head?status={status.replace(' ', '%20')}")
    assert (answer.status_line, answer.body) == (f"HTTP/1.1 {status}", b"")
    assert answer.header("Transfer-Encoding") is None


PATHS = {
    "percent": ("/environ%2Fcaf%C3%A9%20b", "/environ/caf\u00c3\u00a9 b"),
    "percent of a percent": ("/%2561", "/%61"),
    "query apart": ("/a?b?c", "/a"),
    "double slash": ("//a//b", "//a//b"),
    "absolute form": ("http://other/a", "/a"),
}


@pytest.mark.parametrize(("target", "path_info"), PATHS.values(), ids=PATHS)
def test_path_is_decoded_once(start: Start, target: str, path_info: str) -> None:
    server = start(f"http-socket = 127.0.0.1:{free_port()}\npythonpath = {APPS}\nmodule = probe:any_path\n")
    assert json.loads(http(server.address, target).body)["strings"]["PATH_INFO"] == path_info


def test_file(address: Address, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1_000_000))
    assert http(address, "/file?length=1000000", headers=[("X-File", str(path))]).body == path.read_bytes()


def test_a_hundred_at_once(address: Address) -> None:
    answers = together(100, lambda number: http(address, "/echo", "POST", b"%d" % number))
    assert [answer.body for answer in answers] == [b"%d" % number for number in range(100)]
