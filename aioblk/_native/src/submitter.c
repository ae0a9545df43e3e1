/*
 * Submitter: the request methods of Device and Queue. Each checks where it is called and what it is given, before libblkio
 * sees anything: libblkio and its backends hang, crash or corrupt on some of what is refused here. Then it plans and submits.
 */
#include "rooms.h"

static PyObject *get_running_loop;

/* ---- checks ---------------------------------------------------------------------------------------------- */

/* trio-asyncio's loops run without the interpreter's knowledge: it replaces asyncio's functions that are asked. */
static bool is_known_to_python(const QueueCore *q)
{
    PyObject *loops = PyImport_ImportModule("aioblk._sync.loops");
    PyObject *answer = loops ? PyObject_CallMethod(loops, "is_running", "O", q->loop) : NULL;
    bool known = answer == Py_True;
    Py_XDECREF(answer);
    Py_XDECREF(loops);
    PyErr_Clear();
    return known;
}

static bool on_own_loop(QueueCore *q)
{
    if (!queue_has_loop(q) || loop_says_it_runs(q)) {
        return true;
    }
    PyObject *running = PyObject_CallNoArgs(get_running_loop);
    if (!running) {
        PyErr_Clear();
        return false;
    }
    Py_DECREF(running);
    return running == q->loop || is_known_to_python(q);
}

static int check_caller(QueueCore *q, Operation op, uint64_t offset, uint64_t length)
{
    const char *reason = NULL;
    if (q->fork_generation != fork_generation) {
        reason = "fork";
    } else if (OBSERVE(q->closed)) {
        reason = q->closed_reason;
    } else if (q->thread != PyThread_get_thread_ident()) {
        reason = "thread";
    } else if (!queue_woke_caller(q) && !on_own_loop(q)) {
        reason = "loop";
    }
    return reason ? device_refuse(q->device, reason, op, offset, length) : 0;
}

__attribute__((noinline)) static QueueCore *refuse_unopened(Submitter *self, Operation op)
{
    PyObject *answer = PyObject_CallMethod((PyObject *)self, "_refuse_unopened", "s", operation_names[op]);
    if (answer) {
        Py_DECREF(answer);
        PyErr_SetString(PyExc_RuntimeError, "the device is not open");
    }
    return NULL;
}

/* Another thread than the queue's, where it may be exchanged under us: refused like there, and with a reference. */
static QueueCore *refuse_elsewhere(Submitter *self, Operation op)
{
    QueueCore *q;
    CRITICAL_SECTION(self);
    q = (QueueCore *)Py_XNewRef(self->core);
    END_CRITICAL_SECTION();
    if (!q) {
        return refuse_unopened(self, op);
    }
    if (check_caller(q, op, UINT64_MAX, UINT64_MAX) == 0) {
        device_refuse(q->device, "thread", op, UINT64_MAX, UINT64_MAX); /* it has just been bound to this thread */
    }
    Py_DECREF(q);
    return NULL;
}

static inline QueueCore *open_core(Submitter *self, Operation op)
{
    QueueCore *core = OBSERVE(self->core);
    if (core) {
        return may_touch(self->thread) ? core : refuse_elsewhere(self, op);
    }
    return refuse_unopened(self, op);
}

static PyObject *submit(QueueCore *q, Request *r)
{
    if (!r) {
        return NULL;
    }
    request_publish(r);
    if (r->state == PENDING && queue_submit(q, r) < 0) {
        return (PyObject *)request_discard(r);
    }
    return (PyObject *)r;
}

/* ---- methods --------------------------------------------------------------------------------------------- */

#define METHOD_ARGUMENTS Submitter *self, PyObject *const *args, Py_ssize_t count, PyObject *names

static PyObject *submitter_read(METHOD_ARGUMENTS)
{
    static const Signature signature = {"read", 2, {N_OFFSET, N_LENGTH, N_END}};
    PyObject *values[2] = {NULL};
    uint64_t offset, length;
    QueueCore *q = open_core(self, OP_READ);
    if (!q || parse(&signature, args, count, names, values) < 0 ||
        parse_range(q->device, OP_READ, values, &offset, &length) < 0 || check_caller(q, OP_READ, offset, length) < 0) {
        return NULL;
    }
    return submit(q, prepare_read(q, offset, length));
}

static PyObject *submit_memory(METHOD_ARGUMENTS, Operation op, const Signature *signature,
                               Request *(*prepare)(QueueCore *, Operation, uint64_t, PyObject *, uint32_t))
{
    PyObject *values[3] = {NULL};
    uint64_t offset;
    uint32_t flags = 0;
    QueueCore *q = open_core(self, op);
    if (!q || parse(signature, args, count, names, values) < 0 ||
        parse_offset(q->device, op, values[0], &offset) < 0 || parse_flag(values[2], BLKIO_REQ_FUA, &flags) < 0 ||
        check_caller(q, op, offset, UINT64_MAX) < 0) {
        return NULL;
    }
    return submit(q, prepare(q, op, offset, values[1], flags));
}

static PyObject *submitter_read_into(METHOD_ARGUMENTS)
{
    static const Signature signature = {"read_into", 2, {N_OFFSET, N_BUFFER, N_END}};
    return submit_memory(self, args, count, names, OP_READ, &signature, prepare_buffer);
}

static PyObject *submitter_write(METHOD_ARGUMENTS)
{
    static const Signature signature = {"write", 2, {N_OFFSET, N_DATA, N_FUA, N_END}};
    return submit_memory(self, args, count, names, OP_WRITE, &signature, prepare_buffer);
}

static PyObject *submitter_readv(METHOD_ARGUMENTS)
{
    static const Signature signature = {"readv", 2, {N_OFFSET, N_BUFFERS, N_END}};
    return submit_memory(self, args, count, names, OP_READ, &signature, prepare_buffers);
}

static PyObject *submitter_writev(METHOD_ARGUMENTS)
{
    static const Signature signature = {"writev", 2, {N_OFFSET, N_BUFFERS, N_FUA, N_END}};
    return submit_memory(self, args, count, names, OP_WRITE, &signature, prepare_buffers);
}

static PyObject *submitter_write_zeroes(METHOD_ARGUMENTS)
{
    static const Signature signature = {"write_zeroes", 2, {N_OFFSET, N_LENGTH, N_FUA, N_NO_UNMAP, N_NO_FALLBACK, N_END}};
    PyObject *values[5] = {NULL};
    uint64_t offset, length;
    uint32_t flags = 0;
    QueueCore *q = open_core(self, OP_WRITE_ZEROES);
    if (!q || parse(&signature, args, count, names, values) < 0 ||
        parse_range(q->device, OP_WRITE_ZEROES, values, &offset, &length) < 0 ||
        parse_flag(values[2], BLKIO_REQ_FUA, &flags) < 0 || parse_flag(values[3], BLKIO_REQ_NO_UNMAP, &flags) < 0 ||
        parse_flag(values[4], BLKIO_REQ_NO_FALLBACK, &flags) < 0 ||
        check_caller(q, OP_WRITE_ZEROES, offset, length) < 0) {
        return NULL;
    }
    return submit(q, prepare_range(q, OP_WRITE_ZEROES, offset, length, flags));
}

static PyObject *submitter_discard(METHOD_ARGUMENTS)
{
    static const Signature signature = {"discard", 2, {N_OFFSET, N_LENGTH, N_END}};
    PyObject *values[2] = {NULL};
    uint64_t offset, length;
    QueueCore *q = open_core(self, OP_DISCARD);
    if (!q || parse(&signature, args, count, names, values) < 0 ||
        parse_range(q->device, OP_DISCARD, values, &offset, &length) < 0 ||
        check_caller(q, OP_DISCARD, offset, length) < 0) {
        return NULL;
    }
    Request *r = prepare_range(q, OP_DISCARD, offset, length, 0);
    if (r && r->state == PENDING && q->device->discard_method == DISCARD_BY_HOOK) {
        request_publish(r);
        return queue_submit_external(q, r, q->on_discard) < 0 ? (PyObject *)request_discard(r) : (PyObject *)r;
    }
    return submit(q, r);
}

static PyObject *submitter_flush(Submitter *self, PyObject *Py_UNUSED(ignored))
{
    QueueCore *q = open_core(self, OP_FLUSH);
    if (!q || check_caller(q, OP_FLUSH, UINT64_MAX, UINT64_MAX) < 0) {
        return NULL;
    }
    return submit(q, prepare_command(q, OP_FLUSH, 0));
}

/* Done when no change may land any more that has been given up by now. */
static PyObject *submitter_until_landed(Submitter *self, PyObject *Py_UNUSED(ignored))
{
    QueueCore *q = open_core(self, OP_FLUSH);
    Request *r = q && check_caller(q, OP_FLUSH, UINT64_MAX, UINT64_MAX) == 0 ? prepare_command(q, OP_FLUSH, 0) : NULL;
    if (!r) {
        return NULL;
    }
    r->flags = REQUEST_BARRIER;
    request_publish(r);
    if (!given_up_keeps(q, r)) {
        r->part_count = r->item.left = 0;
        r->state = FINISHED;
    }
    return (PyObject *)r;
}

/* Of the queue, whoever has asked for them. A device that is closed or lost has none. */
static PyObject *submitter_changes(Submitter *self, PyObject *Py_UNUSED(ignored))
{
    if (!OBSERVE(self->core)) {
        return PyList_New(0);
    }
    QueueCore *q = open_core(self, OP_FLUSH);
    return q ? queue_changes(q) : NULL;
}

/* ---- batches: one awaitable for many requests ------------------------------------------------------------------- */

static PyObject *submit_batch(METHOD_ARGUMENTS, Operation op, bool bytes, const Signature *signature, int exceptions)
{
    PyObject *values[3] = {NULL};
    uint32_t flags = 0, return_exceptions = 0;
    QueueCore *q = open_core(self, op);
    if (!q || parse(signature, args, count, names, values) < 0 ||
        parse_flag(values[exceptions], 1, &return_exceptions) < 0 ||
        (exceptions == 2 && parse_flag(values[1], BLKIO_REQ_FUA, &flags) < 0) ||
        check_caller(q, op, UINT64_MAX, UINT64_MAX) < 0) {
        return NULL;
    }
    return submit(q, prepare_batch(q, op, bytes, values[0], flags, return_exceptions));
}

static PyObject *submitter_read_many(METHOD_ARGUMENTS)
{
    static const Signature signature = {"read_many", 1, {N_REQUESTS, N_RETURN_EXCEPTIONS, N_END}};
    return submit_batch(self, args, count, names, OP_READ, true, &signature, 1);
}

static PyObject *submitter_read_into_many(METHOD_ARGUMENTS)
{
    static const Signature signature = {"read_into_many", 1, {N_REQUESTS, N_RETURN_EXCEPTIONS, N_END}};
    return submit_batch(self, args, count, names, OP_READ, false, &signature, 1);
}

static PyObject *submitter_write_many(METHOD_ARGUMENTS)
{
    static const Signature signature = {"write_many", 1, {N_REQUESTS, N_FUA, N_RETURN_EXCEPTIONS, N_END}};
    return submit_batch(self, args, count, names, OP_WRITE, false, &signature, 2);
}

/* ---- zones: aioblk.layers.zones gives these their public form ----------------------------------------------------------- */

static PyObject *submitter_report_zones(Submitter *self, PyObject *args)
{
    unsigned long long offset;
    unsigned int zones;
    QueueCore *q = open_core(self, OP_REPORT_ZONES);
    if (!q || !PyArg_ParseTuple(args, "KI", &offset, &zones) ||
        check_caller(q, OP_REPORT_ZONES, offset, UINT64_MAX) < 0) {
        return NULL;
    }
    Request *r = prepare_command(q, OP_REPORT_ZONES, offset);
    if (r) {
        Item *item = &r->item;
        item->length = (uint64_t)zones * sizeof(struct blkio_zone);
        item->result = PyBytes_FromStringAndSize(NULL, item->length);
        if (!item->result) {
            return (PyObject *)request_discard(r);
        }
        r->first_part.address = PyBytes_AS_STRING(item->result);
        r->first_part.length = item->length;
    }
    return submit(q, r);
}

static PyObject *submitter_manage_zone(Submitter *self, PyObject *args)
{
    const char *name;
    unsigned long long offset = 0;
    if (!PyArg_ParseTuple(args, "s|K", &name, &offset)) {
        return NULL;
    }
    for (Operation op = OP_OPEN_ZONE; op <= OP_RESET_ALL_ZONES; op++) {
        if (strcmp(name, operation_names[op]) == 0) {
            QueueCore *q = open_core(self, op);
            return q && check_caller(q, op, offset, UINT64_MAX) == 0
                       ? submit(q, prepare_command(q, op, offset)) : NULL;
        }
    }
    return PyErr_Format(PyExc_ValueError, "no zone operation is called %s", name);
}

/* ---- the type -------------------------------------------------------------------------------------------- */

static int submitter_traverse(Submitter *self, visitproc visit, void *arg)
{
    Py_VISIT(self->core);
    Py_VISIT(self->former);
    return 0;
}

static int submitter_clear(Submitter *self)
{
    Py_CLEAR(self->core);
    Py_CLEAR(self->former);
    return 0;
}

static void submitter_dealloc(Submitter *self)
{
    PyObject_GC_UnTrack(self);
    CLEAR_WEAK_REFERENCES(self); /* first: whatever runs from here on, nobody gets hold of it any more */
    submitter_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *submitter_get_core(Submitter *self, void *Py_UNUSED(closure))
{
    QueueCore *core;
    CRITICAL_SECTION(self);
    core = (QueueCore *)Py_XNewRef(self->core);
    END_CRITICAL_SECTION();
    return core ? (PyObject *)core : Py_NewRef(Py_None);
}

static int submitter_set_core(Submitter *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value && value != Py_None && !PyObject_TypeCheck(value, &QueueCore_Type)) {
        PyErr_SetString(PyExc_TypeError, "_core is a QueueCore or None");
        return -1;
    }
    QueueCore *core = value && value != Py_None ? (QueueCore *)Py_NewRef(value) : NULL, *before_last;
    CRITICAL_SECTION(self);
    before_last = self->former;
    self->former = self->core;
    self->thread = core ? core->thread : 0;
    PUBLISH(self->core, core);
    END_CRITICAL_SECTION();
    Py_XDECREF(before_last);
    return 0;
}

#define FAST(NAME, DOC) {#NAME, (PyCFunction)(void (*)(void))submitter_##NAME, METH_FASTCALL | METH_KEYWORDS, DOC}

static PyMethodDef submitter_methods[] = {
    FAST(read, "read($self, /, offset, length)\n--\n\n"
               "Read length bytes at offset; awaiting gives bytes.\n\n"
               "Raises AlignmentError at the call where offset or length breaks request-alignment."),
    FAST(read_into, "read_into($self, /, offset, buffer)\n--\n\n"
                    "Fill a writable buffer from offset on. The buffer stays pinned until the device has finished."),
    FAST(readv, "readv($self, /, offset, buffers)\n--\n\n"
                "Fill several writable buffers, one after the other, from offset on."),
    FAST(write, "write($self, /, offset, data, *, fua=False)\n--\n\n"
                "Write a buffer at offset; fua: it is durable when the request is done."),
    FAST(writev, "writev($self, /, offset, buffers, *, fua=False)\n--\n\n"
                 "Write several buffers, one after the other, at offset."),
    FAST(write_zeroes, "write_zeroes($self, /, offset, length, *, fua=False, no_unmap=False, no_fallback=False)\n--\n\n"
                       "Zero a range; space may be given back unless no_unmap. Zeroes are written where the device has no other\n"
                       "way; no_fallback: fail with UnsupportedError instead. A file grows as by a write."),
    FAST(discard, "discard($self, /, offset, length)\n--\n\n"
                  "Give a range back to the storage; what it reads as afterwards is unspecified."),
    {"flush", (PyCFunction)submitter_flush, METH_NOARGS,
     "flush($self, /)\n--\n\nMake completed writes durable. Writes in flight are not covered."},
    FAST(read_many, "read_many($self, /, requests, *, return_exceptions=False)\n--\n\n"
                    "Read many (offset, length) pairs with one await; gives a list of bytes in the order of the pairs.\n\n"
                    "Every pair is checked before the first is submitted, and refused as by read(). The first error, in the\n"
                    "order of the pairs, is raised when all are over; with return_exceptions errors and refusals are in the\n"
                    "list instead."),
    FAST(read_into_many, "read_into_many($self, /, requests, *, return_exceptions=False)\n--\n\n"
                         "Fill the buffers of many (offset, buffer) pairs with one await; errors as by read_many().\n\n"
                         "Gives None or, with return_exceptions, a list with an exception or None for each pair."),
    FAST(write_many, "write_many($self, /, requests, *, fua=False, return_exceptions=False)\n--\n\n"
                     "Write many (offset, buffer) pairs with one await, in no certain order; errors and what it gives as by\n"
                     "read_into_many(). fua: all of them are durable when it is done."),
    {"_until_landed", (PyCFunction)submitter_until_landed, METH_NOARGS, NULL},
    {"_changes", (PyCFunction)submitter_changes, METH_NOARGS, NULL},
    {"_report_zones", (PyCFunction)submitter_report_zones, METH_VARARGS, NULL},
    {"_manage_zone", (PyCFunction)submitter_manage_zone, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef submitter_getset[] = {
    {"_core", (getter)submitter_get_core, (setter)submitter_set_core, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject Submitter_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.Submitter",
    .tp_doc = "The request methods, shared by Device (its default queue) and Queue.",
    .tp_basicsize = sizeof(Submitter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)submitter_dealloc,
    .tp_traverse = (traverseproc)submitter_traverse,
    .tp_clear = (inquiry)submitter_clear,
    .tp_weaklistoffset = offsetof(Submitter, weak_references),
    .tp_methods = submitter_methods,
    .tp_getset = submitter_getset,
};

int submitter_module_init(void)
{
    PyObject *asyncio = PyImport_ImportModule("_asyncio"); /* its own, whoever has replaced those of asyncio */
    if (!asyncio) {
        return -1;
    }
    get_running_loop = PyObject_GetAttrString(asyncio, "_get_running_loop");
    Py_DECREF(asyncio);
    return get_running_loop ? PyType_Ready(&Submitter_Type) : -1;
}
