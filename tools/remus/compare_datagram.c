/*
 * compare_datagram.c: everything that is not TCP: a primary's packet leaves when the secondary has
 * sent an equal one, in whatever order.
 *
 * Equal means: equal heads (struct datagram_head) and equal data, which is
 *   UDP            addresses, ports, tags; the payload
 *   ICMP, ICMPv6   addresses, tags, type, code, rest of header; the payload
 *   other IP       addresses, tags, protocol, type of service; what follows the fixed IP header,
 *                  options and extension headers included (so neither IP ID, TTL nor flow label)
 *   ARP            tags; the ARP packet, without Ethernet header or padding
 *   anything else  the whole frame; so too what says it is IP but has lengths that do not hold
 *
 * There are no flows here.  Items stand in hash buckets by content; both sides have their own.
 * An equal item of the other side that came first is the partner.  An echo is found by its
 * identity alone (addresses, id, sequence), because there a different payload is a divergence that
 * need not wait for the deadline.
 *
 * A secondary's datagram without partner is surplus: it never leaves, raises nothing, ages out.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string.h>

#include "tools/remus/compare_private.h"

enum { ICMP_ECHO_REPLY = 0, ICMP_ECHO = 8, ICMPV6_ECHO = 128, ICMPV6_ECHO_REPLY = 129 };

uint32_t datagram_head_fill(struct datagram_head *head, const struct packet *p,
                            const uint8_t *frame, bool *hash_body)
{
    const uint8_t *h = frame + p->l4;

    memset(head, 0, sizeof(*head));
    packet_key(&head->key, p, true);
    head->kind = p->kind;
    *hash_body = true;
    switch (p->kind) {
    case PACKET_UDP:
        /* The length matters where the IP packet goes on behind the datagram. */
        memcpy(head->rest, h + 4, 2);
        return p->payload;
    case PACKET_ICMP:
        head->type = h[0];
        head->code = h[1];
        memcpy(head->rest, h + 4, 4);
        *hash_body = head->type != ICMP_ECHO_REPLY && head->type != ICMP_ECHO;
        return p->payload;
    case PACKET_ICMPV6:
        head->type = h[0];
        head->code = h[1];
        if ((head->type == ICMPV6_ECHO || head->type == ICMPV6_ECHO_REPLY) &&
            p->end - p->payload >= 4) {
            memcpy(head->rest, h + 4, 4);
            *hash_body = false;
            return p->payload + 4;
        }
        return p->payload;
    case PACKET_IP:
        if (p->ip_version == 4) {
            head->tos = frame[p->l3 + 1];
            return p->l3 + 20;
        }
        head->tos = (uint8_t)(frame[p->l3] << 4 | frame[p->l3 + 1] >> 4);
        return p->l3 + 40;
    case PACKET_ARP:
        return p->l3;
    default:
        return 0;
    }
}

static bool equal_bodies(const struct item *a, const struct item *b)
{
    return a->bytes == b->bytes && item_compare(a, 0, b, 0, a->bytes) == a->bytes;
}

/* The oldest item of the other side with the same head and, except echoes, the same hash of the
 * body; *equal: and the same body.  NULL: none. */
static struct item *find(struct cmp *c, const struct item *it, bool *equal)
{
    struct list *bucket = &c->buckets[!it->side][it->datagram.hash & c->bucket_mask];
    struct item *other, *alike = NULL;

    *equal = false;
    for (other = bucket->first; other; other = other->next) {
        if (other->datagram.hash != it->datagram.hash ||
            memcmp(&other->datagram.head, &it->datagram.head, sizeof(it->datagram.head))) {
            continue;
        }
        if (equal_bodies(it, other)) {
            *equal = true;
            return other;
        }
        alike = other;
    }
    return alike;
}

static void leave(struct cmp *c, struct item *p, struct item *s)
{
    struct item *piece = p->datagram.pieces, *next;

    primary_release(c, p, CMP_RELEASE);
    for (; piece; piece = next) {
        next = piece->next;
        primary_release(c, piece, CMP_RELEASE);
    }
    piece = s->datagram.pieces;
    matched(c, s->id);
    item_free(c, s);
    for (; piece; piece = next) {
        next = piece->next;
        matched(c, piece->id);
        item_free(c, piece);
    }
}

void datagram_free(struct cmp *c, struct item *it)
{
    struct item *piece;

    while ((piece = it->datagram.pieces)) {
        it->datagram.pieces = piece->next;
        item_free(c, piece);
    }
    item_free(c, it);
}

static void diverge(struct cmp *c, struct item *p, struct item *s)
{
    uint32_t n = p->bytes < s->bytes ? p->bytes : s->bytes;
    uint32_t at = item_compare(p, 0, s, 0, n);
    const struct packet_key *key = &p->datagram.head.key;
    const uint8_t *x, *y;

    if (at == n) {
        want_checkpoint(c, CTL_WHY_DIVERGED, p->class, key, "echo: %u / %u bytes", p->bytes,
                        s->bytes);
    } else {
        item_span(p, at, &x);
        item_span(s, at, &y);
        want_checkpoint(c, CTL_WHY_DIVERGED, p->class, key, "echo, byte %u: 0x%02x / 0x%02x", at,
                        *x, *y);
    }
    primary_wait(c, p);
    datagram_free(c, s);
}

/* Whether the item went away, or waits for the epoch's end now. */
static bool pair(struct cmp *c, struct item *it)
{
    struct item *other, *p, *s;
    bool equal;

    if (!gate_open(c)) {
        return false; /* both stay; rerun() brings them together */
    }
    other = find(c, it, &equal);
    if (!other) {
        return false;
    }
    p = it->side == PRIMARY ? it : other;
    s = it->side == PRIMARY ? other : it;
    if (equal) {
        leave(c, p, s);
    } else {
        diverge(c, p, s);
    }
    return true;
}

void datagram_place(struct cmp *c, struct item *it, bool hash_body)
{
    uint64_t hash;

    hash = XXH3_64bits_withSeed(&it->datagram.head, sizeof(it->datagram.head), c->limits.hash_seed);
    if (hash_body) {
        hash = XXH3_64bits_withSeed(it->ext, it->bytes, hash);
    }
    it->datagram.hash = hash;
    if (pair(c, it)) {
        return;
    }
    if (item_keep(c, it, 0)) {
        want_checkpoint(c, CTL_WHY_QUEUE, it->class, &it->datagram.head.key, "no room for a copy");
        if (it->side == PRIMARY) {
            primary_wait(c, it);
        } else {
            c->stats.secondary_surplus++;
            datagram_free(c, it);
        }
        return;
    }
    list_insert(c, PLACE_BUCKET, NULL, &c->buckets[it->side][hash & c->bucket_mask], it, NULL);
}

void datagram_run(struct cmp *c, struct item *it)
{
    pair(c, it);
}

static void take(struct cmp *c, struct item *it, const struct packet *p, const uint8_t *frame)
{
    bool hash_body;
    uint32_t body;

    if (p->kind == PACKET_FRAGMENT) {
        reassembly_add(c, it, p, frame);
        return;
    }
    body = datagram_head_fill(&it->datagram.head, p, frame, &hash_body);
    it->datagram.pieces = NULL;
    it->ext = frame + body;
    it->bytes = p->end - body;
    datagram_place(c, it, hash_body);
}

void datagram_primary(struct cmp *c, const struct packet *p, const uint8_t *frame, uint64_t id,
                      bool gso)
{
    struct item *it = primary_new(c, id, gso);

    if (it) {
        take(c, it, p, frame);
    }
}

void datagram_secondary(struct cmp *c, const struct packet *p, const uint8_t *frame, uint64_t id)
{
    struct item *it = secondary_new(c, id, &c->s_surplus);

    if (it) {
        take(c, it, p, frame);
    } else {
        c->stats.secondary_surplus++;
    }
}
