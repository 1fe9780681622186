"""Who may import whom, and who may touch the world. docs/architecture.md has the reasons."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wsgimaster

SOURCE = Path(wsgimaster.__file__).parent

# Decisions and formats: values in, values out.
PURE = {
    "errors",
    "events",
    "lifecycle",
    "messages",
    "recycling",
    "settings",
    "wakeups",
    "scaling.backlog",
    "scaling.busyness",
    "scaling.facts",
    "scaling.flapping",
    "scaling.manual",
    "scaling.policy",
    "scaling.room",
    "scaling.spare",
    "scaling.spare2",
    "simulate.engine",
    "config.language",
    "config.options",
    "config.values",
    "config.spelling",
    "config.help",
    "config.notes",
}
EFFECTS = {"asyncio", "logging", "os", "psutil", "random", "signal", "socket", "subprocess", "threading", "time"}

MAY_IMPORT = {
    # the application's side: no event loop, none of our dependencies
    "zygote": {"worker", "hazards", "hooks", "messages", "errors", "_process"},
    "worker": {"loader", "errors", "hooks", "static", "_process", "_serve"},
    "static": {"_files", "_serve"},
    "loader": {"errors"},
    "hazards": set(),
    "hooks": set(),
    # the master's side
    "master": {
        "autoreload",
        "commands",
        "control",
        "daemons",
        "events",
        "exchange",
        "handover",
        "harakiri",
        "health",
        "lifecycle",
        "machine",
        "messages",
        "processes",
        "recycling",
        "reloading",
        "scaler",
        "scaling",
        "sockets",
        "systemd",
        "log",
        "scoreboard",
        "settings",
        "spooling",
        "errors",
        "tls",
        "triggers",
        "upgrading",
        "wakeups",
        "_front",
    },
    "startup": {
        "control",
        "handover",
        "triggers",
        "upgrading",
        "processes",
        "hooks",
        "log",
        "master",
        "privileges",
        "sockets",
        "systemd",
        "tls",
        "errors",
        "settings",
        "_process",
    },
    "upgrading": {
        "_front",
        "config",
        "errors",
        "events",
        "exchange",
        "handover",
        "lifecycle",
        "master",  # for its type only
        "processes",
        "reloading",
        "sockets",
        "stamp",
        "tls",
    },
    "stamp": set(),
    "handover": {"certificates", "config", "errors", "lifecycle", "settings"},
    "proving": {
        "_front",
        "_process",
        "config",
        "errors",
        "handover",
        "lifecycle",
        "messages",
        "processes",
        "scoreboard",
        "settings",
        "stamp",
        "startup",
    },
    "autoreload": {"settings"},
    "daemons": {"hooks", "lifecycle", "processes", "settings"},
    "spooling": set(),
    "tls": {"certificates", "errors", "lifecycle", "processes", "settings", "terminator"},
    "terminator": {"_process", "certificates"},  # a process of its own, beside the application's
    "certificates": {"errors"},
    "systemd": set(),
    "health": {"exchange"},
    "exchange": set(),
    "processes": {"_process", "errors", "lifecycle", "log", "recycling", "settings"},
    "sockets": {"errors", "settings"},
    "privileges": {"errors", "settings", "_process"},
    "scoreboard": {"_front"},
    "demo": set(),
    "log": set(),
    "commands": {"control", "events", "hooks", "lifecycle", "master"},  # master: for its type only
    "control": {"errors", "exchange", "sockets"},
    "triggers": {"errors"},
    "reloading": {"config", "errors", "events", "lifecycle", "settings"},
    "harakiri": {"_front", "events", "log", "processes", "settings"},
    "events": {"recycling", "settings"},
    "lifecycle": {"errors", "events", "recycling", "settings"},
    "scaler": {"_front", "events", "lifecycle", "machine", "scaling", "settings"},
    "machine": {"scaling"},
    "scaling": {"scaling", "settings"},
    "recycling": {"settings"},
    "messages": set(),
    "settings": set(),
    "wakeups": set(),
    "errors": set(),
    "config": {"config", "errors", "hooks", "settings"},
    "cli": {
        "_process",
        "config",
        "errors",
        "handover",
        "master",
        "operate",
        "proving",
        "settings",
        "simulate",
        "stamp",
        "startup",
        "upgrading",
    },
    "operate": {"config", "control", "errors", "settings"},
    "simulate": {"config", "errors", "scaling", "settings", "simulate"},
    "__main__": {"cli"},
    "__init__": set(),
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=module_of)
def test_imports_point_down(path):
    module = module_of(path)
    allowed = MAY_IMPORT[module.partition(".")[0]]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "wsgimaster" and rest and rest != "__version__":
            assert rest.partition(".")[0] in allowed, f"{module} must not import {rest}"
        assert not (module in PURE and top in EFFECTS), f"{module} is pure, but imports {top}"


def test_every_pure_module_exists():
    assert {module_of(path) for path in SOURCE.rglob("*.py")} >= PURE


def test_the_application_finds_none_of_our_dependencies_imported():
    script = "import sys; from wsgimaster import hazards, worker, messages, zygote; print(*sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in found.stdout.split()}
    assert not loaded & {"asyncio", "pydantic", "pydantic_core", "psutil", "uvloop"}


def test_no_module_serialises_with_pickle():
    for path in [*SOURCE.rglob("*.py"), *SOURCE.parent.glob("*.pyx")]:
        assert "pickle" not in path.read_text(), f"{path}: what processes tell each other is plain structs and JSON"
