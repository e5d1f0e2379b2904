/*
 * sr-tool.c: remus-sr, the saver by hand, for tests and measurements.
 *
 * Writes a file that the distribution's `xl restore` takes: xl's header, the configuration as
 * libxl keeps it, and our stream.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libxl.h>
#include <libxl_utils.h>
#include <xentoollog.h>

#include "tools/libxc/xc_sr_private.h"
#include "tools/libxc/xc_sr_stream.h"
#include "tools/libxl/remus_config.h"

static const char usage[] =
    "Usage: remus-sr save [OPTION]... DOMID FILE\n"
    "Saves a PVH guest to FILE, which `xl restore FILE` can start again, and prints\n"
    "what it took as JSON.  FILE may be - for standard output or /dev/null.\n"
    "\n"
    "  -l, --live            copy while the guest runs, stop it for the rest only\n"
    "  -r, --resume          let the guest run on afterwards; otherwise it is destroyed,\n"
    "                        as xl save does\n"
    "  -p, --passes=N        live: at most N passes before the guest is stopped (5)\n"
    "  -s, --stop-pages=N    live: stop the guest when a pass leaves no more than N (49)\n"
    "  -c, --cache-pages=N   page mappings kept at a time (262144)\n"
    "  -k, --repeat=N        save N times with one cache, needs --resume; JSON for each\n"
    "  -v, --verbose         log to standard error\n"
    "  -h, --help            this text\n";

struct tool {
    libxl_ctx *ctx;
    uint32_t domid;
    int fd;
    uint64_t bytes;
    uint64_t memory_kb;     /* what the file's header has room for */
    bool verbose;
};

static void log_sentence(void *arg, enum xc_sr_level level, const char *text)
{
    const struct tool *t = arg;

    if (t->verbose || level >= XC_SR_WARN)
        fprintf(stderr, "remus-sr: %s\n", text);
}

static int tool_write(void *arg, const void *data, size_t length)
{
    struct tool *t = arg;
    const uint8_t *at = data;

    t->bytes += length;
    while (length) {
        ssize_t done = write(t->fd, at, length);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        at += done;
        length -= (size_t)done;
    }
    return 0;
}

static int tool_suspend(void *arg)
{
    struct tool *t = arg;

    return libxl_domain_suspend_only(t->ctx, t->domid, NULL) ? -EIO : 0;
}

static int tool_resume(void *arg)
{
    struct tool *t = arg;

    return libxl_domain_resume(t->ctx, t->domid, 1, NULL) ? -EIO : 0;
}

/* A guest whose balloon gave memory back while it was saved has pages that its header lacks. */
static int check_size(struct tool *t)
{
    libxl_dominfo info;
    int rc;

    libxl_dominfo_init(&info);
    rc = libxl_domain_info(t->ctx, &info, t->domid) ? -EIO : 0;
    if (!rc && info.current_memkb > t->memory_kb) {
        fprintf(stderr, "remus-sr: domain %u grew to %" PRIu64 " KiB while it was saved; save it "
                "again when its memory is left alone\n", t->domid, info.current_memkb);
        rc = -EAGAIN;
    }
    libxl_dominfo_dispose(&info);
    return rc;
}

/* What stands in an xl file before the stream.  Also says no to guests that have more state. */
static int write_xl_header(struct tool *t)
{
    struct xc_sr_xl_header header = {
        .byteorder = XC_SR_XL_BYTEORDER,
        .mandatory_flags = XC_SR_XL_FLAG_JSON | XC_SR_XL_FLAG_STREAMV2,
    };
    libxl_domain_config config;
    uint32_t length;
    char *json = NULL;
    int rc;

    _Static_assert(sizeof(XC_SR_XL_MAGIC) == sizeof(header.magic) + 1 ||
                       sizeof(XC_SR_XL_MAGIC) == sizeof(header.magic),
                   "xl's magic has 32 bytes");
    memcpy(header.magic, XC_SR_XL_MAGIC, sizeof(header.magic));
    libxl_domain_config_init(&config);
    if (remus_config_read(t->ctx, t->domid, &config)) {
        fprintf(stderr, "remus-sr: libxl has no configuration for domain %u\n", t->domid);
        rc = -EIO;
        goto out;
    }
    if (config.c_info.type != LIBXL_DOMAIN_TYPE_PVH) {
        fprintf(stderr, "remus-sr: domain %u is of type %s; only PVH guests can be saved\n",
                t->domid, libxl_domain_type_to_string(config.c_info.type));
        rc = -EOPNOTSUPP;
        goto out;
    }
    config.c_info.domid = 0;
    t->memory_kb = config.b_info.target_memkb;
    json = libxl_domain_config_to_json(t->ctx, &config);
    if (!json) {
        rc = -ENOMEM;
        goto out;
    }
    length = (uint32_t)strlen(json) + 1;
    header.optional_bytes = (uint32_t)sizeof(length) + length;
    rc = tool_write(t, &header, sizeof(header));
    if (!rc)
        rc = tool_write(t, &length, sizeof(length));
    if (!rc)
        rc = tool_write(t, json, length);

out:
    free(json);
    libxl_domain_config_dispose(&config);
    return rc;
}

static void print_result(const struct tool *t, const struct xc_sr_save_result *r,
                         const struct xc_sr_cache *cache)
{
    struct xc_sr_cache_stats stats;
    double seconds = (double)r->total_us / 1e6;

    xc_sr_cache_stats(cache, &stats);
    /* The stream may be on stdout. */
    fprintf(t->fd == STDOUT_FILENO ? stderr : stdout,
            "{\"domid\": %u, \"pages\": %" PRIu64 ", \"passes\": %" PRIu64 ", \"seconds\": %.6f, "
            "\"pages_per_second\": %.0f, \"stopped_ms\": %.3f, \"bytes\": %" PRIu64 ", "
            "\"cache_hits\": %" PRIu64 ", \"cache_misses\": %" PRIu64 ", "
            "\"cache_evictions\": %" PRIu64 ", \"cache_mapped_pages\": %" PRIu64 "}\n",
            t->domid, r->pages_sent, r->passes, seconds,
            seconds > 0 ? (double)r->pages_sent / seconds : 0.0, (double)r->suspended_us / 1e3,
            t->bytes, stats.hits, stats.misses, stats.evictions, stats.mapped_pages);
    fflush(NULL);
}

static bool number(const char *text, unsigned long max, unsigned long *value)
{
    char *end;

    errno = 0;
    *value = strtoul(text, &end, 10);
    if (!errno && end != text && !*end && *text != '-' && *value <= max)
        return true;
    fprintf(stderr, "remus-sr: %s is not a number up to %lu\n", text, max);
    return false;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"live", no_argument, NULL, 'l'},
        {"resume", no_argument, NULL, 'r'},
        {"passes", required_argument, NULL, 'p'},
        {"stop-pages", required_argument, NULL, 's'},
        {"cache-pages", required_argument, NULL, 'c'},
        {"repeat", required_argument, NULL, 'k'},
        {"verbose", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct tool t = {.fd = -1};
    struct xc_sr_handles h = {.log = log_sentence, .log_arg = &t};
    struct xc_sr_save_ops ops = {.write = tool_write, .suspend = tool_suspend};
    struct xc_sr_save_params params = {0};
    struct xc_sr_save_result result = {0};
    unsigned long passes = 5, stop_pages = 49, cache_pages = 0, repeat = 1, domid;
    bool live = false, resume = false;
    xentoollog_logger *logger = NULL;
    const char *file;
    int opt, rc = -EINVAL;

    while ((opt = getopt_long(argc, argv, "lrp:s:c:k:vh", options, NULL)) != -1) {
        switch (opt) {
        case 'l':
            live = true;
            break;
        case 'r':
            resume = true;
            break;
        case 'p':
            if (!number(optarg, 1000, &passes))
                return 2;
            break;
        case 's':
            if (!number(optarg, UINT32_MAX, &stop_pages))
                return 2;
            break;
        case 'c':
            if (!number(optarg, UINT32_MAX, &cache_pages))
                return 2;
            break;
        case 'k':
            if (!number(optarg, 1000, &repeat))
                return 2;
            break;
        case 'v':
            t.verbose = true;
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    if (argc - optind != 3 || strcmp(argv[optind], "save") || (repeat > 1 && !resume) ||
        (live && !passes)) {
        fputs(usage, stderr);
        return 2;
    }
    if (!number(argv[optind + 1], DOMID_FIRST_RESERVED - 1, &domid))
        return 2;
    file = argv[optind + 2];
    t.domid = h.domid = (uint32_t)domid;

    logger = (xentoollog_logger *)xtl_createlogger_stdiostream(stderr,
                                                               t.verbose ? XTL_DEBUG : XTL_WARN, 0);
    h.xch = xc_interface_open(logger, logger, 0);
    h.fmem = xenforeignmemory_open(logger, 0);
    if (!h.xch || !h.fmem || libxl_ctx_alloc(&t.ctx, LIBXL_VERSION, 0, logger)) {
        fprintf(stderr, "remus-sr: cannot talk to Xen: %s\n", strerror(errno));
        goto out;
    }
    if (!cache_pages)
        cache_pages = 262144;
    if (xc_sr_cache_new(&params.cache, &h, cache_pages))
        goto out;
    params.max_passes = live ? (unsigned int)passes : 0;
    params.stop_pages = stop_pages;
    if (resume)
        ops.resume = tool_resume;

    for (unsigned long i = 0; i < repeat; i++) {
        t.bytes = 0;
        t.fd = strcmp(file, "-") ? open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)
                                 : STDOUT_FILENO;
        if (t.fd < 0) {
            rc = -errno;
            fprintf(stderr, "remus-sr: cannot write %s: %s\n", file, strerror(errno));
            goto out;
        }
        rc = write_xl_header(&t);
        if (!rc)
            rc = xc_sr_save(&h, &params, &ops, &t, &result);
        if (!rc)
            rc = check_size(&t);
        if (t.fd != STDOUT_FILENO && close(t.fd) && !rc)
            rc = -errno;
        if (rc) {
            fprintf(stderr, "remus-sr: domain %u was not saved: %s\n", t.domid, strerror(-rc));
            /* Suspended by us and kept so by nobody's wish: let it go on. */
            if (!resume && result.suspended_us)
                tool_resume(&t);
            goto out;
        }
        print_result(&t, &result, params.cache);
    }
    if (!resume && libxl_domain_destroy(t.ctx, t.domid, NULL)) {
        fprintf(stderr, "remus-sr: domain %u is saved but could not be destroyed\n", t.domid);
        rc = -EIO;
    }

out:
    xc_sr_cache_free(params.cache);
    if (t.ctx)
        libxl_ctx_free(t.ctx);
    if (h.fmem)
        xenforeignmemory_close(h.fmem);
    if (h.xch)
        xc_interface_close(h.xch);
    if (logger)
        xtl_logger_destroy(logger);
    return rc ? 1 : 0;
}
