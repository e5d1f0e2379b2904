/*
 * reassembly.c: IP fragments, put together only to be compared: what leaves are the primary's own
 * pieces, all of them, once the whole packet has its equal.
 *
 * The guest writes them, so they come in order and once; anything else (overlap, gap in the 8-byte
 * grid, too many pieces) makes the packet uncomparable: its pieces wait for the epoch's end.
 * Fragmented TCP is compared as a whole packet, so with its sequence numbers and timestamps.
 */
#include <string.h>

#include "tools/remus/compare_private.h"

#define IP_PACKET_MAX 65535u

void reassembly_drop(struct cmp *c, struct reassembly *r)
{
    struct item *it;

    while ((it = r->list.first)) {
        if (r->side == PRIMARY) {
            primary_wait(c, it);
        } else {
            item_free(c, it);
        }
    }
    r->used = false;
    c->reassemblies_used--;
}

static struct reassembly *find(struct cmp *c, uint8_t side, const struct datagram_head *head)
{
    uint32_t i, seen;

    for (i = seen = 0; seen < c->reassemblies_used; i++) {
        struct reassembly *r = &c->reassemblies[i];

        if (!r->used) {
            continue;
        }
        seen++;
        if (r->side == side && !memcmp(&r->head, head, sizeof(*head))) {
            return r;
        }
    }
    return NULL;
}

static struct reassembly *begin(struct cmp *c, struct item *it, const struct datagram_head *head,
                                uint8_t tos)
{
    struct reassembly *r = NULL, *oldest = NULL;
    uint32_t i;

    for (i = 0; i < REASSEMBLIES_MAX; i++) {
        r = &c->reassemblies[i];
        if (!r->used) {
            break;
        }
        if (r->side == SECONDARY && (!oldest || r->number < oldest->number)) {
            oldest = r;
        }
    }
    if (i == REASSEMBLIES_MAX) {
        if (!oldest) {
            return NULL;
        }
        c->stats.secondary_surplus++;
        reassembly_drop(c, oldest);
        r = oldest;
    }
    memset(r, 0, sizeof(*r));
    r->used = true;
    r->side = it->side;
    r->tos = tos;
    r->number = c->reassemblies_begun++;
    r->head = *head;
    r->leader = it;
    c->reassemblies_used++;
    return r;
}

/* Puts the piece where it belongs; false: it does not fit the others. */
static bool insert(struct cmp *c, struct reassembly *r, struct item *it, bool more)
{
    struct item *before = NULL, *prev = r->list.last;
    uint32_t end = it->fragment.offset + it->bytes;

    if (!it->bytes || end > IP_PACKET_MAX || (more && it->bytes % 8) ||
        r->pieces == FRAGMENTS_MAX || (r->total && (end > r->total || !more))) {
        return false;
    }
    while (prev && prev->fragment.offset > it->fragment.offset) {
        before = prev;
        prev = prev->prev;
    }
    if ((prev && prev->fragment.offset + prev->bytes > it->fragment.offset) ||
        (before && (!more || end > before->fragment.offset))) {
        return false;
    }
    list_insert(c, PLACE_REASSEMBLY, NULL, &r->list, it, before);
    it->fragment.of = r;
    r->pieces++;
    r->have += it->bytes;
    if (!more) {
        r->total = end;
    }
    return true;
}

/* The packet as datagram_head_fill wants it, its L4 header at the start of c->assembly. */
static void describe(const struct cmp *c, const struct reassembly *r, struct packet *p)
{
    const struct packet_key *key = &r->head.key;
    const uint8_t *h = c->assembly;

    memset(p, 0, sizeof(*p));
    memcpy(p->src, key->guest, sizeof(p->src));
    memcpy(p->dst, key->peer, sizeof(p->dst));
    memcpy(p->vlan, key->vlan, sizeof(p->vlan));
    p->proto = key->proto;
    p->ip_version = key->ip_version;
    p->end = r->total;
    p->kind = PACKET_IP;
    if (p->proto == PACKET_PROTO_UDP && r->total >= 8) {
        p->kind = PACKET_UDP;
        p->payload = 8;
        p->sport = (uint16_t)(h[0] << 8 | h[1]);
        p->dport = (uint16_t)(h[2] << 8 | h[3]);
    } else if (p->proto == PACKET_PROTO_ICMP && p->ip_version == 4 && r->total >= 8) {
        p->kind = PACKET_ICMP;
        p->payload = 8;
    } else if (p->proto == PACKET_PROTO_ICMPV6 && p->ip_version == 6 && r->total >= 4) {
        p->kind = PACKET_ICMPV6;
        p->payload = 4;
    }
}

static void complete(struct cmp *c, struct reassembly *r)
{
    struct item *leader = r->leader, *it, *pieces = NULL, **link = &pieces;
    struct datagram_head head;
    bool hash_body = true;
    struct packet p;
    uint32_t body = 0;

    while ((it = r->list.first)) {
        uint32_t at = 0;

        while (at < it->bytes) {
            const uint8_t *data;
            uint32_t n = item_span(it, at, &data);

            memcpy(c->assembly + it->fragment.offset + at, data, n);
            at += n;
        }
        item_forget(c, it);
        list_remove(c, it);
        if (it != leader) {
            *link = it;
            link = &it->next;
        }
    }
    *link = NULL;
    describe(c, r, &p);
    if (p.kind == PACKET_IP) {
        memset(&head, 0, sizeof(head));
        head.key = r->head.key;
        head.kind = PACKET_IP;
        head.tos = r->tos;
    } else {
        body = datagram_head_fill(&head, &p, c->assembly, &hash_body);
    }
    leader->datagram.head = head;
    leader->datagram.pieces = pieces;
    leader->ext = c->assembly + body;
    leader->bytes = r->total - body;
    r->used = false;
    c->reassemblies_used--;
    datagram_place(c, leader, hash_body);
}

static void give_up(struct cmp *c, struct item *it)
{
    if (it->side == PRIMARY) {
        primary_wait(c, it);
    } else {
        c->stats.secondary_surplus++;
        item_free(c, it);
    }
}

void reassembly_add(struct cmp *c, struct item *it, const struct packet *p, const uint8_t *frame)
{
    struct datagram_head head;
    struct reassembly *r;
    uint8_t tos;

    memset(&head, 0, sizeof(head));
    packet_key(&head.key, p, true);
    head.kind = PACKET_FRAGMENT;
    memcpy(head.rest, &p->fragment_id, sizeof(head.rest));
    tos = p->ip_version == 4 ? frame[p->l3 + 1]
                             : (uint8_t)(frame[p->l3] << 4 | frame[p->l3 + 1] >> 4);
    it->ext = frame + p->payload;
    it->bytes = p->end - p->payload;
    it->fragment.offset = p->fragment_offset;
    r = find(c, it->side, &head);
    if (!r) {
        r = begin(c, it, &head, tos);
        if (!r) {
            give_up(c, it);
            return;
        }
    }
    if (!insert(c, r, it, p->fragment_more) || item_keep(c, it, 0)) {
        /* The piece may be in the list already, or not. */
        if (it->place == PLACE_NONE) {
            give_up(c, it);
        }
        reassembly_drop(c, r);
        return;
    }
    if (r->total && r->have == r->total) {
        complete(c, r);
    }
}
