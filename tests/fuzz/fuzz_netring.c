/*
 * Fuzz target: a hostile frontend, and hostile frames.
 *
 * First byte even: a script for a guest that owns both ring pages.  Each step is an operation byte
 * and its operands: write anywhere into a page, move an index, let the backend take, answer, put
 * and push. Odd: the rest is one frame, for segmentation and for the rewriting, in both directions.
 * What must hold: copies stay inside pages and buffers, answers never overtake requests.
 */
#include <stdlib.h>

#include "tests/fuzz/script.h"
#include "tools/remus/netring.h"
#include "tools/remus/packet.h"
#include "tools/remus/rewrite.h"

#define DOMID 3u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static union { netif_tx_sring_t ring; uint8_t bytes[NETRING_PAGE]; } tx_page;
static union { netif_rx_sring_t ring; uint8_t bytes[NETRING_PAGE]; } rx_page;
static uint8_t frame[NETRING_FRAME_MAX];
static struct netring_tx tx;
static struct netring_rx rx;
static struct netring_segments segments;
static uint8_t segment_bytes[NETRING_SEGMENTS_BYTES];

static void must(bool holds)
{
    if (!holds) {
        abort();
    }
}

/* Every byte that a copy would touch on our side is touched, for the address sanitizer. */
static void copies(xengnttab_grant_copy_segment_t *segs, uint32_t count, bool out, uint8_t how)
{
    static uint8_t page[NETRING_PAGE];
    uint32_t i;

    for (i = 0; i < count; i++) {
        union xengnttab_copy_ptr *there = out ? &segs[i].source : &segs[i].dest;
        uint8_t *here = out ? segs[i].dest.virt : segs[i].source.virt;

        must((uint32_t)there->foreign.offset + segs[i].len <= NETRING_PAGE);
        must(there->foreign.domid == DOMID && segs[i].len);
        if (out) {
            memset(here, how, segs[i].len);
        } else {
            memcpy(page, here, segs[i].len);
        }
        segs[i].status = (how >> (i & 7)) & 1 ? GNTST_okay : GNTST_general_error;
    }
}

static void take(struct script *s)
{
    static struct netring_tx_packet packets[4];
    static xengnttab_grant_copy_segment_t segs[NETRING_TX_SEGS];
    uint32_t i, count = 0, batch = next(s, 1) % 4 + 1;
    uint8_t *bytes;

    while (count < batch && netring_tx_take(&tx, &packets[count]) == 1) {
        must(packets[count].length >= NETRING_FRAME_MIN &&
             packets[count].length <= NETRING_FRAME_MAX);
        count++;
    }
    for (i = 0; i < count; i++) {
        bytes = malloc(packets[i].length); /* exactly: one byte more is found */
        must(bytes != NULL);
        copies(segs, netring_tx_copies(&tx, &packets[i], bytes, segs), true, (uint8_t)i);
        free(bytes);
        netring_tx_respond(&tx, &packets[i], NETIF_RSP_OKAY);
    }
    if (tx.attached) {
        must(tx.ring.req_cons - tx.ring.rsp_prod_pvt == 0);
    }
    netring_tx_push(&tx);
    netring_tx_more(&tx);
    netring_tx_owes_notify(&tx);
}

static void put(struct script *s)
{
    uint32_t count = next(s, 1) % 8, failed;

    while (count--) {
        struct netring_rx_frame f = {
            .data = frame,
            .length = NETRING_FRAME_MIN + next(s, 2) % (NETRING_FRAME_MAX - NETRING_FRAME_MIN + 1),
            .gso_size = (uint16_t)(next(s, 1) * 8), .gso_type = 1, .csum_blank = true,
        };

        if (!netring_rx_room(&rx, netring_rx_need(f.length, f.gso_size != 0))) {
            break;
        }
        netring_rx_put(&rx, &f);
    }
    copies(rx.segs, rx.segs_count, false, (uint8_t)next(s, 1));
    netring_rx_push(&rx, &failed);
    if (rx.attached) {
        must(rx.ring.req_cons == rx.ring.rsp_prod_pvt);
    }
    netring_rx_owes_notify(&rx);
}

static void rings(struct script *s)
{
    memset(&tx_page, 0, sizeof(tx_page));
    memset(&rx_page, 0, sizeof(rx_page));
    netring_tx_attach(&tx, &tx_page, DOMID);
    netring_rx_attach(&rx, &rx_page, DOMID);
    while (s->at < s->end) {
        uint8_t *page = next(s, 1) & 1 ? tx_page.bytes : rx_page.bytes;
        uint32_t at, count;

        switch (next(s, 1) % 8) {
        case 0:
            at = next(s, 2) % NETRING_PAGE;
            for (count = next(s, 1); count && at < NETRING_PAGE; count--) {
                page[at++] = (uint8_t)next(s, 1);
            }
            break;
        case 1:
            tx_page.ring.req_prod += next(s, 2) % 300;
            break;
        case 2:
            rx_page.ring.req_prod += next(s, 2) % 300;
            break;
        case 3:
            tx_page.ring.req_prod = next(s, 4);
            break;
        case 4:
            take(s);
            break;
        case 5:
            put(s);
            break;
        case 6:
            netring_tx_attach(&tx, &tx_page, DOMID);
            netring_rx_attach(&rx, &rx_page, DOMID);
            break;
        case 7:
            netring_tx_detach(&tx);
            netring_rx_detach(&rx);
            break;
        }
    }
}

static void frames(struct script *s)
{
    struct rewrite *rw = NULL;
    struct remus_flow flow;
    struct packet_key key;
    struct packet p;
    uint64_t now_us = 1;
    uint32_t length, i;
    uint8_t *copy;

    must(!rewrite_new(&rw, 4, 0));
    segments.bytes = segment_bytes;
    while (s->at < s->end) {
        uint32_t gso = next(s, 2), what = next(s, 1);

        length = next(s, 1) * 2;
        if (length > (size_t)(s->end - s->at)) {
            length = (uint32_t)(s->end - s->at);
        }
        copy = malloc(length ? length : 1);
        must(copy != NULL);
        memcpy(copy, s->at, length);
        s->at += length;
        now_us += gso * 1000;
        if (!netring_segment(&segments, copy, length, (uint16_t)gso)) {
            for (i = 0; i < segments.count; i++) {
                must(segments.segment[i].offset + segments.segment[i].length <=
                     NETRING_SEGMENTS_BYTES);
            }
        }
        packet_parse(&p, copy, length);
        if (what & 1) {
            rewrite_input(rw, now_us, now_us, copy, &p, what & 2);
        } else {
            rewrite_output(rw, now_us, copy, &p, what & 2);
        }
        if (p.kind == PACKET_TCP && (what & 4)) {
            packet_key(&key, &p, !(what & 1));
            packet_key_to_flow(&flow, &key);
            flow.primary_isn = gso;
            rewrite_flow(rw, now_us, &flow);
        }
        if (what & 8) {
            rewrite_tick(rw, now_us);
        }
        if ((what & 0x30) == 0x30) {
            rewrite_detach(rw);
        }
        if ((what & 0xc0) == 0xc0) {
            rewrite_failover(rw, now_us, gso * 1000u);
            rewrite_output_late(rw, copy, &p, what & 2, what & 4);
        }
        free(copy);
    }
    rewrite_free(rw);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct script s = { data, data + size };

    if (next(&s, 1) & 1) {
        frames(&s);
    } else {
        rings(&s);
    }
    return 0;
}
