"""The clients that people use, without a web server in between: curl, requests with its pool, h11, a browser; over HTTP
and HTTPS, with Django and Flask."""

from __future__ import annotations

import hashlib
import json
import os
import signal
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
from support.client import Connection, together
from support.harness import APPS, Server, free_port
from support.tls import AUTHORITY, TlsConnection, issue
from support.wait import wait_until

CURL = ["curl", "--silent", "--show-error", "--max-time", "30"]
UPLOAD = os.urandom(3_000_000)  # more than Django keeps in memory, and than `http-buffer`


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's, and the authority's, as ca.pem."""
    where = tmp_path_factory.mktemp("certificates")
    issue(where)
    AUTHORITY.cert_pem.write_to_path(str(where / "ca.pem"))
    return where


APPLICATIONS = ["flaskapp:app", "djangoproject.wsgi"]
SITES = {f"{scheme}, {name.partition('.')[0]}": (scheme, name) for name in APPLICATIONS for scheme in ("http", "https")}


@pytest.fixture(scope="module", params=SITES.values(), ids=SITES)
def site(request: pytest.FixtureRequest, certificates: Path) -> Iterator[str]:
    """The address, and a server as a container runs it."""
    scheme, module = request.param
    port = free_port()
    files = f",{certificates}/cert.pem,{certificates}/key.pem" if scheme == "https" else ""
    options = f"""
        {scheme} = 127.0.0.1:{port}{files}
        env = BROWSER_FOUND={certificates}
        chdir = {APPS}
        pythonpath = {APPS}
        home = {sys.prefix}
        module = {module}
        processes = 2
        threads = 2
        need-app = true
    """
    with Server(options, name="site"):
        yield f"{scheme}://127.0.0.1:{port}"


@pytest.fixture
def session(certificates: Path) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # no proxy
        session.verify = str(certificates / "ca.pem")
        yield session


@pytest.fixture
def curl(certificates: Path) -> list[str]:
    return [*CURL, "--cacert", str(certificates / "ca.pem")]


def connections(session: requests.Session) -> int:
    """How many its pool has opened so far."""
    count = 0
    for adapter in session.adapters.values():
        assert isinstance(adapter, HTTPAdapter)
        pools = adapter.poolmanager.pools
        count += sum(pools[key].num_connections for key in pools.keys())  # noqa: SIM118  (it is no mapping)
    return count


def csrf(site: str) -> dict[str, str]:
    """What Django compares."""
    return {"Cookie": f"csrftoken={'a' * 32}", "X-CSRFToken": "a" * 32, "Referer": f"{site}/"}


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
    session.mount(site, HTTPAdapter(pool_maxsize=8))
    texts = together(8, lambda _: [session.get(f"{site}/").status_code for _ in range(50)])
    assert texts == [[200] * 50] * 8
    assert connections(session) <= 8


def test_uploads_with_requests(site: str, session: requests.Session) -> None:
    expected = hashlib.sha256(UPLOAD).hexdigest()
    for _ in range(3):
        files = {"file": ("a.bin", UPLOAD)}
        found = session.post(f"{site}/upload", files=files, data={"note": "n"}, headers=csrf(site)).json()
        assert (found["size"], found["sha256"]) == (len(UPLOAD), expected)
    assert connections(session) == 1


def multipart(site: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    head = (
        b'--boundary-of-this-test\r\nContent-Disposition: form-data; name="note"\r\n\r\nn\r\n'
        b'--boundary-of-this-test\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    )
    return head + data + b"\r\n--boundary-of-this-test--\r\n", {
        "Content-Type": "multipart/form-data; boundary=boundary-of-this-test",
        **csrf(site),
    }


def test_chunked_uploads_with_requests(site: str, session: requests.Session) -> None:
    """A generator has no length, so requests sends chunks."""
    body, headers = multipart(site, UPLOAD)
    for _ in range(2):
        found = session.post(f"{site}/upload", data=pieces(body), headers=headers).json()
        assert (found["size"], found["sha256"]) == (len(UPLOAD), hashlib.sha256(UPLOAD).hexdigest())


@pytest.mark.parametrize(
    "more",
    [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"], ["--http1.0"]],
    ids=["expects to continue", "chunked", "at once", "HTTP/1.0"],
)
def test_uploads_with_curl(site: str, curl: list[str], tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "a.bin").write_bytes(UPLOAD)
    command = [
        *curl,
        *more,
        *[f"-H{name}: {value}" for name, value in csrf(site).items()],
        "-F",
        "note=n",
        "-F",
        f"file=@{tmp_path / 'a.bin'}",
        f"{site}/upload",
    ]
    if more == ["--http1.0"]:
        command[len(curl) : len(curl)] = ["-H", "Expect:"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert (found["size"], found["sha256"]) == (len(UPLOAD), hashlib.sha256(UPLOAD).hexdigest())


def test_curl_goes_on_with_one_connection(site: str, curl: list[str]) -> None:
    command = [*curl, "--verbose", *[f"{site}/"] * 5]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.count("is here") == 5
    assert done.stderr.count("* Connected to") == 1
    assert done.stderr.count("Re-using existing connection") == 4


def test_a_browser(site: str, certificates: Path, tmp_path: Path) -> None:
    """It uploads, listens to events, leaves in the middle, and asks many things at once (tests/apps/browser.html)."""
    for left in certificates.glob("event-*"):
        left.unlink()
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",  # root has none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-proxy-server",
        "--ignore-certificate-errors",
        f"--user-data-dir={tmp_path}",
        f"{site}/browser",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        try:
            wait_until(lambda: (certificates / "found").exists(), 60)
            found = json.loads((certificates / "found").read_bytes())
        finally:
            (certificates / "found").unlink(missing_ok=True)
            os.killpg(run.pid, signal.SIGKILL)
    assert found == {
        "front": "Flask is here" if found["front"].startswith("Flask") else "Django is here",
        "lines": [1001] * 40,
        "visits": 3,
        "upload": 3_000_000,
        "events": ["0", "1", "2", "3", "4"],
        "left": found["front"],
        "missing": 404,
        "error": 500,
        "protocols": ["http/1.1"],
    }


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
    scheme, _, where = site.partition("://")
    host, port = where.split(":")
    body, headers = multipart(site, b"x" * 100_000)
    sent = [("Host", where), *headers.items(), ("Content-Length", str(len(body)))]
    with (TlsConnection if scheme == "https" else Connection)((host, int(port))) as opened:
        client = opened.socket
        connection = h11.Connection(h11.CLIENT)
        for _ in range(5):
            asked = h11.Request(method="GET", target="/", headers=[("Host", where)])
            assert ask_with_h11(connection, client, asked)[0] == 200
            status, found = ask_with_h11(
                connection, client, h11.Request(method="POST", target="/upload", headers=sent), body
            )
            assert (status, json.loads(found)["size"]) == (200, 100_000)
