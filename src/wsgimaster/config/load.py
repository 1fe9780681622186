"""The door: argv, environment and files in, Settings out, or every problem at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from pydantic import BaseModel, ValidationError

from wsgimaster import __version__
from wsgimaster.config import commandline
from wsgimaster.config.addresses import is_public
from wsgimaster.config.help import help_text
from wsgimaster.config.language import Assignment
from wsgimaster.config.notes import Notes
from wsgimaster.config.options import BY_NAME, FLAGS, LISTS, Kind, Option, State
from wsgimaster.config.sources import Gathered, gather
from wsgimaster.config.system import System
from wsgimaster.config.values import READERS, Context, Value, is_on, shortened
from wsgimaster.errors import ConfigError, ConfigErrors
from wsgimaster.settings import (
    Algorithm,
    Protocol,
    Settings,
)

SECTIONS = {name: cast(type[BaseModel], field.annotation) for name, field in Settings.model_fields.items()}


@dataclass(frozen=True)
class Loaded:
    """What a configuration says.

    action "version" or "help": print `text` and exit 0, there are no settings; "stop", "reload", "pause", "ping": do
    that to the server whose pidfile or address `text` is; "show-config": log `text` and go on, as uWSGI does; None:
    start.
    """

    settings: Settings = field(default_factory=Settings)
    warnings: tuple[str, ...] = ()  # one line each, ready for the log
    no_effect: tuple[tuple[str, str], ...] = ()  # (option as written, where) of known ones that do nothing yet
    effective: tuple[tuple[str, str | None, str], ...] = ()  # (name, value, where), in order, all replaced
    action: str | None = None
    text: str = ""


def load(
    argv: list[str],
    environ: Mapping[str, str],
    cwd: str,
    system: System | None = None,
    width: int = 100,
    serves: bool = True,
) -> Loaded:
    """Return the configuration, or raise ConfigErrors with everything that is wrong with it.

    argv: without the program's name; cwd: the start directory, to which file names are relative;
    system: the machine (None: this one); width: of the terminal, for --help; serves: there has to be a socket.
    """
    command_line = commandline.parse(argv)
    for assignment in command_line.options:
        option = BY_NAME[assignment.name]
        if option.names[0] == "help":
            return Loaded(action="help", text=help_text(width))
        if option.names[0] == "version":
            return Loaded(action="version", text=f"wsgimaster {__version__}\n")
        if option.kind is Kind.ACTION and option.state is State.WORKS:
            return Loaded(action=option.names[0], text=assignment.value or "")
    system = system or System()
    gathered = gather(command_line, environ, cwd, system)
    build = _Build(gathered, Context(system, cwd))
    settings = build.settings()
    errors = command_line.errors + [error for _, error in sorted(build.errors, key=lambda pair: pair[0])]
    if serves and settings and not settings.sockets.addresses and not errors:
        errors.append(ConfigError("configuration", None, "no listening socket", NO_SOCKET))
    if errors or settings is None:
        raise ConfigErrors(errors)
    effective = tuple((one.name, one.value, one.where) for one in gathered.assignments)
    return Loaded(
        settings=settings,
        warnings=tuple(build.notes.lines()),
        no_effect=tuple(build.notes.no_effect),
        effective=effective,
        action="show-config" if build.shows_config else None,
        text=show_config(effective) if build.shows_config else "",
    )


ZERO_IS_DEFAULT = tuple(
    f"cheaper.{name}"
    for name in [
        "step",
        "idle_rounds",
        "busyness_max",
        "busyness_min",
        "multiplier",
        "penalty",
        "backlog_alert",
        "backlog_multiplier",
        "backlog_step",
        "backlog_nonzero",
    ]
)
UNSET_VARIABLE = re.compile(r"\$\((\w+)\)")  # what is left of `$(NAME)` after the pass
NO_SOCKET = "add socket = ... or http-socket = ..."


def show_config(effective: tuple[tuple[str, str | None, str], ...]) -> str:
    """Return a configuration as an ini text, in uWSGI's form; options without a value are true."""
    lines = [f"{name} = {'true' if value is None else value}" for name, value, _ in effective]
    return "\n".join([";uWSGI instance configuration", "[uwsgi]", *lines, ";end of configuration", ""])


@dataclass
class _Build:
    """Assignments become values, one setting after the other; each remembers who set it last."""

    gathered: Gathered
    context: Context
    notes: Notes = field(init=False)
    errors: list[tuple[int, ConfigError]] = field(init=False)
    shows_config: bool = False
    _values: dict[str, Value] = field(default_factory=dict)  # by "section.field"
    _origin: dict[str, int] = field(default_factory=dict)  # the same: place of the last assignment
    _lists: dict[str, list[Value]] = field(default_factory=dict)
    _flags: dict[str, dict[str, bool]] = field(default_factory=dict)  # options that switch the same setting on

    def __post_init__(self) -> None:
        self.notes = Notes(self.gathered.used)
        self.notes.warnings.extend(self.gathered.warnings)
        self.errors = list(self.gathered.errors)

    def settings(self) -> Settings | None:
        """Return the settings, or None if a section has an error (which then stands in `errors`)."""
        self._read_protocol()
        for index, assignment in enumerate(self.gathered.assignments):
            if index not in self.gathered.failed:
                self._take(index, assignment)
        self._combine()
        sections = {name: self._section(name) for name in SECTIONS}
        if None in sections.values():
            return None
        settings = Settings.model_validate(sections)
        self._warn_of_open_sockets(settings)
        if settings.harakiri.graceful_timeout and settings.processes.threads > 1:
            self.notes.warnings.append(
                "harakiri-graceful-timeout works with threads = 1 only: an exception can be raised in a process's main"
                " thread and nowhere else; stuck requests are killed at once"
            )
        self._warn_of_limits(settings)
        return settings

    def _take(self, index: int, assignment: Assignment) -> None:
        option = BY_NAME.get(assignment.name)
        if option is None:
            self.notes.unknown(assignment)
            return
        if "\0" in (assignment.value or ""):
            self._refuse(index, assignment, "holds a NUL byte")
            return
        self.notes.known(option, assignment)
        off = option.kind in FLAGS and not is_on(assignment.value)
        if option.state is State.REFUSED and not off and option.kind is not Kind.LOGIC:
            self._refuse(index, assignment, "isn't served here", option.reason)
        elif option.names[0] == "show-config":
            self.shows_config = not off
        elif option.names[0] == "cheaper-algo-list" and not off:
            self.notes.warnings.append(f"cheaper algorithms: {', '.join(Algorithm)}")
        elif option.state is State.WORKS and option.field:
            self._read(index, assignment, option)

    def _read(self, index: int, assignment: Assignment, option: Option) -> None:
        if option.names[0] in ("protocol", "abstract-socket"):  # were read before the addresses
            return
        unset = UNSET_VARIABLE.search(assignment.value or "")
        hint = f"the environment has no {unset[1]}" if unset else None
        try:
            value, note = READERS[option.kind](option, assignment.value, self.context)
        except ValueError as error:
            self._refuse(index, assignment, str(error), hint)
            return
        if note or hint:
            self.notes.add(assignment, " and ".join(part for part in (hint, note) if part))
        self._origin[option.field] = index
        if option.kind in LISTS:
            self._lists.setdefault(option.field, []).extend(cast(tuple[Value, ...], value))
        elif option.kind is Kind.USER:
            self._values["identity.uid"], self._values["identity.user"] = cast(tuple[int, str | None], value)
        elif option.kind is Kind.FLAG:
            self._flags.setdefault(option.field, {})[option.names[0]] = bool(value)
        else:
            self._values[option.field] = value

    def _read_protocol(self) -> None:
        """Read what all addresses depend on, wherever it stands among them."""
        protocol, abstract = Protocol.UWSGI, False
        for index, assignment in enumerate(self.gathered.assignments):
            option = BY_NAME.get(assignment.name)
            if option and option.names[0] == "abstract-socket":
                abstract = is_on(assignment.value)
            elif option and option.names[0] == "protocol":
                try:
                    protocol = Protocol(assignment.value or "")
                except ValueError:
                    problem = f"expected uwsgi or http, found {shortened(assignment.value)}"
                    self._refuse(index, assignment, problem, "the other protocols aren't served")
        self.context = Context(self.context.system, self.context.cwd, protocol, abstract)

    def _combine(self) -> None:
        """Settle what follows from several options together."""
        values = self._values
        values |= {name: tuple(entries) for name, entries in self._lists.items()}
        values |= {name: any(switches.values()) for name, switches in self._flags.items()}
        if values.get("identity.daemonize"):
            values["logging.file"] = values["identity.daemonize"]  # it wins over logto, as in uWSGI
        titles = ("titles.every", "titles.master", "titles.prefix", "titles.append")
        if any(name in values for name in titles):
            values["titles.automatic"] = True
        for name in ("processes.processes", "processes.threads"):
            if values.get(name) == 0:
                values[name] = 1
                self.notes.add(self._set_by(name), "0 counts as 1")
        defaults = ("sockets.waiting_limit", "processes.max_fd", "processes.limit_nproc", "processes.thread_stack_kib")
        for name in defaults:
            if values.get(name) == 0:
                values[name] = None
                self.notes.add(self._set_by(name), "0 counts as the default")
        self._combine_cheaper()

    def _combine_cheaper(self) -> None:
        """What uWSGI makes of odd numbers of workers, and of zeros."""
        values = self._values
        for name in ZERO_IS_DEFAULT:
            if values.get(name) == 0:
                del values[name]
                self.notes.add(self._set_by(name), "0 counts as the default")
        algorithm = values.get("cheaper.algorithm")
        if algorithm is not None and algorithm not in set(Algorithm):
            values["cheaper.algorithm"] = Algorithm.SPARE
            known = ", ".join(Algorithm)
            self.notes.add(
                self._set_by("cheaper.algorithm"), f"there is no such algorithm, spare is used ({known} exist)"
            )
        most = cast(int, values.get("processes.processes", 1))
        least = cast(int, values.get("cheaper.minimum", 0))
        if least and least >= most:
            place = self._origin["cheaper.minimum"]
            hint = "cheaper is the least number of workers, processes the greatest"
            self._refuse(
                place, self._set_by("cheaper.minimum"), f"must be lower than processes ({most}), found {least}", hint
            )
        first = cast(int, values.get("cheaper.initial", 0))
        if first and not least:
            del values["cheaper.initial"]
            self.notes.add(self._set_by("cheaper.initial"), "has no effect without cheaper")
        elif first and not min(least, most) <= first <= most:
            values["cheaper.initial"] = max(least, min(first, most))
            self.notes.add(self._set_by("cheaper.initial"), f"{first} counts as {values['cheaper.initial']}")
        if values.get("cheaper.die_on_idle") and not values.get("cheaper.idle"):
            self.notes.warnings.append("die-on-idle has no effect without idle = seconds")

    def _set_by(self, name: str) -> Assignment:
        return self.gathered.assignments[self._origin[name]]

    def _section(self, name: str) -> BaseModel | None:
        prefix = f"{name}."
        values = {key.removeprefix(prefix): one for key, one in self._values.items() if key.startswith(prefix)}
        try:
            return SECTIONS[name](**values)
        except ValidationError as error:
            for problem in error.errors():
                if not problem["loc"]:  # several options together don't fit: told where the last of them was set
                    index = max(place for key, place in self._origin.items() if key.startswith(prefix))
                    self._refuse(index, self.gathered.assignments[index], str(problem["ctx"]["error"]))
                    continue
                index = self._origin[f"{name}.{problem['loc'][0]}"]
                assignment = self.gathered.assignments[index]
                if problem["type"] == "value_error":  # our own words
                    self._refuse(index, assignment, str(problem["ctx"]["error"]))
                    continue
                message = problem["msg"].removeprefix("Input ").removeprefix("should ")
                self._refuse(index, assignment, f"must {message}, found {shortened(assignment.value)}")
            return None

    def _warn_of_open_sockets(self, settings: Settings) -> None:
        if settings.sockets.http_proxy_protocol and not settings.sockets.forwarded_allow:
            self.notes.add(
                self._set_by("sockets.http_proxy_protocol"),
                "nobody may send PROXY lines, and whoever does gets 400; name the load balancers:"
                " forwarded-allow = 10.0.0.0/8",
            )
        if settings.sockets.allow_from:
            return
        for address in settings.sockets.addresses:
            if address.protocol is Protocol.UWSGI and is_public(address):
                self.notes.warnings.append(
                    f"the uwsgi socket {address.name} may be open to other machines, and whoever reaches it"
                    " can set any variable; name those that may: allow-from = 10.0.0.0/8"
                )

    def _warn_of_limits(self, settings: Settings) -> None:
        processes = settings.processes
        if processes.limit_as and processes.threads > 1:
            stack = f"{processes.thread_stack_kib} KiB" if processes.thread_stack_kib else "ulimit -s, mostly 8 MiB"
            self.notes.add(
                self._set_by("processes.limit_as"),
                f"each of the {processes.threads} threads takes its stack ({stack}) and up to 64 MiB for an arena of"
                " malloc's out of this address space, used or not (env = MALLOC_ARENA_MAX=2 needs fewer arenas)",
            )
        own = settings.tasks
        if processes.limit_nproc is not None and processes.limit_nproc < own:
            self.notes.add(
                self._set_by("processes.limit_nproc"),
                f"counts as {own}, which is what the server itself may have: {processes.processes} workers with"
                f" {processes.threads} threads each, as many replacements, two zygotes during a reload, a"
                " master, and those that end TLS",
            )

    def _refuse(self, index: int, assignment: Assignment, problem: str, hint: str | None = None) -> None:
        self.errors.append((index, ConfigError(assignment.where, assignment.name, problem, hint)))
