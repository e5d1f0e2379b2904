/*
 * remus_offsets.h: connections of a running guest whose sequence numbers the kernel changes.
 *
 * A copy that took over has chosen initial sequence numbers of its own for the connections of the
 * epoch in which that happened.  When the kernel's backend takes its interfaces from colo-shadowd,
 * the kernel goes on changing those numbers (offsets.bpf.c, in tc at the vif): nothing is left in
 * user space that could fail, and the guest can be protected again while they are open.  The table
 * lives as long as the device does.
 *
 * Needs Linux 5.17, CONFIG_NET_CLS_BPF, CONFIG_NET_SCH_INGRESS and the BPF compiler.  Functions
 * return 0 or a negative errno.
 */
#ifndef REMUS_OFFSETS_H
#define REMUS_OFFSETS_H

#include <stdbool.h>

#include "tools/libxl/offsets_map.h"
#include "xen/include/public/remus.h"

struct remus_offsets;

/*
 * A place for programs (the queueing discipline clsact) at a device that is down. Linux stops one
 * that is up to make it, and drops what it has to send meanwhile.
 */
int remus_offsets_prepare(const char *device);
/* Programs and an empty table, at no device yet. -EPERM, -EINVAL: this kernel does not. */
int remus_offsets_new(struct remus_offsets **out);
/* The library's newest complaint, for a log: "" if it had none. */
const char *remus_offsets_said(void);
/* The table of a device; -ENOENT: it has none. */
int remus_offsets_find(struct remus_offsets **out, const char *device);
/* What is attached stays. */
void remus_offsets_free(struct remus_offsets *o);

/* .vif is not looked at. -E2BIG: OFFSETS_MAX are in it. */
int remus_offsets_add(struct remus_offsets *o, const struct remus_offset *offset);
/* remus_offsets_add() was called. */
bool remus_offsets_used(const struct remus_offsets *o);
/* Of one that remus_offsets_new() gave. -EEXIST: the device has a table. */
int remus_offsets_attach(struct remus_offsets *o, const char *device);
/*
 * For at most timeout_ms the frames that the device gets from the guest come in at another device
 * instead, and none goes to the guest by it. NULL: no more.
 */
int remus_offsets_redirect(struct remus_offsets *o, const char *tap, unsigned int timeout_ms);
/* What remus_offsets_attach() has attached. */
int remus_offsets_detach(const char *device);

/*
 * All connections in it, with .vif as given: count of them to list, which has OFFSETS_MAX places.
 * Those that have ended, or were silent for as long as connections are remembered, are forgotten.
 */
int remus_offsets_read(struct remus_offsets *o, unsigned int vif, struct remus_offset *list,
                       unsigned int *count);

/* The programs' descriptors, for tests of what they do. */
int remus_offsets_program(const struct remus_offsets *o, bool to_guest);

#endif /* REMUS_OFFSETS_H */
