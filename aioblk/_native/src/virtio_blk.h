/* Requests of virtio-blk: what a chain of descriptors asks of a disk, and its answer.
 *
 * How the guest has cut header, data and status into descriptors makes no difference.
 */
#ifndef AIOBLK_VIRTIO_BLK_H
#define AIOBLK_VIRTIO_BLK_H

#include "virtqueue.h"

typedef enum {
    VIRTIO_BLK_IN = 0,
    VIRTIO_BLK_OUT = 1,
    VIRTIO_BLK_FLUSH = 4,
    VIRTIO_BLK_GET_ID = 8,
    VIRTIO_BLK_DISCARD = 11,
    VIRTIO_BLK_WRITE_ZEROES = 13,
} virtio_blk_kind;

typedef enum { VIRTIO_BLK_OK, VIRTIO_BLK_FAILED, VIRTIO_BLK_UNSUPPORTED } virtio_blk_status;

#define VIRTIO_BLK_SECTOR 512
#define VIRTIO_BLK_UNMAP 1u
#define VIRTIO_BLK_ID 20 /* bytes */

/* What the disk is. */
typedef struct {
    uint64_t capacity; /* bytes, whole sectors */
    bool read_only;
    char id[VIRTIO_BLK_ID];
} virtio_blk_disk;

typedef struct {
    uint32_t kind;
    uint32_t flags;          /* of write-zeroes */
    uint64_t offset, length; /* bytes, whole sectors, within the disk */
    guest_segment *data;     /* within the chain */
    uint32_t count;
    uint8_t *status;
} virtio_blk_request;

typedef enum { REQUEST_STANDS, REQUEST_ANSWERED, REQUEST_BROKEN } virtio_blk_parsed;

/* What is wrong, or needs no disk, has its answer then; broken: there is no place for one. Changes the chain. */
virtio_blk_parsed virtio_blk_parse(const virtio_blk_disk *disk, guest_chain *chain, virtio_blk_request *request);

#endif
