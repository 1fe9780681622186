"""A WSGI application that does one odd thing for each path, for tests to look at from outside.

`application` is the bare probe. `validated` is the same one inside wsgiref's validator, which complains about
whatever the server gets wrong; only the well-behaved paths (`VALID`) make sense there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from wsgiref.validate import validator

PLAIN = [("Content-Type", "text/plain")]
BLOCK = 1 << 16

routes = {}


def route(function):
    """Serve the path that the function's name spells: /read_line is read_line."""
    routes[f"/{function.__name__}"] = function
    return function


def application(environ, start_response):
    return routes.get(environ.get("PATH_INFO", ""), not_found)(environ, start_response)


VALID = ("/environ", "/hash", "/generator", "/file", "/echo", "/write_calls", "/head", "/lines")
validated = validator(application)


def not_found(environ, start_response):
    start_response("404 Not Found", PLAIN)
    return [b"no such path in the probe"]


def answer(start_response, text, status="200 OK"):
    body = text if isinstance(text, bytes) else str(text).encode()
    start_response(status, [*PLAIN, ("Content-Length", str(len(body)))])
    return [body]


def as_json(start_response, value):
    return answer(start_response, json.dumps(value))


def query(environ):
    """a=1&b=2 as a dict; nothing is decoded."""
    pairs = (item.partition("=") for item in environ.get("QUERY_STRING", "").split("&") if item)
    return {name: value for name, _, value in pairs}


def note(environ, text):
    print(text, file=environ["wsgi.errors"], flush=True)


# what the application is given


@route
def hello(environ, start_response):
    return answer(start_response, "hello")


@route
def environ(environ, start_response):
    """The strings of environ; of the other values their repr, and of the objects only the type's name."""
    values = {name: value for name, value in environ.items() if type(value) is str}
    simple = (bool, tuple, int, bytes)
    others = {name: repr(value) for name, value in environ.items() if type(value) in simple}
    rest = {name: type(environ[name]).__name__ for name in environ if name not in values | others}
    return as_json(start_response, {"strings": values, "others": others, "objects": rest})


@route
def environ_type(environ, start_response):
    return answer(start_response, type(environ).__name__)


seen_environ = []


@route
def keep_environ(environ, start_response):
    """Keep this environ and say what the ones kept before hold now."""
    before = [len(kept) for kept in seen_environ]
    foreign = "probe.mine" in environ
    environ["probe.mine"] = "yes"
    seen_environ.append(environ)
    return as_json(start_response, {"sizes": before, "foreign": foreign})


@route
def process(environ, start_response):
    """Who serves: process, parent, thread; after `seconds`, if given."""
    time.sleep(float(query(environ).get("seconds", 0)))
    main = threading.current_thread() is threading.main_thread()
    about = {"pid": os.getpid(), "parent": os.getppid(), "loaded_in": LOADED_IN, "main_thread": main}
    about["core"] = environ.get("uwsgi.core", 0)
    return as_json(start_response, about)


LOADED_IN = os.getpid()
LOADED_AS = (os.geteuid(), os.getegid(), os.getgroups())


@route
def identity(environ, start_response):
    """User, group and further groups when the module was loaded, and now."""
    return as_json(start_response, {"loaded_as": LOADED_AS, "now": (os.geteuid(), os.getegid(), os.getgroups())})


@route
def loaded(environ, start_response):
    """What of the server's own house the application can see."""
    return as_json(start_response, {"modules": sorted(sys.modules), "path": sys.path, "prefix": sys.prefix})


@route
def settings(environ, start_response):
    return as_json(start_response, {"cwd": str(Path.cwd()), "env": dict(os.environ), "argv": sys.argv})


# the request's body


@route
def echo(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    return answer(start_response, environ["wsgi.input"].read(length))


@route
def hash(environ, start_response):
    """Size and SHA-256 of the body, read in blocks."""
    size, digest = 0, hashlib.sha256()
    while block := environ["wsgi.input"].read(BLOCK):
        size += len(block)
        digest.update(block)
    return as_json(start_response, {"size": size, "sha256": digest.hexdigest(), "pid": os.getpid()})


@route
def lines(environ, start_response):
    return as_json(start_response, [line.decode("latin-1") for line in environ["wsgi.input"]])


READS = {
    "read": lambda stream: [stream.read()],
    "read_minus_one": lambda stream: [stream.read(-1)],
    "read_none": lambda stream: [stream.read(None)],
    "read_zero": lambda stream: [stream.read(0), stream.read()],
    "read_three": lambda stream: [stream.read(3), stream.read(3), stream.read()],
    "read_too_much": lambda stream: [stream.read(10**9), stream.read(1), stream.read()],
    "readline": lambda stream: [stream.readline(), stream.readline(), stream.readline(), stream.readline()],
    "readline_four": lambda stream: [stream.readline(4), stream.readline(4), stream.readline(4)],
    "readline_minus_one": lambda stream: [stream.readline(-1)],
    "readlines": lambda stream: stream.readlines(),
    "readlines_hint": lambda stream: stream.readlines(1) + stream.readlines(),
    "iteration": list,
    "mixed": lambda stream: [stream.read(2), stream.readline(), next(iter(stream)), stream.read()],
}


@route
def reads(environ, start_response):
    parts = READS[environ["QUERY_STRING"]](environ["wsgi.input"])
    return as_json(start_response, [part.decode("latin-1") for part in parts])


@route
def interleaved(environ, start_response):
    """Answer each block of three bytes as it comes."""
    start_response("200 OK", PLAIN)
    while block := environ["wsgi.input"].read(3):
        yield b"<" + block + b">"


@route
def interleaved_late(environ, start_response):
    """Answer, then read."""
    start_response("200 OK", PLAIN)
    yield b"first"
    yield b"<" + environ["wsgi.input"].read(3) + b">"


@route
def forgiving(environ, start_response):
    """Answer although the body can't be read."""
    try:
        environ["wsgi.input"].read()
    except OSError:
        return answer(start_response, "forgiven")
    return answer(start_response, "read")


@route
def read_failure(environ, start_response):
    """Read the body; what goes wrong is noted in the log."""
    try:
        environ["wsgi.input"].read()
    except OSError as error:
        note(environ, f"read failed: {type(error).__name__}: {error}")
        raise
    note(environ, "read succeeded")
    return answer(start_response, "read")


@route
def refuse(environ, start_response):
    """401 without a look at the body; `length=no` leaves Content-Length out."""
    body = b"who are you? " * 8000
    length = [] if query(environ).get("length") == "no" else [("Content-Length", str(len(body)))]
    start_response("401 Unauthorized", [*PLAIN, ("WWW-Authenticate", "Basic"), *length])
    return [body]


# the response's head


@route
def head(environ, start_response):
    """The status and headers that the query names: status=204%20No, header=Name:value."""
    wanted = query(environ)
    status = wanted.get("status", "200 OK").replace("%20", " ")
    if status[:3] in ("204", "304"):
        start_response(status, [])
        return []
    start_response(status, [tuple(wanted["header"].split(":", 1))] if "header" in wanted else PLAIN)
    return [b"body"]


@route
def bodiless(environ, start_response):
    """A body where none belongs (HEAD, 204, 304)."""
    status = query(environ).get("status", "200") + " Reason"
    start_response(status, [*PLAIN, ("X-Mark", "kept")])
    return Closing(environ, [b"this ", b"must not be sent"])


INJECTED = "X-Injected: yes"
HEADS = {
    "crlf_in_value": ("200 OK", [("X-Name", f"a\r\n{INJECTED}")]),
    "cr_in_value": ("200 OK", [("X-Name", f"a\r{INJECTED}")]),
    "lf_in_value": ("200 OK", [("X-Name", f"a\n{INJECTED}")]),
    "fold_in_value": ("200 OK", [("X-Name", f"a\r\n {INJECTED}")]),
    "nul_in_value": ("200 OK", [("X-Name", "a\0b")]),
    "wide_in_value": ("200 OK", [("X-Name", "a\u20acb")]),
    "crlf_in_name": ("200 OK", [(f"X-Name: a\r\n{INJECTED}\r\nX-More", "a")]),
    "lf_in_name": ("200 OK", [(f"X-Name\n{INJECTED}", "a")]),
    "nul_in_name": ("200 OK", [("X-Name\0", "a")]),
    "wide_in_name": ("200 OK", [("X-Name\u20ac", "a")]),
    "crlf_in_status": (f"200 OK\r\n{INJECTED}", PLAIN),
    "lf_in_status": (f"200 OK\n{INJECTED}", PLAIN),
    "nul_in_status": ("200 O\0K", PLAIN),
    "wide_in_status": ("200 O\u20acK", PLAIN),
    "bytes_status": (b"200 OK", PLAIN),
    "number_status": (200, PLAIN),
    "no_number_in_status": ("fine", PLAIN),
    "bytes_name": ("200 OK", [(b"X-Name", "a")]),
    "bytes_value": ("200 OK", [("X-Name", b"a")]),
    "number_value": ("200 OK", [("X-Name", 1)]),
    "dict_headers": ("200 OK", {"X-Name": "a"}),
    "triple_header": ("200 OK", [("X-Name", "a", "b")]),
    "nul_in_connection": ("200 OK", [("Connection", "a\0b")]),
}


@route
def bad_head(environ, start_response):
    start_response(*HEADS[environ["QUERY_STRING"]])
    return [b"body"]


@route
def latin1_head(environ, start_response):
    start_response("200 D\xe9j\xe0 vu", [("X-Name", "caf\xe9"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    return [b"body"]


@route
def no_start(environ, start_response):
    return [b"a body without a head"]


@route
def start_twice(environ, start_response):
    start_response("200 OK", PLAIN)
    start_response("202 Accepted", PLAIN)
    return [b"body"]


@route
def start_again_with_exc_info(environ, start_response):
    start_response("200 OK", [("X-First", "yes")])
    try:
        raise ValueError("before the head went")
    except ValueError:
        start_response("503 Later", [("X-Second", "yes")], sys.exc_info())
    return [b"the error page"]


@route
def start_late_with_exc_info(environ, start_response):
    """After the head went, start_response raises what it was given."""
    start_response("200 OK", PLAIN)
    yield b"begun "
    try:
        raise ValueError("after the head went")
    except ValueError as error:
        try:
            start_response("503 Later", PLAIN, sys.exc_info())
        except ValueError as raised:
            note(environ, f"raised the same: {raised is error}")
            raise
    yield b"not reached"


@route
def start_late(environ, start_response):
    """start_response inside the iteration, before the first chunk."""

    def chunks():
        start_response("201 Created", PLAIN)
        yield b"late"

    return chunks()


# the response's body


@route
def write_calls(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(b"written ")
    write(b"twice, ")
    return [b"then returned"]


@route
def write_only(environ, start_response):
    start_response("200 OK", PLAIN)(b"only written")
    return []


@route
def write_at_once(environ, start_response):
    """write() is on its way before the application goes on."""
    start_response("200 OK", PLAIN)(b"first ")
    wait_for_gate(environ)
    return [b"second"]


def wait_for_gate(environ):
    """Wait until the test opens the FIFO that X-Gate names."""
    with open(environ["HTTP_X_GATE"], "rb") as gate:
        gate.read()


@route
def gated_generator(environ, start_response):
    start_response("200 OK", PLAIN)
    yield b"first "
    wait_for_gate(environ)
    yield b"second"


@route
def generator(environ, start_response):
    """`count` blocks of 64 KiB, each beginning with its number."""
    count = int(query(environ).get("count", 4))
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for number in range(count):
        yield number.to_bytes(8, "big") * (BLOCK // 8)


BODIES = {
    "list": [b"a", b"b", b"c"],
    "tuple": (b"a", b"b", b"c"),
    "bytes": b"abc",
    "empty_list": [],
    "empty_chunks": [b"", b"a", b"", b"bc", b""],
    "only_empty_chunks": [b"", b""],
    "str_chunk": ["abc"],
    "number_chunk": [1],
    "none": None,
}


@route
def body(environ, start_response):
    start_response("200 OK", PLAIN)
    return BODIES[environ["QUERY_STRING"]]


@route
def longer_than_announced(environ, start_response):
    start_response("200 OK", [*PLAIN, ("Content-Length", "4")])
    return [b"abc", b"defgh", b"ijk"]


@route
def shorter_than_announced(environ, start_response):
    start_response("200 OK", [*PLAIN, ("Content-Length", "10")])
    return [b"abc"]


@route
def large(environ, start_response):
    """`size` bytes in one chunk."""
    size = int(query(environ)["size"])
    start_response("200 OK", [*PLAIN, ("Content-Length", str(size))])
    return [b"x" * size]


def wait_at_gate(wanted):
    """No longer than a minute, in case that the test is gone."""
    for _ in range(6000 if "gate" in wanted else 0):
        if Path(wanted["gate"]).exists():
            return
        time.sleep(0.01)


@route
def numbers(environ, start_response):
    """`size` bytes that say where they stand, in pieces; before the last one it waits until the file `gate` is there,
    or it `fails` or `dies`. If it `forks`, a child waits instead. The log says when the application is done."""
    wanted = query(environ)
    size = int(wanted["size"])
    start_response("200 OK", [*PLAIN, ("Content-Length", str(size))])
    text = b"".join(b"%08d" % number for number in range(size // 8))
    if "forks" in wanted and os.fork() == 0:
        wait_at_gate(wanted)
        os._exit(0)
    for at in range(0, size - BLOCK, BLOCK):
        yield text[at : at + BLOCK]
    if "fails" in wanted:
        raise RuntimeError("in the middle of the answer")
    if "dies" in wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    if "forks" not in wanted:
        wait_at_gate(wanted)
    yield text[(size - 1) // BLOCK * BLOCK :]
    note(environ, f"all numbers of {wanted.get('name')} are written")


@route
def endless(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing(environ, iter(lambda: b"x" * BLOCK, None))


@route
def file(environ, start_response):
    """The file that X-File names, from `offset`, announcing `length`, through wsgi.file_wrapper."""
    wanted = query(environ)
    stream = open(environ["HTTP_X_FILE"], "rb")  # noqa: SIM115 - the server closes it
    stream.seek(int(wanted.get("offset", 0)))
    headers = [("Content-Type", "application/octet-stream")]
    if "length" in wanted:
        headers.append(("Content-Length", wanted["length"]))
    start_response("200 OK", headers)
    return environ["wsgi.file_wrapper"](stream, BLOCK)


class Noisy(io.BytesIO):
    """A file without a descriptor that tells when it is closed."""

    def __init__(self, environ, data):
        super().__init__(data)
        self.errors = environ["wsgi.errors"]

    def close(self):
        if not self.closed:
            print("closed the file", file=self.errors, flush=True)
        super().close()


class ReadOnly:
    """The least that a file_wrapper must take: read, no close."""

    def __init__(self, data):
        self.read = io.BytesIO(data).read


def read_end_of_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, b"out of a pipe")
    os.close(writer)
    return os.fdopen(reader, "rb")


def temporary_file(data, position):
    stream = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
    stream.write(data)
    stream.seek(position)
    return stream


def partly_read_file():
    """A buffered reader's descriptor is further on than the reader."""
    stream = temporary_file(b"0123456789" * 10_000, 0)
    stream.read(3)
    return stream


FILES = {
    "memory": lambda environ: Noisy(environ, b"out of memory"),
    "read_only": lambda environ: ReadOnly(b"only read"),
    "pipe": lambda environ: read_end_of_a_pipe(),
    "empty": lambda environ: temporary_file(b"", 0),
    "at_the_end": lambda environ: temporary_file(b"all read", 8),
    "partly_read": lambda environ: partly_read_file(),
}


@route
def wrapped(environ, start_response):
    start_response("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](FILES[environ["QUERY_STRING"]](environ))


@route
def wrapped_in_middleware(environ, start_response):
    """A middleware that iterates: the wrapper is an iterable like any other."""
    start_response("200 OK", PLAIN)
    return (block.upper() for block in environ["wsgi.file_wrapper"](io.BytesIO(b"out of memory"), 4))


# the ends


class Closing:
    """An iterable that tells when it is closed."""

    def __init__(self, environ, chunks, error=None):
        self.environ = environ
        self.chunks = chunks
        self.error = error

    def __iter__(self):
        return iter(self.chunks)

    def close(self):
        note(self.environ, f"closed {self.environ.get('HTTP_X_NAME', 'it')}")
        if self.error:
            raise self.error


def failing(chunks, error):
    yield from chunks
    raise error


@route
def closes(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing(environ, [b"a", b"b"])


@route
def close_fails(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing(environ, [b"complete"], RuntimeError("in close"))


ERRORS = {
    "error": RuntimeError,
    "system_exit": SystemExit,
    "keyboard_interrupt": KeyboardInterrupt,
    "generator_exit": GeneratorExit,
}


@route
def fail_at_once(environ, start_response):
    raise ERRORS[environ["QUERY_STRING"]]("the probe failed")


@route
def fail_after_start(environ, start_response):
    start_response("200 OK", PLAIN)
    raise ERRORS[environ["QUERY_STRING"]]("the probe failed")


@route
def fail_before_first_chunk(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing(environ, failing([], ERRORS[environ["QUERY_STRING"]]("the probe failed")))


@route
def fail_after_first_chunk(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing(environ, failing([b"begun "], ERRORS[environ["QUERY_STRING"]]("the probe failed")))


@route
def fail_after_empty_chunk(environ, start_response):
    start_response("200 OK", PLAIN)
    return failing([b""], RuntimeError("the probe failed"))


@route
def fail_after_write(environ, start_response):
    start_response("200 OK", PLAIN)(b"begun ")
    raise ERRORS[environ["QUERY_STRING"]]("the probe failed")


@route
def errors_stream(environ, start_response):
    environ["wsgi.errors"].write("written\n")
    environ["wsgi.errors"].writelines(["line one\n", "line \xe9\n"])
    environ["wsgi.errors"].flush()
    print("printed to stdout", flush=True)
    print("printed to stderr", file=sys.stderr, flush=True)
    return answer(start_response, "said")


# time, signals, and what one counts from outside


@route
def count(environ, start_response):
    """Add a line to the file that X-File names, then wait `seconds`: how often was it executed?"""
    with open(environ["HTTP_X_FILE"], "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(float(query(environ).get("seconds", 0)))
    return answer(start_response, os.getpid())


class RangError(Exception):
    pass


def ring(number, frame):
    raise RangError


@route
def alarm(environ, start_response):
    """signal.alarm ends a long wait; only a main thread may ask for it. All requests of a test overlap."""
    main = threading.current_thread() is threading.main_thread()
    rang = False
    if main:
        signal.signal(signal.SIGALRM, ring)
        signal.alarm(1)
    try:
        time.sleep(30 if main else 0.5)
    except RangError:
        rang = True
    return as_json(start_response, {"main_thread": main, "rang": rang, "core": environ.get("uwsgi.core", 0)})


@route
def kill(environ, start_response):
    os.kill(os.getpid(), int(query(environ).get("signal", signal.SIGKILL)))
    time.sleep(30)
    return answer(start_response, "still here")


# whatever the path: for requests whose path is what is looked at


def any_path(environ_, start_response):
    return environ(environ_, start_response)
