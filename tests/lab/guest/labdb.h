/* labdb.h: a database on the guest's disk: SQLite in WAL mode, each commit synced, on ext4. */
#ifndef LABDB_H
#define LABDB_H

#include <stddef.h>

/*
 * "open": mounts /dev/xvda and opens the database, which is made if it is not there.  "ok".
 * "put <N>": a row with this number, committed.  "ok <N>": it is on the disk.
 * "check <N>": "<rows 1 to N that are missing> <rows> <what the database says of itself: ok>".
 * "close": closed and unmounted.  "ok".
 * Anything that goes wrong: "error <sentence>".
 */
void labdb_command(const char *line, char *answer, size_t size);

#endif
