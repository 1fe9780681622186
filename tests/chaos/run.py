#!/usr/bin/env python3
"""Hurts a real server, counts what its clients saw, and does the same to uWSGI 2.0.31.

    python tests/chaos/run.py                        # every scenario, all servers: writes docs/reliability.md
    python tests/chaos/run.py harakiri recycling     # some of them; the page keeps the others' figures
    python tests/chaos/run.py --quick                # small counts, under build/chaos: does everything still work?
    python tests/chaos/run.py --server wsgimaster    # or wsgimaster-push (dispatch = push), or uwsgi
    python tests/chaos/run.py --render               # the page again, from docs/reliability.json

UWSGI_BIN names the uWSGI. Exit code: 0 when wsgimaster keeps every bound, 1 when it misses one, 2 when a scenario
could not run (not root, no nginx), which counts as missing and not as passed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench
import deaths  # noqa: F401 - each of these registers its scenarios
import outside  # noqa: F401
import pressure  # noqa: F401
import recycling  # noqa: F401
import reloads  # noqa: F401
import report
import scaling  # noqa: F401
import stuck  # noqa: F401
import upgrades  # noqa: F401
from bench import BUILD, REPOSITORY, SCENARIOS, Bench, Case, Missing, Scenario
from support.harness import COMMAND, Program

SERVERS = ("wsgimaster", "wsgimaster-push", "uwsgi")  # dispatch = auto, dispatch = push
PAGE = REPOSITORY / "docs" / "reliability.md"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="small counts; the page stays as it is")
    parser.add_argument("--server", choices=[*SERVERS, "all"], default="all")
    parser.add_argument("--render", action="store_true", help="write the page again, without running anything")
    options = parser.parse_args(arguments)
    unknown = set(options.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    return options


# ---- one scenario, one server ----


def run(scenario: Scenario, server: str, quick: bool) -> dict[str, Any]:
    if server == "uwsgi" and scenario.only_wsgimaster:
        return {"missing": f"not applicable: {scenario.only_wsgimaster}", "not_applicable": True}
    print(f"{scenario.name}, {server}", flush=True)
    result: dict[str, Any] = {"when": now_text(), "load_before": round(os.getloadavg()[0], 2)}
    began = time.monotonic()
    trial = Bench(server, quick, [], say)
    try:
        commands = {"wsgimaster": COMMAND, "wsgimaster-push": [*COMMAND, "--dispatch", "push"]}
        trial.command = commands.get(server) or [bench.uwsgi_binary()]
        result["version"] = version(server)
        scenario.run(trial)
    except Missing as reason:
        print(f"  MISSING: {reason}", flush=True)
        return {"missing": f"could not run: {reason}", "not_applicable": False}
    except Exception as error:
        with trial.case("the scenario"):
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
    finally:
        end_leftovers()
    result["seconds"] = round(time.monotonic() - began, 1)
    result["cases"] = [asdict(case) for case in trial.cases]
    return result


def say(case: Case) -> None:
    missed = case.missed()
    print(f"  {'MISSED' if missed else 'kept  '}  {case.name}", flush=True)
    for figure in case.figures:
        if figure.kept is not None or figure.seen not in (None, ""):
            mark = {True: " ", False: "!", None: " "}[figure.kept]
            print(f"        {mark} {figure.what}: {figure.seen}{'  ' + figure.rule if figure.rule else ''}", flush=True)


def end_leftovers() -> None:
    """Of a scenario that an exception ended: each program's own clean-up, which complains if something is left."""
    for program in Program.started:
        try:
            program.close()
        except AssertionError as error:
            print(f"  after the scenario: {error}", flush=True)
    Program.started.clear()


# ---- what is known about the run ----


def now_text() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def first_line(command: list[str]) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    return next(iter((done.stdout + done.stderr).splitlines()), "")


def version(server: str) -> str:
    if server == "uwsgi":
        return first_line([bench.uwsgi_binary(), "--version"])
    commit = first_line(["git", "rev-parse", "--short", "HEAD"])
    changed = first_line(["git", "status", "--porcelain", "--", "src"])
    return f"commit {commit}{' with changes' if changed else ''}"


def machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": model[1].strip() if model else platform.machine(),
        "kernel": f"Linux {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


# ---- all of them ----


def load_document(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"scenarios": {}}


def save(path: Path, document: dict[str, Any]) -> None:
    """In the order in which the scenarios are registered."""
    known = document["scenarios"]
    document["scenarios"] = {name: known[name] for name in SCENARIOS if name in known}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def summary(results: dict[str, dict[str, dict[str, Any]]]) -> int:
    """Print the table; the exit code."""
    print(f"\n{'scenario':20} {'wsgimaster':42} {'dispatch = push':42} uWSGI")
    missed = missing = False
    for name, by_server in results.items():
        cells = [report.verdict(by_server.get(server)).replace("**", "") for server in SERVERS]
        print(f"{name:20} {cells[0]:42} {cells[1]:42} {cells[2]}")
        for ours in (by_server[server] for server in by_server if server != "uwsgi"):
            missing |= "missing" in ours
            missed |= any(figure["kept"] is False for case in ours.get("cases", ()) for figure in case["figures"])
        missing |= any("missing" in r and not r["not_applicable"] for r in by_server.values())
    return 1 if missed else 2 if missing else 0


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, as Ctrl-C does
    # another server than this tree's, or small counts: nothing for the page
    page = BUILD / PAGE.name if options.quick or "WSGIMASTER_TEST_SERVER" in os.environ else PAGE
    raw = page.with_suffix(".json")
    if options.render:
        report.write(raw, page)
        return 0
    bench.compile_programs()
    document = load_document(raw)
    document |= {"machine": machine(), "uwsgi": "2.0.31"}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name in options.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]
        entry = document["scenarios"].setdefault(name, {"results": {}})
        entry |= {"done": scenario.done, "bound": scenario.bound}
        results[name] = {}
        for server in SERVERS if options.server == "all" else (options.server,):
            results[name][server] = entry["results"][server] = run(scenario, server, options.quick)
            save(raw, document)
    report.write(raw, page)
    print(f"\n{page.relative_to(REPOSITORY)} written")
    return summary(results)


if __name__ == "__main__":
    sys.exit(main())
