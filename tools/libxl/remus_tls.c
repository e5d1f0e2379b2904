#include "tools/libxl/remus_tls.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <gnutls/gnutls.h>

#include "tools/libxl/remus_transport.h"

#define IDENTITY "remus"
/*
 * psk_dhe_ke and nothing else: no certificates, no older version, no key exchange without fresh
 * keys.  The records that TLS 1.3 sends to look like 1.2 would serve nobody here.
 */
#define PRIORITY "NONE:+VERS-TLS1.3:+ECDHE-PSK:+CHACHA20-POLY1305:+AEAD:+SHA256:+GROUP-X25519:" \
                 "+SIGN-ALL:+COMP-NULL:%DISABLE_TLS13_COMPAT_MODE"

struct remus_tls {
    gnutls_session_t session;
    gnutls_psk_client_credentials_t connecting;
    gnutls_psk_server_credentials_t accepting;
    int fd;
    size_t pulled;                  /* octets that the peer has sent */
    uint8_t secret[REMUS_SECRET_BYTES];
};

/*
 * gnutls asks for what is left of a record and no more, so that nothing that follows the handshake
 * is taken out of the socket.
 */
static ssize_t pull(gnutls_transport_ptr_t ptr, void *buffer, size_t size)
{
    struct remus_tls *t = ptr;
    ssize_t r;

    if (size > REMUS_TLS_HANDSHAKE_MAX - t->pulled) {
        errno = EMSGSIZE;
        return -1;
    }
    r = recv(t->fd, buffer, size, MSG_DONTWAIT);
    if (r > 0)
        t->pulled += (size_t)r;
    return r;
}

static ssize_t push(gnutls_transport_ptr_t ptr, const void *buffer, size_t size)
{
    const struct remus_tls *t = ptr;

    return send(t->fd, buffer, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int find_key(gnutls_session_t session, const char *identity, gnutls_datum_t *key)
{
    const struct remus_tls *t = gnutls_session_get_ptr(session);

    if (strcmp(identity, IDENTITY))
        return -1;
    key->data = gnutls_malloc(sizeof(t->secret));
    if (!key->data)
        return -1;
    memcpy(key->data, t->secret, sizeof(t->secret));
    key->size = sizeof(t->secret);
    return 0;
}

static int set_credentials(struct remus_tls *t, bool accepts)
{
    const gnutls_datum_t key = {t->secret, sizeof(t->secret)};
    int r;

    if (accepts) {
        r = gnutls_psk_allocate_server_credentials(&t->accepting);
        if (r < 0)
            return r;
        gnutls_psk_set_server_credentials_function(t->accepting, find_key);
        return gnutls_credentials_set(t->session, GNUTLS_CRD_PSK, t->accepting);
    }
    r = gnutls_psk_allocate_client_credentials(&t->connecting);
    if (r < 0)
        return r;
    r = gnutls_psk_set_client_credentials(t->connecting, IDENTITY, &key, GNUTLS_PSK_KEY_RAW);
    return r < 0 ? r : gnutls_credentials_set(t->session, GNUTLS_CRD_PSK, t->connecting);
}

int remus_tls_new(struct remus_tls **out, int fd, bool accepts,
                  const uint8_t secret[REMUS_SECRET_BYTES])
{
    struct remus_tls *t = calloc(1, sizeof(*t));
    /* A ticket would be a record after the handshake, which the kernel gives to nobody. */
    const unsigned int flags = (accepts ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK |
                               GNUTLS_NO_TICKETS;
    int r;

    *out = NULL;
    if (!t)
        return -ENOMEM;
    t->fd = fd;
    memcpy(t->secret, secret, sizeof(t->secret));
    r = gnutls_init(&t->session, flags);
    if (r < 0) {
        t->session = NULL;
        goto out;
    }
    gnutls_session_set_ptr(t->session, t);
    gnutls_transport_set_ptr(t->session, t);
    gnutls_transport_set_pull_function(t->session, pull);
    gnutls_transport_set_push_function(t->session, push);
    r = gnutls_priority_set_direct(t->session, PRIORITY, NULL);
    if (r < 0)
        goto out;
    r = set_credentials(t, accepts);
out:
    if (r < 0) {
        remus_tls_free(t);
        return r == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EIO;
    }
    *out = t;
    return 0;
}

void remus_tls_free(struct remus_tls *t)
{
    if (!t)
        return;
    if (t->session)
        gnutls_deinit(t->session);
    if (t->connecting)
        gnutls_psk_free_client_credentials(t->connecting);
    if (t->accepting)
        gnutls_psk_free_server_credentials(t->accepting);
    explicit_bzero(t, sizeof(*t));
    free(t);
}

short remus_tls_events(const struct remus_tls *t)
{
    return gnutls_record_get_direction(t->session) ? POLLOUT : POLLIN;
}

static int handshake_failed(struct remus_tls *t, int r, char *error)
{
    if (r == GNUTLS_E_PREMATURE_TERMINATION || r == GNUTLS_E_PULL_ERROR ||
        r == GNUTLS_E_PUSH_ERROR) {
        snprintf(error, REMUS_ERROR_BYTES, "the TLS handshake was broken off: is it the right "
                 "port, and is the other side without --plain?");
        return -EPIPE;
    }
    if (r == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        const char *alert = gnutls_alert_get_name(gnutls_alert_get(t->session));

        snprintf(error, REMUS_ERROR_BYTES, "the other side refuses the TLS handshake (%s): it does "
                 "not know this session's secret", alert ? alert : "unknown alert");
        return -EACCES;
    }
    /* So that the peer can say why; not waited for. */
    (void)gnutls_alert_send_appropriate(t->session, r);
    snprintf(error, REMUS_ERROR_BYTES, "the TLS handshake failed: %s", gnutls_strerror(r));
    return -EACCES;
}

static int take_keys(struct remus_tls *t, unsigned int reading, struct remus_tls_keys *keys)
{
    static const uint8_t first[sizeof(keys->sequence)];
    gnutls_datum_t mac, iv, key;

    if (gnutls_record_get_state(t->session, reading, &mac, &iv, &key, keys->sequence) < 0 ||
        iv.size != sizeof(keys->iv) || key.size != sizeof(keys->key))
        return -EPROTO;
    memcpy(keys->iv, iv.data, sizeof(keys->iv));
    memcpy(keys->key, key.data, sizeof(keys->key));
    /* Nothing came after the handshake, nothing was sent. */
    return memcmp(keys->sequence, first, sizeof(first)) ? -EPROTO : 0;
}

int remus_tls_step(struct remus_tls *t, char *error)
{
    struct remus_tls_keys out, in;
    int rc, r;

    do
        r = gnutls_handshake(t->session);
    while (r == GNUTLS_E_INTERRUPTED);
    if (r == GNUTLS_E_AGAIN)
        return -EAGAIN;
    if (r < 0)
        return handshake_failed(t, r, error);
    /* The only way there is; a library that found another one would have proven nothing. */
    if (gnutls_protocol_get_version(t->session) != GNUTLS_TLS1_3 ||
        gnutls_kx_get(t->session) != GNUTLS_KX_ECDHE_PSK ||
        gnutls_cipher_get(t->session) != GNUTLS_CIPHER_CHACHA20_POLY1305 ||
        gnutls_record_check_pending(t->session) || take_keys(t, 0, &out) || take_keys(t, 1, &in)) {
        snprintf(error, REMUS_ERROR_BYTES, "the TLS handshake ended otherwise than it may");
        rc = -EPROTO;
    } else {
        rc = remus_ktls_set(t->fd, &out, &in, error);
    }
    explicit_bzero(&out, sizeof(out));
    explicit_bzero(&in, sizeof(in));
    return rc;
}
