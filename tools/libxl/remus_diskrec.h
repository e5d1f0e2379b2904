/*
 * remus_diskrec.h: what is kept about a disk of a copy between sessions: to which other disk it was
 * made equal (its relation, blklog.h), and what proves that nobody else has written to it since.
 *
 * A record is a file in the store's directory, one for each path.  It is durable before the disk is
 * written to, and is one of
 *   open    a session may be writing.  Renewed every REMUS_DISKREC_RENEW_S while one does
 *   closed  nothing writes any more; nothing was under way
 *
 * What proves it:
 *   a file           the inode is the same, and its ctime: closed, the recorded one; open, as a
 *                    host that lost its power leaves it: this is another boot, and the last change
 *                    is of before it, and of a time for which the record was renewed
 *   a block device   closed, in this boot, the same one (a logical volume that was inactive for a
 *                    while is another), and the kernel has counted no sector written since; or the
 *                    device is in the list of those that nobody else writes to
 *                    (REMUS_DISKREC_OWN), and has the same path and size
 * The proof fails where it cannot be given; then everything is compared.
 */
#ifndef REMUS_DISKREC_H
#define REMUS_DISKREC_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/remus/blklog.h"

#define REMUS_DISKREC_RENEW_S   5u
#define REMUS_DISKREC_WHY_BYTES 160u
/* Patterns of paths (fnmatch), one on a line. */
#define REMUS_DISKREC_OWN       "/etc/xen/remus-own-disks"

/*
 * fd: the disk, open.  0: it is as a session left it that had this relation; -ENOENT: nothing is
 * recorded of it; -ESTALE: that is not proven.  why: a part of a sentence, for both errors.
 */
int remus_diskrec_check(const char *directory, const char *path, int fd,
                        uint8_t relation[BLKLOG_RELATION_BYTES], char *why);

/* Whether a session of this boot has opened it, and not closed it. */
bool remus_diskrec_is_open(const char *directory, const char *path);

/* Durable when they return.  0 or negative errno. */
int remus_diskrec_open(const char *directory, const char *path, int fd,
                       const uint8_t relation[BLKLOG_RELATION_BYTES]);
/* Of one that is open: the disk itself is not touched. */
int remus_diskrec_renew(const char *directory, const char *path);
int remus_diskrec_close(const char *directory, const char *path, int fd,
                        const uint8_t relation[BLKLOG_RELATION_BYTES]);
int remus_diskrec_remove(const char *directory, const char *path);

#endif /* REMUS_DISKREC_H */
