/*
 * remus_guest.c: xenstore and process side of a guest under protection.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tools/libxl/remus_guest.h"

#include <xen/sched.h>

#define PATH_BYTES 256
#define REMUS_DEVICES_MAX (REMUS_VIFS_MAX > REMUS_DISKS_MAX ? REMUS_VIFS_MAX : REMUS_DISKS_MAX)
#define FRONTENDS_BYTES_MAX 65536u
#define STATE_CONNECTED "4"

static char *read_node(struct xs_handle *xs, const char *path)
{
    unsigned int length;

    return xs_read(xs, XBT_NULL, path, &length);
}

static int read_u32(struct xs_handle *xs, const char *base, const char *node, uint32_t *value)
{
    char path[PATH_BYTES], *text, *end;
    unsigned long n;
    int rc = 0;

    snprintf(path, sizeof(path), "%s/%s", base, node);
    text = read_node(xs, path);
    if (!text)
        return -errno;
    errno = 0;
    n = strtoul(text, &end, 10);
    if (errno || end == text || *end || n > UINT32_MAX)
        rc = -EBADMSG;
    else
        *value = (uint32_t)n;
    free(text);
    return rc;
}

static uint32_t read_flag(struct xs_handle *xs, const char *base, const char *node)
{
    uint32_t value = 0;

    return read_u32(xs, base, node, &value) == 0 && value != 0;
}

static int read_vif(struct xs_handle *xs, uint32_t domid, unsigned int index,
                    struct remus_vif *vif)
{
    char base[PATH_BYTES], ring[PATH_BYTES + 16], path[PATH_BYTES + 16], *text;
    struct ctl_attach *a = &vif->attach;
    unsigned int m[6], i;
    int rc;

    memset(vif, 0, sizeof(*vif));
    a->domid = domid;
    a->vif = index;
    snprintf(vif->netdev, sizeof(vif->netdev), "vif%u.%u", domid, index);
    snprintf(base, sizeof(base), "/local/domain/%u/device/vif/%u", domid, index);

    /* One queue: its nodes stand in the device's directory or in queue-0. */
    snprintf(ring, sizeof(ring), "%s/queue-0", base);
    if (read_u32(xs, ring, "tx-ring-ref", &a->tx_ref))
        snprintf(ring, sizeof(ring), "%s", base);
    rc = read_u32(xs, ring, "tx-ring-ref", &a->tx_ref);
    if (!rc)
        rc = read_u32(xs, ring, "rx-ring-ref", &a->rx_ref);
    if (!rc) {
        rc = read_u32(xs, ring, "event-channel-tx", &a->tx_port);
        if (!rc) {
            rc = read_u32(xs, ring, "event-channel-rx", &a->rx_port);
        } else {
            rc = read_u32(xs, ring, "event-channel", &a->tx_port);
            a->rx_port = a->tx_port;
        }
    }
    if (rc)
        return rc;
    a->rx_copy = read_flag(xs, base, "request-rx-copy");
    a->sg = read_flag(xs, base, "feature-sg");
    a->gso4 = read_flag(xs, base, "feature-gso-tcpv4");
    a->gso6 = read_flag(xs, base, "feature-gso-tcpv6");
    a->csum6_offload = read_flag(xs, base, "feature-ipv6-csum-offload");

    snprintf(path, sizeof(path), "%s/mac", base);
    text = read_node(xs, path);
    if (text && sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &m[0], &m[1], &m[2], &m[3], &m[4],
                       &m[5]) == 6)
        for (i = 0; i < 6; i++)
            a->mac[i] = (uint8_t)m[i];
    free(text);
    snprintf(path, sizeof(path), "/local/domain/0/backend/vif/%u/%u/bridge", domid, index);
    text = read_node(xs, path);
    if (text)
        snprintf(vif->bridge, sizeof(vif->bridge), "%s", text);
    free(text);
    return 0;
}

static int compare_index(const void *a, const void *b)
{
    unsigned int x = *(const unsigned int *)a, y = *(const unsigned int *)b;

    return x < y ? -1 : x > y;
}

/* Numbers of the guest's devices of a kind, ascending. */
static int list_devices(struct xs_handle *xs, uint32_t domid, const char *kind,
                        unsigned int *index, unsigned int max, unsigned int *count)
{
    char path[PATH_BYTES], **names;
    unsigned int n = 0, i;

    *count = 0;
    snprintf(path, sizeof(path), "/local/domain/%u/device/%s", domid, kind);
    names = xs_directory(xs, XBT_NULL, path, &n);
    if (!names)
        return errno == ENOENT ? 0 : -errno;
    if (n > max) {
        free(names);
        return -E2BIG;
    }
    for (i = 0; i < n; i++)
        index[i] = (unsigned int)strtoul(names[i], NULL, 10);
    free(names);
    qsort(index, n, sizeof(*index), compare_index);
    *count = n;
    return 0;
}

int remus_guest_vifs(struct xs_handle *xs, uint32_t domid, struct remus_vif *vifs,
                     unsigned int *count)
{
    unsigned int index[REMUS_VIFS_MAX], i;
    int rc = list_devices(xs, domid, "vif", index, REMUS_VIFS_MAX, count);

    for (i = 0; !rc && i < *count; i++)
        rc = read_vif(xs, domid, index[i], &vifs[i]);
    return rc;
}

/* ---- Frontends' nodes ---- */

/* Names a backend reads when it connects; everything else belongs to the domain. */
static bool is_frontend_node(const char *name)
{
    static const char *const names[] = {
        "tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "event-channel-rx",
        "request-rx-copy", "multi-queue-num-queues", "state", "xdp-headroom", "ring-ref",
        "ring-page-order", "protocol",
    };
    unsigned int i;

    if (!strncmp(name, "ring-ref", 8) && name[8] && strspn(name + 8, "0123456789") < 3 &&
        strspn(name + 8, "0123456789") == strlen(name + 8))
        return true;

    if (!strncmp(name, "feature-", 8))
        return strlen(name) < 48 && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") ==
               strlen(name);
    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

static int append(char **text, uint32_t *bytes, const char *string)
{
    size_t length = strlen(string) + 1;
    char *grown;

    if (*bytes + length > FRONTENDS_BYTES_MAX)
        return -E2BIG;
    grown = realloc(*text, *bytes + length);
    if (!grown)
        return -ENOMEM;
    memcpy(grown + *bytes, string, length);
    *text = grown;
    *bytes += (uint32_t)length;
    return 0;
}

static int read_directory(struct xs_handle *xs, uint32_t domid, const char *relative,
                          char **text, uint32_t *bytes, bool queues)
{
    char path[PATH_BYTES], node[PATH_BYTES], **names;
    unsigned int n = 0, i;
    int rc = 0;

    snprintf(path, sizeof(path), "/local/domain/%u/%s", domid, relative);
    names = xs_directory(xs, XBT_NULL, path, &n);
    if (!names)
        return -errno;
    for (i = 0; !rc && i < n; i++) {
        char *value;

        snprintf(node, sizeof(node), "%.150s/%.60s", relative, names[i]);
        if (queues && !strncmp(names[i], "queue-", 6)) {
            rc = read_directory(xs, domid, node, text, bytes, false);
            continue;
        }
        if (!is_frontend_node(names[i]))
            continue;
        snprintf(path, sizeof(path), "/local/domain/%u/%.220s", domid, node);
        value = read_node(xs, path);
        if (!value)
            continue;
        rc = append(text, bytes, node);
        if (!rc)
            rc = append(text, bytes, value);
        free(value);
    }
    free(names);
    return rc;
}

static int read_frontends(struct xs_handle *xs, uint32_t domid, const char *kind,
                          unsigned int max, char **text, uint32_t *bytes)
{
    unsigned int index[REMUS_DEVICES_MAX], count, i;
    int rc = list_devices(xs, domid, kind, index, max, &count);

    for (i = 0; !rc && i < count; i++) {
        char relative[32];

        snprintf(relative, sizeof(relative), "device/%s/%u", kind, index[i]);
        rc = read_directory(xs, domid, relative, text, bytes, true);
    }
    return rc;
}

int remus_guest_frontends_read(struct xs_handle *xs, uint32_t domid, bool net, bool disk,
                               char **text, uint32_t *bytes)
{
    int rc = 0;

    *text = NULL;
    *bytes = 0;
    if (net)
        rc = read_frontends(xs, domid, "vif", REMUS_VIFS_MAX, text, bytes);
    if (!rc && disk)
        rc = read_frontends(xs, domid, "vbd", REMUS_DISKS_MAX, text, bytes);
    if (rc) {
        free(*text);
        *text = NULL;
    }
    return rc;
}

/* device/KIND/N/name or device/KIND/N/queue-M/name; *device is N. */
static bool parse_frontend_path(const char *path, const char **kind, unsigned int *device)
{
    unsigned long number;
    char *end;

    if (!strncmp(path, "device/vif/", 11))
        *kind = "vif";
    else if (!strncmp(path, "device/vbd/", 11))
        *kind = "vbd";
    else
        return false;
    if (!isdigit((unsigned char)path[11]))
        return false;
    number = strtoul(path + 11, &end, 10);
    /* xen/io/blkif.h: numbers of disks have 28 bits */
    if (number > (!strcmp(*kind, "vif") ? 1024u : (1u << 29)) || *end != '/')
        return false;
    *device = (unsigned int)number;
    path = end + 1;
    if (!strncmp(path, "queue-", 6) && isdigit((unsigned char)path[6])) {
        strtoul(path + 6, &end, 10);
        if (*end != '/')
            return false;
        path = end + 1;
    }
    return is_frontend_node(path);
}

/* Whether text has a path that begins so; whole: that is exactly so. */
static bool is_named(const char *text, uint32_t bytes, const char *begin, bool whole)
{
    const size_t length = strlen(begin);
    uint32_t at = 0;

    while (at < bytes) {
        const char *path = text + at, *end = memchr(path, 0, bytes - at);
        const char *value = end ? end + 1 : text + bytes;

        if (end && (whole ? !strcmp(path, begin) : !strncmp(path, begin, length)))
            return true;
        end = value < text + bytes ? memchr(value, 0, (size_t)(text + bytes - value)) : NULL;
        at = end ? (uint32_t)(end + 1 - text) : bytes;
    }
    return false;
}

/*
 * What the copy's frontend wrote in its own first run, and the primary's did not (a backend here
 * may have offered more queues), would be taken for the primary's.
 */
static void remove_others(struct xs_handle *xs, uint32_t domid, const char *kind,
                          unsigned int device, const char *text, uint32_t bytes)
{
    char base[PATH_BYTES], path[PATH_BYTES], full[PATH_BYTES];
    unsigned int count = 0, i;
    char **names;

    snprintf(base, sizeof(base), "device/%s/%u", kind, device);
    snprintf(full, sizeof(full), "/local/domain/%u/%.200s", domid, base);
    names = xs_directory(xs, XBT_NULL, full, &count);
    for (i = 0; names && i < count; i++) {
        bool queue = !strncmp(names[i], "queue-", 6);

        snprintf(path, sizeof(path), "%.100s/%.100s%s", base, names[i], queue ? "/" : "");
        if ((!queue && !is_frontend_node(names[i])) || is_named(text, bytes, path, !queue))
            continue;
        snprintf(full, sizeof(full), "/local/domain/%u/%.100s/%.100s", domid, base, names[i]);
        xs_rm(xs, XBT_NULL, full);
    }
    free(names);
}

int remus_guest_frontends_write(struct xs_handle *xs, uint32_t domid, const char *text,
                                uint32_t bytes)
{
    char cleaned[8] = "";
    unsigned int cleaned_device = 0;
    uint32_t at = 0;

    while (at < bytes) {
        const char *path = text + at, *value, *kind;
        const char *end = memchr(path, 0, bytes - at);
        char full[PATH_BYTES], backend[PATH_BYTES];
        unsigned int device;

        if (!end)
            return -EBADMSG;
        at += (uint32_t)(end - path) + 1;
        value = text + at;
        end = at < bytes ? memchr(value, 0, bytes - at) : NULL;
        if (!end || end - value > 64 || !parse_frontend_path(path, &kind, &device))
            return -EBADMSG;
        at += (uint32_t)(end - value) + 1;
        /* A device's nodes stand together. */
        if (strcmp(cleaned, kind) || cleaned_device != device) {
            remove_others(xs, domid, kind, device, text, bytes);
            snprintf(cleaned, sizeof(cleaned), "%s", kind);
            cleaned_device = device;
        }

        /* The backend's state first: the frontend's watch must find it connected. */
        snprintf(backend, sizeof(backend), "/local/domain/0/backend/%s/%u/%u/state", kind, domid,
                 device);
        if (strlen(path) > 6 && !strcmp(path + strlen(path) - 6, "/state") &&
            !xs_write(xs, XBT_NULL, backend, STATE_CONNECTED, 1))
            return -errno;
        snprintf(full, sizeof(full), "/local/domain/%u/%.200s", domid, path);
        if (!xs_write(xs, XBT_NULL, full, value, (unsigned int)(end - value)))
            return -errno;
    }
    return 0;
}

/* ---- Suspending ---- */

int remus_guest_suspend_ask(struct xs_handle *xs, uint32_t domid)
{
    char path[PATH_BYTES];

    snprintf(path, sizeof(path), "/local/domain/%u/control/shutdown", domid);
    return xs_write(xs, XBT_NULL, path, "suspend", 7) ? 0 : -errno;
}

int remus_guest_suspend_withdraw(struct xs_handle *xs, uint32_t domid)
{
    char path[PATH_BYTES], *text;
    unsigned int length;
    int tries;

    snprintf(path, sizeof(path), "/local/domain/%u/control/shutdown", domid);
    for (tries = 0; tries < 5; tries++) {
        xs_transaction_t t = xs_transaction_start(xs);
        bool pending;

        if (t == XBT_NULL)
            return -errno;
        text = xs_read(xs, t, path, &length);
        pending = text && !strcmp(text, "suspend");
        free(text);
        if (pending && !xs_write(xs, t, path, "", 0)) {
            int rc = -errno;

            xs_transaction_end(xs, t, true);
            return rc;
        }
        if (xs_transaction_end(xs, t, !pending))
            return pending ? 0 : -EALREADY;
        if (!pending)
            return -EALREADY;   /* an aborted transaction says EAGAIN or nothing */
        if (errno != EAGAIN)
            return -errno;
    }
    return -EAGAIN;
}

int remus_guest_resumed(struct xs_handle *xs, uint32_t domid)
{
    return xs_resume_domain(xs, domid) ? 0 : -errno;
}

enum remus_guest_run remus_guest_state(xc_interface *xch, uint32_t domid, uint32_t *reason)
{
    xc_dominfo_t info;

    *reason = ~0u;
    if (xc_domain_getinfo(xch, domid, 1, &info) != 1 || info.domid != domid || info.dying)
        return REMUS_GUEST_ENDED;
    if (!info.shutdown)
        return REMUS_GUEST_RUNS;
    *reason = info.shutdown_reason;
    return info.shutdown_reason == SHUTDOWN_suspend ? REMUS_GUEST_SUSPENDED : REMUS_GUEST_ENDED;
}

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* A guest that took a request nobody wants any more: it suspends once, and is resumed. */
static void resume_when_suspended(xc_interface *xch, struct xs_handle *xs, uint32_t domid)
{
    struct xc_sr_handles h = { .xch = xch, .domid = domid };
    uint64_t deadline = now_ms() + REMUS_LATE_SUSPEND_MS;
    uint32_t reason;

    while (now_ms() < deadline) {
        enum remus_guest_run run = remus_guest_state(xch, domid, &reason);

        if (run == REMUS_GUEST_ENDED)
            return;
        if (run == REMUS_GUEST_SUSPENDED && !xc_sr_resume(&h)) {
            remus_guest_resumed(xs, domid);
            return;
        }
        usleep(2000);
    }
}

int remus_guest_suspend_wait(xc_interface *xch, uint32_t domid, unsigned int timeout_ms,
                             const volatile int *cancelled)
{
    struct xs_handle *xs = xs_open(0);
    uint64_t deadline = now_ms() + timeout_ms;
    uint32_t reason;
    int rc;

    if (!xs)
        return -errno;
    rc = xs_watch(xs, "@releaseDomain", "suspend") ? remus_guest_suspend_ask(xs, domid) : -errno;
    while (!rc) {
        struct pollfd p = { .fd = xs_fileno(xs), .events = POLLIN };
        enum remus_guest_run run = remus_guest_state(xch, domid, &reason);

        if (run == REMUS_GUEST_SUSPENDED)
            break;
        if (run == REMUS_GUEST_ENDED)
            rc = -ESHUTDOWN;
        else if (cancelled && *cancelled)
            rc = -ECANCELED;
        else if (now_ms() >= deadline)
            rc = -ETIMEDOUT;
        else if (poll(&p, 1, 200) > 0)
            free(xs_check_watch(xs));
    }
    if ((rc == -ECANCELED || rc == -ETIMEDOUT) &&
        remus_guest_suspend_withdraw(xs, domid) == -EALREADY)
        resume_when_suspended(xch, xs, domid);
    xs_close(xs);
    return rc;
}

/* ---- Backends and processes ---- */

/* The beginning of /proc/PID/WHAT: bytes, of fewer than room; 0: nothing. */
static size_t read_proc(pid_t pid, const char *what, char *out, size_t room)
{
    char path[PATH_BYTES];
    ssize_t n;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, out, room - 1);
    if (fd >= 0)
        close(fd);
    out[n > 0 ? n : 0] = 0;
    return n > 0 ? (size_t)n : 0;
}

/* Whether the process is an `xl remus-receive`. */
static bool is_receiver(pid_t pid)
{
    char words[PATH_BYTES];
    size_t n = read_proc(pid, "cmdline", words, sizeof(words));

    return n && memmem(words, n, "\0remus-receive", sizeof("\0remus-receive"));
}

/* The guest in the name of a log, which may have been moved away since (.log.1). */
static bool guest_of_log(const char *path, const char *prefix, char name[PATH_BYTES])
{
    size_t length = strlen(prefix);
    const char *end = NULL, *at = path;

    if (strncmp(path, prefix, length))
        return false;
    while ((at = strstr(at, ".log")))
        end = at++;
    if (!end || end < path + length || end[4 + strspn(end + 4, ".0123456789")])
        return false;
    snprintf(name, PATH_BYTES, "%.*s", (int)(end - path - (ptrdiff_t)length), path + length);
    return true;
}

/* Whether the process is an xl that writes a guest's log, which only its minder does: the one of
 * `xl create`, or the receiver of an earlier session, whose log is the sessions'. */
static bool minds(pid_t pid, char name[PATH_BYTES])
{
    char path[PATH_BYTES], target[PATH_BYTES];
    unsigned int fd;
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    n = readlink(path, target, sizeof(target) - 1);
    if (n <= 0)
        return false;
    target[n] = 0;
    if (!strstr(target, "/xl"))
        return false;
    for (fd = 1; fd <= 2; fd++) {
        snprintf(path, sizeof(path), "/proc/%d/fd/%u", (int)pid, fd);
        n = readlink(path, target, sizeof(target) - 1);
        if (n <= 0)
            continue;
        target[n] = 0;
        if (guest_of_log(target, "/var/log/xen/xl-", name) ||
            (guest_of_log(target, "/var/log/xen/remus-", name) && is_receiver(pid)))
            return true;
    }
    return false;
}

static bool is_stopped(pid_t pid)
{
    char line[512], *end;

    (void)read_proc(pid, "stat", line, sizeof(line));
    end = strrchr(line, ')');
    return end && end[1] == ' ' && end[2] == 'T';
}

unsigned int remus_guest_xl_wake(bool (*wanted)(void *arg, const char *name), void *arg)
{
    struct dirent *entry;
    DIR *proc = opendir("/proc");
    unsigned int count = 0;

    while (proc && (entry = readdir(proc))) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        char name[PATH_BYTES];

        if (pid > 0 && is_stopped(pid) && minds(pid, name) && wanted(arg, name) &&
            !kill(pid, SIGCONT))
            count++;
    }
    if (proc)
        closedir(proc);
    return count;
}

void remus_guest_xl_stop(const char *name, pid_t but, pid_t *pids, unsigned int *count)
{
    struct dirent *entry;
    DIR *proc = opendir("/proc");
    const unsigned int had = *count;

    if (!proc)
        return;
    while ((entry = readdir(proc)) && *count < REMUS_XL_PIDS_MAX) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        char minded[PATH_BYTES];
        unsigned int i;

        for (i = 0; i < had && pids[i] != pid; i++)
            ;
        if (i == had && pid > 0 && pid != getpid() && pid != but && minds(pid, minded) &&
            !strcmp(minded, name) && !kill(pid, SIGSTOP))
            pids[(*count)++] = pid;
    }
    closedir(proc);
}

void remus_guest_xl_continue(const pid_t *pids, unsigned int count)
{
    while (count--)
        kill(pids[count], SIGCONT);
}

void remus_guest_publish_open(struct xs_handle *xs, uint32_t domid)
{
    struct xs_permissions none = { .id = 0, .perms = XS_PERM_NONE };
    char path[PATH_BYTES];

    snprintf(path, sizeof(path), "/local/domain/%u/" REMUS_XS_NODE, domid);
    if (xs_write(xs, XBT_NULL, path, "", 0))
        xs_set_permissions(xs, XBT_NULL, path, &none, 1);
}

void remus_guest_publish(struct xs_handle *xs, uint32_t domid, const char *node,
                         const char *value)
{
    char path[PATH_BYTES];

    snprintf(path, sizeof(path), "/local/domain/%u/" REMUS_XS_NODE "/%.64s", domid, node);
    xs_write(xs, XBT_NULL, path, value, (unsigned int)strlen(value));
}

bool remus_guest_is_there(struct xs_handle *xs, uint32_t domid)
{
    char path[PATH_BYTES], *text;

    snprintf(path, sizeof(path), "/local/domain/%u/domid", domid);
    text = read_node(xs, path);
    free(text);
    return text != NULL;
}

void remus_guest_unpublish(struct xs_handle *xs, uint32_t domid)
{
    char path[PATH_BYTES];

    snprintf(path, sizeof(path), "/local/domain/%u/" REMUS_XS_NODE, domid);
    xs_rm(xs, XBT_NULL, path);
}
