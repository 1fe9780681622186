"""Real processes for the tests: the server under test, nginx and Apache, each in a directory of its own.

The server is `python -m wsgimaster`; WSGIMASTER_TEST_SERVER names another command, for example a real uWSGI,
to see which tests hold for both. Whatever is started is ended by pid at the end of its `with` block, and then
nothing may be left: no process, no listening socket. A failing test shows the logs of everything that ran
(conftest.py).
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

import psutil

from support import client
from support.client import Address
from support.wait import wait_until

TESTS = Path(__file__).resolve().parent.parent
APPS = TESTS / "apps"
COMMAND = shlex.split(os.environ.get("WSGIMASTER_TEST_SERVER", "")) or [sys.executable, "-m", "wsgimaster"]

MARK = "WSGIMASTER_TEST_MARK"  # in the environment of everything that a test starts: finds what has escaped
ENDED = (psutil.NoSuchProcess, psutil.ZombieProcess)


def directory() -> Path:
    """A new short directory (a unix socket's path holds 107 bytes) that other users may enter."""
    path = Path(tempfile.mkdtemp(prefix="wm-"))
    path.chmod(0o755)
    return path


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


OPEN_A_CLOSED_DIRECTORY = """
set -e
mount --bind "$2" "$3"
mount -t tmpfs -o mode=755 none "$1"
mkdir -p "$2"
mount --bind "$3" "$2"
shift 3
exec "$@"
"""


def closed_directories(path: Path) -> Iterator[tuple[Path, Path]]:
    """The directories on the way to a file that others may not enter, each with the next step on the way."""
    for outer, inner in itertools.pairwise([*reversed(path.parents), path]):
        if not outer.stat().st_mode & stat.S_IXOTH:
            yield outer, inner


@contextmanager
def readable_interpreter() -> Iterator[list[str]]:
    """What to put in front of a command so that every user may read the interpreter; needs root.

    One that is installed in root's home is opened to everybody, in a mount namespace of the command's own.
    """
    closed = list(closed_directories(Path(sys.executable).resolve()))
    if not closed:
        yield []
        return
    ((outer, inner),) = closed
    spare = directory()
    script = ["sh", "-c", OPEN_A_CLOSED_DIRECTORY, "sh"]
    try:
        yield ["unshare", "--mount", *script, str(outer), str(inner), str(spare)]
    finally:
        spare.rmdir()


class LogView:
    """What a program logs from now on."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.start = len(program.log())

    def text(self) -> str:
        return self.program.log()[self.start :]

    def wait(self, pattern: str, count: int = 1, timeout: float = 20) -> list[re.Match[str]]:
        """Wait until there are that many matches of the pattern."""

        def matches() -> list[re.Match[str]] | None:
            found = list(re.finditer(pattern, self.text(), re.MULTILINE))
            return found if len(found) >= count else None

        message = f"{count} x {pattern!r} in the log of {self.program.name}"
        return wait_until(matches, timeout, lambda: f"{message}:\n{self.text()[-4000:]}") or []


class Program:
    """A started process group with its log; the base of Server, Nginx and Apache."""

    started: ClassVar[list[Program]] = []  # since the present test began, and those still running
    end_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, name: str, where: Path | None = None) -> None:
        self.name = name
        self.owns_directory = where is None
        self.directory = directory() if where is None else where
        self.log_path = self.directory / f"{name}.log"
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        self.addresses: list[Address] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False
        self._last_log = ""
        Program.started.append(self)

    def spawn(self, command: list[str], env: Mapping[str, str] | None = None, output: int | None = None) -> None:
        """output: a descriptor that takes the place of the log."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("UWSGI_")}  # options
        environment = {**inherited, **(env or {}), MARK: self.mark}
        if "PYTHONPATH" in environment:  # the directory changes
            entries = environment["PYTHONPATH"].split(os.pathsep)
            entries = [str(Path(entry).absolute()) for entry in entries if entry]
            environment["PYTHONPATH"] = os.pathsep.join(entries)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log if output is None else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # what it is

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    @property
    def address(self) -> Address:
        return self.addresses[0]

    def log(self) -> str:
        if self.log_path.exists():
            self._last_log = self.log_path.read_bytes().decode("utf-8", "backslashreplace")
        return self._last_log

    def processes(self) -> list[psutil.Process]:
        """Everything that it has started and that still runs, in its session or outside; zombies are gone."""
        found = []
        for pid in psutil.pids():  # not process_iter(), which remembers processes whose numbers others have by now
            try:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and self._owns(process):
                    found.append(process)
            except (*ENDED, psutil.AccessDenied, ProcessLookupError, PermissionError):
                continue
        return found

    def _owns(self, process: psutil.Process) -> bool:
        if self.process is not None and os.getsid(process.pid) == self.process.pid:
            return True
        return process.environ().get(MARK) == self.mark

    def listening(self) -> list[Address]:
        return [address for address in self.addresses if is_listening(address)]

    # what one does with it

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def log_from_here(self) -> LogView:
        return LogView(self)

    def wait_log(self, pattern: str, count: int = 1, timeout: float = 20) -> list[re.Match[str]]:
        """Wait until the log, from its beginning, holds that many matches of the pattern."""
        view = LogView(self)
        view.start = 0
        return view.wait(pattern, count, timeout)

    def wait_exit(self, timeout: float = 60) -> int:
        """The exit status; negative for a signal."""
        assert self.process is not None, f"{self.name} was not started"
        return self.process.wait(timeout)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it as its operator would, then look for what is left. Raises if there is anything."""
        if self.closed:
            return
        self.closed = True
        faults = []
        try:
            if self.running():
                self.signal(self.end_signal)
                try:
                    self.wait_exit(20)
                except subprocess.TimeoutExpired:
                    faults.append(f"{self.name} did not end within 20 s of {self.end_signal!r}")
                    self.signal(signal.SIGKILL)
                    self.wait_exit()
            try:
                wait_until(lambda: not self.processes(), 20)
            except AssertionError:
                faults += [f"process {describe(process)} is left" for process in self.processes()]
                for process in self.processes():
                    kill(process)
            faults += [f"socket {address} is left" for address in self.listening()]
        finally:
            self.log()
            if self.owns_directory:
                shutil.rmtree(self.directory)
        assert not faults, "; ".join(faults)


_numbers = itertools.count()


class Worker(NamedTuple):
    number: int
    pid: int


class Server(Program):
    """The server under test.

    `options` are the lines of its uwsgi.ini under `[uwsgi]`, `master = true` and `strict = true` (a misspelt
    option is an error); relative paths start at `self.directory`. `argv` instead of options is a command line
    of its own. `ready` says what to wait for: "answers" (a ping on each uwsgi socket, a connection on each
    other one), "spawned" or, for a start that is to fail, "nothing". `output` is a descriptor that takes the
    place of the log.
    """

    end_signal = signal.SIGINT  # uWSGI reloads on SIGTERM

    def __init__(
        self,
        options: str = "",
        *,
        argv: list[str] | None = None,
        env: Mapping[str, str] | None = None,
        where: Path | None = None,
        ready: str = "answers",
        name: str = "server",
        command: list[str] | None = None,
        output: int | None = None,
    ) -> None:
        super().__init__(name, where)
        text = textwrap.dedent(options)
        if argv is None:
            ini = self.directory / "uwsgi.ini"
            ini.write_text(f"[uwsgi]\nmaster = true\nstrict = true\n{text}")
            argv = ["--ini", str(ini)]
        self.sockets = list(self._sockets(text, argv))
        self.addresses = [address for _, address in self.sockets]
        self.spawn([*(command or COMMAND), *argv], env, output)
        try:
            if ready == "answers":
                wait_until(self._answers, 30, lambda: f"{self.name} answers:\n{self.log()}")
            elif ready == "spawned":
                self.wait_log(r"spawned uWSGI worker")
        except BaseException:
            self.close()
            raise

    def _sockets(self, text: str, argv: list[str]) -> Iterator[tuple[str, Address]]:
        names = r"(socket|uwsgi-socket|http-socket|http11-socket|http|https-socket|https)"
        in_file = re.findall(rf"^{names}\s*=\s*(\S+)$", text, re.MULTILINE)
        in_argv = re.findall(rf"--{names}[ =](\S+)", " ".join(argv))
        for option, value in in_file + in_argv:
            yield ("http" if option.startswith("http") else "uwsgi"), self._address(value.partition(",")[0])

    def _address(self, value: str) -> Address:
        if value.startswith("@"):
            return value
        host, colon, port = value.rpartition(":")
        if colon:
            return (host if host not in ("", "0.0.0.0") else "127.0.0.1", int(port))
        return str(self.directory / value.replace("%d", ""))

    def _answers(self) -> bool:
        if not self.running():
            raise AssertionError(f"{self.name} ended with {self.wait_exit()}:\n{self.log()}")
        try:
            for protocol, address in self.sockets:
                if protocol == "uwsgi":
                    if client.ping(address)[:1] != b"\x64":
                        return False
                else:
                    client.Connection(address).close()
        except OSError:
            return False
        return True

    def children(self, word: str) -> list[psutil.Process]:
        """Those of the master whose command line has this word, and that haven't just ended."""
        found = []
        for child in psutil.Process(self.pid).children():
            with suppress(*ENDED):
                found += [child] if word in child.cmdline() else []
        return found

    def workers(self) -> list[Worker]:
        """The running workers, from the lines that report their start."""
        pids = {}
        for match in re.finditer(r"[Ss]pawned uWSGI worker (\d+) .*?\((?:new )?pid: (\d+)", self.log()):
            number, pid = match.groups()
            pids[int(number)] = int(pid)
        return [Worker(number, pid) for number, pid in sorted(pids.items()) if is_running(pid)]

    def settled_log(self) -> LogView:
        """A view of the log after the lines of all earlier requests; needs a single core and the probe."""
        path = f"/hello?settled-{next(_numbers)}"
        protocol, address = self.sockets[0]
        (client.http if protocol == "http" else client.uwsgi)(address, path)
        self.wait_log(re.escape(path))
        return self.log_from_here()

    def wait_workers(self, count: int, timeout: float = 30) -> list[Worker]:
        def enough() -> list[Worker] | None:
            workers = self.workers()
            return workers if len(workers) == count else None

        return wait_until(enough, timeout, lambda: f"{count} workers; running: {self.workers()}") or []


class Nginx(Program):
    """A real nginx, in the foreground, that passes to `upstream`, with more directives for its location.

    `servers` instead is the text of server blocks; `{port}` in it is filled in.
    """

    def __init__(self, upstream: Address | None = None, *, location: str = "", servers: str = "") -> None:
        super().__init__("nginx")
        binary = shutil.which("nginx")
        assert binary, "these tests need nginx: apt install nginx"
        self.port = free_port()
        if upstream is not None:
            servers = f"""
                server {{
                    listen 127.0.0.1:{self.port};
                    server_name localhost;
                    location / {{
                        include /etc/nginx/uwsgi_params;
                        uwsgi_pass {nginx_name(upstream)};
                        {location}
                    }}
                }}
            """
        self.addresses = [("127.0.0.1", self.port)]
        config = self.directory / "nginx.conf"
        config.write_text(
            textwrap.dedent(f"""\
            daemon off;
            {"user root;" if os.geteuid() == 0 else ""}
            pid {self.directory}/nginx.pid;
            error_log {self.log_path} notice;
            worker_processes 2;
            worker_rlimit_nofile 8192;
            events {{ worker_connections 4096; }}
            http {{
                access_log off;
                client_max_body_size 0;
                uwsgi_read_timeout 60s;
                uwsgi_max_temp_file_size 0;
                client_body_temp_path {self.directory}/body;
                proxy_temp_path {self.directory}/proxy;
                fastcgi_temp_path {self.directory}/fastcgi;
                uwsgi_temp_path {self.directory}/uwsgi;
                scgi_temp_path {self.directory}/scgi;
            """)
            + servers.replace("{port}", str(self.port))
            + "}\n"
        )
        self.spawn([binary, "-p", str(self.directory), "-c", str(config), "-e", str(self.log_path)])
        _wait_listening(self)


class Apache(Program):
    """Debian's Apache with mod_proxy_uwsgi in front of one server."""

    MODULES = Path("/usr/lib/apache2/modules")

    def __init__(self, upstream: Address) -> None:
        super().__init__("apache")
        binary = shutil.which("apache2", path=f"{os.environ['PATH']}:/usr/sbin")
        missing = "these tests need Apache: apt install apache2 libapache2-mod-proxy-uwsgi"
        assert binary, missing
        assert (self.MODULES / "mod_proxy_uwsgi.so").exists(), missing
        self.port = free_port()
        self.addresses = [("127.0.0.1", self.port)]
        target = (
            f"unix:{upstream}|uwsgi://localhost/" if isinstance(upstream, str) else "uwsgi://{}:{}/".format(*upstream)
        )
        modules = "".join(
            f"LoadModule {name}_module {self.MODULES}/mod_{name}.so\n"
            for name in ("mpm_event", "authz_core", "proxy", "proxy_uwsgi")
        )
        config = self.directory / "apache.conf"
        user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
        config.write_text(
            f"ServerRoot {self.directory}\nServerName localhost\nPidFile {self.directory}/apache.pid\n"
            f"ErrorLog {self.log_path}\nDefaultRuntimeDir {self.directory}\n{modules}{user}"
            f"Listen 127.0.0.1:{self.port}\nProxyPass / {target}\n"
        )
        self.spawn([binary, "-f", str(config), "-D", "FOREGROUND"])
        _wait_listening(self)


def _wait_listening(program: Program) -> None:
    def up() -> bool:
        assert program.running(), f"{program.name} ended:\n{program.log()}"
        return len(program.listening()) == len(program.addresses)

    try:
        wait_until(up, 30, lambda: f"{program.name} listens:\n{program.log()}")
    except BaseException:
        program.close()
        raise


def nginx_name(address: Address) -> str:
    return f"unix:{address}" if isinstance(address, str) else "{}:{}".format(*address)


def is_listening(address: Address) -> bool:
    """Whether somebody accepts connections there."""
    try:
        client.Connection(address, timeout=10).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError as error:
        return error.errno != errno.ENOTSOCK
    return True


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except ENDED:
        return False


def describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {shlex.join(process.cmdline())}"
    except ENDED:
        return f"{process.pid} (gone)"


def kill(process: psutil.Process) -> None:
    try:
        process.kill()
        process.wait(10)
    except ENDED:
        pass


def peak_memory(pid: int) -> int:
    """The most bytes that the process has ever had in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def status_field(pid: int, name: str) -> list[str]:
    """The words of one line of /proc/PID/status."""
    status = Path(f"/proc/{pid}/status").read_text()
    return re.search(rf"^{name}:\s*(.*)$", status, re.MULTILINE)[1].split()
