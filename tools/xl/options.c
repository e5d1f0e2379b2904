#include "tools/xl/options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/libxl/remus_arbiter.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/libxl/remus_transport.h"

#define RECEIVE_COMMAND "xl remus-receive"

const char remus_options_help[] =
    "Usage: xl remus [options] DOMAIN HOST\n"
    "\n"
    "Protects a running guest: a copy on HOST takes over when this host fails.\n"
    "\n"
    "Mode (see xl-remus(1); xl remus-mode changes it):\n"
    "  -c, --colo               the copy runs, output leaves when both have said the same\n"
    "      --remus              the copy waits, output leaves with its checkpoint (the default)\n"
    "      --kemari             the same, and each output asks for a checkpoint at once\n"
    "      --curling            checkpoints in a row, output is not held: it may be lost\n"
    "      --auto               colo while it pays, else remus\n"
    "  -i, --period MS          a checkpoint at the latest after MS milliseconds\n"
    "      --interval MS        the same\n"
    "      --rest MS            least time between two checkpoints\n"
    "      --deadline MS        longest wait for the copy's equal output before a checkpoint\n"
    "\n"
    "Other host:\n"
    "  -s, --ssh COMMAND        use this instead of ssh; '' runs HOST itself as a command\n"
    "      --receive-command C  what ssh runs on HOST (default: xl remus-receive)\n"
    "      --data-address ADDR[:PORT]\n"
    "                           HOST's address for the data, when not the one that ssh uses\n"
    "      --plain              do not encrypt the data: for a cable that nobody else can reach\n"
    "      --compress lz4|none  compress the guest's memory on its way (default none: pays up to\n"
    "                           some Gbit/s)\n"
    "  -u, --no-compression     the same as --compress none\n"
    "      --heartbeat-address ADDR[:PORT]\n"
    "                           HOST's address on a second network, for signs of life too: then\n"
    "                           a link that breaks is no host that is lost\n"
    "      --heartbeat MS       interval of signs of life (default 100)\n"
    "      --timeout MS         HOST silent for this long is lost (default 3000)\n"
    "      --sync-rate MIB      read at most this much a second when disks are made equal\n"
    "      --map-cache MIB      keep at most this much of the guest mapped here between\n"
    "                           checkpoints (default: all of it)\n"
    "\n"
    "When the hosts lose each other:\n"
    "      --arbiter NAME[:ARG]     who decides which side goes on: etcd:URL[,URL...],\n"
    "                           fence[:NAME], manual (see xl remus-decide), or none (needs -F)\n"
    "\n"
    "After a loss:\n"
    "      --reprotect HOST2    after a takeover the copy is protected in its turn, towards HOST2\n"
    "                           (this host, as HOST knows it); after the loss of HOST, from here\n"
    "      --keep-trying        try again every 15 s when HOST cannot take the copy\n"
    "      --catch-up           note what is written to disks after the end, so that the next\n"
    "                           session compares that only; --release ends it\n"
    "\n"
    "Protecting less:\n"
    "  -d, --no-disk            do not replicate disks (with writable ones: -F too)\n"
    "  -n, --no-net             do not hold or compare output (needs -F)\n"
    "      --bypass 'WORDS'     do not hold, compare or copy this traffic (needs no -F):\n"
    "                           [tcp|udp|icmp|icmp6] [port N[-M]] [peer-port N[-M]]\n"
    "                           [peer ADDRESS[/BITS]]; may be given again\n"
    "      --bypass-file FILE   the same from a file, an entry per line, '#' comments\n"
    "  -F, --unsafe             accept what -b, -d, -n or no arbiter may lead to\n"
    "  -b, --blackhole          no copy at all: checkpoints are taken and thrown away, to see\n"
    "                           what they cost (needs -F, and a guest without disks)\n"
    "\n"
    "What is shown:\n"
    "      --json               one JSON object per line on standard output\n"
    "  -q, --quiet              warnings and errors only\n"
    "  -v, --verbose            every log line\n"
    "      --verify             compare every page of both guests at every checkpoint (slow)\n"
    "\n"
    "      --release            DOMAIN alone: let a guest go on that a dead session left fenced\n"
    "      --libexec DIR        where colo-proxyd and the other helpers are\n"
    "  -h, --help               this text\n"
    "\n"
    "Exit status: 0 ended in order, 1 usage, 2 refused, 3 runs unprotected, 4 guest ended,\n"
    "5 fenced, 6 HOST not reached, 7 undecided (see xl-remus(1)).\n"
    "\n"
    "Options in " REMUS_CONFIG_FILE ", one a line, come before those given.\n";

enum {
    OPT_REMUS = 256, OPT_REST, OPT_KEMARI, OPT_CURLING, OPT_AUTO, OPT_DEADLINE, OPT_RECEIVE,
    OPT_DATA, OPT_HEARTBEAT, OPT_TIMEOUT, OPT_JSON, OPT_VERIFY, OPT_RELEASE, OPT_LIBEXEC,
    OPT_BYPASS, OPT_BYPASS_FILE, OPT_SYNC_RATE, OPT_ARBITER, OPT_REPROTECT, OPT_KEEP_TRYING,
    OPT_PLAIN, OPT_COMPRESS, OPT_CATCH_UP, OPT_HEARTBEAT_ADDRESS,
    OPT_GIVEN, OPT_MAP_CACHE,
};

static const struct option long_options[] = {
    {"colo", no_argument, NULL, 'c'},
    {"remus", no_argument, NULL, OPT_REMUS},
    {"kemari", no_argument, NULL, OPT_KEMARI},
    {"curling", no_argument, NULL, OPT_CURLING},
    {"auto", no_argument, NULL, OPT_AUTO},
    {"period", required_argument, NULL, 'i'},
    {"interval", required_argument, NULL, 'i'},
    {"rest", required_argument, NULL, OPT_REST},
    {"deadline", required_argument, NULL, OPT_DEADLINE},
    {"ssh", required_argument, NULL, 's'},
    {"receive-command", required_argument, NULL, OPT_RECEIVE},
    {"data-address", required_argument, NULL, OPT_DATA},
    {"plain", no_argument, NULL, OPT_PLAIN},
    {"compress", required_argument, NULL, OPT_COMPRESS},
    {"heartbeat-address", required_argument, NULL, OPT_HEARTBEAT_ADDRESS},
    {"heartbeat", required_argument, NULL, OPT_HEARTBEAT},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"sync-rate", required_argument, NULL, OPT_SYNC_RATE},
    {"map-cache", required_argument, NULL, OPT_MAP_CACHE},
    {"arbiter", required_argument, NULL, OPT_ARBITER},
    {"reprotect", required_argument, NULL, OPT_REPROTECT},
    {"keep-trying", no_argument, NULL, OPT_KEEP_TRYING},
    {"catch-up", no_argument, NULL, OPT_CATCH_UP},
    {"blackhole", no_argument, NULL, 'b'},
    {"no-disk", no_argument, NULL, 'd'},
    {"no-net", no_argument, NULL, 'n'},
    {"bypass", required_argument, NULL, OPT_BYPASS},
    {"bypass-file", required_argument, NULL, OPT_BYPASS_FILE},
    {"unsafe", no_argument, NULL, 'F'},
    {"no-compression", no_argument, NULL, 'u'},
    {"json", no_argument, NULL, OPT_JSON},
    {"quiet", no_argument, NULL, 'q'},
    {"verbose", no_argument, NULL, 'v'},
    {"verify", no_argument, NULL, OPT_VERIFY},
    {"release", no_argument, NULL, OPT_RELEASE},
    {"libexec", required_argument, NULL, OPT_LIBEXEC},
    {"help", no_argument, NULL, 'h'},
    /* Behind those of a file, which give way: remus_options_defaults() puts it there. */
    {"given", no_argument, NULL, OPT_GIVEN},
    /* Of the distribution's xl remus; refused with the reason. */
    {"netbuf-script", required_argument, NULL, 'N'},
    {"userspace-proxy", no_argument, NULL, 'p'},
    {"no-wait", no_argument, NULL, 'e'},
    {NULL, 0, NULL, 0},
};

/* Options that the distribution's command has and this one refuses. */
static const struct {
    int option;
    const char *why;
} refused[] = {
    {'N', "-N (a script that buffers output) is not used: colo-proxyd holds and compares the "
          "output "
          "itself; leave it out"},
    {'p', "-p (userspace proxy) is always used, there is no kernel proxy; leave it out"},
    {'e', "-e (do not wait for the guest's end on HOST) is not offered: after a takeover the "
          "process on HOST serves the guest's network and has to stay; leave it out"},
};

static int parse_number(const char *text, const char *name, const char *unit, uint32_t least,
                        uint32_t most, uint32_t *out, char *error)
{
    unsigned long value;
    char *end;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < least || value > most) {
        snprintf(error, OPTIONS_ERROR_BYTES, "%s: '%s' is not a number of %s from %u to %u", name,
                 text, unit, least, most);
        return -EINVAL;
    }
    *out = (uint32_t)value;
    return 0;
}

static int parse_ms(const char *text, const char *name, uint32_t least, uint32_t *out, char *error)
{
    return parse_number(text, name, "milliseconds", least, 3600000, out, error);
}

static int add_bypass(struct remus_options *o, const char *text, const char *where, char *error)
{
    char why[128];

    if (o->bypass_count == REMUS_BYPASS_MAX) {
        snprintf(error, OPTIONS_ERROR_BYTES, "%s: more than %u entries", where, REMUS_BYPASS_MAX);
        return -EINVAL;
    }
    if (remus_bypass_parse(&o->bypass[o->bypass_count], text, why, sizeof(why))) {
        snprintf(error, OPTIONS_ERROR_BYTES, "%s: '%s': %s", where, text, why);
        return -EINVAL;
    }
    o->bypass_count++;
    return 0;
}

/* An entry per line (bypass.h); '#' begins a comment. */
static int add_bypass_file(struct remus_options *o, const char *path, char *error)
{
    unsigned int number = 0;
    char line[256], where[160];
    FILE *file = fopen(path, "re");
    int rc = 0;

    if (!file) {
        snprintf(error, OPTIONS_ERROR_BYTES, "--bypass-file %s: %s", path, strerror(errno));
        return -EINVAL;
    }
    while (!rc && fgets(line, sizeof(line), file)) {
        snprintf(where, sizeof(where), "%.120s, line %u", path, ++number);
        if (!strchr(line, '\n') && !feof(file)) {
            snprintf(error, OPTIONS_ERROR_BYTES, "%s: too long", where);
            rc = -EINVAL;
            break;
        }
        line[strcspn(line, "#\r\n")] = '\0';
        if (line[strspn(line, " \t")])
            rc = add_bypass(o, line, where, error);
    }
    if (!rc && ferror(file)) {
        snprintf(error, OPTIONS_ERROR_BYTES, "--bypass-file %s: cannot be read", path);
        rc = -EINVAL;
    }
    fclose(file);
    return rc;
}

static int set_mode(struct remus_options *o, const char *mode, char *error)
{
    if (o->mode && strcmp(o->mode, mode)) {
        snprintf(error, OPTIONS_ERROR_BYTES, "one mode, not both --%s and --%s", o->mode, mode);
        return -EINVAL;
    }
    o->mode = mode;
    return 0;
}

static int refuse(int option, char *error)
{
    size_t i;

    for (i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        if (refused[i].option == option)
            snprintf(error, OPTIONS_ERROR_BYTES, "%s", refused[i].why);
    return -EINVAL;
}

/* One that ssh does not take for an option, nor a shell for more than a word. */
static bool host_ok(const char *host)
{
    size_t i;

    for (i = 0; host[i]; i++)
        if (!isalnum((unsigned char)host[i]) && !strchr(".-_:@[]%/", host[i]))
            return false;
    return i > 0 && i < 256 && host[0] != '-';
}

/* What fits together, once all options are known. */
static int check(struct remus_options *o, int argc, int first, char **argv, char *error)
{
    int left = argc - first, want = o->release ? 1 : 2;

    if (left != want && !(o->blackhole && !o->release && left == 1)) {
        snprintf(error, OPTIONS_ERROR_BYTES, "%s",
                 left > want ? "too many arguments"
                 : o->release ? "name the DOMAIN to let go on"
                 : left ? "name the HOST that is to take the copy too"
                        : "name a DOMAIN and a HOST");
        return -EINVAL;
    }
    o->domain = argv[first];
    if (!o->domain[0]) {
        snprintf(error, OPTIONS_ERROR_BYTES, "DOMAIN is empty");
        return -EINVAL;
    }
    if (o->release)
        return 0;
    o->host = o->blackhole ? "nowhere" : argv[first + 1];
    if (!o->host[0] || (o->host[0] == '-' && o->ssh[0])) {
        snprintf(error, OPTIONS_ERROR_BYTES, "'%s' is not a host", o->host);
        return -EINVAL;
    }
    if (!o->ssh[0] && !o->data_address[0]) {
        snprintf(error, OPTIONS_ERROR_BYTES,
                 "with -s '' HOST is a command, so --data-address must say where the data goes");
        return -EINVAL;
    }
    if (!o->mode)
        o->mode = "remus";
    if (o->blackhole && !o->unsafe) {
        snprintf(error, OPTIONS_ERROR_BYTES, "-b protects nothing, it measures: -F says that you "
                 "know");
        return -EINVAL;
    }
    if (o->blackhole && (remus_mode_by_name(o->mode)->compares ||
                         remus_mode_by_name(o->mode)->chooses)) {
        snprintf(error, OPTIONS_ERROR_BYTES, "-b goes with --remus, --kemari and --curling: what "
                 "--%s costs depends on a copy that runs", o->mode);
        return -EINVAL;
    }
    if (o->blackhole && (o->reprotect || o->keep_trying || o->heartbeat_address[0])) {
        snprintf(error, OPTIONS_ERROR_BYTES, "-b has no other host: --reprotect, --keep-trying and "
                 "--heartbeat-address mean nothing");
        return -EINVAL;
    }
    if (o->heartbeat_ms || o->timeout_ms) {
        uint32_t heartbeat = o->heartbeat_ms ? o->heartbeat_ms : 100;
        uint32_t timeout = o->timeout_ms ? o->timeout_ms : 3000;

        if (timeout / 3 < heartbeat) {
            snprintf(error, OPTIONS_ERROR_BYTES,
                     "--timeout %u must be at least three times --heartbeat %u: one late heartbeat "
                     "is no failure", timeout, heartbeat);
            return -EINVAL;
        }
    }
    if (o->no_net && o->bypass_count) {
        snprintf(error, OPTIONS_ERROR_BYTES, "with -n nothing is held: --bypass means nothing");
        return -EINVAL;
    }
    if (o->reprotect && !o->ssh[0]) {
        snprintf(error, OPTIONS_ERROR_BYTES, "--reprotect needs ssh in both directions, not -s ''");
        return -EINVAL;
    }
    if (o->json && o->quiet) {
        snprintf(error, OPTIONS_ERROR_BYTES, "--json and -q exclude each other");
        return -EINVAL;
    }
    return 0;
}

static void add_number(void (*add)(void *arg, const char *word), void *arg, const char *option,
                       uint32_t value)
{
    char text[16];

    if (!value)
        return;
    snprintf(text, sizeof(text), "%u", value);
    add(arg, option);
    add(arg, text);
}

void remus_options_words(const struct remus_options *o, void (*add)(void *arg, const char *word),
                         void *arg)
{
    char text[REMUS_BYPASS_TEXT_MAX];
    unsigned int i;

    snprintf(text, sizeof(text), "--%s", o->mode);
    add(arg, text);
    add_number(add, arg, "--period", o->period_ms);
    add_number(add, arg, "--rest", o->rest_ms);
    add_number(add, arg, "--deadline", o->deadline_ms);
    add_number(add, arg, "--heartbeat", o->heartbeat_ms);
    add_number(add, arg, "--timeout", o->timeout_ms);
    add_number(add, arg, "--sync-rate", o->sync_kib / 1024);
    add_number(add, arg, "--map-cache", o->map_cache_mib);
    add(arg, "--arbiter");
    add(arg, o->arbiter);
    for (i = 0; i < o->bypass_count; i++) {
        remus_bypass_format(&o->bypass[i], text, sizeof(text));
        add(arg, "--bypass");
        add(arg, text);
    }
    if (o->plain)
        add(arg, "--plain");
    if (o->compress) {
        add(arg, "--compress");
        add(arg, "lz4");
    }
    if (o->catch_up)
        add(arg, "--catch-up");
    if (o->no_disk)
        add(arg, "--no-disk");
    if (o->no_net)
        add(arg, "--no-net");
    if (o->unsafe)
        add(arg, "--unsafe");
    if (o->verify)
        add(arg, "--verify");
}

bool remus_options_only_words(const struct remus_options *o)
{
    return !strcmp(o->ssh, "ssh") && !strcmp(o->receive_command, RECEIVE_COMMAND) && !o->libexec &&
           !o->blackhole && !o->data_address[0] && !o->data_port && !o->heartbeat_address[0] &&
           !o->help && !o->release && !o->json && !o->reprotect && !o->keep_trying;
}

/* The words of one line: an option, and its value if there is one. */
static int add_words(char *line, char **words, int *count)
{
    char *end = line + strcspn(line, "\r\n"), *value;

    *end = '\0';
    line += strspn(line, " \t");
    while (end > line && strchr(" \t", end[-1]))
        *--end = '\0';
    if (!line[0] || line[0] == '#')
        return 0;
    if (line[0] != '-' || *count + 2 > OPTIONS_FILE_WORDS)
        return -EINVAL;
    value = line + strcspn(line, " \t");
    if (*value) {
        *value++ = '\0';
        value += strspn(value, " \t");
        words[(*count)++] = strdup(line);
        words[(*count)++] = strdup(value);
        return words[*count - 1] && words[*count - 2] ? 0 : -ENOMEM;
    }
    words[(*count)++] = strdup(line);
    return words[*count - 1] ? 0 : -ENOMEM;
}

int remus_options_defaults(const char *path, int argc, char **argv, int *out_argc, char ***out_argv,
                           char *error)
{
    char **words = calloc((size_t)argc + OPTIONS_FILE_WORDS + 2, sizeof(words[0])), line[512];
    FILE *file = fopen(path, "re");
    int count = 1, i, rc = words ? 0 : -ENOMEM;
    unsigned int number = 0;

    if (!file && errno != ENOENT) {
        snprintf(error, OPTIONS_ERROR_BYTES, "%s: %s", path, strerror(errno));
        rc = -EINVAL;
    }
    while (!rc && file && fgets(line, sizeof(line), file)) {
        number++;
        rc = strchr(line, '\n') || feof(file) ? add_words(line, words, &count) : -E2BIG;
        if (rc)
            snprintf(error, OPTIONS_ERROR_BYTES, "%s, line %u: %s", path, number,
                     rc == -EINVAL ? "an option begins with '-' (and 63 with values are the most)"
                                   : strerror(-rc));
    }
    if (file)
        fclose(file);
    if (!rc && count > 1 && !(words[count++] = strdup("--given")))
        rc = -ENOMEM;
    if (rc) {
        while (words && count-- > 1)
            free(words[count]);
        free(words);
        return -EINVAL;
    }
    words[0] = argv[0];
    for (i = 1; i < argc; i++)
        words[count++] = argv[i];
    *out_argc = count;
    *out_argv = words;
    return 0;
}

int remus_options_parse(int argc, char **argv, struct remus_options *o, char *error)
{
    const char *by_default = NULL;
    int option, rc;

    memset(o, 0, sizeof(*o));
    o->ssh = "ssh";
    o->receive_command = RECEIVE_COMMAND;
    o->arbiter = REMUS_ARBITER_NONE;
    optind = 0; /* also resets the library's hidden state */
    opterr = 0;
    while ((option = getopt_long(argc, argv, "+:ci:s:dnFuqvhbN:pe", long_options, NULL)) != -1) {
        rc = 0;
        switch (option) {
        case 'c':
            rc = set_mode(o, "colo", error);
            break;
        case OPT_REMUS:
            rc = set_mode(o, "remus", error);
            break;
        case OPT_KEMARI:
            rc = set_mode(o, "kemari", error);
            break;
        case OPT_CURLING:
            rc = set_mode(o, "curling", error);
            break;
        case OPT_AUTO:
            rc = set_mode(o, "auto", error);
            break;
        case OPT_GIVEN:
            by_default = o->mode;
            o->mode = NULL;
            break;
        case 'i':
            rc = parse_ms(optarg, "-i", 10, &o->period_ms, error);
            break;
        case OPT_REST:
            rc = parse_ms(optarg, "--rest", 1, &o->rest_ms, error);
            break;
        case OPT_DEADLINE:
            rc = parse_ms(optarg, "--deadline", 1, &o->deadline_ms, error);
            break;
        case OPT_HEARTBEAT:
            rc = parse_ms(optarg, "--heartbeat", 10, &o->heartbeat_ms, error);
            break;
        case OPT_TIMEOUT:
            /* The lease on output is renewed ten times a second. */
            rc = parse_ms(optarg, "--timeout", 500, &o->timeout_ms, error);
            break;
        case OPT_SYNC_RATE:
            rc = parse_number(optarg, "--sync-rate", "MiB a second", 1, 1000000, &o->sync_kib,
                              error);
            o->sync_kib *= 1024;
            break;
        case OPT_MAP_CACHE:
            rc = parse_number(optarg, "--map-cache", "MiB", 4, 1u << 24, &o->map_cache_mib, error);
            break;
        case OPT_REPROTECT:
            o->reprotect = optarg;
            if (!host_ok(optarg)) {
                snprintf(error, OPTIONS_ERROR_BYTES, "--reprotect: '%.100s' is not a host", optarg);
                rc = -EINVAL;
            }
            break;
        case OPT_KEEP_TRYING:
            o->keep_trying = true;
            break;
        case OPT_CATCH_UP:
            o->catch_up = true;
            break;
        case OPT_ARBITER:
            o->arbiter = optarg;
            if (!remus_arbiter_ok(optarg)) {
                snprintf(error, OPTIONS_ERROR_BYTES,
                         "--arbiter: '%.100s' is neither NAME nor NAME:ARG", optarg);
                rc = -EINVAL;
            }
            break;
        case 's':
            o->ssh = optarg;
            break;
        case OPT_RECEIVE:
            o->receive_command = optarg;
            break;
        case OPT_DATA:
            rc = remus_address_parse(optarg, o->data_address, sizeof(o->data_address),
                                     &o->data_port);
            if (rc)
                snprintf(error, OPTIONS_ERROR_BYTES,
                         "--data-address: '%s' is not ADDR, ADDR:PORT, [V6]:PORT or :PORT", optarg);
            break;
        case OPT_HEARTBEAT_ADDRESS:
            rc = remus_address_parse(optarg, o->heartbeat_address, sizeof(o->heartbeat_address),
                                     &o->heartbeat_port);
            if (rc || !o->heartbeat_address[0]) {
                snprintf(error, OPTIONS_ERROR_BYTES,
                         "--heartbeat-address: '%s' is not ADDR, ADDR:PORT or [V6]:PORT", optarg);
                rc = -EINVAL;
            }
            break;
        case OPT_PLAIN:
            o->plain = true;
            break;
        case 'b':
            o->blackhole = o->plain = true;
            break;
        case 'd':
            o->no_disk = true;
            break;
        case 'n':
            o->no_net = true;
            break;
        case OPT_BYPASS:
            rc = add_bypass(o, optarg, "--bypass", error);
            break;
        case OPT_BYPASS_FILE:
            rc = add_bypass_file(o, optarg, error);
            break;
        case 'F':
            o->unsafe = true;
            break;
        case 'u':
            o->compress = false;
            break;
        case OPT_COMPRESS:
            o->compress = !strcmp(optarg, "lz4");
            if (!o->compress && strcmp(optarg, "none")) {
                snprintf(error, OPTIONS_ERROR_BYTES, "--compress: '%.40s' is neither lz4 nor none",
                         optarg);
                rc = -EINVAL;
            }
            break;
        case OPT_JSON:
            o->json = true;
            break;
        case 'q':
            o->quiet = true;
            break;
        case 'v':
            o->verbose = true;
            break;
        case OPT_VERIFY:
            o->verify = true;
            break;
        case OPT_RELEASE:
            o->release = true;
            break;
        case OPT_LIBEXEC:
            o->libexec = optarg;
            break;
        case 'h':
            o->help = true;
            return 0;
        case ':':
            snprintf(error, OPTIONS_ERROR_BYTES, "%s needs a value", argv[optind - 1]);
            return -EINVAL;
        case '?':
            if (optopt)
                snprintf(error, OPTIONS_ERROR_BYTES, "there is no option -%c", optopt);
            else
                snprintf(error, OPTIONS_ERROR_BYTES, "there is no option %s", argv[optind - 1]);
            return -EINVAL;
        default:
            rc = refuse(option, error);
            break;
        }
        if (rc)
            return rc;
    }
    if (!o->mode)
        o->mode = by_default;
    return check(o, argc, optind, argv, error);
}
