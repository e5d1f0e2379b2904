#include "tools/libxl/remus_vif.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>

#include "tools/libxl/remus_message.h"

#define DRIVER  "/sys/bus/xen-backend/drivers/vif/"
#define POLL_US 2000u
#define LEAVE_ROUNDS 5
#define LEAVE_US 10000u
#define CARRY_WAITS 500         /* in all */
#define CARRY_WAIT_US 1000u
#define CARRY_MAX 4096          /* frames; a tap of ours has 1000 at most */
#define FRAME_MAX (sizeof(struct virtio_net_hdr) + 65536u + 64u)

static int write_driver(uint32_t domid, unsigned int vif, const char *what)
{
    char path[64], name[32];
    int fd, rc = 0;

    snprintf(path, sizeof(path), DRIVER "%s", what);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    snprintf(name, sizeof(name), "vif-%u-%u", domid, vif);
    if (write(fd, name, strlen(name)) < 0)
        rc = -errno;
    close(fd);
    return rc;
}

static bool is_bound(uint32_t domid, unsigned int vif)
{
    char path[96];

    snprintf(path, sizeof(path), DRIVER "vif-%u-%u", domid, vif);
    return !access(path, F_OK);
}

int remus_vif_unbind(uint32_t domid, unsigned int vif)
{
    int rc = write_driver(domid, vif, "unbind");

    return rc == -ENOENT || rc == -ENODEV ? 0 : rc;
}

int remus_vif_bridge(const char *device, const char *bridge)
{
    struct ifreq request = {0};
    unsigned int index = if_nametoindex(device);
    int fd, rc = 0;

    if (!index)
        return -errno;
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (bridge[0]) {
        /* A port with less than the others would take theirs down, or lose their frames. */
        snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", bridge);
        if (!ioctl(fd, SIOCGIFMTU, &request)) {
            snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", device);
            (void)ioctl(fd, SIOCSIFMTU, &request);
        }
        snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", bridge);
        request.ifr_ifindex = (int)index;
        if (ioctl(fd, SIOCBRADDIF, &request) && errno != EBUSY)
            rc = -errno;
    }
    if (!rc) {
        memset(&request, 0, sizeof(request));
        snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", device);
        request.ifr_flags = IFF_UP | IFF_RUNNING;
        if (ioctl(fd, SIOCSIFFLAGS, &request))
            rc = -errno;
    }
    close(fd);
    return rc;
}

static void leave_bridge(const char *device, const char *bridge)
{
    struct ifreq request = {.ifr_ifindex = (int)if_nametoindex(device)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", bridge);
    (void)ioctl(fd, SIOCBRDELIF, &request);
    close(fd);
}

/* A bridge's port gets only what it is the way for. */
static void stop_flooding(const char *port)
{
    static const char *const kinds[] = {"broadcast", "multicast", "unicast"};
    char path[80];
    unsigned int i;
    int fd;

    for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        snprintf(path, sizeof(path), "/sys/class/net/%.15s/brport/%s_flood", port, kinds[i]);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0)
            return;             /* no port */
        (void)!write(fd, "0", 1);
        close(fd);
    }
}

/*
 * What is in the tap now.  A device whose queue is full is waited for, but not by the one whose
 * guest takes nothing: *patience is how often.
 */
static int carry(int fd, int out, const struct sockaddr_ll *to, uint8_t *frame, int *patience)
{
    int tries, count = 0;
    ssize_t bytes, sent;

    for (tries = 0; tries < CARRY_MAX && (bytes = read(fd, frame, FRAME_MAX)) > 0; tries++) {
        while ((sent = sendto(out, frame, (size_t)bytes, MSG_DONTWAIT,
                              (const struct sockaddr *)to, sizeof(*to))) < 0 &&
               (errno == ENOBUFS || errno == EAGAIN) && (*patience)-- > 0)
            usleep(CARRY_WAIT_US);
        count += sent == bytes;
    }
    return count;
}

int remus_vif_carry(int fd, const char *name, const struct remus_vif *vif,
                    struct remus_offsets *offsets)
{
    const struct sockaddr_ll to = {
        .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(vif->netdev),
    };
    uint8_t *frame = malloc(FRAME_MAX);
    const int on = 1;
    int out, i, count = 0, patience = CARRY_WAITS;
    bool usable;

    out = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    usable = frame && out >= 0 && !setsockopt(out, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on));
    if (offsets)
        (void)remus_offsets_redirect(offsets, NULL, 0);
    stop_flooding(name);        /* the vif has that from here on */
    /* What the guest sent by the tap until now waits for a processor: the port stays so long. */
    for (i = 0; offsets && i < LEAVE_ROUNDS; i++) {
        count += usable ? carry(fd, out, &to, frame, &patience) : 0;
        usleep(LEAVE_US);
    }
    /* With its port the bridge forgets that the guest is behind it. */
    if (vif->bridge[0])
        leave_bridge(name, vif->bridge);
    count += usable ? carry(fd, out, &to, frame, &patience) : 0;
    if (out >= 0)
        close(out);
    free(frame);
    return count;
}

static int wait_port(xc_interface *xch, const struct ctl_attach *at, uint32_t port, int wanted,
                     uint64_t deadline)
{
    for (;;) {
        xc_evtchn_status_t status = {.dom = (domid_t)at->domid, .port = port};

        if (xc_evtchn_status(xch, &status))
            return -errno;
        if ((int)status.status == wanted)
            return 0;
        if (remus_now_ms() >= deadline)
            return -ETIMEDOUT;
        usleep(POLL_US);
    }
}

static int wait_ports(xc_interface *xch, const struct ctl_attach *at, int wanted,
                      uint64_t deadline)
{
    int rc = wait_port(xch, at, at->tx_port, wanted, deadline);

    return rc || at->rx_port == at->tx_port ? rc
           : wait_port(xch, at, at->rx_port, wanted, deadline);
}

void remus_vif_await_carrier(const struct remus_vif *vif, uint64_t deadline_ms)
{
    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", vif->netdev);
    while (!ioctl(fd, SIOCGIFFLAGS, &request) && !(request.ifr_flags & IFF_RUNNING) &&
           remus_now_ms() < deadline_ms)
        usleep(POLL_US);
    close(fd);
    /* The flag comes first; the queue and the bridge follow under the lock that this takes. */
    (void)remus_vif_bridge(vif->netdev, vif->bridge);
}

int remus_vif_give(xc_interface *xch, struct xs_handle *xs, const struct remus_vif *vif,
                   const char *tap, struct remus_offsets *offsets, int *unshifted,
                   unsigned int timeout_ms)
{
    uint64_t deadline = remus_now_ms() + timeout_ms;
    const struct ctl_attach *at = &vif->attach;
    bool again = is_bound(at->domid, at->vif);
    char path[96];
    int rc = 0;

    *unshifted = 0;
    if (!again)
        rc = wait_ports(xch, at, EVTCHNSTAT_unbound, deadline);
    if (!rc && !again)
        rc = write_driver(at->domid, at->vif, "bind");
    if (rc)
        return rc;
    while (!if_nametoindex(vif->netdev)) {
        if (remus_now_ms() >= deadline)
            return -ETIMEDOUT;
        usleep(POLL_US);
    }
    if (offsets && vif->bridge[0])
        (void)remus_offsets_redirect(offsets, tap, timeout_ms + REMUS_VIF_CARRIER_MS + 1000);
    if (offsets)
        *unshifted = remus_offsets_attach(offsets, vif->netdev);
    if (again && *unshifted == -EEXIST)
        *unshifted = 0;
    rc = remus_vif_bridge(vif->netdev, vif->bridge);
    if (rc)
        return rc;
    /* What a hotplug script would say; netback connects then. */
    snprintf(path, sizeof(path), "/local/domain/0/backend/vif/%u/%u/hotplug-status", at->domid,
             at->vif);
    if (!xs_write(xs, XBT_NULL, path, "connected", 9))
        return -errno;
    return wait_ports(xch, at, EVTCHNSTAT_interdomain, deadline);
}

int remus_vif_rx_thread(const char *netdev)
{
    char path[64], wanted[32], name[64];
    struct dirent *entry;
    ssize_t length;
    int fd, rc = -ENOENT;
    DIR *dir;

    snprintf(wanted, sizeof(wanted), "%.15s-q0-guest-rx\n", netdev);
    dir = opendir("/proc");
    if (!dir)
        return -errno;
    while (rc == -ENOENT && (entry = readdir(dir))) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        snprintf(path, sizeof(path), "/proc/%.16s/comm", entry->d_name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        length = read(fd, name, sizeof(name) - 1);
        close(fd);
        name[length > 0 ? length : 0] = 0;
        if (strcmp(name, wanted))
            continue;
        snprintf(path, sizeof(path), "/proc/%.16s/stat", entry->d_name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        rc = fd < 0 ? -errno : fd;
    }
    closedir(dir);
    return rc;
}

bool remus_vif_rx_asleep(int fd)
{
    char text[128];
    const char *end;
    ssize_t length = pread(fd, text, sizeof(text) - 1, 0);

    /* "PID (NAME) S ..." */
    text[length > 0 ? length : 0] = 0;
    end = strrchr(text, ')');
    return end && !strncmp(end, ") S ", 4);
}
