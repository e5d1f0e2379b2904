/*
 * nftrules.h: steering a vif's frames into netfilter queues, and fencing a vif.
 *
 *   table bridge remus
 *     prerouting,  first:  iifname in fenced: drop; go where output[iifname] says
 *     postrouting, last:   the same with oifname and input
 *     prerouting, second:  iifname in leased, but not in lease: drop; go where until[iifname] says
 *
 * A protected vif has two chains of its own, output-QUEUE and input-QUEUE, named after their first
 * queue: accept what the operator declared unprotected, queue the rest.  A third, until-VIF, is
 * nftlease.h's.
 *
 * One table for all guests of the host.  Base chains and their rules are made with it and never
 * changed: the kernel drops the frames of every queue when a base chain goes
 * (nf_queue_nf_hook_drop), so only the maps change while a guest is protected.  No rule has the
 * kernel's `bypass` flag: with nobody listening to a queue, what is steered there is dropped.
 *
 * Somebody else may remove all of it: then nftguard.h keeps the output in, and nftwatch.h tells.
 *
 * For the coordinator, with CAP_NET_ADMIN.  Changes are single transactions, and a lock file keeps
 * the coordinators of several guests out of each other's way.  Each function returns 0 or a
 * negative errno with a sentence in error.
 */
#ifndef REMUS_NFTRULES_H
#define REMUS_NFTRULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/remus/bypass.h"
#include "tools/remus/ctl.h"

#define REMUS_NFT_VIF_BYTES 16   /* IFNAMSIZ: name and NUL */

/* *first: the lowest of `count` queue numbers in a row that neither a rule of ours nor a listener
 * uses.  Blocks of `count` are looked at in turn, beginning with the one that domain domid would
 * have if all were free, so that two coordinators at the same time do not choose the same. */
int remus_nft_free_queues(uint32_t domid, unsigned int count, uint16_t *first, char *error,
                          size_t error_bytes);

/* From the return on, no frame of the vif passes without a verdict of these queues (for output
 * CTL_OUTPUT_QUEUES of them, from output_queue on), but for what the count entries of bypass match.
 * A vif that is known already moves to the new queues and list; its fence, if any, stays. */
int remus_nft_protect(const char *vif, uint16_t output_queue, uint16_t input_queue,
                      const struct remus_bypass *bypass, unsigned int count, char *error,
                      size_t error_bytes);

/* From the return on, a frame of the vif passes only while it holds a lease (nftlease.h), whatever
 * verdict it got. */
int remus_nft_need_lease(const char *vif, char *error, size_t error_bytes);

/* Steering, fence and need of a lease of the vif go.  Nothing that waits in a queue is dropped, for
 * the table stays.  Unknown vif: 0. */
int remus_nft_release(const char *vif, char *error, size_t error_bytes);
/* The same, and with the last vif the table goes. */
int remus_nft_unprotect(const char *vif, char *error, size_t error_bytes);

/* Whether all that remus_nft_protect (and, leased, remus_nft_need_lease) made for a vif is there.
 * -ENOENT: not all of it. */
int remus_nft_check(const char *vif, uint16_t output_queue, uint16_t input_queue, bool leased,
                    char *error, size_t error_bytes);

/* Removes the table, whatever is left of it, so that remus_nft_protect makes a whole one; the other
 * coordinators of this host see that (nftwatch.h). */
int remus_nft_reset(char *error, size_t error_bytes);

/* From the return on, no frame enters or leaves through the vif, whoever listens; protected or not.
 * Frames already in a queue are not touched: CTL_FENCE, or the end of colo-proxyd, drops those. */
int remus_nft_fence(const char *vif, char *error, size_t error_bytes);

struct remus_nft_vif {
    char name[REMUS_NFT_VIF_BYTES];
    bool steered;            /* queues below are valid */
    bool fenced, leased;
    uint16_t output_queue;   /* the first of CTL_OUTPUT_QUEUES */
    uint16_t input_queue;
};
/* Everything in the table, up to max entries; *count: how many there are.  For cleaning up after a
 * coordinator that died. */
int remus_nft_list(struct remus_nft_vif *vifs, size_t max, size_t *count, char *error,
                   size_t error_bytes);

#endif /* REMUS_NFTRULES_H */
