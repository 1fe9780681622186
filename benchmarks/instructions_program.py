"""What instructions.py counts: one core of a worker that serves requests from its channel, in this process."""

import mmap
import os
import socket
import struct
import sys
from pathlib import Path

from wsgimaster import _front, _proto, _serve, worker

sys.path.insert(0, str(Path(__file__).resolve().parent / "apps"))
import hello

# What nginx's stock uwsgi_params and a browser send; REMOTE_PORT is another one for each request.
VARIABLES = {
    "QUERY_STRING": "",
    "REQUEST_METHOD": "GET",
    "CONTENT_TYPE": "",
    "CONTENT_LENGTH": "",
    "REQUEST_URI": "/articles/2026/hello",
    "PATH_INFO": "/articles/2026/hello",
    "DOCUMENT_ROOT": "/usr/share/nginx/html",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REQUEST_SCHEME": "http",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_PORT": "",
    "SERVER_PORT": "8080",
    "SERVER_NAME": "localhost",
    "HTTP_HOST": "localhost:8080",
    "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "HTTP_ACCEPT": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "HTTP_ACCEPT_LANGUAGE": "en-US,en;q=0.5",
    "HTTP_ACCEPT_ENCODING": "gzip, deflate, br",
    "HTTP_CONNECTION": "keep-alive",
}
REQUEST, RETIRE = 1, 3  # MESSAGE_* of _layout.pxd


def message_head(kind: int, number: int, block_bytes: int) -> bytes:
    """MessageHead of _layout.pxd, for a request without a body, from a trusted peer."""
    return struct.pack("<HHIQQqIB3x", kind, 1, block_bytes, number, number, -1, 0, 0)


def main(requests: int) -> None:
    memory = mmap.mmap(-1, _front.board_bytes(1))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    core = _serve.Core(
        theirs.fileno(),
        memory,
        1,
        os.eventfd(0),
        0,
        0,
        hello.application,
        worker.base_environ({"threads": 1, "processes": 2}, 0),
        4.0,
        log_all=True,
        log_4xx=False,
        log_5xx=False,
        complain=print,
        report=print,
    )
    clients = []
    for number in range(1, requests + 1):
        packet = _proto.build({**VARIABLES, "REMOTE_PORT": str(40000 + number)}.items())
        _proto.parse(packet)
        client, served = socket.socketpair()
        with served:
            socket.send_fds(ours, [message_head(REQUEST, number, len(packet) - 4), packet[4:]], [served.fileno()])
        clients.append(client)
    ours.send(message_head(RETIRE, 0, 0))
    core.serve()
    for client in clients:
        if not client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n"):
            raise SystemExit("a request was not answered 200")


if __name__ == "__main__":
    main(int(sys.argv[1]))
