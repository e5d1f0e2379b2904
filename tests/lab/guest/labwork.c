/* labwork.c: see labwork.h. */
#define _GNU_SOURCE
#include "labwork.h"

#include "labproto.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BYTES 4096
#define PAGES_DEFAULT 4096
#define PAGES_MAX 16384

static pthread_t thread;
static bool running;
static atomic_bool stop;
static atomic_ullong pages_done;
static unsigned int rounds, area_pages;
static uint8_t *area;

static void *work(void *arg)
{
    (void)arg;
    for (size_t next = 0; !stop; next = (next + 1) % area_pages) {
        uint8_t *page = area + next * PAGE_BYTES;
        uint64_t sum = LAB_SUM_START;

        for (unsigned int i = 0; i < rounds; i++)
            sum = lab_sum(sum, page, PAGE_BYTES);
        for (size_t i = 0; i < PAGE_BYTES; i += sizeof(sum), sum++)
            memcpy(page + i, &sum, sizeof(sum));
        pages_done++;
    }
    return NULL;
}

static bool start(void)
{
    if (!rounds)
        return true;
    area = calloc(area_pages, PAGE_BYTES);
    if (!area || pthread_create(&thread, NULL, work, NULL)) {
        free(area);
        return false;
    }
    running = true;
    return true;
}

static void end(void)
{
    if (!running)
        return;
    stop = true;
    pthread_join(thread, NULL);
    stop = running = false;
    free(area);
}

bool labwork_command(const char *line, char *answer, size_t size)
{
    unsigned int new_rounds, new_pages = PAGES_DEFAULT;

    if (!strcmp(line, "progress")) {
        snprintf(answer, size, "%llu\n", (unsigned long long)pages_done);
        return true;
    }
    if (sscanf(line, "work %u %u", &new_rounds, &new_pages) < 1)
        return false;
    if (!new_pages || new_pages > PAGES_MAX) {
        snprintf(answer, size, "error\n");
        return true;
    }
    end();
    rounds = new_rounds;
    area_pages = new_pages;
    snprintf(answer, size, start() ? "ok\n" : "error\n");
    return true;
}
