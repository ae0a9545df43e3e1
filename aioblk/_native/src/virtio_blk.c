#include "virtio_blk.h"

#include <endian.h>
#include <string.h>

typedef struct {
    uint32_t kind, reserved;
    uint64_t sector;
} header;

typedef struct {
    uint64_t sector;
    uint32_t sectors, flags;
} sector_range;

/* Takes bytes from the beginning of segments, by copying them: the guest does not change what we look at. */
static bool take_bytes(guest_segment **segments, uint32_t *count, void *target, size_t length)
{
    char *place = target;
    while (length > 0 && *count > 0) {
        guest_segment *first = *segments;
        size_t some = first->length < length ? first->length : length;
        memcpy(place, first->address, some);
        place += some;
        length -= some;
        first->address += some;
        first->length -= some;
        if (first->length == 0) {
            ++*segments;
            --*count;
        }
    }
    __asm__ volatile("" : : "r"(target) : "memory"); /* a compiler may not look at the original again */
    return length == 0;
}

static uint64_t length_of(const guest_segment *segments, uint32_t count)
{
    uint64_t length = 0;
    for (uint32_t i = 0; i < count; i++) {
        length += segments[i].length;
    }
    return length;
}

static virtio_blk_parsed answer(const virtio_blk_request *request, virtio_blk_status status)
{
    *request->status = (uint8_t)status;
    return REQUEST_ANSWERED;
}

static bool is_change(uint32_t kind)
{
    return kind == VIRTIO_BLK_OUT || kind == VIRTIO_BLK_DISCARD || kind == VIRTIO_BLK_WRITE_ZEROES;
}

static virtio_blk_parsed give_id(const virtio_blk_disk *disk, const virtio_blk_request *request)
{
    size_t given = 0;
    for (uint32_t i = 0; i < request->count && given < VIRTIO_BLK_ID; i++) {
        const guest_segment *segment = &request->data[i];
        size_t some = segment->length < VIRTIO_BLK_ID - given ? segment->length : VIRTIO_BLK_ID - given;
        memcpy(segment->address, disk->id + given, some);
        given += some;
    }
    return answer(request, VIRTIO_BLK_OK);
}

/* Where and how much, if that is a place of the disk. */
static virtio_blk_parsed set_place(const virtio_blk_disk *disk, virtio_blk_request *request, uint64_t sector,
                                   uint64_t length)
{
    uint64_t sectors = disk->capacity / VIRTIO_BLK_SECTOR;
    if (length % VIRTIO_BLK_SECTOR != 0 || sector > sectors || length / VIRTIO_BLK_SECTOR > sectors - sector ||
        (disk->read_only && is_change(request->kind))) {
        return answer(request, VIRTIO_BLK_FAILED);
    }
    request->offset = sector * VIRTIO_BLK_SECTOR;
    request->length = length;
    return length == 0 ? answer(request, VIRTIO_BLK_OK) : REQUEST_STANDS;
}

/* One range follows; that there could be several is not offered. */
static virtio_blk_parsed parse_range(const virtio_blk_disk *disk, virtio_blk_request *request)
{
    sector_range range;
    uint64_t length = length_of(request->data, request->count);
    if (length > sizeof(range) && length % sizeof(range) == 0) {
        return answer(request, VIRTIO_BLK_UNSUPPORTED);
    }
    if (length != sizeof(range)) {
        return answer(request, VIRTIO_BLK_FAILED);
    }
    (void)take_bytes(&request->data, &request->count, &range, sizeof(range));
    request->flags = le32toh(range.flags);
    request->count = 0;
    if (request->flags & ~(request->kind == VIRTIO_BLK_WRITE_ZEROES ? VIRTIO_BLK_UNMAP : 0)) {
        return answer(request, VIRTIO_BLK_UNSUPPORTED);
    }
    return set_place(disk, request, le64toh(range.sector), (uint64_t)le32toh(range.sectors) * VIRTIO_BLK_SECTOR);
}

virtio_blk_parsed virtio_blk_parse(const virtio_blk_disk *disk, guest_chain *chain, virtio_blk_request *request)
{
    header head;
    guest_segment *readable = chain->segments, *writable = chain->segments + chain->readable;
    uint32_t readables = chain->readable, writables = chain->count - chain->readable;

    if (writables == 0) {
        return REQUEST_BROKEN;
    }
    guest_segment *last = &writable[writables - 1];
    last->length--;
    *request = (virtio_blk_request){.status = (uint8_t *)last->address + last->length};
    if (last->length == 0) {
        writables--;
    }
    if (!take_bytes(&readable, &readables, &head, sizeof(head))) {
        return answer(request, VIRTIO_BLK_FAILED);
    }
    request->kind = le32toh(head.kind);
    switch (request->kind) {
    case VIRTIO_BLK_IN:
    case VIRTIO_BLK_GET_ID:
        request->data = writable;
        request->count = writables;
        break;
    default:
        request->data = readable;
        request->count = readables;
    }
    switch (request->kind) {
    case VIRTIO_BLK_IN:
    case VIRTIO_BLK_OUT:
        return set_place(disk, request, le64toh(head.sector), length_of(request->data, request->count));
    case VIRTIO_BLK_FLUSH:
        request->count = 0;
        return REQUEST_STANDS;
    case VIRTIO_BLK_GET_ID:
        return give_id(disk, request);
    case VIRTIO_BLK_DISCARD:
    case VIRTIO_BLK_WRITE_ZEROES:
        return parse_range(disk, request);
    default:
        return answer(request, VIRTIO_BLK_UNSUPPORTED);
    }
}
