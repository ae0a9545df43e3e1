/*
 * Sight: what is known of requests beyond their outcome. How long each took, and who is told of each.
 *
 * The clock is read twice for all that goes to the device together and comes back together: once before do_io, once after
 * one that has brought something. So a request takes, here, from the flush that handed it over, or would have if there had
 * been room, to the reaping that took its last part.
 *
 * What nobody watches is not touched: a request that was submitted unwatched stays so.
 */
#include "rooms.h"

#include <stdlib.h>

/* ---- each request, for hooks ------------------------------------------------------------------------------- */

/* What a hook answers, or NULL: what it raised has been seen to. */
static PyObject *ask(QueueCore *q, PyObject *hook, PyObject *arguments)
{
    PyObject *answer = NULL;
    if (hook && hook != Py_None && arguments) {
        Py_INCREF(hook); /* it may put another in its own place */
        answer = PyObject_CallObject(hook, arguments);
        Py_DECREF(hook);
    }
    if (!answer && PyErr_Occurred()) {
        (void)put_off_exception(q, (PyObject *)q);
    }
    Py_XDECREF(arguments);
    return answer;
}

/* Nothing of a request is its hooks' but a number, as long as it is in flight: they could cancel what is not linked yet. */
static PyObject *number_of(const Request *r) { return PyLong_FromVoidPtr((void *)r); }

static PyObject *describe(Request *r)
{
    uint64_t length = 0;
    for (uint32_t i = 0; r->batch && i < r->count; i++) {
        length += r->items[i].length;
    }
    return Py_BuildValue("NsKKI", number_of(r), operation_names[r->operation],
                         (unsigned long long)(r->batch && r->count > 0 ? r->items[0].offset : r->item.offset),
                         (unsigned long long)(r->batch ? length : r->item.length), (unsigned)r->weight);
}

/* False: what has been told of it has cancelled it, or forked. */
static __attribute__((noinline, cold)) bool begin_aloud(QueueCore *q, Request *r)
{
    if (!(q->watched & WATCH_TIME)) {
        sight_do_not_time(q, r);
    }
    if (q->watched & WATCH_ORIGIN) {
        PyObject *origin = ask(q, q->origin_of, PyTuple_New(0));
        Py_XSETREF(r->origin, origin);
    }
    if (q->watched & WATCH_EACH) {
        PyObject *arguments = describe(r); /* which may run the collector, and with it anything */
        Py_XDECREF(ask(q, q->on_begun, arguments));
    }
    return r->state == PENDING && q->fork_generation == fork_generation;
}

static void tell_end(Request *r, PyObject *error, bool was_cancelled)
{
    QueueCore *q = r->queue;
    if (q->watched & WATCH_EACH) {
        PyObject *arguments = Py_BuildValue("NOO", number_of(r), error, was_cancelled ? Py_True : Py_False);
        Py_XDECREF(ask(q, q->on_finished, arguments));
    }
}

/* Also beside an exception that is on its way. */
static void end_aloud(Request *r)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *error = r->state == FAILED ? make_certainly(item_exception, r, &r->item, r->item.error) : Py_NewRef(Py_None);
    tell_end(r, error, r->state == CANCELLED);
    Py_DECREF(error);
    PyErr_Restore(type, value, traceback);
}

void sight_refuse(Request *r)
{
    if (r->since == UNWATCHED) {
        return;
    }
    PyObject *error = take_exception();
    sight_do_not_time(r->queue, r);
    r->since = UNWATCHED;
    tell_end(r, error, false);
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
}

/* ---- the path of a request ----------------------------------------------------------------------------------- */

inline bool sight_begin(QueueCore *q, Request *r)
{
    r->since = NOT_HANDED_OVER;
    q->fresh++;
    return q->watched == WATCH_TIME || begin_aloud(q, r);
}

/* Those that are new are among the newest. A request that was settled has another thing there, which is never that. */
inline void sight_hand_over(QueueCore *q)
{
    uint64_t now = clock_now_ns();
    uint32_t fresh = q->fresh;
    q->fresh = 0;
    for (Request *r = q->in_flight; r; r = r->following) {
        if (r->since == NOT_HANDED_OVER) {
            r->since = now;
            if (--fresh == 0) {
                return;
            }
        }
    }
}

void sight_hand_over_now(QueueCore *q, Request *r)
{
    if (r->since == NOT_HANDED_OVER) {
        r->since = clock_now_ns();
        q->fresh -= q->fresh > 0;
    }
}

void sight_do_not_time(QueueCore *q, Request *r)
{
    if (r->since == NOT_HANDED_OVER) {
        q->fresh -= q->fresh > 0;
    }
    r->since = r->since == UNWATCHED ? UNWATCHED : NOT_TIMED;
}

static void add(Latency *latency, uint64_t took, uint32_t weight)
{
    latency->total += took * weight;
    latency->buckets[latency_bucket(took)] += weight;
}

/* What lies between the shortest and the longest so far needs no further look, unless there is more to do than to count. */
static void set_reach(const QueueCore *q, Latency *latency)
{
    bool some = latency->least <= latency->most;
    latency->reach = some && q->watched == WATCH_TIME ? latency->most - latency->least + 1 : 0;
}

static void widen(const QueueCore *q, Latency *latency, uint64_t took)
{
    latency->least = took < latency->least ? took : latency->least;
    latency->most = took > latency->most ? took : latency->most;
    set_reach(q, latency);
}

static __attribute__((noinline)) void end_rarely(Request *r, uint64_t since)
{
    QueueCore *q = r->queue;
    if (since == NOT_HANDED_OVER) {
        q->fresh -= q->fresh > 0;
    } else if ((q->watched & WATCH_TIME) && since != NOT_TIMED) {
        Latency *latency = q->latencies[r->operation];
        uint64_t now = q->taken_at < since ? clock_now_ns() : q->taken_at; /* it has ended without a reaping */
        uint64_t took = now < since ? 0 : now - since < LONGEST_LATENCY ? now - since : LONGEST_LATENCY;
        widen(q, latency, took);
        add(latency, took, r->weight);
    }
    if (q->watched & WATCH_EACH) {
        end_aloud(r);
    }
}

__attribute__((noinline)) void sight_end(Request *r, uint64_t since)
{
    QueueCore *q = r->queue;
    Latency *latency = q->latencies[r->operation];
    uint64_t took = q->taken_at - since;
    if (__builtin_expect(took - latency->least >= latency->reach, 0)) {
        end_rarely(r, since);
    } else {
        add(latency, took, r->weight);
    }
}

/* ---- asked for ----------------------------------------------------------------------------------------------- */

static bool make_latencies(QueueCore *q)
{
    for (int op = 0; op < OP_COUNT; op++) {
        if (q->latencies[op]) {
            continue;
        }
        Latency *latency = calloc(1, sizeof(*latency));
        if (!latency) {
            return false;
        }
        latency->least = UINT64_MAX;
        PUBLISH(q->latencies[op], latency);
    }
    return true;
}

static void set_hook(PyObject **hook, PyObject *value)
{
    PyObject *before = *hook;
    *hook = Py_NewRef(value);
    Py_XDECREF(before);
}

PyObject *sight_watch(QueueCore *q, PyObject *args)
{
    int time;
    PyObject *on_begun, *on_finished, *origin_of;
    if (!PyArg_ParseTuple(args, "pOOO", &time, &on_begun, &on_finished, &origin_of)) {
        return NULL;
    }
    uint8_t watched = (time ? WATCH_TIME : 0) | (on_begun != Py_None || on_finished != Py_None ? WATCH_EACH : 0) |
                      (origin_of != Py_None ? WATCH_ORIGIN : 0);
    if (watched && !make_latencies(q)) {
        return PyErr_NoMemory();
    }
    q->watched = watched;
    for (int op = 0; op < OP_COUNT && q->latencies[op]; op++) {
        set_reach(q, q->latencies[op]);
    }
    set_hook(&q->on_begun, on_begun);
    set_hook(&q->on_finished, on_finished);
    set_hook(&q->origin_of, origin_of);
    Py_RETURN_NONE;
}

/* {index: count} of those that are not 0; NULL with an exception. */
READS_WHILE_OTHERS_WRITE static PyObject *counts(const uint64_t *numbers, int size)
{
    PyObject *found = PyDict_New();
    for (int i = 0; found && numbers && i < size; i++) {
        PyObject *index = numbers[i] ? PyLong_FromLong(i) : NULL;
        PyObject *number = index ? PyLong_FromUnsignedLongLong(numbers[i]) : NULL;
        if (numbers[i] && (!number || PyDict_SetItem(found, index, number) < 0)) {
            Py_CLEAR(found);
        }
        Py_XDECREF(index);
        Py_XDECREF(number);
    }
    return found;
}

READS_WHILE_OTHERS_WRITE static PyObject *operation(const QueueCore *q, int op)
{
    const Counters *c = &q->counters;
    const Latency *latency = OBSERVE(q->latencies[op]);
    const uint64_t *errors = OBSERVE(q->errors);
    bool timed = latency && latency->least != UINT64_MAX;
    return Py_BuildValue("sKKKN(KKKN)", operation_names[op], c->completed[op], c->failed[op], c->bytes[op],
                         counts(errors ? errors + op * ERRNOS : NULL, ERRNOS), timed ? latency->least : 0,
                         timed ? latency->most : 0, timed ? latency->total : 0,
                         counts(timed ? latency->buckets : NULL, LATENCY_BUCKETS));
}

READS_WHILE_OTHERS_WRITE PyObject *sight_operations(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    PyObject *found = PyList_New(0);
    for (int op = 0; found && op < OP_COUNT; op++) {
        if (q->counters.completed[op] == 0 && q->counters.failed[op] == 0) {
            continue;
        }
        PyObject *one = operation(q, op);
        if (!one || PyList_Append(found, one) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(one);
    }
    return found;
}
