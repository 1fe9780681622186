"""The two ways to ask: our own generator straight at the server's socket, and wrk through nginx."""

import getpass
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from contenders import BUILD, Service

ANSWER_LENGTH = 1024
CLIENTS = 32
WRK_CONNECTIONS = 64
REQUEST_TIMEOUT = 10  # seconds, for one request

NGINX_CONF = """\
daemon off;
user {user};
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            uwsgi_pass unix:{upstream};
{params}
        }}
    }}
}}
"""

# The stock uwsgi_params of nginx.
UWSGI_PARAMS = {
    "QUERY_STRING": "$query_string",
    "REQUEST_METHOD": "$request_method",
    "CONTENT_TYPE": "$content_type",
    "CONTENT_LENGTH": "$content_length",
    "REQUEST_URI": "$request_uri",
    "PATH_INFO": "$document_uri",
    "DOCUMENT_ROOT": "$document_root",
    "SERVER_PROTOCOL": "$server_protocol",
    "REQUEST_SCHEME": "$scheme",
    "HTTPS": "$https if_not_empty",
    "REMOTE_ADDR": "$remote_addr",
    "REMOTE_PORT": "$remote_port",
    "SERVER_PORT": "$server_port",
    "SERVER_NAME": "$server_name",
}


class ClientError(Exception):
    """A load generator that didn't do its work."""


@dataclass(frozen=True)
class Answers:
    """What a client saw. `bad` counts everything but a complete 200."""

    requests: int
    bad: int
    seconds: float
    throughput: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    details: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def run_client(command: list[str], seconds: float) -> str:
    limit = seconds + REQUEST_TIMEOUT + 20
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClientError(f"{command[0]} didn't end within {limit:.0f} s") from error
    if done.stderr or not done.stdout:
        raise ClientError(f"{command[0]}: {done.stderr.strip() or 'no output'}")
    return done.stdout


# ---- straight at the socket -----------------------------------------------------------------------


def run_load(server: Path, seconds: float, *, clients: int = CLIENTS, count: int | None = None) -> Answers:
    command = [str(BUILD / "load"), "--clients", str(clients), "--duration", str(seconds)]
    command += ["--expect", str(ANSWER_LENGTH), "--timeout", str(REQUEST_TIMEOUT)]
    if count is not None:
        command += ["--count", str(count)]
    seen = json.loads(run_client([*command, str(server)], seconds))
    counts = ("other_status", "errors", "short", "timeouts", "connect_retries", "mean_us", "p999_us")
    return Answers(
        seen["requests"],
        seen["requests"] - seen["ok"],
        seen["seconds"],
        seen["throughput"],
        seen["p50_us"],
        seen["p90_us"],
        seen["p99_us"],
        seen["max_us"],
        {name: seen[name] for name in counts},
    )


def is_answering(server: Path) -> bool:
    return run_load(server, 1, clients=1, count=1).bad == 0


# ---- through nginx --------------------------------------------------------------------------------


def nginx_path() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Nginx(Service):
    """One nginx worker in front of the server's unix socket."""

    def __init__(self, directory: Path, upstream: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/articles/2026/hello"
        params = "\n".join(f"            uwsgi_param {name} {value};" for name, value in UWSGI_PARAMS.items())
        values = {"user": getpass.getuser(), "directory": directory, "port": self.port, "upstream": upstream}
        conf = directory / "nginx.conf"
        conf.write_text(NGINX_CONF.format(params=params, **values))
        log = directory / "nginx.log"
        command = [str(nginx_path()), "-p", str(directory), "-c", str(conf), "-e", str(log)]
        super().__init__("nginx", command, directory / "nginx.out")

    def is_answering(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=REQUEST_TIMEOUT) as answer:
                return answer.status == 200 and len(answer.read()) == ANSWER_LENGTH
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
            return False


def microseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6}[unit]


def read_wrk(output: str) -> Answers:
    """wrk prints for people; what it doesn't mention is zero."""
    total = re.search(r"(\d+) requests in ([\d.]+\w+)", output)
    if total is None:
        raise ClientError(f"can't read what wrk says:\n{output}")
    requests, seconds = int(total[1]), microseconds(total[2]) / 1e6
    latency = dict(re.findall(r"^\s+(\d+)%\s+(\S+)$", output, re.MULTILINE))
    longest = re.search(r"Latency\s+\S+\s+\S+\s+(\S+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    bad = sum(map(int, errors.groups())) if errors else 0
    bad += int(other[1]) if other else 0
    p50, p90, p99 = (microseconds(latency[share]) for share in ("50", "90", "99"))
    most = microseconds(longest[1]) if longest else 0.0
    return Answers(requests, bad, seconds, requests / seconds, p50, p90, p99, most, {})


def run_wrk(nginx: Nginx, seconds: float) -> Answers:
    whole = max(1, round(seconds))  # wrk counts whole seconds only
    command = ["wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{whole}s", "--latency"]
    command += ["--timeout", f"{REQUEST_TIMEOUT}s", nginx.url]
    return read_wrk(run_client(command, whole))
