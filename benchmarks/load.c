/*
 * A closed-loop load generator that speaks the uwsgi protocol.
 *
 *     load [options] ADDRESS        ADDRESS: a unix socket's path, or 127.x.x.x:PORT
 *
 * N clients, each doing one thing over and over: connect, send one packet, read the answer to its end, close.
 * One thread and one epoll descriptor, because the generator shares the cores with the server that it measures:
 * a request costs it seven system calls. The result is one JSON object on standard output.
 *
 * "Closed loop" means that a client waits for its answer before it asks again. A slow server therefore gets
 * fewer requests, and latency says how long a client waited under exactly N outstanding requests, no more.
 *
 * A request's way through this file: begin_request -> send_request -> on_event -> take_answer -> end_request.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CLIENTS = 4096,
    MAX_SECONDS = 3600,
    MAX_BODY = 64 << 20,
    MAX_PACKET = 4 + 65535,
    HEAD_SIZE = 8192,     /* an answer's head that is longer than this counts as an error */
    READ_SIZE = 64 << 10,
    SUB_BUCKETS = 128,    /* histogram buckets per power of two: a percentile is within 0.8 % */
    SUB_BITS = 7,
};

static const uint64_t MS = 1000 * 1000;
static const uint64_t SECOND = 1000 * 1000 * 1000;

struct client {
    int fd;               /* -1 while it waits to connect (again), or is done */
    bool active;          /* a request is begun and not ended */
    bool measured;        /* begun after the warm-up */
    uint64_t begun;       /* first attempt to connect: time in a full backlog counts as latency */
    uint64_t retry_at;    /* when fd is -1 and active */
    size_t sent;
    size_t received;      /* bytes of the whole answer */
    size_t head_length;   /* 0 until the blank line was seen */
    long content_length;  /* -1: the answer didn't say */
    int status;
    char *head;           /* only used when the head doesn't come in one piece */
};

static struct {
    int clients;
    double warmup, duration, timeout;
    uint64_t count;
    long body, expect;
} options = {.clients = 32, .duration = 5, .timeout = 10, .expect = -1};

static struct {
    uint64_t requests, ok, other_status, errors, short_answers, timeouts, connect_retries, warmup_requests;
    uint64_t latency_sum, latency_max;
    uint64_t buckets[(64 - SUB_BITS + 1) * SUB_BUCKETS];
} results;

static struct sockaddr_storage address;
static socklen_t address_length;
static struct client *clients;
static char *message;         /* header, variables and body: what every client sends */
static size_t message_length;
static int epoll_fd;
static uint64_t started;      /* requests begun after the warm-up, for --count */
static uint64_t measure_from, stop_at, last_end;
static int active_clients, waiting_clients;

static void begin_request(struct client *c, uint64_t now);

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* ---- latency histogram: linear inside each power of two ------------------------------------------- */

static unsigned bucket_of(uint64_t ns)
{
    if (ns < SUB_BUCKETS)
        return (unsigned)ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - SUB_BITS;
    return (shift + 1) * SUB_BUCKETS + (unsigned)(ns >> shift) - SUB_BUCKETS;
}

static double bucket_middle(unsigned bucket)
{
    if (bucket < SUB_BUCKETS)
        return bucket;
    unsigned shift = bucket / SUB_BUCKETS - 1;
    uint64_t low = (uint64_t)(bucket % SUB_BUCKETS + SUB_BUCKETS) << shift;
    return (double)low + (double)((uint64_t)1 << shift) / 2;
}

static double percentile_us(double share)
{
    uint64_t wanted = (uint64_t)(share * (double)results.ok);
    uint64_t seen = 0;
    if (results.ok == 0)
        return 0;
    for (unsigned i = 0; i < sizeof results.buckets / sizeof *results.buckets; i++) {
        seen += results.buckets[i];
        if (seen > wanted)
            return bucket_middle(i) / 1000;
    }
    return (double)results.latency_max / 1000;
}

/* ---- the message ---------------------------------------------------------------------------------- */

static char *put_string(char *at, const char *text)
{
    size_t length = strlen(text);
    *at++ = (char)(length & 0xff);
    *at++ = (char)(length >> 8);
    memcpy(at, text, length);
    return at + length;
}

/* What nginx sends with its stock uwsgi_params for a browser's request. */
static size_t put_variables(char *at)
{
    char length[24] = "";
    if (options.body > 0)
        snprintf(length, sizeof length, "%ld", options.body);
    const char *const variables[][2] = {
        {"QUERY_STRING", "page=2&sort=date"},
        {"REQUEST_METHOD", options.body > 0 ? "POST" : "GET"},
        {"CONTENT_TYPE", options.body > 0 ? "application/octet-stream" : ""},
        {"CONTENT_LENGTH", length},
        {"REQUEST_URI", "/articles/2026/hello?page=2&sort=date"},
        {"PATH_INFO", "/articles/2026/hello"},
        {"DOCUMENT_ROOT", "/usr/share/nginx/html"},
        {"SERVER_PROTOCOL", "HTTP/1.1"},
        {"REQUEST_SCHEME", "https"},
        {"HTTPS", "on"},
        {"REMOTE_ADDR", "192.0.2.17"},
        {"REMOTE_PORT", "51842"},
        {"SERVER_PORT", "443"},
        {"SERVER_NAME", "www.example.org"},
        {"HTTP_HOST", "www.example.org"},
        {"HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
        {"HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
        {"HTTP_ACCEPT_LANGUAGE", "en-US,en;q=0.5"},
        {"HTTP_ACCEPT_ENCODING", "gzip, deflate, br"},
        {"HTTP_REFERER", "https://www.example.org/articles/"},
        {"HTTP_COOKIE", "sessionid=3f9c1d0a7be24c55b1a0f3d7; csrftoken=Zq8vJc2LwYt5Hn1R"},
    };
    char *start = at;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        at = put_string(at, variables[i][0]);
        at = put_string(at, variables[i][1]);
    }
    return (size_t)(at - start);
}

static void build_message(void)
{
    message = malloc(MAX_PACKET + (size_t)options.body);
    if (message == NULL)
        die("out of memory");
    size_t variables = put_variables(message + 4);
    message[0] = 0; /* modifier1: a WSGI request */
    message[1] = (char)(variables & 0xff);
    message[2] = (char)(variables >> 8);
    message[3] = 0; /* modifier2 */
    memset(message + 4 + variables, 'x', (size_t)options.body);
    message_length = 4 + variables + (size_t)options.body;
}

/* ---- one request ---------------------------------------------------------------------------------- */

static void watch(struct client *c, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

static void wait_and_retry(struct client *c, uint64_t at)
{
    c->retry_at = at;
    waiting_clients++;
}

enum outcome { ANSWERED, FAILED, TIMED_OUT };

static bool is_length_right(const struct client *c)
{
    long body = (long)(c->received - c->head_length);
    return c->head_length > 0 && (c->content_length < 0 || body == c->content_length)
        && (options.expect < 0 || body == options.expect);
}

static void count_answer(const struct client *c, uint64_t latency)
{
    if (c->status == 0)
        results.errors++; /* closed without an answer, or with something that isn't one */
    else if (c->status != 200)
        results.other_status++;
    else if (!is_length_right(c))
        results.short_answers++;
    else {
        results.ok++;
        results.latency_sum += latency;
        results.buckets[bucket_of(latency)]++;
        if (latency > results.latency_max)
            results.latency_max = latency;
    }
}

static void end_request(struct client *c, enum outcome outcome)
{
    uint64_t now = now_ns();
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->active = false;
    active_clients--;
    if (!c->measured) {
        results.warmup_requests++;
    } else {
        last_end = now;
        results.requests++;
        if (outcome == ANSWERED)
            count_answer(c, now - c->begun);
        else if (outcome == FAILED)
            results.errors++;
        else
            results.timeouts++;
    }
    begin_request(c, now);
    /* A server that refuses must not be asked in a busy loop: the next attempt comes a little later. */
    if (outcome == FAILED && c->active && c->fd < 0)
        c->retry_at = now + 10 * MS;
}

static void find_status_and_length(struct client *c, const char *head, size_t length)
{
    char text[HEAD_SIZE + 1];
    memcpy(text, head, length);
    text[length] = 0;
    int status = 0;
    if (sscanf(text, "HTTP/%*d.%*d %3d", &status) == 1)
        c->status = status;
    const char *field = strcasestr(text, "\r\ncontent-length:");
    if (field != NULL)
        c->content_length = strtol(field + strlen("\r\ncontent-length:"), NULL, 10);
}

/* Looks for the end of the head in the bytes that just came, behind those that came before. */
static bool take_head(struct client *c, const char *bytes, size_t count)
{
    const char *head = bytes;
    size_t known = count < HEAD_SIZE ? count : HEAD_SIZE;
    if (c->received > 0) {
        size_t room = HEAD_SIZE - c->received;
        memcpy(c->head + c->received, bytes, count < room ? count : room);
        known = c->received + (count < room ? count : room);
        head = c->head;
    }
    const char *end = memmem(head, known, "\r\n\r\n", 4);
    if (end != NULL) {
        c->head_length = (size_t)(end - head) + 4;
        find_status_and_length(c, head, c->head_length);
        return true;
    }
    if (known == HEAD_SIZE)
        return false;
    if (head == bytes)
        memcpy(c->head, bytes, count);
    return true;
}

/*
 * Reads what there is. The answer's end is the end of the stream. A reset counts as an error even if all of the
 * answer came before it: in front of another client the same reset may destroy the answer.
 */
static void take_answer(struct client *c, bool hung_up)
{
    static char bytes[READ_SIZE];
    for (;;) {
        ssize_t count = read(c->fd, bytes, sizeof bytes);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN)
            return;
        if (count <= 0) {
            end_request(c, count == 0 ? ANSWERED : FAILED);
            return;
        }
        if (c->head_length == 0 && !take_head(c, bytes, (size_t)count)) {
            end_request(c, FAILED);
            return;
        }
        c->received += (size_t)count;
        /* Without a hang-up another read would only find EAGAIN: leave it to epoll to say when. */
        if (!hung_up && (size_t)count < sizeof bytes)
            return;
    }
}

/* `known` says whether the descriptor is in the epoll set yet. */
static void send_request(struct client *c, bool known)
{
    int operation = known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    while (c->sent < message_length) {
        ssize_t count = send(c->fd, message + c->sent, message_length - c->sent, MSG_NOSIGNAL);
        if (count >= 0) {
            c->sent += (size_t)count;
        } else if (errno == EAGAIN) {
            watch(c, operation, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
            return;
        } else if (errno == EPIPE) {
            c->sent = message_length; /* it answered without reading the body: take the answer */
        } else if (errno != EINTR) {
            end_request(c, FAILED);
            return;
        }
    }
    watch(c, operation, EPOLLIN | EPOLLRDHUP);
}

static void connect_client(struct client *c, uint64_t now)
{
    c->fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&address, address_length) == 0) {
        send_request(c, false);
        return;
    }
    int error = errno;
    if (error == EINPROGRESS) { /* TCP: writable when connected */
        watch(c, EPOLL_CTL_ADD, EPOLLOUT);
        return;
    }
    close(c->fd);
    c->fd = -1;
    if (error == EAGAIN) { /* a unix socket's backlog is full */
        results.connect_retries += c->measured;
        wait_and_retry(c, now + MS);
        return;
    }
    end_request(c, FAILED);
}

static bool is_finished(uint64_t now)
{
    return now >= stop_at || (options.count > 0 && started >= options.count);
}

/* The connecting itself is left to the main loop (retry_at): a chain of failures must not recurse. */
static void begin_request(struct client *c, uint64_t now)
{
    char *head = c->head;
    if (is_finished(now))
        return;
    *c = (struct client){.fd = -1, .head = head, .begun = now, .content_length = -1, .active = true};
    c->measured = now >= measure_from;
    started += c->measured;
    active_clients++;
    wait_and_retry(c, now);
}

static void on_event(struct client *c, uint32_t events)
{
    if (c->sent < message_length && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        send_request(c, true);
    else if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        take_answer(c, events & (EPOLLRDHUP | EPOLLHUP));
}

/* ---- the loop ------------------------------------------------------------------------------------- */

static void connect_waiting(uint64_t now)
{
    for (int i = 0; i < options.clients && waiting_clients > 0; i++) {
        struct client *c = &clients[i];
        if (c->active && c->fd < 0 && c->retry_at <= now) {
            waiting_clients--;
            connect_client(c, now);
        }
    }
}

static void end_overdue(uint64_t now)
{
    uint64_t timeout = (uint64_t)(options.timeout * (double)SECOND);
    for (int i = 0; i < options.clients; i++) {
        struct client *c = &clients[i];
        if (!c->active || now - c->begun < timeout)
            continue;
        if (c->fd < 0)
            waiting_clients--;
        end_request(c, TIMED_OUT);
    }
}

static void run(void)
{
    struct epoll_event events[256];
    uint64_t now = now_ns(), next_check = now + SECOND / 4;
    measure_from = last_end = now + (uint64_t)(options.warmup * (double)SECOND);
    stop_at = measure_from + (uint64_t)(options.duration * (double)SECOND);
    for (int i = 0; i < options.clients; i++)
        begin_request(&clients[i], now);
    while (active_clients > 0) {
        if (waiting_clients > 0)
            connect_waiting(now_ns());
        int count = epoll_wait(epoll_fd, events, 256, waiting_clients > 0 ? 1 : 100);
        for (int i = 0; i < count; i++)
            on_event(events[i].data.ptr, events[i].events);
        now = now_ns();
        if (now >= next_check) {
            end_overdue(now);
            next_check = now + SECOND / 4;
        }
    }
}

/* ---- options and output --------------------------------------------------------------------------- */

/* Digits and dots only, and 127.0.0.0/8 only: a load generator has no business with other machines. */
static void parse_tcp_address(const char *text, const char *colon)
{
    struct sockaddr_in *in = (struct sockaddr_in *)&address;
    char host[32] = "";
    long port = strtol(colon + 1, NULL, 10);
    if ((size_t)(colon - text) < sizeof host)
        memcpy(host, text, (size_t)(colon - text));
    if (inet_pton(AF_INET, host, &in->sin_addr) != 1 || port < 1 || port > 65535)
        die("%s: expected a path or 127.x.x.x:PORT", text);
    if (ntohl(in->sin_addr.s_addr) >> 24 != 127)
        die("%s: only loopback addresses are allowed", text);
    in->sin_family = AF_INET;
    in->sin_port = htons((uint16_t)port);
    address_length = sizeof *in;
}

static void parse_address(const char *text)
{
    const char *colon = strrchr(text, ':');
    if (colon != NULL && strchr(text, '/') == NULL) {
        parse_tcp_address(text, colon);
        return;
    }
    struct sockaddr_un *un = (struct sockaddr_un *)&address;
    if (strlen(text) >= sizeof un->sun_path)
        die("%s: too long for a unix socket", text);
    un->sun_family = AF_UNIX;
    strcpy(un->sun_path, text);
    address_length = sizeof *un;
}

static double number(const char *text, double low, double high, const char *what)
{
    char *end;
    double value = strtod(text, &end);
    if (*text == 0 || *end != 0 || !(value >= low && value <= high))
        die("--%s: expected a number from %g to %g, not '%s'", what, low, high, text);
    return value;
}

static const char usage[] =
    "usage: load [options] ADDRESS       (a unix socket's path, or 127.x.x.x:PORT)\n"
    "  --clients N     concurrent clients, one request per connection (32)\n"
    "  --duration S    seconds of measuring (5)\n"
    "  --warmup S      seconds before that, not counted (0)\n"
    "  --count N       stop after this many measured requests, or at --duration\n"
    "  --body BYTES    POST a body of this size\n"
    "  --expect BYTES  the length that an answer's body must have\n"
    "  --timeout S     give up on a request after this long (10)\n";

static void parse_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"clients", 1, 0, 'c'}, {"duration", 1, 0, 'd'}, {"warmup", 1, 0, 'w'},  {"count", 1, 0, 'n'},
        {"body", 1, 0, 'b'},    {"expect", 1, 0, 'e'},   {"timeout", 1, 0, 't'}, {"help", 0, 0, 'h'}, {0, 0, 0, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'c': options.clients = (int)number(optarg, 1, MAX_CLIENTS, "clients"); break;
        case 'd': options.duration = number(optarg, 0, MAX_SECONDS, "duration"); break;
        case 'w': options.warmup = number(optarg, 0, MAX_SECONDS, "warmup"); break;
        case 'n': options.count = (uint64_t)number(optarg, 1, 1e9, "count"); break;
        case 'b': options.body = (long)number(optarg, 1, MAX_BODY, "body"); break;
        case 'e': options.expect = (long)number(optarg, 0, 1e9, "expect"); break;
        case 't': options.timeout = number(optarg, 0.01, MAX_SECONDS, "timeout"); break;
        case 'h': fputs(usage, stdout); exit(0);
        default: fputs(usage, stderr); exit(2);
        }
    }
    if (optind != argc - 1) {
        fputs(usage, stderr);
        exit(2);
    }
    parse_address(argv[optind]);
}

static double own_cpu_seconds(void)
{
    struct rusage usage_of_self;
    getrusage(RUSAGE_SELF, &usage_of_self);
    const struct timeval *user = &usage_of_self.ru_utime, *system = &usage_of_self.ru_stime;
    return (double)(user->tv_sec + system->tv_sec) + (double)(user->tv_usec + system->tv_usec) / 1e6;
}

static void print_results(void)
{
    double seconds = (double)(last_end - measure_from) / 1e9;
    printf("{\"clients\": %d, \"seconds\": %.6f, \"requests\": %lu, \"ok\": %lu, \"other_status\": %lu, ",
           options.clients, seconds, results.requests, results.ok, results.other_status);
    printf("\"errors\": %lu, \"short\": %lu, \"timeouts\": %lu, \"connect_retries\": %lu, \"warmup_requests\": %lu, ",
           results.errors, results.short_answers, results.timeouts, results.connect_retries,
           results.warmup_requests);
    printf("\"throughput\": %.1f, \"client_cpu_seconds\": %.4f, ",
           seconds > 0 ? (double)results.ok / seconds : 0, own_cpu_seconds());
    printf("\"mean_us\": %.1f, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
           "\"max_us\": %.1f}\n",
           results.ok ? (double)results.latency_sum / (double)results.ok / 1000 : 0, percentile_us(0.5),
           percentile_us(0.9), percentile_us(0.99), percentile_us(0.999), (double)results.latency_max / 1000);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    build_message();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc((size_t)options.clients, sizeof *clients);
    if (epoll_fd < 0 || clients == NULL)
        die("cannot start: %s", strerror(errno));
    for (int i = 0; i < options.clients; i++) {
        clients[i].head = malloc(HEAD_SIZE);
        clients[i].fd = -1;
        if (clients[i].head == NULL)
            die("out of memory");
    }
    run();
    print_results();
    return results.requests > 0 && results.ok == results.requests ? 0 : 1;
}
