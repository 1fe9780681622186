"""The application that the scenarios hurt. Each path does one bad thing; any other path says hello.

What it notes in the directory CHAOS_NOTES is what the scenarios count by, since the client's view alone can't tell
who executed a request, and how often:

    ready.PID    "import" or "fork", and when (seconds, monotonic): this process has finished loading
    begun.PID    one line for each request with an `id`: the id and when the application began with it
    ended.PID    the same for its end

CHAOS_IMPORT_SECONDS makes the import slow, CHAOS_NATIVE is the compiled native.c.
"""

import contextlib
import ctypes
import json
import os
import sys
import threading
import time

NOTES = os.environ["CHAOS_NOTES"]
NATIVE = ctypes.PyDLL(os.environ["CHAOS_NATIVE"])  # PyDLL keeps the GIL during a call

files = {}  # of this process: by name and pid
routes = {}


def route(function):
    """Serve the path that the function's name spells."""
    routes[f"/{function.__name__}"] = function
    return function


def note(kind, text):
    key = (kind, os.getpid())
    if key not in files:
        files[key] = os.open(f"{NOTES}/{kind}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(files[key], f"{text} {time.monotonic():.6f}\n".encode())


def query(environ):
    pairs = (item.partition("=") for item in environ.get("QUERY_STRING", "").split("&") if item)
    return {name: value for name, _, value in pairs}


def application(environ, start_response):
    asked = query(environ)
    number = asked.get("id", "")
    if number:
        note("begun", number)
    body = routes.get(environ.get("PATH_INFO", ""), hello)(asked) or number or "hello"
    if number:
        note("ended", number)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]


def unwanted(environ, start_response):
    """A second callable, which nobody may choose from outside."""
    note("executed", "callable")
    return application(environ, start_response)


def hello(asked):
    return ""


@route
def work(asked):
    time.sleep(float(asked.get("ms", 0)) / 1000)


# stuck for ever


@route
def stuck_sleep(asked):
    time.sleep(1000)


@route
def stuck_loop(asked):
    while True:
        pass


@route
def stuck_lock(asked):
    lock = threading.Lock()
    with lock:
        lock.acquire()


@route
def stuck_native(asked):
    NATIVE.hold()


# dying


@route
def segfault(asked):
    NATIVE.crash()


@route
def abort(asked):
    os.abort()


@route
def leave(asked):
    os._exit(3)


hoard = []


@route
def grow(asked):
    """Hold so many MiB from now on."""
    if not hoard:
        hoard.append(bytearray(b"x") * (int(asked["mb"]) << 20))
    work(asked)


@route
def eat(asked):
    """More memory than `limit-as` allows."""
    return str(len(bytearray(4 << 30)))


# taking what is scarce


@route
def hog(asked):
    """Open files until there is no descriptor left; give them back after `ms` milliseconds, here or in a thread."""
    taken = []

    def take():
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))

    def hold():
        end = time.monotonic() + float(asked["ms"]) / 1000
        while time.monotonic() < end:
            take()  # also what others give back meanwhile, the descriptor of this request's client for one
            time.sleep(0.001)
        for fd in taken:
            os.close(fd)

    take()
    number = len(taken)
    if "thread" in asked:
        threading.Thread(target=hold).start()
    else:
        hold()
    return str(number)


@route
def long_lines(asked):
    """Lines of 64 KiB, each of one letter and with its number at both ends."""
    for number in range(int(asked["lines"])):
        name = f"{os.getpid()}-{number:04d}"
        letter = "abcdefghijklmnop"[number % 16]
        print(f"<{name}:{letter * (65536 - 2 * len(name) - 5)}:{name}>", flush=True)


@route
def complain(asked):
    print(f"complaint {asked['text']}", file=sys.stderr, flush=True)


@route
def orphans(asked):
    """Children's children that end later, alone, with every kind of status."""
    for number in range(int(asked["count"])):
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                time.sleep(0.2)
                if number % 10 == 9:
                    os.kill(os.getpid(), (9, 11, 15)[number // 10 % 3])
                os._exit((22, 1, 3, 137, 255, 17, 30, 64, 128)[number % 9])
            os._exit(0)
        os.waitpid(child, 0)


@route
def state(asked):
    """What a packet may not change."""
    names = {name: value for name, value in os.environ.items() if name.startswith("HOSTILE")}
    return json.dumps({"cwd": os.getcwd(), "environment": names, "path": sys.path})


def mark(how):
    with open(f"{NOTES}/new.{os.getpid()}", "w") as file:
        file.write(f"{how} {time.monotonic():.6f}\n")
    os.rename(f"{NOTES}/new.{os.getpid()}", f"{NOTES}/ready.{os.getpid()}")


os.register_at_fork(after_in_child=lambda: mark("fork"))
time.sleep(float(os.environ.get("CHAOS_IMPORT_SECONDS", 0)))
mark("import")
