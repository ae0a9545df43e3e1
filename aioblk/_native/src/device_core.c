/* DeviceCore: what the queues of one device share. Limits are plain numbers; regions a sorted array. */
#include "rooms.h"

const char *const operation_names[OP_COUNT] = {
    [OP_READ] = "read",
    [OP_WRITE] = "write",
    [OP_WRITE_ZEROES] = "write_zeroes",
    [OP_DISCARD] = "discard",
    [OP_FLUSH] = "flush",
    [OP_REPORT_ZONES] = "report_zones",
    [OP_OPEN_ZONE] = "open_zone",
    [OP_CLOSE_ZONE] = "close_zone",
    [OP_FINISH_ZONE] = "finish_zone",
    [OP_RESET_ZONE] = "reset_zone",
    [OP_OPEN_ALL_ZONES] = "open_all_zones",
    [OP_CLOSE_ALL_ZONES] = "close_all_zones",
    [OP_FINISH_ALL_ZONES] = "finish_all_zones",
    [OP_RESET_ALL_ZONES] = "reset_all_zones",
};

/* ---- errors ---------------------------------------------------------------------------------------------- */

static PyObject *number_or_none(uint64_t value)
{
    return value == UINT64_MAX ? Py_NewRef(Py_None) : PyLong_FromUnsignedLongLong(value);
}

/* The collector may have taken it away from a device that nobody uses any more. */
static PyObject *use_factory(PyObject *factory)
{
    if (!factory) {
        PyErr_SetString(PyExc_RuntimeError, "the device is being deallocated");
    }
    return Py_XNewRef(factory);
}

static PyObject *checked(PyObject *exception)
{
    if (exception && !PyExceptionInstance_Check(exception)) {
        PyErr_Format(PyExc_TypeError, "an exception was to be made, not %s", Py_TYPE(exception)->tp_name);
        Py_CLEAR(exception);
    }
    return exception;
}

PyObject *device_make_error(DeviceCore *device, Operation op, int error, const char *message, uint64_t offset,
                            uint64_t length)
{
    PyObject *factory = use_factory(device->make_error), *exception = NULL;
    if (factory) {
        exception = PyObject_CallFunction(factory, "sizNN", operation_names[op], error, message,
                                          number_or_none(offset), number_or_none(length));
        Py_DECREF(factory);
    }
    return checked(exception);
}

PyObject *device_make_refusal(DeviceCore *device, const char *reason, Operation op, uint64_t offset, uint64_t length)
{
    PyObject *factory = use_factory(device->make_refusal), *exception = NULL;
    if (factory) {
        exception = PyObject_CallFunction(factory, "ssNN", reason, operation_names[op], number_or_none(offset),
                                          number_or_none(length));
        Py_DECREF(factory);
    }
    return checked(exception);
}

int device_refuse_range(DeviceCore *device, Operation op, PyObject *offset, PyObject *length)
{
    PyObject *factory = use_factory(device->make_refusal), *exception = NULL;
    if (factory) {
        exception = PyObject_CallFunction(factory, "ssOO", "range", operation_names[op], offset, length);
        Py_DECREF(factory);
    }
    exception = checked(exception);
    if (exception) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
    }
    return -1;
}

int device_refuse(DeviceCore *device, const char *reason, Operation op, uint64_t offset, uint64_t length)
{
    PyObject *exception = device_make_refusal(device, reason, op, offset, length);
    if (exception) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
    }
    return -1;
}

/* ---- regions --------------------------------------------------------------------------------------------- */

/* The index of the first region that ends above `address`. */
static size_t region_index(const DeviceCore *device, uintptr_t address)
{
    size_t low = 0, high = device->region_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (device->regions[middle]->end <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

Region *device_find_region(DeviceCore *device, const char *pointer, uint64_t length, uint64_t *available)
{
    uintptr_t address = (uintptr_t)pointer;
    size_t i = region_index(device, address);
    *available = length;
    if (i == device->region_count) {
        return NULL;
    }
    Region *region = device->regions[i];
    bool inside = region->start <= address;
    uint64_t room = inside ? region->end - address : region->start - address;
    if (room < length) {
        *available = room;
    }
    return inside && !(OBSERVE(region->state) & REGION_RETIRED) ? region : NULL;
}

static bool find_start(const DeviceCore *device, uintptr_t start, size_t *index)
{
    *index = region_index(device, start);
    return *index < device->region_count && device->regions[*index]->start == start;
}

static bool tell_region_idle(QueueCore *q, uintptr_t start)
{
    DeviceCore *device = q->device;
    PyObject *hook, *address = PyLong_FromSize_t(start);
    CRITICAL_SECTION(device);
    hook = Py_XNewRef(device->on_region_idle);
    END_CRITICAL_SECTION();
    bool told = address ? call_hook(q, hook, address) : !put_off_exception(q, hook);
    Py_XDECREF(address);
    Py_XDECREF(hook);
    return told;
}

/* Once the last user of a retired region has left, the region may be freed in another thread at any time. */
void device_leave_region(QueueCore *q, Region *region)
{
    uintptr_t start = region->start;
    assert(OBSERVE(region->state) >= REGION_USER);
    if (SHARED_ADD(region->state, -REGION_USER) == (REGION_USER | REGION_RETIRED) && !tell_region_idle(q, start)) {
        queue_tell_later(q, UNTOLD_REGIONS);
    }
}

/* The first retired region from `start` on that nobody uses. */
static bool find_idle_region(DeviceCore *device, uintptr_t *start)
{
    bool found = false;
    LOCK(&device->lock);
    for (size_t i = region_index(device, *start); !found && i < device->region_count; i++) {
        Region *region = device->regions[i];
        found = region->start >= *start && OBSERVE(region->state) == REGION_RETIRED;
        *start = found ? region->start : *start;
    }
    UNLOCK(&device->lock);
    return found;
}

bool device_tell_idle_regions(QueueCore *q)
{
    bool told = true;
    for (uintptr_t start = 0; told && find_idle_region(q->device, &start); start++) {
        told = tell_region_idle(q, start);
    }
    return told;
}

/* ---- the queues of the device, which the table must not be changed under ----------------------------------- */

void device_add_queue(DeviceCore *device, QueueCore *queue)
{
    LOCK(&device->lock);
    queue->next_of_device = device->queues;
    device->queues = queue;
    UNLOCK(&device->lock);
}

void device_remove_queue(DeviceCore *device, QueueCore *queue)
{
    LOCK(&device->lock);
    QueueCore **place = &device->queues;
    while (*place != queue) {
        place = &(*place)->next_of_device;
    }
    *place = queue->next_of_device;
    UNLOCK(&device->lock);
}

/* No Python code may run while the table is locked. */
static void lock_table(DeviceCore *device)
{
    LOCK(&device->lock);
    for (QueueCore *queue = device->queues; queue; queue = queue->next_of_device) {
        LOCK(&queue->planning);
    }
}

static void unlock_table(DeviceCore *device)
{
    for (QueueCore *queue = device->queues; queue; queue = queue->next_of_device) {
        UNLOCK(&queue->planning);
    }
    UNLOCK(&device->lock);
}

static const char no_room[] = "does not fit into memory";

/* NULL, or what is wrong. The new region takes the place of `*region`, which is then NULL. */
static const char *insert_region(DeviceCore *self, Region **region)
{
    size_t i = region_index(self, (*region)->start);
    if (i < self->region_count && self->regions[i]->start < (*region)->end) {
        return "overlaps another";
    }
    if (self->region_count == self->region_capacity) {
        size_t capacity = self->region_capacity ? 2 * self->region_capacity : 8;
        Region **grown = PyMem_Realloc(self->regions, capacity * sizeof(*grown));
        if (!grown) {
            return no_room;
        }
        self->regions = grown;
        self->region_capacity = capacity;
    }
    memmove(&self->regions[i + 1], &self->regions[i], (self->region_count - i) * sizeof(*self->regions));
    self->regions[i] = *region;
    self->region_count++;
    *region = NULL;
    return NULL;
}

static PyObject *device_add_region(DeviceCore *self, PyObject *args)
{
    unsigned long long start, length;
    if (!PyArg_ParseTuple(args, "KK", &start, &length)) {
        return NULL;
    }
    if (length == 0 || start + length < start) {
        return PyErr_Format(PyExc_ValueError, "region %llu+%llu is empty or wraps around", start, length);
    }
    Region *region = PyMem_Calloc(1, sizeof(*region));
    if (!region) {
        return PyErr_NoMemory();
    }
    region->start = start;
    region->end = start + length;
    lock_table(self);
    const char *wrong = insert_region(self, &region);
    unlock_table(self);
    PyMem_Free(region);
    if (wrong == no_room) {
        return PyErr_NoMemory();
    }
    if (wrong) {
        return PyErr_Format(PyExc_ValueError, "region %llu+%llu %s", start, length, wrong);
    }
    Py_RETURN_NONE;
}

static int parse_address(PyObject *object, uintptr_t *address)
{
    *address = PyLong_AsSize_t(object);
    return *address == (size_t)-1 && PyErr_Occurred() ? -1 : 0;
}

static PyObject *raise_no_region(uintptr_t start)
{
    return PyErr_Format(PyExc_KeyError, "no region starts at address %zu", (size_t)start);
}

static PyObject *device_retire_region(DeviceCore *self, PyObject *address)
{
    size_t index, state = 0;
    uintptr_t start;
    if (parse_address(address, &start) < 0) {
        return NULL;
    }
    lock_table(self);
    bool found = find_start(self, start, &index);
    if (found) {
        state = SHARED_OR(self->regions[index]->state, REGION_RETIRED);
    }
    unlock_table(self);
    return found ? PyLong_FromSize_t(state / REGION_USER) : raise_no_region(start);
}

static PyObject *device_remove_region(DeviceCore *self, PyObject *address)
{
    size_t index, users = 0;
    uintptr_t start;
    Region *region = NULL;
    if (parse_address(address, &start) < 0) {
        return NULL;
    }
    lock_table(self);
    bool found = find_start(self, start, &index);
    if (found) {
        region = self->regions[index];
        users = OBSERVE(region->state) / REGION_USER;
        if (users > 0) {
            region = NULL;
        } else {
            self->region_count--;
            memmove(&self->regions[index], &self->regions[index + 1],
                    (self->region_count - index) * sizeof(*self->regions));
        }
    }
    unlock_table(self);
    PyMem_Free(region);
    if (users > 0) {
        return PyErr_Format(PyExc_ValueError, "%zu requests in flight use the region", users);
    }
    return found ? Py_NewRef(Py_None) : raise_no_region(start);
}

/* ---- the type -------------------------------------------------------------------------------------------- */

static bool power_of_two(uint64_t value) { return value > 0 && (value & (value - 1)) == 0; }

/* libblkio's 0 means unlimited. */
static uint64_t unlimited_if_zero(uint64_t value) { return value ? value : UINT64_MAX; }

static PyObject *device_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"make_error", "make_refusal", "needs_regions", "read_only", "virtqueues", "request_alignment",
                            "buf_alignment", "max_segments", "max_segment_len", "max_transfer", "max_discard_len",
                            "max_write_zeroes_len", "discard_alignment", "discard_alignment_offset",
                            "discard_method", "bounce_cap", NULL};
    PyObject *make_error, *make_refusal;
    int needs_regions, read_only, virtqueues, discard_method;
    unsigned long long request_alignment, buf_alignment, max_segments, max_segment_len, max_transfer;
    unsigned long long max_discard_len, max_write_zeroes_len, discard_alignment, discard_alignment_offset, bounce_cap;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OOpppKKKKKKKKKiK", names, &make_error, &make_refusal,
                                     &needs_regions, &read_only, &virtqueues, &request_alignment, &buf_alignment, &max_segments,
                                     &max_segment_len, &max_transfer, &max_discard_len, &max_write_zeroes_len,
                                     &discard_alignment, &discard_alignment_offset, &discard_method, &bounce_cap)) {
        return NULL;
    }
    if (!power_of_two(request_alignment) || !power_of_two(buf_alignment) || max_segments == 0 || bounce_cap == 0) {
        return PyErr_Format(PyExc_ValueError,
                            "alignments must be powers of two, max_segments and bounce_cap positive");
    }
    DeviceCore *self = (DeviceCore *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->make_error = Py_NewRef(make_error);
    self->make_refusal = Py_NewRef(make_refusal);
    self->needs_regions = needs_regions;
    self->read_only = read_only;
    self->virtqueues = virtqueues;
    self->request_alignment = request_alignment;
    self->buf_alignment = buf_alignment;
    self->max_segments = max_segments > IOV_MAX_SEGMENTS ? IOV_MAX_SEGMENTS : max_segments;
    self->max_segment_len = unlimited_if_zero(max_segment_len);
    self->max_transfer = unlimited_if_zero(max_transfer);
    self->max_discard_len = unlimited_if_zero(max_discard_len);
    self->max_write_zeroes_len = unlimited_if_zero(max_write_zeroes_len);
    self->discard_alignment = discard_alignment;
    self->discard_alignment_offset = discard_alignment_offset;
    self->discard_method = discard_method;
    self->bounce_cap = bounce_cap;
    self->file_fd = -1;
    return (PyObject *)self;
}

static int device_traverse(DeviceCore *self, visitproc visit, void *arg)
{
    Py_VISIT(self->make_error);
    Py_VISIT(self->make_refusal);
    Py_VISIT(self->on_region_idle);
    return 0;
}

static int device_clear(DeviceCore *self)
{
    Py_CLEAR(self->make_error);
    Py_CLEAR(self->make_refusal);
    Py_CLEAR(self->on_region_idle);
    return 0;
}

static void device_dealloc(DeviceCore *self)
{
    PyObject_GC_UnTrack(self);
    device_clear(self);
    for (size_t i = 0; i < self->region_count; i++) {
        PyMem_Free(self->regions[i]);
    }
    PyMem_Free(self->regions);
    given_up_forget(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

void device_note_flush(DeviceCore *device, uint64_t covered)
{
    uint64_t before = OBSERVE(device->covered);
    while (before < covered && !__atomic_compare_exchange_n(&device->covered, &before, covered, false, __ATOMIC_SEQ_CST,
                                                            __ATOMIC_SEQ_CST)) {
    }
}

static PyObject *device_get_unflushed(DeviceCore *self, void *Py_UNUSED(closure))
{
    if (OBSERVE(self->covered) == SHARED_LOAD(self->changes)) {
        Py_RETURN_NONE;
    }
    return PyLong_FromUnsignedLongLong(OBSERVE(self->changed_at));
}

static PyObject *device_get_region_count(DeviceCore *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(OBSERVE(self->region_count));
}

static PyObject *device_map_turn(DeviceCore *self, PyObject *Py_UNUSED(ignored))
{
    __atomic_add_fetch(&self->map_turns, 1, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

static PyObject *device_forget_given_up(DeviceCore *self, PyObject *Py_UNUSED(ignored))
{
    given_up_forget(self);
    Py_RETURN_NONE;
}

static PyMethodDef device_methods[] = {
    {"map_turn", (PyCFunction)device_map_turn, METH_NOARGS,
     "Changing the memory map begins, or has ended; requests that it fails in between are made again."},
    {"forget_given_up", (PyCFunction)device_forget_given_up, METH_NOARGS,
     "A lost device comes back, all its queues having been abandoned: nothing lands any more of what it had."},
    {"add_region", (PyCFunction)device_add_region, METH_VARARGS, "Requests may use [address, address + length)."},
    {"retire_region", (PyCFunction)device_retire_region, METH_O,
     "No new request uses the region; returns how many in flight still do (on_region_idle tells when none)."},
    {"remove_region", (PyCFunction)device_remove_region, METH_O, "Forget a region that no request uses."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef device_members[] = {
    {"on_region_idle", T_OBJECT, offsetof(DeviceCore, on_region_idle), 0, NULL},
    {"file_fd", T_INT, offsetof(DeviceCore, file_fd), 0, "Of a file that grows; -1: there is none."},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *device_has_given_up(DeviceCore *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(OBSERVE(self->given_up) != NULL);
}

static PyGetSetDef device_getset[] = {
    {"has_given_up", (getter)device_has_given_up, NULL, "Whether a change that was cancelled may still land.", NULL},
    {"unflushed", (getter)device_get_unflushed, NULL,
     "Where the latest change is that no flush has covered since it was done; None: all are durable.", NULL},
    {"region_count", (getter)device_get_region_count, NULL, "How many regions are mapped.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject DeviceCore_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aioblk._native._core.DeviceCore",
    .tp_doc = "What all queues of one device share: limits, mapped regions, and how errors are made.",
    .tp_basicsize = sizeof(DeviceCore),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = device_new,
    .tp_dealloc = (destructor)device_dealloc,
    .tp_traverse = (traverseproc)device_traverse,
    .tp_clear = (inquiry)device_clear,
    .tp_methods = device_methods,
    .tp_members = device_members,
    .tp_getset = device_getset,
};
