/*
 * blkio.h: reading and writing disks and files, and waiting for other descriptors, through one
 * io_uring: what was begun and what is waited for is one system call.
 *
 * The ring can do only what is here, to the descriptors that were handed over: it is restricted
 * (IORING_REGISTER_RESTRICTIONS) before its first use, as a system call filter does not see what a
 * ring is told to do.  Operations complete in any order; a short one on a disk is carried on with,
 * so `done` is called once, with all of it or an error.
 *
 * One thread.  Nothing here waits, but blkio_wait(), and blkio_free() for what is under way on
 * disks.
 */
#ifndef REMUS_BLKIO_H
#define REMUS_BLKIO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum blkio_type {
    BLKIO_READ,
    BLKIO_WRITE,
    BLKIO_SYNC,       /* data written before this was begun is durable when it is done */
    BLKIO_PUNCH,      /* the range reads as zeroes from now on; the space may be given back */
    /* Of streams.  These are not counted, and blkio_free() does not wait for them. */
    BLKIO_READABLE,   /* it is, or has an error or its end; done at once if so already */
    BLKIO_WRITABLE,
    BLKIO_ARRIVES,    /* it is, at first, and each time that more has come; until .over */
    BLKIO_TAKE,       /* one read(2), when there is something; done() is told the bytes.  -EAGAIN:
                         this kernel does not wait for it, use READABLE */
    BLKIO_GIVE,       /* one write(2) that is expected to end at once: blkio_wait() goes on
                         waiting for something else; done() is told the bytes */
};

#define BLKIO_STANDING_MAX 8u         /* operations on streams at a time */

struct blkio;

/* The caller's, untouched between blkio_begin() and done(). */
struct blkio_op {
    enum blkio_type type;
    uint32_t file;                    /* slot of blkio_set_file() */
    uint64_t offset, bytes;           /* READ, WRITE, PUNCH */
    struct iovec *iov;                /* READ, WRITE: their sum is bytes; changed on the way */
    uint32_t iovs;                    /* at most IOV_MAX (1024) */
    bool over;                        /* ARRIVES: done() will not be called again */
    /* 0 or negative errno; a read beyond the file's end is -EIO.  May begin other operations. */
    void (*done)(struct blkio_op *op, int rc);
    void *arg;
};

/* depth: operations on disks under way at most; files: slots.  0 or negative errno. */
int blkio_new(struct blkio **out, uint32_t depth, uint32_t files);
/* Waits for what is under way on disks; its done() is called. */
void blkio_free(struct blkio *io);

/* The slot refers to this file from now on (blkio keeps a reference of its own); -1: to none.
 * Nothing may be under way on it, unless it is a stream that was shut down. */
int blkio_set_file(struct blkio *io, uint32_t slot, int fd);

/* 0; -EAGAIN: depth operations are under way.  Begins for certain with blkio_wait(). */
int blkio_begin(struct blkio *io, struct blkio_op *op);

/*
 * Begins what was prepared, and waits until blkio_reap() has something to do, or a signal came.
 * timeout_ms 0: does not wait; -1: for ever.  0 or negative errno.
 */
int blkio_wait(struct blkio *io, int timeout_ms);

/* Calls done() of what has completed; returns how many. */
uint32_t blkio_reap(struct blkio *io);
/* Operations on disks under way. */
uint32_t blkio_busy(const struct blkio *io);

#endif /* REMUS_BLKIO_H */
