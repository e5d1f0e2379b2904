/*
 * colo-proxyd: holds the output of a protected guest until the secondary has said the same.
 *
 *   guest --vif--> [prerouting: OUTPUT queue] --> bridge --> world
 *   world --> bridge --> [postrouting: INPUT queue] --vif--> guest
 *
 * Each vif has CTL_OUTPUT_QUEUES netfilter queues for its output, among which the kernel spreads
 * the pairs of addresses, and one for its input, where nothing stays.  (To find the frame that a
 * verdict is for, the kernel walks the queue from its oldest frame: what waits for one peer should
 * not be in the way of all others.)  Output goes to the comparison (compare.h) and leaves by its
 * verdicts.  Input is copied to the packet channel, then accepted at once, so that both
 * guests receive the same.  The coordinator (ctl.h) says where an epoch ends.
 *
 * States, and what changes them.  Each applies to all vifs of the domain.
 *
 *   state      output                          input
 *   PROTECT    by the epoch's rule, below      by the rule
 *   HOLD       held; CTL_RELEASE only          as in PROTECT (while there is a channel)
 *   OPEN       accepted                        accepted
 *   FENCED     dropped                         dropped; with COMPARE copied first
 *
 *              HOLD     CHANNEL LOST   UNPROTECT   FENCE
 *   PROTECT    HOLD     HOLD           OPEN        FENCED
 *   HOLD       HOLD     HOLD           OPEN        FENCED
 *   OPEN       OPEN     OPEN           OPEN        FENCED
 *   FENCED     FENCED   FENCED         FENCED      FENCED     (a fence is final)
 *
 * The rule of an epoch (enum ctl_rule) comes with the cut before it:
 *   COMPARE    held, released by comparison    copied and accepted
 *   EPOCH      held; CTL_RELEASE only          accepted
 *   PASS       accepted, in its order          accepted
 *
 * Input waits in the kernel, unread, after CTL_INPUT_STOP until CTL_CUT or CTL_INPUT_GO, and while
 * the channel is congested.
 *
 * Two processes: this one takes packets apart and has no privileges at all; a second one (nfq.h,
 * the writer) sends the verdicts, as that needs CAP_NET_ADMIN, and sends nothing else.
 *
 * Timers: the comparison's deadlines; INPUT_POLL_US while input waits (is the kernel's queue
 * filling up?); TABLE_POLL_US always (has the kernel dropped frames that we never saw?).
 *
 * When this process ends, the kernel drops what the queues hold and, as the rules have no bypass,
 * everything that comes after: a guest without its comparison is fenced.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "tools/remus/bypass.h"
#include "tools/remus/causes.h"
#include "tools/remus/channel.h"
#include "tools/remus/compare.h"
#include "tools/remus/ctl.h"
#include "tools/remus/ctlio.h"
#include "tools/remus/nfq.h"
#include "tools/remus/nudge.h"
#include "tools/remus/packet.h"
#include "tools/remus/privdrop.h"

#define OUTPUT_MAXLEN_DEFAULT  8192u
#define OUTPUT_MAXLEN_MAX      65536u        /* a slot number has 16 bits */
#define INPUT_MAXLEN           16384u
#define OUTPUT_RCVBUF_BYTES    (32u << 20)
#define INPUT_RCVBUF_BYTES     (64u << 20)
#define ROUND_BATCHES          2u            /* of NFQ_BATCH frames, per queue and round */
#define CUT_BATCHES            64u
#define QUIT_ROUNDS            16u
#define CHANNEL_ROUND_FRAMES   64u
#define COPY_BYTES_MAX         9216u         /* frames up to here can have their window replaced */
#define INPUT_POLL_US          20000u
#define TABLE_POLL_US          1000000u
#define SLOT_BITS              16u

enum proxy_state { PROXY_PROTECT, PROXY_HOLD, PROXY_OPEN, PROXY_FENCED, PROXY_STATES };
enum proxy_event { EVENT_HOLD, EVENT_LOST, EVENT_UNPROTECT, EVENT_FENCE, PROXY_EVENTS };

_Static_assert(REMUS_VIFS_MAX * (CTL_OUTPUT_QUEUES + 1) + 3 <= 64,
               "struct proxy.ready has room for all");
_Static_assert(REMUS_VIFS_MAX * (CTL_OUTPUT_QUEUES + 1) <= NFQ_WRITER_QUEUES_MAX,
               "one writer for all");

static const enum proxy_state proxy_next[PROXY_STATES][PROXY_EVENTS] = {
    [PROXY_PROTECT] = { PROXY_HOLD,   PROXY_HOLD,   PROXY_OPEN,   PROXY_FENCED },
    [PROXY_HOLD]    = { PROXY_HOLD,   PROXY_HOLD,   PROXY_OPEN,   PROXY_FENCED },
    [PROXY_OPEN]    = { PROXY_OPEN,   PROXY_OPEN,   PROXY_OPEN,   PROXY_FENCED },
    [PROXY_FENCED]  = { PROXY_FENCED, PROXY_FENCED, PROXY_FENCED, PROXY_FENCED },
};
static const char *const proxy_state_name[] = { "protect", "hold", "open", "fenced" };
static const char *const why_name[CTL_WHY_COUNT] = {
    "?", "output differs", "no partner in time", "cannot be compared", "queue nearly full",
    "output waits",
};

/*
 * An output frame in the kernel's hands.  The comparison knows it by an id that tells slot and use
 * of the slot, so that a stale or made-up id finds nothing.  bytes is a copy for CMP_RELEASE_WINDOW
 * and _SACK, which send the frame back changed; it is kept for TCP that could need it, and stays
 * with the slot.
 */
struct slot {
    uint64_t id;             /* 0: free */
    uint32_t packet_id;
    uint32_t length;         /* on the wire */
    uint8_t *bytes;
    uint32_t bytes_room;
    uint32_t copied;         /* 0: no copy was kept */
    uint32_t l3_offset;
    uint8_t queue;           /* of vif.outputs */
    bool csum_partial;
};

/* One of a vif's output queues, with the counts that were last seen there. */
struct output {
    struct vif *vif;
    struct nfq *nfq;
    uint64_t lost, gone;
    uint32_t full;           /* in the kernel's table */
};

struct vif {
    struct proxy *proxy;
    unsigned int index;
    char name[IFNAMSIZ];
    uint16_t output_queue;   /* the first of CTL_OUTPUT_QUEUES */
    uint16_t input_queue;
    uint32_t mtu;

    struct output outputs[CTL_OUTPUT_QUEUES];
    struct nfq *input;
    struct cmp *cmp;
    bool input_polled;       /* the input queue is in the epoll set for reading */

    struct slot *slots;      /* output_maxlen of them */
    uint16_t *free_slots;    /* a stack, so that few slots (and their copies) are in use */
    uint32_t free_count;
    uint64_t sequence;       /* of ids */

    uint64_t matched[CHANNEL_MATCHED_MAX];
    unsigned int matched_count;
    struct nudge_told told;  /* in this epoch, if its output is not compared */

    struct ctl_vif_stats stats;             /* input, output and dropped are counted here */
    uint64_t held_bytes, held_max;
    uint64_t input_lost, input_gone;        /* as in struct output */
    uint32_t input_full;
};

struct proxy {
    /* From the command line. */
    uint32_t domid;
    unsigned int vif_count;
    uint32_t output_maxlen, output_rcvbuf;
    struct cmp_limits limits;
    bool keep_privileges;
    bool no_channel;
    struct remus_bypass bypass[REMUS_BYPASS_MAX];
    unsigned int bypass_count;

    struct vif vifs[REMUS_VIFS_MAX];
    struct nfq *queues[REMUS_VIFS_MAX * (CTL_OUTPUT_QUEUES + 1)];     /* of all vifs */
    unsigned int queue_count;
    struct channel *channel; /* NULL: none was given, or lost */
    int epoll_fd, timer_fd, table_fd;

    enum proxy_state state;
    uint64_t epoch;          /* the one that runs */
    enum ctl_rule rule;      /* of it */
    bool triggers;           /* CTL_RULE_TRIGGERS */
    bool input_stopped;
    bool asked;              /* a checkpoint, in this epoch */
    bool quit;
    uint64_t ready;          /* READY_* bits: has something to read */
    bool channel_writing;    /* the channel is polled for writing, too */
    uint64_t now_us, poll_us, table_us, armed_us;
    int error;               /* of something that no caller up the stack can return */
    char lost_text[200];     /* why the channel is to be given up at the end of the round; "" */

    struct ctl_stats stats;
    struct causes causes;
};

static int log_level = 1;    /* 0 errors and changes of state, 1 checkpoints wanted, 2 messages */

__attribute__((format(printf, 3, 4)))
static void proxy_log(const struct proxy *p, int level, const char *fmt, ...)
{
    char text[CTL_TEXT_MAX];
    va_list ap;

    if (level > log_level) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    fprintf(stderr, "colo-proxyd: domain %u epoch %" PRIu64 ": %s\n", p->domid, p->epoch, text);
}

static uint64_t clock_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* ---- Requests to the coordinator ------------------------------------------------------------- */

static void proxy_answer(struct proxy *p, enum ctl_type type)
{
    int rc = ctl_say(REMUS_CTL_FD, type, 0, p->epoch, NULL);

    if (rc) {
        proxy_log(p, 0, "cannot answer the coordinator (%s): %s", ctl_type_name(type),
                  strerror(-rc));
        p->error = rc;
    }
}

/* One request an epoch is enough: a checkpoint makes everything equal.  key: the flow that is the
 * reason, or NULL. */
__attribute__((format(printf, 4, 5)))
static void vif_ask(struct vif *v, enum ctl_why why, const struct packet_key *key,
                    const char *fmt, ...)
{
    struct proxy *p = v->proxy;
    char text[CTL_TEXT_MAX];
    va_list ap;
    int rc;

    if (why >= CTL_WHY_COUNT) {
        why = CTL_WHY_UNCOMPARABLE;
    }
    p->stats.checkpoints[why]++;
    if (p->asked || p->state == PROXY_OPEN || p->state == PROXY_FENCED) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    p->asked = true;
    if (why != CTL_WHY_OUTPUT) {
        causes_note(&p->causes, v->name, key, why, p->epoch, text);
    }
    proxy_log(p, why == CTL_WHY_OUTPUT ? 2 : 1, "checkpoint wanted, %s: %s: %s", why_name[why],
              v->name, text);
    rc = ctl_say(REMUS_CTL_FD, CTL_CHECKPOINT, why, p->epoch, "%s: %s", v->name, text);
    if (rc) {
        p->error = rc;
    }
}

/* ---- State ----------------------------------------------------------------------------------- */

static void vif_drain(struct vif *v, bool release);

/* The only place that changes p->state. */
static void proxy_event(struct proxy *p, enum proxy_event event)
{
    const enum proxy_state next = proxy_next[p->state][event];
    unsigned int i;

    if (next == p->state) {
        return;
    }
    proxy_log(p, 0, "%s -> %s", proxy_state_name[p->state], proxy_state_name[next]);
    p->state = next;
    for (i = 0; i < p->vif_count; i++) {
        if (next == PROXY_HOLD) {
            cmp_hold(p->vifs[i].cmp, true);
        } else if (next == PROXY_OPEN || next == PROXY_FENCED) {
            vif_drain(&p->vifs[i], next == PROXY_OPEN);
        }
    }
    if (next == PROXY_OPEN || next == PROXY_FENCED) {
        p->input_stopped = false;
    }
}

/* Only noted here, as the channel may be in use further up the stack; see channel_give_up. */
static void channel_lost(struct proxy *p, const char *text)
{
    if (!p->lost_text[0]) {
        snprintf(p->lost_text, sizeof(p->lost_text), "%s", text);
    }
}

static void channel_give_up(struct proxy *p)
{
    int rc;

    channel_free(p->channel);
    p->channel = NULL;
    proxy_log(p, 0, "%s", p->lost_text);
    proxy_event(p, EVENT_LOST);
    rc = ctl_say(REMUS_CTL_FD, CTL_CHANNEL_LOST, 0, p->epoch, "%s", p->lost_text);
    if (rc) {
        p->error = rc;
    }
    p->lost_text[0] = '\0';
}

/* ---- Output: slots --------------------------------------------------------------------------- */

static uint32_t vif_held(const struct vif *v)
{
    return v->proxy->output_maxlen - v->free_count;
}

static struct slot *slot_take(const struct output *o, const struct nfq_frame *frame)
{
    struct vif *v = o->vif;
    struct slot *s;
    uint16_t number;

    if (!v->free_count) {
        return NULL;
    }
    number = v->free_slots[--v->free_count];
    s = &v->slots[number];
    s->id = (++v->sequence << SLOT_BITS) | number;
    s->queue = (uint8_t)(o - v->outputs);
    s->packet_id = frame->packet_id;
    s->length = frame->wire_length;
    s->l3_offset = frame->l3_offset;
    s->csum_partial = frame->csum_partial;
    s->copied = 0;
    v->held_bytes += s->length;
    if (vif_held(v) > v->held_max) {
        v->held_max = vif_held(v);
    }
    return s;
}

static struct slot *slot_find(struct vif *v, uint64_t id)
{
    const uint32_t number = id & ((1u << SLOT_BITS) - 1);

    return number < v->proxy->output_maxlen && id && v->slots[number].id == id ?
           &v->slots[number] : NULL;
}

static void slot_give_back(struct vif *v, struct slot *s)
{
    s->id = 0;
    v->held_bytes -= s->length;
    v->free_slots[v->free_count++] = (uint16_t)(s - v->slots);
}

/* Without memory for it there is no copy: a frame that would need it is dropped and comes again. */
static void slot_copy(struct slot *s, const struct nfq_frame *frame)
{
    if (s->bytes_room < frame->length) {
        const uint32_t room = frame->length <= 2048 ? 2048 : COPY_BYTES_MAX;
        uint8_t *bytes = realloc(s->bytes, room);

        if (!bytes) {
            return;
        }
        s->bytes = bytes;
        s->bytes_room = room;
    }
    memcpy(s->bytes, frame->bytes, frame->length);
    s->copied = frame->length;
}

static void slot_verdict(struct vif *v, struct slot *s, bool accept)
{
    int rc = nfq_verdict(v->outputs[s->queue].nfq, s->packet_id, accept);

    if (rc) {
        v->proxy->error = rc;
    }
    slot_give_back(v, s);
}

/* Send a frame on with another window, and other SACK blocks if the action says so. */
static void slot_verdict_mangled(struct vif *v, struct slot *s, const struct cmp_action *action)
{
    struct packet packet;
    int rc;

    if (!s->copied || packet_parse(&packet, s->bytes, s->copied) || packet.kind != PACKET_TCP) {
        v->stats.dropped++;
        proxy_log(v->proxy, 1, "%s: a frame of %u bytes cannot be changed: dropped", v->name,
                  s->length);
        slot_verdict(v, s, false);
        return;
    }
    packet_tcp_set_window(s->bytes, &packet, (uint16_t)action->value, s->csum_partial);
    if (action->type == CMP_RELEASE_SACK) {
        packet_tcp_set_sack(s->bytes, &packet, action->sack, action->sack_blocks,
                            s->csum_partial);
    }
    if (s->csum_partial) {
        /* The kernel forgets about a partial checksum when a payload comes back. */
        packet_checksum_fill(s->bytes, &packet);
    }
    rc = nfq_verdict_mangled(v->outputs[s->queue].nfq, s->packet_id, s->bytes + s->l3_offset,
                             s->copied - s->l3_offset);
    if (rc) {
        v->proxy->error = rc;
    }
    slot_give_back(v, s);
}

/* What the comparison forgot would be held for ever: said, and treated like the rest. */
static void vif_drain(struct vif *v, bool release)
{
    uint32_t i, forgotten = 0;

    cmp_drain(v->cmp, release);
    for (i = 0; vif_held(v) && i < v->proxy->output_maxlen; i++) {
        if (v->slots[i].id) {
            slot_verdict(v, &v->slots[i], release);
            forgotten++;
        }
    }
    if (forgotten) {
        proxy_log(v->proxy, 0, "%s: the comparison had forgotten %u frames", v->name, forgotten);
    }
}

/* ---- Output: comparison ---------------------------------------------------------------------- */

static void matched_flush(struct vif *v)
{
    struct proxy *p = v->proxy;

    if (v->matched_count && p->channel &&
        channel_send_matched(p->channel, v->index, p->epoch, v->matched, v->matched_count)) {
        channel_lost(p, channel_error(p->channel));
    }
    v->matched_count = 0;
}

static void matched_add(struct vif *v, uint64_t id)
{
    if (v->matched_count == CHANNEL_MATCHED_MAX) {
        matched_flush(v);
    }
    v->matched[v->matched_count++] = id;
}

static void vif_action(void *arg, const struct cmp_action *action)
{
    struct vif *v = arg;
    struct proxy *p = v->proxy;
    struct slot *s;

    switch (action->type) {
    case CMP_RELEASE:
    case CMP_RELEASE_WINDOW:
    case CMP_RELEASE_SACK:
    case CMP_DROP:
        s = slot_find(v, action->id);
        if (!s) {
            proxy_log(p, 0, "%s: the comparison named a frame that is not held (%#" PRIx64 ")",
                      v->name, action->id);
            return;
        }
        if (action->type == CMP_RELEASE_WINDOW || action->type == CMP_RELEASE_SACK) {
            slot_verdict_mangled(v, s, action);
        } else {
            slot_verdict(v, s, action->type == CMP_RELEASE);
        }
        return;
    case CMP_MATCHED:
        matched_add(v, action->id);
        return;
    case CMP_FLOW:
        /* In the channel's buffer now, written before this round's verdicts are sent. */
        if (p->channel && channel_send_flow(p->channel, v->index, p->epoch, &action->flow)) {
            channel_lost(p, channel_error(p->channel));
        }
        return;
    case CMP_CHECKPOINT:
        vif_ask(v, action->why, action->has_key ? &action->key : NULL, "%.*s",
                (int)sizeof(action->text), action->text);
        return;
    }
}

/* Only TCP that is not GSO may be told to leave with another window. */
static bool frame_may_be_mangled(const struct nfq_frame *frame)
{
    struct packet packet;

    return !frame->gso && frame->length <= COPY_BYTES_MAX &&
           !packet_parse(&packet, frame->bytes, frame->length) && packet.kind == PACKET_TCP;
}

/* A copy that does not run cannot know whom its guest talks to. */
static void output_tell(struct vif *v, const struct nfq_frame *frame)
{
    struct proxy *p = v->proxy;
    uint8_t headers[NUDGE_FRAME_MAX];
    struct packet packet;
    uint32_t length;

    if (!p->channel || channel_congested(p->channel) ||
        packet_parse(&packet, frame->bytes, frame->length)) {
        return;
    }
    length = nudge_tell(&v->told, frame->bytes, &packet, headers);
    if (length) {
        const struct remus_packet head = {
            .length = length, .type = REMUS_PACKET_SENT, .vif = (uint8_t)v->index,
            .epoch = p->epoch,
        };
        const struct iovec iov = { .iov_base = headers, .iov_len = length };

        if (channel_send(p->channel, &head, &iov, 1)) {
            channel_lost(p, channel_error(p->channel));
        }
    }
}

static void output_frame(void *arg, const struct nfq_frame *frame)
{
    const struct output *o = arg;
    struct vif *v = o->vif;
    struct proxy *p = v->proxy;
    struct slot *s;

    v->stats.output_packets++;
    v->stats.output_bytes += frame->wire_length;
    if (p->state == PROXY_OPEN || p->state == PROXY_FENCED) {
        int rc = nfq_verdict(o->nfq, frame->packet_id, p->state == PROXY_OPEN);

        if (rc) {
            p->error = rc;
        }
        return;
    }
    if (p->state == PROXY_PROTECT && p->rule == CTL_RULE_PASS && !vif_held(v)) {
        int rc = nfq_verdict(o->nfq, frame->packet_id, true);

        if (rc) {
            p->error = rc;
        }
        return;
    }
    if (p->triggers && !p->asked) {
        vif_ask(v, CTL_WHY_OUTPUT, NULL, "output of %u bytes", frame->wire_length);
    }
    if (p->state == PROXY_PROTECT && p->rule == CTL_RULE_EPOCH) {
        output_tell(v, frame);
    }
    s = frame->truncated && p->rule == CTL_RULE_COMPARE ? NULL : slot_take(o, frame);
    /* Near its limit the kernel may drop before it can be seen there. */
    if (!s || frame->gap || vif_held(v) >= p->output_maxlen / 4 * 3) {
        cmp_missed(v->cmp);
    }
    if (!s) {
        v->stats.dropped++;
        proxy_log(p, 1, "%s: output frame of %u bytes dropped: %s", v->name, frame->wire_length,
                  frame->truncated ? "too long to compare" : "too many are held");
        nfq_verdict(o->nfq, frame->packet_id, false);
        return;
    }
    if (p->rule == CTL_RULE_COMPARE && frame_may_be_mangled(frame)) {
        slot_copy(s, frame);
    }
    cmp_primary(v->cmp, p->now_us, s->id, frame->bytes, frame->length, frame->gso);
}

/* Verdicts for frames that the kernel had dropped meanwhile: the device has gone, or somebody in
 * this host has taken a base chain out of any packet filter table, which empties all queues. */
static void check_gone(struct vif *v, const char *which, uint64_t errors, uint64_t *seen)
{
    if (errors != *seen) {
        proxy_log(v->proxy, 0, "%s: the kernel has dropped %" PRIu64 " %s frames that were held "
                  "(device gone, or a chain removed from the packet filter)", v->name,
                  errors - *seen, which);
        v->stats.dropped += errors - *seen;
        *seen = errors;
    }
}

/* Frames that the kernel dropped on the way to us: the guest sends TCP again, but its secondary has
 * answered already, and the answer will find no partner. */
static void output_check_lost(struct output *o)
{
    struct vif *v = o->vif;
    struct nfq_stats stats;

    nfq_stats_get(o->nfq, &stats);
    check_gone(v, "output", stats.verdict_errors, &o->gone);
    if (stats.lost != o->lost) {
        const uint64_t lost = stats.lost - o->lost;

        o->lost = stats.lost;
        v->stats.dropped += lost;
        proxy_log(v->proxy, 0, "%s: the kernel dropped %" PRIu64 " output frames: socket full",
                  v->name, lost);
        vif_ask(v, CTL_WHY_QUEUE, NULL, "%" PRIu64 " output frames lost", lost);
    }
}

static void table_check(struct vif *v);

static int output_read(struct output *o, unsigned int batches, bool exact, bool *more)
{
    struct vif *v = o->vif;
    const uint32_t most = v->proxy->output_maxlen;
    int rc = nfq_recv(o->nfq, output_frame, o, batches, exact, more);

    output_check_lost(o);
    if (*more) {
        table_check(v); /* there are many: some may have been dropped behind those */
    }
    if (vif_held(v) >= most / 4 * 3) {
        vif_ask(v, CTL_WHY_QUEUE, NULL, "%u of %u output frames are held", vif_held(v), most);
    }
    return rc;
}

/* ---- Input ----------------------------------------------------------------------------------- */

static bool input_may_flow(const struct proxy *p)
{
    return !p->input_stopped && !(p->channel && channel_congested(p->channel));
}

/* The kernel does not tell a GSO frame's segment size.  What fits the vif's MTU is what the sender,
 * on the same network, used in nearly every case; any value gives the guest the same bytes. */
static uint16_t frame_gso_size(const struct vif *v, const struct nfq_frame *frame)
{
    struct packet packet;
    uint32_t headers = 40, payload, size;

    if (!packet_parse(&packet, frame->bytes, frame->length) && packet.payload > packet.l3) {
        headers = packet.payload - packet.l3;
    }
    payload = frame->length - frame->l3_offset > headers ?
              frame->length - frame->l3_offset - headers : 1;
    size = v->mtu > headers + 1 ? v->mtu - headers : 1;
    if (size >= payload) {
        size = payload / 2 + 1;      /* GSO says that there are at least two */
    }
    return (uint16_t)size;
}

static void input_frame(void *arg, const struct nfq_frame *frame)
{
    struct vif *v = arg;
    struct proxy *p = v->proxy;
    bool accept = p->state != PROXY_FENCED;
    int rc;

    v->stats.input_packets++;
    v->stats.input_bytes += frame->wire_length;
    if (p->state != PROXY_OPEN && p->rule == CTL_RULE_COMPARE) {
        if (frame->truncated) {
            v->stats.dropped++;
            proxy_log(p, 1, "%s: input frame of %u bytes dropped: too long to copy", v->name,
                      frame->wire_length);
            accept = false;
        } else {
            if (p->channel && !p->lost_text[0]) {
                const struct remus_packet head = {
                    .length = frame->length,
                    .type = REMUS_PACKET_INPUT,
                    .vif = (uint8_t)v->index,
                    .flags = (frame->csum_partial ? REMUS_PACKET_F_CSUM_PARTIAL : 0) |
                             (frame->gso ? REMUS_PACKET_F_GSO : 0),
                    .epoch = p->epoch,
                    .gso_size = frame->gso ? frame_gso_size(v, frame) : 0,
                };
                const struct iovec iov = { .iov_base = frame->bytes, .iov_len = frame->length };

                if (channel_send(p->channel, &head, &iov, 1)) {
                    channel_lost(p, channel_error(p->channel));
                }
            }
            if (accept) {
                cmp_input(v->cmp, p->now_us, frame->bytes, frame->length);
            }
        }
    }
    rc = nfq_verdict(v->input, frame->packet_id, accept);
    if (rc) {
        p->error = rc;
    }
}

static int input_read(struct vif *v, unsigned int batches, bool exact, bool *more)
{
    struct nfq_stats stats;
    int rc = nfq_recv(v->input, input_frame, v, batches, exact, more);

    nfq_stats_get(v->input, &stats);
    check_gone(v, "input", stats.verdict_errors, &v->input_gone);
    if (stats.lost != v->input_lost) {
        /* Neither guest saw them: to both it is a network that lost packets. */
        proxy_log(v->proxy, 0, "%s: the kernel dropped %" PRIu64 " input frames: socket full",
                  v->name, stats.lost - v->input_lost);
        v->stats.dropped += stats.lost - v->input_lost;
        v->input_lost = stats.lost;
    }
    return rc;
}

/* While input waits in the kernel: how full is it there? */
static void input_check_room(struct vif *v)
{
    struct nfq_table_entry entry;
    uint32_t bytes, limit;

    if (nfq_backlog(v->input, &bytes, &limit) == 0 && bytes > limit / 4 * 3) {
        vif_ask(v, CTL_WHY_QUEUE, NULL, "%u of %u bytes of input wait", bytes, limit);
    } else if (v->proxy->table_fd >= 0 &&
               nfq_table_read(v->proxy->table_fd, v->input, &entry) == 0 &&
               entry.held > INPUT_MAXLEN / 4 * 3) {
        vif_ask(v, CTL_WHY_QUEUE, NULL, "%u of %u input frames wait", entry.held, INPUT_MAXLEN);
    }
}

/* Drops at a queue's maxlen never reach us: the kernel's table has the only count. */
static void table_check(struct vif *v)
{
    struct proxy *p = v->proxy;
    struct nfq_table_entry entry;
    unsigned int i;

    if (p->table_fd < 0) {
        return;
    }
    for (i = 0; i < CTL_OUTPUT_QUEUES; i++) {
        struct output *o = &v->outputs[i];

        if (nfq_table_read(p->table_fd, o->nfq, &entry) == 0 && entry.dropped_full != o->full) {
            const uint32_t lost = entry.dropped_full - o->full;

            o->full = entry.dropped_full;
            v->stats.dropped += lost;
            cmp_missed(v->cmp);
            proxy_log(p, 0, "%s: the kernel dropped %u output frames: queue full", v->name, lost);
            vif_ask(v, CTL_WHY_QUEUE, NULL, "%u output frames lost", lost);
        }
    }
    if (nfq_table_read(p->table_fd, v->input, &entry) == 0 && entry.dropped_full != v->input_full) {
        proxy_log(p, 0, "%s: the kernel dropped %u input frames: queue full", v->name,
                  entry.dropped_full - v->input_full);
        v->stats.dropped += entry.dropped_full - v->input_full;
        v->input_full = entry.dropped_full;
    }
}

/* ---- Packet channel -------------------------------------------------------------------------- */

/* What the copy says in a conversation that it has no part in. */
static bool bypassed(const struct proxy *p, const uint8_t *frame, size_t length)
{
    struct packet packet;

    return !packet_parse(&packet, frame, length) &&
           remus_bypass_match(p->bypass, p->bypass_count, &packet, true);
}

static int channel_packet(void *arg, const struct remus_packet *head, const uint8_t *payload)
{
    struct proxy *p = arg;
    struct vif *v = &p->vifs[head->vif];

    if (head->type == REMUS_PACKET_OUTPUT &&
        (p->state == PROXY_PROTECT || p->state == PROXY_HOLD)) {
        if (p->bypass_count && bypassed(p, payload, head->length)) {
            matched_add(v, head->id);
            return 0;
        }
        cmp_secondary(v->cmp, p->now_us, head->epoch, head->id, payload, head->length);
    }
    return 0;
}

/* ---- Verdicts and buffers out ---------------------------------------------------------------- */

/* Copies before verdicts: what the world or the guest gets to see is on its way to the secondary.
 * */
static int proxy_flush(struct proxy *p)
{
    unsigned int i;
    int rc;

    for (i = 0; i < p->vif_count; i++) {
        matched_flush(&p->vifs[i]);
    }
    if (p->channel && channel_flush(p->channel)) {
        channel_lost(p, channel_error(p->channel));
    }
    rc = nfq_flush(p->queues, p->queue_count);
    return rc ? rc : p->error;
}

/* The same, and all verdicts are in the kernel when this returns: what an answer promises. */
static int proxy_flush_and_wait(struct proxy *p)
{
    int rc = proxy_flush(p);

    return rc ? rc : nfq_sync(p->vifs[0].input);     /* one writer for all */
}

/* ---- Control --------------------------------------------------------------------------------- */

/* Reads all output that waits, as far as so many rounds of CUT_BATCHES go in each queue. */
static int output_read_all(struct vif *v, unsigned int rounds)
{
    unsigned int i;
    int rc = 0;

    for (i = 0; !rc && i < CTL_OUTPUT_QUEUES; i++) {
        unsigned int left = rounds;
        bool more = true;

        while (!rc && more && left--) {
            rc = output_read(&v->outputs[i], CUT_BATCHES, true, &more);
        }
    }
    return rc;
}

static int proxy_cut(struct proxy *p, uint64_t epoch, uint32_t code)
{
    unsigned int i;
    int rc;

    const enum ctl_rule rule = code & CTL_RULE_MASK;

    if (epoch != p->epoch) {
        proxy_log(p, 0, "the coordinator cuts epoch %" PRIu64, epoch);
    }
    if (rule > CTL_RULE_PASS || (code & ~(CTL_RULE_MASK | CTL_RULE_TRIGGERS))) {
        return -EPROTO;
    }
    for (i = 0; i < p->vif_count; i++) {
        /* The guest is stopped, so this ends; the bound is for a coordinator that is wrong. */
        rc = output_read_all(&p->vifs[i], p->output_maxlen / CUT_BATCHES + 16);
        if (rc) {
            return rc;
        }
        cmp_compare(p->vifs[i].cmp, rule == CTL_RULE_COMPARE);
        cmp_cut(p->vifs[i].cmp, p->now_us, epoch);
        nudge_told_clear(&p->vifs[i].told);
    }
    p->epoch = epoch + 1;
    p->rule = rule;
    p->triggers = code & CTL_RULE_TRIGGERS;
    p->asked = false;
    p->input_stopped = false;
    return 0;
}

/* An orderly end after UNPROTECT: frames that were steered here before the rules went are let go,
 * too, instead of being dropped with the queues. */
static int proxy_quit(struct proxy *p)
{
    unsigned int i, rounds;
    bool more;
    int rc;

    p->quit = true;
    for (i = 0; p->state == PROXY_OPEN && i < p->vif_count; i++) {
        rc = output_read_all(&p->vifs[i], QUIT_ROUNDS);
        rounds = QUIT_ROUNDS;
        do {
            rc = rc ? rc : input_read(&p->vifs[i], CUT_BATCHES, true, &more);
        } while (!rc && more && --rounds);
        if (rc) {
            return rc;
        }
    }
    return proxy_flush_and_wait(p);
}

static int stats_send(const struct proxy *p, enum ctl_type type, unsigned int count,
                      const void *structs)
{
    const struct ctl_msg msg = { .type = type, .epoch = p->epoch, .count = count };

    return ctl_send_wait(REMUS_CTL_FD, &msg, structs, NULL, NULL, 0, 1000);
}

static void proxy_stats(struct proxy *p)
{
    struct ctl_vif_stats vifs[REMUS_VIFS_MAX];
    struct ctl_stats s = p->stats;
    unsigned int i;
    int rc;

    for (i = 0; i < p->vif_count; i++) {
        struct vif *v = &p->vifs[i];
        struct cmp_stats c;

        cmp_stats_get(v->cmp, &c);
        memcpy(v->stats.name, v->name, sizeof(v->stats.name));
        v->stats.held = vif_held(v);
        v->stats.held_bytes = v->held_bytes;
        v->stats.held_max = v->held_max;
        v->stats.flows = c.flows;
        memcpy(v->stats.classes, c.classes, sizeof(v->stats.classes));
        vifs[i] = v->stats;
        s.input_packets += v->stats.input_packets;
        s.input_bytes += v->stats.input_bytes;
        s.output_packets += v->stats.output_packets;
        s.output_bytes += v->stats.output_bytes;
        s.dropped_other += v->stats.dropped;
        s.released_equal += c.released_equal;
        s.released_epoch += c.released_epoch;
        s.held += vif_held(v);
        s.held_bytes += v->held_bytes;
        s.held_max += v->held_max;
        s.flows += c.flows;
        s.flows_max += c.flows_max;
        s.dropped_old += c.secondary_old;
        s.delay_us_sum += c.delay_us_sum;
        s.delay_us_max = c.delay_us_max > s.delay_us_max ? c.delay_us_max : s.delay_us_max;
        s.lag_us = c.lag_us > s.lag_us ? c.lag_us : s.lag_us;
    }
    rc = stats_send(p, CTL_VIF_STATS, p->vif_count, vifs);
    if (!rc) {
        rc = stats_send(p, CTL_CAUSES, p->causes.count, p->causes.list);
    }
    if (!rc) {
        rc = stats_send(p, CTL_STATS, 1, &s);
    }
    if (rc) {
        p->error = rc;
    }
}

static int proxy_control(struct proxy *p, const struct ctl_msg *msg)
{
    unsigned int i;
    int rc = 0;

    proxy_log(p, 2, "told %s %" PRIu64, ctl_type_name(msg->type), msg->epoch);
    switch (msg->type) {
    case CTL_INPUT_STOP:
        p->input_stopped = p->state == PROXY_PROTECT || p->state == PROXY_HOLD;
        rc = proxy_flush_and_wait(p);
        proxy_answer(p, CTL_INPUT_STOPPED);
        break;
    case CTL_INPUT_GO:
        p->input_stopped = false;
        p->asked = false;    /* the checkpoint did not come: who still needs one may ask again */
        break;
    case CTL_CUT:
        rc = proxy_cut(p, msg->epoch, msg->code);
        proxy_answer(p, CTL_CUT_DONE);
        break;
    case CTL_RELEASE:
        for (i = 0; i < p->vif_count; i++) {
            cmp_release_epoch(p->vifs[i].cmp, p->now_us, msg->epoch);
            if (p->state == PROXY_PROTECT && p->rule == CTL_RULE_PASS) {
                cmp_drain(p->vifs[i].cmp, true);     /* what had to stay behind that */
            }
        }
        break;
    case CTL_HOLD:
        proxy_event(p, EVENT_HOLD);
        break;
    case CTL_UNPROTECT:
        proxy_event(p, EVENT_UNPROTECT);
        rc = proxy_flush_and_wait(p);
        proxy_answer(p, p->state == PROXY_FENCED ? CTL_FENCED : CTL_UNPROTECTED);
        break;
    case CTL_FENCE:
        proxy_event(p, EVENT_FENCE);
        rc = proxy_flush_and_wait(p);
        proxy_answer(p, CTL_FENCED);
        break;
    case CTL_STATS_GET:
        proxy_stats(p);
        break;
    case CTL_QUIT:
        rc = proxy_quit(p);
        break;
    default:
        proxy_log(p, 0, "the coordinator sent %s, which is not for colo-proxyd",
                  ctl_type_name(msg->type));
        rc = -EPROTO;
        break;
    }
    return rc;
}

static int control_read(struct proxy *p)
{
    struct ctl_in in;
    int rc;

    while (!p->quit) {
        rc = ctl_recv(REMUS_CTL_FD, &in);
        if (rc == -EAGAIN) {
            return 0;
        }
        if (rc == -EPIPE) {
            proxy_log(p, 0, "the coordinator is gone; the guest's output is dropped from now on");
            return rc;
        }
        if (!rc) {
            rc = proxy_control(p, &in.msg);
            ctl_in_dispose(&in);
        }
        if (rc) {
            return rc;
        }
    }
    return 0;
}

/* ---- Event loop ------------------------------------------------------------------------------ */

/* Bits of proxy.ready, and what epoll hands back. */
enum {
    READY_CONTROL, READY_TIMER, READY_CHANNEL,
    READY_INPUT,             /* + vif */
    READY_OUTPUT = READY_INPUT + REMUS_VIFS_MAX,    /* + vif * CTL_OUTPUT_QUEUES + queue */
    READY_END = READY_OUTPUT + REMUS_VIFS_MAX * CTL_OUTPUT_QUEUES,
};

static int epoll_set(struct proxy *p, int op, int fd, unsigned int bit, uint32_t events)
{
    struct epoll_event ev = { .events = events, .data.u32 = bit };

    return epoll_ctl(p->epoll_fd, op, fd, &ev) < 0 ? -errno : 0;
}

static int timer_arm(struct proxy *p)
{
    uint64_t next_us = p->table_us;
    struct itimerspec when = { .it_value.tv_sec = 0 };
    unsigned int i;

    if (p->state == PROXY_PROTECT || p->state == PROXY_HOLD) {
        for (i = 0; i < p->vif_count; i++) {
            const uint64_t due_us = cmp_next_us(p->vifs[i].cmp);

            next_us = due_us < next_us ? due_us : next_us;
        }
        if (!input_may_flow(p) && p->poll_us < next_us) {
            next_us = p->poll_us;
        }
    }
    /* Zero would switch the timer off. */
    next_us = next_us ? next_us : 1;
    if (next_us == p->armed_us) {
        return 0;
    }
    p->armed_us = next_us;
    when.it_value.tv_sec = (time_t)(next_us / 1000000);
    when.it_value.tv_nsec = (long)(next_us % 1000000) * 1000;
    return timerfd_settime(p->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0 ? -errno : 0;
}

static void timers_run(struct proxy *p)
{
    unsigned int i;

    if (p->state == PROXY_PROTECT || p->state == PROXY_HOLD) {
        for (i = 0; i < p->vif_count; i++) {
            if (cmp_next_us(p->vifs[i].cmp) <= p->now_us) {
                cmp_tick(p->vifs[i].cmp, p->now_us);
            }
        }
        if (!input_may_flow(p) && p->poll_us <= p->now_us) {
            for (i = 0; i < p->vif_count; i++) {
                input_check_room(&p->vifs[i]);
            }
            p->poll_us = p->now_us + INPUT_POLL_US;
        }
    }
    if (p->table_us <= p->now_us) {
        for (i = 0; i < p->vif_count; i++) {
            table_check(&p->vifs[i]);
        }
        p->table_us = p->now_us + TABLE_POLL_US;
    }
}

/* An input queue that may not be read is taken off the poll set: it stays readable for long. */
static int interest_set(struct proxy *p)
{
    unsigned int i;
    int rc;

    for (i = 0; i < p->vif_count; i++) {
        struct vif *v = &p->vifs[i];

        if (v->input_polled != input_may_flow(p)) {
            v->input_polled = !v->input_polled;
            rc = epoll_set(p, EPOLL_CTL_MOD, nfq_fd(v->input), READY_INPUT + i,
                           v->input_polled ? EPOLLIN : 0);
            if (rc) {
                return rc;
            }
        }
    }
    if (p->channel && p->channel_writing != channel_wants_write(p->channel)) {
        p->channel_writing = !p->channel_writing;
        return epoll_set(p, EPOLL_CTL_MOD, channel_fd(p->channel), READY_CHANNEL,
                         EPOLLIN | EPOLLET | (p->channel_writing ? EPOLLOUT : 0));
    }
    return 0;
}

/* Whether a descriptor was reported; that is then used up. */
static bool ready_take(struct proxy *p, unsigned int bit)
{
    const uint64_t mask = UINT64_C(1) << bit;
    const bool ready = p->ready & mask;

    p->ready &= ~mask;
    return ready;
}

/*
 * One round reads a bounded amount from everything that has something, then sends what came of it.
 * What is left after that keeps its ready bit.
 */
static int proxy_round(struct proxy *p)
{
    uint64_t expirations;
    bool more;
    unsigned int i, k;
    int rc;

    p->now_us = clock_us();
    if (ready_take(p, READY_TIMER) &&
        read(p->timer_fd, &expirations, sizeof(expirations)) < 0 && errno != EAGAIN) {
        return -errno;
    }
    if (ready_take(p, READY_CONTROL)) {
        rc = control_read(p);
        if (rc) {
            return rc;
        }
    }
    if (ready_take(p, READY_CHANNEL) && p->channel) {
        if (channel_read(p->channel, channel_packet, p, CHANNEL_ROUND_FRAMES)) {
            channel_lost(p, channel_error(p->channel));
        }
        p->ready |= (uint64_t)channel_pending(p->channel) << READY_CHANNEL;
    }
    for (i = 0; i < p->vif_count; i++) {
        for (k = 0; k < CTL_OUTPUT_QUEUES; k++) {
            const unsigned int bit = READY_OUTPUT + i * CTL_OUTPUT_QUEUES + k;

            if (ready_take(p, bit)) {
                rc = output_read(&p->vifs[i].outputs[k], ROUND_BATCHES, false, &more);
                if (rc) {
                    proxy_log(p, 0, "%s: output queue: %s", p->vifs[i].name, strerror(-rc));
                    return rc;
                }
                p->ready |= (uint64_t)more << bit;
            }
        }
        if (ready_take(p, READY_INPUT + i) && input_may_flow(p)) {
            rc = input_read(&p->vifs[i], ROUND_BATCHES, false, &more);
            if (rc) {
                proxy_log(p, 0, "%s: input queue: %s", p->vifs[i].name, strerror(-rc));
                return rc;
            }
            p->ready |= (uint64_t)more << (READY_INPUT + i);
        }
    }
    timers_run(p);
    rc = proxy_flush(p);
    if (rc) {
        return rc;
    }
    if (p->lost_text[0]) {
        channel_give_up(p);
        rc = proxy_flush(p);
        if (rc) {
            return rc;
        }
    }
    rc = interest_set(p);
    return rc ? rc : timer_arm(p);
}

static int proxy_run(struct proxy *p)
{
    int rc = 0;

    p->ready = 0;
    while (!rc && !p->quit) {
        struct epoll_event events[READY_END];
        int i, n;

        n = epoll_wait(p->epoll_fd, events, READY_END, p->ready ? 0 : -1);
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        for (i = 0; i < n; i++) {
            p->ready |= UINT64_C(1) << events[i].data.u32;
        }
        rc = proxy_round(p);
    }
    return rc;
}

/* ---- Setup ----------------------------------------------------------------------------------- */

static uint32_t vif_mtu(const char *name)
{
    struct ifreq ifr;
    uint32_t mtu = 1500;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    memset(&ifr, 0, sizeof(ifr));
    memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
    if (fd >= 0 && ioctl(fd, SIOCGIFMTU, &ifr) == 0 && ifr.ifr_mtu >= 68) {
        mtu = (uint32_t)ifr.ifr_mtu;
    }
    if (fd >= 0) {
        close(fd);
    }
    return mtu;
}

static int vif_open(struct proxy *p, struct vif *v, char *error, size_t error_bytes)
{
    struct nfq_options output = { .maxlen = p->output_maxlen, .rcvbuf_bytes = p->output_rcvbuf };
    const struct nfq_options input = {
        .queue = v->input_queue, .maxlen = INPUT_MAXLEN, .rcvbuf_bytes = INPUT_RCVBUF_BYTES,
    };
    uint32_t i;
    int rc;

    v->proxy = p;
    v->told.seed = p->limits.hash_seed;
    v->index = (unsigned int)(v - p->vifs);
    v->mtu = vif_mtu(v->name);
    v->slots = calloc(p->output_maxlen, sizeof(*v->slots));
    v->free_slots = calloc(p->output_maxlen, sizeof(*v->free_slots));
    if (!v->slots || !v->free_slots) {
        snprintf(error, error_bytes, "%s: out of memory", v->name);
        return -ENOMEM;
    }
    for (i = 0; i < p->output_maxlen; i++) {
        v->free_slots[i] = (uint16_t)(p->output_maxlen - 1 - i);
    }
    v->free_count = p->output_maxlen;
    rc = cmp_new(&v->cmp, &p->limits, vif_action, v);
    if (rc) {
        snprintf(error, error_bytes, "%s: comparison: %s", v->name, strerror(-rc));
        return rc;
    }
    for (i = 0; !rc && i < CTL_OUTPUT_QUEUES; i++) {
        v->outputs[i].vif = v;
        output.queue = (uint16_t)(v->output_queue + i);
        rc = nfq_open(&v->outputs[i].nfq, &output, error, error_bytes);
    }
    if (!rc) {
        rc = nfq_open(&v->input, &input, error, error_bytes);
    }
    return rc;
}

static int proxy_open(struct proxy *p, char *error, size_t error_bytes)
{
    const struct channel_options options = { .role = CHANNEL_PRIMARY, .vifs = p->vif_count };
    unsigned int i, k;
    int rc;

    p->table_fd = nfq_table_open();
    for (i = 0; i < p->vif_count; i++) {
        rc = vif_open(p, &p->vifs[i], error, error_bytes);
        if (rc) {
            return rc;
        }
        for (k = 0; k < CTL_OUTPUT_QUEUES; k++) {
            p->queues[p->queue_count++] = p->vifs[i].outputs[k].nfq;
        }
        p->queues[p->queue_count++] = p->vifs[i].input;
    }
    if (p->table_fd < 0) {
        p->table_fd = nfq_table_open();      /* the file comes with the module */
    }
    if (!p->no_channel) {
        rc = channel_new(&p->channel, REMUS_CHANNEL_FD, &options);
        if (rc) {
            snprintf(error, error_bytes, "packet channel (descriptor %d): %s", REMUS_CHANNEL_FD,
                     strerror(-rc));
            return rc;
        }
    }
    p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    p->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    rc = p->epoll_fd < 0 || p->timer_fd < 0 ? -errno : 0;
    if (!rc) {
        rc = epoll_set(p, EPOLL_CTL_ADD, REMUS_CTL_FD, READY_CONTROL, EPOLLIN);
    }
    if (!rc) {
        rc = epoll_set(p, EPOLL_CTL_ADD, p->timer_fd, READY_TIMER, EPOLLIN);
    }
    if (!rc && p->channel) {
        rc = epoll_set(p, EPOLL_CTL_ADD, channel_fd(p->channel), READY_CHANNEL,
                       EPOLLIN | EPOLLET);
    }
    for (i = 0; !rc && i < p->vif_count; i++) {
        for (k = 0; !rc && k < CTL_OUTPUT_QUEUES; k++) {
            rc = epoll_set(p, EPOLL_CTL_ADD, nfq_fd(p->vifs[i].outputs[k].nfq),
                           READY_OUTPUT + i * CTL_OUTPUT_QUEUES + k, EPOLLIN);
        }
        if (!rc) {
            rc = epoll_set(p, EPOLL_CTL_ADD, nfq_fd(p->vifs[i].input), READY_INPUT + i, EPOLLIN);
        }
        p->vifs[i].input_polled = true;
    }
    if (rc) {
        snprintf(error, error_bytes, "event loop: %s", strerror(-rc));
    }
    return rc;
}

struct confinement {
    char *error;
    size_t error_bytes;
};

/* In the writer's process. */
static int writer_confine(void *arg)
{
    const int capabilities[] = { CAP_NET_ADMIN };
    /* It ends when its socket does, except when it hangs. */
    const struct privdrop_options drop = {
        .capabilities = capabilities, .capability_count = 1, .death_signal = SIGKILL,
    };
    struct confinement *c = arg;
    int rc = remus_privdrop(&drop, c->error, c->error_bytes);

    if (rc) {
        fprintf(stderr, "colo-proxyd: verdict writer: %s\n", c->error);
    }
    return rc;
}

/* The writer keeps CAP_NET_ADMIN, this process keeps nothing. */
static int proxy_confine(struct proxy *p, char *error, size_t error_bytes)
{
    const struct privdrop_options drop = { .capability_count = 0 };
    struct confinement c = { .error = error, .error_bytes = error_bytes };
    int rc = nfq_writer_start(p->queues, p->queue_count, writer_confine, &c, error, error_bytes);
    return rc ? rc : remus_privdrop(&drop, error, error_bytes);
}

static void proxy_close(struct proxy *p)
{
    unsigned int i;
    uint32_t k;

    for (i = 0; i < p->vif_count; i++) {
        struct vif *v = &p->vifs[i];

        for (k = 0; k < CTL_OUTPUT_QUEUES; k++) {
            nfq_close(v->outputs[k].nfq);
        }
        nfq_close(v->input);
        cmp_free(v->cmp);
        for (k = 0; v->slots && k < p->output_maxlen; k++) {
            free(v->slots[k].bytes);
        }
        free(v->slots);
        free(v->free_slots);
    }
    channel_free(p->channel);
    if (p->table_fd >= 0) {
        close(p->table_fd);
    }
    if (p->epoll_fd >= 0) {
        close(p->epoll_fd);
    }
    if (p->timer_fd >= 0) {
        close(p->timer_fd);
    }
}

static void usage(FILE *to)
{
    fprintf(to,
"Usage: colo-proxyd --domid N --vif NAME:OUTQUEUE:INQUEUE [--vif ...] [OPTION ...]\n"
"Hold a protected guest's output until its copy has said the same.\n"
"\n"
"Started by xl remus, with a control socket on descriptor %d and the packet channel\n"
"to the other host on descriptor %d.  It installs no rules: frames reach its netfilter\n"
"queues through those of the coordinator.\n"
"\n"
"  --domid N               the guest, for messages\n"
"  --vif NAME:OUT:IN       a vif, the first of its %u netfilter queues for output, and the\n"
"                          one for input (up to %u times; in the order of the guest's vifs)\n"
"  --epoch N               the epoch that runs (1)\n"
"  --bypass WORDS          what the copy sends of this traffic is forgotten; the rules that\n"
"                          pass the guest's own are the coordinator's (up to %u times)\n"
"  --deadline-min-ms N     the copy's answer is waited for at least this long (5)\n"
"  --deadline-max-ms N     and at most this long, in between by what is usual (200)\n"
"  --queue-length N        output frames held at most, for each vif (%u)\n"
"  --socket-buffer BYTES   output that may wait unread, for each vif (%u)\n"
"  --no-channel            no copy runs: only hold, and release by epoch\n"
"  --keep-privileges       stay as started (for debuggers and sanitizers)\n"
"  --log-level N           0 errors and changes of state, 1 and checkpoints wanted (default),\n"
"                          2 and every control message\n"
"  --help                  this text\n",
            REMUS_CTL_FD, REMUS_CHANNEL_FD, CTL_OUTPUT_QUEUES, REMUS_VIFS_MAX, REMUS_BYPASS_MAX,
            OUTPUT_MAXLEN_DEFAULT, OUTPUT_RCVBUF_BYTES);
}

static int parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    return errno || end == text || *end || text[0] == '-' || *out < min || *out > max ? -EINVAL : 0;
}

/* NAME:OUT:IN; a name may hold anything but ':' (and the kernel forbids '/', blanks and ':'). */
static int parse_vif(struct proxy *p, const char *text)
{
    struct vif *v;
    char queues[32];
    const char *colon = strchr(text, ':');
    uint64_t number;
    char *second;

    if (p->vif_count == REMUS_VIFS_MAX || !colon || colon == text ||
        (size_t)(colon - text) >= sizeof(v->name) || strlen(colon + 1) >= sizeof(queues)) {
        return -EINVAL;
    }
    v = &p->vifs[p->vif_count];
    memcpy(v->name, text, (size_t)(colon - text));
    strcpy(queues, colon + 1);
    second = strchr(queues, ':');
    if (!second) {
        return -EINVAL;
    }
    *second++ = '\0';
    if (parse_number(queues, 0, UINT16_MAX - CTL_OUTPUT_QUEUES + 1, &number)) {
        return -EINVAL;
    }
    v->output_queue = (uint16_t)number;
    if (parse_number(second, 0, UINT16_MAX, &number) ||
        (number >= v->output_queue && number < v->output_queue + CTL_OUTPUT_QUEUES)) {
        return -EINVAL;
    }
    v->input_queue = (uint16_t)number;
    p->vif_count++;
    return 0;
}

static int parse_options(struct proxy *p, int argc, char **argv)
{
    enum {
        O_DOMID = 1, O_VIF, O_EPOCH, O_MIN, O_MAX, O_LENGTH, O_BUFFER, O_NO_CHANNEL, O_KEEP,
        O_LOG, O_BYPASS, O_HELP,
    };
    static const struct option options[] = {
        { "domid", required_argument, NULL, O_DOMID },
        { "vif", required_argument, NULL, O_VIF },
        { "epoch", required_argument, NULL, O_EPOCH },
        { "deadline-min-ms", required_argument, NULL, O_MIN },
        { "deadline-max-ms", required_argument, NULL, O_MAX },
        { "queue-length", required_argument, NULL, O_LENGTH },
        { "socket-buffer", required_argument, NULL, O_BUFFER },
        { "no-channel", no_argument, NULL, O_NO_CHANNEL },
        { "keep-privileges", no_argument, NULL, O_KEEP },
        { "log-level", required_argument, NULL, O_LOG },
        { "bypass", required_argument, NULL, O_BYPASS },
        { "help", no_argument, NULL, O_HELP },
        { NULL, 0, NULL, 0 },
    };
    bool domid_given = false;
    uint64_t number = 0;
    char why[128];
    int c, index = 0;

    while ((c = getopt_long(argc, argv, "", options, &index)) != -1) {
        int rc = 0;

        switch (c) {
        case O_DOMID:
            rc = parse_number(optarg, 0, 0x7fef, &number);
            p->domid = (uint32_t)number;
            domid_given = true;
            break;
        case O_VIF:
            rc = parse_vif(p, optarg);
            break;
        case O_EPOCH:
            rc = parse_number(optarg, 1, UINT64_MAX - 1, &p->epoch);
            break;
        case O_BYPASS:
            rc = p->bypass_count == REMUS_BYPASS_MAX ? -EINVAL
                 : remus_bypass_parse(&p->bypass[p->bypass_count], optarg, why, sizeof(why));
            p->bypass_count += !rc;
            break;
        case O_MIN:
            rc = parse_number(optarg, 1, 600000, &number);
            p->limits.deadline_min_us = (uint32_t)number * 1000;
            break;
        case O_MAX:
            rc = parse_number(optarg, 1, 600000, &number);
            p->limits.deadline_max_us = (uint32_t)number * 1000;
            break;
        case O_LENGTH:
            rc = parse_number(optarg, 64, OUTPUT_MAXLEN_MAX, &number);
            p->output_maxlen = (uint32_t)number;
            break;
        case O_BUFFER:
            rc = parse_number(optarg, 4096, 1u << 30, &number);
            p->output_rcvbuf = (uint32_t)number;
            break;
        case O_NO_CHANNEL:
            p->no_channel = true;
            break;
        case O_KEEP:
            p->keep_privileges = true;
            break;
        case O_LOG:
            rc = parse_number(optarg, 0, 9, &number);
            log_level = (int)number;
            break;
        case O_HELP:
            usage(stdout);
            exit(0);
        default:
            return -EINVAL;
        }
        if (rc) {
            fprintf(stderr, "colo-proxyd: --%s: '%s' is not allowed here\n", options[index].name,
                    optarg);
            return rc;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "colo-proxyd: '%s': no argument is expected\n", argv[optind]);
        return -EINVAL;
    }
    if (!domid_given || !p->vif_count) {
        fprintf(stderr, "colo-proxyd: --domid and at least one --vif are needed (--help)\n");
        return -EINVAL;
    }
    if (p->limits.deadline_max_us && p->limits.deadline_min_us > p->limits.deadline_max_us) {
        fprintf(stderr, "colo-proxyd: --deadline-min-ms is above --deadline-max-ms\n");
        return -EINVAL;
    }
    p->limits.frames_max = p->output_maxlen;
    return 0;
}

/* Ctrl-C goes to the coordinator's whole process group: what it means is the coordinator's
 * decision, and this process ends when that does. */
static void signals_ignore(void)
{
    const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE };
    size_t i;

    for (i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++) {
        signal(ignored[i], SIG_IGN);
    }
}

int main(int argc, char **argv)
{
    static struct proxy proxy = {
        .output_maxlen = OUTPUT_MAXLEN_DEFAULT, .output_rcvbuf = OUTPUT_RCVBUF_BYTES, .epoch = 1,
        .epoll_fd = -1, .timer_fd = -1, .table_fd = -1,
    };
    char error[256] = "";
    int type, rc;
    socklen_t size = sizeof(type);

    if (parse_options(&proxy, argc, argv)) {
        return 2;
    }
    if (getsockopt(REMUS_CTL_FD, SOL_SOCKET, SO_TYPE, &type, &size) || type != SOCK_SEQPACKET) {
        fprintf(stderr, "colo-proxyd: descriptor %d is no control socket; xl remus starts this "
                "program\n", REMUS_CTL_FD);
        return 2;
    }
    signals_ignore();
    if (getrandom(&proxy.limits.hash_seed, sizeof(proxy.limits.hash_seed), 0) < 0) {
        fprintf(stderr, "colo-proxyd: no random numbers: %s\n", strerror(errno));
        return 1;
    }
    rc = proxy_open(&proxy, error, sizeof(error));
    if (!rc && !proxy.keep_privileges) {
        rc = proxy_confine(&proxy, error, sizeof(error));
    }
    if (!rc) {
        rc = ctl_say(REMUS_CTL_FD, CTL_READY, 0, proxy.epoch, NULL);
    }
    if (!rc) {
        proxy.table_us = clock_us() + TABLE_POLL_US;
        rc = proxy_run(&proxy);
        if (rc) {
            snprintf(error, sizeof(error), "%s", strerror(-rc));
        }
    }
    if (rc && rc != -EPIPE) {
        proxy_log(&proxy, 0, "%s", error);
        ctl_say(REMUS_CTL_FD, CTL_FAILED, 0, proxy.epoch, "colo-proxyd: %s", error);
    }
    proxy_close(&proxy);
    return rc ? 1 : 0;
}
