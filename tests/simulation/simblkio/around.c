/* What aioblk asks the system about a device, past libblkio: a vDPA device's longest queue, and who serves a socket. */
#include "simblkio.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LONGEST_QUEUE 1024
#define GET_VRING_NUM 0x8002AF76u /* VHOST_VDPA_GET_VRING_NUM */
#define PROCESSES (1 << 24)       /* process numbers of backends begin above any real one */

#define NEXT(name)                                                                                                    \
    static __typeof__(name) *next;                                                                                    \
    if (next == NULL) {                                                                                               \
        next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);                                                           \
    }

int ioctl(int fd, unsigned long request, ...);

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    NEXT(ioctl)
    va_list more;
    va_start(more, request);
    void *argument = va_arg(more, void *);
    va_end(more);
    if (request == GET_VRING_NUM) {
        char name[256];
        character_name(fd, name);
        pthread_mutex_lock(&sim.lock);
        bool ours = disk_find(VHOST_VDPA, name) != NULL;
        pthread_mutex_unlock(&sim.lock);
        if (ours) {
            *(uint16_t *)argument = LONGEST_QUEUE;
            return 0;
        }
    }
    return next(fd, request, argument);
}

/* Any descriptor of the client's end of a connection. */
static struct disk *served_through(int fd)
{
    struct stat asked, known;
    if (fstat(fd, &asked) != 0) {
        return NULL;
    }
    for (struct blkio *b = sim.instances; b; b = b->next) {
        if (b->socket >= 0 && b->disk && fstat(b->socket, &known) == 0 && known.st_ino == asked.st_ino) {
            return b->disk;
        }
    }
    return NULL;
}

EXPORT int getsockopt(int fd, int level, int option, void *restrict value, socklen_t *restrict length)
{
    NEXT(getsockopt)
    int result = next(fd, level, option, value, length);
    if (result == 0 && level == SOL_SOCKET && option == SO_PEERCRED && *length == sizeof(struct ucred)) {
        pthread_mutex_lock(&sim.lock);
        struct disk *disk = served_through(fd);
        if (disk) {
            ((struct ucred *)value)->pid = PROCESSES + disk->number;
        }
        pthread_mutex_unlock(&sim.lock);
    }
    return result;
}

/* The "process" that serves a disk ends when a test says so. */
static int open_process(int pid)
{
    int fd = -1;
    pthread_mutex_lock(&sim.lock);
    for (struct disk *disk = sim.disks; disk; disk = disk->next) {
        if (disk->number == pid - PROCESSES && disk->process >= 0) {
            fd = fcntl(disk->process, F_DUPFD_CLOEXEC, 0);
        }
    }
    pthread_mutex_unlock(&sim.lock);
    errno = fd < 0 ? ESRCH : 0;
    return fd;
}

EXPORT long syscall(long number, ...)
{
    NEXT(syscall)
    long a[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(more, long);
    }
    va_end(more);
    if (number == SYS_pidfd_open && a[0] >= PROCESSES) {
        return open_process((int)a[0]);
    }
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
