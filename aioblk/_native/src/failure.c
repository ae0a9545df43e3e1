/* Failures: the exception that an item failed with, made when somebody asks for it, and how many there were of which errno. */
#include "rooms.h"

#include <stdlib.h>
#include <string.h>

/* ---- exceptions ------------------------------------------------------------------------------------------ */

PyObject *item_exception(Request *r, Item *item)
{
    if (!OBSERVE(item->exception)) {
        bool whole = r->operation == OP_FLUSH || r->operation >= OP_OPEN_ALL_ZONES;
        PyObject *none = NULL;
        PyObject *made = device_make_error(r->queue->device, r->operation, item->error, item->message,
                                           whole ? UINT64_MAX : item->offset, whole ? UINT64_MAX : item->length);
        if (!made) {
            return NULL;
        }
        if (!__atomic_compare_exchange_n(&item->exception, &none, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            Py_DECREF(made); /* another thread asked as well, or the code that made it */
        }
    }
    return Py_NewRef(item->exception);
}

/* An errno in Python's own words: what there is when nothing else could be made. */
static PyObject *plain_error(int error)
{
    PyObject *exception = PyObject_CallFunction(PyExc_OSError, "is", error, strerror(error));
    return exception ? exception : take_exception();
}

PyObject *make_certainly(PyObject *(*make)(Request *, Item *), Request *r, Item *item, int error)
{
    for (int tries = 0; tries < 2; tries++) {
        PyObject *exception = make(r, item);
        if (exception) {
            return exception;
        }
        if (PyErr_ExceptionMatches(PyExc_Exception)) {
            return take_exception();
        }
        queue_put_off(r->queue);
    }
    return plain_error(error);
}

/* ---- counting -------------------------------------------------------------------------------------------- */

/* Of an exception that the Python side has made. */
static long errno_of(PyObject *exception)
{
    PyObject *number = NULL;
    if (exception && PyObject_TypeCheck(exception, (PyTypeObject *)PyExc_OSError)) {
        number = ((PyOSErrorObject *)exception)->myerrno;
    }
    return number && PyLong_CheckExact(number) ? (long)PyLong_AsUnsignedLongMask(number) : 0;
}

__attribute__((noinline, cold)) void queue_count_failure(QueueCore *q, Operation op, const Item *item)
{
    long error = item->error ? item->error : errno_of(item->exception);
    q->counters.failed[op]++;
    if (!q->errors) {
        q->errors = calloc(OP_COUNT * ERRNOS, sizeof(*q->errors)); /* without memory, it is counted as a failure alone */
    }
    if (q->errors) {
        q->errors[op * ERRNOS + (error > 0 && error < ERRNOS ? error : 0)]++;
    }
}
