"""The zygote: loads the application once, then forks workers whenever the master asks.

A plain synchronous process, started by exec, so that nothing of the master's loop, memory or clients is in it. It runs
as a script under the application's own interpreter:

    python -P zygote.py CONTROL SCOREBOARD DOORBELL MASTER PADDING

CONTROL is its SEQPACKET socket to the master: the first message holds the plan (JSON), each further one asks for a
fork. When the master is gone the socket ends, and so does the zygote; a parent-death signal covers an import
that never comes back. PADDING is room for a process title.

Only our package becomes visible to the application, not what stands beside it: the application's virtualenv may
pin other versions of our dependencies. Hence the few imports here, and in everything that this imports.
"""

import array
import contextlib
import gc
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

MOST_DESCRIPTORS = 253  # in one message: SCM_MAX_FD, unix(7)


def expose_package() -> None:
    """Make `wsgimaster` importable from where this file stands, and nothing else of that directory."""
    if "wsgimaster" in sys.modules:
        return
    home = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(
        "wsgimaster", home / "__init__.py", submodule_search_locations=[str(home)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["wsgimaster"] = package
    spec.loader.exec_module(package)


def main(arguments: list[str]) -> None:
    control_fd, board_fd, doorbell, master = (int(text) for text in arguments[:4])
    for fd in (control_fd, board_fd, doorbell):
        os.set_inheritable(fd, False)  # for us, not for what the application starts
    control = socket.socket(fileno=control_fd)
    plan: dict[str, Any] = json.loads(control.recv(1 << 20))
    if list(sys.version_info[:2]) != plan["python"]:
        wanted = ".".join(str(part) for part in plan["python"])
        found = f"{sys.version_info[0]}.{sys.version_info[1]}"
        sys.stderr.write(
            f"home = {plan['home']}: its Python is {found}, but wsgimaster runs on {wanted}. "
            f"Make the virtualenv with Python {wanted}, or install wsgimaster into it.\n"
        )
        sys.exit(1)
    expose_package()
    from wsgimaster import _process, worker

    _process.die_with_parent(signal.SIGKILL, master)
    worker.settle_in(plan, "zygote")
    Zygote(plan, control, board_fd, doorbell).run()


class Zygote:
    """plan. plan: what the master wrote for us, see `processes.plan_for_zygote`."""

    def __init__(self, plan: dict[str, Any], control: socket.socket, board_fd: int, doorbell: int) -> None:
        from wsgimaster import messages

        self.messages = messages
        self.plan = plan
        self.control = control
        self.board_fd, self.doorbell = board_fd, doorbell
        self.application: Any = None

    def run(self) -> None:
        """Load, then fork on demand until the master closes the socket."""
        from wsgimaster import hazards, worker
        from wsgimaster.errors import EXIT_NO_APP

        kind = self.messages.Kind
        started = time.monotonic()
        watch = hazards.Watch()
        self.run_hooks("pre_app")
        if not self.plan["lazy"]:
            with watch:
                self.application = worker.load_application(self.plan)
            if self.application is None and (self.plan["required"] or self.plan["trial"]):
                worker.leave(EXIT_NO_APP, "zygote", self.plan["exit_deadline"])  # half an application may not end
            if self.application is None:
                worker.say_that_nothing_is_served()
        self.run_hooks("post_app")
        gc.collect()
        if self.application is not None:
            complain(watch.report())
        gc.freeze()  # the first full collection of a worker would copy the pages that all share
        missing = self.application is None
        self.say(kind.LOADED, error=int(missing), seconds=time.monotonic() - started)
        while True:
            data, descriptors = self.receive()
            if not data:
                os._exit(0)  # atexit handlers belong to workers
            message = self.messages.decode(data)
            if message.kind == kind.FORK:
                self.fork(message.slot, message.number, message.proof, descriptors)

    def run_hooks(self, phase: str) -> None:
        """Whoever can't do what it was told to do, ends: others serve, or nobody does yet."""
        from wsgimaster import hooks
        from wsgimaster.errors import EXIT_HOOK_FAILED

        try:
            hooks.run(self.plan["hooks"][phase], phase.replace("_", "-"))
        except hooks.HookError as error:
            complain([f"*** {error}"])
            os._exit(EXIT_HOOK_FAILED)

    def receive(self) -> tuple[bytes, list[int]]:
        """One message and its descriptors, close-on-exec from the first moment.

        A thread of the application may be starting a program just now. (socket.recv_fds can't do that in Python 3.11.)
        """
        descriptors = array.array("i")
        room = socket.CMSG_SPACE(MOST_DESCRIPTORS * descriptors.itemsize)
        data, control, _, _ = self.control.recvmsg(self.messages.SIZE, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        return data, list(descriptors)

    def fork(self, slot: int, number: int, proof: bool, descriptors: list[int]) -> None:
        """The descriptors: the channels of the worker's cores, then the pipes for its output and its tracebacks."""
        from wsgimaster import _process, worker

        try:
            pid = _process.fork_sibling()
        except OSError as error:
            self.say(self.messages.Kind.FORK_FAILED, slot, error=error.errno or 0)
        else:
            if pid == 0:
                self.control.close()
                plan = {**self.plan, "required": True} if proof else {**self.plan, "check": None}
                worker.run(plan, slot, number, descriptors, (self.board_fd, self.doorbell), self.application)
            self.say(self.messages.Kind.FORKED, slot, pid)
        for fd in descriptors:
            os.close(fd)

    def say(self, kind: Any, slot: int = 0, pid: int = 0, error: int = 0, seconds: float = 0.0) -> None:
        try:
            self.control.send(self.messages.encode(self.messages.Message(kind, slot, 0, pid, error, seconds)))
        except OSError:
            os._exit(0)  # the master is gone


def complain(lines: list[str]) -> None:
    """Not through sys.stderr: the application may have replaced it, or even closed what is below."""
    with contextlib.suppress(OSError):
        os.write(2, "".join(f"{line}\n" for line in lines).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
