/*
 * Submission, the third entrance to a queue: a planned request is linked and its parts are issued to libblkio, or put on
 * the backlog, or wait for bounce memory. One flush per turn of the loop carries them to the device.
 */
#include "queue.h"

#include <errno.h>

/*
 * Submitting at once saves a turn of the loop when nothing else is going on, and costs a system call per request when
 * there is. "Nothing else" is: nothing with the device, one request in the previous flush, and the previous inline
 * completion already looked at (else the caller is collecting requests, as gather() does).
 */
static bool idle(const QueueCore *q)
{
    return q->device_count == 0 && !q->backlog_head && !q->flush_scheduled && q->inline_budget > 0 &&
           !OBSERVE(q->inline_request) && q->completion_fd >= 0 && q->blkioq;
}

static bool alone(const QueueCore *q) { return q->last_batch <= 1 && idle(q); }

/*
 * A completion taken inline leaves its event behind, for which the loop would wake up in vain. The first few of a turn
 * take it away; where many follow each other without a turn between them, one stale event for all is cheaper.
 */
#define EVENTS_RESET_INLINE 2

/*
 * Submits, and reaps what completes within the call. Where the budget has been used up, who awaits the request lets
 * others have their turn first, although it is done: cheaper than a turn that submits.
 */
static void submit_inline(QueueCore *q, Request *r)
{
    int cost = q->unflushed_parts + q->unflushed_bytes / BYTES_PER_UNIT;
    queue_reap(q);
    if (r->state == PENDING) {
        return;
    }
    bool first = INLINE_BUDGET - q->inline_budget < EVENTS_RESET_INLINE;
    q->inline_budget -= cost;
    if (q->inline_budget <= 0) {
        r->turn = TURN_DUE;
    }
    if (q->device_count == 0 && (first || q->inline_budget <= 0)) {
        queue_reset_event(q);
    }
    q->counters.inline_completions++;
    r->inline_completion = true;
    PUBLISH(q->inline_request, r);
}

/* Who waits for requests that completed on the way; nothing of it concerns the caller. */
static void wake_others(QueueCore *q)
{
    if (queue_wake_others(q) < 0) {
        (void)put_off_exception(q, (PyObject *)q);
    }
}

static void submit_now(QueueCore *q, Request *r)
{
    queue_issue(q, &r->first_part);
    r->admitted = 1;
    submit_inline(q, r);
    if (r->state == PENDING && q->spin_ns > 0) {
        if (q->spin_pause > 0) {
            q->spin_pause--;
        } else {
            queue_go_on_next_turn(q); /* the flush spins, after others have had their turn */
        }
    }
    wake_others(q);
}

/* The bounce memory that a request wants to go on: for its largest part, since the others can follow, or for a batch. */
static uint64_t bounce_need(Request *r)
{
    uint64_t largest = 0, all = 0;
    for (uint32_t i = r->admitted; i < r->part_count; i++) {
        uint64_t length = request_part(r, i)->bounce_length;
        largest = length > largest ? length : largest;
        all += length;
    }
    return r->batch ? all : largest;
}

int queue_ask_for_room(QueueCore *q, Request *r)
{
    PyObject *hook = Py_XNewRef(q->on_bounce); /* it may put another in its own place */
    PyObject *answer = hook && hook != Py_None
                           ? PyObject_CallFunction(hook, "OK", r, (unsigned long long)bounce_need(r))
                           : PyErr_Format(PyExc_RuntimeError, "the queue has no bounce pool");
    Py_XDECREF(hook);
    if (answer) {
        Py_DECREF(answer);
        return 0;
    }
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyObject *exception = take_exception();
    if (r->linked) { /* still, whatever the hook has done */
        request_fail_unadmitted(r, 0, exception);
    }
    Py_DECREF(exception);
    return 0;
}

static bool needs_bounce(Request *r)
{
    for (uint32_t i = 0; i < r->part_count; i++) {
        if (request_part(r, i)->bounce_length > 0) {
            return true;
        }
    }
    return false;
}

/* -1: as queue_ask_for_room. */
static int admit(QueueCore *q, Request *r)
{
    if (!q->blkioq && !q->suspended) { /* lost since the caller was checked: preparing may run Python code */
        request_fail_unadmitted(r, ENODEV, NULL);
    } else if ((q->waiting > 0 && needs_bounce(r)) || !queue_admit_parts(q, r)) {
        return queue_ask_for_room(q, r);
    }
    return 0;
}

/* Links the request and starts its parts; the caller flushes. -1: as queue_ask_for_room. */
static int start(QueueCore *q, Request *r)
{
    q->counters.submitted += r->weight;
    r->outstanding = r->part_count;
    queue_link(q, r);
    return admit(q, r);
}

/* The caller gets an exception instead of the request, which goes on as if it had been cancelled. */
static int withdraw(Request *r)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    (void)request_cancel_io(r, NULL);
    queue_go_on_next_turn(r->queue); /* with what has been issued */
    PyErr_Restore(type, value, traceback);
    return -1;
}

/* A batch is one system call, whatever went before. */
static void submit_batch_now(QueueCore *q, Request *batch)
{
    submit_inline(q, batch);
    if (batch->state == PENDING && (q->backlog_head || q->room_made)) {
        queue_go_on_next_turn(q);
    }
}

int queue_submit(QueueCore *q, Request *r)
{
    if (given_up_keeps(q, r)) {
        return 0;
    }
    if (r->part_count == 1 && alone(q) && q->waiting == 0 && queue_prepare_part(q, &r->first_part)) {
        q->counters.submitted++;
        r->outstanding = 1;
        queue_link(q, r);
        submit_now(q, r);
        return 0;
    }
    bool now = r->batch && idle(q);
    if (!now && queue_schedule_flush(q) < 0) {
        return -1;
    }
    if (start(q, r) < 0) {
        return withdraw(r);
    }
    if (now) {
        submit_batch_now(q, r);
    }
    wake_others(q);
    return 0;
}

static int call_external(Request *r, PyObject *hook)
{
    r->admitted = 1;
    Py_INCREF(hook); /* it may put another in its own place */
    PyObject *answer = PyObject_CallFunction(hook, "OKK", r, (unsigned long long)r->item.offset,
                                             (unsigned long long)r->item.length);
    Py_DECREF(hook);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

/* Work outside libblkio, done by the Python side on a thread of its own: it ends with complete(). */
int queue_submit_external(QueueCore *q, Request *r, PyObject *hook)
{
    if (!hook || hook == Py_None) {
        PyErr_Format(PyExc_RuntimeError, "the queue has no hook for %s", operation_names[r->operation]);
        return -1;
    }
    if (!queue_usable(q)) { /* since the caller was checked: what the hook would use may belong to somebody else by now */
        return device_refuse(q->device, q->closed_reason ? q->closed_reason : "lost", r->operation, r->item.offset,
                             r->item.length);
    }
    if (given_up_keeps(q, r)) {
        return 0;
    }
    q->counters.submitted++;
    r->outstanding = 1;
    queue_link(q, r);
    if (call_external(r, hook) == 0) {
        return 0;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (r->linked) { /* still, whatever the hook has done */
        r->cancel_requested = true; /* the caller gets the hook's exception, not the request */
        r->outstanding = 0;
        queue_outcome(r);
    }
    PyErr_Restore(type, value, traceback);
    return -1;
}

/* ---- requests that were held ----------------------------------------------------------------------------------- */

static int begin_external(QueueCore *q, Request *r)
{
    if (q->on_discard && q->on_discard != Py_None) {
        return call_external(r, q->on_discard);
    }
    PyErr_SetString(PyExc_RuntimeError, "the queue has no hook for discards any more");
    return -1;
}

void queue_begin(QueueCore *q, Request *r)
{
    bool external = r->operation == OP_DISCARD && q->device->discard_method == DISCARD_BY_HOOK;
    if (r->flags & REQUEST_BARRIER) {
        r->admitted = 1;
        queue_part_done(q, &r->first_part, 0, NULL);
        return;
    }
    if ((external ? begin_external(q, r) : admit(q, r)) == 0) {
        return;
    }
    PyObject *exception = NULL;
    if (PyErr_ExceptionMatches(PyExc_Exception)) {
        exception = take_exception();
    } else {
        queue_put_off(q);
    }
    if (r->linked) { /* still, whatever the hook has done */
        r->admitted = external ? 0 : r->admitted;
        request_fail_unadmitted(r, exception ? 0 : EINTR, exception);
    }
    Py_XDECREF(exception);
}
