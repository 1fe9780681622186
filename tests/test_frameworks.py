"""Django, Flask, httpbin and wsgiref's validator behind a real nginx (unix and TCP) and Debian's Apache."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from support.client import Address, Answer, http, together
from support.harness import APPS, Apache, Nginx, Server, free_port, nginx_name

FRONTS = ["nginx, unix", "nginx, TCP", "Apache"]


class Site(NamedTuple):
    """One server and the front ends before it."""

    server: Server
    fronts: dict[str, Address]


@contextmanager
def site(module: str, nginx_location: str = "") -> Iterator[Site]:
    """An application as its owner's uwsgi.ini starts it, and the three front ends."""
    options = f"""
        chdir = {APPS}
        home = {sys.prefix}
        module = {module}
        socket = %dapp.sock
        socket = 127.0.0.1:{free_port()}
        chmod-socket = 666
        processes = 2
        threads = 2
        buffer-size = 32768
        need-app = true
        vacuum = true
    """
    with Server(options, name=module) as server:
        unix, tcp = server.addresses
        second_port = free_port()
        blocks = "".join(
            f"""
            server {{
                listen 127.0.0.1:{port};
                server_name localhost;
                location / {{
                    include /etc/nginx/uwsgi_params;
                    uwsgi_pass {nginx_name(address)};
                    {nginx_location}
                }}
            }}
            """
            for port, address in (("{port}", unix), (second_port, tcp))
        )
        with Nginx(servers=blocks) as nginx, Apache(unix) as apache:
            addresses = [nginx.address, ("127.0.0.1", second_port), apache.address]
            yield Site(server, dict(zip(FRONTS, addresses, strict=True)))


@pytest.fixture(scope="module")
def django() -> Iterator[Site]:
    with site("djangoproject.wsgi:application") as running:
        yield running


@pytest.fixture(scope="module")
def flask() -> Iterator[Site]:
    with site("flaskapp:app") as running:
        yield running


@pytest.fixture(scope="module")
def httpbin() -> Iterator[Site]:
    with site("httpbin:app") as running:
        yield running


@pytest.fixture(scope="module")
def validated() -> Iterator[Site]:
    """nginx sends two headers twice, as CONTENT_TYPE and as HTTP_CONTENT_TYPE, which the validator dislikes."""
    without = 'uwsgi_param HTTP_CONTENT_LENGTH "" if_not_empty; uwsgi_param HTTP_CONTENT_TYPE "" if_not_empty;'
    with site("probe:validated", without) as running:
        yield running


front = pytest.mark.parametrize("front", FRONTS)


class Browser:
    """A client that keeps its cookies."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.cookies: dict[str, str] = {}

    def get(self, path: str) -> Answer:
        return self.request(path, "GET")

    def post(self, path: str, body: bytes, content_type: str = "application/x-www-form-urlencoded") -> Answer:
        return self.request(path, "POST", body, ("Content-Type", content_type))

    def request(self, path: str, method: str, body: bytes = b"", *headers: tuple[str, str]) -> Answer:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = http(self.address, path, method, body, [("Cookie", cookie), *headers])
        for line in answer.all("Set-Cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer


def multipart(fields: dict[str, str], file: bytes) -> tuple[bytes, str]:
    """A form with one file, and its content type."""
    boundary = "boundary-of-the-parts"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="caf\u00e9.bin"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
    )
    return b"".join([*parts, file, f"\r\n--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


FILE = random.Random(1).randbytes(3_000_000)

# Django


@front
def test_django_front_page(django: Site, front: str) -> None:
    answer = http(django.fronts[front])
    assert (answer.status, answer.text) == (200, "Django is here")
    assert answer.header("X-Content-Type-Options") == "nosniff"


@front
def test_django_session(django: Site, front: str) -> None:
    browser = Browser(django.fronts[front])
    assert [json.loads(browser.get("/visits").text)["visits"] for _ in range(4)] == [1, 2, 3, 4]


@front
def test_django_csrf_form(django: Site, front: str) -> None:
    browser = Browser(django.fronts[front])
    assert browser.post("/form", b"name=Nobody").status == 403
    page = browser.get("/form").text
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]
    answer = browser.post("/form", f"csrfmiddlewaretoken={token}&name=Zo%C3%AB".encode())
    assert (answer.status, answer.text) == (200, "Hello, Zo\u00eb")


@front
def test_django_upload(django: Site, front: str) -> None:
    browser = Browser(django.fronts[front])
    token = re.search(r'value="(\w+)"', browser.get("/form").text)[1]
    body, content_type = multipart({"csrfmiddlewaretoken": token, "note": "\u00fc"}, FILE)
    about = json.loads(browser.post("/upload", body, content_type).text)
    assert about == {
        "name": "caf\u00e9.bin",
        "size": len(FILE),
        "sha256": hashlib.sha256(FILE).hexdigest(),
        "note": "\u00fc",
    }


@front
def test_django_static_file(django: Site, front: str) -> None:
    answer = http(django.fronts[front], "/static/views.py")
    assert (answer.status, answer.content) == (200, (APPS / "djangoproject/views.py").read_bytes())
    assert answer.header("Content-Length") == str(len(answer.content))


@front
def test_django_head_of_a_static_file(django: Site, front: str) -> None:
    answer = http(django.fronts[front], "/static/views.py", "HEAD")
    size = (APPS / "djangoproject/views.py").stat().st_size
    assert (answer.status, answer.header("Content-Length"), answer.body) == (200, str(size), b"")


@front
def test_django_stream(django: Site, front: str) -> None:
    answer = http(django.fronts[front], "/stream")
    assert answer.text == "".join(f"line {number}\n" for number in range(1000))


@front
@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/static/nothing", 404), ("/error", 500)])
def test_django_error_page(django: Site, front: str, path: str, status: int) -> None:
    answer = http(django.fronts[front], path)
    assert answer.status == status
    assert "<h1>" in answer.text  # Django's own page


@front
def test_django_knows_where_it_is(django: Site, front: str) -> None:
    answer = http(django.fronts[front], "/where/caf%C3%A9/x?a=1")
    about = json.loads(answer.text)
    assert (about["path"], about["rest"]) == ("/where/caf\u00e9/x", "caf\u00e9/x")
    assert about["uri"] == "http://localhost/where/caf%C3%A9/x?a=1"


def test_django_many_at_once(django: Site) -> None:
    answers = together(50, lambda number: http(django.fronts["nginx, unix"], f"/where/{number}"))
    assert [json.loads(answer.text)["rest"] for answer in answers] == [str(number) for number in range(50)]


# Flask


@front
def test_flask_session(flask: Site, front: str) -> None:
    browser = Browser(flask.fronts[front])
    assert [json.loads(browser.get("/visits").text)["visits"] for _ in range(4)] == [1, 2, 3, 4]


@front
def test_flask_form(flask: Site, front: str) -> None:
    assert Browser(flask.fronts[front]).post("/form", b"name=Zo%C3%AB").text == "Hello, Zo\u00eb"


@front
def test_flask_json(flask: Site, front: str) -> None:
    value = {"list": [1, 2.5, None, "\u20ac"]}
    answer = Browser(flask.fronts[front]).post("/json", json.dumps(value).encode(), "application/json")
    assert json.loads(answer.text) == value


@front
def test_flask_upload(flask: Site, front: str) -> None:
    body, content_type = multipart({}, FILE)
    about = json.loads(Browser(flask.fronts[front]).post("/upload", body, content_type).text)
    assert (about["size"], about["sha256"]) == (len(FILE), hashlib.sha256(FILE).hexdigest())


@front
def test_flask_send_file(flask: Site, front: str) -> None:
    """Through wsgi.file_wrapper, with an ETag that then gives a 304."""
    answer = http(flask.fronts[front], "/source")
    assert (answer.status, answer.content) == (200, (APPS / "flaskapp.py").read_bytes())
    again = http(flask.fronts[front], "/source", headers=[("If-None-Match", answer.header("ETag") or "")])
    assert (again.status, again.content) == (304, b"")


@front
def test_flask_range_of_a_file(flask: Site, front: str) -> None:
    answer = http(flask.fronts[front], "/source", headers=[("Range", "bytes=10-29")])
    assert (answer.status, answer.content) == (206, (APPS / "flaskapp.py").read_bytes()[10:30])


@front
def test_flask_stream(flask: Site, front: str) -> None:
    assert http(flask.fronts[front], "/stream").text == "".join(f"line {number}\n" for number in range(1000))


@front
def test_flask_redirect(flask: Site, front: str) -> None:
    answer = http(flask.fronts[front], "/away")
    assert (answer.status, answer.header("Location")) == (302, "http://localhost/")


@front
@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/teapot", 418), ("/error", 500), ("/form", 405)])
def test_flask_error(flask: Site, front: str, path: str, status: int) -> None:
    assert http(flask.fronts[front], path).status == status


def test_flask_traceback_is_in_the_log(flask: Site) -> None:
    log = flask.server.log_from_here()
    http(flask.fronts["nginx, unix"], "/error")
    log.wait("RuntimeError: a view failed")


@front
def test_flask_path(flask: Site, front: str) -> None:
    answer = http(flask.fronts[front], "/path/caf%C3%A9/%2520?a=1&a=%E2%82%AC")
    assert json.loads(answer.text) == {
        "rest": "caf\u00e9/%20",
        "args": {"a": ["1", "\u20ac"]},
        "root": "",
    }


# httpbin


@front
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_httpbin_method(httpbin: Site, front: str, method: str) -> None:
    body = b"" if method == "GET" else b"data=1"
    headers = [("Content-Type", "application/x-www-form-urlencoded"), ("X-Mine", "yes")]
    answer = http(httpbin.fronts[front], f"/{method.lower()}?q=%C3%A9", method, body, headers)
    about = json.loads(answer.text)
    assert (about["args"], about["headers"]["X-Mine"]) == ({"q": "\u00e9"}, "yes")
    assert about.get("form") == (None if method == "GET" else {"data": "1"})


@front
@pytest.mark.parametrize("status", [204, 304, 400, 401, 404, 418, 500, 503])
def test_httpbin_status(httpbin: Site, front: str, status: int) -> None:
    assert http(httpbin.fronts[front], f"/status/{status}").status == status


@front
def test_httpbin_stream(httpbin: Site, front: str) -> None:
    lines = http(httpbin.fronts[front], "/stream/20").text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(20))


@front
def test_httpbin_bytes(httpbin: Site, front: str) -> None:
    whole = http(httpbin.fronts[front], "/bytes/100000?seed=7").content
    streamed = http(httpbin.fronts[front], "/stream-bytes/100000?seed=7").content
    assert len(whole) == 100_000
    assert whole == streamed


@front
def test_httpbin_gzip(httpbin: Site, front: str) -> None:
    answer = http(httpbin.fronts[front], "/gzip")
    assert json.loads(gzip.decompress(answer.content))["gzipped"] is True


@front
def test_httpbin_cookies(httpbin: Site, front: str) -> None:
    browser = Browser(httpbin.fronts[front])
    assert browser.get("/cookies/set?a=1&b=2").status == 302
    assert json.loads(browser.get("/cookies").text)["cookies"] == {"a": "1", "b": "2"}


@front
def test_httpbin_basic_auth(httpbin: Site, front: str) -> None:
    address = httpbin.fronts[front]
    right = [("Authorization", "Basic dXNlcjpzZWNyZXQ=")]
    assert http(address, "/basic-auth/user/secret").status == 401
    assert http(address, "/basic-auth/user/secret", headers=right).status == 200


@front
def test_httpbin_head(httpbin: Site, front: str) -> None:
    answer = http(httpbin.fronts[front], "/image/png", "HEAD")
    assert (answer.status, answer.header("Content-Type"), answer.body) == (200, "image/png", b"")


# wsgiref.validate

VALIDATED = {
    "environ": ("/environ?a=1", "GET", b""),
    "body": ("/hash", "POST", b"x" * 200_000),
    "body by lines": ("/lines", "POST", b"one\ntwo\n"),
    "generator": ("/generator?count=3", "GET", b""),
    "HEAD": ("/echo", "HEAD", b""),
    "write": ("/write_calls", "GET", b""),
    "no content": ("/head?status=204%20No", "GET", b""),
    "another method": ("/echo", "PUT", b"data"),
    "nothing there": ("/nowhere", "GET", b""),
}


@front
@pytest.mark.parametrize(("path", "method", "body"), VALIDATED.values(), ids=VALIDATED)
def test_validator_has_no_complaint(validated: Site, front: str, path: str, method: str, body: bytes) -> None:
    log = validated.server.log_from_here()
    answer = http(validated.fronts[front], path, method, body)
    assert answer.status == {"/head?status=204%20No": 204, "/nowhere": 404}.get(path, 200)
    log.wait(re.escape(path))
    assert not re.search("Traceback|AssertionError|WSGIWarning", log.text())


@front
def test_validator_and_a_file(validated: Site, front: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILE)
    answer = http(validated.fronts[front], "/file", headers=[("X-File", str(path))])
    assert (answer.status, answer.content == FILE) == (200, True)
