/* The disk channel's framing, over a socket pair and from bytes that are wrong. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/remus/blkchan.h"

struct ends {
    struct blkchan *primary, *secondary;
};

static struct ends new_ends(void)
{
    struct ends e;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(blkchan_new(&e.primary, pair[0], BLKCHAN_PRIMARY), 0);
    assert_int_equal(blkchan_new(&e.secondary, pair[1], BLKCHAN_SECONDARY), 0);
    return e;
}

static void free_ends(struct ends *e)
{
    blkchan_free(e->primary);
    blkchan_free(e->secondary);
}

static void writes_of_any_size_arrive_in_order(void **state)
{
    static uint8_t data[REMUS_DISK_BYTES_MAX];
    struct ends e = new_ends();
    uint32_t sent = 0, got = 0, bytes = 0;

    (void)state;
    while (got < 200) {
        uint32_t sectors = sent % 7 ? 1 + sent % 64 : REMUS_DISK_BYTES_MAX / 512;
        struct remus_disk_frame head = {
            .type = REMUS_DISK_WRITE, .disk = (uint8_t)(sent % 16), .epoch = sent,
            .sector = 1ull << 40 | sent, .sectors = sectors,
        };
        struct iovec iov[2] = { { data, 512 }, { data + 512, sectors * 512 - 512 } };
        const uint8_t *payload;

        memset(data, (int)sent, sizeof(data));
        if (sent < 200 && !blkchan_put(e.primary, &head, iov, 2)) {
            sent++;
        }
        assert_int_equal(blkchan_flush(e.primary), 0);
        blkchan_fill(e.secondary);
        while (blkchan_next(e.secondary, &head, &payload) == 1) {
            assert_int_equal(head.type, REMUS_DISK_WRITE);
            assert_int_equal(head.disk, got % 16);
            assert_int_equal(head.epoch, got);
            assert_int_equal(head.sector, 1ull << 40 | got);
            assert_int_equal(payload[0], (uint8_t)got);
            assert_int_equal(payload[head.length - 1], (uint8_t)got);
            bytes += head.length;
            got++;
        }
    }
    assert_int_equal(sent, 200);
    assert_false(blkchan_wants_write(e.primary));
    free_ends(&e);
}

static void what_does_not_fit_is_refused_whole(void **state)
{
    static uint8_t data[REMUS_DISK_BYTES_MAX];
    struct ends e = new_ends();
    struct remus_disk_frame head = {
        .type = REMUS_DISK_WRITE, .sectors = sizeof(data) / 512,
    };
    const struct iovec iov = { data, sizeof(data) };
    const uint8_t *payload;
    uint32_t sent = 0, got = 0;

    (void)state;
    while (!blkchan_put(e.primary, &head, &iov, 1)) {
        sent++;
    }
    assert_int_equal(sent, BLKCHAN_OUT_BYTES / sizeof(data) - 1);
    while (got < sent) {
        blkchan_flush(e.primary);
        blkchan_fill(e.secondary);
        while (blkchan_next(e.secondary, &head, &payload) == 1) {
            got++;
        }
    }
    assert_int_equal(blkchan_put(e.primary, &head, &iov, 1), 0);
    free_ends(&e);
}

static void the_end_of_the_other_side_is_told(void **state)
{
    struct ends e = new_ends();

    (void)state;
    assert_int_equal(blkchan_fill(e.secondary), -EAGAIN);
    blkchan_free(e.primary);
    assert_int_equal(blkchan_fill(e.secondary), -EPIPE);
    blkchan_free(e.secondary);
}

/* A frame as it would be sent, for a receiver that reads it from bytes. */
static size_t frame(uint8_t *out, struct remus_disk_frame head, const void *payload,
                    uint32_t length)
{
    const struct iovec iov = { (void *)payload, length };
    struct ends e = new_ends();
    ssize_t n;

    assert_int_equal(blkchan_put(e.primary, &head, &iov, length ? 1 : 0), 0);
    assert_int_equal(blkchan_flush(e.primary), 0);
    n = recv(blkchan_fd(e.secondary), out, 65536, 0);
    assert_true(n > 0);
    free_ends(&e);
    return (size_t)n;
}

static int receive(enum blkchan_role role, const uint8_t *bytes, size_t count)
{
    struct remus_disk_frame head;
    const uint8_t *payload;
    struct blkchan *ch;
    int rc;

    assert_int_equal(blkchan_new(&ch, -1, role), 0);
    assert_int_equal(blkchan_feed(ch, bytes, count), count);
    rc = blkchan_next(ch, &head, &payload);
    assert_int_equal(rc < 0, blkchan_error(ch)[0] != 0);
    blkchan_free(ch);
    return rc;
}

static void every_changed_byte_is_noticed(void **state)
{
    uint8_t bytes[65536], data[1024] = { 1, 2, 3 };
    size_t n = frame(bytes, (struct remus_disk_frame){ .type = REMUS_DISK_WRITE, .sectors = 2 },
                     data, sizeof(data)), i;

    (void)state;
    assert_int_equal(receive(BLKCHAN_SECONDARY, bytes, n), 1);
    assert_int_equal(receive(BLKCHAN_SECONDARY, bytes, n - 1), 0);
    for (i = 0; i < n; i++) {
        bytes[i] ^= 0x40;
        assert_int_equal(receive(BLKCHAN_SECONDARY, bytes, n), -EPROTO);
        bytes[i] ^= 0x40;
    }
}

static void frames_that_cannot_be_are_refused(void **state)
{
    static uint8_t data[4096];
    static const struct {
        enum blkchan_role role;
        struct remus_disk_frame head;
        uint32_t length;
        int wanted;
    } cases[] = {
        { BLKCHAN_SECONDARY, { .type = 0 }, 0, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = 99 }, 0, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_WRITE }, 0, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_WRITE, .sectors = 2 }, 512, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_WRITE, .sectors = 1, .sector = UINT64_MAX }, 512,
          -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_WRITE, .sectors = 1u << 23 }, 512, -EPROTO },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_WRITE, .sectors = 1 }, 512, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_OPEN }, sizeof(struct remus_disk_open), 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_OPEN }, 8, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_HASHES, .sectors = 256 }, 16, 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_HASHES, .sectors = 129 }, 16, 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_HASHES, .sectors = 128 }, 16, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_WANT }, 0, -EPROTO },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_WANT, .sectors = 3 }, 0, 1 },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_KNOWN, .sectors = 1 }, 0, 1 },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_SAFE }, 0, 1 },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_MARK }, 0, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_MARK }, 0, 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_SAFE }, 0, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_INTENT, .sector = 8192, .sectors = 8192 }, 0, 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_INTENT, .sector = 8, .sectors = 8192 }, 0,
          -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_COLD, .sectors = 8 }, 0, -EPROTO },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_BASE }, 0, 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_NOTED }, 0, -EPROTO },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_NOTED, .epoch = 3 }, 0, 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_RELATION }, 16, 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_RELATION }, 8, -EPROTO },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_CREDIT, .sector = 5 }, 0, 1 },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_CREDIT }, 8, -EPROTO },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_SYNCED }, 0, 1 },
        { BLKCHAN_SECONDARY, { .type = REMUS_DISK_EPOCH, .epoch = 3 }, 0, 1 },
        { BLKCHAN_PRIMARY, { .type = REMUS_DISK_EPOCH, .epoch = 3 }, 0, -EPROTO },
    };
    uint8_t bytes[65536];
    size_t i, n;

    (void)state;
    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        n = frame(bytes, cases[i].head, data, cases[i].length);
        assert_int_equal(receive(cases[i].role, bytes, n), cases[i].wanted);
    }
}

static void a_descriptor_that_is_none_is_told_by_its_error(void **state)
{
    struct blkchan *ch;

    (void)state;
    assert_int_equal(blkchan_new(&ch, 9999, BLKCHAN_PRIMARY), -EBADF);
    assert_null(ch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_of_any_size_arrive_in_order),
        cmocka_unit_test(what_does_not_fit_is_refused_whole),
        cmocka_unit_test(the_end_of_the_other_side_is_told),
        cmocka_unit_test(every_changed_byte_is_noticed),
        cmocka_unit_test(frames_that_cannot_be_are_refused),
        cmocka_unit_test(a_descriptor_that_is_none_is_told_by_its_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
