/*
 * netring.c: see netring.h.  Written from the contract in xen/io/netif.h.
 */
#include "tools/remus/netring.h"

#include <assert.h>
#include <errno.h>

#include "tools/remus/packet.h"

/* One page of either kind holds 256 slots: what the frontend computes with __RING_SIZE, too. */
_Static_assert(__CONST_RING_SIZE(netif_tx, NETRING_PAGE) == NETRING_SLOTS, "tx slots");
_Static_assert(__CONST_RING_SIZE(netif_rx, NETRING_PAGE) == NETRING_SLOTS, "rx slots");
_Static_assert(NETRING_RX_SEGS <= NETRING_SLOTS, "a frame fits the ring");

/* A shared index is read once; the guest may write it at any time. */
static RING_IDX shared_read(const RING_IDX *index)
{
    return __atomic_load_n(index, __ATOMIC_ACQUIRE);
}

/* ---- tx ----------------------------------------------------------------------------------- */

int netring_tx_attach(struct netring_tx *tx, void *page, uint32_t domid)
{
    netif_tx_sring_t *shared = page;
    RING_IDX rsp_prod = shared_read(&shared->rsp_prod);
    RING_IDX req_prod = shared_read(&shared->req_prod);

    tx->domid = domid;
    tx->broken = req_prod - rsp_prod > NETRING_SLOTS;
    tx->attached = !tx->broken;
    if (tx->broken) {
        return -EPROTO;
    }
    BACK_RING_ATTACH(&tx->ring, shared, rsp_prod, NETRING_PAGE);
    return 0;
}

void netring_tx_detach(struct netring_tx *tx)
{
    tx->attached = false;
    tx->ring.sring = NULL;
}

/* Requests that may be taken: 0 also where the indices are nonsense, and the ring is broken. */
static uint32_t tx_waiting(struct netring_tx *tx)
{
    RING_IDX req_prod = shared_read(&tx->ring.sring->req_prod);

    /* Behind what was taken already is nonsense as well, until that is answered. */
    if (RING_REQUEST_PROD_OVERFLOW(&tx->ring, req_prod) ||
        req_prod - tx->ring.rsp_prod_pvt < tx->ring.req_cons - tx->ring.rsp_prod_pvt) {
        tx->broken = true;
        return 0;
    }
    return req_prod - tx->ring.req_cons;
}

static void tx_answer(struct netring_tx *tx, uint16_t id, int16_t status)
{
    netif_tx_response_t *rsp = RING_GET_RESPONSE(&tx->ring, tx->ring.rsp_prod_pvt);

    rsp->id = id;
    rsp->status = status;
    tx->ring.rsp_prod_pvt++;
}

static void tx_answer_extras(struct netring_tx *tx, uint32_t extras)
{
    /* netif.h: NETIF_RSP_NULL, "used for auxiliary requests"; there is no id to echo. */
    while (extras--) {
        tx_answer(tx, 0, NETIF_RSP_NULL);
    }
}

struct tx_extras {
    uint32_t count;
    bool gso, mcast;
    netif_extra_info_t info;        /* the GSO one */
};

/* Extra infos follow the first request ("Extra 1" .. "Extra N").  A bad one is consumed, too. */
static int tx_take_extras(struct netring_tx *tx, uint32_t *waiting, struct tx_extras *extras)
{
    netif_tx_request_t slot;
    netif_extra_info_t info;
    int rc = 0;

    do {
        if (!*waiting) {
            return -EBADMSG;
        }
        RING_COPY_REQUEST(&tx->ring, tx->ring.req_cons, &slot);
        memcpy(&info, &slot, sizeof(info));
        tx->ring.req_cons++;
        (*waiting)--;
        extras->count++;
        switch (info.type) {
        case XEN_NETIF_EXTRA_TYPE_GSO:
            extras->gso = true;
            extras->info = info;
            break;
        case XEN_NETIF_EXTRA_TYPE_MCAST_ADD:
        case XEN_NETIF_EXTRA_TYPE_MCAST_DEL:
            extras->mcast = true;
            break;
        case XEN_NETIF_EXTRA_TYPE_HASH:
            break;
        default:
            rc = -EBADMSG;
        }
    } while (info.flags & XEN_NETIF_EXTRA_FLAG_MORE);

    return rc;
}

/* Sizes, pages and types of a chain that is complete. first_size: as the first request says. */
static int tx_validate(struct netring_tx_packet *packet, uint32_t first_size,
                       const struct tx_extras *extras)
{
    uint32_t i, rest = 0;

    for (i = 0; i < packet->segs; i++) {
        /* "the actual size of fragment 1 can only be determined by subtracting" (netif.h) */
        if (i) {
            rest += packet->seg[i].size;
        }
    }
    if (rest > first_size || first_size - rest < NETRING_FRAME_MIN) {
        return -EBADMSG;
    }
    packet->seg[0].size = (uint16_t)(first_size - rest);
    for (i = 0; i < packet->segs; i++) {
        if ((uint32_t)packet->seg[i].offset + packet->seg[i].size > NETRING_PAGE) {
            return -EBADMSG;
        }
    }
    packet->length = first_size;

    if (extras->gso) {
        if (!extras->info.u.gso.size ||
            (extras->info.u.gso.type != XEN_NETIF_GSO_TYPE_TCPV4 &&
             extras->info.u.gso.type != XEN_NETIF_GSO_TYPE_TCPV6)) {
            return -EBADMSG;
        }
        packet->gso_size = extras->info.u.gso.size;
        packet->gso_type = extras->info.u.gso.type;
        packet->flags |= REMUS_PACKET_F_GSO;
    }
    return 0;
}

/* One chain.  1: a frame; 0: something that is answered already. */
static int tx_take_one(struct netring_tx *tx, uint32_t waiting, struct netring_tx_packet *packet)
{
    struct tx_extras extras = { 0 };
    netif_tx_request_t req;
    uint32_t first_size, i;
    int rc = 0;

    memset(packet, 0, offsetof(struct netring_tx_packet, seg));
    RING_COPY_REQUEST(&tx->ring, tx->ring.req_cons, &req);
    tx->ring.req_cons++;
    waiting--;
    first_size = req.size;
    if (req.flags & NETTXF_csum_blank) {
        packet->flags |= REMUS_PACKET_F_CSUM_PARTIAL;
    }
    packet->seg[packet->segs++] = (struct netring_tx_seg){ req.gref, req.offset, 0, req.id };

    if (req.flags & NETTXF_extra_info) {
        rc = tx_take_extras(tx, &waiting, &extras);
    }
    while (req.flags & NETTXF_more_data) {
        if (!waiting) {
            rc = -EBADMSG; /* a frontend pushes whole chains; the rest is no chain's beginning */
            break;
        }
        RING_COPY_REQUEST(&tx->ring, tx->ring.req_cons, &req);
        tx->ring.req_cons++;
        waiting--;
        if (packet->segs < NETRING_TX_SEGS) {
            packet->seg[packet->segs++] = (struct netring_tx_seg){
                req.gref, req.offset, req.size, req.id
            };
        } else {
            /* Its slot is consumed, so its answer has a place; the others get theirs below. */
            rc = -EBADMSG;
            tx_answer(tx, req.id, NETIF_RSP_ERROR);
        }
    }
    packet->extras = (uint8_t)(extras.count < UINT8_MAX ? extras.count : UINT8_MAX);
    tx_answer_extras(tx, extras.count - packet->extras); /* more than the field can count */

    if (!rc && extras.mcast) {
        /* A "dummy transmit request": filters are not our business, the request is done. */
        netring_tx_respond(tx, packet, NETIF_RSP_OKAY);
        return 0;
    }
    if (!rc) {
        rc = tx_validate(packet, first_size, &extras);
    }
    if (rc) {
        tx->bad++;
        for (i = 0; i < packet->segs; i++) {
            tx_answer(tx, packet->seg[i].id, NETIF_RSP_ERROR);
        }
        tx_answer_extras(tx, packet->extras);
        return 0;
    }
    return 1;
}

int netring_tx_take(struct netring_tx *tx, struct netring_tx_packet *packet)
{
    uint32_t waiting;

    if (!tx->attached || tx->broken) {
        return 0;
    }
    while ((waiting = tx_waiting(tx))) {
        if (tx_take_one(tx, waiting, packet)) {
            return 1;
        }
    }
    return tx->broken ? -EPROTO : 0;
}

uint32_t netring_tx_copies(const struct netring_tx *tx, const struct netring_tx_packet *packet,
                           uint8_t *data, xengnttab_grant_copy_segment_t *segs)
{
    uint32_t i, count = 0;

    for (i = 0; i < packet->segs; i++) {
        const struct netring_tx_seg *seg = &packet->seg[i];

        if (!seg->size) {
            continue; /* harmless, and a copy of nothing is an error to some */
        }
        segs[count++] = (xengnttab_grant_copy_segment_t){
            .source.foreign = {
                .ref = seg->gref, .offset = seg->offset, .domid = (uint16_t)tx->domid,
            },
            .dest.virt = data,
            .len = seg->size,
            .flags = GNTCOPY_source_gref,
            .status = GNTST_general_error,
        };
        data += seg->size;
    }
    return count;
}

void netring_tx_respond(struct netring_tx *tx, const struct netring_tx_packet *packet,
                        int16_t status)
{
    uint32_t i;

    for (i = 0; i < packet->segs; i++) {
        tx_answer(tx, packet->seg[i].id, status);
        if (!i) {
            tx_answer_extras(tx, packet->extras);
        }
    }
}

bool netring_tx_push(struct netring_tx *tx)
{
    bool notify;

    if (!tx->attached || tx->ring.rsp_prod_pvt == tx->ring.sring->rsp_prod) {
        return false;
    }
    RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&tx->ring, notify);
    return notify;
}

bool netring_tx_more(struct netring_tx *tx)
{
    if (!tx->attached || tx->broken) {
        return false;
    }
    if (tx_waiting(tx)) {
        return true;
    }
    tx->ring.sring->req_event = tx->ring.req_cons + 1;
    xen_mb(); /* the guest sees req_event before we look once more (ring.h, FINAL_CHECK) */
    return tx_waiting(tx) != 0;
}

bool netring_tx_owes_notify(const struct netring_tx *tx)
{
    if (!tx->attached) {
        return false;
    }
    return (int32_t)(tx->ring.rsp_prod_pvt - shared_read(&tx->ring.sring->rsp_event)) >= 0;
}

/* ---- rx ----------------------------------------------------------------------------------- */

int netring_rx_attach(struct netring_rx *rx, void *page, uint32_t domid)
{
    netif_rx_sring_t *shared = page;
    RING_IDX rsp_prod = shared_read(&shared->rsp_prod);
    RING_IDX req_prod = shared_read(&shared->req_prod);

    rx->domid = domid;
    rx->pending_count = rx->segs_count = 0;
    rx->broken = req_prod - rsp_prod > NETRING_SLOTS;
    rx->attached = !rx->broken;
    if (rx->broken) {
        return -EPROTO;
    }
    BACK_RING_ATTACH(&rx->ring, shared, rsp_prod, NETRING_PAGE);
    return 0;
}

void netring_rx_detach(struct netring_rx *rx)
{
    rx->attached = false;
    rx->pending_count = rx->segs_count = 0;
    rx->ring.sring = NULL;
}

uint32_t netring_rx_need(uint32_t length, bool gso)
{
    return (length + NETRING_PAGE - 1) / NETRING_PAGE + gso;
}

bool netring_rx_room(struct netring_rx *rx, uint32_t need)
{
    RING_IDX req_prod;

    if (!rx->attached || rx->broken) {
        return false;
    }
    for (;;) {
        req_prod = shared_read(&rx->ring.sring->req_prod);
        /* rsp_prod_pvt lags behind req_cons by the frames that are put and not pushed. */
        if (req_prod - rx->ring.rsp_prod_pvt > NETRING_SLOTS ||
            req_prod - rx->ring.rsp_prod_pvt < rx->ring.req_cons - rx->ring.rsp_prod_pvt) {
            rx->broken = true;
            return false;
        }
        if (req_prod - rx->ring.req_cons >= need) {
            return true;
        }
        rx->ring.sring->req_event = req_prod + 1;
        xen_mb(); /* the guest sees req_event before we look once more */
        if (shared_read(&rx->ring.sring->req_prod) == req_prod) {
            return false;
        }
    }
}

void netring_rx_put(struct netring_rx *rx, const struct netring_rx_frame *frame)
{
    uint32_t offset = 0, piece;
    netif_rx_request_t req;

    assert(frame->length >= NETRING_FRAME_MIN && frame->length <= NETRING_FRAME_MAX);
    assert(rx->pending_count + netring_rx_need(frame->length, frame->gso_size) <= NETRING_SLOTS);

    while (offset < frame->length) {
        uint32_t index = rx->pending_count++;

        piece = frame->length - offset;
        if (piece > NETRING_PAGE) {
            piece = NETRING_PAGE;
        }
        RING_COPY_REQUEST(&rx->ring, rx->ring.req_cons, &req);
        rx->ring.req_cons++;
        rx->pending[index].extra = false;
        rx->pending[index].seg = rx->segs_count;
        rx->pending[index].rsp = (netif_rx_response_t){
            .id = req.id, .offset = 0, .flags = 0, .status = (int16_t)piece,
        };
        rx->segs[rx->segs_count++] = (xengnttab_grant_copy_segment_t){
            .source.virt = (void *)(uintptr_t)(frame->data + offset),
            .dest.foreign = { .ref = req.gref, .offset = 0, .domid = (uint16_t)rx->domid },
            .len = (uint16_t)piece,
            .flags = GNTCOPY_dest_gref,
            .status = GNTST_general_error,
        };
        if (offset + piece < frame->length) {
            rx->pending[index].rsp.flags |= NETRXF_more_data;
        }
        if (!offset) {
            if (frame->csum_blank) {
                rx->pending[index].rsp.flags |= NETRXF_csum_blank | NETRXF_data_validated;
            } else if (frame->data_validated) {
                rx->pending[index].rsp.flags |= NETRXF_data_validated;
            }
            if (frame->gso_size) {
                /* "Extra 1" follows fragment 1 in the slot after it, whose request is used up:
                 * its buffer stays with the guest, which knows that from the slot (netif.h). */
                rx->pending[index].rsp.flags |= NETRXF_extra_info;
                rx->ring.req_cons++;
                rx->pending[rx->pending_count].extra = true;
                rx->pending[rx->pending_count].info = (netif_extra_info_t){
                    .type = XEN_NETIF_EXTRA_TYPE_GSO,
                    .u.gso = { .size = frame->gso_size, .type = frame->gso_type },
                };
                rx->pending_count++;
            }
        }
        offset += piece;
    }
}

bool netring_rx_push(struct netring_rx *rx, uint32_t *failed)
{
    bool notify;
    uint32_t i;

    *failed = 0;
    if (!rx->attached || !rx->pending_count) {
        return false;
    }
    for (i = 0; i < rx->pending_count; i++) {
        netif_rx_response_t *rsp = RING_GET_RESPONSE(&rx->ring, rx->ring.rsp_prod_pvt);

        if (rx->pending[i].extra) {
            memcpy(rsp, &rx->pending[i].info, sizeof(rx->pending[i].info));
        } else {
            if (rx->segs[rx->pending[i].seg].status != GNTST_okay) {
                rx->pending[i].rsp.status = NETIF_RSP_ERROR;
                (*failed)++;
            }
            *rsp = rx->pending[i].rsp;
        }
        rx->ring.rsp_prod_pvt++;
    }
    rx->pending_count = rx->segs_count = 0;
    RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&rx->ring, notify);
    return notify;
}

bool netring_rx_owes_notify(const struct netring_rx *rx)
{
    if (!rx->attached) {
        return false;
    }
    return (int32_t)(rx->ring.rsp_prod_pvt - shared_read(&rx->ring.sring->rsp_event)) >= 0;
}

/* ---- Segmentation ------------------------------------------------------------------------- */

static void store16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint16_t load16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* Headers of one segment: `number` of them came before, `done` payload bytes are in those. */
static int segment_finish(uint8_t *frame, uint32_t length, const struct packet *whole,
                          uint32_t number, uint32_t done, bool last)
{
    uint8_t *ip = frame + whole->l3, *tcp = frame + whole->l4;
    uint32_t seq = whole->tcp.seq + done;
    struct packet p;

    store16(tcp + 4, (uint16_t)(seq >> 16));
    store16(tcp + 6, (uint16_t)seq);
    if (!last) {
        tcp[13] &= (uint8_t)~(PACKET_TCP_FIN | PACKET_TCP_PSH);
    }
    if (number) {
        tcp[13] &= (uint8_t)~PACKET_TCP_CWR; /* said once (RFC 3168) */
    }
    if (whole->ip_version == 4) {
        store16(ip + 2, (uint16_t)(length - whole->l3));
        store16(ip + 4, (uint16_t)(load16(ip + 4) + number)); /* identification */
        store16(ip + 10, 0);
        store16(ip + 10, (uint16_t)~packet_fold(packet_sum(ip, (ip[0] & 15u) * 4u, 0)));
    } else {
        store16(ip + 4, (uint16_t)(length - whole->l3 - 40));
    }
    if (packet_parse(&p, frame, length) || p.kind != PACKET_TCP) {
        return -EPROTONOSUPPORT;
    }
    packet_checksum_fill(frame, &p);
    return 0;
}

int netring_segment(struct netring_segments *out, const uint8_t *frame, uint32_t length,
                    uint16_t gso_size)
{
    uint32_t payload, done = 0, at = 0, piece;
    struct packet p;
    int rc;

    out->count = out->next = 0;
    if (packet_parse(&p, frame, length) || p.kind != PACKET_TCP) {
        return -EPROTONOSUPPORT;
    }
    if (gso_size < NETRING_GSO_MIN) {
        return -EINVAL;
    }
    payload = packet_payload_bytes(&p);
    do {
        piece = payload - done < gso_size ? payload - done : gso_size;
        if (at + p.payload + piece > NETRING_SEGMENTS_BYTES || out->count > NETRING_SEGMENTS_MAX) {
            out->count = 0; /* long headers around tiny pieces: nobody sends that */
            return -EINVAL;
        }
        memcpy(out->bytes + at, frame, p.payload);
        memcpy(out->bytes + at + p.payload, frame + p.payload + done, piece);
        rc = segment_finish(out->bytes + at, p.payload + piece, &p, out->count, done,
                            done + piece == payload);
        if (rc) {
            out->count = 0;
            return rc;
        }
        out->segment[out->count].offset = at;
        out->segment[out->count].length = p.payload + piece;
        out->count++;
        at += p.payload + piece;
        done += piece;
    } while (done < payload);

    return 0;
}
