/* cmd_decide.c: xl remus-decide, an operator's answer to the arbiter `manual`. */
#include "tools/xl/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xenstore.h>

#include "xen/include/public/remus.h"

static const char usage[] =
    "Usage: xl remus-decide DOMAIN go-on|stop\n"
    "\n"
    "Answers a session of `xl remus --arbiter manual` that has lost the other host, on the\n"
    "host where it waits: go-on lets the guest here have its network, stop destroys it here.\n"
    "Of the two hosts only one may be told to go on: make sure that the other one is off, or\n"
    "tell it to stop first.\n";

/*
 * Tells every session that waits for a decision about this guest: one that died may have left its
 * node.  How many there were; -1: one could not be told.
 */
static int tell_sessions(struct xs_handle *xs, const char *domain, const char *decision)
{
    unsigned int count = 0, i;
    char **sessions = xs_directory(xs, XBT_NULL, REMUS_XS_SESSIONS, &count);
    int told = 0;

    for (i = 0; sessions && i < count && told >= 0; i++) {
        char path[128], *name;

        snprintf(path, sizeof(path), REMUS_XS_SESSIONS "/%.64s/domain", sessions[i]);
        name = xs_read(xs, XBT_NULL, path, NULL);
        if (name && !strcmp(name, domain)) {
            snprintf(path, sizeof(path), REMUS_XS_SESSIONS "/%.64s/decision", sessions[i]);
            told = xs_write(xs, XBT_NULL, path, decision, (unsigned int)strlen(decision))
                   ? told + 1 : -1;
        }
        free(name);
    }
    free(sessions);
    return told;
}

static int decide(const char *domain, const char *decision)
{
    struct xs_handle *xs = xs_open(0);
    int code = XL_REFUSED, told;

    if (!xs) {
        fprintf(stderr, "xl remus-decide: xenstore does not open: %s\n", strerror(errno));
        return code;
    }
    told = tell_sessions(xs, domain, decision);
    if (!told) {
        fprintf(stderr, "xl remus-decide: nobody waits for a decision about %s on this host (see: "
                        "xl remus-status)\n", domain);
        goto out;
    }
    if (told < 0) {
        fprintf(stderr, "xl remus-decide: xenstore cannot be written: %s\n", strerror(errno));
        goto out;
    }
    printf("%s: told to %s\n", domain, strcmp(decision, "stop") ? "go on here" : "stop here");
    code = XL_ENDED;
out:
    xs_close(xs);
    return code;
}

int cmd_remus_decide(int argc, char **argv)
{
    if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        fputs(usage, stdout);
        return XL_ENDED;
    }
    if (argc != 3 || !argv[1][0] || (strcmp(argv[2], "go-on") && strcmp(argv[2], "stop"))) {
        fprintf(stderr, "xl remus-decide: name a DOMAIN, and go-on or stop\n%s", usage);
        return XL_USAGE;
    }
    return decide(argv[1], argv[2]);
}
