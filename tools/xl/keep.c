#include "tools/xl/keep.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"
#include "tools/xl/commands.h"

/* Waits for a signal of the set; 0: time is up (seconds 0: waits for ever). */
static int next_signal(const sigset_t *set, unsigned int seconds)
{
    struct timespec limit = {.tv_sec = seconds};
    siginfo_t info;
    int number;

    do
        number = seconds ? sigtimedwait(set, &info, &limit) : sigwaitinfo(set, &info);
    while (number < 0 && errno == EINTR);
    if (number < 0)
        return 0;
    /* The terminal tells the whole group, the attempt included; a process tells only this one. */
    return number == SIGINT && info.si_code == SI_KERNEL ? -SIGINT : number;
}

static int run_attempt(int (*attempt)(void *arg), void *arg, const sigset_t *set,
                       const sigset_t *before, bool *stop)
{
    pid_t pid;
    int status = 0, number;

    fflush(NULL);
    pid = fork();
    if (pid < 0) {
        fprintf(stderr, "xl remus: no process can be made: %s\n", strerror(errno));
        return XL_NO_PEER;
    }
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, before, NULL);
        exit(attempt(arg));
    }
    for (;;) {
        pid_t r = waitpid(pid, &status, WNOHANG);

        if (r == pid || (r < 0 && errno != EINTR))
            break;
        number = next_signal(set, 0);
        if (number == SIGCHLD)
            continue;
        /* Without its terminal a session goes on. */
        *stop = *stop || number != SIGHUP;
        if (number > 0)
            kill(pid, number);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : XL_UNDECIDED;
}

int keep(int (*attempt)(void *arg), keep_again again, void *arg)
{
    bool first = true, stop = false;
    sigset_t set, before;
    int code;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, &before);
    for (;; first = false) {
        uint64_t until;
        int number;

        code = run_attempt(attempt, arg, &set, &before, &stop);
        if (stop || !again(arg, code, first))
            return code;
        for (until = remus_now_ms() + KEEP_PAUSE_S * 1000u; !stop && remus_now_ms() < until;) {
            number = next_signal(&set, 1);
            stop = number && number != SIGCHLD && number != SIGHUP;
        }
        if (stop)
            return code;
    }
}
