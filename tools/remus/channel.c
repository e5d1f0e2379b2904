/* channel.c: see channel.h. */
#include "tools/remus/channel.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHANNEL_ERROR_BYTES 160

struct channel {
    int fd;
    struct channel_options options;
    bool congested;
    bool paused;
    bool unread;                   /* the socket was not empty when it was read last */

    /* Ring: `used` bytes from `head` on.  Starts over at 0 when empty, so that a calm channel
     * touches few pages. */
    uint8_t *out;
    size_t out_head, out_used;

    /* Linear: bytes in_start..in_end are unread; moved down when the tail has no room. */
    uint8_t *in;
    size_t in_start, in_end;
    uint64_t output_id[256];       /* newest OUTPUT id of each vif, for the order check */

    struct channel_stats stats;
    char error[CHANNEL_ERROR_BYTES];
};

_Static_assert(CHANNEL_IN_BYTES >= 2 * (sizeof(struct remus_packet) + REMUS_PACKET_MAX),
               "the input buffer must hold a whole frame and the start of the next");
_Static_assert(CHANNEL_MATCHED_MAX * sizeof(uint64_t) <= REMUS_PACKET_MAX, "MATCHED fits");

/* What a header of each type must look like. */
static const struct channel_rule {
    const char *name;              /* NULL: no such type */
    enum channel_role sender;
    uint32_t length_min, length_max;
    uint32_t length_unit;
    bool frame;                    /* an Ethernet frame: flags and gso_size mean something */
    bool id;                       /* id counts; otherwise it must be 0 */
} channel_rules[] = {
    [REMUS_PACKET_INPUT]   = { "INPUT", CHANNEL_PRIMARY, CHANNEL_FRAME_MIN, REMUS_PACKET_MAX, 1,
                               true, false },
    [REMUS_PACKET_OUTPUT]  = { "OUTPUT", CHANNEL_SECONDARY, CHANNEL_FRAME_MIN, REMUS_PACKET_MAX, 1,
                               true, true },
    [REMUS_PACKET_MATCHED] = { "MATCHED", CHANNEL_PRIMARY, 8, 8 * CHANNEL_MATCHED_MAX, 8,
                               false, false },
    [REMUS_PACKET_FLOW]    = { "FLOW", CHANNEL_PRIMARY, sizeof(struct remus_flow),
                               sizeof(struct remus_flow), 1, false, false },
    [REMUS_PACKET_PING]    = { "PING", CHANNEL_PRIMARY, 0, CHANNEL_PING_MAX, 1, false, false },
    [REMUS_PACKET_PONG]    = { "PONG", CHANNEL_SECONDARY, 0, CHANNEL_PING_MAX, 1, false, false },
    [REMUS_PACKET_SENT]    = { "SENT", CHANNEL_PRIMARY, CHANNEL_SENT_MIN, CHANNEL_SENT_MAX, 1,
                               false, false },
};

__attribute__((format(printf, 3, 4)))
static int channel_fail(struct channel *ch, int rc, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(ch->error, sizeof(ch->error), fmt, ap);
    va_end(ap);
    return rc;
}

int channel_new(struct channel **out, int fd, const struct channel_options *options)
{
    struct channel *ch;
    int flags, rc;

    *out = NULL;
    ch = calloc(1, sizeof(*ch));
    if (!ch) {
        return -ENOMEM;
    }
    ch->fd = -1;               /* not ours to close until all has gone well */
    ch->options = *options;
    if (!ch->options.out_max) {
        ch->options.out_max = CHANNEL_OUT_MAX;
    }
    if (!ch->options.out_high) {
        ch->options.out_high = CHANNEL_OUT_HIGH;
    }
    if (!ch->options.out_low) {
        ch->options.out_low = CHANNEL_OUT_LOW;
    }
    rc = -EINVAL;
    if (ch->options.out_low > ch->options.out_high ||
        ch->options.out_high > ch->options.out_max ||
        ch->options.vifs > 256) {
        goto out;
    }
    rc = -ENOMEM;
    ch->out = malloc(ch->options.out_max);
    ch->in = malloc(CHANNEL_IN_BYTES);
    if (!ch->out || !ch->in) {
        goto out;
    }
    if (fd >= 0) {             /* tests of the framing alone have no socket */
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
            rc = -errno;
            goto out;
        }
    }
    ch->fd = fd;
    *out = ch;
    ch = NULL;
    rc = 0;

out:
    channel_free(ch);
    return rc;
}

void channel_free(struct channel *ch)
{
    if (!ch) {
        return;
    }
    if (ch->fd >= 0) {
        close(ch->fd);
    }
    free(ch->out);
    free(ch->in);
    free(ch);
}

int channel_fd(const struct channel *ch)
{
    return ch->fd;
}

/* The one check of a header, for what we send as for what we receive. */
static int channel_check(struct channel *ch, const struct remus_packet *head,
                         enum channel_role sender, int rc)
{
    const struct channel_rule *rule = NULL;

    if (head->type < sizeof(channel_rules) / sizeof(channel_rules[0])) {
        rule = &channel_rules[head->type];
    }
    if (!rule || !rule->name) {
        return channel_fail(ch, rc, "packet channel: unknown frame type %u", head->type);
    }
    if (rule->sender != sender) {
        return channel_fail(ch, rc, "packet channel: %s frame from the %s", rule->name,
                            sender == CHANNEL_PRIMARY ? "primary" : "secondary");
    }
    if (head->length < rule->length_min || head->length > rule->length_max ||
        head->length % rule->length_unit) {
        return channel_fail(ch, rc, "packet channel: %s frame of %u bytes, allowed are %u to %u",
                            rule->name, head->length, rule->length_min, rule->length_max);
    }
    if (head->vif >= ch->options.vifs) {
        return channel_fail(ch, rc, "packet channel: %s frame for vif %u of %u", rule->name,
                            head->vif, ch->options.vifs);
    }
    if (head->flags & ~(REMUS_PACKET_F_CSUM_PARTIAL | REMUS_PACKET_F_GSO) ||
        (!rule->frame && head->flags)) {
        return channel_fail(ch, rc, "packet channel: %s frame with flags %#x", rule->name,
                            head->flags);
    }
    if (!(head->flags & REMUS_PACKET_F_GSO) != !head->gso_size) {
        return channel_fail(ch, rc, "packet channel: %s frame with flags %#x but gso_size %u",
                            rule->name, head->flags, head->gso_size);
    }
    if (head->reserved[0] || head->reserved[1] || head->reserved[2]) {
        return channel_fail(ch, rc, "packet channel: %s frame with reserved fields in use",
                            rule->name);
    }
    if (!rule->id && head->id) {
        return channel_fail(ch, rc, "packet channel: %s frame with id %llu", rule->name,
                            (unsigned long long)head->id);
    }
    if (rule->id) {
        if (head->id <= ch->output_id[head->vif]) {
            return channel_fail(ch, rc, "packet channel: %s frame of vif %u has id %llu after %llu",
                                rule->name, head->vif, (unsigned long long)head->id,
                                (unsigned long long)ch->output_id[head->vif]);
        }
    }
    return 0;
}

static void channel_put(struct channel *ch, const void *bytes, size_t count)
{
    size_t tail = (ch->out_head + ch->out_used) % ch->options.out_max;
    size_t first = ch->options.out_max - tail;

    if (first > count) {
        first = count;
    }
    if (first) {
        memcpy(ch->out + tail, bytes, first);
    }
    if (count > first) {
        memcpy(ch->out, (const uint8_t *)bytes + first, count - first);
    }
    ch->out_used += count;
}

int channel_send(struct channel *ch, const struct remus_packet *head, const struct iovec *iov,
                 unsigned int iov_count)
{
    struct remus_packet wire;
    size_t sum = 0;
    unsigned int i;
    int rc;

    rc = channel_check(ch, head, ch->options.role, -EINVAL);
    if (rc) {
        return rc;
    }
    for (i = 0; i < iov_count; i++) {
        sum += iov[i].iov_len;
    }
    if (sum != head->length) {
        return channel_fail(ch, -EINVAL, "packet channel: frame of %u bytes given %zu",
                            head->length, sum);
    }
    if (sizeof(wire) + sum > ch->options.out_max - ch->out_used) {
        return channel_fail(ch, -ENOBUFS, "packet channel: %zu bytes are waiting to be sent",
                            ch->out_used);
    }
    wire = (struct remus_packet){
        .length = htole32(head->length),
        .type = head->type,
        .vif = head->vif,
        .flags = htole16(head->flags),
        .epoch = htole64(head->epoch),
        .id = htole64(head->id),
        .gso_size = htole16(head->gso_size),
    };
    channel_put(ch, &wire, sizeof(wire));
    for (i = 0; i < iov_count; i++) {
        channel_put(ch, iov[i].iov_base, iov[i].iov_len);
    }
    if (head->type == REMUS_PACKET_OUTPUT) {
        ch->output_id[head->vif] = head->id;
    }
    ch->stats.out_frames++;
    ch->stats.out_bytes += sizeof(wire) + sum;
    if (ch->out_used > ch->stats.out_queued_max) {
        ch->stats.out_queued_max = ch->out_used;
    }
    if (!ch->congested && ch->out_used > ch->options.out_high) {
        ch->congested = true;
        ch->stats.congestions++;
    }
    return 0;
}

int channel_send_matched(struct channel *ch, unsigned int vif, uint64_t epoch, const uint64_t *ids,
                         size_t count)
{
    uint64_t wire[CHANNEL_MATCHED_MAX];

    while (count) {
        size_t n = count < CHANNEL_MATCHED_MAX ? count : CHANNEL_MATCHED_MAX;
        struct remus_packet head = {
            .length = (uint32_t)(n * sizeof(wire[0])), .type = REMUS_PACKET_MATCHED,
            .vif = (uint8_t)vif, .epoch = epoch,
        };
        struct iovec iov = { .iov_base = wire, .iov_len = head.length };
        size_t i;
        int rc;

        for (i = 0; i < n; i++) {
            wire[i] = htole64(ids[i]);
        }
        rc = channel_send(ch, &head, &iov, 1);
        if (rc) {
            return rc;
        }
        ids += n;
        count -= n;
    }
    return 0;
}

int channel_send_flow(struct channel *ch, unsigned int vif, uint64_t epoch,
                      const struct remus_flow *flow)
{
    struct remus_packet head = {
        .length = sizeof(*flow), .type = REMUS_PACKET_FLOW, .vif = (uint8_t)vif, .epoch = epoch,
    };
    struct remus_flow wire = *flow;  /* addresses and ports are in network order already */
    struct iovec iov = { .iov_base = &wire, .iov_len = sizeof(wire) };

    wire.primary_isn = htole32(flow->primary_isn);
    wire.vlan[0] = htole16(flow->vlan[0]);
    wire.vlan[1] = htole16(flow->vlan[1]);
    wire.reserved = 0;
    return channel_send(ch, &head, &iov, 1);
}

size_t channel_matched_count(const struct remus_packet *head)
{
    return head->length / sizeof(uint64_t);
}

uint64_t channel_matched_id(const uint8_t *payload, size_t index)
{
    uint64_t id;

    memcpy(&id, payload + index * sizeof(id), sizeof(id));
    return le64toh(id);
}

void channel_flow_get(const uint8_t *payload, struct remus_flow *flow)
{
    memcpy(flow, payload, sizeof(*flow));
    flow->primary_isn = le32toh(flow->primary_isn);
    flow->vlan[0] = le16toh(flow->vlan[0]);
    flow->vlan[1] = le16toh(flow->vlan[1]);
}

int channel_flush(struct channel *ch)
{
    while (ch->out_used) {
        struct iovec iov[2];
        struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 1 };
        size_t first = ch->options.out_max - ch->out_head;
        ssize_t r;

        if (first > ch->out_used) {
            first = ch->out_used;
        }
        iov[0] = (struct iovec){ .iov_base = ch->out + ch->out_head, .iov_len = first };
        if (first < ch->out_used) {
            iov[1] = (struct iovec){ .iov_base = ch->out, .iov_len = ch->out_used - first };
            mh.msg_iovlen = 2;
        }
        r = sendmsg(ch->fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r < 0) {
            if (errno == EINTR) {
                continue;
            }
            if (errno == EAGAIN || errno == EWOULDBLOCK) {
                break;
            }
            return channel_fail(ch, -errno, "packet channel: send: %s", strerror(errno));
        }
        ch->out_used -= (size_t)r;
        ch->out_head = ch->out_used ? (ch->out_head + (size_t)r) % ch->options.out_max : 0;
        if (ch->congested && ch->out_used <= ch->options.out_low) {
            ch->congested = false;
        }
    }
    return 0;
}

bool channel_wants_write(const struct channel *ch)
{
    return ch->out_used != 0;
}

bool channel_congested(const struct channel *ch)
{
    return ch->congested;
}

/* Header of the frame at in_start, in host order.  False: it has not come in whole. */
static bool channel_head(const struct channel *ch, struct remus_packet *head)
{
    if (ch->in_end - ch->in_start < sizeof(*head)) {
        return false;
    }
    memcpy(head, ch->in + ch->in_start, sizeof(*head));
    head->length = le32toh(head->length);
    head->flags = le16toh(head->flags);
    head->epoch = le64toh(head->epoch);
    head->id = le64toh(head->id);
    head->gso_size = le16toh(head->gso_size);
    return true;
}

bool channel_pending(const struct channel *ch)
{
    struct remus_packet head;

    /* A length out of bounds counts as pending as well: channel_deliver will say what is wrong. */
    return !ch->paused &&
           (ch->unread || (channel_head(ch, &head) &&
                           (head.length > REMUS_PACKET_MAX ||
                            ch->in_end - ch->in_start - sizeof(head) >= head.length)));
}

/* PING carries no meaning for anybody but its sender: the answer is made here.  When the ring is
 * full the answer is left out, as the sender will notice. */
static void channel_pong(struct channel *ch, const struct remus_packet *ping,
                         const uint8_t *payload)
{
    uint8_t copy[CHANNEL_PING_MAX];
    struct remus_packet head = {
        .length = ping->length, .type = REMUS_PACKET_PONG, .vif = ping->vif, .epoch = ping->epoch,
    };
    struct iovec iov = { .iov_base = copy, .iov_len = ping->length };

    memcpy(copy, payload, ping->length);
    channel_send(ch, &head, &iov, 1);
}

int channel_deliver(struct channel *ch, channel_packet_fn *fn, void *arg, unsigned int frames_max)
{
    const enum channel_role sender =
        ch->options.role == CHANNEL_PRIMARY ? CHANNEL_SECONDARY : CHANNEL_PRIMARY;
    struct remus_packet head;
    int rc = 0;

    while (!rc && frames_max && !ch->paused && channel_head(ch, &head)) {
        const uint8_t *payload = ch->in + ch->in_start + sizeof(head);

        /* Checked before its payload is waited for: a bad length must not make us wait. */
        rc = channel_check(ch, &head, sender, -EPROTO);
        if (rc || ch->in_end - ch->in_start - sizeof(head) < head.length) {
            break;
        }
        ch->in_start += sizeof(head) + head.length;
        frames_max--;
        ch->stats.in_frames++;
        ch->stats.in_bytes += sizeof(head) + head.length;
        if (head.type == REMUS_PACKET_OUTPUT) {
            ch->output_id[head.vif] = head.id;
        }
        if (head.type == REMUS_PACKET_PING) {
            channel_pong(ch, &head, payload);
        } else {
            rc = fn(arg, &head, payload);
        }
    }
    if (ch->in_start == ch->in_end) {
        ch->in_start = ch->in_end = 0;
    }
    return rc;
}

/* Room at the tail for what may come next; what is left of a frame moves down if it has to. */
static size_t channel_room(struct channel *ch)
{
    if (ch->in_start && CHANNEL_IN_BYTES - ch->in_end < CHANNEL_IN_BYTES / 2) {
        memmove(ch->in, ch->in + ch->in_start, ch->in_end - ch->in_start);
        ch->in_end -= ch->in_start;
        ch->in_start = 0;
    }
    return CHANNEL_IN_BYTES - ch->in_end;
}

size_t channel_feed(struct channel *ch, const uint8_t *bytes, size_t count)
{
    size_t room = channel_room(ch);

    if (count > room) {
        count = room;
    }
    if (count) {
        memcpy(ch->in + ch->in_end, bytes, count);
        ch->in_end += count;
    }
    return count;
}

int channel_read(struct channel *ch, channel_packet_fn *fn, void *arg, unsigned int frames_max)
{
    uint64_t end_frames = ch->stats.in_frames + frames_max;
    int rc;

    ch->unread = true;
    for (;;) {
        size_t room;
        ssize_t r;

        rc = channel_deliver(ch, fn, arg, (unsigned int)(end_frames - ch->stats.in_frames));
        if (rc || ch->paused || ch->stats.in_frames >= end_frames) {
            return rc;
        }
        room = channel_room(ch);
        r = recv(ch->fd, ch->in + ch->in_end, room, MSG_DONTWAIT);
        if (r < 0) {
            if (errno == EINTR) {
                continue;
            }
            ch->unread = false;
            if (errno == EAGAIN || errno == EWOULDBLOCK) {
                return 0;
            }
            return channel_fail(ch, -errno, "packet channel: receive: %s", strerror(errno));
        }
        if (r == 0) {
            ch->unread = false;
            return channel_fail(ch, -EPIPE, ch->in_end != ch->in_start ?
                                "packet channel: closed by the other host in mid-frame" :
                                "packet channel: closed by the other host");
        }
        ch->in_end += (size_t)r;
        if ((size_t)r < room) {
            /* The socket was empty then; if it is not any more, epoll will say so. */
            ch->unread = false;
            return channel_deliver(ch, fn, arg, (unsigned int)(end_frames - ch->stats.in_frames));
        }
    }
}

void channel_pause(struct channel *ch, bool pause)
{
    ch->paused = pause;
}

const char *channel_error(const struct channel *ch)
{
    return ch->error;
}

void channel_stats_get(const struct channel *ch, struct channel_stats *out)
{
    *out = ch->stats;
    out->out_queued = ch->out_used;
}
