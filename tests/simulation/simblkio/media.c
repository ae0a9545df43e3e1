#define _GNU_SOURCE
#include "media.h"
#include "random.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Whole sectors, as they were once it was made. */
struct change {
    uint64_t number, acknowledged; /* 0: not yet */
    uint64_t first, count;         /* sectors */
    uint8_t *data;
};

struct media {
    uint64_t size, sectors;
    bool write_through;
    uint8_t *now, *certain; /* what is read; what survives at least */
    uint64_t *covered;      /* for each sector, the change that is certain there */
    struct change *changes; /* that something of may not survive, in their order */
    size_t count, room;
    uint64_t last, last_acknowledged;
};

static void *need(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

/* Zeroes that cost nothing until they are written to. There is a byte more than is asked for, since none is not possible. */
static void *area_resize(void *area, size_t before, size_t size)
{
    void *found = area ? mremap(area, before + 1, size + 1, MREMAP_MAYMOVE)
                       : mmap(NULL, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return need(found == MAP_FAILED ? NULL : found);
}

/* What has been cut off may come back, within the last page that was kept. */
static void clear_cut(void *area, size_t kept, size_t before)
{
    size_t page_end = (kept | 4095) + 1;
    if (kept < before) {
        memset((uint8_t *)area + kept, 0, (page_end < before ? page_end : before) - kept);
    }
}

static uint64_t sectors_of(uint64_t size) { return (size + SECTOR - 1) / SECTOR; }

struct media *media_new(uint64_t size, bool write_through)
{
    struct media *m = need(calloc(1, sizeof(*m)));
    m->write_through = write_through;
    media_resize(m, size);
    return m;
}

static void forget_changes(struct media *m)
{
    for (size_t i = 0; i < m->count; i++) {
        free(m->changes[i].data);
    }
    m->count = 0;
}

void media_free(struct media *m)
{
    if (m) {
        forget_changes(m);
        free(m->changes);
        munmap(m->now, m->sectors * SECTOR + 1);
        munmap(m->certain, m->sectors * SECTOR + 1);
        munmap(m->covered, m->sectors * sizeof(*m->covered) + 1);
        free(m);
    }
}

uint64_t media_size(const struct media *m) { return m->size; }

void media_resize(struct media *m, uint64_t size)
{
    uint64_t sectors = sectors_of(size), before = m->sectors, kept = size < m->size ? size : m->size;
    if (m->now) {
        clear_cut(m->now, kept, before * SECTOR);
        clear_cut(m->certain, kept, before * SECTOR);
    }
    m->now = area_resize(m->now, before * SECTOR, sectors * SECTOR);
    m->certain = area_resize(m->certain, before * SECTOR, sectors * SECTOR);
    m->covered = area_resize(m->covered, before * sizeof(*m->covered), sectors * sizeof(*m->covered));
    for (uint64_t i = m->last ? kept / SECTOR : sectors; i < sectors; i++) {
        m->covered[i] = i < sectors_of(kept) && i < before ? m->covered[i] : m->last;
    }
    m->size = size;
    m->sectors = sectors;
}

void media_fill(struct media *m, const void *data)
{
    forget_changes(m);
    memcpy(m->now, data, m->size);
    memcpy(m->certain, data, m->size);
}

void media_read(const struct media *m, uint64_t at, void *data, size_t length)
{
    size_t there = at >= m->size ? 0 : length < m->size - at ? length : m->size - at;
    memcpy(data, m->now + (there ? at : 0), there);
    memset((uint8_t *)data + there, 0, length - there);
}

static struct change *find(struct media *m, uint64_t number)
{
    for (size_t i = m->count; i-- > 0;) {
        if (m->changes[i].number == number) {
            return &m->changes[i];
        }
    }
    return NULL;
}

static void cover(struct media *m, const struct change *change)
{
    for (uint64_t i = 0; i < change->count && change->first + i < m->sectors; i++) {
        uint64_t sector = change->first + i;
        if (m->covered[sector] < change->number) {
            m->covered[sector] = change->number;
            memcpy(m->certain + sector * SECTOR, change->data + i * SECTOR, SECTOR);
        }
    }
}

static bool is_certain(const struct media *m, const struct change *change)
{
    for (uint64_t i = 0; i < change->count && change->first + i < m->sectors; i++) {
        if (m->covered[change->first + i] < change->number) {
            return false;
        }
    }
    return true;
}

static void drop_certain(struct media *m)
{
    size_t left = 0;
    for (size_t i = 0; i < m->count; i++) {
        if (is_certain(m, &m->changes[i])) {
            free(m->changes[i].data);
        } else {
            m->changes[left++] = m->changes[i];
        }
    }
    m->count = left;
}

uint64_t media_write(struct media *m, uint64_t at, const void *data, size_t length)
{
    assert(at <= m->size && length <= m->size - at);
    if (data) {
        memcpy(m->now + at, data, length);
    } else {
        memset(m->now + at, 0, length);
    }
    uint64_t number = ++m->last;
    if (length == 0) {
        return number;
    }
    if (m->count == m->room) {
        m->room = m->room ? 2 * m->room : 16;
        m->changes = need(realloc(m->changes, m->room * sizeof(*m->changes)));
    }
    struct change *change = &m->changes[m->count++];
    change->number = number;
    change->acknowledged = 0;
    change->first = at / SECTOR;
    change->count = (at + length - 1) / SECTOR - change->first + 1;
    change->data = need(malloc(change->count * SECTOR));
    memcpy(change->data, m->now + change->first * SECTOR, change->count * SECTOR);
    return number;
}

void media_acknowledge(struct media *m, uint64_t number)
{
    struct change *change = find(m, number);
    if (change) {
        change->acknowledged = ++m->last_acknowledged;
        if (m->write_through) {
            cover(m, change);
            drop_certain(m);
        }
    }
}

void media_persist(struct media *m, uint64_t number)
{
    struct change *change = find(m, number);
    if (change) {
        cover(m, change);
        drop_certain(m);
    }
}

uint64_t media_mark(const struct media *m) { return m->last_acknowledged; }

void media_flush(struct media *m, uint64_t mark)
{
    for (size_t i = 0; i < m->count; i++) {
        if (m->changes[i].acknowledged && m->changes[i].acknowledged <= mark) {
            cover(m, &m->changes[i]);
        }
    }
    drop_certain(m);
}

static bool is_possible(const struct media *m, const struct change *change, uint64_t sector)
{
    return change->first <= sector && sector - change->first < change->count && change->number > m->covered[sector];
}

static const struct change *possible(const struct media *m, uint64_t sector, unsigned index)
{
    for (size_t i = 0; i < m->count; i++) {
        if (is_possible(m, &m->changes[i], sector) && --index == 0) {
            return &m->changes[i];
        }
    }
    return NULL;
}

unsigned media_outcomes(const struct media *m, uint64_t sector)
{
    unsigned count = 1;
    for (size_t i = 0; i < m->count; i++) {
        count += is_possible(m, &m->changes[i], sector);
    }
    return count;
}

void media_outcome(const struct media *m, uint64_t sector, unsigned index, void *data)
{
    const struct change *change = index ? possible(m, sector, index) : NULL;
    memcpy(data, change ? change->data + (sector - change->first) * SECTOR : m->certain + sector * SECTOR, SECTOR);
}

/* Sectors in their order, so that chance meets them in the same one; all others are as they are certain to be. */
static bool *changed_sectors(const struct media *m)
{
    bool *changed = need(calloc(m->sectors + 1, sizeof(*changed)));
    for (size_t i = 0; i < m->count; i++) {
        for (uint64_t k = 0; k < m->changes[i].count && m->changes[i].first + k < m->sectors; k++) {
            changed[m->changes[i].first + k] = true;
        }
    }
    return changed;
}

uint64_t media_power_failure(struct media *m, uint64_t *random_state)
{
    uint64_t lost = 0;
    bool *changed = changed_sectors(m);
    for (uint64_t sector = 0; sector < m->sectors; sector++) {
        unsigned outcomes = changed[sector] ? media_outcomes(m, sector) : 1;
        if (outcomes > 1) {
            uint8_t left[SECTOR];
            media_outcome(m, sector, (unsigned)random_below(random_state, outcomes), left);
            lost += memcmp(m->now + sector * SECTOR, left, SECTOR) != 0;
            memcpy(m->now + sector * SECTOR, left, SECTOR);
            memcpy(m->certain + sector * SECTOR, left, SECTOR);
        }
    }
    free(changed);
    forget_changes(m);
    return lost;
}
