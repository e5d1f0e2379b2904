/*
 * fuzz_proto.c: what a peer may send: the decoder and the assembler of epochs.
 *
 * The first input byte chooses how the rest is read:
 *   bit 0: 0 raw bytes of the link; 1 a list of frames (u8 type, u8 epoch, u16 length, payload), to
 *          which good headers are made here, so that the fuzzer gets past the checksums.  Bit 6 of
 *          the type stands for REMUS_FRAME_LZ4, bit 7 for REMUS_FRAME_OPTIONAL
 *   bit 1: EPOCH_END frames are completed with the right numbers and checksum
 *   bit 2: in a list, payloads of compressed frames are compressed here
 *   bits 3 to 7: how many bytes come at a time
 * A complete epoch is encoded again, compressed or not, decoded, and has to be the same.
 */
#include <stdlib.h>
#include <string.h>

#include "tools/libxl/remus_proto.h"

#define GFN_LIMIT  4096u
#define PAGE_LIMIT 2048u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct xc_sr_epoch epoch, again; /* room is kept: the fuzzer looks for more than malloc */
static uint8_t *frame_buffer;
static struct remus_packer *packer;

static void must(bool true_or_bug)
{
    if (!true_or_bug) {
        abort();
    }
}

static void encode_again(struct remus_packer *by)
{
    struct remus_epoch_encoder enc;
    struct remus_assembler a;
    struct remus_decoder *d;
    struct remus_frame frame;
    const uint8_t *payload;
    uint32_t length, done;
    uint8_t *where;
    size_t room;
    int rc, taken = 0;

    must(!remus_decoder_new(&d) && !remus_decoder_unpack(d));
    xc_sr_epoch_reset(&again, epoch.number);
    remus_assembler_begin(&a, &again, GFN_LIMIT, PAGE_LIMIT);
    remus_epoch_encode_begin(&enc, &epoch, by);
    do {
        rc = remus_epoch_encode_next(&enc, frame_buffer, &length);
        must(rc >= 0 && length <= sizeof(frame) + REMUS_FRAME_MAX);
        for (done = 0; done < length; done += (uint32_t)room) {
            must(!remus_decoder_next(d, &frame, &payload));
            remus_decoder_room(d, &where, &room);
            room = room < length - done ? room : length - done;
            memcpy(where, frame_buffer + done, room);
            remus_decoder_filled(d, room);
        }
        must(remus_decoder_next(d, &frame, &payload) == 1);
        taken = remus_assembler_frame(&a, &frame, payload);
        must(taken == !rc);
    } while (rc);
    remus_decoder_free(d);
    must(by ? enc.wire_bytes <= enc.plain_bytes : enc.wire_bytes == enc.plain_bytes);
    must(again.pages == epoch.pages && again.record_count == epoch.record_count);
    must(!again.pages || !memcmp(again.gfns, epoch.gfns, again.pages * sizeof(again.gfns[0])));
    must(!again.pages || !memcmp(again.data, epoch.data, again.pages * XC_SR_PAGE_BYTES));
}

static void take(struct remus_assembler *a, const struct remus_frame *frame,
                 const uint8_t *payload, bool complete)
{
    struct remus_epoch_end end = {
        .pages = epoch.pages, .records = epoch.record_count, .checksum = a->checksums,
    };
    int rc;

    if (complete && frame->type == REMUS_FRAME_EPOCH_END && frame->length == sizeof(end)) {
        payload = (const uint8_t *)&end;
    }
    rc = remus_assembler_frame(a, frame, payload);
    must(rc >= 0 || a->error[0]);
    if (rc == 1) {
        encode_again(epoch.number & 1 ? packer : NULL);
        xc_sr_epoch_reset(&epoch, epoch.number + 1);
        remus_assembler_begin(a, &epoch, GFN_LIMIT, PAGE_LIMIT);
    }
}

static void raw(struct remus_assembler *a, const uint8_t *data, size_t size, size_t step,
                bool complete)
{
    struct remus_decoder *d;
    struct remus_frame frame;
    const uint8_t *payload;
    size_t room;
    uint8_t *where;
    int rc;

    if (remus_decoder_new(&d) || remus_decoder_unpack(d)) {
        abort();
    }
    do {
        while ((rc = remus_decoder_next(d, &frame, &payload)) > 0) {
            take(a, &frame, payload, complete);
        }
        must(rc == 0 || remus_decoder_error(d)[0]);
        remus_decoder_room(d, &where, &room);
        must(rc < 0 || room);
        room = room < step ? room : step;
        room = room < size ? room : size;
        if (room) {
            memcpy(where, data, room);
        }
        remus_decoder_filled(d, room);
        data += room;
        size -= room;
    } while (rc == 0 && room);
    remus_decoder_free(d);
}

/* The list as a link would bring it: its bytes, in memory that the caller frees. */
static uint8_t *framed(const uint8_t *data, size_t size, bool compress, size_t *bytes)
{
    uint8_t *out = malloc(size * 7 + 64), *at = out; /* a header for each four bytes at the most */
    struct remus_frame frame;
    uint32_t length, type, packed;

    must(out != NULL);
    while (size >= 4) {
        length = (uint32_t)(data[2] | data[3] << 8);
        if (length > size - 4) {
            length = (uint32_t)(size - 4);
        }
        type = (uint32_t)(data[0] & 0x3f) | (data[0] & 0x40 ? REMUS_FRAME_LZ4 : 0) |
               (data[0] & 0x80 ? REMUS_FRAME_OPTIONAL : 0);
        packed = compress && type & REMUS_FRAME_LZ4
            ? remus_pack(packer, data + 4, length, at + sizeof(frame)) : 0;
        if (!packed && length) {
            memcpy(at + sizeof(frame), data + 4, length);
        }
        remus_frame_header(&frame, type, data[1], at + sizeof(frame), packed ? packed : length);
        memcpy(at, &frame, sizeof(frame));
        at += sizeof(frame) + frame.length;
        data += 4 + length;
        size -= 4 + length;
    }
    *bytes = (size_t)(at - out);
    return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct remus_assembler a;
    size_t step, bytes;
    uint8_t *list;

    if (!frame_buffer) {
        frame_buffer = malloc(sizeof(struct remus_frame) + REMUS_FRAME_MAX);
        must(frame_buffer != NULL && !remus_packer_new(&packer));
    }
    if (!size) {
        return 0;
    }
    xc_sr_epoch_reset(&epoch, 1);
    remus_assembler_begin(&a, &epoch, GFN_LIMIT, PAGE_LIMIT);
    step = 1 + 197 * (size_t)(data[0] >> 3);
    if (data[0] & 1) {
        list = framed(data + 1, size - 1, data[0] & 4, &bytes);
        raw(&a, list, bytes, step, data[0] & 2);
        free(list);
    } else {
        raw(&a, data + 1, size - 1, step, data[0] & 2);
    }
    return 0;
}
