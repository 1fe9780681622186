"""Give up root: once, for the whole tree, before anything of the application exists.

Runs in: the master.
"""

import os

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
    uid, gid = identity.uid, identity.gid
    return (-1 if uid is None else uid), (-1 if gid is None else gid)


def _change(identity: Identity) -> None:
    """Groups first: afterwards there is no right left to change them."""
    if identity.gid is not None or identity.uid is not None:
        os.setgroups(supplementary_groups(identity))
    if identity.gid is not None:
        os.setresgid(identity.gid, identity.gid, identity.gid)
    if identity.uid is not None:
        os.setresuid(identity.uid, identity.uid, identity.uid)


def supplementary_groups(identity: Identity) -> list[int]:
    """The user's own groups (unless `no-initgroups`) and those of `add-gid`."""
    groups = set(identity.extra_groups)
    if identity.initgroups and identity.user is not None:
        groups |= set(os.getgrouplist(identity.user, identity.gid if identity.gid is not None else os.getgid()))
    return sorted(groups)
