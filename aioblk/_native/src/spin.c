/*
 * Spinning: looking again instead of sleeping. That is cheaper where waking up takes longer than the device does. Where the
 * device needs the processor that looks, or takes longer anyway, it only costs: each time it was in vain, it is left out for
 * twice as long as the time before. Where the device has plenty to do, its completions are worth waiting for: taken one by one
 * as they come, they make many small submissions of a few large ones.
 */
#include "rooms.h"

#define PENALTY_MAX 1023           /* flushes without spinning after spinning in vain, at most */
#define AUTOMATIC_PENALTY_MAX 8191 /* the same where nobody has asked for it */
#define AUTOMATIC_NS 100000u       /* about what waking a processor takes */
#define MOMENT_NS 5000u            /* of it, in one turn of the loop */
#define DEPTH_MAX 64               /* parts with the device, beyond which it gains nothing */

static bool may_spin(QueueCore *q)
{
    if (q->device_count > DEPTH_MAX) {
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

/* As the user has said: for at most spin_ns, in one piece. */
static int spin_in_one_piece(QueueCore *q)
{
    if (!may_spin(q)) {
        return 0;
    }
    int count = look_again(q, clock_now_ns() + q->spin_ns);
    if (count > 0) {
        q->spin_penalty = 0;
    } else {
        was_in_vain(q, PENALTY_MAX);
    }
    return count;
}

void queue_spin_has_paid(QueueCore *q)
{
    q->spin_until = 0;
    q->spin_penalty /= 4;
}

/* As the queue has learnt: a moment in each turn of the loop, so that neither callbacks nor other descriptors have to wait. */
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

int queue_spin(QueueCore *q)
{
    return q->spin_ns > 0 ? spin_in_one_piece(q) : q->spins_by_itself ? spin_by_turns(q) : 0;
}
