/* Queues: what is submitted to them, do_io, and the completion descriptor. */
#include "simblkio.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct blkioq *queue_new(struct blkio *b, bool poll, int index)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) {
        return NULL;
    }
    struct blkioq *q = calloc(1, sizeof(*q));
    q->instance = b;
    q->index = index;
    q->poll = poll;
    q->fd = fd;
    q->ring = -1;
    seed_queue(q);
    for (int place = 0; place < PLACES; place++) {
        requests_begin(&q->at[place]);
    }
    return q;
}

/* The structure stays, so that its use is noticed. */
void queue_end(struct blkioq *q)
{
    close(q->fd);
    q->fd = -1;
    q->removed = true;
}

void queue_signal(struct blkioq *q)
{
    struct pollfd event = {q->fd, POLLIN, 0};
    if (q->fd < 0 || !(q->fd_enabled || q->poll)) {
        return;
    }
    if (poll(&event, 1, 0) > 0) {
        trace(EVENT_MERGE, NULL, q, NULL, 0);
    }
    eventfd_write(q->fd, 1);
    trace(EVENT_SIGNAL, NULL, q, NULL, 0);
}

/* ---- submission ------------------------------------------------------------------------------------------ */

static struct request *request_new(struct blkioq *q, enum operation operation, const struct iovec *segments, int count)
{
    struct request *r = calloc(1, sizeof(*r));
    r->id = ++sim.last_request;
    r->queue = q;
    r->operation = operation;
    r->place = SUBMITTED;
    r->mark = media_mark(q->instance->disk->media);
    r->segment_count = count;
    r->segments = malloc(sizeof(*segments) * (size_t)(count + 1));
    r->seen = malloc(sizeof(*r->seen) * (size_t)(count + 1));
    for (int i = 0; i < count; i++) {
        r->segments[i] = segments[i];
        r->seen[i] = device_address(q->instance, segments[i].iov_base, segments[i].iov_len);
        r->length += segments[i].iov_len;
    }
    return r;
}

static void submit(struct request *r, uint64_t start, const struct iovec *vector, void *user_data, uint32_t flags)
{
    r->start = start;
    r->vector = vector;
    r->user_data = user_data;
    r->flags = flags;
    check_request(r);
    check_memory_begin(r);
    requests_append(&r->queue->at[SUBMITTED], r);
    trace(EVENT_SUBMIT, NULL, r->queue, r, r->segment_count);
}

static void submit_buffer(struct blkioq *q, enum operation operation, uint64_t start, const void *buffer, size_t length,
                          void *user_data, uint32_t flags)
{
    if (enter_queue(q, operation_name(operation))) {
        struct iovec segment = {(void *)buffer, length};
        submit(request_new(q, operation, &segment, 1), start, NULL, user_data, flags);
    }
    leave_queue(q);
}

static void submit_vector(struct blkioq *q, enum operation operation, uint64_t start, const struct iovec *vector, int count,
                          void *user_data, uint32_t flags)
{
    if (enter_queue(q, operation_name(operation))) {
        submit(request_new(q, operation, vector, count), start, vector, user_data, flags);
    }
    leave_queue(q);
}

static void submit_range(struct blkioq *q, enum operation operation, uint64_t start, uint64_t length, void *user_data,
                         uint32_t flags)
{
    if (enter_queue(q, operation_name(operation))) {
        struct request *r = request_new(q, operation, NULL, 0);
        r->length = length;
        submit(r, start, NULL, user_data, flags);
    }
    leave_queue(q);
}

EXPORT void blkioq_read(struct blkioq *q, uint64_t start, void *buffer, size_t length, void *user_data, uint32_t flags)
{
    submit_buffer(q, READ, start, buffer, length, user_data, flags);
}

EXPORT void blkioq_write(struct blkioq *q, uint64_t start, const void *buffer, size_t length, void *user_data, uint32_t flags)
{
    submit_buffer(q, WRITE, start, buffer, length, user_data, flags);
}

EXPORT void blkioq_readv(struct blkioq *q, uint64_t start, const struct iovec *vector, int count, void *user_data, uint32_t flags)
{
    submit_vector(q, READ, start, vector, count, user_data, flags);
}

EXPORT void blkioq_writev(struct blkioq *q, uint64_t start, struct iovec *vector, int count, void *user_data, uint32_t flags)
{
    submit_vector(q, WRITE, start, vector, count, user_data, flags);
}

EXPORT void blkioq_write_zeroes(struct blkioq *q, uint64_t start, uint64_t length, void *user_data, uint32_t flags)
{
    submit_range(q, WRITE_ZEROES, start, length, user_data, flags);
}

EXPORT void blkioq_discard(struct blkioq *q, uint64_t start, uint64_t length, void *user_data, uint32_t flags)
{
    submit_range(q, DISCARD, start, length, user_data, flags);
}

EXPORT void blkioq_flush(struct blkioq *q, void *user_data, uint32_t flags)
{
    submit_range(q, FLUSH, 0, 0, user_data, flags);
}

/* No simulated device has zones. */
EXPORT void blkioq_report_zones(struct blkioq *q, uint64_t offset, struct blkio_zone *zones, uint32_t count, void *user_data,
                                uint32_t flags)
{
    (void)zones;
    (void)count;
    submit_range(q, ZONE, offset, 0, user_data, flags);
}

#define ZONE_REQUEST(name)                                                                                            \
    EXPORT void blkioq_##name##_zone(struct blkioq *q, uint64_t offset, void *user_data, uint32_t flags)              \
    {                                                                                                                 \
        submit_range(q, ZONE, offset, 0, user_data, flags);                                                           \
    }                                                                                                                 \
    EXPORT void blkioq_##name##_all_zones(struct blkioq *q, void *user_data, uint32_t flags)                          \
    {                                                                                                                 \
        submit_range(q, ZONE, 0, 0, user_data, flags);                                                                \
    }

ZONE_REQUEST(close)
ZONE_REQUEST(finish)
ZONE_REQUEST(open)
ZONE_REQUEST(reset)

/* ---- completion ------------------------------------------------------------------------------------------ */

/* The last moment at which a device may have written: whoever looked before has seen scribbles. */
static void deliver(const struct request *r)
{
    size_t at = 0;
    for (int i = 0; i < r->segment_count; i++) {
        memcpy(r->seen[i], r->data + at, r->segments[i].iov_len);
        at += r->segments[i].iov_len;
    }
}

static int reap(struct blkioq *q, struct blkio_completion *completions, int most)
{
    int count = 0;
    struct request *r;
    while (count < most && (r = q->at[DONE].first) != NULL) {
        requests_remove(&q->at[DONE], r);
        q->descriptors -= r->descriptors;
        check_memory_end(r);
        if (r->ret >= 0 && r->operation != READ && r->operation != FLUSH) {
            media_acknowledge(q->instance->disk->media, r->change); /* flushes to come cover it */
        }
        if (r->ret >= 0 && r->operation == READ) {
            deliver(r);
        }
        completions[count++] = (struct blkio_completion){
            .user_data = r->user_data, .error_msg = r->ret < 0 ? r->error : NULL, .ret = r->ret};
        trace(EVENT_REAP, NULL, q, r, r->ret);
        request_free(r);
    }
    return count;
}

/* ---- do_io ----------------------------------------------------------------------------------------------- */

static int failure(struct blkioq *q)
{
    static const int TRANSIENT[] = {EINTR, EAGAIN, EBUSY};
    struct blkio *b = q->instance;
    int error = armed_failure("do_io");
    if (random_chance(&q->random, sim.config.broken)) {
        device_die(b, BROKEN, EIO);
    }
    if (b->death == BROKEN) {
        error = b->death_error;
    } else if (!error && random_chance(&q->random, sim.config.transient)) {
        error = TRANSIENT[random_below(&q->random, 3)];
    }
    return error;
}

/* Without what a test does meanwhile, or a thread, time alone would pass. False: none is left. */
static bool wait_for_more(struct blkioq *q, const struct timespec *end)
{
    struct timespec now;
    bool moves = q->instance->death == ALIVE && !sim.config.hold;
    if (end) {
        clock_gettime(CLOCK_MONOTONIC, &now);
    }
    if (end && (now.tv_sec > end->tv_sec || (now.tv_sec == end->tv_sec && now.tv_nsec >= end->tv_nsec))) {
        return false;
    }
    if (!moves && clock_is_virtual()) {
        clock_pass(DOZE);
    }
    if (!moves && !(end && clock_is_virtual())) {
        doze();
    }
    return !q->removed;
}

/* What has been done when the caller is back is signalled, once. Where nothing is due yet, an event for nothing has the caller
   come again: who loses it waits for ever, as with a device. */
static void go_on_after(struct blkioq *q)
{
    if (q->instance->death != ALIVE || sim.config.hold) {
        return;
    }
    if (device_turn(q)) {
        queue_signal(q);
    } else if (!q->at[DONE].first && device_owes(q)) {
        trace(EVENT_SPURIOUS, NULL, q, NULL, 0);
        queue_signal(q);
    } else if (random_chance(&q->random, sim.config.spurious)) {
        trace(EVENT_SPURIOUS, NULL, q, NULL, 1);
        queue_signal(q);
    }
}

static struct timespec after(const struct timespec *timeout)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout->tv_sec + (end.tv_nsec + timeout->tv_nsec) / 1000000000;
    end.tv_nsec = (end.tv_nsec + timeout->tv_nsec) % 1000000000;
    return end;
}

static int do_io(struct blkioq *q, struct blkio_completion *completions, int least, int most, const struct timespec *timeout)
{
    struct timespec end = timeout ? after(timeout) : (struct timespec){0};
    int count = 0, error;
    if (least < 0 || most < least || (size_t)least > queue_in_flight(q)) {
        return refuse(EINVAL, "Invalid number of completions");
    }
    device_look(q->instance);
    device_linger(q->instance->disk);
    disk_resize_by_chance(q->instance->disk, &q->random);
    if (random_chance(&q->random, sim.config.haunt)) {
        trace(EVENT_HAUNT, NULL, q, NULL, device_write_late());
    }
    if ((error = failure(q)) != 0) {
        trace(EVENT_REFUSE, NULL, q, NULL, error);
        return refuse(error, "the simulated queue has failed");
    }
    do {
        if (q->instance->death == ALIVE) {
            device_take(q);
        }
        if (q->instance->death == ALIVE && !sim.config.hold) {
            device_turn(q);
        }
        count += reap(q, completions + count, most - count);
    } while (count < least && wait_for_more(q, timeout ? &end : NULL));
    if (q->removed) {
        return refuse(EINVAL, "the queue was removed");
    }
    go_on_after(q);
    return count == 0 && least > 0 ? refuse(ETIME, "nothing has completed in time") : count;
}

EXPORT int blkioq_do_io(struct blkioq *q, struct blkio_completion *completions, int least, int most, struct timespec *timeout)
{
    int result = enter_queue(q, "blkioq_do_io") ? do_io(q, completions, least, most, timeout) : -EINVAL;
    leave_queue(q);
    return result;
}

EXPORT int blkioq_do_io_interruptible(struct blkioq *q, struct blkio_completion *completions, int least, int most,
                                      struct timespec *timeout, const sigset_t *signals)
{
    (void)signals;
    return blkioq_do_io(q, completions, least, most, timeout);
}

EXPORT int blkioq_get_completion_fd(struct blkioq *q)
{
    int fd = enter(q->instance, "blkioq_get_completion_fd") && !q->removed && !q->poll ? q->fd : -1;
    leave(q->instance);
    return fd;
}

EXPORT void blkioq_set_completion_fd_enabled(struct blkioq *q, bool enable)
{
    if (enter_queue(q, "blkioq_set_completion_fd_enabled")) {
        q->fd_enabled = enable && !q->poll;
    }
    leave_queue(q);
}
