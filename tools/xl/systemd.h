/* systemd.h: what a service manager shows of a session, if one has started it. */
#ifndef XL_SYSTEMD_H
#define XL_SYSTEMD_H

/* "STATUS=" and the text, by the protocol of sd_notify(3). Best effort. */
void systemd_status(const char *text);

#endif /* XL_SYSTEMD_H */
