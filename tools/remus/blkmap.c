/* blkmap.c: see blkmap.h.  A hash table with linear probing, and a stack of slots given back. */
#include "tools/remus/blkmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TABLE_MIN 64u                /* entries; always a power of two */

struct entry {
    uint64_t block;
    uint32_t slot;
    uint8_t used;                    /* 0: the entry is free */
    uint8_t present;                 /* sectors; 0 in a frozen map: not in the map any more */
    uint16_t reserved;
};

/* In memory that others will read: everything is where the next one finds it. */
struct frozen {
    uint32_t size, reserved;
    struct entry table[];
};

struct blkmap {
    struct entry *table;
    uint32_t size, count;
    bool frozen;                     /* the table is somebody else's memory, and never moves */
    uint32_t slots_max, slots_used;  /* slots from slots_used on were never given out */
    uint32_t *free_slots;
    uint32_t free_count, free_room;
};

static uint32_t home(const struct blkmap *m, uint64_t block)
{
    block ^= block >> 30;
    block *= 0xbf58476d1ce4e5b9u;
    block ^= block >> 27;
    block *= 0x94d049bb133111ebu;
    return (uint32_t)(block ^ block >> 31) & (m->size - 1);
}

/* The entry of a block, or the free one where it would be. */
static struct entry *find(const struct blkmap *m, uint64_t block)
{
    uint32_t i = home(m, block);

    while (m->table[i].used && m->table[i].block != block) {
        i = (i + 1) & (m->size - 1);
    }
    return &m->table[i];
}

int blkmap_new(struct blkmap **out, uint32_t slots_max)
{
    struct blkmap *m;

    *out = NULL;
    if (!slots_max || slots_max > BLKMAP_SLOTS_MAX) {
        return -EINVAL;
    }
    m = calloc(1, sizeof(*m));
    if (m) {
        m->table = calloc(TABLE_MIN, sizeof(*m->table));
    }
    if (!m || !m->table) {
        free(m);
        return -ENOMEM;
    }
    m->size = TABLE_MIN;
    m->slots_max = slots_max;
    *out = m;
    return 0;
}

void blkmap_free(struct blkmap *m)
{
    if (m) {
        if (!m->frozen) {
            free(m->table);
        }
        free(m->free_slots);
        free(m);
    }
}

void blkmap_clear(struct blkmap *m)
{
    memset(m->table, 0, m->size * sizeof(*m->table));
    m->count = m->slots_used = m->free_count = 0;
}

/* Room for so many more entries, the table at most two thirds full. */
static int grow(struct blkmap *m, uint32_t more)
{
    struct entry *old = m->table;
    const uint32_t old_size = m->size;
    uint32_t size = m->size, i;

    while ((uint64_t)(m->count + more) * 3 > (uint64_t)size * 2) {
        size *= 2;
    }
    if (size == old_size) {
        return 0;
    }
    m->table = calloc(size, sizeof(*m->table));
    if (!m->table) {
        m->table = old;
        return -ENOMEM;
    }
    m->size = size;
    for (i = 0; i < old_size; i++) {
        if (old[i].used) {
            *find(m, old[i].block) = old[i];
        }
    }
    free(old);
    return 0;
}

static uint32_t slot_take(struct blkmap *m)
{
    return m->free_count ? m->free_slots[--m->free_count] : m->slots_used++;
}

/* Without memory to remember it the slot is lost until the next clear. */
static void slot_give(struct blkmap *m, uint32_t slot)
{
    if (m->free_count == m->free_room) {
        const uint32_t room = m->free_room ? 2 * m->free_room : 64;
        uint32_t *grown = reallocarray(m->free_slots, room, sizeof(*grown));

        if (!grown) {
            return;
        }
        m->free_slots = grown;
        m->free_room = room;
    }
    m->free_slots[m->free_count++] = slot;
}

/* The part of a range that lies in one block. */
static uint8_t part(uint64_t block, uint64_t sector, uint64_t end)
{
    const uint64_t begin = block * BLKMAP_SECTORS;
    const uint32_t first = sector > begin ? (uint32_t)(sector - begin) : 0;
    const uint32_t last = end < begin + BLKMAP_SECTORS ? (uint32_t)(end - begin) : BLKMAP_SECTORS;

    return (uint8_t)((1u << last) - (1u << first));
}

int blkmap_put(struct blkmap *m, uint64_t sector, uint32_t sectors)
{
    const uint64_t end = sector + sectors;
    uint64_t block;
    uint32_t missing = 0;
    int rc;

    if (!sectors || m->frozen) {
        return sectors ? -EROFS : 0;
    }
    for (block = sector / BLKMAP_SECTORS; block * BLKMAP_SECTORS < end; block++) {
        missing += !find(m, block)->used;
    }
    if (missing > m->free_count + (m->slots_max - m->slots_used)) {
        return -ENOSPC;
    }
    rc = grow(m, missing);
    if (rc) {
        return rc;
    }
    for (block = sector / BLKMAP_SECTORS; block * BLKMAP_SECTORS < end; block++) {
        struct entry *e = find(m, block);

        if (!e->used) {
            e->used = 1;
            e->block = block;
            e->slot = slot_take(m);
            m->count++;
        }
        e->present |= part(block, sector, end);
    }
    return 0;
}

uint32_t blkmap_get(const struct blkmap *m, uint64_t sector, uint32_t sectors,
                    struct blkmap_piece *pieces, uint32_t max)
{
    const uint64_t end = sector + sectors;
    const struct entry *e = NULL;
    uint32_t count = 0;

    for (; sector < end; sector++) {
        const uint32_t i = sector % BLKMAP_SECTORS;
        struct blkmap_piece *last = count ? &pieces[count - 1] : NULL;
        uint64_t place = 0;
        bool there;

        if (!e || i == 0) {
            e = find(m, sector / BLKMAP_SECTORS);
        }
        there = e->present >> i & 1;
        if (there) {
            place = (uint64_t)e->slot * BLKMAP_SECTORS + i;
        }
        if (last && last->there == there && (!there || last->place + last->sectors == place)) {
            last->sectors++;
            continue;
        }
        if (count == max) {
            break;
        }
        pieces[count++] = (struct blkmap_piece){
            .sector = sector, .sectors = 1, .there = there, .place = place,
        };
    }
    return count;
}

/* Entries behind the gap move up, unless they stand between their home and the gap. */
static void entry_remove(struct blkmap *m, struct entry *e)
{
    const uint32_t mask = m->size - 1;
    uint32_t gap = (uint32_t)(e - m->table), i = gap;

    slot_give(m, e->slot);
    m->count--;
    for (;;) {
        i = (i + 1) & mask;
        if (!m->table[i].used) {
            break;
        }
        if (((i - home(m, m->table[i].block)) & mask) >= ((i - gap) & mask)) {
            m->table[gap] = m->table[i];
            gap = i;
        }
    }
    m->table[gap] = (struct entry){ 0 };
}

/* false: the entry is gone, and another may stand in its place. */
static bool entry_drop(struct blkmap *m, struct entry *e, uint64_t sector, uint64_t end)
{
    const uint8_t left = e->present & (uint8_t)~part(e->block, sector, end);

    if (e->present && !left && !m->frozen) {
        entry_remove(m, e);
        return false;
    }
    m->count -= e->present && !left;
    e->present = left;
    return true;
}

void blkmap_drop(struct blkmap *m, uint64_t sector, uint32_t sectors)
{
    const uint64_t end = sector + sectors;
    const uint64_t first = sector / BLKMAP_SECTORS;
    const uint64_t last = sectors ? (end - 1) / BLKMAP_SECTORS : 0;
    uint64_t block;
    uint32_t i;

    if (!sectors) {
        return;
    }
    if (last - first < m->size) {
        for (block = first; block <= last; block++) {
            struct entry *e = find(m, block);

            if (e->present) {
                entry_drop(m, e, sector, end);
            }
        }
        return;
    }
    for (i = 0; i < m->size; i++) {
        struct entry *e = &m->table[i];

        while (e->present && e->block >= first && e->block <= last &&
               !entry_drop(m, e, sector, end)) {
        }
    }
}

uint32_t blkmap_count(const struct blkmap *m)
{
    return m->count;
}

uint32_t blkmap_slots(const struct blkmap *m)
{
    return m->slots_used;
}

bool blkmap_next(const struct blkmap *m, uint32_t *cursor, struct blkmap_block *block)
{
    for (; *cursor < m->size; (*cursor)++) {
        const struct entry *e = &m->table[*cursor];

        if (e->present) {
            *block = (struct blkmap_block){
                .sector = e->block * BLKMAP_SECTORS, .present = e->present,
                .place = (uint64_t)e->slot * BLKMAP_SECTORS,
            };
            (*cursor)++;
            return true;
        }
    }
    return false;
}

/* ---- Frozen --------------------------------------------------------------------------------- */

size_t blkmap_frozen_bytes(const struct blkmap *m)
{
    return sizeof(struct frozen) + (size_t)m->size * sizeof(struct entry);
}

void blkmap_freeze(struct blkmap *m, void *memory)
{
    struct frozen *f = memory;

    f->size = m->size;
    f->reserved = 0;
    memcpy(f->table, m->table, m->size * sizeof(*m->table));
    free(m->table);
    m->table = f->table;
    m->frozen = true;
}

int blkmap_open(struct blkmap **out, void *memory, size_t bytes)
{
    struct frozen *f = memory;
    struct blkmap *m;
    uint32_t i, used = 0;

    *out = NULL;
    if (bytes < sizeof(*f) || f->size < TABLE_MIN || (f->size & (f->size - 1)) ||
        (bytes - sizeof(*f)) / sizeof(struct entry) < f->size) {
        return -EINVAL;
    }
    m = calloc(1, sizeof(*m));
    if (!m) {
        return -ENOMEM;
    }
    *m = (struct blkmap){ .table = f->table, .size = f->size, .frozen = true };
    for (i = 0; i < m->size; i++) {
        const struct entry *e = &m->table[i];

        m->count += e->present != 0;
        used += e->used != 0;
        if (e->used && e->slot >= m->slots_used) {
            m->slots_used = e->slot + 1;
        }
    }
    if (used == m->size || m->slots_used > BLKMAP_SLOTS_MAX) {
        free(m);
        return -EINVAL;              /* a search for what is not there would not end */
    }
    *out = m;
    return 0;
}
