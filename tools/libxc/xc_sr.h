/*
 * xc_sr.h: the state of a guest: saving it, restoring it, and replacing it in a running copy.
 *
 * No policy and no sockets live here.  Functions return 0 or a negative errno; the sentence that
 * explains a failure goes to the logger of the handles.  None of them leaves the guest suspended
 * or paused by itself: whoever suspended it resumes it.
 *
 * Units: gfn counts 4 KiB pages in guest physical space; times are microseconds.
 */
#ifndef XC_SR_H
#define XC_SR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <xenctrl.h>
#include <xenforeignmemory.h>

#include "xen/include/public/remus.h"

#define XC_SR_PAGE_SHIFT 12
#define XC_SR_PAGE_BYTES 4096u
#define XC_SR_MUST_CHECK __attribute__((warn_unused_result))

/* ---- Handles and logging --------------------------------------------------------------------- */

enum xc_sr_level { XC_SR_DEBUG, XC_SR_INFO, XC_SR_WARN, XC_SR_ERROR };

struct xc_sr_handles {
    xc_interface *xch;
    xenforeignmemory_handle *fmem;
    uint32_t domid;
    /* One complete sentence without newline.  May be NULL. */
    void (*log)(void *arg, enum xc_sr_level level, const char *text);
    void *log_arg;
};

/* ---- Page-mapping cache (xc_sr_cache.c) ------------------------------------------------------ */

/*
 * Keeps foreign mappings of guest pages across passes and checkpoints.  Memory is mapped in
 * aligned chunks of XC_SR_CACHE_CHUNK_PAGES gfns (one mmap each, PROT_READ|PROT_WRITE); the least
 * recently used chunk goes when the budget is reached.  A pointer from _get stays valid until the
 * next _get, _invalidate or _free.
 */
#define XC_SR_CACHE_CHUNK_PAGES 512u

struct xc_sr_cache;
struct xc_sr_cache_stats {
    uint64_t hits, misses, evictions, invalidations; /* hits and misses count pages asked for */
    uint64_t mapped_pages, budget_pages;
};

int xc_sr_cache_new(struct xc_sr_cache **out, const struct xc_sr_handles *h,
                    uint64_t budget_pages) XC_SR_MUST_CHECK;
/* -ENOENT: no page at that gfn (hole, ballooned out). */
int xc_sr_cache_get(struct xc_sr_cache *c, uint64_t gfn, void **page) XC_SR_MUST_CHECK;
void xc_sr_cache_invalidate(struct xc_sr_cache *c, uint64_t gfn, uint64_t count);
void xc_sr_cache_invalidate_all(struct xc_sr_cache *c);
/*
 * Looks for a change of the guest's physmap since the last call (number of pages, highest gfn) and
 * drops every mapping if there was one.  *changed says so.  Cheap: three hypercalls; the last looks
 * at the pages of one mapped chunk, another one each time, as pages that a guest has given back
 * stay in its count for as long as they are mapped here.
 */
int xc_sr_cache_revalidate(struct xc_sr_cache *c, bool *changed) XC_SR_MUST_CHECK;
void xc_sr_cache_stats(const struct xc_sr_cache *c, struct xc_sr_cache_stats *out);
void xc_sr_cache_free(struct xc_sr_cache *c);

/* ---- Physmap (xc_sr_physmap.c) --------------------------------------------------------------- */

/* Which gfns hold a page: one bit each, bit 0 of word 0 is gfn 0. */
struct xc_sr_physmap {
    uint64_t *present;
    uint64_t gfns;          /* bits in use: highest gfn + 1 */
    uint64_t pages;         /* bits set */
};
int xc_sr_physmap_read(struct xc_sr_physmap *out, const struct xc_sr_handles *h) XC_SR_MUST_CHECK;
void xc_sr_physmap_free(struct xc_sr_physmap *p);
static inline bool xc_sr_bit(const uint64_t *map, uint64_t bit)
{
    return (map[bit / 64] >> (bit % 64)) & 1;
}
static inline void xc_sr_set_bit(uint64_t *map, uint64_t bit)
{
    map[bit / 64] |= 1ull << (bit % 64);
}

/* ---- Log-dirty (xc_sr_dirty.c) --------------------------------------------------------------- */

struct xc_sr_dirty {
    uint64_t *bits;         /* page aligned hypercall buffer, one bit per gfn */
    uint64_t gfns;          /* bits in use */
    uint64_t count;         /* set by the last read */
    void *buffer;           /* private */
    const struct xc_sr_handles *h; /* private */
};
/* Enables log-dirty (already enabled is fine) and allocates the bitmap. */
int xc_sr_dirty_begin(struct xc_sr_dirty *out, const struct xc_sr_handles *h, uint64_t gfns)
    XC_SR_MUST_CHECK;
int xc_sr_dirty_read_clean(struct xc_sr_dirty *d) XC_SR_MUST_CHECK; /* read and clean */
int xc_sr_dirty_peek(struct xc_sr_dirty *d) XC_SR_MUST_CHECK;       /* read only */
/* Frees the bitmap; turns log-dirty off if asked to. Idempotent. */
void xc_sr_dirty_end(struct xc_sr_dirty *d, bool disable);

/* ---- Saving: the public migration stream (xc_sr_save.c) -------------------------------------- */

struct xc_sr_progress {
    unsigned int pass;      /* from 0; the last one runs with the guest stopped */
    bool stopped;           /* guest is suspended during this pass */
    uint64_t pages_done;    /* of this pass */
    uint64_t pages_total;   /* of this pass */
    uint64_t bytes_written; /* of the whole stream so far */
};

/* All callbacks: 0 or negative errno, which ends the save. Called on the caller's thread. */
struct xc_sr_save_ops {
    int (*write)(void *arg, const void *data, size_t length);
    int (*suspend)(void *arg);   /* returns with the guest shut down with reason suspend */
    int (*resume)(void *arg);    /* may be NULL: the guest stays suspended at the end (xl save) */
    void (*progress)(void *arg, const struct xc_sr_progress *p); /* may be NULL */
};

struct xc_sr_save_params {
    struct xc_sr_cache *cache;   /* NULL: one of its own, for this save */
    unsigned int max_passes;     /* live passes before the guest is stopped; 0: not live */
    uint64_t stop_pages;         /* stop the guest when a pass leaves no more than this dirty */
    bool keep_log_dirty;         /* leave it on, clean as of the final pass, for a session */
};

struct xc_sr_save_result {
    uint64_t suspended_us;       /* from return of ops->suspend to call of ops->resume */
    uint64_t pages_sent, passes, total_us;
};

/*
 * Writes libxl stream v2 header, LIBXC_CONTEXT, libxc stream v3, END, so that the stock
 * libxl_domain_create_restore can read it, for a guest without a device model (PVH, HVM).
 * Live: the final dirty pages are copied to a staging buffer, ops->resume is called, and only then
 * are they written: the guest is stopped for the copy, not for the wire.  More than 65536 of them
 * (256 MiB) are written with the guest stopped, and so is everything when not live.
 * Whatever happens, if ops->suspend returned 0 and ops->resume is not NULL, ops->resume is called.
 */
int xc_sr_save(const struct xc_sr_handles *h, const struct xc_sr_save_params *params,
               const struct xc_sr_save_ops *ops, void *arg, struct xc_sr_save_result *result)
    XC_SR_MUST_CHECK;

/* The libxc part alone, image header to END record (for the save helper). */
int xc_sr_save_libxc(const struct xc_sr_handles *h, const struct xc_sr_save_params *params,
                     const struct xc_sr_save_ops *ops, void *arg, struct xc_sr_save_result *result)
    XC_SR_MUST_CHECK;

/* ---- Restoring: a reader of the libxc stream (xc_sr_restore.c) ------------------------------- */

struct xc_sr_restore_ops {
    /* Exactly length bytes, or a negative errno (-EPIPE: stream ended early). */
    int (*read)(void *arg, void *data, size_t length);
    void (*progress)(void *arg, const struct xc_sr_progress *p); /* may be NULL */
    /*
     * The static data are complete, no memory has come yet; missing is XGR_SDD_MISSING_* of
     * xenguest.h.  NULL: a stream without a CPU policy is refused.
     */
    int (*static_data_done)(void *arg, unsigned int missing);
};
struct xc_sr_restore_params {
    uint32_t store_port, store_domid, console_port, console_domid;
};
struct xc_sr_restore_result {
    uint64_t store_gfn, console_gfn, pages_read;
};
/* Builds the memory and vCPU state of an empty domain (as the save helper is asked to). */
int xc_sr_restore_libxc(const struct xc_sr_handles *h, const struct xc_sr_restore_params *params,
                        const struct xc_sr_restore_ops *ops, void *arg,
                        struct xc_sr_restore_result *result) XC_SR_MUST_CHECK;

/* ---- One epoch's state in memory (xc_sr_epoch.c) --------------------------------------------- */

struct xc_sr_record {
    uint32_t type;               /* REMUS_RECORD_* */
    uint32_t length;
    uint8_t *body;
};
#define XC_SR_EPOCH_RECORDS 8u

/*
 * Pages and records of one checkpoint.  The primary stages into it; the secondary receives into
 * it, and applies it when complete.  Buffers grow to the largest epoch seen and are reused.
 */
struct xc_sr_epoch {
    uint64_t number;
    uint64_t pages, pages_room;
    uint64_t *gfns;              /* [pages], no flag bits */
    uint8_t *data;               /* [pages * 4096] */
    struct xc_sr_record records[XC_SR_EPOCH_RECORDS]; /* body room kept between epochs */
    uint32_t record_room[XC_SR_EPOCH_RECORDS];
    unsigned int record_count;
    uint64_t suspended_us;
    uint16_t mode;               /* REMUS_MODE_* of the epoch that follows */
};
void xc_sr_epoch_reset(struct xc_sr_epoch *e, uint64_t number);
/* Room for one more page; *data is where its 4096 bytes go. -ENOMEM when memory is out. */
int xc_sr_epoch_add_page(struct xc_sr_epoch *e, uint64_t gfn, uint8_t **data) XC_SR_MUST_CHECK;
/* A record body of length bytes to fill in; -EEXIST if the type is there already. */
int xc_sr_epoch_add_record(struct xc_sr_epoch *e, uint32_t type, uint32_t length, uint8_t **body)
    XC_SR_MUST_CHECK;
const struct xc_sr_record *xc_sr_epoch_find(const struct xc_sr_epoch *e, uint32_t type);
void xc_sr_epoch_free(struct xc_sr_epoch *e);

/* ---- The primary's side of a checkpoint (xc_sr_primary.c) ------------------------------------ */

struct xc_sr_primary;
struct xc_sr_primary_params {
    struct xc_sr_cache *cache;
    bool verify;                 /* stage hashes of every RAM page (guest stopped for longer) */
};
/* Log-dirty is on and clean as of the initial copy (xc_sr_save with keep_log_dirty). */
int xc_sr_primary_open(struct xc_sr_primary **out, const struct xc_sr_handles *h,
                       const struct xc_sr_primary_params *params) XC_SR_MUST_CHECK;
/* Extra pages to carry in every epoch (rings of the backends): replaces the former list. */
int xc_sr_primary_rings(struct xc_sr_primary *p, const uint32_t *grant_refs, unsigned int count)
    XC_SR_MUST_CHECK;
/*
 * Where the ring of this grant stands: how many requests the frontend has made and how many the
 * backend has answered so far.  Equal on a transmit ring: it is drained.
 */
int xc_sr_primary_ring(struct xc_sr_primary *p, uint32_t grant_ref, uint32_t *requests,
                       uint32_t *responses) XC_SR_MUST_CHECK;
/*
 * Guest suspended.  Fills the epoch with dirty and always-dirty pages, HVM context, grant table,
 * event channel table.  -ESTALE: the physmap changed in a way that needs a new secondary.
 */
int xc_sr_primary_stage(struct xc_sr_primary *p, struct xc_sr_epoch *e) XC_SR_MUST_CHECK;
/*
 * Resume a suspended guest with "cancelled".  Idempotent: 0 for one that runs already.  -ESHUTDOWN:
 * it ended by itself; -ESRCH: it is gone.
 */
int xc_sr_resume(const struct xc_sr_handles *h) XC_SR_MUST_CHECK;
void xc_sr_primary_close(struct xc_sr_primary *p, bool disable_log_dirty);

/* ---- The secondary's side (xc_sr_secondary.c) ------------------------------------------------ */

struct xc_sr_secondary;
struct xc_sr_apply_stats {
    uint64_t pages, rolled_back, paused_us;
    uint64_t verify_bad, first_bad_gfn;
};
/*
 * The domain is freshly restored and has never run (paused): takes the mirror of its memory and
 * turns log-dirty on.
 */
int xc_sr_secondary_open(struct xc_sr_secondary **out, const struct xc_sr_handles *h)
    XC_SR_MUST_CHECK;
/*
 * The guest has run its resume path once and is suspended or paused: makes its event channel table
 * equal to want[count] (remus_evtchn from port 0), running a few instructions in the guest if
 * VIRQ or IPI ports must move.  Reports in *rebuilt whether that was needed.
 */
int xc_sr_secondary_evtchn(struct xc_sr_secondary *s, const struct remus_evtchn *want,
                           unsigned int count, bool *rebuilt) XC_SR_MUST_CHECK;
/* Guest paused: no request or answer is under way in its xenstore ring, so it can be replaced. */
bool xc_sr_secondary_quiescent(struct xc_sr_secondary *s);
/* Guest paused (by the caller) before, still paused after. All or nothing is the caller's duty:
 * only a complete, verified epoch is handed in. */
int xc_sr_secondary_apply(struct xc_sr_secondary *s, const struct xc_sr_epoch *e,
                          struct xc_sr_apply_stats *stats) XC_SR_MUST_CHECK;
void xc_sr_secondary_close(struct xc_sr_secondary *s, bool disable_log_dirty);

/* ---- Event channel table (xc_sr_evtchn.c) ---------------------------------------------------- */

#define XC_SR_EVTCHN_MAX 4096u
int xc_sr_evtchn_read(const struct xc_sr_handles *h, struct remus_evtchn *table,
                      unsigned int room, unsigned int *count) XC_SR_MUST_CHECK;
/* 0 equal; -EILSEQ and a sentence in why[] otherwise.  Ports that dom0 holds the other end of may
 * be interdomain on one side and unbound on the other. */
int xc_sr_evtchn_compare(const struct remus_evtchn *a, unsigned int a_count,
                         const struct remus_evtchn *b, unsigned int b_count, char *why,
                         size_t why_bytes) XC_SR_MUST_CHECK;
/* Which event channel ABI the guest uses: *fifo. */
int xc_sr_evtchn_abi(const struct xc_sr_handles *h, bool *fifo) XC_SR_MUST_CHECK;

#endif /* XC_SR_H */
