/* LINK: tools/libxl/remus_disk.c tools/libxl/remus_diskrec.c tools/remus/blkring.c */
/* What a guest's disks are to whoever has no session: a xenstore of one disk, and real records. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <xenstore.h>

#include "tools/libxl/remus_disk.h"
#include "tools/libxl/remus_diskrec.h"
#include "tools/libxl/remus_run.h"

static char directory[64], path[80];

uint64_t remus_run_now_us(void)
{
    return 0;
}

void *xs_read(struct xs_handle *xs, xs_transaction_t t, const char *node, unsigned int *length)
{
    (void)xs;
    (void)t;
    (void)length;
    return !strcmp(node, "/local/domain/0/backend/vbd/5/51712/params") ? strdup(path) : NULL;
}

/* libxenstore's answer: one piece of memory. */
char **xs_directory(struct xs_handle *xs, xs_transaction_t t, const char *node, unsigned int *count)
{
    char **names;

    (void)xs;
    (void)t;
    if (strcmp(node, "/local/domain/0/backend/vbd/5")) {
        return NULL;
    }
    names = malloc(sizeof(*names) + 8);
    assert_non_null(names);
    names[0] = strcpy((char *)(names + 1), "51712");
    *count = 1;
    return names;
}

static void a_disk_that_is_disowned_is_not_known_any_more(void **state)
{
    const uint8_t ours[BLKLOG_RELATION_BYTES] = "of these two 12";
    uint8_t relation[BLKLOG_RELATION_BYTES];
    char why[REMUS_DISKREC_WHY_BYTES];
    int fd;

    (void)state;
    snprintf(directory, sizeof(directory), "/tmp/disk-XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/g1.img", directory);
    fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(remus_diskrec_close(directory, path, fd, ours), 0);
    assert_int_equal(remus_disks_disown(NULL, 6, directory), 0);
    assert_int_equal(remus_diskrec_check(directory, path, fd, relation, why), 0);
    assert_int_equal(remus_disks_disown(NULL, 5, directory), 0);
    assert_int_equal(remus_diskrec_check(directory, path, fd, relation, why), -ENOENT);
    close(fd);
    unlink(path);
    assert_int_equal(rmdir(directory), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_disk_that_is_disowned_is_not_known_any_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
