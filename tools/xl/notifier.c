#include "tools/xl/notifier.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"

#define WAITING_BYTES (64 << 10)    /* of notices, in the socket */

struct runner {
    int fd, log_fd;
};

static void heard(void *arg, enum xc_sr_level level, const char *text)
{
    struct runner *r = arg;

    if (r->log_fd >= 0)
        dprintf(r->log_fd, "%s\n", text);
    /* A supervisor that is gone, or busy, finds it in the log. */
    if (level >= XC_SR_WARN)
        (void)send(r->fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void serve(struct runner *r, const char *dir)
{
    static struct notice m;
    ssize_t n;

    for (;;) {
        struct remus_hook_call call = {
            .dir = dir, .domain = m.domain, .peer = m.peer, .mode = m.mode, .session = m.session,
            .reason = m.reason,
        };

        do
            n = recv(r->fd, &m, sizeof(m), 0);
        while (n < 0 && errno == EINTR);
        if (n != (ssize_t)sizeof(m))
            return;
        call.word = remus_transition_name(m.what);
        call.role = m.role;
        call.domid = m.domid;
        call.epoch = m.epoch;
        call.status = m.status;
        remus_hooks_run(&call, heard, r);
    }
}

/* Keeps nothing of the session open: a hook that hangs must not hold its lock, nor ssh. */
static void become_runner(struct notifier *n, int fd) __attribute__((noreturn));
static void become_runner(struct notifier *n, int fd)
{
    const int here = fcntl(fd, F_DUPFD, 10), log = fcntl(n->log_fd, F_DUPFD, 10);
    struct runner r = {.fd = 3, .log_fd = log >= 0 ? 4 : -1};
    int null_fd = open("/dev/null", O_RDWR), i;
    sigset_t none;

    if (here < 0 || null_fd < 0)
        _exit(127);
    for (i = 0; i < 3; i++)
        dup2(null_fd, i);
    dup2(here, r.fd);
    if (log >= 0)
        dup2(log, r.log_fd);
    close_range(log >= 0 ? 5 : 4, ~0u, 0);
    setsid();
    prctl(PR_SET_NAME, "remus-hooks");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (chdir("/"))
        _exit(127);
    serve(&r, n->dir);
    _exit(0);
}

static int begin(struct notifier *n)
{
    int pair[2], bytes = WAITING_BYTES, rc;
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -errno;
    (void)setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    fflush(NULL);
    /* Twice, so that it is nobody's child: there is no one to wait for it. */
    pid = fork();
    if (pid == 0) {
        pid = fork();
        if (pid == 0)
            become_runner(n, pair[1]);
        _exit(pid < 0);
    }
    rc = pid < 0 ? -errno : 0;
    close(pair[1]);
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    if (rc)
        close(pair[0]);
    else
        n->fd = pair[0];
    return rc;
}

static int put(struct notifier *n, const struct notice *notice)
{
    ssize_t r;

    do
        r = send(n->fd, notice, sizeof(*notice), MSG_DONTWAIT | MSG_NOSIGNAL);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int notifier_tell(struct notifier *n, const struct notice *notice)
{
    int rc = 0;

    if (notice->what == REMUS_T_NONE)
        return 0;
    if (n->fd < 0) {
        if (!remus_hooks_present(n->dir, false))
            return 0;
        rc = begin(n);
    }
    if (!rc)
        rc = put(n, notice);
    if (rc == -EPIPE) {         /* somebody killed it: the next one is as good */
        notifier_close(n);
        rc = begin(n);
        if (!rc)
            rc = put(n, notice);
    }
    return rc;
}

bool notifier_next(struct notifier *n, char *text, size_t room)
{
    ssize_t r = -1;

    if (n->fd >= 0)
        do
            r = recv(n->fd, text, room - 1, MSG_DONTWAIT);
        while (r < 0 && errno == EINTR);
    if (r == 0 || (r < 0 && n->fd >= 0 && errno != EAGAIN))
        notifier_close(n);
    if (r <= 0)
        return false;
    text[r] = '\0';
    return true;
}

void notifier_close(struct notifier *n)
{
    if (n->fd >= 0)
        close(n->fd);
    n->fd = -1;
}
