/*
 * vlanport DEVICE VID TAP: a port of a VLAN, for a build machine whose kernel has no 802.1Q.
 *
 * Frames with the tag that reach DEVICE come out of TAP without it, offloads included; what is
 * sent into TAP leaves DEVICE with the tag. TAP gets DEVICE's Ethernet address, so that a bridge
 * hands the frames up. Says "ready" and runs until it is killed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define FRAME_MAX (65536 + 64)
#define TAG_BYTES 4
#define ADDRESSES 12 /* bytes of a frame before its type */

static struct virtio_net_hdr head;
static uint8_t frame[FRAME_MAX];

static void fatal(const char *what)
{
    fprintf(stderr, "vlanport: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_tap(const char *name, const struct ifreq *address)
{
    struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
    int size = sizeof(head), fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

    if (fd < 0)
        fatal("/dev/net/tun");
    snprintf(ifr.ifr_name, IFNAMSIZ, "%s", name);
    if (ioctl(fd, TUNSETIFF, &ifr) < 0 || ioctl(fd, TUNSETVNETHDRSZ, &size) < 0)
        fatal("tap");
    memcpy(&ifr.ifr_hwaddr, &address->ifr_hwaddr, sizeof(ifr.ifr_hwaddr));
    if (ioctl(fd, SIOCSIFHWADDR, &ifr) < 0)
        fatal("address of the tap");
    return fd;
}

static int open_device(const char *name, struct ifreq *address)
{
    struct sockaddr_ll where = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
    int one = 1, fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fatal("packet socket");
    snprintf(address->ifr_name, IFNAMSIZ, "%s", name);
    if (ioctl(fd, SIOCGIFHWADDR, address) < 0)
        fatal(name);
    where.sll_ifindex = (int)if_nametoindex(name);
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) < 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &one, sizeof(one)) < 0 ||
        bind(fd, (struct sockaddr *)&where, sizeof(where)) < 0)
        fatal("packet socket");
    return fd;
}

/* The tag travels beside the frame. */
static void to_tap(int device, int tap, unsigned vid)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(struct tpacket_auxdata))];
    } control;
    struct iovec iov[2] = { { &head, sizeof(head) }, { frame, sizeof(frame) } };
    struct sockaddr_ll from;
    struct msghdr mh = {
        .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = iov, .msg_iovlen = 2,
        .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
    };
    ssize_t n = recvmsg(device, &mh, 0);
    struct cmsghdr *c;

    if (n < (ssize_t)sizeof(head) || from.sll_pkttype == PACKET_OUTGOING)
        return;
    for (c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c)) {
        struct tpacket_auxdata aux;

        memcpy(&aux, CMSG_DATA(c), sizeof(aux));
        if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA ||
            !(aux.tp_status & TP_STATUS_VLAN_VALID) || (aux.tp_vlan_tci & 0xfff) != vid)
            continue;
        iov[1].iov_len = (size_t)n - sizeof(head);
        if (writev(tap, iov, 2) < 0)
            return; /* as a network may lose it */
    }
}

static void to_device(int tap, int device, unsigned vid)
{
    const uint16_t tag[2] = { htons(ETH_P_8021Q), htons((uint16_t)vid) };
    struct iovec in[2] = { { &head, sizeof(head) }, { frame, sizeof(frame) } };
    struct iovec out[4] = { { &head, sizeof(head) }, { frame, ADDRESSES },
                            { (void *)tag, TAG_BYTES }, { frame + ADDRESSES, 0 } };
    ssize_t n = readv(tap, in, 2);

    if (n < (ssize_t)(sizeof(head) + ADDRESSES + 2))
        return;
    head.hdr_len = (uint16_t)(head.hdr_len ? head.hdr_len + TAG_BYTES : 0);
    head.csum_start = (uint16_t)(head.csum_start ? head.csum_start + TAG_BYTES : 0);
    out[3].iov_len = (size_t)n - sizeof(head) - ADDRESSES;
    if (writev(device, out, 4) < 0)
        return;
}

int main(int argc, char **argv)
{
    struct ifreq address = { .ifr_flags = 0 };
    int device, tap, vid;

    if (argc != 4 || (vid = atoi(argv[2])) < 1 || vid > 4094) {
        fprintf(stderr, "usage: vlanport DEVICE VID TAP\n");
        return 2;
    }
    device = open_device(argv[1], &address);
    tap = open_tap(argv[3], &address);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd p[2] = { { device, POLLIN, 0 }, { tap, POLLIN, 0 } };

        if (poll(p, 2, -1) < 0 && errno != EINTR)
            fatal("poll");
        if (p[0].revents)
            to_tap(device, tap, (unsigned)vid);
        if (p[1].revents)
            to_device(tap, device, (unsigned)vid);
    }
}
