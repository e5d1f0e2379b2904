/*
 * remus_disk.h: a guest's disks as the kernel's backend (blkback) serves them, taking them from it
 * under the running guest, and giving them back.
 *
 * blkback lets go of a device, and takes it again, through its driver's unbind and bind files; the
 * frontend's nodes, its ring and its port stay as they are.  What must hold, or a guest loses data:
 *   - no request is under way when it lets go (it returns at once, and completes them later into
 *     memory that another backend uses by then): the guest is paused, and its rings are empty;
 *   - the guest's port is unbound before anybody binds to it, or before blkback takes it again.
 * Whoever is in between attaches at the ring's indices as they are (blkring.h).
 */
#ifndef REMUS_DISK_H
#define REMUS_DISK_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <xenctrl.h>
#include <xengnttab.h>
#include <xenstore.h>

#include "tools/remus/ctl.h"

#define REMUS_DISK_PATH_BYTES  256u
#define REMUS_DISK_RINGS_MAX   16u
#define REMUS_DISK_ERROR_BYTES 256u
#define REMUS_DISK_LOG_BYTES   64u    /* of the path of a guest's log */

/* A disk of a guest, for a host that is to have a copy of it. */
struct remus_disk_place {
    char path[REMUS_DISK_PATH_BYTES]; /* block device or file */
    uint32_t vdev;                    /* the guest's number of it */
    uint64_t sectors;                 /* as the guest knows it */
    uint32_t logical_bytes;           /* of a sector of its own */
    bool read_only;
};

struct remus_disk {
    uint32_t domid;
    char backend[96];              /* node of blkback's side */
    char path[REMUS_DISK_PATH_BYTES]; /* what is behind it, as the guest's configuration says */
    uint32_t major, minor;         /* of the block device in dom0 */
    struct ctl_disk info;          /* .disk: index among the guest's disks */
    uint32_t rings;
    struct ctl_blk_attach ring[REMUS_DISK_RINGS_MAX];
};

/*
 * The guest's disks, in order of their numbers, without drives for which it has no driver.  count:
 * room, then how many.  error: REMUS_DISK_ERROR_BYTES, a sentence.  -ENOTSUP: one is not served by
 * blkback in dom0, or has no medium; -ENOTCONN: one is not connected; -E2BIG: more disks or rings
 * than can be taken.
 */
int remus_disks_read(struct xs_handle *xs, uint32_t domid, struct remus_disk *disks,
                     unsigned int *count, char *error);

/* Opens a disk of the copy, past the page cache where that is possible.  A descriptor, and how
 * large it is; or negative errno. */
int remus_disk_place_open(const struct remus_disk_place *place, uint64_t *sectors);

/* The block device below it, for colo-blkd: past the page cache, as blkback goes; or the file below
 * that, as a loop device goes.  A descriptor, or negative errno with a sentence. */
int remus_disk_open(const struct remus_disk *d, char *error);

/* Until blkback or colo-blkd has answered everything: whoever calls sees to it that the guest makes
 * no more.  0; -ETIMEDOUT. */
int remus_disk_wait_idle(xengnttab_handle *xgt, const struct remus_disk *d,
                         unsigned int timeout_ms);

/*
 * The backend of a copy that has not run yet: from blkback, to which nothing has connected.  Then,
 * when the copy's frontend WAITS, .ring is filled; whoever serves these rings connects.
 */
int remus_disks_unbind(struct xs_handle *xs, uint32_t domid, char *error);
enum remus_disk_frontend { REMUS_DISK_NOT_YET, REMUS_DISK_WAITS, REMUS_DISK_CONNECTED };
enum remus_disk_frontend remus_disk_frontend(struct xs_handle *xs, struct remus_disk *d);
int remus_disk_connect(struct xs_handle *xs, const struct remus_disk *d);

/*
 * What uses a disk's place on this host, if it would be written to: a domain, a loop device, a
 * mount or anything else that has claimed the block device.  "": nothing.
 */
void remus_disk_place_user(struct xs_handle *xs, const struct remus_disk_place *place, char *user,
                           size_t room);

/* Nobody is going to use the disks' backends again: libxl need not wait for their end. */
void remus_disks_close(struct xs_handle *xs, uint32_t domid);

/*
 * From blkback; the guest is paused, once, by the caller (it runs for moments in between where it
 * has made a request and was paused before it could say so).  Waits up to timeout_ms for requests
 * under way (-ETIMEDOUT: blkback still has the disk), then for the port.  Nobody serves the disk
 * afterwards.
 */
int remus_disk_take(xc_interface *xch, xengnttab_handle *xgt, const struct remus_disk *d,
                    unsigned int timeout_ms, char *error);
/* What is kept of the guest's disks (remus_diskrec.h) is removed: whoever does as he likes with
 * them, without a coordinator, says so first.  0 or negative errno. */
int remus_disks_disown(struct xs_handle *xs, uint32_t domid, const char *directory);
/* Whether blkback has it. */
bool remus_disk_served(const struct remus_disk *d);
/* To blkback; nobody is bound to the guest's ports, and what was taken from its rings is answered.
 * The guest may run: its requests wait.  0: connected.  The guest's log is removed first: from here
 * on others write. */
int remus_disk_give(xc_interface *xch, struct xs_handle *xs, const struct remus_disk *d,
                    unsigned int timeout_ms, char *error);

/*
 * The guest's log (blklog.h), in which its colo-blkd notes what it writes.  Whoever has it open
 * holds a lock on it (flock, shared): without that nobody has noted anything.
 */
void remus_disk_log_path(char path[REMUS_DISK_LOG_BYTES], uint32_t domid);

/* The colo-blkd that serves a domain's disks, other than this one; 0: none. */
pid_t remus_disk_daemon(uint32_t domid, pid_t other_than);

/*
 * Between sessions a process may have stayed with the guest's colo-blkd, so that what is written is
 * noted: its minder.  It says so in a file, and can be asked to give the disks to blkback, or to
 * leave them, at rest, to the next one.
 */
int remus_disk_minder_tell(uint32_t domid);
void remus_disk_minder_forget(uint32_t domid);
pid_t remus_disk_minder(uint32_t domid);
#define REMUS_DISK_MINDER_GIVE  SIGTERM
#define REMUS_DISK_MINDER_LEAVE SIGUSR1
/* 0: it has ended; -ESRCH: there is none; -ETIMEDOUT. */
int remus_disk_minder_ask(uint32_t domid, int number);

#endif /* REMUS_DISK_H */
