/* blkview.c: see blkview.h. */
#include "tools/remus/blkview.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/blkmap.h"

#define SECTOR_BYTES 512u
#define PIECES_MAX   64u

/*
 * A layer: FREE -> PENDING (blkview_receive) -> COMMITTED (blkview_commit) -> FREE (merged), and
 * punched out of the store before the next PENDING.  The overlay is FREE, which means that it is
 * not merged, and COMMITTED from a takeover on.
 */
enum layer_state { LAYER_FREE, LAYER_PENDING, LAYER_COMMITTED };

struct layer {
    struct blkmap *map;
    enum layer_state state;
    uint64_t epoch, cost;
    uint32_t readers;
    uint64_t stale;                 /* FREE: bytes of its part of the store to be punched */
    bool punching;
};

/* In memory that others will read; the layers' frozen maps follow. */
struct frozen {
    struct {
        uint32_t committed, reserved;
        uint64_t epoch, bytes;
    } layer[BLKVIEW_LAYERS];
};

struct blkview {
    struct layer layer[BLKVIEW_LAYERS];
    uint64_t store_offset;
    uint64_t newest, committed;     /* disk epochs */
    uint64_t reclaimed;

    /* What is being merged: one layer at a time, its blocks in the order of the disk. */
    uint32_t merging;               /* layer; BLKVIEW_DISK: none */
    uint64_t *blocks;               /* first sectors */
    uint32_t blocks_room, blocks_count, block_at;
    uint64_t merge_at;              /* sector: everything before it was told */
    uint32_t runs;                  /* told, not yet merged */
    bool again;                     /* one has failed */
};

int blkview_new(struct blkview **out, uint64_t store_offset, uint32_t slots_max)
{
    struct blkview *v = calloc(1, sizeof(*v));
    uint32_t i;
    int rc = 0;

    *out = NULL;
    if (!v) {
        return -ENOMEM;
    }
    if (slots_max > BLKVIEW_LAYER_BYTES / (BLKMAP_SECTORS * SECTOR_BYTES)) {
        rc = -EINVAL;
    }
    v->store_offset = store_offset;
    v->merging = BLKVIEW_DISK;
    for (i = 0; !rc && i < BLKVIEW_LAYERS; i++) {
        rc = blkmap_new(&v->layer[i].map, slots_max);
    }
    if (rc) {
        blkview_free(v);
        return rc;
    }
    *out = v;
    return 0;
}

void blkview_free(struct blkview *v)
{
    uint32_t i;

    if (!v) {
        return;
    }
    for (i = 0; i < BLKVIEW_LAYERS; i++) {
        blkmap_free(v->layer[i].map);
    }
    free(v->blocks);
    free(v);
}

/* ---- Reading -------------------------------------------------------------------------------- */

/* The committed generation that is the next older than epoch; 0: none. */
static uint32_t older(const struct blkview *v, uint64_t epoch)
{
    uint32_t i, found = 0;

    for (i = 1; i < BLKVIEW_LAYERS; i++) {
        const struct layer *l = &v->layer[i];

        if (l->state == LAYER_COMMITTED && l->epoch < epoch &&
            (!found || l->epoch > v->layer[found].epoch)) {
            found = i;
        }
    }
    return found;
}

static struct blkview_piece piece_of(const struct blkview *v, uint32_t layer,
                                     const struct blkmap_piece *p)
{
    uint64_t base = v->store_offset + layer * BLKVIEW_LAYER_BYTES;

    return (struct blkview_piece){
        .sector = p->sector, .sectors = p->sectors, .layer = p->there ? layer : BLKVIEW_DISK,
        .offset = p->there ? base + p->place * SECTOR_BYTES : p->sector * SECTOR_BYTES,
    };
}

uint32_t blkview_layer(const struct blkview *v, uint32_t layer, uint64_t sector, uint32_t sectors,
                       struct blkview_piece *pieces, uint32_t max)
{
    struct blkmap_piece p[PIECES_MAX];
    uint32_t n = blkmap_get(v->layer[layer].map, sector, sectors, p,
                            max < PIECES_MAX ? max : PIECES_MAX);
    uint32_t i;

    for (i = 0; i < n; i++) {
        pieces[i] = piece_of(v, layer, &p[i]);
    }
    return n;
}

/* The first piece of a range, as the layers up to this one have it. */
static struct blkview_piece first_piece(const struct blkview *v, uint32_t layer, uint64_t sector,
                                        uint32_t sectors)
{
    struct blkview_piece piece;

    for (;;) {
        const uint64_t epoch = layer ? v->layer[layer].epoch : UINT64_MAX;

        blkview_layer(v, layer, sector, sectors, &piece, 1);
        if (piece.layer != BLKVIEW_DISK) {
            return piece;
        }
        sectors = piece.sectors;    /* a newer layer has what comes after it */
        layer = older(v, epoch);
        if (!layer) {
            return piece;
        }
    }
}

uint32_t blkview_read(const struct blkview *v, uint64_t sector, uint32_t sectors,
                      struct blkview_piece *pieces, uint32_t max)
{
    uint32_t count = 0;

    while (sectors) {
        struct blkview_piece piece = first_piece(v, 0, sector, sectors);
        struct blkview_piece *last = count ? &pieces[count - 1] : NULL;

        if (last && last->layer == piece.layer &&
            last->offset + (uint64_t)last->sectors * SECTOR_BYTES == piece.offset) {
            last->sectors += piece.sectors;
        } else if (count == max) {
            break;
        } else {
            pieces[count++] = piece;
        }
        sector += piece.sectors;
        sectors -= piece.sectors;
    }
    return count;
}

/* ---- Writing -------------------------------------------------------------------------------- */

int blkview_write(struct blkview *v, uint64_t sector, uint32_t sectors)
{
    return blkmap_put(v->layer[0].map, sector, sectors);
}

int blkview_receive(struct blkview *v, uint64_t epoch, uint64_t sector, uint32_t sectors,
                    uint64_t cost, uint32_t *layer)
{
    uint32_t i, free_layer = 0;
    struct layer *l;
    int rc;

    if (epoch < v->newest || epoch <= v->committed) {
        return -EPROTO;
    }
    for (i = 1; i < BLKVIEW_LAYERS; i++) {
        l = &v->layer[i];
        if (l->state == LAYER_PENDING && l->epoch == epoch) {
            break;
        }
        if (l->state == LAYER_FREE && !l->readers && !l->stale) {
            free_layer = i;
        }
    }
    if (i == BLKVIEW_LAYERS && !free_layer) {
        return -EAGAIN;
    }
    l = &v->layer[i < BLKVIEW_LAYERS ? i : free_layer];
    rc = blkmap_put(l->map, sector, sectors);
    if (rc) {
        return rc;
    }
    l->state = LAYER_PENDING;
    l->epoch = v->newest = epoch;
    l->cost += cost;
    *layer = (uint32_t)(l - v->layer);
    return 0;
}

void blkview_hold(struct blkview *v, uint32_t layer)
{
    v->layer[layer].readers++;
}

void blkview_release(struct blkview *v, uint32_t layer)
{
    v->layer[layer].readers--;
}

static void layer_free(struct layer *l)
{
    l->stale = (uint64_t)blkmap_slots(l->map) * BLKMAP_SECTORS * SECTOR_BYTES;
    blkmap_clear(l->map);
    l->state = LAYER_FREE;
}

bool blkview_punch(struct blkview *v, uint32_t *layer, uint64_t *offset, uint64_t *bytes)
{
    uint32_t i;

    for (i = 1; i < BLKVIEW_LAYERS; i++) {
        struct layer *l = &v->layer[i];

        if (l->state == LAYER_FREE && l->stale && !l->readers && !l->punching) {
            l->punching = true;
            *layer = i;
            *offset = v->store_offset + i * BLKVIEW_LAYER_BYTES;
            *bytes = l->stale;
            return true;
        }
    }
    return false;
}

void blkview_punched(struct blkview *v, uint32_t layer)
{
    struct layer *l = &v->layer[layer];

    v->reclaimed += l->cost;
    l->cost = l->stale = 0;
    l->punching = false;
}

void blkview_commit(struct blkview *v, uint64_t epoch)
{
    uint32_t i;

    blkmap_clear(v->layer[0].map);
    v->committed = epoch;
    for (i = 1; i < BLKVIEW_LAYERS; i++) {
        struct layer *l = &v->layer[i];

        if (l->state == LAYER_PENDING && l->epoch <= epoch) {
            l->state = LAYER_COMMITTED;
        }
    }
}

static void forget_pending(struct blkview *v)
{
    uint32_t i;

    for (i = 1; i < BLKVIEW_LAYERS; i++) {
        if (v->layer[i].state == LAYER_PENDING) {
            layer_free(&v->layer[i]);
        }
    }
}

void blkview_end(struct blkview *v)
{
    forget_pending(v);
    blkmap_clear(v->layer[0].map);
}

void blkview_takeover(struct blkview *v)
{
    forget_pending(v);
    v->layer[0].state = LAYER_COMMITTED;
    v->layer[0].epoch = UINT64_MAX;
}

/* ---- Merging -------------------------------------------------------------------------------- */

static int by_sector(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* The oldest that is committed; BLKVIEW_DISK: none. */
static uint32_t oldest(const struct blkview *v)
{
    uint32_t i, found = BLKVIEW_DISK;

    for (i = 0; i < BLKVIEW_LAYERS; i++) {
        if (v->layer[i].state == LAYER_COMMITTED &&
            (found == BLKVIEW_DISK || v->layer[i].epoch < v->layer[found].epoch)) {
            found = i;
        }
    }
    return found;
}

static int merge_list(struct blkview *v)
{
    const struct blkmap *map = v->layer[v->merging].map;
    struct blkmap_block block;
    uint32_t cursor = 0;

    if (blkmap_count(map) > v->blocks_room) {
        uint64_t *grown = reallocarray(v->blocks, blkmap_count(map), sizeof(*grown));

        if (!grown) {
            return -ENOMEM;
        }
        v->blocks = grown;
        v->blocks_room = blkmap_count(map);
    }
    v->blocks_count = v->block_at = 0;
    v->merge_at = 0;
    v->again = false;
    while (blkmap_next(map, &cursor, &block)) {
        v->blocks[v->blocks_count++] = block.sector;
    }
    if (v->blocks_count) {
        qsort(v->blocks, v->blocks_count, sizeof(v->blocks[0]), by_sector);
    }
    return 0;
}

/* How many sectors, from this one to the end of its block, the layer has in a row.  *run: of them;
 * otherwise of those that it does not have. */
static uint32_t in_a_row(const struct blkview *v, uint64_t sector, struct blkview_piece *run)
{
    blkview_layer(v, v->merging, sector, BLKMAP_SECTORS - (uint32_t)(sector % BLKMAP_SECTORS), run,
                  1);
    return run->layer == BLKVIEW_DISK ? 0 : run->sectors;
}

/* The next run of the layer that is being merged; false: all were told. */
static bool next_run(struct blkview *v, struct blkview_piece *run)
{
    struct blkview_piece more;
    uint32_t sectors;

    while (v->block_at < v->blocks_count) {
        const uint64_t block = v->blocks[v->block_at];
        const uint64_t begin = block > v->merge_at ? block : v->merge_at;

        if (begin >= block + BLKMAP_SECTORS) {
            v->block_at++;
            continue;
        }
        sectors = in_a_row(v, begin, run);
        v->merge_at = begin + run->sectors;
        if (!sectors) {
            continue;
        }
        while (v->merge_at % BLKMAP_SECTORS == 0 &&
               run->sectors + BLKMAP_SECTORS <= BLKVIEW_RUN_SECTORS &&
               (sectors = in_a_row(v, v->merge_at, &more))) {
            run->sectors += sectors;
            v->merge_at += sectors;
        }
        return true;
    }
    return false;
}

int blkview_merge(struct blkview *v, struct blkview_piece *run)
{
    int rc;

    for (;;) {
        if (v->merging == BLKVIEW_DISK) {
            v->merging = oldest(v);
            if (v->merging == BLKVIEW_DISK) {
                return 0;
            }
            rc = merge_list(v);
            if (rc) {
                v->merging = BLKVIEW_DISK;
                return rc;
            }
        }
        if (next_run(v, run)) {
            v->runs++;
            return 1;
        }
        if (v->runs) {
            return 0;               /* the next layer's may be newer than one of these */
        }
        if (!v->again) {
            layer_free(&v->layer[v->merging]);
        }
        v->merging = BLKVIEW_DISK;
    }
}

void blkview_merged(struct blkview *v, const struct blkview_piece *run)
{
    blkmap_drop(v->layer[run->layer].map, run->sector, run->sectors);
    v->runs--;
}

void blkview_unmerged(struct blkview *v, const struct blkview_piece *run)
{
    (void)run;
    v->runs--;
    v->again = true;
}

void blkview_drop(struct blkview *v, uint64_t sector, uint32_t sectors)
{
    uint32_t i;

    for (i = 0; i < BLKVIEW_LAYERS; i++) {
        blkmap_drop(v->layer[i].map, sector, sectors);
    }
}

bool blkview_clean(const struct blkview *v)
{
    return !blkmap_count(v->layer[0].map) && oldest(v) == BLKVIEW_DISK;
}

bool blkview_next_own(const struct blkview *v, uint64_t *cursor, uint64_t *sector)
{
    uint32_t layer = (uint32_t)(*cursor >> 32), at = (uint32_t)*cursor;
    struct blkmap_block block;

    for (; layer < BLKVIEW_LAYERS; layer++, at = 0) {
        const struct layer *l = &v->layer[layer];

        if ((!layer || l->state == LAYER_PENDING) && blkmap_next(l->map, &at, &block)) {
            *cursor = (uint64_t)layer << 32 | at;
            *sector = block.sector;
            return true;
        }
    }
    return false;
}

bool blkview_merged_to(const struct blkview *v, uint64_t epoch)
{
    uint32_t i;

    for (i = 1; i < BLKVIEW_LAYERS; i++) {
        if (v->layer[i].state != LAYER_FREE && v->layer[i].epoch <= epoch) {
            return false;
        }
    }
    return true;
}

bool blkview_busy(const struct blkview *v)
{
    uint32_t i, readers = 0;

    for (i = 0; i < BLKVIEW_LAYERS; i++) {
        readers += v->layer[i].readers;
    }
    return readers != 0;
}

/* ---- Counting ------------------------------------------------------------------------------- */

uint64_t blkview_reclaimed(struct blkview *v)
{
    const uint64_t bytes = v->reclaimed;

    v->reclaimed = 0;
    return bytes;
}

uint32_t blkview_overlay_blocks(const struct blkview *v)
{
    return blkmap_count(v->layer[0].map);
}

uint32_t blkview_waiting_blocks(const struct blkview *v)
{
    uint32_t i, count = 0;

    for (i = 1; i < BLKVIEW_LAYERS; i++) {
        count += blkmap_count(v->layer[i].map);
    }
    return count;
}

/* ---- Frozen --------------------------------------------------------------------------------- */

size_t blkview_frozen_bytes(const struct blkview *v)
{
    size_t bytes = sizeof(struct frozen);
    uint32_t i;

    for (i = 0; i < BLKVIEW_LAYERS; i++) {
        bytes += blkmap_frozen_bytes(v->layer[i].map);
    }
    return bytes;
}

void blkview_freeze(struct blkview *v, void *memory)
{
    struct frozen *f = memory;
    uint8_t *next = (uint8_t *)(f + 1);
    uint32_t i;

    for (i = 0; i < BLKVIEW_LAYERS; i++) {
        f->layer[i].committed = v->layer[i].state == LAYER_COMMITTED;
        f->layer[i].reserved = 0;
        f->layer[i].epoch = v->layer[i].epoch;
        f->layer[i].bytes = blkmap_frozen_bytes(v->layer[i].map);
        blkmap_freeze(v->layer[i].map, next);
        next += f->layer[i].bytes;
    }
}

int blkview_open(struct blkview **out, uint64_t store_offset, void *memory, size_t bytes)
{
    const struct frozen *f = memory;
    struct blkview *v = calloc(1, sizeof(*v));
    size_t at = sizeof(*f);
    uint32_t i;
    int rc = bytes < at ? -EINVAL : 0;

    *out = NULL;
    if (!v) {
        return -ENOMEM;
    }
    v->store_offset = store_offset;
    v->merging = BLKVIEW_DISK;
    for (i = 0; !rc && i < BLKVIEW_LAYERS; i++) {
        rc = f->layer[i].bytes > bytes - at || f->layer[i].bytes % 8 ? -EINVAL
             : blkmap_open(&v->layer[i].map, (uint8_t *)memory + at, f->layer[i].bytes);
        v->layer[i].state = f->layer[i].committed ? LAYER_COMMITTED : LAYER_FREE;
        v->layer[i].epoch = f->layer[i].epoch;
        at += f->layer[i].bytes;
    }
    if (rc) {
        blkview_free(v);
        return rc;
    }
    *out = v;
    return 0;
}
