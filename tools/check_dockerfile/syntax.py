"""What a Dockerfile and a .dockerignore say, as far as ours use the language."""

import json
import re
from dataclasses import dataclass


class Failure(Exception):
    """Ends everything, told without a traceback."""


@dataclass(frozen=True)
class Instruction:
    line: int
    name: str
    flags: dict[str, str]
    text: str

    def exec_form(self) -> list[str] | None:
        """The words of ["word", ...]; None for a text that a shell would read."""
        return json.loads(self.text) if self.text.startswith("[") else None

    def __str__(self) -> str:
        flags = [f"--{name}={value}" for name, value in self.flags.items()]
        text = " ".join([self.name, *flags, *self.text.split()])
        return text if len(text) <= 100 else f"{text[:97]}..."


def parse(dockerfile: str) -> list[Instruction]:
    """Comments, continued lines and flags as Docker reads them; no parser directives, no here-documents."""
    instructions: list[Instruction] = []
    start, pending = 0, ""
    for number, line in enumerate(dockerfile.splitlines(), 1):
        if line.lstrip().startswith("#") or not (pending or line.strip()):
            continue
        start = start if pending else number
        pending += line.removesuffix("\\")
        if not line.endswith("\\"):
            instructions.append(_instruction(start, pending.strip()))
            pending = ""
    return instructions


def _instruction(line: int, text: str) -> Instruction:
    name, _, rest = text.partition(" ")
    rest, flags = rest.strip(), {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    return Instruction(line, name.upper(), flags, rest)


class Ignored:
    """The rules of .dockerignore: the last one that matches a path, or a directory above it, decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self.rules = [
            (not line.startswith("!"), _pattern(line.removeprefix("!").strip("/")))
            for line in lines
            if line and not line.startswith("#")
        ]

    def __contains__(self, path: str) -> bool:
        """path: relative to the build context."""
        return next((excludes for excludes, pattern in reversed(self.rules) if pattern.fullmatch(path)), False)


def _pattern(glob: str) -> re.Pattern[str]:
    """`*` and `?` stay within a name, `**/` is any number of directories."""
    if "[" in glob:
        raise Failure(f".dockerignore: {glob}: character classes aren't known here")
    translations = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*|\?)", glob)
    return re.compile("".join(translations.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")
