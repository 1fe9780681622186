"""The log: whole lines, one writer, and nobody ever waits for it."""

import fcntl
import os
import re
import resource
import select
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from support.client import Connection, cgi, packet, together, uwsgi
from support.harness import APPS
from support.wait import wait_until

from wsgimaster.log import ENTRY_BYTES, PARTIAL_LIMIT_BYTES, LineAssembler, LogWriter

PAGE = 4096  # bytes; the smallest pipe
LATE = r"\*\*\* (\d+) request lines of worker \d+ were dropped: the master was not running"  # no CPU for it for a while
GAP = r"\*\*\* (\d+) log lines were dropped up to here \((\d+) of requests, (\d+) others\)"


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


def is_full(pipe_end):
    return not select.select([], [pipe_end], [], 0)[1]


LINE = 10_000  # bytes


def stalled_log(pipe, limit):
    """A writer that is stuck in the middle of its first line: whatever comes now waits."""
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PAGE)
    log = LogWriter(pipe[1], limit)
    log.write(b"first".ljust(LINE - 1, b".") + b"\n")
    wait_until(lambda: is_full(pipe[1]), 5, "the pipe is full")
    return log


def test_flush_waits_for_everything(pipe):
    log = LogWriter(pipe[1])
    log.say("one")
    assert log.flush(5.0) == b""
    assert os.read(pipe[0], 100) == b"one\n"


def test_flush_gives_back_what_a_stalled_log_does_not_take(pipe):
    """In its order, with a line that says what may be missing before it."""
    log = stalled_log(pipe, limit=1 << 20)
    log.write(b"second\n", requests=True)
    log.write(b"third\n")
    left = log.flush(0.05)
    assert re.fullmatch(GAP.encode() + b".*\nsecond\nthird\n", left)
    assert re.search(GAP, left.decode()).groups() == ("1", "0", "1")
    assert log.flush(0.05) == b""
    read_all(pipe[0], until=b"\n")
    log.close(5.0)


STALLS = {  # R: a request's line, E: any other; three of them may wait
    "all have room": ("E1 R2 E3", "E1 R2 E3"),
    "the oldest requests go": ("R1 R2 R3 R4 R5", "(2 0) R3 R4 R5"),
    "the oldest others go": ("E1 E2 E3 E4 E5", "(0 2) E3 E4 E5"),
    "requests go before others": ("E1 R2 E3 R4 E5", "E1 E3 (2 0) E5"),
    "the newest request goes, when only others wait": ("E1 E2 E3 R4", "E1 E2 E3 (1 0)"),
    "then the oldest others": ("R1 E2 E3 R4 E5 E6 R7", "E3 E5 E6 (3 1)"),
    "the gap ends where the lines are complete again": ("R1 E2 R3 R4 R5", "E2 (2 0) R4 R5"),
}


@pytest.mark.parametrize(("written", "kept"), STALLS.values(), ids=STALLS)
def test_what_is_kept_when_nobody_reads(pipe, written, kept):
    log = stalled_log(pipe, limit=3 * (LINE + ENTRY_BYTES))
    for name in written.split():
        log.write(name.encode().ljust(LINE - 1, b".") + b"\n", requests=name.startswith("R"))
    expected = re.findall(r"\(.*?\)|\w+", f"first {kept}")
    found = b""
    while found.count(b"\n") < len(expected):
        found += os.read(pipe[0], 1 << 20)
    log.close(5.0)
    assert not select.select([pipe[0]], [], [], 0)[0], "nothing more comes"
    assert [named(line) for line in found.decode().splitlines()] == expected


def named(line):
    """A gap as "(requests others)", any other line by its name."""
    gap = re.match(GAP, line)
    return f"({gap[2]} {gap[3]})" if gap else line.rstrip(".")


def test_nobody_waits_when_nobody_reads_and_the_gap_is_told(pipe):
    log = LogWriter(pipe[1], limit=100_000)
    line = b"x" * 999 + b"\n"
    for _ in range(2000):  # a pipe holds 65 of them, the writer nearly ninety
        log.write(line)
    log.say("the last")
    found = read_all(pipe[0], until=b"the last\n")
    log.close(5.0)
    told = sum(int(total) for total, _, _ in re.findall(GAP, found.decode()))
    assert told + found.count(line) == 2000
    assert (log.dropped_requests, log.dropped_others) == (0, told)


def test_many_short_lines_take_their_share_of_the_memory(pipe):
    log = stalled_log(pipe, limit=10 * ENTRY_BYTES)
    for _ in range(100):
        log.write(b"\n")
    assert log.dropped_others > 90
    read_all(pipe[0], until=b"others)")
    log.close(5.0)


def test_a_reader_that_left_stops_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    log = LogWriter(writer)
    log.say("into the void")
    wait_until(lambda: log.dropped_others == 1, 5, "the line is counted as dropped")
    log.write(b"again\n", requests=True)
    wait_until(lambda: log.dropped_requests == 1, 5, "the writer goes on")
    log.close(5.0)
    os.close(writer)


def test_a_disk_that_was_full_for_a_while(tmp_path):
    """The line that was cut gets its end, and the gap is told as soon as there is room again."""
    path = tmp_path / "log"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = LogWriter(file)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        for _ in range(3):
            log.write(b"x" * 399_999 + b"\n")
        wait_until(lambda: log.dropped_others == 1, 5, "the third line doesn't fit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.say("room again")
    log.close(5.0)
    os.close(file)
    *whole, cut, gap, last = path.read_text().splitlines()
    assert [len(line) for line in whole] == [399_999, 399_999]
    assert (len(cut), set(cut)) == (200_000, {"x"})
    assert re.match(GAP, gap).groups() == ("1", "0", "1")
    assert last == "room again"


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


def test_a_long_line_in_single_bytes_costs_no_more_the_longer_it_is():
    """The master's time: a ratio, since copying the line for each byte would take hundreds of times as long."""

    def cost(begun):
        assembler = LineAssembler()
        assembler.feed(begun)
        start = time.thread_time()
        for _ in range(10_000):
            assembler.feed(b"x")
        return time.thread_time() - start

    assert cost(b"x" * (PARTIAL_LIMIT_BYTES - 20_000)) < 20 * cost(b"")


# real processes


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def options(*more):
    return "\n".join(["socket = app.sock", f"pythonpath = {APPS}", "module = noisy", *more]) + "\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_long_lines_of_eight_workers_come_out_whole(start, stack, tmp_path, stream):
    """All of them print at the same time, each line as long as a pipe."""
    server = start(options("processes = 8", "dispatch-order = even"))
    server.wait_workers(8)
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    os.mkfifo(gate)
    clients = [stack.enter_context(Connection(server.address)) for _ in range(8)]
    for client in clients:
        client.send(packet(cgi("/long", HTTP_X_FILE=str(begun), HTTP_X_GATE=str(gate), HTTP_X_STREAM=stream)))
    wait_until(lambda: begun.exists() and len(begun.read_text()) == 8, message="all eight wait at the gate")
    opener = os.open(gate, os.O_RDWR)
    stack.callback(os.close, opener)
    pids = [client.answer().body.decode() for client in clients]
    assert len(set(pids)) == 8
    server.wait_log(r"^\d+:x+:\d+$", 64)
    lines = [line for line in server.log().splitlines() if "xxx" in line]
    assert sorted(lines) == sorted(f"{pid}:{'x' * 65536}:{pid}" for pid in pids for _ in range(8))


def small_pipe(stack):
    """Both ends of the smallest pipe there is, as files."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE)
    return stack.enter_context(os.fdopen(reader, "rb")), stack.enter_context(os.fdopen(writer, "wb"))


def test_an_inherited_stderr_stays_blocking(start, stack):
    """O_NONBLOCK would be set for everybody who holds the pipe."""
    reader, writer = small_pipe(stack)
    server = start(options(), output=writer.fileno())
    assert uwsgi(server.address, "/print").status == 200
    assert os.get_blocking(writer.fileno())
    server.signal(signal.SIGTERM)
    writer.close()
    assert b"goodbye to uWSGI." in reader.read()
    assert server.wait_exit() == 0


def test_a_stop_with_a_log_that_nobody_reads(start, stack):
    """The last lines are waited for, but not for ever."""
    _, writer = small_pipe(stack)
    server = start(options("vacuum = true", "pidfile = server.pid"), output=writer.fileno())
    assert [uwsgi(server.address, "/print?" + "q" * 1000).status for _ in range(10)] == [200] * 10
    wait_until(lambda: is_full(writer), message="the pipe is full")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(20) == 0


HALF = 3000  # requests


def test_a_log_that_nobody_reads_stops_nothing_and_keeps_what_matters(start, stack):
    """The request lines, of 2 KB each, are more than may wait; everything else isn't."""
    reader, writer = small_pipe(stack)
    server = start(options("processes = 2"), output=writer.fileno())

    def ask(first, last):
        """Four clients, each with every fourth of the numbers."""
        paths = [f"/print?{number}-{'q' * 2000}" for number in range(first, last)]
        answers = together(4, lambda client: [uwsgi(server.address, path) for path in paths[client::4]])
        assert {answer.status for some in answers for answer in some} == {200}

    ask(0, HALF)
    assert uwsgi(server.address, "/boom").status == 500
    assert uwsgi(server.address, "/die").status != 200
    ask(HALF, 2 * HALF)
    assert is_full(writer)

    writer.close()
    found = []
    reading = threading.Thread(target=lambda: found.extend(line.decode().rstrip("\n") for line in reader))
    reading.start()
    assert uwsgi(server.address, "/print?after").status == 200
    wait_until(lambda: "printed for after" in found)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    reading.join()

    log = "\n".join(found)
    printed = [line.split()[-1] for line in found if line.startswith("printed for")]
    assert Counter(printed) == Counter([*map(str, range(2 * HALF)), "after"])
    assert printed[-1] == "after"
    assert log.count("RuntimeError: boom in the middle") == 1
    assert log.count("died, killed by signal 9") == 1
    dropped = sum(int(requests) for _, requests, _ in re.findall(GAP, log)) + sum(map(int, re.findall(LATE, log)))
    kept = sum("=> generated" in line for line in found)
    assert dropped > 1000
    assert dropped + kept == 2 * HALF + 2
    assert [others for _, _, others in re.findall(GAP, log) if others != "0"] == []
    assert found[-1] == "goodbye to uWSGI."
