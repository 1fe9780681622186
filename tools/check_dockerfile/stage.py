"""A root directory and how commands run in it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from host import Host, Mounts, download_proxies, quietly

SEARCH_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

# As PID 1 of its name spaces: mount the pairs of source and target, then become the command. The mounts exist in this
# mount name space only: they are gone with its last process, and deleting a root can't reach what is mounted there.
LAUNCH = """
root=$1; shift
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do mount -o bind,ro "$1" "$root$2"; shift 2; done
shift
exec "$@"
"""


@dataclass
class Stage:
    """One FROM and what follows: the root and the image's metadata."""

    root: Path
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def launch(
        self, words: list[str], mounts: Mounts, environment: dict[str, str], *name_spaces: str
    ) -> list[str | Path]:
        """The command line that runs the words as PID 1 in this root. name_spaces: more of them, as for unshare."""
        for source, target in mounts:
            self._make_target(source, target)
        unshare = ["unshare", "--mount", "--pid", "--ipc", "--uts", *name_spaces, "--fork", "--kill-child"]
        pairs = [word for pair in mounts for word in pair]
        variables = {"PATH": SEARCH_PATH, "HOME": self._home(), **environment}
        env = ["env", "-i", f"--chdir={self.workdir}", *(f"{name}={value}" for name, value in variables.items())]
        chroot = ["chroot", f"--userspec={self.user}", "--groups=", self.root]
        return [*unshare, "/bin/sh", "-euc", LAUNCH, "launch", self.root, *pairs, "--", *chroot, *env, *words]

    def run(self, script: str, host: Host, mounts: Mounts) -> None:
        quietly(*self.launch(["/bin/sh", "-c", script], [*host.mounts, *mounts], host.environment))

    def inside(self, path: str) -> Path:
        """Where a path of the image is out here; relative ones start at WORKDIR."""
        return self.root / os.path.normpath(os.path.join(self.workdir, path)).lstrip("/")

    def _home(self) -> str:
        for line in (self.root / "etc/passwd").read_text().splitlines():
            fields = line.split(":")
            if fields[2] == self.user.partition(":")[0]:
                return fields[5]
        return "/"

    def _make_target(self, source: Path, target: str) -> None:
        place = self.root / target.lstrip("/")
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir() if source.is_dir() else place.touch()


# The image has Python's headers, but neither a compiler nor the C library's headers: unpack Debian's package of them
# without what it depends on, so that a Dockerfile that forgets the others is found out.
INTO_PYTHON_IMAGE = """
set -e
python3 -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "{version}")' || {{
    echo "{suite} has $(python3 -V), the image is to have {version}"
    exit 1
}}
python3 -m venv /usr/local
apt-get update
cd /tmp
apt-get download libpython{version}-dev
dpkg-deb --fsys-tarfile libpython{version}-dev_*.deb | tar -x -C / ./usr/include
rm -r libpython{version}-dev_*.deb /var/lib/apt/lists/*
"""


def make_python_base(root: Path, version: str, suite: str, host: Host, mirror: str) -> None:
    """A stand-in for the image python:VERSION-slim-SUITE."""
    options = ["--variant=minbase", "--include=python3,python3-venv"]
    quietly("debootstrap", *options, suite, root, mirror, environment={**os.environ, **download_proxies()})
    Stage(root).run(INTO_PYTHON_IMAGE.format(version=version, suite=suite), host, [])
