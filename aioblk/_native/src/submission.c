/*
 * Submission, the third entrance to a queue: a planned request is linked and its parts are issued to libblkio, or put on
 * the backlog, or wait for bounce memory. One flush per turn of the loop carries them to the device.
 */
#include "rooms.h"

/*
 * Submitting at once saves a turn of the loop when nothing else is going on, and costs a system call per request when
 * there is. "Nothing else" is: nothing with the device, one request in the previous flush, and the previous inline
 * completion already looked at (else the caller is collecting requests, as gather() does).
 */
static bool idle(const QueueCore *q)
{
    return q->device_count == 0 && !q->backlog_head && !q->flush_scheduled && !q->flush_owed && q->inline_budget > 0 &&
           !OBSERVE(q->inline_request) && q->completion_fd >= 0 && q->blkioq;
}

static bool alone(const QueueCore *q) { return q->last_batch <= 1 && idle(q); }

/*
 * A slice of the budget is used up: whether there is another one. What a unit takes is the machine's and the caller's: on a
 * slow machine, the whole budget would last for milliseconds.
 */
static __attribute__((noinline, cold)) bool begin_slice(QueueCore *q)
{
    uint64_t now = clock_now_ns();
    q->inline_since = q->inline_since ? q->inline_since : now;
    int rest = q->inline_rest + q->inline_budget;
    if (rest <= 0 || now - q->inline_since > INLINE_NS) {
        return false;
    }
    q->inline_budget = rest < INLINE_SLICE ? rest : INLINE_SLICE;
    q->inline_rest = rest - q->inline_budget;
    return true;
}

/*
 * Submits, and reaps what completes within the call. Where the budget has been used up, who awaits the request lets
 * others have their turn first, although it is done: cheaper than a turn that submits.
 *
 * A completion taken inline leaves its event behind, for which the loop would wake up in vain. The first few of a turn
 * take it away; where many follow each other without a turn between them, one stale event for all is cheaper.
 */
static void submit_inline(QueueCore *q, Request *r)
{
    int cost = q->carried + q->unflushed_parts + q->unflushed_bytes / BYTES_PER_UNIT;
    queue_reap(q);
    if (q->more_to_reap) {
        queue_go_on_next_turn(q); /* of what an interrupted do_io has not submitted, no event will tell */
    }
    if (r->state == PENDING) {
        return;
    }
    bool resets = q->inline_since == 0;
    q->inline_budget -= cost;
    if (q->inline_budget <= 0 && !begin_slice(q)) {
        r->turn = TURN_DUE;
        resets = true;
    }
    if (resets && q->device_count == 0) {
        queue_reset_event(q);
    }
    q->counters.inline_completions++;
    r->inline_completion = true;
    PUBLISH(q->inline_request, r);
}

static void submit_now(QueueCore *q, Request *r)
{
    queue_issue(q, &r->first_part);
    r->admitted = 1;
    submit_inline(q, r);
    if (r->state == PENDING && (q->spin_ns > 0 || q->spins_by_itself)) {
        if (q->spin_pause > 0) {
            q->spin_pause--;
        } else {
            queue_go_on_next_turn(q); /* the flush spins, after others have had their turn */
        }
    }
    queue_wake_others_quietly(q);
}

/* A batch is one system call, whatever went before. */
static void submit_batch_now(QueueCore *q, Request *batch)
{
    uint32_t parts = q->carried + q->unflushed_parts;
    submit_inline(q, batch);
    q->carried = 0; /* it was nobody's but its own */
    pace_note_flush(q, parts);
    if (batch->state != PENDING) { /* or else it counts when it is woken */
        pace_count(&q->pace, batch->weight);
    }
    if (batch->state == PENDING && (q->backlog_head || q->room_made)) {
        queue_go_on_next_turn(q);
    }
}

/* Of a queue without a loop nothing goes to the device before its thread waits, but what a kick carries: see pace.c. */
static void kick_without_loop(QueueCore *q)
{
#ifndef Py_GIL_DISABLED /* or else another thread may be giving the queue up, as long as its own does not wait */
    if (q->pace.kicks && !queue_has_loop(q) && pace_wants_kick(q)) {
        queue_issue_backlog(q);
        q->carried += q->unflushed_parts;
        pace_count(&q->pace, queue_reap(q));
    }
#endif
}

/*
 * Since the caller was checked: preparing, and telling of the request, may run Python code, which may have closed the queue,
 * found the device lost, or forked.
 */
static __attribute__((noinline, cold)) int refuse_late(QueueCore *q, Request *r)
{
    const char *reason = q->fork_generation != fork_generation ? "fork" : OBSERVE(q->closed) ? q->closed_reason : "lost";
    (void)device_refuse(q->device, reason, r->operation, UINT64_MAX, UINT64_MAX);
    sight_refuse(r);
    return -1;
}

/* Who watches is told. False: it is not to be submitted any more. */
static inline bool begin(QueueCore *q, Request *r) { return !q->watched || sight_begin(q, r); }

int queue_submit(QueueCore *q, Request *r)
{
    assert(r->queue == q && !r->linked);
    assert(r->state == PENDING && r->part_count > 0);
    if (!begin(q, r)) {
        return r->state == PENDING ? refuse_late(q, r) : 0;
    }
    if (given_up_keeps(q, r)) {
        return 0;
    }
    if (r->part_count == 1 && alone(q) && q->waiting == 0 && queue_prepare_part(q, &r->first_part)) {
        q->counters.submitted++;
        r->outstanding = 1;
        queue_link(q, r);
        submit_now(q, r);
        return 0;
    }
    bool now = r->batch && idle(q);
    if (!now && queue_schedule_flush_soon(q) < 0) {
        sight_refuse(r);
        return -1;
    }
    if (!q->blkioq && !q->suspended) {
        return refuse_late(q, r);
    }
    if (request_start(q, r) < 0) {
        (void)request_cancel_io(r, NULL); /* the caller gets the exception instead */
        return -1;
    }
    if (now) {
        submit_batch_now(q, r);
    }
    kick_without_loop(q);
    queue_wake_others_quietly(q);
    return 0;
}

/* Work outside libblkio, done by the Python side on a thread of its own: it ends with complete(). */
int queue_submit_external(QueueCore *q, Request *r, PyObject *hook)
{
    if (!begin(q, r) || !queue_usable(q)) { /* what the hook would use may belong to somebody else by now */
        return r->state == PENDING ? refuse_late(q, r) : 0;
    }
    if (given_up_keeps(q, r)) {
        return 0;
    }
    q->counters.submitted++;
    r->outstanding = 1;
    queue_link(q, r);
    sight_hand_over_now(q, r);
    if (queue_call_external(r, hook) == 0) {
        return 0;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (r->linked) { /* still, whatever the hook has done */
        r->cancel_requested = true; /* the caller gets the hook's exception, not the request */
        Py_CLEAR(r->origin);        /* where its message would be */
        q->counters.cancelled += r->weight;
        r->outstanding = 0;
        queue_outcome(r);
    }
    PyErr_Restore(type, value, traceback);
    return -1;
}
