/*
 * What more than one thread may touch, and how.
 *
 * A queue, its requests in flight and its bounce memory belong to one thread; nothing protects them, on either build of
 * CPython. Four things are shared: a device's mapped regions, a Memory's uses, an Allocator, and a request that is over
 * (who holds the last reference to it drops it, in whatever thread). With the GIL they need nothing, and what is defined
 * here comes to nothing. A free-threaded CPython has no GIL: there the counts are atomic, a planning queue holds its own
 * lock against changes of the region table, and the rest is rare enough for critical sections.
 */
#ifndef AIOBLK_THREADS_H
#define AIOBLK_THREADS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

/* For what one thread writes and another may read at any time: never torn, and what was written before it is seen. */
#define PUBLISH(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELEASE)
#define OBSERVE(place) __atomic_load_n(&(place), __ATOMIC_ACQUIRE)

/* A snapshot of numbers that another thread goes on counting; no more than that is promised, so nothing is to be reported. */
#ifdef __SANITIZE_THREAD__
#define READS_WHILE_OTHERS_WRITE __attribute__((no_sanitize("thread")))
#else
#define READS_WHILE_OTHERS_WRITE
#endif

/*
 * may_touch() says whether this thread may touch what belongs to `owner`: with the GIL, where nothing is written but
 * between two instructions of Python code, any thread may.
 */
#ifdef Py_GIL_DISABLED

/* The value before. */
#define SHARED_ADD(place, value) __atomic_fetch_add(&(place), (value), __ATOMIC_SEQ_CST)
#define SHARED_OR(place, value) __atomic_fetch_or(&(place), (value), __ATOMIC_SEQ_CST)
#define SHARED_EXCHANGE(place, value) __atomic_exchange_n(&(place), (value), __ATOMIC_SEQ_CST)
#define SHARED_STORE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_SEQ_CST)
#define SHARED_LOAD(place) __atomic_load_n(&(place), __ATOMIC_SEQ_CST)

/* By the one thread that writes it; another may read it at any time. */
#define COUNT(place, value) PUBLISH(place, (place) + (value))

typedef PyMutex Lock;
#define LOCK(lock) PyMutex_Lock(lock)
#define UNLOCK(lock) PyMutex_Unlock(lock)

#define CRITICAL_SECTION(object) Py_BEGIN_CRITICAL_SECTION(object)
#define END_CRITICAL_SECTION() Py_END_CRITICAL_SECTION()

static inline bool may_touch(unsigned long owner) { return owner == PyThread_get_thread_ident(); }

/* Another thread may be dropping the last of them: CPython looks at the list in a way that bears it. */
#define CLEAR_WEAK_REFERENCES(object) PyObject_ClearWeakRefs((PyObject *)(object))

#else

#define SHARED_ADD(place, value) ((place) += (value), (place) - (value))
#define SHARED_OR(place, value) ((place) |= (value), (place) & ~(value))
#define SHARED_EXCHANGE(place, value) exchange_bool(&(place), (value))
#define SHARED_STORE(place, value) ((place) = (value))
#define SHARED_LOAD(place) (place)
#define COUNT(place, value) ((place) += (value))

static inline bool exchange_bool(bool *place, bool value)
{
    bool before = *place;
    *place = value;
    return before;
}

typedef struct {
} Lock;
#define LOCK(lock) ((void)(lock))
#define UNLOCK(lock) ((void)(lock))

#define CRITICAL_SECTION(object) {
#define END_CRITICAL_SECTION() }

#define may_touch(owner) true

#define CLEAR_WEAK_REFERENCES(object) \
    ((object)->weak_references ? PyObject_ClearWeakRefs((PyObject *)(object)) : (void)0)

#endif

#endif
