"""An application that does to its server what applications do by mistake, and some do on purpose."""

import contextlib
import mmap
import os
import signal
import socket
import sys
import threading
import time
from enum import StrEnum


def descriptors():
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]


def link(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def scribble():
    """Fill the scoreboard with ones."""
    board = next(fd for fd in descriptors() if "scoreboard" in link(fd))
    memory = mmap.mmap(board, 0)
    memory[:] = b"\xff" * len(memory)


def shut_channels():
    for fd in descriptors():
        if link(fd).startswith("socket:"):
            channel = socket.socket(fileno=os.dup(fd))
            if channel.type == socket.SOCK_SEQPACKET:
                channel.shutdown(socket.SHUT_RDWR)
            channel.close()


def fill_doorbell():
    """Make its counter full, and the descriptor blocking."""
    bell = next(fd for fd in descriptors() if "eventfd" in link(fd))
    os.set_blocking(bell, False)
    try:
        while True:
            os.eventfd_write(bell, 2**64 - 2)
    except BlockingIOError:
        pass
    os.set_blocking(bell, True)


def close_all():
    os.closerange(3, 1000)


def lose_stderr():
    sys.stderr = None


def keep_all_descriptors():
    """Leave no free descriptor for half a second."""
    kept = []

    def keep():
        try:
            while True:
                kept.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            time.sleep(0.5)
        for fd in kept:
            os.close(fd)

    threading.Thread(target=keep, daemon=True).start()
    time.sleep(0.1)


def alarm_later():
    """A signal handler that raises when the request is long over."""

    def handler(*_):
        raise RuntimeError("a late alarm")

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)


DEEDS = {
    deed.__name__: deed
    for deed in (scribble, shut_channels, fill_doorbell, close_all, lose_stderr, keep_all_descriptors, alarm_later)
}


class Close:
    """A complete body whose close() raises."""

    def __init__(self, *chunks):
        self.chunks = iter(chunks)

    def __iter__(self):
        return self.chunks

    def close(self):
        raise RuntimeError("close() failed")


def forked(end):
    """The parent waits for its child, which `end`s as this says, and answers."""
    pid = os.fork()
    if pid == 0:
        if end == "exits":
            sys.exit(7)
        if end == "raises":
            raise RuntimeError("the child's")
        return b"from the child"
    return b"child ended with %d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked_in_a_generator():
    yield b"begun, "
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    yield b"from the %s" % (b"parent" if pid else b"child")


def closes_the_client(start_response):
    start_response("200 OK", [])
    yield b"half"
    for fd in descriptors():
        if link(fd).startswith("socket:"):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
                if copy.type == socket.SOCK_STREAM:
                    os.close(fd)
    yield b"the rest"


class Word(StrEnum):
    STATUS = "200 OK"
    NAME = "X-Word"
    VALUE = "a subclass of str"


def cut_with_child(start_response):
    """The pid of a forked child that holds the client's descriptor, then an exception."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    child = os.fork()
    if child == 0:
        signal.pause()
    yield b"%d" % child
    raise RuntimeError("after a part")


def mixed_heads(start_response):
    """A wrong head after a right one, the exception kept to itself."""
    start_response("200 OK", [("X-First", "yes")])
    try:
        raise KeyError("first")
    except KeyError:
        with contextlib.suppress(ValueError):
            start_response("500 Second", [("X-Second", "line\nbreak")], sys.exc_info())
    return [b"neither head fits"]


def inherited():
    """What a child of the application gets, if somebody starts it without closing descriptors."""
    import subprocess

    return subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, check=True).stdout


def application(environ, start_response):
    path = environ["PATH_INFO"].strip("/")
    if path == "cut_with_child":
        return cut_with_child(start_response)
    if path == "closes_the_client":
        return closes_the_client(start_response)
    if path.startswith("forked_"):
        body = forked(path.removeprefix("forked_"))
        start_response("200 OK", [])
        return [body]
    if path == "generator":
        start_response("200 OK", [])
        return forked_in_a_generator()
    if path == "mixed_heads":
        return mixed_heads(start_response)
    if path == "boom":
        raise RuntimeError("boom")
    if path == "words":
        start_response(Word.STATUS, [(Word.NAME, Word.VALUE)])
        return [b"words"]
    if path in DEEDS:
        DEEDS[path]()
    body = inherited() if path == "inherited" else b"served"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return Close(body) if path == "close_raises" else [body]
