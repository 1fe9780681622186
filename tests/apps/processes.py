"""An application whose processes, threads and end are what tests look at.

At load it does what the environment asks for: FORK_NOTES names a file for notes of Python's fork hooks, THREAD starts
a thread, NARROW leaves one processor, LEAVES is how the worker behaves at its end (WAYS).
"""

import atexit
import ctypes
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

PLAIN = [("Content-Type", "text/plain")]
FOR_EVER = 10_000  # seconds


def wait_for_ever():
    time.sleep(FOR_EVER)


def hold_the_interpreter():
    """Sleep in C without letting go of the interpreter's lock."""
    ctypes.PyDLL(None).sleep(FOR_EVER)


def crash():
    ctypes.string_at(0)


def say_goodbye():
    print("the application says goodbye", flush=True)


WAYS = {
    "sleep": lambda: atexit.register(wait_for_ever),
    "thread": lambda: threading.Thread(target=wait_for_ever).start(),
    "lock": lambda: atexit.register(hold_the_interpreter),
    "blocked": lambda: (
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()),
        atexit.register(hold_the_interpreter),
    ),
    "crash": lambda: atexit.register(crash),
    "goodbye": lambda: atexit.register(say_goodbye),
}


def note(what):
    with Path(os.environ["FORK_NOTES"]).open("a") as notes:
        notes.write(f"{what} {os.getpid()}\n")


if "FORK_NOTES" in os.environ:
    os.register_at_fork(
        before=lambda: note("before"), after_in_parent=lambda: note("parent"), after_in_child=lambda: note("child")
    )
if "THREAD" in os.environ:
    threading.Thread(target=wait_for_ever, daemon=True).start()
if "NARROW" in os.environ:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if "LEAVES" in os.environ:
    WAYS[os.environ["LEAVES"]]()


def hello(_number):
    return "hello"


def allocate(number):
    """Take so many MiB."""
    return len(bytearray(number << 20))


def fork(number):
    """Start up to so many processes, which stay until we end; how many there are when it fails."""
    children = []
    try:
        while len(children) < number:
            child = os.fork()
            if child == 0:
                os.execvp("sleep", ["sleep", "600"])
            children.append(child)
    except OSError as error:
        return [len(children), error.strerror]
    finally:
        CHILDREN.extend(children)
    return [len(children), ""]


def fork_without_exec(_number):
    """A child that is a copy of the worker, and stays until we end; its pid."""
    child = os.fork()
    if child == 0:
        wait_for_ever()
    CHILDREN.append(child)
    return child


CHILDREN = []


def end_children(_number):
    while CHILDREN:
        child = CHILDREN.pop()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


ODD_ENDS = [3, 4, 22, 255, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV, -signal.SIGABRT]


def orphans(number):
    """So many grandchildren whose parent is gone, each with an odd end."""
    for place in range(number):
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                end = ODD_ENDS[place % len(ODD_ENDS)]
                if end < 0:
                    os.kill(os.getpid(), -end)
                os._exit(end)
            os._exit(0)
        os.waitpid(child, 0)


def inherited(_number):
    """What a program gets that is started without closing descriptors, besides 0, 1 and 2."""
    command = ["ls", "-l", "/proc/self/fd"]
    listing = subprocess.run(command, close_fds=False, capture_output=True, text=True, check=True).stdout
    found = re.findall(r" (\d+) -> (.*)", listing)
    return [name for fd, name in found if int(fd) > 2 and not name.startswith("/proc/")]  # what ls itself opens


def stack(_number):
    """KiB of this thread's stack, and what threads of the application's get (0: the system's size)."""
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    attributes, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes)
    libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    libc.pthread_attr_destroy(attributes)
    main = threading.current_thread() is threading.main_thread()
    time.sleep(0.2)  # so that requests of one moment meet in different threads
    return [main, size.value >> 10, threading.stack_size()]


def umask(_number):
    value = os.umask(0)
    os.umask(value)
    return value


AT_LOAD = inherited(0)


def at_load(_number):
    return AT_LOAD


ROUTES = {
    each.__name__: each
    for each in (
        hello,
        allocate,
        fork,
        fork_without_exec,
        end_children,
        orphans,
        inherited,
        at_load,
        stack,
        umask,
    )
}


def application(environ, start_response):
    """/name?number: the function's result as JSON, with the worker's pid."""
    result = ROUTES[environ["PATH_INFO"][1:]](int(environ["QUERY_STRING"] or 0))
    start_response("200 OK", PLAIN)
    return [json.dumps({"pid": os.getpid(), "result": result}).encode()]
