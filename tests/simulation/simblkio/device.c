/* What a device does with requests: takes them, carries them out in turns of its own, fails them, dies. */
#include "simblkio.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- lists ----------------------------------------------------------------------------------------------- */

void requests_begin(struct requests *list)
{
    *list = (struct requests){NULL, &list->first, 0};
}

void requests_append(struct requests *list, struct request *r)
{
    r->next = NULL;
    r->back = list->end;
    *list->end = r;
    list->end = &r->next;
    list->count++;
}

void requests_remove(struct requests *list, struct request *r)
{
    *r->back = r->next;
    if (r->next) {
        r->next->back = r->back;
    } else {
        list->end = r->back;
    }
    list->count--;
}

static void move(struct request *r, enum place to)
{
    requests_remove(&r->queue->at[r->place], r);
    r->place = to;
    requests_append(&r->queue->at[to], r);
}

void request_free(struct request *r)
{
    free(r->data);
    free(r->segments);
    free(r->seen);
    free(r);
}

size_t queue_in_flight(const struct blkioq *q)
{
    return q->at[SUBMITTED].count + q->at[AT_DEVICE].count + q->at[DONE].count;
}

bool device_owes(const struct blkioq *q)
{
    return q->instance->death == ALIVE && (q->at[SUBMITTED].first || q->at[AT_DEVICE].first);
}

/* ---- carrying out ---------------------------------------------------------------------------------------- */

/* The part of a write that a request has made which fails, or never ends: nothing, all, or some sectors of it. */
static void do_partly(struct request *r, uint64_t *random)
{
    struct media *m = r->queue->instance->disk->media;
    bool changes = r->operation == WRITE || r->operation == WRITE_ZEROES || r->operation == DISCARD;
    if (!changes || property(r->queue->instance, READ_ONLY) || r->start + r->length > media_size(m)) {
        return;
    }
    unsigned how = (unsigned)random_below(random, 3); /* nothing, all, any */
    bool some = false;
    for (uint64_t at = 0; at < r->length; at += SECTOR) {
        if (how == 1 || (how == 2 && random_below(random, 2))) {
            size_t length = r->length - at < SECTOR ? r->length - at : SECTOR;
            media_write(m, r->start + at, r->operation == WRITE ? r->data + at : NULL, length);
            some = true;
        }
    }
    if (some) {
        disk_changed(r->queue->instance->disk, r->start, r->length);
        trace(EVENT_TEAR, NULL, r->queue, r, how);
    }
}

/* Files grow. */
static int make_room(struct request *r, bool grows)
{
    const struct blkio *b = r->queue->instance;
    uint64_t end = r->start + r->length;
    if (end < r->start) {
        return -EINVAL;
    }
    if (end > media_size(b->disk->media) && r->operation != READ) {
        if (!grows) {
            return -EIO;
        }
        media_resize(b->disk->media, end);
    } else if (end > media_size(b->disk->media) && !property(b, CAN_GROW)) {
        return -EIO;
    }
    return 0;
}

static int change(struct request *r)
{
    struct disk *disk = r->queue->instance->disk;
    bool is_file = disk->file >= 0;
    if (property(r->queue->instance, READ_ONLY)) {
        return -EBADF;
    }
    if (r->operation == DISCARD && is_file) {
        return -EOPNOTSUPP; /* as libblkio's, of current kernels */
    }
    if (r->operation == DISCARD && r->queue->instance->driver == NVME && r->start + r->length > media_size(disk->media)) {
        return 0; /* a hint */
    }
    /* Zeroes that need no blocks do not make a file longer. */
    bool grows = property(r->queue->instance, CAN_GROW) && (r->operation == WRITE || (r->flags & BLKIO_REQ_NO_UNMAP));
    uint64_t size = media_size(disk->media);
    if (is_file && r->operation == WRITE_ZEROES && !grows) {
        r->length = r->start >= size ? 0 : r->length < size - r->start ? r->length : size - r->start;
        r->start = r->length ? r->start : 0;
    }
    int ret = make_room(r, grows);
    if (ret == 0) {
        r->change = media_write(disk->media, r->start, r->operation == WRITE ? r->data : NULL, r->length);
        disk_changed(disk, r->start, r->length);
    }
    return ret;
}

static int carry_out(struct request *r)
{
    struct media *m = r->queue->instance->disk->media;
    disk_look(r->queue->instance->disk);
    if (r->queue->poll && r->queue->instance->driver == IO_URING && r->operation > WRITE) {
        return -EOPNOTSUPP;
    }
    switch (r->operation) {
    case READ: {
        int ret = make_room(r, false);
        if (ret == 0) {
            media_read(m, r->start, r->data, r->length);
        }
        return ret;
    }
    case WRITE_ZEROES:
        if (sim.config.zeroless) {
            return -EOPNOTSUPP;
        }
        return change(r);
    case WRITE:
    case DISCARD:
        return change(r);
    case FLUSH:
        return 0;
    default:
        return -EOPNOTSUPP;
    }
}

/* What a completion promises is so before the completion can be seen. */
static void make_durable(const struct request *r)
{
    struct media *m = r->queue->instance->disk->media;
    if (r->operation == FLUSH) {
        media_flush(m, r->mark);
    } else if (r->operation != READ && (r->flags & BLKIO_REQ_FUA)) {
        media_persist(m, r->change);
    }
}

void device_do(struct request *r, int ret)
{
    struct blkioq *q = r->queue;
    if (q->at[AT_DEVICE].first != r && r->place == AT_DEVICE) {
        trace(EVENT_OVERTAKE, NULL, q, r, 0);
    }
    if (ret < 0) {
        r->error = "the simulated device has failed";
        do_partly(r, &q->random);
    } else if ((ret = carry_out(r)) < 0) {
        r->error = ret == -EOPNOTSUPP ? "not supported" : NULL;
    } else {
        make_durable(r);
    }
    r->ret = ret;
    move(r, DONE);
    trace(ret < 0 ? EVENT_FAIL : EVENT_DO, NULL, q, r, ret);
}

/* ---- turns ----------------------------------------------------------------------------------------------- */

void device_take(struct blkioq *q)
{
    size_t room = q->at[SUBMITTED].count;
    if (room > 0 && random_chance(&q->random, sim.config.full)) {
        size_t busy = q->at[AT_DEVICE].count;
        size_t less = random_below(&q->random, room + (busy ? 1 : 0));
        room = busy ? less : less + 1; /* else nothing would ever go on */
        trace(EVENT_FULL, NULL, q, NULL, (int64_t)room);
    }
    while (room-- > 0 && q->at[SUBMITTED].first) {
        struct request *r = q->at[SUBMITTED].first;
        move(r, AT_DEVICE);
        r->delay = (unsigned)random_below(&q->random, sim.config.late + 1);
        trace(EVENT_TAKE, NULL, q, r, r->delay);
    }
}

static struct request *choose(struct blkioq *q, size_t due)
{
    size_t skip = sim.config.reorder ? random_below(&q->random, due) : 0;
    for (struct request *r = q->at[AT_DEVICE].first; r; r = r->next) {
        if (r->delay == 0 && skip-- == 0) {
            return r;
        }
    }
    return NULL;
}

bool device_turn(struct blkioq *q)
{
    size_t due = 0, done = 0, most;
    for (struct request *r = q->at[AT_DEVICE].first; r; r = r->next) {
        if (r->delay > 0) {
            trace(EVENT_LATE, NULL, q, r, r->delay);
            r->delay--;
        } else {
            due++;
        }
    }
    most = sim.config.batch && due ? 1 + random_below(&q->random, sim.config.batch) : due;
    for (; due > 0 && done < most; due--, done++) {
        int ret = 0;
        struct request *r = choose(q, due);
        if (random_chance(&q->random, sim.config.fail)) {
            ret = -(1 + (int)random_below(&q->random, 133));
        }
        device_do(r, ret);
    }
    if (done > 1) {
        trace(EVENT_MANY, NULL, q, NULL, (int64_t)done);
    }
    return done > 0;
}

/* ---- death ----------------------------------------------------------------------------------------------- */

/* Of what it was given, a device that dies does anything, and tells nobody: now, or while it lingers, or never. */
static void do_last(struct request *r)
{
    if (!r->spent) {
        r->spent = true;
        do_partly(r, &r->queue->random);
    }
}

/* Each in its turn, with a chance of one in so many. */
static void do_some(struct blkioq *q, unsigned odds, bool late)
{
    for (int place = 0; place < DONE; place++) {
        for (struct request *r = q->at[place].first; r; r = r->next) {
            if (!r->spent && random_below(&q->random, odds) == 0) {
                if (late) {
                    trace(EVENT_LINGER, NULL, q, r, 0);
                }
                do_last(r);
            }
        }
    }
}

void device_end_queue(struct blkioq *q)
{
    for (int place = 0; place < DONE && !q->instance->ended; place++) {
        for (struct request *r = q->at[place].first; r; r = r->next) {
            do_last(r);
        }
    }
}

static bool lingers(const struct blkio *b) { return b->death != ALIVE && !b->ended; }

void device_end(struct blkio *b)
{
    for (int poll = 0; poll < 2; poll++) {
        for (int i = 0; i < b->queue_count[poll]; i++) {
            device_end_queue(b->queues[poll][i]);
        }
    }
    b->disk->lingering -= lingers(b);
    b->ended = true;
}

void device_linger(struct disk *disk)
{
    for (struct blkio *b = sim.instances; b && disk->lingering > 0; b = b->next) {
        for (int poll = 0; b->disk == disk && lingers(b) && poll < 2; poll++) {
            for (int i = 0; i < b->queue_count[poll]; i++) {
                do_some(b->queues[poll][i], 4, true);
            }
        }
    }
}

void device_die(struct blkio *b, enum death how, int error)
{
    if (b->death == KILLED || b->stage == DESTROYED || !b->disk) {
        return;
    }
    trace(EVENT_DIE, b, NULL, NULL, how);
    b->disk->lingering += b->death == ALIVE && !b->ended;
    b->death_error = error;
    b->death = how;
    for (int poll = 0; poll < 2 && !b->ended; poll++) {
        for (int i = 0; i < b->queue_count[poll]; i++) {
            do_some(b->queues[poll][i], 2, false);
        }
    }
    if (how == KILLED) {
        device_end(b);
    }
    if ((how == HUNG_UP || how == KILLED) && b->served >= 0) {
        close(b->served);
        b->served = -1;
    }
    if (b->disk->client == b && b->served < 0) {
        b->disk->client = NULL;
    }
    if (how == KILLED) {
        disk_end_process(b->disk);
    }
}

void device_look(struct blkio *b)
{
    struct pollfd end = {b->served, POLLRDHUP, 0};
    if (b->death == ALIVE && b->served >= 0 && poll(&end, 1, 0) > 0) {
        device_die(b, HUNG_UP, 0);
    }
}

/* What is done and was not told is not told any more: nobody has made sure of it. */
static void forget_done(struct blkioq *q)
{
    struct request *r;
    while ((r = q->at[DONE].first) != NULL) {
        r->spent = true;
        move(r, AT_DEVICE);
    }
}

void device_power_failure(struct disk *disk)
{
    for (struct blkio *b = sim.instances; b; b = b->next) {
        if (b->disk == disk && b->stage != DESTROYED) {
            device_die(b, disk->driver == VHOST_USER ? KILLED : has_rings(disk->driver) ? BROKEN : SILENT, EIO);
            device_end(b);
            for (int poll = 0; poll < 2; poll++) {
                for (int i = 0; i < b->queue_count[poll]; i++) {
                    forget_done(b->queues[poll][i]);
                }
            }
        }
    }
    disk_end_process(disk);
    int64_t lost = (int64_t)media_power_failure(disk->media, &disk->random);
    disk_changed(disk, 0, media_size(disk->media));
    trace(EVENT_POWER_FAILURE, NULL, NULL, NULL, lost);
}

/* ---- memory that a device still has -------------------------------------------------------------------------- */

/* /proc/self/mem gives an error, and not a signal, where no memory is any more. */
static int64_t write_late(const struct request *r, int memory)
{
    static uint8_t scribbles[4096];
    int64_t written = 0;
    memset(scribbles, scribble_of(r), sizeof(scribbles));
    for (int i = 0; r->operation == READ && i < r->segment_count; i++) {
        for (size_t at = 0; at < r->segments[i].iov_len; at += sizeof(scribbles)) {
            size_t left = r->segments[i].iov_len - at;
            ssize_t done = pwrite(memory, scribbles, left < sizeof(scribbles) ? left : sizeof(scribbles),
                                  (off_t)(uintptr_t)(r->seen[i] + at));
            written += done > 0 ? done : 0;
        }
    }
    return written;
}

int64_t device_write_late(void)
{
    int64_t written = 0;
    int memory = open("/proc/self/mem", O_WRONLY | O_CLOEXEC);
    if (memory < 0) {
        return -errno;
    }
    for (const struct request *r = sim.orphans.first; r; r = r->next) {
        written += write_late(r, memory);
    }
    for (const struct blkio *b = sim.instances; b; b = b->next) {
        for (int poll = 0; poll < 2 && b->death != KILLED; poll++) {
            for (int i = 0; i < b->queue_count[poll]; i++) {
                for (int place = 0; place < PLACES; place++) {
                    for (const struct request *r = b->queues[poll][i]->at[place].first; r; r = r->next) {
                        written += write_late(r, memory);
                    }
                }
            }
        }
    }
    close(memory);
    return written;
}
