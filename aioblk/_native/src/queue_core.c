/* QueueCore: one blkioq bound to one loop. Its work is done in the rooms below; here are its methods and its type. */
#include "rooms.h"

#include <errno.h>
#include <pthread.h>

/* ---- methods for the Python side ------------------------------------------------------------------------- */

/* Other threads may be asking how much there is. */
static void set_bounce(QueueCore *q, allocator_t *bounce, char *address)
{
    allocator_t *before;
    CRITICAL_SECTION(q);
    before = q->bounce;
    q->bounce = bounce;
    q->bounce_address = address;
    END_CRITICAL_SECTION();
    if (before) {
        allocator_free(before);
    }
}

static PyObject *queue_attach_bounce(QueueCore *q, PyObject *args)
{
    unsigned long long address, length, granule;
    if (!PyArg_ParseTuple(args, "KKK", &address, &length, &granule)) {
        return NULL;
    }
    if (q->bounce && allocator_in_use(q->bounce) > 0) {
        return PyErr_Format(PyExc_ValueError, "bounce memory is in use");
    }
    errno = 0;
    allocator_t *bounce = allocator_new(length, granule);
    if (!bounce && errno == ENOMEM) {
        return PyErr_NoMemory();
    }
    if (!bounce) {
        return PyErr_Format(PyExc_ValueError, "bounce memory of %llu bytes in granules of %llu", length, granule);
    }
    set_bounce(q, bounce, (char *)(uintptr_t)address);
    Py_RETURN_NONE;
}

static PyObject *queue_detach_bounce(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (q->bounce) {
        if (allocator_in_use(q->bounce) > 0) {
            return PyErr_Format(PyExc_ValueError, "bounce memory is in use");
        }
        set_bounce(q, NULL, NULL);
    }
    Py_RETURN_NONE;
}

static void after_admission(QueueCore *q)
{
    bool silent = q->completion_fd < 0 && q->device_count > 0; /* a poll queue tells nothing by itself */
    if (q->unflushed_parts > 0 || q->backlog_head || silent) {
        queue_go_on_soon(q);
    }
}

static PyObject *queue_admit(QueueCore *q, PyObject *object)
{
    Request *r = queue_own_request(q, object);
    if (!r) {
        return NULL;
    }
    bool admitted = true, outer = q->admitting;
    q->admitting = true;
    if (r->linked && r->admitted < r->part_count) {
        assert(r->state == PENDING && !r->cancel_requested); /* or else nothing of it would wait any more */
        if (r->item.error) {
            request_drop_unadmitted(r);
        } else {
            admitted = queue_admit_parts(q, r);
        }
    }
    after_admission(q);
    q->admitting = outer;
    return PyBool_FromLong(admitted);
}

/* What has not been admitted fails: with the exception or, where there is none, each item with an error of its own. */
static PyObject *end_waiting(QueueCore *q, PyObject *object, int error, const char *message, PyObject *exception)
{
    Request *r = queue_own_request(q, object);
    if (!r) {
        return NULL;
    }
    if (r->linked && r->admitted < r->part_count) {
        request_fail_unadmitted(r, error, message, exception);
    }
    after_admission(q);
    Py_RETURN_NONE;
}

static PyObject *queue_refuse(QueueCore *q, PyObject *args)
{
    PyObject *object, *exception;
    return PyArg_ParseTuple(args, "OO", &object, &exception) ? end_waiting(q, object, 0, NULL, exception) : NULL;
}

static PyObject *queue_fail(QueueCore *q, PyObject *args)
{
    PyObject *object;
    int error;
    const char *message;
    return PyArg_ParseTuple(args, "Oiz", &object, &error, &message) ? end_waiting(q, object, error, message, NULL) : NULL;
}

/* The end of work that was done outside libblkio: on_discard's. */
static PyObject *queue_complete(QueueCore *q, PyObject *args)
{
    PyObject *object;
    int error;
    const char *message;
    if (!PyArg_ParseTuple(args, "Oiz", &object, &error, &message)) {
        return NULL;
    }
    Request *r = queue_own_request(q, object);
    if (!r) {
        return NULL;
    }
    if (q->watched) {
        q->taken_at = clock_now_ns();
    }
    if (r->linked) {
        queue_part_done(q, &r->first_part, -error, message);
    }
    if (queue_wake_others(q) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The thread of a queue without a loop has ended, or has no use for it any more. */
static PyObject *queue_adopt(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    PUBLISH(q->thread, PyThread_get_thread_ident());
    Py_RETURN_NONE;
}

/* After this the blkioq may be destroyed. */
static PyObject *queue_dispose(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (q->in_flight_count > 0) {
        return PyErr_Format(PyExc_RuntimeError, "%zu requests are in flight", q->in_flight_count);
    }
    queue_set_blkioq(q, NULL, 0);
    assert(!q->held_head && !q->backlog_head);
    Py_RETURN_NONE;
}

static PyObject *queue_close(QueueCore *q, PyObject *reason)
{
    const char *text = PyUnicode_AsUTF8(reason);
    if (!text) {
        return NULL;
    }
    PUBLISH(q->closed_reason, strcmp(text, "lost") == 0 ? "lost" : "closed");
    PUBLISH(q->closed, true);
    Py_RETURN_NONE;
}

READS_WHILE_OTHERS_WRITE static uint64_t sum(const uint64_t *by_operation)
{
    uint64_t all = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        all += by_operation[op];
    }
    return all;
}

READS_WHILE_OTHERS_WRITE static PyObject *queue_statistics(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    const Counters *c = &q->counters;
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:n}", "submitted", c->submitted,
                         "completed", sum(c->completed), "failed", sum(c->failed), "cancelled", c->cancelled,
                         "bytes_read", c->bytes[OP_READ], "bytes_written", c->bytes[OP_WRITE], "parts", c->parts,
                         "bounced_bytes", c->bounced_bytes, "inline_completions", c->inline_completions, "flushes",
                         c->flushes, "do_io_calls", c->do_io_calls, "events", c->events, "empty_events",
                         c->empty_events, "direct_wakes", c->direct_wakes, "in_flight",
                         (Py_ssize_t)q->in_flight_count);
}

/* ---- the type -------------------------------------------------------------------------------------------- */

static void note_thread(unsigned long thread)
{
    static unsigned long first;
    if (OBSERVE(first) == 0) {
        PUBLISH(first, thread);
    } else if (OBSERVE(first) != thread) {
        PUBLISH(queues_in_several_threads, true);
    }
}

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"device", "blkioq", "completion_fd", "loop", "depth", NULL};
    PyObject *device, *loop;
    unsigned long long blkioq, depth;
    int completion_fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!KiOK", names, &DeviceCore_Type, &device, &blkioq,
                                     &completion_fd, &loop, &depth)) {
        return NULL;
    }
    if (blkioq == 0 || depth == 0) {
        return PyErr_Format(PyExc_ValueError, "blkioq and depth must not be 0");
    }
    QueueCore *self = (QueueCore *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    PyObject_GC_UnTrack(self); /* the loop may run any code meanwhile, which must not find it unfinished */
    self->device = (DeviceCore *)Py_NewRef(device);
    device_add_queue(self->device, self);
    self->blkioq = (struct blkioq *)(uintptr_t)blkioq;
    self->completion_fd = completion_fd;
    self->depth = depth;
    self->virtqueue = self->device->virtqueues;
    self->thread = PyThread_get_thread_ident();
    note_thread(self->thread);
    self->fork_generation = fork_generation;
    queue_new_turn(self);
    self->rounds = true;
    pace_begin(&self->pace);
    self->spins_by_itself = completion_fd >= 0 && loop != Py_None;
    self->loop = Py_NewRef(loop);
    self->call_soon = queue_has_loop(self) ? PyObject_GetAttrString(loop, "call_soon") : Py_NewRef(Py_None);
    self->wake_future = !self->call_soon ? NULL : queue_has_loop(self) ? loop_finished_future(loop) : Py_NewRef(Py_None);
    self->get_loop = self->wake_future ? loop_getter(loop) : NULL;
    self->loop_context = self->get_loop ? PyContext_CopyCurrent() : NULL;
    self->flush_method = self->loop_context ? PyObject_GetAttrString((PyObject *)self, "flush") : NULL;
    if (!self->flush_method) {
        Py_DECREF(self);
        return NULL;
    }
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int queue_traverse(QueueCore *self, visitproc visit, void *arg)
{
    Py_VISIT(self->device);
    Py_VISIT(self->loop);
    Py_VISIT(self->call_soon);
    Py_VISIT(self->flush_method);
    Py_VISIT(self->loop_context);
    Py_VISIT(self->get_loop);
    Py_VISIT(self->wake_future);
    Py_VISIT(self->on_bounce);
    Py_VISIT(self->on_room);
    Py_VISIT(self->on_discard);
    Py_VISIT(self->on_idle);
    Py_VISIT(self->on_broken);
    Py_VISIT(self->on_begun);
    Py_VISIT(self->on_finished);
    Py_VISIT(self->origin_of);
    Py_VISIT(self->put_off);
    Py_VISIT(self->abandoned_for);
    return 0;
}

/* What its requests use of a queue goes only with the last of them. */
static int queue_clear(QueueCore *self)
{
    Py_CLEAR(self->abandoned_for);
    Py_CLEAR(self->flush_method);
    Py_CLEAR(self->on_bounce);
    Py_CLEAR(self->on_room);
    Py_CLEAR(self->on_discard);
    Py_CLEAR(self->on_idle);
    Py_CLEAR(self->on_broken);
    Py_CLEAR(self->on_begun);
    Py_CLEAR(self->on_finished);
    Py_CLEAR(self->origin_of);
    return 0;
}

/*
 * The queue has had no other turn. If the collector takes it, this comes before the exception is emptied, which to show
 * would crash.
 */
static void queue_finalize(QueueCore *self)
{
    if (!self->put_off) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    (void)queue_raise_put_off(self);
    raise_in_main_thread();
    PyErr_Restore(type, value, traceback);
}

static void queue_dealloc(QueueCore *self)
{
    ENSURE(!self->in_flight && self->device_count == 0);
    ENSURE(!self->ready_head && !self->backlog_head && !self->dropped && !self->held_head);
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return; /* an exception that could not be passed on was shown to code that kept the queue */
    }
    PyObject_GC_UnTrack(self);
    queue_finalize(self); /* for one that has come after the collector's */
    queue_clear(self);
    request_free_kept(self);
    device_remove_queue(self->device, self);
    Py_CLEAR(self->loop_context);
    Py_CLEAR(self->get_loop);
    Py_CLEAR(self->wake_future);
    Py_CLEAR(self->call_soon);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->device);
    if (self->bounce) {
        allocator_free(self->bounce);
    }
    for (int op = 0; op < OP_COUNT; op++) {
        free(self->latencies[op]);
    }
    free(self->errors);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

READS_WHILE_OTHERS_WRITE static PyObject *ask_bounce(QueueCore *q, size_t (*question)(const allocator_t *))
{
    size_t answer;
    CRITICAL_SECTION(q);
    answer = q->bounce ? question(q->bounce) : 0;
    END_CRITICAL_SECTION();
    return PyLong_FromSize_t(answer);
}

static PyObject *queue_get_bounce_size(QueueCore *q, void *Py_UNUSED(closure)) { return ask_bounce(q, allocator_size); }

static PyObject *queue_get_bounce_in_use(QueueCore *q, void *Py_UNUSED(closure))
{
    return ask_bounce(q, allocator_in_use);
}

static PyObject *queue_get_bounce_peak(QueueCore *q, void *Py_UNUSED(closure)) { return ask_bounce(q, allocator_peak); }

static PyObject *queue_get_bounce_takes(QueueCore *q, void *Py_UNUSED(closure))
{
    return ask_bounce(q, allocator_takes);
}

static PyObject *queue_get_kicks(QueueCore *q, void *Py_UNUSED(closure)) { return PyBool_FromLong(q->pace.kicks); }

static int queue_set_kicks(QueueCore *q, PyObject *value, void *Py_UNUSED(closure))
{
    int pays = value ? PyObject_IsTrue(value) : 0;
    if (pays < 0) {
        return -1;
    }
    pace_settle(&q->pace, pays);
    return 0;
}

static PyObject *queue_get_spin_ns(QueueCore *q, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(q->spin_ns);
}

/* What was in vain was so with another time. */
static int queue_set_spin_ns(QueueCore *q, PyObject *value, void *Py_UNUSED(closure))
{
    uint64_t spin_ns = value ? PyLong_AsUnsignedLongLong(value) : 0;
    if (PyErr_Occurred()) {
        return -1;
    }
    q->spin_ns = spin_ns;
    q->spin_until = q->spin_pause = q->spin_penalty = 0;
    return 0;
}

static PyMethodDef queue_methods[] = {
    {"flush", (PyCFunction)queue_flush, METH_NOARGS, "Submit and reap; the loop calls it once per turn."},
    {"on_event", (PyCFunction)queue_on_event, METH_NOARGS, "The completion fd is readable."},
    {"attach_bounce", (PyCFunction)queue_attach_bounce, METH_VARARGS,
     "(address, length, granule): bounce memory; the present one must not be in use."},
    {"detach_bounce", (PyCFunction)queue_detach_bounce, METH_NOARGS, "Forget the bounce memory."},
    {"admit", (PyCFunction)queue_admit, METH_O,
     "Give bounce memory to the request's parts, in order, and submit them; True when all are (or it is done)."},
    {"refuse", (PyCFunction)queue_refuse, METH_VARARGS, "(request, error): fail what has not been admitted."},
    {"fail", (PyCFunction)queue_fail, METH_VARARGS,
     "(request, errno, message): fail what has not been admitted, each item with an error that names it."},
    {"complete", (PyCFunction)queue_complete, METH_VARARGS,
     "(request, errno, message): the end of work that was done outside libblkio."},
    {"wait", (PyCFunction)queue_wait, METH_VARARGS,
     "(request or None, seconds, < 0 for ever): block until it is done, or anything has completed; False: not in time."},
    {"abandon", (PyCFunction)queue_abandon, METH_O,
     "(error): the device is lost; fail what is in flight and never let go of its memory."},
    {"close", (PyCFunction)queue_close, METH_O, "(\"closed\" or \"lost\"): refuse every new request."},
    {"grow_older", (PyCFunction)queue_grow_older, METH_NOARGS,
     "A tick of the watch for silence; the request that has waited for most ticks, with their number, or None."},
    {"suspend", (PyCFunction)queue_suspend, METH_NOARGS, "Keep what is in flight and what comes, and issue nothing."},
    {"recall", (PyCFunction)queue_recall, METH_NOARGS,
     "Of a suspended queue whose device is dead: what it had is to be issued again, in the order of submission."},
    {"resume", (PyCFunction)queue_resume, METH_VARARGS, "(blkioq, completion_fd, depth): go on with another device."},
    {"adopt", (PyCFunction)queue_adopt, METH_NOARGS, "The queue belongs to the calling thread from now on."},
    {"abandon_bounce", (PyCFunction)queue_abandon_bounce, METH_NOARGS, "Forget bounce memory that is in use for good."},
    {"dispose", (PyCFunction)queue_dispose, METH_NOARGS, "Let go of the blkioq; nothing may be in flight."},
    {"statistics", (PyCFunction)queue_statistics, METH_NOARGS, "The counters, by name."},
    {"operations", (PyCFunction)sight_operations, METH_NOARGS,
     "Of each operation that has been over: (name, completed, failed, bytes, errors, latency), the last two as dicts."},
    {"watch", (PyCFunction)sight_watch, METH_VARARGS,
     "(time, on_begun, on_finished, origin_of): what is to be noted of requests from now on; None: nothing."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef queue_members[] = {
    {"on_bounce", T_OBJECT, offsetof(QueueCore, on_bounce), 0, NULL},
    {"on_room", T_OBJECT, offsetof(QueueCore, on_room), 0, NULL},
    {"on_discard", T_OBJECT, offsetof(QueueCore, on_discard), 0, NULL},
    {"on_idle", T_OBJECT, offsetof(QueueCore, on_idle), 0, NULL},
    {"on_broken", T_OBJECT, offsetof(QueueCore, on_broken), 0, NULL},
    {"waiting", T_PYSSIZET, offsetof(QueueCore, waiting), 0, NULL},
    {"in_flight", T_PYSSIZET, offsetof(QueueCore, in_flight_count), READONLY, NULL},
    {"admitting", T_BOOL, offsetof(QueueCore, admitting), READONLY, NULL},
    {"rounds", T_BOOL, offsetof(QueueCore, rounds), 0, NULL},
    {"wakes_by_loop", T_BOOL, offsetof(QueueCore, wakes_by_loop), 0, NULL},
    {"spins_by_itself", T_BOOL, offsetof(QueueCore, spins_by_itself), 0, NULL},
    {"spin_penalty", T_UINT, offsetof(QueueCore, spin_penalty), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef queue_getset[] = {
    {"bounce_size", (getter)queue_get_bounce_size, NULL, "Bytes of bounce memory.", NULL},
    {"bounce_in_use", (getter)queue_get_bounce_in_use, NULL, "Bytes of bounce memory in use.", NULL},
    {"bounce_peak", (getter)queue_get_bounce_peak, NULL, "The most bytes in use since attach_bounce.", NULL},
    {"bounce_takes", (getter)queue_get_bounce_takes, NULL, "Bounce buffers handed out since attach_bounce.", NULL},
    {"kicks", (getter)queue_get_kicks, (setter)queue_set_kicks, "Whether parts are handed over within a turn.", NULL},
    {"spin_ns", (getter)queue_get_spin_ns, (setter)queue_set_spin_ns, "How long a flush looks again, as was said.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject QueueCore_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.QueueCore",
    .tp_doc = "One blkioq bound to one loop and one thread.",
    .tp_basicsize = sizeof(QueueCore),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = queue_new,
    .tp_finalize = (destructor)queue_finalize,
    .tp_dealloc = (destructor)queue_dealloc,
    .tp_traverse = (traverseproc)queue_traverse,
    .tp_clear = (inquiry)queue_clear,
    .tp_methods = queue_methods,
    .tp_members = queue_members,
    .tp_getset = queue_getset,
};

static void after_fork(void) { fork_generation++; }

int queue_module_init(void)
{
    if (pthread_atfork(NULL, NULL, after_fork) != 0) {
        PyErr_SetString(PyExc_OSError, "pthread_atfork failed");
        return -1;
    }
    return PyType_Ready(&QueueCore_Type);
}
