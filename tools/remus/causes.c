/*
 * causes.c: see causes.h.
 */
#include "tools/remus/causes.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "tools/remus/bypass.h"

#define OTHERS "other flows"

static void peer_text(const struct packet_key *key, char text[INET6_ADDRSTRLEN])
{
    if (key->ip_version == 4) {
        inet_ntop(AF_INET, key->peer + 12, text, INET6_ADDRSTRLEN);
    } else {
        inet_ntop(AF_INET6, key->peer, text, INET6_ADDRSTRLEN);
    }
}

void causes_service(const struct packet_key *key, char *text, size_t bytes)
{
    const uint16_t guest_port = ntohs(key->guest_port), peer_port = ntohs(key->peer_port);
    struct remus_bypass b = { .proto = key->proto, .version = key->ip_version };
    const bool ports = key->proto == PACKET_PROTO_TCP || key->proto == PACKET_PROTO_UDP;
    char peer[INET6_ADDRSTRLEN];

    if (!key->ip_version) {
        snprintf(text, bytes, "not IP");
        return;
    }
    if (!ports && key->proto != PACKET_PROTO_ICMP && key->proto != PACKET_PROTO_ICMPV6) {
        peer_text(key, peer);
        snprintf(text, bytes, "protocol %u peer %s", key->proto, peer);
        return;
    }
    if (ports && guest_port <= peer_port) {
        b.port[0] = b.port[1] = guest_port;
    } else if (ports) {
        b.peer_port[0] = b.peer_port[1] = peer_port;
    }
    if (key->ip_version == 4) {
        memcpy(b.peer, key->peer + 12, 4);
        b.bits = 32;
    } else {
        memcpy(b.peer, key->peer, 16);
        b.bits = 128;
    }
    remus_bypass_format(&b, text, bytes);
}

static uint64_t total(const struct ctl_cause *cause)
{
    uint64_t sum = 0;
    unsigned int i;

    for (i = 0; i < CTL_WHY_COUNT; i++) {
        sum += cause->checkpoints[i];
    }
    return sum;
}

static struct ctl_cause *find(struct causes *c, const char *vif, const char *flow)
{
    unsigned int i;

    for (i = 0; i < c->count; i++) {
        if (!strcmp(c->list[i].flow, flow) && !strcmp(c->list[i].vif, vif)) {
            return &c->list[i];
        }
    }
    return NULL;
}

static struct ctl_cause *append(struct causes *c, const char *vif, const char *flow)
{
    struct ctl_cause *cause = &c->list[c->count++];

    memset(cause, 0, sizeof(*cause));
    snprintf(cause->vif, sizeof(cause->vif), "%s", vif);
    snprintf(cause->flow, sizeof(cause->flow), "%s", flow);
    return cause;
}

/* The table is full: the least of the list, which is in order, makes room for a new one. */
static void make_room(struct causes *c)
{
    struct ctl_cause *others = find(c, "", OTHERS), least;
    unsigned int at = c->count - 1, i;

    if (&c->list[at] == others) {
        at--;
    }
    least = c->list[at];
    memmove(&c->list[at], &c->list[at + 1], (c->count - at - 1) * sizeof(least));
    c->count--;
    others = find(c, "", OTHERS);
    if (!others) {
        others = &c->list[at];
        *others = least;
        others->vif[0] = '\0';
        snprintf(others->flow, sizeof(others->flow), OTHERS);
        c->count++;
        make_room(c);   /* and one more, for the one that is to come */
        return;
    }
    for (i = 0; i < CTL_WHY_COUNT; i++) {
        others->checkpoints[i] += least.checkpoints[i];
    }
    if (least.epoch > others->epoch) {
        others->epoch = least.epoch;
        memcpy(others->last, least.last, sizeof(others->last));
    }
}

static void rise(struct causes *c, unsigned int at)
{
    while (at > 0 && total(&c->list[at]) > total(&c->list[at - 1])) {
        struct ctl_cause above = c->list[at - 1];

        c->list[at - 1] = c->list[at];
        c->list[at] = above;
        at--;
    }
}

/* After make_room the sum of others may stand below smaller ones. */
static void put_in_order(struct causes *c)
{
    unsigned int i;

    for (i = 1; i < c->count; i++) {
        rise(c, i);
    }
}

void causes_note(struct causes *c, const char *vif, const struct packet_key *key,
                 enum ctl_why why, uint64_t epoch, const char *text)
{
    char flow[sizeof(c->list[0].flow)] = "no flow: a limit";
    struct ctl_cause *cause;

    if (key) {
        causes_service(key, flow, sizeof(flow));
    }
    cause = find(c, vif, flow);
    if (!cause) {
        if (c->count == CTL_CAUSES_MAX) {
            make_room(c);
        }
        cause = append(c, vif, flow);
    }
    cause->checkpoints[why]++;
    cause->epoch = epoch;
    snprintf(cause->last, sizeof(cause->last), "%s", text);
    put_in_order(c);
}
