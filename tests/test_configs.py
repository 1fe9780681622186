"""The files in configs/: each uwsgi.ini starts and answers through nginx with the fragment that belongs to it.

Nothing in them is changed for that but paths, addresses and ports.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from support import client, harness
from support.client import Address
from support.harness import Nginx, Server, free_port

from wsgimaster.config.load import Loaded, load

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
UNIT = CONFIGS / "wsgimaster.service"

DJANGO_SETTINGS = """
SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["example.org"]
ROOT_URLCONF = "mysite.urls"
"""

DJANGO_URLS = """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse(f"Django, {request.scheme}, {request.get_host()}"))]
"""

DJANGO_WSGI = """
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
"""

FLASK = """
from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def front_page():
    return f"Flask, {request.scheme}, {request.host}"
"""

CALLABLE = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"callable, {environ['wsgi.url_scheme']}, {environ['HTTP_HOST']}".encode()]
"""


class Case(NamedTuple):
    ini: str
    fragment: str  # nginx's
    files: dict[str, str]  # what is in /srv/site
    name: str  # with which the answer begins


CASES = [
    Case(
        "uwsgi-django.ini",
        "nginx-unix.conf",
        {
            "mysite/__init__.py": "",
            "mysite/settings.py": DJANGO_SETTINGS,
            "mysite/urls.py": DJANGO_URLS,
            "mysite/wsgi.py": DJANGO_WSGI,
        },
        "Django",
    ),
    Case("uwsgi-flask.ini", "nginx-tcp.conf", {"wsgi.py": FLASK}, "Flask"),
    Case("uwsgi-callable.ini", "nginx-unix.conf", {"service.wsgi": CALLABLE}, "callable"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.ini)


class Place:
    """Stands for the machine that the files are written for."""

    def __init__(self) -> None:
        self.directory = harness.directory()
        self.port = free_port()
        for name in ("site/static", "run"):
            (self.directory / name).mkdir(parents=True)

    def text(self, name: str) -> str:
        """The file of configs/ with this place's paths and addresses."""
        text = (CONFIGS / name).read_text()
        for there, here in {
            "/srv/site/venv": sys.prefix,
            "/srv/site": f"{self.directory}/site",
            "/run/wsgimaster": f"{self.directory}/run",
            "127.0.0.1:3031": f"127.0.0.1:{self.port}",
            "listen 80;": "listen 127.0.0.1:{port};",
            "include uwsgi_params;": "include /etc/nginx/uwsgi_params;",
        }.items():
            text = text.replace(there, here)
        return text

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    shutil.rmtree(place.directory)


@contextmanager
def running(place: Place, case: Case) -> Iterator[Address]:
    """nginx's address, with the server behind it."""
    for name, text in case.files.items():
        place.write(f"site/{name}", text)
    text = place.text(case.ini)
    ini = place.write(case.ini, text)
    with Server(text, argv=[str(ini)]) as server, Nginx(servers=place.text(case.fragment)) as nginx:
        assert len(server.addresses) == 1
        yield nginx.address


def get(address: Address, path: str = "/", *headers: tuple[str, str]) -> client.Answer:
    return client.http(address, path, headers=[("Host", "example.org"), *headers])


@every_case
def test_answers_through_nginx(place: Place, case: Case) -> None:
    with running(place, case) as address:
        answer = get(address)
    assert (answer.status, answer.text) == (200, f"{case.name}, http, example.org")


@every_case
def test_a_client_cannot_claim_tls(place: Place, case: Case) -> None:
    """The server believes nginx's X-Forwarded-Proto, so nginx must not let a client's through."""
    with running(place, case) as address:
        answer = get(address, "/", ("X-Forwarded-Proto", "https"))
    assert answer.text == f"{case.name}, http, example.org"


def test_nginx_sends_static_files(place: Place) -> None:
    place.write("site/static/logo.svg", "<svg/>")
    with running(place, CASES[0]) as address:
        answer = get(address, "/static/logo.svg")
    assert (answer.status, answer.content) == (200, b"<svg/>")
    assert answer.header("Cache-Control") == "max-age=3600"


def test_a_large_response_head_fits(place: Place) -> None:
    """nginx's own default for uwsgi_buffer_size is one page."""
    text = CALLABLE.replace('[("Content-Type"', '[("X-Large", "x" * 12_000), ("Content-Type"')
    with running(place, CASES[2]._replace(files={"service.wsgi": text})) as address:
        answer = get(address)
    assert (answer.status, len(answer.header("X-Large") or "")) == (200, 12_000)


@pytest.mark.parametrize("fragment", ["nginx-unix.conf", "nginx-tcp.conf"])
def test_nginx_accepts_the_fragment(place: Place, fragment: str) -> None:
    """As it is in /etc/nginx/conf.d, `include uwsgi_params` unchanged; only its port may need root."""
    place.write("uwsgi_params", Path("/etc/nginx/uwsgi_params").read_text())
    text = (CONFIGS / fragment).read_text().replace("listen 80;", f"listen 127.0.0.1:{place.port};")
    log = place.directory / "error.log"
    main = f"pid {place.directory}/pid; error_log {log}; events {{}} http {{ access_log off; {text} }}"
    config = place.write("nginx.conf", main)
    binary = shutil.which("nginx")
    assert binary, "these tests need nginx: apt install nginx"
    command = [binary, "-t", "-q", "-p", str(place.directory), "-c", str(config), "-e", str(log)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# what the ini files say


def loaded(case: Case) -> Loaded:
    return load([str(CONFIGS / case.ini)], {}, str(CONFIGS))


@every_case
def test_every_option_works_now(case: Case) -> None:
    found = loaded(case)
    assert (found.warnings, found.no_effect) == ((), ())
    assert found.settings.app.required


# the systemd unit


@pytest.fixture(scope="module")
def unit() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser["Service"]


def test_systemd_waits_longer_than_the_server(unit: configparser.SectionProxy) -> None:
    mercy = max(loaded(case).settings.processes.reload_mercy for case in CASES)
    assert int(unit["TimeoutStopSec"]) > mercy


def test_the_unit_makes_the_directory_of_the_sockets(unit: configparser.SectionProxy) -> None:
    paths = [address.path for case in CASES for address in loaded(case).settings.sockets.addresses if address.path]
    assert {str(Path(path).parent) for path in paths} == {f"/run/{unit['RuntimeDirectory']}"}


def test_systemd_accepts_the_unit(place: Place) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("no systemd-analyze here: apt install systemd")
    # The unit is named after the file, and the interpreter has to exist.
    text = re.sub(r"^(Exec\w+)=\S+", rf"\1={sys.executable}", UNIT.read_text(), flags=re.MULTILINE)
    path = place.write(UNIT.name, text)
    done = subprocess.run([verifier, "verify", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
