/*
 * A request's memory: made, kept for reuse, and what it holds and how that is dropped. What asyncio sees of it, awaitable.c
 * fills into the types that begin here.
 */
#include "rooms.h"

/* Requests are made at the rate of the I/O: each queue keeps a few to save the allocator's time. */
#ifndef FREE_MAX
#define FREE_MAX 1024
#endif

/* ---- making ---------------------------------------------------------------------------------------------- */

Request *request_new(QueueCore *queue, Operation op, uint64_t offset, uint64_t length)
{
    Request *r = queue->free_requests;
    if (r) {
        queue->free_requests = r->ready_next;
        queue->free_count--;
        (void)PyObject_Init((PyObject *)r, &Request_Type);
    } else {
        r = PyObject_GC_New(Request, &Request_Type);
        if (!r) {
            return NULL;
        }
    }
    memset((char *)r + sizeof(PyObject), 0, offsetof(Request, item.pin) - sizeof(PyObject));
    r->item.pin.obj = NULL;
    r->queue = (QueueCore *)Py_NewRef(queue);
    r->operation = op;
    r->weight = 1;
    r->item.offset = offset;
    r->item.length = length;
    return r;
}

void request_publish(Request *r)
{
    assert(!PyObject_GC_IsTracked((PyObject *)r));
    PyObject_GC_Track(r);
}

Request *queue_own_request(QueueCore *q, PyObject *object)
{
    if (!PyObject_TypeCheck(object, &Future_Type) || ((Request *)object)->queue != q) {
        PyErr_SetString(PyExc_TypeError, "a request of this queue is needed");
        return NULL;
    }
    return (Request *)object;
}

/* ---- letting go ------------------------------------------------------------------------------------------ */

static void part_drop(Request *r, Part *part)
{
    if (part->bounce_offset >= 0) {
        bounce_give_back(r->queue, part);
    }
    if (part->region) {
        Region *region = part->region;
        part->region = NULL;
        device_leave_region(r->queue, region);
    }
    if (part->vector) {
        Vector *vector = part->vector;
        part->vector = NULL;
        for (size_t i = 0; i < vector->segment_count; i++) {
            if (!vector->segments[i].bounced && vector->segments[i].region) {
                device_leave_region(r->queue, vector->segments[i].region);
            }
        }
        PyMem_Free(vector);
    }
}

void request_drop_parts(Request *r, uint32_t first)
{
    uint32_t count = r->part_count;
    assert(first <= count && r->issued == 0);
    for (uint32_t i = first; r->has_plan && i < count; i++) {
        part_drop(r, request_part(r, i));
    }
    r->part_count = first;
    if (first == 0 && r->more_parts) {
        PyMem_Free(r->more_parts);
        r->more_parts = NULL;
        r->part_capacity = 0;
    }
}

void batch_drop_items(Request *batch)
{
    if (!batch->batch) {
        return;
    }
    Item *items = batch->items;
    uint32_t count = batch->count;
    batch->items = NULL; /* letting go of exceptions may run Python code */
    batch->count = 0;
    for (uint32_t i = 0; i < count; i++) {
        Py_XDECREF(items[i].result);
        Py_XDECREF(items[i].exception);
        PyMem_Free(items[i].message);
    }
    PyMem_Free(items);
}

/* Both at once, since dropping either may run code that adds another. */
void request_drop_first_callback(Request *r)
{
    PyObject *callback = r->callback, *context = r->context;
    r->callback = r->context = NULL;
    Py_XDECREF(callback);
    Py_XDECREF(context);
}

/* What few requests ever have. */
static bool has_more(const Request *r)
{
    return (uintptr_t)r->more_callbacks | (uintptr_t)r->item.exception | (uintptr_t)r->cancel_message |
           (uintptr_t)r->thrown | (uintptr_t)r->traceback;
}

static __attribute__((noinline)) void drop_more(Request *r)
{
    Py_CLEAR(r->more_callbacks);
    Py_CLEAR(r->item.exception);
    Py_CLEAR(r->cancel_message);
    Py_CLEAR(r->thrown);
    Py_CLEAR(r->traceback);
}

/* Only what the Future owns: a request in flight is never garbage, since its queue owns it. */
static int request_clear(Request *self)
{
    request_drop_first_callback(self);
    Py_CLEAR(self->item.result);
    if (has_more(self)) {
        drop_more(self);
    }
    return 0;
}

/* In the queue's thread or, for a request that is over, in any other. */
void request_forget_inline(Request *r)
{
    QueueCore *q = r->queue;
    if (OBSERVE(q->inline_request) != r) {
        return;
    }
    if (may_touch(q->thread)) {
        PUBLISH(q->inline_request, NULL);
    } else {
        Request *expected = r; /* the queue may be putting another there */
        __atomic_compare_exchange_n(&q->inline_request, &expected, NULL, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
}

static void request_dealloc(Request *r)
{
    if (r->log_traceback && PyObject_CallFinalizerFromDealloc((PyObject *)r) < 0) {
        return; /* resurrected by the exception handler */
    }
    assert(!r->linked && r->issued == 0 && !r->given_up);
    assert(!r->ready_next);
    PyObject_GC_UnTrack(r);
    CLEAR_WEAK_REFERENCES(r);
    request_forget_inline(r);
    request_clear(r);
    if (r->part_count > 0 || r->more_parts) { /* it was never submitted, or its outcome would have done this */
        request_drop_parts(r, 0);
    }
    if (r->item.pin.obj || r->pins) {
        request_drop_pins(r);
        batch_drop_items(r);
    }
    if (r->item.message) {
        PyMem_Free(r->item.message);
    }
    QueueCore *q = r->queue;
    r->queue = NULL;
    if (may_touch(q->thread) && q->free_count < FREE_MAX && !PyObject_GC_IsFinalized((PyObject *)r)) {
        r->ready_next = q->free_requests;
        q->free_requests = r;
        q->free_count++;
    } else {
        PyObject_GC_Del(r);
    }
    Py_DECREF(q);
}

Request *request_discard(Request *r)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    Py_XDECREF(r);
    PyErr_Restore(type, value, traceback);
    return NULL;
}

void request_free_kept(QueueCore *q)
{
    Request *r;
    while ((r = q->free_requests) != NULL) {
        q->free_requests = r->ready_next;
        PyObject_GC_Del(r);
    }
    q->free_count = 0;
}

/* ---- the types ------------------------------------------------------------------------------------------- */

static int item_traverse(Item *item, visitproc visit, void *arg)
{
    Py_VISIT(item->result);
    Py_VISIT(item->exception);
    Py_VISIT(item->pin.obj);
    return 0;
}

static int request_traverse(Request *self, visitproc visit, void *arg)
{
    Py_VISIT(self->queue);
    Py_VISIT(self->callback);
    Py_VISIT(self->context);
    Py_VISIT(self->more_callbacks);
    Py_VISIT(self->cancel_message);
    Py_VISIT(self->thrown);
    Py_VISIT(self->traceback);
    int stopped = item_traverse(&self->item, visit, arg);
    for (uint32_t i = 0; !stopped && self->batch && i < self->count; i++) {
        stopped = item_traverse(&self->items[i], visit, arg);
    }
    for (uint32_t i = 0; !stopped && !self->batch && i < self->count; i++) {
        Py_VISIT(self->pins[i].obj);
    }
    return stopped;
}

/* What a request that was hashed becomes: see forms.c. */
PyTypeObject Future_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.Request",
    .tp_doc = "A submitted request: awaitable like a Future, accepted where asyncio wants a coroutine.",
    .tp_basicsize = sizeof(Request),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = (destructor)request_dealloc,
    .tp_traverse = (traverseproc)request_traverse,
    .tp_clear = (inquiry)request_clear,
    .tp_weaklistoffset = offsetof(Request, weak_references),
};

PyTypeObject Request_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.Request",
    .tp_basicsize = sizeof(Request),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_base = &Future_Type,
    .tp_dealloc = (destructor)request_dealloc,
    .tp_traverse = (traverseproc)request_traverse,
    .tp_clear = (inquiry)request_clear,
};
