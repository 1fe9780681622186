#!/usr/bin/env python3
"""Counts the instructions that one request costs in our own code and Python's, part by part, beside the kept figures.

    python benchmarks/instructions.py           # count, and compare with instructions.json
    python benchmarks/instructions.py --keep    # write today's figures there

Timings differ from run to run by a tenth, instructions (callgrind's, user side only) by a thousandth: they show what a
change of the code is worth, and nothing about system calls, caches and waiting. Figures of another Python or compiler
don't compare. Exit code: 1 when a part needs more than kept, by TOLERANCE; 2 when nothing could be counted.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE / "instructions.json"
REQUESTS = 60  # all of them must fit into the channel before the first is served
TOLERANCE = 0.02

# In the order of a request's way: the C function whose instructions count, together with all that it calls, and how
# deep it lies in the part above it.
PARTS = {
    "parse": ("_proto_read_block", 0),
    "the whole of what a worker does": ("_serve_4Core_handle", 0),
    "environ": ("_serve_4Core_make_environ", 1),
    "the application and its answer": ("_serve_4Core_call_application", 1),
    "the answer's head": ("_serve_4Core_write_head", 2),
    "account": ("_serve_4Core_account", 1),
    "the request line": ("_serve_4Core_log_line", 2),
}


class CountError(Exception):
    """Nothing could be counted."""


def run(command: list[str], **environment: str) -> str:
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False
        )
    except FileNotFoundError:
        raise CountError(f"{command[0]} is missing; on Debian: apt-get install valgrind") from None
    if done.returncode:
        raise CountError(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def count() -> dict[str, float]:
    """Instructions per request, by part. Raises CountError."""
    with tempfile.TemporaryDirectory(prefix="wsgimaster-instructions-") as name:
        profile = Path(name) / "callgrind.out"
        counted = [f"--toggle-collect=*{function}" for function, depth in PARTS.values() if depth == 0]
        program = [sys.executable, str(HERE / "instructions_program.py"), str(REQUESTS)]
        places = [str(HERE / "apps"), str(HERE.parent / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", *counted]
        run([*valgrind, *program], PYTHONHASHSEED="0", PYTHONPATH=":".join(places))
        table = run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", "--show-percs=no", str(profile)])
    totals = {}
    for part, (function, _) in PARTS.items():
        found = re.search(rf"^\s*([\d,]+)\s+\S*{function}\s", table, re.MULTILINE)
        if found is None:
            raise CountError(f"callgrind did not see {function}")
        totals[part] = round(int(found[1].replace(",", "")) / REQUESTS, 1)
    return totals


def report(kept: dict[str, float], today: dict[str, float]) -> bool:
    """Prints the table; whether a part needs more than it did."""
    worse = False
    print(f"{'instructions per request':34} {'kept':>9} {'today':>9}   change")
    for part, figure in today.items():
        before = kept.get(part)
        change = figure / before - 1 if before else 0.0
        worse |= change > TOLERANCE
        mark = "  more than kept" if change > TOLERANCE else ""
        print(f"{'  ' * PARTS[part][1] + part:34} {before or 0:9,.0f} {figure:9,.0f} {change:+8.1%}{mark}")
    return worse


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", action="store_true", help="keep today's figures")
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"figures": {}}
    try:
        today = count()
    except CountError as error:
        print(f"instructions.py: {error}", file=sys.stderr)
        return 2
    worse = report(kept["figures"], today)
    if options.keep:
        document = {"python": platform.python_version(), "machine": platform.machine(), "figures": today}
        KEPT.write_text(json.dumps(document, indent=1) + "\n")
        return 0
    if kept.get("python") != platform.python_version():
        print(f"(kept with Python {kept.get('python')}, counted with {platform.python_version()}: no comparison)")
        return 0
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
