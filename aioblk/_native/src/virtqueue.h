/* A split virtqueue as its device sees it: chains of descriptors are taken, and given back as used.
 *
 * The rings, the descriptors and what they point at lie in the guest's memory, which the guest may change at any time, and
 * nothing of it is believed. What is decided upon is read once, into memory of our own; every address is looked up in the
 * table of what the guest has lent, every index compared with the size, and every walk ends.
 *
 * What can be seen to be wrong with the queue itself breaks it: nothing more is taken then.
 */
#ifndef AIOBLK_VIRTQUEUE_H
#define AIOBLK_VIRTQUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VIRTQUEUE_LARGEST 32768

/* ---- the guest's memory ---- */

typedef struct {
    uint64_t guest;  /* the address by which descriptors know it */
    uint64_t user;   /* and by which the client does, who names the rings by it */
    uint64_t length; /* not 0; neither end is beyond 2^64 */
    char *host;
} guest_range;

/* Sorted by their guest addresses; they do not overlap. */
typedef struct {
    size_t count;
    guest_range *ranges;
} guest_memory;

/* A part of one range. */
typedef struct {
    char *address;
    size_t length;
    uint32_t range;
} guest_segment;

/* ---- chains ---- */

#define CHAIN_SEGMENTS 1026 /* what one vector of the kernel's takes, and two for the header and the status */

/* What a chain of descriptors is about: what the device may read, and behind it what it may write. */
typedef struct {
    uint16_t head;
    uint32_t readable, count; /* segments */
    uint64_t readable_length, writable_length;
    guest_segment segments[CHAIN_SEGMENTS];
} guest_chain;

/* ---- what is in flight, kept by the client beyond the end of this process ----
 *
 * The layout is that of vhost-user's in-flight region, of one split virtqueue.
 */
typedef struct {
    uint8_t in_flight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
} tracked_state;

typedef struct {
    uint64_t features;
    uint16_t version; /* 0: new */
    uint16_t size;
    uint16_t last; /* of those that were finished together; each names the one before by its `next` */
    uint16_t used; /* the used ring's index, when all that was finished had been marked as such */
    tracked_state states[];
} tracked_region;

/* ---- a queue ---- */

typedef struct virtqueue virtqueue_t;

typedef enum { VIRTQUEUE_EMPTY, VIRTQUEUE_CHAIN, VIRTQUEUE_BROKEN } virtqueue_found;

/* NULL: no memory, or the size is no power of two from 1 to VIRTQUEUE_LARGEST. */
virtqueue_t *virtqueue_new(uint32_t size);
void virtqueue_free(virtqueue_t *queue);

/* Where its rings are, by the addresses of the client; also when the table of memory has changed. NULL, or why not. */
const char *virtqueue_place(virtqueue_t *queue, const guest_memory *memory, uint64_t descriptors, uint64_t available,
                            uint64_t used);

/*
 * Once, when it is placed: the first chain to take is the one of index `base`, or the first that the tracked region has as
 * in flight; those come in the order in which they were taken before. NULL, or what is wrong with the region.
 */
const char *virtqueue_start(virtqueue_t *queue, uint16_t base, bool event_index, tracked_region *tracked,
                            size_t tracked_length);

/* The next chain. The memory is that by which the queue was placed. */
virtqueue_found virtqueue_take(virtqueue_t *queue, const guest_memory *memory, guest_chain *chain);

/* A chain that was taken is done, with so many bytes written to it. The guest sees it after the next push. */
void virtqueue_finish(virtqueue_t *queue, uint16_t head, uint32_t written);

/* Whether the guest wants to be told of what it sees from now on. */
bool virtqueue_push(virtqueue_t *queue);

/* The guest is to tell of the next chain. Whether there is one already. */
bool virtqueue_listen(virtqueue_t *queue);

const char *virtqueue_broken(const virtqueue_t *queue); /* why; NULL: it is not */
void virtqueue_break(virtqueue_t *queue, const char *why);
uint16_t virtqueue_base(const virtqueue_t *queue);      /* of the next chain to take */
uint32_t virtqueue_in_flight(const virtqueue_t *queue); /* taken, and not pushed yet */

#endif
