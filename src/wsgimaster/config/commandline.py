"""The command line as GNU getopt_long reads it for uWSGI: permuted, bundled, abbreviated.

argparse isn't used: it knows neither options whose value must be glued (`-C664`, `--need-app=1`) nor the
permutation that takes every option first and then the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from wsgimaster.config.language import Assignment, Source
from wsgimaster.config.options import BY_NAME, BY_SHORT, Argument, Option
from wsgimaster.config.spelling import nearest
from wsgimaster.errors import ConfigError

WHERE = "command line"
OTHER_FORMATS = (".xml", ".yaml", ".yml", ".json", ".js", ".toml")


@dataclass(slots=True)
class CommandLine:
    """What stands on a command line: options in order, then files in order, and everything wrong with it."""

    options: list[Assignment] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    errors: list[ConfigError] = field(default_factory=list)

    def add(self, name: str, value: str | None) -> None:
        self.options.append(Assignment(name, value, WHERE, Source.COMMAND_LINE))

    def refuse(self, written: str, problem: str, hint: str | None = None) -> None:
        self.errors.append(ConfigError(WHERE, written, problem, hint))


def parse(arguments: list[str]) -> CommandLine:
    """Return what stands on a command line, without the program's name; never raises."""
    result = CommandLine()
    rest = list(reversed(arguments))
    while rest:
        argument = rest.pop()
        if argument == "--":
            result.files.extend(reversed(rest))
            break
        if argument.startswith("--"):
            _long(argument, rest, result)
        elif argument.startswith("-") and argument != "-":
            _bundle(argument, rest, result)
        else:
            result.files.append(argument)
    return result


def _long(argument: str, rest: list[str], result: CommandLine) -> None:
    written, glued, value = argument[2:].partition("=")
    prefix = written or "="  # no name starts with that
    matches = [written] if written in BY_NAME else [name for name in BY_NAME if name.startswith(prefix)]
    options = {BY_NAME[name].names: BY_NAME[name] for name in matches}
    if len(options) > 1:
        result.refuse(f"--{written}", f"is short for {_some(matches)}", "write it out")
        return
    if not options:
        meant = nearest(written)
        result.refuse(f"--{written}", "unknown option", f"did you mean --{meant}?" if meant else None)
        return
    (option,) = options.values()
    name = written if written in BY_NAME else matches[0]
    if glued:
        if option.argument is Argument.NONE:
            result.refuse(f"--{name}", "takes no value on the command line", f"write --set {name}={value}")
        else:
            result.add(name, value)
    elif option.argument is not Argument.REQUIRED:
        result.add(name, None)
    elif rest:
        result.add(name, rest.pop())
    else:
        result.refuse(f"--{name}", "needs a value")


def _bundle(argument: str, rest: list[str], result: CommandLine) -> None:
    """Take `-Mp4`: letters without a value, then at most one with the rest of the word as its value."""
    letters = argument[1:]
    for index, letter in enumerate(letters):
        option: Option | None = BY_SHORT.get(letter)
        if option is None:
            result.refuse(f"-{letter}", "unknown option", "--help lists the letters")
            return
        if option.argument is Argument.NONE:
            result.add(option.names[0], None)
            continue
        glued = letters[index + 1 :]
        if glued or option.argument is Argument.OPTIONAL:
            result.add(option.names[0], glued or None)
        elif rest:
            result.add(option.names[0], rest.pop())
        else:
            result.refuse(f"-{letter}", f"needs a value (it is --{option.names[0]})")
        return


def no_configuration(name: str) -> tuple[str, str]:
    """Return (problem, hint) for a positional argument that is no ini file."""
    problem = "this is no configuration file"
    if name == "-":
        return "standard input isn't read", "write a file"
    if name.endswith(OTHER_FORMATS):
        return "only ini files are read yet", "write it as an ini file"
    if re.fullmatch(r"[\w.\-\[\]:]*:[0-9]+", name):
        return problem, f"to listen there write --http-socket {name}"
    if re.search(r"\.ini:[^:/]+$", name):
        return problem, f"to read one section of it write --ini {name}"
    if re.fullmatch(r"[\w.]+:[\w.()]+", name):
        return problem, f"to load that application write --module {name}"
    if name.endswith((".py", ".wsgi")):
        return problem, f"to load that application write --wsgi-file {name}"
    if name.lower() in ("true", "false", "on", "off", "yes", "no", "1", "0"):
        return problem, "flags take no value on the command line; write --set option=false to switch one off"
    return problem, f"files that don't end in .ini need the option: --ini {name}"


def _some(names: list[str]) -> str:
    shown = ", ".join(f"--{name}" for name in names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
