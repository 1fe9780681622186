"""The master's side of a request's way: accept, read, parse, queue, push, finish.

Theory of operation

Everything that has a descriptor on this path (listeners, clients whose head isn't complete, clients that are being
drained, channels, the doorbell) stands in one private epoll, and only that epoll is registered with the event
loop: one callback for a batch of events, no task, future or callback object per request, and a listener is
paused by one EPOLL_CTL_DEL (0.4 us; add_reader and remove_reader of uvloop cost 4.6).

A connection is an entry of a table indexed by its descriptor, and is in exactly one state:

    HEAD      its packet isn't complete; watched, in the list `heads`, ordered by last progress
    QUEUED    complete, no core was idle; its bytes are kept here, in the list `queue`, oldest first
    RUNNING   pushed to a core; we keep our own descriptor so that we can answer if the worker dies
    LINGER    answered and half-closed; read and discarded until the client closes, in the list `lingerers`
    KEPT      HTTP, between two requests; watched, in the list `kept`
    HELD      the same, but a core waits for the next request (_layout.pxd); in the epoll `shelf`
    BODY      HTTP at a socket that buffers: the head is complete, the body isn't; in the list `bodies`
    RELAY     HTTP: the client takes its answer slowly, so the core writes it to us; in the list `relays`

    accept -> HEAD -> RUNNING -> closed          the usual way; HEAD is not even entered when the head is there
                   -> QUEUED -> RUNNING
                             -> LINGER -> closed  an unread body, an answer of our own
                             -> KEPT -> HEAD ...  an HTTP connection that goes on
                             -> HELD -> KEPT      and the core gives it back, or doesn't come and we take it
                             -> RELAY -> KEPT     a slow reader
           -> HEAD -> BODY -> RUNNING             an upload

Ways to part with a client:

    refuse    say so in the log, then answer with a status of our own
    answer    send those few bytes, then linger
    linger    half-close, and discard what still comes
    drop      close now, whatever the state

Why linger: closing a socket with unread bytes destroys the answer on its way to the client (reset). SHUT_WR, then
reading to the client's end, then close doesn't (RFC 9112 9.6; measured through nginx: 18 of 20 answers to an
unread 5 MB upload were lost without it, none of 160 with it).

Cores. A process has `threads` cores, each with a channel of its own. A request goes to the process with the fewest
running requests (two in one GIL take twice as long), among equals to the one that finished last (warm) or first
(even), there to the lowest idle core, so that core 1, the main thread, comes first. Idle processes stand in
one list per number of running requests, so that the choice doesn't depend on how many there are.

Pull (`dispatch = auto`). Cores then hold the listening sockets for uwsgi themselves:

    core IDLE     parked: it waits for a message
    core BUSY     in a request, looking for the next one, or waiting at the sockets; it will report when it is parked

A core that waits at the sockets can be *claimed* (its waiting bit, _layout.pxd), and is then pushed to like an idle one.
Our own entry for such a socket is exclusive and stands behind those of the cores, so the kernel wakes us only for a
connection that no core waits for; and it is there only while we could do something about it, or begin to look every few
milliseconds (`set_watch`). What we then accept goes the usual way. Who was woken for a connection and doesn't take it
must pass it on, since the kernel tells nobody else: a claimed core counts it and rings (`take_passed_on`), a parked or
dead one makes us look again (`look_anew`).

HTTP connections are watched edge-triggered from their first request on, also while a core answers: so the next request
wakes us, and no core has to ring for it. What they send beyond a request is kept (`ahead`). Of those that cores hold we
look at what nobody reads (`look_at_held`), when the timer looks at the rest; the timer runs unless all is calm, and then
the arrival of anything on the shelf wakes us.

Nothing here blocks, and nothing here decides about processes: what is rare or a matter of policy goes to the
`Events` object that the master passes in.

Runs in: the master, on the loop's thread.
"""

import os
from collections import namedtuple

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.errno cimport EAGAIN, EINTR, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ETOOMANYREFS, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset, strerror

from wsgimaster._http1 cimport *
from wsgimaster._kernel cimport *
from wsgimaster._layout cimport *
from wsgimaster._peers cimport *
from wsgimaster._proto cimport (COMPLETE, NEED_MORE, PLAIN_HTTP, TLS_HELLO, Facts, Verdict, packet_error, read_block,
                                read_head)

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <poll.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <unistd.h>

    /* An application that filled the doorbell and made it blocking would stop its workers, and a plain read could
       stop us. */
    static void empty_eventfd(int fd) {
        uint64_t count;
        struct iovec piece = { &count, sizeof count };
        ssize_t ignored = preadv2(fd, &piece, 1, -1, RWF_NOWAIT);
        (void)ignored;
    }

    static void read_timer(int fd) {  /* or it would not fire again: timerfd_create(2) */
        uint64_t times;
        ssize_t ignored = read(fd, &times, sizeof times);
        (void)ignored;
    }

    static int write_all(int fd, const void *bytes, size_t size) {
        while (size) {
            ssize_t n = write(fd, bytes, size);
            if (n < 0 && errno != EINTR) return 0;
            if (n > 0) { bytes = (const char *)bytes + n; size -= (size_t)n; }
        }
        return 1;
    }

    static int is_stream(int fd) {
        int kind = 0;
        socklen_t size = sizeof kind;
        return getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 && kind == SOCK_STREAM;
    }

    static int is_readable(int fd) {
        struct pollfd p = { fd, POLLIN, 0 };
        return poll(&p, 1, 0) > 0;
    }

    static int signal_thread(int pid, int tid, int number) { return (int)syscall(SYS_tgkill, pid, tid, number); }
    """
    cdef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout)
    ssize_t recv(int fd, void *bytes, size_t size, int flags)
    ssize_t send(int fd, const void *bytes, size_t size, int flags)
    int shutdown(int fd, int how)
    int getpeername(int fd, sockaddr *name, socklen_t *size)
    int close(int fd)
    void empty_eventfd(int fd)
    bint is_readable(int fd)
    void read_timer(int fd)
    int signal_thread(int pid, int tid, int number)
    bint is_stream(int fd)
    int memfd_create(const char *name, unsigned int flags)
    bint write_all(int fd, const void *bytes, size_t size)
    void *memmem(const void *haystack, size_t size, const void *needle, size_t needle_size)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLET
        EPOLLEXCLUSIVE
        EPOLLOUT
        EPOLLRDHUP
        MFD_CLOEXEC
        SHUT_RDWR
        SHUT_WR
        SOCK_NONBLOCK
        SOCK_CLOEXEC

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    int eventfd_write(int fd, uint64_t value)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "<sys/timerfd.h>" nogil:
    """
    /* Periodic, from now on; 0 stops it. uvloop's own timers count whole milliseconds. */
    static void set_timer(int fd, uint64_t every_ns) {
        struct timespec every = { (time_t)(every_ns / 1000000000u), (long)(every_ns % 1000000000u) };
        struct itimerspec setting = { every, every };
        timerfd_settime(fd, 0, &setting, NULL);
    }
    """
    int timerfd_create(int clock, int flags)
    void set_timer(int fd, uint64_t every_ns)
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK
        CLOCK_MONOTONIC

cdef enum Watched:  # what an epoll entry stands for; the upper byte of its data
    LISTENER = 1
    CLIENT = 2
    CHANNEL = 3
    DOORBELL = 4
    TIMER = 5
    SHELF = 6
    SOURCE = 7             # of a RELAY

cdef enum State:  # this and CoreState are handed over to other versions: numbers stay (handover.FORMAT)
    CLOSED = 0
    HEAD = 1
    QUEUED = 2
    RUNNING = 3
    LINGER = 4
    KEPT = 5
    HELD = 6
    BODY = 7
    RELAY = 8

cdef enum Refusing:
    NOBODY = 0
    TOO_MANY = 1
    TOO_LATE = 2   # queue-timeout

cdef enum Accepted:
    FAULT = -1
    TAKEN = 0
    NOTHING = 1    # the backlog is empty
    NO_ROOM = 2    # no descriptor or memory is free

cdef enum CoreState:
    ABSENT = 0     # no worker
    IDLE = 1
    BUSY = 2
    STARTING = 3   # a worker, not ready yet
    LEAVING = 4    # gets no more requests: busy with its last one, or told to leave (RETIRE) and not yet gone

ctypedef struct Connection:
    uint8_t state
    uint8_t watched        # stands in the private epoll
    uint8_t edge           # edge-triggered: HTTP, until it lingers
    uint8_t listener
    uint8_t trusted
    uint8_t came           # QUEUED, RUNNING: there may be more to read
    uint8_t unfinished     # more of the request's body is still to come, and the core's to read
    uint8_t proxied        # its PROXY header was read
    uint16_t skipped       # bytes of it, at the beginning of `bytes`
    uint8_t writing        # BODY: a thread writes a piece of it
    uint8_t outcome        # RELAY: OUTCOME_*, or RELAY_RUNS
    uint16_t flags         # FLAG_*, of an HTTP request
    HttpClient client
    uint32_t requests      # on this connection, before this one
    int32_t holder, place  # HELD: the core, and the place in its table; RELAY: the core
    int32_t spool          # the file with the body, from BODY until the answer, or -1
    uint8_t on_disk        # it isn't in memory
    uint64_t spooled       # bytes in it
    Chunks chunks          # BODY: of a chunked one
    int32_t source         # RELAY: the socket that the core writes the answer to, or -1 when it has ended
    uint8_t source_watched
    uint32_t sent          # RELAY: of `bytes`, the client has these
    int64_t untaken        # RELAY: bytes in the kernel, as of the last look
    uint8_t lent           # a core holds it, or may still have its descriptor
    uint16_t generation    # tells a stale epoll event from one of the descriptor's next life
    int32_t previous, next # in the list of its state
    uint64_t id            # of the request, for the client and the log
    uint64_t began_ns      # HEAD: when it was accepted; LINGER: when lingering began
    uint64_t since_ns      # last progress, or entry into the state
    uint32_t have          # bytes in `bytes`
    uint32_t room
    unsigned char *bytes   # HEAD, QUEUED: what was read so far; NULL otherwise
    unsigned char *ahead   # of the connection's next requests, or NULL
    uint32_t ahead_bytes
    uint32_t scanned       # of `bytes`: find_head_end
    int64_t content_length

ctypedef struct Chain:     # a list through Connection.previous and .next; -1 ends it
    int32_t first, last
    int32_t length

ctypedef struct Core:
    uint8_t state
    int32_t process
    int32_t channel        # our end
    int32_t far            # the worker's end, kept so that an unread message can be taken back
    int32_t client         # RUNNING connection, or -1
    uint64_t seq           # of the last message that asks for `done`
    uint64_t request       # of the request that was pushed last; 0 if it was taken back
    uint64_t id            # its name, for clients and the log
    uint64_t pushed_ns     # the request; or, without one, the question for a report
    uint64_t waited_ns     # in the queue before that
    uint64_t condemned     # the request that harakiri ends
    unsigned char *kept    # a copy of the request that was pushed last, for another core if this one never begins it
    uint32_t kept_bytes, kept_room
    uint64_t drops_told    # of slot.log_dropped
    uint8_t unasked        # BUSY without a request: the next tick asks it for a report
    uint8_t asked          # it was, and hasn't answered yet
    int32_t schedstat      # descriptor, or -1
    double use             # while it was in requests; each measurement counts half as much as the one after it
    uint64_t measured_ns   # when these were read; 0: since it was woken, they weren't
    uint64_t ran_ns, delayed_ns, outside_ns, served  # outside: it waited for a request
    uint64_t busy_ns       # its worker's time in requests, as of the last look
    uint64_t looked_ns     # when that was; at first, when it became ready
    int32_t held[HELD_PER_CORE]  # descriptors of the connections that it holds, by their places; -1
    int32_t held_count

ctypedef struct Process:
    int32_t running        # requests
    int32_t idle           # cores
    int32_t previous, next # in ranks[running]; in no list while idle == 0

ctypedef struct Listener:
    int32_t fd
    uint8_t http
    uint8_t buffers         # HTTP: bodies, before a core gets the request
    uint8_t local           # unix or abstract
    uint8_t tls             # its clients are passed to a terminator (tls.py), what it sends us takes their place
    uint16_t port
    uint8_t open
    uint8_t shared          # with the cores
    uint8_t watched
    uint32_t inode
    int32_t crowd           # so many wait beyond what makes its backlog nearly full; as of the last look

ctypedef struct Arrivals:  # how many connections had come at some moments, the newest last
    uint64_t when[128]
    uint64_t total[128]
    uint32_t count             # ever noted
    uint64_t spacing           # between two of them, ns, at least

cdef enum:
    MAX_LISTENERS = 250
    FIRST_READ = 16384            # a head rarely has more than 4 KiB; body bytes that come along are copied once
    BATCH = 64                    # events per epoll_wait
    ROUNDS = 64                   # of epoll_wait, before the loop's other callbacks get their turn
    MAX_BUFFERED = 64 << 20       # bytes of incomplete heads, over all connections
    MAX_QUEUED = 64 << 20         # bytes of waiting requests
    DISCARD_READS = 16            # per event of a lingering client
    BODY_READ = 262144            # bytes, of a body or an answer per event
    RELAY_RUNS = 255              # as an outcome: the request isn't over
    RELAY_ROOM = 65536            # what a relay's buffer begins with
    LEAST_RELAY_ROOM = 4096       # and if too much is buffered
    EVERYBODY = 1 << 30           # as `wanted`
    MOST_GIVEN_UP = 64            # kept connections that end when descriptors are short
    MOST_STALE = 64               # held connections that are taken from their cores at a time
    MOST_LEFT = 1000              # messages of a dead worker; its channel holds fewer

# A client that drips one byte per socket-timeout is let go after this many timeouts.
cdef int HEAD_TIMEOUTS = 15
# How often to look at what waits in the kernel, ns: while cores sleep that could be woken, and while none does. For this
# and the next: docs/decisions/0007-who-is-awake.md.
cdef uint64_t LOOK_NS = 2_000_000
cdef uint64_t LOOK_AT_LIMITS_NS = 20_000_000
# A connection is overdue, as far as waking cores is concerned, when it has waited for so long, ns.
cdef uint64_t OVERDUE_NS = 2_000_000
# Between two measurements of what cores use, ns.
cdef uint64_t MEASURE_NS = 10_000_000
# What became of the request of a dead worker that had pulled it: the client has seen nothing but the end.
NO_ANSWER = -1
# So long a request on a held connection waits for its core, ns, if no other is idle.
cdef uint64_t TOO_STALE_NS = 20_000_000
# nginx's lingering_time.
cdef uint64_t LINGER_NS = 30 * 1_000_000_000ULL

cdef extern from *:
    const char *WSGIMASTER_LAYOUT

# Of the build: what stands in memory and in messages between master, zygotes and workers (setup.py). Workers of another
# layout can't be taken over by this master.
LAYOUT = WSGIMASTER_LAYOUT.decode()
READY = MESSAGE_READY


def board_bytes(size_t cores):
    """The scoreboard's size in bytes. Raises ValueError beyond its largest number of cores."""
    if not 0 < cores <= BOARD_MAX_CORES:
        raise ValueError(f"processes x threads is {cores}; 1 to {BOARD_MAX_CORES} are possible")
    return board_size(cores)


def board_slots_offset(size_t cores):
    """Where the first slot is, in bytes."""
    return slots_offset(cores)


ANSWERS = {
    400: b"Bad Request", 403: b"Forbidden", 408: b"Request Timeout", 413: b"Content Too Large", 414: b"URI Too Long",
    431: b"Request Header Fields Too Large", 501: b"Not Implemented", 502: b"Bad Gateway",
    503: b"Service Unavailable", 504: b"Gateway Timeout", 505: b"HTTP Version Not Supported",
}

# What the master knows of a request that a core has. id: 16 hexadecimal digits; seq: its number on this core.
# started, waited: seconds, the first on the monotonic clock. begun: the application has seen it;
# sent: bytes of an answer went out; complete: all of them. The texts are escaped.
Request = namedtuple("Request", "core id seq method uri address started waited begun sent complete")


LATE = "it has waited for a worker for longer than queue-timeout"
WITHOUT_CONTROLS = bytes(c if 32 <= c < 127 or c == 10 else 63 for c in range(256))


@cython.final
cdef class Front:
    """The connections, the queue and the cores of one master.

    board: the scoreboard's buffer (scoreboard.Scoreboard.memory). buffer_size: largest variable block, bytes.
    timeout: seconds without progress that a client may take for its head. waiting_limit: requests in the queue;
    queue_timeout: seconds that they may wait there, 0 for ever. queue_wait: the seconds that `waits` will be asked
    about. pull: whether cores accept for themselves; most_waiting:
    how many idle ones wait for connections. taken_over: the scoreboard is another master's (take_up). allow_from, forwarded_allow: settings.prefix_of each network.
    keepalive: seconds that an HTTP connection may wait for its next request, 0: none goes on. http_buffer: bytes of a
    body or an answer that are kept in memory, most_buffered: of all of them; http_timeout: seconds without progress in
    either. proxied: HTTP connections of trusted peers begin with a PROXY header. events: the master's object, see `Events` in _front.pyi.
    """

    cdef BoardHead *board
    cdef uint64_t *finished_bits
    cdef uint64_t *waiting_bits
    cdef uint64_t *door_bits
    cdef Slot *slots
    cdef unsigned char *rings
    cdef object memory            # keeps the mapping alive
    cdef int doorbell
    cdef int again                # an eventfd of our own, for "look once more"; never the doorbell, which others hold
    cdef int epoll
    cdef readonly int epoll_fd
    cdef Connection *connections
    cdef int table_size
    cdef Core *cores
    cdef Process *processes
    cdef int32_t *rank_first      # ranks[r]: idle processes with r running requests
    cdef int32_t *rank_last
    cdef int core_count, threads, process_count
    cdef Listener listeners[MAX_LISTENERS]
    cdef list names               # of the listeners
    cdef int listener_count
    cdef Chain heads, queue, lingerers, kept, bodies, relays
    cdef size_t http_buffer       # bytes of a body or of an answer in memory
    cdef size_t most_buffered     # of all of them
    cdef size_t in_memory         # bytes of bodies and answers
    cdef unsigned char *piece     # of a body, BODY_READ bytes; NULL until one comes
    cdef uint64_t http_timeout_ns
    cdef bint proxied             # HTTP connections of trusted peers begin with a PROXY header
    cdef int eager                # RUNNING connections with more to read
    cdef int shelf                # an epoll of the HELD ones
    cdef bint shelf_watched       # and we are woken when something comes on one of them
    cdef int held_count           # how many they are
    cdef list parted              # (descriptor, core, number of the request): see part_with_client
    cdef int stale[MOST_STALE]    # of these, those whose cores don't come
    cdef int stale_count
    cdef size_t buffered          # bytes held for connections in HEAD
    cdef size_t queued_bytes      # the same for QUEUED
    cdef Peers peers
    cdef size_t buffer_size
    cdef uint64_t timeout_ns
    cdef int waiting_limit
    cdef bint even
    cdef bint pull                # cores get the listening sockets
    cdef int most_waiting         # cores that may wait there
    cdef int shared_count         # of those sockets
    cdef int last_looked          # of the listeners, by accept_shared
    cdef int netlink, timer
    cdef uint64_t period_ns       # of the timer
    cdef bint free                # cores may be woken for every connection: wakeups.py
    cdef bint calm                # as of the last look, nobody waits, and a core would take the next connection itself
    cdef bint gathering           # no core pulls any more
    cdef bint suspended           # and none gets a request
    cdef bint look_anew           # a core may have been woken for a connection and not taken it
    cdef bint came                # somebody was accepted at a shared socket in this callback
    cdef Refusing refusing        # whoever is accepted now gets 503
    cdef uint64_t measured_ns
    cdef double use
    cdef int grinders, surplus    # surplus: cores that may go to sleep
    cdef uint64_t accepted_before  # at the last look
    cdef Arrivals recent, past    # for overdue connections, and for queue-timeout
    cdef Arrivals patient         # the same for cheaper-queue-wait
    cdef uint64_t past_busy_ns    # of cores that don't serve any more
    cdef uint64_t possible_ns, possible_until_ns  # the time that cores could have been in requests, up to then
    cdef uint32_t arrangements    # of the cores, when we put our entries behind theirs
    cdef uint32_t passed_on       # of board.passed_on, those that were seen to
    cdef object events
    cdef unsigned char *scratch
    cdef unsigned char *packet    # of the HTTP request that is being read
    cdef uint64_t keepalive_ns
    cdef int idle_cores, leaving_cores, running, asked
    cdef int serving_cores        # IDLE or BUSY
    cdef bint paused, ticking
    cdef bint ending              # no HTTP connection waits for a next request any more
    cdef uint64_t seen_id         # board.last_id at the last tick
    cdef bint held                # accept nobody: the master lacks descriptors for its processes
    cdef bint finished_some       # since the last tick: their lines are in the rings, and only a tick takes them
    cdef bint overloaded          # more requests came than may wait, and it hasn't eased off since
    cdef uint64_t overloaded_ns, turned_away
    cdef uint64_t queue_timeout_ns
    cdef uint64_t n_own           # accepted at sockets that aren't shared
    cdef uint64_t n_accepted, n_pushed, n_queued, n_refused, n_taken_back, n_clients_gone, n_answered

    def __cinit__(self, memory, int cores, int threads, int doorbell, *, int buffer_size, double timeout, int waiting_limit,
                  double queue_timeout, double queue_wait, bint even, bint pull, int most_waiting, allow_from,
                  forwarded_allow, double keepalive, size_t http_buffer, size_t most_buffered, double http_timeout,
                  bint proxied, events, bint taken_over=False):
        cdef unsigned char[::1] view = memory
        self.memory = memory
        self.board = <BoardHead *>&view[0]
        self.finished_bits = board_finished(self.board)
        self.waiting_bits = board_waiting(self.board, cores)
        self.door_bits = board_door(self.board, cores)
        self.slots = board_slots(self.board, cores)
        self.rings = board_rings(self.board, cores)
        self.core_count, self.threads = cores, threads
        self.process_count = cores // threads
        self.buffer_size = buffer_size
        self.timeout_ns = <uint64_t>(timeout * 1e9)
        self.waiting_limit = waiting_limit
        self.queue_timeout_ns = <uint64_t>(queue_timeout * 1e9)
        if not taken_over:  # another half for each start, so that an id found in old logs isn't taken for a new one
            self.board.last_id = <uint64_t>int.from_bytes(os.urandom(4), "big") << 32
        self.seen_id = self.board.last_id
        self.even = even
        self.pull, self.most_waiting = pull, most_waiting
        self.board.waiters = <uint32_t>most_waiting
        self.events = events
        self.keepalive_ns = <uint64_t>(keepalive * 1e9)
        self.http_buffer, self.most_buffered = http_buffer, most_buffered
        self.http_timeout_ns = <uint64_t>(http_timeout * 1e9)
        self.proxied = proxied
        self.names, self.parted = [], []
        self.cores = <Core *>PyMem_RawCalloc(cores, sizeof(Core))
        self.processes = <Process *>PyMem_RawCalloc(self.process_count, sizeof(Process))
        self.rank_first = <int32_t *>PyMem_RawMalloc((threads + 1) * sizeof(int32_t))
        self.rank_last = <int32_t *>PyMem_RawMalloc((threads + 1) * sizeof(int32_t))
        self.scratch = <unsigned char *>PyMem_RawMalloc(MESSAGE_MAX_BYTES)
        self.packet = <unsigned char *>PyMem_RawMalloc(MESSAGE_MAX_BYTES)
        set_peers(&self.peers, allow_from, forwarded_allow)
        if not (self.cores and self.processes and self.rank_first and self.rank_last and self.scratch and self.packet):
            raise MemoryError
        cdef int i
        for i in range(threads + 1):
            self.rank_first[i] = self.rank_last[i] = -1
        for i in range(cores):
            self.cores[i].process = i // threads
            self.cores[i].channel = self.cores[i].far = self.cores[i].client = self.cores[i].schedstat = -1
            self.cores[i].use = -1
            memset(self.cores[i].held, 0xFF, sizeof(self.cores[i].held))
        self.board.keeps = self.keepalive_ns > 0
        clear(&self.heads)
        clear(&self.queue)
        clear(&self.lingerers)
        clear(&self.kept)
        clear(&self.bodies)
        clear(&self.relays)
        self.epoll = self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "epoll_create1")
        self.doorbell = doorbell
        self.again = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.again < 0:
            raise OSError(errno, "eventfd")
        # Edge-triggered, so that neither has to be read: epoll_wait takes the edge.
        self.watch(doorbell, DOORBELL, 0, EPOLLIN | EPOLLET)
        self.watch(self.again, DOORBELL, 0, EPOLLIN | EPOLLET)
        self.netlink = self.timer = self.shelf = -1
        self.free = True
        self.recent.spacing = OVERDUE_NS // 2
        self.past.spacing = self.queue_timeout_ns // 100
        self.patient.spacing = <uint64_t>(queue_wait * 1e9) // 50
        if pull:
            self.netlink = open_sock_diag()
            self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
            if self.timer < 0:
                raise OSError(errno, "timerfd_create")
            self.watch(self.timer, TIMER, 0, EPOLLIN | EPOLLET)
            self.shelf = epoll_create1(EPOLL_CLOEXEC)
            if self.shelf < 0:
                raise OSError(errno, "epoll_create1")
        if not taken_over:
            self.ask_for_ring()

    def __dealloc__(self):
        cdef int fd
        for fd in range(self.table_size):
            PyMem_RawFree(self.connections[fd].bytes)
            PyMem_RawFree(self.connections[fd].ahead)
            if self.connections[fd].state != CLOSED:
                self.forget_spool(&self.connections[fd])
        PyMem_RawFree(self.connections)
        for fd in range(self.core_count):
            PyMem_RawFree(self.cores[fd].kept)
            if self.cores[fd].schedstat >= 0:
                close(self.cores[fd].schedstat)
        PyMem_RawFree(self.cores)
        PyMem_RawFree(self.processes)
        PyMem_RawFree(self.rank_first)
        PyMem_RawFree(self.rank_last)
        PyMem_RawFree(self.scratch)
        PyMem_RawFree(self.packet)
        PyMem_RawFree(self.piece)
        free_peers(&self.peers)
        for fd in (self.epoll, self.again, self.netlink, self.timer, self.shelf):
            if fd >= 0:
                close(fd)

    # ---- the loop's callback ----

    def on_ready(self):
        """Called by the event loop when the private epoll has something; handles all of it."""
        cdef epoll_event found[BATCH]
        cdef int n, i, rounds
        try:
            for rounds in range(ROUNDS):
                self.collect_finished()
                if self.parted:
                    self.settle_parted()
                n = epoll_wait(self.epoll, found, BATCH, 0)
                for i in range(n):
                    self.dispatch_event(found[i].data.u64, found[i].events)
                if n <= 0:
                    break
        finally:
            self.before_sleeping()

    cdef int before_sleeping(self) except -1:
        """The end of everything that the loop calls: whoever is to wake us must know, and a tick must be under way."""
        if self.parted:
            self.settle_parted()
        self.ease_off()
        if self.came and self.free and self.idle_cores and now_ns() - self.measured_ns > MEASURE_NS:
            self.reconsider(self.backlog())
        self.take_passed_on()
        self.ask_for_ring()
        if not self.ticking and (self.finished_some or self.anything_open() or self.anything_pulled()):
            self.ticking = True
            self.events.tick_wanted()
        self.came = False
        if self.parted:
            self.settle_parted()
        self.set_watch()
        return 0

    cdef int ease_off(self) except -1:
        if self.overloaded and 2 * (self.queue.length + self.backlog()) <= self.waiting_limit:
            self.overloaded = False
            self.events.queue_has_room(self.turned_away, (now_ns() - self.overloaded_ns) / 1e9)
        return 0

    cdef bint anything_open(self):
        return bool(self.running or self.came or self.queue.length or self.heads.length or self.lingerers.length
                    or self.bodies.length or self.relays.length or self.paused or self.asked)

    cdef bint anything_pulled(self):
        """Whether cores have accepted anything since the last tick, or are still in it. If not, who accepts next rings."""
        cdef int core
        if not self.pull:
            return False
        store_seq_u32(&self.board.quiet, 1)
        if load_seq(&self.board.last_id) == self.seen_id:
            for core in range(self.core_count):
                if self.current(core):
                    break
            else:
                return False
        store_seq_u32(&self.board.quiet, 0)
        return True

    cdef void ask_for_ring(self):
        """Before sleeping: must a worker that reports wake us? If so, look once more, since one may just have."""
        cdef bint wanted = self.idle_cores == 0 or self.queue.length > 0 or self.leaving_cores > 0 or self.eager > 0
        store_seq_i32(&self.board.wanted, EVERYBODY if self.gathering else self.queue.length + self.surplus)
        store_seq_u32(&self.board.ring, wanted)
        if (wanted and any_bit(self.finished_bits, self.core_count)
                or (self.queue.length or self.gathering) and any_bit(self.waiting_bits, self.core_count)):
            eventfd_write(self.again, 1)

    # ---- pull: who is awake ----

    cdef int set_watch(self) except -1:
        """Look at the shared listening sockets while there is somebody to give a connection to and wakeups.py doesn't
        object, or nobody at all who could take it. Otherwise a timer looks; not while nothing goes on or all is calm, but
        then we are woken when a connection comes that no core waits for."""
        cdef bint wanted = not self.suspended and (not self.ticking or self.serving_cores == 0 or self.calm
                            or (self.free and self.idle_cores > 0) or self.only_away_from_door())
        cdef uint32_t arrangements = load_seq_u32(&self.board.arrangements)
        cdef bint behind = self.arrangements == arrangements and not self.look_anew
        cdef bint looks = not wanted or (self.held_count > 0 and self.ticking and not self.calm)
        cdef bint often = (self.idle_cores > 0 or self.held_count > 0) and not self.suspended
        cdef uint64_t period_ns = 0 if not looks else LOOK_NS if often else LOOK_AT_LIMITS_NS
        cdef Listener *listener
        cdef int number
        if not self.pull:
            return 0
        if period_ns != self.period_ns:
            self.period_ns = period_ns
            set_timer(self.timer, period_ns)
        if self.shelf_watched != (self.held_count > 0 and self.ticking and self.calm):
            self.shelf_watched = not self.shelf_watched
            if self.shelf_watched:
                self.watch(self.shelf, SHELF, 0, EPOLLIN | EPOLLET)
            else:
                epoll_ctl(self.epoll, EPOLL_CTL_DEL, self.shelf, NULL)
        wanted = wanted and not self.paused
        self.arrangements, self.look_anew = arrangements, False
        for number in range(self.listener_count):
            listener = &self.listeners[number]
            if listener.shared and listener.watched and not (wanted and behind):
                epoll_ctl(self.epoll, EPOLL_CTL_DEL, listener.fd, NULL)
                listener.watched = False
            if listener.shared and wanted and listener.open and not listener.watched:
                self.watch(listener.fd, LISTENER, number, EPOLLIN | EPOLLEXCLUSIVE)
                listener.watched = True
        return 0

    cdef bint is_behind(self):
        """Whether our entries stand behind those of all cores. Then nobody waited when one of ours was woken."""
        return self.arrangements == load_seq_u32(&self.board.arrangements)

    cdef int look(self) except -1:
        """The timer's: what waits in the kernel, should a core be woken for it, and is it too much?"""
        cdef int waiting = self.backlog(), here
        read_timer(self.timer)
        here = self.look_at_held()
        while (self.stale_count and (any_bit(self.waiting_bits, self.core_count)
                                     or self.idle_cores and self.serving_cores <= self.most_waiting)
               and self.take_stale()):
            pass
        while waiting and self.only_away_from_door() and self.accept_shared():
            waiting -= 1
        if self.serving_cores > self.most_waiting and not self.suspended and self.reconsider(waiting):  # else nobody is parked for long
            waiting = self.backlog()
        self.keep_limits(waiting)
        # As long as more wait in the queue than there are cores, none looks at the sockets. Those in the queue may be
        # connections that come back again and again; so that others get their turn, they wait there, too.
        while waiting and self.held_count and self.queue.length >= self.serving_cores and self.accept_shared():
            waiting -= 1
        if waiting and not self.idle_cores:
            note_arrivals(&self.patient, now_ns(), self.accepted() + waiting)
            self.events.requests_wait()
        self.calm = waiting == 0 and here == 0 and count_at_door(self.waiting_bits, self.door_bits, self.core_count) > 0
        return 0

    cdef bint only_away_from_door(self):
        """Whether cores wait, but none of them at the listening sockets: then we can help those who come there."""
        return (any_bit(self.waiting_bits, self.core_count)
                and count_at_door(self.waiting_bits, self.door_bits, self.core_count) == 0)

    cdef int look_at_held(self) except -1:
        """Which held connections have something for a core that doesn't come? It may be in a long request. Returns how many
        have something that nobody reads; `stale` are those that had it at the last look already. Those that have had it for
        long are taken and queued, so that finishing cores are asked for."""
        cdef epoll_event found[MOST_STALE]
        cdef Connection *c
        cdef Held *entry
        cdef uint64_t now = now_ns()
        cdef int n = epoll_wait(self.shelf, found, MOST_STALE, 0) if self.held_count else 0, i, fd, here = 0
        self.stale_count = 0
        for i in range(n):
            fd = <int>found[i].data.u64
            c = &self.connections[fd]
            entry = self.entry(c)
            if c.state != HELD or load_seq(&entry.state) != HELD_CORE:
                continue
            here += 1
            if c.since_ns != entry.since_ns:  # the core has served it since the last look
                c.since_ns, c.began_ns = entry.since_ns, now
            elif now - c.began_ns > TOO_STALE_NS and not self.suspended and self.take_from_core(fd):
                self.go_on(fd)
            else:
                self.stale[self.stale_count] = fd
                self.stale_count += 1
        return here

    cdef Held *entry(self, const Connection *c):
        return board_held(self.board, self.core_count, c.holder) + c.place

    cdef bint take_stale(self) except -1:
        """One of those, to be given to another core. False: none is left."""
        cdef int fd
        while self.stale_count and not self.suspended:
            self.stale_count -= 1
            fd = self.stale[self.stale_count]
            if self.connections[fd].state == HELD and self.take_from_core(fd):
                self.go_on(fd)
                return True
        return False

    cdef bint take_from_core(self, int fd) except -1:
        """Whether the connection is ours alone now: its core is between two requests of it."""
        if not change_held(self.entry(&self.connections[fd]), HELD_CORE, HELD_TAKEN):
            return False
        self.unhold(fd)
        return True

    cdef int unhold(self, int fd) except -1:
        cdef Connection *c = &self.connections[fd]
        cdef Core *k = &self.cores[c.holder]
        epoll_ctl(self.shelf, EPOLL_CTL_DEL, fd, NULL)
        k.held[c.place] = -1
        k.held_count -= 1
        self.held_count -= 1
        c.holder = -1
        c.state = CLOSED
        return 0

    cdef int lend(self, int fd, int core, int place) except -1:
        """A core holds this connection from now on."""
        cdef Connection *c = &self.connections[fd]
        cdef epoll_event event
        if c.watched:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, NULL)
            c.watched = False
        event.events, event.data.u64 = EPOLLIN, fd
        epoll_ctl(self.shelf, EPOLL_CTL_ADD, fd, &event)
        self.forget_spool(c)
        c.state, c.holder, c.place, c.lent, c.since_ns = HELD, core, place, True, 0
        self.cores[core].held[place] = fd
        self.cores[core].held_count += 1
        self.held_count += 1
        self.calm = False
        return 0

    cdef int reconsider(self, int waiting) except -1:
        """Let wakeups.py decide, and carry it out. Returns how many cores were woken."""
        cdef uint64_t now = now_ns()
        cdef uint64_t accepted = self.accepted()
        # Sooner when nobody was accepted since the last look: those who grind may all be stuck. But two looks may come
        # one right after the other, the first of them late.
        cdef bint measured = now - self.measured_ns >= (
            LOOK_NS // 2 if waiting and accepted == self.accepted_before else MEASURE_NS)
        cdef int woken = 0
        self.accepted_before = accepted
        if measured:
            self.measure(now)
        note_arrivals(&self.recent, now, accepted + waiting)
        self.free, wake, rest = self.events.decide_wakeups(
            self.use, self.grinders,
            self.stale_count + min(waiting, waited(&self.recent, now, OVERDUE_NS, self.accepted())))
        if measured:  # else those who have gone to sleep since are among the grinders still
            self.surplus = rest
        while woken < wake and self.idle_cores and (self.take_stale() or self.accept_shared()):
            woken += 1
        return woken

    cdef bint accept_shared(self) except -1:
        """One connection of those that wait at the shared sockets, which take turns. False: there is none, or no descriptor."""
        cdef int i, number
        if self.paused or (self.suspended and self.refusing == NOBODY):
            return False
        for i in range(self.listener_count):
            number = (self.last_looked + 1 + i) % self.listener_count
            if self.listeners[number].shared and self.listeners[number].open and is_readable(self.listeners[number].fd):
                self.last_looked = number
                return self.accept_one(number) == TAKEN
        return False

    cdef int take_passed_on(self) except -1:
        """One connection for each that a claimed core has passed on: counted, since rings that come together are one."""
        cdef uint32_t total = load_seq_u32(&self.board.passed_on)
        cdef uint32_t i
        for i in range(min(total - self.passed_on, <uint32_t>self.core_count)):
            if not self.accept_for_idle():
                self.calm = False
                self.look_anew = True  # nobody else was told of it, and there may be no core at all
                break
        self.passed_on = total
        return 0

    cdef bint accept_for_idle(self) except -1:
        """For a connection that a core was woken for and didn't take. Whether there was one."""
        if self.shared_count and (self.free and self.idle_cores or any_bit(self.waiting_bits, self.core_count)):
            return self.accept_shared()
        return False

    def look_again(self):
        """Once in a while, whatever happens: a core may have been stopped between waking up and accepting."""
        cdef uint64_t now = now_ns()
        while self.kept.length and now - self.connections[self.kept.first].since_ns > self.keepalive_ns:
            self.end_kept(self.kept.first)
        self.end_idle(now)
        if not self.ticking:
            self.accept_for_idle()
            self.look_at_held()
            while self.take_stale():
                pass
            self.before_sleeping()

    cdef int end_idle(self, uint64_t now) except -1:
        """Held connections whose time is over."""
        cdef int core, place, fd
        for core in range(self.core_count if self.held_count else 0):
            for place in range(HELD_PER_CORE if self.cores[core].held_count else 0):
                fd = self.cores[core].held[place]
                if fd >= 0 and now - min(now, self.entry(&self.connections[fd]).since_ns) > self.keepalive_ns:
                    if self.take_from_core(fd):
                        self.go_on(fd, ends=True)
        return 0

    cdef int keep_limits(self, int waiting) except -1:
        """503 to those who wait at the shared sockets and are too many, or have waited for too long: the oldest, since
        they come out first. A backlog that is nearly full counts as too many: a full one turns people away unanswered."""
        cdef uint64_t now = now_ns(), accepted = self.accepted()
        cdef int number
        if self.queue_timeout_ns:
            note_arrivals(&self.past, now, accepted + waiting)
            if self.refuse_oldest(TOO_LATE, min(waiting, waited(&self.past, now, self.queue_timeout_ns, self.accepted()))):
                waiting = self.backlog()
        if self.refuse_oldest(TOO_MANY, min(waiting, waiting + self.queue.length - self.waiting_limit)):
            self.backlog()
        for number in range(self.listener_count):
            self.refuse_oldest(TOO_MANY, self.listeners[number].crowd, number)
        return 0

    cdef int refuse_oldest(self, Refusing why, int64_t count, int at=-1) except -1:
        """at: the listener; without one, all of them take turns. Returns how many there were."""
        cdef int refused = 0
        self.refusing = why
        try:
            while refused < count and (self.accept_shared() if at < 0
                                       else not self.paused and self.accept_one(at) == TAKEN):
                refused += 1
        finally:
            self.refusing = NOBODY
        return refused

    cdef uint64_t accepted(self):
        """Connections at the shared sockets so far, by whomever; a number to compare with itself."""
        return load_seq(&self.board.last_id) - self.n_own - load_seq(&self.board.again)

    cdef int backlog(self):
        """Connections that wait at the shared sockets; one for a socket that doesn't tell how many."""
        cdef Listener *listener
        cdef int number, here, total = 0
        cdef uint32_t most = 0
        for number in range(self.listener_count):
            listener = &self.listeners[number]
            listener.crowd = 0
            if listener.shared and listener.open:
                here = unix_backlog(self.netlink, listener.inode, &most) if listener.local else tcp_backlog(listener.fd, &most)
                listener.crowd = here - <int32_t>(most - most // 8) if here >= 0 else 0
                total += here if here >= 0 else is_readable(listener.fd)
        return total

    cdef int measure(self, uint64_t now) except -1:
        """What the cores that are awake have used since the last time: wakeups.py."""
        cdef Core *k
        cdef Slot *slot
        cdef uint64_t ran, delayed, waited, since, served
        cdef double used, passed, occupied
        cdef int core
        self.measured_ns, self.use, self.grinders = now, 0.0, 0
        for core in range(self.core_count):
            k = &self.cores[core]
            if k.state != BUSY:
                k.measured_ns, k.use = 0, -1
                continue
            slot = &self.slots[core]
            if k.schedstat < 0:
                k.schedstat = open_schedstat(slot.tid)
            if k.schedstat < 0 or not read_schedstat(k.schedstat, &ran, &delayed):
                continue
            served, since = slot.requests, slot.waiting_since_ns
            waited = slot.waited_ns + (now - since if 0 < since < now else 0)
            if k.measured_ns:
                used = <int64_t>(ran - k.ran_ns)
                passed = <int64_t>(now - k.measured_ns) - <int64_t>(delayed - k.delayed_ns)
                occupied = passed - <int64_t>(waited - k.outside_ns)
                self.use += share(used, passed)
                if served != k.served or not since:  # else it has only waited
                    k.use = share(used, occupied) if k.use < 0 else (k.use + share(used, occupied)) / 2
                self.grinders += bool(self.events.is_grinder(k.use, used / 1e9, <int64_t>(served - k.served)))
            k.measured_ns, k.ran_ns, k.delayed_ns, k.outside_ns, k.served = now, ran, delayed, waited, served
        return 0

    cdef int dispatch_event(self, uint64_t data, uint32_t what) except -1:
        cdef int kind = <int>(data >> 56)
        cdef int number = <int>(data & 0xFFFFFFFF)
        if kind == LISTENER:
            self.accept_some(number)
        elif kind == CLIENT:
            if (number < self.table_size
                    and self.connections[number].generation == <uint16_t>((data >> 32) & 0xFFFF)):
                self.client_says(number, what)
        elif kind == SOURCE:
            if (number < self.table_size and self.connections[number].state == RELAY
                    and self.connections[number].source == <int>((data >> 32) & 0xFFFFFF)):
                self.read_source(number)
        elif kind == CHANNEL:
            self.read_channel(number)
        elif kind == TIMER:
            self.look()
        elif kind == SHELF:
            self.calm = False  # a core has been woken for it, or is to come; the timer looks whether it does
        elif kind == DOORBELL and self.pull:
            self.answer_bell()
        return 0

    cdef int client_says(self, int fd, uint32_t what) except -1:
        cdef Connection *c = &self.connections[fd]
        if c.state == LINGER:
            return self.discard(fd)
        if c.state == BODY:
            return self.read_body(fd)
        if c.state == RELAY:
            return self.send_relayed(fd)
        if c.state in (HEAD, KEPT):
            c.came |= (what & EPOLLRDHUP) != 0  # the end of what is to be read is still to come
            return self.read_head_of(fd)
        if c.state == RUNNING:
            self.eager += not c.came
        c.came = True
        return 0

    cdef int answer_bell(self) except -1:
        """Those who have reported or passed a connection on are found anyway; the log ring of a core that pulls may be
        filling up."""
        cdef int core
        for core in range(self.core_count):
            if self.slots[core].log_head - self.slots[core].log_tail > RING_BYTES // 4:
                self.take_ring(core)
        return 0

    cdef int watch(self, int fd, int kind, uint64_t key, uint32_t what) except -1:
        cdef epoll_event event
        event.events = what
        event.data.u64 = (<uint64_t>kind << 56) | key
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, f"epoll_ctl: {strerror(errno).decode()}")
        return 0

    cdef int watch_client(self, int fd) except -1:
        cdef Connection *c = &self.connections[fd]
        if not c.watched:
            c.generation += 1
            c.edge = self.listeners[c.listener].http and c.state not in (LINGER, BODY, RELAY)
            self.watch(fd, CLIENT, (<uint64_t>c.generation << 32) | <uint64_t>fd,
                       EPOLLIN | EPOLLRDHUP | EPOLLET if c.edge else EPOLLOUT if c.state == RELAY else EPOLLIN)
            c.watched = True
        return 0

    cdef void unwatch_client(self, int fd):
        cdef Connection *c = &self.connections[fd]
        if c.watched:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, NULL)
            c.watched = False

    # ---- 1 accept ----

    def add_listener(self, int fd, str name, *, bint http, bint local, bint buffers=False, bint tls=False):
        """Accept on this listening socket (non-blocking) from now on; returns its number. buffers: HTTP bodies, before a
        core gets the request; tls: HTTP is in TLS."""
        if self.listener_count == MAX_LISTENERS:
            raise ValueError(f"at most {MAX_LISTENERS} listening sockets")
        cdef int number = self.listener_count
        self.listeners[number].fd = fd
        self.listeners[number].http, self.listeners[number].local, self.listeners[number].open = http, local, True
        self.listeners[number].buffers, self.listeners[number].tls = buffers, tls
        self.listeners[number].port = own_port(fd)
        self.names.append(name)
        self.listener_count += 1
        if self.pull and not tls and self.shared_count < MOST_PULLED:
            self.listeners[number].shared = True
            self.listeners[number].inode = inode_of(fd)
            self.shared_count += 1
            self.set_watch()
        else:
            self.watch(fd, LISTENER, number, EPOLLIN)
            self.listeners[number].watched = True
        return number

    def stop_pulling(self):
        """The door is being closed: what still waits there is ours to take."""
        cdef int core
        self.gathering = True
        self.ask_for_ring()
        while self.pull:
            core = self.claim()
            if core < 0:
                break
            self.ask_for_report(core)

    def suspend(self, bint suspended):
        """As long as this is so, no core gets a request: all of them wait, in the kernel's queue and in ours."""
        self.suspended = suspended
        if suspended:
            self.stop_pulling()
        else:
            self.gathering = False
            self.free = True  # nobody is awake: whoever waits gets a core, until the next look
            self.ask_for_ring()
            self.pump()
        self.before_sleeping()

    def accept_rest(self, int number, bint forget=True):
        """The door is closed: take what still waits in the backlog, then forget the listener, unless more may come.

        False: it isn't forgotten yet, or no descriptor was free for all of them; call again.
        """
        cdef Listener *listener = &self.listeners[number]
        cdef Accepted accepted = TAKEN
        if not listener.open:
            return True
        while accepted == TAKEN:
            accepted = self.accept_one(number)
        forget = forget and accepted == NOTHING
        if forget:
            listener.open = listener.watched = False
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, listener.fd, NULL)
        self.before_sleeping()
        return forget

    cdef int accept_some(self, int number) except -1:
        """One connection per round of epoll_wait: a look there is cheaper than an accept that fails (3 us)."""
        cdef bint shared = self.listeners[number].shared
        if not self.listeners[number].open or self.paused:
            return 0
        self.came |= shared
        cdef bint help_is_useless = not self.only_away_from_door() and (
            self.idle_cores == 0 or (not self.free and self.idle_cores < self.serving_cores))
        if shared and self.serving_cores and (help_is_useless or not self.is_behind()):
            # a core comes for it sooner than another could be woken, or was woken as well as we; set_watch decides anew
            self.calm = False
            note_arrivals(&self.recent, now_ns(), self.accepted() + 1)
            note_arrivals(&self.patient, now_ns(), self.accepted() + 1)
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, self.listeners[number].fd, NULL)
            self.listeners[number].watched = False
            return 0
        self.accept_one(number)
        return 0

    cdef Accepted accept_one(self, int number) except FAULT:
        cdef SocketName name
        cdef socklen_t size = sizeof(SocketName)
        cdef Listener *listener = &self.listeners[number]
        cdef int fd = accept4(listener.fd, &name.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                self.pause(errno)
                return NO_ROOM
            # EINVAL: a unix listener that was shut down and has nobody left. Everything else is about one
            # connection that failed before we got it (accept(2)).
            return NOTHING if errno in (EAGAIN, EINVAL) else TAKEN
        if listener.tls:
            fd = self.events.end_tls(number, fd)
            if fd < 0:
                return TAKEN
        self.open(fd, number, add_seq(&self.board.last_id, 1) + 1)
        self.n_own += not listener.shared
        if self.let_in(fd, number, &name):
            self.read_head_of(fd)
        return TAKEN

    cdef bint let_in(self, int fd, int number, const SocketName *name) except -1:
        """Whether this client may say anything here; sets what counts of it."""
        cdef Trust trust = http_peer(&self.peers, name) if self.listeners[number].http else uwsgi_peer(&self.peers, name)
        cdef Connection *c = &self.connections[fd]
        c.trusted = c.client.trusted = trust == TRUSTED
        c.client.is_local, c.client.port = not address_bytes(name, c.client.address), port_of(name)
        c.client.own_port, c.client.buffers = self.listeners[number].port, self.listeners[number].buffers
        c.client.secure = self.listeners[number].tls
        if trust == REFUSED:
            self.refuse(fd, 403, "its address is not in allow-from")
        return trust != REFUSED

    cdef Connection *open(self, int fd, int listener, uint64_t id) except NULL:
        cdef int size = self.table_size
        cdef Connection *table
        if fd >= size:
            size = max(256, 2 * size)
            while fd >= size:
                size *= 2
            table = <Connection *>PyMem_RawRealloc(self.connections, size * sizeof(Connection))
            if table == NULL:
                close(fd)
                raise MemoryError
            memset(table + self.table_size, 0, (size - self.table_size) * sizeof(Connection))
            self.connections, self.table_size = table, size
        cdef Connection *c = &self.connections[fd]
        c.state, c.watched, c.bytes, c.have, c.room = CLOSED, False, NULL, 0, 0
        c.ahead, c.ahead_bytes, c.scanned, c.came, c.unfinished, c.edge = NULL, 0, 0, False, False, False
        c.flags, c.requests, c.holder, c.lent = 0, 0, -1, False
        c.spool, c.source, c.writing, c.proxied, c.skipped = -1, -1, False, False, 0
        memset(&c.client, 0, sizeof(HttpClient))
        c.previous = c.next = -1
        c.content_length = -1
        c.began_ns = c.since_ns = now_ns()
        c.listener, c.id = listener, id
        self.n_accepted += 1
        return c

    cdef int pause(self, int error) except -1:
        """No descriptor or memory is left: stop looking at the listeners until the next tick."""
        if not self.paused:
            self.paused, self.calm = True, False
            self.pause_own(0)
            self.give_up_idle()
            self.events.accepting_paused(strerror(error).decode())
        return 0

    cdef int give_up_idle(self) except -1:
        """Descriptors are short: those who want something come before those who may want something again."""
        cdef int core, place, fd, left = MOST_GIVEN_UP
        while self.kept.length and left:
            self.end_kept(self.kept.first)
            left -= 1
        for core in range(self.core_count if self.held_count else 0):
            for place in range(HELD_PER_CORE if self.cores[core].held_count else 0):
                fd = self.cores[core].held[place]
                if fd >= 0 and left and self.take_from_core(fd):
                    self.go_on(fd, ends=True)
                    left -= 1
        return 0

    def hold(self, bint held):
        """Accept nobody as long as this is so; what waits in the backlog waits."""
        self.held = held
        if held:
            self.pause(EMFILE)
            self.before_sleeping()

    cdef void pause_own(self, uint32_t what):
        """The listening sockets that are ours alone; set_watch sees to the others."""
        cdef epoll_event event
        cdef int number
        for number in range(self.listener_count):
            if self.listeners[number].open and not self.listeners[number].shared:
                event.events = what
                event.data.u64 = (<uint64_t>LISTENER << 56) | <uint64_t>number
                epoll_ctl(self.epoll, EPOLL_CTL_MOD, self.listeners[number].fd, &event)

    # ---- 2 read and parse ----

    cdef int read_head_of(self, int fd) except -1:
        """Read what has come; go on to 3 when the head is complete, else wait for more."""
        cdef Connection *c = &self.connections[fd]
        cdef ssize_t n
        cdef size_t room
        while True:
            if c.have == 0:
                room = FIRST_READ
                n = recv(fd, self.scratch, room, MSG_DONTWAIT)
            else:
                room = c.room - c.have
                n = recv(fd, c.bytes + c.have, room, MSG_DONTWAIT)
            if n < 0:
                if errno in (EAGAIN, EINTR):
                    return self.wait_for_head(fd)
                self.drop(fd)
                return 0
            if n == 0:  # a probe that says nothing is no error; half a head is a client that left
                self.n_clients_gone += c.have > 0
                self.drop(fd)
                return 0
            c.came |= <size_t>n == room
            if c.have == 0:
                if not self.needs_more(fd, self.scratch, n):
                    return 0
                self.keep(fd, self.scratch, n)
            else:
                c.have += n
                if not self.needs_more(fd, c.bytes, c.have):
                    return 0
                self.make_room(fd)
            if not self.listeners[c.listener].http:
                return self.wait_for_head(fd)
        return 0

    cdef bint needs_more(self, int fd, unsigned char *bytes, size_t have) except -1:
        """True: more bytes are needed. Otherwise the connection has been queued, pushed, answered or closed."""
        cdef Facts facts
        cdef Verdict verdict
        cdef Connection *c = &self.connections[fd]
        if self.listeners[c.listener].http:
            return self.http_needs_more(fd, bytes, have)
        verdict = read_head(bytes, have, self.buffer_size, &facts)
        if verdict == NEED_MORE:
            return True
        if verdict == COMPLETE and facts.modifier1 == 100:
            self.answer(fd, b"\x64\x00\x00\x01")  # uWSGI's answer to a ping: modifier1 100, no data, modifier2 1
            return False
        if verdict == COMPLETE:
            verdict = read_block(bytes + 4, &facts)
        if verdict != COMPLETE:
            self.refuse_packet(fd, verdict, &facts)
            return False
        c.content_length = facts.content_length
        self.admit(fd, bytes, have)
        return False

    cdef bint http_needs_more(self, int fd, unsigned char *bytes, size_t have) except -1:
        """An HTTP head becomes a packet like nginx's, so that workers know one format only (_http1.pyx)."""
        cdef Connection *c = &self.connections[fd]
        cdef HttpHead head
        cdef size_t scanned = c.scanned
        cdef const char *why = NULL
        cdef int size
        if self.proxied and not c.proxied and c.client.trusted:
            size = read_proxy_line(bytes, have, &self.peers, &c.client, &why)
            if size == HEAD_HAS_ERROR:
                self.refuse(fd, 400, why.decode())
                return False
            if size == HEAD_IS_INCOMPLETE:
                return True
            c.proxied, c.skipped, c.trusted = True, <uint16_t>size, c.client.trusted != 0
        elif c.requests == 0 and not c.proxied and begins_with_proxy(bytes, have):
            self.refuse(fd, 400, "it begins with a PROXY header, which http-enable-proxy-protocol expects from those in "
                                 "forwarded-allow")
            return False
        bytes += c.skipped
        have -= c.skipped
        size = find_head_end(bytes, have, &scanned, &why)
        c.scanned = <uint32_t>scanned
        if size == HEAD_HAS_ERROR:
            self.refuse_head(fd, bytes, have, why)
            return False
        if scanned == 0 and size == HEAD_IS_INCOMPLETE and have > MOST_HTTP_LINE:
            self.refuse(fd, 414, f"its first line has more than {MOST_HTTP_LINE} bytes")
            return False
        if max(<size_t>size, 0 if size else have) > MOST_HTTP_HEAD:
            self.refuse(fd, 431, f"its head has more than {MOST_HTTP_HEAD} bytes")
            return False
        if size == HEAD_IS_INCOMPLETE:
            return True
        if have - size > FIRST_READ:  # only an application that writes to its channel sends that
            self.drop(fd)
            return False
        c.scanned = c.skipped = 0
        if read_http_request(bytes, have, size, &c.client, &self.peers, self.packet, self.buffer_size, &head):
            self.refuse(fd, head.status, head.why.decode())
            return False
        c.content_length, c.flags = head.content_length, http_flags(&head)
        if self.keepalive_ns == 0:
            c.flags &= ~FLAG_KEEPS
        c.unfinished = head.chunked or head.content_length > <int64_t>head.body_bytes
        if c.unfinished and c.client.buffers:
            self.begin_body(fd, head.packet_bytes, head.body_bytes)
            return False
        self.keep_ahead(c, bytes + head.taken, have - head.taken)
        self.admit(fd, self.packet, head.packet_bytes + head.body_bytes)
        return False

    # ---- bodies, at sockets that buffer ----

    cdef int begin_body(self, int fd, size_t packet_bytes, size_t have) except -1:
        """Of this request, whose packet is in `packet` and `have` bytes of its body behind it, more is to come. A small body
        stays behind the packet; a larger one gets a file, in memory up to `http-buffer`, else on disk (spooling.py)."""
        cdef Connection *c = &self.connections[fd]
        cdef size_t room = have
        if c.state in (HEAD, KEPT):
            self.unlink(fd)
            c.state = CLOSED
        self.forget_bytes(c)
        memset(&c.chunks, 0, sizeof(Chunks))
        if c.flags & FLAG_CHUNKED:  # it is sound as far as it has come
            dechunk(&c.chunks, self.packet + packet_bytes, &have, self.packet + packet_bytes, &room)
        if c.flags & FLAG_EXPECTS:
            c.flags &= ~FLAG_EXPECTS
            send(fd, b"HTTP/1.1 100 Continue\r\n\r\n", 25, MSG_DONTWAIT | MSG_NOSIGNAL)
        self.unwatch_client(fd)
        c.spool, c.spooled, c.on_disk = -1, 0, False
        c.state, c.since_ns = BODY, now_ns()
        self.keep(fd, self.packet, packet_bytes + room)
        self.link(fd)
        self.watch_client(fd)
        while self.bodies.length and self.in_memory > 2 * self.most_buffered:  # packets alone: let the quietest go
            self.refuse(self.bodies.first, 408, "too many incomplete bodies are waiting")
        return 0

    cdef int read_body(self, int fd) except -1:
        """One piece of it."""
        cdef Connection *c = &self.connections[fd]
        cdef size_t want = FIRST_READ, taken, room  # of a chunked one, since what comes behind it is the next request's
        cdef ssize_t n
        if self.piece == NULL:
            self.piece = <unsigned char *>PyMem_RawMalloc(BODY_READ)
            if self.piece == NULL:
                raise MemoryError
        if not c.flags & FLAG_CHUNKED:
            want = min(<size_t>BODY_READ, <size_t>(c.content_length - self.body_size(c)))
        n = recv(fd, self.piece, want, MSG_DONTWAIT)
        if n < 0 and errno in (EAGAIN, EINTR):
            return 0
        if n <= 0:
            self.n_clients_gone += 1
            return self.drop(fd)
        taken = room = n
        if c.flags & FLAG_CHUNKED and not dechunk(&c.chunks, self.piece, &taken, self.piece, &room):
            return self.refuse(fd, 400, "its body is not chunked as its head says")
        if taken < <size_t>n:  # dechunk has written before what it hasn't taken
            self.keep_ahead(c, self.piece + taken, n - taken)
        self.touch(fd)
        return self.store_body(fd, room)

    cdef void touch(self, int fd):
        """It has made progress: to the end of its list."""
        self.unlink(fd)
        self.connections[fd].since_ns = now_ns()
        self.link(fd)

    cdef int64_t body_size(self, const Connection *c):
        return c.spooled if c.spool >= 0 else c.have - packet_size(c.bytes)

    cdef int store_body(self, int fd, size_t size) except -1:
        """So many bytes of `piece`; then, if that was the end, to a core."""
        cdef Connection *c = &self.connections[fd]
        cdef size_t before = self.body_size(c), packet = packet_size(c.bytes)
        cdef bint fits = before + size <= self.http_buffer and self.in_memory + size <= self.most_buffered
        if c.spool < 0 and before + size <= FIRST_READ and fits:
            if c.have + size > c.room:
                self.resize_bytes(c, c.have + max(size, <size_t>c.have))
            memcpy(c.bytes + c.have, self.piece, size)
            c.have += <uint32_t>size
            return self.end_body(fd)
        if c.spool < 0:
            c.spool = memfd_create(b"wsgimaster-body", MFD_CLOEXEC)
            if c.spool < 0 or not write_all(c.spool, c.bytes + packet, before):
                return self.refuse_body(fd, errno)
            c.spooled, c.have = before, <uint32_t>packet
            self.in_memory += before
        if fits and not c.on_disk:
            if not write_all(c.spool, self.piece, size):
                return self.refuse_body(fd, errno)
            c.spooled += size
            self.in_memory += size
            return self.end_body(fd)
        c.writing = True
        self.unwatch_client(fd)
        self.events.spool(fd, c.generation, c.spool, c.on_disk, PyBytes_FromStringAndSize(<char *>self.piece, size))
        return 0

    def spooled(self, int fd, int generation, int file, Py_ssize_t size, int error):
        """A piece of a body, `size` bytes, was written to a file on disk, or wasn't: error is an errno, else 0. fd,
        generation: as they were told; file: the body's from now on, a former one is closed. So is this one, if the client
        is gone."""
        cdef Connection *c = &self.connections[fd]
        if c.generation != <uint16_t>generation or c.state != BODY:
            close(file)
            return
        c.writing = False
        if error:
            self.refuse_body(fd, error)
        else:
            if not c.on_disk:
                self.in_memory -= c.spooled
            c.spool, c.on_disk = file, True
            c.spooled += size
            self.touch(fd)
            self.watch_client(fd)
            self.end_body(fd)
        self.before_sleeping()

    cdef int refuse_body(self, int fd, int error) except -1:
        why = f"its body fits neither into http-buffer nor into a file in TMPDIR ({strerror(error).decode()})"
        return self.refuse(fd, 503 if error in (EMFILE, ENFILE, ENOMEM) else 413, why)

    cdef int end_body(self, int fd) except -1:
        """If all of it is there."""
        cdef Connection *c = &self.connections[fd]
        cdef size_t packet = packet_size(c.bytes), size = self.body_size(c), more
        cdef unsigned char *bytes
        if not c.chunks.state == BODY_ENDED if c.flags & FLAG_CHUNKED else <int64_t>size < c.content_length:
            return 0
        self.unlink(fd)
        c.state = CLOSED
        self.unwatch_client(fd)
        c.unfinished, c.came = False, True
        if c.flags & FLAG_CHUNKED:
            c.flags &= ~FLAG_CHUNKED
            c.content_length = size
            memcpy(self.packet, c.bytes, packet)
            if not set_length(self.packet, self.buffer_size, size):
                return self.refuse(fd, 431, "its variables take more bytes than buffer-size allows")
            more = c.have - packet  # of the body, behind it
            memcpy(self.packet + packet_size(self.packet), c.bytes + packet, more)
            return self.admit(fd, self.packet, packet_size(self.packet) + more)
        return self.admit(fd, c.bytes, c.have)

    cdef void close_source(self, Connection *c):
        if c.source >= 0 and c.source_watched:  # somebody else may hold it, and then it would stay in the epoll
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, c.source, NULL)
        if c.source >= 0:
            close(c.source)
        c.source, c.source_watched = -1, False

    cdef void forget_spool(self, Connection *c):
        if c.spool >= 0 and not c.on_disk:
            self.in_memory -= c.spooled
        if c.spool >= 0 and not c.writing:  # else `spooled` closes it
            close(c.spool)
        self.close_source(c)
        c.spool = -1
        c.writing = c.on_disk = False

    # ---- answers to clients that take them slowly ----

    cdef int begin_relay(self, int core, const MessageHead *head, int source, int fd) except -1:
        """The core writes the rest of its answer to this connection to `source`. It is in no list."""
        cdef Connection *c = &self.connections[fd]
        self.unwatch_client(fd)
        self.forget_bytes(c)
        self.forget_spool(c)
        c.state, c.outcome, c.source, c.sent, c.holder, c.lent = RELAY, RELAY_RUNS, source, 0, core, True
        c.id, c.since_ns, c.untaken = head.id, now_ns(), -1
        self.link(fd)
        self.watch_client(fd)
        c.source_watched = False
        return self.watch_source(fd, True)

    cdef int read_source(self, int fd) except -1:
        """What the core has written, as far as there is room."""
        cdef Connection *c = &self.connections[fd]
        cdef ssize_t n
        if c.sent == c.have:
            c.sent = c.have = 0
        elif c.sent and c.have == c.room:
            memmove(c.bytes, c.bytes + c.sent, c.have - c.sent)
            c.have -= c.sent
            c.sent = 0
        if c.room == 0:
            self.resize_bytes(c, RELAY_ROOM if self.in_memory < self.most_buffered else LEAST_RELAY_ROOM)
        elif c.have == c.room < self.http_buffer and self.in_memory < self.most_buffered:
            self.resize_bytes(c, min(self.http_buffer, max(<size_t>RELAY_ROOM, 2 * <size_t>c.room)))
        if c.have == c.room:
            return self.watch_source(fd, False)
        n = recv(c.source, c.bytes + c.have, c.room - c.have, MSG_DONTWAIT)
        if n < 0 and errno in (EAGAIN, EINTR):
            return 0
        if n > 0:
            c.have += <uint32_t>n
            self.watch_client(fd)
            return 0
        self.close_source(c)
        if c.outcome == RELAY_RUNS:
            self.hear_core(c.holder)
            self.judge_end(fd)
        if self.connections[fd].state == RELAY and self.connections[fd].source < 0:
            return self.send_relayed(fd)
        return 0

    cdef int judge_end(self, int fd) except -1:
        """Its core has written nothing more, and not said why: it dies, maybe after all of the answer."""
        cdef Connection *c = &self.connections[fd]
        if c.state == RELAY and c.outcome == RELAY_RUNS and c.holder < self.core_count:
            request = self.describe(c.holder)
            if request is not None and request.complete:
                c.outcome = OUTCOME_LINGER
        return 0

    cdef int hear_core(self, int core) except -1:
        """All that it has said so far."""
        cdef int i
        for i in range(MOST_LEFT if core < self.core_count else 0):  # before an upgrade there may have been more
            if self.cores[core].channel < 0 or self.read_channel(core) <= 0:
                break
        return 0

    cdef int resize_bytes(self, Connection *c, size_t room) except -1:
        """Of a BODY or a RELAY in its list."""
        cdef unsigned char *larger = <unsigned char *>PyMem_RawRealloc(c.bytes, room)
        if larger == NULL:
            raise MemoryError
        self.in_memory += room - c.room
        c.bytes, c.room = larger, <uint32_t>room
        return 0

    cdef int watch_source(self, int fd, bint watched) except -1:
        cdef Connection *c = &self.connections[fd]
        if c.source < 0 or watched == c.source_watched:
            return 0
        if watched:
            self.watch(c.source, SOURCE, (<uint64_t>c.source << 32) | <uint64_t>fd, EPOLLIN)
        else:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, c.source, NULL)
        c.source_watched = watched
        return 0

    cdef int send_relayed(self, int fd) except -1:
        """What the client takes; and at the end, what becomes of the connection."""
        cdef Connection *c = &self.connections[fd]
        cdef ssize_t n = 0
        if c.sent < c.have:
            n = send(fd, c.bytes + c.sent, min(c.have - c.sent, <uint32_t>BODY_READ), MSG_DONTWAIT | MSG_NOSIGNAL)
            if n < 0 and errno not in (EAGAIN, EINTR):
                self.n_clients_gone += 1
                return self.drop(fd)
            if n > 0:
                c.sent += <uint32_t>n
                c.untaken = -1
                self.touch(fd)
        if c.sent == c.have or 2 * c.sent > c.room:  # there is room again
            self.watch_source(fd, True)
        if c.sent < c.have:
            return 0
        self.unwatch_client(fd)  # there is nothing to send
        if c.source >= 0:
            self.unlink(fd)
            self.forget_bytes(c)  # the next piece may be long in coming
            c.sent = 0
            self.link(fd)
            return 0
        self.unlink(fd)
        c.state = CLOSED
        self.forget_bytes(c)
        if c.outcome & OUTCOME_KEPT and c.outcome != RELAY_RUNS:
            c.came = True
            return self.go_on(fd)
        if c.outcome & OUTCOME_CUT:  # or its core is dead
            cut(fd)
            return self.drop(fd)
        return self.linger(fd)

    cdef int note_relay(self, int core, MessageHead *head, int source, int client) except -1:
        """A core wants us to pass its answer on. source: where it comes from; client: the connection, if the core has accepted
        it, else -1. Both are ours now."""
        cdef Core *k = &self.cores[core]
        cdef int fd = -1, place
        cdef Connection *c
        if source >= 0 and not is_stream(source) or client >= 0 and not is_stream(client):  # scribbling
            close(source)
            if client >= 0:
                close(client)
            return 0
        if head.flags == RELAY_PULLED and source >= 0 and client >= 0:
            if head.seq < <uint64_t>self.listener_count and self.listeners[head.seq].http:
                fd, client = client, -1
                c = self.open(fd, <int>head.seq, head.id)
                c.client, c.trusted, c.proxied = head.client, head.client.trusted != 0, True
        elif head.flags == RELAY_HELD and head.seq < HELD_PER_CORE:
            place = <int>head.seq
            fd = k.held[place]
            if fd >= 0:
                self.unhold(fd)
            store_seq_u64(&board_held(self.board, self.core_count, core)[place].state, HELD_FREE)
        elif head.flags == RELAY_PUSHED:
            fd = self.take_client(core, head.seq)
        if client >= 0:
            close(client)
        if fd >= 0 and source >= 0:
            return self.begin_relay(core, head, source, fd)
        if source >= 0:
            close(source)
        if fd >= 0:  # no descriptor was left: the core finds its end closed
            cut(fd)
            self.drop(fd)
        return self.pause(EMFILE) if source < 0 else 0

    cdef int note_relayed(self, int core, MessageHead *head, size_t have) except -1:
        """The core has written all of it."""
        cdef unsigned char *bytes = <unsigned char *>head + sizeof(MessageHead)
        cdef Connection *c
        cdef int fd = self.relays.first
        while fd >= 0:
            c = &self.connections[fd]
            if c.id == head.id and c.holder == core and c.outcome == RELAY_RUNS:
                c.outcome = <uint8_t>head.flags
                if c.source >= 0:  # a child that the application has forked may keep the other end
                    shutdown(c.source, SHUT_RDWR)
                if have:
                    self.keep_ahead(c, bytes, have)
                if c.outcome & OUTCOME_CUT:
                    cut(fd)
                    self.drop(fd)
                return 0
            fd = c.next
        return 0

    cdef int end_relays_of(self, int core, bint complete) except -1:
        """Its worker is dead. complete: it had written all of the answer that it was in."""
        cdef int fd = self.relays.first
        while fd >= 0:
            if self.connections[fd].holder == core and self.connections[fd].outcome == RELAY_RUNS:
                self.connections[fd].outcome = OUTCOME_LINGER if complete else OUTCOME_CUT
                if self.connections[fd].source >= 0:
                    shutdown(self.connections[fd].source, SHUT_RDWR)
            fd = self.connections[fd].next
        return 0

    cdef int take_client(self, int core, uint64_t seq) except? -2:
        """The client whose request of this number the core was pushed, out of its hands; -1 if there is none."""
        cdef Core *k = &self.cores[core]
        cdef int fd = k.client
        if fd >= 0 and seq == k.seq:
            k.client = -1
            self.stop_running(fd)
            self.finished_some = True
            return fd
        for row in self.parted:
            if row[1] == core and row[2] == seq:
                self.parted.remove(row)
                return row[0]
        return -1

    cdef int refuse_head(self, int fd, const unsigned char *bytes, size_t have, const char *why) except -1:
        if have > 2 and bytes[0] == 0x16 and bytes[1] == 3:  # whatever we say, a TLS client can't read it
            self.events.request_refused(self.names[self.connections[fd].listener], "TlsHello", 0,
                                        "a TLS handshake came to a plain HTTP socket")
            self.drop(fd)
            return 0
        return self.refuse(fd, 400, why.decode())

    cdef int keep_ahead(self, Connection *c, const unsigned char *bytes, size_t have) except -1:
        """What the client has sent beyond this request: it is the next one's (pipelining, RFC 9112 9.3.2)."""
        cdef unsigned char *copy = NULL
        if have:
            copy = <unsigned char *>PyMem_RawMalloc(have)
            if copy == NULL:
                raise MemoryError
            memcpy(copy, bytes, have)
        PyMem_RawFree(c.ahead)
        c.ahead, c.ahead_bytes = copy, <uint32_t>have
        return 0

    cdef int go_on(self, int fd, bint ends=False) except -1:
        """An HTTP connection after its answer: read the next request, which may have come already, or wait for it. If it is
        to end, that is still served."""
        cdef Connection *c = &self.connections[fd]
        cdef unsigned char *ahead = c.ahead
        cdef uint32_t have = c.ahead_bytes
        c.state = CLOSED
        c.requests += 1
        c.id = add_seq(&self.board.last_id, 1) + 1
        self.n_own += 1
        c.began_ns = now_ns()
        c.content_length, c.unfinished, c.flags = -1, False, 0
        self.forget_spool(c)
        c.ahead, c.ahead_bytes = NULL, 0
        ends = ends or self.ending
        try:
            if have:
                if not self.needs_more(fd, ahead, have):
                    return 0
                self.keep(fd, ahead, have)
        finally:
            PyMem_RawFree(ahead)
        if not (c.came or ends) and c.watched:
            return self.wait_for_head(fd)
        c.came = False
        self.read_head_of(fd)
        if ends and self.connections[fd].state == KEPT:
            self.drop(fd)
        return 0

    cdef int end_kept(self, int fd) except -1:
        self.read_head_of(fd)  # what has come in this moment is still served
        if self.connections[fd].state == KEPT:
            self.drop(fd)
        return 0

    cdef int wait_for_head(self, int fd) except -1:
        cdef Connection *c = &self.connections[fd]
        cdef uint64_t now = now_ns()
        if c.state == KEPT and c.have:  # a request has begun
            c.began_ns = now
        if c.state in (HEAD, KEPT):
            self.unlink(fd)
            if c.state == HEAD and now - c.began_ns > HEAD_TIMEOUTS * self.timeout_ns:
                c.state = CLOSED
                return self.refuse(fd, 408, "its head took too long")
        c.state, c.since_ns = KEPT if c.requests and c.have == 0 else HEAD, now
        self.link(fd)
        self.watch_client(fd)
        while self.buffered > MAX_BUFFERED:  # let the quietest go
            self.refuse(self.heads.first, 408, "too many incomplete heads are waiting")
        return 0

    cdef int keep(self, int fd, const unsigned char *bytes, size_t have) except -1:
        """Copy what was read into a buffer of the connection's own."""
        cdef Connection *c = &self.connections[fd]
        cdef uint32_t room = <uint32_t>max(1024, have)
        c.bytes = <unsigned char *>PyMem_RawMalloc(room)
        if c.bytes == NULL:
            raise MemoryError
        memcpy(c.bytes, bytes, have)
        c.have, c.room = <uint32_t>have, room
        if c.state == HEAD:  # it stands in the list of heads already, having said nothing so far
            self.buffered += room
        self.make_room(fd)
        return 0

    cdef int make_room(self, int fd) except -1:
        """Room for more, but never so much that more than FIRST_READ bytes of the body could come with the head's end."""
        cdef Connection *c = &self.connections[fd]
        cdef unsigned char *larger
        cdef uint32_t room
        if c.room > c.have:
            return 0
        room = c.have + min(c.have, <uint32_t>FIRST_READ)
        larger = <unsigned char *>PyMem_RawRealloc(c.bytes, room)
        if larger == NULL:
            raise MemoryError
        if c.state == HEAD:
            self.buffered += room - c.room
        c.bytes, c.room = larger, room
        return 0

    # ---- 3 queue ----

    cdef int admit(self, int fd, unsigned char *bytes, size_t have) except -1:
        """A complete request: push it if a core is idle and nobody waits, else queue it."""
        cdef Connection *c = &self.connections[fd]
        cdef int core
        if c.state in (HEAD, KEPT):
            self.unlink(fd)
            c.state = CLOSED
        if c.flags & FLAG_KEEPS and not c.unfinished:
            self.watch_client(fd)  # its next request wakes us: no core has to
        else:  # the core is about to hold a copy, and epoll would go on watching through that
            self.unwatch_client(fd)
        c.came |= c.unfinished
        if self.refusing == TOO_LATE:
            return self.refuse(fd, 503, LATE)
        while self.queue.length == 0 and self.refusing == NOBODY:
            core = self.choose_core()
            if core < 0:
                break
            if self.push(core, fd, bytes, have):
                return 0
        if self.queue.length >= self.waiting_limit or self.queued_bytes + have > MAX_QUEUED:
            self.drop_who_left()
        if self.queue.length >= self.waiting_limit or self.queued_bytes + have > MAX_QUEUED or self.refusing == TOO_MANY:
            return self.turn_away(fd, bytes)
        if c.bytes == NULL or bytes < c.bytes or bytes >= c.bytes + c.room:
            self.forget_bytes(c)
            c.bytes = <unsigned char *>PyMem_RawMalloc(have)
            if c.bytes == NULL:
                raise MemoryError
            memcpy(c.bytes, bytes, have)
            c.room = <uint32_t>have
        c.have = <uint32_t>have
        c.state, c.since_ns = QUEUED, now_ns()
        self.link(fd)
        self.n_queued += 1
        if self.queue.length == 1:
            self.events.requests_wait()
        return 0

    cdef int turn_away(self, int fd, const unsigned char *packet) except -1:
        """503 to one more than may wait. The log hears of the first and, when it has eased off, how many there were."""
        if not self.overloaded:
            self.overloaded, self.overloaded_ns, self.turned_away = True, now_ns(), 0
            self.events.queue_full(self.connections[fd].listener, self.queue.length + self.backlog(), self.oldest_wait())
        self.turned_away += 1
        self.n_refused += 1
        return self.answer_status(fd, 503, packet)

    cdef double oldest_wait(self):
        """Seconds; of what waits at the shared sockets, as far back as it was looked at."""
        cdef uint64_t now = now_ns(), there = longest_wait(&self.recent, now, self.accepted())
        if self.queue.length:
            there = max(there, now - self.connections[self.queue.first].since_ns)
        return there / 1e9

    cdef int drop_who_left(self) except -1:
        """Waiting clients that have gone give up their places."""
        cdef int fd = self.queue.first, following
        while fd >= 0:
            following = self.connections[fd].next
            if self.has_left(fd):
                self.n_clients_gone += 1
                self.drop(fd)
            fd = following
        return 0

    cdef bint has_left(self, int fd):
        cdef Listener *listener = &self.listeners[self.connections[fd].listener]
        return client_left(fd, not listener.local and not listener.http)

    cdef void forget_bytes(self, Connection *c):
        PyMem_RawFree(c.bytes)
        c.bytes = NULL
        c.have = c.room = 0

    cdef int pump(self) except -1:
        """While somebody waits and a core is idle: oldest first, except those who have left."""
        cdef int fd, core
        cdef Connection *c
        while self.queue.length:
            fd = self.queue.first
            c = &self.connections[fd]
            if self.has_left(fd):  # before a core is chosen: one that was claimed must get something
                self.n_clients_gone += 1
                self.drop(fd)
                continue
            core = self.choose_core()
            if core < 0:
                return 0
            if not self.push(core, fd, c.bytes, c.have):
                continue  # the core was no good and has been taken out; the request is still first
        return 0

    # ---- 4 push ----

    cdef int choose_core(self):
        """The core that should get the next request, or -1: one that waits (it is the warmest, and no other core of its
        process is busy), else an idle one. See the theory of operation."""
        cdef int rank, process, core
        if self.suspended:
            return -1
        core = self.claim() if self.pull else -1
        if core >= 0:
            return core
        if self.idle_cores == 0:
            return -1
        for rank in range(self.threads):
            process = self.rank_first[rank]
            if process >= 0:
                for core in range(process * self.threads, (process + 1) * self.threads):
                    if self.cores[core].state == IDLE:
                        return core
        return -1

    cdef int claim(self):
        """A core that waits at the listening sockets, or -1. It will get a message now, whatever comes there."""
        cdef uint64_t bits
        cdef int word, core
        for word in range((self.core_count + 63) // 64):
            bits = load_seq(&self.waiting_bits[word])
            while bits:
                core = word * 64 + 63 - leading_zeros(bits)
                bits &= ~(1ULL << (core % 64))
                # A bit that isn't BUSY's goes as well: a core that leaves has a message anyway, and what the application has
                # scribbled would keep us from sleeping (ask_for_ring).
                if clear_bit(self.waiting_bits, core) and core < self.core_count and self.cores[core].state == BUSY:
                    self.part_with_client(core)
                    return core
        return -1

    cdef void part_with_client(self, int core):
        """The core has gone on to pull since it was pushed this client's request: nothing is left to do for it. Unless it has
        said that it holds the connection, which we haven't heard yet; and here isn't the place to listen."""
        cdef Core *k = &self.cores[core]
        cdef int fd = k.client
        if fd >= 0:
            self.stop_running(fd)
            self.finished_some = True
            k.client = -1
            if self.connections[fd].flags & FLAG_HTTP:
                self.connections[fd].state = CLOSED
                self.parted.append((fd, core, k.seq))
            else:
                self.drop(fd)

    cdef int settle_parted(self) except -1:
        """Of those, whoever isn't held is answered and done with."""
        cdef int core
        cdef list rows = list(self.parted)
        for _, core, _ in rows:
            self.hear_core(core)
        for row in rows:  # reading may have parted others
            if row in self.parted:
                self.parted.remove(row)
                self.drop(row[0])
        return 0

    cdef bint push(self, int core, int fd, unsigned char *bytes, size_t have) except -1:
        """Send the request to the core. False: it couldn't take it, and won't be asked again for now."""
        cdef Core *k = &self.cores[core]
        cdef Connection *c = &self.connections[fd]
        cdef MessageHead head
        cdef iovec pieces[2]
        cdef int fds[2]
        cdef size_t block = packet_size(bytes) - 4
        cdef size_t body = have - 4 - block
        if not c.flags & FLAG_CHUNKED and c.content_length < <int64_t>body:  # what comes after the body is nobody's
            body = <size_t>c.content_length if c.content_length > 0 else 0
        head.kind, head.seq, head.id = MESSAGE_REQUEST, self.next_number(core), c.id
        head.flags = c.flags | (FLAG_TRUSTED if c.trusted else 0)
        if c.flags & FLAG_KEEPS and self.pull:
            head.flags |= FLAG_TELLS if c.ahead_bytes else FLAG_TELLS | FLAG_HOLDS
        if c.spool >= 0:
            head.flags |= FLAG_SPOOLED
        fds[0], fds[1] = fd, c.spool
        head.client = c.client
        c.lent = c.lent or (c.flags & FLAG_KEEPS) != 0  # and a child that the application forks may keep it
        head.vars_bytes, head.body_bytes, head.content_length = <uint32_t>block, <uint32_t>body, c.content_length
        head.modifier1 = bytes[0]
        pieces[0].iov_base, pieces[0].iov_len = &head, sizeof(MessageHead)
        pieces[1].iov_base, pieces[1].iov_len = bytes + 4, block + body
        if send_message(k.channel, pieces, 2, fds, 2 if c.spool >= 0 else 1) < 0:
            return self.push_failed(core, errno)
        k.seq = k.request = head.seq
        k.id = c.id
        k.client, k.pushed_ns = fd, now_ns()
        k.waited_ns = k.pushed_ns - c.since_ns if c.state == QUEUED else 0
        self.keep_copy(k, bytes, have)
        self.set_core(core, BUSY)
        if c.state == QUEUED:
            self.unlink(fd)
        self.forget_bytes(c)
        c.state = RUNNING
        self.running += 1
        self.eager += c.came
        self.n_pushed += 1
        return True

    cdef int keep_copy(self, Core *k, const unsigned char *bytes, size_t have) except -1:
        """A worker that is killed inside recvmsg takes the message with it although it never began the request."""
        cdef unsigned char *larger
        if have > k.kept_room:
            larger = <unsigned char *>PyMem_RawRealloc(k.kept, max(2048, have))
            if larger == NULL:
                raise MemoryError
            k.kept, k.kept_room = larger, <uint32_t>max(2048, have)
        memcpy(k.kept, bytes, have)
        k.kept_bytes = <uint32_t>have
        return 0

    cdef bint push_failed(self, int core, int error) except -1:
        """The kernel refused the message. The core counts as busy until it has answered an empty one."""
        if error == ETOOMANYREFS:  # too many descriptors in flight (RLIMIT_NOFILE): none of the core's doing
            self.events.push_refused(core, strerror(error).decode())
        self.set_core(core, BUSY)
        self.ask_for_report(core)
        return False

    cdef void ask_for_report(self, int core):
        """A NOP: when its `done` comes back, the core is alive and idle."""
        cdef Core *k = &self.cores[core]
        k.unasked = send_short(k.channel, MESSAGE_NOP, self.next_number(core)) < 0
        if not k.unasked:
            k.seq = self.next_number(core)
            k.pushed_ns = now_ns()
            self.asked += not k.asked
            k.asked = True

    cdef uint64_t next_number(self, int core):
        """Of what is sent to the core next: above all that the core can have pulled by then."""
        return self.cores[core].seq + ONE_PUSH

    # ---- 6 finish ----

    cdef int collect_finished(self) except -1:
        """Take the finished bits; free those cores, close or drain their clients, and feed the queue."""
        cdef uint64_t bits
        cdef int word, bit
        cdef bint any = False
        for word in range((self.core_count + 63) // 64):
            if load_acquire(&self.finished_bits[word]) == 0:
                continue
            bits = exchange_u64(&self.finished_bits[word], 0)
            while bits:
                # Highest first, so that the lowest slot is the warmest afterwards.
                bit = 63 - leading_zeros(bits)
                bits &= ~(1ULL << bit)
                if word * 64 + bit < self.core_count:
                    self.finish(word * 64 + bit)
                    any = True
        if self.gathering and any_bit(self.waiting_bits, self.core_count):
            self.stop_pulling()
        if self.queue.length and (any or self.pull):  # a core may have begun to wait since; then we have rung ourselves
            self.pump()
        if any and self.held_count:
            self.take_from_parked()
        return 0

    cdef int take_from_parked(self) except -1:
        """A core that has reported, and for which there was nothing to do, doesn't look at what it holds."""
        cdef int core, place, fd
        for core in range(self.core_count):
            for place in range(HELD_PER_CORE if self.cores[core].state == IDLE and self.cores[core].held_count else 0):
                fd = self.cores[core].held[place]
                if fd >= 0 and self.take_from_core(fd):
                    self.go_on(fd)
        return 0

    cdef int finish(self, int core) except -1:
        cdef Core *k = &self.cores[core]
        cdef Slot *slot = &self.slots[core]
        cdef int fd = k.client, went_on = -1
        cdef uint32_t outcome
        cdef uint64_t done = load_acquire(&slot.done)
        if k.state not in (BUSY, LEAVING) or done < k.seq or done >= self.next_number(core):
            return 0  # a claim about a request that we didn't give: a stale bit, or the application's scribbling
        outcome = slot.outcome if done == k.seq else 0  # of one that it pulled since, it has taken care itself
        self.asked -= k.asked
        k.asked = False
        if fd >= 0 and outcome == 0:
            self.part_with_client(core)
        elif fd >= 0:
            self.finished_some = True
            k.client = -1
            self.stop_running(fd)
            if outcome & OUTCOME_LINGER:
                self.linger(fd)
            elif outcome & OUTCOME_KEPT and self.listeners[self.connections[fd].listener].http:
                went_on = fd
            else:
                if outcome & OUTCOME_CUT:  # the worker has tried, but the application may have closed its descriptor
                    cut(fd)
                self.drop(fd)
        if slot.log_head - slot.log_tail > RING_BYTES // 2:
            self.take_ring(core)
        if k.state == BUSY:
            self.set_core(core, IDLE)
            self.surplus -= self.surplus > 0
            self.look_anew = True  # wanted, or without a descriptor
        return self.go_on(went_on) if went_on >= 0 else 0  # last, so that the core may be the one that gets it

    cdef void stop_running(self, int fd):
        """The connection's request is over, or no core's any more."""
        self.running -= 1
        self.eager -= self.connections[fd].came

    cdef int linger(self, int fd) except -1:
        """The answer is out: half-close, then read and discard until the client closes (bounded by tick)."""
        cdef Connection *c = &self.connections[fd]
        shutdown(fd, SHUT_WR)
        c.state, c.since_ns = LINGER, now_ns()
        c.began_ns = c.since_ns
        self.link(fd)
        self.unwatch_client(fd)
        self.forget_spool(c)
        self.watch_client(fd)
        return 0

    cdef int discard(self, int fd) except -1:
        cdef Connection *c = &self.connections[fd]
        cdef ssize_t n
        cdef int i
        for i in range(DISCARD_READS):
            n = recv(fd, self.scratch, MESSAGE_MAX_BYTES, MSG_DONTWAIT)
            if n < 0 and errno in (EAGAIN, EINTR):
                break
            if n <= 0:
                self.drop(fd)
                return 0
        self.touch(fd)
        return 0

    cdef int drop(self, int fd) except -1:
        """Close, whatever the state."""
        cdef Connection *c = &self.connections[fd]
        if c.state in (HEAD, QUEUED, LINGER, KEPT, BODY, RELAY):
            self.unlink(fd)
        self.unwatch_client(fd)
        if c.state == HELD:
            self.unhold(fd)
        if c.lent:  # a core may still have its descriptor, and the client must see the end
            shutdown(fd, SHUT_RDWR)
        self.forget_bytes(c)
        self.forget_spool(c)
        PyMem_RawFree(c.ahead)
        c.ahead, c.ahead_bytes = NULL, 0
        c.state = CLOSED
        c.generation += 1
        close(fd)
        return 0

    # ---- answers of the master's own ----

    cdef int refuse_packet(self, int fd, Verdict verdict, Facts *facts) except -1:
        error = packet_error(verdict, facts.offset, facts.found, self.buffer_size)
        if verdict == TLS_HELLO:  # whatever we say, a TLS client can't read it
            self.events.request_refused(self.names[self.connections[fd].listener], "TlsHello", 0, str(error))
            self.drop(fd)
            return 0
        return self.refuse(fd, error.status, str(error), type(error).__name__)

    cdef int refuse(self, int fd, int status, str why, str kind=None) except -1:
        """Answer `status`; the log says why, once in a while for each kind."""
        cdef Connection *c = &self.connections[fd]
        self.n_refused += 1
        self.events.request_refused(self.names[c.listener], kind or str(status), status, f"{why} (request {c.id:016x})")
        return self.answer_status(fd, status, c.bytes if c.state == QUEUED else NULL)

    cdef int answer_status(self, int fd, int status, const unsigned char *packet) except -1:
        """packet: the request, if it is known, since the answer to a HEAD has no body."""
        cdef char text[ANSWER_BYTES]
        cdef bint bodyless = packet != NULL and variable(packet, b"REQUEST_METHOD") == "HEAD"
        cdef size_t size = write_answer(text, status, ANSWERS[status], self.connections[fd].id, bodyless)
        return self.answer(fd, PyBytes_FromStringAndSize(text, size))

    cdef int answer(self, int fd, bytes text) except -1:
        """A few hundred bytes always fit a fresh socket's buffer; a client that can't even take those is dropped."""
        cdef Connection *c = &self.connections[fd]
        cdef ssize_t n = send(fd, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), MSG_DONTWAIT | MSG_NOSIGNAL)
        self.n_answered += 1
        if c.state in (HEAD, QUEUED, KEPT, BODY):
            self.unlink(fd)
            c.state = CLOSED
        self.forget_bytes(c)
        if n < 0:
            self.drop(fd)
        else:
            self.linger(fd)
        return 0

    # ---- upgrade: from the master before exec to the one after it ----

    # Rows are typed in handover.py, whose text is a part of LAYOUT: a version with other rows doesn't take over.

    def hand_over_clients(self):
        """A row for each connection, and the bytes that each has sent so far. Nothing changes here."""
        cdef int fd, core, state, place
        cdef list rows = [], said = []
        self.settle_parted()
        for state in (HEAD, QUEUED, LINGER, KEPT, BODY, RELAY):
            fd = self.chain(state).first
            while fd >= 0:
                self.add_row(rows, said, fd)
                fd = self.connections[fd].next
        for core in range(self.core_count):
            if self.cores[core].client >= 0:
                self.add_row(rows, said, self.cores[core].client)
            for place in range(HELD_PER_CORE):
                if self.cores[core].held[place] >= 0:
                    self.add_row(rows, said, self.cores[core].held[place])
        return rows, said

    cdef int add_row(self, list rows, list said, int fd) except -1:
        cdef Connection *c = &self.connections[fd]
        cdef uint32_t begin = c.sent if c.state == RELAY else 0
        rows.append((fd, c.spool, c.source, c.state, c.listener, c.trusted, c.id, c.began_ns, c.since_ns, c.content_length,
                     c.flags, c.requests, c.unfinished, c.lent, c.holder, c.place, c.proxied, c.skipped, c.on_disk,
                     c.spooled, c.outcome, as_text(&c.client, sizeof(HttpClient)), as_text(&c.chunks, sizeof(Chunks)),
                     c.ahead_bytes, c.have - begin + c.ahead_bytes))
        said.append((PyBytes_FromStringAndSize(<char *>c.bytes + begin, c.have - begin) if c.have else b"")
                    + (PyBytes_FromStringAndSize(<char *>c.ahead, c.ahead_bytes) if c.ahead_bytes else b""))
        return 0

    def hand_over_cores(self):
        """A row for each core that has a worker, the copies of their requests (latin-1) among them, and totals."""
        cdef Core *k
        cdef int core
        cdef list rows = []
        for core in range(self.core_count):
            k = &self.cores[core]
            if k.state != ABSENT:
                kept = as_text(k.kept, k.kept_bytes) if self.current(core) == k.request and k.request else ""
                rows.append((core, k.state, k.channel, k.far, k.client, k.seq, k.request, k.id, k.pushed_ns, k.waited_ns,
                             k.condemned, kept, k.drops_told, k.unasked, k.asked))
        return {"rows": rows, "passed_on": self.passed_on, "own": self.n_own,
                "counters": [self.n_accepted, self.n_pushed, self.n_queued, self.n_refused, self.n_taken_back,
                             self.n_clients_gone, self.n_answered]}

    def take_up(self, clients, said, cores, bint suspended):
        """Go on where the others were called. The listeners have been added, in the same order. cores: None if they
        are others; suspended: see `suspend`."""
        cdef Connection *c
        cdef int fd, state, have, ahead
        cdef bytes text
        self.suspended = self.gathering = suspended
        for (fd, spool, source, state, listener, trusted, id, began_ns, since_ns, content_length, flags, requests, unfinished,
             lent, holder, place, proxied, skipped, on_disk, spooled, outcome, client, chunks, ahead, have), text in zip(
                clients, said):
            have -= ahead
            c = self.open(fd, listener, id)
            c.trusted, c.began_ns, c.content_length = trusted, began_ns, content_length
            c.flags, c.requests, c.unfinished, c.lent, c.holder = flags, requests, unfinished, lent, holder
            c.spool, c.source, c.proxied, c.skipped = spool, source, proxied, skipped
            c.on_disk, c.spooled, c.outcome, c.untaken, c.sent = on_disk, spooled, outcome, -1, 0
            self.in_memory += spooled if spool >= 0 and not on_disk else 0
            from_text(client, &c.client, sizeof(HttpClient))
            from_text(chunks, &c.chunks, sizeof(Chunks))
            if have:
                self.keep(fd, text, have)
            self.keep_ahead(c, <const unsigned char *>PyBytes_AS_STRING(text) + have, ahead)
            c.state, c.since_ns = state, since_ns
            if state == RUNNING:
                self.running += 1
            elif state == HELD:
                self.lend(fd, holder, place)
                continue
            else:
                self.link(fd)
            if state in (HEAD, LINGER, KEPT, BODY, RELAY) or self.listeners[listener].http and not c.unfinished:
                self.watch_client(fd)
            if state == RELAY:
                self.watch_source(fd, True)
        if cores is not None:
            self.take_up_cores(cores)
        self.look_anew = True
        self.collect_finished()
        self.before_sleeping()

    cdef int take_up_cores(self, values) except -1:
        cdef Core *k
        cdef int core, state, channel, far, client
        cdef bytes text
        for (core, state, channel, far, client, seq, request, id, pushed_ns, waited_ns, condemned, kept, drops_told,
             unasked, asked) in values["rows"]:
            self.cores[core].id = id
            k = &self.cores[core]
            k.channel, k.far, k.client, k.seq, k.request = channel, far, client, seq, request
            k.pushed_ns, k.waited_ns, k.condemned, k.drops_told = pushed_ns, waited_ns, condemned, drops_told
            k.unasked, k.asked = unasked, asked
            text = kept.encode("latin-1")
            self.keep_copy(k, text, len(text))
            self.asked += k.asked
            self.set_core(core, state)
            k.busy_ns = self.slots[core].running_ns
            self.watch(k.channel, CHANNEL, core, EPOLLIN)
        self.passed_on, self.n_own = values["passed_on"], values["own"]
        (self.n_accepted, self.n_pushed, self.n_queued, self.n_refused, self.n_taken_back, self.n_clients_gone,
         self.n_answered) = values["counters"]
        return 0

    # ---- cores: what the master tells us ----

    def add_core(self, int core, int channel, int far):
        """A worker is being forked; it will say READY on this channel. Takes both descriptors over."""
        cdef Core *k = &self.cores[core]
        if k.state != ABSENT:
            raise ValueError(f"core {core} has a worker already")
        cdef Slot *slot = &self.slots[core]
        memset(slot, 0, sizeof(Slot))
        memset(board_held(self.board, self.core_count, core), 0, HELD_PER_CORE * sizeof(Held))
        clear_bit(self.waiting_bits, core)
        clear_bit(self.door_bits, core)
        k.channel, k.far, k.client, k.seq, k.unasked = channel, far, -1, 0, False
        k.drops_told = 0
        k.condemned = k.request = 0
        self.set_core(core, STARTING)
        self.watch(channel, CHANNEL, core, EPOLLIN)

    def remove_core(self, int core):
        """The worker is dead. What it hadn't begun goes to another core, what it had is answered or cut."""
        cdef Core *k = &self.cores[core]
        cdef Slot *slot = &self.slots[core]
        cdef int fd
        if k.state == ABSENT:
            return
        self.collect_finished()  # it may have finished before it died
        self.take_ring(core)
        self.take_back(core)
        if k.client >= 0 and load_acquire(&slot.taken) < k.seq:
            self.requeue(core)  # the message went with the worker, but the application never saw it
        if k.client >= 0 and load_acquire(&slot.done) >= k.seq:
            self.part_with_client(core)
        request = self.describe(core)
        cdef uint64_t number = self.current(core)
        self.asked -= k.asked
        k.asked = False
        self.set_core(core, ABSENT)
        clear_bit(self.waiting_bits, core)
        clear_bit(self.door_bits, core)
        self.look_anew = True
        if k.schedstat >= 0:
            close(k.schedstat)
        k.schedstat, k.measured_ns, k.use = -1, 0, -1
        self.read_rest(core)
        fd, k.client = k.client, -1
        self.settle_parted()
        self.end_relays_of(core, request is not None and request.complete)
        cdef int status = self.lose_held(core, number)
        close(k.channel)  # leaves the epoll with it: nobody else holds our end
        close(k.far)
        k.channel = k.far = k.client = -1
        if request is not None:
            if status == NO_ANSWER:
                status = self.end_of(request, slot, fd)
            if fd >= 0 or k.condemned != request.seq or status == NO_ANSWER:  # else harakiri has told
                self.events.request_lost(request, status)
        self.pump()
        self.accept_for_idle()  # it may have been woken for a connection
        self.before_sleeping()

    cdef int end_of(self, object request, Slot *slot, int fd) except? -2:
        """See to the client of a dead worker's request, if we have its descriptor (fd, or -1). Returns the status of
        its answer, 0 if that is cut, NO_ANSWER if there is none."""
        cdef Core *k = &self.cores[<int>request.core]
        cdef int status = 504 if k.condemned == <uint64_t>request.seq else 502
        cdef bint answered = load_acquire(&slot.answered) == <uint64_t>request.seq  # by a signal handler of the worker
        if fd < 0 and k.request == <uint64_t>request.seq:  # answer_for has seen to it, or release; or we relay it
            return 0 if request.sent and not answered else status
        if fd < 0:
            return status if answered else 0 if request.sent else NO_ANSWER
        self.stop_running(fd)
        if answered or request.complete:
            self.linger(fd)
        elif request.sent:
            cut(fd)
            self.drop(fd)
            return 0
        else:
            self.n_refused += 1
            self.answer_status(fd, status, k.kept)
        return status

    def retire_core(self, int core):
        """Send the core away: it leaves when it reads that, after its request, or one more that it has just accepted."""
        cdef Core *k = &self.cores[core]
        if k.state in (IDLE, STARTING, BUSY):
            self.set_core(core, LEAVING)
            send_short(k.channel, MESSAGE_RETIRE, 0)
        self.before_sleeping()

    def retire_if_idle(self, int process):
        """Send the process away if none of its cores has a request or can get one any more. True if so: chosen and
        condemned in one step, so no request is ever sent to a process that is to leave."""
        cdef int first = process * self.threads, core, claimed = first
        self.collect_finished()
        for core in range(first, first + self.threads):
            if self.cores[core].state != IDLE and not (self.cores[core].state == BUSY and self.is_waiting(core)):
                self.before_sleeping()
                return False
        for core in range(first, first + self.threads):
            if self.cores[core].state == BUSY:
                if not clear_bit(self.waiting_bits, core):  # a connection has woken it in this moment
                    break
                self.part_with_client(core)
            claimed = core + 1
        for core in range(first, claimed):  # all of them first: nothing may be pushed to the others meanwhile
            if claimed == first + self.threads:
                self.set_core(core, LEAVING)
                send_short(self.cores[core].channel, MESSAGE_RETIRE, 0)
            elif self.cores[core].state == BUSY:
                self.ask_for_report(core)
        self.before_sleeping()
        return claimed == first + self.threads

    cdef int read_channel(self, int core) except -1:
        """What a core has to say that doesn't fit into its slot. Returns how many bytes it was."""
        cdef MessageHead *head = <MessageHead *>self.scratch
        cdef int fds[2]
        cdef ssize_t n = receive_message(self.cores[core].channel, self.scratch, MESSAGE_MAX_BYTES, MSG_DONTWAIT, fds, 2)
        if n >= <ssize_t>sizeof(MessageHead) and self.hear_of_client(core, head, fds, n - sizeof(MessageHead)):
            return n
        close_both(fds)
        if n == 0:  # the application has shut the channel down: no more of it, it would be readable for ever
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, self.cores[core].channel, NULL)
            self.set_core(core, LEAVING)
            self.events.channel_lost(core)
        elif n < <ssize_t>sizeof(MessageHead):
            return 0
        elif head.kind == MESSAGE_ALIVE:
            self.events.worker_alive(core)
        elif head.kind == MESSAGE_READY and self.cores[core].state == STARTING:
            self.set_core(core, BUSY if self.send_listeners(core) else IDLE)
            self.events.core_ready(core)
            self.pump()
        elif head.kind == MESSAGE_RETURNED and head.seq == 0:  # it could not accept
            self.look_anew = True
            self.accept_for_idle()
            self.events.descriptor_lost(core)
        elif head.kind == MESSAGE_RETURNED and self.cores[core].client >= 0 and head.seq == self.cores[core].seq:
            self.events.descriptor_lost(core)
            self.requeue(core)
            self.cores[core].unasked = True  # the next tick asks it: at once, it would be the warmest again
            self.pump()
        return n

    cdef bint hear_of_client(self, int core, MessageHead *head, int *fds, size_t have) except -1:
        """A message about a connection. False: it is about something else, and the descriptors aren't ours."""
        if head.kind == MESSAGE_RELAY:
            self.note_relay(core, head, fds[0], fds[1])
            return True
        if head.kind in (MESSAGE_HANDED, MESSAGE_ANSWERED, MESSAGE_KEPT):
            if fds[1] >= 0:
                close(fds[1])
            self.take_over(core, head, fds[0], have)
            return True
        if head.kind not in (MESSAGE_HELD, MESSAGE_BACK, MESSAGE_RELAYED):
            return False
        close_both(fds)
        if head.kind == MESSAGE_RELAYED:
            self.note_relayed(core, head, have)
        elif head.kind == MESSAGE_HELD:
            self.note_held(core, head)
        elif head.seq < HELD_PER_CORE and self.cores[core].held[head.seq] >= 0:
            self.take_held_back(core, head, have)
        elif head.seq < HELD_PER_CORE:  # its client was gone before we heard of it
            change_held(board_held(self.board, self.core_count, core) + head.seq, HELD_BACK, HELD_FREE)
        return True

    cdef int note_held(self, int core, const MessageHead *head) except -1:
        """The core has answered the request that it was pushed, and goes on with the connection."""
        cdef int64_t place = head.content_length
        cdef int fd
        if not self.pull or place >= HELD_PER_CORE or place >= 0 and self.cores[core].held[place] >= 0:
            return 0
        fd = self.take_client(core, head.seq)
        if fd < 0:
            return 0
        if not self.connections[fd].flags & FLAG_KEEPS:  # scribbling
            return self.drop(fd)
        if place < 0:
            return self.go_on(fd)
        self.connections[fd].requests += 1
        return self.lend(fd, core, place)

    cdef int take_held_back(self, int core, MessageHead *head, size_t have) except -1:
        """The core has given the connection back, with what has come of the next request."""
        cdef int place = <int>head.seq, fd = self.cores[core].held[place]
        cdef unsigned char *bytes = <unsigned char *>head + sizeof(MessageHead)
        cdef Connection *c = &self.connections[fd]
        self.unhold(fd)
        store_seq_u64(&board_held(self.board, self.core_count, core)[place].state, HELD_FREE)
        if head.flags == BACK_CLOSE:
            return self.drop(fd)
        c.id = add_seq(&self.board.last_id, 1) + 1
        self.n_own += 1
        if head.flags == BACK_LINGER:
            return self.linger(fd)
        self.keep_ahead(c, bytes, have)
        return self.go_on(fd)

    cdef int lose_held(self, int core, uint64_t number) except? -2:
        """The core is gone. What it held is ours; the request that it was in, if that was on one of those (its number, or 0), is
        answered, or cut if that had begun. Returns as end_of does; NO_ANSWER, too, if it was on another one."""
        cdef Core *k = &self.cores[core]
        cdef Slot *slot = &self.slots[core]
        cdef int place, fd, status = NO_ANSWER
        cdef uint64_t state
        for place in range(HELD_PER_CORE if k.held_count else 0):
            fd = k.held[place]
            if fd < 0:
                continue
            state = load_seq(&board_held(self.board, self.core_count, core)[place].state)
            self.unhold(fd)
            if state == HELD_CORE:
                self.go_on(fd)
                continue
            if state != HELD_BUSY or not number:  # it has read something that it hasn't told us
                cut(fd)
                self.drop(fd)
                continue
            status = 504 if k.condemned == number else 502
            if load_acquire(&slot.answered) == number or slot.outcome == OUTCOME_COMPLETE:
                self.linger(fd)
            elif load_acquire(&slot.sent) == number:
                cut(fd)
                self.drop(fd)
                status = 0
            else:
                self.n_refused += 1
                self.connections[fd].id = slot.id
                self.answer_status(fd, status, NULL)
        return status

    cdef int read_rest(self, int core) except -1:
        """Of what a dead worker has said, the connections: they are ours. Bounded, since a child that the application has
        forked may go on."""
        cdef MessageHead *head = <MessageHead *>self.scratch
        cdef int fds[2]
        cdef int i
        cdef ssize_t n
        for i in range(MOST_LEFT):
            n = receive_message(self.cores[core].channel, self.scratch, MESSAGE_MAX_BYTES, MSG_DONTWAIT, fds, 2)
            if n < <ssize_t>sizeof(MessageHead) or not self.hear_of_client(core, head, fds, n - sizeof(MessageHead)):
                close_both(fds)
            if n <= 0:
                break
        return 0

    cdef bint send_listeners(self, int core):
        """Give the core the shared sockets; without any it holds connections all the same. True: it looks at them now, and
        reports when it is parked."""
        cdef Core *k = &self.cores[core]
        cdef MessageHead head
        cdef PulledSocket told[MOST_PULLED]
        cdef int fds[MOST_PULLED]
        cdef iovec pieces[2]
        cdef int number, count = 0
        cdef bint open = False
        for number in range(self.listener_count):
            open |= self.listeners[number].open
            if self.listeners[number].shared and self.listeners[number].open:
                fds[count], told[count].number = self.listeners[number].fd, number
                told[count].http, told[count].buffers = self.listeners[number].http, self.listeners[number].buffers
                told[count].proxied = self.proxied and told[count].http
                count += 1
        memset(&head, 0, sizeof(MessageHead))
        head.kind, head.seq = MESSAGE_LISTENERS, self.next_number(core)
        pieces[0].iov_base, pieces[0].iov_len = &head, sizeof(MessageHead)
        pieces[1].iov_base, pieces[1].iov_len = told, sizeof(told)
        if not self.pull or not open or send_message(k.channel, pieces, 2, fds, count) < 0:
            return False
        k.seq = head.seq
        return True

    cdef int take_over(self, int core, MessageHead *head, int fd, size_t have) except -1:
        """A connection that a core has accepted, with what the client has said so far; or one that it has answered."""
        cdef unsigned char *bytes = <unsigned char *>head + sizeof(MessageHead)
        cdef SocketName name
        cdef socklen_t size = sizeof(SocketName)
        cdef int number = <int>head.seq
        if fd < 0:  # no descriptor was left for it
            return self.pause(EMFILE)
        if head.kind == MESSAGE_ANSWERED:
            number = 0
        elif head.seq >= <uint64_t>self.listener_count or not self.listeners[number].shared:  # scribbling
            close(fd)
            return 0
        if getpeername(fd, &name.any, &size) < 0:  # no socket, or a client that is gone
            close(fd)
            return 0
        self.open(fd, number, head.id)
        if head.kind == MESSAGE_KEPT:
            return self.take_kept(core, head, fd, have)
        if self.paused:  # descriptors are short: the next worker's come first
            self.answer_status(fd, 503, NULL)
            if self.connections[fd].state == LINGER:
                self.drop(fd)
            return 0
        if head.kind == MESSAGE_ANSWERED:
            return self.linger(fd)
        if not self.let_in(fd, number, &name):
            return 0
        if self.listeners[number].http:
            self.connections[fd].client, self.connections[fd].proxied = head.client, head.flags != 0
            self.connections[fd].trusted = head.client.trusted != 0
        if have == 0:
            return self.wait_for_head(fd)
        if self.needs_more(fd, bytes, have):
            self.keep(fd, bytes, have)
            self.wait_for_head(fd)
        return 0

    cdef int take_kept(self, int core, MessageHead *head, int fd, size_t have) except -1:
        """An HTTP connection whose first request a core has pulled and answered; it may hold it."""
        cdef int number = <int>head.seq
        cdef int64_t place = head.content_length
        if (not self.listeners[number].http or self.paused and place < 0
                or place >= HELD_PER_CORE or place >= 0 and self.cores[core].held[place] >= 0):
            return self.drop(fd)
        self.connections[fd].client, self.connections[fd].trusted = head.client, head.client.trusted != 0
        self.connections[fd].proxied = True
        if place >= 0:
            self.connections[fd].requests = 1
            return self.lend(fd, core, place)
        self.connections[fd].lent = True
        self.keep_ahead(&self.connections[fd], <unsigned char *>head + sizeof(MessageHead), have)
        return self.go_on(fd)

    def take_back(self, int core):
        """Read back the request that the core hasn't begun, if there is one, and queue it first. True if so.

        The kernel gives a message to exactly one reader, so the request runs once, whatever the worker does
        meanwhile. Afterwards the core counts as busy until it has answered a NOP.
        """
        cdef Core *k = &self.cores[core]
        cdef MessageHead *head = <MessageHead *>self.scratch
        cdef bint found = False, told_to_leave = False
        cdef int fd
        cdef ssize_t n
        while k.far >= 0:
            n = receive_message(k.far, self.scratch, MESSAGE_MAX_BYTES, MSG_DONTWAIT, &fd, 1)
            if fd >= 0:
                close(fd)  # the copy that was in the channel; ours is the connection's
            if n < <ssize_t>sizeof(MessageHead):  # empty; or shut down by the application, which reads as the end for ever
                break
            if head.kind == MESSAGE_REQUEST and k.client >= 0 and head.seq == k.seq:
                self.requeue(core)
                self.n_taken_back += 1
                found = True
            told_to_leave |= head.kind == MESSAGE_RETIRE
        if told_to_leave:  # it was read back with the rest
            send_short(k.channel, MESSAGE_RETIRE, 0)
        elif found:
            self.ask_for_report(core)
        if found:
            self.pump()
            self.before_sleeping()
        return found

    cdef int requeue(self, int core) except -1:
        """The core's request waits again, before all others."""
        cdef Core *k = &self.cores[core]
        cdef int fd = k.client
        cdef Connection *c = &self.connections[fd]
        c.bytes = <unsigned char *>PyMem_RawMalloc(k.kept_bytes)
        if c.bytes == NULL:
            raise MemoryError
        memcpy(c.bytes, k.kept, k.kept_bytes)
        c.have = c.room = k.kept_bytes
        k.client, k.request = -1, 0
        self.stop_running(fd)
        c.state, c.since_ns = QUEUED, k.pushed_ns - k.waited_ns  # it has been waiting since then
        self.link(fd, first=True)
        return 0

    # ---- requests that take too long: what harakiri.py asks ----

    cdef uint64_t current(self, int core):
        """The number of the request that the core is in, or 0. A pushed one counts from the push on."""
        cdef Core *k = &self.cores[core]
        cdef uint64_t done = load_acquire(&self.slots[core].done), taken = load_acquire(&self.slots[core].taken)
        if k.state == ABSENT:
            return 0
        if done < k.request:
            return k.request
        return taken if taken > done and k.seq < taken < self.next_number(core) else 0

    def overdue(self, double limit):
        """(requests that have passed their deadlines and aren't condemned, when the next one does).

        limit: seconds since a core took the request, 0 for none; one that no core took counts from the push (a worker
        that is stopped). The application's own deadline counts if it is earlier. The time is monotonic seconds,
        0.0 when no deadline is near.
        """
        cdef uint64_t now = now_ns(), limit_ns = <uint64_t>(limit * 1e9), due, earliest = 0, number
        cdef int core
        cdef list late = []
        for core in range(self.core_count):
            number = self.current(core)
            if number == 0 or number == self.cores[core].condemned:
                continue
            due = self.deadline(core, number, limit_ns)
            if due and due <= now:
                request = self.request(core, number)
                if self.current(core) == number:  # else that is over, and a next one has begun
                    late.append(request)
            elif due and (earliest == 0 or due < earliest):
                earliest = due
        return late, earliest / 1e9

    def silent(self, double limit):
        """The cores that have had no request and not answered a question for `limit` seconds: stopped processes."""
        cdef uint64_t now = now_ns(), limit_ns = <uint64_t>(limit * 1e9)
        return [core for core in range(self.core_count)
                if limit_ns and self.cores[core].asked and self.cores[core].state == BUSY
                and now - self.cores[core].pushed_ns >= limit_ns]

    cdef uint64_t started(self, int core, uint64_t number):
        """When the core took its request. What the slot says is a claim: not before the push, nor in the future."""
        if load_acquire(&self.slots[core].taken) < number:
            return self.cores[core].pushed_ns
        return min(max(self.cores[core].pushed_ns, self.slots[core].started_ns), now_ns())

    cdef uint64_t deadline(self, int core, uint64_t number, uint64_t limit_ns):
        """CLOCK_MONOTONIC, or 0."""
        cdef uint64_t own = self.slots[core].deadline_ns, started = self.started(core, number)
        cdef uint64_t due = started + limit_ns if limit_ns else 0
        if load_acquire(&self.slots[core].taken) < number or own < started:
            own = 0  # of an earlier request
        return min(due, own) if due and own else due or own

    def describe(self, int core):
        """The core's Request, or None."""
        cdef uint64_t number = self.current(core)
        return self.request(core, number) if number else None

    cdef object request(self, int core, uint64_t number):
        cdef Core *k = &self.cores[core]
        cdef Slot *slot = &self.slots[core]
        cdef bint sent = load_acquire(&slot.sent) == number
        if number == k.request:
            what = (f"{k.id:016x}", number, variable(k.kept, b"REQUEST_METHOD"),
                    variable(k.kept, b"REQUEST_URI"), variable(k.kept, b"REMOTE_ADDR"))
            waited = k.waited_ns / 1e9
        else:
            what, waited = self.published(slot, number), 0.0
        return Request(core, *what, self.started(core, number) / 1e9, waited, load_acquire(&slot.taken) == number, sent,
                       sent and slot.outcome == OUTCOME_COMPLETE)

    cdef tuple published(self, Slot *slot, uint64_t number):
        """What the worker says of a request that it has pulled; nothing, if it has just begun or gone on to the next."""
        cdef char text[TEXT_BYTES]
        cdef size_t method, address, uri
        cdef uint64_t id
        if load_acquire(&slot.text_of) == number:
            method, address, uri = slot.method_bytes, slot.address_bytes, slot.uri_bytes
            memcpy(text, slot.text, TEXT_BYTES)
            id = slot.id
            acquire_fence()
            if load_acquire(&slot.text_of) == number and method + address + uri <= TEXT_BYTES:
                return (f"{id:016x}", number, escaped(text, method), escaped(text + method + address, uri),
                        escaped(text + method, address))
        return "?", number, "", "", ""

    def soften(self, int core, uint64_t seq):
        """Allow the worker to raise an exception in the core's request of this number."""
        self.slots[core].softened = seq

    def condemn(self, int core, uint64_t seq):
        """The core's request is to be ended. From here on the worker's signal handler may answer it."""
        self.cores[core].condemned = seq
        store_release(&self.slots[core].condemned, seq)

    def poke(self, int core, int pid, bint every_thread):
        """Have the worker's handlers answer the condemned request and write the traceback of its thread, or of
        every thread. False: there is no such thread. `dumps` counts what they have written."""
        return signal_thread(pid, self.slots[core].tid, SIGNAL_DUMP if every_thread else SIGNAL_STUCK) == 0

    def dumps(self, int core):
        return self.slots[core].dumps

    def thread_of(self, int core):
        """The kernel's number of the core's thread, as the worker claims."""
        return self.slots[core].tid

    def is_stuck(self, int core):
        """Whether the core is still in the request that was condemned."""
        cdef Core *k = &self.cores[core]
        return k.state != ABSENT and k.condemned != 0 and self.current(core) == k.condemned

    def answered(self, int core):
        """The number of the request that the worker's handler has answered last on this core."""
        return load_acquire(&self.slots[core].answered)

    def release(self, int core):
        """If the worker's handler has answered the client, see to the rest of the connection."""
        cdef Core *k = &self.cores[core]
        if k.client >= 0 and load_acquire(&self.slots[core].answered) == k.seq:
            self.stop_running(k.client)
            self.linger(k.client)
            k.client = -1
            self.before_sleeping()

    def answer_for(self, int core, int status):
        """Answer the core's request ourselves, from our own descriptor, if nothing was sent. Only when its worker can't
        run any more (killed, even if not yet gone). True if so."""
        cdef Core *k = &self.cores[core]
        cdef int fd = k.client
        if fd < 0 or load_acquire(&self.slots[core].taken) < k.seq or load_acquire(&self.slots[core].sent) >= k.seq:
            return False
        k.client = -1
        self.stop_running(fd)
        self.n_refused += 1
        self.answer_status(fd, status, k.kept)
        self.before_sleeping()
        return True

    def running_in(self, int process):
        """How many requests the process has that aren't condemned."""
        cdef int core
        return sum([self.current(core) not in (0, self.cores[core].condemned)
                    for core in range(process * self.threads, (process + 1) * self.threads)])

    def served_by(self, int process):
        """How many requests the process has served, by its own account."""
        cdef int core
        cdef uint64_t total = 0
        for core in range(process * self.threads, (process + 1) * self.threads):
            total += self.slots[core].requests
        return total

    def not_begun(self, double seconds):
        """The cores that got a request at least this long ago and haven't begun it: stopped, or starved."""
        cdef uint64_t now = now_ns(), limit = <uint64_t>(seconds * 1e9)
        return [core for core in range(self.core_count)
                if self.cores[core].client >= 0 and now - self.cores[core].pushed_ns >= limit
                and self.cores[core].condemned != self.cores[core].seq
                and load_acquire(&self.slots[core].taken) < self.cores[core].seq]

    cdef void set_core(self, int core, int state):
        """The one door for a core's state: keeps the counts and the ranks in step."""
        cdef Core *k = &self.cores[core]
        cdef Process *p = &self.processes[k.process]
        cdef int was = k.state
        if was == state:
            return
        self.unrank(k.process)
        p.idle += (state == IDLE) - (was == IDLE)
        # A core that leaves is still in its request; for the choice only the process's other cores count.
        p.running += (state == BUSY) - (was == BUSY)
        self.idle_cores += (state == IDLE) - (was == IDLE)
        self.leaving_cores += (state == LEAVING) - (was == LEAVING)
        self.count_serving(core, (state in (IDLE, BUSY)) - (was in (IDLE, BUSY)))
        k.state = state
        self.rank(k.process)

    cdef void count_serving(self, int core, int change):
        """What the core does counts for busyness from when it is ready until it is told to leave."""
        cdef Core *k = &self.cores[core]
        cdef uint64_t now
        if change == 0:
            return
        now = now_ns()
        self.possible_ns += self.serving_cores * (now - self.possible_until_ns)
        self.possible_until_ns = now
        self.serving_cores += change
        if change < 0:
            self.past_busy_ns += self.busy_until(core, now)
        k.busy_ns, k.looked_ns = 0, now

    cdef uint64_t busy_until(self, int core, uint64_t now):
        """The time that the core has spent in requests since it was ready, ns. The slot's figures are claims, and a request
        that ends right now may stand there twice: never less than at the last look, nor more than has passed since."""
        cdef Core *k = &self.cores[core]
        cdef uint64_t number = self.current(core)
        cdef uint64_t busy = self.slots[core].running_ns + (now - min(now, self.started(core, number)) if number else 0)
        k.busy_ns = min(max(k.busy_ns, busy), k.busy_ns + (now - k.looked_ns))
        k.looked_ns = now
        return k.busy_ns

    def work(self):
        """(seconds that cores have spent in requests, seconds that they could have, processes with a request now): the
        first two are totals, and count from when a core is ready until it is told to leave."""
        cdef uint64_t now = now_ns(), busy = self.past_busy_ns
        cdef int core, process = -1, busy_processes = 0
        for core in range(self.core_count):
            if self.cores[core].state in (IDLE, BUSY):
                busy += self.busy_until(core, now)
                if self.cores[core].process != process and self.current(core):
                    process = self.cores[core].process
                    busy_processes += 1
        return (busy / 1e9, (self.possible_ns + self.serving_cores * (now - self.possible_until_ns)) / 1e9, busy_processes)

    def waits(self, double seconds):
        """(requests that wait, those of them that have waited for longer than that, seconds that the first has waited); as
        exact as the looks at the kernel's queue are frequent. seconds: `queue_wait`."""
        cdef uint64_t now = now_ns(), limit = <uint64_t>(seconds * 1e9), accepted = self.accepted()
        cdef int there = self.backlog(), fd = self.queue.first
        cdef int64_t late = min(<int64_t>there, waited(&self.patient, now, limit, accepted))
        cdef uint64_t oldest = longest_wait(&self.patient, now, accepted) if there else 0
        note_arrivals(&self.patient, now, accepted + there)
        if fd >= 0:
            oldest = max(oldest, now - min(now, self.connections[fd].since_ns))
        while fd >= 0 and now - min(now, self.connections[fd].since_ns) >= limit:
            late += 1
            fd = self.connections[fd].next
        return self.queue.length + there, late, oldest / 1e9

    cdef void rank(self, int process):
        cdef Process *p = &self.processes[process]
        cdef int r = p.running
        if p.idle == 0:
            return
        if self.even:
            p.previous, p.next = self.rank_last[r], -1
        else:
            p.previous, p.next = -1, self.rank_first[r]
        if p.previous >= 0:
            self.processes[p.previous].next = process
        else:
            self.rank_first[r] = process
        if p.next >= 0:
            self.processes[p.next].previous = process
        else:
            self.rank_last[r] = process

    cdef void unrank(self, int process):
        cdef Process *p = &self.processes[process]
        cdef int r = p.running
        if p.idle == 0:
            return
        if p.previous >= 0:
            self.processes[p.previous].next = p.next
        else:
            self.rank_first[r] = p.next
        if p.next >= 0:
            self.processes[p.next].previous = p.previous
        else:
            self.rank_last[r] = p.previous

    # ---- the lists of connections ----

    cdef Chain *chain(self, int state):
        if state == KEPT:
            return &self.kept
        if state == BODY or state == RELAY:
            return &self.bodies if state == BODY else &self.relays
        return &self.heads if state == HEAD else &self.queue if state == QUEUED else &self.lingerers

    cdef void link(self, int fd, bint first=False):
        """Put it into the list of its state, at the end or at the beginning."""
        cdef Connection *c = &self.connections[fd]
        cdef Chain *chain = self.chain(c.state)
        c.previous = -1 if first else chain.last
        c.next = chain.first if first else -1
        if c.previous >= 0:
            self.connections[c.previous].next = fd
        else:
            chain.first = fd
        if c.next >= 0:
            self.connections[c.next].previous = fd
        else:
            chain.last = fd
        chain.length += 1
        self.count_bytes(c, 1)

    cdef void unlink(self, int fd):
        cdef Connection *c = &self.connections[fd]
        cdef Chain *chain = self.chain(c.state)
        if c.previous >= 0:
            self.connections[c.previous].next = c.next
        else:
            chain.first = c.next
        if c.next >= 0:
            self.connections[c.next].previous = c.previous
        else:
            chain.last = c.previous
        chain.length -= 1
        self.count_bytes(c, -1)

    cdef void count_bytes(self, Connection *c, int sign) noexcept:
        """What the connections of a list hold, so that it can be bounded."""
        if c.state == HEAD:
            self.buffered += sign * <Py_ssize_t>c.room
        elif c.state == QUEUED:
            self.queued_bytes += sign * <Py_ssize_t>c.have
        elif c.state == BODY or c.state == RELAY:
            self.in_memory += sign * <Py_ssize_t>c.room

    # ---- the tick: only while there is something to watch over ----

    def tick(self):
        """Every tenth of a second while anything is open: timeouts, finished cores that nobody asked about.

        Returns whether another tick is wanted.
        """
        cdef int core
        self.collect_finished()
        for core in range(self.core_count):
            if self.cores[core].client >= 0 and (load_acquire(&self.slots[core].taken) > self.cores[core].seq
                                                 or self.is_waiting(core)):
                self.part_with_client(core)
            if self.cores[core].unasked and self.cores[core].client < 0 and self.cores[core].state in (BUSY, LEAVING):
                self.ask_for_report(core)
        self.drop_who_left()
        self.ease_off()
        self.accept_for_idle()  # a core that waits may have been stopped
        empty_eventfd(self.doorbell)
        self.take_passed_on()  # that may have been its ring
        if self.calm and self.backlog():  # who was woken for it was stopped, or waits for its interpreter
            self.calm = False
        cdef uint64_t now = now_ns()  # after everything that stamps a connection, or differences would be negative
        if self.paused and not self.held:
            self.paused = False
            self.pause_own(EPOLLIN)
        while self.heads.length and now - self.connections[self.heads.first].since_ns > self.timeout_ns:
            self.time_out_head(self.heads.first)
        while (self.queue_timeout_ns and self.queue.length
               and now - self.connections[self.queue.first].since_ns > self.queue_timeout_ns):
            self.refuse(self.queue.first, 503, LATE)
        while self.bodies.length and self.is_silent(self.bodies.first, now):
            self.time_out_body(self.bodies.first)
        while self.relays.length and self.is_silent(self.relays.first, now):
            self.time_out_relay(self.relays.first)
        now = now_ns()  # those have begun to linger
        while self.lingerers.length and now - self.connections[self.lingerers.first].since_ns > self.timeout_ns:
            self.drop(self.lingerers.first)
        cdef int fd = self.lingerers.first, following
        while fd >= 0:  # those who keep sending
            following = self.connections[fd].next
            if now - self.connections[fd].began_ns > LINGER_NS:
                self.drop(fd)
            fd = following
        self.settle_parted()
        self.ask_for_ring()
        self.finished_some = False
        cdef uint64_t last_id = load_seq(&self.board.last_id)
        self.ticking = self.anything_open() or self.anything_pulled()
        self.seen_id = last_id
        self.free = self.free or not self.ticking
        self.set_watch()
        return self.ticking

    cdef bint is_waiting(self, int core):
        return (load_seq(&self.waiting_bits[core // 64]) >> (core % 64)) & 1

    cdef int time_out_head(self, int fd) except -1:
        """Silence from the beginning is a port probe and gets silence; half a head gets an answer."""
        cdef Connection *c = &self.connections[fd]
        if c.have == 0 or c.requests and c.bytes[0] == c"\r":  # or an empty line after the last request
            self.drop(fd)
            return 0
        return self.refuse(fd, 408, "its head stayed incomplete for socket-timeout")

    cdef bint is_silent(self, int fd, uint64_t now):
        """Signed: it may have made progress since."""
        return <int64_t>(now - self.connections[fd].since_ns) > <int64_t>self.http_timeout_ns

    cdef int time_out_body(self, int fd) except -1:
        if self.connections[fd].writing:  # it isn't the client whom we wait for
            self.touch(fd)
            return 0
        return self.refuse(fd, 408, "nothing of its body came for http-timeout")

    cdef int time_out_relay(self, int fd) except -1:
        """A socket counts as writable only once most of its buffer is free; a slow client is alive long before that."""
        cdef Connection *c = &self.connections[fd]
        cdef int64_t left = untaken_bytes(fd)
        if c.sent == c.have or c.untaken < 0 or left < c.untaken:
            c.untaken = left if c.sent < c.have else -1
            self.touch(fd)
            return 0
        self.n_clients_gone += 1
        cut(fd)
        return self.drop(fd)

    # ---- log rings ----

    def take_logs(self):
        """Hand the rings' lines to the events object; True if there were any."""
        cdef int core
        cdef bint any = False
        for core in range(self.core_count):
            if self.slots[core].log_head != self.slots[core].log_tail:
                self.take_ring(core)
                any = True
        return any

    cdef int take_ring(self, int core) except -1:
        cdef Slot *slot = &self.slots[core]
        cdef const unsigned char *ring = self.rings + <size_t>core * RING_BYTES
        cdef uint64_t head = load_acquire(&slot.log_head), tail = slot.log_tail
        cdef size_t start = tail % RING_BYTES, size = <size_t>(head - tail), first
        if head == tail:
            return 0
        if head < tail or size > RING_BYTES:  # scribbled over: nothing in it can be believed
            slot.log_tail = head
            return 0
        first = min(size, RING_BYTES - start)
        lines = PyBytes_FromStringAndSize(<const char *>ring + start, first)
        if size > first:
            lines += PyBytes_FromStringAndSize(<const char *>ring, size - first)
        store_release(&slot.log_tail, head)
        # The worker has escaped every value; what has got in here since is the application's scribbling.
        lines = lines.translate(WITHOUT_CONTROLS)
        self.events.request_lines(lines if lines.endswith(b"\n") else lines + b"\n")
        if slot.log_dropped != self.cores[core].drops_told:
            self.events.lines_dropped(core, slot.log_dropped - self.cores[core].drops_told)
            self.cores[core].drops_told = slot.log_dropped
        return 0

    # ---- what the master asks ----

    @property
    def counters(self):
        """Since the start: connections accepted by the master, requests pushed, queued, refused, taken back; clients gone."""
        return {"accepted": self.n_accepted, "pushed": self.n_pushed, "queued": self.n_queued,
                "refused": self.n_refused, "taken_back": self.n_taken_back, "clients_gone": self.n_clients_gone,
                "answered": self.n_answered}

    @property
    def served(self):
        """Requests of all workers since the start, by their own account."""
        return self.board.requests

    @property
    def waiting(self):
        """Requests in the queue, and connections that wait for a core to pull them."""
        return self.queue.length + self.backlog()

    @property
    def reading(self):
        """Connections whose head, or buffered body, isn't complete."""
        return self.heads.length + self.bodies.length

    @property
    def in_progress(self):
        """Requests that a core has."""
        cdef int core
        return sum([self.current(core) != 0 for core in range(self.core_count)])

    @property
    def questioned(self):
        """Cores without a request that haven't answered whether they are alive."""
        return self.asked

    @property
    def draining(self):
        """Answered connections that are read to their end, and those to which answers are passed on."""
        return self.lingerers.length + self.relays.length

    @property
    def idle(self):
        """Cores that have nothing to do."""
        return self.idle_cores + count_bits(self.waiting_bits, self.core_count)

    @property
    def parked(self):
        """Idle cores that don't wait at the listening sockets."""
        return self.idle_cores

    def refuse_waiting(self):
        """A fast stop: 503 to all who wait; close those who haven't said what they want."""
        while self.queue.length:
            self.refuse(self.queue.first, 503, "the server is stopping")
        while self.bodies.length:
            self.refuse(self.bodies.first, 503, "the server is stopping")
        while self.heads.length:
            self.drop(self.heads.first)
        self.end_connections()

    def end_connections(self):
        """From now on HTTP connections end with their answers, and those that are between two requests at once."""
        cdef int core, place, fd
        self.board.closing = self.ending = True
        for core in range(self.core_count):
            for place in range(HELD_PER_CORE):
                fd = self.cores[core].held[place]
                if fd >= 0 and self.take_from_core(fd):
                    self.go_on(fd)
        while self.kept.length:
            self.end_kept(self.kept.first)
        self.before_sleeping()

    def cut_relays(self):
        """The server ends: who still waits for the rest of an answer must see that it is missing."""
        while self.relays.length:
            cut(self.relays.first)
            self.drop(self.relays.first)

    def announce_end(self):
        """From now on HTTP connections end with their answers."""
        self.board.closing = True


cdef size_t packet_size(const unsigned char *packet):
    return 4 + (packet[1] | (<size_t>packet[2] << 8))


cdef void close_both(const int *fds):
    if fds[0] >= 0:
        close(fds[0])
    if fds[1] >= 0:
        close(fds[1])


cdef str as_text(const void *value, size_t size):
    return PyBytes_FromStringAndSize(<const char *>value, size).decode("latin-1")


cdef int from_text(str text, void *value, size_t size) except -1:
    cdef bytes plain = text.encode("latin-1")
    memcpy(value, PyBytes_AS_STRING(plain), min(size, <size_t>len(plain)))
    return 0


cdef str variable(const unsigned char *packet, bytes name):
    """A variable of a request that was admitted, escaped for the log; "" when it hasn't got one."""
    cdef const unsigned char *at = packet + 4
    cdef const unsigned char *end = at + (packet[1] | (<size_t>packet[2] << 8))
    cdef size_t key_size, value_size
    while at < end:  # its lengths were checked before it was admitted
        key_size = at[0] | (<size_t>at[1] << 8)
        value_size = at[2 + key_size] | (<size_t>at[3 + key_size] << 8)
        if key_size == <size_t>len(name) and memcmp(at + 2, <const char *>name, key_size) == 0:
            return escaped(<const char *>at + 4 + key_size, min(value_size, 2048))
        at += 4 + key_size + value_size
    return ""


cdef str escaped(const char *text, size_t size):
    """For the log."""
    return PyBytes_FromStringAndSize(text, size).decode("latin-1").encode("unicode_escape").decode("ascii")


cdef void note_arrivals(Arrivals *arrivals, uint64_t now, uint64_t total):
    cdef uint32_t last = (arrivals.count - 1) % 128
    if arrivals.count == 0 or now - arrivals.when[last] >= arrivals.spacing:
        arrivals.when[arrivals.count % 128], arrivals.total[arrivals.count % 128] = now, total
        arrivals.count += 1


cdef int64_t waited(const Arrivals *arrivals, uint64_t now, uint64_t at_least, uint64_t accepted):
    """How many have waited for at least so long, ns: those who had come by then, less those who were accepted since, since
    it is first come, first served."""
    cdef uint32_t back
    cdef uint32_t place
    for back in range(min(arrivals.count, <uint32_t>128)):
        place = (arrivals.count - 1 - back) % 128
        if now - arrivals.when[place] >= at_least:
            return max(0, <int64_t>(arrivals.total[place] - accepted))
    return 0


cdef uint64_t longest_wait(const Arrivals *arrivals, uint64_t now, uint64_t accepted):
    """Since the first of those moments, ns, by which more had come than have been accepted until now."""
    cdef uint32_t number
    for number in range(arrivals.count - min(arrivals.count, <uint32_t>128), arrivals.count):
        if arrivals.total[number % 128] > accepted:
            return now - arrivals.when[number % 128]
    return 0


cdef double share(double part, double whole):
    """From 0 to 1. The two are taken one after the other, and not everything is counted by the same clock."""
    return part / max(part, whole) if part > 0 else 0.0


cdef bint any_bit(uint64_t *bitmap, int cores):
    cdef int word
    for word in range((cores + 63) // 64):
        if load_seq(&bitmap[word]):
            return True
    return False


cdef void clear(Chain *chain):
    chain.first = chain.last = -1
    chain.length = 0
