/* The time of the process: the machine's, or one that passes only where somebody asks for it or sleeps. */
#include "simblkio.h"

#include <dlfcn.h>
#include <errno.h>

#define READING 1000u /* nanoseconds that pass with each reading */
#define SECOND 1000000000u

static _Atomic uint64_t now; /* 0: the clock is the machine's */

static int real_clock(clockid_t clock, struct timespec *time)
{
    static int (*next)(clockid_t, struct timespec *);
    if (next == NULL) {
        next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    return next(clock, time);
}

static int real_sleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left)
{
    static int (*next)(clockid_t, int, const struct timespec *, struct timespec *);
    if (next == NULL) {
        next = (int (*)(clockid_t, int, const struct timespec *, struct timespec *))dlsym(RTLD_NEXT, "clock_nanosleep");
    }
    return next(clock, flags, time, left);
}

static uint64_t nanoseconds(const struct timespec *time)
{
    return (uint64_t)time->tv_sec * SECOND + (uint64_t)time->tv_nsec;
}

static bool is_time(const struct timespec *time) { return time->tv_sec >= 0 && time->tv_nsec >= 0 && time->tv_nsec < SECOND; }

bool clock_is_virtual(void) { return now != 0; }
void clock_pass(uint64_t nanoseconds) { now += nanoseconds; }

void clock_doze(void)
{
    struct timespec moment = {0, DOZE};
    real_sleep(CLOCK_MONOTONIC, 0, &moment, NULL);
}

/* From now on it is so late, and each reading takes a microsecond; 0: the machine's clock again. */
EXPORT void simblkio_clock(uint64_t nanoseconds) { now = nanoseconds; }

/* ---- in place of the system's -------------------------------------------------------------------------------- */

EXPORT int clock_gettime(clockid_t clock, struct timespec *time)
{
    if (clock != CLOCK_MONOTONIC || !clock_is_virtual()) {
        return real_clock(clock, time);
    }
    uint64_t read = atomic_fetch_add(&now, READING);
    *time = (struct timespec){(time_t)(read / SECOND), (long)(read % SECOND)};
    return 0;
}

EXPORT int clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left)
{
    if (clock != CLOCK_MONOTONIC || !clock_is_virtual() || !is_time(time)) {
        return real_sleep(clock, flags, time, left);
    }
    uint64_t asked = nanoseconds(time), before = now;
    if (!(flags & TIMER_ABSTIME)) {
        clock_pass(asked);
    } else {
        while (before < asked && !atomic_compare_exchange_weak(&now, &before, asked)) {
        }
    }
    return 0;
}

EXPORT int nanosleep(const struct timespec *time, struct timespec *left)
{
    errno = clock_nanosleep(CLOCK_MONOTONIC, 0, time, left); /* as the system's, whatever its name of the clock */
    return errno ? -1 : 0;
}
