#include "tools/libxl/remus_arbiter.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#define NAME_BYTES 32u

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

/* What is ours, and of this process's what a program needs to find others. */
static int environment(const struct remus_arbiter *a, const char *arg, char **env)
{
    int rc = remus_program_variable(env, "REMUS_ARG", arg);

    if (!rc)
        rc = remus_program_variable(env, "REMUS_SESSION", a->session);
    if (!rc)
        rc = remus_program_variable(env, "REMUS_ROLE",
                                    a->role == REMUS_PRIMARY ? "primary" : "secondary");
    if (!rc)
        rc = remus_program_variable(env, "REMUS_DOMAIN", a->domain);
    if (!rc)
        rc = remus_program_variable(env, "REMUS_PEER", a->peer);
    return rc ? rc : remus_program_path(env);
}

int remus_arbiter_run(const struct remus_arbiter *a, const char *word, unsigned int timeout_ms,
                      char *said)
{
    const char *colon = strchr(a->spec, ':');
    int name = colon ? (int)(colon - a->spec) : (int)strlen(a->spec), status, rc;
    char path[512], *env[REMUS_PROGRAM_ENV] = {NULL};
    struct remus_program program = {
        .path = path, .word = word, .env = env, .timeout_ms = timeout_ms, .give_up = a->give_up,
        .arg = a->arg,
    };

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
    rc = remus_program_run(&program, &status, said);
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
    remus_program_forget(env);
    return rc;
}
