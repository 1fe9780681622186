"""The worker's side of a request's way: take, environ, application, answer, account.

Theory of operation

A core that has nothing to do waits in recvmsg on its channel: it is *parked*. A pushed request is one message: the variable
block, the first body bytes, and the client's descriptor. The core builds the environ from the block, calls the application, and
sends head and first chunk in one system call straight to the client. Then it half-closes and closes its copy of the descriptor
(the master keeps one until it sees `done`), and writes the request line into its ring and its figures into its slot.

Then, if the master has given it the listening sockets (pull), it goes on by itself (`go_on`):

    parked --message--> serve --> look at channel and sockets --connection--> accept, read, serve --> look ...
                                       | nothing there                           | no complete sound request: hand it to the master
                                       v
                                  wait at the sockets (`waiters` of all cores may) --connection--> accept ...
                                       | may not, or is wanted, or a message came
                                       v
                                  report, parked

A request that it pulled stands in its buffer as if it had been pushed, so that there is one way from there on. Which
cores wait and which are parked is explained in _layout.pxd.

An HTTP connection that goes on is held: it stands in an epoll of this core's (HOLDING) until its next request, the master
takes it, or the core gives it back. Over uwsgi the web server says how an answer ends; over HTTP we do (`finish_head`).

The client's descriptor is non-blocking. Every wait (body, writing) is a poll of `socket-timeout`, so a slow client is
kept as long as bytes move, and signals reach Python's handlers in between. The GIL is released around
every call that can wait.

What an application does wrong becomes an exception where it does it (start_response, write, iteration), so that its
traceback names the place; what reaches us unhandled is a 500 before the head went out, and a cut connection
after it.

Runs in: the worker, one Core per thread.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Copy, PyDict_SetItem
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.errno cimport (EAGAIN, EBADF, ECONNRESET, EINTR, EINVAL, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSYS, ENOTSOCK,
                         EOPNOTSUPP, EPIPE, ETIMEDOUT, ETOOMANYREFS, errno)
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from wsgimaster._http1 cimport *
from wsgimaster._kernel cimport client_left, untaken_bytes
from wsgimaster._layout cimport *
from wsgimaster._peers cimport *
from wsgimaster._proto cimport COMPLETE, Facts, read_block, read_head
from wsgimaster._rescue cimport *

import faulthandler
import io
import os
import resource
import sys
import tempfile
import traceback
from http import HTTPStatus
from stat import S_ISREG
from urllib.parse import unquote_to_bytes

from wsgimaster.errors import RequestTimeout

cdef extern from "<sys/socket.h>" nogil:
    int socketpair(int family, int kind, int protocol, int *ends)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *bytes, size_t size, int64_t offset)

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <poll.h>
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/ioctl.h>
    #include <sys/prctl.h>
    #include <sys/sendfile.h>
    #include <sys/syscall.h>

    /* > 0: ready; 0: `timeout` is over since *since, which is set when it is 0; < 0: errno, EINTR mostly. */
    static int wait_for(int fd, short what, uint64_t timeout_ns, uint64_t *since) {
        struct pollfd p = { fd, what, 0 };
        uint64_t now = now_ns();
        if (!*since) *since = now;
        uint64_t over = *since + timeout_ns;
        if (now >= over) return 0;
        uint64_t ms = (over - now + 999999) / 1000000;
        return poll(&p, 1, ms < 3600000 ? (int)ms : 3600000);
    }

    /* Send what the pieces (up to four) hold, as far as it goes without waiting. Advances them; bytes sent, or -1 with
       errno. */
    #define MOST_PER_SEND 32768u  /* for untaken_bytes */
    static ssize_t send_pieces(int fd, struct iovec *pieces, int count, int flags) {
        struct iovec some[4];
        size_t room = MOST_PER_SEND;
        for (int i = 0; i < count; i++) {
            some[i].iov_base = pieces[i].iov_base;
            some[i].iov_len = pieces[i].iov_len < room ? pieces[i].iov_len : room;
            room -= some[i].iov_len;
        }
        struct msghdr message = { .msg_iov = some, .msg_iovlen = count };
        ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT | flags), left = n;
        for (int i = 0; i < count && left > 0; i++) {
            size_t step = (size_t)left < pieces[i].iov_len ? (size_t)left : pieces[i].iov_len;
            pieces[i].iov_base = (char *)pieces[i].iov_base + step;
            pieces[i].iov_len -= step;
            left -= (ssize_t)step;
        }
        return n;
    }

    /* Read and forget. The bytes go where every thread may write, since nobody looks at them. */
    static ssize_t discard_bytes(int fd, size_t size) {
        static unsigned char nowhere[65536];
        return recv(fd, nowhere, size < sizeof nowhere ? size : sizeof nowhere, MSG_DONTWAIT);
    }

    /* An HTTP date (RFC 9110 5.6.7) as a header line, for the second `t`. By hand: strftime knows other languages. */
    #define DATE_LINE_BYTES 37
    static void write_date(time_t t, char *to) {
        static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
        struct tm d;
        char line[64];
        gmtime_r(&t, &d);
        snprintf(line, sizeof line, "Date: %.3s, %02d %.3s %04d %02d:%02d:%02d GMT\\r\\n", days + 3 * d.tm_wday, d.tm_mday,
                 months + 3 * d.tm_mon, d.tm_year + 1900, d.tm_hour, d.tm_min, d.tm_sec);
        memcpy(to, line, DATE_LINE_BYTES);
    }

    /* What the client sent beyond what was read. */
    static int unread_bytes(int fd) {
        int n = 0;
        return ioctl(fd, FIONREAD, &n) == 0 ? n : 0;
    }

    /* What may stand in a header's name (RFC 9110 5.6.2: a token), and in its value or a reason (5.5: no control
       character but the tab). One table, a bit for each. */
    #define IN_NAME 1
    #define IN_VALUE 2
    static unsigned char ALLOWED[256];
    static void fill_allowed(void) {
        for (int c = 0; c < 256; c++) {
            int token = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || (c && strchr("!#$%&'*+-.^_`|~", c));
            ALLOWED[c] = (token ? IN_NAME : 0) | ((c >= 32 && c != 127) || c == '\\t' ? IN_VALUE : 0);
        }
    }
    static int all_allowed(const unsigned char *text, size_t size, unsigned char what) {
        unsigned char all = what;
        for (size_t i = 0; i < size; i++) all &= ALLOWED[text[i]];
        return all;
    }
    static int is_content_length(const unsigned char *name, size_t size) {
        static const char wanted[] = "content-length";  /* strncasecmp would ask the locale */
        if (size != 14) return 0;
        for (int i = 0; i < 14; i++) if ((name[i] | 32) != wanted[i]) return 0;  /* of a token, only - gives - */
        return 1;
    }
    /* Decimal digits, at most 18, else -1. */
    static int64_t as_length(const unsigned char *text, size_t size) {
        int64_t value = 0;
        if (!size || size > 18) return -1;
        for (size_t i = 0; i < size; i++) {
            if (text[i] < '0' || text[i] > '9') return -1;
            value = value * 10 + (text[i] - '0');
        }
        return value;
    }
    /* "404 Not Found" is 404; -1 when it isn't three digits from 100, a space and more. */
    static int status_of(const unsigned char *text, size_t size) {
        if (size < 4 || text[3] != ' ' || text[0] < '1') return -1;
        return (int)as_length(text, 3);
    }

    /* The listening sockets that this process holds, a record per core. A child that the application forks closes its
       copies (the worker may be gone long before it), and so does the worker when the master dies, whatever it is doing
       at that moment: the next start must find the address free. */
    typedef struct Sockets {
        struct pollfd polled[2 + MOST_PULLED];  /* the channel, the epoll of what it holds, then the listening sockets */
        int count;                              /* of the last ones */
        int epoll;
        int held[HELD_PER_CORE];                /* descriptors of held connections, by their places; -1 */
        struct Sockets *next;
    } Sockets;
    static Sockets *all_sockets = NULL;
    static int forks = 0;                       /* children that the application has forked */

    static void hold_sockets(Sockets *sockets) {
        sockets->next = __atomic_load_n(&all_sockets, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n(&all_sockets, &sockets->next, sockets, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {}
    }
    static void note_child(void) { __atomic_store_n(&forks, 1, __ATOMIC_RELAXED); }
    static void close_in_child(void) {
        for (Sockets *s = all_sockets; s; s = s->next) {
            for (int i = 0; i < s->count; i++) close(s->polled[2 + i].fd);
            for (int i = 0; i < HELD_PER_CORE; i++) {
                if (s->held[i] >= 0) close(s->held[i]);
                s->held[i] = -1;  /* a child of this child may have others of that number */
            }
            close(s->polled[1].fd);
            close(s->epoll);
            s->polled[1].fd = s->epoll = -1;
            s->count = 0;
        }
    }
    static void on_orphaned(int number) {  /* the numbers stay taken: a core may be about to use one */
        int error = errno, null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        (void)number;
        for (Sockets *s = __atomic_load_n(&all_sockets, __ATOMIC_ACQUIRE); s; s = s->next)
            for (int i = 0; i < s->count; i++)
                if (null < 0) close(s->polled[2 + i].fd); else dup3(null, s->polled[2 + i].fd, O_CLOEXEC);
        if (null >= 0) close(null);
        errno = error;
    }
    /* Once per process, in its main thread. 0: the master, whose pid is given, is gone already. */
    static int expect_orphanage(int master) {
        struct sigaction action = { .sa_flags = SA_RESTART };
        sigset_t ours;
        action.sa_handler = on_orphaned;
        sigemptyset(&ours);
        sigaddset(&ours, SIGNAL_ORPHANED);
        pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
        pthread_atfork(note_child, NULL, close_in_child);
        sigaction(SIGNAL_ORPHANED, &action, NULL);
        prctl(PR_SET_PDEATHSIG, SIGNAL_ORPHANED, 0, 0, 0);
        return getppid() == master;
    }

    /* Whether bytes came within HEAD_PATIENCE_NS. Short: meanwhile nobody else knows of this connection. */
    #define HEAD_PATIENCE_NS 200000
    static int has_bytes_soon(int fd) {
        struct pollfd p = { fd, POLLIN, 0 };
        struct timespec patience = { 0, HEAD_PATIENCE_NS };
        return ppoll(&p, 1, &patience, NULL) > 0;
    }

    static int is_unix_socket(int fd) {
        int domain = 0;
        socklen_t size = sizeof domain;
        return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
    }

    static uint32_t thread_id(void) { return (uint32_t)syscall(SYS_gettid); }

    /* Append to a line, never beyond `end`. By hand: vsnprintf took a quarter of a request's instructions. */
    static inline __attribute__((always_inline)) char *put(char *at, char *end, const char *words) {
        size_t size = strlen(words), room = (size_t)(end - at);
        if (size > room) size = room;
        memcpy(at, words, size);
        return at + size;
    }
    /* The same for text from outside: what isn't printable ASCII becomes \\xNN, so that no request can forge a line. */
    static char *put_escaped(char *at, char *end, const unsigned char *text, size_t size) {
        for (; size && end - at >= 5; text++, size--) {
            if (*text >= 32 && *text < 127 && *text != '\\\\') {
                *at++ = (char)*text;
            } else {
                *at++ = '\\\\'; *at++ = 'x';
                *at++ = "0123456789abcdef"[*text >> 4]; *at++ = "0123456789abcdef"[*text & 15];
            }
        }
        return at;
    }
    static char *put_count(char *at, char *end, uint64_t count) {
        char digits[20];
        int n = 0;
        do digits[n++] = (char)('0' + count % 10); while (count /= 10);
        while (n && at < end) *at++ = digits[--n];
        return at;
    }

    /* "Sat Nov 21 10:29:35 2026", for the second `t`; buffer of 26. */
    static void write_ctime(time_t t, char *buffer) {
        struct tm parts;
        localtime_r(&t, &parts);
        strftime(buffer, 26, "%a %b %e %H:%M:%S %Y", &parts);
    }
    """
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    struct pollfd:
        int fd
        short events, revents
    ctypedef struct Sockets:
        pollfd polled[66]
        int count, epoll
        int held[512]
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout)
    int poll(pollfd *fds, unsigned long n, int timeout)
    int forks
    void hold_sockets(Sockets *sockets)
    bint expect_orphanage(int master)
    bint has_bytes_soon(int fd)
    int wait_for(int fd, short what, uint64_t timeout_ns, uint64_t *since)
    ssize_t send_pieces(int fd, iovec *pieces, int count, int flags)
    ssize_t recv(int fd, void *bytes, size_t size, int flags)
    ssize_t send(int fd, const void *bytes, size_t size, int flags)
    ssize_t sendfile(int to, int source, int64_t *offset, size_t size)
    int shutdown(int fd, int how)
    int getpeername(int fd, sockaddr *name, socklen_t *size)
    int close(int fd)
    int eventfd_write(int fd, uint64_t value)
    bint is_unix_socket(int fd)
    uint32_t thread_id()
    void fill_allowed()
    int all_allowed(const unsigned char *text, size_t size, unsigned char what)
    int is_content_length(const unsigned char *name, size_t size)
    int64_t as_length(const unsigned char *text, size_t size)
    int status_of(const unsigned char *text, size_t size)
    int unread_bytes(int fd)
    ssize_t discard_bytes(int fd, size_t size)
    void write_date(long t, char *to)
    char *put(char *at, char *end, const char *words)
    char *put_escaped(char *at, char *end, const unsigned char *text, size_t size)
    char *put_count(char *at, char *end, uint64_t count)
    void write_ctime(long t, char *buffer)
    long c_time "time"(long *t)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLLIN
        EPOLLEXCLUSIVE
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOCK_STREAM
        DATE_LINE_BYTES
        IN_NAME
        IN_VALUE
        MSG_PEEK
        POLLIN
        POLLOUT
        POLLRDHUP
        SHUT_RDWR
        SHUT_WR
        MSG_MORE

cdef extern from "Python.h":
    object PyUnicode_DecodeLatin1(const char *bytes, Py_ssize_t size, const char *errors)
    int PyUnicode_KIND(object text)
    const unsigned char *PyUnicode_1BYTE_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    enum:
        PyUnicode_1BYTE_KIND

cdef enum:
    HEAD_BYTES = 65536          # uWSGI's response-headers-limit
    KEYS = 512                  # interned variable names per core; a power of two
    MODEL_VARIABLES = 128       # of the request that later ones are compared with
    MODEL_CHANGES = 24          # values that may differ from the model's
    STRANGERS = 4               # in a row, and the last of them is the new model
    FIRST_PIECE = 262144        # read(n) allocates this much at first, since CONTENT_LENGTH is only a claim
    LINE_BYTES = 65536          # readline's reads
    CHANNEL = 0                 # in Sockets.polled
    HOLDING = 1                 # the epoll of the connections that this core holds
    LISTENING = 2               # the first of the listening sockets
    HELD_BATCH = 16             # of ready held connections, between two looks at everything else
    NOTHING = -1
    AGAIN = -2
    IMPOSSIBLE = -3             # to accept, for now
    OLD_US = 1000               # who waited behind a request that took longer may have left
    LOG_LINE_BYTES = 4096       # uWSGI's limit for a request line
    LOG_TEXT_BYTES = 2048       # of one value in it
    SENDFILE_BYTES = 1 << 20    # of one call: less if the client takes less, but one who takes it at once would never end it
    HAND_OVER_TRIES = 50        # 1 ms apart: the master reads what it is sent, and then there is room again
    DISCARD_READS = 16
    MOST_DISCARDED = 262144     # bytes of an unread body, for the sake of the connection
    HTTP_HEAD_ROOM = 256        # what a head gets from us at its end: finish_head
    RELAY_AFTER_NS = 5_000_000  # that an HTTP client takes nothing of its answer
    FIRST_READ = 16384          # of an HTTP connection; what comes along of the body has room in `buffer`

cdef int64_t UNKNOWN = 1 << 62  # bytes of a chunked body that are still to come

ctypedef struct Variable:       # of the model: where it stands in its block
    uint32_t at, key_size, size   # key_size: with its length; size: of all of it, with both lengths

# RFC 9110 7.6.1: about the connection, and so the server's to say (PEP 3333).
HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"})

REASONS = {str(status.value): f"{status.value} {status.phrase}" for status in HTTPStatus}


class ClientDisconnected(OSError):
    """The client went away, or moved no byte for `socket-timeout`. Nobody's fault here: counted, not logged."""


class BrokenBody(ClientDisconnected):
    """A chunked body that breaks its own rules: answered 400 if nothing was sent."""


class ChannelLost(OSError):
    """The worker's channel to the master can't be used any more: the application has closed it."""


# ---- wsgi.input ----

@cython.final
cdef class Input:
    """wsgi.input: the body, read from the client as the application asks for it; ends at CONTENT_LENGTH, or with its
    last chunk. Chunks are decoded in place from what was peeked at, and then read: so nothing is ever taken from the
    socket that belongs to the next request."""

    cdef int fd              # -1 once the request has ended
    cdef int spool           # the file with the whole body, if the master has read it, or -1
    cdef uint64_t timeout_ns
    cdef int64_t left        # bytes of the body that are still there or in the socket; UNKNOWN while chunks are to come
    cdef bint chunked
    cdef Chunks chunks
    cdef bint expected       # the client waits for 100 Continue
    cdef bint answering      # too late to say so: the answer has begun
    cdef bint broken         # the chunks are: nobody knows where the body ends
    cdef int64_t total       # what CONTENT_LENGTH says
    cdef int64_t consumed
    cdef bytes held          # read from the socket, not yet by the application
    cdef Py_ssize_t at       # where in `held`
    cdef Slot *slot

    def __init__(self):
        raise TypeError("made by the server")

    cdef int64_t available(self):
        return self.left + PyBytes_GET_SIZE(self.held) - self.at

    cdef Py_ssize_t receive(self, char *to, size_t size, object asked) except -1:
        """At least one byte into `to`; 0 at the end of a chunked body."""
        cdef ssize_t n
        cdef int ready = 1
        cdef uint64_t since = 0
        while True:
            if self.fd < 0:  # asked again after each wait: the number may be another client's by then
                raise ValueError("wsgi.input was read after its request had ended")
            if self.spool >= 0:
                return self.read_spool(to, size, asked)
            if self.broken:
                raise BrokenBody("the request's body is not chunked as its head says")
            if self.expected and not self.answering:
                self.expected = False
                send(self.fd, b"HTTP/1.1 100 Continue\r\n\r\n", 25, MSG_DONTWAIT | MSG_NOSIGNAL)
            n = recv(self.fd, to, size, MSG_DONTWAIT | (MSG_PEEK if self.chunked else 0))
            if n > 0:
                self.expected = False
            if n > 0 and self.chunked:
                n = self.take_chunks(to, n)
                if n == 0 and self.left:
                    since = 0
                    continue
                return n
            if n > 0:
                self.left -= n
                return n
            if n < 0 and errno == EAGAIN:
                with nogil:
                    ready = wait_for(self.fd, POLLIN, self.timeout_ns, &since)
                if ready > 0:
                    continue
                if ready < 0 and errno == EINTR:
                    PyErr_CheckSignals()
                    continue
                self.slot.read_errors += 1
                raise ClientDisconnected(ETIMEDOUT, f"timeout during read({asked}) on wsgi.input")
            if n < 0 and errno == EINTR:
                PyErr_CheckSignals()
                continue
            self.slot.read_errors += 1
            raise ClientDisconnected(f"error during read({asked}) on wsgi.input")

    cdef Py_ssize_t read_spool(self, char *to, size_t size, object asked) except -1:
        """By position: the master has the same open file, and may have to give it to another core."""
        cdef ssize_t n
        with nogil:  # it may be on a disk
            n = pread(self.spool, to, size, self.total - self.left)
        if n <= 0:
            self.slot.read_errors += 1
            raise OSError(errno if n < 0 else EIO, f"error during read({asked}) on wsgi.input")
        self.left -= n
        return n

    cdef Py_ssize_t take_chunks(self, char *bytes, size_t size) except -1:
        """Decode what was peeked at, in place, and take as much from the socket. Returns the bytes of the body in it."""
        cdef size_t taken = size, room = size
        cdef ssize_t n
        if not dechunk(&self.chunks, <unsigned char *>bytes, &taken, <unsigned char *>bytes, &room):
            self.broken = True
            self.slot.read_errors += 1
            raise BrokenBody("the request's body is not chunked as its head says")
        while taken > 0:
            n = discard_bytes(self.fd, taken)
            if n <= 0:
                break
            taken -= n
        if self.chunks.state == BODY_ENDED:
            self.left = 0
        return room

    cdef bint discard(self) noexcept:
        """Read what is there of the rest, if it isn't too much. Whether the body is at its end."""
        cdef char bytes[4096]
        cdef Py_ssize_t n, total = 0
        if self.spool >= 0:
            return True
        if self.broken or self.expected and self.left:  # in the latter case, nobody can know whether it will come
            return False
        while self.left and total < MOST_DISCARDED:
            if self.chunked:
                n = recv(self.fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_PEEK)
                if n <= 0:
                    break
                try:
                    self.take_chunks(bytes, n)
                except BrokenBody:
                    return False
            else:
                n = discard_bytes(self.fd, min(self.left, MOST_DISCARDED))
                if n <= 0:
                    break
                self.left -= n
            total += n
        return self.left == 0

    cdef bytes take_held(self, Py_ssize_t size):
        cdef bytes taken
        if self.at == 0 and size == PyBytes_GET_SIZE(self.held):
            taken, self.held = self.held, b""
        else:
            taken = self.held[self.at:self.at + size]
            self.at += size
            if self.at == PyBytes_GET_SIZE(self.held):
                self.held, self.at = b"", 0
        self.consumed += size
        return taken

    def read(self, size=-1):
        """Up to `size` bytes, fewer only at the body's end; None or a negative size: all that is left."""
        cdef int64_t wanted = -1 if size is None else size
        cdef int64_t limit = self.available()
        if wanted < 0 or wanted > limit:
            wanted = limit
        if wanted == 0:
            return b""
        cdef Py_ssize_t held = PyBytes_GET_SIZE(self.held) - self.at
        if wanted <= held:
            return self.take_held(wanted)
        cdef Py_ssize_t room = <Py_ssize_t>min(wanted, max(FIRST_PIECE, 2 * held)), have = held
        cdef bytes result = PyBytes_FromStringAndSize(NULL, room)
        cdef bytes larger
        memcpy(PyBytes_AS_STRING(result), PyBytes_AS_STRING(self.held) + self.at, held)
        self.held, self.at = b"", 0
        while have < wanted and self.left:
            if have == room:
                room = <Py_ssize_t>min(wanted, 2 * room)
                larger = PyBytes_FromStringAndSize(NULL, room)
                memcpy(PyBytes_AS_STRING(larger), PyBytes_AS_STRING(result), have)
                result = larger
            have += self.receive(PyBytes_AS_STRING(result) + have, room - have, size)
        self.consumed += have
        return result if have == room else result[:have]

    def readline(self, size=-1):
        """One line with its LF, or up to `size` bytes of it."""
        cdef int64_t limit = -1 if size is None else size
        cdef list pieces = []
        cdef Py_ssize_t length = 0, span
        cdef const char *start
        cdef const char *found
        if limit < 0 or limit > self.available():
            limit = self.available()
        while length < limit:
            if self.at == PyBytes_GET_SIZE(self.held) and not self.fill(size):
                break
            start = PyBytes_AS_STRING(self.held) + self.at
            span = <Py_ssize_t>min(PyBytes_GET_SIZE(self.held) - self.at, limit - length)
            found = <const char *>memchr(start, c"\n", span)
            if found != NULL:
                pieces.append(self.take_held(found - start + 1))
                break
            pieces.append(self.take_held(span))
            length += span
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    cdef bint fill(self, object asked) except -1:
        """Whether there was anything left."""
        cdef Py_ssize_t room = <Py_ssize_t>min(self.left, LINE_BYTES)
        cdef bytes piece = PyBytes_FromStringAndSize(NULL, room)
        cdef Py_ssize_t n = self.receive(PyBytes_AS_STRING(piece), room, asked) if room else 0
        self.held, self.at = piece[:n] if n < room else piece, 0
        return n > 0

    def readlines(self, hint=-1):
        """The lines that are left; no further ones once their sizes reach `hint` bytes."""
        cdef list lines = []
        cdef int64_t limit = -1 if hint is None else hint, total = 0
        while True:
            line = self.readline()
            if not line:
                return lines
            lines.append(line)
            total += len(line)
            if 0 < limit <= total:
                return lines

    def __iter__(self):
        return self

    def __next__(self):
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def tell(self):
        """Bytes that the application has read."""
        return self.consumed

    def fileno(self):
        """The client's socket, as under uWSGI."""
        return self.fd

    def close(self):
        """Nothing: the body ends with the request."""


cdef Input make_input(int fd, int spool, uint64_t timeout_ns, const MessageHead *message, bytes held, Slot *slot):
    """held: the part of the body that came along with the head. spool: the file with all of it, or -1."""
    cdef Input body = Input.__new__(Input)
    cdef size_t taken = len(held), room = taken
    cdef bytes decoded
    body.fd, body.spool, body.timeout_ns, body.slot = fd, spool, timeout_ns, slot
    body.held, body.at, body.consumed = held, 0, 0
    body.chunked = (message.flags & FLAG_CHUNKED) != 0
    if body.chunked:  # whoever has sent it to us has found that it is sound, and that more will come
        decoded = PyBytes_FromStringAndSize(NULL, room)
        dechunk(&body.chunks, <const unsigned char *>PyBytes_AS_STRING(held), &taken,
                <unsigned char *>PyBytes_AS_STRING(decoded), &room)
        body.held, body.left = decoded[:room], UNKNOWN
    else:
        body.total = max(0, message.content_length)
        body.left = max(0, message.content_length - len(held))
    body.expected = (message.flags & FLAG_EXPECTS) != 0 and body.left > 0
    return body


# ---- wsgi.file_wrapper ----

cdef class FileWrapper:
    """wsgi.file_wrapper: returned to the server as it is, a real file goes out through sendfile."""

    cdef readonly object filelike
    cdef readonly object block_size

    def __init__(self, filelike, block_size=65536):
        if not hasattr(filelike, "read"):
            raise AttributeError(f"wsgi.file_wrapper needs an object with read(), got {type(filelike).__name__}")
        self.filelike, self.block_size = filelike, block_size

    def __iter__(self):
        return self

    def __next__(self):
        data = self.filelike.read(self.block_size)
        if not data:
            raise StopIteration
        return data

    def close(self):
        if hasattr(self.filelike, "close"):
            self.filelike.close()


@cython.final
cdef class FilePart:
    """A part of an open regular file, which is closed with it. For static.py: io.FileIO asks the kernel for what is known
    there already (five calls)."""

    cdef int fd
    cdef int64_t offset, left

    def __cinit__(self, int fd, int64_t offset, int64_t size):
        self.fd, self.offset, self.left = fd, offset, size

    def __dealloc__(self):
        self.close()

    def read(self, size=-1):
        data = os.pread(self.fd, self.left if size < 0 else min(size, self.left), self.offset)
        self.offset += len(data)
        self.left -= len(data)
        return data

    cpdef close(self):
        if self.fd >= 0:
            close(self.fd)
        self.fd = -1


def sendable(filelike):
    """(descriptor, offset, bytes to the end) if what read() would give is what the file holds, else None.

    Only objects known to be plain: a GzipFile has a fileno() too, of the compressed file.
    """
    if type(filelike) is FilePart:
        return (<FilePart>filelike).fd, (<FilePart>filelike).offset, (<FilePart>filelike).left
    if isinstance(filelike, tempfile._TemporaryFileWrapper):
        filelike = filelike.file
    if type(filelike) not in (io.BufferedReader, io.BufferedRandom, io.FileIO):
        return None
    if type(filelike) is not io.FileIO and type(filelike.raw) is not io.FileIO:
        return None
    try:
        if type(filelike) is io.BufferedRandom:
            filelike.flush()
        fd, offset = filelike.fileno(), filelike.tell()
        status = os.fstat(fd)
    except (OSError, ValueError):
        return None
    if not S_ISREG(status.st_mode):
        return None
    return fd, offset, max(0, status.st_size - offset)


# ---- one request ----

@cython.final
@cython.freelist(8)
cdef class Exchange:
    """The answer to one request: start_response, write, and what was sent so far."""

    cdef Core core
    cdef int fd                   # where the answer goes: to the client, or to the master, which passes it on
    cdef bint relayed             # that is the master
    cdef bint may_relay
    cdef const MessageHead *message
    cdef bint http, bodyless      # bodyless: HEAD, 1xx, 204, 304
    cdef bint old                 # HTTP/1.0
    cdef bint keeps               # the connection goes on afterwards, and the head says so, or will
    cdef bint chunked             # the answer's body, by us
    cdef bint torn                # a piece of the answer went out in part
    cdef bint dated, named        # the application has sent Date, Server
    cdef Input body
    cdef bint head_method
    cdef bint responded           # start_response was called
    cdef bint head_sent
    cdef bint finished
    cdef int status               # for the request line
    cdef size_t head_bytes        # of Core.head
    cdef int header_count
    cdef int64_t length           # Content-Length as the application gave it, or -1
    cdef int64_t body_sent
    cdef int64_t surplus          # bytes beyond Content-Length, not sent
    cdef size_t protocol_bytes    # "HTTP/1.1", in Core.head
    cdef bint head_finished
    cdef bint via_sendfile
    cdef uint64_t seq
    cdef uint64_t id
    cdef uint64_t stuck_since     # when the client stopped taking bytes, or 0
    cdef int64_t untaken          # bytes in the socket's buffer then
    # of the request, for its line; taken before the application can change the environ
    cdef int variables
    cdef str method, uri, address, user, protocol

    def start_response(self, status, headers, exc_info=None):
        """PEP 3333. Raises TypeError or ValueError for what must not go on the wire, naming the header."""
        if exc_info is not None:
            try:
                if self.head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # PEP 3333: no circular reference
        elif self.responded:
            raise RuntimeError("start_response was called a second time without exc_info (PEP 3333)")
        if self.finished:
            raise RuntimeError("start_response was called after the request had ended")
        self.core.write_head(self, status, headers)
        self.responded = True
        return self.write

    def write(self, data):
        """PEP 3333's imperative way: send now. Raises ClientDisconnected when nobody is there any more."""
        if self.finished:
            raise RuntimeError("write was called after the request had ended")
        self.send_chunk(data)

    cdef int send_chunk(self, object data) except -1:
        """One piece of the body, and before the first one the head, in one system call."""
        cdef iovec pieces[4]
        cdef char chunk_size[24]
        cdef Py_ssize_t size
        if type(data) is not bytes:
            data = plain_bytes(data)
        size = PyBytes_GET_SIZE(data)
        if size == 0:  # PEP 3333: the head waits for the first byte
            return 0
        if forked_off:
            raise SystemExit(0)
        if not self.responded:
            raise RuntimeError("the application sent a body before it called start_response (PEP 3333)")
        if self.bodyless:
            size = 0
        elif self.length >= 0 and size > self.length - self.body_sent:
            self.surplus += size - (self.length - self.body_sent)
            size = self.length - self.body_sent
        if self.head_sent and size == 0:
            return 0
        if not self.head_sent:
            self.core.finish_head(self, -1)
        pieces[0].iov_base, pieces[0].iov_len = self.core.head, 0 if self.head_sent else self.head_bytes
        pieces[1].iov_base, pieces[1].iov_len = PyBytes_AS_STRING(data), size
        self.mark_sent()
        if self.chunked and size > 0:
            pieces[2] = pieces[1]
            pieces[1].iov_base, pieces[1].iov_len = chunk_size, write_chunk_size(size, chunk_size)
            pieces[3].iov_base, pieces[3].iov_len = b"\r\n", 2
            self.send_all(pieces, 4, 0)
        else:
            self.send_all(pieces, 2, 0)
        self.body_sent += size
        if self.body_sent == self.length:
            self.core.slot.outcome = OUTCOME_COMPLETE
        return 0

    cdef void mark_sent(self):
        """Before the first byte: from here on nobody else may answer this request."""
        if not self.head_sent:
            self.head_sent = True
            if self.body is not None:
                self.body.answering = True
            store_release(&self.core.slot.sent, self.seq)

    cdef int send_all(self, iovec *pieces, int count, int flags) except -1:
        """All of it. If that fails halfway, nothing can follow: what the client has is no whole piece."""
        cdef ssize_t n
        if self.torn:
            raise ClientDisconnected(EPIPE, "an earlier piece of the answer was not sent as a whole")
        self.torn = True
        while True:
            n = send_pieces(self.fd, pieces, count, flags)  # doesn't wait, so the GIL is kept
            if n >= 0:
                self.stuck_since = 0
                self.core.slot.sent_bytes += n
                while count > 0 and pieces[0].iov_len == 0:
                    pieces += 1
                    count -= 1
                if count == 0:
                    self.torn = False
                    return 0
                continue
            self.wait_writable()
        return 0

    cdef int wait_writable(self) except -1:
        """After a call that failed: wait for room, or raise for a client that is gone or doesn't read."""
        cdef int ready = 1
        if errno == EAGAIN:
            if self.stuck_since == 0:
                self.untaken = untaken_bytes(self.fd)
            with nogil:
                ready = wait_for(self.fd, POLLOUT, RELAY_AFTER_NS if self.may_relay else self.core.timeout_ns,
                                 &self.stuck_since)
            if ready > 0:
                return 0
            if ready == 0 and self.may_relay:
                self.stuck_since = 0
                self.core.relay(self)
                return 0
        if errno == EINTR:
            PyErr_CheckSignals()
            return 0
        if ready == 0 and (self.relayed or self.has_taken_some()):  # the master knows how long a client may take
            self.stuck_since = 0
            return 0
        self.core.slot.write_errors += 1
        if ready == 0:
            raise ClientDisconnected(ETIMEDOUT, "the client took no byte for socket-timeout")
        raise ClientDisconnected(errno, "write error")

    cdef bint has_taken_some(self):
        """A socket counts as writable only once most of its buffer is free; a slow client is alive long before that."""
        cdef int64_t left = untaken_bytes(self.fd)
        cdef bint moved = 0 <= left < self.untaken
        self.untaken = left
        if moved:
            self.stuck_since = 0
        return moved

    cdef bint may_go_on(self) noexcept:
        """Whether the connection is where the next request begins: the answer as long as it said, the request read."""
        if not self.keeps or not self.head_sent or self.torn:
            return False
        if not self.chunked and not self.bodyless and self.body_sent != self.length:
            return False
        return self.body is not None and self.body.discard()

    cdef int send_head_alone(self, int flags, int64_t total) except -1:
        """total: bytes of the body that follows, or -1."""
        cdef iovec piece
        if not self.responded:
            raise RuntimeError("the application returned without calling start_response (PEP 3333)")
        if not self.head_sent:
            self.core.finish_head(self, total)
            piece.iov_base, piece.iov_len = self.core.head, self.head_bytes
            self.mark_sent()
            self.send_all(&piece, 1, flags)
        return 0

    cdef int send_result(self, object result) except -1:
        """What the application returned: a file, bytes (as uWSGI takes them), or an iterable of bytes."""
        if type(result) is FileWrapper and self.responded and self.send_file(<FileWrapper>result):
            return self.send_end()
        if type(result) is bytes:
            result = [result]
        if type(result) is list or type(result) is tuple:
            self.note_end(result)
        if type(result) is list and len(<list>result) == 1:  # the most usual answer
            self.send_chunk((<list>result)[0])
        else:
            for chunk in result:
                self.send_chunk(chunk)
                if self.bodyless and self.head_sent:
                    break  # nobody will see the rest
                if self.body_sent == self.length and type(result) is FileWrapper:
                    break  # as by sendfile: a part of a file
        self.send_head_alone(0, 0)
        return self.send_end()

    cdef int note_end(self, result) except -1:
        """The whole body is there, and the application will read no more of the request. So over HTTP the head can say
        how long it is (PEP 3333 allows to add that), and whether the connection goes on."""
        cdef int64_t total = 0
        if not self.http or not self.responded or self.head_sent:
            return 0
        for chunk in result:
            if type(chunk) is not bytes:
                return 0  # send_chunk has something to say about it
            total += PyBytes_GET_SIZE(chunk)
        self.keeps = self.keeps and self.body.discard()
        self.core.finish_head(self, total)
        return 0

    cdef int send_end(self) except -1:
        """The last chunk, which is empty."""
        cdef iovec piece
        if self.chunked:
            piece.iov_base, piece.iov_len = b"0\r\n\r\n", 5
            self.send_all(&piece, 1, 0)
        return 0

    cdef bint send_file(self, FileWrapper wrapper) except -1:
        """sendfile from the file's position to its end or to Content-Length. False: not such a file."""
        cdef int source
        cdef int64_t offset, left
        cdef ssize_t n
        cdef size_t step
        found = sendable(wrapper.filelike)
        if found is None:
            return False
        source, offset, left = found
        if self.length >= 0:
            left = min(left, self.length - self.body_sent)
        if self.bodyless or left <= 0 or self.head_sent and self.chunked:
            return False  # the ordinary way sends the head, and chunks
        self.send_head_alone(MSG_MORE, left)
        self.via_sendfile = self.torn = True
        while left > 0:
            step = <size_t>min(left, SENDFILE_BYTES)
            with nogil:
                n = sendfile(self.fd, source, &offset, step)
            if n < 0 and errno in (EINVAL, ENOSYS) and self.body_sent == 0:
                self.torn = False
                return False  # a file system that can't: read() can
            if n < 0 and errno not in (EAGAIN, EINTR, EPIPE, ECONNRESET, ETIMEDOUT):
                raise OSError(errno, "the file can't be read")
            if n < 0:
                self.wait_writable()
                continue
            if n == 0:
                break  # the file became shorter; complain_of_length says so
            left -= n
            self.stuck_since = 0
            self.body_sent += n
            self.core.slot.sent_bytes += n
        self.torn = False
        return True


# ---- a core ----

cdef class Core:
    """One thread of a worker. `serve` runs until the master sends it away or is gone.

    board: the scoreboard's buffer, cores: how many it has, index: this one's number in it; core_id: its number
    in its process, which has `threads`. environ: what every request's environ begins
    with. timeout: seconds; buffer_size: largest variable block, bytes; allow_from, forwarded_allow: settings.prefix_of
    each network. log_*: which requests get a line. complain(text): one line to the log. report(method, uri): called inside
    an except block, logs the traceback.
    """

    cdef int channel, index, core_id, doorbell, cores, threads
    cdef uint64_t timeout_ns
    cdef size_t buffer_size
    cdef Peers peers
    cdef Sockets *sockets         # never freed: signal and fork handlers go through all of them
    cdef PulledSocket pulled[MOST_PULLED + LISTENING]  # of the listening sockets: what the master says of them
    cdef bint listener_local[MOST_PULLED + LISTENING]      # a unix socket: its clients have no name that matters
    cdef uint16_t listener_port[MOST_PULLED + LISTENING]
    cdef int spool                # of the request that was pushed, or -1
    cdef unsigned char *raw       # what an HTTP client has sent, FIRST_READ bytes; NULL until one comes
    cdef size_t next_at, next_bytes  # in `raw`: what came after the request
    cdef int came_by              # the listening socket of the request that was pulled
    cdef Held *held               # this core's table
    cdef int held_count
    cdef int most_held            # a quarter of the descriptors that this process may have, for all its cores
    cdef int latest_place         # after the one that was taken last
    cdef int place                # of the held connection whose request this is
    cdef HttpClient clients[HELD_PER_CORE]
    cdef uint64_t *door_bits
    cdef long date_second
    cdef char date_line[DATE_LINE_BYTES]
    cdef int last_served          # of the listening sockets: the next one comes first
    cdef bint joined              # stands at the listening sockets, waiting or serving what came from there
    cdef bint pulls               # it has the listening sockets, of which there may be none, and holds connections
    cdef uint64_t last_took_us    # by this core's last request
    cdef bint patient             # heads have come soon after their connections
    cdef object memory
    cdef BoardHead *board
    cdef uint64_t *finished_bits
    cdef uint64_t *waiting_bits
    cdef Slot *slot
    cdef unsigned char *ring
    cdef unsigned char *buffer
    cdef char *head
    cdef PyObject *keys[KEYS]
    cdef dict environ
    cdef int model_size           # variables of the model; 0: there is none
    cdef int model_fixed          # how many of them come before the first header; -1: no header comes
    cdef list model_keys
    cdef dict model_environ, fixed_environ
    cdef unsigned char *model_block
    cdef Variable model[MODEL_VARIABLES]
    cdef int strangers            # requests in a row that weren't like the model
    cdef object application, complain, report
    cdef bint log_all, log_4xx, log_5xx
    cdef int pid
    cdef long ctime_second
    cdef char ctime_text[26]

    def __cinit__(self, int channel, memory, int cores, int doorbell, int index, int core_id, int threads, application, dict environ, double timeout, *,
                  size_t buffer_size, allow_from, forwarded_allow, bint log_all, bint log_4xx, bint log_5xx, complain, report):
        cdef unsigned char[::1] view = memory
        self.channel, self.index, self.core_id = channel, index, core_id
        self.memory = memory
        self.board = <BoardHead *>&view[0]
        if not 0 <= index < cores or <size_t>view.shape[0] < board_size(cores):
            raise ValueError(f"core {index} of {cores} isn't on a scoreboard of {view.shape[0]} bytes")
        self.slot = board_slots(self.board, cores) + index
        self.ring = board_rings(self.board, cores) + <size_t>index * RING_BYTES
        self.cores, self.threads, self.doorbell = cores, threads, doorbell
        self.finished_bits, self.waiting_bits = board_finished(self.board), board_waiting(self.board, cores)
        self.door_bits = board_door(self.board, cores)
        self.held = board_held(self.board, cores, index)
        self.buffer_size = buffer_size
        set_peers(&self.peers, allow_from, forwarded_allow)
        self.sockets = <Sockets *>PyMem_RawCalloc(1, sizeof(Sockets))
        if self.sockets == NULL:
            raise MemoryError
        self.sockets.epoll = self.sockets.polled[HOLDING].fd = -1
        memset(self.sockets.held, 0xFF, sizeof(self.sockets.held))
        self.patient = True
        self.spool = -1
        self.application, self.environ = application, environ
        self.timeout_ns = <uint64_t>(timeout * 1e9)
        self.log_all, self.log_4xx, self.log_5xx = log_all, log_4xx, log_5xx
        self.complain, self.report = complain, report
        self.pid = os.getpid()
        self.ctime_second = self.date_second = -1
        self.model_fixed = -1
        self.buffer = <unsigned char *>PyMem_RawMalloc(MESSAGE_MAX_BYTES)
        self.head = <char *>PyMem_RawMalloc(HEAD_BYTES)
        self.model_block = <unsigned char *>PyMem_RawMalloc(65536)
        if self.buffer == NULL or self.head == NULL or self.model_block == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(KEYS):
            Py_XDECREF(self.keys[i])
        PyMem_RawFree(self.buffer)
        PyMem_RawFree(self.raw)
        PyMem_RawFree(self.head)
        PyMem_RawFree(self.model_block)
        free_peers(&self.peers)

    def serve(self):
        """Say READY, then serve until told to leave; also at the channel's end, when the master is gone.

        Raises ChannelLost if the channel can't be used any more.
        """
        cdef MessageHead *message = <MessageHead *>self.buffer
        cdef ssize_t n
        cdef int fds[MOST_PULLED]
        cdef uint64_t seq
        cdef bint reports
        self.slot.tid = thread_id()
        rescue_thread(self.slot)
        self.say(MESSAGE_READY, 0)
        while True:
            with nogil:
                n = receive_message(self.channel, self.buffer, MESSAGE_MAX_BYTES, 0, fds, MOST_PULLED)
            if n < 0 and errno == EINTR:
                self.run_signal_handlers()
                continue
            if n < 0:
                raise ChannelLost(errno, "the worker's channel to the master is unusable")
            if n < <ssize_t>sizeof(MessageHead) or message.kind == MESSAGE_RETIRE:
                self.leave_sockets()
                self.give_all_back()
                return
            if message.kind == MESSAGE_REQUEST and fds[1 if message.flags & FLAG_SPOOLED else 0] < 0:
                if fds[0] >= 0:  # no descriptor was free to receive it, or its body
                    close(fds[0])
                self.say(MESSAGE_RETURNED, message.seq)
                continue
            self.slot.awake = 1
            if self.held_count:
                self.let_taken_go()
            seq = message.seq
            if message.kind == MESSAGE_REQUEST:
                self.spool = fds[1]
                self.serve_one(message, fds[0], seq)
                if self.spool >= 0:
                    close(self.spool)
                    self.spool = -1
            else:
                store_release(&self.slot.taken, seq)
                self.slot.outcome = 0
                if message.kind == MESSAGE_LISTENERS:
                    self.take_sockets(message, fds)
            store_release(&self.slot.done, seq)
            reports = message.kind == MESSAGE_NOP or self.slot.outcome or self.go_on(&seq)
            self.slot.awake = 0
            if reports:
                self.say_idle(seq)

    cdef void serve_one(self, MessageHead *message, int fd, uint64_t seq):
        self.slot.started_ns = now_ns()
        if self.slot.deadline_ns:
            self.slot.deadline_ns = 0
        self.slot.outcome = 0
        message.seq = seq
        store_seq_u64(&self.slot.taken, seq)  # first: who is answered must not be served once more
        if load_seq_u32(&self.board.quiet) and exchange_u32(&self.board.quiet, 0):
            eventfd_write(self.doorbell, 1)
        rescue_take(fd, seq, message.id)
        self.slot.outcome = self.handle(message, fd)

    # ---- pull ----

    cdef int take_sockets(self, MessageHead *message, const int *fds) except -1:
        """The listening sockets, for the rest of this core's life; those that came, if a descriptor wasn't free for all."""
        cdef const PulledSocket *sockets = <const PulledSocket *>(<const uint8_t *>message + sizeof(MessageHead))
        cdef epoll_event event
        cdef int i, at, count = 0
        cdef bint failed
        cdef int holding = epoll_create1(EPOLL_CLOEXEC)
        self.sockets.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.sockets.polled[HOLDING].fd, self.sockets.polled[HOLDING].events = holding, POLLIN
        event.events, event.data.u64 = EPOLLIN, CHANNEL
        failed = self.sockets.epoll < 0 or epoll_ctl(self.sockets.epoll, EPOLL_CTL_ADD, self.channel, &event) < 0
        event.data.u64 = HOLDING
        if failed or epoll_ctl(self.sockets.epoll, EPOLL_CTL_ADD, holding, &event) < 0:
            for i in range(MOST_PULLED):
                if fds[i] >= 0:
                    close(fds[i])
            return 0
        self.sockets.polled[CHANNEL].fd, self.sockets.polled[CHANNEL].events = self.channel, POLLIN
        for i in range(MOST_PULLED):
            if fds[i] >= 0:
                at = LISTENING + count
                self.sockets.polled[at].fd, self.sockets.polled[at].events = fds[i], POLLIN | POLLRDHUP
                self.pulled[at], self.listener_local[at] = sockets[i], is_unix_socket(fds[i])
                self.listener_port[at] = own_port(fds[i])
                count += 1
        self.sockets.count, self.pulls = count, True
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.most_held = min(HELD_PER_CORE, limit // (4 * self.threads)) if limit > 0 else HELD_PER_CORE
        hold_sockets(self.sockets)
        return 0

    cdef bint go_on(self, uint64_t *seq):
        """Serve what comes by the listening sockets. True: report now; False: a message waits on the channel."""
        cdef MessageHead *message = <MessageHead *>self.buffer
        cdef int ready, fd
        cdef uint32_t passed_on
        cdef bint at_door
        while not self.is_wanted() and seq[0] % ONE_PUSH != ONE_PUSH - 1 and self.pulls:
            passed_on = load_seq_u32(&self.board.passed_on)
            ready = self.look()
            if ready == NOTHING:
                at_door = self.may_wait_at_door()
                if not at_door and not (self.held_count and self.is_alone()):
                    return True
                ready = self.wait(passed_on, at_door)
            if ready == CHANNEL:
                return False
            if ready == AGAIN:
                continue
            if ready == HOLDING:
                self.serve_held(seq)
                continue
            fd = self.accept(ready, message)
            if fd == IMPOSSIBLE:
                return True
            if fd >= 0:
                seq[0] += 1
                self.serve_one(message, fd, seq[0])
                store_release(&self.slot.done, seq[0])
        return True

    cdef bint is_wanted(self):
        """Whether this core is one of those that are to report."""
        if load_seq_i32(&self.board.wanted) <= 0:
            return False
        if add_seq_i32(&self.board.wanted, -1) > 0:
            return True
        add_seq_i32(&self.board.wanted, 1)  # others were faster
        return False

    cdef int look(self):
        """Which of the sockets has something, or NOTHING. The channel first; the others in turn, so that none starves."""
        cdef int i, at, count = 1 + self.sockets.count
        if poll(self.sockets.polled, 1 + count, 0) <= 0:
            return NOTHING
        if self.sockets.polled[CHANNEL].revents:
            return CHANNEL
        for i in range(count):
            at = 1 + (self.last_served + i) % count
            if self.sockets.polled[at].revents:
                self.last_served = at
                return at
        return NOTHING

    cdef bint is_alone(self):
        """Not beside a busy core of this process, which holds the interpreter's lock: then the master chooses."""
        cdef int other
        for other in range(self.threads):
            if other != self.core_id and (self.slot - self.core_id + other).awake:
                return False
        return True

    cdef bint may_wait_at_door(self):
        return self.is_alone() and count_at_door(self.waiting_bits, self.door_bits, self.cores) < self.board.waiters

    cdef int wait(self, uint32_t passed_on, bint at_door):
        """Until one of the sockets has something. CHANNEL also when the master has claimed this core; or AGAIN. Not at
        the listening sockets, if at_door is False: each entry there costs those who connect a tenth of a microsecond.

        passed_on: of the board, before the last look at the sockets. A connection that was passed on since may be one that
        came when nobody could be woken for it.
        """
        cdef epoll_event event
        cdef int n
        cdef bint cleared
        if at_door and not self.joined:
            self.join_sockets()
        elif not at_door:
            self.leave_sockets()
        set_bit(self.waiting_bits, self.index)
        if load_seq_i32(&self.board.wanted) > 0 or load_seq_u32(&self.board.passed_on) != passed_on:
            return AGAIN if clear_bit(self.waiting_bits, self.index) else CHANNEL
        with nogil:
            self.slot.waiting_since_ns = now_ns()
            n = epoll_wait(self.sockets.epoll, &event, 1, -1)
            cleared = clear_bit(self.waiting_bits, self.index)  # here: a thread of the application may keep the GIL
            self.slot.waited_ns += now_ns() - self.slot.waiting_since_ns
            self.slot.waiting_since_ns = 0
        if not cleared:
            if n > 0 and event.data.u64 >= LISTENING:  # the kernel has told nobody else of that connection
                add_seq_u32(&self.board.passed_on, 1)
                eventfd_write(self.doorbell, 1)
            return CHANNEL
        if n < 0:
            self.run_signal_handlers()
        return <int>event.data.u64 if n > 0 else AGAIN

    cdef void join_sockets(self):
        cdef epoll_event event
        cdef int i
        for i in range(LISTENING, LISTENING + self.sockets.count):
            event.events, event.data.u64 = EPOLLIN | EPOLLEXCLUSIVE, i
            epoll_ctl(self.sockets.epoll, EPOLL_CTL_ADD, self.sockets.polled[i].fd, &event)
        self.joined = True
        set_bit(self.door_bits, self.index)
        add_seq_u32(&self.board.arrangements, 1)

    cdef void leave_sockets(self):
        """A core that is parked stands in nobody's way: each entry costs those who connect a tenth of a microsecond."""
        cdef int i
        if self.joined:
            for i in range(LISTENING, LISTENING + self.sockets.count):
                epoll_ctl(self.sockets.epoll, EPOLL_CTL_DEL, self.sockets.polled[i].fd, NULL)
            self.joined = False
            clear_bit(self.door_bits, self.index)

    cdef int accept(self, int at, MessageHead *message):
        """The next connection of this listening socket, with its request in the buffer as if it had been pushed. NOTHING:
        there is none, or it isn't for a worker to deal with. IMPOSSIBLE: no memory or descriptor on this machine."""
        cdef unsigned char *packet = self.buffer + sizeof(MessageHead) - 4  # its block where a pushed one's stands
        cdef Facts facts
        cdef SocketName name
        cdef socklen_t size = sizeof(SocketName)
        cdef bint local = self.listener_local[at]
        cdef int fd = accept4(self.sockets.polled[at].fd, NULL if local else &name.any, NULL if local else &size,
                              SOCK_NONBLOCK | SOCK_CLOEXEC)
        if local:
            name.any.sa_family = AF_UNIX
        cdef ssize_t n
        cdef size_t body
        cdef Trust trust = TRUSTED
        cdef uint64_t id
        if fd < 0:
            return self.accept_failed(at)
        id = add_seq(&self.board.last_id, 1) + 1
        if self.pulled[at].http:
            return self.take_http(at, message, fd, id, &name)
        n = recv(fd, packet, MESSAGE_MAX_BYTES - sizeof(MessageHead), MSG_DONTWAIT)
        if n < 0 and errno == EAGAIN and self.patient:
            with nogil:
                self.patient = has_bytes_soon(fd)
            n = recv(fd, packet, MESSAGE_MAX_BYTES - sizeof(MessageHead), MSG_DONTWAIT)
        elif n > 0:
            self.patient = True
        if n == 0:  # a probe that says nothing
            close(fd)
            return NOTHING
        if not local:
            trust = uwsgi_peer(&self.peers, &name)
        if (n < 0 or trust == REFUSED or read_head(packet, n, self.buffer_size, &facts) != COMPLETE
                or facts.modifier1 == 100 or read_block(packet + 4, &facts) != COMPLETE):
            self.hand_over(MESSAGE_HANDED, fd, self.pulled[at].number, id, packet, max(0, n))
            close(fd)
            return NOTHING
        if self.last_took_us > OLD_US and client_left(fd, not local):
            self.slot.clients_gone += 1
            close(fd)
            return NOTHING
        body = n - 4 - facts.block_bytes
        if facts.content_length < <int64_t>body:  # what comes after the body is nobody's request
            body = <size_t>facts.content_length if facts.content_length > 0 else 0
        message.kind, message.id = MESSAGE_REQUEST, id
        message.flags = FLAG_PULLED | (FLAG_TRUSTED if trust == TRUSTED else 0)
        message.vars_bytes, message.body_bytes = facts.block_bytes, <uint32_t>body
        message.content_length, message.modifier1 = facts.content_length, facts.modifier1
        return fd

    cdef int take_http(self, int at, MessageHead *message, int fd, uint64_t id, const SocketName *name):
        """The same for HTTP. What isn't a complete sound request goes to the master."""
        cdef const PulledSocket *socket = &self.pulled[at]
        cdef HttpClient client
        cdef const char *why = NULL
        cdef int proxied = 0
        cdef bint begins  # with a PROXY header
        cdef ssize_t n = self.receive_http(fd)
        if n < 0 and errno == EAGAIN and self.patient:
            with nogil:
                self.patient = has_bytes_soon(fd)
            n = self.receive_http(fd)
        elif n > 0:
            self.patient = True
        if n == 0:
            close(fd)
            return NOTHING
        memset(&client, 0, sizeof(HttpClient))
        client.is_local = not address_bytes(name, client.address)
        client.port, client.own_port = port_of(name), self.listener_port[at]
        client.trusted, client.buffers = http_peer(&self.peers, name) == TRUSTED, socket.buffers
        begins = socket.proxied and client.trusted
        if n > 0 and begins:
            proxied = read_proxy_line(self.raw, n, &self.peers, &client, &why)
            if proxied > 0:
                n -= proxied
                memmove(self.raw, self.raw + proxied, n)
        if n <= 0 or begins and proxied <= 0 or not self.read_http(n, &client, FLAG_PULLED, message):
            self.hand_over(MESSAGE_HANDED, fd, socket.number, id, self.raw, max(0, n), proxied > 0, &client)
            close(fd)
            return NOTHING
        if self.last_took_us > OLD_US and client_left(fd, False):
            self.slot.clients_gone += 1
            close(fd)
            return NOTHING
        message.id = id
        self.came_by = socket.number
        return fd

    cdef ssize_t receive_http(self, int fd):
        if self.raw == NULL:
            self.raw = <unsigned char *>PyMem_RawMalloc(FIRST_READ)
        return recv(fd, self.raw, FIRST_READ, MSG_DONTWAIT) if self.raw != NULL else -1

    cdef bint read_http(self, size_t have, const HttpClient *client, uint16_t flags, MessageHead *message):
        """Lay the request that stands in `raw` into the buffer, as if it had been pushed. False: it isn't complete or sound."""
        cdef unsigned char *packet = self.buffer + sizeof(MessageHead) - 4
        cdef HttpHead head
        cdef size_t scanned = 0
        cdef const char *why = NULL
        cdef int size = find_head_end(self.raw, have, &scanned, &why)
        if size <= 0 or read_http_request(self.raw, have, size, client, &self.peers, packet, self.buffer_size, &head):
            return False
        if client.buffers and (head.chunked or head.content_length > <int64_t>head.body_bytes):
            return False
        message.kind, message.modifier1, message.flags = MESSAGE_REQUEST, 0, http_flags(&head) | flags
        if client.trusted:
            message.flags |= FLAG_TRUSTED
        message.client = client[0]
        if not self.board.keeps or self.board.closing:
            message.flags &= ~FLAG_KEEPS
        message.vars_bytes, message.body_bytes = head.packet_bytes - 4, head.body_bytes
        message.content_length = head.content_length
        self.next_at, self.next_bytes = head.taken, have - head.taken
        return True

    # ---- held connections: _layout.pxd has the states ----

    cdef void serve_held(self, uint64_t *seq):
        """One request of each held connection on which something has come; some of them, if they are many."""
        cdef MessageHead *message = <MessageHead *>self.buffer
        cdef epoll_event events[HELD_BATCH]
        cdef int n = epoll_wait(self.sockets.polled[HOLDING].fd, events, HELD_BATCH, 0), i, place
        cdef ssize_t have
        for i in range(n):
            if load_seq_i32(&self.board.wanted) > 0 or seq[0] % ONE_PUSH == ONE_PUSH - 1:
                break
            if self.last_took_us > OLD_US and poll(self.sockets.polled, 1, 0) > 0:  # the master has something to say
                break
            place = <int>events[i].data.u64
            if not change_held(&self.held[place], HELD_CORE, HELD_BUSY):
                self.let_go(place)  # the master has taken it
                store_seq_u64(&self.held[place].state, HELD_FREE)
                continue
            have = self.receive_http(self.sockets.held[place])
            if have < 0 and errno in (EAGAIN, EINTR):
                store_seq_u64(&self.held[place].state, HELD_CORE)
            elif have <= 0:
                self.give_back(place, BACK_CLOSE, 0)
            elif not self.read_http(have, &self.clients[place], FLAG_PULLED | FLAG_HELD, message):
                self.next_at = 0
                self.give_back(place, BACK_READ, have)
            else:
                message.id = add_seq(&self.board.last_id, 1) + 1
                add_u64(&self.board.again, 1)
                self.place = place
                seq[0] += 1
                self.serve_one(message, self.sockets.held[place], seq[0])
                store_release(&self.slot.done, seq[0])

    cdef int hold(self, int fd, const HttpClient *client):
        """Keep the connection for its next request. Its place, or HELD_NOWHERE if there is none."""
        cdef epoll_event event
        cdef int place, i
        if self.held_count >= self.most_held or not self.pulls or not self.board.waiters or self.board.closing:
            return HELD_NOWHERE
        for i in range(HELD_PER_CORE):
            place = (self.latest_place + i) % HELD_PER_CORE
            if self.sockets.held[place] < 0 and load_seq(&self.held[place].state) == HELD_FREE:
                break
        else:
            return HELD_NOWHERE
        self.latest_place = place + 1
        event.events, event.data.u64 = EPOLLIN, place
        if epoll_ctl(self.sockets.polled[HOLDING].fd, EPOLL_CTL_ADD, fd, &event) < 0:
            return HELD_NOWHERE
        self.sockets.held[place], self.clients[place] = fd, client[0]
        self.held_count += 1
        self.held[place].since_ns = now_ns()
        store_seq_u64(&self.held[place].state, HELD_CORE)
        return place

    cdef void let_go(self, int place):
        """Of our descriptor: the connection isn't ours any more."""
        cdef int fd = self.sockets.held[place]
        if fd >= 0:
            epoll_ctl(self.sockets.polled[HOLDING].fd, EPOLL_CTL_DEL, fd, NULL)
            self.sockets.held[place] = -1
            close(fd)
            self.held_count -= 1

    cdef void let_taken_go(self):
        """What the master has taken while this core was parked."""
        cdef int place
        for place in range(HELD_PER_CORE):
            if load_seq(&self.held[place].state) == HELD_TAKEN:
                self.let_go(place)
                store_seq_u64(&self.held[place].state, HELD_FREE)

    cdef void unhold(self, int place):
        """As if it never had been held. The descriptor stays open."""
        epoll_ctl(self.sockets.polled[HOLDING].fd, EPOLL_CTL_DEL, self.sockets.held[place], NULL)
        self.sockets.held[place] = -1
        self.held_count -= 1
        store_seq_u64(&self.held[place].state, HELD_FREE)

    cdef void give_back(self, int place, uint16_t what, size_t have):
        """To the master, with so many bytes of `raw` that the client has sent."""
        self.let_go(place)
        store_seq_u64(&self.held[place].state, HELD_BACK)
        self.hand_over(MESSAGE_BACK, -1, place, 0, self.raw + self.next_at, have, what)

    cdef void give_all_back(self):
        """Before this core leaves, or because descriptors are short."""
        cdef int place
        if not self.held_count:
            return
        self.next_at = 0
        for place in range(HELD_PER_CORE):
            if self.sockets.held[place] >= 0:
                if change_held(&self.held[place], HELD_CORE, HELD_BUSY):
                    self.give_back(place, BACK_READ, 0)
                else:
                    self.let_go(place)
                    store_seq_u64(&self.held[place].state, HELD_FREE)

    cdef int accept_failed(self, int at):
        """NOTHING: look on; usually another core was faster. IMPOSSIBLE: leave it to others for now."""
        if errno == EMFILE and self.held_count:
            self.give_all_back()
        elif errno == EMFILE:  # as when a pushed request comes without its descriptor
            self.stop_pulling(True)
            self.say(MESSAGE_RETURNED, 0)
        elif errno in (ENFILE, ENOBUFS, ENOMEM):
            return IMPOSSIBLE
        elif errno in (EBADF, ENOTSOCK, EOPNOTSUPP):  # the application has closed it, or the master is dead
            self.stop_pulling(False)
        elif errno == EINVAL or errno == EAGAIN and self.sockets.polled[at].revents & POLLRDHUP:  # the door is closed
            epoll_ctl(self.sockets.epoll, EPOLL_CTL_DEL, self.sockets.polled[at].fd, NULL)
            close(self.sockets.polled[at].fd)
            self.sockets.polled[at].fd = -1
            if not any([self.sockets.polled[i].fd >= 0 for i in range(LISTENING, LISTENING + self.sockets.count)]):
                self.sockets.count, self.pulls = 0, False
        return NOTHING

    cdef void stop_pulling(self, bint ours):
        """For the rest of this core's life. ours: whether the numbers still mean our sockets; otherwise the entries go with
        the epoll."""
        cdef int i, count = self.sockets.count
        self.sockets.count, self.pulls = 0, False
        self.joined = False
        clear_bit(self.door_bits, self.index)
        if ours:
            self.give_all_back()
            close(self.sockets.polled[HOLDING].fd)
        close(self.sockets.epoll)
        self.sockets.epoll = self.sockets.polled[HOLDING].fd = -1
        if ours:
            for i in range(LISTENING, LISTENING + count):
                close(self.sockets.polled[i].fd)

    cdef void hand_over(self, int kind, int fd, uint64_t number, uint64_t id, unsigned char *bytes, size_t have,
                        uint16_t flags=0, const HttpClient *client=NULL):
        """Give a connection, and what was read from it and not served, to the master; our descriptor stays open. Waits if
        the channel is full, and for a while if the kernel has no memory for it or too many descriptors are on their way
        (RLIMIT_NOFILE). fd: -1 if the master has it; number: of the listener, or the place."""
        cdef MessageHead head
        cdef iovec pieces[2]
        cdef uint64_t since = 0
        cdef int tries = 1
        memset(&head, 0, sizeof(MessageHead))
        head.kind, head.seq, head.id, head.flags = kind, number, id, flags
        head.content_length = self.place  # of MESSAGE_KEPT
        if client != NULL:
            head.client = client[0]
        pieces[0].iov_base, pieces[0].iov_len = &head, sizeof(MessageHead)
        pieces[1].iov_base, pieces[1].iov_len = bytes, have
        while send_message(self.channel, pieces, 2, &fd, fd >= 0) < 0:
            if errno in (EAGAIN, EINTR):
                with nogil:
                    wait_for(self.channel, POLLOUT, 1_000_000_000, &since)
                since = 0
            elif errno in (ENOMEM, ENOBUFS, ETOOMANYREFS) and tries < HAND_OVER_TRIES:
                tries += 1
                with nogil:
                    poll(NULL, 0, 1)
            else:
                self.turn_away(kind, fd, id, errno)
                break

    cdef void turn_away(self, int kind, int fd, uint64_t id, int error):
        """The master can't have this connection, so it ends here: with 503, if it isn't answered yet."""
        cdef char text[ANSWER_BYTES]
        cdef iovec piece
        cdef int i
        if kind == MESSAGE_HANDED:
            piece.iov_base, piece.iov_len = text, write_answer(text, 503, b"Service Unavailable", id, False)
            send_pieces(fd, &piece, 1, 0)
            shutdown(fd, SHUT_WR)
        if kind == MESSAGE_KEPT and self.place != HELD_NOWHERE:
            self.unhold(self.place)
            self.place = HELD_NOWHERE
        for i in range(DISCARD_READS):  # what is unread when it is closed would destroy the answer
            if recv(fd, self.buffer + sizeof(MessageHead), MESSAGE_MAX_BYTES - sizeof(MessageHead), MSG_DONTWAIT) <= 0:
                break
        what = {MESSAGE_HANDED: "answered 503", MESSAGE_KEPT: "its connection ends", MESSAGE_RELAYED: "its answer is cut"}
        self.tell(f"request {id:016x}: the master could not be given the connection ({os.strerror(error)}); "
                  f"{what.get(kind, 'an unread body may cut its answer')}")

    def asked_to_stop(self):
        """Whether the request that this thread runs now is the one that the master wants an exception in."""
        return rescue_running(self.slot.softened)

    cdef void run_signal_handlers(self):
        """Between requests: an exception out of a handler that came late has nobody left to go to."""
        try:
            PyErr_CheckSignals()
        except BaseException:
            self.tell_exception("between requests,", "in a signal handler")

    cdef void tell_exception(self, str method, str uri):
        """Report the exception that is being handled. Never raises, whatever the application did to sys.stderr."""
        try:
            self.report(shown(method), shown(uri))
        except BaseException as error:
            os.write(2, f"{method} {uri}: an exception could not be reported: {error!r}\n".encode())

    cdef void tell(self, str line):
        try:
            self.complain(line)
        except BaseException:
            os.write(2, line.encode("utf-8", "replace") + b"\n")

    cdef void say(self, int kind, uint64_t seq):
        """To the master."""
        send_short(self.channel, kind, seq)

    cdef void say_idle(self, uint64_t seq):
        """Free, and about to be parked: tell the master, and wake it only if it asked for that or has something to do."""
        self.leave_sockets()
        store_release(&self.slot.done, seq)
        set_bit(self.finished_bits, self.index)
        if self.slot.outcome & (OUTCOME_LINGER | OUTCOME_CUT):
            eventfd_write(self.doorbell, 1)
        elif load_seq_u32(&self.board.ring) and exchange_u32(&self.board.ring, 0):
            eventfd_write(self.doorbell, 1)

    cdef uint32_t handle(self, MessageHead *message, int fd):
        """One request from environ to request line; returns the slot's outcome. Never raises."""
        cdef dict environ
        cdef Exchange exchange = Exchange.__new__(Exchange)
        cdef Input body = None
        cdef uint32_t outcome
        exchange.core, exchange.fd, exchange.seq, exchange.id = self, fd, message.seq, message.id
        exchange.http = (message.flags & FLAG_HTTP) != 0
        exchange.may_relay = exchange.http
        exchange.message = message
        exchange.keeps = (message.flags & FLAG_KEEPS) != 0
        exchange.old = (message.flags & FLAG_OLD) != 0
        exchange.length = -1
        exchange.method = exchange.uri = exchange.address = exchange.user = exchange.protocol = ""
        try:
            exchange.body = body = make_input(fd, self.spool, self.timeout_ns, message, self.first_body(message), self.slot)
            environ = self.make_environ(message, body, exchange)
            self.begin(exchange, environ, (message.flags & FLAG_PULLED) != 0)
            outcome = self.call_application(exchange, environ)
        except BaseException:  # ours, not the application's
            self.tell_exception("?", "?")
            outcome = OUTCOME_CUT
        exchange.finished = True
        if exchange.torn:  # although the application has caught that
            outcome = OUTCOME_CUT
        if outcome == 0 and exchange.http and exchange.may_go_on():
            outcome = OUTCOME_KEPT
        elif outcome == 0 and (exchange.http or message.content_length > 0) and (
                body is None or body.left > 0 and body.spool < 0 or unread_bytes(fd)):
            outcome = OUTCOME_LINGER
        if self.slot.answered == message.seq:  # by the handler, which half-closes; and then it ended after all
            outcome = OUTCOME_LINGER
            if self.slot.outcome != OUTCOME_COMPLETE:
                exchange.status = 504
        rescue_release()  # before the descriptor's number can be another's
        outcome = self.end_relay(exchange, fd, outcome) if exchange.relayed else self.part(fd, outcome, message)
        exchange.fd = -1
        if body is not None:
            body.fd = -1
        self.account(exchange, message)
        return outcome

    cdef uint32_t part(self, int fd, uint32_t outcome, const MessageHead *message):
        """Close our copy of the client's descriptor, or hold it. Of a pulled connection it is the only one, and the outcome
        is seen to here. Returns what is left for the master to do."""
        cdef bint pulled = (message.flags & FLAG_PULLED) != 0
        if message.flags & FLAG_HELD:
            self.part_with_held(fd, outcome)
            return 0
        if outcome == OUTCOME_CUT:
            cut(fd)
        elif outcome != OUTCOME_KEPT and (not pulled or outcome == OUTCOME_LINGER or forks):
            shutdown(fd, SHUT_WR)  # somebody else holds it: the client must see the end
        self.place = HELD_NOWHERE
        if outcome == OUTCOME_KEPT and pulled:
            if self.next_bytes == 0:
                self.place = self.hold(fd, &message.client)
            self.hand_over(MESSAGE_KEPT, fd, self.came_by, message.id, self.raw + self.next_at, self.next_bytes, 0,
                           &message.client)
        elif outcome == OUTCOME_KEPT and message.flags & FLAG_TELLS:
            outcome = 0 if self.hold_pushed(fd, message) else outcome
        elif pulled and outcome == OUTCOME_LINGER:
            self.hand_over(MESSAGE_ANSWERED, fd, 0, message.id, NULL, 0)
        if self.place == HELD_NOWHERE:
            close(fd)
        return 0 if pulled else outcome

    cdef void part_with_held(self, int fd, uint32_t outcome):
        cdef int place = self.place
        if outcome == OUTCOME_KEPT and self.next_bytes == 0:
            self.held[place].since_ns = now_ns()
            store_seq_u64(&self.held[place].state, HELD_CORE)
        elif outcome == OUTCOME_KEPT:
            self.give_back(place, BACK_READ, self.next_bytes)
        else:
            if outcome == OUTCOME_CUT:
                cut(fd)
            self.give_back(place, BACK_LINGER if outcome == OUTCOME_LINGER else BACK_CLOSE, 0)

    cdef bint hold_pushed(self, int fd, const MessageHead *message):
        """Hold a connection that the master has, too, and tell it so; or that we can't. False: it couldn't be told."""
        cdef MessageHead head
        cdef iovec piece
        if message.flags & FLAG_HOLDS:
            self.place = self.hold(fd, &message.client)
        memset(&head, 0, sizeof(MessageHead))
        head.kind, head.seq, head.content_length = MESSAGE_HELD, message.seq, self.place
        piece.iov_base, piece.iov_len = &head, sizeof(MessageHead)
        if send_message(self.channel, &piece, 1, NULL, 0) >= 0:
            return True
        if self.place != HELD_NOWHERE:  # the channel is full: it goes back the usual way
            self.unhold(self.place)
            self.place = HELD_NOWHERE
        return False

    # ---- clients that take their answers slowly ----

    cdef bint relay(self, Exchange exchange):
        """From here on the answer goes to the master, which passes it on as the client takes it, with `http-buffer` bytes of
        room. False: it can't be told, and we wait for the client ourselves."""
        cdef const MessageHead *message = exchange.message
        cdef MessageHead head
        cdef iovec piece
        cdef int ends[2]
        cdef int fds[2]
        cdef int count = 1
        exchange.may_relay = False
        if forked_off or socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) < 0:
            return False
        memset(&head, 0, sizeof(MessageHead))
        head.kind, head.id, head.client = MESSAGE_RELAY, message.id, message.client
        fds[0], fds[1] = ends[1], exchange.fd
        if message.flags & FLAG_HELD:
            head.flags, head.seq = RELAY_HELD, self.place
            store_seq_u64(&self.held[self.place].state, HELD_BACK)
        elif message.flags & FLAG_PULLED:
            head.flags, head.seq, count = RELAY_PULLED, self.came_by, 2
        else:
            head.flags, head.seq = RELAY_PUSHED, message.seq
        piece.iov_base, piece.iov_len = &head, sizeof(MessageHead)
        if send_message(self.channel, &piece, 1, fds, count) < 0:
            if message.flags & FLAG_HELD:
                store_seq_u64(&self.held[self.place].state, HELD_BUSY)
            close(ends[0])
            close(ends[1])
            return False
        close(ends[1])
        if message.flags & FLAG_HELD:  # the descriptor stays open for what is left of the request
            epoll_ctl(self.sockets.polled[HOLDING].fd, EPOLL_CTL_DEL, self.sockets.held[self.place], NULL)
            self.sockets.held[self.place] = -1
            self.held_count -= 1
        exchange.fd, exchange.relayed = ends[0], True
        rescue_take(ends[0], message.seq, message.id)
        rescue_method(exchange.head_method)
        return True

    cdef uint32_t end_relay(self, Exchange exchange, int fd, uint32_t outcome):
        """All of the answer is on its way to the master, and the connection is the master's."""
        cdef bint ours = (exchange.message.flags & FLAG_PULLED) != 0  # we have read it, and maybe more than this request
        self.hand_over(MESSAGE_RELAYED, -1, 0, exchange.id, self.raw + self.next_at if ours else NULL,
                       self.next_bytes if ours else 0, outcome)
        shutdown(exchange.fd, SHUT_RDWR)  # a child that the application has forked may hold it
        close(exchange.fd)
        if outcome & OUTCOME_CUT:
            cut(fd)
        close(fd)
        return 0

    cdef uint32_t call_application(self, Exchange exchange, dict environ) except? 0xFFFF:
        """The application, its result, close(): everything that runs the application's code."""
        cdef uint32_t outcome = 0
        result = None
        try:
            result = self.application(environ, exchange.start_response)
            if forked_off:
                raise SystemExit(0)
            exchange.send_result(result)
            self.complain_of_length(exchange)
            self.slot.outcome = OUTCOME_COMPLETE
        except BaseException if forked_off else ():
            end_child()
        except BrokenBody:
            outcome = self.send_error(exchange)
        except ClientDisconnected:
            self.slot.clients_gone += self.slot.answered != exchange.seq
            outcome = OUTCOME_CUT
        except BaseException:  # SystemExit and KeyboardInterrupt too: a request doesn't end the worker
            self.slot.exceptions += 1
            self.tell_exception(exchange.method, exchange.uri)
            outcome = self.send_error(exchange)
        try:
            if result is not None and type(result) is not list and hasattr(result, "close"):
                result.close()
        except BaseException:  # what was sent stays sent
            self.slot.exceptions += 1
            self.tell_exception(exchange.method, exchange.uri)
        return outcome

    cdef uint32_t send_error(self, Exchange exchange):
        """500, or 504 for a request that was told to stop, if nothing went out yet; else it must be seen to be cut."""
        cdef char text[ANSWER_BYTES]
        cdef iovec piece
        if self.slot.outcome == OUTCOME_COMPLETE:
            return 0
        if exchange.head_sent:
            return OUTCOME_CUT
        try:
            exchange.length, exchange.responded = -1, False
            exchange.keeps = exchange.head_finished = False
            if isinstance(sys.exc_info()[1], (RequestTimeout, BrokenBody)):
                exchange.status = 504 if isinstance(sys.exc_info()[1], RequestTimeout) else 400
                piece.iov_base = text
                piece.iov_len = exchange.head_bytes = write_answer(
                    text, exchange.status, b"Gateway Timeout" if exchange.status == 504 else b"Bad Request", exchange.id,
                    exchange.head_method)
                exchange.mark_sent()
                exchange.send_all(&piece, 1, 0)
                return 0
            self.write_head(exchange, "500 Internal Server Error",
                            [("Content-Type", "text/plain"), ("Content-Length", "22"),
                             ("X-Request-Id", f"{exchange.id:016x}")])
            exchange.responded = True
            exchange.send_chunk(b"Internal Server Error\n")
        except BaseException:
            return OUTCOME_CUT
        return 0

    cdef int complain_of_length(self, Exchange exchange) except -1:
        if exchange.bodyless or exchange.length < 0 or exchange.body_sent == exchange.length and not exchange.surplus:
            return 0
        cdef str request = f"{shown(exchange.method)} {shown(exchange.uri)}"
        if exchange.surplus:
            self.tell(f"{request}: the body is {exchange.surplus} bytes longer than its Content-Length "
                      f"({exchange.length}); the surplus was not sent")
        else:
            self.tell(f"{request}: the body ended after {exchange.body_sent} of the {exchange.length} bytes "
                      f"that Content-Length promised")
        return 0

    # ---- environ ----

    cdef bytes first_body(self, MessageHead *message):
        if message.body_bytes == 0:
            return b""
        return PyBytes_FromStringAndSize(<char *>message + sizeof(MessageHead) + message.vars_bytes,
                                         message.body_bytes)

    cdef dict make_environ(self, MessageHead *message, Input body, Exchange exchange):
        """Every variable as it came (latin-1), over the base; what PEP 3333 requires is added where it is missing.

        Only wsgi.* and uwsgi.* are the server's to set: an application trusts them.
        """
        cdef dict environ = self.read_variables(<unsigned char *>message + sizeof(MessageHead), message.vars_bytes, exchange)
        environ["wsgi.input"] = body
        if "PATH_INFO" not in environ or "SERVER_NAME" not in environ:
            add_missing(environ)
        if message.modifier1 == 30:
            strip_script_name(environ)
        environ["wsgi.url_scheme"] = url_scheme(environ, (message.flags & FLAG_TRUSTED) != 0)
        return environ

    # The model is a request that came before. A web server sends the variables of its configuration in the same order
    # each time, most of them with the same value, and then the client's headers. So an environ begins as a copy: of the
    # model's, if all names are the same, or of the model's `fixed` part, and only what differs is set. That takes a
    # quarter of the instructions (benchmarks/instructions.py).

    cdef dict read_variables(self, const unsigned char *block, size_t size, Exchange exchange):
        """The variables of the block, over the base environ."""
        cdef Variable *variable
        cdef dict environ
        cdef const unsigned char *values[MODEL_CHANGES]
        cdef int changed[MODEL_CHANGES]
        cdef int i, number = 0, changes = 0, fixed = -1
        cdef size_t at = 0, fixed_at = 0
        while True:  # how far has it the model's names? The master has checked the lengths
            if number == self.model_fixed:
                fixed, fixed_at = number, at
            if number == self.model_size:
                break
            variable = &self.model[number]
            if size - at >= variable.size and memcmp(block + at, self.model_block + variable.at, variable.size) == 0:
                at += variable.size
            elif (changes < MODEL_CHANGES and size - at >= variable.key_size
                    and memcmp(block + at, self.model_block + variable.at, variable.key_size) == 0):
                changed[changes], values[changes] = number, block + at + variable.key_size
                changes += 1
                at += variable.key_size + 2 + size_at(block + at + variable.key_size)
            else:
                break
            number += 1
        if self.model_size and number == self.model_size:
            environ = PyDict_Copy(self.model_environ)
        elif fixed > 0:
            number, at = fixed, fixed_at
            environ = PyDict_Copy(self.fixed_environ)
        else:
            number, at, changes = 0, 0, 0
            environ = PyDict_Copy(self.environ)
        for i in range(changes):  # some of them once more below, if only the fixed part is the same
            PyDict_SetItem(environ, self.model_keys[changed[i]],
                           PyUnicode_DecodeLatin1(<const char *>values[i] + 2, size_at(values[i]), NULL))
        exchange.variables = number
        if at == size:
            self.strangers = 0
            return environ
        exchange.variables += self.set_variables(environ, block + at, block + size)
        self.strangers += 1
        if self.strangers == STRANGERS:
            self.strangers = 0
            self.adopt(block, size)
        return environ

    cdef int set_variables(self, dict environ, const unsigned char *at, const unsigned char *end):
        """One after the other; how many there were."""
        cdef size_t key_size, value_size
        cdef int count = 0
        while at < end:
            key_size = size_at(at)
            value_size = size_at(at + 2 + key_size)
            if not is_ours(at + 2, key_size):
                PyDict_SetItem(environ, self.key(at + 2, key_size),
                               PyUnicode_DecodeLatin1(<const char *>at + 4 + key_size, value_size, NULL))
            at += 4 + key_size + value_size
            count += 1
        return count

    cdef int adopt(self, const unsigned char *block, size_t size) except -1:
        """Make this request the model, unless it has too many variables, one that is the server's to set, or one twice,
        where the order says which of its values counts. Then there is none."""
        cdef list keys = []
        cdef size_t at = 0, key_size
        cdef int fixed = -1
        self.model_size, self.model_fixed = 0, -1
        while at < size:
            if len(keys) == MODEL_VARIABLES:
                return 0
            key_size = size_at(block + at)
            if is_ours(block + at + 2, key_size):
                return 0
            if fixed < 0 and key_size > 5 and memcmp(block + at + 2, b"HTTP_", 5) == 0:
                fixed = len(keys)
                self.fixed_environ = PyDict_Copy(self.environ)
                self.set_variables(self.fixed_environ, block, block + at)
            self.model[len(keys)].at, self.model[len(keys)].key_size = at, 2 + key_size
            self.model[len(keys)].size = 4 + key_size + size_at(block + at + 2 + key_size)
            keys.append(self.key(block + at + 2, key_size))
            at += self.model[len(keys) - 1].size
        if len(set(keys)) < len(keys):
            return 0
        memcpy(self.model_block, block, size)
        self.model_environ = PyDict_Copy(self.environ)
        self.set_variables(self.model_environ, block, block + size)
        self.model_keys, self.model_size, self.model_fixed = keys, len(keys), fixed
        return 0

    cdef object key(self, const unsigned char *bytes, size_t size):
        """The interned str of a variable's name, from a small direct-mapped cache."""
        cdef size_t place = (size * 31 + bytes[0] * 7 + bytes[size // 2] * 17 + bytes[size - 1] * 131) & (KEYS - 1)
        cdef PyObject *known = self.keys[place]
        if (known != NULL and <size_t>PyUnicode_GET_LENGTH(<object>known) == size
                and memcmp(PyUnicode_1BYTE_DATA(<object>known), bytes, size) == 0):
            return <object>known
        name = PyUnicode_DecodeLatin1(<const char *>bytes, size, NULL)
        if size <= 64:  # a longer one isn't worth the memory
            Py_INCREF(name)
            Py_XDECREF(known)
            self.keys[place] = <PyObject *>name
        return name

    # ---- the head of the answer ----

    cdef int begin(self, Exchange exchange, dict environ, bint pulled) except -1:
        """The protocol is echoed as uWSGI does, if it is one that an answer can have."""
        exchange.method, exchange.uri = environ["REQUEST_METHOD"], environ.get("REQUEST_URI", "")
        exchange.address, exchange.user = environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_USER", "")
        exchange.protocol = environ["SERVER_PROTOCOL"]
        memcpy(self.head, b"HTTP/1.0 " if exchange.protocol in ("HTTP/1.0", "") else b"HTTP/1.1 ", 9)
        exchange.protocol_bytes = 9
        exchange.head_method = exchange.method == "HEAD"
        rescue_method(exchange.head_method)
        if pulled:
            self.publish(exchange)
        return 0

    cdef void publish(self, Exchange exchange):
        """What the master would know of a request that it had pushed."""
        cdef Slot *slot = self.slot
        cdef char *at = slot.text
        store_release(&slot.text_of, 0)
        release_fence()
        slot.id = exchange.id
        slot.method_bytes = copy_text(&at, exchange.method, 32)
        slot.address_bytes = copy_text(&at, exchange.address, 64)
        slot.uri_bytes = copy_text(&at, exchange.uri, TEXT_BYTES - 96)
        store_release(&slot.text_of, exchange.seq)

    cdef int write_head(self, Exchange exchange, object status, object headers) except -1:
        """Check and lay out status line and headers in self.head; a wrong one leaves no head at all."""
        cdef size_t at = exchange.protocol_bytes, begins
        cdef int64_t length = -1
        cdef str name, value
        cdef int count = 0
        exchange.responded = exchange.dated = exchange.named = False  # whatever was there before is gone
        exchange.status = 0
        status = full_status(status)
        at = self.append(at, "the status", status, IN_VALUE, b"\r\n", status)
        exchange.status = status_of(PyUnicode_1BYTE_DATA(status), PyUnicode_GET_LENGTH(status))
        if exchange.status < 0:
            raise ValueError(f"the status must be three digits, a space and a reason, got {status!r:.100}")
        if exchange.status < 200 and exchange.http:
            raise ValueError(f"the status must be a final one, got {status!r:.100}")
        if type(headers) is not list and not isinstance(headers, list):
            raise TypeError(f"the headers must be a list (PEP 3333), got {type(headers).__name__}")
        for header in <list>headers:
            if not isinstance(header, tuple) or len(<tuple>header) != 2:
                raise TypeError(f"a header must be a tuple of two str (PEP 3333), got {header!r:.100}")
            name = plain_str((<tuple>header)[0], header)
            value = plain_str((<tuple>header)[1], header)
            if PyUnicode_GET_LENGTH(name) == 0:
                raise ValueError("a header has no name")
            begins = at
            at = self.append(at, "a header's name", name, IN_NAME, b": ", name)
            at = self.append(at, "the value", value, IN_VALUE, b"\r\n", name)
            if exchange.http and PyUnicode_GET_LENGTH(name) <= 17 and self.is_ours_to_say(exchange, name.lower(), value):
                at = begins  # finish_head says it
                continue
            count += 1
            if is_content_length(PyUnicode_1BYTE_DATA(name), PyUnicode_GET_LENGTH(name)):
                if length >= 0 and exchange.http:
                    raise ValueError("there is more than one header 'Content-Length'")
                if exchange.status == 204 and exchange.http:  # RFC 9110 8.6
                    at = begins
                length = as_length(PyUnicode_1BYTE_DATA(value), PyUnicode_GET_LENGTH(value))
                if length < 0:
                    raise ValueError(f"header 'Content-Length': a number of bytes was expected, got {value!r:.100}")
        exchange.head_bytes, exchange.length, exchange.header_count = at, length, count
        exchange.bodyless = exchange.head_method or exchange.status in (204, 304) or exchange.status < 200
        exchange.head_finished = False
        if not exchange.http:
            self.finish_head(exchange, -1)
        return 0

    cdef bint is_ours_to_say(self, Exchange exchange, str name, str value) except -1:
        """Whether the application's header isn't sent. Notes what it says."""
        if name == "date":
            exchange.dated = True
        elif name == "server":
            exchange.named = True
        elif name in HOP_BY_HOP:
            if name == "connection" and "close" in value.lower():
                exchange.keeps = False
            return True
        return False

    cdef int finish_head(self, Exchange exchange, int64_t total) except -1:
        """What the server says about the answer, and the empty line. total: bytes of the body, or -1 if that isn't known.

        Over uwsgi that is the web server's to say; over HTTP it is how the body ends (RFC 9112 6.3), and what becomes of the
        connection (9.6).
        """
        cdef char *at = self.head + exchange.head_bytes
        if exchange.head_finished:
            return 0
        exchange.head_finished = True
        if exchange.http:
            if not exchange.dated:
                at = self.put_date(at)
            if not exchange.named:
                at = put_words(at, b"Server: wsgimaster\r\n")
            if exchange.length < 0 and not exchange.bodyless:
                if total >= 0:
                    exchange.length = total
                    at = put_words(at, b"Content-Length: ")
                    at = put_words(put_count(at, at + 20, total), b"\r\n")
                elif exchange.old:
                    exchange.keeps = False
                else:
                    exchange.chunked = True
                    at = put_words(at, b"Transfer-Encoding: chunked\r\n")
            exchange.keeps = exchange.keeps and not self.board.closing
            if not exchange.keeps:
                at = put_words(at, b"Connection: close\r\n")
            elif exchange.old:
                at = put_words(at, b"Connection: keep-alive\r\n")
        at = put_words(at, b"\r\n")
        exchange.head_bytes = at - self.head
        return 0

    cdef char *put_date(self, char *at):
        cdef long second = c_time(NULL)
        if second != self.date_second:
            self.date_second = second
            write_date(second, self.date_line)
        memcpy(at, self.date_line, DATE_LINE_BYTES)
        return at + DATE_LINE_BYTES

    cdef size_t append(self, size_t at, str what, str text, unsigned char allowed, const char *two, object header) except 0:
        """Check a text, and copy it and two more bytes into the head. what, header: for the error."""
        cdef size_t size = <size_t>PyUnicode_GET_LENGTH(text)
        if PyUnicode_KIND(text) != PyUnicode_1BYTE_KIND or not all_allowed(PyUnicode_1BYTE_DATA(text), size, allowed):
            refuse_text(what, text, header)
        if at + size + 2 > HEAD_BYTES - HTTP_HEAD_ROOM:
            raise ValueError(f"the response's head is larger than {HEAD_BYTES} bytes")
        memcpy(self.head + at, PyUnicode_1BYTE_DATA(text), size)
        self.head[at + size], self.head[at + size + 1] = two[0], two[1]
        return at + size + 2

    # ---- account ----

    cdef void account(self, Exchange exchange, MessageHead *message):
        cdef uint64_t took_ns = now_ns() - self.slot.started_ns
        cdef uint64_t took_us = took_ns // 1000
        cdef int status = exchange.status if exchange.status else 500
        self.slot.requests += 1
        self.slot.running_ns += took_ns
        self.last_took_us = took_us
        cdef uint64_t total = add_u64(&self.board.requests, 1) + 1
        if (self.log_all or (self.log_4xx and 400 <= status < 500) or (self.log_5xx and 500 <= status < 600)):
            self.log_line(exchange, message, took_us, status, total)

    cdef void log_line(self, Exchange exchange, MessageHead *message, uint64_t took_us, int status, uint64_t total):
        """uWSGI's default request line, its values escaped."""
        cdef char line[LOG_LINE_BYTES]
        cdef char *at = line
        cdef char *end = line + LOG_LINE_BYTES
        cdef long second = c_time(NULL) - <long>(took_us // 1000000)
        if second != self.ctime_second:
            write_ctime(second, self.ctime_text)
            self.ctime_second = second
        at = put_count(put(at, end, b"[pid: "), end, self.pid)
        at = put_count(put(at, end, b"|app: 0|req: "), end, self.slot.requests)
        at = put(put_count(put(at, end, b"/"), end, total), end, b"] ")
        at = put_text(at, end, exchange.address, 64)
        at = put_text(put(at, end, b" ("), end, exchange.user, 128)
        at = put_count(put(at, end, b") {"), end, 2 * exchange.variables)
        at = put_count(put(at, end, b" vars in "), end, message.vars_bytes)
        at = put(put(put(at, end, b" bytes} ["), end, self.ctime_text), end, b"] ")
        at = put_text(at, end, exchange.method, 64)
        at = put_text(put(at, end, b" "), end, exchange.uri, LOG_TEXT_BYTES)
        at = put_count(put(at, end, b" => generated "), end, exchange.body_sent)
        at = put_count(put(at, end, b" bytes in "), end, took_us // 1000)
        at = put(at, end, b" msecs via sendfile() (" if exchange.via_sendfile else b" msecs (")
        at = put_text(at, end, exchange.protocol, 64)
        at = put_count(put(at, end, b" "), end, status)
        at = put_count(put(at, end, b") "), end, exchange.header_count)
        at = put_count(put(at, end, b" headers in "), end, exchange.head_bytes)
        at = put(put_count(put(at, end, b" bytes (1 switches on core "), end, self.core_id), end, b")\n")
        line[at - line - 1] = c"\n"  # also when the line was cut
        self.write_ring(line, at - line)

    cdef void write_ring(self, const char *line, size_t size):
        """Drop the line when the master hasn't emptied the ring: nobody waits for a log."""
        cdef uint64_t head = self.slot.log_head
        cdef uint64_t used = head - load_acquire(&self.slot.log_tail)
        cdef size_t start = head % RING_BYTES, first
        if used + size > RING_BYTES:
            self.slot.log_dropped += 1
            return
        first = min(size, RING_BYTES - start)
        memcpy(self.ring + start, line, first)
        memcpy(self.ring, line + first, size - first)
        store_release(&self.slot.log_head, head + size)
        if used < RING_BYTES // 4 <= used + size:  # the master comes every tenth of a second; that may be too late
            eventfd_write(self.doorbell, 1)


# ---- the process ----

def end_child():
    """A child that the application forked has come to the end of its request's code: it is no worker, and ends.

    As at the end of any forked child's code: its exit code is SystemExit's, an exception is shown, buffers are flushed.
    """
    error = sys.exc_info()[1]
    status = 1
    if isinstance(error, SystemExit):
        status = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    try:
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        elif status == 1 and error.code != 1:
            sys.stderr.write(f"{error.code}\n")
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 255)


def expect_the_worst(int tracebacks, int master):
    """Install the handlers that answer for stuck and crashing requests (_rescue.pxd), and the one that closes the
    listening sockets at the master's death. Once, in the main thread, after the application is loaded, whose own handlers
    stay beneath.

    tracebacks: the pipe that they go to, made non-blocking; master: its pid. Raises OSError, or SystemExit if the master is gone.
    """
    os.set_blocking(tracebacks, False)
    faulthandler.register(SIGNAL_STUCK, file=tracebacks, all_threads=False, chain=False)
    faulthandler.register(SIGNAL_DUMP, file=tracebacks, all_threads=True, chain=False)
    faulthandler.enable(file=tracebacks, all_threads=False)
    if rescue_install(tracebacks) < 0:
        raise OSError(errno, "sigaction")
    if not expect_orphanage(master):
        raise SystemExit(0)


def say_alive(int channel):
    """To the master, before anything that may take long: the fork is over."""
    send_short(channel, MESSAGE_ALIVE, 0)


# ---- pure helpers ----

cdef size_t write_chunk_size(size_t size, char *to):
    """Hexadecimal, and CRLF: RFC 9112 7.1. Returns how many characters."""
    cdef int digits = (67 - leading_zeros(size)) // 4, i
    for i in range(digits):
        to[i] = b"0123456789abcdef"[(size >> 4 * (digits - 1 - i)) & 15]
    to[digits], to[digits + 1] = c"\r", c"\n"
    return digits + 2


cdef bytes plain_bytes(object data):
    """Exactly bytes, of what may be a subclass."""
    if not isinstance(data, bytes):
        raise TypeError(f"the body must be bytes (PEP 3333), got {type(data).__name__}: {str(data)[:60]!r}")
    return bytes(data)


cdef inline size_t size_at(const unsigned char *p):
    return p[0] | (<size_t>p[1] << 8)


cdef bint is_ours(const unsigned char *key, size_t size):
    return (size > 5 and memcmp(key, b"wsgi.", 5) == 0) or (size > 6 and memcmp(key, b"uwsgi.", 6) == 0)


cdef int add_missing(dict environ) except -1:
    """PATH_INFO from REQUEST_URI, SERVER_NAME from Host: uWSGI leaves them out, PEP 3333 requires them."""
    if "PATH_INFO" not in environ:
        path = environ.get("REQUEST_URI", "").partition("?")[0]
        environ["PATH_INFO"] = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
    if "SERVER_NAME" not in environ:
        host = environ.get("HTTP_HOST", "localhost")
        environ["SERVER_NAME"] = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return 0


cdef int strip_script_name(dict environ) except -1:
    """modifier1 30: the web server left SCRIPT_NAME at the beginning of PATH_INFO."""
    script, path = environ["SCRIPT_NAME"], environ["PATH_INFO"]
    if script and path.startswith(script):
        environ["PATH_INFO"] = path[len(script):]
    return 0


cdef str url_scheme(dict environ, bint trusted):
    """UWSGI_SCHEME, else X-Forwarded-Proto from a peer that may set it, else HTTPS. Only http and https count."""
    scheme = environ.get("UWSGI_SCHEME")
    if scheme is None or scheme not in ("http", "https"):
        scheme = environ.get("HTTP_X_FORWARDED_PROTO") if trusted else None
    if scheme is not None and scheme in ("http", "https"):
        return scheme
    https = environ.get("HTTPS")
    if not https:
        return "http"
    return "https" if https[:2].lower() == "on" or https[:1] == "1" else "http"


cdef str plain_str(object text, object header):
    """Exactly a str: subclasses (Django's SafeString, StrEnum) are taken for what they hold."""
    if type(text) is str:
        return text
    if not isinstance(text, str):
        raise TypeError(f"header {header!r:.100}: name and value must be str (PEP 3333), got {type(text).__name__}")
    return str.__str__(text)


cdef str full_status(object given):
    """ "404" gets its reason as under uWSGI."""
    if not isinstance(given, str):
        raise TypeError(f"the status must be a str (PEP 3333), got {type(given).__name__}")
    cdef str status = str.__str__(given) if type(given) is not str else given
    return REASONS.get(status, status) if PyUnicode_GET_LENGTH(status) == 3 else status


cdef int refuse_text(str what, str text, object header) except -1:
    """Say which character can't go on the wire: it isn't latin-1, would split the head, or is no part of a token."""
    for at, c in enumerate(text):
        if ord(c) > 255:
            raise ValueError(f"header {header!r:.100}: {what} has a character outside latin-1")
        if c != "\t" and (c < " " or c == "\x7f"):
            raise ValueError(f"header {header!r:.100}: {what} has the control character {ord(c):#04x} at {at}")
    for c in text:
        if not all_allowed(PyUnicode_1BYTE_DATA(c), 1, IN_NAME):
            break
    raise ValueError(f"header {header!r:.100}: {c!r} can't be part of a name")


fill_allowed()


cdef str shown(str text):
    """The same for Python: no request can forge a line."""
    return "".join([c if " " <= c <= "~" and c != "\\" else f"\\x{ord(c):02x}" for c in text])


cdef uint16_t copy_text(char **at, str text, Py_ssize_t most):
    cdef Py_ssize_t size = min(PyUnicode_GET_LENGTH(text), most)
    memcpy(at[0], PyUnicode_1BYTE_DATA(text), size)
    at[0] += size
    return <uint16_t>size


cdef char *put_text(char *at, char *end, str text, Py_ssize_t most):
    return put_escaped(at, end, PyUnicode_1BYTE_DATA(text), min(PyUnicode_GET_LENGTH(text), most))
