"""uWSGI's configuration language, as pure functions: text in, keys and values out.

A file passes through three stages, and the order matters because each sees the result of the one before:

1. magic variables (`%d`, `%k`) are replaced in the raw text of the file, comments and all (`split_lines`);
2. lines become keys and values of one section (`read_ini`);
3. when everything is gathered, `$(NAME)`, then `@(file)`, then `%(name)` are replaced (`Substitution`).

Behaviour that looks odd here was observed on uWSGI 2.0.31 and is kept, because files were written around it.
Hostile text costs linear time: no stage looks at a character more than a bounded number of times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

BLANKS = " \t\r"  # what uWSGI strips from both ends of lines, keys and values
MAX_NESTING = 64  # `%(a%(b%(c)))`: real files use two
MAX_SUBSTITUTIONS = 10_000  # in one value; more means that a placeholder contains itself
MAX_INSERTED = 4 * 1024 * 1024  # characters inserted in all values of one configuration

Lookup = Callable[[str], str | None]


class LanguageError(ValueError):
    """The text can't be evaluated; the caller knows where it stands and makes a ConfigError of it."""


class Source(StrEnum):
    FILE = "file"
    COMMAND_LINE = "command line"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `name = value`, wherever it was written."""

    name: str
    value: str | None  # None: the command line named the option without a value
    where: str  # "uwsgi.ini:12", "command line", "environment variable UWSGI_THREADS"
    source: Source
    settled: bool = False  # no pass replaces anything in it: it took effect while it was read
    declared: bool = False  # by `set-placeholder`: a placeholder on purpose, also under `strict`


# 1. magic variables


def split_lines(text: str, magic: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line) with the magic variables replaced and the blanks at both ends gone.

    A `%` takes the character after it along, known or not, even the end of the line: a line that ends in a
    single `%` goes on in the next one. `%(` is left alone, placeholders come later.
    """
    joined: list[str] = []
    first = 0
    for number, line in enumerate(text.split("\n"), start=1):
        replaced, swallows_line_end = replace_magic(line, magic)
        if not joined:
            first = number
        joined.append(replaced)
        if not swallows_line_end:
            yield first, "".join(joined).strip(BLANKS)
            joined = []
    if joined:
        yield first, "".join(joined).strip(BLANKS)


def replace_magic(line: str, magic: Mapping[str, str]) -> tuple[str, bool]:
    """Return the line with its magic variables replaced, and whether it ended in a lone `%`."""
    if "%" not in line:
        return line, False
    swallows_line_end = False

    def replacement(match: re.Match[str]) -> str:
        nonlocal swallows_line_end
        letter = match[1]
        if letter == "(":
            return "%("
        swallows_line_end = not letter
        return "%" if letter == "%" else magic.get(letter, "")

    return re.sub(r"%(.?)", replacement, line, flags=re.DOTALL), swallows_line_end


def file_magic(name: str, path: str, section: str) -> dict[str, str]:
    """Return the magic variables that name a file.

    name: as the option gave it; path: absolute; section: "" for the default one.
    """
    directory, _, base = path.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    parts = [part for part in directory.split("/") if part]
    magic = {str(index): part for index, part in enumerate(parts[:10])}
    magic |= {"o": name, "p": path, "s": base, "d": directory + "/", "x": section}
    magic |= {"n": stem if dot else base, "e": extension if dot else "", "c": parts[-1] if parts else ""}
    return magic | {"j": path_hash(path)}


def path_hash(path: str) -> str:
    """Return `%j`: Bernstein's 32-bit hash in its XOR form, as uWSGI prints it, lowest byte first."""
    value = 5381
    for byte in path.encode(errors="surrogateescape"):
        value = ((value * 33) & 0xFFFFFFFF) ^ byte
    return value.to_bytes(4, "little").hex().upper()


# 2. ini lines


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Ini:
    """One section of an ini text: its lines, and what a person should know about the text."""

    lines: list[Line]
    found: bool  # the section stands in the text at all
    notes: list[tuple[int, str]]  # (line number, what is odd there)


def decode(data: bytes) -> str:
    """Return a file's text; bytes that aren't UTF-8 survive as surrogates, as in os.fsdecode."""
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def read_ini(text: str, section: str, magic: Mapping[str, str]) -> Ini:
    """Return the lines of one section, which may stand in several places; duplicates are kept, in order.

    There are no inline comments and no continuation lines. A key without `=` has the empty value. The name of
    a section is everything between `[` and the last character of the line, whatever that is.
    """
    lines: list[Line] = []
    notes: list[tuple[int, str]] = []
    current: str | None = None
    found = False
    for number, line in split_lines(text, magic):
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            current = line[1:-1]
            found = found or current == section
            if line[-1] != "]":
                notes.append((number, f"this line starts the section {current!r}, because it doesn't end in ]"))
        elif current is None:
            if not notes:
                notes.append((number, "this line stands before the first section, nothing reads it"))
        elif current == section:
            key, _, value = line.partition("=")
            lines.append(Line(number, key.rstrip(BLANKS), value.lstrip(BLANKS)))
    return Ini(lines, found, notes)


# 3. $(NAME), @(file), %(name)


@dataclass(slots=True)
class _Open:
    start: int  # where the symbol stands in the output
    brackets: int = 0  # plain ones that are open inside the name: `%(a(b)c)` asks for "a(b)c"


class Substitution:
    """Replaces `<symbol>(name)` in one text after the other, with one budget for all of them.

    What a lookup returns is looked at again, in place, so a value may hold further placeholders and the name
    of one may be built from others: `%(path_%(stage))`. A lookup that returns None leaves the text as it is,
    with every bracket around it.

    Two oddities of uWSGI are kept. It starts again at the *second* character after each replacement, so a
    placeholder at the very start isn't seen again once something inside or instead of it was replaced. And
    another symbol inside a name ends the search for that name.
    """

    def __init__(self, symbol: str, lookup: Lookup) -> None:
        self._symbol, self._lookup = symbol, lookup
        self._tokens = re.compile(rf"{re.escape(symbol)}|\(|\)|[^{re.escape(symbol)}()]+")
        self._budget = MAX_INSERTED

    def apply(self, text: str) -> str:
        """Return the text with everything replaced that the lookup knows; may raise LanguageError."""
        if self._symbol + "(" not in text:
            return text
        return _Scan(self._symbol, self._lookup, self._tokens, self._charge).run(text)

    @property
    def exhausted(self) -> bool:
        """Whether the budget is used up, so that every further replacement fails."""
        return self._budget < 0

    def _charge(self, characters: int) -> None:
        self._budget -= characters
        if self._budget < 0:
            raise LanguageError(f"the placeholders insert more than {MAX_INSERTED // 2**20} MiB of text")


class _Scan:
    """The scan of one text: output so far, open names, and input that replacements pushed back."""

    def __init__(self, symbol: str, lookup: Lookup, tokens: re.Pattern[str], charge: Callable[[int], None]) -> None:
        self._symbol, self._lookup, self._tokens, self._charge = symbol, lookup, tokens, charge
        self._output: list[str] = []
        self._open: list[_Open] = []
        self._armed = False  # the token before was the symbol
        self._blind = False  # the next token stands at the start of the text, after a replacement
        self._replaced = 0

    def run(self, text: str) -> str:
        inputs: list[Iterator[re.Match[str]]] = [self._tokens.finditer(text)]
        while inputs:
            match = next(inputs[-1], None)
            if match is None:
                inputs.pop()
                continue
            inserted = self._take(match[0])
            if inserted:
                inputs.append(self._tokens.finditer(inserted))
        return "".join(self._output)

    def _take(self, token: str) -> str:
        """Take one token; return text that has to be scanned next ("": nothing)."""
        if self._blind:
            self._blind = False
            self._output.append(token)
            return ""
        if token == ")" and self._open and not self._armed and not self._open[-1].brackets:
            return self._close()
        if token == "(" and self._armed:
            if len(self._open) >= MAX_NESTING:
                raise LanguageError(f"placeholders are nested more than {MAX_NESTING} deep")
            self._open.append(_Open(len(self._output) - 1))
        elif token == "(" and self._open:
            self._open[-1].brackets += 1
        elif token == ")" and self._open and not self._armed:
            self._open[-1].brackets -= 1
        elif self._armed and token != self._symbol:
            self._open.clear()  # a symbol that starts nothing ends the search for every name around it
        self._armed = token == self._symbol
        self._output.append(token)
        return ""

    def _close(self) -> str:
        start = self._open[-1].start
        value = self._lookup("".join(self._output[start + 2 :]))
        if value is None:
            self._open.clear()
            self._output.append(")")
            return ""
        self._replaced += 1
        if self._replaced > MAX_SUBSTITUTIONS:
            raise LanguageError(f"more than {MAX_SUBSTITUTIONS} replacements in one value, as if it held itself")
        self._charge(len(value) + 1)
        self._open.pop()
        del self._output[start:]
        # from here on uWSGI looks at the text from its second character again
        if self._open and self._open[0].start == 0:
            del self._open[0]
        self._armed = start > 1 and self._output[-1] == self._symbol
        self._blind = start == 0
        return value


def evaluate(expression: str, lookup: Lookup) -> str | None:
    """Return what stands for `%(expression)`, or None if nothing does.

    A name is looked up. With a space in it, it is a row of operations from left to right without precedence:
    numbers and names follow each other by concatenation, `+ - * /` apply to the next one as 64-bit integers,
    `++` and `--` to what is there. Unknown names are empty; brackets mean nothing.
    """
    if " " not in expression:
        return lookup(expression)
    result: str | None = None
    operator = ""
    for token in expression.split(" "):
        if token in ("+", "-", "*", "/"):
            operator = token
        elif token in ("++", "--"):
            if result is not None:
                result = calculate(result, token[0], "1")
        elif token:
            operand = token if token.isascii() and token.isdigit() else lookup(token) or ""
            result = calculate(result or "", operator, operand) if operator else (result or "") + operand
            if len(result) > MAX_INSERTED:
                raise LanguageError(f"a placeholder makes more than {MAX_INSERTED // 2**20} MiB of text")
            operator = ""
    return result


def calculate(left: str, operator: str, right: str) -> str:
    """Return `left operator right` as C's 64-bit integers give it; division by zero is 0."""
    a, b = leading_integer(left), leading_integer(right)
    if operator == "+":
        result = a + b
    elif operator == "-":
        result = a - b
    elif operator == "*":
        result = a * b
    else:
        result = 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return str((result + 2**63) % 2**64 - 2**63)


def leading_integer(text: str) -> int:
    """Return the integer at the start of a text as C's strtol reads it: 0 without one, never over 64 bits."""
    # the cut keeps long rows of operations on long texts linear; no number anybody writes is longer
    match = re.match(r"[ \t\r\n\v\f]*([+-]?[0-9]+)", text[:1000])
    if not match:
        return 0
    digits = match[1].lstrip("+-")
    value = -int(digits) if match[1][0] == "-" else int(digits)
    return max(-(2**63), min(2**63 - 1, value))
