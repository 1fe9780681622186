"""Files that the server answers for: `static-map` and its family, before the application hears of the request.

A request for a file that isn't there, or that isn't to be had, is the application's, as under uWSGI. What is to be had
is what lies beneath the directory, and the kernel sees to that (_files.pyx).

Runs in: the worker.
"""

import errno
import mimetypes
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from stat import S_IFDIR, S_ISDIR, S_ISREG
from typing import Any, NamedTuple

from wsgimaster._files import Usual, open_beneath
from wsgimaster._serve import FilePart, FileWrapper

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Headers = list[tuple[str, str]]

SMALL = 1 << 16  # bytes, sent together with the head; a larger file goes out by sendfile
KEPT = 1 << 14  # bytes, whose content is kept
MOST_KEPT = 4 << 20  # bytes, in each worker
MOST_KNOWN = 1000  # files whose headers are remembered
# What we answer when it isn't to be had; anything else (no descriptor is free, a disk that fails) is an error.
MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV, errno.ENXIO}
# Of the web, and not in every Python's or system's table.
MORE_TYPES = {
    ".avif": "image/avif",
    ".mjs": "text/javascript",
    ".otf": "font/otf",
    ".ttf": "font/ttf",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
}
NOTHING_KNOWN: tuple[int, int, Headers] = (-1, -1, [])
SISTERS = (("br", b".br"), ("gzip", b".gz"))  # the first that the client takes
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DATE = re.compile(r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT")
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Rule(NamedTuple):
    """Paths that begin so are looked for beneath the root. None: DOCUMENT_ROOT. kept: the beginning is a part of the
    file's name. single: the root is a file, which answers for all of them."""

    prefix: str
    root: bytes | None
    kept: bool
    single: bool


class Expiry(NamedTuple):
    """subject: what the pattern is searched in, file, uri or path; since_change: else since now."""

    subject: str
    pattern: re.Pattern[str]
    seconds: int
    since_change: bool


Found = tuple[int, int, int, int, bytes | None]  # open_beneath


class Opened(NamedTuple):
    """A file to be sent. file: -1 if `content` is all of it."""

    file: int
    size: int  # bytes
    changed: int  # ns since the epoch
    content: bytes | None
    root: bytes
    path: bytes
    encoding: str  # of a compressed sister; identity: there might be one; "": there is none
    plain: bool  # the first rule that fits has it, under the name that was asked for


class StaticFiles:
    """The application, with these files before it. plan: settings.Static, as plain values."""

    def __init__(self, application: Callable[..., Iterable[bytes]], plan: dict[str, Any]) -> None:
        self.application = application
        self.rules = rules_of(plan)
        self.prefixes = tuple(rule.prefix for rule in self.rules)
        self.skipped = tuple(os.fsencode(text).decode("latin-1") for text in plan["skip"])
        self.indexes = [os.fsencode(name).lstrip(b"/") for name in plan["index"]]
        self.safe = [os.fsencode(path) for path in plan["safe"]]
        self.expiries, self.expiry_of_type = expiries_of(plan)
        self.compressed = [re.compile(text) for text in plan["compressed"]]
        self.compressed_all = plan["compressed_all"]
        self.compressed_beginnings = tuple(os.fsencode(text) for text in plan["compressed_dir"])
        self.compressed_ends = tuple(os.fsencode(text) for text in plan["compressed_ext"])
        self.compresses = bool(
            self.compressed_all or self.compressed or plan["compressed_dir"] or plan["compressed_ext"]
        )
        self.types = types_of(plan["mime_files"])
        self.known: dict[tuple[bytes, bytes, str], tuple[int, int, Headers]] = {}
        # Whether the path says it all; a root that the request names, or fields that depend on it, are another matter.
        self.is_plain = not (self.skipped or self.compresses or self.expiries or self.expiry_of_type or plan["docroot"])
        self.usual = Usual(SMALL, KEPT, MOST_KNOWN, MOST_KEPT)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        known = self.usual.answer(path, environ, start_response)
        if known is not None:
            return FileWrapper(FilePart(known[0], 0, known[1])) if isinstance(known, tuple) else [known]
        if path.startswith(self.prefixes) and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            opened = self.find(path, environ)
            if opened is not None:
                return self.answer(opened, path, environ, start_response)
        return self.application(environ, start_response)

    # ---- which file ----

    def find(self, path: str, environ: Environ) -> Opened | None:
        first = True
        if "\0" in path or (self.skipped and path.endswith(self.skipped)):
            return None
        for prefix, root, kept, single in self.rules:
            if not path.startswith(prefix):
                continue
            rest = path if kept else path[len(prefix) :]
            if not kept and rest[:1] not in ("", "/") and prefix[-1:] != "/":
                continue  # /static doesn't mean /statics
            if single:
                rest = ""
            if root is None:
                root = environ.get("DOCUMENT_ROOT", "").encode("latin-1")
            name = rest.lstrip("/").encode("latin-1")
            if root and (opened := self.look(root, name, environ)):
                if self.skipped and real_name(opened.file).decode("latin-1").endswith(self.skipped):
                    close(opened.file)  # an index, or a link, to what isn't served
                    return None
                return opened if first and (single or opened.path == name) else opened._replace(plain=False)
            first = False
        return None

    def look(self, root: bytes, path: bytes, environ: Environ) -> Opened | None:
        """The file beneath the root, its directory's index, or its compressed sister."""
        wants_all = not (
            self.skipped or self.compresses or environ["REQUEST_METHOD"] == "HEAD" or is_conditional(environ)
        )
        found = self.open(root, path, SMALL if wants_all else -1)
        if found is None:
            return None
        file, mode, size, changed, content = found
        if S_ISREG(mode) and (not path or path.rpartition(b"/")[2] not in (b"", b".", b"..")):
            if not path:
                root, path = os.path.split(root)
            opened = Opened(file, size, changed, content, root, path, "", True)
            return self.sister(opened, environ) if self.compresses else opened
        close(file)
        if S_ISDIR(mode):
            for index in self.indexes:
                if (of_directory := self.look(root, os.path.join(path, index), environ)) is not None:
                    return of_directory
        return None

    def open(self, root: bytes, path: bytes, small: int) -> Found | None:
        try:
            return open_beneath(root, path, small)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EAGAIN):
                return self.open_elsewhere(root, path, small)
            if error.errno == errno.EACCES and self.indexes:  # a directory that may be entered, but not read
                return -1, S_IFDIR, 0, 0, None
            if error.errno not in MISSING:
                raise
            return None

    def open_elsewhere(self, root: bytes, path: bytes, small: int) -> Found | None:
        """A link that leads out of the root by its text may come back to it, or lead to a `static-safe` directory. The
        file is opened by its real path, where no link may be any more."""
        try:
            real = os.path.realpath(os.path.join(root, path), strict=True)
            for one in (root, *self.safe):
                base = os.path.realpath(one)
                if real.startswith(os.path.join(base, b"")):
                    return open_real(base, real[len(os.path.join(base, b"")) :], small)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            return None
        print(
            f"[uwsgi-fileserve] security error: {shown(real)} is not under {shown(root)} or a safe path",
            file=sys.stderr,
        )
        return None

    def sister(self, opened: Opened, environ: Environ) -> Opened:
        """Its compressed form, if there is one and the client takes it."""
        try:
            if not self.compressed_all and not self.may_be_compressed(real_name(opened.file)):
                return opened
            accepted = environ.get("HTTP_ACCEPT_ENCODING", "").lower()
            for encoding, end in SISTERS:
                if takes(accepted, encoding) and (found := self.open(opened.root, opened.path + end, -1)):
                    file, mode, size, changed, content = found
                    if S_ISREG(mode):
                        close(opened.file)
                        return opened._replace(
                            file=file, size=size, changed=changed, content=content, encoding=encoding
                        )
                    close(file)
        except BaseException:
            close(opened.file)
            raise
        return opened._replace(encoding="identity")

    def may_be_compressed(self, name: bytes) -> bool:
        return (
            name.startswith(self.compressed_beginnings)
            or name.endswith(self.compressed_ends)
            or any(pattern.search(shown(name)) for pattern in self.compressed)
        )

    # ---- what is said of it ----

    def answer(self, opened: Opened, path: str, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        file, size, changed, content, *_ = opened
        try:
            headers = self.headers(opened)
            if self.expiries or self.expiry_of_type:
                headers = self.expiry(opened, headers, path, environ) + headers
            status, start, length = "200 OK", 0, size
            if is_conditional(environ):
                status, start, length, headers = conditional(environ, headers, changed, size)
            headers = headers if status[:3] == "304" else [*headers, ("Content-Length", str(length))]
            start_response(status, headers)
            if length and self.is_plain and opened.plain and status[:3] == "200":
                self.usual.remember(path, opened.root, opened.path, size, changed, headers)
            if length == 0 or environ["REQUEST_METHOD"] == "HEAD":
                return [b""]
            if content is not None:
                return [content]
            if length <= SMALL:
                return [os.pread(file, length, start)]
            part = FilePart(file, start, length)
            file = -1  # the part's, which is closed after the answer
            return FileWrapper(part)
        finally:
            close(file)

    def headers(self, opened: Opened) -> Headers:
        """All but how long it is and when it expires."""
        _, size, changed, _, root, path, encoding, _ = opened
        known_changed, known_size, headers = self.known.get((root, path, encoding), NOTHING_KNOWN)
        if known_changed == changed and known_size == size:
            return headers
        headers = []
        if encoding:
            headers.append(("Vary", "Accept-Encoding"))
        if encoding not in ("", "identity"):
            headers.append(("Content-Encoding", encoding))
        if kind := self.types.get(os.path.splitext(shown(path))[1].lower()):
            headers.append(("Content-Type", kind))
        headers += [
            ("Last-Modified", http_date(changed // 1_000_000_000)),
            ("ETag", f'"{changed:x}-{size:x}{encoding[:2]}"'),
            ("Accept-Ranges", "bytes"),
        ]
        if len(self.known) >= MOST_KNOWN:
            self.known.clear()
        self.known[root, path, encoding] = changed, size, headers
        return headers

    def expiry(self, opened: Opened, headers: Headers, path: str, environ: Environ) -> Headers:
        """The first rule that fits."""
        kind = next((value for name, value in headers if name == "Content-Type"), "")
        if (of_type := self.expiry_of_type.get(kind)) is not None:
            seconds, since_change = of_type
            return [("Expires", expires(seconds, since_change, opened.changed))]
        name = os.path.realpath(os.path.join(opened.root, opened.path)) if self.expiries else b""
        subjects = {"file": shown(name), "uri": environ.get("REQUEST_URI", ""), "path": path}
        for subject, pattern, seconds, since_change in self.expiries:
            if pattern.search(subjects[subject]):
                return [("Expires", expires(seconds, since_change, opened.changed))]
        return []


# ---- what the options say ----


def rules_of(plan: dict[str, Any]) -> list[Rule]:
    """In uWSGI's order."""
    found = [Rule("", os.path.abspath(os.fsencode(root)), kept=True, single=False) for root in plan["check"]]
    for name, kept in (("maps", False), ("maps_kept", True)):
        for text in plan[name]:
            prefix, _, root = text.partition("=")
            path = os.path.abspath(os.fsencode(root))
            found.append(Rule(os.fsencode(prefix).decode("latin-1"), path, kept, single=os.path.isfile(path)))
    return [*found, Rule("", None, kept=True, single=False)] if plan["docroot"] else found


def expiries_of(plan: dict[str, Any]) -> tuple[list[Expiry], dict[str, tuple[int, bool]]]:
    """Those of patterns, and those of content types."""
    patterns: list[Expiry] = []
    types: dict[str, tuple[int, bool]] = {}
    for end, since_change in (("", False), ("_mtime", True)):
        for subject, name in (("file", "expires"), ("uri", "expires_uri"), ("path", "expires_path_info")):
            for text in plan[name + end]:
                pattern, _, seconds = text.rpartition(" ")
                patterns.append(Expiry(subject, re.compile(pattern.rstrip()), int(seconds), since_change))
        for text in plan["expires_type" + end]:
            kind, _, seconds = text.partition("=")
            types.setdefault(kind, (int(seconds), since_change))
    return patterns, types


def types_of(files: Iterable[str]) -> dict[str, str]:
    """Content types by the ends of names: Python's, what it lacks, and those of the files (`mimefile`)."""
    found = mimetypes.MimeTypes()
    for name in files:
        try:
            found.read(name)
        except (OSError, UnicodeDecodeError):
            print(f"the content types in {name} can't be read", file=sys.stderr)
    return {**MORE_TYPES, **found.types_map[1]}


# ---- pure helpers ----


def open_real(base: bytes, path: bytes, small: int) -> Found | None:
    """A file by a path that has no links, beneath a directory that has none either."""
    try:
        return open_beneath(base, path, small, links=False)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    file = os.open(os.path.join(base, path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    try:
        if real_name(file) == os.path.join(base, path):
            status = os.fstat(file)
            return file, status.st_mode, status.st_size, status.st_mtime_ns, None
    except BaseException:
        close(file)
        raise
    close(file)  # a link has come into its path meanwhile
    return None


def real_name(file: int) -> bytes:
    return os.fsencode(os.readlink(f"/proc/self/fd/{file}"))


def is_conditional(environ: Environ) -> bool:
    return "HTTP_RANGE" in environ or "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MODIFIED_SINCE" in environ


def close(file: int) -> None:
    if file >= 0:
        os.close(file)


def conditional(environ: Environ, headers: Headers, changed: int, size: int) -> tuple[str, int, int, Headers]:
    """(status, first byte, bytes, headers) of a request with conditions: RFC 9110 13.2.2, 14.2."""
    values = dict(headers)
    if "HTTP_IF_NONE_MATCH" in environ:
        tags = [tag.strip().removeprefix("W/") for tag in environ["HTTP_IF_NONE_MATCH"].split(",")]
        if "*" in tags or values["ETag"] in tags:
            return "304 Not Modified", 0, 0, headers
    elif not_changed_since(environ.get("HTTP_IF_MODIFIED_SINCE", ""), changed):
        return "304 Not Modified", 0, 0, headers
    asked = RANGE.fullmatch(environ.get("HTTP_RANGE", "").replace(" ", ""))
    condition = environ.get("HTTP_IF_RANGE", "")
    if asked is None or environ["REQUEST_METHOD"] != "GET" or asked[0] == "bytes=-":
        return "200 OK", 0, size, headers
    if condition and condition not in (values["ETag"], values["Last-Modified"]):
        return "200 OK", 0, size, headers
    if asked[1]:
        start, end = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        if asked[2] and int(asked[2]) < start:
            return "200 OK", 0, size, headers
    else:
        start, end = max(0, size - int(asked[2])), size - 1
    if start > end:
        return "416 Range Not Satisfiable", 0, 0, [*headers, ("Content-Range", f"bytes */{size}")]
    return "206 Partial Content", start, end - start + 1, [*headers, ("Content-Range", f"bytes {start}-{end}/{size}")]


def not_changed_since(date: str, changed: int) -> bool:
    """Whether that is a date (RFC 9110 5.6.7, the preferred form), and no earlier than the change, ns."""
    found = DATE.fullmatch(date)
    if found is None or found[2] not in MONTHS:
        return False
    day, month, year, *clock = found.groups()
    then = (int(year), MONTHS.index(month) + 1, int(day), *map(int, clock))
    return then >= time.gmtime(changed // 1_000_000_000)[:6]


def http_date(seconds: int) -> str:
    """By hand: strftime knows other languages."""
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(seconds)
    return f"{DAYS[weekday]}, {day:02} {MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"


def expires(seconds: int, since_change: bool, changed: int) -> str:
    return http_date((changed // 1_000_000_000 if since_change else int(time.time())) + seconds)


def takes(accepted: str, encoding: str) -> bool:
    """Whether Accept-Encoding, in small letters, names the encoding without a weight of 0: RFC 9110 12.5.3."""
    for part in accepted.split(","):
        name, _, weight = part.strip().partition(";")
        if name.strip() == encoding:
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False


def shown(name: bytes) -> str:
    return os.fsdecode(name)
