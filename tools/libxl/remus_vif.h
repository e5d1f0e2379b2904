/*
 * remus_vif.h: a guest's network interface between the kernel's backend (netback) and colo-shadowd.
 *
 * netback lets go of an interface, and takes it under the running guest, through its driver's
 * unbind and bind files (Linux 5.6 and later); the frontend's nodes, its rings and its port stay as
 * they are.
 */
#ifndef REMUS_VIF_H
#define REMUS_VIF_H

#include <stdbool.h>

#include <xenctrl.h>
#include <xenstore.h>

#include "tools/libxl/remus_guest.h"
#include "tools/libxl/remus_offsets.h"

/* From netback; fine if it was not bound.  Its device goes with it. */
int remus_vif_unbind(uint32_t domid, unsigned int vif);
/*
 * To netback, under the running guest, and its device onto .bridge: nobody is bound to the guest's
 * port any more, or will be.  offsets (NULL: none): attached before the first frame; where that
 * fails *unshifted is why, and the interface is netback's all the same.  With offsets the tap
 * stands for the device until remus_vif_carry(), or for some seconds more than timeout_ms, as a
 * bridge drops what a new port gets until it has heard that the port has a carrier.  -ETIMEDOUT:
 * not within timeout_ms; called again it goes on.
 */
int remus_vif_give(xc_interface *xch, struct xs_handle *xs, const struct remus_vif *vif,
                   const char *tap, struct remus_offsets *offsets, int *unshifted,
                   unsigned int timeout_ms);
/*
 * netback gives its device a carrier when its thread has found room on the guest's ring, which is
 * some time after remus_vif_give().  A guest that takes nothing has to do without: until
 * deadline_ms (remus_now_ms()), which interfaces given at one time may share.
 */
#define REMUS_VIF_CARRIER_MS 2000u
void remus_vif_await_carrier(const struct remus_vif *vif, uint64_t deadline_ms);
/* The device is up, and a port of the bridge ("": of none). */
int remus_vif_bridge(const char *device, const char *bridge);
/*
 * Takes a tap (fd; IFF_VNET_HDR, non-blocking, called name) off its bridge, and gives what waits in
 * it to the guest behind .netdev, which stands for itself from here on (offsets, or NULL).  Returns
 * how many frames those were.
 */
int remus_vif_carry(int fd, const char *name, const struct remus_vif *vif,
                    struct remus_offsets *offsets);

/*
 * netback's thread that puts frames on the guest's receive ring (xen-netback/rx.c): what was let
 * through waits in its queue until it has run.
 */
int remus_vif_rx_thread(const char *netdev);    /* descriptor for _asleep; -ENOENT: not found */
/* It sleeps: its queue is empty, or the guest has given no room for more. */
bool remus_vif_rx_asleep(int fd);

#endif /* REMUS_VIF_H */
