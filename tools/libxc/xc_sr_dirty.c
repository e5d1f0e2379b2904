/*
 * xc_sr_dirty.c: Xen's log of the pages a guest has written.
 *
 * Cleaning has a grain of 32768 gfns in Xen: bits between the end of our bitmap and the next
 * multiple of that are lost.  Whoever lets a bitmap grow has to send new gfns regardless.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/libxc/xc_sr_private.h"

/* The hypercall buffer has to live as long as the bitmap, so it is kept with it. */
struct buffer {
    xc_hypercall_buffer_t handle;
    int pages;
};

static int enable(const struct xc_sr_handles *h)
{
    xc_dominfo_t info;

    if (xc_shadow_control(h->xch, h->domid, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, NULL, 0) >= 0)
        return 0;
    if (errno != EINVAL)
        return -errno;

    /*
     * EINVAL is what Xen says when log-dirty is on already, and it must stay on then: turning it
     * off and on again would lose what has been logged.  Only a guest with an emulated VGA may be
     * in the half-on state that tracks its frame buffer alone; that has to be ended first.
     */
    if (xc_domain_getinfo(h->xch, h->domid, 1, &info) != 1 || info.domid != h->domid)
        return -ESRCH;
    if (!(info.arch_config.emulation_flags & XEN_X86_EMU_VGA))
        return 0;
    if (xc_shadow_control(h->xch, h->domid, XEN_DOMCTL_SHADOW_OP_OFF, NULL, 0) < 0 ||
        xc_shadow_control(h->xch, h->domid, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, NULL, 0) < 0)
        return -errno;
    return 0;
}

int xc_sr_dirty_begin(struct xc_sr_dirty *out, const struct xc_sr_handles *h, uint64_t gfns)
{
    struct buffer *buffer;
    uint64_t bytes = xc_sr_words(gfns) * sizeof(uint64_t);
    int rc;
    DECLARE_HYPERCALL_BUFFER(uint64_t, bits);

    *out = (struct xc_sr_dirty){0};
    buffer = calloc(1, sizeof(*buffer));
    if (!buffer)
        return -ENOMEM;
    buffer->pages = (bytes + XC_SR_PAGE_BYTES - 1) / XC_SR_PAGE_BYTES;
    if (!buffer->pages)
        buffer->pages = 1;
    bits = xc_hypercall_buffer_alloc_pages(h->xch, bits, buffer->pages);
    if (!bits) {
        xc_sr_log(h, XC_SR_ERROR, "no memory for the dirty bitmap of domain %u, %lu gfns", h->domid,
                  (unsigned long)gfns);
        free(buffer);
        return -ENOMEM;
    }
    memset(bits, 0, (size_t)buffer->pages * XC_SR_PAGE_BYTES);
    buffer->handle = *HYPERCALL_BUFFER(bits);
    out->bits = bits;
    out->gfns = gfns;
    out->buffer = buffer;
    out->h = h;

    rc = enable(h);
    if (rc) {
        xc_sr_log(h, XC_SR_ERROR, "cannot log the pages that domain %u writes: %s", h->domid,
                  strerror(-rc));
        xc_sr_dirty_end(out, false);
    }
    return rc;
}

static int read_log(struct xc_sr_dirty *d, unsigned int op)
{
    const struct xc_sr_handles *h = d->h;
    struct buffer *buffer = d->buffer;
    xc_shadow_op_stats_t stats;
    uint64_t words = xc_sr_words(d->gfns);
    long long got;

    /*
     * The FINAL mode also reports pages that Xen's own instruction emulation has mapped for
     * writing; it costs a walk of a short list, so there is no reason ever to do without.
     */
    got = xc_logdirty_control(h->xch, h->domid, op, &buffer->handle, d->gfns,
                              XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL, &stats);
    if (got < 0 || (uint64_t)got != d->gfns) {
        int rc = got < 0 ? -errno : -EIO;

        xc_sr_log(h, XC_SR_ERROR, "cannot read the dirty pages of domain %u: %s", h->domid,
                  strerror(-rc));
        return rc;
    }
    /* The last word may have bits beyond the end; they are nobody's. */
    if (d->gfns % 64)
        d->bits[words - 1] &= (1ull << (d->gfns % 64)) - 1;
    d->count = 0;
    for (uint64_t i = 0; i < words; i++)
        d->count += (uint64_t)__builtin_popcountll(d->bits[i]);
    return 0;
}

int xc_sr_dirty_read_clean(struct xc_sr_dirty *d)
{
    return read_log(d, XEN_DOMCTL_SHADOW_OP_CLEAN);
}

int xc_sr_dirty_peek(struct xc_sr_dirty *d)
{
    return read_log(d, XEN_DOMCTL_SHADOW_OP_PEEK);
}

void xc_sr_dirty_end(struct xc_sr_dirty *d, bool disable)
{
    struct buffer *buffer = d->buffer;

    if (!buffer)
        return;
    if (disable && xc_shadow_control(d->h->xch, d->h->domid, XEN_DOMCTL_SHADOW_OP_OFF, NULL, 0) < 0)
        xc_sr_log(d->h, XC_SR_WARN, "cannot end the log of written pages of domain %u: %s",
                  d->h->domid, strerror(errno));
    xc__hypercall_buffer_free_pages(d->h->xch, &buffer->handle, buffer->pages);
    free(buffer);
    *d = (struct xc_sr_dirty){0};
}
