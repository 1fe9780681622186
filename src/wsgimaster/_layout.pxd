# What the master and its workers share: the scoreboard in memory, and the messages on a channel.
#
# Theory of operation
#
# The scoreboard is one memfd mapping, made by the master, inherited by every zygote and worker:
#
#     Board head | finished bitmap | Slot x cores | log ring x cores
#
# How many cores there are is told outside of it, since an application that scribbles over the head would otherwise keep
# every later worker from starting.
#
# A core is one thread of one worker process; it serves one request at a time and owns one slot and one ring.
# Every field has exactly one writer (named below), except the bitmap, `ring` and the totals, which take atomic
# operations, and a slot whose worker is gone, which the master clears. The application runs in the worker and can
# scribble over all of it, so the master treats what it reads as a claim: indices are bounds-checked, text is escaped, and a request is finished only when
# the slot's `done` equals the number that the master itself gave out.
#
# A pushed request has a number, `seq`, counted per core by the master:
#
#     master: sendmsg(seq)   worker: recvmsg, taken = seq, ..., sent = seq, ..., done = seq, finished bit
#
# taken < seq: the application hasn't seen it. While the message is in the channel, whoever reads it there owns it;
#              after the worker's death it is anybody's (docs/architecture.md).
# sent < seq:  no byte of the answer went out, so an error answer is still possible.
# done == seq: the core is free.
#
# A request that is to be ended from outside (harakiri.py) is named by the master: condemned = seq. A signal handler in
# the worker (_rescue.pxd) acts only on that one, answers it itself if nothing was sent (answered = seq), and counts
# the tracebacks that it has written (dumps). softened = seq: raise an exception in it first.
#
# The doorbell. A worker that finishes sets its bit, then rings (an eventfd) only if the master asked for it:
# `ring` is 1 while the master sleeps and somebody waits for a core, no core is idle, or one is leaving; a client
# that must be drained or whose answer was cut is always rung for. Otherwise the master
# finds the bit when the next connection wakes it, and the request has cost one wake-up less. Both sides
# use sequentially consistent operations here, because it is Dekker's handshake: the worker writes the bit and reads
# `ring`, the master writes `ring` and reads the bits.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <signal.h>
    #include <stddef.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #define BOARD_MAX_CORES 34000u     /* more than twice what may serve: lifecycle.slots_for */
    #define RING_BYTES    32768u       /* a power of two; about 150 default request lines */
    #define LINE  __attribute__((aligned(64)))

    typedef struct {
        LINE uint32_t ring;            /* 1: ring when you finish */
        LINE uint64_t requests;        /* of all workers, for the request line */
    } BoardHead;

    typedef struct {
        /* the worker writes, the master polls */
        LINE uint64_t taken;
        uint64_t sent;
        uint64_t done;
        uint32_t outcome;              /* of the request `done`: OUTCOME_* */
        uint32_t tid;
        uint64_t started_ns;           /* CLOCK_MONOTONIC when the request was taken */
        uint64_t log_head;             /* bytes ever written to the ring */
        uint64_t answered;             /* by a signal handler */
        uint64_t dumps;                /* tracebacks that the handlers have written */
        /* the worker writes; counters since the worker was born */
        LINE uint64_t requests;
        uint64_t exceptions;
        uint64_t running_us;
        uint64_t sent_bytes;
        uint64_t read_errors;
        uint64_t write_errors;
        uint64_t clients_gone;
        uint64_t log_dropped;          /* lines that found the ring full */
        /* the master writes */
        LINE uint64_t log_tail;        /* bytes ever taken from the ring */
        uint64_t condemned;
        uint64_t softened;
        /* the worker writes, rarely */
        uint64_t deadline_ns;          /* CLOCK_MONOTONIC; the application's own for this request, or 0 */
    } Slot;

    #define OUTCOME_LINGER 1u          /* request bytes may be outstanding: read and discard before closing */
    #define OUTCOME_CUT    2u          /* the answer is incomplete: close at once, so that the client sees it */
    #define OUTCOME_COMPLETE 4u        /* while it runs: the whole answer is out, only the application still does something */

    /* On a channel, master to worker and back. A message is a MessageHead, the variable block, body bytes. */
    typedef struct {
        uint16_t kind;
        uint16_t flags;
        uint32_t vars_bytes;
        uint64_t seq;
        uint64_t id;                   /* the request's, for clients and the log */
        int64_t  content_length;       /* bytes; -1 when there is none */
        uint32_t body_bytes;           /* of the body, already here */
        uint8_t  modifier1;
    } MessageHead;

    #define MESSAGE_REQUEST  1         /* one descriptor: the client's */
    #define MESSAGE_NOP      2         /* report `done`, nothing else */
    #define MESSAGE_RETIRE   3         /* leave the serve loop */
    #define MESSAGE_READY    4         /* worker to master: this core serves from now on */
    #define MESSAGE_RETURNED 5         /* worker to master: a request that came without its descriptor */
    #define MESSAGE_ALIVE    6         /* worker to master, once per process: it is through the fork */

    #define FLAG_TRUSTED 1             /* the peer may set X-Forwarded-Proto */
    #define FLAG_HTTP    2             /* the client speaks HTTP: one response, then Connection: close */

    /* 64 KiB of variables and a first piece of the body; below the channel's send buffer. */
    #define MESSAGE_MAX_BYTES (sizeof(MessageHead) + 65536u + 16384u)

    /* The master sends them to a core's thread (_rescue.pxd). Real-time signals: applications use USR1 and USR2. */
    #define SIGNAL_STUCK (SIGRTMIN + 7)
    #define SIGNAL_DUMP  (SIGRTMIN + 8)

    static inline uint64_t now_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    /* Sixteen hexadecimal digits. */
    static char *put_id(char *at, uint64_t id) {
        for (int shift = 60; shift >= 0; shift -= 4) *at++ = "0123456789abcdef"[(id >> shift) & 15];
        return at;
    }
    static char *put_words(char *at, const char *words) {
        while (*words) *at++ = *words++;
        return at;
    }
    static char *put_number(char *at, unsigned number) {
        char digits[10];
        int n = 0;
        do digits[n++] = (char)('0' + number % 10); while (number /= 10);
        while (n) *at++ = digits[--n];
        return at;
    }
    /* An answer of the server's own, as HTTP/1.1; its size. Here and not with snprintf, since a signal handler
       writes it too (signal-safety(7)). The reason has at most 40 characters. */
    #define ANSWER_BYTES 400
    static size_t write_answer(char *to, int status, const char *reason, uint64_t id, int bodyless) {
        char *at = put_words(to, "HTTP/1.1 ");
        at = put_words(put_words(put_number(at, (unsigned)status), " "), reason);
        at = put_words(at, "\\r\\nContent-Type: text/plain\\r\\nContent-Length: ");
        at = put_number(at, (unsigned)(4 + strlen(reason) + 1 + 12 + 16 + 1));
        if (status == 503) at = put_words(at, "\\r\\nRetry-After: 1");
        at = put_id(put_words(at, "\\r\\nX-Request-Id: "), id);
        at = put_words(at, "\\r\\nConnection: close\\r\\n\\r\\n");
        if (bodyless) return (size_t)(at - to);  /* to a HEAD */
        at = put_words(put_words(put_number(at, (unsigned)status), " "), reason);
        at = put_id(put_words(at, "\\nrequest id: "), id);
        at = put_words(at, "\\n");
        return (size_t)(at - to);
    }
    #define load_acquire(p)      __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define store_release(p, v)  __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define load_seq(p)          __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define store_seq(p, v)      __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    #define exchange_u64(p, v)   __atomic_exchange_n((uint64_t *)(p), (v), __ATOMIC_SEQ_CST)
    #define exchange_u32(p, v)   __atomic_exchange_n((uint32_t *)(p), (v), __ATOMIC_SEQ_CST)
    #define or_u64(p, v)         __atomic_fetch_or((uint64_t *)(p), (v), __ATOMIC_SEQ_CST)
    #define add_u64(p, v)        __atomic_fetch_add((uint64_t *)(p), (v), __ATOMIC_RELAXED)
    #define leading_zeros(x)     __builtin_clzll(x)

    static size_t slots_offset(size_t cores) {   /* the bitmap fills whole cache lines */
        return sizeof(BoardHead) + (cores + 511) / 512 * 64;
    }
    static size_t rings_offset(size_t cores) {
        return (slots_offset(cores) + cores * sizeof(Slot) + 4095) & ~(size_t)4095;
    }
    static size_t board_size(size_t cores) { return rings_offset(cores) + cores * RING_BYTES; }
    static uint64_t *board_bitmap(BoardHead *board) { return (uint64_t *)(board + 1); }
    static Slot *board_slots(BoardHead *board, size_t cores) {
        return (Slot *)((char *)board + slots_offset(cores));
    }
    static unsigned char *board_rings(BoardHead *board, size_t cores) {
        return (unsigned char *)board + rings_offset(cores);
    }

    /* Send one message and, if fd >= 0, the descriptor with it. */
    static ssize_t send_message(int channel, struct iovec *iov, int pieces, int fd) {
        union { struct cmsghdr align; char bytes[CMSG_SPACE(sizeof(int))]; } control;
        struct msghdr message = { .msg_iov = iov, .msg_iovlen = pieces };
        if (fd >= 0) {
            message.msg_control = control.bytes;
            message.msg_controllen = sizeof control.bytes;
            struct cmsghdr *c = CMSG_FIRSTHDR(&message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(c), &fd, sizeof fd);
        }
        return sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }

    /* A message that is only a head. */
    static int send_short(int channel, int kind, uint64_t seq) {
        MessageHead head = { .kind = (uint16_t)kind, .seq = seq };
        struct iovec piece = { &head, sizeof head };
        return send_message(channel, &piece, 1, -1) < 0 ? -1 : 0;
    }

    /* Let the client see that its answer was cut, whoever else holds the descriptor: a reset on TCP (connecting to
       nowhere does that, connect(2)); on a unix socket only the end can be shown. */
    static void cut(int fd) {
        struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
        if (connect(fd, &nowhere, sizeof nowhere) < 0) shutdown(fd, SHUT_RDWR);
    }

    /* Receive one message; *fd is the descriptor that came with it, or -1. Any further ones are closed: the
       padding of CMSG_SPACE has room for two. */
    static ssize_t receive_message(int channel, void *bytes, size_t size, int flags, int *fd) {
        union { struct cmsghdr align; char bytes[CMSG_SPACE(2 * sizeof(int))]; } control;
        struct iovec iov = { bytes, size };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1,
                                  .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
        *fd = -1;
        ssize_t n = recvmsg(channel, &message, flags | MSG_CMSG_CLOEXEC);
        if (n < 0) return n;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
            int count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)), one;
            for (int i = 0; i < count; i++) {
                memcpy(&one, CMSG_DATA(c) + i * sizeof one, sizeof one);
                if (*fd < 0) *fd = one; else close(one);
            }
        }
        return n;
    }
    """
    ctypedef struct BoardHead:
        uint32_t ring
        uint64_t requests

    ctypedef struct Slot:
        uint64_t taken, sent, done
        uint32_t outcome, tid
        uint64_t started_ns, log_head, answered, dumps
        uint64_t requests, exceptions, running_us, sent_bytes, read_errors, write_errors, clients_gone
        uint64_t log_dropped
        uint64_t log_tail, condemned, softened
        uint64_t deadline_ns

    ctypedef struct MessageHead:
        uint16_t kind, flags
        uint32_t vars_bytes
        uint64_t seq, id
        int64_t content_length
        uint32_t body_bytes
        uint8_t modifier1

    enum:
        BOARD_MAX_CORES
        RING_BYTES
        OUTCOME_LINGER
        OUTCOME_CUT
        OUTCOME_COMPLETE
        MESSAGE_REQUEST
        MESSAGE_NOP
        MESSAGE_RETIRE
        MESSAGE_READY
        MESSAGE_RETURNED
        MESSAGE_ALIVE
        FLAG_TRUSTED
        FLAG_HTTP
        MESSAGE_MAX_BYTES
        ANSWER_BYTES

    int SIGNAL_STUCK
    int SIGNAL_DUMP
    uint64_t now_ns()
    size_t write_answer(char *to, int status, const char *reason, uint64_t id, int bodyless)
    uint64_t load_acquire(uint64_t *p)
    void store_release(uint64_t *p, uint64_t value)
    uint64_t load_seq(uint64_t *p)
    void store_seq_u32 "store_seq"(uint32_t *p, uint32_t value)
    uint64_t exchange_u64(uint64_t *p, uint64_t value)
    uint32_t exchange_u32(uint32_t *p, uint32_t value)
    uint64_t or_u64(uint64_t *p, uint64_t bits)
    uint64_t add_u64(uint64_t *p, uint64_t value)
    int leading_zeros(uint64_t x)
    uint32_t load_seq_u32 "load_seq"(uint32_t *p)
    uint64_t *board_bitmap(BoardHead *board)
    size_t slots_offset(size_t cores)
    size_t board_size(size_t cores)
    Slot *board_slots(BoardHead *board, size_t cores)
    unsigned char *board_rings(BoardHead *board, size_t cores)

    struct iovec:
        void *iov_base
        size_t iov_len
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
    void cut(int fd)
    ssize_t send_message(int channel, iovec *pieces, int count, int fd)
    int send_short(int channel, int kind, uint64_t seq)
    ssize_t receive_message(int channel, void *bytes, size_t size, int flags, int *fd)
