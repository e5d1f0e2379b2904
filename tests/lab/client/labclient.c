/*
 * The client of a lab: talks to a guest's service (guest/labproto.h) in several ways at once,
 * checks every answer, and at its end prints one JSON object with figures and errors per class of
 * traffic. Exit status: 0 without any error, 1 with errors, 2 wrong usage.
 *
 * Each class is a thread with its own figures. The longest time between two answers ("gap_ms") is
 * what a user of the guest would have noticed of a failover. A request is given up after --timeout
 * seconds only: TCP needs its time to retransmit after the death of a host.
 */
#define _GNU_SOURCE
#include "../guest/labproto.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_S_DEFAULT 120
#define SLICE_MS 50
#define RETRY_MS 200
#define WINDOW 65536
#define BULK_CHUNK 65536
#define CLASSES_MAX 64

struct class {
    const char *name;
    void (*run)(struct class *);
    unsigned interval_ms; /* between requests */
    uint64_t bulk_bytes; /* of one transfer */
    pthread_t thread;
    pthread_mutex_t lock; /* guards all that follows: the status writer looks at it */
    uint64_t requests;
    uint64_t answers;
    uint64_t bytes;
    uint64_t resets;
    uint64_t connects;
    uint64_t errors;
    uint64_t lost;
    uint64_t repeated;
    double begin_ms;
    double end_ms;
    double last_answer_ms;
    double gap_ms;
    double gap_at_ms; /* when the longest gap began */
    double *latencies_ms;
    size_t latency_count;
    size_t latency_room;
    char first_error[200];
};

static union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} server;
static socklen_t server_bytes; /* 0 until the server is known */
static char server_text[INET6_ADDRSTRLEN];
static unsigned timeout_s = TIMEOUT_S_DEFAULT;
static int64_t max_lost = -1;
static bool raw;
static double start_ms;
static atomic_bool stopping;
static struct class classes[CLASSES_MAX];
static size_t class_count;

static double now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void request_stop(int number)
{
    (void)number;
    atomic_store(&stopping, true);
}

static void sleep_ms(double ms)
{
    double end = now_ms() + ms;

    while (!atomic_load(&stopping)) {
        double left = end - now_ms();

        if (left <= 0)
            return;
        if (left > SLICE_MS)
            left = SLICE_MS;
        usleep((useconds_t)(left * 1e3));
    }
}

/* ---- figures ---- */

__attribute__((format(printf, 2, 3))) static void error(struct class *c, const char *format, ...)
{
    char text[sizeof(c->first_error)];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    pthread_mutex_lock(&c->lock);
    if (!c->errors++)
        memcpy(c->first_error, text, sizeof(text));
    pthread_mutex_unlock(&c->lock);
    fprintf(stderr, "labclient: %.3f s: %s: %s\n", (now_ms() - start_ms) / 1e3, c->name, text);
}

static void note_request(struct class *c)
{
    pthread_mutex_lock(&c->lock);
    c->requests++;
    pthread_mutex_unlock(&c->lock);
}

/* Data came in: a gap ends here. */
static void note_progress(struct class *c, double now)
{
    if (now - c->last_answer_ms > c->gap_ms) {
        c->gap_ms = now - c->last_answer_ms;
        c->gap_at_ms = c->last_answer_ms - start_ms;
    }
    c->last_answer_ms = now;
}

static void note_bytes(struct class *c, uint64_t bytes)
{
    pthread_mutex_lock(&c->lock);
    c->bytes += bytes;
    note_progress(c, now_ms());
    pthread_mutex_unlock(&c->lock);
}

static void note_answer(struct class *c, double sent_ms)
{
    double now = now_ms();

    pthread_mutex_lock(&c->lock);
    c->answers++;
    note_progress(c, now);
    if (c->latency_count == c->latency_room) {
        size_t room = c->latency_room ? c->latency_room * 2 : 1024;
        double *more = realloc(c->latencies_ms, room * sizeof(*more));

        if (more) {
            c->latencies_ms = more;
            c->latency_room = room;
        }
    }
    if (c->latency_count < c->latency_room)
        c->latencies_ms[c->latency_count++] = now - sent_ms;
    pthread_mutex_unlock(&c->lock);
}

/* A connection broke; says how. */
static void note_broken(struct class *c, const char *what, int code)
{
    pthread_mutex_lock(&c->lock);
    if (code == ECONNRESET || code == EPIPE)
        c->resets++;
    pthread_mutex_unlock(&c->lock);
    error(c, "%s: %s", what, code ? strerror(code) : "the server ended the connection");
}

/* ---- TCP ---- */

/* Wait until a socket is ready; 0, or -ETIMEDOUT after the timeout. */
static int wait_ready(int fd, short events)
{
    double end = now_ms() + timeout_s * 1e3;

    for (;;) {
        struct pollfd p = { fd, events, 0 };

        if (poll(&p, 1, SLICE_MS) > 0)
            return 0;
        if (now_ms() > end)
            return -ETIMEDOUT;
    }
}

/* The server's address with a port; both families have it in the same place. */
static int connect_port(int fd, int port)
{
    __typeof__(server) addr = server;

    addr.v4.sin_port = htons((uint16_t)port);
    return connect(fd, &addr.any, server_bytes);
}

/* A connected socket or a negative error. */
static int connect_to(struct class *c, int port)
{
    socklen_t bytes = sizeof(int);
    int one = 1, code = 0;
    int fd = socket(server.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect_port(fd, port) < 0 && errno != EINPROGRESS)
        code = errno;
    if (!code)
        code = -wait_ready(fd, POLLOUT);
    if (!code && getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &bytes) < 0)
        code = errno;
    if (code) {
        close(fd);
        return -code;
    }
    pthread_mutex_lock(&c->lock);
    c->connects++;
    pthread_mutex_unlock(&c->lock);
    return fd;
}

static int write_all(int fd, const void *buf, size_t bytes)
{
    const uint8_t *p = buf;

    while (bytes) {
        ssize_t n = write(fd, p, bytes);

        if (n < 0 && errno == EAGAIN) {
            int r = wait_ready(fd, POLLOUT);

            if (r)
                return r;
            continue;
        }
        if (n < 0)
            return -errno;
        p += n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Like read(), waiting for data; negative error. */
static ssize_t read_some(int fd, void *buf, size_t bytes)
{
    int r = wait_ready(fd, POLLIN);
    ssize_t n;

    if (r)
        return r;
    n = read(fd, buf, bytes);
    return n < 0 ? -errno : n;
}

/* Read one line without its end. 0, a negative error, or 1 when the peer ended the stream. */
static int read_line(int fd, char *line, size_t room)
{
    size_t used = 0;

    for (;;) {
        ssize_t n = read_some(fd, line + used, room - 1 - used);

        if (n == 0)
            return 1;
        if (n < 0)
            return (int)n;
        used += (size_t)n;
        line[used] = '\0';
        if (line[used - 1] == '\n') {
            line[used - 1] = '\0';
            return 0;
        }
        if (used == room - 1)
            return -EMSGSIZE;
    }
}

/* Request, answer, again, on one connection for as long as it lives. Used for the counter (answers
 * have to count up) and for the diverging service (answers have to repeat the request). */
static void run_lines(struct class *c, int port)
{
    char line[LAB_LINE_MAX], request[64];
    uint64_t global_before = 0, sequence = 0;

    while (!atomic_load(&stopping)) {
        uint64_t own_before = 0;
        int fd = connect_to(c, port);

        if (fd < 0) {
            error(c, "connect: %s", strerror(-fd));
            sleep_ms(RETRY_MS);
            continue;
        }
        while (!atomic_load(&stopping)) {
            double sent = now_ms();
            uint64_t own = 0, global = 0;
            int r;

            if (port == LAB_PORT_COUNTER)
                snprintf(request, sizeof(request), "inc\n");
            else
                snprintf(request, sizeof(request), "tick %" PRIu64 "\n", ++sequence);
            note_request(c);
            r = write_all(fd, request, strlen(request));
            if (!r)
                r = read_line(fd, line, sizeof(line));
            if (r) {
                note_broken(c, "request", r < 0 ? -r : 0);
                break;
            }
            if (port == LAB_PORT_COUNTER) {
                if (sscanf(line, "%" SCNu64 " %" SCNu64, &own, &global) != 2)
                    error(c, "answer '%s' is no pair of numbers", line);
                else if (own != own_before + 1)
                    error(c, "counter went from %" PRIu64 " to %" PRIu64, own_before, own);
                else if (global <= global_before)
                    error(c, "global counter went from %" PRIu64 " to %" PRIu64, global_before,
                          global);
                own_before = own;
                global_before = global;
            } else {
                uint64_t echoed = 0;

                if (sscanf(line, "%" SCNu64 " tick %" SCNu64, &own, &echoed) != 2 ||
                    echoed != sequence)
                    error(c, "answer '%s' to request %" PRIu64, line, sequence);
            }
            note_answer(c, sent);
            sleep_ms(c->interval_ms);
        }
        close(fd);
    }
}

static void run_long(struct class *c)
{
    run_lines(c, LAB_PORT_COUNTER);
}

static void run_diverge(struct class *c)
{
    run_lines(c, LAB_PORT_DIVERGE);
}

/* One connection per request. */
static void run_short(struct class *c)
{
    static const char request[] = "GET / HTTP/1.0\r\nHost: guest\r\n\r\n";

    while (!atomic_load(&stopping)) {
        char text[512];
        size_t used = 0;
        double sent = now_ms();
        ssize_t n = 0;
        int fd, r;

        note_request(c);
        fd = connect_to(c, LAB_PORT_HTTP);
        if (fd < 0) {
            error(c, "connect: %s", strerror(-fd));
            sleep_ms(RETRY_MS);
            continue;
        }
        r = write_all(fd, request, sizeof(request) - 1);
        while (!r && used < sizeof(text) &&
               (n = read_some(fd, text + used, sizeof(text) - used)) > 0)
            used += (size_t)n;
        if (r || n < 0)
            note_broken(c, "request", r ? -r : (int)-n);
        else if (used != sizeof(LAB_HTTP_ANSWER) - 1 || memcmp(text, LAB_HTTP_ANSWER, used) != 0)
            error(c, "wrong answer of %zu bytes", used);
        else
            note_answer(c, sent);
        close(fd);
        sleep_ms(c->interval_ms);
    }
}

/* Requests one after the other on a connection that is kept. */
static void run_http(struct class *c)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: guest\r\n\r\n";
    static const char want[] = LAB_HTTP_KEPT;

    while (!atomic_load(&stopping)) {
        int fd = connect_to(c, LAB_PORT_HTTP);

        if (fd < 0) {
            error(c, "connect: %s", strerror(-fd));
            sleep_ms(RETRY_MS);
            continue;
        }
        while (!atomic_load(&stopping)) {
            char text[sizeof(want)];
            size_t used = 0;
            double sent = now_ms();
            ssize_t n = 1;
            int r;

            note_request(c);
            r = write_all(fd, request, sizeof(request) - 1);
            while (!r && used < sizeof(want) - 1 &&
                   (n = read_some(fd, text + used, sizeof(want) - 1 - used)) > 0)
                used += (size_t)n;
            if (r || n <= 0) {
                note_broken(c, "request", r ? -r : (int)-n);
                break;
            }
            if (memcmp(text, want, used) != 0)
                error(c, "wrong answer");
            note_answer(c, sent);
            sleep_ms(c->interval_ms);
        }
        close(fd);
    }
}

static void run_bulk_down(struct class *c)
{
    static __thread uint8_t got[BULK_CHUNK], want[BULK_CHUNK];

    while (!atomic_load(&stopping)) {
        char request[32];
        double sent = now_ms();
        uint64_t offset = 0;
        bool wrong = false;
        ssize_t n = 0;
        int fd, r;

        note_request(c);
        fd = connect_to(c, LAB_PORT_SOURCE);
        if (fd < 0) {
            error(c, "connect: %s", strerror(-fd));
            sleep_ms(RETRY_MS);
            continue;
        }
        snprintf(request, sizeof(request), "%" PRIu64 "\n", c->bulk_bytes);
        r = write_all(fd, request, strlen(request));
        while (!r && !wrong && !atomic_load(&stopping) &&
               (n = read_some(fd, got, sizeof(got))) > 0) {
            lab_fill(want, offset, (size_t)n);
            for (ssize_t i = 0; i < n && !wrong; i++) {
                if (got[i] != want[i]) {
                    error(c, "wrong byte at offset %" PRIu64, offset + (uint64_t)i);
                    wrong = true;
                }
            }
            offset += (uint64_t)n;
            note_bytes(c, (uint64_t)n);
        }
        if (r || n < 0)
            note_broken(c, "transfer", r ? -r : (int)-n);
        else if (n == 0 && !wrong && !atomic_load(&stopping) && offset != c->bulk_bytes)
            error(c, "stream ended after %" PRIu64 " of %" PRIu64 " bytes", offset, c->bulk_bytes);
        else if (offset == c->bulk_bytes)
            note_answer(c, sent);
        close(fd);
        sleep_ms(c->interval_ms);
    }
}

static void run_bulk_up(struct class *c)
{
    static __thread uint8_t chunk[BULK_CHUNK];

    while (!atomic_load(&stopping)) {
        char line[LAB_LINE_MAX];
        uint64_t sent_bytes = 0, sum = LAB_SUM_START, count = 0, answered = 0;
        double sent = now_ms();
        int fd, r = 0;

        note_request(c);
        fd = connect_to(c, LAB_PORT_SINK);
        if (fd < 0) {
            error(c, "connect: %s", strerror(-fd));
            sleep_ms(RETRY_MS);
            continue;
        }
        /* A stop shortens the transfer; what was sent is still checked. */
        while (!r && sent_bytes < c->bulk_bytes && !atomic_load(&stopping)) {
            uint64_t bytes = c->bulk_bytes - sent_bytes;

            if (bytes > sizeof(chunk))
                bytes = sizeof(chunk);
            lab_fill(chunk, sent_bytes, (size_t)bytes);
            sum = lab_sum(sum, chunk, (size_t)bytes);
            r = write_all(fd, chunk, (size_t)bytes);
            if (!r) {
                sent_bytes += bytes;
                note_bytes(c, bytes);
            }
        }
        if (!r && shutdown(fd, SHUT_WR) < 0)
            r = -errno;
        if (!r)
            r = read_line(fd, line, sizeof(line));
        if (r)
            note_broken(c, "transfer", r < 0 ? -r : 0);
        else if (sscanf(line, "%" SCNu64 " %" SCNx64, &count, &answered) != 2 ||
                 count != sent_bytes || answered != sum)
            error(c, "sent %" PRIu64 " bytes, sum %016" PRIx64 ", the guest says '%s'", sent_bytes,
                  sum, line);
        else
            note_answer(c, sent);
        close(fd);
        sleep_ms(c->interval_ms);
    }
}

/* ---- UDP and ICMP: a request every interval, whether or not the last one was answered ---- */

static uint16_t icmp_sum(const uint8_t *p, size_t bytes)
{
    uint32_t sum = 0;

    for (size_t i = 0; i + 1 < bytes; i += 2)
        sum += (uint32_t)(p[i] << 8 | p[i + 1]);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons((uint16_t)~sum);
}

static bool over_v6(void)
{
    return server.any.sa_family == AF_INET6;
}

static size_t make_datagram(uint8_t *buf, bool is_ping, uint16_t id, uint64_t sequence)
{
    size_t head = is_ping ? sizeof(struct icmphdr) : 0;

    snprintf((char *)buf + head, 64, "datagram %05u %020" PRIu64 " end.", id, sequence);
    if (is_ping) {
        /* The two versions have the same echo header; the kernel does the sum of ICMPv6. */
        struct icmphdr icmp = { .type = over_v6() ? ICMP6_ECHO_REQUEST : ICMP_ECHO };

        icmp.un.echo.id = htons(id);
        icmp.un.echo.sequence = htons((uint16_t)sequence);
        memcpy(buf, &icmp, sizeof(icmp));
        icmp.checksum = over_v6() ? 0 : icmp_sum(buf, head + 40);
        memcpy(buf, &icmp, sizeof(icmp));
    }
    return head + 40;
}

/* The sequence number in an answer; 0 if it is not for us; -1 if it is wrong. */
static int64_t read_datagram(const uint8_t *buf, size_t bytes, bool is_ping, uint16_t id)
{
    uint8_t want[64];
    char text[64];
    uint64_t sequence;
    unsigned their_id;
    size_t skip = 0;

    if (is_ping) {
        struct icmphdr icmp;

        /* A raw IPv4 socket gives the header of the packet, one of IPv6 does not. */
        skip = over_v6() ? 0 : (size_t)(buf[0] & 15) * 4;
        if (bytes < skip + sizeof(icmp))
            return 0;
        memcpy(&icmp, buf + skip, sizeof(icmp));
        if (icmp.type != (over_v6() ? ICMP6_ECHO_REPLY : ICMP_ECHOREPLY) ||
            icmp.un.echo.id != htons(id))
            return 0;
        skip += sizeof(icmp);
    } else {
        if (bytes < 5 || memcmp(buf, "echo ", 5) != 0)
            return -1;
        skip = 5;
    }
    if (bytes != skip + 40)
        return -1;
    memcpy(text, buf + skip, 40);
    text[40] = '\0';
    if (sscanf(text, "datagram %u %" SCNu64, &their_id, &sequence) != 2 || their_id != id)
        return -1;
    make_datagram(want, false, id, sequence);
    return memcmp(want, text, 40) ? -1 : (int64_t)sequence;
}

static void run_datagrams(struct class *c, bool is_ping)
{
    static __thread double sent_ms[WINDOW]; /* 0: answered or never sent */
    const int family = server.any.sa_family;
    uint16_t id = (uint16_t)((getpid() ^ (int)(c - classes) << 10) & 0xffff);
    uint64_t sequence = 0, outstanding = 0;
    double next = now_ms(), end = 0;
    int fd = is_ping ? socket(family, SOCK_RAW | SOCK_CLOEXEC,
                              over_v6() ? IPPROTO_ICMPV6 : IPPROTO_ICMP)
                     : socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect_port(fd, is_ping ? 0 : LAB_PORT_ECHO) < 0) {
        error(c, "socket: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return;
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    /* After the end, answers under way get some time; what is lost stays lost. */
    while (!end || (outstanding && now_ms() < end)) {
        struct pollfd p = { fd, POLLIN, 0 };
        double now = now_ms();
        uint8_t buf[2048];
        ssize_t n;

        if (!end && atomic_load(&stopping))
            end = now + 3000;
        if (!end && now >= next) {
            size_t bytes = make_datagram(buf, is_ping, id, ++sequence);

            if (sent_ms[sequence % WINDOW] != 0) {
                pthread_mutex_lock(&c->lock);
                c->lost++;
                pthread_mutex_unlock(&c->lock);
                outstanding--;
            }
            note_request(c);
            sent_ms[sequence % WINDOW] = now;
            outstanding++;
            if (send(fd, buf, bytes, 0) < 0 && errno != EAGAIN && errno != ENOBUFS &&
                errno != EHOSTUNREACH && errno != ECONNREFUSED)
                error(c, "send: %s", strerror(errno));
            next += c->interval_ms;
            if (next < now)
                next = now;
        }
        if (poll(&p, 1, end || next - now > SLICE_MS ? SLICE_MS : (int)(next - now) + 1) <= 0)
            continue;
        n = recv(fd, buf, sizeof(buf), 0);
        if (n >= 0) {
            int64_t got = read_datagram(buf, (size_t)n, is_ping, id);

            if (got < 0 || (uint64_t)got > sequence) {
                error(c, "wrong answer of %zd bytes", n);
            } else if (got > 0 && sent_ms[got % WINDOW] != 0) {
                note_answer(c, sent_ms[got % WINDOW]);
                sent_ms[got % WINDOW] = 0;
                outstanding--;
            } else if (got > 0) {
                pthread_mutex_lock(&c->lock);
                c->repeated++;
                pthread_mutex_unlock(&c->lock);
            }
        }
    }
    close(fd);
    pthread_mutex_lock(&c->lock);
    c->lost += outstanding;
    pthread_mutex_unlock(&c->lock);
    if (max_lost >= 0 && c->lost > (uint64_t)max_lost)
        error(c, "%" PRIu64 " of %" PRIu64 " datagrams lost", c->lost, c->requests);
}

static void run_udp(struct class *c)
{
    run_datagrams(c, false);
}

static void run_ping(struct class *c)
{
    run_datagrams(c, true);
}

/* ---- report ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void print_text(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fprintf(f, "\\%c", *text);
        else if ((unsigned char)*text < ' ')
            fprintf(f, "\\u%04x", (unsigned char)*text);
        else
            fputc(*text, f);
    }
    fputc('"', f);
}

static void print_class(FILE *f, struct class *c, bool with_latency)
{
    double end = c->end_ms > 0 ? c->end_ms : now_ms();
    double seconds = (end - c->begin_ms) / 1e3;

    fprintf(f,
            "{\"requests\": %" PRIu64 ", \"answers\": %" PRIu64 ", \"errors\": %" PRIu64
            ", \"connects\": %" PRIu64 ", \"resets\": %" PRIu64 ", \"lost\": %" PRIu64
            ", \"repeated\": %" PRIu64 ", \"bytes\": %" PRIu64
            ", \"bytes_per_s\": %.0f, \"gap_ms\": %.1f, \"gap_at_s\": %.3f",
            c->requests, c->answers, c->errors, c->connects, c->resets, c->lost, c->repeated,
            c->bytes, seconds > 0 ? (double)c->bytes / seconds : 0, c->gap_ms, c->gap_at_ms / 1e3);
    if (with_latency && c->latency_count) {
        size_t n = c->latency_count;

        qsort(c->latencies_ms, n, sizeof(double), by_value);
        fprintf(f, ", \"latency_ms\": {\"min\": %.2f, \"p50\": %.2f, \"p90\": %.2f, "
                   "\"p99\": %.2f, \"max\": %.2f}",
                c->latencies_ms[0], c->latencies_ms[n / 2], c->latencies_ms[n * 9 / 10],
                c->latencies_ms[n * 99 / 100], c->latencies_ms[n - 1]);
        if (raw) {
            fprintf(f, ", \"latencies_ms\": [");
            for (size_t i = 0; i < n; i++)
                fprintf(f, i ? ", %.2f" : "%.2f", c->latencies_ms[i]);
            fprintf(f, "]");
        }
    }
    fprintf(f, ", \"first_error\": ");
    if (c->errors)
        print_text(f, c->first_error);
    else
        fprintf(f, "null");
    fprintf(f, "}");
}

/* Classes of the same kind are numbered: long, long2, long3. */
static void print_report(FILE *f, bool last)
{
    uint64_t errors = 0;

    fprintf(f, "{\"server\": \"%s\", \"seconds\": %.3f, \"classes\": {", server_text,
            (now_ms() - start_ms) / 1e3);
    for (size_t i = 0; i < class_count; i++) {
        struct class *c = &classes[i];
        unsigned number = 1;

        for (size_t k = 0; k < i; k++)
            number += !strcmp(classes[k].name, c->name);
        pthread_mutex_lock(&c->lock);
        fprintf(f, i ? ", \"%s" : "\"%s", c->name);
        if (number > 1)
            fprintf(f, "%u", number);
        fprintf(f, "\": ");
        print_class(f, c, last);
        errors += c->errors;
        pthread_mutex_unlock(&c->lock);
    }
    fprintf(f, "}, \"errors\": %" PRIu64 "}\n", errors);
}

static void write_status(const char *path)
{
    char temp[4096];
    FILE *f;

    snprintf(temp, sizeof(temp), "%s.new", path);
    f = fopen(temp, "w");
    if (!f)
        return;
    print_report(f, false);
    if (fclose(f) == 0)
        rename(temp, path);
}

static void *class_thread(void *arg)
{
    struct class *c = arg;

    c->begin_ms = c->last_answer_ms = now_ms();
    c->run(c);
    c->end_ms = now_ms();
    if (c->requests && !c->answers && !c->bytes && !c->errors)
        error(c, "no answer at all");
    /* Silence up to the end is a gap too. */
    pthread_mutex_lock(&c->lock);
    if (c->requests > c->answers + c->lost || !c->answers || c->lost)
        note_progress(c, c->end_ms);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static void add_class(const char *name, void (*run)(struct class *), unsigned interval_ms,
                      uint64_t bulk_bytes)
{
    struct class *c = &classes[class_count];

    if (class_count == CLASSES_MAX) {
        fprintf(stderr, "labclient: at most %d classes\n", CLASSES_MAX);
        exit(2);
    }
    class_count++;
    c->name = name;
    c->run = run;
    c->interval_ms = interval_ms;
    c->bulk_bytes = bulk_bytes;
    pthread_mutex_init(&c->lock, NULL);
}

static void usage(int code)
{
    fprintf(code ? stderr : stdout,
            "usage: labclient [options] CLASS...   (each class may be given more than once)\n"
            "  --server IP         the guest (needed)\n"
            "  --seconds N         run so long; without it until SIGTERM\n"
            "  --timeout S         give up a request after S seconds (default %d)\n"
            "  --max-lost N        more lost datagrams than N are an error (default: any loss is\n"
            "                      counted only)\n"
            "  --status FILE       write the figures there twice a second\n"
            "  --raw               every latency in the report\n"
            "classes; MS is the time between requests, BYTES the size of a transfer:\n"
            "  --long MS  --short MS  --http MS  --udp MS  --ping MS  --diverge MS\n"
            "  --bulk-down BYTES  --bulk-up BYTES\n",
            TIMEOUT_S_DEFAULT);
    exit(code);
}

static uint64_t number(const char *text)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || *end || end == text || *text == '-') {
        fprintf(stderr, "labclient: '%s' is not a number\n", text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "server", required_argument, NULL, 'S' },   { "seconds", required_argument, NULL, 's' },
        { "timeout", required_argument, NULL, 't' },  { "max-lost", required_argument, NULL, 'm' },
        { "status", required_argument, NULL, 'f' },   { "long", required_argument, NULL, 'l' },
        { "short", required_argument, NULL, 'c' },    { "udp", required_argument, NULL, 'u' },
        { "ping", required_argument, NULL, 'p' },     { "diverge", required_argument, NULL, 'd' },
        { "bulk-down", required_argument, NULL, 'D' },
        { "http", required_argument, NULL, 'H' },     { "bulk-up", required_argument, NULL, 'U' },
        { "raw", no_argument, NULL, 'r' },            { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    struct sigaction action = { .sa_handler = request_stop };
    const char *status_file = NULL;
    uint64_t seconds = 0, errors = 0;
    double next_status = 0;
    int opt;

    while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (opt) {
        case 'S':
            if (inet_pton(AF_INET, optarg, &server.v4.sin_addr) == 1) {
                server.any.sa_family = AF_INET;
                server_bytes = sizeof(server.v4);
            } else if (inet_pton(AF_INET6, optarg, &server.v6.sin6_addr) == 1) {
                server.any.sa_family = AF_INET6;
                server_bytes = sizeof(server.v6);
            } else {
                usage(2);
            }
            snprintf(server_text, sizeof(server_text), "%s", optarg);
            break;
        case 's':
            seconds = number(optarg);
            break;
        case 't':
            timeout_s = (unsigned)number(optarg);
            break;
        case 'm':
            max_lost = (int64_t)number(optarg);
            break;
        case 'f':
            status_file = optarg;
            break;
        case 'r':
            raw = true;
            break;
        case 'l':
            add_class("long", run_long, (unsigned)number(optarg), 0);
            break;
        case 'c':
            add_class("short", run_short, (unsigned)number(optarg), 0);
            break;
        case 'H':
            add_class("http", run_http, (unsigned)number(optarg), 0);
            break;
        case 'u':
            add_class("udp", run_udp, (unsigned)number(optarg), 0);
            break;
        case 'p':
            add_class("ping", run_ping, (unsigned)number(optarg), 0);
            break;
        case 'd':
            add_class("diverge", run_diverge, (unsigned)number(optarg), 0);
            break;
        case 'D':
            add_class("bulk-down", run_bulk_down, 0, number(optarg));
            break;
        case 'U':
            add_class("bulk-up", run_bulk_up, 0, number(optarg));
            break;
        case 'h':
            usage(0);
            break;
        default:
            usage(2);
        }
    }
    if (optind != argc || !class_count || !server_bytes)
        usage(2);

    signal(SIGPIPE, SIG_IGN);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    start_ms = now_ms();
    for (size_t i = 0; i < class_count; i++) {
        if (pthread_create(&classes[i].thread, NULL, class_thread, &classes[i]) != 0) {
            fprintf(stderr, "labclient: cannot start a thread\n");
            return 1;
        }
    }
    while (!atomic_load(&stopping)) {
        usleep(20000);
        if (seconds && now_ms() - start_ms >= (double)seconds * 1e3)
            atomic_store(&stopping, true);
        if (status_file && now_ms() >= next_status) {
            write_status(status_file);
            next_status = now_ms() + 500;
        }
    }
    for (size_t i = 0; i < class_count; i++)
        pthread_join(classes[i].thread, NULL);
    if (status_file)
        write_status(status_file);
    print_report(stdout, true);
    for (size_t i = 0; i < class_count; i++)
        errors += classes[i].errors;
    return errors ? 1 : 0;
}
