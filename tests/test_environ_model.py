"""The environ that is copied from an earlier request's equals the one that is built from the packet alone."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lone_core

BASE = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "SERVER_PROTOCOL": "HTTP/1.0", "SERVER_NAME": "base"}


def served(requests):
    """What the application is called with, for requests that one core serves one after the other, and the numbers
    of variables that the request lines tell (keys and values, as uWSGI counts)."""
    seen = []

    def application(environ, start_response):
        seen.append({name: value for name, value in environ.items() if name != "wsgi.input"})
        environ.clear()  # an application may do with it as it likes
        start_response("204 No Content", [])
        return []

    _, board = lone_core.serve(requests, application, BASE)
    return seen, [int(number) for number in re.findall(rb"\{(\d+) vars in ", board)]


def expected(variables):
    environ = BASE | {name: value for name, value in variables if not name.startswith(("wsgi.", "uwsgi."))}
    environ.setdefault("PATH_INFO", environ.get("REQUEST_URI", ""))
    https = environ.get("HTTPS", "")
    return environ | {"wsgi.url_scheme": "https" if https in ("on", "1") else "http"}


NGINX = [("REQUEST_METHOD", "GET"), ("PATH_INFO", "/"), ("REMOTE_PORT", "1"), ("SERVER_NAME", "a"), ("HTTP_HOST", "h")]
NGINX_2 = [*NGINX, ("HTTP_A", "a")]
PORT_9 = [*NGINX[:2], ("REMOTE_PORT", "9"), NGINX[3]]
OTHER = [("PATH_INFO", "/"), ("HTTP_COOKIE", "secret")]
MANY = [(f"HTTP_X{n}", "v") for n in range(129)]

CASES = [
    pytest.param([NGINX] * 6, id="the same six times"),
    pytest.param([[*NGINX[:2], ("REMOTE_PORT", str(n)), *NGINX[3:]] for n in range(6)], id="one value differs"),
    pytest.param([NGINX] * 5 + [NGINX[:-1]] * 5, id="the last variable is missing"),
    pytest.param([NGINX] * 5 + [[*NGINX, ("HTTP_NEW", "")]] * 5, id="one variable more"),
    pytest.param([NGINX] * 5 + [NGINX[::-1]] * 5, id="another order"),
    pytest.param([[("HTTP_A", "1")]] * 5 + [[("HTTP_B", "1")]], id="another name of the same size"),
    pytest.param([NGINX] * 5 + [NGINX[:4]], id="no header at all"),
    pytest.param([NGINX] * 5 + [[*NGINX[:4], ("HTTP_COOKIE", "c")]], id="another header"),
    pytest.param([NGINX] * 5 + [[*PORT_9, ("HTTP_COOKIE", "c")]], id="another header and another value before it"),
    pytest.param([NGINX_2] * 5 + [[*PORT_9, ("HTTP_HOST", "i"), ("HTTP_B", "c")]], id="the second header is another"),
    pytest.param([NGINX] * 5 + [[*NGINX[:3], NGINX[4]]], id="one is missing before the headers"),
    pytest.param([NGINX[:4]] * 5 + [NGINX], id="headers where there were none"),
    pytest.param([OTHER[1:]] * 5 + [OTHER[1:]], id="nothing but headers"),
    pytest.param([NGINX, OTHER] * 6, id="two kinds in turn"),
    pytest.param([OTHER] * 5 + [NGINX] * 5, id="a value doesn't stay for the next client"),
    pytest.param(
        [[("A", "1"), ("A", str(n)), ("A", "3")] for n in range(6)], id="a variable that is named three times"
    ),
    pytest.param([[("A", str(n)), ("A", "2")] for n in range(6)], id="the last of two counts"),
    pytest.param([[("wsgi.input", "x"), ("A", str(n))] for n in range(6)], id="a name that is the server's"),
    pytest.param([MANY[:n] for n in (127, 128, 129) for _ in range(6)], id="as many as a model has, and more"),
    pytest.param([[(k, str(n)) for k, _ in MANY[:24]] for n in range(6)], id="24 values differ"),
    pytest.param([[(k, str(n)) for k, _ in MANY[:25]] for n in range(6)], id="25 values differ"),
    pytest.param(
        [[("A", "x" * n), ("B", "y")] for n in (3, 3, 3, 3, 3, 300, 0, 60000, 1)], id="a value's size differs"
    ),
    pytest.param([[("A", "b"), ("C", "")]] * 5 + [[("A", "b"), ("C", "x")]], id="a value at the end grows"),
    pytest.param([[("A\0", "b")]] * 5 + [[("A", "\0b")]], id="the same bytes, cut elsewhere"),
    pytest.param([[("HTTPS", "on")]] * 5 + [[("HTTPS", "")]], id="what is computed isn't the model's"),
    pytest.param([[("REQUEST_URI", "/a")]] * 5 + [[("REQUEST_URI", "/b")]], id="what is added isn't the model's"),
]


@pytest.mark.parametrize("requests", CASES)
def test_every_environ_is_its_own_requests(requests):
    environs, told = served(requests)
    assert environs == [expected(variables) for variables in requests]
    assert told == [2 * len(variables) for variables in requests]


NAMES = ["REQUEST_METHOD", "PATH_INFO", "SERVER_NAME", "HTTPS", "HTTP_A", "HTTP_B", "uwsgi.x", "wsgi.errors"]
VALUES = st.sampled_from(["", "a", "b", "on", "\xe9", "x" * 300])
SHAPES = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=8), min_size=1, max_size=3)
TIMES = st.sampled_from([1, 4, 5])  # four strangers in a row make a model


@given(SHAPES, st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_came_before(shapes, data):
    """A few sequences of names, each again and again, with any values."""
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(shapes), TIMES), min_size=1, max_size=6))
    requests = [[(name, data.draw(VALUES)) for name in shape] for shape, times in chosen for _ in range(times)]
    environs, told = served(requests)
    assert environs == [expected(variables) for variables in requests]
    assert told == [2 * len(variables) for variables in requests]
