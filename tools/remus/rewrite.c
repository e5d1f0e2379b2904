/*
 * rewrite.c: see rewrite.h for the rules; this file holds the flow table and applies them.
 *
 * What a flow knows, and what makes it know:
 *   young          a SYN of this epoch: from the peer, from the guest, or FLOW for an unknown flow
 *   secondary ISN  the guest's SYN or SYN-ACK
 *   primary ISN    FLOW (certain), or the peer's first acknowledgement (inferred)
 *   base           the primary's list; it is the offset of a flow that is not young
 *   next ISN       FLOW for a connection that the guest has not begun yet, while the flow's entry
 *                  still serves an earlier one with the same addresses and ports
 */
#include "tools/remus/rewrite.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define NONE REWRITE_NO_FLOW
#define RESET_AHEAD (1u << 20)   /* what the guest may have received and not acknowledged yet */
#define TICK_SCAN 512u           /* entries looked at per tick: the whole table in half a minute */

struct flow {
    struct packet_key key;
    uint64_t seen_us;            /* last frame, either way */
    uint64_t young_us;           /* when it became young */
    uint64_t echo_us;            /* when echo_max was seen */
    uint64_t generation;         /* young_* below are of this one; another: they mean nothing */
    uint32_t next;               /* hash chain or free list */
    uint32_t newer, older;       /* by last use */
    uint32_t offset;             /* primary's numbers - secondary's */
    uint32_t secondary_isn, primary_isn, next_isn, peer_isn;
    uint32_t base, base_isn;     /* if based: that offset, and the ISN that the peer knows */
    uint64_t ts_sent_us;         /* when ts_sent was */
    uint8_t base_state;          /* REMUS_OFFSET_* */
    uint32_t syn_tsval;          /* of the guest's own SYN */
    uint32_t ack;                /* what the guest has acknowledged last, if ack_known */
    uint32_t echo_max;           /* newest TSval of the primary's that the peer has echoed */
    uint32_t ts_floor;           /* least TSval since failover, while ts_raised */
    uint32_t ts_sent;            /* newest TSval of the guest's since failover */
    bool used;
    bool young;
    bool based;
    bool active;                 /* the guest began it, or FLOW came before anything else */
    bool data_in_syn;            /* the peer's first ACK need not be ISN + 1 */
    bool secondary_known, primary_known, primary_certain, next_known;
    bool waits;                  /* input is held until the secondary's ISN is known */
    bool syn_pending;            /* a SYN for a flow that lives: the guest's answer will tell */
    bool established;            /* the peer has acknowledged something */
    bool fin_input, fin_output, reset;
    bool echo_known, ts_resolved, ts_raised;
    bool heard;                  /* the peer has sent since failover */
    bool ack_known;
    bool counted;                /* in rw->rewriting */
};

struct rewrite {
    struct flow *flows;
    uint32_t *buckets;
    uint32_t flows_max, buckets_count;
    uint32_t free, newest, oldest;
    uint32_t tick_at;
    uint32_t used;
    uint64_t generation;
    uint64_t seed;
    bool failed_over;
    uint64_t failover_us, settle_us;
    struct rewrite_stats stats;
};

/* ---- The table ---------------------------------------------------------------------------- */

int rewrite_new(struct rewrite **out, uint32_t flows_max, uint64_t seed)
{
    struct rewrite *rw;
    uint32_t i, buckets = 1;

    *out = NULL;
    if (!flows_max || flows_max > (1u << 24)) {
        return -EINVAL;
    }
    while (buckets < flows_max) {
        buckets *= 2;
    }
    rw = calloc(1, sizeof(*rw));
    if (!rw) {
        return -ENOMEM;
    }
    rw->flows = calloc(flows_max, sizeof(*rw->flows));
    rw->buckets = calloc(buckets, sizeof(*rw->buckets));
    if (!rw->flows || !rw->buckets) {
        rewrite_free(rw);
        return -ENOMEM;
    }
    rw->flows_max = flows_max;
    rw->buckets_count = buckets;
    rw->seed = seed;
    rw->generation = 1;
    rw->newest = rw->oldest = NONE;
    for (i = 0; i < buckets; i++) {
        rw->buckets[i] = NONE;
    }
    for (i = 0; i < flows_max; i++) {
        rw->flows[i].next = i + 1 < flows_max ? i + 1 : NONE;
    }
    *out = rw;
    return 0;
}

void rewrite_free(struct rewrite *rw)
{
    if (!rw) {
        return;
    }
    free(rw->flows);
    free(rw->buckets);
    free(rw);
}

static uint32_t number_of(const struct rewrite *rw, const struct flow *flow)
{
    return (uint32_t)(flow - rw->flows);
}

static uint32_t *bucket_of(struct rewrite *rw, const struct packet_key *key)
{
    return &rw->buckets[XXH3_64bits_withSeed(key, sizeof(*key), rw->seed) &
                        (rw->buckets_count - 1)];
}

static struct flow *find(struct rewrite *rw, const struct packet_key *key)
{
    uint32_t i;

    for (i = *bucket_of(rw, key); i != NONE; i = rw->flows[i].next) {
        if (!memcmp(&rw->flows[i].key, key, sizeof(*key))) {
            return &rw->flows[i];
        }
    }
    return NULL;
}

static void age_unlink(struct rewrite *rw, struct flow *flow)
{
    if (flow->newer == NONE) {
        rw->newest = flow->older;
    } else {
        rw->flows[flow->newer].older = flow->older;
    }
    if (flow->older == NONE) {
        rw->oldest = flow->newer;
    } else {
        rw->flows[flow->older].newer = flow->newer;
    }
}

static void age_link_newest(struct rewrite *rw, struct flow *flow)
{
    flow->newer = NONE;
    flow->older = rw->newest;
    if (rw->newest == NONE) {
        rw->oldest = number_of(rw, flow);
    } else {
        rw->flows[rw->newest].newer = number_of(rw, flow);
    }
    rw->newest = number_of(rw, flow);
}

static void used_now(struct rewrite *rw, struct flow *flow, uint64_t now_us)
{
    flow->seen_us = now_us;
    if (rw->newest != number_of(rw, flow)) {
        age_unlink(rw, flow);
        age_link_newest(rw, flow);
    }
}

static void count(struct rewrite *rw, struct flow *flow)
{
    bool now = flow->offset || flow->ts_raised;

    if (now != flow->counted) {
        flow->counted = now;
        rw->stats.rewriting += now ? 1 : (uint64_t)-1;
    }
}

/* What the copy alone has seen of the connection's end did not happen. */
static void base_state(struct flow *flow)
{
    flow->fin_input = flow->base_state & REMUS_OFFSET_FIN_INPUT;
    flow->fin_output = flow->base_state & REMUS_OFFSET_FIN_OUTPUT;
    flow->reset = flow->base_state & REMUS_OFFSET_RESET;
    flow->established = !(flow->base_state & REMUS_OFFSET_HALF_OPEN);
}

/* Young facts are dropped by counting up the generation; a flow that missed it follows here. */
static void refresh(struct rewrite *rw, struct flow *flow)
{
    if (flow->generation == rw->generation) {
        return;
    }
    flow->generation = rw->generation;
    flow->young = flow->active = flow->data_in_syn = false;
    flow->secondary_known = flow->primary_known = flow->primary_certain = false;
    flow->next_known = flow->waits = false;
    flow->offset = flow->based ? flow->base : 0;
    if (flow->based) {
        base_state(flow);
    }
    flow->counted = false;       /* rewrite_detach() has set the count to 0 */
    count(rw, flow);
}

static void drop(struct rewrite *rw, struct flow *flow)
{
    uint32_t *link = bucket_of(rw, &flow->key);

    refresh(rw, flow);
    flow->offset = 0;
    flow->ts_raised = false;
    count(rw, flow);
    while (*link != number_of(rw, flow)) {
        link = &rw->flows[*link].next;
    }
    *link = flow->next;
    age_unlink(rw, flow);
    flow->used = false;
    flow->next = rw->free;
    rw->free = number_of(rw, flow);
    rw->used--;
}

/* Must keep its entry as long as there is any other choice. */
static bool precious(struct rewrite *rw, struct flow *flow)
{
    refresh(rw, flow);
    return flow->counted || (flow->young && flow->established);
}

static struct flow *evict(struct rewrite *rw)
{
    uint32_t i, left = REWRITE_EVICT_SCAN;

    for (i = rw->oldest; i != NONE && left; i = rw->flows[i].newer, left--) {
        if (!precious(rw, &rw->flows[i])) {
            rw->stats.evicted++;
            return &rw->flows[i];
        }
    }
    return NULL;
}

static struct flow *add(struct rewrite *rw, const struct packet_key *key, uint64_t now_us)
{
    struct flow *flow;
    uint32_t *bucket;

    if (rw->free == NONE) {
        flow = evict(rw);
        if (!flow) {
            rw->stats.untracked++;
            return NULL;
        }
        drop(rw, flow);
    }
    flow = &rw->flows[rw->free];
    rw->free = flow->next;
    memset(flow, 0, sizeof(*flow));
    flow->key = *key;
    flow->used = true;
    flow->generation = rw->generation;
    flow->seen_us = now_us;
    bucket = bucket_of(rw, key);
    flow->next = *bucket;
    *bucket = number_of(rw, flow);
    age_link_newest(rw, flow);
    rw->used++;
    if (rw->used > rw->stats.flows_max) {
        rw->stats.flows_max = rw->used;
    }
    return flow;
}

/* ---- What a flow knows -------------------------------------------------------------------- */

static bool alive(const struct flow *flow)
{
    return !flow->reset && !(flow->fin_input && flow->fin_output);
}

/* A new connection with this flow's addresses and ports. */
static void begin(struct flow *flow, uint64_t now_us, bool active)
{
    bool next_known = flow->next_known;
    uint32_t next_isn = flow->next_isn;

    flow->young = true;
    flow->young_us = now_us;
    flow->active = active;
    flow->data_in_syn = flow->syn_pending = flow->waits = flow->established = false;
    flow->fin_input = flow->fin_output = flow->reset = flow->ack_known = false;
    flow->echo_known = flow->ts_resolved = false;
    flow->secondary_known = false;
    flow->offset = 0;
    flow->ts_raised = false;
    flow->primary_known = flow->primary_certain = next_known;
    flow->primary_isn = next_isn;
    flow->next_known = false;
}

static bool both_known(const struct flow *flow)
{
    return flow->young && flow->secondary_known && flow->primary_known;
}

/* Returns whether this made the flow able to carry data. */
static bool work_out(struct rewrite *rw, struct flow *flow, bool could)
{
    bool can = both_known(flow);

    flow->offset = can ? flow->primary_isn - flow->secondary_isn : 0;
    count(rw, flow);
    return can && !could;
}

static bool learn_secondary(struct rewrite *rw, struct flow *flow, const struct packet_tcp *tcp)
{
    flow->secondary_known = true;
    flow->waits = false;
    flow->secondary_isn = tcp->seq;
    flow->syn_tsval = tcp->has_timestamp ? tcp->tsval : 0;
    return work_out(rw, flow, false);
}

static bool learn_primary(struct rewrite *rw, struct flow *flow, uint32_t isn, bool certain)
{
    bool could = both_known(flow);

    if (certain && flow->primary_known && !flow->primary_certain && flow->primary_isn != isn) {
        rw->stats.isn_disagreed++;
    }
    flow->primary_known = true;
    flow->primary_certain = certain;
    flow->primary_isn = isn;
    return work_out(rw, flow, could);
}

/*
 * A reset of the peer's whose number the guest does not expect is ignored there, and answered with
 * an ACK if it is near: that shows, as it goes on.
 */
static void note_end(struct flow *flow, const struct packet_tcp *tcp, bool output)
{
    if (tcp->flags & PACKET_TCP_RST) {
        /* An entry that no checkpoint can replace ends by the guest's word only. */
        flow->reset = flow->reset || output ||
                      (!flow->based && (!flow->ack_known || tcp->seq - flow->ack < RESET_AHEAD));
        return;
    }
    if (output && tcp->flags & PACKET_TCP_ACK) {
        flow->ack = tcp->ack;
        flow->ack_known = true;
    }
    flow->reset = false;         /* it goes on: that RST was not accepted */
    if (tcp->flags & PACKET_TCP_FIN) {
        *(output ? &flow->fin_output : &flow->fin_input) = true;
    }
}

static struct rewrite_result result_of(const struct rewrite *rw, const struct flow *flow,
                                       enum rewrite_verdict verdict)
{
    return (struct rewrite_result){
        .verdict = verdict, .flow = flow ? number_of(rw, flow) : NONE,
    };
}

/* ---- To the guest ------------------------------------------------------------------------- */

/* The peer's SYN, without ACK. */
static struct rewrite_result input_syn(struct rewrite *rw, uint64_t now_us, struct flow *flow,
                                       const struct packet_key *key, const struct packet *p)
{
    const struct packet_tcp *tcp = &p->tcp;

    if (rw->failed_over) {
        return result_of(rw, flow, REWRITE_PASS); /* one guest: nothing to translate */
    }
    if (!flow) {
        flow = add(rw, key, now_us);
        if (!flow) {
            return result_of(rw, NULL, REWRITE_PASS);
        }
        begin(flow, now_us, false);
    } else if (flow->young && !flow->active && flow->established == false &&
               flow->peer_isn == tcp->seq) {
        return result_of(rw, flow, REWRITE_PASS); /* again */
    } else if (flow->young && !flow->secondary_known) {
        if (flow->active) {
            return result_of(rw, flow, REWRITE_PASS); /* see wants_hold() */
        }
        flow->young_us = now_us; /* the peer has given up a SYN that was never answered */
    } else if (alive(flow) && (flow->young || flow->established || flow->echo_known)) {
        flow->syn_pending = true; /* a stray, until the guest answers it */
        flow->peer_isn = tcp->seq;
        return result_of(rw, flow, REWRITE_PASS);
    } else {
        begin(flow, now_us, false);
        count(rw, flow);
    }
    flow->peer_isn = tcp->seq;
    flow->data_in_syn = packet_payload_bytes(p) != 0;
    return result_of(rw, flow, REWRITE_PASS);
}

/* What a peer's acknowledgement tells about the primary's ISN; true: something. */
static bool infer_primary(const struct flow *flow, const struct packet_tcp *tcp, uint32_t *isn)
{
    if (!(tcp->flags & PACKET_TCP_ACK) || (tcp->flags & PACKET_TCP_RST) || flow->data_in_syn) {
        return false;
    }
    if (flow->active && !(tcp->flags & PACKET_TCP_SYN)) {
        return false;            /* only a SYN-ACK is sure to acknowledge the SYN and no more */
    }
    *isn = tcp->ack - 1;
    return true;
}

static void note_echo(struct rewrite *rw, uint64_t came_us, struct flow *flow,
                      const struct packet_tcp *tcp)
{
    if (rw->failed_over || !tcp->has_timestamp || !tcp->tsecr ||
        !(tcp->flags & PACKET_TCP_ACK) || (tcp->flags & PACKET_TCP_RST)) {
        return;
    }
    if (!flow->echo_known || seq_gt(tcp->tsecr, flow->echo_max)) {
        flow->echo_known = true;
        flow->echo_max = tcp->tsecr;
        flow->echo_us = came_us;
    }
}

static void input_translate(const struct flow *flow, uint8_t *frame, struct packet *p, bool partial)
{
    if (flow->offset) {
        packet_tcp_shift_ack(frame, p, 0u - flow->offset, partial);
        packet_tcp_shift_sack(frame, p, 0u - flow->offset, partial);
    }
    if (flow->young && flow->active && flow->secondary_known &&
        (p->tcp.flags & PACKET_TCP_SYN) && p->tcp.has_timestamp && p->tcp.tsecr) {
        packet_tcp_shift_tsecr(frame, p, flow->syn_tsval - p->tcp.tsecr, partial);
    } else if (flow->ts_raised && p->tcp.has_timestamp && p->tcp.tsecr &&
               seq_gt(p->tcp.tsecr, flow->ts_sent)) {
        packet_tcp_shift_tsecr(frame, p, flow->ts_sent - p->tcp.tsecr, partial);
    }
}

/*
 * Input for a flow whose secondary ISN is not known.  After the peer's SYN everything waits for the
 * guest's SYN-ACK.  After FLOW alone there are two possibilities: the guest will open a connection,
 * then the peer's SYN-ACK waits for the guest's SYN; or the primary has repeated a SYN-ACK of an
 * earlier epoch, then the numbers are equal and nothing may wait.
 */
static bool wants_hold(const struct rewrite *rw, const struct flow *flow, uint64_t now_us,
                       const struct packet_tcp *tcp)
{
    if (rw->failed_over && now_us - flow->young_us >= REWRITE_HANDSHAKE_US) {
        return false;
    }
    return !flow->active || flow->waits || (tcp->flags & PACKET_TCP_SYN);
}

static uint32_t load32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static bool icmp_error(const struct packet *p, uint8_t type)
{
    return p->kind == PACKET_ICMP ? type == 3 || type == 4 || type == 5 || type == 11 || type == 12
                                  : type && type <= 4;
}

/*
 * An ICMP error quotes what the guest has sent, in the primary's numbers; guests ignore errors
 * about numbers that they have not sent (RFC 5927), and would miss the path's MTU.  The quotation's
 * sequence number is translated: RFC 792 promises 8 bytes of TCP header.
 */
static void input_icmp(struct rewrite *rw, uint8_t *frame, const struct packet *p)
{
    const uint8_t *ip = frame + p->l4 + 8;
    uint32_t left = p->end - p->l4, at;
    struct packet_key key;
    struct packet quoted;
    struct flow *flow;
    uint8_t *seq;
    uint16_t sum;
    int i;

    if (left < 8 + 28 || !icmp_error(p, frame[p->l4])) {
        return;                  /* not an error, or too short for one about TCP */
    }
    left -= 8;
    at = p->kind == PACKET_ICMP ? (ip[0] & 15u) * 4u : 40u;
    if (ip[0] >> 4 != p->ip_version || at < 20 || left < at + 8 ||
        ip[p->ip_version == 4 ? 9 : 6] != PACKET_PROTO_TCP ||
        (p->ip_version == 4 && ((ip[6] & 31) || ip[7]))) {
        return;
    }
    quoted = *p;
    quoted.kind = PACKET_TCP;
    quoted.proto = PACKET_PROTO_TCP;
    if (p->ip_version == 4) {
        memcpy(quoted.src, p->src, 12); /* the prefix ::ffff: */
        memcpy(quoted.dst, p->dst, 12);
        memcpy(quoted.src + 12, ip + 12, 4);
        memcpy(quoted.dst + 12, ip + 16, 4);
    } else {
        memcpy(quoted.src, ip + 8, 16);
        memcpy(quoted.dst, ip + 24, 16);
    }
    quoted.sport = (uint16_t)(ip[at] << 8 | ip[at + 1]);
    quoted.dport = (uint16_t)(ip[at + 2] << 8 | ip[at + 3]);
    packet_key(&key, &quoted, true);
    flow = find(rw, &key);
    if (!flow) {
        return;
    }
    refresh(rw, flow);
    if (flow->offset) {
        uint32_t number = load32(ip + at + 4) - flow->offset;

        seq = frame + p->l4 + 8 + at + 4;
        sum = (uint16_t)(frame[p->l4 + 2] << 8 | frame[p->l4 + 3]);
        for (i = 0; i < 4; i += 2) {
            uint16_t to = (uint16_t)(number >> (i ? 0 : 16));

            sum = packet_checksum_update(sum, (uint16_t)(seq[i] << 8 | seq[i + 1]), to);
            seq[i] = (uint8_t)(to >> 8);
            seq[i + 1] = (uint8_t)to;
        }
        frame[p->l4 + 2] = (uint8_t)(sum >> 8);
        frame[p->l4 + 3] = (uint8_t)sum;
    }
}

struct rewrite_result rewrite_input(struct rewrite *rw, uint64_t now_us, uint64_t came_us,
                                    uint8_t *frame, struct packet *p, bool partial)
{
    struct rewrite_result result;
    struct packet_key key;
    struct flow *flow;
    uint32_t isn;

    if (p->kind == PACKET_ICMP || p->kind == PACKET_ICMPV6) {
        input_icmp(rw, frame, p);
    }
    if (p->kind != PACKET_TCP) {
        return result_of(rw, NULL, REWRITE_PASS);
    }
    packet_key(&key, p, false);
    flow = find(rw, &key);
    if (flow) {
        refresh(rw, flow);
        used_now(rw, flow, now_us);
    }
    if ((p->tcp.flags & (PACKET_TCP_SYN | PACKET_TCP_ACK)) == PACKET_TCP_SYN) {
        return input_syn(rw, now_us, flow, &key, p);
    }
    if (!flow) {
        if (rw->failed_over || !p->tcp.has_timestamp || !p->tcp.tsecr ||
            (p->tcp.flags & PACKET_TCP_RST)) {
            return result_of(rw, NULL, REWRITE_PASS);
        }
        flow = add(rw, &key, now_us); /* an old flow: for its timestamps */
        if (!flow) {
            return result_of(rw, NULL, REWRITE_PASS);
        }
    }
    result = result_of(rw, flow, REWRITE_PASS);

    if (flow->young && !flow->secondary_known && wants_hold(rw, flow, now_us, &p->tcp)) {
        flow->waits = true;
        result.verdict = REWRITE_HOLD;
        return result;
    }
    if (flow->young && flow->secondary_known && !flow->primary_known) {
        if (infer_primary(flow, &p->tcp, &isn)) {
            result.output_ready = learn_primary(rw, flow, isn, false);
        } else if (!rw->failed_over) {
            result.verdict = REWRITE_HOLD;
            return result;
        }
    }
    if (p->tcp.flags & PACKET_TCP_ACK) {
        flow->established = true;
    }
    note_end(flow, &p->tcp, false);
    note_echo(rw, came_us, flow, &p->tcp);
    flow->heard = flow->heard || (rw->failed_over && came_us > rw->failover_us);
    input_translate(flow, frame, p, partial);
    return result;
}

/* ---- From the guest ----------------------------------------------------------------------- */

/* At output after failover: is the guest's timestamp clock behind what the peer knows? */
static void raise_timestamp(struct rewrite *rw, struct flow *flow, const struct packet_tcp *tcp)
{
    uint64_t gone_us;

    if (!flow->ts_resolved && flow->echo_known) {
        gone_us = rw->failover_us > flow->echo_us ? rw->failover_us - flow->echo_us : 0;
        if (gone_us > REWRITE_TS_AHEAD_US) {
            gone_us = REWRITE_TS_AHEAD_US;
        }
        flow->ts_floor = flow->echo_max + (uint32_t)(gone_us / 1000);
        flow->ts_raised = seq_lt(tcp->tsval, flow->ts_floor);
        flow->ts_floor += REWRITE_TS_MARGIN;
        flow->ts_sent = tcp->tsval;
    }
    flow->ts_resolved = true;
    if (flow->ts_raised) {
        flow->ts_sent = seq_max(flow->ts_sent, tcp->tsval);
        flow->ts_sent_us = flow->seen_us;
        flow->ts_raised = seq_lt(flow->ts_sent, flow->ts_floor);
    }
    count(rw, flow);
}

static void output_translate(struct rewrite *rw, struct flow *flow, uint8_t *frame,
                             struct packet *p, bool partial, bool seq)
{
    if (seq && flow->offset) {
        packet_tcp_shift_seq(frame, p, flow->offset, partial);
    }
    if (rw->failed_over && p->tcp.has_timestamp) {
        raise_timestamp(rw, flow, &p->tcp);
        if (flow->ts_raised) {
            packet_tcp_shift_tsval(frame, p, flow->ts_floor - p->tcp.tsval, partial);
        }
        if (!flow->heard && !(p->tcp.flags & PACKET_TCP_SYN)) {
            packet_tcp_shift_tsecr(frame, p, 0u - p->tcp.tsecr, partial);
        }
    }
}

/* The guest's SYN or SYN-ACK. */
static struct rewrite_result output_syn(struct rewrite *rw, uint64_t now_us, struct flow *flow,
                                        const struct packet_key *key, uint8_t *frame,
                                        struct packet *p, bool partial)
{
    bool active = !(p->tcp.flags & PACKET_TCP_ACK), late;
    struct rewrite_result result;

    if (flow && flow->young && flow->secondary_known && flow->secondary_isn == p->tcp.seq) {
        /* Sent again.  Peers may know the primary's number of it by now. */
        result = result_of(rw, flow, REWRITE_PASS);
        output_translate(rw, flow, frame, p, partial, rw->failed_over);
        return result;
    }
    if (flow && flow->based && !flow->young && flow->base_isn - flow->base == p->tcp.seq) {
        result = result_of(rw, flow, REWRITE_PASS); /* its own, again */
        output_translate(rw, flow, frame, p, partial, rw->failed_over);
        return result;
    }
    if (flow && flow->young && !flow->secondary_known) {
        if (flow->active != active && active) {
            flow->active = true; /* known from FLOW, or both began at once */
        }
        flow->young_us = now_us;
    } else if (rw->failed_over) {
        if (flow) {
            drop(rw, flow);      /* the next connection with these numbers is all the guest's own */
        }
        return result_of(rw, NULL, REWRITE_PASS);
    } else if (!active && flow && alive(flow) && flow->established &&
               !flow->syn_pending) {
        /* Repeated, though its acknowledgement is on the ring: both guests have chosen already. */
        return result_of(rw, flow, REWRITE_PASS);
    } else {
        /* It may answer a SYN that the checkpoint found on the ring: then each guest has chosen. */
        late = !active && !flow;
        if (!flow) {
            flow = add(rw, key, now_us);
            if (!flow) {
                return result_of(rw, NULL, REWRITE_PASS);
            }
        }
        begin(flow, now_us, active);
        flow->data_in_syn = late; /* nothing is known of the peer's acknowledgements */
        count(rw, flow);
    }
    if (active && packet_payload_bytes(p)) {
        flow->data_in_syn = true;
    }
    result = result_of(rw, flow, REWRITE_PASS);
    result.output_ready = learn_secondary(rw, flow, &p->tcp);
    /* Input waits for this alone: if the primary's number is not known, the input will tell it. */
    result.input_ready = true;
    output_translate(rw, flow, frame, p, partial, rw->failed_over);
    return result;
}

struct rewrite_result rewrite_output(struct rewrite *rw, uint64_t now_us, uint8_t *frame,
                                     struct packet *p, bool partial)
{
    struct rewrite_result result;
    struct packet_key key;
    struct flow *flow;

    if (p->kind != PACKET_TCP) {
        return result_of(rw, NULL, REWRITE_PASS);
    }
    packet_key(&key, p, true);
    flow = find(rw, &key);
    if (flow) {
        refresh(rw, flow);
        used_now(rw, flow, now_us);
    }
    if (p->tcp.flags & PACKET_TCP_SYN) {
        return output_syn(rw, now_us, flow, &key, frame, p, partial);
    }
    if (!flow) {
        return result_of(rw, NULL, REWRITE_PASS);
    }
    result = result_of(rw, flow, REWRITE_PASS);
    if (flow->young && flow->secondary_known && !flow->primary_known && !rw->failed_over) {
        result.verdict = REWRITE_HOLD;
        return result;
    }
    note_end(flow, &p->tcp, true);
    output_translate(rw, flow, frame, p, partial, true);
    return result;
}

void rewrite_output_late(struct rewrite *rw, uint8_t *frame, struct packet *p, bool partial,
                         bool rewritten)
{
    struct packet_key key;
    struct flow *flow;

    if (p->kind != PACKET_TCP) {
        return;
    }
    packet_key(&key, p, true);
    flow = find(rw, &key);
    if (!flow) {
        return;
    }
    refresh(rw, flow);
    if ((p->tcp.flags & PACKET_TCP_SYN) &&
        !(flow->secondary_known && flow->secondary_isn == p->tcp.seq) &&
        !(flow->based && !flow->young && flow->base_isn - flow->base == p->tcp.seq)) {
        return;                  /* of an earlier connection */
    }
    output_translate(rw, flow, frame, p, partial, !rewritten);
}

/* ---- The rest ----------------------------------------------------------------------------- */

struct rewrite_result rewrite_flow(struct rewrite *rw, uint64_t now_us,
                                   const struct remus_flow *message)
{
    struct rewrite_result result;
    struct packet_key key;
    struct flow *flow;

    packet_key_from_flow(&key, message);
    flow = find(rw, &key);
    if (rw->failed_over && !flow) {
        return result_of(rw, NULL, REWRITE_PASS);
    }
    if (!flow) {
        /* The primary has opened a connection, the secondary will. */
        flow = add(rw, &key, now_us);
        if (!flow) {
            return result_of(rw, NULL, REWRITE_PASS);
        }
        begin(flow, now_us, true);
    }
    refresh(rw, flow);
    used_now(rw, flow, now_us);
    result = result_of(rw, flow, REWRITE_PASS);
    if (flow->young && !flow->syn_pending && !flow->primary_certain) {
        result.output_ready = learn_primary(rw, flow, message->primary_isn, true);
        result.input_ready = result.output_ready;
    } else if (!flow->young || flow->syn_pending || flow->primary_isn != message->primary_isn) {
        flow->next_known = true;
        flow->next_isn = message->primary_isn;
    }
    return result;
}

void rewrite_detach(struct rewrite *rw)
{
    rw->generation++;
    rw->stats.rewriting = 0;     /* before failover only offsets count; see refresh() */
}

void rewrite_failover(struct rewrite *rw, uint64_t now_us, uint64_t settle_us)
{
    uint32_t i;

    if (rw->failed_over) {
        return;
    }
    rw->failed_over = true;
    rw->failover_us = now_us;
    rw->settle_us = settle_us < REWRITE_TS_SETTLE_US ? settle_us : REWRITE_TS_SETTLE_US;
    for (i = 0; i < rw->flows_max; i++) {
        struct flow *flow = &rw->flows[i];

        if (!flow->used) {
            continue;
        }
        refresh(rw, flow);
        if (flow->young && !flow->secondary_known) {
            flow->young_us = now_us; /* from here on it waits for so long at most */
        }
    }
}

void rewrite_offsets_clear(struct rewrite *rw)
{
    uint32_t i;

    for (i = 0; i < rw->flows_max; i++) {
        struct flow *flow = &rw->flows[i];

        if (flow->used && flow->based) {
            refresh(rw, flow);
            flow->based = false;
            flow->offset = flow->young ? flow->offset : 0;
            count(rw, flow);
        }
    }
}

bool rewrite_offsets_add(struct rewrite *rw, uint64_t now_us, const struct remus_offset *based)
{
    struct packet_key key;
    struct flow *flow;

    packet_key_from_flow(&key, &based->flow);
    flow = find(rw, &key);
    if (!flow) {
        flow = add(rw, &key, now_us);
        if (!flow) {
            return false;
        }
    }
    refresh(rw, flow);
    used_now(rw, flow, now_us);
    flow->based = true;
    flow->base = based->offset;
    flow->base_isn = based->flow.primary_isn;
    flow->base_state = based->state;
    if (!flow->young) {
        base_state(flow);
        flow->offset = flow->base;
        count(rw, flow);
    }
    return true;
}

static uint8_t state_of(const struct flow *flow)
{
    return (uint8_t)((flow->fin_input ? REMUS_OFFSET_FIN_INPUT : 0) |
                     (flow->fin_output ? REMUS_OFFSET_FIN_OUTPUT : 0) |
                     (flow->reset ? REMUS_OFFSET_RESET : 0) |
                     (flow->established ? 0 : REMUS_OFFSET_HALF_OPEN));
}

bool rewrite_offsets_next(struct rewrite *rw, uint32_t *cursor, struct remus_offset *out)
{
    while (*cursor < rw->flows_max) {
        struct flow *flow = &rw->flows[(*cursor)++];

        if (!flow->used) {
            continue;
        }
        refresh(rw, flow);
        if (!flow->offset) {
            continue;
        }
        memset(out, 0, sizeof(*out));
        packet_key_to_flow(&out->flow, &flow->key);
        out->flow.primary_isn = flow->young ? flow->primary_isn : flow->base_isn;
        out->offset = flow->offset;
        out->state = state_of(flow);
        return true;
    }
    return false;
}

/* A handshake that came to nothing. */
static bool stale(const struct rewrite *rw, const struct flow *flow, uint64_t now_us)
{
    return flow->young && !both_known(flow) && now_us - flow->seen_us >
           (rw->failed_over ? REWRITE_HALF_OPEN_US : REWRITE_CLOSED_US);
}

/* A clock that is raised may still be: it ticks once in 2 ms at least. */
static bool behind(const struct flow *flow, uint64_t now_us)
{
    return seq_lt(flow->ts_sent + (uint32_t)((now_us - flow->ts_sent_us) / 2000), flow->ts_floor);
}

/* After failover: whether an entry can change more of a frame than by its offset. */
static bool unsettled(const struct rewrite *rw, const struct flow *flow, uint64_t now_us)
{
    uint64_t gone_us = now_us - rw->failover_us;
    bool clock = flow->ts_raised ? gone_us < REWRITE_TS_SETTLE_US && behind(flow, now_us) :
                 flow->echo_known && !flow->ts_resolved && gone_us < rw->settle_us;
    /* Until the peer has answered the guest's SYN its echo is to be made the guest's. */
    bool handshake = flow->young && (!both_known(flow) || (flow->active && !flow->established));

    return clock || (handshake && now_us - flow->seen_us <= REWRITE_HALF_OPEN_US);
}

void rewrite_tick(struct rewrite *rw, uint64_t now_us)
{
    uint32_t i;

    for (i = 0; i < TICK_SCAN && i < rw->flows_max; i++) {
        struct flow *flow = &rw->flows[rw->tick_at];
        uint64_t idle_us;

        rw->tick_at = (rw->tick_at + 1) % rw->flows_max;
        if (!flow->used) {
            continue;
        }
        refresh(rw, flow);
        idle_us = now_us - flow->seen_us;
        if (flow->based && !rw->failed_over) {
            continue;            /* the primary's list alone decides */
        }
        if (idle_us > REWRITE_IDLE_US || stale(rw, flow, now_us) ||
            (!alive(flow) && idle_us > REWRITE_CLOSED_US) ||
            (rw->failed_over && !flow->offset && !unsettled(rw, flow, now_us) &&
             idle_us > REWRITE_HANDSHAKE_US)) {
            drop(rw, flow);
        }
    }
}

bool rewrite_idle(const struct rewrite *rw)
{
    return rw->failed_over && !rw->used;
}

void rewrite_stats_get(const struct rewrite *rw, uint64_t now_us, struct rewrite_stats *out)
{
    uint32_t i;

    *out = rw->stats;
    out->flows = rw->used;
    if (rw->failed_over) {       /* those whose timestamps are not settled count, too */
        out->rewriting = 0;
        for (i = 0; i < rw->flows_max; i++) {
            const struct flow *flow = &rw->flows[i];
            bool more = flow->used && unsettled(rw, flow, now_us);

            out->rewriting += flow->used && (flow->offset || more);
            out->unsettled += more;
            out->offsets += flow->used && flow->offset;
        }
    }
}
