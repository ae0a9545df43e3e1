/* Allocator: the allocator of allocator.c as Python has it, for the arena and the bounce pool. */
#include "rooms.h"

typedef struct {
    PyObject_HEAD
    allocator_t *allocator;
} AllocatorObject;

static PyObject *allocator_type_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"size", "granule", NULL};
    Py_ssize_t size, granule;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "nn:Allocator", names, &size, &granule)) {
        return NULL;
    }
    if (granule <= 0 || (granule & (granule - 1)) != 0) {
        return PyErr_Format(PyExc_ValueError, "granule must be a power of two, not %zd", granule);
    }
    if (size <= 0 || size % granule != 0 || size / granule >= (Py_ssize_t)1 << 31) {
        return PyErr_Format(PyExc_ValueError, "size must be 1 to 2^31 - 1 granules of %zd bytes, not %zd bytes", granule,
                            size);
    }
    AllocatorObject *self = (AllocatorObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->allocator = allocator_new((size_t)size, (size_t)granule);
    if (self->allocator == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void allocator_type_dealloc(AllocatorObject *self)
{
    allocator_free(self->allocator);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *allocator_type_take(AllocatorObject *self, PyObject *argument)
{
    Py_ssize_t length = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if (length == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (length <= 0) {
        return PyErr_Format(PyExc_ValueError, "length must be positive, not %zd", length);
    }
    int64_t offset;
    CRITICAL_SECTION(self);
    offset = allocator_take(self->allocator, (size_t)length);
    END_CRITICAL_SECTION();
    if (offset < 0) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLongLong(offset);
}

static PyObject *allocator_type_give(AllocatorObject *self, PyObject *argument)
{
    Py_ssize_t offset = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if (offset == -1 && PyErr_Occurred()) {
        return NULL;
    }
    bool given;
    CRITICAL_SECTION(self);
    given = offset >= 0 && allocator_give(self->allocator, (size_t)offset);
    END_CRITICAL_SECTION();
    if (!given) {
        return PyErr_Format(PyExc_ValueError, "no taken range starts at %zd", offset);
    }
    Py_RETURN_NONE;
}

static PyObject *allocator_get_size(AllocatorObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(allocator_size(self->allocator));
}

static PyObject *allocator_get_granule(AllocatorObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(allocator_granule(self->allocator));
}

static PyObject *allocator_ask(AllocatorObject *self, size_t (*question)(const allocator_t *))
{
    size_t answer;
    CRITICAL_SECTION(self);
    answer = question(self->allocator);
    END_CRITICAL_SECTION();
    return PyLong_FromSize_t(answer);
}

static PyObject *allocator_get_in_use(AllocatorObject *self, void *Py_UNUSED(closure))
{
    return allocator_ask(self, allocator_in_use);
}

static PyObject *allocator_get_count(AllocatorObject *self, void *Py_UNUSED(closure))
{
    return allocator_ask(self, allocator_count);
}

static PyObject *allocator_get_largest_free(AllocatorObject *self, void *Py_UNUSED(closure))
{
    return allocator_ask(self, allocator_largest_free);
}

static PyMethodDef allocator_methods[] = {
    {"take", (PyCFunction)allocator_type_take, METH_O,
     "take(length, /)\n--\n\nThe offset of a free range of at least length bytes, or None when there is none."},
    {"give", (PyCFunction)allocator_type_give, METH_O,
     "give(offset, /)\n--\n\nGives back the range that take returned. ValueError: no taken range starts at offset."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef allocator_getset[] = {
    {"size", (getter)allocator_get_size, NULL, "Bytes in all.", NULL},
    {"granule", (getter)allocator_get_granule, NULL, "Offsets and lengths are rounded to this many bytes.", NULL},
    {"in_use", (getter)allocator_get_in_use, NULL, "Bytes in taken ranges, whole granules.", NULL},
    {"count", (getter)allocator_get_count, NULL, "Taken ranges.", NULL},
    {"largest_free", (getter)allocator_get_largest_free, NULL, "Bytes of the longest free range.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject Allocator_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.Allocator",
    .tp_doc = "Allocator(size, granule)\n--\n\n"
              "Carves [0, size) into ranges; its own records lie outside the memory it hands out.",
    .tp_basicsize = sizeof(AllocatorObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = allocator_type_new,
    .tp_dealloc = (destructor)allocator_type_dealloc,
    .tp_methods = allocator_methods,
    .tp_getset = allocator_getset,
};
