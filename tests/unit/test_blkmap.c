/* The index of a disk's newer sectors against a model that has an entry for every sector. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tools/remus/blkmap.h"

#define PIECES 64u

static struct blkmap *new_map(uint32_t slots_max)
{
    struct blkmap *m;

    assert_int_equal(blkmap_new(&m, slots_max), 0);
    return m;
}

static void a_range_is_told_in_as_few_pieces_as_there_are(void **state)
{
    struct blkmap *m = new_map(100);
    struct blkmap_piece p[PIECES];

    (void)state;
    assert_int_equal(blkmap_get(m, 0, 100, p, PIECES), 1);
    assert_false(p[0].there);
    assert_int_equal(p[0].sectors, 100);
    /* Two blocks at once lie side by side; what is written later lies elsewhere. */
    assert_int_equal(blkmap_put(m, 10, 12), 0);
    assert_int_equal(blkmap_count(m), 2);
    assert_int_equal(blkmap_get(m, 0, 100, p, PIECES), 3);
    assert_int_equal(p[1].sector, 10);
    assert_int_equal(p[1].sectors, 12);
    assert_true(p[1].there);
    assert_int_equal(p[1].place, 2);
    assert_int_equal(p[2].sector, 22);
    assert_int_equal(blkmap_put(m, 0, 8), 0);
    assert_int_equal(blkmap_get(m, 0, 100, p, PIECES), 4);
    assert_int_equal(p[0].place, 16);
    assert_false(p[1].there);
    assert_int_equal(p[1].sectors, 2);
    /* No room for all: the beginning. */
    assert_int_equal(blkmap_get(m, 0, 100, p, 2), 2);
    assert_int_equal(p[1].sector, 8);
    /* What is there already stays where it is. */
    assert_int_equal(blkmap_put(m, 8, 8), 0);
    assert_int_equal(blkmap_count(m), 3);
    assert_int_equal(blkmap_get(m, 8, 14, p, PIECES), 1);
    assert_int_equal(p[0].place, 0);
    blkmap_free(m);
}

static void a_full_store_refuses_and_changes_nothing(void **state)
{
    struct blkmap *m = new_map(4);
    struct blkmap_piece p[PIECES];

    (void)state;
    assert_int_equal(blkmap_put(m, 0, 24), 0);
    assert_int_equal(blkmap_put(m, 16, 24), -ENOSPC);
    assert_int_equal(blkmap_count(m), 3);
    assert_int_equal(blkmap_get(m, 24, 16, p, PIECES), 1);
    assert_false(p[0].there);
    assert_int_equal(blkmap_put(m, 0, 32), 0);
    blkmap_drop(m, 8, 8);
    assert_int_equal(blkmap_put(m, 800, 8), 0);       /* in the slot that was given back */
    assert_int_equal(blkmap_get(m, 800, 8, p, PIECES), 1);
    assert_int_equal(p[0].place, 8);
    assert_int_equal(blkmap_slots(m), 4);
    assert_int_equal(blkmap_put(m, 1600, 1), -ENOSPC);
    blkmap_clear(m);
    assert_int_equal(blkmap_count(m), 0);
    assert_int_equal(blkmap_slots(m), 0);
    assert_int_equal(blkmap_put(m, 1600, 32), 0);
    blkmap_free(m);
}

static void sizes_that_make_no_sense_are_refused(void **state)
{
    struct blkmap *m;

    (void)state;
    assert_int_equal(blkmap_new(&m, 0), -EINVAL);
    assert_int_equal(blkmap_new(&m, BLKMAP_SLOTS_MAX + 1), -EINVAL);
    assert_null(m);
    blkmap_free(NULL);
    m = new_map(1);
    assert_int_equal(blkmap_put(m, 5, 0), 0);
    blkmap_drop(m, 5, 0);
    assert_int_equal(blkmap_count(m), 0);
    blkmap_free(m);
}

static void a_discard_of_nearly_everything_leaves_the_rest(void **state)
{
    struct blkmap *m = new_map(2000);
    uint32_t i;

    (void)state;
    for (i = 0; i < 900; i++) {
        assert_int_equal(blkmap_put(m, (uint64_t)i * 1000003, 3), 0);
    }
    blkmap_drop(m, 1, UINT32_MAX);
    assert_int_equal(blkmap_count(m), 1);             /* sector 0 */
    blkmap_free(m);
}

/* ---- against the model ---- */

#define DISK   4096u
#define SLOTS  300u

static uint32_t random_below(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)*seed * n >> 32);
}

/* Model: is the sector there?  Places are looked up, and must be the block's own. */
static void compare(struct blkmap *m, const bool *model)
{
    static struct blkmap_piece p[DISK];
    static bool slot_seen[SLOTS];
    const uint32_t n = blkmap_get(m, 0, DISK, p, DISK);
    struct blkmap_block block;
    uint32_t cursor = 0, blocks = 0, at = 0, i, k;

    for (i = 0; i < n; i++) {
        assert_int_equal(p[i].sector, at);
        assert_false(i && !p[i].there && !p[i - 1].there);
        for (k = 0; k < p[i].sectors; k++, at++) {
            assert_int_equal(p[i].there, model[at]);
            assert_true(!p[i].there || (p[i].place + k) % 8 == at % 8);
        }
    }
    assert_int_equal(at, DISK);
    memset(slot_seen, 0, sizeof(slot_seen));
    while (blkmap_next(m, &cursor, &block)) {
        assert_true(block.place / 8 < SLOTS && !slot_seen[block.place / 8]);
        slot_seen[block.place / 8] = true;
        for (i = 0; i < 8; i++) {
            assert_int_equal(block.present >> i & 1, model[block.sector + i]);
        }
        blocks++;
    }
    assert_int_equal(blocks, blkmap_count(m));
}

static void it_does_what_the_model_does(void **state)
{
    static bool model[DISK];
    struct blkmap *m = new_map(SLOTS);
    uint32_t seed = 1, refused = 0, step;

    (void)state;
    for (step = 0; step < 20000; step++) {
        const uint32_t sectors = 1 + random_below(&seed, random_below(&seed, 8) ? 20 : 400);
        const uint32_t sector = random_below(&seed, DISK - sectors);
        const uint32_t what = random_below(&seed, 100);

        if (what < 55) {
            if (blkmap_put(m, sector, sectors) == 0) {
                memset(model + sector, true, sectors);
            } else {
                refused++;
            }
        } else if (what < 99) {
            blkmap_drop(m, sector, sectors);
            memset(model + sector, false, sectors);
        } else if (step % 7 == 0) {
            blkmap_clear(m);
            memset(model, 0, sizeof(model));
        }
        if (step % 20 == 0) {
            compare(m, model);
        }
    }
    assert_true(refused > 10);
    blkmap_free(m);
}

/* Killed at any moment between two calls: what opens the memory finds what is left. */
static void a_frozen_map_is_what_it_was_for_whoever_opens_it(void **state)
{
    static bool model[DISK];
    struct blkmap *m = new_map(SLOTS);
    uint32_t seed = 7, step;
    size_t bytes;
    void *memory;

    (void)state;
    memset(model, 0, sizeof(model));
    for (step = 0; step < 300; step++) {
        const uint32_t sectors = 1 + random_below(&seed, 20);
        const uint32_t sector = random_below(&seed, DISK - 20);

        if (blkmap_put(m, sector, sectors) == 0) {
            memset(model + sector, true, sectors);
        }
    }
    bytes = blkmap_frozen_bytes(m);
    memory = calloc(1, bytes);
    assert_non_null(memory);
    blkmap_freeze(m, memory);
    compare(m, model);
    assert_int_equal(blkmap_put(m, 0, 1), -EROFS);
    for (step = 0; step < 600; step++) {
        const uint32_t sectors = 1 + random_below(&seed, step % 50 ? 30 : DISK / 2);
        const uint32_t sector = random_below(&seed, DISK - sectors);

        blkmap_drop(m, sector, sectors);
        memset(model + sector, false, sectors);
        if (step % 10 == 0) {
            blkmap_free(m);
            assert_int_equal(blkmap_open(&m, memory, bytes), 0);
        }
        compare(m, model);
    }
    blkmap_clear(m);
    assert_int_equal(blkmap_count(m), 0);
    blkmap_free(m);
    assert_int_equal(blkmap_open(&m, memory, bytes - 1), -EINVAL);
    assert_int_equal(blkmap_open(&m, memory, 4), -EINVAL);
    memset(memory, 0xff, bytes);
    assert_int_equal(blkmap_open(&m, memory, bytes), -EINVAL);
    *(uint32_t *)memory = 64;       /* no entry is free */
    assert_int_equal(blkmap_open(&m, memory, bytes), -EINVAL);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_range_is_told_in_as_few_pieces_as_there_are),
        cmocka_unit_test(a_full_store_refuses_and_changes_nothing),
        cmocka_unit_test(sizes_that_make_no_sense_are_refused),
        cmocka_unit_test(a_discard_of_nearly_everything_leaves_the_rest),
        cmocka_unit_test(it_does_what_the_model_does),
        cmocka_unit_test(a_frozen_map_is_what_it_was_for_whoever_opens_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
