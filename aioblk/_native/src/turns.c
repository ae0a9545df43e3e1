/*
 * Turns: the entrances to a queue from outside.
 *
 *   flush      the loop calls it once per turn in which something was submitted: do_io submits, and reaps at once;
 *   on_event   the loop calls it when the completion eventfd is readable;
 *   wait       a thread calls it in their stead where there is no loop.
 *
 * A flush that has reaped something reads the eventfd and reaps again: cheaper than letting the loop find the stale event.
 *
 * What is submitted by those whom a turn wakes goes to the device at the end of the same turn, and who is done by then is
 * woken in it as well: a round. So the turn goes on with what it has brought about itself, unless another callback is ready
 * or its time is over, instead of leaving that to the loop's next, which has nothing else to do than to come back here.
 */
#include "rooms.h"

#define TURN_NS 250000u /* in which parts are handed over between two tasks, and rounds begin */
#define ROUNDS_MAX 64   /* of both together, should the clock stand still */

/* Submits what can be, takes what has completed, and looks again where that pays. Returns how many completions. */
static int exchange(QueueCore *q)
{
    q->counters.flushes++;
    queue_issue_backlog(q);
    uint32_t parts = q->unflushed_parts + q->carried;
    if (q->spin_until == 0 || parts > 0) { /* or else it only looks again */
        q->last_batch = parts;
    }
    q->carried = 0;
    int count = queue_reap(q);
    pace_note_flush(q, parts);
    if (count == 0 && q->device_count > 0) {
        count = queue_spin(q);
    }
    if (q->spin_until > 0 && (count > 0 || q->device_count == 0)) {
        queue_spin_has_paid(q);
    }
    return count;
}

/* Its event is still to be read. */
static void reap_again(QueueCore *q)
{
    if (queue_usable(q)) {
        queue_reset_event(q);
        queue_reap(q);
    }
}

/* Between two tasks, the device is given what it has not got yet. */
static void kick(QueueCore *q)
{
    if (queue_usable(q)) {
        queue_issue_backlog(q);
        q->carried += q->unflushed_parts;
        queue_reap(q);
    }
}

/* Those whom this turn has woken have submitted, and the loop has nothing else to call. */
static bool wants_round(QueueCore *q)
{
    return q->flush_owed && !q->flush_scheduled && !q->ready_head && queue_usable(q) && !loop_has_others(q);
}

static void tell(QueueCore *q)
{
    if (q->room_made) {
        q->room_made = false;
        if (q->waiting > 0 && !call_hook(q, q->on_room, NULL)) {
            q->room_made = true;
            queue_go_on_next_turn(q);
        }
    }
    if (q->untold) {
        queue_tell_untold(q);
    }
}

/*
 * The event of what rounds have taken is still to be read. Where a flush follows, it reaps; and so it does where an exception
 * is on its way, beside which nobody may run.
 */
static void end_rounds(QueueCore *q, bool took, bool raises)
{
    bool flushes = q->flush_owed || (took && raises);
    if (took && queue_usable(q)) {
        queue_reset_event(q);
        if (!flushes) {
            queue_reap(q);
        }
    }
    if (flushes || q->ready_head || (q->room_made && q->waiting > 0) || q->untold) {
        q->flush_owed = false;
        queue_go_on_next_turn(q);
    }
}

/* Wakes who waits for what has completed, as long as there is time; of all others the loop is to have its turn. */
static int wake(QueueCore *q)
{
    uint64_t end = 0;
    int status, left = ROUNDS_MAX, completions = 0;
    q->turn_flushes = q->rounds;
    q->pace.may_kick = q->pace.kicks;
    tell(q);
    while ((status = queue_wake_ready(q, true)) == KICK_WANTED || (status == 0 && wants_round(q))) {
        uint64_t now = clock_now_ns();
        end = end ? end : now + TURN_NS;
        bool in_time = now < end && --left > 0;
        q->pace.may_kick = q->pace.kicks && in_time;
        if (status == KICK_WANTED) {
            kick(q);
        } else if (in_time) {
            q->flush_owed = false;
            completions += exchange(q);
        } else {
            break;
        }
        tell(q);
    }
    q->turn_flushes = false;
    end_rounds(q, completions > 0, status < 0);
    return status;
}

/* The end of every entrance from the loop: what can go on goes on. */
static PyObject *finish_turn(QueueCore *q)
{
    int status = wake(q);
    /* Where the backlog waits for room in the device, an event tells; a flush per turn would be a busy loop. */
    bool silent = q->completion_fd < 0 && q->device_count > 0; /* a poll queue tells nothing by itself */
    if (queue_usable(q) && (silent || q->more_to_reap || (q->backlog_head && queue_has_room(q, q->backlog_head)))) {
        queue_go_on_next_turn(q);
    }
    if (status < 0 || queue_raise_put_off(q) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *queue_flush(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    q->flush_scheduled = false;
    queue_new_turn(q);
    if (q->held_head && q->fork_generation == fork_generation) {
        given_up_release(q);
    }
    if (queue_usable(q)) {
        if (exchange(q) > 0) {
            reap_again(q);
        }
    } else if (q->sweep_due && q->fork_generation == fork_generation) {
        queue_issue_backlog(q); /* of a suspended queue: what was cancelled leaves it, nothing is issued */
    }
    return finish_turn(q);
}

PyObject *queue_on_event(QueueCore *q, PyObject *Py_UNUSED(ignored))
{
    if (!queue_usable(q)) {
        Py_RETURN_NONE;
    }
    queue_new_turn(q);
    q->counters.events++;
    queue_reset_event(q);
    if (q->held_head) {
        given_up_release(q); /* the loop may have taken no flush */
    }
    queue_issue_backlog(q);
    q->carried += q->unflushed_parts;
    if (queue_reap(q) == 0) {
        q->counters.empty_events++;
    }
    return finish_turn(q);
}

/* ---- without a loop -------------------------------------------------------------------------------------- */

/* Signals are looked at this often while wait() blocks. */
#define WAIT_SLICE_NS 100000000u
/* And other queues this often, where one of them has given up what a request waits for. */
#define HELD_SLICE_NS 1000000u

/* Drives a queue that has no loop until a request is done; without one, until anything has completed. */
PyObject *queue_wait(QueueCore *q, PyObject *args)
{
    PyObject *object;
    double seconds;
    if (!PyArg_ParseTuple(args, "Od", &object, &seconds)) {
        return NULL;
    }
    Request *r = object == Py_None ? NULL : queue_own_request(q, object);
    if (!r && object != Py_None) {
        return NULL;
    }
    bool here = !queue_has_loop(q) && q->thread == PyThread_get_thread_ident();
    bool told = here && queue_abandon_if_told(q);
    if (here && (r ? r->state != PENDING : told)) {
        return queue_raise_put_off(q) < 0 ? NULL : Py_NewRef(Py_True);
    }
    if (!here || !queue_usable(q)) {
        PyErr_SetString(PyExc_RuntimeError, "wait() is for a usable queue without a loop, in its own thread");
        return NULL;
    }
    uint64_t end = seconds >= 0 && seconds < 1e9 ? clock_now_ns() + (uint64_t)(seconds * 1e9) : UINT64_MAX, now;
    int count = 0, status = 0;
    bool done = false;
    Py_XINCREF(r);
    do { /* submits and looks once, however little time there is */
        if (q->held_head) {
            given_up_release(q);
        }
        queue_issue_backlog(q);
        if (q->device_count == 0 && !q->held_head) {
            break;
        }
        now = clock_now_ns();
        uint64_t left = now < end ? end - now : 0;
        uint64_t slice = left < WAIT_SLICE_NS ? left : WAIT_SLICE_NS;
        if (q->held_head) {
            slice = slice < HELD_SLICE_NS ? slice : HELD_SLICE_NS;
        }
        if (q->device_count > 0) {
            uint32_t parts = q->unflushed_parts + q->carried;
            q->carried = 0;
            int taken = queue_reap_blocking(q, slice);
            pace_note_flush(q, parts);
            pace_count(&q->pace, taken);
            count += taken;
        } else {
            clock_doze(slice);
        }
        if (q->untold) {
            queue_tell_untold(q);
        }
        (void)queue_abandon_if_told(q);
        status = PyErr_CheckSignals();
        done = r ? r->state != PENDING : count > 0;
    } while (status == 0 && !q->put_off && !done && queue_usable(q) && now < end);
    done = r ? r->state != PENDING : count > 0;
    Py_XDECREF(r);
    return status < 0 || queue_raise_put_off(q) < 0 ? NULL : PyBool_FromLong(done);
}
