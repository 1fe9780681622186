"""Sleeps for 20 ms, then answers as hello.py does: 50 requests a second and worker."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from hello import application as hello

SECONDS = 0.02


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    time.sleep(SECONDS)
    return hello(environ, start_response)
