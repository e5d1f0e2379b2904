/*
 * Mends what the lab's machine breaks: a vCPU that sleeps although it was woken.
 *
 * QEMU 7.2 emulates SVM without restoring the interrupt shadow at VMRUN (its svm_helper.c reads
 * int_ctl and event_inj of the VMCB, not int_state). So an event may be delivered to a nested guest
 * between STI and HLT: its handler asks for the idle loop to be left, and the HLT behind it sleeps
 * all the same. A timer tick ends that, usually. But Linux has no ticks while it suspends itself,
 * so a guest with several vCPUs hangs in one of some hundred suspends (seen in a core: vCPU 0 in
 * multi_cpu_stop, vCPU 1 halted with TIF_NEED_RESCHED set, nothing pending).
 *
 * This program runs in each dom0. A guest with several vCPUs that was asked to suspend and did not
 * within 2 s gets an NMI on each; Linux says that it is dazed, and goes on.
 */
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenstore.h>

#define GUESTS 16
#define PATIENCE_MS 2000
#define AGAIN_MS 1000
#define ROUNDS 10

/* Guests with several vCPUs; the others cost nothing. */
static struct guest {
    uint32_t domid; /* 0: free */
    unsigned int vcpus;
    bool seen, asked;
    int64_t next_ms;
    int rounds;
} guests[GUESTS];

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void path_of(char *path, size_t size, uint32_t domid)
{
    snprintf(path, size, "/local/domain/%u/control/shutdown", domid);
}

static struct guest *find(uint32_t domid)
{
    for (int i = 0; i < GUESTS; i++)
        if (guests[i].domid == domid)
            return &guests[i];
    return NULL;
}

/* Domains come and go. */
static void list_guests(xc_interface *xch, struct xs_handle *xs)
{
    xc_dominfo_t info[GUESTS];
    int count = xc_domain_getinfo(xch, 1, GUESTS, info);
    char path[64];

    for (int i = 0; i < GUESTS; i++)
        guests[i].seen = false;
    for (int i = 0; i < count; i++) {
        struct guest *g = find(info[i].domid);

        if (!g && info[i].max_vcpu_id > 0 && (g = find(0))) {
            *g = (struct guest){ .domid = info[i].domid, .vcpus = info[i].max_vcpu_id + 1 };
            path_of(path, sizeof(path), g->domid);
            xs_watch(xs, path, "asked");
        }
        if (g)
            g->seen = true;
    }
    for (int i = 0; i < GUESTS; i++) {
        if (guests[i].domid && !guests[i].seen) {
            path_of(path, sizeof(path), guests[i].domid);
            xs_unwatch(xs, path, "asked");
            guests[i].domid = 0;
        }
    }
}

static void note(struct xs_handle *xs, const char *path)
{
    struct guest *g;
    unsigned int domid;
    char *value;

    if (sscanf(path, "/local/domain/%u/control", &domid) != 1 || !domid || !(g = find(domid)))
        return;
    value = xs_read(xs, XBT_NULL, path, NULL);
    if (value && !strcmp(value, "suspend") && !g->asked) {
        g->asked = true;
        g->rounds = 0;
        g->next_ms = now_ms() + PATIENCE_MS;
    }
    free(value);
}

static void look(xc_interface *xch)
{
    for (int i = 0; i < GUESTS; i++) {
        struct guest *g = &guests[i];
        xc_dominfo_t info;

        if (!g->domid || !g->asked)
            continue;
        if (xc_domain_getinfo(xch, g->domid, 1, &info) != 1 || info.domid != g->domid ||
            info.shutdown || info.dying || g->rounds == ROUNDS) {
            g->asked = false;
            continue;
        }
        if (now_ms() < g->next_ms)
            continue;
        printf("domain %u did not suspend: NMI to its %u vCPUs\n", g->domid, g->vcpus);
        for (unsigned int v = 0; v < g->vcpus; v++)
            xc_domain_send_trigger(xch, g->domid, XEN_DOMCTL_SENDTRIGGER_NMI, v);
        g->rounds++;
        g->next_ms = now_ms() + AGAIN_MS;
    }
}

static bool waiting(void)
{
    for (int i = 0; i < GUESTS; i++)
        if (guests[i].domid && guests[i].asked)
            return true;
    return false;
}

int main(void)
{
    xc_interface *xch = xc_interface_open(NULL, NULL, 0);
    struct xs_handle *xs = xs_open(0);
    struct pollfd p;

    if (!xch || !xs || !xs_watch(xs, "@introduceDomain", "list") ||
        !xs_watch(xs, "@releaseDomain", "list")) {
        perror("waker");
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    p = (struct pollfd){ .fd = xs_fileno(xs), .events = POLLIN };
    for (;;) {
        char **event;

        poll(&p, 1, waiting() ? 250 : -1);
        while ((event = xs_check_watch(xs))) {
            /* A suspend ends in @releaseDomain: look while it lasts. */
            look(xch);
            if (!strcmp(event[XS_WATCH_TOKEN], "list"))
                list_guests(xch, xs);
            else
                note(xs, event[XS_WATCH_PATH]);
            free(event);
        }
        look(xch);
    }
}
