/* LINK: tools/libxl/remus_transition.c tools/libxl/remus_core.c */
/* What operators are told: transitions that follow from states and ends, and health. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "tools/libxl/remus_transition.h"

#define S 1000000ull

static struct remus_core c;
static const char *why;

static void at(enum remus_role role, enum remus_state state, uint64_t epoch)
{
    struct remus_core_params params = {.role = role, .mode = remus_mode_by_name("colo")};
    struct remus_actions actions;

    assert_int_equal(remus_core_init(&c, &params, 100 * S, &actions), 0);
    c.state = state;
    c.acked = c.applied = epoch;
}

static const char *of(enum remus_role role, enum remus_state from, enum remus_state to,
                      uint64_t epoch)
{
    at(role, to, epoch);
    return remus_transition_name(remus_transition_of_states(&c, from));
}

static void protection_begins_with_the_first_epoch(void **state)
{
    (void)state;
    assert_string_equal(of(REMUS_PRIMARY, RP_SEND, RP_APPLY, 1), "protected");
    assert_string_equal(of(REMUS_PRIMARY, RP_SEND, RP_APPLY, 2), "none");
    assert_string_equal(of(REMUS_SECONDARY, RS_APPLY, RS_RUN, 1), "protected");
    assert_string_equal(of(REMUS_SECONDARY, RS_APPLY, RS_RUN, 2), "none");
    assert_string_equal(of(REMUS_PRIMARY, RP_COPY, RP_BUILD, 0), "none");
}

static void a_loss_is_told_of_once_from_every_state(void **state)
{
    int from;

    (void)state;
    for (from = RP_COPY; from < RP_ARBITRATE; from++)
        assert_string_equal(of(REMUS_PRIMARY, (enum remus_state)from, RP_ARBITRATE, 5), "fencing");
    for (from = RS_COPY; from < RS_ARBITRATE; from++)
        assert_string_equal(of(REMUS_SECONDARY, (enum remus_state)from, RS_ARBITRATE, 5),
                            "fencing");
    assert_string_equal(of(REMUS_PRIMARY, RP_ARBITRATE, RP_UNPROTECT, 5), "none");
    assert_string_equal(of(REMUS_SECONDARY, RS_ARBITRATE, RS_STOP, 5), "none");
}

static void a_side_that_gives_itself_up_says_so(void **state)
{
    (void)state;
    at(REMUS_PRIMARY, RP_DONE, 5);
    c.end = REMUS_END_FENCED;
    assert_int_equal(remus_transition_of_states(&c, RP_RUN), REMUS_T_FENCING);
    /* Denied by the arbiter: that was told of when it was asked. */
    assert_int_equal(remus_transition_of_states(&c, RP_ARBITRATE), REMUS_T_NONE);
    c.end = REMUS_END_HANDED_OVER;
    assert_int_equal(remus_transition_of_states(&c, RP_RUN), REMUS_T_FENCING);
    c.end = REMUS_END_STOPPED;
    assert_int_equal(remus_transition_of_states(&c, RP_UNPROTECT), REMUS_T_NONE);
}

static void a_takeover_is_told_of_by_the_copy(void **state)
{
    (void)state;
    assert_string_equal(of(REMUS_SECONDARY, RS_TAKEOVER, RS_ACTIVE, 5), "failed-over");
    assert_string_equal(of(REMUS_SECONDARY, RS_ARBITRATE, RS_TAKEOVER, 5), "none");
    assert_string_equal(of(REMUS_SECONDARY, RS_RUN, RS_TAKEOVER, 5), "none");
}

static void every_end_is_one_transition(void **state)
{
    static const char *const primary[] = {"stopped", "none", "none", "degraded", "stopped",
                                          "failed-over", "none", "fencing"};
    static const char *const secondary[] = {"stopped", "none", "none", "degraded", "stopped",
                                            "degraded", "none", "none"};
    int i;

    (void)state;
    for (i = 0; i < 8; i++) {
        assert_string_equal(remus_transition_name(remus_transition_of_end(REMUS_PRIMARY, i)),
                            primary[i]);
        assert_string_equal(remus_transition_name(remus_transition_of_end(REMUS_SECONDARY, i)),
                            secondary[i]);
    }
    assert_int_equal(remus_transition_of_end(REMUS_PRIMARY, 127), REMUS_T_NONE);
    assert_int_equal(remus_transition_of_end(REMUS_PRIMARY, -1), REMUS_T_NONE);
}

static void a_copy_protects_from_its_first_epoch_to_the_loss(void **state)
{
    (void)state;
    at(REMUS_PRIMARY, RP_RUN, 0);
    assert_false(remus_core_protects(&c));
    at(REMUS_PRIMARY, RP_APPLY, 1);
    assert_true(remus_core_protects(&c));
    at(REMUS_PRIMARY, RP_STOP, 5);
    assert_false(remus_core_protects(&c));
    at(REMUS_PRIMARY, RP_ARBITRATE, 5);
    assert_false(remus_core_protects(&c));
    at(REMUS_SECONDARY, RS_APPLY, 0);
    assert_false(remus_core_protects(&c));
    at(REMUS_SECONDARY, RS_RECEIVE, 1);
    assert_true(remus_core_protects(&c));
    at(REMUS_SECONDARY, RS_ACTIVE, 5);
    assert_false(remus_core_protects(&c));
    at(REMUS_PRIMARY, RP_RUN, 1);
    c.params.nowhere = true;
    assert_false(remus_core_protects(&c));
    c.params.nowhere = false;
}

static enum remus_health judge_with(struct remus_health_facts facts)
{
    return remus_health_judge(&c, &facts, &why);
}

static enum remus_health judge(bool rules_lost, uint64_t lag_us)
{
    return judge_with((struct remus_health_facts){.rules_lost = rules_lost, .lag_us = lag_us});
}

static void health_has_a_reason(void **state)
{
    (void)state;
    at(REMUS_PRIMARY, RP_RUN, 0);
    assert_int_equal(judge(false, 0), REMUS_UNPROTECTED);
    at(REMUS_PRIMARY, RP_RUN, 5);
    assert_int_equal(judge(false, S), REMUS_HEALTHY);
    assert_string_equal(why, "");
    assert_int_equal(judge(true, S), REMUS_DEGRADED);
    assert_non_null(strstr(why, "packet filter"));
    /* The mode's greatest age is 10 s, and it may be late by as much. */
    assert_int_equal(judge(false, 20 * S), REMUS_HEALTHY);
    assert_int_equal(judge(false, 20 * S + 1), REMUS_DEGRADED);
    assert_non_null(strstr(why, "older"));
    assert_int_equal(judge_with((struct remus_health_facts){.second_path_lost = true}),
                     REMUS_DEGRADED);
    assert_non_null(strstr(why, "second network"));
    c.checkpoint_tries = 1;
    assert_int_equal(judge(false, S), REMUS_DEGRADED);
    assert_non_null(strstr(why, "attempt"));
    c.checkpoint_tries = 0;
    c.now_us = c.heard_us + 1500000;
    assert_int_equal(judge(false, S), REMUS_HEALTHY);
    c.now_us++;
    assert_int_equal(judge(false, S), REMUS_DEGRADED);
    assert_non_null(strstr(why, "silent"));
}

static void worse_is_told_at_once_and_better_when_it_lasts(void **state)
{
    struct remus_health_view v = {.shown = REMUS_UNPROTECTED};

    (void)state;
    assert_int_equal(remus_health_show(&v, REMUS_HEALTHY, 0), REMUS_T_NONE);
    assert_int_equal(v.shown, REMUS_HEALTHY);
    assert_int_equal(remus_health_show(&v, REMUS_DEGRADED, 1 * S), REMUS_T_DEGRADED);
    assert_int_equal(remus_health_show(&v, REMUS_DEGRADED, 2 * S), REMUS_T_NONE);
    assert_int_equal(remus_health_show(&v, REMUS_HEALTHY, 3 * S), REMUS_T_NONE);
    assert_int_equal(remus_health_show(&v, REMUS_HEALTHY, 12 * S), REMUS_T_NONE);
    assert_int_equal(v.shown, REMUS_DEGRADED);
    /* Again worse: the time begins again. */
    assert_int_equal(remus_health_show(&v, REMUS_DEGRADED, 12 * S), REMUS_T_NONE);
    assert_int_equal(remus_health_show(&v, REMUS_HEALTHY, 13 * S), REMUS_T_NONE);
    assert_int_equal(remus_health_show(&v, REMUS_HEALTHY, 22 * S), REMUS_T_NONE);
    assert_int_equal(remus_health_show(&v, REMUS_HEALTHY, 23 * S), REMUS_T_REPROTECTED);
    assert_int_equal(v.shown, REMUS_HEALTHY);
    /* The end of a session has its own words. */
    assert_int_equal(remus_health_show(&v, REMUS_UNPROTECTED, 24 * S), REMUS_T_NONE);
    assert_int_equal(v.shown, REMUS_UNPROTECTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(protection_begins_with_the_first_epoch),
        cmocka_unit_test(a_loss_is_told_of_once_from_every_state),
        cmocka_unit_test(a_side_that_gives_itself_up_says_so),
        cmocka_unit_test(a_takeover_is_told_of_by_the_copy),
        cmocka_unit_test(every_end_is_one_transition),
        cmocka_unit_test(a_copy_protects_from_its_first_epoch_to_the_loss),
        cmocka_unit_test(health_has_a_reason),
        cmocka_unit_test(worse_is_told_at_once_and_better_when_it_lasts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
