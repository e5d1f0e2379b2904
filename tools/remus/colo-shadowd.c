/*
 * colo-shadowd: the secondary guest's network backend in user space.
 *
 *     packet channel (4)                                              guest
 *   INPUT, FLOW -> inq --- rewrite ---> rx ring  ------------------->  eth0
 *                   \-> hold (flow not ready)
 *   OUTPUT <------- rewrite <--- out (kept until MATCHED) <- tx ring <-  eth0
 *   after failover: tap in the place of the channel, `out` is written to it first
 *
 * It holds no network device before failover.  One thread, one epoll loop; every queue is allocated
 * at the start and has a rule for when it is full:
 *   inq   input not injected yet: the channel (later the tap) is not read while it is full
 *   hold  input of flows that are not ready: what does not fit is dropped (TCP repeats it, or a
 *         checkpoint mends it)
 *   out   the secondary's output: the oldest is forgotten (a lost frame, should failover come now)
 *
 * States, and what the coordinator may say in each (ctl.h); `failed over` comes on top, for good:
 *
 *   state      means                              ATTACH    DETACH    GO       FAILOVER
 *   DETACHED   no ring is touched                 ATTACHED  DETACHED  refused  DETACHED
 *   ATTACHED   rings taken over, guest paused     ATTACHED  DETACHED  RUNNING  RUNNING
 *   RUNNING    guest runs                         ATTACHED  DETACHED  RUNNING  RUNNING
 *
 * STATS_GET and QUIT are legal everywhere, OFFSETS in DETACHED before failover, OFFSETS_GET after
 * it.  Timers: announcements, and messages that undo the peers' back-off (nudge.h), after failover;
 * a tick each second, for flows that have aged.
 *
 * CTL_FAILOVER: one tap for each vif, in the order of the vifs, opened by the coordinator with
 * IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, up and in its bridge, its queue the caller's choice of
 * length. Header size and offloads are set here (10 bytes; TUN_F_CSUM, and TSO as far as the
 * frontend takes it), so frames cross unsegmented and with partial checksums wherever the guest can
 * have them so. After failover ctl_stats.flows counts the flows that need more than an offset: at 0
 * the kernel may take over, netback the rings and a program in tc the offsets (OFFSETS_GET, DETACH,
 * QUIT, bind).
 *
 * Signals: SIGTERM and SIGINT are ignored while the control socket is open.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <net/if.h>
#include <seccomp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <xenevtchn.h>

#include "tools/remus/channel.h"
#include "tools/remus/ctl.h"
#include "tools/remus/ctlio.h"
#include "tools/remus/daemon.h"
#include "tools/remus/netring.h"
#include "tools/remus/nudge.h"
#include "tools/remus/outbox.h"
#include "tools/remus/packet.h"
#include "tools/remus/privdrop.h"
#include "tools/remus/rewrite.h"

/* After Xen's own headers, whose types they use. */
#include <xen/evtchn.h>
#include <xen/gntdev.h>

#define INQ_BYTES        (8u << 20)
#define INQ_FRAMES       8192u
#define HOLD_BYTES       (1u << 20)
#define HOLD_FRAMES      1024u
#define OUT_BYTES        (16u << 20)
#define OUT_FRAMES       8192u
#define OUT_HELD_MAX     1024u       /* output of flows whose primary ISN is not known */
#define TX_BATCH         64u         /* frames of one grant copy call */
#define TX_ROUND         8u          /* such batches, then it is the others' turn */
#define RX_BATCH         192u        /* pieces of one grant copy call */
#define TAP_BATCH        64u         /* frames read from a tap in one round */
#define CHANNEL_BATCH    256u
#define EVENTS_BATCH     16
#define ADDRESSES_MAX    16u         /* remembered for each vif, for the announcements */
#define TICK_US          1000000ull
#define STUCK_US         1000000ull  /* without a frame taken */
#define LATE_INPUT_US    2000000ull  /* after failover: what the primary still passes on; it waits
                                        for that and a tick: LATE_INPUT_MS */
#define REST_US          50000ull    /* for the guest to make room for what was read already */

#define TAP_EVENT        (1ull << 32) /* epoll data of a tap: this and the vif */

#define TAG_FRAME        0u
#define TAG_FLOW         1u          /* struct remus_flow, in its place among the input */

static const uint32_t announce_at_ms[] = { 0, 100, 250, 500, 1000 };
#define ANNOUNCES (sizeof(announce_at_ms) / sizeof(announce_at_ms[0]))

/* Each undoes one doubling of a peer's retransmission timer (nudge.h). */
static const uint32_t nudge_at_ms[] = { 5, 20, 40, 80, 160, 320, 640, 1280 };
#define NUDGES (sizeof(nudge_at_ms) / sizeof(nudge_at_ms[0]))

enum shadow_state { STATE_DETACHED, STATE_ATTACHED, STATE_RUNNING };

struct address {
    uint8_t addr[16];                /* IPv4 as ::ffff:a.b.c.d */
    uint8_t version;                 /* 4, 6; 0: free */
    uint8_t vlans;
    uint16_t vlan[PACKET_VLANS_MAX];
    uint64_t seen_us;
};

struct vif {
    struct shadowd *s;
    uint32_t index;
    struct ctl_attach at;            /* as attached last */
    bool mapped;
    void *tx_page, *rx_page;
    int tx_port, rx_port;            /* ours, -1: not bound; equal when not split */
    struct netring_tx tx;
    struct netring_rx rx;
    struct netring_segments segments;
    struct rewrite *rw;
    struct nudge *nudge;
    struct outbox inq, hold, out;
    int tap;
    bool tap_polled;
    bool broken_said;                /* since the last attach */
    uint64_t moved_us;               /* when the guest last took input, or there was none for it */
    struct address addresses[ADDRESSES_MAX];
};

struct shadowd {
    uint32_t domid, vifs;
    enum shadow_state state;
    bool failed_over;
    bool failing_over;               /* its beginning: nothing is news to the coordinator */
    uint64_t epoch;                  /* the one that runs, or ran last */
    uint64_t forgotten;              /* epochs <= this are over */
    uint64_t now_us;
    xengnttab_handle *xgt;
    xenevtchn_handle *xce;
    struct channel *channel;         /* NULL: lost */
    bool channel_paused;
    uint32_t channel_events;         /* what epoll waits for on it */
    bool ctl_open;
    int epoll;
    bool quit;
    bool busy;                       /* there is more to do: do not sleep */
    bool congested;                  /* a vif was left alone for want of room in the channel */
    uint64_t tick_us;
    uint64_t failover_us;
    uint32_t announced, nudged;
    struct ctl_stats stats;
    struct vif vif[REMUS_VIFS_MAX];
    struct netring_tx_packet tx_packets[TX_BATCH];
    struct outbox_entry *tx_entries[TX_BATCH];
    xengnttab_grant_copy_segment_t tx_segs[TX_BATCH * NETRING_TX_SEGS];
};

/* ---- Addresses and announcements ----------------------------------------------------------- */

static bool address_usable(uint8_t version, const uint8_t *addr)
{
    static const uint8_t zero[16];

    if (version == 4) {
        return addr[12] != 0 && addr[12] != 127 && addr[12] < 224;
    }
    return memcmp(addr, zero, sizeof(zero)) && addr[0] != 0xff;
}

static void learn_address(struct vif *v, const struct packet *p, uint8_t version,
                          const uint8_t *addr)
{
    struct address *a, *oldest = &v->addresses[0];
    uint32_t i;

    if (!address_usable(version, addr)) {
        return;
    }
    for (i = 0; i < ADDRESSES_MAX; i++) {
        a = &v->addresses[i];
        if (a->version == version && a->vlans == p->vlans && !memcmp(a->addr, addr, 16) &&
            a->vlan[0] == p->vlan[0] && a->vlan[1] == p->vlan[1]) {
            a->seen_us = v->s->now_us;
            return;
        }
        if (a->seen_us < oldest->seen_us) {
            oldest = a;
        }
    }
    *oldest = (struct address){
        .version = version, .vlans = p->vlans, .seen_us = v->s->now_us,
        .vlan = { p->vlan[0], p->vlan[1] },
    };
    memcpy(oldest->addr, addr, 16);
}

/* Only what the guest sends under its own hardware address: others are not ours to announce. */
static void learn_from(struct vif *v, const uint8_t *frame, const struct packet *p)
{
    uint8_t addr[16] = { [10] = 0xff, [11] = 0xff };
    const uint8_t *arp;

    if (memcmp(frame + 6, v->at.mac, 6)) {
        return;
    }
    if (p->kind == PACKET_ARP) {
        arp = frame + p->l3;
        if (p->end - p->l3 >= 28 && arp[0] == 0 && arp[1] == 1 && arp[2] == 8 && arp[3] == 0 &&
            arp[4] == 6 && arp[5] == 4 && !memcmp(arp + 8, v->at.mac, 6)) {
            memcpy(addr + 12, arp + 14, 4);
            learn_address(v, p, 4, addr);
        }
    } else if (p->ip_version && p->kind != PACKET_BAD) {
        learn_address(v, p, p->ip_version, p->src);
    }
}

/* Ethernet header with the address' tags; returns its length. */
static uint32_t announce_ethernet(uint8_t *frame, const uint8_t *to, const uint8_t *mac,
                                  const struct address *a, uint16_t type)
{
    uint32_t at = 12, i;

    memcpy(frame, to, 6);
    memcpy(frame + 6, mac, 6);
    for (i = 0; a && i < a->vlans && i < PACKET_VLANS_MAX; i++) {
        bool service = a->vlans == 2 && i == 0; /* 802.1ad outside, 802.1Q inside */

        frame[at++] = service ? 0x88 : 0x81;
        frame[at++] = service ? 0xa8 : 0x00;
        frame[at++] = (uint8_t)(a->vlan[i] >> 8);
        frame[at++] = (uint8_t)a->vlan[i];
    }
    frame[at++] = (uint8_t)(type >> 8);
    frame[at++] = (uint8_t)type;
    return at;
}

static uint32_t announce_arp(uint8_t *frame, const uint8_t *mac, const struct address *a)
{
    static const uint8_t all[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    /* Request for the own address (RFC 5227), or RARP's "what is my address" when none is known. */
    const uint8_t head[8] = { 0, 1, 8, 0, 6, 4, 0, a ? 1 : 3 };
    uint32_t at = announce_ethernet(frame, all, mac, a, a ? 0x0806 : 0x8035);

    memcpy(frame + at, head, 8);
    memcpy(frame + at + 8, mac, 6);
    if (a) {
        memcpy(frame + at + 14, a->addr + 12, 4);
        memcpy(frame + at + 24, a->addr + 12, 4);
    } else {
        memcpy(frame + at + 18, mac, 6);
    }
    return at + 28;
}

/* Unsolicited neighbour advertisement, override (RFC 4861, 7.2.6). */
static uint32_t announce_na(uint8_t *frame, const uint8_t *mac, const struct address *a)
{
    static const uint8_t all[6] = { 0x33, 0x33, 0, 0, 0, 1 };
    static const uint8_t all_nodes[16] = { 0xff, 2, [15] = 1 };
    uint32_t at = announce_ethernet(frame, all, mac, a, 0x86dd);
    uint8_t *ip = frame + at, *na = ip + 40;
    struct packet p;

    ip[0] = 0x60;
    ip[5] = 32;
    ip[6] = PACKET_PROTO_ICMPV6;
    ip[7] = 255;
    memcpy(ip + 8, a->addr, 16);
    memcpy(ip + 24, all_nodes, 16);
    na[0] = 136;
    na[4] = 0x20;
    memcpy(na + 8, a->addr, 16);
    na[24] = 2;
    na[25] = 1;
    memcpy(na + 26, mac, 6);
    if (!packet_parse(&p, frame, at + 72) && p.kind == PACKET_ICMPV6) {
        packet_checksum_fill(frame, &p);
    }
    return at + 72;
}

static void announce_write(struct vif *v, const uint8_t *frame, uint32_t length)
{
    struct virtio_net_hdr head = { 0 };
    struct iovec iov[2] = {
        { &head, sizeof(head) }, { (void *)(uintptr_t)frame, length < 60 ? 60 : length },
    };

    if (writev(v->tap, iov, 2) < 0) {
        daemon_say(DAEMON_WARNING, "domain %u vif %u: announcement: %s", v->s->domid, v->index,
                   strerror(errno));
    }
}

static void nudge(struct shadowd *s)
{
    uint8_t frame[NUDGE_FRAME_MAX];
    uint32_t i, cursor, length, sent = 0;

    for (i = 0; i < s->vifs; i++) {
        cursor = 0;
        while (s->vif[i].tap >= 0 &&
               (length = nudge_next(s->vif[i].nudge, s->now_us, &cursor, frame))) {
            announce_write(&s->vif[i], frame, length);
            sent++;
        }
    }
    if (!s->nudged) {
        daemon_say(DAEMON_INFO, "domain %u: told the peers of %u connections to send again",
                   s->domid, sent);
    }
    s->nudged++;
}

static void announce(struct shadowd *s)
{
    uint8_t frame[128];
    uint32_t i, j, known;

    for (i = 0; i < s->vifs; i++) {
        struct vif *v = &s->vif[i];

        if (v->tap < 0 || !v->at.rx_copy) {
            continue;                /* never attached: its address is not known */
        }
        known = 0;
        for (j = 0; j < ADDRESSES_MAX; j++) {
            const struct address *a = &v->addresses[j];

            if (a->version) {
                known++;
                memset(frame, 0, sizeof(frame));
                announce_write(v, frame, a->version == 4 ? announce_arp(frame, v->at.mac, a) :
                                                           announce_na(frame, v->at.mac, a));
            }
        }
        if (!known) {
            memset(frame, 0, sizeof(frame));
            announce_write(v, frame, announce_arp(frame, v->at.mac, NULL));
        }
        if (!s->announced) {
            daemon_say(DAEMON_INFO, "domain %u vif %u: announced %u addresses", s->domid, i, known);
        }
    }
    s->announced++;
}

/* ---- Output: guest to channel or tap ------------------------------------------------------- */

static void count_drop(struct vif *v, const char *what)
{
    struct shadowd *s = v->s;

    s->stats.dropped_other++;
    if (daemon_may_say(s->domid, s->now_us)) {
        daemon_say(DAEMON_WARNING, "domain %u vif %u epoch %" PRIu64 ": %s", s->domid, v->index,
                   s->epoch, what);
    }
}

/* Entry's frame to the tap; the entry is done with in any case. */
static void tap_write(struct vif *v, struct outbox_entry *e, const struct packet *p)
{
    struct virtio_net_hdr head = { 0 };
    struct iovec iov[2] = {
        { &head, sizeof(head) }, { outbox_bytes(&v->out, e), e->length },
    };
    const char *why = NULL;

    if (e->flags & REMUS_PACKET_F_CSUM_PARTIAL) {
        if (p->kind != PACKET_TCP && p->kind != PACKET_UDP) {
            why = "partial checksum on something that is neither TCP nor UDP: dropped";
        }
        head.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        head.csum_start = (uint16_t)p->l4;
        head.csum_offset = p->kind == PACKET_TCP ? 16 : 6;
    }
    if (e->gso_size) {
        head.gso_type = p->ip_version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
        if (p->kind == PACKET_TCP && (p->tcp.flags & PACKET_TCP_CWR)) {
            head.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
        }
        head.gso_size = e->gso_size;
        head.hdr_len = (uint16_t)p->payload;
    }
    if (!why && v->tap >= 0 && writev(v->tap, iov, 2) < 0) {
        why = errno == EAGAIN ? "tap is full: frame dropped" : "tap refused a frame";
    }
    if (why) {
        count_drop(v, why);
    }
    outbox_kill(&v->out, e);
}

/* The frame has its final form: on with it.  It stays in `out` until MATCHED, before failover. */
static void output_send(struct vif *v, struct outbox_entry *e, const struct packet *p)
{
    struct shadowd *s = v->s;
    struct remus_packet head = { 0 };
    struct iovec iov;

    if (s->failed_over) {
        if (s->nudged < NUDGES) {
            nudge_output(v->nudge, s->now_us, outbox_bytes(&v->out, e), p);
        }
        tap_write(v, e, p);
        return;
    }
    nudge_output(v->nudge, s->now_us, outbox_bytes(&v->out, e), p);
    outbox_set_state(&v->out, e, OUTBOX_READY);
    e->rewritten = !(p->kind == PACKET_TCP && (p->tcp.flags & PACKET_TCP_SYN));
    if (!s->channel) {
        return;                      /* nobody compares any more: kept for the failover */
    }
    head.length = e->length;
    head.type = REMUS_PACKET_OUTPUT;
    head.vif = (uint8_t)v->index;
    head.flags = e->flags;
    head.epoch = e->epoch;
    head.id = outbox_give_id(&v->out, e);
    head.gso_size = e->gso_size;
    iov.iov_base = outbox_bytes(&v->out, e);
    iov.iov_len = e->length;
    if (channel_send(s->channel, &head, &iov, 1)) {
        count_drop(v, channel_error(s->channel));
        outbox_kill(&v->out, e);
    }
}

static void react(struct vif *v, const struct rewrite_result *result);

/* Held output of a flow that has become ready, in order. */
static void offer_held_output(struct vif *v, uint32_t flow)
{
    struct outbox_entry *e;
    uint64_t serial = 0;
    struct packet p;

    while (v->out.held && (e = outbox_from(&v->out, serial))) {
        bool partial = e->flags & REMUS_PACKET_F_CSUM_PARTIAL;

        serial = e->serial + 1;
        if (e->state != OUTBOX_HELD || e->flow != flow) {
            continue;
        }
        packet_parse(&p, outbox_bytes(&v->out, e), e->length);
        if (rewrite_output(v->rw, v->s->now_us, outbox_bytes(&v->out, e), &p, partial).verdict ==
            REWRITE_HOLD) {
            return;
        }
        output_send(v, e, &p);
    }
}

/* A frame that the guest has sent, complete in the store. */
static void output_take(struct vif *v, struct outbox_entry *e)
{
    uint8_t *frame = outbox_bytes(&v->out, e);
    struct shadowd *s = v->s;
    struct rewrite_result result;
    struct packet p;

    s->stats.output_packets++;
    s->stats.output_bytes += e->length;
    packet_parse(&p, frame, e->length);
    learn_from(v, frame, &p);

    if (e->gso_size) {
        if (p.kind != PACKET_TCP ||
            p.ip_version != (e->gso_type == XEN_NETIF_GSO_TYPE_TCPV4 ? 4 : 6)) {
            count_drop(v, "large frame is not the TCP that it claims to be: dropped");
            outbox_kill(&v->out, e);
            return;
        }
        if (!(e->flags & REMUS_PACKET_F_CSUM_PARTIAL)) {
            /* Segments get their checksums from a partial one; netback mends this, too. */
            uint16_t sum = packet_fold(packet_pseudo_sum(&p));

            frame[p.l4 + 16] = (uint8_t)(sum >> 8);
            frame[p.l4 + 17] = (uint8_t)sum;
            e->flags |= REMUS_PACKET_F_CSUM_PARTIAL;
        }
    }
    result = rewrite_output(v->rw, s->now_us, frame, &p, e->flags & REMUS_PACKET_F_CSUM_PARTIAL);
    if (result.verdict == REWRITE_HOLD) {
        if (v->out.held >= OUT_HELD_MAX) {
            count_drop(v, "too much output waits for the primary's sequence number: dropped");
            outbox_kill(&v->out, e);
            return;
        }
        e->flow = result.flow;
        outbox_set_state(&v->out, e, OUTBOX_HELD);
    } else {
        output_send(v, e, &p);
    }
    react(v, &result);
}

/* One batch from the tx ring. */
static void output_batch(struct vif *v)
{
    struct shadowd *s = v->s;
    uint64_t bad = v->tx.bad;
    uint32_t frames = 0, segs = 0, i, j;
    struct outbox_entry *e;

    while (frames < TX_BATCH && netring_tx_take(&v->tx, &s->tx_packets[frames]) == 1) {
        const struct netring_tx_packet *packet = &s->tx_packets[frames];
        uint32_t killed = outbox_make_room(&v->out, packet->length);

        if (killed && !s->failed_over) {
            s->stats.dropped_other += killed;
            if (daemon_may_say(s->domid, s->now_us)) {
                daemon_say(DAEMON_WARNING,
                           "domain %u vif %u epoch %" PRIu64 ": unmatched output exceeds %u "
                           "bytes: oldest forgotten",
                           s->domid, v->index, s->epoch, OUT_BYTES);
            }
        }
        e = outbox_put(&v->out, packet->length, OUTBOX_FILLING);
        e->epoch = s->epoch;
        e->time_us = s->now_us;
        e->flags = packet->flags;
        e->gso_size = packet->gso_size;
        e->gso_type = packet->gso_type;
        s->tx_entries[frames] = e;
        segs += netring_tx_copies(&v->tx, packet, outbox_bytes(&v->out, e), s->tx_segs + segs);
        frames++;
    }
    if (v->tx.bad != bad) {
        count_drop(v, "bad request on the tx ring: answered with an error");
    }
    if (segs && xengnttab_grant_copy(s->xgt, segs, s->tx_segs)) {
        count_drop(v, strerror(errno)); /* the segments' status tells of each */
    }
    for (i = segs = 0; i < frames; i++) {
        bool good = true;

        for (j = 0; j < s->tx_packets[i].segs; j++) {
            if (s->tx_packets[i].seg[j].size) {
                good &= s->tx_segs[segs++].status == GNTST_okay;
            }
        }
        netring_tx_respond(&v->tx, &s->tx_packets[i], good ? NETIF_RSP_OKAY : NETIF_RSP_ERROR);
        if (!good) {
            count_drop(v, "grant copy of a frame failed: answered with an error");
            outbox_kill(&v->out, s->tx_entries[i]);
            s->tx_entries[i] = NULL;
        }
    }
    if (netring_tx_push(&v->tx)) {
        xenevtchn_notify(s->xce, (evtchn_port_t)v->tx_port);
    }
    for (i = 0; i < frames; i++) {
        if (s->tx_entries[i]) {
            output_take(v, s->tx_entries[i]);
        }
    }
}

static void say_if_broken(struct vif *v)
{
    if ((v->tx.broken || v->rx.broken) && !v->broken_said) {
        v->broken_said = true;
        count_drop(v, v->tx.broken ? "tx ring indices are nonsense: ring left alone" :
                                     "rx ring indices are nonsense: ring left alone");
    }
}

static void pump_output(struct vif *v)
{
    struct shadowd *s = v->s;
    uint32_t i;

    for (i = 0; s->state == STATE_RUNNING && netring_tx_more(&v->tx); i++) {
        if (!s->failed_over && s->channel && channel_congested(s->channel)) {
            s->congested = true;     /* the guest waits; the loop comes back when it has drained */
            break;
        }
        if (i == TX_ROUND) {
            s->busy = true;
            break;
        }
        output_batch(v);
    }
    say_if_broken(v);
}

/* ---- Input: channel or tap to guest -------------------------------------------------------- */

static void input_flush(struct vif *v)
{
    struct shadowd *s = v->s;
    uint32_t failed;

    if (!v->rx.pending_count) {
        return;
    }
    if (v->rx.segs_count && xengnttab_grant_copy(s->xgt, v->rx.segs_count, v->rx.segs)) {
        count_drop(v, strerror(errno));
    }
    if (netring_rx_push(&v->rx, &failed)) {
        xenevtchn_notify(s->xce, (evtchn_port_t)v->rx_port);
    }
    if (failed) {
        count_drop(v, "grant copy into the guest failed: its buffer was answered with an error");
    }
}

/* Held input of a flow that has become ready: on to the guest, before all other input. */
static void offer_held_input(struct vif *v, uint32_t flow)
{
    struct rewrite_result result;
    struct outbox_entry *e;
    uint64_t serial = 0;
    struct packet p;

    while (v->hold.held && (e = outbox_from(&v->hold, serial))) {
        serial = e->serial + 1;
        if (e->state != OUTBOX_HELD || e->flow != flow) {
            continue;
        }
        packet_parse(&p, outbox_bytes(&v->hold, e), e->length);
        result = rewrite_input(v->rw, v->s->now_us, e->time_us, outbox_bytes(&v->hold, e), &p,
                               e->flags & REMUS_PACKET_F_CSUM_PARTIAL);
        if (result.verdict == REWRITE_HOLD) {
            return;
        }
        e->rewritten = 1;
        outbox_set_state(&v->hold, e, OUTBOX_READY);
        react(v, &result);
    }
}

static void react(struct vif *v, const struct rewrite_result *result)
{
    if (result->output_ready && v->out.held) {
        offer_held_output(v, result->flow);
    }
    if (result->input_ready && v->hold.held) {
        offer_held_input(v, result->flow);
    }
}

/* Into the hold store, after those of its flow that are there already. */
static void input_hold(struct vif *v, const struct outbox_entry *e, uint32_t flow)
{
    struct outbox_entry *held;

    input_flush(v);                  /* frames of `hold` that are on the ring still lie in it */
    held = outbox_put(&v->hold, e->length, OUTBOX_HELD);
    if (!held) {
        count_drop(v, "too much input waits for the guest's own handshake: dropped");
        return;
    }
    held->epoch = e->epoch;
    held->time_us = v->s->now_us;
    held->flags = e->flags;
    held->gso_size = e->gso_size;
    held->validated = e->validated;
    held->flow = flow;
    memcpy(outbox_bytes(&v->hold, held), outbox_bytes(&v->inq, e), e->length);
}

/* The head of inq goes through the rewriting.  true: it may be injected; false: it is gone. */
static bool input_prepare(struct vif *v, struct outbox_entry *e)
{
    uint8_t *frame = outbox_bytes(&v->inq, e);
    struct rewrite_result result;
    struct remus_flow flow;
    struct packet p;

    if (e->tag == TAG_FLOW) {
        channel_flow_get(frame, &flow);
        outbox_kill(&v->inq, e);
        result = rewrite_flow(v->rw, v->s->now_us, &flow);
        react(v, &result);
        return false;
    }
    if (e->rewritten || rewrite_idle(v->rw)) {
        return true;
    }
    packet_parse(&p, frame, e->length);
    result = rewrite_input(v->rw, v->s->now_us, e->time_us, frame, &p,
                           e->flags & REMUS_PACKET_F_CSUM_PARTIAL);
    if (result.verdict == REWRITE_HOLD) {
        input_hold(v, e, result.flow);
        outbox_kill(&v->inq, e);
    } else {
        e->rewritten = 1;
    }
    react(v, &result);
    return result.verdict == REWRITE_PASS;
}

/*
 * Makes the frame one that this frontend takes: its features, and what netfront can read from a
 * frame (a blank checksum only in untagged TCP and UDP).  1: inject it; 0: it is in v->segments
 * now; negative: drop it.  May be called again for the same entry.
 */
static int input_fit(struct vif *v, struct outbox *box, struct outbox_entry *e)
{
    uint8_t *frame = outbox_bytes(box, e);
    bool partial = e->flags & REMUS_PACKET_F_CSUM_PARTIAL;
    struct packet p;
    bool native;

    if (!e->gso_size && !partial) {
        return e->length <= NETRING_PAGE || v->at.sg ? 1 : -EMSGSIZE;
    }
    packet_parse(&p, frame, e->length);
    if (e->gso_size) {
        if (p.kind != PACKET_TCP) {
            return -EPROTONOSUPPORT;
        }
        native = !p.vlans && v->at.sg && (p.ip_version == 4 ? v->at.gso4 :
                                          v->at.gso6 && v->at.csum6_offload);
        if (!native) {
            input_flush(v);          /* segments made earlier are on the ring, perhaps */
            return netring_segment(&v->segments, frame, e->length, e->gso_size);
        }
        e->gso_type = p.ip_version == 4 ? XEN_NETIF_GSO_TYPE_TCPV4 : XEN_NETIF_GSO_TYPE_TCPV6;
        if (!partial) {
            uint16_t sum = packet_fold(packet_pseudo_sum(&p));

            frame[p.l4 + 16] = (uint8_t)(sum >> 8);
            frame[p.l4 + 17] = (uint8_t)sum;
            e->flags |= REMUS_PACKET_F_CSUM_PARTIAL;
        }
        return 1;
    }
    if (p.kind != PACKET_TCP && p.kind != PACKET_UDP) {
        return -EPROTONOSUPPORT;
    }
    if (p.vlans || (p.ip_version == 6 && !v->at.csum6_offload)) {
        packet_checksum_fill(frame, &p);
        e->flags &= (uint16_t)~REMUS_PACKET_F_CSUM_PARTIAL;
        e->validated = 1;
    }
    return e->length <= NETRING_PAGE || v->at.sg ? 1 : -EMSGSIZE;
}

/* false: no room on the ring. */
static bool input_inject(struct vif *v, struct outbox *box, struct outbox_entry *e)
{
    struct netring_rx_frame frame;
    int rc = input_fit(v, box, e);

    if (rc < 0) {
        count_drop(v, "frame that the guest's interface cannot take: dropped");
        outbox_kill(box, e);
        return true;
    }
    if (!rc) {
        outbox_kill(box, e);         /* v->segments has it */
        return true;
    }
    if (!netring_rx_room(&v->rx, netring_rx_need(e->length, e->gso_size != 0))) {
        return false;
    }
    frame = (struct netring_rx_frame){
        .data = outbox_bytes(box, e),
        .length = e->length,
        .gso_size = e->gso_size,
        .gso_type = e->gso_type,
        .csum_blank = e->flags & REMUS_PACKET_F_CSUM_PARTIAL,
        .data_validated = e->validated,
    };
    netring_rx_put(&v->rx, &frame);
    v->s->stats.input_packets++;
    v->s->stats.input_bytes += e->length;
    outbox_kill(box, e);             /* its bytes stay as they are until the next put or hold */
    return true;
}

/* What is left of a frame that was cut; false: no room. */
static bool input_segments(struct vif *v)
{
    struct netring_segments *segments = &v->segments;

    while (segments->next < segments->count) {
        struct netring_rx_frame frame = {
            .data = segments->bytes + segments->segment[segments->next].offset,
            .length = segments->segment[segments->next].length,
        };

        if (!netring_rx_room(&v->rx, netring_rx_need(frame.length, false))) {
            return false;
        }
        netring_rx_put(&v->rx, &frame);
        v->s->stats.input_packets++;
        v->s->stats.input_bytes += frame.length;
        segments->next++;
    }
    return true;
}

static struct outbox_entry *hold_ready(struct vif *v)
{
    struct outbox_entry *e;
    uint64_t serial = 0;

    if (v->hold.live == v->hold.held) {
        return NULL;
    }
    while ((e = outbox_from(&v->hold, serial)) && e->state != OUTBOX_READY) {
        serial = e->serial + 1;
    }
    return e;
}

/* The next input of an epoch that may run; older input is forgotten on the way. */
static struct outbox_entry *input_next(struct vif *v)
{
    struct shadowd *s = v->s;
    struct outbox_entry *e;

    while ((e = outbox_first(&v->inq)) && e->epoch < s->epoch && !s->failed_over) {
        outbox_kill(&v->inq, e);
        s->stats.dropped_old++;
    }
    if (e && e->epoch > s->epoch && !s->failed_over) {
        return NULL;                 /* waits for its ATTACH */
    }
    return e;
}

static void pump_input(struct vif *v)
{
    struct shadowd *s = v->s;
    struct outbox_entry *e;

    if (s->state != STATE_RUNNING) {
        v->moved_us = s->now_us;
        return;
    }
    if (!v->rx.attached || v->rx.broken) {
        return;
    }
    while (input_segments(v)) {
        e = hold_ready(v);
        if (e) {
            if (!input_inject(v, &v->hold, e)) {
                break;
            }
        } else {
            e = input_next(v);
            if (e && input_prepare(v, e) && !input_inject(v, &v->inq, e)) {
                break;
            }
            v->moved_us = s->now_us;
            if (!e) {
                break;
            }
        }
        if (v->rx.segs_count >= RX_BATCH) {
            input_flush(v);
        }
    }
    input_flush(v);
    say_if_broken(v);
}

/* ---- Channel ------------------------------------------------------------------------------- */

/* The guest takes nothing there: that must not stop its other interfaces. */
static bool vif_stuck(const struct vif *v)
{
    return v->s->now_us - v->moved_us > STUCK_US;
}

static bool inq_has_room(const struct shadowd *s)
{
    uint32_t i;

    for (i = 0; i < s->vifs; i++) {
        if (!outbox_has_room(&s->vif[i].inq, REMUS_PACKET_MAX) && !vif_stuck(&s->vif[i])) {
            return false;
        }
    }
    return true;
}

static int channel_packet(void *arg, const struct remus_packet *head, const uint8_t *payload)
{
    struct shadowd *s = arg;
    struct vif *v = &s->vif[head->vif];
    struct outbox_entry *e;
    struct packet p;
    size_t i;

    switch (head->type) {
    case REMUS_PACKET_MATCHED:
        for (i = 0; i < channel_matched_count(head); i++) {
            e = outbox_find_id(&v->out, channel_matched_id(payload, i));
            if (e) {
                outbox_kill(&v->out, e);
                s->stats.released_equal++;
            }
        }
        return 0;
    case REMUS_PACKET_SENT:
        if (!packet_parse(&p, payload, head->length)) {
            nudge_output(v->nudge, s->now_us, payload, &p);
        }
        return 0;
    case REMUS_PACKET_INPUT:
    case REMUS_PACKET_FLOW:
        if (head->epoch <= s->forgotten) {
            s->stats.dropped_old++;
            return 0;
        }
        e = outbox_put(&v->inq, head->length, OUTBOX_READY);
        if (!e) {
            /* The channel is paused in time, but not for a guest that takes nothing: to the copy
             * that is a network that lost the frame, and the next checkpoint mends it. */
            count_drop(v, "input dropped: the guest does not take it");
            return 0;
        }
        e->epoch = head->epoch;
        e->time_us = s->now_us;
        e->flags = head->flags;
        e->gso_size = head->gso_size;
        e->tag = head->type == REMUS_PACKET_FLOW ? TAG_FLOW : TAG_FRAME;
        memcpy(outbox_bytes(&v->inq, e), payload, head->length);
        if (!outbox_has_room(&v->inq, REMUS_PACKET_MAX) && !vif_stuck(v)) {
            channel_pause(s->channel, true);
            s->channel_paused = true;
        }
        return 0;
    }
    return 0;
}

static void channel_lost(struct shadowd *s, int rc)
{
    if (!s->failing_over) {
        daemon_say(DAEMON_WARNING, "domain %u epoch %" PRIu64 ": packet channel lost: %s", s->domid,
                   s->epoch, *channel_error(s->channel) ? channel_error(s->channel)
                   : strerror(-rc));
    }
    if (s->ctl_open && !s->failing_over) {
        ctl_say(REMUS_CTL_FD, CTL_CHANNEL_LOST, 0, s->epoch, "%s", channel_error(s->channel));
    }
    channel_free(s->channel);        /* which takes it out of the epoll set, too */
    s->channel = NULL;
}

static void channel_poll(struct shadowd *s)
{
    struct epoll_event event = { .data.u64 = REMUS_CHANNEL_FD };

    if (!s->channel) {
        return;
    }
    event.events = s->channel_paused ? 0 : EPOLLIN;
    if (channel_wants_write(s->channel)) {
        event.events |= EPOLLOUT;
    }
    event.events |= event.events ? EPOLLET : 0;
    if (event.events != s->channel_events) {
        /* Out of the set when nothing is wanted: a hang-up would be reported without end. */
        epoll_ctl(s->epoll, !event.events ? EPOLL_CTL_DEL :
                  !s->channel_events ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, REMUS_CHANNEL_FD, &event);
        s->channel_events = event.events;
    }
}

static void channel_work(struct shadowd *s, bool readable)
{
    int rc;

    if (s->channel && s->channel_paused && inq_has_room(s)) {
        channel_pause(s->channel, false);
        s->channel_paused = false;
    }
    if (s->channel && !s->channel_paused && (readable || channel_pending(s->channel))) {
        rc = channel_read(s->channel, channel_packet, s, CHANNEL_BATCH);
        if (rc) {
            channel_lost(s, rc);
        }
    }
}

/* ---- Tap ------------------------------------------------------------------------------------ */

/*
 * In the epoll set while there is room for what it has, and a guest to take it: what comes while
 * the kernel's backend is to take the interface waits there for it.
 */
static void tap_poll(struct vif *v)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u64 = TAP_EVENT | v->index };
    bool want = v->tap >= 0 && v->s->state == STATE_RUNNING &&
                outbox_has_room(&v->inq, REMUS_PACKET_MAX);

    if (want != v->tap_polled) {
        v->tap_polled = want;
        epoll_ctl(v->s->epoll, want ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, v->tap, &event);
    }
}

/* After failover: frames of the network into inq. */
static void tap_read(struct vif *v)
{
    struct shadowd *s = v->s;
    struct virtio_net_hdr head;
    struct outbox_entry *e;
    struct iovec iov[2];
    struct packet p;
    uint32_t i;
    ssize_t n;

    for (i = 0; i < TAP_BATCH && v->tap >= 0 && s->state == STATE_RUNNING; i++) {
        e = outbox_put(&v->inq, REMUS_PACKET_MAX, OUTBOX_READY);
        if (!e) {
            return;                  /* the tap's queue holds, then drops: an ordinary network */
        }
        iov[0] = (struct iovec){ &head, sizeof(head) };
        iov[1] = (struct iovec){ outbox_bytes(&v->inq, e), REMUS_PACKET_MAX };
        n = readv(v->tap, iov, 2);
        if (n < (ssize_t)(sizeof(head) + NETRING_FRAME_MIN)) {
            outbox_unput(&v->inq, e);
            if (n >= 0) {
                continue;
            }
            if (errno != EAGAIN && errno != EINTR) {
                daemon_say(DAEMON_ERROR, "domain %u vif %u: its tap is gone: %s", s->domid,
                           v->index, strerror(errno));
                close(v->tap);
                v->tap = -1;
                v->tap_polled = false;
            }
            return;
        }
        outbox_shrink(&v->inq, e, (uint32_t)n - (uint32_t)sizeof(head));
        e->epoch = s->epoch;
        e->time_us = s->now_us;
        if (head.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
            e->flags |= REMUS_PACKET_F_CSUM_PARTIAL;
        }
        e->validated = (head.flags & VIRTIO_NET_HDR_F_DATA_VALID) != 0;
        if (head.gso_type != VIRTIO_NET_HDR_GSO_NONE) {
            e->flags |= REMUS_PACKET_F_GSO;
            e->gso_size = head.gso_size;
        }
        if (s->nudged < NUDGES) {
            packet_parse(&p, outbox_bytes(&v->inq, e), e->length);
            nudge_input(v->nudge, &p);
        }
    }
}

/* What the frontend takes need not be cut or summed by the kernel before. */
static int tap_offload(struct vif *v, int fd)
{
    unsigned long offload = TUN_F_CSUM;

    if (v->at.sg && v->at.gso4) {
        offload |= TUN_F_TSO4 | TUN_F_TSO_ECN;
    }
    if (v->at.sg && v->at.gso6 && v->at.csum6_offload) {
        offload |= TUN_F_TSO6 | TUN_F_TSO_ECN;
    }
    return ioctl(fd, TUNSETOFFLOAD, offload) < 0 ? -errno : 0;
}

static int tap_prepare(struct vif *v, int fd)
{
    int header = sizeof(struct virtio_net_hdr);
    struct ifreq ifr;
    int flags;

    memset(&ifr, 0, sizeof(ifr));
    if (ioctl(fd, TUNGETIFF, &ifr) < 0) {
        return -errno;
    }
    if ((ifr.ifr_flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)) !=
        (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)) {
        return -EINVAL;
    }
    flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        ioctl(fd, TUNSETVNETHDRSZ, &header) < 0) {
        return -errno;
    }
    return tap_offload(v, fd);
}

/* ---- Attaching ------------------------------------------------------------------------------ */

static void vif_unbind(struct vif *v)
{
    struct shadowd *s = v->s;

    if (v->rx_port >= 0 && v->rx_port != v->tx_port) {
        xenevtchn_unbind(s->xce, (evtchn_port_t)v->rx_port);
    }
    if (v->tx_port >= 0) {
        xenevtchn_unbind(s->xce, (evtchn_port_t)v->tx_port);
    }
    v->tx_port = v->rx_port = -1;
}

static void vif_unmap(struct vif *v)
{
    struct shadowd *s = v->s;

    netring_tx_detach(&v->tx);
    netring_rx_detach(&v->rx);
    if (v->tx_page) {
        xengnttab_unmap(s->xgt, v->tx_page, 1);
    }
    if (v->rx_page) {
        xengnttab_unmap(s->xgt, v->rx_page, 1);
    }
    v->tx_page = v->rx_page = NULL;
    v->mapped = false;
}

static int vif_map(struct vif *v, const struct ctl_attach *at)
{
    struct shadowd *s = v->s;

    vif_unmap(v);
    v->tx_page = xengnttab_map_grant_ref(s->xgt, s->domid, at->tx_ref, PROT_READ | PROT_WRITE);
    if (!v->tx_page) {
        return -errno;
    }
    v->rx_page = xengnttab_map_grant_ref(s->xgt, s->domid, at->rx_ref, PROT_READ | PROT_WRITE);
    if (!v->rx_page) {
        return -errno;
    }
    v->mapped = true;
    return 0;
}

static int vif_bind(struct vif *v, const struct ctl_attach *at)
{
    struct shadowd *s = v->s;

    vif_unbind(v);
    v->tx_port = xenevtchn_bind_interdomain(s->xce, s->domid, at->tx_port);
    if (v->tx_port < 0) {
        return -errno;
    }
    v->rx_port = at->rx_port == at->tx_port ? v->tx_port :
                 xenevtchn_bind_interdomain(s->xce, s->domid, at->rx_port);
    return v->rx_port < 0 ? -errno : 0;
}

/* A sentence in error, when it fails. */
static int vif_attach(struct vif *v, const struct ctl_attach *at, char *error, size_t size)
{
    struct shadowd *s = v->s;
    int rc;

    if (!at->rx_copy) {
        snprintf(error, size, "domain %u vif %u: the frontend does not take copies "
                 "(request-rx-copy)", s->domid, v->index);
        return -EPROTONOSUPPORT;
    }
    if (!v->mapped || v->at.tx_ref != at->tx_ref || v->at.rx_ref != at->rx_ref) {
        rc = vif_map(v, at);
        if (rc) {
            snprintf(error, size, "domain %u vif %u: cannot map rings (tx-ring-ref %u, rx-ring-ref "
                     "%u): %s", s->domid, v->index, at->tx_ref, at->rx_ref, strerror(-rc));
            return rc;
        }
    }
    if (v->tx_port < 0 || v->rx_port < 0 || v->at.tx_port != at->tx_port ||
        v->at.rx_port != at->rx_port) {
        rc = vif_bind(v, at);
        if (rc) {
            snprintf(error, size, "domain %u vif %u: cannot bind to the guest's event channels %u, "
                     "%u (does another backend hold them?): %s", s->domid, v->index, at->tx_port,
                     at->rx_port, strerror(-rc));
            return rc;
        }
    }
    v->at = *at;
    /* A guest that has ruined its own rings loses its network, not its protection. */
    v->broken_said = false;
    netring_tx_attach(&v->tx, v->tx_page, s->domid);
    netring_rx_attach(&v->rx, v->rx_page, s->domid);
    say_if_broken(v);
    if (v->tap >= 0) {
        tap_offload(v, v->tap);
    }
    return 0;
}

static int do_attach(struct shadowd *s, const struct ctl_in *in, char *error, size_t size)
{
    uint64_t start_us = daemon_clock_us(CLOCK_THREAD_CPUTIME_ID), cpu_us;
    uint32_t i;
    int rc = 0;

    for (i = 0; !rc && i < in->msg.count; i++) {
        const struct ctl_attach *at = &in->structs.attach[i];

        if (at->vif >= s->vifs || at->domid != s->domid) {
            snprintf(error, size, "domain %u: ATTACH names vif %u of domain %u", s->domid, at->vif,
                     at->domid);
            return -EINVAL;
        }
        rc = vif_attach(&s->vif[at->vif], at, error, size);
    }
    if (rc) {
        return rc;
    }
    s->epoch = in->msg.epoch;
    if (in->msg.epoch && in->msg.epoch - 1 > s->forgotten) {
        s->forgotten = in->msg.epoch - 1;
    }
    cpu_us = daemon_clock_us(CLOCK_THREAD_CPUTIME_ID) - start_us;
    s->stats.attaches++;
    s->stats.attach_us_sum += cpu_us;
    if (cpu_us > s->stats.attach_us_max) {
        s->stats.attach_us_max = cpu_us;
    }
    daemon_say(DAEMON_DEBUG, "domain %u epoch %" PRIu64 ": attached in %" PRIu64 " us", s->domid,
               s->epoch, cpu_us);
    return 0;
}

static bool input_waits(struct vif *v)
{
    return v->rx.attached && !v->rx.broken &&
           (v->segments.next < v->segments.count || hold_ready(v) || outbox_first(&v->inq));
}

/* What was read from the taps waits there no more: the backend that comes next will not have it. */
static void deliver_rest(struct shadowd *s)
{
    const uint64_t until_us = daemon_clock_us(CLOCK_MONOTONIC) + REST_US;
    bool waits;
    uint32_t i;

    do {
        waits = false;
        for (i = 0; i < s->vifs; i++) {
            pump_input(&s->vif[i]);
            waits = waits || input_waits(&s->vif[i]);
        }
    } while (s->state == STATE_RUNNING && waits && !usleep(1000) &&
             daemon_clock_us(CLOCK_MONOTONIC) < until_us);
}

static void do_detach(struct shadowd *s, uint64_t epoch)
{
    uint32_t i;

    if (s->failed_over) {
        deliver_rest(s);
    }
    for (i = 0; i < s->vifs; i++) {
        struct vif *v = &s->vif[i];

        netring_tx_detach(&v->tx);
        netring_rx_detach(&v->rx);
        v->segments.count = v->segments.next = 0;
        if (s->failed_over) {
            continue;                /* nothing became equal: what is known stays true */
        }
        outbox_forget_epochs(&v->inq, epoch);
        outbox_forget_epochs(&v->hold, UINT64_MAX);
        outbox_forget_epochs(&v->out, epoch);
        rewrite_detach(v->rw);
    }
    if (epoch > s->forgotten) {
        s->forgotten = epoch;
    }
}

/* The guest runs: both directions may have work, and it may be owed a notification. */
static void do_go(struct shadowd *s)
{
    uint32_t i;

    for (i = 0; i < s->vifs; i++) {
        struct vif *v = &s->vif[i];
        bool tx = netring_tx_owes_notify(&v->tx), rx = netring_rx_owes_notify(&v->rx);

        if (tx) {
            xenevtchn_notify(s->xce, (evtchn_port_t)v->tx_port);
        }
        if (rx && !(tx && v->rx_port == v->tx_port)) {
            xenevtchn_notify(s->xce, (evtchn_port_t)v->rx_port);
        }
    }
}

/* ---- Failover ------------------------------------------------------------------------------- */

/* Input that came from the primary meets the rules of before: its SYNs are the primary's, too. */
static void failover_input(struct vif *v)
{
    struct outbox_entry *e;
    uint64_t serial = 0;

    while ((e = outbox_from(&v->inq, serial))) {
        serial = e->serial + 1;
        if (e->epoch < v->s->epoch) {
            outbox_kill(&v->inq, e);
        } else {
            input_prepare(v, e);
        }
    }
}

/* Input whose sequence numbers will never be known goes to the guest as it is. */
static void failover_held_input(struct vif *v)
{
    struct outbox_entry *e;
    uint64_t serial = 0;

    while (v->hold.held && (e = outbox_from(&v->hold, serial))) {
        serial = e->serial + 1;
        if (e->state == OUTBOX_HELD) {
            offer_held_input(v, e->flow);
        }
    }
}

/* Asks the guest where its connections stand. */
static void failover_questions(struct vif *v)
{
    uint8_t frame[NUDGE_FRAME_MAX];
    uint32_t cursor = 0, length;
    struct outbox_entry *e;

    while ((length = nudge_question(v->nudge, v->s->now_us, &cursor, frame))) {
        e = outbox_put(&v->inq, length, OUTBOX_READY);
        if (!e) {
            return;
        }
        e->epoch = v->s->epoch;
        e->time_us = v->s->now_us;
        e->rewritten = 1;
        memcpy(outbox_bytes(&v->inq, e), frame, length);
    }
}

/*
 * Output that never matched goes out now, in the order in which the guest sent it; but of ACKs
 * without data only the newest: each would be a round trip of the time without a host.
 */
static void failover_output(struct vif *v)
{
    struct outbox_entry *e;
    uint64_t serial = 0;
    uint32_t sent = 0;
    struct packet p;

    while ((e = outbox_from(&v->out, serial))) {
        uint8_t *frame = outbox_bytes(&v->out, e);

        serial = e->serial + 1;
        packet_parse(&p, frame, e->length);
        if (nudge_superseded(v->nudge, &p)) {
            outbox_kill(&v->out, e);
            continue;
        }
        rewrite_output_late(v->rw, frame, &p, e->flags & REMUS_PACKET_F_CSUM_PARTIAL,
                            e->rewritten);
        tap_write(v, e, &p);
        sent++;
    }
    daemon_say(DAEMON_INFO, "domain %u vif %u: sent %u frames that were not matched", v->s->domid,
               v->index, sent);
}

static void do_failover(struct shadowd *s, struct ctl_in *in)
{
    uint32_t i;
    int rc;

    if (s->failed_over) {
        daemon_say(DAEMON_ERROR, "domain %u: FAILOVER a second time: ignored", s->domid);
        return;
    }
    if (in->n_fds != s->vifs) {
        daemon_say(DAEMON_ERROR, "domain %u: %u taps for %u interfaces: the others stay mute",
                   s->domid, in->n_fds, s->vifs);
    }
    for (i = 0; i < s->vifs && i < in->n_fds; i++) {
        rc = tap_prepare(&s->vif[i], in->fds[i]);
        if (rc) {
            daemon_say(DAEMON_ERROR,
                       "domain %u vif %u: its tap cannot be used (it must have IFF_TAP, "
                       "IFF_NO_PI and IFF_VNET_HDR): %s",
                       s->domid, i, strerror(-rc));
            continue;
        }
        s->vif[i].tap = in->fds[i];
        in->fds[i] = -1;
    }
    s->failing_over = true;
    /* What the primary has sent before it went: matched output, and input that its clients may
     * think delivered. */
    for (i = 0; s->channel && i < INQ_FRAMES / CHANNEL_BATCH; i++) {
        channel_work(s, true);
        if (s->channel_paused || (s->channel && !channel_pending(s->channel))) {
            break;
        }
    }
    for (i = 0; i < s->vifs; i++) {
        failover_input(&s->vif[i]);
    }
    s->failed_over = true;
    s->failover_us = s->now_us;
    if (s->state == STATE_ATTACHED) {
        s->state = STATE_RUNNING;
        do_go(s);
    }
    for (i = 0; i < s->vifs; i++) {
        struct vif *v = &s->vif[i];

        rewrite_failover(v->rw, s->now_us, in->msg.code * 1000ull);
        nudge_begin(v->nudge);
        failover_held_input(v);
        failover_questions(v);
        pump_input(v);
        failover_output(v);
        tap_poll(v);
    }
    announce(s);
}

/* Held input whose guest never answered, some time after failover. */
static void expire_held(struct vif *v)
{
    struct outbox_entry *e;

    while ((e = outbox_first(&v->hold)) && e->state == OUTBOX_HELD &&
           v->s->now_us - e->time_us > REWRITE_HANDSHAKE_US) {
        outbox_kill(&v->hold, e);
        v->s->stats.dropped_other++;
    }
}

/* ---- Control -------------------------------------------------------------------------------- */

/* held: frames in all queues.  flows: tracked; after failover: those that need more than an offset,
 * and offsets those that need one. */
static void stats_fill(struct shadowd *s)
{
    struct rewrite_stats rewrite;
    uint32_t i;

    s->stats.held = s->stats.held_bytes = s->stats.flows = s->stats.flows_max = 0;
    s->stats.offsets = 0;
    for (i = 0; i < s->vifs; i++) {
        struct vif *v = &s->vif[i];

        s->stats.held += v->out.live + v->hold.live + v->inq.live;
        s->stats.held_bytes += v->out.live_bytes + v->hold.live_bytes + v->inq.live_bytes;
        rewrite_stats_get(v->rw, s->now_us, &rewrite);
        s->stats.flows += s->failed_over ? rewrite.unsettled : rewrite.flows;
        s->stats.offsets += s->failed_over ? rewrite.offsets : 0;
        s->stats.flows_max += rewrite.flows_max;
    }
    if (s->stats.held > s->stats.held_max) {
        s->stats.held_max = s->stats.held;
    }
}

/* The primary's guest has these numbers from an earlier takeover. */
static void do_offsets(struct shadowd *s, const struct ctl_in *in)
{
    uint32_t i;

    for (i = 0; in->msg.code & CTL_OFFSETS_FIRST && i < s->vifs; i++) {
        rewrite_offsets_clear(s->vif[i].rw);
    }
    for (i = 0; i < in->msg.count; i++) {
        const struct remus_offset *based = &in->structs.offsets[i];

        if (based->vif < s->vifs &&
            !rewrite_offsets_add(s->vif[based->vif].rw, s->now_us, based)) {
            count_drop(&s->vif[based->vif], "a connection of an earlier takeover has no place");
        }
    }
}

static void tell_offsets(struct shadowd *s, uint64_t question)
{
    struct ctl_msg msg = { .type = CTL_OFFSETS, .code = CTL_OFFSETS_FIRST, .epoch = question };
    struct remus_offset list[CTL_OFFSETS_MAX];
    uint32_t vif = 0, cursor = 0;
    bool more = true;

    while (more) {
        for (msg.count = 0; msg.count < CTL_OFFSETS_MAX && vif < s->vifs;) {
            if (rewrite_offsets_next(s->vif[vif].rw, &cursor, &list[msg.count])) {
                list[msg.count++].vif = (uint8_t)vif;
            } else {
                vif++;
                cursor = 0;
            }
        }
        more = vif < s->vifs;
        msg.code |= more ? 0 : CTL_OFFSETS_LAST;
        if (ctl_send_wait(REMUS_CTL_FD, &msg, list, NULL, NULL, 0, 1000)) {
            return;              /* it asks again */
        }
        msg.code = 0;
    }
}

static const int state_next[3][4] = {
    /*                   ATTACH          DETACH          GO             FAILOVER */
    [STATE_DETACHED] = { STATE_ATTACHED, STATE_DETACHED, -1,            STATE_DETACHED },
    [STATE_ATTACHED] = { STATE_ATTACHED, STATE_DETACHED, STATE_RUNNING, STATE_RUNNING },
    [STATE_RUNNING]  = { STATE_ATTACHED, STATE_DETACHED, STATE_RUNNING, STATE_RUNNING },
};

/* Ends the daemon, except after failover: the guest keeps the network that it has. */
static void fail(struct shadowd *s, const char *text)
{
    daemon_say(DAEMON_ERROR, "%s", text);
    if (s->failed_over) {
        return;
    }
    if (s->ctl_open) {
        ctl_say(REMUS_CTL_FD, CTL_FAILED, 0, s->epoch, "%s", text);
    }
    s->quit = true;
}

static void ctl_message(struct shadowd *s, struct ctl_in *in)
{
    char error[CTL_TEXT_MAX] = "";
    int column = -1, next;

    switch (in->msg.type) {
    case CTL_ATTACH:   column = 0; break;
    case CTL_DETACH:   column = 1; break;
    case CTL_GO:       column = 2; break;
    case CTL_FAILOVER: column = 3; break;
    case CTL_STATS_GET:
        stats_fill(s);
        ctl_send_wait(REMUS_CTL_FD, &(struct ctl_msg){
                          .type = CTL_STATS, .epoch = s->epoch, .count = 1,
                      }, &s->stats, NULL, NULL, 0, 1000);
        return;
    case CTL_OFFSETS:
        if (s->state != STATE_DETACHED || s->failed_over) {
            break;
        }
        do_offsets(s, in);
        return;
    case CTL_OFFSETS_GET:
        if (!s->failed_over) {
            break;
        }
        tell_offsets(s, in->msg.epoch);
        return;
    case CTL_QUIT:
        s->quit = true;
        return;
    }
    next = column < 0 ? -1 : state_next[s->state][column];
    if (next < 0) {
        snprintf(error, sizeof(error), "domain %u: %s is not legal now (state %d)", s->domid,
                 ctl_type_name(in->msg.type), s->state);
        fail(s, error);
        return;
    }
    switch (in->msg.type) {
    case CTL_ATTACH:
        if (s->state == STATE_RUNNING && in->msg.epoch) {
            do_detach(s, in->msg.epoch - 1);
        }
        if (do_attach(s, in, error, sizeof(error))) {
            fail(s, error);
            return;
        }
        break;
    case CTL_DETACH:
        do_detach(s, in->msg.epoch);
        break;
    case CTL_GO:
        do_go(s);
        break;
    case CTL_FAILOVER:
        do_failover(s, in);
        break;
    }
    s->state = (enum shadow_state)next;
    switch (in->msg.type) {
    case CTL_ATTACH:   ctl_say(REMUS_CTL_FD, CTL_ATTACHED, 0, s->epoch, NULL); break;
    case CTL_DETACH:   ctl_say(REMUS_CTL_FD, CTL_DETACHED, 0, in->msg.epoch, NULL); break;
    case CTL_FAILOVER: ctl_say(REMUS_CTL_FD, CTL_ACTIVE, 0, s->epoch, NULL); break;
    }
}

static void ctl_work(struct shadowd *s)
{
    struct ctl_in in;
    int rc;

    while (!s->quit && (rc = ctl_recv(REMUS_CTL_FD, &in)) != -EAGAIN) {
        if (rc == -EPROTO) {
            fail(s, "malformed control message");
        } else if (rc) {
            daemon_say(DAEMON_INFO, "domain %u: the coordinator is gone%s", s->domid,
                       s->failed_over ? ": the guest's network stays" : "");
            epoll_ctl(s->epoll, EPOLL_CTL_DEL, REMUS_CTL_FD, NULL);
            close(REMUS_CTL_FD);
            s->ctl_open = false;
            s->quit = !s->failed_over;
            return;
        } else {
            ctl_message(s, &in);
            ctl_in_dispose(&in);
        }
    }
}

/* ---- Loop ----------------------------------------------------------------------------------- */

static void events_work(struct shadowd *s)
{
    int rc = daemon_events(xenevtchn_fd(s->xce));

    if (rc && daemon_may_say(s->domid, s->now_us)) {
        daemon_say(DAEMON_WARNING, "domain %u: event channels cannot be unmasked: %s", s->domid,
                   strerror(-rc));
    }
}

static int wait_ms(const struct shadowd *s)
{
    uint64_t until_us = s->tick_us, at_us;

    if (s->busy || (s->channel && !s->channel_paused && channel_pending(s->channel))) {
        return 0;
    }
    if (s->failed_over && s->announced < ANNOUNCES) {
        at_us = s->failover_us + announce_at_ms[s->announced] * 1000ull;
        until_us = at_us < until_us ? at_us : until_us;
    }
    if (s->failed_over && s->nudged < NUDGES) {
        at_us = s->failover_us + nudge_at_ms[s->nudged] * 1000ull;
        until_us = at_us < until_us ? at_us : until_us;
    }
    return until_us <= s->now_us ? 0 : (int)((until_us - s->now_us + 999) / 1000);
}

static void timers_work(struct shadowd *s)
{
    uint32_t i;

    if (s->failed_over && s->announced < ANNOUNCES &&
        s->now_us >= s->failover_us + announce_at_ms[s->announced] * 1000ull) {
        announce(s);
    }
    if (s->failed_over && s->nudged < NUDGES &&
        s->now_us >= s->failover_us + nudge_at_ms[s->nudged] * 1000ull) {
        nudge(s);
    }
    if (s->now_us >= s->tick_us) {
        s->tick_us = s->now_us + TICK_US;
        if (s->channel && s->failed_over && s->now_us - s->failover_us > LATE_INPUT_US) {
            channel_free(s->channel);
            s->channel = NULL;
        }
        for (i = 0; i < s->vifs; i++) {
            rewrite_tick(s->vif[i].rw, s->now_us);
            if (s->failed_over) {
                expire_held(&s->vif[i]);
            }
        }
    }
}

static void loop(struct shadowd *s)
{
    struct epoll_event events[EVENTS_BATCH];
    bool readable;
    uint32_t i;
    int n, rc;

    while (!s->quit) {
        readable = false;
        n = epoll_wait(s->epoll, events, EVENTS_BATCH, wait_ms(s));
        s->now_us = daemon_clock_us(CLOCK_MONOTONIC);
        if (daemon_terminated() && !s->ctl_open) {
            return;
        }
        for (i = 0; n > 0 && i < (uint32_t)n; i++) {
            uint64_t who = events[i].data.u64;

            if (who & TAP_EVENT) {
                tap_read(&s->vif[(uint32_t)who]);
            } else if (who == REMUS_CTL_FD && s->ctl_open) {
                ctl_work(s);
            } else if (who == REMUS_CHANNEL_FD) {
                readable = true;
            } else if (who == (uint64_t)xenevtchn_fd(s->xce)) {
                events_work(s);
            }
        }
        channel_work(s, readable);
        s->busy = s->congested = false;
        for (i = 0; i < s->vifs && !s->quit; i++) {
            pump_output(&s->vif[i]);
            pump_input(&s->vif[i]);
            tap_poll(&s->vif[i]);
        }
        if (s->channel && (rc = channel_flush(s->channel))) {
            channel_lost(s, rc);
        }
        /* Room that came only now is announced by nobody else. */
        s->busy = s->busy || (s->channel && s->congested && !channel_congested(s->channel)) ||
                  (s->channel && s->channel_paused && inq_has_room(s));
        channel_poll(s);
        timers_work(s);
    }
}

/* ---- Setup ---------------------------------------------------------------------------------- */

static int vif_init(struct shadowd *s, struct vif *v, uint32_t index, uint64_t seed)
{
    int rc;

    v->s = s;
    v->index = index;
    v->tx_port = v->rx_port = v->tap = -1;
    v->segments.bytes = malloc(NETRING_SEGMENTS_BYTES);
    if (!v->segments.bytes) {
        return -ENOMEM;
    }
    rc = rewrite_new(&v->rw, REWRITE_FLOWS_MAX, seed);
    if (!rc) {
        rc = nudge_new(&v->nudge, seed);
    }
    if (!rc) {
        rc = outbox_init(&v->inq, INQ_BYTES, INQ_FRAMES);
    }
    if (!rc) {
        rc = outbox_init(&v->hold, HOLD_BYTES, HOLD_FRAMES);
    }
    if (!rc) {
        rc = outbox_init(&v->out, OUT_BYTES, OUT_FRAMES);
    }
    return rc;
}

static void vif_dispose(struct vif *v)
{
    if (!v->s) {
        return;
    }
    vif_unmap(v);
    vif_unbind(v);
    if (v->tap >= 0) {
        close(v->tap);
    }
    rewrite_free(v->rw);
    nudge_free(v->nudge);
    outbox_dispose(&v->inq);
    outbox_dispose(&v->hold);
    outbox_dispose(&v->out);
    free(v->segments.bytes);
}

static int drop_privileges(char *error, size_t size)
{
    static const struct privdrop_syscall calls[] = {
        { SCMP_SYS(ioctl), 1, IOCTL_GNTDEV_MAP_GRANT_REF },
        { SCMP_SYS(ioctl), 1, IOCTL_GNTDEV_UNMAP_GRANT_REF },
        { SCMP_SYS(ioctl), 1, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR },
        { SCMP_SYS(ioctl), 1, IOCTL_GNTDEV_GRANT_COPY },
        { SCMP_SYS(ioctl), 1, IOCTL_EVTCHN_BIND_INTERDOMAIN },
        { SCMP_SYS(ioctl), 1, IOCTL_EVTCHN_UNBIND },
        { SCMP_SYS(ioctl), 1, IOCTL_EVTCHN_NOTIFY },
        { SCMP_SYS(ioctl), 1, TUNGETIFF },
        { SCMP_SYS(ioctl), 1, TUNSETVNETHDRSZ },
        { SCMP_SYS(ioctl), 1, TUNSETOFFLOAD },
        { SCMP_SYS(fcntl), 1, F_GETFL },
        { SCMP_SYS(fcntl), 1, F_SETFL },
    };
    static const struct privdrop_options options = {
        .syscalls = calls, .syscall_count = sizeof(calls) / sizeof(calls[0]),
    };

    return remus_privdrop(&options, error, size);
}

static int setup(struct shadowd *s, char *error, size_t size)
{
    const struct channel_options options = { .role = CHANNEL_SECONDARY, .vifs = s->vifs };
    struct epoll_event event = {.events = EPOLLIN};
    uint64_t seed = 0;
    uint32_t i;
    int rc;

    daemon_start("colo-shadowd");
    if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed)) {
        snprintf(error, size, "getrandom: %s", strerror(errno));
        return -EIO;
    }
    for (i = 0; i < s->vifs; i++) {
        rc = vif_init(s, &s->vif[i], i, seed + i);
        if (rc) {
            snprintf(error, size, "queues of vif %u: %s", i, strerror(-rc));
            return rc;
        }
    }
    rc = channel_new(&s->channel, REMUS_CHANNEL_FD, &options);
    if (rc) {
        snprintf(error, size, "packet channel (descriptor %d): %s", REMUS_CHANNEL_FD,
                 strerror(-rc));
        return rc;
    }
    s->xgt = xengnttab_open(NULL, 0);
    s->xce = xenevtchn_open(NULL, 0);
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!s->xgt || !s->xce || s->epoll < 0 ||
        fcntl(xenevtchn_fd(s->xce), F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
        rc = -errno;
        snprintf(error, size, "%s: %s", !s->xgt ? "/dev/xen/gntdev" : !s->xce ? "/dev/xen/evtchn" :
                 s->epoll < 0 ? "epoll" : "event channels", strerror(-rc));
        return rc;
    }
    event.data.u64 = REMUS_CTL_FD;
    rc = epoll_ctl(s->epoll, EPOLL_CTL_ADD, REMUS_CTL_FD, &event);
    event.data.u64 = REMUS_CHANNEL_FD;
    event.events = s->channel_events = EPOLLIN | EPOLLET;
    rc |= epoll_ctl(s->epoll, EPOLL_CTL_ADD, REMUS_CHANNEL_FD, &event);
    event.events = EPOLLIN;
    event.data.u64 = (uint64_t)xenevtchn_fd(s->xce);
    rc |= epoll_ctl(s->epoll, EPOLL_CTL_ADD, xenevtchn_fd(s->xce), &event);
    if (rc) {
        snprintf(error, size, "epoll: %s (descriptors %d and %d must be open sockets)",
                 strerror(errno), REMUS_CTL_FD, REMUS_CHANNEL_FD);
        return -EINVAL;
    }
    return drop_privileges(error, size);
}

static void usage(FILE *to)
{
    fputs("Usage: colo-shadowd --domid N --vifs COUNT [--log-level error|warning|info|debug]\n"
          "\n"
          "User-space network backend of a secondary guest.  Started by xl remus-receive, with a\n"
          "control socket as descriptor 3 and the packet channel as descriptor 4.\n", to);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "domid", required_argument, NULL, 'd' }, { "vifs", required_argument, NULL, 'v' },
        { "log-level", required_argument, NULL, 'l' }, { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    char error[CTL_TEXT_MAX] = "";
    bool have_domid = false;
    struct shadowd *s;
    uint32_t i;
    int option, rc = 2;

    s = calloc(1, sizeof(*s));
    if (!s) {
        perror("colo-shadowd");
        return 1;
    }
    s->epoll = -1;
    s->ctl_open = true;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (option) {
        case 'h':
            usage(stdout);
            rc = 0;
            goto out;
        case 'd':
            have_domid = !daemon_parse_number(optarg, 0x7fef,
                                              &s->domid); /* DOMID_FIRST_RESERVED - 1 */
            break;
        case 'v':
            if (daemon_parse_number(optarg, REMUS_VIFS_MAX, &s->vifs)) {
                s->vifs = 0;
            }
            break;
        case 'l':
            if (!daemon_parse_level(optarg)) {
                break;
            }
            /* fall through */
        default:
            usage(stderr);
            goto out;
        }
    }
    if (!have_domid || !s->vifs || optind != argc) {
        usage(stderr);
        goto out;
    }

    rc = 1;
    s->now_us = daemon_clock_us(CLOCK_MONOTONIC);
    if (setup(s, error, sizeof(error))) {
        fail(s, error);
        goto out;
    }
    if (ctl_say(REMUS_CTL_FD, CTL_READY, 0, 0, NULL)) {
        goto out;
    }
    loop(s);
    rc = 0;

out:
    for (i = 0; i < s->vifs; i++) {
        vif_dispose(&s->vif[i]);
    }
    if (s->channel) {
        channel_free(s->channel);
    }
    if (s->xgt) {
        xengnttab_close(s->xgt);
    }
    if (s->xce) {
        xenevtchn_close(s->xce);
    }
    if (s->epoll >= 0) {
        close(s->epoll);
    }
    free(s);
    return rc;
}
