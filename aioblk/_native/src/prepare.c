/*
 * Preparing: what the caller wants is checked, its memory pinned, and the parts planned; nothing is submitted yet.
 *
 * libblkio and its backends hang, crash or corrupt memory on some of what is refused here.
 */
#include "rooms.h"

/* ---- checks ---------------------------------------------------------------------------------------------- */

static inline int check_range(DeviceCore *device, Operation op, uint64_t offset, uint64_t length)
{
    if ((offset | length) & (device->request_alignment - 1)) {
        return device_refuse(device, "alignment", op, offset, length);
    }
    if (offset > INT64_MAX || length > INT64_MAX - offset) {
        return device_refuse(device, "range", op, offset, length);
    }
    if (device->read_only && op != OP_READ) {
        return device_refuse(device, "read-only", op, offset, length);
    }
    return 0;
}

static int check_discard_alignment(DeviceCore *device, uint64_t offset, uint64_t length)
{
    uint64_t alignment = device->discard_alignment;
    if (alignment == 0) {
        return 0;
    }
    uint64_t first = device->discard_alignment_offset;
    if (offset < first || (offset - first) % alignment || length % alignment) {
        return device_refuse(device, "discard-alignment", OP_DISCARD, offset, length);
    }
    return 0;
}

/* ---- one item -------------------------------------------------------------------------------------------- */

/* Python's own error names no length, and is an OverflowError for the largest. */
static __attribute__((noinline)) int refuse_length(uint64_t length)
{
    PyErr_Format(PyExc_MemoryError, "there is no memory for the %llu bytes of a read", (unsigned long long)length);
    return -1;
}

/* Zero bytes have no parts and are done at once: virtio queues hang on an empty request. */
static inline __attribute__((always_inline)) int plan_read(QueueCore *q, Request *r, Item *item, uint64_t length)
{
    item->length = length;
    if (check_range(q->device, OP_READ, item->offset, length) < 0) {
        return -1;
    }
    item->result = PyBytes_FromStringAndSize(NULL, length);
    if (!item->result) {
        return refuse_length(length);
    }
    struct iovec memory = {PyBytes_AS_STRING(item->result), length};
    return length == 0 ? 0 : plan_memory(r, item, q->device, &memory, 1);
}

static inline __attribute__((always_inline)) int plan_buffer(QueueCore *q, Request *r, Item *item, PyObject *buffer)
{
    if (pin_acquire(&item->pin, buffer, r->operation == OP_READ) < 0) {
        return -1;
    }
    struct iovec memory = {item->pin.buf, item->pin.len};
    item->length = memory.iov_len;
    if (check_range(q->device, r->operation, item->offset, item->length) < 0) {
        return -1;
    }
    return item->length == 0 ? 0 : plan_memory(r, item, q->device, &memory, 1);
}

int plan_item_read(QueueCore *q, Request *r, Item *item, uint64_t length) { return plan_read(q, r, item, length); }

int plan_item_buffer(QueueCore *q, Request *r, Item *item, PyObject *buffer) { return plan_buffer(q, r, item, buffer); }

/* ---- whole requests -------------------------------------------------------------------------------------- */

/* What became of planning the request: 0 or -1. */
static Request *planned(Request *r, int status)
{
    if (status < 0) {
        return request_discard(r);
    }
    if (r->part_count == 0) {
        request_drop_pins(r);
        r->state = FINISHED;
    }
    return r;
}

Request *prepare_read(QueueCore *q, uint64_t offset, uint64_t length)
{
    Request *r = request_new(q, OP_READ, offset, length);
    return r ? planned(r, plan_read(q, r, &r->item, length)) : NULL;
}

Request *prepare_buffer(QueueCore *q, Operation op, uint64_t offset, PyObject *buffer, uint32_t flags)
{
    Request *r = request_new(q, op, offset, 0);
    if (!r) {
        return NULL;
    }
    r->flags = flags;
    return planned(r, plan_buffer(q, r, &r->item, buffer));
}

/* Pins the buffers, and says where they are. */
static int pin_buffers(QueueCore *q, Request *r, PyObject *buffers, struct iovec *memory)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(buffers); i++) {
        Py_buffer *pin = &r->pins[i];
        if (pin_acquire(pin, PyTuple_GET_ITEM(buffers, i), r->operation == OP_READ) < 0) {
            return -1;
        }
        r->count++;
        memory[i] = (struct iovec){pin->buf, pin->len};
        if ((uint64_t)pin->len > INT64_MAX - r->item.length) {
            return device_refuse(q->device, "range", r->operation, r->item.offset, UINT64_MAX);
        }
        r->item.length += pin->len;
    }
    return 0;
}

Request *prepare_buffers(QueueCore *q, Operation op, uint64_t offset, PyObject *buffers, uint32_t flags)
{
    PyObject *sequence = PySequence_Tuple(buffers); /* ours: pinning may run Python code */
    if (!sequence) {
        return NULL;
    }
    size_t count = PyTuple_GET_SIZE(sequence);
    Request *r = request_new(q, op, offset, 0);
    struct iovec *memory = PyMem_Calloc(count + 1, sizeof(*memory));
    Py_buffer *pins = r ? PyMem_Calloc(count + 1, sizeof(*pins)) : NULL;
    int status = -1;
    if (!pins || !memory) {
        PyMem_Free(pins);
        PyErr_NoMemory();
    } else {
        r->pins = pins;
        r->flags = flags;
        status = pin_buffers(q, r, sequence, memory);
    }
    if (status == 0) {
        status = check_range(q->device, op, offset, r->item.length);
    }
    if (status == 0 && r->item.length > 0) {
        status = plan_memory(r, &r->item, q->device, memory, count);
    }
    PyMem_Free(memory);
    Py_DECREF(sequence);
    return r ? planned(r, status) : NULL;
}

Request *prepare_range(QueueCore *q, Operation op, uint64_t offset, uint64_t length, uint32_t flags)
{
    DeviceCore *device = q->device;
    if (check_range(device, op, offset, length) < 0 ||
        (op == OP_DISCARD && check_discard_alignment(device, offset, length) < 0)) {
        return NULL;
    }
    Request *r = request_new(q, op, offset, length);
    if (!r) {
        return NULL;
    }
    r->flags = flags;
    uint64_t maximum = op == OP_DISCARD && device->discard_method == DISCARD_NATIVE ? device->max_discard_len
                       : op == OP_DISCARD && device->discard_method == DISCARD_BY_HOOK ? UINT64_MAX
                                                                                        : device->max_write_zeroes_len;
    return planned(r, plan_range(r, device, maximum));
}

/* A request about the device or a zone as a whole. */
Request *prepare_command(QueueCore *q, Operation op, uint64_t offset)
{
    Request *r = request_new(q, op, offset, 0);
    if (r) {
        r->part_count = 1;
        r->item.left = 1;
        r->first_part = (Part){.request = r, .offset = offset, .bounce_offset = NO_BOUNCE};
    }
    return r;
}
