/*
 * channel.h: framing of the packet channel (struct remus_packet) over a nonblocking stream socket.
 *
 * Shared by colo-proxyd (primary) and colo-shadowd (secondary).  Frames keep their order in each
 * direction.  Memory is bounded and allocated at setup:
 *
 *   out: a byte ring of out_max.  channel_send only appends; channel_flush writes the whole ring in
 *        one sendmsg.  Above out_high the channel is "congested" until it has fallen to out_low:
 *        the owner stops taking new work then (colo-proxyd leaves input in the kernel's queue).
 *        A frame that does not fit in out_max is refused with -ENOBUFS, whole.
 *   in:  CHANNEL_IN_BYTES; frames are delivered in place, one at a time.
 *
 * A loop around it, with epoll.  EPOLLET: where the kernel encrypts the socket, Debian 12's tells
 * level-triggered sets of half a record again and again, while there is nothing to be read.
 *
 *   EPOLLIN | EPOLLET        -> channel_read(ch, deliver, arg, budget)
 *   end of each round        -> channel_flush(ch); EPOLLOUT wanted while channel_wants_write(ch)
 *   channel_pending(ch)      -> do not sleep: more waits, inside or in the socket (budget)
 *
 * After any error but -ENOBUFS and -EINVAL the channel is dead: free it.
 */
#ifndef REMUS_CHANNEL_H
#define REMUS_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "xen/include/public/remus.h"

#define CHANNEL_IN_BYTES     (512u << 10)
#define CHANNEL_OUT_MAX      (16u << 20)
#define CHANNEL_OUT_HIGH     (4u << 20)
#define CHANNEL_OUT_LOW      (1u << 20)
#define CHANNEL_SENT_MIN     54u    /* Ethernet, IPv4 and TCP headers without options */
#define CHANNEL_SENT_MAX     160u
#define CHANNEL_MATCHED_MAX  1024u  /* ids in one REMUS_PACKET_MATCHED */
#define CHANNEL_PING_MAX     64u    /* payload bytes of PING and PONG */
#define CHANNEL_FRAME_MIN    14u    /* an Ethernet header */

struct channel;

enum channel_role {
    CHANNEL_PRIMARY,     /* sends INPUT, MATCHED, FLOW, PING; receives OUTPUT, PONG */
    CHANNEL_SECONDARY,   /* the reverse; PING is answered in here and not delivered */
};

struct channel_options {
    enum channel_role role;
    unsigned int vifs;   /* frames for a vif index at or above this are refused */
    size_t out_max, out_high, out_low; /* bytes; 0: the defaults above */
};

struct channel_stats {
    uint64_t in_frames, in_bytes, out_frames, out_bytes; /* headers included */
    uint64_t out_queued, out_queued_max;                 /* bytes waiting in the ring; its record */
    uint64_t congestions;                                /* times out_high was passed */
};

/*
 * One valid frame: fields in host order, head->length bytes at payload, which is only good during
 * the call and may be unaligned.  Return 0, or a negative errno that ends channel_read and is its
 * result.  Types for the other role never arrive here.
 */
typedef int channel_packet_fn(void *arg, const struct remus_packet *head, const uint8_t *payload);

/* fd: connected stream socket, made nonblocking here; closed by channel_free.  0, -ENOMEM, -EINVAL,
 * or what fcntl says. */
int channel_new(struct channel **out, int fd, const struct channel_options *options);
void channel_free(struct channel *ch);
int channel_fd(const struct channel *ch);

/*
 * Append one frame.  head->length must be the sum of iov.  Nothing is written to the socket: call
 * channel_flush at the end of the round.  0; -ENOBUFS: out_max reached, nothing was appended;
 * -EINVAL: header breaks the rules that the peer would check (channel_error says which).
 */
int channel_send(struct channel *ch, const struct remus_packet *head, const struct iovec *iov,
                 unsigned int iov_count);

/* ids: host order, any number (cut into frames of CHANNEL_MATCHED_MAX). */
int channel_send_matched(struct channel *ch, unsigned int vif, uint64_t epoch, const uint64_t *ids,
                         size_t count);
int channel_send_flow(struct channel *ch, unsigned int vif, uint64_t epoch,
                      const struct remus_flow *flow);

/* Payload of MATCHED and FLOW, to host order. */
size_t channel_matched_count(const struct remus_packet *head);
uint64_t channel_matched_id(const uint8_t *payload, size_t index);
void channel_flow_get(const uint8_t *payload, struct remus_flow *flow);

/* Write what waits.  0 (all gone, or the socket is full: see channel_wants_write), -EPIPE or the
 * socket's error. */
int channel_flush(struct channel *ch);
bool channel_wants_write(const struct channel *ch);
bool channel_congested(const struct channel *ch);

/*
 * Read and deliver up to frames_max frames.  0; -EPIPE: end of stream (channel_error: whether in
 * mid-frame); -EPROTO: bad header (channel_error says which field); the socket's error; fn's error.
 */
int channel_read(struct channel *ch, channel_packet_fn *fn, void *arg, unsigned int frames_max);

/* A whole frame waits in the buffer, or the last channel_read left something in the socket, of
 * which the kernel will not tell again: call channel_read without waiting.  Not while paused. */
bool channel_pending(const struct channel *ch);

/* While set, channel_read delivers nothing and reads nothing (the caller stops polling for input).
 * May be called from fn: the current frame counts as delivered, no further one comes. */
void channel_pause(struct channel *ch, bool pause);

/* A sentence about the last error, "" if none. */
const char *channel_error(const struct channel *ch);
void channel_stats_get(const struct channel *ch, struct channel_stats *out);

/* Tests and fuzzing: as if these bytes had come from the socket.  Returns how many were taken in,
 * at most the free part of the buffer; deliver them with channel_deliver. */
size_t channel_feed(struct channel *ch, const uint8_t *bytes, size_t count);
/* Deliver whole frames already read; the part of channel_read without the socket. */
int channel_deliver(struct channel *ch, channel_packet_fn *fn, void *arg, unsigned int frames_max);

#endif /* REMUS_CHANNEL_H */
