/*
 * Waking: what is run or scheduled for those who wait for a request. Almost always that is one task of asyncio's own, which
 * is known well enough to be woken without a detour through the loop.
 *
 * A request whose outcome is known lies on its queue's ready list until its waiters are woken: directly where the loop has
 * called us, through call_soon where a task is running.
 */
#include "rooms.h"

#define WAKE_MAX 512 /* requests woken per turn of the loop */

static PyObject *task_type;

PyObject *waking_task_type(void) { return task_type; }

/* ---- one request ------------------------------------------------------------------------------------------- */

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
 * Runs the task's step here and now, in its context, which has been entered, instead of by way of call_soon.
 *
 * A task that is woken asks the future for its result only to learn whether to send() or to throw(), and unless the
 * future is asyncio's own it calls a method for that: a fifth of all instructions of a request. So it is given a finished
 * future of asyncio's, sends, and finds the outcome, good or bad, in request_next.
 */
static int step_task(QueueCore *q, PyObject *callback, PyObject *context)
{
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

typedef enum { TAKEN, REFUSED, KEPT } Scheduling;

/*
 * By way of the loop. What it did not take for want of memory, or because Ctrl-C arrived within, is to be tried again in
 * the next turn; a loop that is closed takes nothing any more, and nobody waits.
 */
static Scheduling schedule(Request *r, PyObject *callback, PyObject *context)
{
    PyObject *argument = is_task_wakeup(callback) ? r->queue->wake_future : (PyObject *)r;
    if (queue_call_soon(r->queue, callback, argument, context) == 0) {
        return TAKEN;
    }
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
        return KEPT;
    }
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        queue_put_off(r->queue);
        return KEPT;
    }
    return REFUSED;
}

static Scheduling schedule_first(Request *r, PyObject *callback, PyObject *context)
{
    Scheduling outcome = schedule(r, callback, context);
    if (outcome == KEPT) {
        r->callback = Py_NewRef(callback);
        r->context = Py_NewRef(context);
    }
    return outcome;
}

/* The pairs of a list of callbacks that nobody else changes; None stands where one has been taken. */
static Scheduling schedule_more(Request *r, PyObject *list)
{
    Scheduling outcome = TAKEN;
    for (Py_ssize_t i = 0; outcome == TAKEN && i < PyList_GET_SIZE(list); i++) {
        PyObject *pair = Py_NewRef(PyList_GET_ITEM(list, i));
        if (pair != Py_None) {
            outcome = schedule(r, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1));
        }
        if (outcome == TAKEN) {
            (void)PyList_SetItem(list, i, Py_NewRef(Py_None));
        }
        Py_DECREF(pair);
    }
    return outcome;
}

static bool enter(PyObject *context)
{
    bool entered = PyContext_Enter(context) == 0;
    if (!entered) {
        PyErr_Clear(); /* somebody runs in this context already */
    }
    return entered;
}

/*
 * Runs (direct) or schedules the callbacks. -1 with KeyboardInterrupt or SystemExit of a task, or where the loop is closed.
 * What could not be scheduled now stays with the request.
 */
static int request_wake(Request *r, bool direct)
{
    Scheduling outcome = TAKEN;
    int status = 0;
    PyObject *callback = r->callback, *context = r->context, *more = r->more_callbacks;
    r->callback = r->context = r->more_callbacks = NULL;
    if (callback && direct && !more && is_task_wakeup(callback) && enter(context)) {
        status = step_task(r->queue, callback, context);
    } else if (callback) { /* the order of registration is the order of calls, so nobody is woken directly */
        outcome = schedule_first(r, callback, context);
    }
    if (more && outcome == TAKEN) {
        outcome = schedule_more(r, more);
    }
    if (outcome == KEPT) {
        r->more_callbacks = Py_XNewRef(more);
    }
    Py_XDECREF(callback);
    Py_XDECREF(context);
    Py_XDECREF(more);
    return outcome == REFUSED ? -1 : status;
}

bool waking_rouse(Request *r, PyObject *callback, PyObject *context)
{
    Scheduling outcome = is_task_wakeup(callback) ? schedule(r, callback, context) : KEPT;
    if (outcome == REFUSED) {
        PyErr_Clear(); /* the loop is closed, and nobody waits */
    }
    return outcome == TAKEN;
}

/* ---- all that are ready ------------------------------------------------------------------------------------ */

/*
 * The loop calls us in a context. A task that is woken directly, in the middle of that call, may run the loop again, which
 * must then be able to enter that context: so it is left meanwhile.
 */
static PyObject *leave_context(QueueCore *q)
{
    q->waker = PyThreadState_Get();
    PyObject *context = Py_XNewRef(q->waker->context);
    if (context && PyContext_Exit(context) < 0) {
        PyErr_Clear(); /* the thread's own, which nobody enters */
        Py_CLEAR(context);
    }
    return context;
}

static void return_to_context(PyObject *context)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyContext_Enter(context) < 0) {
        PyErr_WriteUnraisable(context);
    }
    PyErr_Restore(type, value, traceback);
    Py_DECREF(context);
}

/*
 * A task that is woken directly may run its loop again, where something like nest_asyncio lets it. The loop then calls us
 * while we are waking, and whom we wake may be whom that task waits for: that goes through call_soon, as all waking by a
 * running task. Once this can happen, nobody is woken directly ahead of others: they might be waited for in vain. Nor is
 * anybody where the loop is in debug mode, and looks for callbacks that take long: it is to find the task, and not us.
 */
int queue_wake_ready(QueueCore *q, bool direct)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    Request *r;
    bool again = q->waking;
    q->wakes_by_loop |= again && direct;
    bool several = q->ready_head && q->ready_head->ready_next;
    direct = direct && !q->wakes_by_loop && !(several && loop_may_nest());
    PyObject *context = direct && q->ready_head ? leave_context(q) : NULL;
    q->waking = true;
    bool kick = false;
    int count = 0, weight = 0;
    while ((count < WAKE_MAX || !direct) && (r = queue_take_ready(q)) != NULL) {
        count++;
        weight += r->weight;
        assert(r->queue == q && r->state != PENDING);
        int status = request_wake(r, direct);
        if (r->callback || r->more_callbacks) {
            queue_put_back_ready(q, r); /* the loop did not take it, and would not take others */
            break;
        }
        Py_DECREF(r);
        if (status == 0) {
            if (q->pace.may_kick && direct && q->ready_head && pace_wants_kick(q)) {
                kick = true;
                break;
            }
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
    pace_count(&q->pace, weight);
    if (context) {
        return_to_context(context);
    }
    if (kick) {
        return KICK_WANTED;
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

inline int queue_wake_others(QueueCore *q)
{
    return q->ready_head && (!q->waking || q->wakes_by_loop) ? queue_wake_ready(q, false) : 0;
}

/* Who waits for requests that completed on the way; nothing of it concerns the caller. */
void queue_wake_others_quietly(QueueCore *q)
{
    if (queue_wake_others(q) < 0) {
        (void)put_off_exception(q, (PyObject *)q);
    }
}

int waking_module_init(void)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    task_type = asyncio ? PyObject_GetAttrString(asyncio, "Task") : NULL;
    Py_XDECREF(asyncio);
    return task_type ? 0 : -1;
}
