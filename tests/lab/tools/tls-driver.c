/*
 * tls-driver.c: what a kernel does with connections that it encrypts, in a dom0 of the lab, because
 * the build machine's kernel may be without TLS.  The project reads and writes them as if they were
 * plain; here stands what it counts on.
 *
 *   tls-driver check    one line for each point, "ok ..." or "not ok ..."; status 1 if one is not
 *   tls-driver speed    MiB a second through a connection within this host, plain and encrypted
 *   tls-driver open ADDR PORT SECRET    opens the link as a peer that has this secret (hexadecimal)
 *                       and closes it: "open", or "refused: ..."
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_tls.h"
#include "tools/libxl/remus_transport.h"

#define BULK        (6u << 20)
#define SPEED_BYTES (24u << 20)
#define PATIENCE_MS 20000

static const uint8_t secret[REMUS_SECRET_BYTES] = "thirty-two octets, as it happens";

static void tcp_pair(int fds[2])
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(here);
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&here, sizeof(here)) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&here, &length) ||
        connect(fds[0], (struct sockaddr *)&here, sizeof(here)) ||
        (fds[1] = accept(listener, NULL, NULL)) < 0) {
        perror("tls-driver: loopback");
        exit(2);
    }
    close(listener);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
}

static void handshake(int connecting, int accepting)
{
    struct remus_tls *a, *b;
    char error[REMUS_ERROR_BYTES] = "";
    int ra = -EAGAIN, rb = -EAGAIN;

    if (remus_tls_new(&a, connecting, false, secret) || remus_tls_new(&b, accepting, true, secret))
        exit(2);
    while (ra == -EAGAIN || rb == -EAGAIN) {
        if (ra == -EAGAIN)
            ra = remus_tls_step(a, error);
        if (rb == -EAGAIN)
            rb = remus_tls_step(b, error);
        poll(NULL, 0, 1);
    }
    remus_tls_free(a);
    remus_tls_free(b);
    if (ra || rb) {
        fprintf(stderr, "tls-driver: %s\n", error);
        exit(2);
    }
}

static void tls_pair(int fds[2])
{
    tcp_pair(fds);
    handshake(fds[0], fds[1]);
}

static uint8_t octet(size_t n)
{
    return (uint8_t)(n * 31 + (n >> 9));
}

static bool readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, timeout_ms) == 1 && p.revents;
}

/* Reads and checks until the end; the errno of it, 0: closed, ETIME: nothing came for too long. */
static int drain(int fd, size_t *count)
{
    static uint8_t buffer[50000];
    ssize_t r;

    for (;;) {
        if (!readable(fd, PATIENCE_MS))
            return ETIME;
        r = read(fd, buffer, sizeof(buffer));
        if (r < 0 && errno == EAGAIN)
            continue;
        if (r <= 0)
            return r ? errno : 0;
        for (ssize_t i = 0; i < r; i++)
            if (buffer[i] != octet((*count)++))
                return EILSEQ;
    }
}

/* Both directions at a time, in pieces of all sizes, by every call that the project uses. */
static const char *everything_arrives_in_order(void)
{
    size_t sent[2] = {0, 0}, come[2] = {0, 0}, turn = 0;
    static uint8_t out[70000], in[70000];
    int fds[2];

    tls_pair(fds);
    while (come[0] < BULK || come[1] < BULK) {
        struct pollfd p[2];

        for (int i = 0; i < 2; i++)
            p[i] = (struct pollfd){.fd = fds[i],
                                   .events = POLLIN | (sent[i] < BULK ? POLLOUT : 0)};
        if (poll(p, 2, PATIENCE_MS) <= 0)
            return "it stands still";
        for (int i = 0; i < 2; i++) {
            size_t want = 1 + turn * 7919 % sizeof(out), k;
            ssize_t r = 0;

            turn++;
            if (p[i].revents & POLLOUT && sent[i] < BULK) {
                if (want > BULK - sent[i])
                    want = BULK - sent[i];
                for (k = 0; k < want; k++)
                    out[k] = octet(sent[i] + k);
                struct iovec iov[2] = {{out, want / 3}, {out + want / 3, want - want / 3}};
                struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};

                r = turn % 3 == 0 ? sendmsg(fds[i], &m, MSG_DONTWAIT | MSG_NOSIGNAL)
                    : turn % 3 == 1 ? writev(fds[i], iov, 2) : write(fds[i], out, want);
                if (r < 0 && errno != EAGAIN)
                    return strerror(errno);
                sent[i] += r > 0 ? (size_t)r : 0;
            }
            if (p[i].revents & POLLIN) {
                r = turn % 2 ? recv(fds[i], in, want, MSG_DONTWAIT) : read(fds[i], in, want);
                if (r < 0 && errno != EAGAIN)
                    return strerror(errno);
                if (r == 0)
                    return "it ended";
                for (ssize_t n = 0; n < r; n++)
                    if (in[n] != octet(come[i]++))
                        return "the octets differ";
            }
        }
    }
    close(fds[0]);
    close(fds[1]);
    return NULL;
}

static size_t fill(int fd)
{
    static uint8_t out[20000];
    size_t sent = 0;
    ssize_t r;

    for (;;) {
        for (size_t k = 0; k < sizeof(out); k++)
            out[k] = octet(sent + k);
        r = write(fd, out, sizeof(out));
        if (r < 0)
            return errno == EAGAIN ? sent : 0;
        sent += (size_t)r;
    }
}

static const char *a_reader_that_stands_still_blocks_nobody(void)
{
    struct pollfd p = {.events = POLLOUT};
    size_t sent, come = 0;
    int fds[2];

    tls_pair(fds);
    sent = fill(fds[0]);
    if (!sent)
        return "no end to what can be written";
    p.fd = fds[0];
    if (poll(&p, 1, 100) != 0)
        return "it says that there is room";
    /* All of what write() took comes, without another write. */
    while (come < sent) {
        uint8_t in[5000];
        ssize_t r = readable(fds[1], PATIENCE_MS) ? read(fds[1], in, sizeof(in)) : -1;

        if (r <= 0)
            return "what was taken does not all come";
        for (ssize_t n = 0; n < r; n++)
            if (in[n] != octet(come++))
                return "the octets differ";
    }
    if (poll(&p, 1, PATIENCE_MS) != 1 || !(p.revents & POLLOUT))
        return "it does not say that there is room";
    close(fds[0]);
    close(fds[1]);
    return NULL;
}

/* A last frame is sent before the descriptor is closed, by a side that has not filled it. */
static const char *what_was_written_last_comes_before_the_end(void)
{
    size_t come = 0;
    int fds[2];
    uint8_t last[3000];

    for (size_t k = 0; k < sizeof(last); k++)
        last[k] = octet(k);
    for (int half = 0; half < 2; half++) {
        tls_pair(fds);
        if (write(fds[0], last, sizeof(last)) != (ssize_t)sizeof(last))
            return "a write in parts";
        if (half)
            shutdown(fds[0], SHUT_WR);
        else
            close(fds[0]);
        come = 0;
        if (drain(fds[1], &come) || come != sizeof(last))
            return half ? "not after a half-close" : "not after a close";
        if (half)
            close(fds[0]);
        close(fds[1]);
    }
    return NULL;
}

/* Said, not asked for: what a writer that has filled the connection loses when it closes it. */
static const char *a_close_behind_full_buffers_ends_the_connection(void)
{
    size_t sent, come = 0;
    int fds[2], rc;

    tls_pair(fds);
    sent = fill(fds[0]);
    close(fds[0]);
    rc = drain(fds[1], &come);
    close(fds[1]);
    printf("# closed with full buffers: %zu of %zu octets came\n", come, sent);
    return rc == EILSEQ || rc == ETIME ? strerror(rc) : NULL;
}

static const char *control_record(uint8_t type, const uint8_t *body, size_t bytes)
{
    union { char room[CMSG_SPACE(1)]; struct cmsghdr align; } control = {.room = ""};
    struct iovec iov = {(uint8_t *)(uintptr_t)body, bytes};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room,
                       .msg_controllen = sizeof(control.room)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    const uint8_t first = octet(0);
    size_t come = 0;
    int fds[2], rc;

    tls_pair(fds);
    if (write(fds[0], &first, 1) != 1)
        return "write";
    c->cmsg_level = SOL_TLS;
    c->cmsg_type = TLS_SET_RECORD_TYPE;
    c->cmsg_len = CMSG_LEN(1);
    *CMSG_DATA(c) = type;
    if (sendmsg(fds[0], &m, 0) != (ssize_t)bytes)
        return "sendmsg";
    rc = drain(fds[1], &come);
    close(fds[0]);
    close(fds[1]);
    return come != 1 ? "what precedes it does not come" : rc != EIO ? strerror(rc) : NULL;
}

static const char *an_alert_is_an_error_of_read(void)
{
    return control_record(21, (const uint8_t[]){1, 0}, 2);
}

static const char *a_change_of_keys_is_an_error_of_read(void)
{
    return control_record(22, (const uint8_t[]){24, 0, 0, 1, 0}, 5);
}

/* Passes on what one side sends, with bits of octet number `at` changed; none: ended there. */
struct relay {
    int from, to;
    size_t at;
    uint8_t change;
};

static void relay(struct relay *r)
{
    uint8_t buffer[4096];
    size_t done = 0;
    ssize_t n;

    while (readable(r->from, 300) && (n = read(r->from, buffer, sizeof(buffer))) > 0) {
        if (r->at >= done && r->at < done + (size_t)n) {
            if (r->change)
                buffer[r->at - done] ^= r->change;
            else
                n = (ssize_t)(r->at - done);
        }
        done += (size_t)n;
        if (write(r->to, buffer, (size_t)n) != n || (!r->change && done == r->at))
            break;
    }
}

static const char *relayed(size_t at, uint8_t change, int wanted, size_t whole)
{
    struct remus_tls_keys to = {.key = "t"}, from = {.key = "f"};
    char error[REMUS_ERROR_BYTES];
    int a[2], b[2], rc;
    uint8_t out[2000];
    size_t come = 0;

    tcp_pair(a);
    tcp_pair(b);
    if (remus_ktls_set(a[0], &to, &from, error) || remus_ktls_set(b[1], &from, &to, error))
        return "no keys";
    for (size_t n = 0; n < 3; n++) {
        for (size_t k = 0; k < sizeof(out); k++)
            out[k] = octet(n * sizeof(out) + k);
        if (write(a[0], out, sizeof(out)) != (ssize_t)sizeof(out))
            return "write";
    }
    relay(&(struct relay){.from = a[1], .to = b[0], .at = at, .change = change});
    if (!change)
        shutdown(b[0], SHUT_WR);
    rc = drain(b[1], &come);
    close(a[0]);
    close(a[1]);
    close(b[0]);
    close(b[1]);
    if (come != whole)
        return "more or less comes than was whole";
    return rc != wanted ? strerror(rc) : NULL;
}

/* Records of 2000 octets take 2022. */
static const char *a_changed_octet_is_an_error_of_read(void)
{
    return relayed(2022 + 700, 0x10, EBADMSG, 2000);
}

static const char *a_changed_length_is_an_error_of_read(void)
{
    /* Longer than a record may be; shorter than it was. */
    const char *what = relayed(2022 + 3, 0x80, EMSGSIZE, 2000);

    return what ? what : relayed(2022 + 4, 0x02, EBADMSG, 2000);
}

static const char *half_a_record_is_the_end(void)
{
    return relayed(2022 + 700, 0, 0, 2000);
}

/*
 * What poll() says of half a record differs: Linux 6.1 calls it readable, though read() gives
 * EAGAIN, later ones do not.  An edge-triggered set tells of it when it is whole, and not sooner.
 */
static const char *an_edge_triggered_set_tells_of_whole_records(void)
{
    struct remus_tls_keys keys = {.key = "1"};
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};
    char error[REMUS_ERROR_BYTES];
    int a[2], b[2], set = epoll_create1(0);
    uint8_t wire[200], byte;
    ssize_t n;

    tcp_pair(a);
    tcp_pair(b);
    if (remus_ktls_set(a[0], &keys, &keys, error) || remus_ktls_set(b[1], &keys, &keys, error))
        return "no keys";
    if (write(a[0], "0123456789", 10) != 10 || !readable(a[1], PATIENCE_MS) ||
        (n = read(a[1], wire, sizeof(wire))) != 10 + 22)
        return "no record";
    epoll_ctl(set, EPOLL_CTL_ADD, b[1], &event);
    if (write(b[0], wire, 20) != 20)
        return "write";
    while (epoll_wait(set, &event, 1, 300) == 1)
        if (read(b[1], &byte, 1) != -1 || errno != EAGAIN)
            return "half a record is read";
    printf("# poll() says that half a record is %sreadable\n", readable(b[1], 0) ? "" : "not ");
    if (epoll_wait(set, &event, 1, 300) != 0)
        return "it tells again and again";
    if (write(b[0], wire + 20, (size_t)n - 20) != n - 20)
        return "write";
    for (int i = 0; i < 10; i++)
        if ((!i && epoll_wait(set, &event, 1, PATIENCE_MS) != 1) || read(b[1], &byte, 1) != 1)
            return "the whole record is not told of";
    shutdown(b[0], SHUT_WR);
    if (epoll_wait(set, &event, 1, PATIENCE_MS) != 1 || read(b[1], &byte, 1) != 0)
        return "the end is not told of";
    for (int i = 0; i < 2; i++) {
        close(a[i]);
        close(b[i]);
    }
    close(set);
    return NULL;
}

static const char *another_key_is_an_error_of_read(void)
{
    struct remus_tls_keys one = {.key = "1"}, other = {.key = "2"};
    char error[REMUS_ERROR_BYTES];
    size_t come = 0;
    int fds[2], rc;

    tcp_pair(fds);
    if (remus_ktls_set(fds[0], &one, &one, error) || remus_ktls_set(fds[1], &other, &other, error))
        return "no keys";
    if (write(fds[0], "x", 1) != 1)
        return "write";
    rc = drain(fds[1], &come);
    close(fds[0]);
    close(fds[1]);
    return come ? "it is read" : rc != EBADMSG ? strerror(rc) : NULL;
}

static const char *the_wire_shows_nothing(void)
{
    static const char text[] = "a text that nobody else is to read";
    struct remus_tls_keys keys = {.key = "1"};
    char error[REMUS_ERROR_BYTES], wire[200];
    ssize_t n;
    int fds[2];

    tcp_pair(fds);
    if (remus_ktls_set(fds[0], &keys, &keys, error))
        return "no keys";
    if (write(fds[0], text, sizeof(text)) != (ssize_t)sizeof(text) ||
        !readable(fds[1], PATIENCE_MS) || (n = read(fds[1], wire, sizeof(wire))) <= 0)
        return "nothing comes";
    close(fds[0]);
    close(fds[1]);
    return memmem(wire, (size_t)n, text + 2, 20) ? "it does" : NULL;
}

/* ---- Speed ---- */

static void *sink(void *arg)
{
    static uint8_t buffer[1 << 20];
    int fd = *(int *)arg;
    size_t come = 0;
    ssize_t r;

    while (come < SPEED_BYTES && (r = read(fd, buffer, sizeof(buffer))) > 0)
        come += (size_t)r;
    return NULL;
}

static double speed(bool tls)
{
    static uint8_t block[1 << 20];
    struct timespec began, ended;
    pthread_t thread;
    size_t sent = 0;
    int fds[2];

    tcp_pair(fds);
    if (tls)
        handshake(fds[0], fds[1]);
    fcntl(fds[0], F_SETFL, 0);
    fcntl(fds[1], F_SETFL, 0);
    clock_gettime(CLOCK_MONOTONIC, &began);
    pthread_create(&thread, NULL, sink, &fds[1]);
    while (sent < SPEED_BYTES) {
        ssize_t r = write(fds[0], block, sizeof(block));

        if (r <= 0)
            break;
        sent += (size_t)r;
    }
    pthread_join(thread, NULL);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    close(fds[0]);
    close(fds[1]);
    return SPEED_BYTES / 1048576.0 /
           ((double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9);
}

/* ---- A peer ---- */

static int open_link(const char *addr, const char *port, const char *text)
{
    uint8_t key[REMUS_SECRET_BYTES];
    char error[REMUS_ERROR_BYTES];
    int fd;

    if (remus_secret_parse(key, text))
        return 2;
    if (remus_connect_channel(addr, (uint16_t)atoi(port), REMUS_CHANNEL_LINK, key, false, 5000, &fd,
                              error)) {
        printf("refused: %s\n", error);
        return 0;
    }
    printf("open\n");
    close(fd);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct { const char *name; const char *(*run)(void); } checks[] = {
#define CHECK(name) {#name, name}
        CHECK(the_wire_shows_nothing),
        CHECK(everything_arrives_in_order),
        CHECK(a_reader_that_stands_still_blocks_nobody),
        CHECK(what_was_written_last_comes_before_the_end),
        CHECK(a_close_behind_full_buffers_ends_the_connection),
        CHECK(an_alert_is_an_error_of_read),
        CHECK(a_change_of_keys_is_an_error_of_read),
        CHECK(a_changed_octet_is_an_error_of_read),
        CHECK(a_changed_length_is_an_error_of_read),
        CHECK(half_a_record_is_the_end),
        CHECK(an_edge_triggered_set_tells_of_whole_records),
        CHECK(another_key_is_an_error_of_read),
#undef CHECK
    };
    char error[REMUS_ERROR_BYTES];
    int bad = 0;

    if (argc == 5 && !strcmp(argv[1], "open"))
        return open_link(argv[2], argv[3], argv[4]);
    if (argc != 2 || (strcmp(argv[1], "check") && strcmp(argv[1], "speed"))) {
        fprintf(stderr, "Usage: tls-driver check | speed | open ADDR PORT SECRET\n");
        return 2;
    }
    if (remus_ktls_probe(error)) {
        printf("not ok: %s\n", error);
        return 1;
    }
    if (!strcmp(argv[1], "speed")) {
        for (int i = 0; i < 3; i++) {
            double plain = speed(false), tls = speed(true);

            printf("plain %.1f MiB/s, encrypted %.1f MiB/s, ratio %.3f\n", plain, tls, tls / plain);
        }
        return 0;
    }
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        const char *what = checks[i].run();

        printf("%sok %s%s%s\n", what ? "not " : "", checks[i].name, what ? ": " : "",
               what ? what : "");
        fflush(stdout);
        bad += what != NULL;
    }
    return bad != 0;
}
