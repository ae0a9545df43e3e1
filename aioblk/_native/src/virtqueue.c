#include "virtqueue.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#define DESCRIPTOR_SIZE 16u
#define HAS_NEXT 1u
#define IS_WRITABLE 2u
#define IS_INDIRECT 4u
#define NO_INTERRUPT 1u
#define TRACKED_VERSION 1

typedef struct {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
} descriptor;

typedef struct {
    uint16_t flags, index;
    uint16_t ring[];
} available_ring;

typedef struct {
    uint32_t head, written;
} used_element;

typedef struct {
    uint16_t flags, index;
    used_element ring[];
} used_ring;

struct virtqueue {
    uint32_t size;
    bool event_index;
    const char *broken;
    const char *descriptors;
    available_ring *available;
    used_ring *used;
    uint16_t next_available;
    uint16_t used_index; /* as the guest sees it, who may write to its place, but is not heard */
    uint32_t outstanding; /* taken, and not pushed yet */
    tracked_region *tracked;
    uint64_t counter;
    uint16_t *again; /* heads that are taken again, before any other */
    uint32_t again_count, again_taken;
    uint32_t finished_count;
    uint16_t *finished; /* heads of what is finished and not pushed */
    bool taken[];       /* by head */
};

virtqueue_t *virtqueue_new(uint32_t size)
{
    if (size == 0 || size > VIRTQUEUE_LARGEST || (size & (size - 1)) != 0) {
        return NULL;
    }
    virtqueue_t *queue = calloc(1, sizeof(*queue) + size * sizeof(queue->taken[0]));
    uint16_t *heads = calloc(2 * (size_t)size, sizeof(*heads));
    if (queue == NULL || heads == NULL) {
        free(queue);
        free(heads);
        return NULL;
    }
    queue->size = size;
    queue->finished = heads;
    queue->again = heads + size;
    return queue;
}

void virtqueue_free(virtqueue_t *queue)
{
    if (queue != NULL) {
        free(queue->finished);
        free(queue);
    }
}

const char *virtqueue_broken(const virtqueue_t *queue) { return queue->broken; }

void virtqueue_break(virtqueue_t *queue, const char *why)
{
    if (queue->broken == NULL) {
        queue->broken = why;
    }
}

uint16_t virtqueue_base(const virtqueue_t *queue) { return queue->next_available; }

uint32_t virtqueue_in_flight(const virtqueue_t *queue) { return queue->outstanding; }

/* ---- the guest's memory ---- */

/* The range that has an address of the guest's; or count. */
static size_t find_range(const guest_memory *memory, uint64_t address)
{
    size_t low = 0, high = memory->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const guest_range *range = &memory->ranges[middle];
        if (address < range->guest) {
            high = middle;
        } else if (address - range->guest >= range->length) {
            low = middle + 1;
        } else {
            return middle;
        }
    }
    return memory->count;
}

static char *find_ring(const guest_memory *memory, uint64_t user, uint64_t length, size_t alignment)
{
    for (size_t i = 0; i < memory->count; i++) {
        const guest_range *range = &memory->ranges[i];
        uint64_t start = user - range->user; /* is far beyond the length if it lies before */
        if (start < range->length && length <= range->length - start) {
            char *found = range->host + start;
            return (uintptr_t)found % alignment == 0 ? found : NULL;
        }
    }
    return NULL;
}

const char *virtqueue_place(virtqueue_t *queue, const guest_memory *memory, uint64_t descriptors, uint64_t available,
                            uint64_t used)
{
    uint64_t size = queue->size;
    /* Both rings end with the index of an event. */
    char *found[] = {
        find_ring(memory, descriptors, DESCRIPTOR_SIZE * size, 16),
        find_ring(memory, available, sizeof(available_ring) + sizeof(uint16_t) * (size + 1), 2),
        find_ring(memory, used, sizeof(used_ring) + sizeof(used_element) * size + sizeof(uint16_t), 4),
    };
    if (found[0] == NULL) {
        return "the table of descriptors is not within the memory, or misaligned";
    }
    if (found[1] == NULL || found[2] == NULL) {
        return "a ring is not within the memory, or misaligned";
    }
    queue->descriptors = found[0];
    queue->available = (available_ring *)(void *)found[1];
    queue->used = (used_ring *)(void *)found[2];
    return NULL;
}

/* Once: whoever writes there meanwhile, what is returned is what is looked at. */
static uint16_t read_index(const uint16_t *place) { return le16toh(__atomic_load_n(place, __ATOMIC_ACQUIRE)); }

static void write_index(uint16_t *place, uint16_t value) { __atomic_store_n(place, htole16(value), __ATOMIC_RELEASE); }

static uint16_t *used_event(virtqueue_t *queue) { return &queue->available->ring[queue->size]; }

static uint16_t *available_event(virtqueue_t *queue)
{
    return (uint16_t *)(void *)&queue->used->ring[queue->size];
}

/* ---- what was in flight before ---- */

static const char *recover(virtqueue_t *queue)
{
    tracked_region *tracked = queue->tracked;
    if (tracked->size != queue->size) {
        return "the region of what is in flight is of a queue of another size";
    }
    /* Those of the last push, if it was not marked as done. */
    uint16_t batch = queue->used_index - tracked->used, head = tracked->last;
    if (batch > queue->size) {
        return "the region of what is in flight is of another time than the queue";
    }
    for (; batch > 0; batch--) {
        if (head >= queue->size) {
            return "the region of what is in flight names a descriptor that there is not";
        }
        __atomic_store_n(&tracked->states[head].in_flight, 0, __ATOMIC_RELAXED);
        head = tracked->states[head].next;
    }
    __atomic_store_n(&tracked->used, queue->used_index, __ATOMIC_RELEASE);
    return NULL;
}

typedef struct {
    uint64_t counter;
    uint16_t head;
} order;

static int compare_orders(const void *one, const void *other)
{
    const order *a = one, *b = other;
    return a->counter != b->counter ? (a->counter > b->counter) - (a->counter < b->counter) : (int)a->head - (int)b->head;
}

static const char *take_again(virtqueue_t *queue)
{
    order *orders = calloc(queue->size, sizeof(*orders));
    if (orders == NULL) {
        return "there is no memory";
    }
    uint32_t count = 0;
    for (uint32_t head = 0; head < queue->size; head++) {
        const tracked_state *state = &queue->tracked->states[head];
        if (state->in_flight != 0) {
            uint64_t counter = __atomic_load_n(&state->counter, __ATOMIC_RELAXED);
            orders[count++] = (order){counter, (uint16_t)head};
            queue->counter = counter >= queue->counter ? counter + 1 : queue->counter;
        }
    }
    qsort(orders, count, sizeof(*orders), compare_orders);
    for (uint32_t i = 0; i < count; i++) {
        queue->again[i] = orders[i].head;
        queue->taken[orders[i].head] = true;
    }
    free(orders);
    queue->again_count = count;
    queue->outstanding = count;
    /* All that was taken is in flight or used, whatever the client has made of its own account. */
    queue->next_available = queue->used_index + count;
    return NULL;
}

const char *virtqueue_start(virtqueue_t *queue, uint16_t base, bool event_index, tracked_region *tracked,
                            size_t tracked_length)
{
    assert(queue->used != NULL);
    queue->event_index = event_index;
    queue->next_available = base;
    queue->used_index = read_index(&queue->used->index);
    if (tracked == NULL) {
        return NULL;
    }
    if ((uintptr_t)tracked % sizeof(uint64_t) != 0 ||
        tracked_length < sizeof(tracked_region) + sizeof(tracked_state) * (size_t)queue->size) {
        return "the region of what is in flight is too small, or misaligned";
    }
    queue->tracked = tracked;
    if (tracked->version == 0) {
        tracked->size = (uint16_t)queue->size;
        tracked->used = queue->used_index;
        __atomic_store_n(&tracked->version, TRACKED_VERSION, __ATOMIC_RELEASE);
        return NULL;
    }
    const char *wrong = recover(queue);
    return wrong != NULL ? wrong : take_again(queue);
}

/* ---- chains ---- */

static virtqueue_found breaks(virtqueue_t *queue, const char *why)
{
    virtqueue_break(queue, why);
    return VIRTQUEUE_BROKEN;
}

/* A copy, which the guest does not reach: nor may a compiler look at the original again. */
static descriptor read_descriptor(const char *table, uint32_t index)
{
    char copy[DESCRIPTOR_SIZE];
    memcpy(copy, table + (size_t)DESCRIPTOR_SIZE * index, sizeof(copy));
    __asm__ volatile("" : "+m"(copy));
    descriptor found;
    memcpy(&found, copy, sizeof(found));
    return (descriptor){le64toh(found.address), le32toh(found.length), le16toh(found.flags), le16toh(found.next)};
}

static bool continues(const guest_chain *chain, const char *address, uint32_t range)
{
    const guest_segment *last = &chain->segments[chain->count - 1];
    return last->range == range && last->address + last->length == address;
}

/* What one descriptor is about, which may go from one range on into the next. NULL, or what is wrong. */
static const char *add_segments(const guest_memory *memory, guest_chain *chain, const descriptor *found)
{
    bool writable = found->flags & IS_WRITABLE;
    uint64_t address = found->address, left = found->length;
    if (left > UINT64_MAX - address) {
        return "a descriptor ends beyond all addresses";
    }
    while (left > 0) {
        size_t range = find_range(memory, address);
        if (range == memory->count) {
            return "a descriptor is about memory that was not lent";
        }
        const guest_range *place = &memory->ranges[range];
        uint64_t start = address - place->guest;
        uint64_t length = left < place->length - start ? left : place->length - start;
        uint32_t first = writable ? chain->readable : 0; /* readable and writable ones do not become one */
        if (chain->count > first && continues(chain, place->host + start, (uint32_t)range)) {
            chain->segments[chain->count - 1].length += length;
        } else if (chain->count == CHAIN_SEGMENTS) {
            return "a chain has too many segments";
        } else {
            chain->segments[chain->count++] = (guest_segment){place->host + start, length, (uint32_t)range};
        }
        address += length;
        left -= length;
    }
    if (writable) {
        chain->writable_length += found->length;
    } else {
        chain->readable = chain->count;
        chain->readable_length += found->length;
    }
    return chain->readable_length + chain->writable_length > UINT32_MAX ? "a chain is too long" : NULL;
}

/* The descriptors of a table, from the first on; the last may name another table. NULL, or what is wrong. */
static const char *walk(const guest_memory *memory, const char *table, uint32_t size, uint16_t first, bool indirect,
                        guest_chain *chain)
{
    uint32_t index = first;
    for (uint32_t steps = 0; steps < size; steps++) {
        descriptor found = read_descriptor(table, index);
        if (found.flags & IS_INDIRECT) {
            if (indirect || found.flags & HAS_NEXT) {
                return "a table of descriptors is where none may be";
            }
            uint32_t entries = found.length / DESCRIPTOR_SIZE;
            if (entries == 0 || found.length % DESCRIPTOR_SIZE != 0 || entries > VIRTQUEUE_LARGEST) {
                return "a table of descriptors is of an impossible size";
            }
            size_t range = find_range(memory, found.address);
            if (range == memory->count) {
                return "a table of descriptors is not within the memory";
            }
            const guest_range *place = &memory->ranges[range];
            uint64_t start = found.address - place->guest;
            if (found.length > place->length - start) {
                return "a table of descriptors is not within one range of the memory";
            }
            return walk(memory, place->host + start, entries, 0, true, chain);
        }
        if (chain->count > chain->readable && !(found.flags & IS_WRITABLE)) {
            return "what is to be read comes after what is to be written";
        }
        const char *wrong = add_segments(memory, chain, &found);
        if (wrong != NULL) {
            return wrong;
        }
        if (!(found.flags & HAS_NEXT)) {
            return NULL;
        }
        if (found.next >= size) {
            return "a chain goes on at a descriptor that there is not";
        }
        index = found.next;
    }
    return "a chain does not end";
}

/* Before anything is done for it: a crash from here on has it taken again. */
static void track(virtqueue_t *queue, uint16_t head)
{
    if (queue->tracked != NULL) {
        tracked_state *state = &queue->tracked->states[head];
        __atomic_store_n(&state->counter, queue->counter++, __ATOMIC_RELAXED);
        __atomic_store_n(&state->in_flight, 1, __ATOMIC_RELEASE);
    }
}

virtqueue_found virtqueue_take(virtqueue_t *queue, const guest_memory *memory, guest_chain *chain)
{
    uint16_t head;
    if (queue->broken != NULL) {
        return VIRTQUEUE_BROKEN;
    }
    if (queue->again_taken < queue->again_count) {
        head = queue->again[queue->again_taken++];
    } else {
        uint16_t available = read_index(&queue->available->index);
        if (available == queue->next_available) {
            return VIRTQUEUE_EMPTY;
        }
        if ((uint16_t)(available - queue->next_available) + queue->outstanding > queue->size) {
            return breaks(queue, "more is available than there are descriptors");
        }
        head = read_index(&queue->available->ring[queue->next_available & (queue->size - 1)]);
        if (head >= queue->size) {
            return breaks(queue, "a chain begins at a descriptor that there is not");
        }
        if (queue->taken[head]) {
            return breaks(queue, "a chain is available that is in flight already");
        }
        queue->taken[head] = true;
        queue->outstanding++;
        track(queue, head);
        queue->next_available++;
    }
    chain->head = head;
    chain->readable = chain->count = 0;
    chain->readable_length = chain->writable_length = 0;
    const char *wrong = walk(memory, queue->descriptors, queue->size, head, false, chain);
    return wrong != NULL ? breaks(queue, wrong) : VIRTQUEUE_CHAIN;
}

/* ---- what is done ---- */

void virtqueue_finish(virtqueue_t *queue, uint16_t head, uint32_t written)
{
    assert(queue->taken[head] && queue->finished_count < queue->outstanding);
    uint32_t place = (queue->used_index + queue->finished_count) & (queue->size - 1);
    used_element *element = &queue->used->ring[place];
    __atomic_store_n(&element->head, htole32(head), __ATOMIC_RELAXED);
    __atomic_store_n(&element->written, htole32(written), __ATOMIC_RELAXED);
    queue->finished[queue->finished_count++] = head;
    if (queue->tracked != NULL) {
        queue->tracked->states[head].next = queue->tracked->last;
        __atomic_store_n(&queue->tracked->last, head, __ATOMIC_RELEASE);
    }
}

bool virtqueue_push(virtqueue_t *queue)
{
    uint32_t count = queue->finished_count;
    if (count == 0) {
        return false;
    }
    uint16_t before = queue->used_index, after = (uint16_t)(before + count);
    write_index(&queue->used->index, after);
    queue->used_index = after;
    queue->outstanding -= count;
    queue->finished_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        queue->taken[queue->finished[i]] = false;
        if (queue->tracked != NULL) {
            __atomic_store_n(&queue->tracked->states[queue->finished[i]].in_flight, 0, __ATOMIC_RELEASE);
        }
    }
    if (queue->tracked != NULL) {
        __atomic_store_n(&queue->tracked->used, after, __ATOMIC_RELEASE);
    }
    /* The guest writes what it wants to be told of, and looks at the index then. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (queue->event_index) {
        uint16_t event = read_index(used_event(queue));
        return (uint16_t)(after - event - 1) < (uint16_t)(after - before);
    }
    return !(read_index(&queue->available->flags) & NO_INTERRUPT);
}

bool virtqueue_listen(virtqueue_t *queue)
{
    if (queue->broken != NULL) {
        return false;
    }
    if (queue->event_index) {
        write_index(available_event(queue), queue->next_available);
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return queue->again_taken < queue->again_count || read_index(&queue->available->index) != queue->next_available;
}
