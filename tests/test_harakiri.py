"""Requests that take too long or take their worker with them: what the client gets, and what the log explains."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.client import Answer, Connection, End, cgi, packet, together, uwsgi
from support.harness import APPS, Server, free_port, is_running
from support.wait import wait_until

from wsgimaster.harakiri import until_next_look

Start = Callable[..., Server]


LOOKS = {
    "nothing is near": (0.0, [], 0.1),
    "a deadline far away": (105.0, [], 0.1),
    "a deadline within the next look": (100.05, [], 0.051),
    "a deadline that has just passed": (99.9999, [], 0.001),
    "a kill within the next look": (0.0, [100.02], 0.021),
    "a kill that is past": (0.0, [90.0], 0.1),
}


@pytest.mark.parametrize(("due", "kills", "seconds"), LOOKS.values(), ids=LOOKS)
def test_the_next_look(due: float, kills: list[float], seconds: float) -> None:
    assert until_next_look(due, kills, now=100.0) == pytest.approx(seconds)


FAMILIES = {"unix": "app.sock", "tcp": "127.0.0.1:{port}"}


def options(*more: str, family: str = "unix") -> str:
    address = FAMILIES[family].format(port=free_port())
    return "\n".join([f"socket = {address}", f"pythonpath = {APPS}", "module = stuck", *more]) + "\n"


def identified(answer: Answer, server: Server) -> str:
    """The request's id, which stands in the answer and in the log."""
    name = answer.header("X-Request-Id")
    assert name is not None, answer
    assert re.fullmatch("[0-9a-f]{16}", name)
    assert answer.text.endswith(f"\nrequest id: {name}\n")
    server.wait_log(name)
    return name


STUCK = {
    "in a system call": "stuck_in_sleep",
    "in a Python loop": "stuck_in_a_loop",
    "on a lock": "stuck_on_a_lock",
    "in C, holding the GIL": "stuck_with_the_gil",
    "in a read": "stuck_in_a_read",
    "on a thread": "stuck_in_a_thread",
}


@pytest.mark.parametrize("mode", ["eager", "lazy-apps"])
@pytest.mark.parametrize("where", STUCK.values(), ids=STUCK)
def test_a_stuck_request_is_answered_504_and_explained(start: Start, where: str, mode: str) -> None:
    server = start(options("harakiri = 1", *(["lazy-apps = true"] if mode == "lazy-apps" else [])))
    (worker,) = server.wait_workers(1)
    began = time.monotonic()
    answer = uwsgi(server.address, f"/{where}")
    assert time.monotonic() - began >= 1.0  # never early
    assert answer.status_line == "HTTP/1.1 504 Gateway Timeout"
    name = identified(answer, server)
    server.wait_log(rf"DAMN ! worker 1 \(pid: {worker.pid}\) died, killed by signal 9 :\(")
    log = server.log()
    assert f"*** HARAKIRI ON WORKER 1 (pid: {worker.pid}, try: 1, graceful: no) ***" in log
    assert "HARAKIRI !!! worker 1 status !!!" in log
    assert re.search(rf"HARAKIRI \[core 0\] 127\.0\.0\.1 - GET /{where} since \d+", log)
    assert "HARAKIRI triggered by worker 1 core 0 !!!" in log
    assert re.search(rf"request {name} \(GET /{where} from 127.0.0.1\) was running for 1\.\d+ s .*; answered 504", log)
    assert re.search(rf'File ".*stuck\.py", line \d+ in {where}', log)
    assert uwsgi(server.address, "/quick").status == 200


def test_all_threads_are_shown(start: Start) -> None:
    server = start(options("harakiri = 1"))
    assert uwsgi(server.address, "/stuck_in_a_thread").status == 504
    server.wait_log(r"traceback of all threads of worker 1")
    server.wait_log(r"line \d+ in stuck_in_sleep")


def test_verbose_adds_what_the_kernel_knows(start: Start) -> None:
    server = start(options("harakiri = 1", "harakiri-verbose = true"))
    assert uwsgi(server.address, "/stuck_in_sleep").status == 504
    server.wait_log(r"HARAKIRI: -- syscall> \d+ ")
    server.wait_log(r"HARAKIRI: -- wchan> \w+")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_504_survives_an_unread_upload(start: Start, family: str) -> None:
    server = start(options("harakiri = 1", family=family))
    answer = uwsgi(server.address, "/stuck_in_sleep", method="POST", body=bytes(5_000_000))
    assert (answer.status, answer.end) == (504, End.EOF)
    identified(answer, server)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_504_survives_a_request_that_comes_back_after_it(start: Start, family: str) -> None:
    """C code that a signal interrupts goes on, and its answer finds the connection half closed."""
    server = start(options("harakiri = 1", family=family))
    answer = uwsgi(server.address, "/comes_back", method="POST", body=bytes(20_000_000))
    assert (answer.status, answer.end) == (504, End.EOF)
    server.wait_log(r"was running for .*; answered 504")
    server.wait_log(r"/comes_back => generated 0 bytes in \d+ msecs \(HTTP/1.1 504\)")


def test_a_dump_that_kills_the_worker_does_not_end_harakiri(start: Start) -> None:
    """The traceback of all threads can crash a process: the next ones are ended all the same."""
    server = start(options("harakiri = 1", "processes = 1"))
    for _ in range(2):
        assert uwsgi(server.address, "/stuck_and_dumps_kill").status == 504
        assert uwsgi(server.address, "/quick").status == 200
    server.wait_log("DAMN ! worker 1", 2)
    assert "NO MERCY" not in server.log()
    assert "defect" not in server.log()


def test_threads_that_outlast_the_mercy_are_shown_before_they_die(start: Start) -> None:
    server = start(options("threads = 2", "harakiri = 1", "worker-reload-mercy = 2"))
    began = time.monotonic()

    def call(number: int) -> int:
        if number == 0:
            return uwsgi(server.address, "/stuck_in_sleep").status
        later(began, 0.9)
        return uwsgi(server.address, "/stuck_on_a_lock").status

    assert together(2, call) == [504, 504]
    server.wait_log(r"traceback of all threads of worker 1")


def later(began: float, seconds: float) -> None:
    wait_until(lambda: time.monotonic() - began > seconds)


def test_neighbours_finish_before_the_worker_dies(start: Start, tmp_path: Path) -> None:
    """One of four threads is stuck; the others began a second later and end when it has been answered."""
    server = start(options("threads = 4", "harakiri = 2"))
    (worker,) = server.wait_workers(1)
    opened, began = tmp_path / "gate", time.monotonic()

    def call(number: int) -> Answer:
        if number == 0:
            answer = uwsgi(server.address, "/stuck_in_sleep")
            opened.touch()
            return answer
        later(began, 1.0)
        return uwsgi(server.address, f"/gate?{opened}")

    assert [answer.status for answer in together(4, call)] == [504, 200, 200, 200]
    server.wait_log(rf"DAMN ! worker 1 \(pid: {worker.pid}\) died, killed by signal 9")
    assert uwsgi(server.address, "/quick").status == 200


def test_the_replacement_serves_while_the_stuck_worker_waits_for_its_neighbours(start: Start, tmp_path: Path) -> None:
    server = start(options("threads = 2", "harakiri = 3"))
    (worker,) = server.wait_workers(1)
    opened, began = tmp_path / "gate", time.monotonic()

    def call(number: int) -> Answer:
        if number == 1:
            later(began, 1.5)
            return uwsgi(server.address, f"/gate?{opened}")
        answer = uwsgi(server.address, "/stuck_in_sleep")
        assert int(uwsgi(server.address, "/quick").text) != worker.pid
        assert is_running(worker.pid)
        opened.touch()
        return answer

    assert [answer.status for answer in together(2, call)] == [504, 200]


def test_every_stuck_thread_is_answered_and_has_its_own_traceback(start: Start) -> None:
    server = start(options("threads = 4", "harakiri = 1"))
    places = ["stuck_in_sleep", "stuck_in_a_read", "stuck_on_a_lock", "stuck_in_a_thread"]
    answers = together(4, lambda number: uwsgi(server.address, f"/{places[number]}"))
    assert [answer.status for answer in answers] == [504] * 4
    server.wait_log("DAMN ! worker 1")
    for place, answer in zip(places, answers, strict=True):
        (part,) = re.findall(
            rf"request {answer.header('X-Request-Id')} .*\n((?:.*\n)*?)HARAKIRI triggered", server.log()
        )
        assert set(re.findall(r"stuck\.py\", line \d+ in (stuck_\w+)", part)) == {place}
    assert uwsgi(server.address, "/quick").status == 200


def test_threads_that_block_all_signals_are_answered_and_shown(start: Start) -> None:
    server = start(options("threads = 2", "harakiri = 1"), env={"STUCK_BLOCKS": "yes"})
    assert uwsgi(server.address, "/stuck_in_sleep").status == 504
    server.wait_log(r"line \d+ in stuck_in_sleep")


def test_the_answer_to_a_head_request_has_no_body(start: Start) -> None:
    server = start(options("harakiri = 1", "dispatch = push"))
    for path, status in (("/stuck_in_sleep", 504), ("/stop", 504), ("/kill", 502), ("/crash", 502)):
        answer = uwsgi(server.address, path, method="HEAD")
        assert (answer.status, answer.body) == (status, b"")
        assert answer.header("X-Request-Id")


def test_a_worker_that_is_stopped_in_its_request(start: Start) -> None:
    """No handler of its own runs, so the master answers."""
    server = start(options("harakiri = 1", "dispatch = push"))
    answer = uwsgi(server.address, "/stop")
    assert answer.status == 504
    identified(answer, server)
    assert uwsgi(server.address, "/quick").status == 200


def test_a_worker_that_is_stopped_in_a_request_that_it_pulled(start: Start) -> None:
    """Nobody else holds the client's descriptor: it sees the end, from which a web server makes a 502."""
    server = start(options("harakiri = 1"))

    def pulled() -> bool:
        """A worker that isn't at the door in that moment is pushed the request, and then the master answers."""
        assert uwsgi(server.address, "/quick").status == 200  # the master queues what comes before a worker is ready
        answer = uwsgi(server.address, "/stop")
        assert (answer.status_line[9:12], answer.end) in (("", End.EOF), ("504", End.EOF))
        return not answer.status_line

    wait_until(pulled)
    line = r"request \w{16} \(GET /stop from 127.0.0.1\) got no answer, its connection was closed: its worker died"
    server.wait_log(line)
    assert uwsgi(server.address, "/quick").status == 200


def test_a_request_that_a_stopped_worker_never_began_is_served_by_its_replacement(start: Start) -> None:
    server = start(options("harakiri = 1"))
    (worker,) = server.wait_workers(1)
    uwsgi(server.address, "/quick")  # stopped before it is ready, it would get none
    wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_SLEEPING)  # not before the end of this one
    os.kill(worker.pid, signal.SIGSTOP)
    answer = uwsgi(server.address, "/quick")
    assert answer.status == 200
    assert int(answer.text) != worker.pid
    server.wait_log("was not even begun by its worker")


def test_a_stopped_worker_whose_request_went_to_another_is_replaced(start: Start) -> None:
    server = start(options("processes = 2", "harakiri = 3"))
    (_, victim), _ = server.wait_workers(2)
    wait_until(lambda: len({answer.text for answer in together(8, lambda _: uwsgi(server.address, "/quick"))}) == 2)
    os.kill(victim, signal.SIGSTOP)

    def a_request_went_to_the_stopped_one() -> bool:
        assert {answer.status for answer in together(4, lambda _: uwsgi(server.address, "/quick"))} == {200}
        return "had not begun its request" in server.log()

    wait_until(a_request_went_to_the_stopped_one)
    server.wait_log(rf"worker \d \(pid: {victim}\) has not stirred for 3 s")
    wait_until(lambda: not is_running(victim))
    server.wait_workers(2)


def test_an_answer_that_had_begun_is_visibly_cut(start: Start) -> None:
    server = start(options("harakiri = 1", family="tcp"))
    answer = uwsgi(server.address, "/half_an_answer")
    assert (answer.status, answer.body, answer.end) == (200, b"half", End.RESET)
    server.wait_log("its answer begun")


ENDINGS = {"a list": "close_never_ends", "a generator": "generator_never_ends"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", ENDINGS.values(), ids=ENDINGS)
def test_a_complete_answer_stays_whole_although_the_request_never_ends(start: Start, path: str, family: str) -> None:
    server = start(options("harakiri = 1", family=family))
    answer = uwsgi(server.address, f"/{path}")
    assert (answer.status, answer.body, answer.end) == (200, b"complete", End.EOF)
    server.wait_log("its answer was complete")
    server.wait_log("DAMN ! worker 1")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_complete_answer_stays_whole_although_its_worker_dies_after_it(start: Start, family: str) -> None:
    server = start(options(family=family))
    answer = uwsgi(server.address, "/dies_in_close")
    assert (answer.status, answer.body, answer.end) == (200, b"complete", End.EOF)
    server.wait_log("was answered, but not over: its worker died")


def test_harakiri_counts_from_the_start_of_the_request_not_from_its_arrival(start: Start) -> None:
    """The second one waits for the first one's whole deadline and then has all of its own."""
    server = start(options("harakiri = 2"))
    with Connection(server.address) as stuck:
        stuck.send(packet(cgi("/stuck_in_sleep")))
        assert [answer.status for answer in together(3, lambda _: uwsgi(server.address, "/quick"))] == [200] * 3
        assert stuck.answer().status == 504


def test_below_the_queue_threshold_nobody_is_killed(start: Start, tmp_path: Path) -> None:
    server = start(options("harakiri = 1", "harakiri-queue-threshold = 2"))
    opened = tmp_path / "gate"
    with Connection(server.address) as slow:
        slow.send(packet(cgi(f"/gate?{opened}")))
        server.wait_log("HARAKIRI: Skipping harakiri on worker 1: 0 requests are waiting")
        opened.touch()
        assert slow.answer().status == 200
    with Connection(server.address) as stuck:
        stuck.send(packet(cgi("/stuck_in_sleep")))
        assert [answer.status for answer in together(2, lambda _: uwsgi(server.address, "/quick"))] == [200, 200]
        assert stuck.answer().status == 504


# the soft way


def test_a_soft_end_runs_finally_and_keeps_the_worker(start: Start) -> None:
    server = start(options("harakiri = 1", "harakiri-graceful-timeout = 20"))
    (worker,) = server.wait_workers(1)
    answer = uwsgi(server.address, "/with_finally")
    assert answer.status == 504
    identified(answer, server)
    server.wait_log("finally has run")
    server.wait_log(r"RequestTimeout: the request has run for longer than harakiri")
    assert f"*** HARAKIRI ON WORKER 1 (pid: {worker.pid}, try: 1, graceful: yes) ***" in server.log()
    assert int(uwsgi(server.address, "/quick").text) == worker.pid
    assert "DAMN" not in server.log()


def test_who_swallows_the_soft_end_is_killed(start: Start) -> None:
    server = start(options("harakiri = 1", "harakiri-graceful-timeout = 1"))
    (worker,) = server.wait_workers(1)
    answer = uwsgi(server.address, "/swallows")
    assert answer.status == 504
    identified(answer, server)
    server.wait_log("swallowed")
    server.wait_log(rf"HARAKIRI ON WORKER 1 \(pid: {worker.pid}, try: 2, graceful: no\)")
    server.wait_log("DAMN ! worker 1")


def test_an_application_may_have_its_own_handler(start: Start) -> None:
    server = start(
        options("harakiri = 1", "harakiri-graceful-timeout = 20", "harakiri-graceful-signal = 10"),
        env={"STUCK_OWN_HANDLER": "yes"},
    )
    assert uwsgi(server.address, "/stuck_in_sleep").status == 500
    server.wait_log("RuntimeError: the application's own handler")


def test_the_signal_of_a_soft_end_means_nothing_from_others(start: Start, tmp_path: Path) -> None:
    """systemd and Ctrl-C send SIGTERM to the whole group."""
    server = start(options("harakiri = 60", "harakiri-graceful-timeout = 20"))
    (worker,) = server.wait_workers(1)
    opened = tmp_path / "gate"
    with Connection(server.address) as slow:
        slow.send(packet(cgi(f"/gate?{opened}")))
        os.kill(worker.pid, signal.SIGTERM)
        opened.touch()
        assert slow.answer().status == 200


def test_with_threads_there_is_no_soft_end_and_a_warning_says_so(start: Start) -> None:
    server = start(options("threads = 2", "harakiri = 1", "harakiri-graceful-timeout = 20"))
    server.wait_log("harakiri-graceful-timeout works with threads = 1 only")
    assert uwsgi(server.address, "/with_finally").status == 504
    server.wait_log("DAMN ! worker 1")
    assert "finally has run" not in server.log()


# death


DEATHS = {
    "a segmentation fault": ("crash", ", killed by signal 11", True),
    "a stack overflow": ("overflow", ", killed by signal 11", True),
    "abort()": ("abort", ", killed by signal 6", True),
    "exit in the middle of the request": ("leave", "", False),
    "kill -9": ("kill", ", killed by signal 9", False),
}


@pytest.mark.parametrize(("dispatch", "threads"), [("push", 1), ("push", 4), ("auto", 1)])
@pytest.mark.parametrize(("deed", "how", "handler_runs"), DEATHS.values(), ids=DEATHS)
def test_a_request_that_takes_its_worker_along(
    start: Start, deed: str, how: str, handler_runs: bool, threads: int, dispatch: str
) -> None:
    server = start(options(f"threads = {threads}", f"dispatch = {dispatch}"))
    assert uwsgi(server.address, "/quick").status == 200
    (worker,) = server.wait_workers(1)
    answer = uwsgi(server.address, f"/{deed}")
    if dispatch == "push" or handler_runs:
        assert (answer.status_line, answer.end) == ("HTTP/1.1 502 Bad Gateway", End.EOF)
        name, what = identified(answer, server), "was answered 502"
    else:  # it was pulled, and nobody else holds the client's descriptor
        assert (answer.status_line, answer.end) == ("", End.EOF)
        name, what = r"\w{16}", "got no answer, its connection was closed"
    server.wait_log(rf"DAMN ! worker 1 \(pid: {worker.pid}\) died{how} :\(")
    server.wait_log(rf"worker 1 core \d: request {name} \(GET /{deed} from 127.0.0.1\) {what}: its worker died")
    assert uwsgi(server.address, "/quick").status == 200
    if handler_runs:
        assert re.search(
            rf"worker 1 \(pid: {worker.pid}\) left a traceback:\n(.*\n)+?.* in (string_at|{deed}|deeper)", server.log()
        )


def test_a_child_of_the_application_that_crashes_is_not_its_worker(start: Start) -> None:
    server = start(options())
    answer = uwsgi(server.address, "/crash_in_a_child")
    assert (answer.status, int(answer.text)) == (200, server.wait_workers(1)[0].pid)


def test_a_request_over_limit_as_is_an_exception(start: Start) -> None:
    server = start(options("limit-as = 2048"))
    (worker,) = server.wait_workers(1)
    assert uwsgi(server.address, "/out_of_memory").status == 500
    assert int(uwsgi(server.address, "/quick").text) == worker.pid
    server.wait_log("MemoryError")
