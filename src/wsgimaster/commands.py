"""What can be asked of a running server, by whatever way: signals, letters in `master-fifo`, the control socket.

The letters and signals are uWSGI's; where ours do something else, docs/differences.md says so.

Runs in: the master.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wsgimaster import __version__, events, hooks
from wsgimaster.control import CommandError
from wsgimaster.events import Reload
from wsgimaster.lifecycle import ENDS, Phase, Stopping

if TYPE_CHECKING:
    from wsgimaster.master import Master

NOT_HERE = {
    "B": "there is no emperor to ask for reinforcements",
    "E": "there is no emperor",
    "S": "there are no subscriptions",
    "f": "the master doesn't fork itself; wsgimaster upgrade executes it anew, in place",
}


LOOK = 0.05  # seconds between looks whether new workers serve


class Commands:
    """master: whose parts are told what to do."""

    def __init__(self, master: Master) -> None:
        self.master = master
        self.paused = False
        self.under_way: set[asyncio.Task[str]] = set()
        self.letters: dict[str, Callable[[], object]] = {
            "r": lambda: self.reload(Reload.GRACEFUL),
            "R": lambda: self.reload(Reload.GRACEFUL, brutal=True),
            "w": lambda: self.reload(Reload.WORKERS),
            "W": lambda: self.reload(Reload.WORKERS, brutal=True),
            "c": lambda: self.reload(Reload.CHAIN),
            "q": lambda: self.stop("q in master-fifo: ", fast=False),
            "Q": lambda: self.stop("Q in master-fifo: ", fast=True),
            "p": self.toggle_pause,
            "C": self.go_cheap,
            "+": lambda: self.scale(1),
            "-": lambda: self.scale(-1),
            "s": self.describe,
            "l": master.log_again,
            "L": master.rotate_log,
            "P": master.write_pidfiles,
        }
        self.by_name = {
            "reload": self._reload,
            "stop": self._stop,
            "workers": self._workers,
            "recycle": self._recycle,
            "scale": self._scale,
            "pause": self._pause,
            "resume": self._resume,
            "upgrade": self._upgrade,
        }

    def obey(self, letter: str) -> None:
        """One byte that somebody has written into the fifo; uWSGI passes over those that mean nothing, and so do we."""
        if letter in self.letters:
            self.letters[letter]()
        elif letter in NOT_HERE:
            self.master.log.say(f"{letter} in master-fifo: {NOT_HERE[letter]}")

    def watch_signals(self) -> None:
        """SIGTERM stops gracefully: containers, systemd and Kubernetes send it (uWSGI 2.0 reloads)."""
        master = self.master
        handlers: dict[signal.Signals, Callable[[], object]] = {
            signal.SIGTERM: lambda: master.drain("SIGTERM received..."),
            signal.SIGINT: lambda: master.stop("SIGINT received...", fast=True),
            signal.SIGQUIT: lambda: master.stop("SIGQUIT received...", fast=True),
            signal.SIGHUP: lambda: self.reload(Reload.GRACEFUL, "SIGHUP received"),
            signal.SIGTSTP: self.toggle_pause,
            signal.SIGUSR1: self.describe,
            signal.SIGUSR2: lambda: master.log.say("SIGUSR2 means nothing here; nothing changes"),
        }
        for number, letter in hooks.signals(master.settings.hooks.master_start).items():
            if (number, letter) != (signal.SIGTERM, "q"):  # what many write for uWSGI: here it is so anyway
                handlers[signal.Signals(number)] = self.letters[letter]
        for number, handler in handlers.items():
            master.loop.add_signal_handler(number, handler)

    # ---- what they do ----

    def stop(self, why: str, fast: bool) -> None:
        """Asked for again, a graceful stop goes on: only a fast one, or a second SIGTERM, cuts it short."""
        if not fast and self.master.overseer.stopping is not Stopping.NO:
            self.master.log.say(f"{why}it is stopping already")
            return
        self.master.stop(why, fast)

    def reload(self, kind: Reload, why: str = "", brutal: bool = False) -> asyncio.Task[str]:
        """Its result is "", or why it has failed."""
        if why:
            self.master.log.say(f"{why}...")
        over = self.master.notifier.reloading()
        task = self.master.loop.create_task(self.master.reloader.reload(kind, lambda: self.master.settings, brutal))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)
        task.add_done_callback(lambda _: over())
        return task

    def finish_upgrade(self, has_workers: bool, reloads: bool) -> None:
        """We are the new version. has_workers: they aren't, and are to be; else new ones are being started. reloads:
        somebody has asked for a reload meanwhile."""
        if has_workers:
            self.master.upgrader.end_with(self.reload(Reload.GRACEFUL))
            return
        over = self.master.notifier.reloading()
        task = self.master.loop.create_task(self._until_serving(reloads))
        task.add_done_callback(lambda _: over())
        self.master.upgrader.end_with(task)

    async def _until_serving(self, reloads: bool) -> str:
        overseer, limit = self.master.overseer, self.master.settings.reloading.timeout
        until = time.monotonic() + limit
        while overseer.crew()[0] < overseer.wanted:
            if time.monotonic() > until:
                return f"not all workers serve after {limit:g} s (reload-timeout)"
            await asyncio.sleep(LOOK)
        self.master.log.say(ENDS[Reload.GRACEFUL].format(generation=overseer.generation, workers=overseer.crew()[0]))
        return await self.reload(Reload.GRACEFUL) if reloads else ""

    def toggle_pause(self) -> None:
        self.pause(not self.paused)

    def pause(self, paused: bool) -> None:
        if paused != self.paused and self.master.overseer.stopping is Stopping.NO:
            self.paused = paused
            self.master.front.suspend(paused)
            self.master.log.say("*** paused: requests wait ***" if paused else "*** resumed ***")

    def go_cheap(self) -> None:
        self.master.log.say(
            "going cheap: every worker finishes its request and ends; the next request brings some back"
        )
        self.master.handle(events.NobodyWanted())
        self.master.scaler.needed = True
        self.master.keep_watching()

    def scale(self, change: int) -> None:
        self.master.scaler.ask(change)
        self.master.keep_watching()

    def describe(self) -> None:
        for line in self.master.describe():
            self.master.log.say(line)

    # ---- for the control socket ----

    async def _reload(self, message: dict[str, Any]) -> dict[str, Any]:
        kinds = {str(kind): kind for kind in (Reload.GRACEFUL, Reload.WORKERS, Reload.CHAIN)}
        kind = kinds.get(str(message.get("kind", "graceful")))
        if kind is None:
            raise CommandError(f"there is no reload of the kind {message['kind']!r}; there are {', '.join(kinds)}")
        task = self.reload(kind, f"{kind} reload asked for")
        if not message.get("wait"):
            return {"said": "reload asked for"}
        if error := await task:
            raise CommandError(error)
        overseer = self.master.overseer
        generation, workers = overseer.generation, overseer.crew()[0]
        return {
            "warnings": self.master.reloader.warnings if kind is Reload.GRACEFUL else [],
            "generation": generation,
            "serving": workers,
            "said": f"generation {generation} serves with {workers} worker(s)",
        }

    async def _upgrade(self, _: dict[str, Any]) -> dict[str, Any]:
        """Answered by the master after exec, if it comes to that."""
        if error := await self.master.upgrader.upgrade():
            raise CommandError(error)
        generation, workers = self.master.overseer.generation, self.master.overseer.crew()[0]
        return {
            "version": __version__,
            "said": f"version {__version__} serves: generation {generation}, {workers} worker(s)",
        }

    async def _stop(self, message: dict[str, Any]) -> dict[str, Any]:
        fast = bool(message.get("fast"))
        self.master.loop.call_soon(self.stop, "stop asked for: ", fast)
        return {}

    async def _workers(self, _: dict[str, Any]) -> dict[str, Any]:
        master, now = self.master, time.monotonic()
        found = [
            {
                "worker": slot.number,
                "pid": slot.pid,
                "generation": slot.generation,
                "state": "paused" if self.paused and slot.phase is Phase.READY else slot.phase.name.lower(),
                "busy": master.front.running_in(slot.place - 1),
                "requests": master.front.served_by(slot.place - 1),
                "age": round(now - slot.ready_at, 1) if slot.ready_at else 0.0,
            }
            for slot in master.overseer.slots
            if slot.phase is not Phase.EMPTY
        ]
        return {
            "master": os.getpid(),
            "workers": sorted(found, key=lambda one: (one["worker"], one["generation"])),
            "said": self._what_is_missing(),
        }

    def _what_is_missing(self) -> str:
        """Beside the table: why there are fewer workers than `processes`; "" if there aren't."""
        overseer = self.master.overseer
        serving, lines = overseer.crew()[0], []
        if serving != overseer.processes:
            lines.append(f"{serving} serve, {overseer.wanted} are wanted (processes = {overseer.processes})")
        if overseer.generation not in overseer.zygotes:
            lines.append("no worker can be started: the application has to be loaded anew first, the log says more")
        return "\n".join(lines)

    async def _recycle(self, message: dict[str, Any]) -> dict[str, Any]:
        number = message.get("worker")
        slots = [slot for slot in self.master.overseer.slots if slot.phase is Phase.READY and slot.number == number]
        if not slots:
            raise CommandError(f"there is no worker {number} that serves")
        self.master.handle(events.WorkerWorn(slots[0].place, "is to be replaced (recycle)"))
        return {"said": f"worker {number} leaves when its replacement is ready"}

    async def _scale(self, message: dict[str, Any]) -> dict[str, Any]:
        overseer, wanted = self.master.overseer, message.get("workers")
        if not isinstance(wanted, int) or not 1 <= wanted <= overseer.processes:
            raise CommandError(f"expected a number of workers from 1 to {overseer.processes} (processes)")
        before = overseer.wanted
        self.master.scaler.ask_for(wanted)
        self.master.keep_watching()
        return {"said": f"{before} -> {wanted} workers; those that end do so when they are idle"}

    async def _pause(self, _: dict[str, Any]) -> dict[str, Any]:
        if self.master.overseer.stopping is not Stopping.NO:
            raise CommandError("the server stops")
        self.pause(True)
        return {"said": "paused: requests wait"}

    async def _resume(self, _: dict[str, Any]) -> dict[str, Any]:
        self.pause(False)
        return {"said": "resumed"}
