/*
 * compare_private.h: what the files of the comparison share.  compare.c: tables, limits, epochs,
 * deadlines; compare_tcp.c: byte streams; compare_datagram.c: everything else; reassembly.c:
 * fragments.
 *
 * Vocabulary: an item is one frame that waits, a primary's (held, known by the caller's id) or a
 * secondary's (kept for comparison).  Each item is in at most one list, which says what it waits
 * for, and in one fifo, which is ordered by arrival:
 *
 *   list of a flow  p_todo  primary, bytes not all verified, by sequence number
 *                   p_done  primary, bytes verified; waits for ack, window, SACK or the gate
 *                   p_rst   primary RST without its partner
 *                   s_todo  secondary, bytes not all verified, by sequence number
 *                   s_done  secondary, verified; waits for the primary's copy to leave
 *                   s_rst   secondary RST without its partner
 *                   s_early secondary SYN of a connection that the primary has not begun
 *   bucket          a datagram of either side, by content
 *   reassembly      a fragment
 *   none            primary only: waits for cmp_release_epoch, compared no more
 *
 *   fifo   p_fifo    every primary item
 *          s_tcp     secondary TCP items, no deadline of their own
 *          s_must    secondary items that want a partner in time (RST)
 *          s_surplus secondary datagrams and fragments; they age out silently
 *          s_future  secondary frames of an epoch still to come, not parsed yet
 */
#ifndef REMUS_COMPARE_PRIVATE_H
#define REMUS_COMPARE_PRIVATE_H

#include "tools/remus/compare.h"

#define CHUNK_BYTES      2048u
#define CHUNK_DATA       (CHUNK_BYTES - sizeof(struct chunk *))
#define SLAB_CHUNKS      512u /* memory for copies grows in steps of 1 MiB */
#define SACK_SET_MAX     6u
#define REASSEMBLIES_MAX 256u /* IP packets in reassembly, both sides together */
#define FRAGMENTS_MAX    64u  /* pieces of one IP packet */

struct chunk {
    struct chunk *next;
    uint8_t bytes[CHUNK_DATA];
};

struct item;
struct list {
    struct item *first, *last;
};
struct fifo {
    struct item *first, *last;
    uint32_t count;
};

enum side { PRIMARY, SECONDARY };
enum place { PLACE_NONE, PLACE_FLOW, PLACE_BUCKET, PLACE_REASSEMBLY };

/* What two datagrams must have in common, byte for byte; each byte is defined. */
struct datagram_head {
    struct packet_key key;
    uint8_t kind, tos, type, code;
    uint8_t rest[4];
};
REMUS_CHECK_SIZE(struct datagram_head, 56);

struct item {
    struct item *next, *prev;
    struct list *list;
    struct item *newer, *older;
    struct fifo *fifo;
    struct flow *flow; /* of the list it is in; NULL for datagrams and waiting items */
    uint64_t id, arrival_us, epoch;
    /* Data: `bytes` bytes, of which those from `kept` on are in chunks, or all at ext. */
    const uint8_t *ext; /* the caller's frame; only while the call lasts */
    struct chunk *chunks;
    uint32_t bytes, kept;
    uint8_t side;
    uint8_t place; /* enum place: whose list it is in */
    uint8_t class; /* enum ctl_class */
    bool gso;
    union {
        struct {
            uint32_t seq, end, ack;
            uint16_t window, urgent;
            uint8_t flags, sack_blocks;
            uint32_t signature; /* of a SYN: see syn_signature() */
            uint32_t sack[PACKET_SACK_MAX][2];
        } tcp;
        struct {
            uint64_t hash;
            struct datagram_head head;
            struct item *pieces; /* further fragments of the same packet, by ->next; all are
                                      newer, so no fifo gives one up before this item */
        } datagram;
        struct {
            struct reassembly *of;
            uint32_t offset;
        } fragment;
    };
};

struct sack_set {
    uint32_t count;
    uint32_t block[SACK_SET_MAX][2];
};

/*
 * A TCP connection.  All numbers are the primary's.  `verified` is the position up to which both
 * guests' streams are equal (or were made equal by a checkpoint); released_* is what the world has.
 */
struct flow {
    struct packet_key key;
    struct flow *hash_next;
    uint64_t epoch;    /* in which it was last rebased */
    uint32_t items;    /* in its lists */
    bool used, recent; /* slot in use; second chance for eviction */
    /* facts known */
    bool has_verified, soft; /* soft: verified came from a frame without data */
    bool has_p_ack, has_s_ack, has_s_window, has_released, has_released_ack;
    bool has_p_isn, has_s_isn, need_s_syn;
    bool has_scale, has_guest_scale, has_edge;
    bool has_s_urgent;
    bool p_window_syn, s_window_syn; /* the window stood in a SYN, where it is never scaled */
    bool told;                       /* CMP_FLOW emitted in this epoch */
    bool lost;                       /* diverged or no room: waits for the epoch's end */
    uint8_t scale, guest_scale;      /* shift of the guest's window; as offered in its SYN */
    uint16_t p_window, s_window, released_window;
    uint32_t verified, p_end, p_ack, s_ack;
    uint32_t released_end, released_ack, released_edge;
    uint32_t p_isn, s_isn, s_urgent;
    uint32_t p_signature, s_signature, verified_signature;
    struct list p_todo, p_done, s_todo, s_done, p_rst, s_rst, s_early;
    struct sack_set p_sack, s_sack;
};

struct reassembly {
    bool used;
    uint8_t side, tos;
    uint32_t pieces, have, total; /* total: 0 until the last piece is in */
    uint64_t number;              /* in the order of their first pieces */
    struct datagram_head head;    /* addresses, tags, protocol; rest holds the fragment id */
    struct list list;             /* by offset */
    struct item *leader;          /* the piece that came first */
};

struct cmp {
    struct cmp_limits limits;
    cmp_emit_fn *emit;
    void *arg;
    struct cmp_action action; /* the one being emitted */

    uint64_t now_us, start_us;   /* newest time seen; when the gate last opened */
    uint64_t present, committed; /* epoch running; newest one acknowledged */
    uint64_t wanted;             /* epoch for which CMP_CHECKPOINT was emitted */
    bool hold, rerun, heard;     /* heard: a secondary frame of the present epoch came */
    bool missed;                 /* see cmp_missed */
    bool blind;                  /* nothing is compared */
    bool forget;                 /* ... but will be behind the next cut */
    bool has_lag;
    uint64_t lag_us, lag_var_us;
    uint64_t cut_us, checkpoint_us; /* last cut; smoothed time from a cut to its gate's opening */

    struct flow *flows, **flow_heads;
    uint32_t flow_mask, flows_fresh, clock, flows_busy;
    struct flow *flows_free; /* by hash_next */

    struct item *items, *items_free[2]; /* by side */
    struct fifo p_fifo, s_tcp, s_must, s_surplus, s_future;
    uint32_t p_waiting;  /* primary items of epochs before the present one */
    enum ctl_class class; /* of the frame being handled */
    struct item *fresh;  /* the item of the frame being handled, NULL once it is gone */
    struct item *cursor; /* of the walk over p_fifo; moves on when its item goes */

    struct chunk **slabs, *chunks_free;
    uint32_t slabs_count, slabs_max, chunks_used, chunks_made, chunks_max;

    struct list *buckets[2]; /* by side */
    uint32_t bucket_mask;

    struct reassembly reassemblies[REASSEMBLIES_MAX];
    uint64_t reassemblies_begun;
    uint32_t reassemblies_used;
    uint8_t *assembly; /* 64 KiB: a packet put together */
    uint8_t *replay;   /* REMUS_PACKET_MAX: a frame of s_future */

    struct cmp_stats stats;
};

/* ---- compare.c ------------------------------------------------------------------------------- */

/* Whether comparison may release: not held, and every earlier epoch is acknowledged. */
static inline bool gate_open(const struct cmp *c)
{
    return !c->hold && !c->blind && c->committed + 1 >= c->present;
}

/* A primary item in p_fifo, in no list; NULL: the table is full and the id has been dropped. */
struct item *primary_new(struct cmp *c, uint64_t id, bool gso);
/* A secondary item in fifo, in no list; NULL: no room even after surplus went. */
struct item *secondary_new(struct cmp *c, uint64_t id, struct fifo *fifo);
void item_free(struct cmp *c, struct item *it);
/* Out of its list, copies gone: it waits for the end of its epoch. */
void primary_wait(struct cmp *c, struct item *it);
/* Emits, counts, frees.  type: CMP_RELEASE...; the action's other fields are the caller's. */
void primary_release(struct cmp *c, struct item *it, enum cmp_action_type type);
void matched(struct cmp *c, uint64_t id);
/* Ends the epoch, once. key: the flow that is the reason, NULL if a limit is; the rest: a text for
 * the log, without the flow. */
void want_checkpoint(struct cmp *c, enum ctl_why why, enum ctl_class class,
                     const struct packet_key *key, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* place: whose list it is; f: the flow, for PLACE_FLOW; before == NULL: at the end. */
void list_insert(struct cmp *c, enum place place, struct flow *f, struct list *list,
                 struct item *it, struct item *before);
void list_remove(struct cmp *c, struct item *it);

/* Copies the data from offset `from` on.  -ENOSPC: bytes_max; the item is unchanged then. */
int item_keep(struct cmp *c, struct item *it, uint32_t from);
/* Gives back chunks whose bytes all lie below offset. */
void item_trim(struct cmp *c, struct item *it, uint32_t offset);
void item_forget(struct cmp *c, struct item *it);
/* Contiguous data at offset, offset < bytes; returns how much, at least 1. */
uint32_t item_span(const struct item *it, uint32_t offset, const uint8_t **data);
/* Compares count bytes; returns how many are equal before the first difference. */
uint32_t item_compare(const struct item *a, uint32_t a_offset, const struct item *b,
                      uint32_t b_offset, uint32_t count);

/* NULL: not there, or (create) every flow is busy. */
struct flow *flow_get(struct cmp *c, const struct packet_key *key, bool create);

/* ---- compare_tcp.c --------------------------------------------------------------------------- */

void tcp_primary(struct cmp *c, const struct packet *p, const uint8_t *frame, uint64_t id,
                 bool gso);
void tcp_secondary(struct cmp *c, const struct packet *p, const uint8_t *frame, uint64_t id);
void tcp_input(struct cmp *c, const struct packet *p);
/* Compares and releases what can be. */
void tcp_run(struct cmp *c, struct flow *f);
/* A flow of an earlier epoch: both guests became equal at the checkpoint. */
void tcp_rebase(struct flow *f);

/* ---- compare_datagram.c ---------------------------------------------------------------------- */

void datagram_primary(struct cmp *c, const struct packet *p, const uint8_t *frame, uint64_t id,
                      bool gso);
void datagram_secondary(struct cmp *c, const struct packet *p, const uint8_t *frame, uint64_t id);
/* Fills head from a packet; returns the offset in frame where the data to be compared begins.
 * *hash_body: whether equal packets are to be found by their data too. */
uint32_t datagram_head_fill(struct datagram_head *head, const struct packet *p,
                            const uint8_t *frame, bool *hash_body);
/* A secondary's packet, with all of its fragments: none of them may outlive it. */
void datagram_free(struct cmp *c, struct item *it);
/* An item with head, pieces, ext and bytes set, in no list: looks for its partner; where there is
 * none it stays, with a copy of its data.  May free it. */
void datagram_place(struct cmp *c, struct item *it, bool hash_body);
/* Tries again to find the partner of a primary item that is in its bucket. */
void datagram_run(struct cmp *c, struct item *it);

/* ---- reassembly.c ---------------------------------------------------------------------------- */

/* it: a fresh item without data, of either side; may free it. */
void reassembly_add(struct cmp *c, struct item *it, const struct packet *p, const uint8_t *frame);
/* Forgets one packet, its pieces being freed (secondary) or left waiting (primary). */
void reassembly_drop(struct cmp *c, struct reassembly *r);

#endif /* REMUS_COMPARE_PRIVATE_H */
