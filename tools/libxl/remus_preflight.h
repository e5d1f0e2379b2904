/*
 * remus_preflight.h: may this guest be protected, from here to there?
 *
 * Facts are collected first (remus_facts.c: libxenlight, xenstore, /proc, /sys; nothing is
 * changed), then judged by pure functions, one rule each, so that every refusal can be tested
 * without a Xen host.  A refusal is one sentence that says what is wrong and what to do.  All
 * rules are asked: the operator sees every reason at once, not one at a time.
 */
#ifndef REMUS_PREFLIGHT_H
#define REMUS_PREFLIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "tools/libxl/remus_disk.h"
#include "tools/remus/ctl.h"
#include "xen/include/public/remus.h"

#define REMUS_XEN_SERIES         "4.17"  /* what this version was built for and tested with */
#define REMUS_VCPUS_MAX          32u     /* vcpu_info places in the shared info page */
#define REMUS_MIRROR_SPARE_KB    (64u * 1024u) /* dom0 memory beside the mirror of the guest */
#define REMUS_INCOMING_SUFFIX    "--incoming"
/* Of the copy's host: for what is not on its disks yet. */
#define REMUS_STORE_DIR          "/var/lib/remus"
#define REMUS_RUN_DIR            "/run/xen/remus" /* DOMID.lock, DOMID.json */

/* ---- Facts ---- */

enum remus_guest_type { REMUS_GUEST_PVH, REMUS_GUEST_HVM, REMUS_GUEST_PV };

struct remus_vif_facts {
    unsigned int devid;
    char bridge[32];
    char mac[18];
    char ifname[16];             /* of the backend in dom0 */
    bool kernel_backend;         /* a vif of dom0's netback (not qemu's, not a driver domain's) */
    bool connected;
    unsigned int queues;
};

struct remus_guest_facts {
    uint32_t domid;
    char name[64];
    char uuid[37];
    bool exists;
    enum remus_guest_type type;
    bool device_model;           /* a qemu serves this guest */
    bool paused, shut_down, dying;
    bool suspend_feature;        /* false: control/feature-suspend says 0 */
    bool abi_known, fifo;        /* event channels; unknown when it could not be read */
    uint64_t memory_kb;          /* the guest's own, at most */
    uint64_t need_kb;            /* what Xen needs for a copy, overhead included */
    uint64_t pages;
    unsigned int vcpus;          /* at most */
    unsigned int disks, writable_disks, passthrough, other_devices;
    char other_device[24];       /* the first one's kind */
    unsigned int disk_count;     /* that are described; 0 where disk_error says why not */
    struct remus_disk_place disk[REMUS_DISKS_MAX];
    char disk_error[REMUS_DISK_ERROR_BYTES];
    unsigned int vifs;           /* of all; the first REMUS_VIFS_MAX are described */
    struct remus_vif_facts vif[REMUS_VIFS_MAX];
    bool locked;                 /* a session holds DOMID.lock */
    pid_t locked_pid;            /* 0: not known */
};

struct remus_host_facts {
    char name[64];               /* nodename */
    char boot_id[40];            /* of this boot of this machine: tells two hosts apart */
    char xen[48];                /* "4.17.5" */
    uint64_t xen_free_kb, dom0_free_kb;
    char libexec[256];
    char missing_program[64];    /* first one that libexec lacks; empty: none */
    char missing_device[64];     /* first device node that is missing; empty: none */
    char missing_module[64];     /* the module to load for it */
    /* nft's queue statement in the bridge family, and NFQUEUE itself */
    bool nft_queue;
    char nft_error[128];
    bool bridge_calls_ip;        /* br_netfilter */
    char tls_error[128];         /* why the kernel cannot encrypt a connection; empty: it can */
};

/* Secondary only: what the guest would meet there. */
struct remus_meets_facts {
    bool name_taken, incoming_taken;
    bool bridge_there[REMUS_VIFS_MAX];
    bool bridge_foreign[REMUS_VIFS_MAX]; /* there, but no Linux bridge (openvswitch) */
    int disk_rc[REMUS_DISKS_MAX]; /* -errno: it does not open */
    uint64_t disk_sectors[REMUS_DISKS_MAX];
    char disk_user[REMUS_DISKS_MAX][64]; /* what uses it here; "": nothing */
};

#define REMUS_CONFIG_FILE "/etc/xen/remus.conf" /* options of xl remus, one a line */

/* What the operator asked for. */
struct remus_wishes {
    bool no_net;                 /* -n */
    bool no_disk;                /* -d */
    bool unsafe;                 /* -F */
    bool plain;                  /* --plain */
    bool arbiter;                /* --arbiter, other than none */
};

/* ---- Judging ---- */

#define REMUS_REFUSALS_MAX   24u
#define REMUS_REFUSAL_BYTES  320u
struct remus_refusals {
    unsigned int count;
    char text[REMUS_REFUSALS_MAX][REMUS_REFUSAL_BYTES];
};

/* Before ssh is started: the guest and the primary's host. */
void remus_preflight_primary(struct remus_refusals *out, const struct remus_guest_facts *guest,
                             const struct remus_host_facts *host,
                             const struct remus_wishes *wishes);
/* Both hosts, once they know each other; judged by the primary with what the receiver said. */
void remus_preflight_pair(struct remus_refusals *out, const struct remus_host_facts *primary,
                          const struct remus_host_facts *secondary);
/* On the secondary: guest as the primary described it (of it: name, memory, vifs' bridges,
 * disks). */
void remus_preflight_secondary(struct remus_refusals *out, const struct remus_guest_facts *guest,
                               const struct remus_host_facts *host,
                               const struct remus_meets_facts *meets,
                               const struct remus_wishes *wishes);
void remus_refuse(struct remus_refusals *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- Collecting (remus_facts.c) ---- */

struct remus_facts_ctx;
/* libxenlight, libxenctrl and xenstore; messages of theirs go to standard error when verbose. */
int remus_facts_open(struct remus_facts_ctx **out, bool verbose, char *error);
void remus_facts_close(struct remus_facts_ctx *f);
/* "web1" or "7"; -ENOENT when there is none. */
int remus_facts_find(struct remus_facts_ctx *f, const char *domain, uint32_t *domid);
int remus_facts_guest(struct remus_facts_ctx *f, uint32_t domid, struct remus_guest_facts *out,
                      char *error);
int remus_facts_host(struct remus_facts_ctx *f, const char *libexec, bool secondary,
                     struct remus_host_facts *out, char *error);
/* Whether the data can be encrypted; loads modules, so not asked with --plain. */
void remus_facts_tls(struct remus_host_facts *out);
void remus_facts_meets(struct remus_facts_ctx *f, const struct remus_guest_facts *guest,
                       struct remus_meets_facts *out);

/*
 * The lock of a session on a guest.  Held by the processes that inherit the descriptor.  0: *fd is
 * it; -EBUSY: *holder is the session's process id if that is known, else 0.
 */
int remus_session_lock(uint32_t domid, int *fd, pid_t *holder);

#endif /* REMUS_PREFLIGHT_H */
