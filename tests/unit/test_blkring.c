/* The ring of a paravirtual disk against a frontend played here, hostile at times. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xen/xen.h>
#include <xen/io/blkif.h>

#include "tools/remus/blkring.h"

#define DOMID 7u

static const struct blkring_disk plain = {
    .sectors = 2048, .logical_bytes = 512, .flush = true, .segs_max = BLKRING_SEGS_MAX,
};

struct fixture {
    union { uint32_t index[4]; uint8_t bytes[4 * BLKRING_PAGE]; } pages;
    uint32_t req_prod;               /* the guest's own */
    struct blkring ring;
    struct blkring_request request;
    uint8_t indirect[8 * BLKRING_PAGE];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    f->pages.index[1] = f->pages.index[3] = 1;   /* req_event, rsp_event */
    assert_int_equal(blkring_attach(&f->ring, &f->pages, 1, BLKRING_X86_64, DOMID), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

/* ---- the guest's side ---- */

static uint8_t *guest_slot(struct fixture *f, uint32_t index)
{
    const uint32_t bytes = f->ring.abi == BLKRING_X86_64 ? 112 : 108;

    return f->pages.bytes + 64 + (index & (f->ring.slots - 1)) * bytes;
}

static void post(struct fixture *f, const void *request, size_t bytes)
{
    memcpy(guest_slot(f, f->req_prod++), request, bytes);
    f->pages.index[0] = f->req_prod;
}

/* A read or write of so many segments, each of a whole page. */
static struct blkif_request data_request(uint8_t operation, uint64_t sector, uint8_t segs)
{
    struct blkif_request q;
    uint8_t i;

    memset(&q, 0, sizeof(q));
    q.operation = operation;
    q.nr_segments = segs;
    q.id = 0x1122334455667788u + sector;
    q.sector_number = sector;
    for (i = 0; i < segs && i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++) {
        q.seg[i] = (struct blkif_request_segment){ .gref = 100u + i, .last_sect = 7 };
    }
    return q;
}

static void post_data(struct fixture *f, uint8_t operation, uint64_t sector, uint8_t segs)
{
    const struct blkif_request q = data_request(operation, sector, segs);

    post(f, &q, sizeof(q));
}

static struct blkif_response response(struct fixture *f, uint32_t index)
{
    struct blkif_response r;

    memcpy(&r, guest_slot(f, index), sizeof(r));
    return r;
}

/* The request is refused with this error. */
static void refused(struct fixture *f, const struct blkring_disk *disk, int error)
{
    assert_int_equal(blkring_take(&f->ring, disk, &f->request), error);
}

/* ---- good requests ---- */

static void a_write_is_taken_with_its_segments_and_answered(void **state)
{
    struct fixture *f = *state;
    struct blkif_request q = data_request(BLKIF_OP_WRITE, 16, 3);

    q.seg[1].first_sect = 2;
    q.seg[1].last_sect = 2;
    post(f, &q, sizeof(q));
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(f->request.op, BLKRING_WRITE);
    assert_int_equal(f->request.id, q.id);
    assert_int_equal(f->request.sector, 16);
    assert_int_equal(f->request.sectors, 17);
    assert_int_equal(f->request.segs, 3);
    assert_int_equal(f->request.seg[1].gref, 101);
    assert_int_equal(f->request.seg[1].first, 2);
    assert_int_equal(f->request.seg[1].sectors, 1);
    assert_false(f->request.barrier);
    assert_false(blkring_drained(&f->ring));
    blkring_respond(&f->ring, f->request.id, f->request.operation, BLKIF_RSP_OKAY);
    assert_true(blkring_push(&f->ring));
    assert_int_equal(f->pages.index[2], 1);
    assert_int_equal(response(f, 0).id, q.id);
    assert_int_equal(response(f, 0).operation, BLKIF_OP_WRITE);
    assert_int_equal(response(f, 0).status, BLKIF_RSP_OKAY);
    assert_true(blkring_drained(&f->ring));
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 0);
}

static void a_32_bit_guest_has_its_own_layout(void **state)
{
    struct fixture *f = *state;
    uint8_t q[108] = { BLKIF_OP_READ, 1 };
    const uint64_t id = 77, sector = 1000;
    const uint32_t gref = 5;
    int16_t status;

    assert_int_equal(blkring_attach(&f->ring, &f->pages, 1, BLKRING_X86_32, DOMID), 0);
    assert_int_equal(f->ring.slots, 32);
    memcpy(q + 4, &id, sizeof(id));
    memcpy(q + 12, &sector, sizeof(sector));
    memcpy(q + 20, &gref, sizeof(gref));
    q[25] = 3;
    post(f, q, sizeof(q));
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(f->request.id, id);
    assert_int_equal(f->request.sector, sector);
    assert_int_equal(f->request.sectors, 4);
    assert_int_equal(f->request.seg[0].gref, gref);
    blkring_respond(&f->ring, id, BLKIF_OP_READ, BLKIF_RSP_ERROR);
    memcpy(&status, guest_slot(f, 0) + 10, sizeof(status));
    assert_int_equal(status, BLKIF_RSP_ERROR);
}

static void a_flush_and_a_barrier_need_no_data(void **state)
{
    struct fixture *f = *state;
    struct blkring_disk disk = plain;

    disk.barrier = true;
    post_data(f, BLKIF_OP_FLUSH_DISKCACHE, 0, 0);
    assert_int_equal(blkring_take(&f->ring, &disk, &f->request), 1);
    assert_int_equal(f->request.op, BLKRING_FLUSH);
    assert_int_equal(f->request.sectors, 0);
    post_data(f, BLKIF_OP_WRITE_BARRIER, UINT64_MAX, 0);
    assert_int_equal(blkring_take(&f->ring, &disk, &f->request), 1);
    assert_int_equal(f->request.op, BLKRING_WRITE);
    assert_true(f->request.barrier);
    assert_int_equal(f->request.sectors, 0);
    post_data(f, BLKIF_OP_WRITE_BARRIER, 8, 1);
    assert_int_equal(blkring_take(&f->ring, &disk, &f->request), 1);
    assert_int_equal(f->request.sectors, 8);
}

static void a_discard_has_a_range(void **state)
{
    struct fixture *f = *state;
    struct blkring_disk disk = plain;
    struct blkif_request_discard q = {
        .operation = BLKIF_OP_DISCARD, .flag = BLKIF_DISCARD_SECURE, .id = 9,
        .sector_number = 2000, .nr_sectors = 48,
    };

    post(f, &q, sizeof(q));
    refused(f, &plain, -EOPNOTSUPP);
    disk.discard = true;
    post(f, &q, sizeof(q));
    refused(f, &disk, -EOPNOTSUPP);
    q.flag = 0;
    post(f, &q, sizeof(q));
    assert_int_equal(blkring_take(&f->ring, &disk, &f->request), 1);
    assert_int_equal(f->request.op, BLKRING_DISCARD);
    assert_int_equal(f->request.sectors, 48);
    assert_false(f->request.secure);
    q.flag = BLKIF_DISCARD_SECURE;
    disk.secure_discard = true;
    post(f, &q, sizeof(q));
    assert_int_equal(blkring_take(&f->ring, &disk, &f->request), 1);
    assert_true(f->request.secure);
    q.nr_sectors = 49;
    post(f, &q, sizeof(q));
    refused(f, &disk, -EBADMSG);
    q.nr_sectors = UINT64_MAX;
    post(f, &q, sizeof(q));
    refused(f, &disk, -EBADMSG);
    q.nr_sectors = 0;
    post(f, &q, sizeof(q));
    refused(f, &disk, -EBADMSG);
}

static struct blkif_request_indirect indirect_request(uint64_t sector, uint16_t segs)
{
    struct blkif_request_indirect q;

    memset(&q, 0, sizeof(q));
    q.operation = BLKIF_OP_INDIRECT;
    q.indirect_op = BLKIF_OP_WRITE;
    q.nr_segments = segs;
    q.id = 4;
    q.sector_number = sector;
    q.indirect_grefs[0] = 900;
    return q;
}

static void indirect_segs(struct fixture *f, uint32_t count)
{
    uint32_t i;

    for (i = 0; i < count; i++) {
        const struct blkif_request_segment seg = { .gref = i, .last_sect = 7 };

        memcpy(f->indirect + i * sizeof(seg), &seg, sizeof(seg));
    }
}

static void an_indirect_request_is_complete_with_its_page(void **state)
{
    struct fixture *f = *state;
    struct blkif_request_indirect q = indirect_request(0, BLKRING_SEGS_MAX);

    post(f, &q, sizeof(q));
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(f->request.indirect, 1);
    assert_int_equal(f->request.indirect_gref[0], 900);
    assert_int_equal(blkring_page_bytes(&f->request, 0), BLKRING_SEGS_MAX * 8);
    indirect_segs(f, BLKRING_SEGS_MAX);
    assert_int_equal(blkring_indirect(&plain, &f->request, f->indirect), 0);
    assert_int_equal(f->request.op, BLKRING_WRITE);
    assert_int_equal(f->request.segs, BLKRING_SEGS_MAX);
    assert_int_equal(f->request.sectors, 2048);
    assert_int_equal(f->request.seg[255].gref, 255);
    /* Once more, as after a daemon that died in between: the same. */
    assert_int_equal(blkring_indirect(&plain, &f->request, f->indirect), 0);
    assert_int_equal(f->request.sectors, 2048);
    assert_int_equal(f->request.operation, BLKIF_OP_WRITE);
    /* The same from one sector on runs over the end, which only the page tells. */
    q.sector_number = 1;
    post(f, &q, sizeof(q));
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(blkring_indirect(&plain, &f->request, f->indirect), -EBADMSG);
    /* A segment that leaves its page. */
    q.sector_number = 0;
    f->indirect[5] = 8;
    post(f, &q, sizeof(q));
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(blkring_indirect(&plain, &f->request, f->indirect), -EBADMSG);
}

/* ---- bad ones ---- */

static void what_cannot_be_done_is_answered_with_an_error(void **state)
{
    struct fixture *f = *state;
    struct blkring_disk disk = plain;
    struct blkif_request q;
    struct blkif_request_indirect indirect;

    post_data(f, BLKIF_OP_READ, 0, 0);           /* nothing */
    refused(f, &plain, -EBADMSG);
    post_data(f, BLKIF_OP_READ, 0, 12);          /* too much */
    refused(f, &plain, -EBADMSG);
    post_data(f, BLKIF_OP_READ, 2041, 1);        /* over the end */
    refused(f, &plain, -EBADMSG);
    post_data(f, BLKIF_OP_READ, UINT64_MAX - 3, 1);
    refused(f, &plain, -EBADMSG);
    q = data_request(BLKIF_OP_READ, 0, 1);       /* segments */
    q.seg[0].last_sect = 8;
    post(f, &q, sizeof(q));
    refused(f, &plain, -EBADMSG);
    q.seg[0].first_sect = 3;
    q.seg[0].last_sect = 2;
    post(f, &q, sizeof(q));
    refused(f, &plain, -EBADMSG);
    post_data(f, BLKIF_OP_RESERVED_1, 0, 1);     /* operations */
    refused(f, &plain, -EOPNOTSUPP);
    post_data(f, BLKIF_OP_WRITE_BARRIER, 0, 1);
    refused(f, &plain, -EOPNOTSUPP);
    disk.flush = false;
    post_data(f, BLKIF_OP_FLUSH_DISKCACHE, 0, 0);
    refused(f, &disk, -EOPNOTSUPP);
    disk.read_only = true;
    post_data(f, BLKIF_OP_WRITE, 0, 1);
    refused(f, &disk, -EBADMSG);
    disk.logical_bytes = 4096;
    post_data(f, BLKIF_OP_READ, 4, 1);
    refused(f, &disk, -EBADMSG);
    indirect = indirect_request(0, BLKRING_SEGS_MAX + 1);
    post(f, &indirect, sizeof(indirect));
    refused(f, &plain, -EBADMSG);
    indirect = indirect_request(0, 1);
    indirect.indirect_op = BLKIF_OP_FLUSH_DISKCACHE;
    post(f, &indirect, sizeof(indirect));
    refused(f, &plain, -EBADMSG);
    disk.segs_max = 0;
    indirect.indirect_op = BLKIF_OP_READ;
    post(f, &indirect, sizeof(indirect));
    refused(f, &disk, -EOPNOTSUPP);
    assert_false(f->ring.broken);
}

static void a_bad_request_does_not_hide_the_good_one_behind_it(void **state)
{
    struct fixture *f = *state;

    post_data(f, 200, 0, 1);
    post_data(f, BLKIF_OP_READ, 8, 1);
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), -EOPNOTSUPP);
    assert_int_equal(f->request.operation, 200);
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(f->request.sector, 8);
}

static void another_backend_goes_on_behind_what_was_taken(void **state)
{
    struct fixture *f = *state;
    struct blkring other;
    uint32_t i;

    for (i = 0; i < 5; i++) {
        post_data(f, BLKIF_OP_READ, i * 8, 1);
    }
    for (i = 0; i < 3; i++) {
        assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    }
    blkring_respond(&f->ring, 1, BLKIF_OP_READ, BLKIF_RSP_OKAY);
    blkring_push(&f->ring);
    /* It answers into the slots of what is not answered yet: they are nobody's requests now. */
    blkring_respond(&f->ring, 2, BLKIF_OP_READ, BLKIF_RSP_OKAY);
    assert_int_equal(blkring_attach(&other, &f->pages, 1, BLKRING_X86_64, DOMID), 0);
    assert_int_equal(blkring_resume(&other, f->ring.req_cons), 0);
    assert_int_equal(other.rsp_prod, 1);
    assert_int_equal(blkring_take(&other, &plain, &f->request), 1);
    assert_int_equal(f->request.sector, 24);
    /* Further than the guest has come, or not as far as the answers. */
    assert_int_equal(blkring_attach(&other, &f->pages, 1, BLKRING_X86_64, DOMID), 0);
    assert_int_equal(blkring_resume(&other, 6), -EPROTO);
    assert_int_equal(blkring_resume(&other, 0), -EPROTO);
    assert_int_equal(blkring_resume(&other, 5), 0);
}

static void indices_that_cannot_be_break_the_ring(void **state)
{
    struct fixture *f = *state;

    f->pages.index[0] = f->ring.slots + 1;
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), -EPROTO);
    assert_true(f->ring.broken);
    f->pages.index[0] = 0;
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), -EPROTO);
    assert_false(blkring_more(&f->ring));
    f->pages.index[0] = 1000;
    assert_int_equal(blkring_attach(&f->ring, &f->pages, 1, BLKRING_X86_64, DOMID), -EPROTO);
    assert_int_equal(blkring_attach(&f->ring, &f->pages, 3, BLKRING_X86_64, DOMID), -EINVAL);
    assert_int_equal(blkring_attach(&f->ring, &f->pages, 0, BLKRING_X86_64, DOMID), -EINVAL);
    assert_int_equal(blkring_attach(&f->ring, &f->pages, 32, BLKRING_X86_64, DOMID), -EINVAL);
}

/* ---- indices ---- */

static void a_ring_is_taken_over_where_its_last_backend_left_it(void **state)
{
    struct fixture *f = *state;

    f->pages.index[2] = f->req_prod = UINT32_MAX - 1;
    f->pages.index[0] = f->req_prod;
    assert_int_equal(blkring_attach(&f->ring, &f->pages, 4, BLKRING_X86_64, DOMID), 0);
    assert_int_equal(f->ring.slots, 128);
    assert_true(blkring_drained(&f->ring));
    post_data(f, BLKIF_OP_READ, 0, 1);           /* the indices wrap */
    post_data(f, BLKIF_OP_READ, 8, 1);
    post_data(f, BLKIF_OP_READ, 16, 1);
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 1);
    assert_int_equal(f->request.sector, 16);
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 0);
}

static void notifications_are_sent_and_asked_for_as_the_ring_says(void **state)
{
    struct fixture *f = *state;

    f->pages.index[3] = 2;                       /* the guest wants to hear of the second */
    post_data(f, BLKIF_OP_READ, 0, 1);
    post_data(f, BLKIF_OP_READ, 8, 1);
    assert_true(blkring_more(&f->ring));
    blkring_take(&f->ring, &plain, &f->request);
    blkring_respond(&f->ring, f->request.id, f->request.operation, BLKIF_RSP_OKAY);
    assert_false(blkring_push(&f->ring));
    blkring_take(&f->ring, &plain, &f->request);
    blkring_respond(&f->ring, f->request.id, f->request.operation, BLKIF_RSP_OKAY);
    assert_true(blkring_push(&f->ring));
    assert_false(blkring_more(&f->ring));
    assert_int_equal(f->pages.index[1], 3);      /* req_event: the next one */
    blkring_detach(&f->ring);
    assert_int_equal(blkring_take(&f->ring, &plain, &f->request), 0);
    assert_false(blkring_more(&f->ring));
    assert_false(blkring_drained(&f->ring));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_write_is_taken_with_its_segments_and_answered),
        TEST(a_32_bit_guest_has_its_own_layout),
        TEST(a_flush_and_a_barrier_need_no_data),
        TEST(a_discard_has_a_range),
        TEST(an_indirect_request_is_complete_with_its_page),
        TEST(what_cannot_be_done_is_answered_with_an_error),
        TEST(a_bad_request_does_not_hide_the_good_one_behind_it),
        TEST(another_backend_goes_on_behind_what_was_taken),
        TEST(indices_that_cannot_be_break_the_ring),
        TEST(a_ring_is_taken_over_where_its_last_backend_left_it),
        TEST(notifications_are_sent_and_asked_for_as_the_ring_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
