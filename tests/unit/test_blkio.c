/* Disk I/O through the real io_uring of this machine, on files. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/remus/blkio.h"

#define DEPTH 8u
#define BYTES (1u << 20)

struct fixture {
    struct blkio *io;
    int fd;
    uint8_t *bytes;
};

struct waited {
    struct blkio_op op;
    struct iovec iov[256];
    int rc;
    unsigned int done;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    FILE *file = tmpfile();

    assert_non_null(f);
    assert_non_null(file);
    f->fd = dup(fileno(file));
    fclose(file);
    f->bytes = malloc(BYTES);
    assert_true(f->fd >= 0 && f->bytes);
    assert_int_equal(ftruncate(f->fd, BYTES), 0);
    assert_int_equal(blkio_new(&f->io, DEPTH, 2), 0);
    assert_int_equal(blkio_set_file(f->io, 1, f->fd), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    blkio_free(f->io);
    close(f->fd);
    free(f->bytes);
    free(f);
    return 0;
}

static void on_done(struct blkio_op *op, int rc)
{
    struct waited *w = op->arg;

    w->rc = rc;
    w->done++;
}

/* pieces: the buffer in so many equal parts. */
static void begin(struct fixture *f, struct waited *w, uint32_t file, enum blkio_type type,
                  uint64_t offset, uint64_t bytes, uint32_t pieces)
{
    uint32_t i;

    memset(w, 0, sizeof(*w));
    for (i = 0; i < pieces; i++) {
        w->iov[i].iov_base = f->bytes + i * (bytes / pieces);
        w->iov[i].iov_len = bytes / pieces;
    }
    w->op = (struct blkio_op){ .type = type, .file = file, .offset = offset, .bytes = bytes,
                               .iov = w->iov, .iovs = pieces, .done = on_done, .arg = w };
    assert_int_equal(blkio_begin(f->io, &w->op), 0);
}

static void wait_for(struct fixture *f, const struct waited *w)
{
    while (!w->done) {
        assert_int_equal(blkio_wait(f->io, 10000), 0);
        blkio_reap(f->io);
    }
    assert_int_equal(w->done, 1);
}

static int do_op(struct fixture *f, enum blkio_type type, uint64_t offset, uint64_t bytes,
                 uint32_t pieces)
{
    struct waited w;

    begin(f, &w, 1, type, offset, bytes, pieces);
    wait_for(f, &w);
    return w.rc;
}

static void what_is_written_in_pieces_is_read_in_others(void **state)
{
    struct fixture *f = *state;
    uint32_t i;

    for (i = 0; i < 65536; i++) {
        f->bytes[i] = (uint8_t)(i * 7 + i / 256);
    }
    assert_int_equal(do_op(f, BLKIO_WRITE, 4096, 65536, 16), 0);
    assert_int_equal(do_op(f, BLKIO_SYNC, 0, 0, 0), 0);
    memset(f->bytes, 0, 65536);
    assert_int_equal(do_op(f, BLKIO_READ, 4096, 65536, 128), 0);
    for (i = 0; i < 65536; i++) {
        assert_int_equal(f->bytes[i], (uint8_t)(i * 7 + i / 256));
    }
    assert_int_equal(blkio_busy(f->io), 0);
}

static void a_punched_range_reads_as_zeroes_and_the_file_keeps_its_size(void **state)
{
    struct fixture *f = *state;
    struct stat st;
    uint32_t i;

    memset(f->bytes, 0xaa, 65536);
    assert_int_equal(do_op(f, BLKIO_WRITE, BYTES - 65536, 65536, 1), 0);
    assert_int_equal(do_op(f, BLKIO_PUNCH, BYTES - 32768, 32768, 0), 0);
    assert_int_equal(do_op(f, BLKIO_READ, BYTES - 65536, 65536, 1), 0);
    for (i = 0; i < 65536; i++) {
        assert_int_equal(f->bytes[i], i < 32768 ? 0xaa : 0);
    }
    assert_int_equal(fstat(f->fd, &st), 0);
    assert_int_equal(st.st_size, BYTES);
}

static void no_more_than_depth_are_under_way(void **state)
{
    struct fixture *f = *state;
    struct waited w[DEPTH], more;
    uint32_t i;

    for (i = 0; i < DEPTH; i++) {
        begin(f, &w[i], 1, BLKIO_READ, 0, 4096, 1);
    }
    memset(&more, 0, sizeof(more));
    more.op = (struct blkio_op){ .type = BLKIO_SYNC, .file = 1, .done = on_done, .arg = &more };
    assert_int_equal(blkio_begin(f->io, &more.op), -EAGAIN);
    for (i = 0; i < DEPTH; i++) {
        wait_for(f, &w[i]);
        assert_int_equal(w[i].rc, 0);
    }
    assert_int_equal(blkio_begin(f->io, &more.op), 0);
    wait_for(f, &more);
}

static void errors_are_told_with_their_reason(void **state)
{
    struct fixture *f = *state;
    struct waited w;
    int fd;

    /* Beyond the end of the file, in whole and in part. */
    assert_int_equal(do_op(f, BLKIO_READ, BYTES, 4096, 1), -EIO);
    assert_int_equal(do_op(f, BLKIO_READ, BYTES - 2048, 4096, 2), -EIO);
    /* A full disk, and one that may not be written. */
    fd = open("/dev/full", O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(blkio_set_file(f->io, 0, fd), 0);
    close(fd);
    begin(f, &w, 0, BLKIO_WRITE, 0, 4096, 1);
    wait_for(f, &w);
    assert_int_equal(w.rc, -ENOSPC);
    fd = open("/dev/zero", O_RDONLY);
    assert_int_equal(blkio_set_file(f->io, 0, fd), 0);
    close(fd);
    begin(f, &w, 0, BLKIO_WRITE, 0, 4096, 1);
    wait_for(f, &w);
    assert_int_equal(w.rc, -EBADF);
    /* No file at all, and a slot that does not exist. */
    assert_int_equal(blkio_set_file(f->io, 0, -1), 0);
    begin(f, &w, 0, BLKIO_READ, 0, 4096, 1);
    wait_for(f, &w);
    assert_int_equal(w.rc, -EBADF);
    assert_int_equal(blkio_set_file(f->io, 2, f->fd), -EINVAL);
}

/* An operation on a stream in slot 0. */
static void begin_stream(struct fixture *f, struct waited *w, enum blkio_type type, void *bytes,
                         size_t count)
{
    memset(w, 0, sizeof(*w));
    w->iov[0] = (struct iovec){ bytes, count };
    w->op = (struct blkio_op){ .type = type, .iov = w->iov, .iovs = 1, .done = on_done, .arg = w };
    assert_int_equal(blkio_begin(f->io, &w->op), 0);
}

static void nothing_happens(struct fixture *f, const struct waited *w)
{
    assert_int_equal(blkio_wait(f->io, 20), 0);
    assert_int_equal(blkio_reap(f->io), 0);
    assert_int_equal(w->done, 0);
}

static void streams_are_waited_for_beside_disks(void **state)
{
    struct fixture *f = *state;
    struct waited w, disk;
    char text[8] = "";
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(blkio_set_file(f->io, 0, pair[0]), 0);
    begin_stream(f, &w, BLKIO_READABLE, NULL, 0);
    nothing_happens(f, &w);
    begin(f, &disk, 1, BLKIO_READ, 0, 4096, 1);
    wait_for(f, &disk);
    assert_int_equal(w.done, 0);
    assert_int_equal(blkio_busy(f->io), 0);
    assert_int_equal(write(pair[1], "a", 1), 1);
    wait_for(f, &w);
    assert_int_equal(w.rc, 0);
    /* It still is. */
    begin_stream(f, &w, BLKIO_READABLE, NULL, 0);
    wait_for(f, &w);
    begin_stream(f, &w, BLKIO_WRITABLE, NULL, 0);
    wait_for(f, &w);
    begin_stream(f, &w, BLKIO_TAKE, text, sizeof(text));
    wait_for(f, &w);
    assert_int_equal(w.rc, 1);
    assert_string_equal(text, "a");
    begin_stream(f, &w, BLKIO_TAKE, text, sizeof(text));
    nothing_happens(f, &w);
    assert_int_equal(write(pair[1], "bc", 2), 2);
    wait_for(f, &w);
    assert_int_equal(w.rc, 2);
    /* The other side's end is what a wait for it ends with as well. */
    begin_stream(f, &w, BLKIO_READABLE, NULL, 0);
    nothing_happens(f, &w);
    close(pair[1]);
    wait_for(f, &w);
    /* One that nothing comes of keeps nobody from ending. */
    close(pair[0]);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(blkio_set_file(f->io, 0, pair[0]), 0);
    begin_stream(f, &w, BLKIO_READABLE, NULL, 0);
    nothing_happens(f, &w);
    close(pair[0]);
    close(pair[1]);
}

/* What is given is not what is waited for: a wait that has begun with it goes on. */
static void what_is_given_does_not_end_a_wait(void **state)
{
    struct fixture *f = *state;
    struct waited give, take;
    char text[8] = "";
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(blkio_set_file(f->io, 0, pair[0]), 0);
    begin_stream(f, &give, BLKIO_GIVE, "ab", 2);
    begin_stream(f, &take, BLKIO_TAKE, text, sizeof(text));
    assert_int_equal(blkio_wait(f->io, 20), 0);
    assert_int_equal(blkio_reap(f->io), 1);
    assert_int_equal(give.rc, 2);
    assert_int_equal(read(pair[1], text, sizeof(text)), 2);
    assert_int_equal(write(pair[1], "c", 1), 1);
    begin_stream(f, &give, BLKIO_GIVE, "d", 1);
    assert_int_equal(blkio_wait(f->io, 10000), 0);
    blkio_reap(f->io);
    assert_int_equal(take.done, 1);
    assert_int_equal(take.rc, 1);
    wait_for(f, &give);
    assert_int_equal(give.rc, 1);
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(what_is_written_in_pieces_is_read_in_others),
        TEST(a_punched_range_reads_as_zeroes_and_the_file_keeps_its_size),
        TEST(no_more_than_depth_are_under_way),
        TEST(errors_are_told_with_their_reason),
        TEST(streams_are_waited_for_beside_disks),
        TEST(what_is_given_does_not_end_a_wait),
    };

    return cmocka_run_group_tests_name("blkio", tests, NULL, NULL);
}
