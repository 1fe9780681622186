"""PEP 3333, one named row for each behaviour, seen by a client that speaks raw uwsgi.

On a real uWSGI 2.0.31 the rows about errors, checks and bodies that don't belong fail: docs/differences.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.client import Connection, End, Text, cgi, exchange, packet, together, uwsgi
from support.harness import APPS, LogView, Server, free_port


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = f"""
        socket = app.sock
        socket = 127.0.0.1:{free_port()}
        pythonpath = {APPS}
        module = probe
        buffer-size = 65535
        need-app = true
    """
    with Server(options) as server:
        yield server


@pytest.fixture
def log(server: Server) -> LogView:
    return server.settled_log()


def environ(server: Server, variables: dict[Text, Text] | None = None, **others: str) -> dict:
    """What the application was given: {"strings", "others", "objects"}."""
    answer = exchange(server.address, packet({**cgi("/environ", **others), **(variables or {})}))
    assert answer.status == 200, answer
    return json.loads(answer.body)


def is_still_served(server: Server, pid: int) -> None:
    """The worker that had the odd request has the next one too."""
    assert json.loads(uwsgi(server.address, "/process").body)["pid"] == pid


def worker_pid(server: Server) -> int:
    return json.loads(uwsgi(server.address, "/process").body)["pid"]


# environ

SCHEMES = {
    "nothing said": ({}, "http"),
    "HTTPS on": ({"HTTPS": "on"}, "https"),
    "HTTPS ON": ({"HTTPS": "ON"}, "https"),
    "HTTPS 1": ({"HTTPS": "1"}, "https"),
    "HTTPS off": ({"HTTPS": "off"}, "http"),
    "HTTPS empty": ({"HTTPS": ""}, "http"),
    "forwarded https from a unix socket": ({"HTTP_X_FORWARDED_PROTO": "https"}, "https"),
    "forwarded http goes before HTTPS": ({"HTTP_X_FORWARDED_PROTO": "http", "HTTPS": "on"}, "http"),
    "forwarded in capitals is not the word": ({"HTTP_X_FORWARDED_PROTO": "HTTPS"}, "http"),
    "forwarded list is not the word": ({"HTTP_X_FORWARDED_PROTO": "https, http"}, "http"),
    "forwarded nonsense": ({"HTTP_X_FORWARDED_PROTO": "javascript"}, "http"),
    "forwarded nonsense leaves it to HTTPS": ({"HTTP_X_FORWARDED_PROTO": "x", "HTTPS": "on"}, "https"),
    "UWSGI_SCHEME": ({"UWSGI_SCHEME": "https"}, "https"),
    "UWSGI_SCHEME goes first": ({"HTTP_X_FORWARDED_PROTO": "http", "UWSGI_SCHEME": "https"}, "https"),
    "UWSGI_SCHEME goes first, in any order": (
        {"UWSGI_SCHEME": "https", "HTTP_X_FORWARDED_PROTO": "http"},
        "https",
    ),
    "UWSGI_SCHEME goes before HTTPS": ({"UWSGI_SCHEME": "http", "HTTPS": "on"}, "http"),
    "REQUEST_SCHEME doesn't count": ({"REQUEST_SCHEME": "https"}, "http"),
}


@pytest.mark.parametrize(("variables", "scheme"), SCHEMES.values(), ids=SCHEMES)
def test_url_scheme(server: Server, variables: dict[Text, Text], scheme: str) -> None:
    assert environ(server, variables)["strings"]["wsgi.url_scheme"] == scheme


VARIABLES = {
    "plain": (b"X_NAME", b"value"),
    "empty value": (b"X_NAME", b""),
    "percent signs are left alone": (b"X_NAME", b"/a%252e%2Fb%00%"),
    "UTF-8": (b"X_NAME", "café €".encode()),
    "every byte": (b"X_NAME", bytes(range(256))),
    "long": (b"X_NAME", b"v" * 60_000),
    "lower case name": (b"x_name", b"value"),
    "dash in the name": (b"X-NAME", b"value"),
    "space in the name": (b"X NAME", b"value"),
    "equals sign in the name": (b"A=B", b"value"),
    "UTF-8 name": ("caf\u00e9".encode(), b"value"),
    "every byte in the name": (bytes(range(256)), b"value"),
    "long name": (b"N" * 60_000, b"value"),
    "another server's name": (b"gunicorn.socket", b"value"),
}


@pytest.mark.parametrize(("name", "value"), VARIABLES.values(), ids=VARIABLES)
def test_variable_arrives_byte_true(server: Server, name: bytes, value: bytes) -> None:
    assert environ(server, {name: value})["strings"][name.decode("latin-1")] == value.decode("latin-1")


PATHS = {
    "UTF-8": b"/environ/caf\xc3\xa9",
    "decoded once already": b"/environ/%2561dmin",
    "dots": b"/environ/../environ",
    "NUL": b"/environ/\0",
    "double slash": b"//environ",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_path_info_is_what_the_front_end_sent(server: Server, path: bytes) -> None:
    """The probe knows no such path; its 404 says that the server passed on what it got."""
    assert exchange(server.address, packet({**cgi(), "PATH_INFO": path})).status == 404
    given = environ(server, {"X_PATH": path})["strings"]
    assert given["X_PATH"] == path.decode("latin-1")


def test_last_of_equal_names_wins(server: Server) -> None:
    pairs = [*cgi("/environ").items(), ("X_NAME", "first"), ("X_NAME", "second")]
    given = json.loads(exchange(server.address, packet(pairs)).body)
    assert given["strings"]["X_NAME"] == "second"


def test_script_name_is_always_there(server: Server) -> None:
    assert environ(server)["strings"]["SCRIPT_NAME"] == ""


def test_script_name_of_the_front_end_is_kept(server: Server) -> None:
    given = environ(server, SCRIPT_NAME="/app")["strings"]
    assert (given["SCRIPT_NAME"], given["PATH_INFO"]) == ("/app", "/environ")


MISSING = {
    "PATH_INFO comes from REQUEST_URI": (
        {"REQUEST_METHOD": "GET", "REQUEST_URI": "/environ?a=%20b", "SERVER_NAME": "localhost"},
        ("PATH_INFO", "/environ"),
    ),
    "SERVER_NAME comes from HTTP_HOST": (
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/environ", "HTTP_HOST": "example.org"},
        ("SERVER_NAME", "example.org"),
    ),
}


@pytest.mark.parametrize(("variables", "expected"), MISSING.values(), ids=MISSING)
def test_missing_variable(server: Server, variables: dict[Text, Text], expected: tuple[str, str]) -> None:
    given = json.loads(exchange(server.address, packet(variables)).body)["strings"]
    name, value = expected
    assert given[name] == value


def test_environ_is_a_plain_dict(server: Server) -> None:
    assert uwsgi(server.address, "/environ_type").body == b"dict"


def test_environ_is_fresh_for_each_request(server: Server) -> None:
    first = json.loads(uwsgi(server.address, "/keep_environ").body)
    second = json.loads(uwsgi(server.address, "/keep_environ").body)
    assert first == {"sizes": [], "foreign": False}
    assert second["foreign"] is False
    assert second["sizes"][0] > 20  # the one that the application kept is untouched


PROCESSES_AND_THREADS = {
    "1 process": ("processes = 1", "False", "False"),
    "2 processes": ("processes = 2", "False", "True"),
    "2 threads": ("threads = 2", "True", "False"),
    "2 processes of 2 threads": ("processes = 2\nthreads = 2", "True", "True"),
}


@pytest.mark.parametrize(("options", "threads", "processes"), PROCESSES_AND_THREADS.values(), ids=PROCESSES_AND_THREADS)
def test_wsgi_variables(options: str, threads: str, processes: str) -> None:
    with Server(f"socket = app.sock\npythonpath = {APPS}\nmodule = probe\n{options}\n") as server:
        given = environ(server, {"wsgi.version": "mine", "wsgi.input": "mine", "wsgi.multithread": "mine"})
    others = given["others"]
    assert others["wsgi.version"] == "(1, 0)"
    assert (others["wsgi.multithread"], others["wsgi.multiprocess"]) == (threads, processes)
    assert others["wsgi.run_once"] == "False"
    assert {"wsgi.input", "wsgi.errors", "wsgi.file_wrapper"} <= given["objects"].keys()


ACTING = [
    "UWSGI_FILE",
    "UWSGI_SCRIPT",
    "UWSGI_MODULE",
    "UWSGI_CALLABLE",
    "UWSGI_HOME",
    "UWSGI_PYHOME",
    "UWSGI_CHDIR",
    "UWSGI_SETENV",
    "UWSGI_POSTFILE",
    "UWSGI_TOUCH_RELOAD",
    "UWSGI_APPID",
    "UWSGI_CACHE_GET",
    "UWSGI_ROUTER",
    "DOCUMENT_ROOT",
]


@pytest.mark.parametrize("name", ACTING)
def test_no_variable_acts_on_the_server(server: Server, name: str) -> None:
    """A peer of the socket can name a file, a module, a directory: it is text for the application."""
    sprung = server.directory / f"sprung by {name}"
    trap = server.directory / "trap.py"
    trap.write_text(f"open({str(sprung)!r}, 'w').close()\napplication = None\n")
    value = {"UWSGI_FILE": str(trap), "UWSGI_SCRIPT": f"{trap}:application", "UWSGI_SETENV": "TRAP=1"}.get(
        name, str(server.directory)
    )
    more = {"SCRIPT_NAME": "/trap", name: value}
    assert environ(server, more)["strings"][name] == value
    assert exchange(server.address, packet({**cgi("/echo", "POST", b"mine"), **more}) + b"mine").body == b"mine"
    now = json.loads(exchange(server.address, packet({**cgi("/settings"), **more})).body)
    assert (now["cwd"], now["env"].get("TRAP")) == (str(server.directory), None)
    assert not sprung.exists()


# wsgi.input

TEXT = b"one\ntwo two\n\nlast"
READS = {
    "read": ["one\ntwo two\n\nlast"],
    "read_minus_one": ["one\ntwo two\n\nlast"],
    "read_none": ["one\ntwo two\n\nlast"],
    "read_zero": ["", "one\ntwo two\n\nlast"],
    "read_three": ["one", "\ntw", "o two\n\nlast"],
    "read_too_much": ["one\ntwo two\n\nlast", "", ""],
    "readline": ["one\n", "two two\n", "\n", "last"],
    "readline_four": ["one\n", "two ", "two\n"],
    "readline_minus_one": ["one\n"],
    "readlines": ["one\n", "two two\n", "\n", "last"],
    "readlines_hint": ["one\n", "two two\n", "\n", "last"],
    "iteration": ["one\n", "two two\n", "\n", "last"],
    "mixed": ["on", "e\n", "two two\n", "\nlast"],
}


@pytest.mark.parametrize(("call", "parts"), READS.items(), ids=READS)
def test_input(server: Server, call: str, parts: list[str]) -> None:
    assert json.loads(uwsgi(server.address, f"/reads?{call}", "POST", TEXT).body) == parts


@pytest.mark.parametrize("call", READS)
def test_input_ends_with_content_length(server: Server, call: str) -> None:
    """What the client sends beyond the announced length is nobody's."""
    head = packet(cgi(f"/reads?{call}", "POST", TEXT))
    assert json.loads(exchange(server.address, head + TEXT + b"and more\n").body) == READS[call]


@pytest.mark.parametrize("call", READS)
def test_input_comes_in_pieces(server: Server, call: str) -> None:
    request = packet(cgi(f"/reads?{call}", "POST", TEXT)) + TEXT
    pieces = [request[start : start + 1] for start in range(len(request))]
    assert json.loads(exchange(server.address, *pieces).body) == READS[call]


@pytest.mark.parametrize("length", ["", None], ids=["empty CONTENT_LENGTH", "no CONTENT_LENGTH"])
def test_no_body(server: Server, length: str | None) -> None:
    variables = cgi("/hash", "POST")
    del variables["CONTENT_LENGTH"]
    if length is not None:
        variables["CONTENT_LENGTH"] = length
    assert json.loads(exchange(server.address, packet(variables), b"surplus").body)["size"] == 0


def test_body_is_streamed(server: Server) -> None:
    """The application reads and answers the beginning while the client still holds the end back."""
    with Connection(server.address) as connection:
        connection.send(packet(cgi("/interleaved", "POST", b"abcdef")) + b"abc")
        begun = connection.receive_until(b"<abc>")
        connection.send(b"def")
        assert connection.answer(begun).body == b"<abc><def>"


BAD_LENGTHS = {
    "letter after the digits": b"4x",
    "letters": b"four",
    "minus": b"-4",
    "plus": b"+4",
    "hexadecimal": b"0x4",
    "exponent": b"1e1",
    "fraction": b"4.0",
    "underscore": b"1_0",
    "two": b"4, 4",
    "inner space": b"4 4",
    "only a space": b" ",
    "newline": b"4\n",
    "NUL": b"4\0",
    "Arabic digit": "\u0664".encode(),
    "more than 64 bits": b"9" * 30,
}


@pytest.mark.parametrize("length", BAD_LENGTHS.values(), ids=BAD_LENGTHS)
def test_bad_content_length_is_a_400(server: Server, length: bytes) -> None:
    variables = {**cgi("/hash", "POST"), "CONTENT_LENGTH": length}
    assert exchange(server.address, packet(variables) + b"body").status == 400
    assert uwsgi(server.address, "/hello").status == 200


def test_client_leaves_within_the_body(server: Server, log: LogView) -> None:
    """The read raises OSError: an application never takes half a body for a whole one."""
    with Connection(server.address) as connection:
        connection.send(packet(cgi("/read_failure", "POST", b"x" * 1000)) + b"half")
        connection.half_close()
        assert connection.answer().status != 200
    log.wait("read failed: ")
    assert "read succeeded" not in log.text()


# start_response: what is refused

BAD_HEADS = {
    "crlf_in_value": "X-Name",
    "cr_in_value": "X-Name",
    "lf_in_value": "X-Name",
    "fold_in_value": "X-Name",
    "nul_in_value": "X-Name",
    "wide_in_value": "X-Name",
    "crlf_in_name": "X-Name",
    "lf_in_name": "X-Name",
    "nul_in_name": "X-Name",
    "wide_in_name": "X-Name",
    "crlf_in_status": "status",
    "lf_in_status": "status",
    "nul_in_status": "status",
    "wide_in_status": "status",
    "bytes_status": "status",
    "number_status": "status",
    "no_number_in_status": "status",
    "bytes_name": "X-Name",
    "bytes_value": "X-Name",
    "number_value": "X-Name",
    "dict_headers": "header",
    "triple_header": "header",
    "nul_in_connection": "Connection",
}


@pytest.mark.parametrize(("kind", "named"), BAD_HEADS.items(), ids=BAD_HEADS)
def test_bad_head_is_a_500(server: Server, log: LogView, kind: str, named: str) -> None:
    """Never on the wire; the log names what it was."""
    pid = worker_pid(server)
    answer = uwsgi(server.address, f"/bad_head?{kind}")
    assert answer.status == 500
    assert b"Injected" not in answer.raw
    assert b"X-Name" not in answer.raw
    log.wait(rf"(?m)^(?!.*bad_head\?).*{named}")  # not only the request line
    is_still_served(server, pid)


@pytest.mark.parametrize("length", ["", "+5", "-1", "5 ", "5, 5", "1e3", "\xb2", "1" * 19])
def test_bad_content_length_is_a_500(server: Server, log: LogView, length: str) -> None:
    assert uwsgi(server.address, f"/head?header=Content-Length:{length}").status == 500
    log.wait("'Content-Length': a number of bytes was expected")


def test_latin_1_in_the_head_is_fine(server: Server) -> None:
    answer = uwsgi(server.address, "/latin1_head")
    assert answer.status_line == "HTTP/1.1 200 D\xe9j\xe0 vu"
    assert answer.headers[:3] == [("X-Name", "caf\xe9"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]


def test_start_response_not_called_is_a_500(server: Server, log: LogView) -> None:
    answer = uwsgi(server.address, "/no_start")
    assert answer.status == 500
    assert b"without a head" not in answer.raw
    log.wait("start_response")


def test_start_response_twice_is_an_error(server: Server, log: LogView) -> None:
    assert uwsgi(server.address, "/start_twice").status == 500
    log.wait("Traceback")


def test_exc_info_before_the_head_replaces_it(server: Server) -> None:
    answer = uwsgi(server.address, "/start_again_with_exc_info")
    assert (answer.status, answer.body) == (503, b"the error page")
    assert (answer.header("X-First"), answer.header("X-Second")) == (None, "yes")


def test_exc_info_after_the_head_raises_it(server: Server, log: LogView) -> None:
    answer = uwsgi(server.address, "/start_late_with_exc_info")
    assert (answer.status, answer.body) == (200, b"begun ")
    log.wait("raised the same: True")
    log.wait("ValueError: after the head went")


def test_start_response_within_the_iteration(server: Server) -> None:
    answer = uwsgi(server.address, "/start_late")
    assert (answer.status, answer.body) == (201, b"late")


PROTOCOLS = {
    "HTTP/1.0": ("HTTP/1.0", "HTTP/1.0 200 OK"),
    "HTTP/1.1": ("HTTP/1.1", "HTTP/1.1 200 OK"),
    "HTTP/2.0 has no such line": ("HTTP/2.0", "HTTP/1.1 200 OK"),
    "none": ("", "HTTP/1.0 200 OK"),
}


@pytest.mark.parametrize(("protocol", "line"), PROTOCOLS.values(), ids=PROTOCOLS)
def test_status_line_repeats_the_protocol(server: Server, protocol: str, line: str) -> None:
    assert uwsgi(server.address, "/hello", SERVER_PROTOCOL=protocol).status_line == line


def test_nothing_is_added_to_the_headers(server: Server) -> None:
    answer = uwsgi(server.address, "/head?header=X-Only:this")
    assert (answer.headers, answer.body) == ([("X-Only", "this")], b"body")


# the body

BODIES = {
    "list": b"abc",
    "tuple": b"abc",
    "bytes": b"abc",
    "empty_list": b"",
    "empty_chunks": b"abc",
    "only_empty_chunks": b"",
}


@pytest.mark.parametrize(("kind", "expected"), BODIES.items(), ids=BODIES)
def test_body(server: Server, kind: str, expected: bytes) -> None:
    answer = uwsgi(server.address, f"/body?{kind}")
    assert (answer.status, answer.body, answer.end) == (200, expected, End.EOF)


@pytest.mark.parametrize("kind", ["str_chunk", "number_chunk", "none"])
def test_body_that_is_not_bytes_is_a_500(server: Server, log: LogView, kind: str) -> None:
    assert uwsgi(server.address, f"/body?{kind}").status == 500
    log.wait("TypeError")


def test_body_ends_with_content_length(server: Server) -> None:
    answer = uwsgi(server.address, "/longer_than_announced")
    assert (answer.status, answer.body) == (200, b"abcd")


def test_body_shorter_than_announced_is_in_the_log(server: Server, log: LogView) -> None:
    assert uwsgi(server.address, "/shorter_than_announced").body == b"abc"
    log.wait(r"(?im)^(?!\[pid).*content-length")


def test_write_then_iterable(server: Server) -> None:
    assert uwsgi(server.address, "/write_calls").body == b"written twice, then returned"


def test_write_alone(server: Server) -> None:
    assert uwsgi(server.address, "/write_only").body == b"only written"


@contextmanager
def gate(path: Path) -> Iterator[Path]:
    """A FIFO that the application waits at until the block ends."""
    os.mkfifo(path)
    yield path
    path.write_bytes(b"")


@pytest.mark.parametrize("path", ["/gated_generator", "/write_at_once"])
def test_chunk_is_sent_before_the_next_is_made(server: Server, tmp_path: Path, path: str) -> None:
    with Connection(server.address) as connection:
        with gate(tmp_path / "gate") as fifo:
            connection.send(packet(cgi(path, HTTP_X_GATE=str(fifo))))
            begun = connection.receive_until(b"first ")
        assert connection.answer(begun).body == b"first second"


def test_head_and_first_chunk_come_together(server: Server) -> None:
    """One system call: a reader that is woken by the head finds the chunk with it, every time."""
    for _ in range(100):
        with Connection(server.address) as connection:
            connection.send(packet(cgi("/hello")))
            assert connection.receive().endswith(b"\r\n\r\nhello")


BODILESS = {
    "HEAD": ("HEAD", "200"),
    "204": ("GET", "204"),
    "304": ("GET", "304"),
    "HEAD of a 404": ("HEAD", "404"),
}


@pytest.mark.parametrize(("method", "status"), BODILESS.values(), ids=BODILESS)
def test_no_body_where_none_belongs(server: Server, log: LogView, method: str, status: str) -> None:
    answer = uwsgi(server.address, f"/bodiless?status={status}", method)
    assert (answer.status, answer.header("X-Mark"), answer.body) == (int(status), "kept", b"")
    log.wait("closed it")


# wsgi.file_wrapper

CONTENT = bytes(range(256)) * 4000
PIECES = {
    "whole file": ("", 0, None),
    "from its position": ("?offset=1000", 1000, None),
    "from its position, length announced": ("?offset=1000&length=500", 1000, 1500),
    "as long as announced": ("?length=1000", 0, 1000),
    "at the end": (f"?offset={len(CONTENT)}", len(CONTENT), None),
}


@pytest.mark.parametrize(("query", "first", "last"), PIECES.values(), ids=PIECES)
def test_file(server: Server, tmp_path: Path, query: str, first: int, last: int | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    answer = uwsgi(server.address, f"/file{query}", HTTP_X_FILE=str(path))
    assert (answer.status, answer.body) == (200, CONTENT[first:last])


def test_head_of_a_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    answer = uwsgi(server.address, f"/file?length={len(CONTENT)}", "HEAD", HTTP_X_FILE=str(path))
    assert (answer.status, answer.header("Content-Length"), answer.body) == (200, str(len(CONTENT)), b"")


FILES = {
    "memory": b"out of memory",
    "read_only": b"only read",
    "pipe": b"out of a pipe",
    "empty": b"",
    "at_the_end": b"",
    "partly_read": (b"0123456789" * 10_000)[3:],
}


@pytest.mark.parametrize(("kind", "expected"), FILES.items(), ids=FILES)
def test_file_wrapper_takes_any_file(server: Server, kind: str, expected: bytes) -> None:
    answer = uwsgi(server.address, f"/wrapped?{kind}")
    assert (answer.status, answer.body, answer.end) == (200, expected, End.EOF)


def test_wrapped_file_is_closed(server: Server, log: LogView) -> None:
    uwsgi(server.address, "/wrapped?memory")
    log.wait("closed the file")


def test_wrapped_file_in_a_middleware(server: Server) -> None:
    assert uwsgi(server.address, "/wrapped_in_middleware").body == b"OUT OF MEMORY"


# the ends

ERRORS = {
    "error": "RuntimeError",
    "system_exit": "SystemExit",
    "keyboard_interrupt": "KeyboardInterrupt",
    "generator_exit": "GeneratorExit",
}
EARLY = ["/fail_at_once", "/fail_after_start", "/fail_before_first_chunk"]
LATE = ["/fail_after_first_chunk", "/fail_after_write"]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("path", EARLY)
def test_exception_before_the_head_is_a_500(server: Server, log: LogView, path: str, kind: str) -> None:
    pid = worker_pid(server)
    answer = uwsgi(server.address, f"{path}?{kind}")
    assert (answer.status, answer.end) == (500, End.EOF)
    assert b"the probe failed" not in answer.raw  # the log's business, not the client's
    log.wait(rf"Traceback \(most recent call last\)(.|\n)*{ERRORS[kind]}")
    is_still_served(server, pid)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("path", LATE)
def test_exception_after_the_head_cuts_the_answer(server: Server, log: LogView, path: str, kind: str) -> None:
    pid = worker_pid(server)
    answer = uwsgi(server.address, f"{path}?{kind}")
    assert (answer.status, answer.body) == (200, b"begun ")
    log.wait(rf"Traceback \(most recent call last\)(.|\n)*{ERRORS[kind]}")
    is_still_served(server, pid)


@pytest.mark.parametrize("path", LATE)
def test_cut_answer_is_a_reset_on_tcp(server: Server, path: str) -> None:
    """The end of the connection is the end of an answer without Content-Length: only a reset says otherwise."""
    answer = uwsgi(server.addresses[1], f"{path}?error")
    assert (answer.status, answer.end) == (200, End.RESET)


def test_empty_chunk_does_not_send_the_head(server: Server) -> None:
    """What fails after it is still a 500."""
    assert uwsgi(server.address, "/fail_after_empty_chunk").status == 500


CLOSES = ["/closes", "/close_fails", "/fail_before_first_chunk?error", "/fail_after_first_chunk?error"]


@pytest.mark.parametrize("path", CLOSES)
def test_close_is_called_once(server: Server, log: LogView, path: str) -> None:
    name = f"number-{path}"
    uwsgi(server.address, path, HTTP_X_NAME=name)
    uwsgi(server.address, "/closes", HTTP_X_NAME="the next one")
    log.wait("closed the next one")
    assert log.text().count(f"closed {name}") == 1


def test_exception_in_close_leaves_the_answer_whole(server: Server, log: LogView) -> None:
    answer = uwsgi(server.address, "/close_fails")
    assert (answer.status, answer.body, answer.end) == (200, b"complete", End.EOF)
    log.wait("RuntimeError: in close")


def test_client_that_left_is_no_error(server: Server, log: LogView) -> None:
    """The application is closed, the worker goes on, the log has no traceback."""
    pid = worker_pid(server)
    with Connection(server.address) as connection:
        connection.send(packet(cgi("/endless")))
        connection.receive()
    log.wait("closed it")
    is_still_served(server, pid)
    log.wait(r"GET /process\b", 2)
    assert "Traceback" not in log.text()


def test_errors_stream_and_standard_streams_reach_the_log(server: Server, log: LogView) -> None:
    uwsgi(server.address, "/errors_stream")
    for text in ("written", "line one", "line (é|.xe9)", "printed to stdout", "printed to stderr"):
        log.wait(f"^{text}$")


def test_request_line(server: Server, log: LogView) -> None:
    uwsgi(server.address, "/hello?line=1", REMOTE_USER="bob")
    line = (
        rf"^\[pid: {worker_pid(server)}\|app: 0\|req: \d+/\d+\] 127\.0\.0\.1 \(bob\) "
        r"\{30 vars in \d+ bytes\} "
        r"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\] GET /hello\?line=1 => generated 5 bytes in \d+ msecs "
        r"\(HTTP/1\.1 200\) 2 headers in 64 bytes \(\d+ switches on core 0\)$"
    )
    log.wait(line)


def test_control_characters_in_the_log_are_escaped(server: Server, log: LogView) -> None:
    uwsgi(server.address, "/hello", REQUEST_URI="/hello?a\nb\x1b[31m\r", REMOTE_USER="\n[pid: 1]")
    log.wait(r"\(\\x0a\[pid: 1\]\).* GET /hello\?a\\x0ab\\x1b\[31m\\x0d => ")


def test_a_line_that_is_too_long_is_cut(server: Server, log: LogView) -> None:
    """4,096 bytes, uWSGI's limit; the next line begins on a line of its own."""
    uwsgi(server.address, "/hello", REQUEST_URI="/long?" + "\n" * 2048)
    uwsgi(server.address, "/hello?after")
    log.wait(r"^\[pid: .* GET /hello\?after => ")
    (line,) = re.findall(r"^\[pid: .*/long\?.*\n", log.text(), re.MULTILINE)
    assert 4080 < len(line) <= 4096


LOGGED = {
    "every request": ("", ["/hello", "/nowhere", "/fail_at_once?error"]),
    "disable-logging": ("disable-logging = true", []),
    "log-4xx": ("disable-logging = true\nlog-4xx = true", ["/nowhere"]),
    "log-5xx": ("disable-logging = true\nlog-5xx = true", ["/fail_at_once?error"]),
}


@pytest.mark.parametrize(("options", "logged"), LOGGED.values(), ids=LOGGED)
def test_requests_in_the_log(options: str, logged: list[str]) -> None:
    paths = ["/hello", "/nowhere", "/fail_at_once?error"]
    with Server(f"socket = app.sock\npythonpath = {APPS}\nmodule = probe\n{options}\n") as server:
        for path in paths:
            uwsgi(server.address, path)
        uwsgi(server.address, "/errors_stream")
    lines = [line for line in server.log().splitlines() if line.startswith("[pid: ")]
    assert [path for path in paths if any(f" {path} => " in line for line in lines)] == logged


def test_a_hundred_at_once(server: Server) -> None:
    """One worker, one request at a time: the others wait, all are answered with their own."""
    answers = together(100, lambda number: uwsgi(server.address, "/echo", "POST", b"%d" % number))
    assert [answer.body for answer in answers] == [b"%d" % number for number in range(100)]


def test_second_packet_on_a_connection_is_ignored(server: Server, log: LogView) -> None:
    answer = exchange(server.address, packet(cgi("/hello")) + packet(cgi("/process?second")))
    assert answer.body == b"hello"
    uwsgi(server.address, "/hello?third")
    log.wait(re.escape("/hello?third"))
    assert "/process?second" not in log.text()
