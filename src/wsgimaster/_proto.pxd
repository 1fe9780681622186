from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum Verdict:
    COMPLETE = 0
    NEED_MORE = 1
    # whose fault: the peer's; each has an exception in _proto.pyx
    EMPTY_BLOCK = 2
    TRUNCATED_BLOCK = 3
    LENGTH_BEYOND_BLOCK = 4
    EMPTY_KEY = 5
    BLOCK_TOO_LARGE = 6
    UNSERVED_MODIFIER = 7
    PLAIN_HTTP = 8
    TLS_HELLO = 9
    BAD_CONTENT_LENGTH = 10

cdef struct Facts:
    uint8_t modifier1
    uint8_t modifier2
    uint32_t block_bytes      # of the variable block
    uint32_t variables
    int64_t content_length    # -1: absent or empty
    uint32_t offset           # where an error was found, in bytes from the start of the block
    uint32_t found            # the offending length, size or modifier

cdef Verdict read_head(const unsigned char *bytes, size_t have, size_t limit, Facts *facts) noexcept nogil
cdef Verdict read_block(const unsigned char *block, Facts *facts) noexcept nogil
cpdef object packet_error(int verdict, uint32_t offset, uint32_t found, size_t limit)
