/*
 * blkmap.h: which sectors of a disk have a newer copy in a store, and where it is.
 *
 * A pure index: it holds no data and makes no I/O.  The store is an array of slots of one block (8
 * sectors) each; a place in it is counted in sectors.  What a range of the disk looks like is told
 * in pieces, each of which lies in one run both on the disk and in the store.
 *
 * Memory: entries of 16 bytes, at most two thirds of them in use; they are only ever doubled, when
 * a request needs more.
 */
#ifndef REMUS_BLKMAP_H
#define REMUS_BLKMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLKMAP_SECTORS   8u          /* of a block */
#define BLKMAP_SLOTS_MAX (1u << 28)  /* a store of 1 TiB */

struct blkmap;

struct blkmap_piece {
    uint64_t sector;                 /* on the disk */
    uint32_t sectors;
    bool there;                      /* in the store; otherwise the disk has it */
    uint64_t place;                  /* in the store, in sectors */
};

/* slots_max: how large the store may become, up to BLKMAP_SLOTS_MAX.  0; -EINVAL; -ENOMEM. */
int blkmap_new(struct blkmap **out, uint32_t slots_max);
void blkmap_free(struct blkmap *m);
/* Nothing is in the map any more. */
void blkmap_clear(struct blkmap *m);

/*
 * The range is about to be written into the store: from now on it is there.  0, and blkmap_get()
 * tells where.  -ENOSPC: more than slots_max; -ENOMEM; nothing has changed then.
 * sector + sectors must not overflow.
 */
int blkmap_put(struct blkmap *m, uint64_t sector, uint32_t sectors);

/* The range as pieces in order, no two of which could be one.  Returns how many were filled; with
 * more than max, they cover the beginning only. */
uint32_t blkmap_get(const struct blkmap *m, uint64_t sector, uint32_t sectors,
                    struct blkmap_piece *pieces, uint32_t max);

/* The disk has the range now. */
void blkmap_drop(struct blkmap *m, uint64_t sector, uint32_t sectors);

/* Slots in use, and one more than the highest slot ever used since the last clear. */
uint32_t blkmap_count(const struct blkmap *m);
uint32_t blkmap_slots(const struct blkmap *m);

/* Every block in the map, in no order: begin with *cursor 0; false: no more.  The map must not be
 * changed in between.  present: bit i is the block's sector i. */
struct blkmap_block {
    uint64_t sector, place;
    uint8_t present;
};
bool blkmap_next(const struct blkmap *m, uint32_t *cursor, struct blkmap_block *block);

/*
 * A frozen map lives in memory that outlives its process.  It only loses sectors (blkmap_put() of
 * it: -EROFS), and at every moment whoever opens that memory finds what is left.  The memory, of
 * blkmap_frozen_bytes(), aligned to 8, is the caller's, until after blkmap_free().
 */
size_t blkmap_frozen_bytes(const struct blkmap *m);
void blkmap_freeze(struct blkmap *m, void *memory);
/* 0; -EINVAL: that is no frozen map; -ENOMEM. */
int blkmap_open(struct blkmap **out, void *memory, size_t bytes);

#endif /* REMUS_BLKMAP_H */
