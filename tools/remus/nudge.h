/*
 * nudge.h: after a takeover, connections that lost segments with the dead host go on at once.
 *
 * A peer that has sent to the primary's host after its death sends again after twice the silence at
 * the worst: a takeover after 3 s is a gap of 6 s to it.  TCP-LCD (RFC 6069, in Linux since 2.6.34)
 * takes one doubling back for each ICMP "unreachable" that quotes the oldest segment that the peer
 * has not seen acknowledged, and sends at once when the shorter time is over.  The copy knows that
 * number: it is what the guest has acknowledged last.  Stacks without it, and peers with nothing
 * outstanding, ignore the message; for an established connection it is never an error.
 *
 * The guest's own last ACK may have died on its way out, and its copy will not repeat it by itself:
 * the peer's oldest segment is then another one, or it waits for a larger window.  So the guest is
 * asked first, with an empty segment that is far out of its window, which RFC 9293 (3.10.7.4) has
 * it answer with what it expects next.
 *
 * Where no copy runs, the primary tells the secondary of its guest's connections (SENT).
 *
 * Pure: no system call, no clock.  One instance serves one vif.  The table has a fixed size; a flow
 * whose place is taken by a younger one gets no message, which costs it time only.
 */
#ifndef REMUS_NUDGE_H
#define REMUS_NUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/remus/packet.h"

#define NUDGE_FLOWS      4096u        /* places */
#define NUDGE_IDLE_US    60000000ull  /* flows that were silent for longer are left alone */
#define NUDGE_FRAME_MAX  160u

struct nudge;

int nudge_new(struct nudge **out, uint64_t hash_seed);
void nudge_free(struct nudge *n);

/* A frame of the guest as the peer sees it, numbers rewritten. */
void nudge_output(struct nudge *n, uint64_t now_us, const uint8_t *frame, const struct packet *p);
/* From here on nudge_output() tells more of the flows that are known, and no flow is new. */
void nudge_begin(struct nudge *n);
/* A frame towards the guest, after the takeover.  A peer that sends again what the guest has not
 * acknowledged needs no message any more. */
void nudge_input(struct nudge *n, const struct packet *p);
/* An ACK without data, and its flow has sent a newer one since. */
bool nudge_superseded(const struct nudge *n, const struct packet *p);

/*
 * One question for each flow of the last NUDGE_IDLE_US in which the guest has sent no FIN, to be
 * given to the guest: as nudge_next().
 */
uint32_t nudge_question(const struct nudge *n, uint64_t now_us, uint32_t *cursor, uint8_t *frame);
/*
 * One message for each flow that was not heard from: bytes written to frame (NUDGE_FRAME_MAX of
 * room), 0 at the end.  *cursor: 0 at first.
 */
uint32_t nudge_next(const struct nudge *n, uint64_t now_us, uint32_t *cursor, uint8_t *frame);

/* ---- At the primary: what the secondary is told ---- */

struct nudge_told {
    uint64_t seed;                  /* as hash_seed */
    uint64_t bits[NUDGE_FLOWS / 64];
};

/* A new epoch: every connection is told of again. */
void nudge_told_clear(struct nudge_told *told);
/*
 * The headers of a frame of the guest's, for the secondary's nudge_output(): bytes written to out
 * (NUDGE_FRAME_MAX of room), 0 if they were told in this epoch, or nothing is to be told.
 */
uint32_t nudge_tell(struct nudge_told *told, const uint8_t *frame, const struct packet *p,
                    uint8_t *out);

#endif /* REMUS_NUDGE_H */
