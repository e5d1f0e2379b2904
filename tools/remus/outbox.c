/*
 * outbox.c: see outbox.h.
 */
#include "tools/remus/outbox.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define OUTBOX_ALIGN 64u

static uint32_t round_up(uint32_t length)
{
    return (length + OUTBOX_ALIGN - 1) / OUTBOX_ALIGN * OUTBOX_ALIGN;
}

static uint32_t *id_slot(struct outbox *box, uint64_t id)
{
    return &box->by_id[id & (2 * box->entries_max - 1)];
}

static struct outbox_entry *entry_of(struct outbox *box, uint64_t serial)
{
    return &box->entries[serial & (box->entries_max - 1)];
}

int outbox_init(struct outbox *box, uint32_t size, uint32_t entries_max)
{
    void *bytes;

    assert(entries_max && !(entries_max & (entries_max - 1)));
    assert(size && !(size % OUTBOX_ALIGN));

    memset(box, 0, sizeof(*box));
    /* Pages that are never used are never backed: a large bound costs nothing until needed. */
    bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
    if (bytes == MAP_FAILED) {
        return -errno;
    }
    box->bytes = bytes;
    box->size = size;
    box->entries_max = entries_max;
    box->entries = calloc(entries_max, sizeof(*box->entries));
    box->by_id = calloc(2 * (size_t)entries_max, sizeof(*box->by_id));
    if (!box->entries || !box->by_id) {
        outbox_dispose(box);
        return -ENOMEM;
    }
    return 0;
}

void outbox_dispose(struct outbox *box)
{
    if (box->bytes) {
        munmap(box->bytes, box->size);
    }
    free(box->entries);
    free(box->by_id);
    memset(box, 0, sizeof(*box));
}

static void trim(struct outbox *box)
{
    while (box->first != box->next) {
        struct outbox_entry *entry = entry_of(box, box->first);

        if (entry->state != OUTBOX_DEAD) {
            return;
        }
        box->used -= entry->taken;
        box->head = (box->head + entry->taken) % box->size;
        box->first++;
    }
    box->head = box->used = 0; /* empty: begin at the front, which the caches know */
}

/* Bytes that a frame would take at the end, including a skipped piece; 0: does not fit. */
static uint32_t space_for(const struct outbox *box, uint32_t length, uint32_t *offset)
{
    uint32_t need = round_up(length);
    uint32_t tail, skip = 0;

    if (!need || need > box->size || box->next - box->first == box->entries_max) {
        return 0;
    }
    tail = (uint32_t)(((uint64_t)box->head + box->used) % box->size);
    if (box->size - tail < need) {
        skip = box->size - tail; /* frames are never split over the end */
        tail = 0;
    }
    if ((uint64_t)box->used + skip + need > box->size) {
        return 0;
    }
    *offset = tail;
    return skip + need;
}

struct outbox_entry *outbox_put(struct outbox *box, uint32_t length, enum outbox_state state)
{
    struct outbox_entry *entry;
    uint32_t offset = 0, taken;

    assert(state != OUTBOX_DEAD);
    taken = space_for(box, length, &offset);
    if (!taken) {
        return NULL;
    }
    entry = entry_of(box, box->next);
    memset(entry, 0, sizeof(*entry));
    entry->serial = box->next++;
    entry->offset = offset;
    entry->length = length;
    entry->taken = taken;
    entry->state = (uint8_t)state;
    box->used += taken;
    box->live++;
    box->live_bytes += length;
    box->held += state == OUTBOX_HELD;
    return entry;
}

bool outbox_has_room(const struct outbox *box, uint32_t length)
{
    uint32_t offset;

    return space_for(box, length, &offset) != 0;
}

void outbox_unput(struct outbox *box, struct outbox_entry *entry)
{
    assert(entry->serial + 1 == box->next && entry->state != OUTBOX_DEAD && !entry->id);
    box->held -= entry->state == OUTBOX_HELD;
    box->live--;
    box->live_bytes -= entry->length;
    box->used -= entry->taken;
    entry->state = OUTBOX_DEAD;
    box->next--;
}

void outbox_shrink(struct outbox *box, struct outbox_entry *entry, uint32_t length)
{
    uint32_t back = round_up(entry->length) - round_up(length);

    assert(entry->serial + 1 == box->next && length && length <= entry->length);
    box->live_bytes -= entry->length - length;
    box->used -= back;
    entry->taken -= back;
    entry->length = length;
}

uint32_t outbox_make_room(struct outbox *box, uint32_t length)
{
    uint32_t offset, killed = 0;

    while (!space_for(box, length, &offset) && box->first != box->next) {
        /* first is alive: trim() has removed the dead ones before it */
        outbox_kill(box, entry_of(box, box->first));
        killed++;
    }
    return killed;
}

uint8_t *outbox_bytes(struct outbox *box, const struct outbox_entry *entry)
{
    return box->bytes + entry->offset;
}

struct outbox_entry *outbox_from(struct outbox *box, uint64_t serial)
{
    if (serial < box->first) {
        serial = box->first;
    }
    for (; serial < box->next; serial++) {
        if (entry_of(box, serial)->state != OUTBOX_DEAD) {
            return entry_of(box, serial);
        }
    }
    return NULL;
}

struct outbox_entry *outbox_first(struct outbox *box)
{
    return outbox_from(box, box->first);
}

void outbox_set_state(struct outbox *box, struct outbox_entry *entry, enum outbox_state state)
{
    assert(entry->state != OUTBOX_DEAD && state != OUTBOX_DEAD);
    box->held -= entry->state == OUTBOX_HELD;
    box->held += state == OUTBOX_HELD;
    entry->state = (uint8_t)state;
}

void outbox_kill(struct outbox *box, struct outbox_entry *entry)
{
    if (entry->state == OUTBOX_DEAD) {
        return;
    }
    box->held -= entry->state == OUTBOX_HELD;
    box->live--;
    box->live_bytes -= entry->length;
    entry->state = OUTBOX_DEAD;
    if (entry->serial == box->first) {
        trim(box);
    }
}

uint32_t outbox_forget_epochs(struct outbox *box, uint64_t epoch)
{
    struct outbox_entry *entry;
    uint64_t serial = box->first;
    uint32_t killed = 0;

    while ((entry = outbox_from(box, serial))) {
        serial = entry->serial + 1;
        if (entry->epoch <= epoch) {
            outbox_kill(box, entry);
            killed++;
        }
    }
    return killed;
}

uint64_t outbox_give_id(struct outbox *box, struct outbox_entry *entry)
{
    assert(!entry->id);
    entry->id = ++box->last_id;
    *id_slot(box, entry->id) = (uint32_t)entry->serial;
    return entry->id;
}

struct outbox_entry *outbox_find_id(struct outbox *box, uint64_t id)
{
    struct outbox_entry *entry;

    /* The low bits name the slot of entries[], and what is there tells whose it is. */
    entry = entry_of(box, *id_slot(box, id));
    if (!id || entry->id != id || entry->state == OUTBOX_DEAD) {
        return NULL;
    }
    return entry;
}
