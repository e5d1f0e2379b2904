/*
 * cmd_stop.c: what operators ask of sessions of this host: xl remus-stop, xl remus-switch, xl
 * remus-mode, and xl remus-cleanup for what sessions that died left behind.
 */
#include "tools/xl/commands.h"

#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <xenstore.h>

#include "tools/libxl/remus_guest.h"
#include "tools/libxl/remus_hook.h"
#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/libxl/remus_transport.h"
#include "tools/remus/nftrules.h"
#include "tools/xl/record.h"
#include "tools/xl/rescue.h"

#define ANSWER_MS (REMUS_GATES_MS + 5000u)
#define END_MS    90000u    /* a checkpoint under way, then the other side's part */

static const char stop_usage[] =
    "Usage: xl remus-stop DOMAIN\n"
    "\n"
    "Ends the protection of DOMAIN in order, from either host; the guest runs on where it is.\n"
    "\n"
    "Exit status: 0 ended, 1 usage, 2 DOMAIN has no session here, or refused, 3 not within 90 s.\n";

static const char switch_usage[] =
    "Usage: xl remus-switch DOMAIN\n"
    "\n"
    "Lets the copy of DOMAIN take over now, on the host where DOMAIN is protected; the guest here\n"
    "is destroyed.  The way to empty a host.\n"
    "\n"
    "Exit status: 0 done, 1 usage, 2 DOMAIN is not protected here, or refused, 3 not within\n"
    "90 s.\n";

static const char mode_usage[] =
    "Usage: xl remus-mode DOMAIN [MODE]\n"
    "\n"
    "Changes the mode in which DOMAIN is protected without interrupting protection: colo, remus,\n"
    "kemari, curling or auto (see xl-remus(1)).  On the host where DOMAIN is protected.\n"
    "Without MODE: tells which one runs, and which one was asked for if that is another.\n"
    "\n"
    "Exit status: 0 done, 1 usage, 2 DOMAIN is not protected here, or refused, 3 not within\n"
    "90 s.\n";

static const char cleanup_usage[] =
    "Usage: xl remus-cleanup\n"
    "\n"
    "Removes what sessions that died have left on this host: records of domains that are gone,\n"
    "rules of interfaces that are gone, copies that nobody keeps; and ends what minded guests\n"
    "that were destroyed while they were fenced.  Guests that were left fenced are named, not\n"
    "touched.\n"
    "\n"
    "Exit status: 0 nothing is left, 1 usage, 2 something is left; it is named.\n";

/* Whether a session has the guest. */
static bool session_lives(uint32_t domid)
{
    int fd = -1, rc;
    pid_t holder;

    rc = remus_session_lock(domid, &fd, &holder);
    if (!rc)
        close(fd);
    return rc == -EBUSY;
}

static int find(const char *word, const char *domain, uint32_t *domid)
{
    struct remus_facts_ctx *facts = NULL;
    char error[REMUS_ERROR_BYTES];
    int rc = remus_facts_open(&facts, false, error);

    if (rc) {
        fprintf(stderr, "xl %s: %s\n", word, error);
        return rc;
    }
    rc = remus_facts_find(facts, domain, domid);
    if (rc) {
        /* The copy of a guest goes by another name. */
        char copy[160];

        snprintf(copy, sizeof(copy), "%.100s" REMUS_INCOMING_SUFFIX, domain);
        rc = remus_facts_find(facts, copy, domid);
    }
    remus_facts_close(facts);
    if (rc)
        fprintf(stderr, "xl %s: there is no domain %s here\n", word, domain);
    return rc;
}

/*
 * Writes the request; the answer, to be freed, or NULL.  A session that obeys may be over, and the
 * domain with its nodes gone, before the answer is read: *ended.
 */
static char *ask(struct xs_handle *xs, uint32_t domid, const char *request, bool *ended)
{
    uint64_t deadline = remus_now_ms() + ANSWER_MS;
    char path[80], *answer = NULL;

    snprintf(path, sizeof(path), "/local/domain/%u/" REMUS_XS_NODE "/answer", domid);
    xs_rm(xs, XBT_NULL, path);
    remus_guest_publish_open(xs, domid);
    remus_guest_publish(xs, domid, "request", request);
    *ended = false;
    while (!answer && !*ended && remus_now_ms() < deadline) {
        poll(NULL, 0, 50);
        *ended = !session_lives(domid); /* before the answer is looked for: it may come between */
        answer = xs_read(xs, XBT_NULL, path, NULL);
    }
    return answer;
}

static bool domain_is_there(struct xs_handle *xs, uint32_t domid)
{
    return xs_is_domain_introduced(xs, domid);
}

/* The guest's number, and xenstore, if there is a session to talk to; or says why not. */
static int find_session(const char *word, const char *domain, uint32_t *domid,
                        struct xs_handle **xs)
{
    if (find(word, domain, domid))
        return XL_REFUSED;
    if (!session_lives(*domid)) {
        fprintf(stderr, "xl %s: %s is not protected on this host (see: xl remus-status)\n", word,
                domain);
        return XL_REFUSED;
    }
    *xs = xs_open(0);
    if (!*xs) {
        fprintf(stderr, "xl %s: xenstore does not open: %s\n", word, strerror(errno));
        return XL_REFUSED;
    }
    return 0;
}

static int request(const char *word, const char *domain, const char *what)
{
    bool failover = !strcmp(what, "failover");
    uint64_t deadline = remus_now_ms() + END_MS;
    struct xs_handle *xs = NULL;
    char *answer = NULL;
    uint32_t domid;
    bool ended;
    int code = find_session(word, domain, &domid, &xs);

    if (code)
        return code;
    code = XL_REFUSED;
    answer = ask(xs, domid, what, &ended);
    if (answer ? strncmp(answer, "accepted", 8) : !ended) {
        fprintf(stderr, "xl %s: %s\n", word, answer ? answer : "the session does not answer");
        goto out;
    }
    code = XL_UNPROTECTED;
    while (session_lives(domid) && remus_now_ms() < deadline)
        poll(NULL, 0, 100);
    if (session_lives(domid)) {
        fprintf(stderr, "xl %s: the session of %s goes on (see: xl remus-status %s)\n", word,
                domain, domain);
    } else if (failover && domain_is_there(xs, domid)) {
        if (rescue_is_paused(domid))
            fprintf(stderr, "xl %s: %s is paused and cut off here, and the other host did not say "
                    "that its copy took over.\nIf it did: xl destroy %s.  If that host is off: "
                    "xl remus --release %s\n", word, domain, domain, domain);
        else
            fprintf(stderr, "xl %s: the copy did not take over; %s runs here\n", word, domain);
    } else {
        printf(failover ? "%s runs on the other host\n" : "protection of %s has ended\n", domain);
        code = XL_ENDED;
    }
out:
    free(answer);
    xs_close(xs);
    return code;
}

static int one_domain(int argc, char **argv, const char *usage, const char *what)
{
    if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        fputs(usage, stdout);
        return XL_ENDED;
    }
    if (argc != 2 || argv[1][0] == '-' || !argv[1][0]) {
        fprintf(stderr, "xl %s: name one DOMAIN\n%s", argv[0], usage);
        return XL_USAGE;
    }
    return request(argv[0], argv[1], what);
}

int cmd_remus_stop(int argc, char **argv)
{
    return one_domain(argc, argv, stop_usage, "stop");
}

int cmd_remus_switch(int argc, char **argv)
{
    return one_domain(argc, argv, switch_usage, "failover");
}

static char *read_node(struct xs_handle *xs, uint32_t domid, const char *node)
{
    char path[80];

    snprintf(path, sizeof(path), "/local/domain/%u/" REMUS_XS_NODE "/%s", domid, node);
    return xs_read(xs, XBT_NULL, path, NULL);
}

static bool node_is(struct xs_handle *xs, uint32_t domid, const char *node, const char *value)
{
    char *text = read_node(xs, domid, node);
    bool same = text && !strcmp(text, value);

    free(text);
    return same;
}

static int tell_mode(struct xs_handle *xs, uint32_t domid, const char *domain)
{
    char *running = read_node(xs, domid, "running-mode"), *asked = read_node(xs, domid, "mode");

    if (running && asked && strcmp(running, asked))
        printf("%s: %s (%s)\n", domain, running, asked);
    else
        printf("%s: %s\n", domain, asked ? asked : "not known");
    free(running);
    free(asked);
    return XL_ENDED;
}

/* auto has no way of running that is its own: it is there when it is what was asked for. */
static int change_mode(struct xs_handle *xs, uint32_t domid, const char *word, const char *domain,
                       const char *mode)
{
    const char *node = remus_mode_by_name(mode)->chooses ? "mode" : "running-mode";
    uint64_t deadline = remus_now_ms() + END_MS;
    char text[32], *answer;
    int code = XL_REFUSED;
    bool ended;

    snprintf(text, sizeof(text), "mode %s", mode);
    answer = ask(xs, domid, text, &ended);
    if (!answer || strncmp(answer, "accepted", 8)) {
        fprintf(stderr, "xl %s: %s\n", word, answer ? answer : "the session does not answer");
        goto out;
    }
    while (!node_is(xs, domid, node, mode) && session_lives(domid) && remus_now_ms() < deadline)
        poll(NULL, 0, 100);
    if (node_is(xs, domid, node, mode)) {
        code = tell_mode(xs, domid, domain);
    } else {
        fprintf(stderr, "xl %s: %s has not changed its mode (see: xl remus-status %s)\n", word,
                domain, domain);
        code = XL_UNPROTECTED;
    }
out:
    free(answer);
    return code;
}

int cmd_remus_mode(int argc, char **argv)
{
    struct xs_handle *xs = NULL;
    uint32_t domid;
    int code;

    if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        fputs(mode_usage, stdout);
        return XL_ENDED;
    }
    if (argc < 2 || argc > 3 || argv[1][0] == '-' || !argv[1][0]) {
        fprintf(stderr, "xl %s: name one DOMAIN, and a MODE\n%s", argv[0], mode_usage);
        return XL_USAGE;
    }
    if (argc == 3 && !remus_mode_by_name(argv[2])) {
        fprintf(stderr, "xl %s: '%.40s' is no mode; it is colo, remus, kemari, curling, auto\n",
                argv[0], argv[2]);
        return XL_USAGE;
    }
    code = find_session(argv[0], argv[1], &domid, &xs);
    if (code)
        return code;
    code = argc == 3 ? change_mode(xs, domid, argv[0], argv[1], argv[2])
           : tell_mode(xs, domid, argv[1]);
    xs_close(xs);
    return code;
}

/* ---- What is left behind ------------------------------------------------------------------ */

static void tell(void *arg, const char *text)
{
    FILE *out = arg;

    if (out)
        fprintf(out, "%s\n", text);
}

__attribute__((format(printf, 2, 3)))
static void say(FILE *out, const char *format, ...)
{
    char text[400];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    tell(out, text);
}

/* One record whose session is dead.  Returns whether something has to stay. */
static bool clean_record(struct xs_handle *xs, uint32_t domid, FILE *out)
{
    char path[80], *name;
    size_t length, suffix = strlen(REMUS_INCOMING_SUFFIX);
    bool stays = false;

    snprintf(path, sizeof(path), "/local/domain/%u/name", domid);
    name = domain_is_there(xs, domid) ? xs_read(xs, XBT_NULL, path, NULL) : NULL;
    length = name ? strlen(name) : 0;
    if (!name) {
        record_remove(domid);
        say(out, "removed the record of domain %u, which is gone", domid);
    } else if (length > suffix && !strcmp(name + length - suffix, REMUS_INCOMING_SUFFIX)) {
        stays = rescue_destroy(&(struct rescue_guest){ .domid = domid, .name = name }, tell,
                               out) != 0;
        if (!stays) {
            record_remove(domid);
            say(out, "destroyed %s, a copy that nobody keeps", name);
        }
    } else {
        say(out, "%s %s fenced: its session died; if no copy of it runs elsewhere: xl remus "
            "--release %s", name, rescue_cut_off(domid) ? "is" : "may be", name);
        stays = true;
    }
    free(name);
    return stays;
}

static bool clean_records(FILE *out)
{
    struct xs_handle *xs = xs_open(0);
    DIR *dir = opendir(REMUS_RUN_DIR);
    struct dirent *entry;
    bool stays = false;

    while (xs && dir && (entry = readdir(dir))) {
        char *end;
        uint32_t domid = (uint32_t)strtoul(entry->d_name, &end, 10);

        if (end != entry->d_name && !strcmp(end, ".json") && !session_lives(domid))
            stays = clean_record(xs, domid, out) || stays;
        /* What was noted of disks, of a guest whose minder was killed. */
        if (end != entry->d_name && (!strcmp(end, ".dirty") || !strcmp(end, ".minder")) &&
            !domain_is_there(xs, domid))
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    if (dir)
        closedir(dir);
    if (xs)
        xs_close(xs);
    return stays;
}

struct names {
    struct xs_handle *xs;
    FILE *out;
};

/* A guest that was fenced and then destroyed left the process of its xl create stopped. */
static bool is_gone(void *arg, const char *name)
{
    const struct names *n = arg;
    unsigned int count = 0, i;
    char **domids = xs_directory(n->xs, XBT_NULL, "/local/domain", &count), path[80];
    bool gone = domids != NULL;

    for (i = 0; gone && i < count; i++) {
        char *other;

        snprintf(path, sizeof(path), "/local/domain/%s/name", domids[i]);
        other = xs_read(n->xs, XBT_NULL, path, NULL);
        gone = !other || strcmp(other, name);
        free(other);
    }
    free(domids);
    if (gone)
        say(n->out, "woke the process that minded %s, which is gone", name);
    return gone;
}

static void clean_minders(FILE *out)
{
    struct names n = { .xs = xs_open(0), .out = out };

    if (!n.xs)
        return;
    remus_guest_xl_wake(is_gone, &n);
    xs_close(n.xs);
}

static bool clean_rules(FILE *out)
{
    struct remus_nft_vif vifs[256];
    char error[200] = "";
    bool stays = false;
    size_t count = 0, i;

    if (remus_nft_list(vifs, sizeof(vifs) / sizeof(vifs[0]), &count, error, sizeof(error))) {
        say(out, "the packet filter could not be read: %s", error);
        return true;
    }
    for (i = 0; i < count && i < sizeof(vifs) / sizeof(vifs[0]); i++) {
        if (if_nametoindex(vifs[i].name))
            continue;
        if (remus_nft_unprotect(vifs[i].name, error, sizeof(error))) {
            say(out, "the rules of %s could not be removed: %s", vifs[i].name, error);
            stays = true;
        } else {
            say(out, "removed the rules of %s, which is gone", vifs[i].name);
        }
    }
    return stays;
}

bool remus_clean_up(FILE *out)
{
    bool records = clean_records(out);

    clean_minders(out);
    return clean_rules(out) || records;
}

int cmd_remus_cleanup(int argc, char **argv)
{
    if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        fputs(cleanup_usage, stdout);
        return XL_ENDED;
    }
    if (argc != 1) {
        fprintf(stderr, "xl remus-cleanup: takes no arguments\n%s", cleanup_usage);
        return XL_USAGE;
    }
    return remus_clean_up(stdout) ? XL_REFUSED : XL_ENDED;
}
