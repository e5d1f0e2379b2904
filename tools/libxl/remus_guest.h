/*
 * remus_guest.h: what a coordinator asks of a guest through xenstore, Xen and libxenlight.
 *
 * Calls into libxenlight happen in a process of their own (remus-guest, guest-helper.c), because
 * they block for seconds and bring their own child handling.
 */
#ifndef REMUS_GUEST_H
#define REMUS_GUEST_H

#include <sys/types.h>

#include <xenstore.h>

#include "tools/libxc/xc_sr.h"
#include "tools/remus/ctl.h"

#define REMUS_NAME_MAX 64u

struct remus_vif {
    char netdev[16];                /* dom0's device: vifD.N */
    char bridge[16];                /* "" when the backend node names none */
    struct ctl_attach attach;       /* refs, ports and features as the frontend published them */
};

/* Interfaces of the guest, in order of their index. -E2BIG beyond REMUS_VIFS_MAX. */
int remus_guest_vifs(struct xs_handle *xs, uint32_t domid, struct remus_vif *vifs,
                     unsigned int *count);

/*
 * The frontends' nodes that a backend needs to attach, as the text of REMUS_RECORD_FRONTENDS.
 * net, disk: those of which kinds.  *text is malloc'ed.
 */
int remus_guest_frontends_read(struct xs_handle *xs, uint32_t domid, bool net, bool disk,
                               char **text, uint32_t *bytes);
/* Writes them under another domain after checking every path and value; backends' states go to
 * connected. -EBADMSG for what is not a frontend's node. */
int remus_guest_frontends_write(struct xs_handle *xs, uint32_t domid, const char *text,
                                uint32_t bytes);

/* "suspend" into control/shutdown; withdraw takes it back: -EALREADY if the guest has taken it, and
 * suspends after all. */
int remus_guest_suspend_ask(struct xs_handle *xs, uint32_t domid);
int remus_guest_suspend_withdraw(struct xs_handle *xs, uint32_t domid);

enum remus_guest_run { REMUS_GUEST_RUNS, REMUS_GUEST_SUSPENDED, REMUS_GUEST_ENDED };
/* reason: SHUTDOWN_* for ENDED, ~0 when the domain is gone or dying. */
enum remus_guest_run remus_guest_state(xc_interface *xch, uint32_t domid, uint32_t *reason);

/* A request that the guest took is followed by its suspend within this, or not at all: Linux gives
 * up freezing its processes after 20 s. */
#define REMUS_LATE_SUSPEND_MS 25000u

/*
 * For a thread that may block: asks for a suspend and waits on the watch until the guest has
 * done it.  cancelled is looked at a few times a second.  -ETIMEDOUT, -ECANCELED, -ESHUTDOWN (the
 * guest ended by itself); the request is withdrawn then.
 */
int remus_guest_suspend_wait(xc_interface *xch, uint32_t domid, unsigned int timeout_ms,
                             const volatile int *cancelled);

/*
 * Tells xenstored that the guest runs again: it fires @releaseDomain for a domain's shutdown only
 * once until it is told.  After every resume of a suspended guest.
 */
int remus_guest_resumed(struct xs_handle *xs, uint32_t domid);


/*
 * The process that `xl create` leaves behind acts on the guest's shutdown events and exits when it
 * sees a suspend: it is stopped (SIGSTOP) for as long as the guest is protected and finds the
 * present state when it goes on.  stop: adds those that are not there yet to pids[]; *count in and
 * out; but (0: none) is left alone.
 */
#define REMUS_XL_PIDS_MAX 4u
void remus_guest_xl_stop(const char *name, pid_t but, pid_t *pids, unsigned int *count);
void remus_guest_xl_continue(const pid_t *pids, unsigned int count);
/* Those that are stopped, of guests that are wanted, go on: how many. */
unsigned int remus_guest_xl_wake(bool (*wanted)(void *arg, const char *name), void *arg);

/*
 * The directory of the xenstore interface, readable by dom0 only; what is made in it inherits that
 * (xenstored, create_node).
 */
void remus_guest_publish_open(struct xs_handle *xs, uint32_t domid);
/* Whether the toolstack has not forgotten the domain: what is written then is removed by nobody. */
bool remus_guest_is_there(struct xs_handle *xs, uint32_t domid);
/* A node of it. */
void remus_guest_publish(struct xs_handle *xs, uint32_t domid, const char *node,
                         const char *value);
void remus_guest_unpublish(struct xs_handle *xs, uint32_t domid);

#endif /* REMUS_GUEST_H */
