"""What keeps a worker busy for a while, and what makes it large."""

import os
import time
from pathlib import Path

HOARD = []
SLOW_START = os.environ.get("SCALING_SLOW_START")  # seconds, with lazy-apps: of every worker


def sleep(environ):
    time.sleep(float(environ["QUERY_STRING"]))


def gate(environ):
    while not Path(environ["QUERY_STRING"]).exists():
        time.sleep(0.01)


def grow(environ):
    """Hold so many MiB, and be busy for a while."""
    if not HOARD:
        HOARD.append(bytearray(b"x") * (int(environ["QUERY_STRING"]) << 20))
    time.sleep(0.05)


DEEDS = {deed.__name__: deed for deed in (sleep, gate, grow)}


def application(environ, start_response):
    DEEDS.get(environ["PATH_INFO"].strip("/"), lambda _: None)(environ)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


if SLOW_START:
    time.sleep(float(SLOW_START))
