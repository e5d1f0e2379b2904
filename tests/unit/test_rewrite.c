/* Sequence numbers, timestamps and the flow table of the secondary's output and input. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/frames.h"
#include "tools/remus/rewrite.h"

#define P_ISN    0xfffffff0u     /* wraps soon */
#define S_ISN    0x10000000u
#define OFFSET   (P_ISN - S_ISN)
#define C_ISN    0x77777777u     /* the peer's */
#define SYN      PACKET_TCP_SYN
#define ACK      PACKET_TCP_ACK
#define FIN      PACKET_TCP_FIN
#define RST      PACKET_TCP_RST
#define SECOND   REWRITE_SECOND_US

struct fixture {
    struct rewrite *rw;
    uint64_t now_us;
    uint8_t frame[FRAME_MAX];
    size_t bytes;
    struct packet p;
    struct rewrite_result result;
};

static int setup_sized(void **state, uint32_t flows)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    f->now_us = 1000 * SECOND;
    assert_int_equal(rewrite_new(&f->rw, flows, 1), 0);
    *state = f;
    return 0;
}

static int setup(void **state)
{
    return setup_sized(state, 1024);
}

static int setup_small(void **state)
{
    return setup_sized(state, 40);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    rewrite_free(f->rw);
    free(f);
    return 0;
}

/* Offers one frame; afterwards f->p is what went on, and its checksum must hold. */
static enum rewrite_verdict offer(struct fixture *f, bool output, struct tcp_spec spec)
{
    struct packet p;

    spec.ip.from_peer = !output;
    f->bytes = frame_tcp(f->frame, &spec);
    assert_int_equal(packet_parse(&p, f->frame, f->bytes), 0);
    f->result = output ? rewrite_output(f->rw, f->now_us, f->frame, &p, spec.partial) :
                         rewrite_input(f->rw, f->now_us, f->now_us, f->frame, &p, spec.partial);
    assert_int_equal(packet_parse(&f->p, f->frame, f->bytes), 0);
    assert_int_equal(f->p.tcp.seq, p.tcp.seq); /* the parsed form follows */
    assert_int_equal(f->p.tcp.ack, p.tcp.ack);
    if (spec.partial) {
        uint16_t sum = packet_fold(packet_pseudo_sum(&f->p));

        assert_int_equal(f->frame[f->p.l4 + 16] << 8 | f->frame[f->p.l4 + 17], sum);
    } else {
        assert_true(packet_checksum_ok(f->frame, &f->p));
    }
    return f->result.verdict;
}

#define INPUT(...)  offer(f, false, (struct tcp_spec){ __VA_ARGS__ })
#define OUTPUT(...) offer(f, true, (struct tcp_spec){ __VA_ARGS__ })
#define PASSES(x)   assert_int_equal(x, REWRITE_PASS)
#define HOLDS(x)    assert_int_equal(x, REWRITE_HOLD)

static void tell_flow(struct fixture *f, uint32_t isn)
{
    struct remus_flow flow;
    struct packet_key key;
    struct packet p;
    struct tcp_spec spec = { .seq = 1 };
    uint8_t frame[128];

    assert_int_equal(packet_parse(&p, frame, frame_tcp(frame, &spec)), 0);
    packet_key(&key, &p, true);
    packet_key_to_flow(&flow, &key);
    flow.primary_isn = isn;
    f->result = rewrite_flow(f->rw, f->now_us, &flow);
}

/* The peer opens a connection; both ISNs get known. */
static void accept_one(struct fixture *f)
{
    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN, .ack = C_ISN + 1));
    assert_int_equal(f->p.tcp.seq, S_ISN);
    tell_flow(f, P_ISN);
    PASSES(INPUT(.flags = ACK, .seq = C_ISN + 1, .ack = P_ISN + 1));
    assert_int_equal(f->p.tcp.ack, S_ISN + 1);
}

static uint64_t rewriting(struct fixture *f)
{
    struct rewrite_stats stats;

    rewrite_stats_get(f->rw, f->now_us, &stats);
    return stats.rewriting;
}

/* ---- sequence numbers ---- */

static void young_output_is_shifted_to_the_primary(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    PASSES(OUTPUT(.seq = S_ISN + 1, .data = "hello", .bytes = 5));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    PASSES(OUTPUT(.seq = S_ISN + 100, .data = "wrap", .bytes = 4, .partial = true));
    assert_int_equal(f->p.tcp.seq, P_ISN + 100); /* beyond 0 */
    assert_int_equal(rewriting(f), 1);
}

static void input_ack_and_sack_are_shifted_to_the_secondary(void **state)
{
    struct fixture *f = *state;
    int odd, partial;

    accept_one(f);
    for (odd = 0; odd < 2; odd++) {
        for (partial = 0; partial < 2; partial++) {
            PASSES(INPUT(.seq = 1, .ack = P_ISN + 20, .odd = odd, .partial = partial,
                         .sack_blocks = 2,
                         .sack = { { P_ISN + 30, P_ISN + 40 }, { P_ISN + 50, P_ISN + 60 } }));
            assert_int_equal(f->p.tcp.ack, S_ISN + 20);
            assert_int_equal(f->p.tcp.sack[0].left, S_ISN + 30);
            assert_int_equal(f->p.tcp.sack[1].right, S_ISN + 60);
            assert_int_equal(f->p.tcp.seq, 1);
        }
    }
}

static void a_wrong_checksum_stays_wrong(void **state)
{
    struct fixture *f = *state;
    struct tcp_spec spec = { .seq = 1, .ack = P_ISN + 20, .ip.from_peer = true };
    struct packet p;
    size_t bytes;

    accept_one(f);
    bytes = frame_tcp(f->frame, &spec);
    f->frame[bytes - 1] ^= 1;
    packet_parse(&p, f->frame, bytes);
    rewrite_input(f->rw, f->now_us, f->now_us, f->frame, &p, false);
    assert_false(packet_checksum_ok(f->frame, &p));
    assert_int_equal(p.tcp.ack, S_ISN + 20);
}

static void syn_frames_are_sent_on_as_they_are(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    assert_int_equal(f->p.tcp.seq, S_ISN);
}

static void output_waits_for_the_primary_isn(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    assert_true(f->result.input_ready);
    HOLDS(OUTPUT(.seq = S_ISN + 1, .data = "x", .bytes = 1));
    assert_int_equal(f->p.tcp.seq, S_ISN + 1); /* unchanged while it waits */
    tell_flow(f, P_ISN);
    assert_true(f->result.output_ready);
    PASSES(OUTPUT(.seq = S_ISN + 1, .data = "x", .bytes = 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
}

static void input_waits_for_the_guests_own_syn_ack(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    tell_flow(f, P_ISN);
    assert_false(f->result.output_ready);
    HOLDS(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    HOLDS(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1, .data = "GET", .bytes = 3));
    PASSES(INPUT(.flags = SYN, .seq = C_ISN)); /* repeated SYN: the guest may have lost the first */
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    assert_true(f->result.input_ready);
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    assert_int_equal(f->p.tcp.ack, S_ISN + 1);
}

static void the_peers_first_ack_tells_the_primary_isn(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    HOLDS(OUTPUT(.seq = S_ISN + 1));
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    assert_int_equal(f->p.tcp.ack, S_ISN + 1);
    assert_true(f->result.output_ready);
    PASSES(OUTPUT(.seq = S_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
}

static void an_ack_after_data_in_the_syn_tells_nothing(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN, .data = "fast", .bytes = 4));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    HOLDS(INPUT(.seq = C_ISN + 5, .ack = P_ISN + 50));
    tell_flow(f, P_ISN);
    assert_true(f->result.input_ready);
    PASSES(INPUT(.seq = C_ISN + 5, .ack = P_ISN + 50));
    assert_int_equal(f->p.tcp.ack, S_ISN + 50);
}

static void flow_overrules_what_a_peer_acknowledged(void **state)
{
    struct fixture *f = *state;
    struct rewrite_stats stats;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    PASSES(INPUT(.seq = C_ISN + 1, .ack = 12345)); /* a lie */
    tell_flow(f, P_ISN);
    PASSES(OUTPUT(.seq = S_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    rewrite_stats_get(f->rw, f->now_us, &stats);
    assert_int_equal(stats.isn_disagreed, 1);
}

static void a_reset_tells_no_isn(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    HOLDS(INPUT(.flags = RST | ACK, .seq = C_ISN + 1, .ack = 99));
    HOLDS(OUTPUT(.seq = S_ISN + 1));
}

static void a_connection_opened_by_the_guest_is_rewritten_too(void **state)
{
    struct fixture *f = *state;

    PASSES(OUTPUT(.flags = SYN, .seq = S_ISN));
    HOLDS(OUTPUT(.seq = S_ISN + 1));
    PASSES(INPUT(.flags = SYN | ACK, .seq = C_ISN, .ack = P_ISN + 1));
    assert_int_equal(f->p.tcp.ack, S_ISN + 1);
    assert_true(f->result.output_ready);
    PASSES(OUTPUT(.seq = S_ISN + 1, .ack = C_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
}

static void a_syn_ack_waits_for_the_secondarys_own_syn(void **state)
{
    struct fixture *f = *state;

    tell_flow(f, P_ISN);
    HOLDS(INPUT(.flags = SYN | ACK, .seq = C_ISN, .ack = P_ISN + 1));
    HOLDS(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1, .data = "banner", .bytes = 6));
    PASSES(OUTPUT(.flags = SYN, .seq = S_ISN));
    assert_true(f->result.input_ready);
    PASSES(INPUT(.flags = SYN | ACK, .seq = C_ISN, .ack = P_ISN + 1));
    assert_int_equal(f->p.tcp.ack, S_ISN + 1);
}

static void the_echo_in_a_syn_ack_is_the_secondarys_own(void **state)
{
    struct fixture *f = *state;

    PASSES(OUTPUT(.flags = SYN, .seq = S_ISN, .timestamp = true, .tsval = 5000));
    PASSES(OUTPUT(.flags = SYN, .seq = S_ISN, .timestamp = true, .tsval = 6000)); /* repeated */
    PASSES(INPUT(.flags = SYN | ACK, .seq = C_ISN, .ack = P_ISN + 1, .timestamp = true, .odd = true,
                 .tsval = 1, .tsecr = 7777));
    assert_int_equal(f->p.tcp.tsecr, 5000);
    assert_int_equal(f->p.tcp.tsval, 1);
}

static void a_flow_of_an_earlier_handshake_is_left_alone(void **state)
{
    struct fixture *f = *state;

    PASSES(OUTPUT(.seq = 42));
    assert_int_equal(f->p.tcp.seq, 42);
    PASSES(INPUT(.seq = 1, .ack = 43));
    assert_int_equal(f->p.tcp.ack, 43);
    assert_int_equal(rewriting(f), 0);
}

/* The checkpoint found a SYN on the ring: each guest reads it, and chooses, in the new epoch. */
static void a_syn_that_crosses_a_checkpoint_is_answered_twice(void **state)
{
    struct fixture *f = *state;
    int flow_first;

    for (flow_first = 0; flow_first <= 1; flow_first++) {
        PASSES(INPUT(.flags = SYN, .seq = C_ISN));
        rewrite_detach(f->rw);
        if (flow_first) {
            tell_flow(f, P_ISN);
        }
        PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
        if (!flow_first) {
            tell_flow(f, P_ISN);
        }
        PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
        assert_int_equal(f->p.tcp.ack, S_ISN + 1);
        PASSES(OUTPUT(.seq = S_ISN + 1));
        assert_int_equal(f->p.tcp.seq, P_ISN + 1);
        PASSES(INPUT(.flags = RST, .seq = C_ISN + 1));
        rewrite_detach(f->rw);
    }
}

/* FLOW was lost with the primary. */
static void a_syn_that_crosses_a_checkpoint_before_failover(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN + 77)); /* undone by the checkpoint */
    rewrite_detach(f->rw);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    assert_int_equal(f->p.tcp.ack, S_ISN + 1);
    PASSES(OUTPUT(.seq = S_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
}

/* The SYN reuses the ports of a connection that seemed to live. */
static void a_second_syn_that_crosses_a_checkpoint_is_answered_twice(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    PASSES(INPUT(.flags = SYN, .seq = C_ISN + 5000));
    rewrite_detach(f->rw);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = 300));
    tell_flow(f, 100);
    PASSES(INPUT(.seq = C_ISN + 5001, .ack = 101));
    assert_int_equal(f->p.tcp.ack, 301);
}

/* The checkpoint found the handshake's last ACK on the ring, and the guest's timer was faster. */
static void a_syn_ack_repeated_behind_its_acknowledgement_changes_nothing(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    rewrite_detach(f->rw);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = P_ISN));
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 100));
    assert_int_equal(f->p.tcp.ack, P_ISN + 100);
    PASSES(OUTPUT(.seq = P_ISN + 100));
    assert_int_equal(f->p.tcp.seq, P_ISN + 100);
    assert_int_equal(rewriting(f), 0);
}

static void a_syn_ack_of_an_unknown_flow_waits_for_the_primarys(void **state)
{
    struct fixture *f = *state;

    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    HOLDS(OUTPUT(.seq = S_ISN + 1));
    HOLDS(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 50));
    tell_flow(f, P_ISN);
    assert_true(f->result.input_ready);
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 50));
    assert_int_equal(f->p.tcp.ack, S_ISN + 50);
}

static void a_repeated_syn_ack_of_an_earlier_epoch_holds_nothing(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    rewrite_detach(f->rw);
    tell_flow(f, P_ISN);         /* the primary repeats its SYN-ACK */
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    assert_int_equal(f->p.tcp.ack, P_ISN + 1);
    PASSES(OUTPUT(.seq = P_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = P_ISN)); /* and the secondary does so */
    PASSES(OUTPUT(.seq = P_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    assert_int_equal(rewriting(f), 0);
}

static void a_checkpoint_makes_offsets_zero(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    assert_int_equal(rewriting(f), 1);
    rewrite_detach(f->rw);
    assert_int_equal(rewriting(f), 0);
    PASSES(OUTPUT(.seq = P_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    PASSES(INPUT(.seq = 1, .ack = P_ISN + 2));
    assert_int_equal(f->p.tcp.ack, P_ISN + 2);
}

static void a_refused_connection_is_answered_at_once(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = RST | ACK, .seq = 0, .ack = C_ISN + 1));
    assert_int_equal(f->p.tcp.seq, 0);
}

static void a_stray_syn_does_not_disturb_a_connection(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    PASSES(INPUT(.flags = SYN, .seq = 4242));
    PASSES(OUTPUT(.seq = S_ISN + 5)); /* challenge ACK */
    assert_int_equal(f->p.tcp.seq, P_ISN + 5);
    PASSES(INPUT(.seq = 9, .ack = P_ISN + 6));
    assert_int_equal(f->p.tcp.ack, S_ISN + 6);
}

static void a_stray_syn_does_not_hold_an_old_connection(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 1, .tsecr = 1));
    PASSES(INPUT(.flags = SYN, .seq = 4242));
    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 1, .tsecr = 1));
    assert_int_equal(f->p.tcp.ack, 2);
}

static void a_tuple_that_is_used_again_gets_new_numbers(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    PASSES(OUTPUT(.flags = FIN | ACK, .seq = S_ISN + 1));
    PASSES(INPUT(.flags = FIN | ACK, .seq = 1, .ack = P_ISN + 2));
    PASSES(INPUT(.flags = SYN, .seq = C_ISN + 500000));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = 100));
    tell_flow(f, 300);
    PASSES(OUTPUT(.seq = 101));
    assert_int_equal(f->p.tcp.seq, 301);
}

static void a_tuple_used_again_before_its_end_was_seen(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    PASSES(INPUT(.flags = SYN, .seq = C_ISN + 500000));
    tell_flow(f, 300);           /* the primary has taken it */
    PASSES(OUTPUT(.seq = S_ISN + 1)); /* the secondary still serves the earlier one */
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = 100));
    PASSES(OUTPUT(.seq = 101));
    assert_int_equal(f->p.tcp.seq, 301);
}

static void vlans_and_families_are_flows_of_their_own(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    PASSES(OUTPUT(.seq = S_ISN + 1, .ip.vlan = { 5 }));
    assert_int_equal(f->p.tcp.seq, S_ISN + 1);
    PASSES(OUTPUT(.seq = S_ISN + 1, .ip.v6 = true));
    assert_int_equal(f->p.tcp.seq, S_ISN + 1);

    PASSES(INPUT(.flags = SYN, .seq = C_ISN, .ip = { .v6 = true, .vlan = { 7, 8 } }));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = 1000, .ip = { .v6 = true, .vlan = { 7, 8 } }));
    PASSES(INPUT(.seq = C_ISN + 1, .ack = 2001, .ip = { .v6 = true, .vlan = { 7, 8 } }));
    PASSES(OUTPUT(.seq = 1001, .ip = { .v6 = true, .vlan = { 7, 8 } }));
    assert_int_equal(f->p.tcp.seq, 2001);
}

/* ---- failover ---- */

static void numbers_stay_the_primarys_after_failover(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.seq = S_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    PASSES(INPUT(.seq = 1, .ack = P_ISN + 2));
    assert_int_equal(f->p.tcp.ack, S_ISN + 2);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN)); /* the peer knows the primary's */
    assert_int_equal(f->p.tcp.seq, P_ISN);
}

static void new_connections_after_failover_are_untouched(void **state)
{
    struct fixture *f = *state;

    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    PASSES(INPUT(.seq = C_ISN + 1, .ack = S_ISN + 1));
    assert_int_equal(f->p.tcp.ack, S_ISN + 1);
    PASSES(OUTPUT(.seq = S_ISN + 1));
    assert_int_equal(f->p.tcp.seq, S_ISN + 1);
    assert_true(rewrite_idle(f->rw));
}

static void a_tuple_used_again_after_failover_is_untouched(void **state)
{
    struct fixture *f = *state;

    accept_one(f);
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(INPUT(.flags = SYN, .seq = C_ISN + 9));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = 555));
    assert_int_equal(f->p.tcp.seq, 555);
    PASSES(OUTPUT(.seq = 556));
    assert_int_equal(f->p.tcp.seq, 556);
    assert_true(rewrite_idle(f->rw));
}

static void a_handshake_that_failover_interrupts_goes_on(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    tell_flow(f, P_ISN);
    HOLDS(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    HOLDS(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    assert_int_equal(f->p.tcp.seq, P_ISN);
    assert_true(f->result.input_ready);
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    assert_int_equal(f->p.tcp.ack, S_ISN + 1);
}

static void held_input_is_let_go_some_time_after_failover(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    HOLDS(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    f->now_us += 10 * SECOND;
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    HOLDS(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
    f->now_us += REWRITE_HANDSHAKE_US;
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1));
}

static void after_failover_the_peers_ack_decides_whose_syn_ack_it_saw(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(INPUT(.seq = C_ISN + 1, .ack = S_ISN + 1)); /* the secondary's, sent by then */
    PASSES(OUTPUT(.seq = S_ISN + 1));
    assert_int_equal(f->p.tcp.seq, S_ISN + 1);
    assert_int_equal(rewriting(f), 0);
}

static void late_output_is_rewritten_once(void **state)
{
    struct fixture *f = *state;
    struct tcp_spec spec = { .seq = S_ISN + 1 };
    struct packet p;

    accept_one(f);
    PASSES(OUTPUT(.seq = S_ISN + 1)); /* rewritten when it was sent to be compared */
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    rewrite_output_late(f->rw, f->frame, &f->p, false, true);
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);

    packet_parse(&p, f->frame, frame_tcp(f->frame, &spec)); /* one that was held */
    rewrite_output_late(f->rw, f->frame, &p, false, false);
    assert_int_equal(p.tcp.seq, P_ISN + 1);

    spec = (struct tcp_spec){ .flags = SYN | ACK, .seq = S_ISN }; /* was compared as it is */
    packet_parse(&p, f->frame, frame_tcp(f->frame, &spec));
    rewrite_output_late(f->rw, f->frame, &p, false, false);
    assert_int_equal(p.tcp.seq, P_ISN);
    assert_true(packet_checksum_ok(f->frame, &p));
}

/* ---- timestamps ---- */

static void a_timestamp_clock_that_is_behind_waits_until_it_has_come_so_far(void **state)
{
    struct fixture *f = *state;
    uint32_t first;

    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 100000));
    f->now_us += 50000;          /* the primary has gone on for 50 ms since */
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .odd = true, .tsval = 95000, .tsecr = 9));
    first = f->p.tcp.tsval;
    assert_int_equal(first, 100050 + REWRITE_TS_MARGIN);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 95100, .tsecr = 9));
    assert_int_equal(f->p.tcp.tsval, first);
    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 10, .tsecr = first));
    assert_int_equal(f->p.tcp.tsecr, 95100); /* what the guest has sent */
    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 10, .tsecr = 94000));
    assert_int_equal(f->p.tcp.tsecr, 94000); /* an older one, echoed late */
    assert_int_equal(rewriting(f), 1);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = first, .tsecr = 10));
    assert_int_equal(f->p.tcp.tsval, first);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = first + 1, .tsecr = 10));
    assert_int_equal(f->p.tcp.tsval, first + 1);
    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 11, .tsecr = first));
    assert_int_equal(f->p.tcp.tsecr, first);
    assert_int_equal(rewriting(f), 0);
}

static void clocks_that_nobody_shows_are_left_alone_in_time(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 100000));
    rewrite_failover(f->rw, f->now_us, 7 * SECOND);
    f->now_us += 7 * SECOND - 1;
    assert_int_equal(rewriting(f), 1);
    f->now_us++;
    assert_int_equal(rewriting(f), 0);
}

static void a_clock_that_was_seen_behind_is_waited_for(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 100000));
    rewrite_failover(f->rw, f->now_us, SECOND);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 95000));
    assert_int_equal(f->p.tcp.tsval, 100000 + REWRITE_TS_MARGIN);
    f->now_us += 10 * SECOND;                  /* it may tick once in 2 ms only */
    assert_int_equal(rewriting(f), 1);
    f->now_us += SECOND / 10;
    assert_int_equal(rewriting(f), 0);
}

static void a_timestamp_clock_that_is_ahead_is_left_alone(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 100000));
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    assert_int_equal(rewriting(f), 1);         /* not settled */
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 100002));
    assert_int_equal(f->p.tcp.tsval, 100002);
    assert_int_equal(rewriting(f), 0);
}

static void echoes_are_remembered_over_checkpoints_and_wraps(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 0xfffffffe));
    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 5));
    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 0xffffffff));
    rewrite_detach(f->rw);
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 0xfffffff0));
    assert_int_equal(f->p.tcp.tsval, 5 + REWRITE_TS_MARGIN);
}

static void an_idle_connections_clock_is_not_pushed_for_hours(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 1000));
    f->now_us += 3600 * SECOND;
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 3601000 - 20));
    assert_int_equal(f->p.tcp.tsval, 3601000 - 20);
}

static void both_corrections_meet_in_one_frame(void **state)
{
    struct fixture *f = *state;

    PASSES(INPUT(.flags = SYN, .seq = C_ISN, .timestamp = true, .tsval = 1));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN, .timestamp = true, .tsval = 500, .tsecr = 1));
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1, .timestamp = true, .tsval = 2, .tsecr = 900));
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.seq = S_ISN + 1, .timestamp = true, .odd = true, .tsval = 600, .tsecr = 2,
                  .data = "abc", .bytes = 3));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    assert_int_equal(f->p.tcp.tsval, 900 + REWRITE_TS_MARGIN);
}

static void nobody_measures_a_round_trip_over_the_takeover(void **state)
{
    struct fixture *f = *state;
    struct packet p;
    struct tcp_spec late = {
        .ip.from_peer = true, .seq = 2, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 100,
    };

    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 100));
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 101, .tsecr = 9));
    assert_int_equal(f->p.tcp.tsecr, 9);
    f->now_us += SECOND;
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .odd = true, .tsval = 1102, .tsecr = 9));
    assert_int_equal(f->p.tcp.tsecr, 0);
    f->now_us += 1000;
    packet_parse(&p, f->frame, frame_tcp(f->frame, &late)); /* had waited over the takeover */
    rewrite_input(f->rw, f->now_us, f->now_us - SECOND, f->frame, &p, false);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 1103, .tsecr = 9));
    assert_int_equal(f->p.tcp.tsecr, 0);
    PASSES(INPUT(.seq = 1, .ack = 2, .timestamp = true, .tsval = 1010, .tsecr = 1103));
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 1104, .tsecr = 1010));
    assert_int_equal(f->p.tcp.tsecr, 1010);
}

static void an_echo_is_as_old_as_the_frame_that_brought_it(void **state)
{
    struct fixture *f = *state;
    struct packet p;
    struct tcp_spec spec = {
        .ip.from_peer = true, .seq = 1, .ack = 2, .timestamp = true, .tsval = 9, .tsecr = 100000,
    };

    packet_parse(&p, f->frame, frame_tcp(f->frame, &spec));
    f->now_us += 3 * SECOND;
    rewrite_input(f->rw, f->now_us, f->now_us - 3 * SECOND, f->frame, &p, false);
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.seq = 2, .timestamp = true, .tsval = 95000));
    assert_int_equal(f->p.tcp.tsval, 103000 + REWRITE_TS_MARGIN);
}

/* ---- connections of an earlier takeover ---- */

/* The one connection of offer(), as the primary's list has it. */
static void tell_offset(struct fixture *f)
{
    struct remus_offset based = { .offset = OFFSET };
    struct tcp_spec spec = { .seq = 1 };
    struct packet_key key;
    struct packet p;
    uint8_t frame[128];

    assert_int_equal(packet_parse(&p, frame, frame_tcp(frame, &spec)), 0);
    packet_key(&key, &p, true);
    packet_key_to_flow(&based.flow, &key);
    based.flow.primary_isn = P_ISN;
    assert_true(rewrite_offsets_add(f->rw, f->now_us, &based));
}

static void goes_on_with_its_offset(struct fixture *f)
{
    PASSES(OUTPUT(.seq = S_ISN + 100, .data = "x", .bytes = 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 100);
    PASSES(INPUT(.seq = C_ISN + 9, .ack = P_ISN + 101));
    assert_int_equal(f->p.tcp.ack, S_ISN + 101);
}

static void is_as_it_is(struct fixture *f)
{
    PASSES(OUTPUT(.seq = S_ISN + 100, .data = "x", .bytes = 1));
    assert_int_equal(f->p.tcp.seq, S_ISN + 100);
    PASSES(INPUT(.seq = C_ISN + 9, .ack = P_ISN + 101));
    assert_int_equal(f->p.tcp.ack, P_ISN + 101);
}

static uint64_t offsets(struct fixture *f)
{
    struct remus_offset offset;
    struct rewrite_stats stats;
    uint32_t cursor = 0;
    uint64_t count = 0;

    while (rewrite_offsets_next(f->rw, &cursor, &offset)) {
        assert_int_equal(offset.offset, OFFSET);
        assert_int_equal(offset.flow.primary_isn, P_ISN);
        count++;
    }
    rewrite_stats_get(f->rw, f->now_us, &stats);
    assert_int_equal(stats.offsets, count);
    return count;
}

static void an_inherited_offset_outlives_checkpoints(void **state)
{
    struct fixture *f = *state;

    tell_offset(f);
    goes_on_with_its_offset(f);
    rewrite_detach(f->rw);
    goes_on_with_its_offset(f);
    rewrite_detach(f->rw);
    rewrite_offsets_clear(f->rw);
    is_as_it_is(f);
}

static void an_inherited_offset_is_there_after_failover(void **state)
{
    struct fixture *f = *state;
    struct rewrite_stats stats;

    tell_offset(f);
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    f->now_us += SECOND;
    goes_on_with_its_offset(f);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));      /* its own, again */
    assert_int_equal(f->p.tcp.seq, P_ISN);
    rewrite_stats_get(f->rw, f->now_us, &stats);
    assert_int_equal(stats.unsettled, 0);
    assert_int_equal(offsets(f), 1);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN + 7));  /* another connection */
    assert_int_equal(f->p.tcp.seq, S_ISN + 7);
    assert_int_equal(offsets(f), 0);
    is_as_it_is(f);
}

static void a_syn_of_an_inherited_connection_is_sent_on(void **state)
{
    struct fixture *f = *state;

    tell_offset(f);
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN));
    assert_int_equal(f->p.tcp.seq, S_ISN);
    PASSES(OUTPUT(.flags = SYN, .seq = S_ISN));
    assert_int_equal(f->p.tcp.seq, S_ISN);
    goes_on_with_its_offset(f);
}

/* The copy's guest alone has closed it; where a copy is paused nothing of it is seen for days. */
static void only_the_primarys_list_ends_an_inherited_connection(void **state)
{
    struct fixture *f = *state;
    unsigned int i;

    tell_offset(f);
    goes_on_with_its_offset(f);
    PASSES(INPUT(.flags = FIN | ACK, .seq = C_ISN + 9, .ack = P_ISN + 101));
    PASSES(OUTPUT(.flags = FIN | ACK, .seq = S_ISN + 101));
    rewrite_detach(f->rw);
    f->now_us += 2 * REWRITE_IDLE_US;
    for (i = 0; i < 4; i++) {
        rewrite_tick(f->rw, f->now_us);
    }
    goes_on_with_its_offset(f);
    rewrite_failover(f->rw, f->now_us, SECOND);
    assert_int_equal(offsets(f), 1);
}

/* The copy's guest alone has opened it anew: the checkpoint brings the old connection back. */
static void a_tuple_that_only_the_copy_used_again_gets_its_offset_back(void **state)
{
    struct fixture *f = *state;

    tell_offset(f);
    goes_on_with_its_offset(f);
    PASSES(OUTPUT(.flags = PACKET_TCP_RST, .seq = S_ISN + 101));
    PASSES(INPUT(.flags = SYN, .seq = C_ISN + 100000));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN + 5000));
    HOLDS(OUTPUT(.seq = S_ISN + 5001, .data = "x", .bytes = 1));
    tell_flow(f, P_ISN + 5555);
    PASSES(OUTPUT(.seq = S_ISN + 5001, .data = "x", .bytes = 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 5556);
    rewrite_detach(f->rw);
    goes_on_with_its_offset(f);
}

static uint8_t state_told(struct fixture *f)
{
    struct remus_offset offset;
    uint32_t cursor = 0;

    assert_true(rewrite_offsets_next(f->rw, &cursor, &offset));
    return offset.state;
}

static void a_handshake_that_the_peer_has_not_answered_is_not_settled(void **state)
{
    struct fixture *f = *state;
    struct rewrite_stats stats;

    PASSES(OUTPUT(.flags = SYN, .seq = S_ISN));
    tell_flow(f, P_ISN);
    rewrite_failover(f->rw, f->now_us, 0);
    rewrite_stats_get(f->rw, f->now_us, &stats);
    assert_int_equal(stats.unsettled, 1);
    assert_int_equal(state_told(f), REMUS_OFFSET_HALF_OPEN);
    PASSES(INPUT(.flags = SYN | ACK, .seq = C_ISN, .ack = P_ISN + 1));
    rewrite_stats_get(f->rw, f->now_us, &stats);
    assert_int_equal(stats.unsettled, 0);
    assert_int_equal(state_told(f), 0);
    PASSES(INPUT(.flags = FIN | ACK, .seq = C_ISN + 1, .ack = P_ISN + 1));
    assert_int_equal(state_told(f), REMUS_OFFSET_FIN_INPUT);
}

static void a_reset_of_the_peers_does_not_end_an_inherited_connection(void **state)
{
    struct fixture *f = *state;
    unsigned int i;

    tell_offset(f);
    rewrite_failover(f->rw, f->now_us, SECOND);
    goes_on_with_its_offset(f);
    PASSES(INPUT(.flags = RST, .seq = C_ISN + 9));
    f->now_us += 2 * REWRITE_CLOSED_US;
    for (i = 0; i < 4; i++) {
        rewrite_tick(f->rw, f->now_us);
    }
    goes_on_with_its_offset(f);
    PASSES(OUTPUT(.flags = RST, .seq = S_ISN + 101));
    f->now_us += 2 * REWRITE_CLOSED_US;
    for (i = 0; i < 4; i++) {
        rewrite_tick(f->rw, f->now_us);
    }
    is_as_it_is(f);
}

/* What a takeover leaves is told on: connections of this epoch, and of those before. */
static void the_next_takeover_tells_young_offsets_and_inherited_ones(void **state)
{
    struct fixture *f = *state;

    struct remus_offset offset;
    uint32_t cursor = 0;

    tell_offset(f);
    PASSES(INPUT(.peer_port = 5, .flags = SYN, .seq = C_ISN));
    PASSES(OUTPUT(.peer_port = 5, .flags = SYN | ACK, .seq = S_ISN + 1000));
    PASSES(INPUT(.peer_port = 5, .flags = ACK, .seq = C_ISN + 1, .ack = P_ISN + 3001));
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    assert_true(rewrite_offsets_next(f->rw, &cursor, &offset));
    assert_int_equal(offset.offset, OFFSET);
    assert_true(rewrite_offsets_next(f->rw, &cursor, &offset));
    assert_int_equal(offset.offset, OFFSET + 2000);
    assert_int_equal(offset.flow.primary_isn, P_ISN + 3000);
    assert_false(rewrite_offsets_next(f->rw, &cursor, &offset));
}

static void a_known_connection_can_be_told_of_late(void **state)
{
    struct fixture *f = *state;

    is_as_it_is(f);
    rewrite_detach(f->rw);
    rewrite_offsets_clear(f->rw);
    tell_offset(f);
    goes_on_with_its_offset(f);
    assert_int_equal(rewriting(f), 1);
    rewrite_offsets_clear(f->rw);
    assert_int_equal(rewriting(f), 0);
}

/* ---- the table ---- */

static void closed_flows_age(void **state)
{
    struct fixture *f = *state;
    int i;

    accept_one(f);
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.flags = FIN | ACK, .seq = S_ISN + 1));
    PASSES(INPUT(.flags = FIN | ACK, .seq = 1, .ack = P_ISN + 2));
    f->now_us += REWRITE_CLOSED_US;
    for (i = 0; i < 3; i++) {
        rewrite_tick(f->rw, f->now_us);
    }
    assert_false(rewrite_idle(f->rw));
    PASSES(OUTPUT(.flags = FIN | ACK, .seq = S_ISN + 1)); /* repeated: still rewritten */
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    f->now_us += REWRITE_CLOSED_US + 1;
    for (i = 0; i < 3; i++) {
        rewrite_tick(f->rw, f->now_us);
    }
    assert_true(rewrite_idle(f->rw));
    assert_int_equal(rewriting(f), 0);
}

static void a_reset_that_the_guest_ignores_ends_nothing(void **state)
{
    struct fixture *f = *state;
    int i;

    accept_one(f);
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    PASSES(OUTPUT(.flags = ACK, .seq = S_ISN + 1, .ack = 5000));
    PASSES(INPUT(.flags = RST, .seq = 4999));
    f->now_us += REWRITE_CLOSED_US + 1;
    for (i = 0; i < 3; i++) {
        rewrite_tick(f->rw, f->now_us);
    }
    PASSES(OUTPUT(.flags = ACK, .seq = S_ISN + 1, .ack = 5000));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    PASSES(INPUT(.flags = RST, .seq = 5100)); /* 100 bytes have come since */
    f->now_us += REWRITE_CLOSED_US + 1;
    for (i = 0; i < 3; i++) {
        rewrite_tick(f->rw, f->now_us);
    }
    assert_true(rewrite_idle(f->rw));
}

static void established_flows_do_not_age_in_hours(void **state)
{
    struct fixture *f = *state;
    int i;

    accept_one(f);
    rewrite_failover(f->rw, f->now_us, REWRITE_TS_SETTLE_US);
    f->now_us += 3 * 3600 * SECOND;
    for (i = 0; i < 3; i++) {
        rewrite_tick(f->rw, f->now_us);
    }
    PASSES(OUTPUT(.seq = S_ISN + 1));
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
}

static void a_full_table_gives_up_old_and_half_open_flows_first(void **state)
{
    struct fixture *f = *state;
    struct rewrite_stats stats;
    uint16_t i;

    accept_one(f);
    for (i = 1; i <= 1000; i++) {
        PASSES(INPUT(.flags = SYN, .seq = C_ISN, .peer_port = i));
    }
    PASSES(OUTPUT(.seq = S_ISN + 1)); /* the established one has stayed */
    assert_int_equal(f->p.tcp.seq, P_ISN + 1);
    rewrite_stats_get(f->rw, f->now_us, &stats);
    assert_int_equal(stats.flows, 40);
    assert_int_equal(stats.flows_max, 40);
    assert_int_equal(stats.evicted, 961);
    assert_int_equal(stats.untracked, 0);
}

static void a_table_full_of_flows_that_matter_takes_no_more(void **state)
{
    struct fixture *f = *state;
    struct rewrite_stats stats;
    uint16_t i;

    for (i = 1; i <= 60; i++) {
        PASSES(INPUT(.flags = SYN, .seq = C_ISN, .peer_port = i));
        PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN, .peer_port = i));
        PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1, .peer_port = i));
    }
    for (i = 1; i <= 60; i++) {
        PASSES(OUTPUT(.seq = S_ISN + 1, .peer_port = i));
        assert_int_equal(f->p.tcp.seq, i <= 40 ? P_ISN + 1 : S_ISN + 1);
    }
    rewrite_stats_get(f->rw, f->now_us, &stats);
    assert_int_equal(stats.rewriting, 40);
    assert_true(stats.untracked >= 20);
    rewrite_detach(f->rw);       /* a checkpoint: all of them may go now */
    PASSES(INPUT(.flags = SYN, .seq = C_ISN, .peer_port = 999));
    rewrite_stats_get(f->rw, f->now_us, &stats);
    assert_int_equal(stats.evicted, 1);
    assert_int_equal(stats.rewriting, 0);
}

/* An error from a router about a segment that the primary has sent. */
static void an_icmp_error_quotes_the_secondarys_number(void **state)
{
    struct fixture *f = *state;
    struct tcp_spec spec = { .seq = P_ISN + 500, .data = "0123456789", .bytes = 10 };
    uint8_t segment[256];
    struct packet p;
    size_t bytes;
    int v6, cut;

    accept_one(f);
    PASSES(INPUT(.flags = SYN, .seq = C_ISN, .ip.v6 = true));
    PASSES(OUTPUT(.flags = SYN | ACK, .seq = S_ISN, .ip.v6 = true));
    PASSES(INPUT(.seq = C_ISN + 1, .ack = P_ISN + 1, .ip.v6 = true));
    for (v6 = 0; v6 < 2; v6++) {
        for (cut = 0; cut < 2; cut++) {
            struct ip_spec ip = { .v6 = v6, .from_peer = true, .peer_host = 77 };

            spec.ip.v6 = v6;
            bytes = frame_tcp(segment, &spec);
            /* All of it, or what RFC 792 promises. */
            bytes = frame_icmp(f->frame, &ip, v6 ? 2 : 3, v6 ? 0 : 4, 1400, segment + 14,
                               cut ? (v6 ? 48 : 28) : bytes - 14);
            assert_int_equal(packet_parse(&p, f->frame, bytes), 0);
            rewrite_input(f->rw, f->now_us, f->now_us, f->frame, &p, false);
            assert_true(packet_checksum_ok(f->frame, &p));
            assert_int_equal(f->frame[p.l4 + 8 + (v6 ? 40 : 20) + 7],
                             (uint8_t)(S_ISN + 500));
            assert_int_equal(f->frame[p.l4 + 8 + (v6 ? 40 : 20) + 4], S_ISN >> 24);
        }
    }
    /* An echo request with the same bytes is not an error. */
    bytes = frame_icmp(f->frame, &(struct ip_spec){ .from_peer = true }, 8, 0, 0, segment + 14, 60);
    packet_parse(&p, f->frame, bytes);
    rewrite_input(f->rw, f->now_us, f->now_us, f->frame, &p, false);
    assert_memory_equal(f->frame + p.l4 + 8, segment + 14, 60);
}

static void other_frames_pass(void **state)
{
    struct fixture *f = *state;
    struct ip_spec ip = { .from_peer = true };
    struct rewrite_result result;
    struct packet p;
    size_t bytes;

    bytes = frame_udp(f->frame, &ip, 80, 40000, "x", 1);
    packet_parse(&p, f->frame, bytes);
    result = rewrite_input(f->rw, f->now_us, f->now_us, f->frame, &p, false);
    assert_int_equal(result.verdict, REWRITE_PASS);
    assert_int_equal(result.flow, REWRITE_NO_FLOW);
    bytes = frame_arp(f->frame, 1, 2, 9);
    packet_parse(&p, f->frame, bytes);
    result = rewrite_output(f->rw, f->now_us, f->frame, &p, false);
    assert_int_equal(result.verdict, REWRITE_PASS);
}

#define TEST(name)  cmocka_unit_test_setup_teardown(name, setup, teardown)
#define SMALL(name) cmocka_unit_test_setup_teardown(name, setup_small, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(young_output_is_shifted_to_the_primary),
        TEST(input_ack_and_sack_are_shifted_to_the_secondary),
        TEST(a_wrong_checksum_stays_wrong),
        TEST(syn_frames_are_sent_on_as_they_are),
        TEST(output_waits_for_the_primary_isn),
        TEST(input_waits_for_the_guests_own_syn_ack),
        TEST(the_peers_first_ack_tells_the_primary_isn),
        TEST(an_ack_after_data_in_the_syn_tells_nothing),
        TEST(flow_overrules_what_a_peer_acknowledged),
        TEST(a_reset_tells_no_isn),
        TEST(a_connection_opened_by_the_guest_is_rewritten_too),
        TEST(a_syn_ack_waits_for_the_secondarys_own_syn),
        TEST(the_echo_in_a_syn_ack_is_the_secondarys_own),
        TEST(a_flow_of_an_earlier_handshake_is_left_alone),
        TEST(a_syn_that_crosses_a_checkpoint_is_answered_twice),
        TEST(a_syn_that_crosses_a_checkpoint_before_failover),
        TEST(a_second_syn_that_crosses_a_checkpoint_is_answered_twice),
        TEST(a_syn_ack_repeated_behind_its_acknowledgement_changes_nothing),
        TEST(a_syn_ack_of_an_unknown_flow_waits_for_the_primarys),
        TEST(a_repeated_syn_ack_of_an_earlier_epoch_holds_nothing),
        TEST(a_checkpoint_makes_offsets_zero),
        TEST(a_refused_connection_is_answered_at_once),
        TEST(a_stray_syn_does_not_disturb_a_connection),
        TEST(a_stray_syn_does_not_hold_an_old_connection),
        TEST(a_tuple_that_is_used_again_gets_new_numbers),
        TEST(a_tuple_used_again_before_its_end_was_seen),
        TEST(vlans_and_families_are_flows_of_their_own),
        TEST(numbers_stay_the_primarys_after_failover),
        TEST(new_connections_after_failover_are_untouched),
        TEST(a_tuple_used_again_after_failover_is_untouched),
        TEST(a_handshake_that_failover_interrupts_goes_on),
        TEST(held_input_is_let_go_some_time_after_failover),
        TEST(after_failover_the_peers_ack_decides_whose_syn_ack_it_saw),
        TEST(late_output_is_rewritten_once),
        TEST(a_timestamp_clock_that_is_behind_waits_until_it_has_come_so_far),
        TEST(clocks_that_nobody_shows_are_left_alone_in_time),
        TEST(a_clock_that_was_seen_behind_is_waited_for),
        TEST(a_timestamp_clock_that_is_ahead_is_left_alone),
        TEST(echoes_are_remembered_over_checkpoints_and_wraps),
        TEST(an_idle_connections_clock_is_not_pushed_for_hours),
        TEST(nobody_measures_a_round_trip_over_the_takeover),
        TEST(an_echo_is_as_old_as_the_frame_that_brought_it),
        TEST(both_corrections_meet_in_one_frame),
        TEST(closed_flows_age),
        TEST(established_flows_do_not_age_in_hours),
        TEST(a_reset_that_the_guest_ignores_ends_nothing),
        SMALL(a_full_table_gives_up_old_and_half_open_flows_first),
        SMALL(a_table_full_of_flows_that_matter_takes_no_more),
        TEST(an_icmp_error_quotes_the_secondarys_number),
        TEST(other_frames_pass),
        TEST(an_inherited_offset_outlives_checkpoints),
        TEST(an_inherited_offset_is_there_after_failover),
        TEST(a_syn_of_an_inherited_connection_is_sent_on),
        TEST(only_the_primarys_list_ends_an_inherited_connection),
        TEST(a_handshake_that_the_peer_has_not_answered_is_not_settled),
        TEST(a_tuple_that_only_the_copy_used_again_gets_its_offset_back),
        TEST(a_reset_of_the_peers_does_not_end_an_inherited_connection),
        TEST(the_next_takeover_tells_young_offsets_and_inherited_ones),
        TEST(a_known_connection_can_be_told_of_late),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
