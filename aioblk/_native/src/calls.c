/* Calls to Python code from where an exception cannot be raised, and what becomes of it then. */
#include "core.h"

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

void put_off_exception(PyObject *where)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        PyErr_Clear();
        PyErr_SetInterrupt(); /* raised again in the next Python code, be it the loop's */
    } else if (where) {
        PyErr_WriteUnraisable(where);
    } else {
        PyErr_Clear();
    }
}

void call_hook(PyObject *hook, PyObject *argument)
{
    if (!hook || hook == Py_None) {
        return;
    }
    Py_INCREF(hook); /* it may put another in its own place */
    PyObject *answer = argument ? PyObject_CallOneArg(hook, argument) : PyObject_CallNoArgs(hook);
    if (answer) {
        Py_DECREF(answer);
    } else {
        put_off_exception(hook);
    }
    Py_DECREF(hook);
}
