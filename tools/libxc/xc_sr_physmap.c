/*
 * xc_sr_physmap.c: which guest pages there are.
 *
 * The question costs one hypercall for 1024 gfns, and a small PVH guest has a million gfns: some
 * RAM at the bottom, a few special pages just below 4 GiB, and nothing between.  Xen says how many
 * pages the guest has, and no page stands at two gfns, so once that many have been found the rest
 * are holes and need not be asked about.  To get there soon the scan works from both ends and
 * changes ends whenever it meets an empty stretch.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/libxc/xc_sr_private.h"

int xc_sr_extent_read(struct xc_sr_extent *out, const struct xc_sr_handles *h)
{
    xc_dominfo_t info;
    xen_pfn_t max_gfn;

    if (xc_domain_getinfo(h->xch, h->domid, 1, &info) != 1 || info.domid != h->domid) {
        xc_sr_log(h, XC_SR_ERROR, "domain %u does not exist", h->domid);
        return -ESRCH;
    }
    if (xc_domain_maximum_gpfn(h->xch, h->domid, &max_gfn) < 0) {
        int rc = -errno;

        xc_sr_log(h, XC_SR_ERROR, "cannot read the highest gfn of domain %u: %s", h->domid,
                  strerror(-rc));
        return rc;
    }
    /* Shared and paged-out pages are counted apart, but they have gfns as well. */
    out->pages = (uint64_t)info.nr_pages + info.nr_shared_pages + info.nr_paged_pages;
    out->max_gfn = max_gfn;
    return 0;
}

int xc_sr_pages_present(const struct xc_sr_handles *h, const uint64_t *gfns, unsigned int count,
                        bool *present)
{
    struct xen_domctl domctl = {.cmd = XEN_DOMCTL_getpageframeinfo3, .domain = h->domid};
    DECLARE_HYPERCALL_BUFFER(xen_pfn_t, types);
    int rc;

    if (!count)
        return 0;
    if (count > XC_SR_TYPES_MAX)
        return -E2BIG;
    types = xc_hypercall_buffer_alloc(h->xch, types, count * sizeof(*types));
    if (!types)
        return -ENOMEM;
    for (unsigned int i = 0; i < count; i++)
        types[i] = gfns[i];

    domctl.u.getpageframeinfo3.num = count;
    set_xen_guest_handle(domctl.u.getpageframeinfo3.array, types);
    rc = xc_domctl(h->xch, &domctl) < 0 ? -errno : 0;
    if (rc)
        xc_sr_log(h, XC_SR_ERROR, "cannot read page types of domain %u from gfn 0x%lx: %s",
                  h->domid, (unsigned long)gfns[0], strerror(-rc));
    for (unsigned int i = 0; !rc && i < count; i++) {
        uint32_t type = types[i] & XEN_DOMCTL_PFINFO_LTAB_MASK;

        present[i] = type != XEN_DOMCTL_PFINFO_XTAB && type != XEN_DOMCTL_PFINFO_XALLOC &&
                     type != XEN_DOMCTL_PFINFO_BROKEN;
    }
    xc_hypercall_buffer_free(h->xch, types);
    return rc;
}

int xc_sr_physmap_read(struct xc_sr_physmap *out, const struct xc_sr_handles *h)
{
    uint64_t gfns[XC_SR_TYPES_MAX];
    bool present[XC_SR_TYPES_MAX];
    struct xc_sr_physmap map = {0};
    struct xc_sr_extent extent;
    uint64_t low, high; /* batches not yet asked about: [low, high) */
    bool from_top = false;
    int rc;

    rc = xc_sr_extent_read(&extent, h);
    if (rc)
        goto out;
    map.gfns = extent.max_gfn + 1;
    map.present = calloc(xc_sr_words(map.gfns), sizeof(*map.present));
    if (!map.present) {
        xc_sr_log(h, XC_SR_ERROR, "no memory for the physmap of domain %u, %lu gfns", h->domid,
                  (unsigned long)map.gfns);
        rc = -ENOMEM;
        goto out;
    }

    low = 0;
    high = (map.gfns + XC_SR_TYPES_MAX - 1) / XC_SR_TYPES_MAX;
    while (low < high && map.pages < extent.pages) {
        uint64_t batch = from_top ? --high : low++;
        uint64_t first = batch * XC_SR_TYPES_MAX;
        unsigned int count = XC_SR_TYPES_MAX, found = 0;

        if (map.gfns - first < count)
            count = map.gfns - first;
        for (unsigned int i = 0; i < count; i++)
            gfns[i] = first + i;
        rc = xc_sr_pages_present(h, gfns, count, present);
        if (rc)
            goto out;
        for (unsigned int i = 0; i < count; i++) {
            if (present[i]) {
                xc_sr_set_bit(map.present, first + i);
                found++;
            }
        }
        map.pages += found;
        if (!found)
            from_top = !from_top;
    }

    *out = map;
    map.present = NULL;
    rc = 0;
out:
    free(map.present);
    return rc;
}

void xc_sr_physmap_free(struct xc_sr_physmap *p)
{
    free(p->present);
    *p = (struct xc_sr_physmap){0};
}
