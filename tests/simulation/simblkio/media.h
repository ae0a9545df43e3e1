/*
 * What a disk holds, and what is left of it when the power fails. It knows of nothing else here, so that others can use it.
 *
 * A change is seen by reads from the moment it is made. It is certain to survive once a flush, or FUA, covers it. Until
 * then each of its sectors may survive or not, apart from the others: a sector comes back as what was last covered
 * there, or as anything written there since.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SECTOR = 512 };

struct media;

struct media *media_new(uint64_t size, bool write_through);
void media_free(struct media *m);

uint64_t media_size(const struct media *m);
void media_resize(struct media *m, uint64_t size); /* what is new is zero, at once and for ever */
void media_fill(struct media *m, const void *data); /* all of it, as if it had always been there */

/* Beyond the end there are zeroes. */
void media_read(const struct media *m, uint64_t at, void *data, size_t length);

/* Returns the change's number. Without data: zeroes. It lies within the size. */
uint64_t media_write(struct media *m, uint64_t at, const void *data, size_t length);

/* Of a change whose request has succeeded, as its caller knows from now on: what flushes that come may cover. */
void media_acknowledge(struct media *m, uint64_t change);

/* FUA: the change survives, though not those before it elsewhere. */
void media_persist(struct media *m, uint64_t change);

/* A flush covers what was acknowledged when it was submitted: take the mark then, and give it when it has succeeded. */
uint64_t media_mark(const struct media *m);
void media_flush(struct media *m, uint64_t mark);

/* The power fails: chooses what is left, which is all there is from now on. Returns how many sectors lost something. */
uint64_t media_power_failure(struct media *m, uint64_t *random_state);

/* How many contents a sector may come back with, 1 where that is certain; and the nth of them, 0 being what is certain. */
unsigned media_outcomes(const struct media *m, uint64_t sector);
void media_outcome(const struct media *m, uint64_t sector, unsigned index, void *data);
