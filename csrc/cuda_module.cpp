// The extension module of the CUDA backend: prepares launches. It needs neither a CUDA header nor nvcc to be built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/layouts.h"

namespace py = pybind11;

namespace {

using namespace slt::cuda;

const Layout &layout_of(const std::string &name) {
    for (const Layout &layout : layouts())
        if (name == layout.name) return layout;
    throw std::invalid_argument("no arguments are named " + name);
}

// A kernel, its grid, and its arguments but those that change from call to call.
class Launch {
  public:
    Launch(std::string file, std::string kernel, const std::string &arguments, unsigned blocks, unsigned threads,
           unsigned shared, unsigned cluster, const py::dict &values, const std::vector<std::string> &later)
        : file(std::move(file)),
          kernel(std::move(kernel)),
          blocks(blocks),
          threads(threads),
          shared(shared),
          cluster(cluster),
          bytes(layout_of(arguments).size) {
        const Layout &layout = layout_of(arguments);
        if (values.size() + later.size() != layout.fields.size())
            throw std::invalid_argument(arguments + " has other members than those that are given");
        for (const auto &[name, value] : values) {
            find(layout, py::cast<std::string>(name)).set(bytes.data(), value.ptr());
            if (PyErr_Occurred()) throw py::error_already_set();
        }
        for (const std::string &name : later) changing.push_back(find(layout, name));
    }

    // The launch with values for the members that change, in their order.
    py::dict describe(const py::args &values) const {
        if (values.size() != changing.size()) throw std::invalid_argument(kernel + ": expected a value for each member");
        std::vector<char> filled = bytes;
        for (size_t i = 0; i < changing.size(); ++i) changing[i].set(filled.data(), py::object(values[i]).ptr());
        if (PyErr_Occurred()) throw py::error_already_set();
        py::dict result;
        result["file"] = file;
        result["kernel"] = kernel;
        result["blocks"] = blocks;
        result["threads"] = threads;
        result["shared"] = shared;
        result["cluster"] = cluster;
        result["arguments"] = py::bytes(filled.data(), filled.size());
        return result;
    }

  private:
    static const Field &find(const Layout &layout, const std::string &name) {
        for (const Field &field : layout.fields)
            if (name == field.name) return field;
        throw std::invalid_argument(std::string(layout.name) + " has no member " + name);
    }

    const std::string file, kernel;
    const unsigned blocks, threads, shared, cluster;
    std::vector<char> bytes;
    std::vector<Field> changing;
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "Launches of slt_kernels' CUDA kernels, for slt_kernels.backends.cuda alone.";

    m.def("layouts", [] {
        py::dict result;
        for (const Layout &layout : layouts()) {
            py::dict fields;
            for (const Field &field : layout.fields) fields[field.name] = py::make_tuple(field.offset, field.size);
            result[layout.name] = py::make_tuple(layout.size, fields);
        }
        return result;
    }, "Of each argument struct, its size, and the offset and size of each member.");

    py::class_<Launch>(m, "Launch")
        .def(py::init<std::string, std::string, const std::string &, unsigned, unsigned, unsigned, unsigned,
                      const py::dict &, const std::vector<std::string> &>(),
             py::kw_only(), py::arg("file"), py::arg("kernel"), py::arg("arguments"), py::arg("blocks"),
             py::arg("threads"), py::arg("shared") = 0, py::arg("cluster") = 1, py::arg("values"), py::arg("later"))
        .def("describe", &Launch::describe);
}
