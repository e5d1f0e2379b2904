/*
 * blkd_sync.c: the primary's side of replication; see blkd.h.
 *
 * Synchronisation: what is due (blklog.h), which is everything of disks that were never compared,
 * is read from the beginning to the end in ranges of at most 1 MiB, hashed in parts and asked about
 * (HASHES); parts that differ (WANT) are read again and sent as writes.  What must hold: whatever
 * the guest writes reaches the other host, once it is beyond doubt that the range's contents there
 * are older.
 *   - a range is read for its hashes only while no write that is under way touches it; from then on
 *     every write of it is sent (disk.sync_at), so what the hashes miss is sent by itself
 *   - a part is read to be sent only while no write touches it, and writes of it wait until it has
 *     been put on the channel (sync_locks): the channel's order is that of the disk
 *
 * From then on every write is sent when it is on this disk, before it is answered.  How much may be
 * on the way is the other side's to say (CREDIT).  CREDIT_KEPT of it is for the time of a rest, so
 * that what was taken can always be answered; beyond it, writes wait.  A copy is given up when the
 * guest has waited for STUCK_US, whatever for, and nothing more could be sent.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <xxhash.h>

#include "tools/remus/blkd.h"

#define STUCK_US      5000000u
#define SECOND_US     1000000u
#define RANGE_SECTORS (REMUS_DISK_BYTES_MAX / BLKRING_SECTOR)
#define PART_SECTORS  (REMUS_DISK_HASH_BYTES / BLKRING_SECTOR)
#define FRAMES_ROUND  64u
#define MARK_US       2000000u      /* least time between two */

static bool replicating(const struct blkd *b)
{
    return b->role == ROLE_PRIMARY && b->r.chan;
}

void sync_end(struct blkd *b)
{
    struct replication *r = &b->r;
    uint32_t i;

    b->role = ROLE_LOCAL;
    channel_close(b);
    r->syncing = r->synced = r->epoch_owed = r->marked = false;
    r->asking = r->relating = r->known = 0;
    r->stuck_us = 0;
    for (i = 0; i < SYNC_SLOTS; i++) {
        if (r->slot[i].stage != SYNC_HASH && r->slot[i].stage != SYNC_READ) {
            r->slot[i].stage = SYNC_FREE;   /* the others when their read is over */
        }
    }
    for (i = 0; i < r->send.count; i++) {
        job_written(&b->jobs[r->send.job[i]]);
    }
    r->send.count = 0;
    b->busy = true;
}

static void lost(struct blkd *b, const char *why)
{
    daemon_say(DAEMON_WARNING, "domain %u: disks are not replicated any more: %s", b->domid, why);
    if (b->ctl_open) {
        ctl_say(REMUS_CTL_FD, CTL_CHANNEL_LOST, 0, 0, "disks: %s", why);
    }
    intent_lost(b);
    sync_end(b);
}

void sync_failed(struct blkd *b, uint32_t disk, uint64_t sector, int rc)
{
    char text[128];

    snprintf(text, sizeof(text), "a write of disk %u at sector %" PRIu64 " failed, and what is "
             "there now cannot be read: %s", disk, sector, strerror(-rc));
    if (replicating(b)) {
        lost(b, text);
    }
}

/* ---- The guest's writes --------------------------------------------------------------------- */

bool sync_notes(struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors)
{
    const struct replication *r = &b->r;
    const uint64_t end = sector + sectors;
    const uint64_t from = replicating(b) && r->syncing ? b->disk[disk].sync_at : 0;
    const bool sends = replicating(b) && !r->shared && (r->synced || (r->syncing && sector < from));

    if (!b->log) {
        return sends;
    }
    b->r.unmarked = true;
    if (sends) {
        blklog_mark_new(b->log, disk, sector, sectors);
    }
    /* What is not sent, or lies partly where nothing was compared yet. */
    if (!sends || (r->syncing && end > from)) {
        sector = sector > from ? sector : from;
        blklog_mark_due(b->log, disk, sector, end - sector);
    }
    return sends;
}

/* Whether so much may be on its way; while the guest is stopped, what was kept for that too. */
static bool have_credit(const struct blkd *b, uint64_t cost)
{
    const uint64_t kept = b->state == STATE_RUNNING ? CREDIT_KEPT : 0;

    return b->r.sent + cost + kept <= b->r.credit;
}

/* Half of what writes may use is on its way: the copy can only let go of it at a checkpoint. */
static void ask_early(struct blkd *b)
{
    struct replication *r = &b->r;

    if (r->asked || !r->synced || r->sent + CREDIT_KEPT + r->window / 2 <= r->credit) {
        return;
    }
    r->asked = true;
    if (b->ctl_open) {
        ctl_say(REMUS_CTL_FD, CTL_CHECKPOINT, CTL_WHY_QUEUE, 0,
                "disks: %" PRIu64 " KiB wait at the other host", (r->window / 2) >> 10);
    }
}

void sync_triggers(struct blkd *b, bool triggers)
{
    b->r.triggers = triggers;
}

void sync_writes(struct blkd *b)
{
    struct replication *r = &b->r;

    if (r->triggers && !r->asked && b->ctl_open) {
        r->asked = true;
        ctl_say(REMUS_CTL_FD, CTL_CHECKPOINT, CTL_WHY_OUTPUT, 0, "disks: a write");
    }
}

static bool put_write(struct blkd *b, uint32_t disk, uint64_t epoch, uint64_t sector,
                      uint32_t sectors, const struct iovec *iov, uint32_t iovs)
{
    struct remus_disk_frame head = {
        .type = REMUS_DISK_WRITE, .disk = (uint8_t)disk, .epoch = epoch, .sector = sector,
        .sectors = sectors,
    };
    const uint64_t cost = store_cost(sector, sectors);

    if (!have_credit(b, cost) || blkchan_put(b->r.chan, &head, iov, iovs)) {
        return false;
    }
    b->r.sent += cost;
    ask_early(b);
    return true;
}

static bool put_job(struct job *j)
{
    const struct blkring_request *req = &j->kept->req;
    struct blkd *b = j->b;

    if (!put_write(b, (uint32_t)(j->disk - b->disk), b->r.epoch, req->sector,
                   (uint32_t)req->sectors, j->iov, req->segs)) {
        return false;
    }
    j->disk->stats.sent_bytes += req->sectors * BLKRING_SECTOR;
    return true;
}

void sync_send(struct job *j)
{
    struct blkd *b = j->b;

    if (!replicating(b) || (!b->r.send.count && put_job(j))) {
        job_written(j);
    } else {
        j->stage = STAGE_SEND;
        job_list_add(&b->r.send, j);
        b->busy = true;
    }
}

static void send_more(struct blkd *b)
{
    struct replication *r = &b->r;
    uint32_t done = 0;

    while (done < r->send.count && put_job(&b->jobs[r->send.job[done]])) {
        job_written(&b->jobs[r->send.job[done++]]);
    }
    job_list_shift(&r->send, done);
}

/* The guest waits until more can be sent: with a write, behind a range that is to be sent first, or
 * with all it does until an epoch's end is on its way. */
static bool guest_waits(const struct blkd *b)
{
    const struct replication *r = &b->r;
    const struct job *first = b->wait.count ? &b->jobs[b->wait.job[0]] : NULL;
    bool sending = false;
    uint32_t i;

    for (i = 0; r->syncing && i < SYNC_SLOTS; i++) {
        sending |= r->slot[i].stage == SYNC_SEND;
    }
    return r->send.count || r->epoch_owed || r->intents.waiting.count ||
           (sending && first && sync_locks(b, (uint32_t)(first->disk - b->disk),
                                           first->kept->req.sector, first->kept->req.sectors));
}

static void stuck_work(struct blkd *b)
{
    const uint64_t at = b->r.sent + b->r.epoch + b->r.intents.noted;
    struct replication *r = &b->r;

    if (!guest_waits(b)) {
        r->stuck_us = 0;
    } else if (!r->stuck_us || r->stuck_at != at) {
        r->stuck_us = b->now_us;
        r->stuck_at = at;
    } else if (b->now_us - r->stuck_us > STUCK_US) {
        lost(b, "the other host takes no more of the guest's writes (is its disk slow?)");
    }
}

void sync_epoch(struct blkd *b, uint64_t epoch)
{
    b->r.epoch_owed = replicating(b) && epoch > b->r.epoch;
    if (!b->r.epoch_owed) {
        b->r.epoch = epoch > b->r.epoch ? epoch : b->r.epoch;
    }
    b->r.asked = false;
}

/*
 * What was sent so far is to be made durable at the other host; what is under way is sent later.
 * With a copy there, only between two disk epochs: what it holds back it holds back as a whole.
 */
static void put_mark(struct blkd *b)
{
    struct remus_disk_frame head = { .type = REMUS_DISK_MARK };
    struct replication *r = &b->r;
    uint32_t i;

    if (!b->log || r->marked || !r->unmarked || b->now_us - r->mark_us < MARK_US ||
        blkchan_put(r->chan, &head, NULL, 0)) {
        return;
    }
    r->marked = true;
    r->unmarked = b->active.count != 0;
    r->mark_us = b->now_us;
    blklog_turn(b->log);
    for (i = 0; i < b->active.count; i++) {
        const struct job *j = &b->jobs[b->active.job[i]];

        if (j->send) {
            blklog_mark_new(b->log, (uint32_t)(j->disk - b->disk), j->kept->req.sector,
                            j->kept->req.sectors);
        }
    }
}

static void put_epoch(struct blkd *b)
{
    struct remus_disk_frame head = { .type = REMUS_DISK_EPOCH, .epoch = b->r.epoch };

    if (b->r.epoch_owed && !blkchan_put(b->r.chan, &head, NULL, 0)) {
        b->r.epoch++;
        b->r.epoch_owed = false;
        b->busy = true;
        put_mark(b);
    }
}

/* ---- The first synchronisation -------------------------------------------------------------- */

bool sync_locks(const struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors)
{
    uint32_t i;

    for (i = 0; b->r.syncing && i < SYNC_SLOTS; i++) {
        const struct sync_slot *s = &b->r.slot[i];

        if ((s->stage == SYNC_READ || s->stage == SYNC_SEND) && s->disk == disk &&
            ranges_overlap(s->part_sector, s->part_sectors, sector, sectors)) {
            return true;
        }
    }
    return false;
}

static int put_open(struct blkd *b, uint32_t i)
{
    const struct ctl_disk *info = &b->disk[i].info;
    struct remus_disk_frame head = { .type = REMUS_DISK_OPEN, .disk = (uint8_t)i };
    struct remus_disk_open open = {
        .sectors = info->sectors, .logical_bytes = info->logical_bytes,
        .segs_max = info->segs_max, .read_only = info->read_only, .flush = info->flush,
        .barrier = info->barrier, .discard = info->discard, .vdev = info->vdev,
    };
    struct iovec iov = { &open, sizeof(open) };

    if (b->log) {
        blklog_relation(b->log, i, open.relation);
    }
    return blkchan_put(b->r.chan, &head, &iov, 1);
}

int sync_log(struct blkd *b, int fd)
{
    const off_t end = lseek(fd, 0, SEEK_END);
    uint64_t sectors[REMUS_DISKS_MAX];
    uint32_t i;
    int rc;

    if (b->log || end <= 0) {
        return b->log ? -EEXIST : end ? -errno : -EINVAL;
    }
    b->log_bytes = (size_t)end;
    b->log_memory = mmap(NULL, b->log_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (b->log_memory == MAP_FAILED) {
        b->log_memory = NULL;
        return -errno;
    }
    for (i = 0; i < b->disks; i++) {
        sectors[i] = b->disk[i].info.sectors;
    }
    rc = blklog_open(&b->log, b->log_memory, b->log_bytes, sectors, b->disks);
    /* The file stays open for as long as somebody notes in it: its lock says so. */
    return rc || fcntl(fd, F_DUPFD_CLOEXEC, 0) >= 0 ? rc : -errno;
}

void sync_begin(struct blkd *b, uint32_t kib_a_second)
{
    uint32_t i;
    int rc = 0;

    b->r.listening = true;
    b->busy = true;
    if (!replicating(b) || b->r.syncing || b->r.synced) {
        return;
    }
    for (i = 0; !rc && i < b->disks; i++) {
        b->disk[i].sync_at = 0;
        rc = put_open(b, i);
        b->r.asking |= 1u << i;
    }
    if (rc) {
        lost(b, strerror(-rc));
        return;
    }
    b->r.shared = kib_a_second == CTL_BLK_SHARED;
    if (!b->r.shared && !b->log) {
        lost(b, "there is nowhere to note what is written");
        return;
    }
    b->r.rate = (uint64_t)kib_a_second << 10;
    b->r.rate_us = b->now_us;
    b->r.rate_bytes = 0;
    b->r.sync_disk = b->r.shared ? b->disks : 0;
    b->r.syncing = true;
    b->busy = true;
}

/* How many bytes may be read now. */
static bool rate_allows(struct blkd *b)
{
    struct replication *r = &b->r;

    if (b->now_us - r->rate_us >= SECOND_US) {
        r->rate_us = b->now_us;
        r->rate_bytes = 0;
    }
    return !r->rate || r->rate_bytes < r->rate;
}

static void part_next(struct blkd *b, struct sync_slot *s);

static void hash_parts(struct sync_slot *s)
{
    const uint8_t *data = s->mem.iov_base;
    uint32_t at = 0;

    s->hashes = 0;
    while (at < s->sectors) {
        uint32_t part = s->sectors - at < PART_SECTORS ? s->sectors - at : PART_SECTORS;

        s->hash[s->hashes++] = htole64(XXH64(data + at * BLKRING_SECTOR, part * BLKRING_SECTOR,
                                             0));
        at += part;
    }
}

static void slot_done(struct xfer *x, int rc)
{
    struct sync_slot *s = x->arg;
    struct blkd *b = x->b;
    char text[128];

    b->busy = true;
    if (!b->r.syncing) {
        s->stage = SYNC_FREE;        /* given up meanwhile */
    } else if (rc) {
        snprintf(text, sizeof(text), "disk %u cannot be read at sector %" PRIu64 ": %s", s->disk,
                 x->sector, strerror(-rc));
        s->stage = SYNC_FREE;
        lost(b, text);
    } else if (s->stage == SYNC_HASH) {
        hash_parts(s);
        s->stage = SYNC_HASHED;
    } else {
        s->stage = SYNC_SEND;
    }
}

static void slot_read(struct blkd *b, struct sync_slot *s, enum sync_stage stage, uint64_t sector,
                      uint32_t sectors)
{
    s->stage = stage;
    s->mem.iov_len = (size_t)sectors * BLKRING_SECTOR;
    s->x = (struct xfer){
        .b = b, .disk = s->disk, .type = BLKIO_READ, .target = BLKVIEW_DISK, .sector = sector,
        .sectors = sectors, .mem = &s->mem, .room = s->room, .done = slot_done, .arg = s,
    };
    xfer_begin(&s->x);
}

/* The next range of any disk; false: not now. */
static bool slot_begin(struct blkd *b, struct sync_slot *s)
{
    struct replication *r = &b->r;
    struct disk *d = NULL;
    uint64_t sector = 0;
    uint32_t sectors = 0;

    for (; r->sync_disk < b->disks; r->sync_disk++) {
        d = &b->disk[r->sync_disk];
        sector = d->sync_at;
        if (blklog_next(b->log, r->sync_disk, RANGE_SECTORS, &sector, &sectors)) {
            break;
        }
        d->sync_at = d->info.sectors;
    }
    if (!d || r->sync_disk == b->disks || !rate_allows(b) ||
        jobs_overlap(b, r->sync_disk, sector, sectors, true)) {
        return false;
    }
    s->disk = r->sync_disk;
    s->sector = sector;
    s->sectors = sectors;
    d->sync_at = sector + sectors;
    r->rate_bytes += (uint64_t)s->sectors * BLKRING_SECTOR;
    slot_read(b, s, SYNC_HASH, s->sector, s->sectors);
    return true;
}

static void slot_ask(struct blkd *b, struct sync_slot *s)
{
    struct remus_disk_frame head = {
        .type = REMUS_DISK_HASHES, .disk = (uint8_t)s->disk, .sector = s->sector,
        .sectors = s->sectors,
    };
    struct iovec iov = { s->hash, s->hashes * sizeof(s->hash[0]) };

    if (!blkchan_put(b->r.chan, &head, &iov, 1)) {
        s->stage = SYNC_ASKED;
    }
}

/* The next parts in a row that differ. */
static void part_next(struct blkd *b, struct sync_slot *s)
{
    uint32_t first, end;

    if (!s->wanted) {
        blklog_compared(b->log, s->disk, s->sector, s->sectors);
        b->r.unmarked = true;
        b->disk[s->disk].stats.sync_done_bytes += (uint64_t)s->sectors * BLKRING_SECTOR;
        s->stage = SYNC_FREE;
        return;
    }
    first = (uint32_t)__builtin_ctz(s->wanted);
    for (end = first; end < s->hashes && s->wanted >> end & 1; end++) {
    }
    s->part_sector = s->sector + (uint64_t)first * PART_SECTORS;
    s->part_sectors = end * PART_SECTORS < s->sectors ? (end - first) * PART_SECTORS
                      : s->sectors - first * PART_SECTORS;
    s->stage = SYNC_WANTED;
    if (!jobs_overlap(b, s->disk, s->part_sector, s->part_sectors, true)) {
        s->wanted &= ~((1u << end) - (1u << first));
        slot_read(b, s, SYNC_READ, s->part_sector, s->part_sectors);
    }
}

static void part_send(struct blkd *b, struct sync_slot *s)
{
    if (put_write(b, s->disk, 0, s->part_sector, s->part_sectors, &s->mem, 1)) {
        b->disk[s->disk].stats.sync_sent_bytes += s->mem.iov_len;
        b->busy = true;
        part_next(b, s);
    }
}

/* Every range of every disk is equal, but for writes that are on the channel. */
static void put_synced(struct blkd *b)
{
    struct remus_disk_frame head = { .type = REMUS_DISK_SYNCED };
    struct replication *r = &b->r;
    uint32_t i;

    for (i = 0; i < SYNC_SLOTS; i++) {
        if (r->slot[i].stage != SYNC_FREE) {
            return;
        }
    }
    if (!r->synced && r->sync_disk == b->disks && !blkchan_put(r->chan, &head, NULL, 0)) {
        r->synced = true;            /* the answer, too, makes it true for the coordinator */
        r->syncing = false;
        intent_begin(b);
    }
}

static void slots_work(struct blkd *b)
{
    struct replication *r = &b->r;
    bool may_begin = true;
    uint32_t i;

    if (r->asking || r->relating) {
        return;
    }
    if (r->epoch == 1) {
        put_mark(b);
    }
    for (i = 0; r->syncing && i < SYNC_SLOTS; i++) {
        struct sync_slot *s = &r->slot[i];

        switch (s->stage) {
        case SYNC_FREE:
            may_begin = may_begin && slot_begin(b, s);
            break;
        case SYNC_HASHED:
            slot_ask(b, s);
            break;
        case SYNC_WANTED:
            part_next(b, s);
            break;
        case SYNC_SEND:
            part_send(b, s);
            break;
        case SYNC_HASH:
        case SYNC_ASKED:
        case SYNC_READ:
            break;
        }
    }
    if (r->syncing) {
        put_synced(b);
    }
}

/* ---- What the other host says --------------------------------------------------------------- */

/* Every disk's answer is here: it is known what is due, and whose the disks are. */
static void all_known(struct blkd *b)
{
    uint32_t i;

    for (i = 0; !b->r.shared && i < b->disks; i++) {
        const struct ctl_msg msg = { .type = CTL_BLK_RELATED, .code = i, .count = 1 };
        struct ctl_relation relation;

        b->disk[i].stats.sync_bytes = blklog_due_bytes(b->log, i);
        blklog_relation(b->log, i, relation.bytes);
        if (b->ctl_open) {
            ctl_send_wait(REMUS_CTL_FD, &msg, &relation, NULL, NULL, 0, 1000);
        }
    }
    b->busy = true;
}

/*
 * A new relation for each session, of a disk that the log is about, too: what it notes from here on
 * is not true of that disk as it was before, should an older state of it come back together with
 * its record (from a snapshot, or a backup).  Of another disk everything is due.
 */
static void put_relations(struct blkd *b)
{
    struct replication *r = &b->r;
    uint32_t i;

    for (i = 0; i < b->disks; i++) {
        struct remus_disk_frame head = { .type = REMUS_DISK_RELATION, .disk = (uint8_t)i };
        uint8_t relation[BLKLOG_RELATION_BYTES];
        struct iovec iov = { relation, sizeof(relation) };

        if (!(r->relating >> i & 1)) {
            continue;
        }
        if (getrandom(relation, sizeof(relation), 0) != (ssize_t)sizeof(relation)) {
            lost(b, "the kernel gives no random bytes");
            return;
        }
        if (blkchan_put(r->chan, &head, &iov, 1)) {
            return;
        }
        if (r->known >> i & 1) {
            blklog_adopt(b->log, i, relation);
        } else {
            blklog_relate(b->log, i, relation);
        }
        r->relating &= ~(1u << i);
    }
    if (!r->asking) {
        all_known(b);
    }
}

static const char *take_known(struct blkd *b, const struct remus_disk_frame *head)
{
    struct replication *r = &b->r;

    if (head->disk >= b->disks || !(r->asking >> head->disk & 1)) {
        return "it answers what it was not asked";
    }
    r->asking &= ~(1u << head->disk);
    if (!r->shared) {
        r->relating |= 1u << head->disk;
        r->known |= (uint32_t)(head->sectors == 1) << head->disk;
    } else if (!r->asking) {
        all_known(b);
    }
    return NULL;
}

/* NULL: all right. */
static const char *take_frame(struct blkd *b, const struct remus_disk_frame *head)
{
    struct replication *r = &b->r;
    uint32_t i;

    switch (head->type) {
    case REMUS_DISK_CREDIT:
        if (head->sector < r->credit) {
            return "it takes credit back";
        }
        if (!r->credit) {
            r->window = head->sector > CREDIT_KEPT ? head->sector - CREDIT_KEPT : 0;
        }
        r->credit = head->sector;
        return NULL;
    case REMUS_DISK_SYNCED:
        if (!r->synced) {
            return "it calls disks equal that were not compared";
        }
        if (b->ctl_open) {
            ctl_say(REMUS_CTL_FD, CTL_BLK_SYNCED, 0, 0, NULL);
        }
        return NULL;
    case REMUS_DISK_KNOWN:
        return take_known(b, head);
    case REMUS_DISK_NOTED:
        return intent_noted(b, head->epoch);
    case REMUS_DISK_SAFE:
        if (!r->marked) {
            return "it calls safe what it was not asked about";
        }
        blklog_safe(b->log);
        r->marked = false;
        return NULL;
    case REMUS_DISK_WANT:
        for (i = 0; i < SYNC_SLOTS; i++) {
            struct sync_slot *s = &r->slot[i];

            if (s->stage == SYNC_ASKED && s->disk == head->disk && s->sector == head->sector) {
                s->wanted = head->sectors & ((1u << s->hashes) - 1);
                part_next(b, s);
                return NULL;
            }
        }
        return "it wants what it was not asked about";
    }
    return "a frame of no known type";
}

static void frames_work(struct blkd *b)
{
    struct remus_disk_frame head;
    const uint8_t *payload;
    const char *why;
    int rc = channel_fill(b), n;
    uint32_t i;

    for (i = 0; i < FRAMES_ROUND && b->r.chan; i++) {
        n = blkchan_next(b->r.chan, &head, &payload);
        if (!n) {
            break;
        }
        why = n < 0 ? blkchan_error(b->r.chan) : take_frame(b, &head);
        if (why) {
            lost(b, why);
        }
        b->busy = true;
    }
    b->busy |= !rc;
    if (b->r.chan && rc && rc != -EAGAIN) {
        lost(b, rc == -EPIPE ? "the other host closed the channel" : strerror(-rc));
    }
}

int sync_wait_ms(const struct blkd *b)
{
    return !replicating(b) || (!guest_waits(b) && !(b->r.syncing && b->r.rate)) ? -1 : 50;
}

void sync_work(struct blkd *b)
{
    int rc = 0;

    if (!replicating(b)) {
        intent_work(b);
    }
    if (replicating(b)) {
        frames_work(b);
    }
    if (replicating(b)) {
        send_more(b);
    }
    if (replicating(b) && b->r.relating) {
        put_relations(b);
    }
    if (replicating(b)) {
        put_epoch(b);
        slots_work(b);
        intent_work(b);
        stuck_work(b);
    }
    if (replicating(b)) {
        rc = channel_flush(b);
    }
    if (rc) {
        lost(b, strerror(-rc));
    }
}
