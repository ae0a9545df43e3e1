/*
 * What was given up: changes that the device still has a part of, although their requests were cancelled and have ended. They
 * may land at any time, over what has been written since. So whatever meets the range of one waits until the device is
 * through with it: a newcomer is *held* by its queue, linked and not admitted, and goes on when nothing of what it meets is
 * left. All queues of a device hold for what any of them has given up.
 *
 * Nothing of this is on the way of others, but for a look at `given_up` of the device, which is NULL then.
 */
#include "queue.h"

#include <errno.h>

typedef struct {
    uint64_t start, end;
} Range;

struct given_up {
    GivenUp *next;
    const Request *request; /* who it was: another thread's, perhaps, and never looked into; NULL: a lost device has it */
    uint32_t count;
    Range ranges[];
};

/* ---- ranges ---------------------------------------------------------------------------------------------- */

static bool changes_data(Operation op)
{
    return op != OP_READ && op != OP_FLUSH && op != OP_REPORT_ZONES;
}

/* Reports of zones say where the next write goes. Flushes cover what is done, and wait for nothing. */
static bool depends_on_data(const Request *r) { return r->operation != OP_FLUSH || (r->flags & REQUEST_BARRIER); }

/* What the i-th item of a request touches. How long a zone is, is not known here. */
static Range range_of(Request *r, uint32_t i)
{
    if (r->operation > OP_FLUSH || (r->flags & REQUEST_BARRIER)) {
        return (Range){0, UINT64_MAX};
    }
    const Item *item = request_item(r, i);
    return (Range){item->offset, item->offset + item->length};
}

static uint32_t count_ranges(const Request *r) { return r->batch ? r->count : 1; }

/* Of zero bytes, nothing meets anything. */
static bool meet(Range a, Range b)
{
    return (a.start > b.start ? a.start : b.start) < (a.end < b.end ? a.end : b.end);
}

/* Under the device's lock. */
static bool meets_any(const GivenUp *given_up, Request *r)
{
    for (; given_up; given_up = given_up->next) {
        for (uint32_t i = 0; i < count_ranges(r); i++) {
            Range ours = range_of(r, i);
            for (uint32_t k = 0; k < given_up->count; k++) {
                if (meet(ours, given_up->ranges[k])) {
                    return true;
                }
            }
        }
    }
    return false;
}

/* ---- giving up ------------------------------------------------------------------------------------------- */

bool given_up_can_be(const Request *r)
{
    bool external = r->operation == OP_DISCARD && r->queue->device->discard_method == DISCARD_BY_HOOK && r->admitted > 0;
    return r->linked && changes_data(r->operation) && (r->issued > 0 || external);
}

bool given_up_begin(Request *r)
{
    DeviceCore *device = r->queue->device;
    uint32_t count = count_ranges(r);
    GivenUp *given_up = PyMem_Malloc(sizeof(*given_up) + count * sizeof(Range));
    if (!given_up) {
        return false;
    }
    given_up->request = r;
    given_up->count = count;
    for (uint32_t i = 0; i < count; i++) {
        given_up->ranges[i] = range_of(r, i);
    }
    r->given_up = true;
    LOCK(&device->lock);
    given_up->next = device->given_up;
    PUBLISH(device->given_up, given_up);
    UNLOCK(&device->lock);
    return true;
}

/*
 * A queue that holds requests is to look at them again. Without a loop it does so by itself, in wait(). False: there is no
 * memory to have it do so.
 */
static bool tell(QueueCore *q)
{
    PyObject *type, *value, *traceback;
    bool reached = true;
    if (!queue_has_loop(q)) {
        return true;
    }
    if (q->thread == PyThread_get_thread_ident()) {
        queue_go_on_next_turn(q);
        return true;
    }
    PyErr_Fetch(&type, &value, &traceback);
    for (int tries = 0; tries < 2; tries++) {
        PyObject *answer = PyObject_CallMethod(q->loop, "call_soon_threadsafe", "O", q->flush_method);
        if (answer) {
            Py_DECREF(answer);
            break;
        }
        if (PyErr_ExceptionMatches(PyExc_Exception)) {
            reached = !PyErr_ExceptionMatches(PyExc_MemoryError); /* or else the loop is closed */
            PyErr_Clear();
            break;
        }
        raise_in_main_thread();
    }
    PyErr_Restore(type, value, traceback);
    return reached;
}

/* Some queue that is to be told: a new reference. A queue that holds a request is kept by it. */
static QueueCore *next_to_tell(DeviceCore *device)
{
    LOCK(&device->lock);
    QueueCore *q = device->queues;
    while (q && (!q->holds || q->told == TOLD)) {
        q = q->next_of_device;
    }
    if (q) {
        q->told = TOLD;
        Py_INCREF(q);
    }
    UNLOCK(&device->lock);
    return q;
}

void given_up_tell(QueueCore *by)
{
    QueueCore *q;
    bool reached = true;
    while (reached && (q = next_to_tell(by->device)) != NULL) {
        reached = tell(q);
        if (!reached) {
            LOCK(&by->device->lock);
            q->told = UNREACHED;
            UNLOCK(&by->device->lock);
        }
        Py_DECREF(q);
    }
    if (!reached) {
        queue_tell_later(by, UNTOLD_HOLDERS);
    }
}

/* Under the device's lock. */
static GivenUp **place_of(DeviceCore *device, const Request *r)
{
    GivenUp **place = &device->given_up;
    while (*place && (*place)->request != r) {
        place = &(*place)->next;
    }
    return place;
}

void given_up_end(Request *r)
{
    DeviceCore *device = r->queue->device;
    r->given_up = false;
    LOCK(&device->lock);
    GivenUp **place = place_of(device, r), *given_up = *place;
    PUBLISH(*place, given_up->next);
    UNLOCK(&device->lock);
    PyMem_Free(given_up);
    given_up_tell(r->queue);
}

void given_up_leave(Request *r)
{
    DeviceCore *device = r->queue->device;
    r->given_up = false;
    LOCK(&device->lock);
    (*place_of(device, r))->request = NULL;
    UNLOCK(&device->lock);
}

void given_up_forget(DeviceCore *device)
{
    GivenUp **place, *given_up;
    do {
        LOCK(&device->lock);
        place = place_of(device, NULL);
        given_up = *place;
        if (given_up) {
            PUBLISH(*place, given_up->next);
        }
        UNLOCK(&device->lock);
        PyMem_Free(given_up);
    } while (given_up);
}

/* ---- holding --------------------------------------------------------------------------------------------- */

/* Whether the request meets anything; then its queue will be told. */
static bool must_be_held(QueueCore *q, Request *r)
{
    DeviceCore *device = q->device;
    if (!depends_on_data(r) || (!q->blkioq && !q->suspended)) {
        return false; /* of a lost device, nothing is waited for */
    }
    LOCK(&device->lock);
    bool meets = meets_any(device->given_up, r);
    q->holds = q->holds || meets;
    UNLOCK(&device->lock);
    return meets;
}

static void hold(QueueCore *q, Request *r)
{
    Py_INCREF(r);
    r->first_part.next = NULL;
    if (q->held_tail) {
        q->held_tail->next = &r->first_part;
    } else {
        q->held_head = &r->first_part;
    }
    q->held_tail = &r->first_part;
    q->held_count++;
}

/* A new reference, or NULL. */
static Request *take_held(QueueCore *q)
{
    Part *part = q->held_head;
    if (!part) {
        return NULL;
    }
    q->held_head = part->next;
    q->held_tail = part->next ? q->held_tail : NULL;
    q->held_count--;
    return part->request;
}

__attribute__((noinline, cold)) bool given_up_holds(QueueCore *q, Request *r)
{
    if (!must_be_held(q, r)) {
        return false;
    }
    q->counters.submitted += r->weight;
    r->outstanding = r->part_count;
    queue_link(q, r);
    hold(q, r);
    return true;
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
        Request *r = take_held(q);
        if (!r) {
            break; /* what has gone on runs Python code, which may have given the device up */
        }
        if (r->linked && r->admitted == 0 && r->outstanding > 0) { /* it has not been cancelled */
            if (must_be_held(q, r)) {
                hold(q, r);
            } else {
                queue_begin(q, r);
            }
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

/* The requests are over: cancelled, or lost with the device. */
void given_up_drop_held(QueueCore *q)
{
    Request *r;
    while ((r = take_held(q)) != NULL) {
        Py_DECREF(r);
    }
    LOCK(&q->device->lock);
    q->holds = false;
    UNLOCK(&q->device->lock);
}
