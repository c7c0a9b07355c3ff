// The extension module: runs operations on raw pointers. Arguments are bound by name, each to the member of that name,
// so that two pointers cannot be swapped; a positional call or a missing name raises TypeError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/machine/float_control.h"
#include "cpu/useful_threads.h"
#include "python_arguments.h"

namespace py = pybind11;

namespace slt {

// The scale is passed as a pointer: a Python float would become 0 where the thread flushes denormal numbers.
template <>
struct From<float> {
    static float python(PyObject *v) {
        const float *scale = From<const float *>::python(v);
        return scale ? *scale : 0;
    }
};

// (pointer, element type)
template <class Byte>
struct From<Numbers<Byte>> {
    static Numbers<Byte> python(PyObject *v) { return {item<Byte *>(v, 0), Type(item<int>(v, 1))}; }
};

// (numbers, (samples, channels, height, width, channels_last))
template <class Byte>
struct From<ImagesOf<Byte>> {
    static ImagesOf<Byte> python(PyObject *v) {
        PyObject *sizes = PyTuple_Check(v) && PyTuple_GET_SIZE(v) == 2 ? PyTuple_GET_ITEM(v, 1) : v;
        const auto at = [sizes](int i) { return item<int64_t>(sizes, i); };
        const bool channels_last = at(4) || at(2) * at(3) == 1;  // one pixel is channels-last in both formats
        return {item<Numbers<Byte>>(v, 0), at(0), at(1), at(2), at(3), channels_last};
    }
};

}  // namespace slt

namespace {

using namespace slt;
using Pointer = uintptr_t;

InstructionSet chosen = instruction_sets().back();  // by use_instruction_set

void use_instruction_set(const std::string &name) {
    for (const InstructionSet &set : instruction_sets())
        if (name == set.name) {
            chosen = set;
            return;
        }
    throw std::invalid_argument("instruction set '" + name + "' does not run here");
}

template <class Arguments>
using Operation = void (*Operations::*)(const Arguments &, int threads);

// Runs an operation of the chosen instruction set. Threads that it starts inherit its floating-point control.
template <class Arguments>
void run(Operation<Arguments> operation, const Arguments &arguments, int threads) {
    const DefaultFloatControl control;
    (chosen.operations->*operation)(arguments, useful_threads(arguments, threads));
}

// The Python function of an operation. It takes one argument for each field, and `threads`, all by name.
template <class Arguments>
class Function {
  public:
    struct Field {
        const char *name;
        void (*set)(Arguments &, PyObject *);
        PyObject *key = nullptr;  // the interned name
    };

    static void add_to(py::module_ &m, const char *name, Operation<Arguments> of, std::vector<Field> with) {
        operation = of;
        fields = std::move(with);
        fields.push_back({"threads", nullptr});
        for (Field &field : fields) field.key = PyUnicode_InternFromString(field.name);
        const auto function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call));
        methods[0] = {name, function, METH_FASTCALL | METH_KEYWORDS, nullptr};
        if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
    }

  private:
    static inline Operation<Arguments> operation;
    static inline std::vector<Field> fields;
    static inline PyMethodDef methods[2];

    // pybind11's binding of keywords costs more than a small product.
    static PyObject *call(PyObject *, PyObject *const *values, Py_ssize_t positional, PyObject *names) {
        const size_t count = names ? size_t(PyTuple_GET_SIZE(names)) : 0;
        if (positional != 0 || count != fields.size())
            return PyErr_Format(PyExc_TypeError, "%s takes %zu arguments, by name", methods[0].ml_name, fields.size());
        Arguments arguments{};
        int threads = 1;
        for (size_t i = 0; i < count; ++i) {  // names are distinct, so all fields are set
            const Field *field = find(PyTuple_GET_ITEM(names, Py_ssize_t(i)), i);
            if (!field)
                return PyErr_Format(PyExc_TypeError, "%s has no argument %R", methods[0].ml_name,
                                    PyTuple_GET_ITEM(names, Py_ssize_t(i)));
            if (field->set)
                field->set(arguments, values[i]);
            else
                threads = From<int>::python(values[i]);
        }
        if (PyErr_Occurred()) return nullptr;
        try {
            py::gil_scoped_release unlocked;
            run(operation, arguments, threads);
        } catch (const std::bad_alloc &) {
            return PyErr_NoMemory();
        }
        Py_RETURN_NONE;
    }

    // The field of a name, which is probably number i.
    static const Field *find(PyObject *name, size_t i) {
        if (fields[i].key == name) return &fields[i];
        for (const Field &field : fields)
            if (PyUnicode_Compare(field.key, name) == 0) return &field;
        return nullptr;
    }
};

#define SLT_FIELD(member) {#member, set<A, &A::member>}

// linear_forward with the arguments that stay the same from call to call.
class LinearPlan {
  public:
    LinearPlan(py::tuple source, Pointer mask, Pointer signs, Pointer scale, Pointer bias)
        : arguments{.source = From<Source>::python(source.ptr()),
                    .mask = reinterpret_cast<const uint32_t *>(mask),
                    .signs = reinterpret_cast<const uint32_t *>(signs),
                    .x = {},
                    .batch = 0,
                    .scale = 0,
                    .bias = reinterpret_cast<const float *>(bias),
                    .y = {},
                    .digits = 0},
          scale(reinterpret_cast<const float *>(scale)) {
        if (PyErr_Occurred()) throw py::error_already_set();
    }

    // `type`: of x and y. The scale is read at every call.
    void forward(Pointer x, int64_t batch, Pointer y, int type, int digits, int threads) const {
        LinearForward a = arguments;
        a.x = {reinterpret_cast<const char *>(x), Type(type)};
        a.batch = batch;
        a.scale = *scale;
        a.y = {reinterpret_cast<char *>(y), Type(type)};
        a.digits = digits;
        if (a.source.rows * a.source.fan * batch < LOCKED_WEIGHTS) {
            run(&Operations::linear_forward, a, threads);
        } else {
            py::gil_scoped_release unlocked;
            run(&Operations::linear_forward, a, threads);
        }
    }

  private:
    // A product of fewer weights times vectors keeps the interpreter's lock. Releasing it and taking it again costs 0.1
    // us, and other threads must expect to wait for the lock anyway: the interpreter's switch interval is 5 ms.
    static constexpr int64_t LOCKED_WEIGHTS = 1 << 16;

    const LinearForward arguments;
    const float *const scale;
};

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of slt_kernels: functions over raw pointers, for slt_kernels.backends.cpu alone.";

    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const InstructionSet &set : instruction_sets()) names.emplace_back(set.name);
        return names;
    });
    m.def("use_instruction_set", use_instruction_set);
    m.def(
        "divide_work_from", [](int64_t least) { least_divided_work = least; }, py::arg("work"),
        "Products of less work (useful_threads.h) run on one thread.");
    m.def("instruction_set", [] { return std::string(chosen.name); });
    m.def(
        "first_outside",
        [](Pointer index, int64_t count, int64_t rows) {
            const uint64_t *at = reinterpret_cast<const uint64_t *>(index);  // negative numbers are large ones
            return std::find_if(at, at + count, [rows](uint64_t row) { return row >= uint64_t(rows); }) - at;
        },
        "first_outside(index, count, rows): the place of the first number of index outside [0, rows); count if none");

    {
        typedef Materialize A;
        Function<A>::add_to(m, "materialize", &Operations::materialize, {SLT_FIELD(source), SLT_FIELD(mask),
            SLT_FIELD(out)});
    }
    {
        typedef LinearForward A;
        Function<A>::add_to(m, "linear_forward", &Operations::linear_forward, {SLT_FIELD(source), SLT_FIELD(mask),
            SLT_FIELD(signs), SLT_FIELD(x), SLT_FIELD(batch), SLT_FIELD(scale), SLT_FIELD(bias), SLT_FIELD(y),
            SLT_FIELD(digits)});
    }
    {
        typedef LinearGradInput A;
        Function<A>::add_to(m, "linear_grad_input", &Operations::linear_grad_input, {SLT_FIELD(source),
            SLT_FIELD(mask), SLT_FIELD(dy), SLT_FIELD(batch), SLT_FIELD(scale), SLT_FIELD(dx), SLT_FIELD(digits)});
    }
    {
        typedef Conv2dForward A;
        Function<A>::add_to(m, "conv2d_forward", &Operations::conv2d_forward, {SLT_FIELD(source), SLT_FIELD(window),
            SLT_FIELD(mask), SLT_FIELD(x), SLT_FIELD(scale), SLT_FIELD(bias), SLT_FIELD(y), SLT_FIELD(digits)});
    }
    {
        typedef Conv2dGradInput A;
        Function<A>::add_to(m, "conv2d_grad_input", &Operations::conv2d_grad_input, {SLT_FIELD(source),
            SLT_FIELD(window), SLT_FIELD(mask), SLT_FIELD(dy), SLT_FIELD(scale), SLT_FIELD(dx), SLT_FIELD(digits)});
    }
    {
        typedef GradScores A;
        Function<A>::add_to(m, "grad_scores", &Operations::grad_scores, {SLT_FIELD(source), SLT_FIELD(window),
            SLT_FIELD(dy), SLT_FIELD(x), SLT_FIELD(scores), SLT_FIELD(scale), SLT_FIELD(offsets), SLT_FIELD(out),
            SLT_FIELD(digits)});
    }
    {
        typedef EmbeddingForward A;
        Function<A>::add_to(m, "embedding_forward", &Operations::embedding_forward, {SLT_FIELD(source),
            SLT_FIELD(mask), SLT_FIELD(offsets), SLT_FIELD(index), SLT_FIELD(count), SLT_FIELD(scale), SLT_FIELD(y)});
    }
    {
        typedef EmbeddingGradScores A;
        Function<A>::add_to(m, "embedding_grad_scores", &Operations::embedding_grad_scores, {SLT_FIELD(source),
            SLT_FIELD(index), SLT_FIELD(count), SLT_FIELD(starts), SLT_FIELD(order), SLT_FIELD(dy), SLT_FIELD(scores),
            SLT_FIELD(scale), SLT_FIELD(offsets), SLT_FIELD(out)});
    }
    {
        typedef CountFrozen A;
        Function<A>::add_to(m, "count_frozen", &Operations::count_frozen, {SLT_FIELD(source), SLT_FIELD(offsets),
            SLT_FIELD(locked)});
    }
    {
        typedef Expand A;
        Function<A>::add_to(m, "expand", &Operations::expand, {SLT_FIELD(source), SLT_FIELD(compact),
            SLT_FIELD(offsets), SLT_FIELD(out)});
    }
    {
        typedef Pack A;
        Function<A>::add_to(m, "pack", &Operations::pack, {SLT_FIELD(source), SLT_FIELD(scores), SLT_FIELD(threshold),
            SLT_FIELD(offsets), SLT_FIELD(locked), SLT_FIELD(compact), SLT_FIELD(out), SLT_FIELD(kept)});
    }
    m.def(
        "select",
        [](const std::vector<Pointer> &scores, const std::vector<int64_t> &counts, int64_t rank, Pointer out,
           int threads) {
            if (scores.size() != counts.size()) throw std::invalid_argument("select takes one count for each tensor");
            std::vector<const uint32_t *> tensors;
            for (const Pointer p : scores) tensors.push_back(reinterpret_cast<const uint32_t *>(p));
            const Select arguments = {.scores = tensors.data(),
                                      .counts = counts.data(),
                                      .tensors = int64_t(tensors.size()),
                                      .rank = rank,
                                      .out = reinterpret_cast<uint32_t *>(out)};
            py::gil_scoped_release unlocked;
            run(&Operations::select, arguments, threads);
        },
        py::kw_only(), py::arg("scores"), py::arg("counts"), py::arg("rank"), py::arg("out"), py::arg("threads"));

    py::class_<LinearPlan>(m, "LinearPlan", "linear_forward of one layer, prepared. The tensors must outlive it.")
        .def(py::init<py::tuple, Pointer, Pointer, Pointer, Pointer>(), py::kw_only(), py::arg("source"),
             py::arg("mask"), py::arg("signs"), py::arg("scale"), py::arg("bias"))
        .def("forward", &LinearPlan::forward, "forward(x, batch, y, type, digits, threads): y from x, by pointers");
}
