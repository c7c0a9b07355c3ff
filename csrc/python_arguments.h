// Members of argument structs from Python objects, each by its name.
#pragma once

#include <Python.h>

#include <cstdint>
#include <type_traits>

#include "contract/source.h"
#include "contract/window.h"

namespace slt {

// The value of a Python object for a member of type T. Sets a Python error if the object has another type.
template <class T>
struct From {
    static T python(PyObject *v) { return T(PyLong_AsLongLong(v)); }
};

template <class T>
struct From<T *> {
    static T *python(PyObject *v) { return static_cast<T *>(PyLong_AsVoidPtr(v)); }
};

// Item i of a tuple.
template <class T>
T item(PyObject *tuple, Py_ssize_t i) {
    if (PyTuple_Check(tuple) && i < PyTuple_GET_SIZE(tuple)) return From<T>::python(PyTuple_GET_ITEM(tuple, i));
    PyErr_SetString(PyExc_TypeError, "expected a longer tuple");
    return {};
}

template <>
struct From<Source> {
    static Source python(PyObject *v) {
        const auto at = [v](int i) { return item<int64_t>(v, i); };
        return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9)};
    }
};

template <>
struct From<Window> {
    static Window python(PyObject *v) {
        const auto at = [v](int i) { return item<int64_t>(v, i); };
        return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)};
    }
};

template <class Arguments, auto member>
void set(Arguments &arguments, PyObject *value) {
    arguments.*member = From<std::remove_reference_t<decltype(arguments.*member)>>::python(value);
}

}  // namespace slt
