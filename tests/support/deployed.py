"""A server whose code and configuration a test can replace while it runs (tests/apps/deployed.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.client import uwsgi
from support.harness import APPS, Server

Start = Callable[..., Server]
WSGIMASTER = [sys.executable, "-m", "wsgimaster"]


class Deployed:
    """A server with an application of which there are several versions."""

    def __init__(
        self,
        start: Start,
        where: Path,
        *more: str,
        processes: int = 2,
        env: Mapping[str, str] | None = None,
        **harness: object,
    ) -> None:
        self.where, self.code = where, where / "deploy.py"
        self.deploy("VERSION = 'one'")
        environment = {"DEPLOY": str(self.code), **(env or {})}
        self.server = start(self.options(*more, processes=processes), env=environment, **harness)
        self.server.wait_workers(processes)
        assert self.version() == "one"  # before that, the next deploy might be what is loaded

    def options(self, *more: str, processes: int = 2) -> str:
        lines = [
            "socket = app.sock",
            f"pythonpath = {APPS}",
            "module = deployed",
            f"processes = {processes}",
            "master-fifo = fifo",
            "pidfile = pid",
        ]
        return "\n".join([*lines, *more]) + "\n"

    def deploy(self, code: str) -> None:
        """Takes effect when the application is imported next."""
        self.code.write_text(code)

    def configure(self, *more: str, processes: int = 2) -> None:
        ini = self.server.directory / "uwsgi.ini"
        ini.write_text(f"[uwsgi]\nmaster = true\n{self.options(*more, processes=processes)}")

    def operate(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of ours for this server."""
        command, *rest = words
        pidfile = str(self.server.directory / "pid")
        return subprocess.run(
            [*WSGIMASTER, command, "--pidfile", pidfile, *rest], capture_output=True, text=True, timeout=60, check=False
        )

    def reload(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.operate("reload", "--wait", *words)

    def write(self, letters: str) -> None:
        fd = os.open(self.server.directory / "fifo", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, letters.encode())
        os.close(fd)

    def version(self) -> str:
        return uwsgi(self.server.address, "/").text.split()[0]

    def versions(self, count: int = 20) -> set[str]:
        return {self.version() for _ in range(count)}

    @contextmanager
    def under_load(self, clients: int = 4) -> Iterator[list[str]]:
        """Ask all the time; what is yielded fills with the bodies, and no other answer than 200 may come."""
        over, bodies, failures = threading.Event(), [], []

        def ask() -> None:
            while not over.is_set():
                try:
                    answer = uwsgi(self.server.address, "/sleep?0.005")
                    (bodies if answer.status == 200 else failures).append(answer.text)
                except OSError as error:
                    failures.append(repr(error))

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield bodies
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert failures == []
