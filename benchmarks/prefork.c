/*
 * The floor: the least that a preforking server can do for a request.
 *
 *     prefork SOCKET WORKERS
 *
 * Each worker blocks in accept, reads one uwsgi packet, writes an answer that never changes, and closes. No
 * variables are parsed, no Python runs, nothing is counted. What it costs is what the kernel takes for
 * connections and wake-ups, and no server that forks workers can be cheaper on the same machine.
 * The answer is as long as that of apps/hello.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BODY_SIZE = 1024, MAX_WORKERS = 1024, MAX_PACKET = 4 + 65535 };

static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n";

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        fail("socket");
    strcpy(address.sun_path, path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4096) < 0)
        fail(path);
    return fd;
}

/* Reads one packet, however it is cut into pieces. Returns 0 when the client left before its end. */
static int read_packet(int fd)
{
    static unsigned char packet[MAX_PACKET];
    size_t known = 0, wanted = 4;
    while (known < wanted) {
        ssize_t count = read(fd, packet + known, sizeof packet - known);
        if (count <= 0)
            return 0;
        known += (size_t)count;
        if (known >= 4)
            wanted = 4 + ((size_t)packet[1] | (size_t)packet[2] << 8);
    }
    return 1;
}

static void serve(int listener)
{
    char answer[sizeof head - 1 + BODY_SIZE];
    memcpy(answer, head, sizeof head - 1);
    memset(answer + sizeof head - 1, 'x', BODY_SIZE);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0 && errno != EINTR && errno != ECONNABORTED)
            fail("accept");
        if (fd < 0)
            continue;
        if (read_packet(fd) && send(fd, answer, sizeof answer, MSG_NOSIGNAL) < 0)
            perror("send");
        close(fd);
    }
}

int main(int argc, char **argv)
{
    pid_t parent = getpid(), workers[MAX_WORKERS];
    long count = argc == 3 ? strtol(argv[2], NULL, 10) : 0;
    if (count < 1 || count > MAX_WORKERS) {
        fputs("usage: prefork SOCKET WORKERS\n", stderr);
        return 2;
    }
    /* Before the forks, so that a signal that comes early is still there for sigwait. */
    sigset_t ends, before;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, &before);
    int listener = listen_at(argv[1]), caught;
    for (long i = 0; i < count; i++) {
        workers[i] = fork();
        if (workers[i] < 0)
            fail("fork");
        if (workers[i] == 0) {
            sigprocmask(SIG_SETMASK, &before, NULL);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(0);
            serve(listener);
        }
    }
    sigwait(&ends, &caught);
    for (long i = 0; i < count; i++)
        kill(workers[i], SIGKILL);
    for (long i = 0; i < count; i++)
        waitpid(workers[i], NULL, 0);
    unlink(argv[1]);
    return 0;
}
