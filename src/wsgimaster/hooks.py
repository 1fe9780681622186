"""Hooks: small deeds at certain moments of the server's life (`hook-*` and `exec-*`).

A hook is `verb:arguments`, with the verbs of uWSGI. One that fails ends what it stands before: the start, or, around
the loading of the application and in a worker, the generation that is being tried.

    phase           where                                       after
    asap            the master                                  the configuration was read
    as-root         the master, while it may be root            sockets and pidfile
    as-user         the master                                  the drop of privileges
    master-start    the master                                  all of that, before anything else is started
    pre-app         each zygote                                 its start
    post-app        each zygote                                 the application
    post-fork       each worker                                 the fork
    accepting       each worker; accepting1: the first          everything: it is ready next
    as-user-atexit  the master; a failure is only told          the end of all others
    touch           a process of its own; likewise              a file was touched

Runs in: master, zygote, workers and processes of their own; imports as little as it can (zygote.py).
"""

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class HookError(Exception):
    """A hook has failed; the text has the hook and the reason."""


def _shell(command: str) -> None:
    code = subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, check=False).returncode
    if code:
        raise OSError(0, f"exit code {code}" if code > 0 else f"killed by signal {-code}")


def _safe_shell(command: str) -> None:
    try:
        _shell(command)
    except OSError as error:
        print(f"safeexec:{command}: {error.strerror}", file=sys.stderr)


def _put(variable: str) -> None:
    name, _, value = variable.partition("=")
    os.environ[name] = value


def _change_mode(words: str) -> None:
    path, mode = _two(words)
    os.chmod(path, int(mode, 8))


def _change_owner(words: str) -> None:
    path, user, group = _three(words)
    os.chown(path, pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid)


def _change_owner_by_number(words: str) -> None:
    path, uid, gid = _three(words)
    os.chown(path, int(uid), int(gid))


def _write(mode: str, end: str) -> Callable[[str], None]:
    def write(words: str) -> None:
        path, _, text = words.partition(" ")
        with open(path, mode) as file:
            file.write(text + end)

    return write


def _two(words: str) -> tuple[str, str]:
    path, _, last = words.rpartition(" ")
    if not path:
        raise ValueError("expected two words")
    return path, last


def _three(words: str) -> tuple[str, str, str]:
    rest, last = _two(words)
    path, middle = _two(rest)
    return path, middle, last


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


VERBS: dict[str, Callable[[str], None]] = {
    "exec": _shell,
    "safeexec": _safe_shell,
    "chdir": os.chdir,
    "cd": os.chdir,
    "mkdir": os.mkdir,
    "putenv": _put,
    "chmod": _change_mode,
    "chown": _change_owner,
    "chown2": _change_owner_by_number,
    "create": lambda path: Path(path).touch(),
    "creat": lambda path: Path(path).touch(),
    "write": _write("w", ""),
    "writen": _write("w", "\n"),
    "append": _write("a", ""),
    "appendn": _write("a", "\n"),
    "unlink": os.unlink,
    "unix_signal": lambda _: None,  # commands.py asks for all of them
    "print": _say,
    "log": _say,
}


# `unix_signal:15 gracefully_kill_them_all`: what a signal to the master does, as a letter of commands.py
SIGNALS = {
    "gracefully_kill_them_all": "q",
    "kill_them_all": "Q",
    "grace_them_all": "r",
    "reap_them_all": "R",
}


def signals(hooks: Iterable[str]) -> dict[int, str]:
    """Letters by number, of the `unix_signal` hooks among these."""
    words = [arguments.split() for verb, arguments in map(parse, hooks) if verb == "unix_signal"]
    return {int(number): SIGNALS[name] for number, name in words}


def parse(text: str) -> tuple[str, str]:
    """(verb, arguments) of a hook as it was written. Raises ValueError."""
    verb, colon, arguments = text.removeprefix("!").partition(":")
    if not colon or verb not in VERBS:
        raise ValueError(f"expected verb:arguments with a verb of {', '.join(VERBS)}")
    if verb == "unix_signal" and not (
        len(words := arguments.split()) == 2 and words[0].isdigit() and 0 < int(words[0]) < 65 and words[1] in SIGNALS
    ):
        raise ValueError(f"expected unix_signal:NUMBER NAME with a name of {', '.join(SIGNALS)}")
    return verb, arguments


def run(hooks: Iterable[str], where: str) -> None:
    """One after the other. where: the phase, for messages. Raises HookError with the first that fails."""
    for hook in hooks:
        verb, arguments = parse(hook)
        print(f"running {shown(hook)!r} ({where})...", file=sys.stderr, flush=True)
        try:
            VERBS[verb](arguments)
        except (OSError, ValueError, KeyError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise HookError(f"hook-{where} = {shown(hook)}: {why}") from error


def shown(hook: str) -> str:
    """As it stands in the log."""
    return f"{parse(hook)[0]}:..." if hook.startswith("!") else hook


if __name__ == "__main__":  # for a file that was touched (daemons.py)
    try:
        run(sys.argv[1:], "touch")
    except HookError as failure:
        sys.exit(f"*** {failure}")
