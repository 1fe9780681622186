"""The master's front and the workers' serve loop, face to face in one process.

The cores are threads with real channels, a real scoreboard and real clients; only the processes are missing.
"""

import os
import select
import socket
import struct
import threading
import time

import pytest

from support.lone_core import make_core
from support.wait import wait_until
from wsgimaster import wakeups
from wsgimaster._front import Front, board_slots_offset
from wsgimaster._proto import build
from wsgimaster.processes import make_channel
from wsgimaster.scoreboard import Scoreboard

SLOT_BYTES = 704  # _layout.pxd; its first field is `taken`
WANTED = 8  # in the board's head
QUEUE_WAIT = 0.05  # seconds
READY = (4).to_bytes(2, "little") + bytes(62)  # a MessageHead, _layout.pxd: kind, and nothing else


class Recorder:
    """The events that the master would get, and what it would decide."""

    def __init__(self):
        self.ready, self.refused, self.lines, self.lost, self.edges = [], [], [], [], []
        self.ticks = self.decided = self.alarms = 0

    def requests_wait(self):
        self.alarms += 1

    def tick_wanted(self):
        self.ticks += 1

    decision = wakeups.Decision(watch=True, wake=0, rest=0)

    def is_grinder(self, use, cpu_seconds, requests):
        return False

    def decide_wakeups(self, use, grinders, overdue):
        self.decided += 1
        return self.decision

    def core_ready(self, core):
        self.ready.append(core)

    def worker_alive(self, core):
        pass

    def lines_dropped(self, core, count):
        raise AssertionError(count)

    def request_lost(self, request, status):
        self.refused.append(("lost", status))

    def queue_full(self, listener, waiting, oldest):
        self.edges.append(("full", waiting))

    def queue_has_room(self, turned_away, seconds):
        self.edges.append(("room", turned_away))

    def request_lines(self, lines):
        self.lines += lines.decode().splitlines()

    def request_refused(self, listener, kind, status, why):
        self.refused.append((kind, status))

    def accepting_paused(self, why):
        raise AssertionError(why)

    def push_refused(self, core, why):
        raise AssertionError(why)

    def descriptor_lost(self, core):
        self.lost.append(core)

    def channel_lost(self, core):
        self.lost.append(core)


# What is no request, the answer's first line, and what the master is told.
NO_REQUESTS = [
    pytest.param(b"\x00\x03\x00\x00\x09\x00A", b"HTTP/1.1 400 Bad Request", ("LengthBeyondBlock", 400), id="malformed"),
    pytest.param(b"\x05\x00\x00\x00", b"HTTP/1.1 501 Not Implemented", ("UnservedModifier", 501), id="modifier"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request", ("PlainHttp", 400), id="plain HTTP"),
    pytest.param(b"\x16\x03\x01\x00\xc8\x01", b"", ("TlsHello", 0), id="TLS"),
]


class Application:
    """Answers "core N"; a request for /wait waits until it is let go, one for /compute computes for 0.1 s."""

    def __init__(self):
        self.begun, self.let_go = [], threading.Semaphore(0)

    def on(self, core):
        def application(environ, start_response):
            path = environ["PATH_INFO"]
            self.begun.append((core, path))
            if path.startswith("/wait"):
                assert self.let_go.acquire(timeout=20)
            elif path == "/compute":
                until = time.thread_time() + 0.1
                while time.thread_time() < until:
                    pass
            start_response("200 OK", [])
            return [b"core %d" % core]

        return application


class Bench:
    """pull: the cores get the listening sockets, and most_waiting of them may wait there. names: of those sockets;
    http: whether there is one for HTTP before them (nobody connects to it); events: in the place of a Recorder."""

    def __init__(
        self,
        tmp_path,
        processes=1,
        threads=1,
        waiting_limit=100,
        queue_timeout=0.0,
        even=False,
        pull=False,
        most_waiting=2,
        names=("front.sock",),
        http=False,
        events=None,
    ):
        self.cores = processes * threads
        self.board = Scoreboard(self.cores)
        self.events, self.application = events or Recorder(), Application()
        self.front = Front(
            self.board.memory,
            self.cores,
            threads,
            self.board.doorbell,
            buffer_size=65535,
            timeout=4.0,
            waiting_limit=waiting_limit,
            queue_timeout=queue_timeout,
            queue_wait=QUEUE_WAIT,
            even=even,
            pull=pull,
            most_waiting=most_waiting,
            allow_from=(),
            forwarded_allow=(),
            events=self.events,
            keepalive=75.0,
            http_buffer=1 << 20,
            most_buffered=1 << 26,
            http_timeout=60.0,
            proxied=False,
        )
        listeners = []
        for name in ["http.sock"] * http + list(names):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(tmp_path / name))
            listener.listen(1000)
            listener.setblocking(False)
            self.front.add_listener(listener.fileno(), name, http=name == "http.sock", local=True)
            listeners.append(listener)
        self.listeners = listeners[http:]
        self.http = listeners[:http]
        self.serving, self.clients, self.worker_ends = [], [], {}
        for core in range(self.cores):
            ours, theirs = make_channel()
            self.front.add_core(core, ours, theirs)
            self.worker_ends[core] = os.dup(theirs)

    def start(self, *cores):
        """These cores begin to serve."""
        for number in cores:
            core = make_core(
                self.worker_ends[number],
                self.board.memory,
                self.cores,
                self.board.doorbell,
                number,
                self.application.on(number),
                {"SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "SERVER_NAME": "x"},
            )
            thread = threading.Thread(target=core.serve)
            thread.start()
            self.serving.append((number, thread))
            self.until(lambda number=number: number in self.events.ready)
        return self

    def until(self, predicate):
        """Run the front's callback until this is so."""

        def step():
            if select.select([self.front.epoll_fd], [], [], 0.01)[0]:
                self.front.on_ready()
            return predicate()

        wait_until(step, 20, f"{self.front.counters}")

    def begin(self, core, seq):
        """What a worker does first with a request: say in its slot that it has it."""
        slots = board_slots_offset(self.cores)
        struct.pack_into("<Q", self.board.memory, slots + core * SLOT_BYTES, seq)

    def connect(self, data, listener=0):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(self.listeners[listener].getsockname())
        client.sendall(data)
        self.clients.append(client)
        return client

    def ask(self, path="/"):
        """Send a request and have the front take it."""
        accepted = self.front.counters["accepted"]
        client = self.connect(build([("PATH_INFO", path)]))
        self.until(lambda: self.front.counters["accepted"] > accepted)
        return client

    def send(self, path="/", listener=0, **variables):
        """Send a request, and leave it to whoever takes it."""
        return self.connect(build([("PATH_INFO", path), *variables.items()]), listener)

    def waiting(self):
        """How many cores wait at the listening sockets."""
        return self._waiting_word().bit_count()

    def set_waiting(self, core):
        """What a core does before it waits."""
        word = self._waiting_word() | 1 << core
        self.board.memory[self._waiting_at : self._waiting_at + 8] = word.to_bytes(8, "little")

    def _waiting_word(self):
        return int.from_bytes(self.board.memory[self._waiting_at : self._waiting_at + 8], "little")

    @property
    def _waiting_at(self):
        """The second of three bitmaps that stand between the board's head and its slots."""
        return (2 * board_slots_offset(0) + board_slots_offset(self.cores)) // 3

    def wanted(self):
        """How many cores are to report instead of pulling."""
        return struct.unpack_from("<i", self.board.memory, WANTED)[0]

    def answer(self, client):
        """Everything that the client gets."""
        found = []

        def ended():
            if select.select([client], [], [], 0)[0]:
                found.append(client.recv(65536))
            return found and not found[-1]

        self.until(ended)
        return b"".join(found)

    def ask_and_answer(self, path="/"):
        body = self.answer(self.ask(path)).rpartition(b"\r\n\r\n")[2]
        self.front.tick()  # the master would find the finished core at the next connection
        return body

    def close(self):
        for _ in range(50):
            self.application.let_go.release()
        for core, _ in self.serving:
            self.front.retire_core(core)
        self.until(lambda: not any(thread.is_alive() for _, thread in self.serving))
        for core in range(self.cores):
            self.front.remove_core(core)
            os.close(self.worker_ends[core])
        for client in self.clients:
            client.close()
        for listener in [*self.http, *self.listeners]:
            listener.close()
        os.close(self.board.doorbell)
        os.close(self.board.fd)
