/* Parts: given bounce memory where they need it, issued to libblkio or kept in the backlog, and completed. */
#include "queue.h"

#include <errno.h>

#define FLUSH_BYTES (1u << 20) /* data per do_io: cached reads are copied within the call, and the loop stands still */

/* What the next do_io transfers of it. */
static inline uint64_t bytes_of(const Part *part)
{
    return part->request->operation <= OP_WRITE ? part->length : zeroes_to_transfer(part);
}

void queue_issue(QueueCore *q, Part *part)
{
    struct blkioq *b = q->blkioq;
    Request *r = part->request;
    Vector *vector = part->vector;
    assert(b && r->linked && r->outstanding > r->issued);
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
            zeroes_issue(b, part);
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
static inline __attribute__((always_inline)) bool may_issue(const QueueCore *q, const Part *part)
{
    if (q->device_count >= q->depth || (q->virtqueue && !virtqueue_holds(q, part))) {
        return false;
    }
    uint64_t bytes = q->unflushed_bytes == 0 ? 0 : bytes_of(part);
    return bytes == 0 || q->unflushed_bytes + bytes <= FLUSH_BYTES;
}

bool queue_may_issue(const QueueCore *q, const Part *part) { return may_issue(q, part); }

void queue_append_backlog(QueueCore *q, Part *part)
{
    part->next = NULL;
    if (q->backlog_tail) {
        q->backlog_tail->next = part;
    } else {
        q->backlog_head = part;
    }
    q->backlog_tail = part;
}

void queue_issue_once_more(QueueCore *q, Part *part)
{
    queue_append_backlog(q, part);
    if (queue_has_loop(q)) {
        queue_go_on_next_turn(q);
    }
}

static void enqueue(QueueCore *q, Part *part)
{
    if (!q->backlog_head && may_issue(q, part)) {
        queue_issue(q, part);
        return;
    }
    queue_append_backlog(q, part);
}

void request_fail_unadmitted(Request *r, int error, PyObject *exception)
{
    for (uint32_t i = r->admitted; i < r->part_count; i++) {
        Item *item = part_item(request_part(r, i));
        if (!item->error && !item->exception) {
            item->error = error;
            item->exception = Py_XNewRef(exception);
        }
    }
    request_drop_unadmitted(r);
}

void request_drop_unadmitted(Request *r)
{
    uint32_t left = r->part_count - r->admitted;
    for (uint32_t i = r->admitted; i < r->part_count; i++) {
        request_part(r, i)->bounce_offset = PART_OVER;
    }
    r->admitted = r->part_count;
    r->outstanding -= left;
    if (left > 0 && r->outstanding == 0) {
        queue_outcome(r);
    }
}

bool part_is_pointless(const Part *part)
{
    const Request *r = part->request;
    return r->cancel_requested || r->state != PENDING || part_item(part)->error;
}

/*
 * Parts that nobody wants any more leave the backlog from anywhere: they need not wait for those before them. Ending one
 * may run Python code, which may give the device up, or end others of them: those that are left hang on the queue.
 */
static void sweep_backlog(QueueCore *q)
{
    Part *part = q->backlog_head, *next;
    q->backlog_cancelled = false;
    q->backlog_head = q->backlog_tail = NULL;
    for (; part; part = next) {
        next = part->next;
        if (part_is_pointless(part)) {
            part->next = q->dropped;
            q->dropped = part;
        } else {
            queue_append_backlog(q, part);
        }
    }
    while ((part = q->dropped) != NULL) {
        q->dropped = part->next;
        queue_part_done(q, part, -ECANCELED, NULL);
    }
}

void queue_forget_parts(QueueCore *q)
{
    q->backlog_head = q->backlog_tail = q->dropped = NULL;
    q->device_count = q->more_segments = 0;
    q->unflushed_parts = 0;
    q->unflushed_bytes = 0;
}

/* Of the only part of a request that began without bounce memory, and needs some now. */
static __attribute__((noinline, cold)) void admit_late(QueueCore *q, Request *r)
{
    Py_INCREF(r);
    r->admitted = 0;
    if ((q->waiting > 0 || !queue_admit_parts(q, r)) && queue_ask_for_room(q, r) < 0) {
        queue_put_off(q);
        if (r->linked && r->admitted == 0) { /* ask once more */
            r->admitted = 1;
            queue_append_backlog(q, &r->first_part);
        }
    }
    Py_DECREF(r);
}

void queue_issue_backlog(QueueCore *q)
{
    Part *part;
    if (q->backlog_cancelled) {
        sweep_backlog(q);
    }
    while ((part = q->backlog_head) != NULL) {
        bool pointless = part_is_pointless(part);
        if (!pointless && !may_issue(q, part)) {
            return;
        }
        q->backlog_head = part->next;
        if (!q->backlog_head) {
            q->backlog_tail = NULL;
        }
        if (pointless) {
            queue_part_done(q, part, -ECANCELED, NULL);
        } else if (part->bounce_length > 0 && part->bounce_offset < 0) {
            admit_late(q, part->request);
        } else {
            queue_issue(q, part);
        }
    }
}

/* A request was cancelled: what waits for bounce memory goes at once, the next flush takes the rest out of the backlog. */
void queue_cancelled(Request *r)
{
    QueueCore *q = r->queue;
    if (r->linked && r->admitted < r->part_count) {
        request_drop_unadmitted(r);
        q->room_made = true; /* for who waited behind it */
        q->held_cancelled = q->held_head != NULL;
        queue_go_on_next_turn(q);
    }
    if (q->backlog_head && !q->backlog_cancelled) {
        q->backlog_cancelled = true;
        queue_go_on_next_turn(q);
    }
}

static void copy_between(char *bounce, const Part *part, bool to_caller)
{
    if (!part->vector) {
        memcpy(to_caller ? part->source : bounce, to_caller ? bounce : part->source, part->bounce_length);
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

bool queue_prepare_memory(QueueCore *q, Part *part)
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
        part->request->has_plan = true;
        bounce = q->bounce_address + part->bounce_offset;
        q->counters.bounced_bytes += part->bounce_length;
        if (part->request->operation != OP_READ) {
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
bool queue_admit_parts(QueueCore *q, Request *r)
{
    while (r->admitted < r->part_count) {
        Part *part = request_part(r, r->admitted);
        if (!queue_prepare_part(q, part)) {
            return false;
        }
        r->admitted++;
        enqueue(q, part);
    }
    return true;
}

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

void queue_part_done(QueueCore *q, Part *part, int ret, const char *message)
{
    Request *r = part->request;
    Item *item = part_item(part);
    assert(r->queue == q && r->linked && r->outstanding > r->issued && item->left > 0);
    if (ret < 0) {
        item_fail(item, -ret, message);
    } else if (r->operation == OP_READ) {
        q->counters.bytes_read += part->length;
        if (part->bounce_offset >= 0 && r->state == PENDING && !r->cancel_requested) {
            copy_between(q->bounce_address + part->bounce_offset, part, true);
        }
    } else if (r->operation == OP_WRITE) {
        q->counters.bytes_written += part->length;
    } else if (zeroes_are_written(part) && zeroes_go_on(q, part)) {
        return;
    } else if (r->operation == OP_REPORT_ZONES && r->state == PENDING) {
        PyObject *zones = PyBytes_FromStringAndSize(part->address, ret * sizeof(struct blkio_zone));
        if (zones) {
            Py_SETREF(item->result, zones);
        } else {
            PyErr_Clear();
            item->error = ENOMEM;
        }
    }
    item->left--;
    q->counters.parts++;
    if (part->bounce_offset >= 0) {
        allocator_give(q->bounce, part->bounce_offset);
        part->bounce_offset = NO_BOUNCE;
        q->room_made = true;
    }
    if (--r->outstanding == 0) {
        queue_outcome(r);
    } else {
        part->bounce_offset = PART_OVER;
        r->age = 0;
    }
}
