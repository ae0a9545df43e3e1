/*
 * Pins: the caller's memory, held still from submission until the device has finished. Three kinds of objects: bytes, which
 * never move; views of registered memory, which are counted without the buffer protocol's detours; any other buffer.
 */
#include "core.h"

/* Everything but a view that can be used. */
int pin_any(Py_buffer *pin, PyObject *object, bool writable)
{
    if (PyBytes_CheckExact(object) && !writable) {
        pin->buf = PyBytes_AS_STRING(object);
        pin->len = PyBytes_GET_SIZE(object);
        pin->obj = Py_NewRef(object);
        return 0;
    }
    if (Py_IS_TYPE(object, &View_Type)) {
        bool closed = !writable || !((ViewObject *)object)->memory->readonly;
        PyErr_SetString(closed ? PyExc_ValueError : PyExc_BufferError,
                        closed ? "the view's memory region is closed" : "the view is read-only");
        return -1;
    }
    return PyObject_GetBuffer(object, pin, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE);
}

void pin_release(Py_buffer *pin)
{
    PyObject *owner = pin->obj;
    if (!owner) {
        return;
    }
    if (Py_IS_TYPE(owner, &View_Type)) {
        pin->obj = NULL;
        memory_unuse(((ViewObject *)owner)->memory);
        Py_DECREF(owner);
    } else if (PyBytes_CheckExact(owner)) {
        pin->obj = NULL;
        Py_DECREF(owner);
    } else {
        PyBuffer_Release(pin);
    }
}

void request_drop_pins(Request *r)
{
    pin_release(&r->item.pin);
    if (r->batch) {
        for (uint32_t i = 0; i < r->count; i++) {
            pin_release(&r->items[i].pin);
        }
    } else if (r->pins) {
        Py_buffer *pins = r->pins;
        uint32_t count = r->count;
        r->pins = NULL;
        r->count = 0;
        for (uint32_t i = 0; i < count; i++) {
            pin_release(&pins[i]);
        }
        PyMem_Free(pins);
    }
}
