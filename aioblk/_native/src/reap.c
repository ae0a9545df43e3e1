/*
 * Reaping: do_io submits what was issued and takes what has completed. Two of the entrances to a queue are here:
 *
 *   flush      the loop calls it once per turn in which something was submitted: do_io submits, and reaps at once;
 *   on_event   the loop calls it when the completion eventfd is readable;
 *
 * and wait() in their stead where there is no loop.
 *
 * The eventfd must be read before do_io, or an event that arrives in between is lost (libblkio(3), "Event-driven
 * mode"). A flush that has reaped something therefore reads the eventfd and calls do_io again: cheaper than letting the
 * loop find the stale event.
 */
#include "rooms.h"

#include <errno.h>
#include <unistd.h>

#define REAP_MAX 256          /* completions per do_io */
#define REAP_ROUNDS 4         /* do_io calls per turn of the loop */
#define KICKS_NS 250000u       /* of a turn, in which parts are handed over between two tasks */
#define SPIN_PENALTY_MAX 1023 /* flushes without spinning after spinning in vain, at most */
#define AUTOMATIC_PENALTY_MAX 8191 /* the same where nobody has asked for it */
#define AUTOMATIC_NS 100000u  /* about what waking a processor takes */
#define MOMENT_NS 5000u       /* of it, in one turn of the loop */
#define SPIN_DEPTH_MAX 64     /* parts with the device, beyond which spinning gains nothing: see spin() */

bool queues_in_several_threads;

void queue_reset_event(QueueCore *q)
{
    uint64_t ignored;
    if (q->completion_fd >= 0 && read(q->completion_fd, &ignored, sizeof(ignored)) < 0) {
        q->counters.empty_events++;
    }
}

/* do_io refused: the device is of no more use. The Python side is told, and fails what is in flight. */
static void queue_broken(QueueCore *q, int error)
{
    PyObject *number = PyLong_FromLong(error);
    ENSURE(number); /* numbers as small as an errno exist already */
    if (!call_hook(q, q->on_broken, number)) {
        queue_go_on_next_turn(q); /* which finds the device as broken */
    }
    Py_DECREF(number);
}

/* Whether the memory map has been changed since the part was issued, or is being changed. */
static bool was_disturbed(const QueueCore *q, const Part *part)
{
    uint64_t turns = __atomic_load_n(&q->device->map_turns, __ATOMIC_SEQ_CST);
    return (uint32_t)turns != part->map_turns || turns % 2 == 1;
}

/* What is done may run Python code, which may give the device up for lost: the rest of its completions is then void. */
static void take_completions(QueueCore *q, uint32_t turns, const struct blkio_completion *completions, int count)
{
    for (int i = 0; i < count && q->blkioq_turns == turns; i++) {
        Part *part = completions[i].user_data;
        assert(q->device_count > 0 && part->request->issued > 0);
        q->device_count--;
        if (part->vector) {
            q->more_segments -= part->vector->iov_count - 1;
        }
        part->request->issued--;
        if (completions[i].ret == -EIO && was_disturbed(q, part)) {
            queue_append_backlog(q, part); /* it is made again */
            queue_go_on_next_turn(q);
            continue;
        }
        q->counters.parts++;
        queue_part_done(q, part, completions[i].ret, completions[i].error_msg);
    }
}

/*
 * The kernel executes cached reads, and takes over what is written, within the call. Of so many bytes that takes longer than
 * giving the GIL away and getting it back: meanwhile another loop, in another thread, goes on. Below, and where the
 * transfer is left to a process at the other end, both loops would wait for each other more often than they gain.
 */
#define BYTES_WITHOUT_GIL (128u << 10)

static int do_io(QueueCore *q, struct blkio_completion *completions)
{
    struct blkioq *b = q->blkioq;
#ifndef Py_GIL_DISABLED
    if (q->unflushed_bytes >= BYTES_WITHOUT_GIL && queues_in_several_threads && !q->device->needs_regions) {
        int count;
        Py_BEGIN_ALLOW_THREADS
        count = blkioq_do_io(b, completions, 0, REAP_MAX, NULL);
        Py_END_ALLOW_THREADS
        return count;
    }
#endif
    return blkioq_do_io(b, completions, 0, REAP_MAX, NULL);
}

/* Submits what was issued and takes what has completed; returns how many completions. */
int queue_reap(QueueCore *q)
{
    struct blkio_completion completions[REAP_MAX];
    int total = 0;
    q->more_to_reap = true;
    for (int round = 0; round < REAP_ROUNDS && q->more_to_reap && q->blkioq; round++) {
        uint32_t turns = q->blkioq_turns;
        int count = do_io(q, completions);
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
        take_completions(q, turns, completions, count);
        total += count;
        q->more_to_reap = count == REAP_MAX;
    }
    return total;
}

/* Blocks, without the GIL, until at least one part has completed or timeout_ns have passed; with 0 it only looks. */
static int reap_blocking(QueueCore *q, uint64_t timeout_ns)
{
    struct blkio_completion completions[REAP_MAX];
    struct timespec timeout = {timeout_ns / 1000000000u, timeout_ns % 1000000000u};
    uint32_t turns = q->blkioq_turns;
    int count, least = timeout_ns > 0;
    Py_BEGIN_ALLOW_THREADS
    count = blkioq_do_io(q->blkioq, completions, least, REAP_MAX, least ? &timeout : NULL);
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
    take_completions(q, turns, completions, count);
    return count;
}

/*
 * Looking again instead of sleeping: cheaper where waking up takes longer than the device does. Where the device needs the
 * processor that looks, or takes longer anyway, it only costs: each time it was in vain, it is left out for twice as long as
 * the time before. Where the device has plenty to do, its completions are worth waiting for: taken one by one as they come,
 * they make many small submissions of a few large ones.
 */
static bool may_spin(QueueCore *q)
{
    if (q->device_count > SPIN_DEPTH_MAX) {
        return false;
    }
    if (q->spin_pause > 0) {
        q->spin_pause--;
        return false;
    }
    return true;
}

static int look_again(QueueCore *q, uint64_t end)
{
    int count = 0;
    while (count == 0 && q->device_count > 0 && clock_now_ns() < end) {
        count = queue_reap(q);
    }
    return count;
}

static void was_in_vain(QueueCore *q, uint32_t most)
{
    q->spin_penalty = q->spin_penalty < most ? 2 * q->spin_penalty + 1 : most;
    q->spin_pause = q->spin_penalty;
}

/* For at most spin_ns. */
static int spin(QueueCore *q)
{
    if (!may_spin(q)) {
        return 0;
    }
    int count = look_again(q, clock_now_ns() + q->spin_ns);
    if (count > 0) {
        q->spin_penalty = 0;
    } else {
        was_in_vain(q, SPIN_PENALTY_MAX);
    }
    return count;
}

static void has_paid(QueueCore *q)
{
    q->spin_until = 0;
    q->spin_penalty /= 4;
}

/*
 * By itself: a moment in each turn of the loop, if nobody else is ready, so that neither callbacks nor other descriptors have
 * to wait.
 */
static int spin_by_turns(QueueCore *q)
{
    uint64_t now = clock_now_ns();
    if (q->spin_until == 0) {
        if (!may_spin(q)) {
            return 0;
        }
        q->spin_until = now + AUTOMATIC_NS;
    }
    int count = 0;
    if (now < q->spin_until) {
        count = loop_has_others(q) ? 0 : look_again(q, now + MOMENT_NS);
        if (count == 0) {
            queue_go_on_next_turn(q);
        }
    } else {
        q->spin_until = 0;
        was_in_vain(q, AUTOMATIC_PENALTY_MAX);
    }
    return count;
}

/* Nothing has come of what the device has. */
static int wait_actively(QueueCore *q)
{
    return q->spin_ns > 0 ? spin(q) : q->spins_by_itself ? spin_by_turns(q) : 0;
}

/*
 * Wakes who waits for what has completed. Where that pays, what they submit is handed over in the middle; whose requests are done
 * by then is woken as well, as long as there is time: the loop's others are to have their turn.
 */
static int wake(QueueCore *q)
{
    uint64_t end = 0;
    int status;
    q->pace.may_kick = q->pace.kicks;
    while ((status = queue_wake_ready(q, true)) == KICK_WANTED) {
        uint64_t now = clock_now_ns();
        end = end ? end : now + KICKS_NS;
        q->pace.may_kick = now < end;
        if (queue_usable(q)) {
            queue_issue_backlog(q);
            q->carried += q->unflushed_parts;
            queue_reap(q);
        }
    }
    return status;
}

/* The end of every entrance from the loop: what can go on goes on. */
static PyObject *finish_turn(QueueCore *q)
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
    q->counters.flushes++;
    if (q->held_head && q->fork_generation == fork_generation) {
        given_up_release(q);
    }
    if (queue_usable(q)) {
        queue_issue_backlog(q);
        uint32_t parts = q->unflushed_parts + q->carried;
        if (q->spin_until == 0 || parts > 0) { /* or else it only looks again */
            q->last_batch = parts;
        }
        q->carried = 0;
        int count = queue_reap(q);
        q->pace.flushes++;
        q->pace.flushes_done += q->device_count == 0;
        if (count == 0 && q->device_count > 0) {
            count = wait_actively(q);
        }
        if (q->spin_until > 0 && (count > 0 || q->device_count == 0)) {
            has_paid(q);
        }
        if (count > 0 && queue_usable(q)) {
            queue_reset_event(q);
            queue_reap(q);
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
        Py_RETURN_TRUE;
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
            count += reap_blocking(q, slice);
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
