/*
 * colo-blkd: the backend of a guest's disks in user space.
 *
 *   guest's ring -> take -> [grant copy] -> io_uring -> [grant copy] -> response
 *
 * One daemon for all disks of a guest.  It takes over rings under a running guest, at whatever
 * state their last backend left them (all requests that were taken are answered), and leaves them
 * in the same state.  One thread, one epoll loop; nothing is allocated after the start:
 *   jobs    requests under way: with none free, requests stay on their rings
 *   pages   memory for their data: a request that was taken waits for it, and all rings with it
 *
 * States, and what the coordinator may say in each (ctl.h):
 *
 *   state      means                               DISK   BLK_ATTACH  DETACH    GO
 *   DETACHED   no ring is touched                  same   ATTACHED    DETACHED  refused
 *   ATTACHED   rings taken over, guest paused      -      ATTACHED    DETACHED  RUNNING
 *   RUNNING    guest is served                     -      -           RESTING   RUNNING
 *   RESTING    nothing is taken; what is under     -      -           RESTING   -
 *              way ends, then DETACHED is said
 *
 * STATS_GET and QUIT are legal everywhere.  The coordinator's end, or SIGTERM without one, is an
 * orderly end: as DETACH, then exit.  SIGTERM and SIGINT are ignored while it is there.
 *
 * A daemon that is killed leaves requests without an answer, and where they stood on their ring
 * there may be answers to others by then.  So what was taken is kept in memory that outlives the
 * daemon (a memfd of the coordinator's, descriptor REMUS_BLK_KEEP_FD): the next one, given the same
 * memory, does them again.  Until a request is answered its pages are the backend's, so once more
 * is as good as once.
 *
 * Durability is what the kernel's backend gives: data is on the disk's way when a write is
 * answered, and durable when a flush is; a barrier write is durable itself, and orders.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <liburing.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#include "tools/remus/blkio.h"
#include "tools/remus/blkring.h"
#include "tools/remus/ctl.h"
#include "tools/remus/ctlio.h"
#include "tools/remus/daemon.h"
#include "tools/remus/privdrop.h"

/* After Xen's own headers, whose types they use. */
#include <xen/evtchn.h>
#include <xen/gntdev.h>
#include <xen/io/blkif.h>

#define JOBS          256u          /* requests under way, all disks */
#define PAGES         8192u         /* of data: 32 MiB */
#define TAKE_ROUND    32u           /* requests of one ring, then it is the next one's turn */
#define COPY_BATCH    512u          /* segments of one grant copy call */
#define EVENTS_BATCH  8
#define INDIRECT_MAX  8u            /* pages of segments: 512 each, of which 256 may count */
#define NO_JOB        UINT32_MAX

enum blkd_state { STATE_DETACHED, STATE_ATTACHED, STATE_RUNNING, STATE_RESTING };

struct disk {
    bool there;
    struct ctl_disk info;
    struct blkring_disk spec;
    uint32_t busy;                   /* jobs */
    uint32_t barrier;                /* job: all others of this disk end before it, none begin */
    struct ctl_blk_stats stats;
};

struct ring {
    bool mapped;
    struct ctl_blk_attach at;
    struct blkring r;
    void *pages;
    int port;                        /* ours; -1: not bound */
    uint32_t answered[JOBS], answers;    /* jobs whose answers the guest cannot see yet */
    bool broken_said;
};

/*
 * What outlives the daemon.  The order of the writes is what makes it true at every moment:
 *   taken     .used after the rest of the job, and then the ring's req_cons: a job at or behind
 *             req_cons was not taken, its slot still is a request
 *   answered  .answered and .rsp_index before the answer is written into a slot: it was seen by the
 *             guest if the ring's rsp_prod is beyond rsp_index, and is to be done again if not
 */
struct keep {
    uint32_t version;
    struct keep_ring {
        uint32_t valid;              /* the ring is or was being served */
        uint32_t req_cons;
    } ring[REMUS_RINGS_MAX];
    struct keep_job {
        uint32_t used, answered, fetched;
        uint32_t ring, index;        /* place among the ring's requests */
        uint32_t rsp_index;
        int32_t refused;             /* no good: this is its answer */
        struct blkring_request req;
    } job[JOBS];
};
#define KEEP_VERSION 1u

/* What a job is at. */
enum stage {
    STAGE_FREE,
    STAGE_COPY_IN,                   /* WRITE: its data is to be copied */
    STAGE_IO,
    STAGE_COPY_OUT,                  /* READ: its data is to be copied */
};

struct job {
    struct blkd *b;
    struct disk *disk;
    struct ring *ring;
    enum stage stage;
    bool synced;                     /* barrier: what came before is durable */
    uint64_t taken_us;
    uint32_t pages;
    uint32_t page[BLKRING_SEGS_MAX];
    struct iovec iov[BLKRING_SEGS_MAX];
    struct blkio_op op;
    struct keep_job *kept;
};

struct blkd {
    uint32_t domid;
    enum blkd_state state;
    bool ctl_open, quit;
    bool busy;                       /* there is more to do: do not sleep */
    bool attached_before;            /* what is kept is our own, and over */
    uint64_t rest_epoch;             /* of the DETACH that is under way */
    uint64_t now_us;
    int epoll;
    xengnttab_handle *xgt;
    xenevtchn_handle *xce;
    struct blkio *io;
    struct disk disk[REMUS_DISKS_MAX];
    struct ring ring[REMUS_RINGS_MAX];
    uint32_t rings;                  /* slots in use */
    struct job *jobs;
    uint32_t free_job[JOBS], free_jobs;
    uint8_t *memory;                 /* PAGES pages */
    uint32_t free_page[PAGES], free_pages;
    uint8_t *indirect;               /* INDIRECT_MAX pages */
    uint32_t copy_job[JOBS], copy_jobs;          /* wait for their grant copy */
    uint32_t wait_job[JOBS], wait_jobs;          /* wait for memory, or for the end of others */
    struct keep *keep;
    xengnttab_grant_copy_segment_t copies[COPY_BATCH];
};

static bool may_say(const struct blkd *b)
{
    return daemon_may_say(b->domid, b->now_us);
}

static uint8_t *page_at(const struct blkd *b, uint32_t page)
{
    return b->memory + (size_t)page * BLKRING_PAGE;
}

/* ---- Jobs ----------------------------------------------------------------------------------- */

static uint32_t job_number(const struct job *j)
{
    return (uint32_t)(j - j->b->jobs);
}

static void store(uint32_t *at, uint32_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

/* Where a segment's data is here.  Not to be read from iov, which I/O in parts changes. */
static uint8_t *segment_data(const struct job *j, uint32_t i)
{
    return page_at(j->b, j->page[i]) + j->kept->req.seg[i].first * BLKRING_SECTOR;
}

/* Memory for the request's segments; false: not now. */
static bool job_pages(struct job *j)
{
    const struct blkring_request *req = &j->kept->req;
    struct blkd *b = j->b;
    uint32_t i;

    if (req->op != BLKRING_READ && req->op != BLKRING_WRITE) {
        return true;
    }
    if (b->free_pages < req->segs) {
        return false;
    }
    for (i = 0; i < req->segs; i++) {
        const struct blkring_seg *seg = &req->seg[i];

        j->page[i] = b->free_page[--b->free_pages];
        j->iov[i].iov_base = segment_data(j, i);
        j->iov[i].iov_len = (size_t)seg->sectors * BLKRING_SECTOR;
    }
    j->pages = req->segs;
    return true;
}

static void job_begin(struct job *j, struct ring *ring)
{
    j->ring = ring;
    j->disk = &j->b->disk[ring->at.disk];
    j->synced = false;
    j->pages = 0;
    j->taken_us = j->b->now_us;
    j->disk->busy++;
}

/* The guest can see its answer. */
static void job_free(struct job *j)
{
    struct blkd *b = j->b;

    store(&j->kept->used, 0);
    j->disk->busy--;
    j->stage = STAGE_FREE;
    b->free_job[b->free_jobs++] = job_number(j);
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
    struct blkd *b = j->b;

    count_job(j, rc);
    while (j->pages) {
        b->free_page[b->free_pages++] = j->page[--j->pages];
    }
    if (j->disk->barrier == job_number(j)) {
        j->disk->barrier = NO_JOB;
    }
    j->kept->rsp_index = ring->r.rsp_prod;
    store(&j->kept->answered, 1);
    blkring_respond(&ring->r, j->kept->req.id, j->kept->req.operation, status_of(rc));
    ring->answered[ring->answers++] = job_number(j);
    b->busy = true;                  /* push, and what waited for its memory */
}

/* ---- The disk ------------------------------------------------------------------------------- */

static void io_begin(struct job *j, enum blkio_type type);

static void io_done(struct blkio_op *op, int rc)
{
    struct job *j = op->arg;

    if (rc) {
        job_done(j, rc);
    } else if (op->type == BLKIO_SYNC && !j->synced && j->kept->req.op == BLKRING_WRITE) {
        j->synced = true;
        io_begin(j, BLKIO_WRITE);
    } else if (op->type == BLKIO_WRITE && j->kept->req.barrier) {
        io_begin(j, BLKIO_SYNC);
    } else if (op->type == BLKIO_READ) {
        j->stage = STAGE_COPY_OUT;
        j->b->copy_job[j->b->copy_jobs++] = job_number(j);
    } else {
        job_done(j, 0);
    }
}

static void io_begin(struct job *j, enum blkio_type type)
{
    const struct blkring_request *req = &j->kept->req;

    j->stage = STAGE_IO;
    j->op = (struct blkio_op){
        .type = type, .file = j->disk->info.disk, .offset = req->sector * BLKRING_SECTOR,
        .bytes = req->sectors * BLKRING_SECTOR, .iov = j->iov, .iovs = req->segs,
        .done = io_done, .arg = j,
    };
    blkio_begin(j->b->io, &j->op);   /* as many may be under way as there are jobs */
}

/* A good request with its data, or with memory for it. */
static void execute(struct job *j)
{
    switch (j->kept->req.op) {
    case BLKRING_READ:
        io_begin(j, BLKIO_READ);
        break;
    case BLKRING_WRITE:
        io_begin(j, j->kept->req.barrier ? BLKIO_SYNC : BLKIO_WRITE);
        break;
    case BLKRING_FLUSH:
        io_begin(j, BLKIO_SYNC);
        break;
    case BLKRING_DISCARD:
        if (j->kept->req.secure) {
            job_done(j, -EOPNOTSUPP); /* a hole says nothing of where the data was */
        } else {
            io_begin(j, BLKIO_PUNCH);
        }
        break;
    }
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
    here.virt = segment_data(j, i);
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
        struct job *j = &b->jobs[b->copy_job[i]];
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

    for (i = 0; i < b->copy_jobs; i++) {
        struct job *j = &b->jobs[b->copy_job[i]];

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
        copy_batch(b, from, b->copy_jobs, count);
    }
    b->copy_jobs = 0;
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
        store(&j->kept->fetched, 1);
    }
    return rc;
}

/* With its memory: its data comes first, or it begins. */
static void start(struct job *j)
{
    if (j->kept->req.op == BLKRING_WRITE && j->pages) {
        j->stage = STAGE_COPY_IN;
        j->b->copy_job[j->b->copy_jobs++] = job_number(j);
    } else {
        execute(j);
    }
}

/* Taken just now, or by a daemon before this one. */
static void consider(struct job *j)
{
    const struct blkring_request *req = &j->kept->req;
    struct blkd *b = j->b;

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
    if (req->barrier || b->wait_jobs || !job_pages(j)) {
        b->wait_job[b->wait_jobs++] = job_number(j);
    } else {
        start(j);
    }
}

/* In order: what is behind the first that cannot begin waits as well. */
static void resume_waiting(struct blkd *b)
{
    uint32_t i, done = 0;

    while (done < b->wait_jobs) {
        struct job *j = &b->jobs[b->wait_job[done]];

        if ((j->kept->req.barrier && j->disk->busy > 1) || !job_pages(j)) {
            break;
        }
        start(j);
        done++;
    }
    for (i = done; done && i < b->wait_jobs; i++) {
        b->wait_job[i - done] = b->wait_job[i];
    }
    b->wait_jobs -= done;
}

static void say_if_broken(struct blkd *b, struct ring *ring)
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
    return b->state == STATE_RUNNING && ring->r.attached && !ring->r.broken && !b->wait_jobs &&
           b->free_jobs && b->disk[ring->at.disk].barrier == NO_JOB;
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
        store(&kept->used, 1);
        store(&b->keep->ring[number].req_cons, ring->r.req_cons);
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

static void rings_work(struct blkd *b)
{
    uint32_t i;

    resume_waiting(b);
    for (i = 0; i < b->rings; i++) {
        take_requests(b, &b->ring[i]);
    }
    copies_work(b);
    for (i = 0; i < b->rings; i++) {
        struct ring *ring = &b->ring[i];

        push(b, ring);
        if (may_take(b, ring) && blkring_more(&ring->r)) {
            b->busy = true;
        }
        say_if_broken(b, ring);
    }
}

static bool at_rest(const struct blkd *b)
{
    return b->free_jobs == JOBS;
}

/* ---- Attaching ------------------------------------------------------------------------------ */

static void ring_release(struct blkd *b, struct ring *ring)
{
    blkring_detach(&ring->r);
    if (ring->port >= 0) {
        xenevtchn_unbind(b->xce, (evtchn_port_t)ring->port);
    }
    if (ring->pages) {
        xengnttab_unmap(b->xgt, ring->pages, ring->at.pages);
    }
    ring->pages = NULL;
    ring->port = -1;
    ring->mapped = false;
}

static bool same_ring(const struct ctl_blk_attach *a, const struct ctl_blk_attach *b)
{
    return a->disk == b->disk && a->ring == b->ring && a->pages == b->pages && a->port == b->port &&
           !memcmp(a->refs, b->refs, a->pages * sizeof(a->refs[0]));
}

/* A sentence in error, when it fails. */
static int ring_attach(struct blkd *b, struct ring *ring, const struct ctl_blk_attach *at,
                       char *error, size_t size)
{
    uint32_t refs[BLKRING_PAGES_MAX];
    int rc;

    if (at->disk >= REMUS_DISKS_MAX || !b->disk[at->disk].there || !at->pages ||
        at->pages > BLKRING_PAGES_MAX || (at->pages & (at->pages - 1)) ||
        at->abi > BLKRING_X86_32) {
        snprintf(error, size, "domain %u: BLK_ATTACH of disk %u ring %u with %u pages, ABI %u: "
                 "there is no such disk or ring", b->domid, at->disk, at->ring, at->pages, at->abi);
        return -EINVAL;
    }
    if (!ring->mapped || !same_ring(&ring->at, at)) {
        ring_release(b, ring);
        memcpy(refs, at->refs, sizeof(refs));
        ring->at = *at;
        ring->pages = xengnttab_map_domain_grant_refs(b->xgt, at->pages, b->domid, refs,
                                                      PROT_READ | PROT_WRITE);
        if (!ring->pages) {
            rc = -errno;
            snprintf(error, size, "domain %u disk %u: cannot map ring %u (%u pages, first ring-ref "
                     "%u): %s", b->domid, at->disk, at->ring, at->pages, at->refs[0],
                     strerror(-rc));
            return rc;
        }
        ring->mapped = true;
        ring->port = xenevtchn_bind_interdomain(b->xce, b->domid, at->port);
        if (ring->port < 0) {
            rc = -errno;
            snprintf(error, size, "domain %u disk %u: cannot bind to the guest's event channel %u "
                     "(does another backend hold it?): %s", b->domid, at->disk, at->port,
                     strerror(-rc));
            return rc;
        }
    }
    ring->at = *at;
    ring->broken_said = false;
    /* A guest that has ruined its own ring loses its disk, not its protection. */
    blkring_attach(&ring->r, ring->pages, at->pages, (enum blkring_abi)at->abi, b->domid);
    say_if_broken(b, ring);
    return 0;
}

/* Behind the requests that a daemon before this one has taken. */
static int ring_resume(struct blkd *b, uint32_t number, char *error, size_t size)
{
    struct ring *ring = &b->ring[number];
    struct keep_ring *kept = &b->keep->ring[number];

    if (kept->valid && !b->attached_before && !ring->r.broken &&
        blkring_resume(&ring->r, kept->req_cons)) {
        snprintf(error, size, "domain %u disk %u ring %u: what was kept of it (request %u) does "
                 "not fit its state (answer %u)", b->domid, ring->at.disk, ring->at.ring,
                 kept->req_cons, ring->r.rsp_prod);
        return -EPROTO;
    }
    kept->req_cons = ring->r.req_cons;
    store(&kept->valid, 1);
    return 0;
}

/*
 * Jobs of a daemon before this one: those that the guest has no answer to are done again, barriers
 * last, as they wait for all others.
 */
static void resume_jobs(struct blkd *b)
{
    uint32_t i, k, left = 0, again = 0;
    bool barriers;

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
        barriers = k;
        for (i = 0; i < JOBS; i++) {
            struct keep_job *kept = &b->keep->job[i];
            struct job *j = &b->jobs[i];

            if (kept->used && j->stage == STAGE_FREE && kept->req.barrier == barriers) {
                kept->answered = 0;
                j->stage = STAGE_IO;
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

static int do_attach(struct blkd *b, const struct ctl_in *in, char *error, size_t size)
{
    uint32_t i;
    int rc = 0;

    for (i = 0; !rc && i < in->msg.count; i++) {
        rc = ring_attach(b, &b->ring[i], &in->structs.rings[i], error, size);
    }
    for (; i < b->rings; i++) {
        ring_release(b, &b->ring[i]);
    }
    b->rings = in->msg.count;
    for (i = 0; !rc && i < b->rings; i++) {
        rc = ring_resume(b, i, error, size);
    }
    if (!rc && !b->attached_before) {
        resume_jobs(b);
    }
    b->attached_before = true;
    return rc;
}

static int do_disk(struct blkd *b, const struct ctl_in *in, char *error, size_t size)
{
    const struct ctl_disk *info = &in->structs.disk;
    struct disk *d;
    int rc;

    if (in->msg.count != 1 || in->n_fds != 1 || info->disk >= REMUS_DISKS_MAX ||
        b->disk[info->disk].there || info->segs_max > BLKRING_SEGS_MAX ||
        info->logical_bytes < BLKRING_SECTOR || info->logical_bytes > BLKRING_PAGE ||
        (info->logical_bytes & (info->logical_bytes - 1))) {
        snprintf(error, size, "domain %u: DISK does not describe a new disk", b->domid);
        return -EINVAL;
    }
    d = &b->disk[info->disk];
    rc = blkio_set_file(b->io, info->disk, in->fds[0]);
    if (rc) {
        snprintf(error, size, "domain %u disk %u: its file cannot be used: %s", b->domid,
                 info->disk, strerror(-rc));
        return rc;
    }
    d->there = true;
    d->info = *info;
    d->spec = (struct blkring_disk){
        .sectors = info->sectors, .logical_bytes = info->logical_bytes,
        .read_only = info->read_only, .flush = info->flush, .barrier = info->barrier,
        .discard = info->discard, .secure_discard = info->secure_discard,
        .segs_max = info->segs_max,
    };
    return 0;
}

/* ---- Control -------------------------------------------------------------------------------- */

static void fail(struct blkd *b, const char *text)
{
    daemon_say(DAEMON_ERROR, "%s", text);
    if (b->ctl_open) {
        ctl_say(REMUS_CTL_FD, CTL_FAILED, 0, 0, "%s", text);
    }
    b->quit = true;
}

static void stats_send(struct blkd *b)
{
    struct ctl_blk_stats stats[REMUS_DISKS_MAX];
    uint32_t i, n = 0;

    for (i = 0; i < REMUS_DISKS_MAX && b->disk[i].there; i++) {
        stats[n] = b->disk[i].stats;
        stats[n++].busy = b->disk[i].busy;
    }
    ctl_send_wait(REMUS_CTL_FD, &(struct ctl_msg){ .type = CTL_BLK_STATS, .count = n }, stats, NULL,
                  NULL, 0, 1000);
}

/* The guest runs: it may be owed a notification, and there may be requests nobody rang for. */
static void do_go(struct blkd *b)
{
    uint32_t i;

    for (i = 0; i < b->rings; i++) {
        xenevtchn_notify(b->xce, (evtchn_port_t)b->ring[i].port);
    }
    b->busy = true;
}

static void rested(struct blkd *b)
{
    uint32_t i;

    for (i = 0; i < b->rings; i++) {
        store(&b->keep->ring[i].valid, 0);
        blkring_detach(&b->ring[i].r);
    }
    b->state = STATE_DETACHED;
    if (b->ctl_open) {
        ctl_say(REMUS_CTL_FD, CTL_DETACHED, 0, b->rest_epoch, NULL);
    } else {
        b->quit = true;
    }
}

enum { NO = -1 };

static const int state_next[4][4] = {
    /*                   DISK            BLK_ATTACH      DETACH          GO */
    [STATE_DETACHED] = { STATE_DETACHED, STATE_ATTACHED, STATE_RESTING,  NO },
    [STATE_ATTACHED] = { NO,             STATE_ATTACHED, STATE_RESTING,  STATE_RUNNING },
    [STATE_RUNNING]  = { NO,             NO,             STATE_RESTING,  STATE_RUNNING },
    [STATE_RESTING]  = { NO,             NO,             STATE_RESTING,  NO },
};

static void ctl_message(struct blkd *b, const struct ctl_in *in)
{
    char error[CTL_TEXT_MAX] = "";
    int column = -1, next, rc = 0;

    switch (in->msg.type) {
    case CTL_DISK:       column = 0; break;
    case CTL_BLK_ATTACH: column = 1; break;
    case CTL_DETACH:     column = 2; break;
    case CTL_GO:         column = 3; break;
    case CTL_STATS_GET:  stats_send(b); return;
    case CTL_QUIT:       b->quit = true; return;
    }
    next = column < 0 ? NO : state_next[b->state][column];
    if (next == NO) {
        snprintf(error, sizeof(error), "domain %u: %s is not legal now (state %d)", b->domid,
                 ctl_type_name(in->msg.type), b->state);
        fail(b, error);
        return;
    }
    switch (in->msg.type) {
    case CTL_DISK:       rc = do_disk(b, in, error, sizeof(error)); break;
    case CTL_BLK_ATTACH: rc = do_attach(b, in, error, sizeof(error)); break;
    case CTL_DETACH:     b->rest_epoch = in->msg.epoch; break;
    case CTL_GO:         do_go(b); break;
    }
    if (rc) {
        fail(b, error);
        return;
    }
    b->state = (enum blkd_state)next;
    switch (in->msg.type) {
    case CTL_DISK:       ctl_say(REMUS_CTL_FD, CTL_READY, 0, 0, NULL); break;
    case CTL_BLK_ATTACH: ctl_say(REMUS_CTL_FD, CTL_ATTACHED, 0, in->msg.epoch, NULL); break;
    }
}

static void ctl_work(struct blkd *b)
{
    struct ctl_in in;
    int rc;

    while (!b->quit && b->ctl_open && (rc = ctl_recv(REMUS_CTL_FD, &in)) != -EAGAIN) {
        if (rc == -EPROTO) {
            fail(b, "malformed control message");
        } else if (rc) {
            daemon_say(DAEMON_INFO, "domain %u: the coordinator is gone", b->domid);
            epoll_ctl(b->epoll, EPOLL_CTL_DEL, REMUS_CTL_FD, NULL);
            close(REMUS_CTL_FD);
            b->ctl_open = false;
            b->state = STATE_RESTING;
        } else {
            ctl_message(b, &in);
            ctl_in_dispose(&in);
        }
    }
}

/* ---- Loop ----------------------------------------------------------------------------------- */

static volatile sig_atomic_t terminated;

static void on_signal(int number)
{
    terminated = number;
}

/* Which port rang does not matter: every ring is looked at in this round.  Unmask first, so that
 * what comes later rings again. */
static void events_work(struct blkd *b)
{
    evtchn_port_t ports[REMUS_RINGS_MAX];
    const int fd = xenevtchn_fd(b->xce);
    ssize_t r = read(fd, ports, sizeof(ports));

    if (r > 0 && write(fd, ports, (size_t)r) != r && may_say(b)) {
        daemon_say(DAEMON_WARNING, "domain %u: event channels cannot be unmasked: %s", b->domid,
                   strerror(errno));
    }
}

static void loop(struct blkd *b)
{
    struct epoll_event events[EVENTS_BATCH];
    int i, n, rc;

    while (!b->quit) {
        n = epoll_wait(b->epoll, events, EVENTS_BATCH, b->busy ? 0 : -1);
        b->now_us = daemon_clock_us(CLOCK_MONOTONIC);
        b->busy = false;
        if (terminated && !b->ctl_open) {
            return;
        }
        for (i = 0; i < n; i++) {
            if (events[i].data.u64 == REMUS_CTL_FD) {
                ctl_work(b);
            } else if (events[i].data.u64 == (uint64_t)xenevtchn_fd(b->xce)) {
                events_work(b);
            }
        }
        blkio_reap(b->io);
        rings_work(b);
        rc = blkio_flush(b->io);
        if (rc) {
            fail(b, strerror(-rc));
        }
        if (b->state == STATE_RESTING && at_rest(b)) {
            rested(b);
        }
    }
}

/* ---- Setup ---------------------------------------------------------------------------------- */

static int drop_privileges(char *error, size_t size)
{
    static const struct privdrop_syscall calls[] = {
        { SCMP_SYS(ioctl), 1, IOCTL_GNTDEV_MAP_GRANT_REF },
        { SCMP_SYS(ioctl), 1, IOCTL_GNTDEV_UNMAP_GRANT_REF },
        { SCMP_SYS(ioctl), 1, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR },
        { SCMP_SYS(ioctl), 1, IOCTL_GNTDEV_GRANT_COPY },
        { SCMP_SYS(ioctl), 1, IOCTL_EVTCHN_BIND_INTERDOMAIN },
        { SCMP_SYS(ioctl), 1, IOCTL_EVTCHN_UNBIND },
        { SCMP_SYS(ioctl), 1, IOCTL_EVTCHN_NOTIFY },
        { SCMP_SYS(io_uring_enter), -1, 0 },
        { SCMP_SYS(io_uring_register), 1, IORING_REGISTER_FILES_UPDATE },
    };
    static const struct privdrop_options options = {
        .syscalls = calls, .syscall_count = sizeof(calls) / sizeof(calls[0]),
    };

    return remus_privdrop(&options, error, size);
}

static int add_to_epoll(struct blkd *b, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u64 = (uint64_t)fd };

    return epoll_ctl(b->epoll, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

/* The coordinator's memory is empty the first time. */
static int setup_keep(struct blkd *b, char *error, size_t size)
{
    struct stat st;
    int rc = 0;

    if (fstat(REMUS_BLK_KEEP_FD, &st) ||
        (!st.st_size && ftruncate(REMUS_BLK_KEEP_FD, sizeof(*b->keep)))) {
        rc = -errno;
    } else if (st.st_size && st.st_size != (off_t)sizeof(*b->keep)) {
        rc = -EINVAL;
    } else {
        b->keep = mmap(NULL, sizeof(*b->keep), PROT_READ | PROT_WRITE, MAP_SHARED,
                       REMUS_BLK_KEEP_FD, 0);
        rc = b->keep == MAP_FAILED ? -errno : 0;
    }
    if (rc || (st.st_size && b->keep->version != KEEP_VERSION)) {
        snprintf(error, size, "descriptor %d is no memory of a colo-blkd of this version%s%s",
                 REMUS_BLK_KEEP_FD, rc ? ": " : "", rc ? strerror(-rc) : "");
        if (rc) {
            b->keep = NULL;
        }
        return rc ? rc : -EINVAL;
    }
    b->keep->version = KEEP_VERSION;
    return 0;
}

static int setup_memory(struct blkd *b)
{
    size_t bytes = (size_t)(PAGES + INDIRECT_MAX) * BLKRING_PAGE;
    uint32_t i;

    b->jobs = calloc(JOBS, sizeof(*b->jobs));
    b->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!b->jobs || b->memory == MAP_FAILED) {
        b->memory = NULL;
        return -ENOMEM;
    }
    b->indirect = b->memory + (size_t)PAGES * BLKRING_PAGE;
    for (i = 0; i < JOBS; i++) {
        b->jobs[i].b = b;
        b->jobs[i].kept = &b->keep->job[i];
        b->free_job[b->free_jobs++] = i;
    }
    for (i = 0; i < PAGES; i++) {
        b->free_page[b->free_pages++] = PAGES - 1 - i;
    }
    for (i = 0; i < REMUS_DISKS_MAX; i++) {
        b->disk[i].barrier = NO_JOB;
    }
    for (i = 0; i < REMUS_RINGS_MAX; i++) {
        b->ring[i].port = -1;
    }
    return 0;
}

static int setup(struct blkd *b, char *error, size_t size)
{
    int rc;

    daemon_start("colo-blkd", on_signal);
    rc = setup_keep(b, error, size);
    if (rc) {
        return rc;
    }
    rc = setup_memory(b);
    if (rc) {
        snprintf(error, size, "memory: %s", strerror(-rc));
        return rc;
    }
    rc = blkio_new(&b->io, JOBS, REMUS_DISKS_MAX);
    if (rc) {
        snprintf(error, size, "io_uring: %s (is kernel.io_uring_disabled set?)", strerror(-rc));
        return rc;
    }
    b->xgt = xengnttab_open(NULL, 0);
    b->xce = xenevtchn_open(NULL, 0);
    b->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!b->xgt || !b->xce || b->epoll < 0 ||
        fcntl(xenevtchn_fd(b->xce), F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
        rc = -errno;
        snprintf(error, size, "%s: %s", !b->xgt ? "/dev/xen/gntdev" : !b->xce ? "/dev/xen/evtchn" :
                 b->epoll < 0 ? "epoll" : "event channels", strerror(-rc));
        return rc;
    }
    rc = add_to_epoll(b, REMUS_CTL_FD);
    if (!rc) {
        rc = add_to_epoll(b, xenevtchn_fd(b->xce));
    }
    if (!rc) {
        rc = add_to_epoll(b, blkio_fd(b->io));
    }
    if (rc) {
        snprintf(error, size, "epoll: %s (descriptor %d must be an open socket)", strerror(-rc),
                 REMUS_CTL_FD);
        return rc;
    }
    return drop_privileges(error, size);
}

static void dispose(struct blkd *b)
{
    uint32_t i;

    blkio_free(b->io);
    for (i = 0; i < REMUS_RINGS_MAX && b->xce; i++) {
        ring_release(b, &b->ring[i]);
    }
    if (b->xgt) {
        xengnttab_close(b->xgt);
    }
    if (b->xce) {
        xenevtchn_close(b->xce);
    }
    if (b->epoll >= 0) {
        close(b->epoll);
    }
    if (b->memory) {
        munmap(b->memory, (size_t)(PAGES + INDIRECT_MAX) * BLKRING_PAGE);
    }
    if (b->keep) {
        munmap(b->keep, sizeof(*b->keep));
    }
    free(b->jobs);
    free(b);
}

static void usage(FILE *to)
{
    fputs("Usage: colo-blkd --domid N [--log-level error|warning|info|debug]\n"
          "\n"
          "User-space backend of a guest's disks.  Started by a coordinator, with a control\n"
          "socket as descriptor 3 and a memfd, empty or that of its forerunner, as descriptor 5.\n",
          to);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "domid", required_argument, NULL, 'd' }, { "log-level", required_argument, NULL, 'l' },
        { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 },
    };
    char error[CTL_TEXT_MAX] = "";
    bool have_domid = false;
    struct blkd *b;
    int option, rc = 2;

    b = calloc(1, sizeof(*b));
    if (!b) {
        perror("colo-blkd");
        return 1;
    }
    b->epoll = -1;
    b->ctl_open = true;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (option) {
        case 'h':
            usage(stdout);
            rc = 0;
            goto out;
        case 'd':
            /* DOMID_FIRST_RESERVED - 1 */
            have_domid = !daemon_parse_number(optarg, 0x7fef, &b->domid);
            break;
        case 'l':
            if (!daemon_parse_level(optarg)) {
                break;
            }
            /* fall through */
        default:
            usage(stderr);
            goto out;
        }
    }
    if (!have_domid || optind != argc) {
        usage(stderr);
        goto out;
    }
    rc = 1;
    b->now_us = daemon_clock_us(CLOCK_MONOTONIC);
    if (setup(b, error, sizeof(error))) {
        fail(b, error);
    } else if (!ctl_say(REMUS_CTL_FD, CTL_READY, 0, 0, NULL)) {
        loop(b);
        rc = 0;
    }

out:
    dispose(b);
    return rc;
}
