/*
 * privdrop.h: what a packet daemon does before it reads its first byte from a guest or a peer.
 *
 * In this order: an empty read-only root (a mount namespace of its own), an unprivileged user, the
 * capabilities that were asked for and no others (bounding set emptied), no new privileges, not
 * dumpable, and a system call allow-list.  A call outside the list fails with EPERM; anything that
 * would open, connect, execute or trace is outside.  Descriptors open by then stay open.
 */
#ifndef REMUS_PRIVDROP_H
#define REMUS_PRIVDROP_H

#include <stddef.h>
#include <stdint.h>

/* A system call allowed beyond the common list (reading, writing, epoll, timers, memory, time). */
struct privdrop_syscall {
    int number;              /* SCMP_SYS(name), seccomp.h */
    int arg;                 /* allow only when argument `arg` has this value; -1: always */
    uint64_t value;
};

struct privdrop_options {
    int death_signal;          /* what this process gets when its parent dies; 0: none */
    const char *user;                            /* NULL: "nobody" */
    const int *capabilities;                     /* CAP_*, kept; all others go */
    size_t capability_count;
    const struct privdrop_syscall *syscalls;
    size_t syscall_count;
};

/* Needs root.  0, or negative errno with a sentence in error: the caller ends then, as privileges
 * may be half gone. */
int remus_privdrop(const struct privdrop_options *options, char *error, size_t error_bytes);

#endif /* REMUS_PRIVDROP_H */
