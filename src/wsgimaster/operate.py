"""`wsgimaster reload`, `stop`, `workers` and their like: commands for a server that runs (control.py is its side).

Which server? The only one that this user may command, or the one that `--pid`, `--pidfile` or `--control-socket` names.

Exit codes: 0 done; 1 refused or failed, and stderr says why; 2 the command line is wrong.
"""

import argparse
import contextlib
import json
import os
import re
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from wsgimaster.config.addresses import parse_address
from wsgimaster.control import PREFIX, peer
from wsgimaster.errors import StartError
from wsgimaster.settings import Family, Protocol

PATIENCE = 10.0  # seconds for an answer
PING_PATIENCE = 3.0
LISTENING = "00010000"  # __SO_ACCEPTCON in /proc/net/unix


def parser() -> argparse.ArgumentParser:
    which = argparse.ArgumentParser(add_help=False)
    group = which.add_mutually_exclusive_group()
    group.add_argument("--pid", type=int, help="of the master")
    group.add_argument("--pidfile", metavar="FILE", help="with the master's pid")
    group.add_argument("--control-socket", metavar="PATH", help="as in its configuration")
    made = argparse.ArgumentParser("wsgimaster", description="Command a server that runs.", allow_abbrev=False)
    commands = made.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[which], allow_abbrev=False)

    reload = command("reload", "Load configuration and application anew; the old workers serve until new ones do.")
    kinds = reload.add_mutually_exclusive_group()
    kinds.add_argument("--workers", dest="kind", action="store_const", const="workers", help="only the application")
    kinds.add_argument("--chain", dest="kind", action="store_const", const="chain", help="one worker after the other")
    reload.set_defaults(kind="graceful")
    reload.add_argument("--wait", action="store_true", help="until the last new worker serves, or until it has failed")
    command(
        "upgrade",
        "Become the version that is installed now, and read everything anew; wait until that serves. If the workers "
        "can't be kept (another number of processes or threads), requests wait until they have ended and others serve.",
    )
    stop = command("stop", "Serve what has come, then end.")
    stop.add_argument("--fast", action="store_true", help="don't wait for requests")
    stop.add_argument("--wait", action="store_true", help="until the server has ended")
    command("workers", "Show what the workers do.")
    recycle = command("recycle", "Replace a worker by a fresh one.")
    recycle.add_argument("worker", type=int, help="its number")
    scale = command("scale", "Have so many workers, until the load or somebody else says otherwise.")
    scale.add_argument("workers", type=int)
    command("pause", "Take no more requests; they wait.")
    command("resume", "Go on.")
    return made


def run(arguments: list[str]) -> int:
    """Returns the exit code. Raises StartError if there is no such server, or it can't be asked."""
    options = parser().parse_args(arguments)
    connection = find(options.pid, options.pidfile, options.control_socket)
    pidfd = -1
    if options.command == "stop" and options.wait:
        try:
            pidfd = os.pidfd_open(peer(connection)[0])
        except OSError as error:
            raise StartError(f"the server's process can't be watched: {error.strerror}") from error
    waits = options.command == "upgrade" or (options.command == "reload" and options.wait)
    answer = ask(connection, vars(options), None if waits else PATIENCE)
    if not answer["ok"]:
        print(printable(f"wsgimaster {options.command}: {answer.get('error')}"), file=sys.stderr)
        return 1
    if pidfd >= 0:
        select.select([pidfd], [], [])
    for warning in answer.get("warnings", ()):
        print(printable(str(warning)), file=sys.stderr)
    if isinstance(workers := answer.get("workers"), list):
        print(table(workers))
    if said := answer.get("said"):
        print(printable(str(said)))
    return 0


def printable(text: str) -> str:
    """Without what would act on a terminal."""
    return "".join(one if one.isprintable() or one == "\n" else "?" for one in text)


def ask(connection: socket.socket, command: dict[str, Any], patience: float | None) -> dict[str, Any]:
    """One command, one answer. patience: seconds for it. Raises StartError if what comes is none."""
    connection.settimeout(patience)
    line = b""
    try:
        with contextlib.suppress(BrokenPipeError):  # it has answered before it was asked: that we may not ask
            connection.sendall(json.dumps(command).encode() + b"\n")
        while piece := connection.recv(1 << 16):
            line += piece
        answer = json.loads(line)
        if not isinstance(answer, dict) or "ok" not in answer:
            raise ValueError("no answer of a control socket")
    except OSError as error:
        raise StartError(f"the server doesn't answer: {error.strerror or error}") from error
    except ValueError:
        shown = printable(line[:100].decode("utf-8", "replace")) or "nothing"
        raise StartError(f"this is no control socket of ours, or the server has just ended: it said {shown}") from None
    finally:
        connection.close()
    return answer


def find(pid: int | None, pidfile: str | None, path: str | None) -> socket.socket:
    """A connection to the server."""
    if path is not None:
        connection = connect(path, path)
        owner = os.lstat(path).st_uid
        if peer(connection)[1] not in (0, os.geteuid(), owner):
            raise StartError(f"{path}: who answers there is neither its owner nor root")
        return connection
    if pidfile is not None:
        try:
            pid = int(Path(pidfile).read_text())
        except (OSError, ValueError) as error:
            raise StartError(
                f"pidfile {pidfile}: {getattr(error, 'strerror', None) or 'there is no number'}"
            ) from error
    found = running(pid)
    if len(found) == 1:
        return found[0]
    if found:
        which = "".join(f"\n  --pid {peer(one)[0]}{where_it_works(peer(one)[0])}" for one in found)
        raise StartError(f"several servers run; say which, or name its --pidfile or --control-socket:{which}")
    whom = "no server runs" if pid is None else f"no server runs with pid {pid}"
    raise StartError(
        f"{whom} in this network namespace (one with control-socket = PATH is found with --control-socket)"
    )


def where_it_works(pid: int) -> str:
    """For people: its directory, if it may be known."""
    with contextlib.suppress(OSError):
        return f"  in {os.readlink(f'/proc/{pid}/cwd')}"
    return ""


def running(pid: int | None) -> list[socket.socket]:
    """Connections to the control sockets with an abstract name, each checked to be that process's own, and that of a
    user who may be the one that is meant: root's, our own; for root, anybody's. pid: only this one's."""
    found = []
    table = Path("/proc/net/unix").read_bytes().decode("utf-8", "replace")  # names may hold any byte
    for line in table.splitlines()[1:]:
        fields = line.split()
        match = re.fullmatch(rf"@({re.escape(PREFIX)}(\d+)(-\d+)?)", fields[7]) if len(fields) > 7 else None
        if match is None or fields[3] != LISTENING or pid not in (None, int(match[2])):
            continue
        with contextlib.suppress(StartError):
            connection = connect("\0" + match[1], match[1])
            whose, uid = peer(connection)
            if whose == int(match[2]) and (os.geteuid() == 0 or pid is not None or uid in (0, os.geteuid())):
                found.append(connection)
    return found


def connect(address: str, name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(address)
    except OSError as error:
        connection.close()
        raise StartError(f"{name}: {error.strerror or error}") from error
    return connection


# ---- as uWSGI does it ----

SIGNALS = {"stop": signal.SIGTERM, "reload": signal.SIGHUP, "pause": signal.SIGTSTP}
PING = bytes([100, 0, 0, 0])  # modifier1 of a ping, no variables


def signal_pidfile(path: str, number: signal.Signals) -> int:
    """`--stop FILE` and its like. 0; 1: there is no pid in that file; 255: it can't be signalled."""
    try:
        pid = int(Path(path).read_text())
        if pid <= 0:  # a process group, or everybody
            raise ValueError
    except (OSError, ValueError) as error:
        print(f"wsgimaster: pidfile {path}: {getattr(error, 'strerror', None) or 'no number'}", file=sys.stderr)
        return 1
    try:
        os.kill(pid, number)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "that is no pid"
        print(f"wsgimaster: {number.name} to {pid} (of {path}): {why}", file=sys.stderr)
        return 255
    return 0


def ping(text: str) -> int:
    """`--ping ADDRESS`: 0: it answers; 1: it doesn't; 2: it has a warning, which is printed."""
    try:
        address, _ = parse_address(text, Protocol.UWSGI, abstract=False)
        if address.family is Family.TCP:
            connection = socket.create_connection((address.host or "127.0.0.1", address.port), PING_PATIENCE)
        else:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(PING_PATIENCE)
        with connection:
            if address.family is not Family.TCP:
                connection.connect("\0" * (address.family is Family.ABSTRACT) + address.path)
            connection.sendall(PING)
            answer = connection.recv(65536)
    except (OSError, ValueError) as error:
        print(f"wsgimaster: ping {text}: {error}", file=sys.stderr)
        return 1
    if answer[:1] != PING[:1]:
        print(f"wsgimaster: ping {text}: what answers there isn't a uwsgi server", file=sys.stderr)
        return 1
    if warning := answer[4:].decode("utf-8", "replace"):
        print(warning)
    return 2 if warning else 0


def table(workers: list[dict[str, Any]]) -> str:
    """One line each."""
    lines = ["worker      pid  generation  state      busy  requests  age, s"]
    lines += [
        f"{one['worker']:6} {one['pid']:8}  {one['generation']:10}  {one['state']:9}  {one['busy']:4}"
        f"  {one['requests']:8}  {one['age']:6.0f}"
        for one in workers
    ]
    return "\n".join(lines)
