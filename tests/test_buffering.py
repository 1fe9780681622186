"""Who sends or reads slowly holds no worker: bodies at an `http` socket, and answers at every HTTP socket."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from support.client import Address, Connection, End, http, together
from support.deployed import WSGIMASTER
from support.harness import APPS, Server, free_port
from support.wait import paced, wait_until

Start = Callable[..., Server]

GET = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
IN_MEMORY = 1 << 20
SIZES = [1, 16383, 16384, 16385, 300_000, IN_MEMORY, IN_MEMORY + 1, 5 * IN_MEMORY]
MB = 1_000_000


def options(*more: str) -> str:
    lines = [f"http = 127.0.0.1:{free_port()}", "http = http.sock", f"pythonpath = {APPS}"]
    return "\n".join([*lines, "module = probe", "need-app = true", "pidfile = pid", *more])


@pytest.fixture(scope="module", params=["auto", "push"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """With one worker: whoever held it would keep the others waiting."""
    with Server(options(f"dispatch = {request.param}", "processes = 1")) as server:
        yield server


@pytest.fixture(params=["TCP", "unix"])
def address(server: Server, request: pytest.FixtureRequest) -> Address:
    return server.addresses[request.param == "unix"]


def post(path: str, size: int | None, *more: str) -> bytes:
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", length, *more, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def body_of(size: int) -> bytes:
    return b"".join(b"%08d" % number for number in range(size // 8 + 1))[:size]


def upgrade(server: Server) -> None:
    command = [*WSGIMASTER, "upgrade", "--pidfile", str(server.directory / "pid")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done


def files(server: Server) -> int:
    """Open descriptors of all processes."""
    return sum(process.num_fds() for process in server.processes())


# bodies


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("piece", [7000, 1 << 20], ids=["small pieces", "large pieces"])
def test_a_body_arrives_as_it_was_sent(address: Address, size: int, chunked: bool, piece: int) -> None:
    body = body_of(size)
    pieces = [body[at : at + piece] for at in range(0, size, piece)]
    with Connection(address) as connection:
        for _ in range(2):
            connection.send(post("/hash", None if chunked else size))
            for one in pieces:
                connection.send(chunk(one) if chunked else one)
            if chunked:
                connection.send(b"0\r\n\r\n")
            found = json.loads(connection.next_answer()[0].body)
            assert (found["size"], found["sha256"]) == (size, hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize("how", ["read", "read_three", "readline", "iteration", "read_too_much", "mixed"])
@pytest.mark.parametrize("size", [100, 50_000])
def test_every_way_to_read_it(server: Server, how: str, size: int) -> None:
    """As it is read from the client's socket, where nothing is buffered."""
    body = (b"some words\n" * (size // 11 + 1))[:size]
    with Connection(server.address) as connection:
        connection.send(post(f"/reads?{how}", size) + body[:10])
        connection.send(body[10:])
        buffered = connection.next_answer()[0].body
        connection.send(post(f"/reads?{how}", size) + body)
        at_once = connection.next_answer()[0].body
    assert buffered == at_once


@pytest.mark.parametrize("size", [100, 100_000])
def test_the_application_hears_how_long_a_chunked_body_is(address: Address, size: int) -> None:
    """Django and others read nothing without CONTENT_LENGTH."""
    with Connection(address) as connection:
        connection.send(post("/environ", None, "X-After: b") + chunk(b"x"))
        connection.send(chunk(b"x" * (size - 1)) + b"0\r\n\r\n")
        given = json.loads(connection.next_answer()[0].body)["strings"]
        assert (given["CONTENT_LENGTH"], given["HTTP_X_AFTER"]) == (str(size), "b")
        assert "HTTP_TRANSFER_ENCODING" not in given


def test_an_upload_holds_no_worker(server: Server, address: Address) -> None:
    with ExitStack() as stack:
        uploads = [stack.enter_context(Connection(address)) for _ in range(40)]
        for number, upload in enumerate(uploads):
            upload.send(post("/hash", 200_000) + b"x" * (number * 4000))
        assert [http(address, "/hello").body for _ in range(20)] == [b"hello"] * 20
        for number, upload in enumerate(uploads):
            upload.send(b"x" * (200_000 - number * 4000))
        expected = hashlib.sha256(b"x" * 200_000).hexdigest()
        assert {json.loads(upload.next_answer()[0].body)["sha256"] for upload in uploads} == {expected}


def test_a_client_that_waits_for_continue_is_told_so_at_once(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(post("/echo", 4, "Expect: 100-continue"))
        assert connection.receive_until(b"\r\n\r\n") == CONTINUE
        connection.send(b"body")
        answer, rest = connection.next_answer()
        assert (answer.status, answer.body, rest) == (200, b"body", b"")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [5, 100_000])
def test_what_comes_behind_the_body_is_the_next_request(address: Address, chunked: bool, size: int) -> None:
    body = body_of(size)
    sent = chunk(body) + b"0\r\n\r\n" if chunked else body
    with Connection(address) as connection:
        connection.send(post("/echo" if not chunked else "/hash", None if chunked else size) + sent[:3])
        connection.send(sent[3:] + GET % b"/hello" + GET % b"/environ")
        answer, rest = connection.next_answer()
        if not chunked:
            assert answer.body == body
        answer, rest = connection.next_answer(rest)
        assert answer.body == b"hello"
        assert connection.next_answer(rest)[0].status == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_many_requests_behind_the_body(address: Address, chunked: bool) -> None:
    """More bytes than one read takes."""
    body = body_of(50_000)
    sent = chunk(body) + b"0\r\n\r\n" if chunked else body
    more = b"GET /hello HTTP/1.1\r\nHost: a\r\nX-Long: %s\r\n\r\n" % (b"x" * 1000) * 100
    with Connection(address) as connection:
        connection.send(post("/hash", None if chunked else len(body)))
        connection.send(sent + more)
        answer, rest = connection.next_answer()
        assert json.loads(answer.body)["sha256"] == hashlib.sha256(body).hexdigest()
        for _ in range(100):
            answer, rest = connection.next_answer(rest)
            assert answer.body == b"hello"


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_body_that_breaks_its_chunks_never_reaches_a_worker(server: Server, address: Address, size: int) -> None:
    log = server.log_from_here()
    with Connection(address) as connection:
        connection.send(post("/boom", None) + chunk(b"x" * size))
        connection.send(b"nonsense\r\n")
        answer = connection.answer()
        assert (answer.status, answer.end) == (400, End.EOF)
    assert http(address, "/hello").status == 200
    assert "/boom" not in log.text()


@pytest.mark.parametrize("size", [10, 100_000, 3 * IN_MEMORY])
def test_a_client_that_leaves_leaves_nothing(server: Server, address: Address, size: int) -> None:
    http(address, "/hello")
    wait_until(lambda: len(server.workers()) == 1)
    before = files(server)
    with ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(Connection(address))
            connection.send(post("/hash", size + 1) + b"x" * size)
        assert http(address, "/hello").status == 200
    wait_until(lambda: files(server) <= before, message=lambda: f"{files(server)} descriptors, {before} before")


def test_a_body_that_fits_nowhere(start: Start) -> None:
    """No file of the master may be larger than this: the body fits into memory, and then not onto the disk."""
    server = start(options("processes = 1", "http-buffer = 200000"))
    assert http(server.address, "/hello").status == 200  # it is through its start
    with Connection(server.address) as connection:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))
        connection.send(post("/hash", MB) + b"x" * MB)
        answer = connection.answer()
        assert (answer.status, answer.end) == (413, End.EOF)
    server.wait_log("answered 413: its body fits neither into http-buffer nor into a file in TMPDIR .File too large")
    assert http(server.address, "/hello").status == 200
    assert http(server.address, "/hash", "POST", b"x" * 150_000).status == 200


def test_a_client_that_stops_sending(start: Start) -> None:
    server = start(options("processes = 1", "http-timeout = 1"))
    with Connection(server.address) as connection:
        connection.send(post("/hash", 100) + b"x")
        assert connection.answer().status == 408
    server.wait_log("answered 408: nothing of its body came for http-timeout")


def test_a_body_survives_the_worker_that_did_not_begin_it(start: Start) -> None:
    """The first worker is stopped, and gets the request; it is taken back, with its body."""
    server = start(options("processes = 2", "dispatch = push"))
    stopped = json.loads(http(server.address, "/process").body)["pid"]
    os.kill(stopped, signal.SIGSTOP)
    body = body_of(3 * IN_MEMORY)
    with Connection(server.address) as connection:
        connection.send(post("/hash", len(body)) + body[:1])
        connection.send(body[1:])
        found = json.loads(connection.next_answer()[0].body)
    os.kill(stopped, signal.SIGCONT)
    assert found["sha256"] == hashlib.sha256(body).hexdigest()
    assert found["pid"] != stopped


@pytest.mark.parametrize("size", [100, 300_000, 3 * IN_MEMORY], ids=["small", "in memory", "on disk"])
def test_a_body_comes_through_an_upgrade(start: Start, size: int) -> None:
    server = start(options("processes = 1"))
    body = body_of(size)
    with Connection(server.address) as connection, Connection(server.address) as chunked:
        connection.send(post("/hash", size) + body[:1])
        connection.send(body[1 : size // 2])
        chunked.send(post("/hash", None) + b"%x\r\n" % size + body[: size // 2])
        upgrade(server)
        connection.send(body[size // 2 :])
        chunked.send(body[size // 2 :] + b"\r\n0\r\n\r\n")
        for one in (connection, chunked):
            assert json.loads(one.next_answer()[0].body)["sha256"] == hashlib.sha256(body).hexdigest()


# answers


def ask_slowly(connection: Connection, path: str) -> bytes:
    """Returns the first byte of the answer, and doesn't read on."""
    connection.send(GET % path.encode())
    return connection.receive(1)


def is_unix(address: Address) -> bool:
    return isinstance(address, str)


def too_large_for_the_kernel(address: Address) -> int:
    """Bytes: on loopback it takes 2.6 MB of an answer off our hands before the client reads any."""
    return MB if is_unix(address) else 5 * MB


def test_a_slow_reader_holds_no_worker(server: Server, address: Address) -> None:
    size = too_large_for_the_kernel(address) // 10 * 9
    expected = body_of(size)
    with ExitStack() as stack:
        readers = [stack.enter_context(Connection(address)) for _ in range(20)]
        begun = [ask_slowly(reader, f"/numbers?size={size}") for reader in readers if is_unix(address)]
        assert [http(address, "/hello").body for _ in range(20)] == [b"hello"] * 20
        for reader, first in zip(readers, begun, strict=False):
            answer, rest = reader.next_answer(first)
            assert (answer.body == expected, rest) == (True, b"")
            reader.send(GET % b"/hello")
            assert reader.next_answer()[0].body == b"hello"


@pytest.mark.parametrize("pipelined", [False, True])
def test_the_connection_goes_on_after_a_slow_answer(address: Address, pipelined: bool) -> None:
    """Pulled at first, then held, as far as cores do that."""
    size = too_large_for_the_kernel(address)
    with Connection(address) as connection:
        rest = b""
        for _ in range(3):
            more = GET % b"/hello" if pipelined else b""
            connection.send(GET % b"/numbers?size=%d" % size + more)
            for _ in paced(range(1), 0.02):
                answer, rest = connection.next_answer(rest)
            assert answer.body == body_of(size)
            connection.send(b"" if pipelined else GET % b"/hello")
            answer, rest = connection.next_answer(rest)
            assert (answer.body, rest) == (b"hello", b"")


def test_an_answer_goes_on_while_the_application_waits(address: Address, tmp_path: Path) -> None:
    """PEP 3333: no piece waits for the next one."""
    size = too_large_for_the_kernel(address)
    with Connection(address) as connection:
        got = ask_slowly(connection, f"/numbers?size={size}&gate={tmp_path / 'gate'}")
        while len(got) < size - (1 << 16):
            got += connection.receive(1 << 20)
        (tmp_path / "gate").touch()
        assert connection.next_answer(got)[0].body == body_of(size)


@pytest.mark.parametrize("how", ["fails", "dies"])
def test_an_answer_that_ends_too_early_is_seen_to(server: Server, address: Address, how: str) -> None:
    size = too_large_for_the_kernel(address)
    with Connection(address) as connection:
        first = ask_slowly(connection, f"/numbers?size={size}&{how}")
        if how == "dies":
            server.wait_log("its answer begun|killed by signal 9")
        answer = connection.answer(first)
        assert len(answer.body) < size
        assert answer.end is (End.EOF if is_unix(address) else answer.end)
    wait_until(lambda: http(address, "/hello").status == 200)


def test_a_large_answer_takes_little_memory(server: Server) -> None:
    master = psutil.Process(server.pid)
    address = server.addresses[1]
    http(address, f"/numbers?size={MB}")
    before = master.memory_info().rss
    with Connection(address) as connection:
        first = ask_slowly(connection, f"/numbers?size={40 * MB}")
        assert len(connection.next_answer(first)[0].body) == 40 * MB
        assert master.memory_info().rss - before < 4 * MB


@pytest.mark.parametrize("more", ["", "Connection: close\r\n"], ids=["goes on", "close"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_file_for_a_slow_reader(server: Server, tmp_path: Path, more: str, version: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(body_of(MB))
    with Connection(server.addresses[1]) as connection:
        connection.send(f"GET /file HTTP/{version}\r\nHost: a\r\n{more}X-File: {path}\r\n\r\n".encode())
        first = connection.receive(1)
        assert http(server.address, "/hello").status == 200
        assert connection.next_answer(first)[0].body == path.read_bytes()


def test_a_reader_that_stops_reading(start: Start) -> None:
    server = start(options("processes = 1", "http-timeout = 1"))
    with Connection(server.addresses[1]) as connection:
        ask_slowly(connection, f"/numbers?size={MB}&name=a")
        server.wait_log("all numbers of a are written")
        ended = select.poll()
        ended.register(connection.socket, 0)
        assert ended.poll(60_000) == [(connection.socket.fileno(), select.POLLHUP)]
        assert len(connection.answer().raw) < MB


def test_a_reader_that_is_slower_than_socket_timeout(start: Start) -> None:
    """While the master has no room for more, the worker waits; it isn't the one who judges the reader."""
    server = start(options("processes = 1", "socket-timeout = 1", "http-timeout = 30", "http-buffer = 100000"))
    size = 3 * MB
    with Connection(server.addresses[1]) as connection:
        got = ask_slowly(connection, f"/numbers?size={size}")
        for _ in paced(range(4), 0.8):
            got += connection.receive(1000)
        assert connection.next_answer(got)[0].body == body_of(size)


def test_an_application_that_is_slower_than_http_timeout(start: Start, tmp_path: Path) -> None:
    """It isn't the client who is slow then."""
    server = start(options("processes = 1", "http-timeout = 1"))
    with Connection(server.addresses[1]) as connection:
        first = ask_slowly(connection, f"/numbers?size={MB}&gate={tmp_path / 'gate'}")
        while len(first) < MB - (1 << 16):
            first += connection.receive(1 << 20)
        for _ in paced(range(4), 1):
            assert server.running()
        (tmp_path / "gate").touch()
        assert connection.next_answer(first)[0].body == body_of(MB)
        connection.send(GET % b"/hello")
        assert connection.next_answer()[0].body == b"hello"


def test_a_child_of_the_application_keeps_no_answer_from_ending(start: Start, tmp_path: Path) -> None:
    server = start(options("processes = 1"))
    with Connection(server.addresses[1]) as connection:
        connection.send(GET % f"/large?size={MB}".encode())
        assert len(connection.next_answer()[0].body) == MB
        connection.send(f"GET /numbers?size={MB}&forks&gate={tmp_path / 'gate'} HTTP/1.0\r\n\r\n".encode())
        first = connection.receive(1)
        answer = connection.answer(first)
        (tmp_path / "gate").touch()
        assert (answer.body == body_of(MB), answer.end) == (True, End.EOF)


def test_a_slow_answer_comes_through_an_upgrade(start: Start, tmp_path: Path) -> None:
    server = start(options("processes = 1"))
    with Connection(server.addresses[1]) as connection, Connection(server.addresses[1]) as running:
        first = ask_slowly(connection, f"/numbers?size={MB}&name=a")
        server.wait_log("all numbers of a are written")
        first_of_running = ask_slowly(running, f"/numbers?size={9 * MB // 10}&gate={tmp_path / 'gate'}")
        upgrade(server)
        (tmp_path / "gate").touch()
        for one, begun, size in ((connection, first, MB), (running, first_of_running, 9 * MB // 10)):
            assert one.next_answer(begun)[0].body == body_of(size)
        connection.send(GET % b"/hello")
        assert connection.next_answer()[0].body == b"hello"


@pytest.mark.parametrize("dispatch", ["auto", "push"])
def test_connections_that_go_on_come_through_an_upgrade(start: Start, dispatch: str) -> None:
    """One that runs, one that waits for its next request."""
    server = start(options("processes = 2", f"dispatch = {dispatch}"))
    with Connection(server.address) as running, Connection(server.address) as kept:
        for connection in (running, kept):
            for _ in range(3):
                connection.send(GET % b"/hello")
                assert connection.next_answer()[0].body == b"hello"
        running.send(GET % b"/process?seconds=4")
        wait_until(lambda: len(server.workers()) == 2)
        upgrade(server)
        assert running.next_answer()[0].status == 200
        for connection in (running, kept):
            connection.send(GET % b"/hello")
            assert connection.next_answer()[0].body == b"hello"


def test_a_stop_waits_for_a_slow_reader(start: Start) -> None:
    server = start(options("processes = 1"))
    with Connection(server.addresses[1]) as connection:
        first = ask_slowly(connection, f"/numbers?size={MB}&name=a")
        server.wait_log("all numbers of a are written")
        server.signal(signal.SIGTERM)
        server.wait_log("waiting for 1 requests")
        assert connection.next_answer(first)[0].body == body_of(MB)
    assert server.wait_exit() == 0


def test_many_slow_ones_at_once(server: Server) -> None:
    """Uploads and readers beside each other, all of them right."""
    address = server.addresses[1]
    upload = body_of(400_000)

    def slowly(number: int) -> bool:
        with Connection(address) as connection:
            for _ in range(5):
                if number % 2:
                    connection.send(post("/hash", len(upload)))
                    for at in range(0, len(upload), 50_000):
                        connection.send(upload[at : at + 50_000])
                    found = json.loads(connection.next_answer()[0].body)
                    if found["sha256"] != hashlib.sha256(upload).hexdigest():
                        return False
                else:
                    first = ask_slowly(connection, f"/numbers?size={MB}")
                    if connection.next_answer(first)[0].body != body_of(MB):
                        return False
        return True

    assert together(30, slowly) == [True] * 30
