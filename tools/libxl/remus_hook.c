#include "tools/libxl/remus_hook.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"

#define NAME_BYTES 64u

static const struct {
    const char *word;
    bool without_answer;    /* what it is taken for */
} questions[REMUS_ASK_COUNT] = {
    [REMUS_ASK_BEGIN] = {"begin", false},
    [REMUS_ASK_SWITCH] = {"switch", false},
    [REMUS_ASK_STOP] = {"stop", true},
};

struct hook {
    char name[NAME_BYTES];
    const char *wrong;      /* why it must not be run; NULL: it may be */
};

struct teller {
    remus_hook_say say;
    bool (*give_up)(void *arg);
    void *arg;
    const char *name;
    unsigned int lines;
};

__attribute__((format(printf, 3, 4)))
static void tell(struct teller *t, enum xc_sr_level level, const char *format, ...)
{
    char text[REMUS_PROGRAM_LINE + NAME_BYTES + 64];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (t->say)
        t->say(t->arg, level, text);
}

/* ---- The directory ------------------------------------------------------------------------ */

/* As for run-parts: what editors and package managers leave is none. */
static bool name_ok(const char *name)
{
    size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "0123456789-_");

    return length && length < NAME_BYTES && !name[length];
}

static bool is_gate(const char *name)
{
    return !strncmp(name, REMUS_HOOK_GATE, strlen(REMUS_HOOK_GATE));
}

/* Whoever can write it decides what root runs. */
static const char *not_ours(const struct stat *st)
{
    if (st->st_uid && st->st_uid != geteuid())
        return "does not belong to root";
    return st->st_mode & (S_IWGRP | S_IWOTH) ? "can be written by others" : NULL;
}

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct hook *)a)->name, ((const struct hook *)b)->name);
}

/* In the order of their names.  -ENOENT: there is no directory; -E2BIG: there are too many. */
static int list(const char *path, bool gates, struct hook *hooks, unsigned int *count)
{
    DIR *dir = opendir(path);
    const char *all_wrong;
    struct dirent *entry;
    struct stat st;
    int rc = 0;

    *count = 0;
    if (!dir || fstat(dirfd(dir), &st)) {
        rc = -errno;
        if (dir)
            closedir(dir);
        return rc;
    }
    all_wrong = not_ours(&st) ? "is in a directory that others can write" : NULL;
    while (!rc && (entry = readdir(dir))) {
        struct hook *h = &hooks[*count];

        if (!name_ok(entry->d_name) || is_gate(entry->d_name) != gates ||
            fstatat(dirfd(dir), entry->d_name, &st, 0) || !S_ISREG(st.st_mode) ||
            !(st.st_mode & S_IXUSR))
            continue;
        if (*count == REMUS_HOOKS_MAX) {
            rc = -E2BIG;
            break;
        }
        snprintf(h->name, sizeof(h->name), "%.*s", (int)NAME_BYTES - 1, entry->d_name);
        h->wrong = all_wrong ? all_wrong : not_ours(&st);
        (*count)++;
    }
    closedir(dir);
    qsort(hooks, *count, sizeof(hooks[0]), compare);
    return rc;
}

bool remus_hooks_present(const char *dir, bool gates)
{
    struct hook *hooks = calloc(REMUS_HOOKS_MAX, sizeof(*hooks));
    unsigned int count = 0;
    int rc = hooks ? list(dir, gates, hooks, &count) : -ENOMEM;

    free(hooks);
    return count || (rc && rc != -ENOENT);
}

/* ---- Running ------------------------------------------------------------------------------ */

static int environment(const struct remus_hook_call *c, char **env)
{
    const struct {
        const char *name, *value;
    } texts[] = {
        {"REMUS_EVENT", c->word},
        {"REMUS_DOMAIN", c->domain},
        {"REMUS_PEER", c->peer},
        {"REMUS_ROLE", c->role == REMUS_PRIMARY ? "primary" : "secondary"},
        {"REMUS_MODE", c->mode},
        {"REMUS_SESSION", c->session},
        {"REMUS_REASON", c->reason},
    };
    char number[24];
    size_t i;
    int rc = remus_program_path(env);

    for (i = 0; !rc && i < sizeof(texts) / sizeof(texts[0]); i++)
        rc = remus_program_variable(env, texts[i].name, texts[i].value ? texts[i].value : "");
    snprintf(number, sizeof(number), "%u", c->domid);
    if (!rc)
        rc = remus_program_variable(env, "REMUS_DOMID", c->domid ? number : "");
    snprintf(number, sizeof(number), "%llu", (unsigned long long)c->epoch);
    if (!rc)
        rc = remus_program_variable(env, "REMUS_EPOCH", number);
    snprintf(number, sizeof(number), "%d", c->status);
    if (!rc)
        rc = remus_program_variable(env, "REMUS_STATUS", c->status >= 0 ? number : "");
    return rc;
}

static void printed(void *arg, const char *text)
{
    struct teller *t = arg;

    if (t->lines++ < REMUS_HOOK_LINES)
        tell(t, XC_SR_DEBUG, "hook %s: %s", t->name, text);
    else if (t->lines == REMUS_HOOK_LINES + 1)
        tell(t, XC_SR_DEBUG, "hook %s prints more than is kept", t->name);
}

static bool tired(void *arg)
{
    const struct teller *t = arg;

    return t->give_up && t->give_up(t->arg);
}

/* 0: it succeeded; 1: it ended with status 1; other: it failed, how (room bytes) says in which way;
 * -ECANCELED. */
static int run_one(const struct remus_hook_call *c, const struct hook *h, char *const *env,
                   struct teller *t, unsigned int limit_ms, char *how, size_t room)
{
    char path[512], said[REMUS_PROGRAM_SAID] = "";
    struct remus_program program = {
        .path = path, .word = c->word, .env = env, .timeout_ms = limit_ms, .alone = true,
        .give_up = t->give_up ? tired : NULL, .line = printed, .arg = t,
    };
    int status, rc;

    t->name = h->name;
    t->lines = 0;
    if (h->wrong) {
        snprintf(how, room, "it %s, and is not run", h->wrong);
        return -EPERM;
    }
    if (snprintf(path, sizeof(path), "%s/%s", c->dir, h->name) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    rc = remus_program_run(&program, &status, said);
    if (rc == -ETIME)
        snprintf(how, room, "not done after %u ms, and killed", limit_ms);
    else if (rc)
        snprintf(how, room, "%s", said[0] ? said : strerror(-rc));
    else if (WIFSIGNALED(status))
        snprintf(how, room, "killed by signal %d", WTERMSIG(status));
    else if (WEXITSTATUS(status))
        snprintf(how, room, "status %d%s%s", WEXITSTATUS(status), said[0] ? ": " : "", said);
    if (rc)
        return rc;
    if (WIFEXITED(status) && WEXITSTATUS(status) <= 1) {
        if (WEXITSTATUS(status) && said[0])
            snprintf(how, room, "%s", said);
        return WEXITSTATUS(status);
    }
    return -EREMOTEIO;
}

static unsigned int limit(const struct remus_hook_call *c, uint64_t until_ms, unsigned int one_ms)
{
    uint64_t now = remus_now_ms(), left = until_ms > now ? until_ms - now : 0;

    one_ms = c->hook_ms ? c->hook_ms : one_ms;
    return left < one_ms ? (unsigned int)left : one_ms;
}

void remus_hooks_run(const struct remus_hook_call *call, remus_hook_say say, void *arg)
{
    uint64_t until = remus_now_ms() + (call->all_ms ? call->all_ms : REMUS_HOOKS_MS);
    struct teller t = {.say = say, .arg = arg};
    char *env[REMUS_PROGRAM_ENV] = {NULL}, how[REMUS_PROGRAM_SAID + 80];
    struct hook *hooks = calloc(REMUS_HOOKS_MAX, sizeof(*hooks));
    unsigned int count = 0, i;
    int rc = hooks ? list(call->dir, false, hooks, &count) : -ENOMEM;

    if (!rc && count)
        rc = environment(call, env);
    if (rc && rc != -ENOENT)
        tell(&t, XC_SR_WARN, "hooks for '%s' are not run: %s", call->word, strerror(-rc));
    for (i = 0; !rc && i < count; i++) {
        unsigned int ms = limit(call, until, REMUS_HOOK_MS);

        if (!ms) {
            tell(&t, XC_SR_WARN, "hook %s for '%s' is not run: those before it took too long",
                 hooks[i].name, call->word);
            continue;
        }
        snprintf(how, sizeof(how), "failed");
        if (run_one(call, &hooks[i], env, &t, ms, how, sizeof(how)))
            tell(&t, XC_SR_WARN, "hook %s for '%s' failed: %s", hooks[i].name, call->word, how);
    }
    remus_program_forget(env);
    free(hooks);
}

int remus_gates_ask(const struct remus_hook_call *call, enum remus_question question,
                    bool (*give_up)(void *arg), remus_hook_say say, void *arg, char *said,
                    size_t room)
{
    uint64_t until = remus_now_ms() + (call->all_ms ? call->all_ms : REMUS_GATES_MS);
    struct teller t = {.say = say, .give_up = give_up, .arg = arg};
    char *env[REMUS_PROGRAM_ENV] = {NULL}, how[REMUS_PROGRAM_SAID + 80];
    struct hook *hooks = calloc(REMUS_HOOKS_MAX, sizeof(*hooks));
    struct remus_hook_call c = *call;
    unsigned int count = 0, i;
    int rc = hooks ? list(call->dir, true, hooks, &count) : -ENOMEM;

    said[0] = '\0';
    c.word = questions[question].word;
    if (!rc && count)
        rc = environment(&c, env);
    if (rc == -ENOENT)
        rc = 0;
    /* Whatever keeps them from being asked is no answer. */
    if (rc) {
        snprintf(said, room, "the gates in %s cannot be asked: %s", call->dir, strerror(-rc));
        rc = !questions[question].without_answer;
        goto out;
    }
    for (i = 0; !rc && i < count; i++) {
        unsigned int ms = limit(&c, until, REMUS_GATE_MS);

        snprintf(how, sizeof(how), ms ? "no reason given" : "the gates before it took too long");
        rc = ms ? run_one(&c, &hooks[i], env, &t, ms, how, sizeof(how)) : -ETIME;
        if (rc == 1) {
            snprintf(said, room, "%s forbids it: %s", hooks[i].name, how);
        } else if (rc && rc != -ECANCELED) {
            snprintf(said, room, "%s gives no answer (%s), which counts as %s", hooks[i].name, how,
                     questions[question].without_answer ? "yes" : "no");
            tell(&t, XC_SR_WARN, "%s", said);
            rc = !questions[question].without_answer;
        }
    }
out:
    remus_program_forget(env);
    free(hooks);
    return rc;
}
