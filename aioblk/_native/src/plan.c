/*
 * Planning: from what the caller wants to parts that the device accepts.
 *
 * The common request is one buffer that the device can reach, or that fits bounce memory: one part, decided in a few
 * comparisons. Everything else goes through two steps. First the caller's memory is cut into segments, each wholly
 * inside one mapped region or wholly outside all of them. Then segments are collected into parts until a limit of the
 * device is reached. Only segments that the device cannot take are bounced; their neighbours stay zero-copy.
 */
#include "rooms.h"

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t round_down(uint64_t value, uint64_t alignment) { return value - value % alignment; }

static bool buffer_aligned(const DeviceCore *device, const char *address, uint64_t length)
{
    return (((uintptr_t)address | length) & (device->buf_alignment - 1)) == 0;
}

/* Bytes. What is shorter is copied sooner than it is divided into what the device takes in place and what it does not. */
#define WORTH_DIVIDING (16u << 10)

static Part *grow_parts(Request *r)
{
    uint32_t grown = r->part_capacity ? 2 * r->part_capacity : 4;
    Part *parts = PyMem_Realloc(r->more_parts, grown * sizeof(*parts));
    if (!parts) {
        PyErr_NoMemory();
        return NULL;
    }
    r->more_parts = parts;
    r->part_capacity = grown;
    return &parts[r->part_count - 1];
}

/* One more part of an item, without memory yet. */
static inline Part *add_part(Request *r, Item *item, uint64_t offset, uint64_t length)
{
    Part *part = r->part_count == 0                  ? &r->first_part
                 : r->part_count <= r->part_capacity ? &r->more_parts[r->part_count - 1]
                                                     : grow_parts(r);
    if (part) {
        uint32_t index = r->batch ? item - r->items : 0;
        *part = (Part){.request = r, .item = index, .offset = offset, .length = length, .bounce_offset = NO_BOUNCE};
        r->part_count++;
        item->left++;
    }
    return part;
}

/* Counted from here on: the region stays mapped until request_drop_parts. Since it was found, `planning` has been held. */
static void enter_region(Request *r, Region *region)
{
    if (region) {
        r->has_plan = true;
        (void)SHARED_ADD(region->state, REGION_USER);
    }
}

static void part_set_memory(Part *part, const Segment *segment)
{
    if (segment->bounced) {
        part->source = segment->address;
        part->bounce_length = segment->length;
    } else {
        part->address = segment->address;
        part->region = segment->region;
        enter_region(part->request, segment->region);
    }
}

typedef enum { PLAN_DONE = 0, PLAN_FAILED = -1, PLAN_STUCK = 1 } PlanOutcome;

/* ---- one buffer, one part -------------------------------------------------------------------------------- */

static inline PlanOutcome plan_one_part(Request *r, Item *item, DeviceCore *device, char *address, uint64_t length)
{
    if (length > device->max_transfer || length > device->max_segment_len) {
        return PLAN_STUCK;
    }
    Segment segment = {.address = address, .length = length};
    if (!buffer_aligned(device, address, length)) {
        if (length >= WORTH_DIVIDING && buffer_aligned(device, address, 0)) {
            return PLAN_STUCK; /* only its end has to be bounced */
        }
        segment.bounced = true;
    } else if (device->needs_regions) {
        uint64_t available;
        segment.region = device_find_region(device, address, length, &available);
        if (available < length) {
            return PLAN_STUCK; /* part of it lies in a region */
        }
        segment.bounced = !segment.region;
    }
    if (segment.bounced && length > device->bounce_cap) {
        return PLAN_STUCK;
    }
    Part *part = add_part(r, item, item->offset, length);
    if (!part) {
        return PLAN_FAILED;
    }
    part_set_memory(part, &segment);
    r->lends_memory = r->lends_memory || (!segment.bounced && !item->result);
    return PLAN_DONE;
}

/* ---- step one: segments ---------------------------------------------------------------------------------- */

typedef struct {
    Segment *items;
    size_t count, capacity;
} Segments;

static int segments_append(Segments *list, const Segment *segment)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 16;
        Segment *grown = PyMem_Realloc(list->items, capacity * sizeof(*grown));
        if (!grown) {
            PyErr_NoMemory();
            return -1;
        }
        list->items = grown;
        list->capacity = capacity;
    }
    list->items[list->count++] = *segment;
    return 0;
}

static int cut_segments(DeviceCore *device, const struct iovec *memory, size_t count, Segments *segments)
{
    uint64_t longest = device->max_segment_len;
    if (longest != UINT64_MAX) {
        longest = larger(round_down(longest, device->buf_alignment), device->buf_alignment);
    }
    for (size_t i = 0; i < count; i++) {
        char *address = memory[i].iov_base;
        uint64_t left = memory[i].iov_len;
        while (left > 0) {
            uint64_t length = smaller(left, longest);
            Segment segment = {.address = address};
            if (device->needs_regions) {
                segment.region = device_find_region(device, address, length, &length);
            }
            segment.length = length;
            segment.bounced = (device->needs_regions && !segment.region) || !buffer_aligned(device, address, 0);
            if (segments_append(segments, &segment) < 0) {
                return -1;
            }
            address += length;
            left -= length;
        }
    }
    return 0;
}

static void bounce_all(Segments *segments)
{
    for (size_t i = 0; i < segments->count; i++) {
        segments->items[i].bounced = true;
        segments->items[i].region = NULL;
    }
}

static bool has_odd_length(const DeviceCore *device, const Segments *segments)
{
    for (size_t i = 0; i < segments->count; i++) {
        if (segments->items[i].length & (device->buf_alignment - 1)) {
            return true;
        }
    }
    return false;
}

/*
 * Lengths that break buf-alignment fit only where they lie side by side in bounce memory: a run of them, which is bounced, is
 * as long as the device wants it. So an unaligned end of a buffer is bounced, with what follows up to the next place where the
 * device can go on in place, and not all that came before.
 */
static int settle_odd_lengths(const DeviceCore *device, Segments *segments)
{
    uint64_t alignment = device->buf_alignment, run = 0; /* of the bounced run: what is beyond the last multiple */
    Segments settled = {0};
    for (size_t i = 0; i < segments->count; i++) {
        Segment rest = segments->items[i];
        while (rest.length > 0) {
            Segment piece = rest;
            uint64_t missing = run ? alignment - run : 0; /* until the device could go on in place */
            bool could_go_on = (rest.region || !device->needs_regions) && rest.length >= missing + WORTH_DIVIDING &&
                               buffer_aligned(device, rest.address + missing, 0);
            piece.bounced = !could_go_on || missing > 0;
            if (!piece.bounced) {
                piece.length = round_down(rest.length, alignment);
            } else {
                piece.length = could_go_on ? missing : rest.length;
                run = (run + piece.length) % alignment;
            }
            if (segments_append(&settled, &piece) < 0) {
                PyMem_Free(settled.items);
                return -1;
            }
            rest.address += piece.length;
            rest.length -= piece.length;
        }
    }
    PyMem_Free(segments->items);
    *segments = settled;
    return 0;
}

/* ---- step two: parts ------------------------------------------------------------------------------------- */

/* A place in the caller's memory: `offset` bytes into segment `index`. */
typedef struct {
    size_t index;
    uint64_t offset;
} Cursor;

static void cursor_rewind(Cursor *cursor, const Segments *segments, uint64_t bytes)
{
    while (bytes > cursor->offset) {
        bytes -= cursor->offset;
        cursor->offset = segments->items[--cursor->index].length;
    }
    cursor->offset -= bytes;
}

/* The segments of one part, taken from the cursor on until a limit stops them. */
static int collect_part(DeviceCore *device, const Segments *segments, Cursor *cursor, Segments *taken, uint64_t *total)
{
    uint64_t bounce_left = smaller(device->bounce_cap, device->max_segment_len); /* so that a run is one segment */
    uint64_t left = device->max_transfer;
    size_t device_segments = 0;
    bool after_bounced = false;

    taken->count = 0;
    *total = 0;
    while (cursor->index < segments->count) {
        const Segment *segment = &segments->items[cursor->index];
        if (cursor->offset == segment->length) {
            cursor->index++;
            cursor->offset = 0;
            continue;
        }
        uint64_t length = smaller(segment->length - cursor->offset, left);
        if (segment->bounced) {
            length = smaller(length, bounce_left);
        }
        bool joins_run = segment->bounced && after_bounced;
        if (length == 0 || (!joins_run && device_segments == device->max_segments)) {
            break;
        }
        Segment piece = {segment->address + cursor->offset, length, segment->region, segment->bounced};
        if (segments_append(taken, &piece) < 0) {
            return -1;
        }
        device_segments += !joins_run;
        after_bounced = segment->bounced;
        bounce_left -= segment->bounced ? length : 0;
        left -= length;
        *total += length;
        cursor->offset += length;
    }
    return 0;
}

/* A part that is not the last ends where the device may begin the next one. */
static void trim_part(const Segments *segments, Cursor *cursor, Segments *taken, uint64_t *total, uint64_t alignment)
{
    uint64_t excess = *total % alignment;
    cursor_rewind(cursor, segments, excess);
    *total -= excess;
    while (excess > 0) {
        Segment *last = &taken->items[taken->count - 1];
        if (last->length > excess) {
            last->length -= excess;
            return;
        }
        excess -= last->length;
        taken->count--;
    }
}

static int part_set_segments(Part *part, const Segments *taken)
{
    if (taken->count == 1) {
        part_set_memory(part, &taken->items[0]);
        return 0;
    }
    /* One block: the vector, its segments, and what the device will be given. */
    size_t size = sizeof(Vector) + taken->count * sizeof(Segment);
    Vector *vector = PyMem_Malloc(size + taken->count * sizeof(struct iovec));
    if (!vector) {
        PyErr_NoMemory();
        return -1;
    }
    vector->iov_count = 0;
    vector->riders = 0;
    vector->iov = (struct iovec *)((char *)vector + size);
    part->vector = vector;
    part->request->has_plan = true;
    vector->segment_count = taken->count;
    memcpy(vector->segments, taken->items, taken->count * sizeof(Segment));
    for (size_t i = 0; i < taken->count; i++) {
        if (taken->items[i].bounced) {
            part->bounce_length += taken->items[i].length;
        } else {
            enter_region(part->request, taken->items[i].region);
        }
    }
    return 0;
}

static PlanOutcome build_parts(Request *r, Item *item, DeviceCore *device, const Segments *segments, Segments *taken)
{
    uint64_t alignment = larger(device->request_alignment, device->buf_alignment);
    uint64_t offset = item->offset, left = item->length, total;
    Cursor cursor = {0, 0};
    bool all_bounced = true;

    while (left > 0) {
        if (collect_part(device, segments, &cursor, taken, &total) < 0) {
            return PLAN_FAILED;
        }
        if (total < left) {
            trim_part(segments, &cursor, taken, &total, alignment);
        }
        if (total == 0) {
            return PLAN_STUCK; /* too many tiny segments for one block */
        }
        Part *part = add_part(r, item, offset, total);
        if (!part || part_set_segments(part, taken) < 0) {
            return PLAN_FAILED;
        }
        all_bounced = all_bounced && part->bounce_length == total;
        offset += total;
        left -= total;
    }
    r->lends_memory = r->lends_memory || (!all_bounced && !item->result);
    return PLAN_DONE;
}

/* Kept apart: the common request should not have to make room for the variables of the others. */
static __attribute__((noinline)) PlanOutcome plan_in_two_steps(Request *r, Item *item, DeviceCore *device,
                                                               const struct iovec *memory, size_t count)
{
    PlanOutcome outcome = PLAN_FAILED;
    Segments segments = {0}, taken = {0};
    uint32_t before = r->part_count;
    if (cut_segments(device, memory, count, &segments) == 0 &&
        (!has_odd_length(device, &segments) || settle_odd_lengths(device, &segments) == 0)) {
        outcome = build_parts(r, item, device, &segments, &taken);
        if (outcome == PLAN_STUCK) {
            request_drop_parts(r, before);
            item->left = 0;
            bounce_all(&segments);
            outcome = build_parts(r, item, device, &segments, &taken);
        }
    }
    PyMem_Free(segments.items);
    PyMem_Free(taken.items);
    return outcome;
}

int plan_memory(Request *r, Item *item, DeviceCore *device, const struct iovec *memory, size_t count)
{
    if (device->needs_regions) {
        LOCK(&r->queue->planning);
    }
    PlanOutcome outcome =
        count == 1 ? plan_one_part(r, item, device, memory[0].iov_base, memory[0].iov_len) : PLAN_STUCK;
    if (outcome == PLAN_STUCK) {
        outcome = plan_in_two_steps(r, item, device, memory, count);
    }
    if (device->needs_regions) {
        UNLOCK(&r->queue->planning);
    }
    if (outcome == PLAN_STUCK) {
        return device_refuse(device, "bounce-cap", r->operation, item->offset, item->length);
    }
    return outcome;
}

/* ---- ranges without memory ------------------------------------------------------------------------------- */

#define MAX_RANGE_PARTS (1u << 20)

int plan_range(Request *r, DeviceCore *device, uint64_t maximum)
{
    uint64_t alignment = device->request_alignment;
    if (r->operation == OP_DISCARD) {
        alignment = larger(alignment, device->discard_alignment);
    }
    uint64_t step = maximum == UINT64_MAX ? maximum : larger(round_down(maximum, alignment), alignment);
    uint64_t tail = zeroes_beyond_the_end(device, r);
    uint64_t start = r->item.offset, left = r->item.length - tail;
    if (left > 0 && (left - 1) / step + 1 > MAX_RANGE_PARTS) {
        return device_refuse(device, "too-many-parts", r->operation, start, left);
    }
    while (left > 0) {
        uint64_t length = smaller(step, left);
        if (!add_part(r, &r->item, start, length)) {
            return -1;
        }
        start += length;
        left -= length;
    }
    if (tail > 0) {
        Part *part = add_part(r, &r->item, start, tail);
        if (!part) {
            return -1;
        }
        zeroes_plan_part(part);
    }
    return 0;
}
