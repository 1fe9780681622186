"""Who asks: our own load generator, straight at a server's socket or through nginx."""

import getpass
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contenders import BUILD, CONTENDERS, Service

ANSWER_LENGTH = 1024
REQUEST_TIMEOUT = 10  # seconds, for one request

NGINX_CONF = """\
daemon off;
user {user};
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log warn;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{servers}
}}
"""
SERVER = """\
    upstream {name} {{
        server unix:{upstream};
        {keepalive}
    }}
    server {{
        listen unix:{listener};
        location / {{
{forward}
        }}
    }}"""
HTTP_FORWARD = 'proxy_pass http://{name}; proxy_http_version 1.1; proxy_set_header Connection "";'

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


def run_load(
    address: Path, seconds: float, *, http: bool = False, expect: int | None = ANSWER_LENGTH, **options: float
) -> dict[str, Any]:
    """What `load` says (load.c), with the number of `bad` answers, which is everything but a complete 200.

    expect: the length that an answer must have, bytes.
    options: load's own, with underscores: clients, count, slow_every, rate, series.
    """
    command = [str(BUILD / "load"), "--duration", str(seconds), "--timeout", str(REQUEST_TIMEOUT)]
    command += ["--http"] if http else []
    command += ["--expect", str(expect)] if expect is not None else []
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    limit = seconds + REQUEST_TIMEOUT + 20
    try:
        done = subprocess.run([*command, str(address)], capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClientError(f"load didn't end within {limit:.0f} s") from error
    if done.stderr or not done.stdout:
        raise ClientError(f"load: {done.stderr.strip() or 'no output'}")
    seen: dict[str, Any] = json.loads(done.stdout)
    seen["bad"] = seen["requests"] - seen["ok"]
    return seen


def is_answering(address: Path, *, http: bool) -> bool:
    return bool(run_load(address, 1, clients=1, count=1, http=http)["bad"] == 0)


# ---- nginx ----------------------------------------------------------------------------------------


def nginx_path() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def server_block(name: str, upstream: Path, listener: Path) -> str:
    if CONTENDERS[name].protocol == "http":
        forward, keepalive = HTTP_FORWARD.format(name=name), "keepalive 256; keepalive_requests 1000000000;"
    else:
        params = [f"uwsgi_param {param} {value};" for param, value in UWSGI_PARAMS.items()]
        forward, keepalive = "\n".join([f"uwsgi_pass {name};", *params]), ""
    return SERVER.format(name=name, upstream=upstream, keepalive=keepalive, listener=listener, forward=forward)


class Nginx(Service):
    """One nginx worker in front of all servers: it listens at a unix socket for each (`listeners`, by name)."""

    def __init__(self, directory: Path, upstreams: Mapping[str, Path]) -> None:
        self.listeners = {name: directory / f"{name}.nginx" for name in upstreams}
        blocks = (server_block(name, path, self.listeners[name]) for name, path in upstreams.items())
        conf, log = directory / "nginx.conf", directory / "nginx.log"
        conf.write_text(NGINX_CONF.format(user=getpass.getuser(), directory=directory, servers="\n".join(blocks)))
        command = [str(nginx_path()), "-p", str(directory), "-c", str(conf), "-e", str(log)]
        super().__init__("nginx", command, directory / "nginx.out")

    def is_answering(self) -> bool:
        return all(path.exists() and is_answering(path, http=True) for path in self.listeners.values())
