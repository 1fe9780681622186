"""Every option that a configuration for Python applications can name: one row each, in one table.

Names, letters, kinds and defaults are uWSGI's (2.0.31) where uWSGI has the option; rows that say so are ours.
From a row come how the command line takes the option, how its value is read, which setting it fills, and what
people are told when it does nothing here. A part that starts to serve an option changes its row from `later`
to `works`, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How the text of a value is read."""

    FLAG = "flag"  # on, unless the value is false, off, no or 0
    CLEARED = "cleared flag"  # a flag that switches its setting off
    INT = "int"  # not negative
    SIGNED = "signed int"
    U64 = "u64"
    U16 = "u16"  # larger numbers count as 65535
    MEGABYTES = "megabytes"
    MILLISECONDS = "milliseconds"
    OCTAL = "octal"
    MODE = "mode"  # three octal digits
    KEEPALIVE = "seconds, or on or off"
    TEXT = "text"
    SPACED = "text and a space"
    FILE = "file name"
    LOG = "log file"
    USER = "user"
    GROUP = "group"
    OWNER = "user:group"
    PAIR = "name=value"  # a new assignment
    ACTION = "action"  # acts and ends
    LOGIC = "logic"  # steers which lines are read
    # from here on: may be given several times, all count, in order
    LIST = "list"
    SOCKETS = "addresses"
    TLS_SOCKETS = "TLS addresses"
    NETWORKS = "networks"
    PATHS = "paths"
    VARIABLES = "variables"
    GROUPS = "groups"
    HOOKS = "hooks"
    COMMANDS = "shell commands"  # hooks with the verb exec
    DAEMONS = "daemons"
    TOUCH_COMMANDS = "file and shell command"
    TOUCH_HOOKS = "file and hook"


NUMBERS = frozenset({Kind.INT, Kind.SIGNED, Kind.U64, Kind.U16, Kind.MEGABYTES, Kind.MILLISECONDS})
FLAGS = frozenset({Kind.FLAG, Kind.CLEARED})
LISTS = frozenset(list(Kind)[list(Kind).index(Kind.LIST) :])


class Argument(StrEnum):
    """Whether the command line gives the option a value; in files every option may have one."""

    NONE = "none"
    OPTIONAL = "optional"  # only glued: --need-app=1, -C664
    REQUIRED = "required"


class State(StrEnum):
    """What the option does here, today."""

    WORKS = "works"
    ALWAYS_ON = "always on here"
    NO_EFFECT = "no effect yet"
    REFUSED = "refused"


class Takes(StrEnum):
    """What brings about a change of a working option, while the server runs."""

    RELOAD = "a reload"
    UPGRADE = "wsgimaster upgrade"
    OTHER_WORKERS = "wsgimaster upgrade (the workers end first)"
    RESTART = "a restart"


@dataclass(frozen=True, slots=True)
class Option:
    """One row: an option with all its names, which share one value."""

    names: tuple[str, ...]  # the first is the canonical one
    kind: Kind
    argument: Argument
    state: State
    help: str
    short: str = ""  # the letter after a single dash
    default: str = ""  # as text; "": off or unset
    field: str = ""  # the setting that a working option fills, "section.field"
    reason: str = ""  # why it is always on, or refused and what to use instead
    ours: bool = False  # uWSGI doesn't have it
    takes: Takes = Takes.RELOAD


def _row(names: str, kind: Kind, state: State, help_: str, **more: str) -> Option:
    short, default = more.get("short", ""), more.get("default", "")
    natural = Argument.NONE if kind in FLAGS or kind is Kind.ACTION else Argument.REQUIRED
    argument = Argument(more["argument"]) if "argument" in more else natural
    field, reason, ours = more.get("field", ""), more.get("reason", ""), bool(more.get("ours"))
    takes = Takes(more.get("takes", Takes.RELOAD))
    return Option(tuple(names.split()), kind, argument, state, help_, short, default, field, reason, ours, takes)


def works(names: str, kind: Kind, field: str, help_: str, **more: str) -> Option:
    """Return the row of an option that fills a setting ("": it acts while the configuration is read)."""
    return _row(names, kind, State.WORKS, help_, field=field, **more)


def fixed(names: str, kind: Kind, field: str, help_: str, **more: str) -> Option:
    """Return the row of an option that works, but whose change takes a restart."""
    return _row(names, kind, State.WORKS, help_, field=field, takes=Takes.RESTART, **more)


def upgraded(names: str, kind: Kind, field: str, help_: str, **more: str) -> Option:
    """Return the row of an option that works, but whose change takes an upgrade: only the master's start reads it."""
    return _row(names, kind, State.WORKS, help_, field=field, takes=Takes.UPGRADE, **more)


def binding(names: str, kind: Kind, field: str, help_: str, **more: str) -> Option:
    """Return the row of an option that works, and to which running workers are bound."""
    return _row(names, kind, State.WORKS, help_, field=field, takes=Takes.OTHER_WORKERS, **more)


def always(names: str, kind: Kind, help_: str, reason: str, **more: str) -> Option:
    """Return the row of an option whose effect is always there."""
    return _row(names, kind, State.ALWAYS_ON, help_, reason=reason, **more)


def later(names: str, kind: Kind, help_: str, **more: str) -> Option:
    """Return the row of an option that is known and does nothing yet."""
    return _row(names, kind, State.NO_EFFECT, help_, **more)


def later_each(names: str, kind: Kind, help_: str) -> list[Option]:
    """Return one row per name, for families of options that differ in when or where they apply."""
    return [later(name, kind, help_) for name in names.split()]


def refused(names: str, kind: Kind, help_: str, reason: str, **more: str) -> Option:
    """Return the row of an option with which nothing starts; the reason says what to use instead."""
    return _row(names, kind, State.REFUSED, help_, reason=reason, **more)


def refused_each(names: str, kind: Kind, help_: str, reason: str, **more: str) -> list[Option]:
    """Return one refused row per name."""
    return [refused(name, kind, help_, reason, **more) for name in names.split()]


def router_family(name: str, more: str) -> list[Option]:
    """Return the refused rows of one of uWSGI's routers: those that all have, and `more`."""
    common = (
        "processes workers zerg use-cache use-pattern use-base fallback use-code-string use-socket to"
        " gracetime events subscription-server timeout stats stats-server ss harakiri buffer-size"
    )
    names = [name, *(f"{name}-{word}" for word in f"{common} {more}".split())]
    return [refused(each, LIST, "router in front of other servers", ROUTER) for each in names]


FLAG, CLEARED, INT, SIGNED, U64, U16 = Kind.FLAG, Kind.CLEARED, Kind.INT, Kind.SIGNED, Kind.U64, Kind.U16
MEGABYTES, MILLISECONDS, OCTAL, MODE = Kind.MEGABYTES, Kind.MILLISECONDS, Kind.OCTAL, Kind.MODE
TEXT, LIST = Kind.TEXT, Kind.LIST
ACTION, LOGIC, USER, GROUP = Kind.ACTION, Kind.LOGIC, Kind.USER, Kind.GROUP
OPTIONAL, REQUIRED, NONE = Argument.OPTIONAL, Argument.REQUIRED, Argument.NONE

# Reasons that several refused options share.
CLUSTER = "use the cluster manager at hand"
EMPEROR = "run one service per site, for example with a systemd template unit"
FASTCGI = "only uwsgi and HTTP are spoken, both by nginx, Apache and HAProxy"
ISOLATION = "use systemd or a container for this"
NATIVE = "code in C can't be plugged in"
NOT_YET = "not served yet"
NOT_WSGI = "use module or wsgi-file with a WSGI application"
ONLY_INI = "only ini files are read yet"
OWN_TOOLS = "use curl, nc or the shell for this"
PASTE = "write a file for wsgi-file that calls paste.deploy.loadapp"
ROUTER = "put nginx or HAProxy in front"
SUBSCRIPTIONS = "name the backends in the load balancer"
THREADS = "use threads = N, up to 250 per process"
UNROLL = "not served yet; write the lines out"
UWSGI_BUILD = "it belongs to uWSGI's own build"
ZERG = "reloads keep the listening sockets open"

# fmt: off
TABLE: dict[str, tuple[Option, ...]] = {
"Listening": (
    fixed("socket", Kind.SOCKETS, "sockets.addresses", "listen here for what `protocol` says", short="s"),
    fixed("uwsgi-socket", Kind.SOCKETS, "sockets.addresses", "listen here for the uwsgi protocol"),
    fixed("http-socket", Kind.SOCKETS, "sockets.addresses", "listen here for HTTP"),
    fixed("http httprouter", Kind.SOCKETS, "sockets.addresses",
          "listen here for HTTP, and give workers requests with their whole bodies"),
    fixed("http11-socket", Kind.SOCKETS, "sockets.addresses", "listen here for HTTP"),
    fixed("protocol socket-protocol", TEXT, "sockets.addresses", "what `socket` speaks: uwsgi or http",
          default="uwsgi"),
    fixed("abstract-socket", FLAG, "sockets.addresses", "take paths as abstract names", short="a"),
    upgraded("listen", INT, "sockets.waiting_limit", "requests that may wait for a worker, over all sockets",
          short="l", default="4096, or somaxconn if that is less"),
    upgraded("queue-timeout", INT, "sockets.queue_timeout", "seconds that a request may wait for a worker, then 503",
          default="for ever", ours="yes"),
    fixed("chmod-socket chmod", MODE, "sockets.socket_mode", "octal permissions of unix sockets; bare: 666",
          short="C", argument=OPTIONAL),
    fixed("chown-socket", Kind.OWNER, "sockets.socket_owner", "owner of unix sockets, user[:group]"),
    upgraded("socket-timeout", INT, "sockets.timeout", "seconds to wait until a client sends or takes bytes",
          short="z", default="4"),
    upgraded("buffer-size", U16, "sockets.buffer_size", "bytes that a request's variables or head may have",
          short="b", default="65535"),
    upgraded("allow-from", Kind.NETWORKS, "sockets.allow_from", "networks that may send uwsgi requests over TCP",
          ours="yes"),
    upgraded("forwarded-allow", Kind.NETWORKS, "sockets.forwarded_allow",
          "networks whose X-Forwarded-* and PROXY lines are believed; unix: those who may connect to unix sockets",
          ours="yes"),
    later("suwsgi-socket ssl-socket", LIST, "listen for the uwsgi protocol in TLS: addr,cert,key"),
    fixed("https-socket", Kind.TLS_SOCKETS, "sockets.addresses",
          "listen here for HTTP in TLS: addr,cert,key[,ciphers[,ca]]"),
    refused("puwsgi-socket", LIST, "listen for the uwsgi protocol with kept connections", "use uwsgi-socket"),
    refused("fastcgi-socket", LIST, "listen for FastCGI", FASTCGI),
    refused("fastcgi-nph-socket", LIST, "listen for FastCGI, answer with a full status line", FASTCGI),
    refused("scgi-socket", LIST, "listen for SCGI", FASTCGI),
    refused("scgi-nph-socket", LIST, "listen for SCGI, answer with a full status line", FASTCGI),
    refused("raw-socket", LIST, "hand connections to the application unread", FASTCGI),
    *later_each("http-socket-modifier1 http-socket-modifier2 https-socket-modifier1 https-socket-modifier2 "
                "fastcgi-modifier1 fastcgi-modifier2 scgi-modifier1 scgi-modifier2 "
                "raw-modifier1 raw-modifier2", U64, "modifier of the requests from such a socket"),
    later("shared-socket", LIST, "bind early, for use as =N"),
    later("undeferred-shared-socket", LIST, "bind early, without deferred accept"),
    later("map-socket", LIST, "socket:worker[,worker]: the only workers that serve it"),
    later("freebind", FLAG, "bind to addresses that the machine doesn't have yet"),
    later("reuse-port", FLAG, "share TCP addresses with other services (SO_REUSEPORT)"),
    later("tcp-fast-open tcp-fastopen", INT, "length of the TCP fast open queue"),
    later("tcp-fast-open-client tcp-fastopen-client", FLAG, "use TCP fast open for own connections"),
    always("tcp-nodelay", FLAG, "send small packets at once", "every TCP connection does"),
    later("so-keepalive", FLAG, "let the kernel probe idle TCP connections"),
    fixed("no-defer-accept", CLEARED, "sockets.defer_accept", "accept TCP clients before they have sent anything"),
    later("so-send-timeout socket-send-timeout so-write-timeout socket-write-timeout", INT,
          "seconds that one send may take", argument=NONE),
    later("socket-sndbuf", U64, "bytes of the kernel's send buffer"),
    later("socket-rcvbuf", U64, "bytes of the kernel's receive buffer"),
    later("shutdown-sockets", FLAG, "close listening sockets when a worker stops gracefully"),
    upgraded("enable-proxy-protocol", FLAG, "sockets.http_proxy_protocol",
             "take the client's address from a PROXY line, from forwarded-allow"),
    always("max-vars", INT, "half the number of variables per request", "only buffer-size bounds them",
           short="v", default="64"),
    later("limit-post", U64, "bytes that a request body may have"),
    later("post-buffering", U64, "read bodies before the application runs; from so many bytes on to disk"),
    later("post-buffering-bufsize", U64, "bytes per read of such a body", default="8192"),
    later("body-read-warning", U64, "MiB of body in memory that make a warning", default="8"),
    later("upload-progress", TEXT, "directory for progress files of uploads"),
    later("chunked-input-limit", U64, "bytes that a chunk may have", default="1048576"),
    later("chunked-input-timeout", INT, "seconds to wait for a chunk"),
    later("response-headers-limit", INT, "bytes that the head of a response may have", default="65536"),
    always("close-on-exec", FLAG, "keep connections from programs that the application starts",
           "no descriptor is handed on"),
    always("close-on-exec2", FLAG, "keep listening sockets from programs that the application starts",
           "no descriptor is handed on"),
    always("no-fd-passing", FLAG, "take no descriptors from clients", "none is ever taken"),
    always("skip-zero", FLAG, "don't take descriptor 0 as a listening socket", "fd://0 has to be written"),
    later("honour-stdin", FLAG, "leave standard input alone"),
    later("safe-fd fd-safe", LIST, "descriptor that stays open across reloads"),
    refused("zerg", LIST, "take over the sockets of a zerg server", ZERG),
    refused("zerg-fallback", FLAG, "bind if the zerg server is away", ZERG),
    refused("zerg-server", TEXT, "socket that hands out listening sockets", ZERG),
    refused("zergpool zerg-pool", LIST, "process that owns sockets for others", ZERG),
    later("udp", TEXT, "UDP address of the master"),
    later("multicast", TEXT, "multicast group to join"),
    later("multicast-ttl", INT, "time to live of multicast packets", default="1"),
    later("multicast-loop", INT, "whether own multicast packets come back", default="1"),
    later("notify-socket", TEXT, "unix datagram socket for notes to the master"),
    later("ssl-verbose", FLAG, "log TLS errors in full"),
    later("ssl-verify-depth", INT, "longest chain of client certificates", default="1", argument=OPTIONAL),
    later("ssl-sessions-use-cache ssl-session-use-cache", TEXT, "cache for TLS sessions", argument=OPTIONAL),
    later("ssl-sessions-timeout ssl-session-timeout", INT, "seconds that a TLS session lives", default="300"),
    later("sni", TEXT, "certificate by server name: name cert,key"),
    later("sni-regexp", TEXT, "certificate by pattern of the server name"),
    later("sni-dir", TEXT, "directory of certificates by server name"),
    later("sni-dir-ciphers", TEXT, "ciphers for those"),
    refused("ssl-enable3 ssl-enable-sslv3", FLAG, "allow SSL 3", "it is broken, clients must speak TLS 1.2"),
    refused("ssl-enable-tlsv1", FLAG, "allow TLS 1.0", "it is broken, clients must speak TLS 1.2"),
    later("ssl-option", LIST, "number of an OpenSSL option", argument=NONE),
    later("ssl-tmp-dir", TEXT, "directory for temporary TLS files"),
),
"HTTP front": (
    fixed("https", Kind.TLS_SOCKETS, "sockets.addresses",
          "listen here for HTTPS: addr,cert,key[,ciphers[,ca]]; !ca: clients must have a certificate of it"),
    fixed("https2", Kind.TLS_SOCKETS, "sockets.addresses",
          "the same as addr=,cert=,key=,ciphers=,client_ca="),
    later("https-export-cert", FLAG, "hand on the client's certificate as HTTPS_CC"),
    later("https-session-context", TEXT, "context of TLS sessions"),
    later("http-to-https", TEXT, "listen for HTTP and send everybody to HTTPS"),
    upgraded("http-processes http-workers", INT, "sockets.tls_processes", "processes that end TLS, for https",
             default="1"),
    later("http-var", LIST, "NAME=value added to every request"),
    refused("http-to", LIST, "backend to which requests go", ROUTER),
    refused("http-zerg", TEXT, "zerg server of the router", ZERG),
    refused("http-fallback", LIST, "backend for when the others fail", ROUTER),
    later("http-modifier1", INT, "modifier1 of the requests from HTTP"),
    later("http-modifier2", INT, "modifier2 of the requests from HTTP"),
    refused("http-use-cache", TEXT, "find the backend in a cache", ROUTER, argument=OPTIONAL),
    refused("http-use-pattern", TEXT, "find the backend by a pattern of paths", ROUTER),
    refused("http-use-base", TEXT, "find the backend in a directory", ROUTER),
    refused("http-use-code-string", TEXT, "find the backend with code", ROUTER),
    later("http-use-socket", TEXT, "own socket to which requests go", argument=OPTIONAL),
    later("http-gracetime", INT, "seconds before a failed backend is tried again", default="30"),
    later("http-events", INT, "events taken per round", default="64"),
    refused("http-subscription-server", TEXT, "address where backends announce themselves", SUBSCRIPTIONS),
    refused("http-subscription-fallback-key", TEXT, "key for when no backend fits", SUBSCRIPTIONS),
    upgraded("http-timeout", INT, "sockets.http_timeout",
             "seconds that an HTTP client may take for a piece of its body or its answer, while no worker waits",
             default="60"),
    upgraded("http-buffer", U64, "sockets.http_buffer", "bytes of a body, or of an answer, that are kept in memory",
             default="1048576", ours="yes"),
    later("http-headers-timeout", INT, "seconds for the head of an HTTP request"),
    later("http-connect-timeout", INT, "seconds to reach a backend"),
    always("http-manage-expect", U64, "answer Expect: 100-continue", "it is answered when the body is read",
           argument=OPTIONAL),
    upgraded("http-keepalive", Kind.KEEPALIVE, "sockets.http_keepalive",
             "seconds that an HTTP connection may wait for its next request; 0: one request each", argument=OPTIONAL,
             default="75"),
    always("http-auto-chunked", FLAG, "send responses without a length in chunks", "all HTTP/1.1 clients get them"),
    later("http-auto-gzip", FLAG, "compress responses that ask for it"),
    later("http-raw-body", FLAG, "hand on bodies uncounted"),
    later("http-websockets", FLAG, "hand on websockets"),
    always("http-chunked-input", FLAG, "hand on chunked requests", "wsgi.input gives their bodies, decoded"),
    later("http-quiet", FLAG, "don't log failed backends", argument=REQUIRED),
    later("http-cheap", FLAG, "start the router when somebody needs it"),
    later("http-stats http-stats-server http-ss", TEXT, "address of the router's figures"),
    later("http-harakiri", INT, "seconds after which a stuck router is killed"),
    later("http-stud-prefix", TEXT, "peers that send a stud prefix"),
    later("http-uid", USER, "user of the router"),
    later("http-gid", GROUP, "group of the router"),
    refused("http-resubscribe", LIST, "server to which announcements go on", SUBSCRIPTIONS),
    later("http-buffer-size", U64, "bytes of the router's buffers"),
    later("http-server-name-as-http-host", FLAG, "SERVER_NAME is the Host header", argument=REQUIRED),
    later("http-manage-source", FLAG, "hand on SOURCE requests"),
    later("http-manage-rtsp", FLAG, "hand on RTSP"),
    upgraded("http-enable-proxy-protocol", FLAG, "sockets.http_proxy_protocol",
             "take the client's address from a PROXY line, from forwarded-allow", argument=OPTIONAL),
),
"Configuration": (
    works("ini", TEXT, "", "read this ini file, or file:section, or :section of the same file"),
    works("include", TEXT, "", "read this file as if its lines stood here"),
    works("strict", FLAG, "", "unknown options are errors"),
    works("set", Kind.PAIR, "", "name=value: set an option or define a placeholder", short="S"),
    works("set-placeholder set-ph", Kind.PAIR, "", "name=value: define a placeholder for %(name)"),
    works("env", Kind.VARIABLES, "app.environment", "NAME=value for the application's environment"),
    works("show-config", FLAG, "", "log the whole configuration at start"),
    works("help usage", ACTION, "", "print this text", short="h"),
    works("version", ACTION, "", "print the version"),
    refused("xml xmlconfig", TEXT, "read an XML file", ONLY_INI, short="x"),
    refused("yaml yml", TEXT, "read a YAML file", ONLY_INI, short="y"),
    refused("json js", TEXT, "read a JSON file", ONLY_INI, short="j"),
    refused("config", TEXT, "read a file with a plugin", ONLY_INI),
    refused("inherit", TEXT, "read a file last", "not served yet; include reads one on the spot"),
    refused("inject-before", LIST, "text file in front of every file", "not served yet; use include"),
    refused("inject-after", LIST, "text file behind every file", "not served yet; use include"),
    later("fallback-config", TEXT, "file to start with if this one fails"),
    refused("get", LIST, "print the value of an option", "use --show-config"),
    refused("declare-option", TEXT, "define an option of one's own", "write its lines out"),
    refused("declare-option2", TEXT, "define an option of one's own, for later", "write its lines out"),
    refused("resolve", TEXT, "placeholder=host: its address as a placeholder", "write the address"),
    *(refused(name, LOGIC, "repeat the lines up to endfor", UNROLL)
      for name in ("for", "for-glob", "for-times", "for-readline")),
    refused("endfor end-for", LOGIC, "end of the repeated lines", UNROLL, argument=OPTIONAL),
    *(refused(names, LOGIC, "read the lines up to endif on this condition", UNROLL) for names in (
        "if-opt", "if-not-opt", "if-env ifenv", "if-not-env", "if-hostname", "if-not-hostname",
        "if-hostname-match", "if-not-hostname-match", "if-exists ifexists", "if-not-exists",
        "if-plugin ifplugin", "if-not-plugin", "if-file", "if-not-file", "if-dir ifdir if-directory",
        "if-not-dir")),
    *(refused(name, LOGIC, "read the lines up to endif on this condition", UNROLL, argument=NONE)
      for name in ("if-reload", "if-not-reload")),
    refused("endif end-if", LOGIC, "end of the lines under a condition", UNROLL, argument=OPTIONAL),
    later("blacklist", TEXT, "options that are forbidden from here on"),
    later("end-blacklist", FLAG, "all options are allowed again"),
    later("whitelist", TEXT, "the only options that are allowed from here on"),
    later("end-whitelist", FLAG, "all options are allowed again"),
    later("unenv", LIST, "remove a variable from the environment"),
    later("envdir", LIST, "directory with one file per variable"),
    later("early-envdir", TEXT, "such a directory, read at once"),
    later("plugins plugin", LIST, "plugins to load"),
    later("need-plugins need-plugin", LIST, "plugins without which nothing starts"),
    later("plugins-dir plugin-dir", LIST, "where plugins are looked for"),
    later("plugins-list plugin-list", FLAG, "print the plugins"),
    always("autoload", FLAG, "load plugins for unknown options", "nothing has to be loaded"),
    refused("dlopen", TEXT, "load a shared object", NATIVE),
    later("print", TEXT, "print a text while configuring"),
    later("iprint", TEXT, "print a text while reading"),
    refused("exit", TEXT, "end here with this exit code", NOT_YET, argument=OPTIONAL),
    refused("dump-options", FLAG, "print all names of options", "use --help"),
    refused("cflags", ACTION, "print the compiler's flags", UWSGI_BUILD),
    refused("dot-h", ACTION, "print uwsgi.h", UWSGI_BUILD),
    refused("config-py", ACTION, "print uwsgiconfig.py", UWSGI_BUILD),
    refused("build-plugin", TEXT, "build a plugin", UWSGI_BUILD),
    refused("print-sym print-symbol", TEXT, "print a symbol of the binary", UWSGI_BUILD),
    refused("binary-append-data", TEXT, "append data to the binary", UWSGI_BUILD),
    refused("extract", TEXT, "print what a URL holds", OWN_TOOLS),
    refused("connect-and-read", TEXT, "print what a socket sends", OWN_TOOLS),
    later("force-cwd", TEXT, "directory that counts as the one of the start"),
    later("binary-path", TEXT, "program to run when reloading"),
    later("mode", TEXT, "free text, uwsgi.mode"),
),
"Application": (
    works("module wsgi", TEXT, "app.module", "pkg.mod, pkg.mod:callable or pkg.mod:factory()", short="w"),
    works("wsgi-file file", TEXT, "app.file", "Python file with the application"),
    works("callable", TEXT, "app.callable", "name of the application in the module or file",
          default="application"),
    fixed("chdir", TEXT, "app.chdir", "directory to work in"),
    works("pythonpath python-path pp", Kind.PATHS, "app.pythonpath",
          "directory for sys.path, may hold * and ?; the last one comes first"),
    works("home virtualenv venv pyhome", TEXT, "app.home", "virtual environment", short="H"),
    works("lazy-apps", FLAG, "app.lazy", "load the application in each worker, after the fork"),
    works("lazy", FLAG, "app.lazy", "the same as lazy-apps"),
    works("need-app", FLAG, "app.required", "don't start without the application", argument=OPTIONAL),
    refused("eval", TEXT, "Python source of the application", "write it to a file for wsgi-file"),
    later("mount", LIST, "/path=application"),
    later("worker-mount", LIST, "/path=application"),
    later("manage-script-name", FLAG, "split the path into SCRIPT_NAME and PATH_INFO by mounts"),
    always("ignore-script-name", FLAG, "don't choose the application by SCRIPT_NAME", "there is one"),
    later("no-default-app", FLAG, "answer paths outside of all mounts with an error"),
    later("max-apps", INT, "applications per worker", default="64"),
    always("single-interpreter", FLAG, "no sub-interpreters", "every process has one interpreter", short="i"),
    later("vhost", FLAG, "choose the application by host, too"),
    later("vhost-host", FLAG, "choose the application by host, too"),
    later("chdir2", TEXT, "directory to work in, after loading"),
    later("pyargv", TEXT, "more words for sys.argv"),
    later("py-programname py-program-name", TEXT, "program name of the interpreter"),
    later("py-executable py-sys-executable", TEXT, "sys.executable"),
    later("optimize", INT, "Python's -O level", short="O"),
    later("no-site", FLAG, "don't import site"),
    refused("test", TEXT, "import a module and end", "use python -c 'import module'", short="J"),
    later("import pyimport py-import python-import", LIST, "module to import with the application"),
    later("shared-import shared-pyimport shared-py-import shared-python-import", LIST,
          "module to import before the application"),
    later("spooler-import spooler-pyimport spooler-py-import spooler-python-import", LIST,
          "module to import in spoolers"),
    later("pymodule-alias", LIST, "name=module: another name for a module"),
    later("post-pymodule-alias", LIST, "name=module: another name, set later"),
    refused("ini-paste", TEXT, "read [uwsgi] from a Paste file and deploy it", PASTE),
    refused("ini-paste-logged", TEXT, "the same, with its logging", PASTE),
    refused("paste", TEXT, "Paste Deploy address of the application", PASTE),
    later("paste-logger", FLAG, "set up logging from the Paste file"),
    refused("pecan", TEXT, "Pecan configuration of the application", NOT_WSGI),
    refused("web3", TEXT, "Web3 application", NOT_WSGI),
    refused("pump", TEXT, "Pump application", NOT_WSGI),
    refused("wsgi-lite", TEXT, "WSGI Lite application", NOT_WSGI),
    always("reload-os-env", FLAG, "follow changes of the environment by requests", "they make none"),
    always("wsgi-env-behaviour wsgi-env-behavior", TEXT, "holy: a new environ for every request",
           "every request gets a new environ", default="cheat"),
    later("start_response-nodelay", FLAG, "send the head inside start_response"),
    always("wsgi-strict", FLAG, "no special treatment of bytes as a body", "PEP 3333 counts"),
    always("wsgi-accept-buffer wsgi-accept-buffers", FLAG, "take bytearray and memoryview as body",
           "they are taken"),
    later("wsgi-disable-file-wrapper", FLAG, "no wsgi.file_wrapper"),
    later("catch-exceptions", FLAG, "show tracebacks to the client"),
    later("reload-on-exception", FLAG, "end the worker after any exception"),
    later("reload-on-exception-type", LIST, "end the worker after exceptions of this type"),
    later("reload-on-exception-value", LIST, "end the worker after exceptions with this message"),
    later("reload-on-exception-repr", LIST, "end the worker after exceptions with this repr"),
    later("exception-handler", LIST, "where exceptions are reported"),
    always("py-call-osafterfork", FLAG, "run Python's hooks after a fork", "they run"),
    always("py-call-uwsgi-fork-hooks", FLAG, "run Python's hooks around a fork", "they run"),
    later("py-tracebacker", TEXT, "unix socket that shows all threads' stacks"),
    works("py-auto-reload py-autoreload python-auto-reload python-autoreload", INT, "control.autoreload",
          "reload when code changes (needs the extra `autoreload`; 0 is off)"),
    later("py-auto-reload-ignore", LIST, "module that may change"),
    later("py-sharedarea", LIST, "shared memory as a bytearray"),
    refused("python-raw", TEXT, "Python file for raw sockets", FASTCGI),
    refused("python-worker-override", TEXT, "script instead of the worker", "run it with attach-daemon"),
    refused("python-version", ACTION, "print Python's version", "use python --version"),
    refused("pyshell", TEXT, "Python shell in a worker", "use python -i", argument=OPTIONAL),
    refused("pyshell-oneshot", TEXT, "Python shell in a worker, once", "use python -i", argument=OPTIONAL),
    refused("python py pyrun", TEXT, "run a script instead of a server", "use python script.py"),
    later("profiler", TEXT, "log calls or lines of Python"),
    refused("gevent", INT, "serve with so many greenlets", THREADS),
    later("gevent-monkey-patch", FLAG, "let gevent patch the standard library"),
    later("gevent-early-monkey-patch", FLAG, "let gevent patch it before the application loads"),
    later("gevent-wait-for-hub", FLAG, "wait for gevent's hub at the end"),
    refused("loop", TEXT, "event loop of the workers", THREADS),
    later("loop-list loops-list", FLAG, "print the event loops"),
    refused("async", INT, "asynchronous cores per worker", THREADS, default="1"),
    refused("ugreen", FLAG, "serve with uGreen coroutines", THREADS),
    later("ugreen-stacksize", INT, "pages of a uGreen stack"),
    refused("symcall", LIST, "C symbol that handles requests", NATIVE),
    refused("symcall-use-next", FLAG, "look such a symbol up with RTLD_NEXT", NATIVE),
    refused("symcall-register-rpc", LIST, "C symbol as a remote procedure", NATIVE),
    refused("symcall-post-fork", LIST, "C symbol to call after a fork", NATIVE),
),
"Processes and threads": (
    binding("processes workers", INT, "processes.processes", "worker processes", short="p", default="1"),
    binding("threads", INT, "processes.threads", "requests that each process runs at a time", default="1"),
    works("worker-reload-mercy", INT, "processes.reload_mercy", "seconds to end for a worker that is to stop",
          default="60"),
    works("exit-deadline", INT, "processes.exit_deadline",
          "seconds for a leaving worker's threads and atexit functions", default="10", ours="yes"),
    works("limit-as", MEGABYTES, "processes.limit_as", "MiB of address space per worker"),
    works("limit-nproc", INT, "processes.limit_nproc",
          "processes and threads that the user may have for a worker to start one more"),
    fixed("max-fd", INT, "processes.max_fd", "descriptors per process", default="as inherited"),
    binding("dispatch", TEXT, "processes.dispatch",
          "auto: busy workers accept for themselves; push: the master sees every request", default="auto", ours="yes"),
    upgraded("dispatch-order", TEXT, "processes.dispatch_order", "which idle worker is next: warm or even",
          default="warm", ours="yes"),
    always("master", FLAG, "run a master process", "a master always runs", short="M"),
    always("enable-threads", FLAG, "let the application start threads", "it always may", short="T"),
    always("thunder-lock", FLAG, "one worker at a time waits for requests", "the master hands them out"),
    always("reaper", FLAG, "collect ended children after requests", "the master collects its own", short="r"),
    always("no-orphans", FLAG, "workers end with their master", "they always do"),
    later("no-threads-wait", FLAG, "don't wait for threads when a worker stops"),
    works("threads-stacksize thread-stacksize thread-stack-size threads-stack-size", INT,
          "processes.thread_stack_kib", "KiB of a thread's stack", default="as ulimit -s says"),
    works("cpu-affinity", INT, "processes.cpu_affinity", "processors per worker, in turn", default="all"),
    fixed("prio", SIGNED, "processes.priority", "nice value of all processes", default="as inherited"),
    later("never-swap", FLAG, "keep all memory in RAM"),
    later("exit-on-reload", FLAG, "end instead of reloading"),
    later("skip-atexit", FLAG, "workers end without atexit functions"),
    always("skip-atexit-teardown", FLAG, "workers end without tearing Python down", "it is never torn down"),
    later("check-interval", INT, "seconds between the master's checks", default="1"),
    later("forkbomb-delay", INT, "seconds to wait when workers die too fast", default="2"),
    later("backtrace-depth", INT, "frames shown of a crash", default="64"),
    later("use-abort", FLAG, "leave a core file after a crash"),
    refused("worker-exec", TEXT, "program to run as worker", "use attach-daemon"),
    refused("worker-exec2", TEXT, "program to run as worker, after the hooks", "use attach-daemon"),
    later("force-gateway", FLAG, "run a router without a master"),
    later("allowed-modifiers", TEXT, "the only modifier1 values that are served", default="all"),
    later("remap-modifier", TEXT, "from:to: change a modifier1"),
    later("ksm", INT, "merge equal pages of memory every N requests", argument=OPTIONAL),
    later("clock", TEXT, "source of the time", default="unix"),
    later("clock-list clocks-list", FLAG, "print the clocks"),
    always("pcre-jit", ACTION, "compile patterns", "patterns are Python's"),
    refused("no-server", FLAG, "prepare everything and end", NOT_YET),
    refused("command-mode", FLAG, "run one command and end", "run the command itself"),
),
"Process titles": (
    works("auto-procname", FLAG, "titles.automatic", "set process titles"),
    works("procname", TEXT, "titles.every", "title of every process"),
    works("procname-master", TEXT, "titles.master", "title of the master"),
    works("procname-prefix", TEXT, "titles.prefix", "text before every title"),
    works("procname-prefix-spaced", Kind.SPACED, "titles.prefix", "text and a space before every title"),
    works("procname-append", TEXT, "titles.append", "text behind every title"),
),
"Identity and start": (
    fixed("uid", USER, "identity.uid", "user to become, name or number"),
    fixed("gid", GROUP, "identity.gid", "group to become, name or number"),
    fixed("add-gid", Kind.GROUPS, "identity.extra_groups", "one more group"),
    fixed("no-initgroups", CLEARED, "identity.initgroups", "don't take the user's other groups"),
    fixed("umask", OCTAL, "identity.umask", "octal umask", default="as inherited"),
    fixed("daemonize", Kind.LOG, "identity.daemonize", "go to the background, log to this file", short="d"),
    fixed("pidfile", Kind.FILE, "identity.pidfile", "file for the master's process number"),
    fixed("pidfile2", Kind.FILE, "identity.pidfile_late", "the same, written as the user to become"),
    upgraded("vacuum", FLAG, "sockets.vacuum", "remove unix sockets and pidfiles at the end"),
    always("master-as-root", FLAG, "the master stays root", "what needs root is done before it drops it"),
    always("drop-after-init", FLAG, "stay root a little longer", "what needs root is done before"),
    refused("drop-after-apps", FLAG, "load the application as root", "the application never runs as root"),
    refused("immediate-uid", TEXT, "user to become while reading", "use uid"),
    refused("immediate-gid", TEXT, "group to become while reading", "use gid"),
    later("daemonize2", TEXT, "go to the background after loading, log to this file"),
    later("safe-pidfile", TEXT, "pidfile, written after the preparations"),
    later("safe-pidfile2", TEXT, "pidfile, written when workers run"),
    always("die-on-term", FLAG, "SIGTERM stops instead of reloading", "it always stops, gracefully"),
    works("stop", ACTION, "", "stop the server of this pidfile, gracefully, and end", argument=REQUIRED),
    works("reload", ACTION, "", "reload the server of this pidfile, and end", argument=REQUIRED),
    works("pause suspend resume", ACTION, "", "pause the server of this pidfile, or let it go on, and end",
          argument=REQUIRED),
    refused("chroot", TEXT, "directory to become the root", ISOLATION),
    refused("pivot-root pivot_root", TEXT, "new and old root", ISOLATION),
    refused("cap", TEXT, "capabilities to keep", ISOLATION),
    refused("unshare", TEXT, "namespaces to leave", ISOLATION),
    refused("unshare2", TEXT, "namespaces to leave, later", ISOLATION),
    refused("setns-socket", TEXT, "socket that hands out namespaces", ISOLATION),
    refused("setns-socket-skip setns-skip", LIST, "namespace that isn't handed out", ISOLATION),
    refused("setns", TEXT, "namespaces to join", ISOLATION),
    refused("setns-preopen", FLAG, "open namespaces early", ISOLATION),
    refused("jailed", FLAG, "run the hooks of a jail", ISOLATION),
    *refused_each("jail jail-ip4 jail-ip6 jidfile jid-file jail2 libjail jail-attach", TEXT,
                  "FreeBSD jail", "this is a server for Linux"),
    always("refork re-fork", FLAG, "fork again after the drop", "workers are forked late"),
    always("refork-as-root re-fork-as-root", FLAG, "fork again before the drop", "workers are forked late"),
    always("refork-post-jail re-fork-post-jail", FLAG, "fork again in the jail", "workers are forked late"),
    refused("namespace ns", TEXT, "mount namespace", ISOLATION),
    refused("namespace-keep-mount", LIST, "mount to keep in it", ISOLATION),
    refused("namespace-net ns-net", TEXT, "network namespace", ISOLATION),
    refused("cgroup", LIST, "control group", ISOLATION),
    refused("cgroup-opt", LIST, "setting of the control group", ISOLATION),
    refused("cgroup-dir-mode", TEXT, "mode of its directory", ISOLATION, default="0700"),
    refused("privileged-binary-patch", TEXT, "program to run instead, as root", NATIVE),
    refused("unprivileged-binary-patch", TEXT, "program to run instead, as user", NATIVE),
    refused("privileged-binary-patch-arg", TEXT, "the same with arguments", NATIVE),
    refused("unprivileged-binary-patch-arg", TEXT, "the same with arguments", NATIVE),
    later("flock", TEXT, "end if another process has locked this file"),
    later("flock-wait", TEXT, "wait until no other process has locked this file"),
    later("flock2", TEXT, "the same as flock, once in the background"),
    later("flock-wait2", TEXT, "the same as flock-wait, once in the background"),
    later("file-write", LIST, "file=text to write at start"),
    later("binsh", LIST, "shell for commands", default="/bin/sh"),
    later("wait-for-interface wait-interface wait-for-iface wait-iface", LIST, "interface to wait for"),
    later("wait-for-interface-timeout wait-interface-timeout wait-for-iface-timeout wait-iface-timeout",
          INT, "seconds to wait for it"),
    later("wait-for-fs", LIST, "wait for a path"),
    later("wait-for-file", LIST, "wait for a file"),
    later("wait-for-dir", LIST, "wait for a directory"),
    later("wait-for-mountpoint", LIST, "wait for a mounted file system"),
    later("wait-for-fs-timeout", INT, "seconds to wait for any of these"),
    later("wait-for-socket", LIST, "wait until an address accepts"),
    later("wait-for-socket-timeout", INT, "seconds to wait for it"),
),
"Adaptive processes": (
    works("cheaper", INT, "cheaper.minimum",
          "least number of workers (spare2: of idle ones); without it there are always `processes`"),
    works("cheaper-initial", INT, "cheaper.initial", "workers at start", default="as many as cheaper"),
    works("cheaper-algo", TEXT, "cheaper.algorithm",
          "when to add and end workers: spare, spare2, backlog, busyness, manual", default="spare"),
    works("cheaper-algo-list cheaper-algos-list cheaper-list", FLAG, "", "log the names of the algorithms"),
    works("cheaper-step", INT, "cheaper.step", "workers added at a time", default="1"),
    works("cheaper-overload", U64, "cheaper.overload",
          "spare: rounds; busyness: seconds of a window; backlog: waiting requests", default="3"),
    works("cheaper-idle", INT, "cheaper.idle_rounds", "spare2: seconds before an idle worker ends", default="10"),
    upgraded("cheaper-queue-wait", MILLISECONDS, "cheaper.queue_wait",
          "milliseconds; a request that waits for longer while all are busy makes workers start at once; 0: never",
          default="50", ours="yes"),
    works("cheaper-rss-limit-soft", U64, "cheaper.rss_soft", "bytes of all workers' memory from which none is added"),
    works("cheaper-rss-limit-hard", U64, "cheaper.rss_hard", "bytes of memory from which they end, one by one"),
    works("cheaper-busyness-max", U64, "cheaper.busyness_max", "percent above which workers are added", default="50"),
    works("cheaper-busyness-min", U64, "cheaper.busyness_min", "percent below which one ends", default="25"),
    works("cheaper-busyness-multiplier", U64, "cheaper.multiplier",
          "windows of cheaper-overload seconds below that before one ends", default="10"),
    works("cheaper-busyness-penalty", U64, "cheaper.penalty",
          "more windows, if it was missing soon afterwards", default="2"),
    works("cheaper-busyness-verbose", FLAG, "cheaper.verbose", "log also why nothing changes"),
    works("cheaper-busyness-backlog-alert", INT, "cheaper.backlog_alert",
          "waiting requests above which emergency workers start", default="33"),
    works("cheaper-busyness-backlog-multiplier", U64, "cheaper.backlog_multiplier",
          "the multiplier while there are emergency workers", default="3"),
    works("cheaper-busyness-backlog-step", INT, "cheaper.backlog_step", "emergency workers per second", default="1"),
    works("cheaper-busyness-backlog-nonzero", U64, "cheaper.backlog_nonzero",
          "seconds with somebody waiting after which one starts", default="60"),
    works("cheap", FLAG, "cheaper.cheap", "start no worker before the first request"),
    works("idle", INT, "cheaper.idle", "seconds without requests before all workers end"),
    works("die-on-idle", FLAG, "cheaper.die_on_idle", "then the server ends, too"),
),
"Recycling and timeouts": (
    works("max-requests", U64, "recycling.max_requests", "requests after which a worker is replaced", short="R"),
    works("max-requests-delta", U64, "recycling.max_requests_delta",
          "spread: up to this times (processes - 1) more requests, by chance"),
    works("min-worker-lifetime", U64, "recycling.min_lifetime",
          "seconds that a worker lives before max-requests or reload-on-* count", default="10"),
    works("max-worker-lifetime", U64, "recycling.max_lifetime", "seconds after which a worker is replaced"),
    works("max-worker-lifetime-delta", INT, "recycling.max_lifetime_delta",
          "spread: up to this times (processes - 1) more seconds, by chance"),
    works("reload-on-as", MEGABYTES, "recycling.address_space",
          "MiB of address space from which a worker is replaced"),
    works("reload-on-rss", MEGABYTES, "recycling.rss", "MiB of memory from which a worker is replaced"),
    works("evil-reload-on-as", MEGABYTES, "recycling.evil_address_space",
          "MiB of address space from which a worker is killed at once"),
    works("evil-reload-on-rss", MEGABYTES, "recycling.evil_rss",
          "MiB of memory from which a worker is killed at once"),
    works("mem-collector-freq", INT, "recycling.memory_interval", "seconds between looks at the memory", default="1"),
    works("recycle-budget", INT, "recycling.budget", "workers that may be in replacement at a time",
          default="a tenth of them, at least one", ours="yes"),
    works("spawn-timeout", INT, "processes.spawn_timeout",
          "seconds in which a forked worker must give a sign of life (loading the application not counted)",
          default="60", ours="yes"),
    later("mule-reload-mercy", INT, "seconds to end for a mule", default="60"),
    works("reload-mercy", INT, "daemons.mercy", "seconds to end for attached daemons", default="3"),
    works("harakiri", INT, "harakiri.limit", "seconds that a request may take", short="t"),
    works("harakiri-verbose", FLAG, "harakiri.verbose", "log in which system call such a request was stuck"),
    works("harakiri-graceful-timeout", INT, "harakiri.graceful_timeout",
          "raise an exception in the request first, kill this many seconds later (threads = 1)"),
    works("harakiri-graceful-signal", INT, "harakiri.graceful_signal",
          "the signal that brings the exception; the application may have its own handler", default="15"),
    works("harakiri-queue-threshold", INT, "harakiri.queue_threshold",
          "waiting requests below which nothing is killed"),
    later("harakiri-no-arh no-harakiri-arh no-harakiri-after-req-hook", FLAG,
          "don't count what runs after the request"),
    later("mule-harakiri", INT, "seconds that a mule's signal may take"),
),
"Reloading and control": (
    works("reload-surge", INT, "reloading.surge", "new workers that stand beside the old ones during a reload",
          default="as many as memory has room for", ours="yes"),
    works("reload-timeout", INT, "reloading.timeout", "seconds until the first new worker has to be ready",
          default="120", ours="yes"),
    works("reload-check", TEXT, "reloading.check",
          "[host]/path that the first new worker must answer before it serves", ours="yes"),
    upgraded("touch-reload", LIST, "control.touch_reload", "file whose change reloads everything"),
    upgraded("touch-workers-reload", LIST, "control.touch_workers", "file whose change restarts the workers"),
    upgraded("touch-chain-reload", LIST, "control.touch_chain", "file whose change restarts the workers one by one"),
    later("touch-mules-reload", LIST, "file whose change restarts the mules"),
    later("touch-spoolers-reload", LIST, "file whose change restarts the spoolers"),
    upgraded("touch-logrotate", LIST, "control.touch_rotate", "file whose change rotates the log"),
    upgraded("touch-logreopen", LIST, "control.touch_reopen", "file whose change opens the log again"),
    upgraded("touch-exec", Kind.TOUCH_COMMANDS, "control.touch_exec", "file and the command that its change runs"),
    later("touch-signal", LIST, "file and the uwsgi signal that its change raises"),
    upgraded("hook-touch", Kind.TOUCH_HOOKS, "control.touch_hooks", "file and the action:args of its change"),
    later("fs-reload", LIST, "path whose change reloads at once"),
    later("fs-brutal-reload", LIST, "path whose change reloads without waiting"),
    later("fs-signal", LIST, "path and the uwsgi signal of its change"),
    later("reload-on-fd", LIST, "descriptor that reloads when it is readable"),
    later("brutal-reload-on-fd", LIST, "the same, without waiting"),
    later("propagate-touch", FLAG, "changes of one application reload all"),
    later("check-mountpoint mountpoint-check check-mount mount-check", LIST,
          "file system without which the server ends"),
    fixed("master-fifo", LIST, "control.fifos", "named pipe for commands of one letter"),
    fixed("health", Kind.SOCKETS, "control.health", "listen here for /-/live and /-/ready, over HTTP", ours="yes"),
    works("drain-delay", INT, "processes.drain_delay",
          "seconds after SIGTERM in which requests are still taken, while the server says that it isn't ready",
          ours="yes"),
    fixed("control-socket", TEXT, "control.socket", "unix socket for wsgimaster reload, stop, workers and so on",
          default="an abstract name that they find by themselves", ours="yes"),
    refused("signal", TEXT, "send a uwsgi signal to another server", NOT_YET),
),
"Logging": (
    works("disable-logging", CLEARED, "logging.requests", "no line per request", short="L"),
    works("log-4xx", FLAG, "logging.requests_4xx", "but one for each status 400 to 499"),
    works("log-5xx", FLAG, "logging.requests_5xx", "but one for each status 500 to 599"),
    fixed("logto", Kind.LOG, "logging.file", "log to this file", default="stderr"),
    later("logto2", TEXT, "log to this file, opened as the user to become"),
    later("log-format logformat", TEXT, "template of the line per request"),
    later("log-format-strftime logformat-strftime", FLAG, "%(ftime) in it follows log-date"),
    later("log-date logdate log-prefix", TEXT, "date before other lines, as strftime", argument=OPTIONAL),
    later("log-micros", FLAG, "microseconds in the line per request"),
    later("log-x-forwarded-for", FLAG, "the address in it is X-Forwarded-For"),
    later("log-slow", INT, "but one for each that takes so many milliseconds"),
    later("log-zero", FLAG, "but one for each without a body"),
    later("log-big", U64, "but one for each body of so many bytes"),
    later("log-sendfile", FLAG, "but one for each sent with sendfile", argument=REQUIRED),
    later("log-ioerror", FLAG, "but one for each that failed to read and write", argument=REQUIRED),
    later("memory-report", FLAG, "memory in the line per request and in stats", short="m"),
    always("log-master", FLAG, "all output goes through the master", "it always does"),
    always("threaded-logger", FLAG, "writing the log blocks nobody", "it never does"),
    later("log-master-bufsize", U64, "bytes of the longest message", default="8192"),
    later("log-master-stream", FLAG, "messages through a stream"),
    later("log-master-req-stream", FLAG, "lines per request through a stream"),
    later("logger", LIST, "[name] plugin:args: where the log goes"),
    later("req-logger logger-req", LIST, "[name] plugin:args: where lines per request go"),
    later("logger-list loggers-list", FLAG, "print the loggers"),
    later("log-syslog", LIST, "log to syslog", argument=OPTIONAL),
    later("log-socket", LIST, "log to a socket"),
    later("log-route", LIST, "name pattern: lines for one logger"),
    later("log-req-route", LIST, "name pattern: lines per request for one logger"),
    later("log-drain", LIST, "pattern of lines to drop"),
    later("log-filter", LIST, "pattern of the only lines to keep"),
    later("log-encoder", LIST, "how lines are written, for example as JSON"),
    later("log-req-encoder", LIST, "how lines per request are written"),
    later("log-reopen", FLAG, "open the log again when reloading"),
    later("log-truncate", FLAG, "empty the log at start"),
    later("log-maxsize", U64, "bytes from which the log is rotated"),
    later("log-backupname", TEXT, "name of the rotated log"),
    later("logfile-chown", FLAG, "give the log to the user to become"),
    later("logfile-chmod", MODE, "octal permissions of the log", default="640"),
    later("ignore-sigpipe", FLAG, "don't log clients that left"),
    later("ignore-write-errors", FLAG, "don't log failed writes"),
    later("write-errors-tolerance", U64, "failed writes before an exception"),
    later("write-errors-exception-only", FLAG, "raise failed writes, don't log them"),
    later("disable-write-exception", FLAG, "don't raise failed writes"),
    later("rsyslog-packet-size", INT, "bytes per rsyslog packet", default="1024"),
    later("rsyslog-split-messages", FLAG, "split long messages"),
),
"Stats and metrics": (
    later("stats stats-server", TEXT, "address of the stats"),
    later("stats-http", FLAG, "stats over HTTP"),
    later("stats-minified stats-min", FLAG, "stats without blanks"),
    later("stats-no-cores", FLAG, "stats without cores"),
    later("stats-no-metrics", FLAG, "stats without metrics"),
    later("stats-push", LIST, "plugin:args: where stats are sent"),
    later("stats-pusher-default-freq stats-pushers-default-freq", INT, "seconds between that", default="3"),
    later("enable-metrics", FLAG, "keep metrics"),
    later("metric", LIST, "one more metric"),
    later("metric-threshold metric-alarm alarm-metric", LIST, "alarm when a metric passes a value"),
    later("metrics-dir metric-dir", TEXT, "directory with a file per metric"),
    later("metrics-dir-restore metric-dir-restore", FLAG, "start from the values in it"),
    later("metrics-no-cores", FLAG, "no metrics per core"),
    refused("snmp", TEXT, "serve SNMP", "use stats or metrics", argument=OPTIONAL),
    refused("snmp-community", TEXT, "its community", "use stats or metrics"),
    later("carbon", LIST, "address of a Carbon server"),
    later("carbon-timeout", INT, "seconds to reach it", default="3"),
    later("carbon-freq", INT, "seconds between sends", default="60"),
    later("carbon-id", TEXT, "name of this server there"),
    later("carbon-no-workers", FLAG, "no figures per worker"),
    later("carbon-max-retry", INT, "further tries", default="1"),
    later("carbon-retry-delay", INT, "seconds between them", default="7"),
    later("carbon-root", TEXT, "first part of all names there", default="uwsgi"),
    later("carbon-hostname-dots", TEXT, "what replaces dots in host names"),
    later("carbon-name-resolve carbon-resolve-names", FLAG, "look up its name"),
    later("carbon-idle-avg", TEXT, "average without requests: last, zero or none", default="last"),
    later("carbon-use-metrics", FLAG, "send the metrics"),
    later("rrdtool", LIST, "directory for RRD files"),
    later("rrdtool-freq", INT, "seconds between updates", default="300"),
    later("rrdtool-lib", TEXT, "library for them", default="librrd.so"),
),
"Caches, queues, locks": (
    later("cache2", LIST, "a cache, as a list of key=value"),
    later("cache", U64, "items of the cache named default"),
    later("cache-blocksize", U64, "bytes of its largest item", default="65536"),
    later("cache-store", TEXT, "file that keeps it"),
    later("cache-store-sync", INT, "master rounds between writes of that file"),
    later("cache-no-expire", FLAG, "items don't expire"),
    later("cache-expire-freq", INT, "seconds between looks for expired items", default="3"),
    later("cache-report-freed-items", FLAG, "log expired items"),
    later("cache-udp-server", LIST, "address for updates from other caches"),
    later("cache-udp-node", LIST, "address to which updates go"),
    later("cache-sync", TEXT, "cache to copy at start"),
    later("cache-use-last-modified", FLAG, "keep the time of the last change"),
    later("add-cache-item", LIST, "[cache ]key=value to begin with"),
    later("load-file-in-cache", LIST, "[cache ]file to begin with"),
    later("load-file-in-cache-gzip", LIST, "[cache ]file to begin with, compressed"),
    later("check-cache", TEXT, "answer GET from this cache, by URI", argument=OPTIONAL),
    later("queue", INT, "slots of the shared queue"),
    later("queue-blocksize", INT, "bytes of a slot"),
    later("queue-store", TEXT, "file that keeps it"),
    later("queue-store-sync", INT, "master rounds between writes of that file"),
    later("sharedarea", LIST, "shared memory, in pages or as key=value", short="A"),
    later("locks", INT, "further locks"),
    later("lock-engine", TEXT, "kind of locks"),
    later("ftok", TEXT, "path for locks of kind ipcsem"),
    later("persistent-ipcsem", FLAG, "such locks stay"),
    later("rpc-max", U64, "remote procedures", default="64"),
),
"Spooler, mules, timers, daemons": (
    later("spooler", LIST, "directory of tasks", short="Q"),
    later("spooler-external", LIST, "directory of tasks that others do"),
    later("spooler-ordered", FLAG, "tasks in order"),
    later("spooler-chdir", TEXT, "directory to work in"),
    later("spooler-processes", INT, "processes per directory", default="1"),
    later("spooler-quiet", FLAG, "log less"),
    later("spooler-max-tasks", INT, "tasks after which a spooler is replaced"),
    later("spooler-harakiri", INT, "seconds that a task may take"),
    later("spooler-frequency spooler-freq", INT, "seconds between looks for tasks", default="30"),
    later("mule", LIST, "a mule, which runs a file or module:callable", argument=OPTIONAL),
    later("mules", INT, "mules without a program"),
    later("farm", LIST, "name:mule[,mule]"),
    later("mule-msg-size", INT, "bytes of a message to mules", argument=OPTIONAL),
    later("signal-bufsize signals-bufsize", INT, "bytes of the buffer for uwsgi signals"),
    later("signal-timer timer", LIST, "signal and seconds between two"),
    later("signal-rbtimer rbtimer", LIST, "signal and seconds between two"),
    later("cron", LIST, "minute hour day month weekday command; -1 is any, -N every N"),
    later("cron2", LIST, "key=value,... command"),
    later("unique-cron", LIST, "the same as cron, one at a time"),
    later("cron-harakiri", INT, "seconds that a command may take"),
    refused("legion-cron cron-legion", LIST, "cron on the lord of a legion", CLUSTER),
    refused("unique-legion-cron unique-cron-legion", LIST, "the same, one at a time", CLUSTER),
    works("attach-daemon", Kind.DAEMONS, "daemons.attached", "command that runs beside the server"),
    works("attach-control-daemon", Kind.DAEMONS, "daemons.attached", "command whose end is the server's, too"),
    works("smart-attach-daemon", Kind.DAEMONS, "daemons.attached",
          "pidfile[,seconds] and a command that goes to the background; it outlives the server"),
    works("smart-attach-daemon2", Kind.DAEMONS, "daemons.attached",
          "the same for a command that stays in the foreground"),
    works("attach-daemon2", Kind.DAEMONS, "daemons.attached", "command and more, as a list of key=value"),
    *refused_each("legion-attach-daemon legion-smart-attach-daemon legion-smart-attach-daemon2", LIST,
                  "command on the lord of a legion", CLUSTER),
    later("daemons-honour-stdin", FLAG, "such commands keep standard input"),
),
"Alarms": (
    later("alarm", LIST, "name plugin:args"),
    later("alarm-cheap", FLAG, "no thread of their own", argument=REQUIRED),
    later("alarm-freq", INT, "seconds between two equal alarms", default="3"),
    later("alarm-fd", LIST, "alarm when a descriptor is readable"),
    later("alarm-segfault segfault-alarm", LIST, "alarm after a crash"),
    later("alarm-backlog backlog-alarm lq-alarm alarm-lq alarm-listen-queue listen-queue-alarm", LIST,
          "alarm when a socket's queue is full"),
    later("log-alarm alarm-log", LIST, "alarm for lines of a pattern"),
    later("not-log-alarm not-alarm-log", LIST, "but not for these"),
    later("alarm-list alarms-list", FLAG, "print the kinds of alarms"),
    later("alarm-msg-size", U64, "bytes of the longest alarm", default="8192"),
),
"Static files": (
    works("check-static static-check", LIST, "static.check", "directory whose files answer their paths"),
    works("check-static-docroot", FLAG, "static.docroot", "the same for DOCUMENT_ROOT"),
    works("static-map", LIST, "static.maps", "/path=directory"),
    works("static-map2", LIST, "static.maps_kept", "/path=directory, the path kept"),
    works("static-skip-ext", LIST, "static.skip", "ending of files that are never served"),
    works("static-index", LIST, "static.index", "file that answers for its directory"),
    works("static-safe", LIST, "static.safe", "directory to which links may lead"),
    always("static-cache-paths", INT, "seconds to remember real paths", "the kernel does that"),
    always("static-cache-paths-name", TEXT, "cache to remember them in", "the kernel does that"),
    works("mimefile mime-file", LIST, "static.mime_files", "file of content types", default="/etc/mime.types"),
    works("static-expires", LIST, "static.expires", "pattern of files, and seconds"),
    works("static-expires-mtime", LIST, "static.expires_mtime", "pattern of files, and seconds since their change"),
    works("static-expires-uri", LIST, "static.expires_uri", "pattern of URIs, and seconds"),
    works("static-expires-uri-mtime", LIST, "static.expires_uri_mtime",
          "pattern of URIs, and seconds since the file's change"),
    works("static-expires-path-info", LIST, "static.expires_path_info", "pattern of PATH_INFO, and seconds"),
    works("static-expires-path-info-mtime", LIST, "static.expires_path_info_mtime",
          "pattern of PATH_INFO, and seconds since the change"),
    works("static-expires-type", LIST, "static.expires_type", "content type=seconds"),
    works("static-expires-type-mtime", LIST, "static.expires_type_mtime",
          "content type=seconds since the file's change"),
    works("static-gzip", LIST, "static.compressed", "pattern of files with a compressed sister"),
    works("static-gzip-all", FLAG, "static.compressed_all", "all files may have one"),
    works("static-gzip-dir static-gzip-prefix", LIST, "static.compressed_dir", "directory of such files"),
    works("static-gzip-ext static-gzip-suffix", LIST, "static.compressed_ext", "ending of such files"),
    always("honour-range", FLAG, "answer Range requests", "they are answered for static files"),
    later("file-serve-mode fileserve-mode", TEXT, "let the web server send: x-sendfile, x-accel-redirect"),
    later("offload-threads offload-thread", INT, "threads that send files"),
    later("disable-sendfile", FLAG, "read and write instead of sendfile"),
),
"Headers and routing": (
    later("add-header", LIST, "Name: value for every response"),
    later("rem-header del-header", LIST, "header to remove"),
    later("collect-header response-header-collect", LIST, "header and the variable that gets a copy"),
    later("pull-header", LIST, "header and the variable it becomes"),
    later("error-page-403", LIST, "HTML file for our own 403"),
    later("error-page-404", LIST, "HTML file for our own 404"),
    later("error-page-500", LIST, "HTML file for our own 500"),
    refused("cgi-mode", FLAG, "answer with a Status: line", FASTCGI, short="c"),
    *later_each("route route-host route-uri route-qs route-remote-addr route-user-agent route-remote-user "
                "route-referer", LIST, "pattern action:args"),
    *later_each("route-label final-route-label error-route-label response-route-label", LIST,
                "target of goto"),
    *later_each("route-if route-if-not", LIST, "condition:args action:args"),
    later("route-run", LIST, "action:args"),
    *later_each("final-route final-route-status final-route-host final-route-uri final-route-qs "
                "final-route-remote-addr final-route-user-agent final-route-remote-user "
                "final-route-referer final-route-if final-route-if-not final-route-run", LIST,
                "rule for after the response"),
    *later_each("error-route error-route-status error-route-host error-route-uri error-route-qs "
                "error-route-remote-addr error-route-user-agent error-route-remote-user "
                "error-route-referer error-route-if error-route-if-not error-route-run", LIST,
                "rule for when the status is known"),
    *later_each("response-route response-route-status response-route-host response-route-uri "
                "response-route-qs response-route-remote-addr response-route-user-agent "
                "response-route-remote-user response-route-referer response-route-if "
                "response-route-if-not response-route-run", LIST, "rule for before the head is sent"),
    later("router-list routers-list", FLAG, "print the actions"),
    later("websockets-ping-freq websocket-ping-freq", INT, "seconds between pings", default="30"),
    later("websockets-pong-tolerance websocket-pong-tolerance", INT, "seconds to a pong", default="3"),
    later("websockets-max-size websocket-max-size", U64, "KiB of a message", default="1024"),
),
"Hooks": (
    fixed("hook-asap", Kind.HOOKS, "hooks.asap", "action:args at once"),
    fixed("hook-pre-jail", Kind.HOOKS, "hooks.as_root", "action:args before the drop of privileges"),
    fixed("hook-in-jail", Kind.HOOKS, "hooks.as_root", "action:args before the drop of privileges"),
    fixed("hook-post-jail", Kind.HOOKS, "hooks.as_root", "action:args before the drop of privileges"),
    fixed("hook-as-root", Kind.HOOKS, "hooks.as_root", "action:args before the drop of privileges"),
    fixed("hook-as-user", Kind.HOOKS, "hooks.as_user", "action:args after the drop of privileges"),
    works("hook-pre-app", Kind.HOOKS, "hooks.pre_app", "action:args before the application is loaded"),
    works("hook-post-app", Kind.HOOKS, "hooks.post_app", "action:args after the application was loaded"),
    upgraded("hook-as-user-atexit", Kind.HOOKS, "hooks.as_user_atexit", "action:args at the end"),
    works("hook-post-fork", Kind.HOOKS, "hooks.post_fork", "action:args in each new worker"),
    works("hook-accepting", Kind.HOOKS, "hooks.accepting", "action:args in each worker that is about to be ready"),
    works("hook-accepting1", Kind.HOOKS, "hooks.accepting1", "action:args in the first worker, then"),
    later("hook-accepting-once", LIST, "action:args in each worker, once"),
    later("hook-accepting1-once", LIST, "action:args in the first worker, once"),
    fixed("hook-master-start", Kind.HOOKS, "hooks.master_start", "action:args in the master, as it begins"),
    *later_each("hook-as-mule hook-as-gateway", LIST, "action:args in each such process"),
    *refused_each("hook-emperor-start hook-emperor-stop hook-emperor-reload hook-emperor-lost hook-as-vassal "
                  "hook-as-emperor exec-as-vassal exec-as-emperor", LIST, "action around vassals", EMPEROR),
    fixed("exec-asap", Kind.COMMANDS, "hooks.asap", "shell command at once"),
    fixed("exec-pre-jail", Kind.COMMANDS, "hooks.as_root", "shell command before the drop of privileges"),
    fixed("exec-in-jail", Kind.COMMANDS, "hooks.as_root", "shell command before the drop of privileges"),
    fixed("exec-post-jail", Kind.COMMANDS, "hooks.as_root", "shell command before the drop of privileges"),
    fixed("exec-as-root", Kind.COMMANDS, "hooks.as_root", "shell command before the drop of privileges"),
    fixed("exec-as-user", Kind.COMMANDS, "hooks.as_user", "shell command after the drop of privileges"),
    works("exec-pre-app", Kind.COMMANDS, "hooks.pre_app", "shell command before the application is loaded"),
    works("exec-post-app", Kind.COMMANDS, "hooks.post_app", "shell command after the application was loaded"),
    upgraded("exec-as-user-atexit", Kind.COMMANDS, "hooks.as_user_atexit", "shell command at the end"),
    *refused_each("call-asap call-pre-jail call-post-jail call-in-jail call-as-root call-as-user "
                  "call-as-user-atexit call-pre-app call-post-app call-as-vassal call-as-vassal1 "
                  "call-as-vassal3 call-as-emperor call-as-emperor1 call-as-emperor2 call-as-emperor4", LIST,
                  "C symbol to call at that moment", NATIVE),
    *refused_each("mount-asap mount-pre-jail mount-post-jail mount-in-jail mount-as-root mount-as-vassal "
                  "mount-as-emperor", LIST, "file system to mount at that moment", ISOLATION),
    *refused_each("umount-asap umount-pre-jail umount-post-jail umount-in-jail umount-as-root "
                  "umount-as-vassal umount-as-emperor", LIST, "file system to unmount", ISOLATION),
    refused("after-request-hook after-request-call", LIST, "C symbol to call after requests", NATIVE),
),
"Many servers": (
    refused("emperor", LIST, "directory of configurations, one server each", EMPEROR),
    refused("emperor-freq", INT, "seconds between looks at it", EMPEROR, default="3"),
    refused("emperor-tyrant", FLAG, "each server as the owner of its file", EMPEROR),
    refused("emperor-stats emperor-stats-server", TEXT, "address of the emperor's stats", EMPEROR),
    *refused_each("emperor-throttle emperor-max-throttle emperor-required-heartbeat emperor-curse-tolerance "
                  "emperor-broodlord heartbeat vassal-sos vassal-sos-backlog", INT,
                  "how the emperor keeps its vassals", EMPEROR),
    *refused_each("vassals-inherit vassals-include vassals-inherit-before vassals-include-before", LIST,
                  "file for all vassals", EMPEROR),
    refused("vassals-set vassal-set", LIST, "option for all vassals", EMPEROR),
    *refused_each("vassals-start-hook vassals-stop-hook", TEXT, "command around vassals", EMPEROR),
    *refused_each("emperor-nofollow emperor-tyrant-nofollow early-emperor emperor-magic-exec "
                  "emperor-no-blacklist emperor-graceful-shutdown imperial-monitor-list "
                  "imperial-monitors-list", FLAG, "how the emperor works", EMPEROR),
    *refused_each("emperor-procname emperor-pidfile emperor-proxy-socket emperor-wrapper "
                  "emperor-wrapper-override emperor-wrapper-fallback emperor-on-demand-extension "
                  "emperor-on-demand-ext emperor-on-demand-directory emperor-on-demand-dir "
                  "emperor-on-demand-exec emperor-extra-extension emperor-extra-ext emperor-use-clone "
                  "emperor-cap vassals-cap vassal-cap", TEXT, "how the emperor works", EMPEROR),
    refused("subscribe-to st subscribe", LIST, "router to announce this server to", SUBSCRIPTIONS),
    refused("subscribe2", LIST, "the same, as a list of key=value", SUBSCRIPTIONS),
    *refused_each("subscribe-freq subscription-tolerance subscriptions-sign-check-tolerance weight", INT,
                  "how this server is announced", SUBSCRIPTIONS),
    *refused_each("subscription-dotsplit subscribe-with-modifier1 start-unsubscribed "
                  "unsubscribe-on-graceful-reload subscriptions-use-credentials auto-weight", FLAG,
                  "how this server is announced", SUBSCRIPTIONS),
    *refused_each("subscription-algo subscription-notify-socket subscriptions-credentials-check "
                  "subscriptions-sign-check subscriptions-sign-skip-uid", TEXT,
                  "how this server is announced", SUBSCRIPTIONS),
    *refused_each("legion legion-mcast legion-node legion-freq legion-tolerance legion-death-on-lord-error "
                  "legion-skew-tolerance legion-lord legion-unlord legion-setup legion-death legion-join "
                  "legion-node-joined legion-node-left legion-quorum legion-scroll legion-scroll-max-size "
                  "legion-scroll-list-max-size", LIST, "member of a cluster", CLUSTER),
    works("ping", ACTION, "", "ask the server at this uwsgi address whether it lives, and end", argument=REQUIRED),
    refused("ping-timeout", INT, "seconds to wait for its answer", "a ping waits for 3 seconds", default="3"),
    refused("nagios", FLAG, "the same, for Nagios", OWN_TOOLS),
    *router_family("fastrouter", "post-buffering post-buffering-dir quiet cheap subscription-slot "
                   "resubscribe resubscribe-bind uid gid fallback-on-no-key subscription-fallback-key"),
    *router_family("rawrouter", "max-retries quiet cheap xclient subscription-slot"),
    *router_family("sslrouter", "max-retries quiet cheap session-context sni"),
    refused("sslrouter2", TEXT, "router in front of other servers", ROUTER),
),
}
# fmt: on

OPTIONS: tuple[Option, ...] = tuple(option for options in TABLE.values() for option in options)
BY_NAME: dict[str, Option] = {name: option for option in OPTIONS for name in option.names}
BY_SHORT: dict[str, Option] = {option.short: option for option in OPTIONS if option.short}
