/*
 * rescue.h: repairing a guest after the coordinator on its host died.
 *
 * A coordinator that returns leaves nothing behind.  One that was killed may leave the guest
 * suspended, with log-dirty on, its minder (the process of `xl create`) stopped, and its interfaces
 * steered to queues that nobody serves, which drops all of its output: a fence.
 */
#ifndef XL_RESCUE_H
#define XL_RESCUE_H

#include <stdbool.h>
#include <stdint.h>

typedef void (*rescue_say)(void *arg, const char *text);

/* A domain's number is given again: what is done to one after a while has to be done to this. */
struct rescue_guest {
    uint32_t domid;
    const char *name;
    const char *uuid;       /* NULL: not known, looked up just now */
};

/* Whether that is still the domain of this number. */
bool rescue_is_there(const struct rescue_guest *guest);
/*
 * Lets the guest run.  unfence: its output may leave, too; the caller knows that no copy of it
 * runs elsewhere.  Else it is cut off first, and stays as it is if that fails; its minder is not
 * woken, which would start it anew, without a fence, when it reboots; and its interfaces are down
 * afterwards, as nobody is left to hear of it when a firewall's reload removes the rules.  0: the
 * guest runs; -ESRCH: it is gone; others: what could not be repaired was said.
 */
int rescue_resume(const struct rescue_guest *guest, bool unfence, rescue_say say, void *arg);
/*
 * After a coordinator that returned: makes sure that the guest is neither suspended nor paused, and
 * unfenced.  Says nothing when all is well.  wait: a suspend may still be on its way.
 */
int rescue_check(const struct rescue_guest *guest, bool wait, rescue_say say, void *arg);
/* Takes the interfaces of a guest down that the rules of a dead session fence.  Whether there are
 * any. */
bool rescue_cut_off(uint32_t domid);
/* Whether it is stopped, as a guest is whose copy was told to take over. */
bool rescue_is_paused(uint32_t domid);
/* The copy elsewhere is the guest now: destroys the one here, without a word from it. */
int rescue_destroy(const struct rescue_guest *guest, rescue_say say, void *arg);

#endif /* XL_RESCUE_H */
