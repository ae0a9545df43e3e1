/*
 * The awaitable: what asyncio expects of a Future, and what it accepts as a coroutine.
 *
 * A Request keeps two clocks. Its *state* is what the awaiting side sees; `outstanding` is what the device still owes.
 * They part company when a request on private memory is cancelled: the state is CANCELLED at once, while the memory
 * stays until the device has finished. A request on the caller's memory stays PENDING until then, since the device may
 * still write there, and only then becomes CANCELLED.
 */
#include "rooms.h"

static PyObject *cancelled_error, *str_context, *str_anyio_backend;

/* ---- outcome --------------------------------------------------------------------------------------------- */

static PyObject *request_make_cancelled_error(Request *r, PyObject *Py_UNUSED(ignored))
{
    return r->cancel_requested && r->cancel_message ? PyObject_CallOneArg(cancelled_error, r->cancel_message)
                                                    : PyObject_CallNoArgs(cancelled_error);
}

static PyObject *raise_cancelled(Request *r)
{
    PyObject *exception = request_make_cancelled_error(r, NULL);
    if (exception) {
        PyErr_SetObject(cancelled_error, exception);
        Py_DECREF(exception);
    }
    return NULL;
}

static void mark_retrieved(Request *r)
{
    PUBLISH(r->log_traceback, false);
    if (OBSERVE(r->inline_completion)) {
        PUBLISH(r->inline_completion, false);
        request_forget_inline(r);
    }
}

/* The result of a request that is done: a new reference, or NULL with its exception. */
static PyObject *outcome(Request *r)
{
    mark_retrieved(r);
    State state = OBSERVE(r->state);
    if (state == FINISHED) {
        return Py_NewRef(r->item.result ? r->item.result : Py_None);
    }
    if (state == CANCELLED) {
        return raise_cancelled(r);
    }
    PyObject *exception = item_exception(r, &r->item);
    if (exception) { /* as it was at first, or it would grow with each time, and keep the frames of all */
        (void)PyException_SetTraceback(exception, r->traceback ? r->traceback : Py_None);
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
    }
    return NULL;
}

/* As asyncio does for futures: an error that nobody has looked at goes to the loop's exception handler. */
static void request_finalize(Request *r)
{
    if (!r->log_traceback || !queue_has_loop(r->queue)) {
        return;
    }
    r->log_traceback = false;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *exception = item_exception(r, &r->item), *answer = NULL;
    if (exception) {
        PyObject *what = Py_BuildValue("{s:s,s:O,s:O}", "message", "aioblk request's error was never retrieved",
                                       "exception", exception, "future", (PyObject *)r);
        if (what && !r->cancel_requested && r->origin && PyDict_SetItemString(what, "source_traceback", r->origin) < 0) {
            Py_CLEAR(what);
        }
        if (what) {
            answer = PyObject_CallMethod(r->queue->loop, "call_exception_handler", "O", what);
            Py_DECREF(what);
        }
        Py_DECREF(exception);
    }
    if (answer) {
        Py_DECREF(answer);
    } else if (PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_WriteUnraisable(r->queue->loop);
    } else {
        queue_put_off(r->queue);
    }
    PyErr_Restore(type, value, traceback);
}

/* ---- the Future's methods -------------------------------------------------------------------------------- */

/*
 * What asks or changes a request that is not over is for the queue's thread alone. An outcome that is known may be looked
 * at from any thread.
 */
static int refuse_other_threads(const Request *r)
{
    bool here = r->queue->thread == PyThread_get_thread_ident();
    return here ? 0 : device_refuse(r->queue->device, "thread", r->operation, UINT64_MAX, UINT64_MAX);
}

/* On the path of every request the question is left out where the GIL makes the answer harmless. */
static inline int refuse_dangerous_threads(const Request *r)
{
    return may_touch(r->queue->thread) ? 0 : refuse_other_threads(r);
}

static int refuse_awaiting(const Request *r)
{
    return device_refuse(r->queue->device, "no-loop", r->operation, UINT64_MAX, UINT64_MAX);
}

static PyObject *request_done(Request *r, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(OBSERVE(r->state) != PENDING);
}

static PyObject *request_cancelled(Request *r, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(OBSERVE(r->state) == CANCELLED);
}

static PyObject *raise_invalid_state(const char *text)
{
    PyObject *module = PyImport_ImportModule("asyncio"), *type = NULL;
    if (module) {
        type = PyObject_GetAttrString(module, "InvalidStateError");
        Py_DECREF(module);
    }
    if (type) {
        PyErr_SetString(type, text);
        Py_DECREF(type);
    }
    return NULL;
}

static PyObject *request_result(Request *r, PyObject *Py_UNUSED(ignored))
{
    return OBSERVE(r->state) == PENDING ? raise_invalid_state("Result is not ready.") : outcome(r);
}

static PyObject *request_exception(Request *r, PyObject *Py_UNUSED(ignored))
{
    State state = OBSERVE(r->state);
    if (state == PENDING) {
        return raise_invalid_state("Exception is not set.");
    }
    mark_retrieved(r);
    if (state == CANCELLED) {
        return raise_cancelled(r);
    }
    return state == FAILED ? item_exception(r, &r->item) : Py_NewRef(Py_None);
}

static PyObject *request_get_loop(Request *r, PyObject *Py_UNUSED(ignored)) { return Py_NewRef(r->queue->loop); }

/*
 * Another than the first: 1, or -1 with an exception. 0: making room for it ran the garbage collector, and by way of that
 * code which has settled the request or removed the first callback.
 */
static int add_another_callback(Request *r, PyObject *callback, PyObject *context)
{
    PyObject *pair = PyTuple_Pack(2, callback, context);
    PyObject *list = r->more_callbacks ? Py_NewRef(r->more_callbacks) : PyList_New(0);
    int status = pair && list ? 0 : -1;
    if (status == 0 && r->state == PENDING && r->callback) {
        if (!r->more_callbacks) {
            r->more_callbacks = Py_NewRef(list);
        }
        status = PyList_Append(r->more_callbacks, pair) < 0 ? -1 : 1;
    }
    Py_XDECREF(list);
    Py_XDECREF(pair);
    return status;
}

/* Takes the reference to the context. */
static inline int add_callback(Request *r, PyObject *callback, PyObject *context)
{
    int status = r->state == PENDING && r->callback ? add_another_callback(r, callback, context) : 0;
    if (status == 0 && r->state == PENDING) {
        r->callback = Py_NewRef(callback);
        r->context = context;
        return 0;
    }
    if (status == 0) {
        status = queue_call_soon(r->queue, callback, (PyObject *)r, context);
    }
    Py_DECREF(context);
    return status;
}

static PyObject *request_add_done_callback(Request *r, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    static PyObject *usual_names; /* what asyncio's tasks say, the same object each time, seen to be ("context",) */
    PyObject *context = NULL;
    if (count != 1 || (names && names != OBSERVE(usual_names) &&
                       (PyTuple_GET_SIZE(names) != 1 ||
                        PyUnicode_Compare(PyTuple_GET_ITEM(names, 0), str_context) != 0))) {
        PyErr_SetString(PyExc_TypeError, "add_done_callback() takes a callback and keyword context");
        return NULL;
    }
    if (refuse_dangerous_threads(r) < 0) {
        return NULL;
    }
    if (names && !OBSERVE(usual_names)) {
        PUBLISH(usual_names, Py_NewRef(names));
    }
    if (!queue_has_loop(r->queue)) {
        (void)refuse_awaiting(r);
        return NULL;
    }
    if (!queue_woke_caller(r->queue)) {
        queue_pay_flush(r->queue); /* in a loop that is run within this turn */
    }
    if (names && args[1] != Py_None) {
        context = Py_NewRef(args[1]);
    } else {
        context = PyContext_CopyCurrent();
        if (!context) {
            return NULL;
        }
    }
    if (add_callback(r, args[0], context) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/*
 * The next callback becomes the first, if there is none. In the list, None stands for one that has been taken, here or by the
 * loop: see schedule_more.
 */
static void promote_callback(Request *r)
{
    PyObject *list = r->more_callbacks;
    Py_ssize_t taken = 0, count = list ? PyList_GET_SIZE(list) : 0;
    while (taken < count && PyList_GET_ITEM(list, taken) == Py_None) {
        taken++;
    }
    if (!r->callback && taken < count) {
        PyObject *pair = PyList_GET_ITEM(list, taken);
        r->callback = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
        r->context = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
        (void)PyList_SetItem(list, taken, Py_NewRef(Py_None));
        taken++;
    }
    if (taken == count) {
        Py_CLEAR(r->more_callbacks);
    } else if (PyList_SetSlice(list, 0, taken, NULL) < 0) {
        PyErr_Clear(); /* without memory, a list does not become shorter either */
    }
}

/* Comparing may run anything: whatever else has happened to the callbacks by then, it sees and leaves them whole. */
static PyObject *request_remove_done_callback(Request *r, PyObject *callback)
{
    Py_ssize_t removed = 0;
    if (refuse_other_threads(r) < 0) {
        return NULL;
    }
    for (Py_ssize_t i = 0; r->more_callbacks && i < PyList_GET_SIZE(r->more_callbacks);) {
        PyObject *list = Py_NewRef(r->more_callbacks), *pair = Py_NewRef(PyList_GET_ITEM(list, i));
        int same = pair == Py_None ? 0 : PyObject_RichCompareBool(PyTuple_GET_ITEM(pair, 0), callback, Py_EQ);
        bool in_place = i < PyList_GET_SIZE(list) && PyList_GET_ITEM(list, i) == pair;
        if (same > 0 && in_place) {
            same = PyList_SetSlice(list, i, i + 1, NULL);
            removed++;
        } else {
            i++;
        }
        Py_DECREF(pair);
        Py_DECREF(list);
        if (same < 0) {
            return NULL;
        }
    }
    if (r->callback) {
        PyObject *first = Py_NewRef(r->callback);
        int same = PyObject_RichCompareBool(first, callback, Py_EQ);
        Py_DECREF(first);
        if (same < 0) {
            return NULL;
        }
        if (same && r->callback == first) {
            removed++;
            request_drop_first_callback(r);
        }
    }
    promote_callback(r);
    return PyLong_FromSsize_t(removed);
}

/* ---- cancellation ---------------------------------------------------------------------------------------- */

/*
 * Where anyio is in use, a task that waits although it is cancelled does so in a shielded scope, since anyio would cancel it
 * again in every turn of the loop. It enters the scope in a step of its own, and leaves it when the request is over.
 */
static void call_scopes(Request *r, const char *function)
{
    PyObject *scopes = PyImport_ImportModule("aioblk._sync.scopes");
    PyObject *answer = scopes ? PyObject_CallMethod(scopes, function, NULL) : NULL;
    if (!answer) {
        (void)put_off_exception(r->queue, scopes);
    }
    Py_XDECREF(answer);
    Py_XDECREF(scopes);
}

static bool anyio_is_in_use(void)
{
    PyObject *backend = PyImport_GetModule(str_anyio_backend);
    Py_XDECREF(backend);
    return backend;
}

/* Whether who waits for a request that is cancelled, and not over, is to be shielded. */
static bool needs_shield(Request *r)
{
    r->shielded |= r->state == PENDING && queue_has_loop(r->queue) && anyio_is_in_use();
    return r->shielded && r->state == PENDING;
}

/* Has the tasks that wait run a step, as far as no other callback comes before them. */
static void rouse_tasks(Request *r)
{
    bool roused = true;
    while (roused && r->callback) {
        PyObject *callback = r->callback, *context = r->context;
        r->callback = r->context = NULL;
        roused = waking_rouse(r, callback, context);
        if (!roused && add_callback(r, callback, Py_NewRef(context)) < 0) {
            (void)put_off_exception(r->queue, (PyObject *)r);
        }
        promote_callback(r);
        Py_DECREF(callback);
        Py_DECREF(context);
    }
}

static PyObject *request_cancel(Request *r, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"msg", NULL};
    PyObject *message = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O", names, &message) || refuse_other_threads(r) < 0) {
        return NULL;
    }
    mark_retrieved(r);
    bool accepted = request_cancel_io(r, message == Py_None ? NULL : message);
    if (queue_wake_others(r->queue) < 0) {
        return NULL;
    }
    if (needs_shield(r)) {
        rouse_tasks(r);
    }
    return PyBool_FromLong(accepted);
}

/* ---- awaiting -------------------------------------------------------------------------------------------- */

/* A task has waited, although it was cancelled: -1 with what was thrown, if that is how it was. */
static int end_cancelled_wait(Request *r)
{
    if (r->shielded) {
        call_scopes(r, "leave");
    }
    PyObject *thrown = r->thrown;
    if (!thrown) {
        return 0;
    }
    r->thrown = NULL;
    mark_retrieved(r);
    PyErr_SetObject((PyObject *)Py_TYPE(thrown), thrown);
    Py_DECREF(thrown);
    return -1;
}

static PySendResult request_send_slot(Request *r, PyObject *Py_UNUSED(value), PyObject **result)
{
    if (OBSERVE(r->state) == PENDING) {
        if (refuse_dangerous_threads(r) < 0 || (!queue_has_loop(r->queue) && refuse_awaiting(r) < 0)) {
            *result = NULL;
            return PYGEN_ERROR;
        }
        if (r->shielded) {
            call_scopes(r, "enter");
        }
        r->blocking = true;
        *result = Py_NewRef(r);
        return PYGEN_NEXT;
    }
    if (r->turn != NO_TURN && may_touch(r->queue->thread)) {
        if (r->turn == TURN_DUE) {
            r->turn = TURN_TAKEN;
            *result = Py_NewRef(Py_None); /* as sleep(0) does */
            return PYGEN_NEXT;
        }
        r->turn = NO_TURN;
        queue_new_turn(r->queue);
    }
    if (r->cancel_requested && end_cancelled_wait(r) < 0) {
        *result = NULL;
        return PYGEN_ERROR;
    }
    *result = outcome(r);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PyObject *request_next(Request *r)
{
    PyObject *result;
    PySendResult status = request_send_slot(r, Py_None, &result);
    if (status == PYGEN_RETURN) {
        if (result != Py_None) {
            PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
            if (stop) {
                PyErr_SetObject(PyExc_StopIteration, stop);
                Py_DECREF(stop);
            }
        }
        Py_DECREF(result);
        return NULL;
    }
    return result;
}

static PyObject *request_send(Request *r, PyObject *Py_UNUSED(value))
{
    PyObject *result = request_next(r);
    if (!result && !PyErr_Occurred()) {
        PyErr_SetNone(PyExc_StopIteration);
    }
    return result;
}

/*
 * A task throws CancelledError here when it was cancelled before its first step (create_task(request)). As everywhere,
 * the device may still write to the caller's memory: cancel, go on waiting, and raise what was thrown at the end.
 */
static PyObject *request_throw(Request *r, PyObject *args)
{
    PyObject *type, *value = NULL, *traceback = NULL;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &type, &value, &traceback) || refuse_other_threads(r) < 0) {
        return NULL;
    }
    PyObject *exception;
    if (PyExceptionInstance_Check(type)) {
        exception = Py_NewRef(type);
    } else if (PyExceptionClass_Check(type)) {
        exception = value && PyExceptionInstance_Check(value) ? Py_NewRef(value)
                    : value && value != Py_None               ? PyObject_CallOneArg(type, value)
                                                              : PyObject_CallNoArgs(type);
    } else {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception");
        return NULL;
    }
    if (!exception) {
        return NULL;
    }
    if (r->state == PENDING && PyErr_GivenExceptionMatches(exception, cancelled_error)) {
        request_cancel_io(r, NULL);
        if (queue_wake_others(r->queue) < 0) {
            Py_DECREF(exception);
            return NULL;
        }
        if (r->state == PENDING) {
            Py_XSETREF(r->thrown, exception);
            if (needs_shield(r)) {
                call_scopes(r, "enter");
            }
            r->blocking = true;
            return Py_NewRef(r);
        }
    }
    if (r->state != PENDING) {
        mark_retrieved(r);
    }
    if (r->shielded) {
        call_scopes(r, "leave");
    }
    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_DECREF(exception);
    return NULL;
}

/* The request goes on, and its queue keeps what it needs. */
static PyObject *request_close(Request *r, PyObject *Py_UNUSED(ignored))
{
    if (r->shielded) {
        call_scopes(r, "leave");
    }
    Py_RETURN_NONE;
}

static PyObject *request_repr(Request *r)
{
    static const char *const states[] = {"pending", "finished", "failed", "cancelled"};
    const char *operation = operation_names[r->operation], *state = states[OBSERVE(r->state)];
    if (r->batch) {
        return PyUnicode_FromFormat("<Request batch of %s, items=%u %s>", operation, (unsigned)r->weight, state);
    }
    return PyUnicode_FromFormat("<Request %s offset=%llu length=%llu %s>", operation,
                                (unsigned long long)r->item.offset, (unsigned long long)r->item.length, state);
}

/* ---- the types ------------------------------------------------------------------------------------------- */

static PyMethodDef future_methods[] = {
    {"done", (PyCFunction)request_done, METH_NOARGS, "True once the outcome is known, or the request cancelled."},
    {"cancelled", (PyCFunction)request_cancelled, METH_NOARGS, "True if the request was cancelled."},
    {"result", (PyCFunction)request_result, METH_NOARGS, "The outcome, returned or raised."},
    {"exception", (PyCFunction)request_exception, METH_NOARGS, "The error of a failed request, or None."},
    {"get_loop", (PyCFunction)request_get_loop, METH_NOARGS, "The loop that the request's queue is bound to."},
    {"add_done_callback", (PyCFunction)(void (*)(void))request_add_done_callback, METH_FASTCALL | METH_KEYWORDS,
     "Call fn(request) from the loop once done; scheduled at once if it is done already."},
    {"remove_done_callback", (PyCFunction)request_remove_done_callback, METH_O,
     "Remove every instance of a callback; returns how many there were."},
    {"cancel", (PyCFunction)(void (*)(void))request_cancel, METH_VARARGS | METH_KEYWORDS,
     "Cancel. A request on the caller's own memory is done only when the device has finished with it."},
    {"_make_cancelled_error", (PyCFunction)request_make_cancelled_error, METH_NOARGS, "What asyncio.gather asks for."},
    {"__await__", request_await, METH_NOARGS | METH_COEXIST, "An iterator, for who awaits without `await`."},
    {"send", (PyCFunction)request_send, METH_O, NULL},
    {"throw", (PyCFunction)request_throw, METH_VARARGS, NULL},
    {"__class_getitem__", (PyCFunction)Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef request_methods[] = {
    {"close", (PyCFunction)request_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/*
 * The three attributes that a task looks up each time it waits, without the search through the type's dictionaries, and
 * get_loop without making a bound method. `future_methods` has them too, for who looks at the type.
 */
static PyObject *str_blocking, *str_get_loop, *str_add_done_callback;
static PyMethodDef add_done_callback_method = {
    "add_done_callback", (PyCFunction)(void (*)(void))request_add_done_callback, METH_FASTCALL | METH_KEYWORDS, NULL};

static PyObject *request_getattro(PyObject *self, PyObject *name)
{
    Request *r = (Request *)self;
    if (name == str_blocking) {
        return PyBool_FromLong(r->blocking);
    }
    if (name == str_get_loop) {
        return Py_NewRef(r->queue->get_loop);
    }
    if (name == str_add_done_callback) {
        return PyCFunction_New(&add_done_callback_method, self);
    }
    return PyObject_GenericGetAttr(self, name);
}

static int request_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    if (name == str_blocking && (value == Py_True || value == Py_False)) {
        ((Request *)self)->blocking = value == Py_True;
        return 0;
    }
    return PyObject_GenericSetAttr(self, name, value);
}

static PyMemberDef request_members[] = {
    {"_asyncio_future_blocking", T_BOOL, offsetof(Request, blocking), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *request_get_loop_attribute(Request *r, void *Py_UNUSED(closure)) { return Py_NewRef(r->queue->loop); }

static PyObject *request_get_cancel_message(Request *r, void *Py_UNUSED(closure))
{
    return Py_NewRef(r->cancel_requested && r->cancel_message ? r->cancel_message : Py_None);
}

static PyGetSetDef request_getset[] = {
    {"_loop", (getter)request_get_loop_attribute, NULL, NULL, NULL},
    {"_cancel_message", (getter)request_get_cancel_message, NULL, NULL, "What asyncio.gather asks for."},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyAsyncMethods request_async = {
    .am_await = PyObject_SelfIter,
    .am_send = (sendfunc)request_send_slot,
};

/* What record.c has begun. */
static void fill_types(void)
{
    Future_Type.tp_finalize = (destructor)request_finalize;
    Future_Type.tp_repr = (reprfunc)request_repr;
    Future_Type.tp_hash = request_hash;
    Future_Type.tp_getattro = request_getattro;
    Future_Type.tp_setattro = request_setattro;
    Future_Type.tp_as_async = &request_async;
    Future_Type.tp_iternext = (iternextfunc)request_next;
    Future_Type.tp_as_sequence = &request_as_sequence;
    Future_Type.tp_as_mapping = &request_as_mapping;
    Future_Type.tp_methods = future_methods;
    Future_Type.tp_members = request_members;
    Future_Type.tp_getset = request_getset;
    Request_Type.tp_methods = request_methods;
}

int awaitable_module_init(void)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    if (!asyncio) {
        return -1;
    }
    cancelled_error = PyObject_GetAttrString(asyncio, "CancelledError");
    Py_DECREF(asyncio);
    str_context = PyUnicode_InternFromString("context");
    str_anyio_backend = PyUnicode_InternFromString("anyio._backends._asyncio");
    str_blocking = PyUnicode_InternFromString("_asyncio_future_blocking");
    str_get_loop = PyUnicode_InternFromString("get_loop");
    str_add_done_callback = PyUnicode_InternFromString("add_done_callback");
    if (PyErr_Occurred()) {
        return -1;
    }
    fill_types();
    return PyType_Ready(&Future_Type) < 0 || PyType_Ready(&Request_Type) < 0 ? -1 : 0;
}
