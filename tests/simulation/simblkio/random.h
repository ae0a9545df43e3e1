/* The stream that decides, in a run from a seed: xorshift64*. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Du;
}

/* A state of its own for whoever the numbers name; never 0, where the stream would stand still. */
static inline uint64_t random_seed(uint64_t seed, uint64_t first, uint64_t second)
{
    uint64_t state = (seed + 1) * 0x9E3779B97F4A7C15u ^ (first + 1) * 0xBF58476D1CE4E5B9u ^ (second + 1) * 0x94D049BB133111EBu;
    state = state ? state : 1;
    random_next(&state);
    return state;
}

/* From 0 to below, that excluded. */
static inline uint64_t random_below(uint64_t *state, uint64_t below)
{
    return below ? (random_next(state) >> 16) % below : 0;
}

/* Takes nothing from the stream where it cannot happen, so that what is not asked for changes nothing. */
static inline bool random_chance(uint64_t *state, unsigned permille)
{
    return permille > 0 && random_below(state, 1000) < permille;
}
