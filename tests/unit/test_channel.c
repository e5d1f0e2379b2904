/* LINK: tools/remus/channel.c */
/* Framing of the packet channel: order, bounds, back-pressure, and what is refused. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/remus/channel.h"

#define VIFS 3u

struct seen {
    unsigned int frames;
    uint64_t bytes;
    struct remus_packet last;
    uint8_t payload[REMUS_PACKET_MAX];
    uint64_t next_check;         /* frames carry a counter in their first 8 bytes */
    bool counting;
    int result;                  /* what the callback returns */
    struct channel *pause_at_once;
};

struct ends {
    struct channel *primary, *secondary;
    struct seen at_primary, at_secondary;
};

static struct ends ends;
static uint8_t frame_bytes[REMUS_PACKET_MAX + 8];

static int see(void *arg, const struct remus_packet *head, const uint8_t *payload)
{
    struct seen *seen = arg;

    seen->frames++;
    seen->bytes += head->length;
    seen->last = *head;
    memcpy(seen->payload, payload, head->length);
    if (seen->counting) {
        uint64_t number;

        memcpy(&number, payload, sizeof(number));
        assert_int_equal(number, seen->next_check);
        seen->next_check++;
    }
    if (seen->pause_at_once) {
        channel_pause(seen->pause_at_once, true);
    }
    return seen->result;
}

static int setup_sized(void **state, size_t out_max, size_t high, size_t low)
{
    struct channel_options options = {
        .role = CHANNEL_PRIMARY, .vifs = VIFS, .out_max = out_max, .out_high = high, .out_low = low,
    };
    int fds[2];

    memset(&ends, 0, sizeof(ends));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(channel_new(&ends.primary, fds[0], &options), 0);
    options.role = CHANNEL_SECONDARY;
    assert_int_equal(channel_new(&ends.secondary, fds[1], &options), 0);
    *state = &ends;
    return 0;
}

static int setup(void **state)
{
    return setup_sized(state, 0, 0, 0);
}

static int setup_small(void **state)
{
    return setup_sized(state, 200000, 100000, 50000);
}

static int teardown(void **state)
{
    (void)state;
    channel_free(ends.primary);
    channel_free(ends.secondary);
    return 0;
}

static struct remus_packet input_head(uint32_t length)
{
    return (struct remus_packet){ .length = length, .type = REMUS_PACKET_INPUT, .vif = 1,
                                  .epoch = 7 };
}

static int send_bytes(struct channel *ch, struct remus_packet head)
{
    const struct iovec iov = { .iov_base = frame_bytes, .iov_len = head.length };

    return channel_send(ch, &head, &iov, 1);
}

/* As a loop around poll does it, for some rounds. */
static int read_end(struct channel *ch, struct seen *seen)
{
    struct pollfd fd = { .fd = channel_fd(ch), .events = POLLIN };
    unsigned int rounds = 50;
    int rc;

    do {
        rc = channel_read(ch, see, seen, 1000000);
    } while (!rc && poll(&fd, 1, 0) == 1 && --rounds);
    return rc;
}

static int read_secondary(void)
{
    return read_end(ends.secondary, &ends.at_secondary);
}

static int read_primary(void)
{
    return read_end(ends.primary, &ends.at_primary);
}

static void a_frame_arrives_with_all_its_fields(void **state)
{
    struct remus_packet head = input_head(100);
    struct iovec iov[3];

    (void)state;
    memset(frame_bytes, 'a', sizeof(frame_bytes));
    head.flags = REMUS_PACKET_F_CSUM_PARTIAL | REMUS_PACKET_F_GSO;
    head.gso_size = 1448;
    head.epoch = 0x1122334455667788ull;
    iov[0] = (struct iovec){ .iov_base = frame_bytes, .iov_len = 14 };
    iov[1] = (struct iovec){ .iov_base = frame_bytes + 14, .iov_len = 0 };
    iov[2] = (struct iovec){ .iov_base = frame_bytes + 14, .iov_len = 86 };
    assert_int_equal(channel_send(ends.primary, &head, iov, 3), 0);
    assert_int_equal(read_secondary(), 0);
    assert_int_equal(ends.at_secondary.frames, 0); /* not flushed */
    assert_true(channel_wants_write(ends.primary));
    assert_int_equal(channel_flush(ends.primary), 0);
    assert_false(channel_wants_write(ends.primary));
    assert_int_equal(read_secondary(), 0);
    assert_int_equal(ends.at_secondary.frames, 1);
    assert_memory_equal(&ends.at_secondary.last, &head, sizeof(head));
    assert_memory_equal(ends.at_secondary.payload, frame_bytes, 100);
}

static void output_ids_must_rise_for_each_vif(void **state)
{
    struct remus_packet head = { .length = 60, .type = REMUS_PACKET_OUTPUT, .id = 0 };

    (void)state;
    assert_int_equal(send_bytes(ends.secondary, head), -EINVAL);
    head.id = 1;
    assert_int_equal(send_bytes(ends.secondary, head), 0);
    assert_int_equal(send_bytes(ends.secondary, head), -EINVAL);
    head.vif = 2;
    assert_int_equal(send_bytes(ends.secondary, head), 0);
    head.id = 5;
    assert_int_equal(send_bytes(ends.secondary, head), 0);
    assert_int_equal(channel_flush(ends.secondary), 0);
    assert_int_equal(read_primary(), 0);
    assert_int_equal(ends.at_primary.frames, 3);
    assert_int_equal(ends.at_primary.last.id, 5);
}

static void matched_ids_are_cut_into_frames(void **state)
{
    uint64_t ids[CHANNEL_MATCHED_MAX + 1];
    size_t i;

    (void)state;
    for (i = 0; i < CHANNEL_MATCHED_MAX + 1; i++) {
        ids[i] = (i << 33) + i;
    }
    assert_int_equal(channel_send_matched(ends.primary, 1, 4, ids, 0), 0);
    assert_false(channel_wants_write(ends.primary));
    assert_int_equal(channel_send_matched(ends.primary, 1, 4, ids, CHANNEL_MATCHED_MAX + 1), 0);
    assert_int_equal(channel_flush(ends.primary), 0);
    assert_int_equal(read_secondary(), 0);
    assert_int_equal(ends.at_secondary.frames, 2);
    assert_int_equal(channel_matched_count(&ends.at_secondary.last), 1);
    assert_true(channel_matched_id(ends.at_secondary.payload, 0) == ids[CHANNEL_MATCHED_MAX]);
    assert_int_equal(ends.at_secondary.bytes, 8 * (CHANNEL_MATCHED_MAX + 1));
}

static void a_flow_arrives_in_host_order(void **state)
{
    struct remus_flow flow = { .guest_port = 0x1234, .peer_port = 0x5678,
                               .primary_isn = 0xdeadbeef, .vlan = { 12, 0xffff } };
    struct remus_flow got;

    (void)state;
    flow.guest_addr[15] = 9;
    assert_int_equal(channel_send_flow(ends.primary, 0, 3, &flow), 0);
    assert_int_equal(channel_flush(ends.primary), 0);
    assert_int_equal(read_secondary(), 0);
    assert_int_equal(ends.at_secondary.last.type, REMUS_PACKET_FLOW);
    channel_flow_get(ends.at_secondary.payload, &got);
    assert_memory_equal(&got, &flow, sizeof(flow));
}

static void a_ping_is_answered_inside(void **state)
{
    struct remus_packet head = { .length = 5, .type = REMUS_PACKET_PING };

    (void)state;
    memcpy(frame_bytes, "12345", 5);
    assert_int_equal(send_bytes(ends.primary, head), 0);
    assert_int_equal(channel_flush(ends.primary), 0);
    assert_int_equal(read_secondary(), 0);
    assert_int_equal(ends.at_secondary.frames, 0);
    assert_int_equal(channel_flush(ends.secondary), 0);
    assert_int_equal(read_primary(), 0);
    assert_int_equal(ends.at_primary.last.type, REMUS_PACKET_PONG);
    assert_memory_equal(ends.at_primary.payload, "12345", 5);
}

static void many_frames_of_all_sizes_keep_their_order(void **state)
{
    uint64_t number = 0;
    unsigned int seed = 1;

    (void)state;
    ends.at_secondary.counting = true;
    while (number < 3000) {
        struct remus_packet head = input_head(14 + (uint32_t)rand_r(&seed) %
                                              (rand_r(&seed) % 8 ? 1500 : REMUS_PACKET_MAX - 14));
        int rc;

        if (number % 500 == 0) {
            head.length = REMUS_PACKET_MAX;
        }
        memcpy(frame_bytes, &number, sizeof(number));
        rc = send_bytes(ends.primary, head);
        if (rc == -ENOBUFS) {
            /* Bounded: the refused frame is sent again when some have been read. */
            assert_int_equal(channel_flush(ends.primary), 0);
            assert_int_equal(channel_read(ends.secondary, see, &ends.at_secondary, 3), 0);
            continue;
        }
        assert_int_equal(rc, 0);
        number++;
        if (rand_r(&seed) % 4 == 0) {
            assert_int_equal(channel_flush(ends.primary), 0);
        }
    }
    while (ends.at_secondary.frames < number) {
        assert_int_equal(channel_flush(ends.primary), 0);
        assert_int_equal(channel_read(ends.secondary, see, &ends.at_secondary, 7), 0);
    }
    assert_int_equal(ends.at_secondary.frames, number);
}

static void a_budget_leaves_frames_pending(void **state)
{
    unsigned int i;

    (void)state;
    for (i = 0; i < 5; i++) {
        assert_int_equal(send_bytes(ends.primary, input_head(100)), 0);
    }
    assert_int_equal(channel_flush(ends.primary), 0);
    assert_false(channel_pending(ends.secondary));
    assert_int_equal(channel_read(ends.secondary, see, &ends.at_secondary, 2), 0);
    assert_int_equal(ends.at_secondary.frames, 2);
    assert_true(channel_pending(ends.secondary));
    assert_int_equal(channel_read(ends.secondary, see, &ends.at_secondary, 3), 0);
    assert_int_equal(ends.at_secondary.frames, 5);
    /* Whether more has come since then was not looked at, and the kernel may have told of it. */
    assert_true(channel_pending(ends.secondary));
    assert_int_equal(channel_read(ends.secondary, see, &ends.at_secondary, 3), 0);
    assert_int_equal(ends.at_secondary.frames, 5);
    assert_false(channel_pending(ends.secondary));
}

/* With an edge-triggered set nothing else would ask for the rest. */
static void what_a_budget_leaves_in_the_socket_is_pending(void **state)
{
    unsigned int i, rounds;

    (void)state;
    for (i = 0; i < 3; i++) {
        assert_int_equal(send_bytes(ends.primary, input_head(REMUS_PACKET_MAX)), 0);
        assert_int_equal(channel_flush(ends.primary), 0);
    }
    assert_int_equal(channel_read(ends.secondary, see, &ends.at_secondary, 1), 0);
    for (rounds = 0; channel_pending(ends.secondary) && rounds < 100; rounds++) {
        assert_int_equal(channel_read(ends.secondary, see, &ends.at_secondary, 1), 0);
        assert_int_equal(channel_flush(ends.primary), 0);
    }
    assert_int_equal(ends.at_secondary.frames, 3);
    assert_false(channel_pending(ends.secondary));
}

static void a_pause_holds_frames_back(void **state)
{
    (void)state;
    assert_int_equal(send_bytes(ends.primary, input_head(100)), 0);
    assert_int_equal(send_bytes(ends.primary, input_head(101)), 0);
    assert_int_equal(channel_flush(ends.primary), 0);
    ends.at_secondary.pause_at_once = ends.secondary;
    assert_int_equal(read_secondary(), 0);
    assert_int_equal(ends.at_secondary.frames, 1);
    assert_int_equal(read_secondary(), 0);
    assert_int_equal(ends.at_secondary.frames, 1);
    assert_false(channel_pending(ends.secondary));
    channel_pause(ends.secondary, false);
    assert_true(channel_pending(ends.secondary));
    assert_int_equal(read_secondary(), 0);
    assert_int_equal(ends.at_secondary.frames, 2);
}

static void the_callers_error_ends_reading(void **state)
{
    (void)state;
    assert_int_equal(send_bytes(ends.primary, input_head(100)), 0);
    assert_int_equal(send_bytes(ends.primary, input_head(100)), 0);
    assert_int_equal(channel_flush(ends.primary), 0);
    ends.at_secondary.result = -ENOSPC;
    assert_int_equal(read_secondary(), -ENOSPC);
    assert_int_equal(ends.at_secondary.frames, 1);
}

static void congestion_begins_high_and_ends_low(void **state)
{
    const int buffer = 4096;
    struct channel_stats stats;

    (void)state;
    setsockopt(channel_fd(ends.primary), SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    assert_int_equal(send_bytes(ends.primary, input_head(60000)), 0);
    assert_false(channel_congested(ends.primary));
    assert_int_equal(send_bytes(ends.primary, input_head(60000)), 0);
    assert_true(channel_congested(ends.primary));
    assert_int_equal(send_bytes(ends.primary, input_head(60000)), 0);
    assert_int_equal(send_bytes(ends.primary, input_head(60000)), -ENOBUFS);
    assert_true(channel_error(ends.primary)[0]);
    while (channel_wants_write(ends.primary)) {
        assert_int_equal(channel_flush(ends.primary), 0);
        channel_stats_get(ends.primary, &stats);
        if (stats.out_queued > 50000) {
            assert_true(channel_congested(ends.primary));
        } else {
            assert_false(channel_congested(ends.primary));
        }
        assert_int_equal(read_secondary(), 0);
    }
    channel_stats_get(ends.primary, &stats);
    assert_int_equal(stats.congestions, 1);
    assert_int_equal(stats.out_queued_max, 3 * (60000 + sizeof(struct remus_packet)));
    assert_int_equal(ends.at_secondary.frames, 3);
}

static void what_the_peer_would_refuse_is_not_sent(void **state)
{
    struct remus_packet head;

    (void)state;
#define REFUSED(...) do { \
        head = input_head(100); \
        __VA_ARGS__; \
        assert_int_equal(send_bytes(ends.primary, head), -EINVAL); \
        assert_true(channel_error(ends.primary)[0]); \
    } while (0)
    REFUSED(head.length = 13);
    REFUSED(head.length = REMUS_PACKET_MAX + 1);
    REFUSED(head.type = REMUS_PACKET_OUTPUT);
    REFUSED(head.type = 0);
    REFUSED(head.type = 99);
    REFUSED(head.vif = VIFS);
    REFUSED(head.flags = 4);
    REFUSED(head.flags = REMUS_PACKET_F_GSO);
    REFUSED(head.gso_size = 1448);
    REFUSED(head.id = 1);
    REFUSED(head.reserved[2] = 1);
    REFUSED(head.type = REMUS_PACKET_MATCHED; head.length = 12);
    REFUSED(head.type = REMUS_PACKET_PING; head.length = 65);
    REFUSED(head.type = REMUS_PACKET_FLOW; head.length = 47);
    REFUSED(head.type = REMUS_PACKET_SENT; head.length = CHANNEL_SENT_MIN - 1);
    REFUSED(head.type = REMUS_PACKET_SENT; head.length = CHANNEL_SENT_MAX + 1);
#undef REFUSED
    assert_false(channel_wants_write(ends.primary));
}

/* Hands wire bytes to the secondary's parser. */
static int feed(struct remus_packet head, size_t payload)
{
    uint8_t wire[sizeof(head) + 4096];

    memset(wire, 0, sizeof(wire));
    memcpy(wire, &head, sizeof(head));
    assert_int_equal(channel_feed(ends.secondary, wire, sizeof(head) + payload),
                     sizeof(head) + payload);
    return channel_deliver(ends.secondary, see, &ends.at_secondary, 100);
}

static void bad_headers_end_the_channel_before_their_payload_is_awaited(void **state)
{
    struct remus_packet head;

#define REFUSED(...) do { \
        head = input_head(100); \
        __VA_ARGS__; \
        assert_int_equal(feed(head, 0), -EPROTO); \
        assert_true(channel_error(ends.secondary)[0]); \
        teardown(state); \
        setup(state); \
    } while (0)
    REFUSED(head.length = 0xffffffffu);
    REFUSED(head.length = REMUS_PACKET_MAX + 1);
    REFUSED(head.length = 0);
    REFUSED(head.type = 0);
    REFUSED(head.type = 8);
    REFUSED(head.type = 255);
    REFUSED(head.type = REMUS_PACKET_OUTPUT; head.id = 1);
    REFUSED(head.type = REMUS_PACKET_PONG; head.length = 1);
    REFUSED(head.type = REMUS_PACKET_MATCHED; head.length = 0);
    REFUSED(head.type = REMUS_PACKET_MATCHED; head.length = 8 * CHANNEL_MATCHED_MAX + 8);
    REFUSED(head.vif = 255);
    REFUSED(head.flags = 0x8000);
    REFUSED(head.reserved[0] = 1);
#undef REFUSED
    assert_int_equal(feed(input_head(100), 50), 0);
    assert_int_equal(ends.at_secondary.frames, 0);
}

static void frames_cut_anywhere_arrive_whole(void **state)
{
    struct remus_packet head = input_head(200);
    uint8_t wire[2 * (sizeof(head) + 200)];
    size_t step, at;

    for (step = 1; step < sizeof(wire); step += 13) {
        memset(wire, 'w', sizeof(wire));
        memcpy(wire, &head, sizeof(head));
        memcpy(wire + sizeof(wire) / 2, &head, sizeof(head));
        for (at = 0; at < sizeof(wire); at += step) {
            const size_t n = sizeof(wire) - at < step ? sizeof(wire) - at : step;

            assert_int_equal(channel_feed(ends.secondary, wire + at, n), n);
            assert_int_equal(channel_deliver(ends.secondary, see, &ends.at_secondary, 10), 0);
        }
        assert_int_equal(ends.at_secondary.frames, 2);
        teardown(state);
        setup(state);
    }
}

static void the_end_of_the_stream_is_told_and_whether_a_frame_was_cut(void **state)
{
    struct remus_packet head = input_head(100);

    (void)state;
    assert_int_equal(send_bytes(ends.primary, head), 0);
    assert_int_equal(channel_flush(ends.primary), 0);
    assert_int_equal(write(channel_fd(ends.primary), &head, 20), 20);
    shutdown(channel_fd(ends.primary), SHUT_WR);
    assert_int_equal(read_secondary(), -EPIPE);
    assert_int_equal(ends.at_secondary.frames, 1);
    assert_non_null(strstr(channel_error(ends.secondary), "mid-frame"));
    shutdown(channel_fd(ends.secondary), SHUT_RDWR);
    assert_int_equal(read_primary(), -EPIPE);
    assert_null(strstr(channel_error(ends.primary), "mid-frame"));
    assert_int_equal(send_bytes(ends.primary, head), 0);
    assert_int_equal(channel_flush(ends.primary), -EPIPE);
}

static void limits_that_contradict_each_other_are_refused(void **state)
{
    const struct channel_options options = { .role = CHANNEL_PRIMARY, .vifs = 1, .out_max = 1000,
                                             .out_high = 2000, .out_low = 100 };
    struct channel *ch;

    (void)state;
    assert_int_equal(channel_new(&ch, -1, &options), -EINVAL);
    assert_null(ch);
    channel_free(NULL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_frame_arrives_with_all_its_fields),
        TEST(output_ids_must_rise_for_each_vif),
        TEST(matched_ids_are_cut_into_frames),
        TEST(a_flow_arrives_in_host_order),
        TEST(a_ping_is_answered_inside),
        cmocka_unit_test_setup_teardown(many_frames_of_all_sizes_keep_their_order, setup_small,
                                        teardown),
        TEST(a_budget_leaves_frames_pending),
        TEST(what_a_budget_leaves_in_the_socket_is_pending),
        TEST(a_pause_holds_frames_back),
        TEST(the_callers_error_ends_reading),
        cmocka_unit_test_setup_teardown(congestion_begins_high_and_ends_low, setup_small, teardown),
        TEST(what_the_peer_would_refuse_is_not_sent),
        TEST(bad_headers_end_the_channel_before_their_payload_is_awaited),
        TEST(frames_cut_anywhere_arrive_whole),
        TEST(the_end_of_the_stream_is_told_and_whether_a_frame_was_cut),
        TEST(limits_that_contradict_each_other_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
