"""What instructions.py counts, and starts: one core of a worker that serves requests from its channel."""

import sys

import hello
from support import lone_core

from wsgimaster import _proto, worker

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


def main(count: int) -> None:
    requests = [list({**VARIABLES, "REMOTE_PORT": str(40000 + number)}.items()) for number in range(count)]
    for variables in requests:
        _proto.parse(_proto.build(variables))
    environ = worker.base_environ({"threads": 1, "processes": 2}, 0)
    answers, _ = lone_core.serve(requests, hello.application, environ)
    if not all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers):
        raise SystemExit("a request was not answered 200")


if __name__ == "__main__":
    main(int(sys.argv[1]))
