/*
 * remus_proto.c: link frames, encoded and decoded.  The specification is docs/protocol.md.
 *
 * A frame passes through memory as few times as can be: the encoder looks for zero pages (which
 * stops at the first words of almost every page that is not), then copies a page and hashes it
 * while it is in the first-level cache; the decoder hashes what each read brought.
 *
 * Everything that arrives is checked in two places, each complete in itself: frame_check() knows
 * what a header may say, the assembler what an epoch may contain.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lz4.h>
#include <xxhash.h>

#include "tools/libxl/remus_proto.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little endian");
_Static_assert(sizeof(struct remus_pages) + REMUS_PAGES_PER_FRAME * (8 + XC_SR_PAGE_BYTES) <=
               REMUS_FRAME_MAX, "a full frame of pages fits");

#define TEXT_MAX          1024u            /* of CHECKPOINT, STOP and ERROR */
#define EPOCH_MAX         UINT32_MAX       /* what the seed of a checksum covers */
#define READ_AHEAD        (64u << 10)      /* bytes asked for when no large frame is under way */
#define RECORD_BODY_MAX   (REMUS_FRAME_MAX - (uint32_t)sizeof(struct remus_record))

static uint64_t frame_seed(uint32_t type, uint64_t epoch)
{
    return type ^ (epoch << 32);
}

/* One link of the chain of checksums that EPOCH_END closes. */
static uint64_t chain(uint64_t checksums, uint64_t checksum)
{
    return XXH64(&checksum, sizeof(checksum), checksums);
}

/* ---- Encoding ------------------------------------------------------------------------------- */

void remus_frame_header(struct remus_frame *out, uint32_t type, uint64_t epoch,
                        const void *payload, uint32_t length)
{
    out->type = type;
    out->length = length;
    out->epoch = epoch;
    out->checksum = XXH64(length ? payload : "", length, frame_seed(type, epoch));
}

struct remus_packer {
    void *state;                 /* LZ4's */
    uint8_t *plain;              /* REMUS_FRAME_MAX: a payload before it is compressed */
};

int remus_packer_new(struct remus_packer **out)
{
    struct remus_packer *packer = calloc(1, sizeof(*packer));

    *out = NULL;
    if (!packer) {
        return -ENOMEM;
    }
    packer->state = malloc((size_t)LZ4_sizeofState());
    packer->plain = malloc(REMUS_FRAME_MAX);
    if (!packer->state || !packer->plain) {
        remus_packer_free(packer);
        return -ENOMEM;
    }
    *out = packer;
    return 0;
}

void remus_packer_free(struct remus_packer *packer)
{
    if (packer) {
        free(packer->state);
        free(packer->plain);
        free(packer);
    }
}

uint32_t remus_pack(struct remus_packer *packer, const void *payload, uint32_t length,
                    uint8_t *out)
{
    const struct remus_lz4 head = { .length = length };
    const uint32_t most = length - length / 16; /* with less to gain it is not worth the undoing */
    int n;

    if (!packer || length > REMUS_FRAME_MAX || length / 16 <= sizeof(head)) {
        return 0;
    }
    n = LZ4_compress_fast_extState(packer->state, payload, (char *)out + sizeof(head), (int)length,
                                   (int)(most - sizeof(head)), 1);
    if (n <= 0) {
        return 0;
    }
    memcpy(out, &head, sizeof(head));
    return (uint32_t)sizeof(head) + (uint32_t)n;
}

void remus_epoch_encode_begin(struct remus_epoch_encoder *enc, const struct xc_sr_epoch *epoch,
                              struct remus_packer *packer)
{
    memset(enc, 0, sizeof(*enc));
    enc->epoch = epoch;
    enc->packer = packer;
    enc->checksums = epoch->number;
}

static bool page_is_zero(const uint8_t *page)
{
    for (unsigned int i = 0; i < XC_SR_PAGE_BYTES; i += 64) {
        uint64_t w[8];

        memcpy(w, page + i, sizeof(w));
        if (w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7]) {
            return false;
        }
    }
    return true;
}

/* Header in front of a payload whose checksum is known. */
static void put_header(struct remus_epoch_encoder *enc, uint8_t *buffer, uint32_t type,
                       uint32_t payload, uint64_t checksum, uint32_t *length)
{
    struct remus_frame frame = {
        .type = type, .length = payload, .epoch = enc->epoch->number, .checksum = checksum,
    };

    memcpy(buffer, &frame, sizeof(frame));
    *length = (uint32_t)sizeof(frame) + payload;
    enc->wire_bytes += *length;
}

static void encode_pages(struct remus_epoch_encoder *enc, uint8_t *buffer, uint32_t *length)
{
    const struct xc_sr_epoch *epoch = enc->epoch;
    uint8_t *wire = buffer + sizeof(struct remus_frame), *at;
    uint8_t *payload = enc->packer ? enc->packer->plain : wire;
    uint32_t type = REMUS_FRAME_PAGES, bytes, packed;
    uint64_t left = epoch->pages - enc->page, gfns[REMUS_PAGES_PER_FRAME], checksum;
    struct remus_pages head = {
        .count = left < REMUS_PAGES_PER_FRAME ? (uint32_t)left : REMUS_PAGES_PER_FRAME,
    };
    const uint8_t *data = epoch->data + enc->page * XC_SR_PAGE_BYTES;

    for (uint32_t i = 0; i < head.count; i++) {
        gfns[i] = epoch->gfns[enc->page + i] & REMUS_GFN_MASK;
        if (page_is_zero(data + (size_t)i * XC_SR_PAGE_BYTES)) {
            gfns[i] |= REMUS_GFN_ZERO;
            enc->zero_pages++;
        }
    }
    memcpy(payload, &head, sizeof(head));
    at = payload + sizeof(head);
    memcpy(at, gfns, head.count * sizeof(gfns[0]));
    at += head.count * sizeof(gfns[0]);

    for (uint32_t i = 0; i < head.count; i++) {
        if (gfns[i] & REMUS_GFN_ZERO) {
            continue;
        }
        memcpy(at, data + (size_t)i * XC_SR_PAGE_BYTES, XC_SR_PAGE_BYTES);
        at += XC_SR_PAGE_BYTES;
    }
    bytes = (uint32_t)(at - payload);
    enc->plain_bytes += sizeof(struct remus_frame) + bytes;
    packed = remus_pack(enc->packer, payload, bytes, wire);
    if (packed) {
        type |= REMUS_FRAME_LZ4;
        bytes = packed;
    } else if (payload != wire) {
        memcpy(wire, payload, bytes);
    }
    checksum = XXH64(wire, bytes, frame_seed(type, epoch->number));
    enc->page += head.count;
    enc->checksums = chain(enc->checksums, checksum);
    put_header(enc, buffer, type, bytes, checksum, length);
}

static void encode_record(struct remus_epoch_encoder *enc, uint8_t *buffer, uint32_t *length)
{
    const struct xc_sr_record *record = &enc->epoch->records[enc->record];
    uint32_t left = record->length - enc->offset;
    uint32_t body = left < RECORD_BODY_MAX ? left : RECORD_BODY_MAX, payload_bytes;
    uint8_t *payload = buffer + sizeof(struct remus_frame);
    struct remus_record head = {
        .type = record->type, .total = record->length, .offset = enc->offset,
    };
    uint64_t checksum;

    memcpy(payload, &head, sizeof(head));
    if (body) {
        memcpy(payload + sizeof(head), record->body + enc->offset, body);
    }
    payload_bytes = (uint32_t)sizeof(head) + body;
    checksum = XXH64(payload, payload_bytes,
                                    frame_seed(REMUS_FRAME_RECORD, enc->epoch->number));
    enc->offset += body;
    if (enc->offset == record->length) {
        enc->offset = 0;
        enc->record++;
    }
    enc->checksums = chain(enc->checksums, checksum);
    enc->plain_bytes += sizeof(struct remus_frame) + payload_bytes;
    put_header(enc, buffer, REMUS_FRAME_RECORD, payload_bytes, checksum, length);
}

static void encode_end(struct remus_epoch_encoder *enc, uint8_t *buffer, uint32_t *length)
{
    struct remus_epoch_end end = {
        .pages = enc->epoch->pages,
        .records = enc->epoch->record_count,
        .checksum = enc->checksums,
        .suspended_us = enc->epoch->suspended_us,
        .mode = enc->epoch->mode,
    };

    memcpy(buffer + sizeof(struct remus_frame), &end, sizeof(end));
    put_header(enc, buffer, REMUS_FRAME_EPOCH_END, sizeof(end),
               XXH64(&end, sizeof(end),
                                    frame_seed(REMUS_FRAME_EPOCH_END, enc->epoch->number)),
               length);
    enc->plain_bytes += *length;
    enc->done = true;
}

int remus_epoch_encode_next(struct remus_epoch_encoder *enc, uint8_t *buffer, uint32_t *length)
{
    *length = 0;
    if (enc->done || !enc->epoch->number || enc->epoch->number > EPOCH_MAX) {
        return -EINVAL;
    }
    if (enc->page < enc->epoch->pages) {
        encode_pages(enc, buffer, length);
    } else if (enc->record < enc->epoch->record_count) {
        if (enc->epoch->records[enc->record].length > REMUS_RECORD_MAX) {
            return -EMSGSIZE; /* the peer would refuse it, and rightly */
        }
        encode_record(enc, buffer, length);
    } else {
        encode_end(enc, buffer, length);
    }
    /* A peer refuses an epoch beyond the bound: say so before it is sent. */
    if (enc->plain_bytes > REMUS_EPOCH_BYTES_MAX) {
        return -EFBIG;
    }
    return enc->done ? 0 : 1;
}

/* ---- Decoding ------------------------------------------------------------------------------- */

struct remus_decoder {
    uint8_t *buffer;             /* BUFFER_BYTES */
    size_t start, end;           /* bytes that came and were not handed out: [start, end) */
    size_t hashed;               /* payload bytes of the present frame in the hash state */
    bool checked;                /* the header at start is whole and passed frame_check() */
    struct remus_frame frame;    /* that header */
    uint8_t *unpacked;           /* REMUS_FRAME_MAX; NULL: compressed frames are not expected */
    XXH64_state_t *hash;
    int rc;                      /* a bad stream stays bad */
    char error[160];
};

#define BUFFER_BYTES (2 * sizeof(struct remus_frame) + REMUS_FRAME_MAX + READ_AHEAD)

int remus_decoder_new(struct remus_decoder **out)
{
    struct remus_decoder *d = calloc(1, sizeof(*d));

    *out = NULL;
    if (!d) {
        return -ENOMEM;
    }
    d->buffer = malloc(BUFFER_BYTES);
    d->hash = XXH64_createState();
    if (!d->buffer || !d->hash) {
        remus_decoder_free(d);
        return -ENOMEM;
    }
    *out = d;
    return 0;
}

void remus_decoder_free(struct remus_decoder *d)
{
    if (d) {
        XXH64_freeState(d->hash);
        free(d->buffer);
        free(d->unpacked);
        free(d);
    }
}

int remus_decoder_unpack(struct remus_decoder *d)
{
    if (!d->unpacked) {
        d->unpacked = malloc(REMUS_FRAME_MAX);
    }
    return d->unpacked ? 0 : -ENOMEM;
}

const char *remus_decoder_error(const struct remus_decoder *d)
{
    return d->error;
}

__attribute__((format(printf, 3, 4)))
static int decoder_bad(struct remus_decoder *d, int rc, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(d->error, sizeof(d->error), format, args);
    va_end(args);
    d->rc = rc;
    return rc;
}

/*
 * No more is asked for than the rest of a large frame and one header, so that next to nothing has
 * to be moved to the front of the buffer when the frame has been handed out.
 */
void remus_decoder_room(struct remus_decoder *d, uint8_t **where, size_t *room)
{
    size_t want = READ_AHEAD, have = d->end - d->start, need;

    *where = d->buffer + d->end;
    if (d->rc) {
        *room = 0;
        return;
    }
    need = sizeof(d->frame) + (d->checked ? d->frame.length : 0);
    if (need > have && need - have + sizeof(d->frame) > want) {
        want = need - have + sizeof(d->frame);
    }
    *room = want < BUFFER_BYTES - d->end ? want : BUFFER_BYTES - d->end;
}

void remus_decoder_filled(struct remus_decoder *d, size_t bytes)
{
    if (bytes > BUFFER_BYTES - d->end) {
        decoder_bad(d, -EINVAL, "more bytes filled in than there was room for");
    } else {
        d->end += bytes;
    }
}

enum epoch_rule { EPOCH_NONE, EPOCH_NUMBER, EPOCH_ANY };

static const struct frame_rule {
    const char *name;
    uint32_t shortest, longest;
    enum epoch_rule epoch;
} frame_rules[] = {
    [REMUS_FRAME_HELLO] = { "HELLO", sizeof(struct remus_hello), sizeof(struct remus_hello),
                            EPOCH_NONE },
    [REMUS_FRAME_HEARTBEAT] = { "HEARTBEAT", sizeof(struct remus_heartbeat),
                                sizeof(struct remus_heartbeat), EPOCH_ANY },
    [REMUS_FRAME_CONFIG] = { "CONFIG", 1, REMUS_FRAME_MAX, EPOCH_NONE },
    [REMUS_FRAME_STREAM] = { "STREAM", 1, REMUS_FRAME_MAX, EPOCH_NONE },
    [REMUS_FRAME_STREAM_END] = { "STREAM_END", 8, 8, EPOCH_NONE },
    [REMUS_FRAME_READY] = { "READY", 0, 0, EPOCH_NONE },
    [REMUS_FRAME_PAGES] = { "PAGES", sizeof(struct remus_pages) + 8, REMUS_FRAME_MAX,
                            EPOCH_NUMBER },
    [REMUS_FRAME_RECORD] = { "RECORD", sizeof(struct remus_record), REMUS_FRAME_MAX,
                             EPOCH_NUMBER },
    [REMUS_FRAME_EPOCH_END] = { "EPOCH_END", sizeof(struct remus_epoch_end),
                                sizeof(struct remus_epoch_end), EPOCH_NUMBER },
    [REMUS_FRAME_ACK] = { "ACK", 0, 0, EPOCH_NUMBER },
    [REMUS_FRAME_APPLIED] = { "APPLIED", sizeof(struct remus_applied),
                              sizeof(struct remus_applied), EPOCH_NUMBER },
    [REMUS_FRAME_CHECKPOINT] = { "CHECKPOINT", 0, TEXT_MAX, EPOCH_ANY },
    [REMUS_FRAME_STOP] = { "STOP", sizeof(struct remus_stop),
                           sizeof(struct remus_stop) + TEXT_MAX, EPOCH_ANY },
    [REMUS_FRAME_STOPPED] = { "STOPPED", 0, 0, EPOCH_ANY },
    [REMUS_FRAME_ERROR] = { "ERROR", 0, TEXT_MAX, EPOCH_ANY },
};

/* NULL: no such type. */
static const struct frame_rule *rule_of(uint32_t type)
{
    return type < sizeof(frame_rules) / sizeof(frame_rules[0]) && frame_rules[type].name
        ? &frame_rules[type] : NULL;
}

/* All that a header may say, before a byte of its payload is looked at. */
static int frame_check(struct remus_decoder *d)
{
    const struct remus_frame *f = &d->frame;
    const uint32_t packed = d->unpacked ? f->type & REMUS_FRAME_LZ4 : 0, type = f->type ^ packed;
    const struct frame_rule *rule;

    if (f->length > REMUS_FRAME_MAX) {
        return decoder_bad(d, -EPROTO, "frame of type %#x is %u bytes long, at most %u allowed",
                           f->type, f->length, REMUS_FRAME_MAX);
    }
    if (f->epoch > EPOCH_MAX) {
        return decoder_bad(d, -EPROTO, "frame of type %#x carries epoch %" PRIu64, f->type,
                           f->epoch);
    }
    if (f->type & REMUS_FRAME_OPTIONAL) {
        return 0;
    }
    rule = rule_of(type);
    if (!rule || (packed && type != REMUS_FRAME_PAGES && type != REMUS_FRAME_STREAM)) {
        return decoder_bad(d, -EPROTO, "unknown frame type %#x", f->type);
    }
    if (packed ? f->length <= sizeof(struct remus_lz4)
               : f->length < rule->shortest || f->length > rule->longest) {
        return decoder_bad(d, -EPROTO, "%s frame is %u bytes long, %u to %u allowed", rule->name,
                           f->length, rule->shortest, rule->longest);
    }
    if (rule->epoch == EPOCH_NONE ? f->epoch != 0 : rule->epoch == EPOCH_NUMBER && !f->epoch) {
        return decoder_bad(d, -EPROTO, "%s frame carries epoch %" PRIu64, rule->name, f->epoch);
    }
    return 0;
}

/* What a compressed frame holds has to be what its type may have, as long as it says. */
static int unpack(struct remus_decoder *d, const uint8_t *body, struct remus_frame *frame)
{
    const struct frame_rule *rule = rule_of(frame->type ^ REMUS_FRAME_LZ4);
    struct remus_lz4 head;
    int n;

    memcpy(&head, body, sizeof(head));
    if (head.reserved || head.length < rule->shortest || head.length > rule->longest) {
        return decoder_bad(d, -EPROTO, "compressed %s frame says %u bytes, %u to %u allowed, "
                           "reserved %#x", rule->name, head.length, rule->shortest, rule->longest,
                           head.reserved);
    }
    n = LZ4_decompress_safe((const char *)body + sizeof(head), (char *)d->unpacked,
                            (int)(frame->length - sizeof(head)), (int)head.length);
    if (n < 0 || (uint32_t)n != head.length) {
        return decoder_bad(d, -EPROTO, "compressed %s frame does not hold the %u bytes that it "
                           "says", rule->name, head.length);
    }
    frame->type ^= REMUS_FRAME_LZ4;
    frame->length = head.length;
    return 0;
}

int remus_decoder_next(struct remus_decoder *d, struct remus_frame *frame, const uint8_t **payload)
{
    const uint8_t *body;
    size_t have, fresh;
    uint64_t checksum;
    int rc;

    *payload = NULL;
    for (;;) {
        if (d->rc) {
            return d->rc;
        }
        have = d->end - d->start;
        if (!d->checked) {
            if (have < sizeof(d->frame)) {
                break;
            }
            memcpy(&d->frame, d->buffer + d->start, sizeof(d->frame));
            rc = frame_check(d);
            if (rc) {
                return rc;
            }
            d->checked = true;
            d->hashed = 0;
            XXH64_reset(d->hash, frame_seed(d->frame.type, d->frame.epoch));
        }
        have -= sizeof(d->frame);
        if (have > d->frame.length) {
            have = d->frame.length;
        }
        body = d->buffer + d->start + sizeof(d->frame);
        fresh = have - d->hashed;
        if (fresh) {
            XXH64_update(d->hash, body + d->hashed, fresh);
            d->hashed += fresh;
        }
        if (have < d->frame.length) {
            break;
        }
        checksum = XXH64_digest(d->hash);
        if (checksum != d->frame.checksum) {
            return decoder_bad(d, -EBADMSG, "frame of type %#x, epoch %" PRIu64 ": checksum %#"
                               PRIx64 ", %#" PRIx64 " computed", d->frame.type, d->frame.epoch,
                               d->frame.checksum, checksum);
        }
        d->start += sizeof(d->frame) + d->frame.length;
        d->checked = false;
        if (d->frame.type & REMUS_FRAME_OPTIONAL) {
            continue; /* this version knows none */
        }
        *frame = d->frame;
        *payload = body;
        if (frame->type & REMUS_FRAME_LZ4) {
            rc = unpack(d, body, frame);
            if (rc) {
                return rc;
            }
            *payload = d->unpacked;
        }
        return 1;
    }
    /* What was handed out is used by now: the rest moves to the front, where a frame fits. */
    if (d->start) {
        memmove(d->buffer, d->buffer + d->start, d->end - d->start);
        d->end -= d->start;
        d->start = 0;
    }
    return 0;
}

/* ---- Assembling an epoch -------------------------------------------------------------------- */

void remus_assembler_begin(struct remus_assembler *a, struct xc_sr_epoch *epoch,
                           uint64_t gfn_limit, uint64_t page_limit)
{
    memset(a, 0, sizeof(*a));
    a->epoch = epoch;
    a->gfn_limit = gfn_limit;
    a->page_limit = page_limit;
    a->checksums = epoch->number;
    a->open = true;
}

__attribute__((format(printf, 3, 4)))
static int assembler_bad(struct remus_assembler *a, int rc, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(a->error, sizeof(a->error), format, args);
    va_end(args);
    a->open = false; /* an epoch with one bad frame is no epoch, whatever follows */
    return rc;
}

/* Complete check of a PAGES frame; only then is a page of it taken. */
static int pages_check(struct remus_assembler *a, const struct remus_frame *frame,
                       const uint8_t *payload, struct remus_pages *head)
{
    uint64_t gfn, length;
    uint32_t contents = 0;

    if (frame->length < sizeof(*head)) {
        return assembler_bad(a, -EPROTO, "PAGES frame of %u bytes", frame->length);
    }
    memcpy(head, payload, sizeof(*head));
    if (!head->count || head->count > REMUS_PAGES_PER_FRAME || head->reserved) {
        return assembler_bad(a, -EPROTO, "PAGES frame of %u pages, 1 to %u allowed, reserved %#x",
                             head->count, REMUS_PAGES_PER_FRAME, head->reserved);
    }
    length = sizeof(*head) + (uint64_t)head->count * sizeof(gfn);
    if (frame->length < length) {
        return assembler_bad(a, -EPROTO, "PAGES frame of %u pages is %u bytes long", head->count,
                             frame->length);
    }
    if (head->count > a->page_limit - a->epoch->pages) {
        return assembler_bad(a, -EPROTO, "epoch %" PRIu64 " carries more than %" PRIu64 " pages",
                             frame->epoch, a->page_limit);
    }
    for (uint32_t i = 0; i < head->count; i++) {
        memcpy(&gfn, payload + sizeof(*head) + i * sizeof(gfn), sizeof(gfn));
        if ((gfn & ~REMUS_GFN_ZERO) >= a->gfn_limit ||
            (gfn & ~(REMUS_GFN_ZERO | REMUS_GFN_MASK))) {
            return assembler_bad(a, -EPROTO, "page %#llx lies beyond the guest's memory of %#"
                                 PRIx64 " pages", gfn & ~REMUS_GFN_ZERO, a->gfn_limit);
        }
        contents += !(gfn & REMUS_GFN_ZERO);
    }
    length += (uint64_t)contents * XC_SR_PAGE_BYTES;
    if (frame->length != length) {
        return assembler_bad(a, -EPROTO, "PAGES frame of %u pages, %u with contents, is %u bytes "
                             "long", head->count, contents, frame->length);
    }
    return 0;
}

static int take_pages(struct remus_assembler *a, const struct remus_frame *frame,
                      const uint8_t *payload)
{
    const uint8_t *gfns = payload + sizeof(struct remus_pages), *contents;
    struct remus_pages head;
    uint64_t gfn;
    uint8_t *data;
    int rc;

    if (a->record_at) {
        return assembler_bad(a, -EPROTO, "PAGES frame inside a record");
    }
    rc = pages_check(a, frame, payload, &head);
    if (rc) {
        return rc;
    }
    contents = gfns + head.count * sizeof(gfn);
    for (uint32_t i = 0; i < head.count; i++) {
        memcpy(&gfn, gfns + i * sizeof(gfn), sizeof(gfn));
        rc = xc_sr_epoch_add_page(a->epoch, gfn & REMUS_GFN_MASK, &data);
        if (rc) {
            return assembler_bad(a, rc, "no memory for page %" PRIu64 " of epoch %" PRIu64,
                                 a->epoch->pages, frame->epoch);
        }
        if (gfn & REMUS_GFN_ZERO) {
            memset(data, 0, XC_SR_PAGE_BYTES);
        } else {
            memcpy(data, contents, XC_SR_PAGE_BYTES);
            contents += XC_SR_PAGE_BYTES;
        }
    }
    return 0;
}

static int record_begin(struct remus_assembler *a, const struct remus_record *head)
{
    uint8_t *body;
    int rc;

    if (head->type < REMUS_RECORD_HVM_CONTEXT || head->type > REMUS_RECORD_OFFSETS) {
        return assembler_bad(a, -EPROTO, "unknown record type %u", head->type);
    }
    if (head->type == REMUS_RECORD_DISKS && head->total != sizeof(uint64_t)) {
        return assembler_bad(a, -EPROTO, "record of disks has %u bytes", head->total);
    }
    if (head->type == REMUS_RECORD_OFFSETS && head->total % sizeof(struct remus_offset)) {
        return assembler_bad(a, -EPROTO, "record of offsets has %u bytes", head->total);
    }
    if (head->total > REMUS_RECORD_MAX) {
        return assembler_bad(a, -EPROTO, "record of type %u has %u bytes, at most %u allowed",
                             head->type, head->total, REMUS_RECORD_MAX);
    }
    if (xc_sr_epoch_find(a->epoch, head->type)) {
        return assembler_bad(a, -EPROTO, "record of type %u came twice", head->type);
    }
    if (a->epoch->record_count >= XC_SR_EPOCH_RECORDS) {
        return assembler_bad(a, -EPROTO, "more than %u records", XC_SR_EPOCH_RECORDS);
    }
    rc = xc_sr_epoch_add_record(a->epoch, head->type, head->total, &body);
    if (rc) {
        return assembler_bad(a, rc, "no memory for a record of type %u", head->type);
    }
    return 0;
}

static int take_record(struct remus_assembler *a, const struct remus_frame *frame,
                       const uint8_t *payload)
{
    struct remus_record head;
    struct xc_sr_record *record;
    uint32_t body;
    int rc;

    if (frame->length < sizeof(head)) {
        return assembler_bad(a, -EPROTO, "RECORD frame of %u bytes", frame->length);
    }
    memcpy(&head, payload, sizeof(head));
    body = frame->length - (uint32_t)sizeof(head);
    if (head.reserved) {
        return assembler_bad(a, -EPROTO, "RECORD frame with reserved %#x", head.reserved);
    }
    if (head.offset != a->record_at) {
        return assembler_bad(a, -EPROTO, "record of type %u goes on at %u, %u expected", head.type,
                             head.offset, a->record_at);
    }
    /* A fragment that carries nothing would never end a record; only an empty record may. */
    if (body > head.total || head.offset > head.total - body || (!body && head.total)) {
        return assembler_bad(a, -EPROTO, "record of type %u: fragment of %u bytes at %u of %u",
                             head.type, body, head.offset, head.total);
    }
    if (!a->record_at) {
        rc = record_begin(a, &head);
        if (rc) {
            return rc;
        }
    }
    record = &a->epoch->records[a->epoch->record_count - 1];
    if (record->type != head.type || record->length != head.total) {
        return assembler_bad(a, -EPROTO, "record of type %u, %u bytes, interrupts one of type %u, "
                             "%u bytes", head.type, head.total, record->type, record->length);
    }
    if (body) {
        memcpy(record->body + head.offset, payload + sizeof(head), body);
    }
    a->record_at = head.offset + body == head.total ? 0 : head.offset + body;
    return 0;
}

static int take_end(struct remus_assembler *a, const struct remus_frame *frame,
                    const uint8_t *payload)
{
    struct remus_epoch_end end;

    if (frame->length != sizeof(end)) {
        return assembler_bad(a, -EPROTO, "EPOCH_END frame of %u bytes", frame->length);
    }
    if (a->record_at) {
        return assembler_bad(a, -EPROTO, "epoch %" PRIu64 " ends inside a record", frame->epoch);
    }
    memcpy(&end, payload, sizeof(end));
    if (end.pages != a->epoch->pages || end.records != a->epoch->record_count) {
        return assembler_bad(a, -EPROTO, "epoch %" PRIu64 " brought %" PRIu64 " pages and %u "
                             "records, %" PRIu64 " and %" PRIu64 " announced", frame->epoch,
                             a->epoch->pages, a->epoch->record_count, end.pages, end.records);
    }
    if (end.checksum != a->checksums) {
        return assembler_bad(a, -EBADMSG, "epoch %" PRIu64 ": checksum %#" PRIx64 ", %#" PRIx64
                             " computed", frame->epoch, end.checksum, a->checksums);
    }
    if (end.reserved[0] || end.reserved[1] || end.reserved[2]) {
        return assembler_bad(a, -EPROTO, "epoch %" PRIu64 ": reserved octets of its end are used",
                             frame->epoch);
    }
    a->epoch->suspended_us = end.suspended_us;
    a->epoch->mode = end.mode;
    a->open = false;
    return 1;
}

int remus_assembler_frame(struct remus_assembler *a, const struct remus_frame *frame,
                          const uint8_t *payload)
{
    int rc;

    if (!a->open) {
        if (!a->error[0]) {
            return assembler_bad(a, -EPROTO, "frame of epoch %" PRIu64 " after its end",
                                 frame->epoch);
        }
        return -EPROTO;
    }
    if (frame->epoch != a->epoch->number) {
        return assembler_bad(a, -EPROTO, "frame of epoch %" PRIu64 ", %" PRIu64 " expected",
                             frame->epoch, a->epoch->number);
    }
    a->bytes += frame->length;
    if (a->bytes > REMUS_EPOCH_BYTES_MAX) {
        return assembler_bad(a, -EPROTO, "epoch %" PRIu64 " is larger than %llu bytes",
                             frame->epoch, (unsigned long long)REMUS_EPOCH_BYTES_MAX);
    }
    switch (frame->type) {
    case REMUS_FRAME_PAGES:
        rc = take_pages(a, frame, payload);
        break;
    case REMUS_FRAME_RECORD:
        rc = take_record(a, frame, payload);
        break;
    case REMUS_FRAME_EPOCH_END:
        return take_end(a, frame, payload);
    default:
        return assembler_bad(a, -EPROTO, "frame of type %#x inside an epoch", frame->type);
    }
    if (!rc) {
        a->checksums = chain(a->checksums, frame->checksum);
    }
    return rc;
}
