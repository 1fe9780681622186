"""What has to be there before anything can be measured, and what there is to say about the machine."""

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from clients import nginx_path
from contenders import APPS, BUILD, CONTENDERS, HERE, VENV

PROGRAMS = ("load", "prefork")
NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 6: "six", 8: "eight", 16: "sixteen"}


class MissingError(Exception):
    """Something isn't installed; the text says what to do."""


def check_tools(with_nginx: bool) -> None:
    packages = {"gcc": shutil.which("gcc")}
    if with_nginx:
        packages |= {"nginx": nginx_path()}
    missing = [name for name, path in packages.items() if path is None]
    if not missing:
        return
    without = "; or measure without nginx: --ways direct" if "gcc" not in missing else ""
    raise MissingError(f"{' and '.join(missing)} not found: apt-get install {' '.join(missing)}{without}")


def compile_programs() -> None:
    BUILD.mkdir(exist_ok=True)
    for name in PROGRAMS:
        source, program = HERE / f"{name}.c", BUILD / name
        if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
            continue
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra"]
        subprocess.run(["gcc", *flags, "-o", str(program), str(source)], check=True, timeout=120)


def make_venv() -> None:
    """The peers' own environment, made once. It holds nothing of ours."""
    if all((VENV / "bin" / name).exists() for name in ("uwsgi", "gunicorn", "granian", "django-admin")):
        return
    print("making benchmarks/.venv with uWSGI (compiled here, about half a minute) and other servers", flush=True)
    requirements = str(HERE / "requirements.txt")
    try:
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=120)
        install = [str(VENV / "bin" / "pip"), "install", "--quiet", "--requirement", requirements]
        subprocess.run(install, check=True, timeout=900)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        text = f"couldn't install what we compare with ({error}); on Debian they need: "
        raise MissingError(f"{text}apt-get install gcc python3-dev python3-venv") from error


def check_wsgimaster(python: str) -> None:
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('wsgimaster.__main__') is None)"
    if subprocess.run([python, "-c", look], cwd=APPS, capture_output=True, timeout=60, check=False).returncode:
        raise MissingError(
            "wsgimaster isn't installed for this Python: `make bench` does it, or name one with --python"
        )


def check_same_python(python: str) -> None:
    ours, theirs = (first_line([path, "--version"]) for path in (python, str(VENV / "bin" / "python")))
    if ours != theirs:
        raise MissingError(f"wsgimaster has {ours}, benchmarks/.venv has {theirs}: remove that folder and try again")


# ---- the machine and the versions -----------------------------------------------------------------


def first_line(command: list[str]) -> str:
    """The first line that a program prints, on either stream; empty when it can't be run."""
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return next(iter((done.stdout + done.stderr).splitlines()), "")


def version_in(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "unknown"


def describe_machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text()
    cores = len(os.sched_getaffinity(0))
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    kind = "virtual machine" if re.search(r"^flags.*\bhypervisor\b", info, re.MULTILINE) else "machine"
    return {
        "what": f"a {NUMBER_WORDS.get(cores, str(cores))}-core {kind}",
        "cores": str(cores),
        "processor": model[1].strip() if model else platform.machine(),
        "memory_gib": f"{int(memory[1]) / 2**20:.0f}" if memory else "unknown",
        "kernel": f"Linux {version_in(platform.release())}",
    }


def wsgimaster_version(python: str) -> str:
    query = "import importlib.metadata as metadata; print(metadata.version('wsgimaster'))"
    version = version_in(first_line([python, "-c", query]))
    commit = first_line(["git", "rev-parse", "--short", "HEAD"])
    changed = first_line(["git", "status", "--porcelain", "--", "../src"])
    known = re.fullmatch(r"[0-9a-f]{7,}", commit) is not None
    return f"{version} (commit {commit}{' with changes' if changed else ''})" if known else version


def describe_versions(python: str) -> dict[str, str]:
    return {
        "Python": version_in(first_line([python, "--version"])),
        "wsgimaster": wsgimaster_version(python),
        "uWSGI": version_in(first_line([str(VENV / "bin" / "uwsgi"), "--version"])),
        "gunicorn": version_in(first_line([str(VENV / "bin" / "gunicorn"), "--version"])),
        "granian": version_in(first_line([str(VENV / "bin" / "granian"), "--version"])),
        "Django": version_in(first_line([str(VENV / "bin" / "django-admin"), "--version"])),
        "nginx": version_in(first_line([nginx_path() or "nginx", "-v"])),
        "gcc": version_in(first_line(["gcc", "-dumpfullversion"])),
    }


def describe_contenders(names: list[str]) -> list[dict[str, str]]:
    """As templates: a path of this machine has no place in a published file."""
    return [asdict(CONTENDERS[name]) for name in names]
