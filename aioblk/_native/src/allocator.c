#include "allocator.h"

#include <assert.h>
#include <stdlib.h>

/* Free ranges are kept in lists by length ("classes"), as in TLSF: the first level is the power of two, the second
 * divides it into 16 steps. Lengths below 16 granules have a class each. Two levels of bitmaps tell which classes have
 * a range, so the search for a fitting class is two bit scans. */
#define STEP_BITS 4
#define STEPS (1u << STEP_BITS)
#define LEVELS (32 - STEP_BITS)

#define NONE UINT32_MAX
#define TAKEN (1u << 31)

typedef uint32_t granules; /* an index or a length, in granules */

typedef struct {
    uint32_t starting; /* length of the range that starts here | TAKEN; 0: none starts here */
    uint32_t ending;   /* length of the range that ends here; meaningful only at the last granule of a range */
    granules next;     /* in the list of its class, of the free range that starts here */
    granules previous;
} tag;

struct allocator {
    size_t granule_bits;
    granules length;
    granules taken, peak;
    size_t taken_ranges;
    size_t takes;
    uint32_t levels_with_free;
    uint16_t steps_with_free[LEVELS];
    granules first[LEVELS][STEPS];
    tag tags[];
};

typedef struct {
    unsigned level, step;
} class;

static unsigned highest_bit(uint32_t value)
{
    return 31 - (unsigned)__builtin_clz(value);
}

static unsigned lowest_bit(uint32_t value)
{
    return (unsigned)__builtin_ctz(value);
}

static class class_of(granules length)
{
    if (length < STEPS) {
        return (class){0, length};
    }
    unsigned shift = highest_bit(length) - STEP_BITS;
    return (class){shift + 1, (length >> shift) - STEPS};
}

static void insert_free(allocator_t *a, granules start, granules length)
{
    class c = class_of(length);
    granules old_first = a->first[c.level][c.step];

    a->tags[start].starting = length;
    a->tags[start + length - 1].ending = length;
    a->tags[start].previous = NONE;
    a->tags[start].next = old_first;
    if (old_first != NONE) {
        a->tags[old_first].previous = start;
    }
    a->first[c.level][c.step] = start;
    a->steps_with_free[c.level] |= (uint16_t)(1u << c.step);
    a->levels_with_free |= 1u << c.level;
}

/* Takes a free range off its list; it no longer is a range of its own. Returns its length. */
static granules remove_free(allocator_t *a, granules start)
{
    tag *t = &a->tags[start];
    granules length = t->starting;
    class c = class_of(length);

    if (t->next != NONE) {
        a->tags[t->next].previous = t->previous;
    }
    if (t->previous != NONE) {
        a->tags[t->previous].next = t->next;
    } else {
        a->first[c.level][c.step] = t->next;
        if (t->next == NONE) {
            a->steps_with_free[c.level] &= (uint16_t)~(1u << c.step);
            if (a->steps_with_free[c.level] == 0) {
                a->levels_with_free &= ~(1u << c.level);
            }
        }
    }
    t->starting = 0;
    return length;
}

/* A free range of any class above that of length, or NONE: every range there is long enough. */
static granules find_in_higher_class(const allocator_t *a, granules length)
{
    class c = class_of(length);
    unsigned level = c.level;
    uint32_t steps = a->steps_with_free[level] & ~((2u << c.step) - 1);

    if (steps == 0) {
        uint32_t levels = a->levels_with_free & ~((2u << level) - 1);
        if (levels == 0) {
            return NONE;
        }
        level = lowest_bit(levels);
        steps = a->steps_with_free[level];
    }
    return a->first[level][lowest_bit(steps)];
}

/* Within a class the lengths differ by up to a sixteenth, so its list is searched. Below 16 granules they are equal
 * and the first one fits. */
static granules find_in_own_class(const allocator_t *a, granules length)
{
    class c = class_of(length);
    granules start = a->first[c.level][c.step];

    while (start != NONE && a->tags[start].starting < length) {
        start = a->tags[start].next;
    }
    return start;
}

static granules find_free(const allocator_t *a, granules length)
{
    if (length < STEPS) {
        granules exact = find_in_own_class(a, length);
        return exact != NONE ? exact : find_in_higher_class(a, length);
    }
    /* Constant time as long as any longer range is left; only then the walk through the own class. */
    granules longer = find_in_higher_class(a, length);
    return longer != NONE ? longer : find_in_own_class(a, length);
}

static granules round_up_to_granules(const allocator_t *a, size_t bytes)
{
    return (granules)((bytes + ((size_t)1 << a->granule_bits) - 1) >> a->granule_bits);
}

allocator_t *allocator_new(size_t size, size_t granule)
{
    if (granule == 0 || (granule & (granule - 1)) != 0 || size == 0 || size % granule != 0) {
        return NULL;
    }
    size_t length = size / granule;
    if (length >= TAKEN) {
        return NULL;
    }
    allocator_t *a = calloc(1, sizeof(*a) + length * sizeof(tag));
    if (a == NULL) {
        return NULL;
    }
    a->granule_bits = (size_t)__builtin_ctzll(granule);
    a->length = (granules)length;
    for (unsigned level = 0; level < LEVELS; level++) {
        for (unsigned step = 0; step < STEPS; step++) {
            a->first[level][step] = NONE;
        }
    }
    insert_free(a, 0, a->length);
    return a;
}

void allocator_free(allocator_t *a)
{
    free(a);
}

int64_t allocator_take(allocator_t *a, size_t bytes)
{
    assert(bytes > 0);
    if (bytes > allocator_size(a)) {
        return -1;
    }
    granules wanted = round_up_to_granules(a, bytes);
    granules start = find_free(a, wanted);
    if (start == NONE) {
        return -1;
    }
    granules found = remove_free(a, start);
    a->tags[start].starting = wanted | TAKEN;
    a->tags[start + wanted - 1].ending = wanted;
    if (found > wanted) {
        insert_free(a, start + wanted, found - wanted);
    }
    a->taken += wanted;
    a->taken_ranges++;
    a->takes++;
    if (a->taken > a->peak) {
        a->peak = a->taken;
    }
    return (int64_t)start << a->granule_bits;
}

bool allocator_give(allocator_t *a, size_t offset)
{
    size_t index = offset >> a->granule_bits;
    if (offset != index << a->granule_bits || index >= a->length || !(a->tags[index].starting & TAKEN)) {
        return false;
    }
    granules start = (granules)index;
    granules length = a->tags[start].starting & ~TAKEN;
    granules after = start + length;

    a->taken -= length;
    a->taken_ranges--;
    a->tags[start].starting = 0;
    if (after < a->length && !(a->tags[after].starting & TAKEN)) {
        length += remove_free(a, after);
    }
    if (start > 0) {
        granules before = start - a->tags[start - 1].ending;
        if (!(a->tags[before].starting & TAKEN)) {
            length += remove_free(a, before);
            start = before;
        }
    }
    insert_free(a, start, length);
    return true;
}

size_t allocator_size(const allocator_t *a)
{
    return (size_t)a->length << a->granule_bits;
}

size_t allocator_granule(const allocator_t *a)
{
    return (size_t)1 << a->granule_bits;
}

size_t allocator_in_use(const allocator_t *a)
{
    return (size_t)a->taken << a->granule_bits;
}

size_t allocator_count(const allocator_t *a)
{
    return a->taken_ranges;
}

size_t allocator_peak(const allocator_t *a)
{
    return (size_t)a->peak << a->granule_bits;
}

size_t allocator_takes(const allocator_t *a)
{
    return a->takes;
}

size_t allocator_largest_free(const allocator_t *a)
{
    if (a->levels_with_free == 0) {
        return 0;
    }
    unsigned level = highest_bit(a->levels_with_free);
    unsigned step = highest_bit(a->steps_with_free[level]);
    granules longest = 0;
    for (granules start = a->first[level][step]; start != NONE; start = a->tags[start].next) {
        if (a->tags[start].starting > longest) {
            longest = a->tags[start].starting;
        }
    }
    return (size_t)longest << a->granule_bits;
}
