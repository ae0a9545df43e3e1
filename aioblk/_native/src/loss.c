/*
 * What becomes of a queue whose device is silent, lost, or being replaced by another: docs/loss.md tells the whole story.
 * What the Python side decides is done here; but for the age of a request, nothing of it touches the path of one.
 */
#include "rooms.h"

#include <errno.h>

/* Nothing is taken from libblkio any more, and nothing given to it, until the queue goes on with another blkioq. */
void queue_set_blkioq(QueueCore *q, struct blkioq *blkioq, size_t depth)
{
    q->blkioq = blkioq;
    q->blkioq_turns++;
    q->depth = depth;
    q->suspended = false;
}

/* ---- loss ------------------------------------------------------------------------------------------------ */

static PyObject *make_lost(Request *r, Item *item)
{
    bool ranged = r->operation != OP_FLUSH;
    return device_make_refusal(r->queue->device, "lost", r->operation, ranged ? item->offset : UINT64_MAX,
                               ranged ? item->length : UINT64_MAX);
}

/* What is in flight when the device is lost fails with what it was, and why. The request is unlinked, hence ours. */
static void item_lose(Request *r, Item *item, PyObject *cause)
{
    if (item->left == 0 || item->exception) {
        return;
    }
    PyObject *exception = make_certainly(make_lost, r, item, ENODEV);
    PyException_SetCause(exception, Py_NewRef(cause));
    item->exception = exception;
}

static void request_lose(Request *r, PyObject *cause)
{
    item_lose(r, &r->item, cause);
    for (uint32_t i = 0; r->batch && i < r->count; i++) {
        item_lose(r, &r->items[i], cause);
    }
}

/* Closed since its device is lost, and not alone. */
static bool is_lost(const QueueCore *q) { return q->closed && strcmp(q->closed_reason, "lost") == 0; }

/*
 * The device is lost. Who waits is told so. What the device may still write to is never let go: such requests are
 * forgotten here but not released, and their memory lives as long as the process.
 */
static int abandon(QueueCore *q, PyObject *exception, size_t *count)
{
    bool was_busy = q->in_flight != NULL;
    bool lost = is_lost(q);
    Request *r;
    queue_set_blkioq(q, NULL, 0);
    queue_forget_parts(q);
    given_up_drop_held(q);
    for (r = q->in_flight; r; r = r->following) {
        r->admitted = r->part_count; /* nothing of it waits any more, whoever asks meanwhile */
    }
    while ((r = q->in_flight) != NULL) {
        bool in_use = r->issued > 0;
        queue_unlink(q, r);
        if (r->given_up) {
            lost ? given_up_leave(r) : given_up_end(r);
        }
        if (r->state == PENDING) {
            *count += r->weight;
            request_lose(r, exception);
        }
        if (!in_use) {
            r->outstanding = 0;
            queue_outcome(r);
            Py_DECREF(r);
            continue;
        }
        if (r->state == PENDING && r->batch && !r->cancel_requested) {
            batch_settle(r);
        } else if (r->state == PENDING) {
            if (!r->cancel_requested) {
                queue_count_failure(q, r->operation, &r->item);
            }
            request_settle(r, r->cancel_requested ? CANCELLED : FAILED);
        }
    }
    if (was_busy) {
        queue_tell_if_idle(q);
    }
    return queue_wake_others(q);
}

/* A thread that has no loop is not interrupted, it may be within do_io: it abandons the queue itself, in wait(). */
PyObject *queue_abandon(QueueCore *q, PyObject *exception)
{
    size_t count = 0;
    if (queue_has_loop(q) || q->thread == PyThread_get_thread_ident()) {
        return abandon(q, exception, &count) < 0 ? NULL : PyLong_FromSize_t(count);
    }
    PyObject *before = __atomic_exchange_n(&q->abandoned_for, Py_NewRef(exception), __ATOMIC_ACQ_REL);
    Py_XDECREF(before);
    return PyLong_FromSize_t(count);
}

/* It does not fail: where there is no loop, nobody is to be woken. */
bool queue_abandon_if_told(QueueCore *q)
{
    size_t count = 0;
    if (!OBSERVE(q->abandoned_for)) {
        return false;
    }
    PyObject *exception = __atomic_exchange_n(&q->abandoned_for, NULL, __ATOMIC_ACQ_REL);
    ENSURE(abandon(q, exception, &count) == 0);
    Py_DECREF(exception);
    return true;
}

/* Of a lost device: the memory stays where it is, for the requests that were abandoned with it. */
PyObject *queue_abandon_bounce(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (q->bounce) {
        allocator_free(q->bounce);
        q->bounce = NULL;
        q->bounce_address = NULL;
    }
    Py_RETURN_NONE;
}

/* ---- silence --------------------------------------------------------------------------------------------- */

/*
 * A tick of the watch for silence: what the device has a part of, and was not heard of since the last tick, grows older.
 * Returns the oldest, (ticks, operation, offset, length), or None. Requests need no clock and no stamp for it.
 */
PyObject *queue_grow_older(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    Request *oldest = NULL;
    for (Request *r = q->in_flight; r; r = r->following) {
        if (r->issued == 0) {
            r->age = 0; /* it waits for us, not for the device */
            continue;
        }
        r->age += r->age < UINT8_MAX;
        if (!oldest || r->age >= oldest->age) {
            oldest = r;
        }
    }
    if (!oldest) {
        Py_RETURN_NONE;
    }
    const Item *item = request_item(oldest, 0);
    for (uint32_t i = 1; oldest->batch && item->left == 0; i++) { /* what was issued is of an item that is not over */
        assert(i < oldest->count);
        item = &oldest->items[i];
    }
    const char *name = operation_names[oldest->operation];
    if (oldest->operation == OP_FLUSH) {
        return Py_BuildValue("isOO", oldest->age, name, Py_None, Py_None);
    }
    return Py_BuildValue("isKK", oldest->age, name, (unsigned long long)item->offset, (unsigned long long)item->length);
}

/* ---- suspension and return ------------------------------------------------------------------------------- */

/* libblkio's queue is gone or going. What is in flight stays so, and what is submitted from now on waits in the backlog. */
PyObject *queue_suspend(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (q->blkioq) { /* of a lost one, nothing waits for another device */
        queue_set_blkioq(q, NULL, 0);
        q->suspended = true;
    }
    Py_RETURN_NONE;
}

/*
 * The old device cannot execute anything any more, nor write to memory: what it had goes back to the backlog of the
 * suspended queue, in the order of submission. What was cancelled meanwhile ends here.
 */
PyObject *queue_recall(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (!q->suspended) {
        return PyErr_Format(PyExc_RuntimeError, "the queue is not suspended");
    }
    Request *r = q->in_flight;
    while (r && r->following) {
        r = r->following;
    }
    queue_forget_parts(q);
    for (; r; r = r->previous) {
        r->issued = 0;
        r->age = 0;
        assert(r->admitted <= r->part_count);
        for (uint32_t i = 0; i < r->admitted; i++) {
            Part *part = request_part(r, i);
            if (part->bounce_offset != PART_OVER && part->bounce_offset != PART_RIDES) {
                queue_append_backlog(q, part);
            }
        }
    }
    q->sweep_due = true;
    queue_issue_backlog(q); /* which issues nothing now */
    q->room_made = true;
    queue_go_on_next_turn(q); /* wakes who waited for what has ended */
    Py_RETURN_NONE;
}

/* A device has come in the old one's place: go on with its queue. */
PyObject *queue_resume(QueueCore *q, PyObject *args)
{
    unsigned long long blkioq, depth;
    int completion_fd;
    if (!PyArg_ParseTuple(args, "KiK", &blkioq, &completion_fd, &depth)) {
        return NULL;
    }
    if (blkioq == 0 || depth == 0 || q->blkioq || q->device_count > 0) {
        return PyErr_Format(PyExc_ValueError, "resume() takes a queue that was recalled or abandoned, and a new blkioq");
    }
    queue_set_blkioq(q, (struct blkioq *)(uintptr_t)blkioq, depth);
    q->completion_fd = completion_fd;
    if (is_lost(q)) {
        PUBLISH(q->closed, false);
    }
    queue_go_on_next_turn(q);
    Py_RETURN_NONE;
}
