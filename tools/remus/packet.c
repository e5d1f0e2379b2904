/*
 * packet.c: see packet.h.
 *
 * Each parse_* function gets offsets that are already inside the frame and returns 0, or -EINVAL
 * where a length does not hold; it checks before it reads and never moves p->end outwards.
 */
#include "tools/remus/packet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    ETH_HEADER = 14,
    VLAN_TAG = 4,
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    ARP_HEADER = 8,
    TCP_HEADER = 20,
    UDP_HEADER = 8,
    ICMP_HEADER = 8,
    ICMPV6_HEADER = 4,
    TCP_CHECKSUM = 16,
    UDP_CHECKSUM = 6,
    ICMP_CHECKSUM = 2,
};

enum {
    TYPE_IPV4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_VLAN = 0x8100,
    TYPE_IPV6 = 0x86dd,
    TYPE_QINQ = 0x88a8,
    TYPE_QINQ_OLD = 0x9100,
};

enum {
    EXT_HOP_BY_HOP = 0,
    EXT_ROUTING = 43,
    EXT_FRAGMENT = 44,
    EXT_DESTINATION = 60,
    EXT_MOBILITY = 135,
};

enum {
    OPT_END = 0,
    OPT_NOP = 1,
    OPT_MSS = 2,
    OPT_WSCALE = 3,
    OPT_SACK_OK = 4,
    OPT_SACK = 5,
    OPT_TIMESTAMP = 8,
};

static inline uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t get32(const uint8_t *at)
{
    uint32_t v;

    memcpy(&v, at, sizeof(v));
    return ntohl(v);
}

static inline void put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void put32(uint8_t *at, uint32_t value)
{
    put16(at, (uint16_t)(value >> 16));
    put16(at + 2, (uint16_t)value);
}

/* ---- Parser ---------------------------------------------------------------------------------- */

static void parse_tcp_options(struct packet *p, const uint8_t *frame)
{
    struct packet_tcp *tcp = &p->tcp;
    uint32_t at = p->l4 + TCP_HEADER;

    while (at < p->payload) {
        uint8_t kind = frame[at], length;

        if (kind == OPT_END) {
            return;
        }
        if (kind == OPT_NOP) {
            at++;
            continue;
        }
        if (p->payload - at < 2) {
            return;
        }
        length = frame[at + 1];
        if (length < 2 || length > p->payload - at) {
            return;
        }
        if (kind == OPT_MSS && length == 4) {
            tcp->has_mss = true;
            tcp->mss = get16(frame + at + 2);
        } else if (kind == OPT_WSCALE && length == 3) {
            tcp->has_wscale = true;
            tcp->wscale = frame[at + 2];
        } else if (kind == OPT_SACK_OK && length == 2) {
            tcp->has_sack_ok = true;
        } else if (kind == OPT_SACK && length >= 10 && (length - 2) % 8 == 0) {
            unsigned int i, count = (length - 2u) / 8;

            if (count > PACKET_SACK_MAX) {
                count = PACKET_SACK_MAX;
            }
            for (i = 0; i < count; i++) {
                tcp->sack[i].left = get32(frame + at + 2 + 8 * i);
                tcp->sack[i].right = get32(frame + at + 6 + 8 * i);
            }
            tcp->sack_blocks = (uint8_t)count;
            tcp->sack_at = at;
        } else if (kind == OPT_TIMESTAMP && length == 10) {
            tcp->has_timestamp = true;
            tcp->timestamp_at = at + 2;
            tcp->tsval = get32(frame + at + 2);
            tcp->tsecr = get32(frame + at + 6);
        }
        at += length;
    }
}

static int parse_tcp(struct packet *p, const uint8_t *frame)
{
    const uint8_t *h = frame + p->l4;
    uint32_t header;

    if (p->end - p->l4 < TCP_HEADER) {
        return -EINVAL;
    }
    header = (uint32_t)(h[12] >> 4) * 4;
    if (header < TCP_HEADER || header > p->end - p->l4) {
        return -EINVAL;
    }
    p->kind = PACKET_TCP;
    p->payload = p->l4 + header;
    p->sport = get16(h);
    p->dport = get16(h + 2);
    p->tcp.seq = get32(h + 4);
    p->tcp.ack = get32(h + 8);
    p->tcp.flags = h[13];
    p->tcp.window = get16(h + 14);
    p->tcp.urgent = get16(h + 18);
    if (header > TCP_HEADER) {
        parse_tcp_options(p, frame);
    }
    return 0;
}

static int parse_udp(struct packet *p, const uint8_t *frame)
{
    const uint8_t *h = frame + p->l4;
    uint32_t length;

    if (p->end - p->l4 < UDP_HEADER) {
        return -EINVAL;
    }
    length = get16(h + 4);
    if (length < UDP_HEADER || length > p->end - p->l4) {
        return -EINVAL;
    }
    /* The IP packet may be longer than the datagram; what lies behind is compared too, so that
     * nothing leaves unseen: payload runs to the end of the IP packet. */
    p->kind = PACKET_UDP;
    p->payload = p->l4 + UDP_HEADER;
    p->sport = get16(h);
    p->dport = get16(h + 2);
    return 0;
}

static int parse_icmp(struct packet *p)
{
    uint32_t header = p->proto == PACKET_PROTO_ICMP ? ICMP_HEADER : ICMPV6_HEADER;

    if (p->end - p->l4 < header) {
        return -EINVAL;
    }
    p->kind = p->proto == PACKET_PROTO_ICMP ? PACKET_ICMP : PACKET_ICMPV6;
    p->payload = p->l4 + header;
    return 0;
}

static int parse_l4(struct packet *p, const uint8_t *frame)
{
    /* ICMP belongs to its own IP version; in the other it is a protocol like any. */
    switch (p->proto) {
    case PACKET_PROTO_TCP:
        return parse_tcp(p, frame);
    case PACKET_PROTO_UDP:
        return parse_udp(p, frame);
    case PACKET_PROTO_ICMP:
        if (p->ip_version == 4) {
            return parse_icmp(p);
        }
        break;
    case PACKET_PROTO_ICMPV6:
        if (p->ip_version == 6) {
            return parse_icmp(p);
        }
        break;
    }
    p->kind = PACKET_IP;
    p->payload = p->l4;
    return 0;
}

static void map_ipv4(uint8_t *to, const uint8_t *from)
{
    memset(to, 0, 10);
    to[10] = to[11] = 0xff;
    memcpy(to + 12, from, 4);
}

static int parse_ipv4(struct packet *p, const uint8_t *frame)
{
    const uint8_t *h = frame + p->l3;
    uint32_t header, total, fragment;

    if (p->length - p->l3 < IPV4_HEADER || h[0] >> 4 != 4) {
        return -EINVAL;
    }
    header = (uint32_t)(h[0] & 0xf) * 4;
    total = get16(h + 2);
    if (header < IPV4_HEADER || total < header || total > p->length - p->l3) {
        return -EINVAL;
    }
    p->ip_version = 4;
    p->proto = h[9];
    p->end = p->l3 + total;
    p->l4 = p->l3 + header;
    map_ipv4(p->src, h + 12);
    map_ipv4(p->dst, h + 16);
    fragment = get16(h + 6);
    if (fragment & 0x3fff) { /* offset or more-fragments */
        p->kind = PACKET_FRAGMENT;
        p->payload = p->l4;
        p->fragment_id = get16(h + 4);
        p->fragment_offset = (fragment & 0x1fff) * 8;
        p->fragment_more = fragment & 0x2000;
        return 0;
    }
    return parse_l4(p, frame);
}

static int parse_ipv6(struct packet *p, const uint8_t *frame)
{
    const uint8_t *h = frame + p->l3;
    uint32_t payload, at, n;
    uint8_t next;

    if (p->length - p->l3 < IPV6_HEADER || h[0] >> 4 != 6) {
        return -EINVAL;
    }
    payload = get16(h + 4);
    if (payload > p->length - p->l3 - IPV6_HEADER) {
        return -EINVAL;
    }
    p->ip_version = 6;
    p->end = p->l3 + IPV6_HEADER + payload;
    memcpy(p->src, h + 8, 16);
    memcpy(p->dst, h + 24, 16);
    next = h[6];
    at = p->l3 + IPV6_HEADER;
    for (n = 0;; n++) {
        uint32_t length;

        if (next != EXT_HOP_BY_HOP && next != EXT_ROUTING && next != EXT_DESTINATION &&
            next != EXT_FRAGMENT && next != EXT_MOBILITY) {
            break;
        }
        if (n == PACKET_EXTENSIONS_MAX || p->end - at < 8) {
            return -EINVAL;
        }
        if (next == EXT_FRAGMENT) {
            uint32_t field = get16(frame + at + 2);

            next = frame[at];
            length = 8;
            /* Offset 0 and nothing to follow is a whole packet (RFC 6946, atomic fragment). */
            if (field & 0xfff9) {
                p->kind = PACKET_FRAGMENT;
                p->proto = next;
                p->l4 = p->payload = at + length;
                p->fragment_id = get32(frame + at + 4);
                p->fragment_offset = field & 0xfff8;
                p->fragment_more = field & 1;
                return 0;
            }
        } else {
            next = frame[at];
            length = ((uint32_t)frame[at + 1] + 1) * 8;
        }
        if (length > p->end - at) {
            return -EINVAL;
        }
        at += length;
    }
    p->proto = next;
    p->l4 = at;
    return parse_l4(p, frame);
}

static int parse_arp(struct packet *p, const uint8_t *frame)
{
    const uint8_t *h = frame + p->l3;
    uint32_t length;

    if (p->length - p->l3 < ARP_HEADER) {
        return -EINVAL;
    }
    length = ARP_HEADER + 2u * h[4] + 2u * h[5];
    if (length > p->length - p->l3) {
        return -EINVAL;
    }
    p->kind = PACKET_ARP;
    p->l4 = p->payload = p->l3;
    p->end = p->l3 + length;
    return 0;
}

int packet_parse(struct packet *p, const uint8_t *frame, size_t length)
{
    unsigned int i;
    int rc = 0;

    memset(p, 0, sizeof(*p));
    for (i = 0; i < PACKET_VLANS_MAX; i++) {
        p->vlan[i] = PACKET_NO_VLAN;
    }
    if (length < ETH_HEADER || length > REMUS_PACKET_MAX) {
        /* Too long a frame is cut off here so that every offset fits: nobody reads behind it. */
        p->length = p->end = length > REMUS_PACKET_MAX ? REMUS_PACKET_MAX : (uint32_t)length;
        p->kind = PACKET_BAD;
        return -EINVAL;
    }
    p->length = p->end = (uint32_t)length;
    p->kind = PACKET_OTHER;
    p->l3 = ETH_HEADER;
    p->ethertype = get16(frame + ETH_HEADER - 2);
    while (p->ethertype == TYPE_VLAN || p->ethertype == TYPE_QINQ ||
           p->ethertype == TYPE_QINQ_OLD) {
        if (p->vlans == PACKET_VLANS_MAX) {
            return 0;
        }
        if (p->length - p->l3 < VLAN_TAG) {
            rc = -EINVAL;
            goto out;
        }
        p->vlan[p->vlans++] = get16(frame + p->l3) & 0xfff;
        p->ethertype = get16(frame + p->l3 + 2);
        p->l3 += VLAN_TAG;
    }
    switch (p->ethertype) {
    case TYPE_IPV4:
        rc = parse_ipv4(p, frame);
        break;
    case TYPE_IPV6:
        rc = parse_ipv6(p, frame);
        break;
    case TYPE_ARP:
        rc = parse_arp(p, frame);
        break;
    }

out:
    if (rc) {
        p->kind = PACKET_BAD;
        p->end = p->length;
    }
    return rc;
}

/* ---- Flow keys ------------------------------------------------------------------------------- */

void packet_key(struct packet_key *key, const struct packet *p, bool from_guest)
{
    memcpy(key->guest, from_guest ? p->src : p->dst, 16);
    memcpy(key->peer, from_guest ? p->dst : p->src, 16);
    key->guest_port = htons(from_guest ? p->sport : p->dport);
    key->peer_port = htons(from_guest ? p->dport : p->sport);
    key->vlan[0] = p->vlan[0];
    key->vlan[1] = p->vlan[1];
    key->proto = p->proto;
    key->ip_version = p->ip_version;
    memset(key->reserved, 0, sizeof(key->reserved));
}

void packet_key_to_flow(struct remus_flow *flow, const struct packet_key *key)
{
    memcpy(flow->guest_addr, key->guest, 16);
    memcpy(flow->peer_addr, key->peer, 16);
    flow->guest_port = key->guest_port;
    flow->peer_port = key->peer_port;
    flow->primary_isn = 0;
    flow->vlan[0] = key->vlan[0];
    flow->vlan[1] = key->vlan[1];
    flow->reserved = 0;
}

void packet_key_from_flow(struct packet_key *key, const struct remus_flow *flow)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    memcpy(key->guest, flow->guest_addr, 16);
    memcpy(key->peer, flow->peer_addr, 16);
    key->guest_port = flow->guest_port;
    key->peer_port = flow->peer_port;
    key->vlan[0] = flow->vlan[0];
    key->vlan[1] = flow->vlan[1];
    key->proto = PACKET_PROTO_TCP;
    key->ip_version = memcmp(flow->guest_addr, mapped, sizeof(mapped)) ? 6 : 4;
    memset(key->reserved, 0, sizeof(key->reserved));
}

void packet_key_describe(const struct packet_key *key, char *text, size_t size)
{
    char guest[INET6_ADDRSTRLEN] = "?", peer[INET6_ADDRSTRLEN] = "?", proto[8], tags[32] = "";
    const char *open = "", *close = "";
    bool ports = key->proto == PACKET_PROTO_TCP || key->proto == PACKET_PROTO_UDP;

    if (key->ip_version == 6) {
        inet_ntop(AF_INET6, key->guest, guest, sizeof(guest));
        inet_ntop(AF_INET6, key->peer, peer, sizeof(peer));
        if (ports) {
            open = "[";
            close = "]";
        }
    } else if (key->ip_version == 4) {
        inet_ntop(AF_INET, key->guest + 12, guest, sizeof(guest));
        inet_ntop(AF_INET, key->peer + 12, peer, sizeof(peer));
    }
    switch (key->proto) {
    case PACKET_PROTO_TCP:
        strcpy(proto, "tcp");
        break;
    case PACKET_PROTO_UDP:
        strcpy(proto, "udp");
        break;
    case PACKET_PROTO_ICMP:
        strcpy(proto, "icmp");
        break;
    case PACKET_PROTO_ICMPV6:
        strcpy(proto, "icmp6");
        break;
    default:
        snprintf(proto, sizeof(proto), "ip/%u", key->proto);
        break;
    }
    if (key->vlan[1] != PACKET_NO_VLAN) {
        snprintf(tags, sizeof(tags), " vlan %u.%u", key->vlan[0], key->vlan[1]);
    } else if (key->vlan[0] != PACKET_NO_VLAN) {
        snprintf(tags, sizeof(tags), " vlan %u", key->vlan[0]);
    }
    if (ports) {
        snprintf(text, size, "%s %s%s%s:%u - %s%s%s:%u%s", proto, open, guest, close,
                 ntohs(key->guest_port), open, peer, close, ntohs(key->peer_port), tags);
    } else {
        snprintf(text, size, "%s %s - %s%s", proto, guest, peer, tags);
    }
}

/* ---- Checksums ------------------------------------------------------------------------------- */

uint32_t packet_sum(const uint8_t *bytes, size_t count, uint32_t start)
{
    uint64_t sum = start;

    for (; count >= 4; count -= 4, bytes += 4) {
        sum += get32(bytes);
    }
    if (count >= 2) {
        sum += get16(bytes);
        bytes += 2;
        count -= 2;
    }
    if (count) {
        sum += (uint32_t)bytes[0] << 8;
    }
    /* 2^16 is 1 in one's complement arithmetic: words of 32 bits fold like words of 16. */
    sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + ((sum >> 32) & 0xffff) + (sum >> 48);
    return (uint32_t)sum;
}

uint16_t packet_fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

uint32_t packet_pseudo_sum(const struct packet *p)
{
    uint32_t sum;

    if (p->ip_version == 4) {
        sum = packet_sum(p->src + 12, 4, 0);
        sum = packet_sum(p->dst + 12, 4, sum);
    } else {
        sum = packet_sum(p->src, 16, 0);
        sum = packet_sum(p->dst, 16, sum);
    }
    return sum + p->proto + (p->end - p->l4);
}

uint16_t packet_checksum_update(uint16_t field, uint16_t from, uint16_t to)
{
    return (uint16_t)~packet_fold((uint32_t)(uint16_t)~field + (uint16_t)~from + to);
}

/* Offset of the checksum field in the L4 header, or -1. */
static int checksum_offset(const struct packet *p)
{
    switch (p->kind) {
    case PACKET_TCP:
        return TCP_CHECKSUM;
    case PACKET_UDP:
        return UDP_CHECKSUM;
    case PACKET_ICMP:
    case PACKET_ICMPV6:
        return ICMP_CHECKSUM;
    }
    return -1;
}

static uint16_t l4_sum(const uint8_t *frame, const struct packet *p)
{
    uint32_t start = p->kind == PACKET_ICMP ? 0 : packet_pseudo_sum(p);

    return packet_fold(packet_sum(frame + p->l4, p->end - p->l4, packet_fold(start)));
}

void packet_checksum_fill(uint8_t *frame, const struct packet *p)
{
    int offset = checksum_offset(p);
    uint16_t sum;

    if (offset < 0) {
        return;
    }
    put16(frame + p->l4 + offset, 0);
    sum = (uint16_t)~l4_sum(frame, p);
    if (!sum && p->kind == PACKET_UDP) {
        sum = 0xffff; /* 0 would mean: not computed */
    }
    put16(frame + p->l4 + offset, sum);
}

bool packet_checksum_ok(const uint8_t *frame, const struct packet *p)
{
    return checksum_offset(p) >= 0 && l4_sum(frame, p) == 0xffff;
}

/* ---- Rewriting ------------------------------------------------------------------------------- */

/* Options put 32-bit values at odd offsets too, so the sums go byte by byte: a byte at an even
 * offset from the TCP header is the high half of its word. */
static void replace(uint8_t *frame, const struct packet *p, uint32_t at, const uint8_t *bytes,
                    uint32_t count, bool partial)
{
    uint32_t from = 0, to = 0, i;
    uint8_t *field = frame + p->l4 + TCP_CHECKSUM;

    for (i = 0; i < count; i++) {
        unsigned int shift = (at + i - p->l4) & 1 ? 0 : 8;

        from += (uint32_t)frame[at + i] << shift;
        to += (uint32_t)bytes[i] << shift;
        frame[at + i] = bytes[i];
    }
    if (!partial) {
        put16(field, packet_checksum_update(get16(field), packet_fold(from), packet_fold(to)));
    }
}

static void replace32(uint8_t *frame, const struct packet *p, uint32_t at, uint32_t value,
                      bool partial)
{
    uint8_t bytes[4];

    put32(bytes, value);
    replace(frame, p, at, bytes, sizeof(bytes), partial);
}

void packet_tcp_shift_seq(uint8_t *frame, struct packet *p, uint32_t delta, bool partial)
{
    p->tcp.seq += delta;
    replace32(frame, p, p->l4 + 4, p->tcp.seq, partial);
}

void packet_tcp_shift_ack(uint8_t *frame, struct packet *p, uint32_t delta, bool partial)
{
    if (!(p->tcp.flags & PACKET_TCP_ACK)) {
        return;
    }
    p->tcp.ack += delta;
    replace32(frame, p, p->l4 + 8, p->tcp.ack, partial);
}

void packet_tcp_shift_sack(uint8_t *frame, struct packet *p, uint32_t delta, bool partial)
{
    unsigned int i;

    for (i = 0; i < p->tcp.sack_blocks; i++) {
        p->tcp.sack[i].left += delta;
        p->tcp.sack[i].right += delta;
        replace32(frame, p, p->tcp.sack_at + 2 + 8 * i, p->tcp.sack[i].left, partial);
        replace32(frame, p, p->tcp.sack_at + 6 + 8 * i, p->tcp.sack[i].right, partial);
    }
}

void packet_tcp_shift_tsval(uint8_t *frame, struct packet *p, uint32_t delta, bool partial)
{
    if (p->tcp.has_timestamp) {
        p->tcp.tsval += delta;
        replace32(frame, p, p->tcp.timestamp_at, p->tcp.tsval, partial);
    }
}

void packet_tcp_shift_tsecr(uint8_t *frame, struct packet *p, uint32_t delta, bool partial)
{
    if (p->tcp.has_timestamp && p->tcp.flags & PACKET_TCP_ACK) {
        p->tcp.tsecr += delta;
        replace32(frame, p, p->tcp.timestamp_at + 4, p->tcp.tsecr, partial);
    }
}

void packet_tcp_set_window(uint8_t *frame, struct packet *p, uint16_t window, bool partial)
{
    uint8_t bytes[2];

    put16(bytes, window);
    p->tcp.window = window;
    replace(frame, p, p->l4 + 14, bytes, sizeof(bytes), partial);
}

void packet_tcp_set_sack(uint8_t *frame, struct packet *p, const uint32_t (*blocks)[2],
                         unsigned int count, bool partial)
{
    uint8_t option[2 + 8 * PACKET_SACK_MAX];
    uint32_t bytes = 2 + 8u * p->tcp.sack_blocks;
    unsigned int i;

    if (!p->tcp.sack_blocks || count > p->tcp.sack_blocks) {
        return;
    }
    memset(option, OPT_NOP, sizeof(option));
    if (count) {
        option[0] = OPT_SACK;
        option[1] = (uint8_t)(2 + 8 * count);
    }
    for (i = 0; i < count; i++) {
        p->tcp.sack[i].left = blocks[i][0];
        p->tcp.sack[i].right = blocks[i][1];
        put32(option + 2 + 8 * i, blocks[i][0]);
        put32(option + 6 + 8 * i, blocks[i][1]);
    }
    replace(frame, p, p->tcp.sack_at, option, bytes, partial);
    p->tcp.sack_blocks = (uint8_t)count;
}
