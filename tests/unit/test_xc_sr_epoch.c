/* LINK: tools/libxc/xc_sr_epoch.c */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tools/libxc/xc_sr.h"

static void pages_keep_their_contents_while_the_buffer_grows(void **state)
{
    struct xc_sr_epoch e = { 0 };
    uint8_t *data;

    (void)state;
    xc_sr_epoch_reset(&e, 7);
    for (uint64_t i = 0; i < 10000; i++) {
        assert_int_equal(xc_sr_epoch_add_page(&e, i * 3, &data), 0);
        memset(data, (int)(i % 251), XC_SR_PAGE_BYTES);
    }
    assert_int_equal(e.number, 7);
    assert_int_equal(e.pages, 10000);
    for (uint64_t i = 0; i < e.pages; i++) {
        assert_int_equal(e.gfns[i], i * 3);
        assert_int_equal(e.data[i * XC_SR_PAGE_BYTES], i % 251);
        assert_int_equal(e.data[i * XC_SR_PAGE_BYTES + XC_SR_PAGE_BYTES - 1], i % 251);
    }
    xc_sr_epoch_free(&e);
    assert_null(e.data);
}

static void a_reset_epoch_is_empty_and_uses_its_memory_again(void **state)
{
    struct xc_sr_epoch e = { 0 };
    uint8_t *data, *body, *body_before, *data_before;

    (void)state;
    xc_sr_epoch_reset(&e, 1);
    for (unsigned int i = 0; i < 5000; i++)
        assert_int_equal(xc_sr_epoch_add_page(&e, i, &data), 0);
    assert_int_equal(xc_sr_epoch_add_record(&e, REMUS_RECORD_HVM_CONTEXT, 5000, &body_before), 0);
    data_before = e.data;

    xc_sr_epoch_reset(&e, 2);
    assert_int_equal(e.pages, 0);
    assert_int_equal(e.record_count, 0);
    assert_null(xc_sr_epoch_find(&e, REMUS_RECORD_HVM_CONTEXT));
    for (unsigned int i = 0; i < 5000; i++)
        assert_int_equal(xc_sr_epoch_add_page(&e, i, &data), 0);
    assert_int_equal(xc_sr_epoch_add_record(&e, REMUS_RECORD_HVM_CONTEXT, 4000, &body), 0);
    assert_ptr_equal(e.data, data_before);
    assert_ptr_equal(body, body_before);
    xc_sr_epoch_free(&e);
}

static void a_record_is_found_by_its_type_with_its_length(void **state)
{
    struct xc_sr_epoch e = { 0 };
    const struct xc_sr_record *r;
    uint8_t *body;

    (void)state;
    xc_sr_epoch_reset(&e, 1);
    assert_int_equal(xc_sr_epoch_add_record(&e, REMUS_RECORD_EVTCHN, 16, &body), 0);
    memset(body, 0xa5, 16);
    assert_int_equal(xc_sr_epoch_add_record(&e, REMUS_RECORD_FRONTENDS, 0, &body), 0);
    assert_non_null(body);
    r = xc_sr_epoch_find(&e, REMUS_RECORD_EVTCHN);
    assert_non_null(r);
    assert_int_equal(r->length, 16);
    assert_int_equal(r->body[15], 0xa5);
    assert_null(xc_sr_epoch_find(&e, REMUS_RECORD_GRANT_V1));
    xc_sr_epoch_free(&e);
}

static void a_record_grows_in_its_slot(void **state)
{
    struct xc_sr_epoch e = { 0 };
    uint8_t *body;

    (void)state;
    xc_sr_epoch_reset(&e, 1);
    assert_int_equal(xc_sr_epoch_add_record(&e, REMUS_RECORD_EVTCHN, 16, &body), 0);
    xc_sr_epoch_reset(&e, 2);
    assert_int_equal(xc_sr_epoch_add_record(&e, REMUS_RECORD_GRANT_V1, 65536, &body), 0);
    memset(body, 1, 65536);
    assert_int_equal(xc_sr_epoch_find(&e, REMUS_RECORD_GRANT_V1)->length, 65536);
    xc_sr_epoch_free(&e);
}

static void a_second_record_of_one_type_and_too_many_or_too_long_ones_are_refused(void **state)
{
    struct xc_sr_epoch e = { 0 };
    uint8_t *body = NULL;

    (void)state;
    xc_sr_epoch_reset(&e, 1);
    assert_int_equal(xc_sr_epoch_add_record(&e, 1, REMUS_RECORD_MAX + 1, &body), -EMSGSIZE);
    for (uint32_t type = 1; type <= XC_SR_EPOCH_RECORDS; type++)
        assert_int_equal(xc_sr_epoch_add_record(&e, type, 8, &body), 0);
    assert_int_equal(xc_sr_epoch_add_record(&e, 3, 8, &body), -EEXIST);
    assert_int_equal(xc_sr_epoch_add_record(&e, 100, 8, &body), -ENOSPC);
    assert_int_equal(e.record_count, XC_SR_EPOCH_RECORDS);
    xc_sr_epoch_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_keep_their_contents_while_the_buffer_grows),
        cmocka_unit_test(a_reset_epoch_is_empty_and_uses_its_memory_again),
        cmocka_unit_test(a_record_is_found_by_its_type_with_its_length),
        cmocka_unit_test(a_record_grows_in_its_slot),
        cmocka_unit_test(a_second_record_of_one_type_and_too_many_or_too_long_ones_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
