/*
 * keep.h: sessions one after the other: xl remus --reprotect and --keep-trying.
 *
 * Each attempt is a process of its own, with everything that a session has, so that nothing of one
 * is left for the next.  The process that was started waits, passes on the request to stop, and
 * begins again after KEEP_PAUSE_S when that makes sense.
 */
#ifndef XL_KEEP_H
#define XL_KEEP_H

#include <stdbool.h>

#define KEEP_PAUSE_S 15u

/* first: this attempt is the first one.  Whether another may do better. */
typedef bool (*keep_again)(void *arg, int code, bool first);
/* Exit status of the last attempt. */
int keep(int (*attempt)(void *arg), keep_again again, void *arg);

#endif /* XL_KEEP_H */
