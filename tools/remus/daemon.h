/*
 * daemon.h: what colo-shadowd and colo-blkd, the back ends of a guest's devices, have in common.
 *
 * Messages go to stderr, which the coordinator puts into the session's log.  One thread.
 */
#ifndef REMUS_DAEMON_H
#define REMUS_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum daemon_level { DAEMON_ERROR, DAEMON_WARNING, DAEMON_INFO, DAEMON_DEBUG };

/* name: the program's, which begins each line.  Ignores SIGPIPE and SIGHUP; SIGTERM and SIGINT are
 * noted. */
void daemon_start(const char *name);
/* Whether SIGTERM or SIGINT came since it was asked last. */
bool daemon_terminated(void);

/*
 * The event channels' descriptor is readable: unmasks what has rung, so that what comes later rings
 * again.  Which port it was does not matter to a back end that looks at all its rings in each
 * round.  All that have rung in one call each way: libxenevtchn takes one at a time, and has to be
 * asked whether there is another.  fd must not block: what poll told of may be gone.
 * 0 or negative errno.
 */
int daemon_events(int fd);

void daemon_say(enum daemon_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* For what a guest or a peer can cause at will: false after the first 20 messages of a second. */
bool daemon_may_say(uint32_t domid, uint64_t now_us);

uint64_t daemon_clock_us(clockid_t clock);

/* 0; -EINVAL: not a decimal number up to max. */
int daemon_parse_number(const char *text, uint32_t max, uint32_t *out);
/* error, warning, info, debug: what is less urgent is not said from now on.  0; -EINVAL. */
int daemon_parse_level(const char *text);

#endif /* REMUS_DAEMON_H */
