/*
 * blkring.h: the shared ring of a paravirtual disk, seen from the backend.
 *
 * Layout and rules are those of xen/io/blkif.h and xen/io/ring.h.  Nothing here makes a system
 * call: the caller hands in the mapped ring pages, runs the grant copies and the disk's I/O, and
 * sends the notifications that are asked for.  The other end is a guest that may be hostile: each
 * request is copied once and validated completely, and only the copy is used.
 *
 * A bad request is to be answered with an error and nothing else.  Only indices that cannot be
 * (more requests than the ring has slots) make a ring `broken`: it is left alone until the next
 * attach, because no slot can be trusted any more.
 *
 * Sectors have 512 bytes, whatever the disk's own are (blkif.h).
 */
#ifndef REMUS_BLKRING_H
#define REMUS_BLKRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLKRING_PAGE        4096u
#define BLKRING_PAGES_MAX   16u     /* ring-page-order up to 4 */
#define BLKRING_SECTOR      512u
#define BLKRING_SEGS_MAX    256u    /* of one request: feature-max-indirect-segments */

/* How the guest lays out a slot: the node `protocol` of its frontend. */
enum blkring_abi { BLKRING_X86_64, BLKRING_X86_32 };

/* What the backend has told the frontend about the disk.  A guest may break its word. */
struct blkring_disk {
    uint64_t sectors;               /* capacity */
    uint32_t logical_bytes;         /* sector-size: 512 to 4096; requests are multiples of it */
    bool read_only;
    bool flush, barrier, discard, secure_discard;
    uint32_t segs_max;              /* of an indirect request; 0: none; at most BLKRING_SEGS_MAX */
};

struct blkring {
    uint8_t *shared;
    enum blkring_abi abi;
    uint32_t domid;
    uint32_t slots;
    uint32_t req_cons, rsp_prod;
    uint32_t rsp_pushed;            /* the responses that the guest can see */
    bool attached, broken;
};

enum blkring_op { BLKRING_READ, BLKRING_WRITE, BLKRING_FLUSH, BLKRING_DISCARD };

struct blkring_seg {
    uint32_t gref;
    uint8_t first, sectors;         /* of the page's eight */
};

struct blkring_request {
    uint64_t id;
    uint8_t operation;              /* for the response: the guest's, of INDIRECT the inner one */
    enum blkring_op op;
    bool barrier;                   /* WRITE: what came before is durable first, this before more */
    bool secure;                    /* DISCARD */
    uint64_t sector;
    uint64_t sectors;               /* 0: FLUSH, or a barrier without data */
    uint32_t segs;
    uint32_t indirect;              /* pages that hold the segments; see blkring_indirect */
    uint32_t indirect_gref[8];
    struct blkring_seg seg[BLKRING_SEGS_MAX];
};

/*
 * Takes over a ring of so many contiguous pages (a power of two) at its present state: requests up
 * to rsp_prod are done, what follows is to be worked on.  That is right only for a ring that its
 * last backend drained: responses come in any order, and overwrite the requests' slots.
 * 0; -EPROTO: the indices cannot be; -EINVAL: pages.
 */
int blkring_attach(struct blkring *r, void *pages, uint32_t page_count, enum blkring_abi abi,
                   uint32_t domid);
void blkring_detach(struct blkring *r);
/*
 * Of a backend that died: after blkring_attach(), goes on behind the requests that it had taken.
 * They owe their answers still; where their slots were is not theirs any more, so whoever took them
 * must have kept them.  -EPROTO: no backend of this ring can have come that far.
 */
int blkring_resume(struct blkring *r, uint32_t req_cons);

/* Whether the ring's requests all have their responses: what a checkpoint needs. */
bool blkring_drained(const struct blkring *r);

/*
 * Next request.  1: *request is filled and owes blkring_respond().  With .indirect, its segments
 * are still in the guest: the caller copies that many pages (blkring_page_bytes() each of what
 * counts) and calls blkring_indirect().  -EBADMSG, -EOPNOTSUPP: no good; it owes its response too,
 * and only .id and .operation mean something.  0: nothing more.  -EPROTO: broken.
 */
int blkring_take(struct blkring *r, const struct blkring_disk *disk,
                 struct blkring_request *request);

/* Bytes of the i-th indirect page that hold segments. */
uint32_t blkring_page_bytes(const struct blkring_request *request, uint32_t i);

/* pages: the contents, BLKRING_PAGE apart.  0: the request is complete; -EBADMSG: no good. */
int blkring_indirect(const struct blkring_disk *disk, struct blkring_request *request,
                     const uint8_t *pages);

/* status: BLKIF_RSP_OKAY, _ERROR or _EOPNOTSUPP.  Not visible before blkring_push(). */
void blkring_respond(struct blkring *r, uint64_t id, uint8_t operation, int16_t status);
/* Makes responses visible; true: the guest wants a notification. */
bool blkring_push(struct blkring *r);
/* Asks for a notification with the next request; true: there is one already. */
bool blkring_more(struct blkring *r);

#endif /* REMUS_BLKRING_H */
