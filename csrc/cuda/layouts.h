// The argument structs of the kernels, and how Python sets their members.
#pragma once

#include <Python.h>

#include <cstddef>
#include <string>
#include <vector>

namespace slt::cuda {

struct Field {
    const char *name;
    size_t offset, size;
    void (*set)(char *arguments, PyObject *value);  // sets a Python error if the value has another type
};

// The argument struct of a kernel.
struct Layout {
    const char *name;
    size_t size;
    std::vector<Field> fields;
};

// All structs of arguments.h.
const std::vector<Layout> &layouts();

}  // namespace slt::cuda
