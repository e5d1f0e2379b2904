/* What asked for checkpoints: services, order, and what happens when there are too many. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tools/remus/bypass.h"
#include "tools/remus/causes.h"

static struct packet_key key_of(uint8_t proto, uint16_t guest_port, uint16_t peer_port)
{
    static const uint8_t guest[16] = { [10] = 0xff, 0xff, 10, 0, 0, 1 };
    static const uint8_t peer[16] = { [10] = 0xff, 0xff, 10, 0, 0, 9 };
    struct packet_key key = {
        .proto = proto, .ip_version = 4,
        .guest_port = htons(guest_port), .peer_port = htons(peer_port),
        .vlan = { PACKET_NO_VLAN, PACKET_NO_VLAN },
    };

    memcpy(key.guest, guest, sizeof(guest));
    memcpy(key.peer, peer, sizeof(peer));
    return key;
}

static void expect_service(const struct packet_key *key, const char *words)
{
    char text[112];

    causes_service(key, text, sizeof(text));
    assert_string_equal(text, words);
}

static void a_service_is_named_by_its_known_port(void **state)
{
    struct packet_key key = key_of(PACKET_PROTO_TCP, 80, 40000);

    (void)state;
    expect_service(&key, "tcp port 80 peer 10.0.0.9/32");
    key = key_of(PACKET_PROTO_UDP, 40000, 53);
    expect_service(&key, "udp peer-port 53 peer 10.0.0.9/32");
    key = key_of(PACKET_PROTO_ICMP, 0, 0);
    expect_service(&key, "icmp peer 10.0.0.9/32");
    key = key_of(47, 0, 0);
    expect_service(&key, "protocol 47 peer 10.0.0.9");
    key.ip_version = 0;
    expect_service(&key, "not IP");
    key = key_of(PACKET_PROTO_TCP, 443, 1024);
    key.ip_version = 6;
    memset(key.peer, 0, sizeof(key.peer));
    key.peer[0] = 0xfd;
    key.peer[15] = 7;
    expect_service(&key, "tcp port 443 peer fd00::7/128");
}

static void the_words_are_understood_by_bypass(void **state)
{
    struct packet_key key = key_of(PACKET_PROTO_UDP, 40000, 53);
    struct remus_bypass b;
    char text[112], error[128];

    (void)state;
    causes_service(&key, text, sizeof(text));
    assert_int_equal(remus_bypass_parse(&b, text, error, sizeof(error)), 0);
    assert_int_equal(b.proto, PACKET_PROTO_UDP);
    assert_int_equal(b.peer_port[0], 53);
    assert_int_equal(b.bits, 32);
}

static void connections_of_one_service_are_one_cause(void **state)
{
    struct causes c = { .count = 0 };
    unsigned int i;

    (void)state;
    for (i = 0; i < 5; i++) {
        struct packet_key key = key_of(PACKET_PROTO_TCP, 80, (uint16_t)(40000 + i));

        causes_note(&c, "vif1.0", &key, i ? CTL_WHY_DEADLINE : CTL_WHY_DIVERGED, 10 + i, "text");
    }
    assert_int_equal(c.count, 1);
    assert_int_equal(c.list[0].checkpoints[CTL_WHY_DIVERGED], 1);
    assert_int_equal(c.list[0].checkpoints[CTL_WHY_DEADLINE], 4);
    assert_int_equal(c.list[0].epoch, 14);
    assert_string_equal(c.list[0].last, "text");
}

static void the_most_frequent_comes_first(void **state)
{
    struct packet_key a = key_of(PACKET_PROTO_TCP, 80, 40000);
    struct packet_key b = key_of(PACKET_PROTO_TCP, 81, 40000);
    struct causes c = { .count = 0 };

    (void)state;
    causes_note(&c, "vif1.0", &a, CTL_WHY_DIVERGED, 1, "");
    causes_note(&c, "vif1.0", &b, CTL_WHY_DIVERGED, 2, "");
    causes_note(&c, "vif1.1", &b, CTL_WHY_DIVERGED, 3, "");
    causes_note(&c, "vif1.0", &b, CTL_WHY_DIVERGED, 4, "");
    assert_int_equal(c.count, 3);
    assert_string_equal(c.list[0].flow, "tcp port 81 peer 10.0.0.9/32");
    assert_string_equal(c.list[0].vif, "vif1.0");
    causes_note(&c, "vif1.0", NULL, CTL_WHY_QUEUE, 5, "full");
    assert_string_equal(c.list[3].flow, "no flow: a limit");
}

static void no_checkpoint_goes_uncounted_when_there_are_too_many(void **state)
{
    struct causes c = { .count = 0 };
    struct packet_key often = key_of(PACKET_PROTO_TCP, 7, 40000);
    uint64_t sum = 0;
    unsigned int i, k;
    bool others = false, kept = false;

    (void)state;
    for (i = 0; i < 9; i++) {
        causes_note(&c, "vif1.0", &often, CTL_WHY_DIVERGED, i, "often");
    }
    for (i = 0; i < 500; i++) {
        struct packet_key key = key_of(PACKET_PROTO_UDP, (uint16_t)(1000 + i % 97), 40000);

        causes_note(&c, "vif1.0", &key, CTL_WHY_DEADLINE, 10 + i, "rare");
        for (k = 1; k < c.count; k++) {
            uint64_t above = c.list[k - 1].checkpoints[1] + c.list[k - 1].checkpoints[2];

            assert_true(above >= c.list[k].checkpoints[1] + c.list[k].checkpoints[2]);
        }
    }
    assert_true(c.count <= CTL_CAUSES_MAX);
    for (i = 0; i < c.count; i++) {
        for (k = 0; k < CTL_WHY_COUNT; k++) {
            sum += c.list[i].checkpoints[k];
        }
        others |= !strcmp(c.list[i].flow, "other flows");
        kept |= !strcmp(c.list[i].flow, "tcp port 7 peer 10.0.0.9/32");
    }
    assert_int_equal(sum, 509);
    assert_true(others);
    assert_true(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_service_is_named_by_its_known_port),
        cmocka_unit_test(the_words_are_understood_by_bypass),
        cmocka_unit_test(connections_of_one_service_are_one_cause),
        cmocka_unit_test(the_most_frequent_comes_first),
        cmocka_unit_test(no_checkpoint_goes_uncounted_when_there_are_too_many),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
