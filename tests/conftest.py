"""A failing test shows the logs of the processes that ran during it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.harness import Program, Server, readable_interpreter
from support.one_process import Bench

LOG_END = 20_000  # characters of a log that a failure shows

_read_from: dict[int, int] = {}  # where each log stood when the test began


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    Program.started[:] = [program for program in Program.started if not program.closed]
    _read_from.clear()
    _read_from.update({id(program): len(program.log()) for program in Program.started})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        for program in Program.started:
            if log := program.log()[_read_from.get(id(program), 0) :]:
                report.sections.append((f"{report.when}: log of {program.name}", log[-LOG_END:]))
    return report


@pytest.fixture
def start() -> Iterator[type[Server]]:
    """Start servers for one test: what Server takes; they end with the test."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Server(*args, **kwargs))


@pytest.fixture(scope="session")
def readable() -> Iterator[list[str]]:
    """What to put in front of the server's command for a user other than root."""
    with readable_interpreter() as prefix:
        yield prefix


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Make benches for one test: what Bench takes."""
    made = []

    def make(**settings: Any) -> Bench:
        made.append(Bench(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
