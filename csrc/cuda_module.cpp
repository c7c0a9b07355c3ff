// The extension module of the CUDA backend: prepares launches, and runs them. It needs neither a CUDA header nor nvcc
// to be built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/driver.h"
#include "cuda/layouts.h"

namespace py = pybind11;

namespace {

using namespace slt::cuda;

const Layout &layout_of(const std::string &name) {
    for (const Layout &layout : layouts())
        if (name == layout.name) return layout;
    throw std::invalid_argument("no arguments are named " + name);
}

// A kernel, its grid, and its arguments except those that change from call to call.
class Launch {
  public:
    Launch(std::string file, std::string kernel, const std::string &arguments, unsigned blocks, unsigned threads,
           unsigned shared, unsigned cluster, const py::dict &values, const std::vector<std::string> &later)
        : kernel_(kernel_of(file, kernel)), grid_{blocks, threads, shared, cluster}, bytes_(layout_of(arguments).size) {
        const Layout &layout = layout_of(arguments);
        if (layout.size > MOST_BYTES) throw std::invalid_argument(arguments + " is larger than a kernel's parameters");
        if (cluster == 0 || blocks % cluster) throw std::invalid_argument(kernel + ": blocks do not fill the clusters");
        if (values.size() + later.size() != layout.fields.size())
            throw std::invalid_argument(arguments + " has other members than those that are given");
        for (const auto &[name, value] : values)
            set(find(layout, py::cast<std::string>(name)), bytes_.data(), value.ptr());
        for (const std::string &name : later) changing_.push_back(find(layout, name));
    }

    // The launch with values for the members that change, in their order.
    py::dict describe(const py::args &values) const {
        std::vector<char> filled(bytes_.size());
        fill(filled.data(), reinterpret_cast<PyTupleObject *>(values.ptr())->ob_item, values.size());
        py::dict result;
        result["file"] = kernel_.file;
        result["kernel"] = kernel_.name;
        result["blocks"] = grid_.blocks;
        result["threads"] = grid_.threads;
        result["shared"] = grid_.shared;
        result["cluster"] = grid_.cluster;
        result["arguments"] = py::bytes(filled.data(), filled.size());
        return result;
    }

    void run(int device, uintptr_t stream, PyObject *const *values, size_t count) const {
        alignas(16) char filled[MOST_BYTES];
        fill(filled, values, count);
        const py::gil_scoped_release release;  // a launch waits where the queue is full, maybe for code in Python
        enqueue(kernel_, grid_, device, stream, filled);
    }

  private:
    static constexpr size_t MOST_BYTES = 4096;  // of a kernel's parameters, on every device

    static const Field &find(const Layout &layout, const std::string &name) {
        for (const Field &field : layout.fields)
            if (name == field.name) return field;
        throw std::invalid_argument(std::string(layout.name) + " has no member " + name);
    }

    // A tensor stands for its address.
    static void set(const Field &field, char *arguments, PyObject *value) {
        static PyObject *const data_ptr = PyUnicode_InternFromString("data_ptr");
        if (PyLong_Check(value) || PyTuple_Check(value) || PyFloat_Check(value) || value == Py_None) {
            field.set(arguments, value);
        } else {
            const py::object address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(value, data_ptr));
            if (address) field.set(arguments, address.ptr());
        }
        if (PyErr_Occurred()) throw py::error_already_set();
    }

    void fill(char *to, PyObject *const *values, size_t count) const {
        if (count != changing_.size()) throw std::invalid_argument(kernel_.name + ": expected a value for each member");
        std::memcpy(to, bytes_.data(), bytes_.size());
        for (size_t i = 0; i < count; ++i) set(changing_[i], to, values[i]);
    }

    Kernel &kernel_;
    const Grid grid_;
    std::vector<char> bytes_;
    std::vector<Field> changing_;
};

// run(launch, device, stream, *values). pybind11's own conversion of arguments takes longer than all of this.
PyObject *run(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    try {
        if (count < 3) throw py::type_error("expected a launch, a device and a stream");
        const int device = PyLong_AsLong(arguments[1]);
        void *const stream = PyLong_AsVoidPtr(arguments[2]);
        if (PyErr_Occurred()) throw py::error_already_set();
        if (device < 0) throw py::value_error("expected a device's number");
        py::cast<const Launch &>(py::handle(arguments[0]))
            .run(device, reinterpret_cast<uintptr_t>(stream), arguments + 3, count - 3);
        Py_RETURN_NONE;
    } catch (py::error_already_set &error) {
        error.restore();
    } catch (const py::builtin_exception &error) {
        error.set_error();
    } catch (const std::invalid_argument &error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception &error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

PyMethodDef run_method = {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run)), METH_FASTCALL,
                          "Runs a launch on a stream of a device, with values for the members that change."};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "Launches of slt_kernels' CUDA kernels, for slt_kernels.backends.cuda alone.";

    m.def(
        "layouts",
        [] {
            py::dict result;
            for (const Layout &layout : layouts()) {
                py::dict fields;
                for (const Field &field : layout.fields) fields[field.name] = py::make_tuple(field.offset, field.size);
                result[layout.name] = py::make_tuple(layout.size, fields);
            }
            return result;
        },
        "Of each argument struct, its size, and the offset and size of each member.");

    py::class_<Launch>(m, "Launch")
        .def(py::init<std::string, std::string, const std::string &, unsigned, unsigned, unsigned, unsigned,
                      const py::dict &, const std::vector<std::string> &>(),
             py::kw_only(), py::arg("file"), py::arg("kernel"), py::arg("arguments"), py::arg("blocks"),
             py::arg("threads"), py::arg("shared") = 0, py::arg("cluster") = 1, py::arg("values"), py::arg("later"))
        .def("describe", &Launch::describe);
    m.add_object("run", py::reinterpret_steal<py::object>(PyCFunction_NewEx(&run_method, nullptr, nullptr)));

    m.attr("source") = SOURCE;
    m.def("use_kernels", &use_kernels, "Names the folder of the fatbins.");
    m.def("driver_version", &driver_version, "The newest CUDA that the driver knows: 1000 major + 10 minor.");
    m.def(
        "devices",
        [] {
            py::list result;
            for (const Device &d : devices()) result.append(py::make_tuple(d.capability, d.processors, d.shared));
            return result;
        },
        "Capability, multiprocessors and shared memory of a block, of each device.");
}
