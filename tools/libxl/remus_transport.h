/*
 * remus_transport.h: how two hosts come together.
 *
 * ssh starts `xl remus-receive` on the other host and carries control messages
 * (remus_message.h).  The receiver makes a one-time secret, listens on a TCP port and tells both
 * through ssh; the primary then opens one connection for each channel (link, packets, disks).  On
 * each the secret is the key of a TLS handshake (remus_tls.h), or, with plain, is shown in clear in
 * struct remus_open, the first bytes that the primary sends in either case.
 *
 * A sentence for the user goes to error[REMUS_ERROR_BYTES] with every failure.
 */
#ifndef REMUS_TRANSPORT_H
#define REMUS_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "xen/include/public/remus.h"

#define REMUS_ERROR_BYTES        256u
/*
 * How often a wrong opening is tolerated before the receiver gives up, how many may be under way at
 * a time, and how long one may take, handshake included.
 */
#define REMUS_OPEN_BAD_MAX       8u
#define REMUS_OPEN_PENDING_MAX   4u
#define REMUS_OPEN_DEADLINE_MS   5000u

/* ---- The secret ---- */

#define REMUS_SECRET_TEXT_BYTES  (2u * REMUS_SECRET_BYTES + 1u) /* hexadecimal, with NUL */

int remus_secret_new(uint8_t secret[REMUS_SECRET_BYTES]);
/* Takes as long for a wrong secret as for the right one. */
bool remus_secret_equal(const uint8_t *a, const uint8_t *b);
void remus_secret_format(char text[REMUS_SECRET_TEXT_BYTES],
                         const uint8_t secret[REMUS_SECRET_BYTES]);
/* -EINVAL: not exactly the digits of one secret. */
int remus_secret_parse(uint8_t secret[REMUS_SECRET_BYTES], const char *text);

/* ---- ssh ---- */

struct remus_ssh {
    pid_t pid;   /* 0: not running (ended and reaped) */
    int in_fd;   /* what the remote command prints */
    int out_fd;  /* what it reads */
};
/*
 * Runs `SSH HOST COMMAND`; ssh is a shell text that may hold options ("ssh -p 2222").  An empty ssh
 * runs HOST as a shell command instead (as upstream's -s '' does).  The child ignores SIGINT,
 * SIGQUIT and SIGHUP: Ctrl-C is for us to act on.  Both descriptors are close-on-exec.
 */
int remus_ssh_spawn(struct remus_ssh *out, const char *ssh, const char *host,
                    const char *command);
/* Waits up to timeout_ms for its end, then kills it. Its wait status, or -1 when there was none. */
int remus_ssh_end(struct remus_ssh *s, unsigned int timeout_ms);
/* "user@host" or "ssh://..." or "[v6]" -> the part that is an address. */
void remus_host_address(char *out, size_t room, const char *host);

/* ---- TCP ---- */

/* "ADDR", "ADDR:PORT", "[V6]:PORT", ":PORT" -> addr ("" when none), *port (0 when none). */
int remus_address_parse(const char *text, char *addr, size_t room, uint16_t *port);

/* Listens on addr (NULL or "": all addresses) and port (0: any); *bound is the port. */
int remus_listen(const char *addr, uint16_t port, int *fd, uint16_t *bound, char *error);

#define REMUS_CHANNELS 5u  /* REMUS_CHANNEL_* are below this */
/*
 * Receiver: accepts connections, on either of two sockets (-1: none), until each wanted channel has
 * been opened once by someone who knows the secret.  wanted: bit REMUS_CHANNEL_* for each; fds: by
 * channel, -1: not wanted, or it failed.  Ends early with -ECANCELED when cancel_fd (-1: none) has
 * something to read or was hung up, -ETIMEDOUT at the deadline, -EACCES after REMUS_OPEN_BAD_MAX
 * connections that could not prove themselves, -ENOTSUP when this host's kernel cannot encrypt.
 */
int remus_accept_channels(const int listen_fds[2], const uint8_t secret[REMUS_SECRET_BYTES],
                          bool plain, unsigned int wanted, unsigned int deadline_ms, int cancel_fd,
                          int fds[REMUS_CHANNELS], char *error);

/* Primary: connects, proves itself (and without plain has the receiver do so), says the channel. */
int remus_connect_channel(const char *addr, uint16_t port, uint16_t channel,
                          const uint8_t secret[REMUS_SECRET_BYTES], bool plain,
                          unsigned int deadline_ms, int *fd, char *error);

#endif /* REMUS_TRANSPORT_H */
