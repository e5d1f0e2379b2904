/*
 * nftbatch.h: transactions with nf_tables as netlink messages, for what libnftables is too slow for
 * or keeps no socket for.  Not shared between threads.
 */
#ifndef REMUS_NFTBATCH_H
#define REMUS_NFTBATCH_H

#include <stddef.h>
#include <stdint.h>

#include <linux/netfilter/nf_tables.h>
#include <netlink/msg.h>

#define NFT_BATCH_BYTES (16u << 10)

struct nft_batch {
    uint32_t sequence;
    size_t used;
    int rc;                     /* the first thing that went wrong */
    uint8_t bytes[NFT_BATCH_BYTES];
};

/* A netlink socket of netfilter's, that does not block. Negative errno. */
int nft_batch_open(int *fd);

/* begin; then messages, each made, filled and added; then send. */
void nft_batch_begin(struct nft_batch *b);
/* type: NFT_MSG_*; NULL (and .rc is set): no memory. */
struct nl_msg *nft_batch_message(struct nft_batch *b, int type, int flags);
/* Adds and frees it. failed: filling it was no success. The last one has NLM_F_ACK in its flags:
 * not every kernel acknowledges the end of a batch. */
void nft_batch_add(struct nft_batch *b, struct nl_msg *msg, int failed);
/* What the kernel answered: 0, or its errno, negative. */
int nft_batch_send(struct nft_batch *b, int fd);

/* An expression of a rule: its name, and its attributes, made by fill. */
struct nft_expression {
    const char *name;
    int (*fill)(struct nl_msg *msg, const void *arg);
    const void *arg;
};
/* NFTA_RULE_EXPRESSIONS of a rule. Not 0: failed. */
int nft_batch_expressions(struct nl_msg *msg, const struct nft_expression *e, size_t count);
/* Fillers that more than one rule uses; arg: */
int nft_load_meta(struct nl_msg *msg, const void *key);         /* uint32_t: NFT_META_* to reg 1 */
int nft_drop(struct nl_msg *msg, const void *unused);

#endif /* REMUS_NFTBATCH_H */
