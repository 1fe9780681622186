"""The environ behind nginx is what uWSGI gives, for 300 generated requests and the same configuration.

One nginx passes each request to both servers: two server blocks that differ in the address only, so that even
SERVER_PORT is the same. `EXPLAINED` is the whole list of differences; docs/differences.md says why.
"""

from __future__ import annotations

import json
import os
import random
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.client import Address, http
from support.harness import APPS, Nginx, Server

REQUESTS = 300
SEED = 20_000

OURS, THEIRS = "127.0.0.1", "127.0.0.2"  # nginx passes to the server under test, and to uWSGI


def uwsgi_binary() -> str:
    path = Path(os.environ.get("UWSGI_BIN") or Path(__file__).resolve().parent.parent / ".venv-uwsgi/bin/uwsgi")
    if not path.exists():
        venv = path.parent.parent
        pytest.fail(
            f"this test compares with a real uWSGI, and {path} isn't there. To install it:\n"
            f"{sys.executable} -m venv {venv} && {venv}/bin/pip install uwsgi==2.0.31"
        )
    return str(path)


OPTIONS = f"""
    socket = app.sock
    pythonpath = {APPS}
    module = probe
    processes = 2
    buffer-size = 65535
    need-app = true
"""

SERVERS = "".join(
    f"""
    server {{
        listen {host}:{{port}};
        server_name _;
        large_client_header_buffers 8 64k;
        underscores_in_headers on;
        ignore_invalid_headers off;
        location / {{
            include /etc/nginx/uwsgi_params;
            uwsgi_param HTTP_HOST $http_host;
            uwsgi_param X_CUSTOM "caf\u00e9 %2f";
            uwsgi_param REMOTE_USER $arg_user if_not_empty;
            uwsgi_pass unix:@{name}@;
        }}
        location /mounted/ {{
            include /etc/nginx/uwsgi_params;
            uwsgi_param SCRIPT_NAME /mounted;
            uwsgi_param HTTPS on;
            uwsgi_pass unix:@{name}@;
        }}
    }}
    """
    for host, name in ((OURS, "ours"), (THEIRS, "theirs"))
)


class Pair(NamedTuple):
    ours: Address
    theirs: Address


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    options = OPTIONS.replace("module = probe", "module = probe:any_path")
    with Server(options) as ours, Server(options, command=[uwsgi_binary()], name="uwsgi") as theirs:
        servers = SERVERS.replace("@ours@", ours.address).replace("@theirs@", theirs.address)
        with Nginx(servers=servers) as nginx:
            yield Pair((OURS, nginx.port), (THEIRS, nginx.port))


# the requests


class Request(NamedTuple):
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    version: str


NAME_BYTES = string.ascii_letters + string.digits + "-_"
VALUE_BYTES = bytes(byte for byte in range(256) if byte not in b"\0\r\n")
PATH_PIECES = [
    "a",
    "caf%C3%A9",
    "%252e%252e",
    "%2561dmin",
    "%2f",
    "..",
    ".",
    "",
    "%20",
    "+",
    ";x=1",
    "%E2%82%AC",
]
PATH_PIECES += [
    "%ff%fe",
    "~user",
    "%7e",
    "a:b",
    "(x)",
    "'",
    "index.html",
    "%3f",
    "%23",
    "%25",
    "%5c",
    "caf\u00e9",
]
QUERY_PIECES = [
    "a=1",
    "a=%26",
    "b",
    "=",
    "caf%C3%A9=\u00fc",
    "x=a+b",
    "x=a%20b",
    "[]=%00",
    "q=%ff",
    "user=bob",
    "?",
]
HEADER_NAMES = [
    b"X-Forwarded-For",
    b"X-Forwarded-Proto",
    b"X-Forwarded-SSL",
    b"Cookie",
    b"Accept",
    b"Content-Type",
]
HEADER_NAMES += [
    b"Authorization",
    b"User-Agent",
    b"Referer",
    b"X-Script-Name",
    b"Script_Name",
    b"Range",
    b"Origin",
]
HEADER_NAMES += [
    b"If-Modified-Since",
    b"Content_Length",
    b"X_Forwarded_Proto",
    b"Https",
    b"Uwsgi_File",
    b"Proxy",
]
FORWARDED = [b"https", b"http", b"HTTPS", b"https, http", b"ftp", b"", b"on"]


def requests(count: int) -> Iterator[Request]:
    dice = random.Random(SEED)
    for _ in range(count):
        method = dice.choice(["GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
        body = dice.randbytes(dice.choice([0, 1, 100, 5000])) if method in ("POST", "PUT") else b""
        path = dice.choice(["/", "/mounted/"]) + "/".join(dice.choices(PATH_PIECES, k=dice.randrange(5)))
        if dice.random() < 0.5:
            path += "?" + "&".join(dice.choices(QUERY_PIECES, k=dice.randrange(4)))
        names = dice.choices(HEADER_NAMES, k=dice.randrange(6)) + [
            b"X-" + bytes(dice.choices(NAME_BYTES.encode(), k=dice.randrange(1, 20))) for _ in range(2)
        ]
        headers = [(name, header_value(dice, name)) for name in names]
        yield Request(method, path, headers, body, dice.choice(["1.0", "1.1", "1.1", "1.1"]))


def header_value(dice: random.Random, name: bytes) -> bytes:
    if name.replace(b"_", b"-") in (b"X-Forwarded-Proto", b"X-Forwarded-SSL"):
        return dice.choice(FORWARDED)  # bytes that are no UTF-8 end uWSGI with a segmentation fault
    return bytes(dice.choices(VALUE_BYTES, k=dice.choice([0, 5, 50, 500]))).strip()


# the differences


class Difference(NamedTuple):
    """Of a variable: its value here and there, None if it is absent, and both environs."""

    name: str
    ours: object
    theirs: object
    environ: dict[str, str]


def scheme_rule(difference: Difference) -> bool:
    """A forwarded protocol counts only if it is http or https; X-Forwarded-SSL doesn't count at all."""
    given = difference.environ
    forwarded = given.get("HTTP_X_FORWARDED_PROTO")
    if forwarded in ("http", "https"):
        return False  # both use it
    ours = "https" if given.get("HTTPS") == "on" else "http"
    return difference.ours == ours and (forwarded is not None or "HTTP_X_FORWARDED_SSL" in given)


EXPLAINED: dict[str, Callable[[Difference], bool]] = {
    "SCRIPT_NAME": lambda difference: (difference.ours, difference.theirs) == ("", None),
    "wsgi.url_scheme": scheme_rule,
    "wsgi.input_terminated": lambda difference: (difference.ours, difference.theirs) == ("True", None),
    "REMOTE_PORT": lambda difference: None not in difference,  # two connections
}


def flat(environ: dict) -> dict[str, object]:
    """The values that can be compared, and of the objects their presence."""
    return {**environ["strings"], **environ["others"], **dict.fromkeys(environ["objects"], "present")}


def differences(ours: dict[str, object], theirs: dict[str, object], strings: dict[str, str]) -> list[Difference]:
    return [
        Difference(name, ours.get(name), theirs.get(name), strings)
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def test_environ_equals_that_of_uwsgi(pair: Pair) -> None:
    statuses, unexplained, seen = [], [], set()
    for request in requests(REQUESTS):
        answers = [
            http(address, request.path, request.method, request.body, request.headers, request.version)
            for address in pair
        ]
        assert answers[0].status == answers[1].status, (request, answers)
        statuses.append(answers[0].status)
        if answers[0].status != 200:
            continue  # nginx's own 400
        ours, theirs = (json.loads(answer.text) for answer in answers)
        for difference in differences(flat(ours), flat(theirs), ours["strings"]):
            seen.add(difference.name)
            if not EXPLAINED.get(difference.name, lambda _: False)(difference):
                unexplained.append((request.path, difference[:3]))
    assert not unexplained, unexplained[:10]
    assert statuses.count(200) > REQUESTS * 0.8, statuses
    assert seen == EXPLAINED.keys(), "an explanation that no request needs"
