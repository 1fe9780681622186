"""Reads the whole request body and answers with 1,024 bytes that begin with its length: for `load --body`."""

from collections.abc import Callable, Iterable
from typing import Any

CHUNK = 64 * 1024


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    total = 0
    while chunk := environ["wsgi.input"].read(CHUNK):
        total += len(chunk)
    body = f"{total}\n".encode().ljust(1024, b".")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
