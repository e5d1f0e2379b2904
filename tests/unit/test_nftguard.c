/* The table that keeps a guest's output in when the rules of protection are flushed, in a network
 * namespace of the test's own, with frames. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <nftables/libnftables.h>

#include "tools/remus/nftguard.h"
#include "tools/remus/nftlease.h"
#include "tools/remus/nftwatch.h"

#define DOMID 7u

static int guard_fd, in_fd, out_fd;
static bool usable;

/* A bridge with two ports; a frame that enters through one leaves through the other. */
static const char topology[] =
    "exec > /dev/null 2>&1; ip link add br0 type bridge && "
    "ip link add vif7.0 type veth peer name guest && ip link add port type veth peer name world && "
    "ip link set vif7.0 master br0 && ip link set port master br0 && "
    "for i in br0 vif7.0 guest port world; do "
    "echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; ip link set $i up; done && "
    "nft add table bridge try && nft delete table bridge try";

static int nft(const char *script)
{
    struct nft_ctx *ctx = nft_ctx_new(NFT_CTX_DEFAULT);
    int rc;

    nft_ctx_buffer_output(ctx);
    nft_ctx_buffer_error(ctx);
    rc = nft_run_cmd_from_buffer(ctx, script);
    nft_ctx_free(ctx);
    return rc;
}

static bool has_table(const char *name)
{
    char script[64];

    snprintf(script, sizeof(script), "list table bridge %s", name);
    return !nft(script);
}

static int packet_socket(const char *device)
{
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
        .sll_ifindex = (int)if_nametoindex(device),
    };
    struct timeval limit = {.tv_usec = 300000};
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));

    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return fd;
}

static int group_begin(void **state)
{
    (void)state;
    usable = !unshare(CLONE_NEWNET) && !system(topology);
    if (!usable)
        print_message("no network namespace with nf_tables here: the guard is tested in the lab\n");
    return 0;
}

static int begin(void **state)
{
    (void)state;
    if (!usable)
        skip();
    in_fd = packet_socket("guest");
    out_fd = packet_socket("world");
    return remus_guard_open(&guard_fd);
}

static int end(void **state)
{
    (void)state;
    if (!usable)
        return 0;
    close(guard_fd);
    close(in_fd);
    close(out_fd);
    return nft("flush ruleset");
}

static int set(void)
{
    const char *const vifs[] = {"vif7.0", "vif7.1"};

    return remus_guard_set(guard_fd, DOMID, vifs, 2);
}

/* Whether a frame of the guest's leaves. */
static bool passes(void)
{
    static uint32_t number;
    uint8_t frame[64] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5};
    uint8_t got[256];

    number++;
    memcpy(frame + 20, &number, sizeof(number));
    assert_int_equal(send(in_fd, frame, sizeof(frame), 0), sizeof(frame));
    while (recv(out_fd, got, sizeof(got), 0) >= (ssize_t)sizeof(frame))
        if (!memcmp(got, frame, sizeof(frame)))
            return true;
    return false;
}

/* A busy machine may take its time with the first one. */
static bool passes_again(void)
{
    unsigned int i;

    for (i = 0; i < 10; i++)
        if (passes())
            return true;
    return false;
}

/* As the rules of protection do, but for the queue, which not every kernel has. */
static const char marks[] =
    "table bridge remus { chain output { type filter hook prerouting priority -350; "
    "meta mark set meta mark or " REMUS_NFT_MARK_TEXT "; }; }";

static void only_a_marked_frame_passes(void **state)
{
    (void)state;
    assert_true(passes_again());
    assert_int_equal(set(), 0);
    assert_false(passes());
    assert_int_equal(nft(marks), 0);
    assert_true(passes_again());
    assert_int_equal(remus_guard_clear(guard_fd, DOMID), 0);
    assert_int_equal(nft("delete table bridge remus"), 0);
    assert_true(passes_again());
}

static void a_flush_lets_nothing_out(void **state)
{
    (void)state;
    assert_int_equal(nft(marks), 0);
    assert_int_equal(set(), 0);
    assert_true(passes_again());
    assert_int_equal(nft("flush ruleset"), 0);
    assert_false(has_table("remus"));
    assert_true(has_table("remus-guard-7"));
    assert_false(passes());
    /* Nor can somebody else remove it, or make a way through it. */
    assert_true(nft("delete table bridge remus-guard-7"));
    assert_true(nft("flush chain bridge remus-guard-7 guard"));
    assert_int_equal(nft(marks), 0);
    assert_true(passes_again());
}

static void the_mark_is_not_seen_by_others(void **state)
{
    (void)state;
    assert_int_equal(nft(marks), 0);
    assert_int_equal(nft("table bridge other { "
                         "chain c { type filter hook prerouting priority -300; "
                         "meta mark and " REMUS_NFT_MARK_TEXT " != 0 drop; }; "
                         "chain d { type filter hook prerouting priority -400; "
                         "meta mark set 0x123; }; "
                         "chain e { type filter hook prerouting priority -300; "
                         "meta mark != 0x123 drop; }; }"), 0);
    assert_false(passes());
    assert_int_equal(set(), 0);
    assert_true(passes_again());
}

static void it_goes_with_the_last_who_has_the_socket(void **state)
{
    int other = dup(guard_fd);

    (void)state;
    assert_int_equal(set(), 0);
    close(guard_fd);
    assert_true(has_table("remus-guard-7"));
    close(other);
    assert_false(has_table("remus-guard-7"));
    assert_true(passes_again());
    guard_fd = -1;
}

static void setting_it_again_and_clearing_what_is_not_there(void **state)
{
    (void)state;
    assert_int_equal(remus_guard_clear(guard_fd, DOMID), 0);
    assert_int_equal(set(), 0);
    assert_int_equal(set(), 0);
    assert_false(passes());
    assert_int_equal(remus_guard_clear(guard_fd, DOMID), 0);
    assert_int_equal(remus_guard_clear(guard_fd, DOMID), 0);
    assert_int_equal(remus_guard_set(guard_fd, DOMID, NULL, 0), -EINVAL);
}

/* ---- Hearing of it ---- */

static const char rules[] =
    "table bridge remus { set lease { type ifname; flags timeout; }; "
    "set fenced { type ifname; elements = { \"vif7.0\" }; }; chain until-vif7.0 { }; "
    "chain output { type filter hook prerouting priority -350; iifname @fenced drop; }; }";

static void what_is_taken_away_is_heard_of_and_leases_are_not(void **state)
{
    static const char *const losses[] = {
        "flush ruleset", "delete table bridge remus", "flush chain bridge remus output",
        "delete element bridge remus fenced { \"vif7.0\" }",
        "delete chain bridge remus until-vif7.0",
    };
    static const char *const vif = "vif7.0";
    struct remus_lease *lease;
    unsigned int i;
    int fd;

    (void)state;
    assert_int_equal(remus_nftwatch_open(&fd), 0);
    assert_int_equal(remus_lease_open(&lease), 0);
    assert_int_equal(remus_lease_renew(lease, &vif, 1, 1000), -ENOENT);
    for (i = 0; i < sizeof(losses) / sizeof(losses[0]); i++) {
        (void)nft("flush ruleset");
        assert_int_equal(nft(rules), 0);
        (void)remus_nftwatch_read(fd);
        assert_int_equal(remus_lease_renew(lease, &vif, 1, 10000), 0);
        assert_int_equal(remus_lease_renew(lease, &vif, 1, 10000), 0);
        assert_int_equal(nft("table bridge other { chain c { }; }; delete table bridge other; "
                             "table ip remus { chain output { }; }; delete table ip remus"), 0);
        assert_false(remus_nftwatch_read(fd));
        assert_int_equal(nft(losses[i]), 0);
        assert_true(remus_nftwatch_read(fd));
        assert_false(remus_nftwatch_read(fd));
    }
    remus_lease_close(lease);
    close(fd);
}

#define T(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(only_a_marked_frame_passes),
        T(a_flush_lets_nothing_out),
        T(the_mark_is_not_seen_by_others),
        T(it_goes_with_the_last_who_has_the_socket),
        T(setting_it_again_and_clearing_what_is_not_there),
        T(what_is_taken_away_is_heard_of_and_leases_are_not),
    };

    return cmocka_run_group_tests(tests, group_begin, NULL);
}
