/* What the generated binding includes before its own code. blkio.h names timespec and sigset_t without their headers. */
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <linux/io_uring.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <blkio.h>

/* Takes the registered files out of a ring; 0, or -1 with errno. */
static int io_uring_unregister_files(int fd)
{
    return (int)syscall(SYS_io_uring_register, fd, IORING_UNREGISTER_FILES, NULL, 0);
}
