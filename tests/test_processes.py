"""What a process is given, what it holds, and how it ends: limits, processors, descriptors, fork hooks, the exit.

A real uWSGI 2.0.31 has no exit-deadline, counts all processors of the machine for cpu-affinity, and sets prio after
it has become another user.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.client import Connection, End, cgi, packet, together, uwsgi
from support.harness import APPS, COMMAND, Server, peak_memory
from support.wait import wait_until

from wsgimaster.worker import processors_of

Start = Callable[..., Server]

ALLOWED = sorted(os.sched_getaffinity(0))
several_processors = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two processors")


def options(*more: str) -> str:
    lines = ["socket = app.sock", f"pythonpath = {APPS}", "module = processes", "need-app = true", *more]
    return "\n".join(lines) + "\n"


def ask(server: Server, path: str) -> Any:
    answer = uwsgi(server.address, path)
    assert answer.status == 200, answer
    return json.loads(answer.body)["result"]


def limits(pid: int, name: str) -> tuple[str, str]:
    """The soft and the hard limit."""
    found = re.search(rf"^{name} +(\S+) +(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    assert found
    return found[1], found[2]


def zygote_of(server: Server) -> psutil.Process:
    """The master's only child that is no worker."""
    workers = {worker.pid for worker in server.workers()}
    (zygote,) = [child for child in psutil.Process(server.pid).children() if child.pid not in workers]
    return zygote


def replace_workers(server: Server, count: int) -> None:
    """Kill each worker once and wait for its successor."""
    for number, pid in server.wait_workers(count):
        log = server.log_from_here()
        os.kill(pid, signal.SIGKILL)
        log.wait(rf"spawned uWSGI worker {number} ")
    server.wait_workers(count)


# processors

# (worker, cpu-affinity, processors allowed): what a real uWSGI 2.0.31 does on a machine with that many
AFFINITIES = {
    "1 of 4": [(slot, 1, range(4), want) for slot, want in enumerate([[0], [1], [2], [3], [0], [1]], start=1)],
    "3 of 8": [
        (slot, 3, range(8), want)
        for slot, want in enumerate([[0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 2, 3], [4, 5, 6]], start=1)
    ],
    "3 of 4": [
        (slot, 3, range(4), want) for slot, want in enumerate([[0, 1, 2], [3, 0, 1], [2, 3, 0], [1, 2, 3]], start=1)
    ],
    "6 of 4": [
        (slot, 6, range(4), want) for slot, want in enumerate([[0, 1, 2, 3, 0, 1], [2, 3, 0, 1, 2, 3]], start=1)
    ],
    "1 of those allowed": [(slot, 1, (2, 5, 7), want) for slot, want in enumerate([[2], [5], [7], [2]], start=1)],
}


@pytest.mark.parametrize("rows", AFFINITIES.values(), ids=AFFINITIES)
def test_processors_of_a_worker(rows: list[tuple[int, int, range, list[int]]]) -> None:
    for slot, count, allowed, expected in rows:
        assert processors_of(slot, count, list(allowed)) == expected


def affinities(server: Server, count: int) -> list[set[int]]:
    server.wait_log(r"^mapping worker \d+ to CPUs: ", count)
    return [os.sched_getaffinity(worker.pid) for worker in server.wait_workers(count)]


@several_processors
def test_cpu_affinity(start: Start) -> None:
    """Workers take turns; master and zygote keep all processors, and so does what the application narrowed itself."""
    server = start(options("processes = 3", "cpu-affinity = 1"), env={"NARROW": "yes"})
    turns = [ALLOWED[number % len(ALLOWED)] for number in range(3)]
    assert affinities(server, 3) == [{number} for number in turns]
    server.wait_log(rf"^mapping worker 2 to CPUs: {turns[1]}$")
    assert os.sched_getaffinity(server.pid) == set(ALLOWED)


@several_processors
def test_cpu_affinity_within_what_the_server_may_use(start: Start) -> None:
    last = ALLOWED[-1]
    server = start(options("processes = 2", "cpu-affinity = 1"), command=["taskset", "-c", str(last), *COMMAND])
    assert affinities(server, 2) == [{last}, {last}]


def test_without_cpu_affinity_all_processors_are_used(start: Start) -> None:
    server = start(options())
    (worker,) = server.wait_workers(1)
    assert os.sched_getaffinity(worker.pid) == set(ALLOWED)
    assert "mapping worker" not in server.log()


# priority, umask, stacks, memory

PRIORITIES = {"prio = 5": 5, "prio = 100": 19, "prio = 0": 0}


@pytest.mark.parametrize(("line", "nice"), PRIORITIES.items(), ids=PRIORITIES)
def test_prio(start: Start, line: str, nice: int) -> None:
    server = start(options(line, "processes = 2"))
    server.wait_workers(2)
    assert {process.nice() for process in server.processes()} == {nice}
    assert ("scheduler priority set to" in server.log()) is (nice != 0)


def test_umask(start: Start) -> None:
    assert ask(start(options("umask = 037")), "/umask") == 0o037


def test_threads_stacksize(start: Start) -> None:
    """For the server's threads; those of the application keep the system's size."""
    server = start(options("threads = 3", "threads-stacksize = 600"))
    found = together(12, lambda _: ask(server, "/stack"))
    assert {size for main, size, _ in found if not main} == {600}
    assert {usual for _, _, usual in found} == {0}


def test_request_beyond_limit_as_is_a_500(start: Start) -> None:
    server = start(options("limit-as = 1024"))
    before = server.wait_workers(1)
    assert uwsgi(server.address, "/allocate?4096").status == 500
    server.wait_log("MemoryError")
    assert ask(server, "/hello") == "hello"
    assert server.workers() == before


# descriptors


def largest_descriptor_limit() -> int:
    """The kernel's, where we may raise ours, which mere root in a container may not; else our hard limit."""
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    raised = subprocess.run(["prlimit", f"--nofile={most}:{most}", "true"], capture_output=True)
    return most if raised.returncode == 0 else resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_nothing_grows_with_the_limit_of_descriptors(start: Start) -> None:
    """Where a million is allowed, eight bytes for each would be seen."""
    memory = []
    for limit in (1024, largest_descriptor_limit()):
        server = start(options("processes = 2"), command=["prlimit", f"--nofile={limit}:{limit}", *COMMAND])
        pids = [server.pid, zygote_of(server).pid, *(worker.pid for worker in server.wait_workers(2))]
        for pid in pids[2:]:
            wait_until(lambda pid=pid: kinds(descriptors(pid))["/memfd"] == 2, message="the worker serves")
        assert {limits(pid, "Max open files") for pid in pids} == {(str(limit), str(limit))}
        memory.append([peak_memory(pid) for pid in pids])
    small, large = memory
    assert [max(0, after - before - (4 << 20)) for before, after in zip(small, large, strict=True)] == [0] * 4


def test_application_has_the_limit_that_the_server_was_started_with(start: Start) -> None:
    """The master raises its own, since every client takes one of its descriptors."""
    server = start(options(), command=["prlimit", "--nofile=700:1400", *COMMAND])
    (worker,) = server.wait_workers(1)
    assert limits(server.pid, "Max open files") == ("1400", "1400")
    for pid in (worker.pid, zygote_of(server).pid):
        wait_until(lambda pid=pid: limits(pid, "Max open files") == ("700", "1400"))


def test_many_threads_fit_a_low_limit(start: Start) -> None:
    """The zygote gets as many channels at once as a worker has threads."""
    server = start(options("threads = 250"), command=["prlimit", "--nofile=300:2000", *COMMAND])
    assert ask(server, "/hello") == "hello"


def descriptors(pid: int) -> list[str]:
    """What the process holds, by kind; sockets and pipes with their numbers."""
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(folder / name) for name in sorted(os.listdir(folder), key=int)]


def kinds(links: list[str]) -> Counter[str]:
    return Counter(re.sub(r"[:\[(].*", "", link.removeprefix("anon_inode:[")) for link in links)


# Three cores; a pipe for stdout and stderr and one for tracebacks; the map has a memfd of its own.
WORKERS_OWN = {"/dev/null": 1, "pipe": 3, "socket": 3, "/memfd": 2, "eventfd]": 1}
AND_TO_PULL = {"socket": 6, "eventpoll]": 6}  # each core has copies of both listening sockets, and two epolls
ZYGOTES_OWN = {"/dev/null": 1, "pipe": 2, "socket": 1, "/memfd": 1, "eventfd]": 1}


@pytest.mark.parametrize("dispatch", ["push", "auto"])
@pytest.mark.parametrize("thread", [False, True], ids=["", "zygote with threads"])
def test_processes_hold_their_own_descriptors_only(start: Start, thread: bool, dispatch: str) -> None:
    """Forked while clients are connected, after others have died."""
    lines = ["processes = 3", "threads = 3", f"http-socket = @wsgimaster-test-{os.getpid()}", f"dispatch = {dispatch}"]
    server = start(options(*lines), env={"THREAD": "yes"} if thread else {})
    server.wait_workers(3)
    own = Counter(WORKERS_OWN) + Counter(AND_TO_PULL if dispatch == "auto" else {})
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Connection(server.address)).send(packet(cgi("/hello"))[:9])
        replace_workers(server, 3)
        replace_workers(server, 3)
        pids = [worker.pid for worker in server.workers()]

        def settled() -> bool:
            return [kinds(descriptors(pid)) for pid in pids] == [own] * 3

        wait_until(settled, message=lambda: str([descriptors(pid) for pid in pids]))
        held = [descriptors(pid) for pid in pids]
        zygote = descriptors(zygote_of(server).pid)
        assert kinds(zygote) == ZYGOTES_OWN
        shared = set(listening_sockets(server))
        private = [
            [link for link in links if link.startswith(("socket:", "pipe:")) and link not in shared]
            for links in [*held, zygote]
        ]
        assert [len(links) for links in private] == [6, 6, 6, 3]
        # a worker's stdout and stderr are one pipe
        assert len({link for links in private for link in links}) == 5 + 5 + 5 + 2, "nobody has another's"


def listening_sockets(server: Server) -> list[str]:
    """Those for clients, as a descriptor's link names them."""
    table = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    listens = "00010000"  # its flags; an accepted connection has the same name
    names = ("app.sock", f"@wsgimaster-test-{os.getpid()}")
    named = {f"socket:[{row[6]}]" for row in table if row[-1] in names and row[3] == listens}
    return sorted(named & set(descriptors(server.pid)))


def test_a_child_that_the_application_forks_has_no_listening_socket(start: Start) -> None:
    """It may live for longer than the server, and the next one must find the address free."""
    server = start(options("processes = 1"))
    (listening,) = listening_sockets(server)
    worker = server.wait_workers(1)[0].pid
    wait_until(lambda: listening in descriptors(worker))
    child = ask(server, "/fork_without_exec")
    wait_until(lambda: not {listening, "anon_inode:[eventpoll]"} & set(descriptors(child)))
    assert ask(server, "/hello") == "hello"
    assert listening in descriptors(worker)
    ask(server, "/end_children")


def test_a_client_sees_the_end_although_a_child_holds_its_connection(start: Start) -> None:
    """Forked in the request itself, and in another one that runs at the time."""
    server = start(options("processes = 1", "threads = 2"))
    for _ in range(3):
        assert uwsgi(server.address, "/fork_without_exec").end is End.EOF
    ask(server, "/end_children")


def test_an_idle_server_sleeps(start: Start) -> None:
    """No worker wakes up, the master hardly ever."""
    server = start(options("processes = 4"))
    for _ in range(20):
        ask(server, "/hello")
    pids = [worker.pid for worker in server.wait_workers(4)]
    wait_until(lambda: switches([server.pid], 2.0) <= 10, message="the master calms down")
    assert switches(pids, 2.0) == 0


def test_the_master_sleeps_while_cores_serve_that_wait_themselves(start: Start) -> None:
    """Requests of 0.2 s, one after the other: it ticks, and that is all."""
    server = start(options("processes = 2"))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: [ask(server, "/stack") for _ in range(12)])
        wakeups = switches([server.pid], 2.0)
        assert len(asking.result()) == 12
    assert wakeups <= 50  # ten ticks a second, and some for the log


def switches(pids: list[int], seconds: float) -> int:
    """How often these processes have gone to sleep within that time."""

    def count() -> int:
        return sum(psutil.Process(pid).num_ctx_switches().voluntary for pid in pids)

    before, until = count(), time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 20)
    return count() - before


def test_programs_of_the_application_get_no_descriptor_of_ours(start: Start) -> None:
    """Started without closing any, at load and in a request."""
    server = start(options("processes = 2", "threads = 2"))
    with Connection(server.address) as waiting:
        waiting.send(packet(cgi("/hello"))[:9])
        replace_workers(server, 2)
        assert ask(server, "/at_load") == []
        assert ask(server, "/inherited") == []


# fork hooks


@pytest.mark.parametrize("lines", ["", "py-call-osafterfork = true"], ids=["", "py-call-osafterfork"])
@pytest.mark.parametrize("thread", [False, True], ids=["", "zygote with threads"])
def test_fork_hooks_run_once_for_each_worker(start: Start, tmp_path: Path, thread: bool, lines: str) -> None:
    notes = tmp_path / "notes"
    env = {"FORK_NOTES": str(notes), **({"THREAD": "yes"} if thread else {})}
    server = start(options("processes = 3", lines), env=env)
    server.wait_workers(3)
    replace_workers(server, 3)
    assert ask(server, "/hello") == "hello"
    zygote = zygote_of(server).pid
    spawned = re.findall(r"spawned uWSGI worker \d+ \(pid: (\d+)", server.log())
    wait_until(lambda: notes.read_text().count("parent") == 6)
    found = Counter(notes.read_text().splitlines())
    assert found == {f"before {zygote}": 6, f"parent {zygote}": 6, **{f"child {pid}": 1 for pid in spawned}}


# the end of a worker

LEAVES = {
    "an atexit function that sleeps": "sleep",
    "a thread that is no daemon": "thread",
    "an atexit function that holds the interpreter's lock": "lock",
    "all signals blocked": "blocked",
}


@pytest.mark.parametrize("way", LEAVES.values(), ids=LEAVES)
def test_exit_deadline(start: Start, way: str) -> None:
    """Long before worker-reload-mercy, and as if nothing had happened."""
    lines = options("processes = 2", "lazy-apps = true", "exit-deadline = 1", "worker-reload-mercy = 600")
    server = start(lines, env={"LEAVES": way})
    server.wait_workers(2)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    late = (
        r"^worker \d: its threads or atexit functions did not end within 1 s \(exit-deadline\); leaving without them$"
    )
    assert len(re.findall(late, server.log(), re.MULTILINE)) == 2
    assert len(re.findall(r"^worker \d buried", server.log(), re.MULTILINE)) == 2
    assert "DAMN" not in server.log()


def test_exit_deadline_when_the_master_is_dead(start: Start) -> None:
    """Nobody is left to kill the worker, nor to read what it says."""
    server = start(options("processes = 2", "exit-deadline = 1"), env={"LEAVES": "lock"})
    server.wait_workers(2)
    server.signal(signal.SIGKILL)
    server.wait_exit()
    wait_until(lambda: not server.processes(), message="nothing is left")


def test_atexit_functions_run_before_the_deadline(start: Start) -> None:
    server = start(options("processes = 2"), env={"LEAVES": "goodbye"})
    server.wait_workers(2)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    assert server.log().count("the application says goodbye") == 2
    assert "exit-deadline" not in server.log()


@pytest.mark.parametrize("lazy", ["false", "true"], ids=["before the fork", "lazy-apps"])
def test_half_an_application_does_not_hold_up_need_app(start: Start, lazy: str) -> None:
    """Its import has started a thread that never ends."""
    lines = options(f"lazy-apps = {lazy}", "exit-deadline = 1").replace("= processes", "= processes:missing")
    server = start(lines, env={"LEAVES": "thread"}, ready="nothing")
    assert server.wait_exit(20) == 22


def test_crash_at_the_end_of_a_worker_is_no_failure_of_the_stop(start: Start) -> None:
    server = start(options("processes = 2"), env={"LEAVES": "crash"})
    server.wait_workers(2)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0
    assert len(re.findall(r"^worker \d buried", server.log(), re.MULTILINE)) == 2
    assert "DAMN" not in server.log()
    assert "goodbye to uWSGI." in server.log()


EXIT = """
import ctypes, os
from wsgimaster import _process
{before}
_process.exit_within(0.1, 7, "late")
ctypes.PyDLL(None).sleep(1000)
"""
FILL_THE_PIPE = (
    "os.set_blocking(2, False)\ntry:\n    while os.write(2, b'x'): pass\nexcept OSError: os.set_blocking(2, True)"
)
STDERRS = {"is read": ("", b"late\n"), "is full": (FILL_THE_PIPE, None), "is closed": ("os.close(2)", b"")}


@pytest.mark.parametrize(("before", "expected"), STDERRS.values(), ids=STDERRS)
def test_exit_within_ends_with_its_status_whether_stderr(before: str, expected: bytes | None) -> None:
    script = EXIT.format(before=before)
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as process:
        assert process.wait(20) == 7
        assert process.stderr
        assert expected in (None, process.stderr.read())
