/*
 * remus_transition.c: see remus_transition.h.  The file opens with the tables: which transition
 * follows from which states, and from which ends.
 */
#include "tools/libxl/remus_transition.h"

#include <stddef.h>

#define AT(state)     (1ull << (state))
#define ANY           UINT64_MAX
#define ANY_BUT(state) (~AT(state))

enum when {
    ALWAYS,
    FIRST_EPOCH,        /* of the session */
    THIS_SIDE_OUT,      /* it ends with REMUS_END_FENCED or REMUS_END_HANDED_OVER */
};

/* The first row that fits counts. */
static const struct {
    enum remus_role role;
    uint64_t from;              /* states, one bit each */
    enum remus_state to;
    enum when when;
    enum remus_transition what;
} of_states[] = {
    { REMUS_PRIMARY, AT(RP_SEND), RP_APPLY, FIRST_EPOCH, REMUS_T_PROTECTED },
    { REMUS_PRIMARY, ANY_BUT(RP_ARBITRATE), RP_ARBITRATE, ALWAYS, REMUS_T_FENCING },
    { REMUS_PRIMARY, ANY_BUT(RP_ARBITRATE), RP_DONE, THIS_SIDE_OUT, REMUS_T_FENCING },
    { REMUS_SECONDARY, AT(RS_APPLY), RS_RUN, FIRST_EPOCH, REMUS_T_PROTECTED },
    { REMUS_SECONDARY, ANY_BUT(RS_ARBITRATE), RS_ARBITRATE, ALWAYS, REMUS_T_FENCING },
    { REMUS_SECONDARY, ANY, RS_ACTIVE, ALWAYS, REMUS_T_FAILED_OVER },
};

/*
 * Exit statuses (tools/xl/commands.h): 0 ended in order, 1 usage, 2 refused, 3 unprotected, 4 guest
 * ended, 5 this side is out, 6 no peer, 7 undecided.  Those that changed nothing mean nothing.
 */
#define STATUSES 8
static const enum remus_transition of_end[2][STATUSES] = {
    [REMUS_PRIMARY] = { [0] = REMUS_T_STOPPED, [3] = REMUS_T_DEGRADED, [4] = REMUS_T_STOPPED,
                        [5] = REMUS_T_FAILED_OVER, [7] = REMUS_T_FENCING },
    /* Of a copy that did not take over: the primary's guest is what is left. */
    [REMUS_SECONDARY] = { [0] = REMUS_T_STOPPED, [3] = REMUS_T_DEGRADED, [4] = REMUS_T_STOPPED,
                          [5] = REMUS_T_DEGRADED },
};

/* The states in which a copy with an acknowledged epoch stands ready. */
#define PROTECTING (AT(RP_RUN) | AT(RP_SUSPEND) | AT(RP_QUIESCE) | AT(RP_STAGE) | AT(RP_RESUME) | \
                    AT(RP_SEND) | AT(RP_APPLY) | AT(RS_RUN) | AT(RS_RECEIVE) | AT(RS_APPLY))

/* A checkpoint is overdue this long after it was due. */
#define OVERDUE_US 10000000u

const char *remus_transition_name(enum remus_transition t)
{
    static const char *const names[REMUS_T_COUNT] = {
        [REMUS_T_NONE] = "none",
        [REMUS_T_PROTECTED] = "protected",
        [REMUS_T_REPROTECTED] = "re-protected",
        [REMUS_T_DEGRADED] = "degraded",
        [REMUS_T_FENCING] = "fencing",
        [REMUS_T_FAILED_OVER] = "failed-over",
        [REMUS_T_STOPPED] = "stopped",
    };

    return (unsigned int)t < REMUS_T_COUNT ? names[t] : "unknown";
}

static bool fits(const struct remus_core *c, enum when when)
{
    switch (when) {
    case FIRST_EPOCH:
        return (c->params.role == REMUS_PRIMARY ? c->acked : c->applied) == 1;
    case THIS_SIDE_OUT:
        return c->end == REMUS_END_FENCED || c->end == REMUS_END_HANDED_OVER;
    case ALWAYS:
        break;
    }
    return true;
}

enum remus_transition remus_transition_of_states(const struct remus_core *c,
                                                 enum remus_state before)
{
    size_t i;

    if (before == c->state || c->params.nowhere)
        return REMUS_T_NONE;
    for (i = 0; i < sizeof(of_states) / sizeof(of_states[0]); i++)
        if (of_states[i].role == c->params.role && of_states[i].from & AT(before) &&
            of_states[i].to == c->state && fits(c, of_states[i].when))
            return of_states[i].what;
    return REMUS_T_NONE;
}

enum remus_transition remus_transition_of_end(enum remus_role role, int status)
{
    return status >= 0 && status < STATUSES ? of_end[role == REMUS_SECONDARY][status]
                                            : REMUS_T_NONE;
}

bool remus_core_protects(const struct remus_core *c)
{
    return !c->params.nowhere && PROTECTING & AT(c->state) &&
           (c->params.role == REMUS_PRIMARY ? c->acked : c->applied) > 0;
}

/* ---- Health ---- */

const char *remus_health_name(enum remus_health h)
{
    switch (h) {
    case REMUS_UNPROTECTED:
        return "unprotected";
    case REMUS_DEGRADED:
        return "degraded";
    case REMUS_HEALTHY:
        return "ok";
    }
    return "unknown";
}

enum remus_health remus_health_judge(const struct remus_core *c,
                                     const struct remus_health_facts *facts, const char **why)
{
    const uint64_t half_us = remus_core_timeout_us(c) / 2;
    const uint64_t due_us = remus_core_period_ms(c) * 1000ull;

    *why = "";
    if (!remus_core_protects(c)) {
        *why = "there is no copy that could take over";
        return REMUS_UNPROTECTED;
    }
    if (facts->rules_lost)
        *why = "somebody removed the rules of protection from the packet filter";
    else if (c->now_us > c->heard_us && c->now_us - c->heard_us > half_us)
        *why = "the other host has been silent for half of what makes it count as lost";
    else if (facts->second_path_lost)
        *why = "nothing is heard from the other host on the second network";
    else if (c->params.role == REMUS_PRIMARY && c->checkpoint_tries)
        *why = "the last attempt at a checkpoint failed";
    else if (facts->lag_us > due_us + OVERDUE_US)
        *why = "the newest checkpoint is much older than it should be";
    return (*why)[0] ? REMUS_DEGRADED : REMUS_HEALTHY;
}

enum remus_transition remus_health_show(struct remus_health_view *v, enum remus_health judged,
                                        uint64_t now_us)
{
    const enum remus_health before = v->shown;

    if (judged <= v->shown) {
        v->better_us = 0;
        v->shown = judged;
    } else if (v->shown == REMUS_UNPROTECTED) {
        v->shown = judged;          /* the first checkpoint is news, and told of by its states */
    } else if (!v->better_us) {
        v->better_us = now_us ? now_us : 1;
    } else if (now_us - v->better_us >= REMUS_HEALTH_HOLD_US) {
        v->better_us = 0;
        v->shown = judged;
    }
    if (before == REMUS_HEALTHY && v->shown == REMUS_DEGRADED)
        return REMUS_T_DEGRADED;
    if (before == REMUS_DEGRADED && v->shown == REMUS_HEALTHY)
        return REMUS_T_REPROTECTED;
    return REMUS_T_NONE;
}
