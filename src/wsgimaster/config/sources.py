"""Everything that was written, in uWSGI's order: environment, command line, positional files.

An option that steers the reading (`ini`, `set`, `strict` ...) takes effect on the spot, so a file's lines
stand where it was named. When all is gathered, `$(NAME)`, `@(file)` and `%(name)` are replaced in the rest.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from wsgimaster.config.commandline import WHERE, CommandLine, no_configuration
from wsgimaster.config.language import (
    Assignment,
    Ini,
    LanguageError,
    Source,
    Substitution,
    decode,
    evaluate,
    file_magic,
    read_ini,
)
from wsgimaster.config.options import BY_NAME, Kind
from wsgimaster.config.spelling import MAX_SUGGESTIONS, nearest
from wsgimaster.config.system import System
from wsgimaster.config.values import is_on, shortened
from wsgimaster.errors import ConfigError

COMPATIBLE_VERSION = "2.0.31"  # `%V`: files compare it with uWSGI's
MAX_DEPTH = 32  # files that include files
MAX_FILES = 256  # readings in one configuration: files that include each other twice double at every step
DEFAULT_SECTION = "uwsgi"

# Set by uWSGI itself for its children; they are no options.
IGNORED_VARIABLES = frozenset(
    f"UWSGI_{name}"
    for name in [
        "BROODLORD_NUM",
        "EMPEROR_FD",
        "EMPEROR_FD_CONFIG",
        "EMPEROR_PROXY",
        "JAIL_PID",
        "ORIGINAL_PROC_NAME",
        "RELOADS",
        "VASSALS_DIR",
    ]
)

BLOCK_ENDS = frozenset({"endfor", "end-for", "endif", "end-if", "end"})


@dataclass(slots=True)
class Gathered:
    """What all sources hold together; an error carries the place in `assignments` that it belongs to."""

    assignments: list[Assignment] = field(default_factory=list)
    errors: list[tuple[int, ConfigError]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)  # names that some `%(name)` asked for
    failed: set[int] = field(default_factory=set)  # places in `assignments` whose value couldn't be made


def gather(command_line: CommandLine, environ: Mapping[str, str], cwd: str, system: System) -> Gathered:
    """Return every assignment of environment, command line and files, with all substitutions made."""
    reader = _Reader(cwd, system)
    for assignment in environment_assignments(environ):
        reader.add(assignment)
    for assignment in command_line.options:
        reader.add(assignment)
    for name in command_line.files:
        reader.positional(name)
    reader.finish()
    _substitute(reader.result, environ, cwd, system)
    return reader.result


def environment_assignments(environ: Mapping[str, str]) -> list[Assignment]:
    """Return the options among environment variables: UWSGI_WSGI_FILE=x is `wsgi-file = x`."""
    return [
        Assignment(
            variable.removeprefix("UWSGI_").lower().replace("_", "-"),
            value,
            f"environment variable {variable}",
            Source.ENVIRONMENT,
        )
        for variable, value in environ.items()
        if variable.startswith("UWSGI_") and variable not in IGNORED_VARIABLES
    ]


def unknown_option(assignment: Assignment, suggest: bool) -> ConfigError:
    """Return the error for a name that is no option; suggest: look for the nearest one that is."""
    meant = nearest(assignment.name) if suggest else None
    hint = f"did you mean {meant}?" if meant else "a placeholder needs set-placeholder = name=value under strict"
    return ConfigError(assignment.where, assignment.name, "unknown option", hint)


class _Reader:
    """Collects assignments; the only place where reading one can read more."""

    def __init__(self, cwd: str, system: System) -> None:
        self.result = Gathered()
        self._cwd, self._system = cwd, system
        self._magic = {**system.facts, "v": cwd, "V": COMPATIBLE_VERSION, "[": "\x1b"}
        self._strict = False
        self._reported: set[int] = set()
        self._unknown_names = 0
        self._stack: list[tuple[str, str]] = []  # the (path, section) that are being read
        self._files_read = 0
        self._last_file: str | None = None  # what `ini = :section` refers to
        self._block: Assignment | None = None  # the `if-...` or `for...` whose lines aren't served yet
        self._on_the_spot: dict[str, Callable[[Assignment], None]] = {
            "ini": self._ini,
            "include": self._include,
            "set": self._set,
            "set-placeholder": self._set_placeholder,
            "strict": self._set_strict,
        }

    def add(self, assignment: Assignment) -> None:
        """Take one assignment, and do at once what it asks for if it steers the reading."""
        option = BY_NAME.get(assignment.name)
        if assignment.name in BLOCK_ENDS:
            self._block = None
            return
        if self._block:
            return
        if option and option.kind is Kind.LOGIC:
            self._block = assignment
            self._refuse(assignment, "conditions and loops aren't served yet", "write the lines out")
            return
        if not option and self._strict and not assignment.declared:
            self._reported.add(len(self.result.assignments))
            self._error(self._unknown(assignment))
        act = self._on_the_spot.get(option.names[0]) if option else None
        self.result.assignments.append(replace(assignment, settled=True) if act else assignment)
        if act:
            act(assignment)

    def positional(self, name: str) -> None:
        """Read a file that stands on the command line without an option."""
        assignment = Assignment("ini", name, WHERE, Source.COMMAND_LINE)
        if name.startswith("["):  # uWSGI skips these, process titles look like that
            return
        if name.endswith(".ini"):
            self._read(assignment, name, "")
            return
        self._error(ConfigError(WHERE, name, *no_configuration(name)))

    def finish(self) -> None:
        """Report what only the whole shows: under `strict` also the lines before it count."""
        if self._strict:
            for index, assignment in enumerate(self.result.assignments):
                known = assignment.name in BY_NAME or assignment.declared or index in self._reported
                if not known:
                    self.result.errors.append((index, self._unknown(assignment)))

    def _unknown(self, assignment: Assignment) -> ConfigError:
        self._unknown_names += 1
        return unknown_option(assignment, self._unknown_names <= MAX_SUGGESTIONS)

    # options that act on the spot

    def _set_strict(self, assignment: Assignment) -> None:
        self._strict = is_on(assignment.value)

    def _set(self, assignment: Assignment) -> None:
        name, equals, value = (assignment.value or "").partition("=")
        option = BY_NAME.get(name)
        if not equals:
            self._refuse(assignment, f"expected name=value, found {shortened(assignment.value)}")
        elif option and option.names[0] == assignment.name:
            self._refuse(assignment, "sets itself", f"write {value}")
        else:
            self.add(replace(assignment, name=name, value=value))

    def _set_placeholder(self, assignment: Assignment) -> None:
        name, equals, value = (assignment.value or "").partition("=")
        if not equals:
            self._refuse(assignment, f"expected name=value, found {shortened(assignment.value)}")
        elif name in BY_NAME:
            self._refuse(assignment, f"{name} is an option, not a placeholder", f"write {name} = {value}")
        else:
            self.add(replace(assignment, name=name, value=value, settled=True, declared=True))

    def _ini(self, assignment: Assignment) -> None:
        written = assignment.value or ""
        name, colon, section = written.rpartition(":")
        if not colon or "://" in written:
            name, section = written, ""
        if not name and self._last_file is None:
            self._refuse(assignment, "expected the name of a file, no file was read before")
            return
        name = name or self._last_file or ""
        if "O" not in self._magic:  # the capital letters belong to the first file that `ini` names
            magic = self._file_magic(name, section)
            self._magic |= {key.upper(): value for key, value in magic.items() if key.isalpha()}
        self._read(assignment, name, section)

    def _include(self, assignment: Assignment) -> None:
        name = assignment.value or ""
        if name.endswith(".ini"):
            self._read(assignment, name, "")
        else:
            self._refuse(assignment, f"expected a file that ends in .ini, found {name!r}", "ini = takes any name")

    # files

    def _read(self, assignment: Assignment, name: str, section: str) -> None:
        path = os.path.normpath(os.path.join(self._cwd, name))
        key = (path, section)
        self._files_read += 1
        if key in self._stack:
            way = " → ".join(part for part, _ in [*self._stack[self._stack.index(key) :], key])
            self._refuse(assignment, f"this file includes itself: {way}")
        elif len(self._stack) >= MAX_DEPTH:
            self._refuse(assignment, f"files include each other more than {MAX_DEPTH} deep")
        elif self._files_read > MAX_FILES:
            if self._files_read == MAX_FILES + 1:
                self._refuse(assignment, f"more than {MAX_FILES} files are read")
        elif "://" in name or name == "-":
            self._refuse(assignment, f"only files are read, found {name!r}", "download or write the file first")
        else:
            self._last_file = name
            ini = self._parse(assignment, name, path, section)
            if ini:
                self._stack.append(key)
                self._add_lines(ini, name, section)
                self._stack.pop()

    def _parse(self, assignment: Assignment, name: str, path: str, section: str) -> Ini | None:
        try:
            text = decode(self._system.read_file(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._refuse(assignment, f"can't read {name}: {reason}")
            return None
        if "\0" in text:
            self._refuse(assignment, f"{name} holds a NUL byte, so it is no text")
            return None
        return read_ini(text, section or DEFAULT_SECTION, self._magic | self._file_magic(name, section))

    def _add_lines(self, ini: Ini, name: str, section: str) -> None:
        self.result.warnings += [f"{name}:{number}: {note}" for number, note in ini.notes]
        if not ini.found:
            self.result.warnings.append(f"{name}: has no section [{section or DEFAULT_SECTION}]")
        for line in ini.lines:
            self.add(Assignment(line.key, line.value, f"{name}:{line.number}", Source.FILE))

    def _file_magic(self, name: str, section: str) -> dict[str, str]:
        path = os.path.normpath(os.path.join(self._cwd, name))
        return file_magic(name, path, section) | {"i": self._system.inode(path)}

    def _refuse(self, assignment: Assignment, problem: str, hint: str | None = None) -> None:
        self._error(ConfigError(assignment.where, assignment.name, problem, hint))

    def _error(self, error: ConfigError) -> None:
        self.result.errors.append((len(self.result.assignments), error))


def _substitute(gathered: Gathered, environ: Mapping[str, str], cwd: str, system: System) -> None:
    """Replace `$(NAME)`, `@(file)` and `%(name)`, one pass over everything after the other."""
    first: dict[str, int] = {}
    for index, assignment in enumerate(gathered.assignments):
        first.setdefault(assignment.name, index)

    def placeholder(name: str) -> str | None:
        gathered.used.add(name)
        return gathered.assignments[first[name]].value if name in first else None

    def content(name: str) -> str:
        return _file_content(name, cwd, system)

    _run_pass(gathered, Substitution("$", environ.get))
    _run_pass(gathered, Substitution("@", content))
    _run_pass(gathered, Substitution("%", lambda expression: evaluate(expression, placeholder)))


def _run_pass(gathered: Gathered, substitution: Substitution) -> None:
    for index, assignment in enumerate(gathered.assignments):
        if assignment.settled or assignment.value is None or index in gathered.failed:
            continue
        try:
            value = substitution.apply(assignment.value)
        except LanguageError as error:
            gathered.errors.append((index, ConfigError(assignment.where, assignment.name, str(error))))
            gathered.failed.add(index)
            if substitution.exhausted:  # every further value would only say the same
                return
            continue
        if value is not assignment.value:
            gathered.assignments[index] = replace(assignment, value=value)


def _file_content(name: str, cwd: str, system: System) -> str:
    if "://" in name:
        raise LanguageError(f"only files are read, found @({name})")
    try:
        return decode(system.read_file(os.path.join(cwd, name))).removesuffix("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LanguageError(f"can't read the file of @({name}): {reason}") from None
