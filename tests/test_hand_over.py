"""A core gives a connection to the master, and the kernel won't have it: no client is left without an answer.

ETOOMANYREFS: the user has more descriptors on their way than RLIMIT_NOFILE allows, whoever sent them (unix(7)).
"""

import errno
import os
import re
import socket

import pytest
from support import syscalls
from support.stepped_core import SteppedCore

from wsgimaster._proto import build

pytestmark = pytest.mark.skipif(not syscalls.is_possible(), reason="needs seccomp(2)")

HALF = build([("PATH_INFO", "/")])[:9]
HANDED = 8  # MESSAGE_* of _layout.pxd
PASSING = [errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS]


def names(errors):
    return [errno.errorcode[error] for error in errors]


@pytest.fixture
def core(tmp_path):
    core = SteppedCore(tmp_path)
    yield core
    core.close()


def fail_until_it_sleeps(core, error):
    """From a message on; how many have failed."""
    core.calls.fail(error)
    count = 1
    while (call := core.calls.next()) != "epoll_wait":
        if call == "sendmsg":
            core.calls.fail(error)
            count += 1
    return count


@pytest.mark.parametrize("error", PASSING, ids=names(PASSING))
def test_for_a_moment(core, error):
    with core.connect(HALF) as client:
        for _ in range(3):
            core.calls.until("sendmsg")
            core.calls.fail(error)
        core.calls.until("epoll_wait")
        message, (fd,), _, _ = socket.recv_fds(core.channel, 1000, 1)
        assert (message[0], message[64:]) == (HANDED, HALF)
        with socket.socket(fileno=fd) as handed:
            handed.sendall(b"the master's")
        assert client.recv(100) == b"the master's"
        assert client.recv(100) == b""  # the core has closed its own
    assert core.log() == ""


ERRORS = [*PASSING, errno.EPIPE]  # EPIPE: the application has shut the channel down


@pytest.mark.parametrize("error", ERRORS, ids=names(ERRORS))
def test_for_good(core, error):
    """The core answers itself, and goes on."""
    with core.connect(HALF) as client:
        core.calls.until("sendmsg")
        client.sendall(b"more")  # unread, it would destroy the answer
        assert (fail_until_it_sleeps(core, error) > 10) is (error in PASSING)
        answer = b"".join(iter(lambda: client.recv(1000), b""))
        with pytest.raises(BrokenPipeError):
            client.send(b"to nobody")
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, *headers = head.decode().split("\r\n")
    headers = dict(header.split(": ") for header in headers)
    assert status_line == "HTTP/1.1 503 Service Unavailable"
    assert (headers["Content-Length"], headers["Retry-After"]) == (str(len(body)), "1")
    (line,) = core.log().splitlines()
    assert re.fullmatch(rf"request {headers['X-Request-Id']}: .*{re.escape(os.strerror(error))}.*503", line)
    with core.connect() as client:
        core.calls.until("poll")
        assert client.recv(1000).endswith(b"served")


def test_an_answer_that_is_out_stays_as_it_is(core):
    """Only what the client still sends would have been the master's to read."""
    request = build([("PATH_INFO", "/"), ("CONTENT_LENGTH", "1000")])
    with core.connect(request + b"b" * 500) as client:
        core.calls.until("sendmsg")
        fail_until_it_sleeps(core, errno.ETOOMANYREFS)
        answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\nserved")
    assert os.strerror(errno.ETOOMANYREFS) in core.log()
