/*
 * QueueCore: one blkioq bound to one loop. Three entrances lead here:
 *
 *   a submission   issues a part to libblkio, or puts it on the backlog, and schedules one flush per turn of the loop;
 *   flush          the loop calls it once per turn in which something was submitted: do_io submits, and reaps at once;
 *   on_event       the loop calls it when the completion eventfd is readable.
 *
 * The eventfd must be read before do_io, or an event that arrives in between is lost (libblkio(3), "Event-driven
 * mode"). A flush that has reaped something therefore reads the eventfd and calls do_io again: cheaper than letting the
 * loop find the stale event.
 */
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#define REAP_MAX 128           /* completions per do_io */
#define REAP_ROUNDS 4          /* do_io calls per turn of the loop */
#define WAKE_MAX 512           /* requests woken per turn of the loop */
#define FLUSH_BYTES (1u << 20) /* data per do_io: cached reads are copied within the call, and the loop stands still */
#define SPIN_PENALTY_MAX 1023  /* flushes without spinning after spinning in vain, at most */
#define INLINE_BUDGET 128      /* inline completions in a row before others must get their turn */

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
    } else if (q->closed) {
        reason = q->closed_reason;
    } else if (q->thread != PyThread_get_thread_ident()) {
        reason = "thread";
    } else if (!q->flush_scheduled && !q->waking && !on_own_loop(q)) {
        /* A scheduled flush and a wake-up from below both mean that our loop is running: asking costs a getpid(). */
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

/* The same beside an exception that is on its way: a KeyboardInterrupt must not stop the I/O. */
static void go_on_next_turn(QueueCore *q)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (queue_schedule_flush(q) < 0) {
        put_off_exception(NULL); /* the loop is closed: nobody waits */
    }
    PyErr_Restore(type, value, traceback);
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

int queue_wake_ready(QueueCore *q, bool direct)
{
    if (q->waking) {
        return 0; /* a task that was woken from below is running; the rest is woken when it pauses */
    }
    q->waking = true;
    for (int count = 0; count < WAKE_MAX || !direct; count++) {
        Request *r = take_ready(q);
        if (!r) {
            break;
        }
        int status = request_wake(r, direct);
        Py_DECREF(r);
        if (status < 0) {
            break; /* KeyboardInterrupt or SystemExit goes on to the loop; the others are woken next turn */
        }
    }
    q->waking = false;
    if (q->ready_head) {
        go_on_next_turn(q);
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* ---- in flight ------------------------------------------------------------------------------------------- */

static void link_request(QueueCore *q, Request *r)
{
    Py_INCREF(r);
    r->linked = true;
    r->previous = NULL;
    r->following = q->in_flight;
    if (q->in_flight) {
        q->in_flight->previous = r;
    }
    q->in_flight = r;
    q->in_flight_count++;
}

/* Nobody else can reach the request from here on, whatever Python code runs. Its reference goes to the caller. */
static void unlink_request(QueueCore *q, Request *r)
{
    *(r->previous ? &r->previous->following : &q->in_flight) = r->following;
    if (r->following) {
        r->following->previous = r->previous;
    }
    r->linked = false;
    r->previous = r->following = NULL;
    q->in_flight_count--;
}

static void tell_if_idle(QueueCore *q)
{
    if (q->in_flight_count == 0) {
        call_hook(q->on_idle, NULL);
    }
}

/* A batch's outcome is its children's: the first error, or the list of what they gave. */
static int collect_children(Request *batch)
{
    bool values = batch->return_exceptions || batch->flags; /* flags of a batch: it reads bytes */
    PyObject *results = values ? PyList_New(batch->child_count) : NULL;
    if (values && !results) {
        return -1;
    }
    for (uint32_t i = 0; i < batch->child_count; i++) {
        Request *child = batch->children[i];
        PyObject *value;
        if (child->state == FAILED) {
            value = request_exception_object(child);
            if (!value) {
                Py_XDECREF(results);
                return -1;
            }
            Py_CLEAR(child->exception); /* the collector could not break a circle through an item: it sees none */
            if (!batch->return_exceptions) {
                Py_XDECREF(results);
                Py_XSETREF(batch->exception, value);
                request_settle(batch, FAILED);
                return 0;
            }
        } else {
            value = Py_NewRef(child->result ? child->result : Py_None);
        }
        if (values) {
            PyList_SET_ITEM(results, i, value);
        } else {
            Py_DECREF(value);
        }
    }
    batch->result = results;
    request_settle(batch, FINISHED);
    return 0;
}

static void child_done(Request *batch)
{
    if (--batch->outstanding > 0 || batch->state != PENDING) {
        return;
    }
    if (batch->cancel_requested) {
        request_settle(batch, CANCELLED);
    } else if (collect_children(batch) < 0) {
        Py_XSETREF(batch->exception, take_exception());
        request_settle(batch, FAILED);
    }
}

/* The parent has the child: no circles. */
static void leave_batch(Request *r)
{
    Request *batch = r->parent;
    if (batch) {
        r->parent = NULL;
        child_done(batch);
        Py_DECREF(batch);
    }
}

/* Letting go of memory may run Python code, which may do anything; so the request leaves the queue's books first. */
void queue_outcome(Request *r)
{
    QueueCore *q = r->queue;
    bool linked = r->linked;
    if (linked) {
        unlink_request(q, r);
    }
    request_drop_parts(r);
    request_drop_pins(r);
    if (r->state == PENDING) {
        if (r->cancel_requested) {
            request_settle(r, CANCELLED);
        } else if (r->error || r->exception) {
            q->counters.failed++;
            request_settle(r, FAILED);
        } else {
            q->counters.completed++;
            request_settle(r, FINISHED);
        }
    }
    leave_batch(r);
    if (linked) {
        tell_if_idle(q);
        Py_DECREF(r);
    }
}

/* ---- parts ----------------------------------------------------------------------------------------------- */

static void issue(QueueCore *q, Part *part)
{
    struct blkioq *b = q->blkioq;
    Request *r = part->request;
    Vector *vector = part->vector;
    switch ((Operation)r->operation) {
    case OP_READ:
        if (vector) {
            blkioq_readv(b, part->offset, vector->iov, vector->iov_count, part, r->flags);
        } else {
            blkioq_read(b, part->offset, part->address, part->length, part, r->flags);
        }
        break;
    case OP_WRITE:
        if (vector) {
            blkioq_writev(b, part->offset, vector->iov, vector->iov_count, part, r->flags);
        } else {
            blkioq_write(b, part->offset, part->address, part->length, part, r->flags);
        }
        break;
    case OP_WRITE_ZEROES:
        blkioq_write_zeroes(b, part->offset, part->length, part, r->flags);
        break;
    case OP_DISCARD:
        if (q->device->discard_method == DISCARD_BY_ZEROING) {
            blkioq_write_zeroes(b, part->offset, part->length, part, BLKIO_REQ_NO_FALLBACK);
        } else {
            blkioq_discard(b, part->offset, part->length, part, r->flags);
        }
        break;
    case OP_FLUSH:
        blkioq_flush(b, part, r->flags);
        break;
    case OP_REPORT_ZONES:
        blkioq_report_zones(b, part->offset, (struct blkio_zone *)part->address,
                            part->length / sizeof(struct blkio_zone), part, 0);
        break;
    case OP_OPEN_ZONE:
        blkioq_open_zone(b, part->offset, part, 0);
        break;
    case OP_CLOSE_ZONE:
        blkioq_close_zone(b, part->offset, part, 0);
        break;
    case OP_FINISH_ZONE:
        blkioq_finish_zone(b, part->offset, part, 0);
        break;
    case OP_RESET_ZONE:
        blkioq_reset_zone(b, part->offset, part, 0);
        break;
    case OP_OPEN_ALL_ZONES:
        blkioq_open_all_zones(b, part, 0);
        break;
    case OP_CLOSE_ALL_ZONES:
        blkioq_close_all_zones(b, part, 0);
        break;
    case OP_FINISH_ALL_ZONES:
        blkioq_finish_all_zones(b, part, 0);
        break;
    case OP_RESET_ALL_ZONES:
        blkioq_reset_all_zones(b, part, 0);
        break;
    case OP_BATCH:
    case OP_COUNT:
        Py_UNREACHABLE();
    }
    part->map_turns = __atomic_load_n(&q->device->map_turns, __ATOMIC_SEQ_CST);
    r->issued++;
    q->device_count++;
    q->unflushed_parts++;
    q->unflushed_bytes += r->operation <= OP_WRITE ? part->length : 0;
}

static bool may_issue(const QueueCore *q, const Part *part)
{
    return q->device_count < q->depth &&
           (q->unflushed_bytes == 0 || q->unflushed_bytes + part->length <= FLUSH_BYTES ||
            part->request->operation > OP_WRITE);
}

static void append_backlog(QueueCore *q, Part *part)
{
    part->next = NULL;
    if (q->backlog_tail) {
        q->backlog_tail->next = part;
    } else {
        q->backlog_head = part;
    }
    q->backlog_tail = part;
}

static void enqueue(QueueCore *q, Part *part)
{
    if (!q->backlog_head && may_issue(q, part)) {
        issue(q, part);
        return;
    }
    append_backlog(q, part);
}

/* Takes what has not been admitted out of the request's account. */
static void drop_unadmitted(Request *r)
{
    uint32_t left = r->part_count - r->admitted;
    r->admitted = r->part_count;
    r->outstanding -= left;
    if (left > 0 && r->outstanding == 0) {
        queue_outcome(r);
    }
}

static void part_done(QueueCore *q, Part *part, int ret, const char *message);

static bool is_pointless(const Part *part)
{
    const Request *r = part->request;
    return r->cancel_requested || r->state != PENDING || r->error;
}

/* Parts that nobody wants any more leave the backlog from anywhere: they need not wait for those before them. */
static void sweep_backlog(QueueCore *q)
{
    Part *part = q->backlog_head, *dropped = NULL, *next;
    q->backlog_cancelled = false;
    q->backlog_head = q->backlog_tail = NULL;
    for (; part; part = next) {
        next = part->next;
        if (is_pointless(part)) {
            part->next = dropped;
            dropped = part;
        } else {
            append_backlog(q, part);
        }
    }
    for (part = dropped; part; part = next) {
        next = part->next; /* the request may go with its last part */
        part_done(q, part, -ECANCELED, NULL);
    }
}

static void issue_backlog(QueueCore *q)
{
    Part *part;
    if (q->backlog_cancelled) {
        sweep_backlog(q);
    }
    while ((part = q->backlog_head) != NULL) {
        bool pointless = is_pointless(part);
        if (!pointless && !may_issue(q, part)) {
            return;
        }
        q->backlog_head = part->next;
        if (!q->backlog_head) {
            q->backlog_tail = NULL;
        }
        if (pointless) {
            part_done(q, part, -ECANCELED, NULL);
        } else {
            issue(q, part);
        }
    }
}

/* A request was cancelled: what waits for bounce memory goes at once, the next flush takes the rest out of the backlog. */
void queue_cancelled(Request *r)
{
    QueueCore *q = r->queue;
    if (r->linked && r->admitted < r->part_count) {
        drop_unadmitted(r);
        q->room_made = true; /* for who waited behind it */
        go_on_next_turn(q);
    }
    if (q->backlog_head && !q->backlog_cancelled) {
        q->backlog_cancelled = true;
        go_on_next_turn(q);
    }
}

static void copy_between(char *bounce, const Part *part, bool to_caller)
{
    if (!part->vector) {
        memcpy(to_caller ? part->source : bounce, to_caller ? bounce : part->source, part->length);
        return;
    }
    for (size_t i = 0; i < part->vector->segment_count; i++) {
        const Segment *segment = &part->vector->segments[i];
        if (segment->bounced) {
            memcpy(to_caller ? segment->address : bounce, to_caller ? bounce : segment->address, segment->length);
            bounce += segment->length;
        }
    }
}

/* What the device is given for a vector: segments as they are, runs of bounced ones joined. */
static void fill_iov(Vector *vector, char *bounce)
{
    bool after_bounced = false;
    vector->iov_count = 0;
    for (size_t i = 0; i < vector->segment_count; i++) {
        const Segment *segment = &vector->segments[i];
        if (segment->bounced && after_bounced) {
            vector->iov[vector->iov_count - 1].iov_len += segment->length;
        } else {
            vector->iov[vector->iov_count++] =
                (struct iovec){segment->bounced ? bounce : segment->address, segment->length};
        }
        bounce += segment->bounced ? segment->length : 0;
        after_bounced = segment->bounced;
    }
}

/* What the device is given: bounce memory for a part that needs it. False: there is no room now. */
static bool prepare_part(QueueCore *q, Part *part)
{
    char *bounce = NULL;
    if (part->bounce_length > 0) {
        if (!q->bounce) {
            return false;
        }
        part->bounce_offset = allocator_take(q->bounce, part->bounce_length);
        if (part->bounce_offset < 0) {
            return false;
        }
        bounce = q->bounce_address + part->bounce_offset;
        q->counters.bounced_bytes += part->bounce_length;
        if (part->request->operation == OP_WRITE) {
            copy_between(bounce, part, false);
        }
    }
    if (part->vector) {
        fill_iov(part->vector, bounce);
    } else if (bounce) {
        part->address = bounce;
    }
    return true;
}

/* The request's parts in order, as far as there is room. */
static bool admit_parts(QueueCore *q, Request *r)
{
    while (r->admitted < r->part_count) {
        Part *part = request_part(r, r->admitted);
        if (!prepare_part(q, part)) {
            return false;
        }
        r->admitted++;
        enqueue(q, part);
    }
    return true;
}

static void part_done(QueueCore *q, Part *part, int ret, const char *message)
{
    Request *r = part->request;
    q->counters.parts++;
    if (ret < 0) {
        if (!r->error && !r->exception) {
            r->error = -ret;
            if (message) {
                size_t size = strlen(message) + 1;
                r->message = PyMem_Malloc(size);
                if (r->message) {
                    memcpy(r->message, message, size);
                }
            }
        }
    } else if (r->operation == OP_READ) {
        q->counters.bytes_read += part->length;
        if (part->bounce_offset >= 0 && r->state == PENDING && !r->cancel_requested) {
            copy_between(q->bounce_address + part->bounce_offset, part, true);
        }
    } else if (r->operation == OP_WRITE) {
        q->counters.bytes_written += part->length;
    } else if (r->operation == OP_REPORT_ZONES && r->state == PENDING) {
        PyObject *zones = PyBytes_FromStringAndSize(part->address, ret * sizeof(struct blkio_zone));
        if (zones) {
            Py_SETREF(r->result, zones);
        } else {
            PyErr_Clear();
            r->error = ENOMEM;
        }
    }
    if (part->bounce_offset >= 0) {
        allocator_give(q->bounce, part->bounce_offset);
        part->bounce_offset = -1;
        q->room_made = true;
    }
    if (--r->outstanding == 0) {
        queue_outcome(r);
    }
}

/* ---- reaping --------------------------------------------------------------------------------------------- */

static void reset_event(QueueCore *q)
{
    uint64_t ignored;
    if (q->completion_fd >= 0 && read(q->completion_fd, &ignored, sizeof(ignored)) < 0 && errno == EAGAIN) {
        q->counters.empty_events++;
    }
}

/* do_io refused: the device is of no more use. The Python side is told, and fails what is in flight. */
static void queue_broken(QueueCore *q, int error)
{
    PyObject *number = PyLong_FromLong(error);
    if (number) {
        call_hook(q->on_broken, number);
        Py_DECREF(number);
    }
}

/* Whether the memory map has been changed since the part was issued, or is being changed. */
static bool was_disturbed(const QueueCore *q, const Part *part)
{
    uint64_t turns = __atomic_load_n(&q->device->map_turns, __ATOMIC_SEQ_CST);
    return turns != part->map_turns || turns % 2 == 1;
}

static void take_completions(QueueCore *q, const struct blkio_completion *completions, int count)
{
    for (int i = 0; i < count && q->blkioq; i++) { /* Python code may give the device up for lost */
        Part *part = completions[i].user_data;
        q->device_count--;
        part->request->issued--;
        if (completions[i].ret == -EIO && was_disturbed(q, part)) {
            append_backlog(q, part); /* once more */
            if (queue_has_loop(q)) {
                go_on_next_turn(q);
            }
            continue;
        }
        part_done(q, part, completions[i].ret, completions[i].error_msg);
    }
}

/* Submits what was issued and takes what has completed; returns how many completions. */
static int reap(QueueCore *q)
{
    struct blkio_completion completions[REAP_MAX];
    int total = 0;
    q->more_to_reap = true;
    for (int round = 0; round < REAP_ROUNDS && q->more_to_reap && q->blkioq; round++) {
        int count = blkioq_do_io(q->blkioq, completions, 0, REAP_MAX, NULL);
        q->counters.do_io_calls++;
        q->unflushed_bytes = 0;
        q->unflushed_parts = 0;
        if (count < 0) {
            if (count != -EINTR && count != -EAGAIN && count != -EBUSY) {
                q->more_to_reap = false;
                queue_broken(q, -count);
            }
            break;
        }
        take_completions(q, completions, count);
        total += count;
        q->more_to_reap = count == REAP_MAX;
    }
    return total;
}

/* Blocks, without the GIL, until at least one part has completed or timeout_ns have passed. */
static int reap_blocking(QueueCore *q, uint64_t timeout_ns)
{
    struct blkio_completion completions[REAP_MAX];
    struct timespec timeout = {timeout_ns / 1000000000u, timeout_ns % 1000000000u};
    int count;
    Py_BEGIN_ALLOW_THREADS
    count = blkioq_do_io(q->blkioq, completions, 1, REAP_MAX, &timeout);
    Py_END_ALLOW_THREADS
    q->counters.do_io_calls++;
    q->unflushed_bytes = 0;
    q->unflushed_parts = 0;
    if (count < 0) {
        if (count != -ETIME && count != -EINTR && count != -EAGAIN && count != -EBUSY) {
            queue_broken(q, -count);
        }
        return 0;
    }
    take_completions(q, completions, count);
    return count;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
}

/*
 * Waits actively, for at most spin_ns: cheaper than sleeping where waking up takes long. Where the device needs the
 * processor that spins, or takes longer anyway, spinning only costs: each time it was in vain, it is left out for twice
 * as long as the time before.
 */
static int spin(QueueCore *q)
{
    if (q->spin_pause > 0) {
        q->spin_pause--;
        return 0;
    }
    uint64_t end = now_ns() + q->spin_ns;
    int count = 0;
    while (count == 0 && q->device_count > 0 && now_ns() < end) {
        count = reap(q);
    }
    if (count > 0) {
        q->spin_penalty = 0;
    } else {
        q->spin_penalty = q->spin_penalty < SPIN_PENALTY_MAX ? 2 * q->spin_penalty + 1 : SPIN_PENALTY_MAX;
        q->spin_pause = q->spin_penalty;
    }
    return count;
}

static bool would_spin(const QueueCore *q) { return q->spin_ns > 0 && q->spin_pause == 0; }

static bool usable(const QueueCore *q) { return q->blkioq && q->fork_generation == fork_generation; }

/* The end of every entrance from the loop: what can go on goes on. */
static PyObject *finish_turn(QueueCore *q)
{
    if (q->room_made) {
        q->room_made = false;
        if (q->waiting > 0) {
            call_hook(q->on_room, NULL);
        }
    }
    int status = queue_wake_ready(q, true);
    /* Where the backlog waits for room in the device, an event tells; a flush per turn would be a busy loop. */
    bool silent = q->completion_fd < 0 && q->device_count > 0; /* a poll queue tells nothing by itself */
    if (usable(q) && (silent || q->more_to_reap || (q->backlog_head && may_issue(q, q->backlog_head)))) {
        go_on_next_turn(q);
    }
    if (status < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Others have had their turn: inline completions are harmless again. */
static void new_turn(QueueCore *q)
{
    q->inline_budget = INLINE_BUDGET;
    q->inline_request = NULL;
}

static PyObject *queue_flush(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    q->flush_scheduled = false;
    new_turn(q);
    q->counters.flushes++;
    if (usable(q)) {
        issue_backlog(q);
        q->last_batch = q->unflushed_parts;
        int count = reap(q);
        if (count == 0 && q->spin_ns > 0 && q->device_count > 0) {
            count = spin(q);
        }
        if (count > 0 && usable(q)) {
            reset_event(q);
            reap(q);
        }
    }
    return finish_turn(q);
}

static PyObject *queue_on_event(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (!usable(q)) {
        Py_RETURN_NONE;
    }
    new_turn(q);
    q->counters.events++;
    reset_event(q);
    issue_backlog(q);
    if (reap(q) == 0) {
        q->counters.empty_events++;
    }
    return finish_turn(q);
}

/* ---- submission ------------------------------------------------------------------------------------------ */

/*
 * Submitting at once saves a turn of the loop when nothing else is going on, and costs a system call per request when
 * there is. "Nothing else" is: nothing with the device, one request in the previous flush, and the previous inline
 * completion already looked at (else the caller is collecting requests, as gather() does).
 */
static bool idle(const QueueCore *q)
{
    return q->device_count == 0 && !q->backlog_head && !q->flush_scheduled && q->inline_budget > 0 &&
           !q->inline_request && q->completion_fd >= 0 && q->blkioq;
}

static bool alone(const QueueCore *q) { return q->last_batch <= 1 && idle(q); }

static void mark_inline(QueueCore *q, Request *r, uint32_t cost)
{
    q->inline_budget -= cost;
    q->counters.inline_completions++;
    r->inline_completion = true;
    q->inline_request = r;
}

static int submit_now(QueueCore *q, Request *r)
{
    issue(q, &r->first_part);
    r->admitted = 1;
    reap(q);
    if (r->state != PENDING) {
        mark_inline(q, r, 1);
    } else if (would_spin(q) && queue_schedule_flush(q) < 0) {
        return -1; /* the flush spins, after others have had their turn */
    }
    return q->ready_head ? queue_wake_ready(q, false) : 0;
}

/* A request that found no room is queued by the pool, or refused by it. */
static void ask_for_room(QueueCore *q, Request *r)
{
    uint64_t need = 0;
    for (uint32_t i = r->admitted; i < r->part_count; i++) {
        uint64_t length = request_part(r, i)->bounce_length;
        need = length > need ? length : need;
    }
    PyObject *hook = Py_XNewRef(q->on_bounce); /* it may put another in its own place */
    PyObject *answer = hook && hook != Py_None
                           ? PyObject_CallFunction(hook, "OK", r, (unsigned long long)need)
                           : PyErr_Format(PyExc_RuntimeError, "the queue has no bounce pool");
    Py_XDECREF(hook);
    if (answer) {
        Py_DECREF(answer);
        return;
    }
    Py_XSETREF(r->exception, take_exception());
    drop_unadmitted(r);
}

static bool needs_bounce(const Request *r)
{
    for (uint32_t i = 0; i < r->part_count; i++) {
        if ((i == 0 ? &r->first_part : &r->more_parts[i - 1])->bounce_length > 0) {
            return true;
        }
    }
    return false;
}

/* Links the request and starts its parts; the caller flushes. */
static void start(QueueCore *q, Request *r)
{
    q->counters.submitted++;
    r->outstanding = r->part_count;
    link_request(q, r);
    if (!q->blkioq) { /* lost since the caller was checked: preparing may run Python code */
        r->error = ENODEV;
        drop_unadmitted(r);
    } else if ((q->waiting > 0 && needs_bounce(r)) || !admit_parts(q, r)) {
        ask_for_room(q, r);
    }
}

int queue_submit(QueueCore *q, Request *r)
{
    if (r->part_count == 1 && alone(q) && q->waiting == 0 && prepare_part(q, &r->first_part)) {
        q->counters.submitted++;
        r->outstanding = 1;
        link_request(q, r);
        return submit_now(q, r);
    }
    if (queue_schedule_flush(q) < 0) {
        return -1;
    }
    start(q, r);
    return q->ready_head ? queue_wake_ready(q, false) : 0;
}

int queue_submit_children(QueueCore *q, Request *batch)
{
    bool now = idle(q); /* a batch is one system call, whatever went before */
    if (!now && queue_schedule_flush(q) < 0) {
        return -1;
    }
    batch->outstanding = 1; /* so that no child completes the batch while others are still to come */
    for (uint32_t i = 0; i < batch->child_count; i++) {
        Request *child = batch->children[i];
        if (child->state == PENDING) {
            batch->outstanding++;
            child->parent = (Request *)Py_NewRef(batch);
            start(q, child);
        }
    }
    child_done(batch);
    if (now) {
        reap(q);
        if (batch->state != PENDING) {
            mark_inline(q, batch, batch->child_count);
        } else if ((q->backlog_head || q->room_made) && queue_schedule_flush(q) < 0) {
            return -1;
        }
    }
    return q->ready_head ? queue_wake_ready(q, false) : 0;
}

/* Work outside libblkio, done by the Python side on a thread of its own: it ends with complete(). */
int queue_submit_external(QueueCore *q, Request *r, PyObject *hook)
{
    if (!hook || hook == Py_None) {
        PyErr_Format(PyExc_RuntimeError, "the queue has no hook for %s", operation_names[r->operation]);
        return -1;
    }
    q->counters.submitted++;
    r->outstanding = 1;
    r->admitted = 1;
    r->private_memory = true;
    link_request(q, r);
    Py_INCREF(hook); /* it may put another in its own place */
    PyObject *answer = PyObject_CallFunction(hook, "OKK", r, (unsigned long long)r->offset,
                                             (unsigned long long)r->length);
    Py_DECREF(hook);
    if (answer) {
        Py_DECREF(answer);
        return 0;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    r->cancel_requested = true; /* the caller gets the hook's exception, not the request */
    r->outstanding = 0;
    queue_outcome(r);
    PyErr_Restore(type, value, traceback);
    return -1;
}

/* ---- methods for the Python side ------------------------------------------------------------------------- */

static PyObject *queue_attach_bounce(QueueCore *q, PyObject *args)
{
    unsigned long long address, length, granule;
    if (!PyArg_ParseTuple(args, "KKK", &address, &length, &granule)) {
        return NULL;
    }
    if (q->bounce && allocator_in_use(q->bounce) > 0) {
        return PyErr_Format(PyExc_ValueError, "bounce memory is in use");
    }
    allocator_t *bounce = allocator_new(length, granule);
    if (!bounce) {
        return PyErr_Format(PyExc_ValueError, "bounce memory of %llu bytes in granules of %llu", length, granule);
    }
    if (q->bounce) {
        allocator_free(q->bounce);
    }
    q->bounce = bounce;
    q->bounce_address = (char *)(uintptr_t)address;
    Py_RETURN_NONE;
}

static PyObject *queue_detach_bounce(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (q->bounce) {
        if (allocator_in_use(q->bounce) > 0) {
            return PyErr_Format(PyExc_ValueError, "bounce memory is in use");
        }
        allocator_free(q->bounce);
        q->bounce = NULL;
        q->bounce_address = NULL;
    }
    Py_RETURN_NONE;
}

static Request *own_request(QueueCore *q, PyObject *object)
{
    if (!PyObject_TypeCheck(object, &Future_Type) || ((Request *)object)->queue != q) {
        PyErr_SetString(PyExc_TypeError, "a request of this queue is needed");
        return NULL;
    }
    return (Request *)object;
}

static int after_admission(QueueCore *q)
{
    if ((q->unflushed_parts > 0 || q->backlog_head) && queue_schedule_flush(q) < 0) {
        return -1;
    }
    return q->ready_head ? queue_wake_ready(q, false) : 0;
}

static PyObject *queue_admit(QueueCore *q, PyObject *object)
{
    Request *r = own_request(q, object);
    if (!r) {
        return NULL;
    }
    bool admitted = true;
    if (r->linked && r->admitted < r->part_count) {
        if (r->state != PENDING || r->cancel_requested || r->error) {
            drop_unadmitted(r);
        } else {
            admitted = admit_parts(q, r);
        }
    }
    return after_admission(q) < 0 ? NULL : PyBool_FromLong(admitted);
}

static PyObject *queue_refuse(QueueCore *q, PyObject *args)
{
    PyObject *object, *exception;
    if (!PyArg_ParseTuple(args, "OO", &object, &exception)) {
        return NULL;
    }
    Request *r = own_request(q, object);
    if (!r) {
        return NULL;
    }
    if (r->linked && r->admitted < r->part_count) {
        if (!r->exception && !r->error) {
            r->exception = Py_NewRef(exception);
        }
        drop_unadmitted(r);
    }
    if (after_admission(q) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Signals are looked at this often while wait() blocks. */
#define WAIT_SLICE_NS 100000000u

/* Drives a queue that has no loop until a request is done; without one, until anything has completed. */
static PyObject *queue_wait(QueueCore *q, PyObject *args)
{
    PyObject *object;
    double seconds;
    if (!PyArg_ParseTuple(args, "Od", &object, &seconds)) {
        return NULL;
    }
    Request *r = object == Py_None ? NULL : own_request(q, object);
    if (!r && object != Py_None) {
        return NULL;
    }
    if (queue_has_loop(q) || q->thread != PyThread_get_thread_ident() || !usable(q)) {
        PyErr_SetString(PyExc_RuntimeError, "wait() is for a usable queue without a loop, in its own thread");
        return NULL;
    }
    uint64_t end = seconds >= 0 && seconds < 1e9 ? now_ns() + (uint64_t)(seconds * 1e9) : UINT64_MAX;
    int count = 0;
    Py_XINCREF(r);
    while (usable(q) && (r ? r->state == PENDING : count == 0)) {
        issue_backlog(q);
        uint64_t now = now_ns();
        if (q->device_count == 0 || now >= end) {
            break;
        }
        uint64_t slice = end - now < WAIT_SLICE_NS ? end - now : WAIT_SLICE_NS;
        count += reap_blocking(q, slice);
        if (PyErr_CheckSignals() < 0) {
            Py_XDECREF(r);
            return NULL;
        }
    }
    bool done = r ? r->state != PENDING : count > 0;
    Py_XDECREF(r);
    return PyBool_FromLong(done);
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
    Request *r = own_request(q, object);
    if (!r) {
        return NULL;
    }
    if (r->linked && r->outstanding > 0) {
        part_done(q, &r->first_part, -error, message);
    }
    if (q->ready_head && queue_wake_ready(q, false) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* What a request in flight fails with when the device is lost: what it was, and why. */
static PyObject *lost_error(Request *r, PyObject *cause)
{
    bool ranged = r->operation != OP_FLUSH && r->operation != OP_BATCH;
    device_refuse(r->queue->device, "lost", r->operation, ranged ? r->offset : UINT64_MAX,
                  ranged ? r->length : UINT64_MAX);
    PyObject *exception = take_exception();
    PyException_SetCause(exception, Py_NewRef(cause));
    return exception;
}

/*
 * The device is lost. Who waits is told so. What the device may still write to is never let go: such requests are
 * forgotten here but not released, and their memory lives as long as the process.
 */
static PyObject *queue_abandon(QueueCore *q, PyObject *exception)
{
    size_t count = 0;
    bool was_busy = q->in_flight != NULL;
    Request *r;
    q->blkioq = NULL;
    q->backlog_head = q->backlog_tail = NULL;
    q->device_count = 0;
    while ((r = q->in_flight) != NULL) {
        bool in_use = r->issued > 0;
        unlink_request(q, r);
        if (r->state == PENDING && !r->exception) {
            r->exception = lost_error(r, exception);
            count++;
        }
        r->admitted = r->part_count; /* who waits for bounce memory finds nothing left to do */
        if (!in_use) {
            r->outstanding = 0;
            queue_outcome(r);
            Py_DECREF(r);
            continue;
        }
        if (r->state == PENDING) {
            q->counters.failed += !r->cancel_requested;
            request_settle(r, r->cancel_requested ? CANCELLED : FAILED);
        }
        leave_batch(r);
    }
    if (was_busy) {
        tell_if_idle(q);
    }
    if (queue_wake_ready(q, false) < 0) {
        return NULL;
    }
    return PyLong_FromSize_t(count);
}

/* After this the blkioq may be destroyed. */
static PyObject *queue_dispose(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (q->in_flight_count > 0) {
        return PyErr_Format(PyExc_RuntimeError, "%zu requests are in flight", q->in_flight_count);
    }
    q->blkioq = NULL;
    Py_RETURN_NONE;
}

static PyObject *queue_close(QueueCore *q, PyObject *reason)
{
    const char *text = PyUnicode_AsUTF8(reason);
    if (!text) {
        return NULL;
    }
    q->closed = true;
    q->closed_reason = strcmp(text, "lost") == 0 ? "lost" : "closed";
    Py_RETURN_NONE;
}

static PyObject *queue_statistics(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    const Counters *c = &q->counters;
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:n}", "submitted", c->submitted,
                         "completed", c->completed, "failed", c->failed, "cancelled", c->cancelled, "bytes_read",
                         c->bytes_read, "bytes_written", c->bytes_written, "parts", c->parts, "bounced_bytes",
                         c->bounced_bytes, "inline_completions", c->inline_completions, "flushes", c->flushes,
                         "do_io_calls", c->do_io_calls, "events", c->events, "empty_events", c->empty_events,
                         "direct_wakes", c->direct_wakes, "in_flight", (Py_ssize_t)q->in_flight_count);
}

/* ---- the type -------------------------------------------------------------------------------------------- */

/* Bound to the loop itself: what the requests of a queue have in common refers to no request and no queue. */
static PyObject *get_loop(PyObject *loop, PyObject *Py_UNUSED(ignored)) { return Py_NewRef(loop); }
static PyMethodDef get_loop_method = {"get_loop", get_loop, METH_NOARGS, NULL};

/* A future that is done, and asyncio's own: see step_task. */
static PyObject *finished_future(PyObject *loop)
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
    self->device = (DeviceCore *)Py_NewRef(device);
    self->blkioq = (struct blkioq *)(uintptr_t)blkioq;
    self->completion_fd = completion_fd;
    self->depth = depth;
    self->thread = PyThread_get_thread_ident();
    self->fork_generation = fork_generation;
    self->inline_budget = INLINE_BUDGET;
    self->loop = Py_NewRef(loop);
    self->call_soon = queue_has_loop(self) ? PyObject_GetAttrString(loop, "call_soon") : Py_NewRef(Py_None);
    self->flush_method = PyObject_GetAttrString((PyObject *)self, "flush");
    self->loop_context = PyContext_CopyCurrent();
    self->get_loop = PyCFunction_New(&get_loop_method, loop);
    self->wake_future = queue_has_loop(self) ? finished_future(loop) : Py_NewRef(Py_None);
    if (!self->call_soon || !self->flush_method || !self->loop_context || !self->get_loop || !self->wake_future) {
        Py_CLEAR(self);
    }
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
    return 0;
}

/* What its requests use of a queue goes only with the last of them. */
static int queue_clear(QueueCore *self)
{
    Py_CLEAR(self->flush_method);
    Py_CLEAR(self->on_bounce);
    Py_CLEAR(self->on_room);
    Py_CLEAR(self->on_discard);
    Py_CLEAR(self->on_idle);
    Py_CLEAR(self->on_broken);
    return 0;
}

static void queue_dealloc(QueueCore *self)
{
    PyObject_GC_UnTrack(self);
    queue_clear(self);
    Py_CLEAR(self->loop_context);
    Py_CLEAR(self->get_loop);
    Py_CLEAR(self->wake_future);
    Py_CLEAR(self->call_soon);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->device);
    if (self->bounce) {
        allocator_free(self->bounce);
    }
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *queue_get_bounce_size(QueueCore *q, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(q->bounce ? allocator_size(q->bounce) : 0);
}

static PyObject *queue_get_bounce_in_use(QueueCore *q, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(q->bounce ? allocator_in_use(q->bounce) : 0);
}

static PyObject *queue_get_bounce_peak(QueueCore *q, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(q->bounce ? allocator_peak(q->bounce) : 0);
}

static PyObject *queue_get_bounce_takes(QueueCore *q, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(q->bounce ? allocator_takes(q->bounce) : 0);
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
    {"complete", (PyCFunction)queue_complete, METH_VARARGS,
     "(request, errno, message): the end of work that was done outside libblkio."},
    {"wait", (PyCFunction)queue_wait, METH_VARARGS,
     "(request or None, seconds, < 0 for ever): block until it is done, or anything has completed; False: not in time."},
    {"abandon", (PyCFunction)queue_abandon, METH_O,
     "(error): the device is lost; fail what is in flight and never let go of its memory."},
    {"close", (PyCFunction)queue_close, METH_O, "(\"closed\" or \"lost\"): refuse every new request."},
    {"dispose", (PyCFunction)queue_dispose, METH_NOARGS, "Let go of the blkioq; nothing may be in flight."},
    {"statistics", (PyCFunction)queue_statistics, METH_NOARGS, "The counters, by name."},
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
    {"spin_ns", T_ULONGLONG, offsetof(QueueCore, spin_ns), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef queue_getset[] = {
    {"bounce_size", (getter)queue_get_bounce_size, NULL, "Bytes of bounce memory.", NULL},
    {"bounce_in_use", (getter)queue_get_bounce_in_use, NULL, "Bytes of bounce memory in use.", NULL},
    {"bounce_peak", (getter)queue_get_bounce_peak, NULL, "The most bytes in use since attach_bounce.", NULL},
    {"bounce_takes", (getter)queue_get_bounce_takes, NULL, "Bounce buffers handed out since attach_bounce.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject QueueCore_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.QueueCore",
    .tp_doc = "One blkioq bound to one loop and one thread.",
    .tp_basicsize = sizeof(QueueCore),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = queue_new,
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
    if (pthread_atfork(NULL, NULL, after_fork) != 0) {
        PyErr_SetString(PyExc_OSError, "pthread_atfork failed");
        return -1;
    }
    return PyType_Ready(&QueueCore_Type);
}
