"""Sleeps for a second when asked for /slow, and answers everything else at once, as hello.py does."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from hello import application as hello

SECONDS = 1.0


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/slow":
        time.sleep(SECONDS)
    return hello(environ, start_response)
