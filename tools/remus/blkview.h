/*
 * blkview.h: a disk of the copy: what lies over it, in a store, and in which order.
 *
 *   reads of the copy's guest:  overlay, then committed generations, the newest first, then disk
 *   writes of the copy's guest: overlay
 *   writes of the primary:      the generation of their disk epoch, pending until it is committed
 *
 * A commit empties the overlay (the copy is what the primary is, from then on) and lets the
 * generations up to its disk epoch be read.  What is committed is merged into the disk, the oldest
 * generation first; its place in the store is given back when the disk has all of it.  A takeover
 * forgets what is pending, and makes the overlay the newest generation.
 *
 * Pure: tells where things are and makes no I/O.  The store is a file; a place in it is told in
 * bytes.  A layer is an index: 0 the overlay, others the generations.
 */
#ifndef REMUS_BLKVIEW_H
#define REMUS_BLKVIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLKVIEW_GENERATIONS 4u
#define BLKVIEW_LAYERS      (1u + BLKVIEW_GENERATIONS)
#define BLKVIEW_DISK        UINT32_MAX  /* as a layer: the disk itself */
#define BLKVIEW_LAYER_BYTES (1ull << 36) /* of the store, for each layer */
#define BLKVIEW_RUN_SECTORS 2048u

struct blkview;

struct blkview_piece {
    uint64_t sector;                /* of the disk */
    uint32_t sectors;
    uint32_t layer;                 /* or BLKVIEW_DISK */
    uint64_t offset;                /* bytes: in the store, or on the disk */
};

/* store_offset: where its BLKVIEW_LAYERS * BLKVIEW_LAYER_BYTES begin.  slots_max: blocks of 4 KiB
 * in each layer.  0 or negative errno. */
int blkview_new(struct blkview **out, uint64_t store_offset, uint32_t slots_max);
void blkview_free(struct blkview *v);

/* The pieces of a range, in order, of the newest that there is; at most max, then they cover the
 * beginning only.  Returns how many. */
uint32_t blkview_read(const struct blkview *v, uint64_t sector, uint32_t sectors,
                      struct blkview_piece *pieces, uint32_t max);
/* The same of one layer; what the layer does not have is said to be on the disk. */
uint32_t blkview_layer(const struct blkview *v, uint32_t layer, uint64_t sector, uint32_t sectors,
                       struct blkview_piece *pieces, uint32_t max);

/* The range is about to be written into the overlay.  -ENOSPC, -ENOMEM: nothing has changed. */
int blkview_write(struct blkview *v, uint64_t sector, uint32_t sectors);
/*
 * The primary's write of a disk epoch is about to be written into *layer.  cost: whatever the
 * caller counts; given back by blkview_reclaimed().  -EAGAIN: no generation is free before one is
 * merged; -EPROTO: epochs go down, or this one is committed; -ENOSPC, -ENOMEM.
 */
int blkview_receive(struct blkview *v, uint64_t epoch, uint64_t sector, uint32_t sectors,
                    uint64_t cost, uint32_t *layer);

/* Nobody reads or writes the overlay now. */
void blkview_commit(struct blkview *v, uint64_t epoch);
void blkview_takeover(struct blkview *v);
/* There is no copy any more: what it wrote, and what is not committed, is forgotten. */
void blkview_end(struct blkview *v);

/* A read of this layer is under way, or has ended: its places are not used again meanwhile. */
void blkview_hold(struct blkview *v, uint32_t layer);
void blkview_release(struct blkview *v, uint32_t layer);

/* What is to be brought to the disk next: a range, all of it in one layer, that has not been told
 * yet.  1; 0: nothing now; -ENOMEM. */
int blkview_merge(struct blkview *v, struct blkview_piece *run);
/* The disk has it (then the layer does not any more); or it failed and is to be told again. */
void blkview_merged(struct blkview *v, const struct blkview_piece *run);
void blkview_unmerged(struct blkview *v, const struct blkview_piece *run);
/*
 * A generation that was merged or forgotten keeps its place in the store until that was punched
 * out, and is not filled again before.  What is to be punched: false: nothing now.  It is told
 * once.
 */
bool blkview_punch(struct blkview *v, uint32_t *layer, uint64_t *offset, uint64_t *bytes);
void blkview_punched(struct blkview *v, uint32_t layer);
/* The disk has got something newer than all layers. */
void blkview_drop(struct blkview *v, uint64_t sector, uint32_t sectors);
/* Nothing lies over the disk: no overlay, and nothing to merge. */
bool blkview_clean(const struct blkview *v);
/* Every block that the disk will not get from a commit of what is committed: of the overlay, and of
 * pending generations.  Begin with *cursor 0; false: no more.  Nothing may change in between. */
bool blkview_next_own(const struct blkview *v, uint64_t *cursor, uint64_t *sector);
/* The disk has all generations up to this epoch. */
bool blkview_merged_to(const struct blkview *v, uint64_t epoch);
/* A layer is held. */
bool blkview_busy(const struct blkview *v);

/*
 * After a takeover: what is left to be merged is in memory that outlives the process, where the
 * next one opens it.  The memory is the caller's, of blkview_frozen_bytes(), aligned to 8.
 */
size_t blkview_frozen_bytes(const struct blkview *v);
void blkview_freeze(struct blkview *v, void *memory);
/* 0; -EINVAL: that is no frozen view; -ENOMEM. */
int blkview_open(struct blkview **out, uint64_t store_offset, void *memory, size_t bytes);

/* Cost of the generations whose place in the store was given back since the last call. */
uint64_t blkview_reclaimed(struct blkview *v);
/* Blocks in use: of the overlay; of all generations. */
uint32_t blkview_overlay_blocks(const struct blkview *v);
uint32_t blkview_waiting_blocks(const struct blkview *v);

#endif /* REMUS_BLKVIEW_H */
