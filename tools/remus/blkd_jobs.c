/*
 * blkd_jobs.c: the guest's requests, from its rings to their answers; see blkd.h.
 *
 * Requests under way at the same time do not overlap, unless all of them read: those that would
 * wait, and so do all that come after them.  So two copies of a disk cannot differ in which of two
 * writes came last, and a read never meets half of a write.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "tools/remus/blkd.h"

/* After Xen's own headers, whose types they use. */
#include <xen/io/blkif.h>

#define TAKE_ROUND    32u           /* requests of one ring, then it is the next one's turn */

static bool may_say(const struct blkd *b)
{
    return daemon_may_say(b->domid, b->now_us);
}

void job_list_add(struct job_list *list, const struct job *j)
{
    list->job[list->count++] = job_number(j);
}

void job_list_shift(struct job_list *list, uint32_t count)
{
    list->count -= count;
    memmove(list->job, list->job + count, list->count * sizeof(list->job[0]));
}

/* ---- Jobs ----------------------------------------------------------------------------------- */

static uint32_t disk_number(const struct job *j)
{
    return (uint32_t)(j->disk - j->b->disk);
}

/* Moves data: not a flush, nor a barrier without any. */
static bool has_data(const struct blkring_request *req)
{
    return (req->op == BLKRING_READ || req->op == BLKRING_WRITE) && req->sectors;
}

/* Memory for the request's segments; false: not now. */
static bool job_pages(struct job *j)
{
    const struct blkring_request *req = &j->kept->req;
    struct blkd *b = j->b;
    uint32_t i;

    if (!has_data(req)) {
        return true;
    }
    if (b->free_pages < req->segs) {
        return false;
    }
    for (i = 0; i < req->segs; i++) {
        const struct blkring_seg *seg = &req->seg[i];

        j->page[i] = b->free_page[--b->free_pages];
        j->iov[i].iov_base = b->memory + (size_t)j->page[i] * BLKRING_PAGE +
                             seg->first * BLKRING_SECTOR;
        j->iov[i].iov_len = (size_t)seg->sectors * BLKRING_SECTOR;
    }
    j->pages = req->segs;
    return true;
}

static void job_begin(struct job *j, struct ring *ring)
{
    j->ring = ring;
    j->disk = &j->b->disk[ring->at.disk];
    j->synced = j->send = false;
    j->failed = 0;
    j->x.target = BLKVIEW_DISK;
    j->pages = 0;
    j->taken_us = j->b->now_us;
    j->disk->busy++;
}

/* Others that touch the same sectors wait for it from here on. */
static void job_activate(struct job *j)
{
    j->active = true;
    j->active_at = j->b->active.count;
    job_list_add(&j->b->active, j);
}

/* Its memory and its place in the order of others. */
static void job_end(struct job *j)
{
    struct blkd *b = j->b;

    if (j->active) {
        uint32_t last = b->active.job[--b->active.count];

        b->active.job[j->active_at] = last;
        b->jobs[last].active_at = j->active_at;
        j->active = false;
    }
    while (j->pages) {
        b->free_page[b->free_pages++] = j->page[--j->pages];
    }
    if (j->disk->barrier == job_number(j)) {
        j->disk->barrier = NO_JOB;
    }
    /* What waited for either; that is also a range that is to be sent, or merged. */
    b->busy |= b->wait.count || b->r.syncing || b->role == ROLE_ACTIVE;
}

/* The guest can see its answer, or is not going to look for it. */
static void job_free(struct job *j)
{
    struct blkd *b = j->b;

    keep_store(&j->kept->used, 0);
    j->disk->busy--;
    j->stage = STAGE_FREE;
    b->free_job[b->free_jobs++] = job_number(j);
}

void job_forget(struct job *j)
{
    job_end(j);
    job_free(j);
}

static int16_t status_of(int rc)
{
    return !rc ? BLKIF_RSP_OKAY : rc == -EOPNOTSUPP ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR;
}

static void count_job(const struct job *j, int rc)
{
    static const char *const names[] = { "read", "write", "flush", "discard" };
    const struct blkring_request *req = &j->kept->req;
    struct ctl_blk_stats *stats = &j->disk->stats;
    const struct blkd *b = j->b;
    uint64_t delay_us = b->now_us - j->taken_us;

    if (j->kept->refused) {
        stats->bad++;
        if (may_say(b)) {
            daemon_say(DAEMON_WARNING, "domain %u disk %u (vdev %u): bad request, operation %u: "
                       "answered with an error", b->domid, j->disk->info.disk, j->disk->info.vdev,
                       req->operation);
        }
        return;
    }
    if (rc) {
        stats->errors++;
        if (may_say(b)) {
            daemon_say(DAEMON_WARNING, "domain %u disk %u (vdev %u): %s of %" PRIu64 " sectors at %"
                       PRIu64 ": %s: answered with an error", b->domid, j->disk->info.disk,
                       j->disk->info.vdev, names[req->op], req->sectors, req->sector,
                       strerror(-rc));
        }
    } else if (req->op == BLKRING_READ) {
        stats->reads++;
        stats->read_bytes += req->sectors * BLKRING_SECTOR;
    } else if (req->op == BLKRING_WRITE) {
        stats->writes++;
        stats->written_bytes += req->sectors * BLKRING_SECTOR;
    } else if (req->op == BLKRING_FLUSH) {
        stats->flushes++;
    } else {
        stats->discards++;
    }
    stats->delay_us_sum += delay_us;
    if (delay_us > stats->delay_us_max) {
        stats->delay_us_max = delay_us;
    }
}

/* The end of a request: its answer, visible with the ring's next push. */
static void job_done(struct job *j, int rc)
{
    struct ring *ring = j->ring;

    count_job(j, rc);
    job_end(j);
    j->stage = STAGE_ANSWERED;
    j->kept->rsp_index = ring->r.rsp_prod;
    keep_store(&j->kept->answered, 1);
    blkring_respond(&ring->r, j->kept->req.id, j->kept->req.operation, status_of(rc));
    ring->answered[ring->answers++] = job_number(j);
}

/* ---- What may run beside what --------------------------------------------------------------- */

bool jobs_overlap(const struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors,
                  bool writes_only)
{
    uint32_t i;

    for (i = 0; i < b->active.count; i++) {
        const struct job *j = &b->jobs[b->active.job[i]];
        const struct blkring_request *req = &j->kept->req;

        if (disk_number(j) == disk && j->stage != STAGE_MERGE &&
            (req->op == BLKRING_WRITE || req->op == BLKRING_DISCARD ||
             (req->op == BLKRING_READ && !writes_only)) &&
            ranges_overlap(req->sector, req->sectors, sector, sectors)) {
            return true;
        }
    }
    return false;
}

/* Others of its disk have begun, and have not ended.  (Those that wait are behind it: the daemon
 * before this one may have left two barriers.) */
static bool others_run(const struct job *j)
{
    const struct blkd *b = j->b;
    uint32_t i, waiting = 0;

    for (i = 0; i < b->wait.count; i++) {
        const struct job *w = &b->jobs[b->wait.job[i]];

        waiting += w->disk == j->disk && w->stage == STAGE_WAIT;
    }
    return j->disk->busy > waiting;
}

/* Something that is under way must end before this request may begin, the first of those that
 * wait. */
static bool must_wait(const struct job *j)
{
    const struct blkring_request *req = &j->kept->req;
    const bool writes = req->op == BLKRING_WRITE || req->op == BLKRING_DISCARD;
    const struct blkd *b = j->b;

    if (req->barrier && others_run(j)) {
        return true;
    }
    if (req->op == BLKRING_FLUSH || !req->sectors) {
        return false;
    }
    return jobs_overlap(b, disk_number(j), req->sector, req->sectors, !writes) ||
           (writes && (sync_locks(b, disk_number(j), req->sector, req->sectors) ||
                       copy_locks(b, disk_number(j), req->sector, req->sectors)));
}

/* ---- The disk ------------------------------------------------------------------------------- */

static void io_begin(struct job *j, enum blkio_type type);

/* Durable means that of everything, and what was merged is not yet: once it is, the request is
 * carried out from its beginning. */
static bool waits_for_merge(struct job *j)
{
    if (j->b->role != ROLE_ACTIVE || !j->disk->view) {
        return false;
    }
    j->stage = STAGE_MERGE;
    j->x.target = BLKVIEW_DISK;      /* nothing of it is under way in the store */
    job_list_add(&j->b->r.flushes, j);
    return true;
}

/* A write is where it belongs: on the disk, at the other host, in the overlay. */
void job_written(struct job *j)
{
    if (j->failed) {
        job_done(j, j->failed);
    } else if (j->kept->req.barrier && j->b->role != ROLE_SECONDARY) {
        if (waits_for_merge(j)) {
            return;
        }
        io_begin(j, BLKIO_SYNC);
    } else {
        job_done(j, 0);
    }
}

static void xfer_done(struct xfer *x, int rc)
{
    struct job *j = x->arg;
    const struct blkring_request *req = &j->kept->req;

    if (rc && x->type == BLKIO_SYNC) {
        intent_flush_failed(j->b);
    }
    if (j->b->r.ended) {
        job_forget(j);
    } else if (rc && j->b->role == ROLE_SECONDARY) {
        /* Its guest must not be told of it: it would not be a copy any more. */
        j->stage = STAGE_STUCK;
        job_list_add(&j->b->r.stuck, j);
        copy_failed(j->b, disk_number(j), rc);
    } else if (j->failed) {
        if (rc) {
            sync_failed(j->b, disk_number(j), req->sector, rc);
        }
        sync_send(j);
    } else if (rc && x->type == BLKIO_WRITE && j->send) {
        /* Part of it may be on the disk, and the other one is not to differ from it. */
        j->failed = rc;
        io_begin(j, BLKIO_READ);
    } else if (rc) {
        job_done(j, rc);
    } else if (x->type == BLKIO_SYNC && req->op == BLKRING_WRITE && !j->synced) {
        j->synced = true;
        if (has_data(req)) {
            io_begin(j, BLKIO_WRITE);
        } else {
            job_done(j, 0);
        }
    } else if (x->type == BLKIO_WRITE) {
        if (x->target == BLKVIEW_DISK && j->disk->view) {
            blkview_drop(j->disk->view, req->sector, (uint32_t)req->sectors);
        }
        if (j->send) {
            sync_send(j);
        } else {
            job_written(j);
        }
    } else if (x->type == BLKIO_READ) {
        j->stage = STAGE_COPY_OUT;
        job_list_add(&j->b->copy, j);
    } else {
        job_done(j, 0);
    }
}

static void io_begin(struct job *j, enum blkio_type type)
{
    const struct blkring_request *req = &j->kept->req;
    const bool layers = j->disk->view &&
                        (j->b->role == ROLE_SECONDARY ||
                         (type == BLKIO_READ && !blkview_clean(j->disk->view)));

    j->stage = STAGE_IO;
    j->x = (struct xfer){
        .b = j->b, .disk = disk_number(j), .type = type,
        .target = layers ? XFER_VIEW : BLKVIEW_DISK,
        .sector = req->sector, .sectors = req->sectors, .mem = j->iov, .room = j->room,
        .done = xfer_done, .arg = j,
    };
    if (type == BLKIO_WRITE || type == BLKIO_PUNCH) {
        j->send = sync_notes(j->b, disk_number(j), req->sector, req->sectors) &&
                  type == BLKIO_WRITE;
    }
    if (xfer_begin(&j->x)) {
        j->stage = STAGE_STUCK;
        job_list_add(&j->b->r.stuck, j);
    }
}

/*
 * A flush.  The copy's has nothing to wait for: what the primary has promised is on the primary's
 * disk.  After a takeover the copy keeps its own promises, with what it had written before, too.
 */
static void flush(struct job *j)
{
    if (j->b->role == ROLE_SECONDARY) {
        job_done(j, 0);
    } else if (!waits_for_merge(j)) {
        io_begin(j, BLKIO_SYNC);
    }
}

/*
 * With two copies of the disk a discard is not carried out: it would have to be in both, and is a
 * hint.  With one it is a hole, which reads as zeroes.
 */
static void discard(struct job *j)
{
    if (j->kept->req.secure) {
        job_done(j, -EOPNOTSUPP);    /* a hole says nothing of where the data was */
    } else if (j->b->role != ROLE_LOCAL || intent_holds(j->b)) {
        job_done(j, 0);
    } else {
        io_begin(j, BLKIO_PUNCH);
    }
}

/* A good request with its data, or with memory for it. */
static void execute(struct job *j)
{
    const struct blkring_request *req = &j->kept->req;

    switch (req->op) {
    case BLKRING_READ:
        io_begin(j, BLKIO_READ);
        break;
    case BLKRING_WRITE:
        if (!intent_allows(j)) {
            break;
        }
        sync_writes(j->b);
        if (!req->barrier) {
            io_begin(j, BLKIO_WRITE);
        } else if (j->b->role != ROLE_SECONDARY) {
            if (!waits_for_merge(j)) {
                io_begin(j, BLKIO_SYNC);
            }
        } else if (has_data(req)) {
            io_begin(j, BLKIO_WRITE);
        } else {
            job_done(j, 0);
        }
        break;
    case BLKRING_FLUSH:
        flush(j);
        break;
    case BLKRING_DISCARD:
        discard(j);
        break;
    }
}

void job_again(struct job *j)
{
    execute(j);
}

/* ---- Grant copies --------------------------------------------------------------------------- */

static void copy_segment(xengnttab_grant_copy_segment_t *c, const struct job *j, uint32_t i)
{
    const struct blkring_seg *seg = &j->kept->req.seg[i];
    bool in = j->stage == STAGE_COPY_IN;
    union xengnttab_copy_ptr guest, here;

    memset(&guest, 0, sizeof(guest));
    guest.foreign.ref = seg->gref;
    guest.foreign.offset = (uint16_t)(seg->first * BLKRING_SECTOR);
    guest.foreign.domid = (uint16_t)j->b->domid;
    memset(&here, 0, sizeof(here));
    here.virt = j->iov[i].iov_base;
    memset(c, 0, sizeof(*c));
    c->source = in ? guest : here;
    c->dest = in ? here : guest;
    c->len = (uint16_t)(seg->sectors * BLKRING_SECTOR);
    c->flags = in ? GNTCOPY_source_gref : GNTCOPY_dest_gref;
}

/* The copies of jobs from..to-1 of the list, which fill b->copies; then on with each. */
static void copy_batch(struct blkd *b, uint32_t from, uint32_t to, uint32_t count)
{
    uint32_t i, k, at = 0;
    int rc = xengnttab_grant_copy(b->xgt, count, b->copies) ? -errno : 0;

    for (i = from; i < to; i++) {
        struct job *j = &b->jobs[b->copy.job[i]];
        bool good = !rc;

        for (k = 0; k < j->pages; k++) {
            good &= b->copies[at++].status == GNTST_okay;
        }
        if (!good) {
            job_done(j, rc ? rc : -EFAULT);
        } else if (j->stage == STAGE_COPY_IN) {
            execute(j);
        } else {
            job_done(j, 0);
        }
    }
}

static void copies_work(struct blkd *b)
{
    uint32_t i, k, from = 0, count = 0;

    for (i = 0; i < b->copy.count; i++) {
        struct job *j = &b->jobs[b->copy.job[i]];

        if (count + j->pages > COPY_BATCH) {
            copy_batch(b, from, i, count);
            from = i;
            count = 0;
        }
        for (k = 0; k < j->pages; k++) {
            copy_segment(&b->copies[count++], j, k);
        }
    }
    if (count) {
        copy_batch(b, from, b->copy.count, count);
    }
    b->copy.count = 0;
}

/* ---- Requests ------------------------------------------------------------------------------- */

/* The segments that an indirect request keeps in pages of the guest.  0 or negative errno. */
static int fetch_indirect(struct job *j)
{
    struct blkring_request req = j->kept->req;
    struct blkd *b = j->b;
    uint32_t i;
    int rc;

    for (i = 0; i < req.indirect; i++) {
        xengnttab_grant_copy_segment_t *c = &b->copies[i];

        memset(c, 0, sizeof(*c));
        c->source.foreign.ref = req.indirect_gref[i];
        c->source.foreign.domid = (uint16_t)b->domid;
        c->dest.virt = b->indirect + i * BLKRING_PAGE;
        c->len = (uint16_t)blkring_page_bytes(&req, i);
        c->flags = GNTCOPY_source_gref;
    }
    if (xengnttab_grant_copy(b->xgt, req.indirect, b->copies)) {
        return -errno;
    }
    for (i = 0; i < req.indirect; i++) {
        if (b->copies[i].status != GNTST_okay) {
            return -EFAULT;
        }
    }
    rc = blkring_indirect(&j->disk->spec, &req, b->indirect);
    if (!rc) {
        j->kept->req = req;
        keep_store(&j->kept->fetched, 1);
    }
    return rc;
}

/* With its memory: its data comes first, or it begins. */
static void start(struct job *j)
{
    job_activate(j);
    if (j->kept->req.op == BLKRING_WRITE && j->pages) {
        j->stage = STAGE_COPY_IN;
        job_list_add(&j->b->copy, j);
    } else {
        execute(j);
    }
}

/* Taken just now, or by a daemon before this one. */
static void consider(struct job *j)
{
    const struct blkring_request *req = &j->kept->req;
    struct blkd *b = j->b;

    j->stage = STAGE_WAIT;
    if (!j->kept->refused && req->indirect && !j->kept->fetched) {
        j->kept->refused = fetch_indirect(j);
    }
    if (j->kept->refused) {
        job_done(j, j->kept->refused);
        return;
    }
    if (req->barrier) {
        j->disk->barrier = job_number(j);
    }
    if (req->barrier || b->wait.count || must_wait(j) || !job_pages(j)) {
        job_list_add(&b->wait, j);
        /* What it waits for may all be done: nothing else would have it looked at again. */
        b->busy = b->busy || req->barrier;
    } else {
        start(j);
    }
}

/* In order: what is behind the first that cannot begin waits as well. */
static void resume_waiting(struct blkd *b)
{
    uint32_t done = 0;

    while (done < b->wait.count) {
        struct job *j = &b->jobs[b->wait.job[done]];

        if (must_wait(j) || !job_pages(j)) {
            break;
        }
        start(j);
        done++;
    }
    job_list_shift(&b->wait, done);
}

void say_if_broken(struct blkd *b, struct ring *ring)
{
    if (ring->r.broken && !ring->broken_said) {
        ring->broken_said = true;
        daemon_say(DAEMON_WARNING, "domain %u disk %u ring %u: indices are nonsense: ring left "
                   "alone", b->domid, ring->at.disk, ring->at.ring);
    }
}

/* Whether the ring's next request may be taken now. */
static bool may_take(const struct blkd *b, const struct ring *ring)
{
    return b->state == STATE_RUNNING && ring->r.attached && !ring->r.broken && !b->wait.count &&
           b->free_jobs && b->disk[ring->at.disk].barrier == NO_JOB && !b->r.epoch_owed;
}

static void take_requests(struct blkd *b, struct ring *ring)
{
    const uint32_t number = (uint32_t)(ring - b->ring);
    uint32_t i;

    for (i = 0; i < TAKE_ROUND && may_take(b, ring); i++) {
        struct job *j = &b->jobs[b->free_job[b->free_jobs - 1]];
        struct keep_job *kept = j->kept;
        int rc = blkring_take(&ring->r, &b->disk[ring->at.disk].spec, &kept->req);

        if (!rc || rc == -EPROTO) {
            break;
        }
        b->free_jobs--;
        kept->ring = number;
        kept->index = ring->r.req_cons - 1;
        kept->refused = rc < 0 ? rc : 0;
        kept->answered = kept->fetched = 0;
        keep_store(&kept->used, 1);
        keep_store(&b->keep->ring[number].req_cons, ring->r.req_cons);
        job_begin(j, ring);
        consider(j);
    }
    if (i == TAKE_ROUND) {
        b->busy = true;
    }
    say_if_broken(b, ring);
}

/* The answers become visible, and their jobs are forgotten. */
static void push(struct blkd *b, struct ring *ring)
{
    if (!ring->answers) {
        return;
    }
    if (blkring_push(&ring->r)) {
        xenevtchn_notify(b->xce, (evtchn_port_t)ring->port);
    }
    while (ring->answers) {
        job_free(&b->jobs[ring->answered[--ring->answers]]);
    }
}

void jobs_work(struct blkd *b)
{
    uint32_t i;

    resume_waiting(b);
    for (i = 0; i < b->rings; i++) {
        take_requests(b, &b->ring[i]);
    }
    copies_work(b);
}

void jobs_answer(struct blkd *b)
{
    uint32_t i;

    for (i = 0; i < b->rings; i++) {
        push(b, &b->ring[i]);
    }
    for (i = 0; i < b->rings; i++) {
        struct ring *ring = &b->ring[i];

        if (may_take(b, ring) && blkring_more(&ring->r)) {
            b->busy = true;
        }
        say_if_broken(b, ring);
    }
}

bool jobs_at_rest(const struct blkd *b)
{
    return b->free_jobs == JOBS;
}

/*
 * Jobs of a daemon before this one: those that the guest has no answer to are done again, barriers
 * last, as they wait for all others.
 */
void jobs_resume(struct blkd *b)
{
    uint32_t i, k, left = 0, again = 0;

    for (i = 0; i < JOBS; i++) {
        struct keep_job *kept = &b->keep->job[i];
        const struct ring *ring = &b->ring[kept->ring < b->rings ? kept->ring : 0];

        if (!kept->used || kept->ring >= b->rings ||
            (int32_t)(kept->index - ring->r.req_cons) >= 0 ||
            (kept->answered && (int32_t)(ring->r.rsp_prod - kept->rsp_index) > 0)) {
            kept->used = 0;
            b->free_job[left++] = i;
        }
    }
    b->free_jobs = left;
    for (k = 0; k < 2; k++) {
        for (i = 0; i < JOBS; i++) {
            struct keep_job *kept = &b->keep->job[i];
            struct job *j = &b->jobs[i];

            if (kept->used && j->stage == STAGE_FREE && kept->req.barrier == (k == 1)) {
                kept->answered = 0;
                job_begin(j, &b->ring[kept->ring]);
                consider(j);
                again++;
            }
        }
    }
    if (again) {
        daemon_say(DAEMON_INFO, "domain %u: %u requests of the daemon before this one are done "
                   "again", b->domid, again);
    }
}
