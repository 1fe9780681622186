"""The packet parser once more, in plain Python and in another way: recursive descent over slices.

It shares no code with src/_proto.pyx, so that a fault in one shows as a difference.
"""

from collections.abc import Iterator

HTTP_STARTS = (b"GET ", b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"PRI ")

Outcome = tuple[str, object]  # ("packet", ...), ("more", None) or (an exception's name, None)


class Refused(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def parse(data: bytes, limit: int = 65535) -> Outcome:
    """What _proto.parse should do with these bytes."""
    try:
        return _parse(data, limit)
    except Refused as refused:
        return refused.name, None


def _parse(data: bytes, limit: int) -> Outcome:
    if len(data) < 4:
        return "more", None
    modifier1, modifier2 = data[0], data[3]
    size = int.from_bytes(data[1:3], "little")
    if modifier1 and data[:4] in HTTP_STARTS:
        raise Refused("PlainHttp")
    if modifier1 == 0x16 and data[1] == 3 and data[2] in range(5):
        raise Refused("TlsHello")
    if modifier1 not in (0, 30, 100):
        raise Refused("UnservedModifier")
    if size > limit:
        raise Refused("BlockTooLarge")
    if size == 0 and modifier1 != 100:
        raise Refused("EmptyBlock")
    if len(data) < 4 + size:
        return "more", None
    variables = list(_variables(data[4 : 4 + size]))
    length = _content_length(dict(variables).get(b"CONTENT_LENGTH", b""))
    return "packet", (modifier1, modifier2, variables, length, 4 + size)


def _variables(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    while block:
        key, block = _take(block)
        if not key:
            raise Refused("EmptyKey")
        value, block = _take(block)
        yield key, value


def _take(block: bytes) -> tuple[bytes, bytes]:
    if len(block) < 2:
        raise Refused("TruncatedBlock")
    size = int.from_bytes(block[:2], "little")
    if size > len(block) - 2:
        raise Refused("LengthBeyondBlock")
    return block[2 : 2 + size], block[2 + size :]


def _content_length(value: bytes) -> int | None:
    if not value:
        return None
    if len(value) > 18 or not all(48 <= byte <= 57 for byte in value):
        raise Refused("BadContentLength")
    return int(value)
