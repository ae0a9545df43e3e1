/*
 * Requests that are held: whatever meets the range of what was given up waits until the device is through with it. A
 * newcomer is linked and not admitted, and goes on when nothing of what it meets is left.
 */
#include "rooms.h"

#include <errno.h>

/* ---- holding --------------------------------------------------------------------------------------------- */

/* Reports of zones say where the next write goes. Flushes cover what is done, and wait for nothing. */
static bool depends_on_data(const Request *r) { return r->operation != OP_FLUSH || (r->flags & REQUEST_BARRIER); }

/* Whether the request meets anything; then its queue will be told. */
static bool must_be_held(QueueCore *q, Request *r)
{
    DeviceCore *device = q->device;
    if (!depends_on_data(r) || (!q->blkioq && !q->suspended)) {
        return false; /* of a lost device, nothing is waited for */
    }
    LOCK(&device->lock);
    bool meets = given_up_meets(device->given_up, r);
    q->holds = q->holds || meets;
    UNLOCK(&device->lock);
    return meets;
}

static __attribute__((noinline, cold)) bool holds(QueueCore *q, Request *r)
{
    if (!must_be_held(q, r)) {
        return false;
    }
    q->counters.submitted += r->weight;
    r->outstanding = r->part_count;
    queue_link(q, r);
    queue_hold(q, r);
    return true;
}

/* Nothing of this is on the way of others, but for a look at `given_up` of the device, which is NULL then. */
inline bool given_up_keeps(QueueCore *q, Request *r)
{
    return __builtin_expect(OBSERVE(q->device->given_up) != NULL, 0) && holds(q, r);
}

/* ---- going on -------------------------------------------------------------------------------------------- */

int queue_call_external(Request *r, PyObject *hook)
{
    r->admitted = 1;
    if (!hook || hook == Py_None) {
        PyErr_Format(PyExc_RuntimeError, "the queue has no hook for %s", operation_names[r->operation]);
        return -1;
    }
    Py_INCREF(hook); /* it may put another in its own place */
    PyObject *answer = PyObject_CallFunction(hook, "OKK", r, (unsigned long long)r->item.offset,
                                             (unsigned long long)r->item.length);
    Py_DECREF(hook);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

/* What the hook raises is what the request comes to; an order is for the loop. */
static void begin_external(QueueCore *q, Request *r)
{
    PyObject *exception = NULL;
    if (queue_call_external(r, q->on_discard) == 0) {
        return;
    }
    if (PyErr_ExceptionMatches(PyExc_Exception)) {
        exception = take_exception();
    } else {
        queue_put_off(q);
    }
    if (r->linked) { /* still, whatever the hook has done */
        r->item.exception = Py_XNewRef(exception);
        queue_part_done(q, &r->first_part, -EINTR, NULL);
    }
    Py_XDECREF(exception);
}

static void begin(QueueCore *q, Request *r)
{
    if (r->flags & REQUEST_BARRIER) {
        r->admitted = 1;
        queue_part_done(q, &r->first_part, 0, NULL);
    } else if (r->operation == OP_DISCARD && q->device->discard_method == DISCARD_BY_HOOK) {
        begin_external(q, r);
    } else if (request_admit(q, r) < 0) {
        queue_put_off(q);
        if (r->linked) { /* still, whatever has been done meanwhile */
            request_fail_unadmitted(r, EINTR, NULL, NULL);
        }
    }
}

/* Whether to look at them again. */
static bool takes_news(QueueCore *q)
{
    LOCK(&q->device->lock);
    bool news = q->told != 0 || q->held_cancelled;
    q->told = 0;
    UNLOCK(&q->device->lock);
    q->held_cancelled = false;
    return news;
}

/* Those that meet nothing any more go on, in the order of their submission; those that were cancelled are let go. */
static void release(QueueCore *q)
{
    for (size_t left = q->held_count; left > 0; left--) {
        Request *r = queue_take_held(q);
        if (!r) {
            break; /* what has gone on runs Python code, which may have given the device up */
        }
        assert(r->linked && r->admitted == 0);
        if (r->cancel_requested) {
            request_drop_unadmitted(r);
        } else if (must_be_held(q, r)) {
            queue_hold(q, r);
        } else {
            begin(q, r);
        }
        Py_DECREF(r);
    }
    LOCK(&q->device->lock);
    q->holds = q->held_head != NULL;
    UNLOCK(&q->device->lock);
}

/* One that goes on may have to wait for bounce memory, and drive the queue meanwhile: the others wait for their turn. */
void given_up_release(QueueCore *q)
{
    if (q->releasing) {
        return;
    }
    q->releasing = true;
    while (q->held_head && takes_news(q)) {
        release(q);
    }
    q->releasing = false;
}

/* They are in flight, and lost with the device as all that is. */
void given_up_drop_held(QueueCore *q)
{
    Request *r;
    while ((r = queue_take_held(q)) != NULL) {
        Py_DECREF(r);
    }
    LOCK(&q->device->lock);
    q->holds = false;
    UNLOCK(&q->device->lock);
}
