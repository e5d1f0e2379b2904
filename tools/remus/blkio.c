/* blkio.c: see blkio.h. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tools/remus/blkio.h"

struct blkio {
    struct io_uring ring;
    int event;
    uint32_t depth, busy;
};

static void allow_op(struct io_uring_restriction *r, uint8_t op)
{
    r->opcode = IORING_RESTRICTION_SQE_OP;
    r->sqe_op = op;
}

/* From here on: these operations, on registered files, and other files in their slots. */
static int restrict_ring(struct io_uring *ring)
{
    struct io_uring_restriction r[6];
    int rc;

    memset(r, 0, sizeof(r));
    allow_op(&r[0], IORING_OP_READV);
    allow_op(&r[1], IORING_OP_WRITEV);
    allow_op(&r[2], IORING_OP_FSYNC);
    allow_op(&r[3], IORING_OP_FALLOCATE);
    r[4].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    r[4].sqe_flags = IOSQE_FIXED_FILE;
    r[5].opcode = IORING_RESTRICTION_REGISTER_OP;
    r[5].register_op = IORING_REGISTER_FILES_UPDATE;
    /* liburing 2.3 declares functions for these two and does not export them. */
    rc = io_uring_register((unsigned int)ring->ring_fd, IORING_REGISTER_RESTRICTIONS, r,
                           sizeof(r) / sizeof(r[0]));
    return rc ? rc : io_uring_register((unsigned int)ring->ring_fd, IORING_REGISTER_ENABLE_RINGS,
                                       NULL, 0);
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
    rc = io_uring_queue_init(depth, &io->ring, IORING_SETUP_R_DISABLED);
    if (rc) {
        free(io);
        free(none);
        return rc;
    }
    io->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = io->event < 0 ? -errno : io_uring_register_eventfd(&io->ring, io->event);
    if (!rc) {
        rc = io_uring_register_files(&io->ring, none, files);
    }
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
    while (io->busy && io_uring_submit_and_wait(&io->ring, 1) >= 0) {
        blkio_reap(io);
    }
    if (io->event >= 0) {
        close(io->event);
    }
    io_uring_queue_exit(&io->ring);
    free(io);
}

int blkio_fd(const struct blkio *io)
{
    return io->event;
}

int blkio_set_file(struct blkio *io, uint32_t slot, int fd)
{
    int rc = io_uring_register_files_update(&io->ring, slot, &fd, 1);

    return rc < 0 ? rc : 0;
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
    }
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, op);
}

int blkio_begin(struct blkio *io, struct blkio_op *op)
{
    if (io->busy == io->depth) {
        return -EAGAIN;
    }
    io->busy++;
    prepare(io, op);
    return 0;
}

int blkio_flush(struct blkio *io)
{
    int rc;

    if (!io_uring_sq_ready(&io->ring)) {
        return 0;
    }
    rc = io_uring_submit(&io->ring);
    return rc < 0 && rc != -EAGAIN && rc != -EBUSY && rc != -EINTR ? rc : 0;
}

bool blkio_waits(const struct blkio *io)
{
    return io_uring_sq_ready(&io->ring) != 0;
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

static void completed(struct blkio *io, struct blkio_op *op, int res)
{
    bool moves = op->type == BLKIO_READ || op->type == BLKIO_WRITE;

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
    uint64_t rings;

    while (read(io->event, &rings, sizeof(rings)) > 0) {
    }
    while (!io_uring_peek_cqe(&io->ring, &cqe)) {
        struct blkio_op *op = io_uring_cqe_get_data(cqe);
        int res = cqe->res;

        io_uring_cqe_seen(&io->ring, cqe);
        completed(io, op, res);
        count++;
    }
    blkio_flush(io);
    return count;
}

uint32_t blkio_busy(const struct blkio *io)
{
    return io->busy;
}
