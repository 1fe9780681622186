"""Started by root with uid and gid: what needs root happens first, then nobody in the tree has it any more."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from support.client import Connection, cgi, packet, uwsgi
from support.harness import APPS, COMMAND, Server, directory, free_port, status_field
from support.wait import wait_until

Start = Callable[..., Server]

USER = "www-data"
GROUP = "daemon"


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.fail("these tests start the server as root: run them as root, or in a container")


@pytest.fixture
def start(start: Start, readable: list[str]) -> Start:
    return partial(start, command=[*readable, *COMMAND])


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the user may write to, so that the order of binding and dropping doesn't matter."""
    path = directory()
    user = pwd.getpwnam(USER)
    os.chown(path, user.pw_uid, user.pw_gid)
    yield path
    shutil.rmtree(path)


def ids(user: str, group: str) -> tuple[int, int]:
    return pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid


def options(*lines: str) -> str:
    common = ["socket = app.sock", f"pythonpath = {APPS}", "module = probe", "processes = 2", "need-app = true"]
    return "\n".join([*common, *lines]) + "\n"


IDENTITIES = {
    "names": (f"uid = {USER}\ngid = {GROUP}", USER, GROUP),
    "numbers": ("uid = {}\ngid = {}".format(*ids(USER, GROUP)), USER, GROUP),
}


@pytest.mark.parametrize(("lines", "user", "group"), IDENTITIES.values(), ids=IDENTITIES)
def test_whole_tree_drops(start: Start, place: Path, lines: str, user: str, group: str) -> None:
    """All four user and group ids, the further groups, the capabilities, and no way back."""
    server = start(options(lines, "threads = 2"), where=place)
    server.wait_workers(2)
    uid, gid = (str(number) for number in ids(user, group))
    tree = server.processes()
    assert len(tree) >= 3
    for process in tree:
        assert status_field(process.pid, "Uid") == [uid] * 4
        assert status_field(process.pid, "Gid") == [gid] * 4
        assert "0" not in status_field(process.pid, "Groups")
        assert status_field(process.pid, "CapEff") == ["0" * 16]
        assert status_field(process.pid, "CapPrm") == ["0" * 16]
        assert status_field(process.pid, "NoNewPrivs") == ["1"]


def test_application_never_saw_root(start: Start, place: Path) -> None:
    server = start(options(f"uid = {USER}\ngid = {USER}"), where=place)
    uid, gid = ids(USER, USER)
    about = json.loads(uwsgi(server.address, "/identity").body)
    assert about["loaded_as"][:2] == about["now"][:2] == [uid, gid]
    assert 0 not in about["loaded_as"][2] + about["now"][2]


def test_replaced_worker_has_dropped_too(start: Start, place: Path) -> None:
    server = start(options(f"uid = {USER}\ngid = {USER}"), where=place)
    first, _ = server.wait_workers(2)
    os.kill(first.pid, 9)
    server.wait_log("DAMN ! worker")
    new, _ = server.wait_workers(2)
    assert status_field(new.pid, "Uid") == [str(ids(USER, USER)[0])] * 4
    assert status_field(new.pid, "NoNewPrivs") == ["1"]


def test_uid_alone_takes_the_group_of_nobody_but_root(start: Start, place: Path) -> None:
    """Without gid the group stays; the user's other groups are there, root's are not."""
    server = start(options(f"uid = {USER}"), where=place)
    (first, *_) = server.wait_workers(2)
    assert status_field(first.pid, "Uid") == [str(ids(USER, USER)[0])] * 4
    assert status_field(first.pid, "CapEff") == ["0" * 16]


OWNERS = {
    "the dropped user": ("", (USER, USER)),
    "chown-socket": (f"chown-socket = {USER}:{GROUP}", (USER, GROUP)),
    "chown-socket, user alone": (f"chown-socket = {GROUP}", (GROUP, None)),
}


@pytest.mark.parametrize(("line", "owner"), OWNERS.values(), ids=OWNERS)
def test_socket_belongs_to(start: Start, place: Path, line: str, owner: tuple[str, str | None]) -> None:
    server = start(options(f"uid = {USER}\ngid = {USER}\nchmod-socket = 660\n{line}"), where=place)
    found = Path(server.address).stat()
    user, group = owner
    assert found.st_uid == pwd.getpwnam(user).pw_uid
    assert group is None or found.st_gid == grp.getgrnam(group).gr_gid
    assert stat.S_IMODE(found.st_mode) == 0o660


def test_what_needs_root_happens_first(start: Start) -> None:
    """Socket, log and pidfile are in a directory that belongs to root alone."""
    server = start(
        options(f"uid = {USER}", f"gid = {USER}", "logto = own.log", "pidfile = own.pid", f"chown-socket = {USER}")
    )
    assert (server.directory / "own.pid").read_text() == f"{server.pid}\n"
    assert uwsgi(server.address, "/hello").status == 200
    wait_until(lambda: "spawned uWSGI worker" in (server.directory / "own.log").read_text())


def test_low_port(start: Start) -> None:
    start(options("socket = 127.0.0.1:789", f"uid = {USER}", f"gid = {USER}", f"chown-socket = {USER}"))
    assert uwsgi(("127.0.0.1", 789), "/hello").status == 200


@pytest.mark.parametrize("transport", [0, 1], ids=["unix", "TCP"])
def test_graceful_stop_without_root(start: Start, place: Path, transport: int) -> None:
    """Closing the door needs no right that was given up."""
    lines = [f"uid = {USER}", f"gid = {USER}", f"socket = 127.0.0.1:{free_port()}", "processes = 1"]
    server = start(options(*lines), where=place)
    server.wait_workers(1)
    address = server.addresses[transport]
    begun = place / "begun"
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(address)) for _ in range(3)]
        for client in clients:
            client.send(packet(cgi("/count?seconds=1", HTTP_X_FILE=str(begun))))
        wait_until(begun.exists)
        server.signal(signal.SIGTERM)
        wait_until(lambda: not server.listening(), message="the door is closed")
        assert [client.answer().status for client in clients] == [200] * 3
    assert server.wait_exit() == 0
    assert "Traceback" not in server.log()


# limits and priorities

UIDS = count(1_000_000 + 100 * os.getpid())  # no passwd entry, and no process but one test's


@pytest.fixture
def nobody() -> int:
    return next(UIDS)


def test_limit_nproc_counts_for_workers_only(start: Start, nobody: int) -> None:
    """One of them starts what it can; a dead worker is replaced all the same."""
    lines = ["dispatch-order = even", "limit-nproc = 11", f"uid = {nobody}", f"gid = {nobody}"]
    server = start(options(*lines).replace("module = probe", "module = processes"))
    server.wait_workers(2)
    own = sum(len(os.listdir(f"/proc/{process.pid}/task")) for process in server.processes())
    forked = json.loads(uwsgi(server.address, "/fork?50").body)
    assert forked["result"] == [11 - own, "Resource temporarily unavailable"]
    (other,) = {worker.pid for worker in server.workers()} - {forked["pid"]}
    os.kill(other, signal.SIGKILL)
    server.wait_log("DAMN ! worker")
    server.wait_workers(2)
    wait_until(lambda: json.loads(uwsgi(server.address, "/end_children").body)["pid"] == forked["pid"])


def test_limit_nproc_leaves_the_server_whole(start: Start, nobody: int) -> None:
    """A limit below what it needs itself counts as that; all threads of both workers start."""
    lines = ["processes = 2", "threads = 4", "limit-nproc = 3", f"uid = {nobody}", f"gid = {nobody}"]
    server = start(options(*lines))
    server.wait_workers(2)
    pids = [worker.pid for worker in server.workers()]
    wait_until(lambda: [len(os.listdir(f"/proc/{pid}/task")) for pid in pids] == [4, 4])
    server.wait_log("limit-nproc: counts as 23, which is what the server itself may have")


def test_prio_below_zero_is_set_before_the_drop(start: Start) -> None:
    server = start(options("prio = -3", f"uid = {USER}", f"gid = {USER}"))
    server.wait_workers(2)
    assert {process.nice() for process in server.processes()} == {-3}


def test_prio_below_zero_without_root_is_told(start: Start, readable: list[str], nobody: int) -> None:
    become = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
    text = options("prio = -3").replace("app.sock", f"@wsgimaster-test-{os.getpid()}")
    server = start(text, command=[*readable, *become, *COMMAND])
    server.wait_log(
        r"WARNING: prio = -3 has no effect \(Permission denied: only root can make its processes less nice\)"
    )
    assert {process.nice() for process in server.processes()} == {0}


UNKNOWN = {"user": ("uid", "no-such-user"), "group": ("gid", "no-such-group")}


@pytest.mark.parametrize(("option", "name"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_name_ends_the_start(start: Start, option: str, name: str) -> None:
    server = start(options(f"{option} = {name}"), ready="nothing")
    assert server.wait_exit() == 1
    assert name in server.log()


def test_an_upgrade_gives_nothing_back(start: Start, place: Path) -> None:
    """It happens without root, and its log, pidfile and sockets are those that root has opened."""
    server = start(options(f"uid = {USER}", f"gid = {USER}", "logto = server.log", "pidfile = pid"), where=place)
    done = subprocess.run(
        [sys.executable, "-m", "wsgimaster", "upgrade", "--pid", str(server.pid)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    user = str(ids(USER, USER)[0])
    server.wait_log(r"worker \d buried", 2)
    for process in server.processes():
        assert status_field(process.pid, "Uid") == [user] * 4
    assert uwsgi(server.address, "/hello").status == 200
