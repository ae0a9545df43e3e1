/*
 * Parts: given bounce memory where they need it, issued to libblkio or kept in the backlog, and completed; and those of
 * them that nobody wants any more. Those end with the backlog's next issue, whatever they have waited for.
 */
#include "rooms.h"

#include <errno.h>

#define FLUSH_BYTES (1u << 20) /* data per do_io: cached reads are copied within the call, and the loop stands still */

/* ---- issuing --------------------------------------------------------------------------------------------- */

/* What the next do_io transfers of it. */
static inline uint64_t bytes_of(const Part *part)
{
    return part->request->operation <= OP_WRITE ? part->length : zeroes_at_once(part);
}

/* Kept apart: the common part should not have to make room for the variables of this one. */
static __attribute__((noinline, cold)) void issue_zeroes(struct blkioq *b, Part *part)
{
    blkioq_write(b, part->offset, part->address, zeroes_at_once(part), part, part->request->flags & BLKIO_REQ_FUA);
}

void queue_issue(QueueCore *q, Part *part)
{
    struct blkioq *b = q->blkioq;
    Request *r = part->request;
    Vector *vector = part->vector;
    assert(b && r->queue == q && r->linked);
    assert(r->outstanding > r->issued && part->bounce_offset != PART_OVER);
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
        if (zeroes_are_written(part)) {
            issue_zeroes(b, part);
            break;
        }
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
        part->offset = SHARED_LOAD(q->device->changes);
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
    case OP_COUNT:
        Py_UNREACHABLE();
    }
    part->map_turns = (uint32_t)__atomic_load_n(&q->device->map_turns, __ATOMIC_SEQ_CST);
    r->issued++;
    q->device_count++;
    if (vector) {
        q->more_segments += vector->iov_count - 1;
    }
    q->unflushed_parts++;
    q->unflushed_bytes += bytes_of(part);
}

/* Header and status of a request, and its only segment, have a descriptor each. */
#define DESCRIPTORS 3

static __attribute__((noinline)) bool virtqueue_holds(const QueueCore *q, const Part *part)
{
    size_t more_segments = q->more_segments + (part->vector ? part->vector->iov_count - 1 : 0);
    return (q->device_count + 1) * DESCRIPTORS + more_segments <= q->depth;
}

/* What libblkio is given beyond what its ring holds waits inside it, beyond recall, and grows old there. */
static inline __attribute__((always_inline)) bool has_room(const QueueCore *q, const Part *part)
{
    return q->device_count < q->depth && (!q->virtqueue || virtqueue_holds(q, part));
}

bool queue_has_room(const QueueCore *q, const Part *part) { return has_room(q, part); }

static inline __attribute__((always_inline)) bool may_issue(const QueueCore *q, const Part *part)
{
    if (!has_room(q, part)) {
        return false;
    }
    uint64_t bytes = q->unflushed_bytes == 0 ? 0 : bytes_of(part);
    return bytes == 0 || q->unflushed_bytes + bytes <= FLUSH_BYTES;
}

static void enqueue(QueueCore *q, Part *part)
{
    if (!q->backlog_head && may_issue(q, part)) {
        queue_issue(q, part);
        return;
    }
    queue_append_backlog(q, part);
}

/* ---- completion ------------------------------------------------------------------------------------------ */

/* The first error counts. */
static void item_fail(Item *item, int error, const char *message)
{
    if (item->error || item->exception) {
        return;
    }
    item->error = error;
    if (message) {
        size_t size = strlen(message) + 1;
        item->message = PyMem_Malloc(size);
        if (item->message) {
            memcpy(item->message, message, size);
        }
    }
}

/* Of what neither reads nor writes. False: it is not done yet. */
static bool other_part_done(QueueCore *q, Part *part, int ret)
{
    Request *r = part->request;
    if (zeroes_are_written(part)) {
        q->counters.bytes[OP_WRITE_ZEROES] += zeroes_at_once(part);
        if (zeroes_go_on(part)) {
            queue_append_backlog(q, part);
            queue_go_on_next_turn(q);
            return false;
        }
    } else if (r->operation != OP_REPORT_ZONES) {
        q->counters.bytes[r->operation] += part->length;
    } else if (r->state == PENDING) {
        Item *item = part_item(part);
        PyObject *zones = PyBytes_FromStringAndSize(part->address, ret * sizeof(struct blkio_zone));
        if (zones) {
            Py_SETREF(item->result, zones);
        } else {
            PyErr_Clear();
            item->error = ENOMEM;
        }
    }
    return true;
}

/* The part is done: changes to the device are durable with FUA, or when a flush is done that began later. */
static inline void note_durability(DeviceCore *device, const Part *part)
{
    const Request *r = part->request;
    if (r->operation == OP_FLUSH) {
        device_note_flush(device, part->offset);
    } else if (r->operation <= OP_DISCARD && r->operation != OP_READ && !(r->flags & BLKIO_REQ_FUA)) {
        PUBLISH(device->changed_at, part->offset);
        (void)SHARED_ADD(device->changes, 1);
    }
}

void queue_part_done(QueueCore *q, Part *part, int ret, const char *message)
{
    Request *r = part->request;
    Item *item = part_item(part);
    assert(r->queue == q && r->linked && part->bounce_offset != PART_OVER);
    assert(r->outstanding > r->issued && item->left > 0);
    if (ret < 0) {
        item_fail(item, -ret, message);
    } else if (r->operation == OP_READ) {
        q->counters.bytes[OP_READ] += part->length;
        if (part->bounce_offset >= 0 && r->state == PENDING && !r->cancel_requested) {
            bounce_copy_to_caller(q, part);
        }
    } else if (r->operation == OP_WRITE) {
        q->counters.bytes[OP_WRITE] += part->length;
    } else if (!other_part_done(q, part, ret)) {
        return;
    }
    if (ret >= 0) {
        note_durability(q->device, part);
    }
    item->left--;
    if (part->bounce_offset >= 0) {
        bounce_give_back(q, part);
    }
    if (--r->outstanding == 0) {
        queue_outcome(r);
    } else {
        part->bounce_offset = PART_OVER;
        r->age = 0;
    }
}

/*
 * What it came to is true of each. Where it has failed, each that is wanted is made by itself, to know which fails: not all of them
 * may be, since an item that has another part may have failed already.
 */
__attribute__((noinline, cold)) void queue_merged_done(QueueCore *q, Part *part, int ret, const char *message)
{
    Request *r = part->request;
    bool again = false;
    uint32_t first = part_index(part), riders = merge_undo(part);
    for (uint32_t i = 0; i <= riders; i++) {
        if (ret < 0 && !part_is_pointless(request_part(r, first + i))) {
            queue_append_backlog(q, request_part(r, first + i));
            again = true;
        }
    }
    for (uint32_t i = riders + 1; i-- > 0;) { /* the request is not over before the first of them is */
        if (ret >= 0 || part_is_pointless(request_part(r, first + i))) {
            queue_part_done(q, request_part(r, first + i), ret, message);
        }
    }
    if (again) {
        r->age = 0; /* which is not over, then */
        queue_go_on_next_turn(q);
    }
}

/* ---- admission: the parts of a request are handed on in order, as far as there is room ------------------------------ */

void request_drop_unadmitted(Request *r)
{
    QueueCore *q = r->queue;
    assert(r->linked && !r->held);
    assert(r->admitted <= r->part_count);
    while (r->admitted < r->part_count) {
        Part *part = request_part(r, r->admitted);
        r->admitted += 1 + part_riders(part);
        assert(part_is_pointless(part));
        queue_append_backlog(q, part);
        q->sweep_due = true;
    }
}

void request_fail_unadmitted(Request *r, int error, const char *message, PyObject *exception)
{
    for (uint32_t i = r->admitted; i < r->part_count; i++) {
        Item *item = part_item(request_part(r, i));
        if (exception && !item->error && !item->exception) {
            item->exception = Py_NewRef(exception);
        } else if (!exception) {
            item_fail(item, error, message);
        }
    }
    request_drop_unadmitted(r);
}

#define GROUP 4 /* parts of a batch that are handed over while the next ones are issued */

/*
 * A kick, see pace.c, in the midst of a batch. It takes no completions, so that nobody runs; should it fail, so does the
 * flush that follows.
 */
static void hand_over_group(QueueCore *q)
{
    if (queue_usable(q) && blkioq_do_io(q->blkioq, NULL, 0, 0, NULL) >= 0) {
        q->counters.do_io_calls++;
        q->carried += q->unflushed_parts;
        q->unflushed_parts = 0;
    }
}

/* Whether the call hands over no more than can be transferred within it while the caller, and all threads, stand still. */
static bool group_is_small(const QueueCore *q, uint64_t handed)
{
    return q->device->needs_regions || q->unflushed_bytes - handed < BYTES_WITHOUT_GIL;
}

static inline __attribute__((always_inline)) bool admit_next(QueueCore *q, Request *r)
{
    Part *part = request_part(r, r->admitted);
    if (!queue_prepare_part(q, part)) {
        return false;
    }
    r->admitted += 1 + part_riders(part);
    enqueue(q, part);
    return true;
}

/* Kicks in the midst of a batch, until one would hand over too much. */
static __attribute__((noinline)) bool admit_in_groups(QueueCore *q, Request *r)
{
    bool kicks = true;
    uint64_t handed = q->unflushed_parts == 0 ? q->unflushed_bytes : 0; /* to the device already */
    while (r->admitted < r->part_count) {
        if (!admit_next(q, r)) {
            return false;
        }
        if (kicks && q->unflushed_parts >= GROUP && r->admitted < r->part_count) {
            kicks = group_is_small(q, handed);
            if (kicks) {
                hand_over_group(q);
                handed = q->unflushed_bytes;
            }
        }
    }
    return true;
}

/* The request's parts in order, as far as there is room. */
bool queue_admit_parts(QueueCore *q, Request *r)
{
    if (__builtin_expect(r->batch && q->pace.kicks, 0)) {
        return admit_in_groups(q, r);
    }
    while (r->admitted < r->part_count) {
        if (!admit_next(q, r)) {
            return false;
        }
    }
    return true;
}

/* The bounce memory that a request wants to go on: for its largest part, since the others can follow, or for a batch. */
static uint64_t bounce_need(Request *r)
{
    uint64_t largest = 0, all = 0;
    for (uint32_t i = r->admitted; i < r->part_count; i++) {
        uint64_t length = request_part(r, i)->bounce_length;
        largest = length > largest ? length : largest;
        all += length;
    }
    return r->batch ? all : largest;
}

static int ask_for_room(QueueCore *q, Request *r)
{
    PyObject *hook = Py_XNewRef(q->on_bounce); /* it may put another in its own place */
    PyObject *answer = hook && hook != Py_None
                           ? PyObject_CallFunction(hook, "OK", r, (unsigned long long)bounce_need(r))
                           : PyErr_Format(PyExc_RuntimeError, "the queue has no bounce pool");
    Py_XDECREF(hook);
    if (answer) {
        Py_DECREF(answer);
        return 0;
    }
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyObject *exception = take_exception();
    if (r->linked) { /* still, whatever the hook has done */
        request_fail_unadmitted(r, 0, NULL, exception);
    }
    Py_DECREF(exception);
    return 0;
}

static bool needs_bounce(Request *r)
{
    for (uint32_t i = 0; i < r->part_count; i++) {
        if (request_part(r, i)->bounce_length > 0) {
            return true;
        }
    }
    return false;
}

/* -1: as ask_for_room. */
int request_admit(QueueCore *q, Request *r)
{
    bool must_wait = (q->waiting > 0 && needs_bounce(r)) || !queue_admit_parts(q, r);
    return must_wait ? ask_for_room(q, r) : 0;
}

/* Links the request and starts its parts; the caller flushes. -1: as request_admit. */
int request_start(QueueCore *q, Request *r)
{
    assert(r->state == PENDING && r->part_count > 0);
    assert(r->admitted == 0 && r->issued == 0);
    q->counters.submitted += r->weight;
    r->outstanding = r->part_count;
    queue_link(q, r);
    return request_admit(q, r);
}

/* ---- the backlog ----------------------------------------------------------------------------------------- */

/* Of the only part of a request that began without bounce memory, and needs some now. */
static __attribute__((noinline, cold)) void admit_late(QueueCore *q, Request *r)
{
    Py_INCREF(r);
    r->admitted = 0;
    if ((q->waiting > 0 || !queue_admit_parts(q, r)) && ask_for_room(q, r) < 0) {
        queue_put_off(q);
        if (r->linked && r->admitted == 0) { /* ask once more */
            r->admitted = 1;
            queue_append_backlog(q, &r->first_part);
        }
    }
    Py_DECREF(r);
}

static void end_pointless(QueueCore *q, Part *part)
{
    if (part_riders(part) > 0) {
        queue_merged_done(q, part, -ECANCELED, NULL);
    } else {
        queue_part_done(q, part, -ECANCELED, NULL);
    }
}

/*
 * Ending one may run Python code, which may give the device up, or end others of them: those that are left hang on the
 * queue.
 */
static void sweep_backlog(QueueCore *q)
{
    Part *part;
    queue_sort_backlog(q);
    while ((part = queue_take_dropped(q)) != NULL) {
        end_pointless(q, part);
    }
}

void queue_issue_backlog(QueueCore *q)
{
    Part *part;
    if (q->sweep_due) {
        sweep_backlog(q);
    }
    while ((part = q->backlog_head) != NULL) {
        bool pointless = part_is_pointless(part);
        if (!pointless && !may_issue(q, part)) {
            return;
        }
        queue_take_backlog(q);
        if (pointless) {
            end_pointless(q, part);
        } else if (part->bounce_length > 0 && part->bounce_offset < 0) {
            admit_late(q, part->request);
        } else {
            queue_issue(q, part);
        }
    }
}

/* ---- cancellation ---------------------------------------------------------------------------------------- */

/* A request was cancelled: the next turn ends what of it the device does not have, wherever that waits. */
static void leave_queue(Request *r)
{
    QueueCore *q = r->queue;
    if (r->held) {
        q->held_cancelled = true;
    } else if (r->linked && r->admitted < r->part_count) {
        request_drop_unadmitted(r);
        q->room_made = true; /* for who waited behind it */
    }
    q->sweep_due |= q->backlog_head != NULL;
}

bool request_cancel_io(Request *r, PyObject *message)
{
    QueueCore *q = r->queue;
    PyObject *before = r->cancel_message;
    if (r->state != PENDING) {
        return false;
    }
    q->counters.cancelled += r->cancel_requested ? 0 : r->weight;
    r->cancel_requested = true;
    sight_do_not_time(q, r);
    r->cancel_message = Py_XNewRef(message);
    leave_queue(r);
    if (!r->lends_memory && given_up_can_be(r) && !given_up_begin(r)) {
        r->lends_memory = true; /* who waits for it goes on when it is over */
    }
    if (!r->lends_memory) {
        request_settle(r, CANCELLED);
    }
    if (q->sweep_due || q->held_cancelled) {
        queue_go_on_next_turn(q);
    }
    Py_XDECREF(before);
    return true;
}
