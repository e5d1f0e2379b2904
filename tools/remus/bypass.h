/*
 * bypass.h: traffic that the operator declares unprotected: neither held, compared nor copied.
 *
 * An entry in words, all of which must hold:
 *
 *     [tcp|udp|icmp|icmp6] [port N[-M]] [peer-port N[-M]] [peer ADDRESS[/BITS]]
 *
 * port is the guest's, peer and peer-port are the other side's.  A frame may have one VLAN tag (the
 * kernel takes that off before its rules look); one with two is never passed.
 * The kernel passes such frames before they reach a queue (nftrules.h); the copy's own ones, which
 * it sends because it never gets an answer, are recognised here.
 */
#ifndef REMUS_BYPASS_H
#define REMUS_BYPASS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/remus/packet.h"

#define REMUS_BYPASS_MAX       64u
#define REMUS_BYPASS_TEXT_MAX  128u  /* of an entry in words, NUL included */

struct remus_bypass {
    uint8_t proto;                   /* 0: any */
    uint8_t version;                 /* of peer: 4, 6; 0: no address */
    uint8_t bits;                    /* of peer that count */
    uint8_t peer[16];                /* IPv4 in the first four; bits behind .bits are 0 */
    uint16_t port[2], peer_port[2];  /* first and last, host order; last 0: any */
};

/* 0; -EINVAL with a sentence in error. */
int remus_bypass_parse(struct remus_bypass *b, const char *text, char *error, size_t error_bytes);
/* The words of an entry, normalised. */
void remus_bypass_format(const struct remus_bypass *b, char *text, size_t bytes);
/* The matching part of an nftables rule for frames from the guest, or towards it. */
void remus_bypass_rule(const struct remus_bypass *b, bool from_guest, char *text, size_t bytes);
/* from_guest: the guest is the frame's source, else its destination. */
bool remus_bypass_match(const struct remus_bypass *list, unsigned int count,
                        const struct packet *p, bool from_guest);

#endif /* REMUS_BYPASS_H */
