"""Loading the application, replacing workers, threads, and who gets a request."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from support.client import Connection, cgi, packet, together, uwsgi
from support.harness import APPS, Server, is_running
from support.wait import wait_until

Start = Callable[..., Server]


def options(*more: str, module: str = "probe") -> str:
    return "\n".join(["socket = app.sock", f"pythonpath = {APPS}", f"module = {module}", *more]) + "\n"


def ask(server: Server, path: str) -> dict:
    answer = uwsgi(server.address, path)
    assert answer.status == 200, answer
    return json.loads(answer.body)


# replacing


def test_killed_worker_is_replaced(start: Start) -> None:
    server = start(options("processes = 2"))
    before = server.wait_workers(2)
    os.kill(before[0].pid, signal.SIGKILL)
    number, pid = before[0]
    server.wait_log(rf"DAMN ! worker {number} \(pid: {pid}\) died, killed by signal 9 :\( trying respawn \.\.\.")
    after = server.wait_workers(2)
    assert after[0].number == number
    assert after[0].pid != pid
    assert after[1] == before[1]
    assert uwsgi(server.address, "/hello").status == 200


DEATHS = {
    "SIGKILL": signal.SIGKILL,
    "SIGSEGV": signal.SIGSEGV,
    "SIGABRT": signal.SIGABRT,
}


@pytest.mark.parametrize("number", DEATHS.values(), ids=DEATHS)
def test_worker_that_dies_in_a_request(start: Start, number: int) -> None:
    """Its client gets no 200, everybody else is served."""
    server = start(options("processes = 2"))
    server.wait_workers(2)
    answers = together(2, lambda _: uwsgi(server.address, f"/kill?signal={int(number)}"))
    assert {answer.status for answer in answers} <= {0, 502}
    server.wait_log(rf"DAMN ! worker \d \(pid: \d+\) died, killed by signal {int(number)} :\(", 2)
    server.wait_workers(2)
    assert uwsgi(server.address, "/hello").status == 200


def test_requests_go_on_while_workers_die(start: Start) -> None:
    """Three workers die one after the other; no request that nobody had begun is lost."""
    server = start(options("processes = 3"))
    for worker in server.wait_workers(3):
        os.kill(worker.pid, signal.SIGKILL)
        answers = together(20, lambda _: uwsgi(server.address, "/hello").status)
        assert answers == [200] * 20
        wait_until(lambda pid=worker.pid: not is_running(pid))
        server.wait_workers(3)


def starts(notes: Path) -> list[float]:
    return [float(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def test_crash_loop_backs_off(start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    env = {"CRASH_NOTES": str(notes)}
    server = start(options("lazy-apps = true", module="crashing"), env=env, ready="nothing")
    wait_until(lambda: len(starts(notes)) >= 4, 60, "four starts")
    times = starts(notes)
    assert times[3] - times[2] > 0.2, "a loop without a pause starts again within 50 ms"
    assert server.running()


def test_one_ready_worker_keeps_the_service_up(start: Start, tmp_path: Path) -> None:
    """Two of three workers die whenever they start."""
    notes = tmp_path / "notes"
    env = {"CRASH_NOTES": str(notes), "CRASH_SURVIVOR": str(tmp_path / "survivor")}
    server = start(options("processes = 3", "lazy-apps = true", module="crashing"), env=env)
    wait_until(lambda: len(starts(notes)) >= 6, 60, "six starts")
    assert [uwsgi(server.address).body for _ in range(50)] == [b"alive"] * 50


# loading

BROKEN = {
    "no such module": ("no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "import fails": ("broken", "RuntimeError: this module can't be imported"),
    "no such callable": ("probe:no_such_callable", "no_such_callable"),
}


@pytest.mark.parametrize("lazy", ["false", "true"], ids=["before the fork", "lazy-apps"])
@pytest.mark.parametrize(("module", "reason"), BROKEN.values(), ids=BROKEN)
def test_need_app_ends_with_22(start: Start, module: str, reason: str, lazy: str) -> None:
    lazy_apps = ["lazy-apps = true"] if lazy == "true" else []
    server = start(options("need-app = true", *lazy_apps, module=module), ready="nothing")
    assert server.wait_exit() == 22
    assert reason in server.log()


@pytest.mark.parametrize("lazy", ["false", "true"], ids=["before the fork", "lazy-apps"])
@pytest.mark.parametrize(("module", "reason"), BROKEN.values(), ids=BROKEN)
def test_without_need_app_every_request_is_a_500(start: Start, module: str, reason: str, lazy: str) -> None:
    """The log says so once, however many requests come."""
    lazy_apps = ["lazy-apps = true"] if lazy == "true" else []
    server = start(options(*lazy_apps, module=module))
    assert {uwsgi(server.address, f"/{number}").status for number in range(20)} == {500}
    server.wait_log("GET /19 ")
    assert reason in server.log()
    assert server.log().count("Traceback") <= 1
    assert len(re.findall(r"no app(?:lication is)? loaded", server.log())) == 1


APPLICATIONS = {
    "module": "module = probe",
    "module and callable": "module = probe:any_path",
    "module, callable apart": "module = probe\ncallable = any_path",
    "wsgi": "wsgi = probe",
    "wsgi-file": f"wsgi-file = {APPS}/probe.py",
    "wsgi-file, callable apart": f"wsgi-file = {APPS}/probe.py\ncallable = any_path",
    "file": f"file = {APPS}/probe.py",
}


@pytest.mark.parametrize("lines", APPLICATIONS.values(), ids=APPLICATIONS)
def test_application_is_named_by(start: Start, lines: str) -> None:
    server = start(f"socket = app.sock\npythonpath = {APPS}\n{lines}\nneed-app = true\n")
    assert "PATH_INFO" in ask(server, "/environ")["strings"]


def test_application_on_the_command_line(start: Start) -> None:
    argv = ["--master", "-s", "app.sock", "--pythonpath", str(APPS), "-w", "probe", "-p", "2", "--need-app"]
    server = start(argv=argv, ready="spawned")
    server.addresses = [str(server.directory / "app.sock")]
    server.wait_workers(2)
    assert uwsgi(server.address, "/hello").body == b"hello"


def test_application_is_loaded_once_before_the_fork(start: Start) -> None:
    server = start(options("processes = 2"))
    server.wait_workers(2)
    answers = together(2, lambda _: ask(server, "/process?seconds=0.5"))
    assert len({answer["pid"] for answer in answers}) == 2
    loaded_in = {answer["loaded_in"] for answer in answers}
    assert len(loaded_in) == 1
    assert not loaded_in & {answer["pid"] for answer in answers}


def test_lazy_apps_loads_in_each_worker(start: Start) -> None:
    server = start(options("processes = 2", "lazy-apps = true"))
    server.wait_workers(2)
    answers = together(2, lambda _: ask(server, "/process?seconds=0.5"))
    assert len({answer["pid"] for answer in answers}) == 2
    assert all(answer["loaded_in"] == answer["pid"] for answer in answers)


def test_workers_are_children_of_the_master(start: Start) -> None:
    server = start(options("processes = 2"))
    assert ask(server, "/process")["parent"] == server.pid


def test_env_chdir_and_pythonpath(start: Start, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("from probe import application\n")
    lines = [f"chdir = {tmp_path}", "env = COLOUR=green", f"pythonpath = {APPS}", f"pythonpath = {tmp_path}"]
    server = start("\n".join(["socket = %dapp.sock", *lines, "module = elsewhere"]))
    about = ask(server, "/settings")
    assert (about["cwd"], about["env"]["COLOUR"]) == (str(tmp_path), "green")
    assert list(map(Path, ask(server, "/loaded")["path"][:2])) == [tmp_path, APPS]


LIMITS = {
    "limit-as": ("limit-as = 2048", "Max address space", 2048 * 1024 * 1024),
    "limit-nproc": ("limit-nproc = 4000", "Max processes", 4000),
    "max-fd": ("max-fd = 500", "Max open files", 500),
}


@pytest.mark.parametrize(("line", "name", "value"), LIMITS.values(), ids=LIMITS)
def test_limits_of_a_worker(start: Start, line: str, name: str, value: int) -> None:
    server = start(options(line))
    (worker,) = server.wait_workers(1)
    limits = Path(f"/proc/{worker.pid}/limits")
    wait_until(lambda: re.search(rf"^{name}\s+{value}\s", limits.read_text(), re.MULTILINE), message=limits.read_text)


TITLES = {
    "auto-procname": ("auto-procname = true", "uWSGI master", "uWSGI worker 1"),
    "prefix": ("procname-prefix = site-", "site-uWSGI master", "site-uWSGI worker 1"),
    "spaced prefix": ("procname-prefix-spaced = site", "site uWSGI master", "site uWSGI worker 1"),
    "append": ("auto-procname = true\nprocname-append = @home", "uWSGI master@home", "uWSGI worker 1@home"),
    "one name for all": ("procname = site", "site", "site"),
    "master's own": ("procname-master = boss", "boss", "uWSGI worker 1"),
}


@pytest.mark.parametrize(("lines", "master", "worker"), TITLES.values(), ids=TITLES)
def test_process_titles(start: Start, lines: str, master: str, worker: str) -> None:
    server = start(options(lines))
    (only,) = server.wait_workers(1)
    titles = {server.pid: master, only.pid: worker}
    wait_until(lambda: {pid: title(pid) for pid in titles} == titles, message=lambda: str({*map(title, titles)}))


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()


# threads


def test_each_process_has_its_threads(start: Start) -> None:
    """Two processes of two threads: four requests at once, two in each; the first is the main thread."""
    server = start(options("processes = 2", "threads = 2"))
    server.wait_workers(2)
    server.wait_log(r"spawned uWSGI worker 2 \(pid: \d+, cores: 2\)")
    answers = together(4, lambda _: ask(server, "/process?seconds=1"))
    assert sorted(Counter(answer["pid"] for answer in answers).values()) == [2, 2]
    assert {(answer["core"], answer["main_thread"]) for answer in answers} == {(0, True), (1, False)}


def test_least_busy_process_first(start: Start, tmp_path: Path) -> None:
    """Requests come one by one and stay: they go to the two processes in turn, until all threads are busy."""
    server = start(options("processes = 2", "threads = 4"))
    server.wait_workers(2)
    begun = tmp_path / "begun"
    with ExitStack() as stack:
        for number in range(1, 9):
            connection = stack.enter_context(Connection(server.address))
            connection.send(packet(cgi("/count?seconds=5", HTTP_X_FILE=str(begun))))
            pids = wait_until(lambda number=number: lines_of(begun, number))
            counts = sorted(Counter(pids).values())
            assert counts == [number // 2, (number + 1) // 2][number == 1 :], pids


def lines_of(path: Path, number: int) -> list[str] | None:
    """The file's lines as soon as there are that many."""
    lines = path.read_text().splitlines() if path.exists() else []
    return lines if len(lines) >= number else None


@pytest.mark.parametrize("threads", [1, 4])
def test_signal_alarm_works_on_the_first_core(start: Start, threads: int) -> None:
    server = start(options(f"threads = {threads}"))
    answers = together(threads, lambda _: ask(server, "/alarm"))
    ringing = [answer for answer in answers if answer["rang"]]
    assert ringing == [{"main_thread": True, "rang": True, "core": 0}]


def test_threads_share_the_work(start: Start) -> None:
    server = start(options("threads = 8"))
    answers = together(200, lambda number: uwsgi(server.address, "/echo", "POST", b"%d" % number).body)
    assert answers == [b"%d" % number for number in range(200)]


# the queue


def test_more_than_listen_may_not_wait(start: Start, tmp_path: Path) -> None:
    """One is served, five wait, the next is told to come back."""
    server = start(options("listen = 5"))
    begun = tmp_path / "begun"
    with ExitStack() as stack:
        waiting = [stack.enter_context(Connection(server.address)) for _ in range(6)]
        for connection in waiting:
            connection.send(packet(cgi("/count?seconds=1", HTTP_X_FILE=str(begun))))
            wait_until(lambda: lines_of(begun, 1))
        answer = uwsgi(server.address, "/hello")
        assert (answer.status, answer.header("Retry-After")) == (503, "1")
        assert [connection.answer().status for connection in waiting] == [200] * 6


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_request_of_a_client_that_left_is_not_executed(start: Start, tmp_path: Path, reset: bool) -> None:
    """It waited in the queue when the client went."""
    server = start(options())
    first, second = tmp_path / "first", tmp_path / "second"
    with Connection(server.address) as served:
        served.send(packet(cgi("/count?seconds=1", HTTP_X_FILE=str(first))))
        wait_until(lambda: lines_of(first, 1))
        with Connection(server.address) as gone:
            gone.send(packet(cgi("/count", HTTP_X_FILE=str(second))))
            if reset:
                gone.reset()
        assert served.answer().status == 200
    assert uwsgi(server.address, "/hello").status == 200
    assert not second.exists()


# a stopped worker


def test_request_of_a_stopped_worker_is_taken_back(start: Start, tmp_path: Path) -> None:
    """The worker that served last is stopped; what is pushed to it is executed elsewhere, exactly once."""
    server = start(options("processes = 2"))
    server.wait_workers(2)
    for round_number in range(3):
        counted = tmp_path / f"counted {round_number}"
        stopped = ask(server, "/process")["pid"]
        os.kill(stopped, signal.SIGSTOP)
        try:
            wait_until(lambda pid=stopped: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
            answer = uwsgi(server.address, "/count", HTTP_X_FILE=str(counted))
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert answer.status == 200
        assert int(answer.body) != stopped
        # the stopped one goes on and is asked again: had it the request too, it would have run by now
        answers = together(2, lambda _: ask(server, "/process?seconds=0.5"))
        assert stopped in {answer["pid"] for answer in answers}
        assert counted.read_text() == f"{int(answer.body)}\n"


def test_request_waits_while_the_only_worker_is_stopped(start: Start, tmp_path: Path) -> None:
    server = start(options())
    (worker,) = server.wait_workers(1)
    counted = tmp_path / "counted"
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
        with Connection(server.address) as connection:
            connection.send(packet(cgi("/count", HTTP_X_FILE=str(counted))))
            os.kill(worker.pid, signal.SIGCONT)
            assert connection.answer().status == 200
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    assert counted.read_text() == f"{worker.pid}\n"


# the application's own environment


@pytest.fixture(scope="module")
def old_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pydantic 1, from PyPI."""
    home = tmp_path_factory.mktemp("home")
    venv.create(home, with_pip=False, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--target", str(packages), "pydantic==1.10.26"], check=True)
    return home


@pytest.mark.parametrize("option", ["home", "virtualenv"])
def test_application_sees_its_own_environment(start: Start, old_home: Path, option: str) -> None:
    """pydantic 1 where the server itself runs on pydantic 2, and none of the server's other libraries."""
    server = start(options(f"{option} = {old_home}", "need-app = true", module="pinned"))
    about = ask(server, "/")
    assert about["pydantic"].startswith("1.10.")
    assert (about["model"], about["others"]) == ({"number": 7}, [])
    assert about["prefix"] == str(old_home)
