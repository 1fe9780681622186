"""The application that every server runs: a fixed text of 1,024 bytes, nothing computed, nothing read."""

from collections.abc import Callable, Iterable
from typing import Any

BODY = (b"Hello, world! " * 74)[:1024]
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", HEADERS)
    return [BODY]
