"""An application that says more than anybody reads."""

import os
import signal
import sys


def print_line(environ):
    print("printed for", environ["QUERY_STRING"].partition("-")[0])


def boom(environ):
    raise RuntimeError("boom in the middle")


def die(environ):
    os.kill(os.getpid(), signal.SIGKILL)


def long(environ):
    """Lines as long as a pipe, as soon as the test opens the gate."""
    with open(environ["HTTP_X_FILE"], "a") as file:
        file.write("b")
    with open(environ["HTTP_X_GATE"]):
        pass
    for _ in range(8):
        print(f"{os.getpid()}:{'x' * 65536}:{os.getpid()}", file=getattr(sys, environ["HTTP_X_STREAM"]))


DEEDS = {"/": print_line, "/print": print_line, "/boom": boom, "/die": die, "/long": long}


def application(environ, start_response):
    DEEDS[environ["PATH_INFO"]](environ)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
