"""Waiting for a condition, and pacing what a slow peer does: the only file that may sleep."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float = 20, message: str | Callable[[], str] = "") -> T:
    """Return the predicate's first true value. The timeout ends a hang: nothing depends on its length."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            text = message() if callable(message) else message
            raise AssertionError(f"not within {timeout} s: {text or predicate}")
        time.sleep(0.01)
    return value


def paced(items: Iterable[T], seconds: float) -> Iterator[T]:
    """Yield the items with a pause before each: for peers that are slow on purpose."""
    for item in items:
        time.sleep(seconds)
        yield item
