"""From the text of `attach-daemon` and its family to a Daemon."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

from wsgimaster.settings import Daemon

# attach-daemon2: what its keys mean, with how their texts are read. uWSGI has several names for some.
Reader = Callable[[str], object]


def read_number(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"expected a number, found {text[:60]!r}")
    return int(text)


# What a shell would do something about, beside words and quotes: variables, pipes, redirections, wildcards, comments,
# assignments in front. In single quotes it does nothing about them.
QUOTED = re.compile(r"'[^']*'")
FOR_A_SHELL = re.compile(r"[$`|&;<>()*?\[\]{}~#\n]|^\s*\w+=")


def read_words(command: str) -> tuple[str, ...]:
    """uWSGI has a shell read it. We do so only where that makes a difference: without one between, signals go to the
    program itself, and the kernel ends it with us."""
    if FOR_A_SHELL.search(QUOTED.sub("", command)):
        return ("/bin/sh", "-c", command)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{command[:60]!r}: {str(error).lower()}") from None
    if not words:
        raise ValueError("expected a command, found nothing")
    return tuple(words)


KEYS: dict[str, tuple[str, Reader]] = {
    "pidfile": ("pidfile", str),
    "freq": ("patience", read_number),
    "control": ("control", bool),
    "daemonize": ("detach", bool),
    "daemon": ("detach", bool),
    "touch": ("touch", lambda text: tuple(text.split(";"))),
    "stopsignal": ("stop_signal", read_number),
    "stop_signal": ("stop_signal", read_number),
    "reloadsignal": ("reload_signal", read_number),
    "reload_signal": ("reload_signal", read_number),
    "uid": ("uid", read_number),
    "gid": ("gid", read_number),
    "chdir": ("chdir", str),
    "max_throttle": ("longest_pause", read_number),
}
COMMANDS = ("command", "cmd", "exec")
NOT_SERVED = ("stdin", "ns_pid", "notifypid")


def read_daemon(option: str, text: str) -> Daemon:
    """Raises ValueError. option: its first name."""
    match option:
        case "attach-daemon":
            return Daemon(text=text, command=read_words(text))
        case "attach-control-daemon":
            return Daemon(text=text, command=read_words(text), control=True)
        case "attach-daemon2":
            return read_pairs(text)
    where, space, command = text.partition(" ")
    pidfile, comma, patience = where.partition(",")
    if not pidfile or not space:
        raise ValueError(f"expected PIDFILE[,SECONDS] COMMAND, found {text[:60]!r}")
    more: dict[str, Any] = {"patience": read_number(patience)} if comma else {}
    detach = option == "smart-attach-daemon2"
    return Daemon(text=command.strip(), command=read_words(command), pidfile=pidfile, detach=detach, **more)


def read_pairs(text: str) -> Daemon:
    """`cmd=redis-server /etc/redis.conf,pidfile=/run/redis.pid`: a backslash before a comma keeps it."""
    found: dict[str, Any] = {}
    command = ""
    for pair in re.split(r"(?<!\\),", text):
        key, equals, value = pair.replace("\\,", ",").strip().partition("=")
        if not equals:
            raise ValueError(f"expected key=value, found {pair[:60]!r}")
        if key in COMMANDS:
            command = value
        elif key in NOT_SERVED:
            raise ValueError(f"{key} isn't served; there are {', '.join([*COMMANDS, *KEYS])}")
        elif key not in KEYS:
            raise ValueError(f"there is no key {key[:60]!r}; there are {', '.join([*COMMANDS, *KEYS])}")
        else:
            name, read = KEYS[key]
            found[name] = read(value)
    return Daemon(text=command, command=read_words(command), **found)
