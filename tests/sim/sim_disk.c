/*
 * sim_disk.c: the guests' disk.  What lies over the secondary's is the real blkview; around it
 * stands what colo-blkd does with it, one sector at a time.
 *
 * A guest knows what it wrote, as part of its memory (guest.wrote): whatever happens, its disk must
 * hold that.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim.h"

#define P (&w->node[REMUS_PRIMARY])
#define S (&w->node[REMUS_SECONDARY])
#define D (&w->disk)
#define SLOTS        (SIM_SECTORS / 8u)
#define LAYER_BYTES  BLKVIEW_LAYER_BYTES

void disk_reset(struct world *w)
{
    D->epoch = 1;
    D->direct = D->replicates = true;
    if (blkview_new(&D->view, 0, SLOTS)) {
        violation(w, "no memory for what lies over the disk");
    }
}

/* ---- Places --------------------------------------------------------------------------------- */

static uint64_t *place(struct world *w, const struct blkview_piece *p)
{
    if (p->layer == BLKVIEW_DISK) {
        return &D->secondary[p->offset / 512];
    }
    return &D->store[p->layer][p->offset % LAYER_BYTES / 512];
}

static uint64_t *layer_place(struct world *w, uint32_t layer, uint32_t sector)
{
    struct blkview_piece p = { .layer = BLKVIEW_DISK, .offset = sector * 512ull };

    if (layer != BLKVIEW_DISK) {
        blkview_layer(D->view, layer, sector, 1, &p, 1);
    }
    return place(w, &p);
}

void disk_read(struct world *w, uint32_t sector, uint32_t sectors, uint64_t *values)
{
    struct blkview_piece p[SIM_SECTORS];
    uint32_t n = blkview_read(D->view, sector, sectors, p, SIM_SECTORS), i;

    for (i = 0; i < n; i++) {
        memcpy(values, place(w, &p[i]), p[i].sectors * sizeof(*values));
        values += p[i].sectors;
    }
}

/* ---- Merging: one run at a time, its sectors one after the other ---------------------------- */

static void merge_end(struct world *w)
{
    while (D->merge_at < D->run.sectors) {
        uint32_t sector = (uint32_t)D->run.sector + D->merge_at++;

        D->secondary[sector] = *layer_place(w, D->run.layer, sector);
    }
    blkview_merged(D->view, &D->run);
    D->merging = false;
}

void disk_merge(struct world *w)
{
    uint64_t offset, bytes;
    uint32_t layer;

    D->touched = 4;
    while (blkview_punch(D->view, &layer, &offset, &bytes)) {
        memset(D->store[layer], 0, bytes / 512 * sizeof(D->store[layer][0]));
        blkview_punched(D->view, layer);
    }
    if (!D->merging && blkview_merge(D->view, &D->run) == 1) {
        D->merging = true;
        D->merge_at = 0;
    }
    if (!D->merging) {
        return;
    }
    if (chance(w, 2) && D->merge_at < D->run.sectors) {
        uint32_t sector = (uint32_t)D->run.sector + D->merge_at++;

        D->secondary[sector] = *layer_place(w, D->run.layer, sector);
    } else {
        merge_end(w);
    }
}

/* ---- Writes --------------------------------------------------------------------------------- */

static void secondary_writes(struct world *w, uint32_t sector, uint64_t value)
{
    if (!S->open) {
        if (blkview_write(D->view, sector, 1)) {
            violation(w, "the overlay has no room");
        }
        *layer_place(w, w->mutation == BREAK_DISK_OVERLAY ? BLKVIEW_DISK : 0, sector) = value;
        return;
    }
    if (D->merging && sector >= D->run.sector && sector < D->run.sector + D->run.sectors) {
        merge_end(w);                /* a write waits for a run that is under way */
    }
    D->secondary[sector] = value;
    blkview_drop(D->view, sector, 1);
}

void disk_write(struct world *w, enum remus_role role, uint32_t sector, uint64_t value)
{
    w->node[role].guest.wrote[sector] = value;
    D->touched += role == REMUS_SECONDARY;
    if (role == REMUS_SECONDARY) {
        secondary_writes(w, sector, value);
    } else if (D->replicates) {
        disk_send(w, DISK_WRITE, D->epoch, sector, value);
    }
}

/* ---- The other host ------------------------------------------------------------------------- */

/* The guest runs again; its state was staged before, and then the next disk epoch begins. */
void disk_cut(struct world *w)
{
    if (D->staged && D->replicates && D->has) {
        disk_send(w, DISK_EPOCH, D->epoch, 0, 0);
        D->epoch++;
    }
    D->staged = false;
}

static void take_write(struct world *w, uint64_t epoch, uint32_t sector, uint64_t value)
{
    uint32_t layer;
    int rc;

    D->touched = 1;
    if (D->direct) {
        D->secondary[sector] = value;
        return;
    }
    while ((rc = blkview_receive(D->view, epoch, sector, 1, 1, &layer)) == -EAGAIN) {
        disk_merge(w);               /* the frame waits for it */
        if (++D->waits > 10000) {
            violation(w, "a write of disk epoch %llu waits for a generation for ever",
                      (unsigned long long)epoch);
            return;
        }
    }
    D->waits = 0;
    if (rc) {
        violation(w, "a write of disk epoch %llu is refused: %d", (unsigned long long)epoch, rc);
        return;
    }
    *layer_place(w, layer, sector) = value;
}

void disk_event(struct world *w, const struct sim_event *e)
{
    if (S->coordinator_dead || S->finished || S->open) {
        return;
    }
    if (e->event.value == DISK_WRITE) {
        take_write(w, e->a, (uint32_t)e->b, e->c);
    } else {
        D->direct = false;
        D->here = e->a;
        disk_complete(w);
    }
}

/* An epoch is whole when its memory is here, and what was written to disks before it, too. */
void disk_complete(struct world *w)
{
    struct remus_event event = {
        .type = RE_PEER_EPOCH_COMPLETE, .epoch = D->received,
        .value = w->snap[D->received % SNAPS].mode,
    };

    if (!D->received || (D->has && D->here < w->snap[D->received % SNAPS].disk_epoch &&
                         w->mutation != BREAK_DISK_EARLY)) {
        return;
    }
    S->complete = D->received;
    D->received = 0;
    node_event(w, REMUS_SECONDARY, &event);
}

void disk_commit(struct world *w, uint64_t epoch)
{
    D->changed = epoch % 8 == 0;    /* all of it is read at some of them: that takes long */
    D->touched = 8;
    blkview_commit(D->view, w->mutation == BREAK_DISK_COMMIT_ALL ? UINT64_MAX - 1 : epoch);
}

void disk_takeover(struct world *w)
{
    D->changed = true;
    blkview_takeover(D->view);
}
