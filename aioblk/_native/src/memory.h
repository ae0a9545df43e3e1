/* Memory that is handed out in views, and not released before nothing uses it any more.
 *
 * A Memory is an address range that somebody provides: an arena's block, an allocated region, a caller's buffer. A View
 * is a part of it and speaks the buffer protocol. Closing the Memory makes every View raise at once; what has already
 * been handed out (memoryviews, arrays, requests in flight) keeps the memory itself alive, and the last of them
 * releases it.
 *
 * Any thread may use, close and let go of it, with or without a GIL. Who is about to use the memory counts itself first
 * and looks whether it is closed then; who closes it does so first and looks for uses then. So one of them sees the other.
 */
#ifndef AIOBLK_MEMORY_H
#define AIOBLK_MEMORY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>

#include "threads.h"

typedef struct {
    PyObject_HEAD
    char *address;
    size_t length;
    Py_ssize_t uses; /* exported buffers and requests in flight */
    bool closed, readonly, released;
    bool collected; /* the collector has found it in use, by what is garbage as well */
    PyObject *owner;      /* kept until release */
    PyObject *on_release; /* called once, without arguments, or NULL */
    Py_buffer source;     /* the buffer that the memory belongs to; source.obj is NULL when there is none */
    PyObject *weak_references;
} MemoryObject;

typedef struct {
    PyObject_HEAD
    MemoryObject *memory;
    char *address;
    size_t length;
} ViewObject;

extern PyTypeObject Memory_Type, View_Type, Allocator_Type;

/* Undoes memory_use. May run on_release, hence arbitrary Python code. Keeps the current exception; raises nothing. */
void memory_unuse(MemoryObject *memory);

/* Keeps the memory until the matching memory_unuse; the caller keeps the object. False: it is closed. */
static inline bool memory_use(MemoryObject *memory)
{
    (void)SHARED_ADD(memory->uses, 1);
    if (SHARED_LOAD(memory->closed)) {
        memory_unuse(memory);
        return false;
    }
    return true;
}

#endif
