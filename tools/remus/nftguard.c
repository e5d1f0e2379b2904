/* nftguard.c: see nftguard.h. */
#include "tools/remus/nftguard.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <linux/netfilter_bridge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/remus/nftbatch.h"

#define GUARD_PRIORITY (-348)       /* nftrules.c has -350 and -349 */
#define GUARD_CHAIN    "guard"
#define GUARD_NAME     32u

static void table_name(char name[GUARD_NAME], uint32_t domid)
{
    snprintf(name, GUARD_NAME, "remus-guard-%u", domid);
}

static void table(struct nft_batch *b, int type, int flags, const char *name)
{
    struct nl_msg *msg = nft_batch_message(b, type, flags);

    nft_batch_add(b, msg, !msg || nla_put_string(msg, NFTA_TABLE_NAME, name) ||
                  (type == NFT_MSG_NEWTABLE &&
                   nla_put_u32(msg, NFTA_TABLE_FLAGS, htonl(NFT_TABLE_F_OWNER))));
}

static void chain(struct nft_batch *b, const char *name)
{
    struct nl_msg *msg = nft_batch_message(b, NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL);
    struct nlattr *hook;
    int failed = 1;

    if (msg && !nla_put_string(msg, NFTA_CHAIN_TABLE, name) &&
        !nla_put_string(msg, NFTA_CHAIN_NAME, GUARD_CHAIN) &&
        !nla_put_string(msg, NFTA_CHAIN_TYPE, "filter") &&
        !nla_put_u32(msg, NFTA_CHAIN_POLICY, htonl(NF_ACCEPT)) &&
        (hook = nla_nest_start(msg, NFTA_CHAIN_HOOK))) {
        failed = nla_put_u32(msg, NFTA_HOOK_HOOKNUM, htonl(NF_BR_PRE_ROUTING)) ||
                 nla_put_u32(msg, NFTA_HOOK_PRIORITY, htonl((uint32_t)GUARD_PRIORITY));
        nla_nest_end(msg, hook);
    }
    nft_batch_add(b, msg, failed);
}

static int put_data(struct nl_msg *msg, int attribute, const void *bytes, int count)
{
    struct nlattr *data = nla_nest_start(msg, attribute);

    if (!data || nla_put(msg, NFTA_DATA_VALUE, count, bytes)) {
        return -1;
    }
    nla_nest_end(msg, data);
    return 0;
}

static int put_cmp(struct nl_msg *msg, const void *bytes, int count)
{
    return nla_put_u32(msg, NFTA_CMP_SREG, htonl(NFT_REG_1)) ||
           nla_put_u32(msg, NFTA_CMP_OP, htonl(NFT_CMP_EQ)) ||
           put_data(msg, NFTA_CMP_DATA, bytes, count);
}

static int is_name(struct nl_msg *msg, const void *vif)
{
    char name[IFNAMSIZ] = "";

    strncpy(name, vif, sizeof(name) - 1);
    return put_cmp(msg, name, sizeof(name));
}

static int is_zero(struct nl_msg *msg, const void *unused)
{
    const uint32_t zero = 0;

    (void)unused;
    return put_cmp(msg, &zero, sizeof(zero));
}

/* Marks are in the registers as the CPU has them. */
static int and_with(struct nl_msg *msg, const void *mask)
{
    const uint32_t zero = 0;

    return nla_put_u32(msg, NFTA_BITWISE_SREG, htonl(NFT_REG_1)) ||
           nla_put_u32(msg, NFTA_BITWISE_DREG, htonl(NFT_REG_1)) ||
           nla_put_u32(msg, NFTA_BITWISE_LEN, htonl(sizeof(uint32_t))) ||
           put_data(msg, NFTA_BITWISE_MASK, mask, sizeof(uint32_t)) ||
           put_data(msg, NFTA_BITWISE_XOR, &zero, sizeof(zero));
}

static int store_mark(struct nl_msg *msg, const void *unused)
{
    (void)unused;
    return nla_put_u32(msg, NFTA_META_KEY, htonl(NFT_META_MARK)) ||
           nla_put_u32(msg, NFTA_META_SREG, htonl(NFT_REG_1));
}

static int count(struct nl_msg *msg, const void *unused)
{
    (void)unused;
    return nla_put_u64(msg, NFTA_COUNTER_BYTES, 0) || nla_put_u64(msg, NFTA_COUNTER_PACKETS, 0);
}

static void rule(struct nft_batch *b, const char *name, int flags, const struct nft_expression *e,
                 size_t length)
{
    struct nl_msg *msg = nft_batch_message(b, NFT_MSG_NEWRULE,
                                           NLM_F_CREATE | NLM_F_APPEND | flags);

    nft_batch_add(b, msg, !msg || nla_put_string(msg, NFTA_RULE_TABLE, name) ||
                  nla_put_string(msg, NFTA_RULE_CHAIN, GUARD_CHAIN) ||
                  nft_batch_expressions(msg, e, length));
}

static void rules(struct nft_batch *b, const char *name, const char *vif, int flags)
{
    static const uint32_t name_key = NFT_META_IIFNAME, mark_key = NFT_META_MARK;
    static const uint32_t bit = REMUS_NFT_MARK, others = ~REMUS_NFT_MARK;
    const struct nft_expression drop[] = {
        { "meta", nft_load_meta, &name_key }, { "cmp", is_name, vif },
        { "meta", nft_load_meta, &mark_key }, { "bitwise", and_with, &bit },
        { "cmp", is_zero, NULL }, { "counter", count, NULL }, { "immediate", nft_drop, NULL },
    };
    const struct nft_expression clear[] = {
        { "meta", nft_load_meta, &name_key }, { "cmp", is_name, vif },
        { "meta", nft_load_meta, &mark_key }, { "bitwise", and_with, &others },
        { "meta", store_mark, NULL },
    };

    rule(b, name, 0, drop, sizeof(drop) / sizeof(drop[0]));
    rule(b, name, flags, clear, sizeof(clear) / sizeof(clear[0]));
}

int remus_guard_open(int *fd)
{
    return nft_batch_open(fd);
}

int remus_guard_set(int fd, uint32_t domid, const char *const *vifs, unsigned int count_of_vifs)
{
    struct nft_batch *b = calloc(1, sizeof(*b));
    char name[GUARD_NAME];
    unsigned int i;
    int rc;

    if (!b) {
        return -ENOMEM;
    }
    if (!count_of_vifs) {
        rc = -EINVAL;
        goto out;
    }
    table_name(name, domid);
    nft_batch_begin(b);
    /* Made, so that it can be deleted whether or not it was there. */
    table(b, NFT_MSG_NEWTABLE, NLM_F_CREATE, name);
    table(b, NFT_MSG_DELTABLE, 0, name);
    table(b, NFT_MSG_NEWTABLE, NLM_F_CREATE, name);
    chain(b, name);
    for (i = 0; i < count_of_vifs; i++) {
        rules(b, name, vifs[i], i + 1 == count_of_vifs ? NLM_F_ACK : 0);
    }
    rc = nft_batch_send(b, fd);
out:
    free(b);
    return rc;
}

static void put_no_rules(struct nft_batch *b, const char *name)
{
    struct nl_msg *msg = nft_batch_message(b, NFT_MSG_DELRULE, NLM_F_ACK);

    nft_batch_add(b, msg, !msg || nla_put_string(msg, NFTA_RULE_TABLE, name) ||
                  nla_put_string(msg, NFTA_RULE_CHAIN, GUARD_CHAIN));
}

static void put_no_table(struct nft_batch *b, const char *name)
{
    table(b, NFT_MSG_DELTABLE, NLM_F_ACK, name);
}

static int take_away(int fd, uint32_t domid, void (*put)(struct nft_batch *b, const char *name))
{
    struct nft_batch *b = calloc(1, sizeof(*b));
    char name[GUARD_NAME];
    int rc;

    if (!b) {
        return -ENOMEM;
    }
    table_name(name, domid);
    nft_batch_begin(b);
    put(b, name);
    rc = nft_batch_send(b, fd);
    free(b);
    return rc == -ENOENT ? 0 : rc;
}

int remus_guard_relax(int fd, uint32_t domid)
{
    return take_away(fd, domid, put_no_rules);
}

int remus_guard_clear(int fd, uint32_t domid)
{
    return take_away(fd, domid, put_no_table);
}
