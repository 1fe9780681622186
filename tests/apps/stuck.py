"""Requests that never end, each in its own way, and some that only look like it."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

LOCK = threading.Lock()
LONG = 600


def stuck_in_sleep(environ):
    time.sleep(LONG)


def stuck_in_a_loop(environ):
    while True:
        pass


def stuck_on_a_lock(environ):
    LOCK.acquire()
    LOCK.acquire()


def stuck_with_the_gil(environ):
    """In C, and no signal ends it early."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.sleep(LONG)


def stuck_in_a_read(environ):
    reader, _writer = os.pipe()
    os.read(reader, 1)


def stuck_in_a_thread(environ):
    """The request waits for a thread of the application's own."""
    thread = threading.Thread(target=stuck_in_sleep, args=(environ,))
    thread.start()
    thread.join()


def stuck_and_dumps_kill(environ):
    """A dump of all threads ends this process, as it may when they are running."""
    signal.signal(signal.SIGRTMIN + 8, signal.SIG_DFL)
    stuck_in_a_thread(environ)


def comes_back(environ):
    """In C, until a signal comes."""
    ctypes.CDLL(None).sleep(LONG)


def gate(environ):
    """Until the file exists."""
    while not Path(environ["QUERY_STRING"]).exists():
        time.sleep(0.01)


def with_finally(environ):
    try:
        time.sleep(LONG)
    finally:
        print("finally has run", flush=True)


def swallows(environ):
    while True:
        try:
            time.sleep(LONG)
        except BaseException:
            print("swallowed", flush=True)


def quick(environ):
    pass


def crash(environ):
    ctypes.string_at(0)


def crash_in_a_child(environ):
    pid = os.fork()
    if pid == 0:
        ctypes.string_at(0)
    os.waitpid(pid, 0)


def overflow(environ):
    """Use up the C stack."""
    sys.setrecursionlimit(1 << 30)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)

    def deeper(depth):
        return call(depth + 1)

    call = compare(deeper)
    call(0)


def abort(environ):
    os.abort()


def leave(environ):
    os._exit(3)


def kill(environ):
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory(environ):
    return len(bytearray(4 << 30))


def stop(environ):
    """The process stops itself, in the middle of the request."""
    os.kill(os.getpid(), signal.SIGSTOP)


class Body:
    """A complete answer whose close() never ends, or ends everything."""

    def __init__(self, close):
        self.chunks = iter([b"complete"])
        self.end = close

    def __iter__(self):
        return self.chunks

    def close(self):
        self.end({})


def half_an_answer():
    yield b"half"
    time.sleep(LONG)


def complete_answer():
    yield b"complete"
    time.sleep(LONG)


DEEDS = {
    deed.__name__: deed
    for deed in (
        stuck_in_sleep,
        stuck_in_a_loop,
        stuck_on_a_lock,
        stuck_with_the_gil,
        stuck_in_a_read,
        stuck_in_a_thread,
        stuck_and_dumps_kill,
        comes_back,
        gate,
        with_finally,
        swallows,
        quick,
        crash,
        crash_in_a_child,
        overflow,
        abort,
        leave,
        kill,
        out_of_memory,
        stop,
    )
}


def application(environ, start_response):
    path = environ["PATH_INFO"].strip("/")
    if path in DEEDS:
        DEEDS[path](environ)
    headers = [("Content-Length", "8")] if path == "generator_never_ends" else []
    start_response("200 OK", [("Content-Type", "text/plain"), *headers])
    if path == "generator_never_ends":
        return complete_answer()
    if path == "half_an_answer":
        return half_an_answer()
    if path == "close_never_ends":
        return Body(stuck_in_sleep)
    if path == "dies_in_close":
        return Body(kill)
    return [b"%d" % os.getpid()]


if os.environ.get("STUCK_BLOCKS"):
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) | set(range(signal.SIGRTMIN, signal.SIGRTMAX + 1)))

if os.environ.get("STUCK_OWN_HANDLER"):

    def own_handler(number, frame):
        raise RuntimeError("the application's own handler")

    signal.signal(signal.SIGUSR1, own_handler)
