"""The scoreboard: one shared mapping in which every core keeps its figures. Layout: _layout.pxd."""

import fcntl
import mmap
import os

from wsgimaster._front import board_bytes

# Sealed so that no worker can shrink the file and kill the master with SIGBUS.
F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 1, 2, 4


class Scoreboard:
    """Made by the master; zygotes and workers map the same descriptor."""

    def __init__(self, cores: int, inherited: tuple[int, int] | None = None) -> None:
        """cores: slots x threads; inherited: descriptors of one that is in use and of its doorbell. Raises OSError."""
        size = board_bytes(cores)
        if inherited is not None:
            self.fd, self.doorbell = inherited
            self.memory = mmap.mmap(self.fd, size)
            return
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.fd = os.memfd_create("wsgimaster-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
        self.memory = mmap.mmap(self.fd, size)
