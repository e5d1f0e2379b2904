/*
 * remus_hook.h: the executables in /etc/xen/remus.d: told of a session's transitions, or, those
 * whose names begin with "gate-", asked before something is begun (xl-remus-hooks(5)).
 *
 * Both block, for REMUS_HOOKS_MS and REMUS_GATES_MS at most: hooks run in a process of their own
 * (tools/xl/notifier.h), gates before a session or in a thread.
 */
#ifndef REMUS_HOOK_H
#define REMUS_HOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/libxc/xc_sr.h"
#include "tools/libxl/remus_core.h"
#include "tools/libxl/remus_program.h"

#define REMUS_HOOK_DIR   "/etc/xen/remus.d"
#define REMUS_HOOK_GATE  "gate-"
#define REMUS_HOOKS_MAX  64u        /* files that are looked at */
#define REMUS_HOOK_MS    30000u     /* for one */
#define REMUS_HOOKS_MS   60000u     /* for all of one transition */
#define REMUS_GATE_MS    10000u
#define REMUS_GATES_MS   20000u
#define REMUS_HOOK_LINES 100u       /* of what one prints are logged */

/* What is asked, and what it means if a gate gives no answer. */
enum remus_question {
    REMUS_ASK_BEGIN,        /* may protection begin?  none: no */
    REMUS_ASK_SWITCH,       /* may the copy take over on request?  none: no */
    REMUS_ASK_STOP,         /* may protection end on request?  none: yes */
    REMUS_ASK_COUNT
};

struct remus_hook_call {
    const char *dir;
    const char *word;       /* the transition's; gates: filled in */
    enum remus_role role;
    const char *domain, *peer, *mode, *session, *reason;
    uint32_t domid;         /* 0: not known */
    uint64_t epoch;         /* the newest acknowledged one */
    int status;             /* exit status of the session, if it has ended; -1 */
    unsigned int hook_ms, all_ms; /* limits; 0: those above */
};

/* What a hook printed, and what went wrong with one: sentences without the domain. */
typedef void (*remus_hook_say)(void *arg, enum xc_sr_level level, const char *text);

/* Whether there is anything to be run for a transition, or (gates) to be asked. */
bool remus_hooks_present(const char *dir, bool gates);
/* Runs the hooks one after the other. */
void remus_hooks_run(const struct remus_hook_call *call, remus_hook_say say, void *arg);
/*
 * Asks the gates one after the other.  0: nothing speaks against it; 1: said (a sentence) does;
 * -ECANCELED: give_up (may be NULL) said so.
 */
int remus_gates_ask(const struct remus_hook_call *call, enum remus_question question,
                    bool (*give_up)(void *arg), remus_hook_say say, void *arg, char *said,
                    size_t room);

#endif /* REMUS_HOOK_H */
