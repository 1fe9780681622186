# What the kernel says about connections that nobody has accepted yet, and about the time that a thread takes.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <linux/netlink.h>
    #include <linux/sock_diag.h>
    #include <linux/unix_diag.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <poll.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <unistd.h>

    /* For unix_backlog; -1 if there is no such thing (SELinux, a kernel without it). */
    static int open_sock_diag(void) { return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG); }

    static uint32_t inode_of(int fd) {
        struct stat status;
        return fstat(fd, &status) < 0 ? 0 : (uint32_t)status.st_ino;
    }

    /* Connections that wait in a unix listening socket's backlog, and how many may. Those whose client has left count, too.
       -1: unknown. Source: sock_diag(7). 2.5 us. */
    static int unix_backlog(int netlink, uint32_t inode, uint32_t *most) {
        struct { struct nlmsghdr head; struct unix_diag_req ask; } question = {
            .head = { .nlmsg_len = sizeof question, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST },
            .ask = { .sdiag_family = AF_UNIX, .udiag_states = (uint32_t)-1, .udiag_ino = inode,
                     .udiag_show = UDIAG_SHOW_RQLEN, .udiag_cookie = { (uint32_t)-1, (uint32_t)-1 } },
        };
        char answer[512] __attribute__((aligned(8)));
        if (netlink < 0 || send(netlink, &question, sizeof question, MSG_DONTWAIT) < 0) return -1;
        ssize_t n = recv(netlink, answer, sizeof answer, MSG_DONTWAIT);
        struct nlmsghdr *head = (struct nlmsghdr *)answer;
        if (n < (ssize_t)NLMSG_LENGTH(sizeof(struct unix_diag_msg)) || head->nlmsg_type != SOCK_DIAG_BY_FAMILY) return -1;
        char *at = answer + NLMSG_LENGTH(sizeof(struct unix_diag_msg)), *end = answer + n;
        while (end - at >= 4) {
            uint16_t size, kind;
            memcpy(&size, at, 2);
            memcpy(&kind, at + 2, 2);
            if (size < 4 || size > end - at) break;
            if (kind == UNIX_DIAG_RQLEN && size >= 12) {
                uint32_t waiting;
                memcpy(&waiting, at + 4, 4);
                memcpy(most, at + 8, 4);
                return (int)waiting;
            }
            at += (size + 3) & ~3;
        }
        return -1;
    }

    /* The same for TCP: tcp(7), TCP_INFO of a listening socket. 0.4 us. */
    static int tcp_backlog(int fd, uint32_t *most) {
        struct tcp_info info;
        socklen_t size = sizeof info;
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0) return -1;
        *most = info.tcpi_sacked;
        return (int)info.tcpi_unacked;
    }

    /* Whether a unix client has closed, or a TCP client of uwsgi closed or half-closed. */
    static int client_left(int fd, int tcp_uwsgi) {
        struct pollfd p = { fd, POLLRDHUP, 0 };
        if (poll(&p, 1, 0) <= 0) return 0;
        return (p.revents & (POLLHUP | POLLERR | (tcp_uwsgi ? POLLRDHUP : 0))) != 0;
    }

    /* What the client hasn't taken yet. On a unix socket the kernel counts whole pieces. */
    static int64_t untaken_bytes(int fd) {
        int n = 0;
        return ioctl(fd, TIOCOUTQ, &n) == 0 ? n : -1;
    }

    static int open_schedstat(uint32_t tid) {
        char path[40];
        snprintf(path, sizeof path, "/proc/%u/schedstat", tid);
        return open(path, O_RDONLY | O_CLOEXEC);
    }
    /* Nanoseconds that a thread has run, and that it could have run but had no CPU. 0: unknown. Source: the kernel's
       sched-stats documentation. 1.5 us. */
    static int read_schedstat(int fd, uint64_t *ran, uint64_t *waited) {
        char text[64];
        ssize_t n = pread(fd, text, sizeof text - 1, 0);
        if (n <= 0) return 0;
        text[n] = 0;
        char *rest;
        *ran = strtoull(text, &rest, 10);
        *waited = strtoull(rest, NULL, 10);
        return *ran > 0;
    }
    """
    int open_sock_diag()
    uint32_t inode_of(int fd)
    int unix_backlog(int netlink, uint32_t inode, uint32_t *most)
    int tcp_backlog(int fd, uint32_t *most)
    bint client_left(int fd, int tcp_uwsgi)
    int64_t untaken_bytes(int fd)
    int open_schedstat(uint32_t tid)
    bint read_schedstat(int fd, uint64_t *ran, uint64_t *waited)
