/* Requests in flight, from link to unlink, and what they come to in the end. */
#include "queue.h"

void queue_link(QueueCore *q, Request *r)
{
    Py_INCREF(r);
    r->linked = true;
    r->previous = NULL;
    r->following = q->in_flight;
    if (q->in_flight) {
        q->in_flight->previous = r;
    }
    q->in_flight = r;
    q->in_flight_count++;
}

/* Nobody else can reach the request from here on, whatever Python code runs. Its reference goes to the caller. */
void queue_unlink(QueueCore *q, Request *r)
{
    *(r->previous ? &r->previous->following : &q->in_flight) = r->following;
    if (r->following) {
        r->following->previous = r->previous;
    }
    r->linked = false;
    r->previous = r->following = NULL;
    q->in_flight_count--;
}

void queue_tell_if_idle(QueueCore *q)
{
    if (q->in_flight_count == 0) {
        call_hook(q->on_idle, NULL);
    }
}

/* A batch's outcome is its children's: the first error, or the list of what they gave. */
static int collect_children(Request *batch)
{
    bool values = batch->return_exceptions || batch->flags; /* flags of a batch: it reads bytes */
    PyObject *results = values ? PyList_New(batch->child_count) : NULL;
    if (values && !results) {
        return -1;
    }
    for (uint32_t i = 0; i < batch->child_count; i++) {
        Request *child = batch->children[i];
        PyObject *value;
        if (child->state == FAILED) {
            value = request_exception_object(child);
            if (!value) {
                Py_XDECREF(results);
                return -1;
            }
            Py_CLEAR(child->exception); /* the collector could not break a circle through an item: it sees none */
            if (!batch->return_exceptions) {
                Py_XDECREF(results);
                Py_XSETREF(batch->exception, value);
                request_settle(batch, FAILED);
                return 0;
            }
        } else {
            value = Py_NewRef(child->result ? child->result : Py_None);
        }
        if (values) {
            PyList_SET_ITEM(results, i, value);
        } else {
            Py_DECREF(value);
        }
    }
    batch->result = results;
    request_settle(batch, FINISHED);
    return 0;
}

void request_child_done(Request *batch)
{
    if (--batch->outstanding > 0 || batch->state != PENDING) {
        return;
    }
    if (batch->cancel_requested) {
        request_settle(batch, CANCELLED);
    } else if (collect_children(batch) < 0) {
        Py_XSETREF(batch->exception, take_exception());
        request_settle(batch, FAILED);
    }
}

/* The parent has the child: no circles. */
void request_leave_batch(Request *r)
{
    Request *batch = r->parent;
    if (batch) {
        r->parent = NULL;
        request_child_done(batch);
        Py_DECREF(batch);
    }
}

/* Letting go of memory may run Python code, which may do anything; so the request leaves the queue's books first. */
void queue_outcome(Request *r)
{
    QueueCore *q = r->queue;
    bool linked = r->linked;
    if (linked) {
        queue_unlink(q, r);
    }
    request_drop_parts(r);
    request_drop_pins(r);
    if (r->state == PENDING) {
        if (r->cancel_requested) {
            request_settle(r, CANCELLED);
        } else if (r->error || r->exception) {
            q->counters.failed++;
            request_settle(r, FAILED);
        } else {
            q->counters.completed++;
            request_settle(r, FINISHED);
        }
    }
    request_leave_batch(r);
    if (linked) {
        queue_tell_if_idle(q);
        Py_DECREF(r);
    }
}
