/*
 * A load generator that speaks the uwsgi protocol, or HTTP/1.1 with keep-alive.
 *
 *     load [options] ADDRESS        ADDRESS: a unix socket's path, or 127.x.x.x:PORT
 *
 * N clients, each doing one thing over and over: connect, send one packet, read the answer to its end, close.
 * With --http the connection stays for the client's next request. One thread and one epoll descriptor, because
 * the generator shares the cores with the server that it measures: a request costs it seven system calls, or
 * three on a connection that was kept. The result is one JSON object on standard output.
 *
 * There are two ways to say when a request begins:
 *
 * "Closed loop" means that a client waits for its answer before it asks again. A slow server therefore gets
 * fewer requests, and latency says how long a client waited under exactly N outstanding requests, no more.
 *
 * "Open loop" (--rate R) means that request k arrives at start + k/R, whatever became of those before it, as
 * with users who don't know of each other. N is then the most connections at once: an arrival that finds no
 * free client waits for one, and its latency counts from when it arrived. Arrivals are begun in batches, up to
 * 0.2 ms late, which is in their latency too: waking for each one would take CPU time away from the server.
 *
 * A request's way through this file: begin_request -> serve -> send_request -> on_event -> take_answer
 * -> end_request. A client is free (or done), in a queue until it may send, or asking: see `enum state`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
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
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CLIENTS = 4096,
    MAX_SECONDS = 3600,
    MAX_RATE = 1000 * 1000,
    MAX_SERIES = 10 * 1000, /* entries: each has a histogram of its own */
    MAX_BODY = 64 << 20,
    MAX_PACKET = 4 + 65535, /* and a request's head over HTTP is shorter */
    HEAD_SIZE = 8192,       /* an answer's head that is longer than this counts as an error */
    READ_SIZE = 64 << 10,
    SUB_BUCKETS = 128,      /* histogram buckets per power of two: a percentile is within 0.8 % */
    SUB_BITS = 7,
};

static const uint64_t MS = 1000 * 1000;
static const uint64_t SECOND = 1000 * 1000 * 1000;
static const uint64_t BATCH = 100 * 1000; /* the shortest nap between two batches of arrivals, in ns */
static const uint64_t NEVER = UINT64_MAX;

struct message {
    char *bytes;
    size_t length;
};

struct histogram {
    uint64_t count, sum, max;
    uint64_t buckets[(64 - SUB_BITS + 1) * SUB_BUCKETS];
};

enum state { IDLE, QUEUED, ASKING };

struct client {
    enum state state;
    struct client *next;  /* in a queue, or in the list of the free: never in two at once */
    uint64_t due;         /* while QUEUED */
    int fd;               /* -1: no connection */
    uint32_t watched;     /* what epoll looks for at fd; 0 when it doesn't know fd */
    bool kept;            /* this request goes over a connection that an earlier one has left open */
    bool lost;            /* the server closed the connection that was kept for the next request */
    bool measured;        /* begun after the warm-up */
    bool slow;            /* asks for /slow */
    bool keepable;        /* the head said that the connection may be used again */
    uint64_t begun;       /* first attempt to connect, or the arrival: time in a full backlog counts too */
    const struct message *message;
    size_t sent;
    size_t received;      /* bytes of the whole answer */
    size_t head_length;   /* 0 until the blank line was seen */
    long content_length;  /* -1: the answer didn't say */
    int status;
    char *head;           /* only used when the head doesn't come in one piece */
};

/* First in, first out. All who enter a queue have the same delay, so the first in it is due first. */
struct queue {
    struct client *first, *last;
};

static struct {
    int clients;
    double warmup, duration, timeout, rate;
    uint64_t count, slow_every, series_ms;
    long body, expect;
    bool http;
} options = {.clients = 32, .duration = 5, .timeout = 10, .expect = -1};

static struct {
    uint64_t requests, ok, other_status, errors, short_answers, timeouts, connect_retries, warmup_requests;
    uint64_t reconnects, slow_requests, most_waiting;
    struct histogram usual, slow;
    struct histogram *series; /* NULL without --series */
} results;

static struct sockaddr_storage address;
static socklen_t address_length;
static struct client *clients;
static struct message usual_message, slow_message; /* head and body: what every client sends */
static int epoll_fd;
static uint64_t started;      /* requests begun after the warm-up, for --count and --slow-every */
static uint64_t start, measure_from, stop_at, last_end;
static int active_clients;    /* those that aren't IDLE */
static struct queue at_once, backlog_full, refused;

/* Open loop. Those who wait need no queue: they are the arrivals number `taken` to `arrived` - 1. */
static struct client *free_clients;
static uint64_t arrived, taken, arrived_measured, next_arrival = NEVER;

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

static uint64_t nanoseconds(double seconds)
{
    return (uint64_t)(seconds * (double)SECOND);
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

static void add_latency(struct histogram *h, uint64_t ns)
{
    h->count++;
    h->sum += ns;
    h->buckets[bucket_of(ns)]++;
    if (ns > h->max)
        h->max = ns;
}

static double percentile_us(const struct histogram *h, double share)
{
    uint64_t wanted = (uint64_t)(share * (double)h->count);
    uint64_t seen = 0;
    if (h->count == 0)
        return 0;
    for (unsigned i = 0; i < sizeof h->buckets / sizeof *h->buckets; i++) {
        seen += h->buckets[i];
        if (seen > wanted)
            return bucket_middle(i) / 1000;
    }
    return (double)h->max / 1000;
}

static size_t series_length(void)
{
    uint64_t width = options.series_ms * MS;
    return (nanoseconds(options.duration) + width - 1) / width;
}

/* ---- the message ---------------------------------------------------------------------------------- */

static const char usual_path[] = "/articles/2026/hello", slow_path[] = "/slow", query[] = "page=2&sort=date";

/* A browser's header, under the names that it has in a packet. */
static const char *const headers[][2] = {
    {"HTTP_HOST", "www.example.org"},
    {"HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
    {"HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
    {"HTTP_ACCEPT_LANGUAGE", "en-US,en;q=0.5"},
    {"HTTP_ACCEPT_ENCODING", "gzip, deflate, br"},
    {"HTTP_REFERER", "https://www.example.org/articles/"},
    {"HTTP_COOKIE", "sessionid=3f9c1d0a7be24c55b1a0f3d7; csrftoken=Zq8vJc2LwYt5Hn1R"},
};
enum { HEADERS = sizeof headers / sizeof *headers };

static char *put_string(char *at, const char *text)
{
    size_t length = strlen(text);
    *at++ = (char)(length & 0xff);
    *at++ = (char)(length >> 8);
    memcpy(at, text, length);
    return at + length;
}

/* What nginx sends with its stock uwsgi_params for a browser's request. */
static size_t put_variables(char *at, const char *path)
{
    char length[24] = "", uri[64];
    if (options.body > 0)
        snprintf(length, sizeof length, "%ld", options.body);
    snprintf(uri, sizeof uri, "%s?%s", path, query);
    const char *const variables[][2] = {
        {"QUERY_STRING", query},
        {"REQUEST_METHOD", options.body > 0 ? "POST" : "GET"},
        {"CONTENT_TYPE", options.body > 0 ? "application/octet-stream" : ""},
        {"CONTENT_LENGTH", length},
        {"REQUEST_URI", uri},
        {"PATH_INFO", path},
        {"DOCUMENT_ROOT", "/usr/share/nginx/html"},
        {"SERVER_PROTOCOL", "HTTP/1.1"},
        {"REQUEST_SCHEME", "https"},
        {"HTTPS", "on"},
        {"REMOTE_ADDR", "192.0.2.17"},
        {"REMOTE_PORT", "51842"},
        {"SERVER_PORT", "443"},
        {"SERVER_NAME", "www.example.org"},
    };
    char *begin = at;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        at = put_string(at, variables[i][0]);
        at = put_string(at, variables[i][1]);
    }
    for (size_t i = 0; i < HEADERS; i++) {
        at = put_string(at, headers[i][0]);
        at = put_string(at, headers[i][1]);
    }
    return (size_t)(at - begin);
}

static size_t put_packet(char *at, const char *path)
{
    size_t variables = put_variables(at + 4, path);
    at[0] = 0; /* modifier1: a WSGI request */
    at[1] = (char)(variables & 0xff);
    at[2] = (char)(variables >> 8);
    at[3] = 0; /* modifier2 */
    return 4 + variables;
}

/* HTTP_ACCEPT_LANGUAGE becomes Accept-Language. */
static char *put_header(char *at, const char *variable, const char *value)
{
    bool first = true;
    for (const char *c = variable + strlen("HTTP_"); *c != 0; c++) {
        *at++ = *c == '_' ? '-' : first ? *c : (char)tolower((unsigned char)*c);
        first = *c == '_';
    }
    return at + sprintf(at, ": %s\r\n", value);
}

static size_t put_http_head(char *at, const char *path)
{
    char *begin = at;
    at += sprintf(at, "%s %s?%s HTTP/1.1\r\n", options.body > 0 ? "POST" : "GET", path, query);
    for (size_t i = 0; i < HEADERS; i++)
        at = put_header(at, headers[i][0], headers[i][1]);
    if (options.body > 0)
        at += sprintf(at, "Content-Type: application/octet-stream\r\nContent-Length: %ld\r\n", options.body);
    at += sprintf(at, "\r\n");
    return (size_t)(at - begin);
}

static void build_message(struct message *m, const char *path)
{
    m->bytes = malloc(MAX_PACKET + (size_t)options.body);
    if (m->bytes == NULL)
        die("out of memory");
    size_t head = options.http ? put_http_head(m->bytes, path) : put_packet(m->bytes, path);
    memset(m->bytes + head, 'x', (size_t)options.body);
    m->length = head + (size_t)options.body;
}

/* ---- arrivals: the open loop ---------------------------------------------------------------------- */

static uint64_t arrival_time(uint64_t k)
{
    return start + (uint64_t)((double)k * 1e9 / options.rate);
}

static void count_waiting(void)
{
    /* Whoever came during the warm-up is none of ours. */
    if (free_clients == NULL && arrived_measured > 0 && arrived - taken > results.most_waiting)
        results.most_waiting = arrived - taken;
}

/* Counts those that have come by now. The last one is the last before --duration ends, or number --count. */
static void note_arrivals(uint64_t now)
{
    while (next_arrival <= now) {
        arrived_measured += next_arrival >= measure_from;
        next_arrival = arrival_time(++arrived);
        if (next_arrival >= stop_at || (options.count > 0 && arrived_measured >= options.count))
            next_arrival = NEVER;
    }
    count_waiting();
}

/* The one that was used last comes first: a server sees as few connections as the rate needs. */
static void set_free(struct client *c)
{
    c->next = free_clients;
    free_clients = c;
}

/* ---- one request ---------------------------------------------------------------------------------- */

static void watch(struct client *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (c->watched == events)
        return;
    if (epoll_ctl(epoll_fd, c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
    c->watched = events;
}

static void hang_up(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->watched = 0;
}

static void enqueue(struct queue *queue, struct client *c, uint64_t due)
{
    c->state = QUEUED;
    c->due = due;
    c->next = NULL;
    if (queue->first == NULL)
        queue->first = c;
    else
        queue->last->next = c;
    queue->last = c;
}

static bool is_finished(uint64_t now)
{
    return now >= stop_at || (options.count > 0 && started >= options.count);
}

/* The sending itself is left to the main loop (a queue): a chain of failures must not recurse. */
static void begin_request(struct client *c, uint64_t begun)
{
    bool lost = c->lost;
    *c = (struct client){.fd = c->fd, .watched = c->watched, .kept = c->fd >= 0, .head = c->head,
                         .begun = begun, .content_length = -1, .message = &usual_message};
    active_clients++;
    c->measured = begun >= measure_from;
    if (!c->measured)
        return;
    started++;
    results.reconnects += lost;
    c->slow = options.slow_every > 0 && started % options.slow_every == 0;
    if (c->slow)
        c->message = &slow_message;
}

enum outcome { ANSWERED, FAILED, TIMED_OUT };

static bool is_length_right(const struct client *c)
{
    long body = (long)(c->received - c->head_length);
    return c->head_length > 0 && (c->content_length < 0 || body == c->content_length)
        && (options.expect < 0 || body == options.expect);
}

static void count_ok(const struct client *c, uint64_t latency)
{
    results.ok++;
    add_latency(c->slow ? &results.slow : &results.usual, latency);
    if (results.series != NULL)
        add_latency(&results.series[(c->begun - measure_from) / (options.series_ms * MS)], latency);
}

static void count_answer(const struct client *c, uint64_t latency)
{
    if (c->status == 0)
        results.errors++; /* closed without an answer, or with something that isn't one */
    else if (c->status != 200)
        results.other_status++;
    else if (!is_length_right(c))
        results.short_answers++;
    else
        count_ok(c, latency);
}

static void count_request(const struct client *c, enum outcome outcome, uint64_t now)
{
    if (!c->measured) {
        results.warmup_requests++;
        return;
    }
    last_end = now;
    results.requests++;
    results.slow_requests += c->slow;
    if (outcome == ANSWERED)
        count_answer(c, now - c->begun);
    else if (outcome == FAILED)
        results.errors++;
    else
        results.timeouts++;
}

/* Over HTTP and with a length: the answer ends there, or goes on behind it, which is wrong too. */
static bool is_complete(const struct client *c)
{
    return options.http && c->head_length > 0 && c->content_length >= 0
        && c->received >= c->head_length + (size_t)c->content_length;
}

static bool is_reusable(const struct client *c)
{
    return c->keepable && c->sent == c->message->length
        && c->received == c->head_length + (size_t)c->content_length;
}

static void end_request(struct client *c, enum outcome outcome)
{
    uint64_t now = now_ns();
    if (outcome != ANSWERED || !is_reusable(c))
        hang_up(c);
    c->state = IDLE;
    active_clients--;
    count_request(c, outcome, now);
    if (options.rate > 0) {
        note_arrivals(now); /* before it is free: those that came until now have waited */
        set_free(c);
    } else if (is_finished(now)) {
        hang_up(c);
    } else {
        begin_request(c, now);
        /* A server that refuses must not be asked in a busy loop: the next attempt comes a little later. */
        if (outcome == FAILED)
            enqueue(&refused, c, now + 10 * MS);
        else
            enqueue(&at_once, c, 0);
    }
}

/*
 * The stream is over, well or not. If a kept connection ends before any byte of an answer came, the server
 * most likely closed it before it saw the request. Browsers and proxies then ask once more, and so do we.
 */
static void end_stream(struct client *c, enum outcome outcome)
{
    if (!c->kept || c->received > 0) {
        end_request(c, outcome);
        return;
    }
    results.reconnects += c->measured;
    hang_up(c);
    c->kept = false;
    c->sent = 0;
    enqueue(&at_once, c, 0);
}

static const char *find_field(const char *head, const char *name)
{
    const char *field = strcasestr(head, name);
    return field == NULL ? NULL : field + strlen(name) + strspn(field + strlen(name), " \t");
}

/* False: an answer whose end we couldn't find over HTTP, because it's chunked, or isn't HTTP at all. */
static bool understand_head(struct client *c, const char *head, size_t length)
{
    char text[HEAD_SIZE + 1];
    memcpy(text, head, length);
    text[length] = 0;
    int status = 0;
    if (sscanf(text, "HTTP/%*d.%*d %3d", &status) == 1)
        c->status = status;
    const char *field = find_field(text, "\r\ncontent-length:");
    if (field != NULL)
        c->content_length = strtol(field, NULL, 10);
    if (!options.http)
        return true;
    field = find_field(text, "\r\nconnection:");
    c->keepable = c->content_length >= 0 && strncmp(text, "HTTP/1.1 ", strlen("HTTP/1.1 ")) == 0
        && (field == NULL || strncasecmp(field, "close", strlen("close")) != 0);
    return status > 0 && find_field(text, "\r\ntransfer-encoding:") == NULL;
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
        return understand_head(c, head, c->head_length);
    }
    if (known == HEAD_SIZE)
        return false;
    if (head == bytes)
        memcpy(c->head, bytes, count);
    return true;
}

/*
 * Reads what there is. The answer's end is the end of the stream, or over HTTP what its Content-Length says. A
 * reset counts as an error even if a whole uwsgi answer came before it: in front of another client the same
 * reset may destroy the answer.
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
            end_stream(c, count == 0 ? ANSWERED : FAILED);
            return;
        }
        if (c->head_length == 0 && !take_head(c, bytes, (size_t)count)) {
            end_request(c, FAILED);
            return;
        }
        c->received += (size_t)count;
        if (is_complete(c)) {
            end_request(c, ANSWERED);
            return;
        }
        /* Without a hang-up another read would only find EAGAIN: leave it to epoll to say when. */
        if (!hung_up && (size_t)count < sizeof bytes)
            return;
    }
}

static void send_request(struct client *c)
{
    c->state = ASKING;
    while (c->sent < c->message->length) {
        ssize_t count = send(c->fd, c->message->bytes + c->sent, c->message->length - c->sent, MSG_NOSIGNAL);
        if (count >= 0) {
            c->sent += (size_t)count;
        } else if (errno == EAGAIN) {
            watch(c, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
            return;
        } else if (errno == EPIPE) {
            c->sent = c->message->length; /* it answered without reading the body: take the answer */
        } else if (errno != EINTR) {
            end_stream(c, FAILED);
            return;
        }
    }
    watch(c, EPOLLIN | EPOLLRDHUP);
}

static void connect_client(struct client *c, uint64_t now)
{
    c->fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&address, address_length) == 0) {
        send_request(c);
        return;
    }
    int error = errno;
    if (error == EINPROGRESS) { /* TCP: writable when connected */
        c->state = ASKING;
        watch(c, EPOLLOUT);
        return;
    }
    hang_up(c);
    if (error == EAGAIN) { /* a unix socket's backlog is full */
        results.connect_retries += c->measured;
        enqueue(&backlog_full, c, now + MS);
        return;
    }
    end_request(c, FAILED);
}

static void on_event(struct client *c, uint32_t events)
{
    if (c->state != ASKING) { /* the server closes a connection that was kept for later */
        hang_up(c);
        c->lost = true;
    } else if (c->sent < c->message->length && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        send_request(c);
    } else if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        take_answer(c, events & (EPOLLRDHUP | EPOLLHUP));
    }
}

/* ---- the loop ------------------------------------------------------------------------------------- */

static bool is_overdue(const struct client *c, uint64_t now)
{
    return now >= c->begun + nanoseconds(options.timeout);
}

/* Those in queues are looked at when their turn comes, at most 10 ms later: see serve. */
static void end_overdue(uint64_t now)
{
    for (int i = 0; i < options.clients; i++)
        if (clients[i].state == ASKING && is_overdue(&clients[i], now))
            end_request(&clients[i], TIMED_OUT);
}

static void hand_out_arrivals(uint64_t now)
{
    note_arrivals(now);
    while (taken < arrived && free_clients != NULL) {
        struct client *c = free_clients;
        free_clients = c->next;
        begin_request(c, arrival_time(taken++));
        enqueue(&at_once, c, 0);
    }
    count_waiting();
}

static void serve(struct queue *queue, uint64_t now)
{
    while (queue->first != NULL && queue->first->due <= now) {
        struct client *c = queue->first;
        queue->first = c->next;
        if (is_overdue(c, now))
            end_request(c, TIMED_OUT);
        else if (c->fd >= 0)
            send_request(c);
        else
            connect_client(c, now);
    }
}

/* How long nothing happens for sure, unless an answer comes. */
static struct timespec nap(void)
{
    uint64_t ns = backlog_full.first != NULL || refused.first != NULL ? MS : 100 * MS;
    if (at_once.first != NULL || (taken < arrived && free_clients != NULL)) {
        ns = 0; /* a request failed or was overdue before it was sent: its client can have the next one */
    } else if (next_arrival != NEVER && free_clients != NULL) {
        uint64_t now = now_ns(), ahead = next_arrival > now + BATCH ? next_arrival - now : BATCH;
        ns = ahead < ns ? ahead : ns;
    }
    return (struct timespec){.tv_nsec = (long)ns};
}

static void begin_clients(uint64_t now)
{
    for (int i = options.clients - 1; i >= 0 && options.rate > 0; i--)
        set_free(&clients[i]);
    for (int i = 0; i < options.clients && options.rate <= 0 && !is_finished(now); i++) {
        begin_request(&clients[i], now);
        enqueue(&at_once, &clients[i], 0);
    }
    if (options.rate > 0) {
        next_arrival = start < stop_at ? start : NEVER;
        prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* otherwise each nap is 50 us longer than it was told */
    }
}

static void run(void)
{
    struct epoll_event events[256];
    uint64_t now = now_ns(), next_check = now + SECOND / 4;
    start = now;
    measure_from = last_end = now + nanoseconds(options.warmup);
    stop_at = measure_from + nanoseconds(options.duration);
    begin_clients(now);
    while (active_clients > 0 || taken < arrived || next_arrival != NEVER) {
        if (options.rate > 0)
            hand_out_arrivals(now);
        serve(&at_once, now);
        serve(&backlog_full, now);
        serve(&refused, now);
        struct timespec longest = nap();
        int count = epoll_pwait2(epoll_fd, events, 256, &longest, NULL);
        if (count < 0 && errno != EINTR)
            die("epoll_pwait2: %s", strerror(errno));
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
    "  --rate R        open loop: R requests per second arrive, whether or not others were answered;\n"
    "                  latency counts from the arrival, and --clients is the most connections at once\n"
    "  --http          HTTP/1.1 instead of the uwsgi protocol, and each client keeps its connection\n"
    "  --slow-every N  every Nth measured request asks for /slow; these have percentiles of their own\n"
    "  --series MS     what was answered well, and how fast, for each MS milliseconds of --duration\n"
    "  --body BYTES    POST a body of this size\n"
    "  --expect BYTES  the length that an answer's body must have\n"
    "  --timeout S     give up on a request after this long (10)\n";

static void parse_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"clients", 1, 0, 'c'}, {"duration", 1, 0, 'd'}, {"warmup", 1, 0, 'w'},     {"count", 1, 0, 'n'},
        {"body", 1, 0, 'b'},    {"expect", 1, 0, 'e'},   {"timeout", 1, 0, 't'},    {"rate", 1, 0, 'r'},
        {"http", 0, 0, 'H'},    {"series", 1, 0, 'S'},   {"slow-every", 1, 0, 's'}, {"help", 0, 0, 'h'},
        {0, 0, 0, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'c': options.clients = (int)number(optarg, 1, MAX_CLIENTS, "clients"); break;
        case 'd': options.duration = number(optarg, 0, MAX_SECONDS, "duration"); break;
        case 'w': options.warmup = number(optarg, 0, MAX_SECONDS, "warmup"); break;
        case 'n': options.count = (uint64_t)number(optarg, 1, 1e9, "count"); break;
        case 'r': options.rate = number(optarg, 0.01, MAX_RATE, "rate"); break;
        case 'H': options.http = true; break;
        case 's': options.slow_every = (uint64_t)number(optarg, 1, 1e9, "slow-every"); break;
        case 'S': options.series_ms = (uint64_t)number(optarg, 1, MAX_SECONDS * 1000, "series"); break;
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
    if (options.series_ms > 0 && series_length() > MAX_SERIES)
        die("--series: more than %d entries in %g s", MAX_SERIES, options.duration);
    parse_address(argv[optind]);
}

/* A soft limit of 1,024 descriptors is usual, and too few for 1,024 clients. */
static void make_room(void)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)options.clients + 16;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = wanted;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("%d clients need %lu descriptors (ulimit -n)", options.clients, (unsigned long)wanted);
}

static double own_cpu_seconds(void)
{
    struct rusage usage_of_self;
    getrusage(RUSAGE_SELF, &usage_of_self);
    const struct timeval *user = &usage_of_self.ru_utime, *system = &usage_of_self.ru_stime;
    return (double)(user->tv_sec + system->tv_sec) + (double)(user->tv_usec + system->tv_usec) / 1e6;
}

static void print_counts(void)
{
    double seconds = (double)(last_end - measure_from) / 1e9;
    printf("\"clients\": %d, \"rate\": %.10g, \"seconds\": %.6f, \"requests\": %lu, \"ok\": %lu, "
           "\"other_status\": %lu, \"errors\": %lu, \"short\": %lu, \"timeouts\": %lu, ",
           options.clients, options.rate, seconds, results.requests, results.ok, results.other_status,
           results.errors, results.short_answers, results.timeouts);
    printf("\"connect_retries\": %lu, \"reconnects\": %lu, \"most_waiting\": %lu, \"warmup_requests\": %lu, ",
           results.connect_retries, results.reconnects, results.most_waiting, results.warmup_requests);
    printf("\"throughput\": %.1f, \"client_cpu_seconds\": %.4f, ",
           seconds > 0 ? (double)results.ok / seconds : 0, own_cpu_seconds());
}

static void print_latency(void)
{
    const struct histogram *h = &results.usual;
    printf("\"mean_us\": %.1f, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
           "\"max_us\": %.1f",
           h->count > 0 ? (double)h->sum / (double)h->count / 1000 : 0, percentile_us(h, 0.5),
           percentile_us(h, 0.9), percentile_us(h, 0.99), percentile_us(h, 0.999), (double)h->max / 1000);
}

/* What comes of a histogram inside a list or an object of its own. */
static void print_part(const struct histogram *h)
{
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}", percentile_us(h, 0.5),
           percentile_us(h, 0.99), (double)h->max / 1000);
}

static void print_series(void)
{
    printf(", \"series\": [");
    for (size_t i = 0; i < series_length(); i++) {
        const struct histogram *h = &results.series[i];
        printf("%s{\"at_ms\": %lu, \"requests\": %lu, ", i > 0 ? ", " : "", i * options.series_ms, h->count);
        print_part(h);
    }
    printf("]");
}

static void print_results(void)
{
    printf("{");
    print_counts();
    print_latency();
    printf(", \"slow\": {\"requests\": %lu, \"ok\": %lu, ", results.slow_requests, results.slow.count);
    print_part(&results.slow);
    if (results.series != NULL)
        print_series();
    printf("}\n");
}

/* Pages that no latency falls into are never touched: some kilobytes are in use of each histogram's 59. */
static void make_series(void)
{
    results.series = calloc(series_length() + 1, sizeof *results.series);
    if (results.series == NULL)
        die("out of memory");
}

static void make_clients(void)
{
    clients = calloc((size_t)options.clients, sizeof *clients);
    if (clients == NULL)
        die("out of memory");
    for (int i = 0; i < options.clients; i++) {
        clients[i].head = malloc(HEAD_SIZE);
        clients[i].fd = -1;
        if (clients[i].head == NULL)
            die("out of memory");
    }
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    make_room();
    build_message(&usual_message, usual_path);
    if (options.slow_every > 0)
        build_message(&slow_message, slow_path);
    make_clients();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1: %s", strerror(errno));
    if (options.series_ms > 0)
        make_series();
    run();
    print_results();
    return results.requests > 0 && results.ok == results.requests ? 0 : 1;
}
