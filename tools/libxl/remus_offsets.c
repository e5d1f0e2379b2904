#include "tools/libxl/remus_offsets.h"

#include <errno.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "tools/libxl/remus_message.h"

_Static_assert(OFFSETS_MAX == REMUS_OFFSETS_MAX, "what is read fits a record");

/* Of our filters at a vif: found again by them. */
#define TC_HANDLE   1u
#define TC_PRIORITY 0x4352u
#define MAP_NAME    "offsets"
#define TAP_NAME    "redirect"
#define SECOND_NS   1000000000ull
#define CLOSED_NS   (60 * SECOND_NS)            /* REWRITE_CLOSED_US */
#define RESET_NS    (3 * 3600 * SECOND_NS)      /* keepalives ask after two hours */
#define IDLE_NS     (5 * 86400 * SECOND_NS)     /* REWRITE_IDLE_US */

struct remus_offsets {
    struct bpf_object *object;  /* NULL: found at a device */
    int map, redirect, to_guest, from_guest;
    uint32_t ifindex;           /* redirected to last */
    bool used;
    struct offsets_key *keys;
    struct offsets_value *values;
};

/* offsets.bpf.c, compiled. */
static const unsigned char image[] __attribute__((aligned(8))) = {
#include "offsets.bpf.inc"
};

static char said[200];      /* libbpf's newest warning: of one thread, as all that is here */

static int keep(enum libbpf_print_level level, const char *format, va_list args)
{
    if (level == LIBBPF_WARN) {
        vsnprintf(said, sizeof(said), format, args);
        said[strcspn(said, "\n")] = '\0';
    }
    return 0;
}

const char *remus_offsets_said(void)
{
    return said;
}

static struct remus_offsets *allocate(void)
{
    struct remus_offsets *o = calloc(1, sizeof(*o));

    if (!o)
        return NULL;
    o->map = o->redirect = o->to_guest = o->from_guest = -1;
    o->keys = calloc(OFFSETS_MAX, sizeof(*o->keys));
    o->values = calloc(OFFSETS_MAX, sizeof(*o->values));
    if (!o->keys || !o->values) {
        remus_offsets_free(o);
        return NULL;
    }
    return o;
}

int remus_offsets_new(struct remus_offsets **out)
{
    DECLARE_LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "remus");
    struct remus_offsets *o = allocate();
    int rc;

    *out = NULL;
    if (!o)
        return -ENOMEM;
    libbpf_set_print(keep);
    o->object = bpf_object__open_mem(image, sizeof(image), &options);
    rc = o->object ? bpf_object__load(o->object) : -errno;
    if (!rc) {
        o->map = bpf_object__find_map_fd_by_name(o->object, MAP_NAME);
        o->redirect = bpf_object__find_map_fd_by_name(o->object, TAP_NAME);
        o->to_guest = bpf_program__fd(bpf_object__find_program_by_name(o->object, "to_guest"));
        o->from_guest = bpf_program__fd(bpf_object__find_program_by_name(o->object, "from_guest"));
        rc = o->map < 0 ? o->map : o->redirect < 0 ? o->redirect : o->to_guest < 0 ? o->to_guest
             : o->from_guest < 0 ? o->from_guest : 0;
    }
    if (rc)
        remus_offsets_free(o);
    else
        *out = o;
    return rc;
}

/* The table of a program: the one map of the name. */
static int map_of(uint32_t program_id)
{
    struct bpf_prog_info program = {0};
    struct bpf_map_info map = {0};
    uint32_t ids[4] = {0}, i, bytes = sizeof(program);
    int fd, rc;

    fd = bpf_prog_get_fd_by_id(program_id);
    if (fd < 0)
        return -errno;
    program.nr_map_ids = sizeof(ids) / sizeof(ids[0]);
    program.map_ids = (uint64_t)(uintptr_t)ids;
    rc = bpf_obj_get_info_by_fd(fd, &program, &bytes) ? -errno : 0;
    close(fd);
    for (i = 0; !rc && i < program.nr_map_ids && i < sizeof(ids) / sizeof(ids[0]); i++) {
        fd = bpf_map_get_fd_by_id(ids[i]);
        bytes = sizeof(map);
        if (fd < 0)
            return -errno;
        if (!bpf_obj_get_info_by_fd(fd, &map, &bytes) && !strcmp(map.name, MAP_NAME) &&
            map.key_size == sizeof(struct offsets_key) &&
            map.value_size == sizeof(struct offsets_value))
            return fd;
        close(fd);
    }
    return rc ? rc : -ENOENT;
}

int remus_offsets_find(struct remus_offsets **out, const char *device)
{
    DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = (int)if_nametoindex(device),
                        .attach_point = BPF_TC_EGRESS);
    DECLARE_LIBBPF_OPTS(bpf_tc_opts, filter, .handle = TC_HANDLE, .priority = TC_PRIORITY);
    struct remus_offsets *o;
    int rc;

    *out = NULL;
    libbpf_set_print(keep);
    if (!hook.ifindex)
        return -ENODEV;
    /* No such filter, nor the queueing discipline to have one. */
    rc = bpf_tc_query(&hook, &filter);
    if (rc)
        return rc == -EINVAL || rc == -EOPNOTSUPP ? -ENOENT : rc;
    rc = map_of(filter.prog_id);
    if (rc < 0)
        return rc;
    o = allocate();
    if (!o) {
        close(rc);
        return -ENOMEM;
    }
    o->map = rc;
    *out = o;
    return 0;
}

void remus_offsets_free(struct remus_offsets *o)
{
    if (!o)
        return;
    if (o->object)
        bpf_object__close(o->object);
    else if (o->map >= 0)
        close(o->map);
    free(o->keys);
    free(o->values);
    free(o);
}

int remus_offsets_add(struct remus_offsets *o, const struct remus_offset *offset)
{
    const struct remus_flow *flow = &offset->flow;
    struct offsets_value value = {
        .offset = offset->offset, .isn = flow->primary_isn, .state = offset->state,
    };
    struct offsets_key key = {
        .guest_port = flow->guest_port, .peer_port = flow->peer_port,
        .vlan = {flow->vlan[0], flow->vlan[1]},
    };

    memcpy(key.guest, flow->guest_addr, sizeof(key.guest));
    memcpy(key.peer, flow->peer_addr, sizeof(key.peer));
    value.seen_ns = remus_now_ms() * 1000000;
    o->used = true;
    return bpf_map_update_elem(o->map, &key, &value, BPF_ANY) ? -errno : 0;
}

bool remus_offsets_used(const struct remus_offsets *o)
{
    return o->used;
}

int remus_offsets_redirect(struct remus_offsets *o, const char *tap, unsigned int timeout_ms)
{
    const uint32_t first = 0;
    struct offsets_redirect value = {.ifindex = tap ? if_nametoindex(tap) : o->ifindex};

    if (tap && !value.ifindex)
        return -ENODEV;
    o->ifindex = value.ifindex;
    if (tap)
        value.until_ns = (remus_now_ms() + timeout_ms) * 1000000;
    return bpf_map_update_elem(o->redirect, &first, &value, BPF_ANY) ? -errno : 0;
}

static int attach(int ifindex, enum bpf_tc_attach_point where, int program)
{
    DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = where);
    DECLARE_LIBBPF_OPTS(bpf_tc_opts, filter, .prog_fd = program, .handle = TC_HANDLE,
                        .priority = TC_PRIORITY);

    return bpf_tc_attach(&hook, &filter);
}

static int detach(int ifindex, enum bpf_tc_attach_point where)
{
    DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = where);
    DECLARE_LIBBPF_OPTS(bpf_tc_opts, filter, .handle = TC_HANDLE, .priority = TC_PRIORITY);

    return bpf_tc_detach(&hook, &filter);
}

int remus_offsets_prepare(const char *device)
{
    DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = (int)if_nametoindex(device),
                        .attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS);
    int rc;

    libbpf_set_print(keep);
    if (!hook.ifindex)
        return -ENODEV;
    rc = bpf_tc_hook_create(&hook);
    if (rc != -EEXIST)
        return rc;
    said[0] = '\0';     /* somebody else's filters may be there: ours let frames go on */
    return 0;
}

int remus_offsets_attach(struct remus_offsets *o, const char *device)
{
    int ifindex = (int)if_nametoindex(device), rc;

    rc = remus_offsets_prepare(device);
    if (rc)
        return rc;
    rc = attach(ifindex, BPF_TC_INGRESS, o->from_guest);
    if (rc)
        return rc;
    rc = attach(ifindex, BPF_TC_EGRESS, o->to_guest);
    if (rc)
        (void)detach(ifindex, BPF_TC_INGRESS);
    return rc;
}

int remus_offsets_detach(const char *device)
{
    int ifindex = (int)if_nametoindex(device), rc;

    if (!ifindex)
        return -ENODEV;
    rc = detach(ifindex, BPF_TC_EGRESS);
    return rc ? rc : detach(ifindex, BPF_TC_INGRESS);
}

static bool over(const struct offsets_value *value, uint64_t now_ns)
{
    const uint32_t fins = REMUS_OFFSET_FIN_INPUT | REMUS_OFFSET_FIN_OUTPUT;
    const bool ended = value->state & (REMUS_OFFSET_RESET | REMUS_OFFSET_HALF_OPEN) ||
                       (value->state & fins) == fins;
    const uint64_t idle_ns = now_ns > value->seen_ns ? now_ns - value->seen_ns : 0;

    return idle_ns > (ended ? CLOSED_NS
                      : value->state & REMUS_OFFSET_PEER_RESET ? RESET_NS : IDLE_NS);
}

int remus_offsets_read(struct remus_offsets *o, unsigned int vif, struct remus_offset *list,
                       unsigned int *count)
{
    const uint64_t now_ns = remus_now_ms() * 1000000;
    uint32_t batch = 0, got = OFFSETS_MAX, i;

    *count = 0;
    /* -ENOENT: all of them, and the end. */
    if (bpf_map_lookup_batch(o->map, NULL, &batch, o->keys, o->values, &got, NULL) &&
        errno != ENOENT)
        return -errno;
    for (i = 0; i < got; i++) {
        const struct offsets_key *key = &o->keys[i];
        struct remus_offset *entry = &list[*count];

        if (over(&o->values[i], now_ns)) {
            (void)bpf_map_delete_elem(o->map, key);
            continue;
        }
        memset(entry, 0, sizeof(*entry));
        memcpy(entry->flow.guest_addr, key->guest, sizeof(key->guest));
        memcpy(entry->flow.peer_addr, key->peer, sizeof(key->peer));
        entry->flow.guest_port = key->guest_port;
        entry->flow.peer_port = key->peer_port;
        entry->flow.vlan[0] = key->vlan[0];
        entry->flow.vlan[1] = key->vlan[1];
        entry->flow.primary_isn = o->values[i].isn;
        entry->offset = o->values[i].offset;
        entry->vif = (uint8_t)vif;
        entry->state = (uint8_t)o->values[i].state;
        (*count)++;
    }
    return 0;
}

int remus_offsets_program(const struct remus_offsets *o, bool to_guest)
{
    return to_guest ? o->to_guest : o->from_guest;
}
