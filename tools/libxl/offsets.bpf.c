/*
 * offsets.bpf.c: the kernel changes the sequence numbers of a guest's TCP connections on their way.
 *
 * Two programs for the two directions of a vif (tc, direct action) and one table of connections:
 *   from the guest:  seq += offset
 *   to the guest:    ack -= offset, SACK blocks -= offset
 *                    and the number quoted in an ICMP error -= offset
 * as rewrite.h says, without its timestamps, which are settled when a connection comes here.
 *
 * A SYN of the guest with any number but the connection's own begins another one: the entry goes.
 * Every frame goes on to what else the interface has (TC_ACT_UNSPEC), unless a tap stands for it:
 * then the guest's frames come in there, and the guest gets what waits in that.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "tools/libxl/offsets_map.h"
#include "xen/include/public/remus.h"

#define VLAN_BYTES      4
#define EXTENSIONS_MAX  8       /* headers of IPv6 before TCP, as in packet.c */
#define ICMP_BYTES      8
#define OPTION_END      0
#define OPTION_NOP      1
#define OPTION_SACK     5
#define OPTIONS_BYTES   40
#define SACK_EDGES      8
#define TCP_CHECK_AT    offsetof(struct tcphdr, check)
#define ICMP_CHECK_AT   2

#define FLAG_FIN 0x01
#define FLAG_SYN 0x02
#define FLAG_RST 0x04
#define FLAG_ACK 0x10

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, OFFSETS_MAX);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct offsets_key);
    __type(value, struct offsets_value);
} offsets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct offsets_redirect);
} redirect SEC(".maps");

/* What lies where in a frame. */
struct place {
    struct offsets_key key;     /* addresses and tags; the ports with TCP */
    __u32 l4;
    __u8 proto;
    __u8 version;
};

static __always_inline void map_ipv4(__u8 *to, __be32 address)
{
    __builtin_memset(to, 0, 10);
    to[10] = to[11] = 0xff;
    __builtin_memcpy(to + 12, &address, sizeof(address));
}

static __always_inline bool is_vlan(__be16 type)
{
    return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD) ||
           type == bpf_htons(ETH_P_QINQ1);
}

/* The tags: what the kernel has taken out of the frame is the outer one. */
static __always_inline bool take_tags(struct __sk_buff *skb, struct place *p, __u32 *at,
                                      __be16 *type)
{
    bool outer = skb->vlan_present, inner = false;
    __be16 tag[2];
    __u32 i;

    p->key.vlan[0] = outer ? skb->vlan_tci & 0xfff : OFFSETS_NO_VLAN;
    p->key.vlan[1] = OFFSETS_NO_VLAN;
    if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto), type, sizeof(*type)))
        return false;
    *at = sizeof(struct ethhdr);
    for (i = 0; i < 2 && is_vlan(*type); i++) {
        if (inner || bpf_skb_load_bytes(skb, *at, tag, sizeof(tag)))
            return false;
        if (outer)
            p->key.vlan[1] = bpf_ntohs(tag[0]) & 0xfff;
        else
            p->key.vlan[0] = bpf_ntohs(tag[0]) & 0xfff;
        inner = outer;
        outer = true;
        *type = tag[1];
        *at += VLAN_BYTES;
    }
    return true;
}

/* An IP header at `at`: the addresses, as of a frame from the guest or to it, and what follows. */
static __always_inline bool take_ip(struct __sk_buff *skb, struct place *p, __u32 at, __be16 type,
                                    bool from_guest)
{
    __u8 *source = from_guest ? p->key.guest : p->key.peer;
    __u8 *target = from_guest ? p->key.peer : p->key.guest;
    struct ipv6hdr ip6;
    struct iphdr ip;
    __u8 next[4];
    __u32 i;

    if (type == bpf_htons(ETH_P_IP)) {
        if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
            ip.frag_off & bpf_htons(0x3fff))
            return false;
        map_ipv4(source, ip.saddr);
        map_ipv4(target, ip.daddr);
        p->version = 4;
        p->proto = ip.protocol;
        p->l4 = at + ip.ihl * 4;
        return true;
    }
    if (type != bpf_htons(ETH_P_IPV6) || bpf_skb_load_bytes(skb, at, &ip6, sizeof(ip6)) ||
        ip6.version != 6)
        return false;
    __builtin_memcpy(source, &ip6.saddr, 16);
    __builtin_memcpy(target, &ip6.daddr, 16);
    p->version = 6;
    p->proto = ip6.nexthdr;
    p->l4 = at + sizeof(ip6);
    for (i = 0; i < EXTENSIONS_MAX; i++) {
        if (p->proto != IPPROTO_HOPOPTS && p->proto != IPPROTO_ROUTING &&
            p->proto != IPPROTO_DSTOPTS && p->proto != IPPROTO_MH &&
            p->proto != IPPROTO_FRAGMENT)
            return true;
        if (bpf_skb_load_bytes(skb, p->l4, next, sizeof(next)))
            return false;
        /* A whole packet may have a fragment header, too (RFC 6946). */
        if (p->proto == IPPROTO_FRAGMENT && (next[2] || next[3] & 0xf9))
            return false;
        p->l4 += p->proto == IPPROTO_FRAGMENT ? 8 : (next[1] + 1) * 8;
        p->proto = next[0];
    }
    return p->proto == IPPROTO_TCP || p->proto == IPPROTO_ICMPV6;
}

/* Replaces 4 bytes below a checksum that covers everything from `start`. */
static __always_inline void change(struct __sk_buff *skb, __u32 at, __be32 from, __be32 to,
                                   __u32 start, __u32 check_at)
{
    if (bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0))
        return;
    if ((at - start) & 1) {     /* the sum is of pairs of bytes: these lie one further */
        from = from >> 8 | from << 24;
        to = to >> 8 | to << 24;
    }
    bpf_l4_csum_replace(skb, start + check_at, from, to, sizeof(to));
}

static __always_inline void subtract(struct __sk_buff *skb, __u32 at, __u32 offset, __u32 start,
                                     __u32 check_at)
{
    __be32 number;

    if (!bpf_skb_load_bytes(skb, at, &number, sizeof(number)))
        change(skb, at, number, bpf_htonl(bpf_ntohl(number) - offset), start, check_at);
}

struct options {
    struct __sk_buff *skb;
    __u32 l4, at, bytes;        /* the options lie at l4 + at ... l4 + bytes */
    __u32 offset;
};

/* An option; a SACK, of which there is one, is the last that is looked at. */
static long option(__u32 index, void *arg)
{
    struct options *o = arg;
    __u8 kind[2];
    __u32 j;

    (void)index;
    if (o->at + 1 >= o->bytes || bpf_skb_load_bytes(o->skb, o->l4 + o->at, kind, sizeof(kind)) ||
        kind[0] == OPTION_END)
        return 1;
    if (kind[0] == OPTION_NOP) {
        o->at++;
        return 0;
    }
    if (kind[1] < 2 || o->at + kind[1] > o->bytes)
        return 1;
    if (kind[0] != OPTION_SACK || kind[1] < 10 || (kind[1] - 2) % 8) {
        o->at += kind[1];
        return 0;
    }
    for (j = 0; j < SACK_EDGES && j < (kind[1] - 2u) / 4; j++)
        subtract(o->skb, o->l4 + o->at + 2 + 4 * j, o->offset, o->l4, TCP_CHECK_AT);
    return 1;
}

static __always_inline void set_state(struct offsets_value *value, __u32 on, __u32 off)
{
    __u32 now = value->state;

    if (on & ~now)
        __sync_fetch_and_or(&value->state, on);
    if (off & now)
        __sync_fetch_and_and(&value->state, ~off);
}

/*
 * The connection's entry, marked with what this frame tells; NULL: not one of these.  A reset of
 * the peer's may be anybody's, and is believed when the guest says nothing for long.
 */
static __always_inline struct offsets_value *find(struct place *p, __u8 flags, bool from_guest)
{
    struct offsets_value *value = bpf_map_lookup_elem(&offsets, &p->key);
    bool fin = flags & FLAG_FIN;

    if (!value)
        return NULL;
    value->seen_ns = bpf_ktime_get_ns();
    if (from_guest && flags & FLAG_RST)
        set_state(value, REMUS_OFFSET_RESET, 0);
    else if (from_guest)
        set_state(value, fin ? REMUS_OFFSET_FIN_OUTPUT : 0,
                  REMUS_OFFSET_RESET | REMUS_OFFSET_PEER_RESET);
    else if (flags & FLAG_RST)
        set_state(value, REMUS_OFFSET_PEER_RESET, 0);
    else
        set_state(value, fin ? REMUS_OFFSET_FIN_INPUT : 0,
                  flags & FLAG_ACK ? REMUS_OFFSET_HALF_OPEN : 0);
    return value;
}

static __always_inline __u8 flags_of(const struct tcphdr *tcp)
{
    return ((const __u8 *)tcp)[13];
}

/* An ICMP error quotes what the guest has sent. */
static __always_inline void error_to_guest(struct __sk_buff *skb, struct place *p)
{
    struct place quoted = { .key.vlan = { p->key.vlan[0], p->key.vlan[1] } };
    __u32 at = p->l4 + ICMP_BYTES;
    struct offsets_value *value;
    __be16 ports[2];
    __u8 type;

    if (bpf_skb_load_bytes(skb, p->l4, &type, sizeof(type)))
        return;
    if (p->version == 4 ? type != 3 && type != 4 && type != 5 && type != 11 && type != 12
                        : !type || type > 4)
        return;
    if (!take_ip(skb, &quoted, at, p->version == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6),
                 true) || quoted.proto != IPPROTO_TCP ||
        bpf_skb_load_bytes(skb, quoted.l4, ports, sizeof(ports)))
        return;
    quoted.key.guest_port = ports[0];
    quoted.key.peer_port = ports[1];
    value = bpf_map_lookup_elem(&offsets, &quoted.key);
    if (value)
        subtract(skb, quoted.l4 + 4, value->offset, p->l4, ICMP_CHECK_AT);
}

/* The device that stands for this one; 0: none. */
static __always_inline __u32 tap(void)
{
    const __u32 first = 0;
    const struct offsets_redirect *r = bpf_map_lookup_elem(&redirect, &first);

    return r && r->until_ns && bpf_ktime_get_ns() < r->until_ns ? r->ifindex : 0;
}

static __always_inline void change_to_guest(struct __sk_buff *skb)
{
    struct place p = { 0 };
    struct offsets_value *value;
    struct options options;
    struct tcphdr tcp;
    __be16 type;
    __u32 at, offset;

    if (!take_tags(skb, &p, &at, &type) || !take_ip(skb, &p, at, type, false))
        return;
    if (p.proto == (p.version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
        error_to_guest(skb, &p);
        return;
    }
    if (p.proto != IPPROTO_TCP || bpf_skb_load_bytes(skb, p.l4, &tcp, sizeof(tcp)))
        return;
    if ((flags_of(&tcp) & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN)
        return;
    p.key.guest_port = tcp.dest;
    p.key.peer_port = tcp.source;
    value = find(&p, flags_of(&tcp), false);
    if (!value)
        return;
    offset = value->offset;
    if (flags_of(&tcp) & FLAG_ACK)
        subtract(skb, p.l4 + offsetof(struct tcphdr, ack_seq), offset, p.l4, TCP_CHECK_AT);
    options = (struct options){
        .skb = skb, .l4 = p.l4, .at = sizeof(tcp), .bytes = tcp.doff * 4u, .offset = offset,
    };
    bpf_loop(OPTIONS_BYTES, option, &options, 0);
}

SEC("tc")
int to_guest(struct __sk_buff *skb)
{
    if (tap())
        return TC_ACT_SHOT;
    change_to_guest(skb);
    return TC_ACT_UNSPEC;
}

static __always_inline void change_from_guest(struct __sk_buff *skb)
{
    struct place p = { 0 };
    struct offsets_value *value;
    struct tcphdr tcp;
    __u32 at, seq;
    __be16 type;

    if (!take_tags(skb, &p, &at, &type) || !take_ip(skb, &p, at, type, true) ||
        p.proto != IPPROTO_TCP || bpf_skb_load_bytes(skb, p.l4, &tcp, sizeof(tcp)))
        return;
    p.key.guest_port = tcp.source;
    p.key.peer_port = tcp.dest;
    value = find(&p, flags_of(&tcp), true);
    if (!value)
        return;
    seq = bpf_ntohl(tcp.seq) + value->offset;
    if (flags_of(&tcp) & FLAG_SYN && seq != value->isn)
        bpf_map_delete_elem(&offsets, &p.key);
    else
        change(skb, p.l4 + offsetof(struct tcphdr, seq), tcp.seq, bpf_htonl(seq), p.l4,
               TCP_CHECK_AT);
}

SEC("tc")
int from_guest(struct __sk_buff *skb)
{
    __u32 instead = tap();

    change_from_guest(skb);
    return instead ? bpf_redirect(instead, BPF_F_INGRESS) : TC_ACT_UNSPEC;
}
