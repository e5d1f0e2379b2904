/*
 * remus_link.c: the frames that two coordinators exchange, on the replication link and, where there
 * is one, on a second path: a connection over another network.
 *
 * The link carries everything.  The second path carries heartbeats, and takes over for the words
 * that end a session when the link is gone: then nobody has to ask an arbiter about a host that
 * plainly lives.  Who has lost the link while the other is heard on the second path ends protection
 * in order, if it is the primary, or waits to be told that, if it is the secondary; the core does
 * not know of paths.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_run.h"

#define LINK_AHEAD      (256 << 10)
#define LINK_EVENTS     (EPOLLIN | EPOLLRDHUP | EPOLLET)
#define LINK_TURN_US    20000u      /* of reading, then heartbeats have their turn */
#define SECOND_BEATS    10u         /* a host that has only just woken has not sent as many */
#define BROKEN_US       300000u     /* for reading to come to its end by itself */

/* ---- Loss ---- */

static void path_close(struct remus_path *path)
{
    if (path->poll_open)
        uv_close((uv_handle_t *)&path->poll, NULL);
    path->poll_open = false;
    if (path->epoll >= 0)
        close(path->epoll);
    path->epoll = -1;
    if (path->open)
        uv_close((uv_handle_t *)&path->tcp, NULL);
    path->open = false;
}

static bool second_is_heard(const struct remus_run *r)
{
    return r->second.open && remus_run_now_us() - r->second.heard_us <
           remus_core_timeout_us(&r->core) / 2;
}

static void path_send(struct remus_path *path, uint8_t *buffer, uint32_t length);

/* The link is gone, the other host is not. */
static void go_on_over_second(struct remus_run *r, const char *why)
{
    uint8_t *buffer;

    remus_run_log(r, XC_SR_WARN, "%s; %s is still heard on the second network", why, r->p->peer);
    path_close(&r->link);
    r->link_gone = true;
    if (r->p->role == REMUS_SECONDARY)
        return;                 /* the primary decides, and says so */
    if (r->core.state != RP_STOP) {
        remus_run_post(r, RE_DAEMON_LOST, 0, 0, "%s", why);
        return;
    }
    buffer = r->last_word ? malloc(r->last_word_bytes) : NULL;
    if (buffer) {
        memcpy(buffer, r->last_word, r->last_word_bytes);
        path_send(&r->second, buffer, r->last_word_bytes);
    }
}

/* States in which the second path can do something for the session. */
static bool second_helps(const struct remus_run *r)
{
    return remus_core_protects(&r->core) || r->core.state == RP_STOP || r->core.state == RS_STOP;
}

void remus_run_link_lost(struct remus_run *r, const char *format, ...)
{
    char why[160];
    va_list args;

    va_start(args, format);
    vsnprintf(why, sizeof(why), format, args);
    va_end(args);
    if (r->link_gone)
        return;
    if (second_helps(r) && second_is_heard(r))
        go_on_over_second(r, why);
    else
        remus_run_post(r, RE_LINK_LOST, 0, 0, "%s", why);
}

static void path_lost(struct remus_path *path, const char *what, const char *why)
{
    struct remus_run *r = path->run;

    if (!path->open)
        return;
    if (path == &r->link) {
        remus_run_link_lost(r, "the link to %.60s %s: %s", r->p->peer, what, why);
        return;
    }
    path_close(path);
    if (r->link_gone)
        remus_run_post(r, RE_LINK_LOST, 0, 0, "the second path to %.60s %s, as the link has: %s",
                       r->p->peer, what, why);
    else if (remus_core_protects(&r->core))
        remus_run_log(r, XC_SR_WARN, "the second path to %s %s: %s", r->p->peer, what, why);
}

/*
 * Nothing can be written any more.  What the other side said last may still lie here unread, a STOP
 * or STOPPED most of all: reading ends soon, with the end that it finds, or is ended.
 */
static void path_broken(struct remus_path *path, const char *why)
{
    if (path->open && !path->broken_us) {
        path->broken_us = remus_run_now_us();
        snprintf(path->broken_why, sizeof(path->broken_why), "%s", why);
    }
}

static void look_at_broken(struct remus_path *path)
{
    if (path->open && path->broken_us && !path->broken_told &&
        remus_run_now_us() - path->broken_us > BROKEN_US) {
        path->broken_told = true;
        path_lost(path, "broke", path->broken_why);
    }
}

static void look_at_silence(struct remus_run *r)
{
    uint64_t silent_us = remus_run_now_us() - r->link.heard_us;

    if (r->link.open && remus_core_protects(&r->core) && second_is_heard(r) &&
        r->second_beats >= SECOND_BEATS && silent_us > remus_core_timeout_us(&r->core))
        remus_run_link_lost(r, "nothing has come over the link from %.60s for %llu ms",
                            r->p->peer, (unsigned long long)(silent_us / 1000));
}

void remus_run_link_look(struct remus_run *r)
{
    look_at_broken(&r->link);
    look_at_broken(&r->second);
    look_at_silence(r);
}

enum remus_second_path remus_run_second_path(const struct remus_run *r)
{
    if (r->p->heartbeat_fd < 0)
        return REMUS_SECOND_NONE;
    if (!r->second.open)
        return REMUS_SECOND_LOST;
    return remus_run_now_us() - r->second.heard_us > remus_core_timeout_us(&r->core)
        ? REMUS_SECOND_SILENT : REMUS_SECOND_HEARD;
}

/* ---- Sending ---- */

struct write_request {
    uv_write_t request;
    uint8_t *buffer;
};

static void on_written(uv_write_t *request, int status)
{
    struct write_request *w = (struct write_request *)request;
    struct remus_path *path = request->data;
    struct remus_run *r = path->run;

    free(w->buffer);
    free(w);
    if (status < 0) {
        path_broken(path, uv_strerror(status));
        return;
    }
    if (path == &r->link && !remus_run_link_full(r) && r->ops->drained)
        r->ops->drained(r);
}

/* Owns the buffer. */
static void path_send(struct remus_path *path, uint8_t *buffer, uint32_t length)
{
    struct write_request *w = NULL;
    uv_buf_t buf = uv_buf_init((char *)buffer, length);
    int rc = UV_EPIPE;

    if (path->open && !path->broken_us) {
        w = malloc(sizeof(*w));
        rc = UV_ENOMEM;
        if (w) {
            w->buffer = buffer;
            w->request.data = path;
            rc = uv_write(&w->request, (uv_stream_t *)&path->tcp, &buf, 1, on_written);
        }
    }
    if (rc) {
        free(w);
        free(buffer);
        path_broken(path, uv_strerror(rc));
    }
}

/* What a side may say on the second path. */
static bool fits_second(uint32_t type)
{
    return type == REMUS_FRAME_HEARTBEAT || type == REMUS_FRAME_STOP ||
           type == REMUS_FRAME_STOPPED || type == REMUS_FRAME_ERROR;
}

void remus_run_send_raw(struct remus_run *r, uint8_t *buffer, uint32_t length)
{
    if (r->link_gone)
        free(buffer);
    else
        path_send(&r->link, buffer, length);
}

static uint8_t *frame_of(uint32_t type, uint64_t epoch, const void *payload, uint32_t length)
{
    struct remus_frame header;
    uint8_t *buffer = malloc(sizeof(header) + length);

    if (!buffer)
        return NULL;
    remus_frame_header(&header, type, epoch, payload, length);
    memcpy(buffer, &header, sizeof(header));
    if (length)
        memcpy(buffer + sizeof(header), payload, length);
    return buffer;
}

void remus_run_send(struct remus_run *r, uint32_t type, uint64_t epoch, const void *payload,
                    uint32_t length)
{
    const uint32_t bytes = (uint32_t)sizeof(struct remus_frame) + length;
    uint8_t *buffer = frame_of(type, epoch, payload, length);

    if (!buffer) {
        remus_run_post(r, RE_LINK_LOST, 0, 0, "no memory for a frame of %u bytes", length);
        return;
    }
    if (type == REMUS_FRAME_STOP && r->second.open) {
        free(r->last_word);
        r->last_word = frame_of(type, epoch, payload, length);
        r->last_word_bytes = bytes;
    }
    if (r->link_gone && fits_second(type))
        path_send(&r->second, buffer, bytes);
    else
        remus_run_send_raw(r, buffer, bytes);
}

void remus_run_send_packed(struct remus_run *r, struct remus_packer *packer, uint32_t type,
                           uint64_t epoch, const void *payload, uint32_t length)
{
    struct remus_frame header;
    uint8_t *buffer = packer ? malloc(sizeof(header) + length) : NULL;
    uint32_t packed = buffer ? remus_pack(packer, payload, length, buffer + sizeof(header)) : 0;

    if (!packed) {
        free(buffer);
        remus_run_send(r, type, epoch, payload, length);
        return;
    }
    remus_frame_header(&header, type | REMUS_FRAME_LZ4, epoch, buffer + sizeof(header), packed);
    memcpy(buffer, &header, sizeof(header));
    remus_run_send_raw(r, buffer, (uint32_t)sizeof(header) + packed);
}

void remus_run_heartbeat(struct remus_run *r)
{
    struct remus_heartbeat beat = {
        .sent_us = remus_run_now_us(), .echo_us = r->peer_sent_us, .state = r->core.state,
        .timeout_us = remus_core_timeout_us(&r->core),
    };
    uint8_t *buffer;

    remus_run_send(r, REMUS_FRAME_HEARTBEAT, 0, &beat, sizeof(beat));
    /* A network that takes nothing is not sent more: old heartbeats say nothing. */
    if (r->link_gone || !r->second.open ||
        uv_stream_get_write_queue_size((uv_stream_t *)&r->second.tcp))
        return;
    buffer = frame_of(REMUS_FRAME_HEARTBEAT, 0, &beat, sizeof(beat));
    if (buffer)
        path_send(&r->second, buffer, (uint32_t)(sizeof(struct remus_frame) + sizeof(beat)));
}

size_t remus_run_link_queued(const struct remus_run *r)
{
    return r->link.open ? uv_stream_get_write_queue_size((const uv_stream_t *)&r->link.tcp) : 0;
}

bool remus_run_link_full(const struct remus_run *r)
{
    return remus_run_link_queued(r) > RUN_WRITE_QUEUE_MAX;
}

/* ---- Reading ---- */

static void handle_frame(struct remus_path *path, const struct remus_frame *f,
                         const uint8_t *payload)
{
    struct remus_run *r = path->run;

    if (path == &r->second && !fits_second(f->type)) {
        remus_run_post(r, RE_PEER_BAD, 0, 0, "a frame of type %#x on the second path", f->type);
        return;
    }
    /* For the peer the link is gone, so it hears there no more. */
    if (path == &r->second && f->type != REMUS_FRAME_HEARTBEAT) {
        path_close(&r->link);
        r->link_gone = true;
    }
    switch (f->type) {
    case REMUS_FRAME_HEARTBEAT: {
        struct remus_heartbeat beat;

        if (f->length != sizeof(beat)) {
            remus_run_post(r, RE_PEER_BAD, 0, 0, "a heartbeat of %u bytes", f->length);
            return;
        }
        memcpy(&beat, payload, sizeof(beat));
        if (path == &r->second)
            r->second_beats++;
        /* The same may come twice, and on one path later than on the other. */
        if (beat.sent_us > r->peer_sent_us)
            r->peer_sent_us = beat.sent_us;
        remus_run_post(r, RE_FRAME_ANY, beat.timeout_us, beat.echo_us, NULL);
        return;
    }
    case REMUS_FRAME_ERROR:
        remus_run_post(r, RE_PEER_ERROR, 0, 0, "%s says: %.*s", r->p->peer,
                       (int)(f->length < 150 ? f->length : 150), (const char *)payload);
        return;
    default:
        r->ops->frame(r, f, payload);
    }
}

/* The path may have been closed by what was read. */
static void stop_reading(struct remus_path *path)
{
    if (path->poll_open)
        uv_poll_stop(&path->poll);
}

/* Whether there may be more to read, and it is wanted. */
static bool read_path(struct remus_path *path, int fd)
{
    struct remus_run *r = path->run;
    struct remus_frame frame;
    const uint8_t *payload;
    uint8_t *where;
    size_t room;
    ssize_t n;
    int rc;

    remus_decoder_room(path->decoder, &where, &room);
    do
        n = read(fd, where, room);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n <= 0) {
        const char *why = n ? strerror(errno) : "closed by the other side";

        stop_reading(path);
        path_lost(path, "ended", why);
        return false;
    }
    remus_decoder_filled(path->decoder, (size_t)n);
    path->heard_us = remus_run_now_us();
    if (path == &r->link)
        r->second_beats = 0;
    remus_run_post(r, RE_FRAME_ANY, 0, 0, NULL);
    for (;;) {
        rc = remus_decoder_next(path->decoder, &frame, &payload);
        if (rc <= 0 || r->finished || !path->open)
            break;
        handle_frame(path, &frame, payload);
    }
    if (rc < 0) {
        stop_reading(path);
        remus_run_post(r, RE_PEER_BAD, 0, 0, "%s", remus_decoder_error(path->decoder));
        return false;
    }
    return (size_t)n == room && !r->finished && path->poll_open &&
           uv_is_active((uv_handle_t *)&path->poll);
}

/* Of what has come we are told once: what is left of it has to be asked for again. */
static int ask_again(struct remus_path *path, int fd)
{
    struct epoll_event event = {.events = LINK_EVENTS};

    return epoll_ctl(path->epoll, EPOLL_CTL_MOD, fd, &event) < 0 ? -errno : 0;
}

static void on_path(uv_poll_t *poll_handle, int status, int events)
{
    struct remus_path *path = poll_handle->data;
    uint64_t began = remus_run_now_us();
    struct epoll_event event;
    int fd;

    (void)status;
    (void)events;
    if (path->run->finished || uv_fileno((uv_handle_t *)&path->tcp, &fd))
        return;
    (void)epoll_wait(path->epoll, &event, 1, 0);
    while (read_path(path, fd))
        if (remus_run_now_us() - began > LINK_TURN_US) {
            (void)ask_again(path, fd);
            return;
        }
}

void remus_run_link_pause(struct remus_run *r, bool pause)
{
    int fd;

    if (!r->link.open || uv_fileno((uv_handle_t *)&r->link.tcp, &fd))
        return;
    if (pause) {
        uv_poll_stop(&r->link.poll);
    } else {
        uv_poll_start(&r->link.poll, UV_READABLE, on_path);
        (void)ask_again(&r->link, fd);
    }
}

/* ---- Life ---- */

/*
 * The kernel of Debian 12 tells poll() and libuv of half a TLS record again and again, while there
 * is nothing to be read.  An edge-triggered set is told of whole ones; libuv watches that set.
 */
static int path_open(struct remus_run *r, struct remus_path *path, int fd)
{
    struct epoll_event event = {.events = LINK_EVENTS};
    const int ahead = LINK_AHEAD;
    int rc;

    path->run = r;
    rc = remus_decoder_new(&path->decoder);
    if (rc)
        return rc;
    rc = uv_tcp_init(&r->loop, &path->tcp);
    if (rc)
        return rc;
    path->tcp.data = path;
    path->open = true;
    /* What the kernel has not sent yet, a heartbeat waits behind. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &ahead, sizeof(ahead));
    rc = uv_tcp_open(&path->tcp, fd);
    if (rc)
        return rc;
    path->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (path->epoll < 0 || epoll_ctl(path->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        return -errno;
    rc = uv_poll_init(&r->loop, &path->poll, path->epoll);
    path->poll.data = path;
    path->poll_open = !rc;
    return rc;
}

int remus_run_link_open(struct remus_run *r)
{
    int rc = path_open(r, &r->link, r->p->link_fd);

    if (!rc && r->p->heartbeat_fd >= 0)
        rc = path_open(r, &r->second, r->p->heartbeat_fd);
    return rc;
}

void remus_run_link_start(struct remus_run *r)
{
    r->link.heard_us = r->second.heard_us = remus_run_now_us();
    uv_poll_start(&r->link.poll, UV_READABLE, on_path);
    if (r->second.open)
        uv_poll_start(&r->second.poll, UV_READABLE, on_path);
}

/* Last frames (STOP, STOPPED) may still be in the queue: gives them a moment to leave. */
void remus_run_link_drain(struct remus_run *r)
{
    struct remus_path *path = r->link_gone ? &r->second : &r->link;
    int fd;

    if (!path->open)
        return;
    uv_stream_set_blocking((uv_stream_t *)&path->tcp, 1);
    if (!uv_fileno((uv_handle_t *)&path->tcp, &fd))
        shutdown(fd, SHUT_WR);
}

bool remus_run_link_await_end(struct remus_run *r, unsigned int timeout_ms)
{
    struct remus_path *path = r->link_gone ? &r->second : &r->link;
    const uint64_t end = remus_now_ms() + timeout_ms;
    struct pollfd poll_fd = { .events = POLLIN };
    char bytes[4096];
    uint64_t now;

    remus_run_link_drain(r);
    if (!path->open || uv_fileno((uv_handle_t *)&path->tcp, &poll_fd.fd))
        return true;
    while ((now = remus_now_ms()) < end) {
        ssize_t got;

        if (poll(&poll_fd, 1, (int)(end - now)) <= 0)
            continue;
        got = recv(poll_fd.fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (!got || (got < 0 && errno != EAGAIN && errno != EINTR))
            return true;
    }
    return false;
}

void remus_run_link_close(struct remus_run *r)
{
    path_close(&r->link);
    path_close(&r->second);
}

void remus_run_link_dispose(struct remus_run *r)
{
    remus_decoder_free(r->link.decoder);
    remus_decoder_free(r->second.decoder);
    free(r->last_word);
}
