"""Files that the server answers for: which ones, what is said of them, and that none lies outside the directory."""

from __future__ import annotations

import errno
import gzip
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.client import Address, Answer, Connection, http, together, uwsgi
from support.harness import APPS, Server, free_port
from support.wait import wait_until

from wsgimaster import _files, static
from wsgimaster.settings import Static

Start = Callable[..., Server]

SECRET = b"nobody may read this"
CHANGED = 1_700_000_000
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
LARGE = os.urandom(200_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files, links of all kinds, and beside them what must not be reached."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("text")
    (root / "style.css").write_text("css")
    (root / "font.woff2").write_text("font")
    (root / "none.unknown").write_text("?")
    (root / "empty.txt").touch()
    (root / "large.bin").write_bytes(LARGE)
    (root / "sub" / "index.html").write_text("index")
    (root / "caf\xe9.txt").write_text("coffee")
    (root / "a b.txt").write_text("space")
    (root / os.fsdecode(b"\xff.txt")).write_text("bytes")
    (tmp_path / "root-private").mkdir()
    (tmp_path / "root-private" / "p.txt").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "s.txt").write_bytes(SECRET)
    (root / "inner.txt").symlink_to("a.txt")
    (root / "sub" / "up.txt").symlink_to("../a.txt")
    (root / "absolute.txt").symlink_to(root / "a.txt")
    (root / "out.txt").symlink_to("../outside/s.txt")
    (root / "absolute-out.txt").symlink_to(tmp_path / "outside" / "s.txt")
    (root / "outdir").symlink_to("../outside")
    (root / "loop").symlink_to("loop")
    (root / "there.txt").symlink_to("outdir/../a.txt")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(root / "socket"))
    os.utime(root / "a.txt", (CHANGED, CHANGED))
    return root


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("X-App", "yes")])
    return [b"the application"]


class Asked:
    """The answer of `StaticFiles` alone, without a server."""

    def __init__(self, files: static.StaticFiles, path: str, method: str = "GET", **environ: str) -> None:
        given = {"PATH_INFO": path, "REQUEST_METHOD": method, "REQUEST_URI": path, **environ}
        result = files(given, self.start_response)
        self.body = b"".join(result)
        getattr(result, "close", lambda: None)()

    def start_response(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status, self.headers = int(status[:3]), dict(headers)
        assert len(self.headers) == len(headers)

    @property
    def is_applications(self) -> bool:
        return "X-App" in self.headers


def serving(**options: Any) -> static.StaticFiles:
    return static.StaticFiles(application, Static(**options).model_dump())


@pytest.fixture(params=["openat2", "without openat2"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a container's seccomp filter doesn't know it."""

    def refuse(root: bytes, path: bytes, small: int, links: bool = True) -> static.Found:
        if path:
            raise OSError(errno.ENOSYS, "Function not implemented")
        return _files.open_beneath(root, path, small, links)

    if request.param == "without openat2":
        monkeypatch.setattr(static, "open_beneath", refuse)


# which file

FOUND = {
    "a file": ("/s/a.txt", b"text"),
    "two slashes": ("/s//a.txt", b"text"),
    "a dot": ("/s/./a.txt", b"text"),
    "up and down": ("/s/sub/../a.txt", b"text"),
    "a directory's index": ("/s/sub", b"index"),
    "a directory's index, with a slash": ("/s/sub/", b"index"),
    "a space": ("/s/a b.txt", b"space"),
    "UTF-8": ("/s/caf\xc3\xa9.txt", b"coffee"),
    "no UTF-8": ("/s/\xff.txt", b"bytes"),
    "a link to a neighbour": ("/s/inner.txt", b"text"),
    "a link upwards": ("/s/sub/up.txt", b"text"),
    "an absolute link to a neighbour": ("/s/absolute.txt", b"text"),
    "an empty file": ("/s/empty.txt", b""),
    "a large file": ("/s/large.bin", LARGE),
}


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("path", "body"), FOUND.values(), ids=FOUND)
def test_what_is_there(root: Path, path: str, body: bytes) -> None:
    asked = Asked(serving(maps=(f"/s={root}",), index=("index.html",)), path)
    assert (asked.status, asked.body, asked.headers["Content-Length"]) == (200, body, str(len(body)))


NOT_FOUND = [
    "/s",
    "/s/",
    "/s/none",
    "/s/a.txt/",
    "/s/a.txt/x",
    "/sa.txt",
    "/x/a.txt",
    "/s/pipe",
    "/s/socket",
    "/s/loop",
    "/s/a.txt\0",
    "/s/a.txt\0.css",
    "/s/" + "x" * 300,
    "/s/" + "x/" * 3000,
    "/s/../outside/s.txt",
    "/s/../root-private/p.txt",
    "/s/..",
    "/s/../../../../../../../../etc/passwd",
    "/s/sub/../../outside/s.txt",
    "/s/....//outside/s.txt",
    "/s/..\\outside\\s.txt",
    "/s/%2e%2e/outside/s.txt",
    "/s/%252e%252e/outside/s.txt",
    "/s/..%2foutside/s.txt",
    "/s//etc/passwd",
    "/s/out.txt",
    "/s/absolute-out.txt",
    "/s/outdir/s.txt",
    "/s/proc/self/root/etc/passwd",
    "/s/\xc0\xae\xc0\xae/outside/s.txt",
]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("path", NOT_FOUND)
def test_what_is_not_to_be_had_is_the_applications(root: Path, path: str) -> None:
    asked = Asked(serving(maps=(f"/s={root}",)), path)
    assert (asked.is_applications, asked.body) == (True, b"the application")
    if path.startswith("/s/"):
        assert Asked(serving(check=(str(root),)), path.removeprefix("/s")).is_applications


@pytest.mark.usefixtures("kernel")
def test_a_link_out_is_named_in_the_log(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Asked(serving(maps=(f"/s={root}",)), "/s/out.txt")
    assert f"security error: {root.parent}/outside/s.txt is not under {root} or a safe path" in capfd.readouterr().err


@pytest.mark.usefixtures("kernel")
def test_links_may_lead_to_safe_directories(root: Path) -> None:
    files = serving(maps=(f"/s={root}",), safe=(str(root.parent / "outside"),))
    for path in ("/s/out.txt", "/s/absolute-out.txt", "/s/outdir/s.txt"):
        assert Asked(files, path).body == SECRET
    assert Asked(files, "/s/../root-private/p.txt").is_applications
    assert Asked(serving(maps=(f"/s={root}",), safe=(str(root.parent / "out"),)), "/s/out.txt").is_applications


def test_a_link_that_is_put_into_the_path_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the real path and the opening."""
    real = os.path.realpath

    def realpath(path: bytes, **how: Any) -> bytes:
        found = real(path, **how)
        if found.endswith(b"/a.txt") and not (root / "a.txt").is_symlink():
            (root / "a.txt").unlink()
            (root / "a.txt").symlink_to("../outside/s.txt")
        return found

    monkeypatch.setattr(os.path, "realpath", realpath)
    assert Asked(serving(maps=(f"/s={root}",)), "/s/absolute.txt").is_applications


@pytest.mark.usefixtures("kernel")
def test_a_directory_that_becomes_a_link_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.path.realpath
    (root / "linked.html").symlink_to(root / "sub" / "index.html")
    (root.parent / "outside" / "index.html").write_bytes(SECRET)

    def realpath(path: bytes, **how: Any) -> bytes:
        found = real(path, **how)
        if found.endswith(b"/index.html") and not (root / "sub").is_symlink():
            (root / "sub").rename(root / "former")
            (root / "sub").symlink_to("../outside")
        return found

    monkeypatch.setattr(os.path, "realpath", realpath)
    assert Asked(serving(maps=(f"/s={root}",)), "/s/linked.html").is_applications
    assert (root / "sub").is_symlink()


def test_what_was_asked_for_before_is_looked_at_again(root: Path) -> None:
    """A small file is remembered by its path; what it holds, and whether it may be had, isn't."""
    (root / "sub" / "a.txt").write_text("second")
    files = serving(maps=(f"/s={root}", f"/s={root}/sub"))
    other = root.parent / "other.txt"

    def answers() -> list[bytes]:
        return [Asked(files, "/s/a.txt").body for _ in range(3)]

    assert answers() == [b"text"] * 3
    other.write_text("more text")
    other.replace(root / "a.txt")
    assert answers() == [b"more text"] * 3
    (root / "a.txt").unlink()
    assert answers() == [b"second"] * 3
    (root / "a.txt").write_text("third")  # the first rule has it again
    assert answers() == [b"third"] * 3
    (root / "a.txt").unlink()
    (root / "a.txt").symlink_to("../outside/s.txt")
    assert answers() == [b"second"] * 3
    (root / "a.txt").unlink()
    (root / "a.txt").mkdir()
    assert answers() == [b"second"] * 3
    (root / "sub" / "a.txt").unlink()
    (root / "sub" / "a.txt").write_bytes(LARGE)
    assert answers() == [LARGE] * 3
    (root / "sub" / "a.txt").unlink()
    assert answers() == [b"the application"] * 3


def touched(path: Path) -> None:
    path.touch()


def other_content(path: Path) -> None:
    path.write_text("TEXT")
    os.utime(path, (CHANGED, CHANGED))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("TEXT")
    os.utime(other, (CHANGED, CHANGED))
    other.replace(path)


def moved_out(path: Path) -> None:
    path.rename(path.parent.parent / "moved")


def linked_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("../outside/s.txt")


def in_another_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("former"))
    path.parent.mkdir()


AFTERWARDS: dict[str, tuple[Callable[[Path], None], bytes]] = {
    "touched": (touched, b"text"),
    "other content of that size": (other_content, b"TEXT"),
    "replaced": (replaced, b"TEXT"),
    "removed": (Path.unlink, b"the application"),
    "moved": (moved_out, b"the application"),
    "a link that leads out": (linked_out, b"the application"),
    "another root": (in_another_directory, b"the application"),
}


@pytest.mark.parametrize(("change", "expected"), AFTERWARDS.values(), ids=AFTERWARDS)
def test_a_content_that_is_kept(root: Path, change: Callable[[Path], None], expected: bytes) -> None:
    """Only of a file that hasn't changed for two seconds: the kernel's clock can't tell what is nearer together."""
    files = serving(maps=(f"/s={root}",))

    def is_kept() -> bool:
        assert Asked(files, "/s/a.txt").body == b"text"
        return files.usual.kept == 4

    assert not is_kept()
    wait_until(is_kept)
    assert Asked(files, "/s/a.txt").headers["Content-Length"] == "4"
    change(root / "a.txt")
    assert [Asked(files, "/s/a.txt").body for _ in range(3)] == [expected] * 3
    assert files.usual.kept == 0


def test_threads_that_ask_for_the_same(root: Path) -> None:
    """They share what is kept, and count it once."""
    for number in range(20):
        (root / f"{number}.txt").write_text(f"{number:0100}")
    files = serving(maps=(f"/s={root}",))
    files.usual = _files.Usual(static.SMALL, static.KEPT, 1000, 1000)  # it is cleared again and again

    def ask() -> bool:
        return all(Asked(files, f"/s/{number}.txt").body == b"%0100d" % number for number in range(20))

    wait_until(lambda: ask() and files.usual.kept > 0)
    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(lambda _: ask(), range(200)))
    assert 0 <= files.usual.kept <= 1000
    small = _files.Usual(static.SMALL, static.KEPT, 1000, 1 << 20)
    files.usual = small
    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(lambda _: ask(), range(100)))
    assert small.kept == 2000


def test_each_request_has_its_document_root(root: Path) -> None:
    other = root.parent / "other-root"
    other.mkdir()
    (other / "a.txt").write_text("other")
    files = serving(docroot=True)
    for _ in range(3):
        assert Asked(files, "/a.txt", DOCUMENT_ROOT=str(root)).body == b"text"
        assert Asked(files, "/a.txt", DOCUMENT_ROOT=str(other)).body == b"other"
        assert Asked(files, "/a.txt").is_applications


def test_a_directory_whose_index_changes(root: Path) -> None:
    files = serving(maps=(f"/s={root}",), index=("first.html", "index.html"))
    assert Asked(files, "/s/sub/").body == b"index"
    (root / "sub" / "first.html").write_text("first")
    assert Asked(files, "/s/sub/").body == b"first"


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_another_method_than_before(root: Path, method: str) -> None:
    files = serving(maps=(f"/s={root}",))
    assert [Asked(files, "/s/a.txt").body for _ in range(2)] == [b"text"] * 2
    assert Asked(files, "/s/a.txt", method).body == (b"" if method == "HEAD" else b"the application")
    assert Asked(files, "/s/a.txt", HTTP_RANGE="bytes=1-2").body == b"ex"


RULES = {
    "a file for a path": ({"maps": ("/favicon.ico={root}/a.txt",)}, "/favicon.ico", b"text"),
    "a file for all paths": ({"maps": ("/={root}/a.txt",)}, "/articles/1", b"text"),
    "a file for what is beneath": ({"maps": ("/app={root}/a.txt",)}, "/app/users/1", b"text"),
    "a file, kept": ({"maps_kept": ("/app={root}/a.txt",)}, "/app/users/1", b"text"),
    "not for its neighbour": ({"maps": ("/app={root}/a.txt",)}, "/apple", None),
    "a prefix with a slash": ({"maps": ("/s/={root}/",)}, "/s/a.txt", b"text"),
    "everything": ({"maps": ("/={root}",)}, "/a.txt", b"text"),
    "the path is kept": ({"maps_kept": ("/sub={root}",)}, "/sub/index.html", b"index"),
    "a directory": ({"check": ("{root}",)}, "/sub/index.html", b"index"),
    "the second that has it": ({"maps": ("/s={root}/sub", "/s={root}")}, "/s/a.txt", b"text"),
    "a directory before a map": ({"check": ("{root}/sub",), "maps": ("/={root}",)}, "/index.html", b"index"),
    "an ending that is skipped": ({"maps": ("/s={root}",), "skip": (".txt",)}, "/s/a.txt", None),
    "another ending": ({"maps": ("/s={root}",), "skip": (".txt",)}, "/s/style.css", b"css"),
    "no such directory": ({"maps": ("/s={root}/none",)}, "/s/a.txt", None),
}


@pytest.mark.parametrize(("options", "path", "body"), RULES.values(), ids=RULES)
def test_rules(root: Path, options: dict[str, tuple[str, ...]], path: str, body: bytes | None) -> None:
    given = {name: tuple(value.replace("{root}", str(root)) for value in values) for name, values in options.items()}
    asked = Asked(serving(**given), path)
    assert (None if asked.is_applications else asked.body) == body


HIDDEN = [
    "/s/app.py",
    "/s/app.py/.",
    "/s/../root/app.py",
    "/s/../root/app.py/.",
    "/s/../root/app.py/",
    "/s/sub/..//app.py/.",
    "/s/code",
    "/s/absolute-code",
    "/s/package",
    "/s/package/",
]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("path", HIDDEN)
def test_endings_that_are_never_served(root: Path, path: str) -> None:
    """Whatever the file is called by."""
    (root / "app.py").write_bytes(SECRET)
    (root / "code").symlink_to("app.py")
    (root / "absolute-code").symlink_to(root / "app.py")
    (root / "package").mkdir()
    (root / "package" / "index.py").write_bytes(SECRET)
    files = serving(maps=(f"/s={root}",), skip=(".py",), index=("index.py",))
    assert Asked(files, path).is_applications
    assert Asked(files, "/s/a.txt").body == b"text"
    plain = Asked(serving(maps=(f"/s={root}",), index=("index.py",)), path)
    assert plain.body in (SECRET, b"the application")


def test_an_index_with_a_slash(root: Path) -> None:
    assert Asked(serving(maps=(f"/s={root}",), index=("/index.html",)), "/s/sub").body == b"index"


def test_relative_directories(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the beginning, wherever the application goes."""
    monkeypatch.chdir(root.parent)
    files = serving(maps=("/s=root",), expires=(f"^{root}/a.txt$ 10",))
    monkeypatch.chdir("/")
    asked = Asked(files, "/s/./a.txt")
    assert asked.body == b"text"
    assert "Expires" in asked.headers


def test_the_document_root(root: Path) -> None:
    assert Asked(serving(docroot=True), "/a.txt", DOCUMENT_ROOT=str(root)).body == b"text"
    assert Asked(serving(docroot=True), "/a.txt").is_applications


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
def test_other_methods_are_the_applications(root: Path, method: str) -> None:
    assert Asked(serving(maps=(f"/s={root}",)), "/s/a.txt", method).is_applications


def test_no_descriptor_is_left(root: Path) -> None:
    files = serving(maps=(f"/s={root}",), index=("none", "index.html"), compressed_all=True)
    before = len(os.listdir("/proc/self/fd"))
    for path in ("a.txt", "large.bin", "sub", "out.txt", "pipe", "none", "absolute.txt"):
        for method in ("GET", "HEAD"):
            Asked(files, f"/s/{path}", method, HTTP_RANGE="bytes=1-2", HTTP_ACCEPT_ENCODING="gzip")
    assert len(os.listdir("/proc/self/fd")) == before


# what is said of it


def test_headers(root: Path) -> None:
    asked = Asked(serving(maps=(f"/s={root}",)), "/s/a.txt")
    tag = asked.headers.pop("ETag")
    assert tag.startswith('"')
    assert tag.endswith('"')
    assert asked.headers == {
        "Content-Type": "text/plain",
        "Content-Length": "4",
        "Last-Modified": DATE,
        "Accept-Ranges": "bytes",
    }


def test_a_changed_file_has_another_tag(root: Path) -> None:
    files = serving(maps=(f"/s={root}",))
    first = Asked(files, "/s/a.txt").headers
    (root / "a.txt").write_text("another")
    second = Asked(files, "/s/a.txt")
    assert second.body == b"another"
    assert second.headers["ETag"] != first["ETag"]
    assert second.headers["Last-Modified"] != DATE


@pytest.mark.parametrize(
    ("name", "kind"),
    [("style.css", "text/css"), ("font.woff2", "font/woff2"), ("none.unknown", None), ("sub/index.html", "text/html")],
)
def test_content_types(root: Path, name: str, kind: str | None) -> None:
    assert Asked(serving(maps=(f"/s={root}",)), f"/s/{name}").headers.get("Content-Type") == kind


def test_a_file_of_content_types(root: Path, tmp_path: Path) -> None:
    (tmp_path / "types").write_text("x/unknown unknown other\n# a comment\ntext/x-css css\n")
    files = serving(maps=(f"/s={root}",), mime_files=(str(tmp_path / "types"),))
    assert Asked(files, "/s/none.unknown").headers["Content-Type"] == "x/unknown"
    assert Asked(files, "/s/style.css").headers["Content-Type"] == "text/x-css"


def test_two_files_of_content_types(root: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("text/x-css css\n")
    (tmp_path / "two").write_text("x/unknown unknown\n")
    files = serving(maps=(f"/s={root}",), mime_files=(str(tmp_path / "one"), str(tmp_path / "two")))
    assert Asked(files, "/s/style.css").headers["Content-Type"] == "text/x-css"
    assert Asked(files, "/s/none.unknown").headers["Content-Type"] == "x/unknown"


def test_a_file_of_content_types_that_is_not_there(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert Asked(serving(maps=(f"/s={root}",), mime_files=("/none",)), "/s/a.txt").status == 200
    assert "the content types in /none can't be read" in capfd.readouterr().err


CONDITIONS = {
    "the tag": ({"HTTP_IF_NONE_MATCH": "{tag}"}, 304),
    "a weak tag": ({"HTTP_IF_NONE_MATCH": "W/{tag}"}, 304),
    "one of several": ({"HTTP_IF_NONE_MATCH": '"a", {tag}, "b"'}, 304),
    "any": ({"HTTP_IF_NONE_MATCH": "*"}, 304),
    "another tag": ({"HTTP_IF_NONE_MATCH": '"a"'}, 200),
    "another tag, the date": ({"HTTP_IF_NONE_MATCH": '"a"', "HTTP_IF_MODIFIED_SINCE": DATE}, 200),
    "the date": ({"HTTP_IF_MODIFIED_SINCE": DATE}, 304),
    "a later date": ({"HTTP_IF_MODIFIED_SINCE": "Tue, 14 Nov 2023 22:13:21 GMT"}, 304),
    "an earlier date": ({"HTTP_IF_MODIFIED_SINCE": "Tue, 14 Nov 2023 22:13:19 GMT"}, 200),
    "no date": ({"HTTP_IF_MODIFIED_SINCE": "yesterday"}, 200),
    "a date of old": ({"HTTP_IF_MODIFIED_SINCE": "Tuesday, 14-Nov-23 22:13:20 GMT"}, 200),
    "an impossible month": ({"HTTP_IF_MODIFIED_SINCE": "Tue, 14 Xyz 2023 22:13:20 GMT"}, 200),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("given", "status"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditions(root: Path, given: dict[str, str], status: int, method: str) -> None:
    files = serving(maps=(f"/s={root}",))
    tag = Asked(files, "/s/a.txt").headers["ETag"]
    asked = Asked(files, "/s/a.txt", method, **{name: text.replace("{tag}", tag) for name, text in given.items()})
    assert asked.status == status
    assert asked.body == (b"text" if (status, method) == (200, "GET") else b"")
    assert asked.headers["ETag"] == tag
    assert ("Content-Length" in asked.headers) == (status == 200)


RANGES = {
    "the beginning": ("bytes=0-1", 206, b"te", "bytes 0-1/4"),
    "the end": ("bytes=2-", 206, b"xt", "bytes 2-3/4"),
    "the last bytes": ("bytes=-3", 206, b"ext", "bytes 1-3/4"),
    "more than all": ("bytes=-9", 206, b"text", "bytes 0-3/4"),
    "up to behind the end": ("bytes=1-99", 206, b"ext", "bytes 1-3/4"),
    "one byte": ("bytes=3-3", 206, b"t", "bytes 3-3/4"),
    "behind the end": ("bytes=4-", 416, b"", "bytes */4"),
    "none of the last": ("bytes=-0", 416, b"", "bytes */4"),
    "several": ("bytes=0-1,3-3", 200, b"text", None),
    "backwards": ("bytes=3-1", 200, b"text", None),
    "nothing": ("bytes=-", 200, b"text", None),
    "other units": ("lines=0-1", 200, b"text", None),
    "nonsense": ("bytes=a-b", 200, b"text", None),
    "enormous": (f"bytes=0-{'9' * 30}", 200, b"text", None),
    "negative": ("bytes=--1", 200, b"text", None),
}


@pytest.mark.parametrize(("text", "status", "body", "given"), RANGES.values(), ids=RANGES)
def test_ranges(root: Path, text: str, status: int, body: bytes, given: str | None) -> None:
    files = serving(maps=(f"/s={root}",))
    asked = Asked(files, "/s/a.txt", HTTP_RANGE=text)
    assert (asked.status, asked.body, asked.headers.get("Content-Range")) == (status, body, given)
    assert asked.headers["Content-Length"] == str(len(body))
    assert Asked(files, "/s/a.txt", "HEAD", HTTP_RANGE=text).status == 200


def test_a_range_of_a_large_file(root: Path) -> None:
    asked = Asked(serving(maps=(f"/s={root}",)), "/s/large.bin", HTTP_RANGE="bytes=1000-150999")
    assert asked.headers["Content-Length"] == "150000"
    assert asked.body[:150_000] == LARGE[1000:151_000]  # the server stops there


@pytest.mark.parametrize(
    ("condition", "status"), [("{tag}", 206), (DATE, 206), ('"other"', 200), ("W/{tag}", 200), ("x", 200)]
)
def test_a_range_of_what_the_client_knows(root: Path, condition: str, status: int) -> None:
    files = serving(maps=(f"/s={root}",))
    tag = Asked(files, "/s/a.txt").headers["ETag"]
    asked = Asked(files, "/s/a.txt", HTTP_RANGE="bytes=0-1", HTTP_IF_RANGE=condition.replace("{tag}", tag))
    assert asked.status == status


EXPIRES: dict[str, tuple[dict[str, tuple[str, ...]], str, int | None]] = {
    "by the file": ({"expires": (r"\.txt$ 100",)}, "/s/a.txt", 100),
    "by the file's directory": ({"expires": ("{root}/* 100",)}, "/s/a.txt", 100),
    "by nothing": ({"expires": (r"\.css$ 100",)}, "/s/a.txt", None),
    "the first": ({"expires": (r"\.txt 100", ". 200")}, "/s/a.txt", 100),
    "by the URI": ({"expires_uri": ("^/s/ 100",)}, "/s/a.txt", 100),
    "by the path": ({"expires_path_info": ("^/s/ 100",)}, "/s/a.txt", 100),
    "by the type": ({"expires_type": ("text/plain=100",)}, "/s/a.txt", 100),
    "by another type": ({"expires_type": ("text/css=100",)}, "/s/a.txt", None),
}


@pytest.mark.parametrize(("options", "path", "seconds"), EXPIRES.values(), ids=EXPIRES)
def test_expires(
    root: Path, options: dict[str, tuple[str, ...]], path: str, seconds: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: tuple(value.replace("{root}", str(root)) for value in values) for name, values in options.items()}
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)
    expected = None if seconds is None else static.http_date(1_800_000_000 + seconds)
    assert Asked(serving(maps=(f"/s={root}",), **given), path).headers.get("Expires") == expected
    name = next(iter(given)) + "_mtime"
    expected = None if seconds is None else static.http_date(CHANGED + seconds)
    since_change = {name: next(iter(given.values()))}
    assert Asked(serving(maps=(f"/s={root}",), **since_change), path).headers.get("Expires") == expected


COMPRESSED = {
    "all": {"compressed_all": True},
    "by the directory": {"compressed_dir": ("{root}/",)},
    "by the ending": {"compressed_ext": (".css",)},
    "by a pattern": {"compressed": (r"style\.",)},
}


@pytest.mark.parametrize("options", COMPRESSED.values(), ids=COMPRESSED)
def test_compressed_sisters(root: Path, options: dict[str, Any]) -> None:
    given = {
        name: tuple(one.replace("{root}", str(root)) for one in value) if isinstance(value, tuple) else value
        for name, value in options.items()
    }
    files = serving(maps=(f"/s={root}",), **given)
    (root / "style.css.gz").write_bytes(gzip.compress(b"css"))
    zipped = Asked(files, "/s/style.css", HTTP_ACCEPT_ENCODING="deflate, GZIP;q=0.5")
    assert gzip.decompress(zipped.body) == b"css"
    assert (zipped.headers["Content-Encoding"], zipped.headers["Content-Type"]) == ("gzip", "text/css")
    (root / "style.css.br").write_bytes(b"brotli")
    assert Asked(files, "/s/style.css", HTTP_ACCEPT_ENCODING="gzip, br").body == b"brotli"
    for accepted in ("", "identity", "gzip;q=0", "br;q=0.0, deflate", "xgzip"):
        plain = Asked(files, "/s/style.css", HTTP_ACCEPT_ENCODING=accepted)
        assert (plain.body, plain.headers.get("Content-Encoding")) == (b"css", None)
        assert plain.headers["Vary"] == "Accept-Encoding"
        assert plain.headers["ETag"] != zipped.headers["ETag"]


def test_the_sister_of_a_single_file(root: Path) -> None:
    (root / "style.css.gz").write_bytes(gzip.compress(b"css"))
    files = serving(maps=(f"/style={root}/style.css",), compressed_all=True)
    assert gzip.decompress(Asked(files, "/style", HTTP_ACCEPT_ENCODING="gzip").body) == b"css"


def test_no_descriptor_is_left_when_they_run_short(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_short(base: bytes, path: bytes, small: int, links: bool = True) -> static.Found:
        if path.endswith(b".gz"):
            raise OSError(errno.EMFILE, "Too many open files")
        return _files.open_beneath(base, path, small, links)

    files = serving(maps=(f"/s={root}",), compressed_all=True)
    monkeypatch.setattr(static, "open_beneath", run_short)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Too many open files"):
        Asked(files, "/s/large.bin", HTTP_ACCEPT_ENCODING="gzip")
    assert len(os.listdir("/proc/self/fd")) == before


# with a server


def options(root: Path, *more: str) -> str:
    lines = [f"http-socket = 127.0.0.1:{free_port()}", "socket = app.sock", f"pythonpath = {APPS}", "module = probe"]
    return "\n".join([*lines, "need-app = true", f"static-map = /s={root}", *more])


def get(address: Address, path: str, **headers: str) -> Answer:
    if isinstance(address, str):
        return uwsgi(address, path, **{f"HTTP_{name.upper()}": value for name, value in headers.items()})
    return http(address, path, headers=[(name.replace("_", "-"), value) for name, value in headers.items()])


def test_over_every_protocol(start: Start, root: Path) -> None:
    server = start(options(root, "static-index = index.html", "processes = 2"))
    for address in server.addresses:
        found = get(address, "/s/a.txt")
        assert (found.status, found.content, found.header("Last-Modified")) == (200, b"text", DATE)
        assert get(address, "/s/large.bin").content == LARGE
        assert get(address, "/s/large.bin", range="bytes=1000-150999").content == LARGE[1000:151_000]
        assert get(address, "/s/sub").content == b"index"
        assert get(address, "/s/a.txt", if_modified_since=DATE).status == 304
        assert get(address, "/hello").content == b"hello"
        assert get(address, "/s/none").status == 404
        head = http(address, "/s/large.bin", "HEAD") if not isinstance(address, str) else None
        assert head is None or (head.header("Content-Length"), head.body) == ("200000", b"")


def test_on_connections_that_go_on(start: Start, root: Path) -> None:
    server = start(options(root, "processes = 2"))
    (root / "style.css").write_text("changed")
    with Connection(server.address) as connection:
        for _ in range(3):
            for path, body in (("a.txt", b"text"), ("large.bin", LARGE), ("empty.txt", b""), ("style.css", b"changed")):
                connection.send(f"GET /s/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                answer, rest = connection.next_answer()
                assert (answer.body, rest) == (body, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/s/../outside/s.txt",
        "/s/%2e%2e/outside/s.txt",
        "/s/%252e%252e/outside/s.txt",
        "/s/%2e%2e%2foutside%2fs.txt",
        "/s/..%5coutside%5cs.txt",
        "/s//..//outside/s.txt",
        "/s/a.txt%00",
        "/s/out.txt",
        "/s/outdir/s.txt",
        "/s/../root-private/p.txt",
        "/s/" + "%2e%2e/" * 20 + "etc/passwd",
        "//etc/passwd",
        "http://a/s/../outside/s.txt",
    ],
)
def test_nothing_outside(outside: Server, path: str) -> None:
    """As it comes over the wire."""
    for address in outside.addresses:
        answer = get(address, path)
        assert answer.status == 404, answer
        assert SECRET not in answer.raw


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Any:
    where = tmp_path_factory.mktemp("static")
    root = where / "root"
    root.mkdir()
    (root / "a.txt").write_text("text")
    for name, file in (("outside", "s.txt"), ("root-private", "p.txt")):
        (where / name).mkdir()
        (where / name / file).write_bytes(SECRET)
    (root / "out.txt").symlink_to("../outside/s.txt")
    (root / "outdir").symlink_to("../outside")
    with Server(options(root)) as server:
        yield server


def test_a_reload_takes_other_directories(start: Start, root: Path) -> None:
    server = start(options(root))
    ini = server.directory / "uwsgi.ini"
    ini.write_text(ini.read_text().replace("/s=", "/t="))
    server.signal(1)
    wait_until(lambda: get(server.address, "/t/a.txt").content == b"text")
    assert get(server.address, "/s/a.txt").status == 404


def test_many_at_once(start: Start, root: Path) -> None:
    server = start(options(root, "processes = 2", "threads = 2"))
    answers = together(8, lambda _: [get(server.address, "/s/large.bin").content == LARGE for _ in range(20)])
    assert answers == [[True] * 20] * 8
