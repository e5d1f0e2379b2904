/*
 * remus_arbiter.h: who may go on, when the two hosts have lost each other.
 *
 * An arbiter is a program LIBEXEC/arbiter-NAME that either side runs with one word:
 *   check     would `acquire` work from here?  0: yes
 *   acquire   0: this side goes on, the other one is out and stays so; 1: this side is out
 * Any other status, or an end by a signal, says that nobody knows yet: it is asked again.  A side
 * may ask twice and gets the same answer.  Of one session at most one side is ever granted.
 *
 * What a program is given, in its environment:
 *   REMUS_ARG      what follows the ':' in --arbiter NAME:ARG, may be empty
 *   REMUS_SESSION  UUID of the session, the same on both sides
 *   REMUS_ROLE     primary or secondary
 *   REMUS_DOMAIN   name of the guest
 *   REMUS_PEER     the other host
 * The last line that it prints is the reason that users see.
 */
#ifndef REMUS_ARBITER_H
#define REMUS_ARBITER_H

#include <stdbool.h>
#include <stddef.h>

#include "tools/libxl/remus_core.h"
#include "tools/libxl/remus_program.h"

#define REMUS_ARBITER_BYTES  256u   /* NAME:ARG and NUL */
#define REMUS_ARBITER_NONE   "none" /* no program: whoever asks goes on */
#define REMUS_ARBITER_SAID   REMUS_PROGRAM_SAID
#define REMUS_ARBITER_CHECK_MS 15000u

struct remus_arbiter {
    const char *spec;               /* NAME or NAME:ARG */
    const char *libexec, *session, *domain, *peer;
    enum remus_role role;
    /* Asked several times a second while the program runs; true ends it.  May be NULL. */
    bool (*give_up)(void *arg);
    void *arg;
};

/* Whether spec can be one at all: a name of [a-z0-9-], an argument without control characters. */
bool remus_arbiter_ok(const char *spec);
bool remus_arbiter_is_none(const char *spec);
/*
 * Runs the program.  0: granted, or the check is good; 1: denied; -ETIME: not within timeout_ms (0:
 * without limit); -ECANCELED: give_up said so; other negative errno: nobody knows.  said
 * [REMUS_ARBITER_SAID]: its last line, fit for a terminal.
 */
int remus_arbiter_run(const struct remus_arbiter *a, const char *word, unsigned int timeout_ms,
                      char *said);

#endif /* REMUS_ARBITER_H */
