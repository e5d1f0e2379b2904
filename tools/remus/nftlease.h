/*
 * nftlease.h: the right of a guest's output to leave this host, for a bounded time, in the kernel.
 *
 * A coordinator that checks before it lets output go can sleep between the check and the frame's
 * way out: its process may be stopped, its host frozen for longer than the other one waits.  So
 * each frame of the guest has to pass two tests in table bridge remus (nftrules.h), which the
 * coordinator renews as long as it knows that the other host has heard of it:
 *   - an element with a timeout, which goes by the kernel's ticks: no clock that somebody sets;
 *   - a rule with the time of day at which it ends: ticks of a sleep are counted some time after
 *     the host has woken, the clock is read for each frame.
 *
 * Renewing takes one message to the kernel and no lock that somebody could hold for long; both are
 * made again rather than updated (kernels before 6.12 cannot do that with an element), in one
 * transaction, so that no frame meets a moment without.
 */
#ifndef REMUS_NFTLEASE_H
#define REMUS_NFTLEASE_H

#include <stdint.h>

#define REMUS_NFT_LEASE_SET "lease"
#define REMUS_NFT_UNTIL     "until-" /* and the vif: a chain for the second test */
#define REMUS_LEASE_VIFS    16u  /* names in one renewal */

struct remus_lease;

/* The table must be there (remus_nft_protect). Negative errno. */
int remus_lease_open(struct remus_lease **out);
void remus_lease_close(struct remus_lease *lease);
/* The vifs hold a lease for ms milliseconds from now, instead of any that they held. */
int remus_lease_renew(struct remus_lease *lease, const char *const *vifs, unsigned int count,
                      uint64_t ms);

#endif /* REMUS_NFTLEASE_H */
