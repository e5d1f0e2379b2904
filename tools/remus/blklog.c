/* blklog.c: see blklog.h. */
#include "tools/remus/blklog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/ctl.h"

#define MAGIC        0x30474f4c4b4c4243u /* "CBLKLOG0" */
#define WORD_PARTS   64u
#define SECTOR_BYTES 512u

/* Of a disk: due, then two that take turns. */
enum { SET_DUE, SET_TURNS, SETS = SET_TURNS + 2 };

struct header {
    uint64_t magic;
    uint32_t disks, turn;             /* turn: 0 or 1: which of the two is new */
    struct {
        uint64_t sectors;
        uint8_t relation[BLKLOG_RELATION_BYTES];
    } disk[REMUS_DISKS_MAX];
};

struct blklog {
    struct header *header;
    uint64_t parts[REMUS_DISKS_MAX];
    uint64_t *set[REMUS_DISKS_MAX][SETS];
};

static uint64_t parts_of(uint64_t sectors)
{
    return (sectors + BLKLOG_PART_SECTORS - 1) / BLKLOG_PART_SECTORS;
}

static uint64_t words_of(uint64_t parts)
{
    return (parts + WORD_PARTS - 1) / WORD_PARTS;
}

size_t blklog_bytes(const uint64_t *sectors, uint32_t disks)
{
    size_t bytes = sizeof(struct header);
    uint32_t i;

    for (i = 0; i < disks; i++) {
        bytes += SETS * words_of(parts_of(sectors[i])) * sizeof(uint64_t);
    }
    return bytes;
}

static void find_sets(struct blklog *l, void *memory, const uint64_t *sectors, uint32_t disks)
{
    uint64_t *next = (uint64_t *)((struct header *)memory + 1);
    uint32_t i, k;

    l->header = memory;
    for (i = 0; i < disks; i++) {
        l->parts[i] = parts_of(sectors[i]);
        for (k = 0; k < SETS; k++) {
            l->set[i][k] = next;
            next += words_of(l->parts[i]);
        }
    }
}

/* Parts first..end-1 of a set; they are there before anything that comes next. */
static void set_parts(uint64_t *set, uint64_t first, uint64_t end)
{
    for (; first < end; first++) {
        set[first / WORD_PARTS] |= 1ull << first % WORD_PARTS;
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void clear_parts(uint64_t *set, uint64_t first, uint64_t end)
{
    for (; first < end; first++) {
        set[first / WORD_PARTS] &= ~(1ull << first % WORD_PARTS);
    }
}

void blklog_format(void *memory, const uint64_t *sectors, uint32_t disks)
{
    struct blklog l;
    uint32_t i;

    find_sets(&l, memory, sectors, disks);
    l.header->disks = disks;
    for (i = 0; i < disks; i++) {
        l.header->disk[i].sectors = sectors[i];
        set_parts(l.set[i][SET_DUE], 0, l.parts[i]);
    }
    __atomic_store_n(&l.header->magic, MAGIC, __ATOMIC_RELEASE);
}

int blklog_open(struct blklog **out, void *memory, size_t bytes, const uint64_t *sectors,
                uint32_t disks)
{
    const struct header *h = memory;
    struct blklog *l;
    uint32_t i;
    uint64_t k;

    *out = NULL;
    if (disks > REMUS_DISKS_MAX || bytes < blklog_bytes(sectors, disks) || h->magic != MAGIC ||
        h->disks != disks || h->turn > 1) {
        return -EINVAL;
    }
    for (i = 0; i < disks; i++) {
        if (h->disk[i].sectors != sectors[i]) {
            return -EINVAL;
        }
    }
    l = calloc(1, sizeof(*l));
    if (!l) {
        return -ENOMEM;
    }
    find_sets(l, memory, sectors, disks);
    for (i = 0; i < disks; i++) {
        uint64_t *const *set = l->set[i];

        for (k = 0; k < words_of(l->parts[i]); k++) {
            set[SET_DUE][k] |= set[SET_TURNS][k] | set[SET_TURNS + 1][k];
        }
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        memset(set[SET_TURNS], 0, words_of(l->parts[i]) * sizeof(uint64_t));
        memset(set[SET_TURNS + 1], 0, words_of(l->parts[i]) * sizeof(uint64_t));
    }
    *out = l;
    return 0;
}

void blklog_free(struct blklog *l)
{
    free(l);
}

/* ---- Relation ------------------------------------------------------------------------------- */

void blklog_relation(const struct blklog *l, uint32_t disk, uint8_t relation[BLKLOG_RELATION_BYTES])
{
    memcpy(relation, l->header->disk[disk].relation, BLKLOG_RELATION_BYTES);
}

void blklog_relate(struct blklog *l, uint32_t disk, const uint8_t relation[BLKLOG_RELATION_BYTES])
{
    set_parts(l->set[disk][SET_DUE], 0, l->parts[disk]);
    memcpy(l->header->disk[disk].relation, relation, BLKLOG_RELATION_BYTES);
}

void blklog_clear(struct blklog *l, uint32_t disk)
{
    uint32_t k;

    memset(l->header->disk[disk].relation, 0, BLKLOG_RELATION_BYTES);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (k = 0; k < SETS; k++) {
        memset(l->set[disk][k], 0, words_of(l->parts[disk]) * sizeof(uint64_t));
    }
}

void blklog_adopt(struct blklog *l, uint32_t disk, const uint8_t relation[BLKLOG_RELATION_BYTES])
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    memcpy(l->header->disk[disk].relation, relation, BLKLOG_RELATION_BYTES);
}

/* ---- Marks ---------------------------------------------------------------------------------- */

static void mark(struct blklog *l, uint32_t disk, uint32_t set, uint64_t sector, uint64_t sectors)
{
    uint64_t end = parts_of(sector + sectors);

    end = end < l->parts[disk] ? end : l->parts[disk];
    set_parts(l->set[disk][set], sector / BLKLOG_PART_SECTORS, end);
}

void blklog_mark_new(struct blklog *l, uint32_t disk, uint64_t sector, uint64_t sectors)
{
    mark(l, disk, SET_TURNS + l->header->turn, sector, sectors);
}

void blklog_mark_due(struct blklog *l, uint32_t disk, uint64_t sector, uint64_t sectors)
{
    mark(l, disk, SET_DUE, sector, sectors);
}

void blklog_compared(struct blklog *l, uint32_t disk, uint64_t sector, uint64_t sectors)
{
    blklog_mark_new(l, disk, sector, sectors);
    clear_parts(l->set[disk][SET_DUE], sector / BLKLOG_PART_SECTORS, parts_of(sector + sectors));
}

void blklog_turn(struct blklog *l)
{
    __atomic_store_n(&l->header->turn, l->header->turn ^ 1u, __ATOMIC_RELEASE);
}

void blklog_safe(struct blklog *l)
{
    const uint32_t old = SET_TURNS + (l->header->turn ^ 1u);
    uint32_t i;

    for (i = 0; i < l->header->disks; i++) {
        memset(l->set[i][old], 0, words_of(l->parts[i]) * sizeof(uint64_t));
    }
}

/* ---- Looking -------------------------------------------------------------------------------- */

static bool is_due(const struct blklog *l, uint32_t disk, uint64_t part)
{
    return l->set[disk][SET_DUE][part / WORD_PARTS] >> part % WORD_PARTS & 1;
}

bool blklog_next(const struct blklog *l, uint32_t disk, uint32_t max, uint64_t *sector,
                 uint32_t *sectors)
{
    const uint64_t disk_sectors = l->header->disk[disk].sectors;
    uint64_t part = parts_of(*sector), end, limit;

    while (part < l->parts[disk] && !is_due(l, disk, part)) {
        /* Whole words of what is the same. */
        part += part % WORD_PARTS || l->set[disk][SET_DUE][part / WORD_PARTS] ? 1 : WORD_PARTS;
    }
    if (part >= l->parts[disk]) {
        *sector = disk_sectors;
        return false;
    }
    limit = (part / (max / BLKLOG_PART_SECTORS) + 1) * (max / BLKLOG_PART_SECTORS);
    for (end = part; end < l->parts[disk] && end < limit && is_due(l, disk, end); end++) {
    }
    *sector = part * BLKLOG_PART_SECTORS;
    end *= BLKLOG_PART_SECTORS;
    *sectors = (uint32_t)((end < disk_sectors ? end : disk_sectors) - *sector);
    return true;
}

uint64_t blklog_due_bytes(const struct blklog *l, uint32_t disk)
{
    const uint64_t sectors = l->header->disk[disk].sectors;
    uint64_t i, parts = 0, bytes;

    for (i = 0; i < words_of(l->parts[disk]); i++) {
        parts += (uint64_t)__builtin_popcountll(l->set[disk][SET_DUE][i]);
    }
    bytes = parts * BLKLOG_PART_SECTORS * SECTOR_BYTES;
    if (l->parts[disk] && is_due(l, disk, l->parts[disk] - 1)) {
        bytes -= (l->parts[disk] * BLKLOG_PART_SECTORS - sectors) * SECTOR_BYTES;
    }
    return bytes;
}
