/*
 * netring.h: the two shared rings of a paravirtual network interface, seen from the backend.
 *
 * The layout and the rules are those of xen/io/netif.h (comments below name its sections) and
 * xen/io/ring.h.  Nothing here makes a system call: the caller hands in mapped ring pages, runs the
 * grant copies that these functions describe and sends the notifications that they ask for.  The
 * other end of a ring is a guest that may be hostile: every request is copied once, validated
 * completely, and only the copy is used.
 *
 * A bad request is answered with NETIF_RSP_ERROR and nothing else happens.  Only indices that
 * cannot be (more requests than the ring has slots) make a ring `broken`: it is left alone until
 * the next attach, because no slot number can be trusted any more.
 */
#ifndef REMUS_NETRING_H
#define REMUS_NETRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef __XEN_TOOLS__
#define __XEN_TOOLS__ 1 /* the newest interface: ring.h's macros then use xen_mb() and friends */
#endif
#define xen_mb()  __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)

#include <xengnttab.h>
#include <xen/io/netif.h>

#include "xen/include/public/remus.h"

#define NETRING_PAGE        4096u
#define NETRING_SLOTS       256u   /* of either ring: one page (netif.h, 12 and 8 octets a slot) */
#define NETRING_FRAME_MAX   REMUS_PACKET_MAX
#define NETRING_FRAME_MIN   14u    /* an Ethernet header */
/* First slot plus the XEN_NETIF_NR_SLOTS_MIN that every backend must take (netif.h, top). */
#define NETRING_TX_SEGS     (1u + XEN_NETIF_NR_SLOTS_MIN)
/* What one frame can need on the rx ring: its pages and one GSO extra. */
#define NETRING_RX_SEGS     ((NETRING_FRAME_MAX + NETRING_PAGE - 1u) / NETRING_PAGE + 1u)

/* ---- tx: guest transmits (netif.h, "Guest transmit") ------------------------------------- */

struct netring_tx {
    netif_tx_back_ring_t ring;
    uint32_t domid;
    bool attached;
    bool broken;
    uint64_t bad;                   /* packets answered with an error */
};

struct netring_tx_seg {
    grant_ref_t gref;
    uint16_t offset;
    uint16_t size;
    uint16_t id;
};

/* One frame, taken off the ring and validated: sizes add up, no segment leaves its page. */
struct netring_tx_packet {
    uint32_t length;
    uint16_t flags;                 /* REMUS_PACKET_F_* */
    uint16_t gso_size;              /* 0: not GSO */
    uint8_t  gso_type;              /* XEN_NETIF_GSO_TYPE_* */
    uint8_t  extras;                /* slots that get NETIF_RSP_NULL */
    uint8_t  segs;
    struct netring_tx_seg seg[NETRING_TX_SEGS];
};

/*
 * Takes over a ring at its present state: requests up to rsp_prod are done, whatever follows is to
 * be worked on.  (A coordinator drains tx before it copies a guest: then nothing follows.)  0, or
 * -EPROTO with the ring broken.
 */
int netring_tx_attach(struct netring_tx *tx, void *page, uint32_t domid);
void netring_tx_detach(struct netring_tx *tx);

/* Next good frame.  Bad ones on the way are answered with errors (so push afterwards in any case).
 * 1: *packet is filled and owes netring_tx_respond().  0: nothing more.  -EPROTO: now broken. */
int netring_tx_take(struct netring_tx *tx, struct netring_tx_packet *packet);

/* Describes the grant copies of a frame into data[packet->length]; returns their number, at most
 * NETRING_TX_SEGS (segs has room for that). */
uint32_t netring_tx_copies(const struct netring_tx *tx, const struct netring_tx_packet *packet,
                           uint8_t *data, xengnttab_grant_copy_segment_t *segs);

/* Writes the responses of a frame: status is NETIF_RSP_OKAY or NETIF_RSP_ERROR. */
void netring_tx_respond(struct netring_tx *tx, const struct netring_tx_packet *packet,
                        int16_t status);
/* Makes responses visible; true: the guest wants a notification. */
bool netring_tx_push(struct netring_tx *tx);
/* Asks for a notification with the next request; true: there is one already. */
bool netring_tx_more(struct netring_tx *tx);

/* ---- rx: guest receives (netif.h, "Guest receive") ---------------------------------------- */

struct netring_rx {
    netif_rx_back_ring_t ring;
    uint32_t domid;
    bool attached;
    bool broken;
    uint32_t pending_count;
    uint32_t segs_count;
    struct {                        /* responses to be, in ring order */
        bool extra;                 /* an extra info slot: .info; otherwise a piece of data */
        netif_rx_response_t rsp;
        netif_extra_info_t info;
        uint32_t seg;               /* its grant copy */
    } pending[NETRING_SLOTS];
    xengnttab_grant_copy_segment_t segs[NETRING_SLOTS];
};

struct netring_rx_frame {
    const uint8_t *data;
    uint32_t length;                /* NETRING_FRAME_MIN .. NETRING_FRAME_MAX */
    uint16_t gso_size;              /* 0: not GSO; else the extra info is sent: needs the feature */
    uint8_t  gso_type;
    bool     csum_blank;            /* L4 checksum field holds the pseudo header sum */
    bool     data_validated;
};

/* As netring_tx_attach: responses up to rsp_prod are out, posted and unused requests follow. */
int netring_rx_attach(struct netring_rx *rx, void *page, uint32_t domid);
void netring_rx_detach(struct netring_rx *rx);

/* Slots that a frame takes. */
uint32_t netring_rx_need(uint32_t length, bool gso);
/* Whether `need` slots are there.  If not, the guest will notify after posting more. */
bool netring_rx_room(struct netring_rx *rx, uint32_t need);
/* Puts a frame into the slots (netring_rx_room() has said yes): describes its copies in rx->segs.
 * data must stay until netring_rx_push(). */
void netring_rx_put(struct netring_rx *rx, const struct netring_rx_frame *frame);
/* After the copies rx->segs[0..segs_count) were run (their status fields tell): writes the
 * responses and makes them visible; true: the guest wants a notification.  *failed: pieces that did
 * not go. */
bool netring_rx_push(struct netring_rx *rx, uint32_t *failed);

/* Whether the guest has asked to hear of responses that are already on the ring: the one
 * notification that a resumed guest may be owed.  (Not sent blindly: Linux delays the events of a
 * port that rings without work.) */
bool netring_tx_owes_notify(const struct netring_tx *tx);
bool netring_rx_owes_notify(const struct netring_rx *rx);

/* ---- TCP segmentation, for a frontend that does not take GSO ------------------------------ */

#define NETRING_GSO_MIN        32u           /* payload bytes of a segment: less is refused */
#define NETRING_SEGMENTS_MAX   (NETRING_FRAME_MAX / NETRING_GSO_MIN)
#define NETRING_SEGMENTS_BYTES (512u << 10)

struct netring_segments {
    uint8_t *bytes;              /* NETRING_SEGMENTS_BYTES, the caller's */
    uint32_t count, next;        /* segments made; the one to be sent next, the caller's */
    struct { uint32_t offset, length; } segment[NETRING_SEGMENTS_MAX + 1];
};

/* Cuts a TCP frame into segments of gso_size payload bytes, checksums complete.  0;
 * -EPROTONOSUPPORT: not TCP; -EINVAL: gso_size too small.  count is 0 after an error. */
int netring_segment(struct netring_segments *out, const uint8_t *frame, uint32_t length,
                    uint16_t gso_size);

#endif /* REMUS_NETRING_H */
