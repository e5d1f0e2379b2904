/* remus_disk.c: see remus_disk.h. */
#include "tools/libxl/remus_disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/major.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "tools/libxl/remus_diskrec.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/libxl/remus_run.h"
#include "tools/remus/blkring.h"

#include <xen/event_channel.h>
#include <xen/io/blkif.h>

#define PATH_BYTES   256u
#define POLL_US      1000u
#define LOOPS_MAX    256
#define NUDGE_AFTER_US 100000ull          /* without an answer: the guest runs for a moment */
#define NUDGE_US     2000u
#define MINDER_US    30000000ull
#define DRIVER       "/sys/bus/xen-backend/drivers/vbd/"
#define STATE_PUBLISHED 3u          /* XenbusStateInitialised: rings and ports are there */
#define STATE_READY  4u             /* XenbusStateConnected */

__attribute__((format(printf, 2, 3)))
static void say(char *error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, REMUS_DISK_ERROR_BYTES, format, args);
    va_end(args);
}

/* ---- What xenstore says ---- */

/* The caller frees it; NULL: not there. */
static char *node(struct xs_handle *xs, const char *base, const char *name)
{
    char path[PATH_BYTES];

    snprintf(path, sizeof(path), "%s/%s", base, name);
    return xs_read(xs, XBT_NULL, path, NULL);
}

/* fallback where the node is not there, or is no number. */
static uint64_t number(struct xs_handle *xs, const char *base, const char *name, uint64_t fallback)
{
    char *text = node(xs, base, name), *end = NULL;
    uint64_t value = text ? strtoull(text, &end, 10) : 0;

    if (!text || end == text || *end) {
        value = fallback;
    }
    free(text);
    return value;
}

/* refs and port of one ring, which stand below base. */
static int read_ring(struct xs_handle *xs, const char *base, struct ctl_blk_attach *ring)
{
    char name[24];
    uint32_t i;
    uint64_t value;

    for (i = 0; i < ring->pages; i++) {
        snprintf(name, sizeof(name), "ring-ref%u", i);
        value = number(xs, base, name, UINT64_MAX);
        if (value == UINT64_MAX && ring->pages == 1) {
            value = number(xs, base, "ring-ref", UINT64_MAX);
        }
        if (value > UINT32_MAX) {
            return -ENOTCONN;
        }
        ring->refs[i] = (uint32_t)value;
    }
    value = number(xs, base, "event-channel", UINT64_MAX);
    ring->port = (uint32_t)value;
    return value > UINT32_MAX ? -ENOTCONN : 0;
}

static int read_rings(struct xs_handle *xs, const char *frontend, struct remus_disk *d)
{
    uint64_t rings = number(xs, frontend, "multi-queue-num-queues", 1);
    uint64_t order = number(xs, frontend, "ring-page-order", 0);
    char *protocol = node(xs, frontend, "protocol");
    bool old = protocol && !strcmp(protocol, "x86_32-abi");
    char base[PATH_BYTES];
    uint32_t i;
    int rc = 0;

    free(protocol);
    if (!rings || rings > REMUS_DISK_RINGS_MAX || order > 4) {
        return -E2BIG;
    }
    d->rings = (uint32_t)rings;
    for (i = 0; !rc && i < d->rings; i++) {
        d->ring[i] = (struct ctl_blk_attach){
            .domid = d->domid, .disk = d->info.disk, .ring = i, .pages = 1u << order,
            .abi = old ? BLKRING_X86_32 : BLKRING_X86_64,
        };
        if (rings == 1) {
            snprintf(base, sizeof(base), "%s", frontend);
        } else {
            snprintf(base, sizeof(base), "%s/queue-%u", frontend, i);
        }
        rc = read_ring(xs, base, &d->ring[i]);
    }
    return rc;
}

/* What blkback has told the guest. */
static int read_backend(struct xs_handle *xs, struct remus_disk *d, char *error)
{
    struct ctl_disk *info = &d->info;
    uint64_t segs = number(xs, d->backend, "feature-max-indirect-segments", 0);
    char *device = node(xs, d->backend, "physical-device"), *mode = node(xs, d->backend, "mode");
    char *params = node(xs, d->backend, "params");
    int rc = 0;

    if (!device || sscanf(device, "%x:%x", &d->major, &d->minor) != 2) {
        say(error, "domain %u disk %u has no block device below it (an empty drive?)", d->domid,
            info->vdev);
        rc = -ENOTSUP;
    }
    if (params) {
        snprintf(d->path, sizeof(d->path), "%s", params);
    }
    info->sectors = number(xs, d->backend, "sectors", 0);
    info->logical_bytes = (uint32_t)number(xs, d->backend, "sector-size", BLKRING_SECTOR);
    info->read_only = !mode || strcmp(mode, "w");
    info->flush = number(xs, d->backend, "feature-flush-cache", 0) != 0;
    info->barrier = number(xs, d->backend, "feature-barrier", 0) != 0;
    info->discard = number(xs, d->backend, "feature-discard", 0) != 0;
    info->secure_discard = number(xs, d->backend, "discard-secure", 0) != 0;
    info->segs_max = (uint32_t)(segs > BLKRING_SEGS_MAX ? BLKRING_SEGS_MAX : segs);
    if (!rc && !info->sectors) {
        say(error, "domain %u disk %u: its backend does not say how large it is", d->domid,
            info->vdev);
        rc = -ENOTCONN;
    }
    free(device);
    free(mode);
    free(params);
    return rc;
}

static int read_disk(struct xs_handle *xs, const char *frontend, struct remus_disk *d, char *error)
{
    char *backend = node(xs, frontend, "backend");
    char wanted[96];
    int rc;

    snprintf(wanted, sizeof(wanted), "/local/domain/0/backend/vbd/%u/%u", d->domid, d->info.vdev);
    rc = backend && !strcmp(backend, wanted) ? 0 : -ENOTSUP;
    free(backend);
    if (rc) {
        say(error, "domain %u disk %u is not served by the kernel of dom0 (blkback): give it "
            "backendtype=phy in the guest's configuration", d->domid, d->info.vdev);
        return rc;
    }
    memcpy(d->backend, wanted, sizeof(d->backend));
    if (number(xs, frontend, "state", 0) != STATE_READY ||
        number(xs, d->backend, "state", 0) != STATE_READY) {
        say(error, "domain %u disk %u is not connected (the guest has no driver for it, or is "
            "still starting)", d->domid, d->info.vdev);
        return -ENOTCONN;
    }
    rc = read_backend(xs, d, error);
    if (!rc) {
        rc = read_rings(xs, frontend, d);
        if (rc) {
            say(error, "domain %u disk %u: its frontend's nodes name no rings that can be taken "
                "(at most %u, of 16 pages)", d->domid, d->info.vdev, REMUS_DISK_RINGS_MAX);
        }
    }
    return rc;
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* The guest's disks in order of their numbers; how many.  base: of the frontends. */
static unsigned int list_disks(struct xs_handle *xs, uint32_t domid, char base[64],
                               uint32_t vdevs[REMUS_DISKS_MAX])
{
    unsigned int n = 0, i;
    char **names;

    snprintf(base, 64, "/local/domain/%u/device/vbd", domid);
    names = xs_directory(xs, XBT_NULL, base, &n);
    for (i = 0; i < n && i < REMUS_DISKS_MAX; i++) {
        vdevs[i] = (uint32_t)strtoul(names[i], NULL, 10);
    }
    free(names);
    if (i) {
        qsort(vdevs, i, sizeof(vdevs[0]), by_number);
    }
    return n;
}

/* Linux has no driver for the CD-ROM drive of a PVH guest. */
static bool is_unused_drive(struct xs_handle *xs, const char *frontend)
{
    char *type = node(xs, frontend, "device-type");
    const bool drive = type && !strcmp(type, "cdrom");

    free(type);
    return drive && number(xs, frontend, "state", 0) != STATE_READY;
}

int remus_disks_read(struct xs_handle *xs, uint32_t domid, struct remus_disk *disks,
                     unsigned int *count, char *error)
{
    char base[64], frontend[96];
    uint32_t vdevs[REMUS_DISKS_MAX];
    unsigned int n = list_disks(xs, domid, base, vdevs), i;
    int rc = 0;

    if (n > *count || n > REMUS_DISKS_MAX) {
        say(error, "domain %u has %u disks, and %u can be protected", domid, n, REMUS_DISKS_MAX);
        rc = -E2BIG;
    }
    *count = 0;
    for (i = 0; !rc && i < n; i++) {
        struct remus_disk *d = &disks[*count];

        snprintf(frontend, sizeof(frontend), "%s/%u", base, vdevs[i]);
        if (is_unused_drive(xs, frontend)) {
            continue;
        }
        memset(d, 0, sizeof(*d));
        d->domid = domid;
        d->info.disk = *count;
        d->info.vdev = vdevs[i];
        rc = read_disk(xs, frontend, d, error);
        ++*count;
    }
    return rc;
}

/* ---- The block device ---- */

int remus_disk_place_open(const struct remus_disk_place *place, uint64_t *sectors)
{
    const int mode = (place->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC;
    int fd = open(place->path, mode | O_DIRECT), rc;
    uint64_t bytes = 0;
    struct stat st;

    if (fd < 0 && errno == EINVAL) {
        fd = open(place->path, mode);   /* a file of a file system without it */
    }
    if (fd < 0) {
        return -errno;
    }
    rc = fstat(fd, &st) ? -errno : 0;
    if (!rc && S_ISBLK(st.st_mode)) {
        rc = ioctl(fd, BLKGETSIZE64, &bytes) ? -errno : 0;
    } else if (!rc && S_ISREG(st.st_mode)) {
        bytes = (uint64_t)st.st_size;
    } else if (!rc) {
        rc = -ENOTBLK;
    }
    if (rc) {
        close(fd);
        return rc;
    }
    *sectors = bytes / BLKRING_SECTOR;
    return fd;
}

static bool is_file(const char *path, const struct stat *st)
{
    struct stat other;

    return path[0] == '/' && !stat(path, &other) &&
           (S_ISBLK(st->st_mode) ? S_ISBLK(other.st_mode) && other.st_rdev == st->st_rdev
            : other.st_dev == st->st_dev && other.st_ino == st->st_ino);
}

/* The domain whose backend has it; 0: none. */
static unsigned int domain_with(struct xs_handle *xs, const struct stat *st)
{
    static const char *const kinds[] = { "vbd", "qdisk" };
    unsigned int k, i, j, domains = 0, devices, found = 0;
    char path[96];

    for (k = 0; !found && k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        char **domain, **device;

        snprintf(path, sizeof(path), "/local/domain/0/backend/%s", kinds[k]);
        domain = xs_directory(xs, XBT_NULL, path, &domains);
        for (i = 0; domain && !found && i < domains; i++) {
            snprintf(path, sizeof(path), "/local/domain/0/backend/%s/%.16s", kinds[k], domain[i]);
            device = xs_directory(xs, XBT_NULL, path, &devices);
            for (j = 0; device && !found && j < devices; j++) {
                char *params, *name;

                snprintf(path, sizeof(path), "/local/domain/0/backend/%s/%.16s/%.16s", kinds[k],
                         domain[i], device[j]);
                params = node(xs, path, "params");
                /* qdisk's are FORMAT:PATH */
                name = params ? strchr(params, '/') : NULL;
                if (name && is_file(name, st)) {
                    found = (unsigned int)strtoul(domain[i], NULL, 10);
                }
                free(params);
            }
            free(device);
        }
        free(domain);
    }
    return found;
}

/* A loop device over the file, N of loopN; -1: none. */
static int loop_over(const struct stat *st)
{
    char path[64], file[PATH_BYTES];
    int i, fd;

    for (i = 0; i < LOOPS_MAX; i++) {
        ssize_t n;

        snprintf(path, sizeof(path), "/sys/block/loop%d/loop/backing_file", i);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        n = read(fd, file, sizeof(file) - 1);
        close(fd);
        file[n > 0 ? n : 0] = '\0';
        file[strcspn(file, "\n")] = '\0';
        if (is_file(file, st)) {
            return i;
        }
    }
    return -1;
}

void remus_disk_place_user(struct xs_handle *xs, const struct remus_disk_place *place, char *user,
                           size_t room)
{
    unsigned int domid;
    struct stat st;
    int loop, fd;

    user[0] = '\0';
    if (place->read_only || stat(place->path, &st)) {
        return;
    }
    domid = domain_with(xs, &st);
    loop = S_ISREG(st.st_mode) ? loop_over(&st) : -1;
    if (domid) {
        snprintf(user, room, "domain %u", domid);
    } else if (loop >= 0) {
        snprintf(user, room, "/dev/loop%d", loop);
    } else if (S_ISBLK(st.st_mode)) {
        fd = open(place->path, O_RDWR | O_EXCL | O_CLOEXEC);
        if (fd >= 0) {
            close(fd);
        } else if (errno == EBUSY) {
            snprintf(user, room, "mounted, or part of another device");
        }
    }
}

/*
 * The file below a loop device, if all of it is the device: the device would hand each request to a
 * thread of its own.  It reads and writes the file's pages in memory, unless it was told otherwise,
 * and so do we: both see the same.  A descriptor, or -1: it is no such device.
 */
static int open_below(int device_fd, int access_mode)
{
    struct loop_info64 info;
    char path[64], file[4096];
    FILE *name;
    struct stat st;
    int fd = -1;

    if (fstat(device_fd, &st) || major(st.st_rdev) != LOOP_MAJOR ||
        ioctl(device_fd, LOOP_GET_STATUS64, &info) || info.lo_offset || info.lo_sizelimit ||
        info.lo_encrypt_type || (access_mode == O_RDWR && info.lo_flags & LO_FLAGS_READ_ONLY)) {
        return -1;
    }
    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/loop/backing_file", major(st.st_rdev),
             minor(st.st_rdev));
    name = fopen(path, "re");
    if (name && fgets(file, sizeof(file), name)) {
        file[strcspn(file, "\n")] = 0;
        fd = open(file, access_mode | O_CLOEXEC |
                  (info.lo_flags & LO_FLAGS_DIRECT_IO ? O_DIRECT : 0));
    }
    if (name) {
        fclose(name);
    }
    if (fd >= 0 && (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_dev != info.lo_device ||
                    st.st_ino != info.lo_inode)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* The kernel's own name of a block device: there without udev, too. */
static void device_path(const struct remus_disk *d, char *path, size_t size)
{
    char uevent[64], line[256];
    FILE *f;

    snprintf(path, size, "/dev/block/%u:%u", d->major, d->minor);
    snprintf(uevent, sizeof(uevent), "/sys/dev/block/%u:%u/uevent", d->major, d->minor);
    f = fopen(uevent, "re");
    while (f && fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "DEVNAME=", 8)) {
            snprintf(path, size, "/dev/%s", line + 8);
        }
    }
    if (f) {
        fclose(f);
    }
}

int remus_disk_open(const struct remus_disk *d, char *error)
{
    const int access_mode = d->info.read_only ? O_RDONLY : O_RDWR;
    char path[288];
    uint64_t bytes;
    struct stat st;
    int fd, below, rc;

    device_path(d, path, sizeof(path));
    fd = open(path, access_mode | O_DIRECT | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &st) || !S_ISBLK(st.st_mode) ||
                    st.st_rdev != makedev(d->major, d->minor))) {
        close(fd);
        fd = -1;
        errno = ENODEV;
    }
    if (fd < 0) {
        rc = -errno;
        say(error, "domain %u disk %u: %s does not open: %s", d->domid, d->info.vdev, path,
            strerror(-rc));
        return rc;
    }
    if (ioctl(fd, BLKGETSIZE64, &bytes) || bytes / BLKRING_SECTOR < d->info.sectors) {
        say(error, "domain %u disk %u: %s is smaller than the %" PRIu64 " sectors that the guest "
            "knows of", d->domid, d->info.vdev, path, d->info.sectors);
        close(fd);
        return -EINVAL;
    }
    below = open_below(fd, access_mode);
    if (below >= 0) {
        close(fd);
    }
    return below >= 0 ? below : fd;
}

/* ---- Who has it ---- */

void remus_disk_log_path(char path[REMUS_DISK_LOG_BYTES], uint32_t domid)
{
    snprintf(path, REMUS_DISK_LOG_BYTES, REMUS_RUN_DIR "/%u.dirty", domid);
}

pid_t remus_disk_daemon(uint32_t domid, pid_t other_than)
{
    char path[300], text[256], wanted[32];
    struct dirent *entry;
    DIR *proc = opendir("/proc");
    pid_t found = 0;

    snprintf(wanted, sizeof(wanted), "%u", domid);
    while (proc && !found && (entry = readdir(proc))) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        const char *word;
        ssize_t n;
        int fd;

        snprintf(path, sizeof(path), "/proc/%s/cmdline", entry->d_name);
        fd = pid > 0 && pid != other_than ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd < 0) {
            continue;
        }
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        /* "colo-blkd" "--domid" "N" */
        if (n < 20 || strcmp(text, "colo-blkd") || strcmp(text + 10, "--domid")) {
            continue;
        }
        word = text + 18;
        found = strcmp(word, wanted) ? 0 : pid;
    }
    if (proc) {
        closedir(proc);
    }
    return found;
}

static void minder_path(char path[PATH_BYTES], uint32_t domid)
{
    snprintf(path, PATH_BYTES, REMUS_RUN_DIR "/%u.minder", domid);
}

int remus_disk_minder_tell(uint32_t domid)
{
    char path[PATH_BYTES];
    int fd, rc = 0;

    minder_path(path, domid);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -errno;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) || dprintf(fd, "%d\n", (int)getpid()) < 0) {
        rc = -errno;
        close(fd);
    }
    return rc;                      /* the descriptor is this process's, until its end */
}

void remus_disk_minder_forget(uint32_t domid)
{
    char path[PATH_BYTES];

    minder_path(path, domid);
    unlink(path);
}

/* A file that nobody has locked is of one that was killed, and its number is another's. */
pid_t remus_disk_minder(uint32_t domid)
{
    char path[PATH_BYTES], text[16] = "";
    pid_t pid = 0;
    int fd;

    minder_path(path, domid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    if (flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK &&
        read(fd, text, sizeof(text) - 1) > 0) {
        pid = (pid_t)atoi(text);
    }
    close(fd);
    return pid > 0 ? pid : 0;
}

int remus_disk_minder_ask(uint32_t domid, int number)
{
    const pid_t pid = remus_disk_minder(domid);
    uint64_t deadline = remus_run_now_us() + MINDER_US;

    if (!pid || kill(pid, number)) {
        return -ESRCH;
    }
    while (remus_disk_minder(domid) == pid) {
        if (remus_run_now_us() > deadline) {
            return -ETIMEDOUT;
        }
        usleep(POLL_US);
    }
    return 0;
}

/* ---- Taking and giving ---- */

static int write_driver(const struct remus_disk *d, const char *what)
{
    char path[64], name[32];
    int fd, rc = 0;

    snprintf(path, sizeof(path), DRIVER "%s", what);
    snprintf(name, sizeof(name), "vbd-%u-%u", d->domid, d->info.vdev);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    if (write(fd, name, strlen(name)) < 0) {
        rc = -errno;
    }
    close(fd);
    return rc;
}

/* Whether the rings' requests all have their answers: the guest makes no new ones now. */
static bool drained(void *const *pages, const struct remus_disk *d)
{
    struct blkring r;
    uint32_t i;

    for (i = 0; i < d->rings; i++) {
        blkring_attach(&r, pages[i], 1, BLKRING_X86_64, d->domid);
        /* Of a ring of several pages the first has the indices; a nonsensical one never drains. */
        if (!blkring_drained(&r)) {
            return false;
        }
    }
    return true;
}

/*
 * A vCPU that was paused between making a request visible and notifying blkback has left one that
 * nobody is going to answer: the guest goes on for a moment, and is paused again.
 */
static void let_it_notify(xc_interface *xch, const struct remus_disk *d)
{
    xc_domain_unpause(xch, d->domid);
    usleep(NUDGE_US);
    xc_domain_pause(xch, d->domid);
}

/* may_run: the guest is paused, not suspended. */
static int wait_drained(xc_interface *xch, xengnttab_handle *xgt, const struct remus_disk *d,
                        uint64_t deadline, bool may_run)
{
    uint64_t nudge = remus_run_now_us() + NUDGE_AFTER_US;
    void *pages[REMUS_DISK_RINGS_MAX] = { NULL };
    uint32_t i;
    int rc = 0;

    for (i = 0; !rc && i < d->rings; i++) {
        pages[i] = xengnttab_map_grant_ref(xgt, d->domid, d->ring[i].refs[0], PROT_READ);
        rc = pages[i] ? 0 : -errno;
    }
    while (!rc && !drained(pages, d)) {
        rc = remus_run_now_us() >= deadline ? -ETIMEDOUT : 0;
        if (!rc && may_run && remus_run_now_us() >= nudge) {
            let_it_notify(xch, d);
            nudge = remus_run_now_us() + NUDGE_AFTER_US;
        }
        usleep(POLL_US);
    }
    for (i = 0; i < d->rings; i++) {
        if (pages[i]) {
            xengnttab_unmap(xgt, pages[i], 1);
        }
    }
    return rc;
}

/* Until the guest's ports are all bound to somebody, or all to nobody. */
static int wait_ports(xc_interface *xch, const struct remus_disk *d, bool bound, uint64_t deadline)
{
    uint32_t i = 0;

    while (i < d->rings) {
        xc_evtchn_status_t status = { .dom = (domid_t)d->domid, .port = d->ring[i].port };

        if (xc_evtchn_status(xch, &status)) {
            return -errno;
        }
        if (status.status == (bound ? EVTCHNSTAT_interdomain : EVTCHNSTAT_unbound)) {
            i++;
        } else if (remus_run_now_us() >= deadline) {
            return -ETIMEDOUT;
        } else {
            usleep(POLL_US);
        }
    }
    return 0;
}

int remus_disk_wait_idle(xengnttab_handle *xgt, const struct remus_disk *d,
                         unsigned int timeout_ms)
{
    return wait_drained(NULL, xgt, d, remus_run_now_us() + timeout_ms * 1000ull, false);
}

int remus_disk_take(xc_interface *xch, xengnttab_handle *xgt, const struct remus_disk *d,
                    unsigned int timeout_ms, char *error)
{
    uint64_t deadline = remus_run_now_us() + timeout_ms * 1000ull;
    int rc = wait_drained(xch, xgt, d, deadline, true);

    if (rc) {
        say(error, "domain %u disk %u: its requests are not all answered: %s", d->domid,
            d->info.vdev, strerror(-rc));
        return rc;
    }
    rc = write_driver(d, "unbind");
    if (rc) {
        say(error, "domain %u disk %u: the kernel's backend does not let go of it: %s", d->domid,
            d->info.vdev, strerror(-rc));
        return rc;
    }
    rc = wait_ports(xch, d, false, deadline);
    if (rc) {
        say(error, "domain %u disk %u: the kernel's backend stays bound to the guest's event "
            "channel: %s", d->domid, d->info.vdev, strerror(-rc));
    }
    return rc;
}

int remus_disks_unbind(struct xs_handle *xs, uint32_t domid, char *error)
{
    uint32_t vdevs[REMUS_DISKS_MAX];
    unsigned int n, i;
    char base[64];
    int rc = 0;

    n = list_disks(xs, domid, base, vdevs);
    for (i = 0; !rc && i < n && i < REMUS_DISKS_MAX; i++) {
        struct remus_disk d = { .domid = domid, .info.vdev = vdevs[i] };

        rc = write_driver(&d, "unbind");
        if (rc) {
            say(error, "domain %u disk %u: the kernel's backend does not let go of it: %s", domid,
                vdevs[i], strerror(-rc));
        }
    }
    return rc;
}

enum remus_disk_frontend remus_disk_frontend(struct xs_handle *xs, struct remus_disk *d)
{
    char frontend[96];
    uint64_t state;

    snprintf(frontend, sizeof(frontend), "/local/domain/%u/device/vbd/%u", d->domid, d->info.vdev);
    state = number(xs, frontend, "state", 0);
    if (state == STATE_READY) {
        return REMUS_DISK_CONNECTED;
    }
    return state == STATE_PUBLISHED && !read_rings(xs, frontend, d) ? REMUS_DISK_WAITS
           : REMUS_DISK_NOT_YET;
}

static int write_number(struct xs_handle *xs, const char *base, const char *name, uint64_t value)
{
    char path[PATH_BYTES], text[24];

    snprintf(path, sizeof(path), "%s/%s", base, name);
    snprintf(text, sizeof(text), "%" PRIu64, value);
    return xs_write(xs, XBT_NULL, path, text, (unsigned int)strlen(text)) ? 0 : -errno;
}

int remus_disk_connect(struct xs_handle *xs, const struct remus_disk *d)
{
    char backend[96];
    int rc;

    snprintf(backend, sizeof(backend), "/local/domain/0/backend/vbd/%u/%u", d->domid,
             d->info.vdev);
    rc = write_number(xs, backend, "sectors", d->info.sectors);
    if (!rc) {
        rc = write_number(xs, backend, "sector-size", d->info.logical_bytes);
    }
    if (!rc) {
        rc = write_number(xs, backend, "info", d->info.read_only ? VDISK_READONLY : 0);
    }
    if (!rc) {
        rc = write_number(xs, backend, "feature-flush-cache", 1);
    }
    return rc ? rc : write_number(xs, backend, "state", STATE_READY);
}

void remus_disks_close(struct xs_handle *xs, uint32_t domid)
{
    uint32_t vdevs[REMUS_DISKS_MAX];
    unsigned int n, i;
    char path[128];

    n = list_disks(xs, domid, path, vdevs);
    for (i = 0; i < n && i < REMUS_DISKS_MAX; i++) {
        snprintf(path, sizeof(path), DRIVER "vbd-%u-%u", domid, vdevs[i]);
        if (access(path, F_OK)) {
            snprintf(path, sizeof(path), "/local/domain/0/backend/vbd/%u/%u/state", domid,
                     vdevs[i]);
            xs_write(xs, XBT_NULL, path, "6", 1);
        }
    }
}

bool remus_disk_served(const struct remus_disk *d)
{
    char path[128];

    snprintf(path, sizeof(path), DRIVER "vbd-%u-%u", d->domid, d->info.vdev);
    return !access(path, F_OK);
}

int remus_disks_disown(struct xs_handle *xs, uint32_t domid, const char *directory)
{
    char base[64], *path;
    unsigned int n = 0, i;
    char **names;
    int rc = 0, removed;

    snprintf(base, sizeof(base), "/local/domain/0/backend/vbd/%u", domid);
    names = xs_directory(xs, XBT_NULL, base, &n);
    for (i = 0; i < n; i++) {
        char name[96];

        snprintf(name, sizeof(name), "%.20s/params", names[i]);
        path = node(xs, base, name);
        removed = path ? remus_diskrec_remove(directory, path) : 0;
        rc = rc ? rc : removed;
        free(path);
    }
    free(names);
    return rc;
}

int remus_disk_give(xc_interface *xch, struct xs_handle *xs, const struct remus_disk *d,
                    unsigned int timeout_ms, char *error)
{
    uint64_t deadline = remus_run_now_us() + timeout_ms * 1000ull;
    char log[REMUS_DISK_LOG_BYTES];
    int rc;

    remus_disk_log_path(log, d->domid);
    if (unlink(log) && errno != ENOENT) {
        say(error, "domain %u: %s cannot be removed: %s", d->domid, log, strerror(errno));
        return -errno;
    }
    rc = wait_ports(xch, d, false, deadline);
    if (!rc) {
        rc = write_driver(d, "bind");
    }
    if (!rc) {
        rc = wait_ports(xch, d, true, deadline);
    }
    while (!rc && number(xs, d->backend, "state", 0) != STATE_READY) {
        rc = remus_run_now_us() >= deadline ? -ETIMEDOUT : 0;
        usleep(POLL_US);
    }
    if (rc) {
        say(error, "domain %u disk %u: the kernel's backend does not take it back: %s", d->domid,
            d->info.vdev, strerror(-rc));
    }
    return rc;
}
