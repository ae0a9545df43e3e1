/*
 * The structures of the request path, and the questions that they answer by themselves. rooms.h lists what is done with them.
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
#include <assert.h>
#include <float.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include <time.h>

#include <blkio.h>

#include "allocator.h"
#include "threads.h"
#include "virtio_blk.h"

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

/*
 * Invariants. assert() is for builds that are tested, which cost what they may. ENSURE() stays in a release, where it costs
 * next to nothing: what it stops would write to memory that is not ours.
 */
#define ENSURE(condition) \
    (__builtin_expect(!!(condition), 1) ? (void)0 : Py_FatalError("aioblk: " #condition " does not hold"))

/* The kernel's limit on one vector. */
#define IOV_MAX_SEGMENTS 1024

/* ---- memory that is handed out in views --------------------------------------------------------------------- */

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

/* ---- sight: what is known of requests beyond their outcome -------------------------------------------------- */

#define ERRNOS 134 /* errors that are counted apart; 0 stands for all others */

/*
 * How long requests of one operation took, in nanoseconds. The buckets are logarithmic, and each of those linear: 32 for
 * every doubling, so that none is wider than 1/32 of what it holds; those below 16 are exact.
 */
#define LATENCY_BITS 5
#define LATENCY_BUCKETS (64 << LATENCY_BITS)

typedef struct {
    uint64_t least, most; /* UINT64_MAX and 0 before the first */
    uint64_t reach;       /* a time that is not so much above the least needs no further look; 0: each one does */
    uint64_t total;
    uint64_t buckets[LATENCY_BUCKETS];
} Latency;

#define LONGEST_LATENCY ((uint64_t)INT64_MAX / 4)

/* A double has the doubling in its exponent, and the bucket within it in the first bits behind. */
static inline size_t latency_bucket(uint64_t nanoseconds)
{
    assert(nanoseconds <= LONGEST_LATENCY);
    double halves = (double)(int64_t)(2 * nanoseconds + 1); /* is above 0 */
    uint64_t bits;
    memcpy(&bits, &halves, sizeof(bits));
    return (bits >> (DBL_MANT_DIG - 1 - LATENCY_BITS)) - ((DBL_MAX_EXP - 1) << LATENCY_BITS);
}

/* Of a request: when it was handed over, or one of these. The last two make any time since then a very long one. */
#define UNWATCHED 0 /* as NULL is */
#define NOT_HANDED_OVER UINT64_MAX
#define NOT_TIMED (UINT64_MAX - 1) /* any more */

/* What is to be noted of new requests. */
#define WATCH_TIME 1   /* how long they take */
#define WATCH_EACH 2   /* each, for `on_begun` and `on_finished` */
#define WATCH_ORIGIN 4 /* where they were made: `origin_of` says it */

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
    /*
     * What a backend that takes another one's place has to make durable, though the other one was asked for it: how many
     * parts of changes are done, without FUA; how many of those a flush has covered; and where the latest was.
     */
    uint64_t changes, covered, changed_at;
};

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
    uint32_t riders; /* parts of the same batch, those that follow, which go to the device with this one: see merge.c */
    struct iovec *iov; /* what the device is given; made when bounce memory is known */
    Segment segments[];
};

/*
 * Of a part without bounce memory: not yet, or never; or the part is over, though its request is not; or it is a rider, and
 * never issued.
 */
#define NO_BOUNCE (-1)
#define PART_OVER (-2)
#define PART_RIDES (-3)

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
    union {
        PyObject *cancel_message; /* of one that was cancelled */
        PyObject *origin;         /* of any other: where it was made; NULL: not noted */
    };
    PyObject *thrown;             /* raised when the device has finished: see request_throw */
    PyObject *traceback;          /* that the exception of a failed request had at first; NULL: none */
    PyObject *weak_references;
    union {
        uint64_t since;           /* until it is settled: clock_now_ns() as it was handed over, or UNWATCHED and the like */
        Request *ready_next;      /* from then on */
    };
    uint8_t state;
    bool blocking;                /* _asyncio_future_blocking */
    bool cancel_requested;
    bool shielded;                /* who waits although it is cancelled may be in a scope of anyio's: see call_scopes */
    bool log_traceback;           /* an error that nobody has retrieved */
    bool inline_completion;       /* completed within its own submission, and not looked at yet */
    uint8_t turn;                 /* of the loop, that awaiting it takes although it is done */
    bool batch;                   /* one awaitable for many items */
    bool return_exceptions : 1, returns_list : 1; /* of a batch */
    /* the I/O */
    bool linked;
    bool held;                    /* by its queue, until what was given up before it is over: see held.c */
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

/* ---- queues ---------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t submitted, cancelled;
    uint64_t completed[OP_COUNT], failed[OP_COUNT], bytes[OP_COUNT];
    uint64_t parts, bounced_bytes, inline_completions, flushes, do_io_calls, events, empty_events, direct_wakes;
} Counters;

/* What a queue has learnt of its device's pace: see pace.c. */
typedef struct {
    bool kicks;                     /* in this epoch */
    bool may_kick;                  /* in this turn, still */
    bool pays;                      /* as the last trials said */
    bool doubted;                   /* by the last of them */
    uint8_t step;                   /* of a trial; 0: there is none */
    uint32_t woken;                 /* requests, in this epoch */
    uint32_t flushes, flushes_done; /* in this epoch, and after how many of them the device had nothing left */
    uint32_t pause, left;           /* epochs from one trial to the next */
    uint64_t began, took[2];        /* the epoch; the least for what was usual, and the other */
} Pace;

#define PACE_EPOCH 512 /* requests, after which it is looked how long they have taken */

#define BYTES_WITHOUT_GIL (128u << 10) /* what is transferred by a call that gives it away, at least: see reap.c */

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
    size_t in_flight_count;     /* requests between submission and the end of their I/O; others may look */
    size_t device_count;        /* parts that libblkio has */
    size_t more_segments;       /* that they have, beyond one each */
    size_t depth;               /* entries, or descriptors, of libblkio's ring; 0 where there is no blkioq */
    bool virtqueue;             /* the device's */
    uint64_t unflushed_bytes;   /* issued since completions were taken last, be they handed over already: see parts.c */
    uint32_t unflushed_parts;   /* issued since the last do_io */
    uint32_t last_batch;        /* parts that the previous flush carried, or kicks and events just before it */
    uint32_t carried;           /* parts that those have carried since the previous flush */
    uint32_t batch_hint;        /* items of the previous batch call */
    int inline_budget;          /* what is left of a slice until the clock is looked at; <= 0: a turn must pass */
    int inline_rest;            /* of INLINE_BUDGET, beyond that slice */
    uint64_t inline_since;      /* when the clock was first looked at since the last turn; 0: it was not */
    Request *inline_request;    /* the latest inline completion that nobody has looked at; never followed */
    uint64_t spin_ns;           /* the longest time to look again, as the user has said; 0: as long as is learnt, or never */
    bool spins_by_itself;       /* where nothing was said */
    uint64_t spin_until;        /* looking again is under way; 0: it is not */
    uint32_t spin_pause;        /* flushes that do not spin */
    uint32_t spin_penalty;      /* what spin_pause was after the latest spinning in vain */
    Pace pace;
    bool flush_scheduled, waking, closed, room_made;
    bool admitting;             /* admit() is under way, which may run any code */
    bool rounds;                /* turns go on with what they bring about */
    bool turn_flushes;          /* a turn is under way that ends with a flush: see turns.c */
    bool flush_owed;            /* by it */
    bool loop_is_mute;          /* it does not say whether it has other callbacks */
    bool loop_hides_thread;     /* nor in which thread it runs */
    bool wakes_by_loop;         /* and nobody directly: see queue_wake_ready */
    PyThreadState *waker;
    PyObject *woken_context;    /* borrowed: of the task whose step runs, being woken directly in that thread */
    uint8_t untold;         /* hooks that are to be called again: UNTOLD_* */
    bool suspended;         /* another device may come: until then, everything waits in the backlog */
    bool more_to_reap;      /* the last reaping ended for another reason than that nothing was left */
    bool sweep_due;         /* parts that nobody wants any more are in the backlog */
    const char *closed_reason;
    PyObject *put_off;          /* KeyboardInterrupt or SystemExit, to be raised in the loop */
    PyObject *abandoned_for;    /* without a loop: another thread found the device lost, and this is the error */
    allocator_t *bounce;
    char *bounce_address;
    size_t waiting;             /* requests that the pool queues; newcomers must queue behind them */
    Request *free_requests;     /* kept for the next ones, linked by ready_next */
    uint32_t free_count;
    uint8_t watched;            /* WATCH_*: what sight.c is to be told */
    uint32_t fresh;             /* requests that are NOT_HANDED_OVER */
    uint64_t taken_at;          /* when completions were taken last, while anything is watched */
    Latency *latencies[OP_COUNT]; /* NULL until anything is watched */
    uint64_t *errors;           /* by operation and errno; NULL: there was none */
    PyObject *on_begun, *on_finished, *origin_of;
    Counters counters;
};

#define UNTOLD_IDLE 1
#define UNTOLD_REGIONS 2
#define UNTOLD_HOLDERS 4 /* queues that hold what this one has done with */

#define TOLD 1
#define UNREACHED 2

/*
 * Inline completions in a row before others must get their turn, in units of about a microsecond: a request is one, and so
 * is the copying of so many bytes.
 */
#define INLINE_BUDGET 512
#define INLINE_FIRST 2    /* of it, which each take their event away: see submit_inline */
#define INLINE_SLICE 64   /* of it, after which the clock is looked at */
#define INLINE_NS 500000u /* and no more than so long */
#define BYTES_PER_UNIT 8192

/* ---- arguments ------------------------------------------------------------------------------------------- */

/* Parameters, and their interned names. */
enum { N_OFFSET, N_LENGTH, N_BUFFER, N_BUFFERS, N_DATA, N_REQUESTS, N_FUA, N_NO_UNMAP, N_NO_FALLBACK,
       N_RETURN_EXCEPTIONS, N_COUNT, N_END = -1 };

typedef struct {
    const char *name;
    int positional;  /* how many may be given by position; all of them are required */
    int parameters[6]; /* then N_END */
} Signature;

/* ---- submitters ------------------------------------------------------------------------------------------ */

struct submitter {
    PyObject_HEAD
    QueueCore *core;
    unsigned long thread; /* the core's: to be known before the core is touched */
    QueueCore *former; /* kept: a method that runs Python code may still be using it */
    PyObject *weak_references;
};

/* ---- what they answer by themselves --------------------------------------------------------------------------- */

static inline Part *request_part(Request *r, uint32_t i) { return i == 0 ? &r->first_part : &r->more_parts[i - 1]; }
static inline uint32_t part_index(const Part *part)
{
    return part == &part->request->first_part ? 0 : (uint32_t)(part - part->request->more_parts) + 1;
}
static inline Item *request_item(Request *r, uint32_t i) { return r->batch ? &r->items[i] : &r->item; }
static inline uint32_t part_riders(const Part *part) { return part->vector ? part->vector->riders : 0; }
static inline Item *part_item(const Part *part) { return request_item(part->request, part->item); }

/* Nobody wants it any more. Of a request in flight, only cancelling settles the state before the parts are over. */
static inline bool part_is_pointless(const Part *part)
{
    const Request *r = part->request;
    assert(r->cancel_requested || r->state == PENDING);
    const Item *item = part_item(part);
    return r->cancel_requested || item->error || item->exception;
}

static inline bool zeroes_are_written(const Part *part)
{
    return part->request->operation == OP_WRITE_ZEROES && (part->address || part->bounce_length > 0);
}

/* How often the process has forked: a queue is of no use in a child. */
extern unsigned fork_generation;

/* Whether the caller is in the step of a task that this queue has woken directly, and not in a loop that the task runs. */
static inline bool queue_woke_caller(const QueueCore *q)
{
    return q->woken_context && q->waker->context == q->woken_context;
}

/* A queue without a loop is driven by wait(), and its requests cannot be awaited. */
static inline bool queue_has_loop(const QueueCore *q) { return q->loop != Py_None; }
static inline bool queue_usable(const QueueCore *q) { return q->blkioq && q->fork_generation == fork_generation; }

#endif
