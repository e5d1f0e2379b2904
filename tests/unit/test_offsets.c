/* The kernel's programs that change sequence numbers do what rewrite.c does and are found again. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include <bpf/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/pkt_cls.h>

#include "tests/unit/frames.h"
#include "tools/libxl/remus_offsets.h"
#include "tools/remus/rewrite.h"

#define ISN     0xfffffff0u     /* as the peer knows it; wraps soon */
#define OWN_ISN 0x10000000u
#define OFFSET  (ISN - OWN_ISN)
#define SYN     PACKET_TCP_SYN
#define ACK     PACKET_TCP_ACK
#define FRAMES  20000u
#define KINDS   6u              /* of addresses and tags */
#define CUT_MIN 54u             /* bytes: newer kernels test with no less than an IP header */

struct fixture {
    struct remus_offsets *offsets;
    struct rewrite *rw;
    uint64_t chance;
    uint8_t frame[2048], other[2048];
    size_t bytes;
};

static uint32_t chance(struct fixture *f, uint32_t below)
{
    f->chance = f->chance * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(f->chance >> 33) % below;
}

static struct ip_spec kind(unsigned int i)
{
    return (struct ip_spec){
        .v6 = i % 2, .vlan = { i / 2 ? 7 : 0, i / 2 > 1 ? 9 : 0 },
    };
}

static struct remus_offset offset_of(struct ip_spec ip)
{
    struct remus_offset offset = { .offset = OFFSET };
    struct tcp_spec spec = { .ip = ip };
    struct packet_key key;
    struct packet p;
    uint8_t frame[200];

    assert_int_equal(packet_parse(&p, frame, frame_tcp(frame, &spec)), 0);
    packet_key(&key, &p, true);
    packet_key_to_flow(&offset.flow, &key);
    offset.flow.primary_isn = ISN;
    return offset;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    unsigned int i;
    int rc;

    assert_non_null(f);
    *state = f;
    f->chance = 1;
    rc = remus_offsets_new(&f->offsets);
    if (rc == -EPERM || rc == -ENOSYS) {
        return 0;                /* see needs_kernel() */
    }
    assert_int_equal(rc, 0);
    assert_int_equal(rewrite_new(&f->rw, 64, 1), 0);
    for (i = 0; i < KINDS; i++) {
        struct remus_offset offset = offset_of(kind(i));

        assert_int_equal(remus_offsets_add(f->offsets, &offset), 0);
        rewrite_offsets_add(f->rw, 1, &offset);
    }
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    remus_offsets_free(f->offsets);
    rewrite_free(f->rw);
    free(f);
    return 0;
}

/* A machine to build on need not let this process load programs: the lab's hosts do. */
static struct fixture *needs_kernel(void **state)
{
    struct fixture *f = *state;

    if (!f->offsets) {
        print_message("bpf(2) is not allowed here: skipped\n");
        skip();
    }
    return f;
}

/* What the kernel makes of f->frame, in f->other. */
static void through_kernel(struct fixture *f, bool to_guest)
{
    DECLARE_LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = f->frame, .data_out = f->other,
                        .data_size_in = (uint32_t)f->bytes, .data_size_out = sizeof(f->other),
                        .repeat = 1);

    assert_int_equal(bpf_prog_test_run_opts(remus_offsets_program(f->offsets, to_guest), &run), 0);
    assert_int_equal((int)run.retval, TC_ACT_UNSPEC);
    assert_int_equal(run.data_size_out, f->bytes);
}

/* What rewrite.c makes of it, in place; true: something else. */
static bool through_rewrite(struct fixture *f, bool to_guest)
{
    uint8_t before[sizeof(f->frame)];
    struct packet p;

    memcpy(before, f->frame, f->bytes);
    packet_parse(&p, f->frame, f->bytes);
    if (to_guest) {
        rewrite_input(f->rw, 2, 2, f->frame, &p, false);
    } else {
        rewrite_output(f->rw, 2, f->frame, &p, false);
    }
    return memcmp(before, f->frame, f->bytes);
}

static void make_segment(struct fixture *f, bool to_guest)
{
    static const uint8_t data[100] = "numbers";
    struct tcp_spec spec = { .ip = kind(chance(f, KINDS)), .data = data };
    unsigned int i;

    spec.ip.from_peer = to_guest;
    spec.ip.hop_by_hop = spec.ip.v6 && !chance(f, 4);
    spec.ip.options = spec.ip.v6 || chance(f, 4) ? 0 : 8;
    spec.ip.fragment = chance(f, 20) ? 0 : 0x2001;
    spec.ip.fragment_id = spec.ip.v6 && !chance(f, 8); /* in one piece all the same */
    spec.guest_port = chance(f, 8) ? 0 : 81;   /* another connection */
    spec.bytes = chance(f, sizeof(data));
    spec.seq = chance(f, 4) ? chance(f, UINT32_MAX) : ISN + chance(f, 100);
    spec.ack = chance(f, UINT32_MAX) + 1;
    spec.flags = chance(f, 3) ? 0 : chance(f, 2) ? PACKET_TCP_FIN | ACK : chance(f, 2) ? NO_FLAGS :
                 PACKET_TCP_RST | (chance(f, 2) ? ACK : 0);
    spec.timestamp = chance(f, 2);
    spec.tsval = spec.tsecr = chance(f, UINT32_MAX);
    spec.odd = chance(f, 2);
    spec.sack_blocks = chance(f, spec.timestamp ? 4 : 5);
    for (i = 0; i < spec.sack_blocks; i++) {
        spec.sack[i][0] = chance(f, UINT32_MAX);
        spec.sack[i][1] = spec.sack[i][0] + 1000;
    }
    if (spec.odd && spec.sack_blocks + spec.timestamp > 3) {
        spec.odd = false;        /* no room for it */
    }
    f->bytes = frame_tcp(f->frame, &spec);
}

static void make_icmp(struct fixture *f)
{
    struct tcp_spec quoted = { .ip = kind(chance(f, 2)), .seq = chance(f, UINT32_MAX) };
    unsigned int tags = chance(f, 3);
    struct ip_spec ip = kind(quoted.ip.v6 + 2 * tags);
    uint8_t segment[200];
    size_t bytes = frame_tcp(segment, &quoted);

    ip.from_peer = true;
    f->bytes = frame_icmp(f->frame, &ip, (uint8_t)chance(f, 14), 0, 1400, segment + 14,
                          chance(f, 4) ? bytes - 14 : 28 + chance(f, 20));
}

static void the_kernel_changes_what_rewriting_changes(void **state)
{
    struct fixture *f = needs_kernel(state);
    unsigned int i, changed = 0;

    for (i = 0; i < FRAMES; i++) {
        bool to_guest = chance(f, 2);

        if (to_guest && !chance(f, 4)) {
            make_icmp(f);
        } else {
            make_segment(f, to_guest);
        }
        through_kernel(f, to_guest);
        changed += through_rewrite(f, to_guest);
        assert_memory_equal(f->other, f->frame, f->bytes);
    }
    assert_in_range(changed, FRAMES / 2, FRAMES - FRAMES / 10);
}

/* A number and its checksum, or SACK edges besides: never more than these. */
#define CHANGES_MAX (4u + 2u + 32u)

static unsigned int changes(const struct fixture *f)
{
    unsigned int i, count = 0;

    for (i = 0; i < f->bytes; i++) {
        count += f->frame[i] != f->other[i];
    }
    return count;
}

static void frames_that_were_cut_harm_nobody(void **state)
{
    struct fixture *f = needs_kernel(state);
    unsigned int i;

    for (i = 0; i < FRAMES / 4; i++) {
        bool to_guest = chance(f, 2);
        size_t whole;

        if (to_guest && !chance(f, 4)) {
            make_icmp(f);
        } else {
            make_segment(f, to_guest);
        }
        whole = f->bytes > CUT_MIN ? f->bytes : CUT_MIN + 1;
        f->bytes = CUT_MIN + chance(f, (uint32_t)whole - CUT_MIN);
        if (chance(f, 2)) {
            f->frame[14 + chance(f, (uint32_t)f->bytes - 14)] ^= (uint8_t)(1 + chance(f, 255));
        }
        through_kernel(f, to_guest);
        assert_memory_equal(f->other, f->frame, 14 + 20);
        assert_true(changes(f) <= CHANGES_MAX);
    }
}

static unsigned int state_told(struct fixture *f)
{
    static struct remus_offset list[OFFSETS_MAX];
    struct remus_offset wanted = offset_of(kind(0));
    unsigned int n, i;

    assert_int_equal(remus_offsets_read(f->offsets, 0, list, &n), 0);
    for (i = 0; i < n && memcmp(&list[i].flow, &wanted.flow, sizeof(wanted.flow)); i++) {
        continue;
    }
    assert_true(i < n);
    return list[i].state;
}

static void give(struct fixture *f, bool to_guest, uint32_t flags)
{
    struct tcp_spec spec = { .ip.from_peer = to_guest, .flags = flags };

    f->bytes = frame_tcp(f->frame, &spec);
    through_kernel(f, to_guest);
}

static void what_ends_a_connection_is_noted(void **state)
{
    struct fixture *f = needs_kernel(state);
    struct remus_offset offset = offset_of(kind(0));

    offset.state = REMUS_OFFSET_HALF_OPEN;
    assert_int_equal(remus_offsets_add(f->offsets, &offset), 0);
    assert_int_equal(state_told(f), REMUS_OFFSET_HALF_OPEN);
    give(f, true, ACK);
    assert_int_equal(state_told(f), 0);
    give(f, true, PACKET_TCP_RST);
    assert_int_equal(state_told(f), REMUS_OFFSET_PEER_RESET);
    give(f, true, ACK);
    assert_int_equal(state_told(f), REMUS_OFFSET_PEER_RESET);
    give(f, false, ACK);
    assert_int_equal(state_told(f), 0);
    give(f, false, PACKET_TCP_RST);
    assert_int_equal(state_told(f), REMUS_OFFSET_RESET);
    give(f, false, ACK);
    give(f, true, PACKET_TCP_FIN | ACK);
    give(f, false, PACKET_TCP_FIN | ACK);
    assert_int_equal(state_told(f), REMUS_OFFSET_FIN_INPUT | REMUS_OFFSET_FIN_OUTPUT);
}

static unsigned int count(struct fixture *f)
{
    static struct remus_offset list[OFFSETS_MAX];
    unsigned int n;

    assert_int_equal(remus_offsets_read(f->offsets, 3, list, &n), 0);
    if (n) {
        assert_int_equal(list[0].vif, 3);
        assert_int_equal(list[0].offset, OFFSET);
        assert_int_equal(list[0].flow.primary_isn, ISN);
    }
    return n;
}

static void output(struct fixture *f, uint32_t flags, uint32_t seq)
{
    struct tcp_spec spec = { .flags = flags, .seq = seq };

    f->bytes = frame_tcp(f->frame, &spec);
    through_kernel(f, false);
}

static uint32_t seq_of(const uint8_t *frame)
{
    return (uint32_t)frame[38] << 24 | (uint32_t)frame[39] << 16 | (uint32_t)frame[40] << 8 |
           frame[41];
}

static void a_new_connection_of_the_guests_is_its_own(void **state)
{
    struct fixture *f = needs_kernel(state);

    assert_int_equal(count(f), KINDS);
    output(f, SYN | ACK, OWN_ISN);  /* again */
    assert_int_equal(seq_of(f->other), ISN);
    assert_int_equal(count(f), KINDS);
    output(f, SYN, OWN_ISN + 5);
    assert_int_equal(seq_of(f->other), OWN_ISN + 5);
    assert_int_equal(count(f), KINDS - 1);
    output(f, ACK, OWN_ISN + 6);
    assert_int_equal(seq_of(f->other), OWN_ISN + 6);
}

static void the_table_has_an_end(void **state)
{
    struct fixture *f = needs_kernel(state);
    struct remus_offset offset = offset_of(kind(0));
    unsigned int i;
    int rc = 0;

    for (i = 0; !rc && i < 2 * OFFSETS_MAX; i++) {
        offset.flow.peer_port = (uint16_t)i;
        rc = remus_offsets_add(f->offsets, &offset);
    }
    assert_int_equal(rc, -E2BIG);
    assert_int_equal(count(f), OFFSETS_MAX);
}

static int open_tap(const char *name)
{
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK), s = socket(AF_INET, SOCK_DGRAM, 0);

    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request)) {
        close(fd);
        close(s);
        return -1;
    }
    request.ifr_flags = IFF_UP;
    assert_int_equal(ioctl(s, SIOCSIFFLAGS, &request), 0);
    close(s);
    return fd;
}

/* Of what comes to read or receive, among what the kernel says by itself: is the frame there? */
static bool comes(struct fixture *f, int fd)
{
    unsigned int tries;
    ssize_t n;

    for (tries = 0; tries < 50; tries++) {
        n = read(fd, f->other, sizeof(f->other));
        if (n == (ssize_t)f->bytes && !memcmp(f->frame, f->other, f->bytes))
            return true;
        usleep(n < 0 ? 2000 : 0);
    }
    return false;
}

static int socket_at(const char *name)
{
    struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
                              .sll_ifindex = (int)if_nametoindex(name) };
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    return fd;
}

/* Also when whoever asked for it has died: for some time only. */
static void a_tap_stands_for_a_device(void **state)
{
    struct fixture *f = needs_kernel(state);
    const struct tcp_spec spec = { .guest_port = 1 };   /* not in the table */
    int vif, tap, at_tap, at_vif;

    if (unshare(CLONE_NEWNET) || (vif = open_tap("vif1.0")) < 0 || (tap = open_tap("tap")) < 0) {
        print_message("no tap to be had here: skipped\n");
        skip();
        return;
    }
    f->bytes = frame_tcp(f->frame, &spec);
    at_tap = socket_at("tap");
    at_vif = socket_at("vif1.0");
    assert_int_equal(remus_offsets_redirect(f->offsets, "nothing", 1000), -ENODEV);
    assert_int_equal(remus_offsets_redirect(f->offsets, "tap", 60000), 0);
    assert_int_equal(remus_offsets_attach(f->offsets, "vif1.0"), 0);

    assert_int_equal(write(vif, f->frame, f->bytes), f->bytes);
    assert_true(comes(f, at_tap));
    assert_int_equal(write(at_vif, f->frame, f->bytes), -1);
    assert_int_equal(errno, ENOBUFS);
    assert_false(comes(f, vif));

    assert_int_equal(remus_offsets_redirect(f->offsets, NULL, 0), 0);
    assert_int_equal(write(vif, f->frame, f->bytes), f->bytes);
    assert_false(comes(f, at_tap));
    assert_int_equal(write(at_vif, f->frame, f->bytes), f->bytes);
    assert_true(comes(f, vif));

    assert_int_equal(remus_offsets_redirect(f->offsets, "tap", 100), 0);
    usleep(150000);
    assert_int_equal(write(vif, f->frame, f->bytes), f->bytes);
    assert_false(comes(f, at_tap));
    assert_int_equal(write(at_vif, f->frame, f->bytes), f->bytes);
    assert_true(comes(f, vif));
    assert_int_equal(remus_offsets_detach("vif1.0"), 0);
    close(at_tap);
    close(at_vif);
    close(tap);
    close(vif);
}

static void a_device_has_its_table(void **state)
{
    struct fixture *f = needs_kernel(state);
    struct tcp_spec spec = { .ip.from_peer = true, .ack = ISN + 9 };
    struct sockaddr_ll to = { .sll_family = AF_PACKET };
    struct remus_offsets *found;
    uint8_t *taken = f->other;
    unsigned int tries;
    struct packet p;
    ssize_t n = -1;
    int tap, out;

    if (unshare(CLONE_NEWNET) || (tap = open_tap("vif1.0")) < 0) {
        print_message("no tap to be had here: skipped\n");
        skip();
        return;
    }
    assert_int_equal(remus_offsets_find(&found, "vif2.0"), -ENODEV);
    assert_int_equal(remus_offsets_find(&found, "vif1.0"), -ENOENT);
    assert_int_equal(remus_offsets_attach(f->offsets, "vif1.0"), 0);
    assert_int_equal(remus_offsets_attach(f->offsets, "vif1.0"), -EEXIST);
    assert_int_equal(remus_offsets_find(&found, "vif1.0"), 0);

    f->bytes = frame_tcp(f->frame, &spec);
    out = socket(AF_PACKET, SOCK_RAW, 0);
    to.sll_ifindex = (int)if_nametoindex("vif1.0");
    assert_int_equal(sendto(out, f->frame, f->bytes, 0, (struct sockaddr *)&to, sizeof(to)),
                     f->bytes);
    for (tries = 0; tries < 100 && (n != (ssize_t)f->bytes || taken[12] != 8); tries++) {
        n = read(tap, taken, sizeof(f->other)); /* among what the kernel says by itself */
        usleep(n < 0 ? 10000 : 0);
    }
    assert_int_equal(packet_parse(&p, taken, (size_t)n), 0);
    assert_int_equal(p.tcp.ack, OWN_ISN + 9);
    assert_true(packet_checksum_ok(taken, &p));
    close(out);

    /* Its own part is done: what is attached lives on, and so does what was found. */
    remus_offsets_free(f->offsets);
    f->offsets = found;
    assert_int_equal(count(f), KINDS);
    assert_int_equal(remus_offsets_detach("vif1.0"), 0);
    assert_int_equal(remus_offsets_find(&found, "vif1.0"), -ENOENT);
    close(tap);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_kernel_changes_what_rewriting_changes),
        TEST(frames_that_were_cut_harm_nobody),
        TEST(what_ends_a_connection_is_noted),
        TEST(a_new_connection_of_the_guests_is_its_own),
        TEST(the_table_has_an_end),
        TEST(a_device_has_its_table),
        TEST(a_tap_stands_for_a_device),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
