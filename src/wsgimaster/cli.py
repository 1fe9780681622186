"""The command line: arguments and files in, an exit code out.

Exit codes are uWSGI's: 0 after a normal stop, 1 for a configuration or a machine that doesn't allow the start, 22 when
no application could be loaded under `need-app`.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from wsgimaster.errors import ConfigErrors, StartError

if TYPE_CHECKING:
    from wsgimaster.config.load import Loaded
    from wsgimaster.config.system import System
    from wsgimaster.settings import Settings
    from wsgimaster.upgrading import Origin

OLDEST_KERNEL = (5, 10)
OPERATIONS = frozenset(
    {"reload", "stop", "workers", "recycle", "scale", "pause", "resume", "upgrade"}
)  # for one that runs


def main() -> NoReturn:
    """The console script `wsgimaster`."""
    # Until the loop has its own handlers. First of all: the kernel throws a signal to PID 1 away that has none.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    occupy_standard_descriptors()
    sys.exit(run(sys.argv[1:]))


def occupy_standard_descriptors() -> None:
    """Whoever starts us with 0, 1 or 2 closed must not have his log written into one of our sockets."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def run(arguments: list[str]) -> int:
    """Returns the exit code."""
    if problem := unsupported_system(sys.platform, os.uname().release):
        print(f"wsgimaster: {problem}", file=sys.stderr)
        return 1
    if arguments and arguments[0] in OPERATIONS:
        return operate(arguments)
    handed = os.environ.pop("WSGIMASTER_HANDOVER", "")  # handover.VARIABLE
    if handed.startswith("resume"):
        from wsgimaster import _process

        _process.hide()  # at once: it may have the keys of TLS (startup.resume)
    try:
        if arguments[:1] == ["simulate"]:
            return simulate(arguments[1:])
        if handed:
            return go_on(arguments, handed)
        from wsgimaster.config.system import System

        system = System()  # once: %t and %u mean the same at a reload
        reader = Reader(arguments, dict(os.environ), os.getcwd(), system, serves="LISTEN_FDS" not in os.environ)
        loaded = reader.load()
        if loaded.action in ("version", "help"):
            print(loaded.text, end="")
            return 0
        if loaded.action in ("stop", "reload", "pause", "ping"):
            return operate_as_uwsgi(loaded.action, loaded.text)
        return serve(loaded, reader)
    except ConfigErrors as errors:
        for error in errors.errors:
            print(f"wsgimaster: {error}", file=sys.stderr)
        return 1
    except StartError as error:
        print(f"wsgimaster: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True)
class Reader:
    """Where the configuration is, and what it may name. serves: it has to have a socket."""

    arguments: list[str]
    environ: dict[str, str]
    directory: str
    system: System
    serves: bool

    def load(self) -> Loaded:
        """As it is now. Raises ConfigErrors."""
        from wsgimaster.config.load import load  # takes a fifth of a second

        return load(self.arguments, self.environ, self.directory, self.system, serves=self.serves)

    def read(self) -> tuple[Settings, list[str]]:
        """The settings, and warnings."""
        loaded = self.load()
        return loaded.settings, list(loaded.warnings)


def simulate(arguments: list[str]) -> int:
    from wsgimaster.simulate import command

    try:
        return command.run(arguments)
    except StartError as error:
        print(f"wsgimaster: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # simulate ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at the end
        return 1


def operate(arguments: list[str]) -> int:
    from wsgimaster import operate

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # interrupted isn't done
    try:
        return operate.run(arguments)
    except StartError as error:
        print(f"wsgimaster: {error}", file=sys.stderr)
        return 1


def operate_as_uwsgi(action: str, target: str) -> int:
    """uWSGI's own options for that; its exit codes."""
    from wsgimaster import operate

    if action == "ping":
        return operate.ping(target)
    return operate.signal_pidfile(target, operate.SIGNALS[action])


def serve(loaded: Loaded, reader: Reader) -> int:
    # Only now: --help and a wrong option shouldn't have to wait for the event loop's library.
    from wsgimaster import startup

    return startup.run(loaded.settings, [*loaded.warnings, *loaded.text.splitlines()], reader.read, origin_of(reader))


def go_on(arguments: list[str], handed: str) -> int:
    """We are started by a master that is to be upgraded (upgrading.py), or we are that one, after exec."""
    from wsgimaster.stamp import PACKAGE, stamp

    stamped = stamp(PACKAGE)  # first of all: what is imported now is what is proved
    from wsgimaster import handover, proving, startup  # the proof imports all that the master will
    from wsgimaster.config.system import System
    from wsgimaster.master import Before

    purpose, memory, other = handover.parse(handed)
    state, said = handover.read(memory)
    system = System(facts=state.frame.facts)
    reader = Reader(arguments, dict(os.environ), os.getcwd(), system, serves=False)
    if purpose == handover.PROOF:
        return proving.prove(reader.read, state, other, stamped)
    return startup.resume(Before(state, said, other), reader.read, origin_of(reader))


def origin_of(reader: Reader) -> Origin:
    from wsgimaster.upgrading import Origin

    return Origin(tuple(sys.orig_argv[1:]), reader.directory, reader.system.facts)


def unsupported_system(platform: str, release: str) -> str | None:
    """Why this system can't run us, or None. release: as uname gives it, such as 6.1.0-18-amd64."""
    if platform != "linux":
        return f"Linux is needed (descriptor passing, memfd, pidfd); this is {platform}"
    numbers = release.split("-")[0].split(".")[:2]
    if all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) < OLDEST_KERNEL:
        return f"Linux 5.10 or newer is needed (pidfd_open, close_range); this is {release}"
    return None
