/*
 * xc_sr_stub.c: rearranging a guest's event channels from inside.
 *
 * Only a guest can bind its IPIs and VIRQs, and each binding takes the lowest free port.  A guest
 * that has run its resume path bound them in another order than at boot, so a fresh copy's table
 * differs from the primary's.  The copy is about to be overwritten by the first checkpoint anyway;
 * before that, its vCPU 0 (suspended, interrupts off, every other vCPU spinning in stop_machine)
 * runs this instead of returning from its suspend hypercall: a loop over a table of event channel
 * operations, then SCHEDOP_shutdown(suspend) again.
 *
 * Page layout: code at 0, from XC_SR_STUB_TABLE the operations, 16 bytes each, a zero command ends.
 * (EVTCHNOP_bind_interdomain is 0 and is not used.)  Arguments are built on the guest's own
 * stack, below its red zone, because the page itself is mapped read-only in the guest.
 */
#include <errno.h>
#include <string.h>

#include "tools/libxc/xc_sr_guest.h" /* first: Xen's headers need its types */

#include <xen/sched.h>


#define STUB_TABLE 256u
_Static_assert(STUB_TABLE + (XC_SR_STUB_OPS_MAX + 1) * sizeof(struct xc_sr_stub_op) <=
               XC_SR_PAGE_BYTES, "operations fit behind the code");

struct assembler { uint8_t *page; unsigned int at; };

static void put(struct assembler *a, const void *bytes, unsigned int count)
{
    memcpy(a->page + a->at, bytes, count);
    a->at += count;
}
#define PUT(a, ...) put(a, (const uint8_t[]){ __VA_ARGS__ }, \
                        sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void put_u32(struct assembler *a, uint32_t value)
{
    put(a, &value, sizeof(value));
}

void xc_sr_stub_build(uint8_t page[XC_SR_PAGE_BYTES], const uint8_t hypercall[3],
                      const struct xc_sr_stub_op *ops, unsigned int count)
{
    struct assembler a = { .page = page };
    unsigned int loop, done_jump, mismatch_jump, no_port_jump, error_jump, here;

    memset(page, 0, XC_SR_PAGE_BYTES);
    memcpy(page + STUB_TABLE, ops, count * sizeof(*ops));

    PUT(&a, 0x48, 0x81, 0xec, 0x00, 0x01, 0x00, 0x00);  /* sub $256, %rsp */
    PUT(&a, 0x48, 0x8d, 0x1d);                          /* lea table(%rip), %rbx */
    put_u32(&a, STUB_TABLE - (a.at + 4));
    PUT(&a, 0x45, 0x31, 0xe4);                          /* xor %r12d, %r12d: operations done */
    loop = a.at;
    PUT(&a, 0x8b, 0x3b);                                /* mov (%rbx), %edi: command */
    PUT(&a, 0x85, 0xff);                                /* test %edi, %edi */
    PUT(&a, 0x74, 0x00);                                /* jz done */
    done_jump = a.at - 1;
    PUT(&a, 0x8b, 0x43, 0x04, 0x89, 0x04, 0x24);        /* mov 4(%rbx), %eax; mov %eax, (%rsp) */
    PUT(&a, 0x8b, 0x43, 0x08, 0x89, 0x44, 0x24, 0x04);  /* mov 8(%rbx), %eax; mov %eax, 4(%rsp) */
    PUT(&a, 0xc7, 0x44, 0x24, 0x08, 0xff, 0xff, 0xff, 0xff); /* movl $-1, 8(%rsp) */
    PUT(&a, 0x48, 0x89, 0xe6);                          /* mov %rsp, %rsi */
    /* mov $__HYPERVISOR_event_channel_op, %eax */
    PUT(&a, 0xb8);
    put_u32(&a, __HYPERVISOR_event_channel_op);
    put(&a, hypercall, 3);
    /* mov %rax, %r13: result, for the toolstack */
    PUT(&a, 0x49, 0x89, 0xc5);
    PUT(&a, 0x85, 0xc0);                                /* test %eax, %eax */
    PUT(&a, 0x75, 0x00);                                /* jnz done (error) */
    error_jump = a.at - 1;
    PUT(&a, 0x8b, 0x43, 0x0c);                          /* mov 12(%rbx), %eax: expected port */
    PUT(&a, 0x83, 0xf8, 0xff);                          /* cmp $-1, %eax */
    PUT(&a, 0x74, 0x00);                                /* je next */
    no_port_jump = a.at - 1;
    /*
     * The port comes back behind the inputs: word 1 for bind_ipi and alloc_unbound, 2 for
     * bind_virq.
     */
    PUT(&a, 0x8b, 0x4c, 0x24, 0x04);                    /* mov 4(%rsp), %ecx */
    PUT(&a, 0x83, 0x3b, EVTCHNOP_bind_virq);            /* cmpl $bind_virq, (%rbx) */
    PUT(&a, 0x75, 0x04);                                /* jne +4 */
    PUT(&a, 0x8b, 0x4c, 0x24, 0x08);                    /* mov 8(%rsp), %ecx */
    PUT(&a, 0x39, 0xc8);                                /* cmp %ecx, %eax */
    PUT(&a, 0x75, 0x00);                                /* jne done (another port) */
    mismatch_jump = a.at - 1;
    page[no_port_jump] = (uint8_t)(a.at - (no_port_jump + 1));
    PUT(&a, 0x41, 0xff, 0xc4);                          /* inc %r12d */
    PUT(&a, 0x48, 0x83, 0xc3, 0x10);                    /* add $16, %rbx */
    PUT(&a, 0xeb, 0x00);                                /* jmp loop */
    page[a.at - 1] = (uint8_t)(loop - a.at);
    here = a.at;
    page[done_jump] = (uint8_t)(here - (done_jump + 1));
    page[error_jump] = (uint8_t)(here - (error_jump + 1));
    page[mismatch_jump] = (uint8_t)(here - (mismatch_jump + 1));
    PUT(&a, 0xc7, 0x04, 0x24);                          /* movl $SHUTDOWN_suspend, (%rsp) */
    put_u32(&a, SHUTDOWN_suspend);
    PUT(&a, 0xbf);                                      /* mov $SCHEDOP_shutdown, %edi */
    put_u32(&a, SCHEDOP_shutdown);
    PUT(&a, 0x48, 0x89, 0xe6);                          /* mov %rsp, %rsi */
    PUT(&a, 0xb8);                                      /* mov $__HYPERVISOR_sched_op, %eax */
    put_u32(&a, __HYPERVISOR_sched_op);
    put(&a, hypercall, 3);
    PUT(&a, 0xeb, 0xfe);                                /* jmp . */
}

static int add(struct xc_sr_stub_op *ops, unsigned int room, unsigned int *count,
               uint32_t command, uint32_t a, uint32_t b, uint32_t expect)
{
    if (*count == room)
        return -E2BIG;
    ops[(*count)++] = (struct xc_sr_stub_op){ command, a, b, expect };
    return 0;
}

int xc_sr_stub_plan(const struct remus_evtchn *have, unsigned int have_count,
                    const struct remus_evtchn *want, unsigned int want_count,
                    struct xc_sr_stub_op *ops, unsigned int room, unsigned int *count)
{
    unsigned int port, first = have_count > want_count ? have_count : want_count;
    int rc;

    *count = 0;
    /* Below the first difference everything stays: xenstore and console, which dom0 has bound. */
    for (port = 1; port < have_count && port < want_count; port++) {
        if (!xc_sr_evtchn_same(&have[port], &want[port])) {
            first = port;
            break;
        }
    }
    if (first > have_count || first > want_count)
        first = have_count < want_count ? have_count : want_count;

    for (port = first; port < have_count; port++) {
        if (have[port].status == EVTCHNSTAT_closed)
            continue;
        rc = add(ops, room, count, EVTCHNOP_close, port, 0, ~0u);
        if (rc)
            return rc;
    }
    for (port = first; port < want_count; port++) {
        const struct remus_evtchn *w = &want[port];

        switch (w->status) {
        case EVTCHNSTAT_ipi:
            rc = add(ops, room, count, EVTCHNOP_bind_ipi, w->vcpu, 0, port);
            break;
        case EVTCHNSTAT_virq:
            rc = add(ops, room, count, EVTCHNOP_bind_virq, w->detail, w->vcpu, port);
            break;
        case EVTCHNSTAT_unbound:
        case EVTCHNSTAT_interdomain:
            /* argument: domid_t dom, remote_dom in one word; the port follows */
            rc = add(ops, room, count, EVTCHNOP_alloc_unbound,
                     DOMID_SELF | (w->detail & 0xffff0000u), 0, port);
            if (!rc && w->vcpu)
                rc = add(ops, room, count, EVTCHNOP_bind_vcpu, port, w->vcpu, ~0u);
            break;
        case EVTCHNSTAT_closed:
            /* a hole: hold the place until the ports above have theirs */
            rc = add(ops, room, count, EVTCHNOP_alloc_unbound, DOMID_SELF, 0, port);
            break;
        default:
            rc = -EOPNOTSUPP;   /* a physical interrupt: pass-through, refused before */
        }
        if (rc)
            return rc;
    }
    for (port = first; port < want_count; port++) {
        if (want[port].status != EVTCHNSTAT_closed)
            continue;
        rc = add(ops, room, count, EVTCHNOP_close, port, 0, ~0u);
        if (rc)
            return rc;
    }
    return 0;
}
