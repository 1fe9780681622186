"""What this machine sets for pip and apt; it holds for RUN too, so that packages come from where they do here."""

import configparser
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from syntax import Failure

Mounts = list[tuple[Path, str]]  # read-only: what, and where in the root


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def quietly(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run it; what it prints is shown if it fails."""
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise Failure(f"exit code {done.returncode}:\n{done.stdout.decode(errors='replace')}")


@dataclass(frozen=True)
class Host:
    """Nothing of it stays in a root but empty files and directories, on which it was mounted."""

    environment: dict[str, str]
    mounts: Mounts

    @classmethod
    def read(cls, scratch: Path) -> "Host":
        """scratch: a directory for the files that are mounted."""
        names = re.compile(r"PIP_\w+|\w+_proxy|SSL_CERT_FILE|REQUESTS_CA_BUNDLE", re.IGNORECASE)
        environment = {name: value for name, value in os.environ.items() if names.fullmatch(name)}
        own_file = environment.pop("PIP_CONFIG_FILE", None)
        settings = pip_settings(own_file)
        pip, apt = scratch / "pip.conf", scratch / "apt.conf"
        with pip.open("w") as file:
            settings.write(file)
        apt.write_text(output("apt-config", "dump", "Acquire"))
        mounts = [(pip, "/etc/pip.conf"), (apt, "/etc/apt/apt.conf.d/99host")]
        same_place = [Path(f"/etc/{name}") for name in ("resolv.conf", "apt/auth.conf", "apt/auth.conf.d")]
        values = [*environment.values(), *(value for section in settings.values() for value in section.values())]
        same_place += local_paths(" ".join(values))
        mounts += [(path.resolve(), str(path)) for path in same_place if path.exists()]
        return cls(environment, mounts)


def pip_settings(own_file: str | None) -> configparser.RawConfigParser:
    """What pip's files say; the later ones win, as in pip."""
    settings = configparser.RawConfigParser()
    home = Path.home()
    settings.read(["/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf", own_file or "/dev/null"])
    return settings


def local_paths(text: str) -> list[Path]:
    """The files and directories that settings name; an index's pages link to files beside it, hence its parent."""
    found = set()
    for word in text.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            found.add(path.parent if word.startswith("file://") else path)
    return sorted(found)


def debian_mirror() -> str:
    """Where this machine's own release comes from."""
    release = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    targets = output("apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages")
    for line in targets.splitlines():
        suite, _, site = line.partition(" ")
        if release and suite == release[1]:
            return site
    raise Failure("apt has no source for this machine's Debian release; name a mirror: --mirror URL")


def download_proxies() -> dict[str, str]:
    """For debootstrap: it downloads with wget, which doesn't read apt's configuration."""
    found = {}
    for scheme in ("http", "https"):
        value = output("apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy")
        if match := re.fullmatch(r"PROXY='(.+)'\s*", value):
            found[f"{scheme}_proxy"] = match[1]
    return found
