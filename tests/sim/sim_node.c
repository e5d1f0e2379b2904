/*
 * sim_node.c: what carries out the actions of the cores: executors, link, arbiter; and the faults.
 *
 * The executors keep the contract at the top of remus_core.h and use all of the freedom that it
 * leaves: every delay is chance, and a guest may suspend after the request was withdrawn.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim.h"

#define P (&w->node[REMUS_PRIMARY])
#define S (&w->node[REMUS_SECONDARY])

const char *const sim_break_names[BREAK_COUNT] = {
    [BREAK_NONE] = "none",
    [BREAK_RELEASE_BEFORE_ACK] = "release-before-ack",
    [BREAK_NO_HOLD] = "no-hold",
    [BREAK_PARTIAL_APPLY] = "partial-apply",
    [BREAK_FIRST_EPOCH_FREE] = "first-epoch-free",
    [BREAK_NO_RESUME] = "no-resume",
    [BREAK_NO_ECHO] = "no-echo",
    [BREAK_LATE_SUSPEND] = "late-suspend",
    [BREAK_CLOCK_STOPS] = "clock-stops",
    [BREAK_PROMISE] = "promise",
    [BREAK_STOP_IGNORED] = "stop-ignored",
    [BREAK_BITMAP_LOST] = "bitmap-lost",
    [BREAK_NO_COMPARE] = "no-compare",
    [BREAK_ACK_EARLY] = "ack-early",
    [BREAK_DISK_EARLY] = "disk-early",
    [BREAK_DISK_COMMIT_ALL] = "disk-commit-all",
    [BREAK_DISK_OVERLAY] = "disk-overlay",
};

static const char *const event_names[] = {
    [RE_TICK] = "TICK", [RE_LINK_LOST] = "LINK_LOST", [RE_OPERATOR_STOP] = "OPERATOR_STOP",
    [RE_SWITCH] = "SWITCH", [RE_MODE] = "MODE",
    [RE_ARBITRATED] = "ARBITRATED", [RE_FAILED] = "FAILED", [RE_DAEMON_LOST] = "DAEMON_LOST",
    [RE_FRAME_ANY] = "FRAME_ANY", [RE_PEER_READY] = "PEER_READY", [RE_PEER_ACK] = "PEER_ACK",
    [RE_PEER_APPLIED] = "PEER_APPLIED", [RE_PEER_CHECKPOINT] = "PEER_CHECKPOINT",
    [RE_PEER_STOP] = "PEER_STOP", [RE_PEER_STOPPED] = "PEER_STOPPED",
    [RE_PEER_ERROR] = "PEER_ERROR", [RE_PEER_EPOCH_FRAME] = "PEER_EPOCH_FRAME",
    [RE_PEER_EPOCH_COMPLETE] = "PEER_EPOCH_COMPLETE", [RE_PEER_STREAM] = "PEER_STREAM",
    [RE_PEER_BAD] = "PEER_BAD", [RE_COPY_DONE] = "COPY_DONE",
    [RE_CHECKPOINT_WANTED] = "CHECKPOINT_WANTED", [RE_SUSPENDED] = "SUSPENDED",
    [RE_SUSPEND_TAKEN] = "SUSPEND_TAKEN",
    [RE_INPUT_STOPPED] = "INPUT_STOPPED", [RE_DRAINED] = "DRAINED", [RE_STAGED] = "STAGED",
    [RE_CUT_DONE] = "CUT_DONE", [RE_RESUMED] = "RESUMED", [RE_GUEST_ENDED] = "GUEST_ENDED",
    [RE_UNPROTECTED] = "UNPROTECTED", [RE_BUILT] = "BUILT", [RE_APPLIED] = "APPLIED",
    [RE_ACTIVE] = "ACTIVE", [RE_DESTROYED] = "DESTROYED",
};

static const char *const action_names[] = {
    [RA_START_COPY] = "START_COPY", [RA_SUSPEND] = "SUSPEND",
    [RA_SUSPEND_CANCEL] = "SUSPEND_CANCEL", [RA_STOP_INPUT] = "STOP_INPUT", [RA_DRAIN] = "DRAIN",
    [RA_STAGE] = "STAGE", [RA_CUT] = "CUT", [RA_RESUME] = "RESUME", [RA_INPUT_GO] = "INPUT_GO",
    [RA_SEND_EPOCH] = "SEND_EPOCH", [RA_RELEASE] = "RELEASE", [RA_HOLD] = "HOLD",
    [RA_UNPROTECT] = "UNPROTECT", [RA_FENCE_AND_STOP] = "FENCE_AND_STOP", [RA_ACK] = "ACK",
    [RA_APPLY] = "APPLY", [RA_DROP_PARTIAL] = "DROP_PARTIAL", [RA_TAKEOVER] = "TAKEOVER",
    [RA_DESTROY] = "DESTROY", [RA_SEND_STOP] = "SEND_STOP", [RA_SEND_STOPPED] = "SEND_STOPPED",
    [RA_SEND_ERROR] = "SEND_ERROR", [RA_SEND_HEARTBEAT] = "SEND_HEARTBEAT",
    [RA_SEND_READY] = "SEND_READY", [RA_SEND_APPLIED] = "SEND_APPLIED",
    [RA_ARBITRATE] = "ARBITRATE", [RA_FINISH] = "FINISH",
};

const char *event_name(enum remus_event_type type)
{
    return (unsigned int)type < sizeof(event_names) / sizeof(event_names[0]) &&
           event_names[type] ? event_names[type] : "?";
}

/* ---- Clock, link, packet channel ------------------------------------------------------------ */

static uint64_t node_clock(const struct world *w, const struct node *n)
{
    return w->now - n->clock_skew_us;
}

/* Whether this coordinator still decides anything. */
bool node_thinks(const struct node *n)
{
    return !n->host_dead && !n->coordinator_dead;
}

static uint64_t arrival(struct world *w, uint64_t *last)
{
    uint64_t at = w->now + w->latency_us + chance(w, w->jitter_us + 1);

    if (at <= *last) {
        at = *last + 1; /* TCP keeps the order */
    }
    return *last = at;
}

static struct sim_event *link_send(struct world *w, enum remus_role from,
                                   enum remus_event_type type)
{
    enum remus_role to = from == REMUS_PRIMARY ? REMUS_SECONDARY : REMUS_PRIMARY;
    static struct sim_event nowhere;
    struct sim_event *e;

    if (!w->node[from].link_open) {
        return &nowhere;
    }
    e = post(w, K_LINK, to, arrival(w, &w->to[to].link_last));
    e->event.type = type;
    return e;
}

void link_close(struct world *w, enum remus_role role)
{
    if (w->node[role].link_open) {
        link_send(w, role, RE_LINK_LOST);
        w->node[role].link_open = false;
    }
}

void packet_send(struct world *w, enum remus_role to, enum packet_kind kind, uint64_t a,
                 uint64_t b, uint64_t c)
{
    struct sim_event *e = post(w, K_PACKET, to, arrival(w, &w->to[to].packet_last));

    e->event.value = kind;
    e->a = a;
    e->b = b;
    e->c = c;
}

void disk_send(struct world *w, enum disk_kind kind, uint64_t epoch, uint64_t sector,
               uint64_t value)
{
    uint64_t at = arrival(w, &w->to[REMUS_SECONDARY].disk_last) + chance(w, w->disk.slow_us + 1);
    struct sim_event *e = post(w, K_DISK, REMUS_SECONDARY, at);

    w->to[REMUS_SECONDARY].disk_last = at;
    e->event.value = kind;
    e->a = epoch;
    e->b = sector;
    e->c = value;
}

/* ---- Executors ------------------------------------------------------------------------------ */

static void answer(struct world *w, enum remus_role role, enum remus_event_type type,
                   uint32_t generation, uint64_t low_us, uint64_t high_us)
{
    struct sim_event *e = post(w, K_ANSWER, role, w->now + between(w, low_us, high_us));

    e->event.type = type;
    e->generation = generation;
}

static bool goes_wrong(unsigned int *countdown)
{
    if (!*countdown) {
        return false;
    }
    --*countdown;
    return true;
}

/* Done or failed, as the faults have it. */
static void attempt(struct world *w, enum remus_role role, enum remus_event_type type,
                    unsigned int *countdown, uint32_t generation, uint64_t low_us,
                    uint64_t high_us)
{
    answer(w, role, goes_wrong(countdown) ? RE_FAILED : type, generation, low_us, high_us);
}

static void primary_stops(struct world *w)
{
    P->running = false;
    P->stopped_since = w->now;
}

static void primary_runs(struct world *w)
{
    if (!P->running && P->domain && !P->hung) {
        P->running = true;
        disk_cut(w);
        guest_runs(w, REMUS_PRIMARY);
    }
}

static void stage(struct world *w, uint64_t epoch, uint16_t mode)
{
    struct snapshot *snap = &w->snap[epoch % SNAPS];

    snap->guest = P->guest;
    snap->carried = P->guest.dirty;
    snap->epoch = epoch;
    snap->disk_epoch = w->disk.epoch;
    snap->mode = mode;
    P->guest.dirty = 0;
}

static void ask_arbiter(struct world *w, enum remus_role role)
{
    struct sim_event *e = post(w, K_ARBITER, role, w->now + between(w, MS, w->arbiter_us));

    e->a = w->node[role].core.trust_us + w->node[role].clock_skew_us;
}

/* A grant to one side is a promise that the other is out. */
static void arbiter_decides(struct world *w, const struct sim_event *e)
{
    enum remus_role role = e->node;
    struct sim_event *reply;
    uint64_t at = w->now + w->latency_us;
    bool granted, failed = goes_wrong(&w->bad_arbiter);

    if (!failed && w->winner < 0) {
        w->winner = (int)role;
    }
    granted = w->winner == (int)role;
    trace(w, "arbiter", "%s for the %s", failed ? "fails" : granted ? "decides" : "denies",
          w->node[role].name);
    if (!failed && granted && role == REMUS_SECONDARY) {
        if (w->oracle == ORACLE_POWER) {
            P->host_dead = true;
        } else if (at < e->a + 10 * MS) {
            at = e->a + 10 * MS;
        }
    }
    reply = post(w, K_ANSWER, role, at);
    reply->event.type = failed ? RE_FAILED : RE_ARBITRATED;
    reply->event.value = failed ? (uint64_t)-EIO : granted;
}

static void primary_action(struct world *w, const struct remus_action *a, bool gives_up)
{
    struct sim_event *e;

    switch (a->type) {
    case RA_START_COPY:
        link_send(w, REMUS_PRIMARY, RE_PEER_STREAM);
        attempt(w, REMUS_PRIMARY, RE_COPY_DONE, &w->bad_copy, ++P->copying, 10 * MS, 200 * MS);
        break;
    case RA_SUSPEND:
        P->suspend_pending = true;
        w->disk.staged = false;
        if (w->hang && P->running) {
            P->hung = true;
            primary_stops(w);
        } else if (P->hung) {
            break;
        } else if (goes_wrong(&w->bad_suspend)) {
            if (!w->silent_suspend) {
                answer(w, REMUS_PRIMARY, RE_FAILED, ++P->operation, 100, 5 * MS);
            }
        } else {
            e = post(w, K_SUSPEND, REMUS_PRIMARY, w->now + between(w, 100, 5 * MS));
            e->generation = P->suspending;
        }
        break;
    case RA_SUSPEND_CANCEL:
        P->operation++;
        P->suspend_pending = false;
        if (P->hung) {
            if (w->hang) {
                w->hang = false; /* only this request was read */
                answer(w, REMUS_PRIMARY, RE_SUSPEND_TAKEN, 0, 10, MS);
            }
            break;
        }
        if (chance(w, 3)) {
            P->suspending++; /* else the guest has read the request already */
        } else if (w->silent_suspend && chance(w, 2)) {
            post(w, K_SUSPEND, REMUS_PRIMARY, w->now + between(w, MS, 3000 * MS))->generation =
                P->suspending;
        }
        primary_runs(w);
        break;
    case RA_STOP_INPUT:
        if (!P->daemon_dead) {
            w->proxy.input_stopped = true;
            answer(w, REMUS_PRIMARY, RE_INPUT_STOPPED, ++P->operation, 50, MS);
        }
        break;
    case RA_DRAIN:
        if (goes_wrong(&w->bad_drain)) {
            if (chance(w, 2)) {
                answer(w, REMUS_PRIMARY, RE_FAILED, ++P->operation, 50, 5 * MS);
            }
        } else {
            answer(w, REMUS_PRIMARY, RE_DRAINED, ++P->operation, 50, 5 * MS);
        }
        break;
    case RA_STAGE:
        if (goes_wrong(&w->bad_stage)) {
            P->guest.dirty &= (uint32_t)chance(w, 1u << PAGES); /* some was read and cleaned */
            if (w->mutation == BREAK_BITMAP_LOST) {
                answer(w, REMUS_PRIMARY, RE_STAGED, ++P->operation, 50, 5 * MS);
            } else {
                answer(w, REMUS_PRIMARY, RE_FAILED, ++P->operation, 50, 5 * MS);
            }
        } else {
            answer(w, REMUS_PRIMARY, RE_STAGED, ++P->operation, 50, 5 * MS);
        }
        break;
    case RA_CUT:
        if (P->daemon_dead) {
            answer(w, REMUS_PRIMARY, RE_FAILED, ++P->operation, 50, MS);
        } else {
            attempt(w, REMUS_PRIMARY, RE_CUT_DONE, &w->bad_cut, ++P->operation, 50, MS);
        }
        break;
    case RA_RESUME:
        P->operation++;
        P->not_resumed = w->mutation == BREAK_NO_RESUME && gives_up;
        attempt(w, REMUS_PRIMARY, RE_RESUMED, &w->bad_resume, P->operation, 50, 2 * MS);
        break;
    case RA_INPUT_GO:
        proxy_flush_input(w);
        break;
    case RA_SEND_EPOCH:
        e = post(w, K_CHUNK, REMUS_PRIMARY, w->now + between(w, 50, 3 * MS));
        e->generation = ++P->sending;
        e->a = 1 + chance(w, 3); /* frames before the last */
        e->b = a->epoch;
        break;
    case RA_RELEASE:
        if (w->proxy.cut[a->epoch % SNAPS] > w->proxy.safe) {
            w->proxy.safe = w->proxy.cut[a->epoch % SNAPS];
        }
        proxy_pump(w);
        break;
    case RA_HOLD:
        if (w->mutation != BREAK_NO_HOLD) {
            w->proxy.held = true;
        }
        break;
    case RA_UNPROTECT:
        P->copying++;
        P->sending++;
        attempt(w, REMUS_PRIMARY, RE_UNPROTECTED, &w->bad_unprotect, 0, MS, 20 * MS);
        break;
    case RA_FENCE_AND_STOP:
        w->proxy.held = true;
        P->domain = P->running = false;
        break;
    case RA_ARBITRATE:
        P->sending++;
        link_close(w, REMUS_PRIMARY);
        if (w->mutation == BREAK_FIRST_EPOCH_FREE && !P->core.acked) {
            e = post(w, K_ANSWER, REMUS_PRIMARY, w->now + MS);
            e->event.type = RE_ARBITRATED;
            e->event.value = 1;
        } else {
            ask_arbiter(w, REMUS_PRIMARY);
        }
        break;
    default:
        violation(w, "the primary was told to %s", action_names[a->type]);
    }
}

static void secondary_action(struct world *w, const struct remus_action *a)
{
    switch (a->type) {
    case RA_SEND_READY:
        link_send(w, REMUS_SECONDARY, RE_PEER_READY);
        break;
    case RA_ACK:
        if (S->complete < a->epoch) {
            violation(w, "epoch %llu acknowledged before it is whole",
                      (unsigned long long)a->epoch);
        }
        if (S->acked_early < a->epoch) {
            link_send(w, REMUS_SECONDARY, RE_PEER_ACK)->event.epoch =
                a->epoch + (goes_wrong(&w->bad_ack) ? 1 : 0);
        }
        break;
    case RA_APPLY:
        S->running = false;
        S->torn = true;
        attempt(w, REMUS_SECONDARY, RE_APPLIED, &w->bad_apply, ++S->applying, MS, 20 * MS);
        break;
    case RA_DROP_PARTIAL:
        break; /* the buffer is reset when the next epoch begins */
    case RA_TAKEOVER:
        attempt(w, REMUS_SECONDARY, RE_ACTIVE, &w->bad_takeover, 0, MS, 30 * MS);
        break;
    case RA_DESTROY:
        S->applying++;
        S->running = S->domain = false;
        attempt(w, REMUS_SECONDARY, RE_DESTROYED, &w->bad_destroy, 0, MS, 50 * MS);
        break;
    case RA_SEND_APPLIED:
        link_send(w, REMUS_SECONDARY, RE_PEER_APPLIED)->event.epoch = a->epoch;
        break;
    case RA_ARBITRATE:
        link_close(w, REMUS_SECONDARY);
        ask_arbiter(w, REMUS_SECONDARY);
        break;
    default:
        violation(w, "the secondary was told to %s", action_names[a->type]);
    }
}

static void action(struct world *w, enum remus_role role, const struct remus_action *a,
                   bool gives_up)
{
    struct node *n = &w->node[role];
    struct sim_event *e;

    if (a->type != RA_SEND_HEARTBEAT) {
        trace(w, n->name, "    %s%s %.0llu%.0llu%s%s", role == REMUS_SECONDARY ? "  " : "",
              action_names[a->type], (unsigned long long)a->epoch, (unsigned long long)a->value,
              a->text[0] ? "  " : "", a->text);
    }
    switch (a->type) {
    case RA_SEND_HEARTBEAT:
        e = link_send(w, role, RE_FRAME_ANY);
        e->a = node_clock(w, n);
        e->b = n->heard_heartbeat;
        e->c = w->mutation == BREAK_PROMISE ? n->core.params.timeout_max_ms * MS
               : remus_core_timeout_us(&n->core);
        break;
    case RA_SEND_STOP:
        n->sending++;
        n->copying++;
        e = link_send(w, role, RE_PEER_STOP);
        e->event.value = a->value;
        e->event.epoch = a->detail;
        break;
    case RA_SEND_STOPPED:
        link_send(w, role, RE_PEER_STOPPED);
        break;
    case RA_SEND_ERROR:
        link_send(w, role, RE_PEER_ERROR);
        break;
    case RA_FINISH:
        n->finished = true;
        link_close(w, role);
        break;
    default:
        if (role == REMUS_PRIMARY) {
            primary_action(w, a, gives_up);
        } else {
            secondary_action(w, a);
        }
    }
}

void node_event(struct world *w, enum remus_role role, const struct remus_event *event)
{
    struct node *n = &w->node[role];
    enum remus_state was = n->core.state;
    struct remus_actions out;
    bool gives_up = false;
    uint64_t next;

    if (!node_thinks(n)) {
        return;
    }
    if (event->type != RE_TICK && event->type != RE_FRAME_ANY) {
        trace(w, n->name, "%s%s %.0llu", role == REMUS_SECONDARY ? "  " : "",
              event_name(event->type), (unsigned long long)event->epoch);
    }
    remus_core_event(&n->core, node_clock(w, n), event, &out);
    if (n->core.state != was) {
        trace(w, n->name, "    %s-> %s", role == REMUS_SECONDARY ? "  " : "",
              remus_state_name(n->core.state));
    }
    if (out.count >= REMUS_ACTIONS_MAX || (n->core.flags & REMUS_CORE_BUG)) {
        violation(w, "%s core reports a bug at %s in state %s", n->name, event_name(event->type),
                  remus_state_name(was));
    }
    for (unsigned int i = 0; i < out.count; i++) {
        gives_up = gives_up || out.list[i].type == RA_INPUT_GO;
    }
    for (unsigned int i = 0; i < out.count; i++) {
        action(w, role, &out.list[i], gives_up);
    }
    next = remus_core_next_us(&n->core);
    n->wake_at = next == NEVER ? NEVER : next + n->clock_skew_us + chance(w, 500);
    if (n->wake_at < w->now) {
        n->wake_at = w->now;
    }
    if (n->core.state != was) {
        if (n->core.state == RP_RUN && was == RP_APPLY) {
            w->checkpoints++;
        }
        faults_of_state(w, role);
    }
}

void node_start(struct world *w)
{
    struct remus_core_params params[2] = {
        { .role = REMUS_PRIMARY, .mode = w->mode, .net = w->net },
        { .role = REMUS_SECONDARY, .mode = w->mode, .net = w->net },
    };
    struct remus_actions out;

    params[0].heartbeat_ms = (uint32_t)between(w, 20, 100);
    /* As an operator has to: well above a round trip, or a calm link counts as lost. */
    params[0].timeout_ms = params[0].heartbeat_ms * (uint32_t)between(w, 4, 10) +
                           (uint32_t)(6 * (w->latency_us + w->jitter_us) / MS);
    params[0].suspend_timeout_ms = (uint32_t)between(w, 200, 2000);
    params[0].drain_timeout_ms = (uint32_t)between(w, 50, 300);
    params[0].stop_timeout_ms = (uint32_t)between(w, 300, 2000);
    params[0].ready_timeout_ms = (uint32_t)between(w, 2000, 5000);
    if (w->mode->compares) {
        params[0].period_ms = (uint32_t)between(w, 200, 4000);
    }
    params[1].heartbeat_ms = params[0].heartbeat_ms;
    params[1].timeout_ms = params[0].timeout_ms;
    params[1].stop_timeout_ms = params[0].stop_timeout_ms;
    params[1].ready_timeout_ms = params[0].ready_timeout_ms;
    P->name = "primary";
    S->name = "secondary";
    P->domain = P->running = true;
    P->wake_at = S->wake_at = 0;
    for (int i = 0; i < 2; i++) {
        w->node[i].link_open = true;
        if (remus_core_init(&w->node[i].core, &params[i], w->now, &out)) {
            violation(w, "remus_core_init refused its parameters");
            return;
        }
        for (unsigned int k = 0; k < out.count; k++) {
            action(w, (enum remus_role)i, &out.list[k], false);
        }
    }
}

/* ---- Events that reach a node --------------------------------------------------------------- */

static void begin_base(struct world *w)
{
    stage(w, 0, w->mode->wire);
    /* The image as the secondary's builder will find it: everything, whatever is dirty. */
    S->guest = w->snap[0].guest;
    S->guest.dirty = 0;
    memcpy(S->mirror, S->guest.page, sizeof(S->mirror));
    link_send(w, REMUS_PRIMARY, RE_PEER_STREAM)->event.value = 1;
}

static void apply_done(struct world *w, const struct remus_event *event)
{
    const struct snapshot *snap = &w->snap[S->core.epoch % SNAPS];
    struct guest *g = &S->guest;

    for (unsigned int k = 0; k < PAGES; k++) {
        if (g->dirty & (1u << k)) {
            g->page[k] = S->mirror[k]; /* rollback of its own execution */
        }
        if (snap->carried & (1u << k)) {
            g->page[k] = S->mirror[k] = snap->guest.page[k];
        }
    }
    g->dirty = 0;
    g->inputs = snap->guest.inputs;
    memcpy(g->wrote, snap->guest.wrote, sizeof(g->wrote));
    disk_commit(w, snap->disk_epoch);
    g->newest = snap->guest.newest;
    memcpy(g->rx, snap->guest.rx, sizeof(g->rx));
    g->rx_count = snap->guest.rx_count;
    if (memcmp(g->page, snap->guest.page, sizeof(g->page))) {
        violation(w, "the secondary's memory is not checkpoint %llu after applying it",
                  (unsigned long long)snap->epoch);
    }
    S->torn = false;
    S->ended = false;
    node_event(w, REMUS_SECONDARY, event);
    if (S->core.mode->secondary_runs && S->domain && S->core.state == RS_RUN) {
        S->running = true;
        guest_runs(w, REMUS_SECONDARY);
        shadow_pump(w);
    }
}

static void take_over(struct world *w, const struct remus_event *event)
{
    if (S->torn) {
        violation(w, "the secondary takes over with half an epoch applied");
    }
    node_event(w, REMUS_SECONDARY, event);
    if (S->core.state != RS_ACTIVE) {
        return;
    }
    w->takeovers++;
    disk_takeover(w);
    S->running = S->open = true;
    shadow_open(w);
    guest_runs(w, REMUS_SECONDARY);
    shadow_pump(w);
    S->queued = 0;
}

static void node_answer(struct world *w, const struct sim_event *e)
{
    struct node *n = &w->node[e->node];
    enum remus_role role = e->node;

    if (!node_thinks(n)) {
        return;
    }
    switch (e->event.type) {
    case RE_COPY_DONE:
        if (e->generation != n->copying) {
            return;
        }
        begin_base(w);
        break;
    case RE_FAILED:
        if (role == REMUS_PRIMARY && e->generation && e->generation != n->operation &&
            e->generation != n->copying) {
            return;
        }
        if (role == REMUS_SECONDARY && e->generation && e->generation != n->applying) {
            return;
        }
        break;
    case RE_INPUT_STOPPED:
    case RE_DRAINED:
        if (e->generation != n->operation || n->daemon_dead) {
            return;
        }
        break;
    case RE_STAGED:
        if (e->generation != n->operation) {
            return;
        }
        if (P->running) {
            violation(w, "a checkpoint is staged while the guest runs");
        }
        stage(w, n->core.pending_epoch, n->core.next->wire);
        w->disk.staged = true;
        break;
    case RE_CUT_DONE:
        if (e->generation != n->operation || n->daemon_dead) {
            return;
        }
        proxy_cut(w, n->core.pending_epoch, w->snap[n->core.pending_epoch % SNAPS].mode);
        break;
    case RE_RESUMED:
        if (e->generation != n->operation) {
            return;
        }
        if (!P->not_resumed) {
            primary_runs(w);
        }
        break;
    case RE_UNPROTECTED:
        proxy_unprotect(w);
        w->disk.replicates = false;
        break;
    case RE_APPLIED:
        if (e->generation == n->applying) {
            apply_done(w, &e->event);
        }
        return;
    case RE_ACTIVE:
        take_over(w, &e->event);
        return;
    default:
        break;
    }
    node_event(w, role, &e->event);
}

static void node_frame(struct world *w, const struct sim_event *e)
{
    struct node *n = &w->node[e->node];
    struct remus_event event = e->event;

    if (!node_thinks(n) || !n->link_open) {
        return;
    }
    if (event.type == RE_FRAME_ANY) {
        if (e->a > n->heard_heartbeat) {
            n->heard_heartbeat = e->a;
        }
        event.value = w->mutation == BREAK_NO_ECHO ? node_clock(w, n) : e->b;
        event.epoch = e->c;
    } else if (event.type == RE_PEER_STREAM && event.value) {
        attempt(w, REMUS_SECONDARY, RE_BUILT, &w->bad_build, ++S->applying, 10 * MS, 300 * MS);
        S->domain = true;
    } else if (event.type == RE_PEER_EPOCH_COMPLETE) {
        w->disk.received = event.epoch;
        disk_complete(w);
        return;
    } else if (event.type == RE_PEER_EPOCH_FRAME) {
        if (w->mutation == BREAK_PARTIAL_APPLY) {
            n->torn = true;
        }
        if (w->mutation == BREAK_ACK_EARLY && n->acked_early < event.epoch) {
            n->acked_early = event.epoch;
            link_send(w, REMUS_SECONDARY, RE_PEER_ACK)->event.epoch = event.epoch;
        }
    } else if (event.type == RE_PEER_STOP && event.value == REMUS_STOP_HANDOVER) {
        w->winner = REMUS_SECONDARY;
    } else if (event.type == RE_PEER_STOP && w->mutation == BREAK_STOP_IGNORED &&
               e->node == REMUS_SECONDARY) {
        link_send(w, REMUS_SECONDARY, RE_PEER_STOPPED);
        return;
    }
    node_event(w, e->node, &event);
}

static void node_packet(struct world *w, const struct sim_event *e)
{
    if (w->node[e->node].daemon_dead) {
        return;
    }
    switch ((enum packet_kind)e->event.value) {
    case PACKET_INPUT:
        shadow_queue(w, e->a, e->b);
        break;
    case PACKET_OUTPUT:
        proxy_partner(w, e->a, e->b, e->c);
        break;
    case PACKET_EOF:
        if (e->node == REMUS_PRIMARY) { /* the secondary leaves the decision to the primary */
            node_event(w, e->node, &(struct remus_event){ .type = RE_DAEMON_LOST,
                                                          .text = "packet channel closed" });
        }
        break;
    }
}

static void send_chunk(struct world *w, const struct sim_event *e)
{
    struct sim_event *next;

    if (e->generation != P->sending || !node_thinks(P)) {
        return;
    }
    if (goes_wrong(&w->bad_send)) {
        node_event(w, REMUS_PRIMARY, &(struct remus_event){ .type = RE_FAILED,
                                                            .text = "encoding" });
        return;
    }
    next = link_send(w, REMUS_PRIMARY, e->a ? RE_PEER_EPOCH_FRAME : RE_PEER_EPOCH_COMPLETE);
    next->event.epoch = e->b;
    if (e->a) {
        next = post(w, K_CHUNK, REMUS_PRIMARY, w->now + between(w, 50, 5 * MS));
        next->generation = e->generation;
        next->a = e->a - 1;
        next->b = e->b;
    } else if (w->mutation == BREAK_RELEASE_BEFORE_ACK) {
        w->proxy.safe = w->proxy.cut[e->b % SNAPS];
        proxy_pump(w);
    }
}

static void guest_suspends(struct world *w, const struct sim_event *e)
{
    bool withdrawn = !P->suspend_pending;

    if (e->generation != P->suspending || !P->domain || P->ended || !P->running) {
        return;
    }
    primary_stops(w);
    P->suspend_pending = false;
    if (withdrawn && w->mutation == BREAK_LATE_SUSPEND) {
        return;
    }
    answer(w, REMUS_PRIMARY, RE_SUSPENDED, 0, 10, MS);
}

/*
 * What has to stand above a coordinator: it resumes the guest, sees to it that the packet daemon
 * (which loses its master) releases nothing, and asks the arbiter like the core would.
 */
static void supervisor(struct world *w, const struct sim_event *e)
{
    if (e->a == 0) {
        P->suspending++;
        primary_runs(w);
        if (w->proxy.protects) {
            ask_arbiter(w, REMUS_PRIMARY);
        } else {
            proxy_flush_input(w);
        }
    }
}

static void supervisor_hears(struct world *w, const struct sim_event *e)
{
    if (e->event.type == RE_FAILED) {
        ask_arbiter(w, REMUS_PRIMARY);
    } else if (e->event.type == RE_ARBITRATED && e->event.value) {
        proxy_unprotect(w);
    } else if (e->event.type == RE_ARBITRATED) {
        P->domain = P->running = false;
    }
}

void node_handle(struct world *w, const struct sim_event *e)
{
    switch ((enum sim_kind)e->kind) {
    case K_LINK:
        node_frame(w, e);
        break;
    case K_PACKET:
        node_packet(w, e);
        break;
    case K_ANSWER:
        if (e->node == REMUS_PRIMARY && P->coordinator_dead) {
            if (!e->generation) {
                supervisor_hears(w, e);
            }
        } else {
            node_answer(w, e);
        }
        break;
    case K_DISK:
        disk_event(w, e);
        break;
    case K_SUSPEND:
        guest_suspends(w, e);
        break;
    case K_CHUNK:
        send_chunk(w, e);
        break;
    case K_DEADLINE:
        proxy_deadline(w, e->a, e->b);
        break;
    case K_ARBITER:
        arbiter_decides(w, e);
        break;
    case K_SUPERVISOR:
        supervisor(w, e);
        break;
    default:
        break;
    }
}

/* ---- Faults --------------------------------------------------------------------------------- */

enum fault_type {
    FAULT_HOST, FAULT_COORDINATOR, FAULT_DAEMON, FAULT_FREEZE, FAULT_OPERATOR, FAULT_GUEST,
    FAULT_BAD_FRAME,                     /* these have a side */
    FAULT_CUT, FAULT_CUT_ONE_WAY, FAULT_CUT_STAGED, FAULT_GLITCH,
    FAULT_SWITCH, FAULT_SUSPEND, FAULT_SUSPEND_SILENT, FAULT_HANG, FAULT_DRAIN, FAULT_STAGE,
    FAULT_CUT_FAILS,
    FAULT_RESUME, FAULT_SEND, FAULT_APPLY, FAULT_COPY, FAULT_BUILD, FAULT_ACK,
    FAULT_UNPROTECT, FAULT_TAKEOVER, FAULT_DESTROY, FAULT_ARBITER, /* only with another */
    FAULT_COUNT
};

static const char *const fault_names[FAULT_COUNT] = {
    "host dies", "coordinator is killed", "daemon is killed", "host freezes", "operator stops",
    "guest ends by itself", "receives nonsense",
    "link is cut", "link is cut one way", "link is cut one way, then the other", "link glitch",
    "the copy is to take over", "guest will refuse to suspend", "guest will not answer suspend",
    "guest will hang on its way to suspend", "drain will fail",
    "staging will fail", "cut will fail", "resume will fail", "sending will fail",
    "applying will fail", "copy will fail", "build will fail", "wrong ACK will be sent",
    "unprotect will fail", "takeover will fail", "destroy will fail", "arbiter will be slow",
};

void faults_choose(struct world *w)
{
    static const unsigned char how_many[16] = { 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3 };

    w->faults = how_many[chance(w, 16)];
    for (unsigned int i = 0; i < w->faults; i++) {
        struct fault *f = &w->fault[i];
        struct sim_event *e;

        /* Half of them break something for good; the last few mean nothing by themselves. */
        f->type = (uint8_t)chance(w, chance(w, 2) ? FAULT_SUSPEND : i ? FAULT_COUNT :
                                  FAULT_UNPROTECT);
        f->node = (uint8_t)chance(w, 2);
        f->value = chance(w, 8);
        f->state = REMUS_STATE_COUNT;
        if (chance(w, 2)) { /* when the core of some side enters some state, for the nth time */
            f->state = (uint8_t)chance(w, REMUS_STATE_COUNT);
            f->value |= chance(w, 4) << 8;
        }
        f->at = chance(w, 2) ? chance(w, 500 * MS) : chance(w, 5000 * MS);
        if (f->state == REMUS_STATE_COUNT) {
            e = post(w, K_FAULT, REMUS_PRIMARY, f->at);
            e->a = i;
        }
    }
}

void faults_of_state(struct world *w, enum remus_role role)
{
    for (unsigned int i = 0; i < w->faults; i++) {
        struct fault *f = &w->fault[i];

        if (f->fired || f->state != w->node[role].core.state) {
            continue;
        }
        if (f->value >> 8) {
            f->value -= 1ull << 8;
            continue;
        }
        f->state = REMUS_STATE_COUNT;
        post(w, K_FAULT, REMUS_PRIMARY, w->now + (chance(w, 2) ? 0 : chance(w, 5 * MS)))->a = i;
    }
}

static void kill_coordinator(struct world *w, enum remus_role role)
{
    struct node *n = &w->node[role];

    if (n->host_dead || n->coordinator_dead || n->finished) {
        return;
    }
    link_close(w, role);
    n->coordinator_dead = true;
    n->sending++;
    if (role == REMUS_PRIMARY) {
        w->disk.replicates = false;
        if (w->proxy.protects) {
            w->proxy.held = true; /* the packet daemon sees its control connection end */
        }
        post(w, K_SUPERVISOR, role, w->now + 200 * MS);
    }
}

static void kill_daemon(struct world *w, enum remus_role role)
{
    enum remus_role other = role == REMUS_PRIMARY ? REMUS_SECONDARY : REMUS_PRIMARY;
    struct node *n = &w->node[role];
    struct sim_event *e;

    if (n->host_dead || n->daemon_dead || n->finished) {
        return;
    }
    n->daemon_dead = true;
    packet_send(w, other, PACKET_EOF, 0, 0, 0);
    e = post(w, K_ANSWER, role, w->now + between(w, 100, 2 * MS));
    e->event.type = RE_DAEMON_LOST;
}

static void end_guest(struct world *w, enum remus_role role)
{
    struct node *n = &w->node[role];
    struct sim_event *e;

    if (n->host_dead || !n->domain || !n->running || n->ended) {
        return;
    }
    n->ended = true;
    e = post(w, K_ANSWER, role, w->now + between(w, 10, MS));
    e->event.type = RE_GUEST_ENDED;
    e->event.value = chance(w, 4) ? 0 : 3; /* poweroff or crash */
}

void fault_fire(struct world *w, struct fault *f)
{
    enum remus_role role = f->node;
    struct node *n = &w->node[role];
    uint64_t few = 1 + (f->value & 7);
    struct sim_event *e;

    if (f->fired) {
        return;
    }
    f->fired = true;
    trace(w, "FAULT", "%s%s%s (%llu)", f->type <= FAULT_BAD_FRAME ? n->name : "",
          f->type <= FAULT_BAD_FRAME ? ": " : "", fault_names[f->type], (unsigned long long)few);
    switch ((enum fault_type)f->type) {
    case FAULT_HOST:
        n->host_dead = true;
        break;
    case FAULT_COORDINATOR:
        kill_coordinator(w, role);
        break;
    case FAULT_DAEMON:
        kill_daemon(w, role);
        break;
    case FAULT_FREEZE:
        few = w->now + chance(w, 200 * MS * few);
        if (few <= n->frozen_until) {
            break;               /* it sleeps for longer already */
        }
        if (w->mutation == BREAK_CLOCK_STOPS) {
            n->clock_skew_us += few - (n->frozen_until > w->now ? n->frozen_until : w->now);
        }
        n->frozen_until = few;
        break;
    case FAULT_OPERATOR:
        post(w, K_ANSWER, role, w->now)->event.type = RE_OPERATOR_STOP;
        break;
    case FAULT_GUEST:
        end_guest(w, role);
        break;
    case FAULT_BAD_FRAME:
        e = post(w, K_LINK, role, w->now);
        e->event.type = RE_PEER_BAD;
        break;
    case FAULT_CUT:
        w->to[0].blocked_until = w->to[1].blocked_until = NEVER;
        break;
    case FAULT_CUT_ONE_WAY:
        w->to[role].blocked_until = NEVER;
        break;
    case FAULT_CUT_STAGED: /* the other way follows when the first has nearly been noticed */
        w->to[role].blocked_until = NEVER;
        if (w->faults < FAULTS_MAX) {
            w->fault[w->faults] = (struct fault){ .type = FAULT_CUT, .state = REMUS_STATE_COUNT };
            e = post(w, K_FAULT, REMUS_PRIMARY, w->now + chance(w, 1000 * MS));
            e->a = w->faults++;
        }
        break;
    case FAULT_GLITCH:
        few = w->now + chance(w, 200 * MS * few);
        for (int i = 0; i < 2; i++) { /* one that was cut stays so; none overtakes another */
            if (w->to[i].blocked_until < few) {
                w->to[i].blocked_until = few;
            }
        }
        break;
    case FAULT_SWITCH:
        post(w, K_ANSWER, REMUS_PRIMARY, w->now)->event.type = RE_SWITCH;
        break;
    case FAULT_SUSPEND:
        w->bad_suspend = (unsigned int)few;
        break;
    case FAULT_SUSPEND_SILENT:
        w->bad_suspend = (unsigned int)few;
        w->silent_suspend = true;
        break;
    case FAULT_HANG:
        w->hang = true;
        break;
    case FAULT_DRAIN:
        w->bad_drain = (unsigned int)few;
        break;
    case FAULT_STAGE:
        w->bad_stage = 1;
        break;
    case FAULT_CUT_FAILS:
        w->bad_cut = 1;
        break;
    case FAULT_RESUME:
        w->bad_resume = (unsigned int)(f->value & 7 ? few : 100);
        break;
    case FAULT_SEND:
        w->bad_send = 1;
        break;
    case FAULT_APPLY:
        w->bad_apply = (unsigned int)few;
        break;
    case FAULT_COPY:
        w->bad_copy = 1;
        break;
    case FAULT_BUILD:
        w->bad_build = 1;
        break;
    case FAULT_ACK:
        w->bad_ack = 1;
        break;
    case FAULT_UNPROTECT:
        w->bad_unprotect = (unsigned int)few;
        break;
    case FAULT_TAKEOVER:
        w->bad_takeover = (unsigned int)few;
        break;
    case FAULT_DESTROY:
        w->bad_destroy = (unsigned int)few;
        break;
    case FAULT_ARBITER:
        w->bad_arbiter = (unsigned int)few;
        w->arbiter_us = 3000 * MS;
        break;
    case FAULT_COUNT:
        break;
    }
}
