"""Applications that harm their server: the master goes on, everybody else is served, and a stop ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from support.client import Connection, End, cgi, packet, together, uwsgi
from support.harness import APPS, COMMAND, Server, free_port, is_running
from support.wait import wait_until

Start = Callable[..., Server]


@pytest.fixture
def server(start: Start) -> Server:
    server = start(
        f"socket = app.sock\npythonpath = {APPS}\nmodule = hostile\nprocesses = 3\nworker-reload-mercy = 5\n"
    )
    server.wait_workers(3)
    return server


def serves(server: Server) -> bool:
    return [answer.body for answer in together(12, lambda _: uwsgi(server.address))] == [b"served"] * 12


DEEDS = {
    "fills the scoreboard": "/scribble",
    "shuts its channels down": "/shut_channels",
    "fills the doorbell": "/fill_doorbell",
    "closes all descriptors": "/close_all",
    "loses sys.stderr": "/lose_stderr",
    "uses up its descriptors": "/keep_all_descriptors",
    "has an alarm ring late": "/alarm_later",
}


@pytest.mark.parametrize("path", DEEDS.values(), ids=DEEDS)
def test_an_application_that(server: Server, path: str) -> None:
    uwsgi(server.address, path)
    for _ in range(3):
        assert serves(server)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0


def test_workers_start_again_after_the_scoreboard_was_scribbled_over(server: Server) -> None:
    uwsgi(server.address, "/scribble")
    for worker in server.workers():
        os.kill(worker.pid, signal.SIGKILL)
    server.wait_log("DAMN ! worker", 3)
    server.wait_workers(3)
    assert serves(server)


ENDS = {
    "exits": ("/forked_exits", b"child ended with 7"),
    "raises": ("/forked_raises", b"child ended with 1"),
    "returns": ("/forked_returns", b"child ended with 0"),
    "goes on with a generator": ("/generator", b"begun, from the parent"),
}


@pytest.mark.parametrize(("path", "body"), ENDS.values(), ids=ENDS)
def test_a_child_that_the_application_forks_is_no_second_worker(server: Server, path: str, body: bytes) -> None:
    """It ends where the request's code ends, and answers nobody."""
    before = server.workers()
    assert uwsgi(server.address, path).body == body
    assert serves(server)
    assert server.workers() == before
    assert path != "/forked_raises" or "RuntimeError: the child's" in server.log()


def test_an_answer_whose_descriptor_the_application_closed_is_visibly_cut(start: Start) -> None:
    server = start(f"socket = 127.0.0.1:{free_port()}\npythonpath = {APPS}\nmodule = hostile\n")
    answer = uwsgi(server.address, "/closes_the_client")
    assert (answer.body, answer.end) == (b"half", End.RESET)


def test_clients_do_not_take_the_descriptors_of_the_next_worker(start: Start) -> None:
    """More half heads than there are descriptors, and then the only worker dies."""
    text = f"socket = app.sock\npythonpath = {APPS}\nmodule = hostile\nmax-fd = 120\nsocket-timeout = 60\n"
    server = start(text, command=["prlimit", "--nofile=120:120", *COMMAND])
    (old,) = server.wait_workers(1)
    with ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(Connection(server.address)).send(packet(cgi("/"))[:9])
        server.wait_log("no connections are accepted for a moment")
        for _ in range(3):
            (old,) = server.wait_workers(1)
            os.kill(old.pid, signal.SIGKILL)
            server.wait_log(rf"DAMN ! worker 1 \(pid: {old.pid}\)")
            assert server.wait_workers(1) != [old]
    assert serves(server)
    assert "could not be forked" not in server.log()


def test_exceptions_are_answered_without_a_stderr(server: Server) -> None:
    uwsgi(server.address, "/lose_stderr")

    def it_was_met() -> bool:
        assert [answer.status for answer in together(6, lambda _: uwsgi(server.address, "/boom"))] == [500] * 6
        return "an exception could not be reported" in server.log()

    wait_until(it_was_met)
    assert serves(server)


def test_a_late_alarm_is_told_and_the_worker_stays(server: Server) -> None:
    before = server.workers()
    uwsgi(server.address, "/alarm_later")
    server.wait_log("RuntimeError: a late alarm")
    assert serves(server)
    assert server.workers() == before


def test_an_exception_in_close_leaves_the_answer_whole(server: Server) -> None:
    answer = uwsgi(server.address, "/close_raises")
    assert (answer.status, answer.body) == (200, b"served")
    server.wait_log("RuntimeError: close\\(\\) failed")


def test_subclasses_of_str_are_headers(server: Server) -> None:
    answer = uwsgi(server.address, "/words")
    assert (answer.status_line, answer.headers) == ("HTTP/1.1 200 OK", [("X-Word", "a subclass of str")])


def test_a_wrong_head_is_not_mixed_with_the_right_one_before_it(server: Server) -> None:
    answer = uwsgi(server.address, "/mixed_heads")
    assert (answer.status, answer.header("X-First"), answer.header("X-Second")) == (500, None, None)


def test_a_cut_is_seen_although_a_child_holds_the_connection(server: Server) -> None:
    child = int(uwsgi(server.address, "/cut_with_child").body)
    assert is_running(child)
    os.kill(child, signal.SIGKILL)


def test_children_of_the_application_get_none_of_our_descriptors(server: Server) -> None:
    found = uwsgi(server.address, "/inherited").text
    assert "scoreboard" not in found
    assert "eventfd" not in found
    assert "socket" not in found


def test_a_start_that_could_not_watch_its_workers_is_refused(start: Start) -> None:
    text = f"socket = app.sock\npythonpath = {APPS}\nmodule = hostile\nprocesses = 30\nthreads = 10\nmax-fd = 300\n"
    server = start(text, ready="nothing")
    assert server.wait_exit() == 1
    assert "need 842 descriptors, the limit is 300" in server.log()
    wait_until(lambda: not server.running(), 5)
