/* nfq.c: see nfq.h. */
#define _GNU_SOURCE 1

#include "tools/remus/nfq.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/sock_diag.h>
#include <net/ethernet.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NFQ_TYPE(msg)        ((NFNL_SUBSYS_QUEUE << 8) | (msg))
#define NFQ_OUT_BYTES        (64u << 10)    /* verdicts of one sendmsg */
#define NFQ_SNDBUF_BYTES     (512u << 10)
#define NFQ_PACKET_SECTIONS  16u
#define NFQ_PACKET_BYTES     (2 * NFQ_OUT_BYTES)    /* to the writer */
#define NFQ_WRITER_SYNC      UINT32_MAX     /* instead of a queue's number: answer with one byte */
#define NFQ_MANGLED_MAX      (16u << 10)    /* L3 bytes: a jumbo frame */
#define NFQ_VLAN_BYTES       4u
#define NFQ_BIND_RETRIES     100u
#define NFQ_BIND_RETRY_MS    20

struct nfq {
    struct nl_sock *sock;
    uint16_t queue;
    int fd;

    uint8_t *in;                            /* NFQ_BATCH buffers of NFQ_MESSAGE_MAX */
    struct mmsghdr *mmsg;
    struct iovec *iov;

    struct nl_msg *verdict;                 /* a plain verdict, to be copied and filled in */
    size_t verdict_bytes;                   /* aligned */
    size_t verdict_offset;                  /* of struct nfqnl_msg_verdict_hdr in it */
    struct nl_msg *mangled;                 /* room for one verdict with payload */
    uint8_t *out;
    size_t out_used;
    int writer_fd;                          /* -1: verdicts are sent from here */
    uint32_t writer_index;                  /* this queue's number there */
    bool writer_owner;                      /* the first of the writer's queues closes writer_fd */

    bool seen, gap;                         /* gap: the last frame was dropped here */
    uint32_t last_id;
    struct nfq_stats stats;
};

static struct nla_policy nfq_policy[NFQA_MAX + 1] = {
    [NFQA_PACKET_HDR] = { .minlen = sizeof(struct nfqnl_msg_packet_hdr) },
    [NFQA_SKB_INFO]   = { .type = NLA_U32 },
    [NFQA_CAP_LEN]    = { .type = NLA_U32 },
    [NFQA_VLAN]       = { .type = NLA_NESTED },
};

static struct nla_policy nfq_vlan_policy[NFQA_VLAN_MAX + 1] = {
    [NFQA_VLAN_PROTO] = { .type = NLA_U16 },
    [NFQA_VLAN_TCI]   = { .type = NLA_U16 },
};

/*
 * Payload is the last attribute and begins at L3.  The Ethernet header, with the tag the kernel
 * took out of it, is written in front of it, over attributes that have been read by then: always
 * room, as at least a netlink header, a nfgenmsg and two attribute headers stand there.
 */
int nfq_parse(uint8_t *message, size_t bytes, struct nfq_frame *frame)
{
    struct nlmsghdr *nlh = (struct nlmsghdr *)message;
    struct nlattr *tb[NFQA_MAX + 1];
    struct nlattr *vlan[NFQA_VLAN_MAX + 1];
    struct nfqnl_msg_packet_hdr packet;
    uint8_t header[ETH_HLEN + NFQ_VLAN_BYTES];
    uint32_t header_bytes = ETH_HLEN;
    uint32_t info = 0;
    uint8_t *payload;

    if (bytes > INT32_MAX || !nlmsg_ok(nlh, (int)bytes) ||
        nlh->nlmsg_type != NFQ_TYPE(NFQNL_MSG_PACKET) ||
        nlmsg_parse(nlh, sizeof(struct nfgenmsg), tb, NFQA_MAX, nfq_policy) < 0 ||
        !tb[NFQA_PACKET_HDR]) {
        return -EBADMSG;
    }
    memset(frame, 0, sizeof(*frame));
    memcpy(&packet, nla_data(tb[NFQA_PACKET_HDR]), sizeof(packet));
    frame->packet_id = ntohl(packet.packet_id);
    if (tb[NFQA_SKB_INFO]) {
        info = ntohl(nla_get_u32(tb[NFQA_SKB_INFO]));
    }
    frame->gso = info & NFQA_SKB_GSO;
    frame->csum_partial = info & NFQA_SKB_CSUMNOTREADY;

    /* The id is known: from here on a frame that cannot be told comes back with length 0, so that
     * it gets a verdict all the same. */
    if (!tb[NFQA_PAYLOAD] || !tb[NFQA_L2HDR] || nla_len(tb[NFQA_L2HDR]) != ETH_HLEN) {
        return 0;
    }
    payload = nla_data(tb[NFQA_PAYLOAD]);
    memcpy(header, nla_data(tb[NFQA_L2HDR]), ETH_HLEN);
    if (tb[NFQA_VLAN]) {
        uint16_t tag[2];

        if (nla_parse_nested(vlan, NFQA_VLAN_MAX, tb[NFQA_VLAN], nfq_vlan_policy) < 0 ||
            !vlan[NFQA_VLAN_PROTO] || !vlan[NFQA_VLAN_TCI]) {
            return 0;
        }
        memmove(header + 2 * ETH_ALEN + NFQ_VLAN_BYTES, header + 2 * ETH_ALEN, 2);
        tag[0] = nla_get_u16(vlan[NFQA_VLAN_PROTO]);
        tag[1] = nla_get_u16(vlan[NFQA_VLAN_TCI]);
        memcpy(header + 2 * ETH_ALEN, tag, sizeof(tag));
        header_bytes += NFQ_VLAN_BYTES;
    }
    frame->l3_offset = header_bytes;
    frame->length = header_bytes + (uint32_t)nla_len(tb[NFQA_PAYLOAD]);
    frame->wire_length = frame->length;
    if (tb[NFQA_CAP_LEN]) {
        uint32_t whole = ntohl(nla_get_u32(tb[NFQA_CAP_LEN]));

        if (whole > (uint32_t)nla_len(tb[NFQA_PAYLOAD])) {
            frame->truncated = true;
            frame->wire_length = header_bytes + whole;
        }
    }
    if (payload < message + header_bytes) {
        return -EBADMSG;
    }
    frame->bytes = payload - header_bytes;
    memcpy(frame->bytes, header, header_bytes);
    return 0;
}

__attribute__((format(printf, 3, 4)))
static void nfq_error(char *error, size_t error_bytes, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(error, error_bytes, fmt, ap);
    va_end(ap);
}

static struct nl_msg *nfq_msg(const struct nfq *q, int type, int flags, size_t room)
{
    const struct nfgenmsg head = {
        .nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(q->queue),
    };
    struct nl_msg *msg = nlmsg_alloc_size(room);
    struct nlmsghdr *nlh;

    if (!msg) {
        return NULL;
    }
    nlh = nlmsg_put(msg, 0, 0, NFQ_TYPE(type), sizeof(head), NLM_F_REQUEST | flags);
    if (!nlh) {
        nlmsg_free(msg);
        return NULL;
    }
    memcpy(nlmsg_data(nlh), &head, sizeof(head));
    return msg;
}

/* One configuration attribute at a time, so that an error says which. */
static int nfq_config(struct nfq *q, int attr, const void *data, int data_bytes,
                      int attr2, const void *data2, int data2_bytes)
{
    struct nl_msg *msg = nfq_msg(q, NFQNL_MSG_CONFIG, NLM_F_ACK, 256);
    struct nlmsghdr *nlh;
    uint8_t answer[512];
    ssize_t r;
    int rc = -ENOMEM;

    if (!msg || nla_put(msg, attr, data_bytes, data) < 0 ||
        (attr2 && nla_put(msg, attr2, data2_bytes, data2) < 0)) {
        goto out;
    }
    nlh = nlmsg_hdr(msg);
    if (send(q->fd, nlh, nlh->nlmsg_len, 0) < 0) {
        rc = -errno;
        goto out;
    }
    /* A bound queue may deliver frames before the answer; they cannot be told from later ones
     * here, so binding comes last (nfq_open). */
    do {
        r = recv(q->fd, answer, sizeof(answer), 0);
    } while (r < 0 && errno == EINTR);
    if (r < 0) {
        rc = -errno;
        goto out;
    }
    nlh = (struct nlmsghdr *)answer;
    rc = -EBADMSG;
    if (nlmsg_ok(nlh, (int)r) && nlh->nlmsg_type == NLMSG_ERROR &&
        nlh->nlmsg_len >= NLMSG_LENGTH(sizeof(struct nlmsgerr))) {
        rc = ((struct nlmsgerr *)nlmsg_data(nlh))->error;
    }

out:
    nlmsg_free(msg);
    return rc;
}

static int nfq_setup(struct nfq *q, const struct nfq_options *options, const char **step)
{
    const struct nfqnl_msg_config_cmd bind_cmd = { .command = NFQNL_CFG_CMD_BIND };
    const struct nfqnl_msg_config_params params = {
        .copy_range = htonl(NFQ_COPY_RANGE), .copy_mode = NFQNL_COPY_PACKET,
    };
    const uint32_t flags = htonl(NFQA_CFG_F_GSO);
    const uint32_t mask = htonl(NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN);
    const uint32_t maxlen = htonl(options->maxlen);
    unsigned int tries = NFQ_BIND_RETRIES;
    int rc;

    /*
     * BIND creates the queue with copy mode "none": frames would come without a payload until the
     * other settings are in.  That is why colo-proxyd binds before the rules that lead here are
     * installed, and why a message without payload is answered with a drop.
     */
    *step = "bind";
    rc = nfq_config(q, NFQA_CFG_CMD, &bind_cmd, sizeof(bind_cmd), 0, NULL, 0);
    /* Whoever listens already gives EPERM.  A colo-proxyd that has just ended may still have its
     * writer ending. */
    while ((rc == -EBUSY || (rc == -EPERM && geteuid() == 0)) && tries--) {
        poll(NULL, 0, NFQ_BIND_RETRY_MS);
        rc = nfq_config(q, NFQA_CFG_CMD, &bind_cmd, sizeof(bind_cmd), 0, NULL, 0);
    }
    if (rc == -EPERM && geteuid() == 0) {
        rc = -EBUSY;
    }
    if (rc) {
        return rc;
    }
    *step = "flags";
    rc = nfq_config(q, NFQA_CFG_FLAGS, &flags, sizeof(flags), NFQA_CFG_MASK, &mask, sizeof(mask));
    if (rc) {
        return rc;
    }
    *step = "maximum length";
    rc = nfq_config(q, NFQA_CFG_QUEUE_MAXLEN, &maxlen, sizeof(maxlen), 0, NULL, 0);
    if (rc) {
        return rc;
    }
    *step = "copy mode";
    return nfq_config(q, NFQA_CFG_PARAMS, &params, sizeof(params), 0, NULL, 0);
}

static int nfq_buffers(struct nfq *q)
{
    const struct nfqnl_msg_verdict_hdr none = { 0 };
    unsigned int i;

    q->in = malloc((size_t)NFQ_BATCH * NFQ_MESSAGE_MAX);
    q->mmsg = calloc(NFQ_BATCH, sizeof(*q->mmsg));
    q->iov = calloc(NFQ_BATCH, sizeof(*q->iov));
    q->out = malloc(NFQ_OUT_BYTES);
    q->verdict = nfq_msg(q, NFQNL_MSG_VERDICT, 0, 256);
    q->mangled = nlmsg_alloc_size(NFQ_MANGLED_MAX + 512);
    if (!q->in || !q->mmsg || !q->iov || !q->out || !q->verdict || !q->mangled ||
        nla_put(q->verdict, NFQA_VERDICT_HDR, sizeof(none), &none) < 0) {
        return -ENOMEM;
    }
    q->verdict_bytes = NLMSG_ALIGN(nlmsg_hdr(q->verdict)->nlmsg_len);
    q->verdict_offset = NLMSG_LENGTH(sizeof(struct nfgenmsg)) + NLA_HDRLEN;
    for (i = 0; i < NFQ_BATCH; i++) {
        q->iov[i] = (struct iovec){ .iov_base = q->in + (size_t)i * NFQ_MESSAGE_MAX,
                                    .iov_len = NFQ_MESSAGE_MAX };
        q->mmsg[i].msg_hdr.msg_iov = &q->iov[i];
        q->mmsg[i].msg_hdr.msg_iovlen = 1;
    }
    return 0;
}

static int nfq_socket_sizes(int fd, uint32_t rcvbuf_bytes)
{
    const int rcvbuf = (int)rcvbuf_bytes / 2;      /* the kernel doubles what it is told */
    const int sndbuf = NFQ_SNDBUF_BYTES;

    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &rcvbuf, sizeof(rcvbuf)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &sndbuf, sizeof(sndbuf)) < 0) {
        return -errno;
    }
    return 0;
}

int nfq_open(struct nfq **out, const struct nfq_options *options, char *error, size_t error_bytes)
{
    const char *step = "socket";
    struct nfq *q;
    int rc = -ENOMEM;
    int r;

    *out = NULL;
    q = calloc(1, sizeof(*q));
    if (!q) {
        goto out;
    }
    q->fd = -1;
    q->writer_fd = -1;
    q->queue = options->queue;
    q->sock = nl_socket_alloc();
    if (!q->sock) {
        goto out;
    }
    r = nl_connect(q->sock, NETLINK_NETFILTER);
    if (r < 0) {
        rc = r == -NLE_PERM ? -EPERM : r == -NLE_PROTO_MISMATCH ? -EPROTONOSUPPORT : -EIO;
        goto out;
    }
    q->fd = nl_socket_get_fd(q->sock);
    step = "buffers";
    rc = nfq_buffers(q);
    if (rc) {
        goto out;
    }
    step = "socket buffer";
    rc = nfq_socket_sizes(q->fd, options->rcvbuf_bytes);
    if (rc) {
        goto out;
    }
    rc = nfq_setup(q, options, &step);
    if (rc) {
        goto out;
    }
    *out = q;
    q = NULL;

out:
    if (rc) {
        nfq_error(error, error_bytes, "netfilter queue %u: %s: %s%s", options->queue, step,
                  strerror(-rc),
                  rc == -EPERM ? " (needs root)" :
                  rc == -EBUSY ? " (another process listens to this queue)" :
                  rc == -EINVAL || rc == -EPROTONOSUPPORT ? " (module nfnetlink_queue)" : "");
    }
    nfq_close(q);
    return rc;
}

void nfq_close(struct nfq *q)
{
    if (!q) {
        return;
    }
    if (q->writer_owner) {
        close(q->writer_fd);
    }
    nlmsg_free(q->verdict);
    nlmsg_free(q->mangled);
    nl_socket_free(q->sock);
    free(q->in);
    free(q->mmsg);
    free(q->iov);
    free(q->out);
    free(q);
}

int nfq_fd(const struct nfq *q)
{
    return q->fd;
}

/* Ids count by one as the kernel hands frames to our socket; a gap is a frame it could not put
 * there, and has dropped. */
static void nfq_gap(struct nfq *q, uint32_t id)
{
    uint32_t gap = id - q->last_id - 1;

    if (!q->seen) {
        gap = id - 1;
        q->seen = true;
    }
    if (gap < UINT32_MAX / 2) {
        q->stats.lost += gap;
    }
    q->last_id = id;
}

static void nfq_message(struct nfq *q, uint8_t *message, size_t bytes, nfq_frame_fn *fn, void *arg)
{
    const struct nlmsghdr *nlh = (const struct nlmsghdr *)message;
    struct nfq_frame frame;
    uint64_t lost;

    if (nlmsg_ok(nlh, (int)bytes) && nlh->nlmsg_type == NLMSG_ERROR) {
        q->stats.verdict_errors++;
        return;
    }
    if (nfq_parse(message, bytes, &frame)) {
        q->stats.malformed++;
        return;
    }
    lost = q->stats.lost;
    nfq_gap(q, frame.packet_id);
    frame.gap = q->gap || q->stats.lost != lost;
    q->gap = !frame.length;
    if (!frame.length) {
        q->stats.malformed++;
        nfq_verdict(q, frame.packet_id, false);
        return;
    }
    q->stats.frames++;
    q->stats.bytes += frame.wire_length;
    fn(arg, &frame);
}

int nfq_recv(struct nfq *q, nfq_frame_fn *fn, void *arg, unsigned int batches, bool exact,
             bool *more)
{
    int r, i;

    *more = false;
    while (batches) {
        r = recvmmsg(q->fd, q->mmsg, NFQ_BATCH, MSG_DONTWAIT, NULL);
        if (r < 0) {
            if (errno == EINTR) {
                continue;
            }
            if (errno == EAGAIN || errno == EWOULDBLOCK) {
                return 0;
            }
            if (errno == ENOBUFS) {
                /* Said once; the frames lost show as a gap in the ids, what waits is intact. */
                q->stats.overruns++;
                continue;
            }
            return -errno;
        }
        for (i = 0; i < r; i++) {
            nfq_message(q, q->iov[i].iov_base, q->mmsg[i].msg_len, fn, arg);
        }
        if (!exact && r < (int)NFQ_BATCH) {
            return 0;
        }
        batches--;
    }
    *more = true;
    return 0;
}

/* To the writer: verdicts of several queues in one packet, each behind one of these. */
struct section {
    uint32_t index;              /* of the queue, or NFQ_WRITER_SYNC */
    uint32_t bytes;
};

struct packet_out {
    struct section heads[NFQ_PACKET_SECTIONS];
    struct iovec iov[2 * NFQ_PACKET_SECTIONS];
    unsigned int count;
    size_t bytes;
};

static int packet_out_send(struct packet_out *p, int fd)
{
    const struct msghdr mh = { .msg_iov = p->iov, .msg_iovlen = 2 * (size_t)p->count };
    ssize_t r = 0;

    if (p->count) {
        do {
            r = sendmsg(fd, &mh, MSG_NOSIGNAL);
        } while (r < 0 && errno == EINTR);
    }
    p->count = 0;
    p->bytes = 0;
    return r < 0 ? -EIO : 0;
}

static void packet_out_add(struct packet_out *p, uint32_t index, uint8_t *data, size_t bytes)
{
    struct section *head = &p->heads[p->count];

    *head = (struct section){ .index = index, .bytes = (uint32_t)bytes };
    p->iov[2 * p->count] = (struct iovec){ .iov_base = head, .iov_len = sizeof(*head) };
    p->iov[2 * p->count + 1] = (struct iovec){ .iov_base = data, .iov_len = bytes };
    p->count++;
    p->bytes += sizeof(*head) + bytes;
}

/* Netlink takes a datagram whole and works through it before it returns: nothing is left over,
 * and the frames have been passed on when this is back.  With a writer that is so after
 * nfq_sync. */
int nfq_flush(struct nfq *const *queues, unsigned int count)
{
    struct packet_out packet = { .count = 0 };
    int writer_fd = -1, rc = 0;
    unsigned int i;

    for (i = 0; !rc && i < count; i++) {
        struct nfq *q = queues[i];
        const size_t bytes = q->out_used;

        if (!bytes) {
            continue;
        }
        q->out_used = 0;
        q->stats.verdict_sends++;
        if (q->writer_fd < 0) {
            do {
                rc = send(q->fd, q->out, bytes, 0) < 0 ? -errno : 0;
            } while (rc == -EINTR);
            continue;
        }
        writer_fd = q->writer_fd;
        if (packet.count == NFQ_PACKET_SECTIONS ||
            packet.bytes + sizeof(struct section) + bytes > NFQ_PACKET_BYTES) {
            rc = packet_out_send(&packet, writer_fd);
        }
        packet_out_add(&packet, q->writer_index, q->out, bytes);
    }
    return rc ? rc : packet_out_send(&packet, writer_fd);
}

int nfq_verdict(struct nfq *q, uint32_t packet_id, bool accept)
{
    const struct nfqnl_msg_verdict_hdr verdict = {
        .verdict = htonl(accept ? NF_ACCEPT : NF_DROP), .id = htonl(packet_id),
    };
    int rc = 0;

    if (q->out_used + q->verdict_bytes > NFQ_OUT_BYTES) {
        rc = nfq_flush(&q, 1);
    }
    memcpy(q->out + q->out_used, nlmsg_hdr(q->verdict), q->verdict_bytes);
    memcpy(q->out + q->out_used + q->verdict_offset, &verdict, sizeof(verdict));
    q->out_used += q->verdict_bytes;
    q->stats.verdicts++;
    return rc;
}

int nfq_verdict_mangled(struct nfq *q, uint32_t packet_id, const uint8_t *l3, uint32_t l3_bytes)
{
    const struct nfqnl_msg_verdict_hdr verdict = {
        .verdict = htonl(NF_ACCEPT), .id = htonl(packet_id),
    };
    const size_t room = q->verdict_bytes + NLA_HDRLEN + NLA_ALIGN(l3_bytes);
    struct nlmsghdr *nlh = nlmsg_hdr(q->mangled);
    int rc = 0;

    if (l3_bytes > NFQ_MANGLED_MAX) {
        return -EMSGSIZE;
    }
    if (q->out_used + room > NFQ_OUT_BYTES) {
        rc = nfq_flush(&q, 1);
    }
    memcpy(nlh, nlmsg_hdr(q->verdict), nlmsg_hdr(q->verdict)->nlmsg_len);
    memcpy((uint8_t *)nlh + q->verdict_offset, &verdict, sizeof(verdict));
    if (nla_put(q->mangled, NFQA_PAYLOAD, (int)l3_bytes, l3) < 0) {
        return -ENOMEM;
    }
    memcpy(q->out + q->out_used, nlh, NLMSG_ALIGN(nlh->nlmsg_len));
    q->out_used += NLMSG_ALIGN(nlh->nlmsg_len);
    q->stats.verdicts++;
    return rc;
}

/* ---- The writer ------------------------------------------------------------------------------ */

#define NFQ_WRITER_SYNC_MS   5000

/* Attributes of a verdict: accept or drop, perhaps with a payload.  Not marks, not conntrack, not
 * another queue. */
static bool verdict_attributes_ok(const uint8_t *at, size_t bytes)
{
    bool verdict = false;

    while (bytes) {
        struct nfqnl_msg_verdict_hdr hdr;
        struct nlattr nla;
        size_t step;

        if (bytes < NLA_HDRLEN) {
            return false;
        }
        memcpy(&nla, at, sizeof(nla));
        step = NLA_ALIGN((size_t)nla.nla_len);   /* 16 bits wide: no overflow */
        if (nla.nla_len < NLA_HDRLEN || step > bytes) {
            return false;
        }
        if (nla.nla_type == NFQA_VERDICT_HDR) {
            if (verdict || nla.nla_len != NLA_HDRLEN + sizeof(hdr)) {
                return false;
            }
            memcpy(&hdr, at + NLA_HDRLEN, sizeof(hdr));
            if (hdr.verdict != htonl(NF_ACCEPT) && hdr.verdict != htonl(NF_DROP)) {
                return false;
            }
            verdict = true;
        } else if (nla.nla_type != NFQA_PAYLOAD) {
            return false;
        }
        at += step;
        bytes -= step;
    }
    return verdict;
}

bool nfq_verdicts_only(const uint8_t *messages, size_t bytes, uint16_t queue)
{
    while (bytes) {
        struct nlmsghdr nlh;
        struct nfgenmsg head;
        size_t step;

        if (bytes < NLMSG_LENGTH(sizeof(head))) {
            return false;
        }
        memcpy(&nlh, messages, sizeof(nlh));
        memcpy(&head, messages + NLMSG_HDRLEN, sizeof(head));
        /* Length first: NLMSG_ALIGN works modulo 2^32. */
        if (nlh.nlmsg_len < NLMSG_LENGTH(sizeof(head)) || nlh.nlmsg_len > bytes) {
            return false;
        }
        step = NLMSG_ALIGN(nlh.nlmsg_len);
        if (step > bytes || nlh.nlmsg_type != NFQ_TYPE(NFQNL_MSG_VERDICT) ||
            nlh.nlmsg_flags != NLM_F_REQUEST || head.nfgen_family != AF_UNSPEC ||
            ntohs(head.res_id) != queue || !verdict_attributes_ok(
                messages + NLMSG_LENGTH(sizeof(head)), step - NLMSG_LENGTH(sizeof(head)))) {
            return false;
        }
        messages += step;
        bytes -= step;
    }
    return true;
}

/* Sends on what a packet holds, section by section, up to the first that is not allowed. */
static int writer_packet(int fd, struct nfq *const *queues, unsigned int count,
                         const uint8_t *packet, size_t bytes)
{
    int rc = 0;

    while (!rc && bytes) {
        struct section head;

        if (bytes < sizeof(head)) {
            return -EPROTO;
        }
        memcpy(&head, packet, sizeof(head));
        packet += sizeof(head);
        bytes -= sizeof(head);
        if (head.bytes > bytes) {
            return -EPROTO;
        }
        if (head.index == NFQ_WRITER_SYNC && !head.bytes) {
            rc = send(fd, "s", 1, MSG_NOSIGNAL) < 0 ? -errno : 0;
        } else if (head.index >= count ||
                   !nfq_verdicts_only(packet, head.bytes, queues[head.index]->queue)) {
            return -EPROTO;
        } else {
            do {
                rc = send(queues[head.index]->fd, packet, head.bytes, 0) < 0 ? -errno : 0;
            } while (rc == -EINTR);
        }
        packet += head.bytes;
        bytes -= head.bytes;
    }
    return rc;
}

/* Ends by returning: 0 when the other side is gone. */
static int writer_run(int fd, struct nfq *const *queues, unsigned int count)
{
    uint8_t *packet = malloc(NFQ_PACKET_BYTES);
    int rc = packet ? 0 : -ENOMEM;

    while (!rc) {
        ssize_t r = recv(fd, packet, NFQ_PACKET_BYTES, MSG_TRUNC);

        if (r == 0 || (r < 0 && errno == ECONNRESET)) {
            break;
        }
        if (r < 0) {
            rc = errno == EINTR ? 0 : -errno;
        } else {
            rc = (size_t)r > NFQ_PACKET_BYTES ? -EPROTO :
                 writer_packet(fd, queues, count, packet, (size_t)r);
        }
    }
    free(packet);
    return rc;
}

/* The new process keeps its log, its end of the pair and the queues' sockets. */
static void writer_close_rest(int fd, struct nfq *const *queues, unsigned int count)
{
    const long limit = sysconf(_SC_OPEN_MAX);
    unsigned int i;
    int other;

    for (other = 0; other < (limit > 0 && limit < 4096 ? (int)limit : 4096); other++) {
        bool keep = other == STDERR_FILENO || other == fd;

        for (i = 0; i < count; i++) {
            keep |= other == queues[i]->fd;
        }
        if (!keep) {
            close(other);
        }
    }
}

static int writer_wait(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    char byte;
    int r;

    do {
        r = poll(&pfd, 1, NFQ_WRITER_SYNC_MS);
    } while (r < 0 && errno == EINTR);
    return r == 1 && recv(fd, &byte, 1, 0) == 1 ? 0 : r == 0 ? -ETIMEDOUT : -EIO;
}

int nfq_writer_start(struct nfq *const *queues, unsigned int count, int (*confine)(void *arg),
                     void *arg, char *error, size_t error_bytes)
{
    int pair[2] = { -1, -1 };
    unsigned int i;
    pid_t pid;
    int rc;

    if (!count || count > NFQ_WRITER_QUEUES_MAX) {
        nfq_error(error, error_bytes, "netfilter queues: %u are too many for one writer", count);
        return -EINVAL;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        rc = -errno;
        goto out;
    }
    rc = nfq_socket_sizes(pair[0], NFQ_SNDBUF_BYTES);
    if (rc) {
        goto out;
    }
    pid = fork();
    if (pid < 0) {
        rc = -errno;
        goto out;
    }
    if (pid == 0) {
        writer_close_rest(pair[1], queues, count);
        rc = confine(arg);
        if (!rc && send(pair[1], "r", 1, MSG_NOSIGNAL) == 1) {
            rc = writer_run(pair[1], queues, count);
        }
        _exit(rc ? 1 : 0);
    }
    close(pair[1]);
    pair[1] = -1;
    rc = writer_wait(pair[0]);
    if (rc) {
        goto out;
    }
    for (i = 0; i < count; i++) {
        queues[i]->writer_fd = pair[0];
        queues[i]->writer_index = i;
        queues[i]->writer_owner = i == 0;
    }
    pair[0] = -1;

out:
    if (rc) {
        nfq_error(error, error_bytes, "netfilter queues: starting the verdict writer: %s",
                  strerror(-rc));
    }
    for (i = 0; i < 2; i++) {
        if (pair[i] >= 0) {
            close(pair[i]);
        }
    }
    return rc;
}

int nfq_sync(struct nfq *q)
{
    struct packet_out packet = { .count = 0 };
    int rc;

    if (q->writer_fd < 0) {
        return 0;
    }
    packet_out_add(&packet, NFQ_WRITER_SYNC, NULL, 0);
    rc = packet_out_send(&packet, q->writer_fd);
    return rc ? rc : writer_wait(q->writer_fd);
}

int nfq_backlog(const struct nfq *q, uint32_t *bytes, uint32_t *limit)
{
    uint32_t info[SK_MEMINFO_VARS] = { 0 };
    socklen_t size = sizeof(info);

    if (getsockopt(q->fd, SOL_SOCKET, SO_MEMINFO, info, &size) < 0) {
        return -errno;
    }
    *bytes = info[SK_MEMINFO_RMEM_ALLOC];
    *limit = info[SK_MEMINFO_RCVBUF];
    return 0;
}

void nfq_stats_get(const struct nfq *q, struct nfq_stats *out)
{
    *out = q->stats;
}

int nfq_table_open(void)
{
    int fd = open("/proc/net/netfilter/nfnetlink_queue", O_RDONLY | O_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

int nfq_table_read(int fd, const struct nfq *q, struct nfq_table_entry *out)
{
    char text[4096];
    size_t used = 0;             /* of an incomplete line */
    off_t at = 0;

    for (;;) {
        const char *line = text, *end;
        ssize_t r = pread(fd, text + used, sizeof(text) - 1 - used, at);

        if (r <= 0) {
            return r < 0 ? -errno : -ENOENT;
        }
        at += r;
        used += (size_t)r;
        text[used] = '\0';
        while ((end = strchr(line, '\n'))) {
            unsigned int queue, port, held, mode, range, dropped;

            if (sscanf(line, "%u %u %u %u %u %u", &queue, &port, &held, &mode, &range,
                       &dropped) == 6 && queue == q->queue) {
                out->held = held;
                out->dropped_full = dropped;
                return 0;
            }
            line = end + 1;
        }
        used -= (size_t)(line - text);
        if (used == sizeof(text) - 1) {
            return -EBADMSG;
        }
        memmove(text, line, used);
    }
}
