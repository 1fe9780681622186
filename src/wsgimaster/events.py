"""What can happen to zygotes and workers (events), and what can be done about it (effects).

lifecycle.py makes the one into the other; master.py observes the one and carries out the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from wsgimaster.recycling import Figures
from wsgimaster.settings import Settings


class Reload(StrEnum):
    """Which kind of reload. All of them load the code anew."""

    GRACEFUL = "graceful"  # reads the configuration, too
    WORKERS = "workers"
    CHAIN = "chain"  # one worker after the other
    RESTART = "restart"  # not asked for: the zygote has died, and what is on disk may have changed


# ---- what happened ----


@dataclass(frozen=True, slots=True)
class ZygoteLoaded:
    generation: int


@dataclass(frozen=True, slots=True)
class ZygoteGone:
    generation: int
    status: int  # exit code, or minus the signal


@dataclass(frozen=True, slots=True)
class Forked:
    slot: int
    pid: int
    chance: float  # uniform in [0, 1): spreads the limits of workers that are born together


@dataclass(frozen=True, slots=True)
class ForkFailed:
    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class WorkerAlive:
    """It is through the fork. What follows (lazy-apps: loading the application) may take as long as it likes."""

    slot: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    slot: int


@dataclass(frozen=True, slots=True)
class WorkerBroken:
    """It runs, but can't be given requests any more."""

    slot: int


@dataclass(frozen=True, slots=True)
class WorkerWorn:
    """It serves, but a fresh one would do it better. why: "worker 3 " and this is a sentence."""

    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class WorkerStuck:
    """A request of its has passed its deadline: it gets no more, and will be killed (harakiri.py)."""

    slot: int


@dataclass(frozen=True, slots=True)
class Looked:
    """The figures of all workers that serve."""

    figures: Mapping[int, Figures]  # by slot


@dataclass(frozen=True, slots=True)
class MoreWanted:
    """So many more workers than there are posts that are to be filled."""

    count: int


@dataclass(frozen=True, slots=True)
class NobodyWanted:
    """Every worker finishes what it has and ends, none is replaced, until more are wanted."""


@dataclass(frozen=True, slots=True)
class Cheaped:
    """The worker is idle, gets no request any more, and isn't to be replaced."""

    slot: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    slot: int
    status: int
    served: int  # requests


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    kind: Reload
    settings: Settings  # of the new generation
    brutal: bool = False  # old workers get a second for what they have, not the mercy
    tickets: frozenset[int] = frozenset()  # of those who wait for the end of it


@dataclass(frozen=True, slots=True)
class RoomFound:
    """So many more workers fit into memory."""

    workers: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    fast: bool


@dataclass(frozen=True, slots=True)
class Tick:
    work_left: int  # requests that run, wait or are being read; clients that are being drained


Event = (
    ZygoteLoaded
    | ZygoteGone
    | Forked
    | ForkFailed
    | WorkerAlive
    | WorkerReady
    | WorkerBroken
    | WorkerWorn
    | WorkerStuck
    | MoreWanted
    | NobodyWanted
    | Cheaped
    | WorkerGone
    | Looked
    | ReloadAsked
    | RoomFound
    | StopAsked
    | Tick
)


# ---- what to do ----


@dataclass(frozen=True, slots=True)
class StartZygote:
    generation: int
    settings: Settings
    kind: Reload | None = None  # why; None: at the start


@dataclass(frozen=True, slots=True)
class Fork:
    slot: int
    number: int
    generation: int  # whose zygote is asked
    proof: bool = False  # the first of a new generation: without an application, or without passing the check, it ends


@dataclass(frozen=True, slots=True)
class Forget:
    """Close the slot's channels: what its worker hadn't begun goes to others."""

    slot: int


@dataclass(frozen=True, slots=True)
class Retire:
    slot: int


@dataclass(frozen=True, slots=True)
class Kill:
    slot: int


@dataclass(frozen=True, slots=True)
class KillZygote:
    generation: int


@dataclass(frozen=True, slots=True)
class RetireZygote:
    """It isn't needed any more."""

    generation: int


@dataclass(frozen=True, slots=True)
class Switch:
    """From now on this generation is the one that serves, with its settings."""

    generation: int
    settings: Settings


@dataclass(frozen=True, slots=True)
class MeasureRoom:
    """How many more workers fit into memory? Answered by a RoomFound."""


@dataclass(frozen=True, slots=True)
class ReloadEnded:
    """error: why the old generation goes on; "" after a success. A reload that was given up for another one ends with
    that one."""

    generation: int  # the one that was to serve
    tickets: frozenset[int]
    error: str = ""


@dataclass(frozen=True, slots=True)
class CloseDoor:
    pass


@dataclass(frozen=True, slots=True)
class RefuseWaiting:
    pass


@dataclass(frozen=True, slots=True)
class Say:
    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    code: int


Effect = (
    StartZygote
    | Fork
    | Forget
    | Retire
    | Kill
    | KillZygote
    | RetireZygote
    | Switch
    | MeasureRoom
    | ReloadEnded
    | CloseDoor
    | RefuseWaiting
    | Say
    | Exit
)
