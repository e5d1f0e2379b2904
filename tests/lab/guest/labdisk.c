/* labdisk.c: see labdisk.h. */
#define _GNU_SOURCE
#include "labdisk.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define WORKERS_MAX   16u
#define SECTOR        512u
#define SECTORS_MAX   256u          /* of one request: several segments, or indirect ones */
#define REGION_MAX    16384u        /* sectors of a worker */
#define FLUSH_EVERY   64u
#define ALIGNMENT     4096

struct worker {
    pthread_t thread;
    uint64_t first, sectors;        /* its part of the disk */
    uint64_t random;
    uint32_t *version;              /* of each sector, as written last; 0: not yet */
    uint8_t *buffer;
    int fd;
};

static struct worker workers[WORKERS_MAX];
static unsigned int running;
static atomic_bool stop;
static atomic_ullong writes, reads, flushes, errors, wrong, longest_ms;

static uint64_t next_random(struct worker *w)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return w->random;
}

/* What version v of a sector looks like: each of its words tells both. */
static void fill(uint8_t *at, uint64_t sector, uint32_t version)
{
    for (uint32_t i = 0; i < SECTOR / 8; i++) {
        uint64_t word = (sector << 24 | (version & 0xffff) << 8 | i) * 0x9e3779b97f4a7c15ULL;

        memcpy(at + i * 8, &word, 8);
    }
}

static uint64_t clock_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void count_longest(uint64_t began_ms)
{
    unsigned long long ms = clock_ms() - began_ms, most = longest_ms;

    while (ms > most && !atomic_compare_exchange_weak(&longest_ms, &most, ms)) {
    }
}

static void write_some(struct worker *w, uint64_t at, uint32_t count)
{
    uint64_t began = clock_ms();

    for (uint32_t i = 0; i < count; i++)
        fill(w->buffer + i * SECTOR, w->first + at + i, w->version[at + i] + 1);
    if (pwrite(w->fd, w->buffer, count * SECTOR, (off_t)((w->first + at) * SECTOR)) !=
        (ssize_t)(count * SECTOR)) {
        errors++;
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        w->version[at + i]++;
    count_longest(began);
    writes++;
}

static void read_some(struct worker *w, uint64_t at, uint32_t count)
{
    uint8_t expected[SECTOR];
    uint64_t began = clock_ms();

    memset(w->buffer, 0xee, count * SECTOR);
    if (pread(w->fd, w->buffer, count * SECTOR, (off_t)((w->first + at) * SECTOR)) !=
        (ssize_t)(count * SECTOR)) {
        errors++;
        return;
    }
    count_longest(began);
    reads++;
    for (uint32_t i = 0; i < count; i++) {
        if (!w->version[at + i])
            continue;
        fill(expected, w->first + at + i, w->version[at + i]);
        if (memcmp(expected, w->buffer + i * SECTOR, SECTOR))
            wrong++;
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;

    for (uint64_t n = 1; !stop; n++) {
        uint32_t count = (uint32_t)(next_random(w) % (n % 8 ? 16 : SECTORS_MAX)) + 1;
        uint64_t at = next_random(w) % (w->sectors - count + 1);

        if (next_random(w) & 1)
            write_some(w, at, count);
        else
            read_some(w, at, count);
        if (n % FLUSH_EVERY == 0) {
            if (fdatasync(w->fd))
                errors++;
            flushes++;
        }
    }
    close(w->fd);
    return NULL;
}

static void stop_workers(void)
{
    stop = true;
    while (running)
        pthread_join(workers[--running].thread, NULL);
    stop = false;
}

static bool start_workers(unsigned int count)
{
    uint64_t bytes = 0, share;

    for (unsigned int i = 0; i < count; i++) {
        struct worker *w = &workers[i];

        w->fd = open("/dev/xvda", O_RDWR | O_DIRECT | O_CLOEXEC);
        if (w->fd < 0 || ioctl(w->fd, BLKGETSIZE64, &bytes))
            return false;
        share = bytes / SECTOR / count;
        w->sectors = share > REGION_MAX ? REGION_MAX : share;
        if (w->sectors < SECTORS_MAX)
            return false;
        w->first = i * share;
        w->random = 88172645463325252ULL + i;
        /* What is known of a part is kept: later workers find it as these leave it. */
        if (!w->version)
            w->version = calloc(REGION_MAX, sizeof(*w->version));
        if (!w->buffer &&
            posix_memalign((void **)&w->buffer, ALIGNMENT, (size_t)SECTORS_MAX * SECTOR))
            return false;
        if (!w->version || pthread_create(&w->thread, NULL, work, w))
            return false;
        running++;
    }
    return true;
}

void labdisk_command(const char *line, char *answer, size_t size)
{
    static unsigned int layout;     /* workers that the disk was divided among */
    unsigned int count;

    if (!strcmp(line, "stats")) {
        snprintf(answer, size, "%llu %llu %llu %llu %llu %llu\n", (unsigned long long)writes,
                 (unsigned long long)reads, (unsigned long long)flushes,
                 (unsigned long long)errors, (unsigned long long)wrong,
                 (unsigned long long)longest_ms);
        longest_ms = 0;
        return;
    }
    if (sscanf(line, "disk %u", &count) != 1 || count > WORKERS_MAX ||
        (count && layout && count != layout)) {
        snprintf(answer, size, "error\n");
        return;
    }
    stop_workers();
    if (count)
        layout = count;
    snprintf(answer, size, start_workers(count) ? "ok\n" : "error\n");
}
