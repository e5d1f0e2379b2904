/*
 * blackhole.c: see blackhole.h.
 *
 * It speaks as a receiver does (docs/protocol.md), up to the checksums of frames, so that the
 * primary does what it always does; but no guest is built, and whatever a frame holds is dropped.
 */
#include "tools/xl/blackhole.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_proto.h"

#define HELLO_MS        30000
#define ACCEPT_MS       30000
#define HEARTBEAT_MS    100
#define TIMEOUT_US      12000000u /* promised to the primary: it is not there to be lost */

struct hole {
    struct remus_talk *talk;
    struct remus_decoder *decoder;
    int fds[REMUS_CHANNELS];
    uint64_t heard_us;              /* the primary's newest heartbeat, by its own clock */
    bool over;
};

static int send_all(int fd, const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    ssize_t n;

    while (length) {
        n = send(fd, at, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EPIPE;
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

static int send_frame(struct hole *h, uint32_t type, uint64_t epoch, const void *payload,
                      uint32_t length)
{
    const int fd = h->fds[REMUS_CHANNEL_LINK];
    struct remus_frame header;
    int rc;

    remus_frame_header(&header, type, epoch, payload, length);
    rc = send_all(fd, &header, sizeof(header));
    return rc || !length ? rc : send_all(fd, payload, length);
}

static int take_frame(struct hole *h, const struct remus_frame *f, const uint8_t *payload)
{
    static const struct remus_applied applied;
    struct remus_heartbeat beat;
    struct remus_hello hello;
    int rc;

    switch (f->type) {
    case REMUS_FRAME_HELLO:
        if (f->length != sizeof(hello))
            return -EBADMSG;
        memcpy(&hello, payload, sizeof(hello));
        return hello.flags & REMUS_HELLO_LZ4 ? remus_decoder_unpack(h->decoder) : 0;
    case REMUS_FRAME_HEARTBEAT:
        if (f->length != sizeof(beat))
            return -EBADMSG;
        memcpy(&beat, payload, sizeof(beat));
        h->heard_us = beat.sent_us;
        return 0;
    case REMUS_FRAME_STREAM_END:
        return send_frame(h, REMUS_FRAME_READY, 0, NULL, 0);
    case REMUS_FRAME_EPOCH_END:
        rc = send_frame(h, REMUS_FRAME_ACK, f->epoch, NULL, 0);
        return rc ? rc : send_frame(h, REMUS_FRAME_APPLIED, f->epoch, &applied, sizeof(applied));
    case REMUS_FRAME_STOP:
    case REMUS_FRAME_ERROR:
        h->over = true;
        return send_frame(h, REMUS_FRAME_STOPPED, 0, NULL, 0);
    default:
        return 0;
    }
}

static int read_link(struct hole *h)
{
    struct remus_frame frame;
    const uint8_t *payload;
    uint8_t *where;
    size_t room;
    ssize_t n;
    int rc;

    remus_decoder_room(h->decoder, &where, &room);
    n = read(h->fds[REMUS_CHANNEL_LINK], where, room);
    if (n < 0 && errno == EINTR)
        return 0;
    if (n <= 0)
        return n < 0 ? -errno : -EPIPE;
    remus_decoder_filled(h->decoder, (size_t)n);
    while ((rc = remus_decoder_next(h->decoder, &frame, &payload)) > 0) {
        rc = take_frame(h, &frame, payload);
        if (rc)
            return rc;
    }
    return rc;
}

static int beat(struct hole *h)
{
    struct remus_heartbeat b = {
        .sent_us = remus_now_ms() * 1000, .echo_us = h->heard_us, .timeout_us = TIMEOUT_US,
    };

    return send_frame(h, REMUS_FRAME_HEARTBEAT, 0, &b, sizeof(b));
}

/* Until the primary says STOP or is gone. */
static void swallow(struct hole *h)
{
    static uint8_t packets[1 << 16];
    uint64_t next = remus_now_ms(), now;
    int rc = 0;

    while (!rc && !h->over) {
        struct pollfd p[2] = {
            {.fd = h->fds[REMUS_CHANNEL_LINK], .events = POLLIN},
            {.fd = h->fds[REMUS_CHANNEL_PACKETS], .events = POLLIN},
        };

        now = remus_now_ms();
        if (now >= next) {
            rc = beat(h);
            next = now + HEARTBEAT_MS;
        }
        if (rc || poll(p, 2, (int)(next - now < HEARTBEAT_MS ? next - now : HEARTBEAT_MS)) <= 0)
            continue;
        if (p[1].revents && read(p[1].fd, packets, sizeof(packets)) <= 0) {
            close(p[1].fd);
            h->fds[REMUS_CHANNEL_PACKETS] = -1;
        }
        if (p[0].revents)
            rc = read_link(h);
    }
}

static int open_channels(struct hole *h, bool net)
{
    uint8_t secret[REMUS_SECRET_BYTES];
    char text[REMUS_SECRET_TEXT_BYTES], error[REMUS_ERROR_BYTES];
    int listen_fds[2] = {-1, -1}, rc;
    struct remus_object *o;
    uint16_t port;

    rc = remus_secret_new(secret);
    if (!rc)
        rc = remus_listen("127.0.0.1", 0, &listen_fds[0], &port, error);
    if (rc)
        return rc;
    remus_secret_format(text, secret);
    o = remus_object_new("ready");
    remus_object_number(o, "port", port);
    remus_object_string(o, "secret", text);
    remus_object_flag(o, "plain", true);
    rc = remus_talk_send(h->talk, o, false);
    if (!rc)
        rc = remus_accept_channels(listen_fds, secret, true,
                                   1u << REMUS_CHANNEL_LINK |
                                   (unsigned int)net << REMUS_CHANNEL_PACKETS,
                                   ACCEPT_MS, remus_talk_in(h->talk), h->fds, error);
    close(listen_fds[0]);
    return rc ? rc : remus_talk_send(h->talk, remus_object_new("connected"), false);
}

static void be_the_hole(int in, int out, const char *xen)
{
    struct hole h = {.fds = {-1, -1, -1, -1, -1}};
    struct remus_message *m = NULL;
    struct remus_object *o;
    bool net;

    if (remus_talk_new(&h.talk, in, out) || remus_decoder_new(&h.decoder))
        return;
    o = remus_object_new("receiver");
    remus_object_number(o, "protocol", REMUS_LINE_PROTOCOL);
    remus_object_string(o, "version", REMUS_VERSION);
    remus_object_string(o, "xen", xen);
    remus_object_string(o, "boot_id", "");
    remus_object_string(o, "host", "nowhere");
    remus_object_string(o, "address", "127.0.0.1");
    if (remus_talk_send(h.talk, o, false) || remus_talk_wait(h.talk, HELLO_MS, &m))
        return;
    net = remus_message_flag(m, "net", true);
    remus_message_free(m);
    if (open_channels(&h, net))
        return;
    swallow(&h);
    o = remus_object_new("end");
    remus_object_string(o, "end", "stopped");
    remus_object_string(o, "reason", "there was no copy");
    (void)remus_talk_send(h.talk, o, false);
    (void)remus_talk_flush(h.talk);
}

int blackhole_start(struct remus_ssh *out, const char *xen)
{
    int down[2] = {-1, -1}, up[2] = {-1, -1}, rc = 0, i;
    pid_t pid, parent = getpid();

    *out = (struct remus_ssh){.in_fd = -1, .out_fd = -1};
    if (pipe2(down, O_CLOEXEC) || pipe2(up, O_CLOEXEC) || (pid = fork()) < 0) {
        rc = -errno;
    } else if (!pid) {
        signal(SIGINT, SIG_IGN);
        signal(SIGHUP, SIG_IGN);
        close(down[1]);
        close(up[0]);
        if (!prctl(PR_SET_PDEATHSIG, SIGKILL) && getppid() == parent)
            be_the_hole(down[0], up[1], xen);
        _exit(0);
    } else {
        *out = (struct remus_ssh){.pid = pid, .in_fd = up[0], .out_fd = down[1]};
        up[0] = down[1] = -1;
    }
    for (i = 0; i < 2; i++) {
        if (down[i] >= 0)
            close(down[i]);
        if (up[i] >= 0)
            close(up[i]);
    }
    return rc;
}
