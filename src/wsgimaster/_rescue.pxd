# What a worker's signal handlers do for a request that can't be ended from inside.
#
# Theory of operation
#
# A core that hangs in a system call, in a loop or in C code with the GIL held runs no Python, but it still takes signals.
# So the last word is spoken by handlers in C, on the stack of the stuck thread, with a record per core thread that they
# reach without a lock or an allocation: which client, which request, how far.
#
#     SIGNAL_STUCK   from the master, with tgkill, to the core's thread: if the record's request is the one that the
#                    master has condemned, answer 504 if nothing was sent yet, then write this thread's traceback
#     SIGNAL_DUMP    the tracebacks of all threads; comes last, since walking the stacks of running threads can crash
#                    CPython 3.11 (cpython issue 116008)
#     SEGV, BUS, FPE, ILL, ABRT   answer 502 if nothing was sent yet, write the traceback, and die of the same signal
#
# The tracebacks are faulthandler's, whose handlers lie beneath ours: installed first, called by ours. They go to a pipe
# of their own, whose end here is non-blocking: a handler never waits for a reader.
#
# Races. The record belongs to its thread and so do the handlers that read it, so "during" is always "between two
# instructions of": fd is set last and cleared first, before the descriptor is closed and its number can be another's.
# `sent` in the slot is set before the first byte, so what the handler finds unset nobody has begun to answer. A request
# that ends while the signal travels isn't the condemned one any more, and the handler does nothing. A child that the
# application forks inherits record and handlers, but it isn't `pid`.
#
# Everything here is async-signal-safe (signal-safety(7)). The thread-local record is initial-exec: no lazy allocation in
# a handler.

from libc.stdint cimport uint64_t

from wsgimaster._layout cimport Slot

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <sys/mman.h>

    typedef struct {
        Slot *slot;                  /* NULL in threads that are no core */
        pid_t pid;
        volatile int fd;             /* the client's; -1: no request, or nothing to be done for it any more */
        volatile int bodyless;       /* a HEAD */
        volatile uint64_t seq, id;
    } Rescue;
    static __thread Rescue rescue __attribute__((tls_model("initial-exec"))) = { .fd = -1 };

    static void rescue_take(int fd, uint64_t seq, uint64_t id) {
        rescue.seq = seq; rescue.id = id; rescue.bodyless = 0; rescue.fd = fd;
    }
    static void rescue_method(int bodyless) { rescue.bodyless = bodyless; }
    static void rescue_release(void) { rescue.fd = -1; }
    static int rescue_running(uint64_t seq) { return rescue.fd >= 0 && rescue.seq == seq; }

    static void end_answer(int status, const char *reason) {
        Rescue *r = &rescue;
        if (load_acquire(&r->slot->sent) < r->seq) {
            char text[ANSWER_BYTES];
            size_t size = write_answer(text, status, reason, r->id, r->bodyless);
            store_release(&r->slot->sent, r->seq);
            send(r->fd, text, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        } else if (r->slot->outcome != OUTCOME_COMPLETE) {
            cut(r->fd);
            return;
        }
        shutdown(r->fd, SHUT_WR);
        store_release(&r->slot->answered, r->seq);
    }

    static void call_older(const struct sigaction *older, int number, siginfo_t *info, void *context) {
        if (older->sa_flags & SA_SIGINFO) older->sa_sigaction(number, info, context);
        else if (older->sa_handler != SIG_DFL && older->sa_handler != SIG_IGN) older->sa_handler(number);
    }

    /* One traceback at a time, each after a line with its request's id, or 0: several threads may be stuck at once. Who
       can't have his turn within a tenth of a second writes all the same. */
    static int tracebacks = -1;
    static int dumping = 0;
    static int dump_begins(uint64_t id) {
        char name[18] = { 2 };
        *put_id(name + 1, id) = '\\n';
        int mine = 0;
        for (int i = 0; i < 200 && !(mine = !__atomic_exchange_n(&dumping, 1, __ATOMIC_ACQUIRE)); i++) {
            struct timespec pause = { 0, 500000 };
            nanosleep(&pause, NULL);
        }
        ssize_t ignored = write(tracebacks, name, sizeof name);
        (void)ignored;
        return mine;
    }
    static void dump_ends(int mine) { if (mine) __atomic_store_n(&dumping, 0, __ATOMIC_RELEASE); }

    static struct sigaction older_stuck, older_dump, older_crash[5];
    static const int crashes[5] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT };

    static void on_stuck(int number, siginfo_t *info, void *context) {
        int error = errno;
        Rescue *r = &rescue;
        if (r->slot && r->fd >= 0 && load_acquire(&r->slot->condemned) == r->seq && getpid() == r->pid) {
            end_answer(504, "Gateway Timeout");
            r->fd = -1;  /* if the traceback crashes, there is nothing left to answer */
            int mine = dump_begins(r->id);
            call_older(&older_stuck, number, info, context);
            dump_ends(mine);
            add_u64(&r->slot->dumps, 1);
        }
        errno = error;
    }

    static void on_dump(int number, siginfo_t *info, void *context) {
        int error = errno;
        int mine = dump_begins(0);
        call_older(&older_dump, number, info, context);
        dump_ends(mine);
        if (rescue.slot) add_u64(&rescue.slot->dumps, 1);
        errno = error;
    }

    static void on_crash(int number, siginfo_t *info, void *context) {
        Rescue *r = &rescue;
        if (r->slot && r->fd >= 0 && getpid() == r->pid) {
            end_answer(502, "Bad Gateway");
            r->fd = -1;
        }
        for (int i = 0; i < 5; i++)
            if (crashes[i] == number) call_older(&older_crash[i], number, info, context);
        signal(number, SIG_DFL);
        raise(number);
    }

    static int over(int number, void (*handler)(int, siginfo_t *, void *), int flags, struct sigaction *older) {
        struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK | flags };
        action.sa_sigaction = handler;
        return sigaction(number, &action, older);
    }

    /* Once per process, after faulthandler has installed its own. */
    static int forked_off = 0;  /* this is a child that the application has forked, not the worker */
    static void note_fork(void) { forked_off = 1; }

    static int rescue_install(int pipe) {
        tracebacks = pipe;
        pthread_atfork(NULL, NULL, note_fork);
        int failed = over(SIGNAL_STUCK, on_stuck, SA_RESTART, &older_stuck)
                   | over(SIGNAL_DUMP, on_dump, SA_RESTART, &older_dump);
        for (int i = 0; i < 5; i++) failed |= over(crashes[i], on_crash, SA_NODEFER, &older_crash[i]);
        return failed;
    }

    /* Once per core thread. A stack of its own, so that the handlers run after a stack overflow, too; never unmapped. */
    #define RESCUE_STACK_BYTES 65536
    static void rescue_thread(Slot *slot) {
        stack_t stack = { .ss_size = RESCUE_STACK_BYTES };
        stack.ss_sp = mmap(NULL, RESCUE_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack.ss_sp != MAP_FAILED) sigaltstack(&stack, NULL);
        sigset_t ours;  /* an application may have blocked all signals before it started its threads, or us */
        sigemptyset(&ours);
        sigaddset(&ours, SIGNAL_STUCK);
        sigaddset(&ours, SIGNAL_DUMP);
        pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
        rescue.pid = getpid();
        rescue.slot = slot;
    }
    """
    void rescue_take(int fd, uint64_t seq, uint64_t id)
    void rescue_method(int bodyless)
    void rescue_release()
    int forked_off
    bint rescue_running(uint64_t seq)
    int rescue_install(int pipe)
    void rescue_thread(Slot *slot)
