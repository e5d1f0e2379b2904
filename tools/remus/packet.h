/*
 * packet.h: reading and rewriting Ethernet frames that a guest has written.
 *
 * The parser trusts nothing: each offset in struct packet has been checked against the frame's
 * length, and what cannot be checked makes the frame PACKET_BAD, never an access out of bounds.
 * No allocation, no state; checksums are never verified (they may be partial).
 *
 * Formats: IEEE 802.1Q, RFC 826 (ARP), 791 (IPv4), 8200 (IPv6), 9293 and 7323 and 2018 (TCP),
 * 768 (UDP), 792 and 4443 (ICMP), 1624 (incremental checksum).
 */
#ifndef REMUS_PACKET_H
#define REMUS_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "xen/include/public/remus.h"

#define PACKET_VLANS_MAX      2u /* tags read; a frame with more is PACKET_OTHER */
#define PACKET_EXTENSIONS_MAX 8u /* IPv6 extension headers; a packet with more is PACKET_BAD */
#define PACKET_SACK_MAX       4u
#define PACKET_NO_VLAN        0xffffu
#define PACKET_DESCRIBE_MAX   144u /* bytes that packet_describe needs, NUL included */

/* ---- Sequence numbers: the only place that compares them ------------------------------------- */

/* Distance from b to a modulo 2^32, meaningful while the two are less than 2^31 apart. */
static inline int32_t seq_diff(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b);
}
static inline bool seq_lt(uint32_t a, uint32_t b)
{
    return seq_diff(a, b) < 0;
}
static inline bool seq_le(uint32_t a, uint32_t b)
{
    return seq_diff(a, b) <= 0;
}
static inline bool seq_gt(uint32_t a, uint32_t b)
{
    return seq_diff(a, b) > 0;
}
static inline bool seq_ge(uint32_t a, uint32_t b)
{
    return seq_diff(a, b) >= 0;
}
static inline uint32_t seq_max(uint32_t a, uint32_t b)
{
    return seq_lt(a, b) ? b : a;
}
static inline uint32_t seq_min(uint32_t a, uint32_t b)
{
    return seq_lt(a, b) ? a : b;
}

/* ---- The parsed frame ------------------------------------------------------------------------ */

enum packet_kind {
    PACKET_OTHER, /* not IP, not ARP: compare it as a whole */
    PACKET_BAD,   /* says it is IP or ARP, but its lengths do not hold */
    PACKET_ARP,
    PACKET_TCP,
    PACKET_UDP,
    PACKET_ICMP,
    PACKET_ICMPV6,
    PACKET_FRAGMENT, /* one piece of an IP packet; l4 is where its piece begins */
    PACKET_IP,       /* any other protocol over IP */
};

#define PACKET_TCP_FIN      0x01u
#define PACKET_TCP_SYN      0x02u
#define PACKET_TCP_RST      0x04u
#define PACKET_TCP_PSH      0x08u
#define PACKET_TCP_ACK      0x10u
#define PACKET_TCP_URG      0x20u
#define PACKET_TCP_ECE      0x40u
#define PACKET_TCP_CWR      0x80u

#define PACKET_PROTO_ICMP   1u
#define PACKET_PROTO_TCP    6u
#define PACKET_PROTO_UDP    17u
#define PACKET_PROTO_ICMPV6 58u

struct packet_tcp {
    uint32_t seq, ack;       /* host order */
    uint16_t window, urgent; /* raw field values, host order */
    uint8_t flags;           /* PACKET_TCP_* */
    /* Options; a malformed option ends the reading of options, as it does in Linux. */
    uint8_t wscale;      /* valid where has_wscale */
    uint8_t sack_blocks; /* 0..PACKET_SACK_MAX */
    bool has_mss, has_wscale, has_sack_ok, has_timestamp;
    uint16_t mss;
    uint32_t tsval, tsecr; /* valid where has_timestamp */
    uint32_t timestamp_at; /* offset in the frame of TSval */
    uint32_t sack_at;      /* offset in the frame of the SACK option's kind byte */
    struct {
        uint32_t left, right;
    } sack[PACKET_SACK_MAX]; /* valid up to sack_blocks */
};

struct packet {
    uint32_t length;          /* bytes of the frame as it was given */
    uint32_t end;             /* end of the packet proper: Ethernet padding lies behind it */
    uint32_t l3, l4, payload; /* offsets; l4 and payload valid by kind, 0 where there is none */
    uint8_t kind;             /* enum packet_kind */
    uint8_t ip_version;       /* 4, 6, or 0 */
    uint8_t proto;            /* of the transport header, behind any extension headers */
    uint8_t vlans;            /* tags read */
    uint16_t ethertype;       /* innermost, host order */
    uint16_t vlan[PACKET_VLANS_MAX]; /* VLAN id, 12 bits, outermost first; PACKET_NO_VLAN */
    uint16_t sport, dport;           /* host order; TCP and UDP */
    uint8_t src[16], dst[16];        /* IPv4 as ::ffff:a.b.c.d */
    uint32_t fragment_id;            /* PACKET_FRAGMENT */
    uint32_t fragment_offset;        /* bytes */
    bool fragment_more;
    struct packet_tcp tcp; /* PACKET_TCP only */
};

/* Always fills *p.  0, or -EINVAL where p->kind is PACKET_BAD. */
int packet_parse(struct packet *p, const uint8_t *frame, size_t length);

/* TCP payload and sequence space.  SYN and FIN occupy one number each. */
static inline uint32_t packet_payload_bytes(const struct packet *p)
{
    return p->end - p->payload;
}
static inline uint32_t packet_tcp_span(const struct packet *p)
{
    return packet_payload_bytes(p) + !!(p->tcp.flags & PACKET_TCP_SYN) +
           !!(p->tcp.flags & PACKET_TCP_FIN);
}

/* ---- Flow keys ------------------------------------------------------------------------------- */

/* Every byte is defined, so a key may be hashed and compared as memory. */
struct packet_key {
    uint8_t guest[16], peer[16];     /* IPv4 as ::ffff:a.b.c.d */
    uint16_t guest_port, peer_port;  /* network order */
    uint16_t vlan[PACKET_VLANS_MAX]; /* host order, PACKET_NO_VLAN where none */
    uint8_t proto, ip_version;
    uint8_t reserved[6];
};
REMUS_CHECK_SIZE(struct packet_key, 48);

/* from_guest: the guest is the frame's source, else its destination. */
void packet_key(struct packet_key *key, const struct packet *p, bool from_guest);
/* The addresses, ports and tags of a key as the channel carries them; primary_isn is set to 0. */
void packet_key_to_flow(struct remus_flow *flow, const struct packet_key *key);
/* And back; TCP is implied, the IP version follows from the address form. */
void packet_key_from_flow(struct packet_key *key, const struct remus_flow *flow);
/* "tcp 10.0.0.2:80 - 10.0.0.9:4711 vlan 12", for logs.  size >= PACKET_DESCRIBE_MAX is enough. */
void packet_key_describe(const struct packet_key *key, char *text, size_t size);

/* ---- Checksums ------------------------------------------------------------------------------- */

/* One's complement sum of bytes, not inverted and not folded below 16 bits; start: 0 or an earlier
 * sum that covered an even number of bytes. */
uint32_t packet_sum(const uint8_t *bytes, size_t count, uint32_t start);
/* Folds a sum to 16 bits; the field on the wire is its complement, in network order. */
uint16_t packet_fold(uint32_t sum);
/* Pseudo header sum of a TCP, UDP or ICMPv6 packet (what a partial checksum holds). */
uint32_t packet_pseudo_sum(const struct packet *p);
/* RFC 1624, equation 3, host order: the field after the 16 bits `from` became `to`. */
uint16_t packet_checksum_update(uint16_t field, uint16_t from, uint16_t to);
/* Writes the full L4 checksum (TCP, UDP, ICMP, ICMPv6; from scratch, whatever stood there). */
void packet_checksum_fill(uint8_t *frame, const struct packet *p);
/* Whether the full L4 checksum holds (tests and bench; the comparison never asks). */
bool packet_checksum_ok(const uint8_t *frame, const struct packet *p);

/* ---- Rewriting TCP in place ---------------------------------------------------------------------
 *
 * frame is the one that p was parsed from, p->kind PACKET_TCP; p follows the change.  partial:
 * the checksum field holds the pseudo header sum only (REMUS_PACKET_F_CSUM_PARTIAL), which no TCP
 * field changes; otherwise the checksum is updated incrementally, so a wrong one stays wrong.
 * delta is added modulo 2^32: what is to be subtracted is passed negated (0u - delta).
 * A GSO frame may be shifted: its segments take their numbers from this one header.
 */
void packet_tcp_shift_seq(uint8_t *frame, struct packet *p, uint32_t delta, bool partial);
/* Nothing where ACK is not set: the field has no meaning then. */
void packet_tcp_shift_ack(uint8_t *frame, struct packet *p, uint32_t delta, bool partial);
/* Both edges of each SACK block. */
void packet_tcp_shift_sack(uint8_t *frame, struct packet *p, uint32_t delta, bool partial);
/* Timestamp value and echo; nothing where the option is absent (echo: or ACK is not set). */
void packet_tcp_shift_tsval(uint8_t *frame, struct packet *p, uint32_t delta, bool partial);
void packet_tcp_shift_tsecr(uint8_t *frame, struct packet *p, uint32_t delta, bool partial);
void packet_tcp_set_window(uint8_t *frame, struct packet *p, uint16_t window, bool partial);
/* Replaces the blocks by count others, count <= p->tcp.sack_blocks; the room left is NOPs. */
void packet_tcp_set_sack(uint8_t *frame, struct packet *p, const uint32_t (*blocks)[2],
                         unsigned int count, bool partial);

#endif /* REMUS_PACKET_H */
