/*
 * fuzz_compare.c: a sequence of frames, cuts, releases and ticks (libFuzzer), with the invariants
 * of compare.h checked after each step and what left checked against what the secondary had sent.
 *
 * Input: operations of 1 byte, followed by their parameters (missing bytes are 0).  Three kinds
 * of traffic: flow A is TCP without SYN and RST and has an oracle for every byte and ack; flow B is
 * TCP with any flags and numbers; datagrams carry one of eight contents, which are counted.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/frames.h"
#include "tools/remus/compare.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define IDS_MAX    4096u
#define STREAM     8192u /* bytes of flow A's stream */
#define FRAMES_MAX 48u
#define BYTES_MAX  (40u * 2048u)
#define FIRST_SEQ  0xfffff000u /* so that the numbers wrap */

struct sent {
    bool is_a;
    uint8_t content;         /* 1 + content of a datagram */
    bool flipped;            /* the byte in the middle of an A segment differs */
    uint32_t at, bytes, ack; /* of flow A, relative */
    uint64_t epoch;
    bool answered;
};

struct seen {               /* by the secondary, in one epoch */
    uint8_t values[STREAM]; /* bit 0: as it is, bit 1: flipped */
    uint32_t ack;
    uint32_t contents[8];
};

static struct {
    const uint8_t *data;
    size_t size;
    struct cmp *c;
    uint64_t now, present, committed;
    uint64_t primary_ids, secondary_ids;
    struct sent sent[IDS_MAX];
    uint64_t matched_epoch[IDS_MAX];
    struct seen seen[2];         /* [epoch & 1]: the present one and the next */
    uint8_t sent_values[STREAM]; /* by the primary in this epoch, as in struct seen */
    uint32_t floor;              /* bytes of A below it are verified, or older than the comparison:
                                  sent again they leave without being looked at */
    uint32_t a_end, a_ack;       /* highest the primary has sent */
    bool a_known;
    uint64_t releasing; /* epoch of cmp_release_epoch in progress, or 0 */
    bool cutting, draining, drain_release;
    uint64_t wanted;
} z;

static uint8_t frame[FRAME_MAX], stream[STREAM];

static void check(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "broken: %s\n", what);
        abort();
    }
}

static uint8_t take(void)
{
    if (!z.size) {
        return 0;
    }
    z.size--;
    return *z.data++;
}

static uint32_t take16(void)
{
    uint32_t high = take();

    return high << 8 | take();
}

static void check_release(const struct sent *s, const struct cmp_action *a)
{
    struct seen *seen = &z.seen[z.present & 1];
    uint32_t i;

    check(s->epoch == z.present, "released by comparison after its cut");
    check(z.committed + 1 >= z.present, "released before the last epoch");
    if (s->is_a) {
        check(s->ack <= seen->ack, "ack beyond the secondary's");
        while (z.floor < STREAM && z.sent_values[z.floor] & seen->values[z.floor]) {
            z.floor++;
        }
        for (i = 0; i < s->bytes; i++) {
            uint32_t at = s->at + i;
            uint8_t want = s->flipped && i == s->bytes / 2 ? 2 : 1;

            check(at < z.floor || seen->values[at] & want, "byte without partner");
        }
    } else if (s->content) {
        check(seen->contents[s->content - 1]-- > 0, "datagram without partner");
    }
    check(a->sack_blocks <= 4, "SACK blocks");
}

static void on_action(void *arg, const struct cmp_action *a)
{
    struct sent *s;
    uint64_t epoch;

    (void)arg;
    switch (a->type) {
    case CMP_MATCHED:
        check(a->id >= 1 && a->id <= z.secondary_ids, "MATCHED of an unknown id");
        check(z.matched_epoch[a->id] == z.present || (z.cutting && z.matched_epoch[a->id]),
              "MATCHED twice, or of another epoch");
        z.matched_epoch[a->id] = 0;
        return;
    case CMP_FLOW:
        return;
    case CMP_CHECKPOINT:
        check(a->why && !strncmp(a->text, "epoch ", 6), "checkpoint without reason");
        epoch = strtoull(a->text + 6, NULL, 10);
        check(epoch == z.present || (z.cutting && epoch == z.present + 1), "another epoch");
        check(epoch > z.wanted, "two checkpoints wanted in an epoch");
        z.wanted = epoch;
        return;
    default:
        break;
    }
    check(a->id >= 1 && a->id <= z.primary_ids, "answer to an unknown id");
    s = &z.sent[a->id];
    check(!s->answered, "answered twice");
    s->answered = true;
    if (z.draining) {
        check(a->type == (z.drain_release ? CMP_RELEASE : CMP_DROP), "drain");
    } else if (z.releasing) {
        check(a->type == CMP_RELEASE && s->epoch <= z.releasing, "release_epoch of a later epoch");
    } else if (a->type != CMP_DROP) {
        check_release(s, a);
    }
}

/* Flow A: an offset, a length, an ack, whether a byte differs. */
static size_t build_a(struct sent *s)
{
    static const uint16_t lengths[] = {0, 1, 10, 100, 536, 1460, 3000, 6000};
    struct tcp_spec spec = {.peer_port = 1};
    uint8_t choice = take();
    size_t n;

    s->is_a = true;
    s->at = take() * 16u + (choice & 0x18);
    s->bytes = lengths[choice & 7];
    if (s->at + s->bytes > STREAM) {
        s->bytes = STREAM - s->at;
    }
    s->flipped = (choice & 0xe0) == 0xe0 && s->bytes;
    s->ack = take() & 0x1f;
    spec.seq = FIRST_SEQ + s->at;
    spec.data = stream + s->at;
    spec.bytes = s->bytes;
    spec.window = (uint16_t)(1000 + (choice & 0x60));
    if (s->flipped) {
        stream[s->at + s->bytes / 2] ^= 0x55;
    }
    n = frame_tcp(frame, &spec);
    if (s->flipped) {
        stream[s->at + s->bytes / 2] ^= 0x55;
    }
    frame_put32(frame + 14 + 20 + 8, 0xfffffff0u + s->ack); /* 0 would be 5000 to the builder */
    return n;
}

static size_t build_b(void)
{
    uint8_t choice = take(), numbers = take();
    struct tcp_spec spec = {
        .peer_port = (uint16_t)(2 + (choice & 3)),
        .flags = take() | NO_FLAGS,
        .seq = 100u + (numbers >> 4) * 8u,
        .ack = 1u + (numbers & 15),
        .data = stream,
        .bytes = choice >> 5 << 2,
        .window = take(),
        .sack_blocks = choice >> 3 & 3,
        .urgent = numbers,
    };
    uint32_t i;

    for (i = 0; i < spec.sack_blocks; i++) {
        spec.sack[i][0] = take();
        spec.sack[i][1] = spec.sack[i][0] + take();
    }
    if (spec.flags & PACKET_TCP_SYN) {
        spec.mss = choice & 4 ? 1460 : 0;
        spec.wscale_plus_1 = choice & 8 ? 3 : 0;
    }
    return frame_tcp(frame, &spec);
}

static size_t build_datagram(struct sent *s)
{
    uint8_t choice = take();

    s->content = 1 + (choice & 7);
    if (choice & 0x40) {
        /* Two pieces would need two ids for one content; those are in build_fragment(). */
        return frame_icmp(frame, &(struct ip_spec){0}, 3, 1, s->content, stream, 30);
    }
    return frame_udp(frame, &(struct ip_spec){.v6 = choice & 0x80, .id = choice}, 7, s->content,
                     stream, (choice & 7) * 300u);
}

static size_t build_fragment(void)
{
    uint8_t choice = take(), place = take();
    bool v6 = choice & 1;

    return frame_raw(frame,
                     &(struct ip_spec){
                         .v6 = v6,
                         .id = choice >> 5,
                         .fragment_id = v6 ? 1u + (choice >> 5) : 0,
                         .fragment = (uint16_t)((place & 0x1f) | (choice & 2 ? 0x2000 : 0)),
                     },
                     choice & 4 ? 17 : 1, stream + (place & 0x1f) * 8, (place >> 5) * 8u + 8);
}

static size_t build_raw(void)
{
    size_t n = take16() % 200, i;

    for (i = 0; i < n; i++) {
        frame[i] = take();
    }
    return n;
}

static size_t build(struct sent *s)
{
    memset(s, 0, sizeof(*s));
    switch (take() & 7) {
    case 0:
    case 1:
    case 2:
        return build_a(s);
    case 3:
    case 4:
        return build_b();
    case 5:
        return build_datagram(s);
    case 6:
        return build_fragment();
    default:
        return build_raw();
    }
}

static void primary(void)
{
    struct sent *s = &z.sent[z.primary_ids + 1];
    bool gso = take() & 1;
    size_t n = build(s);
    uint8_t *copy = malloc(n ? n : 1);
    uint32_t i;

    memcpy(copy, frame, n);
    s->epoch = z.present;
    z.primary_ids++;
    if (s->is_a) {
        if (!z.a_known) {
            /* The start of the comparison: one above where a keepalive stands. */
            z.a_known = true;
            z.floor = s->at + 1;
        }
        for (i = 0; i < s->bytes; i++) {
            z.sent_values[s->at + i] |= s->flipped && i == s->bytes / 2 ? 2 : 1;
        }
        z.a_end = s->at + s->bytes > z.a_end ? s->at + s->bytes : z.a_end;
        z.a_ack = s->ack > z.a_ack ? s->ack : z.a_ack;
    }
    cmp_primary(z.c, z.now, z.primary_ids, copy, n, gso);
    free(copy);
}

static void secondary(void)
{
    uint8_t when = take();
    struct sent s;
    size_t n = build(&s);
    uint8_t *copy = malloc(n ? n : 1);
    uint64_t epoch = z.present;
    uint32_t i;

    memcpy(copy, frame, n);
    if (when >= 0xf0) {
        epoch--;
    } else if (when >= 0xd0) {
        epoch++;
    }
    if (epoch >= z.present) {
        struct seen *seen = &z.seen[epoch & 1];

        if (s.is_a) {
            for (i = 0; i < s.bytes; i++) {
                seen->values[s.at + i] |= s.flipped && i == s.bytes / 2 ? 2 : 1;
            }
            seen->ack = s.ack > seen->ack ? s.ack : seen->ack;
        } else if (s.content) {
            seen->contents[s.content - 1]++;
        }
        z.matched_epoch[z.secondary_ids + 1] = epoch;
    }
    z.secondary_ids++;
    cmp_secondary(z.c, z.now, epoch, z.secondary_ids, copy, n);
    free(copy);
}

static void input(void)
{
    struct sent s;
    size_t n = build(&s);
    uint8_t *copy = malloc(n ? n : 1);

    memcpy(copy, frame, n);
    cmp_input(z.c, z.now, copy, n);
    free(copy);
}

static void cut(void)
{
    uint64_t old = z.present;

    z.cutting = true;
    cmp_cut(z.c, z.now, z.present);
    z.cutting = false;
    /* Only now: whatever the cut itself let go belonged to the epoch before. */
    z.present = old + 1;
    memset(&z.seen[old & 1], 0, sizeof(z.seen[0]));
    memset(z.sent_values, 0, sizeof(z.sent_values));
    if (z.a_known) {
        if (z.a_end > z.floor) {
            z.floor = z.a_end;
        }
        if (z.a_ack > z.seen[z.present & 1].ack) {
            z.seen[z.present & 1].ack = z.a_ack;
        }
    }
}

static void tick(uint8_t choice)
{
    uint64_t next = cmp_next_us(z.c);

    if (choice & 0x80 && next != UINT64_MAX) {
        z.now = next > z.now ? next : z.now;
        cmp_tick(z.c, z.now);
        check(cmp_next_us(z.c) > z.now, "a timer that does not go away");
    } else {
        z.now += choice * 50u;
        cmp_tick(z.c, z.now);
    }
}

static void drain(bool release)
{
    uint64_t id;

    z.draining = true;
    z.drain_release = release;
    cmp_drain(z.c, release);
    z.draining = false;
    for (id = 1; id <= z.primary_ids; id++) {
        check(z.sent[id].answered, "never answered");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cmp_limits limits = {
        .flows_max = 8,
        .bytes_max = BYTES_MAX,
        .frames_max = FRAMES_MAX,
        .deadline_min_us = 1000,
        .deadline_max_us = 10000,
        .hash_seed = 3,
    };
    struct cmp_stats stats;
    uint32_t i;

    memset(&z, 0, sizeof(z));
    for (i = 0; i < STREAM; i++) {
        stream[i] = (uint8_t)(i * 31 + i / 256);
    }
    z.data = data;
    z.size = size;
    z.present = 1;
    z.now = 1;
    check(!cmp_new(&z.c, &limits, on_action, NULL), "cmp_new");
    while (z.size && z.primary_ids + 2 < IDS_MAX && z.secondary_ids + 2 < IDS_MAX) {
        uint8_t op = take();

        switch (op & 15) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4:
            primary();
            break;
        case 5:
        case 6:
        case 7:
        case 8:
        case 9:
            secondary();
            break;
        case 10:
            input();
            break;
        case 11:
            if (op & 0xc0) {
                break; /* cuts and releases are rarer than frames */
            }
            cut();
            break;
        case 12:
            if (op & 0x80) {
                break;
            }
            z.releasing = z.present - (op & 0x10 ? 2 : 1);
            cmp_release_epoch(z.c, z.now, z.releasing);
            z.committed = z.releasing > z.committed && z.releasing < z.present ? z.releasing
                                                                               : z.committed;
            z.releasing = 0;
            break;
        case 13:
            cmp_hold(z.c, (op & 0xf0) == 0xf0);
            break;
        default:
            tick(take());
        }
        cmp_stats_get(z.c, &stats);
        check(stats.bytes <= BYTES_MAX, "bytes_max");
        check(stats.held <= FRAMES_MAX, "frames_max");
        check(stats.flows <= limits.flows_max, "flows_max");
    }
    drain(size & 1);
    cmp_stats_get(z.c, &stats);
    check(!stats.bytes && !stats.held && !stats.flows, "drain leaves something");
    check(cmp_next_us(z.c) == UINT64_MAX, "drain leaves a timer");
    cmp_free(z.c);
    return 0;
}
