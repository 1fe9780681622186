"""Programs that run beside the server: `attach-daemon` and its family, and what a touched file starts.

    attached         ours: its output is in our log, it is started again when it ends, a graceful reload that succeeds
                     ends it and starts it again, and it ends with us (if we are killed, the kernel kills it)
    with a pidfile   ("smart") somebody else's, as soon as it runs: it goes to the background by itself, or we put it
                     there; it outlives reloads and us, and is started only if nobody with the pid in that file runs

Each has a task that looks after it. No shell is between: what is started gets the signals, and its whole group.

Runs in: the master.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wsgimaster import hooks, settings
from wsgimaster.lifecycle import explain
from wsgimaster.processes import Child, kill_group, start_session
from wsgimaster.settings import Daemon

LOOK = 1.0  # seconds between looks at pidfiles, and between signals that tell one to end
SHORT_LOOK = 0.05  # seconds between looks whether it has
YOUNG = 3.0  # one that ran for no longer than this many seconds is started again after a pause
NOBODY = -1


def pause(failures: int, longest: float) -> float:
    """Seconds before it is started again, after that many short lives in a row: 0, 1, 2, 3 ... (uWSGI's)"""
    return min(float(failures), longest)


class Daemons:
    """say: logs; write: logs lines of others; stop: ends the server, gracefully, with the reason."""

    def __init__(self, say: Callable[[str], None], write: Callable[[bytes], None], stop: Callable[[str], None]) -> None:
        self.say, self.write, self.stop = say, write, stop
        self.loop = asyncio.get_running_loop()
        self.wanted: tuple[Daemon, ...] = ()
        self.mercy = 0.0  # seconds
        self.children: dict[Daemon, Child] = {}  # those that are ours
        self.others: set[Child] = set()  # what touched files have started
        self.told: set[int] = set()  # pids that we have told to end: they are no failures
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> set[int]:
        return {child.pid for child in [*self.children.values(), *self.others]}

    def attach(self, settings: settings.Daemons) -> None:
        """Start those that don't run yet, end those that aren't wanted any more."""
        before, self.wanted, self.mercy = self.wanted, settings.attached, settings.mercy
        for daemon in before:
            if daemon not in self.wanted and daemon in self.children:
                self._end(daemon)
        for daemon in self.wanted:
            if daemon not in before:
                self._begin(daemon)

    def adopt(self, daemon: Daemon, child: Child) -> None:
        """One that runs already (upgrading.py); before attach."""
        self.wanted = (*self.wanted, daemon)
        self.children[daemon] = child
        self._watch(child)
        self._begin(daemon, child)

    def reload(self, settings: settings.Daemons) -> None:
        """The code is another one."""
        before = self.wanted
        self.attach(settings)
        for daemon in self.wanted:
            if daemon in before and daemon.reload_signal:
                self.tell(daemon, daemon.reload_signal)
            elif daemon in before and daemon.pidfile is None:
                self.restart(daemon)

    def restart(self, daemon: Daemon) -> None:
        """It ends, and is started again."""
        if daemon in self.children:
            self._end(daemon)
        else:
            self.tell(daemon, daemon.stop_signal)

    def tell(self, daemon: Daemon, number: int) -> None:
        """Send it a signal, if it runs."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if daemon in self.children:
                kill_group(self.children[daemon], number)
            elif daemon.pidfile is not None and (pid := running(daemon.pidfile)) != NOBODY:
                os.kill(pid, number)

    async def end(self) -> None:
        """All that are ours."""
        self.wanted = ()
        await asyncio.gather(*[self._press(child, daemon.stop_signal) for daemon, child in self.children.items()])
        for child in self.others:
            kill_group(child, signal.SIGKILL)
        for task in self.tasks:
            task.cancel()

    def _end(self, daemon: Daemon) -> None:
        child = self.children[daemon]
        self.told.add(child.pid)
        self._hold(self.loop.create_task(self._press(child, daemon.stop_signal)))

    async def _press(self, child: Child, number: int) -> None:
        """Until it has ended: the signal each second; after the mercy, SIGKILL."""
        began = told_at = time.monotonic()
        kill_group(child, number)
        while child.alive:
            await asyncio.sleep(SHORT_LOOK)
            now = time.monotonic()
            if now - began >= self.mercy:
                kill_group(child, signal.SIGKILL)
            elif now - told_at >= LOOK:
                told_at = now
                kill_group(child, number)

    def _hold(self, task: asyncio.Task[None]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # ---- one daemon ----

    def _begin(self, daemon: Daemon, child: Child | None = None) -> None:
        care = self._keep(daemon, child) if daemon.pidfile is None else self._see_to(daemon, daemon.pidfile)
        self._hold(self.loop.create_task(care))

    async def _keep(self, daemon: Daemon, child: Child | None) -> None:
        """One that is ours: as long as it is wanted."""
        failures = 0
        while daemon in self.wanted:
            began = time.monotonic()
            child = child or self._spawn(daemon)
            told = False
            if child is not None:
                status = await self._life(child)
                del self.children[daemon]
                told = child.pid in self.told
                self.told.discard(child.pid)
                self.say(f'[uwsgi-daemons] "{daemon.text}" (pid: {child.pid}) ended ({explain_end(status)})')
                child = None
            if daemon.control and not told and daemon in self.wanted:
                self.stop(f'attached control daemon "{daemon.text}" ended')
                return
            failures = 0 if told or time.monotonic() - began > YOUNG else failures + 1
            wait = pause(failures, daemon.longest_pause)
            if wait and daemon in self.wanted:
                self.say(f'[uwsgi-daemons] throttling "{daemon.text}" for {wait:g} seconds')
                await asyncio.sleep(wait)

    async def _see_to(self, daemon: Daemon, pidfile: str) -> None:
        """One that outlives us."""
        known, spawned_at = NOBODY, None
        while daemon in self.wanted:
            pid = running(pidfile)
            if pid != NOBODY:
                if pid != known:
                    self.say(f'[uwsgi-daemons] found changed pid for daemon "{daemon.text}" ({pid})')
                known, spawned_at = pid, None
            elif spawned_at is None or time.monotonic() - spawned_at >= daemon.patience:
                if spawned_at is not None:
                    self.say(f"[uwsgi-daemons] nobody runs with the pid in {pidfile} after {daemon.patience:g} s")
                spawned_at = time.monotonic()
                self._spawn(daemon)
            await asyncio.sleep(LOOK)

    def _spawn(self, daemon: Daemon) -> Child | None:
        """None: it could not be started, or it isn't ours."""
        self.say(f'[uwsgi-daemons] spawning "{daemon.text}" (uid: {daemon.uid or os.geteuid()})')
        try:
            child = start_session(
                daemon.command,
                directory=daemon.chdir,
                uid=NOBODY if daemon.uid is None else daemon.uid,
                gid=NOBODY if daemon.gid is None else daemon.gid,
                outlives=daemon.pidfile is not None,
            )
            if daemon.pidfile is None:
                self._watch(child)
                self.children[daemon] = child
                return child
            os.close(child.pidfd)  # whoever is our child in the end is reaped with the other orphans
            if daemon.detach:
                Path(daemon.pidfile).write_text(f"{child.pid}\n")
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            self.say(f'[uwsgi-daemons] "{daemon.text}": {what}{error.strerror}')
        return None

    # ---- what a touched file starts ----

    def run_command(self, command: str) -> None:
        self._run(("/bin/sh", "-c", command), command)

    def run_hook(self, hook: str) -> None:
        """In a process of its own, since it may take its time."""
        script = str(Path(hooks.__file__))
        self._run((sys.executable, "-P", script, hook), hooks.shown(hook))

    def _run(self, command: tuple[str, ...], name: str) -> None:
        try:
            child = start_session(command)
        except OSError as error:
            self.say(f"{name}: {error.strerror}")
            return
        self._watch(child)

        self.others.add(child)

        async def wait() -> None:
            status = await self._life(child)
            self.others.discard(child)
            if status:
                self.say(f"{name} (pid: {child.pid}) failed ({explain_end(status)})")

        self._hold(self.loop.create_task(wait()))

    # ---- a child and its output ----

    def _watch(self, child: Child) -> None:
        def take() -> None:
            if not child.take_output(self.write):
                self.loop.remove_reader(child.output)

        self.loop.add_reader(child.output, take)

    def _end_of(self, pidfd: int) -> asyncio.Future[None]:
        end: asyncio.Future[None] = self.loop.create_future()

        def ended() -> None:
            self.loop.remove_reader(pidfd)
            if not end.done():
                end.set_result(None)

        self.loop.add_reader(pidfd, ended)
        return end

    async def _life(self, child: Child) -> int:
        """Until it ends: its exit code, or minus the signal."""
        await self._end_of(child.pidfd)
        return self._bury(child)

    def _bury(self, child: Child) -> int:
        status = child.reap()
        child.take_output(self.write)
        if rest := child.lines.feed(b""):
            self.write(rest)
        self.loop.remove_reader(child.output)
        os.close(child.output)
        return status


def running(pidfile: str) -> int:
    """The pid in that file if it is a process's, else NOBODY."""
    try:
        pid = int(Path(pidfile).read_text())
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError, OverflowError):
        return NOBODY
    return pid if pid > 0 else NOBODY


def explain_end(status: int) -> str:
    why = {126: ": it can't become that user, or enter that directory", 127: ": the program can't be executed"}
    return explain(status) + why.get(status, "")
