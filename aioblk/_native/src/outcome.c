/* Requests in flight, from link to unlink, and what they come to in the end. */
#include "queue.h"

void queue_link(QueueCore *q, Request *r)
{
    Py_INCREF(r);
    r->linked = true;
    r->previous = NULL;
    r->following = q->in_flight;
    if (q->in_flight) {
        q->in_flight->previous = r;
    }
    q->in_flight = r;
    q->in_flight_count += r->weight;
}

/* Nobody else can reach the request from here on, whatever Python code runs. Its reference goes to the caller. */
void queue_unlink(QueueCore *q, Request *r)
{
    *(r->previous ? &r->previous->following : &q->in_flight) = r->following;
    if (r->following) {
        r->following->previous = r->previous;
    }
    r->linked = false;
    r->previous = r->following = NULL;
    q->in_flight_count -= r->weight;
}

void queue_tell_later(QueueCore *q, uint8_t hook)
{
    q->untold |= hook;
    queue_go_on_next_turn(q);
}

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
            if (linked && zeroes_instead(q, r)) {
                Py_DECREF(r); /* it has been linked again */
                return;
            }
            q->counters.failed++;
            request_settle(r, FAILED);
        } else {
            q->counters.completed++;
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
