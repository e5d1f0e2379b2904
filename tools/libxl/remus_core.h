/*
 * remus_core.h: the decisions of a protection session, both sides, as pure code.
 *
 * No system call, no clock, no randomness: one event comes in with the time, a list of actions
 * comes out.  The coordinators (remus_primary.c, remus_secondary.c) and the simulator (tests/sim)
 * carry the actions out.  remus_core.c opens with the table of states, the events that are legal
 * in each and the next state; an event that a state does not name is a protocol error of the peer
 * or a bug of ours and leads to the state's failure row, never to a crash and never to a stopped
 * guest.
 *
 * What an executor must do:
 *   - Carry out the actions of one list in order.  Call RE_TICK at remus_core_next_us at the
 *     latest.  now_us is CLOCK_MONOTONIC, the clock of remus_heartbeat.sent_us.
 *   - Answer an action with its event once.  RA_SUSPEND_CANCEL and RA_RESUME give up whatever of
 *     the checkpoint is under way, RA_SEND_STOP and RA_UNPROTECT the initial copy, RA_DESTROY an
 *     apply: what was given up is not answered any more, RE_FAILED least of all.  The exception is
 *     the guest, which may suspend after all: RE_SUSPENDED is then answered with RA_RESUME, in
 *     every state, also after RA_FINISH.  RA_RESUME, RA_UNPROTECT, RA_ARBITRATE, RA_TAKEOVER,
 *     RA_DESTROY and RA_INPUT_GO may be given twice.
 *   - Hand every frame over in the order in which it came, and RE_LINK_LOST after the last one:
 *     STOP followed by the end of the connection is no loss.
 *   - Never be away for timeout_ms: an event that comes later than that finds the peer declared
 *     lost, because the peer says the same of us.  Long work belongs in a thread.  The initial
 *     copy and the building of the secondary are excepted.
 *   - Send nothing on the link and read nothing from it after RA_ARBITRATE: close it, no STOP.
 *   - RA_FINISH closes the link in any case, behind what was sent.
 *
 * Epochs are numbered from 1.  Epoch e runs from the application of checkpoint e - 1 (the initial
 * copy for e = 1... the base) to checkpoint e.
 */
#ifndef REMUS_CORE_H
#define REMUS_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "xen/include/public/remus.h"

enum remus_role { REMUS_PRIMARY, REMUS_SECONDARY };

/*
 * What a mode is: a row of data (the table is in remus_core.c).  An epoch runs in one mode from its
 * first instruction to its last; which one, the checkpoint before it says.
 */
struct replication_mode {
    const char *name;
    uint16_t wire;                   /* REMUS_MODE_* */
    bool secondary_runs;             /* COLO: backup executes; others: paused */
    bool compares;                   /* output released by comparison */
    bool holds_output;               /* output waits for its epoch's acknowledgement */
    bool output_triggers;            /* Kemari: an output event asks for the checkpoint */
    bool chooses;                    /* auto: no way of running, but a choice between two others */
    uint32_t period_ms;              /* checkpoint at this age; COLO: maximum age */
    uint32_t rest_ms;                /* least time between two checkpoints */
};
const struct replication_mode *remus_mode_by_name(const char *name);
const struct replication_mode *remus_mode_by_wire(uint16_t wire);

struct remus_core_params {
    enum remus_role role;
    const struct replication_mode *mode;
    uint32_t period_ms, rest_ms;     /* of .mode (auto: of the Remus that it chooses); 0: its own */
    uint32_t heartbeat_ms;           /* default 100 */
    uint32_t timeout_ms;             /* peer silent this long: lost. default 3000 */
    uint32_t timeout_max_ms;         /* of a peer or line that is slow; default 4 x the above */
    uint32_t suspend_timeout_ms;     /* guest does not suspend. default 10000 */
    uint32_t drain_timeout_ms;       /* rings do not drain. default 1000 */
    uint32_t stop_timeout_ms;        /* STOPPED does not come. default 10000 */
    uint32_t ready_timeout_ms;       /* secondary not built. default 120000 */
    bool net;                        /* a proxy takes part */
    bool nowhere;                    /* primary: there is no copy: who acknowledges keeps nothing */
};

enum remus_state {
    /* primary */
    RP_COPY,          /* initial copy under way, guest runs, unprotected */
    RP_BUILD,         /* stream sent, waiting for READY, guest runs, unprotected */
    RP_RUN,           /* epoch runs */
    RP_SUSPEND,       /* guest asked to suspend */
    RP_QUIESCE,       /* guest stopped: input being held, rings drained */
    RP_STAGE,         /* guest stopped: state being copied; ends with the cut */
    RP_RESUME,        /* staged; guest being resumed */
    RP_SEND,          /* guest runs the next epoch, waits for ACK */
    RP_APPLY,         /* acknowledged, secondary applies */
    RP_STOP,          /* orderly end: STOP sent, waiting for STOPPED */
    RP_ARBITRATE,     /* secondary lost: output held until it is known to be out */
    RP_UNPROTECT,     /* secondary is out: rules being removed, held output released */
    RP_DONE,          /* over; see remus_core_result */
    /* secondary */
    RS_COPY,          /* initial copy arriving, domain being built */
    RS_BASE,          /* built; READY sent; waiting for epoch 1, guest paused */
    RS_RUN,           /* guest (COLO) runs or (others) is paused at the newest checkpoint */
    RS_RECEIVE,       /* an epoch is arriving, guest as in RUN */
    RS_APPLY,         /* epoch complete and acknowledged; being applied, guest paused */
    RS_ARBITRATE,     /* primary lost, asking for the right to go on */
    RS_TAKEOVER,      /* granted; opening output */
    RS_ACTIVE,        /* this is the guest now */
    RS_STOP,          /* letting go: destroying the copy */
    RS_DONE,
    REMUS_STATE_COUNT
};
const char *remus_state_name(enum remus_state s);

enum remus_event_type {
    /* either side, from the executor */
    RE_TICK,                /* time only */
    RE_LINK_LOST,           /* the link broke or was closed; text */
    RE_OPERATOR_STOP,       /* Ctrl-C, stop request */
    RE_SWITCH,              /* primary: the copy is to take over, now */
    RE_MODE,                /* primary: go on in this mode; value = REMUS_MODE_* */
    RE_ARBITRATED,          /* value 1: granted; 0: denied */
    RE_FAILED,              /* the action under way failed; text; value = (uint64_t)-errno;
                             * -ESTALE of RA_STAGE: a new secondary is needed */
    RE_DAEMON_LOST,         /* colo-proxyd / colo-shadowd died; text.  The primary also reports a
                             * broken packet channel so; the secondary reports that not at all: the
                             * primary will say STOP on the link, or is lost.  value: 1: colo-blkd,
                             * without which a copy that has not taken over is no use */
    RE_FRAME_ANY,           /* bytes came from the peer: it is alive.  If they were a heartbeat:
                             * value: echo_us, epoch: timeout_us; else 0.  A primary that is never
                             * given an echo counts the secondary as lost: it must know that it
                             * was heard */
    /* from the peer */
    RE_PEER_READY, RE_PEER_ACK, RE_PEER_APPLIED,
    RE_PEER_CHECKPOINT,     /* epoch: in which the difference was seen, 0 unknown; text */
    RE_PEER_STOP,           /* value = remus_stop.reason, epoch = remus_stop.guest_reason; text */
    RE_PEER_STOPPED, RE_PEER_ERROR, /* text */
    RE_PEER_EPOCH_FRAME,    /* pages or a record of .epoch */
    RE_PEER_EPOCH_COMPLETE, /* .epoch arrived whole and its checksum is right; value = REMUS_MODE_*
                             * of the epoch that follows it */
    RE_PEER_STREAM,         /* part of the initial copy */
    RE_PEER_BAD,            /* malformed frame; text */
    /* primary */
    RE_COPY_DONE,           /* initial stream handed to the link */
    RE_CHECKPOINT_WANTED,   /* comparison, or operator; value: 1: output differs, or has no partner;
                             * epoch: in which that was seen, 0 unknown */
    RE_SUSPENDED, RE_INPUT_STOPPED, RE_DRAINED, RE_STAGED, RE_CUT_DONE, RE_RESUMED,
    RE_SUSPEND_TAKEN,       /* RA_SUSPEND_CANCEL came too late: the guest has read the request, and
                             * will suspend, refuse, or hang */
    RE_GUEST_ENDED,         /* by itself: value = SHUTDOWN_* reason, or ~0: domain gone;
                             * the secondary reports its copy in the same way */
    RE_UNPROTECTED,         /* rules removed, held output released */
    /* secondary */
    RE_BUILT, RE_APPLIED, RE_ACTIVE, RE_DESTROYED,
};

struct remus_event {
    enum remus_event_type type;
    uint64_t epoch;
    uint64_t value;
    const char *text;       /* valid during the call */
};

enum remus_action_type {
    /* primary */
    RA_START_COPY,          /* begin the initial copy -> COPY_DONE | FAILED */
    RA_SUSPEND,             /* ask the guest -> SUSPENDED | GUEST_ENDED */
    RA_SUSPEND_CANCEL,      /* withdraw the request; resume if it suspended meanwhile */
    RA_STOP_INPUT,          /* -> INPUT_STOPPED */
    RA_DRAIN,               /* -> DRAINED */
    RA_STAGE,               /* stage .epoch -> STAGED; .value = REMUS_MODE_* of the next epoch */
    RA_CUT,                 /* -> CUT_DONE; .value likewise */
    RA_RESUME,              /* guest runs again -> RESUMED */
    RA_INPUT_GO,            /* input flows again after a checkpoint that was given up */
    RA_SEND_EPOCH,          /* encode and send .epoch; answers come from the peer */
    RA_RELEASE,             /* output of epochs <= .epoch may leave */
    RA_HOLD,                /* release nothing from now on */
    RA_UNPROTECT,           /* release all, remove rules, log-dirty off -> UNPROTECTED; value:
                               enum remus_end as it will be */
    RA_FENCE_AND_STOP,      /* not granted: drop output, stop this guest for good; no answer */
    /* secondary */
    RA_ACK,                 /* send ACK .epoch */
    RA_APPLY,               /* apply .epoch; .value = REMUS_MODE_* from there on: whether the copy
                             * is to run -> APPLIED */
    RA_DROP_PARTIAL,        /* forget an incomplete epoch */
    RA_TAKEOVER,            /* open output, rename, announce -> ACTIVE */
    RA_DESTROY,             /* stop the copy and its backends for good -> DESTROYED; the domain
                             * itself may take until after RA_FINISH */
    /* both */
    RA_SEND_STOP,           /* .value = REMUS_STOP_*, .detail = guest's reason, .text */
    RA_SEND_STOPPED, RA_SEND_ERROR, RA_SEND_HEARTBEAT, RA_SEND_READY,
    RA_SEND_APPLIED,
    RA_ARBITRATE,           /* -> ARBITRATED */
    RA_FINISH,              /* over: close everything; .value = enum remus_end; .text;
                             * .detail = SHUTDOWN_* where the guest ended by itself */
};

enum remus_end {
    REMUS_END_STOPPED,      /* orderly: primary runs unprotected, copy gone */
    REMUS_END_GUEST,        /* the guest ended by itself: .detail = SHUTDOWN_* reason */
    REMUS_END_ALONE,        /* primary: secondary lost, guest runs on unprotected */
    REMUS_END_ACTIVE,       /* secondary: took over; the executor goes on as the guest's backend */
    REMUS_END_FENCED,       /* arbitration denied: this side's guest was stopped */
    REMUS_END_HANDED_OVER,  /* primary: fenced and stopped; the copy was told to take over unasked,
                             * so nobody here may ask the arbiter any more */
    REMUS_END_FAILED,       /* protection could not begin or go on; primary runs unprotected */
};

struct remus_action {
    enum remus_action_type type;
    uint64_t epoch;
    uint64_t value;
    uint64_t detail;
    char text[200];
};

#define REMUS_ACTIONS_MAX 8u
struct remus_actions { unsigned int count; struct remus_action list[REMUS_ACTIONS_MAX]; };

/* In flags: an executor broke the contract, or the core its own table.  Worth a line in the log. */
#define REMUS_CORE_BUG 0x8000u

struct remus_core {          /* plain data: the simulator copies and compares it */
    struct remus_core_params params;
    enum remus_state state;
    uint64_t epoch;          /* that runs (primary); that was applied last + 1 (secondary) */
    uint64_t acked, applied; /* newest */
    uint64_t now_us, entered_us, epoch_began_us, heard_us, heartbeat_us, checkpoint_done_us;
    uint64_t lost_us;                /* when the peer counted as lost; valid after that */
    bool want_checkpoint, want_switch, guest_stopped, output_held_for_peer;
    const struct replication_mode *mode;  /* of the epoch that runs; never one that chooses */
    bool chooses;            /* .mode is chosen by what divergence costs (see remus_core.c) */
    /* private additions of remus_core.c below this line */
    uint64_t asked_us;       /* the guest was asked to suspend for the checkpoint under way */
    uint64_t stopped_us, rested_us; /* guest stopped since; has run again for as long at */
    uint64_t pending_epoch;  /* primary: the epoch whose checkpoint is under way */
    const struct replication_mode *wanted, *next; /* as asked for; of the checkpoint under way */
    struct {                 /* what .chooses goes by */
        uint64_t since_us;   /* this mode, or this window, began */
        uint32_t diverged;   /* checkpoints in it that comparison asked for */
        uint64_t cycle_us;   /* smoothed: from a request to suspend to APPLIED */
        uint32_t stay_ms;    /* how long Remus is stayed with; 0: COLO has paid since */
    } choice;
    uint64_t guest_reason;
    enum remus_end end;
    char reason[200];        /* why the session ends, a sentence; the first reason stays */
    uint32_t flags;          /* REMUS_CORE_BUG and what remus_core.c keeps for itself */
    uint32_t stop_reason;    /* REMUS_STOP_* for the peer */
    uint32_t checkpoint_tries, resume_tries, again_tries;
    uint32_t taken_try;     /* attempt whose request the guest has read; 0: none */
    uint64_t echo_us;        /* newest time of ours that the peer is known to have heard; 0: none */
    uint64_t lease_us;       /* primary: until then the secondary trusts us, for what it promised */
    uint64_t trust_us;       /* the peer is not lost before this, whatever .timeout is since */
    uint64_t gap_us[2], gap_since_us; /* longest silence of this half window, of the one before */
    uint64_t retry_us;       /* no checkpoint before this */
    uint64_t resume_us;      /* RA_RESUME is given again then; 0: not armed */
    uint64_t again_us;       /* the state's own action is given again then; 0: not armed */
};

int remus_core_init(struct remus_core *c, const struct remus_core_params *params, uint64_t now_us,
                    struct remus_actions *out);
void remus_core_event(struct remus_core *c, uint64_t now_us, const struct remus_event *event,
                      struct remus_actions *out);
/* When RE_TICK is due at the latest. */
uint64_t remus_core_next_us(const struct remus_core *c);
/* As old as the mode that runs lets its checkpoint get. */
uint32_t remus_core_period_ms(const struct remus_core *c);
/*
 * The silence after which the peer counts as lost: three times the longest between two signs of
 * life in the last 10 to 20 times timeout_ms, within the limits of params.  What heartbeats
 * announce.
 */
uint64_t remus_core_timeout_us(const struct remus_core *c);
/*
 * Primary: until when output may leave, by what is known of the secondary now: it counts us as lost
 * no sooner.  0: that is not for time to say (nothing is protected yet, or the arbiter decides).
 */
uint64_t remus_core_lease_us(const struct remus_core *c);

#endif /* REMUS_CORE_H */
