/*
 * nftguard.h: what keeps a guest's output in when somebody else takes the rules of protection away.
 *
 * `nft flush ruleset`, with which every reload of nftables.service begins, removes table bridge
 * remus (nftrules.h): the guest's output would leave without comparison until somebody noticed.
 * So there is a second table that only one netlink socket may change or remove
 * (NFT_TABLE_F_OWNER, since Linux 5.12; the flush passes over it):
 *
 *   table bridge remus-guard-DOMID, owned
 *     prerouting, behind the other's chains:  iifname VIF, mark bit not set: drop
 *                                             iifname VIF: clear the mark bit
 *
 * The bit is set by the rule that queues a frame, and only by that; it exists between the two hooks
 * and nowhere else.
 *
 * The kernel removes the table when nobody has the socket open any more: the other table, which
 * stays, is then what drops a frame that nobody judges.  So supervisor and coordinator both have
 * it.
 */
#ifndef REMUS_NFTGUARD_H
#define REMUS_NFTGUARD_H

#include <stdint.h>

#define REMUS_NFT_MARK  0x40000000u
#define REMUS_NFT_MARK_TEXT "0x40000000"

/* The socket; it is closed with close(2). */
int remus_guard_open(int *fd);
/* From the return on a frame of the vifs passes only if it was queued; instead of what was there.
 * Only one of those who have the socket at a time. */
int remus_guard_set(int fd, uint32_t domid, const char *const *vifs, unsigned int count);
/* Everything passes again; the table stays, because the end of a chain at a hook drops what waits
 * in any queue of the host. */
int remus_guard_relax(int fd, uint32_t domid);
/* It need not be there. */
int remus_guard_clear(int fd, uint32_t domid);

#endif /* REMUS_NFTGUARD_H */
