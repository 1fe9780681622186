"""Starts an image's entrypoint as an engine would, talks to it, and stops it."""

import contextlib
import ctypes
import fcntl
import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from host import Mounts
from stage import Stage
from syntax import Failure

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # <linux/sockios.h>, <linux/if.h>
STOP_TIME = 90  # seconds; more than worker-reload-mercy


def check_container(image: Stage, arguments: list[str], mounts: Mounts, log: Path, pages: dict[str, str]) -> None:
    """Start, ask for the pages, stop. pages: path and what the answer holds, the last one slow, to be stopped in;
    "{orphan}": the answer is the number of a process that PID 1 has to reap."""
    began = time.monotonic()
    container = Container(image, arguments, mounts, log)
    try:
        container.wait_for(container.answers, "the first answer")
        check_pid_1(container, image.user)
        *quick, (slow, expected) = pages.items()
        for path, text in quick:
            check_answer(container, container.ask(path), text)
        running = container.ask(slow)
        os.kill(container.init, signal.SIGTERM)
        check_answer(container, running, expected)
        container.wait_for(container.has_ended, "the end after SIGTERM", STOP_TIME)
        if code := container.process.returncode:
            raise Failure(f"exit code {code} after SIGTERM")
    except (Failure, OSError) as error:
        raise Failure(f"{error}\nlog of the container:\n{log.read_text(errors='replace')}") from error
    finally:
        container.close()
    shown = " ".join([*image.entrypoint, *arguments])
    print(f"{time.monotonic() - began:6.1f} s  as PID 1: {shown}: {len(pages)} pages, SIGTERM, exit code 0")


def check_pid_1(container: "Container", user: str) -> None:
    if container.number_inside(container.init) != 1:
        raise Failure("the entrypoint isn't PID 1")
    ids = ":".join(container.status(container.init, name)[0] for name in ("Uid", "Gid"))
    if ids != user:
        raise Failure(f"it runs as {ids}, not as {user}")


def check_answer(container: "Container", connection: http.client.HTTPConnection, expected: str) -> None:
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    if response.status != 200:
        raise Failure(f"answered {response.status} {response.reason}")
    if expected == "{orphan}":
        container.wait_for(lambda: int(body) not in container.children_inside(), "the orphan is reaped", 5)
    elif expected not in body:
        raise Failure(f"expected {expected!r} in the answer, found {body:.300}")


class Container:
    """The entrypoint as PID 1, in a network of its own, which has the loopback interface only."""

    def __init__(self, image: Stage, arguments: list[str], mounts: Mounts, log: Path) -> None:
        self.port = image.ports[0]
        command = image.launch([*image.entrypoint, *arguments], mounts, {}, "--net")
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def close(self) -> None:
        """If it still runs: end PID 1, and the kernel ends the others."""
        with contextlib.suppress(Failure, ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self.process.wait()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise Failure(f"not within {seconds:g} s: {what}")
            time.sleep(0.02)

    # ---- its processes, by their numbers out here unless said otherwise ----

    @property
    def init(self) -> int:
        """Its PID 1: the only child of unshare."""
        while not self.has_ended():
            for pid in children(self.process.pid):
                return pid
            time.sleep(0.02)
        raise Failure(f"the container has ended with exit code {self.process.returncode}")

    def children_inside(self) -> list[int]:
        """PID 1's children, zombies too, by their numbers in the container."""
        return [self.number_inside(pid) for pid in children(self.init)]

    def number_inside(self, pid: int) -> int:
        return int(self.status(pid, "NSpid")[-1])

    def status(self, pid: int, name: str) -> list[str]:
        """The words of a line of /proc/PID/status; ["0"] when the process is gone."""
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ["0"]
        match = re.search(rf"^{name}:(.*)$", text, re.MULTILINE)
        return match[1].split() if match else ["0"]

    # ---- its network ----

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that are made here belong to the container; they stay usable outside."""
        with Path("/proc/self/ns/net").open() as ours, Path(f"/proc/{self.init}/ns/net").open() as theirs:
            enter(theirs.fileno())
            try:
                yield
            finally:
                enter(ours.fileno())

    def ask(self, path: str) -> http.client.HTTPConnection:
        """Send a request; the answer isn't read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with self.network():
            with socket.socket() as any_socket:
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
            connection.request("GET", path)
        return connection

    def answers(self) -> bool:
        try:
            self.ask("/").getresponse().read()
        except ConnectionError:
            return False
        return True


def children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def enter(network: int) -> None:
    """setns(2), which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
