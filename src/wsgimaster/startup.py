"""From settings to a running master, step by step, and the tidying at the end.

The order matters, because each step needs the rights or the directory of the one before: umask, log and daemon,
chdir, sockets (relative to chdir, as in uWSGI), pidfile (relative to where we were started), privileges. What comes
after that, the loop and everything it starts, has no root any more.

Runs in: the master.
"""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import uvloop

from wsgimaster import _process, hooks, privileges, processes, sockets, systemd, tls
from wsgimaster.control import ControlSocket
from wsgimaster.errors import StartError
from wsgimaster.handover import Resumed
from wsgimaster.log import say_if_possible
from wsgimaster.master import Again, Before, Master, Prepared
from wsgimaster.settings import Settings
from wsgimaster.triggers import Fifo
from wsgimaster.upgrading import Origin

Reread = Callable[[], tuple[Settings, list[str]]]


def run(settings: Settings, said: list[str], reread: Reread, origin: Origin) -> int:
    """Serve until told to stop; returns the exit code.

    said: lines to log first (warnings of the configuration); reread: the configuration as it is then; origin: how we
    were started. Raises StartError where the machine refuses.
    """
    given = systemd.activated(os.environ, os.getpid())  # before daemonize: by then we are another process
    notifier = systemd.Notifier(os.environ)
    identity = settings.identity
    if identity.umask is not None:
        os.umask(identity.umask)
    again, pidfiles = ways_to_do_it_again(settings, reread, origin)
    redirect_log(again.log_file)
    run_hooks(settings.hooks.asap, "asap")
    if identity.daemonize is not None:
        leave_terminal()
    listeners: list[sockets.Listener] = []
    health: list[sockets.Listener] = []
    control: ControlSocket | None = None
    fifo: Fifo | None = None
    try:
        if settings.app.chdir:
            change_directory(settings.app.chdir)
        descriptors = raise_descriptor_limit(settings.processes.max_fd)
        said = [*said, *set_priority(settings.processes.priority)]  # still with root's right to be less nice
        check_descriptors(processes.descriptors_needed(settings))
        owner = privileges.future_owner(identity)
        addresses, given = sockets.place_given(settings.sockets.addresses, given)
        for_health, given = sockets.place_given(settings.control.health, given)
        addresses += sockets.without_address(given)
        if not addresses:
            raise StartError("no listening socket: LISTEN_FDS is there, but not for this process (LISTEN_PID)")
        listeners = sockets.open_all(addresses, settings.sockets, owner)
        health = sockets.open_all(for_health, settings.sockets, owner)
        certificates = tls.read_all(addresses)
        control = ControlSocket(settings.control.socket, owner)
        fifo = Fifo(settings.control.fifos, owner) if settings.control.fifos else None
        write_pidfiles(pidfiles[:1])  # not before: a start that fails must leave the running server's alone
        run_hooks(settings.hooks.as_root, "as-root")
        warning = privileges.drop(identity)
        if certificates:
            _process.hide()
        write_pidfiles(pidfiles[1:])
        run_hooks(settings.hooks.as_user, "as-user")
        run_hooks(settings.hooks.master_start, "master-start")
        _process.become_subreaper()
        set_title(settings)
        said = [*said, *([warning] if warning else [])]
        prepared = Prepared(None, listeners, certificates, health, control, fifo, descriptors, said, notifier, again)
        return serve(settings, prepared)
    finally:
        tidy(settings, [*listeners, *health], [control, fifo], pidfiles)


def resume(before: Before, reread: Reread, origin: Origin) -> int:
    """The same after exec (upgrading.py): nothing is opened, all of it is there."""
    frame = before.state.frame
    if frame.tls is None:
        _process.hide(False)
    for fd in (before.signals, *before.state.inherited()):
        os.set_inheritable(fd, False)
    resumed = Resumed.model_validate_json(frame.proved)
    settings = resumed.settings
    again, pidfiles = ways_to_do_it_again(settings, reread, origin)
    notifier = systemd.Notifier({})
    notifier.restore(frame.notifying.address, frame.notifying.watchdog, frame.notifying.is_ready)
    listeners, health = (
        [sockets.Listener(one.address, socket.socket(fileno=one.fd), one.inode) for one in some]
        for some in (frame.listeners, frame.health)
    )
    control = ControlSocket.inherited(frame.control.path, frame.control.fd, frame.control.inode)
    owner = privileges.future_owner(settings.identity)
    fifo = Fifo(settings.control.fifos, owner, frame.fifo.fd, frame.fifo.active) if frame.fifo is not None else None
    try:
        change_directory(frame.directory)
        set_title(settings)
        prepared = Prepared(
            before, listeners, {}, health, control, fifo, frame.descriptors, resumed.warnings, notifier, again
        )
        return serve(settings, prepared)
    finally:
        tidy(settings, [*listeners, *health], [control, fifo], pidfiles)


def ways_to_do_it_again(settings: Settings, reread: Reread, origin: Origin) -> tuple[Again, list[str | None]]:
    """And the pidfiles. All paths are from the root, since they are used after chdir, too."""
    identity = settings.identity
    paths = (settings.logging.file or identity.daemonize, identity.pidfile, identity.pidfile_late)
    log_file, *pidfiles = [path and str(Path(path).absolute()) for path in paths]
    again = Again(origin, reread, log_file, lambda: redirect_log(log_file), lambda: write_pidfiles(pidfiles), set_title)
    return again, pidfiles


def serve(settings: Settings, prepared: Prepared) -> int:
    """To the end, and what is to be done then; the exit code."""

    async def run() -> int:
        return await Master(settings, prepared).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(run())
    for hook in settings.hooks.as_user_atexit:
        try:
            hooks.run([hook], "as-user-atexit")
        except hooks.HookError as error:
            say_if_possible(str(error))
    return code


def tidy(
    settings: Settings,
    listeners: list[sockets.Listener],
    files: list[ControlSocket | Fifo | None],
    pidfiles: list[str | None],
) -> None:
    """What we leave behind: nothing that others would take for a server."""
    for one in files:
        if one is not None:
            one.remove()
    for line in sockets.tidy(listeners, unlink=settings.sockets.vacuum):
        say_if_possible(line)
    if settings.sockets.vacuum:
        remove_pidfiles(pidfiles)


def run_hooks(wanted: tuple[str, ...], where: str) -> None:
    try:
        hooks.run(wanted, where)
    except hooks.HookError as error:
        raise StartError(str(error)) from None


def redirect_log(path: str | None) -> None:
    """`logto` and `daemonize`: what goes to fds 1 and 2 goes to the end of this file."""
    if path is None:
        return
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StartError(f"log file {path}: {error.strerror}") from error
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)


def leave_terminal() -> None:
    """Become a daemon: a session of our own, without a way back to a terminal."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def write_pidfiles(paths: list[str | None]) -> None:
    """All that can be written. Raises StartError for the others."""
    failed = []
    for path in paths:
        try:
            if path is not None:
                Path(path).write_text(f"{os.getpid()}\n")
        except OSError as error:
            failed.append(f"pidfile {path}: {error.strerror}")
    if failed:
        raise StartError("; ".join(failed))


def remove_pidfiles(paths: list[str | None]) -> None:
    """Only files that still name us."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            if path is not None and int(Path(path).read_text()) == os.getpid():
                Path(path).unlink()
                say_if_possible("VACUUM: pidfile removed.")


def change_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise StartError(f"chdir = {path}: {error.strerror}") from error


def raise_descriptor_limit(max_fd: int | None) -> tuple[int, int]:
    """Every open connection takes a descriptor of ours. Returns (soft, hard) for the workers: what we had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if max_fd is None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return soft, hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_fd, max(max_fd, hard)))
        return max_fd, max(max_fd, hard)
    except (OSError, ValueError) as error:
        raise StartError(f"max-fd = {max_fd}: more than the hard limit of {hard}; only root can raise it") from error


def set_priority(nice: int) -> list[str]:
    """`prio`: for us and everything that we start; 0 changes nothing. Returns lines for the log."""
    if not nice:
        return []
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        why = f"{error.strerror}: only root can make its processes less nice"
        return [f"*** WARNING: prio = {nice} has no effect ({why}) ***"]
    return [f"scheduler priority set to {os.getpriority(os.PRIO_PROCESS, 0)}"]  # the kernel keeps it within -20 to 19


def check_descriptors(needed: int) -> None:
    """Better no start than one in which workers can't be watched and clients not accepted."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if needed > limit:
        raise StartError(
            f"so many processes and threads need {needed} descriptors, the limit is {limit} "
            f"(ulimit -n, LimitNOFILE= or, as root, max-fd raise it)"
        )


def set_title(settings: Settings) -> None:
    if settings.titles.automatic:
        _process.set_title(master_title(settings))


def master_title(settings: Settings) -> str:
    titles = settings.titles
    return f"{titles.prefix}{titles.master or titles.every or 'uWSGI master'}{titles.append}"
