/* Both rings of a network interface against a frontend played here, hostile at times; and the store
 * of frames (outbox.h). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/frames.h"
#include "tools/remus/netring.h"
#include "tools/remus/outbox.h"

#define DOMID  7u
#define GRANTS 512u

struct fixture {
    union { netif_tx_sring_t ring; uint8_t bytes[NETRING_PAGE]; } tx_page;
    union { netif_rx_sring_t ring; uint8_t bytes[NETRING_PAGE]; } rx_page;
    netif_tx_front_ring_t tx_front;
    netif_rx_front_ring_t rx_front;
    struct netring_tx tx;
    struct netring_rx rx;
    struct netring_tx_packet packet;
    xengnttab_grant_copy_segment_t segs[NETRING_TX_SEGS];
    uint8_t (*pages)[NETRING_PAGE];          /* by grant reference */
    uint32_t bad_ref;                        /* copies of it fail */
    uint8_t frame[FRAME_MAX + 16], got[FRAME_MAX + 16];
    struct netring_segments segments;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    uint32_t i;

    assert_non_null(f);
    f->pages = calloc(GRANTS, NETRING_PAGE);
    f->segments.bytes = malloc(NETRING_SEGMENTS_BYTES);
    assert_non_null(f->pages);
    assert_non_null(f->segments.bytes);
    f->bad_ref = UINT32_MAX;
    XEN_FRONT_RING_INIT(&f->tx_front, &f->tx_page.ring, NETRING_PAGE);
    XEN_FRONT_RING_INIT(&f->rx_front, &f->rx_page.ring, NETRING_PAGE);
    assert_int_equal(netring_tx_attach(&f->tx, &f->tx_page, DOMID), 0);
    assert_int_equal(netring_rx_attach(&f->rx, &f->rx_page, DOMID), 0);
    for (i = 0; i < sizeof(f->frame); i++) {
        f->frame[i] = (uint8_t)(i * 7 + i / 256);
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    free(f->pages);
    free(f->segments.bytes);
    free(f);
    return 0;
}

/* The grant copy hypercall: what it would refuse fails the segment or, our mistakes, the test. */
static void copy(struct fixture *f, xengnttab_grant_copy_segment_t *segs, uint32_t count)
{
    uint32_t i;

    for (i = 0; i < count; i++) {
        xengnttab_grant_copy_segment_t *s = &segs[i];
        bool out = s->flags == GNTCOPY_source_gref;
        union xengnttab_copy_ptr *there = out ? &s->source : &s->dest;
        void *here = out ? s->dest.virt : s->source.virt;
        uint8_t *page;

        assert_true(s->flags == GNTCOPY_source_gref || s->flags == GNTCOPY_dest_gref);
        assert_int_equal(there->foreign.domid, DOMID);
        assert_true(s->len && (uint32_t)there->foreign.offset + s->len <= NETRING_PAGE);
        if (there->foreign.ref >= GRANTS || there->foreign.ref == f->bad_ref) {
            s->status = GNTST_bad_gntref;
            continue;
        }
        page = f->pages[there->foreign.ref] + there->foreign.offset;
        memcpy(out ? here : page, out ? page : here, s->len);
        s->status = GNTST_okay;
    }
}

/* ---- tx: the frontend ---- */

static void tx_put(struct fixture *f, grant_ref_t gref, uint32_t offset, uint32_t size,
                   uint32_t flags, uint32_t id)
{
    *RING_GET_REQUEST(&f->tx_front, f->tx_front.req_prod_pvt) = (netif_tx_request_t){
        .gref = gref, .offset = (uint16_t)offset, .size = (uint16_t)size,
        .flags = (uint16_t)flags, .id = (uint16_t)id,
    };
    f->tx_front.req_prod_pvt++;
}

static void tx_put_extra(struct fixture *f, uint8_t type, bool more, uint16_t gso_size,
                         uint8_t gso_type)
{
    netif_extra_info_t info = {
        .type = type, .flags = more ? XEN_NETIF_EXTRA_FLAG_MORE : 0,
        .u.gso = { .size = gso_size, .type = gso_type },
    };

    memcpy(RING_GET_REQUEST(&f->tx_front, f->tx_front.req_prod_pvt), &info, sizeof(info));
    f->tx_front.req_prod_pvt++;
}

static bool tx_ring_bell(struct fixture *f)
{
    bool notify;

    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&f->tx_front, notify);
    return notify;
}

static int take(struct fixture *f)
{
    return netring_tx_take(&f->tx, &f->packet);
}

/* Copies, answers and pushes the packet taken last; true when its bytes are f->frame's. */
static bool finish(struct fixture *f)
{
    uint32_t n = netring_tx_copies(&f->tx, &f->packet, f->got, f->segs);

    copy(f, f->segs, n);
    netring_tx_respond(&f->tx, &f->packet, NETIF_RSP_OKAY);
    netring_tx_push(&f->tx);
    return !memcmp(f->got, f->frame, f->packet.length);
}

static void expect_answer(struct fixture *f, int id, int status)
{
    netif_tx_response_t rsp;

    assert_true(f->tx_front.rsp_cons != f->tx_page.ring.rsp_prod);
    RING_COPY_RESPONSE(&f->tx_front, f->tx_front.rsp_cons, &rsp);
    f->tx_front.rsp_cons++;
    assert_int_equal(rsp.status, status);
    if (status != NETIF_RSP_NULL) {
        assert_int_equal(rsp.id, id);
    }
}

static void expect_no_more_answers(struct fixture *f)
{
    assert_int_equal(f->tx_front.rsp_cons, f->tx_page.ring.rsp_prod);
    assert_int_equal(f->tx_front.rsp_cons, f->tx_front.req_prod_pvt);
}

/* ---- tx ---- */

static void a_frame_in_one_slot(void **state)
{
    struct fixture *f = *state;

    memcpy(f->pages[3] + 100, f->frame, 60);
    tx_put(f, 3, 100, 60, NETTXF_csum_blank | NETTXF_data_validated, 9);
    assert_true(tx_ring_bell(f));
    assert_int_equal(take(f), 1);
    assert_int_equal(f->packet.length, 60);
    assert_int_equal(f->packet.flags, REMUS_PACKET_F_CSUM_PARTIAL);
    assert_int_equal(f->packet.gso_size, 0);
    assert_true(finish(f));
    assert_int_equal(take(f), 0);
    expect_answer(f, 9, NETIF_RSP_OKAY);
    expect_no_more_answers(f);
}

static void a_large_gso_frame_in_many_slots(void **state)
{
    struct fixture *f = *state;
    uint32_t i, at = 0, total = 65000, first = 1000, piece;

    tx_put(f, 10, 50, total, NETTXF_csum_blank | NETTXF_more_data | NETTXF_extra_info, 0);
    tx_put_extra(f, XEN_NETIF_EXTRA_TYPE_GSO, false, 1448, XEN_NETIF_GSO_TYPE_TCPV4);
    for (i = 0; at < total; i++) {
        piece = !i ? first : total - at < 4000 ? total - at : 4000;
        memcpy(f->pages[10 + i] + (i ? 0 : 50), f->frame + at, piece);
        if (i) {
            tx_put(f, 10 + i, 0, piece, at + piece < total ? NETTXF_more_data : 0, i);
        }
        at += piece;
    }
    tx_ring_bell(f);
    assert_int_equal(take(f), 1);
    assert_int_equal(f->packet.length, total);
    assert_int_equal(f->packet.gso_size, 1448);
    assert_int_equal(f->packet.gso_type, XEN_NETIF_GSO_TYPE_TCPV4);
    assert_int_equal(f->packet.flags, REMUS_PACKET_F_CSUM_PARTIAL | REMUS_PACKET_F_GSO);
    assert_true(finish(f));
    expect_answer(f, 0, NETIF_RSP_OKAY);
    expect_answer(f, 0, NETIF_RSP_NULL);
    for (i = 1; i < 17; i++) {
        expect_answer(f, (int)i, NETIF_RSP_OKAY);
    }
    expect_no_more_answers(f);
}

static void the_ring_goes_round_many_times(void **state)
{
    struct fixture *f = *state;
    uint32_t i, j;

    memcpy(f->pages[1], f->frame, 1514);
    for (i = 0; i < 1000; i++) {
        for (j = 0; j < 200; j++) {
            tx_put(f, 1, 0, 1514, 0, j);
        }
        tx_ring_bell(f);
        for (j = 0; j < 200; j++) {
            assert_int_equal(take(f), 1);
            assert_true(finish(f));
            expect_answer(f, (int)j, NETIF_RSP_OKAY);
        }
        assert_int_equal(take(f), 0);
    }
}

/* One bad request, then a good one: the first is answered with errors, the second works. */
static void expect_bad(struct fixture *f, uint32_t slots, int first_id)
{
    uint32_t i;

    memcpy(f->pages[1], f->frame, 64);
    tx_put(f, 1, 0, 64, 0, 77);
    tx_ring_bell(f);
    assert_int_equal(take(f), 1);
    assert_true(finish(f));
    assert_int_equal(f->tx.bad, 1);
    assert_false(f->tx.broken);
    expect_answer(f, first_id, NETIF_RSP_ERROR);
    for (i = 1; i < slots; i++) {
        f->tx_front.rsp_cons++;
    }
    expect_answer(f, 77, NETIF_RSP_OKAY);
    expect_no_more_answers(f);
}

static void a_frame_shorter_than_its_header_is_refused(void **state)
{
    tx_put(*state, 1, 0, 13, 0, 5);
    expect_bad(*state, 1, 5);
}

static void a_frame_beyond_its_page_is_refused(void **state)
{
    tx_put(*state, 1, 4000, 97, 0, 5);
    expect_bad(*state, 1, 5);
}

static void an_offset_that_wraps_is_refused(void **state)
{
    tx_put(*state, 1, 0xffff, 0xffff, 0, 5);
    expect_bad(*state, 1, 5);
}

static void fragments_larger_than_the_whole_are_refused(void **state)
{
    tx_put(*state, 1, 0, 1000, NETTXF_more_data, 5);
    tx_put(*state, 2, 0, 990, 0, 6);
    expect_bad(*state, 2, 5);
}

static void a_fragment_beyond_its_page_is_refused(void **state)
{
    tx_put(*state, 1, 0, 5000, NETTXF_more_data, 5);
    tx_put(*state, 2, 1000, 4000, 0, 6);
    expect_bad(*state, 2, 5);
}

static void a_first_fragment_beyond_its_page_is_refused(void **state)
{
    tx_put(*state, 1, 0, 5000, NETTXF_more_data, 5);
    tx_put(*state, 2, 0, 800, 0, 6);
    expect_bad(*state, 2, 5);
}

static void gso_of_an_unknown_kind_is_refused(void **state)
{
    tx_put(*state, 1, 0, 100, NETTXF_extra_info, 5);
    tx_put_extra(*state, XEN_NETIF_EXTRA_TYPE_GSO, false, 1448, 3);
    expect_bad(*state, 2, 5);
}

static void gso_without_a_size_is_refused(void **state)
{
    tx_put(*state, 1, 0, 100, NETTXF_extra_info, 5);
    tx_put_extra(*state, XEN_NETIF_EXTRA_TYPE_GSO, false, 0, XEN_NETIF_GSO_TYPE_TCPV6);
    expect_bad(*state, 2, 5);
}

static void an_extra_of_an_unknown_type_is_refused(void **state)
{
    tx_put(*state, 1, 0, 100, NETTXF_extra_info, 5);
    tx_put_extra(*state, XEN_NETIF_EXTRA_TYPE_MAX, true, 0, 0);
    tx_put_extra(*state, XEN_NETIF_EXTRA_TYPE_GSO, false, 1000, XEN_NETIF_GSO_TYPE_TCPV4);
    expect_bad(*state, 3, 5);
}

static void a_chain_that_is_too_long_is_refused_whole(void **state)
{
    struct fixture *f = *state;
    uint32_t i;

    for (i = 0; i < 200; i++) {
        tx_put(f, 1, 0, i ? 1 : 2000, i < 199 ? NETTXF_more_data : 0, i);
    }
    tx_ring_bell(f);
    assert_int_equal(take(f), 0);
    netring_tx_push(&f->tx);
    assert_int_equal(f->tx.bad, 1);
    for (i = 0; i < 200; i++) {
        netif_tx_response_t rsp;

        RING_COPY_RESPONSE(&f->tx_front, f->tx_front.rsp_cons, &rsp);
        f->tx_front.rsp_cons++;
        assert_int_equal(rsp.status, NETIF_RSP_ERROR);
    }
    expect_no_more_answers(f);
}

static void the_longest_legal_chain_is_taken(void **state)
{
    struct fixture *f = *state;
    uint32_t i;

    for (i = 0; i < NETRING_TX_SEGS; i++) {
        memcpy(f->pages[i], f->frame + i * 50, 50);
        tx_put(f, i, 0, i ? 50 : 50 * NETRING_TX_SEGS,
               i < NETRING_TX_SEGS - 1 ? NETTXF_more_data : 0, i);
    }
    tx_ring_bell(f);
    assert_int_equal(take(f), 1);
    assert_int_equal(f->packet.length, 50 * NETRING_TX_SEGS);
    assert_true(finish(f));
}

static void a_ring_full_of_extras_is_refused(void **state)
{
    struct fixture *f = *state;
    uint32_t i;

    tx_put(f, 1, 0, 100, NETTXF_extra_info, 5);
    for (i = 1; i < NETRING_SLOTS; i++) {
        tx_put_extra(f, XEN_NETIF_EXTRA_TYPE_HASH, true, 0, 0);
    }
    tx_ring_bell(f);
    assert_int_equal(take(f), 0);
    netring_tx_push(&f->tx);
    f->tx_front.rsp_cons += NETRING_SLOTS;
    expect_no_more_answers(f);
    assert_int_equal(f->tx.bad, 1);
}

static void a_chain_whose_end_is_missing_is_refused(void **state)
{
    struct fixture *f = *state;

    tx_put(f, 1, 0, 100, NETTXF_more_data, 5);
    tx_ring_bell(f);
    assert_int_equal(take(f), 0);
    netring_tx_push(&f->tx);
    expect_answer(f, 5, NETIF_RSP_ERROR);
    expect_no_more_answers(f);
}

static void multicast_requests_are_answered_and_carry_no_frame(void **state)
{
    struct fixture *f = *state;

    tx_put(f, 0, 0, 0, NETTXF_extra_info, 5);
    tx_put_extra(f, XEN_NETIF_EXTRA_TYPE_MCAST_ADD, false, 0, 0);
    tx_ring_bell(f);
    assert_int_equal(take(f), 0);
    netring_tx_push(&f->tx);
    expect_answer(f, 5, NETIF_RSP_OKAY);
    expect_answer(f, 0, NETIF_RSP_NULL);
    expect_no_more_answers(f);
}

static void impossible_indices_break_the_ring_until_attach(void **state)
{
    struct fixture *f = *state;

    f->tx_page.ring.req_prod = NETRING_SLOTS + 1;
    assert_int_equal(take(f), -EPROTO);
    assert_true(f->tx.broken);
    f->tx_page.ring.req_prod = 0;
    assert_int_equal(take(f), 0);
    assert_false(netring_tx_more(&f->tx));
    assert_int_equal(netring_tx_attach(&f->tx, &f->tx_page, DOMID), 0);
    tx_put(f, 1, 0, 100, 0, 5);
    tx_ring_bell(f);
    assert_int_equal(take(f), 1);

    f->rx_page.ring.req_prod = NETRING_SLOTS + 1;
    assert_false(netring_rx_room(&f->rx, 1));
    assert_true(f->rx.broken);
    assert_int_equal(netring_rx_attach(&f->rx, &f->rx_page, DOMID), -EPROTO);
}

static void producers_that_go_backwards_are_refused(void **state)
{
    struct fixture *f = *state;

    tx_put(f, 1, 0, 100, 0, 5);
    tx_put(f, 1, 0, 100, 0, 6);
    tx_ring_bell(f);
    assert_int_equal(take(f), 1);
    assert_int_equal(take(f), 1);
    f->tx_page.ring.req_prod = 1; /* both are taken, none is answered */
    assert_int_equal(take(f), -EPROTO);
    assert_int_equal(netring_tx_attach(&f->tx, &f->tx_page, DOMID), 0);
    f->tx_page.ring.req_prod = (RING_IDX)-2;
    assert_int_equal(take(f), -EPROTO);

    f->rx_page.ring.req_prod = 3;
    assert_true(netring_rx_room(&f->rx, 3));
    netring_rx_put(&f->rx, &(struct netring_rx_frame){ .data = f->frame, .length = 9000 });
    f->rx_page.ring.req_prod = 2;
    assert_false(netring_rx_room(&f->rx, 1));
    assert_true(f->rx.broken);
}

static void a_ring_is_taken_over_at_its_present_state(void **state)
{
    struct fixture *f = *state;
    uint32_t i;

    /* Another backend has done 1000 frames; indices near the wrap. */
    f->tx_front.req_prod_pvt = f->tx_front.rsp_cons = 0xfffffffe;
    f->tx_page.ring.req_prod = f->tx_page.ring.rsp_prod = 0xfffffffe;
    assert_int_equal(netring_tx_attach(&f->tx, &f->tx_page, DOMID), 0);
    memcpy(f->pages[1], f->frame, 100);
    for (i = 0; i < 4; i++) {
        assert_false(netring_tx_more(&f->tx));
        tx_put(f, 1, 0, 100, 0, i);
        assert_true(tx_ring_bell(f));
        assert_true(netring_tx_more(&f->tx));
        assert_int_equal(take(f), 1);
        assert_true(finish(f));
        expect_answer(f, (int)i, NETIF_RSP_OKAY);
    }
}

static void a_failed_copy_is_answered_as_the_caller_says(void **state)
{
    struct fixture *f = *state;

    tx_put(f, GRANTS + 5, 0, 100, 0, 5);
    tx_ring_bell(f);
    assert_int_equal(take(f), 1);
    assert_int_equal(netring_tx_copies(&f->tx, &f->packet, f->got, f->segs), 1);
    copy(f, f->segs, 1);
    assert_int_equal(f->segs[0].status, GNTST_bad_gntref);
    netring_tx_respond(&f->tx, &f->packet, NETIF_RSP_ERROR);
    netring_tx_push(&f->tx);
    expect_answer(f, 5, NETIF_RSP_ERROR);
}

static void notifications_come_when_they_were_asked_for(void **state)
{
    struct fixture *f = *state;

    assert_false(netring_tx_owes_notify(&f->tx)); /* rsp_event 1, rsp_prod 0 */
    tx_put(f, 1, 0, 100, 0, 5);
    tx_ring_bell(f);
    assert_int_equal(take(f), 1);
    netring_tx_respond(&f->tx, &f->packet, NETIF_RSP_OKAY);
    assert_true(netring_tx_push(&f->tx));
    assert_false(netring_tx_push(&f->tx));
    assert_true(netring_tx_owes_notify(&f->tx)); /* not consumed yet */
    f->tx_page.ring.rsp_event = 2;
    assert_false(netring_tx_owes_notify(&f->tx));
    tx_put(f, 1, 0, 100, 0, 5);
    tx_ring_bell(f);
    assert_int_equal(take(f), 1);
    netring_tx_respond(&f->tx, &f->packet, NETIF_RSP_OKAY);
    f->tx_page.ring.rsp_event = 10;
    assert_false(netring_tx_push(&f->tx));
}

/* ---- rx ---- */

static void rx_post(struct fixture *f, uint32_t count)
{
    uint32_t i;

    for (i = 0; i < count; i++) {
        RING_IDX at = f->rx_front.req_prod_pvt++;

        *RING_GET_REQUEST(&f->rx_front, at) = (netif_rx_request_t){
            .id = at & (NETRING_SLOTS - 1), .gref = 100 + (at & (NETRING_SLOTS - 1)),
        };
    }
    RING_PUSH_REQUESTS(&f->rx_front);
}

static bool rx_push(struct fixture *f, uint32_t *failed)
{
    copy(f, f->rx.segs, f->rx.segs_count);
    return netring_rx_push(&f->rx, failed);
}

/* What netfront does with the next frame: its bytes into f->got; returns the length or -1. */
static int rx_receive(struct fixture *f, uint16_t *flags, netif_extra_info_t *extra)
{
    netif_rx_response_t rsp;
    bool more, error = false;
    int length = 0;
    RING_IDX slot;

    memset(extra, 0, sizeof(*extra));
    *flags = 0xffff;
    do {
        slot = f->rx_front.rsp_cons & (NETRING_SLOTS - 1);
        RING_COPY_RESPONSE(&f->rx_front, f->rx_front.rsp_cons, &rsp);
        f->rx_front.rsp_cons++;
        assert_int_equal(rsp.id, slot); /* netif.h: in the slot of its request */
        more = rsp.flags & NETRXF_more_data;
        if (*flags == 0xffff) {
            *flags = rsp.flags;
            if (rsp.flags & NETRXF_extra_info) {
                memcpy(extra, RING_GET_RESPONSE(&f->rx_front, f->rx_front.rsp_cons),
                       sizeof(*extra));
                f->rx_front.rsp_cons++;
            }
        }
        if (rsp.status < 0) {
            error = true;
        } else {
            memcpy(f->got + length, f->pages[100 + slot] + rsp.offset, (size_t)rsp.status);
            length += rsp.status;
        }
    } while (more);
    return error ? -1 : length;
}

static void frames_of_every_size_arrive(void **state)
{
    static const uint32_t sizes[] = { 14, 60, 1514, 4096, 4097, 8192, 65535, NETRING_FRAME_MAX };
    struct fixture *f = *state;
    netif_extra_info_t extra;
    uint16_t flags;
    uint32_t i, failed, need;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        need = netring_rx_need(sizes[i], false);
        rx_post(f, need);
        assert_false(netring_rx_room(&f->rx, need + 1));
        assert_true(netring_rx_room(&f->rx, need));
        netring_rx_put(&f->rx, &(struct netring_rx_frame){ .data = f->frame, .length = sizes[i] });
        assert_false(netring_rx_room(&f->rx, 1));
        rx_push(f, &failed);
        assert_int_equal(failed, 0);
        assert_int_equal(rx_receive(f, &flags, &extra), sizes[i]);
        assert_memory_equal(f->got, f->frame, sizes[i]);
        assert_int_equal(flags & ~NETRXF_more_data, 0);
        assert_int_equal(f->rx_front.rsp_cons, f->rx_page.ring.rsp_prod);
    }
}

static void gso_and_checksum_facts_arrive(void **state)
{
    struct fixture *f = *state;
    netif_extra_info_t extra;
    uint16_t flags;
    uint32_t failed;

    rx_post(f, 100);
    netring_rx_put(&f->rx, &(struct netring_rx_frame){
        .data = f->frame, .length = 20000, .gso_size = 1400, .gso_type = XEN_NETIF_GSO_TYPE_TCPV6,
        .csum_blank = true,
    });
    netring_rx_put(&f->rx, &(struct netring_rx_frame){
        .data = f->frame + 5, .length = 100, .data_validated = true,
    });
    assert_int_equal(f->rx.segs_count, 6);
    rx_push(f, &failed);
    assert_int_equal(rx_receive(f, &flags, &extra), 20000);
    assert_memory_equal(f->got, f->frame, 20000);
    assert_int_equal(flags, NETRXF_csum_blank | NETRXF_data_validated | NETRXF_more_data |
                     NETRXF_extra_info);
    assert_int_equal(extra.type, XEN_NETIF_EXTRA_TYPE_GSO);
    assert_int_equal(extra.flags, 0);
    assert_int_equal(extra.u.gso.size, 1400);
    assert_int_equal(extra.u.gso.type, XEN_NETIF_GSO_TYPE_TCPV6);
    assert_int_equal(rx_receive(f, &flags, &extra), 100);
    assert_memory_equal(f->got, f->frame + 5, 100);
    assert_int_equal(flags, NETRXF_data_validated);
    assert_int_equal(f->rx_front.rsp_cons, f->rx_page.ring.rsp_prod);
}

static void a_whole_ring_goes_in_one_batch(void **state)
{
    struct fixture *f = *state;
    netif_extra_info_t extra;
    uint16_t flags;
    uint32_t i, round, failed;

    for (round = 0; round < 50; round++) {
        rx_post(f, NETRING_SLOTS);
        for (i = 0; i < NETRING_SLOTS; i++) {
            assert_true(netring_rx_room(&f->rx, 1));
            netring_rx_put(&f->rx, &(struct netring_rx_frame){
                .data = f->frame + i, .length = 60 + i,
            });
        }
        assert_false(netring_rx_room(&f->rx, 1));
        rx_push(f, &failed);
        for (i = 0; i < NETRING_SLOTS; i++) {
            assert_int_equal(rx_receive(f, &flags, &extra), 60 + i);
            assert_memory_equal(f->got, f->frame + i, 60 + i);
        }
    }
}

static void a_frame_whose_copy_failed_is_an_error_to_the_guest(void **state)
{
    struct fixture *f = *state;
    netif_extra_info_t extra;
    uint16_t flags;
    uint32_t failed;

    rx_post(f, 10);
    f->bad_ref = 101;
    netring_rx_put(&f->rx, &(struct netring_rx_frame){ .data = f->frame, .length = 9000 });
    netring_rx_put(&f->rx, &(struct netring_rx_frame){ .data = f->frame, .length = 70 });
    rx_push(f, &failed);
    assert_int_equal(failed, 1);
    assert_int_equal(rx_receive(f, &flags, &extra), -1);
    assert_int_equal(rx_receive(f, &flags, &extra), 70);
}

static void a_guest_without_room_is_asked_to_ring(void **state)
{
    struct fixture *f = *state;
    bool notify;

    rx_post(f, 2);
    assert_false(netring_rx_room(&f->rx, 3));
    f->rx_front.req_prod_pvt++;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&f->rx_front, notify);
    assert_true(notify);
    assert_true(netring_rx_room(&f->rx, 3));
}

static void rx_is_taken_over_with_buffers_posted(void **state)
{
    struct fixture *f = *state;
    netif_extra_info_t extra;
    uint16_t flags;
    uint32_t failed;

    f->rx_front.req_prod_pvt = f->rx_front.rsp_cons = 0xfffffffb;
    f->rx_page.ring.req_prod = f->rx_page.ring.rsp_prod = 0xfffffffb;
    rx_post(f, 64);
    assert_int_equal(netring_rx_attach(&f->rx, &f->rx_page, DOMID), 0);
    assert_true(netring_rx_room(&f->rx, 64));
    netring_rx_put(&f->rx, &(struct netring_rx_frame){ .data = f->frame, .length = 40000 });
    rx_push(f, &failed);
    assert_int_equal(rx_receive(f, &flags, &extra), 40000);
    assert_memory_equal(f->got, f->frame, 40000);
}

static void a_detached_ring_is_not_touched(void **state)
{
    struct fixture *f = *state;
    uint8_t before[2][NETRING_PAGE];
    uint32_t failed;

    rx_post(f, 10);
    netring_rx_put(&f->rx, &(struct netring_rx_frame){ .data = f->frame, .length = 100 });
    tx_put(f, 1, 0, 100, 0, 5);
    tx_ring_bell(f);
    netring_tx_detach(&f->tx);
    netring_rx_detach(&f->rx);
    memcpy(before[0], f->tx_page.bytes, NETRING_PAGE);
    memcpy(before[1], f->rx_page.bytes, NETRING_PAGE);
    assert_int_equal(take(f), 0);
    assert_false(netring_tx_push(&f->tx));
    assert_false(netring_tx_more(&f->tx));
    assert_false(netring_tx_owes_notify(&f->tx));
    assert_false(netring_rx_room(&f->rx, 1));
    assert_false(netring_rx_push(&f->rx, &failed));
    assert_false(netring_rx_owes_notify(&f->rx));
    assert_memory_equal(before[0], f->tx_page.bytes, NETRING_PAGE);
    assert_memory_equal(before[1], f->rx_page.bytes, NETRING_PAGE);
}

/* ---- segmentation ---- */

static void segments_join_to_the_frame(struct fixture *f, bool v6, uint16_t vlan, uint32_t bytes,
                                       uint16_t size)
{
    struct tcp_spec spec = {
        .ip = { .v6 = v6, .vlan = { vlan }, .from_peer = true, .id = 65535 }, .seq = 0xffffff00,
        .flags = PACKET_TCP_ACK | PACKET_TCP_PSH | PACKET_TCP_FIN | PACKET_TCP_CWR,
        .data = f->frame, .bytes = bytes, .timestamp = true, .tsval = 1, .partial = true,
    };
    uint32_t length = (uint32_t)frame_tcp(f->got, &spec), i, done = 0;
    struct packet p;

    assert_int_equal(netring_segment(&f->segments, f->got, length, size), 0);
    assert_int_equal(f->segments.count, (bytes + size - 1) / size);
    for (i = 0; i < f->segments.count; i++) {
        const uint8_t *segment = f->segments.bytes + f->segments.segment[i].offset;
        bool last = i + 1 == f->segments.count;

        assert_int_equal(packet_parse(&p, segment, f->segments.segment[i].length), 0);
        assert_int_equal(p.kind, PACKET_TCP);
        assert_int_equal(p.end, p.length);
        assert_int_equal(p.tcp.seq, 0xffffff00u + done);
        assert_int_equal(!!(p.tcp.flags & PACKET_TCP_FIN), last);
        assert_int_equal(!!(p.tcp.flags & PACKET_TCP_PSH), last);
        assert_int_equal(!!(p.tcp.flags & PACKET_TCP_CWR), !i);
        assert_true(packet_checksum_ok(segment, &p));
        if (!v6) {
            assert_int_equal(packet_fold(packet_sum(segment + p.l3, 20, 0)), 0xffff);
            assert_int_equal(segment[p.l3 + 4] << 8 | segment[p.l3 + 5], (65535 + i) & 0xffff);
        }
        assert_true(packet_payload_bytes(&p) == size || last);
        assert_memory_equal(segment + p.payload, f->frame + done, packet_payload_bytes(&p));
        done += packet_payload_bytes(&p);
    }
    assert_int_equal(done, bytes);
}

static void a_large_frame_is_cut_for_a_guest_without_gso(void **state)
{
    segments_join_to_the_frame(*state, false, 0, 60000, 1448);
    segments_join_to_the_frame(*state, true, 0, 60000, 1428);
    segments_join_to_the_frame(*state, false, 12, 2896, 1448);
    segments_join_to_the_frame(*state, false, 0, 100, 1448);
    segments_join_to_the_frame(*state, false, 0, 65000, NETRING_GSO_MIN);
}

static void what_cannot_be_cut_is_refused(void **state)
{
    struct fixture *f = *state;
    struct tcp_spec spec = { .data = f->frame, .bytes = 3000 };
    struct ip_spec ip = { .from_peer = true };
    uint32_t length = (uint32_t)frame_tcp(f->got, &spec);

    assert_int_equal(netring_segment(&f->segments, f->got, length, NETRING_GSO_MIN - 1), -EINVAL);
    assert_int_equal(netring_segment(&f->segments, f->got, 30, 1000), -EPROTONOSUPPORT);
    length = (uint32_t)frame_udp(f->got, &ip, 1, 2, f->frame, 3000);
    assert_int_equal(netring_segment(&f->segments, f->got, length, 1000), -EPROTONOSUPPORT);
    assert_int_equal(f->segments.count, 0);
}

/* ---- the store of frames ---- */

static void the_store_keeps_order_over_its_wrap(void **state)
{
    struct outbox box;
    struct outbox_entry *e;
    uint64_t put = 0, seen = 0;
    uint32_t i, length;

    (void)state;
    assert_int_equal(outbox_init(&box, 64 << 10, 64), 0);
    for (i = 0; i < 20000; i++) {
        length = 1 + (i * 7919u) % 9000;
        e = outbox_put(&box, length, OUTBOX_READY);
        if (!e) {
            e = outbox_first(&box);
            assert_int_equal(e->epoch, seen);
            assert_int_equal(*outbox_bytes(&box, e), seen & 0xff);
            outbox_kill(&box, e);
            seen++;
            continue;
        }
        assert_true(e->offset + length <= box.size);
        memset(outbox_bytes(&box, e), (int)put, length);
        e->epoch = put++;
    }
    while ((e = outbox_first(&box))) {
        assert_int_equal(e->epoch, seen);
        assert_int_equal(*outbox_bytes(&box, e), seen & 0xff);
        seen++;
        outbox_kill(&box, e);
    }
    assert_int_equal(seen, put);
    assert_int_equal(box.used, 0);
    assert_int_equal(box.live_bytes, 0);
    outbox_dispose(&box);
}

static void the_store_gives_back_what_died_in_the_middle(void **state)
{
    struct outbox_entry *e[8];
    struct outbox box;
    int i;

    (void)state;
    assert_int_equal(outbox_init(&box, 8192, 8), 0);
    for (i = 0; i < 8; i++) {
        e[i] = outbox_put(&box, 1000, OUTBOX_READY);
        assert_non_null(e[i]);
        e[i]->epoch = (uint64_t)i;
        assert_int_equal(outbox_give_id(&box, e[i]), i + 1);
    }
    assert_null(outbox_put(&box, 1, OUTBOX_READY));
    outbox_kill(&box, e[1]);
    outbox_kill(&box, e[2]);
    outbox_kill(&box, e[2]);
    assert_null(outbox_put(&box, 1, OUTBOX_READY));
    assert_ptr_equal(outbox_from(&box, 1), e[3]);
    assert_null(outbox_find_id(&box, 2));
    assert_ptr_equal(outbox_find_id(&box, 5), e[4]);
    assert_null(outbox_find_id(&box, 0));
    assert_null(outbox_find_id(&box, 21));
    assert_int_equal(outbox_forget_epochs(&box, 3), 2);
    assert_ptr_equal(outbox_first(&box), e[4]);
    assert_int_equal(box.live, 4);
    assert_int_equal(outbox_make_room(&box, 4096), 0);
    assert_int_equal(outbox_make_room(&box, 6000), 2);
    outbox_dispose(&box);
}

static void an_entry_may_shrink_while_it_is_the_newest(void **state)
{
    struct outbox_entry *e;
    struct outbox box;
    int i;

    (void)state;
    assert_int_equal(outbox_init(&box, 1 << 20, 256), 0);
    for (i = 0; i < 200; i++) {
        e = outbox_put(&box, 65536, OUTBOX_READY);
        assert_non_null(e);
        outbox_shrink(&box, e, 60);
        e = outbox_put(&box, 65536, OUTBOX_HELD);
        if (e) {
            outbox_unput(&box, e); /* nothing was there to be read */
        }
    }
    assert_int_equal(box.live, 200);
    assert_int_equal(box.held, 0);
    assert_int_equal(box.live_bytes, 200 * 60);
    assert_int_equal(box.used, 200 * 64);
    outbox_dispose(&box);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_frame_in_one_slot),
        TEST(a_large_gso_frame_in_many_slots),
        TEST(the_ring_goes_round_many_times),
        TEST(a_frame_shorter_than_its_header_is_refused),
        TEST(a_frame_beyond_its_page_is_refused),
        TEST(an_offset_that_wraps_is_refused),
        TEST(fragments_larger_than_the_whole_are_refused),
        TEST(a_fragment_beyond_its_page_is_refused),
        TEST(a_first_fragment_beyond_its_page_is_refused),
        TEST(gso_of_an_unknown_kind_is_refused),
        TEST(gso_without_a_size_is_refused),
        TEST(an_extra_of_an_unknown_type_is_refused),
        TEST(a_chain_that_is_too_long_is_refused_whole),
        TEST(the_longest_legal_chain_is_taken),
        TEST(a_ring_full_of_extras_is_refused),
        TEST(a_chain_whose_end_is_missing_is_refused),
        TEST(multicast_requests_are_answered_and_carry_no_frame),
        TEST(impossible_indices_break_the_ring_until_attach),
        TEST(producers_that_go_backwards_are_refused),
        TEST(a_ring_is_taken_over_at_its_present_state),
        TEST(a_failed_copy_is_answered_as_the_caller_says),
        TEST(notifications_come_when_they_were_asked_for),
        TEST(frames_of_every_size_arrive),
        TEST(gso_and_checksum_facts_arrive),
        TEST(a_whole_ring_goes_in_one_batch),
        TEST(a_frame_whose_copy_failed_is_an_error_to_the_guest),
        TEST(a_guest_without_room_is_asked_to_ring),
        TEST(rx_is_taken_over_with_buffers_posted),
        TEST(a_detached_ring_is_not_touched),
        TEST(a_large_frame_is_cut_for_a_guest_without_gso),
        TEST(what_cannot_be_cut_is_refused),
        TEST(the_store_keeps_order_over_its_wrap),
        TEST(the_store_gives_back_what_died_in_the_middle),
        TEST(an_entry_may_shrink_while_it_is_the_newest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
