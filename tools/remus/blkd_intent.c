/*
 * blkd_intent.c: where a primary's disk may differ from what it has sent; see blkd.h.
 *
 * When the primary's host dies its disk has writes that the copy never heard of, and has lost some
 * that its caches had not written: where, nobody knows who was not told before.  So the other host
 * is: before the guest's first write to a region of 4 MiB begins, the region is announced (INTENT),
 * and the write waits until that is noted (NOTED).  The region stays announced until its writes are
 * sent and durable here, which is looked after every COOL_US (COLD).  What the copy has not been
 * told of after BASE is on the primary's disk as it was sent: that is what the disk of a host that
 * returns is worth, if the copy takes over (copy_takeover()).
 *
 *   region      cold -> to be announced -> announced -> noted -> cold
 *   SYNCED      what is under way is announced, the disks are flushed, BASE
 *   the channel is lost: nothing more can be announced.  Writes elsewhere wait until the
 *   coordinator says LOCAL, when it has revoked its word for this disk; or HOLD_US, after which
 *   that is no good any more, if the coordinator is gone (remus_diskrec.h)
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/blkd.h"

#define REGION_SECTORS (REMUS_DISK_REGION_BYTES / BLKRING_SECTOR)
#define COOL_US        20000000u
#define HOLD_US        30000000u
#define TO_ANNOUNCE    UINT64_MAX    /* as a region's number */

static uint64_t regions_of(const struct disk *d)
{
    return (d->info.sectors + REGION_SECTORS - 1) / REGION_SECTORS;
}

static bool has_writes(const struct job *j)
{
    return j->kept->req.op == BLKRING_WRITE && j->kept->req.sectors;
}

/* Whether all regions of the range are noted.  announce: those that are cold are to be. */
static bool touch(struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors, bool announce)
{
    struct intents *n = &b->r.intents;
    uint64_t i;
    bool noted = true;

    for (i = sector / REGION_SECTORS; i * REGION_SECTORS < sector + sectors; i++) {
        uint64_t *number = &n->number[disk][i];

        if (!*number && announce) {
            *number = TO_ANNOUNCE;
            n->hot++;
            n->queue[n->queued++] = (struct region){ disk, i };
        }
        n->recent[disk][i] = 1;
        noted &= *number && *number <= n->noted;
    }
    return noted;
}

static void announce(struct blkd *b)
{
    struct intents *n = &b->r.intents;
    uint32_t done = 0;

    while (done < n->queued) {
        const struct region *region = &n->queue[done];
        struct remus_disk_frame head = {
            .type = REMUS_DISK_INTENT, .disk = (uint8_t)region->disk, .epoch = n->announced + 1,
            .sector = region->at * REGION_SECTORS, .sectors = REGION_SECTORS,
        };

        if (blkchan_put(b->r.chan, &head, NULL, 0)) {
            break;
        }
        n->number[region->disk][region->at] = ++n->announced;
        done++;
    }
    n->queued -= done;
    memmove(n->queue, n->queue + done, n->queued * sizeof(n->queue[0]));
}

/* ---- Jobs ----------------------------------------------------------------------------------- */

bool intent_allows(struct job *j)
{
    const struct blkring_request *req = &j->kept->req;
    struct blkd *b = j->b;
    struct intents *n = &b->r.intents;

    if (!n->on || !has_writes(j) ||
        touch(b, (uint32_t)(j->disk - b->disk), req->sector, req->sectors, !n->hold_until_us)) {
        return true;
    }
    j->stage = STAGE_INTENT;
    job_list_add(&n->waiting, j);
    return false;
}

bool intent_holds(const struct blkd *b)
{
    return b->r.intents.hold_until_us != 0;
}

/* Those that may begin, do; others wait on. */
static void go_on(struct blkd *b)
{
    const struct job_list waiting = b->r.intents.waiting;
    uint32_t i;

    b->r.intents.waiting.count = 0;
    for (i = 0; i < waiting.count; i++) {
        job_again(&b->jobs[waiting.job[i]]);
    }
}

/* ---- Beginning, flushing -------------------------------------------------------------------- */

void intent_flush_failed(struct blkd *b)
{
    b->r.intents.flush_failed = true;
}

static void flush_done(struct xfer *x, int rc)
{
    x->b->busy = true;
    x->b->r.intents.flushing--;
    if (rc) {
        intent_flush_failed(x->b);
    }
}

static void flush_disks(struct blkd *b)
{
    struct intents *n = &b->r.intents;
    uint32_t i;

    n->flushing = b->disks;
    n->stage = INTENT_FLUSH;
    n->flush_us = b->now_us;
    for (i = 0; i < b->disks; i++) {
        n->x[i] = (struct xfer){
            .b = b, .disk = i, .type = BLKIO_SYNC, .target = BLKVIEW_DISK, .done = flush_done,
        };
        xfer_begin(&n->x[i]);
    }
}

/* What is under way is sent later, and durable later. */
static void touch_active(struct blkd *b)
{
    uint32_t i;

    for (i = 0; i < b->active.count; i++) {
        const struct job *j = &b->jobs[b->active.job[i]];

        if (has_writes(j)) {
            touch(b, (uint32_t)(j->disk - b->disk), j->kept->req.sector, j->kept->req.sectors,
                  true);
        }
    }
}

void intent_begin(struct blkd *b)
{
    struct intents *n = &b->r.intents;
    bool enough = true;
    uint32_t i;

    for (i = 0; i < b->disks; i++) {
        n->number[i] = calloc(regions_of(&b->disk[i]), sizeof(*n->number[i]));
        n->recent[i] = calloc(regions_of(&b->disk[i]), sizeof(*n->recent[i]));
        enough &= n->number[i] && n->recent[i];
    }
    if (!enough || b->r.shared) {
        return;                      /* the copy is not told BASE, and knows nothing of this disk */
    }
    n->on = true;
    touch_active(b);
    flush_disks(b);
}

/* Regions that were announced, and not written to since the flush began, are cold. */
static bool put_cold(struct blkd *b)
{
    struct intents *n = &b->r.intents;

    for (; n->cool_disk < b->disks; n->cool_disk++, n->cool_at = 0) {
        const uint64_t regions = regions_of(&b->disk[n->cool_disk]);
        uint64_t *number = n->number[n->cool_disk];
        const uint8_t *recent = n->recent[n->cool_disk];

        for (; n->cool_at < regions; n->cool_at++) {
            struct remus_disk_frame head = {
                .type = REMUS_DISK_COLD, .disk = (uint8_t)n->cool_disk,
                .sector = n->cool_at * REGION_SECTORS, .sectors = REGION_SECTORS,
            };

            if (!number[n->cool_at] || recent[n->cool_at]) {
                continue;
            }
            if (blkchan_put(b->r.chan, &head, NULL, 0)) {
                return false;
            }
            number[n->cool_at] = 0;
            n->hot--;
        }
    }
    return true;
}

static void stages_work(struct blkd *b)
{
    struct remus_disk_frame base = { .type = REMUS_DISK_BASE };
    struct intents *n = &b->r.intents;
    uint32_t i;

    switch (n->stage) {
    case INTENT_FLUSH:
        if (n->flushing) {
            break;
        }
        if (n->flush_failed && !n->based) {
            intent_end(b);           /* no BASE: nobody needs to know */
        } else if (n->flush_failed) {
            n->stage = INTENT_IDLE;  /* what is announced stays so: see intent_flush_failed() */
        } else if (n->based) {
            n->cool_disk = 0;
            n->cool_at = 0;
            n->stage = INTENT_COOL;
        } else if (!n->queued && !blkchan_put(b->r.chan, &base, NULL, 0)) {
            n->based = true;
            n->stage = INTENT_IDLE;
        }
        break;
    case INTENT_COOL:
        if (put_cold(b)) {
            n->stage = INTENT_IDLE;
        }
        break;
    case INTENT_IDLE:
        if (n->hot && n->based && !n->flush_failed && b->now_us - n->flush_us >= COOL_US) {
            for (i = 0; i < b->disks; i++) {
                memset(n->recent[i], 0, regions_of(&b->disk[i]));
            }
            touch_active(b);
            flush_disks(b);
        }
        break;
    }
}

/* ---- The other host ------------------------------------------------------------------------- */

const char *intent_noted(struct blkd *b, uint64_t number)
{
    struct intents *n = &b->r.intents;

    if (number < n->noted || number > n->announced) {
        return "it notes what was not announced";
    }
    n->noted = number;
    go_on(b);
    return NULL;
}

void intent_lost(struct blkd *b)
{
    struct intents *n = &b->r.intents;

    if (!n->on) {
        return;
    }
    n->queued = 0;
    if (n->based) {
        n->hold_until_us = b->now_us + HOLD_US;
    } else {
        intent_end(b);
    }
}

void intent_end(struct blkd *b)
{
    struct intents *n = &b->r.intents;

    n->on = false;
    n->hold_until_us = 0;
    n->queued = 0;
    go_on(b);
    b->busy = true;
}

void intent_work(struct blkd *b)
{
    struct intents *n = &b->r.intents;

    if (!n->on) {
        return;
    }
    if (n->hold_until_us) {
        if (b->now_us >= n->hold_until_us) {
            intent_end(b);
        }
        return;
    }
    announce(b);
    stages_work(b);
}

int intent_wait_ms(const struct blkd *b)
{
    const struct intents *n = &b->r.intents;

    return !n->on ? -1 : n->hold_until_us ? 100 : n->hot ? 1000 : -1;
}

void intent_free(struct blkd *b)
{
    uint32_t i;

    for (i = 0; i < REMUS_DISKS_MAX; i++) {
        free(b->r.intents.number[i]);
        free(b->r.intents.recent[i]);
    }
}
