"""Differential fuzzing of _proto against its twin: `make fuzz`, and under AddressSanitizer `make asan`.

Inputs are valid packets that are cut, spliced, and have bytes and lengths changed, since random bytes alone
seldom get beyond the first length. The same seed gives the same inputs.
"""

import ctypes
import random
import sys

from support import packet_twin
from wsgimaster import _proto

NAMES = [b"REQUEST_METHOD", b"PATH_INFO", b"CONTENT_LENGTH", b"HTTP_COOKIE", b"A", b"HTTP_\xff", b""]
VALUES = [b"", b"GET", b"0", b"12", b"99999999999999999999", b"+5", b"a" * 300, b"\0\r\n", b"CONTENT_LENGTH"]
LENGTHS = [0, 1, 2, 3, 14, 255, 256, 4095, 4096, 65534, 65535]


def outcome(data: bytes, limit: int = 65535) -> packet_twin.Outcome:
    """What _proto makes of the bytes, in the twin's form."""
    try:
        # This memory ends where its bytes end, so AddressSanitizer sees a read beyond; bytes objects have a spare NUL.
        packet = _proto.parse((ctypes.c_ubyte * len(data)).from_buffer_copy(data), limit)
    except _proto.PacketError as error:
        return type(error).__name__, None
    if packet is None:
        return "more", None
    found = (packet.modifier1, packet.modifier2, packet.variables, packet.content_length, packet.consumed)
    return "packet", found


def u16(number: int) -> bytes:
    return number.to_bytes(2, "little")


def make(dice: random.Random) -> bytes:
    """One input."""
    block = b""
    for _ in range(dice.randrange(6)):
        name, value = dice.choice(NAMES), dice.choice(VALUES)
        lengths = [len(name), len(value)]
        if dice.random() < 0.1:
            lengths[dice.randrange(2)] = dice.choice(LENGTHS)
        block += u16(lengths[0]) + name + u16(lengths[1]) + value
    size = len(block) if dice.random() < 0.9 else dice.choice(LENGTHS)
    modifier = dice.choice([0, 0, 0, 0, 0, 0, 30, 100, 22, 71, dice.randrange(256)])
    data = bytearray(bytes([modifier]) + u16(size) + b"\0" + block)
    for _ in range(dice.choice([0, 0, 0, 1, 3])):
        data[dice.randrange(len(data))] = dice.randrange(256)
    if dice.random() < 0.1:
        data = data[: dice.randrange(len(data) + 1)]
    return bytes(data)


def run(count: int, seed: int) -> int:
    """Compare `count` inputs; the number compared. Raises AssertionError with the first difference."""
    dice = random.Random(seed)
    for number in range(count):
        data = make(dice)
        limit = dice.choice([65535, 65535, 100])
        ours, twin = outcome(data, limit), packet_twin.parse(data, limit)
        assert ours == twin, f"seed {seed}, input {number}: {data!r}: {ours} and {twin}"
        if ours[0] == "packet":
            in_pieces(data, limit, dice)
    return count


def in_pieces(data: bytes, limit: int, dice: random.Random) -> None:
    """The same bytes, fed in pieces, give the same packet."""
    parser = _proto.Parser(limit)
    cut = dice.randrange(len(data) + 1)
    parser.feed(data[:cut])
    packet = parser.feed(data[cut:])
    assert packet is not None, data
    assert data[packet.consumed :] == parser.rest, data


if __name__ == "__main__":
    total, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"{run(total, seed)} packets: _proto and its twin agree (seed {seed})")
