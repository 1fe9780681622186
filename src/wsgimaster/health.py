"""`health = address`: whether the server lives, and whether it is ready for requests, over HTTP, for Kubernetes and for
load balancers. The master answers, so that workers that are all busy make nobody believe that the server is dead.

    /-/live     200 as long as the master runs
    /-/ready    200 if requests are wanted, else 503 with the reason

Runs in: the master.
"""

import socket
from collections.abc import Callable

from wsgimaster.exchange import Exchange

LONGEST = 8192  # bytes of a request's head
PATIENCE = 5.0  # seconds for it
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def answer(head: bytes, unready: Callable[[], str]) -> tuple[int, str]:
    """(status, body). unready: why the server isn't ready; "" if it is."""
    method, _, rest = head.partition(b" ")
    path, _, version = rest.partition(b"\r\n")[0].partition(b" ")
    if not version.startswith(b"HTTP/1.") or b"\r\n\r\n" not in head:
        return 400, "expected an HTTP request"
    if method not in (b"GET", b"HEAD"):
        return 405, "GET and HEAD are served"
    match path.partition(b"?")[0]:
        case b"/-/live":
            return 200, "live"
        case b"/-/ready":
            why = unready()
            return (503, why) if why else (200, "ready")
    return 404, "there are /-/live and /-/ready"


class Health:
    """Made inside the running loop."""

    def __init__(self, listening: list[socket.socket], unready: Callable[[], str]) -> None:
        self.unready = unready
        self.exchanges = [Exchange(one, b"\r\n\r\n", LONGEST, PATIENCE, self._answer) for one in listening]

    def close(self) -> None:
        for one in self.exchanges:
            one.close()

    async def _answer(self, head: bytes, _: socket.socket) -> bytes:
        if not head:  # a probe of the port
            return b""
        status, body = answer(head, self.unready)
        lines = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            "Content-Type: text/plain; charset=utf-8",
            "Cache-Control: no-store",
            f"Content-Length: {len(body) + 1}",
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", "" if head.startswith(b"HEAD ") else f"{body}\n"]).encode()
