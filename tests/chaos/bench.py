"""What every scenario uses: the registry, the server that it hurts, and the figures that it notes against bounds.

A scenario is a function of a Bench, registered with what it does and the bound that it sets. It opens a Case for
each way in which it runs; a Case takes figures, each with its bound or without one. A figure that could not be taken
(None) misses its bound, so a scenario that measured nothing can't pass.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from support.client import Address  # noqa: E402
from support.harness import Server, directory  # noqa: E402
from support.wait import wait_until  # noqa: E402

REPOSITORY = HERE.parent.parent
BUILD = REPOSITORY / "build" / "chaos"
NATIVE = BUILD / "native.so"
LOAD = BUILD / "load"  # the benchmarks' load generator

Value = int | float | str | None


class Missing(Exception):
    """Something that the scenario needs isn't here: it says nothing about the server."""


# ---- the registry ----


@dataclass(frozen=True)
class Scenario:
    name: str
    run: Callable[[Bench], None]
    bound: str
    only_wsgimaster: str  # why it says nothing about uWSGI; "" if it does

    @property
    def done(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, *, bound: str, only_wsgimaster: str = "") -> Callable[[Callable[[Bench], None]], None]:
    def register(run: Callable[[Bench], None]) -> None:
        SCENARIOS[name] = Scenario(name, run, bound, only_wsgimaster)

    return register


# ---- figures ----


@dataclass
class Figure:
    what: str
    seen: Value
    rule: str = ""  # the bound in words, "" for none
    kept: bool | None = None


@dataclass
class Case:
    """The figures of one way to run a scenario."""

    name: str
    figures: list[Figure] = field(default_factory=list)

    def note(self, what: str, seen: Value) -> None:
        """A figure without a bound."""
        self.figures.append(Figure(what, rounded(seen)))

    def equal(self, what: str, seen: Value, wanted: Value) -> None:
        self._bound(what, seen, f"= {wanted}", lambda value: value == wanted)

    def at_most(self, what: str, seen: Value, most: float) -> None:
        self._bound(what, seen, f"≤ {most:g}", lambda value: value <= most)

    def at_least(self, what: str, seen: Value, least: float) -> None:
        self._bound(what, seen, f"≥ {least:g}", lambda value: value >= least)

    def _bound(self, what: str, seen: Value, rule: str, holds: Callable[[Value], bool]) -> None:
        self.figures.append(Figure(what, rounded(seen), rule, seen is not None and holds(seen)))

    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.kept is False]


def rounded(value: Value) -> Value:
    if not isinstance(value, float):
        return value
    return round(value, 3 if abs(value) < 10 else 1)


def largest(values: Iterable[float]) -> float | None:
    return max(values, default=None)


def smallest(values: Iterable[float]) -> float | None:
    return min(values, default=None)


# ---- the server ----


class Begun(NamedTuple):
    id: str
    pid: int
    at: float  # seconds, monotonic


class Victim(Server):
    """A server with the application that gets hurt, and what that application noted.

    Its files are copied to the server's own directory: every user may read them there.
    """

    def __init__(
        self,
        command: list[str],
        options: str = "",
        *,
        processes: int = 1,
        threads: int = 1,
        lazy: bool = False,
        sockets: Iterable[str] = ("socket = app.sock",),
        import_seconds: float = 0,
        env: dict[str, str] | None = None,
        where: Path | None = None,
        name: str = "server",
        ready: str = "answers",
    ) -> None:
        home = where or directory()
        home.chmod(0o777)  # uWSGI binds after it has given up root
        self.notes = home / f"notes-{name}"
        self.notes.mkdir()
        self.notes.chmod(0o777)
        shutil.copy(HERE / "apps" / "victim.py", home)
        shutil.copy(NATIVE, home)
        self.loaded_by = "import" if lazy else "fork"
        lines = [
            *sockets,
            f"pythonpath = {home}",
            "module = victim",
            "need-app = true",
            "die-on-term = true",
            "py-call-osafterfork = true",  # uWSGI: run the application's fork hooks
            "enable-threads = true",
            f"processes = {processes}",
            f"threads = {threads}",
            *(["lazy-apps = true"] if lazy else []),
            options,
        ]
        environment = {
            "CHAOS_NOTES": str(self.notes),
            "CHAOS_NATIVE": str(home / NATIVE.name),
            "CHAOS_IMPORT_SECONDS": str(import_seconds),
            **(env or {}),
        }
        try:
            super().__init__(
                "\n".join(lines) + "\n", env=environment, where=home, command=command, name=name, ready=ready
            )
        except BaseException:
            if where is None:
                shutil.rmtree(home)
            raise
        self.owns_directory = where is None

    def begun(self) -> list[Begun]:
        """What the application began with, in no order."""
        return list(self._noted("begun"))

    def ended(self) -> list[Begun]:
        return list(self._noted("ended"))

    def _noted(self, kind: str) -> Iterator[Begun]:
        for path in self.notes.glob(f"{kind}.*"):
            pid = int(path.suffix[1:])
            for line in path.read_text().splitlines():
                name, at = line.split()
                yield Begun(name, pid, float(at))

    def wait_begun(self, name: str) -> Begun:
        """Where and when the application began with the request."""
        return wait_until(lambda: next((b for b in self.begun() if b.id == name), None), 30, f"{name} begins")

    def loaded(self) -> dict[int, float]:
        """The running workers that have finished loading, and since when (seconds, monotonic)."""
        found = {}
        for name in os.listdir(self.notes):
            if name.startswith("ready."):
                pid = int(name[6:])
                with suppress(OSError):
                    how, at = (self.notes / name).read_text().split()
                    if how == self.loaded_by and is_child(pid, self.pid):
                        found[pid] = float(at)
        return found

    def wait_loaded(self, count: int, gone: Iterable[int] = (), timeout: float = 60) -> list[int]:
        """The workers' pids as soon as that many have loaded, none of which is `gone`."""
        away = set(gone)

        def enough() -> list[int] | None:
            loaded = list(self.loaded())
            return loaded if len(loaded) == count and not away & set(loaded) else None

        return wait_until(enough, timeout, lambda: f"{count} workers loaded, not {away}: {self.loaded()}") or []

    def count_in_log(self, pattern: str, wanted: int, timeout: float = 5) -> int:
        """How many matches there are as soon as there are enough, or when the time is up."""

        def count() -> int:
            return len(re.findall(pattern, self.log(), re.MULTILINE))

        with suppress(AssertionError):
            wait_until(lambda: count() >= wanted, timeout)
        return count()

    def zygote(self) -> int | None:
        """The pid of the process that loads the application."""
        for process in self.processes():
            with suppress(Exception):
                if process.ppid() == self.pid and "zygote" in " ".join(process.cmdline()):
                    return process.pid
        return None


def is_child(pid: int, parent: int) -> bool:
    """Whether it runs, as a child of that process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX" and int(fields[1]) == parent


def continue_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class NeverStarted:
    """In the place of a server whose start failed: whoever uses it gets the reason, and the case has missed."""

    def __init__(self, reason: Exception) -> None:
        self.__dict__["reason"] = reason

    def __getattr__(self, name: str) -> None:
        raise self.__dict__["reason"]


# ---- what a scenario is given ----


@dataclass
class Bench:
    """server: one of run.SERVERS; quick: small counts."""

    server: str
    quick: bool
    command: list[str]
    say: Callable[[Case], None]
    cases: list[Case] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        return self.server != "uwsgi"

    @property
    def pulls(self) -> bool:
        """Whether workers accept for themselves; then nobody else can answer for one that is killed outright."""
        return self.server == "wsgimaster"

    def scale(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @contextmanager
    def case(self, name: str) -> Iterator[Case]:
        """An exception, of the script's or of the clean-up, is a bound missed; the other cases still run."""
        case = Case(name)
        self.cases.append(case)
        try:
            yield case
        except Missing:
            raise
        except Exception as error:
            text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
            case.figures.append(Figure("the script", without_paths(text)[:300], "goes through", False))
            if os.environ.get("CHAOS_DEBUG"):
                raise
        self.say(case)

    @contextmanager
    def start(self, options: str = "", loaded: int | None = None, **more: object) -> Iterator[Victim]:
        """The server, with all its workers loaded, or so many of them."""
        with Victim(self.command, options, **more) as victim:  # type: ignore[arg-type]
            victim.wait_loaded(loaded or int(more.get("processes", 1)))  # type: ignore[call-overload]
            yield victim

    @contextmanager
    def trial(self, name: str, options: str = "", **more: object) -> Iterator[tuple[Case, Victim]]:
        """A case with a server of its own."""
        with self.case(name) as case, ExitStack() as stack:
            try:
                server = stack.enter_context(self.start(options, **more))
            except Exception as error:
                yield case, NeverStarted(error)  # type: ignore[misc]
            else:
                yield case, server


def without_paths(text: str) -> str:
    return re.sub(r"(/[\w.+-]+){2,}", lambda match: "…/" + match[0].rsplit("/", 1)[1], text)


# ---- preparation ----


def compile_programs() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    gcc = shutil.which("gcc")
    if gcc is None:
        raise Missing("no gcc")
    native = [gcc, "-O1", "-shared", "-fPIC", "-o", str(NATIVE), str(HERE / "apps" / "native.c")]
    load = [gcc, "-O2", "-o", str(LOAD), str(REPOSITORY / "benchmarks" / "load.c")]
    for command in (native, load):
        subprocess.run(command, check=True, timeout=120)


def uwsgi_binary() -> str:
    path = os.environ.get("UWSGI_BIN", str(REPOSITORY / ".venv-uwsgi" / "bin" / "uwsgi"))
    if not os.access(path, os.X_OK):
        raise Missing("no uWSGI: UWSGI_BIN names none, and .venv-uwsgi has none")
    return path


def need_nginx() -> None:
    if shutil.which("nginx") is None:
        raise Missing("no nginx")


def need_root() -> None:
    if os.geteuid() != 0:
        raise Missing("not root")


def run_load(address: Address, *, clients: int, seconds: float, count: int = 0, timeout: float = 10) -> dict:
    """The compiled closed loop: what it prints. It counts everything but a complete 200 as something else."""
    name = address if isinstance(address, str) else "{}:{}".format(*address)
    command = [str(LOAD), "--clients", str(clients), "--duration", str(seconds), "--timeout", str(timeout)]
    command += ["--count", str(count)] if count else []
    done = subprocess.run([*command, name], capture_output=True, text=True, timeout=seconds + timeout + 30, check=False)
    if not done.stdout:
        raise RuntimeError(f"load: {done.stderr.strip()}")
    return json.loads(done.stdout)


def now() -> float:
    """Seconds; the same clock in every process of the machine."""
    return time.monotonic()
