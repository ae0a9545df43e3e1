/*
 * Pins: the caller's memory, held still from submission until the device has finished. Three kinds of objects: bytes, which
 * never move; views of registered memory, which are counted without the buffer protocol's detours; any other buffer.
 */
#include "rooms.h"

static int refuse_read_only(void)
{
    PyErr_SetString(PyExc_BufferError, "the buffer is read-only, and the device would write to it");
    return -1;
}

/* Whoever exports a buffer says in his own way that it is read-only, numpy with a ValueError. */
static int explain_refusal(PyObject *object)
{
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError)) {
        return -1;
    }
    PyObject *type, *value, *traceback;
    Py_buffer buffer;
    PyErr_Fetch(&type, &value, &traceback);
    bool read_only = PyObject_GetBuffer(object, &buffer, PyBUF_SIMPLE) == 0;
    if (!read_only) {
        PyErr_Restore(type, value, traceback); /* in the place of the second one, which says the same */
        return -1;
    }
    PyBuffer_Release(&buffer);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return refuse_read_only();
}

/* Everything but a view that can be used. */
static int pin_any(Py_buffer *pin, PyObject *object, bool writable)
{
    if (PyBytes_CheckExact(object) && !writable) {
        pin->buf = PyBytes_AS_STRING(object);
        pin->len = PyBytes_GET_SIZE(object);
        pin->obj = Py_NewRef(object);
        return 0;
    }
    if (Py_IS_TYPE(object, &View_Type)) {
        if (writable && ((ViewObject *)object)->memory->readonly) {
            return refuse_read_only();
        }
        PyErr_SetString(PyExc_ValueError, "the view's memory region is closed");
        return -1;
    }
    if (PyObject_GetBuffer(object, pin, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) == 0) {
        return 0;
    }
    return writable ? explain_refusal(object) : -1;
}

/* A view of registered memory is what is pinned most often, and takes only counting. */
inline int pin_acquire(Py_buffer *pin, PyObject *object, bool writable)
{
    if (!Py_IS_TYPE(object, &View_Type)) {
        return pin_any(pin, object, writable);
    }
    ViewObject *view = (ViewObject *)object;
    if ((writable && view->memory->readonly) || !memory_use(view->memory)) {
        return pin_any(pin, object, writable); /* it knows what to say */
    }
    pin->buf = view->address;
    pin->len = view->length;
    pin->obj = Py_NewRef(object);
    return 0;
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
