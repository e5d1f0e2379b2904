#include "tools/xl/rescue.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <libxl.h>
#include <uuid/uuid.h>
#include <xenctrl.h>
#include <xenstore.h>

#include "tools/libxc/xc_sr.h"
#include "tools/libxl/remus_disk.h"
#include "tools/libxl/remus_guest.h"
#include "tools/libxl/remus_message.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/remus/nftrules.h"

#define RESCUE_DISKS_MS   10000u
#define RESCUE_MERGE_MS   600000u

struct rescue {
    struct xc_sr_handles h;
    struct xs_handle *xs;
    rescue_say say;
    void *arg;
    const char *name;
    int rc;                 /* first thing that went wrong */
};

__attribute__((format(printf, 3, 4)))
static void note(struct rescue *r, int rc, const char *format, ...)
{
    char text[400];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    r->say(r->arg, text);
    if (rc && !r->rc)
        r->rc = rc;
}

static bool is_there(xc_interface *xch, const struct rescue_guest *guest)
{
    char uuid[UUID_STR_LEN];
    xc_dominfo_t info;

    if (xc_domain_getinfo(xch, guest->domid, 1, &info) != 1 || info.domid != guest->domid)
        return false;
    uuid_unparse_lower(info.handle, uuid);
    return !guest->uuid || !guest->uuid[0] || !strcasecmp(uuid, guest->uuid);
}

bool rescue_is_there(const struct rescue_guest *guest)
{
    xc_interface *xch = xc_interface_open(NULL, NULL, 0);
    bool there = xch && is_there(xch, guest);

    if (xch)
        xc_interface_close(xch);
    return there;
}

static int rescue_open(struct rescue *r, const struct rescue_guest *guest)
{
    r->h.domid = guest->domid;
    r->h.xch = xc_interface_open(NULL, NULL, 0);
    r->xs = xs_open(0);
    if (!r->h.xch || !r->xs) {
        note(r, -EIO, "Xen or xenstore does not open: %s", strerror(errno));
        return -EIO;
    }
    if (!is_there(r->h.xch, guest)) {
        note(r, -ESRCH, "%s (domain %u) is gone", guest->name, guest->domid);
        return -ESRCH;
    }
    return 0;
}

static void rescue_close(struct rescue *r)
{
    if (r->xs)
        xs_close(r->xs);
    if (r->h.xch)
        xc_interface_close(r->h.xch);
}

/* Out of suspension, also of one that is only on its way. */
static void run_again(struct rescue *r, bool wait)
{
    uint64_t deadline = remus_now_ms() + REMUS_LATE_SUSPEND_MS;
    char path[64], *request;
    enum remus_guest_run state;
    uint32_t reason;
    xc_dominfo_t info;
    bool asked;
    int rc;

    /* Empty means that the guest took a request and may be about to suspend. */
    snprintf(path, sizeof(path), "/local/domain/%u/control/shutdown", r->h.domid);
    request = xs_read(r->xs, XBT_NULL, path, NULL);
    asked = wait && request && !request[0];
    free(request);
    rc = remus_guest_suspend_withdraw(r->xs, r->h.domid);
    if (rc && rc != -EALREADY)
        note(r, rc, "the request to suspend could not be taken back: %s", strerror(-rc));
    for (;;) {
        state = remus_guest_state(r->h.xch, r->h.domid, &reason);
        if (state != REMUS_GUEST_RUNS || !asked || remus_now_ms() >= deadline)
            break;
        poll(NULL, 0, 20);
    }
    if (state == REMUS_GUEST_ENDED) {
        note(r, -ESRCH, "%s has ended meanwhile", r->name);
        return;
    }
    if (state == REMUS_GUEST_SUSPENDED) {
        rc = xc_sr_resume(&r->h);
        if (rc)
            note(r, rc, "%s is suspended and could not be resumed: %s", r->name, strerror(-rc));
        else
            note(r, 0, "%s was suspended and runs again", r->name);
        if (!rc)
            remus_guest_resumed(r->xs, r->h.domid);
    }
    if (xc_domain_getinfo(r->h.xch, r->h.domid, 1, &info) == 1 && info.domid == r->h.domid &&
        info.paused) {
        if (xc_domain_unpause(r->h.xch, r->h.domid))
            note(r, -errno, "%s is paused and could not be unpaused: %s", r->name, strerror(errno));
        else
            note(r, 0, "%s was paused and runs again", r->name);
    }
}

static void remove_rules(struct rescue *r)
{
    struct remus_nft_vif vifs[64];
    char prefix[REMUS_NFT_VIF_BYTES], error[200] = "";
    size_t count = 0, i;
    int rc;

    rc = remus_nft_list(vifs, sizeof(vifs) / sizeof(vifs[0]), &count, error, sizeof(error));
    if (rc) {
        note(r, rc, "the rules of %s's interfaces could not be read: %s", r->name, error);
        return;
    }
    /* A vif of this guest by its name; other names stand in the backend's node. */
    snprintf(prefix, sizeof(prefix), "vif%u.", r->h.domid);
    for (i = 0; i < count && i < sizeof(vifs) / sizeof(vifs[0]); i++) {
        if (strncmp(vifs[i].name, prefix, strlen(prefix)))
            continue;
        rc = remus_nft_unprotect(vifs[i].name, error, sizeof(error));
        if (rc)
            note(r, rc, "the rules of %s could not be removed: %s", vifs[i].name, error);
    }
}

/* Its own, as seen in dom0, but for those of a device model. */
static void set_links(uint32_t domid, bool up)
{
    struct if_nameindex *all = if_nameindex(), *i;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char prefix[REMUS_NFT_VIF_BYTES];

    snprintf(prefix, sizeof(prefix), "vif%u.", domid);
    for (i = all; fd >= 0 && i && i->if_name; i++) {
        struct ifreq request = {.ifr_flags = 0};

        if (strncmp(i->if_name, prefix, strlen(prefix)) || strchr(i->if_name, '-'))
            continue;
        snprintf(request.ifr_name, sizeof(request.ifr_name), "%.15s", i->if_name);
        if (ioctl(fd, SIOCGIFFLAGS, &request))
            continue;
        request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
        (void)ioctl(fd, SIOCSIFFLAGS, &request);
    }
    if (fd >= 0)
        close(fd);
    if_freenameindex(all);
}

bool rescue_is_paused(uint32_t domid)
{
    xc_interface *xch = xc_interface_open(NULL, NULL, 0);
    xc_dominfo_t info;
    bool paused = xch && xc_domain_getinfo(xch, domid, 1, &info) == 1 && info.domid == domid &&
                  (info.paused || (info.shutdown && info.shutdown_reason == SHUTDOWN_suspend));

    if (xch)
        xc_interface_close(xch);
    return paused;
}

bool rescue_cut_off(uint32_t domid)
{
    struct remus_nft_vif vifs[64];
    char prefix[REMUS_NFT_VIF_BYTES], error[200];
    bool fenced = false;
    size_t count = 0, i;

    snprintf(prefix, sizeof(prefix), "vif%u.", domid);
    if (remus_nft_list(vifs, sizeof(vifs) / sizeof(vifs[0]), &count, error, sizeof(error)))
        return false;
    for (i = 0; i < count && i < sizeof(vifs) / sizeof(vifs[0]); i++)
        fenced = fenced || !strncmp(vifs[i].name, prefix, strlen(prefix));
    if (fenced)
        set_links(domid, false);
    return fenced;
}

/*
 * Its coordinator is gone, and it serves the guest's disks by itself until it is asked to end: when
 * all that it took is answered and, after a takeover, all that waited is on the disks.  That is not
 * to be cut short for a guest that goes on.
 */
static int end_disk_daemon(struct rescue *r, bool guest_goes_on)
{
    uint64_t began = remus_now_ms(), limit = guest_goes_on ? RESCUE_MERGE_MS : RESCUE_DISKS_MS;
    pid_t pid = remus_disk_daemon(r->h.domid, 0);
    bool told = false;
    int rc;

    if (!pid)
        return 0;
    /* What it holds back, as the other host was not told of it, goes to the disks with that. */
    rc = remus_disks_disown(r->xs, r->h.domid, REMUS_STORE_DIR);
    if (rc)
        note(r, rc, "what is kept of the disks of %s in " REMUS_STORE_DIR " cannot be removed (%s);"
             " do it before a copy of it is received here", r->name, strerror(-rc));
    kill(pid, SIGTERM);
    while (!kill(pid, 0) && remus_now_ms() - began < limit) {
        poll(NULL, 0, 20);
        if (!told && guest_goes_on && remus_now_ms() - began > RESCUE_DISKS_MS) {
            told = true;
            note(r, 0, "colo-blkd brings what waited onto the disks of %s", r->name);
        }
    }
    if (kill(pid, 0))
        return 0;
    if (!guest_goes_on) {
        kill(pid, SIGKILL);
        return 0;
    }
    note(r, -ETIMEDOUT, "colo-blkd of %s has not ended in %u s; it serves the disks until it has "
         "(process %d)", r->name, RESCUE_MERGE_MS / 1000, (int)pid);
    return -ETIMEDOUT;
}

static void give_disks(struct rescue *r)
{
    static struct remus_disk disks[REMUS_DISKS_MAX];
    unsigned int count = REMUS_DISKS_MAX, i;
    char error[REMUS_DISK_ERROR_BYTES] = "";
    int rc;

    if (!remus_disk_minder_ask(r->h.domid, REMUS_DISK_MINDER_GIVE))
        return;
    if (end_disk_daemon(r, true))
        return;
    rc = remus_disks_disown(r->xs, r->h.domid, REMUS_STORE_DIR);
    if (!rc)
        rc = remus_disks_read(r->xs, r->h.domid, disks, &count, error);
    for (i = 0; !rc && i < count; i++)
        if (!remus_disk_served(&disks[i]))
            rc = remus_disk_give(r->h.xch, r->xs, &disks[i], RESCUE_DISKS_MS, error);
    if (rc)
        note(r, rc, "the disks of %s could not be given back to the kernel's backend: %s", r->name,
             error);
}

static void wake_minder(struct rescue *r)
{
    pid_t pids[REMUS_XL_PIDS_MAX];
    unsigned int count = 0;

    remus_guest_xl_stop(r->name, 0, pids, &count);
    remus_guest_xl_continue(pids, count);
}

/* A coordinator that was killed may not have come to it, and another one may have removed it. */
static int fence(struct rescue *r)
{
    struct remus_vif vifs[REMUS_VIFS_MAX];
    unsigned int count = 0, i;
    char error[200] = "";
    int rc = remus_guest_vifs(r->xs, r->h.domid, vifs, &count);

    for (i = 0; !rc && i < count; i++)
        rc = remus_nft_fence(vifs[i].netdev, error, sizeof(error));
    if (rc)
        note(r, rc, "%s stays as it is, since it could not be cut off from its network: %s",
             r->name, error[0] ? error : strerror(-rc));
    return rc;
}

int rescue_resume(const struct rescue_guest *guest, bool unfence, rescue_say say, void *arg)
{
    struct rescue r = {.say = say, .arg = arg, .name = guest->name};
    uint32_t domid = guest->domid;

    if (rescue_open(&r, guest) || (!unfence && fence(&r)))
        goto out;
    if (!unfence)
        set_links(domid, false);
    else
        remove_rules(&r);
    run_again(&r, true);
    if (xc_shadow_control(r.h.xch, domid, XEN_DOMCTL_SHADOW_OP_OFF, NULL, 0) < 0 &&
        errno != EINVAL && errno != ESRCH)
        note(&r, -errno, "tracking of dirty pages could not be turned off: %s", strerror(errno));
    give_disks(&r);
    if (unfence) {
        set_links(domid, true);
        remus_guest_unpublish(r.xs, domid);
        wake_minder(&r);
    }
out:
    rescue_close(&r);
    return r.rc;
}

int rescue_check(const struct rescue_guest *guest, bool wait, rescue_say say, void *arg)
{
    struct rescue r = {.say = say, .arg = arg, .name = guest->name};

    if (!rescue_open(&r, guest)) {
        remove_rules(&r);
        run_again(&r, wait);
    }
    rescue_close(&r);
    return r.rc;
}

int rescue_destroy(const struct rescue_guest *guest, rescue_say say, void *arg)
{
    struct rescue r = {.say = say, .arg = arg, .name = guest->name};
    const char *name = guest->name;
    uint32_t domid = guest->domid;
    xentoollog_logger *logger = NULL;
    libxl_ctx *ctx = NULL;
    int rc;

    if (rescue_open(&r, guest)) {
        if (r.rc == -ESRCH)
            r.rc = 0;       /* that is what was wanted */
        goto out;
    }
    logger = (xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
    if (!logger || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, logger)) {
        note(&r, -EIO, "libxenlight does not open; run: xl destroy %s", name);
        goto out;
    }
    /* The rules stay until the guest is gone: not one more packet of it may leave. */
    xc_domain_pause(r.h.xch, domid);
    if (!remus_disk_minder(domid)) /* it sees to that itself, when the guest has gone */
        end_disk_daemon(&r, false);
    remus_disks_close(r.xs, domid);
    rc = libxl_domain_destroy(ctx, domid, NULL);
    if (rc) {
        note(&r, -EIO, "%s could not be destroyed here (libxl error %d); run: xl destroy %s", name,
             rc, name);
        goto out;
    }
    remove_rules(&r);
    wake_minder(&r);
out:
    if (ctx)
        libxl_ctx_free(ctx);
    if (logger)
        xtl_logger_destroy(logger);
    rescue_close(&r);
    return r.rc;
}
