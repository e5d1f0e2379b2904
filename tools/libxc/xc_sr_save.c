/*
 * xc_sr_save.c: writes the state of an HVM or PVH guest as a public migration stream.
 *
 * Live:     log-dirty on; all pages; then only those written since, pass after pass; then the
 *           guest is suspended and what is left goes into a staging buffer, the guest is resumed,
 *           and the buffer is written.
 * Not live: the guest is suspended and everything is written.
 *
 * Holes of the physmap are never written (the distribution's saver lists each of them, a million
 * in the smallest PVH guest), and pages go from the cache's mapping to ops->write without a copy
 * wherever enough of them stand next to each other.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <xenctrl.h>
#include <xenguest.h>
#include <xen/hvm/params.h>

#include "tools/libxc/xc_sr_private.h"
#include "tools/libxc/xc_sr_stream.h"

/* Small pieces are gathered up to this size before ops->write is called ... */
#define GATHER_BYTES (256u << 10)
/* ... and pieces from this size on are handed over as they stand. */
#define DIRECT_BYTES (32u << 10)

/* More than this is written with the guest stopped rather than staged in dom0's memory. */
#define STAGE_PAGES_MAX (65536u)

struct save {
    const struct xc_sr_handles *h;
    const struct xc_sr_save_params *params;
    const struct xc_sr_save_ops *ops;
    void *arg;
    struct xc_sr_cache *cache;
    bool own_cache;

    uint8_t *gather; /* [GATHER_BYTES] */
    size_t gathered;
    struct xc_sr_progress progress;

    struct xc_sr_physmap map;
    struct xc_sr_dirty dirty;
    uint64_t gfns;  /* bits of todo and sent, a multiple of 64, >= map.gfns */
    uint64_t *todo; /* pages of the next pass */
    uint64_t *sent; /* pages the stream has had, in any version */
    uint64_t pages_sent;

    struct xc_sr_epoch staged;
    bool suspended;
    uint64_t suspended_at;
    uint64_t suspended_us;

    struct xc_sr_tsc_info tsc;
    uint8_t *context;
    uint32_t context_bytes, context_room;
    struct {
        struct xc_sr_hvm_params header;
        struct xc_sr_hvm_param entry[XC_SR_HVM_PARAMS_MAX];
    } hvm_params;

    /* One PAGE_DATA record under construction. */
    unsigned int batch_count;
    uint64_t batch[XC_SR_BATCH_PAGES]; /* gfns */
    uint64_t pfns[XC_SR_BATCH_PAGES];  /* the same with their types, as on the wire */
};

/* ---- Output ---------------------------------------------------------------------------------- */

static int flush(struct save *s)
{
    size_t length = s->gathered;

    s->gathered = 0;
    return length ? s->ops->write(s->arg, s->gather, length) : 0;
}

static int put(struct save *s, const void *data, size_t length)
{
    int rc;

    s->progress.bytes_written += length;
    if (length >= DIRECT_BYTES) {
        rc = flush(s);
        return rc ? rc : s->ops->write(s->arg, data, length);
    }
    if (s->gathered + length > GATHER_BYTES) {
        rc = flush(s);
        if (rc)
            return rc;
    }
    memcpy(s->gather + s->gathered, data, length);
    s->gathered += length;
    return 0;
}

static int put_record(struct save *s, uint32_t type, const void *body, uint32_t length)
{
    static const uint8_t zeroes[XC_SR_RECORD_ALIGN];
    struct xc_sr_record_header header = {.type = type, .length = length};
    int rc;

    rc = put(s, &header, sizeof(header));
    if (!rc && length)
        rc = put(s, body, length);
    if (!rc && length % XC_SR_RECORD_ALIGN)
        rc = put(s, zeroes, XC_SR_RECORD_ALIGN - length % XC_SR_RECORD_ALIGN);
    return rc;
}

static void report(struct save *s)
{
    if (s->ops->progress)
        s->ops->progress(s->arg, &s->progress);
}

/* ---- Bitmaps --------------------------------------------------------------------------------- */

static int grow(uint64_t **bits, uint64_t from, uint64_t to)
{
    uint64_t *grown = realloc(*bits, to / 8);

    if (!grown)
        return -ENOMEM;
    memset((uint8_t *)grown + from / 8, 0, (to - from) / 8);
    *bits = grown;
    return 0;
}

/* Reads the physmap (again); todo and sent cover it afterwards, and so does the dirty bitmap. */
static int read_physmap(struct save *s)
{
    struct xc_sr_physmap map;
    uint64_t gfns;
    int rc;

    rc = xc_sr_physmap_read(&map, s->h);
    if (rc)
        return rc;
    xc_sr_physmap_free(&s->map);
    s->map = map;
    gfns = XC_SR_ROUND_UP(map.gfns, 64ull);
    if (gfns <= s->gfns)
        return 0;
    rc = grow(&s->todo, s->gfns, gfns);
    if (!rc)
        rc = grow(&s->sent, s->gfns, gfns);
    if (rc)
        return rc;
    s->gfns = gfns;
    if (s->dirty.buffer) {
        /*
         * Log-dirty stays on meanwhile.  Bits beyond the old end may have been cleaned unseen, as
         * Xen cleans 32768 gfns at a time; but those pages have never been sent, and so will be.
         */
        xc_sr_dirty_end(&s->dirty, false);
        rc = xc_sr_dirty_begin(&s->dirty, s->h, s->gfns);
    }
    return rc;
}

/* Drops mappings and reads the physmap again if the guest's memory has changed shape. */
static int follow_physmap(struct save *s)
{
    bool changed;
    int rc;

    rc = xc_sr_cache_revalidate(s->cache, &changed);
    if (!rc && changed)
        rc = read_physmap(s);
    return rc;
}

/* Dirty gfns that the physmap does not show: either new RAM or pages that Xen provides. */
static int admit(struct save *s, const uint64_t *gfns, unsigned int count)
{
    bool present[XC_SR_TYPES_MAX];
    int rc;

    rc = xc_sr_pages_present(s->h, gfns, count, present);
    if (rc)
        return rc;
    for (unsigned int i = 0; i < count; i++) {
        if (present[i] && gfns[i] < s->map.gfns && !xc_sr_bit(s->map.present, gfns[i])) {
            xc_sr_set_bit(s->map.present, gfns[i]);
            s->map.pages++;
            xc_sr_cache_invalidate(s->cache, gfns[i], 1);
        }
    }
    return 0;
}

/*
 * todo = pages written since the last pass, and with missing pages that the stream has never had.
 * *count says how many.
 */
static int select_dirty(struct save *s, bool missing, uint64_t *count)
{
    uint64_t unknown[XC_SR_TYPES_MAX];
    unsigned int unknowns = 0;
    uint64_t map_words = xc_sr_words(s->map.gfns), words = s->gfns / 64;
    uint64_t dirty_words = xc_sr_words(s->dirty.gfns);
    int rc;

    for (uint64_t i = 0; i < dirty_words && i < map_words; i++) {
        uint64_t bits = s->dirty.bits[i] & ~s->map.present[i];

        for (; bits; bits &= bits - 1) {
            unknown[unknowns++] = i * 64 + (uint64_t)__builtin_ctzll(bits);
            if (unknowns == XC_SR_TYPES_MAX) {
                rc = admit(s, unknown, unknowns);
                if (rc)
                    return rc;
                unknowns = 0;
            }
        }
    }
    rc = admit(s, unknown, unknowns);
    if (rc)
        return rc;

    *count = 0;
    for (uint64_t i = 0; i < words; i++) {
        uint64_t present = i < map_words ? s->map.present[i] : 0;
        uint64_t wanted = i < dirty_words ? s->dirty.bits[i] : 0;

        if (missing)
            wanted |= ~s->sent[i];
        s->todo[i] = wanted & present;
        *count += (uint64_t)__builtin_popcountll(s->todo[i]);
    }
    return 0;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* The record of s->batch.  Whether a page is there is known only once it is mapped. */
static int write_batch(struct save *s)
{
    static const uint8_t zeroes[XC_SR_PAGE_BYTES];
    struct xc_sr_page_data header = {0};
    struct xc_sr_record_header record = {.type = XC_SR_REC_PAGE_DATA};
    uint64_t with_data = 0, run_chunk = 0;
    uint8_t *run = NULL;
    size_t run_bytes = 0;
    unsigned int kept = 0;
    void *page;
    int rc;

    for (unsigned int i = 0; i < s->batch_count; i++) {
        uint64_t gfn = s->batch[i], type = XC_SR_PFN_NOTAB;

        rc = xc_sr_cache_get(s->cache, gfn, &page);
        if (rc && rc != -ENOENT)
            return rc;
        if (rc) {
            /* Gone since the physmap was read: worth a word only to one who has had it. */
            if (!xc_sr_bit(s->sent, gfn))
                continue;
            type = XC_SR_PFN_XTAB;
        } else {
            with_data++;
        }
        s->batch[kept] = gfn;
        s->pfns[kept++] = type << XC_SR_PFN_TYPE_SHIFT | gfn;
    }
    s->batch_count = 0;
    if (!kept)
        return 0;

    header.count = kept;
    record.length = (uint32_t)(sizeof(header) + kept * sizeof(s->pfns[0]) +
                               with_data * XC_SR_PAGE_BYTES);
    rc = put(s, &record, sizeof(record));
    if (!rc)
        rc = put(s, &header, sizeof(header));
    if (!rc)
        rc = put(s, s->pfns, kept * sizeof(s->pfns[0]));
    if (rc)
        return rc;

    /*
     * Neighbours in the mapping leave in one piece.  A run has to be written before the next page
     * is asked for if that lies in another chunk, because asking may evict the run's own.
     */
    for (unsigned int i = 0; i < kept; i++) {
        if (s->pfns[i] >> XC_SR_PFN_TYPE_SHIFT != XC_SR_PFN_NOTAB)
            continue;
        if (run && s->batch[i] / XC_SR_CACHE_CHUNK_PAGES != run_chunk) {
            rc = put(s, run, run_bytes);
            if (rc)
                return rc;
            run = NULL;
        }
        rc = xc_sr_cache_get(s->cache, s->batch[i], &page);
        if (rc && rc != -ENOENT)
            return rc;
        if (rc) {
            /* Promised and ballooned out since: the guest has no use for what is in it. */
            page = (void *)(uintptr_t)zeroes;
        }
        if (run && page == run + run_bytes) {
            run_bytes += XC_SR_PAGE_BYTES;
        } else {
            if (run) {
                rc = put(s, run, run_bytes);
                if (rc)
                    return rc;
            }
            run = page;
            run_bytes = XC_SR_PAGE_BYTES;
            run_chunk = s->batch[i] / XC_SR_CACHE_CHUNK_PAGES;
        }
        xc_sr_set_bit(s->sent, s->batch[i]);
    }
    if (run) {
        rc = put(s, run, run_bytes);
        if (rc)
            return rc;
    }
    s->pages_sent += with_data;
    s->progress.pages_done += kept;
    report(s);
    return 0;
}

static int write_pages(struct save *s, const uint64_t *bits, uint64_t words, uint64_t count)
{
    int rc;

    s->progress.pages_done = 0;
    s->progress.pages_total = count;
    s->batch_count = 0;
    report(s);
    for (uint64_t i = 0; i < words; i++) {
        for (uint64_t left = bits[i]; left; left &= left - 1) {
            uint64_t gfn = i * 64 + (uint64_t)__builtin_ctzll(left);

            /*
             * A record ends where 2 MiB of the guest end, if the next 2 MiB might not fit: the
             * reader can then give the guest a superpage.
             */
            if (s->batch_count == XC_SR_BATCH_PAGES ||
                (gfn % XC_SR_CACHE_CHUNK_PAGES == 0 &&
                 s->batch_count > XC_SR_BATCH_PAGES - XC_SR_CACHE_CHUNK_PAGES)) {
                rc = write_batch(s);
                if (rc)
                    return rc;
            }
            s->batch[s->batch_count++] = gfn;
        }
    }
    return s->batch_count ? write_batch(s) : 0;
}

/* Copies the pages of todo into the staging buffer. */
static int stage_pages(struct save *s)
{
    uint8_t *data;
    void *page;
    int rc;

    for (uint64_t i = 0; i < s->gfns / 64; i++) {
        for (uint64_t left = s->todo[i]; left; left &= left - 1) {
            uint64_t gfn = i * 64 + (uint64_t)__builtin_ctzll(left);

            rc = xc_sr_cache_get(s->cache, gfn, &page);
            if (rc == -ENOENT)
                continue;
            if (!rc)
                rc = xc_sr_epoch_add_page(&s->staged, gfn, &data);
            if (rc)
                return rc;
            memcpy(data, page, XC_SR_PAGE_BYTES);
        }
    }
    return 0;
}

static int write_staged(struct save *s)
{
    struct xc_sr_epoch *e = &s->staged;
    int rc;

    s->progress.pages_done = 0;
    s->progress.pages_total = e->pages;
    for (uint64_t first = 0; first < e->pages; first += XC_SR_BATCH_PAGES) {
        struct xc_sr_page_data header = {0};
        struct xc_sr_record_header record = {.type = XC_SR_REC_PAGE_DATA};
        uint64_t count = e->pages - first;

        if (count > XC_SR_BATCH_PAGES)
            count = XC_SR_BATCH_PAGES;
        header.count = (uint32_t)count;
        record.length = (uint32_t)(sizeof(header) + count * (sizeof(uint64_t) + XC_SR_PAGE_BYTES));
        rc = put(s, &record, sizeof(record));
        if (!rc)
            rc = put(s, &header, sizeof(header));
        if (!rc)
            rc = put(s, e->gfns + first, count * sizeof(uint64_t));
        if (!rc)
            rc = put(s, e->data + first * XC_SR_PAGE_BYTES, count * XC_SR_PAGE_BYTES);
        if (rc)
            return rc;
        s->pages_sent += count;
        s->progress.pages_done += count;
        report(s);
    }
    return 0;
}

/* ---- Everything that is not memory ----------------------------------------------------------- */

static int write_headers(struct save *s)
{
    int version = xc_version(s->h->xch, XENVER_version, NULL);
    struct xc_sr_image_header image = {
        .marker = XC_SR_IMAGE_MARKER,
        .id = htobe32(XC_SR_IMAGE_ID),
        .version = htobe32(XC_SR_IMAGE_VERSION),
        .options = htobe16(0),
    };
    struct xc_sr_domain_header domain = {
        .type = XC_SR_DOMAIN_X86_HVM,
        .page_shift = XC_SR_PAGE_SHIFT,
    };
    int rc;

    if (version < 0) {
        rc = -errno;
        xc_sr_log(s->h, XC_SR_ERROR, "cannot read the version of Xen: %s", strerror(-rc));
        return rc;
    }
    domain.xen_major = (uint32_t)version >> 16;
    domain.xen_minor = (uint32_t)version & 0xffff;
    rc = put(s, &image, sizeof(image));
    return rc ? rc : put(s, &domain, sizeof(domain));
}

static int write_policies(struct save *s)
{
    xc_interface *xch = s->h->xch;
    xc_cpu_policy_t *policy = NULL;
    xen_cpuid_leaf_t *leaves = NULL;
    xen_msr_entry_t *msrs = NULL;
    uint32_t leaf_count = 0, msr_count = 0;
    int rc;

    if (xc_cpu_policy_get_size(xch, &leaf_count, &msr_count) < 0) {
        rc = -errno;
        goto failed;
    }
    leaves = calloc(leaf_count ? leaf_count : 1, sizeof(*leaves));
    msrs = calloc(msr_count ? msr_count : 1, sizeof(*msrs));
    policy = xc_cpu_policy_init();
    if (!leaves || !msrs || !policy) {
        rc = -ENOMEM;
        goto failed;
    }
    if (xc_cpu_policy_get_domain(xch, s->h->domid, policy) ||
        xc_cpu_policy_serialise(xch, policy, leaves, &leaf_count, msrs, &msr_count)) {
        rc = errno ? -errno : -EIO;
        goto failed;
    }

    rc = 0;
    if (leaf_count)
        rc = put_record(s, XC_SR_REC_X86_CPUID_POLICY, leaves,
                        (uint32_t)(leaf_count * sizeof(*leaves)));
    if (!rc && msr_count)
        rc = put_record(s, XC_SR_REC_X86_MSR_POLICY, msrs, (uint32_t)(msr_count * sizeof(*msrs)));
    goto out;

failed:
    xc_sr_log(s->h, XC_SR_ERROR, "cannot read the CPU policy of domain %u: %s", s->h->domid,
              strerror(-rc));
out:
    free(leaves);
    free(msrs);
    if (policy)
        xc_cpu_policy_destroy(policy);
    return rc;
}

/* Room for the HVM context, so that the stopped guest need not wait for an allocation. */
static int reserve_context(struct save *s)
{
    int bytes = xc_domain_hvm_getcontext(s->h->xch, s->h->domid, NULL, 0);

    if (bytes <= 0 || (uint32_t)bytes > XC_SR_HVM_CONTEXT_BYTES_MAX) {
        int rc = bytes < 0 ? -errno : -EIO;

        xc_sr_log(s->h, XC_SR_ERROR, "cannot read the size of the HVM context of domain %u: %s",
                  s->h->domid, strerror(-rc));
        return rc;
    }
    if ((uint32_t)bytes > s->context_room) {
        uint8_t *grown = realloc(s->context, (size_t)bytes);

        if (!grown)
            return -ENOMEM;
        s->context = grown;
        s->context_room = (uint32_t)bytes;
    }
    return 0;
}

/* Time, vCPUs and parameters, as of now; the guest is stopped. */
static int take_state(struct save *s)
{
    static const uint16_t wanted[] = {
        HVM_PARAM_STORE_PFN,
        HVM_PARAM_IOREQ_PFN,
        HVM_PARAM_BUFIOREQ_PFN,
        HVM_PARAM_PAGING_RING_PFN,
        HVM_PARAM_MONITOR_RING_PFN,
        HVM_PARAM_SHARING_RING_PFN,
        HVM_PARAM_VM86_TSS_SIZED,
        HVM_PARAM_CONSOLE_PFN,
        HVM_PARAM_ACPI_IOPORTS_LOCATION,
        HVM_PARAM_VIRIDIAN,
        HVM_PARAM_IDENT_PT,
        HVM_PARAM_VM_GENERATION_ID_ADDR,
        HVM_PARAM_IOREQ_SERVER_PFN,
        HVM_PARAM_NR_IOREQ_SERVER_PAGES,
        HVM_PARAM_X87_FIP_WIDTH,
        HVM_PARAM_MCA_CAP,
    };
    xc_interface *xch = s->h->xch;
    uint32_t domid = s->h->domid;
    const char *what;
    int bytes, rc;

    what = "TSC";
    if (xc_domain_get_tsc_info(xch, domid, &s->tsc.mode, &s->tsc.nsec, &s->tsc.khz,
                               &s->tsc.incarnation) < 0)
        goto failed;

    what = "HVM context";
    bytes = xc_domain_hvm_getcontext(xch, domid, s->context, s->context_room);
    if (bytes < 0) {
        /* It may have grown since the room was made, by a vCPU that came online. */
        rc = reserve_context(s);
        if (rc)
            return rc;
        bytes = xc_domain_hvm_getcontext(xch, domid, s->context, s->context_room);
    }
    if (bytes <= 0)
        goto failed;
    s->context_bytes = (uint32_t)bytes;

    what = "parameters";
    s->hvm_params.header = (struct xc_sr_hvm_params){0};
    for (unsigned int i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        struct xc_sr_hvm_param *entry = &s->hvm_params.entry[s->hvm_params.header.count];

        if (xc_hvm_param_get(xch, domid, wanted[i], &entry->value))
            goto failed;
        entry->index = wanted[i];
        if (entry->value)
            s->hvm_params.header.count++;
    }
    return 0;

failed:
    rc = errno ? -errno : -EIO;
    xc_sr_log(s->h, XC_SR_ERROR, "cannot read the %s of domain %u: %s", what, domid, strerror(-rc));
    return rc;
}

static int write_state(struct save *s)
{
    uint32_t count = s->hvm_params.header.count;
    int rc;

    rc = put_record(s, XC_SR_REC_X86_TSC_INFO, &s->tsc, sizeof(s->tsc));
    if (!rc)
        rc = put_record(s, XC_SR_REC_HVM_CONTEXT, s->context, s->context_bytes);
    if (!rc && count)
        rc = put_record(
            s, XC_SR_REC_HVM_PARAMS, &s->hvm_params,
            (uint32_t)(sizeof(s->hvm_params.header) + count * sizeof(s->hvm_params.entry[0])));
    if (!rc)
        rc = put_record(s, XC_SR_REC_END, NULL, 0);
    return rc ? rc : flush(s);
}

/* ---- The order of things --------------------------------------------------------------------- */

static int suspend(struct save *s)
{
    xc_dominfo_t info;
    int rc;

    rc = s->ops->suspend(s->arg);
    if (rc) {
        xc_sr_log(s->h, XC_SR_ERROR, "domain %u was not suspended: %s", s->h->domid, strerror(-rc));
        return rc;
    }
    s->suspended = true;
    s->suspended_at = xc_sr_now_us();
    s->progress.stopped = true;
    if (xc_domain_getinfo(s->h->xch, s->h->domid, 1, &info) != 1 || info.domid != s->h->domid)
        return -ESRCH;
    if (!info.shutdown || info.shutdown_reason != SHUTDOWN_suspend) {
        xc_sr_log(s->h, XC_SR_ERROR, "domain %u should be suspended, but shutdown is %u, reason %u",
                  s->h->domid, info.shutdown, info.shutdown_reason);
        return -EBUSY;
    }
    return 0;
}

/* At most once, whatever happened before; not at all if the caller keeps the guest suspended. */
static int resume(struct save *s)
{
    int rc;

    if (!s->suspended)
        return 0;
    s->suspended = false;
    s->suspended_us = xc_sr_now_us() - s->suspended_at;
    if (!s->ops->resume)
        return 0;
    rc = s->ops->resume(s->arg);
    if (rc)
        xc_sr_log(s->h, XC_SR_ERROR, "domain %u could not be resumed: %s", s->h->domid,
                  strerror(-rc));
    return rc;
}

static int live_passes(struct save *s)
{
    uint64_t count;
    int rc;

    /* Everything goes in the first pass, so what was logged before it says nothing. */
    rc = xc_sr_dirty_read_clean(&s->dirty);
    if (!rc)
        rc = read_physmap(s);
    if (!rc)
        rc = write_pages(s, s->map.present, xc_sr_words(s->map.gfns), s->map.pages);
    if (rc)
        return rc;

    for (s->progress.pass = 1; s->progress.pass < s->params->max_passes; s->progress.pass++) {
        rc = follow_physmap(s);
        if (!rc)
            rc = xc_sr_dirty_read_clean(&s->dirty);
        if (!rc)
            rc = select_dirty(s, false, &count);
        if (!rc)
            rc = write_pages(s, s->todo, s->gfns / 64, count);
        if (rc)
            return rc;
        if (count <= s->params->stop_pages) {
            s->progress.pass++;
            break;
        }
    }
    /*
     * The physmap once more, while that costs the guest nothing: pages that it has got but never
     * written are in no dirty bitmap, and would be missing in the copy.
     */
    rc = follow_physmap(s);
    return rc ? rc : read_physmap(s);
}

/*
 * Makes the mappings that a save of everything will need, as far as the budget goes, so that the
 * guest does not stand still for it.
 */
static int map_ahead(struct save *s)
{
    struct xc_sr_cache_stats stats;
    uint64_t words = xc_sr_words(s->map.gfns), chunks;
    const uint64_t step = XC_SR_CACHE_CHUNK_PAGES / 64;
    void *page;
    int rc;

    xc_sr_cache_stats(s->cache, &stats);
    chunks = stats.budget_pages / XC_SR_CACHE_CHUNK_PAGES;
    for (uint64_t i = 0; i < words && chunks; i++) {
        if (!s->map.present[i])
            continue;
        rc = xc_sr_cache_get(s->cache, i * 64, &page);
        if (rc && rc != -ENOENT)
            return rc;
        chunks--;
        i |= step - 1;
    }
    return 0;
}

/* The guest is stopped when this returns 0, and todo says what is to be written of it. */
static int stop(struct save *s, bool live, uint64_t *count)
{
    int rc;

    rc = reserve_context(s);
    if (!rc)
        rc = suspend(s);
    if (!rc)
        rc = follow_physmap(s);
    if (!rc && !live)
        rc = read_physmap(s);
    if (!rc && s->dirty.buffer)
        rc = xc_sr_dirty_read_clean(&s->dirty);
    /* Not live: nothing has been sent, so everything present is missing. */
    return rc ? rc : select_dirty(s, true, count);
}

static int save_memory_and_state(struct save *s)
{
    bool live = s->params->max_passes > 0;
    uint64_t count;
    int rc;

    rc = read_physmap(s);
    if (!rc && (live || s->params->keep_log_dirty))
        rc = xc_sr_dirty_begin(&s->dirty, s->h, s->gfns);
    if (!rc)
        rc = live ? live_passes(s) : map_ahead(s);
    if (rc)
        return rc;
    rc = stop(s, live, &count);
    if (rc)
        return rc;

    if (live && s->ops->resume && count <= STAGE_PAGES_MAX) {
        rc = stage_pages(s);
        if (!rc)
            rc = take_state(s);
        if (!rc)
            rc = resume(s);
        return rc ? rc : write_staged(s);
    }
    rc = write_pages(s, s->todo, s->gfns / 64, count);
    if (!rc)
        rc = take_state(s);
    return rc ? rc : resume(s);
}

static int check_domain(const struct xc_sr_handles *h)
{
    xc_dominfo_t info;

    if (xc_domain_getinfo(h->xch, h->domid, 1, &info) != 1 || info.domid != h->domid) {
        xc_sr_log(h, XC_SR_ERROR, "domain %u does not exist", h->domid);
        return -ESRCH;
    }
    if (!info.hvm) {
        xc_sr_log(h, XC_SR_ERROR, "domain %u is a PV guest; only PVH and HVM guests can be saved",
                  h->domid);
        return -EOPNOTSUPP;
    }
    return 0;
}

/* Without a cache of the caller's, one that serves the passes of this save. */
#define OWN_CACHE_PAGES 262144u

static int save_libxc(struct save *s)
{
    int rc, resumed;

    rc = check_domain(s->h);
    if (rc)
        goto out;
    s->cache = s->params->cache;
    if (!s->cache) {
        rc = xc_sr_cache_new(&s->cache, s->h, OWN_CACHE_PAGES);
        if (rc)
            goto out;
        s->own_cache = true;
    }
    rc = write_headers(s);
    if (!rc)
        rc = write_policies(s);
    if (!rc)
        rc = put_record(s, XC_SR_REC_STATIC_DATA_END, NULL, 0);
    if (!rc)
        rc = save_memory_and_state(s);
    if (!rc)
        rc = write_state(s);

out:
    /* A guest that we had stopped runs on, whatever the error was. */
    resumed = resume(s);
    if (!rc)
        rc = resumed;
    xc_sr_dirty_end(&s->dirty, rc || !s->params->keep_log_dirty);
    return rc;
}

static int save(const struct xc_sr_handles *h, const struct xc_sr_save_params *params,
                const struct xc_sr_save_ops *ops, void *arg, struct xc_sr_save_result *result,
                bool outer)
{
    struct xc_sr_outer_header header = {
        .ident = htobe64(XC_SR_OUTER_IDENT),
        .version = htobe32(XC_SR_OUTER_VERSION),
    };
    uint64_t start = xc_sr_now_us();
    struct save *s;
    int rc;

    s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->h = h;
    s->params = params;
    s->ops = ops;
    s->arg = arg;
    s->gather = malloc(GATHER_BYTES);
    if (!s->gather) {
        rc = -ENOMEM;
        goto out;
    }
    rc = 0;
    if (outer) {
        rc = put(s, &header, sizeof(header));
        if (!rc)
            rc = put_record(s, XC_SR_OUTER_LIBXC_CONTEXT, NULL, 0);
    }
    if (!rc)
        rc = save_libxc(s);
    if (!rc && outer) {
        rc = put_record(s, XC_SR_OUTER_END, NULL, 0);
        if (!rc)
            rc = flush(s);
    }

out:
    if (result)
        *result = (struct xc_sr_save_result){
            .suspended_us = s->suspended_us,
            .pages_sent = s->pages_sent,
            .passes = s->progress.pass + 1,
            .total_us = xc_sr_now_us() - start,
        };
    if (s->own_cache)
        xc_sr_cache_free(s->cache);
    xc_sr_epoch_free(&s->staged);
    xc_sr_physmap_free(&s->map);
    free(s->todo);
    free(s->sent);
    free(s->context);
    free(s->gather);
    free(s);
    return rc;
}

int xc_sr_save(const struct xc_sr_handles *h, const struct xc_sr_save_params *params,
               const struct xc_sr_save_ops *ops, void *arg, struct xc_sr_save_result *result)
{
    return save(h, params, ops, arg, result, true);
}

int xc_sr_save_libxc(const struct xc_sr_handles *h, const struct xc_sr_save_params *params,
                     const struct xc_sr_save_ops *ops, void *arg, struct xc_sr_save_result *result)
{
    return save(h, params, ops, arg, result, false);
}
