/*
 * remus_tls.h: TLS of the channels between two hosts.
 *
 * TLS 1.3 with the session's secret as pre-shared key, which proves each side to the other, and an
 * exchange of fresh keys, so that a secret that leaks later opens nothing that was recorded.
 * gnutls makes the handshake; then the kernel gets the keys (kTLS), and whoever has the descriptor
 * reads and writes it as if it were plain: coordinators, daemons, across fork and exec.
 *
 * There is one cipher, CHACHA20-POLY1305, because the kernel cannot change keys under way and this
 * one needs no change before its record numbers are used up (docs/design.md).
 */
#ifndef REMUS_TLS_H
#define REMUS_TLS_H

#include <stdbool.h>
#include <stdint.h>

#include "xen/include/public/remus.h"

/* Octets that one side may send in a handshake: it takes some hundred. */
#define REMUS_TLS_HANDSHAKE_MAX  4096u

/* ---- The handshake (remus_tls.c) ---- */

struct remus_tls;
/*
 * For a connected socket that nothing was sent on, and which stays the caller's.  accepts: the side
 * that was connected to.
 */
int remus_tls_new(struct remus_tls **out, int fd, bool accepts,
                  const uint8_t secret[REMUS_SECRET_BYTES]);
/* Never sends anything: what follows a handshake that was given up is the end of the connection. */
void remus_tls_free(struct remus_tls *t);
/*
 * Does what can be done without waiting.  -EAGAIN: call again after poll() for remus_tls_events().
 * 0: the peer knows the secret, and the descriptor is encrypted from here on by the kernel.
 * -ENOTSUP: by the fault of this host's kernel it is not.  Anything else: the peer is not the right
 * one, or is gone.  Texts go to error[REMUS_ERROR_BYTES] (remus_transport.h).
 */
int remus_tls_step(struct remus_tls *t, char *error);
short remus_tls_events(const struct remus_tls *t);

/* ---- The kernel (remus_ktls.c) ---- */

struct remus_tls_keys {             /* of one direction */
    uint8_t key[32], iv[12], sequence[8];
};
/* -ENOTSUP, with a reason. */
int remus_ktls_set(int fd, const struct remus_tls_keys *send, const struct remus_tls_keys *receive,
                   char *error);
/* Whether the kernel can, found out by doing it on a connection within this host. */
int remus_ktls_probe(char *error);

#endif /* REMUS_TLS_H */
