/*
 * Measures from outside how long a domain is stopped: asks the hypervisor twice a millisecond and
 * notes each interval in which the domain was suspended or paused. Runs in dom0.
 *
 *   sampler [-s SECONDS] [-i MICROSECONDS] [-v] DOMID
 *
 * Ends after SECONDS, on SIGTERM or SIGINT, or when the domain is gone, and prints one JSON object.
 * An interval that has not ended by then is not among the figures; "stopped_at_end_ms" tells it.
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <xenctrl.h>

#define INTERVALS_MAX 200000

static volatile sig_atomic_t stop_requested;
static double intervals_ms[INTERVALS_MAX];
static double sorted_ms[INTERVALS_MAX];

static void request_stop(int number)
{
    (void)number;
    stop_requested = 1;
}

static double now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void usage(void)
{
    fprintf(stderr, "usage: sampler [-s SECONDS] [-i MICROSECONDS] [-v] DOMID\n");
    exit(2);
}

int main(int argc, char **argv)
{
    struct sched_param high = { .sched_priority = 10 };
    struct sigaction action = { .sa_handler = request_stop };
    double seconds = 0, start, last_sample, stopped_since = 0, longest_gap_ms = 0, total_ms = 0;
    unsigned long period_us = 500, suspended = 0, paused = 0, samples = 0;
    bool gone = false, verbose = false, stopped = false;
    size_t count = 0, dropped = 0;
    xc_interface *xch;
    uint32_t domid;
    char *end;
    int opt;

    while ((opt = getopt(argc, argv, "s:i:v")) != -1) {
        switch (opt) {
        case 's':
            seconds = strtod(optarg, NULL);
            break;
        case 'i':
            period_us = strtoul(optarg, NULL, 10);
            break;
        case 'v':
            verbose = true;
            break;
        default:
            usage();
        }
    }
    if (optind + 1 != argc || !period_us)
        usage();
    domid = (uint32_t)strtoul(argv[optind], &end, 10);
    if (!argv[optind][0] || *end)
        usage();

    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sched_setscheduler(0, SCHED_FIFO, &high); /* without it the figures are only less exact */
    xch = xc_interface_open(NULL, NULL, 0);
    if (!xch) {
        fprintf(stderr, "sampler: cannot open the hypervisor interface: %s\n", strerror(errno));
        return 1;
    }

    start = last_sample = now_ms();
    while (!stop_requested && (!seconds || now_ms() - start < seconds * 1e3)) {
        struct timespec period = { .tv_sec = (time_t)(period_us / 1000000),
                                   .tv_nsec = (long)(period_us % 1000000) * 1000 };
        xc_dominfo_t info;
        bool now_stopped;
        double now;

        if (xc_domain_getinfo(xch, domid, 1, &info) != 1 || info.domid != domid || info.dying) {
            gone = true;
            break;
        }
        now = now_ms();
        if (now - last_sample > longest_gap_ms)
            longest_gap_ms = now - last_sample;
        last_sample = now;
        samples++;
        now_stopped = info.shutdown || info.paused;
        if (now_stopped && !stopped) {
            stopped_since = now;
            if (info.shutdown)
                suspended++;
            else
                paused++;
        } else if (!now_stopped && stopped) {
            total_ms += now - stopped_since;
            if (count < INTERVALS_MAX)
                intervals_ms[count++] = now - stopped_since;
            else
                dropped++;
        }
        stopped = now_stopped;
        nanosleep(&period, NULL);
    }

    memcpy(sorted_ms, intervals_ms, count * sizeof(sorted_ms[0]));
    qsort(sorted_ms, count, sizeof(sorted_ms[0]), by_value);
    printf("{\"domid\": %" PRIu32 ", \"seconds\": %.3f, \"samples\": %lu, "
           "\"longest_sample_gap_ms\": %.3f, \"gone\": %s, \"stopped_at_end_ms\": %.3f, "
           "\"suspends\": %lu, \"pauses\": %lu, \"dropped\": %zu, \"total_ms\": %.3f, "
           "\"count\": %zu",
           domid, (now_ms() - start) / 1e3, samples, longest_gap_ms, gone ? "true" : "false",
           stopped ? now_ms() - stopped_since : 0.0, suspended, paused, dropped, total_ms, count);
    if (count)
        printf(", \"min\": %.3f, \"median\": %.3f, \"p90\": %.3f, \"max\": %.3f", sorted_ms[0],
               sorted_ms[count / 2], sorted_ms[count * 9 / 10], sorted_ms[count - 1]);
    if (verbose) {
        printf(", \"intervals_ms\": [");
        for (size_t i = 0; i < count; i++)
            printf("%s%.3f", i ? ", " : "", intervals_ms[i]);
        printf("]");
    }
    printf("}\n");
    xc_interface_close(xch);
    return 0;
}
