/*
 * fake_sr.h: Xen as tools/libxc's saver and reader see it, for tests that include it once.
 *
 * A guest's memory is a list of frames in a file; its physmap says which frame stands at a gfn.  A
 * foreign mapping shows the same frames, and faults where there is no page, as a real one does.
 * With FAKE_SR_BLOCKS a mapping is a fresh block instead: without aliasing, but quick enough for
 * fuzzing, and with AddressSanitizer's red zones at its ends.
 */
#ifndef FAKE_SR_H
#define FAKE_SR_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenguest.h>
#include <xen/hvm/params.h>

#include "tools/libxc/xc_sr_private.h"

#define FAKE_GFNS   (1u << 20)
#define FAKE_FRAMES (1u << 14)
#define FAKE_PARAMS HVM_NR_PARAMS

struct fake_guest {
    uint32_t domid;
    bool hvm, shutdown;
    unsigned int shutdown_reason;
    uint64_t pages, pages_max;      /* on its account; may have */
    uint64_t max_gfn;
    uint32_t *frame;                /* [FAKE_GFNS]; 0: no page, otherwise frame + 1 */
    uint64_t special;               /* one gfn that maps but is not the guest's RAM; 0: none */
    uint32_t frames;                /* used */
    FILE *file;
    int memfd;                      /* of that file */
    uint8_t *memory;                /* [FAKE_FRAMES * 4096] */

    bool log_dirty;
    uint64_t *dirty;                /* [FAKE_GFNS] bits */
    uint8_t context[4912], context_set[8192];
    uint32_t context_bytes, context_set_bytes;
    uint64_t params[FAKE_PARAMS];
    uint32_t tsc_mode, tsc_khz, tsc_incarnation;
    uint64_t tsc_nsec;
    uint32_t leaves, msrs;          /* set */
    bool seeded;
    xen_pfn_t seeded_console, seeded_store;

    unsigned int type_calls, map_calls, superpages, mappings;
};

/* The guest that calls are about; a domid that is not its own does not exist. */
static struct fake_guest *fake;

static inline void fake_guest_new(struct fake_guest *g, uint32_t domid, uint64_t pages_max)
{
    memset(g, 0, sizeof(*g));
    g->domid = domid;
    g->hvm = true;
    g->pages_max = pages_max;
    g->frame = calloc(FAKE_GFNS, sizeof(*g->frame));
    g->dirty = calloc(FAKE_GFNS / 64, sizeof(*g->dirty));
#ifndef FAKE_SR_BLOCKS
    g->file = tmpfile();
    g->memfd = g->file ? fileno(g->file) : -1;
    if (g->memfd < 0 || ftruncate(g->memfd, (off_t)FAKE_FRAMES * XC_SR_PAGE_BYTES))
        abort();
    g->memory = mmap(NULL, (size_t)FAKE_FRAMES * XC_SR_PAGE_BYTES, PROT_READ | PROT_WRITE,
                     MAP_SHARED, g->memfd, 0);
    if (g->memory == MAP_FAILED)
        abort();
#endif
    for (unsigned int i = 0; i < sizeof(g->context); i++)
        g->context[i] = (uint8_t)(i * 7 + domid);
    g->context_bytes = sizeof(g->context);
    g->tsc_khz = 2600000;
}

static inline void fake_guest_free(struct fake_guest *g)
{
#ifndef FAKE_SR_BLOCKS
    munmap(g->memory, (size_t)FAKE_FRAMES * XC_SR_PAGE_BYTES);
    fclose(g->file);
#endif
    free(g->frame);
    free(g->dirty);
}

/* 0, or -1 when the guest may have no more. */
static inline int fake_populate(struct fake_guest *g, uint64_t gfn)
{
    if (gfn >= FAKE_GFNS || g->pages >= g->pages_max)
        return -1;
    if (g->frame[gfn])
        return 0;
#ifndef FAKE_SR_BLOCKS
    if (g->frames == FAKE_FRAMES)
        return -1;
#endif
    g->frame[gfn] = ++g->frames;
    g->pages++;
    if (gfn > g->max_gfn)
        g->max_gfn = gfn;
    return 0;
}

static inline void fake_depopulate(struct fake_guest *g, uint64_t gfn)
{
    if (g->frame[gfn]) {
        g->frame[gfn] = 0;
        g->pages--;
    }
}

static inline uint8_t *fake_page(struct fake_guest *g, uint64_t gfn)
{
    return g->frame[gfn] ? g->memory + (size_t)(g->frame[gfn] - 1) * XC_SR_PAGE_BYTES : NULL;
}

/* What a running guest does: writes to a page, which Xen logs. */
static inline void fake_write(struct fake_guest *g, uint64_t gfn, uint64_t value)
{
    memcpy(fake_page(g, gfn) + 64, &value, sizeof(value));
    if (g->log_dirty)
        xc_sr_set_bit(g->dirty, gfn);
}

/* ---- libxenctrl ---- */

static inline bool fake_is(uint32_t domid)
{
    if (fake && fake->domid == domid)
        return true;
    errno = ESRCH;
    return false;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first_domid, unsigned int max_doms,
                      xc_dominfo_t *info)
{
    (void)xch;
    if (!fake_is(first_domid) || max_doms != 1)
        return 0;
    memset(info, 0, sizeof(*info));
    info->domid = fake->domid;
    info->hvm = fake->hvm;
    info->shutdown = fake->shutdown;
    info->shutdown_reason = fake->shutdown_reason;
    info->nr_pages = fake->pages;
    info->max_memkb = fake->pages_max * 4;
    return 1;
}

int xc_domain_maximum_gpfn(xc_interface *xch, uint32_t domid, xen_pfn_t *gpfns)
{
    (void)xch;
    if (!fake_is(domid))
        return -1;
    *gpfns = fake->max_gfn;
    return 0;
}

xc_hypercall_buffer_t XC__HYPERCALL_BUFFER_NAME(HYPERCALL_BUFFER_NULL);

void *xc__hypercall_buffer_alloc(xc_interface *xch, xc_hypercall_buffer_t *b, size_t size)
{
    (void)xch;
    b->hbuf = malloc(size);
    return b->hbuf;
}

void xc__hypercall_buffer_free(xc_interface *xch, xc_hypercall_buffer_t *b)
{
    (void)xch;
    free(b->hbuf);
}

void *xc__hypercall_buffer_alloc_pages(xc_interface *xch, xc_hypercall_buffer_t *b, int nr_pages)
{
    return xc__hypercall_buffer_alloc(xch, b, (size_t)nr_pages * XC_SR_PAGE_BYTES);
}

void xc__hypercall_buffer_free_pages(xc_interface *xch, xc_hypercall_buffer_t *b, int nr_pages)
{
    (void)nr_pages;
    xc__hypercall_buffer_free(xch, b);
}

int xc_domctl(xc_interface *xch, struct xen_domctl *domctl)
{
    xen_pfn_t *types = domctl->u.getpageframeinfo3.array.p;

    (void)xch;
    if (!fake_is(domctl->domain) || domctl->cmd != XEN_DOMCTL_getpageframeinfo3)
        abort();
    if (domctl->u.getpageframeinfo3.num > 1024) {
        errno = E2BIG;
        return -1;
    }
    fake->type_calls++;
    for (unsigned int i = 0; i < domctl->u.getpageframeinfo3.num; i++) {
        bool ram = types[i] < FAKE_GFNS && fake->frame[types[i]] &&
                   (!fake->special || types[i] != fake->special);

        types[i] = ram ? XEN_DOMCTL_PFINFO_NOTAB : XEN_DOMCTL_PFINFO_XTAB;
    }
    return 0;
}

int xc_shadow_control(xc_interface *xch, uint32_t domid, unsigned int sop, unsigned int *mb,
                      unsigned int mode)
{
    (void)xch;
    (void)mb;
    (void)mode;
    if (!fake_is(domid))
        return -1;
    if (sop == XEN_DOMCTL_SHADOW_OP_OFF) {
        fake->log_dirty = false;
        memset(fake->dirty, 0, FAKE_GFNS / 8);
        return 0;
    }
    if (sop != XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY)
        abort();
    if (fake->log_dirty) {
        errno = EINVAL;
        return -1;
    }
    fake->log_dirty = true;
    return 0;
}

long long xc_logdirty_control(xc_interface *xch, uint32_t domid, unsigned int sop,
                              xc_hypercall_buffer_t *dirty_bitmap, unsigned long pages,
                              unsigned int mode, xc_shadow_op_stats_t *stats)
{
    (void)xch;
    (void)mode;
    (void)stats;
    if (!fake_is(domid) || !fake->log_dirty)
        abort();
    memset(dirty_bitmap->hbuf, 0, (pages + 7) / 8);
    memcpy(dirty_bitmap->hbuf, fake->dirty, ((pages < FAKE_GFNS ? pages : FAKE_GFNS) + 7) / 8);
    /* As Xen does: 32768 gfns at a time, whether asked for or not. */
    if (sop == XEN_DOMCTL_SHADOW_OP_CLEAN) {
        uint64_t bytes = XC_SR_ROUND_UP(pages, 32768ul) / 8;

        memset(fake->dirty, 0, bytes < FAKE_GFNS / 8 ? bytes : FAKE_GFNS / 8);
    }
    return (long long)pages;
}

int xc_version(xc_interface *xch, int cmd, void *arg)
{
    (void)xch;
    (void)arg;
    if (cmd != XENVER_version)
        abort();
    return 4 << 16 | 17;
}

int xc_domain_get_tsc_info(xc_interface *xch, uint32_t domid, uint32_t *tsc_mode,
                           uint64_t *elapsed_nsec, uint32_t *gtsc_khz, uint32_t *incarnation)
{
    (void)xch;
    if (!fake_is(domid))
        return -1;
    *tsc_mode = fake->tsc_mode;
    *elapsed_nsec = fake->tsc_nsec;
    *gtsc_khz = fake->tsc_khz;
    *incarnation = fake->tsc_incarnation;
    return 0;
}

int xc_domain_set_tsc_info(xc_interface *xch, uint32_t domid, uint32_t tsc_mode,
                           uint64_t elapsed_nsec, uint32_t gtsc_khz, uint32_t incarnation)
{
    (void)xch;
    if (!fake_is(domid))
        return -1;
    fake->tsc_mode = tsc_mode;
    fake->tsc_nsec = elapsed_nsec;
    fake->tsc_khz = gtsc_khz;
    fake->tsc_incarnation = incarnation;
    return 0;
}

int xc_domain_hvm_getcontext(xc_interface *xch, uint32_t domid, uint8_t *ctxt_buf, uint32_t size)
{
    (void)xch;
    if (!fake_is(domid))
        return -1;
    if (!ctxt_buf)
        return (int)fake->context_bytes;
    if (size < fake->context_bytes) {
        errno = ENOSPC;
        return -1;
    }
    memcpy(ctxt_buf, fake->context, fake->context_bytes);
    return (int)fake->context_bytes;
}

int xc_domain_hvm_setcontext(xc_interface *xch, uint32_t domid, uint8_t *hvm_ctxt, uint32_t size)
{
    (void)xch;
    if (!fake_is(domid) || size > sizeof(fake->context_set)) {
        errno = EINVAL;
        return -1;
    }
    memcpy(fake->context_set, hvm_ctxt, size);
    fake->context_set_bytes = size;
    return 0;
}

int xc_hvm_param_get(xc_interface *handle, uint32_t dom, uint32_t param, uint64_t *value)
{
    (void)handle;
    if (!fake_is(dom) || param >= FAKE_PARAMS)
        return -1;
    *value = fake->params[param];
    return 0;
}

int xc_hvm_param_set(xc_interface *handle, uint32_t dom, uint32_t param, uint64_t value)
{
    (void)handle;
    if (!fake_is(dom) || param >= FAKE_PARAMS)
        return -1;
    fake->params[param] = value;
    return 0;
}

int xc_domain_populate_physmap(xc_interface *xch, uint32_t domid, unsigned long nr_extents,
                               unsigned int extent_order, unsigned int mem_flags,
                               xen_pfn_t *extent_start)
{
    (void)xch;
    (void)mem_flags;
    if (!fake_is(domid) || nr_extents != 1 || extent_start[0] % (1ul << extent_order))
        abort();
    if (fake->pages + (1ul << extent_order) > fake->pages_max)
        return 0;
    for (uint64_t i = 0; i < 1ul << extent_order; i++)
        if (fake_populate(fake, extent_start[0] + i))
            return 0;
    fake->superpages++;
    return 1;
}

int xc_domain_populate_physmap_exact(xc_interface *xch, uint32_t domid, unsigned long nr_extents,
                                     unsigned int extent_order, unsigned int mem_flags,
                                     xen_pfn_t *extent_start)
{
    (void)xch;
    (void)mem_flags;
    if (!fake_is(domid) || extent_order)
        abort();
    for (unsigned long i = 0; i < nr_extents; i++) {
        if (fake_populate(fake, extent_start[i])) {
            errno = ENOMEM;
            return -1;
        }
    }
    return 0;
}

int xc_clear_domain_pages(xc_interface *xch, uint32_t domid, unsigned long dst_pfn, int num)
{
    (void)xch;
    if (!fake_is(domid) || num != 1 || dst_pfn >= FAKE_GFNS || !fake->frame[dst_pfn])
        abort();
    if (fake->memory)
        memset(fake_page(fake, dst_pfn), 0, XC_SR_PAGE_BYTES);
    return 0;
}

/* ---- libxenguest ---- */

struct xc_cpu_policy { int nothing; };

int xc_cpu_policy_get_size(xc_interface *xch, uint32_t *nr_leaves, uint32_t *nr_msrs)
{
    (void)xch;
    *nr_leaves = 60;
    *nr_msrs = 4;
    return 0;
}

xc_cpu_policy_t *xc_cpu_policy_init(void)
{
    return calloc(1, sizeof(xc_cpu_policy_t));
}

void xc_cpu_policy_destroy(xc_cpu_policy_t *policy)
{
    free(policy);
}

int xc_cpu_policy_get_domain(xc_interface *xch, uint32_t domid, xc_cpu_policy_t *policy)
{
    (void)xch;
    (void)policy;
    return fake_is(domid) ? 0 : -1;
}

int xc_cpu_policy_serialise(xc_interface *xch, const xc_cpu_policy_t *policy,
                            xen_cpuid_leaf_t *leaves, uint32_t *nr_leaves, xen_msr_entry_t *msrs,
                            uint32_t *nr_msrs)
{
    (void)xch;
    (void)policy;
    *nr_leaves = 51;
    *nr_msrs = 2;
    memset(leaves, 0x11, *nr_leaves * sizeof(*leaves));
    memset(msrs, 0x22, *nr_msrs * sizeof(*msrs));
    return 0;
}

int xc_set_domain_cpu_policy(xc_interface *xch, uint32_t domid, uint32_t nr_leaves,
                             xen_cpuid_leaf_t *leaves, uint32_t nr_msrs, xen_msr_entry_t *msrs,
                             uint32_t *err_leaf_p, uint32_t *err_subleaf_p, uint32_t *err_msr_p)
{
    volatile uint8_t sum = 0;

    (void)xch;
    (void)err_leaf_p;
    (void)err_subleaf_p;
    (void)err_msr_p;
    if (!fake_is(domid))
        return -1;
    /* Every byte that was announced is read, so that a wrong length shows. */
    for (size_t i = 0; i < nr_leaves * sizeof(*leaves); i++)
        sum = (uint8_t)(sum + ((uint8_t *)leaves)[i]);
    for (size_t i = 0; i < nr_msrs * sizeof(*msrs); i++)
        sum = (uint8_t)(sum + ((uint8_t *)msrs)[i]);
    fake->leaves = nr_leaves;
    fake->msrs = nr_msrs;
    return 0;
}

int xc_dom_gnttab_seed(xc_interface *xch, uint32_t guest_domid, bool is_hvm,
                       xen_pfn_t console_gfn, xen_pfn_t xenstore_gfn, uint32_t console_domid,
                       uint32_t xenstore_domid)
{
    (void)xch;
    (void)is_hvm;
    (void)console_domid;
    (void)xenstore_domid;
    if (!fake_is(guest_domid))
        return -1;
    fake->seeded = true;
    fake->seeded_console = console_gfn;
    fake->seeded_store = xenstore_gfn;
    return 0;
}

/* ---- libxenforeignmemory ---- */

void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t pages,
                           const xen_pfn_t arr[/*pages*/], int err[/*pages*/])
{
    uint8_t *base;

    (void)fmem;
    if (!fake_is(dom))
        return NULL;
    fake->map_calls++;
    fake->mappings++;
#ifdef FAKE_SR_BLOCKS
    (void)prot;
    base = malloc(pages * XC_SR_PAGE_BYTES);
    for (size_t i = 0; i < pages; i++)
        err[i] = arr[i] < FAKE_GFNS && fake->frame[arr[i]] ? 0 : -EINVAL;
#else
    base = mmap(NULL, pages * XC_SR_PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        abort();
    for (size_t i = 0; i < pages; i++) {
        err[i] = arr[i] < FAKE_GFNS && fake->frame[arr[i]] ? 0 : -EINVAL;
        if (!err[i] && mmap(base + i * XC_SR_PAGE_BYTES, XC_SR_PAGE_BYTES, prot,
                            MAP_SHARED | MAP_FIXED, fake->memfd,
                            (off_t)(fake->frame[arr[i]] - 1) * XC_SR_PAGE_BYTES) == MAP_FAILED)
            abort();
    }
#endif
    return base;
}

int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *addr, size_t pages)
{
    (void)fmem;
    fake->mappings--;
#ifdef FAKE_SR_BLOCKS
    (void)pages;
    free(addr);
    return 0;
#else
    return munmap(addr, pages * XC_SR_PAGE_BYTES);
#endif
}

#endif /* FAKE_SR_H */
