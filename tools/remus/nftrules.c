/* nftrules.c: see nftrules.h. */
#define _GNU_SOURCE 1

#include "tools/remus/nftrules.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <nftables/libnftables.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "tools/remus/nftguard.h"
#include "tools/remus/nftlease.h"

#define NFT_LOCK        "/run/remus-nft.lock"
#define NFT_TABLE       "bridge remus"
#define NFT_VIFS_MAX    4096u
#define NFT_QUEUE_BASE  1024u    /* lower numbers are left to the host's own rules */
#define NFT_SCRIPT_MAX  (4096u + REMUS_BYPASS_MAX * 2 * (2 * REMUS_BYPASS_TEXT_MAX + 144u))

/*
 * Output is caught before any other rule sees it, so that the comparison knows all that the guest
 * sent; input after all others, so that the copy gets exactly what the guest gets.
 *
 * The lease stands behind the queue: a frame that was given its verdict goes on there, so that what
 * counts is the time when it leaves, not when somebody decided.  The kernel ends an element by
 * itself; nobody has to be awake for that.
 */
static const char nft_create[] =
    "create table " NFT_TABLE "\n"
    "add map " NFT_TABLE " output { type ifname : verdict; }\n"
    "add map " NFT_TABLE " input { type ifname : verdict; }\n"
    "add map " NFT_TABLE " until { type ifname : verdict; }\n"
    "add set " NFT_TABLE " fenced { type ifname; }\n"
    "add set " NFT_TABLE " leased { type ifname; }\n"
    "add set " NFT_TABLE " " REMUS_NFT_LEASE_SET " { type ifname; flags timeout; }\n"
    "add chain " NFT_TABLE " output { type filter hook prerouting priority -350; policy accept; }\n"
    "add chain " NFT_TABLE " leases { type filter hook prerouting priority -349; policy accept; }\n"
    "add chain " NFT_TABLE " input { type filter hook postrouting priority 350; policy accept; }\n"
    "add rule " NFT_TABLE " output iifname @fenced counter drop\n"
    "add rule " NFT_TABLE " output iifname vmap @output\n"
    "add rule " NFT_TABLE " leases iifname @leased iifname != @" REMUS_NFT_LEASE_SET
    " counter drop\n"
    "add rule " NFT_TABLE " leases iifname vmap @until\n"
    /* colo-proxyd, while it lives, passes what a fenced guest would get on to the copy. */
    "add rule " NFT_TABLE " input oifname vmap @input\n"
    "add rule " NFT_TABLE " input oifname @fenced counter drop\n";

static const char *const nft_sides[2] = { "output", "input" };

/* One locked session with nftables. */
struct nft {
    int lock_fd;
    struct nft_ctx *ctx;
    bool table;                  /* it exists */
    struct remus_nft_vif *vifs;
    size_t count;
    char *error;
    size_t error_bytes;
};

static int nft_fail(struct nft *n, int rc, const char *what, const char *detail)
{
    snprintf(n->error, n->error_bytes, "packet filter: %s: %s", what,
             detail && *detail ? detail : strerror(-rc));
    n->error[strcspn(n->error, "\n")] = '\0';
    return rc;
}

/* A name goes into a script: only what the toolstack uses, nothing that nftables could read as
 * more. */
static bool nft_name_ok(const char *name)
{
    size_t i;

    for (i = 0; name[i]; i++) {
        if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i])) {
            return false;
        }
    }
    return i > 0 && i < REMUS_NFT_VIF_BYTES;
}

static int nft_run(struct nft *n, const char *script, const char *what)
{
    if (nft_run_cmd_from_buffer(n->ctx, script)) {
        return nft_fail(n, -EIO, what, nft_ctx_get_error_buffer(n->ctx));
    }
    return 0;
}

static struct remus_nft_vif *nft_find(struct nft *n, const char *name)
{
    size_t i;

    for (i = 0; i < n->count; i++) {
        if (strcmp(n->vifs[i].name, name) == 0) {
            return &n->vifs[i];
        }
    }
    return NULL;
}

static struct remus_nft_vif *nft_find_or_add(struct nft *n, const char *name, size_t name_bytes)
{
    char copy[REMUS_NFT_VIF_BYTES];
    struct remus_nft_vif *vif, *grown;

    if (name_bytes >= sizeof(copy)) {
        return NULL;
    }
    memcpy(copy, name, name_bytes);
    copy[name_bytes] = '\0';
    vif = nft_find(n, copy);
    if (vif) {
        return vif;
    }
    if (n->count == NFT_VIFS_MAX) {
        return NULL;
    }
    grown = reallocarray(n->vifs, n->count + 1, sizeof(*grown));
    if (!grown) {
        return NULL;
    }
    n->vifs = grown;
    vif = &n->vifs[n->count++];
    memset(vif, 0, sizeof(*vif));
    memcpy(vif->name, copy, sizeof(copy));
    return vif;
}

enum nft_part { NFT_OUTPUT, NFT_INPUT, NFT_FENCED, NFT_LEASED };

/* Takes in `elements = { "vif1.0" : goto output-100, ... }`, or names alone for a set. */
static int nft_read_elements(struct nft *n, const char *text, enum nft_part part)
{
    const char *at = strstr(text, "elements = {");
    const char *end = at ? strchr(at, '}') : NULL;

    while (end && (at = memchr(at, '"', (size_t)(end - at)))) {
        const char *name = at + 1;
        const char *quote = memchr(name, '"', (size_t)(end - name));
        struct remus_nft_vif *vif;

        if (!quote) {
            return -EBADMSG;
        }
        vif = nft_find_or_add(n, name, (size_t)(quote - name));
        if (!vif) {
            return -ENOMEM;
        }
        at = quote + 1;
        if (part == NFT_FENCED) {
            vif->fenced = true;
        } else if (part == NFT_LEASED) {
            vif->leased = true;
        } else {
            unsigned int queue;

            if (sscanf(at, " : goto %*[a-z]-%u", &queue) != 1 || queue > UINT16_MAX) {
                return -EBADMSG;
            }
            vif->steered = true;
            if (part == NFT_OUTPUT) {
                vif->output_queue = (uint16_t)queue;
            } else {
                vif->input_queue = (uint16_t)queue;
            }
        }
    }
    return 0;
}

static int nft_read(struct nft *n)
{
    static const char *const lists[] = {
        [NFT_OUTPUT] = "list map " NFT_TABLE " output",
        [NFT_INPUT] = "list map " NFT_TABLE " input",
        [NFT_FENCED] = "list set " NFT_TABLE " fenced",
        [NFT_LEASED] = "list set " NFT_TABLE " leased",
    };
    const char *text;
    size_t i;
    int rc;

    rc = nft_run(n, "list tables bridge", "reading the tables");
    if (rc) {
        return rc;
    }
    text = nft_ctx_get_output_buffer(n->ctx);
    n->table = text && strstr(text, "table " NFT_TABLE "\n");
    for (i = 0; n->table && i < sizeof(lists) / sizeof(lists[0]); i++) {
        rc = nft_run(n, lists[i], "reading the rules");
        if (rc) {
            return rc;
        }
        text = nft_ctx_get_output_buffer(n->ctx);
        rc = nft_read_elements(n, text ? text : "", (enum nft_part)i);
        if (rc) {
            return nft_fail(n, rc, lists[i], NULL);
        }
    }
    return 0;
}

static void nft_end(struct nft *n)
{
    if (n->ctx) {
        nft_ctx_free(n->ctx);
    }
    if (n->lock_fd >= 0) {
        close(n->lock_fd);
    }
    free(n->vifs);
}

/* The lock matters where one coordinator takes the table away because its vif was the last, while
 * another is adding a vif. */
static int nft_begin(struct nft *n, const char *vif, char *error, size_t error_bytes)
{
    int rc;

    memset(n, 0, sizeof(*n));
    n->lock_fd = -1;
    n->error = error;
    n->error_bytes = error_bytes;
    if (vif && !nft_name_ok(vif)) {
        return nft_fail(n, -EINVAL, vif, "not the name of a vif");
    }
    n->lock_fd = open(NFT_LOCK, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (n->lock_fd < 0) {
        return nft_fail(n, -errno, NFT_LOCK, NULL);
    }
    while (flock(n->lock_fd, LOCK_EX) < 0) {
        if (errno != EINTR) {
            return nft_fail(n, -errno, NFT_LOCK, NULL);
        }
    }
    n->ctx = nft_ctx_new(NFT_CTX_DEFAULT);
    if (!n->ctx || nft_ctx_buffer_output(n->ctx) || nft_ctx_buffer_error(n->ctx)) {
        return nft_fail(n, -ENOMEM, "libnftables", NULL);
    }
    rc = nft_read(n);
    return rc;
}

/* Bounded appending to a script; the sizes are ours, so that an overflow is our mistake. */
__attribute__((format(printf, 2, 3)))
static void script_add(char *script, const char *fmt, ...)
{
    const size_t used = strlen(script);
    va_list ap;

    va_start(ap, fmt);
    if (vsnprintf(script + used, NFT_SCRIPT_MAX - used, fmt, ap) >= (int)(NFT_SCRIPT_MAX - used)) {
        abort();
    }
    va_end(ap);
}

/* Everything of a vif but its fence. */
static void script_forget(char *script, const struct remus_nft_vif *old)
{
    unsigned int i;

    for (i = 0; i < 2 && old && old->steered; i++) {
        const unsigned int queue = i ? old->input_queue : old->output_queue;

        script_add(script, "delete element " NFT_TABLE " %s { \"%s\" }\n"
                   "flush chain " NFT_TABLE " %s-%u\n"
                   "delete chain " NFT_TABLE " %s-%u\n", nft_sides[i], old->name, nft_sides[i],
                   queue, nft_sides[i], queue);
    }
    if (old && old->steered) {
        script_add(script, "delete element " NFT_TABLE " until { \"%s\" }\n"
                   "flush chain " NFT_TABLE " " REMUS_NFT_UNTIL "%s\n"
                   "delete chain " NFT_TABLE " " REMUS_NFT_UNTIL "%s\n", old->name, old->name,
                   old->name);
    }
}

/* One direction of a vif: what passes, then count queues from the first on, among which the kernel
 * spreads the pairs of addresses. */
static void script_steer(char *script, const char *vif, unsigned int side, unsigned int queue,
                         unsigned int queues, const struct remus_bypass *bypass,
                         unsigned int count)
{
    char rule[2 * REMUS_BYPASS_TEXT_MAX];
    /* What the guard wants to see (nftguard.h). */
    const char *mark = side ? "" : "meta mark set meta mark or " REMUS_NFT_MARK_TEXT " ";
    unsigned int i;

    script_add(script, "add chain " NFT_TABLE " %s-%u\n", nft_sides[side], queue);
    for (i = 0; i < count; i++) {
        remus_bypass_rule(&bypass[i], side == 0, rule, sizeof(rule));
        script_add(script, "add rule " NFT_TABLE " %s-%u %s counter %saccept\n", nft_sides[side],
                   queue, rule, mark);
    }
    script_add(script, "add rule " NFT_TABLE " %s-%u %squeue num %u", nft_sides[side], queue, mark,
               queue);
    script_add(script, queues > 1 ? "-%u\n" : "\n", queue + queues - 1);
    script_add(script, "add element " NFT_TABLE " %s { \"%s\" : goto %s-%u }\n", nft_sides[side],
               vif, nft_sides[side], queue);
}

static bool in_block(unsigned int number, unsigned int first, unsigned int count)
{
    return number >= first && number < first + count;
}

static bool block_in_rules(const struct nft *n, unsigned int first, unsigned int count)
{
    size_t i;

    for (i = 0; i < n->count; i++) {
        const struct remus_nft_vif *vif = &n->vifs[i];

        if (vif->steered && (in_block(vif->output_queue, first, count) ||
                             in_block(vif->input_queue, first, count))) {
            return true;
        }
    }
    return false;
}

static bool block_is_heard(FILE *table, unsigned int first, unsigned int count)
{
    unsigned int number;
    char line[256];

    if (!table) {
        return false;            /* the file comes with the module: no queue yet */
    }
    rewind(table);
    while (fgets(line, sizeof(line), table)) {
        if (sscanf(line, "%u", &number) == 1 && in_block(number, first, count)) {
            return true;
        }
    }
    return false;
}

int remus_nft_free_queues(uint32_t domid, unsigned int count, uint16_t *first, char *error,
                          size_t error_bytes)
{
    const unsigned int blocks = (UINT16_MAX + 1 - NFT_QUEUE_BASE) / count;
    FILE *table = NULL;
    unsigned int i;
    struct nft n;
    int rc;

    rc = nft_begin(&n, NULL, error, error_bytes);
    if (rc) {
        goto out;
    }
    table = fopen("/proc/net/netfilter/nfnetlink_queue", "re");
    for (i = 0; i < blocks; i++) {
        const unsigned int block = NFT_QUEUE_BASE + (domid + i) % blocks * count;

        if (!block_in_rules(&n, block, count) && !block_is_heard(table, block, count)) {
            *first = (uint16_t)block;
            goto out;
        }
    }
    rc = nft_fail(&n, -ENOSPC, "netfilter queues", "all numbers are in use");

out:
    if (table) {
        fclose(table);
    }
    nft_end(&n);
    return rc;
}

int remus_nft_protect(const char *vif, uint16_t output_queue, uint16_t input_queue,
                      const struct remus_bypass *bypass, unsigned int count, char *error,
                      size_t error_bytes)
{
    char script[NFT_SCRIPT_MAX] = "";
    const struct remus_nft_vif *old;
    struct nft n;
    int rc;

    rc = nft_begin(&n, vif, error, error_bytes);
    if (rc) {
        goto out;
    }
    old = nft_find(&n, vif);
    if (!n.table) {
        script_add(script, "%s", nft_create);
    }
    script_forget(script, old);
    script_steer(script, vif, 0, output_queue, CTL_OUTPUT_QUEUES, bypass, count);
    script_steer(script, vif, 1, input_queue, 1, bypass, count);
    script_add(script, "add chain " NFT_TABLE " " REMUS_NFT_UNTIL "%s\n"
               "add element " NFT_TABLE " until { \"%s\" : goto " REMUS_NFT_UNTIL "%s }\n",
               vif, vif, vif);
    rc = nft_run(&n, script, vif);

out:
    nft_end(&n);
    return rc;
}

static int nft_forget(const char *vif, bool table, char *error, size_t error_bytes)
{
    char script[NFT_SCRIPT_MAX] = "";
    const struct remus_nft_vif *old;
    struct nft n;
    int rc;

    rc = nft_begin(&n, vif, error, error_bytes);
    if (rc) {
        goto out;
    }
    old = nft_find(&n, vif);
    if (table && n.table && n.count == (old ? 1 : 0)) {
        script_add(script, "delete table " NFT_TABLE "\n");
    } else {
        script_forget(script, old);
        if (old && old->fenced) {
            script_add(script, "delete element " NFT_TABLE " fenced { \"%s\" }\n", vif);
        }
        if (old && old->leased) {
            script_add(script, "delete element " NFT_TABLE " leased { \"%s\" }\n", vif);
        }
    }
    if (script[0]) {
        rc = nft_run(&n, script, vif);
    }

out:
    nft_end(&n);
    return rc;
}

int remus_nft_release(const char *vif, char *error, size_t error_bytes)
{
    return nft_forget(vif, false, error, error_bytes);
}

int remus_nft_unprotect(const char *vif, char *error, size_t error_bytes)
{
    return nft_forget(vif, true, error, error_bytes);
}

/* Whether a chain holds all of these words. */
static int nft_chain_has(struct nft *n, const char *chain, const char *const *words, size_t count)
{
    char script[64];
    const char *text;
    size_t i;

    snprintf(script, sizeof(script), "list chain " NFT_TABLE " %.32s", chain);
    if (nft_run_cmd_from_buffer(n->ctx, script)) {
        return nft_fail(n, -ENOENT, chain, "the chain is gone");
    }
    text = nft_ctx_get_output_buffer(n->ctx);
    for (i = 0; i < count; i++) {
        if (!text || !strstr(text, words[i])) {
            return nft_fail(n, -ENOENT, chain, "a rule is gone");
        }
    }
    return 0;
}

int remus_nft_check(const char *vif, uint16_t output_queue, uint16_t input_queue, bool leased,
                    char *error, size_t error_bytes)
{
    static const struct {
        const char *chain, *words[3];
    } base[] = {
        { "output", { "hook prerouting", "@fenced", "vmap @output" } },
        { "leases", { "hook prerouting", "@leased", "vmap @until" } },
        { "input", { "hook postrouting", "vmap @input", "@fenced" } },
    };
    const char *const queue = "queue";
    const struct remus_nft_vif *now;
    char chain[32];
    struct nft n;
    size_t i;
    int rc;

    rc = nft_begin(&n, vif, error, error_bytes);
    if (rc) {
        rc = -ENOENT;            /* a map or a set of ours is gone, or another's table */
        goto out;
    }
    now = nft_find(&n, vif);
    if (!n.table || !now || !now->steered || now->output_queue != output_queue ||
        now->input_queue != input_queue || (leased && !now->leased)) {
        rc = nft_fail(&n, -ENOENT, vif, n.table ? "its rules are gone" : "the table is gone");
        goto out;
    }
    for (i = 0; !rc && i < sizeof(base) / sizeof(base[0]); i++) {
        rc = nft_chain_has(&n, base[i].chain, base[i].words, 3);
    }
    for (i = 0; !rc && i < 2; i++) {
        snprintf(chain, sizeof(chain), "%s-%u", nft_sides[i], i ? input_queue : output_queue);
        rc = nft_chain_has(&n, chain, &queue, 1);
    }
    if (!rc) {
        snprintf(chain, sizeof(chain), REMUS_NFT_UNTIL "%s", vif);
        rc = nft_chain_has(&n, chain, NULL, 0);
    }

out:
    nft_end(&n);
    return rc;
}

int remus_nft_reset(char *error, size_t error_bytes)
{
    struct nft n;
    int rc;

    rc = nft_begin(&n, NULL, error, error_bytes);
    /* What cannot be read is what is to be made again. */
    if (n.ctx && (rc || n.table)) {
        rc = nft_run(&n, "add table " NFT_TABLE "\ndelete table " NFT_TABLE "\n", "the table");
    }
    nft_end(&n);
    return rc;
}

/* Into one of the sets of names, unless it is there. */
static int nft_enlist(const char *vif, bool fence, char *error, size_t error_bytes)
{
    char script[NFT_SCRIPT_MAX] = "";
    const struct remus_nft_vif *old;
    struct nft n;
    int rc;

    rc = nft_begin(&n, vif, error, error_bytes);
    if (rc) {
        goto out;
    }
    old = nft_find(&n, vif);
    if (!n.table) {
        script_add(script, "%s", nft_create);
    }
    if (!old || !(fence ? old->fenced : old->leased)) {
        script_add(script, "add element " NFT_TABLE " %s { \"%s\" }\n",
                   fence ? "fenced" : "leased", vif);
        rc = nft_run(&n, script, vif);
    }

out:
    nft_end(&n);
    return rc;
}

int remus_nft_fence(const char *vif, char *error, size_t error_bytes)
{
    return nft_enlist(vif, true, error, error_bytes);
}

int remus_nft_need_lease(const char *vif, char *error, size_t error_bytes)
{
    return nft_enlist(vif, false, error, error_bytes);
}

int remus_nft_list(struct remus_nft_vif *vifs, size_t max, size_t *count, char *error,
                   size_t error_bytes)
{
    struct nft n;
    int rc;

    *count = 0;
    rc = nft_begin(&n, NULL, error, error_bytes);
    if (!rc) {
        *count = n.count;
        if (n.count) {
            memcpy(vifs, n.vifs, (n.count < max ? n.count : max) * sizeof(*vifs));
        }
    }
    nft_end(&n);
    return rc;
}
