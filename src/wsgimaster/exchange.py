"""One message there, one back, over a listening socket of the master's own: the control socket, the health address.

Not asyncio's servers: uvloop closes a listening socket for good when accept fails for lack of memory, and whoever asks
while no descriptor is free gets an empty answer, from which Kubernetes concludes that the server is dead. Here a spare
descriptor is kept for that moment, and there are only so many conversations at a time.

Runs in: the master.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable

MOST = 64  # conversations of one socket; the one that has been silent for longest makes room
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE = 0.1  # seconds until the next try, if not even the spare descriptor helps

Answer = Callable[[bytes, socket.socket], Awaitable[bytes]]


class Exchange:
    """listening: non-blocking; end: what a message ends with; longest: bytes of it; patience: seconds that somebody may
    take to say it; answer: gets the message, or what there was of it, and the connection."""

    def __init__(self, listening: socket.socket, end: bytes, longest: int, patience: float, answer: Answer) -> None:
        self.listening, self.end, self.longest, self.patience, self.answer = listening, end, longest, patience, answer
        self.loop = asyncio.get_running_loop()
        self.spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.heard: dict[socket.socket, bytes] = {}  # conversations in which nothing was answered yet
        self.answering: dict[socket.socket, bytes] = {}  # what was said, while the answer is being made
        self.tasks: set[asyncio.Task[None]] = set()
        self.loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """The listening socket stays open: it is somebody else's."""
        self.loop.remove_reader(self.listening.fileno())
        for connection in list(self.heard):
            self._forget(connection)
        if self.spare >= 0:
            os.close(self.spare)

    def _accept(self) -> None:
        try:
            connection, _ = self.listening.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in SHORT_OF:
                self._make_room()
            return
        self.take_up(connection, b"")

    def take_up(self, connection: socket.socket, heard: bytes) -> None:
        """Listen to somebody, who may have said something already."""
        connection.setblocking(False)
        if len(self.heard) >= MOST:
            self._forget(next(iter(self.heard)))
        self.heard[connection] = heard
        self.loop.add_reader(connection.fileno(), self._hear, connection)
        self.loop.call_later(self.patience, self._lose_patience, connection)
        if self.end in heard:
            self._begin_answer(connection)

    def conversations(self) -> list[tuple[int, bytes]]:
        """All that aren't answered: the descriptor, and what was said so far."""
        return [(one.fileno(), heard) for one, heard in [*self.heard.items(), *self.answering.items()]]

    @property
    def sending(self) -> bool:
        """Whether an answer is on its way."""
        return len(self.tasks) > len(self.answering)

    def _make_room(self) -> None:
        """Somebody gets the spare descriptor; the next one has to wait until there is one again."""
        if self.spare >= 0:
            os.close(self.spare)
            self.spare = -1
            return  # the listening socket is still readable
        self.loop.remove_reader(self.listening.fileno())
        self.loop.call_later(PAUSE, self._listen_again)

    def _listen_again(self) -> None:
        if self.listening.fileno() >= 0:
            self.loop.add_reader(self.listening.fileno(), self._accept)

    def _hear(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(self.longest)
        except BlockingIOError:
            return
        except OSError:
            self._forget(connection)
            return
        self.heard[connection] += data
        heard = self.heard[connection]
        if not data or self.end in heard or len(heard) > self.longest:
            self._begin_answer(connection)

    def _lose_patience(self, connection: socket.socket) -> None:
        if connection in self.heard:
            self._begin_answer(connection)

    def _begin_answer(self, connection: socket.socket) -> None:
        self.loop.remove_reader(connection.fileno())
        heard = self.heard.pop(connection)
        self.answering[connection] = heard
        task = self.loop.create_task(self._say(connection, heard))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _say(self, connection: socket.socket, heard: bytes) -> None:
        with connection, contextlib.suppress(OSError, TimeoutError):
            try:
                answer = await self.answer(heard, connection)
            finally:
                del self.answering[connection]
            await asyncio.wait_for(self.loop.sock_sendall(connection, answer), self.patience)
        self._keep_spare()

    def _forget(self, connection: socket.socket) -> None:
        self.loop.remove_reader(connection.fileno())
        del self.heard[connection]
        connection.close()
        self._keep_spare()

    def _keep_spare(self) -> None:
        if self.spare < 0:
            with contextlib.suppress(OSError):
                self.spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
