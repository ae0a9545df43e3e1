/* The module aioblk._native._core: its types, readied in the order in which they need each other. */
#include "core.h"

static PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aioblk._native._core",
    .m_doc = "The compiled request path.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__core(void)
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
    };
    if (request_module_init() < 0 || waking_module_init() < 0 || queue_module_init() < 0 ||
        arguments_module_init() < 0 || zeroes_module_init() < 0 || PyType_Ready(&Submitter_Type) < 0 || PyType_Ready(&DeviceCore_Type) < 0 ||
        PyType_Ready(&Allocator_Type) < 0 || PyType_Ready(&Memory_Type) < 0 || PyType_Ready(&View_Type) < 0) {
        return NULL;
    }
    PyObject *module = PyModule_Create(&core_module);
#ifdef Py_GIL_DISABLED
    if (module && PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED) < 0) {
        Py_CLEAR(module);
    }
#endif
    for (size_t i = 0; module && i < sizeof(types) / sizeof(types[0]); i++) {
        if (PyModule_AddObjectRef(module, types[i].name, (PyObject *)types[i].type) < 0) {
            Py_CLEAR(module);
        }
    }
    return module;
}
