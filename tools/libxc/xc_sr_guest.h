/*
 * xc_sr_guest.h: pieces of guest state that both sides of a checkpoint handle; private.
 */
#ifndef XC_SR_GUEST_H
#define XC_SR_GUEST_H

#include <sys/mman.h>

#include "tools/libxc/xc_sr_private.h" /* first: Xen's headers need its types */

#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/hvm/save.h>
#include <xen/io/xs_wire.h>
#include <xen/memory.h>


/*
 * Where the guest has mapped its shared_info.  Xen calls the field a frame number; for a translated
 * guest it is a gfn (common/domctl.c, getdomaininfo).  -ENOENT before the guest has mapped it.
 */
int xc_sr_shared_info_gfn(const struct xc_sr_handles *h, uint64_t *gfn) XC_SR_MUST_CHECK;

/*
 * Pages that change without log-dirty seeing it and so travel with every epoch: shared_info
 * (Xen), the xenstore and console rings (dom0), and the backends' rings, which come by grant.
 * vcpu_info pages need no entry: each guest suspend makes every vCPU take events, and so write to
 * its vcpu_info, after the bitmap was cleaned last.
 *
 * What the copy must not share, with the reason:
 *   shared_info wc_version, wc_sec, wc_nsec, wc_sec_hi  the wall clock of the host it runs on;
 *   grant entries 0 to GNTTAB_NR_RESERVED_ENTRIES - 1    dom0's own view of console and xenstore;
 *   GTF_reading, GTF_writing                           mappings held by the other host's backends.
 */
#define XC_SR_ALWAYS_MAX 1100u  /* 64 rings of disks have up to 16 pages each */

/* ---- Grant table, version 1 ---- */

struct xc_sr_grants {
    const struct xc_sr_handles *h;
    xenforeignmemory_resource_handle *resource;
    grant_entry_v1_t *entries;      /* shared with the guest */
    unsigned int frames;
};
#define XC_SR_GRANTS_PER_FRAME (XC_SR_PAGE_BYTES / (unsigned int)sizeof(grant_entry_v1_t))
#define XC_SR_GRANT_FRAMES_MAX 64u

int xc_sr_grants_map(struct xc_sr_grants *g, const struct xc_sr_handles *h) XC_SR_MUST_CHECK;
void xc_sr_grants_unmap(struct xc_sr_grants *g);
/* Frames that the guest's table has now. */
int xc_sr_grants_frames(const struct xc_sr_handles *h, unsigned int *frames) XC_SR_MUST_CHECK;
/* The gfn that a grant reference gives access to; -ENOENT if the entry is not a live grant. */
int xc_sr_grants_gfn(const struct xc_sr_grants *g, uint32_t ref, uint64_t *gfn) XC_SR_MUST_CHECK;
/* body: room for g->frames pages. */
void xc_sr_grants_copy_out(const struct xc_sr_grants *g, uint8_t *body);
int xc_sr_grants_copy_in(struct xc_sr_grants *g, const uint8_t *body, uint32_t length)
    XC_SR_MUST_CHECK;

/* ---- HVM context ---- */

/* The record of a vCPU's registers inside a context; NULL if there is none. */
struct hvm_hw_cpu *xc_sr_hvm_cpu(uint8_t *context, uint32_t length, unsigned int vcpu);
/* -EINVAL unless every descriptor stays inside the buffer and an END record closes it. */
int xc_sr_hvm_check(const uint8_t *context, uint32_t length) XC_SR_MUST_CHECK;

/* ---- Event channels ---- */

bool xc_sr_evtchn_same(const struct remus_evtchn *a, const struct remus_evtchn *b);

/*
 * A few instructions that run in the guest's kernel mode, in place of a page of its text, and
 * rearrange its own event channels by a list of operations (xc_sr_stub.c).
 */
struct xc_sr_stub_op {
    uint32_t command;               /* EVTCHNOP_* */
    uint32_t a, b;                  /* first two words of its argument */
    uint32_t expect;                /* port the hypercall must give back, ~0: none */
};
#define XC_SR_STUB_OPS_MAX 160u     /* in one run */

/* Fills a page with code and operations; hypercall: the guest's own three byte instruction. */
void xc_sr_stub_build(uint8_t page[XC_SR_PAGE_BYTES], const uint8_t hypercall[3],
                      const struct xc_sr_stub_op *ops, unsigned int count);
/*
 * The operations that turn table have[] into want[]: ports that only differ in what dom0 holds
 * stay; the rest is closed and bound again from the lowest up.  ops: room for room operations.
 */
int xc_sr_stub_plan(const struct remus_evtchn *have, unsigned int have_count,
                    const struct remus_evtchn *want, unsigned int want_count,
                    struct xc_sr_stub_op *ops, unsigned int room, unsigned int *count)
    XC_SR_MUST_CHECK;

#endif /* XC_SR_GUEST_H */
