/* LINK: tools/xl/notifier.c tools/libxl/remus_hook.c tools/libxl/remus_program.c tools/libxl/remus_message.c tools/libxl/remus_transition.c tools/libxl/remus_core.c */
/* The process that runs hooks: nobody waits for it, and it outlives who tells it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"
#include "tools/xl/notifier.h"

static char dir[64], log_path[80];
static struct notifier n;

static void install(const char *name, const char *script)
{
    char path[160];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\n%s\n", script);
    fclose(file);
    assert_int_equal(chmod(path, 0755), 0);
}

static int begin(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/remus-notifier-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(log_path, sizeof(log_path), "%s/log.txt", dir);
    n = (struct notifier)NOTIFIER_INIT;
    n.dir = dir;
    n.log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return n.log_fd < 0;
}

static int end(void **state)
{
    char command[128];

    (void)state;
    notifier_close(&n);
    close(n.log_fd);
    snprintf(command, sizeof(command), "rm -r '%s'", dir);
    return system(command);
}

static int notify(enum remus_transition what, const char *reason)
{
    struct notice notice = {.what = what, .role = REMUS_PRIMARY, .domid = 3, .status = -1,
                            .epoch = 9, .domain = "web1", .peer = "beta", .mode = "colo"};

    snprintf(notice.reason, sizeof(notice.reason), "%s", reason);
    return notifier_tell(&n, &notice);
}

static bool log_has(const char *text)
{
    static char log[65536];
    int fd = open(log_path, O_RDONLY);
    ssize_t got = read(fd, log, sizeof(log) - 1);

    close(fd);
    log[got > 0 ? got : 0] = '\0';
    return strstr(log, text);
}

/* Within 10 s. */
static bool logged(const char *text)
{
    unsigned int i;

    for (i = 0; i < 200 && !log_has(text); i++)
        poll(NULL, 0, 50);
    return log_has(text);
}

static void without_hooks_there_is_no_process(void **state)
{
    (void)state;
    assert_int_equal(notify(REMUS_T_PROTECTED, ""), 0);
    assert_int_equal(n.fd, -1);
    n.dir = "/nowhere";
    assert_int_equal(notify(REMUS_T_PROTECTED, ""), 0);
    assert_int_equal(n.fd, -1);
}

static void notices_are_worked_off_in_order_after_the_end_too(void **state)
{
    uint64_t began = remus_now_ms();

    (void)state;
    install("a", "sleep 0.3; echo $1 $REMUS_REASON $REMUS_EPOCH $REMUS_DOMAIN");
    assert_int_equal(notify(REMUS_T_PROTECTED, "one"), 0);
    assert_int_equal(notify(REMUS_T_DEGRADED, "two"), 0);
    assert_int_equal(notify(REMUS_T_NONE, "nothing"), 0);
    assert_int_equal(notify(REMUS_T_STOPPED, "three"), 0);
    notifier_close(&n);
    assert_true(remus_now_ms() - began < 2000);
    assert_true(logged("hook a: protected one 9 web1\nhook a: degraded two 9 web1\n"
                       "hook a: stopped three 9 web1\n"));
}

static void a_failure_is_told_to_the_user(void **state)
{
    struct pollfd p;
    char text[300];

    (void)state;
    install("a", "exit 4");
    assert_int_equal(notify(REMUS_T_FENCING, ""), 0);
    p = (struct pollfd){.fd = n.fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 10000), 1);
    assert_true(notifier_next(&n, text, sizeof(text)));
    assert_string_equal(text, "hook a for 'fencing' failed: status 4");
    assert_false(notifier_next(&n, text, sizeof(text)));
}

static void nothing_waits_for_a_hook_that_hangs(void **state)
{
    uint64_t began = remus_now_ms();
    char command[160];
    unsigned int i;
    int rc = 0;

    (void)state;
    snprintf(command, sizeof(command), "echo $$ > %s/pid.txt; echo here; exec sleep 77", dir);
    install("a", command);
    for (i = 0; i < 1000 && !rc; i++)
        rc = notify(REMUS_T_DEGRADED, "");
    assert_int_equal(rc, -EAGAIN);
    assert_true(i > 8);
    assert_true(remus_now_ms() - began < 5000);
    /* It has as many notices left to work off, with a hook that does not hang. */
    assert_true(logged("hook a: here"));
    install("a", "exit 0");
    snprintf(command, sizeof(command), "kill $(cat %s/pid.txt)", dir);
    assert_int_equal(system(command), 0);
}

static void what_the_session_has_open_stays_its_own(void **state)
{
    char path[80];
    int fd, again;

    (void)state;
    snprintf(path, sizeof(path), "%s/lock.txt", dir);
    fd = open(path, O_RDWR | O_CREAT, 0600);    /* without O_CLOEXEC */
    assert_int_equal(flock(fd, LOCK_EX), 0);
    install("a", "ls -l /proc/self/fd /proc/$PPID/fd; sleep 2; echo done");
    assert_int_equal(notify(REMUS_T_STOPPED, ""), 0);
    close(fd);
    again = open(path, O_RDWR | O_CLOEXEC);
    poll(NULL, 0, 300);
    assert_int_equal(flock(again, LOCK_EX | LOCK_NB), 0);
    close(again);
    assert_true(logged("hook a: done"));
    assert_false(log_has("lock.txt"));
}

static void one_that_was_killed_is_replaced(void **state)
{
    (void)state;
    install("a", "echo $REMUS_REASON; [ \"$REMUS_REASON\" != one ] || kill -9 $PPID");
    assert_int_equal(notify(REMUS_T_DEGRADED, "one"), 0);
    poll(NULL, 0, 1000);
    assert_int_equal(notify(REMUS_T_DEGRADED, "two"), 0);
    assert_true(logged("hook a: two"));
}

#define T(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(without_hooks_there_is_no_process),
        T(notices_are_worked_off_in_order_after_the_end_too),
        T(a_failure_is_told_to_the_user),
        T(nothing_waits_for_a_hook_that_hangs),
        T(what_the_session_has_open_stays_its_own),
        T(one_that_was_killed_is_replaced),
    };

    umask(022);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
