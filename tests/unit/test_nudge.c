/* Messages that undo the back-off of peers after a takeover. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/frames.h"
#include "tools/remus/nudge.h"

static struct nudge *n;
static uint8_t frame[FRAME_MAX], out[NUDGE_FRAME_MAX];

static int setup(void **state)
{
    (void)state;
    return nudge_new(&n, 7);
}

static int teardown(void **state)
{
    (void)state;
    nudge_free(n);
    return 0;
}

#define TCP(...) frame_tcp(frame, &(struct tcp_spec){ __VA_ARGS__ })

static void output(uint64_t now, size_t length)
{
    struct packet p;

    packet_parse(&p, frame, length);
    nudge_output(n, now, frame, &p);
}

static void input(size_t length)
{
    struct packet p;

    packet_parse(&p, frame, length);
    nudge_input(n, &p);
}

static unsigned int messages(uint64_t now)
{
    uint32_t cursor = 0;
    unsigned int count = 0;

    while (nudge_next(n, now, &cursor, out)) {
        count++;
    }
    return count;
}

static void the_segment_that_is_missing_is_quoted(void **state)
{
    uint32_t cursor = 0, length;
    struct packet p;

    (void)state;
    output(1000, TCP(.ip.vlan = {12}, .ack = 0x12345678));
    length = nudge_next(n, 2000, &cursor, out);
    assert_int_equal(packet_parse(&p, out, length), 0);
    assert_int_equal(p.kind, PACKET_ICMP);
    assert_int_equal(p.vlan[0], 12);
    assert_int_equal(p.end, length);
    assert_int_equal(p.src[15], 2);
    assert_int_equal(p.dst[15], 9);
    assert_true(packet_checksum_ok(out, &p));
    assert_int_equal(packet_fold(packet_sum(out + p.l3, 20, 0)), 0xffff);
    assert_int_equal(out[p.l4], 3);
    assert_int_equal(out[p.l4 + 1], 1);
    /* The quotation is as the peer sent it: addresses and ports the other way round. */
    assert_memory_equal(out + p.l4 + 8 + 12, "\x0a\0\0\x09\x0a\0\0\2", 8);
    assert_int_equal(packet_fold(packet_sum(out + p.l4 + 8, 20, 0)), 0xffff);
    assert_memory_equal(out + p.l4 + 28, "\x9c\x40\0\x50\x12\x34\x56\x78", 8);
    assert_int_equal(length, p.l4 + 36);
    assert_int_equal(nudge_next(n, 2000, &cursor, out), 0);
}

static void ipv6_has_its_own_message(void **state)
{
    uint32_t cursor = 0, length;
    struct packet p;

    (void)state;
    output(1000, TCP(.ip.v6 = true, .ack = 0x01020304));
    length = nudge_next(n, 2000, &cursor, out);
    assert_int_equal(packet_parse(&p, out, length), 0);
    assert_int_equal(p.kind, PACKET_ICMPV6);
    assert_true(packet_checksum_ok(out, &p));
    assert_int_equal(out[p.l4], 1);
    assert_int_equal(out[p.l4 + 1], 0);
    assert_int_equal(out[p.l4 + 8 + 6], 6);
    assert_memory_equal(out + p.l4 + 48, "\x9c\x40\0\x50\1\2\3\4", 8);
}

static void only_connections_that_are_open_and_silent_get_one(void **state)
{
    (void)state;
    output(1000, TCP(.flags = PACKET_TCP_SYN | PACKET_TCP_ACK));
    assert_int_equal(messages(2000), 0);
    output(1000, TCP(.ack = 7));
    output(1000, TCP(.ack = 8));
    output(1000, TCP(.guest_port = 81));
    output(1000, frame_udp(frame, &(struct ip_spec){ .ttl = 1 }, 53, 999, "x", 1));
    assert_int_equal(messages(2000), 2);
    input(TCP(.ip.from_peer = true, .seq = 8));          /* says nothing */
    input(TCP(.ip.from_peer = true, .seq = 5, .data = "abc", .bytes = 3));
    assert_int_equal(messages(2000), 2);
    input(TCP(.ip.from_peer = true, .seq = 6, .data = "abc", .bytes = 3));
    assert_int_equal(messages(2000), 1);
    output(1000, TCP(.guest_port = 81, .flags = PACKET_TCP_RST));
    assert_int_equal(messages(2000), 0);
}

static void asked(bool v6)
{
    uint32_t cursor = 0, length;
    struct packet p;

    output(1000, TCP(.ip.v6 = v6, .ip.vlan = {12}, .ack = 0x12345678));
    nudge_begin(n);
    output(1000, TCP(.ip.v6 = v6, .ip.vlan = {12}, .ack = 0x12345680));
    output(1000, TCP(.ip.v6 = v6, .guest_port = 81)); /* new: nobody's business */
    length = nudge_question(n, 2000, &cursor, out);
    assert_int_equal(packet_parse(&p, out, length), 0);
    assert_int_equal(p.kind, PACKET_TCP);
    assert_int_equal(p.end, length);
    assert_int_equal(p.vlan[0], 12);
    assert_int_equal(p.sport, 40000);
    assert_int_equal(p.dport, 80);
    assert_int_equal(p.src[15], 9);
    assert_int_equal(p.dst[15], 2);
    assert_int_equal(p.tcp.flags, PACKET_TCP_ACK);
    assert_int_equal(p.tcp.seq, 0x12345680u - 0x10000000u);
    assert_int_equal(packet_payload_bytes(&p), 0);
    assert_true(packet_checksum_ok(out, &p));
    assert_memory_equal(out, frame + 6, 6);
    assert_memory_equal(out + 6, frame, 6);
    assert_int_equal(nudge_question(n, 2000, &cursor, out), 0);
}

static void the_guest_is_asked_where_it_stands(void **state)
{
    (void)state;
    asked(false);
}

static void the_guest_is_asked_over_ipv6(void **state)
{
    (void)state;
    asked(true);
}

static void a_guest_that_has_said_everything_is_not_asked(void **state)
{
    uint32_t cursor = 0;

    (void)state;
    output(1000, TCP(.ack = 7, .flags = PACKET_TCP_FIN | PACKET_TCP_ACK));
    output(1000, TCP(.ack = 8));
    assert_int_equal(nudge_question(n, 2000, &cursor, out), 0);
    assert_int_equal(messages(2000), 1);
}

static bool superseded(size_t length)
{
    struct packet p;

    packet_parse(&p, frame, length);
    return nudge_superseded(n, &p);
}

static void an_ack_is_superseded_by_a_newer_one_only(void **state)
{
    (void)state;
    assert_false(superseded(TCP(.ack = 7)));
    output(1000, TCP(.ack = 9));
    assert_true(superseded(TCP(.ack = 7)));
    assert_false(superseded(TCP(.ack = 9)));
    assert_false(superseded(TCP(.ack = 10)));
    assert_false(superseded(TCP(.ack = 7, .data = "a", .bytes = 1)));
    assert_false(superseded(TCP(.ack = 7, .flags = PACKET_TCP_FIN | PACKET_TCP_ACK)));
    assert_false(superseded(TCP(.ack = 7, .flags = PACKET_TCP_RST | PACKET_TCP_ACK)));
    assert_false(superseded(TCP(.ack = 7, .guest_port = 81)));
}

static uint32_t tell(struct nudge_told *told, size_t length)
{
    struct packet p;

    packet_parse(&p, frame, length);
    return nudge_tell(told, frame, &p, out);
}

static void a_connection_is_told_of_once_an_epoch_and_at_its_end(void **state)
{
    static struct nudge_told told;
    struct packet p;
    uint32_t length;

    (void)state;
    assert_int_equal(tell(&told, frame_udp(frame, &(struct ip_spec){ .ttl = 1 }, 5, 9, "x", 1)), 0);
    length = tell(&told, TCP(.ip.vlan = {12}, .seq = 77, .ack = 0x12345678, .timestamp = true,
                             .data = "abc", .bytes = 3));
    assert_int_equal(packet_parse(&p, out, length), 0);
    assert_int_equal(p.kind, PACKET_TCP);
    assert_int_equal(p.end, length);
    assert_int_equal(packet_payload_bytes(&p), 0);
    assert_true(packet_checksum_ok(out, &p));
    assert_memory_equal(out, frame, 18);
    assert_int_equal(p.src[15], 2);
    assert_int_equal(p.sport, 80);
    assert_int_equal(p.dport, 40000);
    assert_int_equal(p.tcp.seq, 77);
    assert_int_equal(p.tcp.ack, 0x12345678);
    nudge_output(n, 1000, out, &p);
    assert_int_equal(messages(2000), 1);
    assert_int_equal(tell(&told, TCP(.ip.vlan = {12}, .ack = 0x12345679)), 0);
    assert_true(tell(&told, TCP(.ip.vlan = {12}, .flags = PACKET_TCP_FIN | PACKET_TCP_ACK)));
    assert_true(tell(&told, TCP(.ip.v6 = true)));
    nudge_told_clear(&told);
    assert_true(tell(&told, TCP(.ip.vlan = {12}, .ack = 0x12345679)));
}

static void a_flow_that_was_idle_for_long_is_left_alone(void **state)
{
    (void)state;
    output(1000, TCP(.ack = 7));
    assert_int_equal(messages(1000 + NUDGE_IDLE_US - 1), 1);
    assert_int_equal(messages(1000 + NUDGE_IDLE_US), 0);
}

static void more_flows_than_places_lose_messages_only(void **state)
{
    unsigned int i, count;

    (void)state;
    for (i = 0; i < 3 * NUDGE_FLOWS; i++) {
        output(1000, TCP(.peer_port = (uint16_t)(1000 + i)));
    }
    count = messages(2000);
    assert_in_range(count, NUDGE_FLOWS / 2, NUDGE_FLOWS);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(the_segment_that_is_missing_is_quoted),
        T(ipv6_has_its_own_message),
        T(only_connections_that_are_open_and_silent_get_one),
        T(the_guest_is_asked_where_it_stands),
        T(the_guest_is_asked_over_ipv6),
        T(a_guest_that_has_said_everything_is_not_asked),
        T(an_ack_is_superseded_by_a_newer_one_only),
        T(a_connection_is_told_of_once_an_epoch_and_at_its_end),
        T(a_flow_that_was_idle_for_long_is_left_alone),
        T(more_flows_than_places_lose_messages_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
