/*
 * notifier.h: the process that runs a session's hooks, as its supervisor sees it.
 *
 * Nothing waits for a hook: the supervisor puts a notice into a socket and goes on.  The notices of
 * a session are worked off in their order, also after the supervisor's end; the process ends behind
 * the last one.  It is there only once there was something to be run.
 */
#ifndef XL_NOTIFIER_H
#define XL_NOTIFIER_H

#include <stdbool.h>
#include <sys/types.h>

#include "tools/libxc/xc_sr.h"
#include "tools/libxl/remus_hook.h"
#include "tools/libxl/remus_transition.h"

struct notice {             /* plain data: same program, same host */
    enum remus_transition what;
    enum remus_role role;
    uint32_t domid;
    int32_t status;         /* of the session, if it has ended; -1 */
    uint64_t epoch;
    char domain[64], peer[256], mode[16], session[40], reason[1024];
};

struct notifier {
    const char *dir;
    int fd;                 /* to poll for POLLIN; -1: there is none */
    int log_fd;             /* where hooks' output goes; -1: nowhere */
};

#define NOTIFIER_INIT {.dir = REMUS_HOOK_DIR, .fd = -1, .log_fd = -1}

/* Never waits.  Negative errno: the hooks will not hear of it (-EAGAIN: too many wait). */
int notifier_tell(struct notifier *n, const struct notice *notice);
/* What went wrong with a hook, for the user.  false: nothing more for now. */
bool notifier_next(struct notifier *n, char *text, size_t room);
void notifier_close(struct notifier *n);

#endif /* XL_NOTIFIER_H */
