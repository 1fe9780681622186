"""What a decision about the number of workers is made from, and what it consists of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at workers and queue.

    Totals count from the start of the server. A worker is *busy* if any of its cores has a request; *overdue* is a
    request that has waited for longer than `cheaper-queue-wait`.
    """

    wanted: int  # workers that there should be
    spawnable: int  # that there may be more: `processes` less those
    workers: int  # that serve, start or are asked for; without those that leave, and those that died and are waited for
    coming: int  # of the workers: not ready yet
    busy: int  # of the workers: busy at this moment
    free_cores: int  # ready for a request at this moment
    threads: int  # cores per worker
    busy_seconds: float  # total time that cores have spent in requests, running ones included
    core_seconds: float  # total time that they could have
    served: int  # total of requests
    waiting: int  # requests, in the master's queue and in the kernel's
    overdue: int = 0  # of them
    oldest: float = 0.0  # seconds that the first of them has waited


@dataclass(frozen=True, slots=True)
class Decision:
    """change: workers to add, or, negative, to end.

    why: a sentence with its numbers, for the log; without a change it is told only to those who ask for it
    (`cheaper-busyness-verbose`). also: more sentences for the log. all_end: it is about all workers (`idle`).
    """

    change: int = 0
    why: str = ""
    also: tuple[str, ...] = ()
    all_end: bool = False  # or none


NOTHING = Decision()
