/*
 * rewrite.h: one TCP connection, two guests that chose different initial sequence numbers.
 *
 * A pure core: frames and the time come in, verdicts go out; no system call, no clock.  One
 * instance serves one vif.
 *
 * Sequence numbers.  A connection whose handshake happened in the present epoch is "young": the
 * secondary's guest has an ISN of its own.  Once both are known, offset = primary's - secondary's:
 *   from the guest:  seq += offset                         (SYN frames are sent on as they are:
 *   to the guest:    ack -= offset, SACK blocks -= offset    the comparison ignores their ISN)
 *                    and the number quoted in an ICMP error -= offset
 * The secondary's ISN is read from its own SYN or SYN-ACK.  The primary's comes with
 * REMUS_PACKET_FLOW; until then it is taken from what the peer acknowledges first (that is primary
 * ISN + 1 unless data went with the SYN), and FLOW overrules.  A checkpoint makes the guests equal:
 * rewrite_detach() forgets every ISN.  A SYN that the checkpoint found on the ring is answered by
 * each guest after it, so a SYN-ACK whose acknowledgement was not seen makes its flow young, too;
 * if it was repeated from the checkpoint's state, both ISNs are the same, and offset is 0.
 *
 *   state of a young flow        frame from the guest      frame to the guest
 *   secondary's ISN unknown      sent on                   SYN: passed; others: REWRITE_HOLD (*)
 *   primary's ISN unknown        SYN: sent on; HOLD        SYN: passed; ACK tells it; others: HOLD
 *   both known                   seq += offset             ack, SACK -= offset
 * (*) where FLOW alone made it young: only a SYN-ACK and what follows one; a primary that repeats a
 *     SYN-ACK of an earlier epoch sends FLOW, too, and both guests have the same numbers then.
 *
 * "Based" flows come from an earlier takeover: the primary's own guest has other numbers than the
 * peer knows, its kernel changes them (REMUS_RECORD_OFFSETS), and this offset is there when the
 * flow is not young.
 *
 * After failover nothing is held for want of the primary's ISN, and input that waits for the
 * secondary's for REWRITE_HANDSHAKE_US only; SYN frames are rewritten as well, as they are sent to
 * peers that may know the primary's numbers; connections that begin then are nobody's business.
 *
 * Timestamps (RFC 7323).  Peers drop segments whose TSval goes backwards (PAWS).  What a peer
 * echoes (TSecr) is the newest TSval of the primary that it has seen: the maximum is tracked for
 * each flow, old ones too.  After failover no TSval below what the primary may have sent leaves: it
 * is raised to that until the secondary's clock has come so far, and an echo of it is made what
 * the guest sent last.  The clock is behind by the time between the primary's guest going on from
 * the newest checkpoint and the secondary's doing so: when that much time has passed (settle_us),
 * nothing is left to do for a connection that was silent until then.  The echo in a peer's SYN-ACK
 * is made the secondary's own SYN's TSval: Linux resets otherwise.
 * What the guest echoes after failover is of before it, until the peer is heard again: the peer
 * would take the time without a host for a round trip, and wait several times as long when it next
 * loses a segment.  Until then TSecr is 0, which stacks do not measure by.
 *
 * Limits: flows_max entries.  When full, the one unused longest goes, looking at the
 * REWRITE_EVICT_SCAN oldest: half-open and old flows go, flows that are being rewritten stay; if
 * all of those are, the new flow is not tracked (its output will differ, and a checkpoint follows).
 * An entry ends REWRITE_CLOSED_US after the last frame of a flow that was closed by two FINs or a
 * RST, or after REWRITE_IDLE_US without any; that of a based flow does not before failover.
 */
#ifndef REMUS_REWRITE_H
#define REMUS_REWRITE_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/remus/packet.h"
#include "xen/include/public/remus.h"

#define REWRITE_FLOWS_MAX    16384u
#define REWRITE_EVICT_SCAN   32u
#define REWRITE_SECOND_US    1000000ull
#define REWRITE_CLOSED_US    (60 * REWRITE_SECOND_US)          /* TIME_WAIT of Linux */
#define REWRITE_IDLE_US      (5 * 86400 * REWRITE_SECOND_US)   /* as Linux' conntrack */
#define REWRITE_HANDSHAKE_US REWRITE_SECOND_US
/* How far the primary's timestamp clock is assumed to have gone on after its last echo, until the
 * failover, at one tick per ms (RFC 7323 allows 1 ms to 1 s; too much is harmless), and what is
 * added to that. */
#define REWRITE_TS_AHEAD_US  (60 * REWRITE_SECOND_US)
#define REWRITE_TS_MARGIN    10u
#define REWRITE_TS_SETTLE_US (30 * REWRITE_SECOND_US)   /* nothing is raised for longer */
/* After failover: so long nobody has said anything in a handshake.  A peer that knows the primary's
 * number answers the guest's first repeated SYN-ACK. */
#define REWRITE_HALF_OPEN_US (10 * REWRITE_SECOND_US)

struct rewrite;

enum rewrite_verdict {
    REWRITE_PASS,                /* deliver; the frame may have been changed */
    REWRITE_HOLD,                /* unchanged; offer it again when its flow is ready */
};

#define REWRITE_NO_FLOW UINT32_MAX

struct rewrite_result {
    enum rewrite_verdict verdict;
    uint32_t flow;               /* number of the flow, REWRITE_NO_FLOW: none */
    bool input_ready;            /* held input of this flow may be offered again, in order */
    bool output_ready;           /* the same for output */
};

struct rewrite_stats {
    uint64_t flows, flows_max;
    uint64_t rewriting;          /* flows whose frames are changed: numbers or timestamps */
    uint64_t unsettled, offsets; /* after failover: those with more to change; those with one */
    uint64_t untracked;          /* flows that found no place */
    uint64_t evicted;
    uint64_t isn_disagreed;      /* FLOW overruled what the peer acknowledged */
};

/* seed: any unpredictable number, so that peers cannot choose colliding flows. */
int rewrite_new(struct rewrite **out, uint32_t flows_max, uint64_t seed);
void rewrite_free(struct rewrite *rw);

/* p was parsed from frame; both change.  partial: REMUS_PACKET_F_CSUM_PARTIAL.  came_us: when it
 * came, which is earlier than now_us if it waited. */
struct rewrite_result rewrite_input(struct rewrite *rw, uint64_t now_us, uint64_t came_us,
                                    uint8_t *frame, struct packet *p, bool partial);
struct rewrite_result rewrite_output(struct rewrite *rw, uint64_t now_us, uint8_t *frame,
                                     struct packet *p, bool partial);
/* REMUS_PACKET_FLOW, in its place among the input. verdict is always REWRITE_PASS. */
struct rewrite_result rewrite_flow(struct rewrite *rw, uint64_t now_us,
                                   const struct remus_flow *flow);

/* A checkpoint: the guests are equal, no flow is young any more.  O(1). */
void rewrite_detach(struct rewrite *rw);
/* From now on output goes to the real network.  settle_us: by how much the secondary's timestamp
 * clock may be behind, at most. */
void rewrite_failover(struct rewrite *rw, uint64_t now_us, uint64_t settle_us);
/* For output that was taken (and seen by rewrite_output) before failover and is sent after it:
 * rewritten tells whether its numbers are the primary's already. */
void rewrite_output_late(struct rewrite *rw, uint8_t *frame, struct packet *p, bool partial,
                         bool rewritten);

/*
 * The primary's based flows, after rewrite_detach(): first forget those of before, then add each
 * (flow and offset; .vif is not looked at).
 */
void rewrite_offsets_clear(struct rewrite *rw);
/* false: the table is full. */
bool rewrite_offsets_add(struct rewrite *rw, uint64_t now_us, const struct remus_offset *based);
/* After failover: the next flow with an offset.  *cursor: 0 at first.  false: there is none. */
bool rewrite_offsets_next(struct rewrite *rw, uint32_t *cursor, struct remus_offset *out);

/* Ends some entries that have aged; call it every second or so. */
void rewrite_tick(struct rewrite *rw, uint64_t now_us);

/* Nothing to do for any frame: the caller may skip parsing (after failover). */
bool rewrite_idle(const struct rewrite *rw);
void rewrite_stats_get(const struct rewrite *rw, uint64_t now_us, struct rewrite_stats *out);

#endif /* REMUS_REWRITE_H */
