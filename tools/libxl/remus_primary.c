/*
 * remus_primary.c: the coordinator on the host where the guest runs.
 *
 * Carries out what the core decides.  What must hold whatever fails: the guest runs when this
 * returns (unless arbitration denied it), no rule, mapping, log-dirty mode or held packet is left
 * behind, and its minder (the process of `xl create`) goes on.
 *
 * The initial copy runs in a thread with handles of its own, because it is one long blocking
 * walk over guest memory; its bytes come to the loop through a pipe, which is also the
 * back-pressure.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>

#include "tools/libxl/remus_disks.h"
#include "tools/libxl/remus_offsets.h"
#include "tools/libxl/remus_vif.h"
#include "tools/remus/blkring.h"
#include "tools/remus/nftguard.h"
#include "tools/remus/nftlease.h"
#include "tools/remus/nftrules.h"
#include "tools/remus/nftwatch.h"

#define COPY_SUSPEND_MS     30000u
#define COPY_PASSES         5u
#define COPY_IDLE_MS        5000u
#define COPY_STOP_PAGES     256u
#define COPY_PIPE_BYTES     (1 << 20)
#define COPY_CHUNK          (256u << 10)
#define DRAIN_SPINS         40u
#define DRAIN_SPIN_US       50u
#define QUIET_SPINS         3u      /* looks in a row that find nothing new on the rings */
#define EPOCH_AHEAD         (1u << 20)  /* what a heartbeat may have to wait behind */
#define CONTROL_MS          5000
#define SETTLE_US           10000000u
#define SETTLE_TAKEN_US     60000000u  /* Linux gives up freezing its processes after 20 s */
/* a copy that lags less than this costs latency, not checkpoints */
#define DEADLINE_MAX_MS     1000u
#define LEASE_MARGIN        16u     /* this part of the timeout is the lease shorter */
#define LEASE_LAST_MS       60000u  /* ended by the removal of the rules */
#define TAKES_OVER_MS       3000u   /* a copy that was told to: guest, disks and name */
#define LATE_INPUT_MS       4000u   /* it takes what is passed on for 2 s to 3 s then */
#define LEASE_STEP_US       100000u /* renewed when it gains as much */

struct primary {
    struct remus_run run;
    struct xc_sr_cache *cache;
    struct xc_sr_primary *sr;
    struct xc_sr_epoch epoch;
    struct remus_vif vifs[REMUS_VIFS_MAX];
    unsigned int vif_count;
    char *frontends;
    uint32_t frontends_bytes;
    struct remus_offsets *offsets[REMUS_VIFS_MAX]; /* of an earlier takeover; NULL: none */
    struct remus_offset *offset_list;
    pid_t minders[REMUS_XL_PIDS_MAX];
    unsigned int minder_count;
    uint16_t queues;                /* the first netfilter queue's number */
    bool rules_in;
    bool fenced;                    /* paused and cut off, and to stay so */
    bool rules_suspect;             /* some may have been removed */
    int watch_fd;                   /* tells when rules are removed; -1: nobody listens */
    uv_poll_t watch_poll;
    struct remus_lease *lease;      /* NULL: output needs none yet */
    uint64_t lease_us;              /* when it ends */
    int own_fd[REMUS_VIFS_MAX];     /* see own_frames */

    /* initial copy */
    pthread_t thread;
    bool thread_running;
    volatile int copy_cancelled;
    int copy_pipe[2];
    uv_pipe_t copy_out;
    bool copy_open, copy_paused;
    uint8_t *copy_buffer;
    struct xc_sr_progress copy_progress;    /* written by the thread, read for display only */
    struct xc_sr_save_result copy_result;
    int copy_rc;
    uint64_t copy_began_us, copy_bytes;

    /* checkpoint */
    bool cut;                               /* staged, and about to be resumed from that */
    bool suspend_asked, suspend_taken, suspended;  /* taken: the guest has read a request */
    uint64_t suspended_us, sent_us, acked_us;
    uint32_t received[REMUS_VIFS_MAX];      /* responses on the receive rings, at the last look */
    int rx_thread_fd[REMUS_VIFS_MAX];       /* netback's; -1: not known */
    unsigned int quiet_spins, undrained_vif, undrained;
    uint64_t staged;                        /* the epoch that is staged, or was last */
    uint16_t staged_mode;                   /* of the one that follows */
    int stage_rc;
    struct remus_epoch_encoder encoder;
    struct remus_packer *packer;            /* NULL: nothing is compressed */
    bool sending;
    uint64_t frontends_read_us;
    uv_timer_t drain_timer, send_timer;
};

static struct primary *self(struct remus_run *r)
{
    return r->side;
}

/* ---- Initial copy ------------------------------------------------------------------------- */

static int copy_write(void *arg, const void *data, size_t length)
{
    struct primary *p = arg;

    while (length) {
        ssize_t n;

        if (p->copy_cancelled)
            return -ECANCELED;
        n = write(p->copy_pipe[1], data, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data = (const uint8_t *)data + n;
        length -= (size_t)n;
    }
    return 0;
}

struct copy_handles {
    struct primary *p;
    xengnttab_handle *xgt;
    struct xc_sr_handles h;
};

static int copy_write_op(void *arg, const void *data, size_t length)
{
    return copy_write(((struct copy_handles *)arg)->p, data, length);
}

static int copy_suspend(void *arg)
{
    struct copy_handles *c = arg;
    const struct remus_disks *disks = &c->p->run.disks;
    int rc = remus_guest_suspend_wait(c->h.xch, c->h.domid, COPY_SUSPEND_MS,
                                      &c->p->copy_cancelled);
    unsigned int i;

    /* Otherwise the copy would make these requests again when it connects its disks. */
    for (i = 0; !rc && disks->taken && i < disks->count; i++)
        rc = remus_disk_wait_idle(c->xgt, &disks->disk[i], COPY_IDLE_MS);
    return rc;
}

static int copy_resume(void *arg)
{
    struct copy_handles *c = arg;

    int rc = xc_sr_resume(&c->h);
    struct xs_handle *xs = xs_open(0);  /* libxenstore's handles belong to one thread */

    if (xs) {
        remus_guest_resumed(xs, c->h.domid);
        xs_close(xs);
    }
    return rc;
}

static void copy_progress(void *arg, const struct xc_sr_progress *progress)
{
    ((struct copy_handles *)arg)->p->copy_progress = *progress;
}

static void *copy_thread(void *arg)
{
    struct primary *p = arg;
    struct copy_handles c = { .p = p };
    static const struct xc_sr_save_ops ops = {
        .write = copy_write_op, .suspend = copy_suspend, .resume = copy_resume,
        .progress = copy_progress,
    };
    struct xc_sr_save_params params = {
        .max_passes = COPY_PASSES, .stop_pages = COPY_STOP_PAGES, .keep_log_dirty = true,
    };
    struct xc_sr_cache *cache = NULL;
    int rc = -ENOMEM;

    c.h = p->run.h;
    c.h.xch = xc_interface_open(NULL, NULL, 0);
    c.h.fmem = xenforeignmemory_open(NULL, 0);
    c.xgt = xengnttab_open(NULL, 0);
    if (c.h.xch && c.h.fmem && c.xgt)
        rc = xc_sr_cache_new(&cache, &c.h, p->run.p->cache_pages ? p->run.p->cache_pages
                             : UINT64_MAX);
    params.cache = cache;
    if (!rc)
        rc = xc_sr_save(&c.h, &params, &ops, &c, &p->copy_result);
    xc_sr_cache_free(cache);
    if (c.xgt)
        xengnttab_close(c.xgt);
    if (c.h.fmem)
        xenforeignmemory_close(c.h.fmem);
    if (c.h.xch)
        xc_interface_close(c.h.xch);
    p->copy_rc = rc;
    close(p->copy_pipe[1]);
    p->copy_pipe[1] = -1;
    return NULL;
}

static void copy_close(struct primary *p)
{
    p->copy_cancelled = 1;
    if (p->copy_open) {
        uv_read_stop((uv_stream_t *)&p->copy_out);
        uv_close((uv_handle_t *)&p->copy_out, NULL);    /* a writer gets EPIPE */
        p->copy_open = false;
    }
    if (p->thread_running) {
        pthread_join(p->thread, NULL);
        p->thread_running = false;
    }
}

static void on_copy_room(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct primary *p = handle->data;

    (void)suggested;
    *buf = uv_buf_init((char *)p->copy_buffer, COPY_CHUNK);
}

static int open_checkpoints(struct primary *p);

static void on_copy_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct primary *p = stream->data;
    struct remus_run *r = &p->run;
    uint64_t total;
    int rc;

    if (n == 0)
        return;
    if (n > 0) {
        p->copy_bytes += (uint64_t)n;
        remus_run_send_packed(r, p->packer, REMUS_FRAME_STREAM, 0, buf->base, (uint32_t)n);
        if (remus_run_link_full(r)) {
            p->copy_paused = true;
            uv_read_stop(stream);
        }
        return;
    }
    copy_close(p);
    if (p->copy_rc) {
        remus_run_post(r, p->copy_rc == -ESHUTDOWN ? RE_GUEST_ENDED : RE_FAILED, 0,
                       p->copy_rc == -ESHUTDOWN ? ~0u : (uint64_t)(int64_t)p->copy_rc,
                       "the initial copy failed: %s", strerror(-p->copy_rc));
        return;
    }
    rc = open_checkpoints(p);
    if (rc) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc,
                       "cannot prepare checkpoints: %s", strerror(-rc));
        return;
    }
    total = p->copy_bytes;
    remus_run_send(r, REMUS_FRAME_STREAM_END, 0, &total, sizeof(total));
    r->status.copy_ms = (remus_run_now_us() - p->copy_began_us) / 1000;
    remus_run_log(r, XC_SR_INFO, "initial copy: %lu pages in %lu passes, %lu ms, guest stopped "
                  "for %lu us", (unsigned long)p->copy_result.pages_sent,
                  (unsigned long)p->copy_result.passes, (unsigned long)r->status.copy_ms,
                  (unsigned long)p->copy_result.suspended_us);
    remus_run_post(r, RE_COPY_DONE, 0, 0, NULL);
}

static int send_config(struct primary *p)
{
    struct remus_run *r = &p->run;
    char domid[16], *args[] = { "remus-guest", "config", domid, NULL };
    char *text = malloc(REMUS_FRAME_MAX);
    int rc, head;

    if (!text)
        return -ENOMEM;
    snprintf(domid, sizeof(domid), "%u", r->h.domid);
    head = snprintf(text, REMUS_FRAME_MAX, "%s %s\n", domid, r->name);
    rc = remus_run_command(r, args, NULL, 0, text + head, REMUS_FRAME_MAX - (size_t)head);
    if (rc == 0)
        remus_run_send(r, REMUS_FRAME_CONFIG, 0, text, (uint32_t)strlen(text));
    else
        rc = -EIO;
    free(text);
    return rc;
}

static void start_copy(struct primary *p)
{
    struct remus_run *r = &p->run;
    int rc = send_config(p);

    p->copy_began_us = remus_run_now_us();
    if (!rc && pipe2(p->copy_pipe, O_CLOEXEC))
        rc = -errno;
    if (!rc) {
        fcntl(p->copy_pipe[0], F_SETPIPE_SZ, COPY_PIPE_BYTES);
        uv_pipe_init(&r->loop, &p->copy_out, 0);
        p->copy_out.data = p;
        rc = uv_pipe_open(&p->copy_out, p->copy_pipe[0]);
        p->copy_open = true;
    }
    if (!rc)
        rc = -pthread_create(&p->thread, NULL, copy_thread, p);
    if (rc) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc,
                       "cannot begin the initial copy: %s", strerror(-rc));
        return;
    }
    p->thread_running = true;
    uv_read_start((uv_stream_t *)&p->copy_out, on_copy_room, on_copy_read);
}

/* The disks first: what the guest writes while its memory is copied is sent at once. */
static void begin(struct primary *p)
{
    struct remus_run *r = &p->run;
    int rc = r->p->disk ? remus_disks_protect(r) : 0;

    /* Who had the disks has let go of them; after a takeover it minds the guest's end, too. */
    remus_guest_xl_stop(r->name, 0, p->minders, &p->minder_count);
    if (rc)
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "the guest's disks cannot be taken "
                       "over: %s", strerror(-rc));
    else if (r->disks.synced || !r->p->disk)
        start_copy(p);
}

/* ---- Checkpoints --------------------------------------------------------------------------- */

static int read_frontends(struct primary *p)
{
    char *text;
    uint32_t bytes;
    int rc = remus_guest_frontends_read(p->run.xs, p->run.h.domid, p->run.p->net,
                                        p->run.p->disk, &text, &bytes);

    if (rc)
        return rc;
    free(p->frontends);
    p->frontends = text;
    p->frontends_bytes = bytes;
    p->frontends_read_us = remus_run_now_us();
    return 0;
}

/* Connections of the guest that the kernel changes: the copy is told of them. */
static int find_offsets(struct primary *p)
{
    unsigned int i;
    int rc;

    for (i = 0; i < p->vif_count; i++) {
        rc = remus_offsets_find(&p->offsets[i], p->vifs[i].netdev);
        if (rc && rc != -ENOENT) {
            remus_run_log(&p->run, XC_SR_ERROR, "cannot read which connections' numbers are "
                          "changed at %s: %s", p->vifs[i].netdev, strerror(-rc));
            return rc;
        }
        if (!rc && !p->offset_list) {
            p->offset_list = calloc(p->vif_count * REMUS_OFFSETS_MAX, sizeof(*p->offset_list));
            if (!p->offset_list)
                return -ENOMEM;
        }
    }
    return 0;
}

static int stage_offsets(struct primary *p)
{
    unsigned int i, count = 0, more;
    uint8_t *body;
    int rc = 0;

    if (!p->offset_list)
        return 0;
    for (i = 0; !rc && i < p->vif_count; i++) {
        if (!p->offsets[i])
            continue;
        rc = remus_offsets_read(p->offsets[i], i, p->offset_list + count, &more);
        count += more;
    }
    if (rc || !count)
        return rc;
    rc = xc_sr_epoch_add_record(&p->epoch, REMUS_RECORD_OFFSETS,
                                count * (uint32_t)sizeof(*p->offset_list), &body);
    if (!rc)
        memcpy(body, p->offset_list, count * sizeof(*p->offset_list));
    return rc;
}

static int open_checkpoints(struct primary *p)
{
    struct remus_run *r = &p->run;
    struct xc_sr_primary_params params = { .verify = r->p->verify };
    uint32_t refs[2 * REMUS_VIFS_MAX + REMUS_RINGS_MAX * BLKRING_PAGES_MAX];
    unsigned int i, count = 2 * p->vif_count;
    int rc;

    rc = xc_sr_cache_new(&p->cache, &r->h, r->p->cache_pages ? r->p->cache_pages : UINT64_MAX);
    if (rc)
        return rc;
    params.cache = p->cache;
    rc = xc_sr_primary_open(&p->sr, &r->h, &params);
    if (rc)
        return rc;
    for (i = 0; i < p->vif_count; i++) {
        p->rx_thread_fd[i] = remus_vif_rx_thread(p->vifs[i].netdev);
        if (p->rx_thread_fd[i] < 0)
            remus_run_log(r, XC_SR_WARN, "netback's thread of %s is not found: %s; input that "
                          "comes at a checkpoint may cost another one", p->vifs[i].netdev,
                          strerror(-p->rx_thread_fd[i]));
        refs[2 * i] = p->vifs[i].attach.tx_ref;
        refs[2 * i + 1] = p->vifs[i].attach.rx_ref;
    }
    count += remus_disks_refs(r, refs + count, sizeof(refs) / sizeof(refs[0]) - count);
    rc = xc_sr_primary_rings(p->sr, refs, count);
    if (!rc)
        rc = find_offsets(p);
    return rc ? rc : read_frontends(p);
}

/* Looks at the guest after every shutdown event of any domain. */
static void look_at_guest(struct primary *p)
{
    struct remus_run *r = &p->run;
    uint32_t reason;

    if (p->thread_running)
        return;                 /* the copy thread waits for its own suspend */
    switch (remus_guest_state(r->h.xch, r->h.domid, &reason)) {
    case REMUS_GUEST_RUNS:
        break;
    case REMUS_GUEST_SUSPENDED:
        if (!p->suspended) {
            p->suspended = true;
            p->suspended_us = remus_run_now_us();
            remus_run_post(r, RE_SUSPENDED, 0, 0, NULL);
        }
        break;
    case REMUS_GUEST_ENDED:
        remus_run_post(r, RE_GUEST_ENDED, 0, reason == ~0u ? UINT64_MAX : reason,
                       "the guest ended by itself");
        break;
    }
}

/* The first queue of the guest's output on interface i; its input has the next after those. */
static uint16_t output_queue(const struct primary *p, unsigned int i)
{
    return (uint16_t)(p->queues + i * (CTL_OUTPUT_QUEUES + 1));
}

static uint16_t input_queue(const struct primary *p, unsigned int i)
{
    return (uint16_t)(output_queue(p, i) + CTL_OUTPUT_QUEUES);
}

/*
 * netback hands frames on with the guest's own pages in them and answers a request when the frame
 * is freed.  NFQUEUE copies most of them first, but not those whose payload fits the tail of its
 * message (net/core/skbuff.c, skb_zerocopy), and a held one of these would keep the ring from ever
 * being drained.  A packet socket on the device makes the kernel copy every frame before it goes
 * anywhere (net/core/dev.c, deliver_skb); this one accepts none.
 */
static int own_frames(const char *netdev, int *fd)
{
    struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog filter = { .len = 1, .filter = &nothing };
    struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
    int rc = 0;

    address.sll_ifindex = (int)if_nametoindex(netdev);
    if (!address.sll_ifindex)
        return -errno;
    *fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (*fd < 0)
        return -errno;
    if (setsockopt(*fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) ||
        bind(*fd, (struct sockaddr *)&address, sizeof(address)))
        rc = -errno;
    return rc;
}

static void on_rules_changed(uv_poll_t *poll_handle, int status, int events);

/* From here on nobody can let the guest's output go by removing our rules. */
static int guard_begin(struct primary *p)
{
    const char *vifs[REMUS_VIFS_MAX];
    unsigned int i;
    int rc;

    for (i = 0; i < p->vif_count; i++)
        vifs[i] = p->vifs[i].netdev;
    rc = remus_guard_set(p->run.p->guard_fd, p->run.h.domid, vifs, p->vif_count);
    if (rc)
        remus_run_log(&p->run, XC_SR_ERROR, "packet filter: no table of one owner: %s",
                      strerror(-rc));
    if (!rc)
        rc = remus_nftwatch_open(&p->watch_fd);
    if (!rc) {
        rc = uv_poll_init(&p->run.loop, &p->watch_poll, p->watch_fd);
        if (rc) {
            close(p->watch_fd);
            p->watch_fd = -1;
        }
    }
    if (!rc) {
        p->watch_poll.data = p;
        rc = uv_poll_start(&p->watch_poll, UV_READABLE, on_rules_changed);
    }
    return rc;
}

/* Frames pass without its mark again. */
static void guard_relax(struct primary *p)
{
    int rc = remus_guard_relax(p->run.p->guard_fd, p->run.h.domid);

    if (rc)
        remus_run_log(&p->run, XC_SR_WARN, "packet filter: table remus-guard-%u drops frames until "
                      "it is removed: %s", p->run.h.domid, strerror(-rc));
    if (p->watch_fd < 0)
        return;
    uv_close((uv_handle_t *)&p->watch_poll, NULL);
    close(p->watch_fd);
    p->watch_fd = -1;
}

static void guard_end(struct primary *p)
{
    int rc = remus_guard_clear(p->run.p->guard_fd, p->run.h.domid);

    if (rc)
        remus_run_log(&p->run, XC_SR_ERROR, "packet filter: table remus-guard-%u stays until this "
                      "process ends: %s", p->run.h.domid, strerror(-rc));
}

static int rules_install(struct primary *p)
{
    char error[200] = "";
    unsigned int i;
    int rc = 0;

    for (i = 0; !rc && i < p->vif_count; i++) {
        rc = own_frames(p->vifs[i].netdev, &p->own_fd[i]);
        if (rc)
            snprintf(error, sizeof(error), "no packet socket on %s: %s", p->vifs[i].netdev,
                     strerror(-rc));
    }
    for (i = 0; !rc && i < p->vif_count; i++)
        rc = remus_nft_protect(p->vifs[i].netdev, output_queue(p, i), input_queue(p, i),
                               p->run.p->bypass, p->run.p->bypass_count, error, sizeof(error));
    if (rc)
        remus_run_log(&p->run, XC_SR_ERROR, "%s", error);
    p->rules_in = true;         /* also when only some are */
    return rc ? rc : guard_begin(p);
}

static int lease_take(struct primary *p, uint64_t ms)
{
    const char *vifs[REMUS_VIFS_MAX];
    unsigned int i;

    for (i = 0; i < p->vif_count; i++)
        vifs[i] = p->vifs[i].netdev;
    return remus_lease_renew(p->lease, vifs, p->vif_count, ms);
}

/*
 * What the kernel is told of the lease ends somewhat before the core's own, because the kernel
 * counts in ticks of some ms and the two hosts' clocks are not the same.  The rest of the message's
 * way counts for us: the other side heard us later than we spoke.
 */
static int lease_renew(struct primary *p)
{
    uint64_t until = remus_core_lease_us(&p->run.core), now = remus_run_now_us();
    uint64_t margin = p->run.core.params.timeout_ms * 1000ull / LEASE_MARGIN;
    int rc;

    if (until < now + margin + 1000 || until - p->lease_us < LEASE_STEP_US)
        return 0;
    rc = lease_take(p, (until - margin - now) / 1000);
    if (!rc)
        p->lease_us = until;
    return rc;
}

/* Before a byte of the first epoch is sent: whoever has all of it may take over. */
static void lease_begin(struct primary *p)
{
    char error[200] = "";
    unsigned int i;
    int rc = remus_lease_open(&p->lease);

    if (!rc)
        rc = lease_renew(p);
    for (i = 0; !rc && i < p->vif_count; i++)
        rc = remus_nft_need_lease(p->vifs[i].netdev, error, sizeof(error));
    if (rc)
        remus_run_post(&p->run, RE_FAILED, 0, (uint64_t)(int64_t)rc, "the kernel's lease for "
                       "output: %s", error[0] ? error : strerror(-rc));
}

/*
 * Somebody removed rules of ours: `nft flush ruleset`, which a reload of the host's firewall begins
 * with.  The kernel has dropped what was held, and the guard what came since; what the guest was
 * sent meanwhile its copy was not.  So they are made again, and a checkpoint makes both equal.
 */
static int rules_restore(struct primary *p, char *error, size_t room)
{
    unsigned int i;
    int rc = 0;

    /* Whoever flushed less than the table has left one that nobody can repair. */
    for (i = 0; !rc && i < p->vif_count; i++)
        rc = remus_nft_protect(p->vifs[i].netdev, output_queue(p, i), input_queue(p, i),
                               p->run.p->bypass, p->run.p->bypass_count, error, room);
    p->lease_us = 0;
    if (!rc && p->lease)
        rc = lease_renew(p);
    for (i = 0; !rc && p->lease && i < p->vif_count; i++)
        rc = remus_nft_need_lease(p->vifs[i].netdev, error, room);
    return rc;
}

static int rules_check(struct primary *p, char *error, size_t room)
{
    unsigned int i;
    int rc = 0;

    for (i = 0; !rc && i < p->vif_count; i++)
        rc = remus_nft_check(p->vifs[i].netdev, output_queue(p, i), input_queue(p, i),
                             p->lease != NULL, error, room);
    return rc;
}

/* Not while the guest is stopped: it takes some ms, and nothing is sent. */
static void rules_look(struct primary *p)
{
    struct remus_run *r = &p->run;
    char missing[200] = "", error[200] = "";
    int rc;

    if (!p->rules_suspect || r->core.guest_stopped)
        return;
    p->rules_suspect = false;
    if (!p->rules_in || r->finished || !rules_check(p, missing, sizeof(missing)))
        return;
    rc = rules_restore(p, error, sizeof(error));
    if (!rc)
        rc = rules_check(p, error, sizeof(error));
    if (rc) {
        /* Not the whole table was removed, and what is left of it is of no use. */
        rc = remus_nft_reset(error, sizeof(error));
        if (!rc)
            rc = rules_restore(p, error, sizeof(error));
    }
    r->rules_lost_epoch = r->core.epoch;
    if (rc) {
        /* As if colo-proxyd were gone: protection ends in order. */
        remus_run_post(r, RE_DAEMON_LOST, 0, 0, "somebody removed the rules of protection from the "
                       "packet filter, and they cannot be put back: %s",
                       error[0] ? error : strerror(-rc));
        return;
    }
    remus_run_log(r, XC_SR_WARN, "somebody removed the rules of protection from the packet filter "
                  "(%s); they are back, nothing of the guest's has left meanwhile", missing);
    remus_run_post(r, RE_CHECKPOINT_WANTED, 0, 0, "rules of protection were removed");
}

static void on_rules_changed(uv_poll_t *poll_handle, int status, int events)
{
    struct primary *p = poll_handle->data;

    (void)status;
    (void)events;
    p->rules_suspect = remus_nftwatch_read(p->watch_fd) || p->rules_suspect;
    rules_look(p);
}

static void lease_end(struct primary *p)
{
    remus_lease_close(p->lease);
    p->lease = NULL;
    p->lease_us = 0;
}

static void own_frames_end(struct primary *p)
{
    unsigned int i;

    for (i = 0; i < p->vif_count; i++) {
        if (p->own_fd[i] >= 0)
            close(p->own_fd[i]);
        p->own_fd[i] = -1;
    }
}

/*
 * Nothing is steered to colo-proxyd any more, which then lets go what waits there, and ends; only
 * then may chains at a hook go, because their end drops what waits in any queue.
 */
static void rules_remove(struct primary *p)
{
    char error[200] = "";
    unsigned int i;

    lease_end(p);
    own_frames_end(p);
    if (!p->rules_in)
        return;
    guard_relax(p);
    for (i = 0; i < p->vif_count; i++)
        (void)remus_nft_release(p->vifs[i].netdev, error, sizeof(error));
    remus_run_daemon_stop(&p->run.daemon);
    guard_end(p);
    for (i = 0; i < p->vif_count; i++) {
        error[0] = 0;
        if (remus_nft_unprotect(p->vifs[i].netdev, error, sizeof(error)))
            remus_run_log(&p->run, XC_SR_ERROR, "the rules of %s stay: %s; to remove them: "
                          "xl remus --release %u", p->vifs[i].netdev, error, p->run.h.domid);
    }
    p->rules_in = false;
}

static void stop_input(struct primary *p)
{
    struct remus_run *r = &p->run;
    int rc = 0;

    if (!p->rules_in)
        rc = rules_install(p);
    if (!rc)
        rc = ctl_say(r->daemon.fd, CTL_INPUT_STOP, 0, r->core.pending_epoch, NULL);
    if (rc)
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "cannot hold the guest's input: %s",
                       strerror(-rc));
}

/* What colo-proxyd is to do with the output of an epoch in this mode. */
static uint32_t rule_of(const struct replication_mode *mode)
{
    return (mode->compares ? CTL_RULE_COMPARE : mode->holds_output ? CTL_RULE_EPOCH
            : CTL_RULE_PASS) | (mode->output_triggers ? CTL_RULE_TRIGGERS : 0);
}

static void rest_disks(struct primary *p)
{
    int rc = remus_disks_rest(&p->run);

    if (rc)
        remus_run_post(&p->run, RE_FAILED, 0, (uint64_t)(int64_t)rc, "cannot bring the guest's "
                       "disks to rest: %s", strerror(-rc));
}

static void on_drain_timer(uv_timer_t *timer);

/*
 * The transmit rings are empty, and nothing more comes onto the receive rings: netback's threads,
 * to which colo-proxyd may have let frames through just before INPUT_STOP, sleep, and the rings
 * have stood still for a while.
 */
static void drain(struct primary *p)
{
    struct remus_run *r = &p->run;
    unsigned int i, spins;

    for (spins = 0; spins < DRAIN_SPINS && (!r->disks.resting || r->disks.rested); spins++) {
        bool quiet = true;

        for (i = 0; i < p->vif_count; i++) {
            uint32_t requests, responses, received;
            int rc = xc_sr_primary_ring(p->sr, p->vifs[i].attach.tx_ref, &requests, &responses);

            if (!rc && requests != responses) {
                quiet = false;
                p->undrained_vif = i;
                p->undrained = requests - responses;
            }
            if (!rc)
                rc = xc_sr_primary_ring(p->sr, p->vifs[i].attach.rx_ref, &requests, &received);
            if (rc) {
                remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc,
                               "cannot look at the rings of %s: %s", p->vifs[i].netdev,
                               strerror(-rc));
                return;
            }
            if (received != p->received[i] ||
                (p->rx_thread_fd[i] >= 0 && !remus_vif_rx_asleep(p->rx_thread_fd[i])))
                quiet = false;
            p->received[i] = received;
        }
        p->quiet_spins = quiet ? p->quiet_spins + 1 : 0;
        if (!p->vif_count || p->quiet_spins > QUIET_SPINS) {
            p->quiet_spins = 0;
            p->undrained = 0;
            remus_run_post(r, RE_DRAINED, 0, 0, NULL);
            return;
        }
        usleep(DRAIN_SPIN_US);
    }
    uv_timer_start(&p->drain_timer, on_drain_timer, 1, 0);
}

static void on_drain_timer(uv_timer_t *timer)
{
    struct primary *p = timer->data;

    if (p->run.core.state == RP_QUIESCE)
        drain(p);
}

/* In a thread: a guest may have dirtied gigabytes, and the secondary must hear of us meanwhile. */
static void stage_work(void *side)
{
    struct primary *p = side;
    const uint64_t disk_epoch = htole64(p->run.disks.epoch);
    uint8_t *body;

    xc_sr_epoch_reset(&p->epoch, p->staged);
    p->epoch.mode = p->staged_mode;
    p->stage_rc = xc_sr_primary_stage(p->sr, &p->epoch);
    if (!p->stage_rc && p->frontends_bytes) {
        p->stage_rc = xc_sr_epoch_add_record(&p->epoch, REMUS_RECORD_FRONTENDS, p->frontends_bytes,
                                             &body);
        if (!p->stage_rc)
            memcpy(body, p->frontends, p->frontends_bytes);
    }
    if (!p->stage_rc && p->run.disks.taken) {
        p->stage_rc = xc_sr_epoch_add_record(&p->epoch, REMUS_RECORD_DISKS, sizeof(disk_epoch),
                                             &body);
        if (!p->stage_rc)
            memcpy(body, &disk_epoch, sizeof(disk_epoch));
    }
    if (!p->stage_rc)
        p->stage_rc = stage_offsets(p);
}

static void stage_done(void *side)
{
    struct primary *p = side;
    struct remus_run *r = &p->run;
    const int rc = p->stage_rc;

    if (r->core.state != RP_STAGE)
        return;                 /* given up meanwhile: the guest runs again, or ends */
    if (rc) {
        remus_run_post(r, RE_FAILED, p->staged, (uint64_t)(int64_t)rc, "cannot copy the guest's "
                       "state: %s", rc == -ESTALE ? "its memory map or grant table changed"
                       : strerror(-rc));
        return;
    }
    r->status.dirty_pages = p->epoch.pages;
    p->cut = true;
    remus_run_post(r, RE_STAGED, p->staged, 0, NULL);
}

static void stage(struct primary *p, uint64_t number, uint16_t mode)
{
    int rc;

    p->staged = number;
    p->staged_mode = mode;
    rc = remus_run_work(&p->run, stage_work, stage_done);
    if (rc)
        remus_run_post(&p->run, RE_FAILED, number, (uint64_t)(int64_t)rc,
                       "cannot begin to copy the guest's state: %s", strerror(-rc));
}

static void resume(struct primary *p)
{
    struct remus_run *r = &p->run;
    int rc;

    if (p->undrained && r->core.state == RP_RESUME)
        remus_run_log(r, XC_SR_DEBUG, "%s: %u requests of the transmit ring were not answered",
                      p->vifs[p->undrained_vif].netdev, p->undrained);
    rc = xc_sr_resume(&r->h);

    if (rc == -ESHUTDOWN || rc == -ESRCH) {
        look_at_guest(p);
        return;
    }
    if (rc) {
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "cannot resume the guest: %s",
                       strerror(-rc));
        return;
    }
    if (p->suspended) {
        p->epoch.suspended_us = remus_run_now_us() - p->suspended_us;
        remus_run_pause_taken(r, p->epoch.suspended_us);
    }
    p->suspended = p->suspend_asked = p->suspend_taken = false;
    remus_disks_go(r, p->cut, r->core.mode->output_triggers);
    p->cut = false;
    remus_guest_resumed(r->xs, r->h.domid);
    remus_run_post(r, RE_RESUMED, 0, 0, NULL);
}

/* One frame: primary_drained comes back for the next when it is written, after the loop has had its
 * turn at what else there is, the peer's heartbeats above all. */
static void send_more(struct primary *p)
{
    struct remus_run *r = &p->run;
    uint8_t *buffer;
    uint32_t length = 0;
    int rc;

    if (!p->sending || remus_run_link_queued(r) >= EPOCH_AHEAD)
        return;
    buffer = malloc(sizeof(struct remus_frame) + REMUS_FRAME_MAX);
    rc = buffer ? remus_epoch_encode_next(&p->encoder, buffer, &length) : -ENOMEM;
    p->sending = rc > 0;
    if (rc < 0) {
        free(buffer);
        remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "cannot encode the epoch: %s",
                       strerror(-rc));
        return;
    }
    remus_run_send_raw(r, buffer, length);
    r->status.epoch_bytes = p->encoder.wire_bytes;
}

/* Whoever reads STOP or ERROR closes the link: bytes after it would make that look like a loss. */
static void say_no_more(struct primary *p)
{
    copy_close(p);
    p->sending = false;
}

/* end: as it will be. */
static void unprotect(struct primary *p, enum remus_end end)
{
    struct remus_run *r = &p->run;
    uint32_t reason;
    bool ended;

    say_no_more(p);
    /* The other side is out: what was held may leave. */
    if (p->lease)
        (void)lease_take(p, LEASE_LAST_MS);
    if (r->daemon.fd >= 0 && p->rules_in) {
        if (ctl_say(r->daemon.fd, CTL_UNPROTECT, 0, 0, NULL) ||
            remus_run_daemon_wait(&r->daemon, CTL_UNPROTECTED, CONTROL_MS))
            remus_run_log(r, XC_SR_WARN, "colo-proxyd did not let the held packets go; the guest "
                          "will send them again");
    }
    rules_remove(p);
    remus_run_daemon_stop(&r->daemon); /* if there were no rules yet */
    ended = remus_guest_state(r->h.xch, r->h.domid, &reason) == REMUS_GUEST_ENDED;
    if (ended || r->p->keep_disks == REMUS_KEEP_NEVER ||
        (r->p->keep_disks == REMUS_KEEP_UNLESS_STOPPED && end == REMUS_END_STOPPED) ||
        !remus_disks_keep(r))
        remus_disks_give(r, ended ? REMUS_DISKS_CLOSED : REMUS_DISKS_SERVED);
    remus_run_work_wait(r);
    xc_sr_primary_close(p->sr, true);
    p->sr = NULL;
    xc_sr_cache_free(p->cache);
    p->cache = NULL;
    remus_run_post(r, RE_UNPROTECTED, 0, 0, NULL);
}

static void fence_and_stop(struct primary *p)
{
    char error[200] = "";
    unsigned int i;

    xc_domain_pause(p->run.h.xch, p->run.h.domid); /* at once: rules may have to wait */
    if (p->run.daemon.fd >= 0)
        ctl_say(p->run.daemon.fd, CTL_FENCE, 0, 0, NULL);
    for (i = 0; i < p->vif_count; i++)
        if (remus_nft_fence(p->vifs[i].netdev, error, sizeof(error)))
            remus_run_log(&p->run, XC_SR_ERROR, "cannot fence %s: %s", p->vifs[i].netdev, error);
    p->fenced = p->run.status.fenced = p->run.disks.stopped = true;
    /* Before the copy hears that it may write to them. */
    if (p->run.p->shared_disks)
        remus_disks_give(&p->run, REMUS_DISKS_LEFT);
}

static void primary_action(struct remus_run *r, const struct remus_action *a)
{
    struct primary *p = self(r);
    int rc = 0;

    switch (a->type) {
    case RA_START_COPY:
        begin(p);
        break;
    case RA_SUSPEND:
        p->cut = false;
        p->suspend_asked = true;
        rc = remus_guest_suspend_ask(r->xs, r->h.domid);
        if (rc)
            remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "cannot ask the guest to "
                           "suspend: %s", strerror(-rc));
        break;
    case RA_SUSPEND_CANCEL:
        rc = remus_guest_suspend_withdraw(r->xs, r->h.domid);
        if (!rc)
            p->suspend_asked = false;
        if (rc == -EALREADY) {
            p->suspend_asked = false;
            p->suspend_taken = true;
            remus_run_post(r, RE_SUSPEND_TAKEN, 0, 0, NULL);
        }
        look_at_guest(p);
        break;
    case RA_STOP_INPUT:
        rest_disks(p);
        stop_input(p);
        break;
    case RA_DRAIN:
        rest_disks(p);
        drain(p);
        break;
    case RA_STAGE:
        stage(p, a->epoch, (uint16_t)a->value);
        break;
    case RA_CUT:
        rc = ctl_say(r->daemon.fd, CTL_CUT, rule_of(remus_mode_by_wire((uint16_t)a->value)),
                     a->epoch, NULL);
        if (rc)
            remus_run_post(r, RE_FAILED, 0, (uint64_t)(int64_t)rc, "cannot cut the output: %s",
                           strerror(-rc));
        break;
    case RA_RESUME:
        resume(p);
        break;
    case RA_INPUT_GO:
        if (r->daemon.fd >= 0)
            ctl_say(r->daemon.fd, CTL_INPUT_GO, 0, 0, NULL);
        break;
    case RA_SEND_EPOCH:
        if (a->epoch == 1 && !r->core.params.nowhere && r->p->committed)
            r->p->committed(r->p->arg);
        if (p->rules_in && !p->lease && !r->core.params.nowhere)
            lease_begin(p);
        p->sent_us = remus_run_now_us();
        remus_epoch_encode_begin(&p->encoder, &p->epoch, p->packer);
        p->sending = true;
        send_more(p);
        break;
    case RA_RELEASE:
        r->status.checkpoints++;
        if (r->daemon.fd >= 0)
            ctl_say(r->daemon.fd, CTL_RELEASE, 0, a->epoch, NULL);
        break;
    case RA_HOLD:
        if (r->daemon.fd >= 0)
            ctl_say(r->daemon.fd, CTL_HOLD, 0, 0, NULL);
        break;
    case RA_UNPROTECT:
        unprotect(p, (enum remus_end)a->value);
        break;
    case RA_FENCE_AND_STOP:
        fence_and_stop(p);
        break;
    case RA_SEND_STOP: {
        struct remus_stop stop = {
            .reason = (uint32_t)a->value, .guest_reason = (uint32_t)a->detail,
        };

        say_no_more(p);
        remus_run_send(r, REMUS_FRAME_STOP, 0, &stop, sizeof(stop));
        break;
    }
    case RA_SEND_STOPPED:
        remus_run_send(r, REMUS_FRAME_STOPPED, 0, NULL, 0);
        break;
    case RA_SEND_ERROR:
        say_no_more(p);
        remus_run_send(r, REMUS_FRAME_ERROR, 0, a->text, (uint32_t)strlen(a->text));
        break;
    case RA_SEND_HEARTBEAT:
        remus_run_heartbeat(r);
        break;
    case RA_ARBITRATE:
        remus_run_arbitrate(r);
        break;
    case RA_FINISH:
        remus_run_finish(r, a);
        break;
    default:
        remus_run_log(r, XC_SR_ERROR, "action %d is not the primary's", (int)a->type);
    }
}

/* ---- What comes in ------------------------------------------------------------------------- */

static void primary_frame(struct remus_run *r, const struct remus_frame *f,
                          const uint8_t *payload)
{
    struct primary *p = self(r);

    switch (f->type) {
    case REMUS_FRAME_HELLO:
        break;
    case REMUS_FRAME_READY:
        remus_run_post(r, RE_PEER_READY, 0, 0, NULL);
        break;
    case REMUS_FRAME_ACK:
        if (p->sending) {
            remus_run_post(r, RE_PEER_BAD, 0, 0, "epoch %lu was acknowledged before it was sent",
                           (unsigned long)f->epoch);
            break;
        }
        p->acked_us = remus_run_now_us();
        r->status.ack_us = p->acked_us - p->sent_us;
        remus_run_post(r, RE_PEER_ACK, f->epoch, 0, NULL);
        break;
    case REMUS_FRAME_APPLIED: {
        struct remus_applied applied;

        if (f->length != sizeof(applied)) {
            remus_run_post(r, RE_PEER_BAD, 0, 0, "APPLIED of %u bytes", f->length);
            break;
        }
        memcpy(&applied, payload, sizeof(applied));
        r->status.apply_us = applied.paused_us;
        r->status.rolled_back = applied.rolled_back;
        if (r->p->verify) {
            r->status.verify_epochs++;
            r->status.verify_bad += applied.verify_bad;
            if (applied.verify_bad)
                remus_run_log(r, XC_SR_ERROR, "verify: %lu pages differ on %s after epoch %lu, the "
                              "first at gfn %#lx", (unsigned long)applied.verify_bad, r->p->peer,
                              (unsigned long)f->epoch, (unsigned long)applied.first_bad_gfn);
        }
        remus_run_post(r, RE_PEER_APPLIED, f->epoch, 0, NULL);
        break;
    }
    case REMUS_FRAME_CHECKPOINT:
        remus_run_post(r, RE_PEER_CHECKPOINT, f->epoch, 0, NULL);
        break;
    case REMUS_FRAME_STOP: {
        struct remus_stop stop = { .reason = REMUS_STOP_FAILED };

        if (f->length >= sizeof(stop))
            memcpy(&stop, payload, sizeof(stop));
        remus_run_post(r, RE_PEER_STOP, stop.guest_reason, stop.reason, "%s ended protection "
                                        "(reason %u)",
                       r->p->peer, stop.reason);
        break;
    }
    case REMUS_FRAME_STOPPED:
        remus_run_post(r, RE_PEER_STOPPED, 0, 0, NULL);
        break;
    default:
        if (!(f->type & REMUS_FRAME_OPTIONAL))
            remus_run_post(r, RE_PEER_BAD, 0, 0, "frame type %u is not for a primary", f->type);
    }
}

static void primary_control(struct remus_run *r, const struct ctl_in *in)
{
    struct primary *p = self(r);

    if (remus_disks_control(r, in)) {
        if (r->core.state == RP_COPY && r->disks.synced && !p->copy_began_us)
            start_copy(p);
        return;
    }
    switch (in->msg.type) {
    case CTL_INPUT_STOPPED:
        if (r->core.state != RP_QUIESCE)
            break;              /* of a checkpoint that was given up */
        remus_run_post(r, RE_INPUT_STOPPED, 0, 0, NULL);
        break;
    case CTL_CUT_DONE:
        if (r->core.state != RP_STAGE)
            break;
        remus_run_post(r, RE_CUT_DONE, in->msg.epoch, 0, NULL);
        break;
    case CTL_CHECKPOINT:
        if (in->msg.code != CTL_WHY_OUTPUT)
            snprintf(r->status.last_divergence, sizeof(r->status.last_divergence), "%.199s",
                     in->text);
        if (in->msg.code < CTL_WHY_COUNT)
            r->status.requested[in->msg.code]++;
        remus_run_log(r, XC_SR_DEBUG, "checkpoint wanted: %s", in->text);
        remus_run_post(r, RE_CHECKPOINT_WANTED, in->msg.epoch,
                       in->msg.code >= CTL_WHY_DIVERGED && in->msg.code <= CTL_WHY_UNCOMPARABLE,
                       "%.150s", in->text);
        break;
    default:
        break;
    }
}

static void primary_watch(struct remus_run *r)
{
    remus_disks_answer_closing(r);
    look_at_guest(self(r));
}

static void primary_daemon_lost(struct remus_run *r, struct remus_daemon *d)
{
    if (d != &r->daemon)
        remus_disks_revive(r);
}

static void on_send_turn(uv_timer_t *timer)
{
    send_more(timer->data);
}

static void primary_drained(struct remus_run *r)
{
    struct primary *p = self(r);

    if (p->copy_paused && p->copy_open) {
        p->copy_paused = false;
        uv_read_start((uv_stream_t *)&p->copy_out, on_copy_room, on_copy_read);
    }
    /* libuv tells of up to nine writes in a round of its loop, and nothing else has a turn then. */
    if (p->sending)
        uv_timer_start(&p->send_timer, on_send_turn, 0, 0);
}

static void primary_periodic(struct remus_run *r)
{
    struct primary *p = self(r);

    remus_disks_vouch(r);

    rules_look(p);
    if (p->lease && lease_renew(p))
        remus_run_log(r, XC_SR_WARN, "the kernel did not renew the lease for output");
    r->status.copy = p->copy_progress;
    if (p->cache)
        xc_sr_cache_stats(p->cache, &r->status.cache);
    /* Rings and ports change only when a frontend connects anew. */
    if (p->sr && r->core.state == RP_RUN && remus_run_now_us() - p->frontends_read_us > 1000000)
        read_frontends(p);
}

static const struct remus_run_ops primary_ops = {
    .action = primary_action, .frame = primary_frame, .control = primary_control,
    .daemon_lost = primary_daemon_lost, .watch = primary_watch, .drained = primary_drained,
    .periodic = primary_periodic,
};

/* ---- Between sessions ---------------------------------------------------------------------- */

/* Another session has not begun, and nobody gives the disks to blkback: they are ours to mind. */
static void mind_control(struct remus_run *r, const struct ctl_in *in)
{
    (void)remus_disks_control(r, in);
}

static void mind_watch(struct remus_run *r)
{
    uint32_t reason;

    remus_disks_answer_closing(r);
    if (remus_guest_state(r->h.xch, r->h.domid, &reason) != REMUS_GUEST_ENDED)
        return;
    remus_run_log(r, XC_SR_INFO, "the guest has ended; its disks are closed");
    remus_disks_give(r, REMUS_DISKS_CLOSED);
    remus_run_mind_end(r);
}

static void mind_periodic(struct remus_run *r)
{
    switch (r->p->stop_request ? *r->p->stop_request : 0) {
    case 0:
        return;
    case 1:
        remus_disks_give(r, REMUS_DISKS_SERVED);
        remus_guest_unpublish(r->xs, r->h.domid); /* otherwise it is the next session's */
        break;
    default:
        remus_disks_leave(r);
        remus_run_log(r, XC_SR_INFO, "the guest's disks are left to another session");
    }
    remus_run_mind_end(r);
}

static const struct remus_run_ops mind_ops = {
    .control = mind_control, .daemon_lost = primary_daemon_lost, .watch = mind_watch,
    .periodic = mind_periodic,
};

static void mind(struct primary *p, struct remus_session_result *result)
{
    struct remus_run *r = &p->run;
    int rc = remus_disk_minder_tell(r->h.domid);

    if (rc) {
        remus_run_log(r, XC_SR_ERROR, "nobody would know who has the guest's disks: %s",
                      strerror(-rc));
        remus_disks_give(r, REMUS_DISKS_SERVED);
        return;
    }
    result->disks_kept = true;
    remus_guest_publish_open(r->xs, r->h.domid);
    remus_guest_publish(r->xs, r->h.domid, "role", "unprotected");
    remus_guest_publish(r->xs, r->h.domid, "reason", "colo-blkd notes what is written to its "
                        "disks, for the next session");
    r->p->minding(r->p->arg, result);
    remus_disks_watch_closing(r);
    mind_watch(r);
    if (r->disks.taken)
        remus_run_mind(r, &mind_ops);
    remus_disk_minder_forget(r->h.domid);
}

/* ---- Life ---------------------------------------------------------------------------------- */

static int start_proxy(struct primary *p)
{
    const struct remus_session_params *sp = p->run.p;
    char domid[16], vif[REMUS_VIFS_MAX][48], max[16];
    char bypass[REMUS_BYPASS_MAX][REMUS_BYPASS_TEXT_MAX];
    char *args[10 + 2 * REMUS_VIFS_MAX + 2 * REMUS_BYPASS_MAX];
    char error[200] = "";
    unsigned int n = 0, i;
    int rc = remus_nft_free_queues(p->run.h.domid, REMUS_VIFS_MAX * (CTL_OUTPUT_QUEUES + 1),
                                   &p->queues, error, sizeof(error));

    if (rc) {
        remus_run_log(&p->run, XC_SR_ERROR, "%s", error);
        return rc;
    }
    snprintf(domid, sizeof(domid), "%u", p->run.h.domid);
    args[n++] = "colo-proxyd";
    args[n++] = "--domid";
    args[n++] = domid;
    for (i = 0; i < p->vif_count; i++) {
        snprintf(vif[i], sizeof(vif[i]), "%s:%u:%u", p->vifs[i].netdev, output_queue(p, i),
                 input_queue(p, i));
        args[n++] = "--vif";
        args[n++] = vif[i];
    }
    for (i = 0; i < sp->bypass_count; i++) {
        remus_bypass_format(&sp->bypass[i], bypass[i], sizeof(bypass[i]));
        remus_run_log(&p->run, XC_SR_INFO, "not protected: %s", bypass[i]);
        args[n++] = "--bypass";
        args[n++] = bypass[i];
    }
    snprintf(max, sizeof(max), "%u", sp->deadline_max_ms ? sp->deadline_max_ms
             : DEADLINE_MAX_MS);
    args[n++] = "--deadline-max-ms";
    args[n++] = max;
    args[n] = NULL;
    return remus_run_daemon_start(&p->run, &p->run.daemon, args, sp->packet_fd, -1);
}

static void send_hello(struct remus_run *r)
{
    xc_dominfo_t info;
    struct remus_hello hello = {
        .version = REMUS_PROTOCOL_VERSION, .mode = r->p->core.mode->wire,
        .heartbeat_ms = r->p->core.heartbeat_ms, .timeout_ms = r->p->core.timeout_ms,
        .flags = (r->p->verify ? REMUS_HELLO_VERIFY : 0) | (r->p->net ? 0 : REMUS_HELLO_NO_NET) |
                 (r->p->disk ? 0 : REMUS_HELLO_NO_DISK) |
                 (r->p->compress ? REMUS_HELLO_LZ4 : 0),
    };

    if (xc_domain_getinfo(r->h.xch, r->h.domid, 1, &info) == 1) {
        hello.guest_pages = info.nr_pages;
        hello.vcpus = info.max_vcpu_id + 1;
    }
    memcpy(hello.session, r->p->session, sizeof(hello.session));
    remus_run_send(r, REMUS_FRAME_HELLO, 0, &hello, sizeof(hello));
}

/*
 * A request to suspend that the guest had taken when the session ended still suspends it, once, a
 * little later: nobody else would resume it.
 */
static void settle_guest(struct primary *p)
{
    struct remus_run *r = &p->run;
    uint64_t deadline = remus_run_now_us() + (p->suspend_taken ? SETTLE_TAKEN_US : SETTLE_US);
    uint32_t reason;

    while ((p->suspend_asked || p->suspend_taken) && remus_run_now_us() < deadline) {
        switch (remus_guest_state(r->h.xch, r->h.domid, &reason)) {
        case REMUS_GUEST_SUSPENDED:
            if (!xc_sr_resume(&r->h)) {
                remus_guest_resumed(r->xs, r->h.domid);
                p->suspend_asked = p->suspend_taken = false;
            }
            break;
        case REMUS_GUEST_ENDED:
            p->suspend_asked = p->suspend_taken = false;
            break;
        case REMUS_GUEST_RUNS:
            break;
        }
        usleep(2000);
    }
}

int remus_primary_run(const struct remus_session_params *params,
                      struct remus_session_result *result)
{
    struct primary *p = calloc(1, sizeof(*p));
    struct remus_run *r;
    char path[64], *name;
    unsigned int i;
    int rc;

    if (!p)
        return -ENOMEM;
    r = &p->run;
    p->copy_pipe[0] = p->copy_pipe[1] = p->watch_fd = -1;
    memset(p->own_fd, -1, sizeof(p->own_fd));
    memset(p->rx_thread_fd, -1, sizeof(p->rx_thread_fd));
    rc = remus_run_init(r, params, &primary_ops, result, p);
    if (rc)
        goto out;
    snprintf(path, sizeof(path), "/local/domain/%u/name", params->domid);
    name = xs_read(r->xs, XBT_NULL, path, NULL);
    snprintf(r->name, sizeof(r->name), "%s", name ? name : "?");
    free(name);
    p->copy_buffer = malloc(COPY_CHUNK);
    rc = p->copy_buffer ? 0 : -ENOMEM;
    if (!rc && params->compress)
        rc = remus_packer_new(&p->packer);
    if (!rc && params->net)
        rc = remus_guest_vifs(r->xs, params->domid, p->vifs, &p->vif_count);
    if (!rc && p->vif_count)
        rc = start_proxy(p);
    if (!rc && params->disk)
        rc = remus_disks_open(r);
    if (rc)
        goto out;
    uv_timer_init(&r->loop, &p->drain_timer);
    uv_timer_init(&r->loop, &p->send_timer);
    p->drain_timer.data = p->send_timer.data = p;

    r->status.domid = params->domid;
    remus_run_introduce(r);
    remus_run_take_requests(r);
    /* Who minds its disks is about to be asked for them. */
    remus_guest_xl_stop(r->name, remus_disk_minder(r->h.domid), p->minders, &p->minder_count);
    send_hello(r);
    rc = remus_run_loop(r);
out:
    copy_close(p);
    remus_run_work_wait(r);
    if (r->h.xch && r->xs && !p->fenced)
        settle_guest(p);
    /* What is fenced stays so until somebody knows what became of its copy: the supervisor. */
    if (p->fenced)
        own_frames_end(p);
    else
        rules_remove(p);
    lease_end(p);
    if (r->h.xch && r->xs && !r->disks.kept)
        remus_disks_give(r, p->fenced ? REMUS_DISKS_LEFT : REMUS_DISKS_SERVED);
    if (p->sr)
        xc_sr_primary_close(p->sr, true);
    if (r->xs)
        remus_guest_unpublish(r->xs, params->domid);
    xc_sr_cache_free(p->cache);
    xc_sr_epoch_free(&p->epoch);
    /* It would start a guest that has ended anew, and without a fence. */
    if (!p->fenced)
        remus_guest_xl_continue(p->minders, p->minder_count);
    if (r->disks.kept)
        mind(p, result);
    /* colo-proxyd passes on what it had not yet, and what the network still sends to this host. */
    if (result->end == REMUS_END_HANDED_OVER && p->vif_count &&
        remus_run_link_await_end(r, TAKES_OVER_MS) && !r->channel_lost_us)
        (void)remus_run_daemon_wait(&r->daemon, CTL_CHANNEL_LOST, LATE_INPUT_MS);
    remus_run_dispose(r);
    for (i = 0; i < REMUS_VIFS_MAX; i++) {
        remus_offsets_free(p->offsets[i]);
        if (p->rx_thread_fd[i] >= 0)
            close(p->rx_thread_fd[i]);
    }
    free(p->offset_list);
    free(p->frontends);
    free(p->copy_buffer);
    remus_packer_free(p->packer);
    free(p);
    return rc;
}
