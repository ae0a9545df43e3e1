/*
 * The request path: data structures, and the arrows between its rooms.
 *
 *   submitter.c    the methods that callers call
 *   arguments.c    what they were called with
 *   prepare.c      refuses what is wrong, pins the caller's memory; batch.c does so for many items
 *   plan.c         cuts memory and lengths into parts that the device accepts
 *   queue.h        submits requests, issues their parts, reaps completions, wakes who waits: six rooms, listed there
 *   given_up.c     holds what must not overtake a change that was given up
 *   zeroes.c       writes zeroes where the device does not make them
 *   request.c      the awaitable; waking.c runs or schedules what waits for it, forms.c has its other faces
 *   device_core.c  limits and mapped regions, shared by the queues of a device
 *   calls.c        how all of them call Python code
 *
 * Ownership. A request in flight is owned by its queue (one reference from link to unlink) and owns what the
 * device may touch: the pins on the caller's buffers, its bounce memory and its vectors. All of that is let go
 * when the last part has completed, whatever happened to the awaiting task in the meantime.
 *
 * Threads. A QueueCore belongs to the thread of its loop. What threads share, threads.h names.
 */
#ifndef AIOBLK_CORE_H
#define AIOBLK_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <assert.h> /* of invariants, which the campaign with AddressSanitizer has checked */
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include <time.h>

#include <blkio.h>

#include "allocator.h"
#include "memory.h"
#include "threads.h"

typedef struct region Region;
typedef struct segment Segment;
typedef struct vector Vector;
typedef struct part Part;
typedef struct item Item;
typedef struct request Request;
typedef struct given_up GivenUp;
typedef struct device_core DeviceCore;
typedef struct queue_core QueueCore;
typedef struct submitter Submitter;

/* The kernel's limit on one vector. */
#define IOV_MAX_SEGMENTS 1024

/* ---- calls to Python ------------------------------------------------------------------------------------ */

/* The current exception as an object, normalised: a new reference. It is no longer set. */
PyObject *take_exception(void);
/*
 * For an exception that cannot be raised here. KeyboardInterrupt, SystemExit and their like are not errors: they are put
 * off until the loop can raise them. An error is reported, with `where`, but for a want of memory: true: try again later.
 */
bool put_off_exception(QueueCore *q, PyObject *where);
/* The same for what is no error, if no queue is at hand. */
void raise_in_main_thread(void);
/* Calls a hook, which may be NULL or None, with one argument or none. False: it is to be called again later. */
bool call_hook(QueueCore *q, PyObject *hook, PyObject *argument);
/* An exception that is an outcome has to be had now: what `make` makes, or the error in making it. A new reference. */
PyObject *make_certainly(PyObject *(*make)(Request *, Item *), Request *r, Item *item, int error);

/* ---- operations ---------------------------------------------------------------------------------------- */

typedef enum {
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
    OP_DISCARD,
    OP_FLUSH,
    OP_REPORT_ZONES,
    OP_OPEN_ZONE,
    OP_CLOSE_ZONE,
    OP_FINISH_ZONE,
    OP_RESET_ZONE,
    OP_OPEN_ALL_ZONES,
    OP_CLOSE_ALL_ZONES,
    OP_FINISH_ALL_ZONES,
    OP_RESET_ALL_ZONES,
    OP_COUNT,
} Operation;

extern const char *const operation_names[OP_COUNT];

/* ---- the device: limits and mapped regions --------------------------------------------------------------- */

/* A mapped range [start, end). A retired region takes no new request; it leaves when no request uses it. */
struct region {
    uintptr_t start, end;
    size_t state; /* REGION_USER for each user, and REGION_RETIRED: one word, so that both change together */
};

#define REGION_RETIRED ((size_t)1)
#define REGION_USER ((size_t)2)

typedef enum { DISCARD_NATIVE, DISCARD_BY_ZEROING, DISCARD_BY_HOOK } DiscardMethod;

struct device_core {
    PyObject_HEAD
    PyObject *make_error;     /* (operation, errno, message, offset, length) -> exception */
    PyObject *make_refusal;   /* (reason, operation, offset, length) -> exception */
    PyObject *on_region_idle; /* (address), after the last request on a retired region */
    Lock lock;                /* of `queues` and `given_up`, and of whoever changes the table of regions */
    QueueCore *queues;        /* of this device, linked by next_of_device */
    GivenUp *given_up;        /* changes that may land although they were cancelled; NULL: none */
    Region **regions;         /* sorted by start, disjoint; read under `planning` of a queue, changed under all of them */
    size_t region_count, region_capacity;
    bool needs_regions, read_only;
    bool virtqueues; /* its rings are of descriptors: one for each segment of a part, and two more */
    uint64_t request_alignment, buf_alignment;
    uint64_t discard_alignment, discard_alignment_offset;
    uint64_t max_transfer, max_segments, max_segment_len; /* UINT64_MAX: unlimited */
    uint64_t max_discard_len, max_write_zeroes_len;
    uint64_t bounce_cap; /* the most bounce memory one part may need */
    DiscardMethod discard_method;
    int file_fd; /* a file that grows when it is written past its end; -1: there is none */
    /*
     * Where changing the memory map can fail requests in flight with EIO: how often a change has begun or ended. It is
     * odd while one is being made, and stays 0 where requests need not care.
     */
    uint64_t map_turns;
};

extern PyTypeObject DeviceCore_Type;

/* The region that holds `address`, or NULL. *available is how far, within length, the answer holds. */
Region *device_find_region(DeviceCore *device, const char *address, uint64_t length, uint64_t *available);
/* Between finding and entering, the queue's `planning` is held. */
static inline void device_enter_region(Region *region) { (void)SHARED_ADD(region->state, REGION_USER); }
void device_leave_region(QueueCore *q, Region *region);
/* Tells once more of retired regions that nobody uses. False: to be done again later. */
bool device_tell_idle_regions(QueueCore *q);
void device_add_queue(DeviceCore *device, QueueCore *queue);
void device_remove_queue(DeviceCore *device, QueueCore *queue);

/* Exceptions from the device's factories: new references, or NULL with another set. Offset and length may be UINT64_MAX: none. */
PyObject *device_make_refusal(DeviceCore *device, const char *reason, Operation op, uint64_t offset, uint64_t length);
/* Raises it; returns -1. */
int device_refuse(DeviceCore *device, const char *reason, Operation op, uint64_t offset, uint64_t length);
/* For integers that no uint64_t holds; either may be None. */
int device_refuse_range(DeviceCore *device, Operation op, PyObject *offset, PyObject *length);
PyObject *device_make_error(DeviceCore *device, Operation op, int error, const char *message, uint64_t offset,
                            uint64_t length);

/* ---- parts: what libblkio sees --------------------------------------------------------------------------- */

/* A piece of the caller's memory; `bounced` when the device must be given a copy instead. */
struct segment {
    char *address;
    size_t length;
    Region *region;
    bool bounced;
};

/* The memory of a part with several segments. Runs of bounced segments lie side by side in bounce memory. */
struct vector {
    size_t segment_count;
    int iov_count;
    struct iovec *iov; /* what the device is given; made when bounce memory is known */
    Segment segments[];
};

/* Of a part without bounce memory: not yet, or never; or the part is over, though its request is not. */
#define NO_BOUNCE (-1)
#define PART_OVER (-2)

/* One libblkio request, and the user_data of its completion. */
struct part {
    Part *next; /* in the queue's backlog */
    Request *request;
    uint64_t offset;
    uint64_t length;
    char *address;         /* what the device is given, where there is no vector */
    char *source;          /* the caller's memory, or zeroes, where `address` is or will be bounce memory */
    Vector *vector;
    Region *region;
    uint64_t bounce_length; /* 0: the device reaches the caller's memory */
    int64_t bounce_offset;  /* or one of the two above */
    uint32_t map_turns;     /* the device's, when the part was issued */
    uint32_t item;          /* of which item of a batch it is a part */
};

/* ---- items: what the caller asked for ------------------------------------------------------------------------ */

/* One transfer, or one command. The first fields share a cache line, which is all of it that most requests touch. */
struct item {
    uint64_t offset, length;
    PyObject *result;    /* NULL: None. Bytes that are being read are here from the beginning. */
    PyObject *exception;
    char *message;       /* libblkio's text for `error` */
    int error;
    uint32_t left;       /* parts not completed */
    Py_buffer pin;       /* the caller's memory, held still */
};

/* ---- requests -------------------------------------------------------------------------------------------- */

typedef enum { PENDING, FINISHED, FAILED, CANCELLED } State;
typedef enum { NO_TURN, TURN_DUE, TURN_TAKEN } Turn;

struct request {
    PyObject_HEAD
    QueueCore *queue;
    /* the Future */
    PyObject *callback, *context; /* the first; most requests have only one */
    PyObject *more_callbacks;     /* list of (callback, context), or NULL */
    PyObject *cancel_message;
    PyObject *thrown;             /* raised when the device has finished: see request_throw */
    PyObject *traceback;          /* that the exception of a failed request had at first; NULL: none */
    PyObject *weak_references;
    Request *ready_next;
    uint8_t state;
    bool blocking;                /* _asyncio_future_blocking */
    bool cancel_requested;
    bool shielded;                /* who waits although it is cancelled may be in a scope of anyio's: see call_scopes */
    bool log_traceback;           /* an error that nobody has retrieved */
    bool inline_completion;       /* completed within its own submission, and not looked at yet */
    uint8_t turn;                 /* of the loop, that awaiting it takes although it is done */
    bool batch;                   /* one awaitable for many items */
    bool return_exceptions, returns_list; /* of a batch */
    /* the I/O */
    bool linked;
    bool lends_memory;            /* the device touches memory of the caller's */
    bool given_up;                /* the device knows of it: see given_up.c */
    bool has_plan;                /* some part has a region, a vector or bounce memory, to be given back */
    uint8_t operation;
    uint8_t age;                  /* ticks without progress while the device had a part of it: see queue_grow_older */
    uint32_t flags;               /* BLKIO_REQ_*, or REQUEST_BARRIER */
    uint32_t weight;              /* as how many requests it counts: a batch as its items */
    uint32_t outstanding;         /* parts not completed yet */
    uint32_t part_count, part_capacity;
    uint32_t admitted;            /* parts handed on; the others wait for bounce memory */
    uint32_t issued;              /* parts that libblkio has */
    uint32_t count;               /* of items, or of pins */
    Request *previous, *following; /* in flight on the queue */
    union {
        Item *items;               /* of a batch */
        Py_buffer *pins;           /* of readv and writev */
    };
    Part *more_parts;              /* parts 1 .. part_count-1 */
    Item item;                     /* a batch keeps its own outcome here */
    Part first_part;
};

/* Of what is no request to the device, and is done when nothing is given up that was before it. */
#define REQUEST_BARRIER (1u << 31)

extern PyTypeObject Request_Type, Future_Type;

int forms_module_init(void);
Py_hash_t request_hash(PyObject *request);
PyObject *request_await(PyObject *request, PyObject *ignored);
extern PySequenceMethods request_as_sequence;
extern PyMappingMethods request_as_mapping;
int request_module_init(void);
int waking_module_init(void);
Request *request_new(QueueCore *queue, Operation op, uint64_t offset, uint64_t length);
void request_free_kept(QueueCore *queue); /* what it has kept for reuse */
void request_publish(Request *r); /* Python code is about to see it, and with it the garbage collector */
static inline Part *request_part(Request *r, uint32_t i) { return i == 0 ? &r->first_part : &r->more_parts[i - 1]; }
static inline Item *request_item(Request *r, uint32_t i) { return r->batch ? &r->items[i] : &r->item; }
static inline Item *part_item(const Part *part) { return request_item(part->request, part->item); }

/* The outcome becomes visible; who waits is put on the queue's ready list. */
void request_settle(Request *r, State state);
/* Forgets the plan from a part on: regions, vectors and bounce memory. The device must be through with these parts. */
void request_drop_parts(Request *r, uint32_t first);
/* The exception that an item failed with: a new reference, or NULL with another one set. */
PyObject *item_exception(Request *r, Item *item);
/*
 * Runs (direct) or schedules the callbacks. -1 with KeyboardInterrupt or SystemExit of a task, or where the loop is closed.
 * What could not be scheduled now stays with the request.
 */
int request_wake(Request *r, bool direct);
PyObject *waking_task_type(void); /* asyncio.Task, borrowed */
/* Has the loop run a step of the task whose wake-up the callback is. False: it is none, or the loop did not take it. */
bool waking_rouse(Request *r, PyObject *callback, PyObject *context);
/* Whether asyncio has been patched so that a task may run the loop that runs it. */
bool waking_loops_nest(void);
/* Around direct waking: the context that the loop has called us in, or NULL. */
PyObject *waking_leave_context(QueueCore *q);
void waking_return_to_context(PyObject *context);
bool request_cancel_io(Request *r, PyObject *message);

/* ---- queues ---------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t submitted, completed, failed, cancelled;
    uint64_t bytes_read, bytes_written;
    uint64_t parts, bounced_bytes, inline_completions, flushes, do_io_calls, events, empty_events, direct_wakes;
} Counters;

struct queue_core {
    PyObject_HEAD
    DeviceCore *device;
    QueueCore *next_of_device;
    Lock planning;         /* held while a plan looks up regions and enters them */
    struct blkioq *blkioq; /* NULL once the device is closed or lost, and while it is suspended */
    uint32_t blkioq_turns; /* how often it was exchanged: what was taken from it before is void */
    int completion_fd; /* -1: a poll queue */
    unsigned long thread;
    unsigned fork_generation;
    PyObject *loop, *call_soon, *flush_method, *loop_context;
    PyObject *get_loop;    /* what a request's get_loop is: the same callable for all of a queue */
    PyObject *wake_future; /* finished: what a task is woken with, see step_task */
    PyObject *on_bounce, *on_room, *on_discard, *on_idle, *on_broken;
    Request *in_flight;         /* newest first */
    Request *ready_head, *ready_tail;
    Part *backlog_head, *backlog_tail;
    Part *held_head, *held_tail; /* of requests that wait for what was given up: the first part of each, with a reference */
    size_t held_count;
    bool held_cancelled;        /* some of them have been cancelled */
    bool releasing;             /* they are being looked at */
    bool holds;                 /* that there are such; under the device's lock, as the next */
    uint8_t told;               /* that it is to look at them again: TOLD, or UNREACHED if only it does not come to know */
    Part *dropped;              /* have left the backlog, and are to be ended without having been issued */
    size_t in_flight_count;     /* requests between submission and the end of their I/O */
    size_t device_count;        /* parts that libblkio has */
    size_t more_segments;       /* that they have, beyond one each */
    size_t depth;               /* entries, or descriptors, of libblkio's ring; 0 where there is no blkioq */
    bool virtqueue;             /* the device's */
    uint64_t unflushed_bytes;   /* issued since the last do_io */
    uint32_t unflushed_parts;
    uint32_t last_batch;        /* parts that the previous flush carried */
    uint32_t batch_hint;        /* items of the previous batch call */
    int inline_budget;          /* what is left of INLINE_BUDGET until a turn of the loop must pass */
    Request *inline_request;    /* the latest inline completion that nobody has looked at; never followed */
    uint64_t spin_ns;
    uint32_t spin_pause;        /* flushes that do not spin */
    uint32_t spin_penalty;      /* what spin_pause was after the latest spinning in vain */
    bool flush_scheduled, waking, closed, room_made;
    bool runs_again;            /* a task that was woken directly has run the loop: see queue_wake_ready */
    PyThreadState *waker;
    PyObject *woken_context;    /* borrowed: of the task whose step runs, being woken directly in that thread */
    uint8_t untold;         /* hooks that are to be called again: UNTOLD_* */
    bool suspended;         /* another device may come: until then, everything waits in the backlog */
    bool more_to_reap;      /* the last reaping ended for another reason than that nothing was left */
    bool backlog_cancelled; /* parts of cancelled requests are in the backlog */
    const char *closed_reason;
    PyObject *put_off;          /* KeyboardInterrupt or SystemExit, to be raised in the loop */
    PyObject *abandoned_for;    /* without a loop: another thread found the device lost, and this is the error */
    allocator_t *bounce;
    char *bounce_address;
    size_t waiting;             /* requests that the pool queues; newcomers must queue behind them */
    Request *free_requests;     /* kept for the next ones, linked by ready_next */
    uint32_t free_count;
    Counters counters;
};

#define UNTOLD_IDLE 1
#define UNTOLD_REGIONS 2
#define UNTOLD_HOLDERS 4 /* queues that hold what this one has done with */

#define TOLD 1
#define UNREACHED 2

extern PyTypeObject QueueCore_Type;
extern unsigned fork_generation;

int queue_module_init(void);
/* A queue without a loop is driven by wait(), and its requests cannot be awaited. */
static inline bool queue_has_loop(const QueueCore *q) { return q->loop != Py_None; }
int queue_check_caller(QueueCore *q, Operation op, uint64_t offset, uint64_t length);
int queue_submit(QueueCore *q, Request *r);
int queue_submit_external(QueueCore *q, Request *r, PyObject *hook);
int queue_schedule_flush(QueueCore *q);
/* Schedules a flush, whatever happens: see loop.c. */
void queue_go_on_next_turn(QueueCore *q);
/* A hook (UNTOLD_*) could not be called: it will be in the next turn. */
void queue_tell_later(QueueCore *q, uint8_t hook);
/* The current exception is for the loop, which raises it in its next turn; without a loop, wait() does. */
void queue_put_off(QueueCore *q);
void queue_cancelled(Request *r);
int queue_call_soon(QueueCore *q, PyObject *callback, PyObject *argument, PyObject *context);
void queue_ready(QueueCore *q, Request *r);
int queue_wake_ready(QueueCore *q, bool direct);
/* For who may be a task: where that was woken from below, the rest is woken when it pauses, unless it may run the loop. */
static inline int queue_wake_others(QueueCore *q)
{
    return q->ready_head && (!q->waking || q->runs_again) ? queue_wake_ready(q, false) : 0;
}
void queue_outcome(Request *r); /* the last part has completed */

/* ---- planning -------------------------------------------------------------------------------------------- */

/* Add the parts of an item. 0, or -1 with an exception set. */
int plan_memory(Request *r, Item *item, DeviceCore *device, const struct iovec *memory, size_t count);
int plan_range(Request *r, DeviceCore *device, uint64_t maximum);

/* ---- zeroes ---------------------------------------------------------------------------------------------- */

int zeroes_module_init(void);
/* The part is to be written, instead of asking the device for zeroes. */
void zeroes_plan_part(Part *part);
/* The last bytes of a range of zeroes, that must be written so that the file grows as far; 0: none. */
uint64_t zeroes_beyond_the_end(DeviceCore *device, const Request *r);
static inline bool zeroes_are_written(const Part *part)
{
    return part->request->operation == OP_WRITE_ZEROES && (part->address || part->bounce_length > 0);
}
uint64_t zeroes_at_once(const Part *part);     /* bytes, of the next piece of such a part */
uint64_t zeroes_to_transfer(const Part *part); /* the same, or 0: it is none, nor a read or a write */
void zeroes_issue(struct blkioq *b, Part *part);
/* A piece has been written. False: it was the last one, or nobody wants the rest. */
bool zeroes_go_on(QueueCore *q, Part *part);
/* A request is over and unlinked: true if it begins again, with zeroes that are written, since it was not supported. */
bool zeroes_instead(QueueCore *q, Request *r);

/* ---- what was given up ------------------------------------------------------------------------------------ */

/* Whether the request, once cancelled, may change data all the same, while nobody waits for it. */
bool given_up_can_be(const Request *r);
/* What comes after waits for it, until given_up_end(). False: there is no memory to note it down. */
bool given_up_begin(Request *r);
void given_up_end(Request *r);
/* Tells those that hold requests to look at them again; the queue does so once more, should they not come to know. */
void given_up_tell(QueueCore *q);
/*
 * The device is lost with it, and may do it yet: other queues hold what they hold until they are told of the loss
 * themselves. That is forgotten when the device comes back.
 */
void given_up_leave(Request *r);
void given_up_forget(DeviceCore *device);
/* Keeps a request that is about to be submitted, if it meets what was given up. Called where `given_up` is not NULL. */
bool given_up_holds(QueueCore *q, Request *r);
/* Lets those go on that may, if there is anything new. */
void given_up_release(QueueCore *q);
void given_up_drop_held(QueueCore *q);

static inline bool given_up_keeps(QueueCore *q, Request *r)
{
    return __builtin_expect(OBSERVE(q->device->given_up) != NULL, 0) && given_up_holds(q, r);
}

/* ---- pins ------------------------------------------------------------------------------------------------ */

int pin_any(Py_buffer *pin, PyObject *object, bool writable);

/* A view of registered memory is what is pinned most often, and takes only counting. */
static inline int pin_acquire(Py_buffer *pin, PyObject *object, bool writable)
{
    if (!Py_IS_TYPE(object, &View_Type)) {
        return pin_any(pin, object, writable);
    }
    ViewObject *view = (ViewObject *)object;
    if ((writable && view->memory->readonly) || !memory_use(view->memory)) {
        return pin_any(pin, object, writable); /* it knows what to say */
    }
    pin->buf = view->address;
    pin->len = view->length;
    pin->obj = Py_NewRef(object);
    return 0;
}

/* Both may run Python code. */
void pin_release(Py_buffer *pin);
void request_drop_pins(Request *r);

/* ---- preparing: a planned request that is not submitted yet ------------------------------------------------- */

Request *prepare_read(QueueCore *q, uint64_t offset, uint64_t length);
Request *prepare_buffer(QueueCore *q, Operation op, uint64_t offset, PyObject *buffer, uint32_t flags);
Request *prepare_buffers(QueueCore *q, Operation op, uint64_t offset, PyObject *buffers, uint32_t flags);
Request *prepare_range(QueueCore *q, Operation op, uint64_t offset, uint64_t length, uint32_t flags);
Request *prepare_command(QueueCore *q, Operation op, uint64_t offset);
/* The same for one item of a request, whose offset is given. 0, or -1 with an exception set. */
int plan_item_read(QueueCore *q, Request *r, Item *item, uint64_t length);
int plan_item_buffer(QueueCore *q, Request *r, Item *item, PyObject *buffer);
/* Drops the request, which may run Python code, beside the exception that is on its way: NULL. */
Request *request_discard(Request *r);

/* ---- batches --------------------------------------------------------------------------------------------- */

/* `bytes`: the items say how long they are, and what is read goes into bytes. */
Request *prepare_batch(QueueCore *q, Operation op, bool bytes, PyObject *items, uint32_t flags, bool return_exceptions);
/* All parts have completed: the first error, or the list of what the items gave. */
void batch_settle(Request *batch);
void batch_drop_items(Request *batch);

/* ---- arguments ------------------------------------------------------------------------------------------- */

/* Parameters, and their interned names. */
enum { N_OFFSET, N_LENGTH, N_BUFFER, N_BUFFERS, N_DATA, N_REQUESTS, N_FUA, N_NO_UNMAP, N_NO_FALLBACK,
       N_RETURN_EXCEPTIONS, N_COUNT, N_END = -1 };

typedef struct {
    const char *name;
    int positional;  /* how many may be given by position; all of them are required */
    int parameters[6]; /* then N_END */
} Signature;

int arguments_module_init(void);
/* values[i] becomes the argument for parameters[i], borrowed, or NULL. */
int parse(const Signature *signature, PyObject *const *args, Py_ssize_t count, PyObject *names, PyObject **values);
/* A byte offset or length: a non-negative int. */
int parse_other_range(DeviceCore *device, Operation op, PyObject *const objects[2], uint64_t *offset, uint64_t *length);

static inline bool parse_usual_bytes(PyObject *object, uint64_t *value)
{
    if (PyLong_CheckExact(object)) {
        *value = PyLong_AsUnsignedLongLong(object);
        if (*value != (uint64_t)-1) {
            return true;
        }
        PyErr_Clear();
    }
    return false;
}

static inline int parse_offset(DeviceCore *device, Operation op, PyObject *object, uint64_t *offset)
{
    PyObject *const objects[2] = {object, NULL};
    return parse_usual_bytes(object, offset) ? 0 : parse_other_range(device, op, objects, offset, NULL);
}

static inline int parse_range(DeviceCore *device, Operation op, PyObject *const objects[2], uint64_t *offset,
                              uint64_t *length)
{
    bool usual = parse_usual_bytes(objects[0], offset) && parse_usual_bytes(objects[1], length);
    return usual ? 0 : parse_other_range(device, op, objects, offset, length);
}
int parse_flag(PyObject *object, uint32_t flag, uint32_t *flags);

/* ---- submitters ------------------------------------------------------------------------------------------ */

struct submitter {
    PyObject_HEAD
    QueueCore *core;
    unsigned long thread; /* the core's: to be known before the core is touched */
    QueueCore *former; /* kept: a method that runs Python code may still be using it */
    PyObject *weak_references;
};

extern PyTypeObject Submitter_Type;

#endif
