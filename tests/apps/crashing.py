"""Dies while it is loaded, after a note of when; the first process survives if CRASH_SURVIVOR names a file."""

import os
import signal
import time
from pathlib import Path

with Path(os.environ["CRASH_NOTES"]).open("a") as notes:
    notes.write(f"{time.monotonic()}\n")

SURVIVOR = os.environ.get("CRASH_SURVIVOR")


def survives():
    try:
        Path(SURVIVOR).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if not (SURVIVOR and survives()):
    os.kill(os.getpid(), signal.SIGKILL)


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"alive"]
