/*
 * remus_message.h: JSON objects, one a line, between xl remus and xl remus-receive.
 *
 * The lines travel over ssh's stdin and stdout.  What comes from the other side is bounded (line
 * length, nesting) before it is parsed, every field is checked for its type when it is read, and a
 * field that is not there is an answer, not an error.
 */
#ifndef REMUS_MESSAGE_H
#define REMUS_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REMUS_LINE_MAX       65536u /* bytes of one line, newline included */
#define REMUS_LINE_NESTING   8u
#define REMUS_LINE_PROTOCOL  3u     /* version of the messages; both sides must have the same */
#define REMUS_TALK_OUT_MAX   (4u * REMUS_LINE_MAX) /* bytes that wait for a slow reader */

/* ---- Writing an object ---- */

struct remus_object;
/* An object whose first field is "type": type. NULL when memory is out. */
struct remus_object *remus_object_new(const char *type);
void remus_object_string(struct remus_object *o, const char *key, const char *value);
void remus_object_number(struct remus_object *o, const char *key, uint64_t value);
void remus_object_flag(struct remus_object *o, const char *key, bool value);
/* Between _list and _list_end: _item makes a string, _map and _map_end an object in the list.
 * _map with a key (outside a list) makes an object that is a field. */
void remus_object_list(struct remus_object *o, const char *key);
void remus_object_item(struct remus_object *o, const char *value);
void remus_object_list_end(struct remus_object *o);
void remus_object_map(struct remus_object *o, const char *key);
void remus_object_map_end(struct remus_object *o);
/*
 * Closes the object and gives its text: one line with its newline, in memory that the caller frees.
 * NULL: memory is out, or the text is longer than REMUS_LINE_MAX.  Frees the object.
 */
char *remus_object_finish(struct remus_object *o);

/* ---- Reading one ---- */

struct remus_message;
/* -EBADMSG: not an object with a "type"; -E2BIG: too long or too deep. */
int remus_message_parse(struct remus_message **out, const char *line, size_t length);
void remus_message_free(struct remus_message *m);
const char *remus_message_type(const struct remus_message *m);
/* NULL: no such field, or no string. */
const char *remus_message_string(const struct remus_message *m, const char *key);
/* "map.key": of an object that is a field.  False: no such field, no integer, or not in 0..max. */
bool remus_message_number(const struct remus_message *m, const char *key, uint64_t max,
                          uint64_t *value);
/* The fallback when there is no such field or it is no boolean. */
bool remus_message_flag(const struct remus_message *m, const char *key, bool fallback);
/* Entries of a list; 0: no such field, or no list. */
size_t remus_message_count(const struct remus_message *m, const char *key);
/* A string of list key: entry index itself (field NULL), or that entry's field. */
const char *remus_message_item(const struct remus_message *m, const char *key, size_t index,
                               const char *field);
/* A number of list key: that entry's field. 0: no such field, no integer, or below 0. */
uint64_t remus_message_item_number(const struct remus_message *m, const char *key, size_t index,
                                   const char *field);

/* ---- A conversation over two descriptors ---- */

struct remus_talk;
/* Owns both descriptors (may be the same one), makes them non-blocking. */
int remus_talk_new(struct remus_talk **out, int in_fd, int out_fd);
void remus_talk_free(struct remus_talk *t);
int remus_talk_in(const struct remus_talk *t);   /* to poll for POLLIN; -1 after its end */
int remus_talk_out(const struct remus_talk *t);  /* to poll for POLLOUT; -1 when nothing waits */
/*
 * Sends an object (finishes and frees it).  What the other side does not read waits; beyond half of
 * REMUS_TALK_OUT_MAX an object that may be dropped is, beyond all of it -ENOBUFS.
 * -EPIPE: nobody reads.  May be called with NULL (-ENOMEM).
 */
int remus_talk_send(struct remus_talk *t, struct remus_object *o, bool may_drop);
int remus_talk_flush(struct remus_talk *t);
/*
 * Reads what is there. 0: something or nothing came; -EPIPE: end of file; other errors as read(2).
 */
int remus_talk_fill(struct remus_talk *t);
/* 1: *m is the next message, the caller frees it; 0: none is complete; -EBADMSG, -E2BIG: the other
 * side does not speak this language (the line's beginning is in remus_talk_bad). */
int remus_talk_next(struct remus_talk *t, struct remus_message **m);
/* Waits for the next message: 0, -ETIMEDOUT, or what _fill and _next say. */
int remus_talk_wait(struct remus_talk *t, unsigned int timeout_ms, struct remus_message **m);
const char *remus_talk_bad(const struct remus_talk *t);

/* Text of others, made fit for a terminal and for JSON: control characters and bytes that are not
 * UTF-8 become '?'. Always ends in NUL. */
void remus_text_clean(char *out, size_t room, const char *text);

uint64_t remus_now_ms(void); /* CLOCK_MONOTONIC */

#endif /* REMUS_MESSAGE_H */
