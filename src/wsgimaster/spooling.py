"""Request bodies that are too large for memory: to an unlinked file in TMPDIR, by a thread, since a disk can be slow.

Runs in: the master.
"""

import errno
import os
import tempfile
from asyncio import AbstractEventLoop
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

Spooled = Callable[[int, int, int, int, int], None]  # _front.Front.spooled


class Spooler:
    """One thread, so that the pieces of a body come one after the other. spooled: hears of each piece."""

    def __init__(self, loop: AbstractEventLoop, spooled: Spooled) -> None:
        self.loop, self.spooled = loop, spooled
        self.thread = ThreadPoolExecutor(1, "spool")
        self.thread.submit(int)  # start it now: later, there may be no room for one
        self.running: dict[Future[int], tuple[int, int, int, int]] = {}

    def write(self, client: int, generation: int, file: int, on_disk: bool, data: bytes) -> None:
        """Append to the client's body. on_disk: whether `file` is there already, else it is in memory."""
        future = self.thread.submit(append, file, on_disk, data)
        self.running[future] = client, generation, file, len(data)
        future.add_done_callback(lambda _: self.loop.call_soon_threadsafe(self._hear))

    def settle(self, seconds: float) -> bool:
        """Wait for what is being written, as long as it takes, but no longer than this. Whether all of it is."""
        wait(self.running, seconds)
        self._hear()
        return not self.running

    def _hear(self) -> None:
        for future in [one for one in self.running if one.done()]:
            client, generation, file, size = self.running.pop(future)
            error = future.exception()
            if error is None:
                self.spooled(client, generation, future.result(), size, 0)
            else:
                self.spooled(client, generation, file, 0, getattr(error, "errno", None) or errno.EIO)


def append(file: int, on_disk: bool, data: bytes) -> int:
    """Append to the file. One in memory is copied to disk first, and closed. Returns the file's descriptor from now on.
    Raises OSError; then it is still the former one."""
    if on_disk:
        _write(file, data)
        return file
    with tempfile.TemporaryFile(buffering=0) as new:
        size, done = os.fstat(file).st_size, 0
        while done < size:
            done += os.sendfile(new.fileno(), file, done, size - done)
        _write(new.fileno(), data)
        found = os.dup(new.fileno())
    os.close(file)
    return found


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
