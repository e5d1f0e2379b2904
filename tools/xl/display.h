/*
 * display.h: what the operator sees of a session.
 *
 * On a terminal a bar for the initial copy, then one live line; elsewhere a plain line now and
 * then; with JSON one object per line.  Messages never tear the live line.  Formatting is done by
 * pure functions, so that it can be tested.
 */
#ifndef XL_DISPLAY_H
#define XL_DISPLAY_H

#include <stdbool.h>
#include <stdio.h>

#include "tools/libxl/remus_session.h"

#define DISPLAY_LINE_BYTES   512u
#define DISPLAY_PLAIN_MS     10000u /* between two plain lines when nothing changes */
#define DISPLAY_LIVE_MS      200u   /* between two redraws of the live line */

struct remus_object;

struct display {
    FILE *out;                  /* status; messages that are errors go to err */
    FILE *err;
    bool json, quiet, verbose, terminal;
    unsigned int columns;       /* of the terminal */
    bool live;                  /* the cursor stands on the live line */
    uint64_t copy_began_ms;     /* when a copy was first seen under way; 0: not yet */
    uint64_t shown_ms;          /* when the last status was shown */
    enum remus_state shown_state;
    bool shown_any, shown_protected;
};

/* Finds out whether out is a terminal and how wide. */
void display_init(struct display *d, FILE *out, FILE *err, bool json, bool quiet, bool verbose);
/* Shows it when it is time to (now_ms: any steady clock); never blocks the caller for long. */
void display_status(struct display *d, uint64_t now_ms, const struct remus_status *s);
/* One sentence. from: host it comes from, NULL for this one. */
void display_message(struct display *d, enum xc_sr_level level, const char *from,
                     const char *text);
/* The end of the session; code is the exit status. */
void display_end(struct display *d, int code, const char *end, const char *reason,
                 const struct remus_status *last);
/* Leaves the live line, so that others may write. */
void display_pause(struct display *d);

/* ---- Pure ---- */

/* "web1: [=====>    ]  42 %  pass 1  108.3 MiB/s  0:07 left"; copy_ms: how long it has been under
 * way. */
void display_bar(char *out, size_t room, unsigned int columns, const struct remus_status *s,
                 uint64_t copy_ms);
/* The live line, cut to columns. */
void display_live(char *out, size_t room, unsigned int columns, const struct remus_status *s,
                  uint64_t copy_ms);
/* "512 B", "3.4 KiB", "1.2 GiB" */
void display_bytes(char *out, size_t room, uint64_t bytes);
/* "840 us", "3.2 ms", "12 ms", "4.1 s" */
void display_us(char *out, size_t room, uint64_t us);
/* "xvda", "xvdb1"; the number itself if it is another kind of disk. */
void display_disk(char *out, size_t room, uint64_t vdev);
/* What an operator calls a state. */
const char *display_state(const struct remus_status *s);
const char *display_end_name(enum remus_end end);

/* The fields of a status, into an object that the caller began. */
void display_status_fields(struct remus_object *o, const struct remus_status *s);

#endif /* XL_DISPLAY_H */
