/* blkring.c: see blkring.h.  Written from the contract in xen/io/blkif.h. */
#include "tools/remus/blkring.h"

#include <errno.h>
#include <string.h>
#include <xen/xen.h>
#include <xen/io/blkif.h>

#define HEADER_BYTES   64u          /* of the ring, before its slots */
#define REQ_PROD       0u
#define REQ_EVENT      4u
#define RSP_PROD       8u
#define RSP_EVENT      12u
#define SLOT_BYTES_MAX 112u
#define SEG_BYTES      8u
#define PAGE_SECTORS   (BLKRING_PAGE / BLKRING_SECTOR)
#define PAGE_SEGS      (BLKRING_PAGE / SEG_BYTES)

/* Where the fields stand: a 64 bit number is aligned to 8 bytes by one ABI, to 4 by the other. */
struct layout {
    uint32_t slot_bytes;
    uint32_t id, sector;            /* of every request */
    uint32_t segs;                  /* READ, WRITE, ... */
    uint32_t discard_sectors;
    uint32_t indirect_grefs;
};

static const struct layout layouts[] = {
    [BLKRING_X86_64] = { .slot_bytes = 112, .id = 8, .sector = 16, .segs = 24,
                         .discard_sectors = 24, .indirect_grefs = 28 },
    [BLKRING_X86_32] = { .slot_bytes = 108, .id = 4, .sector = 12, .segs = 20,
                         .discard_sectors = 20, .indirect_grefs = 24 },
};

_Static_assert(sizeof(struct blkif_request) == SLOT_BYTES_MAX, "this is an x86_64 program");
_Static_assert(offsetof(struct blkif_request, seg) == 24, "rw");
_Static_assert(offsetof(struct blkif_request_discard, nr_sectors) == 24, "discard");
_Static_assert(offsetof(struct blkif_request_indirect, indirect_grefs) == 28, "indirect");
_Static_assert(sizeof(struct blkif_request_segment) == SEG_BYTES, "segment");

/* A shared index is read once; the guest may write it at any time. */
static uint32_t index_read(const struct blkring *r, uint32_t offset)
{
    return __atomic_load_n((const uint32_t *)(const void *)(r->shared + offset), __ATOMIC_ACQUIRE);
}

static void index_write(const struct blkring *r, uint32_t offset, uint32_t value)
{
    __atomic_store_n((uint32_t *)(void *)(r->shared + offset), value, __ATOMIC_RELEASE);
}

static uint8_t *slot(const struct blkring *r, uint32_t index)
{
    return r->shared + HEADER_BYTES + (index & (r->slots - 1)) * layouts[r->abi].slot_bytes;
}

static uint16_t get16(const uint8_t *at)
{
    uint16_t v;

    memcpy(&v, at, sizeof(v));
    return v;
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t v;

    memcpy(&v, at, sizeof(v));
    return v;
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t v;

    memcpy(&v, at, sizeof(v));
    return v;
}

int blkring_attach(struct blkring *r, void *pages, uint32_t page_count, enum blkring_abi abi,
                   uint32_t domid)
{
    uint32_t fit;

    memset(r, 0, sizeof(*r));
    if (!page_count || page_count > BLKRING_PAGES_MAX || (page_count & (page_count - 1))) {
        return -EINVAL;
    }
    fit = (page_count * BLKRING_PAGE - HEADER_BYTES) / layouts[abi].slot_bytes;
    r->slots = 1;
    while (r->slots * 2 <= fit) {
        r->slots *= 2;
    }
    r->shared = pages;
    r->abi = abi;
    r->domid = domid;
    r->req_cons = r->rsp_prod = r->rsp_pushed = index_read(r, RSP_PROD);
    if (index_read(r, REQ_PROD) - r->rsp_prod > r->slots) {
        r->broken = true;
        return -EPROTO;
    }
    r->attached = true;
    return 0;
}

void blkring_detach(struct blkring *r)
{
    r->attached = false;
    r->shared = NULL;
}

int blkring_resume(struct blkring *r, uint32_t req_cons)
{
    const uint32_t taken = req_cons - r->rsp_prod, left = index_read(r, REQ_PROD) - req_cons;

    if (!r->attached || taken > r->slots || left > r->slots - taken) {
        return -EPROTO;
    }
    r->req_cons = req_cons;
    return 0;
}

bool blkring_drained(const struct blkring *r)
{
    return r->attached && r->req_cons == r->rsp_pushed && index_read(r, REQ_PROD) == r->req_cons;
}

/* Requests that may be taken: 0 also where the indices are nonsense, and the ring is broken. */
static uint32_t waiting(struct blkring *r)
{
    const uint32_t count = index_read(r, REQ_PROD) - r->req_cons;

    if (r->req_cons + count - r->rsp_prod > r->slots || count > r->slots) {
        r->broken = true;
        return 0;
    }
    return count;
}

void blkring_respond(struct blkring *r, uint64_t id, uint8_t operation, int16_t status)
{
    uint8_t *at = slot(r, r->rsp_prod++);

    /* id, operation, padding, status: the same in both layouts. */
    memcpy(at, &id, sizeof(id));
    at[8] = operation;
    at[9] = 0;
    memcpy(at + 10, &status, sizeof(status));
}

/* at: a segment as the guest describes it.  -EBADMSG: outside of its page. */
static int seg_add(struct blkring_request *q, const uint8_t *at)
{
    const uint8_t first = at[4], last = at[5];

    if (first > last || last >= PAGE_SECTORS) {
        return -EBADMSG;
    }
    q->seg[q->segs++] = (struct blkring_seg){
        .gref = get32(at), .first = first, .sectors = (uint8_t)(last - first + 1),
    };
    q->sectors += (uint64_t)(last - first + 1);
    return 0;
}

/* What is asked for lies on the disk, in whole sectors of its own. */
static int range_check(const struct blkring_disk *disk, const struct blkring_request *q)
{
    const uint64_t unit = disk->logical_bytes / BLKRING_SECTOR;

    if (q->sector > disk->sectors || q->sectors > disk->sectors - q->sector) {
        return -EBADMSG;
    }
    return unit > 1 && (q->sector % unit || q->sectors % unit) ? -EBADMSG : 0;
}

static int writable(const struct blkring_disk *disk, const struct blkring_request *q)
{
    return q->op == BLKRING_READ || q->op == BLKRING_FLUSH || !disk->read_only ? 0 : -EBADMSG;
}

static int take_data(const struct blkring_disk *disk, const struct layout *l, const uint8_t *at,
                     struct blkring_request *q)
{
    const uint32_t count = at[1];
    uint32_t i;

    if (count > BLKIF_MAX_SEGMENTS_PER_REQUEST || (!count && !q->barrier) || writable(disk, q)) {
        return -EBADMSG;
    }
    for (i = 0; i < count; i++) {
        if (seg_add(q, at + l->segs + i * SEG_BYTES)) {
            return -EBADMSG;
        }
    }
    /* A barrier without data may name any sector. */
    return q->sectors ? range_check(disk, q) : 0;
}

static int take_discard(const struct blkring_disk *disk, const struct layout *l, const uint8_t *at,
                        struct blkring_request *q)
{
    int rc;

    if (!disk->discard) {
        return -EOPNOTSUPP;
    }
    q->secure = at[1] & BLKIF_DISCARD_SECURE;
    q->sectors = get64(at + l->discard_sectors);
    rc = !q->sectors || writable(disk, q) ? -EBADMSG : range_check(disk, q);
    return !rc && q->secure && !disk->secure_discard ? -EOPNOTSUPP : rc;
}

static int take_indirect(const struct blkring_disk *disk, const struct layout *l,
                         const uint8_t *at, struct blkring_request *q)
{
    const uint32_t count = get16(at + 2);
    uint32_t i;

    if (!disk->segs_max) {
        return -EOPNOTSUPP;
    }
    if ((at[1] != BLKIF_OP_READ && at[1] != BLKIF_OP_WRITE) || !count || count > disk->segs_max ||
        count > BLKRING_SEGS_MAX) {
        return -EBADMSG;
    }
    q->op = at[1] == BLKIF_OP_READ ? BLKRING_READ : BLKRING_WRITE;
    q->operation = at[1];           /* what Linux's frontend expects in the answer */
    if (writable(disk, q) || q->sector >= disk->sectors) {
        return -EBADMSG;
    }
    q->indirect = (count + PAGE_SEGS - 1) / PAGE_SEGS;
    q->segs = count;                /* until blkring_indirect */
    for (i = 0; i < q->indirect; i++) {
        q->indirect_gref[i] = get32(at + l->indirect_grefs + i * sizeof(uint32_t));
    }
    return 0;
}

/* at: a private copy of the slot. */
static int parse(const struct blkring *r, const struct blkring_disk *disk, const uint8_t *at,
                 struct blkring_request *q)
{
    const struct layout *l = &layouts[r->abi];

    q->operation = at[0];
    q->id = get64(at + l->id);
    q->sector = get64(at + l->sector);
    q->sectors = 0;
    q->segs = q->indirect = 0;
    q->barrier = q->secure = false;
    switch (at[0]) {
    case BLKIF_OP_READ:
        q->op = BLKRING_READ;
        return take_data(disk, l, at, q);
    case BLKIF_OP_WRITE:
        q->op = BLKRING_WRITE;
        return take_data(disk, l, at, q);
    case BLKIF_OP_WRITE_BARRIER:
        q->op = BLKRING_WRITE;
        q->barrier = true;
        return disk->barrier ? take_data(disk, l, at, q) : -EOPNOTSUPP;
    case BLKIF_OP_FLUSH_DISKCACHE:
        /* Its segments and sector mean nothing, and Linux sends none. */
        q->op = BLKRING_FLUSH;
        return disk->flush ? 0 : -EOPNOTSUPP;
    case BLKIF_OP_DISCARD:
        q->op = BLKRING_DISCARD;
        return take_discard(disk, l, at, q);
    case BLKIF_OP_INDIRECT:
        return take_indirect(disk, l, at, q);
    default:
        return -EOPNOTSUPP;
    }
}

int blkring_take(struct blkring *r, const struct blkring_disk *disk,
                 struct blkring_request *request)
{
    uint8_t copy[SLOT_BYTES_MAX];
    int rc;

    if (!r->attached || r->broken) {
        return r->broken ? -EPROTO : 0;
    }
    if (!waiting(r)) {
        return r->broken ? -EPROTO : 0;
    }
    memset(copy, 0, sizeof(copy));
    memcpy(copy, slot(r, r->req_cons), layouts[r->abi].slot_bytes);
    /* The copy is what counts from here on, also for the compiler. */
    __asm__ volatile("" : : "r"(copy) : "memory");
    r->req_cons++;
    rc = parse(r, disk, copy, request);
    return rc ? rc : 1;
}

uint32_t blkring_page_bytes(const struct blkring_request *request, uint32_t i)
{
    const uint32_t rest = request->segs - i * PAGE_SEGS;

    return (rest < PAGE_SEGS ? rest : PAGE_SEGS) * SEG_BYTES;
}

int blkring_indirect(const struct blkring_disk *disk, struct blkring_request *request,
                     const uint8_t *pages)
{
    const uint32_t count = request->segs;
    uint32_t i;
    int rc = 0;

    request->segs = 0;
    request->sectors = 0;           /* also when it is done for the second time */
    for (i = 0; !rc && i < count; i++) {
        rc = seg_add(request, pages + i / PAGE_SEGS * BLKRING_PAGE + i % PAGE_SEGS * SEG_BYTES);
    }
    return rc ? rc : range_check(disk, request);
}

bool blkring_push(struct blkring *r)
{
    const uint32_t before = r->rsp_pushed, after = r->rsp_prod;

    index_write(r, RSP_PROD, after);
    r->rsp_pushed = after;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    /* The guest asked to hear of one among those that became visible. */
    return after - index_read(r, RSP_EVENT) < after - before;
}

bool blkring_more(struct blkring *r)
{
    if (!r->attached || r->broken) {
        return false;
    }
    if (index_read(r, REQ_PROD) != r->req_cons) {
        return true;
    }
    index_write(r, REQ_EVENT, r->req_cons + 1);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return index_read(r, REQ_PROD) != r->req_cons;
}
