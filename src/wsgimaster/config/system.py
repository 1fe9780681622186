"""What the configuration asks of the machine: files, users, and the facts behind the magic variables."""

from __future__ import annotations

import glob
import grp
import os
import pwd
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MAX_FILE = 16 * 1024 * 1024  # bytes; whatever is larger is no configuration


def read_file(path: str) -> bytes:
    """Return a file's content; raises OSError, also if it is larger than MAX_FILE."""
    with Path(path).open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise OSError(f"larger than {MAX_FILE // 2**20} MiB")
    return data


def expand_glob(pattern: str, directory: str) -> list[str]:
    """Return the sorted matches of a pattern, relative ones as seen from the directory."""
    # Path.glob refuses absolute patterns
    return sorted(glob.glob(pattern, root_dir=directory))


def user_id(name: str) -> int | None:
    """Return the uid of a user, or None."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def group_id(name: str) -> int | None:
    """Return the gid of a group, or None."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def machine_facts() -> dict[str, str]:
    """Return the magic variables that don't depend on a file, without `%v` (the start directory)."""
    uid, gid, now = os.getuid(), os.getgid(), time.time()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return {
        "h": os.uname().nodename,
        "k": str(os.sysconf("SC_NPROCESSORS_ONLN")),
        "u": str(uid),
        "U": user,
        "g": str(gid),
        "G": group,
        "t": str(int(now)),
        "T": str(int(now * 1_000_000)),
        "b": str(Path(sys.argv[0]).absolute()) if sys.argv else "",
    }


def inode(path: str) -> str:
    """Return a file's inode number as text ("": no such file)."""
    try:
        return str(Path(path).stat().st_ino)
    except OSError:
        return ""


@dataclass(frozen=True)
class System:
    """The machine as the configuration sees it; tests put their own functions in."""

    read_file: Callable[[str], bytes] = read_file
    expand_glob: Callable[[str, str], list[str]] = expand_glob
    user_id: Callable[[str], int | None] = user_id
    group_id: Callable[[str], int | None] = group_id
    inode: Callable[[str], str] = inode
    facts: dict[str, str] = field(default_factory=machine_facts)
