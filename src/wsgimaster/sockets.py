"""The listening sockets: open them, close the door, tidy up.

Runs in: the master.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsgimaster.errors import StartError
from wsgimaster.settings import Address, Family, Protocol, Sockets

DEFAULT_WAITING = 4096
SO_BINDTOIFINDEX = 62  # Linux 5.1; the socket module doesn't have it
NO_INTERFACE = 0x7FFFFFFF
DEFERRED = 1  # seconds, rounded up by the kernel to its next try; then we get the client although he is silent
DOOR_GRACE = 0.1  # seconds for the first bytes of clients who had connected when the door was closed
EVERYWHERE = ("0.0.0.0", "::")


@dataclass(slots=True)
class Listener:
    address: Address
    socket: socket.socket
    inode: tuple[int, int] | None = None  # of a path that we made: device and inode

    @property
    def inherited(self) -> bool:
        """Somebody else's too: never shut down, never unlinked."""
        return self.address.family is Family.INHERITED

    @property
    def local(self) -> bool:
        return self.socket.family == socket.AF_UNIX

    @property
    def deferred(self) -> bool:
        """Clients who have connected and said nothing so far wait in the kernel where nobody can accept them."""
        return (
            not self.local
            and not self.inherited
            and self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0
        )

    @property
    def http(self) -> bool:
        return self.address.protocol is Protocol.HTTP

    def describe(self, number: int) -> str:
        """uWSGI's start-up line."""
        fd = self.socket.fileno()
        name = self.socket.getsockname()
        if self.inherited:
            return f"{self.address.scheme} socket {number} inherited as fd {fd}"
        if self.local:
            shown = "@" + self.address.path if self.address.family is Family.ABSTRACT else self.address.path
            return f"{self.address.scheme} socket {number} bound to UNIX address {shown} fd {fd}"
        shown = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
        auto = " (port auto-assigned)" if self.address.port == 0 else ""
        return f"{self.address.scheme} socket {number} bound to TCP address {shown}{auto} fd {fd}"


def largest_backlog() -> int:
    """net.core.somaxconn of this network namespace."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return socket.SOMAXCONN


def waiting_limit(asked: int | None, largest: int) -> tuple[int, str | None]:
    """How many requests may wait (`listen`), and a warning where that isn't what was asked for."""
    if asked is None:
        return min(DEFAULT_WAITING, largest), None
    if asked > largest:
        return largest, (
            f"listen = {asked} is more than net.core.somaxconn allows; {largest} is used "
            f"(sysctl -w net.core.somaxconn={asked} raises it)"
        )
    return asked, None


Given = list[tuple[int, str]]  # listening sockets that somebody has opened for us: (descriptor, name)


def place_given(addresses: Sequence[Address], given: Given) -> tuple[list[Address], Given]:
    """The addresses, with those of the given sockets (systemd) that are bound to one of them in its place, and the
    others. Raises StartError for a descriptor that is no listening socket."""
    found, left = list(addresses), []
    for fd, name in given:
        try:
            with socket.socket(fileno=os.dup(fd)) as one:
                bound = one.getsockname()
        except OSError as error:
            raise StartError(f"descriptor {fd} of LISTEN_FDS: {error.strerror}") from error
        place = next((at for at, one in enumerate(found) if _is_bound(one, fd, bound)), None)
        if place is None:
            left.append((fd, name))
        else:
            found[place] = found[place].model_copy(update={"family": Family.INHERITED, "fd": fd})
    return found, left


def without_address(given: Given) -> list[Address]:
    """Given sockets of which the configuration says nothing: for uwsgi, or for HTTP if the name begins with http."""
    return [
        Address(
            protocol=Protocol.HTTP if name.startswith("http") else Protocol.UWSGI,
            family=Family.INHERITED,
            name=name or f"fd://{fd}",
            fd=fd,
        )
        for fd, name in given
    ]


def _is_bound(address: Address, fd: int, name: Any) -> bool:
    """Whether the descriptor, which is bound to this name, is what the address means."""
    match address.family:
        case Family.INHERITED:
            return address.fd == fd
        case Family.UNIX:
            return bool(name == os.path.abspath(address.path))
        case Family.ABSTRACT:
            return bool(name == b"\0" + address.path.encode())
        case Family.TCP:
            if not isinstance(name, tuple) or name[1] != address.port:
                return False
            if name[0] in EVERYWHERE:  # a socket for IPv6 takes IPv4 as well, unless it was told not to
                return (address.host or "0.0.0.0") in EVERYWHERE
            with contextlib.suppress(OSError):
                found = socket.getaddrinfo(address.host or "0.0.0.0", address.port, type=socket.SOCK_STREAM)
                return name[0] in {one[4][0] for one in found}
    return False


def open_all(addresses: Iterable[Address], settings: Sockets, owner: tuple[int, int]) -> list[Listener]:
    """All listening sockets, or none: raises StartError and closes what it had opened.

    owner: uid and gid (-1: as it is) of socket files where `chown-socket` doesn't say otherwise. uWSGI binds after
    it has dropped root, so there they belong to `uid`.
    """
    opened: list[Listener] = []
    try:
        for address in addresses:
            opened.append(_open(address, settings, settings.socket_owner or owner))
    except StartError:
        tidy(opened)
        raise
    return opened


def _open(address: Address, settings: Sockets, owner: tuple[int, int]) -> Listener:
    try:
        match address.family:
            case Family.UNIX:
                return _open_unix(address, settings.socket_mode, owner)
            case Family.ABSTRACT:
                bound = socket.socket(socket.AF_UNIX)
                bound.bind("\0" + address.path)
            case Family.TCP:
                bound = _open_tcp(address, settings.defer_accept)
            case Family.INHERITED:
                bound = _inherit(address)
        _listen(bound)
    except OSError as error:
        raise StartError(_why_not(address, error)) from error
    return Listener(address, bound)


def _why_not(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"probably another instance of uWSGI is running on the same address ({address.name})."
    return f"socket {address.name}: {error.strerror or error}"


def _listen(bound: socket.socket) -> None:
    """The kernel's backlog is always as long as it can be; `listen` bounds what waits, wherever that is."""
    bound.setblocking(False)
    bound.listen(largest_backlog())


def _open_tcp(address: Address, defer_accept: bool) -> socket.socket:
    family, kind, protocol, _, name = socket.getaddrinfo(
        address.host or "0.0.0.0", address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it: a streamed answer would otherwise meet delayed acknowledgements (42 ms).
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if defer_accept:  # who accepts would only wait for the first bytes: 45 us of CPU for a request instead of 21
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFERRED)
    bound.bind(name)
    return bound


def _inherit(address: Address) -> socket.socket:
    bound = socket.socket(fileno=address.fd)
    bound.set_inheritable(False)
    if not bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and bound.family != socket.AF_UNIX:
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _open_unix(address: Address, mode: int | None, owner: tuple[int, int]) -> Listener:
    path = address.path
    remove_stale(path)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(path)
    if mode is not None:
        os.chmod(path, mode)
    if owner != (-1, -1):
        os.chown(path, *owner)
    status = os.stat(path)
    _listen(bound)
    return Listener(address, bound, (status.st_dev, status.st_ino))


def remove_stale(path: str) -> None:
    """A socket file that nobody listens on may be replaced, anything else may not."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise StartError(f"socket {path}: a file of that name exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
    raise StartError(f"probably another instance of uWSGI is running on the same address ({path}).")


def close_door(listener: Listener) -> None:
    """No new connection is taken, by nobody who holds the socket; what is queued can still be accepted.

    Acts on the socket itself, so that copies of the descriptor elsewhere don't matter. A TCP listener is bound to an
    interface that doesn't exist: its clients are refused from then on. (A socket filter would do as well, but
    needs CAP_NET_ADMIN on recent kernels.) Raises OSError where the socket can't be changed.
    """
    if listener.inherited:
        return
    if listener.local:
        listener.socket.shutdown(socket.SHUT_RD)
    else:
        listener.socket.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE)


def tidy(listeners: list[Listener], *, unlink: bool = False) -> list[str]:
    """Close; with unlink (`vacuum`) remove the paths that are still ours. Returns what to log."""
    said = []
    for listener in listeners:
        listener.socket.close()
        if unlink and listener.inode is not None and _is_ours(listener):
            try:
                os.unlink(listener.address.path)
                said.append(f"VACUUM: unix socket {listener.address.path} removed.")
            except OSError as error:
                said.append(f"VACUUM: unix socket {listener.address.path} stays: {error.strerror}")
    return said


def _is_ours(listener: Listener) -> bool:
    try:
        status = os.lstat(listener.address.path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == listener.inode
