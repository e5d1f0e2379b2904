/*
 * sim.h: a world in which both cores of a protection session run, from one seed.
 *
 *      client (inputs, what the world saw)
 *        |
 *    [proxy] primary guest     link, two directions     secondary guest (shadow backend)
 *        primary node  =====  packet channel, two  =====  secondary node
 *               disk   =====  disk channel         =====  disk and what lies over it
 *                  \                                   /
 *                    ---------- arbiter --------------
 *
 * One event is taken from the queue per step, and every invariant of the architecture is looked at
 * after every step (sim_check.c).  Nothing here reads a clock or the environment.
 *
 * The arbiter is a perfect oracle: it grants to one side only, and a grant to the secondary means
 * that the primary is out, either because its host was switched off (ORACLE_POWER) or because
 * the time that the primary may trust its lease is over (ORACLE_LEASE).  Arbitration "none" is
 * not modelled: with it, a cut link between two living hosts makes two active guests,
 * and no protocol can prevent that.
 */
#ifndef SIM_H
#define SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "tools/libxl/remus_core.h"
#include "tools/remus/blkview.h"

#define PAGES           8u     /* of a guest: few, so that every one is dirtied now and then */
#define RX_ROOM         16u
#define QUEUE_ROOM      128u
#define OUTS_ROOM       256u   /* secondary's outputs of one epoch that the proxy keeps */
#define SNAPS           8u
#define SIM_SECTORS     64u    /* of the disk */
#define NEVER           UINT64_MAX
#define MS              1000u

/* ---- Deliberate bugs, to see that the checks find them -------------------------------------- */

enum sim_break {
    BREAK_NONE,
    BREAK_RELEASE_BEFORE_ACK,    /* output leaves when the epoch's bytes are written */
    BREAK_NO_HOLD,               /* a lost peer does not hold output */
    BREAK_PARTIAL_APPLY,         /* pages go into the secondary's guest as they arrive */
    BREAK_FIRST_EPOCH_FREE,      /* no arbitration as long as nothing was acknowledged */
    BREAK_NO_RESUME,             /* a checkpoint that is given up leaves the guest stopped */
    BREAK_NO_ECHO,               /* the primary trusts what it hears, not what was echoed */
    BREAK_LATE_SUSPEND,          /* a guest that suspends after the cancel stays so */
    BREAK_CLOCK_STOPS,           /* time away is not noticed */
    BREAK_PROMISE,               /* the secondary announces more patience than it has */
    BREAK_STOP_IGNORED,          /* the secondary answers STOP and stays ready to take over */
    BREAK_BITMAP_LOST,           /* an epoch goes on after its dirty bitmap was consumed */
    BREAK_NO_COMPARE,            /* any output of the secondary releases the primary's */
    BREAK_ACK_EARLY,             /* ACK before the epoch is complete */
    BREAK_DISK_EARLY,            /* ... before what was written to the disk is there */
    BREAK_DISK_COMMIT_ALL,       /* a checkpoint commits what the primary wrote after it, too */
    BREAK_DISK_OVERLAY,          /* the copy writes to its disk */
    BREAK_COUNT
};
extern const char *const sim_break_names[BREAK_COUNT];

/* ---- Guests --------------------------------------------------------------------------------- */

/* Outputs form a tree: the history of a guest is the path from its newest output to the root. */
struct output { uint32_t parent, index; uint64_t content, chain, inputs; };

struct guest {
    uint64_t page[PAGES];
    uint32_t dirty;              /* bit per page */
    uint64_t inputs;             /* processed so far: the next that is accepted */
    uint32_t newest;             /* output; 0 is the root */
    uint64_t rx[RX_ROOM];        /* in the ring while the guest is stopped */
    unsigned int rx_count;
    uint64_t wrote[SIM_SECTORS]; /* what it knows of its disk */
};

struct snapshot {
    struct guest guest;
    uint32_t carried;
    uint64_t epoch, disk_epoch;
    uint16_t mode;               /* of the epoch that follows */
};

/* ---- Events --------------------------------------------------------------------------------- */

enum sim_kind {
    K_CLIENT, K_NOISE, K_FAULT,
    K_LINK,                      /* a frame, or the end of the connection, reaches .node */
    K_PACKET,                    /* the same on the packet channel */
    K_DISK,                      /* something of the primary's disk reaches the secondary */
    K_MERGE,                     /* the secondary's disk gets some of what lies over it */
    K_ANSWER,                    /* an action of .node is done */
    K_SUSPEND,                   /* the guest suspends */
    K_CHUNK,                     /* the sender of an epoch goes on */
    K_DEADLINE,                  /* a held output waits for its partner for too long */
    K_ARBITER,
    K_SUPERVISOR,                /* what the process above a dead coordinator does */
    K_MODE,                      /* an operator wants another mode */
};

enum packet_kind { PACKET_INPUT, PACKET_OUTPUT, PACKET_EOF };
enum disk_kind { DISK_WRITE, DISK_EPOCH };

struct sim_event {
    uint64_t at, order;
    uint8_t kind, node;
    uint32_t generation;
    struct remus_event event;    /* K_LINK, K_ANSWER, K_ARBITER */
    uint64_t a, b, c;            /* kind's own */
};

/* ---- The two hosts -------------------------------------------------------------------------- */

struct node {
    struct remus_core core;
    const char *name;
    bool host_dead, coordinator_dead, daemon_dead, finished, link_open;
    uint64_t frozen_until, wake_at, clock_skew_us;
    uint64_t heard_heartbeat;    /* newest sent_us of the peer, to be echoed */
    struct guest guest;
    bool domain, running;        /* exists; not suspended and not paused */
    bool open;                   /* secondary: output goes to the world */
    bool torn;                   /* secondary: the guest is neither one epoch nor the other */
    bool ended;                  /* the guest ended by itself */
    bool hung;                   /* it read a request to suspend, and does nothing any more */
    bool destroyed;
    uint64_t stopped_since;
    uint32_t operation, copying, suspending, sending, applying; /* generations, to give up */
    bool suspend_pending;
    bool not_resumed;            /* for BREAK_NO_RESUME and BREAK_ACK_EARLY */
    uint64_t acked_early;
    /* secondary */
    uint64_t mirror[PAGES];
    uint64_t queue_epoch[QUEUE_ROOM], queue_input[QUEUE_ROOM]; /* copied input that waits */
    unsigned int queued;
    uint64_t complete;           /* newest epoch that is whole in memory */
};

struct direction { uint64_t blocked_until, link_last, packet_last, disk_last; };

/* See sim_disk.c. */
struct sim_disk {
    bool has;
    uint64_t slow_us;            /* the secondary's, to take a write */
    bool replicates, staged;     /* primary */
    uint64_t epoch;              /* that runs */
    /* secondary */
    uint64_t secondary[SIM_SECTORS], store[BLKVIEW_LAYERS][SIM_SECTORS];
    struct blkview *view;
    bool direct;                 /* no epoch yet: writes go to the disk */
    uint64_t here;               /* the newest that has ended */
    uint64_t received;           /* epoch whose memory is here, and not yet its disk's writes */
    bool changed;                /* all of what is read from it may be something else */
    uint32_t touched;            /* ... some of it: any so many sectors are looked at */
    unsigned int waits;
    bool merging;
    uint32_t merge_at;
    struct blkview_piece run;
};

struct proxy {
    bool protects, held, input_stopped, wanted;
    const struct replication_mode *mode; /* of the epoch that runs */
    uint64_t epoch;
    uint64_t cut[SNAPS];         /* outputs of epoch e have an index below cut[e % SNAPS] */
    uint64_t safe, released;     /* indices below */
    bool partner[OUTS_ROOM];
    uint64_t partner_index[OUTS_ROOM], partner_content[OUTS_ROOM];
    uint64_t queue[QUEUE_ROOM];
    unsigned int queued;
};

struct client { uint64_t made, acked, seen, chain, last_seen_at; };

enum oracle { ORACLE_POWER, ORACLE_LEASE };

struct fault { uint8_t type, node, state; uint64_t at, value; bool fired; };

#define FAULTS_MAX 4u

struct world {
    uint64_t seed, random, now, order, steps, end_at;
    enum sim_break mutation;
    bool trace, failed;
    char why[240];
    const struct replication_mode *mode;
    uint64_t switch_us;          /* an operator wants another one about as often; 0: never */
    bool keeps;                  /* all modes that are used hold output */
    bool net;
    uint64_t latency_us, jitter_us, client_us, noise_us;
    unsigned int output_of_16;   /* inputs that are answered */
    struct node node[2];         /* by enum remus_role */
    struct direction to[2];      /* towards that role */
    struct proxy proxy;
    struct client client;
    struct sim_disk disk;
    struct snapshot snap[SNAPS];
    enum oracle oracle;
    int winner;                  /* -1: none yet */
    uint64_t arbiter_us;
    struct fault fault[FAULTS_MAX];
    unsigned int faults;
    /* countdowns: how many more of these go wrong */
    unsigned int bad_suspend, bad_drain, bad_stage, bad_cut, bad_resume, bad_apply, bad_send,
        bad_unprotect, bad_takeover, bad_destroy, bad_arbiter, bad_copy, bad_build, bad_ack;
    bool silent_suspend, hang;   /* hang: at the next request to suspend */
    struct output *output;
    uint32_t outputs, output_room;
    struct sim_event *heap;
    unsigned int heap_count, heap_room;
    uint64_t checkpoints, takeovers; /* for the statistics */
};

/* sim_world.c: queue, chance, guests, network */
void world_reset(struct world *w, uint64_t seed);
void world_free(struct world *w);
uint64_t chance(struct world *w, uint64_t below);
uint64_t between(struct world *w, uint64_t low, uint64_t high);
struct sim_event *post(struct world *w, enum sim_kind kind, enum remus_role node, uint64_t at);
bool take(struct world *w, struct sim_event *out);
uint64_t mix(uint64_t a, uint64_t b);
void violation(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
void trace(struct world *w, const char *who, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

bool world_is_kept(const struct world *w);
void guest_input(struct world *w, enum remus_role role, uint64_t input);
void guest_runs(struct world *w, enum remus_role role);
void guest_noise(struct world *w, enum remus_role role);
void client_event(struct world *w);
void proxy_pump(struct world *w);
void proxy_input(struct world *w, uint64_t input);
void proxy_flush_input(struct world *w);
void proxy_cut(struct world *w, uint64_t epoch, uint16_t mode);
void proxy_unprotect(struct world *w);
void proxy_partner(struct world *w, uint64_t epoch, uint64_t index, uint64_t content);
void proxy_deadline(struct world *w, uint64_t epoch, uint64_t index);
bool proxy_open(const struct world *w);
void shadow_queue(struct world *w, uint64_t epoch, uint64_t input);
void shadow_pump(struct world *w);
void shadow_open(struct world *w);

/* sim_disk.c */
void disk_reset(struct world *w);
void disk_read(struct world *w, uint32_t sector, uint32_t sectors, uint64_t *values);
void disk_write(struct world *w, enum remus_role role, uint32_t sector, uint64_t value);
void disk_cut(struct world *w);
void disk_event(struct world *w, const struct sim_event *e);
void disk_complete(struct world *w);
void disk_commit(struct world *w, uint64_t epoch);
void disk_takeover(struct world *w);
void disk_merge(struct world *w);

/* sim_node.c: executors, link, arbiter, faults */
const char *event_name(enum remus_event_type type);
void node_start(struct world *w);
void node_event(struct world *w, enum remus_role role, const struct remus_event *event);
void node_handle(struct world *w, const struct sim_event *e);
void link_close(struct world *w, enum remus_role role);
void packet_send(struct world *w, enum remus_role to, enum packet_kind kind, uint64_t a,
                 uint64_t b, uint64_t c);
void disk_send(struct world *w, enum disk_kind kind, uint64_t epoch, uint64_t sector,
               uint64_t value);
void faults_choose(struct world *w);
void fault_fire(struct world *w, struct fault *f);
void faults_of_state(struct world *w, enum remus_role role);
bool node_thinks(const struct node *n);

/* sim_check.c */
void check_step(struct world *w);
void check_end(struct world *w);
bool is_served(const struct world *w); /* the client got an answer lately */

#endif /* SIM_H */
