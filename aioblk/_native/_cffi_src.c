/* What the generated binding includes before its own code. blkio.h names timespec and sigset_t without their headers. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <linux/io_uring.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <blkio.h>

/* Takes the registered files out of a ring; 0, or -1 with errno. */
static int io_uring_unregister_files(int fd)
{
    return (int)syscall(SYS_io_uring_register, fd, IORING_UNREGISTER_FILES, NULL, 0);
}

enum { LONGEST_LINK_START = 64 };

/*
 * The process's own descriptors whose links in /proc/self/fd start like this: their numbers, at most so many, and how
 * many there are; -1 with errno if the table cannot be read.
 */
static int find_descriptors(const char *link_start, int *numbers, int most)
{
    DIR *table = opendir("/proc/self/fd");
    if (table == NULL) {
        return -1;
    }
    size_t length = strnlen(link_start, LONGEST_LINK_START);
    char link[LONGEST_LINK_START];
    int count = 0;
    struct dirent *entry;
    while (errno = 0, (entry = readdir(table)) != NULL) {
        /* One that was closed meanwhile has no link; the table's own descriptor has another. */
        ssize_t read = readlinkat(dirfd(table), entry->d_name, link, sizeof link);
        if (read >= (ssize_t)length && memcmp(link, link_start, length) == 0) {
            if (count < most) {
                numbers[count] = atoi(entry->d_name);
            }
            count++;
        }
    }
    int error = errno;
    closedir(table);
    errno = error;
    return error == 0 ? count : -1;
}

/* How many descriptors could be had just now, of so many that are wanted; errno says why there are no more. */
static int count_spare_descriptors(int wanted)
{
    int *taken = malloc((size_t)wanted * sizeof *taken);
    int count = 0;
    if (taken == NULL) {
        return 0;
    }
    for (; count < wanted; count++) { /* copies of one cost less than as many new ones */
        taken[count] = count == 0 ? eventfd(0, EFD_CLOEXEC) : fcntl(taken[0], F_DUPFD_CLOEXEC, 0);
        if (taken[count] < 0) {
            break;
        }
    }
    int error = errno;
    for (int i = 0; i < count; i++) {
        close(taken[i]);
    }
    free(taken);
    errno = error;
    return count;
}

/* The type of the file system (linux/magic.h) of a path or, where there is none, of a descriptor; -1, with errno. */
static long file_system_of(const char *path, int fd)
{
    struct statfs found;
    int failed = path != NULL ? statfs(path, &found) : fstatfs(fd, &found);
    return failed ? -1 : (long)found.f_type;
}
