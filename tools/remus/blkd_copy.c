/*
 * blkd_copy.c: the secondary's side of replication, and what is left of it after a takeover; see
 * blkd.h.
 *
 * The primary's frames are worked on side by side where their ranges do not overlap.  Before there
 * is a copy (up to the first EPOCH) its writes go to the disks, from then on into generations
 * (blkview.h).  An EPOCH is told to the coordinator when everything before it is in the store: what
 * it acknowledges to the primary can be committed.  What is committed is merged into the disks in
 * the background; credit is given for what that frees.
 */
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xxhash.h>

#include "tools/remus/blkd.h"

#define PART_SECTORS   (REMUS_DISK_HASH_BYTES / BLKRING_SECTOR)
#define REGION_SECTORS (REMUS_DISK_REGION_BYTES / BLKRING_SECTOR)
#define CREDIT_PARTS   32u          /* credit is told when it has grown by such a part of all */
#define MERGE_AGAIN_US 1000000u

/* The copy is of no use any more; the primary's guest goes on. */
__attribute__((format(printf, 2, 3)))
static void give_up(struct blkd *b, const char *format, ...)
{
    char text[CTL_TEXT_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    blkd_fail(b, text);
}

static void close_channel(struct blkd *b)
{
    channel_close(b);
    b->r.held = false;
}

/* ---- The primary's frames ------------------------------------------------------------------- */

static bool waits_for_others(const struct blkd *b, const struct remus_disk_frame *head)
{
    uint32_t i;

    if (head->type == REMUS_DISK_EPOCH || head->type == REMUS_DISK_SYNCED ||
        head->type == REMUS_DISK_MARK) {
        return b->r.ops != 0;
    }
    if (head->type != REMUS_DISK_WRITE && head->type != REMUS_DISK_HASHES) {
        return false;
    }
    for (i = 0; i < REMOTE_OPS; i++) {
        const struct remote_op *op = &b->r.op[i];

        if (op->busy && op->head.disk == head->disk &&
            (op->head.type == REMUS_DISK_WRITE || head->type == REMUS_DISK_WRITE) &&
            ranges_overlap(op->head.sector, op->head.sectors, head->sector, head->sectors)) {
            return true;
        }
    }
    return b->r.ops == REMOTE_OPS;
}

static void answer(struct blkd *b, struct remus_disk_frame head)
{
    int rc = blkchan_put(b->r.chan, &head, NULL, 0);

    if (rc) {
        give_up(b, "domain %u: the primary does not read its disk channel", b->domid);
    }
}

/* Parts whose hash is another one. */
static void answer_hashes(struct blkd *b, const struct remote_op *op, const uint64_t *hashes)
{
    const uint8_t *data = op->mem.iov_base;
    uint32_t at, part = 0, wanted = 0;

    for (at = 0; at < op->head.sectors; at += PART_SECTORS, part++) {
        uint32_t sectors = op->head.sectors - at < PART_SECTORS ? op->head.sectors - at
                           : PART_SECTORS;
        uint64_t hash = XXH64(data + at * BLKRING_SECTOR, sectors * BLKRING_SECTOR, 0);

        wanted |= (uint32_t)(hash != le64toh(hashes[part])) << part;
    }
    answer(b, (struct remus_disk_frame){
        .type = REMUS_DISK_WANT, .disk = op->head.disk, .sector = op->head.sector,
        .sectors = wanted,
    });
}

/* The hashes that came stand behind the data's place. */
static uint64_t *hashes_of(struct remote_op *op)
{
    return (uint64_t *)((uint8_t *)op->mem.iov_base + REMUS_DISK_BYTES_MAX);
}

static void op_done(struct xfer *x, int rc)
{
    struct remote_op *op = x->arg;
    struct blkd *b = x->b;

    op->busy = false;
    b->r.ops--;
    b->busy = true;
    if (b->role != ROLE_SECONDARY) {
        return;
    }
    if (rc) {
        give_up(b, "domain %u: the copy's %s %u cannot be %s: %s", b->domid,
                op->direct ? "disk" : "store of disk", op->head.disk,
                x->type == BLKIO_READ ? "read" : "written", strerror(-rc));
    } else if (op->head.type == REMUS_DISK_HASHES) {
        answer_hashes(b, op, hashes_of(op));
    } else if (op->direct) {
        b->r.credit += op->cost;
    }
}

static struct remote_op *op_take(struct blkd *b)
{
    uint32_t i;

    for (i = 0; b->r.op[i].busy; i++) {
    }
    b->r.op[i].busy = true;
    b->r.ops++;
    return &b->r.op[i];
}

/* A write, or a question.  0; -EAGAIN: not now; others: it cannot be. */
static int op_begin(struct blkd *b, const struct remus_disk_frame *head, const uint8_t *payload)
{
    const bool writes = head->type == REMUS_DISK_WRITE;
    const uint64_t cost = store_cost(head->sector, head->sectors);
    struct disk *d = &b->disk[head->disk];
    uint32_t layer = BLKVIEW_DISK;
    struct remote_op *op;
    int rc = 0;

    if (writes && d->info.read_only) {
        give_up(b, "domain %u: disk %u (vdev %u) is read-only, and its contents here are not those "
                "at the primary (sector %" PRIu64 "): make them the same", b->domid, head->disk,
                d->info.vdev, head->sector);
        return -EROFS;
    }
    if (!writes && !b->r.direct) {
        return -EPROTO;
    }
    if (writes && !b->r.direct) {
        rc = blkview_receive(d->view, head->epoch, head->sector, head->sectors, cost, &layer);
    }
    if (rc) {
        return rc;
    }
    op = op_take(b);
    op->head = *head;
    op->cost = cost;
    op->direct = b->r.direct;
    op->mem.iov_len = (size_t)head->sectors * BLKRING_SECTOR;
    memcpy(writes ? op->mem.iov_base : (void *)hashes_of(op), payload, head->length);
    op->x = (struct xfer){
        .b = b, .disk = head->disk, .type = writes ? BLKIO_WRITE : BLKIO_READ, .target = layer,
        .sector = head->sector, .sectors = head->sectors, .mem = &op->mem, .room = op->room,
        .done = op_done, .arg = op,
    };
    xfer_begin(&op->x);
    return 0;
}

static int tell_relation(uint32_t type, uint32_t disk,
                         const uint8_t bytes[REMUS_DISK_RELATION_BYTES])
{
    const struct ctl_msg msg = { .type = type, .code = disk, .count = 1 };
    struct ctl_relation relation;

    memcpy(relation.bytes, bytes, sizeof(relation.bytes));
    return ctl_send_wait(REMUS_CTL_FD, &msg, &relation, NULL, NULL, 0, 1000);
}

/* What the primary's guest knows of its disk must fit the one here. */
static int take_open(struct blkd *b, struct disk *d, const uint8_t *payload)
{
    struct ctl_disk info = d->info;
    struct remus_disk_open open;

    memcpy(&open, payload, sizeof(open));
    if (le64toh(open.sectors) > d->info.sectors) {
        give_up(b, "domain %u: disk %u (vdev %u) has %" PRIu64 " sectors at the primary, %" PRIu64
                " here", b->domid, d->info.disk, le32toh(open.vdev), le64toh(open.sectors),
                d->info.sectors);
        return -ENOSPC;
    }
    info.sectors = le64toh(open.sectors);
    info.logical_bytes = le32toh(open.logical_bytes);
    info.segs_max = le32toh(open.segs_max);
    info.read_only = open.read_only;
    info.flush = open.flush;
    info.barrier = open.barrier;
    info.discard = open.discard;
    if (info.logical_bytes < BLKRING_SECTOR || info.logical_bytes > BLKRING_PAGE ||
        (info.logical_bytes & (info.logical_bytes - 1)) || info.segs_max > BLKRING_SEGS_MAX) {
        return -EPROTO;
    }
    disk_describe(d, &info);
    b->keep->disk[info.disk] = info;
    keep_store(&b->keep->described[info.disk], 1);
    memcpy(b->r.relation[info.disk], open.relation, sizeof(open.relation));
    free(b->r.announced[info.disk]);
    b->r.announced[info.disk] = calloc(info.sectors / REGION_SECTORS + 1, 1);
    return b->r.announced[info.disk] ? tell_relation(CTL_BLK_OPENED, info.disk, open.relation)
           : -ENOMEM;
}

/* Where the primary's disk may differ from what it has sent, until it says that it does not. */
static int take_region(struct blkd *b, const struct remus_disk_frame *head)
{
    if (head->sector >= b->disk[head->disk].info.sectors || !b->r.announced[head->disk]) {
        return -ERANGE;
    }
    b->r.announced[head->disk][head->sector / REGION_SECTORS] = head->type == REMUS_DISK_INTENT;
    if (head->type == REMUS_DISK_INTENT) {
        answer(b, (struct remus_disk_frame){ .type = REMUS_DISK_NOTED, .epoch = head->epoch });
    }
    return 0;
}

/* What is on this disk is compared as far as the primary has noted that it may differ, if this is
 * the disk that it means: the coordinator knows. */
void copy_known(struct blkd *b, uint32_t disk, bool known)
{
    if (b->role == ROLE_SECONDARY && b->r.chan) {
        answer(b, (struct remus_disk_frame){
            .type = REMUS_DISK_KNOWN, .disk = (uint8_t)disk, .sectors = known,
        });
    }
}

static void synced_done(struct xfer *x, int rc)
{
    struct remote_op *op = x->arg;
    struct blkd *b = x->b;

    op->busy = false;
    b->r.ops--;
    b->busy = true;
    if (b->role != ROLE_SECONDARY) {
        return;
    }
    if (rc) {
        give_up(b, "domain %u: the copy's disk %u cannot be made durable: %s", b->domid,
                x->disk, strerror(-rc));
    } else if (--b->r.syncs == 0) {
        answer(b, (struct remus_disk_frame){ .type = REMUS_DISK_SYNCED });
    }
}

static void take_synced(struct blkd *b)
{
    uint32_t i;

    b->r.syncs = b->disks;
    for (i = 0; i < b->disks; i++) {
        struct remote_op *op = op_take(b);

        op->x = (struct xfer){
            .b = b, .disk = i, .type = BLKIO_SYNC, .target = BLKVIEW_DISK, .done = synced_done,
            .arg = op,
        };
        op->head = (struct remus_disk_frame){ .type = REMUS_DISK_SYNCED, .disk = (uint8_t)i };
        xfer_begin(&op->x);
    }
    if (!b->disks) {
        answer(b, (struct remus_disk_frame){ .type = REMUS_DISK_SYNCED });
    }
}

/* 0; -EAGAIN: not now. */
static int take_frame(struct blkd *b, const struct remus_disk_frame *head, const uint8_t *payload)
{
    struct disk *d;

    if (head->disk >= b->disks ||
        ((head->type == REMUS_DISK_WRITE || head->type == REMUS_DISK_HASHES) &&
         (head->sector > b->disk[head->disk].info.sectors ||
          head->sectors > b->disk[head->disk].info.sectors - head->sector))) {
        return -ERANGE;
    }
    if (waits_for_others(b, head)) {
        return -EAGAIN;
    }
    d = &b->disk[head->disk];
    switch (head->type) {
    case REMUS_DISK_OPEN:
        return take_open(b, d, payload);
    case REMUS_DISK_EPOCH:
        b->r.direct = false;
        b->r.epoch = head->epoch;
        ctl_say(REMUS_CTL_FD, CTL_BLK_EPOCH, 0, head->epoch, NULL);
        return 0;
    case REMUS_DISK_SYNCED:
        take_synced(b);
        return 0;
    case REMUS_DISK_INTENT:
    case REMUS_DISK_COLD:
        return take_region(b, head);
    case REMUS_DISK_BASE:
        b->r.based = true;
        return 0;
    case REMUS_DISK_RELATION:
        memcpy(b->r.relation[head->disk], payload, REMUS_DISK_RELATION_BYTES);
        return tell_relation(CTL_BLK_RELATED, head->disk, payload);
    case REMUS_DISK_MARK:
        if (b->r.mark != MARK_NONE) {
            return -EPROTO;
        }
        b->r.mark = MARK_MERGE;
        b->r.mark_epoch = b->r.epoch;
        return 0;
    default:
        return op_begin(b, head, payload);
    }
}

static void frames_work(struct blkd *b)
{
    struct replication *r = &b->r;
    int rc = 0, n;

    while (!b->quit && r->chan) {
        if (!r->held) {
            n = blkchan_next(r->chan, &r->head, &r->payload);
            if (n < 0) {
                give_up(b, "domain %u: %s", b->domid, blkchan_error(r->chan));
                return;
            }
            if (!n && rc) {
                break;
            }
            if (!n) {
                rc = channel_fill(b);
                continue;
            }
        }
        n = take_frame(b, &r->head, r->payload);
        r->held = n == -EAGAIN;
        if (r->held) {
            return;
        }
        if (n && !b->quit) {
            give_up(b, "domain %u disk %u: what the primary sent (type %u, disk epoch %" PRIu64
                    ", sector %" PRIu64 "+%u) cannot be taken: %s", b->domid, r->head.disk,
                    r->head.type, r->head.epoch, r->head.sector, r->head.sectors, strerror(-n));
        }
    }
    if (!b->quit && rc && rc != -EAGAIN) {
        close_channel(b);            /* whether that is the primary's loss the link decides */
    }
}

/* ---- Durability ----------------------------------------------------------------------------- */

static void mark_done(struct xfer *x, int rc)
{
    struct blkd *b = x->b;

    b->busy = true;
    b->r.mark_syncs--;
    if (b->role != ROLE_SECONDARY) {
        return;
    }
    if (rc) {
        give_up(b, "domain %u: the copy's disk %u cannot be made durable: %s", b->domid, x->disk,
                strerror(-rc));
    } else if (!b->r.mark_syncs) {
        b->r.mark = MARK_NONE;
        answer(b, (struct remus_disk_frame){ .type = REMUS_DISK_SAFE });
    }
}

/* What preceded a MARK is on the disks once its generations are merged, and safe after a flush. */
static void mark_work(struct blkd *b)
{
    struct replication *r = &b->r;
    uint32_t i;

    if (r->mark != MARK_MERGE || !r->chan) {
        return;
    }
    for (i = 0; i < b->disks; i++) {
        if (!blkview_merged_to(b->disk[i].view, r->mark_epoch)) {
            return;
        }
    }
    r->mark = MARK_SYNC;
    r->mark_syncs = b->disks;
    for (i = 0; i < b->disks; i++) {
        r->mark_x[i] = (struct xfer){
            .b = b, .disk = i, .type = BLKIO_SYNC, .target = BLKVIEW_DISK, .done = mark_done,
        };
        xfer_begin(&r->mark_x[i]);
    }
}

static void credit_work(struct blkd *b)
{
    struct replication *r = &b->r;
    uint32_t i;

    for (i = 0; i < b->disks; i++) {
        r->credit += blkview_reclaimed(b->disk[i].view);
    }
    if (r->chan && r->window && r->credit - r->sent >= r->window / CREDIT_PARTS) {
        r->sent = r->credit;
        answer(b, (struct remus_disk_frame){ .type = REMUS_DISK_CREDIT, .sector = r->credit });
    }
}

/* ---- Merging -------------------------------------------------------------------------------- */

bool copy_locks(const struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors)
{
    uint32_t i;

    for (i = 0; b->role == ROLE_ACTIVE && i < MERGE_OPS; i++) {
        const struct merge_op *m = &b->r.merge[i];

        if (m->stage > MERGE_WAIT && m->disk == disk &&
            ranges_overlap(m->run.sector, m->run.sectors, sector, sectors)) {
            return true;
        }
    }
    return false;
}

static void merge_done(struct xfer *x, int rc)
{
    struct merge_op *m = x->arg;
    struct blkd *b = x->b;
    struct blkview *view = b->disk[m->disk].view;

    b->busy = true;
    if (rc) {
        blkview_unmerged(view, &m->run);
        m->stage = MERGE_FREE;
        b->r.merge_again_us = b->now_us + MERGE_AGAIN_US;
        if (b->role == ROLE_SECONDARY) {
            give_up(b, "domain %u: the copy's disk %u cannot be brought up to date at sector %"
                    PRIu64 ": %s", b->domid, m->disk, m->run.sector, strerror(-rc));
        } else if (daemon_may_say(b->domid, b->now_us)) {
            daemon_say(DAEMON_ERROR, "domain %u disk %u: what the guest has written cannot be "
                       "brought to the disk at sector %" PRIu64 ": %s: it is kept in the store, "
                       "and tried again", b->domid, m->disk, m->run.sector, strerror(-rc));
        }
    } else if (m->stage == MERGE_READ) {
        m->stage = MERGE_WRITE;
        m->x.type = BLKIO_WRITE;
        m->x.target = BLKVIEW_DISK;
        xfer_begin(&m->x);
    } else {
        blkview_merged(view, &m->run);
        m->stage = MERGE_FREE;
    }
}

/* A write that the guest has made since is newer than the run: it is not under way, then. */
static void merge_begin(struct blkd *b, struct merge_op *m)
{
    if (b->role == ROLE_ACTIVE &&
        jobs_overlap(b, m->disk, m->run.sector, m->run.sectors, true)) {
        return;
    }
    m->stage = MERGE_READ;
    m->mem.iov_len = (size_t)m->run.sectors * BLKRING_SECTOR;
    m->x = (struct xfer){
        .b = b, .disk = m->disk, .type = BLKIO_READ, .target = m->run.layer,
        .sector = m->run.sector, .sectors = m->run.sectors, .mem = &m->mem, .room = m->room,
        .done = merge_done, .arg = m,
    };
    xfer_begin(&m->x);
}

/* A run that waited may have been written over meanwhile: it is looked for once more. */
static void merge_work(struct blkd *b)
{
    uint32_t i, disk = 0;
    int rc;

    for (i = 0; i < MERGE_OPS; i++) {
        struct merge_op *m = &b->r.merge[i];

        if (m->stage == MERGE_WAIT) {
            blkview_unmerged(b->disk[m->disk].view, &m->run);
            m->stage = MERGE_FREE;
        }
        while (m->stage == MERGE_FREE && disk < b->disks && b->now_us >= b->r.merge_again_us) {
            rc = blkview_merge(b->disk[disk].view, &m->run);
            if (rc == 1) {
                m->disk = disk;
                m->stage = MERGE_WAIT;
                merge_begin(b, m);
            } else {
                if (rc < 0) {
                    b->r.merge_again_us = b->now_us + MERGE_AGAIN_US;
                }
                disk++;
            }
        }
    }
}

/* ---- The store ------------------------------------------------------------------------------ */

static void punch_done(struct blkio_op *op, int rc)
{
    struct blkd *b = op->arg;

    b->busy = true;
    b->r.punching = false;
    blkview_punched(b->disk[b->r.punch_disk].view, b->r.punch_layer);
    if (rc && daemon_may_say(b->domid, b->now_us)) {
        daemon_say(DAEMON_WARNING, "domain %u: the store cannot give back what it does not need "
                   "any more, and may grow: %s", b->domid, strerror(-rc));
    }
}

/* What is on the disks does not stay in the store as well: other files share its room. */
static void punch_work(struct blkd *b)
{
    struct replication *r = &b->r;
    uint64_t offset, bytes;
    uint32_t i;

    for (i = 0; !r->punching && i < b->disks; i++) {
        if (!blkview_punch(b->disk[i].view, &r->punch_layer, &offset, &bytes)) {
            continue;
        }
        r->punching = true;
        r->punch_disk = i;
        r->punch = (struct blkio_op){
            .type = BLKIO_PUNCH, .file = STORE_FILE, .offset = offset, .bytes = bytes,
            .done = punch_done, .arg = b,
        };
        blkio_begin(b->io, &r->punch);  /* there is room: this side has no slots of the other's */
    }
}

/* ---- Rest, commit, takeover ----------------------------------------------------------------- */

/* Requests of the copy that have not begun. */
static void forget_waiting(struct blkd *b)
{
    struct replication *r = &b->r;
    uint32_t i;

    for (i = 0; i < r->stuck.count; i++) {
        job_forget(&b->jobs[r->stuck.job[i]]);
    }
    for (i = 0; i < b->wait.count; i++) {
        job_forget(&b->jobs[b->wait.job[i]]);
    }
    r->stuck.count = b->wait.count = 0;
}

/* Writes that find no room in the overlay wait for the next checkpoint, which empties it. */
static void stuck_work(struct blkd *b)
{
    struct replication *r = &b->r;

    if (b->state == STATE_RESTING) {
        forget_waiting(b);
    } else if (r->stuck.count && !r->asked) {
        r->asked = true;
        daemon_say(DAEMON_INFO, "domain %u: the copy has written as much as its overlay holds; it "
                   "waits for a checkpoint", b->domid);
        ctl_say(REMUS_CTL_FD, CTL_CHECKPOINT, CTL_WHY_QUEUE, 0, "disks: the copy's overlay is "
                "full");
    }
}

void copy_failed(struct blkd *b, uint32_t disk, int rc)
{
    give_up(b, "domain %u: the copy's disk %u, or what lies over it, can be neither read nor "
            "written: %s", b->domid, disk, strerror(-rc));
}

void copy_commit(struct blkd *b, uint64_t epoch)
{
    uint32_t i;

    for (i = 0; i < b->disks; i++) {
        blkview_commit(b->disk[i].view, epoch);
    }
    b->r.asked = false;
    b->busy = true;
}

/* There is no copy any more, even if its guest still runs: what is committed goes to the disks, and
 * nothing of its own. */
void copy_end(struct blkd *b)
{
    uint32_t i;

    b->role = ROLE_ACTIVE;
    b->r.ended = true;
    if (b->state != STATE_DETACHED) {
        b->state = STATE_RESTING;
    }
    forget_waiting(b);
    close_channel(b);
    for (i = 0; i < b->disks; i++) {
        blkview_end(b->disk[i].view);
    }
    b->busy = true;
}

/* The part of what is kept that describes the views.  0 or negative errno. */
static int map_views(struct blkd *b, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, REMUS_BLK_KEEP_FD,
                        (off_t)KEEP_VIEWS);

    if (memory == MAP_FAILED) {
        return -errno;
    }
    b->views = memory;
    b->views_bytes = bytes;
    return 0;
}

/* From here on a daemon after this one can go on with the merge. */
static void keep_views(struct blkd *b)
{
    uint64_t *sizes = b->keep->view_bytes;
    size_t bytes = 0, at = 0;
    uint32_t i;
    int rc;

    for (i = 0; i < b->disks; i++) {
        sizes[i] = (blkview_frozen_bytes(b->disk[i].view) + 7) & ~7ull;
        bytes += sizes[i];
    }
    rc = !bytes ? 0 : ftruncate(REMUS_BLK_KEEP_FD, (off_t)(KEEP_VIEWS + bytes)) ? -errno
         : map_views(b, bytes);
    if (rc || !bytes) {
        if (rc) {
            daemon_say(DAEMON_WARNING, "domain %u: what is not on the disks yet cannot be kept for "
                       "another daemon: %s", b->domid, strerror(-rc));
        }
        return;
    }
    for (i = 0; i < b->disks; i++) {
        blkview_freeze(b->disk[i].view, b->views + at);
        at += sizes[i];
    }
    keep_store(&b->keep->views, 1);
}

int copy_resume(struct blkd *b)
{
    const uint64_t *sizes = b->keep->view_bytes;
    uint64_t bytes = 0, at = 0;
    const off_t end = lseek(REMUS_BLK_KEEP_FD, 0, SEEK_END);
    uint32_t i;
    int rc = b->keep->views && end > (off_t)KEEP_VIEWS ? 0 : -EINVAL;

    for (i = 0; !rc && i < b->disks; i++) {
        bytes += sizes[i];
        rc = sizes[i] % 8 || bytes > (uint64_t)end - KEEP_VIEWS ? -EINVAL : 0;
    }
    if (!rc) {
        rc = map_views(b, bytes);
    }
    for (i = 0; !rc && i < b->disks; i++) {
        rc = blkview_open(&b->disk[i].view, i * BLKVIEW_LAYERS * BLKVIEW_LAYER_BYTES,
                          b->views + at, sizes[i]);
        at += sizes[i];
    }
    b->role = rc ? b->role : ROLE_ACTIVE;
    b->busy = true;
    return rc;
}

/*
 * From here on the disks of the host that was the primary's are the other ones.  They differ where
 * it was writing, in what it wrote since the last commit, and in what the copy has written, and
 * writes: what is committed is on both, or was announced.
 */
static void note_differences(struct blkd *b)
{
    uint64_t cursor, sector, at;
    uint32_t i;

    for (i = 0; b->log && b->r.based && i < b->disks; i++) {
        const uint64_t sectors = b->disk[i].info.sectors;

        blklog_clear(b->log, i);
        for (at = 0; at * REGION_SECTORS < sectors; at++) {
            if (b->r.announced[i][at]) {
                blklog_mark_due(b->log, i, at * REGION_SECTORS, REGION_SECTORS);
            }
        }
        for (cursor = 0; blkview_next_own(b->disk[i].view, &cursor, &sector);) {
            blklog_mark_due(b->log, i, sector, 8);
        }
        blklog_adopt(b->log, i, b->r.relation[i]);
    }
}

void copy_takeover(struct blkd *b)
{
    uint32_t i;

    note_differences(b);
    b->role = ROLE_ACTIVE;
    close_channel(b);
    for (i = 0; i < b->disks; i++) {
        blkview_takeover(b->disk[i].view);
    }
    keep_views(b);
    b->busy = true;
}

/* What found no room before a takeover goes to the disk, each when no run that is older is on its
 * way there: those that begin later wait for it. */
static void stuck_again(struct blkd *b)
{
    const struct job_list stuck = b->r.stuck;
    uint32_t i;

    b->r.stuck.count = 0;
    for (i = 0; i < stuck.count; i++) {
        struct job *j = &b->jobs[stuck.job[i]];

        if (copy_locks(b, (uint32_t)(j->disk - b->disk), j->kept->req.sector,
                       j->kept->req.sectors)) {
            job_list_add(&b->r.stuck, j);
        } else {
            job_again(j);
        }
    }
}

/* Whether everything is on the disks, and nobody looks into the store any more. */
static bool merged(const struct blkd *b)
{
    uint32_t i;

    for (i = 0; i < b->disks; i++) {
        if (!blkview_clean(b->disk[i].view) || blkview_busy(b->disk[i].view)) {
            return false;
        }
    }
    for (i = 0; i < b->active.count; i++) {
        if (b->jobs[b->active.job[i]].x.target == XFER_VIEW) {
            return false;
        }
    }
    for (i = 0; i < MERGE_OPS; i++) {
        if (b->r.merge[i].stage != MERGE_FREE) {
            return false;
        }
    }
    return !b->r.ops && !b->r.mark_syncs && !b->r.punching;
}

static void last_sync_done(struct xfer *x, int rc)
{
    struct blkd *b = x->b;

    b->busy = true;
    b->r.last_syncs--;
    if (rc) {
        b->r.last_synced = false;
        b->r.merge_again_us = b->now_us + MERGE_AGAIN_US;
        if (daemon_may_say(b->domid, b->now_us)) {
            daemon_say(DAEMON_ERROR, "domain %u disk %u: what the guest has written cannot be made "
                       "durable: %s: it is tried again", b->domid, x->disk, strerror(-rc));
        }
    }
}

/* What was merged is durable before it is let go of in the store.  true: it is. */
static bool last_sync(struct blkd *b)
{
    struct replication *r = &b->r;
    uint32_t i;

    if (r->last_synced || r->last_syncs || b->now_us < r->merge_again_us) {
        return r->last_synced && !r->last_syncs;
    }
    r->last_synced = true;           /* unless one fails */
    r->last_syncs = b->disks;
    for (i = 0; i < b->disks; i++) {
        r->last_sync[i] = (struct xfer){
            .b = b, .disk = i, .type = BLKIO_SYNC, .target = BLKVIEW_DISK, .done = last_sync_done,
        };
        xfer_begin(&r->last_sync[i]);
    }
    return !b->disks;
}

static void become_local(struct blkd *b)
{
    struct job_list flushes = b->r.flushes;
    uint32_t i;

    b->role = ROLE_LOCAL;
    keep_store(&b->keep->views, 0);
    for (i = 0; i < b->disks; i++) {
        blkview_free(b->disk[i].view);
        b->disk[i].view = NULL;
    }
    if (b->views) {
        munmap(b->views, b->views_bytes);
        b->views = NULL;
    }
    blkio_set_file(b->io, STORE_FILE, -1);
    if (b->ctl_open) {
        ctl_say(REMUS_CTL_FD, CTL_BLK_SYNCED, 0, 0, NULL);
    }
    daemon_say(DAEMON_INFO, "domain %u: everything is on the disks", b->domid);
    b->r.flushes.count = 0;
    for (i = 0; i < flushes.count; i++) {
        job_again(&b->jobs[flushes.job[i]]);
    }
    b->busy = true;
}

int copy_wait_ms(const struct blkd *b)
{
    return b->r.merge_again_us > b->now_us ? 100 : -1;
}

void copy_work(struct blkd *b)
{
    if (b->role == ROLE_SECONDARY) {
        if (b->r.listening) {
            frames_work(b);
        }
        stuck_work(b);
    }
    if (b->quit || (b->role != ROLE_SECONDARY && b->role != ROLE_ACTIVE)) {
        return;
    }
    if (b->role == ROLE_ACTIVE) {
        stuck_again(b);
    }
    merge_work(b);
    if (b->role == ROLE_SECONDARY) {
        punch_work(b);
        credit_work(b);
        mark_work(b);
    } else if (merged(b) && last_sync(b)) {
        become_local(b);
    }
    if (b->r.chan && channel_flush(b)) {
        close_channel(b);
    }
}
