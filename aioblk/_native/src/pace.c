/*
 * Pace: whether parts are handed to the device in the middle of a turn.
 *
 * A turn wakes many tasks, each of which submits its next request, and the device sees nothing of them before the turn ends.
 * Where it works beside us, on a processor of its own, it stands still meanwhile; there, what has been submitted is handed
 * over between two tasks, and between the parts of a batch: a kick. Where the backend needs the processor that we run on, or
 * the kernel does the work within the call, kicks make many small submissions of a large one, and cost up to half of the
 * throughput.
 *
 * No single kick shows which of the two it is: whom it wakes needs longer than a turn to wake up. So a queue tries. For as
 * many requests it does what it has done so far, the other, the other, and the first again, so that a trend does not favour
 * the other, and goes on with what took less time: each at its best, since whatever else the program does only adds. Trials
 * come less often as long as they say the same.
 */
#include "rooms.h"

#define TRIAL_STEPS 4
#define PAUSE_MIN 8            /* epochs from one trial to the next, at least */
#define PAUSE_MAX 1024         /* and at most */
#define SLOW_NS 20000u         /* for each request: then it is not Python that the device waits for */
#define PERCENT_BETTER 4       /* than before, to be done instead */

/* Two at least, and as many as it still has: it is given work before it has none, and not one by one. */
bool pace_wants_kick(const QueueCore *q)
{
    return q->unflushed_parts >= 2 && 2 * (size_t)q->unflushed_parts >= q->device_count && queue_usable(q);
}

static void begin_step(Pace *p, unsigned step)
{
    bool other = step == 2 || step == 3;
    p->step = step;
    p->kicks = p->pays != other;
}

static void end_trial(Pace *p)
{
    uint64_t usual = p->took[0], other = p->took[1];
    bool better = other * 100 < usual * (100 - PERCENT_BETTER);
    if (!better) {
        p->pause = p->pause < PAUSE_MAX ? 2 * p->pause : PAUSE_MAX;
    } else if (p->doubted) {
        p->pays = !p->pays;
        p->pause = PAUSE_MIN;
    }
    p->doubted = better && !p->doubted;
    p->left = p->doubted ? 0 : p->pause; /* what contradicts is looked at again at once */
    begin_step(p, 0);
}

/* Where everything is done within the call that submits it, there is nobody to work beside us. */
static bool is_done_inside(const Pace *p) { return 2 * p->flushes_done > p->flushes; }

static void end_epoch(Pace *p)
{
    bool inside = !p->pays && is_done_inside(p);
    uint64_t requests = p->woken; /* a batch may have brought many more than an epoch has */
    p->woken = p->flushes = p->flushes_done = 0;
    if (p->step == 0) {
        if (p->left > 0 || inside) {
            p->left -= p->left > 0;
            return;
        }
        p->took[0] = p->took[1] = UINT64_MAX;
        p->began = clock_now_ns();
        begin_step(p, 1);
        return;
    }
    uint64_t now = clock_now_ns(), took = (now - p->began) * PACE_EPOCH / requests;
    uint64_t *least = &p->took[p->kicks != p->pays];
    p->began = now;
    *least = took < *least ? took : *least;
    if (took > (uint64_t)PACE_EPOCH * SLOW_NS) {
        p->left = p->pause;
        begin_step(p, 0);
    } else if (p->step < TRIAL_STEPS) {
        begin_step(p, p->step + 1);
    } else {
        end_trial(p);
    }
}

void pace_count(Pace *p, int requests)
{
    p->woken += requests;
    if (p->woken >= PACE_EPOCH) {
        end_epoch(p);
    }
}

/* So many parts have been submitted, and what was done by then has been taken. */
void pace_note_flush(QueueCore *q, uint32_t parts)
{
    if (parts > 0) {
        q->pace.flushes++;
        q->pace.flushes_done += q->device_count == 0;
    }
}

void pace_begin(Pace *p) { p->pause = p->left = PAUSE_MIN; }

void pace_settle(Pace *p, bool pays)
{
    *p = (Pace){.pays = pays, .kicks = pays, .may_kick = p->may_kick && pays, .pause = PAUSE_MIN, .left = PAUSE_MAX};
}
