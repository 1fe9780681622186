"""Programs that run beside the server: `attach-daemon` and its family, and what a touched file starts.

    attached         ours: its output is in our log, it is started again when it ends, a graceful reload that succeeds
                     ends it and starts it again, and it ends with us (if we are killed, the kernel kills it)
    with a pidfile   ("smart") somebody else's, as soon as it runs: it goes to the background by itself, or we put it
                     there; it outlives reloads and us, and is started only if nobody with the pid in that file runs

Each has one task that looks after it, from when it is first wanted until it isn't any more and has ended. Signals go to
the whole process group.

Runs in: the master.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from wsgimaster import hooks
from wsgimaster.lifecycle import explain
from wsgimaster.processes import Child, kill_group, start_session
from wsgimaster.settings import Daemon, Settings

LOOK = 1.0  # seconds between looks at pidfiles, and between signals that tell one to end
SHORT_LOOK = 0.05  # seconds between looks whether it has
YOUNG = 3.0  # one that ran for no longer than this many seconds is started again after a pause
CLOCKS = 2.0  # seconds by which the time of a file and that of a process's start may differ
NOBODY = -1


def pause(failures: int, longest: float) -> float:
    """Seconds before it is started again, after that many short lives in a row: 0, 1, 2, 3 ... (uWSGI's)"""
    return min(float(failures), longest)


@dataclass(slots=True, eq=False)
class Care:
    """What the task that looks after a daemon goes by."""

    task: asyncio.Task[None] | None = None
    child: Child | None = None  # ours; of one with a pidfile, what we have started last
    told: bool = False  # to end, by us: that is no failure
    at_once: asyncio.Event = field(default_factory=asyncio.Event)  # it needn't pause


class Daemons:
    """say: logs; write: logs lines of others; stop: ends the server, gracefully, with the reason; limits: (soft, hard)
    of descriptors, for them."""

    def __init__(
        self,
        say: Callable[[str], None],
        write: Callable[[bytes], None],
        stop: Callable[[str], None],
        limits: tuple[int, int],
    ) -> None:
        self.say, self.write, self.stop, self.limits = say, write, stop, limits
        self.loop = asyncio.get_running_loop()
        self.wanted: tuple[Daemon, ...] = ()
        self.environment: dict[str, str] = {}
        self.mercy = 0.0  # seconds
        self.cares: dict[Daemon, Care] = {}
        self.others: dict[asyncio.Task[None], Child] = {}  # what touched files have started
        self.pressing: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> set[int]:
        """Of our children."""
        cares = [care.child for care in self.cares.values()]
        return {child.pid for child in [*cares, *self.others.values()] if child is not None and child.alive}

    @property
    def attached(self) -> dict[Daemon, Child]:
        """Those that are ours, and run."""
        return {
            daemon: care.child
            for daemon, care in self.cares.items()
            if care.child is not None and daemon.pidfile is None
        }

    @property
    def unsettled(self) -> str:
        """What is under way; "" for nothing."""
        if self.others:
            return "a command for a touched file runs"
        return "an attached daemon is being ended" if self.pressing else ""

    def attach(self, settings: Settings) -> None:
        """Start those that don't run yet, end those that aren't wanted any more."""
        self.wanted, self.mercy = settings.daemons.attached, settings.daemons.mercy
        self.environment = {**os.environ, **dict(settings.app.environment)}
        for daemon, care in self.cares.items():
            if daemon not in self.wanted:
                care.at_once.set()
                if daemon.pidfile is None:
                    self._end(daemon)
        for daemon in self.wanted:
            if daemon in self.cares:
                self.cares[daemon].at_once.set()
            else:
                self._look_after(daemon, None)

    def adopt(self, daemon: Daemon, child: Child) -> None:
        """One that runs already (upgrading.py); attach comes next, and may end it."""
        self._watch(child)
        self._look_after(daemon, child)

    def reload(self, settings: Settings) -> None:
        """The code is another one."""
        before = set(self.cares)
        self.attach(settings)
        for daemon in self.wanted:
            if daemon in before and daemon.reload_signal:
                self.tell(daemon, daemon.reload_signal)
            elif daemon in before and daemon.pidfile is None:
                self.restart(daemon)

    def restart(self, daemon: Daemon) -> None:
        """It ends, and is started again, without a pause."""
        if daemon in self.cares:
            self.cares[daemon].at_once.set()
        if daemon.pidfile is None:
            self._end(daemon)
        else:
            self.tell(daemon, daemon.stop_signal)

    def tell(self, daemon: Daemon, number: int) -> None:
        """Send it a signal, if it runs."""
        if daemon in self.attached:
            kill_group(self.attached[daemon].pid, number)
        elif daemon.pidfile is not None and (pid := running(daemon.pidfile, self.pids)) != NOBODY:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    async def end(self) -> None:
        """All that are ours; and nobody is looked after any more."""
        self.wanted = ()
        ends = []
        for daemon, care in list(self.cares.items()):
            if daemon.pidfile is not None and care.task is not None:
                care.task.cancel()
            elif care.task is not None:
                care.at_once.set()
                self._end(daemon)
                ends.append(care.task)
        for child in self.others.values():
            kill_group(child.pid, signal.SIGKILL)
        await asyncio.gather(*ends, *self.others, return_exceptions=True)
        self.cares.clear()

    def _end(self, daemon: Daemon) -> None:
        care = self.cares.get(daemon)
        if care is None or care.child is None or care.told:
            return
        care.told = True
        task = self.loop.create_task(self._press(care.child, daemon.stop_signal))
        self.pressing.add(task)
        task.add_done_callback(self.pressing.discard)

    async def _press(self, child: Child, number: int) -> None:
        """Until it has ended: the signal each second; after the mercy, SIGKILL."""
        began = told_at = time.monotonic()
        kill_group(child.pid, number)
        while child.alive:
            await asyncio.sleep(SHORT_LOOK)
            now = time.monotonic()
            if now - began >= self.mercy:
                kill_group(child.pid, signal.SIGKILL)
            elif now - told_at >= LOOK:
                told_at = now
                kill_group(child.pid, number)

    # ---- one daemon ----

    def _look_after(self, daemon: Daemon, child: Child | None) -> None:
        care = self.cares[daemon] = Care(child=child)

        async def look_after() -> None:
            try:
                if daemon.pidfile is None:
                    await self._keep(daemon, care)
                else:
                    await self._see_to(daemon, daemon.pidfile, care)
            finally:
                if self.cares.get(daemon) is care:
                    del self.cares[daemon]

        care.task = self.loop.create_task(look_after())

    async def _keep(self, daemon: Daemon, care: Care) -> None:
        """One that is ours."""
        failures = 0
        while care.child is not None or daemon in self.wanted:
            began = time.monotonic()
            care.child = care.child or self._spawn(daemon)
            if care.child is not None:
                pid, status = care.child.pid, await self._life(care.child)
                care.child = None
                self.say(f'[uwsgi-daemons] "{daemon.text}" (pid: {pid}) ended ({explain_end(status)})')
            told, care.told = care.told, False
            if daemon.control and not told and daemon in self.wanted:
                self.stop(f'attached control daemon "{daemon.text}" ended')
                return
            failures = 0 if told or time.monotonic() - began > YOUNG else failures + 1
            await self._pause(daemon, care, pause(failures, daemon.longest_pause))

    async def _pause(self, daemon: Daemon, care: Care, seconds: float) -> None:
        """Or until it needn't pause any more."""
        care.at_once.clear()
        if seconds and daemon in self.wanted:
            self.say(f'[uwsgi-daemons] throttling "{daemon.text}" for {seconds:g} seconds')
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(care.at_once.wait(), seconds)

    async def _see_to(self, daemon: Daemon, pidfile: str, care: Care) -> None:
        """One that outlives us. What we have started isn't started again while it runs, whatever the pidfile says."""
        known, spawned_at, complained = NOBODY, None, False
        while daemon in self.wanted:
            pid = running(pidfile, set() if daemon.detach else self.pids)
            ours = care.child is not None and care.child.alive
            waited = 0.0 if spawned_at is None else time.monotonic() - spawned_at
            if pid != NOBODY:
                if pid != known:
                    what = "found" if known == NOBODY else "found changed pid for"
                    self.say(f'[uwsgi-daemons] {what} daemon "{daemon.text}" ({pid})')
                known, spawned_at, complained = pid, None, False
            elif spawned_at is None or (waited >= daemon.patience and not ours):
                if spawned_at is not None:
                    self.say(f"[uwsgi-daemons] nobody runs with the pid in {pidfile} after {daemon.patience:g} s")
                spawned_at = time.monotonic()
                care.child = self._spawn(daemon)
            elif waited >= daemon.patience and not complained:
                complained = True
                self.say(f'[uwsgi-daemons] "{daemon.text}" did not daemonize !!! ({pidfile} names nobody)')
            await asyncio.sleep(LOOK)

    def _spawn(self, daemon: Daemon) -> Child | None:
        """None: it could not be started, and the log says why."""
        self.say(f'[uwsgi-daemons] spawning "{daemon.text}" (uid: {daemon.uid or os.geteuid()})')
        outlives = daemon.pidfile is not None
        try:
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(open(daemon.pidfile, "w")) if daemon.pidfile and daemon.detach else None
                child = start_session(
                    daemon.command,
                    self.environment,
                    self.limits,
                    directory=daemon.chdir,
                    uid=daemon.uid,
                    gid=daemon.gid,
                    outlives=outlives,
                )
                if file is not None:
                    file.write(f"{child.pid}\n")
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            self.say(f'[uwsgi-daemons] "{daemon.text}": {what}{error.strerror}')
            return None
        if not outlives:
            self._watch(child)
        else:
            self._end_of(child.pidfd).add_done_callback(lambda _: child.reap())
        return child

    # ---- what a touched file starts ----

    def run_command(self, command: str) -> None:
        self._run(("/bin/sh", "-c", command), command)

    def run_hook(self, hook: str) -> None:
        """In a process of its own, since it may take its time."""
        self._run((sys.executable, "-P", hooks.__file__, hook), hooks.shown(hook))

    def _run(self, command: tuple[str, ...], name: str) -> None:
        try:
            child = start_session(command, self.environment, self.limits)
        except OSError as error:
            self.say(f"{name}: {error.strerror}")
            return
        self._watch(child)

        async def wait() -> None:
            try:
                status = await self._life(child)
            finally:
                del self.others[task]
            if status:
                self.say(f"{name} (pid: {child.pid}) failed ({explain_end(status)})")

        task = self.loop.create_task(wait())
        self.others[task] = child

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
        status = child.reap()
        child.take_output(self.write)
        if rest := child.lines.feed(b""):
            self.write(rest)
        self.loop.remove_reader(child.output)
        os.close(child.output)
        return status


def running(pidfile: str, ours: set[int]) -> int:
    """The pid in that file, if it is that of a process which was there when the file was written, else NOBODY: numbers
    come again, in a container after each start. ours: pids that it can't be."""
    try:
        pid, written = int(Path(pidfile).read_text()), os.stat(pidfile).st_mtime
        if pid <= 0 or pid == os.getpid() or pid in ours:
            return NOBODY
        process = psutil.Process(pid)
        there = process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + CLOCKS
    except (OSError, ValueError, OverflowError, psutil.Error):
        return NOBODY
    return pid if there else NOBODY


def explain_end(status: int) -> str:
    why = {126: ": it can't become that user, or enter that directory", 127: ": the program can't be executed"}
    return explain(status) + why.get(status, "")
