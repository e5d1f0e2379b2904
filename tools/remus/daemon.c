/* daemon.c: see daemon.h. */
#include "tools/remus/daemon.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PORTS_MAX 64u               /* of one call */
#define LINES_MAX 20u               /* in one second, where a guest or a peer can cause them */

static const char *const level_names[] = { "error", "warning", "info", "debug" };
static enum daemon_level level_now = DAEMON_INFO;
static const char *program = "";

static volatile sig_atomic_t terminated;

static void on_signal(int number)
{
    terminated = number;
}

void daemon_start(const char *name)
{
    struct sigaction action;

    program = name;
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_signal;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
}

bool daemon_terminated(void)
{
    bool was = terminated != 0;

    terminated = 0;
    return was;
}

int daemon_events(int fd)
{
    uint32_t ports[PORTS_MAX];      /* evtchn_port_t: linux/evtchn.h */
    ssize_t r = read(fd, ports, sizeof(ports)), w;

    if (r <= 0) {
        return 0;                   /* another round has taken them */
    }
    w = write(fd, ports, (size_t)r);
    return w == r ? 0 : w < 0 ? -errno : -EIO;
}

void daemon_say(enum daemon_level level, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    int n;

    if (level > level_now) {
        return;
    }
    n = snprintf(line, sizeof(line), "%s: %s: ", program, level_names[level]);
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s\n", line);
}

bool daemon_may_say(uint32_t domid, uint64_t now_us)
{
    static uint64_t second, lines;

    if (now_us / 1000000 != second) {
        if (lines > LINES_MAX) {
            daemon_say(DAEMON_WARNING, "domain %u: %" PRIu64 " more messages", domid,
                       lines - LINES_MAX);
        }
        second = now_us / 1000000;
        lines = 0;
    }
    return lines++ < LINES_MAX;
}

uint64_t daemon_clock_us(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

int daemon_parse_number(const char *text, uint32_t max, uint32_t *out)
{
    unsigned long value;
    char *end;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno || end == text || *end || *text == '-' || value > max) {
        return -EINVAL;
    }
    *out = (uint32_t)value;
    return 0;
}

int daemon_parse_level(const char *text)
{
    uint32_t i;

    for (i = 0; i <= DAEMON_DEBUG; i++) {
        if (!strcmp(text, level_names[i])) {
            level_now = (enum daemon_level)i;
            return 0;
        }
    }
    return -EINVAL;
}
