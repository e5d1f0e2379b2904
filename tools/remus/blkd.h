/*
 * blkd.h: what the parts of colo-blkd share.  Private to them.
 *
 *   colo-blkd.c   life, control messages, attaching
 *   blkd_xfer.c   moving data between memory and a disk, or what lies over it
 *   blkd_jobs.c   the guest's requests
 *   blkd_sync.c   primary: the first synchronisation, and the guest's writes to the other host
 *   blkd_intent.c primary: where its disk may differ from what was sent
 *   blkd_copy.c   secondary: what comes from there, and bringing it to the disks
 */
#ifndef REMUS_BLKD_H
#define REMUS_BLKD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include <xenevtchn.h>
#include <xengnttab.h>

#include "tools/remus/blkchan.h"
#include "tools/remus/blkio.h"
#include "tools/remus/blklog.h"
#include "tools/remus/blkring.h"
#include "tools/remus/blkview.h"
#include "tools/remus/ctl.h"
#include "tools/remus/ctlio.h"
#include "tools/remus/daemon.h"

#define JOBS          256u          /* requests under way, all disks */
#define PAGES         4096u         /* of their data: 16 MiB */
#define COPY_BATCH    512u          /* segments of one grant copy call */
#define INDIRECT_MAX  8u            /* pages of segments: 512 each, of which 256 may count */
#define NO_JOB        UINT32_MAX
#define SYNC_SLOTS    8u            /* ranges being compared or sent */
#define REMOTE_OPS    32u           /* frames of the primary being worked on */
#define MERGE_OPS     4u            /* runs on their way to a disk */
/* Slots of blkio_set_file() besides the disks'. */
#define STORE_FILE    REMUS_DISKS_MAX
#define CTL_FILE      (REMUS_DISKS_MAX + 1u)
#define CHANNEL_FILE  (REMUS_DISKS_MAX + 2u)
#define EVENTS_FILE   (REMUS_DISKS_MAX + 3u)
#define FILES         (REMUS_DISKS_MAX + 4u)
#define EVENTS_MAX    64u           /* taken at a time */
#define CREDIT_KEPT   (2ull * PAGES * BLKRING_PAGE) /* for what was taken when a checkpoint comes */

enum blkd_state { STATE_DETACHED, STATE_ATTACHED, STATE_RUNNING, STATE_RESTING };

/*
 * What writes of the guest mean.  LOCAL: there is no other host.  ACTIVE: this was the copy, which
 * took over; what lies over the disks is being merged into them, and then it is LOCAL.
 */
enum blkd_role { ROLE_LOCAL, ROLE_PRIMARY, ROLE_SECONDARY, ROLE_ACTIVE };

struct blkd;

/* ---- Moving data (blkd_xfer.c) ---- */

#define XFER_PIECES 4u              /* under way at a time */
#define XFER_VIEW   (UINT32_MAX - 1u)

struct xfer {
    /* the caller's */
    struct blkd *b;
    uint32_t disk;
    enum blkio_type type;
    uint32_t target;                /* BLKVIEW_DISK; a layer; XFER_VIEW: reads all, writes the
                                       overlay.  SYNC, PUNCH: BLKVIEW_DISK */
    uint64_t sector, sectors;
    const struct iovec *mem;        /* READ, WRITE */
    struct iovec *room;             /* as many as mem, and XFER_PIECES more */
    void (*done)(struct xfer *x, int rc);
    void *arg;
    /* its own */
    uint64_t at;                    /* sectors begun */
    uint32_t mem_at;
    size_t mem_bytes;               /* of mem[mem_at] that are behind us */
    uint32_t running;
    int rc;
    struct blkio_op op[XFER_PIECES];
    uint32_t layer[XFER_PIECES];    /* held while it is read; BLKVIEW_DISK: none */
};

/* The overlay has no room: -ENOSPC, and nothing has begun.  done() is never called from here.  It
 * is told -ECANCELED when its layer, or the overlay, was emptied meanwhile. */
int xfer_begin(struct xfer *x);

/* ---- Disks, rings, jobs ---- */

struct disk {
    bool there;
    struct ctl_disk info;
    struct blkring_disk spec;
    struct blkview *view;            /* secondary, active */
    uint32_t busy;                   /* jobs */
    uint32_t barrier;                /* job: all others of this disk end before it, none begin */
    uint64_t sync_at;                /* primary: sectors before this one are compared or sent */
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
 *   views     .views after them: what a copy that took over has not brought to its disks yet is
 *             described from KEEP_VIEWS on (blkview.h), view_bytes of it for each disk
 */
struct keep {
    uint32_t version;
    /* What the primary has told of a copy's disks, and its coordinator does not know. */
    uint32_t described[REMUS_DISKS_MAX];
    struct ctl_disk disk[REMUS_DISKS_MAX];
    uint32_t views;                  /* 1: there are, and the store is needed */
    uint64_t view_bytes[REMUS_DISKS_MAX];
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
#define KEEP_VERSION 2u
#define KEEP_VIEWS   ((sizeof(struct keep) + BLKRING_PAGE - 1) & ~(size_t)(BLKRING_PAGE - 1))

/* What a job is at. */
enum stage {
    STAGE_FREE,
    STAGE_WAIT,                      /* for memory, or for the end of others */
    STAGE_COPY_IN,                   /* WRITE: its data is to be copied */
    STAGE_INTENT,                    /* WRITE: the other host is to note where, first */
    STAGE_IO,
    STAGE_SEND,                      /* WRITE: waits for room on the way to the other host */
    STAGE_STUCK,                     /* WRITE of the copy: its overlay is full */
    STAGE_MERGE,                     /* FLUSH, barrier: waits for the merge after a takeover */
    STAGE_COPY_OUT,                  /* READ: its data is to be copied */
    STAGE_ANSWERED,
};

struct job {
    struct blkd *b;
    struct disk *disk;
    struct ring *ring;
    enum stage stage;
    bool synced;                     /* barrier: what came before is durable */
    bool send;                       /* WRITE: the other host is to have it */
    int failed;                      /* WRITE: what it left there is read, and sent; its answer */
    uint64_t taken_us;
    uint32_t pages;
    uint32_t page[BLKRING_SEGS_MAX];
    struct iovec iov[BLKRING_SEGS_MAX];
    struct iovec room[BLKRING_SEGS_MAX + XFER_PIECES];
    struct xfer x;
    struct keep_job *kept;
    bool active;                     /* stands in blkd.active, at .active_at */
    uint32_t active_at;
};

/* First in, first out. */
struct job_list {
    uint32_t job[JOBS], count;
};

/* ---- Replication ---- */

enum sync_stage {
    SYNC_FREE,
    SYNC_HASH,                       /* being read, to be compared */
    SYNC_HASHED,                     /* the hashes wait for room on the channel */
    SYNC_ASKED,
    SYNC_WANTED,                     /* a part differs: it waits for writes that overlap */
    SYNC_READ,                       /* ... is read again; writes that overlap wait from here */
    SYNC_SEND,                       /* ... waits for room; to here */
};

struct sync_slot {
    enum sync_stage stage;
    uint32_t disk, sectors;
    uint64_t sector;
    uint32_t wanted;                 /* bit i: part i */
    uint64_t part_sector;            /* what is being read or sent */
    uint32_t part_sectors, hashes;
    uint64_t hash[REMUS_DISK_HASHES_MAX];
    struct iovec mem, room[1 + XFER_PIECES];
    struct xfer x;
};

struct remote_op {
    bool busy;
    struct remus_disk_frame head;
    uint64_t cost;
    bool direct;                     /* to the disk: its cost is back when it is done */
    struct iovec mem, room[1 + XFER_PIECES];
    struct xfer x;
};

struct merge_op {
    enum { MERGE_FREE, MERGE_WAIT, MERGE_READ, MERGE_WRITE } stage;
    uint32_t disk;
    struct blkview_piece run;
    struct iovec mem, room[1 + XFER_PIECES];
    struct xfer x;
};

/* Regions of the primary's disks that were announced; see blkd_intent.c. */
struct region {
    uint32_t disk;
    uint64_t at;
};

struct intents {
    bool on, based;                  /* based: the other host was told BASE */
    uint64_t *number[REMUS_DISKS_MAX];   /* of each region: its INTENT's; 0: cold */
    uint8_t *recent[REMUS_DISKS_MAX];    /* of each region: written to since the last flush began */
    uint64_t announced, noted;       /* numbers */
    uint32_t hot;                    /* regions that are announced */
    /* To be announced.  A request touches two at most; those that were under way when it began
     * (intent_begin()) may end, and make room for others, before theirs are. */
    struct region queue[4 * JOBS];
    uint32_t queued;
    struct job_list waiting;
    enum { INTENT_IDLE, INTENT_FLUSH, INTENT_COOL } stage;
    uint32_t flushing;               /* disks */
    bool flush_failed;
    uint64_t flush_us;               /* when that began */
    uint32_t cool_disk;
    uint64_t cool_at;
    uint64_t hold_until_us;          /* the channel is lost; 0: it is not, or nobody minds */
    struct xfer x[REMUS_DISKS_MAX];
};

struct replication {
    struct blkchan *chan;
    uint64_t credit;                 /* primary: may be sent in all; secondary: granted in all */
    uint64_t sent;                   /* primary: cost of what was; secondary: credit as told */
    uint64_t epoch;                  /* primary: runs; secondary: ended, as far as told */
    bool epoch_owed;                 /* primary: EPOCH of the one before is not on its way yet */
    bool asked;                      /* a checkpoint, in this epoch */
    bool triggers;                   /* primary: the guest's next write is to ask for one */
    uint64_t stuck_us;               /* since when the guest waits for the other host with nothing
                                        more on its way there; 0: it does not */
    uint64_t stuck_at;               /* what was on its way then */
    struct job_list send;

    /* first synchronisation */
    bool syncing, synced, shared;    /* shared: there is nothing to be sent */
    uint32_t sync_disk;
    uint64_t rate;                   /* bytes a second; 0: no limit */
    uint64_t rate_us, rate_bytes;    /* a second's beginning, and what was read in it */
    struct sync_slot slot[SYNC_SLOTS];
    /* Disks, a bit each: OPEN waits for its answer; the new relation is not on its way yet; the
     * other one is the one that the log is about. */
    uint32_t asking, relating, known;
    bool marked;                     /* MARK waits for SAFE */
    bool unmarked;                   /* something was sent, or noted, since the last MARK */
    uint64_t mark_us;                /* when it was */
    struct intents intents;

    /* secondary */
    uint64_t window;
    bool direct;                     /* writes go to the disks: there is no copy yet */
    bool listening;                  /* all disks are known: the primary's frames may be taken */
    bool held;                       /* head and payload wait for others to end */
    struct remus_disk_frame head;
    const uint8_t *payload;
    struct remote_op op[REMOTE_OPS];
    uint32_t ops;                    /* busy */
    uint32_t syncs;                  /* of disks, before SYNCED is answered */
    enum { MARK_NONE, MARK_MERGE, MARK_SYNC } mark;
    uint64_t mark_epoch;             /* the disks are to have everything up to it */
    uint32_t mark_syncs;
    struct xfer mark_x[REMUS_DISKS_MAX];
    /* Where the primary's disks may differ from what it has sent: a byte for each region. */
    uint8_t *announced[REMUS_DISKS_MAX];
    bool based;
    uint8_t relation[REMUS_DISKS_MAX][REMUS_DISK_RELATION_BYTES];
    struct merge_op merge[MERGE_OPS];
    struct blkio_op punch;           /* of a layer of a disk, in the store */
    bool punching;
    uint32_t punch_disk, punch_layer;
    uint64_t merge_again_us;         /* after an error, not before this */
    struct xfer last_sync[REMUS_DISKS_MAX];
    uint32_t last_syncs;             /* under way */
    bool last_synced;                /* what was merged after a takeover is durable */
    bool ended;                      /* the copy was let go: its requests are nobody's */
    struct job_list stuck, flushes;
};

/* A descriptor that is waited for: whoever finds it not ready any more says so, and it is waited
 * for again when that is wanted. */
struct watch {
    struct blkio_op op;
    bool armed, ready;
};

/* Event channels: what has rung is unmasked at once.  Which it was does not matter, as all rings
 * are looked at in each round. */
struct events {
    struct blkio_op take, give;
    struct iovec in, out;
    uint32_t rung[EVENTS_MAX], answered[EVENTS_MAX];
    uint32_t count;                  /* rung, and not answered yet */
    bool taking, giving, wait;       /* wait: for it to be readable */
};

struct blkd {
    uint32_t domid;
    enum blkd_state state;
    enum blkd_role role;
    bool ctl_open, quit;
    bool quit_merged;                /* ... when what the guest has written is on the disks, and
                                        what was taken is answered */
    bool busy;                       /* there is more to do: do not sleep */
    bool committed;                  /* secondary: the copy is what the primary was */
    bool attached_before;            /* what is kept is our own, and over */
    uint64_t rest_epoch;             /* of the DETACH that is under way */
    uint64_t now_us;
    struct watch ctl, channel_in, channel_out;
    struct events events;
    xengnttab_handle *xgt;
    xenevtchn_handle *xce;
    struct blkio *io;
    struct disk disk[REMUS_DISKS_MAX];
    uint32_t disks;
    struct ring ring[REMUS_RINGS_MAX];
    uint32_t rings;                  /* slots in use */
    struct job *jobs;
    uint32_t free_job[JOBS], free_jobs;
    uint8_t *memory;                 /* PAGES pages */
    uint32_t free_page[PAGES], free_pages;
    uint8_t *indirect;               /* INDIRECT_MAX pages */
    uint8_t *buffers;                /* of slots and operations of the replication */
    struct job_list active;          /* begun, not answered; in no order */
    struct job_list copy;            /* wait for their grant copy */
    struct job_list wait;            /* wait for memory, or for the end of others */
    struct blklog *log;              /* NULL: nothing is noted */
    void *log_memory;
    size_t log_bytes;
    struct keep *keep;
    uint8_t *views;                  /* its part from KEEP_VIEWS on; NULL: not mapped */
    size_t views_bytes;
    struct replication r;
    xengnttab_grant_copy_segment_t copies[COPY_BATCH];
};

/* ---- colo-blkd.c ---- */

/* What the guest knows of its disk. */
void disk_describe(struct disk *d, const struct ctl_disk *info);
/* This daemon is of no more use: the coordinator is told why. */
void blkd_fail(struct blkd *b, const char *text);
/* What waits is written, as far as the channel takes it.  0, or its error. */
int channel_flush(struct blkd *b);
/* What came is read.  As blkchan_fill(). */
int channel_fill(struct blkd *b);
void channel_close(struct blkd *b);

/* ---- blkd_jobs.c ---- */

/* Takes requests and carries on with those that can be. */
void jobs_work(struct blkd *b);
/* Makes the answers visible that there are: last in a round, once all others have worked. */
void jobs_answer(struct blkd *b);
/* Nothing that was taken owes its answer. */
bool jobs_at_rest(const struct blkd *b);
/* Requests of a daemon before this one. */
void jobs_resume(struct blkd *b);
/* A write that was under way on the disk has been sent, or need not be. */
void job_written(struct job *j);
/* A request that waited for something of the replication begins, again. */
void job_again(struct job *j);
/* The copy's memory is about to be replaced: nobody is going to miss this request's answer. */
void job_forget(struct job *j);
/* Whether a request under way touches the range; with writes_only, changes it. */
bool jobs_overlap(const struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors,
                  bool writes_only);

void job_list_add(struct job_list *list, const struct job *j);
/* The first so many are done with. */
void job_list_shift(struct job_list *list, uint32_t count);
void say_if_broken(struct blkd *b, struct ring *ring);

/* ---- blkd_sync.c ---- */

void sync_begin(struct blkd *b, uint32_t kib_a_second);
/* Whether the range is being read for the other host: a write of it waits. */
bool sync_locks(const struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors);
/* A write, or a discard, is about to begin.  Returns whether it is to be sent when it is done;
 * notes it in either case. */
bool sync_notes(struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors);
/* The write is on the disk: sends it, or has it wait for room. */
void sync_send(struct job *j);
/* What is on this disk cannot be told to the other host. */
void sync_failed(struct blkd *b, uint32_t disk, uint64_t sector, int rc);
/* The next disk epoch has begun. */
void sync_epoch(struct blkd *b, uint64_t epoch);
/* Whether the next write of the guest asks for a checkpoint. */
void sync_triggers(struct blkd *b, bool triggers);
/* The guest writes. */
void sync_writes(struct blkd *b);
void sync_work(struct blkd *b);
/* The coordinator's file is where writes are noted.  0 or negative errno. */
int sync_log(struct blkd *b, int fd);
/* No other host any more. */
void sync_end(struct blkd *b);
/* Milliseconds until something is to be done without an event; -1: none. */
int sync_wait_ms(const struct blkd *b);

/* ---- blkd_intent.c ---- */

/* SYNCED is on its way: the copy may take over before long. */
void intent_begin(struct blkd *b);
/* A write may begin now; otherwise it does later. */
bool intent_allows(struct job *j);
/* The disk is not to be changed where that was not announced. */
bool intent_holds(const struct blkd *b);
/* The kernel tells of an error once, and knows nothing of what was lost with it: nothing is durable
 * for certain any more. */
void intent_flush_failed(struct blkd *b);
/* NULL: all right. */
const char *intent_noted(struct blkd *b, uint64_t number);
/* The other host is lost: what may become of it is the coordinator's to know. */
void intent_lost(struct blkd *b);
/* It knows, and nothing is to be announced any more. */
void intent_end(struct blkd *b);
void intent_work(struct blkd *b);
int intent_wait_ms(const struct blkd *b);
void intent_free(struct blkd *b);

/* ---- blkd_copy.c ---- */

void copy_work(struct blkd *b);
/* Whether a run that overlaps the range is on its way to the disk. */
bool copy_locks(const struct blkd *b, uint32_t disk, uint64_t sector, uint64_t sectors);
/* The copy's guest cannot be served: an error that the primary's does not have. */
void copy_failed(struct blkd *b, uint32_t disk, int rc);
/* The coordinator's answer to BLK_OPENED. */
void copy_known(struct blkd *b, uint32_t disk, bool known);
void copy_commit(struct blkd *b, uint64_t epoch);
void copy_takeover(struct blkd *b);
void copy_end(struct blkd *b);
/* A daemon before this one took over, and did not come to an end; the store is in place. */
int copy_resume(struct blkd *b);
int copy_wait_ms(const struct blkd *b);

/* In the order in which it is written here, also for the daemon after this one. */
static inline void keep_store(uint32_t *at, uint32_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

static inline uint32_t job_number(const struct job *j)
{
    return (uint32_t)(j - j->b->jobs);
}

static inline bool ranges_overlap(uint64_t a, uint64_t a_sectors, uint64_t b, uint64_t b_sectors)
{
    return a < b + b_sectors && b < a + a_sectors;
}

/* What a range takes of a store that has blocks of 4 KiB. */
static inline uint64_t store_cost(uint64_t sector, uint64_t sectors)
{
    return ((sector + sectors + 7) / 8 - sector / 8) * 4096u;
}

#endif /* REMUS_BLKD_H */
