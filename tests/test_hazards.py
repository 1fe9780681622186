"""What the application leaves running before the fork is named in the log, with its place in the code."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.client import uwsgi
from support.harness import APPS, COMMAND, Server

from wsgimaster import hazards

Start = Callable[..., Server]

APP = APPS / "leftovers.py"
SOURCE = APP.read_text().splitlines()
TRACER = """
import threading

original = threading.Thread.start


def install():
    def start(self):
        return original(self)

    threading.Thread.start = start
    return start
"""


class Peers:
    """What the application connects to; `env` tells it where."""

    def __init__(self, directory: Path) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.tcp6 = socket.create_server(("::1", 0), family=socket.AF_INET6)
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(directory / "peer.sock"))
        self.unix.listen()
        self.installed = directory / "site-packages"
        self.installed.mkdir()
        (self.installed / "tracer.py").write_text(TRACER)
        ports = {name: str(getattr(self, name).getsockname()[1]) for name in ("tcp", "tcp6", "udp")}
        self.env = {f"{name.upper()}_PORT": port for name, port in ports.items()}
        self.env |= {"UNIX_PATH": self.unix.getsockname()}
        self.names = {**ports, "unix": self.unix.getsockname()}

    def close(self) -> None:
        for peer in (self.tcp, self.tcp6, self.udp, self.unix):
            peer.close()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    peers = Peers(tmp_path)
    yield peers
    peers.close()


def serve(start: Start, peers: Peers, deeds: str, *more: str, **others: Any) -> Server:
    paths = [f"pythonpath = {APPS}", f"pythonpath = {peers.installed}"]
    lines = ["socket = app.sock", *paths, "module = leftovers", *more]
    return start("\n".join(lines) + "\n", env={**peers.env, "LEFTOVERS": deeds}, **others)


def hazards_in(server: Server) -> list[str]:
    """The lines, complete as soon as there is a worker."""
    server.wait_log("spawned uWSGI worker 1 ")
    return [line for line in server.log().splitlines() if "workers share" in line or "only in the zygote" in line]


def place(mark: str) -> str:
    (number,) = [number for number, line in enumerate(SOURCE, 1) if line.endswith(f"# {mark}")]
    return f"{APP}:{number}"


def definition(name: str) -> str:
    return f"{APP}:{SOURCE.index(f'def {name}():') + 1}"


AFTER = "after the fork, for example with os.register_at_fork(after_in_child=...), or set lazy-apps = true."
SHARED = "*** all workers share one {} connection to {}, made at {} while the application was loaded"
UNKNOWN = "a place that isn't known"

CONNECTIONS = {  # what the application does: its peer's name, and where; None: it isn't known
    "tcp": ("TCP", "127.0.0.1:{tcp}", "tcp"),
    "tcp_ex": ("TCP", "127.0.0.1:{tcp}", "tcp_ex"),
    "tcp6": ("TCP", "[::1]:{tcp6}", "tcp6"),
    "unix": ("unix", "{unix}", "unix"),
    "udp": ("UDP", "127.0.0.1:{udp}", "udp"),
    "library": ("TCP", "127.0.0.1:{tcp}", "library"),
    "in_c": ("TCP", "127.0.0.1:{tcp}", None),
    "twice": ("TCP", "127.0.0.1:{tcp}", "twice"),
}


@pytest.mark.parametrize(
    ("deed", "kind", "address", "mark"), [(d, *c) for d, c in CONNECTIONS.items()], ids=CONNECTIONS
)
def test_a_connection_is_named(
    start: Start, peers: Peers, deed: str, kind: str, address: str, mark: str | None
) -> None:
    server = serve(start, peers, deed, "processes = 2")
    where = place(mark) if mark else f"{UNKNOWN} (a C library connects by itself)"
    shared = SHARED.format(kind, address.format(**peers.names), where)
    assert hazards_in(server) == [f"{shared}. Connect {AFTER}"]


THREAD = (
    "*** thread {} exists only in the zygote, not in the workers. It runs leftovers.run_for_ever ({}) and was started "
    "at {} while the application was loaded"
)

THREADS = {  # what the application does: the thread's name, and where it was started
    "thread": ("'refresher'", "thread"),
    "odd_thread": (r"'odd\\nname'", "odd_thread"),
    "traced_thread": ("'refresher'", "thread"),
    "raw_thread": (r"'\d+'", None),
}


@pytest.mark.parametrize(("deed", "name", "mark"), [(d, *t) for d, t in THREADS.items()], ids=THREADS)
def test_a_thread_is_named(start: Start, peers: Peers, deed: str, name: str, mark: str | None) -> None:
    server = serve(start, peers, deed)
    where = place(mark) if mark else UNKNOWN
    before, after = (f"{THREAD}. Start it {AFTER}").split("{}", 1)
    after = after.format(definition("run_for_ever"), where)
    (line,) = hazards_in(server)
    assert re.fullmatch(re.escape(before) + name + re.escape(after), line), line


def test_a_thread_of_a_c_library_is_counted(start: Start, peers: Peers) -> None:
    (line,) = hazards_in(serve(start, peers, "c_thread"))
    assert line.startswith("*** 1 thread of C libraries exists only in the zygote, not in the workers.")
    (line,) = hazards_in(serve(start, peers, "c_thread c_thread"))
    assert line.startswith("*** 2 threads of C libraries exist only in the zygote, not in the workers.")


def test_twenty_of_each_kind_are_named(start: Start, peers: Peers) -> None:
    lines = hazards_in(serve(start, peers, "many many_threads"))
    assert [place("many_threads") + " while" in line for line in lines[:20]] == [True] * 20
    assert lines[20] == "*** and 5 more threads that exist only in the zygote"
    assert [place("many") + " while" in line for line in lines[21:41]] == [True] * 20
    assert lines[41:] == ["*** and 5 more connections that all workers share"]


EVERYTHING = "tcp tcp_ex unix udp library in_c thread raw_thread traced_thread"
HARMLESS = {
    "nothing": ("nothing",),
    "a pair of sockets": ("pair",),
    "a listening socket": ("listener",),
    "sockets that aren't connected": ("unconnected",),
    "an event loop": ("loop",),
    "a connection that was closed": ("closed",),
    "a connection that nobody can reach": ("garbage",),
    "threads that have ended": ("joined",),
    "everything, with lazy-apps": (EVERYTHING, "lazy-apps = true"),
}


@pytest.mark.parametrize("deeds", HARMLESS.values(), ids=HARMLESS)
def test_no_line_for(start: Start, peers: Peers, deeds: tuple[str, ...]) -> None:
    assert hazards_in(serve(start, peers, *deeds)) == []


def test_no_line_for_what_the_server_was_started_with(start: Start, peers: Peers) -> None:
    """Whoever starts a server may leave it connections: a log socket, as systemd does, and others."""
    command = ["sh", "-c", 'exec 3>&1; exec "$@"', "sh", *COMMAND]
    with socket.create_connection(peers.tcp.getsockname()) as theirs:
        log, _ = peers.tcp.accept()
        serve(start, peers, "thread", command=command, output=theirs.fileno())
    said = ""
    while "spawned uWSGI worker 1 " not in said:
        said += log.recv(65536).decode()
    log.close()
    assert "thread 'refresher' exists only in the zygote" in said
    assert "workers share" not in said


def test_an_application_that_nobody_could_load(start: Start, peers: Peers) -> None:
    """Its workers answer 500 and use nothing of it."""
    server = serve(start, peers, "tcp thread no_such_deed")
    assert hazards_in(server) == []
    assert "KeyError: 'no_such_deed'" in server.log()


# the looking itself


def state(server: Server) -> dict:
    answer = uwsgi(server.address)
    assert answer.status == 200, server.log()
    return json.loads(answer.body)


def test_the_wrapping_is_gone_when_the_application_is_loaded(start: Start, peers: Peers) -> None:
    found = state(serve(start, peers, "tcp thread"))
    assert (found["connect"], found["connect_ex"]) == ("inherited", False)
    assert found["start"] == threading.__file__


def test_what_the_application_wraps_itself_stays(start: Start, peers: Peers) -> None:
    """Its worker connects through its own connect, ours below, and starts threads through the tracer."""
    found = state(serve(start, peers, "traced_thread patch"))
    assert (found["connect"], found["connect_ex"]) == ("leftovers.own_connect", False)
    assert found["start"].endswith("tracer.py")


def test_a_descriptor_stays_blocking_although_sockets_get_a_timeout(start: Start, peers: Peers) -> None:
    server = serve(start, peers, "in_c")
    found = state(server)
    assert (found["blocking"], found["timeout"]) == ([True], 5.0)
    assert len(hazards_in(server)) == 1


def test_what_was_kept_of_the_wrapping_only_passes_through(peers: Peers) -> None:
    with hazards.Watch() as watch:
        connect, start = socket.socket.connect, threading.Thread.start
    ended = threading.Event()
    with socket.socket() as sock:
        connect(sock, peers.tcp.getsockname())
        start(thread := threading.Thread(target=ended.wait, name="later"))
        (about_thread,) = [line for line in watch.report() if "'later'" in line]
        ended.set()
        thread.join()
    assert f"started at {UNKNOWN} " in about_thread
    assert connect is not socket.socket.connect
    assert start is not threading.Thread.start


def test_a_thread_that_is_about_to_end_gets_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends during the pause before the second look."""
    with hazards.Watch() as watch:
        end = threading.Event()
        thread = threading.Thread(target=end.wait, name="ending")
        thread.start()

    def pause(_seconds: float) -> None:
        end.set()
        thread.join()

    monkeypatch.setattr(hazards.time, "sleep", pause)
    assert "ending" not in "".join(watch.report())
    assert not thread.is_alive()


def test_an_error_in_the_looking_becomes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application may have replaced anything."""
    watch = hazards.Watch()
    monkeypatch.setattr(threading, "enumerate", lambda: 1 / 0)
    assert watch.report() == [
        "*** what the application left running can't be looked at: ZeroDivisionError('division by zero')"
    ]
