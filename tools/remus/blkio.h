/*
 * blkio.h: reading and writing disks and files through one io_uring.
 *
 * The ring can do only what is here, to the descriptors that were handed over: it is restricted
 * (IORING_REGISTER_RESTRICTIONS) before its first use, as a system call filter does not see what a
 * ring is told to do.  Operations complete in any order; a short one is carried on with, so `done`
 * is called once, with all of it or an error.
 *
 * One thread.  Nothing here waits, but blkio_free() for what is under way.
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
};

struct blkio;

/* The caller's, untouched between blkio_begin() and done(). */
struct blkio_op {
    enum blkio_type type;
    uint32_t file;                    /* slot of blkio_set_file() */
    uint64_t offset, bytes;           /* SYNC: ignored */
    struct iovec *iov;                /* READ, WRITE: their sum is bytes; changed on the way */
    uint32_t iovs;                    /* at most IOV_MAX (1024) */
    /* 0 or negative errno; a read beyond the file's end is -EIO.  May begin other operations. */
    void (*done)(struct blkio_op *op, int rc);
    void *arg;
};

/* depth: operations under way at most; files: slots.  0 or negative errno. */
int blkio_new(struct blkio **out, uint32_t depth, uint32_t files);
/* Waits for what is under way; its done() is called. */
void blkio_free(struct blkio *io);

/* For poll: readable when blkio_reap() has something to do. */
int blkio_fd(const struct blkio *io);

/* The slot refers to this file from now on (blkio keeps a reference of its own); -1: to none.
 * Nothing may be under way on it. */
int blkio_set_file(struct blkio *io, uint32_t slot, int fd);

/* 0; -EAGAIN: depth operations are under way.  Begins for certain with blkio_flush(). */
int blkio_begin(struct blkio *io, struct blkio_op *op);
int blkio_flush(struct blkio *io);
/* Some have not begun: the kernel had no room for them.  blkio_flush() is to be called again. */
bool blkio_waits(const struct blkio *io);

/* Calls done() of what has completed; returns how many. */
uint32_t blkio_reap(struct blkio *io);
uint32_t blkio_busy(const struct blkio *io);

#endif /* REMUS_BLKIO_H */
