#include "tools/xl/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/sockios.h>

/*
 * Bytes of news that may wait in the socket before statuses and log lines are dropped.  It is a
 * fraction of what the socket holds, so that a supervisor that was stopped for a while loses some
 * of those, but none of the messages of which there are few; and nothing here ever blocks.
 */
#define WORKER_DROP_BYTES   (64 << 10)
#define WORKER_SOCKET_BYTES (1 << 20)

static volatile int stop_wanted;

static void on_stop_signal(int signal_number)
{
    (void)signal_number;
    stop_wanted = 1;
}

struct outlet {
    int fd;                 /* -1: nobody listens any more */
    int lock_fd, guard_fd;
    bool primary;
};

static void tell(struct outlet *o, const struct worker_message *m, size_t bytes, bool may_drop)
{
    int waiting = 0;
    ssize_t r;

    if (o->fd < 0)
        return;
    if (may_drop && !ioctl(o->fd, SIOCOUTQ, &waiting) && waiting > WORKER_DROP_BYTES)
        return;
    do
        r = send(o->fd, m, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (r < 0 && errno == EINTR);
    if (r < 0 && errno != EAGAIN && errno != EWOULDBLOCK && o->primary)
        stop_wanted = 1;
}

static void on_log(void *arg, enum xc_sr_level level, const char *text)
{
    struct worker_message m = {.type = WORKER_LOG, .level = (uint32_t)level};
    static const char *const names[] = {"debug", "info", "warning", "error"};
    struct timespec now;
    char stamp[32];
    struct tm tm;

    /* Standard error is the log file. */
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    strftime(stamp, sizeof(stamp), "%F %T", &tm);
    fprintf(stderr, "%s.%03ld %s: %s\n", stamp, now.tv_nsec / 1000000, names[level & 3], text);
    snprintf(m.text, sizeof(m.text), "%s", text);
    tell(arg, &m, offsetof(struct worker_message, text) + strlen(m.text) + 1, true);
}

static void on_status(void *arg, const struct remus_status *status)
{
    struct worker_message m = {.type = WORKER_STATUS, .status = *status};

    tell(arg, &m, offsetof(struct worker_message, status) + sizeof(m.status), true);
}

static void on_transition(void *arg, enum remus_transition what, uint64_t epoch,
                          const char *reason)
{
    struct worker_message m = {
        .type = WORKER_TRANSITION, .transition = {.what = (uint32_t)what, .epoch = epoch},
    };

    snprintf(m.transition.reason, sizeof(m.transition.reason), "%s", reason);
    tell(arg, &m, offsetof(struct worker_message, transition) + sizeof(m.transition), false);
}

static void on_committed(void *arg)
{
    struct worker_message m = {.type = WORKER_COMMITTED};

    tell(arg, &m, offsetof(struct worker_message, text), false);
}

static void on_active(void *arg, uint32_t domid)
{
    struct worker_message m = {.type = WORKER_ACTIVE, .domid = domid};

    tell(arg, &m, offsetof(struct worker_message, text), false);
}

static void on_next_session(int signal_number)
{
    (void)signal_number;
    stop_wanted = 2;
}

/* Another session may want the guest's disks. */
static void hear_next_session(void)
{
    struct sigaction action = {.sa_handler = on_next_session};

    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
}

static void on_settled(void *arg, uint32_t domid)
{
    struct worker_message m = {.type = WORKER_SETTLED, .domid = domid};

    stop_wanted = 0;
    hear_next_session();
    tell(arg, &m, offsetof(struct worker_message, text), false);
}

/* For the supervisor this is the end: the guest can be protected by another session. */
static void on_minding(void *arg, const struct remus_session_result *result)
{
    struct worker_message m = {.type = WORKER_RESULT, .result = *result};
    struct outlet *o = arg;

    stop_wanted = 0;
    hear_next_session();
    tell(o, &m, offsetof(struct worker_message, result) + sizeof(m.result), false);
    close(o->fd);
    if (o->lock_fd >= 0)
        close(o->lock_fd);
    if (o->guard_fd >= 0)
        close(o->guard_fd);
    o->fd = o->lock_fd = o->guard_fd = -1;
}

static void close_others(const int *keep, unsigned int count)
{
    unsigned int i;
    int fd, limit = (int)sysconf(_SC_OPEN_MAX);

    if (limit < 0 || limit > 4096)
        limit = 4096;
    for (fd = 3; fd < limit; fd++) {
        for (i = 0; i < count; i++)
            if (fd == keep[i])
                break;
        if (i == count)
            close(fd);
    }
}

static void run_worker(const struct remus_session_params *params, int fd, int log_fd, int lock_fd)
    __attribute__((noreturn));
static void run_worker(const struct remus_session_params *params, int fd, int log_fd, int lock_fd)
{
    struct outlet outlet = {
        .fd = fd, .lock_fd = lock_fd, .guard_fd = params->guard_fd,
        .primary = params->role == REMUS_PRIMARY,
    };
    const int keep[] = {fd, lock_fd, params->link_fd, params->packet_fd, params->disk_fd,
                        params->heartbeat_fd, params->guard_fd};
    struct sigaction action = {.sa_handler = on_stop_signal};
    struct remus_session_params p = *params;
    static struct worker_message m;
    sigset_t none;
    int null_fd;

    setsid();
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 ||
        dup2(log_fd >= 0 ? log_fd : null_fd, STDOUT_FILENO) < 0 ||
        dup2(log_fd >= 0 ? log_fd : null_fd, STDERR_FILENO) < 0)
        _exit(127);
    setvbuf(stderr, NULL, _IOLBF, 0);
    close_others(keep, sizeof(keep) / sizeof(keep[0]));

    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);

    p.arg = &outlet;
    p.log = on_log;
    p.status = on_status;
    p.transition = on_transition;
    p.committed = on_committed;
    p.active = on_active;
    p.settled = on_settled;
    p.minding = on_minding;
    p.stop_request = &stop_wanted;
    m.type = WORKER_RESULT;
    m.rc = p.role == REMUS_PRIMARY ? remus_primary_run(&p, &m.result)
                                   : remus_secondary_run(&p, &m.result);
    tell(&outlet, &m, offsetof(struct worker_message, result) + sizeof(m.result), false);
    exit(0);
}

/* One that was let go: there is one at most, as the next session takes the disks from it. */
static pid_t let_go;

static void reap_let_go(void)
{
    if (let_go && waitpid(let_go, NULL, WNOHANG))
        let_go = 0;
}

int worker_start(struct worker *out, const struct remus_session_params *params, int log_fd,
                 int lock_fd)
{
    int pair[2], bytes = WORKER_SOCKET_BYTES, rc;
    pid_t pid;

    *out = (struct worker){.fd = -1};
    reap_let_go();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    (void)setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    fflush(NULL);
    pid = fork();
    if (pid < 0) {
        rc = -errno;
        close(pair[0]);
        close(pair[1]);
        return rc;
    }
    if (pid == 0)
        run_worker(params, pair[1], log_fd, lock_fd);
    close(pair[1]);
    out->pid = pid;
    out->fd = pair[0];
    return 0;
}

enum worker_news worker_next(struct worker *w, struct worker_message *m)
{
    ssize_t r;

    if (w->fd < 0)
        return WORKER_NOTHING;
    do
        r = recv(w->fd, m, sizeof(*m), MSG_DONTWAIT);
    while (r < 0 && errno == EINTR);
    if (r < 0 && errno == EAGAIN)
        return WORKER_NOTHING;
    if (r < (ssize_t)offsetof(struct worker_message, text)) {
        close(w->fd);
        w->fd = -1;
        return WORKER_ENDED;
    }
    if (m->type == WORKER_LOG)
        m->text[sizeof(m->text) - 1] = '\0';
    return (enum worker_news)m->type;
}

void worker_stop(const struct worker *w)
{
    if (w->pid > 0)
        kill(w->pid, SIGTERM);
}

void worker_kill(struct worker *w)
{
    if (w->pid > 0)
        kill(w->pid, SIGKILL);
}

void worker_let_go(struct worker *w)
{
    reap_let_go();
    let_go = w->pid;
    w->pid = 0;
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

int worker_reap(struct worker *w)
{
    int status = 0;
    pid_t r;

    if (w->pid <= 0)
        return -1;
    do
        r = waitpid(w->pid, &status, 0);
    while (r < 0 && errno == EINTR);
    w->pid = 0;
    return r < 0 ? -1 : status;
}
