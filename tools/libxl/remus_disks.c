/* remus_disks.c: see remus_disks.h. */
#include "tools/libxl/remus_disks.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "tools/libxl/remus_preflight.h"

#define CONTROL_MS    5000
#define REST_MS       10000
#define TAKE_MS       5000u
#define GIVE_MS       10000u
#define SETTLE_AGAIN_US 5000000u
#define GIVE_REST_MS  60000         /* of a guest that runs */
#define STOPPED_MS    3000
#define WRITES_MS     5000u
#define LEAVE_MS      70000u        /* another process, its disks */
#define MERGE_MS      600000        /* what a copy has to bring to its disks */
#define WINDOW_MAX    (UINT64_C(512) << 20)
#define WINDOW_MIN    (UINT64_C(96) << 20) /* colo-blkd needs as much */
#define STORE_PARTS   3u            /* overlay, the primary's writes, and room for others */

struct remus_daemon *remus_disks_daemon(const struct remus_run *r)
{
    const struct remus_disks *d = &r->disks;

    return d->starts ? (struct remus_daemon *)&d->daemons[d->starts - 1] : NULL;
}

int remus_disks_fd(const struct remus_run *r)
{
    const struct remus_daemon *d = remus_disks_daemon(r);

    return d ? d->fd : -1;
}

void remus_disks_init(struct remus_disks *d)
{
    unsigned int i;

    d->keep = d->store = d->log = -1;
    d->epoch = 1;
    for (i = 0; i < REMUS_DISKS_MAX; i++)
        d->fd[i] = d->held[i].fd = -1;
    for (i = 0; i < RUN_DISK_DAEMONS; i++)
        d->daemons[i].fd = -1;
}

static void stop_daemon(struct remus_run *r)
{
    if (r->disks.starts)
        remus_run_daemon_stop(remus_disks_daemon(r));
}

static void close_file(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_files(struct remus_disks *d)
{
    unsigned int i;

    for (i = 0; i < REMUS_DISKS_MAX; i++) {
        if (d->held[i].fd != d->fd[i])
            close_file(&d->held[i].fd);
        d->held[i].fd = -1;
        close_file(&d->fd[i]);
    }
    close_file(&d->keep);
    close_file(&d->store);
    close_file(&d->log);
}

static void remove_log(const struct remus_run *r)
{
    char path[REMUS_DISK_LOG_BYTES];

    remus_disk_log_path(path, r->h.domid);
    unlink(path);
}

/* ---- What is kept about this host's disks --------------------------------------------------- */

static const char *path_of(const struct remus_run *r, unsigned int i)
{
    return r->p->role == REMUS_PRIMARY ? r->disks.disk[i].path : r->p->disks[i].path;
}

static const char *directory_of(const struct remus_run *r)
{
    return r->p->role == REMUS_PRIMARY ? REMUS_STORE_DIR : r->p->store;
}

static int record_open(struct remus_run *r, unsigned int i)
{
    const struct remus_disk_held *held = &r->disks.held[i];

    return remus_diskrec_open(directory_of(r), path_of(r, i), held->fd, held->relation);
}

/* A daemon that was killed may have had something under way, which ends before long: see
 * describe(). */
static int wait_for_writes(int disk_fd)
{
    uint64_t deadline = remus_run_now_us() + WRITES_MS * 1000ull;
    char path[32];
    int fd, rc = 0;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", disk_fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    while (!rc && flock(fd, LOCK_EX | LOCK_NB)) {
        rc = remus_run_now_us() > deadline ? -EBUSY : 0;
        usleep(1000);
    }
    close(fd);
    return rc;
}

static void *keeper_thread(void *arg)
{
    struct remus_run *r = arg;
    struct remus_disks *d = &r->disks;
    unsigned int i;
    int rc;

    for (i = 0; i < d->count; i++) {
        struct remus_disk_held *held = &d->held[i];

        if (!held->open)
            continue;
        rc = d->keeper.forget ? remus_diskrec_remove(directory_of(r), path_of(r, i))
             : held->recorded ? remus_diskrec_renew(directory_of(r), path_of(r, i))
                              : record_open(r, i);
        held->recorded |= !rc;
        held->open = held->recorded;
        d->keeper.failed |= rc != 0;
        if (rc)
            fprintf(stderr, "what is kept about %s cannot be written: %s\n", path_of(r, i),
                    strerror(-rc));
    }
    atomic_store(&d->keeper.done, true);
    return NULL;
}

static void keeper_wait(struct remus_disks *d)
{
    unsigned int i;

    if (d->keeper.running)
        pthread_join(d->keeper.thread, NULL);
    d->keeper.running = false;
    for (i = 0; d->keeper.forget && i < d->count; i++)
        d->held[i].open = d->held[i].recorded = false;
}

/* In a thread: it writes to a disk, which may be slow, and the loop has heartbeats to send. */
static void keeper_begin(struct remus_run *r, bool forget)
{
    struct remus_disk_keeper *k = &r->disks.keeper;

    keeper_wait(&r->disks);
    k->us = remus_run_now_us();
    k->forget = forget;
    k->failed = false;
    atomic_store(&k->done, false);
    k->running = !pthread_create(&k->thread, NULL, keeper_thread, r);
    if (!k->running)
        keeper_thread(r);
}

void remus_disks_vouch(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    const bool old = remus_run_now_us() - d->keeper.us > REMUS_DISKREC_RENEW_S * 1000000ull;
    unsigned int i;
    bool any = false;

    if (d->keeper.running && !atomic_load(&d->keeper.done))
        return;
    keeper_wait(d);
    if (d->keeper.forget_next) {
        d->keeper.forget_next = false;
        keeper_begin(r, true);
        return;
    }
    if (d->keeper.tell_local) {
        d->keeper.tell_local = false;
        /* Otherwise colo-blkd waits until a record that nobody renews is worth nothing. */
        if (!d->keeper.failed)
            ctl_say(remus_disks_fd(r), CTL_BLK_LOCAL, 0, 0, NULL);
    }
    for (i = 0; i < d->count; i++)
        any |= d->held[i].open && (old || !d->held[i].recorded);
    if (any)
        keeper_begin(r, false);
}

/* The primary's disks go their own way from here on: durable before they do. */
static void records_revoke(struct remus_run *r)
{
    r->disks.keeper.forget_next = r->disks.keeper.tell_local = false;
    keeper_begin(r, true);
    keeper_wait(&r->disks);
}

/* The session is over, and colo-blkd has ended: what is on the disks of the side that does not go
 * on stays as it is. */
static void records_close(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    unsigned int i;
    int rc;

    if ((r->p->role == REMUS_PRIMARY && !d->stopped) || d->keeper.forget_next) {
        records_revoke(r);
        return;
    }
    keeper_wait(d);
    for (i = 0; i < d->count; i++) {
        struct remus_disk_held *held = &d->held[i];

        if (!held->open)
            continue;
        held->open = held->recorded = false;
        rc = d->starts && remus_disks_daemon(r)->killed ? wait_for_writes(held->fd) : 0;
        if (!rc)
            rc = remus_diskrec_close(directory_of(r), path_of(r, i), held->fd, held->relation);
        if (rc) {
            remus_run_log(r, XC_SR_WARN, "%s will be compared as a whole next time: %s",
                          path_of(r, i), strerror(-rc));
            /* One that is open would be proof again after the next boot. */
            remus_diskrec_remove(directory_of(r), path_of(r, i));
        }
    }
}

/*
 * The primary has noted what may differ, from a disk of this relation.  What was recorded is gone
 * before colo-blkd writes: it waits for the answer.  The relation of this session follows.
 */
static void disk_opened(struct remus_run *r, uint32_t i, const uint8_t *relation)
{
    struct remus_disks *d = &r->disks;
    uint8_t kept[BLKLOG_RELATION_BYTES];
    char why[REMUS_DISKREC_WHY_BYTES] = "it was made equal to another disk";
    bool known;
    int rc;

    if (i >= d->count || r->p->role != REMUS_SECONDARY)
        return;
    keeper_wait(d);
    known = !remus_diskrec_check(directory_of(r), path_of(r, i), d->fd[i], kept, why) &&
            !memcmp(kept, relation, sizeof(kept));
    if (!known)
        remus_run_log(r, XC_SR_INFO, "%s is compared as a whole: %s", path_of(r, i), why);
    rc = remus_diskrec_remove(directory_of(r), path_of(r, i));
    if (rc) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "what is kept about %s cannot be "
                       "written: %s", path_of(r, i), strerror(-rc));
        return;
    }
    ctl_say(remus_disks_fd(r), CTL_BLK_KNOWN, i, known, NULL);
}

/*
 * Both hosts keep of their disks whose they are: the one that does not go on is brought up to date
 * by what is noted on the other.  A primary's is worth that only if it dies; a block device would
 * not tell that it was written to later.  It is the file that colo-blkd writes to: its name may be
 * another one's by now.
 */
static void disk_related(struct remus_run *r, uint32_t i, const uint8_t *relation)
{
    struct remus_disks *d = &r->disks;
    struct remus_disk_held *held = &d->held[i < REMUS_DISKS_MAX ? i : 0];
    char error[REMUS_DISK_ERROR_BYTES];
    struct stat st;

    if (i >= d->count)
        return;
    keeper_wait(d);
    if (r->p->role == REMUS_PRIMARY) {
        if (d->disk[i].info.read_only)
            return;
        mkdir(REMUS_STORE_DIR, 0700);
        close_file(&held->fd);
        held->fd = remus_disk_open(&d->disk[i], error);
        if (held->fd >= 0 && (fstat(held->fd, &st) || !S_ISREG(st.st_mode)))
            close_file(&held->fd);
    } else {
        held->fd = d->fd[i];
    }
    memcpy(held->relation, relation, sizeof(held->relation));
    held->open = held->fd >= 0;     /* recorded before long: remus_disks_vouch() */
    held->recorded = false;
}

void remus_disks_channel_lost(struct remus_run *r)
{
    if (r->p->role != REMUS_PRIMARY || r->disks.stopped)
        return;
    r->disks.keeper.forget_next = r->disks.keeper.tell_local = true;
    remus_disks_vouch(r);
}

void remus_disks_dispose(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;

    stop_daemon(r);
    records_close(r);
    if (r->p->role == REMUS_SECONDARY && d->log >= 0)
        remove_log(r);
    close_files(d);
    if (d->xgt)
        xengnttab_close(d->xgt);
}

bool remus_disks_control(struct remus_run *r, const struct ctl_in *in)
{
    struct remus_disks *d = &r->disks;

    switch (in->msg.type) {
    case CTL_DETACHED:
        d->rested |= d->resting && in->msg.epoch == d->rests;
        return true;
    case CTL_BLK_SYNCED:
        d->synced = true;
        return true;
    case CTL_BLK_EPOCH:
        d->epoch = in->msg.epoch;
        return true;
    case CTL_BLK_OPENED:
        disk_opened(r, in->msg.code, in->structs.relation.bytes);
        return true;
    case CTL_BLK_RELATED:
        disk_related(r, in->msg.code, in->structs.relation.bytes);
        return true;
    default:
        return false;
    }
}

/* ---- The daemon ----------------------------------------------------------------------------- */

/* role NULL: no other host. */
static int start_daemon(struct remus_run *r, char *role)
{
    struct remus_disks *d = &r->disks;
    char domid[16];
    char *args[] = { "colo-blkd", "--domid", domid, role ? "--role" : NULL, role, NULL };
    struct remus_daemon *daemon;

    if (d->starts == RUN_DISK_DAEMONS)
        return -EBUSY;
    if (d->keep < 0)
        d->keep = memfd_create("colo-blkd", MFD_CLOEXEC);
    if (d->keep < 0)
        return -errno;
    snprintf(domid, sizeof(domid), "%u", r->h.domid);
    daemon = &d->daemons[d->starts++];
    daemon->quit_ms = MERGE_MS;
    return remus_run_daemon_start(r, daemon, args, role ? r->p->disk_fd : -1, d->keep);
}

/* A message with descriptors or structures, and the answer to it. */
static int ask(struct remus_run *r, const struct ctl_msg *msg, const void *structs, const int *fd,
               uint32_t answer)
{
    int rc = ctl_send_wait(remus_disks_fd(r), msg, structs, NULL, fd, fd ? 1 : 0, CONTROL_MS);

    return rc ? rc : remus_run_daemon_wait(remus_disks_daemon(r), answer, REST_MS);
}

/*
 * I/O of a daemon that was killed may be under way for a while.  It holds the daemon's open file
 * description, and so the lock on that: one that is shared for each daemon, and nobody's while
 * another takes its place.
 */
static int describe(struct remus_run *r, unsigned int i, int shared_fd)
{
    const struct ctl_msg msg = { .type = CTL_DISK, .count = 1 };
    struct remus_disks *d = &r->disks;
    /* One of a session before this one may have been killed, too. */
    const bool must_wait = (d->starts > 1 || r->p->role == REMUS_SECONDARY) &&
                           !d->disk[i].info.read_only && !r->p->shared_disks;
    uint64_t deadline = remus_run_now_us() + REST_MS * 1000;
    char path[32];
    int fd, rc;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", shared_fd);
    fd = open(path, (fcntl(shared_fd, F_GETFL) & (O_ACCMODE | O_DIRECT)) | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    while (must_wait && flock(fd, LOCK_EX | LOCK_NB)) {
        if (remus_run_now_us() > deadline && r->p->role == REMUS_SECONDARY && d->starts == 1 &&
            remus_diskrec_is_open(r->p->store, r->p->disks[i].path)) {
            remus_run_log(r, XC_SR_ERROR, "%s is still being brought up to date for a session "
                          "before this one", r->p->disks[i].path);
            close(fd);
            return -EBUSY;
        }
        if (remus_run_now_us() > deadline) {
            remus_run_log(r, XC_SR_WARN, "something else holds disk %u of the guest (vdev %u), "
                          "I/O of the daemon before or another guest: it is served all the same", i,
                          d->disk[i].info.vdev);
            break;
        }
        usleep(1000);
    }
    rc = flock(fd, LOCK_SH | LOCK_NB) && errno != EWOULDBLOCK ? -errno
         : ask(r, &msg, &d->disk[i].info, &fd, CTL_READY);
    close(fd);
    return rc;
}

static int give_store(struct remus_run *r)
{
    const struct ctl_msg msg = { .type = CTL_BLK_STORE, .epoch = r->disks.window };

    return ask(r, &msg, NULL, &r->disks.store, CTL_READY);
}

static int describe_devices(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    char error[REMUS_DISK_ERROR_BYTES];
    unsigned int i;
    int rc = 0;

    for (i = 0; !rc && i < d->count; i++) {
        int fd = d->fd[i] >= 0 ? dup(d->fd[i]) : remus_disk_open(&d->disk[i], error);

        if (fd < 0) {
            remus_run_log(r, XC_SR_ERROR, "%s", error);
            return fd;
        }
        rc = describe(r, i, fd);
        close(fd);
    }
    return rc;
}

static int attach(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    struct ctl_blk_attach rings[REMUS_RINGS_MAX];
    struct ctl_msg msg = { .type = CTL_BLK_ATTACH };
    unsigned int i, k;

    for (i = 0; i < d->count; i++)
        for (k = 0; k < d->disk[i].rings; k++) {
            if (msg.count == REMUS_RINGS_MAX)
                return -E2BIG;
            rings[msg.count++] = d->disk[i].ring[k];
        }
    return ask(r, &msg, rings, NULL, CTL_ATTACHED);
}

static int read_disks(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    char error[REMUS_DISK_ERROR_BYTES] = "";
    int rc;

    d->count = REMUS_DISKS_MAX;
    rc = remus_disks_read(r->xs, r->h.domid, d->disk, &d->count, error);
    if (rc)
        remus_run_log(r, XC_SR_ERROR, "%s", error);
    return rc;
}

static int open_grants(struct remus_run *r)
{
    r->disks.xgt = xengnttab_open(NULL, 0);
    return r->disks.xgt ? 0 : -errno;
}

static int failed(struct remus_run *r, const char *what, int rc)
{
    if (rc)
        remus_run_log(r, XC_SR_ERROR, "the guest's disks cannot be %s: %s", what, strerror(-rc));
    return rc;
}

/* ---- Primary: what is noted ----------------------------------------------------------------- */

/* Another process of ours has the disks since a session, and notes what is written. */
static bool are_minded(const struct remus_run *r)
{
    const struct remus_disks *d = &r->disks;
    char path[REMUS_DISK_LOG_BYTES];
    bool minded;
    unsigned int i;
    int fd;

    remus_disk_log_path(path, r->h.domid);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return false;
    minded = flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
    close(fd);
    for (i = 0; minded && i < d->count; i++)
        minded = !remus_disk_served(&d->disk[i]);
    return minded;
}

/* From that process: the guest's requests wait from here on. */
static int take_from_minder(struct remus_run *r)
{
    uint64_t deadline = remus_run_now_us() + LEAVE_MS * 1000ull;
    char path[REMUS_DISK_LOG_BYTES];
    pid_t orphan;
    int fd, rc;

    rc = remus_disk_minder_ask(r->h.domid, REMUS_DISK_MINDER_LEAVE);
    /* One that was killed has left a colo-blkd alone, which serves and notes on. */
    orphan = rc != -ESRCH ? 0
             : remus_disk_daemon(r->h.domid, uv_process_get_pid(&remus_disks_daemon(r)->process));
    if (orphan)
        kill(orphan, SIGTERM);
    if (rc == -ESRCH)
        remus_disk_minder_forget(r->h.domid);
    remus_disk_log_path(path, r->h.domid);
    fd = open(path, O_RDWR | O_CLOEXEC);
    rc = fd < 0 ? -errno : -EAGAIN;
    while (rc == -EAGAIN) {
        rc = !flock(fd, LOCK_EX | LOCK_NB) ? 0 : remus_run_now_us() > deadline ? -ETIMEDOUT
             : -EAGAIN;
        usleep(1000);
    }
    if (fd >= 0)
        close(fd);
    if (rc)
        remus_run_log(r, XC_SR_ERROR, "the process that serves the guest's disks since the last "
                      "session does not let go of them: %s", strerror(-rc));
    return rc;
}

/* Maps the log and looks into it.  Nobody else does, now.  fresh: it is a new one. */
static int check_log(struct remus_run *r, int fd, bool fresh)
{
    struct remus_disks *d = &r->disks;
    uint64_t sectors[REMUS_DISKS_MAX], due = 0;
    struct blklog *log = NULL;
    unsigned int i;
    size_t bytes;
    void *memory;
    int rc = 0;

    for (i = 0; i < d->count; i++)
        sectors[i] = d->disk[i].info.sectors;
    bytes = blklog_bytes(sectors, d->count);
    /* All of its memory: a mark that finds none would be the end of who makes it (SIGBUS). */
    if (fresh ? fallocate(fd, 0, 0, (off_t)bytes) : lseek(fd, 0, SEEK_END) != (off_t)bytes)
        return fresh ? -errno : -EINVAL;
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    if (fresh)
        blklog_format(memory, sectors, d->count);
    else
        rc = blklog_open(&log, memory, bytes, sectors, d->count);
    for (i = 0; log && i < d->count; i++)
        due += blklog_due_bytes(log, i);
    if (log)
        remus_run_log(r, XC_SR_INFO, "since the last session, at most %" PRIu64 " KiB of the "
                      "guest's disks were written", due >> 10);
    blklog_free(log);
    munmap(memory, bytes);
    return rc;
}

/*
 * The file that is there, if it is good; otherwise a new one.  In memory: a host that is started
 * anew has not noted what was written since.
 */
static int open_log(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    char path[REMUS_DISK_LOG_BYTES];
    int rc = -ENOENT;

    remus_disk_log_path(path, r->h.domid);
    if (d->minded && !r->p->shared_disks) {
        d->log = open(path, O_RDWR | O_CLOEXEC);
        rc = d->log < 0 ? -errno : check_log(r, d->log, false);
    }
    if (rc) {
        if (d->log >= 0)
            close(d->log);
        remove_log(r);
        d->log = -1;
        if (r->p->shared_disks)
            return 0;
        d->log = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        rc = d->log < 0 ? -errno : check_log(r, d->log, true);
    }
    return rc ? rc : flock(d->log, LOCK_SH | LOCK_NB) ? -errno : 0;
}

/* Nobody is to take it for one in which everything is noted. */
static void drop_log(struct remus_run *r)
{
    close_file(&r->disks.log);
    remove_log(r);
}

static int give_log(struct remus_run *r)
{
    const struct ctl_msg msg = { .type = CTL_BLK_LOG };

    return r->disks.log < 0 ? 0 : ask(r, &msg, NULL, &r->disks.log, CTL_READY);
}

/* ---- Primary -------------------------------------------------------------------------------- */

int remus_disks_open(struct remus_run *r)
{
    int rc = read_disks(r);

    if (rc || !r->disks.count)
        return rc;
    r->disks.minded = are_minded(r);
    rc = open_grants(r);
    if (!rc)
        rc = start_daemon(r, "primary");
    if (!rc)
        rc = describe_devices(r);
    return failed(r, "opened", rc);
}

static int take_all(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    char error[REMUS_DISK_ERROR_BYTES] = "";
    unsigned int i, taken;
    int rc = 0, back;

    for (taken = 0; !rc && taken < d->count; taken++)
        rc = d->minded ? 0 : remus_disk_take(r->h.xch, d->xgt, &d->disk[taken], TAKE_MS, error);
    if (!rc) {
        rc = attach(r);
        snprintf(error, sizeof(error), "colo-blkd does not attach to the guest's disks: %s",
                 strerror(-rc));
    }
    if (!rc)
        return 0;
    remus_run_log(r, XC_SR_ERROR, "%s", error);
    stop_daemon(r);
    for (i = 0; i < taken; i++) {
        if (remus_disk_served(&d->disk[i]))
            continue;           /* it was the one that could not be taken */
        back = remus_disk_give(r->h.xch, r->xs, &d->disk[i], GIVE_MS, error);
        if (back && back != -ENODEV && back != -EBUSY)
            remus_run_log(r, XC_SR_ERROR, "%s", error);
    }
    return rc;
}

int remus_disks_protect(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    uint64_t began = remus_run_now_us();
    int rc;

    if (!d->count) {
        d->synced = true;
        return 0;
    }
    rc = d->minded ? take_from_minder(r) : 0;
    if (rc)
        return rc;
    rc = open_log(r);
    if (!rc)
        rc = give_log(r);
    if (rc) {
        drop_log(r);
        remus_run_log(r, XC_SR_ERROR, "what the guest writes cannot be noted: %s", strerror(-rc));
    }
    if (rc && !d->minded)
        return rc;
    if (xc_domain_pause(r->h.xch, r->h.domid))
        return -errno;
    rc = take_all(r);
    d->taken = !rc;
    xc_domain_unpause(r->h.xch, r->h.domid);
    if (rc)
        return rc;
    remus_run_log(r, XC_SR_INFO, "%u disk%s taken over, guest paused for %" PRIu64 " us", d->count,
                  d->count > 1 ? "s" : "", remus_run_now_us() - began);
    remus_disks_watch_closing(r);
    rc = ctl_say(remus_disks_fd(r), CTL_GO, 0, d->epoch, NULL);
    if (!rc)
        rc = ctl_say(remus_disks_fd(r), CTL_BLK_SYNC, r->p->shared_disks ? CTL_BLK_SHARED
                     : r->p->sync_kib, 0, NULL);
    return rc;
}

unsigned int remus_disks_refs(const struct remus_run *r, uint32_t *refs, unsigned int max)
{
    unsigned int i, k, p, n = 0;

    for (i = 0; i < r->disks.count; i++)
        for (k = 0; k < r->disks.disk[i].rings; k++) {
            const struct ctl_blk_attach *ring = &r->disks.disk[i].ring[k];

            for (p = 0; p < ring->pages && n < max; p++)
                refs[n++] = ring->refs[p];
        }
    return n;
}

int remus_disks_rest(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;

    if (!d->taken || d->resting)
        return 0;
    d->resting = true;
    d->rested = false;
    return ctl_say(remus_disks_fd(r), CTL_DETACH, 0, ++d->rests, NULL);
}

void remus_disks_go(struct remus_run *r, bool cut, bool triggers)
{
    struct remus_disks *d = &r->disks;

    if (!d->taken || !d->resting)
        return;
    d->resting = d->rested = false;
    d->epoch += cut;
    ctl_say(remus_disks_fd(r), CTL_GO, triggers, d->epoch, NULL);
}

void remus_disks_revive(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    const bool unmerged = r->p->role == REMUS_SECONDARY && !d->synced;
    int rc;

    if (!d->taken || (r->p->role == REMUS_SECONDARY && !d->taken_over))
        return;
    if (r->p->role == REMUS_PRIMARY)
        records_revoke(r);
    /* Its control socket and process stay with the struct that had them. */
    rc = start_daemon(r, NULL);
    if (!rc)
        rc = describe_devices(r);
    if (!rc && unmerged)
        rc = give_store(r);
    if (!rc)
        rc = give_log(r);
    if (!rc)
        rc = attach(r);
    if (!rc)
        rc = ctl_say(remus_disks_fd(r), CTL_GO, 0, 0, NULL);
    d->resting = d->rested = false;
    if (rc && unmerged)
        xc_domain_pause(r->h.xch, r->h.domid); /* what it would read is not what it wrote */
    if (rc)
        failed(r, unmerged ? "served again after colo-blkd's death; it is paused" :
               "served again after colo-blkd's death", rc);
    else
        remus_run_log(r, XC_SR_WARN, "another colo-blkd serves the guest's disks; they are not "
                      "replicated any more");
}

/* The copy goes on, and has been told where these disks may differ from its own: that is true as
 * long as nothing else is written.  Whether all that was taken could be answered without. */
static bool ends_as_told(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    int rc = d->keeper.forget_next || d->keeper.tell_local ? -ECANCELED
             : ctl_say(remus_disks_fd(r), CTL_DETACH, 0, ++d->rests, NULL);

    if (!rc)
        rc = remus_run_daemon_wait_for(remus_disks_daemon(r), CTL_DETACHED, d->rests, STOPPED_MS);
    d->stopped = !rc;
    if (!rc) {
        stop_daemon(r);
        records_close(r);
        remove_log(r);
    }
    return !rc;
}

/*
 * All that the guest has asked is answered, and colo-blkd takes no more.  One that died has left
 * requests without an answer, which another one knows of: it is started for that.
 */
static int bring_to_rest(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    unsigned int tries = 2;
    int rc;

    while (tries--) {
        rc = ctl_say(remus_disks_fd(r), CTL_DETACH, 0, ++d->rests, NULL);
        if (!rc)
            rc = remus_run_daemon_wait_for(remus_disks_daemon(r), CTL_DETACHED, d->rests,
                                           GIVE_REST_MS);
        if (rc != -EPIPE && rc != -ECONNRESET)
            break;
        /* Its end may not have been noticed, and is not news any more. */
        remus_disks_daemon(r)->expected_to_end = remus_disks_daemon(r)->killed = true;
        if (tries) {
            remus_run_log(r, XC_SR_WARN, "colo-blkd died while it gave the guest's disks back");
            remus_disks_revive(r);
        }
    }
    return rc;
}

void remus_disks_give(struct remus_run *r, enum remus_disks_fate fate)
{
    struct remus_disks *d = &r->disks;
    char error[REMUS_DISK_ERROR_BYTES] = "";
    uint64_t began = remus_run_now_us();
    unsigned int i;
    int rc = 0;

    if (!d->taken)
        return;
    if (fate == REMUS_DISKS_LEFT && d->stopped && ends_as_told(r)) {
        d->taken = false;
        return;
    }
    records_revoke(r);
    ctl_say(remus_disks_fd(r), CTL_BLK_LOCAL, 0, 0, NULL);
    if (fate != REMUS_DISKS_CLOSED)
        rc = bring_to_rest(r);
    d->taken = false;
    /* Whoever binds to a ring whose requests are not all answered loses some. */
    if (rc && remus_disks_fd(r) >= 0) {
        failed(r, "brought to rest; colo-blkd goes on serving them, and ends after it was told to "
               "by SIGTERM", rc);
        ctl_say(remus_disks_fd(r), CTL_GO, 0, d->epoch, NULL);
        remus_run_daemon_leave(remus_disks_daemon(r));
        return;
    }
    stop_daemon(r);
    if (r->p->role == REMUS_PRIMARY)
        remove_log(r);
    if (fate == REMUS_DISKS_CLOSED)
        remus_disks_close(r->xs, r->h.domid);
    if (fate != REMUS_DISKS_SERVED)
        return;
    for (i = 0; i < d->count; i++) {
        rc = remus_disk_give(r->h.xch, r->xs, &d->disk[i], GIVE_MS, error);
        if (rc)
            remus_run_log(r, XC_SR_ERROR, "%s", error);
    }
    remus_run_log(r, XC_SR_INFO, "disks given back to the kernel's backend after %" PRIu64 " us",
                  remus_run_now_us() - began);
}

bool remus_disks_keep(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;

    if (!d->taken || d->log < 0 || remus_disks_fd(r) < 0)
        return false;
    remus_disks_go(r, false, false);
    records_revoke(r);
    d->kept = !ctl_say(remus_disks_fd(r), CTL_BLK_LOCAL, 0, 0, NULL);
    if (d->kept)
        remus_run_log(r, XC_SR_INFO, "colo-blkd serves the guest's disks on, and notes what is "
                      "written");
    return d->kept;
}

void remus_disks_leave(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    int rc = bring_to_rest(r);

    d->taken = false;
    if (rc && remus_disks_fd(r) >= 0) {
        failed(r, "brought to rest; colo-blkd goes on serving them", rc);
        ctl_say(remus_disks_fd(r), CTL_GO, 0, d->epoch, NULL);
        remus_run_daemon_leave(remus_disks_daemon(r));
    } else {
        stop_daemon(r);
    }
    close_file(&d->log);            /* it is the next session's, whose sign is its lock */
}

/* ---- Secondary ------------------------------------------------------------------------------ */

static int open_place(struct remus_run *r, const struct remus_disk_place *place)
{
    uint64_t sectors = 0;
    int fd = remus_disk_place_open(place, &sectors);

    if (fd < 0) {
        remus_run_log(r, XC_SR_ERROR, "%s, a disk of the guest, does not open here: %s",
                      place->path, strerror(-fd));
    } else if (sectors < place->sectors) {
        remus_run_log(r, XC_SR_ERROR, "%s is too small here: %" PRIu64 " sectors, the guest's disk "
                      "has %" PRIu64, place->path, sectors, place->sectors);
        close(fd);
        fd = -ENOSPC;
    }
    return fd;
}

/* A file without a name, and how much each of its two parts may hold. */
static int open_store(struct remus_run *r, uint64_t *window)
{
    const char *path = r->p->store;
    struct statvfs fs;
    uint64_t room;
    int fd, rc;

    if (mkdir(path, 0700) && errno != EEXIST)
        goto failed;
    fd = open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        goto failed;
    if (fstatvfs(fd, &fs)) {
        rc = -errno;
        close(fd);
        errno = -rc;
        goto failed;
    }
    room = (uint64_t)fs.f_bavail * fs.f_frsize / STORE_PARTS;
    *window = (room < WINDOW_MAX ? room : WINDOW_MAX) & ~4095ull;
    if (*window < WINDOW_MIN) {
        remus_run_log(r, XC_SR_ERROR, "%s has room for %" PRIu64 " MiB, and %" PRIu64 " are needed "
                      "for what is not on the copy's disks yet (--store names another directory)",
                      path, room * STORE_PARTS >> 20, WINDOW_MIN * STORE_PARTS >> 20);
        close(fd);
        return -ENOSPC;
    }
    return fd;
failed:
    rc = -errno;
    remus_run_log(r, XC_SR_ERROR, "no file can be made in %s for what is not on the copy's disks "
                  "yet: %s (--store names another directory)", path, strerror(-rc));
    return rc;
}

int remus_disks_receive(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    unsigned int i;
    int rc;

    d->epoch = 0;
    if (!r->p->disk_count)
        return 0;
    d->store = open_store(r, &d->window);
    if (d->store < 0)
        return d->store;
    rc = start_daemon(r, "secondary");
    if (!rc)
        rc = give_store(r);
    for (i = 0; !rc && i < r->p->disk_count; i++) {
        const struct remus_disk_place *place = &r->p->disks[i];

        d->fd[i] = open_place(r, place);
        if (d->fd[i] < 0)
            return d->fd[i];
        /* What the guest was told of it comes from the primary's colo-blkd. */
        d->disk[i].info = (struct ctl_disk){
            .disk = i, .vdev = place->vdev, .sectors = place->sectors,
            .logical_bytes = place->logical_bytes, .read_only = place->read_only,
        };
        rc = describe(r, i, d->fd[i]);
    }
    d->count = r->p->disk_count;
    if (!rc)
        rc = ctl_say(remus_disks_fd(r), CTL_BLK_SYNC, 0, 0, NULL);
    return failed(r, "kept up to date", rc);
}

int remus_disks_adopt(struct remus_run *r)
{
    char error[REMUS_DISK_ERROR_BYTES] = "", path[64];
    struct remus_disks *d = &r->disks;
    unsigned int i;
    int rc;

    if (!d->count)
        return 0;
    rc = remus_disks_unbind(r->xs, r->h.domid, error);
    if (rc)
        remus_run_log(r, XC_SR_ERROR, "%s", error);
    for (i = 0; i < d->count; i++)
        d->disk[i].domid = r->h.domid;
    /* For the time after a takeover. */
    if (!rc && (open_log(r) || give_log(r))) {
        drop_log(r);
        remus_run_log(r, XC_SR_WARN, "after a takeover the disks will have to be compared as a "
                      "whole");
    }
    snprintf(path, sizeof(path), "/local/domain/%u/device/vbd", r->h.domid);
    xs_watch(r->xs, path, "connecting");
    d->taken = !rc;
    return rc;
}

/*
 * The copy's own writes, until its memory is replaced for the first time, go where all of them go:
 * into the overlay.
 */
int remus_disks_connect(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    unsigned int i, waits = 0, connected = 0;
    int rc = 0;

    for (i = 0; i < d->count; i++) {
        switch (remus_disk_frontend(r->xs, &d->disk[i])) {
        case REMUS_DISK_WAITS:
            waits++;
            break;
        case REMUS_DISK_CONNECTED:
            connected++;
            break;
        case REMUS_DISK_NOT_YET:
            break;
        }
    }
    if (d->connected || waits < d->count)
        return connected == d->count;
    rc = attach(r);
    for (i = 0; !rc && i < d->count; i++)
        rc = remus_disk_connect(r->xs, &d->disk[i]);
    if (!rc)
        rc = remus_disks_run(r);
    d->connected = !rc;
    return rc;
}

int remus_disks_detach(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    const struct ctl_msg msg = { .type = CTL_DETACH, .epoch = ++d->rests };

    return d->taken ? ask(r, &msg, NULL, NULL, CTL_DETACHED) : 0;
}

int remus_disks_commit(struct remus_run *r, uint64_t epoch)
{
    const struct ctl_msg msg = { .type = CTL_BLK_COMMIT, .epoch = epoch };

    return r->disks.taken ? ask(r, &msg, NULL, NULL, CTL_BLK_COMMITTED) : 0;
}

static int attach_all(struct remus_run *r, bool moved)
{
    struct ctl_disk info[REMUS_DISKS_MAX];
    struct remus_disks *d = &r->disks;
    const unsigned int count = d->count;
    unsigned int i;
    int rc;

    if (!d->taken)
        return 0;
    if (!moved)
        return attach(r);
    for (i = 0; i < count; i++)
        info[i] = d->disk[i].info;
    rc = read_disks(r);
    if (!rc && d->count != count)
        rc = -ENODEV;
    for (i = 0; i < count; i++)
        d->disk[i].info = info[i];
    d->count = count;
    return rc ? rc : attach(r);
}

int remus_disks_attach(struct remus_run *r, bool moved)
{
    r->disks.resting = r->disks.rested = false;
    return attach_all(r, moved);
}

int remus_disks_run(struct remus_run *r)
{
    return r->disks.taken ? ctl_say(remus_disks_fd(r), CTL_GO, 0, 0, NULL) : 0;
}

/* The disks' records are of no more use, and wrong soon: they go while the takeover goes on. */
int remus_disks_takeover(struct remus_run *r)
{
    const struct ctl_msg msg = { .type = CTL_FAILOVER };
    int rc = 0;

    if (r->disks.taken && !r->disks.taken_over) {
        r->disks.keeper.forget_next = true;
        remus_disks_vouch(r);
        rc = ask(r, &msg, NULL, NULL, CTL_ACTIVE);
        r->disks.taken_over = !rc;
    }
    return rc;
}

/* Where their rings are may have been told by the copy's frontends only, in parts. */
void remus_disks_settle(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    char error[REMUS_DISK_ERROR_BYTES] = "";
    unsigned int i;

    if (!d->count || d->settled || (d->taken && !d->synced) || remus_run_now_us() < d->settle_us)
        return;
    d->settle_us = remus_run_now_us() + SETTLE_AGAIN_US;
    if (read_disks(r))
        return;
    if (d->taken && r->p->keep_disks != REMUS_KEEP_NEVER && d->log >= 0 &&
        !remus_disk_minder_tell(r->h.domid)) {
        remus_run_log(r, XC_SR_INFO, "colo-blkd serves the guest's disks on, and notes what is "
                      "written");
        d->kept = d->settled = true;
        return;
    }
    if (d->taken)
        remus_disks_give(r, REMUS_DISKS_SERVED);
    d->settled = true;
    for (i = 0; i < d->count; i++) {
        if (!remus_disk_served(&d->disk[i]) &&
            remus_disk_give(r->h.xch, r->xs, &d->disk[i], GIVE_MS, error)) {
            remus_run_log(r, XC_SR_ERROR, "%s; trying again", error);
            d->settled = false;
        }
    }
    if (d->settled) {
        keeper_wait(d);
        close_files(d);
    }
}

/* What another session, or an operator, has asked of those that were kept. */
void remus_disks_obey(struct remus_run *r)
{
    struct remus_disks *d = &r->disks;
    const int request = r->p->stop_request ? *r->p->stop_request : 0;

    if (!d->kept || !request)
        return;
    *r->p->stop_request = 0;
    d->kept = false;
    if (request == 1)
        remus_disks_give(r, REMUS_DISKS_SERVED);
    else
        remus_disks_leave(r);
    remus_disk_minder_forget(r->h.domid);
}

bool remus_disks_settled(const struct remus_run *r)
{
    return !r->disks.count || r->disks.settled;
}

void remus_disks_answer_closing(struct remus_run *r)
{
    const struct remus_disks *d = &r->disks;
    unsigned int i;

    for (i = 0; d->taken && i < d->count; i++) {
        char path[80], *state;
        unsigned int length;

        snprintf(path, sizeof(path), "/local/domain/0/backend/vbd/%u/%u/state", r->h.domid,
                 d->disk[i].info.vdev);
        state = xs_read(r->xs, XBT_NULL, path, &length);
        if (state && !strcmp(state, "5"))
            xs_write(r->xs, XBT_NULL, path, "6", 1);
        free(state);
    }
}

void remus_disks_watch_closing(struct remus_run *r)
{
    char path[64];

    if (!r->disks.taken)
        return;
    snprintf(path, sizeof(path), "/local/domain/0/backend/vbd/%u", r->h.domid);
    xs_watch(r->xs, path, "closing");
}

void remus_disks_end(struct remus_run *r)
{
    if (!r->disks.count)
        return;
    if (r->disks.starts && r->core.state != RS_ACTIVE) {
        /* The copy is let go; what was committed is brought to the disks meanwhile, however long
         * that takes: see remus_disks_dispose(). */
        remus_disks_daemon(r)->expected_to_end = true;
        ctl_say(remus_disks_fd(r), CTL_QUIT, 0, 0, NULL);
    } else {
        stop_daemon(r);
    }
    if (r->h.domid)
        remus_disks_close(r->xs, r->h.domid);
}
