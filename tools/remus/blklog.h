/*
 * blklog.h: which parts of a guest's disks may be other than the other host's.
 *
 * Parts have 64 KiB, as those that are hashed.  A part is in up to three sets:
 *   due    it has to be compared, and sent if it differs
 *   new    it was written, or sent, since the last turn
 *   old    ... before the last turn, and the other host has not said yet that it is safe there
 * What is in none is the same on both disks, and durable on the other one.
 *
 * The sets lie in memory that outlives whoever serves the disks, and a mark is made before what it
 * is about is done: whoever dies, at any moment, leaves no less than what differs.
 *
 * What is noted is true of one other disk only.  Which one is told by the relation, a number made
 * by chance that the other host keeps for its disk, for as long as it vouches for that: a disk that
 * keeps none, or another one, has to be compared as a whole, and gets a new one.
 */
#ifndef REMUS_BLKLOG_H
#define REMUS_BLKLOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLKLOG_PART_SECTORS   128u
#define BLKLOG_RELATION_BYTES 16u

struct blklog;

/* sectors: of each disk. */
size_t blklog_bytes(const uint64_t *sectors, uint32_t disks);
/* Zeroed memory of that many bytes, aligned to 8: all parts are due, of no relation. */
void blklog_format(void *memory, const uint64_t *sectors, uint32_t disks);
/*
 * The memory is the caller's, until after blklog_free().  What was new or old is due from here on.
 * 0; -EINVAL: that is no log, or not of these disks; -ENOMEM.
 */
int blklog_open(struct blklog **out, void *memory, size_t bytes, const uint64_t *sectors,
                uint32_t disks);
void blklog_free(struct blklog *l);

void blklog_relation(const struct blklog *l, uint32_t disk,
                     uint8_t relation[BLKLOG_RELATION_BYTES]);
/* The other disk is another one: all parts are due. */
void blklog_relate(struct blklog *l, uint32_t disk, const uint8_t relation[BLKLOG_RELATION_BYTES]);

/* A disk that is the same as the other one, but for what is marked from here on; and when that is
 * done, which other one it is.  In between it is of no relation. */
void blklog_clear(struct blklog *l, uint32_t disk);
void blklog_adopt(struct blklog *l, uint32_t disk, const uint8_t relation[BLKLOG_RELATION_BYTES]);

/* Is about to be written, and sent. */
void blklog_mark_new(struct blklog *l, uint32_t disk, uint64_t sector, uint64_t sectors);
/* Is about to be written, and not sent. */
void blklog_mark_due(struct blklog *l, uint32_t disk, uint64_t sector, uint64_t sectors);
/* Was compared, and sent if it differed: whole parts, but for the disk's last. */
void blklog_compared(struct blklog *l, uint32_t disk, uint64_t sector, uint64_t sectors);

/*
 * The first parts in a row that are due, from a part's beginning on, up to the next multiple of max
 * sectors (a multiple of parts' itself).  false: none; *sector is the disk's end.
 */
bool blklog_next(const struct blklog *l, uint32_t disk, uint32_t max, uint64_t *sector,
                 uint32_t *sectors);
uint64_t blklog_due_bytes(const struct blklog *l, uint32_t disk);

/* What is new is old from here on; what was old is safe. */
void blklog_turn(struct blklog *l);
void blklog_safe(struct blklog *l);

#endif /* REMUS_BLKLOG_H */
