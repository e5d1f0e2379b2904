/*
 * record.h: what xl remus-status reads: /run/xen/remus/DOMID.json, the newest status of a session,
 * replaced by rename so that a reader never sees half of one, and removed at the session's end.
 * DOMID.lock beside it is held by whoever runs the session: a record without a holder is of one
 * that died.  UUID.lost there says that the guest with that UUID lost its protection on this host,
 * or was taken over by it: when it is protected the next time, that is a "re-protected".
 */
#ifndef XL_RECORD_H
#define XL_RECORD_H

#include "tools/libxl/remus_session.h"

#define RECORD_BYTES_MAX 65536u

/* Best effort: a full disk must not end protection. */
void record_write(const struct remus_status *s);
void record_remove(uint32_t domid);
/* uuid: in its usual form; anything else says nothing. */
void record_lost(const char *uuid, bool lost);
bool record_was_lost(const char *uuid);
/* What the session's arbiter keeps in xenstore (REMUS_XS_SESSIONS) on this host. */
void record_forget_session(const char *session);

#endif /* XL_RECORD_H */
