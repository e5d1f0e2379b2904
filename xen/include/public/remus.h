/*
 * remus.h: the wire format and the xenstore interface of non-stop virtual machines.
 *
 * Everything that crosses from one host to the other stands on this page: four byte streams, the
 * link (coordinator to coordinator), the packet channel (colo-proxyd to colo-shadowd), the disk
 * channel (colo-blkd to colo-blkd) and, if there is a second network, the heartbeats on it, each a
 * sequence of frames.  All integers are little endian.
 * Every length is bounded here; a receiver rejects anything beyond a bound before it allocates or
 * copies.  The prose, the order rules and the octet diagrams are in docs/protocol.md.
 */
#ifndef XEN_PUBLIC_REMUS_H
#define XEN_PUBLIC_REMUS_H

#include <stdint.h>

#define REMUS_PROTOCOL_VERSION   4u
#define REMUS_SECRET_BYTES       32u

/* ---- Opening of each stream, inside TLS unless --plain: what the connection is for ---------- */

#define REMUS_OPEN_MAGIC         0x31534d52u /* "RMS1" */
#define REMUS_CHANNEL_LINK       1u
#define REMUS_CHANNEL_PACKETS    2u
#define REMUS_CHANNEL_DISKS      3u
#define REMUS_CHANNEL_HEARTBEAT  4u  /* the link's control frames, on a second network */

struct remus_open {                 /* primary -> secondary, first bytes on each connection */
    uint32_t magic;                 /* REMUS_OPEN_MAGIC */
    uint16_t version;               /* REMUS_PROTOCOL_VERSION */
    uint16_t channel;               /* REMUS_CHANNEL_* */
    uint8_t  secret[REMUS_SECRET_BYTES]; /* --plain: one-time, handed over through ssh; else 0 */
};

/* ---- Link frames ------------------------------------------------------------------------ */

#define REMUS_FRAME_MAX          (1u << 20)  /* payload bytes of one link frame */
#define REMUS_EPOCH_BYTES_MAX    (1ull << 36) /* payload bytes of one epoch, all frames */

struct remus_frame {                /* precedes every payload on the link */
    /* REMUS_FRAME_*; values with REMUS_FRAME_OPTIONAL may be skipped */
    uint32_t type;
    uint32_t length;                /* payload bytes, <= REMUS_FRAME_MAX */
    uint64_t epoch;                 /* the epoch it belongs to, below 2^32; 0 where none */
    uint64_t checksum;              /* XXH64 of the payload, seed = type ^ (epoch << 32) */
};

#define REMUS_FRAME_OPTIONAL     0x80000000u
/* With PAGES and STREAM: the payload is struct remus_lz4 and one LZ4 block (REMUS_HELLO_LZ4). */
#define REMUS_FRAME_LZ4          0x40000000u

enum remus_frame_type {
    REMUS_FRAME_HELLO      = 1,     /* P->S: struct remus_hello, first frame */
    REMUS_FRAME_HEARTBEAT  = 2,     /* both: struct remus_heartbeat */
    REMUS_FRAME_CONFIG     = 3,     /* P->S: "DOMID NAME\n", configuration as JSON (one frame) */
    REMUS_FRAME_STREAM     = 4,     /* P->S: bytes of the public migration stream */
    REMUS_FRAME_STREAM_END = 5,     /* P->S: the stream is complete (u64 total bytes) */
    REMUS_FRAME_READY      = 6,     /* S->P: secondary built, waits for epoch 1 */
    REMUS_FRAME_PAGES      = 16,    /* P->S: struct remus_pages + gfns + contents */
    REMUS_FRAME_RECORD     = 17,    /* P->S: struct remus_record + body */
    REMUS_FRAME_EPOCH_END  = 18,    /* P->S: struct remus_epoch_end */
    REMUS_FRAME_ACK        = 19,    /* S->P: epoch complete and verified in secondary's memory */
    REMUS_FRAME_APPLIED    = 20,    /* S->P: struct remus_applied; secondary runs on from it */
    REMUS_FRAME_CHECKPOINT = 21,    /* S->P: secondary asks for a checkpoint; reason text */
    REMUS_FRAME_STOP       = 32,    /* either: orderly end; struct remus_stop, then optional text */
    REMUS_FRAME_STOPPED    = 33,    /* answer to STOP: this side has let go */
    REMUS_FRAME_ERROR      = 34,    /* either: sentence for the user; the session ends */
};

struct remus_lz4 {
    uint32_t length;                /* of the payload that the block holds, <= REMUS_FRAME_MAX */
    uint32_t reserved;
};

struct remus_hello {
    uint16_t version;
    uint16_t mode;                  /* REMUS_MODE_* */
    uint32_t flags;                 /* REMUS_HELLO_* */
    uint64_t guest_pages;           /* RAM pages of the guest */
    uint32_t vcpus;
    uint32_t heartbeat_ms;          /* interval of heartbeats */
    uint32_t timeout_ms;            /* silence after which the peer counts as lost */
    uint32_t reserved;
    uint8_t  session[16];           /* UUID of the session */
};
#define REMUS_HELLO_VERIFY       0x1u /* epochs carry hashes of every page */
#define REMUS_HELLO_NO_NET       0x2u
#define REMUS_HELLO_NO_DISK      0x4u
#define REMUS_HELLO_LZ4          0x8u /* frames may be compressed */
#define REMUS_HELLO_FLAGS        0xfu /* all of them */

#define REMUS_MODE_COLO          1u
#define REMUS_MODE_REMUS         2u
#define REMUS_MODE_KEMARI        3u
#define REMUS_MODE_CURLING       4u
#define REMUS_MODE_AUTO          5u

struct remus_heartbeat {
    uint64_t sent_us;               /* sender's CLOCK_MONOTONIC, microseconds */
    uint64_t echo_us;               /* newest sent_us received from the peer, 0 if none */
    uint64_t state;                 /* sender's state number, for the log */
    /* silence after which the sender counts the peer as lost: not sooner than that after echo_us */
    uint64_t timeout_us;
};

#define REMUS_PAGES_PER_FRAME    240u
/* then uint64_t gfn[count]; then, per page that is not zero, 4096 bytes */
struct remus_pages {
    uint32_t count;                 /* 1..REMUS_PAGES_PER_FRAME */
    uint32_t reserved;
};
#define REMUS_GFN_ZERO           (1ull << 63) /* page is all zero, no contents follow */
#define REMUS_GFN_MASK           ((1ull << 52) - 1)

#define REMUS_RECORD_MAX         (8u << 20)  /* body bytes of one record, over all its fragments */
enum remus_record_type {
    REMUS_RECORD_HVM_CONTEXT = 1,   /* as XEN_DOMCTL_gethvmcontext gives it */
    REMUS_RECORD_GRANT_V1    = 2,   /* grant_entry_v1_t[] from entry 0; GTF_reading/writing clear */
    REMUS_RECORD_EVTCHN      = 3,   /* struct remus_evtchn[] from port 0 */
    /* struct remus_text: path NUL value NUL ..., relative to the domain */
    REMUS_RECORD_FRONTENDS   = 4,
    REMUS_RECORD_HASHES      = 5,   /* --verify: struct remus_hash[] of every RAM page */
    REMUS_RECORD_HVM_PARAMS  = 6,   /* struct remus_hvm_param[] */
    REMUS_RECORD_DISKS       = 7,   /* uint64_t: the disk epoch that ends with this epoch */
    /* struct remus_offset[]: all connections whose numbers P's kernel changes; not there: none */
    REMUS_RECORD_OFFSETS     = 8,
};
struct remus_record {
    uint32_t type;                  /* REMUS_RECORD_* */
    uint32_t total;                 /* body bytes of the whole record, <= REMUS_RECORD_MAX */
    uint32_t offset;                /* of this fragment; fragments come in order, without gap */
    uint32_t reserved;
};
struct remus_evtchn {
    uint8_t  status;                /* EVTCHNSTAT_* */
    uint8_t  reserved;
    uint16_t vcpu;
    uint32_t detail;                /* virq | pirq | remote dom << 16; 0 for ipi */
};
struct remus_hash { uint64_t gfn; uint64_t hash; }; /* XXH64, seed 0 */
struct remus_hvm_param { uint64_t index; uint64_t value; };

struct remus_epoch_end {
    uint64_t pages;                 /* pages carried by this epoch */
    uint64_t records;               /* complete records */
    /* chain over the frame checksums of the epoch, see protocol.md */
    uint64_t checksum;
    uint64_t suspended_us;          /* how long the primary's guest was stopped */
    uint16_t mode;                  /* REMUS_MODE_* of the epoch that follows; not AUTO */
    uint16_t reserved[3];
};
struct remus_applied {
    uint64_t paused_us;             /* how long the secondary's guest was paused */
    uint64_t rolled_back;           /* pages restored from the mirror */
    uint64_t verify_bad;            /* pages that differ (--verify), 0 otherwise */
    uint64_t first_bad_gfn;
};
struct remus_stop { uint32_t reason; uint32_t guest_reason; }; /* REMUS_STOP_*, SHUTDOWN_* or ~0 */
#define REMUS_STOP_OPERATOR      1u  /* Ctrl-C, xl remus-stop */
#define REMUS_STOP_GUEST         2u  /* the guest powered off, rebooted or crashed by itself */
#define REMUS_STOP_REBUILD       3u  /* states can no longer be made equal (say why in the log) */
#define REMUS_STOP_FAILED        4u  /* an error on the sender's side */
#define REMUS_STOP_HANDOVER      5u  /* P->S: this guest is fenced for good: take over, unasked */

/* ---- Packet channel frames --------------------------------------------------------------- */

#define REMUS_PACKET_MAX         (65536u + 64u) /* bytes of one Ethernet frame, GSO included */

struct remus_packet {               /* precedes every payload on the packet channel */
    uint32_t length;                /* payload bytes */
    uint8_t  type;                  /* REMUS_PACKET_* */
    uint8_t  vif;                   /* index of the guest's interface */
    uint16_t flags;                 /* REMUS_PACKET_F_* */
    uint64_t epoch;                 /* epoch of the sender's guest when it was taken */
    uint64_t id;                    /* OUTPUT: counts from 1 for each vif; others 0 */
    uint16_t gso_size;              /* 0: not GSO */
    uint16_t reserved[3];
};
enum remus_packet_type {
    REMUS_PACKET_INPUT    = 1,      /* P->S: Ethernet frame the primary's guest has received */
    REMUS_PACKET_OUTPUT   = 2,      /* S->P: Ethernet frame the secondary's guest has sent */
    REMUS_PACKET_MATCHED  = 3,      /* P->S: uint64_t id[]: these outputs have left, forget them */
    REMUS_PACKET_FLOW     = 4,      /* P->S: struct remus_flow: the primary's ISN of a young flow */
    REMUS_PACKET_PING     = 5,      /* P->S, opaque payload up to 64 bytes, answered by PONG */
    REMUS_PACKET_PONG     = 6,
    REMUS_PACKET_SENT     = 7,      /* P->S: headers of a TCP segment that P's guest has sent */
};
#define REMUS_PACKET_F_CSUM_PARTIAL 0x1u /* L4 checksum field holds the pseudo header sum only */
#define REMUS_PACKET_F_GSO          0x2u /* larger than the MTU; segment before a real wire */

struct remus_flow {                 /* addresses and ports as the guest sees them, network order */
    uint8_t  guest_addr[16];        /* IPv4 as ::ffff:a.b.c.d */
    uint8_t  peer_addr[16];
    uint16_t guest_port;
    uint16_t peer_port;
    uint32_t primary_isn;           /* host order: sequence number of the primary guest's SYN */
    uint16_t vlan[2];               /* 0xffff: none */
    uint32_t reserved;
};

/*
 * A connection of an earlier takeover, whose peer knows other sequence numbers than the guest.
 * flow.primary_isn is the peer's.
 */
struct remus_offset {
    struct remus_flow flow;
    uint32_t offset;                /* the peer's numbers - the guest's */
    uint8_t  vif;                   /* index of the guest's interface */
    uint8_t  state;                 /* REMUS_OFFSET_*: it is over, or is to be for some time */
    uint8_t  reserved[2];
};
#define REMUS_OFFSET_FIN_INPUT   0x1u /* the peer's FIN was seen */
#define REMUS_OFFSET_FIN_OUTPUT  0x2u /* the guest's */
#define REMUS_OFFSET_RESET       0x4u /* by the guest */
#define REMUS_OFFSET_HALF_OPEN   0x8u /* the peer has acknowledged nothing yet */
#define REMUS_OFFSET_PEER_RESET  0x10u /* a RST of the peer's, and nothing of the guest's since */
#define REMUS_OFFSETS_MAX        16384u /* of one interface */

/* ---- Disk channel frames ------------------------------------------------------------------ */

/*
 * A disk epoch is what was written between two checkpoints that were cut.  They count from 1, by
 * themselves: an epoch that was cut and then given up has ended a disk epoch all the same.
 */
#define REMUS_DISK_BYTES_MAX     (1u << 20)  /* payload bytes of one frame */
#define REMUS_DISK_HASH_BYTES    (64u << 10) /* of the disk, below one hash */
#define REMUS_DISK_HASHES_MAX    16u         /* in one frame */
#define REMUS_DISK_RELATION_BYTES 16u
#define REMUS_DISK_REGION_BYTES  (4u << 20)  /* of INTENT and COLD, which begin at a multiple */

struct remus_disk_frame {           /* precedes every payload on the disk channel */
    uint32_t length;                /* payload bytes */
    uint8_t  type;                  /* REMUS_DISK_* */
    uint8_t  disk;                  /* index of the guest's disk */
    uint16_t reserved;
    uint64_t epoch;                 /* disk epoch; 0: of the first synchronisation */
    uint64_t sector;                /* of 512 bytes; CREDIT: bytes granted since the start */
    uint32_t sectors;               /* of the range; WANT: bit i: range of hash i */
    uint32_t reserved2;
    uint64_t checksum;              /* XXH64, seed 0, of this frame with checksum 0 and payload */
};
enum remus_disk_type {
    REMUS_DISK_OPEN   = 1,          /* P->S: struct remus_disk_open, once for each disk, first */
    REMUS_DISK_WRITE  = 2,          /* P->S: contents of the range */
    REMUS_DISK_EPOCH  = 3,          /* P->S: all writes of disk epochs up to this one precede it */
    REMUS_DISK_HASHES = 4,          /* P->S: uint64_t[]: XXH64 (seed 0) of each part of the range */
    REMUS_DISK_WANT   = 5,          /* S->P: answer to HASHES: parts that differ */
    REMUS_DISK_SYNCED = 6,          /* P->S: first synchronisation is over; S->P: it is durable */
    REMUS_DISK_CREDIT = 7,          /* S->P: how much may have been sent; see protocol.md */
    REMUS_DISK_KNOWN  = 8,          /* S->P: answer to OPEN; sectors: 1: of that relation, or 0 */
    REMUS_DISK_RELATION = 9,        /* P->S: uint8_t[16]: the disk's, from now on */
    REMUS_DISK_MARK   = 10,         /* P->S: say SAFE when what precedes this is durable on disks */
    REMUS_DISK_SAFE   = 11,         /* S->P */
    REMUS_DISK_INTENT = 12,         /* P->S: number epoch: P's disk may differ in this region */
    REMUS_DISK_NOTED  = 13,         /* S->P: INTENTs up to number epoch */
    REMUS_DISK_COLD   = 14,         /* P->S: P's disk has this region as it was sent, durably */
    REMUS_DISK_BASE   = 15,         /* P->S: from here on P's disks differ where INTENT says only */
};
struct remus_disk_open {            /* the disk as the guest knows it */
    uint64_t sectors;
    uint32_t logical_bytes, segs_max;
    uint8_t  read_only, flush, barrier, discard;
    uint32_t vdev;                  /* the guest's number of it */
    uint8_t  relation[16];          /* of the two disks that were made equal; 0: of none yet */
};

/* ---- xenstore --------------------------------------------------------------------------- */

/*
 * Under /local/domain/DOMID/remus, owned by dom0 and unreadable to the guest:
 *   role    "primary" | "secondary" | "unprotected" (after a takeover, and while disks are minded)
 *   mode    "colo" | "remus" | ..., as asked for; on the copy's host, as the session began
 *   running-mode  the one that runs
 *   state   a state name of docs/protocol.md
 *   protected "1" if a copy could take over now, else "0"
 *   health  "ok" | "degraded" (protected, but less well than it should be) | "unprotected"
 *   epoch   number of the newest acknowledged epoch; not there before the first
 *   lag     milliseconds since the guest was stopped for the checkpoint at that epoch's end
 *           (primary) or since that was whole here (secondary); not there before the first
 *   last-divergence  what differed last (primary); not there if nothing has
 *   peer    host name as the operator gave it
 *   reason  of the last transition (docs/man/xl-remus-hooks.5), a sentence
 *   pid     process id of the coordinator
 *   request written by operators and scripts, removed when it was read: "checkpoint", "stop" (an
 *           orderly end), "failover" (the copy takes over now; this host's guest is destroyed),
 *           "mode NAME"
 *   answer  what became of the last request: "accepted: ..." or "refused: ..."
 * What changes by itself is written once a second at most; a text has REMUS_XS_TEXT_MAX bytes at
 * most.
 */
#define REMUS_XS_TEXT_MAX        199u
#define REMUS_XS_NODE            "remus"
/*
 * Under /tool/remus/SESSION (its UUID), while a side waits for the arbiter `manual`:
 *   domain    name of the guest
 *   role      "primary" | "secondary"
 *   decision  written by an operator or a script: "go-on" | "stop"; on one host only "go-on"
 */
#define REMUS_XS_SESSIONS        "/tool/remus"

#define REMUS_CHECK_SIZE(type, size) \
    _Static_assert(sizeof(type) == (size), "wire size of " #type)
REMUS_CHECK_SIZE(struct remus_open, 40);
REMUS_CHECK_SIZE(struct remus_frame, 24);
REMUS_CHECK_SIZE(struct remus_lz4, 8);
REMUS_CHECK_SIZE(struct remus_hello, 48);
REMUS_CHECK_SIZE(struct remus_heartbeat, 32);
REMUS_CHECK_SIZE(struct remus_pages, 8);
REMUS_CHECK_SIZE(struct remus_record, 16);
REMUS_CHECK_SIZE(struct remus_evtchn, 8);
REMUS_CHECK_SIZE(struct remus_hash, 16);
REMUS_CHECK_SIZE(struct remus_hvm_param, 16);
REMUS_CHECK_SIZE(struct remus_epoch_end, 40);
REMUS_CHECK_SIZE(struct remus_applied, 32);
REMUS_CHECK_SIZE(struct remus_stop, 8);
REMUS_CHECK_SIZE(struct remus_packet, 32);
REMUS_CHECK_SIZE(struct remus_flow, 48);
REMUS_CHECK_SIZE(struct remus_offset, 56);
REMUS_CHECK_SIZE(struct remus_disk_frame, 40);
REMUS_CHECK_SIZE(struct remus_disk_open, 40);

#endif /* XEN_PUBLIC_REMUS_H */
