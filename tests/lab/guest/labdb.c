/* labdb.c: see labdb.h. */
#define _GNU_SOURCE
#include "labdb.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <sqlite3.h>

#define PLACE "/db"

static sqlite3 *db;

static int fail(char *answer, size_t size, const char *what, const char *why)
{
    snprintf(answer, size, "error %s: %s\n", what, why);
    return -1;
}

/* The first column of the first row, as text; what: for the error. */
static int query(const char *sql, char *value, size_t room, char *answer, size_t size)
{
    sqlite3_stmt *statement;
    const unsigned char *text;
    int rc = 0;

    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK)
        return fail(answer, size, sql, sqlite3_errmsg(db));
    if (sqlite3_step(statement) == SQLITE_ROW) {
        text = sqlite3_column_text(statement, 0);
        snprintf(value, room, "%s", text ? (const char *)text : "");
    } else {
        rc = fail(answer, size, sql, sqlite3_errmsg(db));
    }
    sqlite3_finalize(statement);
    return rc;
}

static int execute(const char *sql, char *answer, size_t size)
{
    return sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0
           : fail(answer, size, sql, sqlite3_errmsg(db));
}

static int open_db(char *answer, size_t size)
{
    char mode[16] = "";

    mkdir(PLACE, 0700);
    if (mount("/dev/xvda", PLACE, "ext4", 0, NULL))
        return fail(answer, size, "mount", strerror(errno));
    if (sqlite3_open(PLACE "/rows.db", &db) != SQLITE_OK)
        return fail(answer, size, "open", sqlite3_errmsg(db));
    if (query("PRAGMA journal_mode=WAL", mode, sizeof(mode), answer, size))
        return -1;
    if (strcmp(mode, "wal"))
        return fail(answer, size, "journal mode", mode);
    return execute("PRAGMA synchronous=FULL", answer, size) ||
           execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, text TEXT)",
                   answer, size);
}

static int put(unsigned int number, char *answer, size_t size)
{
    char sql[128];

    snprintf(sql, sizeof(sql), "INSERT INTO rows VALUES (%u, printf('%%0200d', %u))", number,
             number);
    return execute(sql, answer, size);
}

static int check(unsigned int last, char *answer, size_t size)
{
    char sql[128], there[24] = "", rows[24] = "", whole[64] = "";
    unsigned int found = 0;

    snprintf(sql, sizeof(sql), "SELECT count(*) FROM rows WHERE number BETWEEN 1 AND %u", last);
    if (query(sql, there, sizeof(there), answer, size) ||
        query("SELECT count(*) FROM rows", rows, sizeof(rows), answer, size) ||
        query("PRAGMA integrity_check", whole, sizeof(whole), answer, size))
        return -1;
    sscanf(there, "%u", &found);
    snprintf(answer, size, "%u %s %s\n", last - found, rows, whole);
    return 0;
}

static int close_db(char *answer, size_t size)
{
    if (sqlite3_close(db) != SQLITE_OK)
        return fail(answer, size, "close", sqlite3_errmsg(db));
    db = NULL;
    return umount(PLACE) ? fail(answer, size, "umount", strerror(errno)) : 0;
}

void labdb_command(const char *line, char *answer, size_t size)
{
    unsigned int number;

    if (!strcmp(line, "open")) {
        if (!open_db(answer, size))
            snprintf(answer, size, "ok\n");
    } else if (!db) {
        fail(answer, size, line, "the database is not open");
    } else if (sscanf(line, "put %u", &number) == 1) {
        if (!put(number, answer, size))
            snprintf(answer, size, "ok %u\n", number);
    } else if (sscanf(line, "check %u", &number) == 1) {
        check(number, answer, size);
    } else if (!strcmp(line, "close")) {
        if (!close_db(answer, size))
            snprintf(answer, size, "ok\n");
    } else {
        fail(answer, size, line, "no such command");
    }
}
