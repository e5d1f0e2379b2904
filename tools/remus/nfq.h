/*
 * nfq.h: one NFQUEUE of the bridge family: frames in, verdicts out.
 *
 * The kernel holds each frame until its verdict.  Netlink messages are put together and taken
 * apart with libnl-3's nlmsg_ and nla_ functions; sending and receiving is done here, many messages
 * a system call.  libnl-nf-3's own queue object is not used because it drops NFQA_L2HDR and
 * NFQA_VLAN, without which there is no Ethernet frame.
 *
 * nfq_open needs CAP_NET_ADMIN, and so does every verdict (the kernel checks opener and sender);
 * receiving needs nothing.  CAP_NET_ADMIN on such a socket is power over the host's whole packet
 * filter, too much for a process that takes apart a guest's packets.  So verdicts may be sent by a
 * second process, the writer, which is given messages, lets nothing but verdicts for these queues
 * through, and is all that keeps the capability.
 */
#ifndef REMUS_NFQ_H
#define REMUS_NFQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Messages read by one recvmmsg. */
#define NFQ_BATCH        32u
/* Bytes of one received message: the largest netlink attribute and the rest around it. */
#define NFQ_MESSAGE_MAX  (65536u + 512u)
/* L3 bytes asked for.  The kernel's own limit: a netlink attribute's length has 16 bits. */
#define NFQ_COPY_RANGE   (65535u - 4u)

struct nfq;

struct nfq_options {
    uint16_t queue;
    uint32_t maxlen;         /* frames the kernel holds at most; beyond it drops */
    uint32_t rcvbuf_bytes;   /* socket buffer: what may wait unread */
};

/* A frame as it stood on the wire: VLAN tag in line.  Good during the call only, writable. */
struct nfq_frame {
    uint32_t packet_id;
    uint8_t *bytes;
    uint32_t length;
    uint32_t l3_offset;      /* the kernel's payload, which a mangled verdict replaces */
    bool gso;
    bool csum_partial;       /* L4 checksum field holds the pseudo header sum only */
    bool truncated;          /* longer than NFQ_COPY_RANGE: bytes are missing at the end */
    bool gap;                /* a frame between the last one and this one was lost */
    uint32_t wire_length;    /* length with the missing bytes */
};

typedef void nfq_frame_fn(void *arg, const struct nfq_frame *frame);

struct nfq_stats {
    uint64_t frames, bytes;
    uint64_t malformed;      /* messages that were no frame: a kernel that we do not understand */
    uint64_t overruns;       /* times the kernel said ENOBUFS */
    uint64_t lost;           /* frames the kernel dropped because our socket was full (id gaps) */
    uint64_t verdict_errors; /* verdicts refused: the frame was gone already (its device went) */
    uint64_t verdicts, verdict_sends;
};

/* Bind to the queue and set it up (full copy, GSO, no fail-open).  error: a sentence. */
int nfq_open(struct nfq **out, const struct nfq_options *options, char *error, size_t error_bytes);
void nfq_close(struct nfq *q);
int nfq_fd(const struct nfq *q);

/*
 * Read what waits, up to batches * NFQ_BATCH messages, and give each frame to fn in order.  *more
 * tells whether the budget ended before the socket was empty.  exact: read until the kernel says
 * that there is nothing; otherwise a batch that was not full ends it, which saves a system call
 * when poll would tell of the rest.  0 or the socket's error (then the queue is gone).  Lost frames
 * show in the stats: compare before and after.
 */
int nfq_recv(struct nfq *q, nfq_frame_fn *fn, void *arg, unsigned int batches, bool exact,
             bool *more);

/* Verdicts are collected; nfq_flush sends those of several queues, which have one writer or none.
 * A full batch is sent at once. */
int nfq_verdict(struct nfq *q, uint32_t packet_id, bool accept);
/* Accept, with l3 in the place of the frame's bytes from l3_offset on; same length. */
int nfq_verdict_mangled(struct nfq *q, uint32_t packet_id, const uint8_t *l3, uint32_t l3_bytes);
int nfq_flush(struct nfq *const *queues, unsigned int count);

/*
 * From now on the verdicts of these queues go through a writer.  confine(arg) runs in the new
 * process, which is to give up there all but CAP_NET_ADMIN; negative errno ends it.  The writer
 * ends with this process, and the queues with both.  0, or negative errno if there is none (error
 * says why).
 */
#define NFQ_WRITER_QUEUES_MAX 64u
int nfq_writer_start(struct nfq *const *queues, unsigned int count, int (*confine)(void *arg),
                     void *arg, char *error, size_t error_bytes);
/* Wait until what was flushed, from any queue of the same writer, is in the kernel. */
int nfq_sync(struct nfq *q);

/* What the writer lets through: nothing but verdicts for this queue.  For tests and fuzzing. */
bool nfq_verdicts_only(const uint8_t *messages, size_t bytes, uint16_t queue);

/* Bytes that wait in the socket, and its limit, as the kernel counts them (SO_MEMINFO). */
int nfq_backlog(const struct nfq *q, uint32_t *bytes, uint32_t *limit);

void nfq_stats_get(const struct nfq *q, struct nfq_stats *out);

/* The kernel's own count of one queue.  Drops of a queue at its maxlen can be seen nowhere else;
 * those of a socket that was full are a gap in the ids. */
struct nfq_table_entry {
    uint32_t held;           /* frames without a verdict, read by us or not */
    uint32_t dropped_full;   /* since bind, queue at maxlen */
};
/* A descriptor that goes on working without a file system, or negative errno. */
int nfq_table_open(void);
int nfq_table_read(int fd, const struct nfq *q, struct nfq_table_entry *out);

/* The pure part of nfq_recv: take apart one netlink message of `bytes` bytes at message (the frame
 * is put together in place).  0; -EBADMSG: no packet message; for tests and fuzzing. */
int nfq_parse(uint8_t *message, size_t bytes, struct nfq_frame *frame);

#endif /* REMUS_NFQ_H */
