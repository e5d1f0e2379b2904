/*
 * xc_sr_primary.c: what the primary does while its guest is stopped: copying what changed.
 *
 * Everything that can be done before or after the stop is done there: the grant table stays mapped,
 * guest pages stay mapped (page-mapping cache), buffers keep their size.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/libxc/xc_sr_guest.h" /* first: Xen's headers need its types */

#include <xen/hvm/params.h>
#include <xen/io/ring.h>
#include <xenguest.h>
#include <xxhash.h>


struct xc_sr_primary {
    const struct xc_sr_handles *h;
    struct xc_sr_primary_params params;
    struct xc_sr_physmap physmap;
    struct xc_sr_dirty dirty;
    struct xc_sr_grants grants;
    uint64_t always[XC_SR_ALWAYS_MAX];
    unsigned int always_fixed, always_count; /* fixed: those that are not rings */
    uint64_t *staged;           /* --verify: one bit per gfn, pages of the present epoch */
    uint32_t context_room;
    unsigned int ports;         /* event channels in use at the last look */
    struct remus_evtchn evtchn[XC_SR_EVTCHN_MAX];
};

/* Pages that every epoch carries, whatever the guest does. */
static int find_always(struct xc_sr_primary *p)
{
    static const uint32_t params[] = { HVM_PARAM_STORE_PFN, HVM_PARAM_CONSOLE_PFN };
    unsigned int i;
    int rc = xc_sr_shared_info_gfn(p->h, &p->always[p->always_fixed++]);

    if (rc)
        return rc;
    for (i = 0; i < sizeof(params) / sizeof(params[0]); i++) {
        uint64_t gfn = 0;

        if (xc_hvm_param_get(p->h->xch, p->h->domid, params[i], &gfn))
            return -errno;
        if (gfn)
            p->always[p->always_fixed++] = gfn;
    }
    p->always_count = p->always_fixed;
    return 0;
}

/* Maps what fits the budget, so that the first checkpoint need not do it with a stopped guest. */
static int warm_cache(struct xc_sr_primary *p)
{
    struct xc_sr_cache_stats stats;
    uint64_t gfn;

    for (gfn = 0; gfn < p->physmap.gfns; gfn++) {
        void *page;
        int rc;

        if (!xc_sr_bit(p->physmap.present, gfn))
            continue;
        rc = xc_sr_cache_get(p->params.cache, gfn, &page);
        if (rc)
            return rc;
        /* the rest of this chunk came with it */
        gfn |= XC_SR_CACHE_CHUNK_PAGES - 1;
        xc_sr_cache_stats(p->params.cache, &stats);
        if (stats.mapped_pages + XC_SR_CACHE_CHUNK_PAGES > stats.budget_pages)
            break;
    }
    return 0;
}

int xc_sr_primary_open(struct xc_sr_primary **out, const struct xc_sr_handles *h,
                       const struct xc_sr_primary_params *params)
{
    struct xc_sr_primary *p = calloc(1, sizeof(*p));
    int rc, bytes;

    *out = NULL;
    if (!p)
        return -ENOMEM;
    p->h = h;
    p->params = *params;
    rc = xc_sr_physmap_read(&p->physmap, h);
    if (rc)
        goto out;
    rc = xc_sr_dirty_begin(&p->dirty, h, p->physmap.gfns);
    if (rc)
        goto out;
    p->staged = calloc(p->physmap.gfns / 64 + 1, sizeof(*p->staged));
    rc = p->staged ? xc_sr_grants_map(&p->grants, h) : -ENOMEM;
    if (rc) {
        xc_sr_log(h, XC_SR_ERROR, "cannot map the grant table of domain %u: %s", h->domid,
                  strerror(-rc));
        goto out;
    }
    rc = find_always(p);
    if (rc)
        goto out;
    bytes = xc_domain_hvm_getcontext(h->xch, h->domid, NULL, 0);
    if (bytes <= 0) {
        rc = -errno;
        xc_sr_log(h, XC_SR_ERROR, "cannot read the vCPU state of domain %u: %s", h->domid,
                  strerror(-rc));
        goto out;
    }
    p->context_room = (uint32_t)bytes;
    rc = xc_sr_evtchn_read(h, p->evtchn, XC_SR_EVTCHN_MAX, &p->ports);
    if (!rc)
        rc = warm_cache(p);
out:
    if (rc)
        xc_sr_primary_close(p, false);
    else
        *out = p;
    return rc;
}

int xc_sr_primary_rings(struct xc_sr_primary *p, const uint32_t *refs, unsigned int count)
{
    unsigned int i;

    p->always_count = p->always_fixed;
    for (i = 0; i < count; i++) {
        uint64_t gfn;
        int rc;

        if (p->always_count == XC_SR_ALWAYS_MAX)
            return -E2BIG;
        rc = xc_sr_grants_gfn(&p->grants, refs[i], &gfn);
        if (rc)
            return rc;
        p->always[p->always_count++] = gfn;
    }
    return 0;
}

int xc_sr_primary_ring(struct xc_sr_primary *p, uint32_t ref, uint32_t *requests,
                       uint32_t *responses)
{
    const volatile RING_IDX *ring;
    uint64_t gfn;
    void *page;
    int rc = xc_sr_grants_gfn(&p->grants, ref, &gfn);

    if (!rc)
        rc = xc_sr_cache_get(p->params.cache, gfn, &page);
    if (rc)
        return rc;
    /* req_prod, req_event, rsp_prod, rsp_event: the head that all rings share (xen/io/ring.h) */
    ring = page;
    *requests = ring[0];
    *responses = ring[2];
    return 0;
}

static int stage_page(struct xc_sr_primary *p, struct xc_sr_epoch *e, uint64_t gfn)
{
    uint8_t *data;
    void *page;
    int rc = xc_sr_cache_get(p->params.cache, gfn, &page);

    if (rc)
        return rc;
    rc = xc_sr_epoch_add_page(e, gfn, &data);
    if (!rc)
        memcpy(data, page, XC_SR_PAGE_BYTES);
    return rc;
}

/*
 * Rings first, then the bitmap, then data: a response that the copied ring shows has its data
 * marked in the bitmap already (netback marks before it responds).  What comes later is the next
 * epoch's.
 */
static int stage_pages(struct xc_sr_primary *p, struct xc_sr_epoch *e)
{
    uint64_t word, words = (p->physmap.gfns + 63) / 64;
    unsigned int i;
    int rc;

    for (i = 0; i < p->always_count; i++) {
        rc = stage_page(p, e, p->always[i]);
        if (rc)
            return rc;
    }
    rc = xc_sr_dirty_read_clean(&p->dirty);
    if (rc)
        return rc;
    for (i = 0; i < p->always_count; i++)
        if (p->always[i] < p->dirty.gfns)
            p->dirty.bits[p->always[i] / 64] &= ~(1ull << (p->always[i] % 64));
    for (word = 0; word < words; word++) {
        uint64_t bits = p->dirty.bits[word] & p->physmap.present[word];

        for (; bits; bits &= bits - 1) {
            rc = stage_page(p, e, word * 64 + (unsigned int)__builtin_ctzll(bits));
            if (rc)
                return rc;
        }
    }
    return 0;
}

static int stage_context(struct xc_sr_primary *p, struct xc_sr_epoch *e)
{
    uint8_t *body;
    int rc, bytes;

    rc = xc_sr_epoch_add_record(e, REMUS_RECORD_HVM_CONTEXT, p->context_room, &body);
    if (rc)
        return rc;
    bytes = xc_domain_hvm_getcontext(p->h->xch, p->h->domid, body, p->context_room);
    if (bytes <= 0)
        return -errno;
    e->records[e->record_count - 1].length = (uint32_t)bytes;
    return 0;
}

static int stage_tables(struct xc_sr_primary *p, struct xc_sr_epoch *e)
{
    static const uint64_t params[] = { HVM_PARAM_CALLBACK_IRQ };
    unsigned int frames, ports, i;
    struct remus_hvm_param *param;
    uint8_t *body;
    int rc;

    rc = xc_sr_grants_frames(p->h, &frames);
    if (rc)
        return rc;
    if (frames != p->grants.frames) {
        xc_sr_log(p->h, XC_SR_WARN, "the grant table of domain %u grew from %u to %u frames",
                  p->h->domid, p->grants.frames, frames);
        return -ESTALE;
    }
    rc = xc_sr_epoch_add_record(e, REMUS_RECORD_GRANT_V1, frames * XC_SR_PAGE_BYTES, &body);
    if (rc)
        return rc;
    xc_sr_grants_copy_out(&p->grants, body);

    /* A hypercall for each port; a new one is the lowest free, so it shows behind the last. */
    rc = xc_sr_evtchn_read(p->h, p->evtchn, p->ports + 2 < XC_SR_EVTCHN_MAX
                           ? p->ports + 2 : XC_SR_EVTCHN_MAX, &ports);
    if (!rc && ports > p->ports)
        rc = xc_sr_evtchn_read(p->h, p->evtchn, XC_SR_EVTCHN_MAX, &ports);
    if (rc)
        return rc;
    p->ports = ports;
    rc = xc_sr_epoch_add_record(e, REMUS_RECORD_EVTCHN,
                                ports * (uint32_t)sizeof(struct remus_evtchn), &body);
    if (rc)
        return rc;
    memcpy(body, p->evtchn, ports * sizeof(struct remus_evtchn));

    rc = xc_sr_epoch_add_record(e, REMUS_RECORD_HVM_PARAMS, sizeof(*param) *
                                (uint32_t)(sizeof(params) / sizeof(params[0])), &body);
    if (rc)
        return rc;
    param = (struct remus_hvm_param *)body;
    for (i = 0; i < sizeof(params) / sizeof(params[0]); i++) {
        param[i].index = params[i];
        if (xc_hvm_param_get(p->h->xch, p->h->domid, (uint32_t)params[i], &param[i].value))
            return -errno;
    }
    return 0;
}

/*
 * --verify: what every page of the guest is, for the other side to compare with.  Pages of the
 * epoch count as they were copied; dom0 may write to others even now (netback has a packet left),
 * which belongs to the next epoch: those are marked dirty again and left out.
 */
static int stage_hashes(struct xc_sr_primary *p, struct xc_sr_epoch *e)
{
    uint64_t word, words = (p->physmap.gfns + 63) / 64, n = 0, i, kept = 0;
    struct xc_sr_record *record;
    struct remus_hash *hash;
    uint8_t *body;
    int rc;

    if (p->physmap.pages > REMUS_RECORD_MAX / sizeof(*hash))
        return -EFBIG;
    rc = xc_sr_epoch_add_record(e, REMUS_RECORD_HASHES,
                                (uint32_t)(p->physmap.pages * sizeof(*hash)), &body);
    if (rc)
        return rc;
    record = &e->records[e->record_count - 1];
    hash = (struct remus_hash *)body;
    memset(p->staged, 0, words * sizeof(*p->staged));
    for (i = 0; i < e->pages; i++)
        if (e->gfns[i] < p->physmap.gfns)
            xc_sr_set_bit(p->staged, e->gfns[i]);
    for (word = 0; word < words; word++) {
        uint64_t bits = p->physmap.present[word] & ~p->staged[word];

        for (; bits; bits &= bits - 1) {
            void *page;

            hash[n].gfn = word * 64 + (unsigned int)__builtin_ctzll(bits);
            rc = xc_sr_cache_get(p->params.cache, hash[n].gfn, &page);
            if (rc)
                return rc;
            hash[n].hash = XXH64(page, XC_SR_PAGE_BYTES, 0);
            n++;
        }
    }
    rc = xc_sr_dirty_peek(&p->dirty);
    if (rc)
        return rc;
    for (i = 0; i < n; i++)
        if (!xc_sr_bit(p->dirty.bits, hash[i].gfn))
            hash[kept++] = hash[i];
    for (i = 0; i < e->pages; i++) {
        if (e->gfns[i] >= p->physmap.gfns || !xc_sr_bit(p->physmap.present, e->gfns[i]))
            continue;           /* shared_info: the wall clock in it is each host's own */
        hash[kept].gfn = e->gfns[i];
        hash[kept++].hash = XXH64(e->data + i * XC_SR_PAGE_BYTES, XC_SR_PAGE_BYTES, 0);
    }
    record->length = (uint32_t)(kept * sizeof(*hash));
    return 0;
}

int xc_sr_primary_stage(struct xc_sr_primary *p, struct xc_sr_epoch *e)
{
    bool changed = false;
    int rc;

    rc = xc_sr_cache_revalidate(p->params.cache, &changed);
    if (rc)
        return rc;
    if (changed) {
        xc_sr_log(p->h, XC_SR_WARN, "the memory map of domain %u changed (ballooning or hotplug)",
                  p->h->domid);
        return -ESTALE;
    }
    rc = stage_pages(p, e);
    if (!rc)
        rc = stage_context(p, e);
    if (!rc)
        rc = stage_tables(p, e);
    if (!rc && p->params.verify)
        rc = stage_hashes(p, e);
    return rc;
}

int xc_sr_resume(const struct xc_sr_handles *h)
{
    xc_dominfo_t info;

    if (xc_domain_getinfo(h->xch, h->domid, 1, &info) != 1 || info.domid != h->domid)
        return -ESRCH;
    if (!info.shutdown)
        return 0;               /* runs already */
    if (info.shutdown_reason != SHUTDOWN_suspend)
        return -ESHUTDOWN;      /* it ended by itself; not ours to bring back */
    if (xc_domain_resume(h->xch, h->domid, 1))
        return -errno;
    return 0;
}

void xc_sr_primary_close(struct xc_sr_primary *p, bool disable_log_dirty)
{
    if (!p)
        return;
    if (p->dirty.bits)
        xc_sr_dirty_end(&p->dirty, disable_log_dirty);
    xc_sr_grants_unmap(&p->grants);
    xc_sr_physmap_free(&p->physmap);
    free(p->staged);
    free(p);
}
