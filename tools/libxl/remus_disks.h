/*
 * remus_disks.h: the disks of a guest under protection, and the colo-blkd that serves them: what
 * the coordinators do with them.  Private to tools/libxl.
 *
 * All of it is fine for a guest without disks, and does nothing.  0 or negative errno; what went
 * wrong has been logged.
 */
#ifndef REMUS_DISKS_H
#define REMUS_DISKS_H

#include "tools/libxl/remus_run.h"

void remus_disks_init(struct remus_disks *d);
/* What is left of a session: the daemon, unless it serves an active guest or an orphan. */
void remus_disks_dispose(struct remus_run *r);
/* The daemon that serves the disks, and its control socket; NULL, -1: none. */
struct remus_daemon *remus_disks_daemon(const struct remus_run *r);
int remus_disks_fd(const struct remus_run *r);
/* A daemon's message.  true: it was about the disks. */
bool remus_disks_control(struct remus_run *r, const struct ctl_in *in);

/* libxl asks a backend to close by its state node and waits ten seconds for the answer: tells
 * .watch when it does, and answers. */
void remus_disks_watch_closing(struct remus_run *r);
void remus_disks_answer_closing(struct remus_run *r);
/* A daemon died: another one serves the guest, by itself. */
void remus_disks_revive(struct remus_run *r);

/* Now and then: what is kept about this host's disks is renewed. */
void remus_disks_vouch(struct remus_run *r);
/* colo-blkd replicates no more, and has the guest's writes wait until that is no longer vouched
 * for. */
void remus_disks_channel_lost(struct remus_run *r);

/* ---- Primary ---- */

/* Reads what disks there are and starts colo-blkd; blkback serves them still. */
int remus_disks_open(struct remus_run *r);
/* From blkback, under the running guest, and begins to make the other host's equal: .synced. */
int remus_disks_protect(struct remus_run *r);
/* Of all rings; returns how many. */
unsigned int remus_disks_refs(const struct remus_run *r, uint32_t *refs, unsigned int max);
/* The guest is stopped: nothing is to be taken from its rings.  .rested when all is answered. */
int remus_disks_rest(struct remus_run *r);
/* It runs again.  cut: a new disk epoch begins.  triggers: its first write is to ask for a
 * checkpoint. */
void remus_disks_go(struct remus_run *r, bool cut, bool triggers);
/* colo-blkd ends; the disks go back to blkback, or are closed because the guest has ended, or are
 * left with nobody, because the guest is stopped and it is not known whether it goes on. */
enum remus_disks_fate { REMUS_DISKS_SERVED, REMUS_DISKS_CLOSED, REMUS_DISKS_LEFT };
void remus_disks_give(struct remus_run *r, enum remus_disks_fate fate);
/* The session is over, and colo-blkd serves the guest on.  false: it cannot be, they are to be
 * given back. */
bool remus_disks_keep(struct remus_run *r);
/* Then: colo-blkd ends, and the next session's goes on where it was. */
void remus_disks_leave(struct remus_run *r);

/* ---- Secondary ---- */

/* Opens the disks that .p names, and a store beside them, and starts colo-blkd. */
int remus_disks_receive(struct remus_run *r);
/* The copy is built, and has not run: from its blkback. */
int remus_disks_adopt(struct remus_run *r);
/* While it connects its frontends for the first time: 1: all are; 0: not yet. */
int remus_disks_connect(struct remus_run *r);
/* While the copy is paused, in this order. */
int remus_disks_detach(struct remus_run *r);
int remus_disks_commit(struct remus_run *r, uint64_t epoch);
int remus_disks_attach(struct remus_run *r, bool moved); /* moved: its frontends' nodes changed */
/* It runs. */
int remus_disks_run(struct remus_run *r);
int remus_disks_takeover(struct remus_run *r);
/* After that, again and again: blkback gets the disks when everything is on them. */
void remus_disks_settle(struct remus_run *r);
/* Then: whether somebody wants them of those that were kept for another session. */
void remus_disks_obey(struct remus_run *r);
/* There are none, or the kernel's backend has them again. */
bool remus_disks_settled(const struct remus_run *r);
/* The guest has ended, or is to be destroyed: waits until what it has written is on the disks. */
void remus_disks_end(struct remus_run *r);

#endif /* REMUS_DISKS_H */
