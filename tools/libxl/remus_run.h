/*
 * remus_run.h: what both coordinators share: the loop, the link, a packet daemon, the decision
 * core and its event queue.  Private to tools/libxl.
 */
#ifndef REMUS_RUN_H
#define REMUS_RUN_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include <uv.h>
#include <xenstore.h>

#include "tools/libxl/remus_arbiter.h"
#include "tools/libxl/remus_core.h"
#include "tools/libxl/remus_disk.h"
#include "tools/libxl/remus_diskrec.h"
#include "tools/libxl/remus_guest.h"
#include "tools/libxl/remus_hook.h"
#include "tools/libxl/remus_proto.h"
#include "tools/libxl/remus_session.h"
#include "tools/remus/ctlio.h"

#define RUN_EVENTS_MAX      64u
#define RUN_WRITE_QUEUE_MAX (8u << 20)  /* bytes of the link's write queue before producers wait */
#define RUN_PAUSES          1024u       /* newest pauses, for the median */

struct remus_run;
struct remus_daemon;

struct remus_run_ops {
    /* One action of the core.  Answers by posting events, now or later. */
    void (*action)(struct remus_run *r, const struct remus_action *a);
    /* A checked frame from the peer, other than heartbeats and errors. */
    void (*frame)(struct remus_run *r, const struct remus_frame *f, const uint8_t *payload);
    /* A message of a daemon, other than READY, CHANNEL_LOST, FAILED and counters. */
    void (*control)(struct remus_run *r, const struct ctl_in *in);
    /* A daemon ended by itself; RE_DAEMON_LOST follows. */
    void (*daemon_lost)(struct remus_run *r, struct remus_daemon *d);
    void (*watch)(struct remus_run *r);   /* xenstore: @releaseDomain fired */
    void (*drained)(struct remus_run *r); /* the link's write queue fell below its maximum */
    void (*periodic)(struct remus_run *r);/* about ten times a second */
};

struct remus_daemon {
    struct remus_run *run;
    uv_process_t process;
    uv_poll_t poll;
    int fd;                         /* control socket, -1: none */
    bool running, expected_to_end;
    unsigned int unanswered;        /* questions since it said something last */
    unsigned int asked_in;          /* periods */
    int quit_ms;                    /* how long its orderly end may take; 0: QUIT_MS */
    bool killed;                    /* its end was not orderly */
    bool poll_open, process_open;
    char name[24], last_words[160]; /* ": " and why it failed, if it said so */
};

#define RUN_DISK_DAEMONS 16u        /* one that dies is replaced */

/* A connection to the other coordinator; see remus_link.c. */
struct remus_path {
    struct remus_run *run;
    uv_tcp_t tcp;
    uv_poll_t poll;                 /* of .epoll: what is read: see path_open */
    int epoll;
    bool open, poll_open, broken_told;
    uint64_t heard_us, broken_us;   /* since when nothing can be written; 0: it can */
    char broken_why[64];
    struct remus_decoder *decoder;
};

/* The guest's disks and their colo-blkd; see remus_disks.c. */
struct remus_disks {
    unsigned int count;
    struct remus_disk disk[REMUS_DISKS_MAX];
    int fd[REMUS_DISKS_MAX];        /* secondary: of its own disks */
    int keep;                       /* memfd */
    int store;                      /* secondary: of what is not on the disks yet */
    uint64_t window;                /* bytes that may wait there */
    struct remus_daemon daemons[RUN_DISK_DAEMONS];
    unsigned int starts;            /* of them; the last one serves */
    xengnttab_handle *xgt;
    bool taken;                     /* primary: from blkback; secondary: from the copy's */
    bool connected;                 /* secondary: the copy's frontends, for the first time */
    bool resting, rested;
    bool taken_over;                /* secondary: the copy's writes are the disks' */
    uint64_t rests;                 /* how often colo-blkd was asked to rest */
    uint64_t epoch;                 /* disk epoch: primary: that runs; secondary: that is here */
    bool synced;                    /* primary: both hosts' disks are equal; secondary: after a
                                       takeover, everything is on the disks */
    bool settled;                   /* secondary: and blkback has them */
    uint64_t settle_us;             /* not tried again before */
    /* Primary: what is written is noted here; -1: nowhere. */
    int log;
    bool minded;                    /* another process of ours has had the disks since a session */
    bool kept;                      /* the session is over, and we have them still */
    bool stopped;                   /* its guest writes nothing any more: the copy goes on */
    /* What is kept about this host's disks (remus_diskrec.h). */
    struct remus_disk_held {
        uint8_t relation[BLKLOG_RELATION_BYTES];
        int fd;                     /* primary: of the file; secondary: as above */
        bool open, recorded;        /* we write, and vouch for that; the record says so */
    } held[REMUS_DISKS_MAX];
    struct remus_disk_keeper {
        pthread_t thread;
        bool running, forget;       /* forget: the records; otherwise they are renewed */
        bool failed;                /* a record could not be written, or removed */
        bool forget_next;           /* ... when the thread has ended */
        bool tell_local;            /* primary: colo-blkd waits until they are gone */
        atomic_bool done;
        uint64_t us;                /* when it was begun last */
    } keeper;
};

/* Work in a thread of its own, one piece at a time: the loop has heartbeats to send meanwhile. */
struct remus_work {
    pthread_t thread;
    uv_async_t async;
    bool running;
    void (*work)(void *side);
    void (*done)(void *side);
};

/* The arbiter's program, which may take as long as an operator does. */
struct remus_arbitration {
    uv_work_t work;
    struct remus_arbiter arbiter;
    bool running;
    atomic_bool given_up;
    char session[37], domain[REMUS_NAME_MAX];
    int rc;
    char said[REMUS_ARBITER_SAID];
};

/* A request in xenstore that gates (remus_hook.h) are asked about. */
struct remus_gating {
    uv_work_t work;
    bool running;
    atomic_bool given_up;
    enum remus_question question;
    struct remus_hook_call call;
    char session[37], domain[REMUS_NAME_MAX];
    int rc;
    char said[300];
};

/* Nodes of the xenstore interface that change. */
enum remus_node {
    REMUS_NODE_STATE, REMUS_NODE_EPOCH, REMUS_NODE_PROTECTED, REMUS_NODE_HEALTH, REMUS_NODE_LAG,
    REMUS_NODE_DIVERGENCE, REMUS_NODE_REASON, REMUS_NODE_MODE, REMUS_NODE_RUNNING_MODE,
    REMUS_NODE_COUNT
};

struct remus_run {
    const struct remus_session_params *p;
    const struct remus_run_ops *ops;
    struct remus_session_result *result;
    void *side;                     /* struct primary or struct secondary */

    uv_loop_t loop;
    struct remus_path link, second;
    bool link_gone;                 /* and the peer is heard on .second */
    unsigned int second_beats;      /* heartbeats there since something came on the link */
    uint8_t *last_word;             /* STOP, as it was sent on the link */
    uint32_t last_word_bytes;
    uv_timer_t timer, period;
    uv_poll_t xs_poll;
    bool timers_open;

    struct xc_sr_handles h;
    struct xs_handle *xs;
    char name[REMUS_NAME_MAX];
    struct remus_daemon daemon;     /* of packets */
    struct remus_disks disks;
    struct remus_work work;
    struct remus_arbitration arbitration;
    struct remus_gating gating;

    struct remus_core core;
    struct { struct remus_event event; char text[200]; } events[RUN_EVENTS_MAX];
    unsigned int event_first, event_count;
    bool pumping, finished, stop_seen, hidden;
    bool minding;                   /* the session is over; the loop goes on for the disks */
    uint64_t peer_sent_us;          /* newest heartbeat, to be echoed */
    uint64_t channel_lost_us;       /* when the daemon reported the end of the packet channel */
    bool channel_lost_told;
    uint64_t disks_lost_us;         /* when colo-blkd reported that it replicates no more */
    char disks_lost[160];

    struct remus_status status;
    uint64_t status_us;
    uint64_t published_us;          /* xenstore nodes, as written last */
    char published[REMUS_NODE_COUNT][REMUS_XS_TEXT_MAX + 1];
    char announced[200];            /* why the last transition took place */
    struct remus_health_view health;
    uint64_t lag_from_us;           /* when the newest acknowledged epoch ended; 0: there is none */
    uint64_t rules_lost_epoch;      /* primary: the epoch in which somebody removed rules; 0 */
    uint32_t pauses[RUN_PAUSES];
    uint64_t pause_count;
};

int remus_run_init(struct remus_run *r, const struct remus_session_params *p,
                   const struct remus_run_ops *ops, struct remus_session_result *result,
                   void *side);
/* Starts the core and runs the loop until RA_FINISH was carried out by remus_run_finish. */
int remus_run_loop(struct remus_run *r);
/* After that, with other operations (watch, control, daemon_lost, periodic), until the end is asked
 * for. */
void remus_run_mind(struct remus_run *r, const struct remus_run_ops *ops);
void remus_run_mind_end(struct remus_run *r);
void remus_run_dispose(struct remus_run *r);

__attribute__((format(printf, 3, 4)))
void remus_run_log(struct remus_run *r, enum xc_sr_level level, const char *format, ...);
uint64_t remus_run_now_us(void);

/* Queues an event and, unless called from inside an event, works off the queue. */
__attribute__((format(printf, 5, 6)))
void remus_run_post(struct remus_run *r, enum remus_event_type type, uint64_t epoch,
                    uint64_t value, const char *format, ...);
/* The loop ends once all is closed. */
void remus_run_finish(struct remus_run *r, const struct remus_action *a);

/* Opens the link and the second path; the descriptors are the loop's from here on. */
int remus_run_link_open(struct remus_run *r);
void remus_run_link_start(struct remus_run *r);  /* reading */
void remus_run_link_look(struct remus_run *r);   /* now and then: is it silent? */
void remus_run_link_drain(struct remus_run *r);
/* When nothing is left to say: until the other side has closed it (true), or so long. */
bool remus_run_link_await_end(struct remus_run *r, unsigned int timeout_ms);
void remus_run_link_dispose(struct remus_run *r);
/* Something shows that it is gone: RE_LINK_LOST, unless the peer is heard on the second path. */
__attribute__((format(printf, 2, 3)))
void remus_run_link_lost(struct remus_run *r, const char *format, ...);
enum remus_second_path remus_run_second_path(const struct remus_run *r);

/* RA_SEND_HEARTBEAT. */
void remus_run_heartbeat(struct remus_run *r);
/* Sends one frame; the payload is copied.  Errors arrive as RE_LINK_LOST. */
void remus_run_send(struct remus_run *r, uint32_t type, uint64_t epoch, const void *payload,
                    uint32_t length);
/* The same, compressed if that is worth it and packer is not NULL. */
void remus_run_send_packed(struct remus_run *r, struct remus_packer *packer, uint32_t type,
                           uint64_t epoch, const void *payload, uint32_t length);
/* Sends bytes that are frames already; owns the buffer (malloc). */
void remus_run_send_raw(struct remus_run *r, uint8_t *buffer, uint32_t length);
size_t remus_run_link_queued(const struct remus_run *r);  /* bytes */
bool remus_run_link_full(const struct remus_run *r);
void remus_run_link_pause(struct remus_run *r, bool pause);  /* stop or go on reading */
void remus_run_link_close(struct remus_run *r);   /* both paths, without a word */

/* Starts LIBEXEC/args[0] with the control socket, its channel and (-1: none) keep_fd; waits for
 * READY.  d is zero, and stays where it is until the loop has ended: it is not used twice. */
int remus_run_daemon_start(struct remus_run *r, struct remus_daemon *d, char **args,
                           int channel_fd, int keep_fd);
/*
 * Waits for an answer while the guest is paused: other messages are dispatched meanwhile.
 * -ETIMEDOUT, -EPIPE.
 */
int remus_run_daemon_wait(struct remus_daemon *d, uint32_t type, int timeout_ms);
#define RUN_ANY_EPOCH UINT64_MAX
int remus_run_daemon_wait_for(struct remus_daemon *d, uint32_t type, uint64_t epoch,
                              int timeout_ms);
void remus_run_daemon_stop(struct remus_daemon *d);
/* It goes on without this process. */
void remus_run_daemon_leave(struct remus_daemon *d);

/*
 * work(side) in a thread, then done(side) in the loop, unless remus_run_work_wait came between.
 * work may use the handles in .h, its own part of side, and remus_run_log.
 */
int remus_run_work(struct remus_run *r, void (*work)(void *side), void (*done)(void *side));
/* Until the work under way is over; its done() is not called any more. */
void remus_run_work_wait(struct remus_run *r);

/* RA_ARBITRATE: closes the link and asks; RE_ARBITRATED or RE_FAILED follows. */
void remus_run_arbitrate(struct remus_run *r);

/* Runs a command (LIBEXEC/args[0]) to its end; feeds input to its stdin, keeps its output as far as
 * there is room.  Blocks: only where nothing else has to go on.  Exit status or negative errno. */
int remus_run_command(struct remus_run *r, char **args, const char *input, size_t input_bytes,
                      char *line, size_t line_bytes);

void remus_run_pause_taken(struct remus_run *r, uint64_t pause_us);
/* Requests in xenstore are read from here on (xen/include/public/remus.h); .h.domid is known. */
void remus_run_take_requests(struct remus_run *r);
/* Writes the nodes of xen/include/public/remus.h that do not change; .h.domid is known. */
void remus_run_introduce(struct remus_run *r);
/* A node that changes, unless it says that already. */
void remus_run_publish(struct remus_run *r, enum remus_node node, const char *text);
/* From here on nobody is told of this session, in xenstore or otherwise. */
void remus_run_hide(struct remus_run *r);
/* Tells the user, at most twice a second unless forced. */
void remus_run_status(struct remus_run *r, bool force);

#endif /* REMUS_RUN_H */
