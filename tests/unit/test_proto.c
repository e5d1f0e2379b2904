/*
 * test_proto.c: link frames: what is encoded is decoded, in any split of the byte stream, and what
 * breaks a rule of docs/protocol.md is refused with a sentence.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "tools/libxl/remus_proto.h"

#define GFN_LIMIT  10000u
#define PAGE_LIMIT 5000u
#define BUFFER     (sizeof(struct remus_frame) + REMUS_FRAME_MAX)

#define TEST(name) static void name(void **state __attribute__((unused)))

/* ---- A stream of bytes and what is made of it ----------------------------------------------- */

struct stream { uint8_t *bytes; size_t length, room; };

static void append(struct stream *s, const void *data, size_t length)
{
    if (s->length + length > s->room) {
        s->room = 2 * (s->length + length);
        s->bytes = realloc(s->bytes, s->room);
        assert_non_null(s->bytes);
    }
    if (length) {
        memcpy(s->bytes + s->length, data, length);
    }
    s->length += length;
}

static void append_frame(struct stream *s, uint32_t type, uint64_t epoch, const void *payload,
                         uint32_t length)
{
    struct remus_frame f;

    remus_frame_header(&f, type, epoch, payload, length);
    append(s, &f, sizeof(f));
    append(s, payload, length);
}

static void fill_epoch(struct xc_sr_epoch *e, uint64_t number, uint64_t pages)
{
    static const uint32_t lengths[] = { 0, 100, REMUS_FRAME_MAX, 3 * REMUS_FRAME_MAX + 7 };
    uint8_t *data;

    xc_sr_epoch_reset(e, number);
    e->suspended_us = 1234;
    e->mode = REMUS_MODE_KEMARI;
    for (uint64_t i = 0; i < pages; i++) {
        assert_int_equal(xc_sr_epoch_add_page(e, 2 * i + 1, &data), 0);
        memset(data, i % 3 ? (int)(i & 0xff) : 0, XC_SR_PAGE_BYTES);
        if (i % 5 == 4) {
            memset(data, 0, XC_SR_PAGE_BYTES);
            data[XC_SR_PAGE_BYTES - 1] = 1; /* not zero, and only its last byte says so */
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(xc_sr_epoch_add_record(e, i + 1, lengths[i], &data), 0);
        for (uint32_t k = 0; k < lengths[i]; k++) {
            data[k] = (uint8_t)(k * 7 + i);
        }
    }
}

static struct remus_packer *packer; /* of what encode() makes; take() unpacks then */

static void encode(struct stream *s, const struct xc_sr_epoch *e)
{
    struct remus_epoch_encoder enc;
    uint8_t *buffer = malloc(BUFFER);
    uint32_t length;
    int rc;

    assert_non_null(buffer);
    remus_epoch_encode_begin(&enc, e, packer);
    do {
        rc = remus_epoch_encode_next(&enc, buffer, &length);
        assert_true(rc >= 0);
        append(s, buffer, length);
    } while (rc);
    assert_int_equal(remus_epoch_encode_next(&enc, buffer, &length), -EINVAL);
    assert_int_equal(enc.wire_bytes, s->length);
    assert_true(enc.wire_bytes == enc.plain_bytes || (packer && enc.wire_bytes < enc.plain_bytes));
    free(buffer);
}

/* Feeds the decoder in pieces of at most step bytes and the assembler with what comes out: the
 * assembler's last answer, or the decoder's error. */
static int take(const struct stream *s, size_t step, struct remus_assembler *a, char *error)
{
    struct remus_decoder *d;
    struct remus_frame frame;
    const uint8_t *payload;
    size_t at = 0, room;
    uint8_t *where;
    int rc, result = 0;

    assert_int_equal(remus_decoder_new(&d), 0);
    assert_int_equal(packer ? remus_decoder_unpack(d) : 0, 0);
    for (;;) {
        while ((rc = remus_decoder_next(d, &frame, &payload)) > 0 && result == 0) {
            result = remus_assembler_frame(a, &frame, payload);
        }
        if (rc < 0 || result < 0 || at == s->length) {
            break;
        }
        remus_decoder_room(d, &where, &room);
        assert_true(room > 0);
        room = room < step ? room : step;
        room = room < s->length - at ? room : s->length - at;
        memcpy(where, s->bytes + at, room);
        remus_decoder_filled(d, room);
        at += room;
    }
    snprintf(error, 160, "%s", rc < 0 ? remus_decoder_error(d) : a->error);
    remus_decoder_free(d);
    return rc < 0 ? rc : result;
}

static void same(const struct xc_sr_epoch *a, const struct xc_sr_epoch *b)
{
    assert_int_equal(a->pages, b->pages);
    assert_int_equal(a->record_count, b->record_count);
    assert_int_equal(a->suspended_us, b->suspended_us);
    assert_int_equal(a->mode, b->mode);
    if (a->pages) {
        assert_memory_equal(a->gfns, b->gfns, a->pages * sizeof(a->gfns[0]));
        assert_memory_equal(a->data, b->data, a->pages * XC_SR_PAGE_BYTES);
    }
    for (unsigned int i = 0; i < a->record_count; i++) {
        assert_int_equal(a->records[i].type, b->records[i].type);
        assert_int_equal(a->records[i].length, b->records[i].length);
        if (a->records[i].length) {
            assert_memory_equal(a->records[i].body, b->records[i].body, a->records[i].length);
        }
    }
}

static void round_trip(uint64_t pages, size_t step)
{
    struct xc_sr_epoch sent = { 0 }, got = { 0 };
    struct remus_assembler a;
    struct stream s = { 0 };
    char error[160];

    fill_epoch(&sent, 7, pages);
    encode(&s, &sent);
    xc_sr_epoch_reset(&got, 7);
    remus_assembler_begin(&a, &got, GFN_LIMIT, PAGE_LIMIT);
    assert_int_equal(take(&s, step, &a, error), 1);
    same(&sent, &got);
    free(s.bytes);
    xc_sr_epoch_free(&sent);
    xc_sr_epoch_free(&got);
}

/* ---- What is encoded is decoded ------------------------------------------------------------- */

TEST(an_epoch_survives_the_wire)
{
    round_trip(1000, SIZE_MAX);
}

TEST(an_epoch_survives_any_split_of_the_stream)
{
    static const size_t steps[] = { 7, 24, 25, 4096, 65536, 1000003 };

    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        round_trip(300, steps[i]);
    }
}

TEST(an_epoch_without_pages_survives)
{
    round_trip(0, SIZE_MAX);
}

TEST(frames_hold_as_many_pages_as_allowed_and_not_one_more)
{
    static const uint64_t pages[] = { 1, 239, 240, 241, 480 };

    for (size_t i = 0; i < 5; i++) {
        round_trip(pages[i], SIZE_MAX);
    }
}

TEST(zero_pages_are_flagged_and_not_carried)
{
    struct xc_sr_epoch e = { 0 };
    struct remus_epoch_encoder enc;
    uint8_t *buffer = malloc(BUFFER), *data;
    uint32_t length;
    uint64_t gfn;

    xc_sr_epoch_reset(&e, 1);
    for (uint64_t i = 0; i < 100; i++) {
        assert_int_equal(xc_sr_epoch_add_page(&e, i, &data), 0);
        memset(data, 0, XC_SR_PAGE_BYTES);
    }
    data[17] = 1;
    remus_epoch_encode_begin(&enc, &e, NULL);
    assert_int_equal(remus_epoch_encode_next(&enc, buffer, &length), 1);
    assert_int_equal(length, 24 + 8 + 100 * 8 + 4096);
    assert_int_equal(enc.zero_pages, 99);
    memcpy(&gfn, buffer + 24 + 8 + 98 * 8, 8);
    assert_true(gfn == (98 | REMUS_GFN_ZERO));
    memcpy(&gfn, buffer + 24 + 8 + 99 * 8, 8);
    assert_int_equal(gfn, 99);
    free(buffer);
    xc_sr_epoch_free(&e);
}

TEST(a_buffer_that_is_reused_holds_no_old_page)
{
    struct xc_sr_epoch sent = { 0 }, got = { 0 };
    struct remus_assembler a;
    char error[160];

    for (uint64_t n = 1; n < 4; n++) {
        struct stream s = { 0 };

        fill_epoch(&sent, n, n == 2 ? 400 : 100);
        encode(&s, &sent);
        xc_sr_epoch_reset(&got, n);
        remus_assembler_begin(&a, &got, GFN_LIMIT, PAGE_LIMIT);
        assert_int_equal(take(&s, SIZE_MAX, &a, error), 1);
        same(&sent, &got);
        free(s.bytes);
    }
    xc_sr_epoch_free(&sent);
    xc_sr_epoch_free(&got);
}

static int with_packer(void **state)
{
    (void)state;
    return remus_packer_new(&packer);
}

static int without_packer(void **state)
{
    (void)state;
    remus_packer_free(packer);
    packer = NULL;
    return 0;
}

static uint32_t first_type(const struct stream *s)
{
    struct remus_frame f;

    memcpy(&f, s->bytes, sizeof(f));
    return f.type;
}

TEST(compressed_pages_are_smaller_and_survive_any_split)
{
    static const size_t steps[] = { 1, 23, 4096, SIZE_MAX };
    struct xc_sr_epoch sent = { 0 }, got = { 0 };
    struct stream s = { 0 };
    struct remus_assembler a;
    char error[160];

    fill_epoch(&sent, 9, 700);
    encode(&s, &sent);
    assert_int_equal(first_type(&s), REMUS_FRAME_PAGES | REMUS_FRAME_LZ4);
    /* Most of what is left are the records, which are not compressed. */
    assert_true(s.length < 5 * REMUS_FRAME_MAX);
    for (unsigned int i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        xc_sr_epoch_reset(&got, 9);
        remus_assembler_begin(&a, &got, GFN_LIMIT, PAGE_LIMIT);
        assert_int_equal(take(&s, steps[i], &a, error), 1);
        same(&sent, &got);
    }
    free(s.bytes);
    xc_sr_epoch_free(&sent);
    xc_sr_epoch_free(&got);
}

TEST(pages_that_get_no_smaller_are_sent_as_they_are)
{
    struct xc_sr_epoch sent = { 0 }, got = { 0 };
    struct stream s = { 0 };
    struct remus_assembler a;
    uint64_t random = 1;
    char error[160];
    uint8_t *data;

    xc_sr_epoch_reset(&sent, 1);
    for (uint64_t i = 0; i < 300; i++) {
        assert_int_equal(xc_sr_epoch_add_page(&sent, i, &data), 0);
        for (unsigned int k = 0; k < XC_SR_PAGE_BYTES; k++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            data[k] = (uint8_t)(random >> 56);
        }
    }
    encode(&s, &sent);
    assert_int_equal(first_type(&s), REMUS_FRAME_PAGES);
    xc_sr_epoch_reset(&got, 1);
    remus_assembler_begin(&a, &got, GFN_LIMIT, PAGE_LIMIT);
    assert_int_equal(take(&s, SIZE_MAX, &a, error), 1);
    same(&sent, &got);
    free(s.bytes);
    xc_sr_epoch_free(&sent);
    xc_sr_epoch_free(&got);
}

TEST(an_epoch_without_a_number_is_not_encoded)
{
    struct xc_sr_epoch e = { 0 };
    struct remus_epoch_encoder enc;
    uint8_t buffer[64];
    uint32_t length;

    remus_epoch_encode_begin(&enc, &e, NULL);
    assert_int_equal(remus_epoch_encode_next(&enc, buffer, &length), -EINVAL);
}

/* ---- Single frames -------------------------------------------------------------------------- */

static int decode(const struct stream *s, struct remus_frame *frame, char *error)
{
    struct remus_decoder *d;
    const uint8_t *payload;
    uint8_t *where;
    size_t room, at = 0;
    int rc;

    assert_int_equal(remus_decoder_new(&d), 0);
    for (;;) {
        rc = remus_decoder_next(d, frame, &payload);
        if (rc || at == s->length) {
            break;
        }
        remus_decoder_room(d, &where, &room);
        room = room < s->length - at ? room : s->length - at;
        memcpy(where, s->bytes + at, room);
        remus_decoder_filled(d, room);
        at += room;
    }
    snprintf(error, 160, "%s", remus_decoder_error(d));
    if (rc < 0) {
        assert_int_equal(remus_decoder_next(d, frame, &payload), rc); /* a bad stream stays bad */
        remus_decoder_room(d, &where, &room);
        assert_int_equal(room, 0);
        assert_true(error[0]);
    }
    remus_decoder_free(d);
    return rc;
}

static int decode_one(uint32_t type, uint64_t epoch, uint32_t length)
{
    static const uint8_t zeros[8192];
    struct stream s = { 0 };
    struct remus_frame f;
    char error[160];
    int rc;

    append_frame(&s, type, epoch, zeros, length);
    rc = decode(&s, &f, error);
    if (rc == 1) {
        assert_int_equal(f.type, type);
        assert_int_equal(f.length, length);
        assert_int_equal(f.epoch, epoch);
    }
    free(s.bytes);
    return rc;
}

TEST(every_frame_type_has_its_lengths)
{
    static const struct { uint32_t type; uint64_t epoch; uint32_t good, bad; } f[] = {
        { REMUS_FRAME_HELLO, 0, sizeof(struct remus_hello), 47 },
        { REMUS_FRAME_HEARTBEAT, 0, sizeof(struct remus_heartbeat), 25 },
        { REMUS_FRAME_CONFIG, 0, 1, 0 },
        { REMUS_FRAME_STREAM, 0, 4096, 0 },
        { REMUS_FRAME_STREAM_END, 0, 8, 9 },
        { REMUS_FRAME_READY, 0, 0, 1 },
        { REMUS_FRAME_PAGES, 1, 16, 15 },
        { REMUS_FRAME_RECORD, 1, 16, 15 },
        { REMUS_FRAME_EPOCH_END, 1, sizeof(struct remus_epoch_end), 31 },
        { REMUS_FRAME_ACK, 1, 0, 1 },
        { REMUS_FRAME_APPLIED, 1, sizeof(struct remus_applied), 0 },
        { REMUS_FRAME_CHECKPOINT, 1, 1024, 1025 },
        { REMUS_FRAME_STOP, 0, 8, 7 },
        { REMUS_FRAME_STOP, 0, 8 + 1024, 8 + 1025 },
        { REMUS_FRAME_STOPPED, 0, 0, 1 },
        { REMUS_FRAME_ERROR, 0, 1024, 1025 },
    };

    for (size_t i = 0; i < sizeof(f) / sizeof(f[0]); i++) {
        assert_int_equal(decode_one(f[i].type, f[i].epoch, f[i].good), 1);
        assert_int_equal(decode_one(f[i].type, f[i].epoch, f[i].bad), -EPROTO);
    }
}

TEST(frames_of_an_epoch_need_its_number_and_others_must_have_none)
{
    assert_int_equal(decode_one(REMUS_FRAME_ACK, 0, 0), -EPROTO);
    assert_int_equal(decode_one(REMUS_FRAME_PAGES, 0, 16), -EPROTO);
    assert_int_equal(decode_one(REMUS_FRAME_READY, 1, 0), -EPROTO);
    assert_int_equal(decode_one(REMUS_FRAME_STREAM, 1, 10), -EPROTO);
    assert_int_equal(decode_one(REMUS_FRAME_HEARTBEAT, 9, 32), 1);
}

TEST(an_unknown_mandatory_type_is_refused)
{
    assert_int_equal(decode_one(0, 0, 0), -EPROTO);
    assert_int_equal(decode_one(7, 0, 0), -EPROTO);
    assert_int_equal(decode_one(35, 0, 0), -EPROTO);
    assert_int_equal(decode_one(0x7fffffff, 0, 0), -EPROTO);
}

TEST(an_unknown_optional_type_is_skipped)
{
    struct stream s = { 0 };
    struct remus_frame f;
    char error[160];

    append_frame(&s, REMUS_FRAME_OPTIONAL | 99, 5, "whatever", 8);
    append_frame(&s, REMUS_FRAME_OPTIONAL, 0, NULL, 0);
    append_frame(&s, REMUS_FRAME_STOPPED, 0, NULL, 0);
    assert_int_equal(decode(&s, &f, error), 1);
    assert_int_equal(f.type, REMUS_FRAME_STOPPED);
    free(s.bytes);
}

TEST(a_length_beyond_the_bound_is_refused_from_the_header_alone)
{
    struct remus_frame f = { .type = REMUS_FRAME_OPTIONAL | 1, .length = REMUS_FRAME_MAX + 1 };
    struct stream s = { 0 };
    char error[160];

    append(&s, &f, sizeof(f));
    assert_int_equal(decode(&s, &f, error), -EPROTO);
    free(s.bytes);
}

TEST(a_flipped_bit_anywhere_is_found)
{
    struct stream s = { 0 };
    struct remus_frame f;
    char error[160];

    append_frame(&s, REMUS_FRAME_ERROR, 3, "a sentence for the user", 23);
    for (size_t bit = 0; bit < s.length * 8; bit++) {
        int rc;

        s.bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        rc = decode(&s, &f, error);
        /* A longer length waits for bytes that do not come; nothing passes as good. */
        assert_true(rc <= 0);
        s.bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    assert_int_equal(decode(&s, &f, error), 1);
    free(s.bytes);
}

TEST(a_frame_of_another_epoch_has_another_checksum)
{
    struct remus_frame a, b;

    remus_frame_header(&a, REMUS_FRAME_ERROR, 1, "x", 1);
    remus_frame_header(&b, REMUS_FRAME_ERROR, 2, "x", 1);
    assert_true(a.checksum != b.checksum);
    remus_frame_header(&b, REMUS_FRAME_CHECKPOINT, 1, "x", 1);
    assert_true(a.checksum != b.checksum);
}

/* ---- Compressed frames ---------------------------------------------------------------------- */

static int decode_packed(uint32_t type, const uint8_t *packed, uint32_t length, bool expected,
                         char *error)
{
    struct remus_decoder *d;
    struct remus_frame frame;
    const uint8_t *payload;
    struct stream s = { 0 };
    uint8_t *where;
    size_t room;
    int rc;

    append_frame(&s, type, type == (REMUS_FRAME_STREAM | REMUS_FRAME_LZ4) ? 0 : 1, packed, length);
    assert_int_equal(remus_decoder_new(&d), 0);
    assert_int_equal(expected ? remus_decoder_unpack(d) : 0, 0);
    remus_decoder_room(d, &where, &room);
    assert_true(room >= s.length);
    memcpy(where, s.bytes, s.length);
    remus_decoder_filled(d, s.length);
    rc = remus_decoder_next(d, &frame, &payload);
    if (rc == 1) {
        assert_int_equal(frame.type | REMUS_FRAME_LZ4, type);
        for (uint32_t i = 0; i < frame.length; i++) {
            assert_int_equal(payload[i], (uint8_t)(i >> 4));
        }
        rc = (int)frame.length;
    }
    snprintf(error, 160, "%s", remus_decoder_error(d));
    remus_decoder_free(d);
    free(s.bytes);
    return rc;
}

TEST(a_compressed_frame_holds_what_it_says_or_is_refused)
{
    const uint32_t type = REMUS_FRAME_STREAM | REMUS_FRAME_LZ4;
    uint8_t plain[4000], packed[4000], bad[4000];
    struct remus_lz4 head;
    char error[160];
    uint32_t n;

    for (uint32_t i = 0; i < sizeof(plain); i++) {
        plain[i] = (uint8_t)(i >> 4);
    }
    n = remus_pack(packer, plain, sizeof(plain), packed);
    assert_true(n > sizeof(head) && n < sizeof(plain));
    assert_int_equal(decode_packed(type, packed, n, true, error), sizeof(plain));
    /* Only where HELLO has announced them, and only of these types. */
    assert_int_equal(decode_packed(type, packed, n, false, error), -EPROTO);
    assert_non_null(strstr(error, "unknown frame type"));
    assert_int_equal(decode_packed(REMUS_FRAME_RECORD | REMUS_FRAME_LZ4, packed, n, true, error),
                     -EPROTO);
    assert_int_equal(decode_packed(0x7 | REMUS_FRAME_LZ4, packed, n, true, error), -EPROTO);
    /* More, or less, than the block holds; none; more than any frame. */
    memcpy(bad, packed, n);
    for (unsigned int i = 0; i < 5; i++) {
        static const uint32_t lengths[] = { 3999, 4001, 0, REMUS_FRAME_MAX + 1, UINT32_MAX };

        head = (struct remus_lz4){ .length = lengths[i] };
        memcpy(bad, &head, sizeof(head));
        assert_int_equal(decode_packed(type, bad, n, true, error), -EPROTO);
        assert_non_null(strstr(error, "compressed STREAM"));
    }
    head = (struct remus_lz4){ .length = 4000, .reserved = 1 };
    memcpy(bad, &head, sizeof(head));
    assert_int_equal(decode_packed(type, bad, n, true, error), -EPROTO);
    /* Cut short; nothing but the head. */
    assert_int_equal(decode_packed(type, packed, n - 1, true, error), -EPROTO);
    assert_int_equal(decode_packed(type, packed, sizeof(head), true, error), -EPROTO);
}

TEST(what_is_short_is_not_compressed)
{
    uint8_t plain[300] = { 0 }, packed[300];

    assert_int_equal(remus_pack(packer, plain, 0, packed), 0);
    assert_int_equal(remus_pack(packer, plain, 100, packed), 0);
    assert_true(remus_pack(packer, plain, sizeof(plain), packed) > 0);
    assert_int_equal(remus_pack(NULL, plain, sizeof(plain), packed), 0);
}

TEST(bytes_beyond_the_room_are_refused)
{
    struct remus_decoder *d;
    struct remus_frame f;
    const uint8_t *payload;

    assert_int_equal(remus_decoder_new(&d), 0);
    remus_decoder_filled(d, 100u << 20);
    assert_int_equal(remus_decoder_next(d, &f, &payload), -EINVAL);
    remus_decoder_free(d);
}

/* ---- What an epoch may contain -------------------------------------------------------------- */

struct bench {
    struct xc_sr_epoch epoch;
    struct remus_assembler a;
};

static void bench_begin(struct bench *b)
{
    memset(b, 0, sizeof(*b));
    xc_sr_epoch_reset(&b->epoch, 5);
    remus_assembler_begin(&b->a, &b->epoch, GFN_LIMIT, PAGE_LIMIT);
}

static int give(struct bench *b, uint32_t type, uint64_t epoch, const void *payload,
                uint32_t length)
{
    struct remus_frame f;
    int rc;

    remus_frame_header(&f, type, epoch, payload, length);
    rc = remus_assembler_frame(&b->a, &f, payload);
    if (rc < 0) {
        assert_true(b->a.error[0]);
    }
    return rc;
}

static int give_pages(struct bench *b, uint32_t count, uint32_t reserved, uint64_t gfn,
                      uint32_t contents)
{
    struct remus_pages head = { .count = count, .reserved = reserved };
    struct stream s = { 0 };
    static const uint8_t page[XC_SR_PAGE_BYTES] = { 1 };
    int rc;

    append(&s, &head, sizeof(head));
    for (uint32_t i = 0; i < count && i < 300; i++) {
        append(&s, &gfn, sizeof(gfn));
    }
    for (uint32_t i = 0; i < contents; i++) {
        append(&s, page, sizeof(page));
    }
    rc = give(b, REMUS_FRAME_PAGES, 5, s.bytes, (uint32_t)s.length);
    free(s.bytes);
    return rc;
}

static int give_record(struct bench *b, uint32_t type, uint32_t total, uint32_t offset,
                       uint32_t body)
{
    struct remus_record head = { .type = type, .total = total, .offset = offset };
    static const uint8_t bytes[1000];
    struct stream s = { 0 };
    int rc;

    append(&s, &head, sizeof(head));
    append(&s, bytes, body);
    rc = give(b, REMUS_FRAME_RECORD, 5, s.bytes, (uint32_t)s.length);
    free(s.bytes);
    return rc;
}

static void refused(int (*attempt)(struct bench *b), const char *says)
{
    struct bench b;

    bench_begin(&b);
    assert_true(attempt(&b) < 0);
    if (!strstr(b.a.error, says)) {
        print_error("\"%s\" does not say \"%s\"\n", b.a.error, says);
        fail();
    }
    /* One bad frame: nothing of this epoch is taken any more. */
    assert_true(give_pages(&b, 1, 0, 1, 1) < 0);
    xc_sr_epoch_free(&b.epoch);
}

static int zero_count(struct bench *b) { return give_pages(b, 0, 0, 1, 1); }
static int count_too_big(struct bench *b) { return give_pages(b, 241, 0, 1 | REMUS_GFN_ZERO, 0); }
static int huge_count(struct bench *b) { return give_pages(b, UINT32_MAX, 0, 1, 0); }
static int reserved_set(struct bench *b) { return give_pages(b, 1, 1, 1, 1); }
static int gfn_at_limit(struct bench *b) { return give_pages(b, 1, 0, GFN_LIMIT, 1); }
static int gfn_flag_bits(struct bench *b) { return give_pages(b, 1, 0, 1 | 1ull << 60, 1); }
static int contents_missing(struct bench *b) { return give_pages(b, 2, 0, 1, 1); }
static int contents_of_zero(struct bench *b) { return give_pages(b, 1, 0, 1 | REMUS_GFN_ZERO, 1); }
static int contents_too_many(struct bench *b) { return give_pages(b, 1, 0, 1, 2); }

TEST(a_bad_count_of_pages_is_refused)
{
    refused(zero_count, "0 pages");
    refused(count_too_big, "241 pages");
    refused(huge_count, "4294967295 pages");
    refused(reserved_set, "reserved");
}

TEST(a_page_outside_of_the_guest_is_refused)
{
    refused(gfn_at_limit, "beyond");
    refused(gfn_flag_bits, "beyond");
}

TEST(a_length_that_does_not_fit_the_pages_is_refused)
{
    refused(contents_missing, "bytes long");
    refused(contents_of_zero, "bytes long");
    refused(contents_too_many, "bytes long");
}

TEST(more_pages_than_the_limit_are_refused)
{
    struct bench b;
    uint32_t given = 0;

    bench_begin(&b);
    b.a.page_limit = 500;
    while (given + 200 <= 500) {
        assert_int_equal(give_pages(&b, 200, 0, 1 | REMUS_GFN_ZERO, 0), 0);
        given += 200;
    }
    assert_true(give_pages(&b, 101, 0, 1 | REMUS_GFN_ZERO, 0) < 0);
    assert_non_null(strstr(b.a.error, "more than 500"));
    xc_sr_epoch_free(&b.epoch);
}

static int record_unknown(struct bench *b) { return give_record(b, 99, 10, 0, 10); }
static int record_type_zero(struct bench *b) { return give_record(b, 0, 10, 0, 10); }
static int record_odd_offsets(struct bench *b)
{
    return give_record(b, REMUS_RECORD_OFFSETS, sizeof(struct remus_offset) + 1, 0, 10);
}
static int record_too_big(struct bench *b)
{
    return give_record(b, 1, REMUS_RECORD_MAX + 1, 0, 10);
}
static int record_starts_late(struct bench *b) { return give_record(b, 1, 20, 10, 10); }
static int record_overflows(struct bench *b) { return give_record(b, 1, 9, 0, 10); }
static int record_wraps(struct bench *b)
{
    return give_record(b, 1, 100, 0, 50) ? 0 : give_record(b, 1, 100, UINT32_MAX - 5, 50);
}
static int record_gap(struct bench *b)
{
    return give_record(b, 1, 100, 0, 50) ? 0 : give_record(b, 1, 100, 51, 49);
}
static int record_fragment_empty(struct bench *b) { return give_record(b, 1, 100, 0, 0); }
static int record_twice(struct bench *b)
{
    return give_record(b, 1, 10, 0, 10) ? 0 : give_record(b, 1, 10, 0, 10);
}
static int record_empty_twice(struct bench *b)
{
    return give_record(b, 1, 0, 0, 0) ? 0 : give_record(b, 1, 0, 0, 0);
}
static int record_interrupted(struct bench *b)
{
    return give_record(b, 1, 100, 0, 50) ? 0 : give_record(b, 2, 100, 50, 50);
}
static int record_total_changes(struct bench *b)
{
    return give_record(b, 1, 100, 0, 50) ? 0 : give_record(b, 1, 200, 50, 50);
}
static int pages_in_record(struct bench *b)
{
    return give_record(b, 1, 100, 0, 50) ? 0 : give_pages(b, 1, 0, 1, 1);
}

TEST(a_bad_record_is_refused)
{
    refused(record_unknown, "unknown record type 99");
    refused(record_type_zero, "unknown record type 0");
    refused(record_too_big, "at most");
    refused(record_starts_late, "goes on at 10");
    refused(record_overflows, "fragment");
    refused(record_wraps, "goes on at");
    refused(record_gap, "goes on at 51");
    refused(record_fragment_empty, "fragment of 0");
    refused(record_twice, "twice");
    refused(record_empty_twice, "twice");
    refused(record_interrupted, "interrupts");
    refused(record_total_changes, "interrupts");
    refused(pages_in_record, "inside a record");
}

static struct remus_epoch_end good_end(const struct bench *b)
{
    return (struct remus_epoch_end){
        .pages = b->epoch.pages, .records = b->epoch.record_count, .checksum = b->a.checksums,
    };
}

static int end_wrong_pages(struct bench *b)
{
    struct remus_epoch_end e = good_end(b);

    e.pages++;
    return give(b, REMUS_FRAME_EPOCH_END, 5, &e, sizeof(e));
}
static int end_wrong_records(struct bench *b)
{
    struct remus_epoch_end e = good_end(b);

    e.records++;
    return give(b, REMUS_FRAME_EPOCH_END, 5, &e, sizeof(e));
}
static int end_wrong_checksum(struct bench *b)
{
    struct remus_epoch_end e = good_end(b);

    e.checksum++;
    return give(b, REMUS_FRAME_EPOCH_END, 5, &e, sizeof(e));
}
static int end_reserved(struct bench *b)
{
    struct remus_epoch_end e = good_end(b);

    e.reserved[2] = 1;
    return give(b, REMUS_FRAME_EPOCH_END, 5, &e, sizeof(e));
}
static int end_in_record(struct bench *b)
{
    struct remus_epoch_end e;

    if (give_record(b, 1, 100, 0, 50)) {
        return 0;
    }
    e = good_end(b);
    return give(b, REMUS_FRAME_EPOCH_END, 5, &e, sizeof(e));
}
static int end_short(struct bench *b)
{
    struct remus_epoch_end e = good_end(b);

    return give(b, REMUS_FRAME_EPOCH_END, 5, &e, sizeof(e) - 1);
}
static int other_epoch(struct bench *b) { return give(b, REMUS_FRAME_PAGES, 6, "", 0); }
static int other_type(struct bench *b) { return give(b, REMUS_FRAME_STREAM, 5, "x", 1); }
static int pages_short(struct bench *b) { return give(b, REMUS_FRAME_PAGES, 5, "1234567", 7); }
static int record_short(struct bench *b) { return give(b, REMUS_FRAME_RECORD, 5, "1234567", 7); }

TEST(a_bad_end_of_an_epoch_is_refused)
{
    refused(end_wrong_pages, "announced");
    refused(end_wrong_records, "announced");
    refused(end_wrong_checksum, "checksum");
    refused(end_reserved, "reserved");
    refused(end_in_record, "inside a record");
    refused(end_short, "EPOCH_END frame of");
}

TEST(a_frame_that_does_not_belong_to_the_epoch_is_refused)
{
    refused(other_epoch, "5 expected");
    refused(other_type, "inside an epoch");
    refused(pages_short, "PAGES frame of 7");
    refused(record_short, "RECORD frame of 7");
    refused(record_odd_offsets, "record of offsets has 57");
}

TEST(nothing_is_taken_after_the_end)
{
    struct remus_epoch_end e;
    struct bench b;

    bench_begin(&b);
    assert_int_equal(give_pages(&b, 1, 0, 1, 1), 0);
    assert_int_equal(give_record(&b, 4, 0, 0, 0), 0);
    e = good_end(&b);
    assert_int_equal(give(&b, REMUS_FRAME_EPOCH_END, 5, &e, sizeof(e)), 1);
    assert_true(give_pages(&b, 1, 0, 1, 1) < 0);
    assert_non_null(strstr(b.a.error, "after its end"));
    xc_sr_epoch_free(&b.epoch);
}

TEST(two_frames_that_change_places_are_found)
{
    struct xc_sr_epoch sent = { 0 }, got = { 0 };
    struct remus_assembler a;
    struct stream s = { 0 }, swapped = { 0 };
    struct remus_frame first;
    size_t one, two;
    char error[160];

    fill_epoch(&sent, 9, 480);
    encode(&s, &sent);
    memcpy(&first, s.bytes, sizeof(first));
    one = sizeof(first) + first.length;
    memcpy(&first, s.bytes + one, sizeof(first));
    two = sizeof(first) + first.length;
    append(&swapped, s.bytes + one, two);
    append(&swapped, s.bytes, one);
    append(&swapped, s.bytes + one + two, s.length - one - two);
    xc_sr_epoch_reset(&got, 9);
    remus_assembler_begin(&a, &got, GFN_LIMIT, PAGE_LIMIT);
    assert_int_equal(take(&swapped, SIZE_MAX, &a, error), -EBADMSG);
    free(s.bytes);
    free(swapped.bytes);
    xc_sr_epoch_free(&sent);
    xc_sr_epoch_free(&got);
}

/* ---- Speed, when asked for: test_proto --speed ---------------------------------------------- */

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void speed(void)
{
    struct xc_sr_epoch e = { 0 }, got = { 0 };
    struct remus_epoch_encoder enc;
    struct remus_assembler a;
    uint8_t *buffer = malloc(BUFFER), *data;
    struct stream s = { 0 };
    uint32_t length;
    char error[160];
    double began;
    int rc;

    xc_sr_epoch_reset(&e, 1);
    for (uint64_t i = 0; i < 32768; i++) {
        if (xc_sr_epoch_add_page(&e, i, &data)) {
            return;
        }
        for (unsigned int k = 0; k < XC_SR_PAGE_BYTES; k++) {
            data[k] = (uint8_t)(i + k);
        }
    }
    for (int round = 0; round < 3; round++) {
        began = seconds();
        remus_epoch_encode_begin(&enc, &e, NULL);
        do {
            rc = remus_epoch_encode_next(&enc, buffer, &length);
        } while (rc > 0);
        printf("encode 128 MiB: %.2f GiB/s\n", 0.125 / (seconds() - began));
    }
    encode(&s, &e);
    for (int round = 0; round < 3; round++) {
        xc_sr_epoch_reset(&got, 1);
        remus_assembler_begin(&a, &got, 32768, 32768);
        began = seconds();
        rc = take(&s, SIZE_MAX, &a, error);
        printf("decode and assemble 128 MiB: %.2f GiB/s (%d)\n", 0.125 / (seconds() - began), rc);
    }
    free(buffer);
    free(s.bytes);
    xc_sr_epoch_free(&e);
    xc_sr_epoch_free(&got);
}

#define T(name) cmocka_unit_test(name)
#define PACKED(name) cmocka_unit_test_setup_teardown(name, with_packer, without_packer)

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        T(an_epoch_survives_the_wire),
        T(an_epoch_survives_any_split_of_the_stream),
        T(an_epoch_without_pages_survives),
        T(frames_hold_as_many_pages_as_allowed_and_not_one_more),
        T(zero_pages_are_flagged_and_not_carried),
        T(a_buffer_that_is_reused_holds_no_old_page),
        PACKED(compressed_pages_are_smaller_and_survive_any_split),
        PACKED(pages_that_get_no_smaller_are_sent_as_they_are),
        PACKED(a_compressed_frame_holds_what_it_says_or_is_refused),
        PACKED(what_is_short_is_not_compressed),
        T(an_epoch_without_a_number_is_not_encoded),
        T(every_frame_type_has_its_lengths),
        T(frames_of_an_epoch_need_its_number_and_others_must_have_none),
        T(an_unknown_mandatory_type_is_refused),
        T(an_unknown_optional_type_is_skipped),
        T(a_length_beyond_the_bound_is_refused_from_the_header_alone),
        T(a_flipped_bit_anywhere_is_found),
        T(a_frame_of_another_epoch_has_another_checksum),
        T(bytes_beyond_the_room_are_refused),
        T(a_bad_count_of_pages_is_refused),
        T(a_page_outside_of_the_guest_is_refused),
        T(a_length_that_does_not_fit_the_pages_is_refused),
        T(more_pages_than_the_limit_are_refused),
        T(a_bad_record_is_refused),
        T(a_bad_end_of_an_epoch_is_refused),
        T(a_frame_that_does_not_belong_to_the_epoch_is_refused),
        T(nothing_is_taken_after_the_end),
        T(two_frames_that_change_places_are_found),
    };

    if (argc > 1 && !strcmp(argv[1], "--speed")) {
        speed();
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
