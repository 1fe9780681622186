"""Open a file beneath a directory, and nothing outside of it, whatever the path says and whatever the links in it mean.

The kernel does it (openat2(2), RESOLVE_BENEATH, Linux 5.6): a check of the path before or after opening it would be one of
another moment.

Runs in: the worker.
"""

import os

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
    """
    struct stat:
        unsigned int st_mode
        int64_t st_size
    int open_beneath_root(const char *root, const char *path, bint links, stat *status)
    int64_t changed_ns(const stat *status)
    ssize_t read_all(int fd, char *to, size_t size)
    bint S_ISREG(unsigned int mode)


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
    cdef char *to
    cdef ssize_t n
    with nogil:  # it may be on a disk
        fd = open_beneath_root(root_text, path_text, links, &status)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), path)
    if S_ISREG(status.st_mode) and status.st_size <= small:
        try:
            content = PyBytes_FromStringAndSize(NULL, status.st_size)
        except MemoryError:
            os.close(fd)
            raise
        to = PyBytes_AS_STRING(content)
        with nogil:
            n = read_all(fd, to, status.st_size)
        if n < 0:
            raise OSError(errno, os.strerror(errno), path)
        if n < status.st_size:  # it became shorter in this moment
            content = content[:n]
        fd = -1
    return fd, status.st_mode, status.st_size if content is None else len(content), changed_ns(&status), content
