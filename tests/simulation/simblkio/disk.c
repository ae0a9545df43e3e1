/* Disks: media with a name. A backend, a character device or a file stands for one, and instances come and go. */
#include "simblkio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

struct disk *disk_find(enum driver driver, const char *name)
{
    for (struct disk *disk = sim.disks; disk; disk = disk->next) {
        if (disk->driver == driver && strcmp(disk->name, name) == 0) {
            return disk;
        }
    }
    return NULL;
}

struct disk *disk_new(enum driver driver, const char *name, uint64_t size)
{
    struct disk *disk = calloc(1, sizeof(*disk));
    disk->number = sim.last_disk++;
    disk->driver = driver;
    snprintf(disk->name, sizeof(disk->name), "%s", name);
    seed_disk(disk);
    disk->made_with = size;
    disk->media = media_new(size, false);
    disk->file = disk->listener = disk->process = -1;
    disk->next = sim.disks;
    sim.disks = disk;
    return disk;
}

/* In place of what was said of the property before. */
int disk_override(struct disk *disk, const char *name, const char *value)
{
    int i = 0;
    while (i < disk->override_count && strcmp(disk->overrides[i].name, name) != 0) {
        i++;
    }
    if (i == OVERRIDES_MAX) {
        return -ENOSPC;
    }
    snprintf(disk->overrides[i].name, sizeof(disk->overrides[i].name), "%s", name);
    snprintf(disk->overrides[i].value, sizeof(disk->overrides[i].value), "%s", value);
    disk->override_count += i == disk->override_count;
    return 0;
}

static void close_one(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

void disk_free(struct disk *disk)
{
    struct disk **at = &sim.disks;
    while (*at != disk) {
        at = &(*at)->next;
    }
    *at = disk->next;
    close_one(&disk->listener);
    close_one(&disk->process);
    close_one(&disk->file);
    media_free(disk->media);
    free(disk);
}

/* ---- a vhost-user backend -------------------------------------------------------------------------------- */

int disk_serve(struct disk *disk)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(disk->name) >= sizeof(address.sun_path)) {
        return -ENAMETOOLONG;
    }
    disk_end_process(disk);
    strcpy(address.sun_path, disk->name);
    unlink(disk->name);
    disk->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    disk->process = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (disk->listener < 0 || disk->process < 0 || bind(disk->listener, (struct sockaddr *)&address, sizeof(address)) != 0
        || listen(disk->listener, 16) != 0) {
        int error = errno;
        disk_end_process(disk);
        return -error;
    }
    return 0;
}

/* Those who watch it have descriptors of their own. */
void disk_end_process(struct disk *disk)
{
    if (disk->process >= 0) {
        eventfd_write(disk->process, 1);
    }
    close_one(&disk->process);
    close_one(&disk->listener);
}

/* ---- a character device, in place of a vDPA one ------------------------------------------------------------------ */

void character_name(int fd, char name[256])
{
    struct stat status;
    name[0] = '\0';
    if (fstat(fd, &status) == 0 && S_ISCHR(status.st_mode)) {
        snprintf(name, 256, "char:%u:%u", major(status.st_rdev), minor(status.st_rdev));
    }
}

/* ---- a file, which shows what the media hold ---------------------------------------------------------------------- */

static void write_file(struct disk *disk, uint64_t at, uint64_t length)
{
    enum { PIECE = 1 << 16 };
    static uint8_t piece[PIECE];
    for (uint64_t done = 0; done < length; done += PIECE) {
        size_t now = length - done < PIECE ? length - done : PIECE;
        media_read(disk->media, at + done, piece, now);
        if (pwrite(disk->file, piece, now, (off_t)(at + done)) < 0) {
            violation("disk %d: its file cannot be written: %s", disk->number, strerror(errno));
            return;
        }
    }
}

void disk_changed(struct disk *disk, uint64_t at, uint64_t length)
{
    if (disk->file >= 0) {
        write_file(disk, at, length);
    }
}

int disk_resize(struct disk *disk, uint64_t size)
{
    if (disk->file >= 0 && ftruncate(disk->file, (off_t)size) != 0) {
        return -errno;
    }
    media_resize(disk->media, size);
    trace(EVENT_RESIZE, NULL, NULL, NULL, (int64_t)size);
    return 0;
}

/* In steps that suit any alignment; up to twice of what it was made with. */
void disk_resize_by_chance(struct disk *disk, uint64_t *random)
{
    enum { STEP = 4096 };
    if (random_chance(random, sim.config.resize)) {
        uint64_t least = sim.config.floor ? sim.config.floor : disk->made_with;
        uint64_t first = (least + STEP - 1) / STEP, last = 2 * disk->made_with / STEP;
        if (first <= last) {
            disk_resize(disk, STEP * (first + random_below(random, last - first + 1)));
        }
    }
}

void disk_look(struct disk *disk)
{
    struct stat status;
    if (disk->file >= 0 && fstat(disk->file, &status) == 0 && (uint64_t)status.st_size != media_size(disk->media)) {
        media_resize(disk->media, (uint64_t)status.st_size);
        trace(EVENT_RESIZE, NULL, NULL, NULL, status.st_size);
    }
}

static bool is_as_its_file(const struct disk *disk, uint8_t *data, uint64_t size)
{
    uint8_t *held = malloc(size + 1);
    media_read(disk->media, 0, held, size);
    bool same = memcmp(held, data, size) == 0;
    free(held);
    return same;
}

/* What others have written to the file meanwhile is there for good. */
static void load_file(struct disk *disk, uint64_t size)
{
    uint8_t *data = calloc(1, size + 1);
    if (size != media_size(disk->media)) {
        media_resize(disk->media, size);
    }
    if (pread(disk->file, data, size, 0) >= 0 && !is_as_its_file(disk, data, size)) {
        media_fill(disk->media, data);
    }
    free(data);
}

struct disk *disk_of_file(int fd)
{
    struct stat status;
    char name[256], link[64];
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
        return NULL;
    }
    snprintf(name, sizeof(name), "file:%lu:%lu", status.st_dev, status.st_ino);
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    struct disk *disk = disk_find(IO_URING, name);
    disk = disk ? disk : disk_new(IO_URING, name, (uint64_t)status.st_size);
    if (disk->clients == 0) {
        close_one(&disk->file);
        disk->file = open(link, O_RDWR | O_CLOEXEC);
        if (disk->file < 0) {
            disk->file = open(link, O_RDONLY | O_CLOEXEC);
        }
        load_file(disk, (uint64_t)status.st_size);
    }
    return disk;
}
