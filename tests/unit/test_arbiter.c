/* LINK: tools/libxl/remus_arbiter.c tools/libxl/remus_program.c tools/libxl/remus_message.c */
/* The programs that decide who goes on: what they are told, and what their ends mean. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/libxl/remus_arbiter.h"
#include "tools/libxl/remus_message.h"

static char dir[64], said[REMUS_ARBITER_SAID];
static struct remus_arbiter a;

static void install(const char *name, const char *script)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/arbiter-%s", dir, name);
    file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\n%s\n", script);
    fclose(file);
    assert_int_equal(chmod(path, 0700), 0);
}

static int begin(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/remus-arbiter-XXXXXX");
    assert_non_null(mkdtemp(dir));
    a = (struct remus_arbiter){
        .spec = "test:some: argument", .libexec = dir, .session = "1234", .domain = "web1",
        .peer = "beta", .role = REMUS_SECONDARY,
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

static int run(const char *script)
{
    install("test", script);
    return remus_arbiter_run(&a, "acquire", 10000, said);
}

static void none_needs_no_program(void **state)
{
    (void)state;
    a.spec = REMUS_ARBITER_NONE;
    assert_int_equal(remus_arbiter_run(&a, "acquire", 0, said), 0);
}

static void a_program_is_told_who_asks(void **state)
{
    (void)state;
    assert_int_equal(run("echo $1 $REMUS_ARG $REMUS_SESSION $REMUS_ROLE $REMUS_DOMAIN $REMUS_PEER"),
                     0);
    assert_string_equal(said, "acquire some: argument 1234 secondary web1 beta");
    a.role = REMUS_PRIMARY;
    a.spec = "test";
    assert_int_equal(run("echo \"$REMUS_ARG;$REMUS_ROLE\"; ls /proc/self/fd | tr '\\n' ' ' >&2"),
                     0);
    assert_string_equal(said, "0 1 2 3 "); /* 3 is ls' own */
}

static void its_end_is_the_answer(void **state)
{
    (void)state;
    assert_int_equal(run("echo first; echo 'no, the other'; exit 1"), 1);
    assert_string_equal(said, "no, the other");
    assert_true(run("echo broken >&2; exit 2") < 0);
    assert_string_equal(said, "broken");
    assert_true(run("exit 77") < 0);
    assert_string_equal(said, "status 77");
    assert_true(run("kill -9 $$") < 0);
    assert_string_equal(said, "signal 9");
    a.spec = "missing";
    assert_true(remus_arbiter_run(&a, "check", 0, said) < 0);
    assert_non_null(strstr(said, "arbiter-missing"));
}

static void an_end_that_nobody_can_see_is_no_answer(void **state)
{
    (void)state;
    signal(SIGCHLD, SIG_IGN);
    assert_true(run("echo 'the other side has it'; exit 1") < 0);
    assert_true(run("exit 0") < 0);
    signal(SIGCHLD, SIG_DFL);
}

static void what_it_prints_is_bounded_and_clean(void **state)
{
    (void)state;
    assert_int_equal(run("printf 'a\\033[2Jb\\n'"), 0);
    assert_string_equal(said, "a?[2Jb");
    /* More than a pipe takes: the program must not be told so. */
    assert_int_equal(run("sleep 0.05; head -c 2000000 /dev/zero | tr '\\0' x"), 0);
    assert_int_equal(strlen(said), sizeof(said) - 1);
}

static void one_that_takes_too_long_is_ended_with_its_children(void **state)
{
    uint64_t began = remus_now_ms();

    (void)state;
    install("test", "echo waiting; sleep 77 & sleep 77");
    assert_int_equal(remus_arbiter_run(&a, "acquire", 300, said), -ETIME);
    assert_string_equal(said, "waiting");
    assert_true(remus_now_ms() - began < 20000);
    /* One that closed what it prints to is waited for all the same, without spinning. */
    assert_int_equal(run("exec >&- 2>&-; sleep 0.5; exit 1"), 1);
}

static bool tired(void *arg)
{
    return ++*(int *)arg > 2;
}

static void nobody_waits_for_ever(void **state)
{
    int asked = 0;

    (void)state;
    a.give_up = tired;
    a.arg = &asked;
    install("test", "sleep 77");
    assert_int_equal(remus_arbiter_run(&a, "acquire", 0, said), -ECANCELED);
    assert_int_equal(asked, 3);
}

#define T(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(none_needs_no_program),
        T(a_program_is_told_who_asks),
        T(its_end_is_the_answer),
        T(an_end_that_nobody_can_see_is_no_answer),
        T(what_it_prints_is_bounded_and_clean),
        T(one_that_takes_too_long_is_ended_with_its_children),
        T(nobody_waits_for_ever),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
