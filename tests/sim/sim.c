/*
 * sim.c: runs sessions from seeds.
 *
 *   sim --seeds A-B [--break NAME]     exit 1 at the first seed that violates an invariant
 *   sim --seed N [--trace] [--break NAME]
 */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

#define QUIET_END   (2500ull * MS)     /* after both sides have settled */
#define RUN_MIN     (4000ull * MS)
#define AFTER_FAULT (45000ull * MS)    /* more than all timers and retries of a loss add up to */
#define CALM_END    (15000ull * MS)    /* after a fault that did not end the session */

static void choose(struct world *w)
{
    static const char *const mode_names[16] = {
        "colo", "colo", "colo", "colo", "colo", "colo", "colo", "colo", "auto",
        "remus", "remus", "remus", "kemari", "kemari", "curling", "auto",
    };

    w->mode = remus_mode_by_name(mode_names[chance(w, 16)]);
    w->switch_us = chance(w, 4) ? 0 : between(w, 100 * MS, 2000 * MS);
    w->keeps = strcmp(w->mode->name, "curling") && (!w->switch_us || chance(w, 4));
    w->net = chance(w, 20) != 0;
    w->disk.has = chance(w, 4) != 0;
    w->disk.slow_us = chance(w, 2) ? between(w, 1, 20 * MS) : 0;
    w->latency_us = between(w, 30, chance(w, 3) ? 500 : 10 * MS);
    w->jitter_us = chance(w, 2 * w->latency_us);
    w->client_us = between(w, 5 * MS, 60 * MS);
    w->noise_us = chance(w, 4) ? between(w, 50 * MS, 2000 * MS) : 0;
    w->output_of_16 = (unsigned int)between(w, 4, 16);
    w->oracle = chance(w, 2) ? ORACLE_POWER : ORACLE_LEASE;
    w->arbiter_us = between(w, 2 * MS, 100 * MS);
}

static void want_mode(struct world *w)
{
    static const char *const names[5] = { "colo", "remus", "kemari", "auto", "curling" };
    const struct replication_mode *mode = remus_mode_by_name(names[chance(w, w->keeps ? 4 : 5)]);

    trace(w, "operator", "wants %s", mode->name);
    node_event(w, REMUS_PRIMARY, &(struct remus_event){ .type = RE_MODE, .value = mode->wire });
}

static bool over(const struct world *w, uint64_t last_fault, uint64_t *settled_at)
{
    const struct node *p = &w->node[REMUS_PRIMARY], *s = &w->node[REMUS_SECONDARY];
    bool done = (p->finished || !node_thinks(p)) && (s->finished || !node_thinks(s));

    for (unsigned int i = 0; i < w->faults; i++) {
        if (!w->fault[i].fired && w->fault[i].state == REMUS_STATE_COUNT) {
            return false;
        }
    }
    if (done && w->now >= p->frozen_until && w->now >= s->frozen_until) {
        if (!*settled_at) {
            *settled_at = w->now;
        }
        return w->now > *settled_at + QUIET_END + 2 * w->arbiter_us && w->now > RUN_MIN;
    }
    *settled_at = 0;
    if (last_fault && (w->now < last_fault + CALM_END || !is_served(w) ||
                       p->core.state > RP_APPLY)) {
        return w->now > last_fault + AFTER_FAULT;
    }
    return w->now > RUN_MIN;
}

static bool run(struct world *w, uint64_t seed)
{
    uint64_t last_fault = 0, settled_at = 0;
    struct sim_event e;

    world_reset(w, seed);
    choose(w);
    trace(w, "world", "mode %s, %snet, latency %llu us, oracle %s", w->mode->name,
          w->net ? "" : "no ", (unsigned long long)w->latency_us,
          w->oracle == ORACLE_POWER ? "power" : "lease");
    faults_choose(w);
    node_start(w);
    post(w, K_CLIENT, REMUS_PRIMARY, w->client_us);
    post(w, K_MERGE, REMUS_SECONDARY, w->latency_us);
    if (w->switch_us) {
        post(w, K_MODE, REMUS_PRIMARY, w->switch_us);
    }
    if (w->noise_us) {
        post(w, K_NOISE, REMUS_PRIMARY, w->noise_us);
        post(w, K_NOISE, REMUS_SECONDARY, w->noise_us);
    }
    while (!w->failed && !over(w, last_fault, &settled_at) && take(w, &e)) {
        w->steps++;
        switch ((enum sim_kind)e.kind) {
        case K_CLIENT:
            client_event(w);
            post(w, K_CLIENT, REMUS_PRIMARY, w->now + w->client_us);
            break;
        case K_NOISE:
            guest_noise(w, e.node);
            post(w, K_NOISE, e.node, w->now + between(w, 1, 2 * w->noise_us));
            break;
        case K_FAULT:
            fault_fire(w, &w->fault[e.a]);
            last_fault = w->now;
            break;
        case K_MODE:
            want_mode(w);
            post(w, K_MODE, REMUS_PRIMARY, w->now + between(w, 1, 2 * w->switch_us));
            break;
        case K_MERGE:
            disk_merge(w);
            post(w, K_MERGE, REMUS_SECONDARY, w->now + between(w, 1, 100 * MS));
            break;
        default:
            node_handle(w, &e);
        }
        check_step(w);
    }
    if (!w->failed) {
        check_end(w);
    }
    return !w->failed;
}

static int usage(void)
{
    fprintf(stderr, "usage: sim --seeds A-B | --seed N [--trace]   [--break NAME]\nbreaks:");
    for (int i = 1; i < BREAK_COUNT; i++) {
        fprintf(stderr, " %s", sim_break_names[i]);
    }
    fprintf(stderr, "\n");
    return 2;
}

int main(int argc, char **argv)
{
    struct world w;
    uint64_t first = 0, last = 0, steps = 0, checkpoints = 0, takeovers = 0, seed;
    bool given = false;
    char *end;

    memset(&w, 0, sizeof(w));
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--trace")) {
            w.trace = true;
        } else if (i + 1 < argc && (!strcmp(argv[i], "--seeds") || !strcmp(argv[i], "--seed"))) {
            first = strtoull(argv[++i], &end, 10);
            last = *end == '-' ? strtoull(end + 1, &end, 10) : first;
            given = !*end && last >= first;
        } else if (i + 1 < argc && !strcmp(argv[i], "--break")) {
            i++;
            for (int k = 1; k < BREAK_COUNT; k++) {
                if (!strcmp(argv[i], sim_break_names[k])) {
                    w.mutation = (enum sim_break)k;
                }
            }
            if (!w.mutation) {
                return usage();
            }
        } else {
            return usage();
        }
    }
    if (!given) {
        return usage();
    }
    for (seed = first; seed <= last; seed++) {
        bool good = run(&w, seed);

        steps += w.steps;
        checkpoints += w.checkpoints;
        takeovers += w.takeovers;
        if (!good) {
            printf("seed %llu: at %.6f s: %s\n", (unsigned long long)seed, (double)w.now / 1e6,
                   w.why);
            world_free(&w);
            return 1;
        }
    }
    printf("%llu seeds, %llu steps, %llu checkpoints, %llu takeovers: every invariant held\n",
           (unsigned long long)(last - first + 1), (unsigned long long)steps,
           (unsigned long long)checkpoints, (unsigned long long)takeovers);
    world_free(&w);
    return 0;
}
