"""An HTTP/1 request on the wire: where its head ends, what it says, how long its body is. No sockets, no clocks.

Theory of operation

A head becomes the packet that nginx would have sent for it over the uwsgi protocol (_proto.pyx), so that everything
behind knows one format only. Two passes over the head: the first finds the lines and judges them, the second writes
the variables. Nothing is allocated, and no step goes back: the time is linear in the head's size, except that each
field is compared with those before it, of which there are at most MOST_FIELDS.

Whoever stands in front of us (a load balancer, a cache) must see the same requests as we do, or somebody's request can
be hidden in another's body. So there is exactly one way to read each head that is accepted: line ends are CRLF, a name
is a token and has its colon at once, a length is digits, a request has one length or one `chunked`, not both. What
is read in several ways by the servers of this world gets an error, and its connection ends. Sources: RFC 9110, RFC 9112;
the section after each check. tests/test_http_head.py has the cases, and compares us with h11 and llhttp.

Runs in: master and worker.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

import os

from libc.stdint cimport int32_t

from wsgimaster._peers cimport Peers, free_peers, is_forwarded, set_peers
from wsgimaster._proto import parse

cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <string.h>

    #define IS_TOKEN  1   /* RFC 9110 5.6.2 */
    #define IS_TEXT   2   /* a field's value, 5.5: no control character but the tab */
    #define IS_TARGET 4   /* RFC 9112 3.2, and raw bytes above ASCII, which browsers of old send */
    #define IS_HOST   8   /* what may stand in Host and in an absolute target's authority: RFC 3986 3.2.2, 3.2.3 */
    static unsigned char KINDS[256];
    static signed char HEX[256];
    static unsigned char AS_KEY[256];   /* upper case, - becomes _ */

    static void fill_tables(void) {
        for (int c = 0; c < 256; c++) {
            int alnum = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
            int token = alnum || (c && strchr("!#$%&'*+-.^_`|~", c));
            int text = (c >= 32 && c != 127) || c == '\\t';
            int host = alnum || c >= 128 || (c && strchr("-._~%!$&'()*+;=:[]", c));
            KINDS[c] = (token ? IS_TOKEN : 0) | (text ? IS_TEXT : 0) | (c > 32 && c != 127 ? IS_TARGET : 0)
                     | (host ? IS_HOST : 0);
            HEX[c] = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
            AS_KEY[c] = c == '-' ? '_' : c >= 'a' && c <= 'z' ? c - 32 : c;
        }
    }
    static int all_are(const unsigned char *text, size_t size, unsigned char kind) {
        unsigned char all = kind;
        for (size_t i = 0; i < size; i++) all &= KINDS[text[i]];
        return all;
    }
    /* Not strncasecmp, which asks the locale: in Turkish, I isn't the capital of i. */
    static unsigned char lower(unsigned char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }
    static int same_name(const unsigned char *one, const unsigned char *other, size_t size) {
        for (size_t i = 0; i < size; i++) if (lower(one[i]) != lower(other[i])) return 0;
        return 1;
    }
    static int same_word(const unsigned char *text, size_t size, const char *word) {
        return size == strlen(word) && same_name(text, (const unsigned char *)word, size);
    }
    /* The client's address as text; its size. */
    static int write_address(const unsigned char *address, char *to) {
        static const unsigned char mapped[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };
        if (!memcmp(address, mapped, 12)) inet_ntop(AF_INET, address + 12, to, INET6_ADDRSTRLEN);
        else inet_ntop(AF_INET6, address, to, INET6_ADDRSTRLEN);
        return (int)strlen(to);
    }
    /* A decimal number up to 65535, else -1. */
    static int read_port(const unsigned char *text, size_t size) {
        int value = 0;
        if (size < 1 || size > 5) return -1;
        for (size_t i = 0; i < size; i++) {
            if (text[i] < '0' || text[i] > '9') return -1;
            value = value * 10 + (text[i] - '0');
        }
        return value <= 65535 ? value : -1;
    }
    /* An address as text, IPv4 or IPv6; whether it is one. */
    static int read_address(const unsigned char *text, size_t size, unsigned char *address) {
        char copy[INET6_ADDRSTRLEN];
        if (size == 0 || size >= sizeof copy) return 0;
        memcpy(copy, text, size);
        copy[size] = 0;
        memset(address, 0, 10);
        address[10] = address[11] = 0xff;
        return inet_pton(AF_INET, copy, address + 12) == 1 || inet_pton(AF_INET6, copy, address) == 1;
    }
    /* As X-Forwarded-For has it: also a.b.c.d:port and [address]:port. The port is 0 if there is none. */
    static int read_forwarded(const unsigned char *text, size_t size, unsigned char *address, uint16_t *port) {
        const unsigned char *colon = memchr(text, ':', size), *end = memchr(text, ']', size);
        int number = 0;
        *port = 0;
        if (size && text[0] == '[') {
            if (!end || (end + 1 < text + size && end[1] != ':')) return 0;
            if (end + 1 < text + size) number = read_port(end + 2, (size_t)(text + size - end - 2));
            size = (size_t)(end - ++text);
        } else if (colon && !memchr(colon + 1, ':', (size_t)(text + size - colon - 1))) {
            number = read_port(colon + 1, (size_t)(text + size - colon - 1));
            size = (size_t)(colon - text);
        }
        *port = (uint16_t)number;
        return number >= 0 && read_address(text, size, address);
    }
    """
    enum:
        IS_TOKEN
        IS_TEXT
        IS_TARGET
        IS_HOST
    signed char HEX[256]
    unsigned char AS_KEY[256]
    void fill_tables()
    bint all_are(const unsigned char *text, size_t size, unsigned char kind)
    bint same_word(const unsigned char *text, size_t size, const char *word)
    bint same_name(const unsigned char *one, const unsigned char *other, size_t size)
    int write_address(const unsigned char *address, char *to)
    int read_port(const unsigned char *text, size_t size)
    bint read_address(const unsigned char *text, size_t size, unsigned char *address)
    bint read_forwarded(const unsigned char *text, size_t size, unsigned char *address, uint16_t *port)

fill_tables()

cdef enum:
    MOST_FIELDS = 100
    MOST_METHOD = 32
    MOST_EMPTY_LINES = 4        # before a request, RFC 9112 2.2
    MOST_LENGTH_DIGITS = 18     # always fit an int64
    MOST_CHUNK_DIGITS = 15
    MOST_CHUNK_EXTRA = 16384    # bytes of extensions and trailers
    MOST_PROXY_LINE = 107       # with its end: the longest that version 1 knows
    MOST_PROXY_2 = 4096         # bytes of addresses and extensions

cdef bytes own_name = os.uname().nodename.encode()
cdef const unsigned char *server_name = <const unsigned char *>PyBytes_AS_STRING(own_name)
cdef size_t server_name_bytes = len(own_name)

ctypedef struct Field:
    const unsigned char *name
    const unsigned char *value
    uint32_t name_size, value_size
    int32_t next                # of the same name, or -1
    int32_t last                # of the same name, if this is the first of them
    bint again                  # not the first one

ctypedef struct Lines:          # a head, taken apart
    const unsigned char *method
    const unsigned char *target
    size_t method_size, target_size
    Field fields[100]
    int count
    int host, length, encoding, connection, expect, upgrade, forwarded  # the first field of that name, or -1

ctypedef struct Packet:         # what is being written
    unsigned char *bytes
    size_t size, room
    bint full


# ---- where the head ends ----

cdef int find_head_end(const unsigned char *bytes, size_t have, size_t *scanned, const char **why) noexcept nogil:
    """The size of the head with its empty line, HEAD_IS_INCOMPLETE, or HEAD_HAS_ERROR: RFC 9112 2.2, where a lone LF may be
    taken for a line's end and isn't here.

    scanned: where to go on, as left by the last call; 0 at first. why: of the error.
    """
    cdef const unsigned char *end
    cdef size_t at = scanned[0], begin = 0
    while begin + 2 <= have and bytes[begin] == c"\r" and bytes[begin + 1] == c"\n":
        begin += 2
        if begin > 2 * MOST_EMPTY_LINES:
            why[0] = b"more than four empty lines come before it"
            return HEAD_HAS_ERROR
    if begin < have and not (all_are(bytes + begin, 1, IS_TOKEN) or bytes[begin] == c"\r" and begin + 1 == have):
        why[0] = b"it begins with no method"
        return HEAD_HAS_ERROR
    at = max(at, begin)
    while True:
        end = <const unsigned char *>memchr(bytes + at, c"\n", have - at)
        if end == NULL:
            scanned[0] = at
            return HEAD_IS_INCOMPLETE
        if end == bytes + at or (end - 1)[0] != c"\r":
            why[0] = b"a line ends without CR"
            return HEAD_HAS_ERROR
        if end == bytes + at + 1:
            return <int>(end + 1 - bytes)
        at = end + 1 - bytes


# ---- what it says ----

cdef int read_http_request(const unsigned char *bytes, size_t have, size_t size, const HttpClient *client,
                           const Peers *peers, unsigned char *packet, size_t limit, HttpHead *head) noexcept nogil:
    """Write the request's packet and, behind it, what has come of its body. Returns 0, or the status of its refusal.

    bytes, have: what the client has sent; size: of the head, as find_head_end found it. peers: whose word on the client's
    address counts (`forwarded-allow`). limit: largest variable block,
    bytes (`buffer-size`). packet: room for four bytes more than that, and for what is beyond the head.

    A chunked body that is there as a whole becomes one with a length. Of one that isn't, all that has come is its, and
    stays as it is.
    """
    cdef Lines lines
    cdef Packet to
    cdef Chunks chunks
    cdef const unsigned char *body = bytes + size
    cdef size_t left = have - size
    memset(head, 0, sizeof(HttpHead))
    head.size, head.content_length = <uint32_t>size, -1
    if (read_request_line(&bytes, &size, &lines, head) or read_fields(bytes, size, &lines, head)
            or judge(&lines, head) or measure_body(body, left, head)):
        return head.status
    to.bytes, to.size, to.room, to.full = packet + 4, 0, limit, False
    if write_variables(&to, &lines, client, peers, head):
        return head.status
    if to.full:
        return refuse(head, 431, b"its variables take more bytes than buffer-size allows")
    packet[0], packet[1], packet[2], packet[3] = 0, to.size & 0xFF, <unsigned char>(to.size >> 8), 0
    head.packet_bytes = <uint32_t>(4 + to.size)
    if head.decoded:
        memset(&chunks, 0, sizeof(Chunks))
        dechunk(&chunks, body, &left, packet + head.packet_bytes, &left)
    else:
        memcpy(packet + head.packet_bytes, body, head.body_bytes)
    return 0


cdef int measure_body(const unsigned char *body, size_t have, HttpHead *head) noexcept nogil:
    """How many of these bytes are the request's, and how many of its body they make."""
    cdef Chunks chunks
    cdef size_t taken = have, size = have
    if head.chunked:
        memset(&chunks, 0, sizeof(Chunks))
        if not dechunk(&chunks, body, &taken, NULL, &size):
            return refuse(head, 400, b"its body is not chunked as its head says")
        if chunks.state == BODY_ENDED:
            head.chunked, head.decoded, head.content_length = False, True, <int64_t>size
            head.taken, head.body_bytes = head.size + taken, <uint32_t>size
            return 0
    elif head.content_length < <int64_t>have:
        have = <size_t>head.content_length if head.content_length > 0 else 0
    head.taken, head.body_bytes = head.size + have, <uint32_t>have
    head.expects = head.expects and have == 0  # not for a body that has begun to come: RFC 9110 10.1.1
    return 0


cdef int refuse(HttpHead *head, int status, const char *why) noexcept nogil:
    head.status, head.why, head.keeps = status, why, False
    return status


cdef int read_request_line(const unsigned char **bytes, size_t *size, Lines *lines, HttpHead *head) noexcept nogil:
    """RFC 9112 3: method SP target SP version CRLF. Moves on to the next line."""
    cdef const unsigned char *at = bytes[0]
    cdef const unsigned char *end
    cdef const unsigned char *space
    while at[0] == c"\r":  # empty lines
        at += 2
    end = <const unsigned char *>memchr(at, c"\n", size[0] - (at - bytes[0])) - 1
    size[0] -= end + 2 - bytes[0]
    bytes[0] = end + 2
    if end - at > MOST_HTTP_LINE:
        return refuse(head, 414, b"its first line has more than 8192 bytes")
    space = <const unsigned char *>memchr(at, c" ", end - at)
    if space == NULL:
        return refuse(head, 400, b"its first line has no target")
    lines.method, lines.method_size = at, space - at
    if lines.method_size > MOST_METHOD or not all_are(at, lines.method_size, IS_TOKEN):
        return refuse(head, 400, b"its method is no token of up to 32 characters")
    at = space + 1
    space = <const unsigned char *>memchr(at, c" ", end - at)
    if space == NULL:
        return refuse(head, 400, b"its first line has no version")
    lines.target, lines.target_size = at, space - at
    if lines.target_size == 0 or not all_are(at, lines.target_size, IS_TARGET):
        return refuse(head, 400, b"its target is empty or has a control character")
    at = space + 1
    if (end - at != 8 or memcmp(at, b"HTTP/", 5) or not c"0" <= at[5] <= c"9" or at[6] != c"."
            or not c"0" <= at[7] <= c"9"):
        return refuse(head, 400, b"its first line doesn't end with a version")
    if at[5] != c"1" or at[7] > c"1":
        return refuse(head, 505, b"its version is neither HTTP/1.0 nor HTTP/1.1")
    head.old = at[7] == c"0"
    return 0


cdef int read_fields(const unsigned char *at, size_t size, Lines *lines, HttpHead *head) noexcept nogil:
    """RFC 9112 5: name ":" optional space value optional space CRLF, up to the empty line."""
    cdef const unsigned char *last = at + size - 2  # the empty line
    cdef const unsigned char *end
    cdef const unsigned char *colon
    cdef Field *field
    cdef int i, seen = 0
    lines.count = 0
    lines.host = lines.length = lines.encoding = lines.connection = lines.expect = lines.upgrade = lines.forwarded = -1
    while at < last:
        end = <const unsigned char *>memchr(at, c"\n", last - at) - 1
        seen += 1
        if seen > MOST_FIELDS:
            return refuse(head, 431, b"it has more than 100 fields")
        if at[0] in (c" ", c"\t"):
            return refuse(head, 400, b"a line begins with a space (folding is obsolete)")
        colon = <const unsigned char *>memchr(at, c":", end - at)
        if colon == NULL:
            return refuse(head, 400, b"a field has no colon")
        field = &lines.fields[lines.count]
        field.name, field.name_size = at, <uint32_t>(colon - at)
        if colon == at or not all_are(at, colon - at, IS_TOKEN):
            return refuse(head, 400, b"a field's name is no token")
        at = end + 2
        colon += 1
        while colon < end and colon[0] in (c" ", c"\t"):
            colon += 1
        while end > colon and (end - 1)[0] in (c" ", c"\t"):
            end -= 1
        field.value, field.value_size = colon, <uint32_t>(end - colon)
        if not all_are(colon, end - colon, IS_TEXT):
            return refuse(head, 400, b"a field's value has a control character")
        # With an underscore, a client could overwrite what a dash means: X_Forwarded_For. A Proxy field would become
        # HTTP_PROXY, which libraries obey for requests of their own (httpoxy).
        if (memchr(field.name, c"_", field.name_size) != NULL
                or same_word(field.name, field.name_size, b"proxy")):
            continue
        field.next, field.last, field.again = -1, lines.count, False
        for i in range(lines.count):
            if (lines.fields[i].name_size == field.name_size and not lines.fields[i].again
                    and same_name(lines.fields[i].name, field.name, field.name_size)):
                lines.fields[lines.fields[i].last].next = lines.count
                lines.fields[i].last = lines.count
                field.again = True
                break
        if not field.again:
            remember(lines, field)
        lines.count += 1
    return 0


cdef void remember(Lines *lines, const Field *field) noexcept nogil:
    """The fields that mean something to us."""
    if same_word(field.name, field.name_size, b"host"):
        lines.host = lines.count
    elif same_word(field.name, field.name_size, b"content-length"):
        lines.length = lines.count
    elif same_word(field.name, field.name_size, b"transfer-encoding"):
        lines.encoding = lines.count
    elif same_word(field.name, field.name_size, b"connection"):
        lines.connection = lines.count
    elif same_word(field.name, field.name_size, b"expect"):
        lines.expect = lines.count
    elif same_word(field.name, field.name_size, b"upgrade"):
        lines.upgrade = lines.count
    elif same_word(field.name, field.name_size, b"x-forwarded-for"):
        lines.forwarded = lines.count


cdef int judge(Lines *lines, HttpHead *head) noexcept nogil:
    """One host, one unambiguous length, and what becomes of the connection."""
    cdef Field *field
    cdef int i
    if same_word(lines.method, lines.method_size, b"CONNECT"):
        return refuse(head, 501, b"it asks for a tunnel (CONNECT)")
    if lines.host >= 0:
        field = &lines.fields[lines.host]
        if field.next >= 0:
            return refuse(head, 400, b"it has more than one Host")
        if not all_are(field.value, field.value_size, IS_HOST):
            return refuse(head, 400, b"its Host is no host")
    elif not head.old:
        return refuse(head, 400, b"it has no Host")  # RFC 9112 3.2
    if lines.length >= 0 and lines.encoding >= 0:
        return refuse(head, 400, b"it has Content-Length and Transfer-Encoding")  # 6.1
    if lines.length >= 0:
        field = &lines.fields[lines.length]
        if field.next >= 0:
            return refuse(head, 400, b"it has more than one Content-Length")
        head.content_length = read_length(field)
        if head.content_length < 0:
            return refuse(head, 400, b"its Content-Length is no number of up to 18 digits")
    if lines.encoding >= 0 and judge_encoding(&lines.fields[lines.encoding], head):
        return head.status
    if lines.expect >= 0 and not head.old and (head.chunked or head.content_length > 0):
        field = &lines.fields[lines.expect]
        head.expects = field.next < 0 and same_word(field.value, field.value_size, b"100-continue")  # RFC 9110 10.1.1
    head.keeps = not head.old
    i = lines.connection
    while i >= 0:  # RFC 9112 9.3
        read_options(&lines.fields[i], head)
        i = lines.fields[i].next
    if lines.upgrade >= 0:  # we don't change protocols: RFC 9110 7.8. But whoever believes that we do mustn't be read
        head.keeps = False
    return 0


cdef int64_t read_length(const Field *field) noexcept nogil:
    cdef int64_t value = 0
    cdef uint32_t i
    if not 0 < field.value_size <= MOST_LENGTH_DIGITS:
        return -1
    for i in range(field.value_size):
        if not c"0" <= field.value[i] <= c"9":
            return -1
        value = value * 10 + (field.value[i] - c"0")
    return value


cdef int judge_encoding(const Field *field, HttpHead *head) noexcept nogil:
    """RFC 9112 6.1, 7: chunked, once, alone, and in HTTP/1.1."""
    if head.old:
        return refuse(head, 400, b"it has Transfer-Encoding in HTTP/1.0")
    if field.next >= 0:
        return refuse(head, 400, b"it has more than one Transfer-Encoding")
    if same_word(field.value, field.value_size, b"chunked"):
        head.chunked = True
        return 0
    if not all_are(field.value, field.value_size, IS_TOKEN) or same_word(field.value, field.value_size, b"identity"):
        return refuse(head, 400, b"its Transfer-Encoding is something else than chunked")
    if field.value_size == 0:
        return refuse(head, 400, b"its Transfer-Encoding is empty")
    return refuse(head, 501, b"its Transfer-Encoding isn't known here; chunked is")


cdef void read_options(const Field *field, HttpHead *head) noexcept nogil:
    """Connection: a list of words, of which close counts most."""
    cdef const unsigned char *at = field.value
    cdef const unsigned char *end = field.value + field.value_size
    cdef const unsigned char *comma
    cdef const unsigned char *last
    while at < end:
        comma = <const unsigned char *>memchr(at, c",", end - at)
        if comma == NULL:
            comma = end
        last = comma
        while at < last and at[0] in (c" ", c"\t"):
            at += 1
        while last > at and (last - 1)[0] in (c" ", c"\t"):
            last -= 1
        if same_word(at, last - at, b"close"):
            head.closes, head.keeps = True, False
        elif head.old and same_word(at, last - at, b"keep-alive"):
            head.keeps = not head.closes
        at = comma + 1


# ---- the packet ----

cdef int write_variables(Packet *to, const Lines *lines, const HttpClient *client, const Peers *peers,
                         HttpHead *head) noexcept nogil:
    """What uWSGI's http-socket produces, in its order."""
    cdef const Field *field
    cdef const unsigned char *path = lines.target
    cdef const unsigned char *end = path + lines.target_size
    cdef const unsigned char *query
    cdef const unsigned char *authority = NULL
    cdef size_t authority_size = 0
    cdef char text[64]
    cdef int i
    if path[0] == c"*" and lines.target_size == 1 and same_word(lines.method, lines.method_size, b"OPTIONS"):
        pass  # RFC 9112 3.2.4
    elif path[0] != c"/":  # 3.2.2: absolute, and then it says which host is meant
        authority = after_scheme(path, end)
        if authority == NULL:
            return refuse(head, 400, b"its target is no path and no http address")
        path = authority
        while path < end and path[0] not in (c"/", c"?", c"#"):
            path += 1
        authority_size = path - authority
        if authority_size == 0 or not all_are(authority, authority_size, IS_HOST):
            return refuse(head, 400, b"the host in its target is no host")
    query = path
    while query < end and query[0] not in (c"?", c"#"):
        query += 1
    put(to, b"REQUEST_METHOD", 14, lines.method, lines.method_size)
    put(to, b"REQUEST_URI", 11, lines.target, lines.target_size)
    put_path(to, path, query)
    if query < end and query[0] == c"?":
        query += 1
        path = <const unsigned char *>memchr(query, c"#", end - query)
        put(to, b"QUERY_STRING", 12, query, (path if path != NULL else end) - query)
    else:
        put(to, b"QUERY_STRING", 12, query, 0)
    put(to, b"SERVER_PROTOCOL", 15, b"HTTP/1.0" if head.old else b"HTTP/1.1", 8)
    put(to, b"SCRIPT_NAME", 11, b"", 0)
    put(to, b"SERVER_NAME", 11, server_name, server_name_bytes)
    put(to, b"SERVER_PORT", 11, text, write_number(80 if client.is_local else client.own_port, text))
    put_client(to, lines, client, peers)
    if client.secure:
        put(to, b"HTTPS", 5, b"on", 2)
    for i in range(lines.count):
        field = &lines.fields[i]
        if field.again:
            continue
        if authority != NULL and i == lines.host:
            put(to, b"HTTP_HOST", 9, authority, authority_size)
        elif head.decoded and i == lines.encoding:
            put(to, b"CONTENT_LENGTH", 14, text, write_number(<uint64_t>head.content_length, text))
        else:
            put_field(to, lines, field)
    if authority != NULL and lines.host < 0:
        put(to, b"HTTP_HOST", 9, authority, authority_size)
    return 0


cdef void put_client(Packet *to, const Lines *lines, const HttpClient *client, const Peers *peers) noexcept nogil:
    """REMOTE_ADDR and REMOTE_PORT: of the peer, or of whom it speaks for, if it may."""
    cdef unsigned char address[16]
    cdef uint16_t port = client.port
    cdef char text[64]
    cdef bint known = not client.is_local
    memcpy(address, client.address, 16)
    if client.trusted and lines.forwarded >= 0 and find_forwarded(lines, peers, address, &port):
        known = True
    put(to, b"REMOTE_ADDR", 11, text, write_address(address, text) if known else 0)
    put(to, b"REMOTE_PORT", 11, text, write_number(port, text) if known and port else 0)


cdef bint find_forwarded(const Lines *lines, const Peers *peers, unsigned char *address, uint16_t *port) noexcept nogil:
    """Whom the proxies name as their client, in X-Forwarded-For: the last address that is none of theirs, since each of
    them appends whom it was called by, and what comes before that anybody may have written. False: it names nobody."""
    cdef const Field *field
    cdef const unsigned char *at
    cdef const unsigned char *end
    cdef unsigned char one[16]
    cdef uint16_t one_port
    cdef int numbers[MOST_FIELDS]
    cdef int count = 0, number = lines.forwarded
    cdef bint found = False
    while number >= 0:
        numbers[count] = number
        count += 1
        number = lines.fields[number].next
    while count:
        count -= 1
        field = &lines.fields[numbers[count]]
        end = field.value + field.value_size
        while end >= field.value:
            at = end
            while at > field.value and (at - 1)[0] != c",":
                at -= 1
            number = <int>(at - field.value)  # where the next one to the left ends, and its comma
            while at < end and at[0] in (c" ", c"\t"):
                at += 1
            while end > at and (end - 1)[0] in (c" ", c"\t"):
                end -= 1
            if not read_forwarded(at, end - at, one, &one_port):
                return found
            memcpy(address, one, 16)
            port[0], found = one_port, True
            if not is_forwarded(peers, one):
                return True
            end = field.value + number - 1
    return found


cdef bint set_length(unsigned char *packet, size_t limit, uint64_t length) noexcept nogil:
    """The body was chunked, and now all of it is there: CONTENT_LENGTH instead of HTTP_TRANSFER_ENCODING. What comes behind
    the packet stays where it is, and has 3 bytes less room before it at most. False: the packet would have more than
    `limit` bytes."""
    cdef Packet to
    cdef char text[24]
    cdef size_t size = packet[1] | (<size_t>packet[2] << 8), at = 0, key, value
    cdef unsigned char *block = packet + 4
    while at < size:
        key = block[at] | (<size_t>block[at + 1] << 8)
        value = block[at + 2 + key] | (<size_t>block[at + 3 + key] << 8)
        if key == 22 and memcmp(block + at + 2, b"HTTP_TRANSFER_ENCODING", 22) == 0:
            memmove(block + at, block + at + 4 + key + value, size - at - 4 - key - value)
            size -= 4 + key + value
            break
        at += 4 + key + value
    to.bytes, to.size, to.room, to.full = block, size, limit, False
    put(&to, b"CONTENT_LENGTH", 14, text, write_number(length, text))
    packet[1], packet[2] = to.size & 0xFF, <unsigned char>(to.size >> 8)
    return not to.full


cdef const unsigned char *after_scheme(const unsigned char *at, const unsigned char *end) noexcept nogil:
    if end - at > 7 and same_word(at, 7, b"http://"):
        return at + 7
    if end - at > 8 and same_word(at, 8, b"https://"):
        return at + 8
    return NULL


cdef size_t write_number(uint64_t number, char *text) noexcept nogil:
    cdef char digits[20]
    cdef size_t size = 0, i
    while True:
        digits[size] = <char>(c"0" + number % 10)
        size += 1
        number //= 10
        if number == 0:
            break
    for i in range(size):
        text[i] = digits[size - 1 - i]
    return size


cdef void put_size(Packet *to, size_t size) noexcept nogil:
    to.bytes[to.size], to.bytes[to.size + 1] = size & 0xFF, <unsigned char>(size >> 8)
    to.size += 2


cdef void put(Packet *to, const char *key, size_t key_size, const void *value, size_t size) noexcept nogil:
    if to.full or to.room - to.size < 4 + key_size + size:
        to.full = True
        return
    put_size(to, key_size)
    memcpy(to.bytes + to.size, key, key_size)
    to.size += key_size
    put_size(to, size)
    memcpy(to.bytes + to.size, value, size)
    to.size += size


cdef void put_path(Packet *to, const unsigned char *path, const unsigned char *end) noexcept nogil:
    """PATH_INFO: percent-decoded, once; what is no two digits stays."""
    cdef size_t at, size
    if path == end:  # http://host
        put(to, b"PATH_INFO", 9, b"/", 1)
        return
    put(to, b"PATH_INFO", 9, path, end - path)
    if to.full or memchr(path, c"%", end - path) == NULL:
        return
    to.size -= end - path
    at = to.size
    while path < end:
        if path[0] == c"%" and end - path > 2 and HEX[path[1]] >= 0 and HEX[path[2]] >= 0:
            to.bytes[to.size] = <unsigned char>(HEX[path[1]] << 4 | HEX[path[2]])
            path += 3
        else:
            to.bytes[to.size] = path[0]
            path += 1
        to.size += 1
    size = to.size - at
    to.bytes[at - 2], to.bytes[at - 1] = size & 0xFF, <unsigned char>(size >> 8)


cdef void put_field(Packet *to, const Lines *lines, const Field *field) noexcept nogil:
    """HTTP_NAME, with the values of all fields of that name: RFC 9110 5.3; cookies RFC 6265 5.4."""
    cdef const Field *one
    cdef bint bare = (same_word(field.name, field.name_size, b"content-type")
                      or same_word(field.name, field.name_size, b"content-length"))
    cdef unsigned char between = c";" if same_word(field.name, field.name_size, b"cookie") else c","
    cdef size_t key_size = field.name_size + (0 if bare else 5), size = 0, i
    cdef int number = field - lines.fields
    while number >= 0:
        size += lines.fields[number].value_size + (2 if lines.fields[number].next >= 0 else 0)
        number = lines.fields[number].next
    if to.full or to.room - to.size < 4 + key_size + size:
        to.full = True
        return
    put_size(to, key_size)
    if not bare:
        memcpy(to.bytes + to.size, b"HTTP_", 5)
        to.size += 5
    for i in range(field.name_size):
        to.bytes[to.size + i] = AS_KEY[field.name[i]]
    to.size += field.name_size
    put_size(to, size)
    number = field - lines.fields
    while number >= 0:
        one = &lines.fields[number]
        memcpy(to.bytes + to.size, one.value, one.value_size)
        to.size += one.value_size
        if one.next >= 0:
            to.bytes[to.size], to.bytes[to.size + 1] = between, c" "
            to.size += 2
        number = one.next


# ---- a chunked body: RFC 9112 7.1 ----

cdef bint dechunk(Chunks *chunks, const unsigned char *bytes, size_t *have, unsigned char *body, size_t *room) noexcept nogil:
    """Decode what has come. have, room: on return, how many bytes were taken and how many written. Whether it is sound so
    far; at its end chunks.state is BODY_ENDED, and what comes after it isn't taken.

    body may be `bytes` itself, since what is written never overtakes what is read; or NULL, only to measure.
    """
    cdef const unsigned char *at = bytes
    cdef const unsigned char *end = bytes + have[0]
    cdef unsigned char *to = body
    cdef size_t step
    cdef unsigned char c
    while at < end and chunks.state != BODY_ENDED:
        if chunks.state == CHUNK_DATA:
            step = min(<size_t>(end - at), room[0] - <size_t>(to - body))
            step = min(step, chunks.left)
            if step == 0:
                break
            if body != NULL and to != at:
                memmove(to, at, step)
            at += step
            to += step
            chunks.left -= step
            if chunks.left == 0:
                chunks.state = CHUNK_DATA_ENDS
            continue
        c = at[0]
        at += 1
        if not next_state(chunks, c):
            return False
    have[0], room[0] = at - bytes, to - body
    return True


cdef bint next_state(Chunks *chunks, unsigned char c) noexcept nogil:
    """Of everything but the data, byte by byte. False: it is no chunked body."""
    cdef uint8_t state = chunks.state
    if state in (CHUNK_SIZE_BEGINS, CHUNK_SIZE):
        if HEX[c] >= 0:
            chunks.left = chunks.left << 4 | <uint64_t>HEX[c]
            chunks.digits += 1
            chunks.state = CHUNK_SIZE
            return chunks.digits <= MOST_CHUNK_DIGITS
        if state == CHUNK_SIZE_BEGINS:
            return False
        chunks.state = CHUNK_EXTENSION if c == c";" else CHUNK_SIZE_ENDS
        return c in (c";", c"\r")
    if state in (CHUNK_EXTENSION, TRAILER):
        chunks.extra += 1
        if c == c"\r":
            chunks.state = CHUNK_SIZE_ENDS if state == CHUNK_EXTENSION else TRAILER_ENDS
        return chunks.extra <= MOST_CHUNK_EXTRA and (c == c"\r" or all_are(&c, 1, IS_TEXT))
    if state == CHUNK_SIZE_ENDS:
        chunks.state = CHUNK_DATA if chunks.left else TRAILER_BEGINS
        chunks.digits = 0
        return c == c"\n"
    if state == CHUNK_DATA_ENDS:
        chunks.state = CHUNK_DATA_ENDED
        return c == c"\r"
    if state == CHUNK_DATA_ENDED:
        chunks.state = CHUNK_SIZE_BEGINS
        return c == c"\n"
    if state == TRAILER_BEGINS:  # trailers are read over: nobody has asked for them
        chunks.state = BODY_ENDS if c == c"\r" else TRAILER
        return c == c"\r" or all_are(&c, 1, IS_TOKEN)
    if state == TRAILER_ENDS:
        chunks.state = TRAILER_BEGINS
        return c == c"\n"
    chunks.state = BODY_ENDED  # after BODY_ENDS
    return c == c"\n"


# ---- who speaks for whom: the PROXY protocol, versions 1 and 2 (haproxy, doc/proxy-protocol.txt) ----

cdef bint begins_with_proxy(const unsigned char *bytes, size_t have) noexcept nogil:
    return (have >= 6 and memcmp(bytes, b"PROXY ", 6) == 0
            or have >= 12 and memcmp(bytes, b"\r\n\r\n\0\r\nQUIT\n", 12) == 0)


cdef int read_proxy_line(const unsigned char *bytes, size_t have, const Peers *peers, HttpClient *client,
                         const char **why) noexcept nogil:
    """The size of the PROXY header that a connection begins with, HEAD_IS_INCOMPLETE, or HEAD_HAS_ERROR. Sets the client's
    address, and whether that one's word counts in its turn; unless the proxy speaks for itself (UNKNOWN, LOCAL), or of
    another kind of address."""
    cdef HttpClient before = client[0]
    cdef int size
    if have and bytes[0] == c"\r":
        size = read_proxy_2(bytes, have, client, why)
    else:
        size = read_proxy_1(bytes, have, client, why)
    if size > 0 and (client.is_local != before.is_local or memcmp(client.address, before.address, 16)):
        client.trusted = is_forwarded(peers, client.address)
    return size


cdef int read_proxy_1(const unsigned char *bytes, size_t have, HttpClient *client, const char **why) noexcept nogil:
    """PROXY SP TCP4|TCP6 SP source SP destination SP port SP port CRLF, or PROXY SP UNKNOWN ... CRLF."""
    cdef const unsigned char *words[6]
    cdef size_t sizes[6]
    cdef unsigned char address[16]
    cdef unsigned char own[16]
    cdef const unsigned char *at = bytes
    cdef const unsigned char *end
    cdef int count = 0, port, own_port
    why[0] = b"it doesn't begin with a PROXY line"
    if memcmp(bytes, b"PROXY ", min(have, <size_t>6)):
        return HEAD_HAS_ERROR
    end = <const unsigned char *>memchr(bytes, c"\n", min(have, <size_t>MOST_PROXY_LINE))
    if end == NULL:
        why[0] = b"its PROXY line has more than 107 bytes"
        return HEAD_HAS_ERROR if have >= MOST_PROXY_LINE else HEAD_IS_INCOMPLETE
    why[0] = b"its PROXY line isn't sound"
    if (end - 1)[0] != c"\r":
        return HEAD_HAS_ERROR
    end -= 1
    while count < 6:
        words[count] = at
        while at < end and at[0] != c" ":
            at += 1
        sizes[count] = at - words[count]
        count += 1
        if at == end:
            break
        at += 1
    if count >= 2 and sizes[1] == 7 and memcmp(words[1], b"UNKNOWN", 7) == 0:
        return <int>(end + 2 - bytes)
    if (count < 6 or at != end or (end - 1)[0] == c" " or sizes[1] != 4 or memcmp(words[1], b"TCP", 3) or words[1][3] not in (c"4", c"6")
            or not read_address(words[2], sizes[2], address) or not read_address(words[3], sizes[3], own)):
        return HEAD_HAS_ERROR
    if (memchr(words[2], c":", sizes[2]) != NULL) != (words[1][3] == c"6"):
        return HEAD_HAS_ERROR
    port, own_port = read_port(words[4], sizes[4]), read_port(words[5], sizes[5])
    if port < 0 or own_port < 0:
        return HEAD_HAS_ERROR
    memcpy(client.address, address, 16)
    client.is_local, client.port, client.own_port = False, <uint16_t>port, <uint16_t>own_port
    return <int>(end + 2 - bytes)


cdef int read_proxy_2(const unsigned char *bytes, size_t have, HttpClient *client, const char **why) noexcept nogil:
    """Twelve bytes of signature, version and command, family, size; addresses, ports, then what we don't read."""
    cdef size_t size
    cdef int family
    why[0] = b"its PROXY header isn't sound"
    if memcmp(bytes, b"\r\n\r\n\0\r\nQUIT\n", min(have, <size_t>12)):
        return HEAD_HAS_ERROR
    if have < 16:
        return HEAD_IS_INCOMPLETE
    size = (<size_t>bytes[14] << 8) | bytes[15]
    family = bytes[13]
    if bytes[12] not in (0x20, 0x21):
        return HEAD_HAS_ERROR
    if size > MOST_PROXY_2:
        why[0] = b"its PROXY header has more than 4096 bytes"
        return HEAD_HAS_ERROR
    if bytes[12] == 0x21 and size < (<size_t>12 if family == 0x11 else <size_t>36 if family == 0x21 else <size_t>0):
        return HEAD_HAS_ERROR
    if have < 16 + size:
        return HEAD_IS_INCOMPLETE
    if bytes[12] == 0x21 and family == 0x11:
        memset(client.address, 0, 10)
        client.address[10] = client.address[11] = 0xFF
        memcpy(client.address + 12, bytes + 16, 4)
        client.is_local, client.port = False, <uint16_t>((bytes[24] << 8) | bytes[25])
        client.own_port = <uint16_t>((bytes[26] << 8) | bytes[27])
    elif bytes[12] == 0x21 and family == 0x21:
        memcpy(client.address, bytes + 16, 16)
        client.is_local, client.port = False, <uint16_t>((bytes[48] << 8) | bytes[49])
        client.own_port = <uint16_t>((bytes[50] << 8) | bytes[51])
    return <int>(16 + size)


# ---- for tests ----

class HeadError(ValueError):
    """A head that isn't served; status: the answer."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


cdef class Head:
    """variables: (key, value) byte strings; size: of the head, bytes; content_length: bytes or None; body: what came of
    it; taken: bytes of head and body. chunked: the body isn't complete, and not decoded."""

    cdef readonly list variables
    cdef readonly object content_length
    cdef readonly bytes body
    cdef readonly bint chunked, expects, keeps
    cdef readonly int size, taken


def read_request(bytes data not None, *, str address="127.0.0.1", int port=1, int own_port=80, bint secure=False,
                 forwarded_allow=None, bint proxied=False, size_t limit=65535):
    """The Head at the beginning of `data`, or None while it is incomplete. forwarded_allow: the peer is one of the proxies
    in these networks (settings.prefix_of); proxied: a PROXY header comes first. Raises HeadError."""
    cdef HttpClient client
    cdef Peers peers
    cdef HttpHead found
    cdef Head head
    cdef size_t scanned = 0
    cdef const char *why = NULL
    cdef const unsigned char *view = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef size_t have = len(data)
    cdef int size = 0
    cdef bytes packet = PyBytes_FromStringAndSize(NULL, 4 + 65535 + len(data))
    numbers = [int(number) for number in address.split(".")]
    memset(&client, 0, sizeof(HttpClient))
    client.address[10] = client.address[11] = 0xFF
    for at, number in enumerate(numbers):
        client.address[12 + <int>at] = number
    client.port, client.own_port, client.secure = port, own_port, secure
    client.trusted = forwarded_allow is not None
    memset(&peers, 0, sizeof(Peers))
    set_peers(&peers, (), forwarded_allow or ())
    try:
        if proxied:
            size = read_proxy_line(view, have, &peers, &client, &why)
            if size > 0:
                view, have = view + size, have - size
        if size >= 0 and (size or not proxied):
            size = find_head_end(view, have, &scanned, &why)
        if size < 0:
            raise HeadError(400, why.decode())
        if size == 0:
            return None
        if read_http_request(view, have, size, &client, &peers, <unsigned char *>PyBytes_AS_STRING(packet),
                             min(limit, 65535), &found):
            raise HeadError(found.status, found.why.decode())
    finally:
        free_peers(&peers)
    head = Head.__new__(Head)
    head.variables = parse(packet[:found.packet_bytes]).variables
    head.content_length = None if found.content_length < 0 else found.content_length
    head.body = packet[found.packet_bytes:found.packet_bytes + found.body_bytes]
    head.chunked, head.expects, head.keeps = found.chunked, found.expects, found.keeps
    head.size, head.taken = found.size, <int>found.taken
    return head


cdef class Dechunker:
    """A chunked body, fed piece by piece. ended: whether its end has come."""

    cdef Chunks chunks

    @property
    def ended(self):
        return self.chunks.state == BODY_ENDED

    def feed(self, bytes data not None):
        """(the body's bytes in it, how many bytes of it were taken). Raises HeadError."""
        cdef size_t have = len(data), room = have
        cdef bytes body = PyBytes_FromStringAndSize(NULL, have)
        if not dechunk(&self.chunks, <const unsigned char *>PyBytes_AS_STRING(data), &have,
                       <unsigned char *>PyBytes_AS_STRING(body), &room):
            raise HeadError(400, "its body is not chunked as its head says")
        return body[:room], have
