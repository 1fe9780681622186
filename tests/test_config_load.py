"""From files, command line and environment to settings: order, strictness, values, errors, warnings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgimaster.config import commandline, sources, spelling
from wsgimaster.config.addresses import is_public, parse_address
from wsgimaster.config.load import Loaded, load
from wsgimaster.config.options import BY_NAME
from wsgimaster.config.system import System
from wsgimaster.errors import ConfigErrors
from wsgimaster.settings import Address, Algorithm, Daemon, Dispatch, Family, Order, Protocol, Tls

FACTS = {"h": "vm", "k": "2", "u": "0", "U": "root", "g": "0", "G": "root", "t": "1", "T": "2", "b": "/bin/w"}
USERS = {"www-data": 33, "root": 0}


def machine(files: Mapping[str, str | bytes]) -> System:
    """Return a machine that has these files (absolute names) and a few users."""

    def read_file(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory")
        content = files[path]
        return content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")

    return System(
        read_file=read_file,
        expand_glob=lambda pattern, _: ["/srv/a", "/srv/b"] if pattern == "/srv/*" else [],
        user_id=USERS.get,
        group_id={"www-data": 33, "adm": 4}.get,
        inode=lambda _: "7",
        facts=FACTS,
    )


def run(*argv: str, env: Mapping[str, str] | None = None, **files: str | bytes) -> Loaded:
    """Load a command line; files are `name="text"` and stand in /srv/app as name.ini."""
    return load(list(argv), env or {}, "/srv/app", machine({f"/srv/app/{k}.ini": v for k, v in files.items()}))


def ini(lines: str, *argv: str, env: Mapping[str, str] | None = None, **files: str | bytes) -> Loaded:
    """Load one file a.ini with these lines in its section, and a socket."""
    return run("--socket", "/s", "--ini", "a.ini", *argv, env=env, a=f"[uwsgi]\n{lines}\n", **files)


def setting(loaded: Loaded, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(loaded.settings, section), field)


def failure(*argv: str, env: Mapping[str, str] | None = None, **files: str | bytes) -> list[str]:
    """Return the messages of a command line that doesn't load."""
    with pytest.raises(ConfigErrors) as caught:
        run(*argv, env=env, **files)
    return [str(error) for error in caught.value.errors]


def ini_failure(lines: str, *argv: str) -> list[str]:
    return failure("--socket", "/s", "--ini", "a.ini", *argv, a=f"[uwsgi]\n{lines}\n")


def effective(loaded: Loaded, name: str) -> list[str | None]:
    return [value for each, value, _ in loaded.effective if each == name]


# What each working option does


def tcp(protocol: Protocol, host: str, port: int) -> Address:
    return Address(protocol=protocol, family=Family.TCP, name=f"{host}:{port}", host=host, port=port)


WORKING: dict[str, tuple[str, str, Any]] = {
    "processes": ("processes = 4", "processes.processes", 4),
    "workers is the same slot": ("processes = 4\nworkers = 2", "processes.processes", 2),
    "processes = 0": ("processes = 0", "processes.processes", 1),
    "threads": ("threads = 8", "processes.threads", 8),
    "threads = true": ("threads = true", "processes.threads", 1),
    "worker-reload-mercy": ("worker-reload-mercy = 5", "processes.reload_mercy", 5.0),
    "limit-as is MiB": ("limit-as = 2048", "processes.limit_as", 2048 * 1024 * 1024),
    "limit-as = 0 is off": ("limit-as = 0", "processes.limit_as", None),
    "limit-nproc": ("limit-nproc = 500", "processes.limit_nproc", 500),
    "limit-nproc = 0 is off": ("limit-nproc = 0", "processes.limit_nproc", None),
    "max-fd": ("max-fd = 65536", "processes.max_fd", 65536),
    "exit-deadline": ("exit-deadline = 3", "processes.exit_deadline", 3.0),
    "threads-stacksize is KiB": ("thread-stack-size = 512", "processes.thread_stack_kib", 512),
    "threads-stacksize = 0": ("threads-stacksize = 0", "processes.thread_stack_kib", None),
    "cpu-affinity": ("cpu-affinity = 2", "processes.cpu_affinity", 2),
    "prio": ("prio = -5", "processes.priority", -5),
    "dispatch": ("dispatch = push", "processes.dispatch", Dispatch.PUSH),
    "dispatch-order": ("dispatch-order = even", "processes.dispatch_order", Order.EVEN),
    "spawn-timeout": ("spawn-timeout = 5", "processes.spawn_timeout", 5.0),
    "harakiri": ("harakiri = 30", "harakiri.limit", 30.0),
    "harakiri = 0 is off": ("harakiri = 0", "harakiri.limit", 0.0),
    "harakiri-verbose": ("harakiri-verbose = true", "harakiri.verbose", True),
    "harakiri-graceful-timeout": ("harakiri-graceful-timeout = 3", "harakiri.graceful_timeout", 3.0),
    "harakiri-graceful-signal": ("harakiri-graceful-signal = 10", "harakiri.graceful_signal", 10),
    "harakiri-queue-threshold": ("harakiri-queue-threshold = 7", "harakiri.queue_threshold", 7),
    "max-requests": ("max-requests = 5000", "recycling.max_requests", 5000),
    "max-requests-delta": ("max-requests-delta = 50", "recycling.max_requests_delta", 50),
    "min-worker-lifetime": ("min-worker-lifetime = 1", "recycling.min_lifetime", 1.0),
    "max-worker-lifetime": ("max-worker-lifetime = 3600", "recycling.max_lifetime", 3600.0),
    "max-worker-lifetime-delta": ("max-worker-lifetime-delta = 60", "recycling.max_lifetime_delta", 60.0),
    "reload-on-rss is MiB": ("reload-on-rss = 512", "recycling.rss", 512 << 20),
    "reload-on-rss = 0 is off": ("reload-on-rss = 0", "recycling.rss", None),
    "reload-on-as": ("reload-on-as = 1024", "recycling.address_space", 1 << 30),
    "evil-reload-on-rss": ("evil-reload-on-rss = 512", "recycling.evil_rss", 512 << 20),
    "evil-reload-on-as": ("evil-reload-on-as = 1024", "recycling.evil_address_space", 1 << 30),
    "mem-collector-freq": ("mem-collector-freq = 5", "recycling.memory_interval", 5.0),
    "recycle-budget": ("recycle-budget = 2", "recycling.budget", 2),
    "cheaper": ("cheaper = 2\nprocesses = 4", "cheaper.minimum", 2),
    "cheaper-initial": ("cheaper = 2\nprocesses = 4\ncheaper-initial = 3", "cheaper.initial", 3),
    "cheaper-algo": ("cheaper-algo = busyness", "cheaper.algorithm", Algorithm.BUSYNESS),
    "cheaper-step": ("cheaper-step = 4", "cheaper.step", 4),
    "cheaper-overload": ("cheaper-overload = 0", "cheaper.overload", 0),
    "cheaper-idle": ("cheaper-idle = 5", "cheaper.idle_rounds", 5),
    "cheaper-queue-wait is in milliseconds": ("cheaper-queue-wait = 250", "cheaper.queue_wait", 0.25),
    "cheaper-queue-wait = 0": ("cheaper-queue-wait = 0", "cheaper.queue_wait", 0.0),
    "cheaper-rss-limit-soft is bytes": ("cheaper-rss-limit-soft = 201326592", "cheaper.rss_soft", 192 << 20),
    "cheaper-rss-limit-hard": ("cheaper-rss-limit-soft = 1\ncheaper-rss-limit-hard = 2", "cheaper.rss_hard", 2),
    "cheaper-busyness-max": ("cheaper-busyness-max = 70", "cheaper.busyness_max", 70),
    "cheaper-busyness-min": ("cheaper-busyness-min = 20", "cheaper.busyness_min", 20),
    "cheaper-busyness-multiplier": ("cheaper-busyness-multiplier = 30", "cheaper.multiplier", 30),
    "cheaper-busyness-penalty": ("cheaper-busyness-penalty = 1", "cheaper.penalty", 1),
    "cheaper-busyness-verbose": ("cheaper-busyness-verbose = true", "cheaper.verbose", True),
    "cheaper-busyness-backlog-alert": ("cheaper-busyness-backlog-alert = 16", "cheaper.backlog_alert", 16),
    "cheaper-busyness-backlog-multiplier": (
        "cheaper-busyness-backlog-multiplier = 5",
        "cheaper.backlog_multiplier",
        5,
    ),
    "cheaper-busyness-backlog-step": ("cheaper-busyness-backlog-step = 2", "cheaper.backlog_step", 2),
    "cheaper-busyness-backlog-nonzero": ("cheaper-busyness-backlog-nonzero = 9", "cheaper.backlog_nonzero", 9),
    "cheap": ("cheap = true", "cheaper.cheap", True),
    "idle": ("idle = 60", "cheaper.idle", 60),
    "die-on-idle": ("idle = 60\ndie-on-idle = true", "cheaper.die_on_idle", True),
    "queue-timeout": ("queue-timeout = 10", "sockets.queue_timeout", 10.0),
    "listen": ("listen = 1024", "sockets.waiting_limit", 1024),
    "listen = 0": ("listen = 0", "sockets.waiting_limit", None),
    "buffer-size": ("buffer-size = 32768", "sockets.buffer_size", 32768),
    "buffer-size over 16 bits": ("buffer-size = 262144", "sockets.buffer_size", 65535),
    "socket-timeout": ("socket-timeout = 60", "sockets.timeout", 60.0),
    "check-static": ("check-static = /a\nstatic-check = /b", "static.check", ("/a", "/b")),
    "check-static-docroot": ("check-static-docroot = true", "static.docroot", True),
    "static-map": ("static-map = /a=/b\nstatic-map = /c=d", "static.maps", ("/a=/b", "/c=d")),
    "static-map2": ("static-map2 = /a=/b", "static.maps_kept", ("/a=/b",)),
    "static-skip-ext": ("static-skip-ext = .py", "static.skip", (".py",)),
    "static-index": ("static-index = index.html", "static.index", ("index.html",)),
    "static-safe": ("static-safe = /a", "static.safe", ("/a",)),
    "mimefile": ("mime-file = /etc/types", "static.mime_files", ("/etc/types",)),
    "static-expires": ("static-expires = /a/* 100", "static.expires", ("/a/* 100",)),
    "static-expires-mtime": ("static-expires-mtime = a 1", "static.expires_mtime", ("a 1",)),
    "static-expires-uri": ("static-expires-uri = a 1", "static.expires_uri", ("a 1",)),
    "static-expires-uri-mtime": ("static-expires-uri-mtime = a 1", "static.expires_uri_mtime", ("a 1",)),
    "static-expires-path-info": ("static-expires-path-info = a 1", "static.expires_path_info", ("a 1",)),
    "static-expires-path-info-mtime": (
        "static-expires-path-info-mtime = a 1",
        "static.expires_path_info_mtime",
        ("a 1",),
    ),
    "static-expires-type": ("static-expires-type = text/css=1", "static.expires_type", ("text/css=1",)),
    "static-expires-type-mtime": ("static-expires-type-mtime = a/b=1", "static.expires_type_mtime", ("a/b=1",)),
    "static-gzip": ("static-gzip = css$", "static.compressed", ("css$",)),
    "static-gzip-all": ("static-gzip-all = true", "static.compressed_all", True),
    "static-gzip-dir": ("static-gzip-prefix = /a", "static.compressed_dir", ("/a",)),
    "static-gzip-ext": ("static-gzip-ext = .css", "static.compressed_ext", (".css",)),
    "no-defer-accept": ("no-defer-accept = true", "sockets.defer_accept", False),
    "http-timeout": ("http-timeout = 300", "sockets.http_timeout", 300.0),
    "http-buffer": ("http-buffer = 65536", "sockets.http_buffer", 65536),
    "http-processes": ("http-processes = 3", "sockets.tls_processes", 3),
    "http-enable-proxy-protocol": ("http-enable-proxy-protocol = 1", "sockets.http_proxy_protocol", True),
    "enable-proxy-protocol": ("enable-proxy-protocol = true", "sockets.http_proxy_protocol", True),
    "forwarded-allow = unix": ("forwarded-allow = unix, ::1", "sockets.forwarded_allow", ("unix", ip_network("::1"))),
    "http-keepalive": ("http-keepalive = 30", "sockets.http_keepalive", 30.0),
    "http-keepalive, bare": ("http-keepalive", "sockets.http_keepalive", 75.0),
    "http-keepalive = 1": ("http-keepalive = 1", "sockets.http_keepalive", 75.0),
    "http-keepalive = true": ("http-keepalive = true", "sockets.http_keepalive", 75.0),
    "http-keepalive = off": ("http-keepalive = off", "sockets.http_keepalive", 0.0),
    "http-keepalive = 0": ("http-keepalive = 0", "sockets.http_keepalive", 0.0),
    "chmod-socket": ("chmod-socket = 664", "sockets.socket_mode", 0o664),
    "chmod, bare": ("chmod", "sockets.socket_mode", 0o666),
    "chmod-socket = 1": ("chmod-socket = 1", "sockets.socket_mode", 0o666),
    "chown-socket": ("chown-socket = www-data:adm", "sockets.socket_owner", (33, 4)),
    "chown-socket, user alone": ("chown-socket = 1000", "sockets.socket_owner", (1000, -1)),
    "vacuum": ("vacuum = True", "sockets.vacuum", True),
    "allow-from": ("allow-from = 10.0.0.0/8, ::1", "sockets.allow_from", (ip_network("10.0.0.0/8"), ip_network("::1"))),
    "allow-from, several": (
        "allow-from = 10.1.2.3\nallow-from = 192.168.0.0/16",
        "sockets.allow_from",
        (ip_network("10.1.2.3/32"), ip_network("192.168.0.0/16")),
    ),
    "forwarded-allow": ("forwarded-allow = 10.0.0.1", "sockets.forwarded_allow", (ip_network("10.0.0.1/32"),)),
    "module": ("module = a.wsgi:app", "app.module", "a.wsgi:app"),
    "wsgi is module": ("wsgi = a.wsgi", "app.module", "a.wsgi"),
    "wsgi-file": ("wsgi-file = app.py", "app.file", "app.py"),
    "file is wsgi-file": ("file = app.py", "app.file", "app.py"),
    "callable": ("callable = app", "app.callable", "app"),
    "chdir": ("chdir = %d", "app.chdir", "/srv/app/"),
    "pythonpath": ("pythonpath = ..\npp = /x\npython-path = /y", "app.pythonpath", ("..", "/x", "/y")),
    "pythonpath with wildcards": ("pythonpath = /srv/*\npp = /no*", "app.pythonpath", ("/srv/a", "/srv/b", "/no*")),
    "virtualenv": ("home = /a\nvirtualenv = /b\nvenv = /c\npyhome = /d", "app.home", "/d"),
    "env": ("env = A=b=c\nenv = D", "app.environment", (("A", "b=c"), ("D", ""))),
    "lazy-apps": ("lazy-apps", "app.lazy", True),
    "lazy": ("lazy = 1\nlazy-apps = false", "app.lazy", True),
    "need-app": ("need-app = true", "app.required", True),
    "need-app = false": ("need-app = false", "app.required", False),
    "uid by name": ("uid = www-data", "identity.uid", 33),
    "uid keeps the name": ("uid = www-data", "identity.user", "www-data"),
    "uid by number": ("uid = www-data\nuid = 1000", "identity.user", None),
    "uid doesn't set the gid": ("uid = www-data", "identity.gid", None),
    "gid": ("gid = adm", "identity.gid", 4),
    "add-gid": ("add-gid = adm\nadd-gid = 12", "identity.extra_groups", (4, 12)),
    "no-initgroups": ("no-initgroups = true", "identity.initgroups", False),
    "umask": ("umask = 0022", "identity.umask", 0o022),
    "pidfile": ("pidfile = /tmp/%n.pid", "identity.pidfile", "/tmp/a.pid"),
    "pidfile2": ("pidfile2 = x.pid", "identity.pidfile_late", "x.pid"),
    "daemonize": ("daemonize = /log", "identity.daemonize", "/log"),
    "daemonize wins over logto": ("daemonize = /a\nlogto = /b", "logging.file", "/a"),
    "logto": ("logto = /var/log/x.log", "logging.file", "/var/log/x.log"),
    "disable-logging": ("disable-logging = true", "logging.requests", False),
    "disable-logging = False": ("disable-logging = False", "logging.requests", True),
    "log-4xx": ("log-4xx = true", "logging.requests_4xx", True),
    "log-5xx": ("log-5xx = true", "logging.requests_5xx", True),
    "auto-procname": ("auto-procname = true", "titles.automatic", True),
    "procname": ("procname = x", "titles.every", "x"),
    "procname sets titles": ("procname = x", "titles.automatic", True),
    "procname-master": ("procname-master = %n (master)", "titles.master", "a (master)"),
    "procname-prefix": ("procname-prefix = p-", "titles.prefix", "p-"),
    "procname-prefix-spaced": ("procname-prefix-spaced = p", "titles.prefix", "p "),
    "procname-append": ("procname-append = z", "titles.append", "z"),
    "reload-surge": ("reload-surge = 3", "reloading.surge", 3),
    "reload-timeout": ("reload-timeout = 5", "reloading.timeout", 5.0),
    "reload-check": ("reload-check = example.org/health", "reloading.check", "example.org/health"),
    "touch-reload": ("touch-reload = a\ntouch-reload = %d/b", "control.touch_reload", ("a", "/srv/app//b")),
    "touch-workers-reload": ("touch-workers-reload = a", "control.touch_workers", ("a",)),
    "touch-chain-reload": ("touch-chain-reload = a", "control.touch_chain", ("a",)),
    "touch-logrotate": ("touch-logrotate = a", "control.touch_rotate", ("a",)),
    "touch-logreopen": ("touch-logreopen = a", "control.touch_reopen", ("a",)),
    "touch-exec": ("touch-exec = a ls -l", "control.touch_exec", (("a", "ls -l"),)),
    "hook-touch": ("hook-touch = a print:x y", "control.touch_hooks", (("a", "print:x y"),)),
    "py-autoreload": ("python-autoreload = 1", "control.autoreload", 1),
    "attach-daemon": (
        "attach-daemon = a b\nattach-daemon = a b",
        "daemons.attached",
        tuple(Daemon(text="a b", command=("a", "b"), twin=twin) for twin in (0, 1)),
    ),
    "reload-mercy": ("reload-mercy = 5", "daemons.mercy", 5.0),
    "master-fifo": ("master-fifo = a\nmaster-fifo = b", "control.fifos", ("a", "b")),
    "control-socket": ("control-socket = a", "control.socket", "a"),
    "drain-delay": ("drain-delay = 5", "processes.drain_delay", 5.0),
    "exec is a hook": ("exec-asap = true\nhook-asap = print:x", "hooks.asap", ("exec:true", "print:x")),
    "the jails are nowhere": (
        "hook-post-jail = print:x\nexec-as-root = true",
        "hooks.as_root",
        ("print:x", "exec:true"),
    ),
    "hook-as-user": ("hook-as-user = print:x", "hooks.as_user", ("print:x",)),
    "hook-master-start": ("hook-master-start = print:x", "hooks.master_start", ("print:x",)),
    "hook-pre-app": ("exec-pre-app = true", "hooks.pre_app", ("exec:true",)),
    "hook-post-app": ("exec-post-app = true", "hooks.post_app", ("exec:true",)),
    "hook-post-fork": ("hook-post-fork = chdir:/x", "hooks.post_fork", ("chdir:/x",)),
    "hook-accepting": ("hook-accepting = print:x", "hooks.accepting", ("print:x",)),
    "hook-accepting1": ("hook-accepting1 = print:x", "hooks.accepting1", ("print:x",)),
    "hook-as-user-atexit": ("exec-as-user-atexit = true", "hooks.as_user_atexit", ("exec:true",)),
}


@pytest.mark.parametrize(("lines", "name", "expected"), WORKING.values(), ids=WORKING.keys())
def test_working_options(lines: str, name: str, expected: Any) -> None:
    assert setting(ini(lines), name) == expected


def test_every_setting_of_a_working_option_is_tried_above() -> None:
    tried = {name for _, name, _ in WORKING.values()} | {"sockets.addresses", "control.health"}
    assert {option.field for option in BY_NAME.values() if option.field} <= tried


TOGETHER = {
    "a life that ends before it may": (
        "min-worker-lifetime = 60\nmax-worker-lifetime = 60",
        "a.ini:3: max-worker-lifetime: max-worker-lifetime (60) must be longer than min-worker-lifetime (60)",
    ),
    "a signal that no handler can have": (
        "harakiri-graceful-signal = 9",
        "a.ini:2: harakiri-graceful-signal: signal 9 can't bring an exception; 10 (USR1), 12 (USR2) and 15 (TERM) can",
    ),
    "more cores than there can be": (
        "threads = 250\nprocesses = 4096",
        "a.ini:3: processes: processes x threads is 1024000, at most 16384 are possible",
    ),
}


@pytest.mark.parametrize(("lines", "message"), TOGETHER.values(), ids=TOGETHER.keys())
def test_options_that_do_not_fit_together(lines: str, message: str) -> None:
    assert ini_failure(lines) == [message]


FLAGS = {"": True, "1": True, "x": True, "disabled": True, "none": True, "00": True, "on": True}
FLAGS |= {"false": False, "off": False, "no": False, "NO": False, "False": False, "0": False}
FLAGS |= {"true   ; Delete sockets": True, "false ; really": True, "true #": True}


@pytest.mark.parametrize(("text", "expected"), FLAGS.items(), ids=lambda value: f"[{value}]")
def test_flags(text: str, expected: bool) -> None:
    assert ini(f"vacuum = {text}").settings.sockets.vacuum is expected


ODD_FLAGS = {"disabled": "counts as true", "00": "counts as true", "false ; x": "counts as true", "off # x": "true"}


@pytest.mark.parametrize(("text", "expected"), ODD_FLAGS.items())
def test_flags_that_look_off_and_are_on_make_a_warning(text: str, expected: str) -> None:
    (warning,) = ini(f"vacuum = {text}").warnings
    assert warning.startswith("a.ini:2: vacuum: ")
    assert expected in warning


NUMBERS = {"60": 60, " 60 ; x": 60, "4x": 4, "+5": 5, "007": 7, "8.5": 8, "5000  # x": 5000}


@pytest.mark.parametrize(("text", "expected"), NUMBERS.items())
def test_numbers(text: str, expected: int) -> None:
    assert ini(f"socket-timeout = {text}").settings.sockets.timeout == expected


def test_numbers_with_something_behind_them_make_a_warning() -> None:
    assert ini("processes = 4x").warnings == ("a.ini:2: processes: '4x' counts as 4",)
    assert ini("processes = true").warnings == (
        "a.ini:2: processes: 'true' is no number and counts as 0",
        "a.ini:2: processes: 0 counts as 1",
    )


# Addresses

ADDRESSES: dict[str, tuple[str, Family, str, int]] = {
    "path": ("/run/app.sock", Family.UNIX, "/run/app.sock", 0),
    "relative path": ("app.sock", Family.UNIX, "app.sock", 0),
    "abstract": ("@app", Family.ABSTRACT, "app", 0),
    "abstract, with a zero": ("\\0app", Family.ABSTRACT, "app", 0),
    "port": (":8000", Family.TCP, "", 8000),
    "address": ("127.0.0.1:3031", Family.TCP, "127.0.0.1", 3031),
    "name": ("localhost:80", Family.TCP, "localhost", 80),
    "IPv6": ("[::1]:8000", Family.TCP, "::1", 8000),
    "any IPv6": ("[::]:8000", Family.TCP, "::", 8000),
    "any port": ("127.0.0.1:0", Family.TCP, "127.0.0.1", 0),
    "no port": ("127.0.0.1:", Family.TCP, "127.0.0.1", 0),
    "port with a comment": ("127.0.0.1:8200  # 8000 + x", Family.TCP, "127.0.0.1", 8200),
    "port with a semicolon": ("localhost:8080;", Family.TCP, "localhost", 8080),
}


@pytest.mark.parametrize(("text", "family", "where", "port"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_addresses(text: str, family: Family, where: str, port: int) -> None:
    address, _ = parse_address(text, Protocol.UWSGI, False)
    assert (address.family, address.host or address.path, address.port) == (family, where, port)


def test_inherited_and_abstract_addresses() -> None:
    assert parse_address("fd://3", Protocol.HTTP, False)[0].fd == 3
    assert parse_address("/x", Protocol.UWSGI, True)[0].family is Family.ABSTRACT
    assert ini("abstract-socket = true").settings.sockets.addresses[0].family is Family.ABSTRACT


NO_ADDRESSES = ["", "=0", "::", "fd://x", "127.0.0.1:x", "host:99999", "::1:8000", "192.168.*:80", "@", "x" * 108]


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|isn't served"):
        parse_address(text, Protocol.UWSGI, False)


def test_sockets_keep_their_order_and_their_protocols() -> None:
    lines = (
        "[uwsgi]\nhttp = :80\nsocket = :1\nuwsgi-socket = :2\nhttp-socket = :3\nhttp11-socket = :4\nprotocol = http\n"
    )
    loaded = run("--ini", "a.ini", "-s", ":5", a=lines)
    http, uwsgi = Protocol.HTTP, Protocol.UWSGI
    assert [(one.protocol, one.port) for one in loaded.settings.sockets.addresses] == [
        (http, 80),
        (http, 1),
        (uwsgi, 2),
        (http, 3),
        (http, 4),
        (http, 5),
    ]


TLS: dict[str, tuple[str, Tls, bool]] = {
    "https": ("https = :1,/c.pem,/k.pem", Tls(certificate="/c.pem", key="/k.pem"), True),
    "https-socket": ("https-socket = :1,/c.pem,/k.pem", Tls(certificate="/c.pem", key="/k.pem"), False),
    "ciphers": ("https = :1,/c.pem,/k.pem,HIGH", Tls(certificate="/c.pem", key="/k.pem", ciphers="HIGH"), True),
    "an authority": ("https = :1,/c,/k,,/a", Tls(certificate="/c", key="/k", ca="/a"), True),
    "demanded": ("https = :1,/c,/k,X,!/a", Tls(certificate="/c", key="/k", ciphers="X", ca="/a", required=True), True),
    "relative": (
        "https = :1,c,../k,,a",
        Tls(certificate="/srv/app/c", key="/srv/app/../k", ca="/srv/app/a"),
        True,
    ),
    "https2": ("https2 = addr=:1,cert=/c,key=/k", Tls(certificate="/c", key="/k"), True),
    "https2, all": (
        "https2 = key=/k,crt=/c,clientca=!/a,ciphers=X,addr=:1",
        Tls(certificate="/c", key="/k", ciphers="X", ca="/a", required=True),
        True,
    ),
}


@pytest.mark.parametrize(("line", "tls", "buffers"), TLS.values(), ids=TLS)
def test_tls_addresses(line: str, tls: Tls, buffers: bool) -> None:
    address = ini(line).settings.sockets.addresses[-1]
    assert (address.protocol, address.port, address.buffers) == (Protocol.HTTP, 1, buffers)
    assert address.tls == tls


NO_TLS = {
    "nothing": "https =",
    "no key": "https = :1,/c",
    "no certificate": "https = :1,,/k",
    "too many": "https = :1,/c,/k,HIGH,/a,x",
    "another key": "https2 = addr=:1,cert=/c,key=/k,x=y",
    "no address": "https2 = cert=/c,key=/k",
    "no such address": "https = x:y,/c,/k",
    "no authority": "https = :1,/c,/k,HIGH,!",
    "no authority either": "https2 = addr=:1,cert=/c,key=/k,client_ca=!",
}


@pytest.mark.parametrize("line", NO_TLS.values(), ids=NO_TLS)
def test_no_tls_addresses(line: str) -> None:
    (problem,) = ini_failure(line)
    assert "expected" in problem


OPEN = {":3031": True, "10.0.0.1:1": True, "[::]:1": True, "some-host:1": True}
OPEN |= {"127.0.0.1:1": False, "[::1]:1": False, "localhost:1": False, "/x": False, "@x": False}


@pytest.mark.parametrize(("text", "expected"), OPEN.items(), ids=OPEN.keys())
def test_open_uwsgi_sockets_make_a_warning_without_allow_from(text: str, expected: bool) -> None:
    assert is_public(parse_address(text, Protocol.UWSGI, False)[0]) is expected
    assert [text in warning for warning in run("--socket", text).warnings] == [True] * expected
    assert run("--socket", text, "--allow-from", "10.0.0.0/8").warnings == ()
    assert run("--http-socket", text).warnings == ()


# Order and precedence


def test_command_line_and_ini_in_the_order_of_the_command_line() -> None:
    text = "[uwsgi]\nprocesses = 9\n"
    assert run("-s", "/s", "--processes", "2", "--ini", "a.ini", a=text).settings.processes.processes == 9
    assert run("-s", "/s", "--ini", "a.ini", "--processes", "2", a=text).settings.processes.processes == 2


def test_a_positional_file_comes_after_the_command_line_wherever_it_stands() -> None:
    text = "[uwsgi]\nprocesses = 9\n"
    assert run("a.ini", "-s", "/s", "--processes", "2", a=text).settings.processes.processes == 9


def test_the_environment_comes_first_and_lists_count_twice() -> None:
    env = {"UWSGI_PROCESSES": "3", "UWSGI_THREADS": "2", "UWSGI_SOCKET": "/e", "UWSGI_RELOADS": "0", "PROCESSES": "9"}
    loaded = run("--processes", "5", "-s", "/c", env=env)
    assert loaded.settings.processes.processes == 5
    assert loaded.settings.processes.threads == 2
    assert [one.path for one in loaded.settings.sockets.addresses] == ["/e", "/c"]
    assert loaded.warnings == ()


def test_the_environment_alone_configures_a_process() -> None:
    env = {"UWSGI_WSGI_FILE": "app.py", "UWSGI_HTTP": ":8000", "UWSGI_MASTER": "1", "UWSGI_LAZY_APPS": "false"}
    loaded = run(env=env)
    assert (loaded.settings.app.file, loaded.settings.app.lazy) == ("app.py", False)
    assert [where for name, _, where in loaded.effective if name == "http"] == ["environment variable UWSGI_HTTP"]


def test_placeholders_first_wins_options_last_wins() -> None:
    loaded = ini("x = first\nx = second\nchdir = /%(x)\nprocesses = 2\nprocesses = 3\npidfile = /%(processes)")
    assert loaded.settings.app.chdir == "/first"
    assert loaded.settings.processes.processes == 3
    assert loaded.settings.identity.pidfile == "/2"


def test_include_and_ini_stand_where_they_are_written() -> None:
    files = {"b": "[uwsgi]\nprocesses = 5\nthreads = 5\n", "c": "[other]\nthreads = 7\n"}
    loaded = ini("processes = 1\ninclude = b.ini\nini = c.ini:other\nprocesses = 2", **files)
    assert (loaded.settings.processes.processes, loaded.settings.processes.threads) == (2, 7)


def test_a_section_of_the_same_file() -> None:
    text = "[uwsgi]\nini = :base\nthreads = 2\n[base]\nprocesses = 4\n"
    assert run("-s", "/s", "--ini", "a.ini", a=text).settings.processes.processes == 4
    assert run("-s", "/s", "a.ini", a=text).settings.processes.processes == 4


def test_a_section_refers_to_the_file_that_was_read_last() -> None:
    loaded = ini("include = b.ini\nini = :base\n[base]\nprocesses = 2", b="[base]\nprocesses = 3\n")
    assert loaded.settings.processes.processes == 3


def test_a_missing_section_is_a_warning() -> None:
    assert run("-s", "/s", "--ini", "a.ini:nope", a="[uwsgi]\n").warnings == ("a.ini: has no section [nope]",)


def test_set_defines_options_and_placeholders() -> None:
    loaded = ini("set = processes=4\nset = p=%(q)\nset-ph = r=.%(q)\nq = 7\nchdir = /%(p)%(r)")
    assert loaded.settings.processes.processes == 4
    assert loaded.settings.app.chdir == "/7.7"
    assert effective(loaded, "p") == ["7"]
    assert effective(loaded, "r") == [".%(q)"]  # replaced where it is used


def test_the_three_passes_see_each_others_results() -> None:
    env = {"NAME": "%(x)", "FILE": "note.ini"}
    loaded = ini("x = 1\nchdir = /$(NAME)/@($(FILE))/$(NOPE)", env=env, note="n%(x)\n\n")
    assert loaded.settings.app.chdir == "/1/n1\n/$(NOPE)"


def test_env_isnt_visible_to_the_configuration() -> None:
    assert ini("env = HERE=1\nchdir = /$(HERE)").settings.app.chdir == "/$(HERE)"


def test_options_that_act_at_once_are_taken_as_written() -> None:
    assert "can't read %(f).ini" in ini_failure("f = b\nini = %(f).ini")[0]


CAPITALS = {"ini": (["--ini", "a.ini"], "/srv/app/|a.ini"), "positional": (["a.ini"], "|")}


@pytest.mark.parametrize(("argv", "expected"), CAPITALS.values(), ids=CAPITALS.keys())
def test_capital_magic_variables_belong_to_the_first_file_of_ini(argv: list[str], expected: str) -> None:
    assert run("-s", "/s", *argv, a="[uwsgi]\nchdir = %D|%O\n").settings.app.chdir == expected


def test_capital_magic_variables_in_an_included_file() -> None:
    assert ini("include = b.ini", b="[uwsgi]\nchdir = %o %O %n %N\n").settings.app.chdir == "b.ini a.ini b a"


def test_directories_of_the_first_file_dont_leak_into_others() -> None:
    files = {"/srv/app/a.ini": "[uwsgi]\ninclude = /b.ini\n", "/b.ini": "[uwsgi]\nchdir = %0|%1|%c|\n"}
    loaded = load(["-s", "/s", "--ini", "a.ini"], {}, "/srv/app", machine(files))
    assert loaded.settings.app.chdir == "|||"


def test_machine_magic_and_maths() -> None:
    assert ini("processes = %(%k * 4)").settings.processes.processes == 8
    assert ini("chdir = %v|%V|%h|%i|%d").settings.app.chdir == "/srv/app|2.0.31|vm|7|/srv/app/"


def test_bytes_that_are_no_text_survive() -> None:
    chdir = run("-s", "/s", "a.ini", a=b"[uwsgi]\nchdir = /\xff\xe9\n").settings.app.chdir
    assert chdir is not None
    assert chdir.encode("utf-8", "surrogateescape") == b"/\xff\xe9"


# The command line

COMMAND_LINES: dict[str, tuple[list[str], list[tuple[str, str | None]], list[str]]] = {
    "separate value": (["--processes", "4"], [("processes", "4")], []),
    "glued value": (["--processes=4"], [("processes", "4")], []),
    "value with equals": (["--env=A=b"], [("env", "A=b")], []),
    "empty value": (["--module="], [("module", "")], []),
    "flag": (["--master"], [("master", None)], []),
    "alias keeps its name": (["--workers", "4"], [("workers", "4")], []),
    "abbreviation": (["--processe", "3"], [("processes", "3")], []),
    "abbreviation of aliases": (["--chmo=660"], [("chmod-socket", "660")], []),
    "exact name that starts others": (["--http", ":80"], [("http", ":80")], []),
    "optional without": (["--need-app"], [("need-app", None)], []),
    "optional glued": (["--need-app=1"], [("need-app", "1")], []),
    "optional doesn't take the next word": (["--need-app", "a.ini"], [("need-app", None)], ["a.ini"]),
    "required swallows the next option": (["--module", "--master"], [("module", "--master")], []),
    "letter": (["-p", "4"], [("processes", "4")], []),
    "letter, glued": (["-p4"], [("processes", "4")], []),
    "bundle": (["-Mip4"], [("master", None), ("single-interpreter", None), ("processes", "4")], []),
    "optional letter, glued": (["-C664"], [("chmod-socket", "664")], []),
    "optional letter, bare": (["-C", "664"], [("chmod-socket", None)], ["664"]),
    "-s is socket": (["-s", ":1"], [("socket", ":1")], []),
    "-w is module": (["-w", "app"], [("module", "app")], []),
    "files are sorted out": (["a.ini", "-M", "b.ini"], [("master", None)], ["a.ini", "b.ini"]),
    "end of options": (["-M", "--", "--x", "-y"], [("master", None)], ["--x", "-y"]),
    "lone dash": (["-"], [], ["-"]),
}


@pytest.mark.parametrize(("argv", "options", "files"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_command_line(argv: list[str], options: list[tuple[str, str | None]], files: list[str]) -> None:
    result = commandline.parse(argv)
    assert [(one.name, one.value) for one in result.options] == options
    assert result.files == files
    assert result.errors == []


BAD_COMMAND_LINES = {
    "unknown": (["--procesess", "4"], "command line: --procesess: unknown option (did you mean --processes?)"),
    "underscore": (["--wsgi_file=x"], "command line: --wsgi_file: unknown option (did you mean --wsgi-file?)"),
    "unknown letter": (["-X"], "command line: -X: unknown option (--help lists the letters)"),
    "ambiguous": (["--worker", "3"], "command line: --worker: is short for --worker-mount, --workers, "),
    "flag with a value": (
        ["--master=false"],
        "--master: takes no value on the command line (write --set master=false)",
    ),
    "value of a flag": (["--master", "true"], "flags take no value on the command line"),
    "no value": (["--module"], "command line: --module: needs a value"),
    "no value of a letter": (["-p"], "command line: -p: needs a value (it is --processes)"),
    "only dashes": (["--=x"], "unknown option"),
    "port": (
        [":8000"],
        "command line: :8000: this is no configuration file (to listen there write --http-socket :8000)",
    ),
    "application": (["mod:app"], "to load that application write --module mod:app"),
    "Python file": (["app.py"], "write --wsgi-file app.py"),
    "section": (["a.ini:prod"], "write --ini a.ini:prod"),
    "another ending": (["app.conf"], "files that don't end in .ini need the option: --ini app.conf"),
    "standard input": (["-"], "standard input isn't read (write a file)"),
    "standard input as an option": (["--ini", "-"], "only files are read, found '-'"),
    "yaml": (["a.yaml"], "only ini files are read yet"),
    "missing file": (["gone.ini"], "command line: ini: can't read gone.ini: No such file or directory"),
}


@pytest.mark.parametrize(("argv", "expected"), BAD_COMMAND_LINES.values(), ids=BAD_COMMAND_LINES.keys())
def test_bad_command_lines(argv: list[str], expected: str) -> None:
    assert any(expected in message for message in failure("-s", "/s", *argv))


def test_what_looks_like_a_process_title_is_skipped() -> None:
    assert run("-s", "/s", "[uwsgi]").settings.sockets.addresses


# Actions


def test_version_and_help_win_over_everything() -> None:
    assert run("--nonsense", "--version").action == "version"
    assert run("--version").text.startswith("wsgimaster ")
    assert run("--socket", "=x", "-h").action == "help"
    assert "--processes" in run("--usage").text


def test_version_in_the_environment_is_no_action() -> None:
    assert run("-s", "/s", "--strict", env={"UWSGI_VERSION": "2.0.21"}).action is None


def test_show_config() -> None:
    loaded = run("--show-config", "-M", "--ini", "a.ini", a="[uwsgi]\nx = 1\nsocket = /%(x)\n")
    assert loaded.action == "show-config"
    assert loaded.text == (
        ";uWSGI instance configuration\n[uwsgi]\nshow-config = true\nmaster = true\nini = a.ini\nx = 1\nsocket = /1\n"
        ";end of configuration\n"
    )
    assert [where for _, _, where in loaded.effective] == ["command line"] * 3 + ["a.ini:2", "a.ini:3"]
    assert ini("show-config = false").action is None


# Unknown names, strict


def test_an_unknown_name_is_a_placeholder_and_a_warning_unless_it_is_used() -> None:
    assert ini("base = /srv\nchdir = %(base)").warnings == ()
    assert ini("base = 3\nprocesses = %(base + 1)").warnings == ()
    assert ini("set-ph = base=3").warnings == ()
    assert ini("base = /srv").warnings == ("a.ini:2: base: is no option and nothing uses it as %(base)",)


SPELLINGS = {
    "wsgi_file = x": "a.ini:2: wsgi_file: is ignored, the option is spelled wsgi-file",
    "Master = true": "a.ini:2: Master: is ignored, the option is spelled master",
    "vaccum = true": "a.ini:2: vaccum: is no option and nothing uses it as %(vaccum); did you mean vacuum?",
    "process = 2": "a.ini:2: process: is no option and nothing uses it as %(process); did you mean processes?",
}


@pytest.mark.parametrize(("line", "warning"), SPELLINGS.items(), ids=SPELLINGS.keys())
def test_misspelled_names_are_ignored_with_a_warning(line: str, warning: str) -> None:
    assert ini(line).warnings == (warning,)


STRICT = {
    "after": ("strict = true\nvaccum = 1", ["a.ini:3: vaccum: unknown option (did you mean vacuum?)"]),
    "before": ("vaccum = 1\nstrict = true", ["a.ini:2: vaccum: unknown option (did you mean vacuum?)"]),
    "switched off in between": ("strict = 1\nvaccum = 1\nstrict = 0", ["a.ini:3: vaccum: unknown option"]),
    "through set": ("strict = 1\nset = foo-bar=1", ["a.ini:3: foo-bar: unknown option (a placeholder needs"]),
    "used placeholders, too": ("strict = 1\nbase = /x\nchdir = %(base)", ["a.ini:3: base: unknown option"]),
}


@pytest.mark.parametrize(("lines", "expected"), STRICT.values(), ids=STRICT.keys())
def test_strict(lines: str, expected: list[str]) -> None:
    found = ini_failure(lines)
    assert len(found) == len(expected)
    assert all(message.startswith(start) for message, start in zip(found, expected, strict=True))


def test_strict_allows_declared_placeholders_and_lines_after_it_is_off() -> None:
    assert ini("strict = 1\nset-placeholder = x=1\nchdir = %(x)\nstrict = 0\ny = 1").settings.app.chdir == "1"


def test_strict_counts_for_the_environment() -> None:
    found = failure("-s", "/s", "--strict", env={"UWSGI_PROCESES": "2"})
    assert found == ["environment variable UWSGI_PROCESES: proceses: unknown option (did you mean processes?)"]


def test_unknown_variables_are_a_warning_only_if_something_is_alike() -> None:
    env = {"UWSGI_SERVICE_PORT_8000_TCP": "x", "UWSGI_PORT": "tcp://10.0.0.1:80", "UWSGI_PROCESES": "2"}
    (warning,) = run("-s", "/s", env=env).warnings
    assert warning.startswith("environment variable UWSGI_PROCESES: ")


# Classes of options


def test_known_options_without_effect_are_one_line() -> None:
    loaded = ini("strict = true\nmules = 3\nlog-maxsize = 10\nstats = :1717\nmules = 2\nlog-micros = false")
    assert loaded.warnings == ("known options that have no effect yet: mules, log-maxsize, stats",)
    assert [name for name, _ in loaded.no_effect] == ["mules", "log-maxsize", "stats", "mules"]
    assert loaded.no_effect[0] == ("mules", "a.ini:3")


def test_what_is_always_on_is_quiet_unless_it_is_switched_off() -> None:
    assert ini("master = 1\nenable-threads\nthunder-lock =\ndie-on-term = true").warnings == ()
    assert ini("master = off").warnings == ("a.ini:2: master: can't be switched off: a master always runs",)


PLUGINS = {"python3": (), "python": (), "http, python": (), "/usr/lib/uwsgi/python3": (), "python3_plugin.so": ()}
PLUGINS |= {"python3,syslog": ("plugins",), "sentry": ("plugins",)}


@pytest.mark.parametrize(("text", "expected"), PLUGINS.items(), ids=PLUGINS.keys())
def test_plugins_that_are_built_in_are_quiet(text: str, expected: tuple[str, ...]) -> None:
    assert tuple(name for name, _ in ini(f"plugins = {text}").no_effect) == expected


def test_refused_options_say_what_to_use_instead() -> None:
    assert ini_failure("gevent = 100\nemperor-tyrant = false\nsnmp = 1") == [
        "a.ini:2: gevent: isn't served here (use threads = N, up to 250 per process)",
        "a.ini:4: snmp: isn't served here (use stats or metrics)",
    ]


BLOCKS = {
    "condition": ("if-env = X\nnonsense = 1\nendif =\nprocesses = 2", "if-env", 1),
    "loop": ("for = a b\nenv = %(_)\nendfor", "for", 1),
    "two": ("if-env = X\nendif\nif-not-env = X\nendif", "if-env", 2),
}


@pytest.mark.parametrize(("lines", "option", "count"), BLOCKS.values(), ids=BLOCKS.keys())
def test_conditions_and_loops_are_a_clear_error(lines: str, option: str, count: int) -> None:
    found = ini_failure(lines)
    assert found[0] == f"a.ini:2: {option}: conditions and loops aren't served yet (write the lines out)"
    assert len(found) == count


# Limits that fit badly

LIMITS = {
    "limit-as with threads": (
        "limit-as = 512\nthreads = 4",
        "a.ini:2: limit-as: each of the 4 threads takes its stack (ulimit -s, mostly 8 MiB) and up to 64 MiB",
    ),
    "limit-as with threads of a known stack": (
        "threads = 4\nlimit-as = 512\nthreads-stacksize = 256",
        "a.ini:3: limit-as: each of the 4 threads takes its stack (256 KiB) and up to 64 MiB",
    ),
    "limit-as with one thread": ("limit-as = 512\nthreads = 1", ""),
    "threads without limit-as": ("limit-as = 0\nthreads = 4", ""),
    "limit-nproc below what the server has": (
        "limit-nproc = 10\nprocesses = 2\nthreads = 4",
        "a.ini:2: limit-nproc: counts as 23, which is what the server itself may have: 2 workers with 4 threads each",
    ),
    "limit-nproc with TLS": (
        "limit-nproc = 10\nprocesses = 2\nthreads = 4\nhttps = :1,/c,/k\nhttp-processes = 2",
        "a.ini:2: limit-nproc: counts as 27, which is what the server itself may have: 2 workers with 4 threads each",
    ),
    "limit-nproc of what the server has": ("limit-nproc = 23\nprocesses = 2\nthreads = 4", ""),
}


@pytest.mark.parametrize(("lines", "expected"), LIMITS.values(), ids=LIMITS.keys())
def test_limits_that_threads_use_up(lines: str, expected: str) -> None:
    warnings = [line for line in ini(lines).warnings if "counts as the default" not in line]
    assert len(warnings) == (1 if expected else 0)
    assert all(line.startswith(expected) for line in warnings)


def test_proxy_lines_need_somebody_who_may_send_them() -> None:
    (warning,) = ini("http-enable-proxy-protocol = 1").warnings
    assert warning.startswith("a.ini:2: http-enable-proxy-protocol: nobody may send PROXY lines")
    assert "forwarded-allow = 10.0.0.0/8" in warning
    assert ini("http-enable-proxy-protocol = 1\nforwarded-allow = unix").warnings == ()


# Inline comments


def test_comments_behind_numbers_and_flags_are_one_warning() -> None:
    loaded = ini("vacuum = true   ; delete\nprocesses = 4 # four\nmules = 6  ; kill\nneed-app = 1")
    assert loaded.settings.sockets.vacuum
    assert loaded.settings.processes.processes == 4
    assert loaded.warnings == (
        "a.ini:2, 3, 4: text after ; or # is part of the value (it does no harm in these lines)",
        "known options that have no effect yet: mules",
    )


def test_comments_behind_texts_are_part_of_them() -> None:
    loaded = ini("pidfile = /tmp/x.pid #\nmodule = app:app  # the app\ncron = 0 0 -1 -1 -1 a ; b")
    assert loaded.settings.identity.pidfile == "/tmp/x.pid #"
    assert [warning.partition(":")[0] for warning in loaded.warnings[:2]] == ["a.ini", "a.ini"]
    assert "all of 'app:app  # the app' counts" in loaded.warnings[1]


# Errors


def test_no_socket_is_an_error() -> None:
    assert failure() == ["configuration: no listening socket (add socket = ... or http-socket = ...)"]


BAD_VALUES = {
    "processes = -1": "a.ini:2: processes: must not be negative, found '-1'",
    "processes = 5000": "a.ini:2: processes: must be less than or equal to 4096, found '5000'",
    "processes = 99999999999": "a.ini:2: processes: must be at most 2147483647, found '99999999999'",
    "threads = 300": "a.ini:2: threads: must be less than or equal to 250, found '300'",
    "socket-timeout = 0": "a.ini:2: socket-timeout: must be greater than 0, found '0'",
    "exit-deadline = 0": "a.ini:2: exit-deadline: must be greater than 0, found '0'",
    "threads-stacksize = 8": "a.ini:2: threads-stacksize: must be greater than or equal to 32, found '8'",
    "cpu-affinity = -1": "a.ini:2: cpu-affinity: must not be negative, found '-1'",
    "max-fd = 3": "a.ini:2: max-fd: must be greater than or equal to 64, found '3'",
    "static-map = /static": "a.ini:2: static-map: expected /path=directory, found '/static'",
    "static-expires = /a": "a.ini:2: static-expires: expected a pattern, a space and seconds, found '/a'",
    "static-expires = ( 10": "a.ini:2: static-expires: expected a regular expression, found '('",
    "static-expires = a 99999999999": "a.ini:2: static-expires: expected a pattern, a space and seconds",
    "static-gzip = a{99999999999}": "a.ini:2: static-gzip: expected a regular expression",
    "static-expires-type = text/css 10": "a.ini:2: static-expires-type: expected type=seconds, found 'text/css 10'",
    "static-gzip = *": "a.ini:2: static-gzip: expected a regular expression, found '*'",
    "http-timeout = 0": "a.ini:2: http-timeout: must be greater than 0, found '0'",
    "forwarded-allow = x": "a.ini:2: forwarded-allow: expected networks such as 10.0.0.0/8, found 'x'",
    "allow-from = unix": "a.ini:2: allow-from: expected networks such as 10.0.0.0/8, found 'unix'",
    "buffer-size = 0": "a.ini:2: buffer-size: must be greater than or equal to 1, found '0'",
    "dispatch = pull": "a.ini:2: dispatch: must be 'auto' or 'push', found 'pull'",
    "protocol = fastcgi": "a.ini:2: protocol: expected uwsgi or http, found 'fastcgi'",
    "chmod-socket = 0660": "a.ini:2: chmod-socket: expected three octal digits such as 660, found '0660'",
    "chmod-socket = true": "a.ini:2: chmod-socket: expected three octal digits such as 660, found 'true'",
    "umask = 9": "a.ini:2: umask: expected octal digits such as 022, found '9'",
    "uid = nobody-here": "a.ini:2: uid: this machine has no user 'nobody-here'",
    "gid = nobody-here": "a.ini:2: gid: this machine has no group 'nobody-here'",
    "chown-socket = root:none": "a.ini:2: chown-socket: this machine has no group 'none'",
    "uid = 99999999999": "a.ini:2: uid: expected a name or a number below 2^32 - 1",
    "allow-from = 10.0.0.0/64": "a.ini:2: allow-from: expected networks such as 10.0.0.0/8, found '10.0.0.0/64'",
    "allow-from =": "a.ini:2: allow-from: expected at least one network",
    "env = =x": "a.ini:2: env: expected NAME=value, found '=x'",
    "pidfile =": "a.ini:2: pidfile: expected the name of a file",
    "logto = 127.0.0.1:514": "a.ini:2: logto: logging to a UDP address isn't served yet",
    "socket = :$(PORT)": "(the environment has no PORT)",
    "set = x": "a.ini:2: set: expected name=value, found 'x'",
    "set = set=set=x=1": "a.ini:2: set: sets itself",
    "set-placeholder = processes=4": "a.ini:2: set-placeholder: processes is an option, not a placeholder",
    "include = a.yaml": "a.ini:2: include: expected a file that ends in .ini, found 'a.yaml'",
    "ini = http://x/y.ini": "a.ini:2: ini: only files are read, found 'http://x/y.ini'",
    "chdir = @(exec://id)": "a.ini:2: chdir: only files are read, found @(exec://id)",
    "chdir = @(gone)": "a.ini:2: chdir: can't read the file of @(gone): No such file or directory",
    "yaml = a.yaml": "a.ini:2: yaml: isn't served here (only ini files are read yet)",
    "x = .%(x)": "a.ini:2: x: more than 10000 replacements in one value, as if it held itself",
}


@pytest.mark.parametrize(("line", "expected"), BAD_VALUES.items(), ids=BAD_VALUES.keys())
def test_bad_values(line: str, expected: str) -> None:
    (message,) = ini_failure(line)
    assert expected in message


def test_all_errors_come_at_once_in_the_order_of_the_lines() -> None:
    lines = "strict = 1\nuid = nobody-here\nprocesses = 5000\nnonsense-here = 1\nsocket = =0\nemperor = /x"
    found = ini_failure(lines, "--bogus-option")
    assert [message.split(": ")[:2] for message in found] == [
        ["command line", "--bogus-option"],
        ["a.ini:3", "uid"],
        ["a.ini:4", "processes"],
        ["a.ini:5", "nonsense-here"],
        ["a.ini:6", "socket"],
        ["a.ini:7", "emperor"],
    ]


LOOPS = {
    "itself": {"a": "[uwsgi]\ninclude = a.ini\n"},
    "two files": {"a": "[uwsgi]\nini = b.ini\n", "b": "[uwsgi]\ninclude = ./a.ini\n"},
    "sections": {"a": "[uwsgi]\nini = :x\n[x]\nini = :uwsgi\n"},
}


@pytest.mark.parametrize("files", LOOPS.values(), ids=LOOPS.keys())
def test_files_that_include_each_other(files: dict[str, str]) -> None:
    (message,) = failure("-s", "/s", "--ini", "a.ini", **files)
    assert "this file includes itself: /srv/app/a.ini → " in message


def test_a_long_chain_of_files_is_an_error() -> None:
    files = {f"f{i}": f"[uwsgi]\nini = f{i + 1}.ini\n" for i in range(50)}
    (message,) = failure("-s", "/s", "--ini", "f0.ini", **files)
    assert message == "f31.ini:2: ini: files include each other more than 32 deep"


def test_files_that_double_at_every_step_are_an_error() -> None:
    files = {f"f{i}": f"[uwsgi]\nini = f{i + 1}.ini\nini = f{i + 1}.ini\n" for i in range(20)} | {"f20": "[uwsgi]\n"}
    assert any("more than 256 files" in message for message in failure("-s", "/s", "--ini", "f0.ini", **files))


def test_a_nul_byte_is_an_error() -> None:
    assert "holds a NUL byte" in failure("-s", "/s", "a.ini", a=b"[uwsgi]\nchdir = \0\n")[0]
    assert "holds a NUL byte" in ini_failure("chdir = @(b.ini)", "--set", "chdir=x\0")[-1]


# The customer's files, in short


BUSYNESS = """
strict = true
master = true
vacuum = true                        ; Delete sockets during shutdown
single-interpreter = true
die-on-term = true                   ; Shutdown when receiving SIGTERM
need-app = true
disable-logging = true               ; Disable built-in logging
log-4xx = true                       ; but log 4xx's anyway
harakiri = 60                        ; forcefully kill workers after 60 seconds
{hook} = true           ; allow workers to trap signals
max-requests = 1000                  ; Restart workers after this many requests
worker-reload-mercy = 60             ; How long to wait before forcefully killing workers
cheaper-algo = busyness
processes = 128                      ; Maximum number of workers allowed
cheaper = 8                          ; Minimum number of workers allowed
"""


def test_a_misspelling_in_a_strict_file_is_one_clear_error() -> None:
    assert ini_failure(BUSYNESS.format(hook="py-callos-afterfork")) == [
        "a.ini:12: py-callos-afterfork: unknown option (did you mean py-call-osafterfork?)"
    ]


def test_once_mended_it_runs() -> None:
    loaded = ini(BUSYNESS.format(hook="py-call-osafterfork"))
    assert loaded.settings.processes.processes == 128
    assert (loaded.settings.cheaper.minimum, loaded.settings.cheaper.algorithm) == (8, Algorithm.BUSYNESS)
    assert not loaded.settings.logging.requests
    assert loaded.settings.logging.requests_4xx
    assert loaded.warnings == (
        "a.ini:5, 7, 9, 10, 11, 12, 13, 14, 16, 17: text after ; or # is part of the value"
        " (it does no harm in these lines)",
    )


CHEAPER = {
    # lines, (cheaper, workers at the start), what is noted
    "as many as cheaper at first": ("cheaper = 2", (2, 2), ""),
    "cheaper-initial": ("cheaper = 2\ncheaper-initial = 4", (2, 4), ""),
    "cheaper-initial below cheaper": (
        "cheaper = 3\ncheaper-initial = 2",
        (3, 3),
        "a.ini:4: cheaper-initial: 2 counts as 3",
    ),
    "cheaper-initial above processes": (
        "cheaper = 3\ncheaper-initial = 20",
        (3, 8),
        "a.ini:4: cheaper-initial: 20 counts as 8",
    ),
    "cheaper-initial alone": ("cheaper-initial = 4", (0, 8), "a.ini:3: cheaper-initial: has no effect without cheaper"),
    "cheap": ("cheap = true\ncheaper = 2", (2, 0), ""),
    "no cheaper": ("idle = 60", (0, 8), ""),
    "a zero": ("cheaper = 2\ncheaper-step = 0", (2, 2), "a.ini:4: cheaper-step: 0 counts as the default"),
    "a flag for a number": ("cheaper = true", (0, 8), "a.ini:3: cheaper: 'true' is no number and counts as 0"),
    "an algorithm that nobody knows": (
        "cheaper = 2\ncheaper-algo = magic",
        (2, 2),
        "a.ini:4: cheaper-algo: there is no such algorithm, spare is used"
        " (spare, spare2, backlog, busyness, manual exist)",
    ),
    "the list of them": ("cheaper-list = true", (0, 8), "cheaper algorithms: spare, spare2, backlog, busyness, manual"),
    "die-on-idle alone": ("die-on-idle = true", (0, 8), "die-on-idle has no effect without idle = seconds"),
}


@pytest.mark.parametrize(("lines", "workers", "note"), CHEAPER.values(), ids=CHEAPER)
def test_cheaper(lines: str, workers: tuple[int, int], note: str) -> None:
    loaded = ini(f"processes = 8\n{lines}")
    assert (loaded.settings.cheaper.minimum, loaded.settings.first_workers) == workers
    assert "\n".join(loaded.warnings) == note


NOT_CHEAPER = {
    "as many as processes": ("cheaper = 8", "cheaper: must be lower than processes (8), found 8"),
    "a hard limit alone": ("cheaper = 2\ncheaper-rss-limit-hard = 9", "needs cheaper-rss-limit-soft"),
    "a hard limit below the soft one": (
        "cheaper = 2\ncheaper-rss-limit-soft = 9\ncheaper-rss-limit-hard = 9",
        "cheaper-rss-limit-hard (9) must be greater than cheaper-rss-limit-soft (9)",
    ),
    "less than nothing": ("cheaper = -1", "must not be negative"),
}


@pytest.mark.parametrize(("lines", "problem"), NOT_CHEAPER.values(), ids=NOT_CHEAPER)
def test_what_cheaper_can_not_be(lines: str, problem: str) -> None:
    (error,) = ini_failure(f"processes = 8\n{lines}")
    assert problem in error


def test_a_site_with_magic_variables_and_maths() -> None:
    text = (
        "[uwsgi]\nchdir = .\nchmod-socket=664\nmodule = mysite.wsgi:application\nmaster = True\n"
        "processes = %(%k * 4)\npidfile = /tmp/%n.pid\nuwsgi-socket = /tmp/%n.sock\nlisten = 8192\n"
        "daemonize = /home/log/uwsgi/%n_uwsgi.log\nprocname-master = uwsgi --ini %n.ini (master)\nneed-app = True\n"
    )
    settings = run("--ini", "site.ini", site=text).settings
    assert settings.processes.processes == 8
    assert settings.sockets.addresses[0].path == "/tmp/site.sock"
    assert settings.identity.daemonize == settings.logging.file == "/home/log/uwsgi/site_uwsgi.log"
    assert settings.titles.master == "uwsgi --ini site.ini (master)"


# Hostile input: nothing but typed errors, and no more work than the input is long

OPTION_NAMES = st.sampled_from([*sorted(BY_NAME), "x", "y", "end"])
ODD_TEXT = st.text(alphabet="%$@()[]=:;#*/-+.,0123456789abxy_ \t\"'é\0\x1b", max_size=20)


@given(st.lists(st.tuples(OPTION_NAMES, ODD_TEXT), max_size=12), st.text(max_size=30))
def test_any_file_loads_or_fails_with_typed_errors(lines: list[tuple[str, str]], rest: str) -> None:
    text = "[uwsgi]\n" + "\n".join(f"{name} = {value}" for name, value in lines) + "\n" + rest
    with suppress(ConfigErrors):
        loaded = run("--ini", "a.ini", "-s", "/s", a=text.encode("utf-8", "surrogatepass"))
        assert loaded.settings.sockets.addresses


@given(st.lists(st.text(max_size=12) | st.builds("--{}={}".format, OPTION_NAMES, ODD_TEXT), max_size=8))
def test_any_command_line_loads_or_fails_with_typed_errors(argv: list[str]) -> None:
    with suppress(ConfigErrors):
        run(*argv)


def test_work_grows_with_the_file_and_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 20,000 unknown names: each is added once, and the costly search for names is bounded."""
    searches: list[str] = []
    compare = spelling.distance

    def counted(left: str, right: str, limit: int) -> int:
        searches.append(left)
        return compare(left, right, limit)

    added: list[str] = []
    add = sources._Reader.add

    def counted_add(self: sources._Reader, assignment: Any) -> None:
        added.append(assignment.name)
        add(self, assignment)

    monkeypatch.setattr(spelling, "distance", counted)
    monkeypatch.setattr(sources._Reader, "add", counted_add)
    spelling.nearest.cache_clear()
    text = "[uwsgi]\n" + "".join(f"unheard-of-{i} = %(unheard-of-0)x\n" for i in range(20_000))
    loaded = run("--ini", "a.ini", "-s", "/s", a=text)
    assert len(added) == 20_002
    assert len(set(searches)) <= spelling.MAX_SUGGESTIONS
    assert len(loaded.warnings) <= 100


@pytest.mark.parametrize(("lines", "name", "expected"), WORKING.values(), ids=WORKING.keys())
def test_settings_survive_as_text(lines: str, name: str, expected: Any) -> None:
    """An upgrade passes them on as JSON."""
    settings = ini(lines).settings
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings
