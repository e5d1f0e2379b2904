/*
 * xc_sr_restore.c: reads a libxc migration stream into an empty HVM or PVH domain.
 *
 * The stream is not trusted.  Every length is checked against the table below before a byte of
 * the body is read, memory is taken for one small record at a time, and page contents go from the
 * stream straight into the guest.  What a record asks for is checked completely by one function
 * before another carries it out.
 *
 * Phases, the records that are legal in each, and what ends it:
 *
 *   STATIC   X86_CPUID_POLICY, X86_MSR_POLICY        STATIC_DATA_END
 *   MEMORY   PAGE_DATA, VERIFY                       the first record of STATE
 *   STATE    X86_TSC_INFO, HVM_CONTEXT, HVM_PARAMS   END
 *   DONE     nothing
 *
 * Optional records may stand anywhere and are skipped.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <xenctrl.h>
#include <xenguest.h>
#include <xen/hvm/params.h>

#include "tools/libxc/xc_sr_private.h"
#include "tools/libxc/xc_sr_stream.h"

enum phase { PHASE_STATIC = 1, PHASE_MEMORY = 2, PHASE_STATE = 4, PHASE_DONE = 8 };

struct reader;

struct rule {
    uint32_t type;
    const char *name;
    unsigned int legal; /* phases; 0: never, for the reason given */
    const char *reason;
    enum phase next; /* phase afterwards; 0: unchanged */
    bool repeats;
    uint32_t length_min, length_max;
    int (*handle)(struct reader *r, uint32_t length);
};

struct reader {
    const struct xc_sr_handles *h;
    const struct xc_sr_restore_params *params;
    const struct xc_sr_restore_ops *ops;
    void *arg;
    struct xc_sr_restore_result result;
    struct xc_sr_progress progress;

    enum phase phase;
    uint32_t seen;    /* bit per rule */
    uint64_t records; /* for messages: number of the current record */
    bool verify;      /* compare instead of write */
    uint64_t verify_bad;

    uint64_t pages_max;  /* Xen's limit for this domain */
    uint64_t pages;      /* populated */
    uint64_t gfns;       /* gfns below this may hold a page */
    uint64_t *populated; /* bit per gfn */

    uint8_t *cpuid, *msr, *context;
    uint32_t cpuid_bytes, msr_bytes, context_bytes;

    uint64_t *pfns; /* [XC_SR_PAGE_DATA_COUNT_MAX] of the current record */
    xen_pfn_t fresh[XC_SR_BATCH_PAGES];
    xen_pfn_t mapped[XC_SR_BATCH_PAGES];
    int errors[XC_SR_BATCH_PAGES];
    uint8_t scratch[XC_SR_PAGE_BYTES];
};

/*
 * Where RAM may be: a guest starts with up to 4 GiB of addresses below its upper RAM, and may move
 * pages about by ballooning and hotplug.  Anything beyond this is no real guest.
 */
#define PAGES_LIMIT           (1ull << 30) /* 4 TiB, should a domain have no limit of its own */
#define GFNS_LIMIT(pages_max) ((2ull << 20) + 4 * (pages_max))

/* ---- Input ----------------------------------------------------------------------------------- */

static int get(struct reader *r, void *data, size_t length)
{
    int rc;

    if (!length)
        return 0;
    rc = r->ops->read(r->arg, data, length);
    if (rc)
        xc_sr_log(r->h, XC_SR_ERROR, "stream for domain %u cannot be read (record %lu): %s",
                  r->h->domid, (unsigned long)r->records, strerror(-rc));
    else
        r->progress.bytes_written += length;
    return rc;
}

static int get_padding(struct reader *r, uint32_t length)
{
    uint8_t padding[XC_SR_RECORD_ALIGN];
    uint32_t rest = length % XC_SR_RECORD_ALIGN;

    /* The specification wants zeroes here, but nothing depends on it. */
    return rest ? get(r, padding, XC_SR_RECORD_ALIGN - rest) : 0;
}

static int skip(struct reader *r, uint32_t length)
{
    while (length) {
        uint32_t part = length < sizeof(r->scratch) ? length : (uint32_t)sizeof(r->scratch);
        int rc = get(r, r->scratch, part);

        if (rc)
            return rc;
        length -= part;
    }
    return 0;
}

/* A whole body in memory of its own; the rule has bounded the length. */
static int get_body(struct reader *r, uint32_t length, uint8_t **body)
{
    int rc;

    *body = malloc(length);
    if (!*body)
        return -ENOMEM;
    rc = get(r, *body, length);
    if (rc) {
        free(*body);
        *body = NULL;
    }
    return rc;
}

/* ---- Static data ----------------------------------------------------------------------------- */

static int get_policy(struct reader *r, uint32_t length, uint32_t entry, const char *name,
                      uint8_t **body, uint32_t *bytes)
{
    int rc;

    if (length % entry) {
        xc_sr_log(r->h, XC_SR_ERROR, "%s is %u bytes long, not a multiple of %u", name, length,
                  entry);
        return -EBADMSG;
    }
    rc = get_body(r, length, body);
    if (!rc)
        *bytes = length;
    return rc;
}

static int handle_cpuid_policy(struct reader *r, uint32_t length)
{
    return get_policy(r, length, sizeof(xen_cpuid_leaf_t), "X86_CPUID_POLICY", &r->cpuid,
                      &r->cpuid_bytes);
}

static int handle_msr_policy(struct reader *r, uint32_t length)
{
    return get_policy(r, length, sizeof(xen_msr_entry_t), "X86_MSR_POLICY", &r->msr, &r->msr_bytes);
}

static int handle_static_data_end(struct reader *r, uint32_t length)
{
    uint32_t leaf = ~0u, subleaf = ~0u, msr = ~0u;
    unsigned int missing = 0;
    int rc;

    (void)length;
    if (!r->cpuid)
        missing |= XGR_SDD_MISSING_CPUID;
    if (!r->msr)
        missing |= XGR_SDD_MISSING_MSR;
    if ((r->cpuid || r->msr) &&
        xc_set_domain_cpu_policy(
            r->h->xch, r->h->domid, r->cpuid_bytes / (uint32_t)sizeof(xen_cpuid_leaf_t),
            (xen_cpuid_leaf_t *)r->cpuid, r->msr_bytes / (uint32_t)sizeof(xen_msr_entry_t),
            (xen_msr_entry_t *)r->msr, &leaf, &subleaf, &msr)) {
        rc = errno ? -errno : -EIO;
        xc_sr_log(r->h, XC_SR_ERROR,
                  "Xen refuses the CPU policy of the stream for domain %u "
                  "(leaf 0x%x, subleaf 0x%x, MSR 0x%x): %s",
                  r->h->domid, leaf, subleaf, msr, strerror(-rc));
        return rc;
    }
    if (!r->ops->static_data_done) {
        if (!missing)
            return 0;
        xc_sr_log(r->h, XC_SR_ERROR, "stream for domain %u has no %s policy", r->h->domid,
                  missing & XGR_SDD_MISSING_CPUID ? "CPUID" : "MSR");
        return -EBADMSG;
    }
    rc = r->ops->static_data_done(r->arg, missing);
    if (rc)
        xc_sr_log(r->h, XC_SR_ERROR, "static data for domain %u were not accepted: %s", r->h->domid,
                  strerror(-rc));
    return rc;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static bool has_data(uint64_t pfn)
{
    return pfn >> XC_SR_PFN_TYPE_SHIFT == XC_SR_PFN_NOTAB;
}

static bool wants_page(uint64_t pfn)
{
    return has_data(pfn) || pfn >> XC_SR_PFN_TYPE_SHIFT == XC_SR_PFN_XALLOC;
}

/* Everything about the record but its page contents, which have not been read yet. */
static int check_pfns(const struct reader *r, uint32_t count, uint32_t length)
{
    uint64_t with_data = 0, wanted;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t pfn = r->pfns[i], gfn = pfn & XC_SR_PFN_MASK;
        unsigned int type = (unsigned int)(pfn >> XC_SR_PFN_TYPE_SHIFT);

        if (pfn & XC_SR_PFN_RESERVED) {
            xc_sr_log(r->h, XC_SR_ERROR, "PAGE_DATA entry %u has reserved bits: 0x%lx", i,
                      (unsigned long)pfn);
            return -EBADMSG;
        }
        switch (type) {
        case XC_SR_PFN_NOTAB:
            with_data++;
            /* fall through */
        case XC_SR_PFN_XALLOC:
            if (gfn >= r->gfns) {
                xc_sr_log(r->h, XC_SR_ERROR,
                          "PAGE_DATA wants a page at gfn 0x%lx; domain %u with at most %lu pages "
                          "may have gfns below 0x%lx",
                          (unsigned long)gfn, r->h->domid, (unsigned long)r->pages_max,
                          (unsigned long)r->gfns);
                return -EBADMSG;
            }
            break;
        case XC_SR_PFN_XTAB:
        case XC_SR_PFN_BROKEN:
            break;
        default:
            xc_sr_log(r->h, XC_SR_ERROR,
                      "PAGE_DATA entry %u, gfn 0x%lx, is of type 0x%x, which no HVM guest has", i,
                      (unsigned long)gfn, type);
            return -EBADMSG;
        }
    }
    wanted = sizeof(struct xc_sr_page_data) + count * sizeof(uint64_t) +
             with_data * XC_SR_PAGE_BYTES;
    if (length != wanted) {
        xc_sr_log(r->h, XC_SR_ERROR,
                  "PAGE_DATA is %u bytes long; %u entries, %lu with contents, need %lu", length,
                  count, (unsigned long)with_data, (unsigned long)wanted);
        return -EBADMSG;
    }
    return 0;
}

/* Allocates the pages of the gfns in r->fresh, by 2 MiB where they are all there in order. */
static int allocate(struct reader *r, unsigned int count)
{
    const unsigned int super = 512;
    unsigned int done = 0, i, n;

    while (done < count) {
        n = 1;
        while (done + n < count && n < super && r->fresh[done + n] == r->fresh[done] + n)
            n++;
        if (n == super && r->fresh[done] % super == 0) {
            xen_pfn_t start = r->fresh[done];

            if (xc_domain_populate_physmap(r->h->xch, r->h->domid, 1, 9, 0, &start) == 1) {
                done += super;
                continue;
            }
            /* This host has no 2 MiB in one piece left: single pages will do. */
        }
        /* Single pages up to where 2 MiB could start. */
        for (i = done + 1; i < count && r->fresh[i] % super; i++)
            ;
        if (xc_domain_populate_physmap_exact(r->h->xch, r->h->domid, i - done, 0, 0,
                                             r->fresh + done)) {
            int rc = errno ? -errno : -ENOMEM;

            xc_sr_log(r->h, XC_SR_ERROR,
                      "no memory for domain %u: %u pages from gfn 0x%lx, after %lu of at most %lu: "
                      "%s",
                      r->h->domid, i - done, (unsigned long)r->fresh[done],
                      (unsigned long)(r->pages - count + done), (unsigned long)r->pages_max,
                      strerror(-rc));
            return rc;
        }
        done = i;
    }
    return 0;
}

static int populate(struct reader *r, const uint64_t *pfns, unsigned int count)
{
    unsigned int fresh = 0;

    for (unsigned int i = 0; i < count; i++) {
        uint64_t gfn = pfns[i] & XC_SR_PFN_MASK;

        if (!wants_page(pfns[i]) || xc_sr_bit(r->populated, gfn))
            continue;
        if (r->pages == r->pages_max) {
            xc_sr_log(r->h, XC_SR_ERROR, "stream has more than the %lu pages domain %u may have",
                      (unsigned long)r->pages_max, r->h->domid);
            return -E2BIG;
        }
        xc_sr_set_bit(r->populated, gfn);
        r->pages++;
        r->fresh[fresh++] = gfn;
    }
    return allocate(r, fresh);
}

/* Contents of mapped pages: into them, or compared with them. */
static int fill(struct reader *r, uint8_t *pages, unsigned int count)
{
    int rc;

    if (!r->verify)
        return get(r, pages, (size_t)count * XC_SR_PAGE_BYTES);
    for (unsigned int i = 0; i < count; i++) {
        rc = get(r, r->scratch, XC_SR_PAGE_BYTES);
        if (rc)
            return rc;
        if (memcmp(r->scratch, pages + (size_t)i * XC_SR_PAGE_BYTES, XC_SR_PAGE_BYTES)) {
            if (!r->verify_bad++)
                xc_sr_log(r->h, XC_SR_ERROR, "gfn 0x%lx of domain %u differs from the stream",
                          (unsigned long)r->mapped[i], r->h->domid);
        }
    }
    return 0;
}

static int receive_pages(struct reader *r, const uint64_t *pfns, unsigned int count)
{
    unsigned int pages = 0;
    uint8_t *mapping;
    int rc;

    rc = populate(r, pfns, count);
    if (rc)
        return rc;
    for (unsigned int i = 0; i < count; i++)
        if (has_data(pfns[i]))
            r->mapped[pages++] = pfns[i] & XC_SR_PFN_MASK;
    if (!pages)
        return 0;

    memset(r->errors, 0, pages * sizeof(r->errors[0]));
    mapping = xenforeignmemory_map(r->h->fmem, r->h->domid, PROT_READ | PROT_WRITE, pages,
                                   r->mapped, r->errors);
    if (!mapping) {
        rc = errno ? -errno : -EIO;
        xc_sr_log(r->h, XC_SR_ERROR, "cannot map %u pages of domain %u from gfn 0x%lx: %s", pages,
                  r->h->domid, (unsigned long)r->mapped[0], strerror(-rc));
        return rc;
    }
    for (unsigned int i = 0; !rc && i < pages; i++) {
        if (r->errors[i]) {
            rc = -abs(r->errors[i]);
            xc_sr_log(r->h, XC_SR_ERROR, "cannot map gfn 0x%lx of domain %u: %s",
                      (unsigned long)r->mapped[i], r->h->domid, strerror(-rc));
        }
    }
    if (!rc)
        rc = fill(r, mapping, pages);
    xenforeignmemory_unmap(r->h->fmem, mapping, pages);
    r->result.pages_read += pages;
    return rc;
}

static int handle_page_data(struct reader *r, uint32_t length)
{
    struct xc_sr_page_data header;
    int rc;

    rc = get(r, &header, sizeof(header));
    if (rc)
        return rc;
    if (!header.count || header.count > XC_SR_PAGE_DATA_COUNT_MAX ||
        header.count > (length - sizeof(header)) / sizeof(uint64_t)) {
        xc_sr_log(r->h, XC_SR_ERROR, "PAGE_DATA of %u bytes says it has %u entries", length,
                  header.count);
        return -EBADMSG;
    }
    rc = get(r, r->pfns, header.count * sizeof(uint64_t));
    if (!rc)
        rc = check_pfns(r, header.count, length);

    for (uint32_t first = 0; !rc && first < header.count; first += XC_SR_BATCH_PAGES) {
        uint32_t count = header.count - first;

        if (count > XC_SR_BATCH_PAGES)
            count = XC_SR_BATCH_PAGES;
        rc = receive_pages(r, r->pfns + first, count);
    }
    r->progress.pages_done = r->pages;
    if (!rc && r->ops->progress)
        r->ops->progress(r->arg, &r->progress);
    return rc;
}

static int handle_verify(struct reader *r, uint32_t length)
{
    (void)length;
    r->verify = true;
    return 0;
}

/* ---- State ----------------------------------------------------------------------------------- */

static int handle_tsc_info(struct reader *r, uint32_t length)
{
    struct xc_sr_tsc_info tsc;
    int rc;

    (void)length;
    rc = get(r, &tsc, sizeof(tsc));
    if (rc)
        return rc;
    if (xc_domain_set_tsc_info(r->h->xch, r->h->domid, tsc.mode, tsc.nsec, tsc.khz,
                               tsc.incarnation)) {
        rc = errno ? -errno : -EIO;
        xc_sr_log(r->h, XC_SR_ERROR, "cannot set TSC mode %u, %u kHz, of domain %u: %s", tsc.mode,
                  tsc.khz, r->h->domid, strerror(-rc));
    }
    return rc;
}

/* Kept until END: parameters decide what is valid in it, and they come later. */
static int handle_hvm_context(struct reader *r, uint32_t length)
{
    int rc = get_body(r, length, &r->context);

    if (!rc)
        r->context_bytes = length;
    return rc;
}

/*
 * The parameters a saver sends.  The list is closed: others name event channels and domains, and
 * it is not for a file to say which.
 */
enum param_action { PARAM_UNKNOWN, PARAM_SET, PARAM_CLEAR_PAGE, PARAM_IGNORE };

static const uint8_t param_actions[HVM_NR_PARAMS] = {
    [HVM_PARAM_STORE_PFN] = PARAM_CLEAR_PAGE,
    [HVM_PARAM_CONSOLE_PFN] = PARAM_CLEAR_PAGE,
    [HVM_PARAM_IOREQ_PFN] = PARAM_CLEAR_PAGE,
    [HVM_PARAM_BUFIOREQ_PFN] = PARAM_CLEAR_PAGE,
    [HVM_PARAM_PAGING_RING_PFN] = PARAM_SET,
    [HVM_PARAM_MONITOR_RING_PFN] = PARAM_SET,
    [HVM_PARAM_SHARING_RING_PFN] = PARAM_SET,
    [HVM_PARAM_VM86_TSS] = PARAM_SET,
    [HVM_PARAM_VM86_TSS_SIZED] = PARAM_SET,
    [HVM_PARAM_ACPI_IOPORTS_LOCATION] = PARAM_SET,
    [HVM_PARAM_VIRIDIAN] = PARAM_SET,
    [HVM_PARAM_IDENT_PT] = PARAM_SET,
    [HVM_PARAM_VM_GENERATION_ID_ADDR] = PARAM_SET,
    [HVM_PARAM_IOREQ_SERVER_PFN] = PARAM_SET,
    [HVM_PARAM_NR_IOREQ_SERVER_PAGES] = PARAM_SET,
    [HVM_PARAM_X87_FIP_WIDTH] = PARAM_SET,
    [HVM_PARAM_MCA_CAP] = PARAM_SET,
    [HVM_PARAM_PAE_ENABLED] = PARAM_IGNORE, /* of old streams; the CPU policy says it now */
};

static int check_param(const struct reader *r, const struct xc_sr_hvm_param *param)
{
    enum param_action action = PARAM_UNKNOWN;

    if (param->index < HVM_NR_PARAMS)
        action = param_actions[param->index];
    if (action == PARAM_UNKNOWN) {
        xc_sr_log(r->h, XC_SR_ERROR, "HVM_PARAMS has parameter %lu, which no saver sends",
                  (unsigned long)param->index);
        return -EBADMSG;
    }
    if ((param->index == HVM_PARAM_STORE_PFN || param->index == HVM_PARAM_CONSOLE_PFN) &&
        (param->value >= r->gfns || !xc_sr_bit(r->populated, param->value))) {
        xc_sr_log(r->h, XC_SR_ERROR, "HVM_PARAMS puts the %s page at gfn 0x%lx, where no page is",
                  param->index == HVM_PARAM_STORE_PFN ? "xenstore" : "console",
                  (unsigned long)param->value);
        return -EBADMSG;
    }
    return 0;
}

static int set_param(struct reader *r, const struct xc_sr_hvm_param *param)
{
    xc_interface *xch = r->h->xch;
    uint32_t domid = r->h->domid;
    enum param_action action = param_actions[param->index];
    bool here = param->value < r->gfns && xc_sr_bit(r->populated, param->value);
    int rc;

    if (action == PARAM_IGNORE)
        return 0;
    /* Rings of a conversation that the new domain is to begin afresh. */
    if (action == PARAM_CLEAR_PAGE && here && xc_clear_domain_page(xch, domid, param->value)) {
        rc = errno ? -errno : -EIO;
        xc_sr_log(r->h, XC_SR_ERROR, "cannot clear gfn 0x%lx of domain %u: %s",
                  (unsigned long)param->value, domid, strerror(-rc));
        return rc;
    }
    if (param->index == HVM_PARAM_STORE_PFN)
        r->result.store_gfn = param->value;
    if (param->index == HVM_PARAM_CONSOLE_PFN)
        r->result.console_gfn = param->value;
    if (xc_hvm_param_set(xch, domid, (uint32_t)param->index, param->value)) {
        rc = errno ? -errno : -EIO;
        xc_sr_log(r->h, XC_SR_ERROR, "cannot set HVM parameter %lu of domain %u to 0x%lx: %s",
                  (unsigned long)param->index, domid, (unsigned long)param->value, strerror(-rc));
        return rc;
    }
    return 0;
}

static int handle_hvm_params(struct reader *r, uint32_t length)
{
    struct {
        struct xc_sr_hvm_params header;
        struct xc_sr_hvm_param entry[XC_SR_HVM_PARAMS_MAX];
    } body = {.header = {0}};
    int rc;

    rc = get(r, &body, length);
    if (rc)
        return rc;
    if (body.header.count > XC_SR_HVM_PARAMS_MAX ||
        length != sizeof(body.header) + body.header.count * sizeof(body.entry[0])) {
        xc_sr_log(r->h, XC_SR_ERROR, "HVM_PARAMS of %u bytes says it has %u entries", length,
                  body.header.count);
        return -EBADMSG;
    }
    for (uint32_t i = 0; !rc && i < body.header.count; i++)
        rc = check_param(r, &body.entry[i]);
    for (uint32_t i = 0; !rc && i < body.header.count; i++)
        rc = set_param(r, &body.entry[i]);
    return rc;
}

static int handle_end(struct reader *r, uint32_t length)
{
    (void)r;
    (void)length;
    return 0;
}

/* ---- The table ------------------------------------------------------------------------------- */

#define PV_ONLY      "it belongs to a PV guest, and only PVH and HVM guests can be restored"
#define CHECKPOINTED "the stream is checkpointed, and this reader takes complete ones only"

static const struct rule rules[] = {
    {.type = XC_SR_REC_X86_CPUID_POLICY,
     .name = "X86_CPUID_POLICY",
     .legal = PHASE_STATIC,
     .length_min = sizeof(xen_cpuid_leaf_t),
     .length_max = XC_SR_POLICY_BYTES_MAX,
     .handle = handle_cpuid_policy},
    {.type = XC_SR_REC_X86_MSR_POLICY,
     .name = "X86_MSR_POLICY",
     .legal = PHASE_STATIC,
     .length_min = sizeof(xen_msr_entry_t),
     .length_max = XC_SR_POLICY_BYTES_MAX,
     .handle = handle_msr_policy},
    {.type = XC_SR_REC_STATIC_DATA_END,
     .name = "STATIC_DATA_END",
     .legal = PHASE_STATIC,
     .next = PHASE_MEMORY,
     .handle = handle_static_data_end},
    {.type = XC_SR_REC_PAGE_DATA,
     .name = "PAGE_DATA",
     .legal = PHASE_MEMORY,
     .repeats = true,
     .length_min = sizeof(struct xc_sr_page_data) + sizeof(uint64_t),
     .length_max = XC_SR_RECORD_BYTES_MAX,
     .handle = handle_page_data},
    {.type = XC_SR_REC_VERIFY, .name = "VERIFY", .legal = PHASE_MEMORY, .handle = handle_verify},
    {.type = XC_SR_REC_X86_TSC_INFO,
     .name = "X86_TSC_INFO",
     .legal = PHASE_MEMORY | PHASE_STATE,
     .next = PHASE_STATE,
     .length_min = sizeof(struct xc_sr_tsc_info),
     .length_max = sizeof(struct xc_sr_tsc_info),
     .handle = handle_tsc_info},
    {.type = XC_SR_REC_HVM_CONTEXT,
     .name = "HVM_CONTEXT",
     .legal = PHASE_MEMORY | PHASE_STATE,
     .next = PHASE_STATE,
     .length_min = 1,
     .length_max = XC_SR_HVM_CONTEXT_BYTES_MAX,
     .handle = handle_hvm_context},
    {.type = XC_SR_REC_HVM_PARAMS,
     .name = "HVM_PARAMS",
     .legal = PHASE_MEMORY | PHASE_STATE,
     .next = PHASE_STATE,
     .length_min = sizeof(struct xc_sr_hvm_params),
     .length_max = sizeof(struct xc_sr_hvm_params) +
                   XC_SR_HVM_PARAMS_MAX * sizeof(struct xc_sr_hvm_param),
     .handle = handle_hvm_params},
    {.type = XC_SR_REC_END,
     .name = "END",
     .legal = PHASE_STATE,
     .next = PHASE_DONE,
     .handle = handle_end},

    {.type = XC_SR_REC_X86_PV_INFO, .name = "X86_PV_INFO", .reason = PV_ONLY},
    {.type = XC_SR_REC_X86_PV_P2M_FRAMES, .name = "X86_PV_P2M_FRAMES", .reason = PV_ONLY},
    {.type = XC_SR_REC_X86_PV_VCPU_BASIC, .name = "X86_PV_VCPU_BASIC", .reason = PV_ONLY},
    {.type = XC_SR_REC_X86_PV_VCPU_EXTENDED, .name = "X86_PV_VCPU_EXTENDED", .reason = PV_ONLY},
    {.type = XC_SR_REC_X86_PV_VCPU_XSAVE, .name = "X86_PV_VCPU_XSAVE", .reason = PV_ONLY},
    {.type = XC_SR_REC_X86_PV_VCPU_MSRS, .name = "X86_PV_VCPU_MSRS", .reason = PV_ONLY},
    {.type = XC_SR_REC_SHARED_INFO, .name = "SHARED_INFO", .reason = PV_ONLY},
    {.type = XC_SR_REC_TOOLSTACK,
     .name = "TOOLSTACK",
     .reason = "such records have not been written since Xen 4.6"},
    {.type = XC_SR_REC_CHECKPOINT, .name = "CHECKPOINT", .reason = CHECKPOINTED},
    {.type = XC_SR_REC_CHECKPOINT_DIRTY,
     .name = "CHECKPOINT_DIRTY_PFN_LIST",
     .reason = CHECKPOINTED},
};
#define RULES (sizeof(rules) / sizeof(rules[0]))
_Static_assert(RULES <= 32, "reader.seen has a bit for each rule");

static const char *phase_name(enum phase phase)
{
    switch (phase) {
    case PHASE_STATIC:
        return "static data";
    case PHASE_MEMORY:
        return "memory";
    case PHASE_STATE:
        return "state";
    case PHASE_DONE:
        return "the end";
    }
    return "?";
}

/* May this record stand here, with this length?  *rule is NULL for one that is to be skipped. */
static int check_record(struct reader *r, const struct xc_sr_record_header *record,
                        const struct rule **rule)
{
    const struct rule *found = NULL;
    unsigned int i;

    *rule = NULL;
    if (record->length > XC_SR_RECORD_BYTES_MAX) {
        xc_sr_log(r->h, XC_SR_ERROR, "record %lu of type 0x%x is %u bytes long; the limit is %u",
                  (unsigned long)r->records, record->type, record->length, XC_SR_RECORD_BYTES_MAX);
        return -EMSGSIZE;
    }
    if (record->type & XC_SR_RECORD_OPTIONAL)
        return 0;
    for (i = 0; i < RULES && !found; i++)
        if (rules[i].type == record->type)
            found = &rules[i];
    if (!found) {
        xc_sr_log(r->h, XC_SR_ERROR, "record %lu is of the unknown mandatory type 0x%x",
                  (unsigned long)r->records, record->type);
        return -EOPNOTSUPP;
    }
    if (!found->legal) {
        xc_sr_log(r->h, XC_SR_ERROR, "record %lu is %s: %s", (unsigned long)r->records, found->name,
                  found->reason);
        return -EOPNOTSUPP;
    }
    if (!(found->legal & r->phase)) {
        xc_sr_log(r->h, XC_SR_ERROR, "record %lu is %s, which may not stand among %s",
                  (unsigned long)r->records, found->name, phase_name(r->phase));
        return -EBADMSG;
    }
    if (record->length < found->length_min || record->length > found->length_max) {
        xc_sr_log(r->h, XC_SR_ERROR, "record %lu, %s, is %u bytes long; it should be %u to %u",
                  (unsigned long)r->records, found->name, record->length, found->length_min,
                  found->length_max);
        return -EMSGSIZE;
    }
    if (!found->repeats && r->seen & 1u << (found - rules)) {
        xc_sr_log(r->h, XC_SR_ERROR, "record %lu is a second %s", (unsigned long)r->records,
                  found->name);
        return -EBADMSG;
    }
    *rule = found;
    return 0;
}

static bool seen(const struct reader *r, uint32_t type)
{
    for (unsigned int i = 0; i < RULES; i++)
        if (rules[i].type == type)
            return r->seen >> i & 1;
    return false;
}

static int read_record(struct reader *r)
{
    struct xc_sr_record_header record;
    const struct rule *rule;
    int rc;

    r->records++;
    rc = get(r, &record, sizeof(record));
    if (!rc)
        rc = check_record(r, &record, &rule);
    if (rc)
        return rc;
    if (!rule) {
        xc_sr_log(r->h, XC_SR_DEBUG, "skipping optional record of type 0x%x", record.type);
        rc = skip(r, record.length);
    } else {
        r->seen |= 1u << (rule - rules);
        rc = rule->handle(r, record.length);
        if (!rc && rule->next)
            r->phase = rule->next;
    }
    return rc ? rc : get_padding(r, record.length);
}

static int read_headers(struct reader *r)
{
    struct xc_sr_image_header image;
    struct xc_sr_domain_header domain;
    int rc;

    rc = get(r, &image, sizeof(image));
    if (rc)
        return rc;
    if (image.marker != XC_SR_IMAGE_MARKER || be32toh(image.id) != XC_SR_IMAGE_ID) {
        xc_sr_log(r->h, XC_SR_ERROR, "this is no libxc stream: marker 0x%lx, id 0x%x",
                  (unsigned long)image.marker, be32toh(image.id));
        return -EBADMSG;
    }
    if (be32toh(image.version) != XC_SR_IMAGE_VERSION) {
        xc_sr_log(r->h, XC_SR_ERROR, "the stream is of version %u; version %u is supported",
                  be32toh(image.version), XC_SR_IMAGE_VERSION);
        return -EOPNOTSUPP;
    }
    if (be16toh(image.options) & XC_SR_IMAGE_BIG_ENDIAN) {
        xc_sr_log(r->h, XC_SR_ERROR, "the stream is big endian");
        return -EOPNOTSUPP;
    }
    rc = get(r, &domain, sizeof(domain));
    if (rc)
        return rc;
    if (domain.type != XC_SR_DOMAIN_X86_HVM) {
        xc_sr_log(r->h, XC_SR_ERROR,
                  "the stream has a guest of type %u%s; only PVH and HVM guests can be restored",
                  domain.type, domain.type == XC_SR_DOMAIN_X86_PV ? " (PV)" : "");
        return -EOPNOTSUPP;
    }
    if (domain.page_shift != XC_SR_PAGE_SHIFT) {
        xc_sr_log(r->h, XC_SR_ERROR, "the guest's pages are of 2^%u bytes, not 2^%u",
                  domain.page_shift, XC_SR_PAGE_SHIFT);
        return -EOPNOTSUPP;
    }
    xc_sr_log(r->h, XC_SR_DEBUG, "stream of an HVM or PVH guest from Xen %u.%u", domain.xen_major,
              domain.xen_minor);
    return 0;
}

/* The stream is in: what could not be done before the last record is done now. */
static int complete(struct reader *r)
{
    const struct xc_sr_restore_params *p = r->params;
    xc_interface *xch = r->h->xch;
    uint32_t domid = r->h->domid;
    const char *what;
    int rc;

    if (!seen(r, XC_SR_REC_X86_TSC_INFO) || !seen(r, XC_SR_REC_HVM_CONTEXT) ||
        !r->result.store_gfn) {
        xc_sr_log(r->h, XC_SR_ERROR, "the stream ends without %s",
                  !seen(r, XC_SR_REC_X86_TSC_INFO)  ? "X86_TSC_INFO"
                  : !seen(r, XC_SR_REC_HVM_CONTEXT) ? "HVM_CONTEXT"
                                                    : "the place of the xenstore page");
        return -EBADMSG;
    }
    if (r->verify)
        xc_sr_log(r->h, r->verify_bad ? XC_SR_ERROR : XC_SR_INFO,
                  "verified the memory of domain %u: %lu pages differ", domid,
                  (unsigned long)r->verify_bad);

    what = "the event channel of xenstore";
    if (xc_hvm_param_set(xch, domid, HVM_PARAM_STORE_EVTCHN, p->store_port))
        goto failed;
    what = "the event channel of the console";
    if (xc_hvm_param_set(xch, domid, HVM_PARAM_CONSOLE_EVTCHN, p->console_port))
        goto failed;
    what = "the HVM context";
    if (xc_domain_hvm_setcontext(xch, domid, r->context, r->context_bytes) < 0)
        goto failed;
    what = "the grants of console and xenstore";
    if (xc_dom_gnttab_seed(xch, domid, true, r->result.console_gfn, r->result.store_gfn,
                           p->console_domid, p->store_domid))
        goto failed;
    return 0;

failed:
    rc = errno ? -errno : -EIO;
    xc_sr_log(r->h, XC_SR_ERROR, "cannot set %s of domain %u: %s", what, domid, strerror(-rc));
    return rc;
}

static int set_up(struct reader *r)
{
    xc_dominfo_t info;

    if (xc_domain_getinfo(r->h->xch, r->h->domid, 1, &info) != 1 || info.domid != r->h->domid) {
        xc_sr_log(r->h, XC_SR_ERROR, "domain %u does not exist", r->h->domid);
        return -ESRCH;
    }
    if (!info.hvm) {
        xc_sr_log(r->h, XC_SR_ERROR, "domain %u is a PV guest; only PVH and HVM can be restored",
                  r->h->domid);
        return -EOPNOTSUPP;
    }
    r->pages_max = info.max_memkb / (XC_SR_PAGE_BYTES / 1024);
    if (r->pages_max > PAGES_LIMIT)
        r->pages_max = PAGES_LIMIT;
    r->gfns = GFNS_LIMIT(r->pages_max);
    r->populated = calloc(xc_sr_words(r->gfns), sizeof(*r->populated));
    r->pfns = malloc(XC_SR_PAGE_DATA_COUNT_MAX * sizeof(*r->pfns));
    return r->populated && r->pfns ? 0 : -ENOMEM;
}

int xc_sr_restore_libxc(const struct xc_sr_handles *h, const struct xc_sr_restore_params *params,
                        const struct xc_sr_restore_ops *ops, void *arg,
                        struct xc_sr_restore_result *result)
{
    struct reader *r;
    int rc;

    r = calloc(1, sizeof(*r));
    if (!r)
        return -ENOMEM;
    r->h = h;
    r->params = params;
    r->ops = ops;
    r->arg = arg;
    r->phase = PHASE_STATIC;

    rc = set_up(r);
    if (!rc)
        rc = read_headers(r);
    while (!rc && r->phase != PHASE_DONE)
        rc = read_record(r);
    if (!rc)
        rc = complete(r);
    if (!rc && result)
        *result = r->result;

    free(r->populated);
    free(r->pfns);
    free(r->cpuid);
    free(r->msr);
    free(r->context);
    free(r);
    return rc;
}
