/*
 * compare.c: tables, limits, epochs and deadlines of the comparison (contract: compare.h).
 *
 * Limits, and what happens at each (nothing is ever released because something was full):
 *   frames_max   primary frames held.  Three quarters of them in the present epoch: checkpoint
 *                (QUEUE).  All: a further frame is dropped, as if the network had lost it; TCP
 *                sends it again, a datagram is lost.
 *   frames_max   secondary frames kept, likewise.  Full: the oldest surplus datagrams go; where
 *                none is left a TCP flow that would lose bytes is no longer compared in this epoch.
 *   bytes_max    copies of both sides, in chunks of 2 KiB.  Three quarters: half of the surplus
 *                goes, then checkpoint (QUEUE).  All: new primary frames are held by id alone, and
 *                what cannot be copied is not compared: the flow or datagram waits for the epoch's
 *                end.
 *   flows_max    TCP flows.  Idle ones make room for new ones (second chance); a forgotten flow is
 *                taken up again like one older than protection.  Three quarters busy: checkpoint
 *                (QUEUE).  All busy: frames of further flows are held by id until the epoch's end.
 *   REASSEMBLIES_MAX, FRAGMENTS_MAX: the oldest of the secondary goes; a primary's packet that
 *                finds no room, or has more pieces, waits for the epoch's end.
 *   TEXT         an action's text is cut at its size.
 *
 * Timers:
 *   a primary frame, or a secondary RST, has waited for its partner since it came or since the gate
 *   opened, whichever is later, for longer than the deadline: checkpoint (DEADLINE).  The deadline
 *   is the smoothed lag and on top 4 deviations (as RFC 6298 computes a retransmission timeout, so
 *   that a steady lag leaves a margin), the usual time from cut to release, or deadline_min_us,
 *   whichever is most; at most deadline_max_us.  So it waits at least as long as a checkpoint would
 *   take, and a frame is never held for more than twice what the better choice had cost.  It is
 *   the maximum until the first sample, and until the secondary has said anything in this epoch (it
 *   may still be applying the last checkpoint).
 *   a surplus datagram is older than twice deadline_max_us: forgotten.
 * No timer runs while the gate is closed, and no deadline once this epoch's end was asked for.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/compare_private.h"

#define DEFAULT_FLOWS_MAX       16384u
#define DEFAULT_BYTES_MAX       (64ull << 20)
#define DEFAULT_FRAMES_MAX      8192u
#define DEFAULT_DEADLINE_MIN_US 20000u
#define DEFAULT_DEADLINE_MAX_US 200000u

#define ASSEMBLY_BYTES          65536u
#define EVICT_STEPS             256u
#define UNLIKE_STEPS            64u

/* ---- Lists ----------------------------------------------------------------------------------- */

void list_insert(struct cmp *c, enum place place, struct flow *f, struct list *list,
                 struct item *it, struct item *before)
{
    it->place = (uint8_t)place;
    it->list = list;
    it->next = before;
    it->prev = before ? before->prev : list->last;
    if (it->prev) {
        it->prev->next = it;
    } else {
        list->first = it;
    }
    if (before) {
        before->prev = it;
    } else {
        list->last = it;
    }
    it->flow = f;
    if (f && !f->items++) {
        c->flows_busy++;
    }
}

void list_remove(struct cmp *c, struct item *it)
{
    struct list *list = it->list;

    if (!list) {
        return;
    }
    if (it->prev) {
        it->prev->next = it->next;
    } else {
        list->first = it->next;
    }
    if (it->next) {
        it->next->prev = it->prev;
    } else {
        list->last = it->prev;
    }
    it->next = it->prev = NULL;
    it->list = NULL;
    it->place = PLACE_NONE;
    if (it->flow && !--it->flow->items) {
        c->flows_busy--;
    }
    it->flow = NULL;
}

static void fifo_append(struct fifo *fifo, struct item *it)
{
    it->fifo = fifo;
    it->newer = NULL;
    it->older = fifo->last;
    if (fifo->last) {
        fifo->last->newer = it;
    } else {
        fifo->first = it;
    }
    fifo->last = it;
    fifo->count++;
}

static void fifo_remove(struct item *it)
{
    struct fifo *fifo = it->fifo;

    if (it->older) {
        it->older->newer = it->newer;
    } else {
        fifo->first = it->newer;
    }
    if (it->newer) {
        it->newer->older = it->older;
    } else {
        fifo->last = it->older;
    }
    fifo->count--;
    it->fifo = NULL;
}

/* ---- Copies ---------------------------------------------------------------------------------- */

static struct chunk *chunk_get(struct cmp *c)
{
    struct chunk *chunk = c->chunks_free;

    if (!chunk) {
        uint32_t n = c->chunks_max - c->chunks_made, i;
        struct chunk *slab;

        if (!n || c->slabs_count == c->slabs_max) {
            return NULL;
        }
        if (n > SLAB_CHUNKS) {
            n = SLAB_CHUNKS;
        }
        slab = malloc(n * sizeof(*slab));
        if (!slab) {
            return NULL; /* the same rule as a full bytes_max */
        }
        c->slabs[c->slabs_count++] = slab;
        c->chunks_made += n;
        for (i = 0; i < n; i++) {
            slab[i].next = i + 1 < n ? &slab[i + 1] : NULL;
        }
        chunk = slab;
    }
    c->chunks_free = chunk->next;
    c->chunks_used++;
    return chunk;
}

static void chunk_put(struct cmp *c, struct chunk *chunk)
{
    chunk->next = c->chunks_free;
    c->chunks_free = chunk;
    c->chunks_used--;
}

void item_forget(struct cmp *c, struct item *it)
{
    while (it->chunks) {
        struct chunk *next = it->chunks->next;

        chunk_put(c, it->chunks);
        it->chunks = next;
    }
    it->ext = NULL;
}

int item_keep(struct cmp *c, struct item *it, uint32_t from)
{
    struct chunk *first = NULL, **link = &first;
    const uint8_t *ext = it->ext;
    uint32_t at = from;

    if (!ext) {
        return 0;
    }
    while (at < it->bytes) {
        uint32_t n = it->bytes - at;
        struct chunk *chunk = chunk_get(c);

        if (!chunk) {
            *link = NULL;
            it->chunks = first;
            item_forget(c, it);
            it->ext = ext;
            return -ENOSPC;
        }
        if (n > CHUNK_DATA) {
            n = CHUNK_DATA;
        }
        memcpy(chunk->bytes, ext + at, n);
        *link = chunk;
        link = &chunk->next;
        at += n;
    }
    *link = NULL;
    it->chunks = first;
    it->kept = from;
    it->ext = NULL;
    return 0;
}

void item_trim(struct cmp *c, struct item *it, uint32_t offset)
{
    while (it->chunks && offset >= it->kept && offset - it->kept >= CHUNK_DATA) {
        struct chunk *next = it->chunks->next;

        chunk_put(c, it->chunks);
        it->chunks = next;
        it->kept += CHUNK_DATA;
    }
}

uint32_t item_span(const struct item *it, uint32_t offset, const uint8_t **data)
{
    const struct chunk *chunk = it->chunks;
    uint32_t rest = it->bytes - offset;

    if (it->ext) {
        *data = it->ext + offset;
        return rest;
    }
    for (offset -= it->kept; offset >= CHUNK_DATA; offset -= CHUNK_DATA) {
        chunk = chunk->next;
    }
    *data = chunk->bytes + offset;
    return rest < CHUNK_DATA - offset ? rest : (uint32_t)CHUNK_DATA - offset;
}

uint32_t item_compare(const struct item *a, uint32_t a_offset, const struct item *b,
                      uint32_t b_offset, uint32_t count)
{
    uint32_t done = 0;

    while (done < count) {
        const uint8_t *x, *y;
        uint32_t n = item_span(a, a_offset + done, &x);
        uint32_t m = item_span(b, b_offset + done, &y);

        if (n > m) {
            n = m;
        }
        if (n > count - done) {
            n = count - done;
        }
        if (memcmp(x, y, n)) {
            while (*x == *y) {
                x++;
                y++;
                done++;
            }
            return done;
        }
        done += n;
    }
    return count;
}

/* ---- Items ----------------------------------------------------------------------------------- */

static struct item *item_new(struct cmp *c, enum side side, uint64_t id, struct fifo *fifo)
{
    struct item *it = c->items_free[side];

    if (!it) {
        return NULL;
    }
    c->items_free[side] = it->next;
    it->next = it->prev = NULL;
    it->list = NULL;
    it->place = PLACE_NONE;
    it->flow = NULL;
    it->id = id;
    it->arrival_us = c->now_us;
    it->epoch = c->present;
    it->ext = NULL;
    it->chunks = NULL;
    it->bytes = it->kept = 0;
    it->side = (uint8_t)side;
    it->class = (uint8_t)c->class;
    it->gso = false;
    fifo_append(fifo, it);
    return it;
}

void item_free(struct cmp *c, struct item *it)
{
    if (c->fresh == it) {
        c->fresh = NULL;
    }
    if (c->cursor == it) {
        c->cursor = it->newer;
    }
    item_forget(c, it);
    list_remove(c, it);
    fifo_remove(it);
    it->next = c->items_free[it->side];
    c->items_free[it->side] = it;
}

static void emit(struct cmp *c, enum cmp_action_type type, uint64_t id)
{
    c->action.type = type;
    c->action.id = id;
    c->emit(c->arg, &c->action);
}

void matched(struct cmp *c, uint64_t id)
{
    emit(c, CMP_MATCHED, id);
}

void want_checkpoint(struct cmp *c, enum ctl_why why, enum ctl_class class,
                     const struct packet_key *key, const char *format, ...)
{
    char name[PACKET_DESCRIBE_MAX];
    va_list args;
    int n;

    if (c->wanted == c->present) {
        c->stats.checkpoints_coalesced++;
        return;
    }
    c->wanted = c->present;
    c->stats.checkpoints[why]++;
    c->stats.classes[class].checkpoints[why]++;
    c->action.has_key = key;
    if (key) {
        c->action.key = *key;
        packet_key_describe(key, name, sizeof(name));
    }
    n = snprintf(c->action.text, sizeof(c->action.text), "epoch %llu: %s%s",
                 (unsigned long long)c->present, key ? name : "", key ? ": " : "");
    va_start(args, format);
    vsnprintf(c->action.text + n, sizeof(c->action.text) - (size_t)n, format, args);
    va_end(args);
    c->action.why = why;
    emit(c, CMP_CHECKPOINT, 0);
    c->action.why = 0;
    c->action.has_key = false;
    c->action.text[0] = '\0';
}

/* Frames and flows count against their limit only while comparison may still let them go: those of
 * earlier epochs leave by themselves. */
static bool three_quarters(uint64_t count, uint64_t max)
{
    return count >= max - max / 4;
}

static void surplus_drop(struct cmp *c)
{
    struct item *it = c->s_surplus.first;

    c->stats.secondary_surplus++;
    if (it->place == PLACE_REASSEMBLY) {
        reassembly_drop(c, it->fragment.of);
        return;
    }
    datagram_free(c, it);
}

static void check_limits(struct cmp *c)
{
    uint64_t kept = c->s_tcp.count + c->s_must.count + c->s_future.count;

    if (three_quarters(c->chunks_used, c->chunks_max)) {
        uint32_t half = c->s_surplus.count / 2;

        while (c->s_surplus.count > half && three_quarters(c->chunks_used, c->chunks_max)) {
            surplus_drop(c);
        }
    }
    if (c->wanted == c->present) {
        return;
    }
    if (three_quarters(c->p_fifo.count - c->p_waiting, c->limits.frames_max)) {
        want_checkpoint(c, CTL_WHY_QUEUE, c->class, NULL,
                        "%u frames of the primary held, at most %u", c->p_fifo.count,
                        c->limits.frames_max);
    } else if (three_quarters(kept, c->limits.frames_max)) {
        want_checkpoint(c, CTL_WHY_QUEUE, c->class, NULL,
                        "%u frames of the secondary kept, at most %u", (unsigned int)kept,
                        c->limits.frames_max);
    } else if (three_quarters(c->chunks_used, c->chunks_max)) {
        want_checkpoint(c, CTL_WHY_QUEUE, c->class, NULL, "%llu bytes kept, at most %llu",
                        (unsigned long long)c->chunks_used * CHUNK_BYTES,
                        (unsigned long long)c->limits.bytes_max);
    } else if (three_quarters(c->flows_busy, c->limits.flows_max)) {
        want_checkpoint(c, CTL_WHY_QUEUE, c->class, NULL, "%u busy flows, at most %u",
                        c->flows_busy, c->limits.flows_max);
    }
}

struct item *primary_new(struct cmp *c, uint64_t id, bool gso)
{
    struct item *it = item_new(c, PRIMARY, id, &c->p_fifo);

    if (!it) {
        c->stats.dropped_full++;
        c->missed = true;
        emit(c, CMP_DROP, id);
        return NULL;
    }
    it->gso = gso;
    if (c->p_fifo.count > c->stats.held_max) {
        c->stats.held_max = c->p_fifo.count;
    }
    return it;
}

struct item *secondary_new(struct cmp *c, uint64_t id, struct fifo *fifo)
{
    struct item *it = item_new(c, SECONDARY, id, fifo);

    if (!it && c->s_surplus.first) {
        surplus_drop(c);
        it = item_new(c, SECONDARY, id, fifo);
    }
    return it;
}

void primary_wait(struct cmp *c, struct item *it)
{
    item_forget(c, it);
    list_remove(c, it);
}

static void lag_sample(struct cmp *c, uint64_t lag)
{
    uint64_t error;

    if (!c->has_lag) {
        c->has_lag = true;
        c->lag_us = lag;
        c->lag_var_us = lag / 2;
        return;
    }
    error = lag > c->lag_us ? lag - c->lag_us : c->lag_us - lag;
    c->lag_var_us = (3 * c->lag_var_us + error) / 4;
    c->lag_us = (7 * c->lag_us + lag) / 8;
}

static void count_delay(struct cmp *c, const struct item *it)
{
    uint64_t delay = c->now_us - it->arrival_us;

    struct ctl_class_stats *class = &c->stats.classes[it->class];

    c->stats.delay_us_sum += delay;
    if (delay > c->stats.delay_us_max) {
        c->stats.delay_us_max = delay;
    }
    class->delay_us_sum += delay;
    if (delay > class->delay_us_max) {
        class->delay_us_max = delay;
    }
}

void primary_release(struct cmp *c, struct item *it, enum cmp_action_type type)
{
    c->stats.released_equal++;
    c->stats.classes[it->class].equal++;
    count_delay(c, it);
    /* What came while the gate was closed has waited for the checkpoint, not for its partner. */
    if (it->arrival_us >= c->start_us) {
        lag_sample(c, c->now_us - it->arrival_us);
    }
    emit(c, type, it->id);
    item_free(c, it);
}

/* ---- Flow table ------------------------------------------------------------------------------ */

static struct flow **flow_head(struct cmp *c, const struct packet_key *key)
{
    return &c->flow_heads[XXH3_64bits_withSeed(key, sizeof(*key), c->limits.hash_seed) &
                          c->flow_mask];
}

static void flow_forget(struct cmp *c, struct flow *f)
{
    struct flow **link = flow_head(c, &f->key);

    while (*link != f) {
        link = &(*link)->hash_next;
    }
    *link = f->hash_next;
    f->used = false;
    f->hash_next = c->flows_free;
    c->flows_free = f;
    c->stats.flows--;
}

/* Looks at a bounded number of flows, so that a flood of new ones costs no more than that each. */
static bool flow_evict(struct cmp *c)
{
    struct flow *second = NULL;
    uint32_t steps;

    for (steps = 0; steps < EVICT_STEPS && steps < c->limits.flows_max; steps++) {
        struct flow *f = &c->flows[c->clock];

        c->clock = (c->clock + 1) % c->limits.flows_max;
        /* A diverged flow must not be taken up afresh in the epoch in which it diverged. */
        if (!f->used || f->items || (f->lost && f->epoch == c->present)) {
            continue;
        }
        if (!f->recent) {
            flow_forget(c, f);
            return true;
        }
        f->recent = false;
        if (!second) {
            second = f;
        }
    }
    if (second) {
        flow_forget(c, second);
    }
    return second;
}

struct flow *flow_get(struct cmp *c, const struct packet_key *key, bool create)
{
    struct flow **head = flow_head(c, key), *f;

    for (f = *head; f; f = f->hash_next) {
        if (!memcmp(&f->key, key, sizeof(*key))) {
            f->recent = true;
            if (f->epoch != c->present) {
                tcp_rebase(f);
                f->epoch = c->present;
            }
            return f;
        }
    }
    if (!create) {
        return NULL;
    }
    if (!c->flows_free && c->flows_fresh == c->limits.flows_max &&
        (c->flows_busy == c->limits.flows_max || !flow_evict(c))) {
        return NULL;
    }
    if (c->flows_free) {
        f = c->flows_free;
        c->flows_free = f->hash_next;
    } else {
        f = &c->flows[c->flows_fresh++];
    }
    memset(f, 0, sizeof(*f));
    f->key = *key;
    f->epoch = c->present;
    f->used = f->recent = true;
    f->hash_next = *head;
    *head = f;
    if (++c->stats.flows > c->stats.flows_max) {
        c->stats.flows_max = c->stats.flows;
    }
    return f;
}

/* ---- Frames in ------------------------------------------------------------------------------- */

static void set_now(struct cmp *c, uint64_t now_us)
{
    if (now_us > c->now_us) {
        c->now_us = now_us;
    }
}

/* After the gate opened: whatever has come to match behind it. */
static void rerun(struct cmp *c)
{
    struct item *it;

    if (!c->rerun || !gate_open(c)) {
        return;
    }
    c->rerun = false;
    c->cursor = c->p_fifo.first;
    while ((it = c->cursor)) {
        c->cursor = it->newer;
        if (it->place == PLACE_FLOW) {
            tcp_run(c, it->flow);
        } else if (it->place == PLACE_BUCKET) {
            datagram_run(c, it);
        }
    }
    /* Flows of which only the secondary has spoken again, of what has left by now. */
    c->cursor = c->s_tcp.first;
    while ((it = c->cursor)) {
        c->cursor = it->newer;
        if (it->place == PLACE_FLOW) {
            tcp_run(c, it->flow);
        }
    }
}

static enum ctl_class class_of(const struct packet *p)
{
    if (p->kind == PACKET_ARP) {
        return CTL_CLASS_ARP;
    }
    if (p->kind == PACKET_BAD || p->kind == PACKET_OTHER) {
        return CTL_CLASS_OTHER;
    }
    switch (p->proto) {
    case PACKET_PROTO_TCP:
        return CTL_CLASS_TCP;
    case PACKET_PROTO_UDP:
        return CTL_CLASS_UDP;
    case PACKET_PROTO_ICMP:
    case PACKET_PROTO_ICMPV6:
        return CTL_CLASS_ICMP;
    default:
        return CTL_CLASS_OTHER;
    }
}

void cmp_primary(struct cmp *c, uint64_t now_us, uint64_t id, const uint8_t *frame, size_t length,
                 bool gso)
{
    struct packet p;

    set_now(c, now_us);
    rerun(c);
    c->stats.primary_frames++;
    packet_parse(&p, frame, length);
    c->class = class_of(&p);
    c->stats.classes[c->class].primary++;
    if (c->blind || length > REMUS_PACKET_MAX) {
        primary_new(c, id, gso); /* too long: the parser does not see all of it */
    } else if (p.kind == PACKET_TCP) {
        tcp_primary(c, &p, frame, id, gso);
    } else {
        datagram_primary(c, &p, frame, id, gso);
    }
    c->fresh = NULL;
    check_limits(c);
}

static void secondary_frame(struct cmp *c, uint64_t id, const uint8_t *frame, size_t length)
{
    struct packet p;

    c->heard = true;
    packet_parse(&p, frame, length);
    c->class = class_of(&p);
    c->stats.classes[c->class].secondary++;
    if (length > REMUS_PACKET_MAX) {
        c->stats.secondary_surplus++;
    } else if (p.kind == PACKET_TCP) {
        tcp_secondary(c, &p, frame, id);
    } else {
        datagram_secondary(c, &p, frame, id);
    }
    c->fresh = NULL;
}

/* A frame of an epoch that has not begun here: kept whole, handled at the cut. */
static void future_keep(struct cmp *c, uint64_t epoch, uint64_t id, const uint8_t *frame,
                        size_t length)
{
    struct item *it = length <= REMUS_PACKET_MAX ? secondary_new(c, id, &c->s_future) : NULL;

    if (!it) {
        c->stats.secondary_surplus++;
        return;
    }
    it->epoch = epoch;
    it->ext = frame;
    it->bytes = (uint32_t)length;
    if (item_keep(c, it, 0)) {
        c->stats.secondary_surplus++;
        item_free(c, it);
    }
}

static void future_replay(struct cmp *c)
{
    struct item *it, *newer;

    for (it = c->s_future.first; it; it = newer) {
        uint64_t id = it->id;
        uint32_t bytes = it->bytes, at = 0;

        newer = it->newer;
        if (it->epoch > c->present) {
            continue;
        }
        if (it->epoch < c->present) {
            c->stats.secondary_old++;
            item_free(c, it);
            continue;
        }
        while (at < bytes) {
            const uint8_t *data;
            uint32_t n = item_span(it, at, &data);

            memcpy(c->replay + at, data, n);
            at += n;
        }
        item_free(c, it);
        secondary_frame(c, id, c->replay, bytes);
    }
}

void cmp_secondary(struct cmp *c, uint64_t now_us, uint64_t epoch, uint64_t id,
                   const uint8_t *frame, size_t length)
{
    set_now(c, now_us);
    rerun(c);
    c->stats.secondary_frames++;
    if (epoch < c->present) {
        c->stats.secondary_old++;
        return;
    }
    if (epoch > c->present) {
        future_keep(c, epoch, id, frame, length);
    } else {
        secondary_frame(c, id, frame, length);
    }
    check_limits(c);
}

void cmp_input(struct cmp *c, uint64_t now_us, const uint8_t *frame, size_t length)
{
    struct packet p;

    set_now(c, now_us);
    if (c->blind) {
        return;
    }
    packet_parse(&p, frame, length);
    if (p.kind == PACKET_TCP) {
        tcp_input(c, &p);
    }
}

/* ---- Epochs ---------------------------------------------------------------------------------- */

static void reassemblies_drop(struct cmp *c)
{
    uint32_t i;

    for (i = 0; i < REASSEMBLIES_MAX && c->reassemblies_used; i++) {
        if (c->reassemblies[i].used) {
            reassembly_drop(c, &c->reassemblies[i]);
        }
    }
}

static void fifo_clear(struct cmp *c, struct fifo *fifo)
{
    while (fifo->first) {
        item_free(c, fifo->first);
    }
}

static void flows_forget(struct cmp *c)
{
    memset(c->flow_heads, 0, ((size_t)c->flow_mask + 1) * sizeof(*c->flow_heads));
    c->flows_free = NULL;
    c->flows_fresh = c->clock = 0;
    c->stats.flows = 0;
}

void cmp_compare(struct cmp *c, bool compare)
{
    if (c->blind == compare) {
        c->blind = !compare;
        c->forget = compare;
    }
}

void cmp_missed(struct cmp *c)
{
    c->missed = true;
}

void cmp_cut(struct cmp *c, uint64_t now_us, uint64_t epoch)
{
    struct item *it;

    set_now(c, now_us);
    rerun(c);
    if (gate_open(c)) {
        c->cut_us = c->now_us;
    }
    reassemblies_drop(c);
    /* The newest ones first: those of earlier epochs were taken out of their lists before. */
    for (it = c->p_fifo.last; it && it->epoch == c->present; it = it->older) {
        primary_wait(c, it);
        it->epoch = epoch;
    }
    c->p_waiting = c->p_fifo.count;
    fifo_clear(c, &c->s_tcp);
    fifo_clear(c, &c->s_must);
    fifo_clear(c, &c->s_surplus);
    if (c->forget) {
        flows_forget(c);
        c->forget = false;
    }
    c->present = epoch + 1;
    c->heard = c->missed = false;
    future_replay(c);
    check_limits(c);
}

static void release_waiting(struct cmp *c, struct item *it, enum cmp_action_type type)
{
    if (type == CMP_RELEASE) {
        c->stats.released_epoch++;
        c->stats.classes[it->class].epoch++;
        count_delay(c, it);
    }
    if (it->epoch < c->present) {
        c->p_waiting--;
    }
    emit(c, type, it->id);
    item_free(c, it);
}

void cmp_release_epoch(struct cmp *c, uint64_t now_us, uint64_t epoch)
{
    bool was_open = gate_open(c);

    set_now(c, now_us);
    if (epoch >= c->present) {
        epoch = c->present - 1; /* what was not cut cannot have been acknowledged */
    }
    while (c->p_fifo.first && c->p_fifo.first->epoch <= epoch) {
        release_waiting(c, c->p_fifo.first, CMP_RELEASE);
    }
    if (epoch > c->committed) {
        c->committed = epoch;
    }
    if (!was_open && gate_open(c)) {
        int64_t change = (int64_t)(c->now_us - c->cut_us) - (int64_t)c->checkpoint_us;

        c->checkpoint_us += (uint64_t)(c->checkpoint_us ? change / 4 : change);
        c->start_us = c->now_us;
        c->rerun = true;
    }
}

void cmp_hold(struct cmp *c, bool hold)
{
    bool was_open = gate_open(c);

    c->hold = hold;
    if (!was_open && gate_open(c)) {
        c->start_us = c->now_us;
        c->rerun = true;
    }
}

void cmp_drain(struct cmp *c, bool release)
{
    reassemblies_drop(c);
    while (c->p_fifo.first) {
        release_waiting(c, c->p_fifo.first, release ? CMP_RELEASE : CMP_DROP);
    }
    fifo_clear(c, &c->s_tcp);
    fifo_clear(c, &c->s_must);
    fifo_clear(c, &c->s_surplus);
    fifo_clear(c, &c->s_future);
    flows_forget(c);
    c->rerun = false;
}

/* ---- Time ------------------------------------------------------------------------------------ */

static uint64_t deadline_us(const struct cmp *c)
{
    uint64_t margin = 4 * c->lag_var_us;

    if (margin < c->checkpoint_us) {
        margin = c->checkpoint_us;
    }
    if (margin < c->limits.deadline_min_us) {
        margin = c->limits.deadline_min_us;
    }
    if (!c->has_lag || !c->heard || c->lag_us + margin > c->limits.deadline_max_us) {
        return c->limits.deadline_max_us;
    }
    return c->lag_us + margin;
}

static uint64_t surplus_us(const struct cmp *c)
{
    return 2ull * c->limits.deadline_max_us;
}

static uint64_t since(const struct cmp *c, const struct item *it)
{
    return it->arrival_us > c->start_us ? it->arrival_us : c->start_us;
}

uint64_t cmp_next_us(const struct cmp *c)
{
    uint64_t next = UINT64_MAX, t;

    if (!gate_open(c)) {
        return next;
    }
    if (c->rerun) {
        return 0;
    }
    if (c->wanted != c->present) {
        /* The gate is open, so nothing older than the present epoch is in p_fifo. */
        if (c->p_fifo.first) {
            next = since(c, c->p_fifo.first) + deadline_us(c);
        }
        if (c->s_must.first) {
            t = since(c, c->s_must.first) + deadline_us(c);
            next = t < next ? t : next;
        }
    }
    if (c->s_surplus.first) {
        t = since(c, c->s_surplus.first) + surplus_us(c);
        next = t < next ? t : next;
    }
    return next;
}

/* A secondary's datagram of the same conversation that says something else, among the newest. */
static const struct item *unlike(const struct cmp *c, const struct item *it)
{
    const struct item *other = c->s_surplus.last;
    uint32_t steps;

    for (steps = 0; other && steps < UNLIKE_STEPS; steps++, other = other->older) {
        if (other->place == PLACE_BUCKET && !memcmp(&other->datagram.head, &it->datagram.head,
                                                    sizeof(it->datagram.head))) {
            return other;
        }
    }
    return NULL;
}

static void late_datagram(struct cmp *c, const struct item *it, const char *whose, uint64_t waited)
{
    const struct packet_key *key = &it->datagram.head.key;
    const struct item *other = unlike(c, it);
    const uint8_t *x, *y;
    uint32_t most, at;

    if (!other) {
        want_checkpoint(c, CTL_WHY_DEADLINE, it->class, key,
                        "%s %u bytes without an equal for %llu us", whose, it->bytes,
                        (unsigned long long)waited);
        return;
    }
    most = it->bytes < other->bytes ? it->bytes : other->bytes;
    at = item_compare(it, 0, other, 0, most);
    if (at == most) {
        want_checkpoint(c, CTL_WHY_DEADLINE, it->class, key, "%s %u bytes, other %u bytes", whose,
                        it->bytes, other->bytes);
        return;
    }
    item_span(it, at, &x);
    item_span(other, at, &y);
    want_checkpoint(c, CTL_WHY_DEADLINE, it->class, key,
                    "no equal in %llu us, nearest differs in byte %u: 0x%02x / 0x%02x",
                    (unsigned long long)waited, at, *x, *y);
}

static void late(struct cmp *c, const struct item *it, const char *whose)
{
    uint64_t waited = c->now_us - since(c, it);

    if (it->place == PLACE_FLOW) {
        want_checkpoint(c, CTL_WHY_DEADLINE, it->class, &it->flow->key,
                        "%s seq %u+%u ack %u alone for %llu us; verified %u, other ack %u", whose,
                        it->tcp.seq, it->tcp.end - it->tcp.seq, it->tcp.ack,
                        (unsigned long long)waited, it->flow->verified, it->flow->s_ack);
    } else if (it->place == PLACE_BUCKET) {
        late_datagram(c, it, whose, waited);
    } else {
        want_checkpoint(c, CTL_WHY_DEADLINE, it->class, NULL,
                        "%s %u bytes without an equal for %llu us", whose, it->bytes,
                        (unsigned long long)waited);
    }
}

void cmp_tick(struct cmp *c, uint64_t now_us)
{
    set_now(c, now_us);
    rerun(c);
    if (!gate_open(c)) {
        return;
    }
    if (c->wanted != c->present && c->p_fifo.first &&
        c->now_us >= since(c, c->p_fifo.first) + deadline_us(c)) {
        late(c, c->p_fifo.first, "primary");
    }
    if (c->wanted != c->present && c->s_must.first &&
        c->now_us >= since(c, c->s_must.first) + deadline_us(c)) {
        late(c, c->s_must.first, "secondary");
    }
    while (c->s_surplus.first && c->now_us >= since(c, c->s_surplus.first) + surplus_us(c)) {
        surplus_drop(c);
    }
}

/* ---- Setup ----------------------------------------------------------------------------------- */

static uint32_t power_of_two(uint32_t at_least)
{
    uint32_t n = 16;

    while (n < at_least) {
        n *= 2;
    }
    return n;
}

int cmp_new(struct cmp **out, const struct cmp_limits *limits, cmp_emit_fn *emit_fn, void *arg)
{
    struct cmp *c = calloc(1, sizeof(*c));
    struct cmp_limits *l;
    uint32_t i, side;
    int rc = -ENOMEM;

    *out = NULL;
    if (!c) {
        return rc;
    }
    l = &c->limits;
    if (limits) {
        *l = *limits;
    }
    l->flows_max = l->flows_max ? l->flows_max : DEFAULT_FLOWS_MAX;
    l->bytes_max = l->bytes_max ? l->bytes_max : DEFAULT_BYTES_MAX;
    l->frames_max = l->frames_max ? l->frames_max : DEFAULT_FRAMES_MAX;
    l->deadline_min_us = l->deadline_min_us ? l->deadline_min_us : DEFAULT_DEADLINE_MIN_US;
    l->deadline_max_us = l->deadline_max_us ? l->deadline_max_us : DEFAULT_DEADLINE_MAX_US;
    if (l->flows_max > 1u << 24 || l->frames_max > 1u << 24 || l->bytes_max > 1ull << 40 ||
        l->bytes_max < CHUNK_BYTES || l->deadline_min_us > l->deadline_max_us) {
        rc = -EINVAL;
        goto out;
    }
    c->emit = emit_fn;
    c->arg = arg;
    c->present = 1;
    c->chunks_max = (uint32_t)(l->bytes_max / CHUNK_BYTES);
    c->slabs_max = c->chunks_max / SLAB_CHUNKS + 1;
    c->flow_mask = power_of_two(2 * l->flows_max) - 1;
    c->bucket_mask = power_of_two(l->frames_max) - 1;
    c->flows = calloc(l->flows_max, sizeof(*c->flows));
    c->flow_heads = calloc((size_t)c->flow_mask + 1, sizeof(*c->flow_heads));
    c->items = calloc((size_t)2 * l->frames_max, sizeof(*c->items));
    c->slabs = calloc(c->slabs_max, sizeof(*c->slabs));
    c->buckets[0] = calloc((size_t)c->bucket_mask + 1, sizeof(*c->buckets[0]));
    c->buckets[1] = calloc((size_t)c->bucket_mask + 1, sizeof(*c->buckets[1]));
    c->assembly = malloc(ASSEMBLY_BYTES);
    c->replay = malloc(REMUS_PACKET_MAX);
    if (!c->flows || !c->flow_heads || !c->items || !c->slabs || !c->buckets[0] || !c->buckets[1] ||
        !c->assembly || !c->replay) {
        goto out;
    }
    for (side = 0; side < 2; side++) {
        for (i = l->frames_max; i-- > 0;) {
            struct item *it = &c->items[(size_t)side * l->frames_max + i];

            it->next = c->items_free[side];
            c->items_free[side] = it;
        }
    }
    *out = c;
    return 0;

out:
    cmp_free(c);
    return rc;
}

void cmp_free(struct cmp *c)
{
    uint32_t i;

    if (!c) {
        return;
    }
    for (i = 0; i < c->slabs_count; i++) {
        free(c->slabs[i]);
    }
    free(c->slabs);
    free(c->flows);
    free(c->flow_heads);
    free(c->items);
    free(c->buckets[0]);
    free(c->buckets[1]);
    free(c->assembly);
    free(c->replay);
    free(c);
}

void cmp_stats_get(const struct cmp *c, struct cmp_stats *out)
{
    *out = c->stats;
    out->held = c->p_fifo.count;
    out->bytes = (uint64_t)c->chunks_used * CHUNK_BYTES;
    out->lag_us = c->lag_us;
}
