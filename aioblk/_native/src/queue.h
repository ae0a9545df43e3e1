/*
 * The rooms of a queue, and what they ask of each other:
 *
 *   submission.c   takes a planned request into the queue
 *   parts.c        gives its parts bounce memory, issues them to libblkio, keeps the backlog
 *   reap.c         calls do_io and takes what has completed, whenever the loop or a waiting thread says so
 *   outcome.c      keeps the requests in flight, and settles those that are through
 *   loop.c         asks the event loop for turns, and wakes who waits
 *   loss.c         gives up what a lost device has, or keeps it for another one
 *   queue_core.c   shows it all to the Python side
 */
#ifndef AIOBLK_QUEUE_H
#define AIOBLK_QUEUE_H

#include "core.h"

/*
 * Inline completions in a row before others must get their turn, in units of about a microsecond: a request is one, and so
 * is the copying of so many bytes.
 */
#define INLINE_BUDGET 512
#define BYTES_PER_UNIT 8192

static inline bool queue_usable(const QueueCore *q) { return q->blkioq && q->fork_generation == fork_generation; }

/* Nothing is taken from libblkio any more, and nothing given to it, until the queue goes on with another blkioq. */
static inline void queue_set_blkioq(QueueCore *q, struct blkioq *blkioq, size_t depth)
{
    q->blkioq = blkioq;
    q->blkioq_turns++;
    q->depth = depth;
    q->suspended = false;
}

/* ---- loop.c ------------------------------------------------------------------------------------------------ */

int loop_module_init(void);
/* Whether the caller is in the step of a task that this queue has woken directly, and not in a loop that the task runs. */
static inline bool queue_woke_caller(const QueueCore *q)
{
    return q->woken_context && q->waker->context == q->woken_context;
}
/* A bound method that returns the loop, and a future that is done and asyncio's own: see step_task. */
PyObject *loop_getter(PyObject *loop);
PyObject *loop_finished_future(PyObject *loop);
/* Raises what was put off: 0, or -1. */
int queue_raise_put_off(QueueCore *q);

/* ---- outcome.c --------------------------------------------------------------------------------------------- */

void queue_link(QueueCore *q, Request *r);
void queue_unlink(QueueCore *q, Request *r);
void queue_tell_if_idle(QueueCore *q);
void queue_tell_untold(QueueCore *q); /* hooks that could not be called before */

/* ---- parts.c ----------------------------------------------------------------------------------------------- */

/* What the device is given: bounce memory for a part that needs it. False: there is no room now. */
bool queue_prepare_memory(QueueCore *q, Part *part);
static inline bool queue_prepare_part(QueueCore *q, Part *part)
{
    return (part->bounce_length == 0 && !part->vector) || queue_prepare_memory(q, part);
}
/* The request's parts in order, as far as there is room. */
bool queue_admit_parts(QueueCore *q, Request *r);
/* Takes what has not been admitted out of the request's account; fails it first. */
void request_drop_unadmitted(Request *r);
void request_fail_unadmitted(Request *r, int error, PyObject *exception);
bool queue_may_issue(const QueueCore *q, const Part *part);
void queue_issue(QueueCore *q, Part *part);
void queue_append_backlog(QueueCore *q, Part *part);
void queue_issue_once_more(QueueCore *q, Part *part); /* soon */
bool part_is_pointless(const Part *part);             /* nobody wants it any more */
void queue_issue_backlog(QueueCore *q);
void queue_part_done(QueueCore *q, Part *part, int ret, const char *message);
/* Of what the device had or was to get, nothing is left to do: the requests in flight are all that there is. */
void queue_forget_parts(QueueCore *q);

extern bool queues_in_several_threads; /* have been bound, since the process began */

/* ---- submission.c ------------------------------------------------------------------------------------------ */

/* A request that found no room is queued by the pool, or refused by it. -1: KeyboardInterrupt or the like, for the caller. */
int queue_ask_for_room(QueueCore *q, Request *r);
/* A request that was held is started, as if it had been submitted now. */
void queue_begin(QueueCore *q, Request *r);

/* ---- reap.c ------------------------------------------------------------------------------------------------ */

/* Submits what was issued and takes what has completed; returns how many completions. */
void queue_new_turn(QueueCore *q); /* others have had their turn: inline completions are harmless again */
void queue_reset_event(QueueCore *q); /* read the eventfd; do_io must follow, unless libblkio has nothing left */
int queue_reap(QueueCore *q);
PyObject *queue_flush(QueueCore *q, PyObject *ignored);
PyObject *queue_on_event(QueueCore *q, PyObject *ignored);
PyObject *queue_wait(QueueCore *q, PyObject *args);

/* ---- loss.c ------------------------------------------------------------------------------------------------ */

/* In the queue's own thread: 1 when another one had found the device lost, -1 with an exception. */
int queue_abandon_if_told(QueueCore *q);
PyObject *queue_abandon(QueueCore *q, PyObject *exception);
PyObject *queue_abandon_bounce(QueueCore *q, PyObject *ignored);
PyObject *queue_grow_older(QueueCore *q, PyObject *ignored);
PyObject *queue_suspend(QueueCore *q, PyObject *ignored);
PyObject *queue_recall(QueueCore *q, PyObject *ignored);
PyObject *queue_resume(QueueCore *q, PyObject *args);

/* ---- queue_core.c ------------------------------------------------------------------------------------------ */

/* Borrowed, or NULL with TypeError. */
Request *queue_own_request(QueueCore *q, PyObject *object);

#endif
