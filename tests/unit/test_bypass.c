/* Unit tests of tools/remus/bypass.c. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/unit/frames.h"
#include "tools/remus/bypass.h"

static void becomes(const char *text, const char *format, const char *out, const char *in)
{
    struct remus_bypass b;
    char error[128], got[256];

    assert_int_equal(remus_bypass_parse(&b, text, error, sizeof(error)), 0);
    remus_bypass_format(&b, got, sizeof(got));
    assert_string_equal(got, format);
    remus_bypass_rule(&b, true, got, sizeof(got));
    assert_string_equal(got, out);
    remus_bypass_rule(&b, false, got, sizeof(got));
    assert_string_equal(got, in);
}

static void words_become_rules(void **state)
{
    (void)state;
    becomes("tcp port 3389", "tcp port 3389", "meta l4proto 6 th sport 3389",
            "meta l4proto 6 th dport 3389");
    becomes(" udp  peer-port 123-124 ", "udp peer-port 123-124",
            "meta l4proto 17 th dport 123-124", "meta l4proto 17 th sport 123-124");
    becomes("peer 10.1.2.3/8", "peer 10.0.0.0/8", "ip daddr 10.0.0.0/8 ", "ip saddr 10.0.0.0/8 ");
    becomes("tcp port 22 peer fd00::1", "tcp port 22 peer fd00::1/128",
            "ip6 daddr fd00::1/128 meta l4proto 6 th sport 22",
            "ip6 saddr fd00::1/128 meta l4proto 6 th dport 22");
    becomes("icmp6", "icmp6", "meta l4proto 58", "meta l4proto 58");
}

static void what_makes_no_sense_is_refused(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "needs a protocol or a peer"},
        {"port 22", "need tcp or udp"},
        {"icmp port 22", "need tcp or udp"},
        {"peer 10.0.0.1 peer-port 1", "need tcp or udp"},
        {"tcp udp", "'udp' is not expected"},
        {"tcp port", "needs a port"},
        {"tcp port 0", "needs a port"},
        {"tcp port 65536", "needs a port"},
        {"tcp port 9-3", "needs a port"},
        {"tcp port 3-", "needs a port"},
        {"tcp port -3", "needs a port"},
        {"peer example.org", "needs an IP address"},
        {"peer 10.0.0.1/33", "needs an IP address"},
        {"peer 10.0.0.1/", "needs an IP address"},
        {"peer ::1/129", "needs an IP address"},
        {"icmp peer fd00::1", "do not go together"},
        {"icmp6 peer 10.0.0.1", "do not go together"},
        {"tcp port 1 port 2", "'port' is not expected"},
        {"tcp; flush ruleset", "is not expected"},
        {"gre", "'gre' is not expected"},
    };
    char error[128], text[400];
    struct remus_bypass b;
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(remus_bypass_parse(&b, bad[i].text, error, sizeof(error)), -EINVAL);
        if (!strstr(error, bad[i].says)) {
            fail_msg("'%s': %s", bad[i].text, error);
        }
    }
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(remus_bypass_parse(&b, text, error, sizeof(error)), -EINVAL);
}

static bool hits(const char *entry, const uint8_t *frame, size_t bytes, bool from_guest)
{
    struct remus_bypass b;
    char error[128];
    struct packet p;

    assert_int_equal(remus_bypass_parse(&b, entry, error, sizeof(error)), 0);
    assert_int_equal(packet_parse(&p, frame, bytes), 0);
    return remus_bypass_match(&b, 1, &p, from_guest);
}

static void frames_are_matched_from_both_sides(void **state)
{
    struct tcp_spec s = {.guest_port = 3389, .peer_port = 50000, .bytes = 0};
    uint8_t out[256], in[256];
    size_t out_bytes = frame_tcp(out, &s), in_bytes;

    (void)state;
    s.ip.from_peer = true;
    in_bytes = frame_tcp(in, &s);
    assert_true(hits("tcp", out, out_bytes, true));
    assert_true(hits("tcp port 3389", out, out_bytes, true));
    assert_true(hits("tcp port 3389", in, in_bytes, false));
    assert_true(hits("tcp port 3000-4000 peer-port 50000", in, in_bytes, false));
    assert_false(hits("tcp port 3389", out, out_bytes, false));
    assert_false(hits("tcp peer-port 3389", out, out_bytes, true));
    assert_false(hits("udp port 3389", out, out_bytes, true));
    assert_false(hits("tcp port 3390-4000", out, out_bytes, true));
    assert_false(hits("icmp6", out, out_bytes, true));
}

static void a_peer_is_matched_by_its_leading_bits(void **state)
{
    struct tcp_spec s = {.guest_port = 80, .peer_port = 50000};
    char entry[100];
    uint8_t frame[256];
    size_t bytes = frame_tcp(frame, &s);
    struct packet p;

    (void)state;
    assert_int_equal(packet_parse(&p, frame, bytes), 0);
    snprintf(entry, sizeof(entry), "peer %u.%u.%u.%u", p.dst[12], p.dst[13], p.dst[14], p.dst[15]);
    assert_true(hits(entry, frame, bytes, true));
    snprintf(entry, sizeof(entry), "peer %u.%u.%u.%u", p.dst[12], p.dst[13], p.dst[14],
             p.dst[15] ^ 1u);
    assert_false(hits(entry, frame, bytes, true));
    snprintf(entry, sizeof(entry), "peer %u.%u.%u.%u/31", p.dst[12], p.dst[13], p.dst[14],
             p.dst[15] ^ 1u);
    assert_true(hits(entry, frame, bytes, true));
    assert_true(hits("peer 0.0.0.0/0", frame, bytes, true));
    assert_false(hits("peer ::/0", frame, bytes, true));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_become_rules),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(frames_are_matched_from_both_sides),
        cmocka_unit_test(a_peer_is_matched_by_its_leading_bits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
