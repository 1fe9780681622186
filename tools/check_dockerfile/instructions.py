"""The instructions of a Dockerfile, run in order: those that ours uses, and an error for any other."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from host import Host, Mounts, quietly
from stage import Stage, make_python_base
from syntax import Failure, Ignored, Instruction


class Builder:
    """Runs the instructions of one Dockerfile; `stage` is the present one, at the end the image."""

    def __init__(self, context: Path, work: Path, mirror: str) -> None:
        """context: the directory that a client would send; work: for the roots; mirror: of Debian."""
        self.context, self.work, self.mirror = context, work, mirror
        ignore = context / ".dockerignore"
        self.ignored = Ignored(ignore.read_text() if ignore.exists() else "")
        (work / "host").mkdir(mode=0o700)
        self.host = Host.read(work / "host")
        self.bases: dict[str, Path] = {}  # by image
        self.stages: dict[str, Stage] = {}  # by name
        self.stage = Stage(Path("/nonexistent"))
        self.known: dict[str, Callable[[Instruction], None]] = {
            "FROM": self.from_,
            "RUN": self.run,
            "COPY": self.copy,
            "WORKDIR": self.workdir,
            "USER": self.user,
            "EXPOSE": self.expose,
            "ENTRYPOINT": self.entrypoint,
            "CMD": self.cmd,
        }

    def build(self, instructions: list[Instruction]) -> Stage:
        for instruction in instructions:
            if instruction.name not in self.known:
                unknown(instruction)
            began = time.monotonic()
            self.known[instruction.name](instruction)
            print(f"{time.monotonic() - began:6.1f} s  {instruction}")
        return self.stage

    def from_(self, instruction: Instruction) -> None:
        image, *named = instruction.text.split()
        if instruction.flags or (named and named[0].upper() != "AS") or len(named) not in (0, 2):
            unknown(instruction)
        name = named[1] if named else str(len(self.stages))
        base = self.bases.get(image) or self._make_base(image)
        self.stage = self.stages[name] = Stage(self.work / f"stage-{name}")
        quietly("cp", "--archive", "--reflink=auto", base, self.stage.root)

    def _make_base(self, image: str) -> Path:
        match = re.fullmatch(r"python:(\d+\.\d+)-slim-(\w+)", image)
        if not match:
            raise Failure(f"{image}: only python:X.Y-slim-SUITE has a stand-in")
        base = self.bases[image] = self.work / f"base-{len(self.bases)}"
        began = time.monotonic()
        make_python_base(base, *match.groups(), self.host, self.mirror)
        print(f"{time.monotonic() - began:6.1f} s  (stand-in for {image}: Debian {match[2]})")
        return base

    def run(self, instruction: Instruction) -> None:
        mounts: Mounts = []
        for name, value in instruction.flags.items():
            options = dict(part.partition("=")[::2] for part in value.split(","))
            if name != "mount" or options.keys() != {"type", "from", "source", "target"} or options["type"] != "bind":
                unknown(instruction)
            mounts.append((self.stages[options["from"]].inside(options["source"]), options["target"]))
        if instruction.exec_form():
            unknown(instruction)
        self.stage.run(instruction.text, self.host, mounts)

    def copy(self, instruction: Instruction) -> None:
        *sources, target = instruction.text.split()
        if instruction.flags or re.search(r'[*?\["]', instruction.text):
            unknown(instruction)
        place = self.stage.inside(target)
        into_directory = len(sources) > 1 or target.endswith("/") or place.is_dir()
        for name in sources:
            source = self.context / name
            if source.is_dir():  # what it holds, not itself
                shutil.copytree(source, place, ignore=self._ignored_in, dirs_exist_ok=True, symlinks=True)
            elif source.exists() and self._is_sent(source):
                (place if into_directory else place.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)
            else:
                raise Failure(f"line {instruction.line}: {name} isn't in the build context")

    def _ignored_in(self, directory: str, names: list[str]) -> list[str]:
        return [name for name in names if not self._is_sent(Path(directory, name))]

    def _is_sent(self, path: Path) -> bool:
        """A directory if something in it is."""
        if path.is_dir() and not path.is_symlink():
            return any(self._is_sent(below) for below in path.iterdir())
        return str(path.relative_to(self.context)) not in self.ignored

    def workdir(self, instruction: Instruction) -> None:
        place = self.stage.inside(instruction.text)
        place.mkdir(parents=True, exist_ok=True)
        self.stage.workdir = f"/{place.relative_to(self.stage.root)}"

    def user(self, instruction: Instruction) -> None:
        if not re.fullmatch(r"\d+:\d+", instruction.text):
            unknown(instruction)
        self.stage.user = instruction.text

    def expose(self, instruction: Instruction) -> None:
        self.stage.ports += [int(port) for port in instruction.text.split()]

    def entrypoint(self, instruction: Instruction) -> None:
        self.stage.entrypoint = instruction.exec_form() or unknown(instruction)

    def cmd(self, instruction: Instruction) -> None:
        self.stage.command = instruction.exec_form() or unknown(instruction)


def unknown(instruction: Instruction) -> NoReturn:
    raise Failure(f"line {instruction.line}: {instruction}: not known here; teach it to instructions.py")
