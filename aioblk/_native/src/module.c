/* The module aioblk._native._core: its types, readied in the order in which they need each other. */
#include "rooms.h"

/*
 * The types, and what is remembered of asyncio, exist once in a process. CPython would let some subinterpreters have them
 * all the same, and refuse others in words of its own; so we say that we can do with any, and refuse all of them here.
 */
static int refuse_subinterpreters(void)
{
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
        return 0;
    }
    PyErr_SetString(PyExc_ImportError, "aioblk works in the main interpreter only, not in a subinterpreter; "
                                       "use threads, or processes of their own");
    return -1;
}

static int make_types_ready(void)
{
    if (forms_module_init() < 0 || awaitable_module_init() < 0 || waking_module_init() < 0 || loop_module_init() < 0 ||
        queue_module_init() < 0 || submitter_module_init() < 0 || arguments_module_init() < 0 || zeroes_module_init() < 0) {
        return -1;
    }
    PyTypeObject *const types[] = {&DeviceCore_Type, &Allocator_Type, &Memory_Type, &View_Type, &Moved_Type,
                                   &GuestMemory_Type, &GuestRequest_Type, &Virtqueue_Type};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (PyType_Ready(types[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

static int core_exec(PyObject *module)
{
    static const struct {
        const char *name;
        PyTypeObject *type;
    } types[] = {
        {"Request", &Future_Type},
        {"DeviceCore", &DeviceCore_Type},
        {"QueueCore", &QueueCore_Type},
        {"Submitter", &Submitter_Type},
        {"Allocator", &Allocator_Type},
        {"Memory", &Memory_Type},
        {"View", &View_Type},
        {"Moved", &Moved_Type},
        {"GuestMemory", &GuestMemory_Type},
        {"GuestRequest", &GuestRequest_Type},
        {"Virtqueue", &Virtqueue_Type},
    };
    static bool ready; /* for who imports it anew, too */
    if (refuse_subinterpreters() < 0 || (!ready && make_types_ready() < 0)) {
        return -1;
    }
    ready = true;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (PyModule_AddObjectRef(module, types[i].name, (PyObject *)types[i].type) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyMethodDef core_functions[] = {
    {"move_pairs", move_pairs, METH_VARARGS, "Pairs with their offsets moved; None: not all are known to lie within."},
    {"zero_runs", zero_runs, METH_VARARGS, "Which units of a buffer are zeroes."},
    {"differing_runs", differing_runs, METH_VARARGS, "Which units of two buffers differ."},
    {NULL},
};

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aioblk._native._core",
    .m_doc = "The compiled request path.",
    .m_methods = core_functions,
    .m_slots = core_slots,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&core_module); }
