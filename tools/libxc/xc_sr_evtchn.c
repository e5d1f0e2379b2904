/*
 * xc_sr_evtchn.c: reading and comparing event channel tables.
 *
 * A guest's kernel remembers which port stands for which IPI, VIRQ or device, so a copy of its
 * memory runs only in a domain whose table says the same.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tools/libxc/xc_sr_guest.h"

int xc_sr_evtchn_read(const struct xc_sr_handles *h, struct remus_evtchn *table,
                      unsigned int room, unsigned int *count)
{
    unsigned int port;

    *count = 0;
    for (port = 0; port < room; port++) {
        xc_evtchn_status_t status = { .dom = (domid_t)h->domid, .port = port };
        struct remus_evtchn *e = &table[port];

        if (xc_evtchn_status(h->xch, &status)) {
            if (errno == EINVAL && port > 0)
                break;          /* beyond the ports that Xen has allocated room for */
            return -errno;
        }
        memset(e, 0, sizeof(*e));
        e->status = (uint8_t)status.status;
        e->vcpu = (uint16_t)status.vcpu;
        switch (status.status) {
        case EVTCHNSTAT_unbound:
            e->detail = (uint32_t)status.u.unbound.dom << 16;
            break;
        case EVTCHNSTAT_interdomain:
            e->detail = (uint32_t)status.u.interdomain.dom << 16;
            break;
        case EVTCHNSTAT_pirq:
            e->detail = status.u.pirq;
            break;
        case EVTCHNSTAT_virq:
            e->detail = status.u.virq;
            break;
        default:
            break;
        }
        if (e->status != EVTCHNSTAT_closed)
            *count = port + 1;
    }
    return 0;
}

/*
 * The other end of an interdomain port is a backend, which comes and goes: for the guest such a
 * port is the same thing while nobody has bound to it.
 */
static bool is_device(const struct remus_evtchn *e)
{
    return e->status == EVTCHNSTAT_interdomain || e->status == EVTCHNSTAT_unbound;
}

bool xc_sr_evtchn_same(const struct remus_evtchn *a, const struct remus_evtchn *b)
{
    if (is_device(a) && is_device(b))
        return a->detail == b->detail && a->vcpu == b->vcpu;
    if (a->status != b->status)
        return false;
    return a->status == EVTCHNSTAT_closed || (a->detail == b->detail && a->vcpu == b->vcpu);
}

static const char *status_name(uint8_t status)
{
    switch (status) {
    case EVTCHNSTAT_closed: return "closed";
    case EVTCHNSTAT_unbound: return "unbound";
    case EVTCHNSTAT_interdomain: return "interdomain";
    case EVTCHNSTAT_pirq: return "pirq";
    case EVTCHNSTAT_virq: return "virq";
    case EVTCHNSTAT_ipi: return "ipi";
    default: return "unknown";
    }
}

int xc_sr_evtchn_compare(const struct remus_evtchn *a, unsigned int a_count,
                         const struct remus_evtchn *b, unsigned int b_count, char *why,
                         size_t why_bytes)
{
    static const struct remus_evtchn closed = { .status = EVTCHNSTAT_closed };
    unsigned int port, top = a_count > b_count ? a_count : b_count;

    for (port = 0; port < top; port++) {
        const struct remus_evtchn *x = port < a_count ? &a[port] : &closed;
        const struct remus_evtchn *y = port < b_count ? &b[port] : &closed;

        if (!xc_sr_evtchn_same(x, y)) {
            snprintf(why, why_bytes,
                     "event channel %u is %s (detail %#x, vCPU %u) on one side and %s (detail %#x, "
                     "vCPU %u) on the other", port, status_name(x->status), x->detail, x->vcpu,
                     status_name(y->status), y->detail, y->vcpu);
            return -EILSEQ;
        }
    }
    return 0;
}

/*
 * With the 2-level ABI, Linux masks every port in shared_info at boot and unmasks those it binds; a
 * guest that switched to FIFO never touches these bits, which Xen starts at zero.
 */
int xc_sr_evtchn_abi(const struct xc_sr_handles *h, bool *fifo)
{
    const struct shared_info *shared;
    uint64_t shared_gfn;
    xen_pfn_t gfn;
    unsigned int word;
    int err = 0, rc = xc_sr_shared_info_gfn(h, &shared_gfn);

    if (rc)
        return rc;
    gfn = shared_gfn;
    shared = xenforeignmemory_map(h->fmem, h->domid, PROT_READ, 1, &gfn, &err);
    if (!shared)
        return -errno;
    if (err) {
        xenforeignmemory_unmap(h->fmem, (void *)shared, 1);
        return -ENOENT;
    }
    *fifo = true;
    for (word = 0; word < sizeof(shared->evtchn_mask) / sizeof(shared->evtchn_mask[0]); word++)
        if (shared->evtchn_mask[word])
            *fifo = false;
    xenforeignmemory_unmap(h->fmem, (void *)shared, 1);
    return 0;
}
