/*
 * Moved: a request method of a device with its offsets moved, as a slice of the device has it. It decides nothing: what is not
 * of the plainest kind, or does not lie within, goes to the slice's own method, which knows what to say.
 */
#include "rooms.h"

#include <string.h>

#define MOST_ARGUMENTS 8

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *method, *otherwise;
    uint64_t start, size;
} Moved;

/* False: it is negative, or too large. */
static bool number_of(PyObject *object, uint64_t *number)
{
    if (!PyLong_CheckExact(object)) {
        return false;
    }
    *number = PyLong_AsUnsignedLongLong(object);
    if (*number == UINT64_MAX && PyErr_Occurred()) {
        PyErr_Clear();
        return false;
    }
    return true;
}

/* A length, or what the length is of. False: of this it is not known without running its code. */
static bool length_of(PyObject *object, uint64_t *length)
{
    if (PyBytes_CheckExact(object)) {
        *length = PyBytes_GET_SIZE(object);
        return true;
    }
    if (PyObject_TypeCheck(object, &View_Type)) {
        *length = ((ViewObject *)object)->length;
        return true;
    }
    if (PyMemoryView_Check(object)) {
        *length = PyMemoryView_GET_BUFFER(object)->len;
        return true;
    }
    if (PyByteArray_CheckExact(object)) {
        *length = PyByteArray_GET_SIZE(object);
        return true;
    }
    return number_of(object, length);
}

/* Whether they are the offset and the length, or buffer, of something within. */
static bool lie_within(PyObject *first, PyObject *second, uint64_t size, uint64_t *offset)
{
    uint64_t length;
    return number_of(first, offset) && length_of(second, &length) && *offset <= size && length <= size - *offset;
}

static PyObject *moved_call(Moved *self, PyObject *const *args, size_t flags, PyObject *names)
{
    Py_ssize_t count = PyVectorcall_NARGS(flags), all = count + (names ? PyTuple_GET_SIZE(names) : 0);
    PyObject *stack[MOST_ARGUMENTS];
    uint64_t offset;
    if (count < 2 || all > MOST_ARGUMENTS || !lie_within(args[0], args[1], self->size, &offset)) {
        return PyObject_Vectorcall(self->otherwise, args, flags, names);
    }
    memcpy(stack, args, all * sizeof(*stack));
    stack[0] = PyLong_FromUnsignedLongLong(self->start + offset);
    PyObject *result = stack[0] ? PyObject_Vectorcall(self->method, stack, count, names) : NULL;
    Py_XDECREF(stack[0]);
    return result;
}

static PyObject *moved_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *method, *otherwise;
    unsigned long long start, size;
    if (!PyArg_ParseTuple(args, "OOKK:Moved", &method, &otherwise, &start, &size)) {
        return NULL;
    }
    Moved *self = (Moved *)type->tp_alloc(type, 0);
    if (self) {
        self->call = (vectorcallfunc)moved_call;
        self->method = Py_NewRef(method);
        self->otherwise = Py_NewRef(otherwise);
        self->start = start;
        self->size = size;
    }
    return (PyObject *)self;
}

static int moved_traverse(Moved *self, visitproc visit, void *arg)
{
    Py_VISIT(self->method);
    Py_VISIT(self->otherwise);
    return 0;
}

static int moved_clear(Moved *self)
{
    Py_CLEAR(self->method);
    Py_CLEAR(self->otherwise);
    return 0;
}

static void moved_dealloc(Moved *self)
{
    PyObject_GC_UnTrack(self);
    moved_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyTypeObject Moved_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.Moved",
    .tp_doc = PyDoc_STR("A request method whose offsets are moved."),
    .tp_basicsize = sizeof(Moved),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_new = moved_new,
    .tp_dealloc = (destructor)moved_dealloc,
    .tp_traverse = (traverseproc)moved_traverse,
    .tp_clear = (inquiry)moved_clear,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Moved, call),
};

/* ---- pairs ----------------------------------------------------------------------------------------------- */

/* A new reference; NULL without an exception: it is not within, or not known to be. */
static PyObject *move_pair(PyObject *pair, uint64_t start, uint64_t size)
{
    uint64_t offset;
    if (!PyTuple_CheckExact(pair) || PyTuple_GET_SIZE(pair) != 2 ||
        !lie_within(PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1), size, &offset)) {
        return NULL;
    }
    PyObject *place = PyLong_FromUnsignedLongLong(start + offset);
    PyObject *moved = place ? PyTuple_Pack(2, place, PyTuple_GET_ITEM(pair, 1)) : NULL;
    Py_XDECREF(place);
    return moved;
}

PyObject *move_pairs(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *pairs;
    unsigned long long start, size;
    if (!PyArg_ParseTuple(args, "O!KK:move_pairs", &PyTuple_Type, &pairs, &start, &size)) {
        return NULL;
    }
    PyObject *moved = PyList_New(0);
    for (Py_ssize_t i = 0; moved && i < PyTuple_GET_SIZE(pairs); i++) {
        PyObject *pair = move_pair(PyTuple_GET_ITEM(pairs, i), start, size);
        if (!pair && !PyErr_Occurred()) {
            Py_DECREF(moved);
            Py_RETURN_NONE;
        }
        if (!pair || PyList_Append(moved, pair) < 0) {
            Py_CLEAR(moved);
        }
        Py_XDECREF(pair);
    }
    return moved;
}
