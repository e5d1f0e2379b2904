/* LINK: tools/libxc/xc_sr_save.c tools/libxc/xc_sr_restore.c tools/libxc/xc_sr_cache.c tools/libxc/xc_sr_physmap.c tools/libxc/xc_sr_dirty.c tools/libxc/xc_sr_epoch.c */
/*
 * Saver and reader against each other; Xen is tests/unit/fake_sr.h.  A small PVH guest (5 MiB,
 * special pages below 4 GiB) is saved into memory and restored into another one.  It runs, and
 * writes to its memory, whenever the saver reports progress.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <endian.h>
#include <stdint.h>

#include "tests/unit/fake_sr.h"
#include "tools/libxc/xc_sr_stream.h"

#include <cmocka.h>

#define RAM_PAGES   1300u
#define CONSOLE_GFN 0xfefffu
#define STORE_GFN   0xfeffeu
#define SHARED_GFN  0xfe700u
#define PAGES       (RAM_PAGES + 2)
#define STREAM_MAX  (32u << 20)

static struct fake_guest source, target;
static uint8_t *stream;
static size_t stream_bytes, stream_at;
static char last_error[512];

static struct {
    unsigned int suspends, resumes;
    int suspend_rc, write_rc;       /* write_rc: given once write_after bytes have been written */
    size_t write_after;
    bool keep_writing;              /* the guest writes to its memory at each write while it runs */
    unsigned int writes_done;
    void (*while_running)(void), (*at_suspension)(void);
    bool replaced;
} run;

static void on_log(void *arg, enum xc_sr_level level, const char *text)
{
    (void)arg;
    if (level == XC_SR_ERROR)
        snprintf(last_error, sizeof(last_error), "%s", text);
}

static const struct xc_sr_handles from = { .domid = 3, .log = on_log };
static const struct xc_sr_handles to = { .domid = 4, .log = on_log };

static bool guest_runs(void)
{
    return !source.shutdown;
}

static int on_write(void *arg, const void *data, size_t length)
{
    (void)arg;
    if (run.write_rc && stream_bytes + length > run.write_after)
        return run.write_rc;
    assert_true(stream_bytes + length <= STREAM_MAX);
    memcpy(stream + stream_bytes, data, length);
    stream_bytes += length;
    return 0;
}

/* The guest gets its share of time whenever the saver reports progress. */
static void on_progress(void *arg, const struct xc_sr_progress *p)
{
    (void)arg;
    assert_true(p->pages_done <= p->pages_total);
    assert_int_equal(p->stopped, run.suspends > 0);
    if (!guest_runs())
        return;
    if (run.keep_writing) {
        run.writes_done++;
        for (uint64_t i = 0; i < 40; i++)
            fake_write(&source, (run.writes_done * 37 + i * 11) % RAM_PAGES,
                       run.writes_done * 1000 + i);
    }
    if (run.while_running)
        run.while_running();
}

/* Memory as it is when the guest stops: what a restored guest must have. */
static uint8_t *expected;
static uint8_t expected_context[4912];

static int on_suspend(void *arg)
{
    (void)arg;
    run.suspends++;
    if (run.suspend_rc)
        return run.suspend_rc;
    source.shutdown = true;
    source.shutdown_reason = SHUTDOWN_suspend;
    source.context[100] ^= 0xff;
    source.tsc_nsec = 123456789;
    if (run.at_suspension)
        run.at_suspension();
    memcpy(expected, source.memory, (size_t)source.frames * XC_SR_PAGE_BYTES);
    memcpy(expected_context, source.context, sizeof(expected_context));
    return 0;
}

static int on_resume(void *arg)
{
    (void)arg;
    run.resumes++;
    source.shutdown = false;
    source.context[200] ^= 0xff;
    source.tsc_nsec++;
    return 0;
}

static int on_read(void *arg, void *data, size_t length)
{
    (void)arg;
    if (length > stream_bytes - stream_at)
        return -EPIPE;
    memcpy(data, stream + stream_at, length);
    stream_at += length;
    return 0;
}

static const struct xc_sr_save_ops keep_ops = { .write = on_write, .suspend = on_suspend,
                                                 .progress = on_progress };
static const struct xc_sr_save_ops resume_ops = {
    .write = on_write, .suspend = on_suspend, .resume = on_resume, .progress = on_progress,
};
static const struct xc_sr_restore_ops restore_ops = { .read = on_read };
static const struct xc_sr_restore_params ports = { .store_port = 11, .console_port = 12 };
static const struct xc_sr_save_params live = { .max_passes = 5, .stop_pages = 10 };
static const struct xc_sr_save_params still = { .max_passes = 0 };

static int set_up(void **state)
{
    (void)state;
    memset(&run, 0, sizeof(run));
    last_error[0] = '\0';
    stream_bytes = stream_at = 0;
    fake_guest_new(&source, 3, 4000);
    fake_guest_new(&target, 4, 2000);
    for (uint64_t gfn = 0; gfn < RAM_PAGES; gfn++) {
        assert_int_equal(fake_populate(&source, gfn), 0);
        memset(fake_page(&source, gfn), (int)(gfn * 13 % 256), XC_SR_PAGE_BYTES);
        fake_write(&source, gfn, gfn);
    }
    assert_int_equal(fake_populate(&source, CONSOLE_GFN), 0);
    assert_int_equal(fake_populate(&source, STORE_GFN), 0);
    assert_int_equal(fake_populate(&source, SHARED_GFN), 0);
    source.pages--;                 /* Xen's own, not on the guest's account */
    source.special = SHARED_GFN;
    source.params[HVM_PARAM_STORE_PFN] = STORE_GFN;
    source.params[HVM_PARAM_CONSOLE_PFN] = CONSOLE_GFN;
    source.params[HVM_PARAM_X87_FIP_WIDTH] = 8;
    source.params[HVM_PARAM_STORE_EVTCHN] = 1;
    fake = &source;
    return 0;
}

static int tear_down(void **state)
{
    int left = (int)(source.mappings + target.mappings);

    (void)state;
    fake_guest_free(&source);
    fake_guest_free(&target);
    return left;                    /* every mapping is gone, whatever happened */
}

static struct xc_sr_save_result save_result;

static int save_with(const struct xc_sr_save_params *params, const struct xc_sr_save_ops *ops)
{
    fake = &source;
    return xc_sr_save_libxc(&from, params, ops, NULL, &save_result);
}

static struct xc_sr_restore_result restore_result;

static int restore(void)
{
    fake = &target;
    stream_at = 0;
    return xc_sr_restore_libxc(&to, &ports, &restore_ops, NULL, &restore_result);
}

static void assert_restored(void)
{
    assert_int_equal(restore(), 0);
    assert_int_equal(stream_at, stream_bytes);
    assert_int_equal(target.pages, source.pages);
    for (uint64_t gfn = 0; gfn < FAKE_GFNS; gfn++) {
        const uint8_t *was, *is = fake_page(&target, gfn);

        if (!source.frame[gfn] || gfn == SHARED_GFN) {
            assert_null(is);
            continue;
        }
        was = expected + (size_t)(source.frame[gfn] - 1) * XC_SR_PAGE_BYTES;
        assert_non_null(is);
        if (gfn == STORE_GFN || gfn == CONSOLE_GFN)
            continue;
        if (memcmp(is, was, XC_SR_PAGE_BYTES))
            fail_msg("gfn 0x%lx differs", (unsigned long)gfn);
    }
    assert_int_equal(target.context_set_bytes, source.context_bytes);
    assert_memory_equal(target.context_set, expected_context, sizeof(expected_context));
    assert_int_equal(target.params[HVM_PARAM_STORE_PFN], STORE_GFN);
    assert_int_equal(target.params[HVM_PARAM_CONSOLE_PFN], CONSOLE_GFN);
    assert_int_equal(target.params[HVM_PARAM_X87_FIP_WIDTH], 8);
    assert_int_equal(target.params[HVM_PARAM_STORE_EVTCHN], 11);
    assert_int_equal(target.params[HVM_PARAM_CONSOLE_EVTCHN], 12);
    assert_int_equal(target.tsc_nsec, 123456789);
    assert_int_equal(target.tsc_khz, 2600000);
    assert_int_equal(target.leaves, 51);
    assert_int_equal(target.msrs, 2);
    assert_true(target.seeded);
    assert_int_equal(target.seeded_console, CONSOLE_GFN);
    assert_int_equal(target.seeded_store, STORE_GFN);
    assert_int_equal(restore_result.store_gfn, STORE_GFN);
    assert_int_equal(restore_result.console_gfn, CONSOLE_GFN);
}

/* ---- Saving ---- */

static void a_guest_saved_while_stopped_is_restored_bit_for_bit(void **state)
{
    (void)state;
    assert_int_equal(save_with(&still, &keep_ops), 0);
    assert_int_equal(run.suspends, 1);
    assert_int_equal(run.resumes, 0);
    assert_false(source.log_dirty);
    assert_int_equal(save_result.pages_sent, PAGES);
    assert_restored();
}

static void a_guest_that_writes_meanwhile_is_restored_as_it_was_when_it_stopped(void **state)
{
    (void)state;
    run.keep_writing = true;
    assert_int_equal(save_with(&live, &resume_ops), 0);
    assert_true(save_result.passes >= 2);
    assert_true(save_result.pages_sent > PAGES);
    assert_int_equal(run.suspends, 1);
    assert_int_equal(run.resumes, 1);
    assert_false(source.log_dirty);
    /* It has run on since, so the stream is compared with the memory of the moment it stopped. */
    assert_true(memcmp(expected, source.memory, (size_t)source.frames * XC_SR_PAGE_BYTES) != 0);
    assert_restored();
}

static void the_same_without_resuming_it(void **state)
{
    (void)state;
    run.keep_writing = true;
    assert_int_equal(save_with(&live, &keep_ops), 0);
    assert_int_equal(run.resumes, 0);
    assert_true(source.shutdown);
    assert_restored();
}

static void a_quiet_guest_needs_two_passes_and_the_last_one(void **state)
{
    (void)state;
    assert_int_equal(save_with(&live, &resume_ops), 0);
    assert_int_equal(save_result.passes, 3);
    assert_int_equal(save_result.pages_sent, PAGES);
}

static void a_cache_of_one_chunk_gives_the_same_stream(void **state)
{
    struct xc_sr_save_params small = live;

    (void)state;
    run.keep_writing = true;
    assert_int_equal(xc_sr_cache_new(&small.cache, &from, 1), 0);
    assert_int_equal(save_with(&small, &resume_ops), 0);
    assert_restored();
    fake = &source;
    xc_sr_cache_free(small.cache);
}

static void log_dirty_stays_on_and_clean_for_a_session(void **state)
{
    struct xc_sr_save_params keep = live;

    (void)state;
    keep.keep_log_dirty = true;
    run.keep_writing = true;
    assert_int_equal(save_with(&keep, &keep_ops), 0);
    assert_true(source.log_dirty);
    for (uint64_t i = 0; i < FAKE_GFNS / 64; i++)
        assert_int_equal(source.dirty[i], 0);
    assert_restored();
}

static void log_dirty_that_was_on_before_is_not_restarted(void **state)
{
    (void)state;
    source.log_dirty = true;
    run.keep_writing = true;
    assert_int_equal(save_with(&live, &keep_ops), 0);
    assert_restored();
}

static void holes_cost_neither_hypercalls_nor_bytes(void **state)
{
    (void)state;
    assert_int_equal(save_with(&still, &keep_ops), 0);
    /* 1300 pages are in two batches, two special pages in one; the map is read twice. */
    assert_true(source.type_calls <= 12);
    assert_true(stream_bytes < (PAGES + 8) * (XC_SR_PAGE_BYTES + 8));
}

static uint64_t fresh_gfn;

static void get_a_page(void)
{
    if (stream_bytes > 2 * RAM_PAGES * 1024 && !source.frame[fresh_gfn]) {
        assert_int_equal(fake_populate(&source, fresh_gfn), 0);
        memset(fake_page(&source, fresh_gfn), 0x77, XC_SR_PAGE_BYTES);
    }
}

static void a_page_that_appears_meanwhile_is_saved_even_if_never_written(void **state)
{
    (void)state;
    fresh_gfn = 5000;
    run.while_running = get_a_page;
    assert_int_equal(save_with(&live, &keep_ops), 0);
    assert_non_null(fake_page(&source, fresh_gfn));
    assert_restored();
}

static void a_page_that_appears_beyond_the_physmap_is_saved(void **state)
{
    (void)state;
    fresh_gfn = FAKE_GFNS - 2;      /* above the special pages: the bitmaps have to grow */
    run.while_running = get_a_page;
    assert_int_equal(save_with(&live, &keep_ops), 0);
    assert_restored();
}

/* Ballooning: one page goes, another comes, the count is what it was. */
static void exchange(void)
{
    fake_depopulate(&source, 700);
    assert_int_equal(fake_populate(&source, 5000), 0);
    memset(fake_page(&source, 5000), 0x55, XC_SR_PAGE_BYTES);
}

static void exchange_early(void)
{
    if (stream_bytes > 2 * RAM_PAGES * 1024 && source.frame[700])
        exchange();
}

static void exchange_and_write(void)
{
    exchange();
    fake_write(&source, 5000, 42);
}

static void assert_exchanged(void)
{
    assert_int_equal(restore(), 0);
    assert_non_null(fake_page(&target, 5000));
    assert_memory_equal(fake_page(&target, 5000), fake_page(&source, 5000), XC_SR_PAGE_BYTES);
    /* The reader has had the page that went: it stays, as with the stock tools. */
    assert_non_null(fake_page(&target, 700));
}

static void a_page_that_is_exchanged_for_another_is_followed(void **state)
{
    (void)state;
    run.while_running = exchange_early;
    assert_int_equal(save_with(&live, &keep_ops), 0);
    assert_exchanged();
}

static void a_page_that_is_exchanged_and_written_at_the_last_moment_is_followed(void **state)
{
    (void)state;
    run.at_suspension = exchange_and_write;
    assert_int_equal(save_with(&live, &keep_ops), 0);
    assert_exchanged();
}

static void replace_page(void)
{
    /* The gfn gets another frame: the count grows, as a mapping keeps the former one alive. */
    if (stream_bytes > 2 * RAM_PAGES * 1024 && !run.replaced) {
        source.frame[100] = 0;
        assert_int_equal(fake_populate(&source, 100), 0);
        memset(fake_page(&source, 100), 0x99, XC_SR_PAGE_BYTES);
        fake_write(&source, 100, 42);
        run.replaced = true;
    }
}

static void a_page_that_is_replaced_at_its_gfn_is_not_read_through_the_old_mapping(void **state)
{
    (void)state;
    run.while_running = replace_page;
    assert_int_equal(save_with(&live, &keep_ops), 0);
    assert_true(run.replaced);
    assert_int_equal(restore(), 0);
    assert_int_equal(fake_page(&target, 100)[0], 0x99);
}

static void a_page_beyond_the_highest_gfn_that_xen_told_is_not_looked_at(void **state)
{
    struct xc_sr_physmap map;

    (void)state;
    source.max_gfn = 1289;          /* told before ten more pages came */
    assert_int_equal(xc_sr_physmap_read(&map, &from), 0);
    assert_int_equal(map.gfns, 1290);
    assert_int_equal(map.pages, 1290);
    xc_sr_physmap_free(&map);
}

static void pages_that_xen_provides_are_not_saved_even_if_dirty(void **state)
{
    struct xc_sr_save_params keep = live;

    (void)state;
    keep.keep_log_dirty = true;
    source.log_dirty = true;
    xc_sr_set_bit(source.dirty, SHARED_GFN);
    run.keep_writing = true;
    assert_int_equal(save_with(&keep, &keep_ops), 0);
    assert_restored();
}

static void a_guest_is_resumed_whatever_fails_after_its_suspension(void **state)
{
    size_t complete;

    (void)state;
    assert_int_equal(save_with(&live, &resume_ops), 0);
    complete = stream_bytes;
    for (size_t after = 0; after < complete; after += complete / 23) {
        stream_bytes = 0;
        memset(&run, 0, sizeof(run));
        run.write_rc = -EPIPE;
        run.write_after = after;
        assert_int_equal(save_with(&live, &resume_ops), -EPIPE);
        assert_int_equal(run.suspends, run.resumes);
        assert_false(source.shutdown);
        assert_false(source.log_dirty);
    }
}

static void the_same_for_one_that_is_not_live(void **state)
{
    (void)state;
    run.write_rc = -ENOSPC;
    run.write_after = 2 << 20;
    assert_int_equal(save_with(&still, &resume_ops), -ENOSPC);
    assert_int_equal(run.suspends, 1);
    assert_int_equal(run.resumes, 1);
}

static void a_guest_that_does_not_suspend_is_not_resumed(void **state)
{
    (void)state;
    run.suspend_rc = -ETIMEDOUT;
    assert_int_equal(save_with(&live, &resume_ops), -ETIMEDOUT);
    assert_int_equal(run.resumes, 0);
    assert_false(source.log_dirty);
}

static int crash_instead(void *arg)
{
    on_suspend(arg);
    source.shutdown_reason = SHUTDOWN_crash;
    return 0;
}

static void a_guest_that_crashed_instead_is_not_saved(void **state)
{
    struct xc_sr_save_ops ops = resume_ops;

    (void)state;
    ops.suspend = crash_instead;
    assert_int_equal(save_with(&live, &ops), -EBUSY);
}

static void a_pv_guest_is_refused(void **state)
{
    (void)state;
    source.hvm = false;
    assert_int_equal(save_with(&live, &keep_ops), -EOPNOTSUPP);
    assert_non_null(strstr(last_error, "PV"));
    assert_int_equal(run.suspends, 0);
}

static void the_outer_stream_has_its_header_and_its_end(void **state)
{
    static const uint8_t begin[] = { 'L', 'i', 'b', 'x', 'l', 'F', 'm', 't', 0, 0, 0, 2, 0, 0, 0, 0,
                                     1, 0, 0, 0, 0, 0, 0, 0 };
    static const uint8_t end[16];   /* END of the inner stream, END of the outer one */

    (void)state;
    fake = &source;
    assert_int_equal(xc_sr_save(&from, &live, &resume_ops, NULL, &save_result), 0);
    assert_memory_equal(stream, begin, sizeof(begin));
    assert_memory_equal(stream + stream_bytes - sizeof(end), end, sizeof(end));
    memmove(stream, stream + sizeof(begin), stream_bytes - sizeof(begin));
    stream_bytes -= sizeof(begin) + 8;
    assert_restored();
}

/* ---- Restoring: a stream is taken apart, changed and read ---- */

#define HEADERS (sizeof(struct xc_sr_image_header) + sizeof(struct xc_sr_domain_header))

static struct xc_sr_record_header *record_at(size_t at)
{
    return (struct xc_sr_record_header *)(stream + at);
}

static size_t next_record(size_t at)
{
    return at + sizeof(struct xc_sr_record_header) + XC_SR_ROUND_UP(record_at(at)->length, 8u);
}

static size_t find_record(uint32_t type)
{
    size_t at;

    for (at = HEADERS; at < stream_bytes; at = next_record(at))
        if (record_at(at)->type == type)
            return at;
    fail_msg("no record of type %u", type);
    return 0;
}

static void remove_record(uint32_t type)
{
    size_t at = find_record(type), next = next_record(at);

    memmove(stream + at, stream + next, stream_bytes - next);
    stream_bytes -= next - at;
}

/* Puts a record before the first one of a type; the body is zeroes. */
static uint8_t *insert_record(uint32_t before, uint32_t type, uint32_t length)
{
    size_t at = find_record(before), size = sizeof(struct xc_sr_record_header) +
                                            XC_SR_ROUND_UP(length, 8u);

    memmove(stream + at + size, stream + at, stream_bytes - at);
    memset(stream + at, 0, size);
    stream_bytes += size;
    *record_at(at) = (struct xc_sr_record_header){ .type = type, .length = length };
    return stream + at + sizeof(struct xc_sr_record_header);
}

static uint8_t *body_of(uint32_t type)
{
    return stream + find_record(type) + sizeof(struct xc_sr_record_header);
}

static void make_stream(void)
{
    assert_int_equal(save_with(&still, &keep_ops), 0);
}

static void assert_refused(int rc, const char *says)
{
    fake_guest_free(&target);
    fake_guest_new(&target, 4, 2000);
    last_error[0] = '\0';
    assert_int_equal(restore(), rc);
    if (!strstr(last_error, says))
        fail_msg("the error says '%s' and not '%s'", last_error, says);
    assert_int_equal(target.context_set_bytes, 0);
    assert_false(target.seeded);
}

static void a_stream_that_ends_anywhere_is_refused(void **state)
{
    size_t complete, at;

    (void)state;
    make_stream();
    complete = stream_bytes;
    for (at = 0; at < complete; at += at < 3000 || at > complete - 6000 ? 101 : 99991) {
        stream_bytes = at;
        assert_refused(-EPIPE, "cannot be read");
    }
}

static void headers_of_something_else_are_refused(void **state)
{
    struct xc_sr_image_header *image = (void *)stream;
    struct xc_sr_domain_header *domain = (void *)(image + 1);

    (void)state;
    make_stream();
    image->marker--;
    assert_refused(-EBADMSG, "no libxc stream");
    image->marker++;
    image->id++;
    assert_refused(-EBADMSG, "no libxc stream");
    image->id--;
    image->version = htobe32(2);
    assert_refused(-EOPNOTSUPP, "version 2");
    image->version = htobe32(3);
    image->options = htobe16(1);
    assert_refused(-EOPNOTSUPP, "big endian");
    image->options = 0;
    domain->type = XC_SR_DOMAIN_X86_PV;
    assert_refused(-EOPNOTSUPP, "PV");
    domain->type = XC_SR_DOMAIN_X86_HVM;
    domain->page_shift = 16;
    assert_refused(-EOPNOTSUPP, "2^16");
}

static void records_out_of_order_are_refused(void **state)
{
    static const struct { uint32_t before, type, length; const char *says; } misplaced[] = {
        { XC_SR_REC_X86_CPUID_POLICY, XC_SR_REC_PAGE_DATA, 16, "among static data" },
        { XC_SR_REC_X86_CPUID_POLICY, XC_SR_REC_HVM_PARAMS, 8, "among static data" },
        { XC_SR_REC_X86_CPUID_POLICY, XC_SR_REC_END, 0, "among static data" },
        { XC_SR_REC_PAGE_DATA, XC_SR_REC_STATIC_DATA_END, 0, "among memory" },
        { XC_SR_REC_PAGE_DATA, XC_SR_REC_X86_MSR_POLICY, 16, "among memory" },
        { XC_SR_REC_PAGE_DATA, XC_SR_REC_END, 0, "among memory" },
        { XC_SR_REC_HVM_CONTEXT, XC_SR_REC_PAGE_DATA, 16, "among state" },
        { XC_SR_REC_HVM_CONTEXT, XC_SR_REC_VERIFY, 0, "among state" },
        { XC_SR_REC_HVM_PARAMS, XC_SR_REC_X86_TSC_INFO, 24, "second X86_TSC_INFO" },
        { XC_SR_REC_HVM_PARAMS, XC_SR_REC_HVM_CONTEXT, 24, "second HVM_CONTEXT" },
        { XC_SR_REC_X86_MSR_POLICY, XC_SR_REC_X86_CPUID_POLICY, 24, "second X86_CPUID_POLICY" },
    };

    (void)state;
    for (unsigned int i = 0; i < sizeof(misplaced) / sizeof(misplaced[0]); i++) {
        stream_bytes = 0;
        make_stream();
        insert_record(misplaced[i].before, misplaced[i].type, misplaced[i].length);
        assert_refused(-EBADMSG, misplaced[i].says);
    }
}

static void records_of_other_guests_and_unknown_ones_are_refused(void **state)
{
    static const uint32_t types[] = {
        XC_SR_REC_X86_PV_INFO, XC_SR_REC_X86_PV_P2M_FRAMES, XC_SR_REC_X86_PV_VCPU_BASIC,
        XC_SR_REC_X86_PV_VCPU_EXTENDED, XC_SR_REC_X86_PV_VCPU_XSAVE, XC_SR_REC_SHARED_INFO,
        XC_SR_REC_TOOLSTACK, XC_SR_REC_X86_PV_VCPU_MSRS, XC_SR_REC_CHECKPOINT,
        XC_SR_REC_CHECKPOINT_DIRTY, 0x13, 0x7fffffff,
    };

    (void)state;
    for (unsigned int i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        stream_bytes = 0;
        make_stream();
        insert_record(XC_SR_REC_PAGE_DATA, types[i], 8);
        assert_refused(-EOPNOTSUPP, types[i] == XC_SR_REC_CHECKPOINT ? "checkpointed" : "record");
    }
}

static void optional_records_are_skipped(void **state)
{
    (void)state;
    make_stream();
    memset(insert_record(XC_SR_REC_X86_CPUID_POLICY, 0x80000001, 13), 0xff, 13);
    insert_record(XC_SR_REC_HVM_CONTEXT, 0xffffffff, 20000);
    assert_restored();
}

static void lengths_beyond_the_bounds_are_refused_before_anything_is_read(void **state)
{
    static const struct { uint32_t type, length; } wrong[] = {
        { XC_SR_REC_PAGE_DATA, 8 }, { XC_SR_REC_PAGE_DATA, XC_SR_RECORD_BYTES_MAX + 8 },
        { XC_SR_REC_PAGE_DATA, UINT32_MAX }, { XC_SR_REC_X86_CPUID_POLICY, 0 },
        { XC_SR_REC_X86_CPUID_POLICY, XC_SR_POLICY_BYTES_MAX + 24 },
        { XC_SR_REC_X86_MSR_POLICY, 8 }, { XC_SR_REC_STATIC_DATA_END, 8 },
        { XC_SR_REC_X86_TSC_INFO, 16 }, { XC_SR_REC_X86_TSC_INFO, 32 },
        { XC_SR_REC_HVM_CONTEXT, 0 }, { XC_SR_REC_HVM_CONTEXT, XC_SR_HVM_CONTEXT_BYTES_MAX + 1 },
        { XC_SR_REC_HVM_PARAMS, 0 }, { XC_SR_REC_HVM_PARAMS, 8 + 65 * 16 }, { XC_SR_REC_END, 1 },
    };

    (void)state;
    for (unsigned int i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        stream_bytes = 0;
        make_stream();
        record_at(find_record(wrong[i].type))->length = wrong[i].length;
        assert_refused(-EMSGSIZE, "bytes long");
    }
}

static void a_policy_that_is_no_whole_number_of_entries_is_refused(void **state)
{
    (void)state;
    make_stream();
    record_at(find_record(XC_SR_REC_X86_CPUID_POLICY))->length -= 8;
    assert_refused(-EBADMSG, "multiple of 24");
}

static void page_data_that_contradicts_itself_is_refused(void **state)
{
    struct xc_sr_page_data *data;
    uint64_t *pfns;

    (void)state;
    make_stream();
    data = (void *)body_of(XC_SR_REC_PAGE_DATA);
    pfns = (uint64_t *)(data + 1);

    data->count--;
    assert_refused(-EBADMSG, "need");
    data->count += 2;
    assert_refused(-EBADMSG, "");
    data->count = 0;
    assert_refused(-EBADMSG, "0 entries");
    data->count = UINT32_MAX;
    assert_refused(-EBADMSG, "4294967295 entries");
    data->count = XC_SR_PAGE_DATA_COUNT_MAX + 1;
    assert_refused(-EBADMSG, "32769 entries");
    data->count = 1024;
    pfns[7] |= 1ull << 52;
    assert_refused(-EBADMSG, "reserved bits");
    for (uint64_t type = 1; type < XC_SR_PFN_BROKEN; type++) {
        pfns[7] = type << XC_SR_PFN_TYPE_SHIFT | 7;
        assert_refused(-EBADMSG, "no HVM guest has");
    }
    pfns[7] = (uint64_t)XC_SR_PFN_XTAB << XC_SR_PFN_TYPE_SHIFT | 7;
    assert_refused(-EBADMSG, "need");
}

static void a_gfn_that_no_such_guest_has_is_refused(void **state)
{
    uint64_t *pfns;

    (void)state;
    make_stream();
    pfns = (uint64_t *)(body_of(XC_SR_REC_PAGE_DATA) + sizeof(struct xc_sr_page_data));
    pfns[3] = (2ull << 20) + 4 * 2000;
    assert_refused(-EBADMSG, "may have gfns below");
    pfns[3] = XC_SR_PFN_MASK;
    assert_refused(-EBADMSG, "may have gfns below");
}

static void more_pages_than_the_domain_may_have_are_refused(void **state)
{
    (void)state;
    make_stream();
    fake_guest_free(&target);
    fake_guest_new(&target, 4, PAGES - 1);
    assert_int_equal(restore(), -E2BIG);
    assert_non_null(strstr(last_error, "more than the"));
    fake_guest_free(&target);
    fake_guest_new(&target, 4, PAGES);
    assert_restored();
}

static void a_page_named_twice_is_allocated_once_and_the_last_contents_stay(void **state)
{
    uint64_t *pfns;
    uint8_t *contents;

    (void)state;
    make_stream();
    pfns = (uint64_t *)(body_of(XC_SR_REC_PAGE_DATA) + sizeof(struct xc_sr_page_data));
    contents = (uint8_t *)(pfns + 1024);
    pfns[5] = 4;
    memset(contents + 5 * XC_SR_PAGE_BYTES, 0xee, XC_SR_PAGE_BYTES);
    assert_int_equal(restore(), 0);
    assert_int_equal(target.pages, PAGES - 1);
    assert_int_equal(fake_page(&target, 4)[0], 0xee);
    assert_null(fake_page(&target, 5));
}

static void allocate_only_and_gone_pages_carry_no_contents(void **state)
{
    uint64_t *pfns;
    struct xc_sr_page_data *data;

    (void)state;
    make_stream();
    data = (void *)insert_record(XC_SR_REC_X86_TSC_INFO, XC_SR_REC_PAGE_DATA, 8 + 3 * 8);
    data->count = 3;
    pfns = (uint64_t *)(data + 1);
    pfns[0] = (uint64_t)XC_SR_PFN_XALLOC << XC_SR_PFN_TYPE_SHIFT | 3000;
    pfns[1] = (uint64_t)XC_SR_PFN_XTAB << XC_SR_PFN_TYPE_SHIFT | XC_SR_PFN_MASK;
    pfns[2] = (uint64_t)XC_SR_PFN_BROKEN << XC_SR_PFN_TYPE_SHIFT | 3001;
    assert_int_equal(restore(), 0);
    assert_non_null(fake_page(&target, 3000));
    assert_null(fake_page(&target, 3001));
}

static void whole_2_mib_stretches_become_superpages(void **state)
{
    (void)state;
    make_stream();
    assert_restored();
    assert_int_equal(target.superpages, RAM_PAGES / 512);
}

static void parameters_that_no_saver_sends_are_refused(void **state)
{
    struct xc_sr_hvm_params *params;
    struct xc_sr_hvm_param *entry;

    (void)state;
    make_stream();
    params = (void *)body_of(XC_SR_REC_HVM_PARAMS);
    entry = (void *)(params + 1);
    entry[1].index = HVM_PARAM_DM_DOMAIN;
    assert_refused(-EBADMSG, "no saver sends");
    entry[1].index = HVM_NR_PARAMS;
    assert_refused(-EBADMSG, "no saver sends");
    entry[1].index = UINT64_MAX;
    assert_refused(-EBADMSG, "no saver sends");
    assert_int_equal(target.params[HVM_PARAM_STORE_PFN], 0); /* checked whole before any is set */
    entry[1].index = HVM_PARAM_X87_FIP_WIDTH;
    params->count++;
    assert_refused(-EBADMSG, "entries");
    params->count = UINT32_MAX;
    assert_refused(-EBADMSG, "entries");
}

static void ring_pages_have_to_be_pages_of_the_guest_and_are_cleared(void **state)
{
    static const uint8_t zeroes[XC_SR_PAGE_BYTES];
    struct xc_sr_hvm_param *entry;

    (void)state;
    make_stream();
    entry = (void *)(body_of(XC_SR_REC_HVM_PARAMS) + sizeof(struct xc_sr_hvm_params));
    assert_int_equal(entry[0].index, HVM_PARAM_STORE_PFN);
    entry[0].value = 3500;
    assert_refused(-EBADMSG, "where no page is");
    entry[0].value = UINT64_MAX;
    assert_refused(-EBADMSG, "where no page is");
    entry[0].value = 9;
    assert_int_equal(restore(), 0);
    assert_memory_equal(fake_page(&target, 9), zeroes, sizeof(zeroes));
    assert_int_not_equal(fake_page(&target, 10)[0], 0);
}

static void a_stream_without_a_part_of_the_state_is_refused(void **state)
{
    static const struct { uint32_t type; const char *says; } parts[] = {
        { XC_SR_REC_X86_TSC_INFO, "X86_TSC_INFO" }, { XC_SR_REC_HVM_CONTEXT, "HVM_CONTEXT" },
        { XC_SR_REC_HVM_PARAMS, "xenstore page" },
    };

    (void)state;
    for (unsigned int i = 0; i < 3; i++) {
        stream_bytes = 0;
        make_stream();
        remove_record(parts[i].type);
        assert_refused(-EBADMSG, parts[i].says);
    }
}

static unsigned int missing_seen;

static int static_data_done(void *arg, unsigned int missing)
{
    (void)arg;
    missing_seen = missing;
    return 0;
}

static void a_missing_cpu_policy_is_for_the_caller_to_decide(void **state)
{
    struct xc_sr_restore_ops ops = restore_ops;

    (void)state;
    make_stream();
    remove_record(XC_SR_REC_X86_CPUID_POLICY);
    assert_refused(-EBADMSG, "no CPUID policy");
    ops.static_data_done = static_data_done;
    stream_at = 0;
    assert_int_equal(xc_sr_restore_libxc(&to, &ports, &ops, NULL, NULL), 0);
    assert_int_equal(missing_seen, XGR_SDD_MISSING_CPUID);
}

static void after_verify_pages_are_compared_and_not_written(void **state)
{
    struct xc_sr_page_data *data;

    (void)state;
    make_stream();
    insert_record(XC_SR_REC_X86_TSC_INFO, XC_SR_REC_VERIFY, 0);
    data = (void *)insert_record(XC_SR_REC_X86_TSC_INFO, XC_SR_REC_PAGE_DATA, 8 + 8 + 4096);
    data->count = 1;
    *(uint64_t *)(data + 1) = 20;
    memset((uint64_t *)(data + 1) + 1, 0xdd, XC_SR_PAGE_BYTES);
    assert_restored();
    assert_non_null(strstr(last_error, "1 pages differ"));
}

static void a_pv_domain_is_refused_as_a_target(void **state)
{
    (void)state;
    make_stream();
    target.hvm = false;
    assert_int_equal(restore(), -EOPNOTSUPP);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_guest_saved_while_stopped_is_restored_bit_for_bit),
        TEST(a_guest_that_writes_meanwhile_is_restored_as_it_was_when_it_stopped),
        TEST(the_same_without_resuming_it),
        TEST(a_quiet_guest_needs_two_passes_and_the_last_one),
        TEST(a_cache_of_one_chunk_gives_the_same_stream),
        TEST(log_dirty_stays_on_and_clean_for_a_session),
        TEST(log_dirty_that_was_on_before_is_not_restarted),
        TEST(holes_cost_neither_hypercalls_nor_bytes),
        TEST(a_page_that_appears_meanwhile_is_saved_even_if_never_written),
        TEST(a_page_that_appears_beyond_the_physmap_is_saved),
        TEST(a_page_that_is_exchanged_for_another_is_followed),
        TEST(a_page_that_is_exchanged_and_written_at_the_last_moment_is_followed),
        TEST(a_page_beyond_the_highest_gfn_that_xen_told_is_not_looked_at),
        TEST(a_page_that_is_replaced_at_its_gfn_is_not_read_through_the_old_mapping),
        TEST(pages_that_xen_provides_are_not_saved_even_if_dirty),
        TEST(a_guest_is_resumed_whatever_fails_after_its_suspension),
        TEST(the_same_for_one_that_is_not_live),
        TEST(a_guest_that_does_not_suspend_is_not_resumed),
        TEST(a_guest_that_crashed_instead_is_not_saved),
        TEST(a_pv_guest_is_refused),
        TEST(the_outer_stream_has_its_header_and_its_end),
        TEST(a_stream_that_ends_anywhere_is_refused),
        TEST(headers_of_something_else_are_refused),
        TEST(records_out_of_order_are_refused),
        TEST(records_of_other_guests_and_unknown_ones_are_refused),
        TEST(optional_records_are_skipped),
        TEST(lengths_beyond_the_bounds_are_refused_before_anything_is_read),
        TEST(a_policy_that_is_no_whole_number_of_entries_is_refused),
        TEST(page_data_that_contradicts_itself_is_refused),
        TEST(a_gfn_that_no_such_guest_has_is_refused),
        TEST(more_pages_than_the_domain_may_have_are_refused),
        TEST(a_page_named_twice_is_allocated_once_and_the_last_contents_stay),
        TEST(allocate_only_and_gone_pages_carry_no_contents),
        TEST(whole_2_mib_stretches_become_superpages),
        TEST(parameters_that_no_saver_sends_are_refused),
        TEST(ring_pages_have_to_be_pages_of_the_guest_and_are_cleared),
        TEST(a_stream_without_a_part_of_the_state_is_refused),
        TEST(a_missing_cpu_policy_is_for_the_caller_to_decide),
        TEST(after_verify_pages_are_compared_and_not_written),
        TEST(a_pv_domain_is_refused_as_a_target),
    };
    int failed;

    stream = malloc(STREAM_MAX);
    expected = malloc((size_t)FAKE_FRAMES * XC_SR_PAGE_BYTES);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(stream);
    free(expected);
    return failed;
}
