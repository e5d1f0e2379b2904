/*
 * xc_sr_secondary.c: replacing the state of a running copy by a checkpoint.
 *
 * The mirror holds guest memory as of the last applied checkpoint, indexed by gfn in a sparse
 * mapping.  Applying an epoch: pages of the epoch go to guest and mirror; every other page that
 * the copy has dirtied goes back from the mirror; then vCPU state and tables.  The copy is
 * paused by the caller for all of it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/libxc/xc_sr_guest.h" /* first: Xen's headers need its types */

#include <xen/hvm/params.h>
#include <xen/sched.h>
#include <xenguest.h>
#include <xxhash.h>


#define STUB_TIMEOUT_MS 5000u
#define APPLY_ROUNDS    4u

struct xc_sr_secondary {
    const struct xc_sr_handles *h;
    struct xc_sr_physmap physmap;
    struct xc_sr_dirty dirty;
    struct xc_sr_grants grants;
    struct xc_sr_cache *cache;      /* made after the resume path, which changes the physmap */
    uint8_t *mirror;
    uint64_t mirror_bytes;
    uint64_t *in_epoch;             /* one bit per gfn, clear between calls */
    uint64_t store_gfn, shared_gfn;
    uint8_t shared_image[XC_SR_PAGE_BYTES]; /* the primary's shared_info, newest epoch */
    struct remus_evtchn evtchn[XC_SR_EVTCHN_MAX];
};

static uint8_t *mirror_page(struct xc_sr_secondary *s, uint64_t gfn)
{
    return s->mirror + gfn * XC_SR_PAGE_BYTES;
}

static int take_mirror(struct xc_sr_secondary *s)
{
    struct xc_sr_cache *cache = NULL;
    uint64_t gfn;
    int rc;

    rc = xc_sr_cache_new(&cache, s->h, 4 * XC_SR_CACHE_CHUNK_PAGES);
    for (gfn = 0; !rc && gfn < s->physmap.gfns; gfn++) {
        void *page;

        if (!xc_sr_bit(s->physmap.present, gfn))
            continue;
        rc = xc_sr_cache_get(cache, gfn, &page);
        if (!rc)
            memcpy(mirror_page(s, gfn), page, XC_SR_PAGE_BYTES);
    }
    xc_sr_cache_free(cache);
    return rc;
}

int xc_sr_secondary_open(struct xc_sr_secondary **out, const struct xc_sr_handles *h)
{
    struct xc_sr_secondary *s = calloc(1, sizeof(*s));
    int rc;

    *out = NULL;
    if (!s)
        return -ENOMEM;
    s->h = h;
    rc = xc_sr_physmap_read(&s->physmap, h);
    if (rc)
        goto out;
    s->mirror_bytes = s->physmap.gfns * XC_SR_PAGE_BYTES;
    s->mirror = mmap(NULL, s->mirror_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->mirror == MAP_FAILED) {
        rc = -errno;
        s->mirror = NULL;
        goto out;
    }
    s->in_epoch = calloc(s->physmap.gfns / 64 + 1, sizeof(*s->in_epoch));
    if (!s->in_epoch) {
        rc = -ENOMEM;
        goto out;
    }
    if (xc_hvm_param_get(h->xch, h->domid, HVM_PARAM_STORE_PFN, &s->store_gfn)) {
        rc = -errno;
        goto out;
    }
    /* Logging first: what is written between the two is in the mirror or in the log. */
    rc = xc_sr_dirty_begin(&s->dirty, h, s->physmap.gfns);
    if (!rc)
        rc = take_mirror(s);
out:
    if (rc) {
        xc_sr_log(h, XC_SR_ERROR, "cannot mirror the memory of domain %u: %s", h->domid,
                  strerror(-rc));
        xc_sr_secondary_close(s, false);
    } else {
        *out = s;
    }
    return rc;
}

/* Foreign page, for the few that are touched once. */
static void *map_one(struct xc_sr_secondary *s, uint64_t gfn)
{
    xen_pfn_t pfn = gfn;
    int err = 0;
    void *page = xenforeignmemory_map(s->h->fmem, s->h->domid, PROT_READ | PROT_WRITE, 1, &pfn,
                                      &err);

    if (page && err) {
        xenforeignmemory_unmap(s->h->fmem, page, 1);
        page = NULL;
    }
    return page;
}

static int wait_suspended(struct xc_sr_secondary *s)
{
    unsigned int waited_ms;

    /* A few dozen hypercalls of the guest: over before a watch could be set up. */
    for (waited_ms = 0; waited_ms < STUB_TIMEOUT_MS; waited_ms++) {
        xc_dominfo_t info;

        if (xc_domain_getinfo(s->h->xch, s->h->domid, 1, &info) != 1 ||
            info.domid != s->h->domid)
            return -ESRCH;
        if (info.shutdown)
            return info.shutdown_reason == SHUTDOWN_suspend ? 0 : -ESHUTDOWN;
        usleep(1000);
    }
    return -ETIMEDOUT;
}

static int run_stub(struct xc_sr_secondary *s, const struct xc_sr_stub_op *ops, unsigned int count)
{
    uint8_t *context = NULL, saved[XC_SR_PAGE_BYTES], *page = NULL;
    struct hvm_hw_cpu *cpu;
    uint64_t code_va, gfn, rsp;
    unsigned int offset;
    int rc, bytes, room;        /* Xen wants room for the largest context, and fills less */

    room = xc_domain_hvm_getcontext(s->h->xch, s->h->domid, NULL, 0);
    if (room <= 0)
        return -errno;
    context = malloc((size_t)room);
    if (!context)
        return -ENOMEM;
    bytes = xc_domain_hvm_getcontext(s->h->xch, s->h->domid, context, (uint32_t)room);
    if (bytes <= 0) {
        rc = -errno;
        goto out;
    }
    cpu = xc_sr_hvm_cpu(context, (uint32_t)bytes, 0);
    rc = -EPROTO;
    if (!cpu)
        goto out;

    /* rip stands behind the hypercall instruction, somewhere in the guest's kernel text. */
    code_va = cpu->rip & ~(uint64_t)(XC_SR_PAGE_BYTES - 1);
    offset = (unsigned int)(cpu->rip - code_va);
    gfn = xc_translate_foreign_address(s->h->xch, s->h->domid, 0, cpu->rip);
    page = gfn ? map_one(s, gfn) : NULL;
    if (!page || offset < 3 || page[offset - 3] != 0x0f || page[offset - 2] != 0x01) {
        xc_sr_log(s->h, XC_SR_ERROR, "vCPU 0 of domain %u is not behind a suspend hypercall: rip "
                  "%#lx, gfn %#lx, bytes %#x %#x %#x", s->h->domid, (unsigned long)cpu->rip,
                  (unsigned long)gfn, page && offset >= 3 ? page[offset - 3] : 0,
                  page && offset >= 3 ? page[offset - 2] : 0,
                  page && offset >= 3 ? page[offset - 1] : 0);
        goto out;
    }
    memcpy(saved, page, sizeof(saved));
    rsp = cpu->rsp;
    xc_sr_stub_build(page, saved + offset - 3, ops, count);
    cpu->rip = code_va;
    if (xc_domain_hvm_setcontext(s->h->xch, s->h->domid, context, (uint32_t)bytes)) {
        rc = -errno;
        goto restore;
    }
    if (xc_domain_resume(s->h->xch, s->h->domid, 1)) {
        rc = -errno;
        goto restore;
    }
    rc = wait_suspended(s);
restore:
    memcpy(page, saved, sizeof(saved));
    if (!rc) {
        /* r12: operations done; r13: what the hypercall said last */
        bytes = xc_domain_hvm_getcontext(s->h->xch, s->h->domid, context, (uint32_t)room);
        cpu = bytes > 0 ? xc_sr_hvm_cpu(context, (uint32_t)bytes, 0) : NULL;
        if (!cpu) {
            rc = -EPROTO;
        } else if (cpu->r12 != count) {
            xc_sr_log(s->h, XC_SR_ERROR, "event channel operation %u of %u (command %u, %u, %u, "
                      "expecting %u) failed in domain %u with %d", (unsigned int)cpu->r12, count,
                      ops[cpu->r12 % count].command, ops[cpu->r12 % count].a,
                      ops[cpu->r12 % count].b, ops[cpu->r12 % count].expect, s->h->domid,
                      (int)cpu->r13);
            rc = -EPROTO;
        } else {
            /* where it was, so that a further run starts as this one did */
            cpu->rip = code_va + offset;
            cpu->rsp = rsp;
            if (xc_domain_hvm_setcontext(s->h->xch, s->h->domid, context, (uint32_t)bytes))
                rc = -errno;
        }
    }
out:
    if (page)
        xenforeignmemory_unmap(s->h->fmem, page, 1);
    free(context);
    return rc;
}

int xc_sr_secondary_evtchn(struct xc_sr_secondary *s, const struct remus_evtchn *want,
                           unsigned int count, bool *rebuilt)
{
    struct xc_sr_stub_op ops[XC_SR_STUB_OPS_MAX];
    unsigned int have_count, op_count;
    char why[200];
    int rc;

    *rebuilt = false;
    rc = xc_sr_evtchn_read(s->h, s->evtchn, XC_SR_EVTCHN_MAX, &have_count);
    if (rc)
        return rc;
    if (xc_sr_evtchn_compare(want, count, s->evtchn, have_count, why, sizeof(why))) {
        xc_sr_log(s->h, XC_SR_DEBUG, "domain %u: %s; binding its event channels anew",
                  s->h->domid, why);
        rc = xc_sr_stub_plan(s->evtchn, have_count, want, count, ops, XC_SR_STUB_OPS_MAX,
                             &op_count);
        if (!rc)
            rc = run_stub(s, ops, op_count);
        if (!rc)
            rc = xc_sr_evtchn_read(s->h, s->evtchn, XC_SR_EVTCHN_MAX, &have_count);
        if (!rc)
            rc = xc_sr_evtchn_compare(want, count, s->evtchn, have_count, why, sizeof(why));
        if (rc) {
            xc_sr_log(s->h, XC_SR_ERROR, "domain %u: event channels cannot be made equal: %s (%s)",
                      s->h->domid, why, strerror(-rc));
            return rc;
        }
        *rebuilt = true;
    }
    rc = xc_sr_shared_info_gfn(s->h, &s->shared_gfn);
    if (!rc && !s->grants.entries)
        rc = xc_sr_grants_map(&s->grants, s->h);
    if (!rc && !s->cache)
        rc = xc_sr_cache_new(&s->cache, s->h, s->physmap.pages + 2 * XC_SR_CACHE_CHUNK_PAGES);
    return rc;
}

bool xc_sr_secondary_quiescent(struct xc_sr_secondary *s)
{
    const volatile struct xenstore_domain_interface *ring;
    void *page;

    if (xc_sr_cache_get(s->cache, s->store_gfn, &page))
        return false;
    ring = page;
    return ring->req_prod == ring->req_cons && ring->rsp_prod == ring->rsp_cons;
}

/* shared_info of the primary, with the wall clock of this host. */
static void write_shared_info(uint8_t *guest, const uint8_t *data)
{
    struct shared_info *to = (struct shared_info *)guest;
    struct shared_info from;
    uint32_t version = to->wc_version, sec = to->wc_sec, nsec = to->wc_nsec;
    uint32_t sec_hi = to->wc_sec_hi;

    memcpy(&from, data, sizeof(from));
    from.wc_version = version;
    from.wc_sec = sec;
    from.wc_nsec = nsec;
    from.wc_sec_hi = sec_hi;
    memcpy(guest, &from, sizeof(from));
    memcpy(guest + sizeof(from), data + sizeof(from), XC_SR_PAGE_BYTES - sizeof(from));
}

static int apply_pages(struct xc_sr_secondary *s, const struct xc_sr_epoch *e)
{
    uint64_t i;

    for (i = 0; i < e->pages; i++) {
        uint64_t gfn = e->gfns[i];
        const uint8_t *data = e->data + i * XC_SR_PAGE_BYTES;
        void *page;
        int rc = xc_sr_cache_get(s->cache, gfn, &page);

        if (rc) {
            xc_sr_log(s->h, XC_SR_ERROR, "domain %u has no page at gfn %#lx, the primary has",
                      s->h->domid, (unsigned long)gfn);
            return rc;
        }
        if (gfn == s->shared_gfn) {
            write_shared_info(page, data);
            memcpy(s->shared_image, data, XC_SR_PAGE_BYTES);
        } else {
            memcpy(page, data, XC_SR_PAGE_BYTES);
        }
        if (gfn < s->physmap.gfns) {
            memcpy(mirror_page(s, gfn), data, XC_SR_PAGE_BYTES);
            xc_sr_set_bit(s->in_epoch, gfn);
        }
    }
    return 0;
}

static int roll_back(struct xc_sr_secondary *s, uint64_t *rolled_back)
{
    uint64_t word, words = (s->physmap.gfns + 63) / 64;

    for (word = 0; word < words; word++) {
        uint64_t bits = s->dirty.bits[word] & s->physmap.present[word] & ~s->in_epoch[word];

        for (; bits; bits &= bits - 1) {
            uint64_t gfn = word * 64 + (unsigned int)__builtin_ctzll(bits);
            void *page;
            int rc = xc_sr_cache_get(s->cache, gfn, &page);

            if (rc)
                return rc;
            memcpy(page, mirror_page(s, gfn), XC_SR_PAGE_BYTES);
            ++*rolled_back;
        }
    }
    return 0;
}

static int apply_context(struct xc_sr_secondary *s, const struct xc_sr_record *record)
{
    struct hvm_hw_cpu *cpu;
    unsigned int vcpu;
    xc_dominfo_t info;

    if (xc_sr_hvm_check(record->body, record->length))
        return -EBADMSG;
    cpu = xc_sr_hvm_cpu(record->body, record->length, 0);
    if (!cpu)
        return -EBADMSG;
    cpu->rax = 1;               /* the suspend hypercall was cancelled: nothing to set up anew */

    if (xc_domain_getinfo(s->h->xch, s->h->domid, 1, &info) != 1 || info.domid != s->h->domid)
        return -ESRCH;
    /*
     * A vCPU of the copy may be halted (VPF_blocked), which loading registers does not undo: it
     * would sleep where the primary's spins for it.  A reset forgets that and nothing else that
     * matters here (Xen common/domain.c, vcpu_reset); loading its registers brings it up again.
     */
    for (vcpu = 0; vcpu <= info.max_vcpu_id; vcpu++)
        if (xc_sr_hvm_cpu(record->body, record->length, vcpu) &&
            xc_vcpu_setcontext(s->h->xch, s->h->domid, vcpu, NULL))
            return -errno;
    if (xc_domain_hvm_setcontext(s->h->xch, s->h->domid, record->body, record->length))
        return -errno;
    return 0;
}

static int apply_params(struct xc_sr_secondary *s, const struct xc_sr_record *record)
{
    const struct remus_hvm_param *param = (const struct remus_hvm_param *)record->body;
    uint32_t i;

    for (i = 0; i < record->length / sizeof(*param); i++) {
        if (param[i].index != HVM_PARAM_CALLBACK_IRQ)
            return -EBADMSG;    /* the others belong to the domain, not to the checkpoint */
        if (xc_hvm_param_set(s->h->xch, s->h->domid, HVM_PARAM_CALLBACK_IRQ, param[i].value))
            return -errno;
    }
    return 0;
}

static int check_evtchn(struct xc_sr_secondary *s, const struct xc_sr_record *record)
{
    const struct remus_evtchn *want = (const struct remus_evtchn *)record->body;
    unsigned int have_count, count = record->length / (uint32_t)sizeof(*want);
    char why[200];
    int rc;

    rc = xc_sr_evtchn_read(s->h, s->evtchn, XC_SR_EVTCHN_MAX, &have_count);
    if (rc)
        return rc;
    rc = xc_sr_evtchn_compare(want, count, s->evtchn, have_count, why, sizeof(why));
    if (rc)
        xc_sr_log(s->h, XC_SR_ERROR, "domain %u: %s; the copy must be built anew", s->h->domid,
                  why);
    return rc;
}

/*
 * An event that arrives for the paused copy (its own timer, mostly) is Xen's to deliver: it has set
 * evtchn_upcall_pending and evtchn_pending_sel in the vCPU's vcpu_info, with the port's bit in
 * shared_info and the LAPIC's.  Whether that is all in which this page differs from the mirror.
 */
static bool only_an_event(const uint8_t *have, const uint8_t *mirror, unsigned int first,
                          unsigned int last)
{
    unsigned int info = first & ~(unsigned int)(sizeof(struct vcpu_info) - 1);
    unsigned int sel = info + (unsigned int)offsetof(struct vcpu_info, evtchn_pending_sel);
    unsigned int b;

    if (last >= info + sizeof(struct vcpu_info) || have[info] != 1)
        return false;
    for (b = first; b <= last; b++)
        if (have[b] != mirror[b] && b != info && (b < sel || b >= sel + sizeof(xen_ulong_t)))
            return false;
    return true;
}

/* Hashes of the primary's pages against this guest's. */
static void verify(struct xc_sr_secondary *s, const struct xc_sr_record *record,
                   struct xc_sr_apply_stats *stats)
{
    const struct remus_hash *hash = (const struct remus_hash *)record->body;
    uint64_t i, count = record->length / sizeof(*hash);

    for (i = 0; i < count; i++) {
        unsigned int first = XC_SR_PAGE_BYTES, last = 0, differing = 0, b;
        const uint8_t *have, *mirror;
        bool mirror_equal;
        void *page;
        int rc = xc_sr_cache_get(s->cache, hash[i].gfn, &page);

        if (!rc && XXH64(page, XC_SR_PAGE_BYTES, 0) == hash[i].hash)
            continue;
        if (rc || hash[i].gfn >= s->physmap.gfns) {
            if (stats->verify_bad++ == 0)
                stats->first_bad_gfn = hash[i].gfn;
            xc_sr_log(s->h, XC_SR_ERROR, "verify: domain %u has no page at gfn %#lx", s->h->domid,
                      (unsigned long)hash[i].gfn);
            continue;
        }
        have = page;
        mirror = mirror_page(s, hash[i].gfn);
        for (b = 0; b < XC_SR_PAGE_BYTES; b++) {
            if (have[b] != mirror[b]) {
                differing++;
                last = b;
                if (first == XC_SR_PAGE_BYTES)
                    first = b;
            }
        }
        mirror_equal = XXH64(mirror, XC_SR_PAGE_BYTES, 0) == hash[i].hash;
        if (mirror_equal && differing && only_an_event(have, mirror, first, last))
            continue;
        if (stats->verify_bad++ == 0)
            stats->first_bad_gfn = hash[i].gfn;
        xc_sr_log(s->h, XC_SR_ERROR, "verify: gfn %#lx of domain %u differs from the primary's; "
                  "mirror %s; %u bytes differ from the mirror, from %u to %u (first %#x, mirror "
                  "%#x)", (unsigned long)hash[i].gfn, s->h->domid,
                  mirror_equal ? "equal" : "differs", differing, first, last,
                  differing ? have[first] : 0, differing ? mirror[first] : 0);
    }
}

/* Whether shared_info has a pending port that the epoch's image has not. */
static bool event_arrived(struct xc_sr_secondary *s)
{
    const struct shared_info *image = (const struct shared_info *)s->shared_image, *now;
    unsigned int word;
    void *page;

    if (xc_sr_cache_get(s->cache, s->shared_gfn, &page))
        return false;
    now = page;
    for (word = 0; word < sizeof(now->evtchn_pending) / sizeof(now->evtchn_pending[0]); word++)
        if (now->evtchn_pending[word] & ~image->evtchn_pending[word])
            return true;
    return false;
}

int xc_sr_secondary_apply(struct xc_sr_secondary *s, const struct xc_sr_epoch *e,
                          struct xc_sr_apply_stats *stats)
{
    const struct xc_sr_record *context = xc_sr_epoch_find(e, REMUS_RECORD_HVM_CONTEXT);
    const struct xc_sr_record *grants = xc_sr_epoch_find(e, REMUS_RECORD_GRANT_V1);
    const struct xc_sr_record *evtchn = xc_sr_epoch_find(e, REMUS_RECORD_EVTCHN);
    const struct xc_sr_record *params = xc_sr_epoch_find(e, REMUS_RECORD_HVM_PARAMS);
    const struct xc_sr_record *hashes = xc_sr_epoch_find(e, REMUS_RECORD_HASHES);
    unsigned int rounds = 0;
    uint64_t i;
    int rc;

    memset(stats, 0, sizeof(*stats));
    if (!context || !grants || !evtchn || !params)
        return -EBADMSG;
    rc = check_evtchn(s, evtchn);
    if (rc)
        return rc;
    rc = xc_sr_dirty_read_clean(&s->dirty);
    if (rc)
        return rc;
    /*
     * vCPU state first: an event that arrives later finds its upcall in the new LAPIC.  One that
     * arrives while pages are being written can be torn, a port pending of which no vCPU knows,
     * which would silence that port for good; it is seen in shared_info, and what was written is
     * written again.  A timer fires once, so the second round is quiet.
     */
    do {
        rc = apply_context(s, context);
        if (!rc)
            rc = apply_pages(s, e);
    } while (!rc && ++rounds < APPLY_ROUNDS && event_arrived(s));
    if (!rc)
        rc = roll_back(s, &stats->rolled_back);
    for (i = 0; i < e->pages; i++)
        if (e->gfns[i] < s->physmap.gfns)
            s->in_epoch[e->gfns[i] / 64] = 0;
    if (!rc)
        rc = xc_sr_grants_copy_in(&s->grants, grants->body, grants->length);
    if (!rc)
        rc = apply_params(s, params);
    if (!rc && hashes)
        verify(s, hashes, stats);
    stats->pages = e->pages;
    return rc;
}

void xc_sr_secondary_close(struct xc_sr_secondary *s, bool disable_log_dirty)
{
    if (!s)
        return;
    xc_sr_cache_free(s->cache);
    if (s->dirty.bits)
        xc_sr_dirty_end(&s->dirty, disable_log_dirty);
    xc_sr_grants_unmap(&s->grants);
    xc_sr_physmap_free(&s->physmap);
    if (s->mirror)
        munmap(s->mirror, s->mirror_bytes);
    free(s->in_epoch);
    free(s);
}
