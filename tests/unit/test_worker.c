/* LINK: tools/xl/worker.c */
/* The process that runs a coordinator: what its supervisor hears, and what either's death does. */
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
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/xl/worker.h"

/* ---- Coordinators that do what the number of the domain says ---- */

enum play { TELL_AND_END, ABORT, WAIT_FOR_STOP, FLOOD, SHOW_DESCRIPTORS };

static int play(const struct remus_session_params *p, struct remus_session_result *result)
{
    struct remus_status status = {.domid = p->domid};
    unsigned int i;
    int fd;

    switch ((enum play)p->domid) {
    case TELL_AND_END:
        p->log(p->arg, XC_SR_WARN, "a sentence");
        status.epoch = 5;
        p->status(p->arg, &status);
        p->committed(p->arg);
        p->transition(p->arg, REMUS_T_PROTECTED, 1ull << 40, "because");
        p->active(p->arg, 77);
        result->end = REMUS_END_GUEST;
        strcpy(result->reason, "played");
        return -ENODATA;
    case ABORT:
        p->log(p->arg, XC_SR_INFO, "last words");
        raise(SIGKILL);
        break;
    case WAIT_FOR_STOP:
        p->log(p->arg, XC_SR_INFO, "ready");
        /* A second of silence at most, as a session tells its status. */
        for (i = 0; i < 600 && !*p->stop_request; i++) {
            p->status(p->arg, &status);
            poll(NULL, 0, 20);
        }
        result->end = REMUS_END_STOPPED;
        /* Seen from outside by whoever has the other end of the link. */
        if (write(p->link_fd, *p->stop_request ? "stop" : "none", 4) != 4)
            abort();
        break;
    case FLOOD:
        for (i = 0; i < 20000; i++)
            p->status(p->arg, &status);
        for (i = 0; i < 40; i++)
            p->transition(p->arg, REMUS_T_DEGRADED, i, "again");
        p->active(p->arg, 1);
        result->end = REMUS_END_ACTIVE;
        break;
    case SHOW_DESCRIPTORS:
        for (fd = 0; fd < 64; fd++)
            if (fd > 2 && fcntl(fd, F_GETFD) >= 0)
                result->detail++;
        snprintf(result->reason, sizeof(result->reason), "%d", getsid(0) == getpid());
        break;
    }
    return 0;
}

int remus_primary_run(const struct remus_session_params *p, struct remus_session_result *result)
{
    return play(p, result);
}

int remus_secondary_run(const struct remus_session_params *p, struct remus_session_result *result)
{
    return play(p, result);
}

/* ---- */

static struct worker worker;
static int link_fd;

static void begin(enum play what, enum remus_role role)
{
    struct remus_session_params p = {.role = role, .domid = (uint32_t)what, .packet_fd = -1};
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    p.link_fd = pair[1];
    assert_int_equal(worker_start(&worker, &p, -1, -1), 0);
    close(pair[1]);
    link_fd = pair[0];
}

static enum worker_news next(struct worker_message *m)
{
    enum worker_news news;
    struct pollfd p = {.fd = worker.fd, .events = POLLIN};
    int i;

    for (i = 0; i < 100; i++) {
        news = worker_next(&worker, m);
        if (news != WORKER_NOTHING)
            return news;
        poll(&p, 1, 100);
    }
    fail_msg("the worker says nothing");
    return WORKER_NOTHING;
}

static int end(void **state)
{
    (void)state;
    if (worker.pid > 0) {
        worker_kill(&worker);
        worker_reap(&worker);
    }
    if (worker.fd >= 0)
        close(worker.fd);
    close(link_fd);
    return 0;
}

static void everything_that_is_said_arrives_in_order(void **state)
{
    struct worker_message m;

    (void)state;
    begin(TELL_AND_END, REMUS_SECONDARY);
    assert_int_equal(next(&m), WORKER_LOG);
    assert_int_equal(m.level, XC_SR_WARN);
    assert_string_equal(m.text, "a sentence");
    assert_int_equal(next(&m), WORKER_STATUS);
    assert_int_equal(m.status.epoch, 5);
    assert_int_equal(next(&m), WORKER_COMMITTED);
    assert_int_equal(next(&m), WORKER_TRANSITION);
    assert_int_equal(m.transition.what, REMUS_T_PROTECTED);
    assert_int_equal(m.transition.epoch, 1ull << 40);
    assert_string_equal(m.transition.reason, "because");
    assert_int_equal(next(&m), WORKER_ACTIVE);
    assert_int_equal(m.domid, 77);
    assert_int_equal(next(&m), WORKER_RESULT);
    assert_int_equal(m.rc, -ENODATA);
    assert_int_equal(m.result.end, REMUS_END_GUEST);
    assert_string_equal(m.result.reason, "played");
    assert_int_equal(next(&m), WORKER_ENDED);
    assert_int_equal(worker_reap(&worker), 0);
    assert_int_equal(worker_next(&worker, &m), WORKER_NOTHING);
}

static void a_killed_worker_ends_without_a_result(void **state)
{
    struct worker_message m;
    int status;

    (void)state;
    begin(ABORT, REMUS_PRIMARY);
    assert_int_equal(next(&m), WORKER_LOG);
    assert_int_equal(next(&m), WORKER_ENDED);
    status = worker_reap(&worker);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* It goes on by itself, and whoever starts sessions for months does not collect its like. */
static void a_worker_that_was_let_go_is_reaped_when_the_next_one_begins(void **state)
{
    struct worker_message m;
    siginfo_t info;
    pid_t pid;

    begin(TELL_AND_END, REMUS_PRIMARY);
    pid = worker.pid;
    while (next(&m) != WORKER_RESULT)
        ;
    worker_let_go(&worker);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    end(state);
    begin(TELL_AND_END, REMUS_PRIMARY);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT | WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
    assert_int_equal(worker_reap(&worker), 0);
}

static void a_request_to_stop_reaches_the_coordinator(void **state)
{
    struct worker_message m;
    enum worker_news news;

    (void)state;
    begin(WAIT_FOR_STOP, REMUS_PRIMARY);
    assert_int_equal(next(&m), WORKER_LOG);
    worker_stop(&worker);
    while ((news = next(&m)) == WORKER_STATUS)
        ;
    assert_int_equal(news, WORKER_RESULT);
    assert_int_equal(m.result.end, REMUS_END_STOPPED);
    assert_int_equal(next(&m), WORKER_ENDED);
}

/* What the worker wrote on the link when it ended, after its supervisor was gone. */
static void orphan(enum remus_role role, char *text)
{
    struct worker_message m;

    begin(WAIT_FOR_STOP, role);
    assert_int_equal(next(&m), WORKER_LOG);
    close(worker.fd);
    worker.fd = -1;
    if (role == REMUS_SECONDARY) {
        /* Long enough for it to notice; then it is asked, so that the test ends. */
        struct pollfd p = {.fd = link_fd, .events = POLLIN};

        assert_int_equal(poll(&p, 1, 500), 0);
        worker_stop(&worker);
    }
    assert_int_equal(read(link_fd, text, 4), 4);
    text[4] = '\0';
    worker_reap(&worker);
}

static void a_primary_without_supervisor_ends_protection_in_order(void **state)
{
    char text[5];

    (void)state;
    orphan(REMUS_PRIMARY, text);
    assert_string_equal(text, "stop");
}

static void a_secondary_without_supervisor_goes_on(void **state)
{
    char text[5];

    (void)state;
    orphan(REMUS_SECONDARY, text);
    assert_string_equal(text, "stop");
}

static void a_supervisor_that_stands_still_loses_no_turning_point(void **state)
{
    struct worker_message m;
    enum worker_news news;
    unsigned int statuses = 0, transitions = 0;
    siginfo_t info;

    (void)state;
    begin(FLOOD, REMUS_SECONDARY);
    /* Ends although nobody has read a word: it never blocks. */
    assert_int_equal(waitid(P_PID, (id_t)worker.pid, &info, WEXITED | WNOWAIT), 0);
    while ((news = next(&m)) == WORKER_STATUS)
        statuses++;
    assert_true(statuses > 0 && statuses < 20000);
    for (; news == WORKER_TRANSITION; news = next(&m))
        assert_int_equal(m.transition.epoch, transitions++);
    assert_int_equal(transitions, 40);
    assert_int_equal(news, WORKER_ACTIVE);
    assert_int_equal(next(&m), WORKER_RESULT);
    assert_int_equal(next(&m), WORKER_ENDED);
}

static void the_worker_has_a_session_and_no_descriptors_but_its_own(void **state)
{
    struct worker_message m;
    int extra = dup(0);

    (void)state;
    begin(SHOW_DESCRIPTORS, REMUS_PRIMARY);
    assert_int_equal(next(&m), WORKER_RESULT);
    /* The link and the socket to the supervisor. */
    assert_int_equal(m.result.detail, 2);
    assert_string_equal(m.result.reason, "1");
    close(extra);
}

#define T(test) cmocka_unit_test_teardown(test, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(everything_that_is_said_arrives_in_order),
        T(a_killed_worker_ends_without_a_result),
        T(a_worker_that_was_let_go_is_reaped_when_the_next_one_begins),
        T(a_request_to_stop_reaches_the_coordinator),
        T(a_primary_without_supervisor_ends_protection_in_order),
        T(a_secondary_without_supervisor_goes_on),
        T(a_supervisor_that_stands_still_loses_no_turning_point),
        T(the_worker_has_a_session_and_no_descriptors_but_its_own),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
