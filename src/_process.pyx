"""What Python can't ask the kernel for: forking a sibling, parent-death signals, programs in sessions of their own, a
deadline for the exit, process titles.

Forking a sibling. A worker must be the master's own child, so that the master sees its true exit status, and it must be
forked by the zygote, where the application is. Two ways:

- A zygote with one thread uses clone(CLONE_PARENT): one fork, and the child's parent is ours from its first
  instruction (1.4 ms at 100 MB). The C library's fork() isn't involved, so what it does for the calling thread
  is done here: the cached thread id is rewritten by the kernel (CLONE_CHILD_SETTID at the address that the C library
  itself registered) and the list of robust mutexes is registered again.
- A zygote with more threads (an application that started some at import) needs the C library's fork(), which takes
  malloc's locks first; the child forks again and ends, and the grandchild falls to the master, which is the
  subreaper (prctl PR_SET_CHILD_SUBREAPER).

Python's own fork hooks (os.register_at_fork, the interpreter's) run exactly once either way.

A deadline for the exit. What holds a worker up at its end may hold the interpreter's lock as well, so the end can't be
left to Python: a timer of the kernel's sends a real-time signal, whose handler does only what a handler may do.
"""

import os

from cpython.mem cimport PyMem_Free, PyMem_Malloc

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <grp.h>
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef PR_GET_TID_ADDRESS
    #define PR_GET_TID_ADDRESS 40
    #endif

    static pid_t raw_fork(unsigned long flags) {
        void *tid_address = NULL, *robust = NULL;
        size_t robust_size = 0;
        if (prctl(PR_GET_TID_ADDRESS, &tid_address) == 0 && tid_address)
            flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
        syscall(SYS_get_robust_list, 0, &robust, &robust_size);
    #if defined(__x86_64__)
        pid_t pid = (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, tid_address, NULL);
    #else
        pid_t pid = (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, tid_address);
    #endif
        if (pid == 0 && robust) syscall(SYS_set_robust_list, robust, robust_size);
        return pid;
    }

    static pid_t fork_sibling_alone(void) { return raw_fork(CLONE_PARENT); }

    /* The grandchild's pid, 0 in it, -1 with errno. It waits until it is its grandparent's parent's child: before, it
       would take its master for dead. */
    static pid_t fork_sibling_threaded(void) {
        int ends[2], status;
        pid_t pid = -1;
        if (pipe2(ends, 02000000 /* O_CLOEXEC */) < 0) return -1;
        pid_t middle = fork();
        if (middle == 0) {
            pid_t here = getpid();
            struct timespec moment = {0, 50000};
            pid = raw_fork(0);
            if (pid == 0) {
                close(ends[0]);
                close(ends[1]);
                while (getppid() == here) nanosleep(&moment, NULL);
                return 0;
            }
            if (pid < 0) pid = -errno;
            ssize_t ignored = write(ends[1], &pid, sizeof pid);
            (void)ignored;
            _exit(0);
        }
        close(ends[1]);
        if (middle > 0) {
            ssize_t n;
            do n = read(ends[0], &pid, sizeof pid); while (n < 0 && errno == EINTR);
            if (n != sizeof pid) pid = -EAGAIN;
            while (waitpid(middle, &status, 0) < 0 && errno == EINTR) {}
            if (pid < 0) { errno = -pid; pid = -1; }
        }
        close(ends[0]);
        return pid;
    }

    /* A program in a session of its own; its pid, or -1 with errno. We have threads, so that between fork and exec only
       system calls are made, nothing that takes a lock. Exit codes of a child that doesn't get so far: 126, it can't
       become that user or enter that directory; 127, the program can't be executed. */
    static pid_t spawn_session(const char *program, char *const arguments[], char *const environment[],
                               const char *directory, int null, int output, int64_t uid, int64_t gid,
                               const struct rlimit *descriptors, int death_signal) {
        pid_t parent = getpid(), pid = fork();
        if (pid) return pid;
        sigset_t none;
        gid_t group = (gid_t)gid;
        sigemptyset(&none);
        for (int number = 1; number <= SIGRTMAX; number++) signal(number, SIG_DFL);  /* Python ignores some */
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        dup2(null, 0);
        dup2(output, 1);
        dup2(output, 2);
        setrlimit(RLIMIT_NOFILE, descriptors);
        if (gid >= 0 && geteuid() == 0 && setgroups(1, &group) < 0) _exit(126);
        if (gid >= 0 && setgid(group) < 0) _exit(126);
        if (uid >= 0 && setuid((uid_t)uid) < 0) _exit(126);
        if (directory && chdir(directory) < 0) _exit(126);
        if (death_signal) {  /* not before setuid, which forgets it */
            prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0);
            if (getppid() != parent) _exit(0);
        }
        execve(program, arguments, environment);
        _exit(127);
    }

    #define DEADLINE_SIGNAL (SIGRTMIN + 9)

    static struct deadline { char text[256]; size_t size; int status; } deadline;

    static void on_deadline(int number) {
        struct pollfd log = {2, POLLOUT, 0};
        /* A pipe that nobody reads must not hold up what is to end: one that is writable takes a line at once. */
        if (poll(&log, 1, 0) == 1 && (log.revents & POLLOUT) && !(log.revents & POLLERR)) {
            ssize_t ignored = write(2, deadline.text, deadline.size);
            (void)ignored;
        }
        _exit(deadline.status);
    }

    /* 0, or -1 with errno. */
    static int start_deadline(int64_t nanoseconds) {
        struct sigaction action = {0};
        struct sigevent event = {0};
        struct itimerspec once = {0};
        sigset_t only;
        timer_t timer;
        action.sa_handler = on_deadline;
        sigfillset(&action.sa_mask);
        event.sigev_notify = SIGEV_SIGNAL;
        event.sigev_signo = DEADLINE_SIGNAL;
        once.it_value.tv_sec = nanoseconds / 1000000000;
        once.it_value.tv_nsec = nanoseconds % 1000000000;
        if (sigaction(DEADLINE_SIGNAL, &action, NULL) < 0) return -1;
        sigemptyset(&only);
        sigaddset(&only, DEADLINE_SIGNAL);
        pthread_sigmask(SIG_UNBLOCK, &only, NULL); /* the application may have blocked all signals */
        if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0) return -1;
        return timer_settime(timer, 0, &once, NULL);
    }
    """
    struct Deadline "deadline":
        char text[256]
        size_t size
        int status
    Deadline deadline
    int start_deadline(long long nanoseconds)
    int fork_sibling_alone()
    int fork_sibling_threaded()
    struct rlimit:
        unsigned long rlim_cur, rlim_max
    int spawn_session(const char *program, char **arguments, char **environment, const char *directory, int null,
                      int output, long long uid, long long gid, const rlimit *descriptors, int death_signal)
    int prctl(int option, unsigned long value, unsigned long a, unsigned long b, unsigned long c)
    void *memset(void *to, int value, size_t size)
    void *memcpy(void *to, const void *source, size_t size)
    int errno
    enum:
        PR_SET_PDEATHSIG
        PR_SET_CHILD_SUBREAPER
        PR_SET_NO_NEW_PRIVS
        PR_SET_DUMPABLE

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()


def fork_sibling():
    """Fork a process whose parent is our parent. Returns its pid, 0 in the child; raises OSError."""
    cdef int pid, error
    threads = len(os.listdir("/proc/self/task"))
    PyOS_BeforeFork()
    pid = fork_sibling_alone() if threads == 1 else fork_sibling_threaded()
    error = errno
    if pid == 0:
        PyOS_AfterFork_Child()
    else:
        PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


def spawn(bytes program, list arguments, list environment, *, bytes directory, int null, int output, long long uid,
          long long gid, tuple descriptors, int death_signal):
    """Start a program in a session of its own; returns its pid. Raises OSError if no process can be made.

    program: a path; arguments, environment: bytes; directory: None for ours; null, output: descriptors for its input and
    for its output; uid, gid: -1 for ours; descriptors: (soft, hard) limit; death_signal: what it gets when we end, 0 for
    nothing.
    """
    cdef rlimit limit
    limit.rlim_cur, limit.rlim_max = descriptors
    cdef char **words = <char **>PyMem_Malloc((len(arguments) + len(environment) + 2) * sizeof(char *))
    cdef char **variables = words + len(arguments) + 1
    cdef int i, pid, error
    if words == NULL:
        raise MemoryError
    try:
        for i in range(len(arguments)):
            words[i] = <bytes>arguments[i]
        for i in range(len(environment)):
            variables[i] = <bytes>environment[i]
        words[len(arguments)] = variables[len(environment)] = NULL
        pid = spawn_session(program, words, variables, NULL if directory is None else <char *>directory, null, output, uid,
                            gid, &limit, death_signal)
        error = errno
    finally:
        PyMem_Free(words)
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


cdef int set_prctl(int option, unsigned long value, str name) except -1:
    if prctl(option, value, 0, 0, 0) < 0:
        raise OSError(errno, f"prctl {name}: {os.strerror(errno)}")
    return 0


def die_with_parent(int signal, int parent):
    """Have the kernel send us `signal` when our parent ends; exit at once if it isn't `parent` any more."""
    set_prctl(PR_SET_PDEATHSIG, signal, "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(0)


def become_subreaper():
    """Orphans among our descendants become our children."""
    set_prctl(PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")


def forbid_new_privileges():
    """No exec can give us or our descendants more rights than we have (set-user-id programs included)."""
    set_prctl(PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def hide(bint hidden=True):
    """From now on nobody without root's rights may look into this process, its memory and descriptors (prctl
    PR_SET_DUMPABLE), or, if not hidden, who runs as the same user may; exec undoes it."""
    set_prctl(PR_SET_DUMPABLE, 0 if hidden else 1, "PR_SET_DUMPABLE")


def exit_within(double seconds, int status, str line):
    """End this process with `status` after so many seconds, whatever it does then; `line` goes to fd 2 before.

    Raises OSError if the kernel has no timer for us; then nothing is changed.
    """
    cdef bytes text = line.encode("utf-8", "backslashreplace")[:255] + b"\n"
    memcpy(deadline.text, <const char *>text, len(text))
    deadline.size, deadline.status = len(text), status
    if start_deadline(<long long>(seconds * 1e9)) < 0:
        raise OSError(errno, f"timer_create: {os.strerror(errno)}")


def set_title(str title):
    """Show `title` in ps, by writing over the memory of the command line; cut to the room that is there."""
    cdef bytes text = os.fsencode(title)
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    cdef size_t start = int(fields[45]), end = int(fields[46])  # arg_start and arg_end: proc(5), fields 48 and 49
    cdef size_t room = end - start
    if not start or room < 2:
        return
    memset(<void *>start, 0, room)
    memcpy(<void *>start, <const char *>text, min(<size_t>len(text), room - 1))
