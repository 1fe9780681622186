"""HTTP connections that go on after an answer: who serves them, what ends them, and bodies that come in chunks."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from support.client import Address, Connection, End, http, together
from support.harness import APPS, Server, free_port
from support.wait import wait_until

Start = Callable[..., Server]

GET = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def options(*more: str) -> str:
    lines = [f"http-socket = 127.0.0.1:{free_port()}", "http-socket = http.sock", f"pythonpath = {APPS}"]
    return "\n".join([*lines, "module = probe", "need-app = true", "processes = 2", *more])


@pytest.fixture(scope="module", params=["auto", "push"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(options(f"dispatch = {request.param}")) as server:
        yield server


@pytest.fixture(params=["TCP", "unix"])
def address(server: Server, request: pytest.FixtureRequest) -> Address:
    return server.addresses[request.param == "unix"]


def test_who_comes_anew_gets_a_turn(start: Start) -> None:
    """Although those who have connections keep the only worker busy, and the queue is never empty."""
    server = start(options("processes = 1").replace("processes = 2", ""))
    answered, served = threading.Event(), [0] * 7

    def ask_again_and_again(number: int) -> None:
        with Connection(server.address) as connection:
            while not answered.is_set() and served[number] < 200:
                connection.send(GET % b"/process?seconds=0.02")
                assert connection.next_answer()[0].status == 200
                served[number] += 1

    def come_anew() -> None:
        wait_until(lambda: sum(served) > 30)
        try:
            assert [http(address, "/hello").status for address in server.addresses * 3] == [200] * 6
        finally:
            answered.set()

    together(7, lambda number: ask_again_and_again(number) if number else come_anew())
    assert max(served) < 200, "the others had to leave first"


# one after the other


def test_many_requests_on_one_connection(address: Address) -> None:
    with Connection(address) as connection:
        for number in range(50):
            body = b"%d" % number
            connection.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            answer, rest = connection.next_answer()
            assert (answer.status, answer.body, rest) == (200, body, b"")
            assert answer.header("Connection") is None


@pytest.mark.parametrize("path", ["/hello", "/generator", "/write_calls", "/body?list", "/body?empty_list"])
def test_every_kind_of_answer_ends_where_the_next_begins(address: Address, path: str) -> None:
    expected = http(address, path).content
    with Connection(address) as connection:
        for _ in range(3):
            connection.send(GET % path.encode())
            assert connection.next_answer()[0].content == expected


@pytest.mark.parametrize("status", ["204%20No%20Content", "304%20Not%20Modified"])
def test_an_answer_without_a_body(address: Address, status: str) -> None:
    with Connection(address) as connection:
        connection.send(GET % f"/head?status={status}".encode())
        connection.next_answer()
        connection.send(GET % b"/hello")
        assert connection.next_answer()[0].body == b"hello"


@pytest.mark.parametrize("path", ["/hello", "/generator", "/body?list"])
def test_head_requests(address: Address, path: str) -> None:
    with Connection(address) as connection:
        for _ in range(2):
            connection.send(GET.replace(b"GET", b"HEAD") % path.encode())
            answer, rest = connection.next_answer(bodyless=True)
            assert (answer.status, answer.body, rest) == (200, b"", b"")
        connection.send(GET % b"/hello")
        assert connection.next_answer()[0].body == b"hello"


def test_a_file(address: Address, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(300_000))
    with Connection(address) as connection:
        for _ in range(3):
            connection.send(b"GET /file HTTP/1.1\r\nHost: a\r\nX-File: %s\r\n\r\n" % bytes(path))
            answer, rest = connection.next_answer()
            assert (answer.header("Content-Length"), answer.body, rest) == ("300000", path.read_bytes(), b"")


def test_the_clients_address_is_right_on_every_request(server: Server) -> None:
    with Connection(server.addresses[0]) as connection:
        host, port = connection.socket.getsockname()
        for _ in range(3):
            connection.send(GET % b"/environ")
            given = json.loads(connection.next_answer()[0].body)["strings"]
            assert (given["REMOTE_ADDR"], given["REMOTE_PORT"]) == (host, str(port))


def test_nothing_of_one_request_is_in_the_next(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(b"GET /environ?a HTTP/1.1\r\nHost: a\r\nX-Mine: b\r\nCookie: c\r\n\r\n")
        connection.next_answer()
        connection.send(GET % b"/environ")
        given = json.loads(connection.next_answer()[0].body)["strings"]
        assert given["QUERY_STRING"] == ""
        assert not {"HTTP_X_MINE", "HTTP_COOKIE"} & set(given)


def test_an_old_client_that_asks_for_it(address: Address) -> None:
    with Connection(address) as connection:
        for _ in range(3):
            connection.send(b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer, _ = connection.next_answer()
            assert (answer.body, answer.header("Connection")) == (b"hello", "keep-alive")
        connection.send(b"GET /generator HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")  # only the end can end that one
        assert connection.answer().end is End.EOF


def test_a_hundred_connections(address: Address) -> None:
    def ask(number: int) -> list[bytes]:
        with Connection(address) as connection:
            bodies = []
            for turn in range(20):
                body = b"%d-%d" % (number, turn)
                connection.send(b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                bodies.append(connection.next_answer()[0].body)
            return bodies

    expected = [[b"%d-%d" % (number, turn) for turn in range(20)] for number in range(100)]
    assert together(100, ask) == expected


# several at once


def test_pipelined_requests_are_answered_in_order(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(b"".join(GET % (b"/environ?%d" % number) for number in range(40)))
        rest = b""
        for number in range(40):
            answer, rest = connection.next_answer(rest)
            assert json.loads(answer.body)["strings"]["QUERY_STRING"] == str(number)


def test_pipelined_requests_with_bodies_in_single_bytes(address: Address) -> None:
    request = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    data = (request + GET % b"/hello") * 3
    with Connection(address) as connection:
        for place in range(len(data)):
            connection.send(data[place : place + 1])
        rest, bodies = b"", []
        for _ in range(6):
            answer, rest = connection.next_answer(rest)
            bodies.append(answer.body)
        assert bodies == [b"abc", b"hello"] * 3


def test_more_than_one_read_of_pipelined_requests(address: Address) -> None:
    filler = b"X-Filler: " + b"x" * 3_000
    request = b"GET /environ?%d HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n"
    with Connection(address) as connection:
        connection.send(b"".join(request % (number, filler) for number in range(40)))
        rest = b""
        for number in range(40):
            answer, rest = connection.next_answer(rest)
            assert json.loads(answer.body)["strings"]["QUERY_STRING"] == str(number)


def test_good_bad_good(server: Server, address: Address) -> None:
    """One 200, one 400, and the end: what follows a request that nobody understands isn't read."""
    log = server.settled_log()
    with Connection(address) as connection:
        connection.send(GET % b"/hello" + b"GET /hello HTTP/1.1\r\nHost : a\r\n\r\n" + GET % b"/hello?after")
        first, rest = connection.next_answer()
        second = connection.answer(rest)
    assert (first.status, second.status, second.header("Connection"), second.end) == (200, 400, "close", End.EOF)
    assert second.raw.count(b"HTTP/1.1") == 1
    http(address, "/hello?last")
    log.wait(r"/hello\?last")
    assert "/hello?after" not in log.text()


def test_bad_and_good_in_one_segment(server: Server, address: Address) -> None:
    log = server.settled_log()
    with Connection(address) as connection:
        connection.send(b"GET /hello HTTP/1.1\r\nContent-Length: x\r\nHost: a\r\n\r\n" + GET % b"/hello?after")
        answer = connection.answer()
    assert (answer.status, answer.raw.count(b"HTTP/1.1"), answer.end) == (400, 1, End.EOF)
    http(address, "/hello?last")
    log.wait(r"/hello\?last")
    assert "/hello?after" not in log.text()


# who serves a connection: _layout.pxd, "Held connections"


def pid_of(connection: Connection) -> int:
    connection.send(GET % b"/process")
    return int(json.loads(connection.next_answer()[0].body)["pid"])


def test_a_connection_stays_with_its_worker(start: Start) -> None:
    """Nobody else is woken for it, as long as that worker comes at once."""
    server = start(options("dispatch = auto"))
    with Connection(server.address) as connection:
        first = pid_of(connection)
        assert {pid_of(connection) for _ in range(20)} == {first}


def test_who_waits_behind_a_long_request_is_served_by_others(start: Start, tmp_path: Path) -> None:
    """Though the worker that holds his connection doesn't come."""
    server = start(options("dispatch = auto"))
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.address)) for _ in range(8)]
        for connection in connections:
            pid_of(connection)
        stuck, *others = connections
        stuck.send(b"GET /gated_generator HTTP/1.1\r\nHost: a\r\nX-Gate: %s\r\n\r\n" % bytes(gate))
        begun = stuck.receive_until(b"first \r\n")
        pids = {pid_of(connection) for connection in others for _ in range(3)}
        assert len(pids) == 1
        gate.write_bytes(b"")
        assert stuck.next_answer(begun)[0].content == b"first second"
        assert all(pid_of(connection) for connection in connections)


def test_more_connections_than_a_core_can_hold(start: Start) -> None:
    server = start(options("dispatch = auto", "processes = 1"))
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.address)) for _ in range(600)]
        for _ in range(3):
            for number, connection in enumerate(connections):
                connection.send(GET % b"/environ?%d" % number)
            for number, connection in enumerate(connections):
                given = json.loads(connection.next_answer()[0].body)["strings"]
                assert given["QUERY_STRING"] == str(number)


def test_paused_servers_keep_connections_waiting(start: Start) -> None:
    """A core that holds one doesn't serve it either."""
    server = start(options("master-fifo = fifo"))
    with Connection(server.address) as connection:
        pid_of(connection)
        (server.directory / "fifo").write_text("p")
        server.wait_log("paused|pausing", 1)
        connection.send(GET % b"/hello")
        connection.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.receive()
        connection.socket.settimeout(60)
        (server.directory / "fifo").write_text("p")
        assert connection.next_answer()[0].body == b"hello"


# how a connection ends

ENDS = {
    "the client says so": b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "the application says so": GET % b"/head?header=Connection:close",
    "an old client": b"GET /hello HTTP/1.0\r\n\r\n",
    "the application fails": GET % b"/fail_at_once?error",
    "shorter than announced": GET % b"/shorter_than_announced",
}


@pytest.mark.parametrize("request_bytes", ENDS.values(), ids=ENDS)
def test_the_last_answer(address: Address, request_bytes: bytes) -> None:
    with Connection(address) as connection:
        connection.send(request_bytes)
        answer = connection.answer()
    assert answer.status in (200, 500)
    assert answer.end is End.EOF
    assert answer.header("Connection") == ("close" if b"shorter" not in request_bytes else None)


def test_an_answer_that_fails_halfway_is_cut(address: Address) -> None:
    """No last chunk, so that the client sees it."""
    with Connection(address) as connection:
        connection.send(GET % b"/fail_after_first_chunk?error")
        answer = connection.answer()
    assert answer.header("Transfer-Encoding") == "chunked"
    assert not answer.raw.endswith(b"0\r\n\r\n")


def test_longer_than_announced(address: Address) -> None:
    with Connection(address) as connection:
        for _ in range(2):
            connection.send(GET % b"/longer_than_announced")
            answer, rest = connection.next_answer()
            assert (answer.body, rest) == (b"abcd", b"")


def test_a_client_that_leaves_between_two_requests(server: Server, address: Address) -> None:
    master = server.processes()[0]
    before = master.num_fds()
    for _ in range(20):
        with Connection(address) as connection:
            connection.send(GET % b"/hello")
            connection.next_answer()
    wait_until(lambda: master.num_fds() <= before + 1, message="the master has closed them")


def test_a_client_that_half_closes_gets_its_answer(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(GET % b"/hello")
        connection.half_close()
        answer, _ = connection.next_answer()
        assert answer.body == b"hello"
        assert connection.receive() == b""


def test_a_worker_that_dies_between_two_requests(server: Server, address: Address) -> None:
    """The connection is the master's then."""
    log = server.log_from_here()
    with Connection(address) as connection:
        connection.send(GET % b"/process?mine")
        pid = json.loads(connection.next_answer()[0].body)["pid"]
        log.wait(r"/process\?mine")  # it is over for the worker as well
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in [worker.pid for worker in server.workers()], message="it is gone")
        connection.send(GET % b"/hello")
        assert connection.next_answer()[0].body == b"hello"
    server.wait_workers(2)


def test_a_worker_that_dies_in_a_request(server: Server) -> None:
    """Every request but the first of a connection is pushed, or its worker's death would be silent."""
    with Connection(server.addresses[0]) as connection:
        connection.send(GET % b"/hello")
        connection.next_answer()
        connection.send(GET % b"/kill?9")
        answer = connection.answer()
    assert (answer.status, answer.end) == (502, End.EOF)
    server.wait_workers(2)


def test_idle_connections_end(start: Start) -> None:
    server = start(options("http-keepalive = 2"))
    with Connection(server.address) as connection:
        connection.send(GET % b"/hello")
        connection.next_answer()
        assert connection.receive() == b""


@pytest.mark.parametrize("dispatch", ["auto", "push"])
def test_without_keepalive(start: Start, dispatch: str) -> None:
    server = start(options("http-keepalive = off", f"dispatch = {dispatch}"))
    with Connection(server.address) as connection:
        connection.send(GET % b"/hello" * 2)
        answer = connection.answer()
    assert (answer.header("Connection"), answer.raw.count(b"200 OK"), answer.end) == ("close", 1, End.EOF)


def test_half_a_request_on_a_kept_connection_times_out(start: Start) -> None:
    server = start(options("socket-timeout = 1"))
    with Connection(server.address) as connection:
        connection.send(GET % b"/hello")
        connection.next_answer()
        connection.send(b"GET /hel")
        assert connection.answer().status == 408


def test_stop_ends_idle_connections_and_finishes_the_others(start: Start) -> None:
    server = start(options("die-on-term = true"))
    begun = server.directory / "begun"
    with (
        Connection(server.address) as idle,
        Connection(server.address) as another,
        Connection(server.address) as busy,
    ):
        for connection in (idle, another, busy):
            connection.send(GET % b"/hello")
            connection.next_answer()
        busy.send(b"GET /count?seconds=1 HTTP/1.1\r\nHost: a\r\nX-File: %s\r\n\r\n" % bytes(begun))
        wait_until(begun.exists, message="it runs")
        server.signal(signal.SIGTERM)
        assert idle.receive() == another.receive() == b""
        answer = busy.answer()
    assert (answer.status, answer.header("Connection"), answer.end) == (200, "close", End.EOF)
    assert server.wait_exit() == 0


def test_answers_say_close_while_the_server_drains(start: Start) -> None:
    server = start(options("die-on-term = true", "drain-delay = 30"))
    with Connection(server.address) as connection:
        connection.send(GET % b"/hello")
        assert connection.next_answer()[0].header("Connection") is None
        server.signal(signal.SIGTERM)
        server.wait_log("not ready any more")
        connection.send(GET % b"/hello")
        answer = connection.answer()
    assert (answer.body, answer.header("Connection"), answer.end) == (b"hello", "close", End.EOF)
    server.signal(signal.SIGINT)


# bodies


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


POST_CHUNKS = b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("size", [0, 1, 1_000, 100_000, 3_000_000])
@pytest.mark.parametrize("piece", [7, 4_096, 1_000_000])
def test_chunked_uploads(address: Address, size: int, piece: int) -> None:
    if size > 100 * piece * 100:
        size = 100 * piece
    body = os.urandom(size)
    with Connection(address) as connection:
        for _ in range(2):
            connection.send(POST_CHUNKS % b"/hash" + chunked(body, piece))
            found = json.loads(connection.next_answer()[0].body)
            assert (found["size"], found["sha256"]) == (size, hashlib.sha256(body).hexdigest())


def test_chunks_in_single_bytes(address: Address) -> None:
    data = POST_CHUNKS % b"/lines" + b"3\r\na\nb\r\n5;x\r\nc\nd\ne\r\n0\r\nT: u\r\n\r\n" + GET % b"/hello"
    with Connection(address) as connection:
        for place in range(len(data)):
            connection.send(data[place : place + 1])
        answer, rest = connection.next_answer()
        assert json.loads(answer.body) == ["a\n", "bc\n", "d\n", "e"]
        assert connection.next_answer(rest)[0].body == b"hello"


READS = ["read", "read_minus_one", "read_none", "read_zero", "read_three", "read_too_much", "readline"]


@pytest.mark.parametrize("how", [*READS, "readline_four", "readlines", "readlines_hint", "iteration", "mixed"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "late"])
def test_every_way_to_read_chunks(address: Address, how: str, at_once: bool) -> None:
    """As with a length."""
    body = b"first\nsecond\r\nthird\n\nlast"
    expected = http(address, f"/reads?{how}", "POST", body).body
    head, data = POST_CHUNKS % f"/reads?{how}".encode(), chunked(body, 4)
    with Connection(address) as connection:
        for piece in [head + data] if at_once else [head + data[:10], data[10:11], data[11:]]:
            connection.send(piece)
        answer, rest = connection.next_answer()
        assert answer.body == expected
        connection.send(GET % b"/hello")
        assert connection.next_answer(rest)[0].body == b"hello"


def test_chunks_come_as_they_are_sent(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(POST_CHUNKS % b"/interleaved" + b"3\r\nabc\r\n")
        begun = connection.receive_until(b"<abc>")
        connection.send(b"3\r\ndef\r\n0\r\n\r\n")
        assert connection.next_answer(begun)[0].content == b"<abc><def>"


def test_broken_chunks_that_the_application_forgives(server: Server, address: Address) -> None:
    """Nobody knows where the next request begins, so there is none."""
    log = server.log_from_here()
    with Connection(address) as connection:
        connection.send((POST_CHUNKS % b"/forgiving").replace(b"Host: a", b"Host: a\r\nExpect: 100-continue"))
        connection.receive_until(CONTINUE)  # it reads
        connection.send(b"3\r\nabc\r\n" + GET % b"/hello?smuggled")
        answer = connection.answer()
    assert (answer.content, answer.raw.count(b"HTTP/1.1"), answer.end) == (b"forgiven", 1, End.EOF)
    http(address, "/hello?last")
    log.wait(r"/hello\?last")
    assert "smuggled" not in log.text()


def test_broken_chunks_that_come_later(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(POST_CHUNKS % b"/hash" + b"3\r\nabc\r\n")
        connection.send(b"nonsense\r\n" + GET % b"/hello")
        answer = connection.answer()
    assert (answer.status, answer.raw.count(b"HTTP/1.1"), answer.end) == (400, 1, End.EOF)


UNREAD = {
    "chunks": POST_CHUNKS % b"/hello" + chunked(b"x" * 50_000, 1_000),
    "a length": b"POST /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000,
}


@pytest.mark.parametrize("request_bytes", UNREAD.values(), ids=UNREAD)
def test_a_small_body_that_nobody_reads(address: Address, request_bytes: bytes) -> None:
    """It is read over if it has come by then; else the answer says that it is the last."""
    with Connection(address) as connection:
        connection.send(request_bytes)
        answer, rest = connection.next_answer()
        assert answer.body == b"hello"
        if answer.header("Connection") == "close":
            assert connection.answer(rest).raw == b""
        else:
            connection.send(GET % b"/hello?next")
            assert connection.next_answer(rest)[0].body == b"hello"


def test_a_large_body_that_nobody_reads(address: Address) -> None:
    """The answer arrives all the same, and says that it is the last."""
    answers = together(8, lambda _: http(address, "/refuse", "POST", b"x" * 10_000_000, [("Connection", "keep-alive")]))
    assert [(answer.status, answer.header("Connection"), answer.end) for answer in answers] == [
        (401, "close", End.EOF)
    ] * 8


EXPECTING = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"


def test_no_100_continue_within_the_answer(address: Address) -> None:
    """Neither where the application answers before it reads."""
    request = b"POST /interleaved_late HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    with Connection(address) as connection:
        connection.send(request)
        begun = connection.receive_until(b"first\r\n")
        connection.send(b"abc")
        answer, _ = connection.next_answer(begun)
        assert answer.content == b"first<abc>"


def test_100_continue_when_the_application_reads(address: Address) -> None:
    with Connection(address) as connection:
        for _ in range(2):
            connection.send(EXPECTING % b"/echo")
            assert connection.receive_until(CONTINUE) == CONTINUE
            connection.send(b"abc")
            assert connection.next_answer()[0].body == b"abc"


def test_no_100_continue_when_it_does_not_read(address: Address) -> None:
    """The client needn't send its body then, so the connection can't go on."""
    with Connection(address) as connection:
        connection.send(EXPECTING % b"/hello")
        answer = connection.answer()
    assert (answer.status, answer.body, answer.header("Connection")) == (200, b"hello", "close")


def test_no_100_continue_when_the_body_has_begun(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(EXPECTING % b"/echo" + b"abc")
        assert connection.next_answer()[0].raw.count(b"HTTP/1.1") == 1


def test_server_sent_events_arrive_as_they_are_yielded(address: Address, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with Connection(address) as connection:
        connection.send(b"GET /gated_generator HTTP/1.1\r\nHost: a\r\nX-Gate: %s\r\n\r\n" % bytes(gate))
        begun = connection.receive_until(b"first \r\n")
        gate.write_bytes(b"")
        assert connection.next_answer(begun)[0].content == b"first second"


def test_reloads_keep_connections(start: Start) -> None:
    server = start(options("touch-reload = touched"))
    (server.directory / "touched").touch()
    with Connection(server.address) as connection:
        connection.send(GET % b"/process")
        before = json.loads(connection.next_answer()[0].body)["pid"]
        server.signal(signal.SIGHUP)
        server.wait_log("gracefully reloaded")
        connection.send(GET % b"/process")
        assert json.loads(connection.next_answer()[0].body)["pid"] != before


def test_connections_that_are_reset(server: Server) -> None:
    """At any point: no descriptor stays."""
    master = server.processes()[0]
    before = master.num_fds()
    data = GET % b"/hello" + POST_CHUNKS % b"/hash" + chunked(b"x" * 100, 10) + GET % b"/generator"
    for size in range(0, len(data), 3):
        connection = Connection(server.addresses[0])
        connection.send(data[:size])
        if size % 2:
            connection.socket.setblocking(False)
            with suppress(BlockingIOError):
                connection.receive()
        connection.reset()
    wait_until(lambda: master.num_fds() <= before + 1, message="the master has closed them")
    assert http(server.addresses[0], "/hello").body == b"hello"
