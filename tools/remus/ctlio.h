/*
 * ctlio.h: sending and receiving the messages of ctl.h over a SOCK_SEQPACKET socket.
 *
 * Shared by the coordinator, colo-proxyd, colo-shadowd and colo-blkd.  One message is one packet:
 *
 *   struct ctl_msg | structures (count of the type's size) | text (text_bytes, no NUL)
 *
 * Both ends run on one host, so the structures travel as they are.  The receiver checks every
 * length all the same: a confined daemon that was taken over must not harm its coordinator.
 */
#ifndef REMUS_CTLIO_H
#define REMUS_CTLIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/remus/ctl.h"

/* Bytes of one structure that may follow a message of this type; 0: none may. */
size_t ctl_struct_bytes(uint32_t type);

/* Name of a message type, for logs. */
const char *ctl_type_name(uint32_t type);

/* The largest packet of any type. */
union ctl_structs {
    struct ctl_attach attach[REMUS_VIFS_MAX];  /* CTL_ATTACH, msg.count of them */
    struct remus_offset offsets[CTL_OFFSETS_MAX]; /* CTL_OFFSETS, msg.count of them */
    struct ctl_stats stats;                    /* CTL_STATS, msg.count == 1 */
    struct ctl_vif_stats vifs[REMUS_VIFS_MAX]; /* CTL_VIF_STATS, msg.count of them */
    struct ctl_cause causes[CTL_CAUSES_MAX];   /* CTL_CAUSES, msg.count of them */
    struct ctl_disk disk;                      /* CTL_DISK, msg.count == 1 */
    struct ctl_blk_attach rings[REMUS_RINGS_MAX];  /* CTL_BLK_ATTACH, msg.count of them */
    struct ctl_blk_stats disks[REMUS_DISKS_MAX];   /* CTL_BLK_STATS, msg.count of them */
    struct ctl_relation relation;              /* CTL_BLK_OPENED, _RELATED, msg.count == 1 */
};
#define CTL_PACKET_MAX (sizeof(struct ctl_msg) + sizeof(union ctl_structs) + CTL_TEXT_MAX)

/* One received message.  Only the member of structs that belongs to msg.type is filled in. */
struct ctl_in {
    struct ctl_msg msg;
    union ctl_structs structs;
    char text[CTL_TEXT_MAX + 1];                   /* always ends in NUL */
    int fds[REMUS_VIFS_MAX];                       /* -1 beyond n_fds */
    unsigned int n_fds;                            /* close-on-exec; the caller owns them */
};

/*
 * Never waits.  0; -EAGAIN: nothing there; -EPIPE: the other end is gone; -EPROTO: a malformed
 * message, which was taken off the socket (descriptors in it are closed).  Descriptors with any
 * type but CTL_FAILOVER, CTL_DISK, CTL_BLK_STORE and CTL_BLK_LOG are malformed.
 */
int ctl_recv(int fd, struct ctl_in *in);

/* Close descriptors that the caller did not take (taken ones: set to -1). */
void ctl_in_dispose(struct ctl_in *in);

/*
 * structs: msg->count structures of msg->type's size (NULL with count 0).  text: NUL terminated or
 * NULL; cut at CTL_TEXT_MAX; msg->text_bytes is filled in here.  Never waits and never raises
 * SIGPIPE.  0; -EAGAIN: the other end has stopped reading; -EPIPE: it is gone; -EINVAL: the
 * arguments do not fit the type.
 */
int ctl_send(int fd, const struct ctl_msg *msg, const void *structs, const char *text,
             const int *fds, unsigned int n_fds);

/* ctl_send, but waits up to timeout_ms for room.  -ETIMEDOUT when there was none. */
int ctl_send_wait(int fd, const struct ctl_msg *msg, const void *structs, const char *text,
                  const int *fds, unsigned int n_fds, int timeout_ms);

/* A message without structures.  fmt NULL: no text.  Waits up to a second as ctl_send_wait does. */
int ctl_say(int fd, uint32_t type, uint32_t code, uint64_t epoch, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

#endif /* REMUS_CTLIO_H */
