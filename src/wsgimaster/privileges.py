"""Give up root: once, for the whole tree, before anything of the application exists.

Runs in: the master.
"""

import os
import pwd

from wsgimaster import _process
from wsgimaster.errors import StartError
from wsgimaster.settings import Identity


def drop(identity: Identity) -> str | None:
    """Become `uid` and `gid` with their supplementary groups, for good. Returns a warning, or None.

    Raises StartError where the kernel refuses. Without root there is nothing to drop, but new rights are
    forbidden all the same (no_new_privs).
    """
    warning = None
    try:
        if os.geteuid() == 0:
            _change(identity)
            if identity.uid is None:
                warning = "*** WARNING: you are running uWSGI as root !!! (use the --uid flag) ***"
        elif identity.uid not in (None, os.geteuid()):
            raise StartError(f"uid = {identity.user or identity.uid}: only root can change its user")
        _process.forbid_new_privileges()
    except OSError as error:
        raise StartError(f"uid/gid can't be changed: {error.strerror or error}") from error
    return warning


def future_owner(identity: Identity) -> tuple[int, int]:
    """The uid and gid that we are going to have, -1 where that doesn't change."""
    if os.geteuid() != 0:
        return -1, -1
    uid, gid = identity.uid, group(identity)
    return (-1 if uid is None else uid), (-1 if gid is None else gid)


def group(identity: Identity) -> int | None:
    """`gid`, else the primary group of `uid`: a server that has left root shouldn't keep root's group."""
    if identity.gid is not None or identity.uid is None:
        return identity.gid
    try:
        return pwd.getpwuid(identity.uid).pw_gid
    except KeyError:
        return None


def _change(identity: Identity) -> None:
    """Groups first: afterwards there is no right left to change them."""
    gid = group(identity)
    if gid is not None or identity.uid is not None or identity.extra_groups:
        os.setgroups(supplementary_groups(identity))
    if gid is not None:
        os.setresgid(gid, gid, gid)
    if identity.uid is not None:
        os.setresuid(identity.uid, identity.uid, identity.uid)


def supplementary_groups(identity: Identity) -> list[int]:
    """The user's own groups (unless `no-initgroups`) and those of `add-gid`."""
    groups = set(identity.extra_groups)
    if identity.initgroups and identity.user is not None:
        gid = group(identity)
        groups |= set(os.getgrouplist(identity.user, os.getgid() if gid is None else gid))
    return sorted(groups)
