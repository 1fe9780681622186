"""The configuration language by itself: texts in, keys and values out. What is expected was observed on uWSGI."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgimaster.config import language
from wsgimaster.config.language import (
    LanguageError,
    Substitution,
    calculate,
    decode,
    evaluate,
    file_magic,
    leading_integer,
    read_ini,
    replace_magic,
)


def pairs(text: str, section: str = "uwsgi", magic: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    return [(line.key, line.value) for line in read_ini(text, section, magic or {}).lines]


def substituted(text: str, **values: str) -> str:
    """Apply the `%(name)` pass to one text."""
    return Substitution("%", lambda expression: evaluate(expression, values.get)).apply(text)


INI = {
    "plain": ("[uwsgi]\nmaster = true\n", [("master", "true")]),
    "no blanks": ("[uwsgi]\nmaster=true\n", [("master", "true")]),
    "no final newline": ("[uwsgi]\nmaster=true", [("master", "true")]),
    "CRLF": ("[uwsgi]\r\nmaster = true\r\n", [("master", "true")]),
    "tabs": ("[uwsgi]\n\tuid\t\t=\tnginx\t\n", [("uid", "nginx")]),
    "bare key": ("[uwsgi]\nlazy-apps\n", [("lazy-apps", "")]),
    "empty value": ("[uwsgi]\nthunder-lock =\n", [("thunder-lock", "")]),
    "first equals splits": ("[uwsgi]\nenv = A=b=c\n", [("env", "A=b=c")]),
    "no key": ("[uwsgi]\n= 3\n", [("", "3")]),
    "key with a space": ("[uwsgi]\nstatic-map /s=/x\n", [("static-map /s", "/x")]),
    "comment lines": ("; a\n[uwsgi]\n# b\n  ; c\nx = 1\n", [("x", "1")]),
    "no inline comments": ("[uwsgi]\nprocesses = 2 ; two\n", [("processes", "2 ; two")]),
    "no continuation": ("[uwsgi]\na = 1 \\\n  b = 2\n", [("a", "1 \\"), ("b", "2")]),
    "quotes stay": ("[uwsgi]\na = 'x'\n", [("a", "'x'")]),
    "duplicates stay in order": ("[uwsgi]\na = 1\nb = 2\na = 3\n", [("a", "1"), ("b", "2"), ("a", "3")]),
    "a section in two places": ("[uwsgi]\na=1\n[x]\nb=2\n[uwsgi]\nc=3\n", [("a", "1"), ("c", "3")]),
    "text before the first section": ("a = 1\n[uwsgi]\nb = 2\n", [("b", "2")]),
    "blanks in the name of a section": ("[ uwsgi ]\na = 1\n", []),
    "case of a section": ("[UWSGI]\na = 1\n", []),
    "comment behind a section": ("[uwsgi] ; c\na = 1\n", []),
    "last character of a section goes unseen": ("[uwsgix\na = 1\n", [("a", "1")]),
    "keys keep their case and underscores": ("[uwsgi]\nMaster_X = 1\n", [("Master_X", "1")]),
    "only a bracket": ("[\na = 1\n", []),
    "not ASCII": ("[uwsgi]\n# 工程\nx = é\n", [("x", "é")]),
}


@pytest.mark.parametrize(("text", "expected"), INI.values(), ids=INI.keys())
def test_ini_lines(text: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(text) == expected


def test_ini_other_section_line_numbers_and_absence() -> None:
    ini = read_ini("[uwsgi]\na = 1\n\n[base]\n# c\nb = 2\n", "base", {})
    assert [(line.number, line.key) for line in ini.lines] == [(6, "b")]
    assert ini.found
    assert not read_ini("[uwsgi]\na = 1\n", "base", {}).found


def test_ini_notes_say_what_is_odd() -> None:
    notes = dict(read_ini("a = 1\nb = 2\n[uwsgi] ; c\n", "uwsgi", {}).notes)
    assert list(notes) == [1, 3]  # text before the first section is told once
    assert "before the first section" in notes[1]
    assert "'uwsgi] ; '" in notes[3]


def test_decode_keeps_bytes_and_drops_a_byte_order_mark() -> None:
    assert decode(b"\xef\xbb\xbf[uwsgi]") == "[uwsgi]"
    assert decode(b"x = \xff\xe9").encode("utf-8", "surrogateescape") == b"x = \xff\xe9"


MAGIC = {
    "known": ("a = %kb", "a = 4b"),
    "unknown vanishes with its letter": ("%Y-%m-%d/", "--/srv//"),
    "doubled": ("100%%", "100%"),
    "a placeholder stays": ("%(x) %%(y)", "%(x) %(y)"),
    "escape character": ("%[31m", "\x1b31m"),
}


@pytest.mark.parametrize(("text", "expected"), MAGIC.values(), ids=MAGIC.keys())
def test_magic_variables(text: str, expected: str) -> None:
    assert replace_magic(text, {"k": "4", "d": "/srv/", "[": "\x1b"}) == (expected, False)


def test_a_percent_sign_at_the_end_of_a_line_swallows_the_line_end() -> None:
    assert pairs("[uwsgi]\na = 5%\nb = 6\nc = 1\n") == [("a", "5b = 6"), ("c", "1")]
    assert pairs("[uwsgi]\na = 5%") == [("a", "5")]
    numbers = [line.number for line in read_ini("[uwsgi]\na = 5%\nb = 6\nc = 1\n", "uwsgi", {}).lines]
    assert numbers == [2, 4]


def test_magic_variables_of_a_file() -> None:
    magic = file_magic("./a.ini", "/tmp/uwsgiref/a.ini", "")
    expected = {"o": "./a.ini", "p": "/tmp/uwsgiref/a.ini", "s": "a.ini", "n": "a", "e": "ini", "x": ""}
    expected |= {"d": "/tmp/uwsgiref/", "c": "uwsgiref", "0": "tmp", "1": "uwsgiref"}
    assert {key: magic[key] for key in expected} == expected
    assert "2" not in magic


NAMES = {"a.b.c": ("a.b", "c"), "noext": ("noext", ""), ".hid": ("", "hid")}


@pytest.mark.parametrize(("base", "expected"), NAMES.items(), ids=NAMES.keys())
def test_magic_stem_and_extension(base: str, expected: tuple[str, str]) -> None:
    magic = file_magic(base, f"/x/{base}", "prod")
    assert (magic["n"], magic["e"], magic["x"]) == (*expected, "prod")


def test_magic_hash_of_the_path() -> None:
    assert file_magic("t.ini", "/tmp/observe/lab/t.ini", "")["j"] == "ADE8B74C"


VALUES = {"a": "x", "b": "y", "c": ".%(b)", "ax": "1", "ay": "3", "3y": "8", "a(b)c": "9", "n": "5", "v": ""}
VALUES |= {"processes": "4", "my-ph": "one", "plus": "+", "spaced": "4 2", "4k": "9", "4": "77", "open": "(b)"}

PLACEHOLDERS = {
    "whole": ("%(processes)", "4"),
    "in the middle": ("/run/%(a).sock", "/run/x.sock"),
    "two": ("%(a)%(b)", "xy"),
    "unknown stays": ("%(method) %(uri)", "%(method) %(uri)"),
    "empty value": ("m%(v)k", "mk"),
    "nothing in it": (".%()", ".%()"),
    "only a blank in it": (".%( )", ".%( )"),
    "nested": (".%(a%(b))", ".3"),
    "nested at the very start isn't seen again": ("%(a%(b))", "%(ay)"),
    "nested twice": (".%(%(a%(b))%(b))", ".8"),
    "value with a placeholder": (".%(c)", "..y"),
    "value that begins with one, at the start": ("%(%(a))%(a)", "%(x)x"),
    "behind an empty value at the start": ("%(v)%(a)%(a)", "%(a)x"),
    "unknown around a known one": (".%(nope%(b))%(a)", ".%(nopey)x"),
    "unknown inside": (".%(a%(nope)b)", ".%(a%(nope)b)"),
    "never closed": (".%(a", ".%(a"),
    "brackets in a name": (".%(a(b)c)", ".9"),
    "a value makes the bracket": (".%%(open)", ".y"),
    "a symbol in a name ends it": (".%(a%b)", ".%(a%b)"),
    "a symbol in a name, then another": (".%(a%b%(a))%(b)", ".%(a%bx)y"),
    "a symbol at the end of a name": (".%(%(b)%)", ".%(y%)"),
    "doubled symbol": (".%%(a)", ".%x"),
    "symbol and other text": (".%x(a)", ".%x(a)"),
    "first closing bracket counts": (".%( a)b)", ".xb)"),
}


@pytest.mark.parametrize(("text", "expected"), PLACEHOLDERS.values(), ids=PLACEHOLDERS.keys())
def test_placeholders(text: str, expected: str) -> None:
    assert substituted(text, **VALUES) == expected


MATHS = {
    "8 * 4": "32",
    "10 + 2 * 3": "36",
    "2 3": "23",
    "2 3 + 1": "24",
    "a a": "xx",
    "my-ph 5 ++": "1",
    "7 / 2": "3",
    "0 - 7 / 2": "-3",
    "1 / 0": "0",
    "5 - 7": "-2",
    "n ++ ++": "7",
    "5 --": "4",
    "5 ++ 3": "63",
    "n - ++": "6",
    " n": "5",
    "n ": "5",
    "n  3": "53",
    "2 * ": "2",
    "* 3": "0",
    "+ u": "0",
    "2 + + 3": "5",
    "++ 2": "2",
    "u ++": "1",
    "u u": "",
    "u + w": "0",
    "u n": "5",
    "1 -1": "1",
    "3 +4": "3",
    "010 + 1": "11",
    "spaced + 1": "5",
    "2 plus 3": "2+3",
    "4k + 1": "10",
    "4 + 1": "5",
    "(3 * 2) + 1": "1",
    "2 * 1024 * 1024 * 1024": "2147483648",
    "9223372036854775807 + 1": "-9223372036854775808",
    "9223372036854775807 ++": "-9223372036854775808",
    "99999999999999999999 + 1": "-9223372036854775808",
    "4294967296 * 4294967296": "0",
}


@pytest.mark.parametrize(("expression", "expected"), MATHS.items(), ids=MATHS.keys())
def test_maths(expression: str, expected: str) -> None:
    assert evaluate(expression, VALUES.get) == expected


@pytest.mark.parametrize("expression", ["5/2", "5+2", "x\ty", "+ ", "++ ", " "])
def test_what_is_no_expression_stays_as_it_is(expression: str) -> None:
    assert evaluate(expression, VALUES.get) is None


INTEGERS = {
    "4x": 4,
    " 4": 4,
    "+3": 3,
    "-12ab": -12,
    "- 3": 0,
    "0x10": 0,
    "1e3": 1,
    "": 0,
    "x": 0,
    "9" * 5000: 2**63 - 1,
}


@pytest.mark.parametrize(("text", "expected"), INTEGERS.items(), ids=lambda value: str(value)[:12])
def test_leading_integer(text: str, expected: int) -> None:
    assert leading_integer(text) == expected


def test_a_lookup_of_the_environment_isnt_maths() -> None:
    environment = {"HOME": "/root", "A B": "x", "P": "%(a)"}
    apply = Substitution("$", environment.get).apply
    assert apply("$(HOME)/$(NOPE)$(P)$(A B)$HOME") == "/root/$(NOPE)%(a)x$HOME"


# Hostile text


def test_a_placeholder_that_contains_itself_is_an_error() -> None:
    with pytest.raises(LanguageError, match="held itself"):
        substituted(".%(x)", x=".%(x)")


def test_too_deep_nesting_is_an_error() -> None:
    with pytest.raises(LanguageError, match="nested more than 64 deep"):
        substituted("%(" * 10_000 + ")" * 10_000)


def test_placeholders_that_double_each_other_run_out_of_budget() -> None:
    values = {f"v{i}": f".%(v{i + 1})%(v{i + 1})" for i in range(40)} | {"v40": "x" * 1000}
    with pytest.raises(LanguageError, match=r"MiB of text|held itself"):
        substituted(".%(v0)", **values)


def test_long_concatenation_is_an_error() -> None:
    with pytest.raises(LanguageError, match="MiB of text"):
        evaluate("big " * 1000, {"big": "x" * 100_000}.get)


@pytest.mark.parametrize("piece", ["%(", "(", ")", "%()", "%(a)", "%(a%", "%%", "%( ", "%(a(b)c)"])
def test_work_grows_with_the_text_and_no_faster(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the text makes ten times the steps, counted, for text that isn't nested too deep."""
    monkeypatch.setattr(language, "MAX_NESTING", 10**9)
    monkeypatch.setattr(language, "MAX_SUBSTITUTIONS", 10**9)

    def steps(count: int) -> int:
        taken = 0
        take = language._Scan._take

        def counted(self: language._Scan, token: str) -> str:
            nonlocal taken
            taken += 1 + sum(map(len, self._output[self._open[-1].start :])) if token == ")" and self._open else 1
            return take(self, token)

        with monkeypatch.context() as patch:
            patch.setattr(language._Scan, "_take", counted)
            substituted(piece * count, a="x")
        return taken

    assert steps(2000) <= 11 * steps(200)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for line in read_ini(text, "uwsgi", {}).lines:
        assert isinstance(line.value, str)


@given(
    st.text(alphabet="%$@()ab +-*/1\n[]=;x "), st.dictionaries(st.sampled_from("abx"), st.text("%()ab +1", max_size=8))
)
def test_any_placeholders_end_in_a_text_or_a_typed_error(text: str, values: dict[str, str]) -> None:
    with suppress(LanguageError):
        assert isinstance(substituted(text, **values), str)


@given(st.text(), st.sampled_from("+-*/"), st.text())
def test_maths_stays_within_64_bits(left: str, operator: str, right: str) -> None:
    assert -(2**63) <= int(calculate(left, operator, right)) < 2**63
