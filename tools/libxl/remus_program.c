#include "tools/libxl/remus_program.h"

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

#define POLL_MS     100
#define DRAIN_READS 256u
#define VALUE_BYTES 512u

static int add(char **env, const char *name, const char *value)
{
    unsigned int i;

    for (i = 0; env[i]; i++)
        ;
    if (i + 1 >= REMUS_PROGRAM_ENV)
        return -E2BIG;
    if (asprintf(&env[i], "%s=%s", name, value) >= 0)
        return 0;
    env[i] = NULL;
    return -ENOMEM;
}

int remus_program_variable(char **env, const char *name, const char *value)
{
    char clean[VALUE_BYTES];

    remus_text_clean(clean, sizeof(clean), value);
    return add(env, name, clean);
}

int remus_program_path(char **env)
{
    const char *path = getenv("PATH");

    return add(env, "PATH", path ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
}

void remus_program_forget(char **env)
{
    unsigned int i;

    for (i = 0; i < REMUS_PROGRAM_ENV; i++) {
        free(env[i]);
        env[i] = NULL;
    }
}

static int spawn(const struct remus_program *p, int out_fd, pid_t *pid)
{
    char *args[] = {(char *)(uintptr_t)p->path, (char *)(uintptr_t)p->word, NULL};
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
    rc = posix_spawn(pid, p->path, &files, &attributes, args, p->env);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return -rc;
}

/* Keeps the last line of what comes, the one under way included. */
struct tail {
    const struct remus_program *p;
    char line[REMUS_PROGRAM_LINE];
    size_t used;
    bool over;                      /* the line has ended; the next byte begins another */
    bool told;
};

static void tail_end(struct tail *t)
{
    char clean[REMUS_PROGRAM_LINE];

    t->over = true;
    if (t->told || !t->used)
        return;
    t->told = true;
    if (t->p->line) {
        remus_text_clean(clean, sizeof(clean), t->line);
        t->p->line(t->p->arg, clean);
    }
}

static void tail_add(struct tail *t, const char *bytes, size_t count)
{
    size_t i;

    for (i = 0; i < count; i++) {
        if (bytes[i] == '\n' || bytes[i] == '\r') {
            tail_end(t);
            continue;
        }
        if (t->over)
            t->used = 0;
        t->over = t->told = false;
        if (t->used < sizeof(t->line) - 1)
            t->line[t->used++] = bytes[i] ? bytes[i] : '?';
        t->line[t->used] = '\0';
    }
}

/* What is there, but for one that prints faster than it is read: its time is looked at as well. */
static void drain(int fd, struct tail *tail, bool *silent)
{
    unsigned int reads;
    char bytes[1024];
    ssize_t n;

    for (reads = 0; reads < DRAIN_READS; reads++) {
        n = read(fd, bytes, sizeof(bytes));
        if (n > 0) {
            tail_add(tail, bytes, (size_t)n);
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        *silent = n == 0;
        return;
    }
}

/* Its number is its own until it is waited for, and so is its group's. */
static bool has_ended(pid_t pid)
{
    siginfo_t info = {.si_pid = 0};
    int r = waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT);

    return r < 0 ? errno != EINTR : info.si_pid == pid;
}

/* Until the program has ended; it is ended when time is up or nobody wants to know any more. */
static int listen_to(const struct remus_program *p, pid_t pid, int fd, struct tail *tail,
                     int *status)
{
    uint64_t deadline = remus_now_ms() + p->timeout_ms;
    bool ended = false, silent = false;
    int rc = 0;

    while (!ended) {
        struct pollfd in = {.fd = silent ? -1 : fd, .events = POLLIN};

        (void)poll(&in, 1, POLL_MS);
        ended = has_ended(pid);
        if (!ended && !rc) {
            if (p->give_up && p->give_up(p->arg))
                rc = -ECANCELED;
            else if (p->timeout_ms && remus_now_ms() >= deadline)
                rc = -ETIME;
            if (rc)
                kill(-pid, SIGKILL);
        }
        drain(fd, tail, &silent);
    }
    if (p->alone || rc)
        kill(-pid, SIGKILL);
    while (waitpid(pid, status, 0) < 0)
        if (errno != EINTR)
            return rc ? rc : -errno;    /* whatever it said, nobody knows */
    return rc;
}

int remus_program_run(const struct remus_program *p, int *status, char *said)
{
    struct tail tail = {.p = p};
    int out[2] = {-1, -1}, rc;
    pid_t pid;

    said[0] = '\0';
    *status = 0;
    /* Its end of the pipe has to block: few programs expect EAGAIN. */
    if (pipe2(out, O_CLOEXEC) || fcntl(out[0], F_SETFL, O_NONBLOCK)) {
        rc = -errno;
        goto out;
    }
    rc = spawn(p, out[1], &pid);
    if (rc) {
        snprintf(said, REMUS_PROGRAM_SAID, "%.100s: %s", p->path, strerror(-rc));
        goto out;
    }
    close(out[1]);
    out[1] = -1;
    rc = listen_to(p, pid, out[0], &tail, status);
    tail_end(&tail);
    remus_text_clean(said, REMUS_PROGRAM_SAID, tail.line);
out:
    if (out[0] >= 0)
        close(out[0]);
    if (out[1] >= 0)
        close(out[1]);
    return rc;
}
