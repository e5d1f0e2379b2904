/*
 * nudge.c: see nudge.h.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/nudge.h"

#define ICMP_UNREACHABLE    3u
#define ICMP_HOST           1u
#define ICMPV6_UNREACHABLE  1u
#define ICMPV6_NO_ROUTE     0u
#define QUOTED_TCP          8u     /* ports and sequence number */
#define TCP_HEADER          20u
#define ETHERNET_MAX        (14u + 4u * PACKET_VLANS_MAX)
#define LONG_AGO            0x10000000u /* bytes before what the guest expects: out of any window */

struct place {
    struct packet_key key;
    uint64_t seen_us;        /* 0: free */
    uint32_t ack;            /* what the guest acknowledged last */
    uint8_t ethernet[ETHERNET_MAX];
    uint8_t ethernet_bytes;
    bool fin;                /* the guest will send no more */
};

struct nudge {
    uint64_t seed;
    bool begun;
    struct place places[NUDGE_FLOWS];
};

int nudge_new(struct nudge **out, uint64_t hash_seed)
{
    *out = calloc(1, sizeof(**out));
    if (!*out) {
        return -ENOMEM;
    }
    (*out)->seed = hash_seed;
    return 0;
}

void nudge_free(struct nudge *n)
{
    free(n);
}

void nudge_begin(struct nudge *n)
{
    n->begun = true;
}

static uint32_t place_of(uint64_t seed, const struct packet_key *key)
{
    return (uint32_t)(XXH64(key, sizeof(*key), seed) % NUDGE_FLOWS);
}

static bool holds(const struct place *place, const struct packet_key *key)
{
    return place->seen_us && !memcmp(&place->key, key, sizeof(*key));
}

void nudge_output(struct nudge *n, uint64_t now_us, const uint8_t *frame, const struct packet *p)
{
    struct packet_key key;
    struct place *place;
    bool known;

    if (p->kind != PACKET_TCP || p->l3 > ETHERNET_MAX) {
        return;
    }
    packet_key(&key, p, true);
    place = &n->places[place_of(n->seed, &key)];
    known = holds(place, &key);
    if (p->tcp.flags & (PACKET_TCP_RST | PACKET_TCP_SYN) || !(p->tcp.flags & PACKET_TCP_ACK)) {
        /* No connection yet, or no more: a message to a peer that is connecting would end that. */
        if (known) {
            place->seen_us = 0;
        }
        return;
    }
    if (n->begun && !known) {
        return;
    }
    place->fin = (known && place->fin) || p->tcp.flags & PACKET_TCP_FIN;
    place->key = key;
    place->seen_us = now_us ? now_us : 1;
    place->ack = p->tcp.ack;
    memcpy(place->ethernet, frame, p->l3);
    place->ethernet_bytes = (uint8_t)p->l3;
}

void nudge_input(struct nudge *n, const struct packet *p)
{
    struct packet_key key;
    struct place *place;

    if (p->kind != PACKET_TCP) {
        return;
    }
    packet_key(&key, p, false);
    place = &n->places[place_of(n->seed, &key)];
    if (holds(place, &key) && (p->tcp.flags & (PACKET_TCP_SYN | PACKET_TCP_RST) ||
                               place->ack - p->tcp.seq < packet_tcp_span(p))) {
        place->seen_us = 0;
    }
}

bool nudge_superseded(const struct nudge *n, const struct packet *p)
{
    const struct place *place;
    struct packet_key key;

    if (p->kind != PACKET_TCP || packet_tcp_span(p) || !(p->tcp.flags & PACKET_TCP_ACK) ||
        p->tcp.flags & PACKET_TCP_RST) {
        return false;
    }
    packet_key(&key, p, true);
    place = &n->places[place_of(n->seed, &key)];
    return holds(place, &key) && seq_lt(p->tcp.ack, place->ack);
}

static void put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* The beginning of the segment that the peer has not seen acknowledged. */
static void put_tcp(uint8_t *at, const struct place *place)
{
    memcpy(at, &place->key.peer_port, 2);
    memcpy(at + 2, &place->key.guest_port, 2);
    put16(at + 4, (uint16_t)(place->ack >> 16));
    put16(at + 6, (uint16_t)place->ack);
}

static void put_ipv4(uint8_t *ip, uint16_t total, uint8_t proto, const uint8_t *src,
                     const uint8_t *dst)
{
    ip[0] = 0x45;
    put16(ip + 2, total);
    ip[8] = 64;
    ip[9] = proto;
    memcpy(ip + 12, src + 12, 4);
    memcpy(ip + 16, dst + 12, 4);
    put16(ip + 10, (uint16_t)~packet_fold(packet_sum(ip, 20, 0)));
}

static void put_ipv6(uint8_t *ip, uint16_t payload, uint8_t proto, const uint8_t *src,
                     const uint8_t *dst)
{
    ip[0] = 0x60;
    put16(ip + 4, payload);
    ip[6] = proto;
    ip[7] = 64;
    memcpy(ip + 8, src, 16);
    memcpy(ip + 24, dst, 16);
}

static uint32_t message(const struct place *place, uint8_t *frame)
{
    const struct packet_key *key = &place->key;
    uint8_t *ip = frame + place->ethernet_bytes, *icmp;
    const bool v4 = key->ip_version == 4;
    const uint32_t header = v4 ? 20 : 40;
    const uint32_t bytes = header + 8 + header + QUOTED_TCP;
    struct packet p;

    memset(frame, 0, NUDGE_FRAME_MAX);
    memcpy(frame, place->ethernet, place->ethernet_bytes);
    icmp = ip + header;
    if (v4) {
        put_ipv4(ip, (uint16_t)bytes, PACKET_PROTO_ICMP, key->guest, key->peer);
        icmp[0] = ICMP_UNREACHABLE;
        icmp[1] = ICMP_HOST;
        put_ipv4(icmp + 8, header + 20, PACKET_PROTO_TCP, key->peer, key->guest);
    } else {
        put_ipv6(ip, (uint16_t)(bytes - header), PACKET_PROTO_ICMPV6, key->guest, key->peer);
        icmp[0] = ICMPV6_UNREACHABLE;
        icmp[1] = ICMPV6_NO_ROUTE;
        put_ipv6(icmp + 8, 20, PACKET_PROTO_TCP, key->peer, key->guest);
    }
    put_tcp(icmp + 8 + header, place);
    if (!packet_parse(&p, frame, place->ethernet_bytes + bytes)) {
        packet_checksum_fill(frame, &p);
    }
    return place->ethernet_bytes + bytes;
}

struct segment {
    const uint8_t *from, *to;       /* 16 bytes each */
    uint16_t sport, dport;          /* as in the frame */
    uint32_t seq, ack;
    uint8_t flags, ip_version;
};

/* TCP without options and data, behind the `l3` bytes that frame has already. */
static uint32_t put_segment(uint8_t *frame, uint32_t l3, const struct segment *s)
{
    uint8_t *ip = frame + l3, *tcp;
    const bool v4 = s->ip_version == 4;
    const uint32_t bytes = (v4 ? 20 : 40) + TCP_HEADER;
    struct packet p;

    memset(ip, 0, bytes);
    if (v4) {
        put_ipv4(ip, (uint16_t)bytes, PACKET_PROTO_TCP, s->from, s->to);
    } else {
        put_ipv6(ip, TCP_HEADER, PACKET_PROTO_TCP, s->from, s->to);
    }
    tcp = ip + bytes - TCP_HEADER;
    memcpy(tcp, &s->sport, 2);
    memcpy(tcp + 2, &s->dport, 2);
    put16(tcp + 4, (uint16_t)(s->seq >> 16));
    put16(tcp + 6, (uint16_t)s->seq);
    put16(tcp + 8, (uint16_t)(s->ack >> 16));
    put16(tcp + 10, (uint16_t)s->ack);
    tcp[12] = TCP_HEADER / 4 << 4;
    tcp[13] = s->flags;
    if (!packet_parse(&p, frame, l3 + bytes)) {
        packet_checksum_fill(frame, &p);
    }
    return l3 + bytes;
}

static uint32_t question(const struct place *place, uint8_t *frame)
{
    const struct packet_key *key = &place->key;

    memcpy(frame, place->ethernet + 6, 6);
    memcpy(frame + 6, place->ethernet, 6);
    memcpy(frame + 12, place->ethernet + 12, place->ethernet_bytes - 12u);
    return put_segment(frame, place->ethernet_bytes, &(struct segment){
        .from = key->peer, .to = key->guest, .sport = key->peer_port, .dport = key->guest_port,
        .seq = place->ack - LONG_AGO, .flags = PACKET_TCP_ACK, .ip_version = key->ip_version,
    });
}

/* The next place that is not too old; NULL at the end. */
static const struct place *next_place(const struct nudge *n, uint64_t now_us, uint32_t *cursor)
{
    while (*cursor < NUDGE_FLOWS) {
        const struct place *place = &n->places[(*cursor)++];

        if (place->seen_us && now_us < place->seen_us + NUDGE_IDLE_US) {
            return place;
        }
    }
    return NULL;
}

uint32_t nudge_next(const struct nudge *n, uint64_t now_us, uint32_t *cursor, uint8_t *frame)
{
    const struct place *place = next_place(n, now_us, cursor);

    return place ? message(place, frame) : 0;
}

uint32_t nudge_question(const struct nudge *n, uint64_t now_us, uint32_t *cursor, uint8_t *frame)
{
    const struct place *place;

    do {
        place = next_place(n, now_us, cursor);
    } while (place && place->fin);
    return place ? question(place, frame) : 0;
}

void nudge_told_clear(struct nudge_told *told)
{
    memset(told->bits, 0, sizeof(told->bits));
}

uint32_t nudge_tell(struct nudge_told *told, const uint8_t *frame, const struct packet *p,
                    uint8_t *out)
{
    struct packet_key key;
    uint32_t at;

    if (p->kind != PACKET_TCP || p->l3 > ETHERNET_MAX) {
        return 0;
    }
    packet_key(&key, p, true);
    at = place_of(told->seed, &key);
    if (told->bits[at / 64] >> at % 64 & 1 &&
        !(p->tcp.flags & (PACKET_TCP_SYN | PACKET_TCP_FIN | PACKET_TCP_RST))) {
        return 0;
    }
    told->bits[at / 64] |= UINT64_C(1) << at % 64;
    memcpy(out, frame, p->l3);
    return put_segment(out, p->l3, &(struct segment){
        .from = key.guest, .to = key.peer, .sport = key.guest_port, .dport = key.peer_port,
        .seq = p->tcp.seq, .ack = p->tcp.ack, .flags = (uint8_t)p->tcp.flags,
        .ip_version = key.ip_version,
    });
}
