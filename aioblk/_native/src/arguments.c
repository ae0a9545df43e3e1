/* Arguments: what a method was called with, by position or by name. */
#include "rooms.h"

static const char *const parameter_names[N_COUNT] = {"offset", "length", "buffer", "buffers", "data", "requests",
                                                     "fua", "no_unmap", "no_fallback", "return_exceptions"};
static PyObject *interned[N_COUNT];

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

int parse(const Signature *signature, PyObject *const *args, Py_ssize_t count, PyObject *names, PyObject **values)
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

/* 1: it is an integer that does not fit. -1 with an exception: it is none. */
static int parse_index(PyObject *number, uint64_t *value)
{
    if (!number) {
        return -1;
    }
    *value = PyLong_AsUnsignedLongLong(number);
    if (*value != (uint64_t)-1 || !PyErr_Occurred()) {
        return 0;
    }
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
        return -1;
    }
    PyErr_Clear();
    return 1;
}

/* Offset and, unless its place is NULL, length. */
static int parse_other_range(DeviceCore *device, Operation op, PyObject *const objects[2], uint64_t *offset, uint64_t *length)
{
    PyObject *first = PyNumber_Index(objects[0]), *second = NULL;
    int status = parse_index(first, offset);
    if (status >= 0 && length) {
        second = PyNumber_Index(objects[1]);
        int other = parse_index(second, length);
        status = other < 0 ? -1 : status | other;
    }
    if (status > 0) {
        status = device_refuse_range(device, op, first, second ? second : Py_None);
    }
    Py_XDECREF(first);
    Py_XDECREF(second);
    return status;
}

static inline bool parse_usual_bytes(PyObject *object, uint64_t *value)
{
    if (PyLong_CheckExact(object)) {
        *value = PyLong_AsUnsignedLongLong(object);
        if (*value != (uint64_t)-1) {
            return true;
        }
        PyErr_Clear();
    }
    return false;
}

inline int parse_offset(DeviceCore *device, Operation op, PyObject *object, uint64_t *offset)
{
    PyObject *const objects[2] = {object, NULL};
    return parse_usual_bytes(object, offset) ? 0 : parse_other_range(device, op, objects, offset, NULL);
}

inline int parse_range(DeviceCore *device, Operation op, PyObject *const objects[2], uint64_t *offset,
                              uint64_t *length)
{
    bool usual = parse_usual_bytes(objects[0], offset) && parse_usual_bytes(objects[1], length);
    return usual ? 0 : parse_other_range(device, op, objects, offset, length);
}

int parse_flag(PyObject *object, uint32_t flag, uint32_t *flags)
{
    int set = object ? PyObject_IsTrue(object) : 0;
    if (set > 0) {
        *flags |= flag;
    }
    return set < 0 ? -1 : 0;
}

int arguments_module_init(void)
{
    for (int i = 0; i < N_COUNT; i++) {
        interned[i] = PyUnicode_InternFromString(parameter_names[i]);
        if (!interned[i]) {
            return -1;
        }
    }
    return 0;
}
