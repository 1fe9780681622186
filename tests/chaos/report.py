"""From reliability.json to reliability.md. Nothing is measured here, so the page can be written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EN_DASH = "\u2013"
HEADS = {"wsgimaster": "wsgimaster", "wsgimaster-push": "wsgimaster, `dispatch = push`", "uwsgi": "uWSGI"}

INTRODUCTION = """\
# Reliability

What clients see when something goes wrong: requests that never end, processes that are killed, too much of
everything, hostile input. Every scenario starts a real server, hurts it, counts every single answer, and sets the
figures against a bound. The same script does the same to uWSGI {uwsgi}, with the same options, where that says
something.

Made by `make chaos`, from the run in [reliability.json](reliability.json): don't edit by hand.

## Run it again

```
make chaos                              # everything, about {minutes} minutes
make chaos ARGS=--quick                 # a few minutes, small counts; this page stays as it is
make chaos ARGS="harakiri recycling"    # some scenarios; the others keep their figures
make chaos ARGS="--server wsgimaster"   # without uWSGI
make chaos ARGS=--render                # this page again, from reliability.json
```

The exit code is 1 when wsgimaster misses a bound, 2 when a scenario could not run. Some scenarios need root (a change
of user, namespaces), nginx and gcc. **The machine must be quiet**: bounds are milliseconds, and clients, server and
whatever else runs share the cores.

## How to read it

- Clients never try again: one connection, one request, one answer. What came back counts as served only if it is
  a whole 200 with this very request's id in its body.
- The application notes each request that it begins with, so what was executed twice, or by whom, doesn't depend on
  what clients saw.
- Times are the client's, from before its connect to the end of the answer.
- **Bold** is a bound that was missed. A figure without a bound in its column is for information.
- For uWSGI a missed bound is no defect: it doesn't promise a 504, say. The bounds are ours.
"""


def cell(value: object) -> str:
    if value is None:
        return EN_DASH
    return str(value).replace("|", "\\|").replace("\n", " ")


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def verdict(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not run"
    if "missing" in result:
        return f"**missing: {cell(result['missing'])}**" if not result.get("not_applicable") else result["missing"]
    bounds = [figure for case in result["cases"] for figure in case["figures"] if figure["kept"] is not None]
    missed = sum(not figure["kept"] for figure in bounds)
    cases = sum(any(figure["kept"] is False for figure in case["figures"]) for case in result["cases"])
    if missed:
        return f"**missed in {cases} of {len(result['cases'])} cases** ({missed} of {len(bounds)} figures)"
    return f"kept in {len(result['cases'])} of {len(result['cases'])} cases ({len(bounds)} figures)"


def shown(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    text = cell(figure["seen"])
    return f"**{text}**" if figure["kept"] is False else text


def merged(case: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Figures by name; one that was taken several times is shown once, where it missed its bound if it did."""
    found: dict[str, dict[str, Any]] = {}
    for figure in case["figures"] if case else []:
        key = figure["what"]
        if key not in found or (found[key]["kept"] and not figure["kept"]):
            found[key] = figure
    return found


def case_rows(results: dict[str, Any], name: str) -> list[list[str]]:
    columns = []
    for server in HEADS:
        cases = {case["name"]: case for case in results.get(server, {}).get("cases", [])}
        columns.append(merged(cases.get(name)))
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = []
    for number, key in enumerate(keys):
        rule = next((column[key]["rule"] for column in columns if key in column), "")  # a count of ours comes first
        cells = [shown(column.get(key)) for column in columns]
        rows.append([name if number == 0 else "", key, rule, *cells])
    return rows


def section(name: str, entry: dict[str, Any]) -> str:
    results = entry["results"]
    text = f"## {name}\n\n{entry['done']}\n\nBound: {entry['bound']}.\n\n"
    for server, result in results.items():
        if "missing" in result:
            text += f"{server}: {result['missing']}.\n\n"
    names = dict.fromkeys(case["name"] for result in results.values() for case in result.get("cases", []))
    rows = [row for case in names for row in case_rows(results, case)]
    if rows:
        text += table(["case", "figure", "bound", *HEADS.values()], rows)
    runs = (
        f"{server} {result['version']}, {result['when']}" for server, result in results.items() if "version" in result
    )
    return text + f"\n{'; '.join(runs)}.\n"


def markdown(document: dict[str, Any]) -> str:
    scenarios = document["scenarios"]
    rows = [
        [
            f"[{name}](#{name})",
            cell(entry["done"]),
            cell(entry["bound"]),
            *(verdict(entry["results"].get(server)) for server in HEADS),
        ]
        for name, entry in scenarios.items()
    ]
    machine = document["machine"]
    return (
        INTRODUCTION.format(uwsgi=document["uwsgi"], minutes=40)
        + f"\nMachine: {machine['cores']} cores, {machine['processor']}, {machine['kernel']}, "
        + f"Python {machine['python']}.\n\n"
        + "## Scenarios\n\n"
        + table(["scenario", "what was done", "bound", *HEADS.values()], rows)
        + "\n"
        + "\n".join(section(name, entry) for name, entry in scenarios.items())
    )


def write(raw: Path, page: Path) -> None:
    page.write_text(markdown(json.loads(raw.read_text())))
