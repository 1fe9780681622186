"""Another version of the server itself, under load."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import Bench, Victim, now, scenario
from clients import Load, latencies_ms
from reloads import AFTER, BEFORE, CLIENTS, IMPORT, judge
from support.harness import directory
from support.wait import paced

import wsgimaster


@contextmanager
def installed(bench: Bench) -> Iterator[Path]:
    """A copy of the server, in a directory that others may be installed in; bench starts that one."""
    place, command = directory(), bench.command
    try:
        if bench.ours:
            shutil.copytree(Path(wsgimaster.__file__).parent, place / "wsgimaster")
        else:
            shutil.copy(command[0], place / "uwsgi")
            bench.command = [str(place / "uwsgi"), *command[1:]]
        yield place
    finally:
        bench.command = command
        shutil.rmtree(place)


def install_new(bench: Bench, place: Path) -> None:
    if bench.ours:
        initial = place / "wsgimaster" / "__init__.py"
        initial.write_text(initial.read_text().replace(wsgimaster.__version__, "99.1"))
    else:
        shutil.copy(place / "uwsgi", place / "next")
        (place / "next").rename(place / "uwsgi")


def install_broken(bench: Bench, place: Path) -> None:
    if bench.ours:
        (place / "uvloop.py").write_text("raise ImportError('half of a package')\n")
    else:
        (place / "next").write_text("half of a program")
        (place / "next").rename(place / "uwsgi")


def upgrade(bench: Bench, server: Victim) -> tuple[int | None, str]:
    """uWSGI's way is SIGHUP: it executes its binary anew, and doesn't say how that went."""
    if not bench.ours:
        server.signal(signal.SIGHUP)
        return None, ""
    command = [sys.executable, "-m", "wsgimaster", "upgrade", "--pid", str(server.pid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@scenario(
    "upgrade",
    bound="no request fails or is executed twice, and afterwards the new version serves; if it is broken, the old one "
    "serves on, and `upgrade` ends with 1",
)
def upgrade_under_load(bench: Bench) -> None:
    """The server's own code is replaced and taken over by exec, under a closed loop of four clients whose requests take
    5 ms, with an application whose import takes 2 s; then an installation that lacks something. (uWSGI gets SIGHUP.)"""
    for workers, lazy in [(2, False)] if bench.quick else [(1, False), (8, False), (8, True)]:
        name = f"a new version, {workers} worker{'s' if workers > 1 else ''}{', lazy-apps' if lazy else ''}"
        with bench.case(name) as case, installed(bench) as place:
            environment = {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
            with bench.start(processes=workers, lazy=lazy, import_seconds=IMPORT, env=environment) as server:
                old, pid = server.wait_loaded(workers), server.pid
                with Load(server.address, CLIENTS, "/work?ms=5") as load:
                    for _ in paced(range(1), BEFORE):
                        pass
                    install_new(bench, place)
                    code, told = upgrade(bench, server)
                    server.wait_loaded(workers, gone=old, timeout=60)
                    done = now()
                    for _ in paced(range(1), AFTER):
                        pass
                    replies = load.stop()
                if bench.ours:
                    case.equal("upgrade", code, 0)
                    case.equal("it names the new version", "99.1" in told, True)
                case.equal("the same process", server.running() and server.pid == pid, True)
                judge(case, replies)
                case.note("longest wait, ms", latencies_ms(replies)[-1])
                begun = server.begun()
                case.equal("executed twice", len(begun) - len({one.id for one in begun}), 0)
                by_old = {one.id for one in begun if one.pid in old}
                case.equal(
                    "served by old workers afterwards", sum(r.sent > done and r.id in by_old for r in replies), 0
                )
    with bench.case("a broken installation, 4 workers") as case, installed(bench) as place:
        environment = {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
        with bench.start(processes=4, env=environment) as server:
            old = server.wait_loaded(4)
            with Load(server.address, CLIENTS, "/work?ms=5", timeout=10) as load:
                install_broken(bench, place)
                code, told = upgrade(bench, server)
                for _ in paced(range(1), 3):
                    pass
                replies = load.stop()
            if bench.ours:
                case.equal("upgrade", code, 1)
                case.equal("it says why", "half of a package" in told, True)
                case.equal("old workers serving", len(set(server.loaded()) & set(old)), 4)
            judge(case, replies)
