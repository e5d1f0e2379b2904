/*
 * cmd_status.c: xl remus-status: the sessions of this host, from their records (record.h) and, for
 * those without one, from xenstore.
 */
#include "tools/xl/commands.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <xenstore.h>

#include "tools/libxl/remus_disk.h"
#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/xl/display.h"
#include "tools/xl/metrics.h"
#include "tools/xl/record.h"

#define SESSIONS_MAX 1024u

struct session {
    uint32_t domid;
    bool live;
    char name[64], role[16], mode[16], state[32], peer[64], reason[200];
    uint64_t epoch, checkpoints, pause_us;
    char *text;             /* the record as it stands, for --json */
};

static const char usage[] =
    "Usage: xl remus-status [options] [DOMAIN]\n"
    "\n"
    "Shows the protected guests and the copies on this host.\n"
    "\n"
    "      --json         one JSON object per line\n"
    "      --prometheus   metrics in Prometheus' text format\n"
    "  -w, --watch        again each second\n"
    "  -h, --help         this text\n"
    "\n"
    "Exit status: 0, 1 usage, 2 DOMAIN has no live session.\n";

static void take(char *out, size_t room, const char *text)
{
    remus_text_clean(out, room, text ? text : "");
}

/* Whether somebody holds the session's lock. */
static bool lock_held(uint32_t domid)
{
    char path[64];
    bool held;
    int fd;

    snprintf(path, sizeof(path), REMUS_RUN_DIR "/%u.lock", domid);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return false;
    held = flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    close(fd);
    return held;
}

static int read_record(uint32_t domid, struct session *s)
{
    struct remus_message *m = NULL;
    char path[64], *text;
    ssize_t n = -1;
    int fd;

    snprintf(path, sizeof(path), REMUS_RUN_DIR "/%u.json", domid);
    text = malloc(RECORD_BYTES_MAX + 1);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && text)
        n = read(fd, text, RECORD_BYTES_MAX);
    if (fd >= 0)
        close(fd);
    if (n <= 0 || text[n - 1] != '\n' || remus_message_parse(&m, text, (size_t)n - 1)) {
        free(text);
        return -EBADMSG;
    }
    text[n - 1] = '\0';
    memset(s, 0, sizeof(*s));
    s->domid = domid;
    s->live = lock_held(domid);
    take(s->name, sizeof(s->name), remus_message_string(m, "domain"));
    take(s->role, sizeof(s->role), remus_message_string(m, "role"));
    take(s->mode, sizeof(s->mode), remus_message_string(m, "mode"));
    take(s->state, sizeof(s->state), remus_message_string(m, "state"));
    take(s->peer, sizeof(s->peer), remus_message_string(m, "peer"));
    take(s->reason, sizeof(s->reason), remus_message_string(m, "reason"));
    (void)remus_message_number(m, "epoch", INT64_MAX, &s->epoch);
    (void)remus_message_number(m, "checkpoints", INT64_MAX, &s->checkpoints);
    (void)remus_message_number(m, "pause_us_median", INT64_MAX, &s->pause_us);
    s->text = text;
    remus_message_free(m);
    return 0;
}

static bool is_known(uint32_t domid, char **domids, unsigned int domains)
{
    unsigned int i;

    for (i = 0; i < domains; i++)
        if (strtoul(domids[i], NULL, 10) == domid)
            return true;
    return false;
}

/* Reads what sessions recorded, and drops what killed ones recorded of domains that are gone since.
 * domids: the domains in xenstore, NULL when it cannot be asked. */
static unsigned int read_records(struct session *list, char **domids, unsigned int domains)
{
    DIR *dir = opendir(REMUS_RUN_DIR);
    struct dirent *entry;
    unsigned int count = 0, domid;
    int used;

    if (!dir)
        return 0;
    while (count < SESSIONS_MAX && (entry = readdir(dir))) {
        if (sscanf(entry->d_name, "%u.json%n", &domid, &used) != 1 || entry->d_name[used] ||
            strcmp(entry->d_name + used - 5, ".json"))
            continue;
        if (domids && !is_known(domid, domids, domains) && !lock_held(domid))
            record_remove(domid);
        else if (!read_record(domid, &list[count]))
            count++;
    }
    closedir(dir);
    return count;
}

static void read_node(struct xs_handle *xs, uint32_t domid, const char *leaf, char *out,
                      size_t room)
{
    char path[96], *text;

    snprintf(path, sizeof(path), "/local/domain/%u/%s", domid, leaf);
    text = xs_read(xs, XBT_NULL, path, NULL);
    take(out, room, text);
    free(text);
}

static unsigned int read_sessions(struct session *list)
{
    struct xs_handle *xs = xs_open(0);
    unsigned int domains = 0, i, known, k, count;
    char **names = NULL, text[32];

    if (xs)
        names = xs_directory(xs, XBT_NULL, "/local/domain", &domains);
    count = known = read_records(list, names, domains);
    for (i = 0; names && i < domains && count < SESSIONS_MAX; i++) {
        struct session *s = &list[count];
        uint32_t domid = (uint32_t)strtoul(names[i], NULL, 10);

        for (k = 0; k < known && list[k].domid != domid; k++)
            ;
        if (k < known)
            continue;
        memset(s, 0, sizeof(*s));
        s->domid = domid;
        read_node(xs, domid, REMUS_XS_NODE "/role", s->role, sizeof(s->role));
        /* A role without a session: its disks are minded, see print_minded(). */
        if (!s->role[0] || (!strcmp(s->role, "unprotected") && remus_disk_minder(domid)))
            continue;
        read_node(xs, domid, "name", s->name, sizeof(s->name));
        read_node(xs, domid, REMUS_XS_NODE "/mode", s->mode, sizeof(s->mode));
        read_node(xs, domid, REMUS_XS_NODE "/state", s->state, sizeof(s->state));
        read_node(xs, domid, REMUS_XS_NODE "/peer", s->peer, sizeof(s->peer));
        read_node(xs, domid, REMUS_XS_NODE "/reason", s->reason, sizeof(s->reason));
        read_node(xs, domid, REMUS_XS_NODE "/epoch", text, sizeof(text));
        s->epoch = strtoull(text, NULL, 10);
        read_node(xs, domid, REMUS_XS_NODE "/pid", text, sizeof(text));
        s->live = atoi(text) > 0 && (!kill(atoi(text), 0) || errno == EPERM);
        count++;
    }
    free(names);
    if (xs)
        xs_close(xs);
    return count;
}

static const char *item_text(const struct remus_message *m, const char *list, size_t index,
                             const char *field)
{
    const char *text = remus_message_item(m, list, index, field);

    return text ? text : "";
}

static void print_json(const struct session *s)
{
    struct remus_object *o;
    char *line;

    /* A record is an object with at least one field: "live" goes in front. */
    if (s->text) {
        printf("{\"live\":%s,%s\n", s->live ? "true" : "false", s->text + 1);
        return;
    }
    o = remus_object_new("status");
    remus_object_flag(o, "live", s->live);
    remus_object_string(o, "domain", s->name);
    remus_object_number(o, "domid", s->domid);
    remus_object_string(o, "role", s->role);
    remus_object_string(o, "mode", s->mode);
    remus_object_string(o, "state", s->state);
    remus_object_number(o, "epoch", s->epoch);
    remus_object_string(o, "peer", s->peer);
    remus_object_string(o, "reason", s->reason);
    line = remus_object_finish(o);
    if (line)
        fputs(line, stdout);
    free(line);
}

/* Figures of the traffic since protection began, and what asked for checkpoints. */
static void print_traffic(const struct remus_message *m)
{
    size_t vifs = remus_message_count(m, "vifs"), classes = remus_message_count(m, "classes");
    size_t causes = remus_message_count(m, "causes"), i;

#define VIF(name)   (unsigned long long)remus_message_item_number(m, "vifs", i, name)
#define CLASS(name) (unsigned long long)remus_message_item_number(m, "classes", i, name)
#define CAUSE(name) (unsigned long long)remus_message_item_number(m, "causes", i, name)
    if (vifs)
        printf("\n  %-12s %10s %10s %8s %8s %8s %8s\n", "Interface", "In", "Out", "Held", "Most",
               "Flows", "Dropped");
    for (i = 0; i < vifs; i++)
        printf("  %-12.12s %10llu %10llu %8llu %8llu %8llu %8llu\n", item_text(m, "vifs", i, "vif"),
               VIF("input_packets"), VIF("output_packets"), VIF("held"), VIF("held_max"),
               VIF("flows"), VIF("dropped"));
    if (classes)
        printf("\n  %-12s %-6s %10s %10s %10s %10s %10s\n", "Interface", "Class", "Primary",
               "Secondary", "Equal", "By epoch", "Delay ms");
    for (i = 0; i < classes; i++) {
        unsigned long long released = CLASS("released_equal") + CLASS("released_epoch");

        printf("  %-12.12s %-6.6s %10llu %10llu %10llu %10llu %10.1f\n",
               item_text(m, "classes", i, "vif"), item_text(m, "classes", i, "class"),
               CLASS("primary"), CLASS("secondary"), CLASS("released_equal"),
               CLASS("released_epoch"),
               released ? (double)CLASS("delay_us_sum") / (double)released / 1e3 : 0.0);
    }
    if (causes)
        printf("\n  Checkpoints because of (words as for --bypass)\n"
               "  %8s %8s %8s %8s  %s\n", "Differed", "Late", "Unlike", "Full", "Flow");
    for (i = 0; i < causes; i++)
        printf("  %8llu %8llu %8llu %8llu  %s %s\n           last: %s\n", CAUSE("diverged"),
               CAUSE("deadline"), CAUSE("uncomparable"), CAUSE("queue"),
               item_text(m, "causes", i, "vif"), item_text(m, "causes", i, "flow"),
               item_text(m, "causes", i, "last"));
#undef VIF
#undef CLASS
#undef CAUSE
}

static void print_disks(const struct remus_message *m)
{
    size_t disks = remus_message_count(m, "disks"), i;

#define DISK(name) remus_message_item_number(m, "disks", i, name)
#define MIB(name)  ((unsigned long long)DISK(name) >> 20)
    if (disks)
        printf("\n  %-12s %8s %10s %10s %8s %8s %8s %8s %8s %8s\n", "Disk", "MiB", "Reads",
               "Writes", "Errors", "Delay ms", "Compared", "Differed", "Sent", "Waiting");
    for (i = 0; i < disks; i++) {
        unsigned long long requests = DISK("reads") + DISK("writes") + DISK("flushes") +
                                      DISK("discards");
        char name[24];

        display_disk(name, sizeof(name), DISK("vdev"));
        printf("  %-12s %8llu %10llu %10llu %8llu %8.1f %8llu %8llu %8llu %8llu\n", name,
               MIB("bytes"), (unsigned long long)DISK("reads"), (unsigned long long)DISK("writes"),
               (unsigned long long)(DISK("errors") + DISK("bad")),
               requests ? (double)DISK("delay_us_sum") / (double)requests / 1e3 : 0.0,
               MIB("sync_done_bytes"), MIB("sync_sent_bytes"), MIB("sent_bytes"),
               MIB("overlay_bytes") + MIB("waiting_bytes"));
    }
#undef DISK
#undef MIB
}

static void print_details(const struct session *s)
{
    struct remus_message *m = NULL;

    if (s->reason[0])
        printf("  %s\n", s->reason);
    if (s->text && !remus_message_parse(&m, s->text, strlen(s->text))) {
        print_traffic(m);
        print_disks(m);
    }
    remus_message_free(m);
}

static void print_row(const struct session *s)
{
    printf("%-20s %5u %-11s %-7s %-17s %9llu %s\n", s->name, s->domid, s->role, s->mode,
           s->live ? s->state : "no process", (unsigned long long)s->epoch, s->peer);
}

static bool is_meant(const struct session *s, const char *domain)
{
    char domid[16];

    snprintf(domid, sizeof(domid), "%u", s->domid);
    return !domain || !strcmp(domain, s->name) || !strcmp(domain, domid);
}

/* Guests whose disks were kept when their session ended, or `domain` of them. */
static void print_minded(const char *domain)
{
    struct xs_handle *xs = xs_open(0);
    DIR *dir = opendir(REMUS_RUN_DIR);
    struct dirent *entry;

    while (dir && (entry = readdir(dir))) {
        char *end;
        struct session s = { .domid = (uint32_t)strtoul(entry->d_name, &end, 10) };

        if (end == entry->d_name || strcmp(end, ".minder") || !remus_disk_minder(s.domid))
            continue;
        if (xs)
            read_node(xs, s.domid, "name", s.name, sizeof(s.name));
        if (is_meant(&s, domain))
            printf("%s is not protected; its disks are served by colo-blkd, which notes what is "
                   "written for the next\nsession; to give them back: xl remus --release %u\n",
                   s.name, s.domid);
    }
    if (dir)
        closedir(dir);
    if (xs)
        xs_close(xs);
}

static void print_metrics(const struct session *list, unsigned int count, const char *domain)
{
    struct metrics_session *told = calloc(SESSIONS_MAX, sizeof(*told));
    struct remus_message **records = calloc(SESSIONS_MAX, sizeof(*records));
    unsigned int i, n = 0;

    for (i = 0; told && records && i < count; i++) {
        const struct session *s = &list[i];

        if (!is_meant(s, domain))
            continue;
        if (s->text)
            (void)remus_message_parse(&records[n], s->text, strlen(s->text));
        told[n] = (struct metrics_session){
            .live = s->live, .domain = s->name, .peer = s->peer, .role = s->role, .mode = s->mode,
            .state = s->state, .record = records[n],
        };
        n++;
    }
    if (told && records)
        metrics_print(stdout, told, n);
    while (n--)
        remus_message_free(records[n]);
    free(told);
    free(records);
}

enum form { FORM_TABLE, FORM_JSON, FORM_METRICS };

static int show(enum form form, const char *domain)
{
    struct session *list = calloc(SESSIONS_MAX, sizeof(*list));
    unsigned int count, i, shown = 0, live = 0;

    if (!list) {
        fprintf(stderr, "xl remus-status: out of memory\n");
        return XL_USAGE;
    }
    count = read_sessions(list);
    for (i = 0; i < count; i++) {
        const struct session *s = &list[i];

        if (!is_meant(s, domain))
            continue;
        if (form == FORM_JSON)
            print_json(s);
        if (form == FORM_TABLE) {
            if (!shown)
                printf("%-20s %5s %-11s %-7s %-17s %9s %s\n", "Name", "ID", "Role", "Mode", "State",
                       "Epoch", "Peer");
            print_row(s);
            if (domain)
                print_details(s);
        }
        shown++;
        live += s->live;
    }
    if (form == FORM_METRICS)
        print_metrics(list, count, domain);
    for (i = 0; i < count; i++)
        free(list[i].text);
    free(list);
    if (domain && !live) {
        if (form == FORM_TABLE)
            print_minded(domain);
        fprintf(stderr, shown ? "xl remus-status: the session of %s has no process any more\n"
                              : "xl remus-status: %s is not protected, and no copy, on this host\n",
                domain);
        return XL_REFUSED;
    }
    if (!shown && form == FORM_TABLE)
        puts("No guest of this host is protected, and it holds no copy.");
    if (form == FORM_TABLE)
        print_minded(domain);
    return XL_ENDED;
}

/* Until it is interrupted, or nobody reads any more.  On a terminal always in the same place. */
static int watch(enum form form, const char *domain)
{
    bool terminal = form == FORM_TABLE && isatty(STDOUT_FILENO);

    setvbuf(stdout, NULL, _IOFBF, 1u << 16);
    while (!ferror(stdout)) {
        if (terminal)
            fputs("\033[H\033[J", stdout);
        (void)show(form, domain);
        if (form == FORM_TABLE && !terminal)
            putchar('\n');
        fflush(stdout);
        sleep(1);
    }
    return XL_ENDED;
}

int cmd_remus_status(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'},
        {"prometheus", no_argument, NULL, 'p'},
        {"watch", no_argument, NULL, 'w'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    enum form form = FORM_TABLE;
    bool again = false;
    int option;

    optind = 0;
    while ((option = getopt_long(argc, argv, "hw", options, NULL)) != -1) {
        switch (option) {
        case 'j':
            form = FORM_JSON;
            break;
        case 'p':
            form = FORM_METRICS;
            break;
        case 'w':
            again = true;
            break;
        case 'h':
            fputs(usage, stdout);
            return XL_ENDED;
        default:
            fputs("Try 'xl remus-status --help'.\n", stderr);
            return XL_USAGE;
        }
    }
    if (argc - optind > 1) {
        fprintf(stderr, "xl remus-status: one DOMAIN at most\n");
        return XL_USAGE;
    }
    if (again && form == FORM_METRICS) {
        fprintf(stderr, "xl remus-status: --prometheus is for one look, not for --watch\n");
        return XL_USAGE;
    }
    return again ? watch(form, argv[optind]) : show(form, argv[optind]);
}
