/*
 * test_core.c: every row of the tables in remus_core.c, one behaviour per test.
 *
 * A fixture is walked into a state along the ordinary path, then one event comes and the
 * actions that come out are compared, in order, with what they have to be.  Heartbeats are left
 * out of the comparison.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tools/libxl/remus_core.h"

#define MS 1000ull

struct fixture {
    struct remus_core core;
    struct remus_actions out;      /* of the last event, heartbeats removed */
    unsigned int heartbeats;
    uint64_t now;
};

static void strip(struct fixture *f)
{
    unsigned int kept = 0;

    assert_true(f->out.count < REMUS_ACTIONS_MAX);
    assert_false(f->core.flags & REMUS_CORE_BUG);
    for (unsigned int i = 0; i < f->out.count; i++) {
        if (f->out.list[i].type == RA_SEND_HEARTBEAT) {
            f->heartbeats++;
        } else {
            f->out.list[kept++] = f->out.list[i];
        }
    }
    f->out.count = kept;
}

static void event3(struct fixture *f, enum remus_event_type type, uint64_t epoch, uint64_t value)
{
    struct remus_event e = { .type = type, .epoch = epoch, .value = value };

    f->now += 10;
    remus_core_event(&f->core, f->now, &e, &f->out);
    strip(f);
}

static void event(struct fixture *f, enum remus_event_type type)
{
    event3(f, type, 0, 0);
}

static const struct remus_action *only(const struct fixture *f, enum remus_action_type type)
{
    assert_int_equal(f->out.count, 1);
    assert_int_equal(f->out.list[0].type, type);
    return &f->out.list[0];
}

#define END (-1)
static void expect_list(const struct fixture *f, int line, const int *types)
{
    for (unsigned int i = 0; i < f->out.count || types[i] != END; i++) {
        if (i >= f->out.count || types[i] != (int)f->out.list[i].type) {
            print_error("line %d: action %u is %d, %d expected\n", line, i,
                        i < f->out.count ? (int)f->out.list[i].type : END, types[i]);
            fail();
        }
    }
}
#define expect(f, ...) expect_list(f, __LINE__, (const int[]){ __VA_ARGS__, END })
#define expect_nothing(f) assert_int_equal((f)->out.count, 0)
#define expect_state(f, s) assert_string_equal(remus_state_name((f)->core.state), \
                                               remus_state_name(s))

static void expect_finish(const struct fixture *f, enum remus_end end)
{
    const struct remus_action *a;

    assert_true(f->out.count > 0);
    a = &f->out.list[f->out.count - 1];
    assert_int_equal(a->type, RA_FINISH);
    assert_int_equal(a->value, end);
}

/* The peer answers heartbeats all the while: time passes without a loss. */
static void pass(struct fixture *f, uint64_t us)
{
    uint64_t until = f->now + us;

    while (f->now < until) {
        uint64_t step = until - f->now < 50 * MS ? until - f->now : 50 * MS;
        struct remus_event e = { .type = RE_FRAME_ANY };

        f->now += step;
        e.value = f->now - 100;
        remus_core_event(&f->core, f->now, &e, &f->out);
        strip(f);
        if (f->out.count) {
            return;
        }
    }
}

static void begin(struct fixture *f, enum remus_role role, const char *mode, bool net)
{
    struct remus_core_params p = { .role = role, .mode = remus_mode_by_name(mode), .net = net };

    memset(f, 0, sizeof(*f));
    f->now = 1000000;
    assert_int_equal(remus_core_init(&f->core, &p, f->now, &f->out), 0);
}

/* The ordinary path of the primary, up to a state of the checkpoint of epoch n. */
static void walk_primary(struct fixture *f, enum remus_state to, uint64_t epoch)
{
    event(f, RE_FRAME_ANY);
    if (f->core.state == RP_COPY && to != RP_COPY) {
        event(f, RE_COPY_DONE);
    }
    if (f->core.state == RP_BUILD && to != RP_BUILD) {
        event(f, RE_PEER_READY);
    }
    for (int i = 0; f->core.state != to || f->core.pending_epoch + (to == RP_RUN) != epoch; i++) {
        uint64_t e = f->core.pending_epoch;

        assert_true(i < 100);

        switch (f->core.state) {
        case RP_RUN:
            event(f, RE_CHECKPOINT_WANTED);
            pass(f, f->core.state == RP_RUN ? 20 * MS : 0);
            break;
        case RP_SUSPEND:
            event(f, RE_SUSPENDED);
            break;
        case RP_QUIESCE:
            event(f, RE_INPUT_STOPPED);
            event(f, RE_DRAINED);
            break;
        case RP_STAGE:
            event(f, RE_STAGED);
            event(f, RE_CUT_DONE);
            break;
        case RP_RESUME:
            event(f, RE_RESUMED);
            break;
        case RP_SEND:
            event3(f, RE_PEER_ACK, e, 0);
            break;
        case RP_APPLY:
            event3(f, RE_PEER_APPLIED, e, 0);
            break;
        default:
            return;
        }
    }
}

static void primary_in(struct fixture *f, enum remus_state state, uint64_t epoch)
{
    begin(f, REMUS_PRIMARY, "colo", true);
    walk_primary(f, state, epoch);
    if (state == RP_STOP) {
        event(f, RE_OPERATOR_STOP);
    } else if (state == RP_ARBITRATE) {
        event(f, RE_LINK_LOST);
    } else if (state == RP_UNPROTECT) {
        event(f, RE_PEER_STOPPED);
    } else if (state == RP_DONE) {
        event(f, RE_PEER_STOPPED);
        event(f, RE_UNPROTECTED);
    }
    expect_state(f, state);
}

/* Walks to RP_RUN of the epoch first: the states after it have no path of their own. */
static void primary_after(struct fixture *f, enum remus_state state)
{
    begin(f, REMUS_PRIMARY, "colo", true);
    walk_primary(f, RP_RUN, 2);
    switch (state) {
    case RP_STOP:
        event(f, RE_OPERATOR_STOP);
        break;
    case RP_ARBITRATE:
        event(f, RE_LINK_LOST);
        break;
    case RP_UNPROTECT:
        event(f, RE_PEER_STOPPED);
        break;
    default:
        event(f, RE_PEER_STOPPED);
        event(f, RE_UNPROTECTED);
        break;
    }
    expect_state(f, state);
}

static void walk_secondary(struct fixture *f, enum remus_state to, uint64_t epoch)
{
    begin(f, REMUS_SECONDARY, "colo", true);
    event(f, RE_PEER_STREAM);
    if (to == RS_COPY) {
        return;
    }
    event(f, RE_BUILT);
    while (f->core.state != to || f->core.epoch != epoch) {
        switch (f->core.state) {
        case RS_BASE:
        case RS_RUN:
            event3(f, RE_PEER_EPOCH_FRAME, f->core.epoch, 0);
            break;
        case RS_RECEIVE:
            event3(f, RE_PEER_EPOCH_COMPLETE, f->core.epoch, REMUS_MODE_COLO);
            break;
        case RS_APPLY:
            event(f, RE_APPLIED);
            break;
        default:
            fail();
        }
    }
}

static void secondary_after(struct fixture *f, enum remus_state state)
{
    walk_secondary(f, RS_RUN, 3);
    event(f, state == RS_STOP || state == RS_DONE ? RE_PEER_STOP : RE_LINK_LOST);
    if (state == RS_DONE) {
        event(f, RE_DESTROYED);
    } else if (state == RS_TAKEOVER || state == RS_ACTIVE) {
        event3(f, RE_ARBITRATED, 0, 1);
        if (state == RS_ACTIVE) {
            event(f, RE_ACTIVE);
        }
    }
    expect_state(f, state);
}

#define TEST(name) static void name(void **state __attribute__((unused)))

/* ---- Modes and parameters ------------------------------------------------------------------- */

TEST(modes_are_found_by_name_and_by_number)
{
    assert_ptr_equal(remus_mode_by_name("colo"), remus_mode_by_wire(REMUS_MODE_COLO));
    assert_ptr_equal(remus_mode_by_name("remus"), remus_mode_by_wire(REMUS_MODE_REMUS));
    assert_ptr_equal(remus_mode_by_name("kemari"), remus_mode_by_wire(REMUS_MODE_KEMARI));
    assert_ptr_equal(remus_mode_by_name("curling"), remus_mode_by_wire(REMUS_MODE_CURLING));
    assert_ptr_equal(remus_mode_by_name("auto"), remus_mode_by_wire(REMUS_MODE_AUTO));
    assert_null(remus_mode_by_name("turbo"));
    assert_null(remus_mode_by_wire(77));
    assert_int_equal(remus_mode_by_name("remus")->period_ms, 200);
    assert_true(remus_mode_by_name("kemari")->output_triggers);
    assert_false(remus_mode_by_name("curling")->holds_output);
}

/* One checkpoint of a primary that runs, for the reason given (1: output differs); it takes ms. */
static void checkpoint(struct fixture *f, uint64_t why, uint64_t ms)
{
    uint64_t epoch = f->core.epoch;

    for (unsigned int i = 0; f->core.state == RP_RUN && i < 100; i++) {
        event3(f, RE_CHECKPOINT_WANTED, epoch, why);
        if (f->core.state == RP_RUN) {
            pass(f, 10 * MS);
        }
    }
    expect_state(f, RP_SUSPEND);
    event(f, RE_SUSPENDED);
    event(f, RE_INPUT_STOPPED);
    event(f, RE_DRAINED);
    event(f, RE_STAGED);
    event(f, RE_CUT_DONE);
    event(f, RE_RESUMED);
    pass(f, ms * MS);
    event3(f, RE_PEER_ACK, epoch, 0);
    event3(f, RE_PEER_APPLIED, epoch, 0);
}

TEST(a_mode_that_is_asked_for_begins_with_the_next_epoch)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 3);
    event3(&f, RE_MODE, 0, REMUS_MODE_REMUS);
    pass(&f, 20 * MS);
    expect_state(&f, RP_SUSPEND); /* at once */
    assert_string_equal(f.core.mode->name, "colo");
    event(&f, RE_SUSPENDED);
    event(&f, RE_INPUT_STOPPED);
    event(&f, RE_DRAINED);
    assert_int_equal(only(&f, RA_STAGE)->value, REMUS_MODE_REMUS);
    event(&f, RE_STAGED);
    assert_int_equal(only(&f, RA_CUT)->value, REMUS_MODE_REMUS);
    assert_string_equal(f.core.mode->name, "colo");
    event(&f, RE_CUT_DONE);
    assert_string_equal(f.core.mode->name, "remus");
}

TEST(a_mode_that_is_asked_for_while_state_is_copied_waits_for_the_checkpoint_after)
{
    struct fixture f;

    primary_in(&f, RP_STAGE, 3);
    event3(&f, RE_MODE, 0, REMUS_MODE_KEMARI);
    event(&f, RE_STAGED);
    assert_int_equal(only(&f, RA_CUT)->value, REMUS_MODE_COLO);
    event(&f, RE_CUT_DONE);
    assert_string_equal(f.core.mode->name, "colo");
}

TEST(a_mode_that_does_not_exist_changes_nothing)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 3);
    event3(&f, RE_MODE, 0, 77);
    event3(&f, RE_MODE, 0, (1ull << 32) + REMUS_MODE_REMUS);
    pass(&f, 100 * MS);
    expect_state(&f, RP_RUN);
    assert_string_equal(f.core.wanted->name, "colo");
}

TEST(each_mode_has_its_own_period_and_the_operators_is_for_the_one_he_chose)
{
    struct remus_core_params p = {
        .role = REMUS_PRIMARY, .mode = remus_mode_by_name("remus"), .net = true, .period_ms = 500,
    };
    struct fixture f;

    memset(&f, 0, sizeof(f));
    f.now = 1000000;
    assert_int_equal(remus_core_init(&f.core, &p, f.now, &f.out), 0);
    walk_primary(&f, RP_RUN, 2);
    pass(&f, 400 * MS);
    expect_state(&f, RP_RUN);
    pass(&f, 200 * MS);
    expect_state(&f, RP_SUSPEND);
    walk_primary(&f, RP_RUN, 3);
    event3(&f, RE_MODE, 0, REMUS_MODE_COLO);
    walk_primary(&f, RP_RUN, 4);
    pass(&f, 9000 * MS);
    expect_state(&f, RP_RUN);
    pass(&f, 2000 * MS);
    expect_state(&f, RP_SUSPEND);
}

TEST(auto_leaves_colo_when_every_epoch_ends_with_a_difference)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "auto", true);
    walk_primary(&f, RP_RUN, 2);
    assert_string_equal(f.core.mode->name, "colo");
    for (unsigned int i = 0; i < 8 && !strcmp(f.core.mode->name, "colo"); i++) {
        checkpoint(&f, 1, 50);
    }
    assert_string_equal(f.core.mode->name, "remus");
    assert_true(f.core.chooses);
}

TEST(auto_stays_with_colo_when_output_differs_now_and_then)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "auto", true);
    walk_primary(&f, RP_RUN, 2);
    for (unsigned int i = 0; i < 40; i++) {
        pass(&f, 1000 * MS);
        checkpoint(&f, 1, 50);
        assert_string_equal(f.core.mode->name, "colo");
    }
}

TEST(auto_does_not_count_checkpoints_that_nobody_asked_for_by_comparing)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "auto", true);
    walk_primary(&f, RP_RUN, 2);
    for (unsigned int i = 0; i < 40; i++) {
        checkpoint(&f, 0, 50);
        assert_string_equal(f.core.mode->name, "colo");
    }
}

TEST(auto_tries_colo_again_and_waits_longer_each_time_that_it_does_not_pay)
{
    uint64_t began, stayed = 0;
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "auto", true);
    walk_primary(&f, RP_RUN, 2);
    for (unsigned int round = 0; round < 3; round++) {
        while (!strcmp(f.core.mode->name, "colo")) {
            checkpoint(&f, 1, 50);
        }
        began = f.now;
        while (strcmp(f.core.mode->name, "colo")) {
            checkpoint(&f, 0, 50);
        }
        assert_true(f.now - began > stayed + stayed / 2);
        stayed = f.now - began;
    }
    assert_true(stayed > 100000 * MS);
    for (unsigned int i = 0; i < 20; i++) { /* COLO pays again ... */
        pass(&f, 1000 * MS);
        checkpoint(&f, 0, 50);
    }
    while (!strcmp(f.core.mode->name, "colo")) { /* ... and then does not */
        checkpoint(&f, 1, 50);
    }
    began = f.now;
    while (strcmp(f.core.mode->name, "colo")) {
        checkpoint(&f, 0, 50);
    }
    assert_true(f.now - began < stayed / 2);
}

TEST(a_secondary_runs_its_copy_as_the_epoch_says)
{
    struct fixture f;

    walk_secondary(&f, RS_RECEIVE, 2);
    event3(&f, RE_PEER_EPOCH_COMPLETE, 2, REMUS_MODE_REMUS);
    expect(&f, RA_ACK, RA_APPLY);
    assert_int_equal(f.out.list[1].value, REMUS_MODE_REMUS);
    assert_string_equal(f.core.mode->name, "colo");
    event(&f, RE_APPLIED);
    assert_string_equal(f.core.mode->name, "remus");
}

TEST(an_epoch_whose_mode_makes_no_sense_is_refused)
{
    static const uint64_t bad[] = { 0, REMUS_MODE_AUTO, 77, (1ull << 32) + REMUS_MODE_COLO };
    struct fixture f;

    for (unsigned int i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        walk_secondary(&f, RS_RECEIVE, 2);
        event3(&f, RE_PEER_EPOCH_COMPLETE, 2, bad[i]);
        expect(&f, RA_SEND_ERROR, RA_DROP_PARTIAL, RA_DESTROY);
    }
}

TEST(parameters_that_make_no_sense_are_refused)
{
    struct remus_core_params p = { .role = REMUS_PRIMARY };
    struct remus_actions out;
    struct remus_core c;

    assert_int_equal(remus_core_init(&c, &p, 0, &out), -EINVAL);
    p.mode = remus_mode_by_name("remus");
    p.heartbeat_ms = 1000;
    p.timeout_ms = 2000;
    assert_int_equal(remus_core_init(&c, &p, 0, &out), -EINVAL);
}

TEST(an_unknown_event_is_ignored_and_flagged)
{
    struct remus_event e = { .type = (enum remus_event_type)1000 };
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "colo", true);
    remus_core_event(&f.core, f.now, &e, &f.out);
    assert_int_equal(f.out.count, 0);
    assert_true(f.core.flags & REMUS_CORE_BUG);
}

TEST(an_answer_that_was_never_asked_for_is_ignored_and_flagged)
{
    struct remus_event e = { .type = RE_ARBITRATED, .value = 1 };
    struct fixture f;

    primary_in(&f, RP_RUN, 2);
    remus_core_event(&f.core, f.now, &e, &f.out);
    assert_int_equal(f.out.count, 0);
    assert_int_equal(f.core.state, RP_RUN);
    assert_true(f.core.flags & REMUS_CORE_BUG);
}

/* ---- The primary's ordinary path ------------------------------------------------------------ */

TEST(primary_begins_with_the_copy)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "colo", true);
    only(&f, RA_START_COPY);
    expect_state(&f, RP_COPY);
    event(&f, RE_COPY_DONE);
    expect_state(&f, RP_BUILD);
}

TEST(ready_begins_the_first_checkpoint_at_once)
{
    struct fixture f;

    primary_in(&f, RP_BUILD, 0);
    event(&f, RE_PEER_READY);
    assert_int_equal(only(&f, RA_SUSPEND)->epoch, 1);
    expect_state(&f, RP_SUSPEND);
}

TEST(ready_before_our_own_copy_done_is_kept)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "colo", true);
    event(&f, RE_PEER_READY);
    expect_state(&f, RP_COPY);
    event(&f, RE_COPY_DONE);
    only(&f, RA_SUSPEND);
}

TEST(a_checkpoint_takes_the_steps_in_order)
{
    struct fixture f;

    primary_in(&f, RP_SUSPEND, 1);
    event(&f, RE_SUSPENDED);
    only(&f, RA_STOP_INPUT);
    assert_true(f.core.guest_stopped);
    event(&f, RE_INPUT_STOPPED);
    only(&f, RA_DRAIN);
    event(&f, RE_DRAINED);
    assert_int_equal(only(&f, RA_STAGE)->epoch, 1);
    event(&f, RE_STAGED);
    assert_int_equal(only(&f, RA_CUT)->epoch, 1);
    event(&f, RE_CUT_DONE);
    only(&f, RA_RESUME);
    assert_int_equal(f.core.epoch, 2);
    event(&f, RE_RESUMED);
    assert_int_equal(only(&f, RA_SEND_EPOCH)->epoch, 1);
    assert_false(f.core.guest_stopped);
    event3(&f, RE_PEER_ACK, 1, 0);
    assert_int_equal(only(&f, RA_RELEASE)->epoch, 1);
    expect_state(&f, RP_APPLY);
    event3(&f, RE_PEER_APPLIED, 1, 0);
    expect_nothing(&f);
    expect_state(&f, RP_RUN);
    assert_int_equal(f.core.applied, 1);
}

TEST(without_a_network_there_is_no_input_to_stop_and_nothing_to_cut)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "remus", false);
    walk_primary(&f, RP_SUSPEND, 1);
    event(&f, RE_SUSPENDED);
    only(&f, RA_DRAIN);
    event(&f, RE_DRAINED);
    only(&f, RA_STAGE);
    event(&f, RE_STAGED);
    only(&f, RA_RESUME);
}

TEST(drained_counts_only_after_the_input_was_stopped)
{
    struct fixture f;

    primary_in(&f, RP_QUIESCE, 1);
    event(&f, RE_DRAINED);
    expect_nothing(&f);
    expect_state(&f, RP_QUIESCE);
    event(&f, RE_INPUT_STOPPED);
    only(&f, RA_DRAIN);
    event(&f, RE_INPUT_STOPPED);
    expect_nothing(&f);
}

TEST(cut_done_counts_only_after_staging)
{
    struct fixture f;

    primary_in(&f, RP_STAGE, 1);
    event(&f, RE_CUT_DONE);
    expect_nothing(&f);
    event(&f, RE_STAGED);
    only(&f, RA_CUT);
    event(&f, RE_STAGED);
    expect_nothing(&f);
}

TEST(the_period_asks_for_a_checkpoint)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "remus", true);
    walk_primary(&f, RP_RUN, 2);
    pass(&f, 150 * MS);
    expect_nothing(&f);
    pass(&f, 100 * MS);
    assert_int_equal(only(&f, RA_SUSPEND)->epoch, 2);
}

TEST(a_wish_asks_for_a_checkpoint_but_not_before_the_rest)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 2);
    event3(&f, RE_CHECKPOINT_WANTED, 2, 0);
    expect_nothing(&f);
    assert_int_equal(remus_core_next_us(&f.core), f.core.checkpoint_done_us + 10 * MS);
    pass(&f, 10 * MS);
    only(&f, RA_SUSPEND);
}

TEST(a_guest_runs_for_as_long_as_it_was_stopped_before_it_is_stopped_again)
{
    struct fixture f;
    uint64_t resumed;

    primary_in(&f, RP_STAGE, 2);
    pass(&f, 400 * MS);
    resumed = f.now;
    walk_primary(&f, RP_RUN, 3);
    event3(&f, RE_CHECKPOINT_WANTED, 3, 0);
    expect_nothing(&f);
    pass(&f, resumed + 399 * MS - f.now);
    expect_nothing(&f);
    expect_state(&f, RP_RUN);
    pass(&f, 2 * MS);
    only(&f, RA_SUSPEND);
}

TEST(the_secondary_may_ask_for_a_checkpoint)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 2);
    event3(&f, RE_PEER_CHECKPOINT, 2, 0);
    pass(&f, 10 * MS);
    only(&f, RA_SUSPEND);
}

TEST(a_wish_from_an_epoch_that_is_over_is_ignored)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 2);
    event3(&f, RE_CHECKPOINT_WANTED, 1, 0);
    pass(&f, 100 * MS);
    expect_nothing(&f);
}

TEST(a_wish_during_the_checkpoint_is_met_by_it)
{
    struct fixture f;

    primary_in(&f, RP_QUIESCE, 2);
    event3(&f, RE_CHECKPOINT_WANTED, 2, 0);
    walk_primary(&f, RP_RUN, 3);
    pass(&f, 100 * MS);
    expect_nothing(&f);
}

TEST(a_wish_after_the_cut_waits_for_the_next_checkpoint)
{
    struct fixture f;

    primary_in(&f, RP_SEND, 2);
    event3(&f, RE_CHECKPOINT_WANTED, 3, 0);
    expect_nothing(&f);
    walk_primary(&f, RP_RUN, 3);
    pass(&f, 10 * MS);
    assert_int_equal(only(&f, RA_SUSPEND)->epoch, 3);
}

TEST(heartbeats_go_out_at_their_interval)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 2);
    f.heartbeats = 0;
    pass(&f, 1000 * MS);
    assert_in_range(f.heartbeats, 9, 11);
}

/* ---- The guest does not play along ---------------------------------------------------------- */

TEST(a_refused_suspend_is_withdrawn_and_tried_again)
{
    struct fixture f;

    primary_in(&f, RP_SUSPEND, 2);
    event(&f, RE_FAILED);
    only(&f, RA_SUSPEND_CANCEL);
    expect_state(&f, RP_RUN);
    pass(&f, 400 * MS);
    expect_nothing(&f);
    pass(&f, 200 * MS);
    assert_int_equal(only(&f, RA_SUSPEND)->epoch, 2);
}

TEST(a_suspend_that_is_not_answered_is_withdrawn)
{
    struct fixture f;

    primary_in(&f, RP_SUSPEND, 2);
    pass(&f, 11000 * MS);
    only(&f, RA_SUSPEND_CANCEL);
    expect_state(&f, RP_RUN);
}

TEST(the_fourth_refusal_ends_protection)
{
    struct fixture f;

    primary_in(&f, RP_SUSPEND, 2);
    for (int i = 0; i < 3; i++) {
        event(&f, RE_FAILED);
        only(&f, RA_SUSPEND_CANCEL);
        pass(&f, 3000 * MS);
        only(&f, RA_SUSPEND);
    }
    event(&f, RE_FAILED);
    expect(&f, RA_SUSPEND_CANCEL, RA_SEND_STOP);
    assert_int_equal(f.out.list[1].value, REMUS_STOP_FAILED);
    assert_non_null(strstr(f.out.list[1].text, "did not suspend"));
}

/* The guest reads the request of attempt `taken` (0: none, -1: every one) and never suspends. */
static void hang(struct fixture *f, int taken)
{
    for (int i = 1; i <= 3; i++) {
        pass(f, 11000 * MS);
        only(f, RA_SUSPEND_CANCEL);
        if (taken == i || taken == -1) {
            event(f, RE_SUSPEND_TAKEN);
            expect_nothing(f);
        }
        pass(f, 3000 * MS);
        only(f, RA_SUSPEND);
    }
    pass(f, 11000 * MS);
}

static void never_suspends(struct fixture *f, int taken)
{
    primary_in(f, RP_SUSPEND, 2);
    hang(f, taken);
}

/* xl remus -b: somebody acknowledges, and has kept nothing. */
static void nowhere_in(struct fixture *f, enum remus_state state, uint64_t epoch)
{
    begin(f, REMUS_PRIMARY, "remus", true);
    f->core.params.nowhere = true;
    walk_primary(f, state, epoch);
    expect_state(f, state);
}

TEST(a_guest_without_a_copy_is_never_fenced_nor_arbitrated_about)
{
    static const enum remus_state states[] = { RP_RUN, RP_SEND, RP_APPLY };
    struct fixture f;

    nowhere_in(&f, RP_RUN, 2);
    event(&f, RE_SWITCH);
    expect_nothing(&f);
    for (size_t i = 0; i < 3; i++) {
        nowhere_in(&f, states[i], 2);
        event(&f, RE_LINK_LOST);
        only(&f, RA_UNPROTECT);
        event(&f, RE_UNPROTECTED);
        expect_finish(&f, REMUS_END_FAILED);
    }
    nowhere_in(&f, RP_SUSPEND, 2);
    hang(&f, 1);
    expect(&f, RA_SUSPEND_CANCEL, RA_SEND_STOP);
    assert_int_equal(f.out.list[1].value, REMUS_STOP_FAILED);
}

TEST(a_guest_that_hangs_on_its_way_to_be_suspended_is_fenced_and_its_copy_goes_on)
{
    struct fixture f;

    never_suspends(&f, 1);
    expect(&f, RA_FENCE_AND_STOP, RA_SEND_STOP, RA_FINISH);
    assert_int_equal(f.out.list[1].value, REMUS_STOP_HANDOVER);
    expect_finish(&f, REMUS_END_HANDED_OVER);
    assert_non_null(strstr(f.core.reason, "hangs"));
    event(&f, RE_SUSPENDED);
    expect_nothing(&f);
}

TEST(a_guest_that_only_refuses_is_let_go)
{
    struct fixture f;

    for (int taken = -1; taken <= 3; taken++) {
        if (taken != 1) {
            never_suspends(&f, taken);
            expect(&f, RA_SUSPEND_CANCEL, RA_SEND_STOP);
        }
    }
}

TEST(a_checkpoint_that_succeeds_forgets_earlier_refusals)
{
    struct fixture f;

    primary_in(&f, RP_SUSPEND, 2);
    event(&f, RE_FAILED);
    pass(&f, 600 * MS);
    walk_primary(&f, RP_RUN, 3);
    assert_int_equal(f.core.checkpoint_tries, 0);
}

TEST(a_guest_that_suspends_after_the_cancel_is_resumed)
{
    struct fixture f;

    primary_in(&f, RP_SUSPEND, 2);
    event(&f, RE_FAILED);
    event(&f, RE_SUSPENDED);
    only(&f, RA_RESUME);
    assert_true(f.core.guest_stopped);
    pass(&f, 500 * MS);
    expect_nothing(&f);           /* no checkpoint before it runs again */
    event(&f, RE_RESUMED);
    only(&f, RA_SUSPEND);
}

TEST(a_late_suspend_is_undone_in_every_state_of_the_primary)
{
    static const enum remus_state states[] = { RP_BUILD, RP_RUN, RP_SEND, RP_APPLY };
    static const enum remus_state ends[] = { RP_STOP, RP_ARBITRATE, RP_UNPROTECT, RP_DONE };
    struct fixture f;

    for (size_t i = 0; i < 4; i++) {
        primary_in(&f, states[i], states[i] == RP_BUILD ? 0 : 2);
        event(&f, RE_SUSPENDED);
        only(&f, RA_RESUME);
        primary_after(&f, ends[i]);
        event(&f, RE_SUSPENDED);
        only(&f, RA_RESUME);
        event(&f, RE_RESUMED);
        assert_false(f.core.guest_stopped);
    }
}

TEST(the_end_waits_for_a_late_suspend_to_be_undone)
{
    struct fixture f;

    primary_after(&f, RP_UNPROTECT);
    event(&f, RE_SUSPENDED);
    event(&f, RE_UNPROTECTED);
    expect_nothing(&f);
    event(&f, RE_RESUMED);
    expect_finish(&f, REMUS_END_FAILED);
}

TEST(rings_that_do_not_drain_give_the_checkpoint_up_and_the_epoch_goes_on)
{
    struct fixture f;

    primary_in(&f, RP_QUIESCE, 2);
    event(&f, RE_INPUT_STOPPED);
    pass(&f, 1100 * MS);
    expect(&f, RA_RESUME, RA_INPUT_GO);
    expect_state(&f, RP_RESUME);
    event(&f, RE_RESUMED);
    expect_state(&f, RP_RUN);
    assert_int_equal(f.core.epoch, 2);
    pass(&f, 600 * MS);
    assert_int_equal(only(&f, RA_SUSPEND)->epoch, 2);
}

TEST(a_failed_drain_gives_the_checkpoint_up)
{
    struct fixture f;

    primary_in(&f, RP_QUIESCE, 2);
    event(&f, RE_FAILED);
    expect(&f, RA_RESUME, RA_INPUT_GO);
}

TEST(the_fourth_failed_drain_ends_protection_with_the_guest_running)
{
    struct fixture f;

    primary_in(&f, RP_QUIESCE, 2);
    for (int i = 0; i < 3; i++) {
        event(&f, RE_FAILED);
        event(&f, RE_RESUMED);
        pass(&f, 3000 * MS);
        event(&f, RE_SUSPENDED);
        only(&f, RA_STOP_INPUT);
    }
    event(&f, RE_FAILED);
    expect(&f, RA_RESUME, RA_INPUT_GO);
    event(&f, RE_RESUMED);
    assert_int_equal(only(&f, RA_SEND_STOP)->value, REMUS_STOP_FAILED);
}

TEST(failed_staging_ends_protection_because_the_dirty_bitmap_is_gone)
{
    struct fixture f;

    primary_in(&f, RP_STAGE, 2);
    event3(&f, RE_FAILED, 0, (uint64_t)-EIO);
    expect(&f, RA_RESUME, RA_INPUT_GO);
    event(&f, RE_RESUMED);
    assert_int_equal(only(&f, RA_SEND_STOP)->value, REMUS_STOP_FAILED);
    expect_state(&f, RP_STOP);
    event(&f, RE_PEER_STOPPED);
    only(&f, RA_UNPROTECT);
    event(&f, RE_UNPROTECTED);
    expect_finish(&f, REMUS_END_FAILED);
}

TEST(a_changed_physmap_asks_for_a_new_secondary)
{
    struct fixture f;

    primary_in(&f, RP_STAGE, 2);
    event3(&f, RE_FAILED, 0, (uint64_t)-ESTALE);
    event(&f, RE_RESUMED);
    assert_int_equal(only(&f, RA_SEND_STOP)->value, REMUS_STOP_REBUILD);
}

TEST(a_failed_cut_ends_protection_and_input_flows_again)
{
    struct fixture f;

    primary_in(&f, RP_STAGE, 2);
    event(&f, RE_STAGED);
    event(&f, RE_FAILED);
    expect(&f, RA_RESUME, RA_INPUT_GO);
    event(&f, RE_RESUMED);
    only(&f, RA_SEND_STOP);
}

TEST(staging_that_does_not_end_is_given_up)
{
    struct fixture f;

    primary_in(&f, RP_STAGE, 2);
    pass(&f, 11000 * MS);
    expect(&f, RA_RESUME, RA_INPUT_GO);
}

TEST(a_failed_resume_is_tried_again)
{
    struct fixture f;

    primary_in(&f, RP_RESUME, 2);
    event(&f, RE_FAILED);
    expect_nothing(&f);
    pass(&f, 300 * MS);
    only(&f, RA_RESUME);
    event(&f, RE_RESUMED);
    only(&f, RA_SEND_EPOCH);
}

TEST(a_resume_that_is_not_answered_is_given_again)
{
    struct fixture f;

    primary_in(&f, RP_RESUME, 2);
    pass(&f, 1100 * MS);
    only(&f, RA_RESUME);
}

static void resume_fails_for_good(struct fixture *f)
{
    for (int i = 0; i < 25 && !f->out.count; i++) {
        event(f, RE_FAILED);
        pass(f, 300 * MS);
        if (f->out.count == 1 && f->out.list[0].type == RA_RESUME) {
            f->out.count = 0;
        }
    }
}

TEST(a_guest_that_cannot_be_resumed_is_left_to_the_secondary)
{
    struct fixture f;

    primary_in(&f, RP_RESUME, 2);
    f.out.count = 0;
    resume_fails_for_good(&f);
    expect(&f, RA_FENCE_AND_STOP, RA_SEND_STOP, RA_FINISH);
    expect_finish(&f, REMUS_END_HANDED_OVER);
}

TEST(a_copy_in_the_middle_of_an_epoch_is_not_told_but_finds_out)
{
    struct fixture f;

    primary_in(&f, RP_SEND, 3);
    event(&f, RE_SUSPENDED);
    f.out.count = 0;
    resume_fails_for_good(&f);
    expect(&f, RA_FENCE_AND_STOP, RA_FINISH);
    expect_finish(&f, REMUS_END_FENCED);
}

TEST(a_switch_waits_for_the_checkpoint_under_way_and_hands_the_guest_over)
{
    struct fixture f;

    primary_in(&f, RP_SEND, 3);
    event(&f, RE_SWITCH);
    expect_nothing(&f);
    event3(&f, RE_PEER_ACK, 3, 0);
    event3(&f, RE_PEER_APPLIED, 3, 0);
    expect(&f, RA_FENCE_AND_STOP, RA_SEND_STOP, RA_FINISH);
    assert_int_equal(f.out.list[1].value, REMUS_STOP_HANDOVER);
    expect_finish(&f, REMUS_END_HANDED_OVER);
    event(&f, RE_RESUMED);
    expect_nothing(&f);
}

TEST(a_switch_to_a_copy_that_is_paused_starts_it_with_a_checkpoint_before)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "auto", true);
    walk_primary(&f, RP_RUN, 2);
    event3(&f, RE_MODE, 0, REMUS_MODE_REMUS);
    walk_primary(&f, RP_RUN, 3);
    assert_string_equal(f.core.mode->name, "remus");
    event(&f, RE_SWITCH);
    expect_nothing(&f);
    pass(&f, 20 * MS);
    expect_state(&f, RP_SUSPEND); /* at once */
    walk_primary(&f, RP_APPLY, 3);
    assert_string_equal(f.core.mode->name, "colo");
    event3(&f, RE_PEER_APPLIED, 3, 0);
    expect(&f, RA_FENCE_AND_STOP, RA_SEND_STOP, RA_FINISH);
    assert_int_equal(f.out.list[1].value, REMUS_STOP_HANDOVER);
}

TEST(a_guest_that_cannot_be_resumed_without_a_secondary_ends_as_failed)
{
    struct fixture f;

    primary_in(&f, RP_RESUME, 1);
    f.out.count = 0;
    resume_fails_for_good(&f);
    only(&f, RA_SEND_STOP);
    event(&f, RE_PEER_STOPPED);
    only(&f, RA_UNPROTECT);
    event(&f, RE_UNPROTECTED);
    expect_finish(&f, REMUS_END_FAILED);
    assert_non_null(strstr(f.out.list[0].text, "resumed"));
}

/* ---- Failover, primary: legal from every state ---------------------------------------------- */

TEST(loss_before_protection_needs_no_arbitration)
{
    static const enum remus_state states[] = { RP_COPY, RP_BUILD };
    struct fixture f;

    for (size_t i = 0; i < 2; i++) {
        primary_in(&f, states[i], 0);
        event(&f, RE_LINK_LOST);
        only(&f, RA_UNPROTECT);
        event(&f, RE_UNPROTECTED);
        expect_finish(&f, REMUS_END_FAILED);
    }
}

TEST(loss_in_the_first_suspend_needs_no_arbitration)
{
    struct fixture f;

    primary_in(&f, RP_SUSPEND, 1);
    event(&f, RE_LINK_LOST);
    expect(&f, RA_SUSPEND_CANCEL, RA_UNPROTECT);
}

TEST(loss_while_the_first_checkpoint_is_taken_needs_no_arbitration)
{
    static const enum remus_state states[] = { RP_QUIESCE, RP_STAGE };
    struct fixture f;

    for (size_t i = 0; i < 2; i++) {
        primary_in(&f, states[i], 1);
        event(&f, RE_LINK_LOST);
        expect(&f, RA_RESUME, RA_INPUT_GO);
        event(&f, RE_RESUMED);
        only(&f, RA_UNPROTECT);
    }
    primary_in(&f, RP_RESUME, 1);
    event(&f, RE_LINK_LOST);
    expect_nothing(&f);
    event(&f, RE_RESUMED);
    only(&f, RA_UNPROTECT);
}

TEST(loss_after_the_first_epoch_was_sent_needs_arbitration_acknowledged_or_not)
{
    struct fixture f;

    primary_in(&f, RP_SEND, 1);
    assert_int_equal(f.core.acked, 0);
    event(&f, RE_LINK_LOST);
    expect(&f, RA_HOLD, RA_ARBITRATE);
}

TEST(loss_with_the_guest_running_holds_output_and_arbitrates)
{
    static const enum remus_state states[] = { RP_RUN, RP_SEND, RP_APPLY };
    struct fixture f;

    for (size_t i = 0; i < 3; i++) {
        primary_in(&f, states[i], 2);
        event(&f, RE_LINK_LOST);
        expect(&f, RA_HOLD, RA_ARBITRATE);
        expect_state(&f, RP_ARBITRATE);
    }
}

TEST(loss_in_suspend_withdraws_it)
{
    struct fixture f;

    primary_in(&f, RP_SUSPEND, 2);
    event(&f, RE_LINK_LOST);
    expect(&f, RA_HOLD, RA_SUSPEND_CANCEL, RA_ARBITRATE);
}

TEST(loss_with_the_guest_stopped_brings_it_back_first)
{
    static const enum remus_state states[] = { RP_QUIESCE, RP_STAGE };
    struct fixture f;

    for (size_t i = 0; i < 2; i++) {
        primary_in(&f, states[i], 2);
        event(&f, RE_LINK_LOST);
        expect(&f, RA_HOLD, RA_RESUME, RA_INPUT_GO);
        event(&f, RE_RESUMED);
        only(&f, RA_ARBITRATE);
    }
    primary_in(&f, RP_RESUME, 2);
    event(&f, RE_LINK_LOST);
    only(&f, RA_HOLD);
    event(&f, RE_RESUMED);
    only(&f, RA_ARBITRATE);
}

TEST(loss_while_waiting_for_stopped_arbitrates)
{
    struct fixture f;

    primary_after(&f, RP_STOP);
    event(&f, RE_LINK_LOST);
    expect(&f, RA_HOLD, RA_ARBITRATE);
    event3(&f, RE_ARBITRATED, 0, 1);
    only(&f, RA_UNPROTECT);
    event(&f, RE_UNPROTECTED);
    expect_finish(&f, REMUS_END_ALONE);
}

TEST(loss_when_it_no_longer_matters_changes_nothing)
{
    static const enum remus_state states[] = { RP_ARBITRATE, RP_UNPROTECT, RP_DONE };
    struct fixture f;

    for (size_t i = 0; i < 3; i++) {
        primary_after(&f, states[i]);
        event(&f, RE_LINK_LOST);
        expect_nothing(&f);
        expect_state(&f, states[i]);
    }
}

TEST(a_grant_lets_the_guest_run_on_alone)
{
    struct fixture f;

    primary_after(&f, RP_ARBITRATE);
    event3(&f, RE_ARBITRATED, 0, 1);
    only(&f, RA_UNPROTECT);
    event(&f, RE_UNPROTECTED);
    expect_finish(&f, REMUS_END_ALONE);
    expect_state(&f, RP_DONE);
}

TEST(a_denial_fences_the_primary)
{
    struct fixture f;

    primary_after(&f, RP_ARBITRATE);
    event3(&f, RE_ARBITRATED, 0, 0);
    expect(&f, RA_FENCE_AND_STOP, RA_FINISH);
    expect_finish(&f, REMUS_END_FENCED);
    event(&f, RE_SUSPENDED);      /* it is gone: nothing to resume */
    expect_nothing(&f);
}

TEST(an_arbiter_that_fails_is_asked_again)
{
    struct fixture f;

    primary_after(&f, RP_ARBITRATE);
    event(&f, RE_FAILED);
    expect_nothing(&f);
    f.now += 1100 * MS;
    event(&f, RE_TICK);
    only(&f, RA_ARBITRATE);
}

TEST(what_a_lost_peer_says_later_is_not_listened_to)
{
    static const enum remus_event_type late[] = {
        RE_PEER_ACK, RE_PEER_APPLIED, RE_PEER_STOPPED, RE_PEER_STOP, RE_PEER_ERROR, RE_PEER_BAD,
        RE_FRAME_ANY, RE_PEER_CHECKPOINT,
    };
    struct fixture f;

    primary_after(&f, RP_ARBITRATE);
    for (size_t i = 0; i < sizeof(late) / sizeof(late[0]); i++) {
        event3(&f, late[i], 2, 0);
        expect_nothing(&f);
        expect_state(&f, RP_ARBITRATE);
    }
    primary_in(&f, RP_STAGE, 2);
    event(&f, RE_LINK_LOST);
    event3(&f, RE_PEER_STOPPED, 0, 0);
    expect_nothing(&f);
}

TEST(a_silent_secondary_counts_as_lost)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 2);
    assert_true(remus_core_next_us(&f.core) <= f.core.heard_us + 3000 * MS);
    f.now = f.core.heard_us + 2999 * MS;
    event(&f, RE_TICK);
    expect_nothing(&f);
    f.now = f.core.heard_us + 3000 * MS;
    event(&f, RE_TICK);
    expect(&f, RA_HOLD, RA_ARBITRATE);
    assert_non_null(strstr(f.core.reason, "silent"));
}

/* A sign of life of the peer after so many ms. */
static void hear_after(struct fixture *f, uint64_t ms)
{
    f->now += ms * MS - 10;
    event3(f, RE_FRAME_ANY, remus_core_timeout_us(&f->core), f->now - 100);
}

TEST(a_peer_that_is_slow_is_given_three_times_its_longest_silence)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    hear_after(&f, 100);
    assert_int_equal(remus_core_timeout_us(&f.core), 3000 * MS);
    hear_after(&f, 2000);
    assert_int_equal(remus_core_timeout_us(&f.core), 6000 * MS);
    hear_after(&f, 5900);
    assert_int_equal(remus_core_timeout_us(&f.core), 12000 * MS); /* and no more than that */
    f.now = f.core.heard_us + 12000 * MS - 20;
    event(&f, RE_TICK);
    expect_state(&f, RS_RUN);
    event(&f, RE_TICK);
    only(&f, RA_ARBITRATE);
}

TEST(a_peer_that_is_no_longer_slow_is_given_less_but_never_less_than_was_announced)
{
    uint64_t trusted;
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    hear_after(&f, 100);
    hear_after(&f, 2900);
    assert_int_equal(remus_core_timeout_us(&f.core), 8700 * MS);
    trusted = f.core.heard_us + 8700 * MS;
    f.core.gap_us[0] = f.core.gap_us[1] = 0; /* as if that was long ago */
    hear_after(&f, 100);
    assert_int_equal(remus_core_timeout_us(&f.core), 3000 * MS);
    f.now = trusted - 100;
    event(&f, RE_TICK);
    expect_state(&f, RS_RUN);
    f.now = trusted;
    event(&f, RE_TICK);
    only(&f, RA_ARBITRATE);
}

TEST(slow_times_are_forgotten)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    hear_after(&f, 100);
    hear_after(&f, 2900);
    for (unsigned int i = 0; i < 650; i++) {
        hear_after(&f, 100);
    }
    assert_int_equal(remus_core_timeout_us(&f.core), 3000 * MS);
}

TEST(output_may_leave_for_as_long_as_the_secondary_promised_and_no_promise_is_too_long)
{
    struct fixture f;
    uint64_t echo;

    primary_in(&f, RP_RUN, 3);
    echo = f.now - 50;
    event3(&f, RE_FRAME_ANY, 5000 * MS, echo);
    assert_int_equal(remus_core_lease_us(&f.core), echo + 5000 * MS);
    event3(&f, RE_FRAME_ANY, 3000 * MS, echo + 20); /* less, for later: what was said holds */
    assert_int_equal(remus_core_lease_us(&f.core), echo + 5000 * MS);
    event3(&f, RE_FRAME_ANY, UINT64_MAX, echo + 30);
    event3(&f, RE_FRAME_ANY, 12001 * MS, echo + 30);
    assert_int_equal(remus_core_lease_us(&f.core), echo + 5000 * MS);
}

/* Building its copy may have kept the secondary from reading for long. */
TEST(an_old_echo_is_no_loss_before_there_is_a_copy)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "colo", true);
    event(&f, RE_COPY_DONE);
    f.now += 10000 * MS;
    event(&f, RE_PEER_READY);
    expect_state(&f, RP_SUSPEND);
    event3(&f, RE_FRAME_ANY, 3000 * MS, f.now - 7000 * MS);
    event(&f, RE_TICK);
    expect_state(&f, RP_SUSPEND);
}

TEST(a_silent_secondary_ends_the_initial_copy)
{
    struct fixture f;

    primary_in(&f, RP_COPY, 0);
    for (int i = 0; i < 11; i++) {
        f.now += 1000 * MS;     /* in steps: what comes after an absence of its own is forgiven */
        event(&f, RE_TICK);
        assert_int_equal(f.core.state, RP_COPY);
    }
    f.now = f.core.heard_us + 12000 * MS;
    event(&f, RE_TICK);
    assert_int_equal(f.core.state, RP_UNPROTECT);
    assert_non_null(strstr(f.core.reason, "silent"));
}

TEST(a_secondary_that_no_longer_hears_us_counts_as_lost)
{
    struct fixture f;
    int i;

    primary_in(&f, RP_RUN, 2);
    event3(&f, RE_FRAME_ANY, 0, f.now);
    for (i = 0; i < 40 && !f.out.count; i++) {
        f.now += 100 * MS;
        event3(&f, RE_FRAME_ANY, 0, 1); /* alive, with an old echo */
    }
    expect(&f, RA_HOLD, RA_ARBITRATE);
    assert_in_range(i, 29, 31);
}

TEST(silence_is_judged_before_the_frame_that_ends_it)
{
    struct fixture f;

    primary_in(&f, RP_SEND, 2);
    f.now += 4000 * MS;           /* this host was frozen; the ACK lay in the socket */
    event3(&f, RE_PEER_ACK, 2, 0);
    expect(&f, RA_HOLD, RA_ARBITRATE);
    assert_int_equal(f.core.acked, 1);
}

TEST(a_copy_that_blocks_the_executor_for_minutes_is_no_silence)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "colo", true);
    f.now += 600000 * MS;
    event(&f, RE_COPY_DONE);
    expect_nothing(&f);
    expect_state(&f, RP_BUILD);
    begin(&f, REMUS_SECONDARY, "colo", true);
    f.now += 600000 * MS;
    event(&f, RE_BUILT);
    only(&f, RA_SEND_READY);
}

TEST(a_secondary_that_is_never_ready_ends_the_attempt)
{
    struct fixture f;

    primary_in(&f, RP_BUILD, 0);
    pass(&f, 121000 * MS);
    only(&f, RA_SEND_STOP);
    assert_non_null(strstr(f.core.reason, "build"));
}

TEST(an_epoch_that_is_never_acknowledged_or_applied_ends_protection)
{
    struct fixture f;

    begin(&f, REMUS_PRIMARY, "colo", true);
    walk_primary(&f, RP_SEND, 2);
    pass(&f, 121000 * MS);
    only(&f, RA_SEND_STOP);
    begin(&f, REMUS_PRIMARY, "colo", true);
    walk_primary(&f, RP_APPLY, 2);
    pass(&f, 121000 * MS);
    only(&f, RA_SEND_STOP);
}

/* ---- Orderly ends, primary ------------------------------------------------------------------ */

TEST(operator_stop_is_legal_in_every_state)
{
    static const enum remus_state running[] = { RP_COPY, RP_BUILD, RP_RUN, RP_SEND, RP_APPLY };
    static const enum remus_state stopped[] = { RP_QUIESCE, RP_STAGE };
    static const enum remus_state over[] = { RP_STOP, RP_ARBITRATE, RP_UNPROTECT, RP_DONE };
    struct fixture f;

    for (size_t i = 0; i < 5; i++) {
        primary_in(&f, running[i], i < 2 ? 0 : 2);
        event(&f, RE_OPERATOR_STOP);
        assert_int_equal(only(&f, RA_SEND_STOP)->value, REMUS_STOP_OPERATOR);
    }
    primary_in(&f, RP_SUSPEND, 2);
    event(&f, RE_OPERATOR_STOP);
    expect(&f, RA_SUSPEND_CANCEL, RA_SEND_STOP);
    for (size_t i = 0; i < 2; i++) {
        primary_in(&f, stopped[i], 2);
        event(&f, RE_OPERATOR_STOP);
        expect(&f, RA_RESUME, RA_INPUT_GO);
        event(&f, RE_RESUMED);
        only(&f, RA_SEND_STOP);
    }
    primary_in(&f, RP_RESUME, 2);
    event(&f, RE_OPERATOR_STOP);
    expect_nothing(&f);
    event(&f, RE_RESUMED);
    only(&f, RA_SEND_STOP);
    for (size_t i = 0; i < 4; i++) {
        primary_after(&f, over[i]);
        event(&f, RE_OPERATOR_STOP);
        expect_nothing(&f);
        expect_state(&f, over[i]);
    }
}

TEST(stopped_unprotects_and_finishes)
{
    struct fixture f;

    primary_after(&f, RP_STOP);
    event(&f, RE_PEER_STOPPED);
    only(&f, RA_UNPROTECT);
    event(&f, RE_UNPROTECTED);
    expect_finish(&f, REMUS_END_STOPPED);
}

TEST(output_may_leave_while_waiting_for_stopped_as_long_as_the_peer_is_heard)
{
    struct fixture f;

    primary_in(&f, RP_SEND, 2);
    event(&f, RE_OPERATOR_STOP);
    event3(&f, RE_PEER_ACK, 2, 0);
    assert_int_equal(only(&f, RA_RELEASE)->epoch, 2);
    event3(&f, RE_PEER_ACK, 2, 0);
    expect_nothing(&f);
    event3(&f, RE_PEER_APPLIED, 2, 0);
    expect_nothing(&f);
    f.now += 3000 * MS;
    event(&f, RE_TICK);
    only(&f, RA_HOLD);
    event3(&f, RE_PEER_ACK, 2, 0);
    expect_nothing(&f);
    expect_state(&f, RP_STOP);
}

TEST(a_stop_that_is_not_answered_counts_as_a_loss)
{
    struct fixture f;

    primary_after(&f, RP_STOP);
    pass(&f, 11000 * MS);
    expect(&f, RA_HOLD, RA_ARBITRATE);
}

TEST(a_stop_in_the_copy_that_is_not_answered_needs_no_arbitration)
{
    struct fixture f;

    primary_in(&f, RP_COPY, 0);
    event(&f, RE_OPERATOR_STOP);
    pass(&f, 11000 * MS);
    only(&f, RA_UNPROTECT);
}

TEST(a_guest_that_ends_by_itself_ends_the_session_in_order)
{
    static const enum remus_state states[] = {
        RP_COPY, RP_BUILD, RP_RUN, RP_SUSPEND, RP_QUIESCE, RP_STAGE, RP_RESUME, RP_SEND, RP_APPLY,
    };
    struct fixture f;

    for (size_t i = 0; i < 9; i++) {
        const struct remus_action *a;

        primary_in(&f, states[i], i < 2 ? 0 : 2);
        event3(&f, RE_GUEST_ENDED, 0, 1);
        assert_true(f.out.count > 0);
        a = &f.out.list[f.out.count - 1];
        assert_int_equal(a->type, RA_SEND_STOP);
        assert_int_equal(a->value, REMUS_STOP_GUEST);
        assert_int_equal(a->detail, 1);
        event(&f, RE_PEER_STOPPED);
        only(&f, RA_UNPROTECT);       /* what it sent last leaves now */
        event(&f, RE_UNPROTECTED);
        expect_finish(&f, REMUS_END_GUEST);
        assert_int_equal(f.out.list[0].detail, 1);
    }
}

TEST(a_guest_that_ends_when_the_session_is_ending_is_reported)
{
    static const enum remus_state states[] = { RP_STOP, RP_ARBITRATE, RP_UNPROTECT };
    struct fixture f;

    for (size_t i = 0; i < 3; i++) {
        primary_after(&f, states[i]);
        event3(&f, RE_GUEST_ENDED, 0, 3);
        expect_nothing(&f);
        if (states[i] == RP_STOP) {
            event(&f, RE_PEER_STOPPED);
        } else if (states[i] == RP_ARBITRATE) {
            event3(&f, RE_ARBITRATED, 0, 1);
        }
        event(&f, RE_UNPROTECTED);
        expect_finish(&f, REMUS_END_GUEST);
    }
    primary_after(&f, RP_DONE);
    event3(&f, RE_GUEST_ENDED, 0, 3);
    expect_nothing(&f);
}

TEST(a_guest_that_disappears_while_it_is_brought_back_does_not_hang_the_end)
{
    struct fixture f;

    primary_in(&f, RP_STAGE, 2);
    event(&f, RE_LINK_LOST);
    event3(&f, RE_GUEST_ENDED, 0, UINT64_MAX);
    only(&f, RA_ARBITRATE);
}

TEST(a_lost_packet_daemon_ends_protection_in_order)
{
    static const enum remus_state states[] = { RP_COPY, RP_BUILD, RP_RUN, RP_SEND, RP_APPLY };
    struct fixture f;

    for (size_t i = 0; i < 5; i++) {
        primary_in(&f, states[i], i < 2 ? 0 : 2);
        event(&f, RE_DAEMON_LOST);
        assert_int_equal(only(&f, RA_SEND_STOP)->value, REMUS_STOP_FAILED);
    }
    primary_in(&f, RP_QUIESCE, 2);
    event(&f, RE_DAEMON_LOST);
    expect(&f, RA_RESUME, RA_INPUT_GO);
    event(&f, RE_RESUMED);
    only(&f, RA_SEND_STOP);
    for (enum remus_state s = RP_STOP; s <= RP_DONE; s++) {
        primary_after(&f, s);
        event(&f, RE_DAEMON_LOST);
        expect_nothing(&f);
    }
}

TEST(a_secondary_that_lets_go_leaves_the_primary_unprotected_at_once)
{
    static const enum remus_event_type says[] = { RE_PEER_STOP, RE_PEER_STOPPED, RE_PEER_ERROR };
    static const enum remus_state states[] = { RP_COPY, RP_BUILD, RP_RUN, RP_SEND, RP_APPLY };
    struct fixture f;

    for (size_t k = 0; k < 3; k++) {
        for (size_t i = 0; i < 5; i++) {
            primary_in(&f, states[i], i < 2 ? 0 : 2);
            event3(&f, says[k], 0, REMUS_STOP_FAILED);
            only(&f, RA_UNPROTECT);
            event3(&f, RE_PEER_STOPPED, 0, 0);
            expect_nothing(&f);
            event(&f, RE_UNPROTECTED);
            expect_finish(&f, REMUS_END_FAILED);
        }
        primary_in(&f, RP_SUSPEND, 2);
        event(&f, says[k]);
        expect(&f, RA_SUSPEND_CANCEL, RA_UNPROTECT);
        primary_in(&f, RP_STAGE, 2);
        event(&f, says[k]);
        expect(&f, RA_RESUME, RA_INPUT_GO);
        event(&f, RE_RESUMED);
        only(&f, RA_UNPROTECT);
        primary_after(&f, RP_STOP);
        event(&f, says[k]);
        only(&f, RA_UNPROTECT);
        primary_after(&f, RP_DONE);
        event(&f, says[k]);
        expect_nothing(&f);
    }
}

TEST(a_stop_by_the_secondarys_operator_is_no_failure)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 2);
    event3(&f, RE_PEER_STOP, 0, REMUS_STOP_OPERATOR);
    event(&f, RE_UNPROTECTED);
    expect_finish(&f, REMUS_END_STOPPED);
}

TEST(a_failed_copy_ends_in_order)
{
    struct fixture f;

    primary_in(&f, RP_COPY, 0);
    event(&f, RE_FAILED);
    assert_int_equal(only(&f, RA_SEND_STOP)->value, REMUS_STOP_FAILED);
    event(&f, RE_FAILED);         /* the copy that was given up may still say so */
    expect_nothing(&f);
}

TEST(a_failed_sending_ends_protection_in_order)
{
    struct fixture f;

    primary_in(&f, RP_SEND, 2);
    event(&f, RE_FAILED);
    only(&f, RA_SEND_STOP);
}

TEST(nonsense_from_the_secondary_is_answered_and_counts_as_a_loss)
{
    struct fixture f;

    primary_in(&f, RP_RUN, 2);
    event(&f, RE_PEER_BAD);
    expect(&f, RA_SEND_ERROR, RA_HOLD, RA_ARBITRATE);
}

TEST(frames_that_the_state_does_not_expect_count_as_nonsense)
{
    struct fixture f;

    primary_in(&f, RP_SEND, 2);
    event3(&f, RE_PEER_ACK, 1, 0);
    expect(&f, RA_SEND_ERROR, RA_HOLD, RA_ARBITRATE);
    primary_in(&f, RP_APPLY, 2);
    event3(&f, RE_PEER_APPLIED, 3, 0);
    expect(&f, RA_SEND_ERROR, RA_HOLD, RA_ARBITRATE);
    primary_in(&f, RP_RUN, 2);
    event3(&f, RE_PEER_ACK, 2, 0);
    expect(&f, RA_SEND_ERROR, RA_HOLD, RA_ARBITRATE);
    primary_in(&f, RP_RUN, 2);
    event3(&f, RE_PEER_READY, 0, 0);
    expect(&f, RA_SEND_ERROR, RA_HOLD, RA_ARBITRATE);
    primary_in(&f, RP_RUN, 2);
    event3(&f, RE_PEER_EPOCH_FRAME, 2, 0);
    expect(&f, RA_SEND_ERROR, RA_HOLD, RA_ARBITRATE);
}

TEST(late_answers_of_a_checkpoint_that_was_given_up_change_nothing)
{
    static const enum remus_event_type late[] = {
        RE_INPUT_STOPPED, RE_DRAINED, RE_STAGED, RE_CUT_DONE, RE_COPY_DONE,
    };
    struct fixture f;

    for (size_t i = 0; i < 5; i++) {
        primary_in(&f, RP_RUN, 2);
        event(&f, late[i]);
        expect_nothing(&f);
        expect_state(&f, RP_RUN);
    }
}

TEST(rules_that_cannot_be_removed_are_tried_again_and_then_reported)
{
    struct fixture f;
    unsigned int again = 0;

    primary_after(&f, RP_UNPROTECT);
    for (int i = 0; i < 20 && f.core.state != RP_DONE; i++) {
        event(&f, RE_FAILED);
        f.now += 1100 * MS;
        event(&f, RE_TICK);
        again += f.out.count == 1 && f.out.list[0].type == RA_UNPROTECT;
    }
    assert_int_equal(again, 9);
    expect_finish(&f, REMUS_END_FAILED);
    assert_non_null(strstr(f.out.list[0].text, "xl remus --release"));
}

TEST(unprotect_that_is_not_answered_is_given_again)
{
    struct fixture f;

    primary_after(&f, RP_UNPROTECT);
    f.now += 10100 * MS;
    event(&f, RE_TICK);
    only(&f, RA_UNPROTECT);
}

/* ---- The secondary's ordinary path ---------------------------------------------------------- */

TEST(the_secondary_says_ready_when_it_is_built)
{
    struct fixture f;

    walk_secondary(&f, RS_COPY, 0);
    expect_nothing(&f);
    event(&f, RE_BUILT);
    only(&f, RA_SEND_READY);
    expect_state(&f, RS_BASE);
}

TEST(an_epoch_is_acknowledged_when_complete_and_then_applied)
{
    struct fixture f;

    walk_secondary(&f, RS_BASE, 1);
    event3(&f, RE_PEER_EPOCH_FRAME, 1, 0);
    expect_nothing(&f);
    expect_state(&f, RS_RECEIVE);
    event3(&f, RE_PEER_EPOCH_FRAME, 1, 0);
    event3(&f, RE_PEER_EPOCH_COMPLETE, 1, REMUS_MODE_COLO);
    expect(&f, RA_ACK, RA_APPLY);
    assert_int_equal(f.out.list[0].epoch, 1);
    event(&f, RE_APPLIED);
    assert_int_equal(only(&f, RA_SEND_APPLIED)->epoch, 1);
    expect_state(&f, RS_RUN);
    assert_int_equal(f.core.epoch, 2);
}

TEST(an_epoch_of_one_frame_is_complete_at_once)
{
    struct fixture f;

    walk_secondary(&f, RS_BASE, 1);
    event3(&f, RE_PEER_EPOCH_COMPLETE, 1, REMUS_MODE_COLO);
    expect(&f, RA_ACK, RA_APPLY);
    walk_secondary(&f, RS_RUN, 3);
    event3(&f, RE_PEER_EPOCH_COMPLETE, 3, REMUS_MODE_COLO);
    expect(&f, RA_ACK, RA_APPLY);
}

TEST(a_wrong_epoch_or_a_wrong_frame_is_answered_with_error_and_letting_go)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event3(&f, RE_PEER_EPOCH_FRAME, 4, 0);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
    walk_secondary(&f, RS_RECEIVE, 3);
    event3(&f, RE_PEER_EPOCH_COMPLETE, 2, REMUS_MODE_COLO);
    expect(&f, RA_SEND_ERROR, RA_DROP_PARTIAL, RA_DESTROY);
    walk_secondary(&f, RS_APPLY, 3);
    event3(&f, RE_PEER_EPOCH_FRAME, 4, 0);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
    walk_secondary(&f, RS_BASE, 1);
    event3(&f, RE_PEER_STREAM, 0, 0);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
    walk_secondary(&f, RS_RUN, 3);
    event3(&f, RE_PEER_ACK, 3, 0);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
    walk_secondary(&f, RS_RUN, 3);
    event(&f, RE_PEER_BAD);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
    event(&f, RE_DESTROYED);
    expect(&f, RA_SEND_STOPPED, RA_FINISH);
    expect_finish(&f, REMUS_END_FAILED);
}

/* ---- Failover, secondary: legal from every state -------------------------------------------- */

TEST(loss_before_anything_was_applied_destroys_the_copy)
{
    static const enum remus_state states[] = { RS_COPY, RS_BASE };
    struct fixture f;

    for (size_t i = 0; i < 2; i++) {
        walk_secondary(&f, states[i], 1);
        event(&f, RE_LINK_LOST);
        only(&f, RA_DESTROY);
        event(&f, RE_DESTROYED);
        expect(&f, RA_FINISH);
        expect_finish(&f, REMUS_END_FAILED);
    }
    walk_secondary(&f, RS_RECEIVE, 1);
    event(&f, RE_LINK_LOST);
    expect(&f, RA_DROP_PARTIAL, RA_DESTROY);
}

TEST(loss_while_standing_by_asks_the_arbiter)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event(&f, RE_LINK_LOST);
    only(&f, RA_ARBITRATE);
    expect_state(&f, RS_ARBITRATE);
}

TEST(loss_while_receiving_drops_the_part_and_asks_the_arbiter)
{
    struct fixture f;

    walk_secondary(&f, RS_RECEIVE, 2);
    event(&f, RE_LINK_LOST);
    expect(&f, RA_DROP_PARTIAL, RA_ARBITRATE);
}

TEST(loss_while_applying_waits_for_the_apply)
{
    struct fixture f;

    for (uint64_t epoch = 1; epoch < 3; epoch++) {
        walk_secondary(&f, RS_APPLY, epoch);
        event(&f, RE_LINK_LOST);
        expect_nothing(&f);
        expect_state(&f, RS_APPLY);
        event(&f, RE_APPLIED);
        only(&f, RA_ARBITRATE);
        assert_int_equal(f.core.applied, epoch);
    }
}

TEST(a_copy_that_is_handed_the_guest_takes_over_without_asking)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event3(&f, RE_PEER_STOP, 0, REMUS_STOP_HANDOVER);
    only(&f, RA_TAKEOVER);
    event(&f, RE_LINK_LOST);
    expect_nothing(&f);
    event(&f, RE_ACTIVE);
    expect_finish(&f, REMUS_END_ACTIVE);
}

TEST(a_copy_is_handed_nothing_in_the_middle_of_an_epoch)
{
    struct fixture f;

    walk_secondary(&f, RS_RECEIVE, 3);
    event3(&f, RE_PEER_STOP, 0, REMUS_STOP_HANDOVER);
    expect(&f, RA_SEND_ERROR, RA_DROP_PARTIAL, RA_DESTROY);
    walk_secondary(&f, RS_BASE, 1);
    event3(&f, RE_PEER_STOP, 0, REMUS_STOP_HANDOVER);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
}

TEST(a_silent_primary_counts_as_lost)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    f.now = f.core.heard_us + 3000 * MS;
    event(&f, RE_TICK);
    only(&f, RA_ARBITRATE);
}

TEST(bytes_of_any_kind_keep_the_primary_alive)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    for (int i = 0; i < 10; i++) {
        f.now += 2000 * MS;
        event(&f, RE_FRAME_ANY);
        expect_nothing(&f);
    }
}

TEST(a_grant_takes_over_and_becomes_active)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event(&f, RE_LINK_LOST);
    event3(&f, RE_ARBITRATED, 0, 1);
    assert_int_equal(only(&f, RA_TAKEOVER)->epoch, 2);
    event(&f, RE_ACTIVE);
    expect_finish(&f, REMUS_END_ACTIVE);
    expect_state(&f, RS_ACTIVE);
}

TEST(a_denial_destroys_the_copy)
{
    struct fixture f;

    secondary_after(&f, RS_ARBITRATE);
    event3(&f, RE_ARBITRATED, 0, 0);
    only(&f, RA_DESTROY);
    event(&f, RE_DESTROYED);
    expect(&f, RA_FINISH);
    expect_finish(&f, REMUS_END_FENCED);
}

TEST(what_fails_on_the_way_to_active_is_tried_again)
{
    struct fixture f;

    secondary_after(&f, RS_ARBITRATE);
    event(&f, RE_FAILED);
    f.now += 1100 * MS;
    event(&f, RE_TICK);
    only(&f, RA_ARBITRATE);
    secondary_after(&f, RS_TAKEOVER);
    event(&f, RE_FAILED);
    f.now += 1100 * MS;
    event(&f, RE_TICK);
    only(&f, RA_TAKEOVER);
}

TEST(nothing_turns_a_takeover_back)
{
    static const enum remus_event_type types[] = {
        RE_LINK_LOST, RE_OPERATOR_STOP, RE_DAEMON_LOST, RE_PEER_STOP, RE_PEER_ERROR, RE_PEER_BAD,
        RE_PEER_EPOCH_FRAME, RE_FRAME_ANY, RE_TICK,
    };
    static const enum remus_state states[] = { RS_ARBITRATE, RS_TAKEOVER, RS_ACTIVE };
    struct fixture f;

    for (size_t k = 0; k < 3; k++) {
        secondary_after(&f, states[k]);
        for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
            event3(&f, types[i], 3, 0);
            expect_nothing(&f);
            expect_state(&f, states[k]);
        }
    }
}

TEST(a_failed_apply_gives_the_copy_up)
{
    struct fixture f;

    walk_secondary(&f, RS_APPLY, 3);
    event(&f, RE_FAILED);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
}

TEST(a_failed_apply_with_the_primary_gone_is_tried_again)
{
    struct fixture f;

    walk_secondary(&f, RS_APPLY, 3);
    event(&f, RE_LINK_LOST);
    for (int i = 0; i < 2; i++) {
        event(&f, RE_FAILED);
        expect_nothing(&f);
        f.now += 1100 * MS;
        event(&f, RE_TICK);
        assert_int_equal(only(&f, RA_APPLY)->epoch, 3);
    }
    event(&f, RE_FAILED);
    only(&f, RA_DESTROY);
    assert_non_null(strstr(f.core.reason, "applying"));
}

TEST(an_apply_that_does_not_end_gives_the_copy_up)
{
    struct fixture f;

    walk_secondary(&f, RS_APPLY, 3);
    pass(&f, 121000 * MS);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
}

/* ---- Orderly ends, secondary ---------------------------------------------------------------- */

TEST(stop_is_obeyed_in_every_state_that_can_still_hear_it)
{
    static const struct { enum remus_state state; uint64_t epoch; } in[] = {
        { RS_COPY, 1 }, { RS_BASE, 1 }, { RS_RUN, 3 }, { RS_APPLY, 3 },
    };
    struct fixture f;

    for (size_t i = 0; i < 4; i++) {
        walk_secondary(&f, in[i].state, in[i].epoch);
        event3(&f, RE_PEER_STOP, 0, REMUS_STOP_OPERATOR);
        only(&f, RA_DESTROY);
        event(&f, RE_DESTROYED);
        expect(&f, RA_SEND_STOPPED, RA_FINISH);
        expect_finish(&f, REMUS_END_STOPPED);
    }
    walk_secondary(&f, RS_RECEIVE, 3);
    event3(&f, RE_PEER_STOP, 0, REMUS_STOP_FAILED);
    expect(&f, RA_DROP_PARTIAL, RA_DESTROY);
    event(&f, RE_DESTROYED);
    expect_finish(&f, REMUS_END_FAILED);
}

TEST(stop_and_then_the_end_of_the_link_is_no_loss)
{
    struct fixture f;

    secondary_after(&f, RS_STOP);
    event(&f, RE_LINK_LOST);
    expect_nothing(&f);
    event(&f, RE_DESTROYED);
    expect(&f, RA_FINISH);        /* nobody is left to be told */
}

TEST(stop_is_obeyed_while_applying_after_a_loss_that_was_not_yet_acted_on)
{
    struct fixture f;

    walk_secondary(&f, RS_APPLY, 3);
    event(&f, RE_LINK_LOST);
    event3(&f, RE_PEER_STOP, 0, REMUS_STOP_OPERATOR);
    only(&f, RA_DESTROY);
}

TEST(stop_for_the_guests_own_end_is_reported_with_its_reason)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event3(&f, RE_PEER_STOP, 3, REMUS_STOP_GUEST);
    event(&f, RE_DESTROYED);
    expect_finish(&f, REMUS_END_GUEST);
    assert_int_equal(f.out.list[1].detail, 3);
}

TEST(error_from_the_primary_lets_go)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event(&f, RE_PEER_ERROR);
    only(&f, RA_DESTROY);
    event(&f, RE_DESTROYED);
    expect_finish(&f, REMUS_END_FAILED);
}

TEST(the_secondarys_operator_may_stop_it)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event(&f, RE_OPERATOR_STOP);
    expect(&f, RA_SEND_STOP, RA_DESTROY);
    event(&f, RE_PEER_STOP);      /* both at once */
    expect_nothing(&f);
    event(&f, RE_DESTROYED);
    expect(&f, RA_SEND_STOPPED, RA_FINISH);
    expect_finish(&f, REMUS_END_STOPPED);
}

TEST(the_secondarys_operator_cannot_stop_what_may_be_the_only_guest)
{
    struct fixture f;

    walk_secondary(&f, RS_APPLY, 3);
    event(&f, RE_LINK_LOST);
    event(&f, RE_OPERATOR_STOP);
    expect_nothing(&f);
}

TEST(a_lost_shadow_daemon_gives_the_copy_up_unless_the_primary_is_gone)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event(&f, RE_DAEMON_LOST);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
    walk_secondary(&f, RS_APPLY, 3);
    event(&f, RE_DAEMON_LOST);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
    walk_secondary(&f, RS_APPLY, 3);
    event(&f, RE_LINK_LOST);
    event(&f, RE_DAEMON_LOST);
    expect_nothing(&f);
}

TEST(a_failed_build_is_reported_to_the_primary)
{
    struct fixture f;

    walk_secondary(&f, RS_COPY, 0);
    event(&f, RE_FAILED);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
}

TEST(a_copy_that_ends_by_itself_waits_for_the_next_checkpoint)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event3(&f, RE_GUEST_ENDED, 0, 3);
    expect_nothing(&f);
    expect_state(&f, RS_RUN);
}

TEST(a_copy_that_is_gone_is_reported)
{
    struct fixture f;

    walk_secondary(&f, RS_RUN, 3);
    event3(&f, RE_GUEST_ENDED, 0, UINT64_MAX);
    expect(&f, RA_SEND_ERROR, RA_DESTROY);
    secondary_after(&f, RS_TAKEOVER);
    event3(&f, RE_GUEST_ENDED, 0, UINT64_MAX);
    only(&f, RA_DESTROY);
}

TEST(a_copy_that_cannot_be_destroyed_is_let_go_all_the_same)
{
    struct fixture f;

    secondary_after(&f, RS_STOP);
    event(&f, RE_FAILED);
    f.now += 1100 * MS;
    event(&f, RE_TICK);
    only(&f, RA_DESTROY);
    f.now += 10000 * MS;
    event(&f, RE_TICK);
    expect(&f, RA_SEND_STOPPED, RA_FINISH);
    assert_non_null(strstr(f.out.list[1].text, "xl destroy"));
}

TEST(a_session_that_is_over_ignores_everything)
{
    struct fixture f;

    primary_after(&f, RP_DONE);
    for (int t = RE_TICK; t <= RE_PEER_BAD; t++) {
        event3(&f, (enum remus_event_type)t, 1, 1);
        expect_nothing(&f);
    }
    assert_int_equal(remus_core_next_us(&f.core), UINT64_MAX);
    secondary_after(&f, RS_DONE);
    for (int t = RE_TICK; t <= RE_PEER_BAD; t++) {
        event3(&f, (enum remus_event_type)t, 1, 1);
        expect_nothing(&f);
    }
    assert_int_equal(remus_core_next_us(&f.core), UINT64_MAX);
}

/* Whatever comes in whatever state: no crash, the list never full, a timer never in the past. */
TEST(no_event_in_any_state_overflows_the_list_or_loses_the_timers)
{
    for (int s = 0; s < 24; s++) {
        for (int t = RE_TICK; t <= RE_DESTROYED; t++) {
            for (int late = 0; late < 2; late++) {
                struct remus_event e = { .type = (enum remus_event_type)t, .epoch = 2 };
                struct fixture f;

                if (s < 9) {
                    begin(&f, REMUS_PRIMARY, "colo", true);
                    walk_primary(&f, (enum remus_state)s, s < 2 ? 0 : 2);
                } else if (s < 13) {
                    primary_after(&f, (enum remus_state)s);
                } else if (s < 18) {
                    walk_secondary(&f, (enum remus_state)s, s < (int)RS_RUN ? 1 : 3);
                } else if (s <= (int)RS_DONE) {
                    secondary_after(&f, (enum remus_state)s);
                } else {
                    continue;
                }
                f.now += late ? 3000 * MS : 1;
                remus_core_event(&f.core, f.now, &e, &f.out);
                assert_true(f.out.count < REMUS_ACTIONS_MAX);
                assert_true(remus_core_next_us(&f.core) > f.now);
            }
        }
    }
}

#define T(name) cmocka_unit_test(name)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        T(modes_are_found_by_name_and_by_number),
        T(a_mode_that_is_asked_for_begins_with_the_next_epoch),
        T(a_mode_that_is_asked_for_while_state_is_copied_waits_for_the_checkpoint_after),
        T(a_mode_that_does_not_exist_changes_nothing),
        T(each_mode_has_its_own_period_and_the_operators_is_for_the_one_he_chose),
        T(auto_leaves_colo_when_every_epoch_ends_with_a_difference),
        T(auto_stays_with_colo_when_output_differs_now_and_then),
        T(auto_does_not_count_checkpoints_that_nobody_asked_for_by_comparing),
        T(auto_tries_colo_again_and_waits_longer_each_time_that_it_does_not_pay),
        T(a_secondary_runs_its_copy_as_the_epoch_says),
        T(an_epoch_whose_mode_makes_no_sense_is_refused),
        T(parameters_that_make_no_sense_are_refused),
        T(an_unknown_event_is_ignored_and_flagged),
        T(an_answer_that_was_never_asked_for_is_ignored_and_flagged),
        T(primary_begins_with_the_copy),
        T(ready_begins_the_first_checkpoint_at_once),
        T(ready_before_our_own_copy_done_is_kept),
        T(a_checkpoint_takes_the_steps_in_order),
        T(without_a_network_there_is_no_input_to_stop_and_nothing_to_cut),
        T(drained_counts_only_after_the_input_was_stopped),
        T(cut_done_counts_only_after_staging),
        T(the_period_asks_for_a_checkpoint),
        T(a_wish_asks_for_a_checkpoint_but_not_before_the_rest),
        T(a_guest_runs_for_as_long_as_it_was_stopped_before_it_is_stopped_again),
        T(the_secondary_may_ask_for_a_checkpoint),
        T(a_wish_from_an_epoch_that_is_over_is_ignored),
        T(a_wish_during_the_checkpoint_is_met_by_it),
        T(a_wish_after_the_cut_waits_for_the_next_checkpoint),
        T(heartbeats_go_out_at_their_interval),
        T(a_refused_suspend_is_withdrawn_and_tried_again),
        T(a_suspend_that_is_not_answered_is_withdrawn),
        T(the_fourth_refusal_ends_protection),
        T(a_guest_without_a_copy_is_never_fenced_nor_arbitrated_about),
        T(a_guest_that_hangs_on_its_way_to_be_suspended_is_fenced_and_its_copy_goes_on),
        T(a_guest_that_only_refuses_is_let_go),
        T(a_checkpoint_that_succeeds_forgets_earlier_refusals),
        T(a_guest_that_suspends_after_the_cancel_is_resumed),
        T(a_late_suspend_is_undone_in_every_state_of_the_primary),
        T(the_end_waits_for_a_late_suspend_to_be_undone),
        T(rings_that_do_not_drain_give_the_checkpoint_up_and_the_epoch_goes_on),
        T(a_failed_drain_gives_the_checkpoint_up),
        T(the_fourth_failed_drain_ends_protection_with_the_guest_running),
        T(failed_staging_ends_protection_because_the_dirty_bitmap_is_gone),
        T(a_changed_physmap_asks_for_a_new_secondary),
        T(a_failed_cut_ends_protection_and_input_flows_again),
        T(staging_that_does_not_end_is_given_up),
        T(a_failed_resume_is_tried_again),
        T(a_resume_that_is_not_answered_is_given_again),
        T(a_guest_that_cannot_be_resumed_is_left_to_the_secondary),
        T(a_guest_that_cannot_be_resumed_without_a_secondary_ends_as_failed),
        T(a_copy_in_the_middle_of_an_epoch_is_not_told_but_finds_out),
        T(a_switch_waits_for_the_checkpoint_under_way_and_hands_the_guest_over),
        T(a_switch_to_a_copy_that_is_paused_starts_it_with_a_checkpoint_before),
        T(a_copy_that_is_handed_the_guest_takes_over_without_asking),
        T(a_copy_is_handed_nothing_in_the_middle_of_an_epoch),
        T(loss_before_protection_needs_no_arbitration),
        T(loss_in_the_first_suspend_needs_no_arbitration),
        T(loss_while_the_first_checkpoint_is_taken_needs_no_arbitration),
        T(loss_after_the_first_epoch_was_sent_needs_arbitration_acknowledged_or_not),
        T(loss_with_the_guest_running_holds_output_and_arbitrates),
        T(loss_in_suspend_withdraws_it),
        T(loss_with_the_guest_stopped_brings_it_back_first),
        T(loss_while_waiting_for_stopped_arbitrates),
        T(loss_when_it_no_longer_matters_changes_nothing),
        T(a_grant_lets_the_guest_run_on_alone),
        T(a_denial_fences_the_primary),
        T(an_arbiter_that_fails_is_asked_again),
        T(what_a_lost_peer_says_later_is_not_listened_to),
        T(a_silent_secondary_counts_as_lost),
        T(a_peer_that_is_slow_is_given_three_times_its_longest_silence),
        T(a_peer_that_is_no_longer_slow_is_given_less_but_never_less_than_was_announced),
        T(slow_times_are_forgotten),
        T(output_may_leave_for_as_long_as_the_secondary_promised_and_no_promise_is_too_long),
        T(an_old_echo_is_no_loss_before_there_is_a_copy),
        T(a_silent_secondary_ends_the_initial_copy),
        T(a_secondary_that_no_longer_hears_us_counts_as_lost),
        T(silence_is_judged_before_the_frame_that_ends_it),
        T(a_copy_that_blocks_the_executor_for_minutes_is_no_silence),
        T(a_secondary_that_is_never_ready_ends_the_attempt),
        T(an_epoch_that_is_never_acknowledged_or_applied_ends_protection),
        T(operator_stop_is_legal_in_every_state),
        T(stopped_unprotects_and_finishes),
        T(output_may_leave_while_waiting_for_stopped_as_long_as_the_peer_is_heard),
        T(a_stop_that_is_not_answered_counts_as_a_loss),
        T(a_stop_in_the_copy_that_is_not_answered_needs_no_arbitration),
        T(a_guest_that_ends_by_itself_ends_the_session_in_order),
        T(a_guest_that_ends_when_the_session_is_ending_is_reported),
        T(a_guest_that_disappears_while_it_is_brought_back_does_not_hang_the_end),
        T(a_lost_packet_daemon_ends_protection_in_order),
        T(a_secondary_that_lets_go_leaves_the_primary_unprotected_at_once),
        T(a_stop_by_the_secondarys_operator_is_no_failure),
        T(a_failed_copy_ends_in_order),
        T(a_failed_sending_ends_protection_in_order),
        T(nonsense_from_the_secondary_is_answered_and_counts_as_a_loss),
        T(frames_that_the_state_does_not_expect_count_as_nonsense),
        T(late_answers_of_a_checkpoint_that_was_given_up_change_nothing),
        T(rules_that_cannot_be_removed_are_tried_again_and_then_reported),
        T(unprotect_that_is_not_answered_is_given_again),
        T(the_secondary_says_ready_when_it_is_built),
        T(an_epoch_is_acknowledged_when_complete_and_then_applied),
        T(an_epoch_of_one_frame_is_complete_at_once),
        T(a_wrong_epoch_or_a_wrong_frame_is_answered_with_error_and_letting_go),
        T(loss_before_anything_was_applied_destroys_the_copy),
        T(loss_while_standing_by_asks_the_arbiter),
        T(loss_while_receiving_drops_the_part_and_asks_the_arbiter),
        T(loss_while_applying_waits_for_the_apply),
        T(a_silent_primary_counts_as_lost),
        T(bytes_of_any_kind_keep_the_primary_alive),
        T(a_grant_takes_over_and_becomes_active),
        T(a_denial_destroys_the_copy),
        T(what_fails_on_the_way_to_active_is_tried_again),
        T(nothing_turns_a_takeover_back),
        T(a_failed_apply_gives_the_copy_up),
        T(a_failed_apply_with_the_primary_gone_is_tried_again),
        T(an_apply_that_does_not_end_gives_the_copy_up),
        T(stop_is_obeyed_in_every_state_that_can_still_hear_it),
        T(stop_and_then_the_end_of_the_link_is_no_loss),
        T(stop_is_obeyed_while_applying_after_a_loss_that_was_not_yet_acted_on),
        T(stop_for_the_guests_own_end_is_reported_with_its_reason),
        T(error_from_the_primary_lets_go),
        T(the_secondarys_operator_may_stop_it),
        T(the_secondarys_operator_cannot_stop_what_may_be_the_only_guest),
        T(a_lost_shadow_daemon_gives_the_copy_up_unless_the_primary_is_gone),
        T(a_failed_build_is_reported_to_the_primary),
        T(a_copy_that_ends_by_itself_waits_for_the_next_checkpoint),
        T(a_copy_that_is_gone_is_reported),
        T(a_copy_that_cannot_be_destroyed_is_let_go_all_the_same),
        T(a_session_that_is_over_ignores_everything),
        T(no_event_in_any_state_overflows_the_list_or_loses_the_timers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
