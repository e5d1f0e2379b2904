/*
 * remus_core.c: the decisions of a protection session, both sides, as pure code.
 *
 * The file opens with everything there is to know: which states there are, which of them talk to
 * the peer, which timers run in them, where they may lead (state_info), and what each event does in
 * each state (rows, with one row of defaults per role).  The steps that the tables name follow.
 * enter() is the only function that changes the state.
 *
 * Timers, all derived from the time that comes with an event (remus_core_next_us tells when):
 *   heartbeat    every heartbeat_ms where the link is in use: RA_SEND_HEARTBEAT
 *   silence      nothing heard for remus_core_timeout_us (ready_timeout_ms before protection): peer
 *                lost.  The primary also counts the peer as lost when what the secondary promised
 *                with its newest echo is over: it may release output only while the secondary is
 *                sure to trust it.
 *   deadline     of the state, see state_info: suspend, drain, stage, acknowledge, apply, stop
 *   checkpoint   RP_RUN: asked for or as old as the mode lets it get, not before its rest and a
 *                retry's delay, and
 *                not before the guest ran for as long as it was stopped for the last one: a guest
 *                whose output always differs keeps half of its time
 *   resume       a guest that was told to resume and has not answered is told again
 *   again        an action that nothing can replace (unprotect, arbitrate, take over, destroy)
 *                failed and is given again; unprotect also if it is not answered
 *
 * Three rules stand above the tables.  Silence is judged before the event that ends it: a side
 * that was itself away (frozen host, stopped process) for the timeout must not act on what lies in
 * its socket, because the peer may have been granted the guest meanwhile.  After the peer counts
 * as lost nothing that it says is listened to, with the exceptions named in peer_is_mute().  And
 * RE_SUSPENDED that nobody waits for any more is answered with RA_RESUME in every state.
 */
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "tools/libxl/remus_core.h"

#define RESUME_RETRY_MS      250u  /* RA_RESUME failed */
#define RESUME_SILENT_MS     1000u /* RA_RESUME was not answered */
#define RESUME_TRIES         20u
#define CHECKPOINT_TRIES     4u    /* one attempt and three retries */
#define CHECKPOINT_RETRY_MS  500u  /* times the number of failed attempts */
#define AGAIN_MS             1000u
#define UNPROTECT_TRIES      10u
#define APPLY_TRIES          3u
#define GAPS                 3u      /* silence is loss at so many of its longest */
#define GAP_WINDOW           10u     /* times timeout_ms */

/* The mode that chooses (p_choose). */
#define AUTO_WINDOW_MS       10000u  /* of COLO, after which the count begins again */
#define AUTO_LEAST           5u      /* differences that it is judged by */
#define AUTO_STAY_MS         30000u  /* Remus, for the first time */
#define AUTO_STAY_MAX_MS     600000u

/* core->flags */
#define F_PEER_MAY_RUN   0x0001u   /* primary: epoch 1 was sent, a secondary may become active */
#define F_LOST           0x0002u   /* the peer counts as lost */
#define F_LET_GO         0x0004u   /* primary: the peer promised that its copy never opens output */
#define F_ENDING         0x0008u   /* the session is to end once the guest runs */
#define F_GIVEN_UP       0x0010u   /* primary: this checkpoint is not to be sent */
#define F_INPUT_HELD     0x0020u
#define F_INPUT_STOPPED  0x0040u
#define F_STAGED         0x0080u
#define F_READY_EARLY    0x0100u   /* READY was seen before our own COPY_DONE */
#define F_GUEST_ENDED    0x0200u
#define F_UNPROTECTED    0x0400u
#define F_FENCED         0x0800u
#define F_DIVERGED       0x1000u   /* primary: comparison asked for the checkpoint of this epoch */
#define F_BUG            REMUS_CORE_BUG

#define EVENT_COUNT (RE_DESTROYED + 1)

typedef void step_fn(struct remus_core *c, const struct remus_event *e,
                     struct remus_actions *out);

/* ---- Modes ---------------------------------------------------------------------------------- */

enum { MODE_COLO, MODE_REMUS };     /* in the table, for the mode that chooses */

static const struct replication_mode modes[] = {
    [MODE_COLO] = { .name = "colo", .wire = REMUS_MODE_COLO, .secondary_runs = true,
                    .compares = true, .holds_output = true, .period_ms = 10000, .rest_ms = 10 },
    [MODE_REMUS] = { .name = "remus", .wire = REMUS_MODE_REMUS, .holds_output = true,
                     .period_ms = 200 },
    { .name = "kemari", .wire = REMUS_MODE_KEMARI, .holds_output = true,
      .output_triggers = true, .period_ms = 1000 },
    { .name = "curling", .wire = REMUS_MODE_CURLING, .period_ms = 1, .rest_ms = 20 },
    { .name = "auto", .wire = REMUS_MODE_AUTO, .chooses = true },
};

const struct replication_mode *remus_mode_by_name(const char *name)
{
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (!strcmp(modes[i].name, name)) {
            return &modes[i];
        }
    }
    return NULL;
}

const struct replication_mode *remus_mode_by_wire(uint16_t wire)
{
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (modes[i].wire == wire) {
            return &modes[i];
        }
    }
    return NULL;
}

/* ---- The table of states -------------------------------------------------------------------- */

/* Nothing is at stake in the initial copy but time: a busy receiver gets more of it. */
#define COPY_TIMEOUTS 4u

enum link_use {
    LINK_NONE,     /* not in use: no heartbeats, silence means nothing */
    LINK_COPY,     /* P: heartbeats; silence for COPY_TIMEOUTS times timeout_ms is a loss */
    LINK_BUILD,    /* before protection: heartbeats, silence for ready_timeout_ms is a loss */
    LINK_LIVE,     /* silence for timeout_ms is a loss */
    LINK_STOP,     /* silence for timeout_ms holds output, only the deadline is a loss */
};

struct state_info {
    const char *name;
    enum remus_role role;
    enum link_use link;
    size_t deadline;        /* offset in remus_core_params of the limit of this state; 0: none */
    step_fn *on_deadline;
    uint64_t next;          /* legal next states, one bit each */
};

#define TO(state) (1ull << (state))
#define LIMIT(field) offsetof(struct remus_core_params, field)

static step_fn p_suspend_timeout, p_drain_timeout, p_stage_timeout, p_peer_slow, p_stop_timeout,
    s_apply_timeout, s_destroy_timeout;

/* Where the primary goes when the session ends: with a running guest, or, RP_DONE, with one that
 * cannot be brought back to running (p_cannot_resume). */
#define P_ENDS (TO(RP_STOP) | TO(RP_ARBITRATE) | TO(RP_UNPROTECT) | TO(RP_DONE))

static const struct state_info state_info[REMUS_STATE_COUNT] = {
    [RP_COPY] = { "copy", REMUS_PRIMARY, LINK_COPY, 0, NULL,
                  TO(RP_BUILD) | TO(RP_RUN) | P_ENDS },
    [RP_BUILD] = { "build", REMUS_PRIMARY, LINK_BUILD, LIMIT(ready_timeout_ms), p_peer_slow,
                   TO(RP_RUN) | P_ENDS },
    [RP_RUN] = { "run", REMUS_PRIMARY, LINK_LIVE, 0, NULL, TO(RP_SUSPEND) | P_ENDS },
    [RP_SUSPEND] = { "suspend", REMUS_PRIMARY, LINK_LIVE, LIMIT(suspend_timeout_ms),
                     p_suspend_timeout, TO(RP_QUIESCE) | TO(RP_RUN) | P_ENDS },
    [RP_QUIESCE] = { "quiesce", REMUS_PRIMARY, LINK_LIVE, LIMIT(drain_timeout_ms),
                     p_drain_timeout, TO(RP_STAGE) | TO(RP_RESUME) | P_ENDS },
    [RP_STAGE] = { "stage", REMUS_PRIMARY, LINK_LIVE, LIMIT(suspend_timeout_ms),
                   p_stage_timeout, TO(RP_RESUME) | P_ENDS },
    [RP_RESUME] = { "resume", REMUS_PRIMARY, LINK_LIVE, 0, NULL,
                    TO(RP_SEND) | TO(RP_RUN) | P_ENDS },
    [RP_SEND] = { "send", REMUS_PRIMARY, LINK_LIVE, LIMIT(ready_timeout_ms), p_peer_slow,
                  TO(RP_APPLY) | P_ENDS },
    [RP_APPLY] = { "apply", REMUS_PRIMARY, LINK_LIVE, LIMIT(ready_timeout_ms), p_peer_slow,
                   TO(RP_RUN) | P_ENDS },
    [RP_STOP] = { "stop", REMUS_PRIMARY, LINK_STOP, LIMIT(stop_timeout_ms), p_stop_timeout,
                  TO(RP_ARBITRATE) | TO(RP_UNPROTECT) | TO(RP_DONE) },
    [RP_ARBITRATE] = { "arbitrate", REMUS_PRIMARY, LINK_NONE, 0, NULL,
                       TO(RP_UNPROTECT) | TO(RP_DONE) },
    [RP_UNPROTECT] = { "unprotect", REMUS_PRIMARY, LINK_NONE, 0, NULL, TO(RP_DONE) },
    [RP_DONE] = { "done", REMUS_PRIMARY, LINK_NONE, 0, NULL, 0 },

    [RS_COPY] = { "receiving copy", REMUS_SECONDARY, LINK_BUILD, 0, NULL,
                  TO(RS_BASE) | TO(RS_STOP) },
    [RS_BASE] = { "base", REMUS_SECONDARY, LINK_LIVE, 0, NULL,
                  TO(RS_RECEIVE) | TO(RS_APPLY) | TO(RS_STOP) },
    [RS_RUN] = { "standing by", REMUS_SECONDARY, LINK_LIVE, 0, NULL,
                 TO(RS_RECEIVE) | TO(RS_APPLY) | TO(RS_ARBITRATE) | TO(RS_TAKEOVER) |
                 TO(RS_STOP) },
    [RS_RECEIVE] = { "receiving epoch", REMUS_SECONDARY, LINK_LIVE, 0, NULL,
                     TO(RS_APPLY) | TO(RS_ARBITRATE) | TO(RS_STOP) },
    [RS_APPLY] = { "applying epoch", REMUS_SECONDARY, LINK_LIVE, LIMIT(ready_timeout_ms),
                   s_apply_timeout, TO(RS_RUN) | TO(RS_ARBITRATE) | TO(RS_STOP) },
    [RS_ARBITRATE] = { "arbitrating", REMUS_SECONDARY, LINK_NONE, 0, NULL,
                       TO(RS_TAKEOVER) | TO(RS_STOP) },
    [RS_TAKEOVER] = { "taking over", REMUS_SECONDARY, LINK_NONE, 0, NULL,
                      TO(RS_ACTIVE) | TO(RS_STOP) },
    [RS_ACTIVE] = { "active", REMUS_SECONDARY, LINK_NONE, 0, NULL, 0 },
    [RS_STOP] = { "letting go", REMUS_SECONDARY, LINK_STOP, LIMIT(stop_timeout_ms),
                  s_destroy_timeout, TO(RS_DONE) },
    [RS_DONE] = { "over", REMUS_SECONDARY, LINK_NONE, 0, NULL, 0 },
};

/* ---- The table of events -------------------------------------------------------------------- */

static step_fn nothing, bug,
    p_copy_done, p_ready_early, p_ready, p_want, p_suspended, p_taken, p_refused, p_input_stopped,
    p_drained,
    p_drain_failed, p_staged, p_stage_failed, p_cut_done, p_resumed, p_resume_failed, p_ack,
    p_ack_stopping, p_applied, p_lost, p_bad, p_unexpected, p_let_go, p_let_go_stopped, p_operator,
    p_daemon, p_failed, p_switch, p_mode,
    p_guest_ended, p_guest_ended_late, p_arbitrated, p_again_later,
    p_unprotected, p_unprotect_failed, p_late_suspended, p_late_resumed,
    s_built, s_frame, s_complete, s_applied, s_apply_failed, s_lost, s_lost_applying,
    s_lost_stopping, s_bad, s_unexpected, s_failed, s_daemon, s_daemon_applying,
    s_daemon_arbitrating, s_operator, s_stop,
    s_error, s_guest_ended, s_arbitrated, s_active, s_again_later, s_destroyed, s_destroy_failed;

/* What an event does where the state itself names nothing. */
static step_fn *const any[2][EVENT_COUNT] = {
    [REMUS_PRIMARY] = {
        [RE_TICK] = nothing,
        [RE_FRAME_ANY] = nothing,           /* life is noted before any step */
        [RE_LINK_LOST] = p_lost,
        [RE_OPERATOR_STOP] = p_operator,
        [RE_SWITCH] = p_switch,
        [RE_MODE] = p_mode,
        [RE_ARBITRATED] = bug,
        [RE_FAILED] = p_failed,
        [RE_DAEMON_LOST] = p_daemon,
        [RE_PEER_READY] = p_unexpected,
        [RE_PEER_ACK] = p_unexpected,
        [RE_PEER_APPLIED] = p_unexpected,
        [RE_PEER_CHECKPOINT] = p_want,
        [RE_PEER_STOP] = p_let_go,
        [RE_PEER_STOPPED] = p_let_go,
        [RE_PEER_ERROR] = p_let_go,
        [RE_PEER_EPOCH_FRAME] = p_unexpected,
        [RE_PEER_EPOCH_COMPLETE] = p_unexpected,
        [RE_PEER_STREAM] = p_unexpected,
        [RE_PEER_BAD] = p_bad,
        [RE_COPY_DONE] = nothing,           /* these five: late, of an action given up */
        [RE_INPUT_STOPPED] = nothing,
        [RE_DRAINED] = nothing,
        [RE_STAGED] = nothing,
        [RE_CUT_DONE] = nothing,
        [RE_CHECKPOINT_WANTED] = p_want,
        [RE_SUSPENDED] = p_late_suspended,
        [RE_SUSPEND_TAKEN] = p_taken,
        [RE_RESUMED] = p_late_resumed,
        [RE_GUEST_ENDED] = p_guest_ended,
        [RE_UNPROTECTED] = bug,
        [RE_BUILT] = bug,
        [RE_APPLIED] = bug,
        [RE_ACTIVE] = bug,
        [RE_DESTROYED] = bug,
    },
    [REMUS_SECONDARY] = {
        [RE_TICK] = nothing,
        [RE_FRAME_ANY] = nothing,
        [RE_LINK_LOST] = s_lost,
        [RE_OPERATOR_STOP] = s_operator,
        [RE_SWITCH] = nothing,              /* these two are the primary's to do */
        [RE_MODE] = nothing,
        [RE_ARBITRATED] = bug,
        [RE_FAILED] = s_failed,
        [RE_DAEMON_LOST] = s_daemon,
        [RE_PEER_READY] = s_unexpected,
        [RE_PEER_ACK] = s_unexpected,
        [RE_PEER_APPLIED] = s_unexpected,
        [RE_PEER_CHECKPOINT] = s_unexpected,
        [RE_PEER_STOP] = s_stop,
        [RE_PEER_STOPPED] = s_unexpected,
        [RE_PEER_ERROR] = s_error,
        [RE_PEER_EPOCH_FRAME] = s_unexpected,
        [RE_PEER_EPOCH_COMPLETE] = s_unexpected,
        [RE_PEER_STREAM] = s_unexpected,
        [RE_PEER_BAD] = s_bad,
        [RE_COPY_DONE] = bug,
        [RE_CHECKPOINT_WANTED] = nothing,   /* the executor tells the primary by itself */
        [RE_SUSPENDED] = bug,
        [RE_SUSPEND_TAKEN] = bug,
        [RE_INPUT_STOPPED] = bug,
        [RE_DRAINED] = bug,
        [RE_STAGED] = bug,
        [RE_CUT_DONE] = bug,
        [RE_RESUMED] = bug,
        [RE_GUEST_ENDED] = s_guest_ended,
        [RE_UNPROTECTED] = bug,
        [RE_BUILT] = nothing,               /* late, of an action given up */
        [RE_APPLIED] = nothing,
        [RE_ACTIVE] = bug,
        [RE_DESTROYED] = bug,
    },
};

static step_fn *const rows[REMUS_STATE_COUNT][EVENT_COUNT] = {
    [RP_COPY] = {
        [RE_COPY_DONE] = p_copy_done,
        [RE_PEER_READY] = p_ready_early,
    },
    [RP_BUILD] = {
        [RE_PEER_READY] = p_ready,
    },
    [RP_SUSPEND] = {
        [RE_SUSPENDED] = p_suspended,
        [RE_FAILED] = p_refused,
    },
    [RP_QUIESCE] = {
        [RE_INPUT_STOPPED] = p_input_stopped,
        [RE_DRAINED] = p_drained,
        [RE_FAILED] = p_drain_failed,
    },
    [RP_STAGE] = {
        [RE_STAGED] = p_staged,
        [RE_CUT_DONE] = p_cut_done,
        [RE_FAILED] = p_stage_failed,
    },
    [RP_RESUME] = {
        [RE_RESUMED] = p_resumed,
        [RE_FAILED] = p_resume_failed,
    },
    [RP_SEND] = {
        [RE_PEER_ACK] = p_ack,
    },
    [RP_APPLY] = {
        [RE_PEER_APPLIED] = p_applied,
    },
    [RP_STOP] = {
        [RE_PEER_ACK] = p_ack_stopping,     /* these three: sent before the peer saw our STOP */
        [RE_PEER_APPLIED] = nothing,
        [RE_PEER_READY] = nothing,
        [RE_PEER_STOPPED] = p_let_go_stopped,
        [RE_FAILED] = p_resume_failed,
        [RE_OPERATOR_STOP] = nothing,       /* it is ending already */
        [RE_DAEMON_LOST] = nothing,
        [RE_GUEST_ENDED] = p_guest_ended_late,
    },
    [RP_ARBITRATE] = {
        [RE_ARBITRATED] = p_arbitrated,
        [RE_FAILED] = p_again_later,
        [RE_LINK_LOST] = nothing,
        [RE_OPERATOR_STOP] = nothing,
        [RE_DAEMON_LOST] = nothing,
        [RE_GUEST_ENDED] = p_guest_ended_late,
    },
    [RP_UNPROTECT] = {
        [RE_UNPROTECTED] = p_unprotected,
        [RE_FAILED] = p_unprotect_failed,
        [RE_LINK_LOST] = nothing,
        [RE_OPERATOR_STOP] = nothing,
        [RE_DAEMON_LOST] = nothing,
        [RE_GUEST_ENDED] = p_guest_ended_late,
        [RE_ARBITRATED] = nothing,          /* asked twice after a failure */
        [RE_PEER_STOP] = nothing,
        [RE_PEER_STOPPED] = nothing,
        [RE_PEER_ERROR] = nothing,
        [RE_PEER_BAD] = nothing,
        [RE_PEER_READY] = nothing,
        [RE_PEER_ACK] = nothing,
        [RE_PEER_APPLIED] = nothing,
    },
    [RP_DONE] = {
        [RE_LINK_LOST] = nothing,
        [RE_OPERATOR_STOP] = nothing,
        [RE_ARBITRATED] = nothing,
        [RE_FAILED] = p_resume_failed,
        [RE_DAEMON_LOST] = nothing,
        [RE_GUEST_ENDED] = nothing,
        [RE_UNPROTECTED] = nothing,
        [RE_PEER_STOP] = nothing,
        [RE_PEER_STOPPED] = nothing,
        [RE_PEER_ERROR] = nothing,
        [RE_PEER_BAD] = nothing,
        [RE_PEER_READY] = nothing,
        [RE_PEER_ACK] = nothing,
        [RE_PEER_APPLIED] = nothing,
    },

    [RS_COPY] = {
        [RE_PEER_STREAM] = nothing,
        [RE_BUILT] = s_built,
    },
    [RS_BASE] = {
        [RE_PEER_EPOCH_FRAME] = s_frame,
        [RE_PEER_EPOCH_COMPLETE] = s_complete,
    },
    [RS_RUN] = {
        [RE_PEER_EPOCH_FRAME] = s_frame,
        [RE_PEER_EPOCH_COMPLETE] = s_complete,
    },
    [RS_RECEIVE] = {
        [RE_PEER_EPOCH_FRAME] = s_frame,
        [RE_PEER_EPOCH_COMPLETE] = s_complete,
    },
    [RS_APPLY] = {
        [RE_APPLIED] = s_applied,
        [RE_FAILED] = s_apply_failed,
        [RE_LINK_LOST] = s_lost_applying,
        [RE_DAEMON_LOST] = s_daemon_applying,
    },
    [RS_ARBITRATE] = {
        [RE_ARBITRATED] = s_arbitrated,
        [RE_FAILED] = s_again_later,
        [RE_LINK_LOST] = nothing,
        [RE_OPERATOR_STOP] = nothing,       /* this may be the only guest that is left */
        [RE_DAEMON_LOST] = s_daemon_arbitrating,
    },
    [RS_TAKEOVER] = {
        [RE_ACTIVE] = s_active,
        [RE_FAILED] = s_again_later,
        [RE_ARBITRATED] = nothing,
        [RE_LINK_LOST] = nothing,
        [RE_OPERATOR_STOP] = nothing,
        [RE_DAEMON_LOST] = nothing,
    },
    [RS_ACTIVE] = {
        [RE_LINK_LOST] = nothing,
        [RE_OPERATOR_STOP] = nothing,
        [RE_ARBITRATED] = nothing,
        [RE_FAILED] = nothing,
        [RE_DAEMON_LOST] = nothing,
        [RE_GUEST_ENDED] = nothing,
        [RE_ACTIVE] = nothing,
    },
    [RS_STOP] = {
        [RE_DESTROYED] = s_destroyed,
        [RE_FAILED] = s_destroy_failed,
        [RE_LINK_LOST] = s_lost_stopping,
        [RE_ARBITRATED] = nothing,
        [RE_ACTIVE] = nothing,
        [RE_OPERATOR_STOP] = nothing,
        [RE_DAEMON_LOST] = nothing,
        [RE_GUEST_ENDED] = nothing,
        [RE_PEER_STOP] = nothing,           /* both may stop at once */
        [RE_PEER_STOPPED] = nothing,
        [RE_PEER_ERROR] = nothing,
        [RE_PEER_BAD] = nothing,
        [RE_PEER_STREAM] = nothing,         /* sent before the peer saw our STOP or ERROR */
        [RE_PEER_EPOCH_FRAME] = nothing,
        [RE_PEER_EPOCH_COMPLETE] = nothing,
    },
    [RS_DONE] = {
        [RE_LINK_LOST] = nothing,
        [RE_OPERATOR_STOP] = nothing,
        [RE_ARBITRATED] = nothing,
        [RE_FAILED] = nothing,
        [RE_DAEMON_LOST] = nothing,
        [RE_GUEST_ENDED] = nothing,
        [RE_DESTROYED] = nothing,
        [RE_PEER_STOP] = nothing,
        [RE_PEER_STOPPED] = nothing,
        [RE_PEER_ERROR] = nothing,
        [RE_PEER_BAD] = nothing,
        [RE_PEER_STREAM] = nothing,
        [RE_PEER_EPOCH_FRAME] = nothing,
        [RE_PEER_EPOCH_COMPLETE] = nothing,
    },
};

/* ---- Small helpers -------------------------------------------------------------------------- */

static uint64_t ms_to_us(uint32_t ms)
{
    return (uint64_t)ms * 1000u;
}

/* Time sums that saturate: a limit of "for ever" must not wrap into the past. */
static uint64_t after(uint64_t us, uint64_t later_us)
{
    return us > UINT64_MAX - later_us ? UINT64_MAX : us + later_us;
}

static bool has(const struct remus_core *c, uint32_t flags)
{
    return (c->flags & flags) == flags;
}

static void lose(struct remus_core *c)
{
    c->lost_us = has(c, F_LOST) ? c->lost_us : c->now_us;
    c->flags |= F_LOST;
}

static void enter(struct remus_core *c, enum remus_state next)
{
    if (!(state_info[c->state].next & TO(next))) {
        c->flags |= F_BUG;
    }
    c->state = next;
    c->entered_us = c->now_us;
    c->again_us = 0;
    c->again_tries = 0;
}

static struct remus_action *act(struct remus_actions *out, enum remus_action_type type,
                                uint64_t epoch)
{
    struct remus_action *a;

    /* The longest list that the tables can give is six; the tests keep it so. */
    a = &out->list[out->count < REMUS_ACTIONS_MAX ? out->count++ : REMUS_ACTIONS_MAX - 1];
    a->type = type;
    a->epoch = epoch;
    a->value = 0;
    a->detail = 0;
    a->text[0] = '\0';
    return a;
}

static void act_text(struct remus_actions *out, enum remus_action_type type, const char *text)
{
    struct remus_action *a = act(out, type, 0);

    snprintf(a->text, sizeof(a->text), "%s", text);
}

/* The first reason is the one that the user wants to know; what follows from it is not kept. */
__attribute__((format(printf, 2, 3)))
static void because(struct remus_core *c, const char *format, ...)
{
    va_list args;

    if (c->reason[0]) {
        return;
    }
    va_start(args, format);
    vsnprintf(c->reason, sizeof(c->reason), format, args);
    va_end(args);
}

static const char *text_of(const struct remus_event *e, const char *otherwise)
{
    return e->text && e->text[0] ? e->text : otherwise;
}

static void nothing(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)c;
    (void)e;
    (void)out;
}

/* An answer to a question that this state never asks: ignored, but the tests look for the flag. */
static void bug(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    (void)out;
    c->flags |= F_BUG;
}

static void finish(struct remus_core *c, enum remus_end end, struct remus_actions *out)
{
    struct remus_action *a;

    c->end = end;
    enter(c, end == REMUS_END_ACTIVE ? RS_ACTIVE :
             c->params.role == REMUS_PRIMARY ? RP_DONE : RS_DONE);
    a = act(out, RA_FINISH, c->params.role == REMUS_PRIMARY ? c->acked : c->applied);
    a->value = end;
    a->detail = has(c, F_GUEST_ENDED) ? c->guest_reason : 0;
    snprintf(a->text, sizeof(a->text), "%s", c->reason);
}

/* ---- Primary: the ways out ------------------------------------------------------------------ */

static void p_resume_guest(struct remus_core *c, struct remus_actions *out)
{
    act(out, RA_RESUME, 0);
    c->resume_us = after(c->now_us, ms_to_us(RESUME_SILENT_MS));
}

static void p_give_input_back(struct remus_core *c, struct remus_actions *out)
{
    if (has(c, F_INPUT_HELD)) {
        act(out, RA_INPUT_GO, 0);
        c->flags &= ~F_INPUT_HELD;
    }
}

static enum remus_end p_outcome(const struct remus_core *c)
{
    if (has(c, F_GUEST_ENDED)) {
        return REMUS_END_GUEST;
    }
    if (c->guest_stopped) {
        return REMUS_END_FAILED;
    }
    if (has(c, F_LOST) && has(c, F_PEER_MAY_RUN)) {
        return REMUS_END_ALONE;
    }
    return has(c, F_LOST) || c->stop_reason != REMUS_STOP_OPERATOR ? REMUS_END_FAILED
           : REMUS_END_STOPPED;
}

/* Output is held until this is done: it is given again when it fails or is not answered. */
static void p_unprotect(struct remus_core *c, struct remus_actions *out)
{
    struct remus_action *a = act(out, RA_UNPROTECT, 0);

    a->value = p_outcome(c);
    if (c->state != RP_UNPROTECT) {
        enter(c, RP_UNPROTECT);
    }
    c->again_us = after(c->now_us, ms_to_us(c->params.stop_timeout_ms));
}

/* The guest runs, or has ended: the session can end.  Which way depends on what is known of the
 * peer: it is out; it may be active; or it is there and will be asked. */
static void p_end(struct remus_core *c, struct remus_actions *out)
{
    struct remus_action *a;

    if (has(c, F_LET_GO) || (has(c, F_LOST) && !has(c, F_PEER_MAY_RUN))) {
        p_unprotect(c, out);
    } else if (has(c, F_LOST)) {
        act(out, RA_ARBITRATE, 0);
        enter(c, RP_ARBITRATE);
    } else {
        a = act(out, RA_SEND_STOP, 0);
        a->value = c->stop_reason;
        a->detail = c->guest_reason;
        snprintf(a->text, sizeof(a->text), "%s", c->reason);
        enter(c, RP_STOP);
    }
}

/* Gives a checkpoint up while the guest is stopped: nothing of it is sent. */
static void p_give_up(struct remus_core *c, struct remus_actions *out)
{
    c->flags |= F_GIVEN_UP;
    if (c->guest_stopped) {
        p_resume_guest(c, out);
    }
    p_give_input_back(c, out);
    if (c->guest_stopped) {
        enter(c, RP_RESUME);
    }
}

/* The session is to end: from whatever state, by way of a running guest. */
static void p_wind_up(struct remus_core *c, struct remus_actions *out)
{
    c->flags |= F_ENDING;
    switch (c->state) {
    case RP_SUSPEND:
        act(out, RA_SUSPEND_CANCEL, 0);
        p_end(c, out);
        break;
    case RP_QUIESCE:
    case RP_STAGE:
        p_give_up(c, out);
        if (c->state != RP_RESUME) { /* the guest has ended: there is nothing to resume */
            p_end(c, out);
        }
        break;
    case RP_RESUME:
        if (!c->guest_stopped) {
            p_end(c, out);
        }
        break;
    default:
        p_end(c, out);
        break;
    }
}

static void p_stop_because(struct remus_core *c, uint32_t stop_reason, struct remus_actions *out)
{
    if (!has(c, F_ENDING)) {
        c->stop_reason = stop_reason;
        p_wind_up(c, out);
    }
}

static void p_lost_because(struct remus_core *c, struct remus_actions *out)
{
    lose(c);
    if (has(c, F_PEER_MAY_RUN) && !c->output_held_for_peer && !has(c, F_LET_GO)) {
        c->output_held_for_peer = true;
        act(out, RA_HOLD, 0);
    }
    p_wind_up(c, out);
}

static void p_finish(struct remus_core *c, struct remus_actions *out)
{
    finish(c, p_outcome(c), out);
}

static void p_fence(struct remus_core *c, struct remus_actions *out)
{
    c->flags |= F_FENCED;
    c->resume_us = 0;
    act(out, RA_FENCE_AND_STOP, 0);
    finish(c, REMUS_END_FENCED, out);
}

/*
 * The copy is to be the guest.  It hears so when this one is fenced, and need not ask the arbiter,
 * whose way of granting may be to turn this host off; if the word is lost with the link it asks.
 * A copy that has no whole checkpoint cannot be told, nor one that receives or applies an epoch.
 */
static void p_hand_over(struct remus_core *c, struct remus_actions *out)
{
    struct remus_action *a;

    if (!c->applied || has(c, F_LOST) || c->state == RP_SEND || c->state == RP_APPLY) {
        p_fence(c, out);
        return;
    }
    c->flags |= F_FENCED;
    c->resume_us = 0;
    act(out, RA_FENCE_AND_STOP, 0);
    a = act(out, RA_SEND_STOP, 0);
    a->value = REMUS_STOP_HANDOVER;
    snprintf(a->text, sizeof(a->text), "%s", c->reason);
    finish(c, REMUS_END_HANDED_OVER, out);
}

/* The secondary heard us at echo_us, and trusts us for promise_us from there at least. */
static void note_echo(struct remus_core *c, uint64_t echo_us, uint64_t promise_us)
{
    if (echo_us > c->echo_us) {
        c->echo_us = echo_us;
    }
    if (after(echo_us, promise_us) > c->lease_us) {
        c->lease_us = after(echo_us, promise_us);
    }
}

/* A failed attempt at a checkpoint that left the epoch as it was. */
static void p_attempt_failed(struct remus_core *c)
{
    c->checkpoint_tries++;
    c->retry_us = after(c->now_us, ms_to_us(CHECKPOINT_RETRY_MS) * c->checkpoint_tries);
    c->want_checkpoint = true;
}

/* ---- Primary: which mode -------------------------------------------------------------------- */

static void choice_begin(struct remus_core *c)
{
    c->choice.since_us = c->now_us;
    c->choice.diverged = 0;
}

static void mode_wanted(struct remus_core *c, const struct replication_mode *mode)
{
    if (mode->chooses != c->chooses) {
        c->choice.stay_ms = 0;
        choice_begin(c);
    }
    c->chooses = mode->chooses;
    c->wanted = !mode->chooses ? mode : c->wanted ? c->wanted : &modes[MODE_COLO];
    if (mode->chooses && c->wanted != &modes[MODE_REMUS]) {
        c->wanted = &modes[MODE_COLO];
    }
}

static uint32_t period_ms(const struct remus_core *c)
{
    const struct replication_mode *own = c->params.mode->chooses ? &modes[MODE_REMUS] :
                                         c->params.mode;

    return c->mode == own && c->params.period_ms ? c->params.period_ms : c->mode->period_ms;
}

uint32_t remus_core_period_ms(const struct remus_core *c)
{
    return period_ms(c);
}

static uint32_t rest_ms(const struct remus_core *c)
{
    return c->params.rest_ms && (c->mode == c->params.mode || c->params.mode->chooses) ?
           c->params.rest_ms : c->mode->rest_ms;
}

/*
 * COLO pays while it needs less than half of the checkpoints that Remus would take: as many as
 * its period and the length of a checkpoint, as measured, allow.  With more it stops the guest
 * about as often, and keeps a second guest's worth of processor busy besides.  How it would do
 * cannot be seen while the copy does not run, so after a while it is tried again; what it is
 * thrown out of doubles that while, and a window that it gets through ends the doubling.
 */
static void p_choose(struct remus_core *c)
{
    const uint64_t took_us = c->now_us - c->asked_us, window_us = c->now_us - c->choice.since_us;
    const struct replication_mode *remus = &modes[MODE_REMUS];
    uint64_t remus_us = ms_to_us(c->params.mode->chooses && c->params.period_ms ?
                                 c->params.period_ms : remus->period_ms);

    c->choice.cycle_us = c->choice.cycle_us ? (3 * c->choice.cycle_us + took_us) / 4 : took_us;
    if (!c->chooses) {
        return;
    }
    if (c->mode == remus) {
        if (window_us >= ms_to_us(c->choice.stay_ms)) {
            c->wanted = &modes[MODE_COLO];
        }
        return;
    }
    remus_us = remus_us < c->choice.cycle_us ? c->choice.cycle_us : remus_us;
    if (c->choice.diverged >= AUTO_LEAST && 2 * c->choice.diverged * remus_us >= window_us) {
        c->wanted = remus;
        c->want_checkpoint = true;
        c->choice.stay_ms = c->choice.stay_ms ? 2 * c->choice.stay_ms : AUTO_STAY_MS;
        if (c->choice.stay_ms > AUTO_STAY_MAX_MS) {
            c->choice.stay_ms = AUTO_STAY_MAX_MS;
        }
    } else if (window_us >= ms_to_us(AUTO_WINDOW_MS)) {
        c->choice.stay_ms = 0;
        choice_begin(c);
    }
}

/* ---- Primary: steps ------------------------------------------------------------------------- */

static void p_first_epoch(struct remus_core *c, struct remus_actions *out)
{
    (void)out;
    c->epoch = 1;
    c->epoch_began_us = c->now_us;
    c->heard_us = c->now_us;     /* the copy may have blocked the executor for long */
    c->echo_us = c->lease_us = 0;
    c->want_checkpoint = true;   /* protection begins with the first acknowledged epoch */
    enter(c, RP_RUN);
}

static void p_copy_done(struct remus_core *c, const struct remus_event *e,
                        struct remus_actions *out)
{
    (void)e;
    c->heard_us = c->now_us;
    if (has(c, F_READY_EARLY)) {
        p_first_epoch(c, out);
    } else {
        enter(c, RP_BUILD);
    }
}

static void p_ready_early(struct remus_core *c, const struct remus_event *e,
                          struct remus_actions *out)
{
    (void)e;
    (void)out;
    c->flags |= F_READY_EARLY;
}

static void p_ready(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    p_first_epoch(c, out);
}

/* A wish carries the epoch in which the difference was seen; a checkpoint since then met it. */
static void p_want(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)out;
    if (!e->epoch || e->epoch >= c->epoch) {
        c->want_checkpoint = true;
        if (c->mode->compares && e->type == RE_CHECKPOINT_WANTED && e->value) {
            c->flags |= F_DIVERGED;
        }
    }
}

static void p_suspended(struct remus_core *c, const struct remus_event *e,
                        struct remus_actions *out)
{
    (void)e;
    c->guest_stopped = true;
    c->taken_try = 0;
    c->stopped_us = c->now_us;
    c->flags &= ~(F_GIVEN_UP | F_INPUT_STOPPED | F_STAGED);
    if (c->params.net) {
        c->flags |= F_INPUT_HELD;
        act(out, RA_STOP_INPUT, c->pending_epoch);
    } else {
        c->flags |= F_INPUT_STOPPED;
        act(out, RA_DRAIN, c->pending_epoch);
    }
    enter(c, RP_QUIESCE);
}

static void p_taken(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    (void)out;
    c->taken_try = c->checkpoint_tries;
}

/*
 * The guest read one request, did not suspend, and has read none of the next two: it hangs on the
 * way.  A guest that refuses, or that is slow, reads the next one when it is back.
 */
static bool p_guest_hangs(const struct remus_core *c)
{
    return c->taken_try && c->taken_try + 2 < c->checkpoint_tries;
}

static void p_refused_because(struct remus_core *c, const char *why, struct remus_actions *out)
{
    p_attempt_failed(c);
    if (c->checkpoint_tries >= CHECKPOINT_TRIES && p_guest_hangs(c) && c->applied &&
        !c->params.nowhere && !has(c, F_LOST) && !has(c, F_LET_GO) && !has(c, F_ENDING)) {
        /* Of the two guests the copy is the one that works.  It hears the link's end. */
        because(c, "the guest hangs on its way to being suspended: it is fenced, and its copy "
                "takes over");
        p_hand_over(c, out);
    } else if (c->checkpoint_tries >= CHECKPOINT_TRIES) {
        because(c, "the guest did not suspend in %u attempts: %s", c->checkpoint_tries, why);
        p_stop_because(c, REMUS_STOP_FAILED, out);
    } else {
        act(out, RA_SUSPEND_CANCEL, 0);
        enter(c, RP_RUN);
    }
}

static void p_refused(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    p_refused_because(c, text_of(e, "it refused"), out);
}

static void p_suspend_timeout(struct remus_core *c, const struct remus_event *e,
                              struct remus_actions *out)
{
    (void)e;
    p_refused_because(c, "no answer in time", out);
}

static void p_input_stopped(struct remus_core *c, const struct remus_event *e,
                            struct remus_actions *out)
{
    (void)e;
    if (!has(c, F_INPUT_STOPPED)) {
        c->flags |= F_INPUT_STOPPED;
        act(out, RA_DRAIN, c->pending_epoch);
    }
}

static void p_drained(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    if (has(c, F_INPUT_STOPPED)) {
        c->next = c->wanted;
        act(out, RA_STAGE, c->pending_epoch)->value = c->next->wire;
        enter(c, RP_STAGE);
    }
}

/* Nothing of the epoch was consumed yet: the guest goes on in it, another attempt follows. */
static void p_drain_failed_because(struct remus_core *c, const char *why,
                                   struct remus_actions *out)
{
    p_attempt_failed(c);
    if (c->checkpoint_tries >= CHECKPOINT_TRIES) {
        because(c, "the guest's devices did not come to rest in %u attempts: %s",
                c->checkpoint_tries, why);
        p_stop_because(c, REMUS_STOP_FAILED, out);
    } else {
        p_give_up(c, out);
    }
}

static void p_drain_failed(struct remus_core *c, const struct remus_event *e,
                           struct remus_actions *out)
{
    p_drain_failed_because(c, text_of(e, "an error"), out);
}

static void p_drain_timeout(struct remus_core *c, const struct remus_event *e,
                            struct remus_actions *out)
{
    (void)e;
    p_drain_failed_because(c, "not in time", out);
}

static void p_checkpoint_cut(struct remus_core *c, struct remus_actions *out)
{
    c->flags &= ~F_INPUT_HELD;   /* the cut lets it flow, marked with the new epoch */
    c->epoch = c->pending_epoch + 1;
    c->epoch_began_us = c->now_us;
    c->want_checkpoint = false;
    if (c->mode != c->next) {
        c->mode = c->next;
        choice_begin(c);
    } else if (has(c, F_DIVERGED)) {
        c->choice.diverged++;
    }
    c->flags &= ~F_DIVERGED;
    p_resume_guest(c, out);
    enter(c, RP_RESUME);
}

static void p_staged(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    if (has(c, F_STAGED)) {
        return;
    }
    c->flags |= F_STAGED;
    if (c->params.net) {
        act(out, RA_CUT, c->pending_epoch)->value = c->next->wire;
    } else {
        p_checkpoint_cut(c, out);
    }
}

static void p_cut_done(struct remus_core *c, const struct remus_event *e,
                       struct remus_actions *out)
{
    (void)e;
    if (has(c, F_STAGED)) {
        p_checkpoint_cut(c, out);
    }
}

/* Staging cleans the dirty bitmap: what it failed to carry is in no later epoch either. */
static void p_stage_failed(struct remus_core *c, const struct remus_event *e,
                           struct remus_actions *out)
{
    because(c, "%s the checkpoint of epoch %llu failed: %s",
            has(c, F_STAGED) ? "cutting" : "staging", (unsigned long long)c->pending_epoch,
            text_of(e, "an error"));
    p_stop_because(c, e->value == (uint64_t)-ESTALE ? REMUS_STOP_REBUILD : REMUS_STOP_FAILED, out);
}

static void p_stage_timeout(struct remus_core *c, const struct remus_event *e,
                            struct remus_actions *out)
{
    (void)e;
    because(c, "%s the checkpoint of epoch %llu took longer than %u ms",
            has(c, F_STAGED) ? "cutting" : "staging", (unsigned long long)c->pending_epoch,
            c->params.suspend_timeout_ms);
    p_stop_because(c, REMUS_STOP_FAILED, out);
}

static void p_guest_runs(struct remus_core *c)
{
    c->guest_stopped = false;
    c->resume_us = 0;
    c->resume_tries = 0;
}

static void p_resumed(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    p_guest_runs(c);
    if (has(c, F_ENDING)) {
        p_end(c, out);
    } else if (has(c, F_GIVEN_UP)) {
        enter(c, RP_RUN);
    } else {
        c->checkpoint_tries = c->taken_try = 0;
        c->rested_us = after(c->now_us, c->now_us - c->stopped_us);
        /* From here on the secondary may hold a whole epoch, whether or not we hear of it: its
         * loss needs arbitration.  One that can take over at all has heard us no earlier. */
        if (!has(c, F_PEER_MAY_RUN) && !c->params.nowhere) {
            c->flags |= F_PEER_MAY_RUN;
            note_echo(c, c->now_us, ms_to_us(c->params.timeout_ms));
        }
        act(out, RA_SEND_EPOCH, c->pending_epoch);
        enter(c, RP_SEND);
    }
}

/*
 * A guest that cannot be brought back is as good as a lost host.  If there is a secondary it goes
 * on.
 */
static void p_cannot_resume(struct remus_core *c, struct remus_actions *out)
{
    c->resume_us = 0;
    if (c->state == RP_DONE) {
        return;
    }
    because(c, "the guest could not be resumed in %u attempts", RESUME_TRIES);
    if (c->state == RP_UNPROTECT) {
        if (has(c, F_UNPROTECTED)) {
            p_finish(c, out);
        }
    } else if (c->state == RP_STOP || c->state == RP_ARBITRATE) {
        return; /* the secondary was told, or the arbiter asked: what follows is under way */
    } else if (has(c, F_PEER_MAY_RUN) && !has(c, F_LET_GO)) {
        p_hand_over(c, out);
    } else {
        if (!has(c, F_ENDING)) {
            c->stop_reason = REMUS_STOP_FAILED;
            c->flags |= F_ENDING;
        }
        p_end(c, out);
    }
}

/* No error may leave the guest stopped: it is told again, by the resume timer. */
static void p_resume_failed(struct remus_core *c, const struct remus_event *e,
                            struct remus_actions *out)
{
    (void)e;
    (void)out;
    if (c->guest_stopped && c->resume_us) {
        c->resume_us = after(c->now_us, ms_to_us(RESUME_RETRY_MS));
    }
}

static void p_late_suspended(struct remus_core *c, const struct remus_event *e,
                             struct remus_actions *out)
{
    (void)e;
    if (has(c, F_FENCED) || has(c, F_GUEST_ENDED)) {
        return;
    }
    c->guest_stopped = true;
    c->taken_try = 0;
    c->resume_tries = 0;
    p_resume_guest(c, out);
}

static void p_late_resumed(struct remus_core *c, const struct remus_event *e,
                           struct remus_actions *out)
{
    (void)e;
    p_guest_runs(c);
    if (c->state == RP_UNPROTECT && has(c, F_UNPROTECTED)) {
        p_finish(c, out);
    }
}

static void p_ack(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    if (e->epoch != c->pending_epoch) {
        p_unexpected(c, e, out);
        return;
    }
    /* It heard what was sent since then, or it could not know. */
    note_echo(c, c->entered_us, ms_to_us(c->params.timeout_ms));
    c->acked = e->epoch;
    act(out, RA_RELEASE, e->epoch);
    enter(c, RP_APPLY);
}

static void p_ack_stopping(struct remus_core *c, const struct remus_event *e,
                           struct remus_actions *out)
{
    if (e->epoch && e->epoch == c->pending_epoch && c->acked < e->epoch &&
        has(c, F_PEER_MAY_RUN) && !c->output_held_for_peer) {
        c->acked = e->epoch;
        act(out, RA_RELEASE, e->epoch);
    }
}

static void p_applied(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    if (e->epoch != c->pending_epoch) {
        p_unexpected(c, e, out);
        return;
    }
    c->applied = e->epoch;
    c->checkpoint_done_us = c->now_us;
    enter(c, RP_RUN);
    p_choose(c);
}

/*
 * The copy is to be the guest.  Only between two checkpoints, so that it has nothing to finish
 * first; and only when it runs: one that is paused has not had what the guest got since the last
 * one, so a checkpoint starts it before.
 */
static void p_switch_now(struct remus_core *c, struct remus_actions *out)
{
    if (c->want_switch && c->state == RP_RUN && c->applied && !c->guest_stopped &&
        !c->params.nowhere && !has(c, F_LOST) && !has(c, F_ENDING)) {
        if (!c->mode->secondary_runs) {
            mode_wanted(c, &modes[MODE_COLO]);
            c->want_checkpoint = true;
            return;
        }
        because(c, "handed over on request");
        p_hand_over(c, out);
    }
}

static void p_switch(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    (void)out;
    c->want_switch = true;
}

/* The next checkpoint changes it, and comes at once. */
static void p_mode(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    const struct replication_mode *mode = remus_mode_by_wire((uint16_t)e->value);

    (void)out;
    if (mode && e->value <= UINT16_MAX) {
        mode_wanted(c, mode);
        c->want_checkpoint = c->want_checkpoint || c->wanted != c->mode;
    }
}

static void p_lost(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    if (has(c, F_LOST)) {
        return;
    }
    because(c, "connection to the secondary lost: %s", text_of(e, "closed"));
    p_lost_because(c, out);
}

/* What cannot be read leaves no way to agree on anything: the peer is told and counts as lost. */
static void p_bad(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    because(c, "the secondary sent something that makes no sense: %s", text_of(e, "bad frame"));
    act_text(out, RA_SEND_ERROR, c->reason);
    p_lost_because(c, out);
}

static void p_unexpected(struct remus_core *c, const struct remus_event *e,
                         struct remus_actions *out)
{
    because(c, "the secondary sent frame event %d of epoch %llu in state %s of epoch %llu",
            (int)e->type, (unsigned long long)e->epoch, remus_state_name(c->state),
            (unsigned long long)c->epoch);
    act_text(out, RA_SEND_ERROR, c->reason);
    p_lost_because(c, out);
}

/* STOP, STOPPED and ERROR of a secondary all promise that its copy will never open its output. */
static void p_let_go(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    if (has(c, F_LET_GO)) {
        return;
    }
    c->flags |= F_LET_GO;
    if (!has(c, F_ENDING)) {
        because(c, "the secondary ended protection: %s", text_of(e, "no reason given"));
        c->stop_reason = e->type == RE_PEER_STOP ? (uint32_t)e->value : REMUS_STOP_FAILED;
    }
    p_wind_up(c, out);
}

static void p_let_go_stopped(struct remus_core *c, const struct remus_event *e,
                             struct remus_actions *out)
{
    p_let_go(c, e, out);
}

static void p_operator(struct remus_core *c, const struct remus_event *e,
                       struct remus_actions *out)
{
    if (!has(c, F_ENDING)) {
        because(c, "%s", text_of(e, "stopped by the operator"));
    }
    p_stop_because(c, REMUS_STOP_OPERATOR, out);
}

static void p_daemon(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    because(c, "%s", text_of(e, "a daemon ended, without a reason"));
    p_stop_because(c, REMUS_STOP_FAILED, out);
}

static void p_failed(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    if (c->guest_stopped && c->resume_us) { /* a resume of a late suspend is what was under way */
        p_resume_failed(c, e, out);
        return;
    }
    because(c, "%s", text_of(e, "an error on the primary's side"));
    p_stop_because(c, REMUS_STOP_FAILED, out);
}

static void p_peer_slow(struct remus_core *c, const struct remus_event *e,
                        struct remus_actions *out)
{
    (void)e;
    because(c, "the secondary did not %s within %u ms",
            c->state == RP_BUILD ? "build its copy" :
            c->state == RP_SEND ? "acknowledge the epoch" : "apply the epoch",
            c->params.ready_timeout_ms);
    p_stop_because(c, REMUS_STOP_FAILED, out);
}

static void p_stop_timeout(struct remus_core *c, const struct remus_event *e,
                           struct remus_actions *out)
{
    (void)e;
    because(c, "the secondary did not answer STOP within %u ms", c->params.stop_timeout_ms);
    p_lost_because(c, out);
}

static void p_note_guest_ended(struct remus_core *c, const struct remus_event *e)
{
    c->flags |= F_GUEST_ENDED;
    c->guest_reason = e->value;
    p_guest_runs(c); /* at least it does not need resuming any more */
}

static void p_guest_ended(struct remus_core *c, const struct remus_event *e,
                          struct remus_actions *out)
{
    p_note_guest_ended(c, e);
    because(c, e->value == UINT64_MAX ? "the guest is gone" : "the guest ended by itself");
    if (has(c, F_ENDING)) {
        p_wind_up(c, out); /* the resume that it waited for will not come */
    } else {
        p_stop_because(c, REMUS_STOP_GUEST, out);
    }
}

static void p_guest_ended_late(struct remus_core *c, const struct remus_event *e,
                               struct remus_actions *out)
{
    p_note_guest_ended(c, e);
    if (c->state == RP_UNPROTECT && has(c, F_UNPROTECTED)) {
        p_finish(c, out);
    }
}

static void p_arbitrated(struct remus_core *c, const struct remus_event *e,
                         struct remus_actions *out)
{
    if (e->value) {
        p_unprotect(c, out);
    } else {
        p_fence(c, out);
    }
}

static void p_again_later(struct remus_core *c, const struct remus_event *e,
                          struct remus_actions *out)
{
    (void)e;
    (void)out;
    c->again_us = after(c->now_us, ms_to_us(AGAIN_MS));
}

static void p_unprotected(struct remus_core *c, const struct remus_event *e,
                          struct remus_actions *out)
{
    (void)e;
    c->flags |= F_UNPROTECTED;
    c->again_us = 0;
    if (!c->guest_stopped || !c->resume_us) {
        p_finish(c, out);
    } /* else a late suspend is being undone: RESUMED finishes */
}

static void p_unprotect_failed(struct remus_core *c, const struct remus_event *e,
                               struct remus_actions *out)
{
    if (has(c, F_UNPROTECTED)) {
        p_resume_failed(c, e, out);
    } else {
        c->again_us = after(c->now_us, ms_to_us(AGAIN_MS));
    }
}

/* The answer did not come in time, or was a failure. */
static void p_unprotect_again(struct remus_core *c, struct remus_actions *out)
{
    if (++c->again_tries < UNPROTECT_TRIES) {
        p_unprotect(c, out);
        return;
    }
    snprintf(c->reason, sizeof(c->reason), "the rules of protection could not be removed: xl remus "
             "--release does it");
    c->stop_reason = REMUS_STOP_FAILED;
    c->flags &= ~F_PEER_MAY_RUN;
    p_finish(c, out);
}

/* ---- Secondary: the ways out ---------------------------------------------------------------- */

static void s_destroy(struct remus_core *c, enum remus_end end, struct remus_actions *out)
{
    c->end = end;
    if (c->state == RS_RECEIVE) {
        act(out, RA_DROP_PARTIAL, c->epoch);
    }
    act(out, RA_DESTROY, 0);
    enter(c, RS_STOP);
}

/* An error of ours: the primary is told, and told with it that this copy never goes live. */
static void s_give_up(struct remus_core *c, struct remus_actions *out)
{
    if (!has(c, F_LOST)) {
        act_text(out, RA_SEND_ERROR, c->reason);
    }
    s_destroy(c, REMUS_END_FAILED, out);
}

static void s_arbitrate(struct remus_core *c, struct remus_actions *out)
{
    act(out, RA_ARBITRATE, 0);
    enter(c, RS_ARBITRATE);
}

static void s_over(struct remus_core *c, struct remus_actions *out)
{
    if (!has(c, F_LOST)) {
        act(out, RA_SEND_STOPPED, 0);
    }
    finish(c, c->end, out);
}

/* ---- Secondary: steps ----------------------------------------------------------------------- */

static void s_built(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    c->heard_us = c->now_us; /* building may have blocked the executor for long */
    act(out, RA_SEND_READY, 0);
    enter(c, RS_BASE);
}

static void s_frame(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    if (e->epoch != c->epoch) {
        s_unexpected(c, e, out);
    } else if (c->state != RS_RECEIVE) {
        enter(c, RS_RECEIVE);
    }
}

static void s_complete(struct remus_core *c, const struct remus_event *e,
                       struct remus_actions *out)
{
    const struct replication_mode *mode =
        e->value <= UINT16_MAX ? remus_mode_by_wire((uint16_t)e->value) : NULL;

    if (e->epoch != c->epoch || !mode || mode->chooses) {
        s_unexpected(c, e, out);
        return;
    }
    c->next = mode;
    c->acked = c->epoch;
    act(out, RA_ACK, c->epoch);
    act(out, RA_APPLY, c->epoch)->value = mode->wire;
    enter(c, RS_APPLY);
}

static void s_applied(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    c->applied = c->epoch;
    c->epoch++;
    c->mode = c->next;
    c->flags &= ~F_GUEST_ENDED; /* whatever the copy did by itself is undone */
    if (has(c, F_LOST)) {
        s_arbitrate(c, out);
    } else {
        act(out, RA_SEND_APPLIED, c->applied);
        enter(c, RS_RUN);
    }
}

/* With the primary gone the whole epoch in memory is all there is: applying it is tried again. */
static void s_apply_failed(struct remus_core *c, const struct remus_event *e,
                           struct remus_actions *out)
{
    if (has(c, F_LOST) && ++c->again_tries < APPLY_TRIES) {
        c->again_us = after(c->now_us, ms_to_us(AGAIN_MS));
        return;
    }
    if (has(c, F_LOST)) {
        c->reason[0] = '\0'; /* why the copy could not go on matters more than the loss */
    }
    because(c, "applying epoch %llu failed: %s", (unsigned long long)c->epoch,
            text_of(e, "an error"));
    s_give_up(c, out);
}

static void s_apply_timeout(struct remus_core *c, const struct remus_event *e,
                            struct remus_actions *out)
{
    (void)e;
    because(c, "applying epoch %llu took longer than %u ms", (unsigned long long)c->epoch,
            c->params.ready_timeout_ms);
    s_give_up(c, out);
}

static void s_lost(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    lose(c);
    because(c, "connection to the primary lost: %s", text_of(e, "closed"));
    if (!c->applied) {
        s_destroy(c, REMUS_END_FAILED, out);
        return;
    }
    if (c->state == RS_RECEIVE) {
        act(out, RA_DROP_PARTIAL, c->epoch);
    }
    s_arbitrate(c, out);
}

/* What was acknowledged counts as safe at the primary: it is applied before anything else. */
static void s_lost_applying(struct remus_core *c, const struct remus_event *e,
                            struct remus_actions *out)
{
    (void)out;
    lose(c);
    because(c, "connection to the primary lost: %s", text_of(e, "closed"));
}

static void s_lost_stopping(struct remus_core *c, const struct remus_event *e,
                            struct remus_actions *out)
{
    (void)e;
    (void)out;
    lose(c);
}

static void s_bad(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    because(c, "the primary sent something that makes no sense: %s", text_of(e, "bad frame"));
    s_give_up(c, out);
}

static void s_unexpected(struct remus_core *c, const struct remus_event *e,
                         struct remus_actions *out)
{
    because(c, "the primary sent frame event %d of epoch %llu in state %s, epoch %llu expected",
            (int)e->type, (unsigned long long)e->epoch, remus_state_name(c->state),
            (unsigned long long)c->epoch);
    s_give_up(c, out);
}

static void s_failed(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    because(c, "%s", text_of(e, "an error on the secondary's side"));
    s_give_up(c, out);
}

static void s_daemon(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    because(c, "%s", text_of(e, "a daemon ended, without a reason"));
    s_give_up(c, out);
}

static void s_daemon_applying(struct remus_core *c, const struct remus_event *e,
                              struct remus_actions *out)
{
    /* This copy may be all there is.  It needs no network to be applied. */
    if (!has(c, F_LOST) || e->value) {
        s_daemon(c, e, out);
    }
}

/* Without its disks' daemon the copy has no disks: the primary's guest, if it lives, is the one. */
static void s_daemon_arbitrating(struct remus_core *c, const struct remus_event *e,
                                 struct remus_actions *out)
{
    if (e->value) {
        c->reason[0] = '\0';
        s_daemon(c, e, out);
    }
}

static void s_operator(struct remus_core *c, const struct remus_event *e,
                       struct remus_actions *out)
{
    struct remus_action *a;

    if (has(c, F_LOST)) {
        return;
    }
    because(c, "%s", text_of(e, "stopped by the operator of the secondary"));
    a = act(out, RA_SEND_STOP, 0);
    a->value = REMUS_STOP_OPERATOR;
    snprintf(a->text, sizeof(a->text), "%s", c->reason);
    s_destroy(c, REMUS_END_STOPPED, out);
}

/* The primary's guest is fenced, for good: nobody needs to be asked who goes on. */
static void s_handed_over(struct remus_core *c, const struct remus_event *e,
                          struct remus_actions *out)
{
    if (c->state != RS_RUN || has(c, F_LOST)) {
        s_unexpected(c, e, out);
        return;
    }
    because(c, "the primary handed the guest over: %s", text_of(e, "no reason given"));
    lose(c);
    act(out, RA_TAKEOVER, c->applied);
    enter(c, RS_TAKEOVER);
}

static void s_stop(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    if (e->value == REMUS_STOP_HANDOVER) {
        s_handed_over(c, e, out);
        return;
    }
    c->stop_reason = (uint32_t)e->value;
    if (e->value == REMUS_STOP_GUEST) {
        c->flags |= F_GUEST_ENDED;
        c->guest_reason = e->epoch;
    }
    because(c, "the primary ended protection: %s", text_of(e, "no reason given"));
    s_destroy(c, e->value == REMUS_STOP_OPERATOR ? REMUS_END_STOPPED :
                 e->value == REMUS_STOP_GUEST ? REMUS_END_GUEST : REMUS_END_FAILED, out);
}

static void s_error(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    because(c, "the primary reports: %s", text_of(e, "an error"));
    s_destroy(c, REMUS_END_FAILED, out);
}

/* A copy that ended by itself differs from the primary, and the next checkpoint brings it back;
 * if there is none any more it takes over as it is.  A copy that is gone cannot. */
static void s_guest_ended(struct remus_core *c, const struct remus_event *e,
                          struct remus_actions *out)
{
    c->flags |= F_GUEST_ENDED;
    c->guest_reason = e->value;
    if (e->value == UINT64_MAX) {
        because(c, "the copy of the guest is gone");
        s_give_up(c, out);
    }
}

static void s_arbitrated(struct remus_core *c, const struct remus_event *e,
                         struct remus_actions *out)
{
    if (e->value) {
        act(out, RA_TAKEOVER, c->applied);
        enter(c, RS_TAKEOVER);
    } else {
        s_destroy(c, REMUS_END_FENCED, out);
    }
}

static void s_active(struct remus_core *c, const struct remus_event *e, struct remus_actions *out)
{
    (void)e;
    finish(c, REMUS_END_ACTIVE, out);
}

static void s_again_later(struct remus_core *c, const struct remus_event *e,
                          struct remus_actions *out)
{
    (void)e;
    (void)out;
    c->again_us = after(c->now_us, ms_to_us(AGAIN_MS));
}

static void s_destroyed(struct remus_core *c, const struct remus_event *e,
                        struct remus_actions *out)
{
    (void)e;
    s_over(c, out);
}

static void s_destroy_failed(struct remus_core *c, const struct remus_event *e,
                             struct remus_actions *out)
{
    (void)e;
    (void)out;
    c->again_us = after(c->now_us, ms_to_us(AGAIN_MS));
}

/* STOPPED says that the copy never opens its output.  That holds whether or not it is gone. */
static void s_destroy_timeout(struct remus_core *c, const struct remus_event *e,
                              struct remus_actions *out)
{
    char was[sizeof(c->reason)];

    (void)e;
    memcpy(was, c->reason, sizeof(was));
    snprintf(c->reason, sizeof(c->reason), "the copy could not be destroyed: xl destroy does it "
             "(%.100s)", was);
    s_over(c, out);
}

/* ---- Time ----------------------------------------------------------------------------------- */

/* The secondary cannot hold a whole epoch yet. */
static bool before_protection(const struct remus_core *c)
{
    return c->params.role == REMUS_PRIMARY ? !has(c, F_PEER_MAY_RUN)
           : c->state == RS_COPY || c->state == RS_BASE;
}

/* When the peer counts as silent, in this state. */
static uint64_t silent_at(const struct remus_core *c)
{
    uint64_t limit_us = ms_to_us(c->params.timeout_ms);
    uint64_t at;

    switch (state_info[c->state].link) {
    case LINK_COPY:
        return after(c->heard_us, COPY_TIMEOUTS * limit_us);
    case LINK_BUILD:
        return after(c->heard_us, ms_to_us(c->params.ready_timeout_ms));
    case LINK_STOP:
        if (c->params.role == REMUS_SECONDARY || !has(c, F_PEER_MAY_RUN) ||
            c->output_held_for_peer) {
            return UINT64_MAX;
        }
        break;
    case LINK_LIVE:
        break;
    default:
        return UINT64_MAX;
    }
    if (has(c, F_LOST)) {
        return UINT64_MAX;
    }
    at = after(c->heard_us, remus_core_timeout_us(c));
    at = at < c->trust_us ? c->trust_us : at;
    /* Before there is a copy that could take over, an old echo is nothing but a slow peer. */
    if (c->params.role == REMUS_PRIMARY && has(c, F_PEER_MAY_RUN) && c->lease_us < at) {
        at = c->lease_us;
    }
    return at;
}

uint64_t remus_core_timeout_us(const struct remus_core *c)
{
    uint64_t gap_us = c->gap_us[0] > c->gap_us[1] ? c->gap_us[0] : c->gap_us[1];
    uint64_t least_us = ms_to_us(c->params.timeout_ms);
    uint64_t most_us = ms_to_us(c->params.timeout_max_ms);

    gap_us *= GAPS;
    return gap_us < least_us ? least_us : gap_us > most_us ? most_us : gap_us;
}

uint64_t remus_core_lease_us(const struct remus_core *c)
{
    if (c->params.role != REMUS_PRIMARY || !has(c, F_PEER_MAY_RUN) || has(c, F_LOST) ||
        state_info[c->state].link == LINK_NONE) {
        return 0;
    }
    return c->lease_us;
}

static void check_silence(struct remus_core *c, struct remus_actions *out)
{
    struct remus_event e = { .type = RE_LINK_LOST };
    char text[80];

    if (c->now_us < silent_at(c)) {
        return;
    }
    if (state_info[c->state].link == LINK_STOP) {
        c->output_held_for_peer = true;
        act(out, RA_HOLD, 0);
        return;
    }
    snprintf(text, sizeof(text), "silent for %llu ms, ours not echoed for %llu ms",
             (unsigned long long)((c->now_us - c->heard_us) / 1000),
             (unsigned long long)(c->echo_us ? (c->now_us - c->echo_us) / 1000 : 0));
    e.text = text;
    (rows[c->state][e.type] ? rows[c->state][e.type] : any[c->params.role][e.type])(c, &e, out);
}

static uint64_t deadline_at(const struct remus_core *c)
{
    const struct state_info *info = &state_info[c->state];
    uint32_t limit_ms;

    if (!info->deadline) {
        return UINT64_MAX;
    }
    memcpy(&limit_ms, (const char *)&c->params + info->deadline, sizeof(limit_ms));
    return after(c->entered_us, ms_to_us(limit_ms));
}

static uint64_t checkpoint_at(const struct remus_core *c)
{
    uint64_t at;

    if (c->state != RP_RUN || c->guest_stopped) {
        return UINT64_MAX;
    }
    at = c->want_checkpoint ? 0 : after(c->epoch_began_us, ms_to_us(period_ms(c)));
    if (c->applied && at < after(c->checkpoint_done_us, ms_to_us(rest_ms(c)))) {
        at = after(c->checkpoint_done_us, ms_to_us(rest_ms(c)));
    }
    at = at < c->rested_us ? c->rested_us : at;
    return at < c->retry_us ? c->retry_us : at;
}

static uint64_t heartbeat_at(const struct remus_core *c)
{
    if (state_info[c->state].link == LINK_NONE || has(c, F_LOST)) {
        return UINT64_MAX;
    }
    return after(c->heartbeat_us, ms_to_us(c->params.heartbeat_ms));
}

/* Gives the action of the state once more. */
static void act_again(struct remus_core *c, struct remus_actions *out)
{
    c->again_us = 0;
    switch (c->state) {
    case RP_ARBITRATE:
    case RS_ARBITRATE:
        act(out, RA_ARBITRATE, 0);
        break;
    case RP_UNPROTECT:
        p_unprotect_again(c, out);
        break;
    case RS_APPLY:
        act(out, RA_APPLY, c->epoch)->value = c->next->wire;
        break;
    case RS_TAKEOVER:
        act(out, RA_TAKEOVER, c->applied);
        break;
    case RS_STOP:
        act(out, RA_DESTROY, 0);
        break;
    default:
        c->flags |= F_BUG;
        break;
    }
}

static void resume_again(struct remus_core *c, struct remus_actions *out)
{
    if (++c->resume_tries < RESUME_TRIES) {
        p_resume_guest(c, out);
    } else {
        p_cannot_resume(c, out);
    }
}

static void run_timers(struct remus_core *c, struct remus_actions *out)
{
    if (c->now_us >= deadline_at(c)) {
        state_info[c->state].on_deadline(c, &(struct remus_event){ .type = RE_TICK }, out);
    }
    if (c->resume_us && c->now_us >= c->resume_us) {
        resume_again(c, out);
    }
    if (c->again_us && c->now_us >= c->again_us) {
        act_again(c, out);
    }
    if (c->now_us >= checkpoint_at(c)) {
        c->pending_epoch = c->epoch;
        c->want_checkpoint = false;
        c->asked_us = c->now_us;
        act(out, RA_SUSPEND, c->pending_epoch);
        enter(c, RP_SUSPEND);
    }
    if (c->now_us >= heartbeat_at(c)) {
        c->heartbeat_us = c->now_us;
        act(out, RA_SEND_HEARTBEAT, 0);
    }
}

uint64_t remus_core_next_us(const struct remus_core *c)
{
    uint64_t at = silent_at(c);
    const uint64_t others[] = {
        deadline_at(c), checkpoint_at(c), heartbeat_at(c),
        c->resume_us ? c->resume_us : UINT64_MAX,
        c->again_us ? c->again_us : UINT64_MAX,
    };

    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (others[i] < at) {
            at = others[i];
        }
    }
    return at;
}

/* ---- Entry ---------------------------------------------------------------------------------- */

static bool from_peer(enum remus_event_type type)
{
    return type == RE_FRAME_ANY || (type >= RE_PEER_READY && type <= RE_PEER_BAD);
}

/*
 * A peer that counts as lost is not listened to any more.  A secondary that has not yet asked the
 * arbiter, because it is still applying, may still be told to stop; once it has asked, a late
 * STOP must not count: the primary that sent it may have been denied, and nobody would be left.
 */
static bool peer_is_mute(const struct remus_core *c, enum remus_event_type type)
{
    if (state_info[c->state].link == LINK_NONE) {
        return true;
    }
    return has(c, F_LOST) &&
           !(c->state == RS_APPLY && (type == RE_PEER_STOP || type == RE_PEER_ERROR));
}

static void note_gap(struct remus_core *c, uint64_t gap_us)
{
    if (c->now_us - c->gap_since_us >= GAP_WINDOW * ms_to_us(c->params.timeout_ms)) {
        c->gap_us[1] = c->gap_us[0];
        c->gap_us[0] = 0;
        c->gap_since_us = c->now_us;
    }
    c->gap_us[0] = gap_us > c->gap_us[0] ? gap_us : c->gap_us[0];
}

static void note_life(struct remus_core *c, const struct remus_event *event)
{
    uint64_t promise_us = ms_to_us(c->params.timeout_ms);

    if (state_info[c->state].link == LINK_LIVE) {
        note_gap(c, c->now_us - c->heard_us);
    }
    c->heard_us = c->now_us;
    /* What was announced once holds, also when the silences have become shorter. */
    if (c->trust_us < after(c->now_us, remus_core_timeout_us(c))) {
        c->trust_us = after(c->now_us, remus_core_timeout_us(c));
    }
    if (event->type == RE_FRAME_ANY && event->value && event->value <= c->now_us) {
        if (event->epoch > promise_us && event->epoch <= ms_to_us(c->params.timeout_max_ms)) {
            promise_us = event->epoch;
        }
        note_echo(c, event->value, promise_us);
    }
}

void remus_core_event(struct remus_core *c, uint64_t now_us, const struct remus_event *event,
                      struct remus_actions *out)
{
    step_fn *step;
    uint64_t away_us;

    out->count = 0;
    away_us = now_us > c->now_us ? now_us - c->now_us : 0;
    c->now_us += away_us; /* a clock that steps back stands still */
    if ((unsigned int)event->type >= EVENT_COUNT) {
        c->flags |= F_BUG;
        return;
    }
    if (before_protection(c) &&
        (from_peer(event->type) || away_us >= ms_to_us(c->params.timeout_ms))) {
        /* Nothing can be lost by trusting late bytes, and an executor may copy, build or start
         * programs for long without a look at its socket: its own absence counts for nothing. */
        c->heard_us = c->now_us;
        if (c->echo_us) {
            note_echo(c, c->now_us, ms_to_us(c->params.timeout_ms));
        }
    }
    check_silence(c, out);
    if (!from_peer(event->type)) {
        step = rows[c->state][event->type];
    } else if (peer_is_mute(c, event->type)) {
        step = nothing;
    } else {
        note_life(c, event);
        step = rows[c->state][event->type];
    }
    (step ? step : any[c->params.role][event->type])(c, event, out);
    p_switch_now(c, out);
    run_timers(c, out);
}

static void set_default(uint32_t *value, uint32_t otherwise)
{
    if (!*value) {
        *value = otherwise;
    }
}

int remus_core_init(struct remus_core *c, const struct remus_core_params *params, uint64_t now_us,
                    struct remus_actions *out)
{
    struct remus_core_params *p = &c->params;

    out->count = 0;
    memset(c, 0, sizeof(*c));
    *p = *params;
    if (!p->mode || (p->role != REMUS_PRIMARY && p->role != REMUS_SECONDARY)) {
        return -EINVAL;
    }
    set_default(&p->heartbeat_ms, 100);
    set_default(&p->timeout_ms, 3000);
    set_default(&p->timeout_max_ms, p->timeout_ms > UINT32_MAX / 4 ? p->timeout_ms
                : 4 * p->timeout_ms);
    set_default(&p->suspend_timeout_ms, 10000);
    set_default(&p->drain_timeout_ms, 1000);
    set_default(&p->stop_timeout_ms, 10000);
    set_default(&p->ready_timeout_ms, 120000);
    /* One lost beat must not count as a lost host. */
    if (p->timeout_ms < 3 * (uint64_t)p->heartbeat_ms || p->timeout_max_ms < p->timeout_ms) {
        return -EINVAL;
    }
    mode_wanted(c, p->mode);
    c->mode = c->next = c->wanted;
    c->state = p->role == REMUS_PRIMARY ? RP_COPY : RS_COPY;
    c->now_us = c->entered_us = c->heard_us = c->heartbeat_us = now_us;
    c->epoch = p->role == REMUS_PRIMARY ? 0 : 1;
    c->stop_reason = REMUS_STOP_OPERATOR;
    if (p->role == REMUS_PRIMARY) {
        act(out, RA_START_COPY, 0);
    }
    return 0;
}

const char *remus_state_name(enum remus_state s)
{
    return (unsigned int)s < REMUS_STATE_COUNT ? state_info[s].name : "unknown";
}
