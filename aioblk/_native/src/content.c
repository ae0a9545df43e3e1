/*
 * Content: what bytes are, without copying them or making an object of each: stretches of zeroes, and what two buffers differ
 * in. Nothing of it has to do with requests.
 */
#include "rooms.h"

#include <string.h>

/* No bytes are zeroes. A block that is none mostly shows it in its first byte; memcmp() is as fast as memory is. */
static bool are_zeroes(const char *bytes, size_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

static bool are_equal(const char *one, const char *other, size_t length) { return memcmp(one, other, length) == 0; }

static int read_unit(PyObject *object, void *unit)
{
    Py_ssize_t value = PyNumber_AsSsize_t(object, PyExc_OverflowError);
    if (value <= 0 && !PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "a unit is a positive number of bytes, not %zd", value);
    }
    *(size_t *)unit = (size_t)value;
    return value > 0;
}

static size_t at_most(size_t length, size_t most) { return length < most ? length : most; }

/* A tuple that is taken over; NULL: there was none. 0, or -1 with an exception set. */
static int append(PyObject *list, PyObject *tuple)
{
    int result = tuple ? PyList_Append(list, tuple) : -1;
    Py_XDECREF(tuple);
    return result;
}

PyObject *zero_runs(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buffer;
    size_t unit;
    if (!PyArg_ParseTuple(args, "y*O&:zero_runs", &buffer, read_unit, &unit)) {
        return NULL;
    }
    const char *bytes = buffer.buf;
    size_t length = (size_t)buffer.len, start = 0;
    PyObject *runs = PyList_New(0);
    while (runs && start < length) {
        size_t end = start;
        bool first = are_zeroes(bytes + start, at_most(unit, length - start)), same = true;
        while (same && end < length) {
            end += at_most(unit, length - end);
            same = are_zeroes(bytes + end, at_most(unit, length - end)) == first;
        }
        if (append(runs, Py_BuildValue("(nnO)", (Py_ssize_t)start, (Py_ssize_t)end, first ? Py_True : Py_False)) < 0) {
            Py_CLEAR(runs);
        }
        start = end;
    }
    PyBuffer_Release(&buffer);
    return runs;
}

PyObject *differing_runs(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer one, other;
    size_t unit;
    if (!PyArg_ParseTuple(args, "y*y*O&:differing_runs", &one, &other, read_unit, &unit)) {
        return NULL;
    }
    const char *ours = one.buf, *theirs = other.buf;
    size_t length = at_most((size_t)one.len, (size_t)other.len), start = 0;
    PyObject *runs = PyList_New(0);
    /* All of it at once, since most of what is compared is equal. */
    while (runs && start < length && !are_equal(ours + start, theirs + start, length - start)) {
        size_t piece = at_most(unit, length - start);
        while (start < length && are_equal(ours + start, theirs + start, piece)) {
            start += piece;
            piece = at_most(unit, length - start);
        }
        size_t end = start + piece; /* no further than the length, whoever changes the memory meanwhile */
        while (end < length && !are_equal(ours + end, theirs + end, at_most(unit, length - end))) {
            end += at_most(unit, length - end);
        }
        if (append(runs, Py_BuildValue("(nn)", (Py_ssize_t)start, (Py_ssize_t)end)) < 0) {
            Py_CLEAR(runs);
        }
        start = end;
    }
    PyBuffer_Release(&one);
    PyBuffer_Release(&other);
    return runs;
}
