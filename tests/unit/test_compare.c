/*
 * Unit tests of the comparison (tools/remus/compare*.c, reassembly.c).  The tests s01 to s41 are
 * the scenarios of the design, by their numbers; the others test epochs, limits and timers.
 *
 * A world is one comparison and the log of what it said.  primary(), secondary() hand a frame in
 * and return its id; released(), held(), matched() ask about an id.
 */
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
#include "tools/remus/compare.h"
#include "tools/remus/ctl.h"

#define SYN          PACKET_TCP_SYN
#define ACK          PACKET_TCP_ACK
#define FIN          PACKET_TCP_FIN
#define RST          PACKET_TCP_RST
#define URG          PACKET_TCP_URG

#define IDS_MAX      40000
#define DEADLINE_MAX 100000
#define DEADLINE_MIN 2000

enum answer { NONE, RELEASED, WINDOW, SACK, DROPPED };

struct world {
    struct cmp *c;
    uint64_t now, epoch, primary_ids, secondary_ids;
    uint8_t answer[IDS_MAX]; /* enum answer, by primary id */
    uint32_t value[IDS_MAX];
    uint8_t matched[IDS_MAX];
    struct cmp_action last; /* the last release */
    unsigned int checkpoints, flows;
    uint32_t why;
    bool has_key;
    char text[200];
    struct remus_flow flow;
    unsigned int order; /* actions so far */
    unsigned int released_at[IDS_MAX], matched_at[IDS_MAX];
};

static struct world *w;
static uint8_t frame[FRAME_MAX], bytes[FRAME_MAX];

static void on_action(void *arg, const struct cmp_action *a)
{
    struct world *x = arg;
    enum answer answer = NONE;

    x->order++;
    switch (a->type) {
    case CMP_RELEASE:
        answer = RELEASED;
        break;
    case CMP_RELEASE_WINDOW:
        answer = WINDOW;
        break;
    case CMP_RELEASE_SACK:
        answer = SACK;
        break;
    case CMP_DROP:
        answer = DROPPED;
        break;
    case CMP_MATCHED:
        assert_in_range(a->id, 1, x->secondary_ids);
        assert_int_equal(x->matched[a->id], 0);
        x->matched[a->id] = 1;
        x->matched_at[a->id] = x->order;
        return;
    case CMP_FLOW:
        x->flows++;
        x->flow = a->flow;
        return;
    case CMP_CHECKPOINT:
        x->checkpoints++;
        x->why = a->why;
        x->has_key = a->has_key;
        strcpy(x->text, a->text);
        return;
    }
    assert_in_range(a->id, 1, x->primary_ids);
    assert_int_equal(x->answer[a->id], NONE);
    x->answer[a->id] = (uint8_t)answer;
    x->value[a->id] = a->value;
    x->released_at[a->id] = x->order;
    x->last = *a;
}

static void begin(const struct cmp_limits *limits)
{
    w = calloc(1, sizeof(*w));
    w->now = 1000000;
    w->epoch = 1;
    assert_int_equal(0, cmp_new(&w->c, limits, on_action, w));
}

static int setup(void **state)
{
    const struct cmp_limits limits = {
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
        .hash_seed = 42,
    };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    }
    begin(&limits);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    cmp_free(w->c);
    free(w);
    return 0;
}

static void restart(const struct cmp_limits *limits)
{
    cmp_free(w->c);
    free(w);
    begin(limits);
}

/* Frames are handed in at exactly their size, and gone afterwards. */
static uint8_t *exactly(size_t length)
{
    uint8_t *copy = malloc(length);

    memcpy(copy, frame, length);
    return copy;
}

static uint64_t primary_gso(size_t length, bool gso)
{
    uint8_t *copy = exactly(length);

    assert_in_range(++w->primary_ids, 1, IDS_MAX - 1);
    cmp_primary(w->c, w->now, w->primary_ids, copy, length, gso);
    free(copy);
    return w->primary_ids;
}

static uint64_t primary(size_t length)
{
    return primary_gso(length, false);
}

static uint64_t secondary_of(uint64_t epoch, size_t length)
{
    uint8_t *copy = exactly(length);

    assert_in_range(++w->secondary_ids, 1, IDS_MAX - 1);
    cmp_secondary(w->c, w->now, epoch, w->secondary_ids, copy, length);
    free(copy);
    return w->secondary_ids;
}

static uint64_t secondary(size_t length)
{
    return secondary_of(w->epoch, length);
}

static void input(size_t length)
{
    uint8_t *copy = exactly(length);

    cmp_input(w->c, w->now, copy, length);
    free(copy);
}

#define TCP(...) frame_tcp(frame, &(struct tcp_spec){__VA_ARGS__})
#define IP(...)  (&(struct ip_spec){__VA_ARGS__})
/* Bytes from..from + count of the stream, whose byte 0 has sequence number 1000. */
#define DATA(from, count, ...) \
    TCP(.seq = 1000 + (from), .data = bytes + (from), .bytes = (count), ##__VA_ARGS__)
#define SYN_OPTIONS     .mss = 1460, .wscale_plus_1 = 8, .sack_ok = true, .timestamp = true

#define released(id)    assert_int_equal(w->answer[id], RELEASED)
#define held(id)        assert_int_equal(w->answer[id], NONE)
#define dropped(id)     assert_int_equal(w->answer[id], DROPPED)
#define matched(id)     assert_int_equal(w->matched[id], 1)
#define unmatched(id)   assert_int_equal(w->matched[id], 0)
#define no_checkpoint() assert_int_equal(w->checkpoints, 0)

static void checkpoint(uint32_t why)
{
    assert_int_equal(w->checkpoints, 1);
    assert_int_equal(w->why, why);
    assert_true(w->text[0]);
}

static void pass(uint64_t us)
{
    w->now += us;
    cmp_tick(w->c, w->now);
}

/* Nothing happens before the deadline, and the checkpoint is asked for at it. */
static void checkpoint_at_deadline(void)
{
    no_checkpoint();
    assert_int_equal(cmp_next_us(w->c), w->now + DEADLINE_MAX);
    pass(DEADLINE_MAX - 1);
    no_checkpoint();
    pass(1);
    checkpoint(CTL_WHY_DEADLINE);
}

static void cut(void)
{
    cmp_cut(w->c, w->now, w->epoch);
    w->epoch++;
}

static void release_epoch(uint64_t epoch)
{
    cmp_release_epoch(w->c, w->now, epoch);
    if (!cmp_next_us(w->c)) {
        cmp_tick(w->c, w->now);
    }
}

/* A whole checkpoint, nothing in between. */
static void whole_checkpoint(void)
{
    cut();
    release_epoch(w->epoch - 1);
    w->checkpoints = 0;
}

/* A connection that a client opened in this epoch: ISNs 999 (primary) and isn (secondary). */
static void handshake(uint32_t isn)
{
    uint64_t p, s;

    p = primary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    s = secondary(TCP(.seq = isn, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    released(p);
    matched(s);
}

/* A connection both are in the middle of: byte 0 is next. */
static void known_flow(void)
{
    uint64_t p = primary(TCP(.seq = 1000, .ack = 5000));

    secondary(TCP(.seq = 1000, .ack = 5000));
    released(p);
}

/* ---- The scenarios --------------------------------------------------------------------------- */

static void s01_two_segments_against_three_of_the_same_bytes_are_released(void **state)
{
    uint64_t p1 = primary(DATA(0, 1500)), p2 = primary(DATA(1500, 1500)), s1, s2, s3;

    (void)state;
    s1 = secondary(DATA(0, 1000));
    held(p1);
    s2 = secondary(DATA(1000, 1000));
    released(p1);
    held(p2);
    s3 = secondary(DATA(2000, 1000));
    released(p2);
    matched(s1);
    matched(s2);
    matched(s3);
    assert_true(w->released_at[p1] < w->matched_at[s1]);
    assert_true(w->released_at[p2] < w->matched_at[s2]);
    no_checkpoint();
    assert_int_equal(cmp_next_us(w->c), UINT64_MAX);
}

static void s02_a_64k_gso_frame_against_mss_sized_segments_is_released(void **state)
{
    uint64_t p = primary_gso(DATA(0, 64000), true);
    uint32_t at;

    (void)state;
    for (at = 0; at < 64000; at += 1448) {
        held(p);
        secondary(DATA(at, at + 1448 < 64000 ? 1448 : 64000 - at));
    }
    released(p);
    /* And the other way round. */
    for (at = 0; at < 60000; at += 1000) {
        secondary(TCP(.seq = 65000 + at, .data = bytes + at, .bytes = 1000));
    }
    p = primary_gso(TCP(.seq = 65000, .data = bytes, .bytes = 60000), true);
    released(p);
    matched(w->secondary_ids);
}

static void s02_any_cut_of_the_copies_compares_the_same_bytes(void **state)
{
    uint32_t cut_at, first;
    uint16_t port = 1;

    (void)state;
    /* Around the size of the pieces in which copies are kept. */
    for (cut_at = 2030; cut_at < 2050; cut_at++) {
        for (first = 0; first < 2; first++) {
            uint64_t p = 0, q;

            port++;
            if (first) {
                p = primary(DATA(0, 5000, .peer_port = port));
                secondary(DATA(0, cut_at, .peer_port = port));
                secondary(DATA(cut_at, 2041, .peer_port = port));
                held(p);
                secondary(DATA(cut_at + 2041, 5000 - cut_at - 2041, .peer_port = port));
                released(p);
            } else {
                secondary(DATA(0, 5000, .peer_port = port));
                p = primary(DATA(0, cut_at, .peer_port = port));
                q = primary(DATA(cut_at, 5000 - cut_at, .peer_port = port));
                released(p);
                released(q);
            }
        }
    }
    no_checkpoint();
}

static void s03_one_different_byte_is_a_divergence(void **state)
{
    uint64_t p1 = primary(DATA(0, 1000)), p2, s;

    (void)state;
    bytes[700] ^= 1;
    s = secondary(DATA(0, 1000));
    checkpoint(CTL_WHY_DIVERGED);
    assert_non_null(strstr(w->text, "10.0.0.2:80"));
    assert_non_null(strstr(w->text, "seq 1700"));
    held(p1);
    unmatched(s);
    /* The flow stays held to the end of the epoch, even where it agrees again. */
    p2 = primary(DATA(1000, 100));
    secondary(DATA(1000, 100));
    held(p2);
    /* Another one goes on. */
    p2 = primary(DATA(0, 10, .peer_port = 7));
    secondary(DATA(0, 10, .peer_port = 7));
    released(p2);
    cut();
    held(p1);
    release_epoch(1);
    released(p1);
}

static void s03_a_new_connection_on_a_diverged_flow_waits_for_the_epochs_end_too(void **state)
{
    uint64_t p;

    (void)state;
    primary(DATA(0, 1));
    secondary(TCP(.seq = 1000, .data = "X", .bytes = 1));
    checkpoint(CTL_WHY_DIVERGED);
    p = primary(TCP(.seq = 77, .flags = SYN | ACK, SYN_OPTIONS));
    secondary(TCP(.seq = 88, .flags = SYN | ACK, SYN_OPTIONS));
    held(p);
    assert_int_equal(w->flows, 1);
    whole_checkpoint();
    released(p);
    p = primary(TCP(.seq = 78, .window = 7));
    released(p);
}

static void s04_a_silent_secondary_makes_a_checkpoint_at_the_deadline(void **state)
{
    uint64_t p = primary(DATA(0, 100));

    (void)state;
    checkpoint_at_deadline();
    held(p);
    assert_int_equal(cmp_next_us(w->c), UINT64_MAX);
}

static void s05_the_secondarys_copy_is_kept_until_the_primarys_arrives(void **state)
{
    uint64_t s = secondary(DATA(0, 1000)), p;

    (void)state;
    unmatched(s);
    pass(DEADLINE_MAX / 2);
    p = primary(DATA(0, 1000));
    released(p);
    matched(s);
    assert_true(w->released_at[p] < w->matched_at[s]);
    no_checkpoint();
}

static void s06_a_retransmission_of_verified_bytes_is_released_at_once(void **state)
{
    uint64_t p, blocked;

    (void)state;
    primary(DATA(0, 1000));
    secondary(DATA(0, 1000));
    p = primary(DATA(0, 1000));
    released(p);
    p = primary(DATA(200, 300));
    released(p);
    /* Not even behind a frame that waits for the secondary's ack. */
    blocked = primary(DATA(1000, 0, .ack = 6000));
    p = primary(DATA(0, 1000));
    held(blocked);
    released(p);
}

static void s07_a_retransmission_with_new_bytes_has_its_tail_compared(void **state)
{
    uint64_t p;

    (void)state;
    primary(DATA(0, 1000));
    secondary(DATA(0, 1000));
    p = primary(DATA(500, 1000));
    held(p);
    secondary(DATA(1000, 500));
    released(p);
    p = primary(DATA(1400, 200));
    bytes[1550] ^= 1;
    secondary(DATA(1500, 100));
    held(p);
    checkpoint(CTL_WHY_DIVERGED);
}

static void s08_a_gap_in_the_primarys_sequence_is_held_and_filled(void **state)
{
    uint64_t first, third;

    (void)state;
    known_flow();
    third = primary(DATA(1000, 1000));
    secondary(DATA(0, 1000));
    secondary(DATA(1000, 1000));
    held(third);
    first = primary(DATA(0, 1000));
    released(first);
    released(third);
    assert_true(w->released_at[first] < w->released_at[third]);
    no_checkpoint();
}

static void s09_a_secondary_that_retransmits_changed_bytes_diverges(void **state)
{
    (void)state;
    known_flow();
    secondary(DATA(0, 1000));
    secondary(DATA(500, 1000)); /* the same bytes again: fine */
    no_checkpoint();
    bytes[300] ^= 1;
    secondary(DATA(200, 200));
    checkpoint(CTL_WHY_DIVERGED);
}

static void s09_a_primary_that_retransmits_changed_bytes_diverges(void **state)
{
    uint64_t p1, p2;

    (void)state;
    known_flow();
    p1 = primary(DATA(0, 1000));
    bytes[999] ^= 1;
    p2 = primary(DATA(900, 1000));
    checkpoint(CTL_WHY_DIVERGED);
    held(p1);
    held(p2);
}

static void s10_an_ack_beyond_the_secondarys_is_held_until_it_catches_up(void **state)
{
    uint64_t p, q;

    (void)state;
    known_flow();
    p = primary(TCP(.seq = 1000, .ack = 6000));
    q = primary(DATA(0, 100, .ack = 6000));
    secondary(TCP(.seq = 1000, .ack = 5999));
    held(p);
    secondary(DATA(0, 100, .ack = 5999));
    held(p);
    held(q);
    secondary(TCP(.seq = 1100, .ack = 6000));
    released(p);
    released(q);
    no_checkpoint();
}

static void s10_an_ack_the_secondary_never_gives_is_a_deadline(void **state)
{
    (void)state;
    known_flow();
    pass(10);
    primary(TCP(.seq = 1000, .ack = 6000));
    assert_int_equal(cmp_next_us(w->c), w->now + DEADLINE_MIN);
    pass(DEADLINE_MIN);
    checkpoint(CTL_WHY_DEADLINE);
}

static void s11_an_ack_behind_the_secondarys_is_released(void **state)
{
    uint64_t p, s;

    (void)state;
    known_flow();
    s = secondary(TCP(.seq = 1000, .ack = 9000));
    unmatched(s);
    p = primary(TCP(.seq = 1000, .ack = 7000));
    released(p);
    unmatched(s); /* the world has not heard as much yet */
    p = primary(TCP(.seq = 1000, .ack = 9000));
    released(p);
    matched(s);
}

static void s12_sack_blocks_are_intersected_with_the_secondarys(void **state)
{
    uint64_t p;

    (void)state;
    known_flow();
    secondary(
        TCP(.seq = 1000, .ack = 5000, .sack_blocks = 2, .sack = {{6000, 7000}, {8000, 9000}}));
    p = primary(
        TCP(.seq = 1000, .ack = 5000, .sack_blocks = 2, .sack = {{6000, 7000}, {8000, 9000}}));
    released(p);
    p = primary(TCP(.seq = 1000, .ack = 5000, .sack_blocks = 3,
                    .sack = {{8500, 9500}, {6000, 7000}, {10000, 11000}}));
    assert_int_equal(w->answer[p], SACK);
    assert_int_equal(w->last.sack_blocks, 2);
    assert_int_equal(w->last.sack[0][0], 8500);
    assert_int_equal(w->last.sack[0][1], 9000);
    assert_int_equal(w->last.sack[1][0], 6000);
    assert_int_equal(w->last.sack[1][1], 7000);
    assert_int_equal(w->value[p], 1000);
    /* A GSO frame cannot be edited. */
    p = primary_gso(TCP(.seq = 1000, .ack = 5000, .sack_blocks = 1, .sack = {{8500, 9500}}), true);
    held(p);
    secondary(TCP(.seq = 1000, .ack = 5000, .sack_blocks = 1, .sack = {{8000, 9500}}));
    released(p);
    /* A duplicate of what is acknowledged promises nothing new. */
    p = primary(TCP(.seq = 1000, .ack = 5000, .sack_blocks = 1, .sack = {{4000, 4500}}));
    released(p);
    no_checkpoint();
}

static void s13_a_larger_window_is_clamped(void **state)
{
    uint64_t p;

    (void)state;
    secondary(DATA(0, 100, .window = 800));
    p = primary(DATA(0, 100, .window = 900));
    assert_int_equal(w->answer[p], WINDOW);
    assert_int_equal(w->value[p], 800);
    p = primary(TCP(.seq = 1100, .window = 700));
    released(p);
}

static void s13_a_gso_frame_with_a_larger_window_is_held(void **state)
{
    uint64_t p;

    (void)state;
    secondary(DATA(0, 4000, .window = 800));
    p = primary_gso(DATA(0, 4000, .window = 900), true);
    held(p);
    secondary(TCP(.seq = 5000, .window = 900));
    released(p);
    /* The world has that window already: the same again promises nothing. */
    secondary(TCP(.seq = 5000, .window = 800));
    secondary(DATA(4000, 4000, .window = 800));
    p = primary_gso(DATA(4000, 4000, .window = 900), true);
    released(p);
}

static void s13_a_zero_window_of_the_secondary_holds_to_the_deadline(void **state)
{
    uint64_t p;

    (void)state;
    p = primary(DATA(0, 100, .window = 900));
    secondary(DATA(0, 100, .zero_window = true));
    held(p);
    checkpoint_at_deadline();
    held(p);
}

static void s13_windows_are_compared_by_their_right_edge_where_the_scale_is_known(void **state)
{
    uint64_t p;

    (void)state;
    handshake(7777);                                               /* scale 7 */
    secondary(TCP(.seq = 1000, .ack = 5000 + 1280, .window = 90)); /* 10 units further on */
    p = primary(TCP(.seq = 1000, .ack = 5000, .window = 100));
    released(p);
    p = primary(TCP(.seq = 1000, .ack = 5000 + 1280, .window = 100));
    assert_int_equal(w->answer[p], WINDOW);
    assert_int_equal(w->value[p], 90);
}

static void s13_the_peers_syn_ack_says_whether_the_scale_holds(void **state)
{
    int scaled;

    (void)state;
    for (scaled = 0; scaled < 2; scaled++) {
        uint16_t port = (uint16_t)(50000 + scaled);
        uint64_t p;

        primary(TCP(.seq = 999, .flags = SYN, SYN_OPTIONS, .guest_port = port));
        secondary(TCP(.seq = 77, .flags = SYN, SYN_OPTIONS, .guest_port = port));
        input(TCP(.ip.from_peer = true, .seq = 4999, .ack = 1000, .flags = SYN | ACK,
                  .guest_port = port, .wscale_plus_1 = scaled ? 3 : 0));
        secondary(TCP(.seq = 1000, .ack = 5010, .window = 99, .guest_port = port));
        p = primary(TCP(.seq = 1000, .ack = 5000, .window = 100, .guest_port = port));
        /* Ten bytes further on are less than a unit of scale 7, but ten units of scale 0. */
        assert_int_equal(w->answer[p], scaled ? WINDOW : RELEASED);
        p = primary(TCP(.seq = 1000, .ack = 5010, .window = 100, .guest_port = port));
        assert_int_equal(w->answer[p], WINDOW);
        assert_int_equal(w->value[p], 99);
    }
}

static void s13_the_window_of_a_syn_is_not_scaled(void **state)
{
    uint64_t p;

    (void)state;
    handshake(777); /* window 1000, scale 7 */
    p = primary(TCP(.seq = 1000, .window = 8));
    assert_int_equal(w->answer[p], WINDOW);
    assert_int_equal(w->value[p], 7);
    whole_checkpoint();
    p = primary(TCP(.seq = 1000, .window = 9));
    assert_int_equal(w->answer[p], WINDOW);
    assert_int_equal(w->value[p], 8);
}

static void s13_a_right_edge_that_has_left_may_leave_again(void **state)
{
    uint64_t p;

    (void)state;
    handshake(777);
    secondary(TCP(.seq = 1000, .window = 100));
    p = primary(TCP(.seq = 1000, .window = 100));
    released(p);
    secondary(DATA(0, 4000, .window = 90));
    p = primary_gso(DATA(0, 4000, .window = 100), true);
    released(p);
    /* 128 bytes of input later one unit less is the same edge. */
    secondary(DATA(4000, 4000, .ack = 5128, .window = 80));
    p = primary_gso(DATA(4000, 4000, .ack = 5128, .window = 100), true);
    held(p);
    p = primary_gso(DATA(4000, 4000, .ack = 5128, .window = 99), true);
    released(p);
}

static void s14_syn_options_that_differ_are_uncomparable(void **state)
{
    static const struct tcp_spec other[] = {
        {.mss = 1400, .wscale_plus_1 = 8, .sack_ok = true, .timestamp = true},
        {.mss = 1460, .wscale_plus_1 = 7, .sack_ok = true, .timestamp = true},
        {.mss = 1460, .wscale_plus_1 = 0, .sack_ok = true, .timestamp = true},
        {.mss = 1460, .wscale_plus_1 = 8, .sack_ok = false, .timestamp = true},
        {.mss = 1460, .wscale_plus_1 = 8, .sack_ok = true, .timestamp = false},
    };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(other) / sizeof(other[0]); i++) {
        struct tcp_spec spec = other[i];
        uint64_t p;

        spec.seq = 555;
        spec.ack = 5000;
        spec.flags = SYN | ACK;
        p = primary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
        secondary(frame_tcp(frame, &spec));
        held(p);
        checkpoint(CTL_WHY_UNCOMPARABLE);
        whole_checkpoint();
        released(p);
        primary(TCP(.seq = 0, .flags = RST | ACK)); /* only to begin anew */
        w->checkpoints = 0;
        cmp_drain(w->c, true);
    }
}

static void s15_only_isn_and_timestamp_differ_so_the_syn_ack_is_released(void **state)
{
    uint64_t p, s;

    (void)state;
    p = primary(TCP(.seq = 999, .flags = SYN | ACK, SYN_OPTIONS, .tsval = 10, .tsecr = 7));
    held(p);
    s = secondary(TCP(.seq = 70000, .flags = SYN | ACK, SYN_OPTIONS, .tsval = 999, .tsecr = 7));
    released(p);
    matched(s);
    /* From here on the secondary's numbers are the primary's: colo-shadowd rewrites. */
    p = primary(DATA(0, 500, .timestamp = true, .tsval = 11));
    secondary(DATA(0, 500, .timestamp = true, .tsval = 1000));
    released(p);
    no_checkpoint();
}

static void s16_the_primarys_isn_is_told_before_its_syn_ack_can_be_answered(void **state)
{
    uint64_t p;

    (void)state;
    p = primary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    held(p);
    assert_int_equal(w->flows, 1); /* colo-shadowd holds input of the flow until the secondary's */
    assert_int_equal(w->flow.primary_isn, 999);
    assert_int_equal(ntohs(w->flow.guest_port), 80);
    assert_int_equal(ntohs(w->flow.peer_port), 40000);
    assert_int_equal(w->flow.guest_addr[15], 2);
    assert_int_equal(w->flow.peer_addr[15], 9);
    assert_int_equal(w->flow.guest_addr[11], 0xff);
    assert_int_equal(w->flow.vlan[0], 0xffff);
    /* The client cannot have a SYN-ACK yet; an ACK all the same changes nothing. */
    input(TCP(.ip.from_peer = true, .seq = 5000, .ack = 1000));
    held(p);
    secondary(TCP(.seq = 321, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    released(p);
    assert_int_equal(w->flows, 1);
}

static void s17_a_checkpoint_in_mid_handshake_makes_the_offset_zero(void **state)
{
    uint64_t p, s;

    (void)state;
    p = primary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    cut();
    s = secondary_of(1, TCP(.seq = 888, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    held(p);
    unmatched(s);
    release_epoch(1);
    released(p);
    w->flows = 0;
    /* The secondary now has the primary's numbers; its SYN-ACK comes again. */
    s = secondary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    matched(s);
    assert_int_equal(w->flows, 1); /* so that colo-shadowd lets the rest pass */
    assert_int_equal(w->flow.primary_isn, 999);
    p = primary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    released(p);
    secondary(DATA(0, 700));
    p = primary(DATA(0, 700));
    released(p);
    assert_int_equal(w->flows, 1);
    no_checkpoint();
}

static void s17_a_checkpoint_between_the_two_syn_acks_forgets_the_secondarys(void **state)
{
    uint64_t p;

    (void)state;
    secondary(TCP(.seq = 888, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    whole_checkpoint();
    p = primary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    held(p); /* the secondary has not sent one in this epoch */
    secondary(TCP(.seq = 444, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    released(p);
}

static void s17_data_may_follow_a_checkpoint_in_mid_handshake_at_once(void **state)
{
    uint64_t p;

    (void)state;
    primary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    whole_checkpoint();
    p = primary(DATA(0, 100));
    secondary(DATA(0, 100));
    released(p);
}

static void s17_after_a_checkpoint_the_secondarys_syn_has_the_primarys_isn(void **state)
{
    uint64_t s;

    (void)state;
    handshake(777);
    whole_checkpoint();
    s = secondary(TCP(.seq = 999, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    matched(s);
    s = secondary(TCP(.seq = 777, .ack = 5000, .flags = SYN | ACK, SYN_OPTIONS));
    unmatched(s); /* of another connection, to which the primary has not come yet */
}

static void s18_a_guests_syn_from_the_secondary_first_is_kept(void **state)
{
    uint64_t s, p;

    (void)state;
    s = secondary(TCP(.seq = 70000, .flags = SYN, SYN_OPTIONS));
    unmatched(s);
    assert_int_equal(w->flows, 0);
    p = primary(TCP(.seq = 999, .flags = SYN, SYN_OPTIONS));
    released(p);
    matched(s);
    assert_int_equal(w->flows, 1);
    p = primary(DATA(0, 10));
    secondary(DATA(0, 10));
    released(p);
    no_checkpoint();
}

static void s19_source_ports_of_the_guest_that_differ_hold_to_the_deadline(void **state)
{
    uint64_t p;

    (void)state;
    p = primary(TCP(.seq = 999, .flags = SYN, SYN_OPTIONS, .guest_port = 50001));
    secondary(TCP(.seq = 999, .flags = SYN, SYN_OPTIONS, .guest_port = 50002));
    held(p);
    checkpoint_at_deadline();
    whole_checkpoint();
    released(p);
}

static void s20_an_echoed_timestamp_is_rewritten_and_the_flow_released(void **state)
{
    struct packet parsed;
    uint64_t p;
    size_t n;

    (void)state;
    primary(TCP(.seq = 999, .flags = SYN, SYN_OPTIONS, .tsval = 100));
    secondary(TCP(.seq = 70000, .flags = SYN, SYN_OPTIONS, .tsval = 900000));
    /* Towards the secondary: the peer echoes the primary's clock, which is not the secondary's. */
    n = TCP(.ip.from_peer = true, .seq = 4999, .ack = 1000, .flags = SYN | ACK, SYN_OPTIONS,
            .tsval = 5, .tsecr = 100);
    input(n);
    packet_parse(&parsed, frame, n);
    packet_tcp_shift_ack(frame, &parsed, 70000 - 999, false);
    packet_tcp_shift_tsecr(frame, &parsed, 900000 - 100, false);
    assert_int_equal(0, packet_parse(&parsed, frame, n));
    assert_true(packet_checksum_ok(frame, &parsed));
    assert_int_equal(parsed.tcp.ack, 70001);
    assert_int_equal(parsed.tcp.tsecr, 900000);
    /* From the secondary: its own clock stands in its output, and is not compared. */
    p = primary(DATA(0, 100, .timestamp = true, .tsval = 101, .tsecr = 5));
    n = TCP(.seq = 70001, .data = bytes, .bytes = 100, .timestamp = true, .tsval = 900002,
            .tsecr = 5);
    packet_parse(&parsed, frame, n);
    packet_tcp_shift_seq(frame, &parsed, 999u - 70000, false);
    secondary(n);
    released(p);
    no_checkpoint();
}

static void s21_a_fin_at_the_same_position_is_released(void **state)
{
    uint64_t p1 = primary(DATA(0, 100)), p2 = primary(DATA(100, 0, .flags = FIN | ACK)), s;

    (void)state;
    secondary(DATA(0, 50));
    s = secondary(DATA(50, 50, .flags = FIN | ACK)); /* the same stream, cut otherwise */
    released(p1);
    released(p2);
    matched(s);
    no_checkpoint();
}

static void s21_secondary_data_beyond_the_primarys_fin_is_uncomparable(void **state)
{
    uint64_t p1 = primary(DATA(0, 100)), p2 = primary(DATA(100, 0, .flags = FIN | ACK));

    (void)state;
    secondary(DATA(0, 150));
    checkpoint(CTL_WHY_UNCOMPARABLE);
    held(p1); /* it agrees, but the streams do not any more */
    held(p2);
}

static void s22_a_rst_from_both_is_released(void **state)
{
    uint64_t p, s;

    (void)state;
    known_flow();
    p = primary(TCP(.seq = 1000, .flags = RST | ACK));
    held(p);
    s = secondary(TCP(.seq = 1000, .flags = RST | ACK));
    released(p);
    matched(s);
    /* The secondary first, and to a SYN that nobody wanted. */
    s = secondary(TCP(.seq = 0, .ack = 71, .flags = RST | ACK, .guest_port = 81));
    p = primary(TCP(.seq = 0, .ack = 71, .flags = RST | ACK, .guest_port = 81));
    released(p);
    matched(s);
    no_checkpoint();
    assert_int_equal(cmp_next_us(w->c), UINT64_MAX);
}

static void s22_a_rst_from_the_primary_only_is_held_to_the_deadline(void **state)
{
    uint64_t p = primary(TCP(.seq = 1000, .flags = RST));

    (void)state;
    secondary(TCP(.seq = 1001, .flags = RST, .peer_port = 5)); /* of another flow */
    held(p);
    checkpoint_at_deadline();
    held(p);
}

static void s22_a_rst_from_the_secondary_only_is_a_checkpoint_at_the_deadline(void **state)
{
    uint64_t p;

    (void)state;
    secondary(TCP(.seq = 1000, .flags = RST));
    checkpoint_at_deadline();
    p = primary(DATA(0, 10, .peer_port = 6)); /* other flows are not concerned */
    secondary(DATA(0, 10, .peer_port = 6));
    released(p);
}

static void s22_a_rst_waits_for_the_bytes_before_it(void **state)
{
    uint64_t p1, p2;

    (void)state;
    known_flow();
    p1 = primary(DATA(0, 100));
    p2 = primary(TCP(.seq = 1100, .flags = RST | ACK));
    secondary(TCP(.seq = 1100, .flags = RST | ACK));
    held(p2);
    secondary(DATA(0, 100));
    released(p1);
    released(p2);
    assert_true(w->released_at[p1] < w->released_at[p2]);
}

static void s22_rsts_at_different_numbers_do_not_match(void **state)
{
    uint64_t p;

    (void)state;
    known_flow();
    p = primary(TCP(.seq = 1000, .flags = RST));
    secondary(TCP(.seq = 1001, .flags = RST));
    secondary(TCP(.seq = 1000, .flags = RST | ACK));
    held(p);
    pass(DEADLINE_MAX);
    checkpoint(CTL_WHY_DEADLINE);
}

static void s23_a_reused_tuple_with_a_lower_isn_is_compared_in_full(void **state)
{
    uint64_t p;

    (void)state;
    handshake(3000);
    p = primary(DATA(0, 100, .flags = FIN | ACK));
    secondary(DATA(0, 100, .flags = FIN | ACK));
    released(p);
    /* ISN 500 lies below everything that was verified. */
    p = primary(TCP(.seq = 500, .ack = 8000, .flags = SYN | ACK, SYN_OPTIONS));
    held(p);
    assert_int_equal(w->flows, 2);
    assert_int_equal(w->flow.primary_isn, 500);
    secondary(TCP(.seq = 40, .ack = 8000, .flags = SYN | ACK, SYN_OPTIONS));
    released(p);
    p = primary(TCP(.seq = 501, .ack = 8000, .data = "right", .bytes = 5));
    held(p);
    secondary(TCP(.seq = 501, .ack = 8000, .data = "wrong", .bytes = 5));
    held(p);
    checkpoint(CTL_WHY_DIVERGED);
    assert_non_null(strstr(w->text, "byte 0:"));
}

static void s23_a_reused_tuple_that_the_secondary_reaches_first_is_kept_apart(void **state)
{
    uint64_t p, s;

    (void)state;
    handshake(3000);
    s = secondary(DATA(0, 100, .flags = FIN | ACK));
    s = secondary(TCP(.seq = 40, .ack = 8000, .flags = SYN | ACK, SYN_OPTIONS));
    p = primary(DATA(0, 100, .flags = FIN | ACK));
    released(p);
    unmatched(s);
    p = primary(TCP(.seq = 500, .ack = 8000, .flags = SYN | ACK, SYN_OPTIONS));
    released(p);
    matched(s);
    no_checkpoint();
}

static void s24_sequence_numbers_wrap_through_zero(void **state)
{
    uint64_t p1, p2;

    (void)state;
    p1 = primary(TCP(.seq = 0xfffffe00, .ack = 0xffffff00, .data = bytes, .bytes = 1000));
    p2 = primary(TCP(.seq = 0xfffffe00 + 1000u, .ack = 16, .data = bytes + 1000, .bytes = 500));
    secondary(TCP(.seq = 0xfffffe00, .ack = 0xffffff00, .data = bytes, .bytes = 700));
    held(p1);
    secondary(TCP(.seq = 0xfffffe00 + 700u, .ack = 0xffffff00, .data = bytes + 700, .bytes = 800));
    released(p1);
    held(p2);
    secondary(TCP(.seq = 0xfffffe00 + 1500u, .ack = 16));
    released(p2);
    no_checkpoint();
}

static void s24_the_syn_may_be_the_last_number_before_zero(void **state)
{
    uint64_t p;

    (void)state;
    p = primary(TCP(.seq = 0xffffffff, .flags = SYN | ACK, SYN_OPTIONS));
    secondary(TCP(.seq = 5, .flags = SYN | ACK, SYN_OPTIONS));
    released(p);
    p = primary(TCP(.seq = 0, .data = bytes, .bytes = 10));
    secondary(TCP(.seq = 0, .data = bytes, .bytes = 10));
    released(p);
}

static void s25_a_flow_older_than_protection_is_taken_up_at_its_data(void **state)
{
    uint64_t p = primary(DATA(0, 500));

    (void)state;
    held(p);
    secondary(DATA(0, 500));
    released(p);
    p = primary(DATA(500, 500));
    bytes[999] ^= 1;
    secondary(DATA(500, 500));
    held(p);
    checkpoint(CTL_WHY_DIVERGED);
}

/* [0, 500) of the primary was lost on the way here, and the copy said something else there. */
static void a_flow_taken_up_behind_a_frame_that_was_lost_waits_for_the_epoch(void **state)
{
    uint64_t p;

    (void)state;
    cmp_missed(w->c);
    p = primary(DATA(500, 500));
    secondary(DATA(500, 500));
    held(p);
    p = primary(DATA(0, 500)); /* again */
    bytes[100] ^= 1;
    secondary(DATA(0, 500));
    bytes[100] ^= 1;
    held(p);
    whole_checkpoint();
    released(p);
    p = primary(DATA(1000, 100));
    secondary(DATA(1000, 100));
    released(p);
}

static void a_known_flow_is_compared_though_a_frame_was_lost(void **state)
{
    uint64_t p;

    (void)state;
    known_flow();
    cmp_missed(w->c);
    p = primary(DATA(0, 500));
    secondary(DATA(0, 500));
    released(p);
}

static void without_a_copy_that_runs_output_waits_for_its_epoch(void **state)
{
    uint64_t p1, p2;

    (void)state;
    known_flow();
    p1 = primary(DATA(0, 100));
    cmp_compare(w->c, false);
    cut();
    p2 = primary(DATA(100, 100));
    secondary(DATA(100, 100));
    held(p1);
    held(p2);
    release_epoch(w->epoch - 1);
    released(p1);
    held(p2);
    pass(10 * DEADLINE_MAX);
    no_checkpoint();
    cut();
    release_epoch(w->epoch - 1);
    released(p2);
}

/* What both have said since it was compared last is as good as equal: the checkpoint made it so. */
static void when_the_copy_runs_again_connections_are_taken_up_where_they_are(void **state)
{
    uint64_t p;

    (void)state;
    handshake(7777);
    cmp_compare(w->c, false);
    whole_checkpoint();
    primary(DATA(0, 1000));
    input(TCP(.ip.from_peer = true, .seq = 5000, .ack = 2000));
    cmp_compare(w->c, true);
    whole_checkpoint();
    p = primary(DATA(1000, 100));
    held(p);
    secondary(DATA(1000, 100));
    released(p);
    p = primary(DATA(1100, 100));
    bytes[1150] ^= 1;
    secondary(DATA(1100, 100));
    bytes[1150] ^= 1;
    held(p);
    checkpoint(CTL_WHY_DIVERGED);
}

static void s25_a_flow_taken_up_at_a_keepalive_is_not_held_for_the_gap(void **state)
{
    uint64_t p = primary(TCP(.seq = 999)); /* a keepalive stands one below */

    (void)state;
    secondary(TCP(.seq = 999));
    released(p);
    p = primary(DATA(0, 100));
    secondary(DATA(0, 100));
    released(p);
    no_checkpoint();
}

static void s26_udp_in_another_order_is_released(void **state)
{
    uint64_t p[3], s;
    int i;

    (void)state;
    for (i = 0; i < 3; i++) {
        p[i] = primary(frame_udp(frame, IP(.id = (uint16_t)i), 53, 999, bytes + i, 100));
    }
    secondary(frame_udp(frame, IP(.id = 9, .ttl = 3), 53, 999, bytes + 2, 100));
    released(p[2]);
    held(p[0]);
    secondary(frame_udp(frame, IP(.id = 8), 53, 999, bytes + 0, 100));
    s = secondary(frame_udp(frame, IP(.id = 7), 53, 999, bytes + 1, 100));
    released(p[0]);
    released(p[1]);
    matched(s);
    no_checkpoint();
    /* The secondary first, and IPv6. */
    s = secondary(frame_udp(frame, IP(.v6 = true), 53, 999, bytes, 2000));
    p[0] = primary(frame_udp(frame, IP(.v6 = true), 53, 999, bytes, 2000));
    released(p[0]);
    matched(s);
}

static void s26_each_equal_datagram_answers_for_one(void **state)
{
    uint64_t p1 = primary(frame_udp(frame, IP(0), 53, 999, "same", 4));
    uint64_t p2 = primary(frame_udp(frame, IP(0), 53, 999, "same", 4));

    (void)state;
    secondary(frame_udp(frame, IP(0), 53, 999, "same", 4));
    released(p1);
    held(p2);
}

static void s27_udp_without_an_equal_is_held_to_the_deadline(void **state)
{
    uint64_t p = primary(frame_udp(frame, IP(0), 53, 999, "one", 3));
    uint64_t s = secondary(frame_udp(frame, IP(0), 53, 999, "two", 3));

    (void)state;
    secondary(frame_udp(frame, IP(0), 53, 998, "one", 3)); /* another flow */
    secondary(frame_udp(frame, IP(.vlan = {1}), 53, 999, "one", 3));
    secondary(frame_udp(frame, IP(.v6 = true), 53, 999, "one", 3));
    held(p);
    unmatched(s);
    checkpoint_at_deadline();
    held(p);
    /* What the copy said instead is named, of the same conversation only. */
    assert_true(w->has_key);
    assert_non_null(strstr(w->text, "nearest differs in byte 0: 0x6f / 0x74"));
}

static size_t fragment(bool v6, const uint8_t *udp, uint32_t id, uint32_t from, uint32_t to,
                       uint32_t total)
{
    return frame_raw(frame,
                     IP(.v6 = v6, .id = (uint16_t)id, .fragment_id = v6 ? id : 0,
                        .fragment = (uint16_t)(from / 8 | (to < total ? 0x2000 : 0))),
                     17, udp + from, to - from);
}

static void s28_fragments_with_other_ids_and_cuts_are_released(void **state)
{
    uint64_t p1, p2, p3, s1, s2;
    uint8_t udp[4008];
    int v6;

    (void)state;
    memcpy(udp, "\x00\x35\x03\xe7\x0f\xa8\x12\x34", 8);
    memcpy(udp + 8, bytes, 4000);
    for (v6 = 0; v6 < 2; v6++) {
        p1 = primary(fragment(v6, udp, 1, 0, 1480, 4008));
        p2 = primary(fragment(v6, udp, 1, 1480, 2960, 4008));
        s1 = secondary(fragment(v6, udp, 2, 2000, 4008, 4008)); /* and in another order */
        held(p1);
        p3 = primary(fragment(v6, udp, 1, 2960, 4008, 4008));
        held(p3);
        udp[6] ^= 0xff; /* the checksum: full here, partial there */
        s2 = secondary(fragment(v6, udp, 2, 0, 2000, 4008));
        udp[6] ^= 0xff;
        released(p1);
        released(p2);
        released(p3);
        matched(s1);
        matched(s2);
    }
    /* Against the same datagram in one piece. */
    p1 = primary(fragment(0, udp, 5, 0, 2000, 4008));
    p2 = primary(fragment(0, udp, 5, 2000, 4008, 4008));
    secondary(frame_udp(frame, IP(0), 53, 999, bytes, 4000));
    released(p1);
    released(p2);
    no_checkpoint();
    assert_int_equal(cmp_next_us(w->c), UINT64_MAX);
}

static void s28_fragments_that_differ_or_are_missing_are_held(void **state)
{
    uint64_t p1, p2, p3;
    uint8_t udp[2008];

    (void)state;
    memcpy(udp, "\x00\x35\x03\xe7\x07\xd8\x12\x34", 8);
    memcpy(udp + 8, bytes, 2000);
    p1 = primary(fragment(0, udp, 1, 0, 1000, 2008));
    p2 = primary(fragment(0, udp, 1, 1000, 2008, 2008));
    p3 = primary(fragment(0, udp, 2, 0, 1000, 2008));
    udp[1500] ^= 1;
    secondary(fragment(0, udp, 1, 0, 1000, 2008));
    secondary(fragment(0, udp, 1, 1000, 2008, 2008));
    held(p1);
    held(p2);
    held(p3);
    checkpoint_at_deadline();
    cut();
    release_epoch(1);
    released(p1);
    released(p2);
    released(p3);
}

static void s28_fragments_that_overlap_are_never_compared(void **state)
{
    uint64_t p1, p2, p3;
    uint8_t udp[2008];

    (void)state;
    memset(udp, 1, sizeof(udp));
    primary(fragment(0, udp, 1, 0, 1000, 2008));
    p1 = primary(fragment(0, udp, 1, 1000, 2008, 2008));
    secondary(fragment(0, udp, 1, 0, 1000, 2008));
    secondary(fragment(0, udp, 1, 1000, 2008, 2008));
    released(p1);
    /* As many bytes as a whole packet, but eight of them twice and eight not at all. */
    p1 = primary(fragment(0, udp, 1, 0, 1000, 2008));
    p2 = primary(fragment(0, udp, 1, 992, 1600, 2008));
    p3 = primary(fragment(0, udp, 1, 1608, 2008, 2008));
    secondary(fragment(0, udp, 1, 0, 1000, 2008));
    secondary(fragment(0, udp, 1, 1000, 2008, 2008));
    held(p1);
    held(p2);
    held(p3);
    cmp_drain(w->c, false);
    dropped(p1);
    dropped(p2);
    dropped(p3);
}

static void s28_fragments_of_two_packets_may_be_mixed(void **state)
{
    uint64_t p[4];
    uint8_t one[2008], two[2008];
    int i;

    (void)state;
    memset(one, 1, sizeof(one));
    memset(two, 2, sizeof(two));
    p[0] = primary(fragment(0, one, 1, 0, 1000, 2008));
    p[1] = primary(fragment(0, two, 2, 0, 1000, 2008));
    p[2] = primary(fragment(0, two, 2, 1000, 2008, 2008));
    p[3] = primary(fragment(0, one, 1, 1000, 2008, 2008));
    secondary(fragment(0, two, 8, 0, 1000, 2008));
    secondary(fragment(0, two, 8, 1000, 2008, 2008));
    released(p[1]);
    released(p[2]);
    held(p[0]);
    secondary(fragment(0, one, 9, 0, 1000, 2008));
    secondary(fragment(0, one, 9, 1000, 2008, 2008));
    for (i = 0; i < 4; i++) {
        released(p[i]);
    }
}

static void s28_more_packets_in_pieces_than_there_is_room_for_wait(void **state)
{
    uint8_t udp[2008];
    uint64_t p, q;
    uint32_t i;

    (void)state;
    memset(udp, 1, sizeof(udp));
    /* The secondary's unfinished ones make room ... */
    for (i = 0; i < 300; i++) {
        secondary(fragment(0, udp, i, 0, 1000, 2008));
    }
    p = primary(fragment(0, udp, 999, 0, 1000, 2008));
    q = primary(fragment(0, udp, 999, 1000, 2008, 2008));
    secondary(fragment(0, udp, 299, 1000, 2008, 2008));
    released(p);
    released(q);
    /* ... the primary's do not, and are all answered for. */
    for (i = 0; i < 300; i++) {
        p = primary(fragment(0, udp, i, 0, 1000, 2008));
    }
    cmp_drain(w->c, true);
    released(p);
}

static void s29_an_equal_echo_reply_is_released_and_another_payload_diverges(void **state)
{
    int v6;

    (void)state;
    for (v6 = 0; v6 < 2; v6++) {
        uint8_t type = v6 ? 129 : 0;
        uint64_t p = primary(frame_icmp(frame, IP(.v6 = v6), type, 0, 0x10001, "payload", 7)), s;

        secondary(frame_icmp(frame, IP(.v6 = v6), type, 0, 0x10002, "payload", 7));
        held(p);
        s = secondary(frame_icmp(frame, IP(.v6 = v6, .id = 7), type, 0, 0x10001, "payload", 7));
        released(p);
        matched(s);
        no_checkpoint();
        p = primary(frame_icmp(frame, IP(.v6 = v6), type, 0, 0x10003, "payload", 7));
        secondary(frame_icmp(frame, IP(.v6 = v6), type, 0, 0x10003, "pAyload", 7));
        held(p);
        checkpoint(CTL_WHY_DIVERGED);
        whole_checkpoint();
        released(p);
    }
}

static void s30_the_same_icmpv6_neighbour_and_listener_messages_are_released(void **state)
{
    static const uint8_t types[] = {135, 136, 143};
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(types); i++) {
        bool mld = types[i] == 143;
        uint64_t p = primary(frame_icmp(frame, IP(.v6 = true, .hop_by_hop = mld, .ttl = 255),
                                        types[i], 0, 0, bytes, 24));

        held(p);
        secondary(frame_icmp(frame, IP(.v6 = true, .hop_by_hop = mld, .ttl = 255), types[i], 0, 0,
                             bytes + 1, 24));
        held(p);
        secondary(frame_icmp(frame, IP(.v6 = true, .hop_by_hop = mld, .ttl = 255), types[i], 0, 0,
                             bytes, 24));
        released(p);
    }
    no_checkpoint();
}

static void s31_the_same_arp_is_released_and_a_surplus_request_is_forgotten(void **state)
{
    struct cmp_stats stats;
    uint64_t p, s;

    (void)state;
    p = primary(frame_arp(frame, 2, 2, 9));
    frame_arp(frame, 2, 2, 9);
    s = secondary(60); /* padded */
    released(p);
    matched(s);
    s = secondary(frame_arp(frame, 1, 2, 7));
    pass(10 * DEADLINE_MAX);
    no_checkpoint();
    unmatched(s);
    cmp_stats_get(w->c, &stats);
    assert_int_equal(stats.secondary_surplus, 1);
    assert_int_equal(stats.bytes, 0);
    p = primary(frame_arp(frame, 1, 2, 7));
    held(p); /* it was forgotten */
}

static void s31_the_ethernet_header_of_an_arp_is_not_compared(void **state)
{
    size_t n = frame_arp(frame, 2, 2, 9);
    uint64_t p = primary(n);

    (void)state;
    frame[0] ^= 0xff;
    secondary(n);
    released(p);
}

static void s32_tagged_tcp_is_compared_and_the_tag_is_part_of_the_key(void **state)
{
    uint64_t p1 = primary(DATA(0, 100, .ip.vlan = {5})), p2, p3;

    (void)state;
    p2 = primary(DATA(0, 100, .ip.vlan = {5, 6}));
    p3 = primary(DATA(0, 100, .ip = {.v6 = true, .vlan = {5}}));
    secondary(DATA(0, 100));
    secondary(DATA(0, 100, .ip.vlan = {6}));
    held(p1);
    secondary(DATA(0, 60, .ip.vlan = {5}));
    secondary(DATA(60, 40, .ip.vlan = {5}));
    released(p1);
    held(p2);
    secondary(DATA(0, 100, .ip.vlan = {5, 6}));
    released(p2);
    held(p3);
    secondary(DATA(0, 100, .ip = {.v6 = true, .vlan = {5}}));
    released(p3);
    no_checkpoint();
}

static void s33_the_padding_of_a_short_ack_is_no_payload(void **state)
{
    uint64_t p;

    (void)state;
    known_flow();
    p = primary(TCP(.seq = 1000, .ack = 5100, .pad = true));
    held(p);
    secondary(TCP(.seq = 1000, .ack = 5100));
    released(p);
    p = primary(DATA(0, 100));
    secondary(DATA(0, 100));
    released(p);
    no_checkpoint();
}

static void s34_gre_and_esp_that_differ_in_ip_id_only_are_released(void **state)
{
    static const uint8_t protos[] = {47, 50};
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(protos); i++) {
        uint64_t p = primary(frame_raw(frame, IP(.id = 1, .ttl = 9), protos[i], bytes, 200)), s;

        secondary(frame_raw(frame, IP(.id = 2), protos[i], bytes + 1, 200));
        held(p);
        s = secondary(frame_raw(frame, IP(.id = 2), protos[i], bytes, 200));
        released(p);
        matched(s);
    }
    no_checkpoint();
}

static void s35_a_partial_checksum_against_a_full_one_is_released(void **state)
{
    uint64_t p = primary(DATA(0, 100, .partial = true));
    size_t n;

    (void)state;
    secondary(DATA(0, 100));
    released(p);
    p = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    n = frame_udp(frame, IP(0), 53, 999, bytes, 100);
    frame_put16(frame + 40, 0x1234);
    secondary(n);
    released(p);
    n = frame_icmp(frame, IP(0), 3, 3, 0, bytes, 100);
    p = primary(n);
    frame_put16(frame + 36, 0x1234);
    secondary(n);
    released(p);
    no_checkpoint();
}

static void s36_data_in_the_syn_is_compared(void **state)
{
    uint64_t p;

    (void)state;
    p = primary(TCP(.seq = 999, .flags = SYN, SYN_OPTIONS, .data = bytes, .bytes = 100));
    secondary(TCP(.seq = 70, .flags = SYN, SYN_OPTIONS, .data = bytes, .bytes = 60));
    held(p);
    secondary(DATA(60, 40));
    released(p);
    p = primary(
        TCP(.seq = 999, .flags = SYN, SYN_OPTIONS, .data = "a", .bytes = 1, .peer_port = 6));
    secondary(TCP(.seq = 70, .flags = SYN, SYN_OPTIONS, .data = "b", .bytes = 1, .peer_port = 6));
    held(p);
    checkpoint(CTL_WHY_DIVERGED);
}

static void s36_data_in_an_early_syn_of_the_secondary_is_compared(void **state)
{
    uint64_t p, s;

    (void)state;
    s = secondary(TCP(.seq = 70, .flags = SYN, SYN_OPTIONS, .data = bytes, .bytes = 60));
    p = primary(TCP(.seq = 999, .flags = SYN, SYN_OPTIONS, .data = bytes, .bytes = 60));
    released(p);
    matched(s);
    secondary(TCP(.seq = 70, .flags = SYN, SYN_OPTIONS, .data = "b", .bytes = 1, .peer_port = 6));
    p = primary(
        TCP(.seq = 999, .flags = SYN, SYN_OPTIONS, .data = "a", .bytes = 1, .peer_port = 6));
    held(p);
    checkpoint(CTL_WHY_DIVERGED);
}

static void s37_truncated_frames_are_compared_raw(void **state)
{
    uint64_t p, s;
    size_t n;

    (void)state;
    p = primary(DATA(0, 20, .data_offset = 15));
    s = secondary(DATA(0, 20, .data_offset = 15));
    released(p);
    matched(s);
    n = DATA(0, 20);
    p = primary(n - 3);
    secondary(n - 3);
    released(p);
    for (n = 1; n < 14; n++) {
        p = primary(n);
        secondary(n);
        released(p);
    }
    no_checkpoint();
    p = primary(DATA(0, 20, .data_offset = 15));
    secondary(DATA(1, 20, .data_offset = 15));
    held(p);
    pass(DEADLINE_MAX);
    checkpoint(CTL_WHY_DEADLINE);
}

static void s38_an_old_frame_of_the_secondary_is_discarded_after_a_checkpoint(void **state)
{
    struct cmp_stats stats;
    uint64_t p, s;

    (void)state;
    known_flow();
    whole_checkpoint();
    p = primary(DATA(0, 100));
    s = secondary_of(1, DATA(0, 100));
    held(p);
    unmatched(s);
    cmp_stats_get(w->c, &stats);
    assert_int_equal(stats.secondary_old, 1);
    p = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    secondary_of(1, frame_udp(frame, IP(0), 53, 999, bytes, 100));
    held(p);
    secondary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    released(p);
}

static void s38_what_the_secondary_sent_before_the_cut_matches_nothing_after_it(void **state)
{
    uint64_t p, q, s;

    (void)state;
    s = secondary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    secondary(DATA(0, 100));
    whole_checkpoint();
    p = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    q = primary(DATA(0, 100));
    held(p);
    held(q);
    unmatched(s);
}

static void s39_what_was_queued_before_the_cut_leaves_when_the_epoch_is_acknowledged(void **state)
{
    uint64_t before1, before2, after;

    (void)state;
    known_flow();
    before1 = primary(DATA(0, 100));
    before2 = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    cut();
    after = primary(DATA(100, 100));
    held(before1);
    held(before2);
    cmp_release_epoch(w->c, w->now, 1);
    released(before1);
    released(before2);
    held(after);
    assert_true(w->released_at[before1] < w->released_at[before2]);
    secondary(DATA(100, 100));
    released(after);
}

static void s40_a_lost_secondary_holds_and_then_releases_everything(void **state)
{
    uint64_t p1, p2, p3;

    (void)state;
    p1 = primary(DATA(0, 100));
    cut();
    p2 = primary(DATA(100, 100));
    cmp_hold(w->c, true);
    p3 = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    secondary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    pass(100 * DEADLINE_MAX);
    held(p1);
    held(p2);
    held(p3);
    no_checkpoint();
    cmp_drain(w->c, true);
    released(p1);
    released(p2);
    released(p3);
    assert_true(w->released_at[p1] < w->released_at[p2]);
    assert_true(w->released_at[p2] < w->released_at[p3]);
}

static void s40_a_fenced_primary_drops_everything(void **state)
{
    uint64_t p1 = primary(DATA(0, 100)), p2;

    (void)state;
    cut();
    p2 = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    cmp_drain(w->c, false);
    dropped(p1);
    dropped(p2);
}

static void s41_three_quarters_of_the_frames_are_a_checkpoint_and_none_is_let_go(void **state)
{
    const struct cmp_limits limits = {
        .frames_max = 16,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    uint64_t p[20], i;

    (void)state;
    restart(&limits);
    for (i = 0; i < 11; i++) {
        p[i] = primary(DATA(10 * i, 10));
    }
    no_checkpoint();
    p[11] = primary(DATA(110, 10));
    checkpoint(CTL_WHY_QUEUE);
    for (i = 12; i < 16; i++) {
        p[i] = primary(DATA(10 * i, 10));
        held(p[i]);
    }
    /* Full: as if the network had lost it. */
    p[16] = primary(DATA(160, 10));
    dropped(p[16]);
    for (i = 0; i < 16; i++) {
        held(p[i]);
    }
    /* What is held is still compared. */
    secondary(DATA(0, 20));
    released(p[0]);
    released(p[1]);
    held(p[2]);
    p[16] = primary(DATA(160, 10)); /* the retransmission */
    held(p[16]);
    secondary(DATA(20, 150));
    for (i = 0; i < 17; i++) {
        assert_true(w->answer[p[i]] == RELEASED);
    }
}

static void s41_frames_that_wait_for_an_acknowledgement_ask_for_no_further_checkpoint(void **state)
{
    const struct cmp_limits limits = {
        .frames_max = 16,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    uint64_t i;

    (void)state;
    restart(&limits);
    for (i = 0; i < 12; i++) {
        primary(DATA(10 * i, 10));
    }
    checkpoint(CTL_WHY_QUEUE);
    cut();
    primary(DATA(120, 10));
    checkpoint(CTL_WHY_QUEUE); /* still the only one */
    dropped((primary(DATA(130, 10)), primary(DATA(140, 10)), primary(DATA(150, 10)),
             primary(DATA(160, 10))));
}

/* ---- Epochs ---------------------------------------------------------------------------------- */

static void the_next_epoch_is_not_released_before_the_last_one(void **state)
{
    uint64_t p1, p2, u, s;

    (void)state;
    known_flow();
    p1 = primary(DATA(0, 100));
    cut();
    p2 = primary(DATA(0, 100)); /* bytes below the cut, of an epoch nobody has acknowledged */
    u = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    s = secondary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    held(p1);
    held(p2);
    held(u);
    assert_int_equal(cmp_next_us(w->c), UINT64_MAX);
    cmp_release_epoch(w->c, w->now, 1);
    released(p1);
    held(p2);
    held(u);
    assert_int_equal(cmp_next_us(w->c), 0);
    cmp_tick(w->c, w->now);
    released(p2);
    released(u);
    matched(s);
}

static void what_the_secondary_repeats_is_matched_only_after_the_epochs_release(void **state)
{
    uint64_t p, ack, again;

    (void)state;
    known_flow();
    p = primary(DATA(0, 100));
    cut();
    ack = secondary(TCP(.seq = 1100));
    again = secondary(DATA(0, 100));
    unmatched(ack);
    unmatched(again);
    release_epoch(1);
    released(p);
    matched(ack);
    matched(again);
}

static void a_flow_goes_on_from_the_primarys_position_at_the_cut(void **state)
{
    uint64_t p, s;

    (void)state;
    known_flow();
    primary(DATA(0, 1000, .ack = 5500)); /* the secondary never said any of this */
    whole_checkpoint();
    s = secondary(DATA(0, 1000)); /* from the primary's send buffer, which it now has */
    matched(s);
    p = primary(DATA(1000, 100, .ack = 5500));
    held(p);
    secondary(DATA(900, 200)); /* its ack is older, but at the cut it had 5500 */
    released(p);
    no_checkpoint();
}

static void a_diverged_flow_is_compared_again_in_the_next_epoch(void **state)
{
    uint64_t p, old;

    (void)state;
    old = primary(DATA(0, 10));
    secondary(TCP(.seq = 1000, .data = "XXXXXXXXXX", .bytes = 10));
    checkpoint(CTL_WHY_DIVERGED);
    primary(DATA(10, 10));
    whole_checkpoint();
    released(old);
    p = primary(DATA(20, 10));
    held(p);
    secondary(DATA(20, 10));
    released(p);
    p = primary(DATA(30, 10));
    secondary(TCP(.seq = 1030, .data = "XXXXXXXXXX", .bytes = 10));
    held(p);
    checkpoint(CTL_WHY_DIVERGED);
}

static void a_checkpoint_is_asked_for_once_in_an_epoch(void **state)
{
    struct cmp_stats stats;

    (void)state;
    primary(TCP(.seq = 1, .data = "a", .bytes = 1, .peer_port = 1));
    secondary(TCP(.seq = 1, .data = "b", .bytes = 1, .peer_port = 1));
    primary(TCP(.seq = 1, .data = "a", .bytes = 1, .peer_port = 2));
    secondary(TCP(.seq = 1, .data = "b", .bytes = 1, .peer_port = 2));
    pass(DEADLINE_MAX);
    assert_int_equal(w->checkpoints, 1);
    cmp_stats_get(w->c, &stats);
    assert_int_equal(stats.checkpoints[CTL_WHY_DIVERGED], 1);
    assert_int_equal(stats.checkpoints_coalesced, 1);
    whole_checkpoint();
    primary(TCP(.seq = 2, .data = "a", .bytes = 1, .peer_port = 2));
    secondary(TCP(.seq = 2, .data = "b", .bytes = 1, .peer_port = 2));
    assert_int_equal(w->checkpoints, 1);
}

static void frames_of_an_epoch_to_come_are_kept(void **state)
{
    uint64_t p, s1, s2, s3;

    (void)state;
    known_flow();
    s1 = secondary_of(2, DATA(0, 3000));
    s2 = secondary_of(2, frame_udp(frame, IP(0), 53, 999, bytes, 100));
    s3 = secondary_of(3, DATA(3000, 10));
    p = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    held(p); /* epoch 1 */
    cut();
    release_epoch(1);
    released(p);
    unmatched(s2);
    p = primary(DATA(0, 3000));
    released(p);
    matched(s1);
    p = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    released(p);
    matched(s2);
    whole_checkpoint();
    p = primary(DATA(3000, 10));
    released(p);
    matched(s3);
}

static void several_epochs_may_be_under_way(void **state)
{
    uint64_t p1 = primary(DATA(0, 10)), p2, p3;

    (void)state;
    cut();
    p2 = primary(DATA(10, 10));
    cut();
    p3 = primary(DATA(20, 10));
    secondary(DATA(20, 10));
    cmp_release_epoch(w->c, w->now, 1);
    cmp_tick(w->c, w->now);
    released(p1);
    held(p2);
    held(p3);
    cmp_release_epoch(w->c, w->now, 2);
    cmp_tick(w->c, w->now);
    released(p2);
    released(p3);
}

static void an_epoch_that_was_not_cut_cannot_be_released(void **state)
{
    uint64_t p = primary(DATA(0, 10));

    (void)state;
    cmp_release_epoch(w->c, w->now, 1);
    cmp_release_epoch(w->c, w->now, 100);
    held(p);
    cut();
    primary(DATA(10, 10));
    secondary(DATA(10, 10));
    held(w->primary_ids);
}

static void a_fragment_split_by_the_cut_is_answered_for(void **state)
{
    uint64_t p1, p2;
    uint8_t udp[2008];

    (void)state;
    memset(udp, 1, sizeof(udp));
    p1 = primary(fragment(0, udp, 1, 0, 1000, 2008));
    cut();
    p2 = primary(fragment(0, udp, 1, 1000, 2008, 2008));
    release_epoch(1);
    released(p1);
    held(p2);
    pass(DEADLINE_MAX);
    checkpoint(CTL_WHY_DEADLINE);
    whole_checkpoint();
    released(p2);
}

static void after_hold_the_comparison_goes_on(void **state)
{
    uint64_t p1, p2, s;

    (void)state;
    known_flow();
    cmp_hold(w->c, true);
    p1 = primary(DATA(0, 10));
    p2 = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    s = secondary(DATA(0, 10));
    secondary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    held(p1);
    held(p2);
    unmatched(s);
    cmp_hold(w->c, false);
    assert_int_equal(cmp_next_us(w->c), 0);
    cmp_tick(w->c, w->now);
    released(p1);
    released(p2);
    matched(s);
}

/* ---- Timers ---------------------------------------------------------------------------------- */

static void the_deadline_follows_the_lag_between_its_bounds(void **state)
{
    struct cmp_stats stats;
    uint32_t i;

    (void)state;
    for (i = 0; i < 100; i++) {
        primary(DATA(i * 10, 10));
        pass(5000);
        secondary(DATA(i * 10, 10));
    }
    cmp_stats_get(w->c, &stats);
    assert_in_range(stats.lag_us, 4900, 5000);
    primary(DATA(1000, 10));
    no_checkpoint();
    assert_in_range(cmp_next_us(w->c) - w->now, 4900 + DEADLINE_MIN, 5100 + DEADLINE_MIN);
    pass(5100 + DEADLINE_MIN);
    checkpoint(CTL_WHY_DEADLINE);
}

static void waiting_for_a_checkpoint_is_no_lag(void **state)
{
    struct cmp_stats stats;
    uint64_t p;

    (void)state;
    known_flow();
    cut();
    p = primary(DATA(0, 10));
    secondary(DATA(0, 10));
    pass(50000);
    release_epoch(1);
    released(p);
    cmp_stats_get(w->c, &stats);
    assert_int_equal(stats.lag_us, 0);
    assert_int_equal(stats.delay_us_max, 50000);
}

static void a_deadline_runs_from_the_opening_of_the_gate_and_not_during_a_checkpoint(void **state)
{
    (void)state;
    known_flow();
    cut();
    primary(DATA(0, 10));
    assert_int_equal(cmp_next_us(w->c), UINT64_MAX);
    pass(50 * DEADLINE_MAX);
    no_checkpoint();
    release_epoch(1);
    assert_int_equal(cmp_next_us(w->c), w->now + DEADLINE_MAX);
    secondary(frame_arp(frame, 1, 2, 3));
    assert_int_equal(cmp_next_us(w->c), w->now + DEADLINE_MAX);
}

static void a_partner_is_waited_for_as_long_as_a_checkpoint_takes(void **state)
{
    (void)state;
    known_flow();
    cut();
    primary(DATA(0, 10));
    pass(DEADLINE_MIN / 2);
    release_epoch(1);
    /* The secondary may still be applying it: the longest deadline until it has been heard. */
    assert_int_equal(cmp_next_us(w->c), w->now + DEADLINE_MAX);
    secondary(frame_arp(frame, 1, 2, 3));
    assert_int_equal(cmp_next_us(w->c), w->now + DEADLINE_MIN);
    secondary(DATA(0, 10));
    cut();
    primary(DATA(10, 10));
    pass(DEADLINE_MIN / 2 + 16 * DEADLINE_MIN);
    release_epoch(2);
    secondary(frame_arp(frame, 1, 2, 3));
    assert_int_equal(cmp_next_us(w->c), w->now + DEADLINE_MIN / 2 + 4 * DEADLINE_MIN);
}

/* ---- Limits ---------------------------------------------------------------------------------- */

static void without_room_for_copies_frames_are_held_by_id(void **state)
{
    const struct cmp_limits limits = {
        .bytes_max = 16 * 2048,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    struct cmp_stats stats;
    uint64_t p[20], i, udp;

    (void)state;
    restart(&limits);
    for (i = 0; i < 20; i++) {
        p[i] = primary(DATA(1500 * i, 1500, .peer_port = (uint16_t)(1 + i)));
        assert_int_equal(w->checkpoints, i >= 11);
    }
    assert_int_equal(w->why, CTL_WHY_QUEUE);
    udp = primary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    cmp_stats_get(w->c, &stats);
    assert_int_equal(stats.bytes, limits.bytes_max);
    assert_int_equal(stats.held, 21);
    secondary(frame_udp(frame, IP(0), 53, 999, bytes, 100));
    held(udp); /* it was not copied, so it cannot be compared */
    for (i = 0; i < 20; i++) {
        secondary(DATA(1500 * i, 1500, .peer_port = (uint16_t)(1 + i)));
        assert_int_equal(w->answer[p[i]], i < 16 ? RELEASED : NONE);
    }
    whole_checkpoint();
    for (i = 16; i < 20; i++) {
        released(p[i]);
    }
    released(udp);
}

static void the_secondarys_surplus_makes_room_before_anything_else(void **state)
{
    const struct cmp_limits limits = {
        .bytes_max = 16 * 2048,
        .frames_max = 16,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    struct cmp_stats stats;
    uint64_t p;
    int i;

    (void)state;
    restart(&limits);
    for (i = 0; i < 1000; i++) {
        secondary(frame_udp(frame, IP(0), 53, (uint16_t)i, bytes, 1400));
    }
    no_checkpoint();
    cmp_stats_get(w->c, &stats);
    assert_true(stats.secondary_surplus > 980);
    p = primary(frame_udp(frame, IP(0), 53, 999, bytes, 1400));
    released(p); /* the newest are the ones kept */
}

static void a_full_table_of_surplus_makes_room_for_tcp(void **state)
{
    const struct cmp_limits limits = {
        .frames_max = 16,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    uint64_t p;
    int i;

    (void)state;
    restart(&limits);
    for (i = 0; i < 16; i++) {
        secondary(frame_udp(frame, IP(0), 53, (uint16_t)i, bytes, 0));
    }
    secondary(DATA(0, 10));
    p = primary(DATA(0, 10));
    released(p);
    no_checkpoint();
}

static void a_secondary_that_runs_far_ahead_is_a_checkpoint(void **state)
{
    const struct cmp_limits limits = {
        .frames_max = 16,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    uint64_t p;
    uint32_t i;

    (void)state;
    restart(&limits);
    known_flow();
    for (i = 0; i < 40; i++) {
        secondary(DATA(10 * i, 10));
        assert_int_equal(w->checkpoints, i >= 11);
    }
    assert_int_equal(w->why, CTL_WHY_QUEUE);
    p = primary(DATA(0, 10)); /* bytes were lost: not compared any more */
    held(p);
}

static void idle_flows_make_room_and_busy_ones_are_a_checkpoint(void **state)
{
    const struct cmp_limits limits = {
        .flows_max = 8,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    struct cmp_stats stats;
    uint64_t p;
    uint16_t i;

    (void)state;
    restart(&limits);
    for (i = 1; i < 100; i++) {
        p = primary(DATA(0, 10, .peer_port = i));
        secondary(DATA(0, 10, .peer_port = i));
        released(p);
    }
    no_checkpoint();
    cmp_stats_get(w->c, &stats);
    assert_int_equal(stats.flows, 8);
    for (i = 201; i < 209; i++) {
        primary(DATA(0, 10, .peer_port = i));
        assert_int_equal(w->checkpoints, i >= 206);
    }
    assert_int_equal(w->why, CTL_WHY_QUEUE);
    p = primary(DATA(0, 10, .peer_port = 300)); /* no flow left: held by id */
    secondary(DATA(0, 10, .peer_port = 300));
    held(p);
    whole_checkpoint();
    released(p);
    p = primary(DATA(10, 10, .peer_port = 300));
    secondary(DATA(10, 10, .peer_port = 300));
    released(p);
}

static void a_forgotten_flow_is_taken_up_again(void **state)
{
    const struct cmp_limits limits = {
        .flows_max = 2,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    uint64_t p;
    uint16_t i;

    (void)state;
    restart(&limits);
    handshake(77);
    for (i = 1; i < 10; i++) {
        primary(DATA(0, 10, .peer_port = i));
        secondary(DATA(0, 10, .peer_port = i));
    }
    p = primary(DATA(0, 10));
    held(p);
    secondary(DATA(0, 10));
    released(p);
    no_checkpoint();
}

static void a_diverged_flow_is_not_forgotten_within_its_epoch(void **state)
{
    const struct cmp_limits limits = {
        .flows_max = 2,
        .deadline_min_us = DEADLINE_MIN,
        .deadline_max_us = DEADLINE_MAX,
    };
    uint64_t p;
    uint16_t i;

    (void)state;
    restart(&limits);
    primary(DATA(0, 1));
    secondary(TCP(.seq = 1000, .data = "X", .bytes = 1));
    for (i = 1; i < 10; i++) {
        primary(DATA(0, 10, .peer_port = i));
        secondary(DATA(0, 10, .peer_port = i));
    }
    p = primary(DATA(1, 10));
    secondary(DATA(1, 10));
    held(p);
}

static void an_urgent_pointer_is_compared(void **state)
{
    uint64_t p;

    (void)state;
    known_flow();
    secondary(DATA(0, 10, .flags = ACK | URG, .urgent = 5));
    p = primary(DATA(0, 10, .flags = ACK | URG, .urgent = 7));
    held(p);
}

static void a_syn_sent_again_with_other_options_waits_for_the_secondarys(void **state)
{
    const uint32_t ecn = SYN | PACKET_TCP_ECE | PACKET_TCP_CWR;
    uint64_t p;

    (void)state;
    primary(TCP(.seq = 999, .flags = ecn, SYN_OPTIONS));
    secondary(TCP(.seq = 70, .flags = ecn, SYN_OPTIONS));
    released(w->primary_ids);
    p = primary(TCP(.seq = 999, .flags = SYN, SYN_OPTIONS));
    held(p);
    secondary(TCP(.seq = 70, .flags = SYN, SYN_OPTIONS));
    released(p);
}

static void bad_limits_are_refused(void **state)
{
    const struct cmp_limits bad[] = {
        {.deadline_min_us = 10, .deadline_max_us = 5},
        {.bytes_max = 100},
        {.frames_max = UINT32_MAX},
        {.flows_max = UINT32_MAX},
    };
    struct cmp *c;
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(-EINVAL, cmp_new(&c, &bad[i], on_action, w));
        assert_null(c);
    }
}

static void a_frame_longer_than_the_limit_is_held_and_not_compared(void **state)
{
    uint8_t *long_frame = calloc(1, REMUS_PACKET_MAX + 1);

    (void)state;
    w->primary_ids = w->secondary_ids = 1;
    cmp_primary(w->c, w->now, 1, long_frame, REMUS_PACKET_MAX + 1, true);
    cmp_secondary(w->c, w->now, 1, 1, long_frame, REMUS_PACKET_MAX + 1);
    cmp_secondary(w->c, w->now, 2, 1, long_frame, REMUS_PACKET_MAX + 1);
    held(1);
    unmatched(1);
    whole_checkpoint();
    released(1);
    free(long_frame);
}

static void the_classes_of_traffic_are_counted_apart(void **state)
{
    struct cmp_stats stats;
    const struct ctl_class_stats *tcp, *udp, *icmp;

    (void)state;
    known_flow();
    primary(DATA(0, 10));
    pass(300);
    secondary(DATA(0, 10));
    primary(frame_udp(frame, IP(0), 53, 999, "one", 3));
    secondary(frame_udp(frame, IP(0), 53, 999, "one", 3));
    primary(frame_udp(frame, IP(0), 53, 999, "two", 3));
    primary(frame_raw(frame, IP(0), 1, "\0\0\0\0\0\1\0\1", 8));
    whole_checkpoint();
    cmp_stats_get(w->c, &stats);
    tcp = &stats.classes[CTL_CLASS_TCP];
    udp = &stats.classes[CTL_CLASS_UDP];
    icmp = &stats.classes[CTL_CLASS_ICMP];
    assert_int_equal(tcp->equal, 2);
    assert_int_equal(tcp->epoch, 0);
    assert_int_equal(tcp->delay_us_max, 300);
    assert_int_equal(udp->primary, 2);
    assert_int_equal(udp->secondary, 1);
    assert_int_equal(udp->equal, 1);
    assert_int_equal(udp->epoch, 1);
    assert_int_equal(udp->delay_us_sum, 0);
    assert_int_equal(icmp->primary, 1);
    assert_int_equal(icmp->epoch, 1);
    assert_int_equal(tcp->primary + udp->primary + icmp->primary, stats.primary_frames);
    primary(DATA(10, 10));
    pass(DEADLINE_MAX);
    checkpoint(CTL_WHY_DEADLINE);
    cmp_stats_get(w->c, &stats);
    assert_int_equal(stats.classes[CTL_CLASS_TCP].checkpoints[CTL_WHY_DEADLINE], 1);
    assert_int_equal(stats.classes[CTL_CLASS_UDP].checkpoints[CTL_WHY_DEADLINE], 0);
}

static void the_statistics_add_up(void **state)
{
    struct cmp_stats stats;

    (void)state;
    known_flow();
    primary(DATA(0, 10));
    pass(500);
    secondary(DATA(0, 10));
    primary(DATA(10, 10));
    whole_checkpoint();
    cmp_stats_get(w->c, &stats);
    assert_int_equal(stats.primary_frames, 3);
    assert_int_equal(stats.secondary_frames, 2);
    assert_int_equal(stats.released_equal, 2);
    assert_int_equal(stats.released_epoch, 1);
    assert_int_equal(stats.delay_us_sum, 500);
    assert_int_equal(stats.delay_us_max, 500);
    assert_int_equal(stats.held, 0);
    assert_int_equal(stats.held_max, 1);
    assert_int_equal(stats.flows, 1);
    assert_int_equal(stats.bytes, 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(s01_two_segments_against_three_of_the_same_bytes_are_released),
        T(s02_a_64k_gso_frame_against_mss_sized_segments_is_released),
        T(s02_any_cut_of_the_copies_compares_the_same_bytes),
        T(s03_one_different_byte_is_a_divergence),
        T(s03_a_new_connection_on_a_diverged_flow_waits_for_the_epochs_end_too),
        T(s04_a_silent_secondary_makes_a_checkpoint_at_the_deadline),
        T(s05_the_secondarys_copy_is_kept_until_the_primarys_arrives),
        T(s06_a_retransmission_of_verified_bytes_is_released_at_once),
        T(s07_a_retransmission_with_new_bytes_has_its_tail_compared),
        T(s08_a_gap_in_the_primarys_sequence_is_held_and_filled),
        T(s09_a_secondary_that_retransmits_changed_bytes_diverges),
        T(s09_a_primary_that_retransmits_changed_bytes_diverges),
        T(s10_an_ack_beyond_the_secondarys_is_held_until_it_catches_up),
        T(s10_an_ack_the_secondary_never_gives_is_a_deadline),
        T(s11_an_ack_behind_the_secondarys_is_released),
        T(s12_sack_blocks_are_intersected_with_the_secondarys),
        T(s13_a_larger_window_is_clamped),
        T(s13_a_gso_frame_with_a_larger_window_is_held),
        T(s13_a_zero_window_of_the_secondary_holds_to_the_deadline),
        T(s13_windows_are_compared_by_their_right_edge_where_the_scale_is_known),
        T(s13_the_peers_syn_ack_says_whether_the_scale_holds),
        T(s13_the_window_of_a_syn_is_not_scaled),
        T(s13_a_right_edge_that_has_left_may_leave_again),
        T(s14_syn_options_that_differ_are_uncomparable),
        T(s15_only_isn_and_timestamp_differ_so_the_syn_ack_is_released),
        T(s16_the_primarys_isn_is_told_before_its_syn_ack_can_be_answered),
        T(s17_a_checkpoint_in_mid_handshake_makes_the_offset_zero),
        T(s17_a_checkpoint_between_the_two_syn_acks_forgets_the_secondarys),
        T(s17_data_may_follow_a_checkpoint_in_mid_handshake_at_once),
        T(s17_after_a_checkpoint_the_secondarys_syn_has_the_primarys_isn),
        T(s18_a_guests_syn_from_the_secondary_first_is_kept),
        T(s19_source_ports_of_the_guest_that_differ_hold_to_the_deadline),
        T(s20_an_echoed_timestamp_is_rewritten_and_the_flow_released),
        T(s21_a_fin_at_the_same_position_is_released),
        T(s21_secondary_data_beyond_the_primarys_fin_is_uncomparable),
        T(s22_a_rst_from_both_is_released),
        T(s22_a_rst_from_the_primary_only_is_held_to_the_deadline),
        T(s22_a_rst_from_the_secondary_only_is_a_checkpoint_at_the_deadline),
        T(s22_a_rst_waits_for_the_bytes_before_it),
        T(s22_rsts_at_different_numbers_do_not_match),
        T(s23_a_reused_tuple_with_a_lower_isn_is_compared_in_full),
        T(s23_a_reused_tuple_that_the_secondary_reaches_first_is_kept_apart),
        T(s24_sequence_numbers_wrap_through_zero),
        T(s24_the_syn_may_be_the_last_number_before_zero),
        T(s25_a_flow_older_than_protection_is_taken_up_at_its_data),
        T(without_a_copy_that_runs_output_waits_for_its_epoch),
        T(when_the_copy_runs_again_connections_are_taken_up_where_they_are),
        T(a_flow_taken_up_behind_a_frame_that_was_lost_waits_for_the_epoch),
        T(a_known_flow_is_compared_though_a_frame_was_lost),
        T(s25_a_flow_taken_up_at_a_keepalive_is_not_held_for_the_gap),
        T(s26_udp_in_another_order_is_released),
        T(s26_each_equal_datagram_answers_for_one),
        T(s27_udp_without_an_equal_is_held_to_the_deadline),
        T(s28_fragments_with_other_ids_and_cuts_are_released),
        T(s28_fragments_that_differ_or_are_missing_are_held),
        T(s28_fragments_that_overlap_are_never_compared),
        T(s28_fragments_of_two_packets_may_be_mixed),
        T(s28_more_packets_in_pieces_than_there_is_room_for_wait),
        T(s29_an_equal_echo_reply_is_released_and_another_payload_diverges),
        T(s30_the_same_icmpv6_neighbour_and_listener_messages_are_released),
        T(s31_the_same_arp_is_released_and_a_surplus_request_is_forgotten),
        T(s31_the_ethernet_header_of_an_arp_is_not_compared),
        T(s32_tagged_tcp_is_compared_and_the_tag_is_part_of_the_key),
        T(s33_the_padding_of_a_short_ack_is_no_payload),
        T(s34_gre_and_esp_that_differ_in_ip_id_only_are_released),
        T(s35_a_partial_checksum_against_a_full_one_is_released),
        T(s36_data_in_the_syn_is_compared),
        T(s36_data_in_an_early_syn_of_the_secondary_is_compared),
        T(s37_truncated_frames_are_compared_raw),
        T(s38_an_old_frame_of_the_secondary_is_discarded_after_a_checkpoint),
        T(s38_what_the_secondary_sent_before_the_cut_matches_nothing_after_it),
        T(s39_what_was_queued_before_the_cut_leaves_when_the_epoch_is_acknowledged),
        T(s40_a_lost_secondary_holds_and_then_releases_everything),
        T(s40_a_fenced_primary_drops_everything),
        T(s41_three_quarters_of_the_frames_are_a_checkpoint_and_none_is_let_go),
        T(s41_frames_that_wait_for_an_acknowledgement_ask_for_no_further_checkpoint),
        T(the_next_epoch_is_not_released_before_the_last_one),
        T(what_the_secondary_repeats_is_matched_only_after_the_epochs_release),
        T(a_flow_goes_on_from_the_primarys_position_at_the_cut),
        T(a_diverged_flow_is_compared_again_in_the_next_epoch),
        T(a_checkpoint_is_asked_for_once_in_an_epoch),
        T(frames_of_an_epoch_to_come_are_kept),
        T(several_epochs_may_be_under_way),
        T(an_epoch_that_was_not_cut_cannot_be_released),
        T(a_fragment_split_by_the_cut_is_answered_for),
        T(after_hold_the_comparison_goes_on),
        T(the_deadline_follows_the_lag_between_its_bounds),
        T(waiting_for_a_checkpoint_is_no_lag),
        T(a_deadline_runs_from_the_opening_of_the_gate_and_not_during_a_checkpoint),
        T(a_partner_is_waited_for_as_long_as_a_checkpoint_takes),
        T(without_room_for_copies_frames_are_held_by_id),
        T(the_secondarys_surplus_makes_room_before_anything_else),
        T(a_full_table_of_surplus_makes_room_for_tcp),
        T(a_secondary_that_runs_far_ahead_is_a_checkpoint),
        T(idle_flows_make_room_and_busy_ones_are_a_checkpoint),
        T(a_forgotten_flow_is_taken_up_again),
        T(a_diverged_flow_is_not_forgotten_within_its_epoch),
        T(an_urgent_pointer_is_compared),
        T(a_syn_sent_again_with_other_options_waits_for_the_secondarys),
        T(bad_limits_are_refused),
        T(a_frame_longer_than_the_limit_is_held_and_not_compared),
        T(the_statistics_add_up),
        T(the_classes_of_traffic_are_counted_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
