/* Views: parts of a Memory, with the buffer protocol. Everything raises once the memory is closed. */
#include "rooms.h"

#include <string.h>

static PyObject *raise_closed(void)
{
    PyErr_SetString(PyExc_ValueError, "the memory of this view has been closed");
    return NULL;
}

static PyObject *new_view(PyTypeObject *type, MemoryObject *memory, char *address, size_t length)
{
    ViewObject *view = (ViewObject *)type->tp_alloc(type, 0);
    if (view == NULL) {
        return NULL;
    }
    view->memory = (MemoryObject *)Py_NewRef(memory);
    view->address = address;
    view->length = length;
    return (PyObject *)view;
}

PyObject *view_make(MemoryObject *memory, char *address, size_t length)
{
    return new_view(&View_Type, memory, address, length);
}

static PyObject *view_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "start", "length", NULL};
    MemoryObject *memory;
    Py_ssize_t start = 0;
    PyObject *length_object = Py_None;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|nO:View", names, &Memory_Type, &memory, &start,
                                     &length_object)) {
        return NULL;
    }
    if (SHARED_LOAD(memory->closed)) {
        return raise_closed();
    }
    Py_ssize_t all = (Py_ssize_t)memory->length;
    Py_ssize_t length = all - start;
    if (length_object != Py_None) {
        length = PyNumber_AsSsize_t(length_object, PyExc_OverflowError);
        if (length == -1 && PyErr_Occurred()) {
            return NULL;
        }
    }
    if (start < 0 || start > all || length < 0 || length > all - start) {
        return PyErr_Format(PyExc_ValueError, "%zd bytes from %zd are not within the memory of %zd bytes", length, start,
                            all);
    }
    return new_view(type, memory, memory->address + start, (size_t)length);
}

static bool is_closed(const ViewObject *self) { return SHARED_LOAD(self->memory->closed); }

static PyObject *read_byte(ViewObject *self, const char *byte)
{
    if (!memory_use(self->memory)) {
        return raise_closed();
    }
    unsigned char value = (unsigned char)*byte;
    memory_unuse(self->memory);
    return PyLong_FromLong(value);
}

/* A view never lets its memory go before itself: of a cycle that it is in, something else does. */
static int view_traverse(ViewObject *self, visitproc visit, void *arg)
{
    Py_VISIT(self->memory);
    return 0;
}

static void view_dealloc(ViewObject *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->memory);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int view_getbuffer(ViewObject *self, Py_buffer *buffer, int flags)
{
    if (!memory_use(self->memory)) {
        raise_closed();
        return -1;
    }
    if (PyBuffer_FillInfo(buffer, (PyObject *)self, self->address, (Py_ssize_t)self->length, self->memory->readonly,
                          flags) < 0) {
        memory_unuse(self->memory);
        return -1;
    }
    return 0;
}

static void view_releasebuffer(ViewObject *self, Py_buffer *Py_UNUSED(buffer))
{
    memory_unuse(self->memory);
}

static Py_ssize_t view_length(ViewObject *self)
{
    if (is_closed(self)) {
        raise_closed();
        return -1;
    }
    return (Py_ssize_t)self->length;
}

/* The byte that an index means, or NULL with an exception. */
static char *view_byte(ViewObject *self, PyObject *key)
{
    Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred()) {
        return NULL;
    }
    Py_ssize_t length = (Py_ssize_t)self->length;
    if (index < 0) {
        index += length;
    }
    if (index < 0 || index >= length) {
        PyErr_SetString(PyExc_IndexError, "view index out of range");
        return NULL;
    }
    return self->address + index;
}

/* The range that a slice means; its step must be 1, as device requests know no other. */
static int view_range(ViewObject *self, PyObject *key, char **address, Py_ssize_t *length)
{
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(key, &start, &stop, &step) < 0) {
        return -1;
    }
    if (step != 1) {
        PyErr_SetString(PyExc_ValueError, "a view can only be sliced with step 1");
        return -1;
    }
    *length = PySlice_AdjustIndices((Py_ssize_t)self->length, &start, &stop, step);
    *address = self->address + (*length > 0 ? start : 0);
    return 0;
}

static PyObject *view_subscript(ViewObject *self, PyObject *key)
{
    if (is_closed(self)) {
        return raise_closed();
    }
    if (PySlice_Check(key)) {
        char *address;
        Py_ssize_t length;
        if (view_range(self, key, &address, &length) < 0) {
            return NULL;
        }
        return new_view(&View_Type, self->memory, address, (size_t)length);
    }
    char *byte = view_byte(self, key);
    return byte == NULL ? NULL : read_byte(self, byte);
}

static int view_assign_range(ViewObject *self, PyObject *key, PyObject *value)
{
    char *address;
    Py_ssize_t length;
    Py_buffer source;

    if (view_range(self, key, &address, &length) < 0 || PyObject_GetBuffer(value, &source, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    int result = -1;
    if (!memory_use(self->memory)) { /* the exporter of value may have run any code */
        raise_closed();
    } else {
        if (source.len != length) {
            PyErr_Format(PyExc_ValueError, "%zd bytes cannot be assigned to a view of %zd", source.len, length);
        } else {
            memmove(address, source.buf, (size_t)length);
            result = 0;
        }
        memory_unuse(self->memory);
    }
    PyBuffer_Release(&source);
    return result;
}

static int view_assign_byte(ViewObject *self, PyObject *key, PyObject *value)
{
    char *byte = view_byte(self, key);
    if (byte == NULL) {
        return -1;
    }
    Py_ssize_t number = PyNumber_AsSsize_t(value, PyExc_ValueError);
    if (number == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (number < 0 || number > 255) {
        PyErr_SetString(PyExc_ValueError, "a byte must be in range(0, 256)");
        return -1;
    }
    if (!memory_use(self->memory)) { /* __index__ of key or value may have run any code */
        raise_closed();
        return -1;
    }
    *byte = (char)number;
    memory_unuse(self->memory);
    return 0;
}

static int view_assign(ViewObject *self, PyObject *key, PyObject *value)
{
    if (is_closed(self)) {
        raise_closed();
        return -1;
    }
    if (value == NULL || self->memory->readonly) {
        PyErr_SetString(PyExc_TypeError, value == NULL ? "a view cannot be shortened" : "the view is read-only");
        return -1;
    }
    return PySlice_Check(key) ? view_assign_range(self, key, value) : view_assign_byte(self, key, value);
}

static PyObject *view_richcompare(ViewObject *self, PyObject *other, int operation)
{
    if ((operation != Py_EQ && operation != Py_NE) || !PyObject_CheckBuffer(other)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    Py_buffer theirs;
    if (!memory_use(self->memory)) {
        return raise_closed();
    }
    if (PyObject_GetBuffer(other, &theirs, PyBUF_SIMPLE) < 0) {
        memory_unuse(self->memory);
        return NULL;
    }
    bool equal = (size_t)theirs.len == self->length && memcmp(theirs.buf, self->address, self->length) == 0;
    memory_unuse(self->memory);
    PyBuffer_Release(&theirs);
    return PyBool_FromLong(equal == (operation == Py_EQ));
}

static PyObject *view_tobytes(ViewObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!memory_use(self->memory)) {
        return raise_closed();
    }
    PyObject *bytes = PyBytes_FromStringAndSize(self->address, (Py_ssize_t)self->length);
    memory_unuse(self->memory);
    return bytes;
}

static PyObject *view_get_address(ViewObject *self, void *Py_UNUSED(closure))
{
    return is_closed(self) ? raise_closed() : PyLong_FromVoidPtr(self->address);
}

static PyObject *view_get_nbytes(ViewObject *self, void *Py_UNUSED(closure))
{
    return is_closed(self) ? raise_closed() : PyLong_FromSize_t(self->length);
}

static PyObject *view_get_readonly(ViewObject *self, void *Py_UNUSED(closure))
{
    return is_closed(self) ? raise_closed() : PyBool_FromLong(self->memory->readonly);
}

static PyObject *view_get_memory(ViewObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->memory);
}

static PyObject *view_repr(ViewObject *self)
{
    return PyUnicode_FromFormat("<aioblk View of %zu bytes at %p%s>", self->length, self->address,
                                is_closed(self) ? ", closed" : "");
}

static PyMethodDef view_methods[] = {
    {"tobytes", (PyCFunction)view_tobytes, METH_NOARGS, "tobytes()\n--\n\nA copy of the bytes."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef view_getset[] = {
    {"address", (getter)view_get_address, NULL, "The address of the first byte.", NULL},
    {"nbytes", (getter)view_get_nbytes, NULL, "The length in bytes.", NULL},
    {"readonly", (getter)view_get_readonly, NULL, "Whether the view refuses to be written.", NULL},
    {"memory", (getter)view_get_memory, NULL, "The Memory that this is a part of.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyBufferProcs view_as_buffer = {
    .bf_getbuffer = (getbufferproc)view_getbuffer,
    .bf_releasebuffer = (releasebufferproc)view_releasebuffer,
};

/* Makes views iterable, as array and list expect of a sequence of bytes. */
static PyObject *view_item(ViewObject *self, Py_ssize_t index)
{
    if (is_closed(self)) {
        return raise_closed();
    }
    if ((size_t)index >= self->length) { /* or it is negative */
        PyErr_SetString(PyExc_IndexError, "view index out of range");
        return NULL;
    }
    return read_byte(self, self->address + index);
}

static PySequenceMethods view_as_sequence = {
    .sq_length = (lenfunc)view_length,
    .sq_item = (ssizeargfunc)view_item,
};

static PyMappingMethods view_as_mapping = {
    .mp_length = (lenfunc)view_length,
    .mp_subscript = (binaryfunc)view_subscript,
    .mp_ass_subscript = (objobjargproc)view_assign,
};

PyTypeObject View_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.View",
    .tp_doc = "View(memory, start=0, length=None)\n--\n\n"
              "A range of a Memory with the buffer protocol; slices are Views again. Everything raises ValueError once\n"
              "the memory has been closed, and so does a range that is not within it.",
    .tp_basicsize = sizeof(ViewObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = view_new,
    .tp_traverse = (traverseproc)view_traverse,
    .tp_dealloc = (destructor)view_dealloc,
    .tp_free = PyObject_GC_Del,
    .tp_repr = (reprfunc)view_repr,
    .tp_hash = PyObject_HashNotImplemented,
    .tp_richcompare = (richcmpfunc)view_richcompare,
    .tp_iter = PySeqIter_New,
    .tp_as_buffer = &view_as_buffer,
    .tp_as_sequence = &view_as_sequence,
    .tp_as_mapping = &view_as_mapping,
    .tp_methods = view_methods,
    .tp_getset = view_getset,
};
