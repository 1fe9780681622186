"""The table of options: complete, consistent, and what the nearest name of a misspelled one is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from wsgimaster.config.help import help_text
from wsgimaster.config.options import (
    BY_NAME,
    FLAGS,
    LISTS,
    OPTIONS,
    TABLE,
    Argument,
    Kind,
    Option,
    State,
)
from wsgimaster.config.spelling import distance, nearest
from wsgimaster.config.values import READERS
from wsgimaster.settings import Settings

# Read or acted on while the configuration is read, so they fill no setting themselves.
ACT_AT_ONCE = {
    *("ini", "include", "strict", "set", "set-placeholder", "show-config"),
    *("help", "version", "cheaper-algo-list", "stop", "reload", "pause", "ping"),
}


def named(option: Option) -> str:
    return option.names[0]


def test_every_name_and_every_letter_stands_in_one_row() -> None:
    names = Counter(name for option in OPTIONS for name in option.names)
    letters = Counter(option.short for option in OPTIONS if option.short)
    assert [name for name, count in (names + letters).items() if count > 1] == []


def test_the_table_is_as_large_as_uwsgi() -> None:
    assert len([name for name in BY_NAME if not BY_NAME[name].ours]) >= 1000
    assert {name for name in BY_NAME if BY_NAME[name].ours} == {
        "allow-from",
        "http-buffer",
        "forwarded-allow",
        "dispatch",
        "dispatch-order",
        "queue-timeout",
        "recycle-budget",
        "spawn-timeout",
        "exit-deadline",
        "cheaper-queue-wait",
        "control-socket",
        "drain-delay",
        "health",
        "reload-check",
        "reload-surge",
        "reload-timeout",
    }


ROWS = {
    "a help text": lambda option: bool(option.help),
    "a reason if it is always on or refused": lambda option: (
        bool(option.reason) is (option.state in (State.ALWAYS_ON, State.REFUSED))
    ),
    "a setting if it works": lambda option: (
        bool(option.field) is (option.state is State.WORKS and option.names[0] not in ACT_AT_ONCE)
    ),
}


@pytest.mark.parametrize("holds", ROWS.values(), ids=ROWS.keys())
def test_every_row_has(holds: Callable[[Option], bool]) -> None:
    assert [option.names[0] for option in OPTIONS if not holds(option)] == []


@pytest.mark.parametrize("option", [each for each in OPTIONS if each.field], ids=named)
def test_a_working_option_fills_a_setting_that_exists(option: Option) -> None:
    section, _, name = option.field.partition(".")
    assert name in type(getattr(Settings(), section)).model_fields
    assert option.kind in READERS


LETTERS = {
    "s": "socket",
    "p": "processes",
    "t": "harakiri",
    "x": "xml",
    "S": "set",
    "d": "daemonize",
    "l": "listen",
    "v": "max-vars",
    "b": "buffer-size",
    "m": "memory-report",
    "c": "cgi-mode",
    "a": "abstract-socket",
    "C": "chmod-socket",
    "T": "enable-threads",
    "i": "single-interpreter",
    "M": "master",
    "h": "help",
    "r": "reaper",
    "R": "max-requests",
    "z": "socket-timeout",
    "A": "sharedarea",
    "Q": "spooler",
    "L": "disable-logging",
    "y": "yaml",
    "j": "json",
    "w": "module",
    "J": "test",
    "H": "home",
    "O": "optimize",
}


def test_letters_are_uwsgis() -> None:
    assert {option.short: option.names[0] for option in OPTIONS if option.short} == LETTERS


ALIASES = ["processes workers", "module wsgi", "wsgi-file file", "home virtualenv venv pyhome", "http httprouter"]
ALIASES += ["pythonpath python-path pp", "chmod-socket chmod", "set-placeholder set-ph", "protocol socket-protocol"]


@pytest.mark.parametrize("names", ALIASES)
def test_aliases_share_one_row(names: str) -> None:
    assert {BY_NAME[name].names for name in names.split()} == {tuple(names.split())}


# Flags that uWSGI's command line nevertheless wants a value for, and the other way round.
ARGUMENTS = {
    "http-quiet": Argument.REQUIRED,
    "log-sendfile": Argument.REQUIRED,
    "log-ioerror": Argument.REQUIRED,
    "alarm-cheap": Argument.REQUIRED,
    "so-send-timeout": Argument.NONE,
    "ssl-option": Argument.NONE,
    "need-app": Argument.OPTIONAL,
    "chmod-socket": Argument.OPTIONAL,
    "log-date": Argument.OPTIONAL,
    "mule": Argument.OPTIONAL,
    "post-buffering": Argument.REQUIRED,
    "version": Argument.NONE,
}


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS.items(), ids=ARGUMENTS.keys())
def test_odd_arguments_of_the_command_line(name: str, argument: Argument) -> None:
    assert BY_NAME[name].argument is argument


def test_kinds_are_read_in_one_way() -> None:
    assert not FLAGS & LISTS
    assert {option.kind for option in OPTIONS if option.field} <= set(READERS)
    assert Kind.LOGIC not in READERS


# The nearest name

MEANT = {
    "py-callos-afterfork": "py-call-osafterfork",
    "wsgi_file": "wsgi-file",
    "Master": "master",
    "PROCESSES": "processes",
    "cpu_affinity": "cpu-affinity",
    "vaccum": "vacuum",
    "vaccuum": "vacuum",
    "process": "processes",
    "thread": "threads",
    "socker": "socket",
    "daemoniz": "daemonize",
    "chmod-sock": "chmod-socket",
    "chown": "chown-socket",
    "guid": "gid",
    "master-log": "log-master",
    "no-orphan": "no-orphans",
    "logfile": "logto",
    "strict-mode": None,
    "user": "uid",
    "nice": "prio",
    "my-own-placeholder": None,
    "": None,
    "x" * 10_000: None,
}


@pytest.mark.parametrize(("written", "meant"), MEANT.items(), ids=lambda value: str(value)[:30])
def test_nearest(written: str, meant: str | None) -> None:
    assert nearest(written) == meant


def mutated(name: str, dice: random.Random) -> str:
    """Return the name with one slip of a typing hand: a letter gone, doubled, changed or swapped."""
    place = dice.randrange(len(name))
    kind = dice.choice(["gone", "doubled", "changed", "swapped", "underscore"])
    if kind == "gone":
        return name[:place] + name[place + 1 :]
    if kind == "doubled":
        return name[:place] + name[place] + name[place:]
    if kind == "changed":
        return name[:place] + dice.choice("abcdefghijklmnopqrstuvwxyz") + name[place + 1 :]
    if kind == "swapped" and place + 1 < len(name):
        return name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    return name.replace("-", "_") if "-" in name else name.upper()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_95_of_100_misspelled_names_are_recognised(seed: int) -> None:
    dice = random.Random(seed)
    names = [name for name in BY_NAME if len(name) > 3]
    tried = [(name, mutated(name, dice)) for name in dice.sample(names, 200)]
    unknown = [(name, written) for name, written in tried if written not in BY_NAME]
    wrong = [(w, name, nearest(w)) for name, w in unknown if BY_NAME.get(nearest(w) or "") is not BY_NAME[name]]
    assert len(wrong) <= 0.05 * len(unknown), wrong


DISTANCES = [("abc", "abc", 0), ("abc", "acb", 1), ("abc", "abcd", 1), ("abc", "xbc", 1), ("abc", "xyz", 3)]


@pytest.mark.parametrize(("left", "right", "expected"), DISTANCES)
def test_distance(left: str, right: str, expected: int) -> None:
    assert distance(left, right, 3) == distance(right, left, 3) == expected


# --help


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_names_everything_within_the_width(width: int) -> None:
    text = help_text(width)
    for subject in TABLE:
        assert f"\n{subject}:\n" in text
    assert all(f"--{option.names[0]}" in text for option in OPTIONS)
    assert max(len(line) for line in text.splitlines()) <= width


def test_help_says_how_an_option_is_written_and_what_it_does_here() -> None:
    lines = help_text(200).splitlines()
    (processes,) = [line for line in lines if line.startswith("  -p, --processes, --workers VALUE")]
    assert processes.endswith("worker processes (default: 1)")
    assert any("--mule-harakiri VALUE" in line and line.endswith("[no effect yet]") for line in lines)
    assert any("--need-app[=VALUE]" in line for line in lines)
    assert any("--allow-from VALUE" in line and line.endswith("(not in uWSGI)") for line in lines)
    assert any("--master " in line and "[always on here: a master always runs]" in line for line in lines)
