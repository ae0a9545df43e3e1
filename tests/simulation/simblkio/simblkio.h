/*
 * simblkio: libblkio's C interface over simulated disks, for LD_PRELOAD. A map of its rooms, from the top floor down.
 *
 * No threads are in here, and nothing waits for time to pass. Whatever a device does, it does while somebody calls: within do_io, or where a
 * test asks for it by a simblkio_ function. One lock is held by every call; what blocks gives it back meanwhile.
 */
#pragma once

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#pragma GCC visibility push(default)
#include <blkio.h>
#pragma GCC visibility pop

#include "media.h"
#include "random.h"

#define EXPORT __attribute__((visibility("default")))

/* ---- what there is --------------------------------------------------------------------------------------- */

enum driver { IO_URING, VHOST_USER, VHOST_VDPA, VFIO_PCI, NVME, DRIVERS };
enum stage { CREATED, CONNECTED, STARTED, DESTROYED };

/* SILENT: it takes requests, and answers none. HUNG_UP: so does a vhost-user backend that has closed the connection, or,
   KILLED, has ended. BROKEN: do_io fails. */
enum death { ALIVE, SILENT, HUNG_UP, KILLED, BROKEN };

enum operation { READ, WRITE, WRITE_ZEROES, DISCARD, FLUSH, ZONE, OPERATIONS };

/* SUBMITTED: in libblkio's hands. AT_DEVICE. DONE: carried out, and not taken yet. */
enum place { SUBMITTED, AT_DEVICE, DONE, PLACES };

struct request {
    struct request *next, **back;
    uint64_t id;
    struct blkioq *queue;
    enum operation operation;
    enum place place;
    uint64_t start, length;
    uint32_t flags;
    void *user_data;
    const struct iovec *vector; /* the caller's; NULL: it gave none */
    struct iovec *segments;     /* a copy of it */
    uint8_t **seen;             /* where the device has each of them */
    int segment_count;
    size_t descriptors;  /* in the ring */
    uint8_t *data;       /* what is written, or has been read */
    unsigned delay;      /* turns of the device */
    uint64_t change;     /* of the media, once made; 0: none */
    uint64_t mark;       /* what a flush covers */
    bool spent;          /* it has had all its effects, whatever it was answered */
    int ret;
    const char *error;
};

struct requests {
    struct request *first, **end;
    size_t count;
};

struct blkioq {
    struct blkio *instance;
    int index;
    bool poll, removed, fd_enabled, owned;
    int fd;   /* the completion descriptor; poll queues have one for themselves */
    int ring; /* io_uring's */
    pthread_t owner;
    atomic_int inside;
    struct requests at[PLACES];
    size_t descriptors; /* that they take in the ring */
    uint64_t random;
};

enum property {
    CAN_ADD_QUEUES,
    DRIVER,
    PATH,
    FD,
    READ_ONLY,
    DIRECT,
    NUM_QUEUES,
    NUM_POLL_QUEUES,
    NUM_ENTRIES,
    QUEUE_SIZE,
    MAX_QUEUE_SIZE,
    MAX_QUEUES,
    SUPPORTS_POLL_QUEUES,
    CAPACITY,
    REQUEST_ALIGNMENT,
    OPTIMAL_IO_ALIGNMENT,
    OPTIMAL_IO_SIZE,
    FLUSH_NEEDED,
    BUF_ALIGNMENT,
    OPTIMAL_BUF_ALIGNMENT,
    CAN_GROW,
    MAX_SEGMENTS,
    MAX_SEGMENT_LEN,
    MAX_TRANSFER,
    SUPPORTS_FUA_NATIVELY,
    MAX_WRITE_ZEROES_LEN,
    MAX_DISCARD_LEN,
    DISCARD_ALIGNMENT,
    DISCARD_ALIGNMENT_OFFSET,
    NEEDS_MEM_REGIONS,
    NEEDS_MEM_REGION_FD,
    MAY_PIN_MEM_REGIONS,
    MEM_REGION_ALIGNMENT,
    MAX_MEM_REGIONS,
    ZONED,
    MAX_ACTIVE_ZONES,
    MAX_OPEN_ZONES,
    ZONE_SIZE,
    NR_ZONES,
    APPEND_SUPPORT,
    ZONE_APPEND_MAX_BYTES,
    PROPERTIES
};

#define OVERRIDES_MAX 32

/* A backend's own mapping of a region's file, which outlives the caller's; without one, it uses the caller's addresses. */
struct view {
    uint8_t *at; /* NULL: it has none */
    void *base;
    size_t size;
};

struct value {
    uint64_t number;
    char *text;
};

struct blkio {
    struct blkio *next;
    int number;
    unsigned process; /* the generation of forks that it is of */
    enum driver driver;
    enum stage stage;
    enum death death;
    int death_error; /* of do_io, when it is BROKEN */
    bool ended;      /* nothing that it has been given, or is given, has effects any more */
    atomic_int inside;
    struct value values[PROPERTIES];
    struct disk *disk;
    int socket, served; /* the two ends of a vhost-user connection */
    int ring_memory;
    struct blkio_mem_region *regions, *allocated;
    size_t region_count, allocated_count;
    struct view *views; /* of each region */
    size_t orphans;     /* requests that are left of it */
    struct blkioq **queues[2]; /* by whether they poll */
    int queue_count[2];
    uint64_t random;
};

struct override {
    char name[32], value[32];
};

struct disk {
    struct disk *next;
    int number;
    enum driver driver;
    char name[256]; /* path; of a character device or a file, its number */
    struct media *media;
    int file;     /* behind an io_uring disk */
    int listener; /* of a vhost-user backend; -1: it does not run */
    int process;  /* in place of a pidfd */
    struct blkio *client; /* the one that a vhost-user backend serves */
    uint64_t random;
    uint64_t made_with;   /* bytes */
    int clients;          /* instances that are connected */
    int lingering;        /* of them, those that are dead, and may have effects yet */
    struct override overrides[OVERRIDES_MAX];
    int override_count;
};

/* Chances are per mille. 0 in all: what is submitted is done within the do_io that submits it. */
struct config {
    unsigned seed;
    unsigned hold;      /* 1: nothing is done unless a test says so */
    unsigned late;      /* turns that a request may take at most */
    unsigned batch;     /* requests that are done in one turn at most; 0: any number */
    unsigned reorder;   /* 1: those of one turn are done in any order */
    unsigned fail;      /* a request fails, with any errno */
    unsigned transient; /* do_io fails with EINTR, EAGAIN or EBUSY */
    unsigned broken;    /* do_io fails with EIO, for ever */
    unsigned spurious;  /* an event comes for nothing */
    unsigned full;      /* the ring has no room for all that was submitted */
    unsigned map;       /* a memory region cannot be mapped */
    unsigned open;      /* creating, connecting or starting fails */
    unsigned die;       /* the device dies, at any call */
    unsigned resize;    /* do_io, or asking for the capacity: the capacity changes */
    unsigned floor;     /* bytes below which it never falls; 0: what the disk was made with */
    unsigned props;     /* connecting: the disk has other properties, from now on */
    unsigned haunt;     /* do_io: devices write to memory that they still have */
    unsigned zeroless;  /* 1: devices know no zeroes but those that are written */
    unsigned abandons;  /* 1: a live device may be destroyed with requests in flight */
    unsigned impatient; /* 1: connecting to a backend that is busy fails, where there is nobody else to end that */
    unsigned record;    /* 1: what the caller does wrong is noted, and does not end the process */
};

/* The kernel has the requests, and goes on with them; there is no virtqueue. */
static inline bool has_rings(enum driver driver) { return driver == IO_URING || driver == NVME; }

/* ---- control.c: the state of all of it, and the simblkio_ functions ---------------------------------------- */

extern unsigned process; /* how often has been forked on the way to this one */

extern struct simulation {
    pthread_mutex_t lock;
    struct config config;
    struct blkio *instances; /* those that have been destroyed too, so that their use is noticed */
    struct disk *disks;
    struct requests orphans; /* that a device had when it was destroyed, and may still carry out */
    int last_instance, last_disk;
    uint64_t last_request;
} sim;

/* What comes from the seed begins. */
void seed_instance(struct blkio *b);
void seed_queue(struct blkioq *q);
void seed_disk(struct disk *disk);

/* A call begins and ends: the lock, who calls, and what may come with any call. False: it must not go on. */
bool enter(struct blkio *b, const char *call);
void leave(struct blkio *b);
bool enter_queue(struct blkioq *q, const char *call);
void leave_queue(struct blkioq *q);

void die_if_due(struct blkio *b, uint64_t *random); /* the device, by chance or because a test wants it */
int armed_failure(const char *call); /* the errno with which a test wants this call to fail; 0: none */
bool block_if_told(struct blkio *b, const char *call); /* until it is let go; false: the connection has ended meanwhile */
void doze(void);                     /* for a moment, without the lock */

/* ---- properties.c: blkio_get_*, blkio_set_* ----------------------------------------------------------------- */

void properties_begin(struct blkio *b);   /* as created */
void properties_connect(struct blkio *b); /* as the disk has them */
void properties_end(struct blkio *b);
const char *property_name(enum property property);
uint64_t property(const struct blkio *b, enum property property); /* 0: its driver does not have it */
const char *property_text(const struct blkio *b, enum property property);
void property_put(struct blkio *b, enum property property, uint64_t number);
int property_put_text(struct blkio *b, enum property property, const char *text);

/* ---- instance.c: blkio_* of life, memory and queues --------------------------------------------------------- */

void view_end(struct view *view);
int refuse(int error, const char *message); /* the negative errno, and what blkio_get_error_msg() says of it */

/* ---- queue.c: blkioq_* --------------------------------------------------------------------------------------- */

struct blkioq *queue_new(struct blkio *b, bool poll, int index);
void queue_end(struct blkioq *q);
void queue_signal(struct blkioq *q);

/* ---- device.c: what a device does with requests ---------------------------------------------------------------- */

void device_take(struct blkioq *q);  /* what was submitted, as far as there is room */
bool device_turn(struct blkioq *q);  /* carries out what is due; whether that was anything */
void device_do(struct request *r, int ret); /* one request; a negative ret: it fails so */
void device_die(struct blkio *b, enum death how, int error);
void device_linger(struct disk *disk); /* what the dead ones were given may be done, a little later */
void device_end(struct blkio *b);    /* or now at the latest: from here on it has no effects */
void device_end_queue(struct blkioq *q);
void device_look(struct blkio *b);   /* whether the client has ended a connection */
bool device_owes(const struct blkioq *q); /* whether it has requests, and is alive */
void device_power_failure(struct disk *disk);

int64_t device_write_late(void); /* to the memory of reads that it has, or had; how many bytes */
void requests_begin(struct requests *list);
void requests_append(struct requests *list, struct request *r);
void requests_remove(struct requests *list, struct request *r);
void request_free(struct request *r);
size_t queue_in_flight(const struct blkioq *q);

/* ---- checker.c: what a caller must not do ------------------------------------------------------------------ */

__attribute__((format(printf, 1, 2))) void violation(const char *format, ...);
unsigned violations(void);
const char *violation_text(unsigned index);
void violations_forget(void);

void check_request(struct request *r);             /* as it is submitted */
void check_memory_begin(struct request *r);        /* scribbles, or copies */
uint8_t scribble_of(const struct request *r);
uint8_t *device_address(const struct blkio *b, void *address, size_t length);
void check_memory_end(struct request *r);          /* whether the caller has kept its hands off */
bool check_unmap(struct blkio *b, const struct blkio_mem_region *region); /* false: requests in flight use it */
const char *operation_name(enum operation operation);

/* ---- disk.c: disks, with a name ----------------------------------------------------------------------------- */

struct disk *disk_new(enum driver driver, const char *name, uint64_t size);
struct disk *disk_find(enum driver driver, const char *name);
struct disk *disk_of_file(int fd); /* a file that is opened by io_uring, made a disk if it is none yet */
void disk_free(struct disk *disk);
int disk_serve(struct disk *disk); /* a backend begins to listen */
void disk_end_process(struct disk *disk);
void disk_changed(struct disk *disk, uint64_t at, uint64_t length); /* for the file behind it */
void disk_look(struct disk *disk);              /* whether others have changed the size of its file */
int disk_override(struct disk *disk, const char *name, const char *value);
int disk_resize(struct disk *disk, uint64_t size);
void disk_resize_by_chance(struct disk *disk, uint64_t *random);
void character_name(int fd, char name[256]);

/* ---- clock.c: the time, in place of the system's: clock_gettime of CLOCK_MONOTONIC, nanosleep, clock_nanosleep ------ */

#define DOZE 1000000u /* nanoseconds */

bool clock_is_virtual(void);
void clock_pass(uint64_t nanoseconds); /* virtual ones */
void clock_doze(void);                 /* real ones, so that other threads go on */
EXPORT void simblkio_clock(uint64_t nanoseconds); /* how late it is; 0: the machine knows */

/* ---- around.c: what is asked of the system about a simulated device: ioctl, getsockopt, pidfd_open ------------- */

/* ---- trace.c: what has happened ------------------------------------------------------------------------------- */

#define EVENTS(X)                                                                                                     \
    X(CREATE, "create")                                                                                               \
    X(CONNECT, "connect")                                                                                             \
    X(START, "start")                                                                                                 \
    X(DESTROY, "destroy")                                                                                             \
    X(MAP, "map")                                                                                                     \
    X(UNMAP, "unmap")                                                                                                 \
    X(ADD_QUEUE, "add queue")                                                                                         \
    X(REMOVE_QUEUE, "remove queue")                                                                                   \
    X(SUBMIT, "submit")                                                                                               \
    X(TAKE, "take")                                                                                                   \
    X(DO, "do")                                                                                                       \
    X(FAIL, "fail")                                                                                                   \
    X(REAP, "reap")                                                                                                   \
    X(LATE, "late")                                                                                                   \
    X(OVERTAKE, "overtake")                                                                                           \
    X(MANY, "many at once")                                                                                           \
    X(MERGE, "merged event")                                                                                          \
    X(SIGNAL, "event")                                                                                                \
    X(SPURIOUS, "spurious event")                                                                                     \
    X(FULL, "queue full")                                                                                             \
    X(REFUSE, "call fails")                                                                                           \
    X(BLOCK, "call blocks")                                                                                           \
    X(UNBLOCK, "call goes on")                                                                                        \
    X(DIE, "device dies")                                                                                             \
    X(RESIZE, "capacity changes")                                                                                     \
    X(BETTER, "better property")                                                                                      \
    X(WORSE, "worse property")                                                                                        \
    X(POWER_FAILURE, "power failure")                                                                                 \
    X(TEAR, "request partly done")                                                                                    \
    X(LINGER, "done after death")                                                                                     \
    X(ORPHAN, "destroyed in flight")                                                                                  \
    X(HAUNT, "late write")                                                                                            \
    X(HAND_OVER, "another thread")                                                                                    \
    X(VIOLATION, "violation")

#define EVENT_NAME(name, text) EVENT_##name,
enum event { EVENTS(EVENT_NAME) EVENT_COUNT };
#undef EVENT_NAME

/* Numbers only: an address would differ from run to run. */
void trace(enum event event, const struct blkio *b, const struct blkioq *q, const struct request *r, int64_t value);
void trace_begin(void);
__attribute__((noreturn)) void trace_end_process(const char *what, const char *why); /* with the last events */
void trace_forget(void);
