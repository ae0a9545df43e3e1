/* A good-fit allocator whose records lie outside the memory it hands out.
 *
 * The memory may be shared with a device, so no header of ours can live in it. The range [0, size) is divided into
 * granules; an array beside it holds, for each granule, the tags of a range that starts or ends there. Ranges touch
 * without gaps, so both neighbours of a range are found in constant time, and free neighbours are always merged.
 *
 * A range that fits is never refused: allocator_take fails exactly when allocator_largest_free is too small.
 */
#ifndef AIOBLK_ALLOCATOR_H
#define AIOBLK_ALLOCATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct allocator allocator_t;

/* NULL: no memory, or size is 0, not a multiple of granule, or has 2^31 granules or more. granule: a power of two. */
allocator_t *allocator_new(size_t size, size_t granule);
void allocator_free(allocator_t *allocator);

/* The offset of a range of at least length bytes, a multiple of granule, or -1 when no free range is that long. */
int64_t allocator_take(allocator_t *allocator, size_t length);

/* Gives a range back. False, and nothing is changed, when no taken range starts at offset. */
bool allocator_give(allocator_t *allocator, size_t offset);

size_t allocator_size(const allocator_t *allocator);
size_t allocator_granule(const allocator_t *allocator);
size_t allocator_in_use(const allocator_t *allocator);       /* bytes in taken ranges, rounded up to granules */
size_t allocator_count(const allocator_t *allocator);        /* taken ranges */
size_t allocator_peak(const allocator_t *allocator);         /* the most bytes that were in use at once */
size_t allocator_takes(const allocator_t *allocator);        /* successful takes so far */
size_t allocator_largest_free(const allocator_t *allocator); /* bytes */

#endif
