"""Recycling with real processes: the replacement is ready before the old worker leaves, and no request notices."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.client import Connection, cgi, packet, together, uwsgi
from support.harness import APPS, Server, is_running
from support.wait import wait_until

Start = Callable[..., Server]


def options(*more: str) -> str:
    return "\n".join(["socket = app.sock", f"pythonpath = {APPS}", "module = ageing", *more]) + "\n"


def pid_of(server: Server, path: str = "/") -> int:
    answer = uwsgi(server.address, path)
    assert answer.status == 200, answer
    return int(answer.text)


def another_than(server: Server, pid: int) -> int:
    """Ask until another process answers."""
    return wait_until(lambda: (found := pid_of(server)) != pid and found)


@pytest.mark.parametrize("mode", ["eager", "lazy-apps = true"])
def test_max_requests(start: Start, mode: str) -> None:
    server = start(options("max-requests = 5", "min-worker-lifetime = 0", *([mode] if "=" in mode else [])))
    (old,) = server.wait_workers(1)
    new = another_than(server, old.pid)
    server.wait_log(
        r"worker 1 has served \d+ requests \(its max-requests is 5\); it leaves when its replacement is ready"
    )
    server.wait_log(rf"\.\.\.The work of process {old.pid} is done\. Seeya!")
    server.wait_log(rf"worker 1 buried \(pid: {old.pid}\)")
    assert server.wait_workers(1)[0] == (1, new)


def test_many_workers_are_recycled_under_load_without_an_error(start: Start) -> None:
    server = start(options("processes = 4", "threads = 2", "max-requests = 20", "min-worker-lifetime = 0"))

    def call(_: int) -> set[int]:
        return {uwsgi(server.address, "/").status for _ in range(150)}

    assert set().union(*together(8, call)) == {200}
    server.wait_log(r"Seeya!", 3)
    assert "DAMN" not in server.log()


def test_the_old_worker_serves_until_the_new_one_is_ready(start: Start, tmp_path: Path) -> None:
    """The replacement is held up while it loads the application: the old one goes on, far beyond its limit."""
    gate = tmp_path / "gate"
    text = options("lazy-apps = true", "max-requests = 3", "min-worker-lifetime = 0")
    server = start(text, env={"AGEING_GATE": str(gate)})
    (old,) = server.wait_workers(1)
    seen = server.log_from_here()
    wait_until(lambda: pid_of(server) == old.pid and "spawned uWSGI worker 1" in seen.text())
    assert {pid_of(server) for _ in range(20)} == {old.pid}
    gate.touch()
    another_than(server, old.pid)


def test_the_old_worker_finishes_its_request(start: Start, tmp_path: Path) -> None:
    server = start(options("threads = 2", "max-requests = 5", "min-worker-lifetime = 0"))
    (old,) = server.wait_workers(1)
    gate = tmp_path / "gate"
    with Connection(server.address) as slow:
        slow.send(packet(cgi(f"/gate?{gate}")))
        another_than(server, old.pid)
        server.wait_log("Seeya!")
        assert is_running(old.pid)
        gate.touch()
        assert int(slow.answer().text) == old.pid
    server.wait_log(rf"worker 1 buried \(pid: {old.pid}\)")


def test_an_old_worker_that_does_not_finish_is_killed_after_the_mercy(start: Start) -> None:
    lines = ["threads = 2", "max-requests = 5", "min-worker-lifetime = 0", "worker-reload-mercy = 1"]
    server = start(options(*lines, "dispatch = push"))
    (old,) = server.wait_workers(1)
    with Connection(server.address) as slow:
        slow.send(packet(cgi("/gate?/nowhere")))
        another_than(server, old.pid)
        assert slow.answer().status == 502
    server.wait_log(rf"worker 1 \(pid: {old.pid}\) is taking too much time to die\.\.\.NO MERCY !!!")


def test_max_worker_lifetime(start: Start) -> None:
    server = start(options("max-worker-lifetime = 1", "min-worker-lifetime = 0"))
    (old,) = server.wait_workers(1)
    server.wait_log(r"worker 1 lifetime reached, it was running for \d second\(s\)")
    another_than(server, old.pid)


MEMORY = {
    "reload-on-rss": ("reload-on-rss = 200", r"worker 1 holds \d+ bytes of memory \(reload-on-rss = 200\)"),
    "reload-on-as": ("reload-on-as = 400", r"worker 1 holds \d+ bytes of address space \(reload-on-as = 400\)"),
    "evil-reload-on-rss": (
        "evil-reload-on-rss = 200",
        r"\*\*\* EVIL RELOAD ON WORKER 1 RSS: \d+ \(pid: {pid}\) \*\*\*",
    ),
    "evil-reload-on-as": (
        "evil-reload-on-as = 400",
        r"\*\*\* EVIL RELOAD ON WORKER 1 ADDRESS SPACE: \d+ \(pid: {pid}\)",
    ),
}


@pytest.mark.parametrize(("option", "line"), MEMORY.values(), ids=MEMORY)
def test_memory(start: Start, option: str, line: str) -> None:
    server = start(options(option, "min-worker-lifetime = 0"))
    (old,) = server.wait_workers(1)
    assert pid_of(server) == old.pid
    assert uwsgi(server.address, "/grow?600").status in (200, 502, 0)  # an evil end may come in the middle
    server.wait_log(line.format(pid=old.pid))
    wait_until(lambda: not is_running(old.pid))
    assert pid_of(server) != old.pid
    assert re.search(r"DAMN ! worker 1", server.log()) is None or option.startswith("evil")


def test_a_worker_that_has_no_descriptor_left_loses_no_request_and_is_replaced(start: Start) -> None:
    server = start(options("processes = 2"))
    server.wait_workers(2)
    victim = pid_of(server, "/leak_descriptors")

    def both_are_asked() -> bool:  # one after the other, all might go to the other one
        together(4, lambda _: pid_of(server))
        return "had no free descriptor to take a request" in server.log()

    wait_until(both_are_asked)
    assert {uwsgi(server.address, "/").status for _ in range(50)} == {200}
    wait_until(lambda: not is_running(victim))
    server.wait_workers(2)
    assert "DAMN" not in server.log()


HANGS = {
    "before it is ready": ("thread_start", r"worker 1 \(pid: \d+\) gave no sign of life within 1 s \(spawn-timeout\)"),
    "in the child": ("after_in_child", r"worker 1 \(pid: \d+\) gave no sign of life within 1 s \(spawn-timeout\)"),
    "in the zygote, after the fork": (
        "after_in_parent",
        r"the zygote has not forked worker 1 within 1 s \(spawn-timeout\); killing the zygote",
    ),
    "in the zygote": ("before", r"the zygote has not forked worker 1 within 1 s \(spawn-timeout\); killing the zygote"),
}


@pytest.mark.parametrize(("hook", "line"), HANGS.values(), ids=HANGS)
def test_a_fork_that_hangs_is_given_up_and_tried_again(start: Start, hook: str, line: str, tmp_path: Path) -> None:
    """The first worker is there; what hangs is its replacement's fork, once."""
    once = tmp_path / "once"
    once.touch()
    server = start(options("threads = 2", "spawn-timeout = 1"), env={"AGEING_HOOK": hook, "AGEING_ONCE": str(once)})
    (old,) = server.wait_workers(1)
    assert pid_of(server) == old.pid  # it is ready: a server that never served doesn't try again
    once.unlink()
    os.kill(old.pid, signal.SIGKILL)
    server.wait_log(line)
    assert pid_of(server) != old.pid
