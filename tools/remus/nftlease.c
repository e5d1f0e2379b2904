/* nftlease.c: see nftlease.h. */
#include "tools/remus/nftlease.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tools/remus/nftbatch.h"

#define LEASE_TABLE   "remus"
#define NS_PER_MS     1000000ull
#define NS_PER_S      1000000000ull

struct remus_lease {
    int fd;
    struct nft_batch batch;
};

int remus_lease_open(struct remus_lease **out)
{
    struct remus_lease *lease = calloc(1, sizeof(*lease));
    int rc;

    *out = NULL;
    if (!lease) {
        return -ENOMEM;
    }
    rc = nft_batch_open(&lease->fd);
    if (rc) {
        free(lease);
        return rc;
    }
    *out = lease;
    return 0;
}

void remus_lease_close(struct remus_lease *lease)
{
    if (lease) {
        close(lease->fd);
        free(lease);
    }
}

/* One element of the set; ms 0: without a timeout of its own (one to be deleted). */
static void element(struct nft_batch *b, int type, int flags, const char *vif, uint64_t ms)
{
    struct nl_msg *msg = nft_batch_message(b, type, flags |
                                           (type == NFT_MSG_NEWSETELEM ? NLM_F_CREATE : 0));
    struct nlattr *elements, *one, *key;
    char name[IFNAMSIZ] = "";
    uint64_t wire = htobe64(ms);
    int failed = 1;

    strncpy(name, vif, sizeof(name) - 1);
    if (msg && !nla_put_string(msg, NFTA_SET_ELEM_LIST_TABLE, LEASE_TABLE) &&
        !nla_put_string(msg, NFTA_SET_ELEM_LIST_SET, REMUS_NFT_LEASE_SET) &&
        (elements = nla_nest_start(msg, NFTA_SET_ELEM_LIST_ELEMENTS)) &&
        (one = nla_nest_start(msg, NFTA_LIST_ELEM)) &&
        (key = nla_nest_start(msg, NFTA_SET_ELEM_KEY)) &&
        !nla_put(msg, NFTA_DATA_VALUE, sizeof(name), name)) {
        nla_nest_end(msg, key);
        failed = ms && nla_put(msg, NFTA_SET_ELEM_TIMEOUT, sizeof(wire), &wire);
        nla_nest_end(msg, one);
        nla_nest_end(msg, elements);
    }
    nft_batch_add(b, msg, failed);
}

/* Registers are compared byte by byte. */
static int turn_bytes(struct nl_msg *msg, const void *unused)
{
    (void)unused;
    return nla_put_u32(msg, NFTA_BYTEORDER_SREG, htonl(NFT_REG_1)) ||
           nla_put_u32(msg, NFTA_BYTEORDER_DREG, htonl(NFT_REG_1)) ||
           nla_put_u32(msg, NFTA_BYTEORDER_OP, htonl(NFT_BYTEORDER_HTON)) ||
           nla_put_u32(msg, NFTA_BYTEORDER_LEN, htonl(sizeof(uint64_t))) ||
           nla_put_u32(msg, NFTA_BYTEORDER_SIZE, htonl(sizeof(uint64_t)));
}

static int later_than(struct nl_msg *msg, const void *until_ns)
{
    uint64_t wire = htobe64(*(const uint64_t *)until_ns);
    struct nlattr *data;

    if (nla_put_u32(msg, NFTA_CMP_SREG, htonl(NFT_REG_1)) ||
        nla_put_u32(msg, NFTA_CMP_OP, htonl(NFT_CMP_GT)) ||
        !(data = nla_nest_start(msg, NFTA_CMP_DATA)) ||
        nla_put(msg, NFTA_DATA_VALUE, sizeof(wire), &wire)) {
        return -1;
    }
    nla_nest_end(msg, data);
    return 0;
}

/* The rules of a vif's chain go, or (until_ns) `meta time > until_ns drop` comes. */
static void rule(struct nft_batch *b, const char *vif, uint64_t until_ns)
{
    static const uint32_t time_key = NFT_META_TIME_NS;
    const struct nft_expression expressions[] = {
        { "meta", nft_load_meta, &time_key }, { "byteorder", turn_bytes, NULL },
        { "cmp", later_than, &until_ns }, { "immediate", nft_drop, NULL },
    };
    struct nl_msg *msg = nft_batch_message(b, until_ns ? NFT_MSG_NEWRULE : NFT_MSG_DELRULE,
                                           until_ns ? NLM_F_CREATE | NLM_F_APPEND : 0);
    char chain[sizeof(REMUS_NFT_UNTIL) + IFNAMSIZ];

    snprintf(chain, sizeof(chain), REMUS_NFT_UNTIL "%s", vif);
    nft_batch_add(b, msg, !msg || nla_put_string(msg, NFTA_RULE_TABLE, LEASE_TABLE) ||
                  nla_put_string(msg, NFTA_RULE_CHAIN, chain) ||
                  (until_ns && nft_batch_expressions(msg, expressions, 4)));
}

int remus_lease_renew(struct remus_lease *lease, const char *const *vifs, unsigned int count,
                      uint64_t ms)
{
    struct nft_batch *b = &lease->batch;
    struct timespec now;
    uint64_t until_ns;
    unsigned int i;

    if (!count || count > REMUS_LEASE_VIFS || !ms) {
        return -EINVAL;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    until_ns = (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec + ms * NS_PER_MS;
    nft_batch_begin(b);
    for (i = 0; i < count; i++) {
        /* Made, so that it can be deleted even if the old one is over. */
        element(b, NFT_MSG_NEWSETELEM, 0, vifs[i], 1000);
        element(b, NFT_MSG_DELSETELEM, 0, vifs[i], 0);
        rule(b, vifs[i], 0);
        rule(b, vifs[i], until_ns);
        element(b, NFT_MSG_NEWSETELEM, i + 1 == count ? NLM_F_ACK : 0, vifs[i], ms);
    }
    return nft_batch_send(b, lease->fd);
}
