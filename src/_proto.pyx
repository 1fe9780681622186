"""The uwsgi packet: bytes in, variables out, and back. No sockets, no clocks.

    offset  size
    0       1     modifier1: what kind of request; 0 is a WSGI request
    1       2     size of the variable block in bytes, little endian
    3       1     modifier2
    4       ...   the block: (u16 key size, key, u16 value size, value)*, little endian

The request's body follows without framing; CONTENT_LENGTH says how long it is. Source: the uwsgi protocol as
nginx, Apache and uWSGI 2.0 speak it. Duplicate keys are legal, the last one wins (nginx users override a
`uwsgi_param` by repeating it).

Everything here trusts nothing: each length is compared with what is left before it is used. A wrong packet
is refused as a whole (uWSGI resynchronises after a key that reaches beyond the block, and so reads attacker's
bytes as lengths).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcmp, memcpy

DEF_LIMIT = 65535

# 18 digits always fit an int64; nobody uploads an exabyte.
cdef enum:
    MAX_LENGTH_DIGITS = 18


class PacketError(ValueError):
    """A packet that we don't serve; `offset` is where in the variable block, in bytes, or None.

    `status` is the HTTP status that tells the peer: every answer on a uwsgi socket is an HTTP response.
    """

    status = 400

    def __init__(self, message, offset=None):
        super().__init__(message)
        self.offset = offset


class EmptyBlock(PacketError):
    """A request without a single variable."""


class TruncatedBlock(PacketError):
    """The block ends inside a length."""


class LengthBeyondBlock(PacketError):
    """A key or value claims more bytes than the block has left."""


class EmptyKey(PacketError):
    """A variable without a name."""


class BlockTooLarge(PacketError):
    """The block is larger than `buffer-size`."""

    status = 431


class UnservedModifier(PacketError):
    """modifier1 asks for something other than a WSGI request."""

    status = 501


class PlainHttp(PacketError):
    """An HTTP client on the uwsgi port."""


class TlsHello(PacketError):
    """A TLS client on the uwsgi port."""


class BadContentLength(PacketError):
    """CONTENT_LENGTH is not a number."""


cdef inline size_t u16(const unsigned char *p) noexcept nogil:
    return p[0] | (<size_t>p[1] << 8)


cdef bint looks_like_http(const unsigned char *p) noexcept nogil:
    """The first four bytes of a request line. As a uwsgi head, "GET " claims modifier1 71 and 21573 bytes."""
    return (memcmp(p, b"GET ", 4) == 0 or memcmp(p, b"POST", 4) == 0 or memcmp(p, b"HEAD", 4) == 0
            or memcmp(p, b"PUT ", 4) == 0 or memcmp(p, b"DELE", 4) == 0 or memcmp(p, b"OPTI", 4) == 0
            or memcmp(p, b"PATC", 4) == 0 or memcmp(p, b"CONN", 4) == 0 or memcmp(p, b"PRI ", 4) == 0)


cdef Verdict read_head(const unsigned char *p, size_t have, size_t limit, Facts *facts) noexcept nogil:
    """Judge the 4-byte head, and say whether the whole block has arrived.

    Refuses as early as the bytes allow, so that nobody is kept waiting for a block that we won't take.
    """
    if have < 4:
        return NEED_MORE
    facts.modifier1 = p[0]
    facts.block_bytes = <uint32_t>u16(p + 1)
    facts.modifier2 = p[3]
    facts.offset = 0
    if p[0] != 0:
        if looks_like_http(p):
            return PLAIN_HTTP
        if p[0] == 0x16 and p[1] == 3 and p[2] <= 4:  # handshake record, version 3.x
            return TLS_HELLO
        # 30: WSGI with SCRIPT_NAME to be taken off PATH_INFO; 100: ping
        if p[0] != 30 and p[0] != 100:
            facts.found = p[0]
            return UNSERVED_MODIFIER
    if facts.block_bytes > limit:
        facts.found = facts.block_bytes
        return BLOCK_TOO_LARGE
    if facts.block_bytes == 0 and p[0] != 100:
        return EMPTY_BLOCK
    return COMPLETE if have - 4 >= facts.block_bytes else NEED_MORE


cdef Verdict read_block(const unsigned char *block, Facts *facts) noexcept nogil:
    """Walk the variables once: is every length inside the block, and what is CONTENT_LENGTH?"""
    cdef size_t end = facts.block_bytes
    cdef size_t at = 0
    cdef size_t key_at, key_size, value_size
    cdef Py_ssize_t length_at = -1
    cdef size_t length_size = 0
    facts.variables = 0
    facts.content_length = -1
    while at < end:
        facts.offset = <uint32_t>at
        if end - at < 2:
            return TRUNCATED_BLOCK
        key_size = u16(block + at)
        key_at = at + 2
        facts.found = <uint32_t>key_size
        if key_size == 0:
            return EMPTY_KEY
        if key_size > end - key_at:
            return LENGTH_BEYOND_BLOCK
        at = key_at + key_size
        facts.offset = <uint32_t>at
        if end - at < 2:
            return TRUNCATED_BLOCK
        value_size = u16(block + at)
        at += 2
        facts.found = <uint32_t>value_size
        if value_size > end - at:
            return LENGTH_BEYOND_BLOCK
        if key_size == 14 and memcmp(block + key_at, b"CONTENT_LENGTH", 14) == 0:
            length_at = at
            length_size = value_size
        at += value_size
        facts.variables += 1
    if length_at >= 0 and length_size > 0:
        facts.offset = <uint32_t>length_at
        return read_number(block + length_at, length_size, &facts.content_length)
    return COMPLETE


cdef Verdict read_number(const unsigned char *digits, size_t size, int64_t *number) noexcept nogil:
    """Decimal digits and nothing else: "+5", "5, 5" and " 5" are how requests get smuggled."""
    cdef size_t i
    cdef int64_t value = 0
    if size > MAX_LENGTH_DIGITS:
        return BAD_CONTENT_LENGTH
    for i in range(size):
        if digits[i] < c"0" or digits[i] > c"9":
            return BAD_CONTENT_LENGTH
        value = value * 10 + (digits[i] - c"0")
    number[0] = value
    return COMPLETE


cpdef object packet_error(int verdict, uint32_t offset, uint32_t found, size_t limit):
    """The exception for a verdict, with a sentence that says what was found and what was expected."""
    if verdict == EMPTY_BLOCK:
        return EmptyBlock("the request has no variables", 0)
    if verdict == TRUNCATED_BLOCK:
        return TruncatedBlock(f"the variable block ends inside a length, at byte {offset}", offset)
    if verdict == LENGTH_BEYOND_BLOCK:
        return LengthBeyondBlock(f"the length {found} at byte {offset} reaches beyond the variable block", offset)
    if verdict == EMPTY_KEY:
        return EmptyKey(f"the variable at byte {offset} has no name", offset)
    if verdict == BLOCK_TOO_LARGE:
        return BlockTooLarge(f"the variable block has {found} bytes, buffer-size allows {limit}")
    if verdict == UNSERVED_MODIFIER:
        return UnservedModifier(f"modifier1 is {found}; this server takes 0 and 30 (WSGI) and 100 (ping)")
    if verdict == PLAIN_HTTP:
        return PlainHttp("a plain HTTP request came to a uwsgi socket; http-socket is the option for HTTP clients")
    if verdict == TLS_HELLO:
        return TlsHello("a TLS handshake came to a uwsgi socket; TLS ends in the web server in front of it")
    if verdict == BAD_CONTENT_LENGTH:
        return BadContentLength(f"CONTENT_LENGTH, at byte {offset}, is not a decimal number", offset)
    raise ValueError(f"{verdict} is no error")


cdef class Packet:
    """One request's head: `variables` is a list of (key, value) byte strings in the order of the wire."""

    cdef readonly int modifier1
    cdef readonly int modifier2
    cdef readonly list variables
    cdef readonly object content_length  # bytes of the body, or None
    cdef readonly int consumed           # bytes of head and block; the body begins there

    def __repr__(self):
        return (f"Packet(modifier1={self.modifier1}, modifier2={self.modifier2}, "
                f"variables={self.variables!r}, content_length={self.content_length})")


def parse(data not None, size_t limit=DEF_LIMIT):
    """The packet at the beginning of `data` (any bytes-like object), or None while bytes are missing.

    limit: largest variable block in bytes (`buffer-size`). Raises a PacketError as soon as the bytes show it.
    """
    cdef const unsigned char[::1] view = data
    cdef size_t have = <size_t>view.shape[0]
    cdef const unsigned char *p = &view[0] if have else NULL
    cdef Facts facts
    cdef Verdict verdict = read_head(p, have, limit, &facts)
    if verdict == COMPLETE:
        verdict = read_block(p + 4, &facts)
    elif verdict == NEED_MORE:
        return None
    if verdict != COMPLETE:
        raise packet_error(verdict, facts.offset, facts.found, limit)
    cdef Packet packet = Packet.__new__(Packet)
    packet.modifier1, packet.modifier2 = facts.modifier1, facts.modifier2
    packet.consumed = 4 + facts.block_bytes
    packet.content_length = facts.content_length if facts.content_length >= 0 else None
    packet.variables = list_variables(p + 4, facts.block_bytes)
    return packet


cdef list list_variables(const unsigned char *block, size_t end):
    """Only for a block that read_block has found whole."""
    cdef list variables = []
    cdef size_t at = 0
    cdef size_t key_size, value_size
    while at < end:
        key_size = u16(block + at)
        value_size = u16(block + at + 2 + key_size)
        variables.append((PyBytes_FromStringAndSize(<const char *>block + at + 2, key_size),
                          PyBytes_FromStringAndSize(<const char *>block + at + 4 + key_size, value_size)))
        at += 4 + key_size + value_size
    return variables


class Parser:
    """Feed bytes in any pieces; `rest` holds what came after the packet (the body's beginning)."""

    def __init__(self, limit=DEF_LIMIT):
        self.limit = limit
        self.rest = b""
        self._bytes = bytearray()
        self._packet = None

    def feed(self, data):
        """The packet once it is complete, else None. Raises PacketError; afterwards the parser is of no use."""
        if self._packet is not None:
            self.rest += bytes(data)
            return self._packet
        self._bytes += data
        self._packet = parse(self._bytes, self.limit)
        if self._packet is not None:
            self.rest = bytes(self._bytes[self._packet.consumed:])
        return self._packet


def build(variables, int modifier1=0, int modifier2=0):
    """The packet for (key, value) pairs, bytes or latin-1 text. Raises ValueError where a size doesn't fit."""
    cdef list pieces = []
    cdef size_t size = 0
    for key, value in variables:
        for text in (key, value):
            piece = text.encode("latin-1") if isinstance(text, str) else bytes(text)
            if len(piece) > 0xFFFF or (text is key and not piece):
                raise ValueError(f"{piece[:40]!r}: a key has 1 to 65535 bytes, a value 0 to 65535")
            pieces.append(piece)
            size += 2 + len(piece)
    if size > 0xFFFF:
        raise ValueError(f"the variables take {size} bytes, a packet holds 65535")
    if not (0 <= modifier1 <= 255 and 0 <= modifier2 <= 255):
        raise ValueError(f"modifiers are bytes, got {modifier1} and {modifier2}")
    packet = PyBytes_FromStringAndSize(NULL, 4 + size)
    cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(packet)
    at[0], at[1], at[2], at[3] = modifier1, size & 0xFF, size >> 8, modifier2
    at += 4
    for piece in pieces:
        size = len(piece)
        at[0], at[1] = size & 0xFF, size >> 8
        memcpy(at + 2, PyBytes_AS_STRING(piece), size)
        at += 2 + size
    return packet
