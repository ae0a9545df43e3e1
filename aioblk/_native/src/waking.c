/*
 * Waking: what is run or scheduled for those who wait for a request. Almost always that is one task of asyncio's own, which
 * is known well enough to be woken without a detour through the loop.
 */
#include "queue.h"

static PyObject *task_type, *asyncio_names, *str_nest_patched;

/* nest_asyncio and its successor leave this mark. */
bool waking_loops_nest(void) { return PyDict_Contains(asyncio_names, str_nest_patched) != 0; }

/* asyncio's C task waits with a builtin method bound to the task: running it is running the task's next step. */
static bool is_task_wakeup(PyObject *callback)
{
    if (!PyCFunction_CheckExact(callback)) {
        return false;
    }
    static PyMethodDef *task_wakeup; /* found once: asyncio has one definition of it */
    PyMethodDef *method = ((PyCFunctionObject *)callback)->m_ml;
    PyMethodDef *known = OBSERVE(task_wakeup);
    PyObject *self = PyCFunction_GET_SELF(callback);
    if (!known && self && PyObject_TypeCheck(self, (PyTypeObject *)task_type) &&
        strcmp(method->ml_name, "task_wakeup") == 0) {
        PUBLISH(task_wakeup, method);
        return true;
    }
    return method == known;
}

/*
 * Runs the task's step here and now, in its context, instead of by way of call_soon.
 *
 * A task that is woken asks the future for its result only to learn whether to send() or to throw(), and unless the
 * future is asyncio's own it calls a method for that: a fifth of all instructions of a request. So it is given a finished
 * future of asyncio's, sends, and finds the outcome, good or bad, in request_next.
 */
static int step_task(QueueCore *q, PyObject *callback, PyObject *context)
{
    if (PyContext_Enter(context) < 0) {
        PyErr_Clear(); /* somebody runs in this context already */
        return queue_call_soon(q, callback, q->wake_future, context);
    }
    q->counters.direct_wakes++;
    q->woken_context = context;
    PyObject *answer = PyObject_CallOneArg(callback, q->wake_future);
    q->woken_context = NULL;
    if (answer) {
        Py_DECREF(answer);
        return PyContext_Exit(context);
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    (void)PyContext_Exit(context);
    PyErr_Restore(type, value, traceback);
    return -1;
}

/*
 * The loop calls us in a context. A task that is woken directly, in the middle of that call, may run the loop again, which
 * must then be able to enter that context: so it is left meanwhile.
 */
PyObject *waking_leave_context(QueueCore *q)
{
    q->waker = PyThreadState_Get();
    PyObject *context = Py_XNewRef(q->waker->context);
    if (context && PyContext_Exit(context) < 0) {
        PyErr_Clear(); /* the thread's own, which nobody enters */
        Py_CLEAR(context);
    }
    return context;
}

void waking_return_to_context(PyObject *context)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyContext_Enter(context) < 0) {
        PyErr_WriteUnraisable(context);
    }
    PyErr_Restore(type, value, traceback);
    Py_DECREF(context);
}

int request_wake(Request *r, bool direct)
{
    int status = 0;
    PyObject *callback = r->callback, *context = r->context, *more = r->more_callbacks;
    r->callback = r->context = r->more_callbacks = NULL;
    if (more) {
        /* The order of registration is the order of calls, so nobody is woken directly. */
        direct = false;
    }
    if (callback) {
        bool task = is_task_wakeup(callback);
        PyObject *argument = task ? r->queue->wake_future : (PyObject *)r;
        status = direct && task ? step_task(r->queue, callback, context)
                                : queue_call_soon(r->queue, callback, argument, context);
        Py_DECREF(callback);
        Py_XDECREF(context);
    }
    for (Py_ssize_t i = 0; status == 0 && more && i < PyList_GET_SIZE(more); i++) {
        PyObject *pair = PyList_GET_ITEM(more, i);
        status = queue_call_soon(r->queue, PyTuple_GET_ITEM(pair, 0), (PyObject *)r, PyTuple_GET_ITEM(pair, 1));
    }
    Py_XDECREF(more);
    return status;
}

int waking_module_init(void)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    task_type = asyncio ? PyObject_GetAttrString(asyncio, "Task") : NULL;
    asyncio_names = asyncio ? Py_NewRef(PyModule_GetDict(asyncio)) : NULL;
    str_nest_patched = PyUnicode_InternFromString("_nest_patched");
    Py_XDECREF(asyncio);
    return task_type && str_nest_patched ? 0 : -1;
}
