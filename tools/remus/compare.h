/*
 * compare.h: the comparison of the primary's output with the secondary's, a pure core.
 *
 * No system call, no clock, no randomness: frames and the time come in, verdicts and requests
 * go out through a list of actions.  One instance serves one vif of one guest.  Frames are Ethernet
 * frames, VLAN tags in line; L4 checksums of guest frames are never looked at (they may be
 * partial).
 *
 * Ownership: a primary frame is known by the caller's 64-bit id (for instance the NFQUEUE packet
 * id); the core copies what it must remember.  Every id handed in gets exactly one RELEASE...
 * or DROP action, by comparison, by cmp_release_epoch or by cmp_drain.
 *
 * Epochs: the first is 1.  Frames of epoch e + 1 are compared, but none of them is released before
 * cmp_release_epoch(e), nor inside that call: what has matched by then follows with the next call
 * (cmp_next_us says 0).  The emit function must not call back into the core.
 */
#ifndef REMUS_COMPARE_H
#define REMUS_COMPARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/remus/ctl.h"
#include "tools/remus/packet.h"
#include "xen/include/public/remus.h"

struct cmp;

struct cmp_limits {
    uint32_t flows_max;  /* default 16384 */
    uint64_t bytes_max;  /* copies of frames kept, both sides; default 64 MiB */
    uint32_t frames_max; /* primary frames held, and as many of the secondary's kept;
                                    default 8192 */
    uint32_t deadline_min_us, deadline_max_us; /* partner must come in time; adapts to the lag in
                                    between; default 20 ms, 200 ms */
    uint64_t hash_seed; /* random in service, so that no peer can aim at one hash chain */
};                      /* 0 means the default, the seed excepted */

enum cmp_action_type {
    CMP_RELEASE,        /* primary frame id may leave */
    CMP_RELEASE_WINDOW, /* it may leave with its TCP window field replaced by value (TCP,
                                    non GSO) */
    CMP_RELEASE_SACK,   /* the same, and its SACK blocks replaced by .sack[0..sack_blocks)
                                    (packet_tcp_set_window, packet_tcp_set_sack) */
    CMP_DROP,           /* primary frame id must not leave and will come again or has no
                                    use */
    CMP_MATCHED,        /* secondary's output id is done with (sent on as
                                    REMUS_PACKET_MATCHED); always behind the RELEASE of what it
                                    equals.  Ids of epochs that were cut are not answered. */
    CMP_FLOW,           /* tell colo-shadowd the primary's ISN: .flow */
    CMP_CHECKPOINT,     /* epoch should end: .why (enum ctl_why) and .text */
};

struct cmp_action {
    enum cmp_action_type type;
    uint32_t value;
    uint64_t id;
    struct remus_flow flow;
    uint32_t why;
    bool has_key;         /* CMP_CHECKPOINT: one flow is the reason, .key */
    struct packet_key key;
    uint32_t sack_blocks; /* never more than the frame has */
    uint32_t sack[4][2];  /* left and right edge, host order */
    char text[200];       /* flow, offset, both values, for the log */
};

/* Called for each action, in order, during the calls below. */
typedef void cmp_emit_fn(void *arg, const struct cmp_action *action);

int cmp_new(struct cmp **out, const struct cmp_limits *limits, cmp_emit_fn *emit, void *arg);
void cmp_free(struct cmp *c);

/* frame: what the primary's guest sent in the present epoch.  now_us: any monotonic clock. */
void cmp_primary(struct cmp *c, uint64_t now_us, uint64_t id, const uint8_t *frame, size_t length,
                 bool gso);
/* frame: what the secondary's guest sent.  Where colo-shadowd rewrites the flow, sequence numbers
 * are already in the primary's terms, except in a frame with SYN, which it never rewrites.
 * epoch other than the present one: older is ignored, newer kept. */
void cmp_secondary(struct cmp *c, uint64_t now_us, uint64_t epoch, uint64_t id,
                   const uint8_t *frame, size_t length);
/* frame: towards the guest, seen by both; lets the core follow handshakes and teardown. */
void cmp_input(struct cmp *c, uint64_t now_us, const uint8_t *frame, size_t length);

/*
 * Called just before cmp_cut: frames behind the cut are compared (true, as at first), or no copy
 * runs and they are only held until their epoch is released.  What was known of connections before
 * a time without comparison is forgotten.
 */
void cmp_compare(struct cmp *c, bool compare);
/*
 * A frame of the primary was lost before cmp_primary saw it.  What the next one of a connection
 * that nothing is known of begins behind may be what was lost, and not what has left: until the cut
 * such connections wait for the epoch's end.
 */
void cmp_missed(struct cmp *c);
/* The guest was cut: frames so far belong to epoch, later ones to epoch + 1. */
void cmp_cut(struct cmp *c, uint64_t now_us, uint64_t epoch);
/* Epoch acknowledged: RELEASE for every frame of epochs <= epoch still held. */
void cmp_release_epoch(struct cmp *c, uint64_t now_us, uint64_t epoch);
/* Every frame still held gets RELEASE (release) or DROP. */
void cmp_drain(struct cmp *c, bool release);
/* While set, frames are taken and kept but nothing is released by comparison. */
void cmp_hold(struct cmp *c, bool hold);

/* Deadlines: call at or after the returned time. UINT64_MAX: nothing pending. */
uint64_t cmp_next_us(const struct cmp *c);
void cmp_tick(struct cmp *c, uint64_t now_us);

struct cmp_stats {
    uint64_t primary_frames, secondary_frames, released_equal, released_epoch;
    uint64_t secondary_old, secondary_surplus;
    uint64_t flows, flows_max, held, held_max, bytes, lag_us;
    uint64_t checkpoints[8];        /* emitted, by enum ctl_why */
    uint64_t checkpoints_coalesced; /* further reasons within an epoch that had one */
    uint64_t dropped_full;          /* primary frames dropped because the id table was full */
    uint64_t delay_us_sum, delay_us_max;
    struct ctl_class_stats classes[CTL_CLASS_COUNT];
};
void cmp_stats_get(const struct cmp *c, struct cmp_stats *out);

#endif /* REMUS_COMPARE_H */
