/*
 * sim_check.c: the invariants of docs/design.md, looked at after every step and at the end.
 */
#include "tests/sim/sim.h"

#define P (&w->node[REMUS_PRIMARY])
#define S (&w->node[REMUS_SECONDARY])
#define STOPPED_MAX (60ull * 1000 * MS)  /* more than any row of timers can add up to */
#define SERVED_MAX  (2ull * 1000 * MS)   /* a guest that runs answers its client within this */

/* The secondary may still become active, for all that it knows and for all that was decided. */
static bool may_take_over(const struct world *w)
{
    if (!node_thinks(S) || w->winner == REMUS_PRIMARY) {
        return false;
    }
    switch (S->core.state) {
    case RS_RUN:
    case RS_APPLY:
    case RS_ARBITRATE:
    case RS_TAKEOVER:
        return true;
    case RS_RECEIVE:
        return S->core.applied > 0;
    default:
        return false;
    }
}

/* No output leaves before the secondary knows of it, one way or the other: whatever happens next,
 * what the world saw is in the history that the secondary would go on with. */
static void check_knowledge(struct world *w)
{
    const struct guest *g = &S->guest;
    uint32_t id;

    if (!world_is_kept(w) || !may_take_over(w)) {
        return;
    }
    if (S->core.state == RS_APPLY) {
        g = &w->snap[S->core.epoch % SNAPS].guest;
    }
    id = g->newest;
    while (w->output[id].index > w->client.seen) {
        id = w->output[id].parent;
    }
    if (w->output[id].index != w->client.seen || w->output[id].chain != w->client.chain) {
        violation(w, "the world saw output %llu, and the secondary, which may take over, did not "
                  "(it knows %u)", (unsigned long long)w->client.seen, w->output[g->newest].index);
    }
}

/* What a guest of the secondary wrote, it finds; what it never wrote, or the primary wrote after
 * the checkpoint that it goes on from, it does not. */
static void check_disk(struct world *w)
{
    const uint32_t first = w->disk.changed ? 0 : (uint32_t)(w->steps % SIM_SECTORS);
    const uint32_t count = w->disk.changed ? SIM_SECTORS : w->disk.touched;
    uint64_t found[SIM_SECTORS];

    if (!count || first + count > SIM_SECTORS) {
        return;
    }
    w->disk.changed = false;
    w->disk.touched = 0;
    disk_read(w, first, count, found);
    for (uint32_t i = 0; i < count; i++) {
        if (found[i] != S->guest.wrote[first + i]) {
            violation(w, "the secondary's guest wrote something else to sector %u of its disk "
                      "than it finds", first + i);
            return;
        }
    }
}

void check_step(struct world *w)
{
    if (w->net && S->open && !S->host_dead && proxy_open(w)) {
        violation(w, "both guests' output is open");
    }
    if (S->running && S->torn) {
        violation(w, "the secondary runs with half an epoch applied");
    }
    if (S->open && world_is_kept(w) && S->guest.inputs < w->client.acked) {
        violation(w, "input %llu, which the client believes delivered, is lost",
                  (unsigned long long)S->guest.inputs);
    }
    if (S->running && S->domain && w->disk.has && !S->torn) {
        check_disk(w);
    }
    check_knowledge(w);
    if (P->domain && !P->running && !P->ended && !P->hung && !P->host_dead &&
        w->now >= P->frozen_until && !P->finished && w->now - P->stopped_since > STOPPED_MAX) {
        violation(w, "the primary's guest has been stopped since %llu ms",
                  (unsigned long long)(P->stopped_since / MS));
    }
}

bool is_served(const struct world *w)
{
    return w->now - w->client.last_seen_at <= SERVED_MAX;
}

static bool settled(const struct node *n)
{
    return !node_thinks(n) || n->finished;
}

/*
 * At the end, long after the last fault: the client is served, or there is a named reason why not.
 * One fault alone never is one, except where the guest itself ended or cannot be resumed at all.
 */
void check_end(struct world *w)
{
    bool served = is_served(w);
    bool cannot_resume = P->finished && P->core.end == REMUS_END_FAILED && P->core.guest_stopped;

    if (!w->net) { /* the world sees the primary's output whatever becomes of the session */
        served = served || S->open;
    }
    if (served || P->ended || (S->open && S->ended) || cannot_resume) {
        return;
    }
    if (P->host_dead && !S->core.applied) {
        return; /* not yet protected */
    }
    if (P->hung && (!S->core.applied || w->faults > 1)) {
        return; /* no copy, or something else befell it: nothing is left that could be served */
    }
    if (w->faults <= 1) {
        violation(w, "nobody serves the client (primary %s, secondary %s)",
                  P->host_dead ? "dead" : remus_state_name(P->core.state),
                  S->host_dead ? "dead" : remus_state_name(S->core.state));
    } else if (!settled(P) || !settled(S)) {
        violation(w, "nobody serves the client and nothing is decided (primary %s, secondary %s)",
                  remus_state_name(P->core.state), remus_state_name(S->core.state));
    } else if (P->domain && !P->running && node_thinks(P) && P->core.end != REMUS_END_GUEST) {
        violation(w, "the primary's guest was left stopped: %s", P->core.reason);
    }
}
