/*
 * ctl.h: what a coordinator says to its packet and disk daemons, and they to it.
 *
 * A SOCK_SEQPACKET pair on one host (descriptor REMUS_CTL_FD of the daemon); one struct ctl_msg
 * per packet, text after it where the type says so.  The packet channel to the other host is
 * descriptor REMUS_CHANNEL_FD (a connected, already authenticated stream socket).
 * The daemon drops its privileges once its sockets are open, before it reads the first byte of
 * the channel or of a guest, and says READY then.  End of file on the control socket means that
 * the coordinator is gone: the daemon exits, which leaves a protected guest's output dropped
 * (colo-proxyd: nobody listens to the queue) or unheard (colo-shadowd: it holds no device) —
 * except colo-shadowd after failover, which goes on serving the guest.
 */
#ifndef REMUS_CTL_H
#define REMUS_CTL_H

#include <stdint.h>

#include "xen/include/public/remus.h"

#define REMUS_CTL_FD      3
#define REMUS_CHANNEL_FD  4
#define REMUS_BLK_KEEP_FD 5      /* colo-blkd: a memfd of the coordinator's */
#define REMUS_VIFS_MAX    8u
#define CTL_TEXT_MAX      512u
#define CTL_OUTPUT_QUEUES 4u     /* netfilter queues for a vif's output, numbered in a row */
#define CTL_CAUSES_MAX    16u
#define CTL_OFFSETS_MAX   128u
#define REMUS_DISKS_MAX   16u
#define CTL_BLK_SHARED    UINT32_MAX
#define REMUS_RINGS_MAX   64u    /* of all disks of a guest */

enum ctl_type {
    /* coordinator -> colo-proxyd */
    CTL_INPUT_STOP = 1,   /* hold the guest's input from now on; answered by INPUT_STOPPED when
                             every earlier verdict is out and copied to the channel */
    CTL_CUT,              /* guest is stopped and its tx rings are drained: read the queues empty;
                             all output so far belongs to ctl_msg.epoch, later output to
                             epoch + 1, for which code holds: enum ctl_rule, and perhaps
                             CTL_RULE_TRIGGERS; input flows again, tagged epoch + 1; answered by
                             CUT_DONE */
    CTL_RELEASE,          /* epoch acknowledged: let go every held output of epochs <= epoch */
    /* stop releasing by comparison (secondary lost, not yet known to be out) */
    CTL_HOLD,
    CTL_UNPROTECT,        /* let everything held go, accept all from now on, answer UNPROTECTED */
    CTL_FENCE,            /* drop everything held, drop all from now on, answer FENCED */
    CTL_INPUT_GO,         /* input flows again without a cut (a checkpoint that was given up) */
    /* coordinator -> colo-shadowd */
    CTL_ATTACH = 32,      /* struct ctl_attach[] follows: guest paused, memory and tables replaced;
                             (re)attach at the rings' present state; epoch = the one that runs now;
                             answered by ATTACHED */
    CTL_DETACH,           /* guest paused: touch no ring until ATTACH; input of epochs <= epoch
                             that was not injected is to be forgotten; answered by DETACHED */
    CTL_GO,               /* guest is running: inject and drain.  colo-blkd, code 1: the first write
                             from here on asks for a checkpoint */
    CTL_FAILOVER,         /* one tap descriptor for each vif by SCM_RIGHTS: serve the guest from it,
                             first what never matched, then announce; code: ms that the guest's
                             clock may be behind the primary's; answered by ACTIVE */
    CTL_OFFSETS,          /* struct remus_offset[] follows, in host order; code: CTL_OFFSETS_FIRST,
                             _LAST.  Before failover, between DETACH and ATTACH: these have another
                             number for their peers in the primary's guest, too.  From colo-shadowd
                             the answer to OFFSETS_GET, as many messages as it takes */
    CTL_OFFSETS_GET,      /* after failover: the connections whose numbers are changed; the answers
                             have the epoch of the question */
    /* coordinator -> colo-blkd; DETACH, GO, STATS_GET and QUIT as well */
    CTL_DISK = 48,        /* struct ctl_disk, and the disk's descriptor by SCM_RIGHTS: open for
                             reading, and for writing unless read_only; O_DIRECT if it is a block
                             device that the kernel's backend will have again.  Answered by READY */
    CTL_BLK_ATTACH,       /* struct ctl_blk_attach[] follows, all rings of all disks: guest paused
                             or suspended, nobody else at the rings; answered by ATTACHED */
    CTL_BLK_SYNC,         /* primary: begin to make the copy's disks equal, while the guest runs;
                             code: KiB a second at most, 0: no limit, CTL_BLK_SHARED: both hosts
                             reach the same disks, and nothing is to be sent; answered by
                             BLK_SYNCED.  Secondary: all disks have been described, the primary's
                             frames may be taken */
    CTL_BLK_LOCAL,        /* primary: replicate no more; nothing is vouched for any more of what
                             this host's disks hold (remus_diskrec.h) */
    CTL_BLK_STORE,        /* secondary: descriptor of a file for what is not on the disks yet by
                             SCM_RIGHTS; epoch: bytes that may wait there for each of overlay and
                             primary's writes; before the first DISK; answered by READY */
    CTL_BLK_COMMIT,       /* secondary, at rest: the copy's memory is the primary's at the end of
                             disk epoch .epoch; answered by BLK_COMMITTED.  The first one lets go of
                             the rings of the copy's first run: BLK_ATTACH follows */
    CTL_BLK_LOG,          /* descriptor of a file of blklog_bytes() by SCM_RIGHTS: what is written
                             is noted there; after the last DISK; answered by READY */
    CTL_BLK_KNOWN,        /* secondary: answer to BLK_OPENED for disk .code; epoch: 1: it is of that
                             relation and no other has written to it, or 0 */
    /* all */
    CTL_STATS_GET = 64,   /* answered by STATS, of colo-blkd by BLK_STATS */
    CTL_QUIT,             /* orderly end */
    /* daemon -> coordinator */
    CTL_READY = 96,
    CTL_INPUT_STOPPED, CTL_CUT_DONE, CTL_UNPROTECTED, CTL_FENCED,
    CTL_ATTACHED, CTL_DETACHED, CTL_ACTIVE,
    /* proxyd, blkd: one is wanted; code = enum ctl_why; text says why, for instance which flow */
    CTL_CHECKPOINT,
    CTL_CHANNEL_LOST,     /* the packet or disk channel ended or broke; text */
    CTL_STATS,            /* struct ctl_stats follows */
    CTL_FAILED,           /* text; the daemon exits */
    /* proxyd, before STATS: struct ctl_vif_stats[] follows, one for each vif */
    CTL_VIF_STATS,
    CTL_CAUSES,           /* proxyd, before STATS: struct ctl_cause[] follows, the most first */
    CTL_BLK_STATS,        /* blkd: struct ctl_blk_stats[] follows, one for each disk */
    CTL_BLK_SYNCED,       /* blkd, primary: the copy's disks are equal, and are kept so; of a copy
                             that took over: everything is on its disks */
    CTL_BLK_EPOCH,        /* blkd, secondary: all of disk epochs up to .epoch is here */
    CTL_BLK_COMMITTED,
    CTL_BLK_OPENED,       /* blkd, secondary: struct ctl_relation of disk .code: what the primary
                             has noted is true of a disk of that relation; answered by BLK_KNOWN */
    CTL_BLK_RELATED,      /* blkd: the same: this is the disk's from now on */
};

enum ctl_why {
    CTL_WHY_DIVERGED = 1, /* payload differs */
    CTL_WHY_DEADLINE,     /* no partner in time */
    CTL_WHY_UNCOMPARABLE, /* SYN options, RST, FIN that cannot be mapped */
    CTL_WHY_QUEUE,        /* a queue or table is three quarters full */
    CTL_WHY_OUTPUT,       /* output waits for nothing else (CTL_RULE_TRIGGERS) */
    CTL_WHY_COUNT
};

/* What becomes of an epoch's output, and of its input. */
enum ctl_rule {
    CTL_RULE_COMPARE,     /* leaves when the copy has said the same; input is copied */
    CTL_RULE_EPOCH,       /* leaves when its epoch is acknowledged; input is not copied */
    CTL_RULE_PASS,        /* leaves at once, behind what is held of earlier epochs */
};
#define CTL_RULE_MASK     0xffu
#define CTL_RULE_TRIGGERS 0x100u /* the first frame of an epoch asks for a checkpoint */

#define CTL_OFFSETS_FIRST 1u     /* forget what was said before */
#define CTL_OFFSETS_LAST  2u

struct ctl_msg {
    uint32_t type;
    uint32_t code;
    uint64_t epoch;
    uint32_t count;       /* of the structures that follow */
    uint32_t text_bytes;  /* text that follows them, no NUL */
};

struct ctl_attach {
    uint32_t domid;
    uint32_t vif;         /* index */
    uint32_t tx_ref, rx_ref;
    uint32_t tx_port, rx_port;     /* the guest's ports; equal when not split */
    /* frontend features as written in xenstore; csum6 1 = ok */
    uint32_t sg, gso4, gso6, csum6_offload;
    uint32_t rx_copy;
    uint8_t  mac[6];
    uint8_t  reserved[2];
};

struct ctl_stats {        /* counters since start; gauges marked (g) */
    uint64_t input_packets, input_bytes;        /* towards the guest */
    uint64_t output_packets, output_bytes;      /* from the guest */
    uint64_t released_equal, released_epoch;    /* proxyd: matched; by checkpoint */
    uint64_t held, held_bytes, held_max;        /* (g) (g) */
    /* (g) shadowd, after failover: those with more to change than an offset; those with one */
    uint64_t flows, flows_max, offsets;
    /* old-epoch secondary output; everything else, each logged */
    uint64_t dropped_old, dropped_other;
    uint64_t checkpoints[CTL_WHY_COUNT];
    uint64_t delay_us_sum, delay_us_max;        /* primary output: from queue to release */
    uint64_t lag_us;                            /* (g) smoothed: primary's packet to secondary's */
    uint64_t attach_us_sum, attach_us_max, attaches; /* shadowd: CPU time of attaching */
};

enum ctl_class {          /* of traffic; fragments count as what they are pieces of */
    CTL_CLASS_TCP,
    CTL_CLASS_UDP,
    CTL_CLASS_ICMP,       /* ICMPv6 with neighbour discovery and MLD too */
    CTL_CLASS_ARP,
    CTL_CLASS_OTHER,
    CTL_CLASS_COUNT
};

struct ctl_class_stats {  /* counters since start */
    uint64_t primary, secondary;                /* frames from either guest */
    uint64_t equal, epoch;                      /* released: matched; by checkpoint */
    uint64_t delay_us_sum, delay_us_max;        /* from queue to release */
    uint64_t checkpoints[CTL_WHY_COUNT];        /* that this class was the first to ask for */
};

struct ctl_vif_stats {
    char name[16];
    uint64_t input_packets, input_bytes, output_packets, output_bytes;
    uint64_t held, held_bytes, held_max, flows; /* (g) (g) since start (g) */
    uint64_t dropped;
    struct ctl_class_stats classes[CTL_CLASS_COUNT];
};

/* What made the comparison ask for checkpoints, by service: a guest's or a peer's port and the
 * peer's address. Each checkpoint counts once, for who asked first. */
struct ctl_cause {
    char vif[16];
    char flow[112];       /* in the words of --bypass where they can say it (bypass.h) */
    uint64_t checkpoints[CTL_WHY_COUNT];
    uint64_t epoch;       /* the last one */
    char last[200];       /* its flow, offset and both values */
};

/* A disk as the guest knows it: what the kernel's backend has told it (docs: xen/io/blkif.h). */
struct ctl_disk {
    uint32_t disk;            /* index, from 0 */
    uint32_t vdev;            /* the guest's number of it, for messages: 51712 is xvda */
    uint64_t sectors;         /* of 512 bytes */
    uint32_t logical_bytes;   /* sector-size */
    uint32_t segs_max;        /* feature-max-indirect-segments; 0: none */
    uint8_t read_only, flush, barrier, discard, secure_discard;
    uint8_t reserved[3];
};

/* Which other disk it is that a disk was made equal to; see blklog.h. */
struct ctl_relation {
    uint8_t bytes[16];
};

struct ctl_blk_attach {
    uint32_t domid;
    uint32_t disk, ring;      /* indices; rings of a disk from 0 */
    uint32_t abi;             /* enum blkring_abi */
    uint32_t pages;           /* of the ring: a power of two, up to 16 */
    uint32_t refs[16];
    uint32_t port;            /* the guest's */
};

struct ctl_blk_stats {        /* counters since start; (g): gauge */
    uint64_t vdev, bytes;     /* the disk's number, and its size */
    uint64_t reads, writes, flushes, discards;
    uint64_t read_bytes, written_bytes;
    uint64_t bad;             /* requests that were no good: answered with an error */
    uint64_t errors;          /* of the disk or of a grant copy: answered with an error */
    uint64_t busy;            /* (g) requests under way */
    uint64_t delay_us_sum, delay_us_max;   /* from taken to answered */
    uint64_t sent_bytes;      /* primary: of the guest's writes, to the other host */
    uint64_t sync_bytes;      /* (g) primary: synchronisation: to be compared; 0: not known yet */
    uint64_t sync_done_bytes, sync_sent_bytes; /* (g) of these, compared; sent, as it differed */
    uint64_t overlay_bytes, waiting_bytes;     /* (g) secondary: its own writes; the primary's */
};

#endif /* REMUS_CTL_H */
