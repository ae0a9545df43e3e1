/*
 * Memory that is handed out in views, and not released before nothing uses it any more.
 *
 * A Memory is an address range that somebody provides: an arena's block, an allocated region, a caller's buffer. A View
 * is a part of it and speaks the buffer protocol. Closing the Memory makes every View raise at once; what has already
 * been handed out (memoryviews, arrays, requests in flight) keeps the memory itself alive, and the last of them
 * releases it.
 *
 * Any thread may use, close and let go of it, with or without a GIL. Who is about to use the memory counts itself first
 * and looks whether it is closed then; who closes it does so first and looks for uses then. So one of them sees the other.
 */
#include "rooms.h"

/* Once closed and unused, or unreachable. The object itself may outlive this: views still refer to it. */
static void release(MemoryObject *self)
{
    SHARED_STORE(self->closed, true);
    if (SHARED_EXCHANGE(self->released, true)) {
        return;
    }

    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *on_release = self->on_release;
    self->on_release = NULL;
    if (on_release != NULL) {
        PyObject *result = PyObject_CallNoArgs(on_release);
        if (result == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
            PyErr_WriteUnraisable(on_release);
        } else if (result == NULL) {
            raise_in_main_thread();
        }
        Py_XDECREF(result);
        Py_DECREF(on_release);
    }
    if (self->source.obj != NULL) {
        PyBuffer_Release(&self->source);
    }
    Py_CLEAR(self->owner);
    PyErr_Restore(type, value, traceback);
}

void memory_unuse(MemoryObject *self)
{
    assert(SHARED_LOAD(self->uses) > 0);
    if (SHARED_ADD(self->uses, -1) == 1 && SHARED_LOAD(self->closed)) {
        release(self);
    }
}

inline bool memory_use(MemoryObject *memory)
{
    (void)SHARED_ADD(memory->uses, 1);
    if (SHARED_LOAD(memory->closed)) {
        memory_unuse(memory);
        return false;
    }
    return true;
}

static PyObject *memory_from_range(PyTypeObject *type, char *address, size_t length, bool readonly, PyObject *owner,
                                   PyObject *on_release)
{
    if ((uintptr_t)address + length < (uintptr_t)address) {
        PyErr_SetString(PyExc_OverflowError, "the memory does not fit into the address space");
        return NULL;
    }
    if (on_release != Py_None && !PyCallable_Check(on_release)) {
        PyErr_SetString(PyExc_TypeError, "on_release must be callable");
        return NULL;
    }
    MemoryObject *self = (MemoryObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->address = address;
    self->length = length;
    self->readonly = readonly;
    self->owner = owner == Py_None ? NULL : Py_NewRef(owner);
    self->on_release = on_release == Py_None ? NULL : Py_NewRef(on_release);
    return (PyObject *)self;
}

static PyObject *memory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"address", "length", "owner", "readonly", "on_release", NULL};
    PyObject *address, *owner = Py_None, *on_release = Py_None;
    Py_ssize_t length;
    int readonly = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On|$OpO:Memory", names, &address, &length, &owner, &readonly,
                                     &on_release)) {
        return NULL;
    }
    char *pointer = PyLong_AsVoidPtr(address);
    if (pointer == NULL && PyErr_Occurred()) {
        return NULL;
    }
    if (length < 0) {
        PyErr_SetString(PyExc_ValueError, "length must not be negative");
        return NULL;
    }
    return memory_from_range(type, pointer, (size_t)length, readonly, owner, on_release);
}

PyDoc_STRVAR(memory_from_buffer_doc,
"from_buffer(buffer, *, on_release=None)\n--\n\n"
"Memory that is an existing contiguous buffer, read-only when the buffer is. The buffer stays exported until the\n"
"release, so that its owner can neither resize nor free it. BufferError: not contiguous.");

static PyObject *memory_from_buffer(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "on_release", NULL};
    PyObject *buffer, *on_release = Py_None;
    Py_buffer source;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O:from_buffer", names, &buffer, &on_release)) {
        return NULL;
    }
    if (PyObject_GetBuffer(buffer, &source, PyBUF_WRITABLE) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError)) {
            return NULL; /* numpy says ValueError */
        }
        PyErr_Clear();
        if (PyObject_GetBuffer(buffer, &source, PyBUF_SIMPLE) < 0) {
            return NULL;
        }
    }
    PyObject *self = memory_from_range(type, source.buf, (size_t)source.len, source.readonly, Py_None, on_release);
    if (self == NULL) {
        PyBuffer_Release(&source);
        return NULL;
    }
    ((MemoryObject *)self)->source = source;
    return self;
}

static bool comes_from_memoryview(const MemoryObject *self)
{
    return self->source.obj != NULL && PyMemoryView_Check(self->source.obj);
}

/* What it refers to, it keeps until the release: a cycle that it is in is broken elsewhere.
 *
 * The collector looks again after it has called the finalizers. What the release of memory that is collected while it is
 * in use will call is hidden from it then, hence kept whole: the collector empties what it takes for garbage, and to call
 * that would crash. */
static int memory_traverse(MemoryObject *self, visitproc visit, void *arg)
{
    Py_VISIT(self->owner);
    if (!self->collected) {
        Py_VISIT(self->on_release);
    }
    if (!self->collected || !comes_from_memoryview(self)) {
        Py_VISIT(self->source.obj);
    }
    return 0;
}

static void release_if_unused(MemoryObject *self)
{
    if (SHARED_LOAD(self->uses) == 0) {
        release(self);
    }
}

/* What the memoryview is of stays exported instead. Where that cannot be, the memoryview is kept whole. */
static void leave_memoryview(MemoryObject *self)
{
    PyObject *type, *value, *traceback, *base = PyMemoryView_GET_BASE(self->source.obj);
    Py_buffer direct, before = self->source;
    PyErr_Fetch(&type, &value, &traceback);
    if (base != NULL && PyObject_GetBuffer(base, &direct, PyBUF_FULL_RO) == 0) {
        self->source = direct;
        PyBuffer_Release(&before);
    }
    PyErr_Restore(type, value, traceback); /* whatever the base has said */
}

static void memory_finalize(MemoryObject *self)
{
    release_if_unused(self);
    self->collected = !SHARED_LOAD(self->released);
    if (self->collected && comes_from_memoryview(self)) {
        leave_memoryview(self);
    }
}

static void memory_dealloc(MemoryObject *self)
{
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, memory_dealloc) /* memory may be a part of memory, and so on */
    PyObject_GC_Track(self);
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) == 0) {
        PyObject_GC_UnTrack(self);
        CLEAR_WEAK_REFERENCES(self);
        release(self); /* the collector's finalizer found it in use, if only by what was garbage as well */
        Py_TYPE(self)->tp_free((PyObject *)self);
    }
    Py_TRASHCAN_END
}

PyDoc_STRVAR(memory_close_doc,
"close()\n--\n\n"
"From now on every view raises ValueError. The memory is released as soon as no export and no request uses it.");

static PyObject *memory_close(MemoryObject *self, PyObject *Py_UNUSED(ignored))
{
    SHARED_STORE(self->closed, true);
    release_if_unused(self);
    Py_RETURN_NONE;
}

static PyObject *memory_get_closed(MemoryObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(SHARED_LOAD(self->closed));
}

static PyObject *memory_get_released(MemoryObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(SHARED_LOAD(self->released));
}

static PyObject *memory_get_readonly(MemoryObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->readonly);
}

static PyObject *memory_get_address(MemoryObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromVoidPtr(self->address);
}

static PyObject *memory_get_uses(MemoryObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(SHARED_LOAD(self->uses));
}

static Py_ssize_t memory_length(MemoryObject *self)
{
    return (Py_ssize_t)self->length;
}

static PyObject *memory_repr(MemoryObject *self)
{
    return PyUnicode_FromFormat("<aioblk Memory of %zu bytes at %p, %zd uses%s>", self->length, self->address,
                                SHARED_LOAD(self->uses),
                                SHARED_LOAD(self->released) ? ", released"
                                : SHARED_LOAD(self->closed) ? ", closed"
                                                            : "");
}

static PyMethodDef memory_methods[] = {
    {"from_buffer", (PyCFunction)(void (*)(void))memory_from_buffer, METH_CLASS | METH_VARARGS | METH_KEYWORDS,
     memory_from_buffer_doc},
    {"close", (PyCFunction)memory_close, METH_NOARGS, memory_close_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef memory_getset[] = {
    {"closed", (getter)memory_get_closed, NULL, "Whether close() has been called.", NULL},
    {"released", (getter)memory_get_released, NULL, "Whether the memory has been given back.", NULL},
    {"readonly", (getter)memory_get_readonly, NULL, "Whether views refuse to be written.", NULL},
    {"address", (getter)memory_get_address, NULL, "The address of the first byte.", NULL},
    {"uses", (getter)memory_get_uses, NULL, "Exports and requests in flight that keep the memory.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PySequenceMethods memory_as_sequence = {
    .sq_length = (lenfunc)memory_length,
};

PyTypeObject Memory_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.Memory",
    .tp_doc = "Memory(address, length, *, owner=None, readonly=False, on_release=None)\n--\n\n"
              "Memory that views hand out; released only when it is closed and nothing uses it.",
    .tp_basicsize = sizeof(MemoryObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = memory_new,
    .tp_traverse = (traverseproc)memory_traverse,
    .tp_finalize = (destructor)memory_finalize,
    .tp_weaklistoffset = offsetof(MemoryObject, weak_references),
    .tp_dealloc = (destructor)memory_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_repr = (reprfunc)memory_repr,
    .tp_as_sequence = &memory_as_sequence,
    .tp_methods = memory_methods,
    .tp_getset = memory_getset,
};
