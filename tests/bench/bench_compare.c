/*
 * bench_compare.c: what the comparison itself costs, without queue, channel or system call.
 *
 * A pair is a primary frame and the secondary's equal one, with everything that follows from
 * them (RELEASE, MATCHED).  Frames are built outside the clock.  Columns: bytes of the frame, flows
 * in turn, nanoseconds for each pair (best and median of the rounds).
 *
 *   bench_compare [ROUNDS]
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/unit/frames.h"
#include "tools/remus/compare.h"

#define BATCH      1000u
#define ROUNDS_MAX 100

static uint64_t released;

static void on_action(void *arg, const struct cmp_action *a)
{
    (void)arg;
    released += a->type == CMP_RELEASE;
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* A frame of one flow and two images of it, the primary's and the secondary's. */
static size_t build(uint8_t *f, uint32_t flow, uint32_t seq, uint32_t ack, size_t bytes, bool udp)
{
    static uint8_t payload[65536];
    size_t header = udp ? 42 : 54;
    struct tcp_spec s = {
        .seq = seq,
        .ack = ack,
        .data = payload,
        .bytes = bytes > header ? bytes - header : 0,
        .guest_port = (uint16_t)(1 + flow / 250),
        .peer_port = (uint16_t)(1000 + flow % 250),
    };

    memset(payload, (int)(seq >> 3), sizeof(payload));
    if (udp) {
        frame_put32(payload, seq);
        return frame_udp(f, &s.ip, s.guest_port, s.peer_port, payload, s.bytes);
    }
    return frame_tcp(f, &s);
}

enum order { PAIRWISE, PRIMARY_AHEAD, SECONDARY_FIRST };

static void run(const char *name, size_t bytes, uint32_t flows, bool udp, enum order order,
                unsigned int rounds)
{
    const struct cmp_limits limits = {.hash_seed = 1, .bytes_max = 256u << 20};
    size_t stride = bytes + 64, length = 0;
    uint32_t batch = bytes > 10000 ? BATCH / 10 : BATCH, i, flow = 0, ahead = 16;
    uint8_t *p_frames = malloc(stride * batch), *s_frames = malloc(stride * batch);
    uint32_t *seqs = calloc(flows, sizeof(*seqs));
    uint64_t ns[ROUNDS_MAX], id = 0, now = 0;
    unsigned int round;
    struct cmp *c;

    if (!p_frames || !s_frames || !seqs || cmp_new(&c, &limits, on_action, NULL)) {
        abort();
    }
    /* Each flow once, so that its first frame is not what is measured. */
    for (i = 0; i < flows; i++) {
        length = build(p_frames, i, 0, 1, bytes, udp);
        seqs[i] += (uint32_t)(length > 54 ? length - 54 : 0);
        cmp_primary(c, now, ++id, p_frames, length, false);
        cmp_secondary(c, now, 1, id, p_frames, length);
    }
    released = 0;
    for (round = 0; round < rounds; round++) {
        uint64_t start;

        for (i = 0; i < batch; i++) {
            length = build(p_frames + stride * i, flow, seqs[flow], id + 1 + i, bytes, udp);
            memcpy(s_frames + stride * i, p_frames + stride * i, length);
            seqs[flow] += (uint32_t)(length > 54 ? length - 54 : 0) + udp;
            flow = (flow + 1) % flows;
        }
        start = now_ns();
        for (i = 0; i < batch + (order == PRIMARY_AHEAD ? ahead : 0); i++) {
            uint32_t s = order == PRIMARY_AHEAD ? i - ahead : i;

            now++;
            if (order == SECONDARY_FIRST) {
                cmp_secondary(c, now, 1, id + 1, s_frames + stride * s, length);
            }
            if (i < batch) {
                cmp_primary(c, now, ++id, p_frames + stride * i, length, false);
            }
            if (order != SECONDARY_FIRST && s < batch) {
                cmp_secondary(c, now, 1, id, s_frames + stride * s, length);
            }
        }
        ns[round] = (now_ns() - start) / batch;
    }
    qsort(ns, rounds, sizeof(ns[0]), by_value);
    printf("%-22s %6zu %6u %8llu %8llu%s\n", name, bytes, flows, (unsigned long long)ns[0],
           (unsigned long long)ns[rounds / 2],
           released == (uint64_t)rounds * batch ? "" : "  (not all released)");
    fflush(stdout);
    cmp_free(c);
    free(p_frames);
    free(s_frames);
    free(seqs);
}

int main(int argc, char **argv)
{
    static const size_t sizes[] = {64, 1500, 65000};
    static const uint32_t flows[] = {1, 100, 10000};
    unsigned int rounds = argc > 1 ? (unsigned int)atoi(argv[1]) : 50, i, j;

    if (rounds < 1 || rounds > ROUNDS_MAX) {
        rounds = 50;
    }
    printf("%-22s %6s %6s %8s %8s\n", "pairs", "bytes", "flows", "best ns", "median");
    for (i = 0; i < 3; i++) {
        for (j = 0; j < 3; j++) {
            run("tcp", sizes[i], flows[j], false, PAIRWISE, rounds);
        }
    }
    for (i = 0; i < 3; i++) {
        run("tcp, primary 16 ahead", sizes[i], 1, false, PRIMARY_AHEAD, rounds);
        run("tcp, secondary first", sizes[i], 1, false, SECONDARY_FIRST, rounds);
        run("udp", sizes[i], 100, true, PAIRWISE, rounds);
    }
    return 0;
}
