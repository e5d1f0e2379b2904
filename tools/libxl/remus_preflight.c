#include "tools/libxl/remus_preflight.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void remus_refuse(struct remus_refusals *out, const char *format, ...)
{
    va_list args;

    if (out->count == REMUS_REFUSALS_MAX)
        return;
    va_start(args, format);
    vsnprintf(out->text[out->count++], REMUS_REFUSAL_BYTES, format, args);
    va_end(args);
}

/* ---- The guest ---------------------------------------------------------------------------- */

static void judge_state(struct remus_refusals *out, const struct remus_guest_facts *g)
{
    if (g->dying || g->shut_down)
        remus_refuse(out, "%s is not running (it is shut down or being destroyed)", g->name);
    else if (g->paused)
        remus_refuse(out, "%s is paused; run: xl unpause %s", g->name, g->name);
}

static void judge_session(struct remus_refusals *out, const struct remus_guest_facts *g)
{
    if (!g->locked)
        return;
    if (g->locked_pid)
        remus_refuse(out,
                     "%s is protected already, by process %d; one session at a time (see: xl "
                     "remus-status %s)", g->name, (int)g->locked_pid, g->name);
    else
        remus_refuse(out, "%s is protected already; one session at a time (see: xl remus-status "
                          "%s)",
                     g->name, g->name);
}

static void judge_type(struct remus_refusals *out, const struct remus_guest_facts *g)
{
    switch (g->type) {
    case REMUS_GUEST_PVH:
        break;
    case REMUS_GUEST_HVM:
        if (g->device_model)
            remus_refuse(out,
                         "%s is an HVM guest with a device model (qemu), whose state this version "
                         "cannot keep equal; boot it as PVH (type=\"pvh\")", g->name);
        break;
    case REMUS_GUEST_PV:
        remus_refuse(out,
                     "%s is a PV guest; this version protects PVH guests; boot it as PVH "
                     "(type=\"pvh\")", g->name);
        break;
    }
}

static void judge_suspend(struct remus_refusals *out, const struct remus_guest_facts *g)
{
    if (!g->suspend_feature)
        remus_refuse(out,
                     "%s says that it cannot suspend itself (control/feature-suspend in xenstore); "
                     "use a kernel with CONFIG_HIBERNATE_CALLBACKS", g->name);
}

static void judge_event_channels(struct remus_refusals *out, const struct remus_guest_facts *g)
{
    if (!g->abi_known)
        remus_refuse(out, "the event channel ABI of %s could not be read", g->name);
    else if (g->fifo)
        remus_refuse(out,
                     "%s uses FIFO event channels, whose state a running copy cannot take over; "
                     "boot the guest with xen.fifo_events=0 on its kernel command line (with more "
                     "than one vCPU also xen_nopvspin)", g->name);
}

static void judge_vcpus(struct remus_refusals *out, const struct remus_guest_facts *g)
{
    if (g->vcpus > REMUS_VCPUS_MAX)
        remus_refuse(out, "%s has %u vCPUs; this version protects guests with up to %u", g->name,
                     g->vcpus, REMUS_VCPUS_MAX);
}

static void judge_devices(struct remus_refusals *out, const struct remus_guest_facts *g,
                          const struct remus_wishes *w)
{
    if (g->passthrough)
        remus_refuse(out,
                     "%s has %u passed-through device%s; hardware cannot be copied: detach it "
                     "first",
                     g->name, g->passthrough, g->passthrough > 1 ? "s" : "");
    if (g->other_devices)
        remus_refuse(out, "%s has a %s device, which this version does not protect: detach it "
                          "first",
                     g->name, g->other_device);
    if (!g->disks)
        return;
    if (g->disk_error[0])
        remus_refuse(out, "%s", g->disk_error);
    if (w->no_disk && g->writable_disks && !w->unsafe)
        remus_refuse(out,
                     "%s has %u writable disk%s: with -d a takeover may find data there that is "
                     "newer than the guest's memory; -F says that you accept this", g->name,
                     g->writable_disks, g->writable_disks > 1 ? "s" : "");
}

static void judge_vif(struct remus_refusals *out, const struct remus_guest_facts *g,
                      const struct remus_vif_facts *v)
{
    char own[24];

    if (!v->kernel_backend)
        remus_refuse(out,
                     "interface %u of %s is not served by this host's kernel (vif); emulated and "
                     "driver-domain interfaces are not protected by this version", v->devid,
                     g->name);
    else if (!v->connected)
        remus_refuse(out, "interface %u of %s is not connected; wait until the guest has booted",
                     v->devid, g->name);
    else if (v->queues != 1)
        remus_refuse(out,
                     "interface %u of %s has %u queues; load xen-netback with max_queues=1 on both "
                     "hosts and start the guest again", v->devid, g->name, v->queues);
    snprintf(own, sizeof(own), "vif%u.%u", g->domid, v->devid);
    if (strcmp(v->ifname, own))
        remus_refuse(out,
                     "interface %u of %s is called %s in dom0 (vifname=); this version knows it as "
                     "%s only: leave vifname out and start the guest again", v->devid, g->name,
                     v->ifname, own);
    if (!v->bridge[0])
        remus_refuse(out, "interface %u of %s is on no bridge; give it one (bridge=NAME)", v->devid,
                     g->name);
}

static void judge_vifs(struct remus_refusals *out, const struct remus_guest_facts *g,
                       const struct remus_wishes *w)
{
    unsigned int i;

    if (w->no_net) {
        if (!w->unsafe)
            remus_refuse(out,
                         "-n lets output out before it is safe, so a takeover may contradict what "
                         "clients of %s have seen; -F says that you accept this", g->name);
        return;
    }
    if (g->vifs > REMUS_VIFS_MAX)
        remus_refuse(out, "%s has %u network interfaces; this version protects up to %u", g->name,
                     g->vifs, REMUS_VIFS_MAX);
    for (i = 0; i < g->vifs && i < REMUS_VIFS_MAX; i++)
        judge_vif(out, g, &g->vif[i]);
}

/* ---- A host ------------------------------------------------------------------------------- */

static void judge_xen(struct remus_refusals *out, const struct remus_host_facts *h)
{
    size_t n = strlen(REMUS_XEN_SERIES);

    if (strncmp(h->xen, REMUS_XEN_SERIES, n) || (h->xen[n] && h->xen[n] != '.'))
        remus_refuse(out, "%s runs Xen %s; this version works with Xen %s", h->name, h->xen,
                     REMUS_XEN_SERIES);
}

static void judge_programs(struct remus_refusals *out, const struct remus_host_facts *h)
{
    if (h->missing_program[0])
        remus_refuse(out, "%s lacks %s/%s: install this package there (make install), or name the "
                     "directory with --libexec", h->name, h->libexec, h->missing_program);
}

static void judge_facilities(struct remus_refusals *out, const struct remus_host_facts *h,
                             const struct remus_wishes *w, bool packets)
{
    if (h->missing_device[0])
        remus_refuse(out, "%s has no %s: run modprobe %s there", h->name, h->missing_device,
                     h->missing_module);
    if (packets && !h->nft_queue)
        remus_refuse(out,
                     "%s cannot hold packets of a bridge (%s): its kernel needs nft_queue, "
                     "nfnetlink_queue and the nftables bridge family", h->name,
                     h->nft_error[0] ? h->nft_error : "no reason given");
    if (packets && h->bridge_calls_ip)
        remus_refuse(out,
                     "on %s br_netfilter hands what bridges forward to the rules of iptables too; "
                     "run there: sysctl net.bridge.bridge-nf-call-iptables=0 "
                     "net.bridge.bridge-nf-call-ip6tables=0 "
                     "net.bridge.bridge-nf-call-arptables=0", h->name);
    if (!w->plain && h->tls_error[0])
        remus_refuse(out,
                     "%s cannot encrypt what goes to the other host: %s; or use --plain, if nobody "
                     "else has access to what connects them", h->name, h->tls_error);
}

/* Two hosts that only lost their link would both go on. */
static void judge_arbiter(struct remus_refusals *out, const struct remus_wishes *w)
{
    if (!w->arbiter && !w->unsafe)
        remus_refuse(out,
                     "no arbiter: when only the link between the hosts fails, both would go on; "
                     "name one (--arbiter etcd:URL, fence[:NAME] or manual, on the command line "
                     "or in " REMUS_CONFIG_FILE "), or accept that with -F");
}

void remus_preflight_primary(struct remus_refusals *out, const struct remus_guest_facts *g,
                             const struct remus_host_facts *h, const struct remus_wishes *w)
{
    if (!g->exists) {
        remus_refuse(out, "there is no domain %s here; xl list shows what there is", g->name);
        return;
    }
    if (g->domid == 0) {
        remus_refuse(out, "dom0 cannot be protected; name a guest");
        return;
    }
    judge_session(out, g);
    judge_state(out, g);
    judge_type(out, g);
    judge_vcpus(out, g);
    /* A guest that is of no use in another way is not examined more closely. */
    if (!out->count) {
        judge_suspend(out, g);
        judge_event_channels(out, g);
    }
    judge_devices(out, g, w);
    judge_vifs(out, g, w);
    judge_arbiter(out, w);
    judge_xen(out, h);
    judge_programs(out, h);
    judge_facilities(out, h, w, g->vifs && !w->no_net);
}

void remus_preflight_pair(struct remus_refusals *out, const struct remus_host_facts *p,
                          const struct remus_host_facts *s)
{
    if (p->boot_id[0] && !strcmp(p->boot_id, s->boot_id)) {
        remus_refuse(out, "%s is this host itself; the copy must run on another one", s->name);
        return;
    }
    if (strcmp(p->xen, s->xen))
        remus_refuse(out, "Xen is %s here and %s on %s: both hosts must run the same version",
                     p->xen, s->xen, s->name);
}

void remus_preflight_secondary(struct remus_refusals *out, const struct remus_guest_facts *g,
                               const struct remus_host_facts *h,
                               const struct remus_meets_facts *meets,
                               const struct remus_wishes *w)
{
    unsigned int i;

    judge_xen(out, h);
    judge_programs(out, h);
    judge_facilities(out, h, w, false);
    if (meets->name_taken)
        remus_refuse(out, "there is a domain %s already; destroy or rename it", g->name);
    if (meets->incoming_taken)
        remus_refuse(out,
                     "a copy named %s" REMUS_INCOMING_SUFFIX " is there already; if no session "
                                        "uses "
                     "it (xl remus-status), run: xl destroy %s" REMUS_INCOMING_SUFFIX, g->name,
                     g->name);
    if (h->xen_free_kb < g->need_kb)
        remus_refuse(out, "Xen has %llu MiB free, the copy of %s needs %llu MiB",
                     (unsigned long long)(h->xen_free_kb / 1024), g->name,
                     (unsigned long long)(g->need_kb / 1024));
    if (h->dom0_free_kb < g->memory_kb + REMUS_MIRROR_SPARE_KB)
        remus_refuse(out,
                     "dom0 has %llu MiB free, the mirror of %s's memory needs %llu MiB: give dom0 "
                     "more memory (dom0_mem)", (unsigned long long)(h->dom0_free_kb / 1024),
                     g->name,
                     (unsigned long long)((g->memory_kb + REMUS_MIRROR_SPARE_KB) / 1024));
    for (i = 0; i < g->disk_count; i++) {
        const struct remus_disk_place *d = &g->disk[i];

        if (meets->disk_rc[i])
            remus_refuse(out,
                         "%s, which disk %u of %s is to be kept on, cannot be opened: %s; make a "
                         "block device or a file of %llu MiB there", d->path, d->vdev, g->name,
                         strerror(-meets->disk_rc[i]),
                         (unsigned long long)(d->sectors + 2047) / 2048);
        else if (meets->disk_user[i][0])
            remus_refuse(out, "%s, which disk %u of %s is to be kept on, is in use here (%s): what "
                         "it holds would be overwritten", d->path, d->vdev, g->name,
                         meets->disk_user[i]);
        else if (meets->disk_sectors[i] < d->sectors)
            remus_refuse(out, "%s has %llu sectors, disk %u of %s has %llu: make it as large",
                         d->path, (unsigned long long)meets->disk_sectors[i], d->vdev, g->name,
                         (unsigned long long)d->sectors);
    }
    if (w->no_net)
        return;
    for (i = 0; i < g->vifs && i < REMUS_VIFS_MAX; i++) {
        if (!meets->bridge_there[i])
            remus_refuse(out,
                         "there is no bridge %s for interface %u of %s; create it with the same "
                         "name "
                         "on both hosts", g->vif[i].bridge, g->vif[i].devid, g->name);
        else if (meets->bridge_foreign[i])
            remus_refuse(out, "%s is not a bridge of the Linux kernel, which this version needs",
                         g->vif[i].bridge);
    }
}
