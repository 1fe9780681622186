"""The command line of `wsgimaster simulate`, and the table that it prints."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable

from wsgimaster.config.load import load
from wsgimaster.errors import StartError
from wsgimaster.settings import Settings
from wsgimaster.simulate import loads
from wsgimaster.simulate.engine import Engine, Outcome, Pool, Request

LONG_REPLAY = 4 * 3600.0  # seconds of load, from which a progress bar is shown
DESCRIPTION = """\
Play a load through the workers that a configuration would have, and show how many there would be and who would wait.
Everything but the options below is the server's own: wsgimaster simulate uwsgi.ini --cheaper-step 4 --load access.log
"""


def run(argv: list[str]) -> int:
    """Returns the exit code. argv: without `simulate`. Raises ConfigErrors and StartError."""
    options, rest = parser().parse_known_args(argv)
    draw = picture_of() if options.picture else None  # before anything takes long
    loaded = load(rest, os.environ, os.getcwd(), serves=False)
    for warning in loaded.warnings:
        print(f"wsgimaster: {warning}", file=sys.stderr)
    settings = loaded.settings
    if not settings.cheaper.minimum:
        raise StartError("there is nothing to simulate without cheaper = N, the least number of workers")
    pool = Pool(
        settings.cheaper,
        settings.processes.processes,
        settings.first_workers,
        settings.processes.threads,
        options.start_seconds,
    )
    requests, seconds = chosen_load(options, settings)
    outcome = Engine(pool).run(requests, seconds, progress_bar(seconds))
    print(table(outcome, seconds))
    if options.explain:
        for change in outcome.changes:
            print(f"{clock(change.at)}  {change.workers - change.change} -> {change.workers} workers: {change.why}")
    if draw is not None:
        try:
            draw({"": outcome}, f"{options.load}: {pool.settings.algorithm}", options.picture)
        except (OSError, ValueError) as error:  # ValueError: a format that isn't known
            raise StartError(f"--picture {options.picture}: {error}") from error
    return 0


def parser() -> argparse.ArgumentParser:
    shapes = ", ".join(loads.SHAPES)
    made = argparse.ArgumentParser("wsgimaster simulate", description=DESCRIPTION, allow_abbrev=False)
    made.add_argument("--load", required=True, metavar="FILE|SHAPE", help=f"a log of uWSGI's or nginx's, or: {shapes}")
    made.add_argument(
        "--service-time",
        type=positive,
        metavar="SECONDS",
        help="that a request takes, on average, in a shape (0.1 if not given) or where the log doesn't say",
    )
    made.add_argument(
        "--start-seconds",
        type=positive,
        default=0.05,
        metavar="SECONDS",
        help="until a new worker is ready (0.05; with lazy-apps, as long as the application takes to load)",
    )
    made.add_argument("--explain", action="store_true", help="print every change with its reason")
    made.add_argument("--picture", metavar="FILE", help="draw it, too: .svg, .png or .pdf (needs wsgimaster[simulate])")
    return made


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds greater than 0, found {text!r}")
    return value


def chosen_load(options: argparse.Namespace, settings: Settings) -> tuple[Iterable[Request], float]:
    """The requests, and how many seconds they come."""
    if options.load in loads.SHAPES:
        cores = settings.processes.processes * settings.processes.threads
        return loads.from_shape(options.load, cores, options.service_time or 0.1), loads.SHAPES[options.load][1]
    requests = loads.from_log(options.load, options.service_time)
    return requests, requests[-1].at + 60.0


def progress_bar(seconds: float) -> Callable[[float], None]:
    """On a terminal, if it takes long."""
    if seconds < LONG_REPLAY or not sys.stderr.isatty():
        return lambda at: None
    try:
        from tqdm import tqdm
    except ImportError:
        return lambda at: None
    bar = tqdm(total=int(seconds), unit="s", desc="replaying")

    def tell(at: float) -> None:
        bar.update(at - bar.n)
        if at + 1 > seconds:
            bar.close()

    return tell


def picture_of() -> Callable[[dict[str, Outcome], str, str], None]:
    try:
        from wsgimaster.simulate.picture import draw
    except ImportError as error:
        raise StartError("--picture needs matplotlib: pip install 'wsgimaster[simulate]'") from error
    return draw


def table(outcome: Outcome, seconds: float) -> str:
    """The whole run in a few lines, then what it was like in twenty slices."""
    up = sum(change.change > 0 for change in outcome.changes)
    waits = sorted(outcome.waits)
    lines = [
        f"requests     {len(waits)} in {clock(seconds)}",
        f"workers      {outcome.worker_seconds / seconds:.1f} on average,"
        f" {min(one.workers for one in outcome.seconds)} to {max(one.workers for one in outcome.seconds)}",
        f"changes      {len(outcome.changes)}: {up} up, {len(outcome.changes) - up} down;"
        f" {3600 * len(outcome.changes) / seconds:.0f} an hour",
        f"waiting      {milliseconds(share(waits, 0.5))} (half of the requests waited for less),"
        f" {milliseconds(share(waits, 0.99))} (99 %), {milliseconds(share(waits, 1.0))} (longest)",
        *(
            [f"at the end   {len(outcome.left)} still wait, the first for {clock(max(outcome.left))}"]
            if outcome.left
            else []
        ),
        "",
        f"{'time':>9}  {'workers':>9}  {'busy':>5}  {'queue':>6}  {'longest wait':>13}",
    ]
    size = max(1, -(-len(outcome.seconds) // 20))
    for first in range(0, len(outcome.seconds), size):
        part = outcome.seconds[first : first + size]
        least, most = min(one.workers for one in part), max(one.workers for one in part)
        busyness = sum(one.busyness for one in part) / len(part)
        lines.append(
            f"{clock(part[0].at - 1):>9}  {f'{least} to {most}' if least < most else least:>9}  {busyness:>5.0%}"
            f"  {max(one.waiting for one in part):>6}  {milliseconds(max(one.worst_wait for one in part)):>13}"
        )
    return "\n".join(lines)


def share(waits: list[float], part: float) -> float:
    """The wait that this part of all requests didn't exceed."""
    return waits[min(len(waits) - 1, int(part * len(waits)))] if waits else 0.0


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02}:{int(seconds % 60):02}"
