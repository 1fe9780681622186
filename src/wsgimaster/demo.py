"""A small application to look at: `make run` serves it.

/          what this request's environ holds
/sleep     answers after a second (?seconds=3: three)
/stream    ten lines, one every 0.3 seconds
/download  ten megabytes of zeros through wsgi.file_wrapper
/error     raises: a 500 here, a traceback in the log
"""

import html
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>wsgimaster</title>
<meta name="color-scheme" content="light dark">
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td {{ font-family: monospace; overflow-wrap: anywhere; padding: 0 1rem 0 0; vertical-align: top }}</style>
<h1>wsgimaster serves</h1>
<p>Worker process {pid} answered this request. Try <a href="/sleep">/sleep</a>, <a href="/stream">/stream</a>,
<a href="/download">/download</a> and <a href="/error">/error</a>, and watch the log.</p>
<table>{rows}</table>
</html>
"""


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    page = PAGES.get(environ["PATH_INFO"])
    if page is None:
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
        return [b"Not found\n"]
    return page(environ, start_response)


def front(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{html.escape(str(value))}" for name, value in sorted(environ.items())
    )
    body = PAGE.format(pid=os.getpid(), rows=rows).encode()
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


def sleep(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    asked = parse_qs(environ["QUERY_STRING"]).get("seconds", ["1"])[0]
    seconds = min(float(asked), 30.0) if asked.replace(".", "", 1).isdigit() else 1.0
    time.sleep(seconds)
    body = f"slept for {seconds:g} s\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def stream(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    for number in range(1, 11):
        yield f"line {number} of 10\n".encode()
        time.sleep(0.3)


def download(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    size = 10_000_000
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
    return wrapped


def error(_environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
    raise RuntimeError("this is what an exception looks like")


PAGES = {"/": front, "/sleep": sleep, "/stream": stream, "/download": download, "/error": error}
