/*
 * causes.h: which services' output ended epochs, so that an operator can decide what to bypass.
 *
 * Pure: no system call, no clock. A bounded table; when it is full the services that asked least
 * are summed up in an entry of their own, so that no checkpoint goes uncounted.
 */
#ifndef REMUS_CAUSES_H
#define REMUS_CAUSES_H

#include <stdint.h>

#include "tools/remus/ctl.h"
#include "tools/remus/packet.h"

struct causes {
    unsigned int count;
    struct ctl_cause list[CTL_CAUSES_MAX];  /* the most first; "other flows" may be among them */
};

/* One checkpoint. key: the flow that asked, NULL where none did (a limit); text: as in the log. */
void causes_note(struct causes *c, const char *vif, const struct packet_key *key,
                 enum ctl_why why, uint64_t epoch, const char *text);

/* The service behind a flow, in the words of bypass.h where they can say it. The port that counts
 * is the lower one: services have known ports, their clients ephemeral ones. */
void causes_service(const struct packet_key *key, char *text, size_t bytes);

#endif /* REMUS_CAUSES_H */
