/*
 * cmd_receive.c: xl remus-receive, started through ssh on the host that takes the copy.
 *
 * Speaks remus_message.h on standard input and output.  Once both channels have proven
 * themselves, a worker owns the copy, and the loss of ssh no longer matters: the link is what
 * counts.  After a takeover this process leaves ssh and stays as long as the guest's network is
 * served from here.
 *
 *   receiver ->  receiver {protocol, version, xen, boot_id, host, address}   or refused {reasons}
 *   primary  ->  hello {the guest's needs, the session's settings}
 *   receiver ->  ready {port, secret, plain}                                 or refused
 *   primary opens the channels
 *   receiver ->  connected                                                   or refused
 *   receiver ->  log {level, text}, state {state}, then active {domid} or end {end, reason}
 *   primary  ->  primary-worker-died: for the log; the answer is active or end, once it is known
 */
#include "tools/xl/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <net/if.h>

#include <libxl.h>
#include <libxl_utils.h>
#include <uuid/uuid.h>

#include "tools/libxl/remus_arbiter.h"
#include "tools/libxl/remus_hook.h"
#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/libxl/remus_transport.h"
#include "tools/xl/display.h"
#include "tools/xl/notifier.h"
#include "tools/xl/options.h"
#include "tools/xl/record.h"
#include "tools/xl/rescue.h"
#include "tools/xl/worker.h"

#define HELLO_MS     60000u
#define ACCEPT_MS    30000u
#define FAREWELL_MS  2000u      /* for the last line to leave before ssh is left */
#define RECORD_MS    1000u
#define MS_MAX       3600000u
#define AGAIN_WORDS  (2 * REMUS_BYPASS_MAX + 42)

struct receiver {
    struct remus_talk *talk;        /* NULL: ssh is gone, or was left */
    struct remus_facts_ctx *facts;
    struct remus_host_facts here;
    struct remus_guest_facts guest; /* as the primary described it */
    struct remus_wishes wishes;
    char error[REMUS_ERROR_BYTES];
    char log_path[128];
    int log_fd;

    char peer[64], mode[16], listen[256];
    char heartbeat_listen[256];     /* on a second network; "": there is none */
    uint16_t port, heartbeat_port;
    uint64_t period_ms, heartbeat_ms, timeout_ms, deadline_ms;
    bool verify, net;
    char *again_host;
    char *again[AGAIN_WORDS];       /* what protects the guest after a takeover; [0]: NULL */
    uuid_t session;
    char session_text[40], arbiter[REMUS_ARBITER_BYTES];
    int fds[REMUS_CHANNELS];        /* by channel */
    const char *store;
    bool no_plain;                  /* the operator here wants the data encrypted */

    struct notifier notifier;
    bool was_lost;                  /* the guest was protected before, and that ended badly */

    struct worker worker;
    bool have_result, active, settled;
    bool taking_over;               /* its output may be open: this copy must not be removed */
    int rc;
    struct remus_session_result result;
    struct remus_status last;
    uint64_t recorded_ms;
};

static const char usage[] =
    "Usage: xl remus-receive [options]\n"
    "\n"
    "Takes the copy of a guest that `xl remus` on another host protects. Started by it, through\n"
    "ssh; reads and writes messages on standard input and output.\n"
    "\n"
    "      --libexec DIR   where colo-shadowd and the other helpers are\n"
    "      --no-plain      refuse a session whose data is not encrypted (--plain of xl remus)\n"
    "      --store DIR     where to keep what is not on the copy's disks yet, in a file without a\n"
    "                      name (default " REMUS_STORE_DIR ")\n"
    "  -h, --help          this text\n";

static void record_log(struct receiver *r, const char *text)
{
    dprintf(r->log_fd >= 0 ? r->log_fd : STDERR_FILENO, "receiver: %s\n", text);
}

static void send_object(struct receiver *r, struct remus_object *o, bool may_drop)
{
    char *line;

    if (r->talk)
        (void)remus_talk_send(r->talk, o, may_drop);
    else if ((line = remus_object_finish(o)))
        free(line);
}

__attribute__((format(printf, 3, 4)))
static void tell(struct receiver *r, enum xc_sr_level level, const char *format, ...)
{
    struct remus_object *o = remus_object_new("log");
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    record_log(r, text);
    remus_object_number(o, "level", (uint64_t)level);
    remus_object_string(o, "text", text);
    send_object(r, o, level < XC_SR_WARN);
}

static void tell_rescue(void *arg, const char *text)
{
    tell(arg, XC_SR_WARN, "%s", text);
}

/* Gives what was said last a chance to leave; then ssh is closed. */
static void leave_ssh(struct receiver *r)
{
    uint64_t deadline = remus_now_ms() + FAREWELL_MS;

    while (r->talk && remus_talk_out(r->talk) >= 0 && remus_now_ms() < deadline) {
        struct pollfd p = {.fd = remus_talk_out(r->talk), .events = POLLOUT};

        if (poll(&p, 1, 100) > 0 && remus_talk_flush(r->talk))
            break;
    }
    remus_talk_free(r->talk);
    r->talk = NULL;
}

static int refuse(struct receiver *r, int code, const struct remus_refusals *refusals)
{
    struct remus_object *o = remus_object_new("refused");
    unsigned int i;

    remus_object_list(o, "reasons");
    for (i = 0; i < refusals->count; i++)
        remus_object_item(o, refusals->text[i]);
    remus_object_list_end(o);
    send_object(r, o, false);
    leave_ssh(r);
    return code;
}

__attribute__((format(printf, 3, 4)))
static int refuse_one(struct receiver *r, int code, const char *format, ...)
{
    struct remus_refusals *refusals = calloc(1, sizeof(*refusals));
    char text[REMUS_REFUSAL_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (refusals) {
        remus_refuse(refusals, "%s", text);
        refuse(r, code, refusals);
    }
    free(refusals);
    return code;
}

/* ---- Coming together ------------------------------------------------------------------------- */

/* The address at which this host was entered: "client port server port". */
static void own_address(char *out, size_t room)
{
    const char *text = getenv("SSH_CONNECTION");
    char client[64], server[64];

    out[0] = '\0';
    if (text && sscanf(text, "%63s %*s %63s", client, server) == 2)
        snprintf(out, room, "%s", server);
}

static void greet(struct receiver *r)
{
    struct remus_object *o = remus_object_new("receiver");
    char address[64];

    own_address(address, sizeof(address));
    remus_object_number(o, "protocol", REMUS_LINE_PROTOCOL);
    remus_object_string(o, "version", REMUS_VERSION);
    remus_object_string(o, "xen", r->here.xen);
    remus_object_string(o, "boot_id", r->here.boot_id);
    remus_object_string(o, "host", r->here.name);
    remus_object_string(o, "address", address);
    send_object(r, o, false);
}

static bool copy_text(const struct remus_message *m, const char *key, char *out, size_t room)
{
    const char *text = remus_message_string(m, key);

    if (!text || strlen(text) >= room)
        return false;
    strcpy(out, text);
    return true;
}

static bool bridge_name_ok(const char *name)
{
    return name[0] && name[0] != '.' && strlen(name) < IFNAMSIZ && !strpbrk(name, "/ \t\n:");
}

/*
 * The session that this host is to begin after a takeover.  Its options come from the other side,
 * so they are those of a session and no others, and its host is one that this side's ssh knows.
 */
static bool take_again(struct receiver *r, const struct remus_message *m)
{
    const char *host = remus_message_string(m, "reprotect");
    const char *known_as = remus_message_string(m, "known_as");
    static struct remus_options o;
    char error[OPTIONS_ERROR_BYTES];
    const char *last[] = {"--verbose", "--keep-trying", "--reprotect", known_as, r->guest.name,
                          host};
    const size_t lasts = sizeof(last) / sizeof(last[0]);
    unsigned int n = 0;
    bool whole;
    size_t i;

    if (!host)
        return true;
    r->again[n++] = strdup("xl");
    r->again[n++] = strdup("remus");
    for (i = 0; i < remus_message_count(m, "options") && n + lasts + 3 < AGAIN_WORDS; i++) {
        const char *word = remus_message_item(m, "options", i, NULL);

        r->again[n++] = strdup(word ? word : "");
    }
    whole = i == remus_message_count(m, "options");
    for (i = 0; i < lasts; i++)
        r->again[n++] = strdup(last[i] ? last[i] : "");
    for (i = 0; i < n; i++)
        whole = whole && r->again[i];
    r->again_host = r->again[n - 1];
    if (!whole || remus_options_parse((int)n - 1, r->again + 1, &o, error))
        return false;
    o.reprotect = NULL;
    o.keep_trying = false;
    return remus_options_only_words(&o);
}

/* Everything that the primary says is checked here, once. False: r->error says what is wrong. */
static bool take_hello(struct receiver *r, const struct remus_message *m)
{
    uint64_t protocol, port = 0, vcpus;
    size_t i, count;

#define WANT(condition, ...) \
    do { \
        if (!(condition)) { \
            snprintf(r->error, sizeof(r->error), __VA_ARGS__); \
            return false; \
        } \
    } while (0)
    WANT(!strcmp(remus_message_type(m), "hello"), "a hello was expected");
    WANT(remus_message_number(m, "protocol", UINT32_MAX, &protocol) &&
             protocol == REMUS_LINE_PROTOCOL,
         "the primary's version of this package does not go with this one (%s): install the same "
         "on "
         "both hosts", REMUS_VERSION);
    WANT(copy_text(m, "name", r->guest.name, sizeof(r->guest.name)) && r->guest.name[0] &&
             !strchr(r->guest.name, '/'),
         "the guest's name is missing, longer than %zu characters or holds a '/'",
         sizeof(r->guest.name) - 1);
    WANT(copy_text(m, "host", r->peer, sizeof(r->peer)), "the primary's name is missing");
    WANT(copy_text(m, "mode", r->mode, sizeof(r->mode)) && remus_mode_by_name(r->mode),
         "the primary's mode is not known here: install the same version on both hosts");
    WANT(copy_text(m, "session", r->session_text, sizeof(r->session_text)) &&
             !uuid_parse(r->session_text, r->session),
         "the session's UUID is missing");
    WANT(copy_text(m, "arbiter", r->arbiter, sizeof(r->arbiter)) && remus_arbiter_ok(r->arbiter),
         "the arbiter is missing, or is no NAME[:ARG]");
    WANT(remus_message_number(m, "memory_kb", 1ull << 40, &r->guest.memory_kb) &&
             remus_message_number(m, "need_kb", 1ull << 40, &r->guest.need_kb) &&
             remus_message_number(m, "pages", 1ull << 40, &r->guest.pages) &&
             remus_message_number(m, "vcpus", 4096, &vcpus),
         "the guest's size is missing");
    r->guest.vcpus = (unsigned int)vcpus;
    WANT(remus_message_number(m, "period_ms", MS_MAX, &r->period_ms) &&
             remus_message_number(m, "heartbeat_ms", MS_MAX, &r->heartbeat_ms) &&
             remus_message_number(m, "timeout_ms", MS_MAX, &r->timeout_ms) &&
             remus_message_number(m, "deadline_ms", MS_MAX, &r->deadline_ms),
         "the session's times are missing");
    WANT(copy_text(m, "listen", r->listen, sizeof(r->listen)) &&
             remus_message_number(m, "port", 65535, &port),
         "the address to listen on is missing");
    r->port = (uint16_t)port;
    port = 0;
    if (copy_text(m, "heartbeat_listen", r->heartbeat_listen, sizeof(r->heartbeat_listen)))
        WANT(r->heartbeat_listen[0] && remus_message_number(m, "heartbeat_port", 65535, &port),
             "the address to listen on for heartbeats is malformed");
    else
        r->heartbeat_listen[0] = '\0';
    r->heartbeat_port = (uint16_t)port;
    r->verify = remus_message_flag(m, "verify", false);
    r->was_lost = remus_message_flag(m, "was_lost", false);
    /* Only its takeover is remembered by it. */
    if (!copy_text(m, "uuid", r->guest.uuid, sizeof(r->guest.uuid)))
        r->guest.uuid[0] = '\0';
    r->net = remus_message_flag(m, "net", true);
    r->wishes.no_net = !r->net;
    r->wishes.plain = remus_message_flag(m, "plain", false);
    WANT(take_again(r, m), "what is to protect the guest after a takeover is no session's "
                           "options, or names no host");
    count = remus_message_count(m, "vifs");
    WANT(count <= REMUS_VIFS_MAX, "more than %u interfaces", REMUS_VIFS_MAX);
    r->guest.vifs = (unsigned int)count;
    for (i = 0; i < count; i++) {
        const char *bridge = remus_message_item(m, "vifs", i, "bridge");

        WANT(!r->net || (bridge && bridge_name_ok(bridge)), "interface %zu names no bridge", i);
        r->guest.vif[i].devid = (unsigned int)i;
        snprintf(r->guest.vif[i].bridge, sizeof(r->guest.vif[i].bridge), "%s",
                 bridge ? bridge : "");
    }
    count = remus_message_count(m, "disks");
    WANT(count <= REMUS_DISKS_MAX, "more than %u disks", REMUS_DISKS_MAX);
    r->guest.disk_count = r->guest.disks = (unsigned int)count;
    for (i = 0; i < count; i++) {
        struct remus_disk_place *d = &r->guest.disk[i];
        const char *path = remus_message_item(m, "disks", i, "path");

        WANT(path && path[0] == '/' && strlen(path) < sizeof(d->path),
             "disk %zu names no path of at most %zu characters", i, sizeof(d->path) - 1);
        snprintf(d->path, sizeof(d->path), "%s", path);
        d->vdev = (uint32_t)remus_message_item_number(m, "disks", i, "vdev");
        d->sectors = remus_message_item_number(m, "disks", i, "sectors");
        d->logical_bytes = (uint32_t)remus_message_item_number(m, "disks", i, "sector_size");
        d->read_only = remus_message_item_number(m, "disks", i, "read_only") != 0;
        WANT(d->sectors && d->sectors < 1ull << 48 && d->logical_bytes >= 512 &&
                 d->logical_bytes <= 4096 && !(d->logical_bytes & (d->logical_bytes - 1)),
             "disk %zu has no size", i);
    }
#undef WANT
    return true;
}

static void check_arbiter(struct receiver *r, struct remus_refusals *refusals)
{
    struct remus_arbiter arbiter = {
        .spec = r->arbiter, .libexec = r->here.libexec, .session = r->session_text,
        .domain = r->guest.name, .peer = r->peer, .role = REMUS_SECONDARY,
    };
    char said[REMUS_ARBITER_SAID];

    if (remus_arbiter_run(&arbiter, "check", REMUS_ARBITER_CHECK_MS, said))
        remus_refuse(refusals, "the arbiter %.100s cannot be asked from here: %s", r->arbiter,
                     said[0] ? said : "it does not answer");
}

static void say_gate(void *arg, enum xc_sr_level level, const char *text)
{
    (void)level;
    record_log(arg, text);
}

static void ask_gates(struct receiver *r, struct remus_refusals *refusals)
{
    struct remus_hook_call call = {
        .dir = r->notifier.dir, .role = REMUS_SECONDARY, .domain = r->guest.name, .peer = r->peer,
        .mode = r->mode, .session = r->session_text, .status = -1,
    };
    char said[REMUS_REFUSAL_BYTES - 40];

    if (remus_gates_ask(&call, REMUS_ASK_BEGIN, NULL, say_gate, r, said, sizeof(said)))
        remus_refuse(refusals, "%s", said);
}

/* Whether this host can begin a session towards the one that --reprotect names. */
static bool reaches(const char *host)
{
    char *args[] = {(char *)(uintptr_t)"ssh", (char *)(uintptr_t)"-n",
                    (char *)(uintptr_t)"-oBatchMode=yes", (char *)(uintptr_t)"-oConnectTimeout=10",
                    (char *)(uintptr_t)host, (char *)(uintptr_t)"true", NULL};
    posix_spawn_file_actions_t files;
    int status = -1;
    pid_t pid;

    if (posix_spawn_file_actions_init(&files))
        return false;
    posix_spawn_file_actions_adddup2(&files, STDERR_FILENO, STDOUT_FILENO);
    if (posix_spawnp(&pid, args[0], &files, NULL, args, environ))
        pid = -1;
    posix_spawn_file_actions_destroy(&files);
    if (pid < 0)
        return false;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) && !WEXITSTATUS(status);
}

static int examine(struct receiver *r)
{
    struct remus_refusals *refusals = calloc(1, sizeof(*refusals));
    struct remus_meets_facts meets;
    int code = 0;

    if (!refusals)
        return refuse_one(r, XL_REFUSED, "out of memory");
    if (r->wishes.plain && r->no_plain)
        remus_refuse(refusals, "the data has to be encrypted, by this host's --no-plain of xl "
                     "remus-receive: leave out --plain");
    if (!r->wishes.plain)
        remus_facts_tls(&r->here);
    remus_facts_meets(r->facts, &r->guest, &meets);
    remus_preflight_secondary(refusals, &r->guest, &r->here, &meets, &r->wishes);
    if (!refusals->count)
        check_arbiter(r, refusals);
    if (!refusals->count && r->again[0] && !reaches(r->again_host))
        remus_refuse(refusals, "ssh to %s fails or asks something from here; --reprotect needs "
                     "root's ssh in both directions", r->again_host);
    if (!refusals->count)
        ask_gates(r, refusals);
    if (refusals->count)
        code = refuse(r, XL_REFUSED, refusals);
    free(refusals);
    return code;
}

/* Where the primary is found on the second network: what protects the guest after a takeover is
 * to reach it there. */
static void name_second_network(struct receiver *r)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    char host[NI_MAXHOST], text[NI_MAXHOST + 16];
    char *option;
    size_t n = 0;

    if (getpeername(r->fds[REMUS_CHANNEL_HEARTBEAT], (struct sockaddr *)&peer, &length) ||
        getnameinfo((struct sockaddr *)&peer, length, host, sizeof(host), NULL, 0, NI_NUMERICHOST))
        return;
    if (r->heartbeat_port)
        snprintf(text, sizeof(text), strchr(host, ':') ? "[%s]:%u" : "%s:%u", host,
                 r->heartbeat_port);
    else
        snprintf(text, sizeof(text), "%s", host);
    option = strdup("--heartbeat-address");
    while (r->again[n])
        n++;
    if (!option || n + 2 >= AGAIN_WORDS)
        return;
    memmove(r->again + 4, r->again + 2, (n - 2) * sizeof(r->again[0]));
    r->again[2] = option;
    r->again[3] = strdup(text);
    if (!r->again[3])
        r->again[0] = NULL;     /* no memory for five words: there will be none for a session */
}

static int open_channels(struct receiver *r)
{
    uint8_t secret[REMUS_SECRET_BYTES];
    char text[REMUS_SECRET_TEXT_BYTES];
    struct remus_object *o;
    unsigned int wanted = 1u << REMUS_CHANNEL_LINK | (unsigned int)r->net << REMUS_CHANNEL_PACKETS |
                          (unsigned int)(r->guest.disk_count > 0) << REMUS_CHANNEL_DISKS |
                          (unsigned int)(r->heartbeat_listen[0] != 0) << REMUS_CHANNEL_HEARTBEAT;
    uint16_t bound = 0, second_bound = 0;
    int listen_fds[2] = {-1, -1}, rc, i;

    rc = remus_secret_new(secret);
    if (rc)
        snprintf(r->error, sizeof(r->error), "the kernel gives no random bytes: %s",
                 strerror(-rc));
    else
        rc = remus_listen(r->listen, r->port, &listen_fds[0], &bound, r->error);
    if (!rc && r->heartbeat_listen[0])
        rc = remus_listen(r->heartbeat_listen, r->heartbeat_port, &listen_fds[1], &second_bound,
                          r->error);
    if (rc)
        goto out;
    remus_secret_format(text, secret);
    o = remus_object_new("ready");
    remus_object_number(o, "port", bound);
    if (second_bound)
        remus_object_number(o, "heartbeat_port", second_bound);
    remus_object_string(o, "secret", text);
    remus_object_flag(o, "plain", r->wishes.plain);
    send_object(r, o, false);
    rc = remus_accept_channels(listen_fds, secret, r->wishes.plain, wanted, ACCEPT_MS,
                               remus_talk_in(r->talk), r->fds, r->error);
out:
    for (i = 0; i < 2; i++)
        if (listen_fds[i] >= 0)
            close(listen_fds[i]);
    explicit_bzero(secret, sizeof(secret));
    explicit_bzero(text, sizeof(text));
    if (rc)
        return refuse_one(r, XL_NO_PEER, "%s", r->error);
    if (r->again[0] && r->fds[REMUS_CHANNEL_HEARTBEAT] >= 0)
        name_second_network(r);
    send_object(r, remus_object_new("connected"), false);
    return 0;
}

static void close_channels(struct receiver *r)
{
    unsigned int i;

    for (i = 0; i < REMUS_CHANNELS; i++) {
        if (r->fds[i] >= 0)
            close(r->fds[i]);
        r->fds[i] = -1;
    }
}

static int start(struct receiver *r)
{
    struct remus_session_params p = {
        .role = REMUS_SECONDARY,
        .peer = r->peer,
        .core = {
            .role = REMUS_SECONDARY,
            .mode = remus_mode_by_name(r->mode),
            .period_ms = (uint32_t)r->period_ms,
            .heartbeat_ms = r->heartbeat_ms ? (uint32_t)r->heartbeat_ms : 100,
            .timeout_ms = r->timeout_ms ? (uint32_t)r->timeout_ms : 3000,
            .net = r->net,
        },
        .verify = r->verify,
        .net = r->net,
        .vifs = r->guest.vifs,
        .link_fd = r->fds[REMUS_CHANNEL_LINK],
        .packet_fd = r->fds[REMUS_CHANNEL_PACKETS],
        .disk_fd = r->fds[REMUS_CHANNEL_DISKS],
        .heartbeat_fd = r->fds[REMUS_CHANNEL_HEARTBEAT],
        .guard_fd = -1,
        .disk = r->guest.disk_count > 0,
        .disks = r->guest.disk,
        .disk_count = r->guest.disk_count,
        .store = r->store,
        .keep_disks = r->again[0] ? REMUS_KEEP_UNLESS_STOPPED : REMUS_KEEP_NEVER,
        .libexec = r->here.libexec,
        .deadline_max_ms = (uint32_t)r->deadline_ms,
        .arbiter = r->arbiter,
        .hooks = r->notifier.dir,
    };
    int rc;

    memcpy(p.session, r->session, sizeof(p.session));
    rc = worker_start(&r->worker, &p, r->log_fd, -1);
    close_channels(r);
    return rc ? refuse_one(r, XL_NO_PEER, "the worker process cannot be started: %s",
                           strerror(-rc))
              : 0;
}

/* ---- Hooks -------------------------------------------------------------------------------- */

/* status: of the session, if it has ended; -1. */
static void notify(struct receiver *r, enum remus_transition what, uint64_t epoch,
                   const char *reason, int status)
{
    struct notice notice = {
        .what = what, .role = REMUS_SECONDARY, .domid = r->last.domid, .status = status,
        .epoch = epoch,
    };
    int rc;

    if (what == REMUS_T_PROTECTED && r->was_lost)
        notice.what = REMUS_T_REPROTECTED;
    if (what == REMUS_T_FAILED_OVER)
        record_lost(r->guest.uuid, true);
    snprintf(notice.domain, sizeof(notice.domain), "%s", r->guest.name);
    snprintf(notice.peer, sizeof(notice.peer), "%s", r->peer);
    snprintf(notice.mode, sizeof(notice.mode), "%.15s", r->last.mode[0] ? r->last.mode : r->mode);
    snprintf(notice.session, sizeof(notice.session), "%s", r->session_text);
    snprintf(notice.reason, sizeof(notice.reason), "%s", reason);
    rc = notifier_tell(&r->notifier, &notice);
    if (rc)
        record_log(r, rc == -EAGAIN ? "hooks are not run: too many wait"
                                    : "hooks are not run: no process for them");
}

/* In this host's log already; this is for the primary's screen. */
static void read_notifier(struct receiver *r)
{
    struct remus_object *o;
    char text[1024];

    while (notifier_next(&r->notifier, text, sizeof(text))) {
        o = remus_object_new("log");
        remus_object_number(o, "level", XC_SR_WARN);
        remus_object_string(o, "text", text);
        send_object(r, o, true);
    }
}

/* ---- Running ------------------------------------------------------------------------------ */

static void take_status(struct receiver *r, struct remus_status *status)
{
    uint64_t now = remus_now_ms();
    struct remus_object *o;

    if (!status->domain[0])
        snprintf(status->domain, sizeof(status->domain), "%s", r->guest.name);
    if (!status->peer[0])
        snprintf(status->peer, sizeof(status->peer), "%s", r->peer);
    if (!status->mode[0])
        snprintf(status->mode, sizeof(status->mode), "%s", r->mode);
    if (now - r->recorded_ms >= RECORD_MS || status->state != r->last.state) {
        r->recorded_ms = now;
        record_write(status);
    }
    if (strcmp(display_state(status), display_state(&r->last)) || !r->last.domain[0]) {
        o = remus_object_new("state");
        remus_object_string(o, "state", display_state(status));
        remus_object_number(o, "domid", status->domid);
        send_object(r, o, true);
    }
    r->last = *status;
}

static void became_active(struct receiver *r, uint32_t domid)
{
    struct remus_object *o = remus_object_new("active");

    r->active = true;
    remus_object_number(o, "domid", domid);
    send_object(r, o, false);
    record_log(r, "took over; this process stays for the guest's network");
    leave_ssh(r);
    /* Standard error is still ssh's: what is left of this process has no terminal. */
    if (r->log_fd >= 0) {
        dup2(r->log_fd, STDOUT_FILENO);
        dup2(r->log_fd, STDERR_FILENO);
    }
}

/* In a session of its own, which outlives this process and takes its time. */
static void protect_again(struct receiver *r)
{
    pid_t pid = fork();

    if (pid == 0) {
        sigset_t none;

        setsid();
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        signal(SIGHUP, SIG_DFL);
        execv("/proc/self/exe", r->again);
        _exit(127);
    }
    if (pid < 0)
        record_log(r, "no process can be made to protect the guest again");
    else
        record_log(r, "protecting the guest again");
}

/* The guest can be protected by another session; what is left here is to act at its end. */
static void became_settled(struct receiver *r, uint32_t domid)
{
    r->settled = true;
    record_remove(domid);
    record_forget_session(r->session_text);
    record_log(r, "the guest is served by this host's kernel");
    if (r->again[0])
        protect_again(r);
}

/* False: the worker is gone. */
static bool read_worker(struct receiver *r)
{
    static struct worker_message m;
    struct remus_object *o;

    for (;;) {
        switch (worker_next(&r->worker, &m)) {
        case WORKER_NOTHING:
            return true;
        case WORKER_LOG:
            o = remus_object_new("log");
            remus_object_number(o, "level", m.level);
            remus_object_string(o, "text", m.text);
            send_object(r, o, m.level < XC_SR_WARN);
            break;
        case WORKER_STATUS:
            take_status(r, &m.status);
            break;
        case WORKER_TRANSITION:
            notify(r, (enum remus_transition)m.transition.what, m.transition.epoch,
                   m.transition.reason, -1);
            break;
        case WORKER_COMMITTED:
            r->taking_over = true;
            break;
        case WORKER_ACTIVE:
            became_active(r, m.domid);
            break;
        case WORKER_SETTLED:
            became_settled(r, m.domid);
            break;
        case WORKER_RESULT:
            r->have_result = true;
            r->rc = m.rc;
            r->result = m.result;
            break;
        case WORKER_ENDED:
            return false;
        }
    }
}

static void read_primary(struct receiver *r, int rc)
{
    struct remus_message *m;
    int n;

    while ((n = remus_talk_next(r->talk, &m)) != 0) {
        if (n < 0)
            continue;
        if (!strcmp(remus_message_type(m), "primary-worker-died"))
            record_log(r, "the primary's worker died; this side decides by the link");
        remus_message_free(m);
    }
    if (rc == -EPIPE) {
        record_log(r, "ssh from the primary has ended; the session does not depend on it");
        remus_talk_free(r->talk);
        r->talk = NULL;
    }
}

static void supervise(struct receiver *r, int signal_fd)
{
    struct signalfd_siginfo info;
    bool alive = true;

    while (alive) {
        struct pollfd p[5] = {
            {.fd = r->worker.fd, .events = POLLIN},
            {.fd = signal_fd, .events = POLLIN},
            {.fd = r->talk ? remus_talk_in(r->talk) : -1, .events = POLLIN},
            {.fd = r->talk ? remus_talk_out(r->talk) : -1, .events = POLLOUT},
            {.fd = r->notifier.fd, .events = POLLIN},
        };

        if (poll(p, 5, -1) < 0 && errno != EINTR)
            break;
        if (p[4].revents)
            read_notifier(r);
        if (p[3].revents)
            (void)remus_talk_flush(r->talk);
        if (p[2].revents)
            read_primary(r, remus_talk_fill(r->talk));
        if (p[1].revents)
            while (read(signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
                record_log(r, "asked to stop by a signal");
                worker_stop(&r->worker);
            }
        if (p[0].revents)
            alive = read_worker(r);
    }
}

/* ---- The end ------------------------------------------------------------------------------ */

/* The worker died: a copy that had not taken over must not stay. */
static void remove_copy(struct receiver *r)
{
    char name[96];
    uint32_t domid;

    snprintf(name, sizeof(name), "%s" REMUS_INCOMING_SUFFIX, r->guest.name);
    if (remus_facts_open(&r->facts, false, r->error)) {
        tell(r, XC_SR_ERROR, "%s; run: xl destroy %s", r->error, name);
        return;
    }
    if (!remus_facts_find(r->facts, name, &domid))
        (void)rescue_destroy(&(struct rescue_guest){ .domid = domid, .name = name }, tell_rescue,
                             r);
    remus_facts_close(r->facts);
    r->facts = NULL;
}

static int conclude(struct receiver *r)
{
    int status = worker_reap(&r->worker), code = XL_UNPROTECTED;
    const char *name = "failed", *reason = r->result.reason;
    char text[512];
    struct remus_object *o;

    if (!r->have_result) {
        snprintf(text, sizeof(text), "the worker on %s died (status %d, see %s there)",
                 r->here.name, status, r->log_path);
        reason = text;
        /* In the middle of a takeover the guest may be open to the network already, and is the only
         * one that may run: the arbiter has said so, or the primary. */
        if (!r->active && r->taking_over) {
            record_log(r, "it died while it took over: the guest runs here, perhaps without "
                       "network or under the name of a copy");
            became_active(r, r->last.domid);
        } else if (!r->active) {
            remove_copy(r);
        }
    } else if (r->rc) {
        snprintf(text, sizeof(text), "the copy on %s could not begin: %s%s%s", r->here.name,
                 strerror(-r->rc), reason[0] ? ": " : "", r->result.reason);
        reason = text;
    } else {
        name = display_end_name(r->result.end);
        code = r->result.end == REMUS_END_STOPPED || r->result.end == REMUS_END_ACTIVE ? XL_ENDED
               : r->result.end == REMUS_END_GUEST  ? XL_GUEST_ENDED
               : r->result.end == REMUS_END_FENCED ? XL_FENCED
                                                   : XL_UNPROTECTED;
    }
    record_log(r, reason);
    /* What ends after a takeover is the guest, not a session. */
    if (!r->active)
        notify(r, remus_transition_of_end(REMUS_SECONDARY, code), r->last.checkpoints, reason,
               code);
    if (r->last.domid && !r->settled)
        record_remove(r->last.domid);
    o = remus_object_new("end");
    remus_object_string(o, "end", name);
    remus_object_string(o, "reason", reason);
    send_object(r, o, false);
    leave_ssh(r);
    return code;
}

/* The protocol gets descriptors of its own; whatever a library prints goes to standard error. */
static int open_talk(struct receiver *r)
{
    int in, out, null_fd, rc;

    in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (in < 0 || out < 0 || null_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 ||
        dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
        return -errno;
    close(null_fd);
    rc = remus_talk_new(&r->talk, in, out);
    if (rc) {
        close(in);
        close(out);
    }
    return rc;
}

static int run(struct receiver *r, const char *libexec_given)
{
    struct remus_message *m = NULL;
    char libexec[256];
    sigset_t set;
    int rc, code, signal_fd;

    libexec_directory(libexec, sizeof(libexec), libexec_given);
    rc = remus_facts_open(&r->facts, false, r->error);
    if (!rc)
        rc = remus_facts_host(r->facts, libexec, true, &r->here, r->error);
    if (rc)
        return refuse_one(r, XL_REFUSED, "%s", r->error);
    greet(r);
    rc = remus_talk_wait(r->talk, HELLO_MS, &m);
    if (rc == -EPIPE)
        return XL_NO_PEER; /* the primary gave up, for a reason that it has told its operator */
    if (rc || !take_hello(r, m)) {
        code = refuse_one(r, XL_REFUSED, "%s", rc == -ETIMEDOUT ? "the primary says nothing"
                                               : rc ? "what the primary says is no message"
                                                    : r->error);
        remus_message_free(m);
        return code;
    }
    remus_message_free(m);
    code = examine(r);
    /* libxenlight must not be open in the worker twice over. */
    remus_facts_close(r->facts);
    r->facts = NULL;
    if (!code)
        code = open_channels(r);
    if (code)
        return code;
    r->log_fd = r->notifier.log_fd = open_log(r->guest.name, r->log_path, sizeof(r->log_path));

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signal_fd < 0)
        return refuse_one(r, XL_NO_PEER, "signals cannot be watched: %s", strerror(errno));
    code = start(r);
    if (code)
        return code;
    supervise(r, signal_fd);
    close(signal_fd);
    code = conclude(r);
    record_forget_session(r->session_text);
    return code;
}

int cmd_remus_receive(int argc, char **argv)
{
    static const struct option options[] = {
        {"libexec", required_argument, NULL, 'l'},
        {"store", required_argument, NULL, 's'},
        {"no-plain", no_argument, NULL, 'p'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    static struct receiver r;
    const char *libexec = NULL, *store = REMUS_STORE_DIR;
    int option, rc;

    optind = 0;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(usage, stdout);
            return XL_ENDED;
        }
        if (option == 's') {
            store = optarg;
            continue;
        }
        if (option == 'p') {
            r.no_plain = true;
            continue;
        }
        if (option != 'l') {
            fputs("Try 'xl remus-receive --help'.\n", stderr);
            return XL_USAGE;
        }
        libexec = optarg;
    }
    if (optind != argc) {
        fprintf(stderr, "xl remus-receive: takes no arguments\n%s", usage);
        return XL_USAGE;
    }
    if (isatty(STDIN_FILENO)) {
        fprintf(stderr, "xl remus-receive: this is started by xl remus on the other host, through "
                        "ssh; run there: xl remus --colo DOMAIN HOST\n");
        return XL_USAGE;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    r.log_fd = -1;
    r.notifier = (struct notifier)NOTIFIER_INIT;
    memset(r.fds, -1, sizeof(r.fds));
    r.store = store;
    r.worker.fd = -1;
    rc = open_talk(&r);
    if (rc) {
        fprintf(stderr, "xl remus-receive: %s\n", strerror(-rc));
        return XL_NO_PEER;
    }
    rc = run(&r, libexec);
    remus_facts_close(r.facts);
    remus_talk_free(r.talk);
    return rc;
}
