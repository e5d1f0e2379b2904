/* nftwatch.c: see nftwatch.h. */
#include "tools/remus/nftwatch.h"

#include <errno.h>
#include <netinet/in.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/remus/nftbatch.h"
#include "tools/remus/nftlease.h"

#define WATCHED_TABLE "remus"
#define EVENT_BYTES   (16u << 10)

int remus_nftwatch_open(int *fd)
{
    const int group = NFNLGRP_NFTABLES;
    int rc = nft_batch_open(fd);

    if (!rc && setsockopt(*fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group))) {
        rc = -errno;
        close(*fd);
        *fd = -1;
    }
    return rc;
}

static bool text_is(const struct nlattr *attributes, int length, int type, const char *text,
                    bool whole)
{
    const struct nlattr *a = nla_find(attributes, length, type);
    size_t n = strlen(text) + (whole ? 1 : 0);

    return a && nla_len(a) >= (int)n && !memcmp(nla_data(a), text, n);
}

/* The leases are renewed several times a second, by making them again. */
static bool is_loss(const struct nlmsghdr *header)
{
    const int type = header->nlmsg_type & 0xff;
    const struct nfgenmsg *head = nlmsg_data((struct nlmsghdr *)(uintptr_t)header);
    const struct nlattr *attributes = nlmsg_attrdata((struct nlmsghdr *)(uintptr_t)header,
                                                     sizeof(*head));
    const int length = nlmsg_attrlen((struct nlmsghdr *)(uintptr_t)header, sizeof(*head));

    if (header->nlmsg_type >> 8 != NFNL_SUBSYS_NFTABLES || length <= 0 ||
        header->nlmsg_len < NLMSG_LENGTH(sizeof(*head)) || head->nfgen_family != NFPROTO_BRIDGE) {
        return false;
    }
    switch (type) {
    case NFT_MSG_DELTABLE:
        return text_is(attributes, length, NFTA_TABLE_NAME, WATCHED_TABLE, true);
    case NFT_MSG_DELCHAIN:
        return text_is(attributes, length, NFTA_CHAIN_TABLE, WATCHED_TABLE, true);
    case NFT_MSG_DELRULE:
        return text_is(attributes, length, NFTA_RULE_TABLE, WATCHED_TABLE, true) &&
               !text_is(attributes, length, NFTA_RULE_CHAIN, REMUS_NFT_UNTIL, false);
    case NFT_MSG_DELSET:
        return text_is(attributes, length, NFTA_SET_TABLE, WATCHED_TABLE, true);
    case NFT_MSG_DELSETELEM:
        return text_is(attributes, length, NFTA_SET_ELEM_LIST_TABLE, WATCHED_TABLE, true) &&
               !text_is(attributes, length, NFTA_SET_ELEM_LIST_SET, REMUS_NFT_LEASE_SET, true);
    default:
        return false;
    }
}

bool remus_nftwatch_read(int fd)
{
    uint8_t bytes[EVENT_BYTES];
    bool loss = false;

    for (;;) {
        const struct nlmsghdr *header = (const struct nlmsghdr *)(void *)bytes;
        ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        size_t left = n > 0 ? (size_t)n : 0;

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == ENOBUFS) {
            loss = true;         /* more happened than fits: anything may have */
            continue;
        }
        if (n <= 0) {
            return loss;
        }
        for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
            loss = is_loss(header) || loss;
        }
    }
}
