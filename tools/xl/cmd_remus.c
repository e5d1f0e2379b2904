/*
 * cmd_remus.c: xl remus, on the host where the guest runs.
 *
 * This process is the supervisor: it owns the terminal and ssh, and a worker (worker.h) owns the
 * guest.  Before the worker is started nothing has been changed anywhere, so everything until
 * then may simply end.  From then on this process ends only after the worker has, and if the
 * worker was killed, only after the guest has been brought into one of three states: running
 * unprotected, gone because the copy is the guest now, or running fenced because nobody answers
 * which of the two is right.
 */
#include "tools/xl/commands.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <uuid/uuid.h>

#include "tools/libxl/remus_arbiter.h"
#include "tools/libxl/remus_hook.h"
#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/libxl/remus_transport.h"
#include "tools/remus/nftguard.h"
#include "tools/xl/blackhole.h"
#include "tools/xl/display.h"
#include "tools/xl/keep.h"
#include "tools/xl/notifier.h"
#include "tools/xl/options.h"
#include "tools/xl/record.h"
#include "tools/xl/rescue.h"
#include "tools/xl/systemd.h"
#include "tools/xl/worker.h"

#define GREETING_MS    120000u  /* ssh may ask for a password first */
#define ANSWER_MS      60000u
#define CONNECT_MS     10000u
#define CONNECTED_MS   35000u
#define END_MS         20000u   /* the receiver destroys the copy and says so */
#define END_COPY_MS    5000u
#define PASSES_ON_MS   8000u    /* after a handover: TAKES_OVER_MS and LATE_INPUT_MS, and some */
#define SSH_END_MS     2000u
#define JUNK_LINES_MAX 50u      /* what a login shell may print before the receiver speaks */
#define RECORD_MS      1000u
#define ARBITER_AGAIN_MS 1000

/* What became of the copy on HOST, as far as its receiver has said. */
enum fate { FATE_UNKNOWN, FATE_ACTIVE, FATE_GONE };

struct supervisor {
    struct remus_options o;
    struct display d;
    struct remus_guest_facts guest;
    struct remus_host_facts here, there;
    char error[REMUS_ERROR_BYTES];
    char log_path[128];
    int log_fd, lock_fd;

    int guard_fd;                   /* nftguard.h; -1: there is none */
    struct remus_ssh ssh;
    struct remus_talk *talk;
    char receiver_address[64];      /* HOST as its sshd sees itself */
    enum fate fate;

    uint8_t secret[REMUS_SECRET_BYTES];
    uint16_t port, heartbeat_port;
    uuid_t session;
    char session_text[37];
    int fds[REMUS_CHANNELS];        /* by channel */

    struct notifier notifier;
    bool was_lost;                  /* an earlier session of this guest ended badly */
    char end_text[1024];

    struct worker worker;
    bool have_result;
    int rc;                         /* of remus_primary_run */
    struct remus_session_result result;
    struct remus_status last;
    bool was_protected;             /* at any time: the copy may have held a whole epoch, and only
                                       then can it have taken over */
    uint64_t recorded_ms;
    unsigned int stops;             /* how often the operator asked */
    unsigned int stops_before;      /* of these, before the arbiter was asked */
    int signal_fd;
};

__attribute__((format(printf, 3, 4)))
static void say(struct supervisor *s, enum xc_sr_level level, const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    display_message(&s->d, level, NULL, text);
    if (s->log_fd >= 0)
        dprintf(s->log_fd, "supervisor: %s\n", text);
}

/* What the guest sends is for the rules of table bridge remus alone from here on. */
static void drop_guard(struct supervisor *s)
{
    if (s->guard_fd >= 0)
        close(s->guard_fd);
    s->guard_fd = -1;
}

static void say_rescue(void *arg, const char *text)
{
    say(arg, XC_SR_WARN, "%s", text);
}

/* Every refusal on a line of its own. host: NULL for this one. */
static int print_refusals(struct supervisor *s, const struct remus_refusals *r, const char *host)
{
    char reason[REMUS_REFUSAL_BYTES + 80];
    unsigned int i;

    for (i = 0; i < r->count; i++)
        display_message(&s->d, XC_SR_ERROR, host, r->text[i]);
    snprintf(reason, sizeof(reason), "%s is not protected: %u reason%s above", s->o.domain,
             r->count, r->count > 1 ? "s" : "");
    display_end(&s->d, XL_REFUSED, "refused", reason, NULL);
    return XL_REFUSED;
}

__attribute__((format(printf, 3, 4)))
static int give_up(struct supervisor *s, int code, const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    display_end(&s->d, code, "not-begun", text, NULL);
    return code;
}

/* ---- Preflight here -------------------------------------------------------------------------- */

static struct remus_arbiter arbiter_of(struct supervisor *s)
{
    uuid_unparse_lower(s->session, s->session_text);
    return (struct remus_arbiter){
        .spec = s->o.arbiter, .libexec = s->here.libexec, .session = s->session_text,
        .domain = s->guest.name, .peer = s->o.host, .role = REMUS_PRIMARY,
    };
}

static void check_arbiter(struct supervisor *s, struct remus_refusals *refusals)
{
    struct remus_arbiter arbiter = arbiter_of(s);
    char said[REMUS_ARBITER_SAID];

    if (remus_arbiter_run(&arbiter, "check", REMUS_ARBITER_CHECK_MS, said))
        remus_refuse(refusals, "the arbiter %s cannot be asked from here: %s", s->o.arbiter,
                     said[0] ? said : "it does not answer");
}

static void say_gate(void *arg, enum xc_sr_level level, const char *text)
{
    say(arg, level, "%s", text);
}

static void ask_gates(struct supervisor *s, struct remus_refusals *refusals)
{
    struct remus_hook_call call = {
        .dir = s->notifier.dir, .role = REMUS_PRIMARY, .domain = s->guest.name, .peer = s->o.host,
        .mode = s->o.mode, .session = s->session_text, .domid = s->guest.domid, .status = -1,
    };
    char said[REMUS_REFUSAL_BYTES - 40];

    uuid_unparse_lower(s->session, s->session_text);
    if (remus_gates_ask(&call, REMUS_ASK_BEGIN, NULL, say_gate, s, said, sizeof(said)))
        remus_refuse(refusals, "%s", said);
}

/* Held from here to the end of this process and of the worker.  What a dead session has fenced may
 * be the wrong one of two: nothing else is said of it. */
static void lock_guest(struct supervisor *s, struct remus_refusals *refusals)
{
    pid_t holder;
    int rc = remus_session_lock(s->guest.domid, &s->lock_fd, &holder);

    if (rc == -EBUSY)
        remus_refuse(refusals, "%s is being protected by another process", s->guest.name);
    else if (rc)
        remus_refuse(refusals, "%s cannot be written: %s", REMUS_RUN_DIR, strerror(-rc));
    else if (rescue_cut_off(s->guest.domid))
        remus_refuse(refusals, "%s is cut off from its network, because a session of it died or "
                     "gave it up; if no copy of it runs elsewhere: xl remus --release %s",
                     s->guest.name, s->guest.name);
}

static int examine(struct supervisor *s)
{
    struct remus_wishes wishes = {
        .no_net = s->o.no_net, .no_disk = s->o.no_disk, .unsafe = s->o.unsafe,
        .arbiter = !remus_arbiter_is_none(s->o.arbiter), .plain = s->o.plain,
    };
    struct remus_facts_ctx *facts = NULL;
    struct remus_refusals *refusals = calloc(1, sizeof(*refusals));
    char libexec[256];
    uint32_t domid;
    int rc, code = 0;

    if (!refusals)
        return give_up(s, XL_NO_PEER, "out of memory");
    libexec_directory(libexec, sizeof(libexec), s->o.libexec);
    rc = remus_facts_open(&facts, s->o.verbose, s->error);
    if (rc) {
        remus_refuse(refusals, "%s", s->error);
        code = print_refusals(s, refusals, NULL);
        goto out;
    }
    rc = remus_facts_find(facts, s->o.domain, &domid);
    if (rc)
        snprintf(s->guest.name, sizeof(s->guest.name), "%s", s->o.domain);
    else
        rc = remus_facts_guest(facts, domid, &s->guest, s->error);
    if (!rc || rc == -ENOENT)
        rc = remus_facts_host(facts, libexec, false, &s->here, s->error);
    if (!rc && !s->o.plain)
        remus_facts_tls(&s->here);
    if (rc)
        remus_refuse(refusals, "%s", s->error);
    else if (s->guest.exists && s->guest.domid && !s->guest.locked)
        lock_guest(s, refusals);
    if (!refusals->count)
        remus_preflight_primary(refusals, &s->guest, &s->here, &wishes);
    if (s->o.blackhole && s->guest.disk_count)
        remus_refuse(refusals, "-b has nowhere to replicate the disks of %s to: it is for guests "
                     "without disks", s->guest.name);
    if (!refusals->count)
        check_arbiter(s, refusals);
    if (!refusals->count)
        ask_gates(s, refusals);
    if (refusals->count)
        code = print_refusals(s, refusals, NULL);
out:
    remus_facts_close(facts);
    free(refusals);
    return code;
}

/* ---- The receiver ------------------------------------------------------------------------- */

static void receiver_refused(struct supervisor *s, const struct remus_message *m,
                             struct remus_refusals *out)
{
    size_t i;

    for (i = 0; i < remus_message_count(m, "reasons"); i++) {
        const char *text = remus_message_item(m, "reasons", i, NULL);

        if (text)
            remus_refuse(out, "%s", text);
    }
    if (!out->count)
        remus_refuse(out, "refused without a reason");
    (void)s;
}

/* Why ssh ended, as far as its exit status tells. */
static int explain_ssh(struct supervisor *s)
{
    int status = remus_ssh_end(&s->ssh, SSH_END_MS);
    int code = status >= 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;

    if (code == 255)
        return give_up(s, XL_NO_PEER, "%s: ssh could not reach or enter it (its message is above)",
                       s->o.host);
    if (code == 127)
        return give_up(s, XL_NO_PEER,
                       "%s: '%s' was not found there: install this package on it, or name the "
                       "command with --receive-command", s->o.host, s->o.receive_command);
    return give_up(s, XL_NO_PEER,
                   "%s: '%s' ended without an answer (status %d): the xl there must be this "
                   "package's", s->o.host, s->o.receive_command, code);
}

/* The next message of one of two types; others are skipped. */
static int await(struct supervisor *s, const char *type, const char *other, unsigned int timeout_ms,
                 struct remus_message **m)
{
    uint64_t deadline = remus_now_ms() + timeout_ms;
    unsigned int junk = 0;

    for (;;) {
        uint64_t now = remus_now_ms();
        int rc = remus_talk_wait(s->talk, now < deadline ? (unsigned int)(deadline - now) : 0, m);

        if (rc == -EBADMSG && junk++ < JUNK_LINES_MAX) {
            display_message(&s->d, XC_SR_WARN, s->o.host, remus_talk_bad(s->talk));
            continue;
        }
        if (rc)
            return rc;
        if (!strcmp(remus_message_type(*m), type) ||
            (other && !strcmp(remus_message_type(*m), other)))
            return 0;
        remus_message_free(*m);
        *m = NULL;
    }
}

static int no_answer(struct supervisor *s, int rc)
{
    if (rc == -EPIPE)
        return explain_ssh(s);
    if (rc == -ETIMEDOUT)
        return give_up(s, XL_NO_PEER, "%s does not answer", s->o.host);
    return give_up(s, XL_NO_PEER, "%s: '%s' says something else than expected: %s", s->o.host,
                   s->o.receive_command, remus_talk_bad(s->talk));
}

static int greet(struct supervisor *s)
{
    struct remus_message *m = NULL;
    struct remus_refusals *refusals;
    uint64_t protocol = 0;
    const char *text;
    int rc, code = 0;

    rc = await(s, "receiver", "refused", GREETING_MS, &m);
    if (rc)
        return no_answer(s, rc);
    refusals = calloc(1, sizeof(*refusals));
    if (!refusals) {
        code = give_up(s, XL_NO_PEER, "out of memory");
        goto out;
    }
    if (!strcmp(remus_message_type(m), "refused")) {
        receiver_refused(s, m, refusals);
        code = print_refusals(s, refusals, s->o.host);
        goto out;
    }
    if (!remus_message_number(m, "protocol", UINT32_MAX, &protocol) ||
        protocol != REMUS_LINE_PROTOCOL) {
        text = remus_message_string(m, "version");
        remus_refuse(refusals,
                     "its version of this package (%s) does not go with this one (%s): install the "
                     "same on both hosts", text ? text : "unknown", REMUS_VERSION);
        code = print_refusals(s, refusals, s->o.host);
        goto out;
    }
    text = remus_message_string(m, "xen");
    snprintf(s->there.xen, sizeof(s->there.xen), "%s", text ? text : "unknown");
    text = remus_message_string(m, "boot_id");
    snprintf(s->there.boot_id, sizeof(s->there.boot_id), "%s", text ? text : "");
    text = remus_message_string(m, "address");
    snprintf(s->receiver_address, sizeof(s->receiver_address), "%s", text ? text : "");
    snprintf(s->there.name, sizeof(s->there.name), "%s", s->o.host);
    remus_preflight_pair(refusals, &s->here, &s->there);
    if (refusals->count)
        code = print_refusals(s, refusals, NULL);
out:
    free(refusals);
    remus_message_free(m);
    return code;
}

static void add_option(void *arg, const char *word)
{
    remus_object_item(arg, word);
}

static struct remus_object *hello(struct supervisor *s)
{
    struct remus_object *o = remus_object_new("hello");
    char uuid[37];
    unsigned int i;

    uuid_unparse_lower(s->session, uuid);
    remus_object_number(o, "protocol", REMUS_LINE_PROTOCOL);
    remus_object_string(o, "version", REMUS_VERSION);
    remus_object_string(o, "session", uuid);
    remus_object_string(o, "host", s->here.name);
    remus_object_string(o, "xen", s->here.xen);
    remus_object_string(o, "name", s->guest.name);
    remus_object_string(o, "uuid", s->guest.uuid);
    remus_object_number(o, "domid", s->guest.domid);
    remus_object_number(o, "memory_kb", s->guest.memory_kb);
    remus_object_number(o, "need_kb", s->guest.need_kb);
    remus_object_number(o, "pages", s->guest.pages);
    remus_object_number(o, "vcpus", s->guest.vcpus);
    remus_object_string(o, "mode", s->o.mode);
    remus_object_string(o, "arbiter", s->o.arbiter);
    remus_object_number(o, "period_ms", s->o.period_ms);
    remus_object_number(o, "heartbeat_ms", s->o.heartbeat_ms);
    remus_object_number(o, "timeout_ms", s->o.timeout_ms);
    remus_object_number(o, "deadline_ms", s->o.deadline_ms);
    remus_object_flag(o, "verify", s->o.verify);
    remus_object_flag(o, "was_lost", s->was_lost);
    remus_object_flag(o, "net", !s->o.no_net && s->guest.vifs);
    remus_object_flag(o, "plain", s->o.plain);
    remus_object_string(o, "listen", s->o.data_address);
    remus_object_number(o, "port", s->o.data_port);
    if (s->o.heartbeat_address[0]) {
        remus_object_string(o, "heartbeat_listen", s->o.heartbeat_address);
        remus_object_number(o, "heartbeat_port", s->o.heartbeat_port);
    }
    if (s->o.reprotect) {
        remus_object_string(o, "reprotect", s->o.reprotect);
        remus_object_string(o, "known_as", s->o.host);
        remus_object_list(o, "options");
        remus_options_words(&s->o, add_option, o);
        remus_object_list_end(o);
    }
    remus_object_list(o, "vifs");
    for (i = 0; i < s->guest.vifs && i < REMUS_VIFS_MAX; i++) {
        remus_object_map(o, NULL);
        remus_object_string(o, "bridge", s->guest.vif[i].bridge);
        remus_object_string(o, "mac", s->guest.vif[i].mac);
        remus_object_map_end(o);
    }
    remus_object_list_end(o);
    remus_object_list(o, "disks");
    for (i = 0; i < s->guest.disk_count; i++) {
        const struct remus_disk_place *d = &s->guest.disk[i];

        remus_object_map(o, NULL);
        remus_object_string(o, "path", d->path);
        remus_object_number(o, "vdev", d->vdev);
        remus_object_number(o, "sectors", d->sectors);
        remus_object_number(o, "sector_size", d->logical_bytes);
        remus_object_number(o, "read_only", d->read_only);
        remus_object_map_end(o);
    }
    remus_object_list_end(o);
    return o;
}

static int negotiate(struct supervisor *s)
{
    struct remus_message *m = NULL;
    struct remus_refusals *refusals;
    const char *secret;
    uint64_t port = 0;
    int rc, code = 0;

    rc = remus_talk_send(s->talk, hello(s), false);
    if (!rc)
        rc = await(s, "ready", "refused", ANSWER_MS, &m);
    if (rc)
        return no_answer(s, rc);
    if (!strcmp(remus_message_type(m), "refused")) {
        refusals = calloc(1, sizeof(*refusals));
        if (!refusals) {
            code = give_up(s, XL_NO_PEER, "out of memory");
            goto out;
        }
        receiver_refused(s, m, refusals);
        code = print_refusals(s, refusals, s->o.host);
        free(refusals);
        goto out;
    }
    secret = remus_message_string(m, "secret");
    if (!remus_message_number(m, "port", 65535, &port) || !port || !secret ||
        remus_secret_parse(s->secret, secret)) {
        code = give_up(s, XL_NO_PEER, "%s is ready, but says neither port nor secret", s->o.host);
        goto out;
    }
    /* What one side takes for encrypted must not be clear to the other. */
    if (remus_message_flag(m, "plain", false) != s->o.plain) {
        code = give_up(s, XL_NO_PEER, "%s is ready for data %s, not %s as it was told", s->o.host,
                       s->o.plain ? "encrypted" : "in clear",
                       s->o.plain ? "in clear" : "encrypted");
        goto out;
    }
    s->port = (uint16_t)port;
    port = 0;
    if (s->o.heartbeat_address[0] &&
        (!remus_message_number(m, "heartbeat_port", 65535, &port) || !port)) {
        code = give_up(s, XL_NO_PEER, "%s knows no second network: is its version another one?",
                       s->o.host);
        goto out;
    }
    s->heartbeat_port = (uint16_t)port;
out:
    remus_message_free(m);
    return code;
}

static int connect_channel(struct supervisor *s, const char *address, uint16_t channel)
{
    const uint16_t port = channel == REMUS_CHANNEL_HEARTBEAT ? s->heartbeat_port : s->port;

    return remus_connect_channel(address, port, channel, s->secret, s->o.plain, CONNECT_MS,
                                 &s->fds[channel], s->error);
}

static int connect_data(struct supervisor *s)
{
    struct remus_message *m = NULL;
    struct remus_refusals *refusals = NULL;
    char address[256];
    bool net = !s->o.no_net && s->guest.vifs;
    int rc, code = 0;

    if (s->o.blackhole)
        snprintf(address, sizeof(address), "%s", s->receiver_address);
    else if (s->o.data_address[0])
        snprintf(address, sizeof(address), "%s", s->o.data_address);
    else
        remus_host_address(address, sizeof(address), s->o.host);
    rc = connect_channel(s, address, REMUS_CHANNEL_LINK);
    /* A host that only ssh's configuration knows by this name. */
    if (rc == -EADDRNOTAVAIL && !s->o.data_address[0] && s->receiver_address[0]) {
        snprintf(address, sizeof(address), "%s", s->receiver_address);
        rc = connect_channel(s, address, REMUS_CHANNEL_LINK);
    }
    if (!rc && net)
        rc = connect_channel(s, address, REMUS_CHANNEL_PACKETS);
    if (!rc && s->guest.disk_count)
        rc = connect_channel(s, address, REMUS_CHANNEL_DISKS);
    if (!rc && s->o.heartbeat_address[0])
        rc = connect_channel(s, s->o.heartbeat_address, REMUS_CHANNEL_HEARTBEAT);
    explicit_bzero(s->secret, sizeof(s->secret));
    if (rc)
        return give_up(s, XL_NO_PEER, "%s", s->error);
    rc = await(s, "connected", "refused", CONNECTED_MS, &m);
    if (rc)
        return no_answer(s, rc);
    if (!strcmp(remus_message_type(m), "refused")) {
        refusals = calloc(1, sizeof(*refusals));
        if (refusals)
            receiver_refused(s, m, refusals);
        code = give_up(s, XL_NO_PEER, "%s: %s", s->o.host,
                       refusals ? refusals->text[0] : "refused");
        free(refusals);
    }
    remus_message_free(m);
    return code;
}

/* ---- Running ------------------------------------------------------------------------------ */

static int start(struct supervisor *s)
{
    struct remus_session_params p = {
        .role = REMUS_PRIMARY,
        .domid = s->guest.domid,
        .peer = s->o.host,
        .core = {
            .role = REMUS_PRIMARY,
            .mode = remus_mode_by_name(s->o.mode),
            .period_ms = s->o.period_ms,
            .rest_ms = s->o.rest_ms,
            .heartbeat_ms = s->o.heartbeat_ms ? s->o.heartbeat_ms : 100,
            .timeout_ms = s->o.timeout_ms ? s->o.timeout_ms : 3000,
            /* What a guest has asked of a slow disk ends first. */
            .drain_timeout_ms = s->guest.disk_count ? 5000 : 0,
            .net = !s->o.no_net && s->guest.vifs,
            .nowhere = s->o.blackhole,
        },
        .verify = s->o.verify,
        .compress = s->o.compress,
        .net = !s->o.no_net && s->guest.vifs,
        .vifs = s->guest.vifs,
        .link_fd = s->fds[REMUS_CHANNEL_LINK],
        .packet_fd = s->fds[REMUS_CHANNEL_PACKETS],
        .libexec = s->here.libexec,
        .deadline_max_ms = s->o.deadline_ms,
        .cache_pages = (uint64_t)s->o.map_cache_mib * (1u << 20) / 4096,
        .bypass = s->o.bypass,
        .bypass_count = s->o.bypass_count,
        .disk = s->guest.disk_count > 0,
        .shared_disks = s->o.no_disk,
        .disk_fd = s->fds[REMUS_CHANNEL_DISKS],
        .heartbeat_fd = s->fds[REMUS_CHANNEL_HEARTBEAT],
        .guard_fd = s->guard_fd,
        .sync_kib = s->o.sync_kib,
        .keep_disks = s->o.catch_up ? REMUS_KEEP_ALWAYS
                      : s->o.reprotect || s->o.keep_trying ? REMUS_KEEP_UNLESS_STOPPED
                                                           : REMUS_KEEP_NEVER,
    };
    unsigned int i;
    int rc;

    if (!p.core.mode->holds_output && !p.core.mode->chooses)
        say(s, XC_SR_WARN, "%s: output is not held.  After a takeover the guest goes on from its "
            "last checkpoint: what it told its clients since then is forgotten, their connections "
            "may break", p.core.mode->name);
    if (s->o.blackhole)
        say(s, XC_SR_WARN, "-b: there is no copy of %s, nothing protects it", s->guest.name);
    p.arbiter = s->o.arbiter;
    p.hooks = s->notifier.dir;
    memcpy(p.session, s->session, sizeof(p.session));
    rc = worker_start(&s->worker, &p, s->log_fd, s->lock_fd);
    for (i = 0; i < REMUS_CHANNELS; i++) {
        if (s->fds[i] >= 0)
            close(s->fds[i]);
        s->fds[i] = -1;
    }
    return rc ? give_up(s, XL_NO_PEER, "the worker process cannot be started: %s", strerror(-rc))
              : 0;
}

/* For `systemctl status`. */
static void show_to_systemd(struct supervisor *s, const struct remus_status *status)
{
    char text[256];

    snprintf(text, sizeof(text), "%s, copy on %.100s, epoch %llu, health: %s",
             display_state(status), s->o.host, (unsigned long long)status->epoch,
             remus_health_name(status->health));
    systemd_status(text);
}

static void take_status(struct supervisor *s, struct remus_status *status)
{
    uint64_t now = remus_now_ms();

    if (!status->domid)
        status->domid = s->guest.domid;
    if (!status->domain[0])
        snprintf(status->domain, sizeof(status->domain), "%s", s->guest.name);
    if (!status->peer[0])
        snprintf(status->peer, sizeof(status->peer), "%.255s", s->o.host);
    if (!status->mode[0])
        snprintf(status->mode, sizeof(status->mode), "%s", s->o.mode);
    if (now - s->recorded_ms >= RECORD_MS || status->state != s->last.state) {
        s->recorded_ms = now;
        record_write(status);
        show_to_systemd(s, status);
    }
    s->last = *status;
    display_status(&s->d, now, status);
}

/* ---- Hooks -------------------------------------------------------------------------------- */

/* status: of the session, if it has ended; -1. */
static void notify(struct supervisor *s, enum remus_transition what, uint64_t epoch,
                   const char *reason, int status)
{
    struct notice notice = {
        .what = what, .role = REMUS_PRIMARY, .domid = s->guest.domid, .status = status,
        .epoch = epoch,
    };
    int rc;

    if (what == REMUS_T_PROTECTED && s->was_lost)
        notice.what = REMUS_T_REPROTECTED;
    snprintf(notice.domain, sizeof(notice.domain), "%s", s->guest.name);
    snprintf(notice.peer, sizeof(notice.peer), "%.255s", s->o.host);
    snprintf(notice.mode, sizeof(notice.mode), "%.15s",
             s->last.mode[0] ? s->last.mode : s->o.mode);
    snprintf(notice.session, sizeof(notice.session), "%s", s->session_text);
    snprintf(notice.reason, sizeof(notice.reason), "%s", reason);
    rc = notifier_tell(&s->notifier, &notice);
    if (rc)
        say(s, XC_SR_WARN, "hooks for '%s' are not run: %s", remus_transition_name(what),
            rc == -EAGAIN ? "too many wait" : strerror(-rc));
}

static void notify_end(struct supervisor *s, int status)
{
    enum remus_transition what = remus_transition_of_end(REMUS_PRIMARY, status);

    /* One that never was protected has lost nothing. */
    record_lost(s->guest.uuid, (status == XL_UNPROTECTED || status == XL_UNDECIDED) &&
                (s->was_protected || s->was_lost));
    notify(s, what, s->last.checkpoints, s->end_text, status);
}

static void read_notifier(struct supervisor *s)
{
    char text[1024];

    while (notifier_next(&s->notifier, text, sizeof(text)))
        display_message(&s->d, XC_SR_WARN, NULL, text);
}

static void took_notice(struct supervisor *s, const struct worker_message *m)
{
    const enum remus_transition what = (enum remus_transition)m->transition.what;

    notify(s, what, m->transition.epoch, m->transition.reason, -1);
    if (what == REMUS_T_PROTECTED)
        record_lost(s->guest.uuid, false);
}

/* False: the worker is gone. */
static bool read_worker(struct supervisor *s)
{
    static struct worker_message m;

    for (;;) {
        switch (worker_next(&s->worker, &m)) {
        case WORKER_NOTHING:
            return true;
        case WORKER_LOG:
            display_message(&s->d, (enum xc_sr_level)m.level, NULL, m.text);
            break;
        case WORKER_STATUS:
            take_status(s, &m.status);
            break;
        case WORKER_TRANSITION:
            took_notice(s, &m);
            break;
        case WORKER_COMMITTED:
            s->was_protected = true;
            break;
        case WORKER_ACTIVE:
        case WORKER_SETTLED:
            break;
        case WORKER_RESULT:
            s->have_result = true;
            s->rc = m.rc;
            s->result = m.result;
            break;
        case WORKER_ENDED:
            return false;
        }
    }
}

static void drop_talk(struct supervisor *s)
{
    remus_talk_free(s->talk);
    s->talk = NULL;
}

static void read_receiver(struct supervisor *s, int rc)
{
    struct remus_message *m;
    const char *type, *text;
    uint64_t level;
    int r;

    while (s->talk && (r = remus_talk_next(s->talk, &m)) != 0) {
        if (r < 0) {
            display_message(&s->d, XC_SR_WARN, s->o.host, remus_talk_bad(s->talk));
            continue;
        }
        type = remus_message_type(m);
        text = remus_message_string(m, "text");
        if (!strcmp(type, "active"))
            s->fate = FATE_ACTIVE;
        else if (!strcmp(type, "end") && s->fate != FATE_ACTIVE)
            s->fate = FATE_GONE;
        else if (!strcmp(type, "log") && text &&
                 remus_message_number(m, "level", XC_SR_ERROR, &level))
            display_message(&s->d, (enum xc_sr_level)level, s->o.host, text);
        remus_message_free(m);
    }
    if (rc == -EPIPE)
        drop_talk(s);
}

/* Until the receiver has said what became of the copy. */
static void await_fate(struct supervisor *s, unsigned int timeout_ms)
{
    uint64_t deadline = remus_now_ms() + timeout_ms;

    while (s->talk && s->fate == FATE_UNKNOWN) {
        struct pollfd p[2];
        uint64_t now = remus_now_ms();

        p[0] = (struct pollfd){.fd = remus_talk_in(s->talk), .events = POLLIN};
        p[1] = (struct pollfd){.fd = remus_talk_out(s->talk), .events = POLLOUT};
        if (poll(p, 2, now < deadline ? (int)(deadline - now) : 0) < 0 && errno != EINTR)
            return;
        if (p[1].revents)
            (void)remus_talk_flush(s->talk);
        if (p[0].revents)
            read_receiver(s, remus_talk_fill(s->talk));
        if (now >= deadline) /* looked at, all the same */
            return;
    }
}

static void stop_asked(struct supervisor *s)
{
    if (s->stops++ == 0) {
        say(s, XC_SR_INFO, "ending protection of %s in order; it runs on here", s->guest.name);
        worker_stop(&s->worker);
    } else {
        say(s, XC_SR_INFO,
            "still waiting for %s to let its copy go (%s); the guest keeps running, and this ends "
            "by itself within seconds", s->o.host, display_state(&s->last));
    }
}

static void read_signals(struct supervisor *s, int fd)
{
    struct signalfd_siginfo info;

    while (read(fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo != SIGHUP) {
            stop_asked(s);
            continue;
        }
        /* The terminal went away: no reason for the guest to lose its protection. */
        s->d.quiet = true;
        s->d.terminal = s->d.live = false;
        say(s, XC_SR_INFO, "the terminal is gone; protection goes on (xl remus-status; to end it: "
            "kill %d)", (int)getpid());
    }
}

/* A worker whose guest is fenced may still pass on to the copy what the network sends here. */
static bool is_needed(const struct supervisor *s, uint64_t *until_ms)
{
    const uint64_t now = remus_now_ms();

    if (s->fate != FATE_ACTIVE)
        return true;
    if (!*until_ms)
        *until_ms = now + PASSES_ON_MS;
    return s->last.fenced && now < *until_ms;
}

/* Until the worker has ended, or the copy has turned out to be the guest. */
static void supervise(struct supervisor *s, int signal_fd)
{
    uint64_t until_ms = 0;
    bool alive = true;

    while (alive && is_needed(s, &until_ms)) {
        struct pollfd p[5] = {
            {.fd = s->worker.fd, .events = POLLIN},
            {.fd = signal_fd, .events = POLLIN},
            {.fd = s->talk ? remus_talk_in(s->talk) : -1, .events = POLLIN},
            {.fd = s->talk ? remus_talk_out(s->talk) : -1, .events = POLLOUT},
            {.fd = s->notifier.fd, .events = POLLIN},
        };

        if (poll(p, 5, 1000) < 0 && errno != EINTR)
            break;
        if (p[4].revents)
            read_notifier(s);
        if (p[3].revents)
            (void)remus_talk_flush(s->talk);
        if (p[2].revents) {
            read_receiver(s, remus_talk_fill(s->talk));
            if (!s->talk && !s->have_result && s->fate != FATE_ACTIVE)
                say(s, XC_SR_INFO, "ssh to %s has ended; protection does not depend on it",
                    s->o.host);
        }
        if (p[1].revents)
            read_signals(s, signal_fd);
        if (p[0].revents)
            alive = read_worker(s);
    }
}

/* ---- The end ------------------------------------------------------------------------------ */

static int end(struct supervisor *s, int code, const char *name, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static int end(struct supervisor *s, int code, const char *name, const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (s->log_fd >= 0)
        dprintf(s->log_fd, "supervisor: end (%s, status %d): %s\n", name, code, text);
    snprintf(s->end_text, sizeof(s->end_text), "%s", text);
    display_end(&s->d, code, name, text, s->have_result ? &s->result.last : &s->last);
    systemd_status(text);
    return code;
}

static struct rescue_guest guest_of(const struct supervisor *s)
{
    return (struct rescue_guest){
        .domid = s->guest.domid, .name = s->guest.name, .uuid = s->guest.uuid,
    };
}

/* The copy on HOST is the guest: this one must not be. */
static int yield_guest(struct supervisor *s)
{
    const struct rescue_guest guest = guest_of(s);
    const char *name = s->guest.name;

    /* Killed first: colo-proxyd ends with it and the guest's output is dropped from then on. */
    worker_kill(&s->worker);
    worker_reap(&s->worker);
    if (rescue_destroy(&guest, say_rescue, s))
        return end(s, XL_FENCED, "fenced",
                   "%s runs on %s now; the one here is fenced but not gone; run: xl destroy %s",
                   name, s->o.host, name);
    return end(s, XL_FENCED, "fenced", "%s runs on %s now; the one here was destroyed", name,
               s->o.host);
}

/* Something was heard of the copy, or an operator asks for the end. */
static bool fate_known(void *arg)
{
    struct supervisor *s = arg;

    await_fate(s, 0);
    if (s->signal_fd >= 0)
        read_signals(s, s->signal_fd);
    return s->fate != FATE_UNKNOWN || s->stops > s->stops_before;
}

/*
 * The worker here cannot ask any more, or was denied: its answer stands, and is given again.  An
 * arbiter that does not answer is asked until it does, as a guest without network is of no use.
 */
static void ask_arbiter(struct supervisor *s)
{
    struct remus_arbiter arbiter = arbiter_of(s);
    char said[REMUS_ARBITER_SAID], told[REMUS_ARBITER_SAID] = "";
    int rc;

    arbiter.give_up = fate_known;
    arbiter.arg = s;
    s->stops_before = s->stops;
    say(s, XC_SR_WARN, "%s does not answer; asking the arbiter (%s) whether %s goes on here",
        s->o.host, s->o.arbiter, s->guest.name);
    for (;;) {
        rc = remus_arbiter_run(&arbiter, "acquire", 0, said);
        if (rc >= 0) {
            say(s, rc ? XC_SR_WARN : XC_SR_INFO, "the arbiter says: %s (%s)", rc ? "stop" : "go on",
                said);
            s->fate = rc ? FATE_ACTIVE : FATE_GONE;
        }
        if (rc >= 0 || fate_known(s))
            return;
        if (strcmp(told, said))
            say(s, XC_SR_WARN, "the arbiter gives no answer (%s); asking again", said);
        snprintf(told, sizeof(told), "%s", said);
        poll(NULL, 0, ARBITER_AGAIN_MS);
    }
}

/* The guest here is fenced, or will be: what becomes of it is what became of its copy. */
static int end_by_fate(struct supervisor *s)
{
    const struct rescue_guest guest = guest_of(s);
    const char *name = s->guest.name;
    /* The copy was told to take over without asking: to ask now might let both go on. */
    bool handed_over = s->have_result && s->result.end == REMUS_END_HANDED_OVER;
    bool stopped = handed_over || (s->have_result && s->result.end == REMUS_END_FENCED);
    int rc;

    await_fate(s, (s->o.timeout_ms ? s->o.timeout_ms : 3000) + END_MS);
    if (s->fate == FATE_UNKNOWN && s->was_protected && !handed_over &&
        !remus_arbiter_is_none(s->o.arbiter))
        ask_arbiter(s);
    if (s->fate == FATE_ACTIVE)
        return yield_guest(s);
    /* A copy that never held a whole checkpoint cannot have taken over. */
    if (s->fate == FATE_GONE || !s->was_protected) {
        drop_guard(s);
        rc = rescue_resume(&guest, true, say_rescue, s);
        return end(s, rc == -ESRCH ? XL_GUEST_ENDED : XL_UNPROTECTED,
                   rc == -ESRCH ? "guest-ended" : "failed", "%s %s", name,
                   rc == -ESRCH ? "has ended"
                   : rc         ? "is not protected; what could not be repaired is said above"
                                : "runs unprotected");
    }
    if (stopped)
        (void)rescue_cut_off(s->guest.domid);
    else
        (void)rescue_resume(&guest, false, say_rescue, s);
    return end(s, XL_UNDECIDED, "undecided",
               "%s %s, because %s does not answer and may have taken over. If it has: xl destroy "
               "%s. If it is off, or has no %s: xl remus --release %s", name,
               stopped ? "is paused and cut off from its network"
                       : "runs, but cut off from its network",
               s->o.host, name, name, name);
}

static int worker_died(struct supervisor *s, int status)
{
    char how[64];

    if (status >= 0 && WIFSIGNALED(status))
        snprintf(how, sizeof(how), "was killed by signal %d", WTERMSIG(status));
    else
        snprintf(how, sizeof(how), "ended with status %d",
                 status >= 0 ? WEXITSTATUS(status) : status);
    say(s, XC_SR_ERROR, "the process that protected %s %s (see %s); asking %s", s->guest.name, how,
        s->log_path, s->o.host);
    if (s->talk)
        (void)remus_talk_send(s->talk, remus_object_new("primary-worker-died"), false);
    return end_by_fate(s);
}

static int conclude(struct supervisor *s)
{
    const struct rescue_guest guest = guest_of(s);
    const char *name = s->guest.name;
    int status;

    if (s->fate == FATE_ACTIVE)
        return yield_guest(s);
    if (s->have_result && s->result.disks_kept)
        worker_let_go(&s->worker);
    status = worker_reap(&s->worker);
    if (!s->have_result)
        return worker_died(s, status);
    if (s->rc ||
        (s->result.end != REMUS_END_FENCED && s->result.end != REMUS_END_HANDED_OVER))
        drop_guard(s);
    if (s->rc) {
        (void)rescue_check(&guest, true, say_rescue, s);
        return end(s, XL_UNPROTECTED, "failed", "protection of %s could not begin: %s%s%s; it runs "
                   "unprotected", name, strerror(-s->rc), s->result.reason[0] ? ": " : "",
                   s->result.reason);
    }
    switch (s->result.end) {
    case REMUS_END_STOPPED:
        (void)rescue_check(&guest, false, say_rescue, s);
        await_fate(s, END_MS);
        return end(s, XL_ENDED, "stopped", "%s runs unprotected, its copy is gone (%s)", name,
                   s->result.reason);
    case REMUS_END_GUEST:
        await_fate(s, END_MS);
        return end(s, XL_GUEST_ENDED, "guest-ended", "%s ended by itself (%s); no takeover", name,
                   s->result.reason);
    case REMUS_END_HANDED_OVER:
    case REMUS_END_FENCED:
        say(s, XC_SR_ERROR, "%s was stopped here: %s", name, s->result.reason);
        return end_by_fate(s);
    case REMUS_END_ALONE:
        /* ssh may get through where the data does not: never two of the same guest. */
        say(s, XC_SR_WARN, "%s is lost (%s); %s runs on unprotected", s->o.host, s->result.reason,
            name);
        (void)rescue_check(&guest, true, say_rescue, s);
        await_fate(s, (s->o.timeout_ms ? s->o.timeout_ms : 3000) + 2000);
        if (s->fate == FATE_ACTIVE)
            return yield_guest(s);
        return end(s, XL_UNPROTECTED, "alone", "%s runs unprotected: %s", name, s->result.reason);
    case REMUS_END_ACTIVE:
    case REMUS_END_FAILED:
        break;
    }
    (void)rescue_check(&guest, true, say_rescue, s);
    /* A copy that never held a whole checkpoint cannot have taken over: for tidiness only. */
    await_fate(s, s->was_protected ? END_MS : END_COPY_MS);
    if (s->fate == FATE_ACTIVE)
        return yield_guest(s);
    return end(s, XL_UNPROTECTED, "failed", "%s runs unprotected: %s", name, s->result.reason);
}

/* ---- Beginning ---------------------------------------------------------------------------- */

/* xl remus --release: after exit status 7, when the operator knows that HOST is out. */
static int release(struct supervisor *s)
{
    struct remus_facts_ctx *facts = NULL;
    struct rescue_guest guest;
    uint32_t domid;
    pid_t holder;
    int rc;

    if (remus_facts_open(&facts, s->o.verbose, s->error))
        return give_up(s, XL_REFUSED, "%s", s->error);
    rc = remus_facts_find(facts, s->o.domain, &domid);
    if (!rc)
        rc = remus_facts_guest(facts, domid, &s->guest, s->error);
    remus_facts_close(facts);
    if (rc || !domid)
        return give_up(s, XL_REFUSED, "there is no guest %s here", s->o.domain);
    guest = guest_of(s);
    rc = remus_session_lock(domid, &s->lock_fd, &holder);
    if (rc)
        return give_up(s, XL_REFUSED, "%s is protected by a session that lives (process %d)",
                       s->guest.name, (int)holder);
    rc = rescue_resume(&guest, true, say_rescue, s);
    record_remove(domid);
    if (rc)
        return end(s, XL_UNPROTECTED, "failed", "not all could be repaired; see above");
    return end(s, XL_ENDED, "released", "%s runs unprotected", s->guest.name);
}

static int watch_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int open_receiver(struct supervisor *s)
{
    int rc;

    if (s->o.blackhole)
        rc = blackhole_start(&s->ssh, s->here.xen);
    else
        rc = remus_ssh_spawn(&s->ssh, s->o.ssh, s->o.host, s->o.receive_command);
    if (!rc) {
        rc = remus_talk_new(&s->talk, s->ssh.in_fd, s->ssh.out_fd);
        if (rc) {
            close(s->ssh.in_fd);
            close(s->ssh.out_fd);
        }
    }
    return rc ? give_up(s, XL_NO_PEER, "ssh cannot be started: %s", strerror(-rc)) : 0;
}

static int run(struct supervisor *s)
{
    struct rescue_guest guest;
    int code;

    uuid_generate(s->session);
    (void)remus_clean_up(NULL);
    code = examine(s);
    if (code)
        return code;
    s->log_fd = s->notifier.log_fd = open_log(s->guest.name, s->log_path, sizeof(s->log_path));
    s->was_lost = record_was_lost(s->guest.uuid);
    code = open_receiver(s);
    if (!code)
        code = greet(s);
    if (!code)
        code = negotiate(s);
    if (!code)
        code = connect_data(s);
    if (code)
        return code;
    if (!s->o.no_net && s->guest.vifs && remus_guard_open(&s->guard_fd))
        return give_up(s, XL_NO_PEER, "netlink does not open: %s", strerror(errno));
    s->signal_fd = watch_signals();
    if (s->signal_fd < 0)
        return give_up(s, XL_NO_PEER, "signals cannot be watched: %s", strerror(errno));
    code = start(s);
    if (code)
        return code;
    supervise(s, s->signal_fd);
    guest = guest_of(s);
    code = conclude(s);
    notify_end(s, code);
    if (code != XL_UNDECIDED && (code == XL_FENCED || rescue_is_there(&guest) ||
                                 code == XL_GUEST_ENDED))
        record_remove(s->guest.domid);
    record_forget_session(s->session_text);
    close(s->signal_fd);
    return code;
}

static int attempt(void *arg)
{
    struct supervisor *s = arg;
    int code = run(s);

    /* The receiver sees the end of its input; ssh is not waited for long, it may be stuck. */
    drop_talk(s);
    remus_ssh_end(&s->ssh, SSH_END_MS);
    return code;
}

/* Another one may do better, if HOST was lost or is not ready (yet). */
static bool again(void *arg, int code, bool first)
{
    struct supervisor *s = arg;
    bool better = code == XL_UNPROTECTED || code == XL_NO_PEER ||
                  (code == XL_REFUSED && (!first || s->o.keep_trying));

    if (better)
        say(s, XC_SR_INFO, "trying again in %u s", KEEP_PAUSE_S);
    return better;
}

/* No session follows any more: the kernel's backend serves the guest's disks again. */
static void give_disks_back(struct supervisor *s)
{
    struct remus_facts_ctx *facts = NULL;
    uint32_t domid;
    int rc;

    if (remus_facts_open(&facts, s->o.verbose, s->error))
        return;
    rc = remus_facts_find(facts, s->o.domain, &domid);
    remus_facts_close(facts);
    if (!rc && remus_disk_minder(domid) &&
        (rc = remus_disk_minder_ask(domid, REMUS_DISK_MINDER_GIVE)))
        say(s, XC_SR_WARN, "colo-blkd serves the disks of %s still: %s; run: xl remus --release %s",
            s->o.domain, strerror(-rc), s->o.domain);
}

static int keep_protected(struct supervisor *s)
{
    int code = keep(attempt, again, s);

    if (!s->o.catch_up)
        give_disks_back(s);
    return code;
}

int cmd_remus(int argc, char **argv)
{
    static struct supervisor s;
    char error[OPTIONS_ERROR_BYTES];
    int code;

    s.log_fd = s.lock_fd = s.signal_fd = -1;
    s.notifier = (struct notifier)NOTIFIER_INIT;
    memset(s.fds, -1, sizeof(s.fds));
    s.guard_fd = -1;
    s.worker.fd = -1;
    if (remus_options_defaults(REMUS_CONFIG_FILE, argc, argv, &argc, &argv, error) ||
        remus_options_parse(argc, argv, &s.o, error)) {
        fprintf(stderr, "xl remus: %s\nTry 'xl remus --help'.\n", error);
        return XL_USAGE;
    }
    if (s.o.help) {
        fputs(remus_options_help, stdout);
        return XL_ENDED;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    display_init(&s.d, stdout, stderr, s.o.json, s.o.quiet, s.o.verbose);
    code = s.o.release                           ? release(&s)
           : s.o.reprotect || s.o.keep_trying ? keep_protected(&s)
                                                 : attempt(&s);
    display_pause(&s.d);
    return code;
}
