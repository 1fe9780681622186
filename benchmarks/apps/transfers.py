"""As hello.py; but /large is 1 MB, and a body is read before the answer."""

from collections.abc import Callable, Iterable
from typing import Any

from hello import application as hello

LARGE = 1_000_000
CHUNK = 64 * 1024


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    while environ.get("CONTENT_LENGTH") and environ["wsgi.input"].read(CHUNK):
        pass
    if environ["PATH_INFO"] != "/large":
        return hello(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(LARGE))])
    return [b"x" * LARGE]
