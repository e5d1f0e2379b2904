#include "tools/xl/display.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tools/libxl/remus_message.h"

/* ---- Pure ------------------------------------------------------------------------------------ */

void display_bytes(char *out, size_t room, uint64_t bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes / 1024.0;
    size_t u = 0;

    if (bytes < 1024) {
        snprintf(out, room, "%llu B", (unsigned long long)bytes);
        return;
    }
    while (value >= 1023.95 && u + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024.0;
        u++;
    }
    snprintf(out, room, "%.1f %s", value, units[u]);
}

void display_us(char *out, size_t room, uint64_t us)
{
    if (us < 1000)
        snprintf(out, room, "%llu us", (unsigned long long)us);
    else if (us < 9950)
        snprintf(out, room, "%.1f ms", (double)us / 1e3);
    else if (us < 9999500)
        snprintf(out, room, "%llu ms", (unsigned long long)((us + 500) / 1000));
    else
        snprintf(out, room, "%.1f s", (double)us / 1e6);
}

/* xvda is number 202 << 8; those from xvdq on have numbers of another kind (xen-vbd-interface). */
void display_disk(char *out, size_t room, uint64_t vdev)
{
    const unsigned int index = vdev >> 28 == 1 ? (vdev >> 8 & 0xfffff) : (vdev >> 4 & 0xf);
    const unsigned int part = vdev >> 28 == 1 ? (vdev & 0xff) : (vdev & 0xf);

    if ((vdev >> 28 != 1 && vdev >> 8 != 202) || index >= 26)
        snprintf(out, room, "%llu", (unsigned long long)vdev);
    else if (part)
        snprintf(out, room, "xvd%c%u", 'a' + index, part);
    else
        snprintf(out, room, "xvd%c", 'a' + index);
}

/* Names of the wire and of the design are for the log; these are for people. */
const char *display_state(const struct remus_status *s)
{
    switch (s->state) {
    case RP_COPY:
    case RS_COPY:
        return "copying";
    case RP_BUILD:
    case RS_BASE:
        return "building the copy";
    case RP_RUN:
    case RP_SUSPEND:
    case RP_QUIESCE:
    case RP_STAGE:
    case RP_RESUME:
    case RP_SEND:
    case RP_APPLY:
    case RS_RUN:
    case RS_RECEIVE:
    case RS_APPLY:
        return s->protected_now ? "protected"
               : s->nowhere     ? "NOT protected, only measured"
                                : "first checkpoint";
    case RP_STOP:
    case RP_UNPROTECT:
    case RS_STOP:
        return "stopping";
    case RP_ARBITRATE:
    case RS_ARBITRATE:
        return "peer lost";
    case RS_TAKEOVER:
        return "taking over";
    case RS_ACTIVE:
        return "took over";
    default:
        return "ended";
    }
}

const char *display_end_name(enum remus_end end)
{
    switch (end) {
    case REMUS_END_STOPPED:
        return "stopped";
    case REMUS_END_GUEST:
        return "guest-ended";
    case REMUS_END_ALONE:
        return "alone";
    case REMUS_END_ACTIVE:
        return "active";
    case REMUS_END_HANDED_OVER:
        return "handed-over";
    case REMUS_END_FENCED:
        return "fenced";
    case REMUS_END_FAILED:
        return "failed";
    }
    return "unknown";
}

static bool copying(const struct remus_status *s)
{
    return s->state == RP_COPY || s->state == RS_COPY;
}

/* Disks are made equal before memory is copied.  false: there are none, or they are. */
static bool disks_differ(const struct remus_status *s, uint64_t *done, uint64_t *total)
{
    unsigned int i;

    *done = *total = 0;
    for (i = 0; i < s->disk_count; i++) {
        *done += s->disks[i].sync_done_bytes;
        *total += s->disks[i].sync_bytes;
    }
    return *done < *total && !s->copy.pages_done;
}

void display_bar(char *out, size_t room, unsigned int columns, const struct remus_status *s,
                 uint64_t copy_ms)
{
    const struct xc_sr_progress *p = &s->copy;
    uint64_t total = p->pages_total, done = p->pages_done < total ? p->pages_done : total;
    char rate[24] = "", left[24] = "", pass[24], tail[96], bar[64];
    unsigned int width, fill, percent, i;
    uint64_t bytes = p->bytes_written, unit = 4096, disk_done, disk_total;
    double per_second = 0;

    snprintf(pass, sizeof(pass), "pass %u", p->pass + 1);
    if (disks_differ(s, &disk_done, &disk_total)) {
        done = bytes = disk_done;
        total = disk_total;
        unit = 1;
        snprintf(pass, sizeof(pass), "disks");
    }
    percent = total ? (unsigned int)(done * 100 / total) : 0;
    /* The rate is of the whole copy so far; the bar is of one pass, and later ones are short. */
    if (copy_ms >= 200)
        per_second = (double)bytes * 1000.0 / (double)copy_ms;
    if (per_second > 0) {
        uint64_t seconds = (uint64_t)((double)((total - done) * unit) / per_second + 0.5);

        display_bytes(rate, sizeof(rate), (uint64_t)per_second);
        snprintf(left, sizeof(left), "  %u:%02u left", (unsigned int)(seconds / 60 % 6000),
                 (unsigned int)(seconds % 60));
    }
    snprintf(tail, sizeof(tail), " %3u %%  %s%s%s%s%s", percent, pass,
             rate[0] ? "  " : "",
             rate, rate[0] ? "/s" : "", left);
    width = columns > strlen(tail) + 24 ? columns - (unsigned int)strlen(tail) - 20 : 0;
    if (width > 40)
        width = 40;
    if (width < 4) {
        snprintf(out, room, "%.20s: copying%s", s->domain, tail);
    } else {
        fill = percent * width / 100;
        for (i = 0; i < width; i++)
            bar[i] = i < fill ? '=' : i == fill ? '>' : ' ';
        bar[width] = '\0';
        snprintf(out, room, "%.12s: [%s]%s", s->domain, bar, tail);
    }
    if (strlen(out) > columns)
        out[columns] = '\0';
}

void display_live(char *out, size_t room, unsigned int columns, const struct remus_status *s,
                  uint64_t copy_ms)
{
    char age[24], pause[24], delay[24];
    int n;

    if (copying(s)) {
        display_bar(out, room, columns, s, copy_ms);
        return;
    }
    if (!s->epoch || s->state == RP_BUILD || s->state == RS_BASE) {
        snprintf(out, room, "%s: %s", s->domain, display_state(s));
    } else {
        display_us(age, sizeof(age), s->epoch_age_ms * 1000);
        display_us(pause, sizeof(pause), s->pause_us);
        display_us(delay, sizeof(delay), s->output_delay_us);
        n = snprintf(out, room,
                     "%s (%s%s%s): %s  epoch %llu (%s)  dirty %llu  pause %s  held %llu  delay %s",
                     s->domain, strcmp(s->mode, s->running_mode) ? s->mode : "",
                     strcmp(s->mode, s->running_mode) ? ": " : "", s->running_mode,
                     display_state(s), (unsigned long long)s->epoch, age,
                     (unsigned long long)s->dirty_pages, pause, (unsigned long long)s->held_packets,
                     delay);
        if (s->verify_bad && n > 0 && (size_t)n < room)
            n += snprintf(out + n, room - (size_t)n, "  VERIFY: %llu bad",
                          (unsigned long long)s->verify_bad);
        if (s->last_divergence[0] && n > 0 && (size_t)n < room)
            snprintf(out + n, room - (size_t)n, "  last divergence: %s", s->last_divergence);
    }
    if (strlen(out) > columns)
        out[columns] = '\0';
}

/* ---- JSON --------------------------------------------------------------------------------- */

static void checkpoints_by_reason(struct remus_object *o, const uint64_t *count)
{
    static const char *const why[CTL_WHY_COUNT] = {
        [CTL_WHY_DIVERGED] = "diverged",
        [CTL_WHY_DEADLINE] = "deadline",
        [CTL_WHY_UNCOMPARABLE] = "uncomparable",
        [CTL_WHY_QUEUE] = "queue",
        [CTL_WHY_OUTPUT] = "output",
    };
    unsigned int i;

    for (i = 1; i < CTL_WHY_COUNT; i++)
        remus_object_number(o, why[i], count[i]);
}

static void vif_fields(struct remus_object *o, const struct ctl_vif_stats *v)
{
    remus_object_string(o, "vif", v->name);
    remus_object_number(o, "input_packets", v->input_packets);
    remus_object_number(o, "input_bytes", v->input_bytes);
    remus_object_number(o, "output_packets", v->output_packets);
    remus_object_number(o, "output_bytes", v->output_bytes);
    remus_object_number(o, "held", v->held);
    remus_object_number(o, "held_bytes", v->held_bytes);
    remus_object_number(o, "held_max", v->held_max);
    remus_object_number(o, "flows", v->flows);
    remus_object_number(o, "dropped", v->dropped);
}

static void class_fields(struct remus_object *o, const char *vif, const char *name,
                         const struct ctl_class_stats *c)
{
    remus_object_string(o, "vif", vif);
    remus_object_string(o, "class", name);
    remus_object_number(o, "primary", c->primary);
    remus_object_number(o, "secondary", c->secondary);
    remus_object_number(o, "released_equal", c->equal);
    remus_object_number(o, "released_epoch", c->epoch);
    remus_object_number(o, "delay_us_sum", c->delay_us_sum);
    remus_object_number(o, "delay_us_max", c->delay_us_max);
    checkpoints_by_reason(o, c->checkpoints);
}

static void disk_fields(struct remus_object *o, const struct ctl_blk_stats *d)
{
    remus_object_number(o, "vdev", d->vdev);
    remus_object_number(o, "bytes", d->bytes);
    remus_object_number(o, "reads", d->reads);
    remus_object_number(o, "writes", d->writes);
    remus_object_number(o, "flushes", d->flushes);
    remus_object_number(o, "discards", d->discards);
    remus_object_number(o, "read_bytes", d->read_bytes);
    remus_object_number(o, "written_bytes", d->written_bytes);
    remus_object_number(o, "bad", d->bad);
    remus_object_number(o, "errors", d->errors);
    remus_object_number(o, "delay_us_sum", d->delay_us_sum);
    remus_object_number(o, "delay_us_max", d->delay_us_max);
    remus_object_number(o, "sent_bytes", d->sent_bytes);
    remus_object_number(o, "sync_bytes", d->sync_bytes);
    remus_object_number(o, "sync_done_bytes", d->sync_done_bytes);
    remus_object_number(o, "sync_sent_bytes", d->sync_sent_bytes);
    remus_object_number(o, "overlay_bytes", d->overlay_bytes);
    remus_object_number(o, "waiting_bytes", d->waiting_bytes);
}

/* Flat lists, which readers without a path language can walk. */
static void traffic_fields(struct remus_object *o, const struct remus_status *s)
{
    static const char *const class_name[CTL_CLASS_COUNT] = {
        [CTL_CLASS_TCP] = "tcp",
        [CTL_CLASS_UDP] = "udp",
        [CTL_CLASS_ICMP] = "icmp",
        [CTL_CLASS_ARP] = "arp",
        [CTL_CLASS_OTHER] = "other",
    };
    unsigned int i, k;

    remus_object_list(o, "vifs");
    for (i = 0; i < s->vif_count; i++) {
        remus_object_map(o, NULL);
        vif_fields(o, &s->vifs[i]);
        remus_object_map_end(o);
    }
    remus_object_list_end(o);
    remus_object_list(o, "classes");
    for (i = 0; i < s->vif_count; i++) {
        for (k = 0; k < CTL_CLASS_COUNT; k++) {
            const struct ctl_class_stats *c = &s->vifs[i].classes[k];

            if (!c->primary && !c->secondary)
                continue;
            remus_object_map(o, NULL);
            class_fields(o, s->vifs[i].name, class_name[k], c);
            remus_object_map_end(o);
        }
    }
    remus_object_list_end(o);
    remus_object_list(o, "causes");
    for (i = 0; i < s->cause_count; i++) {
        remus_object_map(o, NULL);
        remus_object_string(o, "flow", s->causes[i].flow);
        remus_object_string(o, "vif", s->causes[i].vif);
        checkpoints_by_reason(o, s->causes[i].checkpoints);
        remus_object_number(o, "epoch", s->causes[i].epoch);
        remus_object_string(o, "last", s->causes[i].last);
        remus_object_map_end(o);
    }
    remus_object_list_end(o);
}

void display_status_fields(struct remus_object *o, const struct remus_status *s)
{
    static const char *const second_network[] = {
        [REMUS_SECOND_NONE] = "none", [REMUS_SECOND_HEARD] = "ok",
        [REMUS_SECOND_SILENT] = "silent", [REMUS_SECOND_LOST] = "lost",
    };
    unsigned int i;

    remus_object_string(o, "domain", s->domain);
    remus_object_number(o, "domid", s->domid);
    remus_object_string(o, "peer", s->peer);
    remus_object_string(o, "role", s->role == REMUS_PRIMARY ? "primary" : "secondary");
    remus_object_string(o, "mode", s->mode);
    remus_object_string(o, "running_mode", s->running_mode);
    remus_object_string(o, "state", display_state(s));
    remus_object_number(o, "state_number", (uint64_t)s->state);
    remus_object_flag(o, "protected", s->protected_now);
    remus_object_string(o, "health", remus_health_name(s->health));
    remus_object_string(o, "second_network", second_network[s->second_path]);
    remus_object_number(o, "epoch", s->epoch);
    remus_object_number(o, "epoch_age_ms", s->epoch_age_ms);
    remus_object_number(o, "lag_ms", s->lag_ms);
    remus_object_number(o, "checkpoints", s->checkpoints);
    remus_object_map(o, "requested");
    checkpoints_by_reason(o, s->requested);
    remus_object_map_end(o);
    remus_object_map(o, "copy");
    remus_object_number(o, "pass", s->copy.pass);
    remus_object_number(o, "pages_done", s->copy.pages_done);
    remus_object_number(o, "pages_total", s->copy.pages_total);
    remus_object_number(o, "bytes", s->copy.bytes_written);
    remus_object_number(o, "ms", s->copy_ms);
    remus_object_map_end(o);
    remus_object_number(o, "dirty_pages", s->dirty_pages);
    remus_object_number(o, "epoch_bytes", s->epoch_bytes);
    remus_object_number(o, "pause_us", s->pause_us);
    remus_object_number(o, "pause_us_median", s->pause_us_median);
    remus_object_number(o, "pause_us_max", s->pause_us_max);
    remus_object_number(o, "ack_us", s->ack_us);
    remus_object_number(o, "apply_us", s->apply_us);
    remus_object_number(o, "rolled_back", s->rolled_back);
    remus_object_number(o, "verify_epochs", s->verify_epochs);
    remus_object_number(o, "verify_bad", s->verify_bad);
    remus_object_number(o, "held_packets", s->held_packets);
    remus_object_number(o, "output_delay_us", s->output_delay_us);
    remus_object_number(o, "output_delay_us_max", s->output_delay_us_max);
    remus_object_number(o, "failover_ms", s->failover_ms);
    remus_object_map(o, "failover");
    remus_object_number(o, "silence_ms", s->failover.silence_ms);
    remus_object_number(o, "arbiter_ms", s->failover.arbiter_ms);
    remus_object_number(o, "guest_ms", s->failover.guest_ms);
    remus_object_number(o, "disks_ms", s->failover.disks_ms);
    remus_object_number(o, "network_ms", s->failover.network_ms);
    remus_object_map_end(o);
    remus_object_map(o, "cache");
    remus_object_number(o, "hits", s->cache.hits);
    remus_object_number(o, "misses", s->cache.misses);
    remus_object_number(o, "evictions", s->cache.evictions);
    remus_object_number(o, "invalidations", s->cache.invalidations);
    remus_object_number(o, "mapped_pages", s->cache.mapped_pages);
    remus_object_number(o, "budget_pages", s->cache.budget_pages);
    remus_object_map_end(o);
    remus_object_map(o, "net");
    remus_object_number(o, "input_packets", s->net.input_packets);
    remus_object_number(o, "output_packets", s->net.output_packets);
    remus_object_number(o, "released_equal", s->net.released_equal);
    remus_object_number(o, "released_epoch", s->net.released_epoch);
    remus_object_number(o, "held", s->net.held);
    remus_object_number(o, "held_max", s->net.held_max);
    remus_object_number(o, "flows", s->net.flows);
    remus_object_number(o, "dropped_old", s->net.dropped_old);
    remus_object_number(o, "dropped_other", s->net.dropped_other);
    remus_object_number(o, "delay_us_sum", s->net.delay_us_sum);
    remus_object_number(o, "delay_us_max", s->net.delay_us_max);
    remus_object_number(o, "lag_us", s->net.lag_us);
    remus_object_number(o, "attaches", s->net.attaches);
    remus_object_number(o, "attach_us_sum", s->net.attach_us_sum);
    remus_object_number(o, "attach_us_max", s->net.attach_us_max);
    remus_object_map_end(o);
    traffic_fields(o, s);
    remus_object_list(o, "disks");
    for (i = 0; i < s->disk_count; i++) {
        remus_object_map(o, NULL);
        disk_fields(o, &s->disks[i]);
        remus_object_map_end(o);
    }
    remus_object_list_end(o);
    remus_object_string(o, "last_divergence", s->last_divergence);
    remus_object_string(o, "reason", s->reason);
}

static void print_object(struct display *d, struct remus_object *o)
{
    char *line = remus_object_finish(o);

    if (line) {
        fputs(line, d->out);
        fflush(d->out);
    }
    free(line);
}

/* ---- Showing ------------------------------------------------------------------------------ */

static unsigned int terminal_columns(FILE *f)
{
    struct winsize size;

    if (ioctl(fileno(f), TIOCGWINSZ, &size) < 0 || size.ws_col < 20)
        return 79;
    /* The last column stays free: some terminals wrap as soon as it is written. */
    return size.ws_col - 1u < DISPLAY_LINE_BYTES ? size.ws_col - 1u : DISPLAY_LINE_BYTES - 1;
}

void display_init(struct display *d, FILE *out, FILE *err, bool json, bool quiet, bool verbose)
{
    const char *term = getenv("TERM");

    *d = (struct display){.out = out, .err = err, .json = json, .quiet = quiet,
                          .verbose = verbose};
    d->terminal = !json && !quiet && isatty(fileno(out)) && term && strcmp(term, "dumb");
    d->columns = d->terminal ? terminal_columns(out) : DISPLAY_LINE_BYTES - 1;
}

void display_pause(struct display *d)
{
    if (!d->live)
        return;
    fputs("\r\033[K", d->out);
    fflush(d->out);
    d->live = false;
}

void display_status(struct display *d, uint64_t now_ms, const struct remus_status *s)
{
    char raw[DISPLAY_LINE_BYTES], line[DISPLAY_LINE_BYTES];
    bool news;

    if (copying(s) && !d->copy_began_ms)
        d->copy_began_ms = now_ms;
    /* The end has a message of its own. */
    if (s->state == RP_DONE || s->state == RS_DONE)
        return;
    /* A checkpoint's inner states are no news for a person. */
    news = !d->shown_any || s->protected_now != d->shown_protected ||
           (s->state != d->shown_state &&
            strcmp(display_state(s),
                   display_state(&(struct remus_status){.state = d->shown_state,
                                                       .protected_now = d->shown_protected})));
    if (d->quiet && !d->json)
        return;
    if (d->terminal && !news && now_ms - d->shown_ms < DISPLAY_LIVE_MS)
        return;
    if (!d->terminal && !d->json && !news && now_ms - d->shown_ms < DISPLAY_PLAIN_MS)
        return;
    d->shown_any = true;
    d->shown_ms = now_ms;
    d->shown_state = s->state;
    d->shown_protected = s->protected_now;

    if (d->json) {
        struct remus_object *o = remus_object_new("status");

        display_status_fields(o, s);
        print_object(d, o);
        return;
    }
    if (d->terminal)
        d->columns = terminal_columns(d->out);
    display_live(raw, sizeof(raw), d->columns, s, now_ms - d->copy_began_ms);
    remus_text_clean(line, sizeof(line), raw);
    if (d->terminal) {
        fprintf(d->out, "\r%s\033[K", line);
        d->live = true;
    } else {
        fprintf(d->out, "%s\n", line);
    }
    fflush(d->out);
}

void display_message(struct display *d, enum xc_sr_level level, const char *from, const char *text)
{
    static const char *const names[] = {"debug", "info", "warning", "error"};
    char line[1024];
    FILE *f;

    if ((level == XC_SR_DEBUG && !d->verbose) || (level == XC_SR_INFO && d->quiet))
        return;
    if (d->json) {
        struct remus_object *o = remus_object_new("message");

        remus_object_string(o, "level", names[level]);
        remus_object_string(o, "from", from);
        remus_object_string(o, "text", text);
        print_object(d, o);
        return;
    }
    display_pause(d);
    remus_text_clean(line, sizeof(line), text);
    f = level >= XC_SR_WARN ? d->err : d->out;
    fprintf(f, "xl: %s%s%s%s\n", level == XC_SR_WARN ? "warning: " : "", from ? from : "",
            from ? ": " : "", line);
    fflush(f);
}

void display_end(struct display *d, int code, const char *end, const char *reason,
                 const struct remus_status *last)
{
    char line[1024], median[24], most[24], delay[24];

    if (d->json) {
        struct remus_object *o = remus_object_new("end");

        remus_object_number(o, "code", (uint64_t)code);
        remus_object_string(o, "end", end);
        remus_object_string(o, "reason", reason);
        if (last) {
            remus_object_map(o, "last");
            display_status_fields(o, last);
            remus_object_map_end(o);
        }
        print_object(d, o);
        return;
    }
    display_pause(d);
    remus_text_clean(line, sizeof(line), reason);
    fprintf(code ? d->err : d->out, "xl: %s\n", line);
    if (last && last->checkpoints && !d->quiet) {
        display_us(median, sizeof(median), last->pause_us_median);
        display_us(most, sizeof(most), last->pause_us_max);
        display_us(delay, sizeof(delay), last->output_delay_us);
        fprintf(d->out,
                "xl: %llu checkpoints, initial copy %.1f s, pause %s median %s most, output delay "
                "%s\n", (unsigned long long)last->checkpoints, (double)last->copy_ms / 1e3, median,
                most, delay);
    }
    fflush(d->out);
}
