#include "tools/libxl/remus_arbiter.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"

#define NAME_BYTES 32u
#define POLL_MS    100

bool remus_arbiter_ok(const char *spec)
{
    size_t name = strspn(spec, "abcdefghijklmnopqrstuvwxyz0123456789-"), i;

    if (!name || name >= NAME_BYTES || spec[0] == '-' || strlen(spec) >= REMUS_ARBITER_BYTES ||
        (spec[name] && spec[name] != ':'))
        return false;
    for (i = name; spec[i]; i++)
        if ((unsigned char)spec[i] < 0x20 || spec[i] == 0x7f)
            return false;
    return true;
}

bool remus_arbiter_is_none(const char *spec)
{
    return !strcmp(spec, REMUS_ARBITER_NONE);
}

/* NAME=VALUE in *out, on the heap. */
static int variable(char **out, const char *name, const char *value)
{
    if (asprintf(out, "%s=%s", name, value) >= 0)
        return 0;
    *out = NULL;
    return -ENOMEM;
}

/* What is ours, and of this process's what a program needs to find others. */
static int environment(const struct remus_arbiter *a, const char *arg, char *out[8])
{
    const char *path = getenv("PATH");
    int rc;

    memset(out, 0, 8 * sizeof(out[0]));
    rc = variable(&out[0], "REMUS_ARG", arg);
    if (!rc)
        rc = variable(&out[1], "REMUS_SESSION", a->session);
    if (!rc)
        rc = variable(&out[2], "REMUS_ROLE", a->role == REMUS_PRIMARY ? "primary" : "secondary");
    if (!rc)
        rc = variable(&out[3], "REMUS_DOMAIN", a->domain);
    if (!rc)
        rc = variable(&out[4], "REMUS_PEER", a->peer);
    if (!rc)
        rc = variable(&out[5], "PATH", path ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
    return rc;
}

/* In a process group of its own: the terminal's Ctrl-C is not for it, and it ends as a whole. */
static int spawn(const char *path, const char *word, char *const env[], int out_fd, pid_t *pid)
{
    char *args[] = {(char *)(uintptr_t)path, (char *)(uintptr_t)word, NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    int rc;

    sigemptyset(&none);
    sigfillset(&all);
    rc = posix_spawn_file_actions_init(&files);
    if (rc)
        return -rc;
    rc = posix_spawnattr_init(&attributes);
    if (rc) {
        posix_spawn_file_actions_destroy(&files);
        return -rc;
    }
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, out_fd, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, out_fd, STDERR_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&files, 3);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                              POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    rc = posix_spawn(pid, path, &files, &attributes, args, env);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return -rc;
}

/* Keeps the last line of what comes, the one under way included. */
struct tail {
    char line[REMUS_ARBITER_SAID];
    size_t used;
    bool over;                      /* the line has ended; the next byte begins another */
};

static void tail_add(struct tail *t, const char *bytes, size_t count)
{
    size_t i;

    for (i = 0; i < count; i++) {
        if (bytes[i] == '\n' || bytes[i] == '\r') {
            t->over = true;
            continue;
        }
        if (t->over)
            t->used = 0;
        t->over = false;
        if (t->used < sizeof(t->line) - 1)
            t->line[t->used++] = bytes[i] ? bytes[i] : '?';
    }
    t->line[t->used] = '\0';
}

/* Until the program has ended; it is ended when time is up or nobody wants to know any more. */
static int listen_to(const struct remus_arbiter *a, pid_t pid, int fd, unsigned int timeout_ms,
                     struct tail *tail, int *status)
{
    uint64_t deadline = remus_now_ms() + timeout_ms;
    bool ended = false, silent = false;
    char bytes[256];
    int rc = 0;

    while (!ended) {
        struct pollfd p = {.fd = silent ? -1 : fd, .events = POLLIN};
        pid_t r;

        (void)poll(&p, 1, POLL_MS);
        r = waitpid(pid, status, WNOHANG);
        ended = r == pid || (r < 0 && errno != EINTR);
        if (r < 0 && ended)
            rc = -errno;            /* whatever it said, nobody knows */
        if (!ended && !rc) {
            if (a->give_up && a->give_up(a->arg))
                rc = -ECANCELED;
            else if (timeout_ms && remus_now_ms() >= deadline)
                rc = -ETIME;
            if (rc)
                kill(-pid, SIGKILL);
        }
        for (;;) {
            ssize_t n = read(fd, bytes, sizeof(bytes));

            if (n > 0)
                tail_add(tail, bytes, (size_t)n);
            else if (n < 0 && errno == EINTR)
                continue;
            else
                silent = n == 0;
            if (n <= 0)
                break;
        }
    }
    return rc;
}

int remus_arbiter_run(const struct remus_arbiter *a, const char *word, unsigned int timeout_ms,
                      char *said)
{
    const char *colon = strchr(a->spec, ':');
    int name = colon ? (int)(colon - a->spec) : (int)strlen(a->spec);
    int out[2] = {-1, -1}, status = 0, rc;
    struct tail tail = {.used = 0};
    char path[512], *env[8];
    unsigned int i;
    pid_t pid;

    said[0] = '\0';
    if (remus_arbiter_is_none(a->spec))
        return 0;
    rc = environment(a, colon ? colon + 1 : "", env);
    if (rc)
        goto out;
    if (snprintf(path, sizeof(path), "%s/arbiter-%.*s", a->libexec, name, a->spec) >=
        (int)sizeof(path)) {
        rc = -ENAMETOOLONG;
        goto out;
    }
    /* Our end alone: a program whose output does not block fails when it says much at once. */
    if (pipe2(out, O_CLOEXEC) || fcntl(out[0], F_SETFL, O_NONBLOCK)) {
        rc = -errno;
        goto out;
    }
    rc = spawn(path, word, env, out[1], &pid);
    if (rc) {
        snprintf(said, REMUS_ARBITER_SAID, "%.100s: %s", path, strerror(-rc));
        goto out;
    }
    close(out[1]);
    out[1] = -1;
    rc = listen_to(a, pid, out[0], timeout_ms, &tail, &status);
    remus_text_clean(said, REMUS_ARBITER_SAID, tail.line);
    if (rc)
        goto out;
    if (WIFEXITED(status) && WEXITSTATUS(status) <= 1)
        rc = WEXITSTATUS(status);
    else
        rc = -EREMOTEIO;
    if (rc < 0 && !said[0])
        snprintf(said, REMUS_ARBITER_SAID, "%s %d", WIFSIGNALED(status) ? "signal" : "status",
                 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
out:
    for (i = 0; i < 2; i++)
        if (out[i] >= 0)
            close(out[i]);
    for (i = 0; i < 8; i++)
        free(env[i]);
    return rc;
}
