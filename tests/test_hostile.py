"""Applications that harm their server: the master goes on, everybody else is served, and a stop ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from support.client import together, uwsgi
from support.harness import APPS, Server, is_running
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


def test_exceptions_are_answered_without_a_stderr(server: Server) -> None:
    for _ in range(3):
        uwsgi(server.address, "/lose_stderr")
    assert [answer.status for answer in together(6, lambda _: uwsgi(server.address, "/boom"))] == [500] * 6
    server.wait_log("an exception could not be reported")
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
