/*
 * remus_program.h: running somebody else's program: an arbiter, a hook.
 *
 * It gets one word, the environment that is given and nothing else of ours: no descriptor but its
 * output, no blocked signal, a process group of its own, so that the terminal's Ctrl-C is not for
 * it and it can be ended as a whole.
 */
#ifndef REMUS_PROGRAM_H
#define REMUS_PROGRAM_H

#include <stdbool.h>
#include <stddef.h>

#define REMUS_PROGRAM_SAID  160u
#define REMUS_PROGRAM_LINE  400u    /* what of a line is kept */
#define REMUS_PROGRAM_ENV   16u     /* variables, and NULL behind them */

struct remus_program {
    const char *path, *word;
    char *const *env;               /* NULL behind the last one */
    unsigned int timeout_ms;        /* 0: without limit */
    bool alone;                     /* what it leaves behind in its group is ended with it */
    /* Asked several times a second; true ends it.  May be NULL. */
    bool (*give_up)(void *arg);
    /* Each line that it prints, fit for a terminal.  May be NULL. */
    void (*line)(void *arg, const char *text);
    void *arg;
};

/*
 * 0: it ended by itself, *status is what waitpid says; -ETIME: not within timeout_ms; -ECANCELED:
 * give_up said so (in both cases it was killed, its group with it); other negative errno: it could
 * not be started.  said[REMUS_PROGRAM_SAID]: its last line, or why it was not started.
 */
int remus_program_run(const struct remus_program *p, int *status, char *said);

/* Environments are built here: env[REMUS_PROGRAM_ENV], all NULL at first.  Control characters of
 * the value become '?'.  -E2BIG, -ENOMEM. */
int remus_program_variable(char **env, const char *name, const char *value);
/* This process's PATH, which a program needs to find others. */
int remus_program_path(char **env);
void remus_program_forget(char **env);

#endif /* REMUS_PROGRAM_H */
