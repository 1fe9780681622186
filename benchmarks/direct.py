"""TLS and static files, beside the servers that have them, asked by wrk over TCP (over the uwsgi protocol by `load`).

    python benchmarks/direct.py [--rounds 3] [--seconds 3] [--only static] [--out results-direct.md]

Each round measures all servers of a case one after the other; the ratio is that of the same round. Needs `wrk` and
`openssl` (Debian: apt-get install wrk openssl), and what run.py has installed into benchmarks/.venv.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import prepare
from clients import run_load
from contenders import HERE, VENV, Service

SMALL, LARGE = 3_000, 300_000  # bytes of the two files
CLIENTS = 32
OURS = "{python} -m wsgimaster --master --module hello:application --processes 2 --disable-logging"
UWSGI = (
    "{venv}/bin/uwsgi --master --module hello:application --processes 2 --disable-logging --single-interpreter "
    "--need-app --die-on-term --listen 1024 --thunder-lock"
)
GUNICORN = (
    "{venv}/bin/gunicorn --bind 127.0.0.1:{port} --workers 2 --worker-class gthread --threads 4 --log-level warning "
    "--no-control-socket --certfile {folder}/cert.pem --keyfile {folder}/key.pem hello:application"
)
GRANIAN = (
    "{venv}/bin/granian --interface wsgi --port {port} --workers 2 --log-level warning "
    "--ssl-certificate {folder}/cert.pem --ssl-keyfile {folder}/key.pem hello:application"
)
CERTIFICATE = "127.0.0.1:{port},{folder}/cert.pem,{folder}/key.pem"
MAPPED = "--static-map /files={folder}"


@dataclass(frozen=True)
class Case:
    """servers: commands by name, the first is what the others are compared with; each gets {port} and {folder}. path:
    what is asked, over https, http, or uwsgi at the socket {folder}/NAME.sock; size: bytes of the answer's body."""

    title: str
    servers: dict[str, str]
    path: str
    size: int
    scheme: str = "http"
    keeps: bool = False  # connections go on


TLS = {
    "uWSGI": f"{UWSGI} --https {CERTIFICATE} --http-keepalive=75",
    "wsgimaster": f"{OURS} --https {CERTIFICATE}",
    "gunicorn, gthread": GUNICORN,
    "granian": GRANIAN,
}
HTTP = {
    "uWSGI": f"{UWSGI} --http-socket 127.0.0.1:{{port}} {MAPPED}",
    "wsgimaster": f"{OURS} --http-socket 127.0.0.1:{{port}} {MAPPED}",
}
SOCKET = {  # `load` asks for one path only; a map to a file answers for all
    "uWSGI": f"{UWSGI} --socket {{folder}}/uWSGI.sock --static-map /={{folder}}/{{file}}",
    "wsgimaster": f"{OURS} --socket {{folder}}/wsgimaster.sock --static-map /={{folder}}/{{file}}",
}
CASES = [
    Case("TLS: hello, on connections that go on", TLS, "/", 1024, "https", keeps=True),
    Case("TLS: hello, a handshake each (RSA 2048)", TLS, "/", 1024, "https"),
    Case("static file of 3 KB, HTTP, a connection each", HTTP, "/files/small.bin", SMALL),
    Case("static file of 300 KB, HTTP, a connection each", HTTP, "/files/large.bin", LARGE),
    Case("static file of 3 KB, uwsgi protocol, unix socket", SOCKET, "small.bin", SMALL, "uwsgi"),
    Case("static file of 300 KB, uwsgi protocol, unix socket", SOCKET, "large.bin", LARGE, "uwsgi"),
]


@dataclass(frozen=True)
class Figure:
    throughput: float  # requests per second
    cpu: float  # microseconds of the server's tree per request


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(address: tuple[str, int] | str) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        return probe.connect_ex(address) == 0


def make_files(folder: Path) -> None:
    (folder / "small.bin").write_bytes(os.urandom(SMALL))
    (folder / "large.bin").write_bytes(os.urandom(LARGE))
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def running(case: Case, folder: Path, python: str) -> Iterator[dict[str, tuple[Service, int]]]:
    """All servers of a case, ready, with their ports."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, command in case.servers.items():
            port = free_port()
            places = {"port": port, "folder": folder, "file": case.path, "venv": VENV, "python": python}
            words = [word.format(**places) for word in shlex.split(command)]
            server = stack.enter_context(Service(name, words, folder / f"{name}.log"))
            address = f"{folder}/{name}.sock" if case.scheme == "uwsgi" else ("127.0.0.1", port)
            server.wait_until_ready(3, lambda address=address: is_listening(address))
            found[name] = server, port
        yield found


def ask(case: Case, name: str, port: int, folder: Path, seconds: float) -> int:
    """How many requests were answered; SystemExit if one wasn't as it should be."""
    if case.scheme == "uwsgi":
        seen = run_load(folder / f"{name}.sock", seconds, clients=CLIENTS, expect=case.size)
        if seen["bad"]:
            sys.exit(f"{name}: {seen['bad']} bad answers")
        return int(seen["requests"])
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds:g}s", f"{case.scheme}://127.0.0.1:{port}{case.path}"]
    command += [] if case.keeps else ["-H", "Connection: close"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    found = re.search(r"(\d+) requests in", text)
    read = re.search(r"requests in [\d.ms]+, ([\d.]+)(K|M|G)B read", text)
    if found is None or read is None or "Non-2xx" in text:
        sys.exit(f"{name}: {text}")
    count = int(found[1])
    if float(read[1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[read[2]] < 0.99 * count * case.size:
        sys.exit(f"{name}: answers were too short: {text}")
    return count


def measure(case: Case, folder: Path, python: str, rounds: int, seconds: float) -> dict[str, list[Figure]]:
    figures: dict[str, list[Figure]] = {name: [] for name in case.servers}
    with running(case, folder, python) as servers:
        for name, (_, port) in servers.items():
            ask(case, name, port, folder, 1)
        for _ in range(rounds):
            for name, (server, port) in servers.items():
                before = server.time()
                count = ask(case, name, port, folder, seconds)
                spent = (server.time() - before).total
                figures[name].append(Figure(count / seconds, 1e6 * spent / count))
    return figures


def table(case: Case, figures: dict[str, list[Figure]]) -> str:
    base = next(iter(case.servers))
    lines = [
        f"## {case.title}\n",
        f"| server | requests/s | server CPU, µs | CPU / {base}, round by round |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, some in figures.items():
        ratios = [one.cpu / other.cpu for one, other in zip(some, figures[base], strict=True)]
        shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
        throughput = statistics.median(one.throughput for one in some)
        cpu = statistics.median(one.cpu for one in some)
        lines.append(f"| {name} | {throughput:,.0f} | {cpu:.1f} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--only", default="", help="cases whose title has this in it")
    parser.add_argument("--python", default=sys.executable, help="the Python that has wsgimaster")
    parser.add_argument("--out", type=Path, default=HERE / "build" / "direct.md")
    options = parser.parse_args()
    for program in ("wrk", "openssl"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is needed: apt-get install {program}")
    prepare.compile_programs()
    prepare.make_venv()
    parts = []
    with tempfile.TemporaryDirectory(prefix="wsgimaster-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_files(folder)
        for case in CASES:
            if options.only in case.title:
                parts.append(table(case, measure(case, folder, options.python, options.rounds, options.seconds)))
                print(parts[-1], flush=True)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
