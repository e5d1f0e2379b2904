/*
 * remus_proto.h: link frames, encoded and decoded (docs/protocol.md; xen/include/public/remus.h).
 *
 * Pure: bytes in memory only.  A decoder takes any split of the byte stream, checks magic lengths
 * and checksums, and hands out one complete frame at a time; the epoch assembler turns PAGES and
 * RECORD frames into a struct xc_sr_epoch, all or nothing.
 */
#ifndef REMUS_PROTO_H
#define REMUS_PROTO_H

#include "tools/libxc/xc_sr.h"

/* ---- Encoding ---- */

/* Header for a payload that the caller sends after it. */
void remus_frame_header(struct remus_frame *out, uint32_t type, uint64_t epoch,
                        const void *payload, uint32_t length);

/* Compresses payloads; NULL where a function takes one: nothing is. */
struct remus_packer;
int remus_packer_new(struct remus_packer **out);
void remus_packer_free(struct remus_packer *packer);
/*
 * The compressed form (REMUS_FRAME_LZ4) of a payload of up to REMUS_FRAME_MAX bytes, in out, which
 * has room for as many: its bytes.  0: it would not be smaller by a sixteenth at least.
 */
uint32_t remus_pack(struct remus_packer *packer, const void *payload, uint32_t length,
                    uint8_t *out);

/*
 * Walks an epoch as a series of frames.  Each call gives one frame (header and payload) in a buffer
 * of the caller of at least sizeof(struct remus_frame) + REMUS_FRAME_MAX bytes: *length its
 * bytes; returns 1 while there are more, 0 when the EPOCH_END frame was given, negative errno.
 */
struct remus_epoch_encoder {
    const struct xc_sr_epoch *epoch;
    struct remus_packer *packer;
    uint64_t page;
    unsigned int record;
    uint32_t offset;
    uint64_t checksums;      /* running, see docs/protocol.md */
    uint64_t zero_pages;
    uint64_t wire_bytes;     /* of the frames, as they are sent */
    uint64_t plain_bytes;    /* as they would be without a packer */
    bool done;
};
void remus_epoch_encode_begin(struct remus_epoch_encoder *enc, const struct xc_sr_epoch *epoch,
                              struct remus_packer *packer);
int remus_epoch_encode_next(struct remus_epoch_encoder *enc, uint8_t *buffer, uint32_t *length)
    XC_SR_MUST_CHECK;

/* ---- Decoding ---- */

struct remus_decoder;
int remus_decoder_new(struct remus_decoder **out);
void remus_decoder_free(struct remus_decoder *d);
/* The peer may send compressed frames from here on (it said so in HELLO).  -ENOMEM. */
int remus_decoder_unpack(struct remus_decoder *d);
/* Where the next bytes from the socket should go, and how many fit. */
void remus_decoder_room(struct remus_decoder *d, uint8_t **where, size_t *room);
void remus_decoder_filled(struct remus_decoder *d, size_t bytes);
/* 1: *frame and *payload describe a complete, checked frame, valid until the next call of this
 * function; 0: more bytes are needed; negative errno: the stream is bad and stays so, text in
 * remus_decoder_error.  Type, length, epoch and checksum are checked here, the contents of a
 * payload are not.  Optional frames of unknown types are skipped.  A compressed frame is handed out
 * with the type and length of what it holds, and the checksum that it came with. */
int remus_decoder_next(struct remus_decoder *d, struct remus_frame *frame, const uint8_t **payload);
const char *remus_decoder_error(const struct remus_decoder *d);

struct remus_assembler {
    struct xc_sr_epoch *epoch;
    uint64_t checksums, bytes;
    uint64_t gfn_limit;      /* pages at or beyond are refused */
    uint64_t page_limit;     /* more pages than this in one epoch are refused */
    uint32_t record_at;      /* bytes of the present record that have come; 0: none open */
    bool open;
    char error[160];
};
/* The epoch was reset to the number that is expected; frames of any other are refused. */
void remus_assembler_begin(struct remus_assembler *a, struct xc_sr_epoch *epoch, uint64_t gfn_limit,
                           uint64_t page_limit);
/* 0: taken; 1: that was EPOCH_END and the epoch is complete; negative errno: refused, a->error, and
 * so is everything after it. */
int remus_assembler_frame(struct remus_assembler *a, const struct remus_frame *frame,
                          const uint8_t *payload) XC_SR_MUST_CHECK;

#endif /* REMUS_PROTO_H */
