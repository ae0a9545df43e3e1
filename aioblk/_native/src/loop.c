/*
 * The event loop: the turns that a queue asks of it, and what must be raised in it. How Python code is called from where an
 * exception cannot be raised, and what becomes of the exception then.
 */
#include "rooms.h"

#include <string.h>
#include <unistd.h>

unsigned fork_generation;
static PyObject *call_soon_names, *str_ready, *str_thread_id, *asyncio_names, *str_nest_patched;

/* ---- exceptions ------------------------------------------------------------------------------------------ */

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

static void keep_for_loop(QueueCore *q)
{
    PyObject *exception = take_exception(), *before = q->put_off;
    q->put_off = exception;
    if (before && before != exception) {
        PyException_SetContext(exception, before);
    } else {
        Py_XDECREF(before);
    }
}

/* nest_asyncio and its successor leave this mark in asyncio. */
bool loop_may_nest(void) { return PyDict_Contains(asyncio_names, str_nest_patched) != 0; }

/* ---- turns ----------------------------------------------------------------------------------------------- */

int queue_call_soon(QueueCore *q, PyObject *callback, PyObject *argument, PyObject *context)
{
    PyObject *arguments[] = {callback, argument, context};
    PyObject *handle = argument ? PyObject_Vectorcall(q->call_soon, arguments, 2, call_soon_names)
                                : PyObject_Vectorcall(q->call_soon, (PyObject *[]){callback, context}, 1,
                                                      call_soon_names);
    Py_XDECREF(handle);
    return handle ? 0 : -1;
}

int queue_schedule_flush(QueueCore *q)
{
    if (q->flush_scheduled || !queue_has_loop(q)) {
        return 0;
    }
    if (!q->flush_method) {
        PyErr_SetString(PyExc_RuntimeError, "the queue is being deallocated");
        return -1;
    }
    q->flush_scheduled = queue_call_soon(q, q->flush_method, NULL, q->loop_context) == 0;
    return q->flush_scheduled ? 0 : -1;
}

/* Whether the turn that is under way, but not a loop that is run within it, flushes at its end. */
static bool is_left_to_this_turn(QueueCore *q)
{
    if (!q->turn_flushes || (q->woken_context && !queue_woke_caller(q))) {
        return false;
    }
    q->flush_owed = q->flush_owed || !loop_may_nest();
    return q->flush_owed;
}

int queue_schedule_flush_soon(QueueCore *q) { return is_left_to_this_turn(q) ? 0 : queue_schedule_flush(q); }

/* Where the loop takes no callback now, an event like the device's has on_event() called. A closed loop calls nothing. */
static void make_event(QueueCore *q)
{
    uint64_t event = 1;
    if (q->completion_fd >= 0 && queue_usable(q) && write(q->completion_fd, &event, sizeof(event)) < 0) {
        q->counters.empty_events++; /* the descriptor is full of events that nobody has read yet */
    }
}

/* The same whatever happens: beside an exception that is on its way, without memory, and although Ctrl-C arrives within. */
void queue_go_on_next_turn(QueueCore *q)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (int tries = 0; tries < 2 && queue_schedule_flush(q) < 0; tries++) {
        if (PyErr_ExceptionMatches(PyExc_Exception)) {
            PyErr_Clear();
            make_event(q);
            break;
        }
        keep_for_loop(q);
    }
    PyErr_Restore(type, value, traceback);
}

void queue_pay_flush(QueueCore *q)
{
    if (q->flush_owed && q->thread == PyThread_get_thread_ident()) {
        q->flush_owed = false;
        queue_go_on_next_turn(q);
    }
}

void queue_go_on_soon(QueueCore *q)
{
    if (!is_left_to_this_turn(q)) {
        queue_go_on_next_turn(q);
    }
}

/* A new reference, or NULL: the loop has it not, as other loops than asyncio's own, or not now. */
static PyObject *ask_loop(QueueCore *q, PyObject *name, bool *has_it_not)
{
    PyObject *answer = PyObject_GetAttr(q->loop, name);
    if (answer) {
        return answer;
    }
    *has_it_not = PyErr_ExceptionMatches(PyExc_AttributeError);
    if (PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
    } else {
        queue_put_off(q);
    }
    return NULL;
}

bool loop_has_others(QueueCore *q)
{
    PyObject *ready = q->loop_is_mute ? NULL : ask_loop(q, str_ready, &q->loop_is_mute);
    if (!ready) {
        return false;
    }
    Py_ssize_t count = PyObject_Size(ready);
    Py_DECREF(ready);
    if (count < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
    } else if (count < 0) {
        queue_put_off(q);
    }
    return count > 0;
}

/*
 * Up to 3.11, asyncio asks for the number of the process each time it is asked for the running loop: a system call, where a
 * cached read takes three. Its own loops say in which thread they are running: then they are what runs there, unless another
 * one may run within.
 */
bool loop_says_it_runs(QueueCore *q)
{
    if (PY_VERSION_HEX >= 0x030C0000 || q->loop_hides_thread || loop_may_nest()) {
        return false;
    }
    PyObject *thread = ask_loop(q, str_thread_id, &q->loop_hides_thread);
    bool here = thread && PyLong_CheckExact(thread) && PyLong_AsUnsignedLongMask(thread) == q->thread;
    Py_XDECREF(thread);
    return here;
}

void queue_tell_later(QueueCore *q, uint8_t hook)
{
    q->untold |= hook;
    queue_go_on_next_turn(q);
}

void queue_new_turn(QueueCore *q)
{
    q->inline_budget = INLINE_FIRST;
    q->inline_rest = INLINE_BUDGET - INLINE_FIRST;
    q->inline_since = 0;
    PUBLISH(q->inline_request, NULL);
}

/* ---- exceptions that are for the loop: KeyboardInterrupt, SystemExit ------------------------------------------- */

void queue_put_off(QueueCore *q)
{
    if (q->thread != PyThread_get_thread_ident()) {
        raise_in_main_thread();
        return;
    }
    keep_for_loop(q);
    queue_go_on_next_turn(q);
}

int queue_raise_put_off(QueueCore *q)
{
    PyObject *exception = q->put_off;
    if (!exception) {
        return 0;
    }
    q->put_off = NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_DECREF(exception);
    return -1;
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
    queue_put_off(q);
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

/* ---- what requests and tasks are given of the loop ----------------------------------------------------------------- */

/* Bound to the loop itself: what the requests of a queue have in common refers to no request and no queue. */
static PyObject *get_loop(PyObject *loop, PyObject *Py_UNUSED(ignored)) { return Py_NewRef(loop); }
static PyMethodDef get_loop_method = {"get_loop", get_loop, METH_NOARGS, NULL};

PyObject *loop_getter(PyObject *loop) { return PyCFunction_New(&get_loop_method, loop); }

/* A future that is done, and asyncio's own: see step_task. */
PyObject *loop_finished_future(PyObject *loop)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    PyObject *type = asyncio ? PyObject_GetAttrString(asyncio, "Future") : NULL;
    PyObject *names = type ? Py_BuildValue("{s:O}", "loop", loop) : NULL;
    PyObject *future = names ? PyObject_VectorcallDict(type, NULL, 0, names) : NULL;
    PyObject *answer = future ? PyObject_CallMethod(future, "set_result", "O", Py_None) : NULL;
    if (!answer) {
        Py_CLEAR(future);
    }
    Py_XDECREF(answer);
    Py_XDECREF(names);
    Py_XDECREF(type);
    Py_XDECREF(asyncio);
    return future;
}

int loop_module_init(void)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    if (!asyncio) {
        return -1;
    }
    asyncio_names = Py_NewRef(PyModule_GetDict(asyncio));
    Py_DECREF(asyncio);
    str_nest_patched = PyUnicode_InternFromString("_nest_patched");
    PyObject *context = PyUnicode_InternFromString("context"); /* interned: the callee finds it by identity */
    call_soon_names = context ? PyTuple_Pack(1, context) : NULL;
    Py_XDECREF(context);
    str_ready = PyUnicode_InternFromString("_ready");
    str_thread_id = PyUnicode_InternFromString("_thread_id");
    return call_soon_names && str_ready && str_thread_id && str_nest_patched ? 0 : -1;
}
