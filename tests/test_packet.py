"""The uwsgi packet: what is read, what is refused, and how the refusal reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import packet_fuzz, packet_twin

from wsgimaster import _proto
from wsgimaster._proto import Parser, build, parse

VARIABLES = [
    pytest.param([("REQUEST_METHOD", "GET"), ("PATH_INFO", "/")], None, id="two variables"),
    pytest.param([("QUERY_STRING", "")], None, id="an empty value"),
    pytest.param([("A", "1"), ("A", "2")], None, id="duplicate keys are both there, in order"),
    pytest.param([(b"HTTP_\xe9", b"\xff\x00\n")], None, id="any byte in key and value"),
    pytest.param([("A", "x" * 65530)], None, id="the largest block"),
    pytest.param([("CONTENT_LENGTH", "12")], 12, id="a length"),
    pytest.param([("CONTENT_LENGTH", "")], None, id="an empty length is none"),
    pytest.param([("CONTENT_LENGTH", "no"), ("CONTENT_LENGTH", "7")], 7, id="the last length wins"),
    pytest.param([("CONTENT_LENGTH", "0" * 18)], 0, id="leading zeros"),
]


def as_bytes(pairs: list[tuple[str | bytes, str | bytes]]) -> list[tuple[bytes, bytes]]:
    return [tuple(x if isinstance(x, bytes) else x.encode("latin-1") for x in pair) for pair in pairs]


@pytest.mark.parametrize(("variables", "length"), VARIABLES)
def test_what_is_built_is_read_again(variables, length):
    packet = parse(build(variables))
    assert packet.variables == as_bytes(variables)
    assert packet.content_length == length
    assert (packet.modifier1, packet.modifier2) == (0, 0)


@pytest.mark.parametrize(("variables", "length"), VARIABLES)
def test_the_body_begins_after_the_packet(variables, length):
    data = build(variables)
    assert parse(data + b"body").consumed == len(data)


def packet_of(block: bytes, modifier1: int = 0) -> bytes:
    return bytes([modifier1]) + len(block).to_bytes(2, "little") + b"\0" + block


REFUSED = [
    pytest.param(packet_of(b""), "EmptyBlock", "no variables", id="no variables"),
    pytest.param(packet_of(b"\x01"), "TruncatedBlock", "at byte 0", id="half a key's length"),
    pytest.param(packet_of(b"\x01\x00A"), "TruncatedBlock", "at byte 3", id="no value's length"),
    pytest.param(packet_of(b"\x01\x00A\x01"), "TruncatedBlock", "at byte 3", id="half a value's length"),
    pytest.param(packet_of(b"\x09\x00A"), "LengthBeyondBlock", "length 9 at byte 0", id="a key beyond the block"),
    pytest.param(packet_of(b"\xff\xffA"), "LengthBeyondBlock", "length 65535", id="the largest key length"),
    pytest.param(packet_of(b"\x01\x00A\x02\x00v"), "LengthBeyondBlock", "length 2", id="a value beyond the block"),
    pytest.param(packet_of(b"\x00\x00\x01\x00v"), "EmptyKey", "no name", id="an empty key"),
    pytest.param(packet_of(b"", 5), "UnservedModifier", "modifier1 is 5", id="another language's modifier"),
    pytest.param(packet_of(b"", 173), "UnservedModifier", "modifier1 is 173", id="a remote procedure call"),
    pytest.param(b"GET / HTTP/1.1\r\n", "PlainHttp", "http-socket", id="plain HTTP"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01", "TlsHello", "TLS", id="a TLS hello"),
    pytest.param(build([("CONTENT_LENGTH", "+5")]), "BadContentLength", "decimal", id="a sign"),
    pytest.param(build([("CONTENT_LENGTH", "5, 5")]), "BadContentLength", "decimal", id="two lengths"),
    pytest.param(build([("CONTENT_LENGTH", "4x")]), "BadContentLength", "decimal", id="a letter"),
    pytest.param(build([("CONTENT_LENGTH", "-1")]), "BadContentLength", "decimal", id="a negative length"),
    pytest.param(build([("CONTENT_LENGTH", "9" * 19)]), "BadContentLength", "decimal", id="too many digits"),
]


@pytest.mark.parametrize(("data", "error", "words"), REFUSED)
def test_a_wrong_packet_is_refused_with_the_reason(data, error, words):
    with pytest.raises(getattr(_proto, error)) as caught:
        parse(data)
    assert words in str(caught.value)


def test_a_block_beyond_the_limit_is_refused_before_it_has_come():
    with pytest.raises(_proto.BlockTooLarge, match="has 4097 bytes, buffer-size allows 4096"):
        parse(b"\x00\x01\x10\x00", 4096)
    assert parse(b"\x00\x00\x10\x00", 4096) is None


def test_a_ping_needs_no_variables():
    assert parse(b"\x64\x00\x00\x00").modifier1 == 100


def test_a_packet_in_pieces_of_any_size():
    data = build([("REQUEST_METHOD", "POST"), ("CONTENT_LENGTH", "4")])
    for cut in range(len(data) + 1):
        parser = Parser()
        first, second = parser.feed(data[:cut]), parser.feed(data[cut:] + b"body")
        assert (first is None) == (cut < len(data))
        assert second.variables[0] == (b"REQUEST_METHOD", b"POST")
        assert parser.rest == b"body"


UNBUILDABLE = [
    pytest.param([("", "v")], "a key has 1 to 65535", id="an empty key"),
    pytest.param([("k" * 65536, "")], "65535", id="too long a key"),
    pytest.param([("a", "x" * 40000), ("b", "x" * 40000)], "holds 65535", id="too many bytes"),
    pytest.param([("a", "\u20ac")], "latin-1", id="no latin-1"),
]


@pytest.mark.parametrize(("variables", "words"), UNBUILDABLE)
def test_what_no_packet_can_hold_is_not_built(variables, words):
    with pytest.raises(ValueError, match=words):
        build(variables)


@given(st.binary(max_size=200))
def test_any_bytes_read_as_the_twin_reads_them(data):
    assert packet_fuzz.outcome(data) == packet_twin.parse(data)


def test_a_short_fuzz_run_against_the_twin():
    assert packet_fuzz.run(20_000, seed=1) == 20_000
