/*
 * guest-helper.c: remus-guest, what a coordinator needs of libxenlight, as commands.
 *
 * libxenlight blocks for seconds, reaps children and keeps its own event machinery; a coordinator
 * must answer heartbeats meanwhile.  So each of these runs as a process of its own:
 *
 *   remus-guest config DOMID                 configuration as JSON on stdout
 *   remus-guest restore NAME DOMID SCRIPT    JSON on stdin, migration stream on descriptor 3;
 *                                            builds it paused and prints the new domain id
 *   remus-guest adopt DOMID NAME             JSON on stdin: a copy gets its guest's name and
 *                                            configuration
 *   remus-guest destroy DOMID
 *   remus-guest end DOMID REASON             JSON on stdin: what the guest's on_poweroff,
 *   on_reboot,
 *                                            on_crash say for this shutdown reason; prints "gone",
 *                                            "kept" or the id of the domain that replaces it
 *
 * Exit status 0, or 1 with a sentence on stderr.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* xenctrl.h comes before any other header of Xen. */
#include "tools/libxl/remus_disk.h"

#include <libxl.h>
#include <libxl_utils.h>
#include <xen/sched.h>
#include <xenstore.h>

#include "tools/libxl/remus_config.h"

#define STREAM_FD 3
#define CONFIG_BYTES_MAX (1u << 20)

static libxl_ctx *ctx;

static int fail(const char *what, const char *which, int rc)
{
    fprintf(stderr, "remus-guest: cannot %s %s (libxl error %d)\n", what, which, rc);
    return 1;
}

static int parse_domid(const char *text, uint32_t *domid)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end || n == 0 || n >= DOMID_FIRST_RESERVED) {
        fprintf(stderr, "remus-guest: '%s' is not a domain id\n", text);
        return -1;
    }
    *domid = (uint32_t)n;
    return 0;
}

/* All of stdin, ended by a NUL; NULL with a message. */
static char *read_stdin(void)
{
    char *text = malloc(CONFIG_BYTES_MAX + 1);
    size_t at = 0;

    if (!text)
        return NULL;
    while (at < CONFIG_BYTES_MAX) {
        ssize_t n = read(STDIN_FILENO, text + at, CONFIG_BYTES_MAX - at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            text[at] = 0;
            return text;
        }
        at += (size_t)n;
    }
    fprintf(stderr, "remus-guest: configuration larger than %u bytes\n", CONFIG_BYTES_MAX);
    free(text);
    return NULL;
}

static int read_config(libxl_domain_config *config)
{
    char *json = read_stdin();
    int rc = ERROR_FAIL;

    if (json) {
        rc = libxl_domain_config_from_json(ctx, config, json);
        if (rc)
            fail("parse the configuration of", "the guest", rc);
    }
    free(json);
    return rc;
}

static int cmd_config(uint32_t domid)
{
    libxl_domain_config config;
    char *json = NULL;
    int rc;

    libxl_domain_config_init(&config);
    rc = remus_config_read(ctx, domid, &config);
    if (!rc) {
        json = libxl_domain_config_to_json(ctx, &config);
        if (json)
            fputs(json, stdout);
        else
            rc = ERROR_NOMEM;
    }
    free(json);
    libxl_domain_config_dispose(&config);
    return rc ? fail("read the configuration of", "the guest", rc) : 0;
}

static int cmd_restore(const char *name, uint32_t same_domid, const char *script)
{
    libxl_domain_restore_params params;
    libxl_domain_config config;
    libxl_dominfo info;
    uint32_t domid = INVALID_DOMID;
    int rc, i;

    libxl_domain_config_init(&config);
    libxl_domain_restore_params_init(&params);
    libxl_dominfo_init(&info);
    rc = read_config(&config);
    if (rc)
        goto out;
    free(config.c_info.name);
    config.c_info.name = strdup(name);
    /*
     * The same id as on the primary, if it is free: the guest's memory holds backend paths with it.
     * Another one works, because a frontend looks at those paths only when it connects.
     */
    if (libxl_domain_info(ctx, &info, same_domid)) {
        config.c_info.domid = same_domid;
        /* libxl keeps an id unused for a minute after its domain, which an earlier copy was. */
        setenv("LIBXL_DOMID_REUSE_TIMEOUT", "0", 1);
    }
    for (i = 0; i < config.num_nics; i++) {
        /* No bridge before failover: this script plugs the device into nothing. */
        free(config.nics[i].script);
        config.nics[i].script = strdup(script);
    }
    params.stream_version = 2;
    rc = libxl_domain_create_restore(ctx, &config, &domid, STREAM_FD, -1, &params, NULL, NULL);
    if (!rc) {
        printf("%u\n", domid);
    } else {
        fail("build", name, rc);
        if (domid != (uint32_t)INVALID_DOMID)
            libxl_domain_destroy(ctx, domid, NULL);
    }
out:
    libxl_dominfo_dispose(&info);
    libxl_domain_restore_params_dispose(&params);
    libxl_domain_config_dispose(&config);
    return rc ? 1 : 0;
}

/*
 * A vif whose backend is colo-shadowd has no kernel driver that would close it; libxl would wait
 * ten seconds for that.
 */
static void close_backends(uint32_t domid)
{
    struct xs_handle *xs = xs_open(0);
    unsigned int n, i;
    char path[128], **names;

    if (!xs)
        return;
    snprintf(path, sizeof(path), "/local/domain/0/backend/vif/%u", domid);
    names = xs_directory(xs, XBT_NULL, path, &n);
    for (i = 0; names && i < n; i++) {
        snprintf(path, sizeof(path), "/sys/bus/xen-backend/drivers/vif/vif-%u-%.16s", domid,
                 names[i]);
        if (!access(path, F_OK))
            continue;
        snprintf(path, sizeof(path), "/local/domain/0/backend/vif/%u/%.16s/state", domid,
                 names[i]);
        xs_write(xs, XBT_NULL, path, "6", 1);
    }
    free(names);
    remus_disks_close(xs, domid);
    xs_close(xs);
}

static int cmd_destroy(uint32_t domid)
{
    int rc;

    close_backends(domid);
    rc = libxl_domain_destroy(ctx, domid, NULL);
    return rc ? fail("destroy", "the domain", rc) : 0;
}

/*
 * A copy was built with scripts of ours; who reads its configuration later (the next session, to
 * build a copy of it) needs the guest's own.
 */
static int cmd_adopt(uint32_t domid, const char *name)
{
    char *json = read_stdin();
    int rc;

    if (!json)
        return 1;
    rc = libxl_domain_rename(ctx, domid, NULL, name);
    if (rc) {
        fail("rename the domain to", name, rc);
    } else {
        rc = libxl_userdata_store(ctx, domid, "libxl-json", (const uint8_t *)json,
                                  (int)strlen(json) + 1);
        if (rc)
            fail("store the configuration of", name, rc);
    }
    free(json);
    return rc ? 1 : 0;
}

static int cmd_end(uint32_t domid, const char *reason_text)
{
    libxl_action_on_shutdown action = LIBXL_ACTION_ON_SHUTDOWN_DESTROY;
    libxl_domain_config config;
    uint32_t replacement = INVALID_DOMID;
    int rc;

    libxl_domain_config_init(&config);
    rc = read_config(&config);
    if (rc)
        goto out;
    switch (strtoul(reason_text, NULL, 10)) {
    case SHUTDOWN_poweroff: action = config.on_poweroff; break;
    case SHUTDOWN_reboot: action = config.on_reboot; break;
    case SHUTDOWN_crash: action = config.on_crash; break;
    case SHUTDOWN_watchdog: action = config.on_watchdog; break;
    case SHUTDOWN_soft_reset: action = LIBXL_ACTION_ON_SHUTDOWN_RESTART; break;
    default: break;
    }
    switch (action) {
    case LIBXL_ACTION_ON_SHUTDOWN_PRESERVE:
        printf("kept\n");
        break;
    case LIBXL_ACTION_ON_SHUTDOWN_RESTART:
    case LIBXL_ACTION_ON_SHUTDOWN_RESTART_RENAME:
    case LIBXL_ACTION_ON_SHUTDOWN_COREDUMP_RESTART:
    case LIBXL_ACTION_ON_SHUTDOWN_SOFT_RESET:
        close_backends(domid);
        rc = libxl_domain_destroy(ctx, domid, NULL);
        if (!rc)
            rc = libxl_domain_create_new(ctx, &config, &replacement, NULL, NULL);
        if (!rc)
            rc = libxl_domain_unpause(ctx, replacement, NULL);
        if (rc)
            fail("restart", config.c_info.name, rc);
        else
            printf("%u\n", replacement);
        break;
    default:
        close_backends(domid);
        rc = libxl_domain_destroy(ctx, domid, NULL);
        if (rc)
            fail("destroy", config.c_info.name, rc);
        else
            printf("gone\n");
        break;
    }
out:
    libxl_domain_config_dispose(&config);
    return rc ? 1 : 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: remus-guest config DOMID | restore NAME DOMID SCRIPT | "
            "adopt DOMID NAME | destroy DOMID | end DOMID REASON\n"
            "This is a part of xl remus, not meant to be called by hand.\n");
    return 2;
}

int main(int argc, char **argv)
{
    xentoollog_logger_stdiostream *logger;
    uint32_t domid = 0;
    int rc;

    if (argc < 3)
        return usage();
    logger = xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
    if (!logger || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, (xentoollog_logger *)logger)) {
        fprintf(stderr, "remus-guest: cannot open libxenlight; is this dom0?\n");
        return 1;
    }
    if (!strcmp(argv[1], "restore")) {
        rc = argc != 5 ? usage() : parse_domid(argv[3], &domid) ? 2
            : cmd_restore(argv[2], domid, argv[4]);
    } else if (parse_domid(argv[2], &domid)) {
        rc = 2;
    } else if (!strcmp(argv[1], "config") && argc == 3) {
        rc = cmd_config(domid);
    } else if (!strcmp(argv[1], "destroy") && argc == 3) {
        rc = cmd_destroy(domid);
    } else if (!strcmp(argv[1], "adopt") && argc == 4) {
        rc = cmd_adopt(domid, argv[3]);
    } else if (!strcmp(argv[1], "end") && argc == 4) {
        rc = cmd_end(domid, argv[3]);
    } else {
        rc = usage();
    }
    libxl_ctx_free(ctx);
    xtl_logger_destroy((xentoollog_logger *)logger);
    return fflush(stdout) ? 1 : rc;
}
