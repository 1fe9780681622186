# What the master and its workers share: the scoreboard in memory, and the messages on a channel.
#
# Theory of operation
#
# The scoreboard is one memfd mapping, made by the master, inherited by every zygote and worker:
#
#     Board head | finished bitmap | waiting bitmap | door bitmap | Slot x cores | Held x 512 x cores | log ring x cores
#
# How many cores there are is told outside of it, since an application that scribbles over the head would otherwise keep
# every later worker from starting.
#
# A core is one thread of one worker process; it serves one request at a time and owns one slot and one ring.
# Every field has exactly one writer (named below), except the bitmaps, the head's flags and totals, which take atomic
# operations, and a slot whose worker is gone, which the master clears. The application runs in the worker and can
# scribble over all of it, so the master treats what it reads as a claim: indices are bounds-checked, text is escaped, and a core has finished only what
# the master itself has asked of it.
#
# A request has a number, `seq`, per core. The master counts pushed ones in steps of ONE_PUSH; the worker numbers those
# that it pulls after a push on from there, one by one. So numbers only grow, and the master's are told from the worker's.
#
#     master: sendmsg(seq)   worker: recvmsg, taken = seq, ..., sent = seq, ..., done = seq, then pull or report
#     pulled:                worker: accept, taken = seq + 1, ..., sent = ..., ..., done = seq + 1, then pull or report
#
# taken < seq: the application hasn't seen it. While the message is in the channel, whoever reads it there owns it;
#              after the worker's death it is anybody's (docs/architecture.md).
# sent < seq:  no byte of the answer went out, so an error answer is still possible.
# done >= seq: it is over. The core is free only when it also reports: its finished bit.
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
#
# Pull (`dispatch = auto`). A core that has finished looks for its next request itself: at its channel first, then at the
# listening sockets, which it got over the channel. When nothing is there, it either waits at the listening sockets
# (`waiters` of all cores may, the *waiting* bit says that it does) or reports.
#
#     waiting     who clears a core's bit may use the core: the core itself, when a connection wakes it, or the master,
#                 which then pushes. The kernel wakes one waiting core per connection (EPOLLEXCLUSIVE), and the master only
#                 if none waits.
#     wanted      so many cores are to report instead of pulling: as many as requests wait in the master's queue. A core
#                 that waits looks at it after it has set its bit, the master looks at the bits after it has set `wanted`:
#                 Dekker's handshake once more.
#     door        a core's bit: it waits at the listening sockets, too, not only at its channel and at what it holds.
#     quiet       1 while the master has nothing to watch over. The first core that has pulled a request then rings.
#
# Held connections. After an answer over HTTP, a core that pulls *holds* the connection: it waits for the next request itself, beside the
# master, which has a descriptor of its own. Each has a place in the core's table, and who may read is what stands there:
#
#     FREE -core-> CORE <-core-> BUSY     the core waits for the next request, or serves it
#                  CORE -master-> TAKEN   the master has it now (it waited while the core was busy, or it is to end);
#                                         the core lets its descriptor go when it notices, and makes the place FREE
#                  CORE, BUSY -core-> BACK   the core gives it back, with MESSAGE_BACK; the master makes the place FREE
#
# Both leave CORE by compare-and-swap only, so that exactly one of them reads a request.

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
    #define RING_BYTES    131072u      /* a power of two; about 800 default request lines */
    #define TEXT_BYTES    488u         /* fills a slot's cache lines */
    #define ONE_PUSH      (1ull << 24) /* a core reports at the latest after so many pulled requests */
    #define MOST_PULLED   64           /* listening sockets */
    #define LINE  __attribute__((aligned(64)))

    typedef struct {
        LINE uint32_t ring;            /* 1: ring when you report */
        uint32_t quiet;                /* 1: ring when you have taken a request */
        int32_t wanted;                /* so many cores are to report instead of pulling */
        uint32_t waiters;              /* how many idle cores may wait at the listening sockets; the master writes */
        uint32_t arrangements;         /* times that a core has joined those at the listening sockets */
        uint32_t passed_on;            /* connections that a core was woken for when it had been claimed; who is about to
                                          wait looks at it as at `wanted` */
        uint32_t keeps;                /* 1: HTTP connections may go on after an answer; the master writes */
        uint32_t closing;              /* 1: no HTTP connection goes on after its answer; the master writes */
        LINE uint64_t requests;        /* of all workers, for the request line */
        uint64_t last_id;              /* of a request; counts what was accepted, and: */
        uint64_t again;                /* requests on held connections */
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
        uint64_t running_ns;           /* in requests that are over */
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
        uint32_t awake;                /* 1: the core isn't parked */
        /* the worker writes, whenever it has nothing to do */
        uint64_t waited_ns;            /* at the listening sockets, since the worker was born; without: */
        uint64_t waiting_since_ns;     /* CLOCK_MONOTONIC; it waits there now, or 0 */
        /* the worker writes: of the request `text_of`, which is 0 while it writes */
        LINE uint64_t text_of;
        uint64_t id;
        uint16_t method_bytes, uri_bytes, address_bytes;
        char text[TEXT_BYTES];         /* one after the other */
    } Slot;

    #define OUTCOME_LINGER 1u          /* request bytes may be outstanding: read and discard before closing */
    #define OUTCOME_CUT    2u          /* the answer is incomplete: close at once, so that the client sees it */
    #define OUTCOME_COMPLETE 4u        /* while it runs: the whole answer is out, only the application still does something */
    #define OUTCOME_KEPT   8u          /* an HTTP connection that goes on: its next request is the master's to read */

    /* What every request of one HTTP connection has. */
    typedef struct {
        unsigned char address[16];     /* IPv4 as ::ffff:a.b.c.d */
        uint16_t port, own_port;
        uint8_t is_local;              /* a unix socket: no address */
        uint8_t secure;                /* came over TLS */
        uint8_t trusted;               /* its X-Forwarded-For says who the client is */
        uint8_t buffers;               /* bodies are read before a core gets the request */
    } HttpClient;

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
        HttpClient client;             /* of an HTTP request, and of MESSAGE_KEPT and MESSAGE_RELAY */
    } MessageHead;

    #define MESSAGE_REQUEST  1         /* the client's descriptor; and, if FLAG_SPOOLED, that of the file with the body */
    #define MESSAGE_NOP      2         /* report `done`, nothing else */
    #define MESSAGE_RETIRE   3         /* leave the serve loop */
    #define MESSAGE_READY    4         /* worker to master: this core serves from now on */
    #define MESSAGE_RETURNED 5         /* worker to master: a request that came without its descriptor */
    #define MESSAGE_ALIVE    6         /* worker to master, once per process: it is through the fork */
    #define MESSAGE_LISTENERS 7        /* the listening sockets' descriptors: pull, and report when parked */
    #define MESSAGE_HANDED   8         /* worker to master: a connection that it accepted and didn't serve, the bytes that it
                                          read, the number of the listener as `seq` */
    #define MESSAGE_ANSWERED 9         /* worker to master: a connection that it has answered and half-closed; drain it */

    #define MESSAGE_KEPT 10            /* worker to master: a connection that it accepted, answered, and that goes on; the bytes
                                          that came after the request, the number of the listener as `seq` */

    #define MESSAGE_HELD 11            /* worker to master: the connection of the request `seq` goes on; the core holds it at the
                                          place `content_length`, or has none for it */
    #define MESSAGE_BACK 12            /* worker to master: the connection at the place `seq` is the master's again; what is to
                                          be done with it as `flags`, bytes that came */
    #define BACK_READ    0
    #define BACK_LINGER  1
    #define BACK_CLOSE   2

    #define MESSAGE_RELAY 13           /* worker to master: the client of the request `id` takes its answer slowly. With the
                                          end of a socket from which the rest of the answer is to be read, and before that,
                                          of a connection that the core has accepted (listener `seq`), the client's; of one
                                          that it holds, `seq` is the place; else `seq` is the request's */
    #define MESSAGE_RELAYED 14         /* the request `id` is over, the answer is in that socket; `flags` as RELAY_* say how the
                                          connection goes on, with bytes that came of the next request */
    #define RELAY_PULLED 0
    #define RELAY_HELD   1
    #define RELAY_PUSHED 2

    #define HELD_PER_CORE 512
    #define HELD_NOWHERE  -1           /* as a place */
    typedef struct {
        uint64_t state;
        uint64_t since_ns;             /* CLOCK_MONOTONIC of the last answer; the core writes */
    } Held;
    enum { HELD_FREE, HELD_CORE, HELD_BUSY, HELD_TAKEN, HELD_BACK };
    static int change_held(Held *held, uint64_t from, uint64_t to) {
        return __atomic_compare_exchange_n(&held->state, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }

    #define FLAG_TRUSTED 1             /* the peer may set X-Forwarded-Proto */
    #define FLAG_HTTP    2             /* the client speaks HTTP */
    #define FLAG_PULLED  4             /* the core has accepted it: nobody else holds the descriptor */
    #define FLAG_KEEPS   8             /* HTTP: the connection may go on after the answer */
    #define FLAG_OLD    16             /* HTTP/1.0: the client knows no chunks */
    #define FLAG_CHUNKED 32            /* the body is chunked, and what came along with the head isn't decoded */
    #define FLAG_TELLS 1024            /* the core says with MESSAGE_HELD that the connection goes on, and pulls */
    #define FLAG_HOLDS 128             /* it may also hold it */
    #define FLAG_HELD  256             /* it does */
    #define FLAG_EXPECTS 64            /* say 100 Continue when the application reads the body */
    #define FLAG_SPOOLED 512           /* the body is in the file that came along */

    /* The listening sockets of a worker: what stands in MESSAGE_LISTENERS, for each descriptor. */
    typedef struct { uint8_t number, http, buffers, proxied; } PulledSocket;

    /* 64 KiB of variables and a first piece of the body; below the channel's send buffer. */
    #define MESSAGE_MAX_BYTES (sizeof(MessageHead) + 65536u + 16384u)

    /* The master sends them to a core's thread (_rescue.pxd). Real-time signals: applications use USR1 and USR2. */
    #define SIGNAL_STUCK (SIGRTMIN + 7)
    #define SIGNAL_DUMP  (SIGRTMIN + 8)
    #define SIGNAL_ORPHANED (SIGRTMIN + 9)  /* to a worker, from the kernel: the master is dead */

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
    #define and_u64(p, v)        __atomic_fetch_and((uint64_t *)(p), (v), __ATOMIC_SEQ_CST)
    #define add_u64(p, v)        __atomic_fetch_add((uint64_t *)(p), (v), __ATOMIC_RELAXED)
    #define add_seq(p, v)        __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
    #define population(x)        __builtin_popcountll(x)
    #define acquire_fence()      __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define release_fence()      __atomic_thread_fence(__ATOMIC_RELEASE)
    #define leading_zeros(x)     __builtin_clzll(x)

    static size_t bitmap_bytes(size_t cores) { return (cores + 511) / 512 * 64; }  /* whole cache lines */
    static size_t slots_offset(size_t cores) { return sizeof(BoardHead) + 3 * bitmap_bytes(cores); }
    static size_t held_offset(size_t cores) { return slots_offset(cores) + cores * sizeof(Slot); }
    static size_t rings_offset(size_t cores) {
        return (held_offset(cores) + cores * HELD_PER_CORE * sizeof(Held) + 4095) & ~(size_t)4095;
    }
    static size_t board_size(size_t cores) { return rings_offset(cores) + cores * RING_BYTES; }
    static uint64_t *board_finished(BoardHead *board) { return (uint64_t *)(board + 1); }
    static uint64_t *board_waiting(BoardHead *board, size_t cores) {
        return (uint64_t *)((char *)(board + 1) + bitmap_bytes(cores));
    }
    static uint64_t *board_door(BoardHead *board, size_t cores) {
        return (uint64_t *)((char *)(board + 1) + 2 * bitmap_bytes(cores));
    }
    static Held *board_held(BoardHead *board, size_t cores, size_t core) {
        return (Held *)((char *)board + held_offset(cores)) + core * HELD_PER_CORE;
    }
    /* The core's bit, which is set in a bitmap, is cleared; whether it was set. */
    static int clear_bit(uint64_t *bitmap, int core) {
        uint64_t bit = 1ull << (core % 64);
        return (and_u64(&bitmap[core / 64], ~bit) & bit) != 0;
    }
    static void set_bit(uint64_t *bitmap, int core) { or_u64(&bitmap[core / 64], 1ull << (core % 64)); }
    static unsigned count_bits(uint64_t *bitmap, int cores) {
        unsigned n = 0;
        for (int word = 0; word < (cores + 63) / 64; word++) n += (unsigned)population(load_acquire(&bitmap[word]));
        return n;
    }
    /* Of the cores that wait, those at the door. */
    static unsigned count_at_door(uint64_t *waiting, uint64_t *door, int cores) {
        unsigned n = 0;
        for (int word = 0; word < (cores + 63) / 64; word++)
            n += (unsigned)population(load_acquire(&waiting[word]) & load_acquire(&door[word]));
        return n;
    }
    static Slot *board_slots(BoardHead *board, size_t cores) {
        return (Slot *)((char *)board + slots_offset(cores));
    }
    static unsigned char *board_rings(BoardHead *board, size_t cores) {
        return (unsigned char *)board + rings_offset(cores);
    }

    /* Send one message and descriptors, `count` of them. */
    static ssize_t send_message(int channel, struct iovec *iov, int pieces, const int *fds, int count) {
        union { struct cmsghdr align; char bytes[CMSG_SPACE(MOST_PULLED * sizeof(int))]; } control;
        struct msghdr message = { .msg_iov = iov, .msg_iovlen = pieces };
        if (count > 0) {
            message.msg_control = control.bytes;
            message.msg_controllen = CMSG_SPACE(count * sizeof(int));
            struct cmsghdr *c = CMSG_FIRSTHDR(&message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(count * sizeof(int));
            memcpy(CMSG_DATA(c), fds, count * sizeof(int));
        }
        return sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }

    /* A message that is only a head. */
    static int send_short(int channel, int kind, uint64_t seq) {
        MessageHead head = { .kind = (uint16_t)kind, .seq = seq };
        struct iovec piece = { &head, sizeof head };
        return send_message(channel, &piece, 1, NULL, 0) < 0 ? -1 : 0;
    }

    /* Let the client see that its answer was cut, whoever else holds the descriptor: a reset on TCP (connecting to
       nowhere does that, connect(2)); on a unix socket only the end can be shown. */
    static void cut(int fd) {
        struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
        if (connect(fd, &nowhere, sizeof nowhere) < 0) shutdown(fd, SHUT_RDWR);
    }

    /* Receive one message, and up to `most` descriptors with it into fds; the rest of fds becomes -1. */
    static ssize_t receive_message(int channel, void *bytes, size_t size, int flags, int *fds, int most) {
        union { struct cmsghdr align; char bytes[CMSG_SPACE(MOST_PULLED * sizeof(int))]; } control;
        struct iovec iov = { bytes, size };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1,
                                  .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
        int found = 0;
        ssize_t n = recvmsg(channel, &message, flags | MSG_CMSG_CLOEXEC);
        for (struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
            int count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)), one;
            for (int i = 0; i < count; i++) {
                memcpy(&one, CMSG_DATA(c) + i * sizeof one, sizeof one);
                if (found < most) fds[found++] = one; else close(one);
            }
        }
        while (found < most) fds[found++] = -1;
        return n;
    }
    """
    ctypedef struct BoardHead:
        uint32_t ring, quiet, waiters, arrangements, keeps, closing, passed_on
        int32_t wanted
        uint64_t requests, last_id, again

    ctypedef struct Held:
        uint64_t state, since_ns

    ctypedef struct Slot:
        uint64_t taken, sent, done
        uint32_t outcome, tid
        uint64_t started_ns, log_head, answered, dumps
        uint64_t requests, exceptions, running_ns, sent_bytes, read_errors, write_errors, clients_gone
        uint64_t log_dropped
        uint64_t log_tail, condemned, softened
        uint64_t deadline_ns
        uint32_t awake
        uint64_t waited_ns, waiting_since_ns
        uint64_t text_of, id
        uint16_t method_bytes, uri_bytes, address_bytes
        char text[488]

    ctypedef struct HttpClient:
        unsigned char address[16]
        uint16_t port, own_port
        uint8_t is_local, secure, trusted, buffers

    ctypedef struct MessageHead:
        uint16_t kind, flags
        uint32_t vars_bytes
        uint64_t seq, id
        int64_t content_length
        uint32_t body_bytes
        uint8_t modifier1
        HttpClient client

    ctypedef struct PulledSocket:
        uint8_t number, http, buffers, proxied

    enum:
        BOARD_MAX_CORES
        RING_BYTES
        TEXT_BYTES
        MOST_PULLED
        OUTCOME_LINGER
        OUTCOME_CUT
        OUTCOME_COMPLETE
        OUTCOME_KEPT
        MESSAGE_REQUEST
        MESSAGE_NOP
        MESSAGE_RETIRE
        MESSAGE_READY
        MESSAGE_RETURNED
        MESSAGE_ALIVE
        MESSAGE_LISTENERS
        MESSAGE_HANDED
        MESSAGE_ANSWERED
        MESSAGE_KEPT
        MESSAGE_HELD
        MESSAGE_BACK
        BACK_READ
        BACK_LINGER
        BACK_CLOSE
        MESSAGE_RELAY
        MESSAGE_RELAYED
        RELAY_PULLED
        RELAY_HELD
        RELAY_PUSHED
        HELD_PER_CORE
        HELD_NOWHERE
        HELD_FREE
        HELD_CORE
        HELD_BUSY
        HELD_TAKEN
        HELD_BACK
        FLAG_TELLS
        FLAG_HOLDS
        FLAG_HELD
        FLAG_TRUSTED
        FLAG_HTTP
        FLAG_PULLED
        FLAG_KEEPS
        FLAG_OLD
        FLAG_CHUNKED
        FLAG_EXPECTS
        FLAG_SPOOLED
        MESSAGE_MAX_BYTES
        ANSWER_BYTES

    uint64_t ONE_PUSH
    int SIGNAL_STUCK
    int SIGNAL_DUMP
    uint64_t now_ns()
    char *put_words(char *at, const char *words)
    size_t write_answer(char *to, int status, const char *reason, uint64_t id, int bodyless)
    uint64_t load_acquire(uint64_t *p)
    void store_release(uint64_t *p, uint64_t value)
    uint64_t load_seq(uint64_t *p)
    void store_seq_u32 "store_seq"(uint32_t *p, uint32_t value)
    void store_seq_u64 "store_seq"(uint64_t *p, uint64_t value)
    void store_seq_i32 "store_seq"(int32_t *p, int32_t value)
    int32_t load_seq_i32 "load_seq"(int32_t *p)
    uint64_t exchange_u64(uint64_t *p, uint64_t value)
    uint32_t exchange_u32(uint32_t *p, uint32_t value)
    uint64_t add_u64(uint64_t *p, uint64_t value)
    uint64_t add_seq(uint64_t *p, uint64_t value)
    int32_t add_seq_i32 "add_seq"(int32_t *p, int32_t value)
    uint32_t add_seq_u32 "add_seq"(uint32_t *p, uint32_t value)
    void acquire_fence()
    void release_fence()
    int leading_zeros(uint64_t x)
    uint32_t load_seq_u32 "load_seq"(uint32_t *p)
    uint64_t *board_finished(BoardHead *board)
    uint64_t *board_waiting(BoardHead *board, size_t cores)
    uint64_t *board_door(BoardHead *board, size_t cores)
    Held *board_held(BoardHead *board, size_t cores, size_t core)
    bint change_held(Held *held, uint64_t before, uint64_t after)
    unsigned count_at_door(uint64_t *waiting, uint64_t *door, int cores)
    bint clear_bit(uint64_t *bitmap, int core)
    void set_bit(uint64_t *bitmap, int core)
    unsigned count_bits(uint64_t *bitmap, int cores)
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
    ssize_t send_message(int channel, iovec *pieces, int count, const int *fds, int descriptors)
    int send_short(int channel, int kind, uint64_t seq)
    ssize_t receive_message(int channel, void *bytes, size_t size, int flags, int *fds, int most)
