/*
 * Outcomes: what requests, their items and batches come to in the end, and who is told. A batch is a request whose parts
 * belong to several items; only here is it known what became of each.
 */
#include "rooms.h"

/* ---- settling -------------------------------------------------------------------------------------------- */

void request_settle(Request *r, State state)
{
    assert(r->state == PENDING && state != PENDING);
    if (state == FAILED) {
        r->log_traceback = true;
        if (r->item.exception) {
            r->traceback = PyException_GetTraceback(r->item.exception);
        }
    }
    uint64_t since = r->since;
    r->ready_next = NULL;
    PUBLISH(r->state, state); /* result and exception are there by now */
    if (r->callback) {
        queue_ready(r->queue, r);
    }
    if (since != UNWATCHED) {
        sight_end(r, since);
    }
}

/* ---- batches --------------------------------------------------------------------------------------------- */

static bool has_failed(const Item *item) { return item->error || item->exception; }

/* Counts what was submitted, and finds the first failure. */
static Item *account(Request *batch)
{
    Item *first = NULL;
    uint32_t failures = 0;
    for (uint32_t i = batch->count; i-- > 0;) {
        Item *item = &batch->items[i];
        if (has_failed(item)) {
            if (item->length > 0) {
                failures++;
                queue_count_failure(batch->queue, batch->operation, item);
            }
            first = item;
        }
    }
    batch->queue->counters.completed[batch->operation] += batch->weight - failures;
    return first;
}

static void make_exceptions(Request *batch)
{
    for (uint32_t i = 0; i < batch->count; i++) {
        Item *item = &batch->items[i];
        if (item->error) {
            PyObject *exception = make_certainly(item_exception, batch, item, item->error);
            Py_XSETREF(item->exception, exception);
        }
    }
}

/*
 * What the items gave, in their order. The bytes change hands; those of an item that has failed stay, since a device
 * that is lost may still write to them. No code runs while the list is being filled, as anybody can find it.
 */
static PyObject *collect(Request *batch)
{
    make_exceptions(batch);
    PyObject *results = PyList_New(batch->count);
    for (uint32_t i = 0; results && i < batch->count; i++) {
        Item *item = &batch->items[i];
        PyObject **value = item->exception ? &item->exception : &item->result;
        PyList_SET_ITEM(results, i, *value ? *value : Py_NewRef(Py_None));
        *value = NULL;
    }
    return results;
}

/* The batch fails with what an item of it failed with; the exception is made when somebody asks for it. */
static void fail_like(Item *whole, Item *item)
{
    whole->offset = item->offset;
    whole->length = item->length;
    whole->error = item->error;
    whole->message = item->message;
    whole->exception = item->exception;
    item->message = NULL;
    item->exception = NULL;
}

void batch_settle(Request *batch)
{
    Item *failure = account(batch), *whole = &batch->item;
    if (failure && !batch->return_exceptions) {
        fail_like(whole, failure);
    } else if (!batch->returns_list) {
        whole->result = Py_NewRef(Py_None);
    } else if (!(whole->result = collect(batch))) {
        whole->exception = take_exception();
    }
    if (batch->state == PENDING) { /* making exceptions may have run code that has cancelled it */
        request_settle(batch, has_failed(whole) ? FAILED : FINISHED);
    }
}

/* ---- the end of a request ---------------------------------------------------------------------------------- */

void queue_tell_if_idle(QueueCore *q)
{
    if (q->in_flight_count == 0 && !call_hook(q, q->on_idle, NULL)) {
        queue_tell_later(q, UNTOLD_IDLE);
    }
}

void queue_tell_untold(QueueCore *q)
{
    uint8_t untold = q->untold;
    q->untold = 0;
    if (untold & UNTOLD_IDLE) {
        queue_tell_if_idle(q);
    }
    if (untold & UNTOLD_REGIONS && !device_tell_idle_regions(q)) {
        queue_tell_later(q, UNTOLD_REGIONS);
    }
    if (untold & UNTOLD_HOLDERS) {
        given_up_tell(q);
    }
}

/* Letting go of memory may run Python code, which may do anything; so the request leaves the queue's books first. */
void queue_outcome(Request *r)
{
    QueueCore *q = r->queue;
    bool linked = r->linked;
    assert(r->outstanding == 0 && r->issued == 0);
    if (linked) {
        queue_unlink(q, r);
    }
    request_drop_parts(r, 0);
    request_drop_pins(r);
    if (r->state == PENDING) {
        if (r->cancel_requested) {
            request_settle(r, CANCELLED);
        } else if (r->batch) {
            batch_settle(r);
        } else if (r->item.error || r->item.exception) {
            if (linked && zeroes_instead(r)) {
                queue_link(q, r);
                queue_append_backlog(q, &r->first_part); /* it is given bounce memory first, should it need some */
                queue_go_on_next_turn(q);
                Py_DECREF(r);
                return;
            }
            queue_count_failure(q, r->operation, &r->item);
            request_settle(r, FAILED);
        } else {
            q->counters.completed[r->operation]++;
            request_settle(r, FINISHED);
        }
    } else if (r->given_up) {
        given_up_end(r);
    }
    batch_drop_items(r);
    if (linked) {
        queue_tell_if_idle(q);
        Py_DECREF(r);
    }
}
