/*
 * remus_session.h: one protection session on one host: what tools/xl starts and watches.
 *
 * remus_primary_run and remus_secondary_run are the coordinators: they own the guest, the link, the
 * packet daemons and the decision core, and return when the session is over.  They are called in a
 * process of their own (they use libuv's loop and libxenlight's child handling).
 */
#ifndef REMUS_SESSION_H
#define REMUS_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/libxc/xc_sr.h"
#include "tools/libxl/remus_core.h"
#include "tools/libxl/remus_disk.h"
#include "tools/libxl/remus_transition.h"
#include "tools/remus/bypass.h"
#include "tools/remus/ctl.h"

/* Whether the other host is heard over the second network. */
enum remus_second_path {
    REMUS_SECOND_NONE,              /* there is none */
    REMUS_SECOND_HEARD,
    REMUS_SECOND_SILENT,            /* for as long as makes a link count as lost */
    REMUS_SECOND_LOST,
};

/* What an operator sees: filled at every change and at least once a second. */
/* A takeover's parts, in ms, one after the other. */
struct remus_failover {
    uint64_t silence_ms;            /* from the last sign of life until the primary is lost */
    uint64_t arbiter_ms;            /* until the right to go on is here (an epoch that was whole is
                                       applied meanwhile) */
    uint64_t guest_ms;              /* until the copy runs: 0 if it did */
    uint64_t disks_ms;              /* until it has its disks */
    uint64_t network_ms;            /* until its output is open */
};

struct remus_status {
    enum remus_role role;
    enum remus_state state;
    char domain[64], peer[256];
    char mode[16], running_mode[16]; /* as asked for; the epoch's (auto: its choice) */
    uint32_t domid;
    bool nowhere;                   /* checkpoints are acknowledged, and kept by nobody */
    bool fenced;                    /* primary: paused and cut off, and stays so */
    bool protected_now;             /* a copy could take over: an acknowledged epoch exists, and the
                                       peer does not count as lost */
    enum remus_health health;
    enum remus_second_path second_path;
    uint64_t lag_ms;                /* age of the newest acknowledged epoch's state; 0: none yet */
    uint64_t epoch, epoch_age_ms;
    uint64_t checkpoints, requested[CTL_WHY_COUNT]; /* those that comparison asked for, by reason */
    /* initial copy */
    struct xc_sr_progress copy;
    uint64_t copy_ms;               /* 0 until done */
    /* newest checkpoint, and over the session */
    uint64_t dirty_pages, epoch_bytes;
    uint64_t pause_us, pause_us_max, pause_us_median; /* guest stopped */
    uint64_t ack_us, apply_us, rolled_back;
    uint64_t verify_epochs, verify_bad;
    uint64_t held_packets, output_delay_us, output_delay_us_max;
    uint64_t failover_ms;           /* secondary: from last sign of life to open output */
    struct remus_failover failover;
    struct xc_sr_cache_stats cache;
    struct ctl_stats net;
    uint32_t vif_count, cause_count;
    struct ctl_vif_stats vifs[REMUS_VIFS_MAX];
    uint32_t disk_count;
    struct ctl_blk_stats disks[REMUS_DISKS_MAX];
    struct ctl_cause causes[CTL_CAUSES_MAX]; /* what asked for checkpoints, the most first */
    char last_divergence[200];
    char reason[200];               /* why the newest change of state */
};

struct remus_session_result {
    enum remus_end end;
    uint64_t detail;                /* SHUTDOWN_* for REMUS_END_GUEST */
    char reason[200];
    bool disks_kept;                /* by the coordinator, which has not returned */
    struct remus_status last;
};

struct remus_session_params {
    enum remus_role role;
    uint32_t domid;                 /* primary: the guest; secondary: 0 */
    const char *peer;               /* host name for messages */
    struct remus_core_params core;
    bool verify, net, disk;
    bool compress;               /* primary: what is sent on the link, with LZ4 */
    uint32_t vifs;                  /* interfaces to protect (from preflight) */
    int link_fd;                    /* connected, secret already proven; owned by the session */
    int packet_fd;                  /* -1 without net; owned by the session */
    int disk_fd;                    /* -1 without disks; owned by the session */
    int heartbeat_fd;               /* -1 without a second path; owned by the session */
    int guard_fd;                   /* primary: nftguard.h; the supervisor has it open, too */
    const struct remus_disk_place *disks; /* secondary: in the order of the guest's numbers */
    unsigned int disk_count;
    const char *store;              /* secondary: directory for what is not on the disks yet */
    uint32_t sync_kib;              /* primary: KiB a second of the first synchronisation; 0: any */
    bool shared_disks;              /* primary: both hosts reach the same disks */
    /* Primary: at the session's end colo-blkd serves the disks on, and notes what is written. */
    enum remus_keep_disks {
        REMUS_KEEP_NEVER,
        REMUS_KEEP_UNLESS_STOPPED,  /* not when an operator has ended it */
        REMUS_KEEP_ALWAYS,
    } keep_disks;
    const char *libexec;            /* directory of colo-proxyd, colo-shadowd, remus-save-helper */
    uint64_t cache_pages;           /* primary: budget of the page-mapping cache; 0: whole guest */
    uint32_t deadline_max_ms;       /* comparison; 0: default */
    const struct remus_bypass *bypass; /* primary: traffic that is not protected */
    unsigned int bypass_count;
    uint8_t session[16];            /* UUID */
    const char *arbiter;            /* remus_arbiter.h: NAME[:ARG] */
    const char *hooks;              /* remus_hook.h: directory of the gates */
    void *arg;
    void (*log)(void *arg, enum xc_sr_level level, const char *text);
    void (*status)(void *arg, const struct remus_status *status);
    /* A moment that hooks are told of; may be NULL. */
    void (*transition)(void *arg, enum remus_transition what, uint64_t epoch, const char *reason);
    /* Polled by the loop; set from a signal handler: 1 orderly stop; while minding: give the disks
     * back, 2: leave them to the next session. */
    volatile int *stop_request;
    /* Before the first step that cannot be taken back; may be NULL.  Primary: a byte of epoch 1 is
     * sent, so there may be a copy that can take over.  Secondary: output is opened. */
    void (*committed)(void *arg);
    /* Primary: the session is over, as result says; its coordinator goes on minding the guest's
     * disks. */
    void (*minding)(void *arg, const struct remus_session_result *result);
    /* Secondary: called when it took over and is about to serve the guest for good (detach from the
     * terminal and ssh); may be NULL. */
    void (*active)(void *arg, uint32_t domid);
    /* Secondary: the guest is one like any other now; what is left is to act at its end. May be
     * NULL. */
    void (*settled)(void *arg, uint32_t domid);
};

/* 0 when the session ran and ended as result says; negative errno when it could not begin. */
int remus_primary_run(const struct remus_session_params *p, struct remus_session_result *result);
int remus_secondary_run(const struct remus_session_params *p, struct remus_session_result *result);

#endif /* REMUS_SESSION_H */
