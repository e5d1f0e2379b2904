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

#include <stdint.h>

#include <xenctrl.h>
#include <xengnttab.h>
#include <xenstore.h>

#include "tools/remus/ctl.h"

#define REMUS_DISK_RINGS_MAX   16u
#define REMUS_DISK_ERROR_BYTES 256u

struct remus_disk {
    uint32_t domid;
    char backend[96];              /* node of blkback's side */
    uint32_t major, minor;         /* of the block device in dom0 */
    struct ctl_disk info;          /* .disk: index among the guest's disks */
    uint32_t rings;
    struct ctl_blk_attach ring[REMUS_DISK_RINGS_MAX];
};

/*
 * The guest's disks, in order of their numbers.  count: room, then how many.  error:
 * REMUS_DISK_ERROR_BYTES, a sentence.  -ENOTSUP: one is not served by blkback in dom0, or has no
 * medium; -ENOTCONN: one is not connected; -E2BIG: more disks or rings than can be taken.
 */
int remus_disks_read(struct xs_handle *xs, uint32_t domid, struct remus_disk *disks,
                     unsigned int *count, char *error);

/* The block device below it, for colo-blkd: past the page cache, as blkback goes.  A descriptor, or
 * negative errno with a sentence. */
int remus_disk_open(const struct remus_disk *d, char *error);

/*
 * From blkback; the guest is paused, once, by the caller (it runs for moments in between where it
 * has made a request and was paused before it could say so).  Waits up to timeout_ms for requests
 * under way (-ETIMEDOUT: blkback still has the disk), then for the port.  Nobody serves the disk
 * afterwards.
 */
int remus_disk_take(xc_interface *xch, xengnttab_handle *xgt, const struct remus_disk *d,
                    unsigned int timeout_ms, char *error);
/* To blkback; the guest is paused or suspended, and nobody is bound to its ports.  0: connected. */
int remus_disk_give(xc_interface *xch, struct xs_handle *xs, const struct remus_disk *d,
                    unsigned int timeout_ms, char *error);

#endif /* REMUS_DISK_H */
