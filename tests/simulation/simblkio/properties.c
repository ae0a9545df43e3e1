#include "simblkio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum type { BOOL, INT, UINT64, STR };

#define RING (1u << IO_URING)
#define USER (1u << VHOST_USER)
#define VDPA (1u << VHOST_VDPA)
#define VFIO (1u << VFIO_PCI)
#define NG (1u << NVME)
#define VIRTIO (USER | VDPA | VFIO)
#define RINGS (RING | NG)
#define ALL (RINGS | VIRTIO)
#define NEVER -1

/* As libblkio 1.5 has them, with a file through the page cache, QEMU's vhost-user backend, VDUSE, an emulated PCI device, and
   an emulated NVMe namespace whose blocks have 512 bytes. */
static const struct fact {
    const char *name;
    enum type type;
    enum stage readable; /* from it on */
    int writable;        /* in it only */
    unsigned drivers;
    uint64_t values[DRIVERS];
} TABLE[PROPERTIES] = {
    [CAN_ADD_QUEUES] = {"can-add-queues", BOOL, CREATED, NEVER, ALL, {1, 0, 0, 0, 1}},
    [DRIVER] = {"driver", STR, CREATED, NEVER, ALL, {0}},
    [PATH] = {"path", STR, CREATED, CREATED, ALL, {0}},
    [FD] = {"fd", INT, CREATED, CREATED, RINGS | VDPA, {-1, -1, -1, -1, -1}},
    [READ_ONLY] = {"read-only", BOOL, CREATED, CREATED, ALL, {0}},
    [DIRECT] = {"direct", BOOL, CREATED, CREATED, RING, {0}},
    [NUM_QUEUES] = {"num-queues", INT, CONNECTED, CONNECTED, ALL, {1, 1, 1, 1, 1}},
    [NUM_POLL_QUEUES] = {"num-poll-queues", INT, CONNECTED, CONNECTED, ALL, {0}},
    [NUM_ENTRIES] = {"num-entries", INT, CONNECTED, CONNECTED, RINGS, {128, 0, 0, 0, 128}},
    [QUEUE_SIZE] = {"queue-size", INT, CONNECTED, CONNECTED, VIRTIO, {0, 256, 256, 256}},
    [MAX_QUEUE_SIZE] = {"max-queue-size", INT, CONNECTED, NEVER, VIRTIO, {0, 32768, 32768, 32768}},
    [MAX_QUEUES] = {"max-queues", INT, CONNECTED, NEVER, ALL, {INT32_MAX, 4, 4, 4, INT32_MAX}},
    [SUPPORTS_POLL_QUEUES] = {"supports-poll-queues", BOOL, CONNECTED, NEVER, ALL, {0, 1, 1, 1}},
    [CAPACITY] = {"capacity", UINT64, CONNECTED, NEVER, ALL, {0}},
    [REQUEST_ALIGNMENT] = {"request-alignment", INT, CONNECTED, NEVER, ALL, {1, 512, 512, 512, 512}},
    [OPTIMAL_IO_ALIGNMENT] = {"optimal-io-alignment", INT, CONNECTED, NEVER, ALL, {4096, 512, 512, 512, 512}},
    [OPTIMAL_IO_SIZE] = {"optimal-io-size", INT, CONNECTED, NEVER, ALL, {0, 512, 512, 512, 512}},
    [FLUSH_NEEDED] = {"flush-needed", BOOL, CONNECTED, NEVER, ALL, {1, 0, 1, 1, 1}},
    [BUF_ALIGNMENT] = {"buf-alignment", INT, CONNECTED, NEVER, ALL, {1, 1, 1, 1, 512}},
    [OPTIMAL_BUF_ALIGNMENT] = {"optimal-buf-alignment", INT, CONNECTED, NEVER, ALL, {4096, 1, 1, 1, 4096}},
    [CAN_GROW] = {"can-grow", BOOL, CONNECTED, NEVER, ALL, {1, 0, 0, 0}},
    [MAX_SEGMENTS] = {"max-segments", INT, CONNECTED, NEVER, ALL, {1024, 126, 254, 254, 1024}},
    [MAX_SEGMENT_LEN] = {"max-segment-len", INT, CONNECTED, NEVER, ALL, {0}},
    [MAX_TRANSFER] = {"max-transfer", INT, CONNECTED, NEVER, ALL, {0, 0, 0, 0, 256 << 20}},
    [SUPPORTS_FUA_NATIVELY] = {"supports-fua-natively", BOOL, CONNECTED, NEVER, ALL, {0, 0, 0, 0, 1}},
    [MAX_WRITE_ZEROES_LEN] = {"max-write-zeroes-len", UINT64, CONNECTED, NEVER, ALL,
                              {0, 16 << 20, 16 << 20, (2ul << 30) - 512, 256 << 20}},
    [MAX_DISCARD_LEN] = {"max-discard-len", UINT64, CONNECTED, NEVER, ALL,
                         {0, 16 << 20, 16 << 20, (2ul << 30) - 512, (16ul << 40) - 512}},
    [DISCARD_ALIGNMENT] = {"discard-alignment", INT, CONNECTED, NEVER, ALL, {1, 512, 512, 512, 512}},
    [DISCARD_ALIGNMENT_OFFSET] = {"discard-alignment-offset", INT, CONNECTED, NEVER, ALL, {0}},
    [NEEDS_MEM_REGIONS] = {"needs-mem-regions", BOOL, CONNECTED, NEVER, ALL, {0, 1, 1, 1}},
    [NEEDS_MEM_REGION_FD] = {"needs-mem-region-fd", BOOL, CONNECTED, NEVER, ALL, {0, 1, 1, 0}},
    [MAY_PIN_MEM_REGIONS] = {"may-pin-mem-regions", BOOL, CONNECTED, NEVER, ALL, {0, 1, 1, 0}},
    [MEM_REGION_ALIGNMENT] = {"mem-region-alignment", UINT64, CONNECTED, NEVER, ALL, {1, 1, 4096, 4096, 4096}},
    [MAX_MEM_REGIONS] = {"max-mem-regions", UINT64, CONNECTED, NEVER, ALL, {UINT64_MAX, 32, UINT64_MAX, UINT64_MAX, UINT64_MAX}},
    [ZONED] = {"zoned", INT, CONNECTED, NEVER, NG, {0}},
    [MAX_ACTIVE_ZONES] = {"max-active-zones", INT, CONNECTED, NEVER, NG, {0}},
    [MAX_OPEN_ZONES] = {"max-open-zones", INT, CONNECTED, NEVER, NG, {0}},
    [ZONE_SIZE] = {"zone-size", UINT64, CONNECTED, NEVER, NG, {0}},
    [NR_ZONES] = {"nr-zones", UINT64, CONNECTED, NEVER, NG, {0}},
    [APPEND_SUPPORT] = {"append-support", BOOL, CONNECTED, NEVER, NG, {0}},
    [ZONE_APPEND_MAX_BYTES] = {"zone-append-max-bytes", UINT64, CONNECTED, NEVER, NG, {0}},
};

static int find(enum driver driver, const char *name)
{
    for (int i = 0; i < PROPERTIES; i++) {
        if (strcmp(TABLE[i].name, name) == 0 && (TABLE[i].drivers & 1u << driver)) {
            return i;
        }
    }
    return -1;
}

const char *property_name(enum property property) { return TABLE[property].name; }
uint64_t property(const struct blkio *b, enum property property) { return b->values[property].number; }

const char *property_text(const struct blkio *b, enum property property)
{
    return b->values[property].text ? b->values[property].text : "";
}

void property_put(struct blkio *b, enum property property, uint64_t number)
{
    if (TABLE[property].drivers & 1u << b->driver) {
        b->values[property].number = number;
    }
}

int property_put_text(struct blkio *b, enum property property, const char *text)
{
    char *copy = strdup(text);
    if (!copy) {
        return -ENOMEM;
    }
    free(b->values[property].text);
    b->values[property].text = copy;
    return 0;
}

void properties_begin(struct blkio *b)
{
    for (int i = 0; i < PROPERTIES; i++) {
        property_put(b, i, TABLE[i].values[b->driver]);
    }
}

void properties_end(struct blkio *b)
{
    for (int i = 0; i < PROPERTIES; i++) {
        free(b->values[i].text);
        b->values[i].text = NULL;
    }
}

/* ---- other properties at the next connection -------------------------------------------------------------------- */

#define CHOICES 5

/* None makes a request invalid that was valid, and each suits any of the others. 0 as a length: unlimited. A buffer's alignment
   divides a region's, which is 1 on vhost-user. */
static const struct choice {
    const char *name;
    unsigned drivers;
    uint64_t values[CHOICES];
} VARIED[] = {
    {"max-segments", ALL, {2, 3, 7, 126, 254}},
    {"max-segment-len", ALL, {4096, 8192, 65536, 1 << 20, 0}},
    {"max-transfer", ALL, {4096, 8192, 65536, 1 << 20, 0}},
    {"max-write-zeroes-len", ALL, {4096, 65536, 1 << 20, 16 << 20, (2ul << 30) - 512}},
    {"max-discard-len", ALL, {4096, 65536, 1 << 20, 16 << 20, (2ul << 30) - 512}},
    {"queue-size", VIRTIO, {8, 16, 64, 256, 1024}},
    {"num-entries", RINGS, {4, 8, 32, 128, 256}},
    {"buf-alignment", VDPA | VFIO, {1, 2, 4, 8, 512}},
    {"max-mem-regions", VIRTIO, {8, 16, 24, 32, 1024}},
    {"supports-fua-natively", ALL, {0, 1, 0, 1, 1}},
};
enum { VARIED_COUNT = sizeof(VARIED) / sizeof(*VARIED) };

/* As the disk would show it to whoever connected now. */
static uint64_t shown(const struct disk *disk, int property)
{
    for (int i = 0; i < disk->override_count; i++) {
        if (strcmp(disk->overrides[i].name, TABLE[property].name) == 0) {
            return strtoull(disk->overrides[i].value, NULL, 0);
        }
    }
    return TABLE[property].values[disk->driver];
}

/* The more, the better. */
static uint64_t goodness(const char *name, uint64_t value)
{
    if (strcmp(name, "buf-alignment") == 0) {
        return UINT64_MAX - value;
    }
    return strncmp(name, "max-", 4) == 0 && value == 0 ? UINT64_MAX : value;
}

static void change(struct disk *disk, const struct choice *choice, uint64_t value, bool only_better)
{
    if (!(choice->drivers & 1u << disk->driver)) {
        return;
    }
    uint64_t before = shown(disk, find(disk->driver, choice->name));
    bool better = goodness(choice->name, value) > goodness(choice->name, before);
    char text[32];
    if (value != before && (better || !only_better)) {
        snprintf(text, sizeof(text), "%lu", value);
        if (disk_override(disk, choice->name, text) == 0) {
            trace(better ? EVENT_BETTER : EVENT_WORSE, NULL, NULL, NULL, (int64_t)value);
        }
    }
}

/* Half of the time nothing gets worse, so that who comes back can go on. */
static void change_some(struct disk *disk, uint64_t *random)
{
    bool only_better = random_below(random, 2) == 0;
    for (uint64_t left = 1 + random_below(random, 3); left > 0; left--) {
        const struct choice *choice = &VARIED[random_below(random, VARIED_COUNT)];
        change(disk, choice, choice->values[random_below(random, CHOICES)], only_better);
    }
}

/* With direct I/O, all is in blocks; and then the disk's own. */
void properties_connect(struct blkio *b)
{
    static const enum property BLOCKS[] = {REQUEST_ALIGNMENT, BUF_ALIGNMENT, DISCARD_ALIGNMENT, MEM_REGION_ALIGNMENT};
    for (size_t i = 0; property(b, DIRECT) && i < sizeof(BLOCKS) / sizeof(*BLOCKS); i++) {
        property_put(b, BLOCKS[i], SECTOR);
    }
    if (property(b, DIRECT)) {
        property_put(b, SUPPORTS_POLL_QUEUES, 1);
    }
    if (random_chance(&b->random, sim.config.props)) {
        change_some(b->disk, &b->random);
    }
    for (int i = 0; i < b->disk->override_count; i++) {
        int property = find(b->driver, b->disk->overrides[i].name);
        if (property >= 0) {
            property_put(b, (enum property)property, strtoull(b->disk->overrides[i].value, NULL, 0));
        }
    }
}

/* ---- libblkio's ------------------------------------------------------------------------------------------ */

static int get(struct blkio *b, const char *name, int type, struct value *value)
{
    int i = find(b->driver, name), error = armed_failure(name);
    if (error) {
        return refuse(error, "a test wants it so");
    }
    if (i < 0) {
        return refuse(ENOENT, "Unknown property name");
    }
    if (type != STR && TABLE[i].type != (enum type)type) {
        return refuse(ENOTTY, "Property has another type");
    }
    if (b->stage < TABLE[i].readable) {
        return refuse(ENODEV, "Device must be connected");
    }
    *value = b->values[i];
    if (strcmp(name, "capacity") == 0) {
        if (!block_if_told(b, "capacity") || b->death == HUNG_UP || b->death == KILLED) {
            return refuse(EIO, "Failed to read the configuration");
        }
        disk_look(b->disk);
        disk_resize_by_chance(b->disk, &b->random);
        value->number = media_size(b->disk->media);
    }
    return i;
}

static int put(struct blkio *b, const char *name, int type, uint64_t number, const char *text)
{
    int i = find(b->driver, name), error = armed_failure(name);
    if (error) {
        return refuse(error, "a test wants it so");
    }
    if (i < 0) {
        return refuse(ENOENT, "Unknown property name");
    }
    if (type != STR && TABLE[i].type != (enum type)type) {
        return refuse(ENOTTY, "Property has another type");
    }
    if (TABLE[i].writable == NEVER) {
        return refuse(EACCES, "Property is read-only");
    }
    if ((int)b->stage != TABLE[i].writable) {
        return b->stage < (enum stage)TABLE[i].writable ? refuse(ENODEV, "Device must be connected")
                                                        : refuse(EBUSY, "Device is already connected or started");
    }
    if (TABLE[i].type == STR) {
        return property_put_text(b, (enum property)i, text);
    }
    if (type == STR) {
        number = strcmp(text, "true") == 0 ? 1 : strcmp(text, "false") == 0 ? 0 : strtoull(text, NULL, 0);
    }
    if (TABLE[i].type == INT && (int)number < 0 && strcmp(name, "fd") != 0) {
        return refuse(EINVAL, "Property value must not be negative");
    }
    b->values[i].number = number;
    return 0;
}

#define GET(kind, c_type, type)                                                                                       \
    EXPORT int blkio_get_##kind(struct blkio *b, const char *name, c_type *result)                                    \
    {                                                                                                                 \
        struct value value = {0};                                                                                     \
        int found = -EINVAL;                                                                                          \
        if (enter(b, "blkio_get_" #kind)) {                                                                           \
            found = get(b, name, type, &value);                                                                       \
            *result = (c_type)value.number;                                                                           \
        }                                                                                                             \
        leave(b);                                                                                                     \
        return found < 0 ? found : 0;                                                                                 \
    }

GET(bool, bool, BOOL)
GET(int, int, INT)
GET(uint64, uint64_t, UINT64)

EXPORT int blkio_get_str(struct blkio *b, const char *name, char **result)
{
    struct value value = {0};
    char text[32];
    int found = -EINVAL;
    if (enter(b, "blkio_get_str")) {
        found = get(b, name, STR, &value);
        if (found >= 0 && TABLE[found].type == BOOL) {
            snprintf(text, sizeof(text), "%s", value.number ? "true" : "false");
        } else if (found >= 0 && TABLE[found].type == INT) {
            snprintf(text, sizeof(text), "%d", (int)value.number);
        } else {
            snprintf(text, sizeof(text), "%lu", value.number);
        }
        if (found >= 0) {
            *result = strdup(TABLE[found].type != STR ? text : value.text ? value.text : "");
        }
    }
    leave(b);
    return found < 0 ? found : 0;
}

#define SET(kind, c_type, type)                                                                                       \
    EXPORT int blkio_set_##kind(struct blkio *b, const char *name, c_type value)                                      \
    {                                                                                                                 \
        int result = enter(b, "blkio_set_" #kind) ? put(b, name, type, (uint64_t)value, NULL) : -EINVAL;              \
        leave(b);                                                                                                     \
        return result;                                                                                                \
    }

SET(bool, bool, BOOL)
SET(int, int, INT)
SET(uint64, uint64_t, UINT64)

EXPORT int blkio_set_str(struct blkio *b, const char *name, const char *value)
{
    int result = enter(b, "blkio_set_str") ? put(b, name, STR, 0, value) : -EINVAL;
    leave(b);
    return result;
}
