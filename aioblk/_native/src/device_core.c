/* DeviceCore: what the queues of one device share. Limits are plain numbers; regions a sorted array. */
#include "core.h"

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

PyObject *device_make_error(DeviceCore *device, Operation op, int error, const char *message, uint64_t offset,
                            uint64_t length)
{
    return PyObject_CallFunction(device->make_error, "sizNN", operation_names[op], error, message,
                                 number_or_none(offset), number_or_none(length));
}

int device_refuse(DeviceCore *device, const char *reason, Operation op, uint64_t offset, uint64_t length)
{
    PyObject *exception = PyObject_CallFunction(device->make_refusal, "ssNN", reason, operation_names[op],
                                                number_or_none(offset), number_or_none(length));
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
    return inside && !region->retired ? region : NULL;
}

static Region *region_at(DeviceCore *device, uintptr_t start, size_t *index)
{
    size_t i = region_index(device, start);
    if (i == device->region_count || device->regions[i]->start != start) {
        PyErr_Format(PyExc_KeyError, "no region starts at address %zu", (size_t)start);
        return NULL;
    }
    *index = i;
    return device->regions[i];
}

void device_leave_region(DeviceCore *device, Region *region)
{
    if (--region->users > 0 || !region->retired || !device->on_region_idle) {
        return;
    }
    PyObject *address = PyLong_FromSize_t(region->start);
    if (address) {
        call_hook(device->on_region_idle, address);
        Py_DECREF(address);
    } else {
        put_off_exception(device->on_region_idle);
    }
}

static PyObject *device_add_region(DeviceCore *self, PyObject *args)
{
    unsigned long long start, length;
    if (!PyArg_ParseTuple(args, "KK", &start, &length)) {
        return NULL;
    }
    size_t i = region_index(self, start);
    if (length == 0 || start + length < start || (i < self->region_count && self->regions[i]->start < start + length)) {
        return PyErr_Format(PyExc_ValueError, "region %llu+%llu is empty or overlaps another", start, length);
    }
    if (self->region_count == self->region_capacity) {
        size_t capacity = self->region_capacity ? 2 * self->region_capacity : 8;
        Region **grown = PyMem_Realloc(self->regions, capacity * sizeof(*grown));
        if (!grown) {
            return PyErr_NoMemory();
        }
        self->regions = grown;
        self->region_capacity = capacity;
    }
    Region *region = PyMem_Calloc(1, sizeof(*region));
    if (!region) {
        return PyErr_NoMemory();
    }
    region->start = start;
    region->end = start + length;
    memmove(&self->regions[i + 1], &self->regions[i], (self->region_count - i) * sizeof(*self->regions));
    self->regions[i] = region;
    self->region_count++;
    Py_RETURN_NONE;
}

static PyObject *device_retire_region(DeviceCore *self, PyObject *address)
{
    size_t index, start = PyLong_AsSize_t(address);
    if (start == (size_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    Region *region = region_at(self, start, &index);
    if (!region) {
        return NULL;
    }
    region->retired = true;
    return PyLong_FromSize_t(region->users);
}

static PyObject *device_remove_region(DeviceCore *self, PyObject *address)
{
    size_t index, start = PyLong_AsSize_t(address);
    if (start == (size_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    Region *region = region_at(self, start, &index);
    if (!region) {
        return NULL;
    }
    if (region->users > 0) {
        return PyErr_Format(PyExc_ValueError, "%zu requests in flight use the region", region->users);
    }
    self->region_count--;
    memmove(&self->regions[index], &self->regions[index + 1], (self->region_count - index) * sizeof(*self->regions));
    PyMem_Free(region);
    Py_RETURN_NONE;
}

/* ---- the type -------------------------------------------------------------------------------------------- */

static bool power_of_two(uint64_t value) { return value > 0 && (value & (value - 1)) == 0; }

/* libblkio's 0 means unlimited. */
static uint64_t unlimited_if_zero(uint64_t value) { return value ? value : UINT64_MAX; }

static PyObject *device_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"make_error", "make_refusal", "needs_regions", "read_only", "request_alignment",
                            "buf_alignment", "max_segments", "max_segment_len", "max_transfer", "max_discard_len",
                            "max_write_zeroes_len", "discard_alignment", "discard_alignment_offset",
                            "discard_method", "bounce_cap", NULL};
    PyObject *make_error, *make_refusal;
    int needs_regions, read_only, discard_method;
    unsigned long long request_alignment, buf_alignment, max_segments, max_segment_len, max_transfer;
    unsigned long long max_discard_len, max_write_zeroes_len, discard_alignment, discard_alignment_offset, bounce_cap;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OOppKKKKKKKKKiK", names, &make_error, &make_refusal,
                                     &needs_regions, &read_only, &request_alignment, &buf_alignment, &max_segments,
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
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *device_get_region_count(DeviceCore *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(self->region_count);
}

static PyObject *device_map_turn(DeviceCore *self, PyObject *Py_UNUSED(ignored))
{
    __atomic_add_fetch(&self->map_turns, 1, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

static PyMethodDef device_methods[] = {
    {"map_turn", (PyCFunction)device_map_turn, METH_NOARGS,
     "Changing the memory map begins, or has ended; requests that it fails in between are made again."},
    {"add_region", (PyCFunction)device_add_region, METH_VARARGS, "Requests may use [address, address + length)."},
    {"retire_region", (PyCFunction)device_retire_region, METH_O,
     "No new request uses the region; returns how many in flight still do (on_region_idle tells when none)."},
    {"remove_region", (PyCFunction)device_remove_region, METH_O, "Forget a region that no request uses."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef device_members[] = {
    {"on_region_idle", T_OBJECT, offsetof(DeviceCore, on_region_idle), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef device_getset[] = {
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
