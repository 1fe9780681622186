"""The upgrade: the master becomes what is installed now, without a dropped request, or stays what it is."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from support.client import Connection, End, cgi, http, packet, uwsgi
from support.deployed import WSGIMASTER, Deployed, Start
from support.harness import APPS, free_port
from support.wait import wait_until

import wsgimaster
from wsgimaster._front import LAYOUT
from wsgimaster.upgrading import Signals

NEW = "99.1"


class Installed(Deployed):
    """A server that runs a copy of the package, of which a test can install another version."""

    def __init__(
        self, start: Start, where: Path, *more: str, env: Mapping[str, str] | None = None, **others: object
    ) -> None:
        self.site = where / "site"
        self.package = self.site / "wsgimaster"
        shutil.copytree(Path(wsgimaster.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        super().__init__(start, where, *more, env={"PYTHONPATH": str(self.site), **(env or {})}, **others)

    def install(self, version: str = NEW) -> None:
        initial = self.package / "__init__.py"
        initial.write_text(initial.read_text().replace(wsgimaster.__version__, version))

    def upgrade(self) -> subprocess.CompletedProcess[str]:
        return self.operate("upgrade")

    @contextlib.contextmanager
    def starts(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """The command goes on beside the test."""
        pidfile = str(self.server.directory / "pid")
        words = [*WSGIMASTER, *command, "--pidfile", pidfile]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def gate(self, name: str = "gate") -> Path:
        return self.where / name


def succeeded(done: subprocess.CompletedProcess[str], workers: int = 2, generation: int = 2) -> bool:
    said = f"version {NEW} serves: generation {generation}, {workers} worker(s)\n"
    return (done.returncode, done.stdout, done.stderr) == (0, said, "")


MODES = {
    "auto": (),
    "push": ("dispatch = push",),
    "lazy": ("lazy-apps = true",),
    "threads": ("threads = 3",),
    "http": ("http-socket = http.sock",),
}


@pytest.mark.parametrize("more", MODES.values(), ids=MODES)
def test_a_new_version_takes_over_under_load(start: Start, tmp_path: Path, more: tuple[str, ...]) -> None:
    installed = Installed(start, tmp_path, *more)
    pid, old = installed.server.pid, {worker.pid for worker in installed.server.workers()}
    installed.install()
    installed.deploy("VERSION = 'two'")
    with installed.under_load() as bodies:
        done = installed.upgrade()
        assert succeeded(done), done
        before = len(bodies)
        wait_until(lambda: len(bodies) > before + 50)
    assert {body.split()[0] for body in bodies[before + 10 :]} == {"two"}
    assert (installed.server.pid, installed.server.running()) == (pid, True)
    new = {worker.pid for worker in installed.server.wait_workers(2)}
    assert new.isdisjoint(old)
    installed.server.wait_log(rf"RE\)spawned uWSGI master process \(pid: {pid}\), from version \S+ to {NEW}")
    assert "DAMN" not in installed.server.log()


def test_one_upgrade_after_the_other(start: Start, tmp_path: Path) -> None:
    """What was taken over can be handed over once more."""
    installed = Installed(start, tmp_path, f"health = 127.0.0.1:{free_port()}", processes=3)
    installed.install()
    with installed.under_load():
        for generation in (2, 3):
            done = installed.upgrade()
            assert done.returncode == 0, done
            assert f"version {NEW} serves: generation {generation}" in done.stdout
    installed.server.signal(signal.SIGTERM)
    assert installed.server.wait_exit() == 0


@pytest.mark.parametrize("more", [(), ("dispatch = push",), ("http-socket = http.sock",)], ids=["pull", "push", "http"])
def test_who_is_being_served_or_waits_is_served(start: Start, tmp_path: Path, more: tuple[str, ...]) -> None:
    """A request that runs, some that wait, one whose head isn't complete, one whose body isn't, and a connection that
    has said nothing yet."""
    installed = Installed(start, tmp_path, *more, "socket-timeout = 60", processes=1)
    address = installed.server.addresses[-1]
    speaks_http = bool(more) and more[0].startswith("http")

    def request(path: str, body: bytes = b"") -> bytes:
        if speaks_http:
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            return (
                f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}\r\n".encode()
                + body
            )
        return packet(cgi(path, "POST" if body else "GET", body)) + body

    gated, plain, long = request(f"/gate?{installed.gate()}"), request("/"), request("/", b"x" * 100_000)
    with (
        Connection(address) as running,
        Connection(address) as silent,
        Connection(address) as half,
        Connection(address) as uploading,
    ):
        running.send(gated)
        wait_until(lambda: busy(installed) == 1)
        half.send(plain[:20])
        uploading.send(long[:30_000])
        waiting = [Connection(address) for _ in range(3)]
        for client in waiting:
            client.send(plain)
        installed.install()
        done = installed.upgrade()
        assert succeeded(done, 1), done
        half.send(plain[20:])
        uploading.send(long[30_000:])
        silent.send(plain)
        for client in (half, uploading, silent, *waiting):
            assert client.answer().status == 200
            client.close()
        installed.gate().touch()
        assert running.answer().text.startswith("one")


def busy(installed: Installed) -> int:
    """Requests that run."""
    table = installed.operate("workers").stdout
    return sum(int(line.split()[4]) for line in table.splitlines()[1:])


def test_a_worker_that_dies_after_the_upgrade_is_answered_for(start: Start, tmp_path: Path) -> None:
    """The new master has the descriptors of what the old one has pushed."""
    installed = Installed(start, tmp_path, "dispatch = push", processes=1)
    (worker,) = installed.server.workers()
    with Connection(installed.server.address) as client:
        client.send(packet(cgi(f"/gate?{installed.gate()}")))
        wait_until(lambda: busy(installed) == 1)
        assert installed.upgrade().returncode == 0
        os.kill(worker.pid, signal.SIGKILL)
        answer = client.answer()
    assert answer.status == 502
    (id_,) = installed.server.wait_log(r"request (\w{16}) \(GET /gate\S* from .*\) was answered 502")
    assert answer.header("X-Request-Id") == id_[1]


def test_harakiri_after_the_upgrade(start: Start, tmp_path: Path) -> None:
    installed = Installed(start, tmp_path, "harakiri = 3", processes=1)
    with Connection(installed.server.address) as client:
        client.send(packet(cgi(f"/gate?{installed.gate()}")))
        wait_until(lambda: busy(installed) == 1)
        assert installed.upgrade().returncode == 0
        assert client.answer().status == 504


def test_the_zygote_that_was_taken_over_still_forks(start: Start, tmp_path: Path) -> None:
    """The proof could load the application, but after exec it can't be loaded any more: the old generation goes on, and
    its dead are replaced."""
    installed = Installed(start, tmp_path)
    seen = tmp_path / "seen"
    installed.deploy(f"VERSION = 'two'; seen = Path({str(seen)!r}); assert not seen.exists(); seen.touch()")
    done = installed.upgrade()
    assert (done.returncode, done.stdout) == (1, "")
    assert "AssertionError" in done.stderr
    installed.server.wait_log(r"RE\)spawned uWSGI master process")
    for worker in installed.server.workers():
        os.kill(worker.pid, signal.SIGKILL)
        installed.server.wait_log(rf"DAMN ! worker {worker.number} \(pid: {worker.pid}\) died")
    installed.server.wait_workers(2)
    assert installed.versions() == {"one"}


# ---- broken: nothing changes ----


def damage(path: str, text: str) -> Callable[[Installed], object]:
    return lambda installed: (installed.package / path).write_text(text)


BROKEN: dict[str, tuple[Callable[[Installed], object], str]] = {
    "code of ours that can't be read": (damage("cli.py", "def main(:"), "SyntaxError"),
    "code of ours that fails late": (damage("zygote.py", "raise RuntimeError('broken')"), "RuntimeError: broken"),
    "a package that is missing": (
        lambda installed: (installed.site / "uvloop.py").write_text("raise ImportError('no uvloop here')"),
        "no uvloop here",
    ),
    "an extension that is missing": (
        lambda installed: next(installed.package.glob("_serve*.so")).unlink(),
        "_serve",
    ),
    "a state that it doesn't understand": (
        lambda installed: edit(installed.package / "handover.py", "    paused: bool\n", "    resting: bool\n"),
        "this version can't take over from the one that runs: a restart is needed",
    ),
    "an application that raises": (
        lambda installed: installed.deploy("raise ValueError('x y z')"),
        "ValueError: x y z",
    ),
    "an application that hangs": (
        lambda installed: installed.deploy("time.sleep(60)"),
        "it was not ready within 2 s (reload-timeout)",
    ),
    "a wrong configuration": (lambda installed: installed.configure("prcesses = 4", "strict = true"), "processes"),
    "an option that needs a restart": (
        lambda installed: installed.configure("umask = 077"),
        "umask: unset -> 077: an upgrade can't change that, a restart does",
    ),
    "more processes than there are descriptors": (
        lambda installed: installed.configure("threads = 250", processes=60),
        "descriptors, the limit is",
    ),
}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(("make", "told"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_not_taken(
    start: Start, tmp_path: Path, make: Callable[[Installed], object], told: str
) -> None:
    installed = Installed(start, tmp_path, "reload-timeout = 2")
    workers = set(installed.server.workers())
    make(installed)
    with installed.under_load() as bodies:
        done = installed.upgrade()
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert told in installed.server.log()
    assert done.stderr.count("Traceback") <= 1  # of what is broken; none of the proof's own
    assert {body.split()[0] for body in bodies} == {"one"}
    assert set(installed.server.workers()) == workers
    shutil.rmtree(installed.site)
    shutil.copytree(Path(wsgimaster.__file__).parent, installed.package)
    installed.install()
    installed.configure()
    installed.deploy("VERSION = 'three'")
    assert succeeded(installed.upgrade())
    assert installed.versions() == {"three"}


@pytest.mark.parametrize("value", ["resume", "proof 7", "again 7 8", "resume 7 x", "resume 97 98"])
def test_what_only_a_master_says_to_itself(value: str) -> None:
    done = subprocess.run(
        [*WSGIMASTER, "--http-socket", "127.0.0.1:0", "--module", "wsgimaster.demo"],
        env={**os.environ, "WSGIMASTER_HANDOVER": value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert re.match("wsgimaster: (WSGIMASTER_HANDOVER = .*: only wsgimaster itself|this version can't)", done.stderr)


# ---- with other workers ----


def other_layout(installed: Installed) -> None:
    (library,) = installed.package.glob("_front*.so")
    patched = library.read_bytes().replace(LAYOUT.encode(), b"0" * len(LAYOUT))
    library.unlink()  # the old one is mapped by the server
    library.write_bytes(patched)


OTHER_WORKERS: dict[str, tuple[Callable[[Installed], object], str]] = {
    "a layout that they don't have": (other_layout, "shares memory with its workers in another way than we do"),
    "things that it doesn't know": (
        lambda installed: edit(
            installed.package / "handover.py", "    least: int", "    news: int = 1\n    least: str"
        ),
        "knows other things of its workers than we do",
    ),
    "other threads": (lambda installed: installed.configure("threads = 7"), "threads: 1 -> 7"),
    "more of them": (lambda installed: installed.configure(processes=4), "processes: 2 -> 4"),
    "fewer of them": (lambda installed: installed.configure(processes=1), "processes: 2 -> 1"),
    "another way to dispatch": (lambda installed: installed.configure("dispatch = push"), "dispatch: auto -> push"),
}


@pytest.mark.parametrize(("make", "told"), OTHER_WORKERS.values(), ids=OTHER_WORKERS)
def test_workers_that_cannot_be_kept_end_first(
    start: Start, tmp_path: Path, make: Callable[[Installed], object], told: str
) -> None:
    """Nobody notices, except that he waits."""
    installed = Installed(start, tmp_path)
    pid, old = installed.server.pid, {worker.pid for worker in installed.server.workers()}
    installed.install()
    installed.deploy("VERSION = 'two'")
    make(installed)
    with installed.under_load() as bodies:
        done = installed.upgrade()
        assert (done.returncode, f"version {NEW} serves: generation 2" in done.stdout) == (0, True), done
        before = len(bodies)
        wait_until(lambda: len(bodies) > before + 50)
    assert {body.split()[0] for body in bodies[before + 10 :]} == {"two"}
    assert told in installed.server.log()
    assert (installed.server.pid, installed.server.running()) == (pid, True)
    assert old.isdisjoint(int(body.split()[-1]) for body in bodies[before + 10 :])
    if "knows other things" not in told:  # that one doesn't understand itself
        assert succeeded(installed.upgrade(), int(done.stdout.split()[-2]), 3)  # and what it is now can be handed over


@pytest.mark.parametrize("more", [(), ("dispatch = push",), ("http-socket = http.sock",)], ids=["pull", "push", "http"])
def test_who_waits_for_other_workers_is_served(start: Start, tmp_path: Path, more: tuple[str, ...]) -> None:
    installed = Installed(start, tmp_path, *more, processes=1)
    address = installed.server.addresses[-1]
    speaks_http = bool(more) and more[0].startswith("http")

    def request(path: str) -> bytes:
        return (
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            if speaks_http
            else packet(cgi(path))
        )

    with Connection(address) as running, Connection(address) as half:
        running.send(request(f"/gate?{installed.gate()}"))
        wait_until(lambda: busy(installed) == 1)
        half.send(request("/")[:20])
        installed.configure(*more, processes=3)
        installed.deploy("VERSION = 'two'")
        with installed.starts("upgrade") as upgrade:
            installed.server.wait_log(
                r"this upgrade can't keep the workers \(processes: 1 -> 3\): requests wait until new ones serve"
            )
            waiting = [Connection(address) for _ in range(3)]
            for client in waiting:
                client.send(request("/"))
            installed.gate().touch()
            assert running.answer().text.startswith("one")
            half.send(request("/")[20:])
            for client in (half, *waiting):
                assert client.answer().text.startswith("two")
                client.close()
            assert upgrade.wait(60) == 0


def test_what_only_a_start_reads_is_read_again(start: Start, tmp_path: Path) -> None:
    """The workers stay; a reload can't do it."""
    installed = Installed(start, tmp_path, "socket-timeout = 60")
    old = {worker.pid for worker in installed.server.workers()}
    installed.configure("socket-timeout = 1", "listen = 7")
    refused = installed.reload()
    assert "listen: unset -> 7: a reload can't change that, wsgimaster upgrade does" in refused.stderr
    with Connection(installed.server.address) as client:
        client.send(b"\0")
        assert installed.upgrade().returncode == 0
        assert client.answer().status == 408
    assert old.isdisjoint({worker.pid for worker in installed.server.workers()})


def test_what_fails_after_the_workers_have_ended_is_tried_again(start: Start, tmp_path: Path) -> None:
    """The application could be loaded by the proof, and can't be for a while: clients wait, the server doesn't end."""
    installed = Installed(start, tmp_path, "need-app = true", processes=1)
    seen = tmp_path / "seen"
    installed.deploy(f"VERSION = 'two'; seen = Path({str(seen)!r}); assert not seen.exists(); seen.touch()")
    installed.configure("need-app = true", processes=2)
    with installed.starts("upgrade") as upgrade:
        installed.server.wait_log(r"the zygote died \(exit code 22\); another one starts")
        installed.deploy("VERSION = 'three'")
        assert upgrade.wait(60) == 0
    assert installed.versions() == {"three"}


class Ending(Installed):
    """An upgrade from one process to two ends the worker, which is in a request for as long as the test says."""

    def __init__(self, start: Start, where: Path, *more: str) -> None:
        super().__init__(start, where, *more, processes=1)
        self.configure(processes=2)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """While the upgrade waits for that request, and another client waits, too. Both are served in the end."""
        with Connection(self.server.address) as running, Connection(self.server.address) as waiting:
            running.send(packet(cgi(f"/gate?{self.gate()}")))
            wait_until(lambda: busy(self) == 1)
            with self.starts("upgrade") as upgrade:
                self.server.wait_log("this upgrade can't keep the workers")
                waiting.send(packet(cgi("/")))
                yield
                self.gate().touch()
                assert (running.answer().status, waiting.answer().status) == (200, 200)
                self.code = upgrade.wait(60)


def test_nobody_starts_workers_while_they_end(start: Start, tmp_path: Path) -> None:
    """Whatever is asked for meanwhile is done afterwards, or lost, but it doesn't hold the upgrade up."""
    installed = Ending(start, tmp_path)
    with contextlib.ExitStack() as stack:
        with installed.ending():
            for letter in "+-C":
                installed.write(letter)
            assert installed.operate("scale", "1").returncode == 0
            reload = stack.enter_context(installed.starts("reload", "--wait"))
        assert installed.code == 0
        assert reload.wait(60) == 0
    assert len(installed.server.wait_log(r"spawned uWSGI worker 1 ")) == 3  # start, upgrade, reload


def test_what_is_reloaded_while_the_workers_end_is_reloaded_afterwards(start: Start, tmp_path: Path) -> None:
    installed = Ending(start, tmp_path)
    with installed.ending():
        installed.configure("env = COLOUR=green", processes=2)
        installed.server.signal(signal.SIGHUP)
        installed.server.wait_log("SIGHUP received")
    assert installed.code == 0
    assert "green" in uwsgi(installed.server.address, "/").text


def test_workers_come_back_if_it_fails_after_they_have_ended(start: Start, tmp_path: Path) -> None:
    installed = Ending(start, tmp_path, f"attach-daemon = touch {tmp_path / 'beside'}")
    installed.configure(f"attach-daemon = touch {tmp_path / 'beside'}", processes=2)
    with installed.ending():
        (installed.package / "half.py").write_text("an installation is under way")
    assert installed.code == 1
    assert installed.versions() == {"one"}
    installed.server.signal(signal.SIGHUP)
    installed.server.wait_log("processes: 1 -> 2: a reload can't change that")
    (tmp_path / "beside").unlink()
    wait_until((tmp_path / "beside").exists)


def test_a_stop_while_the_workers_end(start: Start, tmp_path: Path) -> None:
    """Who waits is served by the version that runs."""
    installed = Ending(start, tmp_path)
    with installed.ending():
        installed.server.signal(signal.SIGTERM)
        installed.server.wait_log("the upgrade is given up: the server stops")
    assert installed.server.wait_exit() == 0
    assert installed.code == 1


# ---- what happens meanwhile ----


def test_two_who_ask_for_it_get_one(start: Start, tmp_path: Path) -> None:
    installed = Installed(start, tmp_path)
    installed.install()
    with installed.starts("upgrade") as one, installed.starts("upgrade") as other:
        for asked in (one, other):
            said, error = asked.communicate(timeout=60)
            assert (asked.returncode, said) == (0, f"version {NEW} serves: generation 2, 2 worker(s)\n"), error
    assert len(installed.server.wait_log(r"RE\)spawned uWSGI master")) == 1


def test_a_reload_that_is_asked_for_meanwhile(start: Start, tmp_path: Path) -> None:
    installed = Installed(start, tmp_path)
    installed.deploy("VERSION = 'two'; time.sleep(1)")
    with installed.starts("upgrade") as upgrade:
        installed.server.wait_log("upgrade asked for")
        with installed.starts("reload", "--wait") as reload:
            for asked in (upgrade, reload):
                _, error = asked.communicate(timeout=60)
                assert asked.returncode == 0, error
    assert installed.versions() == {"two"}


def test_an_upgrade_that_is_asked_for_during_a_reload(start: Start, tmp_path: Path) -> None:
    installed = Installed(start, tmp_path)
    installed.deploy("VERSION = 'two'; time.sleep(1)")
    with installed.starts("reload", "--wait") as reload:
        installed.server.wait_log("generation 2 loads the application")
        installed.install()
        assert succeeded(installed.upgrade(), generation=3)
        assert reload.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_meanwhile_ends_it(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    installed = Installed(start, tmp_path)
    installed.deploy("time.sleep(60)")
    with installed.starts("upgrade") as upgrade:
        installed.server.wait_log("upgrade asked for")
        installed.server.signal(number)
        assert installed.server.wait_exit() == 0
        assert upgrade.wait(60) == 1


@pytest.fixture
def counted() -> Iterator[list[int]]:
    """The signals USR1 and USR2 that this process gets."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda number, _: seen.append(number)) for number in (10, 12)}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_that_come_while_nobody_can_act_come_afterwards(counted: list[int]) -> None:
    """Also if another thread takes them: it would have them forgotten by exec."""
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    signals = Signals()
    try:
        signals.hold()
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: select.select([signals.heard], [], [], 0)[0])
        counted.clear()  # here Python still knows, after exec it doesn't
        signals.release()
        wait_until(lambda: counted == [signal.SIGUSR1])
    finally:
        over.set()
        other.join()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_signals_all_the_time(start: Start, tmp_path: Path) -> None:
    """There is no moment in which one ends the server."""
    installed = Installed(start, tmp_path)
    over = threading.Event()

    def keep_signalling() -> None:
        while not over.wait(0.001):
            installed.server.signal(signal.SIGUSR1)

    thread = threading.Thread(target=keep_signalling)
    thread.start()
    try:
        assert installed.upgrade().returncode == 0
    finally:
        over.set()
        thread.join()
    installed.server.signal(signal.SIGHUP)
    installed.server.wait_log("gracefully reloaded: generation 3")


class Held(Installed):
    """After the proof, the upgrade waits until the test lets it go on: for a command that was started by a touch."""

    def __init__(self, start: Start, where: Path, *more: str, **others: object) -> None:
        self.released, touched = where / "released", where / "touched"
        command = f"while ! test -e {self.released}; do sleep 0.01; done"
        super().__init__(start, where, f"touch-exec = {touched} {command}", *more, **others)
        touched.touch()
        self.server.wait_log(rf"^\*\*\* {touched} has been touched")

    @contextlib.contextmanager
    def between(self) -> Iterator[None]:
        """The proof is over, exec comes behind this."""
        with self.starts("upgrade") as self.asked:
            self.server.wait_log("upgrade asked for")
            wait_until(lambda: self.proofs(1))
            wait_until(lambda: not self.proofs(1))
            yield
            self.released.touch()
            self.said, self.error = self.asked.communicate(timeout=60)

    def proofs(self, count: int) -> bool:
        """Whether that many of the master's children are neither its zygote nor workers."""
        own = self.server.children("wsgimaster")
        return len(own) >= count


def test_a_program_that_changes_between_proof_and_exec(start: Start, tmp_path: Path) -> None:
    """Nobody has proved that one. Afterwards everything is as it was."""
    held = Held(start, tmp_path)
    with held.under_load(), held.between():
        (held.package / "half.py").write_text("an installation is under way")
    assert (held.asked.returncode, held.said) == (1, "")
    assert "the program has changed since it was proved" in held.error
    held.server.signal(signal.SIGHUP)
    held.server.wait_log("gracefully reloaded: generation 2")
    assert held.upgrade().returncode == 0


def test_a_program_that_changes_while_it_is_proved(start: Start, tmp_path: Path) -> None:
    """What the proof has imported isn't what is on disk by then."""
    installed = Installed(start, tmp_path)
    late = installed.package / "late.py"
    installed.deploy(f"Path({str(late)!r}).write_text('')\nVERSION = 'two'")
    done = installed.upgrade()
    assert (done.returncode, done.stdout) == (1, "")
    assert "the program has changed while it was proved; is an installation under way?" in done.stderr


def test_a_configuration_that_changes_between_proof_and_exec(start: Start, tmp_path: Path) -> None:
    """The new version goes on with what was proved."""
    held = Held(start, tmp_path)
    with held.under_load(), held.between():
        held.configure("prcesses = 8", "strict = true")
    assert (held.asked.returncode, held.said) == (1, "")
    assert "prcesses" in held.error
    held.server.wait_log(r"RE\)spawned uWSGI master process")
    assert held.versions() == {"one"}


CLOSE_ON_EXEC = 0o2000000


def test_an_exec_that_fails(start: Start, tmp_path: Path) -> None:
    """The directory in which the server was started is gone for a moment: everything is as it was before."""
    held = Held(start, tmp_path)
    home, elsewhere = held.server.directory, held.server.directory.with_name("wm-elsewhere")
    with held.between():
        home.rename(elsewhere)
    elsewhere.rename(home)
    assert (held.asked.returncode, held.said) == (1, "")
    assert f"No such file or directory: {home}" in held.error
    for info in Path(f"/proc/{held.server.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            flags = int(re.search(r"flags:\s+(\d+)", info.read_text())[1], 8)
            assert int(info.name) <= 2 or flags & CLOSE_ON_EXEC, os.readlink(info.parent.with_name("fd") / info.name)
    held.server.signal(signal.SIGHUP)
    held.server.wait_log("gracefully reloaded: generation 2")
    assert held.upgrade().returncode == 0


def test_a_worker_that_dies_between_proof_and_exec(start: Start, tmp_path: Path) -> None:
    held = Held(start, tmp_path)
    with held.between():
        for worker in held.server.workers():
            os.kill(worker.pid, signal.SIGKILL)
    assert held.asked.returncode == 0, held.error
    held.server.wait_workers(2)


def test_a_proof_that_is_told_to_end_proves_nothing(start: Start, tmp_path: Path) -> None:
    held = Held(start, tmp_path)
    held.deploy(f"while not Path({str(tmp_path / 'loaded')!r}).exists(): time.sleep(0.01)\nVERSION = 'two'")
    with held.starts("upgrade") as upgrade:
        held.server.wait_log("upgrade asked for")
        wait_until(lambda: held.proofs(1))
        (proof,) = [one for one in psutil.Process(held.server.pid).children() if "wsgimaster" in one.cmdline()]
        proof.terminate()
        _, error = upgrade.communicate(timeout=60)
    assert upgrade.returncode == 1
    assert "it doesn't work" in error
    assert held.version() == "one"


@pytest.mark.parametrize("more", [(), ("http-socket = http.sock",)], ids=["pull", "http"])
def test_a_pause_goes_on(start: Start, tmp_path: Path, more: tuple[str, ...]) -> None:
    installed = Installed(start, tmp_path, *more)
    address = installed.server.addresses[-1]
    assert installed.operate("pause").returncode == 0
    with Connection(address) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" if more else packet(cgi("/")))
        assert installed.upgrade().returncode == 0
        assert "paused" in installed.operate("workers").stdout
        assert not select.select([client.socket], [], [], 0.2)[0]
        assert installed.operate("resume").returncode == 0
        assert client.answer().status == 200


def test_an_answered_client_that_still_sends(start: Start, tmp_path: Path) -> None:
    """Its answer must not be destroyed by a reset: the new master reads on."""
    installed = Installed(start, tmp_path)
    with Connection(installed.server.address) as client:
        client.send(packet(cgi("/", "POST", b"x" * 1_000_000)) + b"x" * 10)
        begun = client.receive_until(b"one")
        assert installed.upgrade().returncode == 0
        for _ in range(20):
            client.send(b"x" * 10_000)
        assert client.answer(begun).end is End.EOF


THREAD = "import threading; threading.Thread(target=time.sleep, args=(3600,), daemon=True).start(); VERSION = 'two'"


def test_an_import_that_leaves_a_thread(start: Start, tmp_path: Path) -> None:
    """Then the zygote forks in another way (_process.pyx)."""
    installed = Installed(start, tmp_path)
    installed.deploy(THREAD)
    done = installed.upgrade()
    assert done.returncode == 0, done.stderr
    assert installed.versions() == {"two"}


def test_everything_else_goes_on(start: Start, tmp_path: Path) -> None:
    port = free_port()
    installed = Installed(start, tmp_path, f"health = 127.0.0.1:{port}", "vacuum = true", "logto = server.log")
    with Connection(("127.0.0.1", port)) as probe:
        probe.send(b"GET /-/ready HTTP/1.1\r\nHost: ")
        assert installed.upgrade().returncode == 0
        probe.send(b"x\r\n\r\n")
        assert probe.answer().status == 200
    assert http(("127.0.0.1", port), "/-/live").status == 200
    installed.write("s")
    installed.server.wait_log(r"^\*\*\* pid \d+, generation 2")
    installed.write("l")
    installed.write("q")
    installed.server.wait_log("goodbye to uWSGI")
    wait_until(lambda: {path.name for path in installed.server.directory.iterdir()} == {"server.log", "uwsgi.ini"})


def test_a_control_socket_of_its_own(start: Start, tmp_path: Path) -> None:
    installed = Installed(start, tmp_path, "control-socket = ctl")
    path = str(installed.server.directory / "ctl")
    for expected in ("generation 2", "generation 3"):
        done = subprocess.run(
            [*WSGIMASTER, "upgrade", "--control-socket", path], capture_output=True, text=True, timeout=60, check=False
        )
        assert expected in done.stdout, done.stderr


def test_a_cheap_server_wakes_up_again(start: Start, tmp_path: Path) -> None:
    installed = Installed(start, tmp_path)
    installed.write("C")
    installed.server.wait_log("cheaped", 2)
    assert installed.upgrade().returncode == 0
    assert installed.version() == "one"


def test_what_is_started_anew_is_found_where_it_was(start: Start, tmp_path: Path) -> None:
    """The server was started with relative paths, and works in another directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(APPS / "probe.py", elsewhere)
    lines = [f"socket = 127.0.0.1:{free_port()}", "module = probe", f"chdir = {elsewhere}", "logto = %t.%U.log"]
    (tmp_path / "uwsgi.ini").write_text("\n".join(["[uwsgi]", *lines]))
    server = start(argv=["uwsgi.ini"], where=tmp_path, ready="nothing")
    command = [*WSGIMASTER, "upgrade", "--pid", str(server.pid)]
    (log,) = wait_until(lambda: list(tmp_path.glob("*.log"))[:1] and list(tmp_path.glob("*root.log"))) or []
    wait_until(lambda: "spawned uWSGI worker 1" in log.read_text())
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(f"/proc/{server.pid}/cwd").resolve() == elsewhere


def test_the_service_manager_hears_of_it(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        heard: list[str] = []

        def hear() -> list[str]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.extend(manager.recv(4096).decode().split("\n"))
            return heard

        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        installed = Installed(start, tmp_path, env=environment)
        assert hear().count("READY=1") == 1
        assert installed.upgrade().returncode == 0
        wait_until(lambda: hear().count("READY=1") == 2)
        assert heard.count("RELOADING=1") == 1
        before = heard.count("WATCHDOG=1")
        wait_until(lambda: hear().count("WATCHDOG=1") > before + 1)


def test_no_descriptor_is_left_behind(start: Start, tmp_path: Path) -> None:
    """Of what the master before exec had open, only what is needed is there afterwards."""
    installed = Installed(start, tmp_path)
    counts = []
    for _ in range(4):
        assert installed.upgrade().returncode == 0
        installed.server.wait_log(r"worker \d buried", 2 * (len(counts) + 1))
        counts.append(len(list(Path(f"/proc/{installed.server.pid}/fd").iterdir())))
    assert counts[1:] == counts[:-1]
