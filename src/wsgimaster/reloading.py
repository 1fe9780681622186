"""Reloads, as the master sees them: the configuration is read anew, and whoever asked is told how it ended.

What happens in between is decided in lifecycle.py (Reloading, in its theory of operation).

Runs in: the master; reading the configuration, which takes a tenth of a second, is on another thread.
"""

import asyncio
import sys
from collections.abc import Callable

from wsgimaster.config.reloadable import beyond_a_reload
from wsgimaster.errors import ConfigErrors, StartError
from wsgimaster.events import Event, Reload, ReloadAsked
from wsgimaster.lifecycle import Overseer
from wsgimaster.settings import Settings

HEARD = 32 << 10  # bytes of what a generation writes before it has proved itself: the reason, if it can't
TURNS = 0.0005  # seconds: how long the loop may wait for the interpreter while the other thread reads


class RefusedError(Exception):
    """A reload that doesn't even begin; its text says why."""


class Reloader:
    """reread: the configuration as it is now; handle: takes events of the lifecycle; say: logs."""

    def __init__(
        self,
        reread: Callable[[], tuple[Settings, list[str]]],
        overseer: Overseer,
        handle: Callable[[Event], None],
        say: Callable[[str], None],
    ) -> None:
        self.reread, self.overseer, self.handle, self.say = reread, overseer, handle, say
        self.heard: dict[int, bytes] = {}  # by generation
        self.waiting: dict[int, asyncio.Future[str]] = {}  # by ticket
        self.last_ticket = 0
        self.failed = 0
        self.warnings: list[str] = []  # of the configuration that was read last
        self.one_reads = asyncio.Lock()

    async def reload(self, kind: Reload, serving: Callable[[], Settings], brutal: bool = False) -> str:
        """Until the last worker of a new generation serves: "". Or until that has failed: why, in lines, the last
        words of its processes among them. serving: the settings of today."""
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        async with self.one_reads:  # who asks later gets the later configuration
            try:
                settings = await self._read(serving()) if kind is Reload.GRACEFUL else serving()
            except RefusedError as refused:
                self.failed += 1
                self.say(f"the reload is refused, generation {self.overseer.generation} goes on serving:\n{refused}")
                return str(refused)
            self.last_ticket += 1
            self.waiting[self.last_ticket] = ended
            self.handle(ReloadAsked(kind, settings, brutal, frozenset({self.last_ticket})))
        return await ended

    async def _read(self, serving: Settings) -> Settings:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(TURNS)
        try:
            settings, warnings = await asyncio.to_thread(self.reread)
        except ConfigErrors as errors:
            raise RefusedError("\n".join(str(error) for error in errors.errors)) from None
        except StartError as error:
            raise RefusedError(str(error)) from None
        except Exception as error:
            raise RefusedError(f"the configuration can't be read: {error!r}") from error
        finally:
            sys.setswitchinterval(usual)
        if changes := beyond_a_reload(serving, settings):
            raise RefusedError("\n".join(changes))
        self.warnings = warnings
        for warning in warnings:
            self.say(warning)
        return settings

    def hear(self, generation: int, lines: bytes) -> None:
        """Of a generation that hasn't proved itself."""
        if generation not in self.heard:
            self.heard = {one: text for one, text in self.heard.items() if one > generation}
        self.heard[generation] = (self.heard.get(generation, b"") + lines)[-HEARD:]

    def ended(self, generation: int, tickets: frozenset[int], error: str) -> None:
        words = self.heard.pop(generation, b"").decode("utf-8", "backslashreplace").rstrip()
        self.failed += bool(error)
        for ticket in tickets:
            future = self.waiting.pop(ticket, None)
            if future is not None and not future.done():
                future.set_result(f"{error}\n{words}" if error and words else error)
