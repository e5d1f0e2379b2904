/*
 * remus_transition.h: what operators are told of a session: the moments that hooks are called for,
 * and how well the guest is protected in between.  Pure: no call, no clock.
 */
#ifndef REMUS_TRANSITION_H
#define REMUS_TRANSITION_H

#include "tools/libxl/remus_core.h"

enum remus_transition {
    REMUS_T_NONE,
    REMUS_T_PROTECTED,      /* the first complete checkpoint is on the other host */
    REMUS_T_REPROTECTED,    /* the same, or all is well again, after it had been worse */
    REMUS_T_DEGRADED,       /* less protected than it should be, or not at all, without a wish */
    REMUS_T_FENCING,        /* the hosts lost each other, or one gives up: who goes on is open */
    REMUS_T_FAILED_OVER,    /* the copy is the guest now */
    REMUS_T_STOPPED,        /* protection ended in order */
    REMUS_T_COUNT
};
/* The word that hooks get. */
const char *remus_transition_name(enum remus_transition t);

/* What an event of the core that led from one state to another means. */
enum remus_transition remus_transition_of_states(const struct remus_core *c,
                                                 enum remus_state before);
/* What the end of a session means; status: as of xl remus and xl remus-receive (0 to 7). */
enum remus_transition remus_transition_of_end(enum remus_role role, int status);

/* ---- Health ---- */

enum remus_health {
    REMUS_UNPROTECTED,      /* there is no copy that could take over, or it is not known */
    REMUS_DEGRADED,
    REMUS_HEALTHY,
};
const char *remus_health_name(enum remus_health h); /* "unprotected", "degraded", "ok" */

struct remus_health_facts {
    bool rules_lost;        /* the packet filter was changed since the last checkpoint */
    bool second_path_lost;  /* or silent: there was one */
    uint64_t lag_us;        /* age of the newest checkpoint that is whole on the other host */
};

/* Why it is less than healthy, in *why: a sentence without the domain, "" if it is. */
enum remus_health remus_health_judge(const struct remus_core *c,
                                     const struct remus_health_facts *facts, const char **why);

/* What is shown of it: worse at once, better when it was so for REMUS_HEALTH_HOLD_US, so that what
 * comes and goes is told of once. */
#define REMUS_HEALTH_HOLD_US 10000000u
struct remus_health_view {
    enum remus_health shown;
    uint64_t better_us;     /* better than shown since; 0: it is not */
};
/* REMUS_T_DEGRADED, REMUS_T_REPROTECTED or REMUS_T_NONE. */
enum remus_transition remus_health_show(struct remus_health_view *v, enum remus_health judged,
                                        uint64_t now_us);

/* Whether a copy could take over now, as far as this side knows. */
bool remus_core_protects(const struct remus_core *c);

#endif /* REMUS_TRANSITION_H */
