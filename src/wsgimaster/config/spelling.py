"""The nearest known option name for one that nobody knows."""

from __future__ import annotations

from functools import cache, lru_cache

from wsgimaster.config.options import BY_NAME, State

MAX_SUGGESTIONS = 50  # per configuration: one costs milliseconds, and a file with more has another problem
LONGEST = 64  # characters; a longer name gets no suggestion, comparing it would only cost time

# Names of other servers, and words that people expect, which no counting of letters would find.
SYNONYMS = {
    "app": "module",
    "backlog": "listen",
    "chown": "chown-socket",
    "django": "module",
    "graceful-timeout": "worker-reload-mercy",
    "group": "gid",
    "logfile": "logto",
    "log-file": "logto",
    "nice": "prio",
    "port": "http-socket",
    "timeout": "harakiri",
    "user": "uid",
    "wsgi-app": "module",
}

_RANK = {State.WORKS: 0, State.ALWAYS_ON: 1, State.NO_EFFECT: 2, State.REFUSED: 3}


def plain(name: str) -> str:
    """Return a name as it would be with dashes and in lower case."""
    return name.strip().lower().replace("_", "-")


@lru_cache(maxsize=256)
def nearest(name: str) -> str | None:
    """Return the known option that somebody who wrote `name` most likely meant, or None.

    One underscore or a wrong case away first, then other servers' words, the same words in another order, and
    at last the fewest changes of letters; of equals the one that starts alike and that works here.
    """
    wanted = plain(name)
    if wanted in BY_NAME:
        return wanted
    if not wanted or len(wanted) > LONGEST:
        return None
    known = SYNONYMS.get(wanted) or _by_words().get(_words(wanted))
    if known:
        return known
    limit = max(1, min(3, len(wanted) // 4))
    best: tuple[int, bool, int, int, str] | None = None
    for candidate, option in BY_NAME.items():
        cut_off = len(wanted) >= 4 and candidate.startswith(wanted) and len(candidate) - len(wanted) <= 3
        changes = 1 if cut_off else distance(wanted, candidate, limit)
        if changes <= limit:
            key = (changes, candidate[0] != wanted[0], _RANK[option.state], -len(candidate), candidate)
            best = min(best, key) if best else key
    return best[-1] if best else None


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted(name.split("-")))


@cache
def _by_words() -> dict[tuple[str, ...], str]:
    return {_words(name): name for name in reversed(BY_NAME)}


def distance(left: str, right: str, limit: int) -> int:
    """Return how many letters must be added, dropped, changed or swapped with their neighbour.

    Gives up with limit + 1 as soon as it is sure to be beyond the limit.
    """
    # each change of a letter changes the set of letters by two at most
    if abs(len(left) - len(right)) > limit or len(set(left) ^ set(right)) > 2 * limit:
        return limit + 1
    before: list[int] = []
    previous = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        current = [i]
        for j, b in enumerate(right, start=1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and b == left[i - 2]:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        if min(current) > limit and min(previous) > limit:
            return limit + 1
        before, previous = previous, current
    return previous[-1]
