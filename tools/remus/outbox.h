/*
 * outbox.h: a bounded first-in first-out store of frames, allocated once.
 *
 * colo-shadowd keeps in such stores: input that waits for its epoch or for ring slots, input that
 * waits for the guest's own SYN-ACK, and (the name) the secondary's output until the primary's host
 * says that it was matched.  Frames live in one byte ring, each in one piece, so that a grant copy
 * or a write can be pointed at them.  Entries carry serial numbers that count from 0; an entry may
 * be killed in any order, its bytes come back when all before it are gone, too.
 */
#ifndef REMUS_OUTBOX_H
#define REMUS_OUTBOX_H

#include <stdbool.h>
#include <stdint.h>

enum outbox_state {
    OUTBOX_DEAD = 0,
    OUTBOX_FILLING,      /* being copied from the guest */
    OUTBOX_HELD,         /* waits for the flow's rewriting to be known */
    OUTBOX_READY,        /* input: to be injected; output: sent to be compared, not yet matched */
};

struct outbox_entry {
    uint64_t serial;
    uint64_t id;         /* REMUS_PACKET_OUTPUT id, 0: none given yet */
    uint64_t epoch;
    uint64_t time_us;    /* when it was put */
    uint32_t offset;     /* of the frame in the byte ring */
    uint32_t length;
    uint32_t taken;      /* bytes it takes there, with what was skipped before a wrap */
    uint32_t flow;       /* owner's, for OUTBOX_HELD */
    uint16_t flags;      /* REMUS_PACKET_F_* */
    uint16_t gso_size;
    uint8_t  state;      /* enum outbox_state */
    uint8_t  gso_type;   /* XEN_NETIF_GSO_TYPE_* */
    uint8_t  validated;  /* L4 checksum was checked by somebody else */
    uint8_t  rewritten;  /* the rewriting has been applied: not once more */
    uint8_t  tag;        /* owner's */
};

struct outbox {
    uint8_t *bytes;
    struct outbox_entry *entries;
    uint32_t *by_id;         /* serial (low bits) of an id's entry, by id modulo 2 * entries_max */
    uint32_t size;           /* of bytes */
    uint32_t entries_max;    /* a power of two */
    uint32_t head, used;     /* first byte in use, bytes in use */
    uint64_t first, next;    /* serials: [first, next) exist, some of them dead */
    uint32_t live;           /* entries not dead */
    uint32_t held;           /* of these: OUTBOX_HELD */
    uint64_t live_bytes;
    uint64_t last_id;        /* newest id given */
};

int outbox_init(struct outbox *box, uint32_t size, uint32_t entries_max);
void outbox_dispose(struct outbox *box);

/* Room for a frame of length bytes at the end, state as given; NULL: full. */
struct outbox_entry *outbox_put(struct outbox *box, uint32_t length, enum outbox_state state);
bool outbox_has_room(const struct outbox *box, uint32_t length);
/* Takes the newest entry back, as if it had never been put. */
void outbox_unput(struct outbox *box, struct outbox_entry *entry);
/* The newest entry turned out shorter than it was put. */
void outbox_shrink(struct outbox *box, struct outbox_entry *entry, uint32_t length);
/* Makes room by killing the oldest entries, if that can do it.  Returns how many were killed. */
uint32_t outbox_make_room(struct outbox *box, uint32_t length);

uint8_t *outbox_bytes(struct outbox *box, const struct outbox_entry *entry);

/* The oldest living entry, or the next living one from a serial on; NULL: none. */
struct outbox_entry *outbox_first(struct outbox *box);
struct outbox_entry *outbox_from(struct outbox *box, uint64_t serial);

void outbox_set_state(struct outbox *box, struct outbox_entry *entry, enum outbox_state state);
void outbox_kill(struct outbox *box, struct outbox_entry *entry);
/* Kills every entry of epochs <= epoch; returns how many. */
uint32_t outbox_forget_epochs(struct outbox *box, uint64_t epoch);

/* Gives the entry the next id (ids count from 1 and never repeat). */
uint64_t outbox_give_id(struct outbox *box, struct outbox_entry *entry);
/* The living entry with this id, or NULL. */
struct outbox_entry *outbox_find_id(struct outbox *box, uint64_t id);

#endif /* REMUS_OUTBOX_H */
