# How master and workers read HTTP/1: _http1.pyx has the theory.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from wsgimaster._layout cimport FLAG_CHUNKED, FLAG_EXPECTS, FLAG_HTTP, FLAG_KEEPS, FLAG_OLD, HttpClient
from wsgimaster._peers cimport Peers

cdef enum:
    MOST_HTTP_HEAD = 65536        # bytes
    MOST_HTTP_LINE = 8192         # the first one, bytes
    HEAD_HAS_ERROR = -1
    HEAD_IS_INCOMPLETE = 0

ctypedef struct HttpHead:         # of one request
    uint32_t size                 # bytes of the head, with its empty line and any empty lines before it
    uint32_t packet_bytes
    uint32_t body_bytes           # behind the packet
    size_t taken                  # bytes of the request so far: of its head, and of its body
    int64_t content_length        # -1: none, or not known yet
    bint chunked                  # the body is, and isn't complete
    bint decoded                  # the body was, and is complete
    bint expects                  # 100-continue
    bint old                      # HTTP/1.0
    bint keeps                    # the connection may go on afterwards
    bint closes                   # its Connection says so
    int status                    # of the refusal; 0 for a sound head
    const char *why

cdef enum ChunkState:
    CHUNK_SIZE_BEGINS = 0
    CHUNK_SIZE
    CHUNK_EXTENSION
    CHUNK_SIZE_ENDS               # after the CR
    CHUNK_DATA
    CHUNK_DATA_ENDS               # CR expected
    CHUNK_DATA_ENDED              # LF expected
    TRAILER_BEGINS
    TRAILER
    TRAILER_ENDS                  # after the CR
    BODY_ENDS                     # after the last CR
    BODY_ENDED

ctypedef struct Chunks:           # where in a chunked body a reader is; all zeros at its beginning
    uint64_t left                 # of this chunk, bytes
    uint32_t digits               # of its size
    uint32_t extra                # bytes of extensions and trailers so far
    uint8_t state

cdef int find_head_end(const unsigned char *bytes, size_t have, size_t *scanned, const char **why) noexcept nogil
cdef int read_http_request(const unsigned char *bytes, size_t have, size_t size, const HttpClient *client,
                           const Peers *peers, unsigned char *packet, size_t limit, HttpHead *head) noexcept nogil
cdef bint set_length(unsigned char *packet, size_t limit, uint64_t length) noexcept nogil
cdef bint begins_with_proxy(const unsigned char *bytes, size_t have) noexcept nogil
cdef int read_proxy_line(const unsigned char *bytes, size_t have, const Peers *peers, HttpClient *client,
                         const char **why) noexcept nogil
cdef bint dechunk(Chunks *chunks, const unsigned char *bytes, size_t *have, unsigned char *body, size_t *room) noexcept nogil


cdef inline uint16_t http_flags(const HttpHead *head) noexcept nogil:
    """What a core must know of the request besides its packet (_layout.pxd)."""
    return (FLAG_HTTP | (FLAG_KEEPS if head.keeps else 0) | (FLAG_OLD if head.old else 0)
            | (FLAG_CHUNKED if head.chunked else 0) | (FLAG_EXPECTS if head.expects else 0))
