/*
 * colo-blkd: the backend of a guest's disks in user space.
 *
 *   guest's ring -> take -> [grant copy] -> io_uring -> [grant copy] -> response
 *
 * One daemon for all disks of a guest.  It takes over rings under a running guest, at whatever
 * state their last backend left them (all requests that were taken are answered), and leaves them
 * in the same state.  One thread, which sleeps in the io_uring only; nothing is allocated after the
 * start, but for the maps of what lies over a copy's disks:
 *   jobs    requests under way: with none free, requests stay on their rings
 *   pages   memory for their data: a request that was taken waits for it, and all rings with it
 *
 * With --role it is one of two, connected by the disk channel: the primary's sends what its guest
 * writes, the secondary's keeps it for the copy (blkd_sync.c, blkd_copy.c).
 *
 * States, and what the coordinator may say in each (ctl.h):
 *
 *   state      means                            DISK  BLK_ATTACH  DETACH    GO       BLK_COMMIT
 *                                               BLK_STORE
 *                                               BLK_LOG
 *   DETACHED   no ring is touched               same  ATTACHED    DETACHED  RUNNING  same
 *   ATTACHED   rings taken over, guest paused   -     ATTACHED    DETACHED  RUNNING  -
 *   RUNNING    guest is served                  -     -           RESTING   RUNNING  -
 *   RESTING    nothing is taken; what is under  -     -           RESTING   RUNNING  -
 *              way ends, then DETACHED is said
 *
 * GO in DETACHED is for rings that were attached before, and are where they were.  STATS_GET, QUIT,
 * BLK_SYNC, BLK_LOCAL, BLK_KNOWN and FAILOVER are legal everywhere.
 *
 * A daemon whose coordinator is gone goes on serving its guest by itself (a secondary's, which
 * serves only a copy, ends); SIGTERM ends it then, in order: as DETACH, then exit.  SIGTERM and
 * SIGINT are ignored while the coordinator is there.  QUIT is the same, from any state; a copy's
 * requests are forgotten with it, and one that took over serves on until all is on the disks.
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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <liburing.h>
#include "tools/remus/blkd.h"
#include "tools/remus/privdrop.h"

/* After Xen's own headers, whose types they use. */
#include <xen/evtchn.h>
#include <xen/gntdev.h>

#define SIGNAL_MS     500
#define BUFFER_BYTES  (REMUS_DISK_BYTES_MAX + BLKRING_PAGE)
#define BUFFERS       (SYNC_SLOTS + REMOTE_OPS + MERGE_OPS)
/* Pieces of all that moves data; flushes for MARK, BASE and COLD, and after a takeover; a hole in
 * the store. */
#define IO_DEPTH      (XFER_PIECES * (JOBS + BUFFERS) + 3 * REMUS_DISKS_MAX + 1)

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
    return a->domid == b->domid && a->disk == b->disk && a->ring == b->ring &&
           a->pages == b->pages && a->port == b->port &&
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
        b->domid = at->domid;        /* a copy gets its number late */
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
    keep_store(&kept->valid, 1);
    return 0;
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
        jobs_resume(b);
    }
    b->attached_before = true;
    return rc;
}

/* Of whatever the replication has under way. */
static int setup_buffers(struct blkd *b)
{
    uint8_t *next = mmap(NULL, (size_t)BUFFERS * BUFFER_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t i;

    if (next == MAP_FAILED) {
        return -ENOMEM;
    }
    b->buffers = next;
    for (i = 0; i < SYNC_SLOTS; i++, next += BUFFER_BYTES) {
        b->r.slot[i].mem.iov_base = next;
    }
    for (i = 0; i < REMOTE_OPS; i++, next += BUFFER_BYTES) {
        b->r.op[i].mem.iov_base = next;
    }
    for (i = 0; i < MERGE_OPS; i++, next += BUFFER_BYTES) {
        b->r.merge[i].mem.iov_base = next;
    }
    return 0;
}

void disk_describe(struct disk *d, const struct ctl_disk *info)
{
    d->info = *info;
    d->spec = (struct blkring_disk){
        .sectors = info->sectors, .logical_bytes = info->logical_bytes,
        .read_only = info->read_only, .flush = info->flush, .barrier = info->barrier,
        .discard = info->discard, .secure_discard = info->secure_discard,
        .segs_max = info->segs_max,
    };
}

static int do_disk(struct blkd *b, const struct ctl_in *in, char *error, size_t size)
{
    const struct ctl_disk *info = &in->structs.disk;
    struct disk *d;
    int rc;

    if (in->msg.count != 1 || in->n_fds != 1 || info->disk >= REMUS_DISKS_MAX ||
        info->disk != b->disks || (b->role == ROLE_SECONDARY && !b->r.window) ||
        info->segs_max > BLKRING_SEGS_MAX ||
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
    if (b->role == ROLE_SECONDARY) {
        rc = blkview_new(&d->view, info->disk * BLKVIEW_LAYERS * BLKVIEW_LAYER_BYTES,
                         (uint32_t)(b->r.window / BLKRING_PAGE));
    }
    if (rc) {
        snprintf(error, size, "domain %u disk %u: its overlay: %s", b->domid, info->disk,
                 strerror(-rc));
        return rc;
    }
    d->there = true;
    b->disks++;
    disk_describe(d, b->keep->described[info->disk] ? &b->keep->disk[info->disk] : info);
    return 0;
}


/*
 * What is not on the copy's disks yet goes into this file; or a daemon before this one, which took
 * over, has left it there.
 */
static int do_store(struct blkd *b, const struct ctl_in *in, char *error, size_t size)
{
    const bool local = b->role == ROLE_LOCAL && b->disks, resumes = local && b->keep->views;
    int rc = in->n_fds == 1 && !b->r.window && in->msg.epoch > 2 * CREDIT_KEPT &&
             in->msg.epoch <= BLKVIEW_LAYER_BYTES && (b->role == ROLE_SECONDARY || local) ? 0
             : -EINVAL;

    if (!rc && local && !resumes) {
        return 0;                    /* it came to the end of that */
    }
    if (!rc) {
        rc = blkio_set_file(b->io, STORE_FILE, in->fds[0]);
    }
    if (!rc && resumes) {
        rc = setup_buffers(b);
    }
    if (!rc && resumes) {
        rc = copy_resume(b);
    }
    if (rc) {
        snprintf(error, size, "domain %u: BLK_STORE of %" PRIu64 " bytes cannot be used: %s",
                 b->domid, in->msg.epoch, strerror(-rc));
        return rc;
    }
    b->r.window = b->r.credit = in->msg.epoch;
    return 0;
}

static int do_log(struct blkd *b, const struct ctl_in *in, char *error, size_t size)
{
    int rc = in->n_fds == 1 ? sync_log(b, in->fds[0]) : -EINVAL;

    if (rc) {
        snprintf(error, size, "domain %u: BLK_LOG names no log of its disks: %s", b->domid,
                 strerror(-rc));
    }
    return rc;
}

/* ---- Control -------------------------------------------------------------------------------- */

void blkd_fail(struct blkd *b, const char *text)
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
        const struct blkview *view = b->disk[i].view;

        stats[n] = b->disk[i].stats;
        stats[n].vdev = b->disk[i].info.vdev;
        stats[n].bytes = b->disk[i].info.sectors * BLKRING_SECTOR;
        stats[n].overlay_bytes = view ? (uint64_t)blkview_overlay_blocks(view) * BLKRING_PAGE : 0;
        stats[n].waiting_bytes = view ? (uint64_t)blkview_waiting_blocks(view) * BLKRING_PAGE : 0;
        stats[n++].busy = b->disk[i].busy;
    }
    ctl_send_wait(REMUS_CTL_FD, &(struct ctl_msg){ .type = CTL_BLK_STATS, .count = n }, stats, NULL,
                  NULL, 0, 1000);
}

/*
 * With the first commit the copy has the primary's memory, grants and event channels.  The rings of
 * its first run are not those that come now, even with the same references and port.
 */
static void do_commit(struct blkd *b, uint64_t epoch)
{
    uint32_t i;

    for (i = 0; !b->committed && i < b->rings; i++) {
        ring_release(b, &b->ring[i]);
    }
    b->rings = b->committed ? b->rings : 0;
    b->committed = true;
    copy_commit(b, epoch);
}

/* The guest runs: it may be owed a notification, and there may be requests nobody rang for. */
static void do_go(struct blkd *b, uint64_t epoch, bool triggers)
{
    uint32_t i;

    for (i = 0; b->state == STATE_DETACHED && i < b->rings; i++) {
        struct ring *ring = &b->ring[i];

        blkring_attach(&ring->r, ring->pages, ring->at.pages, (enum blkring_abi)ring->at.abi,
                       b->domid);
        b->keep->ring[i].req_cons = ring->r.req_cons;
        keep_store(&b->keep->ring[i].valid, 1);
    }
    if (b->role == ROLE_PRIMARY) {
        sync_epoch(b, epoch);
        sync_triggers(b, triggers);
    }
    for (i = 0; i < b->rings; i++) {
        xenevtchn_notify(b->xce, (evtchn_port_t)b->ring[i].port);
    }
    b->busy = true;
}

static void rested(struct blkd *b)
{
    uint32_t i;

    for (i = 0; i < b->rings; i++) {
        keep_store(&b->keep->ring[i].valid, 0);
        blkring_detach(&b->ring[i].r);
    }
    b->state = STATE_DETACHED;
    if (b->ctl_open && !b->quit_merged) {
        ctl_say(REMUS_CTL_FD, CTL_DETACHED, 0, b->rest_epoch, NULL);
    } else {
        b->quit = true;
    }
}

/* At the end of a round.  QUIT, like SIGTERM, is a rest first: whoever attaches to a ring whose
 * requests are not all answered loses some. */
static void rest_work(struct blkd *b)
{
    uint32_t i;

    /* The copy is gone, and the rest of it should not wait for its writes to be merged. */
    if (b->r.ended && b->rings && jobs_at_rest(b)) {
        for (i = 0; i < b->rings; i++) {
            ring_release(b, &b->ring[i]);
        }
        b->rings = 0;
    }
    if (b->quit_merged && b->role != ROLE_ACTIVE && b->state != STATE_DETACHED) {
        b->state = STATE_RESTING;
    }
    if (b->state == STATE_RESTING && jobs_at_rest(b) && b->role != ROLE_ACTIVE) {
        rested(b);
    }
    b->quit |= b->quit_merged && b->role != ROLE_ACTIVE && b->state == STATE_DETACHED;
}

enum { NO = -1 };

static const int state_next[4][5] = {
    /*                   DISK, BLK_STORE BLK_ATTACH      DETACH         GO             BLK_COMMIT */
    [STATE_DETACHED] = { STATE_DETACHED, STATE_ATTACHED, STATE_RESTING, STATE_RUNNING,
                         STATE_DETACHED },
    [STATE_ATTACHED] = { NO,             STATE_ATTACHED, STATE_RESTING, STATE_RUNNING, NO },
    [STATE_RUNNING]  = { NO,             NO,             STATE_RESTING, STATE_RUNNING, NO },
    [STATE_RESTING]  = { NO,             NO,             STATE_RESTING, STATE_RUNNING, NO },
};

/* What may be said in any state.  false: it is something else. */
static bool ctl_anytime(struct blkd *b, const struct ctl_msg *msg)
{
    switch (msg->type) {
    case CTL_STATS_GET:
        stats_send(b);
        return true;
    case CTL_QUIT:
        if (b->role == ROLE_SECONDARY) {
            copy_end(b);
        } else if (b->role == ROLE_PRIMARY) {
            sync_end(b);
        }
        intent_end(b);
        b->quit_merged = true;
        return true;
    case CTL_BLK_SYNC:
        sync_begin(b, msg->code);
        return true;
    case CTL_BLK_KNOWN:
        copy_known(b, msg->code, msg->epoch == 1);
        return true;
    case CTL_BLK_LOCAL:
        if (b->role == ROLE_PRIMARY) {
            sync_end(b);
        }
        intent_end(b);
        return true;
    case CTL_FAILOVER:
        if (b->role == ROLE_SECONDARY) {
            copy_takeover(b);
        }
        ctl_say(REMUS_CTL_FD, CTL_ACTIVE, 0, 0, NULL);
        return true;
    }
    return false;
}

static void ctl_message(struct blkd *b, const struct ctl_in *in)
{
    char error[CTL_TEXT_MAX] = "";
    int column = -1, next, rc = 0;

    if (ctl_anytime(b, &in->msg)) {
        return;
    }
    switch (in->msg.type) {
    case CTL_DISK:
    case CTL_BLK_LOG:
    case CTL_BLK_STORE:  column = 0; break;
    case CTL_BLK_ATTACH: column = 1; break;
    case CTL_DETACH:     column = 2; break;
    case CTL_GO:         column = 3; break;
    case CTL_BLK_COMMIT: column = 4; break;
    }
    next = column < 0 ? NO : state_next[b->state][column];
    if (next == NO) {
        snprintf(error, sizeof(error), "domain %u: %s is not legal now (state %d)", b->domid,
                 ctl_type_name(in->msg.type), b->state);
        blkd_fail(b, error);
        return;
    }
    switch (in->msg.type) {
    case CTL_DISK:       rc = do_disk(b, in, error, sizeof(error)); break;
    case CTL_BLK_ATTACH: rc = do_attach(b, in, error, sizeof(error)); break;
    case CTL_BLK_STORE:  rc = do_store(b, in, error, sizeof(error)); break;
    case CTL_BLK_LOG:    rc = do_log(b, in, error, sizeof(error)); break;
    case CTL_DETACH:     b->rest_epoch = in->msg.epoch; break;
    case CTL_GO:         do_go(b, in->msg.epoch, in->msg.code); break;
    case CTL_BLK_COMMIT: do_commit(b, in->msg.epoch); break;
    }
    if (rc) {
        blkd_fail(b, error);
        return;
    }
    b->state = (enum blkd_state)next;
    switch (in->msg.type) {
    case CTL_DISK:
    case CTL_BLK_LOG:
    case CTL_BLK_STORE:  ctl_say(REMUS_CTL_FD, CTL_READY, 0, 0, NULL); break;
    case CTL_BLK_COMMIT: ctl_say(REMUS_CTL_FD, CTL_BLK_COMMITTED, 0, in->msg.epoch, NULL); break;
    case CTL_BLK_ATTACH: ctl_say(REMUS_CTL_FD, CTL_ATTACHED, 0, in->msg.epoch, NULL); break;
    }
    if (in->msg.type == CTL_BLK_STORE && b->role == ROLE_LOCAL) {
        /* The daemon before this one may not have got to say it. */
        ctl_say(REMUS_CTL_FD, CTL_BLK_SYNCED, 0, 0, NULL);
    }
}

/* A guest is not to hang because its coordinator is gone; a copy is nobody's then. */
static void orphaned(struct blkd *b)
{
    blkio_set_file(b->io, CTL_FILE, -1);
    close(REMUS_CTL_FD);
    b->ctl_open = false;
    if (b->quit_merged) {
        return;                      /* it has said so before */
    }
    daemon_say(DAEMON_INFO, "domain %u: the coordinator is gone", b->domid);
    if (b->role == ROLE_SECONDARY || !b->rings) {
        b->quit = true;
        return;
    }
    if (b->role == ROLE_PRIMARY) {
        intent_lost(b);
        sync_end(b);
    }
    do_go(b, 0, false);
    b->state = STATE_RUNNING;
}

static void ctl_work(struct blkd *b)
{
    struct ctl_in in;
    int rc;

    b->ctl.ready = false;
    while (!b->quit && b->ctl_open && (rc = ctl_recv(REMUS_CTL_FD, &in)) != -EAGAIN) {
        if (rc == -EPROTO) {
            blkd_fail(b, "malformed control message");
        } else if (rc) {
            orphaned(b);
        } else {
            ctl_message(b, &in);
            ctl_in_dispose(&in);
        }
    }
}

/* ---- What is waited for --------------------------------------------------------------------- */

static void watch_done(struct blkio_op *op, int rc)
{
    struct watch *w = op->arg;

    (void)rc;                        /* whoever reads or writes meets the error */
    w->armed = !op->over;
    w->ready = true;
}

static void watch(struct blkd *b, struct watch *w, enum blkio_type type, uint32_t slot)
{
    if (w->armed || (w->ready && type != BLKIO_ARRIVES)) {
        return;
    }
    w->op = (struct blkio_op){ .type = type, .file = slot, .done = watch_done, .arg = w };
    w->armed = true;
    blkio_begin(b->io, &w->op);
}

static void events_answer(struct blkd *b);

static void answered(struct blkio_op *op, int rc)
{
    struct blkd *b = op->arg;

    b->events.giving = false;
    if (rc != (int)b->events.out.iov_len && daemon_may_say(b->domid, b->now_us)) {
        daemon_say(DAEMON_WARNING, "domain %u: event channels cannot be unmasked: %s", b->domid,
                   strerror(rc < 0 ? -rc : EIO));
    }
    events_answer(b);
}

/* So that they can ring again; what rings meanwhile is not lost, and does so then. */
static void events_answer(struct blkd *b)
{
    struct events *e = &b->events;

    if (e->giving || !e->count) {
        return;
    }
    memcpy(e->answered, e->rung, e->count * sizeof(e->rung[0]));
    e->out = (struct iovec){ e->answered, e->count * sizeof(e->rung[0]) };
    e->count = 0;
    e->giving = true;
    e->give = (struct blkio_op){
        .type = BLKIO_GIVE, .file = EVENTS_FILE, .iov = &e->out, .iovs = 1, .done = answered,
        .arg = b,
    };
    blkio_begin(b->io, &e->give);
}

static void rang(struct blkio_op *op, int rc)
{
    struct blkd *b = op->arg;

    b->events.taking = false;
    if (rc > 0) {
        b->events.count += (uint32_t)rc / (uint32_t)sizeof(b->events.rung[0]);
        events_answer(b);
    } else if (rc == -EAGAIN) {
        b->events.wait = true;
    } else if (rc < 0 && daemon_may_say(b->domid, b->now_us)) {
        daemon_say(DAEMON_WARNING, "domain %u: event channels cannot be read: %s", b->domid,
                   strerror(-rc));
    }
}

/* libxenevtchn would take one at a time, with two system calls for each. */
static void events_watch(struct blkd *b)
{
    struct events *e = &b->events;

    if (e->taking || e->count) {
        return;                      /* those that rang have no other place yet */
    }
    e->in = (struct iovec){ e->rung, sizeof(e->rung) };
    e->taking = true;
    e->take = (struct blkio_op){
        .type = e->wait ? BLKIO_READABLE : BLKIO_TAKE, .file = EVENTS_FILE, .iov = &e->in,
        .iovs = 1, .done = rang, .arg = b,
    };
    e->wait = false;
    blkio_begin(b->io, &e->take);
}

static void watch_all(struct blkd *b)
{
    events_watch(b);
    if (b->ctl_open) {
        watch(b, &b->ctl, BLKIO_READABLE, CTL_FILE);
    }
    if (b->r.chan) {
        /* Where the kernel encrypts it, half a record would make it readable all the time. */
        watch(b, &b->channel_in, BLKIO_ARRIVES, CHANNEL_FILE);
        if (blkchan_wants_write(b->r.chan)) {
            watch(b, &b->channel_out, BLKIO_WRITABLE, CHANNEL_FILE);
        }
    }
}

int channel_fill(struct blkd *b)
{
    int rc = b->channel_in.ready ? blkchan_fill(b->r.chan) : -EAGAIN;

    b->channel_in.ready &= rc == 0;
    return rc;
}

int channel_flush(struct blkd *b)
{
    int rc = b->channel_out.armed ? 0 : blkchan_flush(b->r.chan);

    b->channel_out.ready &= !blkchan_wants_write(b->r.chan);
    return rc;
}

/* The slot, and a wait for it, hold on to the socket: the other side would not see its end. */
void channel_close(struct blkd *b)
{
    if (!b->r.chan) {
        return;
    }
    shutdown(blkchan_fd(b->r.chan), SHUT_RDWR);
    blkio_set_file(b->io, CHANNEL_FILE, -1);
    blkchan_free(b->r.chan);
    b->r.chan = NULL;
}

/* ---- Loop ----------------------------------------------------------------------------------- */

/* For blkio_wait(): until something is to be done all the same. */
static int wait_ms(const struct blkd *b)
{
    const int waits[] = {
        sync_wait_ms(b), intent_wait_ms(b), copy_wait_ms(b),
        b->ctl_open ? -1 : SIGNAL_MS,   /* one may come just before we sleep */
    };
    int ms = -1;
    size_t i;

    for (i = 0; i < sizeof(waits) / sizeof(waits[0]); i++) {
        if (waits[i] >= 0 && (ms < 0 || waits[i] < ms)) {
            ms = waits[i];
        }
    }
    return b->busy ? 0 : ms;
}

/* All that there is to do now. */
static void work(struct blkd *b)
{
    b->busy = false;
    blkio_reap(b->io);
    if (b->ctl.ready) {
        ctl_work(b);
    }
    jobs_work(b);
    sync_work(b);
    copy_work(b);
    jobs_answer(b);
    rest_work(b);
}

static void loop(struct blkd *b)
{
    int rc;

    while (!b->quit) {
        watch_all(b);
        rc = blkio_wait(b->io, wait_ms(b));
        if (rc) {
            blkd_fail(b, strerror(-rc));
        }
        /* To a tick of the kernel's: the exact one is a system call in a dom0. */
        b->now_us = daemon_clock_us(CLOCK_MONOTONIC_COARSE);
        if (daemon_terminated() && !b->ctl_open) {
            b->state = STATE_RESTING;
            intent_end(b);           /* whoever asks for that has seen to it */
        }
        work(b);
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
        { SCMP_SYS(ftruncate), 0, REMUS_BLK_KEEP_FD },
        { SCMP_SYS(fcntl), 1, F_DUPFD_CLOEXEC },
    };
    static const struct privdrop_options options = {
        .syscalls = calls, .syscall_count = sizeof(calls) / sizeof(calls[0]),
    };

    return remus_privdrop(&options, error, size);
}

/* All that is waited for, but disks. */
static int set_files(struct blkd *b)
{
    int rc = blkio_set_file(b->io, CTL_FILE, REMUS_CTL_FD);

    if (!rc) {
        rc = blkio_set_file(b->io, EVENTS_FILE, xenevtchn_fd(b->xce));
    }
    return !rc && b->r.chan ? blkio_set_file(b->io, CHANNEL_FILE, blkchan_fd(b->r.chan)) : rc;
}

/* The coordinator's memory is empty the first time. */
static int setup_keep(struct blkd *b, char *error, size_t size)
{
    struct stat st;
    int rc = 0;

    if (fstat(REMUS_BLK_KEEP_FD, &st) ||
        (!st.st_size && ftruncate(REMUS_BLK_KEEP_FD, sizeof(*b->keep)))) {
        rc = -errno;
    } else if (st.st_size && st.st_size < (off_t)sizeof(*b->keep)) {
        rc = -EINVAL;
    } else {
        b->keep = mmap(NULL, sizeof(*b->keep), PROT_READ | PROT_WRITE, MAP_SHARED,
                       REMUS_BLK_KEEP_FD, 0);
        rc = b->keep == MAP_FAILED ? -errno : 0;
    }
    /* 0: a daemon died before it had kept anything. */
    if (rc || (b->keep->version && b->keep->version != KEEP_VERSION)) {
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

static int setup_channel(struct blkd *b)
{
    int rc = setup_buffers(b);

    b->r.epoch = b->role == ROLE_PRIMARY ? 1 : 0;
    b->r.direct = true;
    return rc ? rc : blkchan_new(&b->r.chan, REMUS_CHANNEL_FD, b->role == ROLE_PRIMARY
                                 ? BLKCHAN_PRIMARY : BLKCHAN_SECONDARY);
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

    daemon_start("colo-blkd");
    rc = setup_keep(b, error, size);
    if (rc) {
        return rc;
    }
    rc = setup_memory(b);
    if (rc) {
        snprintf(error, size, "memory: %s", strerror(-rc));
        return rc;
    }
    if (b->role != ROLE_LOCAL) {
        rc = setup_channel(b);
    }
    if (rc) {
        snprintf(error, size, "the disk channel (descriptor %d): %s", REMUS_CHANNEL_FD,
                 strerror(-rc));
        return rc;
    }
    rc = blkio_new(&b->io, IO_DEPTH, FILES);
    if (rc) {
        snprintf(error, size, "io_uring: %s (is kernel.io_uring_disabled set?)", strerror(-rc));
        return rc;
    }
    b->xgt = xengnttab_open(NULL, 0);
    b->xce = xenevtchn_open(NULL, 0);
    if (!b->xgt || !b->xce ||
        fcntl(xenevtchn_fd(b->xce), F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
        rc = -errno;
        snprintf(error, size, "%s: %s", !b->xgt ? "/dev/xen/gntdev" : !b->xce ? "/dev/xen/evtchn" :
                 "event channels", strerror(-rc));
        return rc;
    }
    rc = set_files(b);
    if (rc) {
        snprintf(error, size, "io_uring: %s (descriptor %d must be an open socket)", strerror(-rc),
                 REMUS_CTL_FD);
        return rc;
    }
    return drop_privileges(error, size);
}

static void dispose(struct blkd *b)
{
    uint32_t i;

    b->role = ROLE_LOCAL;           /* what completes now goes nowhere else */
    blkio_free(b->io);
    blkchan_free(b->r.chan);
    for (i = 0; i < b->disks; i++) {
        blkview_free(b->disk[i].view);
    }
    for (i = 0; i < REMUS_RINGS_MAX && b->xce; i++) {
        ring_release(b, &b->ring[i]);
    }
    if (b->xgt) {
        xengnttab_close(b->xgt);
    }
    if (b->xce) {
        xenevtchn_close(b->xce);
    }
    if (b->memory) {
        munmap(b->memory, (size_t)(PAGES + INDIRECT_MAX) * BLKRING_PAGE);
    }
    if (b->views) {
        munmap(b->views, b->views_bytes);
    }
    if (b->keep) {
        munmap(b->keep, sizeof(*b->keep));
    }
    intent_free(b);
    for (i = 0; i < REMUS_DISKS_MAX; i++) {
        free(b->r.announced[i]);
    }
    blklog_free(b->log);
    if (b->log_memory) {
        munmap(b->log_memory, b->log_bytes);
    }
    if (b->buffers) {
        munmap(b->buffers, (size_t)BUFFERS * BUFFER_BYTES);
    }
    free(b->jobs);
    free(b);
}

static void usage(FILE *to)
{
    fputs("Usage: colo-blkd --domid N [--role primary|secondary]\n"
          "                 [--log-level error|warning|info|debug]\n"
          "\n"
          "User-space backend of a guest's disks.  Started by a coordinator, with a control\n"
          "socket as descriptor 3, with a role the channel to the other host as descriptor 4, and\n"
          "a memfd, empty or that of its forerunner, as descriptor 5.\n",
          to);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "domid", required_argument, NULL, 'd' }, { "role", required_argument, NULL, 'r' },
        { "log-level", required_argument, NULL, 'l' }, { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
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
        case 'r':
            if (!strcmp(optarg, "primary") || !strcmp(optarg, "secondary")) {
                b->role = optarg[0] == 'p' ? ROLE_PRIMARY : ROLE_SECONDARY;
                break;
            }
            usage(stderr);
            goto out;
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
    b->now_us = daemon_clock_us(CLOCK_MONOTONIC_COARSE);
    if (setup(b, error, sizeof(error))) {
        blkd_fail(b, error);
    } else if (!ctl_say(REMUS_CTL_FD, CTL_READY, 0, 0, NULL)) {
        loop(b);
        rc = 0;
    }

out:
    dispose(b);
    return rc;
}
