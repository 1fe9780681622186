"""The log: whole lines, one writer, and nobody ever waits for it."""

import os

import pytest
from support.wait import wait_until

from wsgimaster.log import PARTIAL_LIMIT_BYTES, LineAssembler, LogWriter


@pytest.fixture
def pipe():
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


def read_all(fd, *, until):
    found = b""
    while until not in found:
        found += os.read(fd, 1 << 20)
    return found


def test_lines_come_in_order(pipe):
    log = LogWriter(pipe[1])
    log.say("one")
    log.write(b"two\nthree\n")
    log.close(5.0)
    assert os.read(pipe[0], 100) == b"one\ntwo\nthree\n"


def test_nobody_waits_when_nobody_reads_and_the_gap_is_told(pipe):
    log = LogWriter(pipe[1], limit=100_000)
    line = b"x" * 999 + b"\n"
    for _ in range(2000):  # a pipe holds 65 of them, the writer a hundred
        log.write(line)
    log.say("the last")
    found = read_all(pipe[0], until=b"the last\n")
    log.close(5.0)
    told = int(found.partition(b"*** ")[2].split()[0])
    assert told + found.count(line) == 2000
    assert log.dropped_lines == told


def test_a_reader_that_left_stops_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    log = LogWriter(writer)
    log.say("into the void")
    wait_until(lambda: log.dropped_lines == 1, 5, "the line is counted as dropped")
    log.say("again")
    wait_until(lambda: log.dropped_lines == 2, 5, "the writer goes on")
    log.close(5.0)
    os.close(writer)


def test_a_descriptor_that_somebody_made_non_blocking(pipe):
    os.set_blocking(pipe[1], False)
    log = LogWriter(pipe[1])
    log.write(b"y" * 300_000 + b"\n")
    assert len(read_all(pipe[0], until=b"\n")) == 300_001
    log.close(5.0)


PIECES = [
    pytest.param([b"a\nb\n"], [b"a\nb\n"], id="whole lines"),
    pytest.param([b"a", b"b\nc", b"\n"], [b"", b"ab\n", b"c\n"], id="lines in pieces"),
    pytest.param([b"a\nrest", b""], [b"a\n", b"rest\n"], id="the end completes a line"),
    pytest.param([b"a\n", b""], [b"a\n", b""], id="nothing is left"),
]


@pytest.mark.parametrize(("pieces", "lines"), PIECES)
def test_pieces_become_lines(pieces, lines):
    assembler = LineAssembler()
    assert [assembler.feed(piece) for piece in pieces] == lines


def test_a_line_without_an_end_is_cut():
    assembler = LineAssembler()
    assert assembler.feed(b"z" * (PARTIAL_LIMIT_BYTES + 1)).endswith(b"z\n")
