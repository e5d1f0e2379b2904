/* blkio.c: see blkio.h. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/blkio.h"

#define NO_OFFSET UINT64_MAX          /* of a stream */

struct blkio {
    struct io_uring ring;
    uint32_t depth, busy;
    uint32_t giving;                  /* GIVEs that were prepared since the last wait */
};

static void allow_op(struct io_uring_restriction *r, uint8_t op)
{
    r->opcode = IORING_RESTRICTION_SQE_OP;
    r->sqe_op = op;
}

/* From here on: these operations, on registered files, and other files in their slots. */
static int restrict_ring(struct io_uring *ring)
{
    struct io_uring_restriction r[7];
    int rc;

    memset(r, 0, sizeof(r));
    allow_op(&r[0], IORING_OP_READV);
    allow_op(&r[1], IORING_OP_WRITEV);
    allow_op(&r[2], IORING_OP_FSYNC);
    allow_op(&r[3], IORING_OP_FALLOCATE);
    allow_op(&r[4], IORING_OP_POLL_ADD);
    r[5].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    r[5].sqe_flags = IOSQE_FIXED_FILE;
    r[6].opcode = IORING_RESTRICTION_REGISTER_OP;
    r[6].register_op = IORING_REGISTER_FILES_UPDATE;
    /* liburing 2.3 declares functions for these two and does not export them. */
    rc = io_uring_register((unsigned int)ring->ring_fd, IORING_REGISTER_RESTRICTIONS, r,
                           sizeof(r) / sizeof(r[0]));
    return rc ? rc : io_uring_register((unsigned int)ring->ring_fd, IORING_REGISTER_ENABLE_RINGS,
                                       NULL, 0);
}

/*
 * Completions are worked on when we ask for them (DEFER_TASKRUN), not by interrupting whatever we
 * do; kernels before 6.1 do not know that.
 */
static int init_ring(struct io_uring *ring, uint32_t depth)
{
    const unsigned int flags = IORING_SETUP_R_DISABLED;
    int rc = io_uring_queue_init(depth, ring, flags | IORING_SETUP_SINGLE_ISSUER |
                                 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG);

    return rc == -EINVAL ? io_uring_queue_init(depth, ring, flags) : rc;
}

int blkio_new(struct blkio **out, uint32_t depth, uint32_t files)
{
    struct blkio *io = calloc(1, sizeof(*io));
    int *none = calloc(files, sizeof(*none));
    uint32_t i;
    int rc;

    *out = NULL;
    if (!io || !none) {
        free(io);
        free(none);
        return -ENOMEM;
    }
    for (i = 0; i < files; i++) {
        none[i] = -1;
    }
    io->depth = depth;
    rc = init_ring(&io->ring, depth + BLKIO_STANDING_MAX);
    if (rc) {
        free(io);
        free(none);
        return rc;
    }
    rc = io_uring_register_files(&io->ring, none, files);
    if (!rc) {
        rc = restrict_ring(&io->ring);
    }
    free(none);
    if (rc) {
        blkio_free(io);
        return rc;
    }
    *out = io;
    return 0;
}

void blkio_free(struct blkio *io)
{
    if (!io) {
        return;
    }
    while (io->busy && !blkio_wait(io, -1)) {
        blkio_reap(io);
    }
    io_uring_queue_exit(&io->ring);
    free(io);
}

int blkio_set_file(struct blkio *io, uint32_t slot, int fd)
{
    int rc = io_uring_register_files_update(&io->ring, slot, &fd, 1);

    return rc < 0 ? rc : 0;
}

static bool on_disk(const struct blkio_op *op)
{
    return op->type <= BLKIO_PUNCH;
}

/* There is room: no more than depth operations are under way, and the queue has that many. */
static void prepare(struct blkio *io, struct blkio_op *op)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

    switch (op->type) {
    case BLKIO_READ:
        io_uring_prep_readv(sqe, (int)op->file, op->iov, op->iovs, op->offset);
        break;
    case BLKIO_WRITE:
        io_uring_prep_writev(sqe, (int)op->file, op->iov, op->iovs, op->offset);
        break;
    case BLKIO_SYNC:
        io_uring_prep_fsync(sqe, (int)op->file, IORING_FSYNC_DATASYNC);
        break;
    case BLKIO_PUNCH:
        io_uring_prep_fallocate(sqe, (int)op->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)op->offset, (off_t)op->bytes);
        break;
    case BLKIO_READABLE:
        io_uring_prep_poll_add(sqe, (int)op->file, POLLIN);
        break;
    case BLKIO_WRITABLE:
        io_uring_prep_poll_add(sqe, (int)op->file, POLLOUT);
        break;
    case BLKIO_ARRIVES:
        io_uring_prep_poll_multishot(sqe, (int)op->file, POLLIN);
        break;
    case BLKIO_TAKE:
        io_uring_prep_readv(sqe, (int)op->file, op->iov, op->iovs, NO_OFFSET);
        break;
    case BLKIO_GIVE:
        io_uring_prep_writev(sqe, (int)op->file, op->iov, op->iovs, NO_OFFSET);
        io->giving++;
        break;
    }
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, op);
}

int blkio_begin(struct blkio *io, struct blkio_op *op)
{
    if (on_disk(op)) {
        if (io->busy == io->depth) {
            return -EAGAIN;
        }
        io->busy++;
    }
    prepare(io, op);
    return 0;
}

int blkio_wait(struct blkio *io, int timeout_ms)
{
    struct __kernel_timespec limit = {
        .tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000ll,
    };
    const uint32_t wanted = 1 + io->giving;
    struct io_uring_cqe *cqe;
    int rc = 0;

    if (timeout_ms && io_uring_cq_ready(&io->ring) < wanted) {
        rc = io_uring_submit_and_wait_timeout(&io->ring, &cqe, wanted,
                                              timeout_ms < 0 ? NULL : &limit, NULL);
    } else if (io_uring_sq_ready(&io->ring)) {
        rc = io_uring_submit_and_get_events(&io->ring);
    }
    io->giving = 0;
    return rc < 0 && rc != -EAGAIN && rc != -EBUSY && rc != -EINTR && rc != -ETIME ? rc : 0;
}

/* What is left of an operation after so many bytes.  false: nothing. */
static bool go_on(struct blkio_op *op, uint64_t moved)
{
    op->offset += moved;
    op->bytes -= moved;
    while (op->iovs && moved >= op->iov->iov_len) {
        moved -= op->iov->iov_len;
        op->iov++;
        op->iovs--;
    }
    if (op->iovs) {
        op->iov->iov_base = (uint8_t *)op->iov->iov_base + moved;
        op->iov->iov_len -= moved;
    }
    return op->bytes != 0;
}

static void completed(struct blkio *io, struct blkio_op *op, int res, bool over)
{
    bool moves = op->type == BLKIO_READ || op->type == BLKIO_WRITE;

    op->over = over;
    if (!on_disk(op)) {
        op->done(op, op->type == BLKIO_TAKE || op->type == BLKIO_GIVE || res < 0 ? res : 0);
        return;
    }
    if (moves && res > 0 && go_on(op, (uint64_t)res)) {
        prepare(io, op);
        return;
    }
    if (res == -EAGAIN || res == -EINTR) {
        prepare(io, op);
        return;
    }
    if (moves && res == 0) {
        res = op->bytes ? -EIO : 0;
    }
    io->busy--;
    op->done(op, res < 0 ? res : 0);
}

uint32_t blkio_reap(struct blkio *io)
{
    struct io_uring_cqe *cqe;
    uint32_t count = 0;

    while (!io_uring_peek_cqe(&io->ring, &cqe)) {
        struct blkio_op *op = io_uring_cqe_get_data(cqe);
        int res = cqe->res;
        bool over = !(cqe->flags & IORING_CQE_F_MORE);

        io_uring_cqe_seen(&io->ring, cqe);
        completed(io, op, res, over);
        count++;
    }
    return count;
}

uint32_t blkio_busy(const struct blkio *io)
{
    return io->busy;
}
