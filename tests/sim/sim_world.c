/*
 * sim_world.c: the queue of events, chance, the two guests, the client and the packet daemons.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

/* ---- Chance and the queue ------------------------------------------------------------------- */

uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15ull + b + 0x632be59bd9b4e019ull;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t chance(struct world *w, uint64_t below)
{
    w->random += 0x9e3779b97f4a7c15ull;
    return below ? mix(w->random, w->seed) % below : 0;
}

uint64_t between(struct world *w, uint64_t low, uint64_t high)
{
    return low + chance(w, high - low + 1);
}

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static struct sim_event *push(struct world *w, const struct sim_event *e)
{
    unsigned int i = w->heap_count++;

    if (i == w->heap_room) {
        w->heap_room = i ? 2 * i : 256;
        w->heap = realloc(w->heap, w->heap_room * sizeof(*w->heap));
        if (!w->heap) {
            abort();
        }
    }
    while (i && before(e, &w->heap[(i - 1) / 2])) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = *e;
    return &w->heap[i];
}

/* The caller fills in the rest; it must not change .at or .order. */
struct sim_event *post(struct world *w, enum sim_kind kind, enum remus_role node, uint64_t at)
{
    struct sim_event e = { .at = at, .order = ++w->order, .kind = kind, .node = node };

    return push(w, &e);
}

static void pop(struct world *w, struct sim_event *out)
{
    struct sim_event last;
    unsigned int i = 0, child;

    *out = w->heap[0];
    last = w->heap[--w->heap_count];
    while ((child = 2 * i + 1) < w->heap_count) {
        if (child + 1 < w->heap_count && before(&w->heap[child + 1], &w->heap[child])) {
            child++;
        }
        if (!before(&w->heap[child], &last)) {
            break;
        }
        w->heap[i] = w->heap[child];
        i = child;
    }
    if (w->heap_count) {
        w->heap[i] = last;
    }
}

static void put_off(struct world *w, const struct sim_event *e, uint64_t until)
{
    struct sim_event later = *e; /* with its old order: what was behind it stays behind it */

    later.at = until;
    push(w, &later);
}

/*
 * Takes the next event, unless a node wants to look at its timers first: then .kind is K_ANSWER
 * with RE_TICK.  Events of a frozen host wait for its thaw, bytes on a blocked line for its repair.
 */
bool take(struct world *w, struct sim_event *out)
{
    for (;;) {
        uint64_t wake = NEVER;
        int who = -1;

        for (int i = 0; i < 2; i++) {
            const struct node *n = &w->node[i];
            uint64_t at = n->wake_at > n->frozen_until ? n->wake_at : n->frozen_until;

            if (!n->host_dead && !n->coordinator_dead && n->wake_at != NEVER && at < wake) {
                wake = at;
                who = i;
            }
        }
        if (who >= 0 && (!w->heap_count || wake <= w->heap[0].at)) {
            *out = (struct sim_event){ .at = wake > w->now ? wake : w->now, .kind = K_ANSWER,
                                       .node = (uint8_t)who, .event = { .type = RE_TICK } };
            w->node[who].wake_at = NEVER;
            w->now = out->at;
            return true;
        }
        if (!w->heap_count) {
            return false;
        }
        pop(w, out);
        w->now = out->at;
        if (out->kind == K_CLIENT || out->kind == K_FAULT || out->kind == K_ARBITER) {
            return true; /* these happen elsewhere */
        }
        if (w->node[out->node].host_dead) {
            continue;
        }
        if (w->now <= w->node[out->node].frozen_until) {
            put_off(w, out, w->node[out->node].frozen_until + 1);
            continue;
        }
        if ((out->kind == K_LINK || out->kind == K_PACKET || out->kind == K_DISK) &&
            w->now < w->to[out->node].blocked_until) {
            if (w->to[out->node].blocked_until != NEVER) {
                put_off(w, out, w->to[out->node].blocked_until);
            }
            continue;
        }
        return true;
    }
}

void violation(struct world *w, const char *format, ...)
{
    va_list args;

    if (w->failed) {
        return;
    }
    w->failed = true;
    va_start(args, format);
    vsnprintf(w->why, sizeof(w->why), format, args);
    va_end(args);
    trace(w, "CHECK", "%s", w->why);
}

void trace(struct world *w, const char *who, const char *format, ...)
{
    va_list args;

    if (!w->trace) {
        return;
    }
    printf("%11.6f  %-9s ", (double)w->now / 1e6, who);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

/* Whether the mode promises that what the world saw is never contradicted. */
bool world_is_kept(const struct world *w)
{
    return w->keeps && w->net;
}

/* ---- Guests --------------------------------------------------------------------------------- */

static struct guest *guest_of(struct world *w, enum remus_role role)
{
    return &w->node[role].guest;
}

static uint32_t output_add(struct world *w, uint32_t parent, uint64_t content, uint64_t inputs)
{
    if (w->outputs == w->output_room) {
        w->output_room = w->output_room ? 2 * w->output_room : 1024;
        w->output = realloc(w->output, w->output_room * sizeof(*w->output));
        if (!w->output) {
            abort();
        }
    }
    w->output[w->outputs] = (struct output){
        .parent = parent,
        .index = w->output[parent].index + 1,
        .content = content,
        .chain = mix(w->output[parent].chain, content),
        .inputs = inputs,
    };
    return w->outputs++;
}

/* The output of that index in the history that ends in newest. */
static uint32_t output_at(const struct world *w, uint32_t newest, uint64_t index)
{
    while (w->output[newest].index > index) {
        newest = w->output[newest].parent;
    }
    return newest;
}

static bool answers(const struct world *w, uint64_t input)
{
    return input % 4 == 3 || mix(input, w->seed) % 16 < w->output_of_16;
}

static void new_output(struct world *w, enum remus_role role);

static void guest_process(struct world *w, enum remus_role role, uint64_t input)
{
    struct guest *g = guest_of(w, role);
    unsigned int k = (unsigned int)(input % PAGES);

    if (input != g->inputs || w->node[role].ended) {
        return; /* a repetition, or one is missing: the client sends again */
    }
    g->page[k] = mix(g->page[k], input);
    g->dirty |= 1u << k;
    g->inputs++;
    if (w->disk.has && input % 3) {
        disk_write(w, role, (uint32_t)(mix(input, 1) % SIM_SECTORS), mix(g->page[k], 1));
    }
    if (answers(w, input)) {
        g->newest = output_add(w, g->newest, mix(g->page[k], g->inputs), g->inputs);
        new_output(w, role);
    }
}

void guest_input(struct world *w, enum remus_role role, uint64_t input)
{
    struct guest *g = guest_of(w, role);

    if (!w->node[role].domain) {
        return;
    }
    if (w->node[role].running) {
        guest_process(w, role, input);
    } else if (g->rx_count < RX_ROOM) {
        g->rx[g->rx_count++] = input;
    }
}

/* The guest goes on: first with what lies in its ring. */
void guest_runs(struct world *w, enum remus_role role)
{
    struct guest *g = guest_of(w, role);
    uint64_t rx[RX_ROOM];
    unsigned int count = g->rx_count;

    memcpy(rx, g->rx, sizeof(rx));
    g->rx_count = 0;
    for (unsigned int i = 0; i < count; i++) {
        guest_process(w, role, rx[i]);
    }
}

/* Something in one copy that is not a function of its inputs: time, scheduling, randomness. */
void guest_noise(struct world *w, enum remus_role role)
{
    struct guest *g = guest_of(w, role);
    unsigned int k = (unsigned int)chance(w, PAGES);

    if (w->node[role].running && w->node[role].domain && !w->node[role].ended) {
        g->page[k] = mix(g->page[k], chance(w, NEVER));
        g->dirty |= 1u << k;
        if (w->disk.has) {
            disk_write(w, role, (uint32_t)chance(w, SIM_SECTORS), g->page[k]);
        }
    }
}

/* ---- The client's side of the network ------------------------------------------------------- */

static void emit(struct world *w, enum remus_role role, uint32_t id)
{
    const struct output *o = &w->output[id];
    struct client *c = &w->client;

    if (role == REMUS_PRIMARY && w->node[REMUS_SECONDARY].open) {
        violation(w, "output %u of the primary leaves while the secondary is active", o->index);
    }
    if (o->index != c->seen + 1) {
        violation(w, "output %u leaves, %llu had left before", o->index,
                  (unsigned long long)c->seen);
    }
    if (w->output[o->parent].chain != c->chain) {
        violation(w, "output %u of the %s contradicts what the world saw before", o->index,
                  w->node[role].name);
    }
    c->seen = o->index;
    c->chain = o->chain;
    c->last_seen_at = w->now;
    if (o->inputs > c->acked) {
        c->acked = o->inputs;
    }
    trace(w, "world", "sees output %u of the %s (%llu inputs)", o->index, w->node[role].name,
          (unsigned long long)o->inputs);
}

static void client_sends(struct world *w, uint64_t input)
{
    enum remus_role role = w->node[REMUS_SECONDARY].open ? REMUS_SECONDARY : REMUS_PRIMARY;

    if (w->node[role].host_dead || w->now < w->node[role].frozen_until) {
        return;
    }
    if (role == REMUS_SECONDARY) {
        guest_input(w, role, input);
    } else {
        proxy_input(w, input);
    }
}

void client_event(struct world *w)
{
    struct client *c = &w->client;

    if (c->made - c->acked < 8) {
        client_sends(w, c->made++);
    }
    if (chance(w, 4) == 0) { /* retransmission of whatever is not known to have arrived */
        for (uint64_t i = c->acked; i < c->made; i++) {
            client_sends(w, i);
        }
    }
}

/* ---- The primary's packet daemon ------------------------------------------------------------ */

/* Whether the primary's output can reach the world at this moment. */
bool proxy_open(const struct world *w)
{
    const struct node *p = &w->node[REMUS_PRIMARY];

    return !p->host_dead && p->domain && w->now >= p->frozen_until && !w->proxy.held &&
           !(w->proxy.protects && p->daemon_dead);
}

static void want_checkpoint(struct world *w)
{
    struct sim_event *e;

    if (w->proxy.wanted || w->node[REMUS_PRIMARY].daemon_dead) {
        return;
    }
    w->proxy.wanted = true;
    e = post(w, K_ANSWER, REMUS_PRIMARY, w->now + between(w, 50, 500));
    e->event.type = RE_CHECKPOINT_WANTED;
    e->event.epoch = w->proxy.epoch;
}

/* Whether the secondary's output of the same index is there and equal; a difference is acted on. */
static bool matched(struct world *w, const struct output *o)
{
    unsigned int slot = o->index % OUTS_ROOM;

    if (!w->proxy.partner[slot] || w->proxy.partner_index[slot] != o->index) {
        return false;
    }
    if (w->proxy.partner_content[slot] != o->content && w->mutation != BREAK_NO_COMPARE) {
        trace(w, "proxy", "output %u differs in epoch %llu", o->index,
              (unsigned long long)w->proxy.epoch);
        want_checkpoint(w);
        return false;
    }
    return true;
}

void proxy_pump(struct world *w)
{
    struct proxy *x = &w->proxy;
    const struct node *p = &w->node[REMUS_PRIMARY];
    uint32_t id;
    bool earlier;

    if (!w->net && w->node[REMUS_SECONDARY].open) {
        return; /* nothing fences a network that takes no part; the client listens to one */
    }
    while (proxy_open(w) && w->client.seen < w->output[p->guest.newest].index) {
        id = output_at(w, p->guest.newest, w->client.seen + 1);
        earlier = x->protects && w->output[id].index <= x->cut[(x->epoch - 1) % SNAPS];
        if (x->protects && (earlier || x->mode->holds_output) && w->output[id].index > x->safe &&
            !(x->mode->compares && matched(w, &w->output[id]))) {
            return;
        }
        emit(w, REMUS_PRIMARY, id);
    }
}

static void new_output(struct world *w, enum remus_role role)
{
    const struct output *o = &w->output[w->node[role].guest.newest];
    struct sim_event *e;

    if (role == REMUS_SECONDARY) {
        if (w->node[role].open) {
            shadow_open(w);
        } else if (w->node[role].core.mode->compares && !w->node[role].daemon_dead) {
            packet_send(w, REMUS_PRIMARY, PACKET_OUTPUT, w->node[role].core.epoch, o->index,
                        o->content);
        }
        return;
    }
    proxy_pump(w);
    if (w->client.seen < o->index && w->proxy.protects && !w->proxy.held) {
        if (w->proxy.mode->output_triggers) {
            want_checkpoint(w);
        } else if (w->proxy.mode->compares) {
            e = post(w, K_DEADLINE, REMUS_PRIMARY, w->now + 50 * MS);
            e->a = w->proxy.epoch;
            e->b = o->index;
        }
    }
}

void proxy_deadline(struct world *w, uint64_t epoch, uint64_t index)
{
    if (w->proxy.protects && !w->proxy.held && epoch == w->proxy.epoch &&
        w->client.seen < index) {
        want_checkpoint(w);
    }
}

void proxy_input(struct world *w, uint64_t input)
{
    struct proxy *x = &w->proxy;

    if (x->protects && w->node[REMUS_PRIMARY].daemon_dead) {
        return; /* nobody takes it from the kernel's queue */
    }
    if (x->input_stopped) {
        if (x->queued < QUEUE_ROOM) {
            x->queue[x->queued++] = input;
        }
        return;
    }
    if (x->protects && x->mode->compares) {
        packet_send(w, REMUS_SECONDARY, PACKET_INPUT, x->epoch, input, 0);
    }
    guest_input(w, REMUS_PRIMARY, input);
}

void proxy_flush_input(struct world *w)
{
    struct proxy *x = &w->proxy;
    uint64_t queue[QUEUE_ROOM];
    unsigned int count = x->queued;

    x->input_stopped = false;
    memcpy(queue, x->queue, count * sizeof(queue[0]));
    x->queued = 0;
    for (unsigned int i = 0; i < count; i++) {
        proxy_input(w, queue[i]);
    }
}

void proxy_cut(struct world *w, uint64_t epoch, uint16_t mode)
{
    struct proxy *x = &w->proxy;

    x->cut[epoch % SNAPS] = w->output[w->node[REMUS_PRIMARY].guest.newest].index;
    x->epoch = epoch + 1;
    x->mode = remus_mode_by_wire(mode);
    x->protects = true;
    x->wanted = false;
    memset(x->partner, 0, sizeof(x->partner));
    proxy_flush_input(w);
}

void proxy_unprotect(struct world *w)
{
    w->proxy.protects = false;
    w->proxy.held = false;
    proxy_flush_input(w);
    proxy_pump(w);
}

void proxy_partner(struct world *w, uint64_t epoch, uint64_t index, uint64_t content)
{
    struct proxy *x = &w->proxy;
    unsigned int slot = index % OUTS_ROOM;

    if (epoch != x->epoch || w->node[REMUS_PRIMARY].daemon_dead) {
        return; /* of an epoch that is over */
    }
    x->partner[slot] = true;
    x->partner_index[slot] = index;
    x->partner_content[slot] = content;
    proxy_pump(w);
}

/* ---- The secondary's packet daemon ---------------------------------------------------------- */

void shadow_queue(struct world *w, uint64_t epoch, uint64_t input)
{
    struct node *s = &w->node[REMUS_SECONDARY];

    if (s->queued < QUEUE_ROOM) {
        s->queue_epoch[s->queued] = epoch;
        s->queue_input[s->queued++] = input;
    }
    shadow_pump(w);
}

/* Input of an epoch that was replaced is in the checkpoint already; of a later one, it waits. */
void shadow_pump(struct world *w)
{
    struct node *s = &w->node[REMUS_SECONDARY];
    uint64_t due[QUEUE_ROOM];
    unsigned int kept = 0, count = 0;

    if (!s->running) {
        return;
    }
    for (unsigned int i = 0; i < s->queued; i++) {
        if (s->queue_epoch[i] > s->core.epoch) {
            s->queue_epoch[kept] = s->queue_epoch[i];
            s->queue_input[kept++] = s->queue_input[i];
        } else if (s->queue_epoch[i] == s->core.epoch) {
            due[count++] = s->queue_input[i];
        }
    }
    s->queued = kept;
    for (unsigned int i = 0; i < count; i++) {
        guest_input(w, REMUS_SECONDARY, due[i]);
    }
}

/* The secondary is the guest now: what it kept because nobody told it that it was matched leaves,
 * as far as the world has not seen it. */
void shadow_open(struct world *w)
{
    struct node *s = &w->node[REMUS_SECONDARY];

    if (!world_is_kept(w) && w->winner == REMUS_SECONDARY) {
        /* The client's connections break and it begins again with what this copy knows. */
        uint32_t id = output_at(w, s->guest.newest, w->client.seen);

        w->client.seen = w->output[id].index;
        w->client.chain = w->output[id].chain;
        w->client.acked = s->guest.inputs;
    }
    while (!s->host_dead && s->domain && w->client.seen < w->output[s->guest.newest].index) {
        emit(w, REMUS_SECONDARY, output_at(w, s->guest.newest, w->client.seen + 1));
    }
}

/* ---- Beginning and end ---------------------------------------------------------------------- */

void world_reset(struct world *w, uint64_t seed)
{
    struct output *output = w->output;
    struct sim_event *heap = w->heap;
    uint32_t output_room = w->output_room;
    unsigned int heap_room = w->heap_room;
    enum sim_break mutation = w->mutation;
    bool tracing = w->trace;

    blkview_free(w->disk.view);
    memset(w, 0, sizeof(*w));
    w->output = output;
    w->output_room = output_room;
    w->heap = heap;
    w->heap_room = heap_room;
    w->mutation = mutation;
    w->trace = tracing;
    w->seed = seed;
    w->winner = -1;
    if (!w->output) {
        w->output_room = 1024;
        w->output = malloc(w->output_room * sizeof(*w->output));
        if (!w->output) {
            abort();
        }
    }
    w->output[0] = (struct output){ 0 };
    w->outputs = 1;
    disk_reset(w);
}

void world_free(struct world *w)
{
    free(w->output);
    free(w->heap);
    blkview_free(w->disk.view);
}
