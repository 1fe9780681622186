"""The table of servers, and how one of them is started, found ready, and ended."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import procfs
from plan import Group

HERE = Path(__file__).resolve().parent
APPS = HERE / "apps"
BUILD = HERE / "build"
VENV = HERE / ".venv"

START_TIMEOUT = 45.0
STOP_TIMEOUT = 10.0
QUIET_WINDOW = 0.25  # a server is quiet when its tree spends less than QUIET_SHARE of a core for this long
QUIET_SHARE = 0.02


@dataclass(frozen=True)
class Contender:
    """One row. `command` is filled with {socket}, {app}, {workers}, {build}, {venv}, {python} and {shm}; `threaded`
    is added when workers have several threads (and gets {threads}), `unlogged` when requests aren't logged."""

    name: str
    label: str
    command: str
    threaded: str = ""
    unlogged: str = ""
    protocol: str = "uwsgi"  # that nginx speaks with it: uwsgi or http
    helpers: int = 1  # processes besides the workers: the master; ours has a zygote, too


# Each server gets what its own documentation advises for this use, and nothing that another can't have: the same
# number of processes and threads, a backlog that holds all clients. What stays away is what nobody is measured for:
# gunicorn's control socket (it would stay in the home directory); its heartbeats are in memory, as its FAQ says.
UWSGI = (
    "{venv}/bin/uwsgi --socket {socket} --module {app}:application --master --processes {workers} --listen 1024 "
    "--single-interpreter --need-app --die-on-term"
)
GUNICORN = (
    "{venv}/bin/gunicorn --bind unix:{socket} --workers {workers} --worker-tmp-dir {shm} --no-control-socket "
    "--log-level warning {app}:application"
)
GRANIAN = (
    "{venv}/bin/granian --interface wsgi --uds {socket} --workers {workers} --blocking-threads 1 "
    "--log-level warning {app}:application"
)
WSGIMASTER = "{python} -m wsgimaster --socket {socket} --module {app}:application --processes {workers}"
THREADS = "--threads {threads}"
NO_LOG = "--disable-logging"

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("floor", "bare C loop (floor)", "{build}/prefork {socket} {workers} {app}"),
        Contender("uwsgi", "uWSGI", UWSGI, THREADS, NO_LOG),
        Contender("uwsgi-thunder", "uWSGI, thunder-lock", f"{UWSGI} --thunder-lock", THREADS, NO_LOG),
        Contender("gunicorn", "gunicorn, uwsgi protocol", f"{GUNICORN} --protocol uwsgi --worker-class sync"),
        Contender("gunicorn-gthread", "gunicorn, gthread", f"{GUNICORN} --worker-class gthread", protocol="http"),
        Contender("granian", "granian", GRANIAN, protocol="http"),
        Contender("wsgimaster-push", "wsgimaster, push", f"{WSGIMASTER} --dispatch push", THREADS, NO_LOG, helpers=2),
        Contender("wsgimaster-auto", "wsgimaster", WSGIMASTER, THREADS, NO_LOG, helpers=2),
        Contender(
            "wsgimaster-http",
            "wsgimaster, HTTP",
            WSGIMASTER.replace("--socket", "--http"),
            THREADS,
            NO_LOG,
            protocol="http",
            helpers=2,
        ),
    )
}


class ServerError(Exception):
    """A server that didn't start, or died under measurement."""


def command_line(name: str, group: Group, socket: Path, python: str) -> list[str]:
    contender = CONTENDERS[name]
    command = contender.command
    command += f" {contender.threaded}" if group.threads > 1 else ""
    command += "" if group.logged else f" {contender.unlogged}"
    places = {
        "app": group.app,
        "workers": group.workers,
        "threads": group.threads,
        "socket": socket,
        "build": BUILD,
        "venv": VENV,
        "python": python,
        "shm": "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(socket.parent),
    }
    return [word.format(**places) for word in shlex.split(command)]


class Service:
    """A server process and its tree, in a session of its own; ended, by pid, with the `with` block."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self.ended = False
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=APPS,
                env=os.environ | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def time(self) -> procfs.TreeTime:
        return procfs.tree_time(self.process.pid)

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise ServerError(f"{self.name} ended with status {self.process.returncode}:\n{tail}")

    def wait_until_ready(self, processes: int, is_answering: Callable[[], bool]) -> None:
        """Waits for the whole tree, an answer, and silence: nobody is measured while it still starts up."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self.check_alive()
            enough = len(procfs.tree_of(self.process.pid)) >= processes
            if enough and is_answering() and self._is_quiet():
                return
            if time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise ServerError(f"{self.name} wasn't ready after {START_TIMEOUT:.0f} s:\n{tail}")
            time.sleep(0.05)

    def _is_quiet(self) -> bool:
        before = self.time()
        time.sleep(QUIET_WINDOW)
        return (self.time() - before).total < QUIET_SHARE * QUIET_WINDOW

    def stop(self) -> None:
        """Asks the server to end, and kills after a while what is left of its tree; nothing if it was ended before.

        The tree is looked up again each time: a server that is asked while it still starts may go on forking.
        """
        if self.ended:  # its pid may be somebody else's by now
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        patience = time.monotonic() + STOP_TIMEOUT
        seen: set[tuple[int, int]] = set()
        while seen := self._still_running(seen):
            if time.monotonic() > patience:
                kill(pid for pid, _ in seen)
            if time.monotonic() > patience + STOP_TIMEOUT:
                raise ServerError(f"{self.name} can't be ended: {len(seen)} processes are left")
            self.process.poll()
            time.sleep(0.02)
        self.process.wait(STOP_TIMEOUT)
        self.ended = True

    def _still_running(self, seen: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """What was seen before or is in the tree now, and lives. A zombie is over; who reaps it isn't us."""
        alive = {process.identity for process in procfs.all_processes() if process.state != "Z"}
        tree = {process.identity for process in procfs.tree_of(self.process.pid)}
        return (seen | tree) & alive


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
