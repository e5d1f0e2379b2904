/*
 * save-helper.c: remus-save-helper, a stand-in for libxl's own save helper.
 *
 * With LIBXL_SAVE_HELPER naming this program, `xl restore` reads its stream with
 * xc_sr_restore_libxc, and `xl save` and `xl migrate` write theirs with xc_sr_save_libxc.
 * libxl starts it, with the stream on a file descriptor named on the command line:
 *
 *   --save-domain    STREAM_FD BACK_FD DOMID FLAGS CALLBACKS STREAM_TYPE
 *   --restore-domain STREAM_FD BACK_FD DOMID STORE_PORT STORE_DOMID CONSOLE_PORT CONSOLE_DOMID
 *                    CALLBACKS STREAM_TYPE
 *
 * and hears from it in messages on its stdout: uint16_t length, uint16_t number, arguments, all in
 * the host's byte order; a string is uint32_t bytes and the bytes, NUL included.  Some messages
 * are answered with an int on stdin.  Numbers and arguments are those of Xen 4.17's
 * tools/libs/light/libxl_save_msgs_gen.pl; STREAM_TYPE is 0 for a plain stream, and only that is
 * served.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenguest.h>
#include <xentoollog.h>

#include "tools/libxc/xc_sr_private.h"

enum message {
    MESSAGE_LOG = 1,              /* uint32_t level, uint32_t errno, string, string */
    MESSAGE_PROGRESS = 2,         /* string, string, unsigned long done, unsigned long total */
    MESSAGE_SUSPEND = 3,          /* answered: 1 for success */
    MESSAGE_SWITCH_LOGDIRTY = 7,  /* uint32_t domid, unsigned enable; answered: 0 for success */
    MESSAGE_STATIC_DATA_DONE = 8, /* unsigned missing; answered: 0 for success */
    MESSAGE_RESTORE_RESULTS = 9,  /* uint64_t store gfn, uint64_t console gfn */
    MESSAGE_COMPLETE = 10,        /* int result, int errno; answered, value without meaning */
};
#define CALLBACK(message) (1u << (message)) /* bit in CALLBACKS: libxl wants to be asked */

#define STREAM_PLAIN      0
#define MESSAGE_BYTES_MAX 2048u
#define PROGRAM           "remus-save-helper"

/* The stock saver's rule: five passes, or fewer than fifty pages left. */
#define LIVE_PASSES     5u
#define LIVE_STOP_PAGES 49u
#define CACHE_PAGES     262144u /* 1 GiB of mappings */

static int stream_fd = -1;
static unsigned int callbacks;

/* ---- Messages to libxl ----------------------------------------------------------------------- */

struct message_buffer {
    uint16_t length; /* of what follows */
    uint8_t body[MESSAGE_BYTES_MAX];
} __attribute__((packed));

static void add(struct message_buffer *m, const void *data, size_t length)
{
    /* Every message is bounded by how its strings are cut; running over is our own mistake. */
    if (length > sizeof(m->body) - m->length)
        abort();
    memcpy(m->body + m->length, data, length);
    m->length = (uint16_t)(m->length + length);
}

static void add_number(struct message_buffer *m, uint32_t number)
{
    add(m, &number, sizeof(number));
}

static void add_string(struct message_buffer *m, const char *string)
{
    uint32_t bytes = (uint32_t)strnlen(string, 767) + 1;

    add_number(m, bytes);
    add(m, string, bytes - 1);
    add(m, "", 1);
}

static void begin(struct message_buffer *m, enum message number)
{
    uint16_t value = (uint16_t)number;

    m->length = 0;
    add(m, &value, sizeof(value));
}

/* libxl is our parent: without it there is nobody left to tell, so failure ends the program. */
static void send_message(const struct message_buffer *m)
{
    const uint8_t *at = (const uint8_t *)m;
    size_t left = sizeof(m->length) + m->length;

    while (left) {
        ssize_t done = write(STDOUT_FILENO, at, left);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            _exit(EXIT_FAILURE);
        at += done;
        left -= (size_t)done;
    }
}

static int answer(void)
{
    uint8_t bytes[sizeof(int)];
    size_t have = 0;
    int value;

    while (have < sizeof(bytes)) {
        ssize_t done = read(STDIN_FILENO, bytes + have, sizeof(bytes) - have);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            _exit(EXIT_FAILURE);
        have += (size_t)done;
    }
    memcpy(&value, bytes, sizeof(value));
    return value;
}

static void send_log(xentoollog_level level, int error, const char *text)
{
    struct message_buffer m;

    begin(&m, MESSAGE_LOG);
    add_number(&m, (uint32_t)level);
    add_number(&m, (uint32_t)error);
    add_string(&m, PROGRAM);
    add_string(&m, text);
    send_message(&m);
}

static void send_progress(const char *what, unsigned long done, unsigned long total)
{
    struct message_buffer m;

    begin(&m, MESSAGE_PROGRESS);
    add_string(&m, PROGRAM);
    add_string(&m, what);
    add(&m, &done, sizeof(done));
    add(&m, &total, sizeof(total));
    send_message(&m);
}

static void log_sentence(void *arg, enum xc_sr_level level, const char *text)
{
    static const xentoollog_level levels[] = {
        [XC_SR_DEBUG] = XTL_DEBUG,
        [XC_SR_INFO] = XTL_DETAIL,
        [XC_SR_WARN] = XTL_WARN,
        [XC_SR_ERROR] = XTL_ERROR,
    };

    (void)arg;
    send_log(levels[level], -1, text);
}

/* What libxc itself has to say goes the same way: stdout is not for text. */
__attribute__((format(printf, 5, 0))) static void libxc_log(xentoollog_logger *logger,
                                                            xentoollog_level level, int error,
                                                            const char *context, const char *format,
                                                            va_list args)
{
    char text[512];

    (void)logger;
    (void)context;
    vsnprintf(text, sizeof(text), format, args);
    send_log(level, error, text);
}

static void libxc_progress(xentoollog_logger *logger, const char *context, const char *what,
                           int percent, unsigned long done, unsigned long total)
{
    (void)logger;
    (void)context;
    (void)percent;
    send_progress(what, done, total);
}

static void libxc_log_end(xentoollog_logger *logger)
{
    (void)logger;
}

static xentoollog_logger logger = {
    .vmessage = libxc_log,
    .progress = libxc_progress,
    .destroy = libxc_log_end,
};

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    send_log(XTL_ERROR, -1, text);
    exit(EXIT_FAILURE);
}

/* ---- The stream ------------------------------------------------------------------------------ */

/*
 * libxl ends a save by SIGTERM, and the guest has to be put right on the way out, so the signal
 * may not end the program: it takes the stream away instead.  A blocked write is interrupted by
 * it, and every later one fails because the descriptor is open for reading only.
 */
static int unwritable_fd = -1;

static void on_sigterm(int number)
{
    int saved = errno;

    (void)number;
    if (dup2(unwritable_fd, stream_fd) < 0)
        _exit(EXIT_FAILURE);
    errno = saved;
}

static int catch_sigterm(void)
{
    struct sigaction action = {.sa_handler = on_sigterm};
    sigset_t set;

    unwritable_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (unwritable_fd < 0)
        return -errno;
    sigemptyset(&action.sa_mask);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    if (sigaction(SIGTERM, &action, NULL) || sigprocmask(SIG_UNBLOCK, &set, NULL))
        return -errno;
    return 0;
}

static int stream_write(void *arg, const void *data, size_t length)
{
    const uint8_t *at = data;

    (void)arg;
    while (length) {
        ssize_t done = write(stream_fd, at, length);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        at += done;
        length -= (size_t)done;
    }
    return 0;
}

static int stream_read(void *arg, void *data, size_t length)
{
    uint8_t *at = data;

    (void)arg;
    while (length) {
        ssize_t done = read(stream_fd, at, length);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        if (!done)
            return -EPIPE;
        at += done;
        length -= (size_t)done;
    }
    return 0;
}

/* ---- Save ------------------------------------------------------------------------------------ */

static int save_suspend(void *arg)
{
    struct message_buffer m;

    (void)arg;
    begin(&m, MESSAGE_SUSPEND);
    send_message(&m);
    return answer() == 1 ? 0 : -EIO;
}

static void save_progress(void *arg, const struct xc_sr_progress *p)
{
    char what[64];

    (void)arg;
    snprintf(what, sizeof(what), "Memory pass %u%s", p->pass, p->stopped ? " (stopped)" : "");
    send_progress(what, (unsigned long)p->pages_done, (unsigned long)p->pages_total);
}

/* A device model has to say which pages it writes, too.  For PVH guests libxl answers at once. */
static int switch_logdirty(uint32_t domid, unsigned int enable)
{
    struct message_buffer m;

    if (!(callbacks & CALLBACK(MESSAGE_SWITCH_LOGDIRTY)))
        return 0;
    begin(&m, MESSAGE_SWITCH_LOGDIRTY);
    add_number(&m, domid);
    add_number(&m, enable);
    send_message(&m);
    return answer() == 0 ? 0 : -EIO;
}

static int save(const struct xc_sr_handles *h, unsigned int flags)
{
    static const struct xc_sr_save_ops ops = {
        .write = stream_write,
        .suspend = save_suspend,
        .progress = save_progress,
    };
    bool live = flags & XCFLAGS_LIVE;
    struct xc_sr_save_params params = {
        .max_passes = live ? LIVE_PASSES : 0,
        .stop_pages = LIVE_STOP_PAGES,
    };
    struct xc_sr_save_result result;
    int rc, off;

    if (!(callbacks & CALLBACK(MESSAGE_SUSPEND)))
        fail("libxl offers no way to suspend domain %u", h->domid);
    rc = catch_sigterm();
    if (rc)
        return rc;
    rc = xc_sr_cache_new(&params.cache, h, CACHE_PAGES);
    if (rc)
        return rc;
    rc = switch_logdirty(h->domid, 1);
    if (!rc) {
        rc = xc_sr_save_libxc(h, &params, &ops, NULL, &result);
        off = switch_logdirty(h->domid, 0);
        if (!rc)
            rc = off;
    }
    if (!rc)
        xc_sr_log(h, XC_SR_INFO, "saved domain %u: %lu pages in %lu passes, %lu ms", h->domid,
                  (unsigned long)result.pages_sent, (unsigned long)result.passes,
                  (unsigned long)(result.total_us / 1000));
    xc_sr_cache_free(params.cache);
    return rc;
}

/* ---- Restore --------------------------------------------------------------------------------- */

static int static_data_done(void *arg, unsigned int missing)
{
    struct message_buffer m;

    (void)arg;
    if (!(callbacks & CALLBACK(MESSAGE_STATIC_DATA_DONE)))
        return missing ? -EBADMSG : 0;
    begin(&m, MESSAGE_STATIC_DATA_DONE);
    add_number(&m, missing);
    send_message(&m);
    return answer() == 0 ? 0 : -EIO;
}

static void restore_progress(void *arg, const struct xc_sr_progress *p)
{
    (void)arg;
    send_progress("Memory", (unsigned long)p->pages_done, (unsigned long)p->pages_done);
}

static int restore(const struct xc_sr_handles *h, const struct xc_sr_restore_params *params)
{
    static const struct xc_sr_restore_ops ops = {
        .read = stream_read,
        .progress = restore_progress,
        .static_data_done = static_data_done,
    };
    struct xc_sr_restore_result result = {0};
    struct message_buffer m;
    int rc;

    rc = xc_sr_restore_libxc(h, params, &ops, NULL, &result);
    if (!rc)
        xc_sr_log(h, XC_SR_INFO, "restored domain %u: %lu pages", h->domid,
                  (unsigned long)result.pages_read);
    begin(&m, MESSAGE_RESTORE_RESULTS);
    add(&m, &result.store_gfn, sizeof(result.store_gfn));
    add(&m, &result.console_gfn, sizeof(result.console_gfn));
    send_message(&m);
    return rc;
}

/* ---- Command line ---------------------------------------------------------------------------- */

static uint32_t number(const char *text, const char *what)
{
    unsigned long value;
    char *end;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno || end == text || *end || value > UINT32_MAX || *text == '-')
        fail("%s is not a number: %s", what, text);
    return (uint32_t)value;
}

int main(int argc, char **argv)
{
    struct xc_sr_handles h = {.log = log_sentence};
    struct xc_sr_restore_params params = {0};
    bool saving = argc == 8 && !strcmp(argv[1], "--save-domain");
    bool restoring = argc == 11 && !strcmp(argv[1], "--restore-domain");
    uint32_t flags = 0, stream_type;
    struct message_buffer m;
    int rc;

    if (!saving && !restoring) {
        fprintf(stderr,
                PROGRAM ": started by libxl with LIBXL_SAVE_HELPER=" PROGRAM ", not by hand\n");
        return EXIT_FAILURE;
    }
    stream_fd = (int)number(argv[2], "the stream's descriptor");
    h.domid = number(argv[4], "the domain");
    if (saving) {
        flags = number(argv[5], "the flags");
        callbacks = number(argv[6], "the callbacks");
        stream_type = number(argv[7], "the type of stream");
    } else {
        params.store_port = number(argv[5], "the event channel of xenstore");
        params.store_domid = number(argv[6], "the domain of xenstore");
        params.console_port = number(argv[7], "the event channel of the console");
        params.console_domid = number(argv[8], "the domain of the console");
        callbacks = number(argv[9], "the callbacks");
        stream_type = number(argv[10], "the type of stream");
    }
    if (stream_type != STREAM_PLAIN)
        fail("checkpointed streams (type %u) are not for " PROGRAM
             "; use the distribution's helper, or `xl remus` of this project",
             stream_type);

    h.xch = xc_interface_open(&logger, &logger, 0);
    h.fmem = h.xch ? xenforeignmemory_open(&logger, 0) : NULL;
    if (!h.fmem)
        fail("cannot talk to Xen: %s", strerror(errno));
    rc = saving ? save(&h, flags) : restore(&h, &params);
    begin(&m, MESSAGE_COMPLETE);
    add_number(&m, rc ? (uint32_t)-1 : 0);
    add_number(&m, rc ? (uint32_t)-rc : 0);
    send_message(&m);
    answer();
    xenforeignmemory_close(h.fmem);
    xc_interface_close(h.xch);
    return EXIT_SUCCESS;
}
