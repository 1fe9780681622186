"""The clients that people use, without a web server in between: curl, requests with its pool, h11; Django and Flask."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import pytest
import requests
from requests.adapters import HTTPAdapter
from support.client import together
from support.harness import APPS, Server, free_port

CURL = ["curl", "--silent", "--show-error", "--max-time", "30"]
CSRF = {"Cookie": f"csrftoken={'a' * 32}", "X-CSRFToken": "a" * 32}  # what Django compares
UPLOAD = os.urandom(3_000_000)  # more than Django keeps in memory, and than `http-buffer`


@pytest.fixture(scope="module", params=["flaskapp:app", "djangoproject.wsgi"])
def site(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address, and a server as a container runs it."""
    port = free_port()
    options = f"""
        http = 127.0.0.1:{port}
        chdir = {APPS}
        home = {sys.prefix}
        module = {request.param}
        processes = 2
        threads = 2
        need-app = true
    """
    with Server(options, name="site"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # no proxy
        yield session


def connections(session: requests.Session) -> int:
    """How many its pool has opened so far."""
    adapter = session.get_adapter("http://")
    assert isinstance(adapter, HTTPAdapter)
    pools = adapter.poolmanager.pools
    return sum(pools[key].num_connections for key in pools.keys())  # noqa: SIM118  (it is no mapping)


def pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), 70_000):
        yield data[at : at + 70_000]


def test_requests_goes_on_with_one_connection(site: str, session: requests.Session) -> None:
    for number in range(1, 30):
        assert "is here" in session.get(f"{site}/").text
        assert session.get(f"{site}/visits").json() == {"visits": number}
        assert session.get(f"{site}/stream").text.count("\n") > 10
        assert session.get(f"{site}/nothing-there").status_code == 404
        assert session.head(f"{site}/").text == ""
    assert connections(session) == 1


def test_a_pool_of_connections(site: str, session: requests.Session) -> None:
    session.mount("http://", HTTPAdapter(pool_maxsize=8))
    texts = together(8, lambda _: [session.get(f"{site}/").status_code for _ in range(50)])
    assert texts == [[200] * 50] * 8
    assert connections(session) <= 8


def test_uploads_with_requests(site: str, session: requests.Session) -> None:
    expected = hashlib.sha256(UPLOAD).hexdigest()
    for _ in range(3):
        files = {"file": ("a.bin", UPLOAD)}
        found = session.post(f"{site}/upload", files=files, data={"note": "n"}, headers=CSRF).json()
        assert (found["size"], found["sha256"]) == (len(UPLOAD), expected)
    assert connections(session) == 1


def multipart(data: bytes) -> tuple[bytes, dict[str, str]]:
    head = (
        b'--boundary-of-this-test\r\nContent-Disposition: form-data; name="note"\r\n\r\nn\r\n'
        b'--boundary-of-this-test\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    )
    return head + data + b"\r\n--boundary-of-this-test--\r\n", {
        "Content-Type": "multipart/form-data; boundary=boundary-of-this-test",
        **CSRF,
    }


def test_chunked_uploads_with_requests(site: str, session: requests.Session) -> None:
    """A generator has no length, so requests sends chunks."""
    body, headers = multipart(UPLOAD)
    for _ in range(2):
        found = session.post(f"{site}/upload", data=pieces(body), headers=headers).json()
        assert (found["size"], found["sha256"]) == (len(UPLOAD), hashlib.sha256(UPLOAD).hexdigest())


@pytest.mark.parametrize(
    "more",
    [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"], ["--http1.0"]],
    ids=["expects to continue", "chunked", "at once", "HTTP/1.0"],
)
def test_uploads_with_curl(site: str, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "a.bin").write_bytes(UPLOAD)
    command = [
        *CURL,
        *more,
        *[f"-H{name}: {value}" for name, value in CSRF.items()],
        "-F",
        "note=n",
        "-F",
        f"file=@{tmp_path / 'a.bin'}",
        f"{site}/upload",
    ]
    if more == ["--http1.0"]:
        command[len(CURL) : len(CURL)] = ["-H", "Expect:"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert (found["size"], found["sha256"]) == (len(UPLOAD), hashlib.sha256(UPLOAD).hexdigest())


def test_curl_goes_on_with_one_connection(site: str) -> None:
    command = [*CURL, "--verbose", *[f"{site}/"] * 5]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.count("is here") == 5
    assert done.stderr.count("* Connected to") == 1
    assert done.stderr.count("Re-using existing connection") == 4


def ask_with_h11(connection: h11.Connection, client: socket.socket, request: h11.Request, body: bytes = b"") -> Any:
    """(status, body) of one request, as h11 understands the answer."""
    client.sendall(connection.send(request) or b"")
    if body:
        client.sendall(connection.send(h11.Data(data=body)) or b"")
    client.sendall(connection.send(h11.EndOfMessage()) or b"")
    status, found = 0, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(client.recv(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            found += event.data
        elif isinstance(event, h11.EndOfMessage):
            connection.start_next_cycle()
            return status, found


def test_h11_as_a_client(site: str) -> None:
    host, port = site.removeprefix("http://").split(":")
    body, headers = multipart(b"x" * 100_000)
    sent = [("Host", host), *headers.items(), ("Content-Length", str(len(body)))]
    with socket.create_connection((host, int(port)), timeout=30) as client:
        connection = h11.Connection(h11.CLIENT)
        for _ in range(5):
            asked = h11.Request(method="GET", target="/", headers=[("Host", host)])
            assert ask_with_h11(connection, client, asked)[0] == 200
            status, found = ask_with_h11(
                connection, client, h11.Request(method="POST", target="/upload", headers=sent), body
            )
            assert (status, json.loads(found)["size"]) == (200, 100_000)
