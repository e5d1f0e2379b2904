/* blkd_xfer.c: see blkd.h. */
#include <errno.h>
#include <string.h>

#include "tools/remus/blkd.h"

static void more(struct xfer *x);

static void piece_done(struct blkio_op *op, int rc)
{
    struct xfer *x = op->arg;
    uint32_t i = (uint32_t)(op - x->op);

    if (x->layer[i] != BLKVIEW_DISK) {
        blkview_release(x->b->disk[x->disk].view, x->layer[i]);
    }
    if (rc && !x->rc) {
        x->rc = rc;
    }
    if (--x->running) {
        return;
    }
    if (x->rc || x->at == x->sectors || x->type == BLKIO_SYNC || x->type == BLKIO_PUNCH) {
        x->done(x, x->rc);
    } else {
        more(x);
    }
}

/* The memory of the next so many bytes, from place `used` of the room on. */
static uint32_t slice(struct xfer *x, uint64_t bytes, struct iovec *out)
{
    uint32_t count = 0;

    while (bytes) {
        const struct iovec *m = &x->mem[x->mem_at];
        size_t left = m->iov_len - x->mem_bytes, part = left < bytes ? left : (size_t)bytes;

        out[count++] = (struct iovec){ (uint8_t *)m->iov_base + x->mem_bytes, part };
        bytes -= part;
        x->mem_bytes += part;
        if (x->mem_bytes == m->iov_len) {
            x->mem_at++;
            x->mem_bytes = 0;
        }
    }
    return count;
}

static void piece_begin(struct xfer *x, const struct blkview_piece *p, uint32_t *used)
{
    const bool in_store = p->layer != BLKVIEW_DISK;
    const uint32_t i = x->running++;
    struct iovec *iov = x->room + *used;
    uint32_t iovs = slice(x, (uint64_t)p->sectors * BLKRING_SECTOR, iov);

    *used += iovs;
    x->layer[i] = in_store && x->type == BLKIO_READ ? p->layer : BLKVIEW_DISK;
    if (x->layer[i] != BLKVIEW_DISK) {
        blkview_hold(x->b->disk[x->disk].view, p->layer);
    }
    x->op[i] = (struct blkio_op){
        .type = x->type, .file = in_store ? STORE_FILE : x->disk, .offset = p->offset,
        .bytes = (uint64_t)p->sectors * BLKRING_SECTOR, .iov = iov, .iovs = iovs,
        .done = piece_done, .arg = x,
    };
    blkio_begin(x->b->io, &x->op[i]);   /* there is room: see blkio_new() in colo-blkd.c */
}

/* What a layer lost meanwhile (a takeover forgets what was not committed) is not to be looked for
 * on the disk, much less written there. */
static bool stays_in_store(const struct xfer *x)
{
    return x->target != BLKVIEW_DISK && (x->target != XFER_VIEW || x->type == BLKIO_WRITE);
}

/* The next pieces.  Their completions come later, from blkio_reap(). */
static void more(struct xfer *x)
{
    const struct blkview *view = x->b->disk[x->disk].view;
    const uint64_t sector = x->sector + x->at;
    const uint32_t sectors = (uint32_t)(x->sectors - x->at);
    struct blkview_piece pieces[XFER_PIECES];
    uint32_t count, used = 0, i;

    if (x->target == BLKVIEW_DISK) {
        pieces[0] = (struct blkview_piece){
            .sector = sector, .sectors = sectors, .layer = BLKVIEW_DISK,
            .offset = sector * BLKRING_SECTOR,
        };
        count = 1;
    } else if (x->target == XFER_VIEW && x->type == BLKIO_READ) {
        count = blkview_read(view, sector, sectors, pieces, XFER_PIECES);
    } else {
        count = blkview_layer(view, x->target == XFER_VIEW ? 0 : x->target, sector, sectors,
                              pieces, XFER_PIECES);
    }
    for (i = 0; i < count; i++) {
        if (pieces[i].layer == BLKVIEW_DISK && stays_in_store(x)) {
            x->rc = -ECANCELED;
            break;
        }
        x->at += pieces[i].sectors;
        piece_begin(x, &pieces[i], &used);
    }
    if (!x->running) {
        x->done(x, x->rc);
    }
}

int xfer_begin(struct xfer *x)
{
    int rc = 0;

    x->at = 0;
    x->mem_at = x->running = 0;
    x->mem_bytes = 0;
    x->rc = 0;
    if (x->target == XFER_VIEW && x->type == BLKIO_WRITE) {
        rc = blkview_write(x->b->disk[x->disk].view, x->sector, (uint32_t)x->sectors);
    }
    if (rc) {
        return rc;
    }
    if (x->type == BLKIO_READ || x->type == BLKIO_WRITE) {
        more(x);
        return 0;
    }
    x->running = 1;
    x->layer[0] = BLKVIEW_DISK;
    x->op[0] = (struct blkio_op){
        .type = x->type, .file = x->disk, .offset = x->sector * BLKRING_SECTOR,
        .bytes = x->sectors * BLKRING_SECTOR, .done = piece_done, .arg = x,
    };
    blkio_begin(x->b->io, &x->op[0]);
    return 0;
}
