"""The text of --help: every option by subject, in columns as wide as the terminal."""

from __future__ import annotations

import textwrap

from wsgimaster.config.options import TABLE, Argument, Option, State

NAMES = 38  # characters of the first column; longer names push their help to the next line


def help_text(width: int) -> str:
    """Return the help of all options for a terminal of `width` characters."""
    blocks = ["Usage: wsgimaster [options] [file.ini ...]\n       wsgimaster simulate --help"]
    blocks[0] += (
        "\n       wsgimaster reload|stop|workers --help\n       wsgimaster upgrade|recycle|scale|pause|resume --help"
    )
    for subject, options in TABLE.items():
        blocks.append("\n".join([f"{subject}:", *(line for option in options for line in _row(option, width))]))
    return "\n\n".join(blocks) + "\n"


def _row(option: Option, width: int) -> list[str]:
    help_ = option.help + (" (not in uWSGI)" if option.ours else "")
    if option.default and option.state is State.WORKS:
        help_ += f" (default: {option.default})"
    if option.state is not State.WORKS:
        help_ += f" [{option.state}{': ' + option.reason if option.reason else ''}]"
    room = max(20, width - NAMES - 2)
    column = textwrap.wrap(help_, room, break_on_hyphens=False) or [""]
    names = "  " + _names(option)
    if len(names) < NAMES:
        first, *others = column
        return [f"{names:<{NAMES}}  {first}", *(" " * (NAMES + 2) + line for line in others)]
    wrapped = textwrap.wrap(names.strip(), max(20, width - 2), break_on_hyphens=False)
    return [*("  " + line for line in wrapped), *(" " * (NAMES + 2) + line for line in column)]


def _names(option: Option) -> str:
    names = ", ".join(f"--{name}" for name in option.names)
    short = f"-{option.short}, " if option.short else ""
    value = {Argument.REQUIRED: " VALUE", Argument.OPTIONAL: "[=VALUE]", Argument.NONE: ""}[option.argument]
    return short + names + value
