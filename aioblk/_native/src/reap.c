/*
 * Reaping: do_io submits what was issued and takes what has completed.
 *
 * The eventfd must be read before do_io, or an event that arrives in between is lost (libblkio(3), "Event-driven mode").
 */
#include "rooms.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAP_MAX 256  /* completions per do_io */
#define REAP_ROUNDS 4 /* do_io calls per turn of the loop */

bool queues_in_several_threads;

/*
 * It does not wait, whatever the descriptor's flags say: a backend has the same open file, and may change them, and take the
 * event for itself. Where the kernel cannot be told so for one call, the flags have to do.
 */
void queue_reset_event(QueueCore *q)
{
    uint64_t ignored;
    struct iovec whole = {&ignored, sizeof(ignored)};
    if (q->completion_fd < 0 || preadv2(q->completion_fd, &whole, 1, -1, RWF_NOWAIT) >= 0) {
        return;
    }
    if (errno == EAGAIN || read(q->completion_fd, &ignored, sizeof(ignored)) < 0) {
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
            part->request->age = 0;
            queue_go_on_next_turn(q);
            continue;
        }
        q->counters.parts++;
        if (__builtin_expect(part_riders(part) > 0, 0)) {
            queue_merged_done(q, part, completions[i].ret, completions[i].error_msg);
        } else {
            queue_part_done(q, part, completions[i].ret, completions[i].error_msg);
        }
    }
}

/*
 * The kernel executes cached reads, and takes over what is written, within the call. Of so many bytes that takes longer than
 * giving the GIL away and getting it back (BYTES_WITHOUT_GIL): meanwhile another loop, in another thread, goes on. Below, and
 * where the transfer is left to a process at the other end, both loops would wait for each other more often than they gain. A
 * queue without a loop may be given up by another thread while its own does not wait.
 */
static int do_io(QueueCore *q, struct blkio_completion *completions)
{
    struct blkioq *b = q->blkioq;
#ifndef Py_GIL_DISABLED
    bool long_enough = q->unflushed_bytes >= BYTES_WITHOUT_GIL && !q->device->needs_regions;
    if (long_enough && queues_in_several_threads && queue_has_loop(q)) {
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
    if (q->fresh > 0) {
        sight_hand_over(q);
    }
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
        if (count > 0 && q->watched) {
            q->taken_at = clock_now_ns();
        }
        take_completions(q, turns, completions, count);
        total += count;
        q->more_to_reap = count == REAP_MAX;
    }
    return total;
}

/* Blocks, without the GIL, until at least one part has completed or timeout_ns have passed; with 0 it only looks. */
int queue_reap_blocking(QueueCore *q, uint64_t timeout_ns)
{
    struct blkio_completion completions[REAP_MAX];
    struct timespec timeout = {timeout_ns / 1000000000u, timeout_ns % 1000000000u};
    uint32_t turns = q->blkioq_turns;
    int count, least = timeout_ns > 0;
    if (q->fresh > 0) {
        sight_hand_over(q);
    }
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
    if (count > 0 && q->watched) {
        q->taken_at = clock_now_ns();
    }
    take_completions(q, turns, completions, count);
    return count;
}
