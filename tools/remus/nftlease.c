/* nftlease.c: see nftlease.h. */
#include "tools/remus/nftlease.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <net/if.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LEASE_TABLE   "remus"
#define LEASE_BYTES   (16u << 10) /* of a batch: five messages, some 800 bytes, a vif */
#define NS_PER_MS     1000000ull
#define NS_PER_S      1000000000ull
#define ANSWER_BYTES  (8u << 10)

struct remus_lease {
    struct nl_sock *sock;
    uint32_t sequence;
    size_t used;
    uint8_t batch[LEASE_BYTES];
};

int remus_lease_open(struct remus_lease **out)
{
    struct remus_lease *lease = calloc(1, sizeof(*lease));
    int rc;

    *out = NULL;
    if (!lease) {
        return -ENOMEM;
    }
    lease->sock = nl_socket_alloc();
    rc = lease->sock ? nl_connect(lease->sock, NETLINK_NETFILTER) : -NLE_NOMEM;
    if (!rc) {
        rc = nl_socket_set_nonblocking(lease->sock);
    }
    if (rc) {
        remus_lease_close(lease);
        return -EIO;
    }
    *out = lease;
    return 0;
}

void remus_lease_close(struct remus_lease *lease)
{
    if (lease) {
        nl_socket_free(lease->sock);
        free(lease);
    }
}

/* A message with nfnetlink's header; the caller appends attributes. */
static struct nl_msg *message(struct remus_lease *lease, int type, int flags, uint16_t resource)
{
    struct nfgenmsg head = { .nfgen_family = NFPROTO_BRIDGE, .version = NFNETLINK_V0,
                             .res_id = htons(resource) };
    struct nl_msg *msg = nlmsg_alloc();

    if (type == NFNL_MSG_BATCH_BEGIN || type == NFNL_MSG_BATCH_END) {
        head.nfgen_family = AF_UNSPEC;
    }
    if (msg && (!nlmsg_put(msg, NL_AUTO_PORT, ++lease->sequence, type, 0, NLM_F_REQUEST | flags) ||
                nlmsg_append(msg, &head, sizeof(head), NLMSG_ALIGNTO))) {
        nlmsg_free(msg);
        return NULL;
    }
    return msg;
}

/* Appends the message to the batch, and frees it. */
static int append(struct remus_lease *lease, struct nl_msg *msg)
{
    struct nlmsghdr *header;
    size_t bytes;

    if (!msg) {
        return -ENOMEM;
    }
    header = nlmsg_hdr(msg);
    bytes = NLMSG_ALIGN(header->nlmsg_len);
    if (lease->used + bytes > sizeof(lease->batch)) {
        nlmsg_free(msg);
        return -E2BIG;
    }
    memset(lease->batch + lease->used, 0, bytes);
    memcpy(lease->batch + lease->used, header, header->nlmsg_len);
    lease->used += bytes;
    nlmsg_free(msg);
    return 0;
}

/* One element of the set; ms 0: without a timeout of its own (one to be deleted).  flags: NLM_F_ACK
 * on the batch's last one, as the end of a batch is not acknowledged by every kernel. */
static int element(struct remus_lease *lease, int type, int flags, const char *vif, uint64_t ms)
{
    struct nl_msg *msg = message(lease, NFNL_SUBSYS_NFTABLES << 8 | type,
                                 flags | (type == NFT_MSG_NEWSETELEM ? NLM_F_CREATE : 0), 0);
    struct nlattr *elements, *one, *key;
    char name[IFNAMSIZ] = "";

    strncpy(name, vif, sizeof(name) - 1);
    if (!msg || nla_put_string(msg, NFTA_SET_ELEM_LIST_TABLE, LEASE_TABLE) ||
        nla_put_string(msg, NFTA_SET_ELEM_LIST_SET, REMUS_NFT_LEASE_SET) ||
        !(elements = nla_nest_start(msg, NFTA_SET_ELEM_LIST_ELEMENTS)) ||
        !(one = nla_nest_start(msg, NFTA_LIST_ELEM)) ||
        !(key = nla_nest_start(msg, NFTA_SET_ELEM_KEY)) ||
        nla_put(msg, NFTA_DATA_VALUE, sizeof(name), name)) {
        goto fail;
    }
    nla_nest_end(msg, key);
    if (ms) {
        uint64_t wire = htobe64(ms);

        if (nla_put(msg, NFTA_SET_ELEM_TIMEOUT, sizeof(wire), &wire)) {
            goto fail;
        }
    }
    nla_nest_end(msg, one);
    nla_nest_end(msg, elements);
    return append(lease, msg);

fail:
    nlmsg_free(msg);
    return -ENOMEM;
}

/* An expression of a rule: its name, and its attributes, made by fill. */
struct expression {
    const char *name;
    int (*fill)(struct nl_msg *msg, uint64_t until_ns);
};

static int load_time(struct nl_msg *msg, uint64_t until_ns)
{
    (void)until_ns;
    return nla_put_u32(msg, NFTA_META_KEY, htonl(NFT_META_TIME_NS)) ||
           nla_put_u32(msg, NFTA_META_DREG, htonl(NFT_REG_1));
}

/* Registers are compared byte by byte. */
static int turn_bytes(struct nl_msg *msg, uint64_t until_ns)
{
    (void)until_ns;
    return nla_put_u32(msg, NFTA_BYTEORDER_SREG, htonl(NFT_REG_1)) ||
           nla_put_u32(msg, NFTA_BYTEORDER_DREG, htonl(NFT_REG_1)) ||
           nla_put_u32(msg, NFTA_BYTEORDER_OP, htonl(NFT_BYTEORDER_HTON)) ||
           nla_put_u32(msg, NFTA_BYTEORDER_LEN, htonl(sizeof(until_ns))) ||
           nla_put_u32(msg, NFTA_BYTEORDER_SIZE, htonl(sizeof(until_ns)));
}

static int later_than(struct nl_msg *msg, uint64_t until_ns)
{
    uint64_t wire = htobe64(until_ns);
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

static int drop_it(struct nl_msg *msg, uint64_t until_ns)
{
    struct nlattr *data, *verdict;

    (void)until_ns;
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

/* The rules of a vif's chain go, or (until_ns) `meta time > until_ns drop` comes. */
static int rule(struct remus_lease *lease, const char *vif, uint64_t until_ns)
{
    static const struct expression expressions[] = {
        { "meta", load_time }, { "byteorder", turn_bytes }, { "cmp", later_than },
        { "immediate", drop_it },
    };
    struct nl_msg *msg = message(lease, NFNL_SUBSYS_NFTABLES << 8 |
                                 (until_ns ? NFT_MSG_NEWRULE : NFT_MSG_DELRULE),
                                 until_ns ? NLM_F_CREATE | NLM_F_APPEND : 0, 0);
    char chain[sizeof(REMUS_NFT_UNTIL) + IFNAMSIZ];
    struct nlattr *all, *one, *data;
    size_t i;

    snprintf(chain, sizeof(chain), REMUS_NFT_UNTIL "%s", vif);
    if (!msg || nla_put_string(msg, NFTA_RULE_TABLE, LEASE_TABLE) ||
        nla_put_string(msg, NFTA_RULE_CHAIN, chain)) {
        goto fail;
    }
    if (!until_ns) {
        return append(lease, msg);
    }
    all = nla_nest_start(msg, NFTA_RULE_EXPRESSIONS);
    for (i = 0; all && i < sizeof(expressions) / sizeof(expressions[0]); i++) {
        if (!(one = nla_nest_start(msg, NFTA_LIST_ELEM)) ||
            nla_put_string(msg, NFTA_EXPR_NAME, expressions[i].name) ||
            !(data = nla_nest_start(msg, NFTA_EXPR_DATA)) ||
            expressions[i].fill(msg, until_ns)) {
            goto fail;
        }
        nla_nest_end(msg, data);
        nla_nest_end(msg, one);
    }
    if (!all) {
        goto fail;
    }
    nla_nest_end(msg, all);
    return append(lease, msg);

fail:
    nlmsg_free(msg);
    return -ENOMEM;
}

/* The kernel has answered everything when the send returns: an error for each message that failed,
 * and the acknowledgement that was asked for. */
static int answer(struct remus_lease *lease)
{
    uint8_t bytes[ANSWER_BYTES];
    int fd = nl_socket_get_fd(lease->sock), rc = -ENODATA;

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

int remus_lease_renew(struct remus_lease *lease, const char *const *vifs, unsigned int count,
                      uint64_t ms)
{
    struct timespec now;
    uint64_t until_ns;
    unsigned int i;
    ssize_t n;
    int rc;

    if (!count || count > REMUS_LEASE_VIFS || !ms) {
        return -EINVAL;
    }
    (void)answer(lease);             /* what nobody waited for */
    clock_gettime(CLOCK_REALTIME, &now);
    until_ns = (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec + ms * NS_PER_MS;
    lease->used = 0;
    rc = append(lease, message(lease, NFNL_MSG_BATCH_BEGIN, 0, NFNL_SUBSYS_NFTABLES));
    for (i = 0; !rc && i < count; i++) {
        /* Made, so that it can be deleted even if the old one is over. */
        rc = element(lease, NFT_MSG_NEWSETELEM, 0, vifs[i], 1000);
        if (!rc) {
            rc = element(lease, NFT_MSG_DELSETELEM, 0, vifs[i], 0);
        }
        if (!rc) {
            rc = rule(lease, vifs[i], 0);
        }
        if (!rc) {
            rc = rule(lease, vifs[i], until_ns);
        }
        if (!rc) {
            rc = element(lease, NFT_MSG_NEWSETELEM, i + 1 == count ? NLM_F_ACK : 0, vifs[i], ms);
        }
    }
    if (!rc) {
        rc = append(lease, message(lease, NFNL_MSG_BATCH_END, 0, NFNL_SUBSYS_NFTABLES));
    }
    if (rc) {
        return rc;
    }
    do {
        n = send(nl_socket_get_fd(lease->sock), lease->batch, lease->used, 0);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : answer(lease);
}
