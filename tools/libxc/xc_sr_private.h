/*
 * xc_sr_private.h: what the files of tools/libxc share and nobody else needs.
 */
#ifndef XC_SR_PRIVATE_H
#define XC_SR_PRIVATE_H

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "tools/libxc/xc_sr.h"

/* XEN_DOMCTL_getpageframeinfo3 takes no more in one call. */
#define XC_SR_TYPES_MAX             1024u

#define XC_SR_ROUND_UP(value, step) (((value) + (step)-1) / (step) * (step))

/* One sentence to the logger of the handles; a longer one than the buffer is cut. */
__attribute__((format(printf, 3, 4))) static inline void xc_sr_log(const struct xc_sr_handles *h,
                                                                   enum xc_sr_level level,
                                                                   const char *format, ...)
{
    char text[512];
    va_list args;

    if (!h->log)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    h->log(h->log_arg, level, text);
}

static inline uint64_t xc_sr_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

/* Words of a bitmap of so many bits. */
static inline uint64_t xc_sr_words(uint64_t bits)
{
    return (bits + 63) / 64;
}

/*
 * Which of the gfns hold a page that belongs into a saved image (xc_sr_physmap.c): RAM of the
 * guest does, pages that Xen provides (shared_info, grant table) and holes do not.  At most
 * XC_SR_TYPES_MAX gfns.
 */
int xc_sr_pages_present(const struct xc_sr_handles *h, const uint64_t *gfns, unsigned int count,
                        bool *present) XC_SR_MUST_CHECK;

/* Number of pages Xen accounts to the guest, and its highest gfn (xc_sr_physmap.c). */
struct xc_sr_extent {
    uint64_t pages, max_gfn;
};
int xc_sr_extent_read(struct xc_sr_extent *out, const struct xc_sr_handles *h) XC_SR_MUST_CHECK;

#endif /* XC_SR_PRIVATE_H */
