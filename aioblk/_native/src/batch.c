/*
 * Batches: many transfers with one awaitable. A batch is a request whose parts belong to several items; it is admitted,
 * issued, cancelled and accounted for as any request with several parts. outcome.c tells what became of each item.
 */
#include "rooms.h"

#define LARGEST_HINT 4096

/* Room for so many items, each of one part: of those that have more, the plan makes room itself. */
static int reserve(Request *batch, uint32_t *capacity, uint32_t wanted)
{
    Item *items = PyMem_Realloc(batch->items, (size_t)wanted * sizeof(*items));
    batch->items = items ? items : batch->items;
    Part *parts = batch->more_parts;
    if (items && batch->part_capacity < wanted) {
        parts = PyMem_Realloc(parts, (size_t)wanted * sizeof(*parts));
        batch->more_parts = parts ? parts : batch->more_parts;
        batch->part_capacity = parts ? wanted : batch->part_capacity;
    }
    if (!items || !parts) {
        PyErr_NoMemory();
        return -1;
    }
    *capacity = wanted;
    return 0;
}

static Item *append_item(Request *batch, uint32_t *capacity)
{
    if (batch->count == *capacity && reserve(batch, capacity, 2 * *capacity) < 0) {
        return NULL;
    }
    Item *item = &batch->items[batch->count++];
    memset(item, 0, offsetof(Item, pin));
    item->pin.obj = NULL;
    return item;
}

static int plan_pair(QueueCore *q, Request *batch, Item *item, bool bytes, PyObject *pair)
{
    if (PyTuple_GET_SIZE(pair) != 2) {
        PyErr_Format(PyExc_ValueError, "an (offset, %s) pair is needed, not %zd values", bytes ? "length" : "buffer",
                     PyTuple_GET_SIZE(pair));
        return -1;
    }
    PyObject *second = PyTuple_GET_ITEM(pair, 1);
    uint64_t length;
    PyObject *const range[2] = {PyTuple_GET_ITEM(pair, 0), second};
    if (!bytes) {
        return parse_offset(q->device, batch->operation, range[0], &item->offset) < 0
                   ? -1 : plan_item_buffer(q, batch, item, second);
    }
    return parse_range(q->device, batch->operation, range, &item->offset, &length) < 0
               ? -1 : plan_item_read(q, batch, item, length);
}

static int plan_object(QueueCore *q, Request *batch, Item *item, bool bytes, PyObject *object)
{
    if (PyTuple_CheckExact(object)) {
        return plan_pair(q, batch, item, bytes, object);
    }
    PyObject *pair = PySequence_Tuple(object);
    if (!pair) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Format(PyExc_TypeError, "an (offset, %s) pair is needed, not %s", bytes ? "length" : "buffer",
                         Py_TYPE(object)->tp_name);
        }
        return -1;
    }
    int status = plan_pair(q, batch, item, bytes, pair);
    Py_DECREF(pair);
    return status;
}

/* Where exceptions are results, an item that is refused takes its place among them without being submitted. */
static int refuse_item(Request *batch, Item *item, uint32_t parts_before)
{
    if (!batch->return_exceptions || !PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyObject *exception = take_exception();
    request_drop_parts(batch, parts_before);
    pin_release(&item->pin);
    Py_CLEAR(item->result);
    item->exception = exception;
    item->length = 0;
    item->left = 0;
    return 0;
}

static int add_item(QueueCore *q, Request *batch, uint32_t *capacity, bool bytes, PyObject *object)
{
    uint32_t parts_before = batch->part_count;
    Item *item = append_item(batch, capacity);
    if (!item || (plan_object(q, batch, item, bytes, object) < 0 && refuse_item(batch, item, parts_before) < 0)) {
        return -1;
    }
    batch->weight += item->left > 0;
    return 0;
}

/* Every item is checked and planned before the first is submitted. */
static int add_items(QueueCore *q, Request *batch, bool bytes, PyObject *objects)
{
    PyObject *iterator = PyObject_GetIter(objects), *object;
    if (!iterator) {
        return -1;
    }
    uint32_t capacity = 0;
    Py_ssize_t known = PyList_CheckExact(objects) || PyTuple_CheckExact(objects) ? Py_SIZE(objects) : q->batch_hint;
    int status = reserve(batch, &capacity, known > 0 ? known : 1);
    while (status == 0 && (object = PyIter_Next(iterator)) != NULL) {
        /* An iterator that is left the only owner of what it gave us, as zip() is, uses it again. */
        status = add_item(q, batch, &capacity, bytes, object);
        Py_DECREF(object);
    }
    Py_DECREF(iterator);
    return status < 0 || PyErr_Occurred() ? -1 : 0;
}

Request *prepare_batch(QueueCore *q, Operation op, bool bytes, PyObject *objects, uint32_t flags,
                       bool return_exceptions)
{
    Request *batch = request_new(q, op, 0, 0);
    if (!batch) {
        return NULL;
    }
    batch->batch = true;
    batch->weight = 0;
    batch->flags = flags;
    batch->return_exceptions = return_exceptions;
    batch->returns_list = bytes || return_exceptions;
    if (add_items(q, batch, bytes, objects) < 0) {
        return request_discard(batch);
    }
    merge_adjacent(batch);
    q->batch_hint = batch->count < LARGEST_HINT ? batch->count : LARGEST_HINT;
    if (batch->weight == 0) {
        request_drop_pins(batch);
        batch_settle(batch);
    }
    return batch;
}
