/* commands.h: the words that this xl adds to the distribution's. */
#ifndef XL_COMMANDS_H
#define XL_COMMANDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Exit statuses of xl remus and xl remus-receive (docs/man/xl-remus.1). */
enum {
    XL_ENDED = 0,           /* orderly end */
    XL_USAGE = 1,
    XL_REFUSED = 2,         /* preflight, on either host */
    XL_UNPROTECTED = 3,     /* protection was lost or could not begin; the guest runs without */
    XL_GUEST_ENDED = 4,     /* the guest shut down, rebooted or crashed by itself */
    XL_FENCED = 5,          /* the other side's copy is the guest now; the one here was stopped */
    XL_NO_PEER = 6,         /* HOST not reached, or no answer of a receiver; guest untouched */
    XL_UNDECIDED = 7,       /* worker died, HOST silent: the guest runs, its output stays fenced */
};

int cmd_remus(int argc, char **argv);
int cmd_remus_receive(int argc, char **argv);
int cmd_remus_status(int argc, char **argv);
int cmd_remus_decide(int argc, char **argv);
int cmd_remus_mode(int argc, char **argv);
int cmd_remus_stop(int argc, char **argv);
int cmd_remus_switch(int argc, char **argv);
int cmd_remus_cleanup(int argc, char **argv);

/* Removes what sessions that died have left, and says so on out (NULL: to nobody).  Whether
 * something is left. */
bool remus_clean_up(FILE *out);

/*
 * Directory of the daemons: given (--libexec), beside this program, or where they were installed.
 */
void libexec_directory(char *out, size_t room, const char *given);
/* Appends to /var/log/xen/remus-NAME.log; -1 when that cannot be. */
int open_log(const char *name, char *path, size_t room);

#endif /* XL_COMMANDS_H */
