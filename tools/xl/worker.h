/*
 * worker.h: the process that runs a coordinator, as its supervisor sees it.
 *
 * The supervisor is the process that was started (terminal, ssh); the worker is a child in a
 * session of its own, so that Ctrl-C does not reach it, and with nothing of the terminal open.
 * The worker tells log lines, statuses and the result over a packet socket, each one datagram of
 * plain data (same program, same host).  It outlives neither by accident:
 *  - worker dies: the supervisor sees the end of the socket without a result (worker_reap says
 *  how);
 *  - supervisor dies: a primary's worker ends protection in order, since nobody would be left to
 *    repair after it; a secondary's goes on, since the link is what counts there.
 */
#ifndef XL_WORKER_H
#define XL_WORKER_H

#include <stdbool.h>
#include <sys/types.h>

#include "tools/libxl/remus_session.h"

enum worker_news {
    WORKER_NOTHING,         /* nothing more for now */
    WORKER_LOG,             /* .level, .text */
    WORKER_STATUS,          /* .status */
    WORKER_TRANSITION,      /* .transition: a moment that hooks are told of */
    WORKER_COMMITTED,       /* see remus_session.h */
    WORKER_ACTIVE,          /* .domid: the secondary took over */
    WORKER_SETTLED,         /* .domid: and is no session any more */
    WORKER_RESULT,          /* .rc, .result: the coordinator returned */
    WORKER_ENDED,           /* the process is gone; worker_reap */
};

struct worker_message {     /* header and, by type, one of the rest */
    uint32_t type;          /* enum worker_news */
    int32_t rc;
    uint32_t level, domid;
    union {
        char text[1024];
        struct remus_status status;
        struct remus_session_result result;
        struct {
            uint64_t epoch;
            uint32_t what;  /* enum remus_transition */
            char reason[200];
        } transition;
    };
};

struct worker {
    pid_t pid;              /* 0: none, or reaped */
    int fd;                 /* to poll for POLLIN; -1: closed */
};

/*
 * Forks.  The child keeps only standard input (/dev/null), output and error (log_fd), the
 * descriptors of params and its own socket, lock_fd among the inherited ones (held, not used).
 * params' callbacks and stop_request are filled in here.
 */
int worker_start(struct worker *out, const struct remus_session_params *params, int log_fd,
                 int lock_fd);
/* Reads one message without waiting. */
enum worker_news worker_next(struct worker *w, struct worker_message *m);
/* Asks for an orderly end. */
void worker_stop(const struct worker *w);
/* After WORKER_ENDED or WORKER_RESULT: waits for the process; its wait status. */
int worker_reap(struct worker *w);
void worker_kill(struct worker *w);
/* One that goes on by itself after WORKER_RESULT (.disks_kept). */
void worker_let_go(struct worker *w);

#endif /* XL_WORKER_H */
