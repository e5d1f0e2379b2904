/* nftbatch.c: see nftbatch.h. */
#include "tools/remus/nftbatch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_BYTES (8u << 10)

int nft_batch_open(int *fd)
{
    struct sockaddr_nl address = { .nl_family = AF_NETLINK };
    int rc = 0;

    *fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_NETFILTER);
    if (*fd < 0) {
        return -errno;
    }
    if (bind(*fd, (struct sockaddr *)&address, sizeof(address))) {
        rc = -errno;
        close(*fd);
        *fd = -1;
    }
    return rc;
}

/* A message with nfnetlink's header; the caller appends attributes. */
static struct nl_msg *message(struct nft_batch *b, int type, int flags, uint8_t family,
                              uint16_t resource)
{
    struct nfgenmsg head = { .nfgen_family = family, .version = NFNETLINK_V0,
                             .res_id = htons(resource) };
    struct nl_msg *msg = nlmsg_alloc();

    if (msg && (!nlmsg_put(msg, 0, ++b->sequence, type, 0, NLM_F_REQUEST | flags) ||
                nlmsg_append(msg, &head, sizeof(head), NLMSG_ALIGNTO))) {
        nlmsg_free(msg);
        msg = NULL;
    }
    if (!msg && !b->rc) {
        b->rc = -ENOMEM;
    }
    return msg;
}

struct nl_msg *nft_batch_message(struct nft_batch *b, int type, int flags)
{
    return message(b, NFNL_SUBSYS_NFTABLES << 8 | type, flags, NFPROTO_BRIDGE, 0);
}

void nft_batch_add(struct nft_batch *b, struct nl_msg *msg, int failed)
{
    struct nlmsghdr *header;
    size_t bytes;

    if (!msg) {
        return;
    }
    header = nlmsg_hdr(msg);
    bytes = NLMSG_ALIGN(header->nlmsg_len);
    if (failed && !b->rc) {
        b->rc = -ENOMEM;
    } else if (b->used + bytes > sizeof(b->bytes) && !b->rc) {
        b->rc = -E2BIG;
    } else if (!b->rc) {
        memset(b->bytes + b->used, 0, bytes);
        memcpy(b->bytes + b->used, header, header->nlmsg_len);
        b->used += bytes;
    }
    nlmsg_free(msg);
}

void nft_batch_begin(struct nft_batch *b)
{
    b->used = 0;
    b->rc = 0;
    nft_batch_add(b, message(b, NFNL_MSG_BATCH_BEGIN, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES), 0);
}

/* The kernel has answered everything when the send returns: an error for each message that failed,
 * and the acknowledgement that was asked for. */
static int answer(int fd)
{
    uint8_t bytes[ANSWER_BYTES];
    int rc = -ENODATA;

    for (;;) {
        const struct nlmsghdr *header = (const struct nlmsghdr *)(void *)bytes;
        ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        size_t left = n > 0 ? (size_t)n : 0;

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return rc;
        }
        for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
            const struct nlmsgerr *error = NLMSG_DATA(header);

            if (header->nlmsg_type == NLMSG_ERROR &&
                header->nlmsg_len >= NLMSG_LENGTH(sizeof(*error)) && (rc == -ENODATA || !rc)) {
                rc = error->error;
            }
        }
    }
}

int nft_batch_send(struct nft_batch *b, int fd)
{
    ssize_t n;

    nft_batch_add(b, message(b, NFNL_MSG_BATCH_END, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES), 0);
    if (b->rc) {
        return b->rc;
    }
    (void)answer(fd);                /* what nobody waited for */
    do {
        n = send(fd, b->bytes, b->used, 0);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : answer(fd);
}

int nft_batch_expressions(struct nl_msg *msg, const struct nft_expression *e, size_t count)
{
    struct nlattr *all = nla_nest_start(msg, NFTA_RULE_EXPRESSIONS), *one, *data;
    size_t i;

    for (i = 0; all && i < count; i++) {
        if (!(one = nla_nest_start(msg, NFTA_LIST_ELEM)) ||
            nla_put_string(msg, NFTA_EXPR_NAME, e[i].name) ||
            !(data = nla_nest_start(msg, NFTA_EXPR_DATA)) || e[i].fill(msg, e[i].arg)) {
            return -1;
        }
        nla_nest_end(msg, data);
        nla_nest_end(msg, one);
    }
    if (!all) {
        return -1;
    }
    nla_nest_end(msg, all);
    return 0;
}

int nft_load_meta(struct nl_msg *msg, const void *key)
{
    return nla_put_u32(msg, NFTA_META_KEY, htonl(*(const uint32_t *)key)) ||
           nla_put_u32(msg, NFTA_META_DREG, htonl(NFT_REG_1));
}

int nft_drop(struct nl_msg *msg, const void *unused)
{
    struct nlattr *data, *verdict;

    (void)unused;
    if (nla_put_u32(msg, NFTA_IMMEDIATE_DREG, htonl(NFT_REG_VERDICT)) ||
        !(data = nla_nest_start(msg, NFTA_IMMEDIATE_DATA)) ||
        !(verdict = nla_nest_start(msg, NFTA_DATA_VERDICT)) ||
        nla_put_u32(msg, NFTA_VERDICT_CODE, htonl(NF_DROP))) {
        return -1;
    }
    nla_nest_end(msg, verdict);
    nla_nest_end(msg, data);
    return 0;
}
