/*
 * The service inside a lab guest. See labproto.h for what it answers. One process, one thread, one
 * poll loop: what it sends depends on what it received only (ports 7005 and up apart), so that two
 * copies of a guest agree.
 */
#define _GNU_SOURCE
#include "labdb.h"
#include "labdisk.h"
#include "labproto.h"
#include "labwork.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNS_MAX 512
#define CHUNK_BYTES 16384
#define PAGE_BYTES 4096
#define DIRTY_PAGES_DEFAULT 4096
#define DIRTY_PAGES_MAX 65536
#define DIRTY_SLICE_MS 10
#define ACKNOWLEDGED_MS_MAX 20000

struct conn {
    int fd;
    int port;
    bool ended; /* the peer sent its end of stream */
    bool kept; /* the HTTP request under way leaves its connection open */
    bool closing; /* close once everything is written */
    bool calling; /* opened by us: LAB_PORT_CALL */
    size_t in_bytes;
    size_t out_bytes;
    uint64_t count; /* counter value, bytes received by the sink, or number sent last by a call */
    uint64_t sum;
    uint64_t offset; /* of the source's next byte */
    uint64_t remaining; /* bytes that the source still has to send */
    uint64_t rounds; /* of a call: numbers on each connection, 0 for no end */
    struct sockaddr_in6 callee;
    char in[LAB_LINE_MAX];
    uint8_t out[CHUNK_BYTES];
};

static const int tcp_ports[] = {
    LAB_PORT_COUNTER, LAB_PORT_SOURCE, LAB_PORT_SINK,  LAB_PORT_HTTP,
    LAB_PORT_DIVERGE, LAB_PORT_DIRTY,  LAB_PORT_POWER, LAB_PORT_CALL, LAB_PORT_DISK,
    LAB_PORT_DB,
};
static const int udp_ports[] = { LAB_PORT_ECHO, LAB_PORT_DIVERGE };

#define TCP_PORTS (sizeof(tcp_ports) / sizeof(tcp_ports[0]))
#define UDP_PORTS (sizeof(udp_ports) / sizeof(udp_ports[0]))

static struct conn *conns[CONNS_MAX];
static uint64_t global_count;

static struct {
    uint8_t *area;
    uint64_t pages_per_s;
    uint64_t area_pages;
    uint64_t next_page;
    uint64_t written;
    uint64_t since_ns;
} dirty;

static void fatal(const char *what)
{
    fprintf(stderr, "labservice: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static uint64_t wall_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void set_nonblocking(int fd)
{
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        fatal("fcntl");
}

/* For IPv4 and IPv6. */
static int open_port(int type, int port)
{
    struct sockaddr_in6 addr = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
    int one = 1, off = 0;
    int fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fatal("socket");
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
        fatal("bind");
    if (type == SOCK_STREAM && listen(fd, 128) < 0)
        fatal("listen");
    set_nonblocking(fd);
    return fd;
}

/* ---- answers ---- */

/* Queue a short text; a connection that does not read its answers is closed. */
static void answer(struct conn *c, const char *text)
{
    size_t bytes = strlen(text);

    if (bytes > sizeof(c->out) - c->out_bytes) {
        c->closing = true;
        return;
    }
    memcpy(c->out + c->out_bytes, text, bytes);
    c->out_bytes += bytes;
}

static void flush_now(const struct conn *c)
{
    size_t done = 0;

    while (done < c->out_bytes) {
        ssize_t n = write(c->fd, c->out + done, c->out_bytes - done);

        if (n <= 0)
            return;
        done += (size_t)n;
    }
}

/* What the peer has not acknowledged is lost with the guest. */
static void await_acknowledgement(const struct conn *c)
{
    int unacknowledged, i;

    for (i = 0; i < ACKNOWLEDGED_MS_MAX / 10; i++) {
        if (ioctl(c->fd, SIOCOUTQ, &unacknowledged) < 0 || !unacknowledged)
            return;
        usleep(10000);
    }
}

static void power(struct conn *c, const char *line)
{
    int how = 0;

    if (!strcmp(line, "poweroff")) {
        how = RB_POWER_OFF;
    } else if (!strcmp(line, "reboot")) {
        how = RB_AUTOBOOT;
    } else if (strcmp(line, "crash") != 0) {
        answer(c, "error\n");
        return;
    }
    answer(c, "ok\n");
    flush_now(c);
    await_acknowledgement(c);
    sync();
    if (how) {
        reboot(how);
    } else {
        int fd = open("/proc/sysrq-trigger", O_WRONLY);

        if (fd >= 0 && write(fd, "c", 1) < 0)
            fatal("sysrq-trigger");
    }
}

static void set_dirty(struct conn *c, const char *line)
{
    uint64_t pages_per_s = 0, area_pages = DIRTY_PAGES_DEFAULT;

    if (sscanf(line, "dirty %" SCNu64 " %" SCNu64, &pages_per_s, &area_pages) < 1 ||
        !area_pages || area_pages > DIRTY_PAGES_MAX) {
        answer(c, "error\n");
        return;
    }
    if (dirty.area) {
        munmap(dirty.area, dirty.area_pages * PAGE_BYTES);
        dirty.area = NULL;
    }
    if (pages_per_s) {
        void *area = mmap(NULL, area_pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (area == MAP_FAILED) {
            answer(c, "error\n");
            return;
        }
        dirty.area = area;
        dirty.area_pages = area_pages;
        dirty.pages_per_s = pages_per_s;
        dirty.next_page = 0;
        dirty.written = 0;
        dirty.since_ns = now_ns();
    }
    answer(c, "ok\n");
}

static void write_pages(void)
{
    uint64_t due = 0;
    uint64_t now = now_ns();

    if (!dirty.area)
        return;
    /* After a stop of the guest the missing pages are not made up for. */
    if (now - dirty.since_ns > 1000000000) {
        dirty.since_ns = now;
        dirty.written = 0;
    }
    due = (now - dirty.since_ns) * dirty.pages_per_s / 1000000000;
    for (; dirty.written < due; dirty.written++) {
        uint8_t *page = dirty.area + dirty.next_page * PAGE_BYTES;

        for (size_t i = 0; i < PAGE_BYTES; i += 512)
            page[i] = (uint8_t)(page[i] + 1);
        dirty.next_page = (dirty.next_page + 1) % dirty.area_pages;
    }
}

static struct conn *new_conn(int fd, int port)
{
    int one = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    for (int i = 0; i < CONNS_MAX; i++) {
        if (conns[i])
            continue;
        conns[i] = calloc(1, sizeof(*conns[i]));
        if (!conns[i])
            break;
        conns[i]->fd = fd;
        conns[i]->port = port;
        conns[i]->sum = LAB_SUM_START;
        return conns[i];
    }
    close(fd);
    return NULL;
}

static void send_number(struct conn *c)
{
    char text[32];

    snprintf(text, sizeof(text), "%" PRIu64 "\n", c->count);
    answer(c, text);
}

static bool call(const struct sockaddr_in6 *callee, uint64_t rounds, uint64_t number)
{
    struct conn *c;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return false;
    if (connect(fd, (const struct sockaddr *)callee, sizeof(*callee)) < 0 && errno != EINPROGRESS) {
        close(fd);
        return false;
    }
    c = new_conn(fd, LAB_PORT_CALL);
    if (!c)
        return false;
    c->calling = true;
    c->callee = *callee;
    c->rounds = rounds;
    c->count = number;
    send_number(c);
    return true;
}

static void called_back(struct conn *c, const char *line)
{
    if (strtoull(line, NULL, 10) != c->count) {
        c->closing = true;
    } else if (c->rounds && c->count % c->rounds == 0) {
        c->closing = true;
        call(&c->callee, c->rounds, c->count + 1);
    } else {
        c->count++;
        send_number(c);
    }
}

static void start_call(struct conn *c, const char *line)
{
    struct sockaddr_in6 peer;
    socklen_t bytes = sizeof(peer);
    uint64_t rounds;
    uint16_t port;

    if (sscanf(line, "call %" SCNu16 " %" SCNu64, &port, &rounds) != 2 ||
        getpeername(c->fd, (struct sockaddr *)&peer, &bytes) < 0) {
        answer(c, "error\n");
        return;
    }
    peer.sin6_port = htons(port);
    answer(c, call(&peer, rounds, 1) ? "ok\n" : "error\n");
}

static void handle_line(struct conn *c, const char *line)
{
    char text[LAB_LINE_MAX + 64];

    switch (c->port) {
    case LAB_PORT_COUNTER:
        if (strcmp(line, "inc") != 0) {
            answer(c, "error\n");
            return;
        }
        c->count++;
        global_count++;
        snprintf(text, sizeof(text), "%" PRIu64 " %" PRIu64 "\n", c->count, global_count);
        answer(c, text);
        return;
    case LAB_PORT_SOURCE:
        c->remaining = strtoull(line, NULL, 10);
        c->closing = true;
        return;
    case LAB_PORT_HTTP:
        if (!line[0] && c->kept) {
            answer(c, LAB_HTTP_KEPT);
            c->kept = false;
        } else if (!line[0]) {
            answer(c, LAB_HTTP_ANSWER);
            c->closing = true;
        } else if (strstr(line, " HTTP/1.1")) {
            c->kept = true;
        }
        return;
    case LAB_PORT_DIVERGE:
        snprintf(text, sizeof(text), "%" PRIu64 " %s\n", wall_ns(), line);
        answer(c, text);
        return;
    case LAB_PORT_DIRTY:
        if (labwork_command(line, text, sizeof(text)))
            answer(c, text);
        else
            set_dirty(c, line);
        return;
    case LAB_PORT_POWER:
        power(c, line);
        return;
    case LAB_PORT_DISK:
        labdisk_command(line, text, sizeof(text));
        answer(c, text);
        return;
    case LAB_PORT_DB:
        labdb_command(line, text, sizeof(text));
        answer(c, text);
        return;
    case LAB_PORT_CALL:
        if (c->calling)
            called_back(c, line);
        else
            start_call(c, line);
        return;
    }
}

static void handle_lines(struct conn *c)
{
    char *end;

    while (!c->closing && (end = memchr(c->in, '\n', c->in_bytes))) {
        size_t used = (size_t)(end - c->in) + 1;

        *end = '\0';
        if (end > c->in && end[-1] == '\r')
            end[-1] = '\0';
        handle_line(c, c->in);
        c->in_bytes -= used;
        memmove(c->in, c->in + used, c->in_bytes);
    }
    if (c->in_bytes == sizeof(c->in))
        c->closing = true; /* a line longer than any we know */
}

/* ---- connections ---- */

static void close_conn(int i)
{
    close(conns[i]->fd);
    free(conns[i]);
    conns[i] = NULL;
}

static void accept_conn(int listener, int port)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd >= 0)
        new_conn(fd, port);
}

/* Returns false when the connection is broken. */
static bool read_conn(struct conn *c)
{
    static uint8_t sink[65536];
    ssize_t n;

    if (c->port == LAB_PORT_SINK) {
        n = read(c->fd, sink, sizeof(sink));
        if (n > 0) {
            c->sum = lab_sum(c->sum, sink, (size_t)n);
            c->count += (uint64_t)n;
        }
    } else {
        n = read(c->fd, c->in + c->in_bytes, sizeof(c->in) - c->in_bytes);
        if (n > 0) {
            c->in_bytes += (size_t)n;
            handle_lines(c);
        }
    }
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    if (n == 0) {
        char text[64];

        c->ended = true;
        c->closing = true;
        if (c->port == LAB_PORT_SINK) {
            snprintf(text, sizeof(text), "%" PRIu64 " %016" PRIx64 "\n", c->count, c->sum);
            answer(c, text);
        }
    }
    return true;
}

static bool has_output(const struct conn *c)
{
    return c->out_bytes || c->remaining;
}

/* Returns false when the connection is broken or done. */
static bool write_conn(struct conn *c)
{
    if (c->remaining && c->out_bytes < sizeof(c->out)) {
        size_t bytes = sizeof(c->out) - c->out_bytes;

        if (bytes > c->remaining)
            bytes = (size_t)c->remaining;
        lab_fill(c->out + c->out_bytes, c->offset, bytes);
        c->out_bytes += bytes;
        c->offset += bytes;
        c->remaining -= bytes;
    }
    if (c->out_bytes) {
        ssize_t n = write(c->fd, c->out, c->out_bytes);

        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        c->out_bytes -= (size_t)n;
        memmove(c->out, c->out + n, c->out_bytes);
    }
    return has_output(c) || !c->closing;
}

static void answer_datagram(int fd, int port)
{
    struct sockaddr_in6 peer;
    socklen_t peer_bytes = sizeof(peer);
    static char in[16384], out[sizeof(in) + 64];
    ssize_t n = recvfrom(fd, in, sizeof(in), 0, (struct sockaddr *)&peer, &peer_bytes);
    int prefix;

    if (n < 0)
        return;
    if (port == LAB_PORT_ECHO)
        prefix = snprintf(out, 64, "echo ");
    else
        prefix = snprintf(out, 64, "%" PRIu64 " ", wall_ns());
    memcpy(out + prefix, in, (size_t)n);
    if (sendto(fd, out, (size_t)prefix + (size_t)n, 0, (struct sockaddr *)&peer, peer_bytes) < 0)
        return; /* a lost datagram, as the network may lose one */
}

int main(void)
{
    static struct pollfd fds[TCP_PORTS + UDP_PORTS + CONNS_MAX];
    static int owner[TCP_PORTS + UDP_PORTS + CONNS_MAX];
    nfds_t fixed = 0;

    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < TCP_PORTS; i++)
        fds[fixed++] = (struct pollfd){ open_port(SOCK_STREAM, tcp_ports[i]), POLLIN, 0 };
    for (size_t i = 0; i < UDP_PORTS; i++)
        fds[fixed++] = (struct pollfd){ open_port(SOCK_DGRAM, udp_ports[i]), POLLIN, 0 };
    for (;;) {
        nfds_t count = fixed;

        for (int i = 0; i < CONNS_MAX; i++) {
            struct conn *c = conns[i];
            short events = 0;

            if (!c)
                continue;
            if (!c->closing)
                events |= POLLIN;
            if (has_output(c))
                events |= POLLOUT;
            owner[count] = i;
            fds[count++] = (struct pollfd){ c->fd, events, 0 };
        }
        if (poll(fds, count, dirty.area ? DIRTY_SLICE_MS : -1) < 0 && errno != EINTR)
            fatal("poll");
        for (size_t i = 0; i < TCP_PORTS; i++)
            if (fds[i].revents)
                accept_conn(fds[i].fd, tcp_ports[i]);
        for (size_t i = 0; i < UDP_PORTS; i++)
            if (fds[TCP_PORTS + i].revents)
                answer_datagram(fds[TCP_PORTS + i].fd, udp_ports[i]);
        for (nfds_t i = fixed; i < count; i++) {
            struct conn *c = conns[owner[i]];
            bool alive = !(fds[i].revents & (POLLERR | POLLNVAL));

            if (!fds[i].revents)
                continue;
            if (alive && fds[i].events & POLLIN && fds[i].revents & (POLLIN | POLLHUP))
                alive = read_conn(c);
            else if (alive && fds[i].revents & POLLHUP)
                alive = false;
            if (alive && (c->closing || has_output(c)))
                alive = write_conn(c);
            if (!alive)
                close_conn(owner[i]);
        }
        write_pages();
    }
}
