"""What the options mean once they are read: frozen values, one model per subject.

Names are ours; the uWSGI option behind each stands in config/options.py. Several small models rather than
one of 300 fields: the master carries them for its whole life. Durations are seconds, sizes are bytes.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Network = IPv4Network | IPv6Network
Peer = Network | Literal["unix"]  # unix: who may connect to our unix sockets


def prefix_of(network: Peer) -> tuple[bytes, int]:
    """16 bytes and how many of their bits count; IPv4 as ::ffff:a.b.c.d (RFC 4291 2.5.5.2). For unix, -1 bits."""
    if isinstance(network, str):
        return b"", -1
    if isinstance(network, IPv4Network):
        return bytes(10) + b"\xff\xff" + network.network_address.packed, 96 + network.prefixlen
    return network.network_address.packed, network.prefixlen


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Protocol(StrEnum):
    UWSGI = "uwsgi"
    HTTP = "http"


class Family(StrEnum):
    UNIX = "unix"  # a path in the file system
    ABSTRACT = "abstract"  # a name in the kernel's abstract namespace, without the leading NUL
    TCP = "tcp"
    INHERITED = "inherited"  # a descriptor that the parent left open


class Tls(Section):
    """The files of a TLS address, by absolute paths, and what clients must bring."""

    certificate: str  # with those that lead to the authority, if there are any
    key: str
    ciphers: str = ""  # OpenSSL's list, for TLS 1.2; "": Python's
    ca: str = ""  # whose certificates clients may show; "": they aren't asked for one
    required: bool = False  # and must


class Address(Section):
    """One listening address."""

    protocol: Protocol
    family: Family
    name: str  # as it was written, for messages
    path: str = ""  # unix, abstract
    host: str = ""  # tcp: an address or a name; "" is every IPv4 address
    port: Annotated[int, Field(ge=0, le=65535)] = 0  # tcp: 0 lets the kernel choose
    fd: int = -1  # inherited
    buffers: bool = False  # `http`, `https`: workers get requests with their whole bodies
    tls: Tls | None = None

    @property
    def scheme(self) -> str:
        """What is spoken here."""
        return str(self.protocol) if self.tls is None else "https"


class Sockets(Section):
    addresses: tuple[Address, ...] = ()
    waiting_limit: Annotated[int, Field(ge=1)] | None = None  # `listen`; None: min(4096, somaxconn)
    socket_mode: int | None = None  # `chmod-socket`
    socket_owner: tuple[int, int] | None = None  # `chown-socket`: uid, gid; -1 leaves one as it is
    buffer_size: Annotated[int, Field(ge=1, le=65535)] = 65535
    timeout: Annotated[float, Field(gt=0)] = 4.0  # `socket-timeout`
    queue_timeout: Annotated[float, Field(ge=0)] = 0.0  # seconds that a request may wait for a worker; 0: for ever
    allow_from: tuple[Network, ...] = ()
    forwarded_allow: tuple[Peer, ...] = ()
    http_proxy_protocol: bool = False  # connections of those begin with a PROXY header
    http_buffer: Annotated[int, Field(ge=0)] = 1 << 20  # bytes of a body, or of an answer, in memory
    http_timeout: Annotated[float, Field(gt=0)] = 60.0  # seconds that a client may take for a piece of either
    http_keepalive: Annotated[float, Field(ge=0)] = 75.0  # seconds between two requests; 0: one per connection
    tls_processes: Annotated[int, Field(ge=1, le=64)] = 1  # `http-processes`: those that end TLS
    defer_accept: bool = True  # TCP: until the client has sent something; `no-defer-accept`
    vacuum: bool = False


class App(Section):
    module: str | None = None  # `pkg.mod`, `pkg.mod:callable`, `pkg.mod:factory()`
    file: str | None = None  # `wsgi-file`
    callable: str = "application"
    chdir: str | None = None
    pythonpath: tuple[str, ...] = ()  # in the order in which it was written; the last one comes first in sys.path
    home: str | None = None  # `virtualenv`
    environment: tuple[tuple[str, str], ...] = ()  # `env`
    lazy: bool = False  # `lazy-apps`: load in each worker, after the fork
    required: bool = False  # `need-app`


MAX_CORES = 16384  # of the scoreboard: _layout.pxd
# Threads of the master: the loop's, the log's, the one that writes large bodies to disk, and those that read the
# workers' memory and, at a reload, the configuration.
MASTER_TASKS = 5


class Dispatch(StrEnum):
    AUTO = "auto"  # cores that are awake accept for themselves, the master wakes the others
    PUSH = "push"  # the master accepts everything


class Order(StrEnum):
    WARM = "warm"  # the core that finished last goes first: warm caches
    EVEN = "even"  # the core that finished first goes first: flat figures in uwsgitop


class Processes(Section):
    processes: Annotated[int, Field(ge=1, le=4096)] = 1
    threads: Annotated[int, Field(ge=1, le=250)] = 1  # cores per process; 250: channels sent in one SCM_RIGHTS
    reload_mercy: Annotated[float, Field(gt=0)] = 60.0  # `worker-reload-mercy`
    spawn_timeout: Annotated[float, Field(gt=0)] = 60.0  # from asking for a fork to a sign of life
    drain_delay: Annotated[float, Field(ge=0)] = 0.0  # seconds from SIGTERM to the graceful stop
    exit_deadline: Annotated[float, Field(gt=0)] = 10.0  # for a leaving worker's threads and atexit functions
    limit_as: Annotated[int, Field(ge=1)] | None = None
    limit_nproc: Annotated[int, Field(ge=1)] | None = None  # processes and threads of the user
    max_fd: Annotated[int, Field(ge=64)] | None = None
    thread_stack_kib: Annotated[int, Field(ge=32, le=1 << 20)] | None = None  # `threads-stacksize`; None: the system's
    cpu_affinity: Annotated[int, Field(ge=0, le=8192)] = 0  # processors per worker; 0: all
    priority: int = 0  # `prio`: the nice value of the whole tree; 0: as inherited
    dispatch: Dispatch = Dispatch.AUTO
    dispatch_order: Order = Order.WARM

    @model_validator(mode="after")
    def _fits_the_scoreboard(self) -> Processes:
        if self.processes * self.threads > MAX_CORES:
            raise ValueError(
                f"processes x threads is {self.processes * self.threads}, at most {MAX_CORES} are possible"
            )
        return self


# KILL, STOP; the C library's own; crashes (ILL, TRAP, ABRT, BUS, FPE, SEGV); the server's (_layout.pxd, _process.pyx).
UNUSABLE_SIGNALS = frozenset({9, 19, 32, 33, 4, 5, 6, 7, 8, 11, 41, 42, 43})


class Harakiri(Section):
    """What happens to a request that takes too long."""

    limit: Annotated[float, Field(ge=0)] = 0.0  # `harakiri`, seconds from the moment that a core takes it; 0: none
    verbose: bool = False
    graceful_timeout: Annotated[float, Field(ge=0)] = 0.0  # seconds from a soft exception to the kill; 0: no exception
    graceful_signal: Annotated[int, Field(ge=1, le=64)] = 15
    queue_threshold: Annotated[int, Field(ge=0)] = 0  # nothing is killed while fewer requests wait

    @field_validator("graceful_signal")
    @classmethod
    def _can_be_handled(cls, number: int) -> int:
        if number in UNUSABLE_SIGNALS:
            raise ValueError(f"signal {number} can't bring an exception; 10 (USR1), 12 (USR2) and 15 (TERM) can")
        return number


class Recycling(Section):
    """When a worker is replaced by a fresh one. 0 or None: no such limit."""

    max_requests: Annotated[int, Field(ge=0)] = 0
    max_requests_delta: Annotated[int, Field(ge=0)] = 0
    min_lifetime: Annotated[float, Field(ge=0)] = 10.0  # `min-worker-lifetime`, seconds
    max_lifetime: Annotated[float, Field(ge=0)] = 0.0
    max_lifetime_delta: Annotated[float, Field(ge=0)] = 0.0
    rss: int | None = None  # `reload-on-rss`, bytes
    address_space: int | None = None  # `reload-on-as`, bytes
    evil_rss: int | None = None  # `evil-reload-on-rss`, bytes: killed at once
    evil_address_space: int | None = None
    memory_interval: Annotated[float, Field(gt=0)] = 1.0  # `mem-collector-freq`, seconds
    budget: Annotated[int, Field(ge=0)] = 0  # `recycle-budget`: replacements at a time; 0: a tenth, at least one

    @model_validator(mode="after")
    def _a_life_has_a_length(self) -> Recycling:
        if self.max_lifetime and self.min_lifetime >= self.max_lifetime:
            raise ValueError(
                f"max-worker-lifetime ({self.max_lifetime:g}) must be longer than"
                f" min-worker-lifetime ({self.min_lifetime:g})"
            )
        return self

    @property
    def watches_memory(self) -> bool:
        return bool(self.rss or self.address_space or self.evil_rss or self.evil_address_space)

    @property
    def wanted(self) -> bool:
        """Whether anybody has to look at the workers at all."""
        return bool(self.max_requests or self.max_lifetime or self.watches_memory)


class Algorithm(StrEnum):
    """`cheaper-algo`: scaling/ has a file for each."""

    SPARE = "spare"
    SPARE2 = "spare2"
    BACKLOG = "backlog"
    BUSYNESS = "busyness"
    MANUAL = "manual"


class Cheaper(Section):
    """How the number of workers follows the load."""

    minimum: Annotated[int, Field(ge=0)] = 0  # `cheaper`; 0: there are always `processes` workers
    initial: Annotated[int, Field(ge=0)] = 0  # `cheaper-initial`; 0: as many as `minimum`
    step: Annotated[int, Field(ge=1)] = 1  # workers added at a time
    overload: Annotated[int, Field(ge=0)] = 3  # spare: rounds; busyness: seconds of a window; backlog: requests
    idle_rounds: Annotated[int, Field(ge=1)] = 10  # `cheaper-idle`: seconds; spare2
    algorithm: Algorithm = Algorithm.SPARE
    queue_wait: Annotated[float, Field(ge=0)] = 0.05  # seconds; who waits for longer makes workers start. 0: nobody
    rss_soft: Annotated[int, Field(ge=0)] = 0  # bytes of all workers from which none is added; 0: no limit
    rss_hard: Annotated[int, Field(ge=0)] = 0  # bytes from which they end, one by one
    verbose: bool = False  # `cheaper-busyness-verbose`: also says why nothing changes
    cheap: bool = False  # no worker before the first request
    idle: Annotated[int, Field(ge=0)] = 0  # seconds without a request after which all workers end; 0: never
    die_on_idle: bool = False  # then the server ends as well
    busyness_max: Annotated[int, Field(ge=1)] = 50  # percent: above it, workers are added
    busyness_min: Annotated[int, Field(ge=1)] = 25  # percent: below it, one ends
    multiplier: Annotated[int, Field(ge=1)] = 10  # windows without a change before one ends
    penalty: Annotated[int, Field(ge=1)] = 2  # more windows, if one was missing soon afterwards
    backlog_alert: Annotated[int, Field(ge=1)] = 33  # requests: more than so many waiting are an emergency
    backlog_multiplier: Annotated[int, Field(ge=1)] = 3  # the multiplier while there are emergency workers
    backlog_step: Annotated[int, Field(ge=1)] = 1  # emergency workers added a second
    backlog_nonzero: Annotated[int, Field(ge=1)] = 60  # seconds: if somebody waits for so long, it is an emergency

    @model_validator(mode="after")
    def _limits_go_together(self) -> Cheaper:
        soft, hard = self.rss_soft, self.rss_hard
        if hard and not soft:
            raise ValueError("cheaper-rss-limit-hard needs cheaper-rss-limit-soft")
        if hard and hard <= soft:
            raise ValueError(f"cheaper-rss-limit-hard ({hard}) must be greater than cheaper-rss-limit-soft ({soft})")
        return self

    @property
    def wanted(self) -> bool:
        """Whether the number of workers ever changes."""
        return bool(self.minimum or self.cheap or self.idle)

    @property
    def hurries(self) -> bool:
        """Whether waiting requests make workers start."""
        return bool(self.minimum and self.queue_wait and self.algorithm is not Algorithm.MANUAL)


class Titles(Section):
    """Process titles (`procname` and its family); no title is set while `automatic` is False."""

    automatic: bool = False  # `auto-procname`, or any of the others
    prefix: str = ""  # `procname-prefix`; `procname-prefix-spaced` adds the space
    append: str = ""
    every: str | None = None  # `procname`
    master: str | None = None  # `procname-master`


class Reloading(Section):
    """How a new generation of the application takes over."""

    surge: Annotated[int, Field(ge=0)] = 0  # workers of it beside the old ones, at a time; 0: as memory allows
    timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds until its first worker is ready
    check: str | None = None  # `reload-check`: [host]/path that this one must answer

    @field_validator("check")
    @classmethod
    def _is_a_path(cls, text: str | None) -> str | None:
        if text is not None and "/" not in text:
            raise ValueError(f"expected /path or host/path, found {text!r}")
        return text


LONGEST_SOCKET_PATH = 107  # bytes; sun_path holds 108 with the closing NUL


class Control(Section):
    """Where commands come in."""

    socket: str | None = None  # `control-socket`; None: an abstract name with the pid in it
    fifos: Annotated[tuple[str, ...], Field(max_length=10)] = ()  # `master-fifo`, relative to chdir
    health: tuple[Address, ...] = ()
    touch_reload: tuple[str, ...] = ()  # files, relative to chdir
    touch_workers: tuple[str, ...] = ()
    touch_chain: tuple[str, ...] = ()
    touch_rotate: tuple[str, ...] = ()  # `touch-logrotate`
    touch_reopen: tuple[str, ...] = ()  # `touch-logreopen`
    touch_exec: tuple[tuple[str, str], ...] = ()  # (file, shell command)
    touch_hooks: tuple[tuple[str, str], ...] = ()  # `hook-touch`: (file, hook)
    autoreload: Annotated[int, Field(ge=0)] = 0  # `py-autoreload`; 0: off

    @field_validator("socket")
    @classmethod
    def _fits_a_socket_address(cls, path: str | None) -> str | None:
        if path is not None and not 0 < len(path.encode(errors="surrogateescape")) <= LONGEST_SOCKET_PATH:
            raise ValueError(f"expected a path of 1 to {LONGEST_SOCKET_PATH} bytes, found {path[:120]!r}")
        return path


class Daemon(Section):
    """A program that runs beside the server: daemons.py."""

    text: str  # the command as it was written, for the log
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    pidfile: str | None = None  # of one that outlives us; relative to chdir
    detach: bool = False  # with a pidfile: we write it, since the program stays in the foreground
    patience: Annotated[float, Field(ge=0)] = 10.0  # `freq`: seconds until the pidfile has to be there
    control: bool = False  # its end is the server's, too
    touch: tuple[str, ...] = ()  # files whose change ends it, so that it is started again
    stop_signal: Annotated[int, Field(ge=1, le=64)] = 15
    reload_signal: Annotated[int, Field(ge=0, le=64)] = 0  # what a reload sends; 0: it is ended and started again
    uid: Annotated[int, Field(ge=0, lt=2**32 - 1)] | None = None
    gid: Annotated[int, Field(ge=0, lt=2**32 - 1)] | None = None
    chdir: str | None = None
    longest_pause: Annotated[float, Field(ge=1)] = 300.0  # `max_throttle`: seconds before it is started again
    twin: int = 0  # of several that are written alike, which is this


class Daemons(Section):
    attached: tuple[Daemon, ...] = ()
    mercy: Annotated[float, Field(ge=0)] = 3.0  # `reload-mercy`: seconds to end

    @field_validator("attached")
    @classmethod
    def _tell_twins_apart(cls, attached: tuple[Daemon, ...]) -> tuple[Daemon, ...]:
        """The same line, written twice, means two of them."""
        before = [one.model_copy(update={"twin": 0}) for one in attached]
        return tuple(one.model_copy(update={"twin": before[:at].count(one)}) for at, one in enumerate(before))


class Hooks(Section):
    """Small deeds at certain moments: hooks.py has the moments and the verbs."""

    asap: tuple[str, ...] = ()
    as_root: tuple[str, ...] = ()  # and the phases around uWSGI's jails
    as_user: tuple[str, ...] = ()
    master_start: tuple[str, ...] = ()
    pre_app: tuple[str, ...] = ()
    post_app: tuple[str, ...] = ()
    post_fork: tuple[str, ...] = ()
    accepting: tuple[str, ...] = ()
    accepting1: tuple[str, ...] = ()
    as_user_atexit: tuple[str, ...] = ()


class Static(Section):
    """Files that the server answers for: static.py."""

    check: tuple[str, ...] = ()  # `check-static`: directories
    docroot: bool = False  # `check-static-docroot`
    maps: tuple[str, ...] = ()  # `static-map`: /path=directory or file
    maps_kept: tuple[str, ...] = ()  # `static-map2`
    skip: tuple[str, ...] = ()  # `static-skip-ext`: ends of names
    index: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()  # directories to which links may lead
    mime_files: tuple[str, ...] = ()
    expires: tuple[str, ...] = ()  # pattern, a space, seconds; the next ones as well
    expires_mtime: tuple[str, ...] = ()
    expires_uri: tuple[str, ...] = ()
    expires_uri_mtime: tuple[str, ...] = ()
    expires_path_info: tuple[str, ...] = ()
    expires_path_info_mtime: tuple[str, ...] = ()
    expires_type: tuple[str, ...] = ()  # type=seconds
    expires_type_mtime: tuple[str, ...] = ()
    compressed: tuple[str, ...] = ()  # `static-gzip`: patterns
    compressed_all: bool = False
    compressed_dir: tuple[str, ...] = ()  # beginnings of files' names
    compressed_ext: tuple[str, ...] = ()  # their ends

    @field_validator("maps", "maps_kept")
    @classmethod
    def _have_two_parts(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for text in lines:
            path, _, where = text.partition("=")
            if not path or not where:
                raise ValueError(f"expected /path=directory, found {text!r}")
        return lines

    @field_validator(
        "expires",
        "expires_mtime",
        "expires_uri",
        "expires_uri_mtime",
        "expires_path_info",
        "expires_path_info_mtime",
    )
    @classmethod
    def _have_seconds(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for text in lines:
            pattern, _, seconds = text.rpartition(" ")
            if not pattern.strip() or not _are_seconds(seconds):
                raise ValueError(f"expected a pattern, a space and seconds, found {text!r}")
            _compile(pattern)
        return lines

    @field_validator("expires_type", "expires_type_mtime")
    @classmethod
    def _have_types(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for text in lines:
            kind, _, seconds = text.partition("=")
            if not kind or not _are_seconds(seconds):
                raise ValueError(f"expected type=seconds, found {text!r}")
        return lines

    @field_validator("compressed")
    @classmethod
    def _are_patterns(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for text in lines:
            _compile(text)
        return lines

    @property
    def wanted(self) -> bool:
        return bool(self.check or self.docroot or self.maps or self.maps_kept)


def _are_seconds(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _compile(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"expected a regular expression, found {pattern!r} ({error})") from None


class Identity(Section):
    uid: int | None = None
    gid: int | None = None
    extra_groups: tuple[int, ...] = ()  # `add-gid`
    initgroups: bool = True
    user: str | None = None  # the name behind uid, for initgroups
    daemonize: str | None = None  # log file
    pidfile: str | None = None  # written before the drop, after daemonize
    pidfile_late: str | None = None  # `pidfile2`, written after the drop and after chdir
    umask: int | None = None


class Logging(Section):
    file: str | None = None  # `logto`, `daemonize`
    requests: bool = True  # False: `disable-logging`
    requests_4xx: bool = False  # `log-4xx`: also when requests is False
    requests_5xx: bool = False


class Settings(Section):
    sockets: Sockets = Sockets()
    app: App = App()
    processes: Processes = Processes()
    harakiri: Harakiri = Harakiri()
    recycling: Recycling = Recycling()
    cheaper: Cheaper = Cheaper()
    titles: Titles = Titles()
    reloading: Reloading = Reloading()
    control: Control = Control()
    daemons: Daemons = Daemons()
    hooks: Hooks = Hooks()
    static: Static = Static()
    identity: Identity = Identity()
    logging: Logging = Logging()

    @property
    def tasks(self) -> int:
        """How many processes and threads the server itself may have, as the kernel counts them for `limit-nproc`."""
        workers = 2 * self.processes.processes * self.processes.threads  # 2: replacements
        ends_tls = any(one.tls is not None for one in self.sockets.addresses)
        terminators = 2 * self.sockets.tls_processes if ends_tls else 0  # at a reload; so are two zygotes
        return workers + terminators + MASTER_TASKS + 2

    @property
    def first_workers(self) -> int:
        """How many workers there are at the start."""
        cheaper = self.cheaper
        if cheaper.cheap:
            return 0
        return cheaper.initial or cheaper.minimum or self.processes.processes
