/* What the generated binding includes before its own code. blkio.h names timespec and sigset_t without their headers. */
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <blkio.h>
