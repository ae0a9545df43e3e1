/*
 * What was given up: changes that the device still has a part of, although their requests were cancelled and have ended. They
 * may land at any time, over what has been written since. So whatever meets the range of one waits until the device is
 * through with it: a newcomer is *held* by its queue, linked and not admitted, and goes on when nothing of what it meets is
 * left. All queues of a device hold for what any of them has given up.
 *
 * Nothing of this is on the way of others, but for a look at `given_up` of the device, which is NULL then.
 */
#include "rooms.h"

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

bool given_up_meets(const GivenUp *given_up, Request *r)
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

/* ---- in flight ------------------------------------------------------------------------------------------- */

typedef struct {
    Range range;
    Request *request;
} Change;

static bool is_change_in_flight(const Request *r) { return r->state == PENDING && changes_data(r->operation); }

/* With new references: what is done with them may run Python code, which changes what is in flight. */
static Change *changes_in_flight(QueueCore *q, size_t *count)
{
    *count = 0;
    for (Request *r = q->in_flight; r; r = r->following) {
        *count += is_change_in_flight(r) ? count_ranges(r) : 0;
    }
    Change *found = PyMem_Malloc((*count + 1) * sizeof(*found)), *next = found;
    for (Request *r = q->in_flight; found && r; r = r->following) {
        for (uint32_t i = 0; is_change_in_flight(r) && i < count_ranges(r); i++) {
            *next++ = (Change){range_of(r, i), (Request *)Py_NewRef(r)};
        }
    }
    return found;
}

PyObject *queue_changes(QueueCore *q)
{
    size_t count;
    Change *changes = changes_in_flight(q, &count);
    if (!changes) {
        return PyErr_NoMemory();
    }
    PyObject *found = PyList_New(0);
    for (Change *change = changes; change < changes + count; change++) {
        PyObject *triple = found ? Py_BuildValue("KKO", (unsigned long long)change->range.start,
                                                 (unsigned long long)change->range.end, change->request)
                                 : NULL;
        if (!triple || PyList_Append(found, triple) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(triple);
        Py_DECREF(change->request);
    }
    PyMem_Free(changes);
    return found;
}

/* ---- giving up ------------------------------------------------------------------------------------------- */

bool given_up_can_be(const Request *r)
{
    bool external = r->operation == OP_DISCARD && r->queue->device->discard_method == DISCARD_BY_HOOK;
    return r->linked && changes_data(r->operation) && (r->issued > 0 || (external && r->admitted > 0));
}

bool given_up_begin(Request *r)
{
    DeviceCore *device = r->queue->device;
    uint32_t count = count_ranges(r);
    GivenUp *given_up = PyMem_Malloc(sizeof(*given_up) + count * sizeof(Range));
    if (!given_up) {
        return false;
    }
    assert(r->linked && !r->given_up);
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
 * A queue that holds requests is to look at them again. Without a loop it does so by itself, in wait(). False: it has not come
 * to know, for want of memory or since an order has arrived within.
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
    PyObject *answer = PyObject_CallMethod(q->loop, "call_soon_threadsafe", "O", q->flush_method);
    if (!answer && PyErr_ExceptionMatches(PyExc_Exception)) {
        reached = !PyErr_ExceptionMatches(PyExc_MemoryError); /* or else the loop is closed */
        PyErr_Clear();
    } else if (!answer) {
        reached = false;
        raise_in_main_thread();
    }
    Py_XDECREF(answer);
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
    assert(r->given_up && !r->linked);
    r->given_up = false;
    LOCK(&device->lock);
    GivenUp **place = place_of(device, r), *given_up = *place;
    ENSURE(given_up);
    PUBLISH(*place, given_up->next);
    UNLOCK(&device->lock);
    PyMem_Free(given_up);
    given_up_tell(r->queue);
}

void given_up_leave(Request *r)
{
    DeviceCore *device = r->queue->device;
    assert(r->given_up && !r->linked);
    r->given_up = false;
    LOCK(&device->lock);
    GivenUp *given_up = *place_of(device, r);
    ENSURE(given_up);
    given_up->request = NULL;
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
