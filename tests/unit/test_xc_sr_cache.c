/* LINK: tools/libxc/xc_sr_cache.c */
/*
 * Xen is played by the functions below: a guest whose page at gfn g holds the number g, with
 * holes, and pages that can be exchanged under the mapping.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "tools/libxc/xc_sr_private.h"

#define CHUNK XC_SR_CACHE_CHUNK_PAGES

static struct {
    uint64_t gfns;                  /* [0, gfns) hold pages, but for: */
    uint64_t hole_from, hole_to;
    uint64_t special;               /* maps, but does not count as present; ~0: none */
    uint64_t generation;            /* what the second word of a page says */
    struct xc_sr_extent extent;
    unsigned int maps, unmaps;
    int map_errno;                  /* != 0: the next map fails so */
    int page_errno;                 /* for hole pages */
} xen;

static bool hole(uint64_t gfn)
{
    return gfn >= xen.gfns || (gfn >= xen.hole_from && gfn < xen.hole_to);
}

void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t pages,
                           const xen_pfn_t arr[/*pages*/], int err[/*pages*/])
{
    uint8_t *base;

    assert_null(fmem);
    assert_int_equal(dom, 5);
    assert_int_equal(prot, PROT_READ | PROT_WRITE);
    assert_int_equal(pages, CHUNK);
    if (xen.map_errno) {
        errno = xen.map_errno;
        xen.map_errno = 0;
        return NULL;
    }
    base = mmap(NULL, pages * XC_SR_PAGE_BYTES, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(base != MAP_FAILED);
    for (size_t i = 0; i < pages; i++) {
        uint64_t *page = (uint64_t *)(base + i * XC_SR_PAGE_BYTES);

        assert_int_equal(arr[i], arr[0] + i);
        if (hole(arr[i])) {
            err[i] = xen.page_errno;
            assert_int_equal(mprotect(page, XC_SR_PAGE_BYTES, PROT_NONE), 0);
        } else {
            err[i] = 0;
            page[0] = arr[i];
            page[1] = xen.generation;
        }
    }
    xen.maps++;
    return base;
}

int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *addr, size_t pages)
{
    (void)fmem;
    assert_int_equal(pages, CHUNK);
    xen.unmaps++;
    return munmap(addr, pages * XC_SR_PAGE_BYTES);
}

int xc_sr_extent_read(struct xc_sr_extent *out, const struct xc_sr_handles *h)
{
    assert_int_equal(h->domid, 5);
    *out = xen.extent;
    return 0;
}

int xc_sr_pages_present(const struct xc_sr_handles *h, const uint64_t *gfns, unsigned int count,
                        bool *present)
{
    assert_int_equal(h->domid, 5);
    assert_true(count <= XC_SR_TYPES_MAX);
    for (unsigned int i = 0; i < count; i++)
        present[i] = !hole(gfns[i]) && gfns[i] != xen.special;
    return 0;
}

static const struct xc_sr_handles handles = { .domid = 5 };
static struct xc_sr_cache *cache;

static int set_up(void **state)
{
    (void)state;
    memset(&xen, 0, sizeof(xen));
    xen.gfns = 100 * CHUNK;
    xen.special = UINT64_MAX;
    xen.extent = (struct xc_sr_extent){ .pages = xen.gfns, .max_gfn = xen.gfns - 1 };
    xen.page_errno = -EINVAL;
    return xc_sr_cache_new(&cache, &handles, 4 * CHUNK);
}

static int tear_down(void **state)
{
    (void)state;
    xc_sr_cache_free(cache);
    /* Whatever a test did: nothing stays mapped. */
    return xen.maps == xen.unmaps ? 0 : -1;
}

static uint64_t *get(uint64_t gfn)
{
    void *page;

    assert_int_equal(xc_sr_cache_get(cache, gfn, &page), 0);
    return page;
}

static struct xc_sr_cache_stats stats(void)
{
    struct xc_sr_cache_stats s;

    xc_sr_cache_stats(cache, &s);
    return s;
}

static void a_page_is_mapped_once_and_found_again(void **state)
{
    uint64_t *page = get(700);

    (void)state;
    assert_int_equal(page[0], 700);
    assert_ptr_equal(get(700), page);
    assert_int_equal(get(701)[0], 701);
    assert_int_equal(get(513)[0], 513);
    assert_int_equal(xen.maps, 1);
    assert_int_equal(stats().misses, 1);
    assert_int_equal(stats().hits, 3);
    assert_int_equal(stats().mapped_pages, CHUNK);
}

static void the_least_recently_used_chunk_goes_when_the_budget_is_reached(void **state)
{
    (void)state;
    for (unsigned int i = 0; i < 4; i++)
        get(i * CHUNK);
    get(0);                         /* chunk 1 is the oldest now */
    get(4 * CHUNK);
    assert_int_equal(stats().evictions, 1);
    assert_int_equal(stats().mapped_pages, 4 * CHUNK);
    assert_int_equal(xen.maps, 5);
    get(0);
    get(2 * CHUNK);
    get(3 * CHUNK);
    assert_int_equal(xen.maps, 5);
    get(1 * CHUNK);
    assert_int_equal(xen.maps, 6);
}

static void chunks_that_share_a_bucket_do_not_mix(void **state)
{
    (void)state;
    /* 64 buckets: chunk 2 and chunk 66 are in one. */
    for (unsigned int round = 0; round < 3; round++) {
        assert_int_equal(get(2 * CHUNK + 9)[0], 2 * CHUNK + 9);
        assert_int_equal(get(66 * CHUNK + 9)[0], 66 * CHUNK + 9);
    }
    assert_int_equal(xen.maps, 2);
    xc_sr_cache_invalidate(cache, 2 * CHUNK, 1);
    assert_int_equal(get(66 * CHUNK)[0], 66 * CHUNK);
    assert_int_equal(xen.maps, 2);
}

static void a_hole_in_a_mapped_chunk_is_no_page(void **state)
{
    void *page = &page;

    (void)state;
    xen.hole_from = 10;
    xen.hole_to = 20;
    get(9);
    assert_int_equal(xc_sr_cache_get(cache, 10, &page), -ENOENT);
    assert_null(page);
    assert_int_equal(xc_sr_cache_get(cache, 19, &page), -ENOENT);
    get(20);
    assert_int_equal(stats().mapped_pages, CHUNK - 10);
}

static void a_chunk_without_pages_takes_no_mapping_and_is_not_asked_for_twice(void **state)
{
    void *page;

    (void)state;
    assert_int_equal(xc_sr_cache_get(cache, 200 * CHUNK, &page), -ENOENT);
    assert_int_equal(xc_sr_cache_get(cache, 200 * CHUNK + 1, &page), -ENOENT);
    assert_int_equal(xen.maps, 1);
    assert_int_equal(xen.unmaps, 1);
    assert_int_equal(stats().mapped_pages, 0);
}

static void an_error_of_a_page_that_is_no_hole_is_reported_as_it_is(void **state)
{
    void *page;

    (void)state;
    xen.hole_from = 10;
    xen.hole_to = 11;
    xen.page_errno = -EPERM;
    assert_int_equal(xc_sr_cache_get(cache, 10, &page), -EPERM);
    xen.page_errno = EPERM;
    xc_sr_cache_invalidate_all(cache);
    assert_int_equal(xc_sr_cache_get(cache, 10, &page), -EPERM);
}

static void a_mapping_that_fails_is_an_error_and_may_be_tried_again(void **state)
{
    void *page;

    (void)state;
    xen.map_errno = EACCES;
    assert_int_equal(xc_sr_cache_get(cache, 0, &page), -EACCES);
    assert_int_equal(get(0)[0], 0);
}

static void when_memory_is_short_everything_else_is_dropped_first(void **state)
{
    (void)state;
    get(0);
    get(CHUNK);
    xen.map_errno = ENOMEM;
    assert_int_equal(get(2 * CHUNK)[0], 2 * CHUNK);
    assert_int_equal(stats().evictions, 2);
    assert_int_equal(stats().mapped_pages, CHUNK);
}

static void invalidation_drops_exactly_the_chunks_of_its_range(void **state)
{
    (void)state;
    for (unsigned int i = 0; i < 4; i++)
        get(i * CHUNK);
    xen.generation = 1;
    xc_sr_cache_invalidate(cache, 2 * CHUNK - 1, 2);
    assert_int_equal(stats().invalidations, 2);
    assert_int_equal(get(0)[1], 0);
    assert_int_equal(get(CHUNK)[1], 1);
    assert_int_equal(get(2 * CHUNK)[1], 1);
    assert_int_equal(get(3 * CHUNK)[1], 0);
    xc_sr_cache_invalidate(cache, 0, 0);
    assert_int_equal(stats().invalidations, 2);
    xc_sr_cache_invalidate(cache, 1, UINT64_MAX);
    assert_int_equal(stats().mapped_pages, 0);
}

static void an_unchanged_physmap_keeps_every_mapping(void **state)
{
    bool changed = true;

    (void)state;
    for (unsigned int i = 0; i < 4; i++)
        get(i * CHUNK);
    for (unsigned int i = 0; i < 10; i++) {
        assert_int_equal(xc_sr_cache_revalidate(cache, &changed), 0);
        assert_false(changed);
    }
    assert_int_equal(xen.unmaps, 0);
}

static void pages_that_xen_provides_do_not_look_like_a_change(void **state)
{
    bool changed = true;

    (void)state;
    xen.special = 3;
    get(0);
    for (unsigned int i = 0; i < 4; i++) {
        assert_int_equal(xc_sr_cache_revalidate(cache, &changed), 0);
        assert_false(changed);
    }
}

static void a_change_of_the_extent_before_the_first_revalidation_is_seen(void **state)
{
    bool changed = false;

    (void)state;
    get(0);
    xen.extent.pages--;
    assert_int_equal(xc_sr_cache_revalidate(cache, &changed), 0);
    assert_true(changed);
    assert_int_equal(stats().mapped_pages, 0);
    assert_int_equal(xc_sr_cache_revalidate(cache, &changed), 0);
    assert_false(changed);
}

static void a_higher_gfn_drops_every_mapping(void **state)
{
    bool changed = false;

    (void)state;
    get(0);
    get(CHUNK);
    xen.extent.max_gfn++;
    assert_int_equal(xc_sr_cache_revalidate(cache, &changed), 0);
    assert_true(changed);
    assert_int_equal(stats().invalidations, 2);
}

static void a_hole_that_is_filled_becomes_a_page_after_revalidation(void **state)
{
    void *page;
    bool changed;

    (void)state;
    xen.hole_from = 10;
    xen.hole_to = 11;
    assert_int_equal(xc_sr_cache_get(cache, 10, &page), -ENOENT);
    xen.hole_to = 10;
    xen.extent.pages++;
    assert_int_equal(xc_sr_cache_revalidate(cache, &changed), 0);
    assert_true(changed);
    assert_int_equal(get(10)[0], 10);
}

static void pages_ballooned_out_at_an_unchanged_count_are_noticed_by_looking(void **state)
{
    bool changed = false;
    unsigned int looks = 0;

    (void)state;
    for (unsigned int i = 0; i < 4; i++)
        get(i * CHUNK);
    for (unsigned int i = 0; i < 4; i++)
        assert_int_equal(xc_sr_cache_revalidate(cache, &changed), 0);
    xen.hole_from = 2 * CHUNK + 5;  /* our mapping keeps it on the guest's account */
    xen.hole_to = 2 * CHUNK + 6;
    while (!changed && looks < 4) {
        assert_int_equal(xc_sr_cache_revalidate(cache, &changed), 0);
        looks++;
    }
    assert_true(changed);
}

static void a_budget_of_less_than_a_chunk_is_one_chunk(void **state)
{
    struct xc_sr_cache *small;
    struct xc_sr_cache_stats s;
    void *page;

    (void)state;
    assert_int_equal(xc_sr_cache_new(&small, &handles, 1), 0);
    assert_int_equal(xc_sr_cache_get(small, 0, &page), 0);
    assert_int_equal(xc_sr_cache_get(small, CHUNK, &page), 0);
    xc_sr_cache_stats(small, &s);
    assert_int_equal(s.budget_pages, CHUNK);
    assert_int_equal(s.mapped_pages, CHUNK);
    xc_sr_cache_free(small);
    xc_sr_cache_free(NULL);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_page_is_mapped_once_and_found_again),
        TEST(the_least_recently_used_chunk_goes_when_the_budget_is_reached),
        TEST(chunks_that_share_a_bucket_do_not_mix),
        TEST(a_hole_in_a_mapped_chunk_is_no_page),
        TEST(a_chunk_without_pages_takes_no_mapping_and_is_not_asked_for_twice),
        TEST(an_error_of_a_page_that_is_no_hole_is_reported_as_it_is),
        TEST(a_mapping_that_fails_is_an_error_and_may_be_tried_again),
        TEST(when_memory_is_short_everything_else_is_dropped_first),
        TEST(invalidation_drops_exactly_the_chunks_of_its_range),
        TEST(an_unchanged_physmap_keeps_every_mapping),
        TEST(pages_that_xen_provides_do_not_look_like_a_change),
        TEST(a_change_of_the_extent_before_the_first_revalidation_is_seen),
        TEST(a_higher_gfn_drops_every_mapping),
        TEST(a_hole_that_is_filled_becomes_a_page_after_revalidation),
        TEST(pages_ballooned_out_at_an_unchanged_count_are_noticed_by_looking),
        TEST(a_budget_of_less_than_a_chunk_is_one_chunk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
