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

/* The program's name, which begins each line.  Ignores SIGPIPE and SIGHUP; on_signal is called for
 * SIGTERM and SIGINT. */
void daemon_start(const char *name, void (*on_signal)(int number));

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
