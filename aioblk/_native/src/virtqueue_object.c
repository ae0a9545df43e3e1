/*
 * Virtqueues as Python has them: the memory that a guest has lent, a queue within it, and the requests that are taken from that.
 *
 * What wants no disk is answered here. Of the rest a request holds the memory, whatever becomes of the table meanwhile.
 * All of it belongs to one thread; without a GIL, critical sections keep others from breaking it.
 */
#include "rooms.h"

#include <stdlib.h>
#include <string.h>

/* ---- the memory of a guest ---- */

typedef struct {
    PyObject_HEAD
    guest_memory table;
    MemoryObject **memories; /* of each range, counted as in use */
} GuestMemoryObject;

static int compare_ranges(const void *one, const void *other)
{
    const guest_range *a = one, *b = other;
    return (a->guest > b->guest) - (a->guest < b->guest);
}

/* Appends one range; `host` stands for its memory, until all are sorted. */
static int add_range(GuestMemoryObject *self, PyObject *entry)
{
    MemoryObject *memory;
    PyObject *guest, *user;
    if (!PyArg_ParseTuple(entry, "O!O!O!:GuestMemory", &Memory_Type, &memory, &PyLong_Type, &guest, &PyLong_Type, &user)) {
        return -1;
    }
    guest_range range = {PyLong_AsUnsignedLongLong(guest), PyLong_AsUnsignedLongLong(user), memory->length, memory->address};
    if (PyErr_Occurred()) {
        return -1;
    }
    if (range.length == 0 || range.length > UINT64_MAX - range.guest || range.length > UINT64_MAX - range.user) {
        PyErr_SetString(PyExc_ValueError, "a range of memory is empty, or ends beyond all addresses");
        return -1;
    }
    if (!memory_use(memory)) {
        PyErr_SetString(PyExc_ValueError, "the memory has been closed");
        return -1;
    }
    self->memories[self->table.count] = (MemoryObject *)Py_NewRef(memory);
    self->table.ranges[self->table.count++] = range;
    return 0;
}

/* The memories in the order of the ranges, which must not overlap. */
static int sort_ranges(GuestMemoryObject *self)
{
    guest_range *ranges = self->table.ranges;
    size_t count = self->table.count;
    qsort(ranges, count, sizeof(*ranges), compare_ranges);
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && ranges[i].guest - ranges[i - 1].guest < ranges[i - 1].length) {
            PyErr_SetString(PyExc_ValueError, "ranges of memory overlap");
            return -1;
        }
        for (size_t j = i; j < count; j++) {
            MemoryObject *memory = self->memories[j];
            if (memory->address == ranges[i].host && memory->length == ranges[i].length) {
                self->memories[j] = self->memories[i];
                self->memories[i] = memory;
                break;
            }
        }
    }
    return 0;
}

static PyObject *guest_memory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ranges", NULL};
    PyObject *given;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:GuestMemory", names, &given)) {
        return NULL;
    }
    PyObject *entries = PySequence_Tuple(given);
    GuestMemoryObject *self = entries == NULL ? NULL : (GuestMemoryObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        size_t count = (size_t)PyTuple_GET_SIZE(entries);
        self->table.ranges = calloc(count + 1, sizeof(*self->table.ranges));
        self->memories = calloc(count + 1, sizeof(*self->memories));
        if (self->table.ranges == NULL || self->memories == NULL) {
            PyErr_NoMemory();
            Py_CLEAR(self);
        }
        for (size_t i = 0; self != NULL && i < count; i++) {
            PyObject *entry = PyTuple_GET_ITEM(entries, (Py_ssize_t)i);
            if (!PyTuple_CheckExact(entry)) {
                PyErr_SetString(PyExc_TypeError, "a range is a tuple: memory, guest address, client's address");
                Py_CLEAR(self);
            } else if (add_range(self, entry) < 0) {
                Py_CLEAR(self);
            }
        }
        if (self != NULL && sort_ranges(self) < 0) {
            Py_CLEAR(self);
        }
    }
    Py_XDECREF(entries);
    return (PyObject *)self;
}

static int guest_memory_traverse(GuestMemoryObject *self, visitproc visit, void *arg)
{
    for (size_t i = 0; i < self->table.count; i++) {
        Py_VISIT(self->memories[i]);
    }
    return 0;
}

static void guest_memory_dealloc(GuestMemoryObject *self)
{
    PyObject_GC_UnTrack(self);
    for (size_t i = 0; i < self->table.count; i++) {
        memory_unuse(self->memories[i]);
        Py_DECREF(self->memories[i]);
    }
    free(self->table.ranges);
    free(self->memories);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t guest_memory_length(GuestMemoryObject *self) { return (Py_ssize_t)self->table.count; }

static PySequenceMethods guest_memory_as_sequence = {.sq_length = (lenfunc)guest_memory_length};

PyTypeObject GuestMemory_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.GuestMemory",
    .tp_doc = "GuestMemory(ranges)\n--\n\n"
              "What a guest has lent: (memory, guest address, client's address) for each range. ValueError: they overlap.",
    .tp_basicsize = sizeof(GuestMemoryObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = guest_memory_new,
    .tp_traverse = (traverseproc)guest_memory_traverse,
    .tp_dealloc = (destructor)guest_memory_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_as_sequence = &guest_memory_as_sequence,
};

/* ---- a queue, and what it is asked for ---- */

typedef struct {
    PyObject_HEAD
    GuestMemoryObject *memory;
    MemoryObject *tracked; /* counted as in use, or NULL */
    virtqueue_t *queue;
    virtio_blk_disk disk;
    unsigned long long answered;
    uint64_t descriptors, available, used;
    guest_chain chain; /* the one that is looked at */
} VirtqueueObject;

typedef struct {
    PyObject_HEAD
    VirtqueueObject *queue;
    GuestMemoryObject *memory; /* in which the status lies */
    PyObject *buffers;         /* a tuple, or NULL once it is finished */
    uint8_t *status;
    uint16_t head;
    unsigned int kind, flags;
    unsigned long long offset, length;
} GuestRequestObject;

static int request_traverse(GuestRequestObject *self, visitproc visit, void *arg)
{
    Py_VISIT(self->queue);
    Py_VISIT(self->memory);
    Py_VISIT(self->buffers);
    return 0;
}

static void request_dealloc(GuestRequestObject *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->buffers);
    Py_XDECREF(self->memory);
    Py_XDECREF(self->queue);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *request_get_buffers(GuestRequestObject *self, void *Py_UNUSED(closure))
{
    PyObject *buffers;
    CRITICAL_SECTION(self);
    buffers = Py_XNewRef(self->buffers);
    END_CRITICAL_SECTION();
    return buffers != NULL ? buffers : PyTuple_New(0);
}

static PyObject *request_repr(GuestRequestObject *self)
{
    return PyUnicode_FromFormat("<GuestRequest %u of %llu bytes at %llu>", self->kind, self->length, self->offset);
}

static PyMemberDef request_members[] = {
    {"kind", T_UINT, offsetof(GuestRequestObject, kind), READONLY, "As virtio-blk numbers them."},
    {"flags", T_UINT, offsetof(GuestRequestObject, flags), READONLY, "Of write-zeroes."},
    {"offset", T_ULONGLONG, offsetof(GuestRequestObject, offset), READONLY, "In bytes."},
    {"length", T_ULONGLONG, offsetof(GuestRequestObject, length), READONLY, "In bytes."},
    {NULL},
};

static PyGetSetDef request_getset[] = {
    {"buffers", (getter)request_get_buffers, NULL, "Views of the guest's memory; none once it is finished.", NULL},
    {NULL},
};

PyTypeObject GuestRequest_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.GuestRequest",
    .tp_doc = "What a guest asks of a disk.",
    .tp_basicsize = sizeof(GuestRequestObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_traverse = (traverseproc)request_traverse,
    .tp_dealloc = (destructor)request_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_repr = (reprfunc)request_repr,
    .tp_members = request_members,
    .tp_getset = request_getset,
};

/* 0, or -1 with an exception set. */
static int start_queue(VirtqueueObject *self, unsigned int size, int base, int event_index, PyObject *tracked)
{
    self->queue = virtqueue_new(size);
    if (self->queue == NULL) {
        PyErr_Format(PyExc_ValueError, "a queue has 1 to %d descriptors, a power of two, not %u", VIRTQUEUE_LARGEST, size);
        return -1;
    }
    const char *wrong =
        virtqueue_place(self->queue, &self->memory->table, self->descriptors, self->available, self->used);
    if (wrong == NULL && tracked != Py_None) {
        MemoryObject *memory = ((ViewObject *)tracked)->memory;
        if (!memory_use(memory)) {
            wrong = "the region of what is in flight has been closed";
        } else {
            self->tracked = (MemoryObject *)Py_NewRef(memory);
        }
    }
    if (wrong == NULL) {
        ViewObject *view = tracked == Py_None ? NULL : (ViewObject *)tracked;
        wrong = virtqueue_start(self->queue, (uint16_t)base, event_index,
                                view == NULL ? NULL : (tracked_region *)(void *)view->address,
                                view == NULL ? 0 : view->length);
    }
    if (wrong != NULL) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return -1;
    }
    return 0;
}

static PyObject *virtqueue_type_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "size", "descriptors", "available", "used", "base", "event_index", "tracked", NULL};
    GuestMemoryObject *memory;
    unsigned int size;
    unsigned short base;
    int event_index = 0;
    unsigned long long descriptors, available, used;
    PyObject *tracked = Py_None;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!IKKKH|$pO:Virtqueue", names, &GuestMemory_Type, &memory, &size,
                                     &descriptors, &available, &used, &base, &event_index, &tracked)) {
        return NULL;
    }
    if (tracked != Py_None && !PyObject_TypeCheck(tracked, &View_Type)) {
        PyErr_SetString(PyExc_TypeError, "what is tracked is kept in a View, or nowhere");
        return NULL;
    }
    VirtqueueObject *self = (VirtqueueObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->memory = (GuestMemoryObject *)Py_NewRef(memory);
    self->descriptors = descriptors;
    self->available = available;
    self->used = used;
    if (start_queue(self, size, base, event_index, tracked) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int virtqueue_type_traverse(VirtqueueObject *self, visitproc visit, void *arg)
{
    Py_VISIT(self->memory);
    Py_VISIT(self->tracked);
    return 0;
}

static void virtqueue_type_dealloc(VirtqueueObject *self)
{
    PyObject_GC_UnTrack(self);
    virtqueue_free(self->queue);
    if (self->tracked != NULL) {
        memory_unuse(self->tracked);
        Py_DECREF(self->tracked);
    }
    Py_XDECREF(self->memory);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *make_buffers(const GuestMemoryObject *memory, const virtio_blk_request *asked)
{
    PyObject *buffers = PyTuple_New(asked->count);
    for (uint32_t i = 0; buffers != NULL && i < asked->count; i++) {
        const guest_segment *segment = &asked->data[i];
        PyObject *view = view_make(memory->memories[segment->range], segment->address, segment->length);
        if (view == NULL) {
            Py_CLEAR(buffers);
        } else {
            PyTuple_SET_ITEM(buffers, (Py_ssize_t)i, view);
        }
    }
    return buffers;
}

static PyObject *make_request(VirtqueueObject *self, const virtio_blk_request *asked)
{
    GuestMemoryObject *memory = self->memory;
    uint16_t head = self->chain.head;
    PyObject *buffers = make_buffers(memory, asked);
    GuestRequestObject *request =
        buffers == NULL ? NULL : (GuestRequestObject *)GuestRequest_Type.tp_alloc(&GuestRequest_Type, 0);
    if (request == NULL) {
        Py_XDECREF(buffers);
        return NULL;
    }
    request->queue = (VirtqueueObject *)Py_NewRef(self);
    request->memory = (GuestMemoryObject *)Py_NewRef(memory);
    request->buffers = buffers;
    request->status = asked->status;
    request->head = head;
    request->kind = asked->kind;
    request->flags = asked->flags;
    request->offset = asked->offset;
    request->length = asked->length;
    return (PyObject *)request;
}

/* The next request that wants a disk, if there is one: 1; 0; or -1 with an exception set. */
static int take_one(VirtqueueObject *self, PyObject *taken)
{
    virtio_blk_request asked;
    while (virtqueue_take(self->queue, &self->memory->table, &self->chain) == VIRTQUEUE_CHAIN) {
        uint16_t head = self->chain.head;
        switch (virtio_blk_parse(&self->disk, &self->chain, &asked)) {
        case REQUEST_BROKEN:
            virtqueue_break(self->queue, "a chain has no place for its status");
            return 0;
        case REQUEST_ANSWERED:
            self->answered++;
            virtqueue_finish(self->queue, head, 1);
            continue;
        case REQUEST_STANDS:
            break;
        }
        PyObject *request = make_request(self, &asked);
        int result = request == NULL ? -1 : PyList_Append(taken, request);
        if (result < 0) {
            *asked.status = VIRTIO_BLK_FAILED;
            virtqueue_finish(self->queue, head, 1);
        }
        Py_XDECREF(request);
        return result < 0 ? -1 : 1;
    }
    return 0;
}

static PyObject *virtqueue_type_take(VirtqueueObject *self, PyObject *argument)
{
    Py_ssize_t most = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if (most == -1 && PyErr_Occurred()) {
        return NULL;
    }
    PyObject *taken = PyList_New(0);
    int found = taken == NULL ? -1 : 1;
    CRITICAL_SECTION(self);
    for (Py_ssize_t i = 0; found > 0 && i < most; i++) {
        found = take_one(self, taken);
    }
    END_CRITICAL_SECTION();
    if (found < 0 && taken != NULL && PyList_GET_SIZE(taken) > 0) {
        PyErr_Clear(); /* that one has failed, and says so itself; the others are to be had */
    } else if (found < 0) {
        Py_CLEAR(taken);
    }
    return taken;
}

static PyObject *virtqueue_type_finish(VirtqueueObject *self, PyObject *args)
{
    GuestRequestObject *request;
    unsigned char status;
    if (!PyArg_ParseTuple(args, "O!b:finish", &GuestRequest_Type, &request, &status)) {
        return NULL;
    }
    PyObject *buffers = NULL;
    CRITICAL_SECTION(self);
    if (request->queue == self && request->buffers != NULL) {
        buffers = request->buffers;
        request->buffers = NULL;
        bool is_read = request->kind == VIRTIO_BLK_IN && status == VIRTIO_BLK_OK;
        *request->status = status;
        virtqueue_finish(self->queue, request->head, is_read ? (uint32_t)request->length + 1 : 1);
    }
    END_CRITICAL_SECTION();
    if (buffers == NULL) {
        PyErr_SetString(PyExc_ValueError, "the request is another queue's, or finished");
        return NULL;
    }
    Py_DECREF(buffers);
    Py_RETURN_NONE;
}

static PyObject *virtqueue_type_push(VirtqueueObject *self, PyObject *Py_UNUSED(ignored))
{
    bool wanted;
    CRITICAL_SECTION(self);
    wanted = virtqueue_push(self->queue);
    END_CRITICAL_SECTION();
    return PyBool_FromLong(wanted);
}

static PyObject *virtqueue_type_listen(VirtqueueObject *self, PyObject *Py_UNUSED(ignored))
{
    bool more;
    CRITICAL_SECTION(self);
    more = virtqueue_listen(self->queue);
    END_CRITICAL_SECTION();
    return PyBool_FromLong(more);
}

static PyObject *virtqueue_type_move(VirtqueueObject *self, PyObject *argument)
{
    if (!PyObject_TypeCheck(argument, &GuestMemory_Type)) {
        PyErr_SetString(PyExc_TypeError, "a GuestMemory is needed");
        return NULL;
    }
    GuestMemoryObject *memory = (GuestMemoryObject *)argument, *before = NULL;
    const char *wrong;
    CRITICAL_SECTION(self);
    wrong = virtqueue_place(self->queue, &memory->table, self->descriptors, self->available, self->used);
    if (wrong == NULL) {
        before = self->memory;
        self->memory = (GuestMemoryObject *)Py_NewRef(memory);
    } else {
        virtqueue_break(self->queue, wrong);
    }
    END_CRITICAL_SECTION();
    Py_XDECREF(before);
    if (wrong != NULL) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *virtqueue_type_set_disk(VirtqueueObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"capacity", "read_only", "serial", NULL};
    unsigned long long capacity;
    int read_only;
    Py_buffer serial;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Kpy*:set_disk", names, &capacity, &read_only, &serial)) {
        return NULL;
    }
    CRITICAL_SECTION(self);
    self->disk = (virtio_blk_disk){.capacity = capacity, .read_only = read_only};
    memcpy(self->disk.id, serial.buf, serial.len < VIRTIO_BLK_ID ? (size_t)serial.len : VIRTIO_BLK_ID);
    END_CRITICAL_SECTION();
    PyBuffer_Release(&serial);
    Py_RETURN_NONE;
}

static PyObject *virtqueue_get_base(VirtqueueObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(virtqueue_base(self->queue));
}

static PyObject *virtqueue_get_in_flight(VirtqueueObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(virtqueue_in_flight(self->queue));
}

static PyObject *virtqueue_get_broken(VirtqueueObject *self, void *Py_UNUSED(closure))
{
    const char *why = virtqueue_broken(self->queue);
    return why == NULL ? Py_NewRef(Py_None) : PyUnicode_FromString(why);
}

static PyMemberDef virtqueue_members[] = {
    {"answered", T_ULONGLONG, offsetof(VirtqueueObject, answered), READONLY, "Requests that wanted no disk, or were wrong."},
    {NULL},
};

static PyMethodDef virtqueue_methods[] = {
    {"take", (PyCFunction)virtqueue_type_take, METH_O,
     "take(most, /)\n--\n\nThe next requests, as far as there are some. What needs no disk is answered by itself."},
    {"finish", (PyCFunction)virtqueue_type_finish, METH_VARARGS,
     "finish(request, status, /)\n--\n\nA request is done. ValueError: it is another queue's, or was finished before."},
    {"push", (PyCFunction)virtqueue_type_push, METH_NOARGS,
     "push()\n--\n\nShow the guest what is finished. Whether it wants to be told."},
    {"listen", (PyCFunction)virtqueue_type_listen, METH_NOARGS,
     "listen()\n--\n\nHave the guest tell of the next request. Whether there is one already."},
    {"move", (PyCFunction)virtqueue_type_move, METH_O,
     "move(memory, /)\n--\n\nThe guest lends other memory from now on. ValueError: the rings are not there."},
    {"set_disk", (PyCFunction)(void (*)(void))virtqueue_type_set_disk, METH_VARARGS | METH_KEYWORDS,
     "set_disk(capacity, read_only, serial)\n--\n\nWhat is asked for. Until then it is empty."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef virtqueue_getset[] = {
    {"base", (getter)virtqueue_get_base, NULL, "The index of the next request.", NULL},
    {"in_flight", (getter)virtqueue_get_in_flight, NULL, "Requests that were taken, and not pushed yet.", NULL},
    {"broken", (getter)virtqueue_get_broken, NULL, "Why nothing more is taken, if that is so.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject Virtqueue_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.Virtqueue",
    .tp_doc = "Virtqueue(memory, size, descriptors, available, used, base, *, event_index=False, tracked=None)\n--\n\n"
              "A split virtqueue, as the device has it. ValueError: it is not where it is said to be.",
    .tp_basicsize = sizeof(VirtqueueObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = virtqueue_type_new,
    .tp_traverse = (traverseproc)virtqueue_type_traverse,
    .tp_dealloc = (destructor)virtqueue_type_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_members = virtqueue_members,
    .tp_methods = virtqueue_methods,
    .tp_getset = virtqueue_getset,
};
