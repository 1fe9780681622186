"""Where the application comes from: `module` or `wsgi-file`, and the name of its callable.

Runs in: the zygote, or with `lazy-apps` each worker. Imports as little as it can: what is imported here, the
application finds imported.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

from wsgimaster.errors import AppLoadError


def load(module: str | None, file: str | None, callable_name: str) -> Any:
    """The WSGI callable.

    module: `pkg.mod`, `pkg.mod:callable`, or `pkg.mod:factory()` to use what a call returns (uWSGI `module`).
    file: a Python file of any name (uWSGI `wsgi-file`), used when there is no module. Raises AppLoadError.
    """
    if module:
        name, _, attribute = module.partition(":")
        return _find(_import(name), attribute or callable_name, module)
    if file:
        return _find(_run_file(file), callable_name, file)
    raise AppLoadError("no application: give module = package.module or wsgi-file = path")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BaseException as error:  # SystemExit in a module is a failed import as well
        raise AppLoadError(f"module {name} can't be imported: {type(error).__name__}: {error}") from error


def _run_file(path: str) -> ModuleType:
    name = "uwsgi_file_" + path.removesuffix("py").replace("/", "_").replace(".", "_")
    source = SourceFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=source)
    assert spec is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        source.exec_module(module)
    except BaseException as error:
        raise AppLoadError(f"file {path} can't be loaded: {type(error).__name__}: {error}") from error
    return module


def _find(module: ModuleType, name: str, written: str) -> Any:
    wants_call = name.endswith("()")
    found: Any = module
    try:
        for part in name.removesuffix("()").split("."):
            found = getattr(found, part)
        found = found() if wants_call else found
    except BaseException as error:
        raise AppLoadError(f"{written}: no usable {name!r}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise AppLoadError(f"{written}: {name!r} is a {type(found).__name__}, not a WSGI callable")
    return found
