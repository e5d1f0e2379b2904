/*
 * Fuzz target: a hostile frontend of a disk.
 *
 * First byte: layout, ring pages and what the disk can.  The rest is a script for a guest that owns
 * the ring's pages: each step is an operation byte and its operands.  Write anywhere, move an
 * index, let the backend take, answer and push.  What must hold: what is taken lies on the disk and
 * in its pages, and there are never more answers than requests.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/script.h"
#include "tools/remus/blkring.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds)
{
    if (!holds) {
        abort();
    }
}

static union { uint32_t index[4]; uint8_t bytes[4 * BLKRING_PAGE]; } pages;
static uint8_t indirect[8 * BLKRING_PAGE];

/* A good request, whose segments are complete. */
static void look_at(const struct blkring_disk *disk, const struct blkring_request *q)
{
    const uint64_t unit = disk->logical_bytes / BLKRING_SECTOR;
    uint64_t sum = 0;
    uint32_t i;

    must(q->segs <= BLKRING_SEGS_MAX);
    for (i = 0; i < q->segs; i++) {
        must(q->seg[i].sectors >= 1 && q->seg[i].first + q->seg[i].sectors <= 8);
        sum += q->seg[i].sectors;
    }
    must(q->op == BLKRING_DISCARD ? q->segs == 0 && q->sectors : sum == q->sectors);
    must(q->op == BLKRING_READ || q->op == BLKRING_FLUSH || !disk->read_only);
    if (q->sectors) {
        must(q->sector < disk->sectors && q->sectors <= disk->sectors - q->sector);
        must(q->sector % unit == 0 && q->sectors % unit == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct script s = { .at = data, .end = data + size };
    const uint32_t how = next(&s, 1);
    const struct blkring_disk disk = {
        .sectors = next(&s, 2), .logical_bytes = how & 2 ? 4096 : 512, .read_only = how & 4,
        .flush = how & 8, .barrier = how & 16, .discard = how & 32, .secure_discard = how & 32,
        .segs_max = how & 64 ? BLKRING_SEGS_MAX : 0,
    };
    struct blkring_request request;
    struct blkring ring, other;
    uint32_t taken = 0, answered = 0, i;
    int rc;

    memset(&pages, 0, sizeof(pages));
    pages.index[0] = pages.index[2] = next(&s, 1) - 4u;
    if (blkring_attach(&ring, &pages, how & 128 ? 4 : 1, how & 1 ? BLKRING_X86_32 : BLKRING_X86_64,
                       3)) {
        return 0;
    }
    while (s.at < s.end) {
        switch (next(&s, 1) & 7) {
        case 0:
        case 1:
            i = next(&s, 2) % sizeof(pages);
            pages.bytes[i] = (uint8_t)next(&s, 1);
            break;
        case 2:
            pages.index[0] += next(&s, 1);
            break;
        case 3:
            indirect[next(&s, 2) % sizeof(indirect)] = (uint8_t)next(&s, 1);
            break;
        case 4:
        case 5:
            rc = blkring_take(&ring, &disk, &request);
            if (!rc || rc == -EPROTO) {
                break;
            }
            taken++;                 /* good or bad, it owes its response */
            if (rc < 0) {
                break;
            }
            if (request.indirect) {
                must(request.indirect <= 8 && disk.segs_max);
                for (i = 0; i < request.indirect; i++) {
                    must(blkring_page_bytes(&request, i) <= BLKRING_PAGE);
                }
                if (blkring_indirect(&disk, &request, indirect)) {
                    break;
                }
            }
            look_at(&disk, &request);
            break;
        case 6:
            if (answered < taken) {
                blkring_respond(&ring, request.id, request.operation, 0);
                answered++;
            }
            break;
        case 7:
            blkring_push(&ring);
            blkring_more(&ring);
            if (!blkring_attach(&other, &pages, how & 128 ? 4 : 1,
                                how & 1 ? BLKRING_X86_32 : BLKRING_X86_64, 3) &&
                !blkring_resume(&other, next(&s, 1) + other.rsp_prod)) {
                must(other.req_cons - other.rsp_prod <= other.slots);
            }
            break;
        }
        must(ring.req_cons - ring.rsp_prod <= ring.slots);
    }
    blkring_detach(&ring);
    return 0;
}
