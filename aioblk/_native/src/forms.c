/*
 * What a request looks like to those who do not simply await it: to asyncio's tests for a coroutine, to who drives an
 * awaitable by hand, and to who has forgotten to await.
 *
 * asyncio.wait() refuses whatever looks like a coroutine, and create_task() whatever does not. wait() and gather() put
 * their arguments into a set or a dict first: so a request that is hashed becomes an instance of the base type, which
 * lacks close(), the last of the methods that make a collections.abc.Coroutine. Tasks take it all the same: they ask
 * asyncio.iscoroutine(), as wait() does, but remember the types for which it said yes. One task, made while it says yes
 * and never run, teaches them. A task's repr() does not ask the task but asyncio.iscoroutine(), and fails if that says
 * no: so what writes a task's coroutine there does not get to see requests.
 */
#include "rooms.h"

/* ---- hashing --------------------------------------------------------------------------------------------- */

static PyObject *ignore(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(names))
{
    Py_RETURN_NONE;
}

static PyMethodDef ignore_method = {"ignore", (PyCFunction)(void (*)(void))ignore, METH_VARARGS | METH_KEYWORDS, NULL};

/* Has the two methods that a new task calls, and does nothing. */
static PyObject *new_idle_loop(void)
{
    PyObject *types = PyImport_ImportModule("types"), *loop = NULL, *function = PyCFunction_New(&ignore_method, NULL);
    if (types && function) {
        loop = PyObject_CallMethod(types, "SimpleNamespace", NULL);
    }
    if (loop && (PyObject_SetAttrString(loop, "get_debug", function) < 0 ||
                 PyObject_SetAttrString(loop, "call_soon", function) < 0)) {
        Py_CLEAR(loop);
    }
    Py_XDECREF(function);
    Py_XDECREF(types);
    return loop;
}

/* A task of the request, which is never run. */
static int make_idle_task(PyObject *request)
{
    PyObject *loop = new_idle_loop(), *task = NULL;
    PyObject *arguments = loop ? PyTuple_Pack(1, request) : NULL;
    PyObject *names = arguments ? Py_BuildValue("{s:O,s:s}", "loop", loop, "name", "aioblk") : NULL;
    if (names) {
        task = PyObject_Call(waking_task_type(), arguments, names);
    }
    int status = task ? PyObject_SetAttrString(task, "_log_destroy_pending", Py_False) : -1;
    Py_XDECREF(task);
    Py_XDECREF(names);
    Py_XDECREF(arguments);
    Py_XDECREF(loop);
    return status;
}

/* The text of a request without the brackets around it; of other coroutines what `original` says. */
static PyObject *format_coroutine(PyObject *original, PyObject *coroutine)
{
    if (!PyObject_TypeCheck(coroutine, &Future_Type)) {
        return PyObject_CallOneArg(original, coroutine);
    }
    PyObject *text = PyObject_Repr(coroutine);
    PyObject *bare = text ? PyUnicode_Substring(text, 1, PyUnicode_GET_LENGTH(text) - 1) : NULL;
    Py_XDECREF(text);
    return bare;
}

static PyMethodDef format_coroutine_method = {"_format_coroutine", format_coroutine, METH_O,
                                              "What asyncio writes of the coroutine of a task."};

static void stand_before_format_coroutine(PyObject *coroutines)
{
    PyObject *original = PyObject_GetAttrString(coroutines, format_coroutine_method.ml_name);
    PyObject *function = original ? PyCFunction_New(&format_coroutine_method, original) : NULL;
    if (function) {
        (void)PyObject_SetAttrString(coroutines, format_coroutine_method.ml_name, function);
    }
    Py_XDECREF(function);
    Py_XDECREF(original);
    PyErr_Clear();
}

/* Where asyncio is not as it was in CPython 3.11 to 3.14, nothing is gained and nothing lost. */
static void teach_asyncio(PyObject *request)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *coroutines = PyImport_ImportModule("asyncio.coroutines");
    if (coroutines) {
        stand_before_format_coroutine(coroutines);
    }
    PyObject *known = coroutines ? PyObject_GetAttrString(coroutines, "_iscoroutine_typecache") : NULL;
    if (known && PySet_Check(known) && PySet_Add(known, (PyObject *)&Future_Type) == 0) {
        if (make_idle_task(request) < 0) {
            PyErr_Clear();
        }
        (void)PySet_Discard(known, (PyObject *)&Future_Type);
    }
    Py_XDECREF(known);
    Py_XDECREF(coroutines);
    PyErr_Clear();
    PyErr_Restore(type, value, traceback);
}

/*
 * Both types are static and differ in one method only, so whoever looks at the object just now may see the one or the
 * other. Threads of other queues have no task to make of it and change nothing.
 */
Py_hash_t request_hash(PyObject *object)
{
    static bool taught;
    if (may_touch(((Request *)object)->queue->thread)) {
        Py_SET_TYPE(object, &Future_Type);
        if (!OBSERVE(taught)) {
            PUBLISH(taught, true);
            teach_asyncio(object);
        }
    }
    return (Py_hash_t)((uintptr_t)object >> 4);
}

/* ---- __await__() ------------------------------------------------------------------------------------------- */

/* `await` drives the request itself. What __await__() gives can also be iterated over, as `yield from` does. */
typedef struct {
    PyObject_HEAD
    PyObject *request;
} AwaitIterator;

static PyTypeObject AwaitIterator_Type;

PyObject *request_await(PyObject *request, PyObject *Py_UNUSED(ignored))
{
    AwaitIterator *self = PyObject_GC_New(AwaitIterator, &AwaitIterator_Type);
    if (self) {
        self->request = Py_NewRef(request);
        PyObject_GC_Track(self);
    }
    return (PyObject *)self;
}

static int await_traverse(AwaitIterator *self, visitproc visit, void *arg)
{
    Py_VISIT(self->request);
    return 0;
}

static void await_dealloc(AwaitIterator *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->request);
    PyObject_GC_Del(self);
}

static PyObject *await_next(AwaitIterator *self) { return Py_TYPE(self->request)->tp_iternext(self->request); }

static PyObject *await_send(AwaitIterator *self, PyObject *value)
{
    return PyObject_CallMethod(self->request, "send", "(O)", value);
}

static PyObject *await_throw(AwaitIterator *self, PyObject *args)
{
    PyObject *method = PyObject_GetAttrString(self->request, "throw");
    PyObject *answer = method ? PyObject_CallObject(method, args) : NULL;
    Py_XDECREF(method);
    return answer;
}

/* Nothing to close: the request goes on, and its queue keeps what it needs. */
static PyObject *await_close(AwaitIterator *Py_UNUSED(self), PyObject *Py_UNUSED(ignored)) { Py_RETURN_NONE; }

static PyMethodDef await_methods[] = {
    {"send", (PyCFunction)await_send, METH_O, NULL},
    {"throw", (PyCFunction)await_throw, METH_VARARGS, NULL},
    {"close", (PyCFunction)await_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject AwaitIterator_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.AwaitIterator",
    .tp_doc = "What Request.__await__() gives.",
    .tp_basicsize = sizeof(AwaitIterator),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)await_dealloc,
    .tp_traverse = (traverseproc)await_traverse,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)await_next,
    .tp_methods = await_methods,
};

/* ---- a forgotten await ------------------------------------------------------------------------------------- */

/*
 * A request has nothing to iterate over: as an iterator it would give itself until the device is done. Who tries, or
 * takes an item, has forgotten to await; only an object that seems to have items can say so.
 */
static PyObject *refuse_items(PyObject *request)
{
    return PyErr_Format(PyExc_TypeError, "%R has to be awaited before its result can be used", request);
}

static PyObject *refuse_index(PyObject *request, Py_ssize_t Py_UNUSED(index)) { return refuse_items(request); }
static PyObject *refuse_key(PyObject *request, PyObject *Py_UNUSED(key)) { return refuse_items(request); }

PySequenceMethods request_as_sequence = {.sq_item = refuse_index};
PyMappingMethods request_as_mapping = {.mp_subscript = refuse_key};

int forms_module_init(void) { return PyType_Ready(&AwaitIterator_Type); }
