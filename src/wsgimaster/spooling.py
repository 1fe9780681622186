"""Request bodies that are too large for memory: to an unlinked file in TMPDIR, by a thread, since a disk can be slow.

Runs in: the master.
"""

import os
import tempfile
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Spooled = Callable[[int, int, int, int, str], None]  # _front.Front.spooled


class Spooler:
    """One thread, so that the pieces of a body come one after the other. spooled: hears of each piece."""

    def __init__(self, loop: AbstractEventLoop, spooled: Spooled) -> None:
        self.loop, self.spooled = loop, spooled
        self.thread = ThreadPoolExecutor(1, "spool")  # begins with the first piece

    def write(self, client: int, generation: int, file: int, on_disk: bool, data: bytes) -> None:
        """Append to the client's body. on_disk: whether `file` is there already, else it is in memory."""

        def written(future: Future[int]) -> None:
            error = future.exception()
            if error is None:
                self.spooled(client, generation, future.result(), len(data), "")
            else:
                why = error.strerror if isinstance(error, OSError) else None
                self.spooled(client, generation, file, 0, why or str(error))

        self.loop.run_in_executor(self.thread, append, file, on_disk, data).add_done_callback(written)


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
