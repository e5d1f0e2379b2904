/*
 * bench_colo.c: our comparison against QEMU's colo-compare, complete with I/O: two unix sockets
 * in, one out, frames behind a length in network order.
 *
 * A pair is a primary frame and the secondary's equal one; both must be taken in and the primary's
 * given out.  Frames are built outside the clock.  Up to WINDOW pairs are under way; as many fewer,
 * for both, as colo-compare needs to lose none (it drops when its output socket is full).  CPU time
 * is that of all threads of the compared process.
 *
 *   bench_colo [--ours] [PAIRS of 64 bytes]
 *
 * Needs qemu-system-x86_64; no guest runs in it.
 */
#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/frames.h"
#include "tools/remus/compare.h"

#define WINDOW      256u                    /* pairs under way, at most */
#define TRIES       6u
#define WARM        1000u                   /* pairs before the clock starts */
#define SLOTS       1024u                   /* frames the server may hold; above WINDOW */
#define READ_BYTES  (256u << 10)
#define STALL_MS    4000                    /* colo-compare gives up waiting after 3000 */
#define CONNECT_MS  10000

static const char *const socket_names[3] = {"primary", "secondary", "out"};

static void die(const char *what)
{
    fprintf(stderr, "bench_colo: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void socket_path(struct sockaddr_un *a, const char *dir, unsigned int i)
{
    memset(a, 0, sizeof(*a));
    a->sun_family = AF_UNIX;
    snprintf(a->sun_path, sizeof(a->sun_path), "%.80s/%s", dir, socket_names[i]);
}

/* ---- Our comparison behind the same sockets -------------------------------------------------- */

struct input {
    int fd;
    uint8_t *buffer;
    size_t bytes;
};

struct slot {
    uint8_t *frame; /* with its length in front */
    size_t room, bytes;
};

struct server {
    struct cmp *cmp;
    struct slot slots[SLOTS];
    struct iovec out[SLOTS];
    unsigned int out_count;
    uint64_t primary_id, secondary_id;
};

static void on_action(void *arg, const struct cmp_action *a)
{
    struct server *s = arg;
    struct slot *slot = &s->slots[a->id % SLOTS];

    if (a->type != CMP_RELEASE && a->type != CMP_RELEASE_WINDOW && a->type != CMP_RELEASE_SACK) {
        return;
    }
    s->out[s->out_count++] = (struct iovec){.iov_base = slot->frame, .iov_len = slot->bytes};
}

static void out_write(struct server *s, int fd)
{
    unsigned int done = 0;

    while (done < s->out_count) {
        unsigned int count = s->out_count - done;
        ssize_t n = writev(fd, s->out + done, (int)(count < 512 ? count : 512));

        if (n < 0) {
            die("out");
        }
        for (; done < s->out_count && (size_t)n >= s->out[done].iov_len; done++) {
            n -= (ssize_t)s->out[done].iov_len;
        }
        if (n) {
            s->out[done].iov_base = (uint8_t *)s->out[done].iov_base + n;
            s->out[done].iov_len -= (size_t)n;
        }
    }
    s->out_count = 0;
}

static void primary_take(struct server *s, uint64_t now_us, const uint8_t *wire, size_t bytes)
{
    struct slot *slot = &s->slots[++s->primary_id % SLOTS];

    if (slot->room < bytes) {
        free(slot->frame);
        slot->frame = malloc(bytes);
        slot->room = bytes;
        if (!slot->frame) {
            die("memory");
        }
    }
    memcpy(slot->frame, wire, bytes);
    slot->bytes = bytes;
    cmp_primary(s->cmp, now_us, s->primary_id, slot->frame + 4, bytes - 4, false);
}

/* Returns false at the end of the stream. */
static bool input_read(struct server *s, struct input *in, bool primary, int out)
{
    size_t at = 0;
    uint32_t length;
    ssize_t n = read(in->fd, in->buffer + in->bytes, READ_BYTES - in->bytes);
    uint64_t now_us = now_ns() / 1000;

    if (n <= 0) {
        return false;
    }
    in->bytes += (size_t)n;
    while (in->bytes - at >= 4) {
        memcpy(&length, in->buffer + at, 4);
        length = ntohl(length);
        if (length > FRAME_MAX) {
            errno = EBADMSG;
            die("frame");
        }
        if (in->bytes - at < 4 + (size_t)length) {
            break;
        }
        if (primary) {
            primary_take(s, now_us, in->buffer + at, 4 + (size_t)length);
        } else {
            cmp_secondary(s->cmp, now_us, 1, ++s->secondary_id, in->buffer + at + 4, length);
        }
        at += 4 + (size_t)length;
    }
    memmove(in->buffer, in->buffer + at, in->bytes - at);
    in->bytes -= at;
    out_write(s, out);
    return true;
}

static void serve(const char *dir)
{
    const struct cmp_limits limits = {.hash_seed = 1, .bytes_max = 256u << 20};
    struct server *s = calloc(1, sizeof(*s));
    struct input in[2];
    int fds[3];
    unsigned int i;

    if (!s || cmp_new(&s->cmp, &limits, on_action, s)) {
        die("comparison");
    }
    for (i = 0; i < 3; i++) {
        struct sockaddr_un a;
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        socket_path(&a, dir, i);
        if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 1)) {
            die(a.sun_path);
        }
        fds[i] = fd;
    }
    for (i = 0; i < 3; i++) {
        fds[i] = accept(fds[i], NULL, NULL);
        if (fds[i] < 0) {
            die("accept");
        }
    }
    for (i = 0; i < 2; i++) {
        in[i] = (struct input){.fd = fds[i], .buffer = malloc(READ_BYTES)};
        if (!in[i].buffer) {
            die("memory");
        }
    }
    for (;;) {
        struct pollfd p[2] = {{.fd = fds[0], .events = POLLIN}, {.fd = fds[1], .events = POLLIN}};

        if (poll(p, 2, -1) < 0) {
            die("poll");
        }
        for (i = 0; i < 2; i++) {
            if (p[i].revents && !input_read(s, &in[i], i == 0, fds[2])) {
                _exit(0);
            }
        }
    }
}

/* ---- QEMU's ---------------------------------------------------------------------------------- */

static void exec_qemu(const char *dir)
{
    char chardevs[3][160];
    unsigned int i;
    int null = open("/dev/null", O_RDWR);

    for (i = 0; i < 3; i++) {
        snprintf(chardevs[i], sizeof(chardevs[i]), "socket,id=%s,path=%s/%s,server=on,wait=off",
                 socket_names[i], dir, socket_names[i]);
    }
    dup2(null, 0);
    dup2(null, 1);
    dup2(null, 2);
    execlp("qemu-system-x86_64", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display",
           "none", "-machine", "none", "-chardev", chardevs[0], "-chardev", chardevs[1],
           "-chardev", chardevs[2], "-object", "iothread,id=thread", "-object",
           "colo-compare,id=compare,primary_in=primary,secondary_in=secondary,outdev=out,"
           "iothread=thread", (char *)NULL);
    die("qemu-system-x86_64");
}

/* ---- The driver ------------------------------------------------------------------------------ */

/* CPU time of all threads of a process, nanoseconds. */
static uint64_t cpu_ns(pid_t pid)
{
    char path[300];
    struct dirent *entry;
    uint64_t sum = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    dir = opendir(path);
    while (dir && (entry = readdir(dir))) {
        unsigned long long ns;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", (int)pid, entry->d_name);
        f = entry->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (f && fscanf(f, "%llu", &ns) == 1) {
            sum += ns;
        }
        if (f) {
            fclose(f);
        }
    }
    if (dir) {
        closedir(dir);
    }
    return sum;
}

static int connect_to(const char *dir, unsigned int i)
{
    uint64_t end = now_ns() + CONNECT_MS * 1000000ull;
    struct sockaddr_un a;

    socket_path(&a, dir, i);
    for (;;) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), room = 4 << 20;

        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
        if (!connect(fd, (struct sockaddr *)&a, sizeof(a))) {
            return fd;
        }
        close(fd);
        if (now_ns() > end) {
            die(a.sun_path);
        }
        usleep(10000);
    }
}

/* Frames of one row, each with its length in front; all of one size. */
struct frames {
    uint8_t *data;
    size_t stride;
    uint32_t count;
};

static struct frames build(size_t bytes, uint32_t flows, uint32_t count)
{
    struct frames f = {.stride = bytes + 4, .count = count};
    uint32_t *seqs = calloc(flows, sizeof(*seqs)), i;
    uint8_t *payload = calloc(1, 65536), *frame = calloc(1, FRAME_MAX);

    f.data = malloc(f.stride * count);
    if (!f.data || !seqs || !payload || !frame) {
        die("memory");
    }
    for (i = 0; i < count; i++) {
        uint32_t flow = i % flows, wire = htonl((uint32_t)bytes);
        struct tcp_spec s = {
            .seq = 1000 + seqs[flow],
            .ack = 1,
            .data = payload,
            .bytes = bytes - 54,
            .guest_port = (uint16_t)(1 + flow / 250),
            .peer_port = (uint16_t)(1000 + flow % 250),
        };

        memset(payload, (int)i, bytes);
        if (frame_tcp(frame, &s) != bytes) {
            errno = EINVAL;
            die("frame of another size");
        }
        memcpy(f.data + i * f.stride, &wire, 4);
        memcpy(f.data + i * f.stride + 4, frame, bytes);
        seqs[flow] += (uint32_t)(bytes - 54);
    }
    free(seqs);
    free(payload);
    free(frame);
    return f;
}

/* Writes what fits of the bytes up to limit; returns how far it got. */
static size_t feed(int fd, const struct frames *f, size_t at, size_t limit)
{
    if (at < limit) {
        ssize_t n = write(fd, f->data + at, limit - at);

        if (n < 0 && errno != EAGAIN) {
            die("write");
        }
        at += n > 0 ? (size_t)n : 0;
    }
    return at;
}

/* Pairs [from, to) through a running comparison; false if it does not give them all back. */
static bool pump(const int fds[3], const struct frames *f, uint32_t from, uint32_t to,
                 uint32_t window)
{
    static uint8_t sink[1 << 20];
    size_t sent[2] = {from * f->stride, from * f->stride}, got = from * f->stride;
    size_t end = to * f->stride;

    while (got < end) {
        size_t limit = (got / f->stride + window) * f->stride;
        struct pollfd p[3] = {{.fd = fds[2], .events = POLLIN}};
        nfds_t count = 1;
        unsigned int i;
        ssize_t n;

        limit = limit < end ? limit : end;
        for (i = 0; i < 2; i++) {
            sent[i] = feed(fds[i], f, sent[i], limit);
            if (sent[i] < limit) {
                p[count++] = (struct pollfd){.fd = fds[i], .events = POLLOUT};
            }
        }
        if (poll(p, count, STALL_MS) <= 0) {
            return false;
        }
        n = read(fds[2], sink, sizeof(sink));
        if (n == 0 || (n < 0 && errno != EAGAIN)) {
            return false;
        }
        got += n > 0 ? (size_t)n : 0;
    }
    return true;
}

struct figures {
    double cpu, wall; /* nanoseconds for each pair */
    bool ok;
};

static struct figures measure(const struct frames *f, uint32_t window, bool qemu)
{
    char dir[] = "/tmp/bench-colo-XXXXXX", path[64];
    struct figures result = {0};
    uint64_t cpu, wall;
    int fds[3];
    unsigned int i;
    pid_t pid;

    if (!mkdtemp(dir)) {
        die(dir);
    }
    pid = fork();
    if (pid == 0) {
        if (qemu) {
            exec_qemu(dir);
        }
        serve(dir);
    }
    for (i = 0; i < 3; i++) {
        fds[i] = connect_to(dir, i);
    }
    if (pump(fds, f, 0, WARM, window)) {
        cpu = cpu_ns(pid);
        wall = now_ns();
        result.ok = pump(fds, f, WARM, f->count, window);
        result.wall = (double)(now_ns() - wall) / (f->count - WARM);
        result.cpu = (double)(cpu_ns(pid) - cpu) / (f->count - WARM);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (i = 0; i < 3; i++) {
        close(fds[i]);
        snprintf(path, sizeof(path), "%s/%s", dir, socket_names[i]);
        unlink(path);
    }
    rmdir(dir);
    return result;
}

int main(int argc, char **argv)
{
    static const size_t sizes[] = {64, 1500, 65000};
    static const uint32_t flows[] = {1, 100, 10000};
    bool ours_only = argc > 1 && !strcmp(argv[1], "--ours");
    const char *number = argc > 1 + ours_only ? argv[1 + ours_only] : "200000";
    uint32_t pairs = (uint32_t)strtoul(number, NULL, 10);
    unsigned int i, j, try;
    int status = 0;

    if (pairs < 1000) {
        fprintf(stderr, "usage: bench_colo [--ours] [PAIRS, at least 1000]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    printf("%6s %6s %6s %11s %11s %7s %10s %10s\n", "bytes", "flows", "window", "ours", "qemu",
           "ratio", "ours pps", "qemu pps");
    for (i = 0; i < 3; i++) {
        for (j = 0; j < 3; j++) {
            uint32_t divisor = sizes[i] > 10000 ? 100 : sizes[i] > 1000 ? 4 : 1;
            uint32_t measured = pairs / divisor > 1000 ? pairs / divisor : 1000;
            uint32_t window = sizes[i] > 10000 ? 4 : sizes[i] > 1000 ? WINDOW / 4 : WINDOW;
            struct frames f;
            struct figures o, q = {0};

            f = build(sizes[i], flows[j], WARM + measured);
            for (try = 0; !ours_only && !q.ok && try < TRIES; try++) {
                window = try ? (window + 1) / 2 : window;
                q = measure(&f, window, true);
            }
            o = measure(&f, window, false);
            printf("%6zu %6u %6u %8.0f ns %8.0f ns %7.2f %10.0f %10.0f%s%s\n", sizes[i], flows[j],
                   window, o.cpu, q.cpu, q.ok ? o.cpu / q.cpu : 0, o.ok ? 1e9 / o.wall : 0,
                   q.ok ? 1e9 / q.wall : 0, o.ok ? "" : "  ours stalled",
                   q.ok || ours_only ? "" : "  qemu stalled");
            fflush(stdout);
            status |= !o.ok;
            free(f.data);
        }
    }
    return status;
}
