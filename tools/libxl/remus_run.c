/*
 * remus_run.c: the machinery under both coordinators.
 *
 * One thread, one libuv loop.  Whatever happens becomes an event in a small queue; the core answers
 * each with actions, which the side (remus_primary.c, remus_secondary.c) carries out.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <uuid/uuid.h>

#include "tools/libxl/remus_disks.h"
#include "tools/libxl/remus_message.h"

#define PERIOD_MS       100u
#define STATS_PERIODS   5u          /* the daemon is asked in every fifth */
#define HUNG_QUESTIONS  20u         /* 10 s without a word: it hangs */
#define STATUS_US       500000u
#define PUBLISH_US      1000000u
#define READY_MS        10000
#define QUIT_MS         3000
#define CHANNEL_GRACE_US 300000u

uint64_t remus_run_now_us(void)
{
    return uv_hrtime() / 1000;
}

void remus_run_log(struct remus_run *r, enum xc_sr_level level, const char *format, ...)
{
    char text[512];
    va_list args;
    int n;

    if (!r->p->log)
        return;
    n = snprintf(text, sizeof(text), "%s: epoch %lu: ", r->name[0] ? r->name : "guest",
                 (unsigned long)r->core.epoch);
    va_start(args, format);
    vsnprintf(text + n, sizeof(text) - (size_t)n, format, args);
    va_end(args);
    r->p->log(r->p->arg, level, text);
}

static void log_from_libxc(void *arg, enum xc_sr_level level, const char *text)
{
    remus_run_log(arg, level, "%s", text);
}

/* ---- Status ---- */

void remus_run_pause_taken(struct remus_run *r, uint64_t pause_us)
{
    r->pauses[r->pause_count++ % RUN_PAUSES] = (uint32_t)pause_us;
    r->status.pause_us = pause_us;
    if (pause_us > r->status.pause_us_max)
        r->status.pause_us_max = pause_us;
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

void remus_run_hide(struct remus_run *r)
{
    r->hidden = true;
}

static const char *mode_asked_for(const struct remus_run *r)
{
    if (r->p->role == REMUS_SECONDARY)
        return r->p->core.mode->name;
    return r->core.chooses ? remus_mode_by_wire(REMUS_MODE_AUTO)->name : r->core.wanted->name;
}

void remus_run_status(struct remus_run *r, bool force)
{
    uint64_t now = remus_run_now_us(), n;
    uint32_t sorted[RUN_PAUSES];
    struct remus_status *s = &r->status;

    if (!r->p->status || r->hidden || (!force && now - r->status_us < STATUS_US))
        return;
    r->status_us = now;
    n = r->pause_count < RUN_PAUSES ? r->pause_count : RUN_PAUSES;
    if (n) {
        memcpy(sorted, r->pauses, n * sizeof(sorted[0]));
        qsort(sorted, n, sizeof(sorted[0]), compare_u32);
        s->pause_us_median = sorted[n / 2];
    }
    s->role = r->p->role;
    s->state = r->core.state;
    s->nowhere = r->core.params.nowhere;
    s->health = r->health.shown;
    s->second_path = remus_run_second_path(r);
    s->lag_ms = r->lag_from_us && now > r->lag_from_us ? (now - r->lag_from_us) / 1000 : 0;
    s->epoch = r->core.epoch;
    s->epoch_age_ms = r->core.epoch_began_us && now > r->core.epoch_began_us
        ? (now - r->core.epoch_began_us) / 1000 : 0;
    snprintf(s->domain, sizeof(s->domain), "%s", r->name);
    snprintf(s->peer, sizeof(s->peer), "%s", r->p->peer ? r->p->peer : "");
    snprintf(s->mode, sizeof(s->mode), "%s", mode_asked_for(r));
    snprintf(s->running_mode, sizeof(s->running_mode), "%s", r->core.mode->name);
    r->p->status(r->p->arg, s);
}

/* ---- Events ---- */

static void arm_timer(struct remus_run *r);

void remus_run_publish(struct remus_run *r, enum remus_node node, const char *text)
{
    static const char *const names[REMUS_NODE_COUNT] = {
        [REMUS_NODE_STATE] = "state",
        [REMUS_NODE_EPOCH] = "epoch",
        [REMUS_NODE_PROTECTED] = "protected",
        [REMUS_NODE_HEALTH] = "health",
        [REMUS_NODE_LAG] = "lag",
        [REMUS_NODE_DIVERGENCE] = "last-divergence",
        [REMUS_NODE_REASON] = "reason",
        [REMUS_NODE_MODE] = "mode",
        [REMUS_NODE_RUNNING_MODE] = "running-mode",
    };
    char clean[sizeof(r->published[0])];

    remus_text_clean(clean, sizeof(clean), text);
    if (r->hidden || !strcmp(clean, r->published[node]))
        return;
    memcpy(r->published[node], clean, sizeof(clean));
    remus_guest_publish(r->xs, r->h.domid, names[node], clean);
}

static void publish_number(struct remus_run *r, enum remus_node node, uint64_t value)
{
    char text[24];

    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    remus_run_publish(r, node, text);
}

/* What changed since it was written last, at most once a second: scripts watch these nodes.  Not
 * while the guest is stopped: xenstored may take its time. */
static void publish(struct remus_run *r)
{
    const struct remus_status *s = &r->status;
    uint64_t now = remus_run_now_us();

    if (!r->h.domid || r->hidden || r->core.guest_stopped || now - r->published_us < PUBLISH_US)
        return;
    r->published_us = now;
    if (!remus_guest_is_there(r->xs, r->h.domid))
        return;         /* what was written now would stay for ever */
    remus_run_publish(r, REMUS_NODE_STATE, remus_state_name(r->core.state));
    publish_number(r, REMUS_NODE_PROTECTED, s->protected_now);
    remus_run_publish(r, REMUS_NODE_HEALTH, remus_health_name(r->health.shown));
    remus_run_publish(r, REMUS_NODE_REASON, r->announced);
    remus_run_publish(r, REMUS_NODE_MODE, mode_asked_for(r));
    remus_run_publish(r, REMUS_NODE_RUNNING_MODE, r->core.mode->name);
    if (r->lag_from_us) {
        publish_number(r, REMUS_NODE_EPOCH, r->core.acked);
        publish_number(r, REMUS_NODE_LAG, (now - r->lag_from_us) / 1000);
    }
    if (s->last_divergence[0])
        remus_run_publish(r, REMUS_NODE_DIVERGENCE, s->last_divergence);
}

void remus_run_introduce(struct remus_run *r)
{
    char pid[16];

    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    remus_guest_publish_open(r->xs, r->h.domid);
    remus_guest_publish(r->xs, r->h.domid, "pid", pid);
    remus_guest_publish(r->xs, r->h.domid, "role",
                        r->p->role == REMUS_PRIMARY ? "primary" : "secondary");
    remus_run_publish(r, REMUS_NODE_MODE, r->p->core.mode->name);
    remus_guest_publish(r->xs, r->h.domid, "peer", r->p->peer ? r->p->peer : "");
    publish_number(r, REMUS_NODE_PROTECTED, 0);
    remus_run_publish(r, REMUS_NODE_HEALTH, remus_health_name(REMUS_UNPROTECTED));
}

/* Told to the supervisor, who tells the hooks.  In xenstore it is seen with the next of what is
 * published there: it may be the middle of a takeover, which does not wait for xenstored. */
static void announce(struct remus_run *r, enum remus_transition what, const char *reason)
{
    if (what == REMUS_T_NONE || r->hidden)
        return;
    remus_run_log(r, XC_SR_DEBUG, "transition: %s (%s)", remus_transition_name(what), reason);
    snprintf(r->status.reason, sizeof(r->status.reason), "%s", reason);
    snprintf(r->announced, sizeof(r->announced), "%s", reason);
    if (r->p->transition)
        r->p->transition(r->p->arg, what, r->core.acked, reason);
}

static void look_at_health(struct remus_run *r)
{
    uint64_t now = remus_run_now_us();
    struct remus_health_facts facts = {
        .rules_lost = r->rules_lost_epoch > r->core.acked,
        .lag_us = r->lag_from_us && now > r->lag_from_us ? now - r->lag_from_us : 0,
        .second_path_lost = remus_run_second_path(r) > REMUS_SECOND_HEARD,
    };
    enum remus_transition what;
    const char *why;

    what = remus_health_show(&r->health, remus_health_judge(&r->core, &facts, &why), now);
    announce(r, what, what == REMUS_T_REPROTECTED ? "all is well again" : why);
}

/* What an event of the core means to others, once its actions are given. */
static void look_at_change(struct remus_run *r, enum remus_state before, uint64_t acked_before)
{
    const struct remus_core *c = &r->core;
    enum remus_transition what = remus_transition_of_states(c, before);
    char text[120];

    if (c->acked != acked_before)
        r->lag_from_us = r->p->role == REMUS_PRIMARY ? c->stopped_us : c->now_us;
    if (what == REMUS_T_PROTECTED) {
        snprintf(text, sizeof(text), "the first checkpoint is whole on %.80s",
                 r->p->role == REMUS_PRIMARY ? r->p->peer : "this host");
        announce(r, what, text);
        look_at_health(r);
    } else {
        announce(r, what, c->reason);
    }
}

/*
 * For the failure tests: REMUS_TEST_STOP_AT="STATE EPOCH", "STATE EPOCH+" for that epoch or any
 * after it, or "STATE" for any, stops this process at that point, as a host does whose power fails
 * there (which the test then lets happen).
 */
static void test_point(struct remus_run *r)
{
    const char *where = getenv("REMUS_TEST_STOP_AT"), *state = remus_state_name(r->core.state);
    const size_t length = strlen(state);
    unsigned long epoch;
    char *end;

    if (!where || strncmp(where, state, length) || (where[length] && where[length] != ' '))
        return;
    epoch = strtoul(where + length, &end, 10);
    if (where[length] && r->core.epoch != epoch && (*end != '+' || r->core.epoch < epoch))
        return;
    unsetenv("REMUS_TEST_STOP_AT");
    raise(SIGSTOP);
}

static void pump(struct remus_run *r)
{
    if (r->pumping)
        return;
    r->pumping = true;
    while (r->event_count && !r->finished) {
        struct remus_event event = r->events[r->event_first].event;
        enum remus_state before = r->core.state;
        uint64_t acked = r->core.acked;
        struct remus_actions actions = { .count = 0 };
        char text[200];
        unsigned int i;

        memcpy(text, r->events[r->event_first].text, sizeof(text));
        event.text = text;
        r->event_first = (r->event_first + 1) % RUN_EVENTS_MAX;
        r->event_count--;
        remus_core_event(&r->core, remus_run_now_us(), &event, &actions);
        r->status.protected_now = remus_core_protects(&r->core);
        if (r->core.state != before)
            remus_run_log(r, XC_SR_DEBUG, "%s -> %s", remus_state_name(before),
                          remus_state_name(r->core.state));
        if (r->core.state != before)
            test_point(r);
        for (i = 0; i < actions.count; i++)
            r->ops->action(r, &actions.list[i]);
        look_at_change(r, before, acked);
    }
    r->pumping = false;
    arm_timer(r);
}

void remus_run_post(struct remus_run *r, enum remus_event_type type, uint64_t epoch,
                    uint64_t value, const char *format, ...)
{
    unsigned int at = (r->event_first + r->event_count) % RUN_EVENTS_MAX;
    va_list args;

    if (r->finished)
        return;
    if (r->event_count == RUN_EVENTS_MAX) {
        /* A handful per action is the rule; more means that a part of us is broken. */
        remus_run_log(r, XC_SR_ERROR, "event queue full, event %d dropped", (int)type);
        return;
    }
    r->events[at].event = (struct remus_event){ .type = type, .epoch = epoch, .value = value };
    r->events[at].text[0] = 0;
    if (format) {
        va_start(args, format);
        vsnprintf(r->events[at].text, sizeof(r->events[at].text), format, args);
        va_end(args);
    }
    r->event_count++;
    pump(r);
}

static void on_timer(uv_timer_t *timer)
{
    remus_run_post(timer->data, RE_TICK, 0, 0, NULL);
}

static void arm_timer(struct remus_run *r)
{
    uint64_t next = remus_core_next_us(&r->core), now = remus_run_now_us();

    if (r->finished || !r->timers_open)
        return;
    if (next == UINT64_MAX)
        uv_timer_stop(&r->timer);
    else
        uv_timer_start(&r->timer, on_timer, next > now ? (next - now + 999) / 1000 : 0, 0);
}

/*
 * A daemon is asked twice a second how it does.  One that says nothing for long hangs, which is as
 * bad as being dead and does not look like it: it is killed.  Questions are counted, not time: when
 * this process was away itself there was one, and the answer is read before the next.
 */
static void ask_daemon(struct remus_run *r, struct remus_daemon *d)
{
    if (!d || d->fd < 0 || d->asked_in++ % STATS_PERIODS)
        return;
    if (d->unanswered++ == HUNG_QUESTIONS && d->running) {
        remus_run_log(r, XC_SR_ERROR, "%s hangs: it has not answered for %u s; it is killed",
                      d->name, HUNG_QUESTIONS * STATS_PERIODS * PERIOD_MS / 1000);
        uv_process_kill(&d->process, SIGKILL);
        return;
    }
    ctl_say(d->fd, CTL_STATS_GET, 0, 0, NULL);
}

static void on_period(uv_timer_t *timer)
{
    struct remus_run *r = timer->data;

    if (r->minding) {
        r->ops->periodic(r);
        return;
    }
    if (r->p->stop_request && *r->p->stop_request && !r->stop_seen) {
        r->stop_seen = true;
        remus_run_post(r, RE_OPERATOR_STOP, 0, 0, NULL);
    }
    /* A secondary that was told to stop ends its daemon before it answers. */
    if (r->channel_lost_us && !r->channel_lost_told && !r->daemon.expected_to_end &&
        r->core.state != RP_STOP && remus_run_now_us() - r->channel_lost_us > CHANNEL_GRACE_US) {
        r->channel_lost_told = true;
        remus_run_link_lost(r, "the packet channel to %s ended", r->p->peer);
    }
    /* Disks that are not replicated end protection in order; the link tells of a lost peer. */
    if (r->disks_lost_us && !r->finished && !r->channel_lost_told &&
        remus_run_now_us() - r->disks_lost_us > CHANNEL_GRACE_US) {
        r->disks_lost_us = 0;
        remus_run_post(r, RE_DAEMON_LOST, 0, 0, "%s", r->disks_lost);
    }
    if (r->finished)
        return;
    remus_run_link_look(r);
    ask_daemon(r, &r->daemon);
    ask_daemon(r, remus_disks_daemon(r));
    if (r->ops->periodic)
        r->ops->periodic(r);
    look_at_health(r);
    publish(r);
    remus_run_status(r, false);
}

/* ---- Daemon ---- */

static void note_stats(struct remus_status *s, const struct ctl_stats *stats)
{
    const uint64_t released = stats->released_equal + stats->released_epoch;

    s->net = *stats;
    s->held_packets = stats->held;
    s->output_delay_us = released ? stats->delay_us_sum / released : 0;
    s->output_delay_us_max = stats->delay_us_max;
}

/* The daemon is confined because it may be taken over: its strings end where their fields do. */
static void note_vifs(struct remus_status *s, const struct ctl_vif_stats *vifs, unsigned int count)
{
    unsigned int i;

    for (i = 0; i < count; i++) {
        s->vifs[i] = vifs[i];
        s->vifs[i].name[sizeof(vifs[i].name) - 1] = 0;
    }
    s->vif_count = count;
}

static void note_disks(struct remus_status *s, const struct ctl_blk_stats *disks,
                       unsigned int count)
{
    memcpy(s->disks, disks, count * sizeof(*disks));
    s->disk_count = count;
}

static void note_causes(struct remus_status *s, const struct ctl_cause *causes, unsigned int count)
{
    unsigned int i;

    for (i = 0; i < count; i++) {
        s->causes[i] = causes[i];
        s->causes[i].vif[sizeof(causes[i].vif) - 1] = 0;
        s->causes[i].flow[sizeof(causes[i].flow) - 1] = 0;
        s->causes[i].last[sizeof(causes[i].last) - 1] = 0;
    }
    s->cause_count = count;
}

static void dispatch_control(struct remus_daemon *d, const struct ctl_in *in)
{
    struct remus_run *r = d->run;

    switch (in->msg.type) {
    case CTL_READY:
        break;
    case CTL_CHANNEL_LOST:
        if (d != &r->daemon) {
            if (!r->disks_lost_us)
                r->disks_lost_us = remus_run_now_us();
            remus_disks_channel_lost(r);
            snprintf(r->disks_lost, sizeof(r->disks_lost), "%.150s", in->text);
            break;
        }
        /* In an orderly end the channel goes at about the same time as STOPPED comes: see later. */
        if (!r->channel_lost_us)
            r->channel_lost_us = remus_run_now_us();
        break;
    case CTL_FAILED:
        remus_run_log(r, XC_SR_ERROR, "%s: %s", d->name, in->text);
        snprintf(d->last_words, sizeof(d->last_words), ": %.150s", in->text);
        break;
    case CTL_BLK_STATS:
        note_disks(&r->status, in->structs.disks, in->msg.count);
        break;
    case CTL_STATS:
        note_stats(&r->status, &in->structs.stats);
        break;
    case CTL_VIF_STATS:
        note_vifs(&r->status, in->structs.vifs, in->msg.count);
        break;
    case CTL_CAUSES:
        note_causes(&r->status, in->structs.causes, in->msg.count);
        break;
    default:
        r->ops->control(r, in);
    }
}

/* It ended by itself, which is seen in two ways; said once. */
__attribute__((format(printf, 2, 3)))
static void daemon_lost(struct remus_daemon *d, const char *format, ...)
{
    char how[64];
    va_list args;

    if (d->expected_to_end)
        return;
    d->expected_to_end = d->killed = true;
    va_start(args, format);
    vsnprintf(how, sizeof(how), format, args);
    va_end(args);
    if (d->run->ops->daemon_lost)
        d->run->ops->daemon_lost(d->run, d);
    remus_run_post(d->run, RE_DAEMON_LOST, 0, d != &d->run->daemon, "%s %s%s", d->name, how,
                   d->last_words);
}

static void on_control(uv_poll_t *poll_handle, int status, int events)
{
    struct remus_daemon *d = poll_handle->data;

    (void)status;
    (void)events;
    while (d->fd >= 0 && (!d->run->finished || d->run->minding)) {
        struct ctl_in in;
        int rc = ctl_recv(d->fd, &in);

        if (rc == -EAGAIN)
            return;
        if (rc == -EPROTO) {
            remus_run_log(d->run, XC_SR_ERROR, "%s sent a malformed message", d->name);
            continue;
        }
        if (rc) {
            uv_poll_stop(&d->poll);
            daemon_lost(d, "has ended");
            return;
        }
        d->unanswered = 0;
        dispatch_control(d, &in);
        ctl_in_dispose(&in);
    }
}

static void on_daemon_exit(uv_process_t *process, int64_t status, int signal_number)
{
    struct remus_daemon *d = process->data;

    d->running = false;
    if (signal_number)
        daemon_lost(d, "was killed by signal %d", signal_number);
    else
        daemon_lost(d, "ended with status %d", (int)status);
}

int remus_run_daemon_start(struct remus_run *r, struct remus_daemon *d, char **args,
                           int channel_fd, int keep_fd)
{
    uv_stdio_container_t stdio[6] = {
        { .flags = UV_IGNORE }, { .flags = UV_INHERIT_FD, .data.fd = 2 },
        { .flags = UV_INHERIT_FD, .data.fd = 2 },
    };
    uv_process_options_t options = { .flags = UV_PROCESS_DETACHED };
    int pair[2], rc;
    char path[512];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -errno;
    stdio[REMUS_CTL_FD].flags = UV_INHERIT_FD;
    stdio[REMUS_CTL_FD].data.fd = pair[1];
    stdio[REMUS_CHANNEL_FD].flags = channel_fd >= 0 ? UV_INHERIT_FD : UV_IGNORE;
    stdio[REMUS_CHANNEL_FD].data.fd = channel_fd;
    stdio[REMUS_BLK_KEEP_FD].flags = keep_fd >= 0 ? UV_INHERIT_FD : UV_IGNORE;
    stdio[REMUS_BLK_KEEP_FD].data.fd = keep_fd;
    snprintf(path, sizeof(path), "%s/%s", r->p->libexec, args[0]);
    options.file = path;
    options.args = args;
    options.stdio = stdio;
    options.stdio_count = keep_fd >= 0 ? 6 : 5;
    options.exit_cb = on_daemon_exit;
    d->run = r;
    snprintf(d->name, sizeof(d->name), "%s", args[0]);
    d->process.data = d;
    rc = uv_spawn(&r->loop, &d->process, &options);
    d->process_open = true;
    close(pair[1]);
    if (rc) {
        close(pair[0]);
        remus_run_log(r, XC_SR_ERROR, "cannot start %s: %s", path, uv_strerror(rc));
        return rc;
    }
    d->running = true;
    d->fd = pair[0];
    fcntl(pair[0], F_SETFL, fcntl(pair[0], F_GETFL) | O_NONBLOCK);
    rc = remus_run_daemon_wait(d, CTL_READY, READY_MS);
    if (rc) {
        remus_run_log(r, XC_SR_ERROR, "%s did not become ready (%s)", d->name, strerror(-rc));
        return rc;
    }
    uv_poll_init(&r->loop, &d->poll, d->fd);
    d->poll.data = d;
    d->poll_open = true;
    uv_poll_start(&d->poll, UV_READABLE, on_control);
    return 0;
}

int remus_run_daemon_wait_for(struct remus_daemon *d, uint32_t type, uint64_t epoch,
                              int timeout_ms)
{
    uint64_t deadline = remus_run_now_us() + (uint64_t)timeout_ms * 1000;

    for (;;) {
        struct pollfd p = { .fd = d->fd, .events = POLLIN };
        uint64_t now = remus_run_now_us();
        struct ctl_in in;
        bool found;
        int rc;

        if (d->fd < 0)
            return -EPIPE;
        rc = ctl_recv(d->fd, &in);
        if (rc == 0) {
            d->unanswered = 0;
            found = in.msg.type == type && (epoch == RUN_ANY_EPOCH || in.msg.epoch == epoch);
            if (!found)
                dispatch_control(d, &in);
            ctl_in_dispose(&in);
            if (found)
                return 0;
            continue;
        }
        if (rc != -EAGAIN)
            return rc;
        if (now >= deadline)
            return -ETIMEDOUT;
        poll(&p, 1, (int)((deadline - now + 999) / 1000));
    }
}

int remus_run_daemon_wait(struct remus_daemon *d, uint32_t type, int timeout_ms)
{
    return remus_run_daemon_wait_for(d, type, RUN_ANY_EPOCH, timeout_ms);
}

/* Reaps a daemon that was asked to end, so that nothing of it is left when the session is over. */
static void await_daemon(struct remus_daemon *d, pid_t pid)
{
    struct pollfd end = { .fd = pidfd_open(pid, 0), .events = POLLIN };
    int rc;

    if (end.fd < 0)
        return;     /* reaped by libuv already */
    while ((rc = poll(&end, 1, d->quit_ms ? d->quit_ms : QUIT_MS)) < 0 && errno == EINTR)
        ;
    if (rc <= 0) {
        remus_run_log(d->run, XC_SR_WARN, "%s does not end when asked to; killed", d->name);
        d->killed = true;
        kill(pid, SIGKILL);
    }
    waitpid(pid, NULL, 0);
    close(end.fd);
}

void remus_run_daemon_leave(struct remus_daemon *d)
{
    d->expected_to_end = true;
    if (d->fd >= 0) {
        if (d->poll_open) {
            uv_poll_stop(&d->poll);
            uv_close((uv_handle_t *)&d->poll, NULL);
            d->poll_open = false;
        }
        close(d->fd);
        d->fd = -1;
    }
    if (d->process_open) {
        uv_close((uv_handle_t *)&d->process, NULL);
        d->process_open = false;
    }
    d->running = false;
}

void remus_run_daemon_stop(struct remus_daemon *d)
{
    pid_t pid = d->running ? uv_process_get_pid(&d->process) : 0;

    if (d->fd >= 0)
        ctl_say(d->fd, CTL_QUIT, 0, 0, NULL);
    remus_run_daemon_leave(d);
    if (pid > 0)
        await_daemon(d, pid);
}

/* ---- Work that takes long ---- */

static void *work_thread(void *arg)
{
    struct remus_run *r = arg;

    r->work.work(r->side);
    uv_async_send(&r->work.async);
    return NULL;
}

static void on_work_done(uv_async_t *async)
{
    struct remus_run *r = async->data;

    if (!r->work.running)
        return;                 /* waited for meanwhile */
    remus_run_work_wait(r);
    r->work.done(r->side);
}

int remus_run_work(struct remus_run *r, void (*work)(void *side), void (*done)(void *side))
{
    int rc;

    if (r->work.running)
        return -EBUSY;
    r->work.work = work;
    r->work.done = done;
    rc = -pthread_create(&r->work.thread, NULL, work_thread, r);
    r->work.running = !rc;
    return rc;
}

void remus_run_work_wait(struct remus_run *r)
{
    if (r->work.running)
        pthread_join(r->work.thread, NULL);
    r->work.running = false;
}

/* ---- Commands ---- */

int remus_run_command(struct remus_run *r, char **args, const char *input, size_t input_bytes,
                      char *line, size_t line_bytes)
{
    int in[2] = { -1, -1 }, out[2] = { -1, -1 }, status, rc = 0;
    char path[512];
    size_t at = 0;
    pid_t pid;

    snprintf(path, sizeof(path), "%s/%s", r->p->libexec, args[0]);
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) {
        rc = -errno;
        goto out;
    }
    pid = fork();
    if (pid < 0) {
        rc = -errno;
        goto out;
    }
    if (pid == 0) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        execv(path, args);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    in[0] = out[1] = -1;
    while (input_bytes) {
        ssize_t n = write(in[1], input, input_bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        input += n;
        input_bytes -= (size_t)n;
    }
    close(in[1]);
    in[1] = -1;
    for (;;) {
        char scrap[256];
        bool keep = line && at + 1 < line_bytes;
        ssize_t n = read(out[0], keep ? line + at : scrap, keep ? line_bytes - 1 - at
                         : sizeof(scrap));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        if (keep)
            at += (size_t)n;
    }
    if (line && line_bytes)
        line[at] = 0;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            rc = -errno;
            goto out;
        }
    }
    rc = WIFEXITED(status) ? WEXITSTATUS(status) : -ECHILD;
out:
    if (in[0] >= 0)
        close(in[0]);
    if (in[1] >= 0)
        close(in[1]);
    if (out[0] >= 0)
        close(out[0]);
    if (out[1] >= 0)
        close(out[1]);
    return rc;
}

/* ---- Arbitration ---- */

static bool nobody_waits(void *arg)
{
    return atomic_load(&((struct remus_run *)arg)->arbitration.given_up);
}

static void ask(uv_work_t *work)
{
    struct remus_run *r = work->data;

    r->arbitration.rc = remus_arbiter_run(&r->arbitration.arbiter, "acquire", 0,
                                          r->arbitration.said);
}

static void asked(uv_work_t *work, int status)
{
    struct remus_run *r = work->data;
    struct remus_arbitration *a = &r->arbitration;

    (void)status;
    a->running = false;
    if (r->finished)
        return;
    if (a->rc < 0) {
        remus_run_log(r, XC_SR_WARN, "the arbiter gives no answer (%s); asking again", a->said[0] ?
                      a->said : strerror(-a->rc));
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)a->rc, "the arbiter gives no answer");
        return;
    }
    remus_run_log(r, a->rc ? XC_SR_WARN : XC_SR_INFO, "the arbiter says: %s (%s)",
                  a->rc ? "stop" : "go on", a->said);
    remus_run_post(r, RE_ARBITRATED, 0, !a->rc, NULL);
}

void remus_run_arbitrate(struct remus_run *r)
{
    struct remus_arbitration *a = &r->arbitration;
    const char *spec = r->p->arbiter ? r->p->arbiter : REMUS_ARBITER_NONE;

    remus_run_log(r, XC_SR_WARN, "%s", r->core.reason);
    remus_run_link_close(r);
    if (remus_arbiter_is_none(spec)) {
        remus_run_post(r, RE_ARBITRATED, 0, 1, NULL);
        return;
    }
    if (a->running)
        return;                  /* told twice: its answer will come */
    uuid_unparse_lower(r->p->session, a->session);
    snprintf(a->domain, sizeof(a->domain), "%s", r->name);
    a->arbiter = (struct remus_arbiter){
        .spec = spec, .libexec = r->p->libexec, .session = a->session, .domain = a->domain,
        .peer = r->p->peer ? r->p->peer : "", .role = r->p->role, .give_up = nobody_waits, .arg = r,
    };
    a->work.data = r;
    a->running = !uv_queue_work(&r->loop, &a->work, ask, asked);
    if (!a->running)
        remus_run_post(r, RE_FAILED, 0, 0, "no thread for the arbiter");
}

/* ---- Requests ---- */

#define REQUEST_TOKEN "request"

static void grant(struct remus_run *r, enum remus_question question)
{
    remus_run_post(r, question == REMUS_ASK_STOP ? RE_OPERATOR_STOP : RE_SWITCH, 0, 0, NULL);
}

static const char *granted(enum remus_question question)
{
    return question == REMUS_ASK_STOP ? "accepted: stop" : "accepted: failover";
}

/* ---- Gates ---- */

static bool gates_not_wanted(void *arg)
{
    return atomic_load(&((struct remus_run *)arg)->gating.given_up);
}

static void gate_says(void *arg, enum xc_sr_level level, const char *text)
{
    remus_run_log(arg, level, "%s", text);
}

static void ask_gates(uv_work_t *work)
{
    struct remus_run *r = work->data;
    struct remus_gating *g = &r->gating;

    g->rc = remus_gates_ask(&g->call, g->question, gates_not_wanted, gate_says, r, g->said,
                            sizeof(g->said));
}

static void gates_answered(uv_work_t *work, int status)
{
    struct remus_run *r = work->data;
    struct remus_gating *g = &r->gating;
    char answer[sizeof(g->said) + 16];

    (void)status;
    g->running = false;
    if (r->finished || r->hidden)
        return;
    snprintf(answer, sizeof(answer), "refused: %s", g->said);
    remus_run_log(r, g->rc ? XC_SR_WARN : XC_SR_INFO, "request in xenstore: %s",
                  g->rc ? answer : granted(g->question));
    remus_guest_publish(r->xs, r->h.domid, "answer", g->rc ? answer : granted(g->question));
    if (!g->rc)
        grant(r, g->question);
}

/* NULL: the answer will come. */
static const char *ask_or_grant(struct remus_run *r, enum remus_question question)
{
    struct remus_gating *g = &r->gating;

    if (!r->p->hooks || !remus_hooks_present(r->p->hooks, true)) {
        grant(r, question);
        return granted(question);
    }
    g->question = question;
    uuid_unparse_lower(r->p->session, g->session);
    snprintf(g->domain, sizeof(g->domain), "%s", r->name);
    g->call = (struct remus_hook_call){
        .dir = r->p->hooks, .role = r->p->role, .domain = g->domain, .peer = r->p->peer,
        .mode = r->core.mode->name, .session = g->session, .reason = "on request",
        .domid = r->h.domid, .epoch = r->core.acked, .status = -1,
    };
    g->work.data = r;
    g->running = !uv_queue_work(&r->loop, &g->work, ask_gates, gates_answered);
    return g->running ? NULL : "refused: no thread to ask the gates in";
}

static const char *obey(struct remus_run *r, const char *request)
{
    bool primary = r->p->role == REMUS_PRIMARY;
    const struct replication_mode *mode;

    if (r->gating.running)
        return "refused: the gates are being asked about another request";
    if (!strcmp(request, "stop"))
        return ask_or_grant(r, REMUS_ASK_STOP);
    if (strcmp(request, "checkpoint") && strcmp(request, "failover") &&
        strncmp(request, "mode ", 5))
        return "refused: a request is checkpoint, stop, failover or mode NAME";
    if (!primary)
        return "refused: that is for the host whose guest is protected";
    if (!r->status.protected_now)
        return "refused: the guest is not protected now";
    if (!strcmp(request, "failover"))
        return ask_or_grant(r, REMUS_ASK_SWITCH);
    if (!strncmp(request, "mode ", 5)) {
        mode = remus_mode_by_name(request + 5);
        if (!mode)
            return "refused: a mode is colo, remus, kemari, curling or auto";
        remus_run_post(r, RE_MODE, 0, mode->wire, NULL);
        remus_run_publish(r, REMUS_NODE_MODE, mode_asked_for(r));
        return "accepted: mode";
    }
    remus_run_post(r, RE_CHECKPOINT_WANTED, 0, 0, "an operator wants it");
    return "accepted: checkpoint";
}

/* The node can hold anything that somebody in dom0 wrote. */
static void read_request(struct remus_run *r)
{
    char path[80], *request;
    const char *answer;

    snprintf(path, sizeof(path), "/local/domain/%u/" REMUS_XS_NODE "/request", r->h.domid);
    request = xs_read(r->xs, XBT_NULL, path, NULL);
    if (!request || !request[0] || r->hidden) {
        free(request);
        return;
    }
    xs_rm(r->xs, XBT_NULL, path);
    answer = obey(r, request);
    remus_text_clean(path, 40, request);
    remus_run_log(r, XC_SR_INFO, "request in xenstore: %s; %s", path,
                  answer ? answer : "asking the gates");
    if (answer)
        remus_guest_publish(r->xs, r->h.domid, "answer", answer);
    free(request);
}

void remus_run_take_requests(struct remus_run *r)
{
    char path[80];

    snprintf(path, sizeof(path), "/local/domain/%u/" REMUS_XS_NODE "/request", r->h.domid);
    xs_rm(r->xs, XBT_NULL, path); /* of a session before */
    if (!xs_watch(r->xs, path, REQUEST_TOKEN))
        remus_run_log(r, XC_SR_WARN, "requests in xenstore are not heard: %s", strerror(errno));
}

/* ---- Life ---- */

static void on_xenstore(uv_poll_t *poll_handle, int status, int events)
{
    struct remus_run *r = poll_handle->data;
    char **watch;
    bool fired = false, asked = false;

    (void)status;
    (void)events;
    while ((watch = xs_check_watch(r->xs))) {
        asked = asked || !strcmp(watch[XS_WATCH_TOKEN], REQUEST_TOKEN);
        fired = fired || strcmp(watch[XS_WATCH_TOKEN], REQUEST_TOKEN);
        free(watch);
    }
    if (asked && !r->finished)
        read_request(r);
    if (fired && (!r->finished || r->minding))
        r->ops->watch(r);
}

int remus_run_init(struct remus_run *r, const struct remus_session_params *p,
                   const struct remus_run_ops *ops, struct remus_session_result *result,
                   void *side)
{
    int rc;

    memset(r, 0, sizeof(*r));
    r->p = p;
    r->ops = ops;
    r->result = result;
    r->side = side;
    r->daemon.fd = r->link.epoll = r->second.epoll = -1;
    remus_disks_init(&r->disks);
    memset(result, 0, sizeof(*result));
    rc = uv_loop_init(&r->loop);
    if (rc)
        return rc;
    r->h.xch = xc_interface_open(NULL, NULL, 0);
    r->h.fmem = xenforeignmemory_open(NULL, 0);
    r->xs = xs_open(0);
    if (!r->h.xch || !r->h.fmem || !r->xs)
        return errno ? -errno : -EIO;
    r->h.domid = p->domid;
    r->h.log = log_from_libxc;
    r->h.log_arg = r;
    rc = uv_async_init(&r->loop, &r->work.async, on_work_done);
    if (rc)
        return rc;
    r->work.async.data = r;
    rc = remus_run_link_open(r);
    if (rc)
        return rc;
    uv_timer_init(&r->loop, &r->timer);
    uv_timer_init(&r->loop, &r->period);
    r->timer.data = r->period.data = r;
    r->timers_open = true;
    if (!xs_watch(r->xs, "@releaseDomain", "release"))
        return -errno;
    rc = uv_poll_init(&r->loop, &r->xs_poll, xs_fileno(r->xs));
    if (rc)
        return rc;
    r->xs_poll.data = r;
    return 0;
}

void remus_run_mind(struct remus_run *r, const struct remus_run_ops *ops)
{
    remus_run_link_drain(r);
    remus_run_link_close(r);
    r->ops = ops;
    r->minding = true;
    uv_timer_stop(&r->timer);
    uv_timer_start(&r->period, on_period, PERIOD_MS, PERIOD_MS);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    r->minding = false;
}

void remus_run_mind_end(struct remus_run *r)
{
    uv_stop(&r->loop);
}

int remus_run_loop(struct remus_run *r)
{
    struct remus_actions actions = { .count = 0 };
    unsigned int i;
    int rc;

    signal(SIGPIPE, SIG_IGN);
    uv_poll_start(&r->xs_poll, UV_READABLE, on_xenstore);
    uv_timer_start(&r->period, on_period, PERIOD_MS, PERIOD_MS);
    remus_run_link_start(r);
    rc = remus_core_init(&r->core, &r->p->core, remus_run_now_us(), &actions);
    if (rc)
        return rc;
    r->pumping = true;
    for (i = 0; i < actions.count; i++)
        r->ops->action(r, &actions.list[i]);
    r->pumping = false;
    pump(r);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    return 0;
}

void remus_run_finish(struct remus_run *r, const struct remus_action *a)
{
    r->result->end = (enum remus_end)a->value;
    r->result->detail = a->detail;
    snprintf(r->result->reason, sizeof(r->result->reason), "%s", a->text);
    snprintf(r->status.reason, sizeof(r->status.reason), "%s", a->text);
    r->status.protected_now = false;
    remus_run_status(r, true);
    r->result->last = r->status;
    r->finished = true;
    uv_stop(&r->loop);
}

static void close_all(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void remus_run_dispose(struct remus_run *r)
{
    r->finished = true;
    remus_run_link_drain(r);
    atomic_store(&r->arbitration.given_up, true);
    atomic_store(&r->gating.given_up, true);
    remus_run_work_wait(r);
    remus_run_daemon_stop(&r->daemon);
    remus_disks_dispose(r);
    remus_run_link_close(r);
    uv_walk(&r->loop, close_all, NULL);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    uv_loop_close(&r->loop);
    remus_run_link_dispose(r);
    if (r->xs)
        xs_close(r->xs);
    if (r->h.fmem)
        xenforeignmemory_close(r->h.fmem);
    if (r->h.xch)
        xc_interface_close(r->h.xch);
}
