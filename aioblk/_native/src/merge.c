/*
 * Merging: what a batch transfers side by side, in the order of the items, goes to the device as one. A write through the page
 * cache of ext4 costs a hand-over to a worker of the kernel, whatever its length, and all else at least a request.
 *
 * Each part is planned, counted and taken as done by itself. The first of a run is issued, with a vector of the memory of all,
 * and carries the others, its riders: those are admitted with it, and never issued. Should it fail, they part, and each
 * is made by itself: so what has failed, and why, is known as if nothing had been merged.
 */
#include "rooms.h"

#define MERGED_BYTES (128u << 10) /* where a hand-over matters no more, and a device would rather have several at a time */

/* Whose memory the device is given as it is, in one piece. */
static inline bool is_plain(const Part *part) { return !part->vector && part->bounce_length == 0; }

/* How many of the parts after the first it may carry. */
static uint32_t count_riders(Request *batch, uint32_t first)
{
    const DeviceCore *device = batch->queue->device;
    const Part *part = request_part(batch, first);
    uint64_t most = device->max_transfer < MERGED_BYTES ? device->max_transfer : MERGED_BYTES;
    uint64_t start = part->offset, end = start + part->length;
    uint32_t i = first + 1;
    for (; is_plain(part) && i < batch->part_count && i - first < device->max_segments; i++) {
        part = request_part(batch, i);
        if (part->offset != end || !is_plain(part) || part->offset + part->length - start > most) {
            break;
        }
        end += part->length;
    }
    return i - first - 1;
}

/* Without memory for it, everything stays as it is. */
static void carry(Request *batch, uint32_t first, uint32_t riders)
{
    Part *part = request_part(batch, first);
    size_t count = riders + 1;
    Vector *vector = PyMem_Malloc(sizeof(*vector) + count * (sizeof(Segment) + sizeof(struct iovec)));
    if (!vector) {
        return;
    }
    *vector = (Vector){.segment_count = count, .riders = riders, .iov = (struct iovec *)&vector->segments[count]};
    for (uint32_t i = 0; i < count; i++) {
        Part *each = request_part(batch, first + i);
        /* Its region is in use by the part itself. */
        vector->segments[i] = (Segment){.address = each->address, .length = each->length};
        if (i > 0) {
            each->bounce_offset = PART_RIDES;
            part->length += each->length;
        }
    }
    part->vector = vector;
    batch->has_plan = true;
}

static __attribute__((noinline)) void merge_from(Request *batch, uint32_t first)
{
    uint32_t riders;
    for (uint32_t i = first; i + 1 < batch->part_count; i += 1 + riders) {
        riders = count_riders(batch, i);
        if (riders > 0) {
            carry(batch, i, riders);
        }
    }
}

/* Most batches have nothing to merge. */
void merge_adjacent(Request *batch)
{
    const Part *part = &batch->first_part, *next = batch->more_parts;
    for (uint32_t i = 0; i + 1 < batch->part_count; i++, part = next++) {
        if (next->offset == part->offset + part->length) {
            merge_from(batch, i);
            return;
        }
    }
}

uint32_t merge_undo(Part *part)
{
    Request *batch = part->request;
    Vector *vector = part->vector;
    uint32_t first = part_index(part), riders = vector->riders;
    for (uint32_t i = 1; i <= riders; i++) {
        Part *rider = request_part(batch, first + i);
        assert(rider->bounce_offset == PART_RIDES);
        rider->bounce_offset = NO_BOUNCE;
    }
    part->length = vector->segments[0].length;
    part->vector = NULL;
    PyMem_Free(vector);
    return riders;
}
