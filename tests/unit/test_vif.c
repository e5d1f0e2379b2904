/* Whether netback's thread has anything left to do. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/libxl/remus_vif.h"

static void a_thread_that_is_not_there_is_not_found(void **state)
{
    (void)state;
    assert_int_equal(remus_vif_rx_thread("vif9999.9"), -ENOENT);
}

static void who_sleeps_is_asleep(void **state)
{
    unsigned int tries;
    char path[64];
    pid_t pid;
    int fd;

    (void)state;
    pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_NAME, "a) R (b"); /* a name may look like anything */
        pause();
        _exit(0);
    }
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (tries = 0; tries < 1000 && !remus_vif_rx_asleep(fd); tries++)
        usleep(10000);
    assert_true(remus_vif_rx_asleep(fd));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_false(remus_vif_rx_asleep(fd));
    close(fd);
}

static void who_runs_is_not(void **state)
{
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);

    (void)state;
    assert_true(fd >= 0);
    assert_false(remus_vif_rx_asleep(fd));
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thread_that_is_not_there_is_not_found),
        cmocka_unit_test(who_sleeps_is_asleep),
        cmocka_unit_test(who_runs_is_not),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
