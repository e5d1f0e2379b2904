/* options.h: the command line of xl remus, parsed into plain data. */
#ifndef XL_OPTIONS_H
#define XL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/remus/bypass.h"

#define OPTIONS_ERROR_BYTES 320u
#define OPTIONS_FILE_WORDS  128 /* of the file */

struct remus_options {
    const char *domain, *host;
    const char *mode;               /* name of a row of the mode table */
    uint32_t period_ms, rest_ms, heartbeat_ms, timeout_ms, deadline_ms; /* 0: default */
    uint32_t sync_kib;              /* a second; 0: as fast as it goes */
    uint32_t map_cache_mib;         /* 0: the whole guest */
    bool no_net, no_disk, unsafe;
    bool blackhole;                 /* no copy: to see what protection would cost */
    bool plain;                     /* the data is not encrypted */
    bool compress;                  /* the guest's memory, with LZ4 */
    bool verify, json, quiet, verbose;
    bool help, release;
    struct remus_bypass bypass[REMUS_BYPASS_MAX]; /* traffic that is not protected */
    unsigned int bypass_count;
    const char *ssh;                /* "ssh" unless -s */
    const char *receive_command;    /* what ssh runs on HOST */
    const char *libexec;            /* NULL: found */
    const char *arbiter;            /* remus_arbiter.h; "none" unless --arbiter */
    const char *reprotect;          /* where the copy's copy goes after a takeover; NULL: nowhere */
    bool keep_trying;
    bool catch_up;                  /* colo-blkd serves the disks on after the end */
    char data_address[256];         /* "": HOST's */
    uint16_t data_port;             /* 0: any */
    char heartbeat_address[256];    /* HOST's on a second network; "": there is none */
    uint16_t heartbeat_port;        /* 0: any */
};

/*
 * Puts the options of a file (an option a line, its value behind a blank; '#' begins a comment) in
 * front of those given, so that those count where both say something.  A file that is not there has
 * none.  0: *out_argc and *out_argv (never freed) are what remus_options_parse takes.  -EINVAL with
 * a sentence in error.
 */
int remus_options_defaults(const char *path, int argc, char **argv, int *out_argc, char ***out_argv,
                           char *error);

/*
 * The options of a session as words, for another one of the same kind: all but what is shown, how
 * HOST is reached, --reprotect and --keep-trying.  add is called with each.
 */
void remus_options_words(const struct remus_options *o, void (*add)(void *arg, const char *word),
                         void *arg);
/* Whether o holds nothing else than what remus_options_words tells. */
bool remus_options_only_words(const struct remus_options *o);

/* 0; -EINVAL with a sentence in error[OPTIONS_ERROR_BYTES].  Strings point into argv. */
int remus_options_parse(int argc, char **argv, struct remus_options *o, char *error);
extern const char remus_options_help[];

#endif /* XL_OPTIONS_H */
