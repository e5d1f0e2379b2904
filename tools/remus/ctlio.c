/* ctlio.c: see ctlio.h. */
#include "tools/remus/ctlio.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CTL_SAY_TIMEOUT_MS 1000

/* Every legal type stands here: an entry without a name is refused by ctl_recv. */
static const struct ctl_type_info {
    const char *name;
    size_t struct_bytes;
    unsigned int count_max;
    bool fds;
} ctl_types[] = {
    [CTL_INPUT_STOP]    = { "INPUT_STOP", 0, 0, false },
    [CTL_CUT]           = { "CUT", 0, 0, false },
    [CTL_RELEASE]       = { "RELEASE", 0, 0, false },
    [CTL_HOLD]          = { "HOLD", 0, 0, false },
    [CTL_UNPROTECT]     = { "UNPROTECT", 0, 0, false },
    [CTL_FENCE]         = { "FENCE", 0, 0, false },
    [CTL_INPUT_GO]      = { "INPUT_GO", 0, 0, false },
    [CTL_ATTACH]        = { "ATTACH", sizeof(struct ctl_attach), REMUS_VIFS_MAX, false },
    [CTL_DETACH]        = { "DETACH", 0, 0, false },
    [CTL_GO]            = { "GO", 0, 0, false },
    [CTL_FAILOVER]      = { "FAILOVER", 0, 0, true },
    [CTL_OFFSETS]       = { "OFFSETS", sizeof(struct remus_offset), CTL_OFFSETS_MAX, false },
    [CTL_OFFSETS_GET]   = { "OFFSETS_GET", 0, 0, false },
    [CTL_DISK]          = { "DISK", sizeof(struct ctl_disk), 1, true },
    [CTL_BLK_SYNC]      = { "BLK_SYNC", 0, 0, false },
    [CTL_BLK_LOCAL]     = { "BLK_LOCAL", 0, 0, false },
    [CTL_BLK_STORE]     = { "BLK_STORE", 0, 0, true },
    [CTL_BLK_COMMIT]    = { "BLK_COMMIT", 0, 0, false },
    [CTL_BLK_LOG]       = { "BLK_LOG", 0, 0, true },
    [CTL_BLK_KNOWN]     = { "BLK_KNOWN", 0, 0, false },
    [CTL_BLK_ATTACH]    = { "BLK_ATTACH", sizeof(struct ctl_blk_attach), REMUS_RINGS_MAX, false },
    [CTL_STATS_GET]     = { "STATS_GET", 0, 0, false },
    [CTL_QUIT]          = { "QUIT", 0, 0, false },
    [CTL_READY]         = { "READY", 0, 0, false },
    [CTL_INPUT_STOPPED] = { "INPUT_STOPPED", 0, 0, false },
    [CTL_CUT_DONE]      = { "CUT_DONE", 0, 0, false },
    [CTL_UNPROTECTED]   = { "UNPROTECTED", 0, 0, false },
    [CTL_FENCED]        = { "FENCED", 0, 0, false },
    [CTL_ATTACHED]      = { "ATTACHED", 0, 0, false },
    [CTL_DETACHED]      = { "DETACHED", 0, 0, false },
    [CTL_ACTIVE]        = { "ACTIVE", 0, 0, false },
    [CTL_CHECKPOINT]    = { "CHECKPOINT", 0, 0, false },
    [CTL_CHANNEL_LOST]  = { "CHANNEL_LOST", 0, 0, false },
    [CTL_STATS]         = { "STATS", sizeof(struct ctl_stats), 1, false },
    [CTL_FAILED]        = { "FAILED", 0, 0, false },
    [CTL_VIF_STATS]     = { "VIF_STATS", sizeof(struct ctl_vif_stats), REMUS_VIFS_MAX, false },
    [CTL_CAUSES]        = { "CAUSES", sizeof(struct ctl_cause), CTL_CAUSES_MAX, false },
    [CTL_BLK_SYNCED]    = { "BLK_SYNCED", 0, 0, false },
    [CTL_BLK_EPOCH]     = { "BLK_EPOCH", 0, 0, false },
    [CTL_BLK_COMMITTED] = { "BLK_COMMITTED", 0, 0, false },
    [CTL_BLK_OPENED]    = { "BLK_OPENED", sizeof(struct ctl_relation), 1, false },
    [CTL_BLK_RELATED]   = { "BLK_RELATED", sizeof(struct ctl_relation), 1, false },
    [CTL_BLK_STATS]     = { "BLK_STATS", sizeof(struct ctl_blk_stats), REMUS_DISKS_MAX, false },
};

static const struct ctl_type_info *ctl_info(uint32_t type)
{
    if (type >= sizeof(ctl_types) / sizeof(ctl_types[0]) || !ctl_types[type].name) {
        return NULL;
    }
    return &ctl_types[type];
}

size_t ctl_struct_bytes(uint32_t type)
{
    const struct ctl_type_info *info = ctl_info(type);

    return info ? info->struct_bytes : 0;
}

const char *ctl_type_name(uint32_t type)
{
    const struct ctl_type_info *info = ctl_info(type);

    return info ? info->name : "unknown";
}

/* Takes the descriptors out of a received packet; what has no place in `in` is closed. */
static void ctl_take_fds(struct msghdr *mh, struct ctl_in *in, bool *surplus)
{
    struct cmsghdr *cm;

    for (cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
        size_t count, i;

        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        count = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(fd));
            if (in->n_fds < REMUS_VIFS_MAX) {
                in->fds[in->n_fds++] = fd;
            } else {
                close(fd);
                *surplus = true;
            }
        }
    }
}

/* Everything about one packet is checked here; ctl_recv trusts it afterwards. */
static int ctl_check(const struct ctl_msg *msg, size_t bytes, unsigned int n_fds)
{
    const struct ctl_type_info *info = ctl_info(msg->type);

    if (!info || msg->count > info->count_max || msg->text_bytes > CTL_TEXT_MAX) {
        return -EPROTO;
    }
    if (n_fds && !info->fds) {
        return -EPROTO;
    }
    if (bytes != sizeof(*msg) + msg->count * info->struct_bytes + msg->text_bytes) {
        return -EPROTO;
    }
    return 0;
}

int ctl_recv(int fd, struct ctl_in *in)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * (REMUS_VIFS_MAX + 1))];
    } control;
    uint8_t packet[CTL_PACKET_MAX];
    struct iovec iov = { .iov_base = packet, .iov_len = sizeof(packet) };
    struct msghdr mh = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
    };
    bool surplus = false;
    size_t struct_bytes;
    unsigned int i;
    ssize_t r;
    int rc;

    memset(in, 0, sizeof(*in));
    for (i = 0; i < REMUS_VIFS_MAX; i++) {
        in->fds[i] = -1;
    }

    do {
        r = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (r < 0 && errno == EINTR);
    if (r < 0) {
        rc = errno == EWOULDBLOCK ? -EAGAIN : errno == ECONNRESET ? -EPIPE : -errno;
        goto out;
    }
    if (r == 0) {
        rc = -EPIPE;
        goto out;
    }

    ctl_take_fds(&mh, in, &surplus);
    rc = -EPROTO;
    if (surplus || (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || (size_t)r < sizeof(in->msg)) {
        goto out;
    }
    memcpy(&in->msg, packet, sizeof(in->msg));
    rc = ctl_check(&in->msg, (size_t)r, in->n_fds);
    if (rc) {
        goto out;
    }
    struct_bytes = in->msg.count * ctl_struct_bytes(in->msg.type);
    if (struct_bytes) {
        memcpy(&in->structs, packet + sizeof(in->msg), struct_bytes);
    }
    memcpy(in->text, packet + sizeof(in->msg) + struct_bytes, in->msg.text_bytes);

out:
    if (rc) {
        ctl_in_dispose(in);
    }
    return rc;
}

void ctl_in_dispose(struct ctl_in *in)
{
    unsigned int i;

    for (i = 0; i < in->n_fds && i < REMUS_VIFS_MAX; i++) {
        if (in->fds[i] >= 0) {
            close(in->fds[i]);
            in->fds[i] = -1;
        }
    }
    in->n_fds = 0;
}

int ctl_send(int fd, const struct ctl_msg *msg, const void *structs, const char *text,
             const int *fds, unsigned int n_fds)
{
    const struct ctl_type_info *info = ctl_info(msg->type);
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * REMUS_VIFS_MAX)];
    } control;
    struct ctl_msg head = *msg;
    struct iovec iov[3];
    struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 3 };
    ssize_t r;

    if (!info || msg->count > info->count_max || (msg->count && !structs) ||
        n_fds > REMUS_VIFS_MAX || (n_fds && !info->fds)) {
        return -EINVAL;
    }
    head.text_bytes = text ? (uint32_t)strnlen(text, CTL_TEXT_MAX) : 0;
    iov[0] = (struct iovec){ .iov_base = &head, .iov_len = sizeof(head) };
    iov[1] = (struct iovec){ .iov_base = (void *)(uintptr_t)structs,
                             .iov_len = msg->count * info->struct_bytes };
    iov[2] = (struct iovec){ .iov_base = (void *)(uintptr_t)text, .iov_len = head.text_bytes };
    if (n_fds) {
        struct cmsghdr *cm;

        memset(&control, 0, sizeof(control));
        mh.msg_control = control.bytes;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
        cm = CMSG_FIRSTHDR(&mh);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
        memcpy(CMSG_DATA(cm), fds, sizeof(int) * n_fds);
    }

    do {
        r = sendmsg(fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (r < 0 && errno == EINTR);
    if (r < 0) {
        return errno == EWOULDBLOCK ? -EAGAIN : errno == ECONNRESET ? -EPIPE : -errno;
    }
    return 0;
}

static int64_t ctl_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int ctl_send_wait(int fd, const struct ctl_msg *msg, const void *structs, const char *text,
                  const int *fds, unsigned int n_fds, int timeout_ms)
{
    const int64_t end_ms = ctl_now_ms() + timeout_ms;
    int rc;

    while ((rc = ctl_send(fd, msg, structs, text, fds, n_fds)) == -EAGAIN) {
        struct pollfd pfd = { .fd = fd, .events = POLLOUT };
        const int64_t left_ms = end_ms - ctl_now_ms();

        if (left_ms <= 0) {
            return -ETIMEDOUT;
        }
        if (poll(&pfd, 1, (int)left_ms) < 0 && errno != EINTR) {
            return -errno;
        }
    }
    return rc;
}

int ctl_say(int fd, uint32_t type, uint32_t code, uint64_t epoch, const char *fmt, ...)
{
    struct ctl_msg msg = { .type = type, .code = code, .epoch = epoch };
    char text[CTL_TEXT_MAX + 1] = "";

    if (fmt) {
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
    }
    return ctl_send_wait(fd, &msg, NULL, text, NULL, 0, CTL_SAY_TIMEOUT_MS);
}
