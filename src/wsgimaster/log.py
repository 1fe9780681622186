"""The one writer of the log: it never blocks the master, and nobody else writes.

A thread does the writing, since the log's descriptor may be a pipe that nobody reads, and O_NONBLOCK on an inherited
stderr would hit everybody else who holds it. What can't be written waits here, up to a limit; then the oldest
lines go first, are counted, and the gap is told once somebody reads again.

Runs in: the master.
"""

import contextlib
import os
import select
import threading
import time
from collections import deque

LIMIT_BYTES = 8 << 20
PARTIAL_LIMIT_BYTES = 1 << 20  # of a worker's line that hasn't ended


class LogWriter:
    """fd: where the log goes, blocking or not."""

    def __init__(self, fd: int, limit: int = LIMIT_BYTES) -> None:
        self.dropped_lines = 0
        self._fd, self._limit = fd, limit
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """One line of our own."""
        self.write((text + "\n").encode("utf-8", "surrogateescape"))

    def write(self, lines: bytes) -> None:
        """Whole lines. Returns at once, whatever the state of the log."""
        with self._changed:
            self._waiting.append(lines)
            self._waiting_bytes += len(lines)
            while self._waiting_bytes > self._limit and len(self._waiting) > 1:
                oldest = self._waiting.popleft()
                self._waiting_bytes -= len(oldest)
                self.dropped_lines += oldest.count(b"\n")
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Write what is left, but no longer than this."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        told = 0
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                data = b"".join(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
                dropped = self.dropped_lines
            gap = f"*** {dropped - told} log lines were dropped here: nobody took them off our hands\n"
            if self._write_all(gap.encode() + data if dropped > told else data):
                told = dropped
            else:
                self.dropped_lines += data.count(b"\n")

    def _write_all(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view[:65536]) :]
            except BlockingIOError:  # somebody else made it non-blocking
                select.select([], [self._fd], [])
            except OSError:  # the disk is full or the reader gone: lost, and the next line may do better
                time.sleep(0.05)  # in the log's own thread: don't spin on a disk that is full
                return False
        return True


def say_if_possible(text: str) -> None:
    """A line at the very end, when the writer is gone: on stderr, if that can take it without waiting."""
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode() + b"\n")


class LineAssembler:
    """A process's output, cut into whole lines: pieces of two processes' lines never mix."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> bytes:
        """The lines that are complete now, b"" when none is. No data: the end, and what is left becomes a line."""
        if not data:
            rest, self._partial = self._partial, b""
            return rest + b"\n" if rest else b""
        whole, newline, self._partial = (self._partial + data).rpartition(b"\n")
        if len(self._partial) > PARTIAL_LIMIT_BYTES:
            whole, newline, self._partial = whole + newline + self._partial, b"\n", b""
        return whole + newline
