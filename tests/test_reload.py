"""Reloads: new code takes over without a dropped request, and code that is broken never takes over."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.client import Connection, cgi, packet, uwsgi
from support.deployed import WSGIMASTER, Deployed, Start
from support.harness import APPS, free_port
from support.wait import wait_until

KINDS = ("graceful", "workers", "chain")
ASK = {"graceful": (), "workers": ("--workers",), "chain": ("--chain",)}


@pytest.mark.parametrize("more", [(), ("lazy-apps = true",), ("dispatch = push",)], ids=["eager", "lazy", "push"])
@pytest.mark.parametrize("kind", KINDS)
def test_new_code_takes_over_under_load(start: Start, tmp_path: Path, kind: str, more: tuple[str, ...]) -> None:
    deployed = Deployed(start, tmp_path, *more, processes=3)
    with deployed.under_load() as bodies:
        deployed.deploy("VERSION = 'two'; time.sleep(0.5)")
        done = deployed.reload(*ASK[kind])
        assert (done.returncode, done.stdout) == (0, "generation 2 serves with 3 worker(s)\n"), done.stderr
        old = len(bodies)
        wait_until(lambda: len(bodies) > old + 50)
    assert {body.split()[0] for body in bodies[old + 10 :]} == {"two"}
    assert len({body.split()[1] for body in bodies[old + 10 :]}) == 3  # workers
    deployed.server.wait_log(r"worker \d buried", 3)
    assert "DAMN" not in deployed.server.log()


def test_one_worker_is_enough(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path, processes=1)
    with deployed.under_load():
        deployed.deploy("VERSION = 'two'; time.sleep(0.5)")
        assert deployed.reload().returncode == 0
    assert deployed.versions() == {"two"}


def test_a_running_request_is_finished_by_the_old_code(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    with Connection(deployed.server.address) as client:
        client.send(packet(cgi(f"/gate?{tmp_path / 'gate'}")))
        wait_until(lambda: " 1 run" in deployed_state(deployed))
        deployed.deploy("VERSION = 'two'")
        assert deployed.reload().returncode == 0
        assert deployed.versions() == {"two"}
        (tmp_path / "gate").touch()
        assert client.answer().text.startswith("one")


def deployed_state(deployed: Deployed) -> str:
    log = deployed.server.log_from_here()
    deployed.write("s")
    log.wait(r"^\*\*\* pid")
    return log.text()


# What is deployed, in the ini too -> what `reload --wait` says.
BROKEN = {
    "an import that raises": ("raise RuntimeError('a broken deploy')", (), "RuntimeError: a broken deploy"),
    "a syntax error": ("VERSION = ", (), "SyntaxError"),
    "an import that ends the process": ("os._exit(3)", (), "died (exit code 3)"),
    "a hook that fails": ("VERSION = 'two'", ("hook-pre-app = exec:exit 3",), "a hook has failed"),
    "an import that exits": ("raise SystemExit(0)", (), "could not be loaded"),
    "an import that hangs": ("time.sleep(60)", ("reload-timeout = 1",), "was not ready within 1 s (reload-timeout)"),
    "lazy-apps": ("raise RuntimeError('a broken deploy')", ("lazy-apps = true",), "RuntimeError: a broken deploy"),
    "a misspelt option": ("VERSION = 'two'", ("prcesses = 4", "strict = true"), "processes"),
    "a broken ini": ("VERSION = 'two'", ("uid = nobody-knows-him",), "this machine has no user"),
    "an option that it does not change": (
        "VERSION = 'two'",
        ("threads = 7",),
        "threads: 1 -> 7: a reload can't change that, wsgimaster upgrade (the workers end first) does",
    ),
    "a check that isn't passed": (
        "VERSION = 'ill'",
        ("reload-check = /health",),
        "reload-check = /health was answered with 503 Not Ready; 2xx or 3xx is expected",
    ),
    "a check that raises": ("VERSION = None", ("reload-check = /health",), "AttributeError"),
}


@pytest.mark.parametrize(("code", "options", "told"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_never_serves(
    start: Start, tmp_path: Path, code: str, options: tuple[str, ...], told: str
) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.deploy(code)
    deployed.configure(*options)
    with deployed.under_load() as bodies:
        done = deployed.reload()
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert told in deployed.server.log()
    assert {body.split()[0] for body in bodies} == {"one"}
    deployed.configure()
    deployed.deploy("VERSION = 'three'")
    assert deployed.reload().returncode == 0
    assert deployed.versions() == {"three"}


def test_what_is_only_a_warning_is_told_to_who_waits(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.configure("harakiri = abc")
    done = deployed.reload()
    assert done.returncode == 0
    assert "harakiri: 'abc' is no number and counts as 0" in done.stderr


def test_the_table_says_what_is_missing(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    assert "wanted" not in deployed.operate("workers").stdout
    assert deployed.operate("scale", "1").returncode == 0
    deployed.server.wait_workers(1)
    assert deployed.operate("workers").stdout.endswith("\n1 serve, 1 are wanted (processes = 2)\n")
    deployed.deploy("raise ValueError")
    (zygote,) = deployed.server.wait_log(r"zygote pid: (\d+)")
    os.kill(int(zygote[1]), signal.SIGKILL)
    wait_until(lambda: "no worker can be started: the application has to be" in deployed.operate("workers").stdout)


def test_a_check_that_is_passed(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path, "reload-check = example.org/health?quick")
    deployed.deploy("VERSION = 'two'")
    assert deployed.reload().returncode == 0
    assert deployed.versions() == {"two"}


def test_a_graceful_reload_reads_the_configuration(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.configure("env = COLOUR=green", "harakiri = 1", "harakiri-verbose = true", "disable-logging = true")
    assert deployed.reload("--workers").returncode == 0
    assert "green" not in uwsgi(deployed.server.address, "/").text
    assert deployed.reload().returncode == 0
    assert "green" in uwsgi(deployed.server.address, "/").text
    assert uwsgi(deployed.server.address, "/sleep?30").status == 504


def test_cheaper_may_come_and_go_with_the_configuration(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path, processes=4)
    assert len(deployed.server.wait_workers(4)) == 4
    deployed.configure("cheaper = 1", "cheaper-overload = 1", processes=4)
    assert deployed.reload().returncode == 0
    deployed.server.wait_workers(1)
    deployed.configure(processes=4)
    assert deployed.reload().returncode == 0
    deployed.server.wait_workers(4)


@pytest.mark.parametrize("option", ["touch-reload", "touch-workers-reload", "touch-chain-reload"])
def test_touch_files(start: Start, tmp_path: Path, option: str) -> None:
    """Its appearance, a change, even to an older time, and its disappearance."""
    touched = tmp_path / "touched"
    deployed = Deployed(start, tmp_path, f"{option} = {touched}")
    deployed.server.wait_log(f"unable to stat\\(\\) {touched}, events will be triggered as soon as the file is created")
    changes = {
        "two": touched.touch,
        "three": lambda: os.utime(touched, (1, 1)),
        "four": touched.unlink,
    }
    for number, (version, change) in enumerate(changes.items(), start=1):
        deployed.deploy(f"VERSION = {version!r}")
        change()
        deployed.server.wait_log(rf"^\*\*\* {touched} has been touched", number)
        deployed.server.wait_log(r"serves with 2 worker\(s\)", number)
        assert deployed.versions() == {version}


@pytest.mark.parametrize("broken", [False, True], ids=["", "broken before"])
def test_py_autoreload(start: Start, tmp_path: Path, broken: bool) -> None:
    """A change, and a change of a module that could not be imported."""
    code = tmp_path / "code"
    code.mkdir()
    module = code / "changing.py"
    module.write_text("VERSION = 'one'")
    deployed = Deployed(start, tmp_path, "py-autoreload = 1", f"pythonpath = {code}")
    deployed.deploy("from changing import VERSION")
    assert deployed.reload().returncode == 0
    if broken:
        module.write_text("VERSION = ")
        deployed.server.wait_log(rf"^{module} has changed\.\.\.")
        deployed.server.wait_log("the graceful reload is given up: the application could not be loaded")
    (code / "notes.txt").write_text("nothing is reloaded for this")
    module.write_text("VERSION = 'two'")
    wait_until(lambda: deployed.versions() == {"two"})
    assert "notes.txt" not in deployed.server.log()


def test_py_autoreload_without_its_extra(start: Start, tmp_path: Path) -> None:
    """Production files have it, too."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "from importlib import util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'watchfiles' else find(name, *more)\n"
    )
    paths = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    deployed = Deployed(start, tmp_path, "py-autoreload = 1", env={"PYTHONPATH": paths})
    deployed.server.wait_log(r"py-autoreload has no effect: it needs pip install 'wsgimaster\[autoreload\]'")
    assert deployed.version() == "one"


def test_sighup(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.deploy("VERSION = 'two'")
    deployed.server.signal(signal.SIGHUP)
    deployed.server.wait_log("gracefully reloaded: generation 2")
    assert deployed.versions() == {"two"}


def test_sighup_while_the_application_is_being_loaded(start: Start, tmp_path: Path) -> None:
    """Nothing is lost: what was on disk when it came will serve."""
    gate = tmp_path / "gate"
    code = tmp_path / "deploy.py"
    code.write_text(f"while not Path({str(gate)!r}).exists(): time.sleep(0.01)\nVERSION = 'one'")
    options = f"socket = app.sock\npythonpath = {APPS}\nmodule = deployed\n"
    server = start(options, env={"DEPLOY": str(code)}, ready="nothing")
    server.wait_log("spawned uWSGI master process")
    server.signal(signal.SIGHUP)
    server.wait_log("the graceful reload begins when the application is loaded")
    code.write_text("VERSION = 'two'")
    gate.touch()
    server.wait_log("gracefully reloaded: generation 2")
    assert uwsgi(server.address, "/").text.startswith("two")


def test_a_stop_while_new_code_is_being_loaded(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.deploy("time.sleep(60)")
    deployed.write("r")
    deployed.server.wait_log("generation 2 loads the application")
    done = deployed.operate("stop", "--wait")
    assert (done.returncode, deployed.server.wait_exit()) == (0, 0)


def test_who_waits_for_a_reload_is_told_that_the_server_stops(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.deploy("time.sleep(60)")
    with subprocess.Popen(
        [*WSGIMASTER, "reload", "--wait", "--pid", str(deployed.server.pid)], stderr=subprocess.PIPE, text=True
    ) as waiting:
        deployed.server.wait_log("generation 2 loads the application")
        deployed.server.signal(signal.SIGTERM)
        _, told = waiting.communicate(timeout=30)
    assert (waiting.returncode, told) == (1, "wsgimaster reload: the server stops\n")


def test_another_reload_replaces_one_that_hangs(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.deploy("time.sleep(60)")
    deployed.write("r")
    deployed.server.wait_log("generation 2 loads the application")
    deployed.deploy("VERSION = 'three'")
    assert deployed.reload().stdout == "generation 3 serves with 2 worker(s)\n"
    assert deployed.versions() == {"three"}


def test_a_zygote_that_dies_in_the_middle_of_a_deploy(start: Start, tmp_path: Path) -> None:
    """What is on disk can't be loaded: the old workers serve, and a good version takes over by itself."""
    deployed = Deployed(start, tmp_path)
    deployed.deploy("raise RuntimeError('half a deploy')")
    (zygote,) = re.findall(r"\(zygote pid: (\d+)\)", deployed.server.log())
    os.kill(int(zygote), signal.SIGKILL)
    deployed.server.wait_log("the zygote can't be replaced: the application could not be loaded")
    assert deployed.versions() == {"one"}
    deployed.deploy("VERSION = 'two'")
    deployed.server.wait_log("the zygote is replaced: generation")
    assert deployed.versions() == {"two"}


def test_no_generation_is_left_behind(start: Start, tmp_path: Path) -> None:
    """A dozen reloads: as many processes as before, and no descriptor more in the master."""
    deployed = Deployed(start, tmp_path)

    def held() -> tuple[int, int]:
        return len(deployed.server.processes()), len(os.listdir(f"/proc/{deployed.server.pid}/fd"))

    assert deployed.reload().returncode == 0
    wait_until(lambda: held()[0] == 4)
    before = held()
    for _ in range(12):
        assert deployed.reload().returncode == 0
    wait_until(lambda: held() <= before, 20, lambda: f"{before}: {held()}")


# ---- the control socket ----


def test_which_server(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    other = start("socket = other.sock\n")
    several = subprocess.run([*WSGIMASTER, "workers"], capture_output=True, text=True, timeout=60, check=False)
    assert several.returncode == 1
    assert "several servers run; say which" in several.stderr
    assert f"\n  --pid {other.pid}  in {other.directory}\n" in several.stderr
    listed = deployed.operate("workers")
    assert re.findall(r"^ +(\d) .* ready ", listed.stdout, re.MULTILINE) == ["1", "2"]
    nobody = subprocess.run(
        [*WSGIMASTER, "workers", "--pid", "1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (nobody.returncode, "no server runs with pid 1" in nobody.stderr) == (1, True)


def test_control_socket(start: Start, tmp_path: Path) -> None:
    server = start("socket = app.sock\ncontrol-socket = control.sock\n")
    path = server.directory / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    command = [*WSGIMASTER, "workers", "--control-socket", str(path)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    server.signal(signal.SIGTERM)
    server.wait_exit()
    assert not path.exists()


NOT_COMMANDS = {
    "no JSON": (b"reload\n", "expected one line of JSON"),
    "no line": (b'{"command": "reload"}', "expected one line of JSON"),
    "no command": (b"[1]\n", "expected one line of JSON"),
    "an unknown one": (b'{"command": "rm"}\n', "there is no command 'rm'; there are reload, stop"),
    "a line without an end": (b"x" * 100_000, "expected one line of JSON"),
    "an unknown kind": (b'{"command": "reload", "kind": "wild"}\n', "no reload of the kind 'wild'"),
    "a kind of ours": (b'{"command": "reload", "kind": "restart"}\n', "no reload of the kind 'restart'"),
    "too deep": (b"[" * 60_000 + b"\n", "expected one line of JSON"),
    "no such worker": (b'{"command": "recycle", "worker": 99}\n', "there is no worker 99 that serves"),
    "too many workers": (b'{"command": "scale", "workers": 99}\n', "expected a number of workers from 1 to 1"),
    "too few": (b'{"command": "scale", "workers": 0}\n', "expected a number of workers from 1 to 1"),
    "no number": (b'{"command": "scale"}\n', "expected a number of workers from 1 to 1"),
}


def test_what_is_no_command(start: Start) -> None:
    server = start("socket = app.sock\ncontrol-socket = control.sock\n")
    for sent, told in NOT_COMMANDS.values():
        with Connection(str(server.directory / "control.sock")) as client:
            client.send(sent)
            client.half_close()
            answer = client.receive_until(b"\n").decode()
        assert told in answer, (sent, answer)
        assert answer.startswith('{"ok": false')
    assert uwsgi(server.address, "/").status


def test_a_control_socket_of_somebody_else(tmp_path: Path) -> None:
    """It says nothing, or nonsense."""
    path = str(tmp_path / "control.sock")
    for said in (b"", b"hello\n", b"[]\n"):
        with socket.socket(socket.AF_UNIX) as other:
            Path(path).unlink(missing_ok=True)
            other.bind(path)
            other.listen()
            command = [*WSGIMASTER, "workers", "--control-socket", path]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as asking:
                connection, _ = other.accept()
                connection.recv(1000)
                connection.sendall(said)
                connection.close()
                _, told = asking.communicate(timeout=60)
        assert (asking.returncode, "this is no control socket of ours" in told) == (1, True), told


def test_names_that_are_no_text_stop_nobody(start: Start) -> None:
    server = start("socket = app.sock\n")
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(b"\0wsgimaster/\xff-%d" % os.getpid())
        odd.listen()
        done = subprocess.run(
            [*WSGIMASTER, "workers", "--pid", str(server.pid)], capture_output=True, timeout=60, check=False
        )
    assert done.returncode == 0


def test_who_interrupts_a_wait_is_not_told_that_it_is_done(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.deploy("time.sleep(60)")
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen([*WSGIMASTER, "reload", "--wait", "--pid", str(deployed.server.pid)]) as waiting:
            deployed.server.wait_log("loads the application", 1 + (number == signal.SIGTERM))
            waiting.send_signal(number)
            assert waiting.wait(30) == -number


def test_another_server_keeps_its_fifo(start: Start, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    first = start(f"socket = app.sock\nmaster-fifo = {fifo}\n")
    second = start(f"socket = app.sock\nmaster-fifo = {fifo}\n", ready="nothing")
    assert second.wait_exit() == 1
    assert f"master-fifo = {fifo}: another server reads it" in second.log()
    fifo.write_text("s")
    first.wait_log(r"^\*\*\* pid")


def test_only_root_and_its_own_user_may_command_a_server(start: Start, readable: list[str]) -> None:
    if os.geteuid():
        pytest.fail("this test becomes another user: run it as root")
    server = start("socket = app.sock\n")
    stranger = subprocess.run(
        [*readable, "setpriv", "--reuid=nobody", "--clear-groups", *WSGIMASTER, "stop", "--pid", str(server.pid)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert stranger.returncode == 1
    assert "only root and the server's user (uid 0) may command it" in stranger.stderr
    assert server.running()


# ---- uWSGI's own forms ----


def say(*words: str) -> tuple[int, str]:
    done = subprocess.run([*WSGIMASTER, *words], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_pidfile_options(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    pidfile = str(deployed.server.directory / "pid")
    deployed.deploy("VERSION = 'two'")
    assert say("--reload", pidfile) == (0, "")
    deployed.server.wait_log("gracefully reloaded: generation 2")
    assert say("--pause", pidfile) == (0, "")
    deployed.server.wait_log("paused")
    assert say("--resume", pidfile) == (0, "")
    deployed.server.wait_log("resumed")
    assert say("--stop", pidfile) == (0, "")
    assert deployed.server.wait_exit() == 0
    assert say("--stop", pidfile) == (
        255,
        f"wsgimaster: SIGTERM to {deployed.server.pid} (of {pidfile}): No such process\n",
    )


def test_a_pidfile_without_a_pid(tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.touch()
    assert say("--reload", str(missing)) == (1, f"wsgimaster: pidfile {missing}: No such file or directory\n")
    assert say("--reload", str(empty)) == (1, f"wsgimaster: pidfile {empty}: no number\n")


@pytest.mark.parametrize("address", ["app.sock", "@wsgimaster-ping-{pid}", "127.0.0.1:{port}"])
def test_ping(start: Start, address: str) -> None:
    address = address.format(pid=os.getpid(), port=free_port())
    server = start(f"socket = {address}\n")
    found = str(server.directory / address) if address == "app.sock" else address
    assert say("--ping", found) == (0, "")
    server.signal(signal.SIGTERM)
    server.wait_exit()
    code, told = say("--ping", found)
    assert (code, told.startswith(f"wsgimaster: ping {found}: ")) == (1, True)


def test_recycle_and_scale(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path, processes=3)
    old = deployed.server.wait_workers(3)
    assert deployed.operate("recycle", "2").returncode == 0
    wait_until(lambda: deployed.server.workers()[1].pid != old[1].pid)
    deployed.server.wait_log(r"worker 2 buried")
    assert deployed.operate("scale", "1").returncode == 0
    deployed.server.wait_workers(1)
    assert deployed.operate("scale", "3").returncode == 0
    deployed.server.wait_workers(3)


def gets_nothing(client: Connection) -> bool:
    """For a second."""
    return not select.select([client.socket], [], [], 1)[0]


@pytest.mark.parametrize("way", ["auto", "push"])
def test_a_pause(start: Start, tmp_path: Path, way: str) -> None:
    """Requests wait, none is lost."""
    deployed = Deployed(start, tmp_path, f"dispatch = {way}")
    assert deployed.operate("pause").returncode == 0
    with Connection(deployed.server.address) as client:
        client.send(packet(cgi("/")))
        assert gets_nothing(client)
        assert deployed.operate("resume").returncode == 0
        assert client.answer().status == 200
    with deployed.under_load():
        for times in (2, 3):  # each with both lines
            deployed.server.signal(signal.SIGTSTP)
            deployed.server.wait_log(r"\*\*\* paused", times)
            deployed.server.signal(signal.SIGTSTP)
            deployed.server.wait_log(r"\*\*\* resumed", times)
    assert deployed.versions() == {"one"}


@pytest.mark.parametrize("way", ["auto", "push"])
def test_a_reload_during_a_pause(start: Start, tmp_path: Path, way: str) -> None:
    """New workers don't begin anything either."""
    deployed = Deployed(start, tmp_path, f"dispatch = {way}")
    assert deployed.operate("pause").returncode == 0
    with Connection(deployed.server.address) as client:
        client.send(packet(cgi("/")))
        deployed.deploy("VERSION = 'two'")
        assert deployed.reload().returncode == 0
        assert gets_nothing(client)
        assert deployed.operate("resume").returncode == 0
        assert client.answer().text.startswith("two")


def test_who_waits_gets_a_worker_after_a_pause_although_another_is_busy(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    with Connection(deployed.server.address) as busy, Connection(deployed.server.address) as client:
        busy.send(packet(cgi(f"/gate?{tmp_path / 'gate'}")))
        wait_until(lambda: " 1 run" in deployed_state(deployed))
        assert deployed.operate("pause").returncode == 0
        client.send(packet(cgi("/")))
        assert deployed.operate("resume").returncode == 0
        assert client.answer().status == 200
        (tmp_path / "gate").touch()
        assert busy.answer().status == 200


def test_a_fast_stop_during_a_pause_begins_nothing(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    assert deployed.operate("pause").returncode == 0
    with Connection(deployed.server.address) as client:
        client.send(packet(cgi(f"/gate?{tmp_path / 'gate'}")))
        assert deployed.operate("stop", "--fast", "--wait").returncode == 0
        assert client.answer().status == 503
    assert not (tmp_path / "begun").exists()


def test_a_second_graceful_stop_cuts_nothing(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    with Connection(deployed.server.address) as client:
        client.send(packet(cgi(f"/gate?{tmp_path / 'gate'}")))
        wait_until(lambda: " 1 run" in deployed_state(deployed))
        deployed.server.signal(signal.SIGTERM)
        deployed.server.wait_log("stopping gracefully")
        assert deployed.operate("stop").returncode == 0
        deployed.server.wait_log("stop asked for: it is stopping already")
        (tmp_path / "gate").touch()
        assert client.answer().status == 200


@pytest.mark.parametrize("letter", ["R", "W"])
def test_brutal_reloads_do_not_wait_for_the_mercy(start: Start, tmp_path: Path, letter: str) -> None:
    deployed = Deployed(start, tmp_path, "worker-reload-mercy = 3600")
    with Connection(deployed.server.address) as client:
        client.send(packet(cgi(f"/gate?{tmp_path / 'gate'}")))
        wait_until(lambda: " 1 run" in deployed_state(deployed))
        deployed.write(letter)
        deployed.server.wait_log("NO MERCY")
        assert client.answer().status in (0, 502)


def test_ctrl_z_stops_no_worker(start: Start, tmp_path: Path) -> None:
    """The terminal sends it to the whole group."""
    deployed = Deployed(start, tmp_path)
    for times in (1, 2):
        os.killpg(deployed.server.pid, signal.SIGTSTP)
        deployed.server.wait_log("paused" if times == 1 else "resumed")
    assert deployed.versions() == {"one"}


def test_a_stop_during_a_pause_serves_who_waits(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.write("p")
    deployed.server.wait_log(r"\*\*\* paused: requests wait \*\*\*")
    with Connection(deployed.server.address) as client:
        client.send(packet(cgi("/")))
        deployed.server.signal(signal.SIGTERM)
        assert client.answer().status == 200


# ---- letters and signals ----


LETTERS: dict[str, Callable[[Deployed], object]] = {
    "r": lambda deployed: deployed.server.wait_log("gracefully reloaded: generation 2"),
    "R": lambda deployed: deployed.server.wait_log("gracefully reloaded: generation 2"),
    "w": lambda deployed: deployed.server.wait_log("workers reloaded: generation 2"),
    "W": lambda deployed: deployed.server.wait_log("workers reloaded: generation 2"),
    "c": lambda deployed: deployed.server.wait_log("chain reloading complete: generation 2"),
    "q": lambda deployed: deployed.server.wait_exit(),
    "Q": lambda deployed: deployed.server.wait_exit(),
    "p": lambda deployed: deployed.server.wait_log("paused"),
    "pp": lambda deployed: deployed.server.wait_log("resumed"),
    "s": lambda deployed: deployed.server.wait_log(r"^worker 2 \(pid: \d+, generation 1\): ready, \d+ requests served"),
    "-": lambda deployed: deployed.server.wait_log(r"^cheaper: 2 -> 1 workers: 1 were asked for"),
    "C": lambda deployed: deployed.server.wait_log("cheaped", 2),
    "P": lambda deployed: wait_until((deployed.server.directory / "pid").exists),
    "B": lambda deployed: deployed.server.wait_log("there is no emperor to ask for reinforcements"),
    "E": lambda deployed: deployed.server.wait_log("there is no emperor"),
    "S": lambda deployed: deployed.server.wait_log("there are no subscriptions"),
    "\nr": lambda deployed: deployed.server.wait_log("gracefully reloaded: generation 2"),
}


@pytest.mark.parametrize("letters", LETTERS)
def test_letters_in_the_fifo(start: Start, tmp_path: Path, letters: str) -> None:
    deployed = Deployed(start, tmp_path)
    assert (deployed.server.directory / "fifo").stat().st_mode & 0o777 == 0o600
    if letters == "P":
        (deployed.server.directory / "pid").unlink()
    deployed.write(letters)
    LETTERS[letters](deployed)
    if letters not in "qQp":
        assert deployed.version() == "one"  # also when it was cheap: a request brings workers back


def test_plus_takes_a_minus_back(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.write("-")
    deployed.server.wait_workers(1)
    deployed.write("+")
    deployed.server.wait_workers(2)


def test_the_log_is_reopened_and_rotated(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path, "logto = server.log")  # where the harness looks for it
    log = deployed.server.log_path
    log.rename(log.with_name("moved"))
    deployed.write("l")
    wait_until(log.exists)
    deployed.write("s")
    wait_until(lambda: "requests served" in log.read_text())
    deployed.write("L")
    (rotated,) = wait_until(lambda: list(log.parent.glob("server.log.[0-9]*"))) or []
    assert "requests served" in rotated.read_text()
    wait_until(log.exists)


def test_fifo_slots(start: Start, tmp_path: Path) -> None:
    deployed = Deployed(start, tmp_path, "master-fifo = second")
    first, second = deployed.server.directory / "fifo", deployed.server.directory / "second"
    assert not second.exists()
    deployed.write("1")
    deployed.server.wait_log("active master fifo is now second")
    assert (first.exists(), second.exists()) == (False, True)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_end_nothing(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    deployed = Deployed(start, tmp_path)
    deployed.server.signal(number)
    deployed.server.wait_log(r"^\*\*\* pid \d+, generation 1" if number is signal.SIGUSR1 else "SIGUSR2 means nothing")
    assert deployed.version() == "one"


def test_a_fifo_that_is_another_kind_of_file(start: Start, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x" * 1000)
    server = start(f"socket = app.sock\nmaster-fifo = {precious}\n", ready="nothing")
    assert server.wait_exit() == 1
    assert f"master-fifo = {precious}: there is a file of another kind; remove it" in server.log()
    assert precious.read_text() == "x" * 1000
