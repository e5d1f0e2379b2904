/*
 * xc_sr_guest.c: grant table and HVM context, read and written from dom0.
 */
#include <errno.h>
#include <string.h>

#include "tools/libxc/xc_sr_guest.h"

int xc_sr_shared_info_gfn(const struct xc_sr_handles *h, uint64_t *gfn)
{
    xc_dominfo_t info;

    if (xc_domain_getinfo(h->xch, h->domid, 1, &info) != 1 || info.domid != h->domid)
        return -ESRCH;
    if (info.shared_info_frame >= REMUS_GFN_MASK)
        return -ENOENT;
    *gfn = info.shared_info_frame;
    return 0;
}

int xc_sr_grants_frames(const struct xc_sr_handles *h, unsigned int *frames)
{
    struct gnttab_query_size query = { .dom = (domid_t)h->domid };

    if (xc_gnttab_query_size(h->xch, &query))
        return -errno;
    if (query.status != GNTST_okay)
        return -EINVAL;
    *frames = query.nr_frames;
    return 0;
}

int xc_sr_grants_map(struct xc_sr_grants *g, const struct xc_sr_handles *h)
{
    void *address = NULL;
    int rc;

    memset(g, 0, sizeof(*g));
    g->h = h;
    rc = xc_sr_grants_frames(h, &g->frames);
    if (rc)
        return rc;
    if (!g->frames || g->frames > XC_SR_GRANT_FRAMES_MAX)
        return -ERANGE;
    g->resource = xenforeignmemory_map_resource(h->fmem, (domid_t)h->domid,
                                                XENMEM_resource_grant_table,
                                                XENMEM_resource_grant_table_id_shared, 0,
                                                g->frames, &address, PROT_READ | PROT_WRITE, 0);
    if (!g->resource)
        return -errno;
    g->entries = address;
    return 0;
}

void xc_sr_grants_unmap(struct xc_sr_grants *g)
{
    if (g->resource)
        xenforeignmemory_unmap_resource(g->h->fmem, g->resource);
    memset(g, 0, sizeof(*g));
}

int xc_sr_grants_gfn(const struct xc_sr_grants *g, uint32_t ref, uint64_t *gfn)
{
    grant_entry_v1_t entry;

    if (ref >= g->frames * XC_SR_GRANTS_PER_FRAME)
        return -ENOENT;
    entry = g->entries[ref];
    if ((entry.flags & GTF_type_mask) != GTF_permit_access)
        return -ENOENT;
    *gfn = entry.frame;
    return 0;
}

void xc_sr_grants_copy_out(const struct xc_sr_grants *g, uint8_t *body)
{
    grant_entry_v1_t *out = (grant_entry_v1_t *)body;
    unsigned int i, entries = g->frames * XC_SR_GRANTS_PER_FRAME;

    memcpy(out, g->entries, (size_t)entries * sizeof(*out));
    for (i = 0; i < entries; i++)
        out[i].flags &= (uint16_t)~(GTF_reading | GTF_writing);
}

int xc_sr_grants_copy_in(struct xc_sr_grants *g, const uint8_t *body, uint32_t length)
{
    size_t reserved = GNTTAB_NR_RESERVED_ENTRIES * sizeof(grant_entry_v1_t);

    if (length != g->frames * XC_SR_PAGE_BYTES)
        return -EINVAL;
    memcpy((uint8_t *)g->entries + reserved, body + reserved, length - reserved);
    return 0;
}

/*
 * Walks the descriptors of a context; stops at type code wanted and instance, or at the end.
 * Returns the body, NULL if there is none or the walk leaves the buffer.
 */
static const uint8_t *find_record(const uint8_t *context, uint32_t length, uint16_t wanted,
                                  uint16_t instance, uint32_t *body_length)
{
    uint32_t at = 0;

    while (length - at >= sizeof(struct hvm_save_descriptor)) {
        struct hvm_save_descriptor d;

        memcpy(&d, context + at, sizeof(d));
        at += sizeof(d);
        if (d.length > length - at)
            return NULL;
        if (d.typecode == wanted && d.instance == instance) {
            *body_length = d.length;
            return context + at;
        }
        if (d.typecode == HVM_SAVE_CODE(END))
            return NULL;
        at += d.length;
    }
    return NULL;
}

struct hvm_hw_cpu *xc_sr_hvm_cpu(uint8_t *context, uint32_t length, unsigned int vcpu)
{
    uint32_t bytes = 0;
    const uint8_t *body = find_record(context, length, HVM_SAVE_CODE(CPU), (uint16_t)vcpu, &bytes);

    return body && bytes >= sizeof(struct hvm_hw_cpu)
        ? (struct hvm_hw_cpu *)(context + (body - context)) : NULL;
}

int xc_sr_hvm_check(const uint8_t *context, uint32_t length)
{
    uint32_t bytes = 0;

    if (!find_record(context, length, HVM_SAVE_CODE(HEADER), 0, &bytes) ||
        !find_record(context, length, HVM_SAVE_CODE(END), 0, &bytes))
        return -EINVAL;
    return 0;
}
