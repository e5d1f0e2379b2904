/* labdisk.h: work on the guest's disk whose every answer is checked. */
#ifndef LABDISK_H
#define LABDISK_H

#include <stddef.h>

/*
 * "disk <N>": N workers from now on (at most 16; 0: none, when the present ones are done), each in
 * a part of /dev/xvda of its own: writes and reads of 512 bytes to 128 KiB past the page cache, a
 * flush now and then.  What a worker reads must be what it wrote last.  "ok", or "error".
 * "stats": "<writes> <reads> <flushes> <errors> <wrong sectors> <longest ms>", the last one since
 * it was asked for before.
 */
void labdisk_command(const char *line, char *answer, size_t size);

#endif
