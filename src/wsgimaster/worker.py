"""A worker's life around its serve loop: settle in, one core per thread, leave.

Runs in: the worker (settle_in and load_application also in the zygote). Imports as little as it can: see zygote.py.
"""

import atexit
import io
import mmap
import os
import resource
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

from wsgimaster import _process, _serve, hooks, loader
from wsgimaster.errors import EXIT_CHECK_FAILED, EXIT_HOOK_FAILED, EXIT_NO_APP, AppLoadError, RequestTimeout

# The version of uWSGI whose interface is kept; applications compare it.
UWSGI_VERSION = b"2.0.31"
ROOM_FOR_APPLICATION = 256  # descriptors that the zygote may open besides a worker's channels, whatever the limit is


def settle_in(plan: dict[str, Any], role: str) -> None:
    """In the zygote, before the application is imported: what it may rely on, as under uWSGI."""
    for name in OURS:
        signal.signal(name, LeaveToMaster())
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    soft, hard = plan["descriptors"]  # what the master was started with: code that closes all it may is slow with more
    # but enough to be handed a worker's channels
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, plan["threads"] + ROOM_FOR_APPLICATION)), hard))
    sys.argv = ["uwsgi"]
    sys.path[:0] = [*reversed(plan["pythonpath"]), "."]
    _process.set_title(title(plan, role))


# Signals that reach a whole process group or cgroup (Ctrl-C, Ctrl-Z, systemd): they are the master's to act on.
OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)


class LeaveToMaster:
    """Does nothing, except in a child that the application forks: there, what the signal does by default."""

    def __init__(self) -> None:
        self.owner = os.getpid()

    def __call__(self, number: int, _frame: Any) -> None:
        if os.getpid() != self.owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class Soften(LeaveToMaster):
    """The handler of `harakiri-graceful-signal`: ends the request that the master wants to end, and nothing else."""

    def __init__(self, core: _serve.Core) -> None:
        super().__init__()
        self.core = core

    def __call__(self, number: int, frame: Any) -> None:
        if os.getpid() == self.owner and self.core.asked_to_stop():
            raise RequestTimeout("the request has run for longer than harakiri")
        super().__call__(number, frame)


def set_handler(number: int, handler: LeaveToMaster) -> None:
    """Unless the application has a handler of its own, which is what it wants to happen."""
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler) or isinstance(
        signal.getsignal(number), LeaveToMaster
    ):
        signal.signal(number, handler)


def title(plan: dict[str, Any], role: str) -> str:
    """The process title: `procname` and its family, else our own."""
    titles = plan["titles"]
    if not titles["automatic"]:
        return f"wsgimaster {role}"
    return f"{titles['prefix']}{titles['every'] or 'uWSGI ' + role}{titles['append']}"


def load_application(plan: dict[str, Any]) -> Any:
    """The WSGI callable, or None after its traceback has been logged."""
    try:
        return loader.load(plan["module"], plan["file"], plan["callable"])
    except AppLoadError as error:
        traceback.print_exception(error.__cause__ or error)
        sys.stderr.write(f"*** the application could not be loaded: {error}\n")
        return None


def run(
    plan: dict[str, Any],
    slot: int,
    number: int,
    descriptors: list[int],
    board: tuple[int, int],
    application: Any,
) -> NoReturn:
    """Everything from the fork to the exit. number: the worker's, 1 to processes; board: scoreboard and doorbell."""
    status = 1
    try:
        *channels, output, tracebacks = descriptors
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        for name in OURS:
            set_handler(name, LeaveToMaster())
        _process.set_title(title(plan, f"worker {number}"))
        bind_to_processors(plan, number)
        set_limits(plan)
        hooks.run(plan["hooks"]["post_fork"], "post-fork")
        if application is None:
            _serve.say_alive(channels[0])  # loading may take as long as it likes; without it, READY is the sign of life
            application = load_in_worker(plan, number)
        if plan["check"]:
            _serve.say_alive(channels[0])  # it may take as long as the reload
            check(plan, application)
        hooks.run(plan["hooks"]["accepting"], "accepting")
        if number == 1:
            hooks.run(plan["hooks"]["accepting1"], "accepting1")
        _serve.expect_the_worst(tracebacks, plan["master"])
        serve(plan, slot, number, channels, board, application)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except hooks.HookError as error:
        print(f"*** worker {number}: {error}", file=sys.stderr)
    except _serve.ChannelLost as error:
        # The channels are unusable: requests can't come any more, so don't wait for the application's threads.
        os.write(2, f"worker {number}: {error}; leaving\n".encode())
        os._exit(EXIT_HOOK_FAILED)
    except BaseException:
        traceback.print_exc()
    finally:
        leave(status, f"worker {number}", plan["exit_deadline"])


def bind_to_processors(plan: dict[str, Any], number: int) -> None:
    """`cpu-affinity`, told in uWSGI's line. Out of the master's processors: the application may have narrowed ours."""
    if not plan["cpu_affinity"]:
        return
    try:
        chosen = processors_of(number, plan["cpu_affinity"], sorted(os.sched_getaffinity(plan["master"])))
        os.sched_setaffinity(0, chosen)
    except OSError as error:  # a cpuset that changed in between, or a master that ended
        print(f"worker {number} could not be mapped to CPUs: {error.strerror}", file=sys.stderr)
    else:
        print(f"mapping worker {number} to CPUs: {' '.join(map(str, chosen))}", file=sys.stderr)


def processors_of(number: int, count: int, allowed: list[int]) -> list[int]:
    """The `count` processors of worker `number`, as uWSGI gives them out: in turn, and from the first one again.

    uWSGI numbers all processors of the machine; here it is those that the server may use.
    """
    first = (number - 1) * count
    return [allowed[place % len(allowed)] for place in range(first, first + count)]


def set_limits(plan: dict[str, Any]) -> None:
    for kind, wanted in ((resource.RLIMIT_AS, plan["limit_as"]), (resource.RLIMIT_NPROC, plan["limit_nproc"])):
        if wanted:
            hard = resource.getrlimit(kind)[1]
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)  # nobody but root may raise it
            resource.setrlimit(kind, (limit, limit))
    soft, hard = plan["descriptors"]  # what the master was started with; it raised its own
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def load_in_worker(plan: dict[str, Any], number: int) -> Any:
    """`lazy-apps`, or a zygote without an application. Exits under `need-app`."""
    application = load_application(plan) if plan["lazy"] else None
    if application is None and plan["required"]:
        sys.exit(EXIT_NO_APP)
    if application is None and plan["lazy"] and number == 1:
        say_that_nothing_is_served()
    return application or no_application


def check(plan: dict[str, Any], application: Any) -> None:
    """`reload-check`: the application has to answer this request, or the worker ends."""
    host, _, path = plan["check"].partition("/")
    path, _, query = path.partition("?")
    environ = base_environ(plan, 0) | {
        "PATH_INFO": f"/{path}",
        "QUERY_STRING": query,
        "REQUEST_URI": f"/{path}?{query}" if query else f"/{path}",
        "SERVER_NAME": host or "localhost",
        "HTTP_HOST": host or "localhost",
        "HTTP_USER_AGENT": "wsgimaster reload-check",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.input": io.BytesIO(),
    }
    answered: list[str] = []

    def start_response(status: str, _headers: Any, exc_info: Any = None) -> Any:
        if exc_info:
            traceback.print_exception(*exc_info)
        answered[:] = [status]
        return lambda chunk: None

    chunks = application(environ, start_response)
    try:
        for _ in chunks:
            pass
    finally:
        getattr(chunks, "close", lambda: None)()
    if not answered or answered[0][:1] not in ("2", "3"):
        found = answered[0] if answered else "nothing"
        sys.stderr.write(f"*** reload-check = {plan['check']} was answered with {found}; 2xx or 3xx is expected\n")
        sys.exit(EXIT_CHECK_FAILED)


def say_that_nothing_is_served() -> None:
    sys.stderr.write(
        "*** no application is loaded: every request gets a 500 until one is. "
        "need-app = true makes this an error at the start.\n"
    )


def no_application(_environ: Any, start_response: Any) -> list[bytes]:
    """uWSGI's answer when it has nothing to serve."""
    start_response("500 Internal Server Error", [("Content-Type", "text/plain"), ("Connection", "close")])
    return [b"Internal Server Error"]


def serve(
    plan: dict[str, Any], slot: int, number: int, channels: list[int], board: tuple[int, int], application: Any
) -> None:
    """One core per channel; core 1 in the main thread, since applications use signal.alarm."""
    memory, doorbell = mmap.mmap(board[0], 0), board[1]
    threads = len(channels)
    if plan["static"]:
        from wsgimaster.static import StaticFiles  # not before it is needed: the application would find it imported

        application = StaticFiles(application, plan["static"])
    cores = [
        _serve.Core(
            channel,
            memory,
            plan["cores"],
            doorbell,
            (slot - 1) * threads + core_id,
            core_id,
            threads,
            application,
            base_environ(plan, core_id),
            plan["timeout"],
            buffer_size=plan["buffer_size"],
            allow_from=[(bytes.fromhex(prefix), bits) for prefix, bits in plan["allow_from"]],
            forwarded_allow=[(bytes.fromhex(prefix), bits) for prefix, bits in plan["forwarded_allow"]],
            log_all=plan["log_all"],
            log_4xx=plan["log_4xx"],
            log_5xx=plan["log_5xx"],
            complain=lambda text: print(text, file=sys.stderr),
            report=report_exception,
        )
        for core_id, channel in enumerate(channels)
    ]
    others = [
        threading.Thread(target=serve_or_exit, args=(core,), name=f"uWSGIWorker{number}Core{core_id}", daemon=True)
        for core_id, core in enumerate(cores[1:], start=1)
    ]
    if plan["graceful_signal"] and threads == 1:
        set_handler(plan["graceful_signal"], Soften(cores[0]))
    usual = threading.stack_size(plan["thread_stack"])
    for thread in others:
        thread.start()
    threading.stack_size(usual)  # the application's threads have theirs
    cores[0].serve()
    for thread in others:
        thread.join()


def serve_or_exit(core: _serve.Core) -> None:
    """A core that can't go on must not leave a worker behind that looks alive."""
    try:
        core.serve()
    except BaseException as error:
        os.write(2, f"{threading.current_thread().name}: {error!r}; the worker leaves\n".encode())
        os._exit(1)


def base_environ(plan: dict[str, Any], core: int) -> dict[str, Any]:
    """What is the same in every environ; variables of the request are laid over it."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "SERVER_PORT": "80",
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": plan["threads"] > 1,
        "wsgi.input_terminated": True,  # wsgi.input ends where the body does, whatever CONTENT_LENGTH says
        "wsgi.multiprocess": plan["processes"] > 1,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": _serve.FileWrapper,
        "wsgi.input": None,  # of each request; here, so that a copy has room for them
        "wsgi.url_scheme": "http",
        "uwsgi.version": UWSGI_VERSION,
        "uwsgi.node": os.uname().nodename.encode(),
    }
    if plan["threads"] > 1:
        environ["uwsgi.core"] = core
    return environ


def report_exception(method: str, uri: str) -> None:
    """Called inside an except block: the traceback, with the request it belongs to."""
    kind, error, frames = sys.exc_info()
    while frames is not None and frames.tb_frame.f_code.co_filename.endswith("_serve.pyx"):
        frames = frames.tb_next  # ours above the application's first frame say nothing
    lines = "".join(traceback.format_exception(kind, error, frames))
    sys.stderr.write(f"{method} {uri}: exception in the application\n{lines}")


def leave(status: int, who: str, deadline: float) -> NoReturn:
    """Join the application's threads, run its atexit functions, and go without tearing down the interpreter.

    C extensions crash in that teardown. status: the exit code, also when threads and functions haven't ended after
    `deadline` seconds; then they are left where they are, even in C code that never lets go of the interpreter.
    """
    try:
        _process.exit_within(
            deadline,
            status,
            f"{who}: its threads or atexit functions did not end within {deadline:g} s (exit-deadline); "
            f"leaving without them",
        )
    except OSError as error:  # the master's mercy ends it all the same
        print(f"{who}: no exit-deadline: {error.strerror}", file=sys.stderr)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
