/* Calls to Python code from where an exception cannot be raised, and what becomes of it then. */
#include "core.h"

#include <string.h>

PyObject *take_exception(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback) {
        PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

static int raise_pending(void *exception)
{
    PyErr_SetObject((PyObject *)Py_TYPE((PyObject *)exception), exception);
    Py_DECREF((PyObject *)exception);
    return -1;
}

void raise_in_main_thread(void)
{
    PyObject *exception = take_exception();
    if (Py_AddPendingCall(raise_pending, exception) < 0) { /* as many are pending as there may be */
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        PyErr_WriteUnraisable(NULL);
        Py_DECREF(exception);
    }
}

bool put_off_exception(QueueCore *q, PyObject *where)
{
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
        return true;
    }
    if (PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_WriteUnraisable(where);
        return false;
    }
    if (q) {
        queue_put_off(q);
    } else {
        raise_in_main_thread();
    }
    return true;
}

bool call_hook(QueueCore *q, PyObject *hook, PyObject *argument)
{
    if (!hook || hook == Py_None) {
        return true;
    }
    Py_INCREF(hook); /* it may put another in its own place */
    PyObject *answer = argument ? PyObject_CallOneArg(hook, argument) : PyObject_CallNoArgs(hook);
    bool again = !answer && put_off_exception(q, hook);
    Py_XDECREF(answer);
    Py_DECREF(hook);
    return !again;
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
