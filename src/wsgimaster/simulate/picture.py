"""A simulated run as a picture: workers, busyness, queue and waiting time, one above the other."""

from matplotlib import rc_context
from matplotlib.figure import Figure

from wsgimaster.simulate.engine import Outcome

POINTS = 600  # per line; a day has 86,400 seconds


def draw(outcomes: dict[str, Outcome], title: str, path: str) -> None:
    """outcomes: by name, drawn over each other ("" needs no legend); path: its ending says the format."""
    figure = Figure(figsize=(9, 9), layout="constrained")  # without pyplot: no window, wherever it runs
    workers, busyness, queue, wait = figure.subplots(4, 1, sharex=True)
    for name, outcome in outcomes.items():
        size = max(1, len(outcome.seconds) // POINTS)
        parts = [outcome.seconds[first : first + size] for first in range(0, len(outcome.seconds), size)]
        minutes = [part[-1].at / 60 for part in parts]
        workers.step(minutes, [part[-1].workers for part in parts], where="post", label=name, linewidth=1)
        busyness.plot(minutes, [100 * sum(one.busyness for one in part) / len(part) for part in parts], linewidth=0.8)
        queue.plot(minutes, [max(one.waiting for one in part) for part in parts], linewidth=0.8)
        wait.plot(minutes, [1000 * max(one.worst_wait for one in part) for part in parts], linewidth=0.8)
    for axes, label in ((workers, "workers"), (busyness, "busy, %"), (queue, "queue"), (wait, "longest wait, ms")):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    wait.set_xlabel("minutes")
    workers.set_title(title)
    if any(outcomes):
        workers.legend()
    with rc_context({"svg.hashsalt": "wsgimaster", "svg.fonttype": "none"}):  # always the same file; text stays text
        figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
