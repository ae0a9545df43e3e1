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

/* Spreads a number's bits: splitmix64's last steps. Without that, neighbours begin alike. */
static inline uint64_t random_spread(uint64_t bits)
{
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
    return bits ^ bits >> 31;
}

/* A state of its own for whoever the numbers name; never 0, where the stream would stand still. */
static inline uint64_t random_seed(uint64_t seed, uint64_t first, uint64_t second)
{
    uint64_t state = random_spread(seed + 0x9E3779B97F4A7C15u);
    state = random_spread(state + first + 0x9E3779B97F4A7C15u);
    state = random_spread(state + second + 0x9E3779B97F4A7C15u);
    return state ? state : 1;
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
