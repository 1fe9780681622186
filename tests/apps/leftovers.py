"""An application that leaves something running while it is loaded: what LEFTOVERS names, see DEEDS.

Its peers are in TCP_PORT, UDP_PORT and UNIX_PATH. Comments mark the lines that the log is to name.
"""

import _socket
import _thread
import asyncio
import ctypes
import functools
import gc
import http.client
import json
import os
import socket
import threading

kept = []
original_connect = socket.socket.connect
TCP = ("127.0.0.1", int(os.environ["TCP_PORT"]))


def keep(thing):
    kept.append(thing)
    return thing


def run_for_ever():
    threading.Event().wait()


def tcp():
    keep(socket.socket()).connect(TCP)  # tcp


def tcp_ex():
    keep(socket.socket()).connect_ex(TCP)  # tcp_ex


def tcp6():
    keep(socket.socket(socket.AF_INET6)).connect(("::1", int(os.environ["TCP6_PORT"])))  # tcp6


def unix():
    keep(socket.socket(socket.AF_UNIX)).connect(os.environ["UNIX_PATH"])  # unix


def udp():
    keep(socket.socket(type=socket.SOCK_DGRAM)).connect(("127.0.0.1", int(os.environ["UDP_PORT"])))  # udp


def library():
    """The standard library connects."""
    keep(http.client.HTTPConnection(*TCP)).connect()  # library


def in_c():
    """As libpq and hiredis do: not through socket.socket. Then a default for sockets to come."""
    sock = socket.socket()
    _socket.socket.connect(sock, TCP)
    keep(sock.detach())
    socket.setdefaulttimeout(5)


def twice():
    """One connection, two descriptors."""
    sock = keep(socket.socket())
    sock.connect(TCP)  # twice
    keep(os.dup(sock.fileno()))


def many():
    for _ in range(25):
        keep(socket.socket()).connect(TCP)  # many


def thread():
    threading.Thread(target=run_for_ever, name="refresher", daemon=True).start()  # thread


def odd_thread():
    """A name that would break the line, a partial function."""
    threading.Thread(target=functools.partial(run_for_ever), name="odd\nname", daemon=True).start()  # odd_thread


def raw_thread():
    _thread.start_new_thread(run_for_ever, ())


def many_threads():
    for _ in range(25):
        threading.Thread(target=run_for_ever, daemon=True).start()  # many_threads


def traced_thread():
    """Something installed wraps Thread.start while the application is loaded, and stays."""
    import tracer

    keep(tracer.install())
    thread()


def c_thread():
    libc = ctypes.CDLL(None)
    libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.pause, None)


def own_connect(sock, address):
    return original_connect(sock, address)


def patch():
    socket.socket.connect = own_connect


def nothing():
    pass


def pair():
    keep(socket.socketpair())


def listener():
    sock = keep(socket.socket())
    sock.bind(("127.0.0.1", 0))
    sock.listen()


def unconnected():
    keep(socket.socket())
    keep(socket.socket(type=socket.SOCK_DGRAM)).bind(("127.0.0.1", 0))
    keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))


def loop():
    """asyncio's loop holds a pair of sockets."""
    keep(asyncio.new_event_loop()).run_until_complete(asyncio.sleep(0))


def closed():
    with socket.socket() as sock:
        sock.connect(TCP)


def garbage():
    """Nobody can reach it any more, but it is still open."""
    gc.disable()
    sock = socket.socket()
    sock.connect(TCP)
    cycle = [sock]
    cycle.append(cycle)


def joined():
    for _ in range(50):
        thread = threading.Thread(target=nothing)
        thread.start()
        thread.join()


for name in os.environ["LEFTOVERS"].split():
    globals()[name]()


def state():
    """What an application can see of the server's looking, and whether a worker can connect."""
    with socket.socket() as sock:
        sock.connect(TCP)
    return {
        "connect": f"{socket.socket.connect.__module__}.{socket.socket.connect.__qualname__}"
        if "connect" in vars(socket.socket)
        else "inherited",
        "connect_ex": "connect_ex" in vars(socket.socket),
        "start": threading.Thread.start.__code__.co_filename,
        "blocking": [os.get_blocking(thing) for thing in kept if isinstance(thing, int)],
        "timeout": socket.getdefaulttimeout(),
    }


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(state()).encode()]
