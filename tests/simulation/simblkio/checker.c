#include "simblkio.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEPT 64
#define TEXT 256

static char texts[KEPT][TEXT];
static unsigned count;

void violation(const char *format, ...)
{
    char text[TEXT];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    trace(EVENT_VIOLATION, NULL, NULL, NULL, count);
    if (count < KEPT) {
        memcpy(texts[count], text, TEXT);
    }
    count++;
    if (!sim.config.record) {
        trace_end_process("violation", text);
    }
}

unsigned violations(void) { return count; }
const char *violation_text(unsigned index) { return index < count && index < KEPT ? texts[index] : ""; }
void violations_forget(void) { count = 0; }

static const char *const OPERATION_NAMES[] = {"read", "write", "write_zeroes", "discard", "flush", "zone"};

const char *operation_name(enum operation operation) { return OPERATION_NAMES[operation]; }

/* ---- limits ---------------------------------------------------------------------------------------------- */

static bool is_multiple(uint64_t value, uint64_t of) { return of == 0 || value % of == 0; }

#define NAMED "request %lu, %s of %lu bytes at %lu"
#define NAME(r) (r)->id, operation_name((r)->operation), (r)->length, (r)->start

static void check_flags(const struct request *r)
{
    uint32_t may = r->operation == WRITE ? BLKIO_REQ_FUA
                   : r->operation == WRITE_ZEROES
                       ? BLKIO_REQ_FUA | BLKIO_REQ_NO_UNMAP | BLKIO_REQ_NO_FALLBACK
                       : 0;
    if (r->flags & ~may) {
        violation(NAMED ": it cannot have the flags %#x", NAME(r), r->flags);
    }
}

static void check_range(const struct request *r)
{
    const struct blkio *b = r->queue->instance;
    uint64_t alignment = property(b, REQUEST_ALIGNMENT);
    if (r->operation == FLUSH || r->operation == ZONE) {
        return;
    }
    if (!is_multiple(r->start, alignment) || !is_multiple(r->length, alignment)) {
        violation(NAMED ": request-alignment is %lu", NAME(r), alignment);
    }
    if (r->length == 0 && b->driver != IO_URING) {
        violation(NAMED ": a virtio device would never answer, and NVMe has no such length", NAME(r));
    }
    enum property limit = r->operation == WRITE_ZEROES ? MAX_WRITE_ZEROES_LEN
                          : r->operation == DISCARD    ? MAX_DISCARD_LEN
                                                       : MAX_TRANSFER;
    uint64_t most = property(b, limit);
    if (most && r->length > most) {
        violation(NAMED ": %s is %lu", NAME(r), property_name(limit), most);
    }
    uint64_t step = property(b, DISCARD_ALIGNMENT), offset = property(b, DISCARD_ALIGNMENT_OFFSET);
    if (r->operation == DISCARD && (!is_multiple(r->start - offset, step) || !is_multiple(r->length, step))) {
        violation(NAMED ": discard-alignment is %lu from %lu on", NAME(r), step, offset);
    }
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

static const struct blkio_mem_region *region_of(const struct blkio *b, const void *address, size_t length)
{
    for (size_t i = 0; i < b->region_count; i++) {
        uintptr_t at = (uintptr_t)address - (uintptr_t)b->regions[i].addr;
        if (at <= b->regions[i].len && length <= b->regions[i].len - at) {
            return &b->regions[i];
        }
    }
    return NULL;
}

static void check_segments(const struct request *r)
{
    const struct blkio *b = r->queue->instance;
    uint64_t alignment = property(b, BUF_ALIGNMENT), longest = property(b, MAX_SEGMENT_LEN);
    uint64_t most = property(b, MAX_SEGMENTS);
    if ((uint64_t)r->segment_count > most) {
        violation(NAMED ": it has %d segments, max-segments is %lu", NAME(r), r->segment_count, most);
    }
    for (int i = 0; i < r->segment_count; i++) {
        const struct iovec *s = &r->segments[i];
        if (!is_multiple((uintptr_t)s->iov_base, alignment) || !is_multiple(s->iov_len, alignment)) {
            violation(NAMED ": segment %d is not aligned as buf-alignment, %lu, wants it", NAME(r), i, alignment);
        }
        if (longest && s->iov_len > longest) {
            violation(NAMED ": segment %d has %zu bytes, max-segment-len is %lu", NAME(r), i, s->iov_len, longest);
        }
        if (property(b, NEEDS_MEM_REGIONS) && !region_of(b, s->iov_base, s->iov_len)) {
            violation(NAMED ": segment %d lies in no mapped region", NAME(r), i);
        }
    }
}

uint8_t *device_address(const struct blkio *b, void *address, size_t length)
{
    const struct blkio_mem_region *region = region_of(b, address, length);
    const struct view *view = region ? &b->views[region - b->regions] : NULL;
    return view && view->at ? view->at + ((uint8_t *)address - (uint8_t *)region->addr) : address;
}

static bool overlap(const void *a, size_t a_length, const void *b, size_t b_length)
{
    return (uintptr_t)a < (uintptr_t)b + b_length && (uintptr_t)b < (uintptr_t)a + a_length;
}

static bool uses(const struct request *r, const void *address, size_t length)
{
    for (int i = 0; i < r->segment_count; i++) {
        if (overlap(r->segments[i].iov_base, r->segments[i].iov_len, address, length)) {
            return true;
        }
    }
    return false;
}

/* Calls `look` with every request that is in flight anywhere. */
static void each_in_flight(void (*look)(const struct request *other, const void *context), const void *context)
{
    for (struct blkio *b = sim.instances; b; b = b->next) {
        for (int kind = 0; kind < 2; kind++) {
            for (int i = 0; i < b->queue_count[kind]; i++) {
                struct blkioq *q = b->queues[kind][i];
                for (int place = 0; place < PLACES && q; place++) {
                    for (struct request *r = q->at[place].first; r; r = r->next) {
                        look(r, context);
                    }
                }
            }
        }
    }
}

static void look_for_overlap(const struct request *other, const void *context)
{
    const struct request *r = context;
    if (other->queue->instance->death == KILLED) {
        return;
    }
    for (int i = 0; (r->operation == READ || other->operation == READ) && i < r->segment_count; i++) {
        if (uses(other, r->segments[i].iov_base, r->segments[i].iov_len)) {
            violation(NAMED ": segment %d is in use by " NAMED, NAME(r), i, NAME(other));
            return;
        }
    }
}

static size_t descriptors(const struct request *r)
{
    return r->operation == FLUSH ? 2 : r->segment_count ? 2 + (size_t)r->segment_count : 3;
}

static void check_ring(struct request *r)
{
    struct blkioq *q = r->queue;
    bool virtqueue = !has_rings(q->instance->driver);
    size_t room = virtqueue ? property(q->instance, QUEUE_SIZE) : 2 * property(q->instance, NUM_ENTRIES);
    r->descriptors = virtqueue ? descriptors(r) : 1;
    q->descriptors += r->descriptors;
    if (q->descriptors > room) {
        violation(NAMED ": the ring has room for %zu, and this makes %zu", NAME(r), room, q->descriptors);
    }
}

void check_request(struct request *r)
{
    check_flags(r);
    check_range(r);
    check_segments(r);
    check_ring(r);
    if (r->segment_count > 0) {
        each_in_flight(look_for_overlap, r);
    }
}

uint8_t scribble_of(const struct request *r) { return 0x80 | (r->id * 37 & 0x7F); }

void check_memory_begin(struct request *r)
{
    size_t at = 0;
    if (r->operation != READ && r->operation != WRITE) {
        return;
    }
    r->data = malloc(r->length + 1);
    for (int i = 0; i < r->segment_count; i++) {
        size_t length = r->segments[i].iov_len;
        if (r->operation == READ) {
            memset(r->seen[i], scribble_of(r), length);
        } else {
            memcpy(r->data + at, r->seen[i], length);
        }
        at += length;
    }
}

static bool is_all(const uint8_t *memory, size_t length, uint8_t byte)
{
    return length == 0 || (memory[0] == byte && memcmp(memory, memory + 1, length - 1) == 0);
}

void check_memory_end(struct request *r)
{
    size_t at = 0;
    if (r->operation != READ && r->operation != WRITE) {
        return;
    }
    if (r->vector && memcmp(r->vector, r->segments, sizeof(*r->vector) * (size_t)r->segment_count) != 0) {
        violation(NAMED ": its vector was changed while it was in flight", NAME(r));
    }
    for (int i = 0; i < r->segment_count; i++) {
        size_t length = r->segments[i].iov_len;
        bool same = r->operation == READ ? is_all(r->seen[i], length, scribble_of(r))
                                         : memcmp(r->seen[i], r->data + at, length) == 0;
        if (!same) {
            violation(NAMED ": segment %d was changed while it was in flight", NAME(r), i);
        }
        at += length;
    }
}

static const struct blkio *unmapping;
static bool in_use;

static void look_for_use(const struct request *other, const void *context)
{
    const struct blkio_mem_region *region = context;
    if (other->queue->instance == unmapping && uses(other, region->addr, region->len)) {
        violation(NAMED ": its memory is unmapped while it is in flight", NAME(other));
        in_use = true;
    }
}

bool check_unmap(struct blkio *b, const struct blkio_mem_region *region)
{
    unmapping = b;
    in_use = false;
    if (b->death != KILLED) {
        each_in_flight(look_for_use, region);
    }
    return !in_use;
}
