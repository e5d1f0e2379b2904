/*
 * metrics.c: see metrics.h.  The file opens with the table of what is exported; a family's lines
 * stand together, as the format wants it.
 */
#include "tools/xl/metrics.h"

#include <stdint.h>
#include <string.h>

#include "tools/libxl/remus_message.h"
#include "tools/xl/display.h"

/* Powers of ten in which a record counts what is exported in seconds. */
#define AS_IS 0u
#define MS    3u
#define US    6u

/* Lists of a record, by what tells their entries apart. */
enum list { NO_LIST, VIFS, CLASSES, DISKS, CAUSES };

static const struct {
    const char *key;
    const char *label[2];   /* fields of an entry that are labels */
} lists[] = {
    [VIFS] = {"vifs", {"vif"}},
    [CLASSES] = {"classes", {"vif", "class"}},
    [DISKS] = {"disks", {"vdev"}},
    [CAUSES] = {"causes", {"vif", "flow"}},
};

#define SERIES_MAX 5u
#define ONE(field) {{field, NULL, NULL}}
static const struct family {
    const char *name, *type, *help;
    enum list list;
    unsigned int scale;
    struct {
        const char *field;  /* of the record, or of the list's entry */
        const char *label, *value; /* NULL: none */
    } series[SERIES_MAX];
} families[] = {
    {"epoch", "gauge", "Number of the running epoch.", NO_LIST, AS_IS, ONE("epoch")},
    {"epoch_age_seconds", "gauge", "For how long the running epoch has run.", NO_LIST, MS,
     ONE("epoch_age_ms")},
    {"checkpoint_lag_seconds", "gauge", "Age of the newest acknowledged checkpoint.", NO_LIST, MS,
     ONE("lag_ms")},
    {"checkpoints_total", "counter", "Checkpoints acknowledged (applied, on the copy's host).",
     NO_LIST, AS_IS, ONE("checkpoints")},
    {"checkpoints_requested_total", "counter", "Checkpoints that output asked for, by reason.",
     NO_LIST, AS_IS,
     {{"requested.diverged", "reason", "diverged"}, {"requested.deadline", "reason", "deadline"},
      {"requested.uncomparable", "reason", "uncomparable"}, {"requested.queue", "reason", "queue"},
      {"requested.output", "reason", "output"}}},
    {"dirty_pages", "gauge", "Pages in the newest checkpoint.", NO_LIST, AS_IS, ONE("dirty_pages")},
    {"epoch_bytes", "gauge", "Bytes sent for the newest checkpoint.", NO_LIST, AS_IS,
     ONE("epoch_bytes")},
    {"pause_seconds", "gauge", "For how long checkpoints stop the guest: the newest one, median "
     "and longest.", NO_LIST, US,
     {{"pause_us", "which", "newest"}, {"pause_us_median", "which", "median"},
      {"pause_us_max", "which", "longest"}}},
    {"acknowledge_seconds", "gauge", "From sending to acknowledgement of the newest checkpoint.",
     NO_LIST, US, ONE("ack_us")},
    {"apply_seconds", "gauge", "For how long the newest checkpoint stopped the copy.", NO_LIST, US,
     ONE("apply_us")},
    {"rolled_back_pages", "gauge", "Pages of the copy's own that the newest checkpoint undid.",
     NO_LIST, AS_IS, ONE("rolled_back")},
    {"verified_epochs_total", "counter", "Epochs whose pages were compared (--verify).", NO_LIST,
     AS_IS, ONE("verify_epochs")},
    {"verify_bad_pages_total", "counter", "Pages that differed then.", NO_LIST, AS_IS,
     ONE("verify_bad")},
    {"held_packets", "gauge", "Output that waits.", NO_LIST, AS_IS, ONE("held_packets")},
    {"output_delay_seconds", "gauge", "For how long output was held: mean and longest.", NO_LIST,
     US, {{"output_delay_us", "which", "mean"}, {"output_delay_us_max", "which", "longest"}}},
    {"copy_output_lag_seconds", "gauge", "Smoothed time from the guest's output to the copy's.",
     NO_LIST, US, ONE("net.lag_us")},
    {"failover_seconds", "gauge", "From the last sign of life to open output (0: no takeover).",
     NO_LIST, MS, ONE("failover_ms")},
    {"failover_part_seconds", "gauge", "Its parts, one after the other.", NO_LIST, MS,
     {{"failover.silence_ms", "part", "silence"}, {"failover.arbiter_ms", "part", "arbiter"},
      {"failover.guest_ms", "part", "guest"}, {"failover.disks_ms", "part", "disks"},
      {"failover.network_ms", "part", "network"}}},
    {"released_packets_total", "counter", "Output that left, by what made it safe.", NO_LIST,
     AS_IS, {{"net.released_equal", "by", "comparison"}, {"net.released_epoch", "by", "epoch"}}},
    {"dropped_packets_total", "counter", "The copy's output of older epochs, and other frames.",
     NO_LIST, AS_IS, {{"net.dropped_old", "what", "old"}, {"net.dropped_other", "what", "other"}}},
    {"initial_copy_pages", "gauge", "Pages of the initial copy's pass: done and all.", NO_LIST,
     AS_IS, {{"copy.pages_done", "which", "done"}, {"copy.pages_total", "which", "all"}}},
    {"initial_copy_seconds", "gauge", "How long the initial copy took (0: not done).", NO_LIST, MS,
     ONE("copy.ms")},
    {"record_timestamp_seconds", "gauge", "When these figures were written, since 1970.", NO_LIST,
     AS_IS, ONE("time")},

    {"vif_packets_total", "counter", "Frames of an interface.", VIFS, AS_IS,
     {{"input_packets", "direction", "in"}, {"output_packets", "direction", "out"}}},
    {"vif_bytes_total", "counter", "Bytes of an interface.", VIFS, AS_IS,
     {{"input_bytes", "direction", "in"}, {"output_bytes", "direction", "out"}}},
    {"vif_held_packets", "gauge", "Output of an interface that waits.", VIFS, AS_IS, ONE("held")},
    {"vif_flows", "gauge", "TCP connections that are known.", VIFS, AS_IS, ONE("flows")},
    {"vif_dropped_packets_total", "counter", "Frames dropped for want of room.", VIFS, AS_IS,
     ONE("dropped")},
    {"class_packets_total", "counter", "Output of either guest, by class of traffic.", CLASSES,
     AS_IS, {{"primary", "guest", "primary"}, {"secondary", "guest", "secondary"}}},
    {"class_released_packets_total", "counter", "Output that left, by class of traffic and what "
     "made it safe.", CLASSES, AS_IS,
     {{"released_equal", "by", "comparison"}, {"released_epoch", "by", "epoch"}}},
    {"class_delay_seconds_total", "counter", "Time for which released output had been held.",
     CLASSES, US, ONE("delay_us_sum")},
    {"cause_checkpoints_total", "counter", "Checkpoints that a service's output asked for (words "
     "as for --bypass), by reason.", CAUSES, AS_IS,
     {{"diverged", "reason", "diverged"}, {"deadline", "reason", "deadline"},
      {"uncomparable", "reason", "uncomparable"}, {"queue", "reason", "queue"},
      {"output", "reason", "output"}}},
    {"disk_size_bytes", "gauge", "Size of a disk.", DISKS, AS_IS, ONE("bytes")},
    {"disk_requests_total", "counter", "Requests of the guest.", DISKS, AS_IS,
     {{"reads", "kind", "read"}, {"writes", "kind", "write"}, {"flushes", "kind", "flush"},
      {"discards", "kind", "discard"}}},
    {"disk_bytes_total", "counter", "Bytes that the guest read and wrote.", DISKS, AS_IS,
     {{"read_bytes", "kind", "read"}, {"written_bytes", "kind", "write"}}},
    {"disk_errors_total", "counter", "Requests answered with an error: their own, the disk's.",
     DISKS, AS_IS, {{"bad", "kind", "bad"}, {"errors", "kind", "disk"}}},
    {"disk_delay_seconds_total", "counter", "Time that requests took.", DISKS, US,
     ONE("delay_us_sum")},
    {"disk_sent_bytes_total", "counter", "Of the guest's writes, sent to the other host.", DISKS,
     AS_IS, ONE("sent_bytes")},
    {"disk_synchronised_bytes", "gauge", "Of the first synchronisation: compared, and sent "
     "because it differed.", DISKS, AS_IS,
     {{"sync_done_bytes", "which", "compared"}, {"sync_sent_bytes", "which", "sent"}}},
    {"disk_waiting_bytes", "gauge", "Not on the copy's disk yet: its own writes, the primary's.",
     DISKS, AS_IS, {{"overlay_bytes", "whose", "copy"}, {"waiting_bytes", "whose", "primary"}}},
};

#define PREFIX "xen_remus_"

static void print_head(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", name, help, name, type);
}

/* The format knows three escapes in a label's value. */
static void print_label(FILE *out, const char *name, const char *value)
{
    fprintf(out, "%s=\"", name);
    for (; *value; value++)
        if (*value == '\n')
            fputs("\\n", out);
        else if (*value == '"' || *value == '\\')
            fprintf(out, "\\%c", *value);
        else
            fputc(*value, out);
    fputc('"', out);
}

/* Name and the labels that every series has; the caller closes the brace. */
static void print_series(FILE *out, const char *name, const struct metrics_session *s)
{
    fprintf(out, PREFIX "%s{", name);
    print_label(out, "domain", s->domain);
    fputc(',', out);
    print_label(out, "peer", s->peer);
    fputc(',', out);
    print_label(out, "role", s->role);
}

/* Exact: a double would round large counters. */
static void print_value(FILE *out, uint64_t value, unsigned int scale)
{
    uint64_t unit = 1;
    unsigned int i;

    for (i = 0; i < scale; i++)
        unit *= 10;
    if (scale)
        fprintf(out, "} %llu.%0*llu\n", (unsigned long long)(value / unit), (int)scale,
                (unsigned long long)(value % unit));
    else
        fprintf(out, "} %llu\n", (unsigned long long)value);
}

static void print_entry_labels(FILE *out, const struct remus_message *m, enum list list, size_t i)
{
    unsigned int k;

    for (k = 0; k < 2 && lists[list].label[k]; k++) {
        const char *name = lists[list].label[k];
        const char *value = remus_message_item(m, lists[list].key, i, name);
        char disk[24];

        if (list == DISKS) {
            display_disk(disk, sizeof(disk),
                         remus_message_item_number(m, lists[list].key, i, name));
            name = "disk";
            value = disk;
        }
        fputc(',', out);
        print_label(out, name, value ? value : "");
    }
}

/* Two series with the same labels would make all of the text invalid. */
static bool entry_is_new(const struct remus_message *m, enum list list, size_t i)
{
    size_t before;

    for (before = 0; before < i; before++) {
        bool same = true;
        unsigned int k;

        for (k = 0; k < 2 && lists[list].label[k]; k++) {
            const char *name = lists[list].label[k];
            const char *a = remus_message_item(m, lists[list].key, i, name);
            const char *b = remus_message_item(m, lists[list].key, before, name);

            same = same && !strcmp(a ? a : "", b ? b : "") &&
                   remus_message_item_number(m, lists[list].key, i, name) ==
                       remus_message_item_number(m, lists[list].key, before, name);
        }
        if (same)
            return false;
    }
    return true;
}

static void print_family(FILE *out, const struct family *f, const struct metrics_session *s)
{
    size_t entries, i;
    unsigned int k;

    entries = f->list == NO_LIST ? 1 : remus_message_count(s->record, lists[f->list].key);
    for (i = 0; i < entries; i++) {
        if (f->list != NO_LIST && !entry_is_new(s->record, f->list, i))
            continue;
        for (k = 0; k < SERIES_MAX && f->series[k].field; k++) {
            uint64_t value = 0;

            if (f->list != NO_LIST)
                value = remus_message_item_number(s->record, lists[f->list].key, i,
                                                  f->series[k].field);
            else if (!remus_message_number(s->record, f->series[k].field, INT64_MAX, &value))
                continue;
            print_series(out, f->name, s);
            if (f->list != NO_LIST)
                print_entry_labels(out, s->record, f->list, i);
            if (f->series[k].label) {
                fputc(',', out);
                print_label(out, f->series[k].label, f->series[k].value);
            }
            print_value(out, value, f->scale);
        }
    }
}

static bool same_labels(const struct metrics_session *a, const struct metrics_session *b)
{
    return !strcmp(a->domain, b->domain) && !strcmp(a->peer, b->peer) && !strcmp(a->role, b->role);
}

static bool is_told(const struct metrics_session *list, unsigned int count, unsigned int i)
{
    unsigned int k;

    for (k = 0; k < count; k++)
        if (k != i && same_labels(&list[k], &list[i]) &&
            (list[k].live > list[i].live || (list[k].live == list[i].live && k < i)))
            return false;
    return true;
}

/* "unprotected", "degraded", "ok" */
static uint64_t health_of(const struct metrics_session *s)
{
    const char *text = s->record ? remus_message_string(s->record, "health") : NULL;

    return !text || !s->live ? 0 : !strcmp(text, "ok") ? 2 : !strcmp(text, "degraded");
}

static void print_always(FILE *out, const struct metrics_session *list, unsigned int count)
{
    unsigned int i;

    print_head(out, "session", "gauge", "A session of this host, and what it does; always 1.");
    for (i = 0; i < count; i++) {
        const char *running = list[i].record ? remus_message_string(list[i].record, "running_mode")
                                             : NULL;

        if (!is_told(list, count, i))
            continue;
        print_series(out, "session", &list[i]);
        fputc(',', out);
        print_label(out, "mode", list[i].mode);
        fputc(',', out);
        print_label(out, "running_mode", running ? running : list[i].mode);
        fputc(',', out);
        print_label(out, "state", list[i].live ? list[i].state : "no process");
        print_value(out, 1, AS_IS);
    }
    print_head(out, "live", "gauge", "1: the session's processes run.");
    for (i = 0; i < count; i++)
        if (is_told(list, count, i)) {
            print_series(out, "live", &list[i]);
            print_value(out, list[i].live, AS_IS);
        }
    print_head(out, "protected", "gauge", "1: the copy could take over now.");
    for (i = 0; i < count; i++)
        if (is_told(list, count, i)) {
            print_series(out, "protected", &list[i]);
            print_value(out, list[i].live && list[i].record &&
                        remus_message_flag(list[i].record, "protected", false), AS_IS);
        }
    print_head(out, "health", "gauge", "2: ok, 1: degraded, 0: unprotected.");
    for (i = 0; i < count; i++)
        if (is_told(list, count, i)) {
            print_series(out, "health", &list[i]);
            print_value(out, health_of(&list[i]), AS_IS);
        }
}

void metrics_print(FILE *out, const struct metrics_session *list, unsigned int count)
{
    const struct family *f;
    unsigned int i;

    print_always(out, list, count);
    for (f = families; f < families + sizeof(families) / sizeof(families[0]); f++) {
        print_head(out, f->name, f->type, f->help);
        for (i = 0; i < count; i++)
            if (list[i].record && is_told(list, count, i))
                print_family(out, f, &list[i]);
    }
}
