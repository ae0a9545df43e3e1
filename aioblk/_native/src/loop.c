/*
 * The event loop: what a queue asks of it, waking who waits, and what must be raised in it.
 *
 * A request whose outcome is known lies on its queue's ready list until its waiters are woken: directly where the loop has
 * called us, through call_soon where a task is running.
 */
#include "queue.h"

#include <unistd.h>

#define WAKE_MAX 512 /* requests woken per turn of the loop */

unsigned fork_generation;
static PyObject *get_running_loop, *call_soon_names;

/* ---- the loop -------------------------------------------------------------------------------------------- */

int queue_call_soon(QueueCore *q, PyObject *callback, PyObject *argument, PyObject *context)
{
    PyObject *arguments[] = {callback, argument, context};
    PyObject *handle = argument ? PyObject_Vectorcall(q->call_soon, arguments, 2, call_soon_names)
                                : PyObject_Vectorcall(q->call_soon, (PyObject *[]){callback, context}, 1,
                                                      call_soon_names);
    Py_XDECREF(handle);
    return handle ? 0 : -1;
}

static bool on_own_loop(QueueCore *q)
{
    if (!queue_has_loop(q)) {
        return true;
    }
    PyObject *running = PyObject_CallNoArgs(get_running_loop);
    if (!running) {
        PyErr_Clear();
        return false;
    }
    Py_DECREF(running);
    return running == q->loop;
}

int queue_check_caller(QueueCore *q, Operation op, uint64_t offset, uint64_t length)
{
    const char *reason = NULL;
    if (q->fork_generation != fork_generation) {
        reason = "fork";
    } else if (OBSERVE(q->closed)) {
        reason = q->closed_reason;
    } else if (q->thread != PyThread_get_thread_ident()) {
        reason = "thread";
    } else if (!queue_woke_caller(q) && !on_own_loop(q)) {
        /* Our loop is running when it has called us; asking costs a getpid(). */
        reason = "loop";
    }
    return reason ? device_refuse(q->device, reason, op, offset, length) : 0;
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

/* Where the loop takes no callback now, an event like the device's has on_event() called. A closed loop calls nothing. */
static void make_event(QueueCore *q)
{
    uint64_t event = 1;
    if (q->completion_fd >= 0 && queue_usable(q) && write(q->completion_fd, &event, sizeof(event)) < 0) {
        q->counters.empty_events++; /* the descriptor is full of events that nobody has read yet */
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

/* ---- the ready list: requests whose outcome is known and whose waiters are not woken yet ----------------------- */

void queue_ready(QueueCore *q, Request *r)
{
    Py_INCREF(r);
    r->ready_next = NULL;
    if (q->ready_tail) {
        q->ready_tail->ready_next = r;
    } else {
        q->ready_head = r;
    }
    q->ready_tail = r;
}

static Request *take_ready(QueueCore *q)
{
    Request *r = q->ready_head;
    if (r) {
        q->ready_head = r->ready_next;
        if (!q->ready_head) {
            q->ready_tail = NULL;
        }
        r->ready_next = NULL;
    }
    return r;
}

static void put_back(QueueCore *q, Request *r)
{
    r->ready_next = q->ready_head;
    q->ready_head = r;
    if (!q->ready_tail) {
        q->ready_tail = r;
    }
}

/*
 * A task that is woken directly may run its loop again, where something like nest_asyncio lets it. The loop then calls us
 * while we are waking, and whom we wake may be whom that task waits for: that goes through call_soon, as all waking by a
 * running task. Once this can happen, nobody is woken directly ahead of others: they might be waited for in vain.
 */
int queue_wake_ready(QueueCore *q, bool direct)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    Request *r;
    bool again = q->waking;
    q->runs_again |= again && direct;
    bool several = q->ready_head && q->ready_head->ready_next;
    direct = direct && !q->runs_again && !(several && waking_loops_nest());
    PyObject *context = direct && q->ready_head ? waking_leave_context(q) : NULL;
    q->waking = true;
    for (int count = 0; (count < WAKE_MAX || !direct) && (r = take_ready(q)) != NULL; count++) {
        int status = request_wake(r, direct);
        if (r->callback || r->more_callbacks) {
            put_back(q, r); /* the loop did not take it, and would not take others */
            break;
        }
        Py_DECREF(r);
        if (status == 0) {
            continue;
        }
        if (type) {
            PyErr_Clear(); /* the loop is closed for all of them */
            continue;
        }
        PyErr_Fetch(&type, &value, &traceback);
        if (direct) {
            break; /* KeyboardInterrupt or SystemExit goes on to the loop; the others are woken next turn */
        }
    }
    q->waking = again;
    if (context) {
        waking_return_to_context(context);
    }
    if (q->ready_head) {
        queue_go_on_next_turn(q);
    }
    if (!type) {
        return 0;
    }
    PyErr_Restore(type, value, traceback);
    return -1;
}

/* ---- the module ------------------------------------------------------------------------------------------ */

/* Bound to the loop itself: what the requests of a queue have in common refers to no request and no queue. */
static PyObject *get_loop(PyObject *loop, PyObject *Py_UNUSED(ignored)) { return Py_NewRef(loop); }
static PyMethodDef get_loop_method = {"get_loop", get_loop, METH_NOARGS, NULL};

PyObject *loop_getter(PyObject *loop) { return PyCFunction_New(&get_loop_method, loop); }

/* A future that is done, and asyncio's own: see step_task. */
PyObject *loop_finished_future(PyObject *loop)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    PyObject *type = asyncio ? PyObject_GetAttrString(asyncio, "Future") : NULL;
    PyObject *names = type ? Py_BuildValue("{s:O}", "loop", loop) : NULL, *none = PyTuple_New(0);
    PyObject *future = names && none ? PyObject_Call(type, none, names) : NULL;
    PyObject *answer = future ? PyObject_CallMethod(future, "set_result", "O", Py_None) : NULL;
    if (!answer) {
        Py_CLEAR(future);
    }
    Py_XDECREF(answer);
    Py_XDECREF(none);
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
    get_running_loop = PyObject_GetAttrString(asyncio, "_get_running_loop");
    Py_DECREF(asyncio);
    PyObject *context = PyUnicode_InternFromString("context"); /* interned: the callee finds it by identity */
    call_soon_names = context ? PyTuple_Pack(1, context) : NULL;
    Py_XDECREF(context);
    if (!get_running_loop || !call_soon_names) {
        return -1;
    }
    return 0;
}
