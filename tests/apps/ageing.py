"""A worker that grows, leaks descriptors, or is slow to come and to go: what recycling is for."""

import os
import threading
import time
from pathlib import Path

HOARD = []
SLOW_START = os.environ.get("AGEING_GATE")  # with lazy-apps: the second process and later ones wait for this file


def grow(environ):
    """So many MiB, touched."""
    HOARD.append(bytearray(int(environ["QUERY_STRING"]) << 20))


def leak_descriptors(environ):
    """All of them, for good, and whichever becomes free."""

    def take():
        while True:
            try:
                HOARD.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                time.sleep(0.001)

    threading.Thread(target=take, daemon=True).start()


def gate(environ):
    while not Path(environ["QUERY_STRING"]).exists():
        time.sleep(0.01)


DEEDS = {deed.__name__: deed for deed in (grow, leak_descriptors, gate)}


def application(environ, start_response):
    path = environ["PATH_INFO"].strip("/")
    if path in DEEDS:
        DEEDS[path](environ)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


if SLOW_START:
    try:
        Path(SLOW_START + ".first").touch(exist_ok=False)
    except FileExistsError:
        gate({"QUERY_STRING": SLOW_START})


def hang():
    time.sleep(600)


if hook := os.environ.get("AGEING_HOOK"):  # a fork that never ends, as with a lock that another thread holds

    def hang_once():
        try:
            Path(os.environ["AGEING_ONCE"]).touch(exist_ok=False)
        except FileExistsError:
            return
        hang()

    if hook == "thread_start":  # after the fork, and before the worker is ready
        start = threading.Thread.start

        def start_or_hang(thread):
            hang_once()
            start(thread)

        threading.Thread.start = start_or_hang
    else:
        os.register_at_fork(**{hook: hang_once})
