/* Unit tests of tools/remus/packet.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>

#include "tests/unit/frames.h"

#define TCP(...) frame_tcp(frame, &(struct tcp_spec){__VA_ARGS__})
#define SYN      PACKET_TCP_SYN
#define ACK      PACKET_TCP_ACK

static uint8_t frame[FRAME_MAX + 16];
static struct packet p;

/* The frame in memory of exactly its size, so that the sanitizer sees one byte too far. */
static int parse(size_t length)
{
    uint8_t *exact = malloc(length ? length : 1);
    int rc;

    memcpy(exact, frame, length);
    rc = packet_parse(&p, exact, length);
    free(exact);
    return rc;
}

static void sequence_numbers_compare_across_the_wrap(void **state)
{
    (void)state;
    assert_true(seq_lt(0xfffffff0u, 0x10));
    assert_false(seq_lt(0x10, 0xfffffff0u));
    assert_true(seq_gt(0x10, 0xfffffff0u));
    assert_true(seq_le(7, 7) && seq_ge(7, 7));
    assert_false(seq_lt(7, 7) || seq_gt(7, 7));
    assert_int_equal(seq_max(0xfffffff0u, 0x10), 0x10);
    assert_int_equal(seq_min(0xfffffff0u, 0x10), 0xfffffff0u);
    assert_int_equal(seq_diff(0x10, 0xfffffff0u), 0x20);
}

static void a_tcp_segment_is_read_whole(void **state)
{
    (void)state;
    assert_int_equal(0,
                     parse(TCP(.seq = 0x01020304, .ack = 0x05060708, .window = 77, .mss = 1460,
                               .wscale_plus_1 = 8, .sack_ok = true, .timestamp = true, .tsval = 11,
                               .tsecr = 22, .flags = SYN | ACK, .data = "hello", .bytes = 5)));
    assert_int_equal(p.kind, PACKET_TCP);
    assert_int_equal(p.tcp.seq, 0x01020304);
    assert_int_equal(p.tcp.ack, 0x05060708);
    assert_int_equal(p.tcp.flags, SYN | ACK);
    assert_int_equal(p.tcp.window, 77);
    assert_true(p.tcp.has_mss && p.tcp.has_wscale && p.tcp.has_sack_ok && p.tcp.has_timestamp);
    assert_int_equal(p.tcp.mss, 1460);
    assert_int_equal(p.tcp.wscale, 7);
    assert_int_equal(p.tcp.tsval, 11);
    assert_int_equal(p.tcp.tsecr, 22);
    assert_int_equal(p.sport, 80);
    assert_int_equal(p.dport, 40000);
    assert_int_equal(packet_payload_bytes(&p), 5);
    assert_int_equal(packet_tcp_span(&p), 6);
    assert_memory_equal(frame + p.payload, "hello", 5);
    assert_true(packet_checksum_ok(frame, &p));
}

static void sack_blocks_are_read(void **state)
{
    (void)state;
    assert_int_equal(0, parse(TCP(.sack_blocks = 3, .sack = {{1, 2}, {5, 9}, {20, 30}})));
    assert_int_equal(p.tcp.sack_blocks, 3);
    assert_int_equal(p.tcp.sack[1].left, 5);
    assert_int_equal(p.tcp.sack[2].right, 30);
}

static void ethernet_padding_is_no_payload(void **state)
{
    (void)state;
    assert_int_equal(0, parse(TCP(.pad = true)));
    assert_int_equal(p.length, 60);
    assert_int_equal(p.end, 54);
    assert_int_equal(packet_payload_bytes(&p), 0);
}

static void vlan_and_qinq_tags_are_read(void **state)
{
    (void)state;
    assert_int_equal(0, parse(TCP(.ip.vlan = {0x6005})));
    assert_int_equal(p.vlans, 1);
    assert_int_equal(p.vlan[0], 5); /* the priority bits are no part of it */
    assert_int_equal(p.vlan[1], PACKET_NO_VLAN);
    assert_int_equal(0, parse(TCP(.ip.vlan = {7, 8})));
    assert_int_equal(p.vlans, 2);
    assert_int_equal(p.vlan[0], 7);
    assert_int_equal(p.vlan[1], 8);
    assert_int_equal(p.kind, PACKET_TCP);
}

static void three_tags_make_an_other_frame(void **state)
{
    size_t n = TCP(.ip.vlan = {7, 8});

    (void)state;
    memmove(frame + 16, frame + 12, n - 12);
    frame_put16(frame + 12, 0x88a8);
    assert_int_equal(0, parse(n + 4));
    assert_int_equal(p.kind, PACKET_OTHER);
}

static void ipv6_extension_headers_are_walked(void **state)
{
    (void)state;
    assert_int_equal(0,
                     parse(TCP(.ip = {.v6 = true, .hop_by_hop = true}, .data = "x", .bytes = 1)));
    assert_int_equal(p.kind, PACKET_TCP);
    assert_int_equal(p.l4, 14 + 40 + 8);
    assert_int_equal(packet_payload_bytes(&p), 1);
    assert_true(packet_checksum_ok(frame, &p));
}

static void an_ipv6_atomic_fragment_is_a_whole_packet(void **state)
{
    (void)state;
    assert_int_equal(0, parse(TCP(.ip = {.v6 = true, .fragment_id = 9})));
    assert_int_equal(p.kind, PACKET_TCP);
}

static void too_many_extension_headers_are_bad(void **state)
{
    uint8_t chain[80];
    size_t n;
    int i;

    (void)state;
    memset(chain, 0, sizeof(chain));
    for (i = 0; i < 10; i++) {
        chain[8 * i] = 60;
    }
    n = frame_raw(frame, &(struct ip_spec){.v6 = true}, 60, chain, sizeof(chain));
    assert_int_equal(-EINVAL, parse(n));
    assert_int_equal(p.kind, PACKET_BAD);
}

static void fragments_are_recognised_in_both_ip_versions(void **state)
{
    (void)state;
    parse(frame_raw(frame, &(struct ip_spec){.id = 77, .fragment = 0x2000 | 3}, 17, "12345678", 8));
    assert_int_equal(p.kind, PACKET_FRAGMENT);
    assert_int_equal(p.fragment_id, 77);
    assert_int_equal(p.fragment_offset, 24);
    assert_true(p.fragment_more);
    parse(frame_raw(frame, &(struct ip_spec){.v6 = true, .fragment_id = 0x12345, .fragment = 5}, 17,
                    "1234", 4));
    assert_int_equal(p.kind, PACKET_FRAGMENT);
    assert_int_equal(p.fragment_id, 0x12345);
    assert_int_equal(p.fragment_offset, 40);
    assert_false(p.fragment_more);
    assert_int_equal(packet_payload_bytes(&p), 4);
}

static void ipv4_options_are_skipped(void **state)
{
    (void)state;
    assert_int_equal(0, parse(TCP(.ip.options = 8, .data = "abc", .bytes = 3)));
    assert_int_equal(p.l4, 14 + 28);
    assert_int_equal(packet_payload_bytes(&p), 3);
}

static void icmp_belongs_to_its_own_ip_version(void **state)
{
    (void)state;
    parse(frame_icmp(frame, &(struct ip_spec){0}, 8, 0, 1, "x", 1));
    assert_int_equal(p.kind, PACKET_ICMP);
    parse(frame_icmp(frame, &(struct ip_spec){.v6 = true}, 128, 0, 1, "x", 1));
    assert_int_equal(p.kind, PACKET_ICMPV6);
    parse(frame_raw(frame, &(struct ip_spec){.v6 = true}, 1, "12345678", 8));
    assert_int_equal(p.kind, PACKET_IP);
    parse(frame_raw(frame, &(struct ip_spec){0}, 47, "12345678", 8));
    assert_int_equal(p.kind, PACKET_IP);
}

static void arp_ends_where_its_lengths_say(void **state)
{
    frame_arp(frame, 1, 2, 9);

    (void)state;
    assert_int_equal(0, parse(60));
    assert_int_equal(p.kind, PACKET_ARP);
    assert_int_equal(p.end - p.l3, 28);
    assert_int_equal(-EINVAL, parse(41));
}

static void every_truncation_is_bad_and_read_within_bounds(void **state)
{
    size_t n, i;

    (void)state;
    n = TCP(.ip = {.v6 = true, .hop_by_hop = true, .vlan = {3}}, .timestamp = true,
            .sack_blocks = 2, .data = "0123456789", .bytes = 10);
    for (i = 0; i < n; i++) {
        assert_int_not_equal(0, parse(i));
        assert_int_equal(p.kind, PACKET_BAD);
    }
    assert_int_equal(0, parse(n));
    n = TCP(.ip.options = 4, .mss = 1, .data = "0123456789", .bytes = 10);
    for (i = 0; i < n; i++) {
        assert_int_not_equal(0, parse(i));
    }
}

static void a_data_offset_out_of_range_is_bad(void **state)
{
    (void)state;
    assert_int_equal(-EINVAL, parse(TCP(.data_offset = 4)));
    assert_int_equal(-EINVAL, parse(TCP(.data_offset = 6)));
    assert_int_equal(0, parse(TCP(.data_offset = 5)));
}

static void a_malformed_option_ends_the_options_only(void **state)
{
    size_t n = TCP(.mss = 1460, .wscale_plus_1 = 3);

    (void)state;
    frame[54 + 5] = 0; /* the length of wscale */
    assert_int_equal(0, parse(n));
    assert_true(p.tcp.has_mss);
    assert_false(p.tcp.has_wscale);
    frame[54 + 5] = 200;
    assert_int_equal(0, parse(n));
    assert_false(p.tcp.has_wscale);
}

static void udp_with_a_wrong_length_is_bad(void **state)
{
    size_t n = frame_udp(frame, &(struct ip_spec){0}, 53, 1000, "abc", 3);

    (void)state;
    assert_int_equal(0, parse(n));
    frame_put16(frame + 38, 12);
    assert_int_equal(-EINVAL, parse(n));
    frame_put16(frame + 38, 7);
    assert_int_equal(-EINVAL, parse(n));
}

static void the_key_is_the_same_from_both_directions(void **state)
{
    struct packet_key out, in;

    (void)state;
    parse(TCP(.ip.vlan = {5}));
    packet_key(&out, &p, true);
    parse(TCP(.ip = {.vlan = {5}, .from_peer = true}));
    packet_key(&in, &p, false);
    assert_memory_equal(&out, &in, sizeof(in));
    parse(TCP(.ip.vlan = {6}));
    packet_key(&in, &p, true);
    assert_memory_not_equal(&out, &in, sizeof(in));
}

static void a_key_survives_the_channel(void **state)
{
    struct packet_key key, back;
    struct remus_flow flow;

    (void)state;
    parse(TCP(.ip = {.vlan = {5, 6}}));
    packet_key(&key, &p, true);
    packet_key_to_flow(&flow, &key);
    assert_int_equal(ntohs(flow.guest_port), 80);
    assert_int_equal(flow.vlan[1], 6);
    packet_key_from_flow(&back, &flow);
    assert_memory_equal(&key, &back, sizeof(key));
    parse(TCP(.ip.v6 = true));
    packet_key(&key, &p, true);
    packet_key_to_flow(&flow, &key);
    packet_key_from_flow(&back, &flow);
    assert_memory_equal(&key, &back, sizeof(key));
}

static void keys_are_described_for_people(void **state)
{
    char text[PACKET_DESCRIBE_MAX];
    struct packet_key key;

    (void)state;
    parse(TCP(.ip = {.vlan = {5, 6}}));
    packet_key(&key, &p, true);
    packet_key_describe(&key, text, sizeof(text));
    assert_string_equal(text, "tcp 10.0.0.2:80 - 10.0.0.9:40000 vlan 5.6");
    parse(TCP(.ip.v6 = true));
    packet_key(&key, &p, true);
    packet_key_describe(&key, text, sizeof(text));
    assert_string_equal(text, "tcp [fd00::2]:80 - [fd00::9]:40000");
}

static void sums_of_odd_and_long_ranges_are_right(void **state)
{
    static uint8_t ones[65535];

    (void)state;
    memset(ones, 0xff, sizeof(ones));
    assert_int_equal(packet_fold(packet_sum((const uint8_t *)"\x01\x02\x03", 3, 0)), 0x0402);
    /* 32767 times 0xffff, then 0xff00 */
    assert_int_equal(packet_fold(packet_sum(ones, sizeof(ones), 0)), 0xff00);
}

static void an_incremental_checksum_equals_a_fresh_one(void **state)
{
    uint32_t field, to;

    (void)state;
    /* The example of RFC 1624, section 4. */
    assert_int_equal(packet_checksum_update(0xdd2f, 0x5555, 0x3285), 0x0000);
    for (field = 0; field < 0x10000; field += 251) {
        for (to = 0; to < 0x10000; to += 4099) {
            uint8_t bytes[4];
            uint16_t full, updated;

            frame_put16(bytes, 0x1234);
            frame_put16(bytes + 2, field);
            full = (uint16_t)~packet_fold(packet_sum(bytes, 4, 0));
            updated = packet_checksum_update(full, (uint16_t)field, (uint16_t)to);
            frame_put16(bytes + 2, to);
            assert_int_equal(updated, (uint16_t)~packet_fold(packet_sum(bytes, 4, 0)));
        }
    }
}

static void shifting_keeps_the_checksum_right_at_even_and_odd_offsets(void **state)
{
    int odd;

    (void)state;
    for (odd = 0; odd < 2; odd++) {
        size_t n = TCP(.odd = odd, .seq = 0xfffffffe, .ack = 77, .timestamp = true, .tsval = 5,
                       .tsecr = 6, .sack_blocks = 2, .sack = {{100, 200}, {300, 0xffffffff}},
                       .data = "abc", .bytes = 3);

        assert_int_equal(0, packet_parse(&p, frame, n));
        packet_tcp_shift_seq(frame, &p, 0x10000005, false);
        packet_tcp_shift_ack(frame, &p, 0u - 78, false);
        packet_tcp_shift_sack(frame, &p, 0x01000001, false);
        packet_tcp_shift_tsval(frame, &p, 1000, false);
        packet_tcp_shift_tsecr(frame, &p, 2000, false);
        packet_tcp_set_window(frame, &p, 4242, false);
        assert_int_equal(0, packet_parse(&p, frame, n));
        assert_true(packet_checksum_ok(frame, &p));
        assert_int_equal(p.tcp.seq, 0x10000003);
        assert_int_equal(p.tcp.ack, 0xffffffff);
        assert_int_equal(p.tcp.sack[0].left, 0x01000001 + 100);
        assert_int_equal(p.tcp.sack[1].right, 0x01000000);
        assert_int_equal(p.tcp.tsval, 1005);
        assert_int_equal(p.tcp.tsecr, 2006);
        assert_int_equal(p.tcp.window, 4242);
    }
}

static void a_partial_checksum_is_left_alone(void **state)
{
    size_t n = TCP(.partial = true, .seq = 1, .data = "abc", .bytes = 3);
    uint8_t before[2];

    (void)state;
    assert_int_equal(0, packet_parse(&p, frame, n));
    memcpy(before, frame + p.l4 + 16, 2);
    packet_tcp_shift_seq(frame, &p, 99, true);
    assert_memory_equal(before, frame + p.l4 + 16, 2);
    packet_checksum_fill(frame, &p);
    assert_true(packet_checksum_ok(frame, &p));
}

static void an_ack_field_without_the_flag_is_left_alone(void **state)
{
    size_t n = TCP(.flags = SYN, .seq = 1, .ack = 0);

    (void)state;
    packet_parse(&p, frame, n);
    packet_tcp_shift_ack(frame, &p, 5, false);
    packet_parse(&p, frame, n);
    assert_int_equal(p.tcp.ack, 0);
}

static void sack_blocks_are_replaced_by_fewer_and_by_none(void **state)
{
    const uint32_t one[1][2] = {{7, 9}};
    size_t n = TCP(.sack_blocks = 3, .sack = {{1, 2}, {5, 9}, {20, 30}}, .odd = true,
                   .timestamp = true);

    (void)state;
    packet_parse(&p, frame, n);
    packet_tcp_set_sack(frame, &p, one, 1, false);
    assert_int_equal(0, packet_parse(&p, frame, n));
    assert_true(packet_checksum_ok(frame, &p));
    assert_int_equal(p.tcp.sack_blocks, 1);
    assert_int_equal(p.tcp.sack[0].left, 7);
    assert_int_equal(p.tcp.sack[0].right, 9);
    assert_true(p.tcp.has_timestamp);
    packet_tcp_set_sack(frame, &p, NULL, 0, false);
    assert_int_equal(0, packet_parse(&p, frame, n));
    assert_true(packet_checksum_ok(frame, &p));
    assert_int_equal(p.tcp.sack_blocks, 0);
    assert_true(p.tcp.has_timestamp);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequence_numbers_compare_across_the_wrap),
        cmocka_unit_test(a_tcp_segment_is_read_whole),
        cmocka_unit_test(sack_blocks_are_read),
        cmocka_unit_test(ethernet_padding_is_no_payload),
        cmocka_unit_test(vlan_and_qinq_tags_are_read),
        cmocka_unit_test(three_tags_make_an_other_frame),
        cmocka_unit_test(ipv6_extension_headers_are_walked),
        cmocka_unit_test(an_ipv6_atomic_fragment_is_a_whole_packet),
        cmocka_unit_test(too_many_extension_headers_are_bad),
        cmocka_unit_test(fragments_are_recognised_in_both_ip_versions),
        cmocka_unit_test(ipv4_options_are_skipped),
        cmocka_unit_test(icmp_belongs_to_its_own_ip_version),
        cmocka_unit_test(arp_ends_where_its_lengths_say),
        cmocka_unit_test(every_truncation_is_bad_and_read_within_bounds),
        cmocka_unit_test(a_data_offset_out_of_range_is_bad),
        cmocka_unit_test(a_malformed_option_ends_the_options_only),
        cmocka_unit_test(udp_with_a_wrong_length_is_bad),
        cmocka_unit_test(the_key_is_the_same_from_both_directions),
        cmocka_unit_test(a_key_survives_the_channel),
        cmocka_unit_test(keys_are_described_for_people),
        cmocka_unit_test(sums_of_odd_and_long_ranges_are_right),
        cmocka_unit_test(an_incremental_checksum_equals_a_fresh_one),
        cmocka_unit_test(shifting_keeps_the_checksum_right_at_even_and_odd_offsets),
        cmocka_unit_test(a_partial_checksum_is_left_alone),
        cmocka_unit_test(an_ack_field_without_the_flag_is_left_alone),
        cmocka_unit_test(sack_blocks_are_replaced_by_fewer_and_by_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
