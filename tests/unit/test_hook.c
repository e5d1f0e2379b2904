/* LINK: tools/libxl/remus_hook.c tools/libxl/remus_program.c tools/libxl/remus_message.c */
/* Hooks and gates: what is run, in which order, what it is told, and what bounds it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/libxl/remus_hook.h"
#include "tools/libxl/remus_message.h"

static char dir[64], heard[8192], said[300];
static unsigned int warnings;
static struct remus_hook_call call;

static void install(const char *name, unsigned int mode, const char *script)
{
    char path[160];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\n%s\n", script);
    fclose(file);
    assert_int_equal(chmod(path, mode), 0);
}

static void say(void *arg, enum xc_sr_level level, const char *text)
{
    const size_t used = strlen(heard);

    (void)arg;
    warnings += level >= XC_SR_WARN;
    snprintf(heard + used, sizeof(heard) - used, "%s\n", text);
}

static int begin(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/remus-hook-XXXXXX");
    assert_non_null(mkdtemp(dir));
    heard[0] = '\0';
    warnings = 0;
    call = (struct remus_hook_call){
        .dir = dir, .word = "degraded", .role = REMUS_SECONDARY, .domain = "web1", .peer = "beta",
        .mode = "colo", .session = "1234", .reason = "a\tlink; $(reboot)", .domid = 7,
        .epoch = 1ull << 40, .status = -1,
    };
    return 0;
}

static int end(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -r '%s'", dir);
    return system(command);
}

static void run(void)
{
    heard[0] = '\0';
    warnings = 0;
    remus_hooks_run(&call, say, NULL);
}

static int ask(enum remus_question question)
{
    return remus_gates_ask(&call, question, NULL, say, NULL, said, sizeof(said));
}

static void without_a_directory_nothing_is_run_and_nothing_forbidden(void **state)
{
    (void)state;
    call.dir = "/nowhere/at/all";
    run();
    assert_string_equal(heard, "");
    assert_false(remus_hooks_present(call.dir, false));
    assert_int_equal(ask(REMUS_ASK_BEGIN), 0);
    assert_int_equal(ask(REMUS_ASK_STOP), 0);
}

static void a_hook_is_told_what_happened(void **state)
{
    (void)state;
    install("tell", 0755,
            "echo $# $1 $REMUS_EVENT $REMUS_DOMAIN $REMUS_DOMID $REMUS_PEER $REMUS_ROLE "
            "$REMUS_MODE $REMUS_EPOCH $REMUS_SESSION [$REMUS_STATUS]\n"
            "echo \"$REMUS_REASON\"");
    run();
    assert_string_equal(heard, "hook tell: 1 degraded degraded web1 7 beta secondary colo "
                        "1099511627776 1234 []\nhook tell: a?link; $(reboot)\n");
    call.status = 3;
    call.domid = 0;
    call.role = REMUS_PRIMARY;
    install("tell", 0755, "echo $REMUS_ROLE [$REMUS_DOMID] $REMUS_STATUS");
    run();
    assert_string_equal(heard, "hook tell: primary [] 3\n");
}

static void nothing_else_is_inherited(void **state)
{
    (void)state;
    setenv("REMUS_SECRET_OF_OURS", "x", 1);
    /* The C library keeps two signals above 31 for itself. */
    install("look", 0755, "env | grep -c SECRET; ls /proc/self/fd | tr '\\n' ' '; "
            "grep -o '^SigB.*' /proc/self/status | tail -c 8; "
            "grep -o '^SigI.*' /proc/self/status | tail -c 8");
    run();
    assert_string_equal(heard, "hook look: 0\nhook look: 0 1 2 3 0000000\n"
                               "hook look: 0000000\n");
}

static void hooks_run_in_the_order_of_their_names(void **state)
{
    (void)state;
    install("20-b", 0755, "echo two");
    install("Z", 0755, "echo three");
    install("10-a", 0700, "echo one");
    run();
    assert_string_equal(heard, "hook 10-a: one\nhook 20-b: two\nhook Z: three\n");
}

static void what_is_no_hook_is_not_run(void **state)
{
    char path[160];

    (void)state;
    install("backup~", 0755, "echo no");
    install("x.dpkg-old", 0755, "echo no");
    install(".hidden", 0755, "echo no");
    install("not-executable", 0644, "echo no");
    install("gate-x", 0755, "echo no");
    snprintf(path, sizeof(path), "%s/directory", dir);
    assert_int_equal(mkdir(path, 0755), 0);
    assert_false(remus_hooks_present(dir, false));
    run();
    assert_string_equal(heard, "");
}

static void what_others_can_write_is_not_run_and_said(void **state)
{
    (void)state;
    install("loose", 0757, "echo no");
    run();
    assert_string_equal(heard, "hook loose for 'degraded' failed: it can be written by others, and "
                        "is not run\n");
    assert_int_equal(chmod(dir, 0777), 0);
    install("loose", 0755, "echo no");
    run();
    assert_non_null(strstr(heard, "in a directory that others can write"));
    install("gate-x", 0755, "exit 0");
    assert_int_equal(ask(REMUS_ASK_BEGIN), 1);
}

static void a_failure_is_reported_and_the_next_one_runs(void **state)
{
    (void)state;
    install("1", 0755, "echo because >&2; exit 3");
    install("2", 0755, "kill -9 $$");
    install("3", 0755, "exit 1");
    install("4", 0755, "echo fine");
    run();
    assert_int_equal(warnings, 3);
    assert_non_null(strstr(heard, "hook 1: because\nhook 1 for 'degraded' failed: status 3: because"
                                  "\nhook 2 for 'degraded' failed: killed by signal 9\n"
                                  "hook 3 for 'degraded' failed: status 1\nhook 4: fine\n"));
}

/* The process whose number is in the file pid; a zombie whose new parent does not care is gone. */
static bool is_gone(void)
{
    char command[200];

    snprintf(command, sizeof(command), "sleep 0.2; ! grep '^State' /proc/$(cat %s/pid)/status "
             "2> /dev/null | grep -qv Z", dir);
    return !system(command);
}

static void one_that_hangs_is_ended_with_all_that_it_started(void **state)
{
    char command[200];
    uint64_t began = remus_now_ms();

    (void)state;
    snprintf(command, sizeof(command), "(sleep 71; touch %s/late) & echo $! > %s/pid; sleep 71",
             dir, dir);
    install("1", 0755, command);
    install("2", 0755, "echo next");
    call.hook_ms = 300;
    run();
    assert_true(remus_now_ms() - began < 20000);
    assert_non_null(strstr(heard, "not done after 300 ms, and killed"));
    assert_non_null(strstr(heard, "hook 2: next"));
    assert_true(is_gone());
}

static void what_one_leaves_behind_is_ended(void **state)
{
    char command[200];

    (void)state;
    snprintf(command, sizeof(command), "sleep 72 > /dev/null 2>&1 & echo $! > %s/pid", dir);
    install("1", 0755, command);
    run();
    assert_int_equal(warnings, 0);
    assert_true(is_gone());
}

static void all_together_have_a_limit_too(void **state)
{
    (void)state;
    install("1", 0755, "sleep 73");
    install("2", 0755, "echo not reached");
    call.hook_ms = 5000;
    call.all_ms = 300;
    run();
    assert_non_null(strstr(heard, "hook 2 for 'degraded' is not run"));
    assert_null(strstr(heard, "not reached"));
}

static void what_one_prints_is_bounded(void **state)
{
    (void)state;
    install("1", 0755, "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i + 1)); done; "
            "head -c 1000000 /dev/zero | tr '\\0' x");
    run();
    assert_int_equal(warnings, 0);
    assert_non_null(strstr(heard, "line 99\n"));
    assert_null(strstr(heard, "line 100\n"));
    assert_non_null(strstr(heard, "prints more than is kept"));
}

static void too_many_are_not_run_in_part(void **state)
{
    char name[16];
    unsigned int i;

    (void)state;
    for (i = 0; i <= REMUS_HOOKS_MAX; i++) {
        snprintf(name, sizeof(name), "h%u", i);
        install(name, 0755, "echo no");
    }
    assert_true(remus_hooks_present(dir, false));
    run();
    assert_int_equal(warnings, 1);
    assert_null(strstr(heard, ": no"));
}

static void every_gate_is_asked_until_one_forbids(void **state)
{
    (void)state;
    install("plain", 0755, "echo no gate");
    install("gate-1", 0755, "[ $1 = begin ] || [ $1 = switch ]");
    install("gate-2", 0755, "echo 'not on Sundays'; [ \"$REMUS_EVENT\" != begin ]");
    install("gate-3", 0755, "echo asked");
    assert_int_equal(ask(REMUS_ASK_SWITCH), 0);
    assert_non_null(strstr(heard, "hook gate-3: asked"));
    assert_null(strstr(heard, "no gate"));
    heard[0] = '\0';
    assert_int_equal(ask(REMUS_ASK_BEGIN), 1);
    assert_string_equal(said, "gate-2 forbids it: not on Sundays");
    assert_null(strstr(heard, "asked"));
    assert_int_equal(ask(REMUS_ASK_STOP), 1);
    assert_string_equal(said, "gate-1 forbids it: status 1");
}

static void no_answer_counts_as_the_question_says(void **state)
{
    static const char *const broken[] = {"exit 2", "kill -9 $$", "sleep 74"};
    unsigned int i;

    (void)state;
    call.hook_ms = 300;
    for (i = 0; i < 3; i++) {
        install("gate-x", 0755, broken[i]);
        warnings = 0;
        assert_int_equal(ask(REMUS_ASK_BEGIN), 1);
        assert_non_null(strstr(said, "gives no answer"));
        assert_int_equal(ask(REMUS_ASK_SWITCH), 1);
        assert_int_equal(ask(REMUS_ASK_STOP), 0);
        assert_int_equal(warnings, 3);
    }
    /* A gate that others can write is asked nothing. */
    install("gate-x", 0777, "exit 0");
    assert_int_equal(ask(REMUS_ASK_SWITCH), 1);
    assert_int_equal(ask(REMUS_ASK_STOP), 0);
}

static void gates_have_a_limit_together(void **state)
{
    uint64_t began = remus_now_ms();

    (void)state;
    call.hook_ms = 2000;
    call.all_ms = 500;
    install("gate-1", 0755, "sleep 0.4");
    install("gate-2", 0755, "sleep 75");
    install("gate-3", 0755, "sleep 75");
    assert_int_equal(ask(REMUS_ASK_STOP), 0);
    assert_true(remus_now_ms() - began < 15000);
    assert_int_equal(ask(REMUS_ASK_SWITCH), 1);
}

static bool tired(void *arg)
{
    (void)arg;
    return true;
}

static void nobody_waits_for_a_gate_after_the_end(void **state)
{
    (void)state;
    install("gate-1", 0755, "sleep 76");
    assert_int_equal(remus_gates_ask(&call, REMUS_ASK_STOP, tired, say, NULL, said, sizeof(said)),
                     -ECANCELED);
}

#define T(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(without_a_directory_nothing_is_run_and_nothing_forbidden),
        T(a_hook_is_told_what_happened),
        T(nothing_else_is_inherited),
        T(hooks_run_in_the_order_of_their_names),
        T(what_is_no_hook_is_not_run),
        T(what_others_can_write_is_not_run_and_said),
        T(a_failure_is_reported_and_the_next_one_runs),
        T(one_that_hangs_is_ended_with_all_that_it_started),
        T(what_one_leaves_behind_is_ended),
        T(all_together_have_a_limit_too),
        T(what_one_prints_is_bounded),
        T(too_many_are_not_run_in_part),
        T(every_gate_is_asked_until_one_forbids),
        T(no_answer_counts_as_the_question_says),
        T(gates_have_a_limit_together),
        T(nobody_waits_for_a_gate_after_the_end),
    };

    /* mkdtemp's directory must not be writable by others. */
    umask(022);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
