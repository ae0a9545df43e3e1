/* What a test or a program says to the simulator: how it is to behave, and what is to happen now. */
#include "simblkio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

unsigned process;
struct simulation sim = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- configuration --------------------------------------------------------------------------------------- */

#define KEY(name) {#name, offsetof(struct config, name)}
static const struct {
    const char *name;
    size_t at;
} KEYS[] = {
    KEY(seed), KEY(hold),     KEY(late), KEY(batch), KEY(reorder), KEY(fail), KEY(transient), KEY(broken),
    KEY(spurious), KEY(full), KEY(map),  KEY(open),  KEY(die),     KEY(resize), KEY(floor),   KEY(props),
    KEY(haunt), KEY(zeroless), KEY(abandons), KEY(record), KEY(impatient),
};

void seed_instance(struct blkio *b) { b->random = random_seed(sim.config.seed, (uint64_t)b->number, 0); }
void seed_disk(struct disk *disk) { disk->random = random_seed(sim.config.seed, (uint64_t)disk->number, 1); }

void seed_queue(struct blkioq *q)
{
    q->random = random_seed(sim.config.seed, (uint64_t)q->instance->number, 2 + 2 * (uint64_t)q->index + q->poll);
}

/* Each has a stream of its own: what happens to one does not depend on when others are called. */
static void seed_all(void)
{
    for (struct disk *disk = sim.disks; disk; disk = disk->next) {
        seed_disk(disk);
    }
    for (struct blkio *b = sim.instances; b; b = b->next) {
        seed_instance(b);
        for (int poll = 0; poll < 2; poll++) {
            for (int i = 0; i < b->queue_count[poll]; i++) {
                seed_queue(b->queues[poll][i]);
            }
        }
    }
}

static int set(const char *name, const char *value)
{
    for (size_t i = 0; i < sizeof(KEYS) / sizeof(*KEYS); i++) {
        if (strcmp(KEYS[i].name, name) == 0) {
            *(unsigned *)((char *)&sim.config + KEYS[i].at) = (unsigned)strtoul(value, NULL, 0);
            if (KEYS[i].at == offsetof(struct config, seed)) {
                seed_all();
            }
            return 0;
        }
    }
    return -EINVAL;
}

static int configure(const char *text)
{
    char copy[512], *rest, *word;
    snprintf(copy, sizeof(copy), "%s", text);
    for (word = strtok_r(copy, " ,", &rest); word; word = strtok_r(NULL, " ,", &rest)) {
        char *equals = strchr(word, '=');
        if (!equals) {
            return -EINVAL;
        }
        *equals = '\0';
        if (set(word, equals + 1) < 0) {
            return -EINVAL;
        }
    }
    return 0;
}

/* "seed=7 late=3": changes what it names. -EINVAL: there is no such word. */
EXPORT int simblkio_configure(const char *text);
EXPORT int simblkio_configure(const char *text)
{
    pthread_mutex_lock(&sim.lock);
    int result = configure(text);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

/* ---- calls: failing, blocking, dying with them ------------------------------------------------------------------ */

#define WORDS 16

static struct {
    char call[32];
    int error, times;
} armed[WORDS];

static struct {
    char call[32];
    int waiting;
    bool blocks;
} gates[WORDS];

static struct {
    long calls; /* until then; 0: it does not */
    enum death how;
    int error;
} fate;

int armed_failure(const char *call)
{
    for (int i = 0; i < WORDS; i++) {
        if (armed[i].times > 0 && strcmp(armed[i].call, call) == 0) {
            armed[i].times--;
            return armed[i].error;
        }
    }
    return 0;
}

/* The next so many calls fail: create, connect, start, map, alloc, add_queue, do_io, or reading or setting a property. */
EXPORT int simblkio_fail(const char *call, int error, int times);
EXPORT int simblkio_fail(const char *call, int error, int times)
{
    pthread_mutex_lock(&sim.lock);
    int i = 0;
    while (i < WORDS && armed[i].times > 0 && strcmp(armed[i].call, call) != 0) {
        i++;
    }
    if (i < WORDS) {
        snprintf(armed[i].call, sizeof(armed[i].call), "%s", call);
        armed[i].error = error;
        armed[i].times = times;
    }
    pthread_mutex_unlock(&sim.lock);
    return i < WORDS ? 0 : -ENOSPC;
}

void doze(void)
{
    pthread_mutex_unlock(&sim.lock);
    clock_doze();
    pthread_mutex_lock(&sim.lock);
}

static int gate_of(const char *call)
{
    for (int i = 0; i < WORDS; i++) {
        if (strcmp(gates[i].call, call) == 0) {
            return i;
        }
    }
    return -1;
}

bool block_if_told(struct blkio *b, const char *call)
{
    int gate = gate_of(call);
    if (gate < 0 || !gates[gate].blocks) {
        return true;
    }
    gates[gate].waiting++;
    trace(EVENT_BLOCK, b, NULL, NULL, 0);
    while (gates[gate].blocks && b->death != HUNG_UP && b->death != KILLED) {
        doze();
        device_look(b);
    }
    gates[gate].waiting--;
    trace(EVENT_UNBLOCK, b, NULL, NULL, b->death);
    return b->death != HUNG_UP && b->death != KILLED;
}

/* Calls wait from now on, or no more: connect, start, map, unmap, capacity, destroy. */
EXPORT int simblkio_block(const char *call, int blocks);
EXPORT int simblkio_block(const char *call, int blocks)
{
    pthread_mutex_lock(&sim.lock);
    int gate = gate_of(call);
    if (gate < 0 && (gate = gate_of("")) >= 0) {
        snprintf(gates[gate].call, sizeof(gates[gate].call), "%s", call);
    }
    if (gate >= 0) {
        gates[gate].blocks = blocks;
    }
    pthread_mutex_unlock(&sim.lock);
    return gate < 0 ? -ENOSPC : 0;
}

/* How many calls of that kind are waiting. */
EXPORT int simblkio_blocked(const char *call);
EXPORT int simblkio_blocked(const char *call)
{
    pthread_mutex_lock(&sim.lock);
    int gate = gate_of(call), waiting = gate < 0 ? 0 : gates[gate].waiting;
    pthread_mutex_unlock(&sim.lock);
    return waiting;
}

/* The device that is called then dies within the nth call from now on, whichever that is, connecting to it included. */
EXPORT void simblkio_die_at(long calls, int how, int error);
EXPORT void simblkio_die_at(long calls, int how, int error)
{
    pthread_mutex_lock(&sim.lock);
    fate.calls = calls;
    fate.how = (enum death)how;
    fate.error = error;
    pthread_mutex_unlock(&sim.lock);
}

void die_if_due(struct blkio *b, uint64_t *random)
{
    if (!b->disk || b->death != ALIVE) {
        return;
    }
    if (fate.calls > 0 && --fate.calls == 0) {
        device_die(b, fate.how, fate.error);
    } else if (random_chance(random, sim.config.die)) {
        static const enum death USERS[] = {SILENT, HUNG_UP, KILLED}, OTHERS[] = {SILENT, BROKEN, BROKEN};
        uint64_t how = random_below(random, 3);
        device_die(b, b->driver == VHOST_USER ? USERS[how] : OTHERS[how], EIO);
    }
}

/* ---- every call ------------------------------------------------------------------------------------------ */

static bool may_call(struct blkio *b, const char *call)
{
    if (b->process != process) {
        violation("%s: the instance is that of a parent process", call);
    }
    if (b->stage == DESTROYED) {
        violation("%s: instance %d has been destroyed", call, b->number);
    }
    return b->stage != DESTROYED;
}

bool enter(struct blkio *b, const char *call)
{
    bool busy = atomic_fetch_add(&b->inside, 1) > 0;
    pthread_mutex_lock(&sim.lock);
    if (busy) {
        violation("%s: another thread is calling instance %d", call, b->number);
    }
    bool may = may_call(b, call);
    if (may) {
        die_if_due(b, &b->random);
    }
    return may;
}

void leave(struct blkio *b)
{
    pthread_mutex_unlock(&sim.lock);
    atomic_fetch_sub(&b->inside, 1);
}

/* A queue is its thread's; it is handed over while nothing is in flight. */
static void check_thread(struct blkioq *q, const char *call)
{
    bool same = q->owned && pthread_equal(q->owner, pthread_self());
    if (q->owned && !same && queue_in_flight(q) > 0) {
        violation("%s: queue %d of instance %d is called from another thread, with requests in flight", call, q->index,
                  q->instance->number);
    } else if (q->owned && !same) {
        trace(EVENT_HAND_OVER, NULL, q, NULL, 0);
    }
    q->owned = true;
    q->owner = pthread_self();
}

bool enter_queue(struct blkioq *q, const char *call)
{
    bool busy = atomic_fetch_add(&q->inside, 1) > 0;
    pthread_mutex_lock(&sim.lock);
    if (busy) {
        violation("%s: another thread is calling queue %d of instance %d", call, q->index, q->instance->number);
    }
    bool may = may_call(q->instance, call);
    if (may && q->removed) {
        violation("%s: queue %d of instance %d has been removed", call, q->index, q->instance->number);
        may = false;
    }
    if (may) {
        check_thread(q, call);
        die_if_due(q->instance, &q->random);
    }
    return may;
}

void leave_queue(struct blkioq *q)
{
    pthread_mutex_unlock(&sim.lock);
    atomic_fetch_sub(&q->inside, 1);
}

/* ---- disks ----------------------------------------------------------------------------------------------- */

static struct disk *find_disk(int number)
{
    for (struct disk *disk = sim.disks; disk; disk = disk->next) {
        if (disk->number == number) {
            return disk;
        }
    }
    return NULL;
}

/* Calls of one disk: `work` sees it as `disk` and sets `result`. */
#define ON_DISK(kind, name, parameters, work)                                                                         \
    EXPORT kind simblkio_##name parameters;                                                                           \
    EXPORT kind simblkio_##name parameters                                                                            \
    {                                                                                                                 \
        kind result = 0;                                                                                              \
        pthread_mutex_lock(&sim.lock);                                                                                \
        struct disk *disk = find_disk(number);                                                                        \
        if (disk) {                                                                                                   \
            work                                                                                                      \
        } else {                                                                                                      \
            result = (kind)-ENOENT;                                                                                   \
        }                                                                                                             \
        pthread_mutex_unlock(&sim.lock);                                                                              \
        return result;                                                                                                \
    }

/* A new disk, behind a vhost-user socket (1), a character device taken for a vDPA one (2) or an NVMe namespace (4), or a name of a
   PCI device (3); its number, or a negative errno. A regular file (0) becomes one by itself when it is opened, and is looked up here. */
EXPORT int simblkio_disk(int driver, const char *path, uint64_t size);
EXPORT int simblkio_disk(int driver, const char *path, uint64_t size)
{
    char name[256];
    struct disk *disk;
    snprintf(name, sizeof(name), "%s", path);
    pthread_mutex_lock(&sim.lock);
    if (driver == IO_URING || driver == VHOST_VDPA || driver == NVME) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        character_name(fd, name);
        disk = driver == IO_URING && fd >= 0 ? disk_of_file(fd) : *name ? disk_new((enum driver)driver, name, size) : NULL;
        if (fd >= 0) {
            close(fd);
        }
    } else {
        disk = disk_new((enum driver)driver, name, size);
    }
    int number = disk ? disk->number : -EINVAL;
    pthread_mutex_unlock(&sim.lock);
    return number;
}

/* Of the disk's instances, once they connect next. */
ON_DISK(int, override, (int number, const char *name, const char *value), {
    result = disk_override(disk, name, value);
})

static void die(const struct disk *disk, enum death how, int error)
{
    for (struct blkio *b = sim.instances; b; b = b->next) {
        if (b->disk == disk && b->stage != DESTROYED) {
            device_die(b, how, error);
        }
    }
}

/* A vhost-user backend begins to listen, in place of the one that did, if any. */
ON_DISK(int, serve, (int number), {
    die(disk, KILLED, 0);
    result = disk_serve(disk);
})

ON_DISK(int, die, (int number, int how, int error), { die(disk, (enum death)how, error); })

ON_DISK(int, resize, (int number, uint64_t size), { result = disk_resize(disk, size); })

ON_DISK(int, power_failure, (int number), { device_power_failure(disk); })

/* What a read would give now; and with what a sector may come back after a power failure, of simblkio_outcomes() ways. */
ON_DISK(int, read, (int number, uint64_t at, void *data, size_t length), { media_read(disk->media, at, data, length); })
ON_DISK(int, outcomes, (int number, uint64_t sector), { result = (int)media_outcomes(disk->media, sector); })
ON_DISK(int, outcome, (int number, uint64_t sector, unsigned index, void *data),
        { media_outcome(disk->media, sector, index, data); })

/* ---- requests -------------------------------------------------------------------------------------------- */

struct simblkio_request {
    uint64_t id, start, length;
    int32_t disk, instance, queue, polls, operation, place, segments;
    uint32_t flags;
};

static void each_request(void (*look)(struct request *r, void *context), void *context)
{
    for (struct blkio *b = sim.instances; b; b = b->next) {
        for (int poll = 0; poll < 2; poll++) {
            for (int i = 0; i < b->queue_count[poll]; i++) {
                for (int place = 0; place < PLACES; place++) {
                    for (struct request *r = b->queues[poll][i]->at[place].first, *next; r; r = next) {
                        next = r->next;
                        look(r, context);
                    }
                }
            }
        }
    }
}

struct found {
    struct simblkio_request *requests;
    int count, room;
};

static void describe(struct request *r, void *context)
{
    struct found *found = context;
    const struct blkio *b = r->queue->instance;
    if (found->count < found->room) {
        found->requests[found->count] = (struct simblkio_request){
            r->id,       r->start,   r->length,        b->disk->number, b->number, r->queue->index, r->queue->poll,
            r->operation, r->place, r->segment_count, r->flags};
    }
    found->count++;
}

/* All that are in flight; how many. */
EXPORT int simblkio_requests(struct simblkio_request *requests, int room);
EXPORT int simblkio_requests(struct simblkio_request *requests, int room)
{
    struct found found = {requests, 0, room};
    pthread_mutex_lock(&sim.lock);
    each_request(describe, &found);
    pthread_mutex_unlock(&sim.lock);
    return found.count;
}

struct order {
    uint64_t id; /* 0: all */
    int ret, count;
};

static void complete(struct request *r, void *context)
{
    struct order *order = context;
    if (r->place == AT_DEVICE && r->queue->instance->death == ALIVE && (order->id == 0 || order->id == r->id)) {
        device_do(r, order->ret);
        order->count++;
    }
}

static void signal_done(struct blkioq *q)
{
    if (q->at[DONE].first) {
        queue_signal(q);
    }
}

static void each_queue(void (*look)(struct blkioq *q))
{
    for (struct blkio *b = sim.instances; b; b = b->next) {
        for (int poll = 0; poll < 2; poll++) {
            for (int i = 0; i < b->queue_count[poll]; i++) {
                look(b->queues[poll][i]);
            }
        }
    }
}

/* Carry out the request that the device has, or each (0), now, and tell by an event; a negative errno: it fails. How many. */
EXPORT int simblkio_complete(uint64_t id, int ret);
EXPORT int simblkio_complete(uint64_t id, int ret)
{
    struct order order = {id, ret, 0};
    pthread_mutex_lock(&sim.lock);
    each_request(complete, &order);
    if (order.count > 0) {
        each_queue(signal_done);
    }
    pthread_mutex_unlock(&sim.lock);
    return order.count;
}

/* An event for nothing, on every queue. */
EXPORT void simblkio_signal(void);
EXPORT void simblkio_signal(void)
{
    pthread_mutex_lock(&sim.lock);
    each_queue(queue_signal);
    pthread_mutex_unlock(&sim.lock);
}

/* ---- what is left of instances that are gone ---------------------------------------------------------------------- */

/* Devices write once more to the memory of reads that they have not done, those of devices that were given up included. That
   changes nothing, unless the memory has got another use. How many bytes there were to write to. */
EXPORT int64_t simblkio_haunt(void);
EXPORT int64_t simblkio_haunt(void)
{
    pthread_mutex_lock(&sim.lock);
    int64_t written = device_write_late();
    pthread_mutex_unlock(&sim.lock);
    return written;
}

static void free_instance(struct blkio *b)
{
    for (int poll = 0; poll < 2; poll++) {
        for (int i = 0; i < b->queue_count[poll]; i++) {
            free(b->queues[poll][i]);
        }
        free(b->queues[poll]);
    }
    for (size_t i = 0; i < b->region_count; i++) {
        view_end(&b->views[i]);
    }
    free(b->regions);
    free(b->views);
    free(b->allocated);
    free(b);
}

/* Begin anew: forget disks, trace, violations, what was armed, the virtual time, and instances that were destroyed. The number of
   those that were not, in which case nothing is forgotten. */
EXPORT int simblkio_reset(void);
EXPORT int simblkio_reset(void)
{
    int living = 0;
    pthread_mutex_lock(&sim.lock);
    for (struct blkio *b = sim.instances; b; b = b->next) {
        living += b->stage != DESTROYED && b->process == process;
    }
    if (living == 0) {
        struct request *r;
        while ((r = sim.orphans.first) != NULL) {
            requests_remove(&sim.orphans, r);
            request_free(r);
        }
        while (sim.instances) {
            struct blkio *b = sim.instances;
            sim.instances = b->next;
            free_instance(b);
        }
        while (sim.disks) {
            disk_free(sim.disks);
        }
        memset(armed, 0, sizeof(armed));
        memset(gates, 0, sizeof(gates));
        fate.calls = 0;
        sim.last_instance = sim.last_disk = 0;
        sim.last_request = 0;
        sim.config = (struct config){0};
        simblkio_clock(0);
        trace_forget();
        violations_forget();
    }
    pthread_mutex_unlock(&sim.lock);
    return living;
}

/* What a caller has done wrong, where that does not end the process ("record=1"). */
EXPORT unsigned simblkio_violations(void);
EXPORT unsigned simblkio_violations(void) { return violations(); }
EXPORT const char *simblkio_violation(unsigned index);
EXPORT const char *simblkio_violation(unsigned index) { return violation_text(index); }

EXPORT void simblkio_forgive(void);
EXPORT void simblkio_forgive(void) { violations_forget(); }

static void count_fork(void) { process++; }

__attribute__((constructor)) static void begin(void)
{
    const char *text = getenv("SIMBLKIO");
    requests_begin(&sim.orphans);
    trace_begin();
    pthread_atfork(NULL, NULL, count_fork);
    if (text && configure(text) < 0) {
        fprintf(stderr, "simblkio: SIMBLKIO: there is a word in it that says nothing: %s\n", text);
        abort();
    }
}
