/*
 * blackhole.h: the other side of a session that has no other side (xl remus -b): it acknowledges
 * checkpoints and keeps nothing.
 */
#ifndef XL_BLACKHOLE_H
#define XL_BLACKHOLE_H

#include "tools/libxl/remus_transport.h"

/* Begins it as a child of this process; *out: as if ssh had started a receiver.  xen: the version
 * that it says it has. */
int blackhole_start(struct remus_ssh *out, const char *xen);

#endif /* XL_BLACKHOLE_H */
