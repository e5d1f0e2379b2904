/* The copy's disk: layers in a store, against a model with an entry for every sector. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tools/remus/blkview.h"

#define SECTORS 4096u
#define STORE   (BLKVIEW_LAYERS * SECTORS * 2u)     /* places, in sectors */
#define PIECES  4u
#define SLOTS   64u

/* What a disk and a store hold: for each sector the number of the write that filled it. */
static uint32_t disk[SECTORS], store[BLKVIEW_LAYERS][SECTORS * 8];
static uint32_t writes;

static struct blkview *new_view(void)
{
    struct blkview *v;

    memset(disk, 0, sizeof(disk));
    memset(store, 0, sizeof(store));
    writes = 0;
    assert_int_equal(blkview_new(&v, 1u << 20, SLOTS), 0);
    return v;
}

static uint32_t *at(uint32_t layer, uint64_t offset)
{
    if (layer == BLKVIEW_DISK) {
        return &disk[offset / 512];
    }
    offset -= (1u << 20) + layer * BLKVIEW_LAYER_BYTES;
    assert_true(offset / 512 < SLOTS * 8);
    return &store[layer][offset / 512];
}

static void fill(struct blkview *v, uint32_t layer, uint64_t sector, uint32_t sectors,
                 uint32_t value)
{
    struct blkview_piece p[PIECES];
    uint32_t n, i, k;

    while (sectors) {
        n = blkview_layer(v, layer, sector, sectors, p, PIECES);
        for (i = 0; i < n; i++) {
            assert_int_equal(p[i].layer, layer);
            assert_int_equal(p[i].sector, sector);
            for (k = 0; k < p[i].sectors; k++) {
                *at(layer, p[i].offset + k * 512) = value;
            }
            sector += p[i].sectors;
            sectors -= p[i].sectors;
        }
    }
}

static void check_reads(const struct blkview *v, const uint32_t *wanted)
{
    struct blkview_piece p[PIECES];
    uint64_t sector = 0;
    uint32_t n, i, k;

    while (sector < SECTORS) {
        n = blkview_read(v, sector, (uint32_t)(SECTORS - sector), p, PIECES);
        assert_true(n >= 1 && n <= PIECES);
        for (i = 0; i < n; i++) {
            assert_int_equal(p[i].sector, sector);
            for (k = 0; k < p[i].sectors; k++) {
                assert_int_equal(*at(p[i].layer, p[i].offset + k * 512), wanted[sector + k]);
            }
            sector += p[i].sectors;
        }
    }
}

static void merge_run(struct blkview *v, const struct blkview_piece *run)
{
    struct blkview_piece p[PIECES];
    uint64_t sector = run->sector;
    uint32_t left = run->sectors, n, i, k;

    while (left) {
        n = blkview_layer(v, run->layer, sector, left, p, PIECES);
        for (i = 0; i < n; i++) {
            assert_int_equal(p[i].layer, run->layer);
            for (k = 0; k < p[i].sectors; k++) {
                disk[sector + k] = *at(run->layer, p[i].offset + k * 512);
            }
            sector += p[i].sectors;
            left -= p[i].sectors;
        }
    }
    blkview_merged(v, run);
}

/* Punches what is to be punched.  Returns how many layers. */
static uint32_t punch_all(struct blkview *v)
{
    uint32_t layer, count = 0;
    uint64_t offset, bytes;

    for (; blkview_punch(v, &layer, &offset, &bytes); count++) {
        assert_in_range(layer, 1, BLKVIEW_LAYERS - 1);
        assert_int_equal(offset, (1u << 20) + layer * BLKVIEW_LAYER_BYTES);
        assert_in_range(bytes, 4096, SLOTS * 4096);
        memset(store[layer], 0, bytes / 512 * sizeof(store[layer][0]));
        blkview_punched(v, layer);
    }
    return count;
}

static void merge_all(struct blkview *v)
{
    struct blkview_piece run;

    while (blkview_merge(v, &run) == 1) {
        merge_run(v, &run);
    }
    punch_all(v);
}

static void receive(struct blkview *v, uint64_t epoch, uint64_t sector, uint32_t sectors,
                    uint32_t value)
{
    uint32_t layer;

    assert_int_equal(blkview_receive(v, epoch, sector, sectors, 1, &layer), 0);
    fill(v, layer, sector, sectors, value);
}

static void own_writes_are_seen_and_forgotten_at_a_commit(void **state)
{
    struct blkview *v = new_view();
    uint32_t wanted[SECTORS] = { 0 };

    (void)state;
    assert_int_equal(blkview_write(v, 3, 10), 0);
    fill(v, 0, 3, 10, 7);
    for (uint32_t i = 3; i < 13; i++) {
        wanted[i] = 7;
    }
    check_reads(v, wanted);
    assert_false(blkview_clean(v));
    blkview_commit(v, 1);
    memset(wanted, 0, sizeof(wanted));
    check_reads(v, wanted);
    assert_true(blkview_clean(v));
    blkview_free(v);
}

static void a_primarys_write_is_seen_from_its_commit_on(void **state)
{
    struct blkview *v = new_view();
    uint32_t wanted[SECTORS] = { 0 };
    struct blkview_piece run;

    (void)state;
    receive(v, 1, 100, 16, 5);
    check_reads(v, wanted);
    /* Nothing is to be merged before. */
    assert_int_equal(blkview_merge(v, &run), 0);
    blkview_commit(v, 1);
    for (uint32_t i = 100; i < 116; i++) {
        wanted[i] = 5;
    }
    check_reads(v, wanted);
    assert_int_equal(blkview_reclaimed(v), 0);
    merge_all(v);
    check_reads(v, wanted);
    assert_memory_equal(disk, wanted, sizeof(disk));
    assert_int_equal(blkview_reclaimed(v), 1);
    assert_int_equal(blkview_reclaimed(v), 0);
    blkview_free(v);
}

static void the_next_generation_waits_for_runs_of_the_one_before(void **state)
{
    struct blkview *v = new_view();
    struct blkview_piece first, second;

    (void)state;
    receive(v, 1, 0, 8, 1);
    receive(v, 2, 0, 8, 2);
    blkview_commit(v, 2);
    assert_int_equal(blkview_merge(v, &first), 1);
    assert_int_equal(blkview_merge(v, &second), 0);
    merge_run(v, &first);
    assert_int_equal(disk[0], 1);
    assert_int_equal(blkview_merge(v, &second), 1);
    merge_run(v, &second);
    assert_int_equal(disk[0], 2);
    assert_int_equal(blkview_merge(v, &second), 0);
    assert_true(blkview_clean(v));
    blkview_free(v);
}

static void a_run_that_failed_is_told_again(void **state)
{
    struct blkview *v = new_view();
    struct blkview_piece run;

    (void)state;
    receive(v, 1, 8, 8, 1);
    blkview_commit(v, 1);
    assert_int_equal(blkview_merge(v, &run), 1);
    blkview_unmerged(v, &run);
    assert_false(blkview_clean(v));
    assert_int_equal(blkview_merge(v, &run), 1);
    merge_run(v, &run);
    assert_int_equal(disk[8], 1);
    assert_int_equal(blkview_merge(v, &run), 0);
    assert_true(blkview_clean(v));
    blkview_free(v);
}

static void a_generation_that_is_read_from_is_not_filled_again(void **state)
{
    struct blkview *v = new_view();
    uint32_t layer, used = 0, i;

    (void)state;
    assert_int_equal(blkview_receive(v, 1, 0, 1, 1, &used), 0);
    blkview_commit(v, 1);
    blkview_hold(v, used);
    merge_all(v);
    for (i = 0; i < BLKVIEW_GENERATIONS - 1; i++) {
        assert_int_equal(blkview_receive(v, 2 + i, 0, 1, 1, &layer), 0);
        assert_int_not_equal(layer, used);
    }
    assert_int_equal(blkview_receive(v, 2 + i, 0, 1, 1, &layer), -EAGAIN);
    blkview_release(v, used);
    punch_all(v);
    assert_int_equal(blkview_receive(v, 2 + i, 0, 1, 1, &layer), 0);
    assert_int_equal(layer, used);
    blkview_free(v);
}

/* So no more is in the store than was given credit for. */
static void a_generation_is_filled_again_only_when_its_place_was_punched(void **state)
{
    struct blkview *v = new_view();
    struct blkview_piece run;
    uint32_t layer, used, other, i;
    uint64_t offset, bytes;

    (void)state;
    assert_int_equal(blkview_receive(v, 1, 0, 16, 7, &used), 0);
    blkview_commit(v, 1);
    assert_int_equal(blkview_merge(v, &run), 1);
    assert_false(blkview_punch(v, &layer, &offset, &bytes));
    merge_run(v, &run);
    assert_int_equal(blkview_merge(v, &run), 0);
    for (i = 0; i < BLKVIEW_GENERATIONS - 1; i++) {
        assert_int_equal(blkview_receive(v, 2 + i, 0, 1, 1, &layer), 0);
        assert_int_not_equal(layer, used);
    }
    assert_true(blkview_punch(v, &layer, &offset, &bytes));
    assert_int_equal(layer, used);
    assert_int_equal(bytes, 2 * 4096);
    assert_false(blkview_punch(v, &other, &offset, &bytes));
    assert_int_equal(blkview_receive(v, 2 + i, 0, 1, 1, &other), -EAGAIN);
    assert_int_equal(blkview_reclaimed(v), 0);
    blkview_punched(v, layer);
    assert_int_equal(blkview_reclaimed(v), 7);
    assert_int_equal(blkview_receive(v, 2 + i, 0, 1, 1, &other), 0);
    assert_int_equal(other, used);
    blkview_free(v);
}

static void epochs_only_go_up(void **state)
{
    struct blkview *v = new_view();
    uint32_t layer;

    (void)state;
    assert_int_equal(blkview_receive(v, 5, 0, 1, 1, &layer), 0);
    assert_int_equal(blkview_receive(v, 4, 0, 1, 1, &layer), -EPROTO);
    blkview_commit(v, 7);
    assert_int_equal(blkview_receive(v, 7, 0, 1, 1, &layer), -EPROTO);
    assert_int_equal(blkview_receive(v, 8, 0, 1, 1, &layer), 0);
    blkview_free(v);
}

static void a_disk_has_an_epoch_when_all_up_to_it_is_merged(void **state)
{
    struct blkview *v = new_view();
    struct blkview_piece run;

    (void)state;
    assert_true(blkview_merged_to(v, 5));
    receive(v, 1, 0, 8, 1);
    receive(v, 3, 8, 8, 3);
    assert_true(blkview_merged_to(v, 0));
    assert_false(blkview_merged_to(v, 1));
    blkview_commit(v, 2);
    assert_false(blkview_merged_to(v, 2));
    assert_int_equal(blkview_merge(v, &run), 1);
    merge_run(v, &run);
    assert_int_equal(blkview_merge(v, &run), 0);
    /* The third is pending still. */
    assert_true(blkview_merged_to(v, 2));
    assert_false(blkview_merged_to(v, 3));
    blkview_commit(v, 3);
    merge_all(v);
    assert_true(blkview_merged_to(v, 3));
    blkview_free(v);
}

static void a_full_layer_refuses(void **state)
{
    struct blkview *v = new_view();
    uint32_t layer;

    (void)state;
    assert_int_equal(blkview_write(v, 0, SLOTS * 8), 0);
    assert_int_equal(blkview_write(v, SLOTS * 8, 1), -ENOSPC);
    assert_int_equal(blkview_receive(v, 1, 0, SLOTS * 8 + 1, 1, &layer), -ENOSPC);
    blkview_free(v);
    assert_int_equal(blkview_new(&v, 0, 1u << 25), -EINVAL);
}

/* Everything at once, in any order, until a takeover; the model knows what each sector holds. */
static void any_order_of_events_gives_what_the_model_says(void **state)
{
    uint32_t seed;

    (void)state;
    for (seed = 1; seed <= 300; seed++) {
        static uint32_t own[SECTORS], primary[SECTORS], base[SECTORS];
        struct blkview *v = new_view();
        struct blkview_piece runs[8];
        uint32_t held = 0, step, layer, i;
        uint64_t epoch = 1;
        bool over = false;
        void *kept = NULL;
        size_t kept_bytes = 0;

        srandom(seed);
        memset(own, 0, sizeof(own));
        memset(primary, 0, sizeof(primary));
        memset(base, 0, sizeof(base));
        for (step = 0; step < 300; step++) {
            uint32_t sector = (uint32_t)random() % 256, sectors = 1 + (uint32_t)random() % 40;
            int rc;

            switch (random() % 8) {
            case 0:
            case 1:                 /* the copy's guest writes */
                if (over) {
                    for (i = 0; i < held; i++) {
                        if (runs[i].sector < sector + sectors &&
                            sector < runs[i].sector + runs[i].sectors) {
                            break;
                        }
                    }
                    if (i < held) {
                        break;      /* the caller waits for such a run */
                    }
                    writes++;
                    for (i = 0; i < sectors; i++) {
                        disk[sector + i] = own[sector + i] = writes;
                    }
                    blkview_drop(v, sector, sectors);
                } else if (!blkview_write(v, sector, sectors)) {
                    fill(v, 0, sector, sectors, ++writes);
                    for (i = 0; i < sectors; i++) {
                        own[sector + i] = writes;
                    }
                }
                break;
            case 2:
            case 3:                 /* the primary's does */
                rc = over ? -1 : blkview_receive(v, epoch, sector, sectors, 1, &layer);
                if (!rc) {
                    fill(v, layer, sector, sectors, ++writes);
                    for (i = 0; i < sectors; i++) {
                        primary[sector + i] = writes;
                    }
                }
                break;
            case 4:                 /* a checkpoint */
                if (!over) {
                    blkview_commit(v, epoch++);
                    memcpy(base, primary, sizeof(base));
                    memcpy(own, base, sizeof(own));
                }
                break;
            case 5:
                if (!over && random() % 2) {
                    punch_all(v);
                }
                if (held < 8 && blkview_merge(v, &runs[held]) == 1) {
                    held++;
                }
                break;
            case 6:
                if (held) {
                    i = (uint32_t)random() % held;
                    if (random() % 8) {
                        merge_run(v, &runs[i]);
                    } else {
                        blkview_unmerged(v, &runs[i]);
                    }
                    runs[i] = runs[--held];
                }
                break;
            default:
                if (step > 200 && !over) {
                    over = true;
                    blkview_takeover(v);
                    kept_bytes = blkview_frozen_bytes(v);
                    kept = malloc(kept_bytes);
                    assert_non_null(kept);
                    blkview_freeze(v, kept);
                } else if (over && random() % 4 == 0) {
                    blkview_free(v);    /* the daemon dies, and another goes on */
                    held = 0;
                    assert_int_equal(blkview_open(&v, 1u << 20, kept, kept_bytes), 0);
                }
                break;
            }
            check_reads(v, own);
        }
        while (held) {
            merge_run(v, &runs[--held]);
        }
        if (over) {
            struct blkview_piece run;

            while (!blkview_clean(v)) {
                if (blkview_merge(v, &run) == 1) {
                    merge_run(v, &run);
                }
            }
            assert_memory_equal(disk, own, sizeof(disk));
        }
        blkview_free(v);
        free(kept);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(own_writes_are_seen_and_forgotten_at_a_commit),
        cmocka_unit_test(a_primarys_write_is_seen_from_its_commit_on),
        cmocka_unit_test(the_next_generation_waits_for_runs_of_the_one_before),
        cmocka_unit_test(a_run_that_failed_is_told_again),
        cmocka_unit_test(a_generation_that_is_read_from_is_not_filled_again),
        cmocka_unit_test(a_generation_is_filled_again_only_when_its_place_was_punched),
        cmocka_unit_test(epochs_only_go_up),
        cmocka_unit_test(a_disk_has_an_epoch_when_all_up_to_it_is_merged),
        cmocka_unit_test(a_full_layer_refuses),
        cmocka_unit_test(any_order_of_events_gives_what_the_model_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
