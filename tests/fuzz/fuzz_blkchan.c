/* LINK: tools/remus/blkchan.c */
/*
 * Fuzz target: bytes from the other host's colo-blkd.
 *
 * First byte: role (bit 0), whether checksums are made right (bit 1; without that hardly any frame
 * would get far), how the rest is cut (bits 2 to 7, bytes per piece).  The frames that come out are
 * checked against what blkchan.h promises about them.
 */
#include <endian.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "tools/remus/blkchan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Goes from frame to frame, as far as their lengths lead. */
static void repair(uint8_t *bytes, size_t size)
{
    struct remus_disk_frame head;
    size_t at = 0;

    while (size - at >= sizeof(head)) {
        memcpy(&head, bytes + at, sizeof(head));
        if (le32toh(head.length) > size - at - sizeof(head)) {
            return;
        }
        head.checksum = 0;
        memcpy(bytes + at, &head, sizeof(head));
        head.checksum = htole64(XXH64(bytes + at, sizeof(head) + le32toh(head.length), 0));
        memcpy(bytes + at, &head, sizeof(head));
        at += sizeof(head) + le32toh(head.length);
    }
}

static volatile uint32_t sum;   /* every byte is read, for the address sanitizer */

static void examine(enum blkchan_role role, const struct remus_disk_frame *h,
                    const uint8_t *payload)
{
    uint32_t i;

    for (i = 0; i < h->length; i++) {
        sum = sum + payload[i];
    }
    switch (h->type) {
    case REMUS_DISK_WRITE:
        if (role != BLKCHAN_SECONDARY || !h->sectors || h->length != h->sectors * 512 ||
            h->length > REMUS_DISK_BYTES_MAX) {
            abort();
        }
        break;
    case REMUS_DISK_HASHES:
        if (role != BLKCHAN_SECONDARY || !h->sectors ||
            h->sectors > REMUS_DISK_BYTES_MAX / 512 || h->length % 8 ||
            h->length / 8 != (h->sectors + 127) / 128 ||
            h->length / 8 > REMUS_DISK_HASHES_MAX) {
            abort();
        }
        break;
    case REMUS_DISK_OPEN:
        if (role != BLKCHAN_SECONDARY || h->length != sizeof(struct remus_disk_open)) {
            abort();
        }
        break;
    case REMUS_DISK_RELATION:
        if (role != BLKCHAN_SECONDARY || h->length != REMUS_DISK_RELATION_BYTES) {
            abort();
        }
        break;
    case REMUS_DISK_INTENT:
    case REMUS_DISK_COLD:
        if (role != BLKCHAN_SECONDARY || h->length || h->sectors != 8192 || h->sector % 8192) {
            abort();
        }
        break;
    case REMUS_DISK_EPOCH:
    case REMUS_DISK_MARK:
    case REMUS_DISK_BASE:
        if (role != BLKCHAN_SECONDARY || h->length) {
            abort();
        }
        break;
    case REMUS_DISK_SYNCED:
        if (h->length) {
            abort();
        }
        break;
    case REMUS_DISK_WANT:
    case REMUS_DISK_CREDIT:
    case REMUS_DISK_KNOWN:
    case REMUS_DISK_SAFE:
    case REMUS_DISK_NOTED:
        if (role != BLKCHAN_PRIMARY || h->length) {
            abort();
        }
        break;
    default:
        abort();
    }
    if (h->sector + h->sectors < h->sector) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum blkchan_role role;
    struct blkchan *ch;
    uint8_t *bytes;
    size_t at = 0, piece;

    if (!size) {
        return 0;
    }
    role = data[0] & 1 ? BLKCHAN_SECONDARY : BLKCHAN_PRIMARY;
    piece = (size_t)(data[0] >> 2) + 1;
    bytes = malloc(size);
    if (!bytes || blkchan_new(&ch, -1, role)) {
        abort();
    }
    memcpy(bytes, data + 1, size - 1);
    if (data[0] & 2) {
        repair(bytes, size - 1);
    }
    while (at < size - 1) {
        struct remus_disk_frame head;
        const uint8_t *payload;
        size_t n = size - 1 - at < piece ? size - 1 - at : piece;
        int rc;

        at += blkchan_feed(ch, bytes + at, n);
        while ((rc = blkchan_next(ch, &head, &payload)) == 1) {
            examine(role, &head, payload);
        }
        if (rc < 0) {
            if (!blkchan_error(ch)[0]) {
                abort();
            }
            break;
        }
    }
    blkchan_free(ch);
    free(bytes);
    return 0;
}
