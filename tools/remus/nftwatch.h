/*
 * nftwatch.h: hearing of it when something is taken away from table bridge remus (nftrules.h), by a
 * firewall's reload for instance.
 */
#ifndef REMUS_NFTWATCH_H
#define REMUS_NFTWATCH_H

#include <stdbool.h>

/* A socket to poll for POLLIN; it is closed with close(2). Negative errno. */
int remus_nftwatch_open(int *fd);
/* Reads what is there.  Whether something may be missing: by somebody's hand, or by ours. */
bool remus_nftwatch_read(int fd);

#endif /* REMUS_NFTWATCH_H */
