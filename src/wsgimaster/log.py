"""The one writer of the log: it never blocks the master, and nobody else writes.

A thread does the writing, since the log's descriptor may be a pipe that nobody reads, and O_NONBLOCK on an inherited
stderr would hit everybody else who holds it. What can't be written waits here, up to a limit. Beyond it lines are
dropped: those of requests first, oldest first, since each is one of many; then the oldest of all others, which say
what went wrong. What is kept stays in its order, and one line tells the gap.

Runs in: the master.
"""

import contextlib
import os
import select
import threading
from collections import deque
from typing import NamedTuple

LIMIT_BYTES = 8 << 20
ENTRY_BYTES = 128  # what Python needs to keep an entry, beside its text: many short ones count as well
PIECE_BYTES = 65536  # that the thread takes at once: what it has taken can't be dropped any more
PARTIAL_LIMIT_BYTES = 1 << 20  # of a worker's line that hasn't ended
FAILURE_PAUSE = 0.05  # seconds: don't spin on a disk that is full


class Entry(NamedTuple):
    number: int  # in the order of arrival
    requests: bool
    lines: bytes


class LogWriter:
    """fd: where the log goes, blocking or not. limit: how many bytes may wait for it.

    dropped_requests, dropped_others: how many lines, of requests and of everything else, never reached the log.
    """

    def __init__(self, fd: int, limit: int = LIMIT_BYTES) -> None:
        self.dropped_requests = self.dropped_others = 0
        self._fd, self._limit = fd, limit
        self._requests: deque[Entry] = deque()
        self._others: deque[Entry] = deque()
        self._waiting_bytes = 0
        self._newest = 0  # number of an entry
        self._gap_end = 0  # number of the newest entry that was dropped
        self._untold_requests = self._untold_others = 0  # of the dropped lines
        self._cut = False  # the last line in the log lacks its end
        self._failing = self._closing = False
        self._taken: list[Entry] = []  # what the thread is writing
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """One line of our own."""
        self.write((text + "\n").encode("utf-8", "surrogateescape"))

    def write(self, lines: bytes, requests: bool = False) -> None:
        """Whole lines; requests: they are request lines. Returns at once, whatever the state of the log."""
        with self._changed:
            self._newest += 1
            (self._requests if requests else self._others).append(Entry(self._newest, requests, lines))
            self._waiting_bytes += len(lines) + ENTRY_BYTES
            while self._waiting_bytes > self._limit:
                entry = (self._requests or self._others).popleft()
                self._waiting_bytes -= len(entry.lines) + ENTRY_BYTES
                self._count_as_dropped(entry, entry.lines)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Write what is left, but no longer than this."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)

    def flush(self, seconds: float) -> bytes:
        """Until everything is written, but no longer than this; returns the lines that aren't, which are the caller's
        from then on. What the thread is stuck with counts as dropped: how much of it arrives, nobody knows."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._requests or self._others or self._taken), seconds)
            for entry in self._taken:
                self._count_as_dropped(entry, entry.lines)
            self._taken = []
            left = [entry.lines for entry in sorted([*self._requests, *self._others])]
            if self._untold_requests or self._untold_others:
                left.insert(0, gap_line(self._untold_requests, self._untold_others))
                self._untold_requests = self._untold_others = 0
            self._requests.clear()
            self._others.clear()
            self._waiting_bytes = 0
        return b"".join(left)

    def _count_as_dropped(self, entry: Entry, lost: bytes) -> None:
        lines = lost.count(b"\n")
        if entry.requests:
            self.dropped_requests += lines
            self._untold_requests += lines
        else:
            self.dropped_others += lines
            self._untold_others += lines
        self._gap_end = max(self._gap_end, entry.number)

    # ---- the thread ----

    def _run(self) -> None:
        while True:
            with self._changed:
                self._taken = []
                self._changed.notify_all()  # flush
                self._changed.wait_for(self._has_work)
                gap, taken = self._take()
                self._taken = taken
                if not any(gap) and not taken:
                    return
            head = b"\n" * self._cut + (gap_line(*gap) if any(gap) else b"")
            data = head + b"".join(entry.lines for entry in taken)
            written = self._write(data)
            if written:
                self._cut = data[written - 1] != ord("\n")
            self._failing = written < len(data)
            if not self._failing:
                continue
            with self._changed:
                if written < len(head):
                    self._untold_requests += gap[0]
                    self._untold_others += gap[1]
                start = len(head)
                for entry in taken:
                    self._count_as_dropped(entry, entry.lines[max(0, written - start) :])
                    start += len(entry.lines)
                self._taken = []
                if self._closing and not taken:
                    return
                self._changed.wait_for(lambda: self._closing, FAILURE_PAUSE)

    def _has_work(self) -> bool:
        untold = self._untold_requests or self._untold_others
        return bool(self._requests or self._others or self._closing or (untold and not self._failing))

    def _take(self) -> tuple[tuple[int, int], list[Entry]]:
        """What to write next: the dropped lines to be told first, of requests and others, then some entries."""
        gap = (0, 0)
        taken: list[Entry] = []
        size = 0
        while size < PIECE_BYTES:
            queues = [queue for queue in (self._requests, self._others) if queue]
            oldest = min(queues, key=lambda queue: queue[0].number) if queues else None
            untold = self._untold_requests, self._untold_others
            if any(untold) and (oldest is None or oldest[0].number > self._gap_end):
                if taken:
                    break
                gap = untold
                self._untold_requests = self._untold_others = 0
            if oldest is None:
                break
            entry = oldest.popleft()
            taken.append(entry)
            size += len(entry.lines) + ENTRY_BYTES
            self._waiting_bytes -= len(entry.lines) + ENTRY_BYTES
        return gap, taken

    def _write(self, data: bytes) -> int:
        """How many bytes went out. Fewer than all: the disk is full or the reader gone; a later line may do better."""
        view = memoryview(data)
        written = 0
        while written < len(data):
            try:
                written += os.write(self._fd, view[written : written + PIECE_BYTES])
            except BlockingIOError:  # somebody else made it non-blocking
                select.select([], [self._fd], [])
            except OSError:
                break
        return written


def gap_line(requests: int, others: int) -> bytes:
    return (
        f"*** {requests + others} log lines were dropped up to here ({requests} of requests, {others} others): "
        f"nobody took them off our hands\n"
    ).encode()


def say_if_possible(text: str) -> None:
    """A line at the very end, when the writer is gone: on stderr, if that can take it without waiting."""
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode() + b"\n")


class LineAssembler:
    """A process's output, cut into whole lines: pieces of two processes' lines never mix."""

    def __init__(self) -> None:
        self.partial = bytearray()  # of a line that hasn't ended

    def feed(self, data: bytes) -> bytes:
        """The lines that are complete now, b"" when none is. No data: the end, and what is left becomes a line."""
        if not data:
            return self._cut() if self.partial else b""
        end = data.rfind(b"\n") + 1  # only the new piece is searched: a long line may come in many
        if not end:
            self.partial += data
            return self._cut() if len(self.partial) > PARTIAL_LIMIT_BYTES else b""
        lines = bytes(self.partial) + data[:end]
        self.partial = bytearray(data[end:])
        return lines

    def _cut(self) -> bytes:
        line = bytes(self.partial) + b"\n"
        self.partial = bytearray()
        return line
