/* LINK: tools/libxl/remus_diskrec.c */
/* What is kept about a copy's disk, with real files, and with what may happen to them between
 * sessions. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/libxl/remus_diskrec.h"

static const uint8_t ours[BLKLOG_RELATION_BYTES] = "of these two 12";

struct fixture {
    char directory[64], path[80], record[400];
    int fd;
    uint8_t relation[BLKLOG_RELATION_BYTES];
    char why[REMUS_DISKREC_WHY_BYTES];
};

/* In the place of libc's: how long this host is up, and what it takes for the time. */
static int64_t up_ns, ahead_ns;

int clock_gettime(clockid_t clock, struct timespec *t)
{
    int rc = (int)syscall(SYS_clock_gettime, clock, t);
    int64_t ns = (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;

    if (!rc && clock == CLOCK_BOOTTIME && up_ns) {
        ns = up_ns;
    } else if (!rc && clock == CLOCK_REALTIME) {
        ns += ahead_ns;
    }
    t->tv_sec = ns / 1000000000;
    t->tv_nsec = ns % 1000000000;
    return rc;
}

/* ... and a block device in the place of the file: one that the kernel has and nobody uses, if its
 * numbers are not 0. */
static unsigned int device_major, device_minor;
static uint64_t device_sequence;

int statx(int fd, const char *path, int flags, unsigned int mask, struct statx *st)
{
    int rc = (int)syscall(SYS_statx, fd, path, flags, mask, st);

    if (!rc && device_major) {
        st->stx_mode = S_IFBLK | 0600;
        st->stx_rdev_major = device_major;
        st->stx_rdev_minor = device_minor;
    }
    return rc;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list args;

    (void)fd;
    va_start(args, request);
    *va_arg(args, uint64_t *) = request == BLKGETDISKSEQ ? device_sequence : 1 << 20;
    va_end(args);
    return 0;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    snprintf(f->directory, sizeof(f->directory), "/tmp/diskrec-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    snprintf(f->path, sizeof(f->path), "%s/g1.img", f->directory);
    f->fd = open(f->path, O_RDWR | O_CREAT, 0600);
    assert_true(f->fd >= 0);
    assert_int_equal(ftruncate(f->fd, 1 << 20), 0);
    up_ns = ahead_ns = 0;
    device_major = 0;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[128];
    DIR *dir = opendir(f->directory);
    struct dirent *entry;

    while (dir && (entry = readdir(dir))) {
        snprintf(command, sizeof(command), "%.60s/%.60s", f->directory, entry->d_name);
        unlink(command);
    }
    closedir(dir);
    rmdir(f->directory);
    close(f->fd);
    free(f);
    return 0;
}

static int check(struct fixture *f)
{
    return remus_diskrec_check(f->directory, f->path, f->fd, f->relation, f->why);
}

static void write_to(const struct fixture *f)
{
    usleep(20000);                  /* a tick, by which the kernel counts a file's times */
    assert_int_equal(pwrite(f->fd, "x", 1, 4096), 1);
}

/* The record as text, changed by sed-like replacement of the value of one word. */
static void change(struct fixture *f, const char *word, const char *value)
{
    char text[2048] = "", out[2304] = "", *line, *rest;
    DIR *dir = opendir(f->directory);
    struct dirent *entry;
    FILE *file;

    while ((entry = readdir(dir))) {
        if (!strncmp(entry->d_name, "disk-", 5)) {
            snprintf(f->record, sizeof(f->record), "%s/%s", f->directory, entry->d_name);
        }
    }
    closedir(dir);
    file = fopen(f->record, "r");
    assert_non_null(file);
    assert_true(fread(text, 1, sizeof(text) - 1, file) > 0);
    fclose(file);
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        size_t length = strlen(word), at = strlen(out);

        if (!strncmp(line, word, length) && (line[length] == ' ' || !line[length])) {
            if (value) {
                snprintf(out + at, sizeof(out) - at, "%s %s\n", word, value);
            }
        } else {
            snprintf(out + at, sizeof(out) - at, "%s\n", line);
        }
    }
    file = fopen(f->record, "w");
    assert_non_null(file);
    fputs(out, file);
    fclose(file);
}

static void a_disk_that_was_left_in_order_is_known(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(check(f), -ENOENT);
    assert_int_equal(remus_diskrec_open(f->directory, f->path, f->fd, ours), 0);
    write_to(f);
    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    assert_int_equal(check(f), 0);
    assert_memory_equal(f->relation, ours, sizeof(ours));
    /* A boot does not change it. */
    change(f, "boot", "another");
    assert_int_equal(check(f), 0);
    assert_int_equal(remus_diskrec_remove(f->directory, f->path), 0);
    assert_int_equal(check(f), -ENOENT);
    assert_int_equal(remus_diskrec_remove(f->directory, f->path), 0);
}

static void a_disk_that_somebody_wrote_to_is_not(void **state)
{
    struct fixture *f = *state;
    struct timespec times[2];
    struct stat st;

    assert_int_equal(fstat(f->fd, &st), 0);
    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    write_to(f);
    assert_int_equal(check(f), -ESTALE);
    assert_string_equal(f->why, "it was changed since");
    /* Nor with its old time of modification. */
    times[0] = st.st_atim;
    times[1] = st.st_mtim;
    assert_int_equal(futimens(f->fd, times), 0);
    assert_int_equal(check(f), -ESTALE);
}

static void who_writes_at_once_is_seen_too(void **state)
{
    struct fixture *f = *state;
    unsigned int i;

    for (i = 0; i < 50; i++) {
        assert_int_equal(pwrite(f->fd, "x", 1, 4096), 1);
        assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
        assert_int_equal(pwrite(f->fd, "y", 1, 4096), 1);
        assert_int_equal(check(f), -ESTALE);
    }
}

static void another_file_in_its_place_is_not(void **state)
{
    struct fixture *f = *state;
    char other[96];

    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    snprintf(other, sizeof(other), "%s.other", f->path);
    close(f->fd);
    f->fd = open(other, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(f->fd, 1 << 20), 0);
    assert_int_equal(rename(other, f->path), 0);
    assert_int_equal(check(f), -ESTALE);
    assert_string_equal(f->why, "it is another file");
    assert_int_equal(ftruncate(f->fd, 1 << 21), 0);
    assert_int_equal(check(f), -ESTALE);
    assert_string_equal(f->why, "it is another disk");
}

static bool find_idle_device(void)
{
    for (device_minor = 0; device_minor < 8; device_minor++) {
        char path[64];

        snprintf(path, sizeof(path), "/sys/dev/block/7:%u/loop", device_minor);
        if (access(path, F_OK)) {
            snprintf(path, sizeof(path), "/sys/dev/block/7:%u/stat", device_minor);
            device_major = access(path, R_OK) ? 0 : 7;
            if (device_major) {
                return true;
            }
        }
    }
    return false;
}

/* Such as a logical volume that was inactive, and merged with a snapshot: what was written to it is
 * counted from nothing. */
static void a_device_that_was_away_is_not_known(void **state)
{
    struct fixture *f = *state;

    if (!find_idle_device()) {
        skip();                     /* there is no loop device that is not in use */
    }
    device_sequence = 8;
    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    assert_int_equal(check(f), 0);
    device_sequence = 9;
    assert_int_equal(check(f), -ESTALE);
    assert_string_equal(f->why, "it is another device, or was removed meanwhile");
}

static void a_killed_session_proves_nothing_in_the_same_boot(void **state)
{
    struct fixture *f = *state;

    assert_false(remus_diskrec_is_open(f->directory, f->path));
    assert_int_equal(remus_diskrec_open(f->directory, f->path, f->fd, ours), 0);
    assert_int_equal(check(f), -ESTALE);
    assert_true(remus_diskrec_is_open(f->directory, f->path));
    change(f, "boot", "another");
    assert_false(remus_diskrec_is_open(f->directory, f->path));
    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    assert_false(remus_diskrec_is_open(f->directory, f->path));
}

/* As the host finds it when its power is back: it was up for a moment only. */
static void after_a_loss_of_power_only_what_we_may_have_written_is_accepted(void **state)
{
    struct fixture *f = *state;
    struct stat st;

    assert_int_equal(remus_diskrec_open(f->directory, f->path, f->fd, ours), 0);
    write_to(f);
    change(f, "boot", "another");
    /* This boot was before that. */
    assert_int_equal(check(f), -ESTALE);
    assert_string_equal(f->why, "it was changed since this host lost it");
    usleep(20000);
    up_ns = 1000000;
    assert_int_equal(check(f), 0);
    assert_memory_equal(f->relation, ours, sizeof(ours));
    /* A minute later in that boot, when nobody renewed the record any more. */
    assert_int_equal(fstat(f->fd, &st), 0);
    ahead_ns = -60 * 1000000000ll;
    assert_int_equal(remus_diskrec_open(f->directory, f->path, f->fd, ours), 0);
    ahead_ns = 0;
    write_to(f);
    usleep(20000);
    change(f, "boot", "another");
    assert_int_equal(check(f), -ESTALE);
    /* Had it been, that would be our own. */
    assert_int_equal(remus_diskrec_renew(f->directory, f->path), 0);
    assert_int_equal(check(f), 0);
    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    assert_int_equal(remus_diskrec_renew(f->directory, f->path), -EINVAL);
    assert_int_equal(remus_diskrec_remove(f->directory, f->path), 0);
    assert_int_equal(remus_diskrec_renew(f->directory, f->path), -ENOENT);
}

static void a_damaged_record_is_none(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    change(f, "end", NULL);
    assert_int_equal(check(f), -ESTALE);
    assert_string_equal(f->why, "what is recorded of it cannot be read");
    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    change(f, "relation", "6f6e");
    assert_int_equal(check(f), -ESTALE);
    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    change(f, "path", "/elsewhere");
    assert_int_equal(check(f), -ESTALE);
    assert_int_equal(remus_diskrec_close(f->directory, f->path, f->fd, ours), 0);
    change(f, "version", "99");
    assert_int_equal(check(f), -ESTALE);
}

static void what_cannot_be_recorded_is_an_error(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(remus_diskrec_open("/nowhere", f->path, f->fd, ours), -ENOENT);
    assert_int_equal(remus_diskrec_close(f->directory, f->path, -1, ours), -EBADF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(a_disk_that_was_left_in_order_is_known),
        TEST(a_disk_that_somebody_wrote_to_is_not),
        TEST(who_writes_at_once_is_seen_too),
        TEST(another_file_in_its_place_is_not),
        TEST(a_device_that_was_away_is_not_known),
        TEST(a_killed_session_proves_nothing_in_the_same_boot),
        TEST(after_a_loss_of_power_only_what_we_may_have_written_is_accepted),
        TEST(a_damaged_record_is_none),
        TEST(what_cannot_be_recorded_is_an_error),
    };

    return cmocka_run_group_tests_name("diskrec", tests, NULL, NULL);
}
