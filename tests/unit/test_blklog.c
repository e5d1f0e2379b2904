/* LINK: tools/remus/blklog.c */
/* What is noted of disks, against a model with an entry for every part; and what is left of it when
 * whoever notes dies. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tools/remus/blklog.h"

#define DISKS 2u
#define PARTS 200u                  /* of the first disk, the last of 3 sectors */
#define RANGE 2048u                 /* sectors, at most, of what is compared at a time */

static const uint64_t sizes[DISKS] = { (PARTS - 1) * BLKLOG_PART_SECTORS + 3, 8 };

static void *new_memory(void)
{
    void *memory = calloc(1, blklog_bytes(sizes, DISKS));

    assert_non_null(memory);
    blklog_format(memory, sizes, DISKS);
    return memory;
}

static struct blklog *open_log(void *memory)
{
    struct blklog *l;

    assert_int_equal(blklog_open(&l, memory, blklog_bytes(sizes, DISKS), sizes, DISKS), 0);
    return l;
}

/* Everything due of a disk, as part numbers; returns how many. */
static uint32_t due_parts(const struct blklog *l, uint32_t disk, bool due[PARTS])
{
    uint64_t sector = 0, bytes = 0;
    uint32_t sectors, i, count = 0;

    memset(due, 0, PARTS * sizeof(*due));
    while (blklog_next(l, disk, RANGE, &sector, &sectors)) {
        assert_int_equal(sector % BLKLOG_PART_SECTORS, 0);
        assert_true(sectors && sector + sectors <= sizes[disk]);
        assert_int_equal(sector / RANGE, (sector + sectors - 1) / RANGE);
        for (i = 0; i < (sectors + BLKLOG_PART_SECTORS - 1) / BLKLOG_PART_SECTORS; i++) {
            due[sector / BLKLOG_PART_SECTORS + i] = true;
            count++;
        }
        bytes += sectors * 512ull;
        sector += sectors;
    }
    assert_int_equal(sector, sizes[disk]);
    assert_int_equal(blklog_due_bytes(l, disk), bytes);
    return count;
}

static void compare_all(struct blklog *l, uint32_t disk)
{
    uint64_t sector = 0;
    uint32_t sectors;

    while (blklog_next(l, disk, RANGE, &sector, &sectors)) {
        blklog_compared(l, disk, sector, sectors);
        sector += sectors;
    }
}

static void everything_is_due_of_disks_that_were_never_compared(void **state)
{
    void *memory = new_memory();
    struct blklog *l = open_log(memory);
    bool due[PARTS];

    (void)state;
    assert_int_equal(due_parts(l, 0, due), PARTS);
    assert_int_equal(blklog_due_bytes(l, 0), sizes[0] * 512);
    assert_int_equal(due_parts(l, 1, due), 1);
    compare_all(l, 0);
    assert_int_equal(due_parts(l, 0, due), 0);
    assert_int_equal(due_parts(l, 1, due), 1);
    blklog_free(l);
    /* It is not safe at the other host before that has said so. */
    l = open_log(memory);
    assert_int_equal(due_parts(l, 0, due), PARTS);
    blklog_free(l);
    free(memory);
}

static void what_the_other_host_has_safely_is_not_due_again(void **state)
{
    void *memory = new_memory();
    struct blklog *l = open_log(memory);
    bool due[PARTS];

    (void)state;
    compare_all(l, 0);
    blklog_turn(l);
    blklog_mark_new(l, 0, 5 * BLKLOG_PART_SECTORS + 1, BLKLOG_PART_SECTORS);
    blklog_safe(l);
    blklog_mark_new(l, 0, sizes[0] - 1, 1);
    blklog_free(l);
    l = open_log(memory);
    assert_int_equal(due_parts(l, 0, due), 3);
    assert_true(due[5] && due[6] && due[PARTS - 1]);
    blklog_free(l);
    free(memory);
}

static void another_other_disk_makes_everything_due(void **state)
{
    uint8_t relation[BLKLOG_RELATION_BYTES] = "of these two 12", found[BLKLOG_RELATION_BYTES];
    void *memory = new_memory();
    struct blklog *l = open_log(memory);
    bool due[PARTS];

    (void)state;
    compare_all(l, 0);
    blklog_turn(l);
    blklog_safe(l);
    blklog_relate(l, 0, relation);
    blklog_free(l);
    l = open_log(memory);
    blklog_relation(l, 0, found);
    assert_memory_equal(found, relation, sizeof(found));
    assert_int_equal(due_parts(l, 0, due), PARTS);
    blklog_free(l);
    free(memory);
}

static void a_log_of_other_disks_is_refused(void **state)
{
    const uint64_t larger[DISKS] = { sizes[0] + 1, sizes[1] };
    const size_t bytes = blklog_bytes(sizes, DISKS);
    uint64_t *memory = new_memory();
    struct blklog *l;

    (void)state;
    assert_int_equal(blklog_open(&l, memory, bytes, larger, DISKS), -EINVAL);
    assert_int_equal(blklog_open(&l, memory, bytes, sizes, 1), -EINVAL);
    assert_int_equal(blklog_open(&l, memory, bytes - 1, sizes, DISKS), -EINVAL);
    memory[0]++;
    assert_int_equal(blklog_open(&l, memory, bytes, sizes, DISKS), -EINVAL);
    assert_null(l);
    free(memory);
}

/* A part is the same on both hosts unless it is written; whoever notes dies again and again. */
static void whatever_happens_what_differs_is_due(void **state)
{
    bool due[PARTS], differs[PARTS], unsafe[PARTS], old[PARTS];
    void *memory = new_memory();
    struct blklog *l = open_log(memory);
    bool turned = false;
    uint32_t round, i, slack = 0;

    (void)state;
    srand(1);
    memset(differs, 1, sizeof(differs));
    memset(unsafe, 0, sizeof(unsafe));
    memset(old, 0, sizeof(old));
    for (round = 0; round < 20000; round++) {
        const uint64_t part = (uint64_t)rand() % PARTS, first = part * BLKLOG_PART_SECTORS;
        const uint64_t last = first + BLKLOG_PART_SECTORS < sizes[0] ? BLKLOG_PART_SECTORS
                              : sizes[0] - first;
        uint64_t sector = first;
        uint32_t sectors;

        switch (rand() % 8) {
        case 0:                     /* written while the other host is away */
            blklog_mark_due(l, 0, first + (uint64_t)rand() % last, 1);
            differs[part] = true;
            break;
        case 1:                     /* written and sent */
        case 2:
            blklog_mark_new(l, 0, first, last);
            unsafe[part] = true;
            break;
        case 3:                     /* compared, from somewhere on */
        case 4:
            if (blklog_next(l, 0, RANGE, &sector, &sectors)) {
                blklog_compared(l, 0, sector, sectors);
                for (i = 0; i < (sectors + BLKLOG_PART_SECTORS - 1) / BLKLOG_PART_SECTORS; i++) {
                    unsafe[sector / BLKLOG_PART_SECTORS + i] |=
                        differs[sector / BLKLOG_PART_SECTORS + i];
                    differs[sector / BLKLOG_PART_SECTORS + i] = false;
                }
            }
            break;
        case 5:
            if (!turned) {
                blklog_turn(l);
                memcpy(old, unsafe, sizeof(old));
                memset(unsafe, 0, sizeof(unsafe));
                turned = true;
            }
            break;
        case 6:
            if (turned) {
                blklog_safe(l);
                memset(old, 0, sizeof(old));
                turned = false;
            }
            break;
        case 7:
            if (rand() % 16) {
                break;
            }
            blklog_free(l);
            l = open_log(memory);
            for (i = 0; i < PARTS; i++) {
                differs[i] |= unsafe[i] || old[i];
            }
            memset(unsafe, 0, sizeof(unsafe));
            memset(old, 0, sizeof(old));
            turned = false;
            due_parts(l, 0, due);
            for (i = 0; i < PARTS; i++) {
                assert_true(due[i] || !differs[i]);
                slack += due[i] && !differs[i];
            }
            break;
        }
    }
    /* And not much more: what was found equal before the other host said that it has it safely. */
    assert_true(slack < 1000 * PARTS / 4);
    blklog_free(l);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_is_due_of_disks_that_were_never_compared),
        cmocka_unit_test(what_the_other_host_has_safely_is_not_due_again),
        cmocka_unit_test(another_other_disk_makes_everything_due),
        cmocka_unit_test(a_log_of_other_disks_is_refused),
        cmocka_unit_test(whatever_happens_what_differs_is_due),
    };

    return cmocka_run_group_tests_name("blklog", tests, NULL, NULL);
}
