/* Bounce memory of a part: what the device is given in the place of memory that it cannot reach, and the copies. */
#include "rooms.h"

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

/* The copy of what is to be written is made with it. */
static bool take_memory(QueueCore *q, Part *part)
{
    char *bounce = NULL;
    if (part->bounce_length > 0) {
        if (!q->bounce) {
            return false;
        }
        assert(part->bounce_offset == NO_BOUNCE);
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
    } else {
        part->address = bounce;
    }
    return true;
}

inline bool queue_prepare_part(QueueCore *q, Part *part)
{
    return (part->bounce_length == 0 && !part->vector) || take_memory(q, part);
}

void bounce_copy_to_caller(QueueCore *q, const Part *part)
{
    copy_between(q->bounce_address + part->bounce_offset, part, true);
}

void bounce_give_back(QueueCore *q, Part *part)
{
    ENSURE(q->bounce && allocator_give(q->bounce, part->bounce_offset));
    part->bounce_offset = NO_BOUNCE;
    q->room_made = true;
}
