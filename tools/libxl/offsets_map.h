/*
 * offsets_map.h: the tables that offsets.bpf.c and remus_offsets.c share, in the kernel.
 */
#ifndef OFFSETS_MAP_H
#define OFFSETS_MAP_H

#include <linux/types.h>

#define OFFSETS_MAX     16384   /* connections of one interface: REMUS_OFFSETS_MAX */
#define OFFSETS_NO_VLAN 0xffff

struct offsets_key {            /* every byte is defined */
    __u8 guest[16], peer[16];   /* IPv4 as ::ffff:a.b.c.d */
    __be16 guest_port, peer_port;
    __u16 vlan[2];              /* host order, the outer one first */
};

struct offsets_value {
    __u32 offset;               /* the peers' numbers - the guest's */
    __u32 isn;                  /* of the guest's SYN, as the peer knows it */
    __u64 seen_ns;              /* CLOCK_MONOTONIC of the last frame */
    __u32 state;                /* REMUS_OFFSET_* */
    __u32 reserved;
};

/* The one entry of another table: the device that stands for this one, until then. */
struct offsets_redirect {
    __u64 until_ns;             /* CLOCK_MONOTONIC; 0: not at all */
    __u32 ifindex;
    __u32 reserved;
};

#endif /* OFFSETS_MAP_H */
