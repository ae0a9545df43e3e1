#include "simblkio.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KEPT 4096

struct entry {
    enum event event;
    int instance, queue; /* -1: none */
    bool polls;          /* it is a poll queue, which has numbers of its own */
    uint64_t request;    /* 0: none */
    int operation;
    uint64_t start, length;
    uint32_t flags;
    int64_t value;
};

static struct entry entries[KEPT];
static uint64_t total, hash, counts[EVENT_COUNT];

#define EVENT_TEXT(name, text) text,
static const char *const NAMES[] = {EVENTS(EVENT_TEXT)};

/* Of all that has happened, also of what is kept no more. */
static void mix(uint64_t number)
{
    hash = (hash ^ number) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
}

void trace(enum event event, const struct blkio *b, const struct blkioq *q, const struct request *r, int64_t value)
{
    struct entry entry = {.event = event, .instance = b ? b->number : -1, .queue = -1, .operation = -1, .value = value};
    if (q) {
        entry.instance = q->instance->number;
        entry.queue = q->index;
        entry.polls = q->poll;
    }
    if (r) {
        entry.request = r->id;
        entry.operation = r->operation;
        entry.start = r->start;
        entry.length = r->length;
        entry.flags = r->flags;
    }
    entries[total++ % KEPT] = entry;
    counts[event]++;
    mix(event);
    mix((uint64_t)entry.instance << 32 | (uint32_t)entry.queue);
    mix(entry.request);
    mix(entry.start);
    mix(entry.length);
    mix((uint64_t)entry.operation << 32 | entry.flags);
    mix((uint64_t)value);
}

static int describe(uint64_t number, char *line, size_t room)
{
    const struct entry *e = &entries[number % KEPT];
    char who[48] = "", what[96] = "";
    if (e->queue >= 0) {
        snprintf(who, sizeof(who), " i%d %c%d", e->instance, e->polls ? 'p' : 'q', e->queue);
    } else if (e->instance >= 0) {
        snprintf(who, sizeof(who), " i%d", e->instance);
    }
    if (e->request) {
        snprintf(what, sizeof(what), " #%lu %s %lu+%lu flags %u", e->request, operation_name(e->operation), e->start, e->length,
                 e->flags);
    }
    return snprintf(line, room, "%lu%s %s%s: %ld\n", number, who, NAMES[e->event], what, e->value);
}

static uint64_t oldest(uint64_t last)
{
    uint64_t kept = total < KEPT ? total : KEPT;
    return total - (last < kept ? last : kept);
}

static void print_last(int fd, unsigned last)
{
    char line[256];
    for (uint64_t i = oldest(last); i < total; i++) {
        int length = describe(i, line, sizeof(line));
        if (write(fd, line, (size_t)length) < 0) {
            return;
        }
    }
}

/* Where standard error was as the process began: what pytest puts in its place is lost with the process. */
static int told = STDERR_FILENO;

void trace_begin(void)
{
    enum { ABOVE_OTHERS = 200 };
    int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, ABOVE_OTHERS);
    told = fd < 0 ? STDERR_FILENO : fd;
    trace_forget();
}

static void tell_end(const char *what, const char *why)
{
    enum { TOLD = 40 };
    dprintf(told, "simblkio: seed %u; what came before:\n", sim.config.seed);
    print_last(told, TOLD);
    dprintf(told, "simblkio: %s: %s\n", what, why);
}

static bool ending;

void trace_end_process(const char *what, const char *why)
{
    ending = true;
    tell_end(what, why);
    abort();
}

/* ---- crashes --------------------------------------------------------------------------------------------- */

static const int CRASHES[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
enum { CRASH_COUNT = sizeof(CRASHES) / sizeof(CRASHES[0]) };
static struct sigaction before[CRASH_COUNT]; /* faulthandler's, perhaps, which shows the stacks */

static void on_crash(int number)
{
    for (int i = 0; i < CRASH_COUNT; i++) {
        sigaction(CRASHES[i], &before[i], NULL);
    }
    if (!ending) {
        tell_end("crash", sigdescr_np(number));
    }
    raise(number); /* delivered on return */
}

/* From now on a process that crashes tells the last events first. */
EXPORT void simblkio_tell_of_crashes(void);
EXPORT void simblkio_tell_of_crashes(void)
{
    struct sigaction action = {.sa_handler = on_crash, .sa_flags = SA_ONSTACK};
    for (int i = 0; i < CRASH_COUNT; i++) {
        sigaction(CRASHES[i], &action, &before[i]);
    }
}

/* ---- patience -------------------------------------------------------------------------------------------- */

static void on_alarm(int number)
{
    (void)number;
    trace_end_process("hang", "no end came in time");
}

/* Of the machine's seconds; then the process ends, with the last events. 0: for ever. */
EXPORT void simblkio_patience(unsigned seconds);
EXPORT void simblkio_patience(unsigned seconds)
{
    struct sigaction action = {.sa_handler = seconds ? on_alarm : SIG_DFL};
    alarm(seconds);
    sigaction(SIGALRM, &action, NULL);
}

void trace_forget(void)
{
    total = 0;
    hash = 0xCBF29CE484222325u;
    memset(counts, 0, sizeof(counts));
}

/* The last events, a line each, as many as there is room for; returns how many bytes. */
EXPORT size_t simblkio_trace(char *text, size_t room);
EXPORT size_t simblkio_trace(char *text, size_t room)
{
    char line[256];
    size_t length = 0;
    pthread_mutex_lock(&sim.lock);
    for (uint64_t i = oldest(KEPT); i < total; i++) {
        size_t more = (size_t)describe(i, line, sizeof(line));
        if (length + more > room) {
            break;
        }
        memcpy(text + length, line, more);
        length += more;
    }
    pthread_mutex_unlock(&sim.lock);
    return length;
}

/* Of everything since simblkio_reset(): the same for the same seed and the same calls. */
EXPORT uint64_t simblkio_trace_hash(void);
EXPORT uint64_t simblkio_trace_hash(void) { return hash; }

EXPORT unsigned simblkio_event_kinds(void);
EXPORT unsigned simblkio_event_kinds(void) { return EVENT_COUNT; }
EXPORT const char *simblkio_event_name(unsigned kind);
EXPORT const char *simblkio_event_name(unsigned kind) { return NAMES[kind]; }
EXPORT uint64_t simblkio_event_count(unsigned kind);
EXPORT uint64_t simblkio_event_count(unsigned kind) { return counts[kind]; }
