"""`py-autoreload`: a graceful reload as soon as Python code changes, for developers.

uWSGI has a thread in each worker look at the imported modules. Here the master has the kernel tell it of changes below
the directories that code is imported from (inotify, by way of the extra `watchfiles`); so a module that could not be
imported the last time counts, too. Changes in what is installed (site-packages, virtualenvs) don't.

Runs in: the master; the library has a thread.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from wsgimaster.settings import App

INSTALLED = ("site-packages", "dist-packages", "venv", "env", ".tox")  # directories, beside those the library ignores
GROUPED = 200  # milliseconds: changes that come together, such as those of a checkout, are one


def why_not() -> str:
    """Why it can't be done here; "" if it can."""
    if importlib.util.find_spec("watchfiles") is None:
        return "*** WARNING: py-autoreload has no effect: it needs pip install 'wsgimaster[autoreload]' ***"
    return ""


def directories(app: App, here: str) -> list[str]:
    """Where the application's code is imported from. here: the directory in which the server works."""
    named = [here, *app.pythonpath, *([str(Path(app.file).parent)] if app.file else [])]
    found = {os.path.abspath(os.path.join(here, path)) for path in named}
    return sorted(path for path in found if path != "/" and Path(path).is_dir())  # all of a machine is too much


async def watch(paths: Iterable[str], changed: Callable[[str], None]) -> None:
    """For ever. changed: gets the path of the first file of those that have changed together. Raises OSError when the
    kernel watches no more."""
    import watchfiles

    class Code(watchfiles.PythonFilter):
        ignore_dirs = (*watchfiles.PythonFilter.ignore_dirs, *INSTALLED)

    async for changes in watchfiles.awatch(
        *paths, watch_filter=Code(), debounce=GROUPED, ignore_permission_denied=True
    ):
        changed(min(path for _, path in changes))
