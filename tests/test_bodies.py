"""Large bodies, bodies that nobody reads, and peers that are slow or stop: both directions.

On a real uWSGI 2.0.31 the rows about unread bodies may fail, with the answer cut or replaced by nginx's 502.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import pytest
from support.client import Address, Answer, Connection, End, cgi, http, packet, together, uwsgi
from support.harness import APPS, Nginx, Server, free_port, peak_memory
from support.wait import paced, wait_until

MB = 1 << 20
BLOCK = 1 << 16
ROOM = 32 * MB  # that a process may grow while hundreds of MB pass

TRANSPORTS = ["unix", "TCP"]
transport = pytest.mark.parametrize("transport", TRANSPORTS)


def options(*more: str) -> str:
    lines = [
        "socket = app.sock",
        f"socket = 127.0.0.1:{free_port()}",
        f"pythonpath = {APPS}",
        "module = probe",
        "processes = 2",
        "need-app = true",
    ]
    return "\n".join([*lines, *more]) + "\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(options()) as server:
        server.wait_log("spawned uWSGI worker", 2)
        yield server


@pytest.fixture(scope="module")
def patient() -> Iterator[Server]:
    """With the shortest socket-timeout, so that the tests end soon."""
    with Server(options("socket-timeout = 1")) as server:
        yield server


@pytest.fixture(scope="module")
def fronts(server: Server) -> Iterator[dict[str, Address]]:
    unix, tcp = server.addresses
    with Nginx(unix) as first, Nginx(tcp) as second:
        yield {"unix": first.address, "TCP": second.address}


def by_transport(server: Server, transport: str) -> Address:
    return server.addresses[TRANSPORTS.index(transport)]


def block(number: int) -> bytes:
    """The probe's block of that number."""
    return number.to_bytes(8, "big") * (BLOCK // 8)


# hundreds of megabytes


def peaks(server: Server) -> dict[int, int]:
    return {process.pid: peak_memory(process.pid) for process in server.processes()}


def assert_flat(server: Server, before: dict[int, int]) -> None:
    grown = {pid: peak - before[pid] for pid, peak in peaks(server).items()}
    assert max(grown.values()) < ROOM, grown


@transport
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_upload_of_200_mb(server: Server, transport: str, buffering: str) -> None:
    blocks = 200 * MB // BLOCK
    digest = hashlib.sha256()
    with Nginx(by_transport(server, transport), location=f"uwsgi_request_buffering {buffering};") as nginx:
        uwsgi(server.address, "/hash")
        before = peaks(server)
        with Connection(nginx.address) as connection:
            head = f"POST /hash HTTP/1.1\r\nHost: localhost\r\nContent-Length: {blocks * BLOCK}\r\n"
            connection.send(f"{head}Connection: close\r\n\r\n".encode())
            for number in range(blocks):
                connection.send(block(number))
                digest.update(block(number))
            about = json.loads(connection.answer().text)
    assert (about["size"], about["sha256"]) == (blocks * BLOCK, digest.hexdigest())
    assert_flat(server, before)


def download(address: Address, path: str, check: Callable[[int, memoryview], None], **headers: str) -> int:
    """Give each piece of the body, with its place in it, to the check; the number of bytes."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    place = 0
    with Connection(address) as connection:
        connection.send(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n{lines}\r\n".encode())
        head, _, begun = connection.receive_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        assert b" 200 " in head, head
        check(place, memoryview(begun))
        place += len(begun)
        buffer = memoryview(bytearray(MB))
        while size := connection.socket.recv_into(buffer):
            check(place, buffer[:size])
            place += size
    return place


@transport
def test_download_of_a_1_gb_file(server: Server, fronts: dict[str, Address], tmp_path: Path, transport: str) -> None:
    """A sparse file with marks, through wsgi.file_wrapper."""
    path = tmp_path / "file"
    with path.open("w+b") as file:
        for place in range(0, 1024 * MB, 64 * MB - 4096):
            file.seek(place)
            file.write(place.to_bytes(8, "big") * 1000)
        file.truncate(1024 * MB + 1)

        def check(place: int, data: memoryview) -> None:
            assert data == os.pread(file.fileno(), len(data), place), f"differs after {place}"

        before = peaks(server)
        assert download(fronts[transport], "/file", check, X_File=str(path)) == 1024 * MB + 1
    assert_flat(server, before)


@transport
def test_download_of_1_gb_from_a_generator(server: Server, fronts: dict[str, Address], transport: str) -> None:
    count = 1024 * MB // BLOCK

    def check(place: int, data: memoryview) -> None:
        first, last = place // BLOCK, (place + len(data)) // BLOCK + 1
        expected = b"".join(map(block, range(first, last)))
        start = place - first * BLOCK
        assert data == expected[start : start + len(data)], f"differs after {place}"

    before = peaks(server)
    assert download(fronts[transport], f"/generator?count={count}", check) == 1024 * MB
    assert_flat(server, before)


# bodies that nobody reads

REFUSAL = b"who are you? " * 8000  # what the probe's /refuse answers
UNREAD = b"x" * (10 * MB)


@transport
@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("length", ["yes", "no"], ids=["Content-Length", "no Content-Length"])
def test_a_hundred_refusals_of_10_mb(server: Server, transport: str, buffering: str, length: str) -> None:
    """The answer arrives although the application looked at nothing of what was sent."""
    with Nginx(by_transport(server, transport), location=f"uwsgi_request_buffering {buffering};") as nginx:

        def refused(_: int) -> list[Answer]:
            return [http(nginx.address, f"/refuse?length={length}", "POST", UNREAD) for _ in range(25)]

        answers = list(chain.from_iterable(together(4, refused)))
    assert [answer.status for answer in answers] == [401] * 100
    assert all(answer.content == REFUSAL for answer in answers)


@transport
def test_refusals_without_nginx(server: Server, transport: str) -> None:
    """A client that sends everything before it reads gets the whole answer too, and no reset."""
    address = by_transport(server, transport)

    def refused(_: int) -> list[tuple[int, bool, End]]:
        answers = (uwsgi(address, "/refuse?length=no", "POST", UNREAD[: 2 * MB]) for _ in range(100))
        return [(answer.status, answer.body == REFUSAL, answer.end) for answer in answers]

    assert together(8, refused) == [[(401, True, End.EOF)] * 100] * 8


def test_unread_body_holds_no_worker(patient: Server) -> None:
    """Two workers refuse twenty clients that stop within their bodies: others are served meanwhile."""
    connections = [Connection(patient.address) for _ in range(20)]
    try:
        for connection in connections:
            connection.send(packet(cgi("/refuse", "POST", UNREAD)) + b"x" * 1000)
            connection.receive_until(REFUSAL[-100:])
        assert uwsgi(patient.address, "/hello").status == 200
    finally:
        for connection in connections:
            connection.close()


def trickle(client: Connection) -> bool:
    return client.send(b"x")


def test_unread_body_without_end_is_cut(patient: Server) -> None:
    """Clients that go on sending, a little at a time, don't keep their connections for ever."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(address)) for address in patient.addresses]
        for client in clients:
            client.send(packet(cgi("/refuse", "POST", UNREAD)))
            client.receive_until(REFUSAL[-100:])
        wait_until(lambda: not any([*map(trickle, clients)]), 90, "the server closes")


# peers that are slow


@transport
def test_slow_reader_is_not_cut(patient: Server, transport: str) -> None:
    """It takes several times socket-timeout, but some bytes move within each."""
    size = 16 * MB
    connection = Connection(by_transport(patient, transport))
    with connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MB // 2)
        connection.send(packet(cgi(f"/large?size={size}")))
        data = connection.receive_until(b"\r\n\r\n")
        received = len(data.partition(b"\r\n\r\n")[2])
        for _ in paced(range(20), 0.2):
            received += len(connection.socket.recv(MB // 2, socket.MSG_WAITALL))
        while piece := connection.receive(MB):
            received += len(piece)
    assert received == size


@transport
def test_very_slow_reader_is_not_cut(patient: Server, transport: str) -> None:
    """Far too slow for the socket to become writable within socket-timeout: only its buffer's level tells."""
    size = 700_000
    connection = Connection(by_transport(patient, transport))
    with connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.send(packet(cgi(f"/large?size={size}")))
        data = connection.receive_until(b"\r\n\r\n")
        received = len(data.partition(b"\r\n\r\n")[2])
        for _ in paced(range(16), 0.25):
            received += len(connection.socket.recv(20_000, socket.MSG_WAITALL))
        while piece := connection.receive(MB):
            received += len(piece)
    assert received == size


def test_slow_sender_is_not_cut(patient: Server) -> None:
    body = b"x" * 20
    with Connection(patient.address) as connection:
        connection.send(packet(cgi("/hash", "POST", body)))
        for _ in paced(body, 0.2):
            connection.send(b"x")
        assert json.loads(connection.answer().body)["size"] == 20


STOPS = {
    "before the first byte": b"",
    "within the four bytes": packet(cgi())[:3],
    "within the variables": packet(cgi())[:100],
}


@transport
@pytest.mark.parametrize("begun", STOPS.values(), ids=STOPS)
def test_client_that_stops_in_the_head_is_closed(patient: Server, transport: str, begun: bytes) -> None:
    with Connection(by_transport(patient, transport)) as connection:
        connection.send(begun)
        assert connection.answer().status in (0, 408)


def test_client_that_stops_in_the_body_ends_the_read(patient: Server) -> None:
    """The application gets an OSError, the client some error, and the worker is free."""
    log = patient.log_from_here()
    with Connection(patient.address) as connection:
        connection.send(packet(cgi("/read_failure", "POST", b"x" * 1000)) + b"half")
        log.wait("read failed: ")
        assert connection.answer().status != 200
    assert "read succeeded" not in log.text()


@transport
def test_reader_that_stops_ends_the_answer(patient: Server, transport: str) -> None:
    log = patient.log_from_here()
    with Connection(by_transport(patient, transport)) as connection:
        connection.send(packet(cgi("/endless", HTTP_X_NAME=f"endless {transport}")))
        log.wait(f"closed endless {transport}", timeout=60)
    assert "Traceback" not in log.text()
