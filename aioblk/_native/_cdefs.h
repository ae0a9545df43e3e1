/*
 * libblkio's API as cffi's parser reads it: blkio.h without its preprocessor lines.
 *
 * The compiler checks every line against the installed blkio.h. "..." asks it to fill in what only the header
 * knows: values of constants, the layout of a structure.
 */

/* Instances: created, connected, started, destroyed. Negative results are errno values. */

struct blkio;
struct blkioq;

const char *blkio_get_error_msg(void); /* of the calling thread's last failure */

int blkio_create(const char *driver, struct blkio **bp);
int blkio_connect(struct blkio *b);
int blkio_start(struct blkio *b);
void blkio_destroy(struct blkio **bp);

/* Properties. A string from blkio_get_str() belongs to the caller, who gives it to free(). */

int blkio_get_bool(struct blkio *b, const char *name, bool *value);
int blkio_get_int(struct blkio *b, const char *name, int *value);
int blkio_get_uint64(struct blkio *b, const char *name, uint64_t *value);
int blkio_get_str(struct blkio *b, const char *name, char **value);

int blkio_set_bool(struct blkio *b, const char *name, bool value);
int blkio_set_int(struct blkio *b, const char *name, int value);
int blkio_set_uint64(struct blkio *b, const char *name, uint64_t value);
int blkio_set_str(struct blkio *b, const char *name, const char *value);

void free(void *pointer);

/* Memory regions */

struct blkio_mem_region {
    void *addr;
    size_t len;
    uint64_t iova;
    int64_t fd_offset;
    int fd;
    uint32_t flags;
    ...;
};

int blkio_alloc_mem_region(struct blkio *b, struct blkio_mem_region *region, size_t len);
void blkio_free_mem_region(struct blkio *b, const struct blkio_mem_region *region);
int blkio_map_mem_region(struct blkio *b, const struct blkio_mem_region *region);
void blkio_unmap_mem_region(struct blkio *b, const struct blkio_mem_region *region);

/* Queues */

struct blkioq *blkio_get_queue(struct blkio *b, int index);
struct blkioq *blkio_get_poll_queue(struct blkio *b, int index);

int blkio_add_queue(struct blkio *b);
int blkio_add_poll_queue(struct blkio *b);

int blkio_remove_queue(struct blkio *b, int index);
int blkio_remove_poll_queue(struct blkio *b, int index);

/* Requests. Buffers and vectors stay alive and unmoved until the request's completion has been reaped. */

#define BLKIO_REQ_FUA ...
#define BLKIO_REQ_NO_UNMAP ...
#define BLKIO_REQ_NO_FALLBACK ...

struct iovec {
    void *iov_base;
    size_t iov_len;
    ...;
};

void blkioq_read(struct blkioq *q, uint64_t start, void *buf, size_t len, void *user_data, uint32_t flags);
void blkioq_write(struct blkioq *q, uint64_t start, const void *buf, size_t len, void *user_data, uint32_t flags);
void blkioq_readv(struct blkioq *q, uint64_t start, const struct iovec *iovec, int iovcnt, void *user_data,
                  uint32_t flags);
void blkioq_writev(struct blkioq *q, uint64_t start, struct iovec *iovec, int iovcnt, void *user_data,
                   uint32_t flags);
void blkioq_write_zeroes(struct blkioq *q, uint64_t start, uint64_t len, void *user_data, uint32_t flags);
void blkioq_discard(struct blkioq *q, uint64_t start, uint64_t len, void *user_data, uint32_t flags);
void blkioq_flush(struct blkioq *q, void *user_data, uint32_t flags);

/* Zones */

#define BLKIO_ZONE_TYPE_CONVENTIONAL ...
#define BLKIO_ZONE_TYPE_SEQWRITE_REQ ...
#define BLKIO_ZONE_TYPE_SEQWRITE_PREF ...

#define BLKIO_ZONE_STATE_EMPTY ...
#define BLKIO_ZONE_STATE_IMP_OPEN ...
#define BLKIO_ZONE_STATE_EXP_OPEN ...
#define BLKIO_ZONE_STATE_CLOSED ...
#define BLKIO_ZONE_STATE_READONLY ...
#define BLKIO_ZONE_STATE_FULL ...
#define BLKIO_ZONE_STATE_OFFLINE ...

struct blkio_zone {
    uint64_t start;
    uint64_t len;
    uint64_t capacity;
    uint64_t write_pointer;
    uint8_t zone_type;
    uint8_t zone_state;
    uint8_t reset;
    ...;
};

void blkioq_report_zones(struct blkioq *q, uint64_t offset, struct blkio_zone *zones, uint32_t nr_zones,
                         void *user_data, uint32_t flags);

void blkioq_close_zone(struct blkioq *q, uint64_t offset, void *user_data, uint32_t flags);
void blkioq_finish_zone(struct blkioq *q, uint64_t offset, void *user_data, uint32_t flags);
void blkioq_open_zone(struct blkioq *q, uint64_t offset, void *user_data, uint32_t flags);
void blkioq_reset_zone(struct blkioq *q, uint64_t offset, void *user_data, uint32_t flags);

void blkioq_close_all_zones(struct blkioq *q, void *user_data, uint32_t flags);
void blkioq_finish_all_zones(struct blkioq *q, void *user_data, uint32_t flags);
void blkioq_open_all_zones(struct blkioq *q, void *user_data, uint32_t flags);
void blkioq_reset_all_zones(struct blkioq *q, void *user_data, uint32_t flags);

/* Submission and completion */

struct blkio_completion {
    void *user_data;
    const char *error_msg; /* may be NULL even if ret is an error */
    int ret;
    ...;
};

struct timespec {
    long tv_sec;
    long tv_nsec;
    ...;
};

typedef struct { ...; } sigset_t;
int sigemptyset(sigset_t *set);
int sigaddset(sigset_t *set, int signal_number);

int blkioq_do_io(struct blkioq *q, struct blkio_completion *completions, int min_completions,
                 int max_completions, struct timespec *timeout);
int blkioq_do_io_interruptible(struct blkioq *q, struct blkio_completion *completions, int min_completions,
                               int max_completions, struct timespec *timeout, const sigset_t *sig);
int blkioq_get_completion_fd(struct blkioq *q);
void blkioq_set_completion_fd_enabled(struct blkioq *q, bool enable);

/* Of the C library: who is at the other end of a socket that libblkio keeps to itself, and memory that is ours */

struct sockaddr;
typedef int... off_t;
int getpeername(int fd, struct sockaddr *address, unsigned int *length);
int getsockopt(int fd, int level, int option, void *value, unsigned int *length);
int shutdown(int fd, int how);
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);
int munmap(void *address, size_t length);

/* Ours */
int io_uring_unregister_files(int fd);
int find_descriptors(const char *link_start, int *numbers, int most);
int count_spare_descriptors(int wanted);
long file_system_of(const char *path, int fd);
