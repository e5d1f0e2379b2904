/*
 * metrics.h: sessions as Prometheus' text exposition format, version 0.0.4: for node_exporter's
 * textfile collector, or whoever serves the text.
 */
#ifndef XL_METRICS_H
#define XL_METRICS_H

#include <stdbool.h>
#include <stdio.h>

struct remus_message;

struct metrics_session {
    bool live;
    const char *domain, *peer, *role, *mode, *state;
    const struct remus_message *record; /* NULL: nothing is known but the above */
};

/* Of two sessions with the same labels (one of them dead) only the one that lives is told of. */
void metrics_print(FILE *out, const struct metrics_session *list, unsigned int count);

#endif /* XL_METRICS_H */
