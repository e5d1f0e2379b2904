/*
 * blkchan.h: framing of the disk channel (struct remus_disk_frame) over a nonblocking socket.
 *
 * Both ends are a colo-blkd.  Frames keep their order in each direction.  Memory is bounded and
 * allocated at setup: a ring of BLKCHAN_OUT_BYTES to be sent, a buffer of BLKCHAN_IN_BYTES for what
 * came.  A frame that does not fit is refused, whole; the caller waits.
 *
 * After any error the channel is dead: free it.
 */
#ifndef REMUS_BLKCHAN_H
#define REMUS_BLKCHAN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "xen/include/public/remus.h"

#define BLKCHAN_OUT_BYTES (8u << 20)
#define BLKCHAN_IN_BYTES  (4u << 20)

struct blkchan;

enum blkchan_role { BLKCHAN_PRIMARY, BLKCHAN_SECONDARY };

/* fd: connected; made nonblocking here, closed by blkchan_free().  0 or negative errno. */
int blkchan_new(struct blkchan **out, int fd, enum blkchan_role role);
void blkchan_free(struct blkchan *ch);
int blkchan_fd(const struct blkchan *ch);

/* head in host order; its length and checksum are filled in from the payload.  0; -ENOBUFS: no room
 * now. */
int blkchan_put(struct blkchan *ch, struct remus_disk_frame *head, const struct iovec *iov,
                uint32_t iovs);
/* Writes what the socket takes.  0, or its error. */
int blkchan_flush(struct blkchan *ch);
bool blkchan_wants_write(const struct blkchan *ch);

/* Reads what there is, as far as there is room.  0: there may be more; -EAGAIN: there is not, now;
 * -EPIPE: its end; the socket's error. */
int blkchan_fill(struct blkchan *ch);
/*
 * The next frame that came.  1: head is filled, in host order, and its payload is good until the
 * next call; 0: none; -EPROTO: blkchan_error() says what is wrong with it.  Types of the other
 * direction are wrong; whether such a disk or range exists is the caller's to check.
 */
int blkchan_next(struct blkchan *ch, struct remus_disk_frame *head, const uint8_t **payload);
const char *blkchan_error(const struct blkchan *ch);

/* Tests and fuzzing: as if these bytes had come; returns how many were taken in. */
size_t blkchan_feed(struct blkchan *ch, const uint8_t *bytes, size_t count);

#endif /* REMUS_BLKCHAN_H */
