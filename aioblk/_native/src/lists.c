/*
 * Lists: every chain hangs on its queue, where loss and recall see it whole. Pointers only: nothing in here runs Python
 * code, and so nothing else changes a list that is being changed.
 */
#include "rooms.h"

/* ---- in flight: from link to unlink, newest first ---------------------------------------------------------- */

void queue_link(QueueCore *q, Request *r)
{
    assert(r->queue == q && !r->linked);
    assert(!q->in_flight || !q->in_flight->previous);
    Py_INCREF(r);
    r->linked = true;
    r->previous = NULL;
    r->following = q->in_flight;
    if (q->in_flight) {
        q->in_flight->previous = r;
    }
    q->in_flight = r;
    COUNT(q->in_flight_count, r->weight);
}

/* Nobody else can reach the request from here on, whatever Python code runs. Its reference goes to the caller. */
void queue_unlink(QueueCore *q, Request *r)
{
    assert(r->queue == q && r->linked);
    assert(q->in_flight_count >= r->weight);
    *(r->previous ? &r->previous->following : &q->in_flight) = r->following;
    if (r->following) {
        r->following->previous = r->previous;
    }
    r->linked = false;
    r->previous = r->following = NULL;
    COUNT(q->in_flight_count, -(size_t)r->weight);
}

/* ---- the backlog: parts that wait for the device --------------------------------------------------------------- */

void queue_append_backlog(QueueCore *q, Part *part)
{
    assert(part->request->queue == q && part->request->linked);
    assert(!q->backlog_head == !q->backlog_tail);
    part->next = NULL;
    if (q->backlog_tail) {
        q->backlog_tail->next = part;
    } else {
        q->backlog_head = part;
    }
    q->backlog_tail = part;
}

/* The first one leaves it. */
void queue_take_backlog(QueueCore *q)
{
    assert(q->backlog_head && !q->backlog_tail->next);
    q->backlog_head = q->backlog_head->next;
    if (!q->backlog_head) {
        q->backlog_tail = NULL;
    }
}

/* Parts that nobody wants any more leave it from anywhere, to be ended: they need not wait for those before them. */
void queue_sort_backlog(QueueCore *q)
{
    Part *part = q->backlog_head, *next, **dropped = &q->dropped;
    while (*dropped) {
        dropped = &(*dropped)->next;
    }
    q->sweep_due = false;
    q->backlog_head = q->backlog_tail = NULL;
    for (; part; part = next) {
        next = part->next;
        if (part_is_pointless(part)) {
            part->next = NULL;
            *dropped = part;
            dropped = &part->next;
        } else {
            queue_append_backlog(q, part);
        }
    }
}

Part *queue_take_dropped(QueueCore *q)
{
    Part *part = q->dropped;
    if (part) {
        q->dropped = part->next;
    }
    return part;
}

void queue_forget_parts(QueueCore *q)
{
    q->backlog_head = q->backlog_tail = q->dropped = NULL;
    q->device_count = q->more_segments = 0;
    q->unflushed_parts = 0;
    q->unflushed_bytes = 0;
}

/* ---- held: requests that wait for what was given up, by their first parts ----------------------------------------- */

void queue_hold(QueueCore *q, Request *r)
{
    assert(r->queue == q && r->linked && r->admitted == 0);
    assert(!q->held_head == (q->held_count == 0));
    Py_INCREF(r);
    r->held = true;
    r->first_part.next = NULL;
    if (q->held_tail) {
        q->held_tail->next = &r->first_part;
    } else {
        q->held_head = &r->first_part;
    }
    q->held_tail = &r->first_part;
    q->held_count++;
}

/* A new reference, or NULL. */
Request *queue_take_held(QueueCore *q)
{
    Part *part = q->held_head;
    assert(!part == (q->held_count == 0));
    if (!part) {
        return NULL;
    }
    q->held_head = part->next;
    q->held_tail = part->next ? q->held_tail : NULL;
    q->held_count--;
    part->request->held = false;
    return part->request;
}

/* ---- ready: requests whose outcome is known and whose waiters are not woken yet ------------------------------------ */

void queue_ready(QueueCore *q, Request *r)
{
    assert(r->queue == q && r->state != PENDING);
    assert(!r->ready_next && q->ready_tail != r); /* it lies there once */
    Py_INCREF(r);
    r->ready_next = NULL;
    if (q->ready_tail) {
        q->ready_tail->ready_next = r;
    } else {
        q->ready_head = r;
    }
    q->ready_tail = r;
}

Request *queue_take_ready(QueueCore *q)
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

void queue_put_back_ready(QueueCore *q, Request *r)
{
    r->ready_next = q->ready_head;
    q->ready_head = r;
    if (!q->ready_tail) {
        q->ready_tail = r;
    }
}
