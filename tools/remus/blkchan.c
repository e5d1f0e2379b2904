/* blkchan.c: see blkchan.h. */
#include "tools/remus/blkchan.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define XXH_STATIC_LINKING_ONLY     /* the size of its state */
#include <xxhash.h>

struct blkchan {
    int fd;
    enum blkchan_role role;
    uint8_t *out, *in;
    size_t out_at, out_bytes;       /* of the ring: first byte, bytes that wait */
    size_t in_at, in_bytes;         /* of the buffer: first byte not taken, bytes there */
    char error[160];
};

int blkchan_new(struct blkchan **out, int fd, enum blkchan_role role)
{
    struct blkchan *ch = calloc(1, sizeof(*ch));
    int flags = fd < 0 ? 0 : fcntl(fd, F_GETFL), rc;

    *out = NULL;
    if (!ch) {
        return -ENOMEM;
    }
    ch->fd = -1;
    ch->role = role;
    ch->out = malloc(BLKCHAN_OUT_BYTES);
    ch->in = malloc(BLKCHAN_IN_BYTES);
    if (!ch->out || !ch->in) {
        blkchan_free(ch);
        return -ENOMEM;
    }
    if (flags < 0 || (fd >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)) {
        rc = -errno;
        blkchan_free(ch);
        return rc;
    }
    ch->fd = fd;
    *out = ch;
    return 0;
}

void blkchan_free(struct blkchan *ch)
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

int blkchan_fd(const struct blkchan *ch)
{
    return ch->fd;
}

const char *blkchan_error(const struct blkchan *ch)
{
    return ch->error;
}

/* ---- Out ------------------------------------------------------------------------------------ */

static void append(struct blkchan *ch, const void *bytes, size_t count)
{
    size_t end = (ch->out_at + ch->out_bytes) % BLKCHAN_OUT_BYTES;
    size_t first = BLKCHAN_OUT_BYTES - end < count ? BLKCHAN_OUT_BYTES - end : count;

    memcpy(ch->out + end, bytes, first);
    memcpy(ch->out, (const uint8_t *)bytes + first, count - first);
    ch->out_bytes += count;
}

static void to_wire(struct remus_disk_frame *wire, const struct remus_disk_frame *head)
{
    memset(wire, 0, sizeof(*wire));
    wire->length = htole32(head->length);
    wire->type = head->type;
    wire->disk = head->disk;
    wire->epoch = htole64(head->epoch);
    wire->sector = htole64(head->sector);
    wire->sectors = htole32(head->sectors);
}

static uint64_t checksum(const struct remus_disk_frame *wire, const struct iovec *iov,
                         uint32_t iovs)
{
    XXH64_state_t state;
    uint32_t i;

    XXH64_reset(&state, 0);
    XXH64_update(&state, wire, sizeof(*wire));
    for (i = 0; i < iovs; i++) {
        XXH64_update(&state, iov[i].iov_base, iov[i].iov_len);
    }
    return XXH64_digest(&state);
}

int blkchan_put(struct blkchan *ch, struct remus_disk_frame *head, const struct iovec *iov,
                uint32_t iovs)
{
    struct remus_disk_frame wire;
    uint32_t i;

    head->length = 0;
    for (i = 0; i < iovs; i++) {
        head->length += (uint32_t)iov[i].iov_len;
    }
    if (sizeof(wire) + head->length > BLKCHAN_OUT_BYTES - ch->out_bytes) {
        return -ENOBUFS;
    }
    to_wire(&wire, head);
    head->checksum = checksum(&wire, iov, iovs);
    wire.checksum = htole64(head->checksum);
    append(ch, &wire, sizeof(wire));
    for (i = 0; i < iovs; i++) {
        append(ch, iov[i].iov_base, iov[i].iov_len);
    }
    return 0;
}

int blkchan_flush(struct blkchan *ch)
{
    while (ch->out_bytes) {
        size_t first = BLKCHAN_OUT_BYTES - ch->out_at;
        struct iovec iov[2] = {
            { ch->out + ch->out_at, first < ch->out_bytes ? first : ch->out_bytes },
            { ch->out, first < ch->out_bytes ? ch->out_bytes - first : 0 },
        };
        struct msghdr msg = { .msg_iov = iov, .msg_iovlen = iov[1].iov_len ? 2 : 1 };
        ssize_t n = sendmsg(ch->fd, &msg, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno == EAGAIN ? 0 : -errno;
        }
        ch->out_at = (ch->out_at + (size_t)n) % BLKCHAN_OUT_BYTES;
        ch->out_bytes -= (size_t)n;
    }
    return 0;
}

bool blkchan_wants_write(const struct blkchan *ch)
{
    return ch->out_bytes != 0;
}

/* ---- In ------------------------------------------------------------------------------------- */

/* What was taken makes room. */
static void compact(struct blkchan *ch)
{
    memmove(ch->in, ch->in + ch->in_at, ch->in_bytes);
    ch->in_at = 0;
}

int blkchan_fill(struct blkchan *ch)
{
    size_t room;
    ssize_t n;

    if (ch->in_at) {
        compact(ch);
    }
    room = BLKCHAN_IN_BYTES - ch->in_bytes;
    if (!room) {
        return 0;                   /* the caller has whole frames to take first */
    }
    do {
        n = recv(ch->fd, ch->in + ch->in_bytes, room, 0);
    } while (n < 0 && errno == EINTR);
    if (n <= 0) {
        return n ? -errno : -EPIPE;
    }
    ch->in_bytes += (size_t)n;
    return 0;
}

size_t blkchan_feed(struct blkchan *ch, const uint8_t *bytes, size_t count)
{
    size_t room;

    compact(ch);
    room = BLKCHAN_IN_BYTES - ch->in_bytes;
    count = count < room ? count : room;
    memcpy(ch->in + ch->in_bytes, bytes, count);
    ch->in_bytes += count;
    return count;
}

static int bad(struct blkchan *ch, const struct remus_disk_frame *h, const char *what)
{
    snprintf(ch->error, sizeof(ch->error), "disk channel: frame type %u, disk %u, %u bytes, "
             "sectors %u: %s", h->type, h->disk, h->length, h->sectors, what);
    return -EPROTO;
}

/* What a frame of this type may be.  NULL: it is all right. */
static const char *wrong(enum blkchan_role role, const struct remus_disk_frame *h)
{
    bool from_primary = role == BLKCHAN_SECONDARY;
    uint32_t want = 0, hashes;

    switch (h->type) {
    case REMUS_DISK_OPEN:
        want = from_primary ? sizeof(struct remus_disk_open) : UINT32_MAX;
        break;
    case REMUS_DISK_WRITE:
        want = from_primary && h->sectors && h->sectors <= REMUS_DISK_BYTES_MAX / 512u
            ? h->sectors * 512u : UINT32_MAX;
        break;
    case REMUS_DISK_HASHES:
        hashes = (h->sectors + REMUS_DISK_HASH_BYTES / 512u - 1) / (REMUS_DISK_HASH_BYTES / 512u);
        want = from_primary && h->sectors && h->sectors <= REMUS_DISK_BYTES_MAX / 512u
            ? hashes * (uint32_t)sizeof(uint64_t) : UINT32_MAX;
        break;
    case REMUS_DISK_INTENT:
    case REMUS_DISK_COLD:
        want = from_primary && h->sectors == REMUS_DISK_REGION_BYTES / 512u &&
               h->sector % h->sectors == 0 ? 0 : UINT32_MAX;
        break;
    case REMUS_DISK_EPOCH:
    case REMUS_DISK_MARK:
    case REMUS_DISK_BASE:
        want = from_primary ? 0 : UINT32_MAX;
        break;
    case REMUS_DISK_RELATION:
        want = from_primary ? REMUS_DISK_RELATION_BYTES : UINT32_MAX;
        break;
    case REMUS_DISK_SYNCED:
        break;
    case REMUS_DISK_WANT:
    case REMUS_DISK_CREDIT:
    case REMUS_DISK_KNOWN:
    case REMUS_DISK_SAFE:
    case REMUS_DISK_NOTED:
        want = from_primary ? UINT32_MAX : 0;
        break;
    default:
        return "no such type";
    }
    if (want == UINT32_MAX) {
        return "not from this side, or its range cannot be";
    }
    if (h->length != want) {
        return "its length is not that of its type";
    }
    return h->sector + h->sectors < h->sector ? "its range overflows" : NULL;
}

int blkchan_next(struct blkchan *ch, struct remus_disk_frame *head, const uint8_t **payload)
{
    struct remus_disk_frame wire;
    struct iovec iov;
    const char *what;

    if (ch->in_bytes < sizeof(wire)) {
        return 0;
    }
    memcpy(&wire, ch->in + ch->in_at, sizeof(wire));
    *head = (struct remus_disk_frame){
        .length = le32toh(wire.length), .type = wire.type, .disk = wire.disk,
        .epoch = le64toh(wire.epoch), .sector = le64toh(wire.sector),
        .sectors = le32toh(wire.sectors), .checksum = le64toh(wire.checksum),
    };
    what = wrong(ch->role, head);
    if (what) {
        return bad(ch, head, what);
    }
    if (ch->in_bytes < sizeof(wire) + head->length) {
        return 0;
    }
    iov = (struct iovec){ ch->in + ch->in_at + sizeof(wire), head->length };
    wire.checksum = 0;
    if (checksum(&wire, &iov, 1) != head->checksum) {
        return bad(ch, head, "its checksum is wrong");
    }
    *payload = iov.iov_base;
    ch->in_at += sizeof(wire) + head->length;
    ch->in_bytes -= sizeof(wire) + head->length;
    return 1;
}
