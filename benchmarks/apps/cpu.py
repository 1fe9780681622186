"""Burns 2 ms of this thread's CPU time, then answers as hello.py does: an application that computes."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from hello import application as hello

SECONDS = 0.002


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    end = time.thread_time() + SECONDS
    while time.thread_time() < end:
        pass
    return hello(environ, start_response)
