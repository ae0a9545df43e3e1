/* Time: what asks for it, and what waits for it to pass, does so here, so that there is one thing to put in its place. */
#include "rooms.h"

uint64_t clock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
}

/* Less than a second. */
void clock_doze(uint64_t nanoseconds)
{
    struct timespec time = {0, nanoseconds};
    Py_BEGIN_ALLOW_THREADS
    nanosleep(&time, NULL);
    Py_END_ALLOW_THREADS
}
