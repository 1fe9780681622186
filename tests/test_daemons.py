"""Programs that run beside the server: attach-daemon and its family, and what a touched file starts."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.deployed import Deployed, Start
from support.harness import is_running
from support.wait import wait_until

from wsgimaster.config.daemons import read_daemon
from wsgimaster.daemons import NOBODY, pause, running
from wsgimaster.settings import Daemon

# ---- how they are written ----

WRITTEN: dict[str, tuple[str, str, dict[str, object]]] = {
    "a command": ("attach-daemon", "./manage.py qcluster", {"command": ("./manage.py", "qcluster")}),
    "what only a shell understands": (
        "attach-daemon",
        "cd /srv && A=1 ./run",
        {"command": ("/bin/sh", "-c", "cd /srv && A=1 ./run")},
    ),
    "a shell of its own": (
        "attach-daemon",
        "sh -c 'echo $$ > pid; exec run'",
        {"command": ("sh", "-c", "echo $$ > pid; exec run")},
    ),
    "a variable in front": ("attach-daemon", "A=1 ./run", {"command": ("/bin/sh", "-c", "A=1 ./run")}),
    "with quotes": ("attach-daemon", "sh -c 'a b' \"c\"", {"command": ("sh", "-c", "a b", "c")}),
    "control": ("attach-control-daemon", "redis-server", {"command": ("redis-server",), "control": True}),
    "smart": (
        "smart-attach-daemon",
        "/run/m.pid memcached -d -P /run/m.pid",
        {"command": ("memcached", "-d", "-P", "/run/m.pid"), "pidfile": "/run/m.pid"},
    ),
    "smart, with seconds": (
        "smart-attach-daemon",
        "/run/m.pid,3 memcached",
        {"command": ("memcached",), "pidfile": "/run/m.pid", "patience": 3},
    ),
    "smart, in the foreground": (
        "smart-attach-daemon2",
        "/run/m.pid memcached",
        {"command": ("memcached",), "pidfile": "/run/m.pid", "detach": True},
    ),
    "pairs": (
        "attach-daemon2",
        "cmd=celery -A a\\,b,stopsignal=2,reloadsignal=1,touch=/a;/b,uid=33,gid=34,chdir=/srv,max_throttle=5,freq=2",
        {
            "command": ("celery", "-A", "a,b"),
            "stop_signal": 2,
            "reload_signal": 1,
            "touch": ("/a", "/b"),
            "uid": 33,
            "gid": 34,
            "chdir": "/srv",
            "longest_pause": 5,
            "patience": 2,
        },
    ),
    "pairs of a smart one": (
        "attach-daemon2",
        "pidfile=/p,daemonize=1,control=1,exec=a b",
        {"command": ("a", "b"), "pidfile": "/p", "detach": True, "control": True},
    ),
}


@pytest.mark.parametrize(("option", "text", "expected"), WRITTEN.values(), ids=WRITTEN)
def test_what_is_written(option: str, text: str, expected: dict[str, object]) -> None:
    daemon = read_daemon(option, text)
    assert daemon.model_dump(exclude_defaults=True, exclude={"text"}) == expected


WRONG = {
    "nothing": ("attach-daemon", "", "expected a command, found nothing"),
    "half a quote": ("attach-daemon", "sh -c 'a", "no closing quotation"),
    "no pidfile": ("smart-attach-daemon", "memcached", "expected PIDFILE[,SECONDS] COMMAND"),
    "no command": ("attach-daemon2", "pidfile=/p", "expected a command, found nothing"),
    "no pair": ("attach-daemon2", "cmd=a,b", "expected key=value, found 'b'"),
    "another key": (
        "attach-daemon2",
        "cmd=a,legion=x",
        "there is no key 'legion'; there are command, cmd",
    ),
    "a key that isn't served": ("attach-daemon2", "cmd=a,ns_pid=1", "ns_pid isn't served"),
    "no number": ("attach-daemon2", "cmd=a,freq=soon", "expected a number, found 'soon'"),
    "a number that is none": ("attach-daemon2", "cmd=a,stopsignal=99", "less than or equal to 64"),
}


@pytest.mark.parametrize(("option", "text", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong(option: str, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("[", r"\[").replace(";", ".")):
        read_daemon(option, text)


def test_pauses_grow_and_have_an_end() -> None:
    assert [pause(failures, 3) for failures in range(6)] == [0, 1, 2, 3, 3, 3]
    assert Daemon(text="a", command=("a",)).longest_pause == 300


# ---- what they do ----

NOTING = """#!/bin/sh
echo "$0 says hello, $*"
echo $$ >> {notes}
trap 'echo told to end; exit 0' TERM
trap 'echo told to reload' HUP
while :; do sleep 0.05; done
"""


class Beside(Deployed):
    """A server with a program beside it, which notes the pid of each of its lives."""

    def __init__(self, start: Start, where: Path, *lines: str, script: str = NOTING) -> None:
        self.notes, self.program = where / "notes", where / "program"
        self.program.write_text(script.format(notes=self.notes, where=where))
        self.program.chmod(0o755)
        super().__init__(start, where, *[line.format(program=self.program, where=where) for line in lines])

    def lives(self, count: int) -> list[int]:
        """The pids, as soon as there are so many."""
        return wait_until(lambda: pids if len(pids := self.pids()) >= count else None, 20, f"{count} lives") or []

    def pids(self) -> list[int]:
        with suppress(FileNotFoundError):
            return [int(line) for line in self.notes.read_text().split()]
        return []


def test_it_runs_beside_the_server_and_ends_with_it(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = {program} 'two words'")
    (pid,) = beside.lives(1)
    beside.server.wait_log("says hello, two words")
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert psutil.Process(pid).ppid() == beside.server.pid
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    beside.server.signal(signal.SIGTERM)
    assert beside.server.wait_exit() == 0
    assert "told to end" in beside.server.log()
    assert not is_running(pid)


def test_it_inherits_no_descriptor_of_ours(start: Start, tmp_path: Path) -> None:
    script = "#!/bin/sh\nls /proc/self/fd\necho $$ >> {notes}\nexec sleep 60\n"
    beside = Beside(start, tmp_path, "attach-daemon = {program}", script=script)
    beside.lives(1)
    numbers = {int(match[0]) for match in beside.server.wait_log(r"^\d+$", 4)}
    assert numbers == {0, 1, 2, 3}  # 3 is what ls reads


def test_one_that_ends_is_started_again(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = {program}")
    (first,) = beside.lives(1)
    os.kill(first, signal.SIGKILL)
    beside.server.wait_log(rf'\[uwsgi-daemons\] ".*program" \(pid: {first}\) ended \(killed by signal 9\)')
    assert len(beside.lives(2)) == 2
    beside.server.wait_log(r'\[uwsgi-daemons\] throttling ".*program" for 1 seconds')


def test_two_lines_that_are_alike_are_two(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = {program}", "attach-daemon = {program}")
    assert len(set(beside.lives(2))) == 2


def test_one_that_cannot_be_started(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = /nowhere/to/be/found", "attach-daemon2 = cmd=true,chdir=/nowhere")
    beside.server.wait_log(r'"/nowhere/to/be/found": /nowhere/to/be/found: there is no such program')
    beside.server.wait_log(r"ended \(exit code 126: it can't become that user, or enter that directory\)")
    beside.server.wait_log(r"throttling .* for 2 seconds", 2)
    assert beside.version() == "one"


def test_the_end_of_a_control_daemon_ends_the_server(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-control-daemon = {program}")
    (pid,) = beside.lives(1)
    os.kill(pid, signal.SIGKILL)
    assert beside.server.wait_exit() == 0
    assert 'attached control daemon "' in beside.server.log()


def test_one_that_ignores_signals_is_killed_after_the_mercy(start: Start, tmp_path: Path) -> None:
    deaf = "#!/bin/sh\ntrap '' TERM\necho $$ >> {notes}\nwhile :; do sleep 0.05; done\n"
    beside = Beside(start, tmp_path, "attach-daemon = {program}", "reload-mercy = 1", script=deaf)
    (pid,) = beside.lives(1)
    beside.server.signal(signal.SIGINT)
    assert beside.server.wait_exit() == 0
    assert not is_running(pid)


def test_it_dies_with_a_master_that_is_killed(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = {program}")
    (pid,) = beside.lives(1)
    beside.server.signal(signal.SIGKILL)
    beside.server.wait_exit()
    wait_until(lambda: not is_running(pid))


def test_a_graceful_reload_starts_it_again(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = {program}")
    (first,) = beside.lives(1)
    beside.deploy("raise ValueError")
    assert beside.reload().returncode == 1
    assert is_running(first)
    beside.deploy("VERSION = 'two'")
    assert beside.reload("--workers").returncode == 0
    assert is_running(first)
    assert beside.reload().returncode == 0
    wait_until(lambda: not is_running(first))
    assert len(beside.lives(2)) == 2
    assert "throttling" not in beside.server.log()


def test_one_with_a_reload_signal_gets_that(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon2 = cmd={program},reloadsignal=1")
    (pid,) = beside.lives(1)
    assert beside.reload().returncode == 0
    beside.server.wait_log("told to reload")
    assert beside.pids() == [pid]


def test_a_reload_may_bring_others(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path)
    beside.configure(f"attach-daemon = {beside.program}")
    assert beside.reload().returncode == 0
    (pid,) = beside.lives(1)
    beside.configure()
    assert beside.reload().returncode == 0
    wait_until(lambda: not is_running(pid))


def test_one_that_goes_and_comes_back_runs_once(start: Start, tmp_path: Path) -> None:
    """It crashes, and is taken out and put in again while it is being throttled: then it starts at once, and once."""
    crashing = "#!/bin/sh\necho $$ >> {notes}\ntest -e {where}/cured && exec sleep 60\n"
    line = "attach-daemon = {program}"
    beside = Beside(start, tmp_path, line, script=crashing)
    beside.server.wait_log("throttling .* for 3 seconds")
    crashes = len(beside.pids())
    beside.configure()
    assert beside.reload().returncode == 0
    (tmp_path / "cured").touch()
    beside.configure(line.format(program=beside.program))
    assert beside.reload().returncode == 0
    beside.lives(crashes + 1)
    assert beside.reload().returncode == 0  # which starts it again
    beside.lives(crashes + 2)
    assert sum(is_running(pid) for pid in beside.pids()) == 1


def test_a_reload_ends_a_pause(start: Start, tmp_path: Path) -> None:
    crashing = "#!/bin/sh\necho $$ >> {notes}\ntest -e {where}/cured && exec sleep 60\n"
    beside = Beside(start, tmp_path, "attach-daemon = {program}", script=crashing)
    beside.server.wait_log("throttling .* for 4 seconds")
    crashes = len(beside.pids())
    (tmp_path / "cured").touch()
    assert beside.reload().returncode == 0
    wait_until(lambda: is_running(beside.lives(crashes + 1)[-1]))


def test_it_has_the_variables_of_env(start: Start, tmp_path: Path) -> None:
    script = "#!/bin/sh\necho colour $COLOUR >&2\necho $$ >> {notes}\nexec sleep 60\n"
    beside = Beside(start, tmp_path, "env = COLOUR=green", "attach-daemon = {program}", script=script)
    beside.server.wait_log("^colour green")


def test_it_has_the_limits_that_the_server_was_started_with(start: Start, tmp_path: Path) -> None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    script = "#!/bin/sh\necho limit $(ulimit -Sn)\necho $$ >> {notes}\nexec sleep 60\n"
    beside = Beside(start, tmp_path, "attach-daemon = {program}", script=script)
    beside.server.wait_log(rf"^limit {soft}$")


def test_a_program_is_looked_for_where_it_will_work(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon2 = cmd=./program,chdir={where}")
    beside.lives(1)


def test_one_user_is_what_we_are_already(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, f"attach-daemon2 = cmd={{program}},uid={os.getuid()},gid={os.getgid()}")
    beside.lives(1)


def test_a_touched_file_starts_it_again(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon2 = cmd={program},touch={where}/touched")
    (first,) = beside.lives(1)
    (tmp_path / "touched").touch()
    assert len(beside.lives(2)) == 2
    assert not is_running(first)


def test_an_upgrade_keeps_it_until_the_reload(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = {program}")
    (first,) = beside.lives(1)
    assert beside.operate("upgrade").returncode == 0
    wait_until(lambda: not is_running(first))
    (_, second) = beside.lives(2)
    assert psutil.Process(second).ppid() == beside.server.pid
    os.kill(second, signal.SIGKILL)
    beside.server.wait_log(rf"\(pid: {second}\) ended \(killed by signal 9\)")


def test_an_upgrade_that_cannot_reload_keeps_it(start: Start, tmp_path: Path) -> None:
    """It is handed over, and only a reload that succeeds ends it."""
    beside = Beside(start, tmp_path, "attach-daemon = {program}")
    (first,) = beside.lives(1)
    seen = tmp_path / "seen"
    beside.deploy(f"VERSION = 'two'; seen = Path({str(seen)!r}); assert not seen.exists(); seen.touch()")
    assert beside.operate("upgrade").returncode == 1
    beside.server.wait_log(r"RE\)spawned uWSGI master process")
    assert is_running(first)
    os.kill(first, signal.SIGUSR2)  # its output is heard still
    beside.server.wait_log(rf"\(pid: {first}\) ended \(killed by signal 12\)")
    beside.lives(2)


def test_an_upgrade_may_take_it_away(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = {program}")
    (first,) = beside.lives(1)
    beside.configure()
    assert beside.operate("upgrade").returncode == 0
    wait_until(lambda: not is_running(first))
    assert beside.operate("upgrade").returncode == 0  # nothing is left of it
    beside.server.signal(signal.SIGTERM)
    assert beside.server.wait_exit() == 0


def test_an_upgrade_that_ends_the_workers_ends_it_too(start: Start, tmp_path: Path) -> None:
    beside = Beside(start, tmp_path, "attach-daemon = {program}")
    (first,) = beside.lives(1)
    beside.configure(f"attach-daemon = {beside.program}", processes=3)
    assert beside.operate("upgrade").returncode == 0
    assert not is_running(first)
    beside.lives(2)


# ---- those that outlive the server ----

DAEMONISING = """#!/bin/sh
echo started >> {notes}
setsid sh -c 'echo $$ > {where}/pidfile; exec sleep 60' > /dev/null 2>&1 < /dev/null &
"""
IN_THE_FOREGROUND = "#!/bin/sh\necho $$ >> {notes}\nexec sleep 60\n"
SMART: dict[str, tuple[str, str]] = {
    "by itself": ("smart-attach-daemon = {where}/pidfile {program}", DAEMONISING),
    "by us": ("smart-attach-daemon2 = {where}/pidfile {program}", IN_THE_FOREGROUND),
    "by us, in pairs": ("attach-daemon2 = cmd={program},pidfile={where}/pidfile,daemonize=1", IN_THE_FOREGROUND),
}


@pytest.fixture
def pidfile(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """The pid in it, as soon as it is there; whoever it is ends with the test."""
    path = tmp_path / "pidfile"
    seen: set[int] = set()

    def read() -> int | None:
        with suppress(OSError, ValueError):
            pid = int(path.read_text())
            seen.add(pid)
            return pid if is_running(pid) else None
        return None

    yield lambda: wait_until(read, 20, "a pid in the pidfile") or 0
    for pid in seen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("line", "script"), SMART.values(), ids=SMART)
def test_one_with_a_pidfile_outlives_reloads(
    start: Start, tmp_path: Path, pidfile: Callable[[], int], line: str, script: str
) -> None:
    beside = Beside(start, tmp_path, line, script=script)
    first = pidfile()
    assert beside.reload().returncode == 0
    assert beside.operate("upgrade").returncode == 0
    assert (pidfile(), is_running(first)) == (first, True)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pidfile() != first)
    beside.server.wait_log(rf"found changed pid for daemon \S* \({pidfile()}\)".replace("\\S*", '".*"'))
    os.kill(pidfile(), signal.SIGKILL)  # or the harness would find it


def test_it_is_still_there_after_the_server(start: Start, tmp_path: Path, pidfile: Callable[[], int]) -> None:
    line, script = SMART["by us"]
    beside = Beside(start, tmp_path, line, script=script)
    first = pidfile()
    beside.server.signal(signal.SIGTERM)
    assert beside.server.wait_exit() == 0
    assert is_running(first)
    os.kill(first, signal.SIGKILL)


SEVERAL = {
    "it stays in the foreground": ("smart-attach-daemon = {where}/pidfile,1 {program}", "did not daemonize !!!"),
    "the pidfile can't be written": ("smart-attach-daemon2 = {where}/no/pidfile,1 {program}", "No such file"),
    "the pidfile can't be read": ("smart-attach-daemon = {where},1 {program}", "did not daemonize !!!"),
}


@pytest.mark.parametrize(("line", "told"), SEVERAL.values(), ids=SEVERAL)
def test_one_that_runs_is_not_started_again(start: Start, tmp_path: Path, line: str, told: str) -> None:
    beside = Beside(start, tmp_path, line, script=IN_THE_FOREGROUND)
    try:
        beside.server.wait_log(told)
        view = beside.server.log_from_here()
        assert beside.reload().returncode == 0
        view.wait("gracefully reloaded")
        assert len([pid for pid in beside.pids() if is_running(pid)]) <= 1
    finally:
        for pid in beside.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_pidfile_of_another_time_names_nobody(tmp_path: Path) -> None:
    """The numbers of processes come again."""
    pidfile = tmp_path / "pid"
    with subprocess.Popen(["sleep", "60"]) as process:
        pidfile.write_text(f"{process.pid}\n")
        assert running(str(pidfile), set()) == process.pid
        assert running(str(pidfile), {process.pid}) == NOBODY
        os.utime(pidfile, (1, 1))
        assert running(str(pidfile), set()) == NOBODY
        process.kill()
    for text in (f"{os.getpid()}", f"{process.pid}", "-1", "0", "x", "", "9" * 30):
        pidfile.write_text(text)
        assert running(str(pidfile), set()) == NOBODY
    assert running(str(tmp_path / "none"), set()) == NOBODY


# ---- files that start something ----


def test_touch_exec_and_hook_touch(start: Start, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    deployed = Deployed(
        start,
        tmp_path,
        f"touch-exec = {touched} echo it was touched; exit 3",
        f"hook-touch = {touched} write:{tmp_path}/written some words",
        f"hook-touch = {touched} !exec:echo a secret; false",
    )
    touched.touch()
    deployed.server.wait_log("^it was touched")
    deployed.server.wait_log(r"^echo it was touched; exit 3 \(pid: \d+\) failed \(exit code 3\)")
    assert (wait_until((tmp_path / "written").exists), (tmp_path / "written").read_text()) == (True, "some words")
    deployed.server.wait_log(r"^\*\*\* hook-touch = exec:\.\.\.: exit code 1")
    deployed.server.wait_log(r"^exec:\.\.\. \(pid: \d+\) failed \(exit code 1\)")
    assert deployed.version() == "one"
