"""hook-* and exec-*: small deeds at certain moments, and what happens when one fails."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.client import uwsgi
from support.harness import Server
from support.wait import wait_until

from wsgimaster import hooks

Start = Callable[..., Server]

APPLICATION = """
import os
def application(environ, start_response):
    start_response("200 OK", [])
    return [f"{os.getcwd()} {os.environ.get('SEEN', '')}".encode()]
"""


def options(where: Path, *more: str) -> str:
    (where / "app.py").write_text(APPLICATION)
    return "\n".join(["socket = app.sock", f"wsgi-file = {where / 'app.py'}", *more]) + "\n"


VERBS = {
    "exec": ("exec:echo $((1 + 2)) > {file}", "3\n"),
    "safeexec": ("safeexec:echo safe > {file}; exit 7", "safe\n"),
    "write": ("write:{file} two words", "two words"),
    "writen": ("writen:{file} a line", "a line\n"),
    "create": ("create:{file}", ""),
}


@pytest.mark.parametrize(("hook", "text"), VERBS.values(), ids=VERBS)
def test_verbs_that_write(tmp_path: Path, hook: str, text: str) -> None:
    hooks.run([hook.format(file=tmp_path / "file")], "asap")
    assert (tmp_path / "file").read_text() == text


def test_verbs_that_change_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    monkeypatch.setenv("HOOKED", "no")
    monkeypatch.chdir(tmp_path)
    todo = [f"write:{file} one", f"append:{file}  two", f"appendn:{file} .", f"chmod:{file} 640", f"mkdir:{directory}"]
    hooks.run([*todo, f"chown2:{file} {os.getuid()} {os.getgid()}", f"cd:{directory}", "putenv:HOOKED=yes=1"], "asap")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("one two.\n", 0o640)
    assert (os.getcwd(), os.environ["HOOKED"]) == (str(directory), "yes=1")
    hooks.run([f"unlink:{file}"], "asap")
    assert not file.exists()


FAILURES = {
    "a command's exit code": ("exec:exit 3", "hook-as-root = exec:exit 3: exit code 3"),
    "a signal": ("exec:kill -9 $$", "killed by signal 9"),
    "a missing file": ("unlink:/nowhere/at/all", "No such file or directory"),
    "too few words": ("chmod:/tmp", "expected two words"),
    "a user that isn't there": ("chown:/tmp nobody-knows-him root", "nobody-knows-him"),
    "what is hidden isn't shown": ("!exec:exit 4", "hook-as-root = exec:...: exit code 4"),
}


@pytest.mark.parametrize(("hook", "told"), FAILURES.values(), ids=FAILURES)
def test_failures(hook: str, told: str) -> None:
    with pytest.raises(hooks.HookError) as error:
        hooks.run([hook], "as-root")
    assert told in str(error.value)


def test_each_phase_in_its_turn(start: Start, tmp_path: Path) -> None:
    """Who runs it, and after what, is seen by the order of the lines in one file."""
    seen = tmp_path / "seen"
    phases = [
        "asap",
        "as-root",
        "as-user",
        "master-start",
        "pre-app",
        "post-app",
        "post-fork",
        "accepting",
        "accepting1",
    ]
    lines = [f"hook-{phase} = appendn:{seen} {phase}" for phase in [*reversed(phases), "as-user-atexit"]]
    server = start(options(tmp_path, *lines, f"exec-asap = echo command >> {seen}"))
    assert uwsgi(server.address, "/").status == 200
    expected = [phases[0], "command", *phases[1:]]
    assert seen.read_text().split() == expected
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert seen.read_text().split() == [*expected, "as-user-atexit"]


def test_what_it_changes_for_those_that_follow(start: Start, tmp_path: Path) -> None:
    place = tmp_path / "place"
    lines = [f"hook-asap = mkdir:{place}", "hook-as-root = putenv:SEEN=yes", f"hook-post-fork = chdir:{place}"]
    server = start(options(tmp_path, *lines))
    assert uwsgi(server.address, "/").text == f"{place} yes"


@pytest.mark.parametrize("phase", ["asap", "as-root", "as-user", "master-start", "pre-app", "post-app"])
def test_a_failure_ends_the_start(start: Start, tmp_path: Path, phase: str) -> None:
    server = start(options(tmp_path, f"hook-{phase} = exec:exit 3"), ready="nothing")
    assert server.wait_exit() == 1
    assert f"hook-{phase} = exec:exit 3: exit code 3" in server.log()


def test_a_failure_ends_a_reload_and_not_the_server(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    server = start(options(tmp_path, f"hook-accepting1 = exec:test ! -e {broken}"))
    assert uwsgi(server.address, "/").status == 200
    broken.touch()
    server.signal(signal.SIGHUP)
    server.wait_log("its first worker ended before it was ready: exit code 1; generation 1 goes on serving")
    assert uwsgi(server.address, "/").status == 200


UNIX_SIGNALS = {
    "gracefully_kill_them_all": "stopping gracefully",
    "kill_them_all": "stopping now",
    "grace_them_all": "gracefully reloaded: generation 2",
    "reap_them_all": "gracefully reloaded: generation 2",
}


@pytest.mark.parametrize("name", UNIX_SIGNALS)
def test_what_a_signal_means_can_be_changed(start: Start, tmp_path: Path, name: str) -> None:
    server = start(options(tmp_path, f"hook-master-start = unix_signal:{signal.SIGUSR2:d} {name}"))
    assert uwsgi(server.address, "/").status == 200
    server.signal(signal.SIGUSR2)
    server.wait_log(UNIX_SIGNALS[name])
    if "kill" in name:
        assert server.wait_exit() == 0


REFUSED = {
    "hook-asap = dance:tango": "expected verb:arguments with a verb of exec,",
    "hook-asap = exec": "expected verb:arguments",
    "hook-master-start = unix_signal:15 # gracefully_kill_them_all": "expected unix_signal:NUMBER NAME",
    "hook-master-start = unix_signal:99 kill_them_all": "expected unix_signal:NUMBER NAME",
    "exec-asap =": "expected a shell command",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused(start: Start, tmp_path: Path, line: str) -> None:
    server = start(options(tmp_path, line), ready="nothing")
    assert server.wait_exit() == 1
    assert REFUSED[line] in server.log()


def test_a_hidden_hook_is_not_in_the_log(start: Start, tmp_path: Path) -> None:
    server = start(options(tmp_path, f"hook-asap = !write:{tmp_path / 'key'} secret"))
    wait_until(lambda: "running" in server.log())
    assert "secret" not in server.log()
    assert (tmp_path / "key").read_text() == "secret"
