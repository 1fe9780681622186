"""TLS: `https` and its family, the certificates, and the processes that end it (terminator.py)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import trustme
from support.client import Connection, End, http
from support.deployed import WSGIMASTER
from support.harness import APPS, Server, free_port, kill
from support.tls import TlsConnection, client_context, issue
from support.wait import paced, wait_until

from wsgimaster.terminator import proxy_header

Start = Callable[..., Server]

PROBE = f"pythonpath = {APPS}\nmodule = probe\nbuffer-size = 16384\npidfile = pid\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
UNBUFFERED, BUFFERED = "https-socket", "https"


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def post(path: str, size: int | None, *fields: str) -> bytes:
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return get(path, length, *fields).replace(b"GET", b"POST", 1)


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """A directory with a certificate."""
    issue(tmp_path)
    return tmp_path


def lines(where: Path, *more: str, option: str = BUFFERED, rest: str = "") -> str:
    address = f"127.0.0.1:{free_port()},{where}/cert.pem,{where}/key.pem{rest}"
    return "\n".join([f"{option} = {address}", PROBE, *more])


def terminators(server: Server, count: int = 1) -> list[psutil.Process]:
    """Wait until there are that many."""

    def found() -> list[psutil.Process] | None:
        some = server.children("wsgimaster.terminator")
        return some if len(some) == count else None

    return wait_until(found, message=f"{count} terminators") or []


def ask(connection: TlsConnection, path: str = "/environ", *fields: str) -> dict[str, str]:
    assert connection.send(get(path, *fields))
    return json.loads(connection.next_answer()[0].content)["strings"]


def operate(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*WSGIMASTER, *words, "--pidfile", str(server.directory / "pid")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# what is in it


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with contextlib.ExitStack() as stack:
        where = tmp_path_factory.mktemp("certificates")
        issue(where)
        more = "threads = 2\nprocesses = 2\nhttp-processes = 2"
        yield {
            option: stack.enter_context(Server(lines(where, more, option=option), name=option))
            for option in (UNBUFFERED, BUFFERED)
        }


@pytest.fixture(params=[UNBUFFERED, BUFFERED])
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param]


def test_the_application_sees_https_and_the_client_himself(server: Server) -> None:
    with TlsConnection(server.address) as connection:
        port = connection.socket.getsockname()[1]
        for _ in range(5):
            environ = ask(connection)
            assert (environ["wsgi.url_scheme"], environ["HTTPS"]) == ("https", "on")
            assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("127.0.0.1", str(port))
            assert environ["SERVER_PORT"] == str(server.address[1])
        assert connection.socket.selected_alpn_protocol() is None


@pytest.mark.parametrize("offered", [["http/1.1"], ["h2", "http/1.1"]], ids=" ".join)
def test_it_says_that_it_speaks_http_1(server: Server, offered: list[str]) -> None:
    context = client_context()
    context.set_alpn_protocols(offered)
    with TlsConnection(server.address, context) as connection:
        assert connection.socket.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_that_are_sound(server: Server, version: ssl.TLSVersion) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with TlsConnection(server.address, context) as connection:
        assert ask(connection)["HTTPS"] == "on"


def test_versions_that_are_not(server: Server) -> None:
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match=r"TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)version"):
        TlsConnection(server.address, context)


@pytest.mark.parametrize("size", [1, 16_383, 16_384, 16_385, 300_000, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_bodies_and_answers_are_whole(server: Server, size: int, chunked: bool) -> None:
    body = random.Random(size).randbytes(size)
    with TlsConnection(server.address) as connection:
        for path in ("/hash",) if chunked else ("/hash", "/echo"):
            connection.send(post(path, None if chunked else size))
            connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body)
            content = connection.next_answer()[0].content
            if path == "/hash":
                assert json.loads(content)["sha256"] == hashlib.sha256(body).hexdigest()
            else:
                assert content == body


def test_requests_behind_one_another_are_answered_in_order(server: Server) -> None:
    with TlsConnection(server.address) as connection:
        connection.send(b"".join(get("/environ", f"X-Number: {number}") for number in range(30)))
        rest = b""
        for number in range(30):
            answer, rest = connection.next_answer(rest)
            assert json.loads(answer.content)["strings"]["HTTP_X_NUMBER"] == str(number)


def test_what_is_yielded_arrives_at_once(server: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    with TlsConnection(server.address) as connection:
        connection.send(get("/gated_generator", f"X-Gate: {tmp_path}/gate"))
        begun = connection.receive_until(b"first ")
        with (tmp_path / "gate").open("wb"):
            pass
        assert connection.next_answer(begun)[0].text == "first second"


def test_a_client_that_says_that_it_has_ended_gets_its_answer(server: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    with TlsConnection(server.address) as connection:
        connection.send(get("/gated_generator", f"X-Gate: {tmp_path}/gate"))
        connection.receive_until(b"first ")
        connection.half_close()
        with (tmp_path / "gate").open("wb"):
            pass
        assert b"second" in connection.receive_until(b"0\r\n\r\n")


def test_so_does_one_who_only_ends(server: Server) -> None:
    """As simple clients do: FIN, without close_notify."""
    with TlsConnection(server.address) as connection:
        ask(connection)
        connection.send(get("/generator?count=40"))
        socket.socket.shutdown(connection.socket, socket.SHUT_WR)  # SSLSocket's own ends TLS here, too
        assert len(connection.next_answer()[0].content) == 40 << 16


def test_an_answer_before_the_end_of_the_body_arrives(servers: dict[str, Server]) -> None:
    """And what still comes of the body doesn't destroy it."""
    body = b"x" * 3_000_000
    for _ in range(20):
        with TlsConnection(servers[UNBUFFERED].address) as connection:
            assert connection.send(post("/no-such-path", len(body)) + body)
            answer = connection.answer()
            assert (answer.status, answer.end) == (404, End.EOF)


def test_the_end_is_said(server: Server) -> None:
    """With close_notify: an answer without a length can't be told from one that was cut otherwise (RFC 8446 6.1)."""
    context = client_context()
    with TlsConnection(server.address, context) as connection:
        connection.socket.suppress_ragged_eofs = False
        connection.send(b"GET /generator?count=40 HTTP/1.0\r\n\r\n")
        answer = connection.answer()
    assert (answer.status, len(answer.body), answer.end) == (200, 40 << 16, End.EOF)


def test_many_at_once(server: Server) -> None:
    def one(number: int) -> str:
        with TlsConnection(server.address) as connection:
            ask(connection)
            return ask(connection, "/environ", f"X-Number: {number}")["HTTP_X_NUMBER"]

    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(one, range(300))) == [str(number) for number in range(300)]


def test_plain_http_is_told_what_is_spoken_here(server: Server) -> None:
    for body in (b"", b"x" * 20_000):
        answer = http(server.address, "/", body=body)
        assert (answer.status, answer.end) == (400, End.EOF)
        assert "https://" in answer.text


NOISE = {
    "nothing": b"",
    "half a hello": b"\x16\x03\x01\x02\x00\x01\x00",
    "zeros": bytes(1000),
    "a letter of PROXY": b"P",
    "half a PROXY line": b"PROXY TCP4 192.0.2.1",
    "half a PROXY block": SIGNATURE + b"\x21",
    "a PROXY line that doesn't end": b"PROXY " + b"x" * 200,
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_harms_nobody(server: Server, noise: bytes) -> None:
    processes = terminators(server, 2)
    before = sum(one.num_fds() for one in processes)
    for reset in (False, True) * 10:
        with Connection(server.address) as connection:
            connection.send(noise)
            if reset:
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with TlsConnection(server.address) as connection:
        ask(connection)
    assert terminators(server, 2) == processes
    wait_until(lambda: sum(one.num_fds() for one in processes) < before + 20)  # each would leave two


def test_whoever_says_nothing_is_closed(start: Start, where: Path) -> None:
    server = start(lines(where, "socket-timeout = 1"))
    for said in (b"", b"\x16\x03\x01\x02\x00", b"PROXY TCP4"):
        with Connection(server.address) as connection:
            connection.send(said)
            assert connection.answer().raw == b""


def test_a_client_that_takes_nothing_is_cut(start: Start, where: Path) -> None:
    """Also of what is left for him when the master has finished."""
    server = start(lines(where, "http-timeout = 1"))
    with TlsConnection(server.address) as connection:
        ask(connection)
        (process,) = terminators(server)
        others = process.num_fds() - 2
        connection.send(get("/generator?count=1000"))
        wait_until(lambda: process.num_fds() <= others)


def test_a_slow_reader_who_goes_on_is_served(start: Start, where: Path) -> None:
    """Longer than http-timeout altogether, never so long without taking anything."""
    server = start(lines(where, "http-timeout = 1"))
    size = 80 << 16
    with TlsConnection(server.address) as connection:
        connection.send(get("/generator?count=80", "Connection: close"))
        read = 0
        for _ in paced(range(1000), 0.1):
            pieces = 0
            while pieces < 60_000 and (data := connection.receive(60_000 - pieces)):
                pieces += len(data)
            read += pieces
            if not pieces:
                break
    assert size < read < size + 10_000


def test_failed_handshakes_are_told_in_one_line(start: Start, where: Path) -> None:
    server = start(lines(where))
    stranger = client_context(trustme.CA())
    for _ in range(3):
        with pytest.raises(ssl.SSLError):
            TlsConnection(server.address, stranger)
    server.wait_log(r"^TLS handshakes failed: \d x tlsv1 alert unknown ca$")
    assert server.log().count("handshakes failed") == 1


# PROXY headers, which come before the handshake


BLOCK = SIGNATURE + struct.pack("!BBH4s4sHH", 0x21, 0x11, 12, bytes([192, 0, 2, 7]), bytes([10, 0, 0, 1]), 4711, 443)
HEADERS = {
    "nothing": (b"", None),
    "a handshake": (b"\x16\x03\x01", 0),
    "HTTP": (b"POST / HTTP/1.1\r\n", 0),
    "a letter of a line": (b"P", None),
    "half a line": (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 44", None),
    "a line": (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n", 40),
    "a line and more": (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n\x16\x03", 40),
    "a line without end": (b"PROXY " + b"x" * 200, 107),
    "a letter of a block": (b"\r", None),
    "half a signature": (SIGNATURE[:9], None),
    "another signature": (b"\r\n\r\nx", 0),
    "half a head": (BLOCK[:15], None),
    "half a block": (BLOCK[:27], None),
    "a block": (BLOCK, 28),
    "a block and more": (BLOCK + b"\x16", 28),
}


@pytest.mark.parametrize(("said", "size"), HEADERS.values(), ids=HEADERS)
def test_how_long_a_proxy_header_is(said: bytes, size: int | None) -> None:
    assert proxy_header(said) == size


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n", BLOCK], ids=["line", "block"])
def test_the_load_balancer_says_who_the_client_is(start: Start, where: Path, header: bytes) -> None:
    server = start(lines(where, "http-enable-proxy-protocol = true", "forwarded-allow = 127.0.0.1"))
    with TlsConnection(server.address, preface=header) as connection:
        for _ in range(2):
            environ = ask(connection)
            assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.7", "4711")
    with Connection(server.address) as plain:  # in pieces
        for byte in header:
            plain.send(bytes([byte]))
        plain.socket = client_context().wrap_socket(plain.socket, server_hostname="localhost")
        plain.send(get("/environ"))
        assert b"192.0.2.7" in plain.next_answer()[0].content


def test_a_stranger_may_not(start: Start, where: Path) -> None:
    server = start(lines(where))
    with TlsConnection(server.address, preface=BLOCK) as connection:
        connection.send(get("/environ"))
        assert connection.answer().status == 400


# certificates


def test_the_other_ways_to_write_it(start: Start, where: Path) -> None:
    ports = [free_port(), free_port()]
    server = start(
        f"https2 = addr=127.0.0.1:{ports[0]},cert={where}/cert.pem,key={where}/key.pem,ciphers=HIGH\n"
        f"https = 127.0.0.1:{ports[1]},{where}/cert.pem,{where}/key.pem,ECDHE-ECDSA-AES128-GCM-SHA256\n{PROBE}",
        ready="spawned",
    )
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for port in ports:
        with TlsConnection(("127.0.0.1", port), context) as connection:
            ask(connection)
            cipher = connection.socket.cipher()
    assert cipher is not None
    assert cipher[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    assert f"https socket 1 bound to TCP address 127.0.0.1:{ports[1]}" in server.log()


def test_relative_paths_begin_where_it_was_started(start: Start, where: Path) -> None:
    """As for uWSGI, which reads them before it enters `chdir`."""
    server = start(f"https = 127.0.0.1:{free_port()},cert.pem,key.pem\nchdir = /\n{PROBE}", where=where)
    with TlsConnection(server.address) as connection:
        ask(connection)


def spoil_key(where: Path) -> None:
    (where / "key.pem").write_text("-----BEGIN SOMETHING-----\n")


def other_key(where: Path) -> None:
    certificate = (where / "cert.pem").read_bytes()
    issue(where)
    (where / "cert.pem").write_bytes(certificate)


def encrypted_key(where: Path) -> None:
    key, plain = where / "key.pem", where / "plain.pem"
    key.rename(plain)
    command = ["openssl", "pkey", "-in", str(plain), "-out", str(key), "-aes256", "-passout", "pass:secret"]
    subprocess.run(command, check=True)


def spoil_ca(where: Path) -> None:
    (where / "ca.pem").write_text("nothing")


BROKEN = {
    "no certificate": (lambda where: (where / "cert.pem").unlink(), "", r"cert\.pem: No such file or directory"),
    "no key": (lambda where: (where / "key.pem").unlink(), "", r"key\.pem: No such file or directory"),
    "another file": (lambda where: (where / "cert.pem").write_text(""), "", r"cert\.pem: expected a certificate \(PEM"),
    "no private key": (spoil_key, "", r"key\.pem: expected a private key \(PEM"),
    "another key": (other_key, "", r"key\.pem: this key isn't that of the first certificate in .*cert\.pem"),
    "a key with a password": (encrypted_key, "", r"the private key is encrypted; openssl pkey"),
    "unknown ciphers": (lambda _: None, ",NOTHING", r"OpenSSL knows no cipher of 'NOTHING'"),
    "no authority": (lambda _: None, ",,/nowhere/ca.pem", r"/nowhere/ca\.pem: No such file or directory"),
    "another authority": (spoil_ca, ",,ca.pem", r"ca\.pem: expected certificates \(PEM\)"),
}


@pytest.mark.parametrize(("spoil", "rest", "message"), BROKEN.values(), ids=BROKEN)
def test_it_does_not_start_with(
    start: Start, where: Path, spoil: Callable[[Path], None], rest: str, message: str
) -> None:
    spoil(where)
    server = start(lines(where, rest=rest), ready="nothing", where=where)
    assert server.wait_exit() == 1
    server.wait_log(rf"^wsgimaster: https 127\.0\.0\.1:\d+: .*{message}")


@pytest.mark.parametrize("demanded", ["!", ""], ids=["demanded", "asked for"])
def test_certificates_of_clients(start: Start, where: Path, demanded: str) -> None:
    ours = trustme.CA()
    ours.cert_pem.write_to_path(str(where / "ca.pem"))
    server = start(lines(where, rest=f",HIGH,{demanded}{where}/ca.pem"))

    def asks(authority: trustme.CA | None) -> bool:
        context = client_context()
        if authority is not None:
            authority.issue_cert("client.example").configure_cert(context)
        try:
            with TlsConnection(server.address, context) as connection:
                return ask(connection)["HTTPS"] == "on"
        except (ssl.SSLError, OSError, AssertionError):
            return False

    assert asks(ours)
    assert not asks(trustme.CA())
    assert asks(None) == (not demanded)


def test_a_reload_takes_the_new_certificate(start: Start, where: Path) -> None:
    server = start(lines(where, "http-processes = 2"))
    before = {one.pid for one in terminators(server, 2)}
    with TlsConnection(server.address) as old:
        ask(old)
        issue(where)
        log = server.log_from_here()
        assert operate(server, "reload", "--wait").returncode == 0
        log.wait("the certificates were read again")
        with TlsConnection(server.address) as new:
            ask(new)
            assert new.certificate != old.certificate
        assert ask(old)["HTTPS"] == "on"
    assert not before & {one.pid for one in terminators(server, 2)}


def test_a_reload_with_a_broken_certificate_is_refused(start: Start, where: Path) -> None:
    server = start(lines(where))
    with TlsConnection(server.address) as connection:
        before = connection.certificate
    other_key(where)
    done = operate(server, "reload", "--wait")
    assert done.returncode != 0
    assert "this key isn't that of the first certificate" in done.stderr
    with TlsConnection(server.address) as connection:
        assert connection.certificate == before
        ask(connection)


def test_no_request_is_lost_in_reloads(start: Start, where: Path) -> None:
    server = start(lines(where, "processes = 2"))
    over = []

    def ask_on() -> int:
        count = 0
        while not over:
            with TlsConnection(server.address) as connection:
                for _ in range(3):
                    assert ask(connection)["HTTPS"] == "on"
                    count += 1
        return count

    with ThreadPoolExecutor() as pool:
        counts = [pool.submit(ask_on) for _ in range(4)]
        try:
            for _ in range(3):
                issue(where)
                assert operate(server, "reload", "--wait").returncode == 0
        finally:
            over.append(True)
        assert all(count.result() for count in counts)


def test_an_upgrade_keeps_connections(start: Start, where: Path) -> None:
    server = start(lines(where))
    (before,) = terminators(server)
    with TlsConnection(server.address) as old:
        ask(old)
        assert operate(server, "upgrade").returncode == 0
        assert ask(old)["HTTPS"] == "on"
        terminators(server, 2)
        with TlsConnection(server.address) as new:
            ask(new)
    assert before not in terminators(server)


LOOK_INTO = """
import os, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for pid in sys.argv[1:]:
    try:
        print(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        pass
    for fd in range(3, 100):
        try:
            with open(f"/proc/{pid}/fd/{fd}", "rb") as file:
                if b"PRIVATE KEY" in file.read(10000):
                    print(pid, fd)
        except OSError:
            pass
"""


def secrets_of(server: Server, where: Path) -> str:
    """What a process of the application's user finds of the descriptors and the key, in the server's."""
    pids = [str(server.pid), *(str(one.pid) for one in terminators(server))]
    return subprocess.run(
        [sys.executable, "-c", LOOK_INTO, *pids], capture_output=True, text=True, timeout=60, check=True, cwd=where
    ).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_key_is_read_as_root(start: Start, where: Path, readable: list[str]) -> None:
    """And stays, if it can't be read at a reload."""
    for path in (where, *where.parents[:2]):
        path.chmod(0o755)
    (where / "key.pem").chmod(0o600)
    command = [*readable, *WSGIMASTER]
    server = start(lines(where, "uid = 65534", "gid = 65534"), command=command)
    server.directory.chmod(0o777)
    with TlsConnection(server.address) as connection:
        before = connection.certificate
    assert not secrets_of(server, where)
    issue(where)
    log = server.log_from_here()
    psutil.Process(server.pid).send_signal(1)  # SIGHUP: a reload
    log.wait(r"key\.pem: Permission denied: the certificate that was read before stays")
    log.wait("the certificates were read again")
    with TlsConnection(server.address) as connection:
        assert connection.certificate == before
        ask(connection)


CHANGES = {
    "another file": (",{where}/other.pem,{where}/key.pem", "other.pem"),
    "ciphers": (",{where}/cert.pem,{where}/key.pem,HIGH", "HIGH"),
    "an authority": (",{where}/cert.pem,{where}/key.pem,,!{where}/cert.pem", "True"),
}


@pytest.mark.parametrize(("files", "named"), CHANGES.values(), ids=CHANGES)
def test_other_files_take_a_restart(start: Start, where: Path, files: str, named: str) -> None:
    """Their contents don't."""
    server = start(lines(where))
    ini = server.directory / "uwsgi.ini"
    ini.write_text(ini.read_text().replace(f",{where}/cert.pem,{where}/key.pem", files.format(where=where)))
    done = operate(server, "reload", "--wait")
    assert done.returncode != 0
    assert "https" in done.stderr
    assert named in done.stderr


def test_a_directory_that_the_user_may_not_enter(start: Start, where: Path, readable: list[str]) -> None:
    for path in (where, *where.parents[:2]):
        path.chmod(0o755)
    closed = where / "closed"
    closed.mkdir(mode=0o700)
    rest = f"pythonpath = {APPS}\nmodule = probe"
    (closed / "a.ini").write_text(
        f"[uwsgi]\nhttps = 127.0.0.1:{free_port()},{where}/cert.pem,{where}/key.pem\n{rest}\nuid = 65534\ngid = 65534\n"
    )
    argv = ["--ini", "a.ini", "--master"]
    server = start(argv=argv, where=closed, command=[*readable, *WSGIMASTER], ready="spawned")
    port = int(server.wait_log(r"bound to TCP address 127\.0\.0\.1:(\d+)")[0][1])
    with TlsConnection(("127.0.0.1", port)) as connection:
        ask(connection)


# the processes


def test_another_one_comes_when_one_is_killed(start: Start, where: Path) -> None:
    server = start(lines(where))
    with TlsConnection(server.address) as connection:
        ask(connection)
        (process,) = terminators(server)
        kill(process)
        assert connection.answer().end in (End.EOF, End.RESET)
    with TlsConnection(server.address) as connection:  # waits for it
        ask(connection)
    server.wait_log(rf"a process that ends TLS \(pid: {process.pid}\) ended \(killed by signal 9\)")


def test_a_stop_waits_for_answers(start: Start, where: Path) -> None:
    server = start(lines(where))
    gate = where / "gate"
    os.mkfifo(gate)
    with TlsConnection(server.address) as idle, TlsConnection(server.address) as busy:
        ask(idle)
        busy.send(get("/gated_generator", f"X-Gate: {gate}"))
        begun = busy.receive_until(b"first ")
        log = server.log_from_here()
        assert operate(server, "stop").returncode == 0
        log.wait("waiting for 1 request")
        with gate.open("wb"):
            pass
        assert busy.next_answer(begun)[0].text == "first second"
        assert server.wait_exit() == 0
        assert idle.answer().end is End.EOF


@pytest.mark.parametrize("path", ["/hello", "/generator?count=1000"], ids=["that stay", "that don't read"])
def test_a_fast_stop_waits_for_no_clients(start: Start, where: Path, path: str) -> None:
    server = start(lines(where))
    with TlsConnection(server.address) as connection:
        connection.send(get(path, "Connection: close"))
        connection.receive(1)
        began = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 0
        assert time.monotonic() - began < 15  # a client may stay for 30 s otherwise, or read nothing for 60


def test_a_second_signal_hastens_a_stop(start: Start, where: Path) -> None:
    """Of one that waits for a client to take what is left for him."""
    server = start(lines(where))
    with TlsConnection(server.address) as connection:
        connection.send(get("/generator?count=1000"))
        connection.receive(1)
        log = server.log_from_here()
        assert operate(server, "stop").returncode == 0
        log.wait("stopping gracefully")
        server.signal(signal.SIGINT)
        began = time.monotonic()
        server.wait_exit()
        assert time.monotonic() - began < 15


def test_one_that_dies_at_once_is_replaced_after_a_pause(start: Start, where: Path) -> None:
    server = start(lines(where, "http-processes = 2"))
    for _ in range(2):
        for process in terminators(server, 2):
            kill(process)
        with TlsConnection(server.address) as connection:
            ask(connection)
    assert operate(server, "reload", "--wait").returncode == 0
    assert len(terminators(server, 2)) == 2


def test_an_upgrade_that_cannot_keep_the_workers(start: Start, where: Path) -> None:
    server = start(lines(where))
    (before,) = terminators(server)
    ini = server.directory / "uwsgi.ini"
    ini.write_text(ini.read_text() + "threads = 2\n")
    with TlsConnection(server.address) as old:
        ask(old)
        assert operate(server, "upgrade").returncode == 0
        assert ask(old)["HTTPS"] == "on"
    assert before not in terminators(server)
    with TlsConnection(server.address) as new:
        ask(new)


def test_they_end_when_the_master_is_killed(start: Start, where: Path) -> None:
    server = start(lines(where))
    with TlsConnection(server.address) as connection:
        ask(connection)
        (process,) = terminators(server)
        os.kill(server.pid, 9)
        wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def test_signals_that_are_for_the_master_do_not_end_them(start: Start, where: Path) -> None:
    """A terminal's, and those that systemd sends to everybody."""
    server = start(lines(where))
    with TlsConnection(server.address) as connection:
        ask(connection)
    (process,) = terminators(server)
    for number in (1, 2, 3, 10, 12, 15):
        process.send_signal(number)
    with TlsConnection(server.address) as connection:
        ask(connection)
    assert [one.pid for one in terminators(server)] == [process.pid]
