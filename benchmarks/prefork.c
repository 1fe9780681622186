/*
 * The floor: the least that a preforking server can do for a request.
 *
 *     prefork SOCKET WORKERS [hello|cpu|sleep|mix]
 *
 * Each worker blocks in accept, reads one uwsgi packet, writes an answer that never changes, and closes. No
 * variables are parsed, no Python runs, nothing is counted. What it costs is what the kernel takes for
 * connections and wake-ups; only who wakes fewer workers up can be cheaper on the same machine.
 * The answer is as long as that of apps/hello.py.
 *
 * The modes other than hello do what the app of that name in apps/ does before it answers: cpu burns 2 ms of
 * CPU time, sleep sleeps for 10 ms, mix sleeps for 1 s when the path is /slow.
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
#include <time.h>
#include <unistd.h>

enum { BODY_SIZE = 1024, MAX_WORKERS = 1024, MAX_PACKET = 4 + 65535 };

enum mode { HELLO, CPU, SLEEP, MIX, MODES };

static const char *const mode_names[MODES] = {"hello", "cpu", "sleep", "mix"};
static const long MS = 1000 * 1000; /* in ns, like everything here */

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

static unsigned char packet[MAX_PACKET];

/* Reads one packet, however it is cut into pieces. Returns its size, or 0 when the client left too early. */
static size_t read_packet(int fd)
{
    size_t known = 0, wanted = 4;
    while (known < wanted) {
        ssize_t count = read(fd, packet + known, sizeof packet - known);
        if (count <= 0)
            return 0;
        known += (size_t)count;
        if (known >= 4)
            wanted = 4 + ((size_t)packet[1] | (size_t)packet[2] << 8);
    }
    return wanted;
}

/* Asking the clock is a system call, so most of this is system time. */
static void burn(long ns)
{
    struct timespec begin, now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while ((now.tv_sec - begin.tv_sec) * 1000 * MS + now.tv_nsec - begin.tv_nsec < ns);
}

static void sleep_for(long ns)
{
    struct timespec left = {.tv_sec = ns / (1000 * MS), .tv_nsec = ns % (1000 * MS)};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

/*
 * Looks for the encoded pair anywhere in the packet instead of parsing the variables: 9, "PATH_INFO", 5,
 * "/slow", the lengths as two bytes each. A value with the same bytes inside would do as well; load sends none.
 */
static int is_slow(size_t length)
{
    static const char pair[] = "\x09\0PATH_INFO\x05\0/slow";
    return memmem(packet, length, pair, sizeof pair - 1) != NULL;
}

static void work(enum mode mode, size_t length)
{
    if (mode == CPU)
        burn(2 * MS);
    else if (mode == SLEEP)
        sleep_for(10 * MS);
    else if (mode == MIX && is_slow(length))
        sleep_for(1000 * MS);
}

static void serve(int listener, enum mode mode)
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
        size_t length = read_packet(fd);
        if (length > 0) {
            work(mode, length);
            if (send(fd, answer, sizeof answer, MSG_NOSIGNAL) < 0)
                perror("send");
        }
        close(fd);
    }
}

static enum mode find_mode(const char *name)
{
    enum mode mode = HELLO;
    while (mode < MODES && strcmp(name, mode_names[mode]) != 0)
        mode++;
    return mode;
}

int main(int argc, char **argv)
{
    pid_t parent = getpid(), workers[MAX_WORKERS];
    long count = argc == 3 || argc == 4 ? strtol(argv[2], NULL, 10) : 0;
    enum mode mode = argc == 4 ? find_mode(argv[3]) : HELLO;
    if (count < 1 || count > MAX_WORKERS || mode == MODES) {
        fputs("usage: prefork SOCKET WORKERS [hello|cpu|sleep|mix]\n", stderr);
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
            serve(listener, mode);
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
