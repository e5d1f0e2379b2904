/* labwork.h: work as a compiler does it: it computes, and writes memory, as fast as it can. */
#ifndef LABWORK_H
#define LABWORK_H

#include <stdbool.h>
#include <stddef.h>

/*
 * "work <ROUNDS> [<M>]": from now on a thread of its own sums up a page ROUNDS times, writes what
 * comes of it all through that page, and goes on to the next, among M pages (default 4096).  It
 * never waits, so what it gets done tells what the guest was given.  0 ends it.  "ok".
 * "progress": "<pages since the guest was booted>".
 * False if the line is neither.
 */
bool labwork_command(const char *line, char *answer, size_t size);

#endif
