"""Open a file beneath a directory, and nothing outside of it, whatever the path says and whatever the links in it mean.

The kernel does it (openat2(2), RESOLVE_BENEATH, Linux 5.6): a check of the path before or after opening it would be one of
another moment.

Runs in: the worker.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    #define OPENAT2 437  /* on every architecture */
    struct how { uint64_t flags, mode, resolve; };
    #define NO_MAGICLINKS 0x02
    #define NO_SYMLINKS   0x04
    #define BENEATH       0x08
    #define TRIES 8      /* something was renamed while the kernel looked */

    static int open_beneath_root(const char *root, const char *path, int links, struct stat *status) {
        struct how how = { .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                           .resolve = BENEATH | NO_MAGICLINKS | (links ? 0 : NO_SYMLINKS) };
        int base = *path ? open(root, O_PATH | O_CLOEXEC) : -1, fd, error;
        if (*path && base < 0) return -1;
        for (int i = 0; i < TRIES; i++) {
            fd = *path ? (int)syscall(OPENAT2, base, path, &how, sizeof how) : open(root, (int)how.flags);
            if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) break;
        }
        error = errno;
        if (base >= 0) close(base);
        if (fd >= 0 && fstat(fd, status) < 0) {
            error = errno;
            close(fd);
            fd = -1;
        }
        errno = error;
        return fd;
    }
    /* And close it. */
    static ssize_t read_all(int fd, char *to, size_t size) {
        size_t done = 0;
        ssize_t n = 1;
        while (done < size && n > 0) {
            n = read(fd, to + done, size - done);
            if (n > 0) done += (size_t)n;
            if (n < 0 && errno == EINTR) n = 1;
        }
        int error = errno;
        close(fd);
        errno = error;
        return n < 0 ? -1 : (ssize_t)done;
    }
    static int64_t changed_ns(const struct stat *status) {
        return (int64_t)status->st_mtim.tv_sec * 1000000000 + status->st_mtim.tv_nsec;
    }
    /* Whether nobody has written, or changed the permissions, in between. */
    static int is_same(const struct stat *a, const struct stat *b) {
        return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size
            && a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec
            && a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
    }
    /* The kernel's clock for this may stand still for 10 ms: who writes twice in between can't be told apart. */
    static int is_settled(const struct stat *status) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        return now.tv_sec - status->st_ctim.tv_sec >= 2;
    }
    """
    struct stat:
        unsigned int st_mode
        int64_t st_size
    int open_beneath_root(const char *root, const char *path, bint links, stat *status)
    int64_t changed_ns(const stat *status)
    bint is_same(const stat *a, const stat *b)
    bint is_settled(const stat *status)
    int look_at "stat"(const char *path, stat *status)
    ssize_t read_all(int fd, char *to, size_t size)
    bint S_ISREG(unsigned int mode)


cdef bytes read_file(int fd, int64_t size):
    """So many bytes of it, or fewer if it became shorter in this moment; and close it."""
    cdef bytes content
    cdef char *to
    cdef ssize_t n
    try:
        content = PyBytes_FromStringAndSize(NULL, size)
    except MemoryError:
        os.close(fd)
        raise
    to = PyBytes_AS_STRING(content)
    with nogil:
        n = read_all(fd, to, size)
    if n < 0:
        raise OSError(errno, os.strerror(errno))
    return content if n == size else content[:n]


def open_beneath(bytes root not None, bytes path not None, int64_t small, bint links=True):
    """Open for reading: (descriptor, mode, bytes, time of the last change in ns, content). A regular file of up to `small`
    bytes (-1: none) is read at once, and then the descriptor is -1; otherwise the content is None.

    path: relative to `root`, without a NUL; empty for `root` itself. links: whether symbolic links beneath the root may lead
    to other places beneath it. Raises OSError: EXDEV for a path that leads outside, ELOOP for a link where none may be,
    ENOSYS or EPERM where the kernel, or a container's seccomp filter, hasn't got openat2.
    """
    cdef stat status
    cdef int fd
    cdef const char *root_text = root
    cdef const char *path_text = path
    cdef bytes content = None
    with nogil:  # it may be on a disk
        fd = open_beneath_root(root_text, path_text, links, &status)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), path)
    if S_ISREG(status.st_mode) and status.st_size <= small:
        content = read_file(fd, status.st_size)
        fd = -1
    return fd, status.st_mode, status.st_size if content is None else len(content), changed_ns(&status), content


@cython.final
cdef class Entry:
    cdef bytes root, path
    cdef int64_t size, changed
    cdef list headers
    cdef bytes content, whole_path  # None: it isn't kept
    cdef stat status                # when it was read


@cython.final
cdef class Usual:
    """Files that were asked for before, by the path of the request: how they are found, and what is said of them. Each is
    opened anew and must be the same file (size, time of the last change), so this saves half of the work, and decides
    nothing.

    What a small file holds is kept as well. It is the answer again as long as the path leads to the very same file,
    untouched (inode, size, times of the last change of content and of permissions): that file was found beneath the root
    and readable, whatever links lead to it now. (Who writes to a file through a memory map may leave its times as they are,
    and NFS tells of changes some seconds late.)

    small: bytes up to which a file is read at once, keeps: up to which its content is kept; most: how many are remembered,
    most_kept: bytes of contents."""

    cdef dict entries
    cdef int64_t small, keeps, most_kept
    cdef Py_ssize_t most
    cdef readonly int64_t kept  # bytes, now

    def __init__(self, int64_t small, int64_t keeps, Py_ssize_t most, int64_t most_kept):
        self.entries, self.small, self.keeps, self.most, self.most_kept = {}, small, keeps, most, most_kept
        self.kept = 0

    cdef int forget(self, str path) except -1:
        cdef Entry entry = <Entry>self.entries.pop(path, None)
        if entry is not None and entry.content is not None:
            self.kept -= len(entry.content)
        return 0

    cdef int keep(self, str path, Entry entry, bytes content, const stat *status) except -1:
        cdef bytes whole_path = os.path.join(entry.root, entry.path)
        if entry.content is not None or self.entries.get(path) is not entry:
            return 0  # another thread was here, too
        if self.kept + len(content) > self.most_kept:
            self.entries.clear()
            self.kept = 0
            return 0
        entry.content, entry.whole_path, entry.status = content, whole_path, status[0]
        self.kept += len(content)
        return 0

    def remember(self, str path not None, bytes root not None, bytes rest not None, int64_t size, int64_t changed,
                 list headers not None):
        """The answer to GET, without conditions: with these headers, Content-Length among them."""
        cdef Entry entry = Entry()
        self.forget(path)
        if len(self.entries) >= self.most:
            self.entries.clear()
            self.kept = 0
        entry.root, entry.path, entry.size, entry.changed, entry.headers = root, rest, size, changed, headers
        self.entries[path] = entry

    def answer(self, str path not None, dict environ not None, start_response):
        """The content; or the open descriptor of a file that isn't small, and its bytes. None: as if it wasn't known."""
        cdef Entry entry = <Entry>self.entries.get(path)
        cdef stat status
        cdef int fd
        cdef const char *root
        cdef const char *rest
        cdef const char *whole
        cdef bytes content, whole_path  # ours while other threads run
        if (entry is None or environ["REQUEST_METHOD"] != "GET" or "HTTP_RANGE" in environ
                or "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MODIFIED_SINCE" in environ):
            return None
        root, rest = entry.root, entry.path
        if entry.content is not None:
            whole_path, content = entry.whole_path, entry.content
            whole = whole_path
            with nogil:
                fd = look_at(whole, &status)
            if fd == 0 and is_same(&status, &entry.status):
                start_response("200 OK", entry.headers)
                return content
            self.forget(path)
            return None
        with nogil:
            fd = open_beneath_root(root, rest, True, &status)
        if fd < 0:
            self.forget(path)
            return None
        if (not S_ISREG(status.st_mode) or status.st_size != entry.size or changed_ns(&status) != entry.changed):
            os.close(fd)
            self.forget(path)
            return None
        if entry.size > self.small:
            try:
                start_response("200 OK", entry.headers)
            except BaseException:
                os.close(fd)
                raise
            return fd, entry.size
        content = read_file(fd, entry.size)
        if len(content) != entry.size:
            return None
        if entry.size <= self.keeps and is_settled(&status):
            self.keep(path, entry, content, &status)
        start_response("200 OK", entry.headers)
        return content
