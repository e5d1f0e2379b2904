/*
 * xc_sr_epoch.c: the pages and records of one checkpoint, in memory that is kept between epochs.
 *
 * Room doubles until the largest epoch fits and is never given back before _free, because the
 * guest is stopped while an epoch is filled: the usual epoch must not allocate.
 */
#include <errno.h>
#include <stdlib.h>

#include "tools/libxc/xc_sr_private.h"

#define FIRST_ROOM_PAGES 4096u
#define EPOCH_PAGES_MAX  (REMUS_EPOCH_BYTES_MAX / XC_SR_PAGE_BYTES)

void xc_sr_epoch_reset(struct xc_sr_epoch *e, uint64_t number)
{
    e->number = number;
    e->pages = 0;
    e->record_count = 0;
    e->suspended_us = 0;
    e->mode = 0;
}

static int grow_pages(struct xc_sr_epoch *e)
{
    uint64_t room = e->pages_room ? e->pages_room * 2 : FIRST_ROOM_PAGES;
    uint64_t *gfns;
    uint8_t *data;

    if (room > EPOCH_PAGES_MAX)
        room = EPOCH_PAGES_MAX;
    if (room <= e->pages_room)
        return -ENOMEM;

    /* Each pointer is stored as soon as it is valid, so that a failure in between loses nothing. */
    gfns = realloc(e->gfns, room * sizeof(*gfns));
    if (!gfns)
        return -ENOMEM;
    e->gfns = gfns;
    data = realloc(e->data, room * XC_SR_PAGE_BYTES);
    if (!data)
        return -ENOMEM;
    e->data = data;
    e->pages_room = room;
    return 0;
}

int xc_sr_epoch_add_page(struct xc_sr_epoch *e, uint64_t gfn, uint8_t **data)
{
    if (e->pages == e->pages_room) {
        int rc = grow_pages(e);

        if (rc)
            return rc;
    }
    e->gfns[e->pages] = gfn;
    *data = e->data + e->pages * XC_SR_PAGE_BYTES;
    e->pages++;
    return 0;
}

int xc_sr_epoch_add_record(struct xc_sr_epoch *e, uint32_t type, uint32_t length, uint8_t **body)
{
    unsigned int slot = e->record_count;
    struct xc_sr_record *record;

    if (xc_sr_epoch_find(e, type))
        return -EEXIST;
    if (slot == XC_SR_EPOCH_RECORDS)
        return -ENOSPC;
    if (length > REMUS_RECORD_MAX)
        return -EMSGSIZE;

    record = &e->records[slot];
    if (!record->body || e->record_room[slot] < length) {
        uint8_t *grown = realloc(record->body, length ? length : 1);

        if (!grown)
            return -ENOMEM;
        record->body = grown;
        e->record_room[slot] = length;
    }
    record->type = type;
    record->length = length;
    *body = record->body;
    e->record_count++;
    return 0;
}

const struct xc_sr_record *xc_sr_epoch_find(const struct xc_sr_epoch *e, uint32_t type)
{
    for (unsigned int i = 0; i < e->record_count; i++)
        if (e->records[i].type == type)
            return &e->records[i];
    return NULL;
}

void xc_sr_epoch_free(struct xc_sr_epoch *e)
{
    free(e->gfns);
    free(e->data);
    for (unsigned int i = 0; i < XC_SR_EPOCH_RECORDS; i++)
        free(e->records[i].body);
    *e = (struct xc_sr_epoch){0};
}
