/* bypass.c: see bypass.h. */
#include "tools/remus/bypass.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    uint8_t proto, version;
} protocols[] = {
    {"tcp", PACKET_PROTO_TCP, 0},
    {"udp", PACKET_PROTO_UDP, 0},
    {"icmp", PACKET_PROTO_ICMP, 4},
    {"icmp6", PACKET_PROTO_ICMPV6, 6},
};
#define PROTOCOLS (sizeof(protocols) / sizeof(protocols[0]))

static int parse_ports(uint16_t range[2], const char *text)
{
    unsigned long first, last;
    char *end;

    if (text[0] < '0' || text[0] > '9') {
        return -EINVAL;
    }
    first = last = strtoul(text, &end, 10);
    if (*end == '-' && end[1] >= '0' && end[1] <= '9') {
        last = strtoul(end + 1, &end, 10);
    }
    if (*end || !first || first > last || last > UINT16_MAX) {
        return -EINVAL;
    }
    range[0] = (uint16_t)first;
    range[1] = (uint16_t)last;
    return 0;
}

static int parse_peer(struct remus_bypass *b, char *text)
{
    char *slash = strchr(text, '/'), *end;
    unsigned long bits, most;
    unsigned int i;

    if (slash) {
        *slash = '\0';
    }
    if (inet_pton(AF_INET, text, b->peer) == 1) {
        b->version = 4;
    } else if (inet_pton(AF_INET6, text, b->peer) == 1) {
        b->version = 6;
    } else {
        return -EINVAL;
    }
    bits = most = b->version == 4 ? 32 : 128;
    if (slash) {
        bits = strtoul(slash + 1, &end, 10);
        if (slash[1] < '0' || slash[1] > '9' || *end || bits > most) {
            return -EINVAL;
        }
    }
    b->bits = (uint8_t)bits;
    for (i = 0; i < 16; i++) {
        unsigned int kept = bits > i * 8 ? (unsigned int)bits - i * 8 : 0;

        b->peer[i] &= kept >= 8 ? 0xff : (uint8_t)(0xff00u >> kept);
    }
    return 0;
}

static bool parse_protocol(struct remus_bypass *b, const char *word)
{
    size_t i;

    for (i = 0; i < PROTOCOLS && strcmp(word, protocols[i].name); i++)
        ;
    if (i == PROTOCOLS || b->proto) {
        return false;
    }
    b->proto = protocols[i].proto;
    return true;
}

int remus_bypass_parse(struct remus_bypass *b, const char *text, char *error, size_t error_bytes)
{
    char copy[REMUS_BYPASS_TEXT_MAX], *word, *value, *save = NULL;

    memset(b, 0, sizeof(*b));
    if (strlen(text) >= sizeof(copy)) {
        snprintf(error, error_bytes, "an entry of more than %zu characters", sizeof(copy) - 1);
        return -EINVAL;
    }
    strcpy(copy, text);
    for (word = strtok_r(copy, " \t", &save); word; word = strtok_r(NULL, " \t", &save)) {
        int rc = 0;

        if (parse_protocol(b, word)) {
            continue;
        }
        value = strtok_r(NULL, " \t", &save);
        if (!strcmp(word, "port") && !b->port[1]) {
            rc = value ? parse_ports(b->port, value) : -EINVAL;
        } else if (!strcmp(word, "peer-port") && !b->peer_port[1]) {
            rc = value ? parse_ports(b->peer_port, value) : -EINVAL;
        } else if (!strcmp(word, "peer") && !b->version) {
            rc = value ? parse_peer(b, value) : -EINVAL;
        } else {
            snprintf(error, error_bytes, "'%s' is not expected here", word);
            return -EINVAL;
        }
        if (rc) {
            snprintf(error, error_bytes, "'%s' needs %s", word,
                     strcmp(word, "peer") ? "a port or a range of ports, 1 to 65535"
                                          : "an IP address, or one with /BITS");
            return -EINVAL;
        }
    }
    if (!b->proto && !b->version) {
        snprintf(error, error_bytes, b->port[1] || b->peer_port[1]
                 ? "ports need tcp or udp" : "an entry needs a protocol or a peer");
        return -EINVAL;
    }
    if ((b->port[1] || b->peer_port[1]) && b->proto != PACKET_PROTO_TCP &&
        b->proto != PACKET_PROTO_UDP) {
        snprintf(error, error_bytes, "ports need tcp or udp");
        return -EINVAL;
    }
    if ((b->proto == PACKET_PROTO_ICMP && b->version == 6) ||
        (b->proto == PACKET_PROTO_ICMPV6 && b->version == 4)) {
        snprintf(error, error_bytes, "the protocol and the peer's address do not go together");
        return -EINVAL;
    }
    return 0;
}

__attribute__((format(printf, 3, 4)))
static void append(char *text, size_t bytes, const char *fmt, ...)
{
    size_t used = strlen(text);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text + used, bytes - used, fmt, ap);
    va_end(ap);
}

static void append_ports(char *text, size_t bytes, const char *word, const uint16_t range[2])
{
    if (range[1] && range[0] == range[1]) {
        append(text, bytes, " %s %u", word, range[0]);
    } else if (range[1]) {
        append(text, bytes, " %s %u-%u", word, range[0], range[1]);
    }
}

static const char *protocol_name(const struct remus_bypass *b)
{
    size_t i;

    for (i = 0; i < PROTOCOLS; i++) {
        if (protocols[i].proto == b->proto) {
            return protocols[i].name;
        }
    }
    return "";
}

static const char *peer_text(const struct remus_bypass *b, char text[INET6_ADDRSTRLEN])
{
    return inet_ntop(b->version == 6 ? AF_INET6 : AF_INET, b->peer, text, INET6_ADDRSTRLEN);
}

void remus_bypass_format(const struct remus_bypass *b, char *text, size_t bytes)
{
    char peer[INET6_ADDRSTRLEN];

    snprintf(text, bytes, "%s", protocol_name(b));
    append_ports(text, bytes, "port", b->port);
    append_ports(text, bytes, "peer-port", b->peer_port);
    if (b->version) {
        append(text, bytes, "%speer %s/%u", text[0] ? " " : "", peer_text(b, peer), b->bits);
    }
}

void remus_bypass_rule(const struct remus_bypass *b, bool from_guest, char *text, size_t bytes)
{
    char peer[INET6_ADDRSTRLEN];

    text[0] = '\0';
    if (b->version) {
        append(text, bytes, "%s %s %s/%u ", b->version == 6 ? "ip6" : "ip",
               from_guest ? "daddr" : "saddr", peer_text(b, peer), b->bits);
    }
    if (b->proto) {
        append(text, bytes, "meta l4proto %u", b->proto);
    }
    append_ports(text, bytes, from_guest ? "th sport" : "th dport", b->port);
    append_ports(text, bytes, from_guest ? "th dport" : "th sport", b->peer_port);
}

static bool peer_matches(const struct remus_bypass *b, const uint8_t *address)
{
    unsigned int whole = b->bits / 8, rest = b->bits % 8;

    return !memcmp(b->peer, address, whole) &&
           (!rest || !((b->peer[whole] ^ address[whole]) & (uint8_t)(0xff00u >> rest)));
}

static bool in_range(const uint16_t range[2], uint16_t port)
{
    return !range[1] || (port >= range[0] && port <= range[1]);
}

bool remus_bypass_match(const struct remus_bypass *list, unsigned int count,
                        const struct packet *p, bool from_guest)
{
    const uint8_t *peer = from_guest ? p->dst : p->src;
    uint16_t port = from_guest ? p->sport : p->dport, peer_port = from_guest ? p->dport : p->sport;
    unsigned int i;

    if (p->vlans > 1 || !p->ip_version) {
        return false;
    }
    for (i = 0; i < count; i++) {
        const struct remus_bypass *b = &list[i];
        bool ports = b->port[1] || b->peer_port[1];

        if (b->version && (b->version != p->ip_version ||
                           !peer_matches(b, b->version == 4 ? peer + 12 : peer))) {
            continue;
        }
        if (b->proto && b->proto != p->proto) {
            continue;
        }
        /* Only the first piece of a fragmented packet has ports, and the kernel looks at each. */
        if (ports && ((p->kind != PACKET_TCP && p->kind != PACKET_UDP) ||
                      !in_range(b->port, port) || !in_range(b->peer_port, peer_port))) {
            continue;
        }
        return true;
    }
    return false;
}
