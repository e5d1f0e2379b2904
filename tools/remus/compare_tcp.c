/*
 * compare_tcp.c: TCP, compared as two byte streams.
 *
 * A primary segment leaves when
 *   - each of its sequence numbers (SYN, bytes, FIN) lies below `verified`, and
 *   - its ack is not beyond the secondary's: an ack promises that the guest has the input, and
 *     after a failover the secondary must have it too, and
 *   - its window opens no more than the secondary's or than a frame that left before it (else the
 *     window is clamped, unless GSO, which cannot be edited: held), and
 *   - its SACK blocks are among the secondary's (else intersected, GSO: held), and
 *   - an urgent pointer points where the secondary's does.
 *
 * Bytes below `verified` are not kept, so a retransmission of them is not looked at again, nor is
 * the secondary's; one that overlaps bytes still waiting must agree with them, on either side.
 *
 * Numbering.  colo-shadowd rewrites the secondary's output of connections younger than the last
 * checkpoint.  The exact rule: a frame of the secondary with SYN is never rewritten and carries the
 * secondary's own ISN; every other frame carries the primary's numbers, because colo-shadowd holds
 * a young connection's output behind its SYN until CMP_FLOW has told it the primary's ISN.  So the
 * only mapping here is that of a SYN.  It stands for the present connection if
 *   - the primary has begun one in this epoch and the secondary has not yet (need_s_syn), or
 *   - it repeats the SYN that was mapped in this epoch, or, none mapped, the primary's ISN: after
 *     a checkpoint both guests have the same numbers;
 * otherwise it begins the next connection on these ports and is kept (s_early) until the primary's
 * SYN comes.  CMP_FLOW is emitted when the first SYN of either side comes in an epoch and
 * the primary's ISN is known, retransmissions and connections of earlier epochs included, since
 * colo-shadowd cannot know which SYNs it need not wait for.
 *
 * A flow not known before (older than protection, or forgotten while idle) is taken up where
 * the primary's first segment stands.  `soft`: that segment was empty, so it may have been a
 * keepalive or a window probe, which stand one below; a next segment one above moves the start.
 */
#include <string.h>

#include "tools/remus/compare_private.h"

#define SCALE_MAX 14 /* RFC 7323, 2.3 */

/* What both SYNs must agree on: options that bind the peer later, and what the flags negotiate. */
static uint32_t syn_signature(const struct packet_tcp *tcp)
{
    uint32_t s = 0;

    if (tcp->has_mss) {
        s |= 1u << 24 | tcp->mss;
    }
    if (tcp->has_wscale) {
        s |= 1u << 25 | (uint32_t)tcp->wscale << 16;
    }
    s |= (uint32_t)tcp->has_sack_ok << 26;
    s |= (uint32_t)tcp->has_timestamp << 27;
    s |= (uint32_t) !!(tcp->flags & PACKET_TCP_ACK) << 28;
    s |= (uint32_t) !!(tcp->flags & PACKET_TCP_ECE) << 29;
    s |= (uint32_t) !!(tcp->flags & PACKET_TCP_CWR) << 30;
    return s;
}

/* ---- SACK sets ------------------------------------------------------------------------------- */

static void sack_add(struct sack_set *set, uint32_t left, uint32_t right, uint32_t ack)
{
    uint32_t i = 0;

    if (seq_ge(left, right) || seq_le(right, ack)) {
        return;
    }
    while (i < set->count) {
        uint32_t *b = set->block[i];
        bool joins = seq_le(b[0], right) && seq_le(left, b[1]);

        if (!joins && seq_gt(b[1], ack)) {
            i++;
            continue;
        }
        if (joins) {
            left = seq_min(left, b[0]);
            right = seq_max(right, b[1]);
        }
        memmove(b, b + 2, (--set->count - i) * sizeof(set->block[0]));
    }
    if (set->count == SACK_SET_MAX) {
        memmove(set->block[0], set->block[1], --set->count * sizeof(set->block[0]));
    }
    set->block[set->count][0] = left;
    set->block[set->count][1] = right;
    set->count++;
}

/* The blocks of it that the secondary's set and ack cover, in c->action; true: all and whole. */
static bool sack_intersect(struct cmp *c, const struct flow *f, const struct item *it)
{
    bool whole = true;
    uint32_t i, j, n = 0;

    for (i = 0; i < it->tcp.sack_blocks; i++) {
        uint32_t left = it->tcp.sack[i][0], right = it->tcp.sack[i][1];
        bool found = seq_le(right, f->s_ack); /* D-SACK of what is acknowledged */

        for (j = 0; !found && j < f->s_sack.count; j++) {
            uint32_t l = seq_max(left, f->s_sack.block[j][0]);
            uint32_t r = seq_min(right, f->s_sack.block[j][1]);

            if (seq_lt(l, r)) {
                whole = whole && l == left && r == right;
                left = l;
                right = r;
                found = true;
            }
        }
        if (found) {
            c->action.sack[n][0] = left;
            c->action.sack[n][1] = right;
            n++;
        } else {
            whole = false;
        }
    }
    c->action.sack_blocks = n;
    return whole;
}

/* ---- Divergence ------------------------------------------------------------------------------ */

static void free_list(struct cmp *c, struct list *list)
{
    while (list->first) {
        item_free(c, list->first);
    }
}

static void wait_list(struct cmp *c, struct list *list)
{
    while (list->first) {
        primary_wait(c, list->first);
    }
}

/* The flow is compared no more in this epoch. */
static void flow_lose(struct cmp *c, struct flow *f)
{
    f->lost = true;
    wait_list(c, &f->p_todo);
    wait_list(c, &f->p_done);
    wait_list(c, &f->p_rst);
    free_list(c, &f->s_todo);
    free_list(c, &f->s_done);
    free_list(c, &f->s_rst);
    free_list(c, &f->s_early);
}

static void flow_no_room(struct cmp *c, struct flow *f)
{
    want_checkpoint(c, CTL_WHY_QUEUE, CTL_CLASS_TCP, &f->key, "no room for a copy");
    flow_lose(c, f);
}

/* Both items hold byte `at` as data, and it differs. */
static void diverge_bytes(struct cmp *c, struct flow *f, uint32_t at, const struct item *a,
                          const struct item *b, const char *how)
{
    const uint8_t *x, *y;

    item_span(a, at - a->tcp.seq - !!(a->tcp.flags & PACKET_TCP_SYN), &x);
    item_span(b, at - b->tcp.seq - !!(b->tcp.flags & PACKET_TCP_SYN), &y);
    if (f->has_p_isn) {
        want_checkpoint(c, CTL_WHY_DIVERGED, CTL_CLASS_TCP, &f->key,
                        "%s, byte %u: 0x%02x / 0x%02x", how, at - f->p_isn - 1, *x, *y);
    } else {
        want_checkpoint(c, CTL_WHY_DIVERGED, CTL_CLASS_TCP, &f->key,
                        "%s, seq %u: 0x%02x / 0x%02x", how, at, *x, *y);
    }
    flow_lose(c, f);
}

enum kind { KIND_SYN, KIND_DATA, KIND_FIN };

static enum kind kind_at(const struct item *it, uint32_t at)
{
    if (it->tcp.flags & PACKET_TCP_SYN && at == it->tcp.seq) {
        return KIND_SYN;
    }
    if (it->tcp.flags & PACKET_TCP_FIN && at == it->tcp.end - 1) {
        return KIND_FIN;
    }
    return KIND_DATA;
}

static void diverge_kinds(struct cmp *c, struct flow *f, enum kind p, enum kind s)
{
    static const char *const names[] = {"SYN", "data", "FIN"};

    want_checkpoint(c, CTL_WHY_UNCOMPARABLE, CTL_CLASS_TCP, &f->key,
                    "seq %u: primary has %s, secondary %s", f->verified, names[p], names[s]);
    flow_lose(c, f);
}

static void diverge_syn(struct cmp *c, struct flow *f, uint32_t p, uint32_t s)
{
    want_checkpoint(c, CTL_WHY_UNCOMPARABLE, CTL_CLASS_TCP, &f->key,
                    "SYN: mss %u wscale %u flags 0x%x / mss %u wscale %u flags 0x%x",
                    p & 0xffff, p >> 16 & 0xff, p >> 24, s & 0xffff, s >> 16 & 0xff, s >> 24);
    flow_lose(c, f);
}

/* ---- Streams --------------------------------------------------------------------------------- */

static inline uint32_t data_seq(const struct item *it)
{
    return it->tcp.seq + !!(it->tcp.flags & PACKET_TCP_SYN);
}

static inline uint32_t data_end(const struct item *it)
{
    return data_seq(it) + it->bytes;
}

static void move(struct cmp *c, struct flow *f, struct item *it, struct list *to)
{
    item_forget(c, it); /* its bytes are verified */
    list_remove(c, it);
    list_insert(c, PLACE_FLOW, f, to, it, NULL);
}

/* Moves `verified` as far as both streams reach and are equal. */
static void advance(struct cmp *c, struct flow *f)
{
    while (f->has_verified && !f->lost) {
        struct item *p = f->p_todo.first, *s = f->s_todo.first;
        uint32_t at = f->verified, n, equal;
        enum kind p_kind, s_kind;

        if (p && seq_le(p->tcp.end, at)) {
            move(c, f, p, &f->p_done);
            continue;
        }
        if (s && seq_le(s->tcp.end, at)) {
            move(c, f, s, &f->s_done);
            continue;
        }
        if (!p || !s || seq_gt(p->tcp.seq, at) || seq_gt(s->tcp.seq, at)) {
            return;
        }
        p_kind = kind_at(p, at);
        s_kind = kind_at(s, at);
        if (p_kind != s_kind) {
            diverge_kinds(c, f, p_kind, s_kind);
            return;
        }
        if (p_kind == KIND_SYN) {
            if (p->tcp.signature != s->tcp.signature) {
                diverge_syn(c, f, p->tcp.signature, s->tcp.signature);
                return;
            }
            f->verified_signature = p->tcp.signature;
            f->verified++;
            continue;
        }
        if (p_kind == KIND_FIN) {
            f->verified++;
            continue;
        }
        n = seq_min(data_end(p), data_end(s)) - at;
        equal = item_compare(p, at - data_seq(p), s, at - data_seq(s), n);
        f->verified += equal;
        if (equal < n) {
            diverge_bytes(c, f, f->verified, p, s, "primary / secondary");
            return;
        }
        item_trim(c, p, f->verified - data_seq(p));
        item_trim(c, s, f->verified - data_seq(s));
    }
}

/* Where a and b both hold bytes that are not verified yet, those must be the same; true: they are.
 * Otherwise the flow is lost. */
static bool overlap_equal(struct cmp *c, struct flow *f, const struct item *a, const struct item *b,
                          const char *how)
{
    uint32_t from = seq_max(data_seq(a), data_seq(b));
    uint32_t to = seq_min(data_end(a), data_end(b)), equal;

    if (f->has_verified) {
        from = seq_max(from, f->verified);
    }
    if (seq_ge(from, to)) {
        return true;
    }
    equal = item_compare(a, from - data_seq(a), b, from - data_seq(b), to - from);
    if (equal == to - from) {
        return true;
    }
    diverge_bytes(c, f, from + equal, a, b, how);
    return false;
}

/* Into a list ordered by sequence number, behind those with the same; false: the flow is lost. */
static bool insert_sorted(struct cmp *c, struct flow *f, struct list *list, struct item *it,
                          const char *how)
{
    struct item *before = NULL, *prev = list->last, *other;

    while (prev && seq_gt(prev->tcp.seq, it->tcp.seq)) {
        before = prev;
        prev = prev->prev;
    }
    list_insert(c, PLACE_FLOW, f, list, it, before);
    for (other = prev; other && seq_gt(other->tcp.end, it->tcp.seq); other = other->prev) {
        if (!overlap_equal(c, f, other, it, how)) {
            return false;
        }
    }
    for (other = before; other && seq_lt(other->tcp.seq, it->tcp.end); other = other->next) {
        if (!overlap_equal(c, f, other, it, how)) {
            return false;
        }
    }
    return true;
}

/* ---- Release --------------------------------------------------------------------------------- */

/* The largest window field with which a frame that acknowledges ack may leave. */
static uint32_t window_allowed(const struct flow *f, const struct item *it)
{
    uint32_t allowed = f->s_window, edge;

    if (f->has_scale && !(it->tcp.flags & PACKET_TCP_SYN)) {
        edge = f->s_ack + ((uint32_t)f->s_window << (f->s_window_syn ? 0 : f->scale));
        if (f->has_edge) {
            edge = seq_max(edge, f->released_edge);
        }
        if (seq_le(edge, it->tcp.ack)) {
            return 0;
        }
        allowed = (edge - it->tcp.ack) >> f->scale;
    } else if (f->has_released_ack && it->tcp.ack == f->released_ack &&
               f->released_window > allowed) {
        allowed = f->released_window;
    }
    return allowed < 0xffff ? allowed : 0xffff;
}

/* Whether a verified segment may leave now, and how; fills c->action for it. */
static bool may_leave(struct cmp *c, const struct flow *f, const struct item *it,
                      enum cmp_action_type *type)
{
    uint32_t allowed;

    *type = CMP_RELEASE;
    if (it->tcp.flags & PACKET_TCP_ACK && (!f->has_s_ack || seq_gt(it->tcp.ack, f->s_ack))) {
        return false;
    }
    if (it->tcp.flags & PACKET_TCP_SYN && it->tcp.signature != f->verified_signature &&
        it->tcp.signature != f->s_signature) {
        return false; /* a retransmission with other options (ECN given up, say) */
    }
    if (it->tcp.flags & PACKET_TCP_URG &&
        (!f->has_s_urgent || f->s_urgent != it->tcp.seq + it->tcp.urgent)) {
        return false;
    }
    c->action.value = it->tcp.window;
    if (f->has_s_window) {
        allowed = window_allowed(f, it);
        if (it->tcp.window > allowed) {
            if (!allowed || it->gso) {
                return false;
            }
            c->action.value = allowed;
            *type = CMP_RELEASE_WINDOW;
        }
    }
    if (it->tcp.sack_blocks && !sack_intersect(c, f, it)) {
        if (it->gso) {
            return false;
        }
        *type = CMP_RELEASE_SACK;
    }
    return true;
}

static void leave(struct cmp *c, struct flow *f, struct item *it, enum cmp_action_type type)
{
    bool syn = it->tcp.flags & PACKET_TCP_SYN;
    uint32_t edge;

    f->released_end = f->has_released ? seq_max(f->released_end, it->tcp.end) : it->tcp.end;
    f->has_released = true;
    if (it->tcp.flags & PACKET_TCP_ACK &&
        (!f->has_released_ack || seq_ge(it->tcp.ack, f->released_ack))) {
        f->has_released_ack = true;
        f->released_ack = it->tcp.ack;
        f->released_window = (uint16_t)c->action.value;
    }
    if (f->has_scale && it->tcp.flags & PACKET_TCP_ACK) {
        edge = it->tcp.ack + (c->action.value << (syn ? 0 : f->scale));
        f->released_edge = f->has_edge ? seq_max(f->released_edge, edge) : edge;
        f->has_edge = true;
    }
    primary_release(c, it, type);
}

/* RST: a partner has the same sequence number and the same bytes, if any. */
static void leave_rst(struct cmp *c, struct flow *f)
{
    struct item *p, *s, *p_next;

    for (p = f->p_rst.first; p; p = p_next) {
        p_next = p->next;
        if (f->p_todo.first && f->has_verified && seq_gt(p->tcp.seq, f->verified)) {
            continue; /* what it cuts off goes before it */
        }
        for (s = f->s_rst.first; s; s = s->next) {
            bool acks = p->tcp.flags & PACKET_TCP_ACK;

            if (s->tcp.seq != p->tcp.seq || (s->tcp.flags ^ p->tcp.flags) & PACKET_TCP_ACK ||
                (acks && seq_gt(p->tcp.ack, s->tcp.ack) &&
                 (!f->has_s_ack || seq_gt(p->tcp.ack, f->s_ack))) ||
                s->bytes != p->bytes || item_compare(p, 0, s, 0, p->bytes) < p->bytes) {
                continue;
            }
            primary_release(c, p, CMP_RELEASE);
            matched(c, s->id);
            item_free(c, s);
            break;
        }
    }
}

static bool secondary_is_out(const struct cmp *c, const struct flow *f, uint32_t end, uint32_t ack,
                             uint8_t flags)
{
    return gate_open(c) && f->has_released && seq_le(end, f->released_end) &&
           (!(flags & PACKET_TCP_ACK) || (f->has_released_ack && seq_le(ack, f->released_ack)));
}

void tcp_run(struct cmp *c, struct flow *f)
{
    enum cmp_action_type type;
    struct item *it;

    advance(c, f);
    if (f->lost || !gate_open(c)) {
        return;
    }
    while ((it = f->p_done.first) && may_leave(c, f, it, &type)) {
        leave(c, f, it, type);
    }
    /* A retransmission must not wait behind something that waits for the secondary's ack. */
    it = c->fresh;
    if (it && it->list == &f->p_done && may_leave(c, f, it, &type)) {
        leave(c, f, it, type);
    }
    if (f->p_rst.first && f->s_rst.first) {
        leave_rst(c, f);
    }
    while ((it = f->s_done.first) &&
           secondary_is_out(c, f, it->tcp.end, it->tcp.ack, it->tcp.flags)) {
        matched(c, it->id);
        item_free(c, it);
    }
}

/* ---- Flows ----------------------------------------------------------------------------------- */

void tcp_rebase(struct flow *f)
{
    f->need_s_syn = f->has_s_isn = f->told = f->lost = false;
    f->has_s_urgent = false;
    if (!f->has_verified) {
        /* Only the secondary had spoken, and that never happened. */
        f->has_s_ack = f->has_s_window = false;
        f->s_sack.count = 0;
        return;
    }
    f->verified = f->p_end;
    f->has_s_ack = f->has_s_window = f->has_p_ack;
    f->s_ack = f->p_ack;
    f->s_window = f->p_window;
    f->s_window_syn = f->p_window_syn;
    f->s_sack = f->p_sack;
    f->verified_signature = f->s_signature = f->p_signature;
    /* Nothing of this epoch leaves before all of the last one has. */
    f->has_released = true;
    f->has_released_ack = f->has_p_ack;
    f->released_end = f->p_end;
    f->released_ack = f->p_ack;
    f->released_window = f->p_window;
    f->has_edge = f->has_scale && f->has_p_ack;
    if (f->has_edge) {
        f->released_edge = f->p_ack + ((uint32_t)f->p_window << (f->p_window_syn ? 0 : f->scale));
    }
}

/* The primary begins a connection; what was there before belongs to the last one. */
static void flow_begin(struct cmp *c, struct flow *f, uint32_t isn)
{
    struct list early = f->s_early;
    bool lost = f->lost;

    wait_list(c, &f->p_todo);
    wait_list(c, &f->p_done);
    wait_list(c, &f->p_rst);
    free_list(c, &f->s_todo);
    free_list(c, &f->s_done);
    free_list(c, &f->s_rst);
    memset((char *)f + offsetof(struct flow, has_verified), 0,
           sizeof(*f) - offsetof(struct flow, has_verified));
    f->s_early = early;
    f->lost = lost;
    f->has_verified = f->has_p_isn = f->need_s_syn = true;
    f->verified = f->p_end = f->p_isn = isn;
}

static void tell(struct cmp *c, struct flow *f)
{
    if (f->told) {
        return;
    }
    f->told = true;
    packet_key_to_flow(&c->action.flow, &f->key);
    c->action.flow.primary_isn = f->p_isn;
    c->action.type = CMP_FLOW;
    c->action.id = 0;
    c->emit(c->arg, &c->action);
}

static void fill(struct item *it, const struct packet *p, const uint8_t *frame)
{
    uint32_t i;

    it->tcp.seq = p->tcp.seq;
    it->tcp.end = p->tcp.seq + packet_tcp_span(p);
    it->tcp.ack = p->tcp.ack;
    it->tcp.window = p->tcp.window;
    it->tcp.urgent = p->tcp.urgent;
    it->tcp.flags = p->tcp.flags;
    it->tcp.signature = p->tcp.flags & PACKET_TCP_SYN ? syn_signature(&p->tcp) : 0;
    it->tcp.sack_blocks = p->tcp.sack_blocks;
    for (i = 0; i < p->tcp.sack_blocks; i++) {
        it->tcp.sack[i][0] = p->tcp.sack[i].left;
        it->tcp.sack[i][1] = p->tcp.sack[i].right;
    }
    it->bytes = packet_payload_bytes(p);
    it->ext = frame + p->payload;
}

/* The frame has been handled; if it has to wait for its partner its bytes must be copied. */
static void settle(struct cmp *c, struct flow *f)
{
    struct item *it = c->fresh;
    uint32_t from = 0;

    if (!it || !it->list) {
        return;
    }
    if (it->list == &f->p_done || it->list == &f->s_done) {
        item_forget(c, it);
        return;
    }
    if (f->has_verified && (it->list == &f->p_todo || it->list == &f->s_todo) &&
        seq_gt(f->verified, data_seq(it))) {
        from = f->verified - data_seq(it);
    }
    if (from < it->bytes && item_keep(c, it, from)) {
        flow_no_room(c, f);
    } else {
        it->ext = NULL;
    }
}

/* ---- Primary --------------------------------------------------------------------------------- */

static void primary_facts(struct flow *f, const struct packet *p, uint32_t end)
{
    bool syn = p->tcp.flags & PACKET_TCP_SYN;
    uint32_t i;

    if (!f->has_verified) {
        f->has_verified = true;
        f->soft = end == p->tcp.seq;
        f->verified = f->p_end = p->tcp.seq;
    } else if (f->soft) {
        if (p->tcp.seq == f->verified + 1 && !f->p_todo.first) {
            f->verified++;
            f->p_end = seq_max(f->p_end, f->verified);
        }
        f->soft = end == p->tcp.seq && p->tcp.seq == f->verified;
    }
    f->p_end = seq_max(f->p_end, end);
    if (syn) {
        f->p_signature = syn_signature(&p->tcp);
        f->has_guest_scale = p->tcp.has_wscale;
        f->guest_scale = p->tcp.wscale < SCALE_MAX ? p->tcp.wscale : SCALE_MAX;
        if (p->tcp.flags & PACKET_TCP_ACK) {
            /* Scaling in a SYN-ACK means that the peer offered it too. */
            f->has_scale = true;
            f->scale = f->has_guest_scale ? f->guest_scale : 0;
        }
    }
    if (!(p->tcp.flags & PACKET_TCP_ACK)) {
        return;
    }
    if (!f->has_p_ack || seq_ge(p->tcp.ack, f->p_ack)) {
        f->has_p_ack = true;
        f->p_ack = p->tcp.ack;
        f->p_window = p->tcp.window;
        f->p_window_syn = syn;
    }
    for (i = 0; i < p->tcp.sack_blocks; i++) {
        sack_add(&f->p_sack, p->tcp.sack[i].left, p->tcp.sack[i].right, f->p_ack);
    }
}

static void secondary_take(struct cmp *c, struct flow *f, struct item *it);

/* SYNs of the secondary that came before the primary's: the newest is the one that counts. */
static void take_early(struct cmp *c, struct flow *f)
{
    struct item *it;

    if (f->s_early.last) {
        f->need_s_syn = false;
        f->has_s_isn = true;
        f->s_isn = f->s_early.last->tcp.seq;
    }
    while ((it = f->s_early.first)) {
        if (it->tcp.seq != f->s_isn) {
            item_free(c, it);
            continue;
        }
        list_remove(c, it);
        it->tcp.end += f->p_isn - it->tcp.seq;
        it->tcp.seq = f->p_isn;
        secondary_take(c, f, it);
        if (f->lost) {
            return;
        }
    }
}

void tcp_primary(struct cmp *c, const struct packet *p, const uint8_t *frame, uint64_t id, bool gso)
{
    struct item *it = primary_new(c, id, gso);
    bool begins = false, known;
    struct packet_key key;
    struct flow *f;

    if (!it) {
        return;
    }
    packet_key(&key, p, true);
    f = flow_get(c, &key, true);
    if (!f) {
        c->missed = true;
        return; /* no flow left: it waits for the epoch's end */
    }
    c->fresh = it;
    fill(it, p, frame);
    if (p->tcp.flags & PACKET_TCP_RST) {
        if (f->lost) {
            primary_wait(c, it);
            return;
        }
        list_insert(c, PLACE_FLOW, f, &f->p_rst, it, NULL);
    } else {
        if (p->tcp.flags & PACKET_TCP_SYN) {
            begins = !f->has_p_isn || f->p_isn != p->tcp.seq;
            if (begins) {
                flow_begin(c, f, p->tcp.seq);
            }
            tell(c, f);
        }
        known = f->has_verified;
        primary_facts(f, p, it->tcp.end);
        if (!known && c->missed) {
            flow_lose(c, f);
        }
        if (f->lost) {
            primary_wait(c, it);
            return;
        }
        if (seq_le(it->tcp.end, f->verified)) {
            list_insert(c, PLACE_FLOW, f, &f->p_done, it, NULL);
        } else if (!insert_sorted(c, f, &f->p_todo, it, "primary before / again")) {
            return;
        }
        if (begins) {
            take_early(c, f);
            if (f->lost) {
                return;
            }
        }
    }
    tcp_run(c, f);
    settle(c, f);
}

/* ---- Secondary ------------------------------------------------------------------------------- */

static void secondary_facts(struct flow *f, uint32_t seq, uint32_t ack, uint8_t flags,
                            uint16_t window, uint16_t urgent)
{
    if (flags & PACKET_TCP_URG) {
        f->has_s_urgent = true;
        f->s_urgent = seq + urgent;
    }
    if (flags & PACKET_TCP_ACK) {
        if (f->has_s_ack && seq_lt(ack, f->s_ack)) {
            return;
        }
        f->has_s_ack = true;
        f->s_ack = ack;
    } else if (f->has_s_ack) {
        return;
    }
    f->has_s_window = true;
    f->s_window = window;
    f->s_window_syn = flags & PACKET_TCP_SYN;
}

/* An item whose numbers are the primary's; the caller runs the flow. */
static void secondary_take(struct cmp *c, struct flow *f, struct item *it)
{
    if (it->tcp.flags & PACKET_TCP_SYN) {
        f->s_signature = it->tcp.signature;
    }
    secondary_facts(f, it->tcp.seq, it->tcp.ack, it->tcp.flags, it->tcp.window, it->tcp.urgent);
    insert_sorted(c, f, &f->s_todo, it, "secondary before / again");
}

/* Whose SYN it is: true: the present connection's; false: of one that the primary has not begun. */
static bool secondary_syn(struct flow *f, uint32_t seq)
{
    if (!f->has_p_isn) {
        return false;
    }
    if (f->need_s_syn) {
        f->need_s_syn = false;
        f->has_s_isn = true;
        f->s_isn = seq;
        return true;
    }
    return seq == (f->has_s_isn ? f->s_isn : f->p_isn);
}

void tcp_secondary(struct cmp *c, const struct packet *p, const uint8_t *frame, uint64_t id)
{
    bool syn = p->tcp.flags & PACKET_TCP_SYN, rst = p->tcp.flags & PACKET_TCP_RST;
    uint32_t span = packet_tcp_span(p), i;
    struct packet_key key;
    struct item *it;
    struct flow *f;
    bool early = false;

    packet_key(&key, p, true);
    f = flow_get(c, &key, true);
    if (!f || f->lost) {
        c->stats.secondary_surplus++;
        return;
    }
    if (syn && !rst) {
        early = !secondary_syn(f, p->tcp.seq);
        if (!early) {
            tell(c, f);
        }
    } else if (f->need_s_syn && !rst) {
        matched(c, id); /* of the connection that the primary has left behind */
        return;
    }
    if (!rst && !early) {
        for (i = 0; i < p->tcp.sack_blocks; i++) {
            sack_add(&f->s_sack, p->tcp.sack[i].left, p->tcp.sack[i].right,
                     f->has_s_ack ? f->s_ack : p->tcp.ack);
        }
    }
    if (!span && !rst) {
        secondary_facts(f, p->tcp.seq, p->tcp.ack, p->tcp.flags, p->tcp.window, p->tcp.urgent);
        tcp_run(c, f);
        if (f->lost) {
            return;
        }
        if (secondary_is_out(c, f, p->tcp.seq, p->tcp.ack, p->tcp.flags)) {
            matched(c, id);
            return;
        }
    }
    it = secondary_new(c, id, rst ? &c->s_must : &c->s_tcp);
    if (!it) {
        if (span || rst) {
            flow_no_room(c, f);
        } else {
            matched(c, id); /* an empty segment: the guest will say as much again */
        }
        return;
    }
    c->fresh = it;
    fill(it, p, frame);
    if (early) {
        list_insert(c, PLACE_FLOW, f, &f->s_early, it, NULL);
    } else if (rst) {
        list_insert(c, PLACE_FLOW, f, &f->s_rst, it, NULL);
    } else if (!span) {
        list_insert(c, PLACE_FLOW, f, &f->s_done, it, NULL);
        settle(c, f);
        return;
    } else {
        if (syn) {
            it->tcp.end += f->p_isn - it->tcp.seq;
            it->tcp.seq = f->p_isn;
        }
        secondary_take(c, f, it);
    }
    tcp_run(c, f);
    settle(c, f);
}

/* ---- Input ----------------------------------------------------------------------------------- */

/* The peer's SYN-ACK says whether the scale that the guest's SYN offered holds. */
void tcp_input(struct cmp *c, const struct packet *p)
{
    const uint8_t syn_ack = PACKET_TCP_SYN | PACKET_TCP_ACK;
    struct packet_key key;
    struct flow *f;

    if ((p->tcp.flags & (syn_ack | PACKET_TCP_RST)) != syn_ack) {
        return;
    }
    packet_key(&key, p, false);
    f = flow_get(c, &key, false);
    if (f && f->has_p_isn && p->tcp.ack == f->p_isn + 1) {
        f->has_scale = true;
        f->scale = f->has_guest_scale && p->tcp.has_wscale ? f->guest_scale : 0;
    }
}
