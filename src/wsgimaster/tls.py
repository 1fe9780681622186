"""The processes that end TLS (terminator.py), as the master has them: started, replaced, and given their clients.

All of them take clients from one socket; both its ends are kept here, so what waits there survives any of them. Each
has a line to us: it says there that it is ready, and when we close our end, it takes no more clients and goes with its
last one. At a reload, or after an upgrade, a new *generation* comes up beside the old one, which is told to leave when
all of the new one are ready. If one of those ends before, the old ones go on.

Runs in: the master.
"""

import asyncio
import contextlib
import errno
import json
import math
import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from wsgimaster import certificates
from wsgimaster.certificates import Certificate, Files
from wsgimaster.errors import StartError
from wsgimaster.lifecycle import explain
from wsgimaster.processes import Child, start_program
from wsgimaster.settings import Address
from wsgimaster.terminator import HIDDEN, MOST_DESCRIPTORS, READY, is_closed

YOUNG = 3.0  # one that ran for no longer than this many seconds is replaced after a pause
PAUSE = 1.0  # seconds
MOST_WAITING = 1000  # clients whom nobody takes; each keeps two descriptors
LOOK = 0.02  # seconds between looks whether they have ended
RETRY = 0.05  # seconds, when the kernel lets nobody pass a descriptor on

Certificates = dict[int, Certificate]  # by the number of the listener


def files_of(addresses: Iterable[Address]) -> dict[int, Files]:
    """Those of TLS addresses, by the number of the listener."""
    return {
        number: Files(one.tls.certificate, one.tls.key, one.tls.ciphers, one.tls.ca, one.tls.required)
        for number, one in enumerate(addresses)
        if one.tls is not None
    }


def read_all(addresses: Iterable[Address]) -> Certificates:
    """Raises StartError."""
    addresses = list(addresses)
    found: Certificates = {}
    if sum(2 + bool(files.ca) for files in files_of(addresses).values()) > MOST_DESCRIPTORS:
        raise StartError(f"at most {MOST_DESCRIPTORS} files of certificates, keys and authorities")
    for number, files in files_of(addresses).items():
        try:
            found[number] = certificates.read(files)
        except StartError as error:
            raise StartError(f"https {addresses[number].name}: {error}") from None
    return found


def check(addresses: Iterable[Address]) -> list[str]:
    """Whether a reload will find what it needs; warnings. Raises StartError. That a file can't be read any more, since
    we aren't root any more, is no error: what was read at the start is still there."""
    warnings = []
    for files in files_of(addresses).values():
        try:
            certificates.read(files).close()
        except StartError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            warnings.append(f"{error}: the certificate that was read before stays; let the server's user read it")
    return warnings


def plan(wanted: Mapping[int, Certificate], post: int, line: int, patience: float) -> str:
    """What a terminator is told: descriptors, and the seconds for which a client may take nothing of what is left for
    it. Those of the certificates come later (Terminators._send_certificates)."""
    files = {number: one.files for number, one in wanted.items()}
    return json.dumps({"post": post, "line": line, "patience": patience, "files": files})


@dataclass(slots=True, eq=False)
class Terminator:
    child: Child
    line: socket.socket | None  # None: it was told to leave
    generation: int
    began: float
    wanted: Certificates = field(default_factory=dict)  # to be sent, when nobody can look into it any more
    ready: bool = False


class Terminators:
    """number: of processes; say: logs; write: logs lines of theirs."""

    def __init__(
        self, number: int, patience: float, say: Callable[[str], None], write: Callable[[bytes], None]
    ) -> None:
        self.number, self.patience, self.say, self.write = number, patience, say, write
        self.loop = asyncio.get_running_loop()
        self.certificates: Certificates = {}
        self.coming: Certificates = {}  # of the next generation
        self.generation = self.newest = 0  # the newest may be coming, or have been given up
        self.post: socket.socket | None = None  # where clients are sent
        self.theirs: socket.socket | None = None  # where they are taken
        self.waiting: deque[tuple[int, int, int]] = deque()  # listener, client, server: the kernel's queue is full
        self.drop_at = 0.0  # when to look again who of them has left (monotonic)
        self.members: list[Terminator] = []
        self.until = math.inf  # when they end, whether or not their clients have gone (monotonic)

    @property
    def pids(self) -> set[int]:
        return {one.child.pid for one in self.members}

    @property
    def unsettled(self) -> str:
        """What is under way; "" for nothing."""
        if any(not one.ready and one.line is not None for one in self.members):
            return "processes that end TLS are being started"
        return "TLS clients are being passed on" if self.waiting else ""

    def start(self, wanted: Certificates) -> None:
        """The first generation; clients can be given from now on."""
        if wanted:
            self.post, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            self.certificates, self.generation = wanted, 1
            self._muster(wanted)

    def renew(self, addresses: Iterable[Address]) -> None:
        """A new generation, with the certificates as they are now. What can't be read stays as it was."""
        found: Certificates = {}
        for number, files in files_of(addresses).items():
            try:
                found[number] = certificates.read(files)
            except (StartError, OSError) as error:
                self.say(f"*** {error}: the certificate that was read before stays")
                found[number] = self.certificates[number]
        if found:
            self._give_up_coming()
            self.coming = found
            self._muster(found)

    def fill_up(self) -> None:
        """As many as there should be of this generation, after an upgrade."""
        serving = sum(one.generation == self.generation and one.line is not None for one in self.members)
        for _ in range(serving, self.number):
            self._start_one(self.certificates, self.generation)

    def give(self, listener: int, client: int) -> int:
        """Pass this client on; returns our end of what takes its place. The client is closed here. Raises OSError;
        then it isn't."""
        if len(self.waiting) >= MOST_WAITING and time.monotonic() >= self.drop_at:
            self.drop_at = time.monotonic() + PAUSE
            self._drop_who_left()
        if len(self.waiting) >= MOST_WAITING:
            raise OSError(errno.ENOBUFS, "no process ends their TLS")
        ours, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.waiting.append((listener, client, server.detach()))
        if len(self.waiting) == 1:
            self._send()
        return ours.detach()

    async def end(self, until: float) -> None:
        """All of them: when their clients have gone, or at this time (monotonic), which may come nearer meanwhile."""
        self.number, self.until = 0, min(self.until, until)
        for one in self.members:
            self._tell_to_leave(one)
        while self.members and time.monotonic() < self.until:
            await asyncio.sleep(LOOK)
        for one in self.members:
            one.child.kill()
        while self.members:
            await asyncio.sleep(LOOK)

    # ---- clients ----

    def _send(self) -> None:
        assert self.post is not None
        while self.waiting:
            listener, client, server = self.waiting[0]
            try:
                socket.send_fds(self.post, [struct.pack("<i", listener)], [client, server])
            except BlockingIOError:
                self.loop.add_writer(self.post, self._send)
                return
            except OSError:  # ETOOMANYREFS: as many descriptors as we may have are under way (unix(7))
                self.loop.remove_writer(self.post)
                self.loop.call_later(RETRY, self._send)
                return
            self.waiting.popleft()
            os.close(client)
            os.close(server)
        self.loop.remove_writer(self.post)

    def _drop_who_left(self) -> None:
        """Those whom the master has given up, since they said nothing for too long."""
        waiting, self.waiting = self.waiting, deque()
        for listener, client, server in waiting:
            if is_closed(server):
                os.close(client)
                os.close(server)
            else:
                self.waiting.append((listener, client, server))

    # ---- processes ----

    def _muster(self, wanted: Certificates) -> None:
        self.newest += 1
        for _ in range(self.number):
            self._start_one(wanted, self.newest)

    def _start_one(self, wanted: Certificates, generation: int) -> None:
        assert self.theirs is not None
        if generation != (self.newest if self.coming else self.generation) and generation != self.generation:
            return  # it was given up, or replaced, meanwhile
        if not self.number:
            return  # the server ends
        path = os.pathsep.join(one for one in sys.path if one)  # of our own package, and what it needs
        with contextlib.ExitStack() as undo:
            try:
                line, far = socket.socketpair()
                undo.callback(line.close)
                with far:
                    fds = [self.theirs.fileno(), far.fileno()]
                    told = plan(wanted, fds[0], fds[1], self.patience)
                    command = [sys.executable, "-P", "-m", "wsgimaster.terminator", told]
                    child = start_program(command, {**os.environ, "PYTHONPATH": path}, None, fds)
            except OSError as error:
                self.say(f"a process that ends TLS can't be started: {error.strerror}")
                self.loop.call_later(PAUSE, self._start_one, wanted, generation)
                return
            undo.pop_all()
        line.setblocking(False)
        self.adopt(Terminator(child, line, generation, time.monotonic(), wanted))

    def adopt(self, one: Terminator) -> None:
        """From now on we hear of it."""
        self.members.append(one)
        self.loop.add_reader(one.child.output, self._take_output, one.child)
        self.loop.add_reader(one.child.pidfd, self._gone, one)
        if one.line is not None and not one.ready:
            self.loop.add_reader(one.line, self._heard, one)

    def _heard(self, one: Terminator) -> None:
        """First that nobody can look into it any more, then that it is ready."""
        assert one.line is not None
        said = b""
        with contextlib.suppress(OSError):
            said = one.line.recv(1)
        if said == HIDDEN:
            self._send_certificates(one)
            return
        self.loop.remove_reader(one.line)
        one.ready = said == READY
        if self.coming and self._are_ready(self.newest):
            self.generation = self.newest
            before, self.certificates, self.coming = self.certificates, self.coming, {}
            self._close(before)
            for old in self.members:
                if old.generation != self.generation:
                    self._tell_to_leave(old)
            self.say("the certificates were read again")

    def _send_certificates(self, one: Terminator) -> None:
        if one.line is None:
            return
        descriptors = [fd for certificate in one.wanted.values() for fd in certificate.descriptors]
        try:
            socket.send_fds(one.line, [HIDDEN], descriptors)
        except ConnectionError:
            pass  # it has ended: _gone
        except OSError:  # ETOOMANYREFS, as in _send
            self.loop.call_later(RETRY, self._send_certificates, one)

    def _are_ready(self, generation: int) -> bool:
        return sum(one.ready for one in self.members if one.generation == generation) == self.number

    def _tell_to_leave(self, one: Terminator) -> None:
        if one.line is not None:
            if not one.ready:
                self.loop.remove_reader(one.line)
            one.line.close()
            one.line = None

    def _give_up_coming(self) -> None:
        for one in self.members:
            if one.generation > self.generation:
                self._tell_to_leave(one)
        coming, self.coming = self.coming, {}
        self._close(coming)

    def _close(self, some: Certificates) -> None:
        """Those that nobody needs any more."""
        for number, one in some.items():
            if one not in (self.certificates.get(number), self.coming.get(number)):
                one.close()

    def _take_output(self, child: Child) -> None:
        if not child.take_output(self.write):
            self.loop.remove_reader(child.output)

    def _gone(self, one: Terminator) -> None:
        leaving = one.line is None
        self._tell_to_leave(one)
        self.members.remove(one)
        self.loop.remove_reader(one.child.pidfd)
        status = one.child.reap()
        one.child.take_output(self.write)
        self.loop.remove_reader(one.child.output)
        os.close(one.child.output)
        if leaving or not self.number:
            return
        self.say(f"a process that ends TLS (pid: {one.child.pid}) ended ({explain(status)})")
        if one.generation == self.generation:
            pause = PAUSE if time.monotonic() - one.began < YOUNG else 0.0
            self.loop.call_later(pause, self._start_one, self.certificates, one.generation)
        else:
            self._give_up_coming()
            self.say("*** the certificates could not be taken into use; those that were read before stay")
