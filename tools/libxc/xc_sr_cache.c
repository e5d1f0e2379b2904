/*
 * xc_sr_cache.c: foreign mappings of guest pages, kept.
 *
 * Mapping is the dear part of reading a guest's memory, so a mapping once made is used until the
 * budget forces it out or the guest's physmap is seen to change.  A chunk is mapped as a whole;
 * gfns of it that hold no page are remembered as such.  A chunk without any page keeps its entry
 * (and its place in the budget) but no address space.
 *
 * Chunks hang in a hash table by number, in one list by use, newest first, and in a ring in which
 * each has its turn to be probed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tools/libxc/xc_sr_private.h"

#define CHUNK_PAGES XC_SR_CACHE_CHUNK_PAGES

struct chunk {
    uint64_t number;    /* first gfn / CHUNK_PAGES */
    uint8_t *base;      /* NULL: not a single page */
    unsigned int pages; /* mapped */
    struct chunk *hash_next;
    struct chunk *newer, *older;
    struct chunk *ring_next, *ring_prev;
    int error[CHUNK_PAGES];    /* 0, or the negative errno that _get returns */
    bool probed;               /* present[] is known */
    bool present[CHUNK_PAGES]; /* as of the last probe */
};

struct xc_sr_cache {
    struct xc_sr_handles h;
    uint64_t chunks, chunks_max;
    uint64_t buckets; /* power of two */
    struct chunk **bucket;
    struct chunk *newest, *oldest;
    struct chunk *spare; /* entries without mapping, for reuse; linked by hash_next */
    bool extent_known;
    struct xc_sr_extent extent; /* as of the last revalidation */
    struct chunk *probe;        /* the chunk that the next revalidation looks at */
    struct xc_sr_cache_stats stats;
};

int xc_sr_cache_new(struct xc_sr_cache **out, const struct xc_sr_handles *h, uint64_t budget_pages)
{
    struct xc_sr_cache *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    c->h = *h;
    c->chunks_max = budget_pages / CHUNK_PAGES;
    if (!c->chunks_max)
        c->chunks_max = 1;
    c->stats.budget_pages = c->chunks_max * CHUNK_PAGES;
    c->buckets = 64;
    while (c->buckets < c->chunks_max && c->buckets < (1u << 20))
        c->buckets *= 2;
    c->bucket = calloc(c->buckets, sizeof(*c->bucket));
    if (!c->bucket) {
        free(c);
        return -ENOMEM;
    }
    *out = c;
    return 0;
}

static struct chunk **bucket_of(struct xc_sr_cache *c, uint64_t number)
{
    return &c->bucket[number & (c->buckets - 1)];
}

static struct chunk *find(struct xc_sr_cache *c, uint64_t number)
{
    struct chunk *k;

    if (c->newest && c->newest->number == number)
        return c->newest;
    for (k = *bucket_of(c, number); k; k = k->hash_next)
        if (k->number == number)
            return k;
    return NULL;
}

static void list_remove(struct xc_sr_cache *c, struct chunk *k)
{
    if (k->newer)
        k->newer->older = k->older;
    else
        c->newest = k->older;
    if (k->older)
        k->older->newer = k->newer;
    else
        c->oldest = k->newer;
}

static void list_add(struct xc_sr_cache *c, struct chunk *k)
{
    k->newer = NULL;
    k->older = c->newest;
    if (c->newest)
        c->newest->newer = k;
    else
        c->oldest = k;
    c->newest = k;
}

/* A new chunk's turn comes last. */
static void ring_add(struct xc_sr_cache *c, struct chunk *k)
{
    if (!c->probe) {
        k->ring_next = k->ring_prev = k;
        c->probe = k;
        return;
    }
    k->ring_next = c->probe;
    k->ring_prev = c->probe->ring_prev;
    k->ring_prev->ring_next = k;
    c->probe->ring_prev = k;
}

static void ring_remove(struct xc_sr_cache *c, struct chunk *k)
{
    if (c->probe == k)
        c->probe = k->ring_next == k ? NULL : k->ring_next;
    k->ring_prev->ring_next = k->ring_next;
    k->ring_next->ring_prev = k->ring_prev;
}

/* Takes a chunk out of every structure and unmaps it; its entry becomes a spare. */
static void drop(struct xc_sr_cache *c, struct chunk *k)
{
    struct chunk **link = bucket_of(c, k->number);

    while (*link != k)
        link = &(*link)->hash_next;
    *link = k->hash_next;
    list_remove(c, k);
    ring_remove(c, k);
    if (k->base && xenforeignmemory_unmap(c->h.fmem, k->base, CHUNK_PAGES))
        xc_sr_log(&c->h, XC_SR_WARN, "cannot unmap gfn 0x%lx of domain %u: %s",
                  (unsigned long)(k->number * CHUNK_PAGES), c->h.domid, strerror(errno));
    c->stats.mapped_pages -= k->pages;
    c->chunks--;
    k->hash_next = c->spare;
    c->spare = k;
}

static void drop_all(struct xc_sr_cache *c)
{
    while (c->oldest)
        drop(c, c->oldest);
}

static int map(struct xc_sr_cache *c, struct chunk *k)
{
    xen_pfn_t gfns[CHUNK_PAGES];

    for (unsigned int i = 0; i < CHUNK_PAGES; i++)
        gfns[i] = k->number * CHUNK_PAGES + i;
    memset(k->error, 0, sizeof(k->error));
    k->base = xenforeignmemory_map(c->h.fmem, c->h.domid, PROT_READ | PROT_WRITE, CHUNK_PAGES, gfns,
                                   k->error);
    if (!k->base)
        return errno ? -errno : -EIO;

    k->pages = 0;
    for (unsigned int i = 0; i < CHUNK_PAGES; i++) {
        /* Where a guest has no page, Xen answers EINVAL; positive and negative have been seen. */
        if (!k->error[i])
            k->pages++;
        else if (abs(k->error[i]) == EINVAL || abs(k->error[i]) == ENOENT)
            k->error[i] = -ENOENT;
        else
            k->error[i] = -abs(k->error[i]);
    }
    if (!k->pages) {
        xenforeignmemory_unmap(c->h.fmem, k->base, CHUNK_PAGES);
        k->base = NULL;
    }
    return 0;
}

static int load(struct xc_sr_cache *c, uint64_t number, struct chunk **out)
{
    struct chunk *k;
    int rc;

    /* What a later revalidation compares with has to be older than the first mapping. */
    if (!c->extent_known) {
        rc = xc_sr_extent_read(&c->extent, &c->h);
        if (rc)
            return rc;
        c->extent_known = true;
    }
    while (c->chunks >= c->chunks_max) {
        drop(c, c->oldest);
        c->stats.evictions++;
    }
    k = c->spare;
    if (k) {
        c->spare = k->hash_next;
    } else {
        k = malloc(sizeof(*k));
        if (!k)
            return -ENOMEM;
    }
    k->number = number;
    k->probed = false;
    rc = map(c, k);
    if (rc == -ENOMEM && c->chunks) {
        /* Address space or page tables of this host are short: all we hold is worth less. */
        c->stats.evictions += c->chunks;
        drop_all(c);
        rc = map(c, k);
    }
    if (rc) {
        xc_sr_log(&c->h, XC_SR_ERROR, "cannot map gfn 0x%lx of domain %u: %s",
                  (unsigned long)(number * CHUNK_PAGES), c->h.domid, strerror(-rc));
        k->hash_next = c->spare;
        c->spare = k;
        return rc;
    }
    k->hash_next = *bucket_of(c, number);
    *bucket_of(c, number) = k;
    list_add(c, k);
    ring_add(c, k);
    c->chunks++;
    c->stats.mapped_pages += k->pages;
    *out = k;
    return 0;
}

int xc_sr_cache_get(struct xc_sr_cache *c, uint64_t gfn, void **page)
{
    uint64_t number = gfn / CHUNK_PAGES;
    unsigned int index = gfn % CHUNK_PAGES;
    struct chunk *k = find(c, number);

    *page = NULL;
    if (k) {
        c->stats.hits++;
        if (k != c->newest) {
            list_remove(c, k);
            list_add(c, k);
        }
    } else {
        int rc = load(c, number, &k);

        c->stats.misses++;
        if (rc)
            return rc;
    }
    if (k->error[index])
        return k->error[index];
    *page = k->base + (size_t)index * XC_SR_PAGE_BYTES;
    return 0;
}

void xc_sr_cache_invalidate(struct xc_sr_cache *c, uint64_t gfn, uint64_t count)
{
    uint64_t first = gfn / CHUNK_PAGES, last;
    struct chunk *k, *newer;

    if (!count)
        return;
    last = gfn + (count - 1) < gfn ? UINT64_MAX / CHUNK_PAGES : (gfn + (count - 1)) / CHUNK_PAGES;
    /* The range may be far larger than the cache: walk what there is. */
    for (k = c->oldest; k; k = newer) {
        newer = k->newer;
        if (k->number >= first && k->number <= last) {
            drop(c, k);
            c->stats.invalidations++;
        }
    }
}

void xc_sr_cache_invalidate_all(struct xc_sr_cache *c)
{
    c->stats.invalidations += c->chunks;
    drop_all(c);
}

/*
 * Does one mapped chunk, another one at each call, still have its pages where they were when it
 * was looked at before?  Needed because a page that the guest has given back stays on Xen's
 * account of the guest for as long as we map it: the count does not show that by itself.  The
 * comparison is with an earlier look and not with the mapping, because pages that Xen provides
 * (shared_info, grant table) can be mapped and still do not count as present.
 */
static int probe(struct xc_sr_cache *c, bool *moved)
{
    struct chunk *k = c->probe;
    uint64_t gfns[CHUNK_PAGES];
    bool present[CHUNK_PAGES];
    int rc;

    *moved = false;
    if (!k)
        return 0;
    c->probe = k->ring_next;

    for (unsigned int i = 0; i < CHUNK_PAGES; i++)
        gfns[i] = k->number * CHUNK_PAGES + i;
    rc = xc_sr_pages_present(&c->h, gfns, CHUNK_PAGES, present);
    if (rc)
        return rc;
    for (unsigned int i = 0; i < CHUNK_PAGES; i++)
        if (present[i] && k->error[i])
            *moved = true;
    if (k->probed && memcmp(present, k->present, sizeof(present)))
        *moved = true;
    memcpy(k->present, present, sizeof(present));
    k->probed = true;
    return 0;
}

int xc_sr_cache_revalidate(struct xc_sr_cache *c, bool *changed)
{
    struct xc_sr_extent extent;
    bool moved;
    int rc;

    *changed = false;
    rc = xc_sr_extent_read(&extent, &c->h);
    if (rc)
        return rc;
    rc = probe(c, &moved);
    if (rc)
        return rc;
    if (c->extent_known &&
        (moved || extent.pages != c->extent.pages || extent.max_gfn != c->extent.max_gfn)) {
        xc_sr_log(&c->h, XC_SR_INFO,
                  "physmap of domain %u changed: %lu pages up to gfn 0x%lx, now %lu up to 0x%lx",
                  c->h.domid, (unsigned long)c->extent.pages, (unsigned long)c->extent.max_gfn,
                  (unsigned long)extent.pages, (unsigned long)extent.max_gfn);
        xc_sr_cache_invalidate_all(c);
        *changed = true;
    }
    c->extent = extent;
    c->extent_known = true;
    return 0;
}

void xc_sr_cache_stats(const struct xc_sr_cache *c, struct xc_sr_cache_stats *out)
{
    *out = c->stats;
}

void xc_sr_cache_free(struct xc_sr_cache *c)
{
    if (!c)
        return;
    drop_all(c);
    while (c->spare) {
        struct chunk *k = c->spare;

        c->spare = k->hash_next;
        free(k);
    }
    free(c->bucket);
    free(c);
}
