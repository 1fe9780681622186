"""What people should know about a configuration that nevertheless works, in few lines."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from wsgimaster.config.language import Assignment, Source
from wsgimaster.config.options import FLAGS, NUMBERS, Kind, Option, State
from wsgimaster.config.spelling import MAX_SUGGESTIONS, SYNONYMS, nearest, plain
from wsgimaster.config.values import INLINE_COMMENT, is_on

MOST_WARNINGS = 100  # lines; what comes after them is counted

# Plugins of uWSGI whose work is always here; they may be named with a path or a file ending.
BUILT_IN = re.compile(r"(?:.*/)?(?:lib)?(?:python[0-9.]*|http|corerouter|uwsgi)(?:_plugin)?(?:\.so)?")
PLUGIN_OPTIONS = ("plugins", "need-plugins", "plugins-dir")


@dataclass
class Notes:
    """Collects warnings while a configuration is read."""

    used: set[str]  # names that some placeholder asked for
    warnings: list[str] = field(default_factory=list)
    no_effect: list[tuple[str, str]] = field(default_factory=list)
    _commented: list[str] = field(default_factory=list)  # where numbers and flags have text behind them
    _told: set[str] = field(default_factory=set)

    def add(self, assignment: Assignment, note: str) -> None:
        self.warnings.append(f"{assignment.where}: {assignment.name}: {note}")

    def unknown(self, assignment: Assignment) -> None:
        """Warn of a name that is no option, unless it is a placeholder that something uses."""
        if assignment.declared or assignment.name in self.used or assignment.name in self._told:
            return
        self._told.add(assignment.name)
        meant = nearest(assignment.name) if len(self._told) <= MAX_SUGGESTIONS else None
        if assignment.source is Source.ENVIRONMENT and (not meant or assignment.name in SYNONYMS):
            return  # Kubernetes and image builders set many of these (UWSGI_PORT), none of them a mistake
        if meant and plain(assignment.name) == meant:
            self.add(assignment, f"is ignored, the option is spelled {meant}")
        elif meant:
            self.add(assignment, f"is no option and nothing uses it as %({assignment.name}); did you mean {meant}?")
        else:
            self.add(assignment, f"is no option and nothing uses it as %({assignment.name})")

    def known(self, option: Option, assignment: Assignment) -> None:
        """Note what can be said of an assignment from its row alone."""
        off = option.kind in FLAGS and not is_on(assignment.value)
        if option.state is State.NO_EFFECT and not off and not _is_built_in(option, assignment.value):
            self.no_effect.append((assignment.name, assignment.where))
        if option.state is State.ALWAYS_ON and off:
            self.add(assignment, f"can't be switched off: {option.reason}")
        if assignment.value and INLINE_COMMENT.search(assignment.value):
            self._comment(option, assignment)

    def lines(self) -> list[str]:
        """Return all warnings, those that concern many lines of a file as one."""
        lines = list(self.warnings)
        if self._commented:
            places = _places(self._commented)
            lines.append(f"{places}: text after ; or # is part of the value (it does no harm in these lines)")
        if self.no_effect:
            names = ", ".join(dict.fromkeys(name for name, _ in self.no_effect))
            lines.append(f"known options that have no effect yet: {names}")
        if len(lines) > MOST_WARNINGS:
            lines = [*lines[: MOST_WARNINGS - 1], f"and {len(lines) - MOST_WARNINGS + 1} more warnings"]
        return lines

    def _comment(self, option: Option, assignment: Assignment) -> None:
        value = assignment.value or ""
        text = INLINE_COMMENT.split(value, maxsplit=1)[0].strip()
        if option.kind in NUMBERS or (option.kind in FLAGS and is_on(text)):
            self._commented.append(assignment.where)
        elif option.kind in FLAGS:
            return  # the reader of flags says that it counts as true
        elif option.state is State.WORKS and option.kind not in (Kind.PAIR, Kind.SOCKETS, Kind.TLS_SOCKETS):
            self.add(assignment, f"there are no comments behind values, all of {value!r} counts")


def _is_built_in(option: Option, value: str | None) -> bool:
    if option.names[0] not in PLUGIN_OPTIONS:
        return False
    if option.names[0] == "plugins-dir":
        return True
    return all(BUILT_IN.fullmatch(name.strip()) for name in (value or "").split(",") if name.strip())


def _places(places: list[str]) -> str:
    """Return "a.ini:3, 5, 7" for ["a.ini:3", "a.ini:5", "a.ini:7"]."""
    by_file: dict[str, list[str]] = {}
    for place in places:
        name, colon, number = place.rpartition(":")
        by_file.setdefault(name if colon else place, []).append(number if colon else "")
    return "; ".join(f"{name}:{', '.join(numbers)}".rstrip(":") for name, numbers in by_file.items())
