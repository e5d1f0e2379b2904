/*
 * remus_secondary.c: the coordinator on the host that keeps the copy.
 *
 * The copy is built by libxenlight from the public stream (remus-guest restore, in a process of its
 * own), runs its resume path once, asked to suspend again at its end, and then lives on
 * checkpoints. Until it takes over, its interfaces end in colo-shadowd, which holds no network
 * device.  What must hold whatever fails: either this host's copy is the guest (role "active"), or
 * it is destroyed.
 */
#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/if_tun.h>
#include <linux/sockios.h>

#include "tools/libxl/remus_disks.h"
#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/libxl/remus_vif.h"

#define RESUME_PATH_US      60000000u /* the copy's first run, until it has suspended again */
#define CONTROL_MS          5000
#define GIVE_MS             10000u
#define GIVE_AGAIN_US       5000000u
#define OFFSETS_AGAIN_US    60000000u
#define SETTLE_MIN_US       3000000u /* colo-shadowd has told since what it has to do */
#define DESTROY_TRIES       10u
#define DESTROY_AGAIN_US    1000000u
#define QUIESCE_TRIES       50u
#define QUIESCE_US          500u
#define CONFIG_HEAD_MAX     128u

struct secondary {
    struct remus_run run;
    struct xc_sr_secondary *sr;
    struct xc_sr_epoch epoch;
    struct remus_assembler assembler;
    bool assembling;
    uint64_t received;              /* the epoch whose memory is here, and not its disks' writes */

    /* building */
    char *config;                   /* JSON, as the primary sent it */
    char guest_name[REMUS_NAME_MAX];
    unsigned int primary_domid;
    uv_process_t builder;
    uv_pipe_t builder_in, builder_out, builder_stream;
    bool builder_open, builder_running, link_paused, stream_closed;
    char builder_line[32];
    size_t builder_line_bytes;
    bool first_run;                 /* the copy runs its resume path */
    bool suspend_asked;             /* ... and is to suspend at its end */
    uint64_t first_run_us, stream_bytes;
    bool destroying;
    bool greeted;
    bool silenced;          /* by destroy(): the domain itself is still to be destroyed */

    /* life */
    unsigned int vif_count;
    struct remus_vif vifs[REMUS_VIFS_MAX];
    int taps[REMUS_VIFS_MAX];
    char *frontends;                /* newest that were written */
    uint32_t frontends_bytes;
    struct remus_offset *based;     /* newest REMUS_RECORD_OFFSETS */
    uint32_t based_bytes;
    bool frontends_moved;           /* since the disks were attached */
    bool applied_once, active;
    bool running;                   /* the copy executes; else it is paused, once it was applied */
    bool attached;                  /* its backends are at its rings */
    uint64_t active_us;
    /* after a takeover: the kernel's backends serve the guest; what failed is tried again then */
    bool vif_given[REMUS_VIFS_MAX], vifs_given, settled, give_begun;
    uint64_t give_us;
    struct remus_offsets *offsets[REMUS_VIFS_MAX]; /* for the kernel's backend; NULL: none */
    unsigned int offset_count;
    enum offsets_phase { OFFSETS_IDLE, OFFSETS_TRY, OFFSETS_TAKE } offsets_phase;
    uint64_t offsets_question;      /* number of the newest */
    int offsets_rc;                 /* why the kernel does not change numbers */
    bool offsets_refused;           /* ... so colo-shadowd goes on until it need not */
    int lock_fd;                    /* of the copy's domain */

    /* the epoch that is being applied */
    uint64_t applying, apply_began_us, detached_us;
    uint64_t came_us;               /* first frame of the epoch that is here, or comes */
    uint64_t base_us, ran_us;       /* of the epoch that it runs from; when that was */

    uint64_t granted_us, disks_us;  /* taking over: it was to; its disks were there */
    bool apply_runs;                /* the copy is to run from there on */
    bool waits_for_disks;           /* it is paused, and they come to rest */
    struct xc_sr_apply_stats apply_stats;
    const char *apply_step;         /* what went wrong, if apply_rc says so */
    int apply_rc;
};

static struct secondary *self(struct remus_run *r)
{
    return r->side;
}

/* ---- Building ------------------------------------------------------------------------------- */

struct stream_write {
    uv_write_t request;
    uint8_t *buffer;
};

static void on_stream_written(uv_write_t *request, int status)
{
    struct stream_write *w = (struct stream_write *)request;
    struct secondary *s = request->data;

    (void)status;               /* the builder's own exit status tells what went wrong */
    free(w->buffer);
    free(w);
    if (s->link_paused && uv_stream_get_write_queue_size((uv_stream_t *)&s->builder_stream) <
        RUN_WRITE_QUEUE_MAX) {
        s->link_paused = false;
        remus_run_link_pause(&s->run, false);
    }
}

static void pipe_write(struct secondary *s, uv_pipe_t *pipe, const void *data, uint32_t length)
{
    struct stream_write *w = malloc(sizeof(*w));
    uv_buf_t buf;

    if (!w)
        return;
    w->buffer = malloc(length);
    if (!w->buffer) {
        free(w);
        return;
    }
    memcpy(w->buffer, data, length);
    w->request.data = s;
    buf = uv_buf_init((char *)w->buffer, length);
    if (uv_write(&w->request, (uv_stream_t *)pipe, &buf, 1, on_stream_written)) {
        free(w->buffer);
        free(w);
    }
}

static void begin_first_run(struct secondary *s, uint32_t domid);

static void on_builder_exit(uv_process_t *process, int64_t status, int signal_number)
{
    struct secondary *s = process->data;
    struct remus_run *r = &s->run;
    unsigned long domid = strtoul(s->builder_line, NULL, 10);

    s->builder_running = false;
    if (s->destroying) {
        /*
         * A builder that lost its stream removes what it had made; a finished one leaves a domain.
         */
        if (!status && !signal_number && domid)
            r->h.domid = (uint32_t)domid;
        s->destroying = false;
        r->ops->action(r, &(struct remus_action){ .type = RA_DESTROY });
        return;
    }
    if (status || signal_number || !domid) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)-EIO,
                       "the copy could not be built: libxenlight's messages are in the log");
        return;
    }
    begin_first_run(s, (uint32_t)domid);
}

static void on_line_room(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct secondary *s = handle->data;
    size_t room = sizeof(s->builder_line) - 1 - s->builder_line_bytes;

    (void)suggested;
    *buf = uv_buf_init(s->builder_line + s->builder_line_bytes, (unsigned int)room);
}

static void on_line(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct secondary *s = stream->data;

    (void)buf;
    if (n > 0)
        s->builder_line_bytes += (size_t)n;
    else if (n < 0)
        uv_read_stop(stream);
    s->builder_line[s->builder_line_bytes] = 0;
}

static int start_builder(struct secondary *s)
{
    struct remus_run *r = &s->run;
    char path[512], script[512], name[REMUS_NAME_MAX + 16], domid[16];
    char *args[] = { "remus-guest", "restore", name, domid, script, NULL };
    uv_stdio_container_t stdio[4];
    uv_process_options_t options = { .flags = UV_PROCESS_DETACHED };
    int rc;

    snprintf(path, sizeof(path), "%s/remus-guest", r->p->libexec);
    snprintf(script, sizeof(script), "%s/remus-vif-script", r->p->libexec);
    snprintf(name, sizeof(name), "%s--incoming", s->guest_name);
    snprintf(domid, sizeof(domid), "%u", s->primary_domid);
    uv_pipe_init(&r->loop, &s->builder_in, 0);
    uv_pipe_init(&r->loop, &s->builder_out, 0);
    uv_pipe_init(&r->loop, &s->builder_stream, 0);
    s->builder_in.data = s->builder_out.data = s->builder_stream.data = s;
    stdio[0].flags = UV_CREATE_PIPE | UV_READABLE_PIPE;
    stdio[0].data.stream = (uv_stream_t *)&s->builder_in;
    stdio[1].flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE;
    stdio[1].data.stream = (uv_stream_t *)&s->builder_out;
    stdio[2].flags = UV_INHERIT_FD;
    stdio[2].data.fd = 2;
    stdio[3].flags = UV_CREATE_PIPE | UV_READABLE_PIPE;
    stdio[3].data.stream = (uv_stream_t *)&s->builder_stream;
    options.file = path;
    options.args = args;
    options.stdio = stdio;
    options.stdio_count = 4;
    options.exit_cb = on_builder_exit;
    s->builder.data = s;
    rc = uv_spawn(&r->loop, &s->builder, &options);
    if (rc)
        return rc;
    s->builder_open = s->builder_running = true;
    uv_read_start((uv_stream_t *)&s->builder_out, on_line_room, on_line);
    pipe_write(s, &s->builder_in, s->config, (uint32_t)strlen(s->config));
    uv_close((uv_handle_t *)&s->builder_in, NULL);
    return 0;
}

/* CONFIG: "DOMID NAME\n" and the JSON text. */
static int take_config(struct secondary *s, const uint8_t *payload, uint32_t length)
{
    char head[CONFIG_HEAD_MAX + 1], name[REMUS_NAME_MAX];
    const uint8_t *end = memchr(payload, '\n', length < CONFIG_HEAD_MAX ? length
                                : CONFIG_HEAD_MAX);
    unsigned int domid, i;
    uint32_t head_bytes;

    if (!end || s->config)
        return -EBADMSG;
    head_bytes = (uint32_t)(end - payload);
    memcpy(head, payload, head_bytes);
    head[head_bytes] = 0;
    if (sscanf(head, "%u %63s", &domid, name) != 2 || domid == 0 || domid >= 0x7ff0)
        return -EBADMSG;
    for (i = 0; name[i]; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("-_.+:@", name[i]))
            return -EBADMSG;
    s->config = malloc(length - head_bytes);
    if (!s->config)
        return -ENOMEM;
    memcpy(s->config, end + 1, length - head_bytes - 1);
    s->config[length - head_bytes - 1] = 0;
    s->primary_domid = domid;
    snprintf(s->guest_name, sizeof(s->guest_name), "%s", name);
    snprintf(s->run.name, sizeof(s->run.name), "%s", name);
    return 0;
}

static void end_stream(struct secondary *s)
{
    if (s->builder_open && !s->stream_closed) {
        s->stream_closed = true;
        uv_close((uv_handle_t *)&s->builder_stream, NULL);
    }
}

/* ---- The copy's first run ------------------------------------------------------------------- */

static void begin_first_run(struct secondary *s, uint32_t domid)
{
    struct remus_run *r = &s->run;
    pid_t holder;
    int rc;

    r->h.domid = r->status.domid = domid;
    /* Nobody else shall begin a session on the copy, or take it for one that nobody keeps. */
    rc = remus_session_lock(domid, &s->lock_fd, &holder);
    if (rc)
        remus_run_log(r, XC_SR_WARN, "the lock of domain %u is held by process %d: %s", domid,
                      (int)holder, strerror(-rc));
    remus_run_introduce(r);
    remus_run_take_requests(r);
    rc = xc_sr_secondary_open(&s->sr, &r->h);
    if (!rc)
        rc = remus_disks_adopt(r);
    /*
     * The request is there before the guest runs: it suspends as soon as it has resumed.  With
     * disks it is asked later: processes that wait for a disk cannot be frozen, and Linux connects
     * disks in the thread that would wait for that.
     */
    if (!rc && !r->disks.taken)
        rc = remus_guest_suspend_ask(r->xs, domid);
    s->suspend_asked = !r->disks.taken;
    if (!rc && xc_domain_unpause(r->h.xch, domid))
        rc = -errno;
    if (rc) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "the copy cannot be started: %s",
                       strerror(-rc));
        return;
    }
    s->first_run = true;
    s->first_run_us = remus_run_now_us();
}

/* Name of the tap that stands for interface i after failover. */
static void tap_name(const struct secondary *s, unsigned int i, char name[IFNAMSIZ])
{
    snprintf(name, IFNAMSIZ, "remus%u.%u", s->run.h.domid & 0x7fffu, i % REMUS_VIFS_MAX);
}

static int open_tap(struct secondary *s, unsigned int i)
{
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return -errno;
    tap_name(s, i, request.ifr_name);
    if (ioctl(fd, TUNSETIFF, &request)) {
        int rc = -errno;

        close(fd);
        return rc;
    }
    /* For offsets_open(); what this kernel cannot do is said there. */
    (void)remus_offsets_prepare(request.ifr_name);
    s->taps[i] = fd;
    return 0;
}

static void close_tap(struct secondary *s, unsigned int i)
{
    if (s->taps[i] >= 0)
        close(s->taps[i]);
    s->taps[i] = -1;
}

static int start_shadow(struct secondary *s)
{
    struct remus_run *r = &s->run;
    char path[64], domid[16], vifs[16], **names;
    char *args[] = { "colo-shadowd", "--domid", domid, "--vifs", vifs, NULL };
    unsigned int n = 0, i;
    int rc = 0;

    if (!r->p->net)
        return 0;
    snprintf(path, sizeof(path), "/local/domain/%u/device/vif", r->h.domid);
    names = xs_directory(r->xs, XBT_NULL, path, &n);
    free(names);
    if (n > REMUS_VIFS_MAX)
        return -E2BIG;
    s->vif_count = n;
    for (i = 0; !rc && i < n; i++) {
        rc = remus_vif_unbind(r->h.domid, i);
        if (!rc)
            rc = open_tap(s, i);
    }
    if (rc || !n)
        return rc;
    snprintf(domid, sizeof(domid), "%u", r->h.domid);
    snprintf(vifs, sizeof(vifs), "%u", n);
    return remus_run_daemon_start(r, &r->daemon, args, r->p->packet_fd, -1);
}

/* A copy with disks connects them, and is asked to suspend then. */
static void go_on_first_run(struct secondary *s)
{
    struct remus_run *r = &s->run;
    int rc = remus_disks_connect(r);

    if (rc == 1) {
        s->suspend_asked = true;
        rc = remus_guest_suspend_ask(r->xs, r->h.domid);
    }
    if (rc) {
        s->first_run = false;
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "the copy's disks cannot be "
                       "connected: %s", strerror(-rc));
    }
}

static void end_first_run(struct secondary *s)
{
    struct remus_run *r = &s->run;
    int rc;

    s->first_run = false;
    rc = remus_disks_detach(r);
    if (rc) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "the copy's disks cannot be brought "
                       "to rest: %s", strerror(-rc));
        return;
    }
    rc = start_shadow(s);
    if (rc) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "the copy's network backend cannot "
                       "be started: %s", strerror(-rc));
        return;
    }
    remus_run_log(r, XC_SR_INFO, "copy built as domain %u", r->h.domid);
    remus_run_post(r, RE_BUILT, 0, 0, NULL);
}

/* ---- Applying an epoch ---------------------------------------------------------------------- */

/* Guest paused at a moment when nothing is under way between it and xenstored. */
static int pause_quiescent(struct secondary *s)
{
    struct remus_run *r = &s->run;
    unsigned int tries;

    for (tries = 0;; tries++) {
        if (xc_domain_pause(r->h.xch, r->h.domid))
            return -errno;
        if (xc_sr_secondary_quiescent(s->sr))
            return 0;
        if (tries == QUIESCE_TRIES) {
            remus_run_log(r, XC_SR_WARN, "the copy's xenstore ring is busy; replacing it all the "
                          "same");
            return 0;
        }
        xc_domain_unpause(r->h.xch, r->h.domid);
        usleep(QUIESCE_US);
    }
}

static int write_frontends(struct secondary *s)
{
    struct remus_run *r = &s->run;
    const struct xc_sr_record *record = xc_sr_epoch_find(&s->epoch, REMUS_RECORD_FRONTENDS);
    char *copy;
    int rc;

    if (!record)
        return s->vif_count || r->disks.taken ? -EBADMSG : 0;
    if (s->frontends && record->length == s->frontends_bytes &&
        !memcmp(record->body, s->frontends, record->length))
        return 0;
    rc = remus_guest_frontends_write(r->xs, r->h.domid, (const char *)record->body,
                                     record->length);
    if (rc)
        return rc;
    copy = malloc(record->length);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, record->body, record->length);
    free(s->frontends);
    s->frontends = copy;
    s->frontends_bytes = record->length;
    s->frontends_moved = true;
    return r->p->net ? remus_guest_vifs(r->xs, r->h.domid, s->vifs, &s->vif_count) : 0;
}

/* One that has ended by itself keeps its descriptor, which nobody answers on. */
static bool shadowd_lives(const struct secondary *s)
{
    return s->run.daemon.fd >= 0 && !s->run.daemon.killed;
}

/* A copy without colo-shadowd is the guest all the same, with the kernel's backend, once it is to
 * take over. */
static int attach(struct secondary *s, uint64_t running_epoch)
{
    struct remus_run *r = &s->run;
    struct ctl_msg msg = { .type = CTL_ATTACH, .epoch = running_epoch, .count = s->vif_count };
    struct ctl_attach list[REMUS_VIFS_MAX];
    unsigned int i;
    int rc;

    if (!s->vif_count || !shadowd_lives(s))
        return 0;
    for (i = 0; i < s->vif_count; i++)
        list[i] = s->vifs[i].attach;
    rc = ctl_send_wait(r->daemon.fd, &msg, list, NULL, NULL, 0, CONTROL_MS);
    return rc ? rc : remus_run_daemon_wait(&r->daemon, CTL_ATTACHED, CONTROL_MS);
}

static int detach(struct secondary *s, uint64_t epoch)
{
    struct remus_run *r = &s->run;
    int rc;

    if (!s->vif_count || !shadowd_lives(s))
        return 0;
    rc = ctl_say(r->daemon.fd, CTL_DETACH, 0, epoch, NULL);
    return rc ? rc : remus_run_daemon_wait(&r->daemon, CTL_DETACHED, CONTROL_MS);
}

/* Whether the primary's list can be one. */
static bool offsets_are_good(struct secondary *s)
{
    const struct xc_sr_record *record = xc_sr_epoch_find(&s->epoch, REMUS_RECORD_OFFSETS);
    unsigned int count[REMUS_VIFS_MAX] = {0};
    struct remus_offset offset;
    uint32_t at;

    for (at = 0; record && at < record->length; at += (uint32_t)sizeof(offset)) {
        memcpy(&offset, record->body + at, sizeof(offset));
        if (offset.vif >= s->vif_count || ++count[offset.vif] > REMUS_OFFSETS_MAX)
            return false;
    }
    return true;
}

static int send_offsets(struct secondary *s)
{
    const uint32_t total = s->based_bytes / (uint32_t)sizeof(struct remus_offset);
    struct ctl_msg msg = { .type = CTL_OFFSETS, .code = CTL_OFFSETS_FIRST };
    uint32_t at = 0;
    int rc;

    do {
        msg.count = total - at < CTL_OFFSETS_MAX ? total - at : CTL_OFFSETS_MAX;
        msg.code |= at + msg.count == total ? CTL_OFFSETS_LAST : 0;
        rc = ctl_send_wait(s->run.daemon.fd, &msg, s->based + at, NULL, NULL, 0, CONTROL_MS);
        at += msg.count;
        msg.code = 0;
    } while (!rc && at < total);
    return rc;
}

/* The connections whose numbers the primary's kernel changes, if they are others than before. */
static int tell_offsets(struct secondary *s)
{
    const struct xc_sr_record *record = xc_sr_epoch_find(&s->epoch, REMUS_RECORD_OFFSETS);
    const uint32_t bytes = record ? record->length : 0;
    struct remus_offset *list;

    if (bytes == s->based_bytes && (!bytes || !memcmp(record->body, s->based, bytes)))
        return 0;
    list = malloc(bytes ? bytes : 1);
    if (!list)
        return -ENOMEM;
    if (bytes)
        memcpy(list, record->body, bytes);
    free(s->based);
    s->based = list;
    s->based_bytes = bytes;
    return s->vif_count && shadowd_lives(s) ? send_offsets(s) : 0;
}

static void apply_failed(struct secondary *s, const char *step, int rc)
{
    remus_run_post(&s->run, RE_FAILED, s->applying, (uint64_t)(int64_t)rc,
                   "epoch %lu could not be applied, %s the copy failed: %s",
                   (unsigned long)s->applying, step, strerror(-rc));
}

/* In a thread: an epoch may be gigabytes, and the primary must hear of us meanwhile. */
static void apply_work(void *side)
{
    struct secondary *s = side;
    bool rebuilt;

    s->apply_rc = 0;
    if (!s->applied_once) {
        const struct xc_sr_record *table = xc_sr_epoch_find(&s->epoch, REMUS_RECORD_EVTCHN);

        s->apply_step = "binding its event channels";
        s->apply_rc = table
            ? xc_sr_secondary_evtchn(s->sr, (const struct remus_evtchn *)table->body,
                                     table->length / (uint32_t)sizeof(struct remus_evtchn),
                                     &rebuilt) : -EBADMSG;
        s->detached_us = remus_run_now_us();
    }
    if (!s->apply_rc) {
        s->apply_step = "replacing its memory";
        s->apply_rc = xc_sr_secondary_apply(s->sr, &s->epoch, &s->apply_stats);
    }
}

/* From the suspend that ended its resume path into a plain pause. */
static int end_suspend(struct secondary *s)
{
    struct remus_run *r = &s->run;
    int rc = xc_domain_pause(r->h.xch, r->h.domid) ? -errno : 0;

    if (!rc)
        rc = xc_sr_resume(&r->h);
    if (!rc)
        remus_guest_resumed(r->xs, r->h.domid);
    return rc;
}

/* The backends attach to the copy's rings as the newest checkpoint left them, and it runs. */
static int run_copy(struct secondary *s, const char **step)
{
    struct remus_run *r = &s->run;
    int rc;

    *step = "attaching its network backend";
    s->attached = true;
    rc = attach(s, s->applying + 1);
    if (!rc) {
        *step = "attaching its disks";
        rc = remus_disks_attach(r, s->frontends_moved);
    }
    if (!rc) {
        s->frontends_moved = false;
        *step = "resuming";
        rc = xc_domain_unpause(r->h.xch, r->h.domid) ? -errno : 0;
    }
    s->running = !rc;
    s->ran_us = remus_run_now_us();
    if (!rc && s->vif_count && shadowd_lives(s))
        rc = ctl_say(r->daemon.fd, CTL_GO, 0, s->applying + 1, NULL);
    if (!rc)
        rc = remus_disks_run(r);
    return rc;
}

/* The disk epoch that ends with the epoch in .epoch; 0: it has no disks. */
static uint64_t disk_epoch(const struct secondary *s)
{
    const struct xc_sr_record *record = xc_sr_epoch_find(&s->epoch, REMUS_RECORD_DISKS);
    uint64_t number = 0;

    if (record && record->length == sizeof(number))
        memcpy(&number, record->body, sizeof(number));
    return le64toh(number);
}

static void apply_report(struct secondary *s, uint64_t applied_us)
{
    struct remus_run *r = &s->run;
    const struct xc_sr_apply_stats *stats = &s->apply_stats;
    struct remus_applied report = {
        .paused_us = remus_run_now_us() - s->apply_began_us, .rolled_back = stats->rolled_back,
        .verify_bad = stats->verify_bad, .first_bad_gfn = stats->first_bad_gfn,
    };

    remus_run_log(r, XC_SR_DEBUG, "applied %lu pages, %lu rolled back; detach %lu us, state %lu "
                  "us, commit and attach %lu us", (unsigned long)s->epoch.pages,
                  (unsigned long)stats->rolled_back,
                  (unsigned long)(s->detached_us - s->apply_began_us),
                  (unsigned long)(applied_us - s->detached_us),
                  (unsigned long)(remus_run_now_us() - applied_us));
    r->status.apply_us = report.paused_us;
    r->status.rolled_back = stats->rolled_back;
    r->status.dirty_pages = s->epoch.pages;
    r->status.checkpoints++;
    if (r->p->verify) {
        r->status.verify_epochs++;
        r->status.verify_bad += stats->verify_bad;
    }
    remus_run_send(r, REMUS_FRAME_APPLIED, s->applying, &report, sizeof(report));
}

static void apply_done(void *side)
{
    struct secondary *s = side;
    const uint64_t applied_us = remus_run_now_us();
    const char *step = s->apply_step;
    int rc = s->apply_rc;

    if (s->run.core.state != RS_APPLY)
        return;                 /* took too long: letting go */
    if (!rc) {
        step = "writing its frontends' nodes";
        rc = write_frontends(s);
    }
    if (!rc) {
        step = "committing what the primary wrote to disks";
        rc = remus_disks_commit(&s->run, disk_epoch(s));
    }
    if (!rc) {
        step = "telling colo-shadowd of changed sequence numbers";
        rc = tell_offsets(s);
    }
    if (!rc && !s->applied_once) {
        step = "ending its suspend";
        rc = end_suspend(s);
    }
    if (!rc)
        s->applied_once = true;
    if (!rc && s->apply_runs)
        rc = run_copy(s, &step);
    if (rc) {
        apply_failed(s, step, rc);
        return;
    }
    apply_report(s, applied_us);
    remus_run_post(&s->run, RE_APPLIED, s->applying, 0, NULL);
}

/* Its disks may take longer than the primary waits for a sign of life: the loop goes on. */
static void apply_rested(struct secondary *s)
{
    struct remus_run *r = &s->run;
    int rc;

    s->waits_for_disks = r->disks.resting && !r->disks.rested;
    if (s->waits_for_disks)
        return;
    s->detached_us = remus_run_now_us();
    rc = remus_run_work(r, apply_work, apply_done);
    if (rc)
        apply_failed(s, "beginning to replace", rc);
}

static void apply(struct secondary *s, uint64_t epoch, bool runs)
{
    struct remus_run *r = &s->run;
    const char *step = "pausing";
    int rc = 0;

    s->applying = epoch;
    s->base_us = s->came_us;
    s->apply_runs = runs;
    s->apply_began_us = remus_run_now_us();
    memset(&s->apply_stats, 0, sizeof(s->apply_stats));
    s->detached_us = s->apply_began_us;
    if (s->running) {
        rc = pause_quiescent(s);
        s->running = rc;
    }
    if (!rc && s->attached) {
        step = "detaching its network backend";
        rc = detach(s, epoch);
        if (!rc) {
            step = "bringing its disks to rest";
            rc = remus_disks_rest(r);
        }
        s->attached = rc;
    }
    if (rc)
        apply_failed(s, step, rc);
    else
        apply_rested(s);
}

/* ---- Taking over ---------------------------------------------------------------------------- */

static int bridge_tap(struct secondary *s, unsigned int i)
{
    char name[IFNAMSIZ];

    tap_name(s, i, name);
    return remus_vif_bridge(name, s->vifs[i].bridge);
}

static void offsets_free(struct secondary *s)
{
    unsigned int i;

    for (i = 0; i < REMUS_VIFS_MAX; i++) {
        remus_offsets_free(s->offsets[i]);
        s->offsets[i] = NULL;
    }
    s->offset_count = 0;
}

/*
 * The kernel's table for an interface, if this kernel does that at all: seen at the tap, while the
 * table is empty.
 */
static int offsets_open(struct secondary *s, unsigned int i)
{
    char name[IFNAMSIZ];
    int rc;

    if (s->offsets[i])
        return 0;
    rc = remus_offsets_new(&s->offsets[i]);
    if (rc)
        return rc;
    tap_name(s, i, name);
    rc = remus_offsets_attach(s->offsets[i], name);
    return rc ? rc : remus_offsets_detach(name);
}

/* For every interface that can have one: nothing is lost then while netback connects. */
static void offsets_open_all(struct secondary *s)
{
    unsigned int i;

    for (i = 0; !s->offsets_refused && i < s->vif_count; i++) {
        if (!offsets_open(s, i))
            continue;
        remus_offsets_free(s->offsets[i]);
        s->offsets[i] = NULL;
    }
}

/* What colo-shadowd would have told, if it were there: the primary's list at least. */
static void inherit_offsets(struct secondary *s)
{
    const uint32_t total = s->based_bytes / (uint32_t)sizeof(*s->based);
    uint32_t i;
    int rc = 0;

    for (i = 0; !rc && i < total; i++) {
        rc = offsets_open(s, s->based[i].vif);
        if (!rc)
            rc = remus_offsets_add(s->offsets[s->based[i].vif], &s->based[i]);
    }
    if (total)
        remus_run_log(&s->run, rc ? XC_SR_ERROR : XC_SR_INFO, "the kernel changes the numbers of "
                      "%u connections of an earlier takeover%s%s", total, rc ? ", but for some: "
                      : "", rc ? strerror(-rc) : "");
}

/*
 * When colo-shadowd has nothing more to do for any connection than to change its numbers, which the
 * kernel can do, or not even that, the kernel's backend takes the guest's interfaces.  A
 * colo-shadowd that died had left the guest without network: then at once.  What comes for the
 * guest meanwhile waits in the tap.
 */
static void give_vifs(struct secondary *s)
{
    struct remus_run *r = &s->run;
    struct remus_offsets *offsets;
    uint64_t deadline_ms;
    char name[IFNAMSIZ];
    int rc = 0, unshifted;
    unsigned int i;

    s->give_us = remus_run_now_us() + GIVE_AGAIN_US;
    s->offsets_phase = OFFSETS_IDLE;
    if (!s->give_begun && !shadowd_lives(s))
        inherit_offsets(s);
    if (!s->give_begun)
        offsets_open_all(s);
    s->give_begun = true;
    if (r->daemon.fd >= 0)
        rc = detach(s, r->core.epoch);
    if (rc)
        remus_run_log(r, XC_SR_WARN, "colo-shadowd does not let go of the guest's rings: %s",
                      strerror(-rc));
    remus_run_daemon_stop(&r->daemon);
    s->vifs_given = true;
    for (i = 0; i < s->vif_count; i++) {
        if (s->vif_given[i])
            continue;
        offsets = s->offsets[i];
        tap_name(s, i, name);
        rc = remus_vif_give(r->h.xch, r->xs, &s->vifs[i], name, offsets, &unshifted, GIVE_MS);
        if (unshifted && remus_offsets_used(offsets))
            remus_run_log(r, XC_SR_ERROR, "the kernel does not change numbers at %s: %s; "
                          "connections that were opened shortly before the takeover break",
                          s->vifs[i].netdev, strerror(-unshifted));
        s->vif_given[i] = !rc;
        s->vifs_given = s->vifs_given && !rc;
        if (rc)
            remus_run_log(r, XC_SR_ERROR, "%s is not served by the kernel again: %s",
                          s->vifs[i].netdev, strerror(-rc));
    }
    deadline_ms = remus_now_ms() + REMUS_VIF_CARRIER_MS;
    for (i = 0; i < s->vif_count; i++) {
        offsets = s->offsets[i];
        if (!s->vif_given[i] || (s->taps[i] < 0 && !offsets))
            continue;
        tap_name(s, i, name);
        remus_vif_await_carrier(&s->vifs[i], deadline_ms);
        remus_run_log(r, XC_SR_DEBUG, "%s: %d frames waited for the kernel's backend",
                      s->vifs[i].netdev, remus_vif_carry(s->taps[i], name, &s->vifs[i], offsets));
        close_tap(s, i);
        if (offsets && !remus_offsets_used(offsets))
            (void)remus_offsets_detach(s->vifs[i].netdev);
        remus_offsets_free(offsets);
        s->offsets[i] = NULL;
    }
}

static void ask_offsets(struct secondary *s, enum offsets_phase phase)
{
    s->offsets_phase = phase;
    s->offsets_rc = 0;
    s->offset_count = 0;
    (void)ctl_say(s->run.daemon.fd, CTL_OFFSETS_GET, 0, ++s->offsets_question, NULL);
}

/* The kernel cannot: for good, or just now. */
static void offsets_fail(struct secondary *s)
{
    const char *said = remus_offsets_said();
    const int rc = s->offsets_rc;

    s->offsets_refused = rc == -EPERM || rc == -EACCES || rc == -EINVAL || rc == -EOPNOTSUPP ||
                         rc == -ENOSYS || rc == -ENOENT;
    s->give_us = remus_run_now_us() + OFFSETS_AGAIN_US;
    remus_run_log(&s->run, XC_SR_WARN, "the kernel cannot change the numbers of %u connections: "
                  "%s%s%s%s; colo-shadowd goes on %s", s->offset_count, strerror(-rc),
                  *said ? " (" : "", said, *said ? ")" : "",
                  s->offsets_refused ? "until they are closed" : "for now");
    offsets_free(s);
}

/*
 * colo-shadowd's answers.  The first one tells whether the kernel can do it; the second one, when
 * colo-shadowd has let go of the rings, of which connections it has to.
 */
static void take_offsets(struct secondary *s, const struct ctl_in *in)
{
    struct remus_run *r = &s->run;
    unsigned int i;
    int rc;

    if (s->offsets_phase == OFFSETS_IDLE || in->msg.epoch != s->offsets_question)
        return;
    for (i = 0; i < in->msg.count; i++) {
        const struct remus_offset *offset = &in->structs.offsets[i];

        rc = offset->vif >= s->vif_count ? -EBADMSG
             : s->offsets_phase == OFFSETS_TRY ? offsets_open(s, offset->vif)
             : s->offsets[offset->vif] ? remus_offsets_add(s->offsets[offset->vif], offset)
             : -ENOENT;
        s->offsets_rc = s->offsets_rc ? s->offsets_rc : rc;
        s->offset_count++;
    }
    if (!(in->msg.code & CTL_OFFSETS_LAST))
        return;
    if (s->offsets_phase == OFFSETS_TRY && s->offsets_rc) {
        s->offsets_phase = OFFSETS_IDLE;
        offsets_fail(s);
    } else if (s->offsets_phase == OFFSETS_TRY) {
        offsets_open_all(s);
        (void)detach(s, r->core.epoch);
        ask_offsets(s, OFFSETS_TAKE);
    } else {
        remus_run_log(r, XC_SR_INFO, "the kernel changes the numbers of %u connections from here "
                      "on%s%s", s->offset_count, s->offsets_rc ? ", but for some: " : "",
                      s->offsets_rc ? strerror(-s->offsets_rc) : "");
        give_vifs(s);
    }
}

/*
 * By how much the copy's clock is behind the primary's at most, in ms: that one went on from their
 * newest checkpoint before the first frame of it was sent, and a frame is under way for less than
 * the timeout.  Twice that.
 */
static uint32_t clock_lag_ms(const struct secondary *s)
{
    return (uint32_t)(2 * ((s->ran_us - s->base_us) / 1000 + s->run.p->core.timeout_ms));
}

/* What a takeover that is done took. */
static void note_failover(struct secondary *s)
{
    struct remus_status *status = &s->run.status;
    const uint64_t now_us = remus_run_now_us(), heard_us = s->run.core.heard_us;
    /* What it said as it ended may have been read after that. */
    const uint64_t lost_us = s->run.core.lost_us > heard_us ? s->run.core.lost_us : heard_us;
    const uint64_t ran_us = s->ran_us > s->granted_us ? s->ran_us : s->granted_us;

    status->failover_ms = (now_us - heard_us) / 1000;
    status->failover = (struct remus_failover){
        .silence_ms = (lost_us - heard_us) / 1000, .arbiter_ms = (s->granted_us - lost_us) / 1000,
        .guest_ms = (ran_us - s->granted_us) / 1000, .disks_ms = (s->disks_us - ran_us) / 1000,
        .network_ms = (now_us - s->disks_us) / 1000,
    };
    remus_run_log(&s->run, XC_SR_WARN, "took over %lu ms after the last sign of %s: lost after "
                  "%lu, arbiter %lu, guest %lu, disks %lu, network %lu ms",
                  (unsigned long)status->failover_ms, s->run.p->peer,
                  (unsigned long)status->failover.silence_ms,
                  (unsigned long)status->failover.arbiter_ms,
                  (unsigned long)status->failover.guest_ms,
                  (unsigned long)status->failover.disks_ms,
                  (unsigned long)status->failover.network_ms);
}

static void take_over(struct secondary *s)
{
    struct remus_run *r = &s->run;
    struct ctl_msg msg = { .type = CTL_FAILOVER, .epoch = r->core.epoch };
    char domid[16], *args[] = { "remus-guest", "adopt", domid, s->guest_name, NULL };
    const char *step = "";
    unsigned int i;
    int rc = 0;

    if (!s->granted_us)
        s->granted_us = remus_run_now_us();
    if (r->p->committed)
        r->p->committed(r->p->arg);
    if (!s->running) {
        rc = run_copy(s, &step);
        if (rc) {
            remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "%s the copy failed: %s", step,
                           strerror(-rc));
            return;
        }
    }
    rc = remus_disks_takeover(r);
    if (rc) {
        remus_run_log(r, XC_SR_ERROR, "the guest's disks cannot be taken over: %s%s",
                      strerror(-rc), remus_disks_fd(r) < 0 ? " (colo-blkd is gone, and what was "
                      "not on them yet with it)" : "");
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "the guest's disks cannot be taken "
                       "over: %s", strerror(-rc));
        return;
    }
    s->disks_us = remus_run_now_us();
    if (s->vif_count && !shadowd_lives(s) && !s->vifs_given &&
        remus_run_now_us() >= s->give_us) {
        remus_run_log(r, XC_SR_ERROR, "colo-shadowd is gone: the kernel's backend takes the "
                      "guest's interfaces, connections that are new since the last checkpoint "
                      "break");
        give_vifs(s);
    }
    if (s->vif_count && !shadowd_lives(s) && !s->vifs_given)
        rc = -EAGAIN;
    for (i = 0; !rc && !s->vifs_given && i < s->vif_count; i++)
        rc = bridge_tap(s, i);
    if (!rc && s->vif_count && !s->vifs_given) {
        msg.code = clock_lag_ms(s);
        rc = ctl_send_wait(r->daemon.fd, &msg, NULL, NULL, s->taps, s->vif_count, CONTROL_MS);
        if (!rc)
            rc = remus_run_daemon_wait(&r->daemon, CTL_ACTIVE, CONTROL_MS);
    }
    if (rc) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc,
                       "the guest's network cannot be opened: %s", strerror(-rc));
        return;
    }
    note_failover(s);
    snprintf(domid, sizeof(domid), "%u", r->h.domid);
    if (remus_run_command(r, args, s->config, strlen(s->config), NULL, 0))
        remus_run_log(r, XC_SR_WARN, "took over, but the guest keeps the name %s--incoming or the "
                      "configuration of a copy", s->guest_name);
    remus_guest_publish(r->xs, r->h.domid, "role", "unprotected");
    remus_run_post(r, RE_ACTIVE, 0, 0, NULL);
}

static void settle_vifs(struct secondary *s)
{
    struct remus_run *r = &s->run;
    const uint64_t now_us = remus_run_now_us();

    if (s->vifs_given || now_us < s->give_us)
        return;
    if (!s->vif_count || !shadowd_lives(s)) {
        give_vifs(s);
        return;
    }
    if (now_us - s->active_us <= SETTLE_MIN_US || r->status.net.flows)
        return;
    if (!r->status.net.offsets) {
        give_vifs(s);
    } else if (!s->offsets_refused) {
        s->give_us = now_us + GIVE_AGAIN_US;
        ask_offsets(s, OFFSETS_TRY);
    }
}

/* A guest like any other again: it can be protected, from here. */
static void settle(struct secondary *s)
{
    struct remus_run *r = &s->run;

    if (s->settled)
        return;
    settle_vifs(s);
    remus_disks_settle(r);
    if (!s->vifs_given || !remus_disks_settled(r))
        return;
    s->settled = true;
    remus_run_log(r, XC_SR_INFO, "%s is served by this host's kernel again%s and can be protected",
                  s->guest_name, r->disks.kept ? ", but for its disks," : "");
    remus_guest_unpublish(r->xs, r->h.domid);
    remus_run_hide(r);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    s->lock_fd = -1;
    if (r->p->settled)
        r->p->settled(r->p->arg, r->h.domid);
}

/* From here on this process is what `xl create` leaves behind for a guest. */
static void mind(struct secondary *s, const struct remus_action *a)
{
    struct remus_run *r = &s->run;
    char path[64];

    s->active = true;
    s->active_us = remus_run_now_us();
    snprintf(path, sizeof(path), "/local/domain/0/backend/vif/%u", r->h.domid);
    xs_watch(r->xs, path, "closing");
    remus_disks_watch_closing(r);
    remus_run_link_close(r);
    remus_run_work_wait(r);
    xc_sr_secondary_close(s->sr, true);
    s->sr = NULL;
    xc_sr_epoch_free(&s->epoch);
    r->result->end = (enum remus_end)a->value;
    snprintf(r->status.reason, sizeof(r->status.reason), "%s", a->text);
    remus_run_status(r, true);
    if (r->p->active)
        r->p->active(r->p->arg, r->h.domid);
}

/*
 * libxl asks a backend to close by its state node and waits for the answer, which the kernel's
 * driver would give: xl destroy would hang for ten seconds.
 */
static void answer_closing(struct secondary *s)
{
    struct remus_run *r = &s->run;
    unsigned int i;

    remus_disks_answer_closing(r);
    for (i = 0; i < s->vif_count; i++) {
        char path[80], *state;
        unsigned int length;

        snprintf(path, sizeof(path), "/local/domain/0/backend/vif/%u/%u/state", r->h.domid,
                 s->vifs[i].attach.vif);
        state = xs_read(r->xs, XBT_NULL, path, &length);
        if (state && !strcmp(state, "5"))
            xs_write(r->xs, XBT_NULL, path, "6", 1);
        free(state);
    }
}

static void mind_end(struct secondary *s, uint32_t reason)
{
    struct remus_run *r = &s->run;
    char domid[16], why[16], line[32] = "";
    char *args[] = { "remus-guest", "end", domid, why, NULL };
    struct remus_action finish = { .type = RA_FINISH, .value = REMUS_END_ACTIVE };

    snprintf(domid, sizeof(domid), "%u", r->h.domid);
    snprintf(why, sizeof(why), "%u", reason);
    remus_run_daemon_stop(&r->daemon);
    remus_disks_end(r);
    if (reason != ~0u &&
        remus_run_command(r, args, s->config, strlen(s->config), line, sizeof(line)))
        remus_run_log(r, XC_SR_ERROR, "the guest ended (reason %u), but its on_ action failed",
                      reason);
    line[strcspn(line, "\n")] = 0;
    snprintf(finish.text, sizeof(finish.text), "the guest ended by itself (reason %u): %s",
             reason, line);
    remus_run_finish(r, &finish);
}

/* ---- Letting go ------------------------------------------------------------------------------ */

/*
 * From here on the copy says and writes nothing more, which is all that the primary waits for.  To
 * take its memory apart takes seconds and is waited for: see destroy_domain().
 */
static void destroy(struct secondary *s)
{
    struct remus_run *r = &s->run;

    end_stream(s);
    if (s->builder_running) {
        s->destroying = true;   /* goes on in on_builder_exit */
        return;
    }
    remus_run_work_wait(r);
    /* Not one more write of its own: the other host's disks are to be as of the last checkpoint. */
    if (r->h.domid && xc_domain_pause(r->h.xch, r->h.domid) && errno != ESRCH) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)-errno, "domain %u, the copy of %s, "
                       "cannot be paused: %s; xl destroy %u", r->h.domid, s->guest_name,
                       strerror(errno), r->h.domid);
        return;
    }
    remus_run_daemon_stop(&r->daemon);
    remus_disks_end(r);
    s->silenced = true;
    remus_run_post(r, RE_DESTROYED, 0, 0, NULL);
}

/* When the session is over. */
static void destroy_domain(struct secondary *s)
{
    struct remus_run *r = &s->run;
    char domid[16], *args[] = { "remus-guest", "destroy", domid, NULL };
    unsigned int tries = DESTROY_TRIES;
    int rc;

    snprintf(domid, sizeof(domid), "%u", r->h.domid);
    while ((rc = remus_run_command(r, args, NULL, 0, NULL, 0)) && --tries)
        usleep(DESTROY_AGAIN_US);
    if (rc)
        remus_run_log(r, XC_SR_ERROR, "domain %u, the copy of %s, cannot be destroyed; it is "
                      "paused: xl destroy %u", r->h.domid, s->guest_name, r->h.domid);
}

static void secondary_action(struct remus_run *r, const struct remus_action *a)
{
    struct secondary *s = self(r);

    switch (a->type) {
    case RA_SEND_READY:
        remus_run_send(r, REMUS_FRAME_READY, 0, NULL, 0);
        break;
    case RA_ACK:
        remus_run_send(r, REMUS_FRAME_ACK, a->epoch, NULL, 0);
        break;
    case RA_APPLY:
        apply(s, a->epoch, remus_mode_by_wire((uint16_t)a->value)->secondary_runs);
        break;
    case RA_SEND_APPLIED:
        break;                  /* sent by apply, which knows the figures */
    case RA_DROP_PARTIAL:
        s->assembling = false;
        s->received = 0;
        break;
    case RA_TAKEOVER:
        take_over(s);
        break;
    case RA_DESTROY:
        destroy(s);
        break;
    case RA_SEND_STOP: {
        struct remus_stop stop = { .reason = (uint32_t)a->value, .guest_reason = ~0u };

        remus_run_send(r, REMUS_FRAME_STOP, 0, &stop, sizeof(stop));
        break;
    }
    case RA_SEND_STOPPED:
        remus_run_send(r, REMUS_FRAME_STOPPED, 0, NULL, 0);
        break;
    case RA_SEND_ERROR:
        remus_run_send(r, REMUS_FRAME_ERROR, 0, a->text, (uint32_t)strlen(a->text));
        break;
    case RA_SEND_HEARTBEAT:
        remus_run_heartbeat(r);
        break;
    case RA_ARBITRATE:
        remus_run_arbitrate(r);
        break;
    case RA_FINISH:
        if (a->value == REMUS_END_ACTIVE)
            mind(s, a);
        else
            remus_run_finish(r, a);
        break;
    default:
        remus_run_log(r, XC_SR_ERROR, "action %d is not the secondary's", (int)a->type);
    }
}

/* ---- What comes in -------------------------------------------------------------------------- */

/* Its memory is here; so must be what the guest wrote to its disks until then. */
static void epoch_complete(struct secondary *s)
{
    struct remus_run *r = &s->run;

    if (!s->received || (r->disks.taken && r->disks.epoch < disk_epoch(s)))
        return;
    remus_run_post(r, RE_PEER_EPOCH_COMPLETE, s->received, s->epoch.mode, NULL);
    s->received = 0;
}

static void epoch_frame(struct secondary *s, const struct remus_frame *f, const uint8_t *payload)
{
    struct remus_run *r = &s->run;
    xc_dominfo_t info;
    int rc;

    if (r->work.running) {
        remus_run_post(r, RE_PEER_BAD, f->epoch, 0, "epoch %lu begins while another is applied",
                       (unsigned long)f->epoch);
        return;
    }
    if (!s->assembling) {
        if (xc_domain_getinfo(r->h.xch, r->h.domid, 1, &info) != 1)
            return;
        xc_sr_epoch_reset(&s->epoch, f->epoch);
        remus_assembler_begin(&s->assembler, &s->epoch, REMUS_GFN_MASK,
                              info.nr_pages + 1024);
        s->assembling = true;
        s->came_us = remus_run_now_us();
    }
    rc = remus_assembler_frame(&s->assembler, f, payload);
    if (rc < 0) {
        s->assembling = false;
        remus_run_post(r, RE_PEER_BAD, f->epoch, 0, "epoch %lu: %s", (unsigned long)f->epoch,
                       s->assembler.error);
    } else if (rc == 1) {
        s->assembling = false;
        s->received = f->epoch;
        if (offsets_are_good(s))
            epoch_complete(s);
        else
            remus_run_post(r, RE_PEER_BAD, f->epoch, 0, "epoch %lu: a list of connections that "
                           "cannot be", (unsigned long)f->epoch);
    } else {
        remus_run_post(r, RE_PEER_EPOCH_FRAME, f->epoch, 0, NULL);
    }
}

static void stream_frame(struct secondary *s, const struct remus_frame *f, const uint8_t *payload)
{
    struct remus_run *r = &s->run;
    int rc;

    if (!s->builder_open) {
        rc = s->config ? start_builder(s) : -EBADMSG;
        if (rc) {
            remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "cannot start building the "
                           "copy: %s", strerror(-rc));
            return;
        }
    }
    if (s->stream_closed)
        return;
    s->stream_bytes += f->length;
    pipe_write(s, &s->builder_stream, payload, f->length);
    if (!s->link_paused && uv_stream_get_write_queue_size((uv_stream_t *)&s->builder_stream) >
        RUN_WRITE_QUEUE_MAX) {
        s->link_paused = true;
        remus_run_link_pause(r, true);
    }
    remus_run_post(r, RE_PEER_STREAM, 0, 0, NULL);
}

static void open_disks(struct secondary *s)
{
    struct remus_run *r = &s->run;
    int rc = remus_disks_receive(r);

    if (rc)
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "the disks of the copy cannot be "
                       "opened: %s", strerror(-rc));
}

static void secondary_frame(struct remus_run *r, const struct remus_frame *f,
                            const uint8_t *payload)
{
    struct secondary *s = self(r);
    struct remus_stop stop = { .reason = REMUS_STOP_FAILED };
    struct remus_hello hello;

    switch (f->type) {
    case REMUS_FRAME_HELLO:
        if (f->length != sizeof(hello)) {
            remus_run_post(r, RE_PEER_BAD, 0, 0, "HELLO of %u bytes", f->length);
            break;
        }
        if (s->greeted) {
            remus_run_post(r, RE_PEER_BAD, 0, 0, "a second HELLO");
            break;
        }
        s->greeted = true;
        memcpy(&hello, payload, sizeof(hello));
        if (hello.version != REMUS_PROTOCOL_VERSION || hello.mode != r->p->core.mode->wire)
            remus_run_post(r, RE_PEER_BAD, 0, 0, "%s speaks version %u, mode %u of the protocol, "
                           "this host version %u, mode %u", r->p->peer, hello.version, hello.mode,
                           REMUS_PROTOCOL_VERSION, r->p->core.mode->wire);
        else if (hello.heartbeat_ms != r->p->core.heartbeat_ms ||
                 hello.timeout_ms != r->p->core.timeout_ms ||
                 memcmp(hello.session, r->p->session, sizeof(hello.session)))
            remus_run_post(r, RE_PEER_BAD, 0, 0, "%s does not mean the session that was agreed on",
                           r->p->peer);
        else if (hello.flags & ~REMUS_HELLO_FLAGS)
            remus_run_post(r, RE_PEER_BAD, 0, 0, "%s wants something unknown (flags %#x)",
                           r->p->peer, hello.flags);
        else if (hello.flags & REMUS_HELLO_LZ4 && remus_decoder_unpack(r->link.decoder))
            remus_run_post(r, RE_FAILED, 0, (uint64_t)-ENOMEM, "no memory to uncompress with");
        else
            open_disks(s);
        break;
    case REMUS_FRAME_CONFIG:
        if (take_config(s, payload, f->length))
            remus_run_post(r, RE_PEER_BAD, 0, 0, "the configuration that %s sent is malformed",
                           r->p->peer);
        break;
    case REMUS_FRAME_STREAM:
        stream_frame(s, f, payload);
        break;
    case REMUS_FRAME_STREAM_END: /* the builder sees the end in the stream itself */
        break;
    case REMUS_FRAME_PAGES:
    case REMUS_FRAME_RECORD:
    case REMUS_FRAME_EPOCH_END:
        if (r->h.domid && s->sr)
            epoch_frame(s, f, payload);
        else
            remus_run_post(r, RE_PEER_BAD, 0, 0, "an epoch before the copy was built");
        break;
    case REMUS_FRAME_STOP:
        if (f->length >= sizeof(stop))
            memcpy(&stop, payload, sizeof(stop));
        remus_run_post(r, RE_PEER_STOP, stop.guest_reason, stop.reason, "%s ended protection "
                                        "(reason %u)",
                       r->p->peer, stop.reason);
        break;
    case REMUS_FRAME_STOPPED:
        remus_run_post(r, RE_PEER_STOPPED, 0, 0, NULL);
        break;
    default:
        if (!(f->type & REMUS_FRAME_OPTIONAL))
            remus_run_post(r, RE_PEER_BAD, 0, 0, "frame type %u is not for a secondary", f->type);
    }
}

/* Every answer of colo-shadowd is waited for where it is asked. */
static void secondary_control(struct remus_run *r, const struct ctl_in *in)
{
    if (in->msg.type == CTL_OFFSETS)
        take_offsets(self(r), in);
    if (remus_disks_control(r, in)) {
        epoch_complete(self(r));
        if (self(r)->waits_for_disks && r->core.state == RS_APPLY)
            apply_rested(self(r));
    }
    if (in->msg.type == CTL_CHECKPOINT && r->core.state < RS_ARBITRATE)
        remus_run_send(r, REMUS_FRAME_CHECKPOINT, 0, in->text, (uint32_t)strlen(in->text));
}

static void secondary_daemon_lost(struct remus_run *r, struct remus_daemon *d)
{
    if (d != &r->daemon)
        remus_disks_revive(r);
}

static void secondary_watch(struct remus_run *r)
{
    struct secondary *s = self(r);
    uint32_t reason;

    if (!r->h.domid)
        return;
    if (s->active)
        answer_closing(s);
    if (s->first_run && !s->suspend_asked)
        go_on_first_run(s);
    switch (remus_guest_state(r->h.xch, r->h.domid, &reason)) {
    case REMUS_GUEST_RUNS:
        break;
    case REMUS_GUEST_SUSPENDED:
        if (s->first_run)
            end_first_run(s);
        break;
    case REMUS_GUEST_ENDED:
        if (s->active)
            mind_end(s, reason);
        else if (s->first_run)
            remus_run_post(r, RE_FAILED, 0, 0, "the copy ended while it resumed (reason %u)",
                           reason);
        else if (reason == ~0u)
            remus_run_post(r, RE_GUEST_ENDED, 0, UINT64_MAX, NULL);
        /*
         * Otherwise the primary's guest is about to do the same, or the next checkpoint repairs
         * it.
         */
        break;
    }
}

static void secondary_periodic(struct remus_run *r)
{
    struct secondary *s = self(r);

    if (s->first_run && remus_run_now_us() - s->first_run_us > RESUME_PATH_US) {
        s->first_run = false;
        remus_run_post(r, RE_FAILED, 0, 0, "the copy did not get through its resume path in %u s",
                       RESUME_PATH_US / 1000000);
    }
    remus_disks_vouch(r);
    if (s->active)
        settle(s);
    if (s->settled)
        remus_disks_obey(r);
}

static const struct remus_run_ops secondary_ops = {
    .action = secondary_action, .frame = secondary_frame, .control = secondary_control,
    .daemon_lost = secondary_daemon_lost, .watch = secondary_watch, .periodic = secondary_periodic,
};

int remus_secondary_run(const struct remus_session_params *params,
                        struct remus_session_result *result)
{
    struct secondary *s = calloc(1, sizeof(*s));
    unsigned int i;
    int rc;

    if (!s)
        return -ENOMEM;
    for (i = 0; i < REMUS_VIFS_MAX; i++)
        s->taps[i] = -1;
    s->lock_fd = -1;
    rc = remus_run_init(&s->run, params, &secondary_ops, result, s);
    if (!rc)
        rc = remus_run_loop(&s->run);
    if (s->run.h.domid && s->run.xs)
        remus_guest_unpublish(s->run.xs, s->run.h.domid);
    remus_run_work_wait(&s->run);
    xc_sr_secondary_close(s->sr, false);
    if (s->silenced && s->run.h.domid) {
        remus_run_link_drain(&s->run);
        destroy_domain(s);
    }
    remus_run_dispose(&s->run);
    for (i = 0; i < REMUS_VIFS_MAX; i++)
        close_tap(s, i);
    xc_sr_epoch_free(&s->epoch);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    offsets_free(s);
    free(s->based);
    free(s->frontends);
    free(s->config);
    free(s);
    return rc;
}
