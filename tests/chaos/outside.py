"""What comes from outside: a container that is bare, and packets that are hostile."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from bench import Bench, Case, Missing, Victim, need_root, scenario, wait_until
from clients import ask
from support.client import Connection, block, cgi, exchange, packet
from support.harness import directory, readable_interpreter

# ---- process 1 ----

USER = 54321  # nobody has it


class Contained(Victim):
    """The server as process 1 of its own PID namespace, with a read-only root, as a user without a name."""

    def __init__(self, prefix: list[str], command: list[str], where: Path, **more: object) -> None:
        os.chown(where, USER, USER)
        prepare = f"mount --bind {where} {where} && mount -o remount,bind,ro / && cd {where} && exec "
        drop = f"setpriv --reuid {USER} --regid {USER} --clear-groups "
        inner = prepare + drop + shlex.join(command) + ' "$@"'
        unshare = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "sh", "-c", inner, "server"]
        super().__init__([*prefix, *unshare], where=where, env={"HOME": "/nonexistent"}, **more)  # type: ignore[arg-type]

    @property
    def pid(self) -> int:
        """Of the server, seen from outside: the child of unshare."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return children[0].pid if children else self.process.pid

    def inside(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)


@scenario(
    "process-1",
    bound="no warning in the log; orphans with every kind of exit status are reaped within 5 s and change nothing; "
    "SIGTERM ends it with 0",
)
def process_1(bench: Bench) -> None:
    """The server as PID 1 of a namespace, with a read-only root, as a user without a name and with
    HOME=/nonexistent; its application leaves 100 orphans behind."""
    need_root()
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            raise Missing(f"no {tool}")
    test = subprocess.run(["unshare", "-pfm", "--mount-proc", "true"], capture_output=True, check=False)
    if test.returncode:
        raise Missing("no namespaces may be made here")
    for mode in ("eager", "lazy-apps"):
        where = directory()
        try:
            lazy = mode == "lazy-apps"
            with (
                bench.case(f"{mode}, 2 x 1") as case,
                readable_interpreter() as prefix,
                Contained(prefix, bench.command, where, processes=2, lazy=lazy) as server,
            ):
                contained(case, server)
        finally:
            shutil.rmtree(where)


def contained(case: Case, server: Contained) -> None:
    def workers() -> set[int]:
        """From inside: the namespace has pids of its own."""
        names = {int(pid) for pid in re.findall(r"(?i)spawned uWSGI worker \d+ .*?\(pid: (\d+)", server.log())}
        return names if len(names) >= 2 else set()

    before = wait_until(workers, 30, "two workers")
    case.equal("user", psutil.Process(server.pid).uids().real, USER)
    status = Path(f"/proc/{server.pid}/status").read_text()
    case.equal("pid inside", re.search(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)[1], "1")
    mounts = Path(f"/proc/{server.pid}/mounts").read_text()
    (root,) = [line.split()[3].split(",")[0] for line in mounts.splitlines() if line.split()[1] == "/"][-1:]
    case.equal("root file system", root, "ro")
    case.equal("200", sum(ask(server.address, "/work", f"a{n}").served for n in range(20)), 20)
    bad = r"(?i)^.*(warn|error|traceback|can't|cannot|could ?n[o']t|unable|failed|denied|read-only).*$"
    lines = [match[0] for match in re.finditer(bad, server.log(), re.MULTILINE)]
    case.equal("warnings", len(lines), 0)
    if lines:
        case.note("the first", lines[0][:80])
    running = len(server.inside())
    answer = ask(server.address, "/orphans?count=100", "orphans")
    case.equal("orphans made", answer.outcome, "200")
    most = 0

    def reaped() -> bool:
        nonlocal most
        children = len(server.inside())
        most = max(most, children)
        return most > running and children == running

    with suppress(AssertionError):
        wait_until(reaped, 5)
    case.at_least("most processes over the usual", most - running, 50)
    case.equal("left of them after 5 s", len(server.inside()) - running, 0)
    case.equal("200 afterwards", sum(ask(server.address, "/work", f"b{n}").served for n in range(20)), 20)
    case.equal("workers spawned since", len(workers() - before), 0)
    case.equal("deaths in the log", server.log().count("DAMN"), 0)
    os.kill(server.pid, signal.SIGTERM)
    case.equal("exit code", server.wait_exit(30), 0)


# ---- hostile packets ----

# Every variable that uWSGI acts on; its plugins for other languages and its router know some more.
ACTING = [
    *("UWSGI_FILE", "UWSGI_SCRIPT", "UWSGI_MODULE", "UWSGI_CALLABLE", "UWSGI_HOME", "UWSGI_PYHOME", "UWSGI_CHDIR"),
    *("UWSGI_TOUCH_RELOAD", "UWSGI_SETENV", "UWSGI_APPID", "UWSGI_CACHE_GET", "UWSGI_POSTFILE", "UWSGI_SCHEME"),
    *("UWSGI_PYPATH", "UWSGI_WSGI", "UWSGI_ROUTER"),
]


class Canaries:
    """Files that nobody has a reason to open, watched through inotify; importing one leaves a mark as well."""

    IN_OPEN, IN_ISDIR, IN_NONBLOCK = 0x20, 0x40000000, 0o4000

    def __init__(self, where: Path, marks: Path) -> None:
        self.where, self.mark = where, marks / "canary"
        where.mkdir()
        text = f"open({str(self.mark)!r}, 'a').write(__name__ + '\\n')\n"
        text += "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'canary']\n"
        for name in ACTING:
            (where / f"canary_{name.lower()}.py").write_text(text)
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(self.IN_NONBLOCK)
        if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(where), self.IN_OPEN) < 0:
            raise Missing("no inotify")
        # does the watch see anything at all?
        (where / "canary_uwsgi_file.py").read_text()
        assert self.opened(), "inotify says nothing"

    def opened(self) -> set[str]:
        """The files that were opened since the last look."""
        names, data = set(), b""
        with suppress(BlockingIOError):
            while piece := os.read(self.fd, 1 << 16):
                data += piece
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            if not mask & self.IN_ISDIR:
                names.add(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        return names

    def executed(self) -> list[str]:
        return self.mark.read_text().split() if self.mark.exists() else []

    def close(self) -> None:
        os.close(self.fd)


def values(name: str, canaries: Canaries) -> list[str]:
    """What an attacker would write into the variable."""
    module = f"canary_{name.lower()}"
    path = str(canaries.where / f"{module}.py")
    return {
        "UWSGI_CALLABLE": ["unwanted", "victim:unwanted"],
        "UWSGI_HOME": [str(canaries.where)],
        "UWSGI_PYHOME": [str(canaries.where)],
        "UWSGI_CHDIR": [str(canaries.where), "/"],
        "UWSGI_SETENV": ["HOSTILE=1", "HOSTILE_PATH=/x"],
        "UWSGI_APPID": ["/other", module],
        "UWSGI_CACHE_GET": ["key", "key@cache"],
        "UWSGI_SCHEME": ["https", "javascript"],
    }.get(name, [path, module, f"{module}:application"])


class Attack:
    """Endless hostile inputs; a request that may be executed has an id of its own."""

    def __init__(self, canaries: Canaries) -> None:
        self.dice, self.canaries, self.number = random.Random(13), canaries, 0
        self.sound: set[str] = set()  # ids of packets that are correct, whatever they name

    def request(self, **more: str) -> dict:
        self.number += 1
        return cgi(f"/work?id=h{self.number}", **more)

    def inputs(self) -> Iterator[bytes]:
        yield from self.every_variable()
        yield from self.every_truncation()
        kinds = (self.variables, self.lengths, self.truncated, self.http, self.tls, self.noise, self.modifiers)
        while True:
            yield self.dice.choice(kinds)()

    def every_variable(self) -> Iterator[bytes]:
        for name in ACTING:
            for value in values(name, self.canaries):
                yield self.hostile({name: value})
                yield self.hostile({name: value, "UWSGI_APPID": f"/{name}"})
        everything = {name: values(name, self.canaries)[0] for name in ACTING}
        yield self.hostile(everything)

    def hostile(self, more: dict[str, str]) -> bytes:
        data = packet(self.request(**more))
        self.sound.add(f"h{self.number}")
        return data

    def variables(self) -> bytes:
        names = self.dice.sample(ACTING, self.dice.randrange(1, 4))
        return self.hostile({name: self.dice.choice(values(name, self.canaries)) for name in names})

    def every_truncation(self) -> Iterator[bytes]:
        whole = packet(self.request(UWSGI_FILE=str(self.canaries.where / "canary_uwsgi_file.py")))
        for end in range(len(whole)):
            yield whole[:end]

    def lengths(self) -> bytes:
        """One of the lengths is wrong."""
        data = bytearray(packet(self.request(UWSGI_FILE=values("UWSGI_FILE", self.canaries)[0])))
        at = 1 if self.dice.random() < 0.3 else self.dice.randrange(4, len(data) - 1)
        struct.pack_into("<H", data, at, self.dice.choice([0, 1, 2, 255, 4096, 32768, 65535]))
        return bytes(data)

    def truncated(self) -> bytes:
        data = packet(self.request(), size=self.dice.randrange(65536))
        return data[: self.dice.randrange(len(data))]

    def http(self) -> bytes:
        verb = self.dice.choice(["GET", "POST", "PRI", "\x16\x03", "OPTIONS"])
        return f"{verb} /work?id=http HTTP/1.1\r\nHost: x\r\nUWSGI_FILE: /x\r\n\r\n".encode()

    def tls(self) -> bytes:
        hello = b"\x01\x00\x01\xfc\x03\x03" + self.dice.randbytes(508)
        return b"\x16\x03\x01" + struct.pack(">H", len(hello)) + hello

    def noise(self) -> bytes:
        return self.dice.randbytes(self.dice.randrange(2000))

    def modifiers(self) -> bytes:
        """What isn't a WSGI request: uWSGI has code execution, caches, signals and spooling behind such numbers."""
        modifier = self.dice.choice([m for m in range(1, 256) if m not in (0, 30)])
        text = block({"UWSGI_FILE": values("UWSGI_FILE", self.canaries)[0], "key": "value"})
        return struct.pack("<BHB", modifier, len(text), self.dice.randrange(256)) + text


@scenario(
    "hostile-packets",
    bound="no worker is lost, no file that a packet names is opened, nothing is executed that wasn't asked for or "
    "twice, and ordinary requests in between are answered 200",
)
def hostile_packets(bench: Bench) -> None:
    """10,000 packets: every variable that uWSGI acts on, wrong lengths, a packet cut at each of its bytes, HTTP, TLS,
    noise, other modifiers; every fiftieth is followed by an ordinary request."""
    with bench.case(f"{bench.scale(10_000, 2_000)} packets, eager, 4 x 1") as case:
        where = directory()
        try:
            with Victim(
                bench.command,
                f"pythonpath = {where}/canaries\nsocket-timeout = 1",
                processes=4,
                where=where,
            ) as server:
                server.wait_loaded(4)
                canaries = Canaries(where / "canaries", server.notes)
                try:
                    attack(bench, case, server, canaries)
                finally:
                    canaries.close()
        finally:
            shutil.rmtree(where)


def attack(bench: Bench, case: Case, server: Victim, canaries: Canaries) -> None:
    workers = server.wait_loaded(4)
    before = state(server)
    total = bench.scale(10_000, 2_000)
    attack = Attack(canaries)
    ordinary, answers = [], Counter()
    for number, data in zip(range(total), attack.inputs(), strict=False):
        answers[send(server, data)] += 1
        if number % 50 == 49:
            ordinary.append(ask(server.address, "/work", f"o{number}", 10))
    for path in canaries.where.glob("*.py"):
        path.touch()  # whoever was told to reload when it changes does so now
    ordinary += [ask(server.address, "/work", f"p{number}", 10) for number in range(100)]
    case.note("answers to the packets", ", ".join(f"{kind}: {n}" for kind, n in sorted(answers.items())))
    case.equal("ordinary requests: 200", sum(reply.served for reply in ordinary), len(ordinary))
    case.equal("workers lost", len(set(workers) - set(server.loaded())), 0)
    case.equal("deaths in the log", server.log().count("DAMN"), 0)
    case.equal("canary files opened", len(canaries.opened()), 0)
    case.equal("canary files executed", len(set(canaries.executed())), 0)
    case.equal("other callable executed", sum(1 for _ in server.notes.glob("executed.*")), 0)
    begun = Counter(b.id for b in server.begun())
    case.equal("sound packets executed", len(attack.sound & begun.keys()), len(attack.sound))
    case.equal("executed twice", sum(number > 1 for number in begun.values()), 0)
    case.equal("directory, environment, path", "same" if state(server) == before else "changed", "same")


def send(server: Victim, data: bytes) -> str:
    """Send it, say that this was all, and read to the end."""
    try:
        with Connection(server.address, 10) as connection:
            connection.send(data)
            with suppress(OSError):
                connection.half_close()
            return str(connection.answer().status or "nothing")
    except TimeoutError:
        return "no end within 10 s"


def state(server: Victim) -> list[str]:
    """What four workers say of themselves, each some times."""
    answers = [exchange(server.address, packet(cgi("/state"))) for _ in range(40)]
    return sorted({json.dumps(json.loads(a.body)) if a.status == 200 else "none" for a in answers})
