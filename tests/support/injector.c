/*
 * A fault injector: preloaded into a process, it lets the nth call of a kind fail there.
 *
 * It stands before the functions of the C library that hand out descriptors, memory and threads, before those of
 * libblkio, and before Python's allocators. tests/support/injector.py builds it and speaks to it.
 *
 * Calls are counted and refused only between injector_resume() and injector_pause(), all threads' together. What
 * libblkio asks the system for while it is being called is counted apart from what everybody else does: some of that
 * it cannot do without. (It makes some system calls without the C library. Only a limit of the process stops those.)
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

/* In the order of injector.py's Kind. */
enum kind { DESCRIPTOR, MEMORY, THREAD, LIBBLKIO, LIBBLKIO_DESCRIPTOR, LIBBLKIO_MEMORY, PYTHON };

static struct {
    atomic_bool running;
    enum kind kind;
    long first, last; /* which calls fail, counted from 1 */
    int error;
    atomic_long calls, refusals;
    _Atomic(const char *) refused; /* the first call that was */
} fault;

static _Thread_local int inside_libblkio;
static _Thread_local bool in_call; /* of injector_call() */
static _Thread_local bool libblkio_refused; /* so the error message is ours */

/* --- control ------------------------------------------------------------------------------------------------- */

void injector_arm(int kind, long first, long last, int error)
{
    fault.kind = kind;
    fault.first = first;
    fault.last = last;
    fault.error = error;
    fault.calls = fault.refusals = 0;
    fault.refused = NULL;
}

void injector_resume(void) { fault.running = true; }
void injector_pause(void) { fault.running = false; }
long injector_calls(void) { return fault.calls; }
long injector_refusals(void) { return fault.refusals; }
const char *injector_refused(void) { return fault.refused; }

static void note_refusal(const char *name)
{
    const char *none = NULL;
    fault.refusals++;
    atomic_compare_exchange_strong(&fault.refused, &none, name);
}

/* Whether this call is to fail; errno says why. */
static bool refuse(enum kind kind, const char *name)
{
    if (!fault.running || kind != fault.kind) {
        return false;
    }
    long call = ++fault.calls;
    if (call < fault.first || call > fault.last) {
        return false;
    }
    note_refusal(name);
    errno = fault.error;
    return true;
}

/* --- descriptors --------------------------------------------------------------------------------------------- */

#define NEXT(name)                                                                                                    \
    static __typeof__(name) *next;                                                                                    \
    if (next == NULL) {                                                                                               \
        next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);                                                           \
    }

static bool refuse_descriptor(const char *name)
{
    return refuse(inside_libblkio ? LIBBLKIO_DESCRIPTOR : DESCRIPTOR, name);
}

/* A limit of the process (RLIMIT_NOFILE) may have refused it, too. */
static int noticed(int fd, const char *name)
{
    if (fd < 0 && errno == EMFILE && fault.running) {
        note_refusal(name);
    }
    return fd;
}

#define HANDS_OUT_A_DESCRIPTOR(name, parameters, arguments)                                                           \
    int name parameters                                                                                               \
    {                                                                                                                 \
        NEXT(name)                                                                                                    \
        return refuse_descriptor(#name) ? -1 : noticed(next arguments, #name);                                        \
    }

HANDS_OUT_A_DESCRIPTOR(dup, (int fd), (fd))
HANDS_OUT_A_DESCRIPTOR(dup3, (int old, int new, int flags), (old, new, flags))
HANDS_OUT_A_DESCRIPTOR(socket, (int domain, int type, int protocol), (domain, type, protocol))
HANDS_OUT_A_DESCRIPTOR(socketpair, (int domain, int type, int protocol, int ends[2]), (domain, type, protocol, ends))
HANDS_OUT_A_DESCRIPTOR(accept4, (int fd, struct sockaddr *restrict address, socklen_t *restrict length, int flags),
                       (fd, address, length, flags))
HANDS_OUT_A_DESCRIPTOR(pipe2, (int ends[2], int flags), (ends, flags))
HANDS_OUT_A_DESCRIPTOR(eventfd, (unsigned int value, int flags), (value, flags))
HANDS_OUT_A_DESCRIPTOR(epoll_create1, (int flags), (flags))
HANDS_OUT_A_DESCRIPTOR(memfd_create, (const char *name, unsigned int flags), (name, flags))
HANDS_OUT_A_DESCRIPTOR(timerfd_create, (clockid_t clock, int flags), (clock, flags))

static int mode_of(int flags, va_list more) { return __OPEN_NEEDS_MODE(flags) ? va_arg(more, int) : 0; }

#define OPENS(name, parameters, arguments)                                                                            \
    int name parameters                                                                                               \
    {                                                                                                                 \
        NEXT(name)                                                                                                    \
        va_list more;                                                                                                 \
        va_start(more, flags);                                                                                        \
        int mode = mode_of(flags, more);                                                                              \
        va_end(more);                                                                                                 \
        return refuse_descriptor(#name) ? -1 : noticed(next arguments, #name);                                        \
    }

OPENS(open, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENS(openat, (int directory, const char *path, int flags, ...), (directory, path, flags, mode))
OPENS(openat64, (int directory, const char *path, int flags, ...), (directory, path, flags, mode))

DIR *opendir(const char *path)
{
    NEXT(opendir)
    if (refuse_descriptor("opendir")) {
        return NULL;
    }
    DIR *directory = next(path);
    noticed(directory == NULL ? -1 : 0, "opendir");
    return directory;
}

#define CONTROLS(name)                                                                                                \
    int name(int fd, int command, ...)                                                                                \
    {                                                                                                                 \
        NEXT(name)                                                                                                    \
        va_list more;                                                                                                 \
        va_start(more, command);                                                                                      \
        void *argument = va_arg(more, void *);                                                                        \
        va_end(more);                                                                                                 \
        if (command != F_DUPFD && command != F_DUPFD_CLOEXEC) {                                                       \
            return next(fd, command, argument);                                                                       \
        }                                                                                                             \
        return refuse_descriptor("fcntl(F_DUPFD)") ? -1 : noticed(next(fd, command, argument), "fcntl(F_DUPFD)");     \
    }

CONTROLS(fcntl)
CONTROLS(fcntl64)

long syscall(long number, ...)
{
    NEXT(syscall)
    long a[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(more, long);
    }
    va_end(more);
    const char *name = number == SYS_io_uring_setup ? "io_uring_setup"
                       : number == SYS_pidfd_open   ? "pidfd_open"
                       : number == SYS_memfd_create ? "memfd_create"
                       : number == SYS_eventfd2     ? "eventfd"
                                                    : NULL;
    if (name == NULL) {
        return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    }
    return refuse_descriptor(name) ? -1 : noticed(next(number, a[0], a[1], a[2], a[3], a[4], a[5]), name);
}

/* --- memory -------------------------------------------------------------------------------------------------- */

static bool refuse_memory(const char *name) { return refuse(inside_libblkio ? LIBBLKIO_MEMORY : MEMORY, name); }

/* Anonymous memory is what allocators ask for, at moments of their own. */
#define MAPS(name, offset_type)                                                                                       \
    void *name(void *address, size_t length, int protection, int flags, int fd, offset_type offset)                   \
    {                                                                                                                 \
        NEXT(name)                                                                                                    \
        if (!(flags & MAP_ANONYMOUS) && refuse_memory("mmap")) {                                                      \
            return MAP_FAILED;                                                                                        \
        }                                                                                                             \
        return next(address, length, protection, flags, fd, offset);                                                  \
    }

MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

#define TAKES_MEMORY(name, parameters, arguments)                                                                     \
    int name parameters                                                                                               \
    {                                                                                                                 \
        NEXT(name)                                                                                                    \
        if (refuse_memory(#name)) {                                                                                   \
            return -1;                                                                                                \
        }                                                                                                             \
        int result = next arguments;                                                                                  \
        if (result < 0 && errno == EFBIG && fault.running) {                                                          \
            note_refusal(#name); /* by RLIMIT_FSIZE */                                                                \
        }                                                                                                             \
        return result;                                                                                                \
    }

TAKES_MEMORY(ftruncate, (int fd, off_t length), (fd, length))
TAKES_MEMORY(ftruncate64, (int fd, off64_t length), (fd, length))
TAKES_MEMORY(mlock, (const void *address, size_t length), (address, length))

/* --- threads ------------------------------------------------------------------------------------------------- */

int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes, void *(*start)(void *),
                   void *restrict argument)
{
    NEXT(pthread_create)
    return refuse(THREAD, "pthread_create") ? errno : next(thread, attributes, start, argument);
}

/* --- libblkio ------------------------------------------------------------------------------------------------ */

struct blkio;
struct blkioq;
struct blkio_mem_region;
struct blkio_completion;

/* Python loads libblkio for its modules alone, where RTLD_NEXT does not look. */
static void *find_in_libblkio(const char *name)
{
    void *library = dlopen("libblkio.so.1", RTLD_LAZY | RTLD_NOLOAD);
    return library == NULL ? NULL : dlsym(library, name);
}

#define NEXT_IN_LIBBLKIO(name)                                                                                        \
    static __typeof__(name) *next;                                                                                    \
    if (next == NULL) {                                                                                               \
        next = (__typeof__(name) *)find_in_libblkio(#name);                                                           \
    }

static bool refuse_libblkio(const char *name) { return libblkio_refused = refuse(LIBBLKIO, name); }

#define CALLS_LIBBLKIO(name, parameters, arguments)                                                                   \
    int name parameters;                                                                                              \
    int name parameters                                                                                               \
    {                                                                                                                 \
        NEXT_IN_LIBBLKIO(name)                                                                                        \
        if (refuse_libblkio(#name)) {                                                                                 \
            return -errno;                                                                                            \
        }                                                                                                             \
        inside_libblkio++;                                                                                            \
        int result = next arguments;                                                                                  \
        inside_libblkio--;                                                                                            \
        return result;                                                                                                \
    }

/* What these begin, only blkio_destroy() undoes: they do it, and then say that they have failed. */
#define CALLS_LIBBLKIO_AND_FAILS_THEN(name)                                                                           \
    int name(struct blkio *device);                                                                                   \
    int name(struct blkio *device)                                                                                    \
    {                                                                                                                 \
        NEXT_IN_LIBBLKIO(name)                                                                                        \
        inside_libblkio++;                                                                                            \
        int result = next(device);                                                                                    \
        inside_libblkio--;                                                                                            \
        return result == 0 && refuse_libblkio(#name) ? -errno : result;                                               \
    }

CALLS_LIBBLKIO(blkio_create, (const char *driver, struct blkio **device), (driver, device))
CALLS_LIBBLKIO_AND_FAILS_THEN(blkio_connect)
CALLS_LIBBLKIO_AND_FAILS_THEN(blkio_start)
CALLS_LIBBLKIO(blkio_get_bool, (struct blkio * device, const char *name, bool *value), (device, name, value))
CALLS_LIBBLKIO(blkio_get_int, (struct blkio * device, const char *name, int *value), (device, name, value))
CALLS_LIBBLKIO(blkio_get_uint64, (struct blkio * device, const char *name, void *value), (device, name, value))
CALLS_LIBBLKIO(blkio_get_str, (struct blkio * device, const char *name, char **value), (device, name, value))
CALLS_LIBBLKIO(blkio_set_bool, (struct blkio * device, const char *name, bool value), (device, name, value))
CALLS_LIBBLKIO(blkio_set_int, (struct blkio * device, const char *name, int value), (device, name, value))
CALLS_LIBBLKIO(blkio_set_uint64, (struct blkio * device, const char *name, unsigned long value),
               (device, name, value))
CALLS_LIBBLKIO(blkio_set_str, (struct blkio * device, const char *name, const char *value), (device, name, value))
CALLS_LIBBLKIO(blkio_map_mem_region, (struct blkio * device, const struct blkio_mem_region *region), (device, region))
CALLS_LIBBLKIO(blkio_add_queue, (struct blkio * device), (device))
CALLS_LIBBLKIO(blkio_add_poll_queue, (struct blkio * device), (device))
CALLS_LIBBLKIO(blkio_remove_queue, (struct blkio * device, int index), (device, index))
CALLS_LIBBLKIO(blkio_remove_poll_queue, (struct blkio * device, int index), (device, index))
/*
 * Who spins looks again and again, thousands of times while a device is slow: all these are one step, which ends when
 * something has come or is submitted, or an event is read, which tells of what has come.
 */
static _Thread_local struct blkioq *found_empty;

ssize_t read(int fd, void *data, size_t length)
{
    NEXT(read)
    if (length == sizeof(uint64_t)) {
        found_empty = NULL;
    }
    return next(fd, data, length);
}

#define LOOKS(name, parameters, arguments)                                                                            \
    int name parameters;                                                                                              \
    int name parameters                                                                                               \
    {                                                                                                                 \
        NEXT_IN_LIBBLKIO(name)                                                                                        \
        if (found_empty != queue && refuse_libblkio(#name)) {                                                         \
            return -errno;                                                                                            \
        }                                                                                                             \
        inside_libblkio++;                                                                                            \
        int result = next arguments;                                                                                  \
        inside_libblkio--;                                                                                            \
        found_empty = result == 0 ? queue : NULL;                                                                     \
        return result;                                                                                                \
    }

LOOKS(blkioq_do_io,
      (struct blkioq * queue, struct blkio_completion *completions, int least, int most, void *timeout),
      (queue, completions, least, most, timeout))
LOOKS(blkioq_do_io_interruptible,
      (struct blkioq * queue, struct blkio_completion *completions, int least, int most, void *timeout,
       const sigset_t *signals),
      (queue, completions, least, most, timeout, signals))

#define SUBMITS(name, parameters, arguments)                                                                          \
    void name parameters;                                                                                             \
    void name parameters                                                                                              \
    {                                                                                                                 \
        NEXT_IN_LIBBLKIO(name)                                                                                        \
        found_empty = NULL;                                                                                           \
        next arguments;                                                                                               \
    }

SUBMITS(blkioq_read, (struct blkioq * queue, uint64_t start, void *data, size_t length, void *own, uint32_t flags),
        (queue, start, data, length, own, flags))
SUBMITS(blkioq_write,
        (struct blkioq * queue, uint64_t start, const void *data, size_t length, void *own, uint32_t flags),
        (queue, start, data, length, own, flags))
SUBMITS(blkioq_readv,
        (struct blkioq * queue, uint64_t start, const struct iovec *parts, int count, void *own, uint32_t flags),
        (queue, start, parts, count, own, flags))
SUBMITS(blkioq_writev,
        (struct blkioq * queue, uint64_t start, const struct iovec *parts, int count, void *own, uint32_t flags),
        (queue, start, parts, count, own, flags))
SUBMITS(blkioq_write_zeroes, (struct blkioq * queue, uint64_t start, uint64_t length, void *own, uint32_t flags),
        (queue, start, length, own, flags))
SUBMITS(blkioq_discard, (struct blkioq * queue, uint64_t start, uint64_t length, void *own, uint32_t flags),
        (queue, start, length, own, flags))
SUBMITS(blkioq_flush, (struct blkioq * queue, void *own, uint32_t flags), (queue, own, flags))

const char *blkio_get_error_msg(void);
const char *blkio_get_error_msg(void)
{
    NEXT_IN_LIBBLKIO(blkio_get_error_msg)
    return libblkio_refused ? "the fault injector refused" : next();
}

/* --- Python's objects ---------------------------------------------------------------------------------------- */

/* PyMemAllocatorEx, and two of PyMemAllocatorDomain. */
struct allocator {
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
};
enum { MEMORY_DOMAIN = 1, OBJECT_DOMAIN = 2 };
enum { MOST_FRAMES = 5 }; /* from here to the core; two of them are ours */

static struct allocator allocators[OBJECT_DOMAIN + 1];

static bool python_bears_it; /* being refused memory for its own work, in whatever Python code it runs */

/*
 * Whether the compiled core has asked for it, itself or by a function of Python's that hands it out, a few calls away. What
 * is farther away is work of Python's own, such as readying a type: CPython 3.13 crashes where that is refused memory.
 */
static bool asked_by_core(void)
{
    void *frames[MOST_FRAMES];
    int count = backtrace(frames, MOST_FRAMES);
    for (int i = 0; i < count; i++) {
        Dl_info place;
        if (dladdr(frames[i], &place) != 0 && strstr(place.dli_fname, "/_core.") != NULL) {
            return true;
        }
    }
    return false;
}

static bool refuse_object(void)
{
    return in_call && fault.running && fault.kind == PYTHON && (python_bears_it || asked_by_core()) &&
           refuse(PYTHON, "Python's allocator");
}

static void *object_malloc(void *context, size_t size)
{
    struct allocator *real = context;
    return refuse_object() ? NULL : real->malloc(real->context, size);
}

static void *object_calloc(void *context, size_t count, size_t size)
{
    struct allocator *real = context;
    return refuse_object() ? NULL : real->calloc(real->context, count, size);
}

static void *object_realloc(void *context, void *memory, size_t size)
{
    struct allocator *real = context;
    return refuse_object() ? NULL : real->realloc(real->context, memory, size);
}

static void object_free(void *context, void *memory)
{
    struct allocator *real = context;
    real->free(real->context, memory);
}

/* Call a function while objects of this thread are counted, and refused: they alone are the function's own. */
void *injector_call(void *function, void *arguments)
{
    void *(*call)(void *, void *) = dlsym(RTLD_DEFAULT, "PyObject_CallObject");
    in_call = fault.running = true;
    void *result = call(function, arguments);
    in_call = fault.running = false;
    return result;
}

/* Stand before Python's allocators from now on. */
void injector_watch_python(bool bears_it)
{
    python_bears_it = bears_it;
    backtrace((void *[1]){NULL}, 1); /* the first one loads what it needs */
    void (*get)(int, struct allocator *) = dlsym(RTLD_DEFAULT, "PyMem_GetAllocator");
    void (*set)(int, struct allocator *) = dlsym(RTLD_DEFAULT, "PyMem_SetAllocator");
    for (int domain = MEMORY_DOMAIN; domain <= OBJECT_DOMAIN; domain++) {
        get(domain, &allocators[domain]);
        set(domain, &(struct allocator){&allocators[domain], object_malloc, object_calloc, object_realloc, object_free});
    }
}
