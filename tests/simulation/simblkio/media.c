#include "media.h"
#include "random.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

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
        free(m->now);
        free(m->certain);
        free(m->covered);
        free(m);
    }
}

uint64_t media_size(const struct media *m) { return m->size; }

void media_resize(struct media *m, uint64_t size)
{
    uint64_t sectors = sectors_of(size), kept = size < m->size ? size : m->size;
    m->now = need(realloc(m->now, sectors * SECTOR + 1));
    m->certain = need(realloc(m->certain, sectors * SECTOR + 1));
    m->covered = need(realloc(m->covered, (sectors + 1) * sizeof(*m->covered)));
    memset(m->now + kept, 0, sectors * SECTOR - kept);
    memset(m->certain + kept, 0, sectors * SECTOR - kept);
    for (uint64_t i = kept / SECTOR; i < sectors; i++) {
        m->covered[i] = i < m->sectors && i < sectors_of(kept) ? m->covered[i] : m->last;
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

static const struct change *possible(const struct media *m, uint64_t sector, unsigned index)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct change *change = &m->changes[i];
        bool here = change->first <= sector && sector - change->first < change->count;
        if (here && change->number > m->covered[sector] && --index == 0) {
            return change;
        }
    }
    return NULL;
}

unsigned media_outcomes(const struct media *m, uint64_t sector)
{
    unsigned count = 1;
    while (possible(m, sector, count)) {
        count++;
    }
    return count;
}

void media_outcome(const struct media *m, uint64_t sector, unsigned index, void *data)
{
    const struct change *change = index ? possible(m, sector, index) : NULL;
    memcpy(data, change ? change->data + (sector - change->first) * SECTOR : m->certain + sector * SECTOR, SECTOR);
}

uint64_t media_power_failure(struct media *m, uint64_t *random_state)
{
    uint64_t lost = 0;
    for (uint64_t sector = 0; sector < m->sectors; sector++) {
        unsigned outcomes = m->count ? media_outcomes(m, sector) : 1;
        if (outcomes > 1) {
            uint8_t left[SECTOR];
            media_outcome(m, sector, (unsigned)random_below(random_state, outcomes), left);
            lost += memcmp(m->now + sector * SECTOR, left, SECTOR) != 0;
            memcpy(m->now + sector * SECTOR, left, SECTOR);
        }
    }
    forget_changes(m);
    memcpy(m->certain, m->now, m->sectors * SECTOR);
    return lost;
}
