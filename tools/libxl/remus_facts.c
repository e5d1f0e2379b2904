/*
 * remus_facts.c: what the preflight wants to know, read from the running system.  Nothing here
 * changes anything (an nftables rule is checked with the kernel, not added), except that kernel
 * modules may get loaded, and that a guest may be paused for some milliseconds (probe_two_level).
 */
#include "tools/libxl/remus_config.h"
#include "tools/libxl/remus_preflight.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libxl.h>
#include <libxl_utils.h>
#include <nftables/libnftables.h>
#include <xenstore.h>

#include "tools/libxc/xc_sr.h"
#include "tools/libxc/xc_sr_guest.h"
#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_tls.h"
#include "tools/libxl/remus_transport.h"

struct remus_facts_ctx {
    xentoollog_logger *logger;
    libxl_ctx *ctx;
    struct xs_handle *xs;
};

int remus_facts_open(struct remus_facts_ctx **out, bool verbose, char *error)
{
    struct remus_facts_ctx *f = calloc(1, sizeof(*f));
    int rc = -EIO;

    *out = NULL;
    if (!f)
        return -ENOMEM;
    f->logger = (xentoollog_logger *)xtl_createlogger_stdiostream(
        stderr, verbose ? XTL_DETAIL : XTL_CRITICAL, XTL_STDIOSTREAM_HIDE_PROGRESS);
    if (!f->logger) {
        rc = -ENOMEM;
        snprintf(error, REMUS_ERROR_BYTES, "out of memory");
        goto out;
    }
    if (libxl_ctx_alloc(&f->ctx, LIBXL_VERSION, 0, f->logger)) {
        snprintf(error, REMUS_ERROR_BYTES,
                 "this host does not run Xen, or not as root in dom0 (libxenlight does not open)");
        goto out;
    }
    f->xs = xs_open(0);
    if (!f->xs) {
        snprintf(error, REMUS_ERROR_BYTES, "xenstore does not open: %s", strerror(errno));
        goto out;
    }
    *out = f;
    f = NULL;
    rc = 0;
out:
    remus_facts_close(f);
    return rc;
}

void remus_facts_close(struct remus_facts_ctx *f)
{
    if (!f)
        return;
    if (f->xs)
        xs_close(f->xs);
    if (f->ctx)
        libxl_ctx_free(f->ctx);
    if (f->logger)
        xtl_logger_destroy(f->logger);
    free(f);
}

int remus_facts_find(struct remus_facts_ctx *f, const char *domain, uint32_t *domid)
{
    libxl_dominfo info;
    int r;

    if (libxl_domain_qualifier_to_domid(f->ctx, domain, domid))
        return -ENOENT;
    libxl_dominfo_init(&info);
    r = libxl_domain_info(f->ctx, &info, *domid);
    libxl_dominfo_dispose(&info);
    return r ? -ENOENT : 0;
}

/* A node below /local/domain; the caller frees it; NULL: not there. */
__attribute__((format(printf, 2, 3)))
static char *read_node(struct remus_facts_ctx *f, const char *format, ...)
{
    char path[256];
    va_list args;

    va_start(args, format);
    vsnprintf(path, sizeof(path), format, args);
    va_end(args);
    return xs_read(f->xs, XBT_NULL, path, NULL);
}

static unsigned int read_number(struct remus_facts_ctx *f, const char *path, const char *leaf,
                                unsigned int fallback)
{
    char *text = read_node(f, "%s/%s", path, leaf);
    unsigned int value = fallback;

    if (text)
        value = (unsigned int)strtoul(text, NULL, 10);
    free(text);
    return value;
}

static void vif_facts(struct remus_facts_ctx *f, const struct remus_guest_facts *g,
                      libxl_device_nic *nic, struct remus_vif_facts *v)
{
    char frontend[128], *backend, *text;

    memset(v, 0, sizeof(*v));
    v->devid = (unsigned int)nic->devid;
    snprintf(v->bridge, sizeof(v->bridge), "%s", nic->bridge ? nic->bridge : "");
    snprintf(v->mac, sizeof(v->mac), "%02x:%02x:%02x:%02x:%02x:%02x", nic->mac[0], nic->mac[1],
             nic->mac[2], nic->mac[3], nic->mac[4], nic->mac[5]);
    if (nic->ifname)
        snprintf(v->ifname, sizeof(v->ifname), "%s", nic->ifname);
    else
        snprintf(v->ifname, sizeof(v->ifname), "vif%u.%u", g->domid, v->devid);
    v->kernel_backend = nic->backend_domid == 0 && nic->nictype != LIBXL_NIC_TYPE_VIF_IOEMU;
    v->queues = 1;

    snprintf(frontend, sizeof(frontend), "/local/domain/%u/device/vif/%u", g->domid, v->devid);
    backend = read_node(f, "%s/backend", frontend);
    if (!backend)
        return;
    /* 4 is XenbusStateConnected, on both ends. */
    v->connected = read_number(f, frontend, "state", 0) == 4 &&
                   read_number(f, backend, "state", 0) == 4;
    v->queues = read_number(f, frontend, "multi-queue-num-queues", 1);
    /* What the hotplug script used is closer to the truth than the configuration. */
    text = read_node(f, "%s/bridge", backend);
    if (text && text[0])
        snprintf(v->bridge, sizeof(v->bridge), "%s", text);
    free(text);
    free(backend);
}

static void count_devices(struct remus_guest_facts *g, const libxl_domain_config *c)
{
    const struct {
        const char *kind;
        int count;
    } other[] = {
        {"vfb", c->num_vfbs},       {"vkb", c->num_vkbs},     {"vtpm", c->num_vtpms},
        {"9pfs", c->num_p9s},       {"pvcalls", c->num_pvcallsifs},
        {"vdispl", c->num_vdispls}, {"vsnd", c->num_vsnds},   {"channel", c->num_channels},
        {"usb", c->num_usbctrls + c->num_usbdevs},
    };
    size_t i;
    int d;

    for (d = 0; d < c->num_disks; d++) {
        g->disks++;
        if (c->disks[d].readwrite)
            g->writable_disks++;
    }
    g->passthrough = (unsigned int)(c->num_pcidevs + c->num_dtdevs);
    for (i = 0; i < sizeof(other) / sizeof(other[0]); i++) {
        if (other[i].count && !g->other_devices)
            snprintf(g->other_device, sizeof(g->other_device), "%s", other[i].kind);
        g->other_devices += (unsigned int)other[i].count;
    }
}

#define PROBE_MS 1000u

/* Whether any bit of the 2-level ABI is set in the guest's shared page. */
static bool two_level_bits(const struct shared_info *shared)
{
    size_t word;

    for (word = 0; word < sizeof(shared->evtchn_pending) / sizeof(shared->evtchn_pending[0]);
         word++)
        if (*(volatile const xen_ulong_t *)&shared->evtchn_pending[word] ||
            *(volatile const xen_ulong_t *)&shared->evtchn_mask[word])
            return true;
    return false;
}

/*
 * A guest that was restored or migrated has no mask bits either, so that it looks like one with
 * FIFO event channels (Linux sets them all at boot only).  What tells the two apart is where Xen
 * puts an event.  xenstored sends one when a node that the guest watches is written: the guest is
 * paused meanwhile, so that the bit stays, and the value is the one that is there already, which
 * means nothing to it.
 */
static int probe_two_level(struct remus_facts_ctx *f, const struct xc_sr_handles *h,
                           bool *two_level)
{
    const struct shared_info *shared = NULL;
    uint64_t gfn, deadline = remus_now_ms() + PROBE_MS;
    sigset_t all, before;
    char path[64], *value;
    xen_pfn_t pfn;
    int rc, err = 0;

    *two_level = false;
    rc = xc_sr_shared_info_gfn(h, &gfn);
    if (rc)
        return rc;
    pfn = gfn;
    shared = xenforeignmemory_map(h->fmem, h->domid, PROT_READ, 1, &pfn, &err);
    if (!shared || err) {
        rc = err ? err : -errno;
        goto out;
    }
    snprintf(path, sizeof(path), "/local/domain/%u/control/shutdown", h->domid);
    value = xs_read(f->xs, XBT_NULL, path, NULL);
    /* A request that waits there is none of ours to repeat. */
    if (!value || value[0]) {
        free(value);
        rc = -EBUSY;
        goto out;
    }
    free(value);
    /* Nothing may end this process while the guest is paused. */
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    if (xc_domain_pause(h->xch, h->domid)) {
        rc = -errno;
    } else {
        if (!xs_write(f->xs, XBT_NULL, path, "", 0))
            rc = -errno;
        while (!rc && !(*two_level = two_level_bits(shared)) && remus_now_ms() < deadline)
            poll(NULL, 0, 5);
        if (xc_domain_unpause(h->xch, h->domid))
            rc = -errno;
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
out:
    if (shared)
        xenforeignmemory_unmap(h->fmem, (void *)shared, 1);
    return rc;
}

static int event_channel_facts(struct remus_facts_ctx *f, struct remus_guest_facts *g)
{
    struct xc_sr_handles h = {.domid = g->domid};
    bool two_level = false;
    int rc = -EIO;

    h.xch = xc_interface_open(NULL, NULL, 0);
    h.fmem = xenforeignmemory_open(NULL, 0);
    if (h.xch && h.fmem)
        rc = xc_sr_evtchn_abi(&h, &g->fifo);
    if (!rc && g->fifo && !g->paused && !g->shut_down && !g->dying) {
        rc = probe_two_level(f, &h, &two_level);
        g->fifo = !two_level;
    }
    g->abi_known = rc == 0;
    if (h.fmem)
        xenforeignmemory_close(h.fmem);
    if (h.xch)
        xc_interface_close(h.xch);
    return rc;
}

/* Disks as they can be protected: served by this host's kernel, and connected. */
static void disk_facts(struct remus_facts_ctx *f, struct remus_guest_facts *g)
{
    static struct remus_disk disks[REMUS_DISKS_MAX];
    unsigned int count = REMUS_DISKS_MAX, i;

    if (!g->disks || remus_disks_read(f->xs, g->domid, disks, &count, g->disk_error))
        return;
    for (i = 0; i < count; i++) {
        struct remus_disk_place *d = &g->disk[i];

        snprintf(d->path, sizeof(d->path), "%s", disks[i].path);
        d->vdev = disks[i].info.vdev;
        d->sectors = disks[i].info.sectors;
        d->logical_bytes = disks[i].info.logical_bytes;
        d->read_only = disks[i].info.read_only;
        if (d->path[0] != '/')
            snprintf(g->disk_error, sizeof(g->disk_error), "disk %u of %s is behind a block script "
                     "(%.100s), which the other host cannot follow", d->vdev, g->name, d->path);
    }
    g->disk_count = g->disk_error[0] ? 0 : count;
}

int remus_facts_guest(struct remus_facts_ctx *f, uint32_t domid, struct remus_guest_facts *out,
                      char *error)
{
    libxl_domain_config config;
    libxl_dominfo info;
    char *name = NULL, *text;
    pid_t holder = 0;
    int rc = 0, lock = -1, i;

    memset(out, 0, sizeof(*out));
    out->domid = domid;
    libxl_domain_config_init(&config);
    libxl_dominfo_init(&info);

    name = libxl_domid_to_name(f->ctx, domid);
    snprintf(out->name, sizeof(out->name), "%s", name ? name : "");
    if (libxl_domain_info(f->ctx, &info, domid))
        goto out;
    out->exists = true;
    if (domid == 0)
        goto out;
    snprintf(out->uuid, sizeof(out->uuid), LIBXL_UUID_FMT, LIBXL_UUID_BYTES(info.uuid));
    out->paused = info.paused;
    out->shut_down = info.shutdown;
    out->dying = info.dying;
    out->vcpus = info.vcpu_max_id + 1;
    out->pages = info.current_memkb / 4;

    rc = remus_session_lock(domid, &lock, &holder);
    out->locked = rc == -EBUSY;
    out->locked_pid = holder;
    if (lock >= 0)
        close(lock);
    rc = 0;

    if (remus_config_read(f->ctx, domid, &config)) {
        snprintf(error, REMUS_ERROR_BYTES,
                 "the configuration of %s cannot be read; was it made by xl or libxl?", out->name);
        rc = -EIO;
        goto out;
    }
    /* The type of info cannot tell PVH from HVM. */
    out->type = config.c_info.type == LIBXL_DOMAIN_TYPE_PV    ? REMUS_GUEST_PV
                : config.c_info.type == LIBXL_DOMAIN_TYPE_PVH ? REMUS_GUEST_PVH
                                                              : REMUS_GUEST_HVM;
    out->memory_kb = config.b_info.max_memkb;
    if (libxl_domain_need_memory(f->ctx, &config, domid, &out->need_kb))
        out->need_kb = out->memory_kb + out->memory_kb / 50 + 8192;
    /* libxenlight gives an HVM guest a device model; a PVH guest never has one. */
    out->device_model = out->type == REMUS_GUEST_HVM;
    count_devices(out, &config);
    disk_facts(f, out);

    text = read_node(f, "/local/domain/%u/control/feature-suspend", domid);
    /* Said by the guest at boot, and no more after it was restored or migrated. */
    out->suspend_feature = !text || strcmp(text, "0");
    free(text);
    if (out->type != REMUS_GUEST_PV)
        (void)event_channel_facts(f, out);

    out->vifs = (unsigned int)config.num_nics;
    for (i = 0; i < config.num_nics && (unsigned int)i < REMUS_VIFS_MAX; i++)
        vif_facts(f, out, &config.nics[i], &out->vif[i]);
out:
    free(name);
    libxl_dominfo_dispose(&info);
    libxl_domain_config_dispose(&config);
    return rc;
}

/* ---- A host ------------------------------------------------------------------------------- */

/* The first line of a file, without its newline. */
static int read_line(const char *path, char *out, size_t room)
{
    FILE *file = fopen(path, "re");

    out[0] = '\0';
    if (!file)
        return -errno;
    if (!fgets(out, (int)room, file))
        out[0] = '\0';
    fclose(file);
    out[strcspn(out, "\n")] = '\0';
    return 0;
}

static uint64_t available_kb(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    unsigned long long value = 0;
    char line[128];

    if (!file)
        return 0;
    while (fgets(line, sizeof(line), file))
        if (sscanf(line, "MemAvailable: %llu", &value) == 1)
            break;
    fclose(file);
    return value;
}

/* The kernel loads this one at first use; whether it can is found out by doing so. */
static int load_module(const char *name, const char *sign)
{
    char program[] = "modprobe", quiet[] = "-q", module[32];
    char *args[] = {program, quiet, module, NULL};
    pid_t pid;
    int status;

    if (!access(sign, F_OK))
        return 0;
    snprintf(module, sizeof(module), "%s", name);
    if (!posix_spawnp(&pid, program, NULL, NULL, args, environ))
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    return access(sign, F_OK) ? -ENOENT : 0;
}

static void nft_facts(struct remus_host_facts *h)
{
    static const char rules[] =
        "add table bridge remus-probe\n"
        "add chain bridge remus-probe c { type filter hook prerouting priority 0; policy accept; "
        "}\n"
        "add rule bridge remus-probe c iifname \"remus-probe\" queue num 0\n";
    struct nft_ctx *nft = nft_ctx_new(NFT_CTX_DEFAULT);
    const char *text;

    if (!nft) {
        snprintf(h->nft_error, sizeof(h->nft_error), "nftables does not open");
        return;
    }
    nft_ctx_set_dry_run(nft, true);
    nft_ctx_buffer_output(nft);
    nft_ctx_buffer_error(nft);
    if (nft_run_cmd_from_buffer(nft, rules)) {
        text = nft_ctx_get_error_buffer(nft);
        snprintf(h->nft_error, sizeof(h->nft_error), "%.*s", (int)strcspn(text ? text : "", "\n"),
                 text ? text : "");
    } else if (load_module("nfnetlink_queue", "/proc/net/netfilter/nfnetlink_queue")) {
        snprintf(h->nft_error, sizeof(h->nft_error),
                 "the module nfnetlink_queue cannot be loaded");
    } else {
        h->nft_queue = true;
    }
    nft_ctx_free(nft);
}

static void device_facts(struct remus_host_facts *h, bool secondary)
{
    static const struct {
        const char *node, *module;
        bool secondary_only;
    } needed[] = {
        {"/dev/xen/privcmd", "xen-privcmd", false},
        {"/dev/xen/evtchn", "xen-evtchn", false},
        {"/dev/xen/gntdev", "xen-gntdev", false},
        {"/dev/net/tun", "tun", true},
    };
    size_t i;

    for (i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        if ((needed[i].secondary_only && !secondary) || !access(needed[i].node, R_OK | W_OK))
            continue;
        snprintf(h->missing_device, sizeof(h->missing_device), "%s", needed[i].node);
        snprintf(h->missing_module, sizeof(h->missing_module), "%s", needed[i].module);
        return;
    }
}

/* br_netfilter: what a bridge forwards goes through the rules of IP as well, and may be changed,
 * dropped or queued there. */
static bool bridge_calls_ip(void)
{
    static const char *const nodes[] = {"iptables", "ip6tables", "arptables"};
    char path[80], text[8];
    size_t i;

    for (i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++) {
        snprintf(path, sizeof(path), "/proc/sys/net/bridge/bridge-nf-call-%s", nodes[i]);
        if (!read_line(path, text, sizeof(text)) && strcmp(text, "0"))
            return true;
    }
    return false;
}

int remus_facts_host(struct remus_facts_ctx *f, const char *libexec, bool secondary,
                     struct remus_host_facts *out, char *error)
{
    static const char *const programs[] = {"colo-proxyd", "colo-shadowd", "remus-guest",
                                           "colo-blkd", "remus-save-helper",
                                           "remus-vif-script"};
    const libxl_version_info *version;
    libxl_physinfo phys;
    struct utsname uts;
    char path[512];
    size_t i;
    int rc = 0;

    memset(out, 0, sizeof(*out));
    libxl_physinfo_init(&phys);
    if (!uname(&uts))
        snprintf(out->name, sizeof(out->name), "%.63s", uts.nodename);
    (void)read_line("/proc/sys/kernel/random/boot_id", out->boot_id, sizeof(out->boot_id));

    version = libxl_get_version_info(f->ctx);
    if (!version || libxl_get_physinfo(f->ctx, &phys)) {
        snprintf(error, REMUS_ERROR_BYTES, "Xen does not tell its version or its free memory");
        rc = -EIO;
        goto out;
    }
    snprintf(out->xen, sizeof(out->xen), "%d.%d%s", version->xen_version_major,
             version->xen_version_minor,
             version->xen_version_extra ? version->xen_version_extra : "");
    out->xen_free_kb = (phys.free_pages + phys.scrub_pages) * 4;
    out->dom0_free_kb = available_kb();

    snprintf(out->libexec, sizeof(out->libexec), "%s", libexec);
    for (i = 0; i < sizeof(programs) / sizeof(programs[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", libexec, programs[i]);
        if (access(path, X_OK)) {
            snprintf(out->missing_program, sizeof(out->missing_program), "%s", programs[i]);
            break;
        }
    }
    device_facts(out, secondary);
    nft_facts(out);
    out->bridge_calls_ip = bridge_calls_ip();
out:
    libxl_physinfo_dispose(&phys);
    return rc;
}

void remus_facts_tls(struct remus_host_facts *out)
{
    char error[REMUS_ERROR_BYTES];

    out->tls_error[0] = '\0';
    if (remus_ktls_probe(error))
        snprintf(out->tls_error, sizeof(out->tls_error), "%.127s", error);
}

void remus_facts_meets(struct remus_facts_ctx *f, const struct remus_guest_facts *g,
                       struct remus_meets_facts *out)
{
    char incoming[96], path[128];
    uint32_t domid;
    unsigned int i;

    memset(out, 0, sizeof(*out));
    snprintf(incoming, sizeof(incoming), "%s" REMUS_INCOMING_SUFFIX, g->name);
    out->name_taken = !libxl_name_to_domid(f->ctx, g->name, &domid);
    out->incoming_taken = !libxl_name_to_domid(f->ctx, incoming, &domid);
    for (i = 0; i < g->vifs && i < REMUS_VIFS_MAX; i++) {
        const char *bridge = g->vif[i].bridge;

        /* The name came from the other host and becomes part of a path. */
        if (!bridge[0] || bridge[0] == '.' || strchr(bridge, '/'))
            continue;
        snprintf(path, sizeof(path), "/sys/class/net/%s", bridge);
        out->bridge_there[i] = !access(path, F_OK);
        snprintf(path, sizeof(path), "/sys/class/net/%s/bridge", bridge);
        out->bridge_foreign[i] = out->bridge_there[i] && access(path, F_OK);
    }
    for (i = 0; i < g->disk_count; i++) {
        int fd = remus_disk_place_open(&g->disk[i], &out->disk_sectors[i]);

        out->disk_rc[i] = fd < 0 ? fd : 0;
        if (fd >= 0)
            close(fd);
        remus_disk_place_user(f->xs, &g->disk[i], out->disk_user[i], sizeof(out->disk_user[i]));
    }
}

/* ---- The lock ----------------------------------------------------------------------------- */

int remus_session_lock(uint32_t domid, int *fd, pid_t *holder)
{
    char path[64], text[16];
    ssize_t n;
    int rc;

    *fd = -1;
    *holder = 0;
    if (mkdir("/run/xen", 0755) && errno != EEXIST)
        return -errno;
    if (mkdir(REMUS_RUN_DIR, 0700) && errno != EEXIST)
        return -errno;
    snprintf(path, sizeof(path), REMUS_RUN_DIR "/%u.lock", domid);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd < 0)
        return -errno;
    if (flock(*fd, LOCK_EX | LOCK_NB) < 0) {
        rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
        n = pread(*fd, text, sizeof(text) - 1, 0);
        if (rc == -EBUSY && n > 0) {
            text[n] = '\0';
            *holder = (pid_t)strtol(text, NULL, 10);
        }
        close(*fd);
        *fd = -1;
        return rc;
    }
    n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (ftruncate(*fd, 0) < 0 || pwrite(*fd, text, (size_t)n, 0) != n)
        fprintf(stderr, "xl: %s: the process id was not written: %s\n", path, strerror(errno));
    return 0;
}
