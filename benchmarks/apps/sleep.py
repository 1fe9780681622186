"""Sleeps for 10 ms, then answers as hello.py does: an application that waits for a database."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from hello import application as hello

SECONDS = 0.01


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    time.sleep(SECONDS)
    return hello(environ, start_response)
