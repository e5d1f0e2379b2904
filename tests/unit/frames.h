/*
 * frames.h: builds the frames that the tests, fuzzers and benchmarks of the comparison use.
 *
 * A spec names what matters to a test; what it leaves out has a usual value: an untagged IPv4
 * segment from the guest (10.0.0.2 port 80) to the peer (10.0.0.9 port 40000), ACK set.
 */
#ifndef TESTS_FRAMES_H
#define TESTS_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/packet.h"

#define FRAME_MAX REMUS_PACKET_MAX
#define NO_FLAGS  0x100u /* tcp_spec.flags: really none; 0 stands for ACK */

struct ip_spec {
    bool v6, from_peer, no_options;
    uint16_t vlan[2]; /* 0: none */
    uint16_t id;
    uint8_t ttl, tos, guest_host, peer_host;
    uint16_t fragment;    /* IPv4 field: offset / 8 and 0x2000 for more; IPv6 the same */
    uint32_t fragment_id; /* IPv6; a fragment header is put where fragment or this is set */
    bool hop_by_hop;      /* IPv6: an empty hop-by-hop header */
    uint8_t options;      /* IPv4: bytes of NOP options, a multiple of 4 */
};

struct tcp_spec {
    struct ip_spec ip;
    uint16_t guest_port, peer_port;
    uint32_t seq, ack, flags; /* ack 0 stands for 5000 where ACK is set */
    uint16_t window, urgent;  /* window 0 stands for 1000 */
    bool zero_window;
    const void *data;
    size_t bytes;
    uint16_t mss;          /* 0: no option */
    uint8_t wscale_plus_1; /* 0: no option */
    bool sack_ok, timestamp, partial, pad;
    uint32_t tsval, tsecr;
    uint32_t sack[4][2];
    unsigned int sack_blocks;
    bool odd;                 /* one NOP first, so that options stand at odd offsets */
    unsigned int data_offset; /* written as such where set, in words */
};

static inline void frame_put16(uint8_t *at, uint32_t v)
{
    at[0] = (uint8_t)(v >> 8);
    at[1] = (uint8_t)v;
}

static inline void frame_put32(uint8_t *at, uint32_t v)
{
    frame_put16(at, v >> 16);
    frame_put16(at + 2, v & 0xffff);
}

/* Ethernet and IP header for l4_bytes bytes of protocol proto; returns where they begin. */
static inline size_t frame_ip(uint8_t *f, const struct ip_spec *s, uint8_t proto, size_t l4_bytes)
{
    uint8_t guest = s->guest_host ? s->guest_host : 2, peer = s->peer_host ? s->peer_host : 9;
    uint8_t src = s->from_peer ? peer : guest, dst = s->from_peer ? guest : peer;
    bool fragment = s->fragment || s->fragment_id;
    size_t at = 12;
    int i;

    memset(f, 0, 14);
    f[0] = f[6] = 2;
    f[5] = dst;
    f[11] = src;
    for (i = 0; i < 2; i++) {
        if (s->vlan[i]) {
            frame_put16(f + at, i == 0 && s->vlan[1] ? 0x88a8 : 0x8100);
            frame_put16(f + at + 2, s->vlan[i]);
            at += 4;
        }
    }
    frame_put16(f + at, s->v6 ? 0x86dd : 0x0800);
    at += 2;
    if (s->v6) {
        size_t extra = (fragment ? 8u : 0u) + (s->hop_by_hop ? 8u : 0u);
        uint8_t *next = f + at + 6;

        memset(f + at, 0, 40);
        f[at] = 0x60;
        frame_put16(f + at + 4, (uint32_t)(l4_bytes + extra));
        f[at + 7] = s->ttl ? s->ttl : 64;
        f[at + 8] = f[at + 24] = 0xfd;
        f[at + 23] = src;
        f[at + 39] = dst;
        at += 40;
        if (s->hop_by_hop) {
            *next = 0;
            next = f + at;
            memset(f + at, 0, 8);
            f[at + 2] = 1; /* PadN, 4 bytes */
            f[at + 3] = 4;
            at += 8;
        }
        if (fragment) {
            *next = 44;
            next = f + at;
            f[at + 1] = 0;
            frame_put16(f + at + 2, (s->fragment & 0x1fffu) << 3 | !!(s->fragment & 0x2000));
            frame_put32(f + at + 4, s->fragment_id);
            at += 8;
        }
        *next = proto;
        return at;
    }
    f[at] = (uint8_t)(0x45 + s->options / 4);
    f[at + 1] = s->tos;
    frame_put16(f + at + 2, (uint32_t)(20 + s->options + l4_bytes));
    frame_put16(f + at + 4, s->id);
    frame_put16(f + at + 6, s->fragment);
    f[at + 8] = s->ttl ? s->ttl : 64;
    f[at + 9] = proto;
    frame_put16(f + at + 10, 0);
    f[at + 12] = f[at + 16] = 10;
    f[at + 13] = f[at + 14] = f[at + 17] = f[at + 18] = 0;
    f[at + 15] = src;
    f[at + 19] = dst;
    memset(f + at + 20, 1, s->options);
    frame_put16(f + at + 10, (uint16_t)~packet_fold(packet_sum(f + at, 20u + s->options, 0)));
    return at + 20 + s->options;
}

static inline size_t frame_tcp(uint8_t *f, const struct tcp_spec *s)
{
    uint8_t options[60], *h;
    size_t n = 0, at, end;
    unsigned int i;
    uint16_t guest = s->guest_port ? s->guest_port : 80;
    uint16_t peer = s->peer_port ? s->peer_port : 40000;
    uint8_t flags = s->flags ? (uint8_t)s->flags : PACKET_TCP_ACK;
    struct packet p;

    if (s->odd) {
        options[n++] = 1;
    }
    if (s->mss) {
        options[n++] = 2;
        options[n++] = 4;
        frame_put16(options + n, s->mss);
        n += 2;
    }
    if (s->wscale_plus_1) {
        options[n++] = 3;
        options[n++] = 3;
        options[n++] = (uint8_t)(s->wscale_plus_1 - 1);
    }
    if (s->sack_ok) {
        options[n++] = 4;
        options[n++] = 2;
    }
    if (s->timestamp) {
        options[n++] = 8;
        options[n++] = 10;
        frame_put32(options + n, s->tsval);
        frame_put32(options + n + 4, s->tsecr);
        n += 8;
    }
    if (s->sack_blocks) {
        options[n++] = 5;
        options[n++] = (uint8_t)(2 + 8 * s->sack_blocks);
        for (i = 0; i < s->sack_blocks; i++) {
            frame_put32(options + n, s->sack[i][0]);
            frame_put32(options + n + 4, s->sack[i][1]);
            n += 8;
        }
    }
    while (n % 4) {
        options[n++] = 1;
    }
    at = frame_ip(f, &s->ip, 6, 20 + n + s->bytes);
    h = f + at;
    frame_put16(h, s->ip.from_peer ? peer : guest);
    frame_put16(h + 2, s->ip.from_peer ? guest : peer);
    frame_put32(h + 4, s->seq);
    frame_put32(h + 8, s->ack || !(flags & PACKET_TCP_ACK) ? s->ack : 5000);
    h[12] = (uint8_t)((5 + n / 4) << 4);
    h[13] = flags;
    frame_put16(h + 14, s->zero_window ? 0 : s->window ? s->window : 1000);
    frame_put16(h + 16, 0);
    frame_put16(h + 18, s->urgent);
    memcpy(h + 20, options, n);
    if (s->bytes) {
        memcpy(h + 20 + n, s->data, s->bytes);
    }
    end = at + 20 + n + s->bytes;
    packet_parse(&p, f, end);
    if (s->partial) {
        frame_put16(h + 16, packet_fold(packet_pseudo_sum(&p)));
    } else {
        packet_checksum_fill(f, &p);
    }
    if (s->data_offset) {
        h[12] = (uint8_t)(s->data_offset << 4);
    }
    if (s->pad && end < 60) {
        memset(f + end, 0xee, 60 - end);
        end = 60;
    }
    return end;
}

/* proto's L4 bytes as they are given, over IP. */
static inline size_t frame_raw(uint8_t *f, const struct ip_spec *s, uint8_t proto,
                               const void *bytes, size_t count)
{
    size_t at = frame_ip(f, s, proto, count);

    memcpy(f + at, bytes, count);
    return at + count;
}

static inline size_t frame_udp(uint8_t *f, const struct ip_spec *s, uint16_t guest_port,
                               uint16_t peer_port, const void *data, size_t bytes)
{
    size_t at = frame_ip(f, s, 17, 8 + bytes);
    struct packet p;

    frame_put16(f + at, s->from_peer ? peer_port : guest_port);
    frame_put16(f + at + 2, s->from_peer ? guest_port : peer_port);
    frame_put16(f + at + 4, (uint32_t)(8 + bytes));
    frame_put16(f + at + 6, 0);
    memcpy(f + at + 8, data, bytes);
    packet_parse(&p, f, at + 8 + bytes);
    packet_checksum_fill(f, &p);
    return at + 8 + bytes;
}

/* ICMP (v6: ICMPv6): type, code, four bytes of rest of header, then data. */
static inline size_t frame_icmp(uint8_t *f, const struct ip_spec *s, uint8_t type, uint8_t code,
                                uint32_t rest, const void *data, size_t bytes)
{
    size_t at = frame_ip(f, s, s->v6 ? 58 : 1, 8 + bytes);
    struct packet p;

    f[at] = type;
    f[at + 1] = code;
    frame_put32(f + at + 4, rest);
    memcpy(f + at + 8, data, bytes);
    packet_parse(&p, f, at + 8 + bytes);
    packet_checksum_fill(f, &p);
    return at + 8 + bytes;
}

static inline size_t frame_arp(uint8_t *f, uint16_t operation, uint8_t sender, uint8_t target)
{
    memset(f, 0, 60);
    memset(f, 0xff, 6);
    f[6] = 2;
    f[11] = sender;
    frame_put16(f + 12, 0x0806);
    frame_put16(f + 14, 1);
    frame_put16(f + 16, 0x0800);
    f[18] = 6;
    f[19] = 4;
    frame_put16(f + 20, operation);
    f[22] = 2;
    f[27] = sender;
    f[28] = f[38] = 10;
    f[31] = sender;
    f[41] = target;
    return 42;
}

#endif /* TESTS_FRAMES_H */
