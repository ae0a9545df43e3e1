/*
 * Zeroes that are written, where asking the device for them does not do: it cannot zero (at all, or without giving space
 * back), or the range ends past the end of a file, which zeroing leaves as long as it was.
 *
 * A part of a write_zeroes that has `address` or `bounce_length` is such a one. However long it is, it takes as much memory
 * as one piece: it is written piece by piece, and is shorter by one after each.
 */
#include "rooms.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define PIECE (1u << 20)         /* at once, straight from `zeroes` */
#define BOUNCED_PIECE (1u << 18) /* at once, from bounce memory, of which others want some too */

static char *zeroes; /* PIECE bytes, which all are the kernel's one page of zeroes until somebody writes there */

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t unit(const DeviceCore *device)
{
    return device->request_alignment > device->buf_alignment ? device->request_alignment : device->buf_alignment;
}

/* The largest piece, as far as the device takes it. */
static uint64_t piece_of(const DeviceCore *device, uint64_t limit)
{
    uint64_t piece = smaller(smaller(limit, device->max_transfer), device->max_segment_len);
    return piece > unit(device) ? piece - piece % unit(device) : unit(device);
}

void zeroes_plan_part(Part *part)
{
    DeviceCore *device = part->request->queue->device;
    if (device->needs_regions) {
        part->source = zeroes;
        part->bounce_length = smaller(part->length, piece_of(device, smaller(BOUNCED_PIECE, device->bounce_cap)));
    } else {
        part->address = zeroes;
    }
}

uint64_t zeroes_beyond_the_end(DeviceCore *device, const Request *r)
{
    int fd = r->operation == OP_WRITE_ZEROES ? OBSERVE(device->file_fd) : -1;
    struct stat file;
    if (fd < 0 || r->item.length == 0 || (r->flags & BLKIO_REQ_NO_UNMAP) || fstat(fd, &file) < 0 ||
        r->item.offset + r->item.length <= (uint64_t)file.st_size) {
        return 0;
    }
    return unit(device);
}

__attribute__((noinline, cold)) uint64_t zeroes_at_once(const Part *part)
{
    if (!zeroes_are_written(part)) {
        return 0;
    }
    uint64_t most = part->bounce_length ? part->bounce_length : piece_of(part->request->queue->device, PIECE);
    return smaller(part->length, most);
}

__attribute__((noinline, cold)) bool zeroes_go_on(Part *part)
{
    uint64_t written = zeroes_at_once(part);
    if (part->length == written || part_is_pointless(part)) {
        return false;
    }
    part->offset += written;
    part->length -= written;
    part->request->age = 0;
    return true;
}

/* Once it is over: of its parts, those that have not failed have zeroed what is zeroed once more. */
__attribute__((noinline, cold)) bool zeroes_instead(Request *r)
{
    if (r->operation != OP_WRITE_ZEROES || r->item.error != ENOTSUP || (r->flags & BLKIO_REQ_NO_FALLBACK)) {
        return false;
    }
    PyMem_Free(r->item.message);
    r->item.message = NULL;
    r->item.error = 0;
    r->first_part = (Part){.request = r, .offset = r->item.offset, .length = r->item.length, .bounce_offset = NO_BOUNCE};
    r->part_count = r->admitted = r->outstanding = r->item.left = 1;
    r->age = 0;
    zeroes_plan_part(&r->first_part);
    return true;
}

int zeroes_module_init(void)
{
    zeroes = mmap(NULL, PIECE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (zeroes == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}
