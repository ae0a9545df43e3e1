/* Instances: their life, their memory regions, and which queues they have. */
#include "simblkio.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static _Thread_local char message[256];

int refuse(int error, const char *text)
{
    snprintf(message, sizeof(message), "%s", text);
    return -error;
}

EXPORT const char *blkio_get_error_msg(void) { return message; }

static const char *const DRIVER_NAMES[] = {"io_uring", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa", "virtio-blk-vfio-pci",
                                           "nvme-io_uring"};

/* With which errno the call fails that may: a test wants it, or the seed. */
static int failure(struct blkio *b, const char *call, unsigned permille)
{
    static const int ERRORS[] = {EIO, ENOMEM, EINVAL, ETIMEDOUT, EBUSY};
    int error = armed_failure(call);
    if (!error && random_chance(&b->random, permille)) {
        error = ERRORS[random_below(&b->random, sizeof(ERRORS) / sizeof(*ERRORS))];
    }
    if (error) {
        trace(EVENT_REFUSE, b, NULL, NULL, error);
    }
    return error;
}

/* ---- life ------------------------------------------------------------------------------------------------ */

EXPORT int blkio_create(const char *driver, struct blkio **result)
{
    enum driver which = 0;
    while (which < DRIVERS && strcmp(DRIVER_NAMES[which], driver) != 0) {
        which++;
    }
    if (which == DRIVERS) {
        return refuse(ENOENT, "simblkio has no such driver");
    }
    pthread_mutex_lock(&sim.lock);
    struct blkio *b = calloc(1, sizeof(*b));
    b->number = sim.last_instance++;
    b->process = process;
    b->driver = which;
    b->socket = b->served = b->ring_memory = -1;
    seed_instance(b);
    int error = failure(b, "create", sim.config.open);
    if (error) {
        free(b);
        pthread_mutex_unlock(&sim.lock);
        return refuse(error, "the simulated system is out of something");
    }
    properties_begin(b);
    property_put_text(b, DRIVER, driver);
    b->next = sim.instances;
    sim.instances = b;
    trace(EVENT_CREATE, b, NULL, NULL, which);
    pthread_mutex_unlock(&sim.lock);
    *result = b;
    return 0;
}

static int open_file(struct blkio *b)
{
    const char *path = property_text(b, PATH);
    int flags = (property(b, READ_ONLY) ? O_RDONLY : O_RDWR) | (property(b, DIRECT) ? O_DIRECT : 0) | O_CLOEXEC;
    int fd = (int)property(b, FD);
    if (*path) {
        fd = open(path, flags);
        if (fd < 0) {
            return refuse(errno, "Failed to open device");
        }
        property_put(b, FD, (uint64_t)fd);
    } else {
        flags = fcntl(fd, F_GETFL);
        property_put(b, DIRECT, (flags & O_DIRECT) != 0);
        property_put(b, READ_ONLY, (flags & O_ACCMODE) == O_RDONLY);
    }
    b->disk = disk_of_file(fd);
    return b->disk ? 0 : refuse(EINVAL, "simblkio makes disks of regular files only");
}

/* As a backend does, it takes one client at a time; the next one waits for as long as there is one. */
static int connect_to_backend(struct blkio *b)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", property_text(b, PATH));
    b->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (b->socket < 0 || connect(b->socket, (struct sockaddr *)&address, sizeof(address)) != 0) {
        return refuse(errno, "Failed to connect to vhost socket");
    }
    struct disk *disk = disk_find(VHOST_USER, property_text(b, PATH));
    if (!disk || disk->listener < 0) {
        return refuse(ECONNREFUSED, "simblkio has no such backend");
    }
    b->served = accept4(disk->listener, NULL, NULL, SOCK_CLOEXEC);
    while (disk->client) {
        device_look(disk->client); /* which may be its end */
        if (!disk->client) {
            break;
        }
        struct pollfd ours = {b->socket, POLLRDHUP, 0};
        if (disk->client->death == ALIVE && sim.config.impatient) {
            return refuse(EBUSY, "the backend serves another client");
        } else if (disk->client->death == ALIVE && poll(&ours, 1, 0) == 0) {
            doze();
        } else if (disk->client->death == ALIVE || disk->listener < 0) {
            return refuse(EIO, "the connection has ended");
        } else {
            disk->client = NULL;
        }
    }
    b->disk = disk;
    disk->client = b;
    b->ring_memory = memfd_create("virtio-ring", 0);
    return 0;
}

/* A device file of vDPA or VFIO is opened once at a time. */
static bool is_held(const struct disk *disk)
{
    for (const struct blkio *other = sim.instances; other; other = other->next) {
        if (other->disk == disk && other->death == ALIVE && !other->ended) {
            return true;
        }
    }
    return false;
}

static int find_device(struct blkio *b)
{
    char name[256];
    const char *path = property_text(b, PATH);
    if (b->driver == VFIO_PCI) {
        snprintf(name, sizeof(name), "%s", path);
    } else {
        int fd = *path ? open(path, O_RDWR | O_CLOEXEC) : (int)property(b, FD);
        if (fd < 0) {
            return refuse(errno, "Failed to open device");
        }
        property_put(b, FD, (uint64_t)fd);
        character_name(fd, name);
    }
    struct disk *disk = disk_find(b->driver, name);
    if (!disk) {
        return refuse(ENOENT, "simblkio has no such device");
    }
    if (!has_rings(b->driver) && is_held(disk)) {
        return refuse(EBUSY, "somebody else holds the device");
    }
    b->disk = disk;
    return 0;
}

/* A device that is connected to anew has left its former clients' requests alone. A file or a namespace is open to all; the kernel goes on. */
static void take_over(struct blkio *b)
{
    for (struct blkio *other = sim.instances; other; other = other->next) {
        if (other != b && other->disk == b->disk && other->death != ALIVE && !other->ended && !has_rings(b->driver)) {
            device_end(other);
        }
    }
}

EXPORT int blkio_connect(struct blkio *b)
{
    int result = -EINVAL;
    if (enter(b, "blkio_connect")) {
        int error;
        if (b->stage != CREATED) {
            result = b->stage == CONNECTED ? 0 : refuse(EBUSY, "Device is already started");
        } else if ((*property_text(b, PATH) != 0) == ((int)property(b, FD) >= 0) && b->driver != VHOST_USER && b->driver != VFIO_PCI) {
            result = refuse(EINVAL, "Exactly one of path and fd must be set");
        } else if (!block_if_told(b, "connect")) {
            result = refuse(EIO, "the connection has ended");
        } else if ((error = failure(b, "connect", sim.config.open)) != 0) {
            result = refuse(error, "the simulated device cannot be reached");
        } else {
            result = b->driver == IO_URING     ? open_file(b)
                     : b->driver == VHOST_USER ? connect_to_backend(b)
                                               : find_device(b);
        }
        if (result == 0 && b->stage == CREATED) {
            take_over(b);
            die_if_due(b, &b->random);
            if (b->death == HUNG_UP || b->death == KILLED) {
                result = refuse(EIO, "the connection has ended");
            }
        }
        if (result == 0 && b->stage == CREATED) {
            b->disk->clients++;
            b->stage = CONNECTED;
            properties_connect(b);
        }
        trace(EVENT_CONNECT, b, NULL, NULL, result);
    }
    leave(b);
    return result;
}

/* Regular files are registered with the ring, as libblkio does it, so that there is something to take out of it. */
static int ring_new(int file)
{
    struct io_uring_params parameters = {0};
    int ring = (int)syscall(SYS_io_uring_setup, 1, &parameters);
    if (ring >= 0) {
        syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &file, 1);
    }
    return ring;
}

static int add_queue(struct blkio *b, bool poll)
{
    int index = b->queue_count[poll];
    struct blkioq *q = queue_new(b, poll, index);
    if (!q) {
        return refuse(EMFILE, "no descriptor is left for a queue");
    }
    b->queues[poll] = realloc(b->queues[poll], sizeof(q) * (size_t)(index + 1));
    b->queues[poll][index] = q;
    b->queue_count[poll]++;
    q->ring = has_rings(b->driver) ? ring_new((int)property(b, FD)) : -1;
    return index;
}

static int start(struct blkio *b)
{
    int counts[2] = {(int)property(b, NUM_QUEUES), (int)property(b, NUM_POLL_QUEUES)}, error;
    if (counts[1] > 0 && !property(b, SUPPORTS_POLL_QUEUES)) {
        return refuse(EINVAL, "Poll queues are not supported");
    }
    if (counts[0] + counts[1] > (int)property(b, MAX_QUEUES)) {
        return refuse(EINVAL, "The device has not so many queues");
    }
    if (!block_if_told(b, "start") || b->death == HUNG_UP || b->death == KILLED) {
        return refuse(EIO, "the connection has ended");
    }
    if ((error = failure(b, "start", sim.config.open)) != 0) {
        return refuse(error, "the simulated device does not start");
    }
    for (int poll = 0; poll < 2; poll++) {
        while (b->queue_count[poll] < counts[poll]) {
            int index = add_queue(b, poll);
            if (index < 0) {
                return index;
            }
        }
    }
    return 0;
}

EXPORT int blkio_start(struct blkio *b)
{
    int result = -EINVAL;
    if (enter(b, "blkio_start")) {
        if (b->stage != CONNECTED) {
            result = b->stage == STARTED ? 0 : refuse(ENODEV, "Device must be connected");
        } else if ((result = start(b)) == 0) {
            b->stage = STARTED;
        }
        trace(EVENT_START, b, NULL, NULL, result);
    }
    leave(b);
    return result;
}

static void close_one(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

/* A backend that lives has mapped the memory itself, and a kernel goes on with what it has: they may write yet. A vDPA or PCI
   device has been reset. */
static void leave_orphans(struct blkioq *q)
{
    enum driver driver = q->instance->driver;
    bool lives = has_rings(driver) || (driver == VHOST_USER && q->instance->death != KILLED);
    for (int place = 0; place < PLACES; place++) {
        struct request *r;
        while ((r = q->at[place].first) != NULL) {
            requests_remove(&q->at[place], r);
            if (lives && place != DONE) {
                requests_append(&sim.orphans, r);
                q->instance->orphans++;
            } else {
                request_free(r);
            }
        }
    }
}

static void end_queue(struct blkioq *q)
{
    size_t left = queue_in_flight(q);
    if (q->inside) {
        violation("queue %d of instance %d is destroyed while it is being called", q->index, q->instance->number);
    }
    if (left > 0) {
        device_look(q->instance);
        trace(EVENT_ORPHAN, q->instance, q, NULL, (int64_t)left);
        if (q->instance->death == ALIVE && !sim.config.abandons) {
            violation("queue %d of instance %d, whose device is alive, is destroyed with %zu requests in flight", q->index,
                      q->instance->number, left);
        }
    }
    device_end_queue(q);
    leave_orphans(q);
    close_one(q->ring);
    q->ring = -1;
    queue_end(q);
}

static void destroy(struct blkio *b)
{
    for (int poll = 0; poll < 2; poll++) {
        for (int i = 0; i < b->queue_count[poll]; i++) {
            if (!b->queues[poll][i]->removed) {
                end_queue(b->queues[poll][i]);
            }
        }
    }
    close_one(b->socket);
    close_one(b->served);
    close_one(b->ring_memory);
    b->socket = b->served = b->ring_memory = -1;
    if (has_rings(b->driver) || b->driver == VHOST_VDPA) {
        close_one((int)property(b, FD));
    }
    while (b->allocated_count > 0) {
        const struct blkio_mem_region *region = &b->allocated[--b->allocated_count];
        munmap(region->addr, region->len);
        close(region->fd);
    }
    for (; b->orphans == 0 && b->region_count > 0; b->region_count--) {
        view_end(&b->views[b->region_count - 1]);
    }
    if (b->disk) {
        device_end(b);
    }
    if (b->disk && b->stage >= CONNECTED) {
        b->disk->clients--;
    }
    if (b->disk && b->disk->client == b) {
        b->disk->client = NULL;
    }
    properties_end(b);
    b->stage = DESTROYED;
}

EXPORT void blkio_destroy(struct blkio **pointer)
{
    struct blkio *b = *pointer;
    if (enter(b, "blkio_destroy")) {
        block_if_told(b, "destroy");
        trace(EVENT_DESTROY, b, NULL, NULL, b->death);
        destroy(b);
    }
    leave(b);
    *pointer = NULL;
}

/* ---- memory regions -------------------------------------------------------------------------------------- */

static bool is_same(const struct blkio_mem_region *a, const struct blkio_mem_region *b)
{
    return a->addr == b->addr && a->len == b->len && a->iova == b->iova && a->fd_offset == b->fd_offset && a->fd == b->fd
           && a->flags == b->flags;
}

/* Where it was, and where the last one is now; -1: it was not there. */
static int take_out(struct blkio_mem_region *regions, size_t *count, const struct blkio_mem_region *region)
{
    for (size_t i = 0; i < *count; i++) {
        if (is_same(&regions[i], region)) {
            regions[i] = regions[--*count];
            return (int)i;
        }
    }
    return -1;
}

static void put_in(struct blkio_mem_region **regions, size_t *count, const struct blkio_mem_region *region)
{
    *regions = realloc(*regions, sizeof(*region) * (*count + 1));
    (*regions)[(*count)++] = *region;
}

static struct view view_new(const struct blkio *b, const struct blkio_mem_region *region)
{
    struct view view = {0};
    size_t before = (size_t)region->fd_offset % 4096;
    if (b->driver == VHOST_USER) {
        view.size = region->len + before;
        view.base = mmap(NULL, view.size, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, region->fd_offset - (off_t)before);
        view.at = view.base == MAP_FAILED ? NULL : (uint8_t *)view.base + before;
    }
    return view;
}

void view_end(struct view *view)
{
    if (view->at) {
        munmap(view->base, view->size);
        view->at = NULL;
    }
}

/* What no libblkio refuses, and some device does not survive. */
static void check_region(const struct blkio *b, const struct blkio_mem_region *region)
{
    uint64_t alignment = property(b, MEM_REGION_ALIGNMENT), most = property(b, MAX_MEM_REGIONS);
    uint64_t own = has_rings(b->driver) ? 0 : 1; /* of the virtqueues */
    if (region->len == 0 || (uintptr_t)region->addr % alignment || region->len % alignment) {
        violation("a region of %zu bytes is mapped, mem-region-alignment is %lu", region->len, alignment);
    }
    if (b->region_count + own >= most) {
        violation("%zu regions are mapped, and another one; max-mem-regions is %lu", b->region_count, most);
    }
    if (region->fd < 0 && property(b, NEEDS_MEM_REGION_FD)) {
        violation("a region without a descriptor is mapped");
    }
    if (region->fd >= 0 && fcntl(region->fd, F_GETFD) < 0) {
        violation("a region with a closed descriptor is mapped");
    }
    for (size_t i = 0; i < b->region_count; i++) {
        const char *other = b->regions[i].addr, *new = region->addr;
        if (new < other + b->regions[i].len && other < new + region->len) {
            violation("a region is mapped that overlaps another");
        }
    }
}

EXPORT int blkio_map_mem_region(struct blkio *b, const struct blkio_mem_region *region)
{
    int result = -EINVAL;
    if (enter(b, "blkio_map_mem_region")) {
        int error;
        check_region(b, region);
        if (b->stage != STARTED) {
            result = refuse(ENODEV, "Device must be started");
        } else if (!block_if_told(b, "map") || b->death == HUNG_UP || b->death == KILLED) {
            result = refuse(EIO, "the connection has ended");
        } else if ((error = failure(b, "map", sim.config.map)) != 0) {
            result = refuse(error, "the simulated device cannot map the region");
        } else {
            put_in(&b->regions, &b->region_count, region);
            b->views = realloc(b->views, sizeof(*b->views) * b->region_count);
            b->views[b->region_count - 1] = view_new(b, region);
            result = 0;
        }
        trace(EVENT_MAP, b, NULL, NULL, result);
    }
    leave(b);
    return result;
}

EXPORT void blkio_unmap_mem_region(struct blkio *b, const struct blkio_mem_region *region)
{
    if (enter(b, "blkio_unmap_mem_region")) {
        bool is_free = check_unmap(b, region);
        block_if_told(b, "unmap");
        int at = take_out(b->regions, &b->region_count, region);
        if (at < 0) {
            violation("a region is unmapped that is not mapped, or was mapped with other values");
        } else {
            if (is_free) {
                view_end(&b->views[at]);
            }
            b->views[at] = b->views[b->region_count];
        }
        trace(EVENT_UNMAP, b, NULL, NULL, (int64_t)region->len);
    }
    leave(b);
}

EXPORT int blkio_alloc_mem_region(struct blkio *b, struct blkio_mem_region *region, size_t length)
{
    int result = -EINVAL;
    if (enter(b, "blkio_alloc_mem_region")) {
        int error = b->stage == STARTED ? failure(b, "alloc", sim.config.map) : ENODEV, fd = -1;
        void *memory = MAP_FAILED;
        if (!error && (fd = memfd_create("simblkio", MFD_CLOEXEC)) >= 0 && ftruncate(fd, (off_t)length) == 0) {
            memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        }
        if (memory == MAP_FAILED) {
            close_one(fd);
            result = refuse(error ? error : errno, "no memory");
        } else {
            *region = (struct blkio_mem_region){.addr = memory, .len = length, .fd = fd};
            put_in(&b->allocated, &b->allocated_count, region);
            result = 0;
        }
    }
    leave(b);
    return result;
}

EXPORT void blkio_free_mem_region(struct blkio *b, const struct blkio_mem_region *region)
{
    if (enter(b, "blkio_free_mem_region")) {
        check_unmap(b, region);
        if (take_out(b->allocated, &b->allocated_count, region) < 0) {
            violation("a region is freed that was not allocated here");
        } else {
            munmap(region->addr, region->len);
            close(region->fd);
        }
    }
    leave(b);
}

/* ---- queues ---------------------------------------------------------------------------------------------- */

static struct blkioq *find_queue(struct blkio *b, bool poll, int index)
{
    if (b->stage != STARTED || index < 0 || index >= b->queue_count[poll] || b->queues[poll][index]->removed) {
        violation("instance %d is asked for %squeue %d, which it does not have", b->number, poll ? "poll " : "", index);
        return NULL;
    }
    return b->queues[poll][index];
}

static struct blkioq *get_queue(struct blkio *b, bool poll, int index)
{
    struct blkioq *q = enter(b, "blkio_get_queue") ? find_queue(b, poll, index) : NULL;
    leave(b);
    return q;
}

EXPORT struct blkioq *blkio_get_queue(struct blkio *b, int index) { return get_queue(b, false, index); }
EXPORT struct blkioq *blkio_get_poll_queue(struct blkio *b, int index) { return get_queue(b, true, index); }

static int add(struct blkio *b, bool poll)
{
    int result = -EINVAL;
    if (enter(b, "blkio_add_queue")) {
        int error;
        if (!property(b, CAN_ADD_QUEUES)) {
            result = refuse(ENOTSUP, "Queues cannot be added");
        } else if (b->stage != STARTED) {
            result = refuse(EBUSY, "Device must be started");
        } else if (poll && !property(b, SUPPORTS_POLL_QUEUES)) {
            result = refuse(ENOTSUP, "Poll queues are not supported");
        } else if ((error = failure(b, "add_queue", sim.config.open)) != 0) {
            result = refuse(error, "the simulated system is out of something");
        } else {
            result = add_queue(b, poll);
        }
        trace(EVENT_ADD_QUEUE, b, NULL, NULL, result);
    }
    leave(b);
    return result;
}

EXPORT int blkio_add_queue(struct blkio *b) { return add(b, false); }
EXPORT int blkio_add_poll_queue(struct blkio *b) { return add(b, true); }

static int remove_queue(struct blkio *b, bool poll, int index)
{
    int result = -EINVAL;
    if (enter(b, "blkio_remove_queue")) {
        if (index < 0 || index >= b->queue_count[poll] || b->queues[poll][index]->removed) {
            result = refuse(ENOENT, "There is no such queue");
        } else {
            end_queue(b->queues[poll][index]);
            result = 0;
        }
        trace(EVENT_REMOVE_QUEUE, b, NULL, NULL, result);
    }
    leave(b);
    return result;
}

EXPORT int blkio_remove_queue(struct blkio *b, int index) { return remove_queue(b, false, index); }
EXPORT int blkio_remove_poll_queue(struct blkio *b, int index) { return remove_queue(b, true, index); }
