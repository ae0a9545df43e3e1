/*
 * Submitter: the request methods of Device and Queue. Each checks what it is given, before libblkio sees anything:
 * libblkio and its backends hang, crash or corrupt on some of what is refused here. Then it plans and submits.
 */
#include "core.h"

/* ---- arguments ------------------------------------------------------------------------------------------- */

/* Interned names of parameters, in the order of `enum`. */
enum { N_OFFSET, N_LENGTH, N_BUFFER, N_BUFFERS, N_DATA, N_REQUESTS, N_FUA, N_NO_UNMAP, N_NO_FALLBACK,
       N_RETURN_EXCEPTIONS, N_COUNT, N_END = -1 };
static const char *const parameter_names[N_COUNT] = {"offset", "length", "buffer", "buffers", "data", "requests",
                                                     "fua", "no_unmap", "no_fallback", "return_exceptions"};
static PyObject *interned[N_COUNT];

typedef struct {
    const char *name;
    int positional;  /* how many may be given by position; all of them are required */
    int parameters[6]; /* then N_END */
} Signature;

static int find_parameter(const Signature *signature, PyObject *name)
{
    for (int i = 0; signature->parameters[i] != N_END; i++) {
        if (interned[signature->parameters[i]] == name) {
            return i;
        }
    }
    for (int i = 0; signature->parameters[i] != N_END; i++) {
        if (PyUnicode_Compare(interned[signature->parameters[i]], name) == 0) {
            return i;
        }
    }
    return -1;
}

/* values[i] becomes the argument for parameters[i], borrowed, or NULL. */
static int parse(const Signature *signature, PyObject *const *args, Py_ssize_t count, PyObject *names,
                 PyObject **values)
{
    if (count > signature->positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes %d positional arguments but %zd were given", signature->name,
                     signature->positional, count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        values[i] = args[i];
    }
    for (Py_ssize_t i = 0; names && i < PyTuple_GET_SIZE(names); i++) {
        int at = find_parameter(signature, PyTuple_GET_ITEM(names, i));
        if (at < 0 || values[at]) {
            PyErr_Format(PyExc_TypeError, "%s() got %s argument '%U'", signature->name,
                         at < 0 ? "an unexpected keyword" : "multiple values for", PyTuple_GET_ITEM(names, i));
            return -1;
        }
        values[at] = args[count + i];
    }
    for (int i = 0; i < signature->positional; i++) {
        if (!values[i]) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument: '%s'", signature->name,
                         parameter_names[signature->parameters[i]]);
            return -1;
        }
    }
    return 0;
}

/* A byte offset or length: a non-negative int. */
static int parse_bytes(DeviceCore *device, Operation op, PyObject *object, uint64_t *value)
{
    PyObject *number = PyLong_CheckExact(object) ? Py_NewRef(object) : PyNumber_Index(object);
    if (!number) {
        return -1;
    }
    *value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (*value == (uint64_t)-1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
            return -1;
        }
        PyErr_Clear();
        return device_refuse(device, "range", op, UINT64_MAX, UINT64_MAX);
    }
    return 0;
}

static int parse_flag(PyObject *object, uint32_t flag, uint32_t *flags)
{
    int set = object ? PyObject_IsTrue(object) : 0;
    if (set > 0) {
        *flags |= flag;
    }
    return set < 0 ? -1 : 0;
}

/* ---- checks ---------------------------------------------------------------------------------------------- */

static QueueCore *open_core(Submitter *self, Operation op)
{
    if (self->core) {
        return self->core;
    }
    PyObject *answer = PyObject_CallMethod((PyObject *)self, "_refuse_unopened", "s", operation_names[op]);
    if (answer) {
        Py_DECREF(answer);
        PyErr_SetString(PyExc_RuntimeError, "the device is not open");
    }
    return NULL;
}

static int check_range(DeviceCore *device, Operation op, uint64_t offset, uint64_t length)
{
    if ((offset | length) & (device->request_alignment - 1)) {
        return device_refuse(device, "alignment", op, offset, length);
    }
    if (offset > INT64_MAX || length > INT64_MAX - offset) {
        return device_refuse(device, "range", op, offset, length);
    }
    if (device->read_only && op != OP_READ) {
        return device_refuse(device, "read-only", op, offset, length);
    }
    return 0;
}

static int check_discard_alignment(DeviceCore *device, uint64_t offset, uint64_t length)
{
    uint64_t alignment = device->discard_alignment;
    if (alignment == 0) {
        return 0;
    }
    uint64_t first = device->discard_alignment_offset;
    if (offset < first || (offset - first) % alignment || length % alignment) {
        return device_refuse(device, "discard-alignment", OP_DISCARD, offset, length);
    }
    return 0;
}

/* ---- pins: the caller's memory, held still --------------------------------------------------------------------- */

static int pin_acquire(Py_buffer *pin, PyObject *object, bool writable)
{
    if (PyBytes_CheckExact(object) && !writable) {
        pin->buf = PyBytes_AS_STRING(object);
        pin->len = PyBytes_GET_SIZE(object);
        pin->obj = Py_NewRef(object);
        return 0;
    }
    if (PyObject_TypeCheck(object, &View_Type)) {
        ViewObject *view = (ViewObject *)object;
        if (view->memory->closed) {
            PyErr_SetString(PyExc_ValueError, "the view's memory region is closed");
            return -1;
        }
        if (writable && view->memory->readonly) {
            PyErr_SetString(PyExc_BufferError, "the view is read-only");
            return -1;
        }
        memory_use(view->memory);
        pin->buf = view->address;
        pin->len = view->length;
        pin->obj = Py_NewRef(object);
        return 0;
    }
    return PyObject_GetBuffer(object, pin, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE);
}

/* ---- preparing: a planned request that is not submitted yet ------------------------------------------------------ */

/* Drops the request, which may run Python code, beside the exception that is on its way. */
static Request *failed(Request *r)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    Py_XDECREF(r);
    PyErr_Restore(type, value, traceback);
    return NULL;
}

/* Zero bytes are done at once: virtio queues hang on an empty request. */
static Request *nothing_to_do(Request *r)
{
    request_drop_pins(r);
    r->state = FINISHED;
    return r;
}

static Request *prepare_read(QueueCore *q, uint64_t offset, uint64_t length)
{
    if (check_range(q->device, OP_READ, offset, length) < 0) {
        return NULL;
    }
    Request *r = request_new(q, OP_READ, offset, length);
    if (!r) {
        return NULL;
    }
    r->result = PyBytes_FromStringAndSize(NULL, length);
    if (!r->result) {
        return failed(r);
    }
    if (length == 0) {
        return nothing_to_do(r);
    }
    r->private_memory = true;
    struct iovec memory = {PyBytes_AS_STRING(r->result), length};
    return plan_memory(r, q->device, &memory, 1) < 0 ? failed(r) : r;
}

static Request *prepare_buffer(QueueCore *q, Operation op, uint64_t offset, PyObject *buffer, uint32_t flags)
{
    Request *r = request_new(q, op, offset, 0);
    if (!r || pin_acquire(&r->pin, buffer, op == OP_READ) < 0) {
        return failed(r);
    }
    r->length = r->pin.len;
    r->flags = flags;
    if (check_range(q->device, op, offset, r->length) < 0) {
        return failed(r);
    }
    if (r->length == 0) {
        return nothing_to_do(r);
    }
    struct iovec memory = {r->pin.buf, r->pin.len};
    return plan_memory(r, q->device, &memory, 1) < 0 ? failed(r) : r;
}

static Request *prepare_buffers(QueueCore *q, Operation op, uint64_t offset, PyObject *buffers, uint32_t flags)
{
    PyObject *sequence = PySequence_Tuple(buffers); /* ours: pinning may run Python code */
    if (!sequence) {
        return NULL;
    }
    size_t count = PyTuple_GET_SIZE(sequence);
    struct iovec *memory = PyMem_Calloc(count ? count : 1, sizeof(*memory));
    Request *r = memory ? request_new(q, op, offset, 0) : NULL;
    Py_buffer *pins = r ? PyMem_Calloc(count ? count : 1, sizeof(*pins)) : NULL;
    bool planned = false;
    if (!pins) {
        PyErr_NoMemory();
        goto out;
    }
    r->pins = pins;
    r->flags = flags;
    for (size_t i = 0; i < count; i++) {
        if (pin_acquire(&pins[i], PyTuple_GET_ITEM(sequence, i), op == OP_READ) < 0) {
            goto out;
        }
        r->pin_count++;
        memory[i] = (struct iovec){pins[i].buf, pins[i].len};
        if ((uint64_t)pins[i].len > INT64_MAX - r->length) {
            device_refuse(q->device, "range", op, offset, UINT64_MAX);
            goto out;
        }
        r->length += pins[i].len;
    }
    if (check_range(q->device, op, offset, r->length) == 0) {
        planned = r->length == 0 ? nothing_to_do(r) != NULL : plan_memory(r, q->device, memory, count) == 0;
    }
out:
    PyMem_Free(memory);
    Py_DECREF(sequence);
    return planned ? r : failed(r);
}

static Request *prepare_range(QueueCore *q, Operation op, uint64_t offset, uint64_t length, uint32_t flags)
{
    DeviceCore *device = q->device;
    if (check_range(device, op, offset, length) < 0 ||
        (op == OP_DISCARD && check_discard_alignment(device, offset, length) < 0)) {
        return NULL;
    }
    Request *r = request_new(q, op, offset, length);
    if (!r || length == 0) {
        return r ? nothing_to_do(r) : NULL;
    }
    r->flags = flags;
    r->private_memory = true;
    uint64_t maximum = op == OP_DISCARD && device->discard_method == DISCARD_NATIVE ? device->max_discard_len
                       : op == OP_DISCARD && device->discard_method == DISCARD_BY_HOOK ? UINT64_MAX
                                                                                        : device->max_write_zeroes_len;
    return plan_range(r, device, maximum) < 0 ? failed(r) : r;
}

/* A request about the device or a zone as a whole. */
static Request *prepare_command(QueueCore *q, Operation op, uint64_t offset)
{
    Request *r = request_new(q, op, offset, 0);
    if (r) {
        r->private_memory = true;
        r->part_count = 1;
        r->first_part = (Part){.request = r, .offset = offset, .bounce_offset = -1};
    }
    return r;
}

static PyObject *submit(QueueCore *q, Request *r)
{
    if (!r) {
        return NULL;
    }
    request_publish(r);
    if (r->state == PENDING && queue_submit(q, r) < 0) {
        return (PyObject *)failed(r);
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
        parse_bytes(q->device, OP_READ, values[0], &offset) < 0 ||
        parse_bytes(q->device, OP_READ, values[1], &length) < 0 || queue_check_caller(q, OP_READ, offset, length) < 0) {
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
        parse_bytes(q->device, op, values[0], &offset) < 0 || parse_flag(values[2], BLKIO_REQ_FUA, &flags) < 0 ||
        queue_check_caller(q, op, offset, UINT64_MAX) < 0) {
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
        parse_bytes(q->device, OP_WRITE_ZEROES, values[0], &offset) < 0 ||
        parse_bytes(q->device, OP_WRITE_ZEROES, values[1], &length) < 0 ||
        parse_flag(values[2], BLKIO_REQ_FUA, &flags) < 0 || parse_flag(values[3], BLKIO_REQ_NO_UNMAP, &flags) < 0 ||
        parse_flag(values[4], BLKIO_REQ_NO_FALLBACK, &flags) < 0 ||
        queue_check_caller(q, OP_WRITE_ZEROES, offset, length) < 0) {
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
        parse_bytes(q->device, OP_DISCARD, values[0], &offset) < 0 ||
        parse_bytes(q->device, OP_DISCARD, values[1], &length) < 0 ||
        queue_check_caller(q, OP_DISCARD, offset, length) < 0) {
        return NULL;
    }
    Request *r = prepare_range(q, OP_DISCARD, offset, length, 0);
    if (r && r->state == PENDING && q->device->discard_method == DISCARD_BY_HOOK) {
        request_publish(r);
        return queue_submit_external(q, r, q->on_discard) < 0 ? (PyObject *)failed(r) : (PyObject *)r;
    }
    return submit(q, r);
}

static PyObject *submitter_flush(Submitter *self, PyObject *Py_UNUSED(ignored))
{
    QueueCore *q = open_core(self, OP_FLUSH);
    if (!q || queue_check_caller(q, OP_FLUSH, UINT64_MAX, UINT64_MAX) < 0) {
        return NULL;
    }
    return submit(q, prepare_command(q, OP_FLUSH, 0));
}

/* ---- batches: one awaitable for many requests ------------------------------------------------------------------- */

/* What an item that was refused leaves behind where exceptions are results. */
static Request *refused_child(QueueCore *q, Operation op)
{
    PyObject *exception = take_exception();
    Request *r = request_new(q, op, 0, 0);
    if (!r) {
        Py_DECREF(exception);
        return NULL;
    }
    r->exception = exception;
    r->state = FAILED;
    return r;
}

static Request *prepare_item(QueueCore *q, Operation op, bool bytes, PyObject *item, uint32_t flags)
{
    const char *what = bytes ? "length" : "buffer";
    PyObject *pair = PySequence_Tuple(item); /* ours, for the same reason */
    if (!pair) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Format(PyExc_TypeError, "an (offset, %s) pair is needed, not %s", what, Py_TYPE(item)->tp_name);
        }
        return NULL;
    }
    Request *r = NULL;
    uint64_t offset, length;
    if (PyTuple_GET_SIZE(pair) != 2) {
        PyErr_Format(PyExc_ValueError, "an (offset, %s) pair is needed, not %zd values", what, PyTuple_GET_SIZE(pair));
    } else if (parse_bytes(q->device, op, PyTuple_GET_ITEM(pair, 0), &offset) == 0) {
        PyObject *second = PyTuple_GET_ITEM(pair, 1);
        if (!bytes) {
            r = prepare_buffer(q, op, offset, second, flags);
        } else if (parse_bytes(q->device, op, second, &length) == 0) {
            r = prepare_read(q, offset, length);
        }
    }
    Py_DECREF(pair);
    return r;
}

/* Every item is checked and planned before the first is submitted. */
static int prepare_children(QueueCore *q, Request *batch, Operation op, PyObject *items, uint32_t flags)
{
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    batch->children = PyMem_Calloc(count ? count : 1, sizeof(*batch->children));
    if (!batch->children) {
        PyErr_NoMemory();
        return -1;
    }
    batch->private_memory = true;
    for (Py_ssize_t i = 0; i < count; i++) {
        Request *child = prepare_item(q, op, batch->flags, PyTuple_GET_ITEM(items, i), flags);
        if (!child && batch->return_exceptions && PyErr_ExceptionMatches(PyExc_Exception)) {
            child = refused_child(q, op);
        }
        if (!child) {
            return -1;
        }
        batch->children[batch->child_count++] = child;
        batch->private_memory = batch->private_memory && child->private_memory;
    }
    return 0;
}

static PyObject *submit_batch(METHOD_ARGUMENTS, Operation op, bool bytes, const Signature *signature, int exceptions)
{
    PyObject *values[3] = {NULL};
    uint32_t flags = 0, return_exceptions = 0;
    QueueCore *q = open_core(self, op);
    if (!q || parse(signature, args, count, names, values) < 0 ||
        parse_flag(values[exceptions], 1, &return_exceptions) < 0 ||
        (exceptions == 2 && parse_flag(values[1], BLKIO_REQ_FUA, &flags) < 0) ||
        queue_check_caller(q, op, UINT64_MAX, UINT64_MAX) < 0) {
        return NULL;
    }
    PyObject *items = PySequence_Tuple(values[0]); /* ours: preparing may run Python code */
    if (!items) {
        return NULL;
    }
    Request *batch = request_new(q, OP_BATCH, 0, 0);
    if (batch) {
        request_publish(batch);
        batch->flags = bytes;
        batch->return_exceptions = return_exceptions;
        if (prepare_children(q, batch, op, items, flags) < 0 || queue_submit_children(q, batch) < 0) {
            batch = failed(batch);
        }
    }
    Py_DECREF(items);
    return (PyObject *)batch;
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

/* ---- zones: aioblk.zones gives these their public form ----------------------------------------------------------- */

static PyObject *submitter_report_zones(Submitter *self, PyObject *args)
{
    unsigned long long offset;
    unsigned int zones;
    QueueCore *q = open_core(self, OP_REPORT_ZONES);
    if (!q || !PyArg_ParseTuple(args, "KI", &offset, &zones) ||
        queue_check_caller(q, OP_REPORT_ZONES, offset, UINT64_MAX) < 0) {
        return NULL;
    }
    Request *r = prepare_command(q, OP_REPORT_ZONES, offset);
    if (r) {
        r->length = (uint64_t)zones * sizeof(struct blkio_zone);
        r->result = PyBytes_FromStringAndSize(NULL, r->length);
        if (!r->result) {
            return (PyObject *)failed(r);
        }
        r->first_part.address = PyBytes_AS_STRING(r->result);
        r->first_part.length = r->length;
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
            return q && queue_check_caller(q, op, offset, UINT64_MAX) == 0
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
    submitter_clear(self);
    if (self->weak_references) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *submitter_get_core(Submitter *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->core ? (PyObject *)self->core : Py_None);
}

static int submitter_set_core(Submitter *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value && value != Py_None && !PyObject_TypeCheck(value, &QueueCore_Type)) {
        PyErr_SetString(PyExc_TypeError, "_core is a QueueCore or None");
        return -1;
    }
    QueueCore *before_last = self->former;
    self->former = self->core;
    self->core = value && value != Py_None ? (QueueCore *)Py_NewRef(value) : NULL;
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
                       "Zero a range; space may be given back unless no_unmap; no_fallback: fail with UnsupportedError\n"
                       "rather than write zeroes out."),
    FAST(discard, "discard($self, /, offset, length)\n--\n\n"
                  "Give a range back to the storage; what it reads as afterwards is unspecified."),
    {"flush", (PyCFunction)submitter_flush, METH_NOARGS,
     "flush($self, /)\n--\n\nMake completed writes durable. Writes in flight are not covered."},
    FAST(read_many, "read_many($self, /, requests, *, return_exceptions=False)\n--\n\n"
                    "Read many (offset, length) pairs with one await; gives a list of bytes."),
    FAST(read_into_many, "read_into_many($self, /, requests, *, return_exceptions=False)\n--\n\n"
                         "Fill the buffers of many (offset, buffer) pairs with one await."),
    FAST(write_many, "write_many($self, /, requests, *, fua=False, return_exceptions=False)\n--\n\n"
                     "Write many (offset, buffer) pairs with one await."),
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
    for (int i = 0; i < N_COUNT; i++) {
        interned[i] = PyUnicode_InternFromString(parameter_names[i]);
        if (!interned[i]) {
            return -1;
        }
    }
    return PyType_Ready(&Submitter_Type);
}
