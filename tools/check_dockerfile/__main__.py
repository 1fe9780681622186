#!/usr/bin/env python3
"""Run the Dockerfile's steps, and the container that they make, where there is no Docker engine.

    python3 tools/check_dockerfile     as root, on Debian; takes about two minutes

Each stage is a directory that a RUN has as its root, in name spaces of its own. At the end the entrypoint runs as
PID 1, answers over loopback HTTP, finishes a running request after SIGTERM and exits 0: once with the image's own
CMD, once with a mounted application and its ini file.

What differs from an engine: the base image python:X.Y-slim-SUITE is replaced by debootstrap's SUITE with Debian's
python3, a virtual environment in /usr/local, where the image has its Python, and Python's headers. Layers, caching,
image metadata, seccomp and cgroups aren't there. So this shows that the steps and the container's command work, not
that an engine builds the image.

Read syntax.py, instructions.py, stage.py, container.py, in this order.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from container import check_container
from host import debian_mirror, quietly
from instructions import Builder
from stage import Stage
from syntax import Failure, parse

TOP = Path(__file__).resolve().parent.parent.parent

APP_INI = """\
[uwsgi]
http-socket = :{port}
wsgi-file = app.py
need-app = true
strict = true
"""

APP = '''\
import subprocess
import time


def orphan():
    """The number of a process that ends without its parent."""
    return subprocess.check_output(["sh", "-c", "true & echo $!"])


def slow():
    time.sleep(2)
    return b"slow, but finished"


PAGES = {"/": lambda: b"mounted", "/orphan": orphan, "/slow": slow}


def application(environ, start_response):
    body = PAGES[environ["PATH_INFO"]]()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
'''


def main() -> int:
    parser = argparse.ArgumentParser(prog="check_dockerfile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dockerfile", nargs="?", type=Path, default=TOP / "Dockerfile")
    parser.add_argument("--mirror", help="of Debian; default: the one that apt has on this host")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the directory is removed
    try:
        prepare_host()
        run(arguments.dockerfile.resolve(), arguments.mirror or debian_mirror())
    except Failure as failure:
        print(f"failed: {failure}", file=sys.stderr)
        return 1
    return 0


def prepare_host() -> None:
    if os.geteuid() != 0:
        raise Failure("root is needed, for debootstrap, chroot and name spaces")
    if shutil.which("debootstrap") is None:
        print("installing debootstrap")
        quietly("apt-get", "update")
        quietly("apt-get", "install", "--yes", "--no-install-recommends", "debootstrap")


def run(dockerfile: Path, mirror: str) -> None:
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="check-dockerfile-")).resolve()
    try:
        builder = Builder(dockerfile.parent, work, mirror)
        check_image(builder.build(parse(dockerfile.read_text())), work)
        if left := [*processes_in(work), *mounts_in(work)]:
            raise Failure(f"these are left: {left}")
    finally:
        clean_up(work)
    print(f"{time.monotonic() - began:6.1f} s  all steps and both containers; no process, mount or directory is left")


def check_image(image: Stage, work: Path) -> None:
    demo = {"/": "wsgimaster serves", "/sleep?seconds=2": "slept for 2 s"}
    check_container(image, image.command, [], work / "demo.log", demo)
    mounted = work / "mounted"
    mounted.mkdir(mode=0o755)
    (mounted / "app.ini").write_text(APP_INI.format(port=image.ports[0]))
    (mounted / "app.py").write_text(APP)
    pages = {"/": "mounted", "/orphan": "{orphan}", "/slow": "slow, but finished"}
    check_container(image, ["app.ini"], [(mounted, "/app")], work / "mounted.log", pages)


def clean_up(work: Path) -> None:
    """Remove the directory, after an interruption or a failure with what still runs in it."""
    deadline = time.monotonic() + 10
    while left := processes_in(work):
        if time.monotonic() > deadline:
            raise Failure(f"{work} stays, because processes don't end: {left}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    if left := mounts_in(work):  # removing the directory would take files of the host along
        raise Failure(f"{work} stays, because of mounts: {left}")
    shutil.rmtree(work)


def processes_in(work: Path) -> list[int]:
    """Those whose root is below the directory."""
    found = []
    for link in Path("/proc").glob("[0-9]*/root"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if link.readlink().is_relative_to(work):
                found.append(int(link.parent.name))
    return found


def mounts_in(work: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(work)]


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
