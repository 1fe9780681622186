"""What systemd gives a service, and what it wants to hear: sockets (LISTEN_FDS, sd_listen_fds(3)), notes and signs of
life (sd_notify(3)). Other service managers speak the same.

The variables are taken out of the environment: what the application starts must not believe in them.

Runs in: the master.
"""

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, MutableMapping

FIRST_FD = 3
LATER = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


def activated(environ: MutableMapping[str, str], pid: int) -> list[tuple[int, str]]:
    """(descriptor, name) of the listening sockets that we were started with; names come from FileDescriptorName=."""
    listen_pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if listen_pid != str(pid) or not count.isdigit():  # they are for our parent, or for nobody
        return []
    return [(FIRST_FD + i, names[i] if i < len(names) else "") for i in range(int(count))]


class Notifier:
    """Tells systemd what we do. Without NOTIFY_SOCKET it tells nobody.

    Never waits, never fails: a manager that isn't there is no reason not to serve. One that doesn't read at the moment
    gets its notes later (`flush`), in order.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        path = environ.pop("NOTIFY_SOCKET", "")
        self.address = "\0" + path[1:] if path.startswith("@") else path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if path else None  # now: later none may be free
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        ours = usec.isdigit() and pid in ("", str(os.getpid()))
        self.watchdog = int(usec) / 2e6 if ours else 0.0  # seconds between signs of life: half of the limit; 0: none
        self.notes: deque[bytes] = deque(maxlen=50)
        self.status = ""
        self.is_ready = self.stops = False
        self.reloads = 0

    def restore(self, address: str, watchdog: float, is_ready: bool) -> None:
        """Go on for a notifier that had the environment before us (upgrading.py)."""
        self.address, self.watchdog, self.is_ready = address, watchdog, is_ready
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None

    def tell(self, *lines: str) -> None:
        self.notes.append("\n".join(lines).encode())
        self.flush()

    def flush(self) -> None:
        while self.notes:
            try:
                if self.socket is not None:
                    self.socket.sendto(self.notes[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self.address)
            except OSError as error:
                if error.errno in LATER:
                    return
            self.notes.popleft()

    def say(self, status: str) -> None:
        """The line that `systemctl status` shows."""
        self.flush()
        if status != self.status:
            self.status = status
            self.tell(f"STATUS={status}")

    def ready(self) -> None:
        """Told once."""
        if not self.is_ready and not self.stops:
            self.is_ready = True
            self.tell("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> Callable[[], None]:
        """To be told that it is over by a call of what is returned, whether it succeeded or not; several may overlap.
        MONOTONIC_USEC lets Type=notify-reload know that this comes after its SIGHUP. Nothing is told before we are
        ready, nor after the stop has begun."""
        self.reloads += 1
        if self.is_ready and not self.stops:
            self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

        def over() -> None:
            self.reloads -= 1
            if not self.reloads and self.is_ready and not self.stops:
                self.tell("READY=1")

        return over

    def stopping(self) -> None:
        """Told once."""
        if not self.stops:
            self.stops = True
            self.tell("STOPPING=1")

    def alive(self) -> None:
        self.tell("WATCHDOG=1")
