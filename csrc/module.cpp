// The extension module: runs operations on raw pointers. Arguments are bound by name, each to the member of that name,
// so that two pointers cannot be swapped; a positional call or a missing name raises TypeError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/machine/float_control.h"

namespace py = pybind11;

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
    (chosen.operations->*operation)(arguments, threads);
}

// What Python passes for a member of type T, and its value.
template <class T>
struct Passed {
    typedef T Type;
    static T value(T v) { return v; }
};

template <class T>
struct Passed<T *> {
    typedef Pointer Type;
    static T *value(Pointer p) { return reinterpret_cast<T *>(p); }
};

// The scale is passed as a pointer: a Python float would become 0 where the thread flushes denormal numbers.
template <>
struct Passed<float> {
    typedef Pointer Type;
    static float value(Pointer p) { return *reinterpret_cast<const float *>(p); }
};

template <>
struct Passed<Source> {
    typedef std::array<int64_t, 10> Type;
    static Source value(const Type &v) { return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9]}; }
};

template <>
struct Passed<Window> {
    typedef std::array<int64_t, 9> Type;
    static Window value(const Type &v) { return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]}; }
};

template <class Byte>
struct Passed<Numbers<Byte>> {
    typedef std::pair<Pointer, int> Type;  // and the element type
    static Numbers<Byte> value(const Type &v) { return {reinterpret_cast<Byte *>(v.first), slt::Type(v.second)}; }
};

template <class Byte>
struct Passed<ImagesOf<Byte>> {
    // Elements; samples, channels, height, width, channels_last.
    typedef std::pair<typename Passed<Numbers<Byte>>::Type, std::array<int64_t, 5>> Type;
    static ImagesOf<Byte> value(const Type &v) {
        const auto &[samples, channels, height, width, last] = v.second;
        const bool channels_last = last || height * width == 1;  // images of one pixel are channels-last in both formats
        return {Passed<Numbers<Byte>>::value(v.first), samples, channels, height, width, channels_last};
    }
};

template <class Arguments, class T>
struct Field {
    const char *name;
    T Arguments::*member;
};

#define SLT_FIELD(member) Field<A, decltype(A::member)>{#member, &A::member}

// Binds an operation to a function of its fields and `threads`.
template <class Arguments, class... T>
void bind(py::module_ &m, const char *name, Operation<Arguments> operation, Field<Arguments, T>... fields) {
    m.def(
        name,
        [operation, fields...](typename Passed<T>::Type... values, int threads) {
            Arguments arguments{};
            ((arguments.*fields.member = Passed<T>::value(values)), ...);
            py::gil_scoped_release unlocked;
            run(operation, arguments, threads);
        },
        py::kw_only(), py::arg(fields.name)..., py::arg("threads"));
}

// linear_forward with the arguments that stay the same from call to call.
class LinearPlan {
  public:
    LinearPlan(const Passed<Source>::Type &source, Pointer mask, Pointer scale, Pointer bias)
        : arguments{.source = Passed<Source>::value(source),
                    .mask = Passed<const uint32_t *>::value(mask),
                    .x = {},
                    .batch = 0,
                    .scale = 0,
                    .bias = Passed<const float *>::value(bias),
                    .y = {},
                    .digits = 0},
          scale(scale) {}

    // `type`: of x and y. The scale is read at every call.
    void forward(Pointer x, int64_t batch, Pointer y, int type, int digits, int threads) const {
        LinearForward a = arguments;
        a.x = Passed<Input>::value({x, type});
        a.batch = batch;
        a.scale = Passed<float>::value(scale);
        a.y = Passed<Result>::value({y, type});
        a.digits = digits;
        if (a.source.rows * a.source.fan * batch < LOCKED_WEIGHTS) {
            run(&Operations::linear_forward, a, threads);
        } else {
            py::gil_scoped_release unlocked;
            run(&Operations::linear_forward, a, threads);
        }
    }

  private:
    // A product of fewer weights times vectors keeps the interpreter's lock. Releasing it and taking it again costs 0.1 us,
    // and other threads must expect to wait for the lock anyway: the interpreter's switch interval is 5 ms.
    static constexpr int64_t LOCKED_WEIGHTS = 1 << 16;

    const LinearForward arguments;
    const Pointer scale;
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
    m.def("instruction_set", [] { return std::string(chosen.name); });

    {
        typedef Materialize A;
        bind(m, "materialize", &Operations::materialize, SLT_FIELD(source), SLT_FIELD(mask), SLT_FIELD(out));
    }
    {
        typedef LinearForward A;
        bind(m, "linear_forward", &Operations::linear_forward, SLT_FIELD(source), SLT_FIELD(mask), SLT_FIELD(x),
             SLT_FIELD(batch), SLT_FIELD(scale), SLT_FIELD(bias), SLT_FIELD(y), SLT_FIELD(digits));
    }
    {
        typedef LinearGradInput A;
        bind(m, "linear_grad_input", &Operations::linear_grad_input, SLT_FIELD(source), SLT_FIELD(mask),
             SLT_FIELD(dy), SLT_FIELD(batch), SLT_FIELD(scale), SLT_FIELD(dx), SLT_FIELD(digits));
    }
    {
        typedef Conv2dForward A;
        bind(m, "conv2d_forward", &Operations::conv2d_forward, SLT_FIELD(source), SLT_FIELD(window), SLT_FIELD(mask),
             SLT_FIELD(x), SLT_FIELD(scale), SLT_FIELD(bias), SLT_FIELD(y), SLT_FIELD(digits));
    }
    {
        typedef Conv2dGradInput A;
        bind(m, "conv2d_grad_input", &Operations::conv2d_grad_input, SLT_FIELD(source), SLT_FIELD(window),
             SLT_FIELD(mask), SLT_FIELD(dy), SLT_FIELD(scale), SLT_FIELD(dx), SLT_FIELD(digits));
    }
    {
        typedef GradScores A;
        bind(m, "grad_scores", &Operations::grad_scores, SLT_FIELD(source), SLT_FIELD(window), SLT_FIELD(dy),
             SLT_FIELD(x), SLT_FIELD(scores), SLT_FIELD(scale), SLT_FIELD(offsets), SLT_FIELD(out),
             SLT_FIELD(digits));
    }
    {
        typedef EmbeddingForward A;
        bind(m, "embedding_forward", &Operations::embedding_forward, SLT_FIELD(source), SLT_FIELD(mask),
             SLT_FIELD(offsets), SLT_FIELD(index), SLT_FIELD(count), SLT_FIELD(scale), SLT_FIELD(y));
    }
    {
        typedef EmbeddingGradScores A;
        bind(m, "embedding_grad_scores", &Operations::embedding_grad_scores, SLT_FIELD(source), SLT_FIELD(index),
             SLT_FIELD(count), SLT_FIELD(starts), SLT_FIELD(order), SLT_FIELD(dy), SLT_FIELD(scores),
             SLT_FIELD(scale), SLT_FIELD(offsets), SLT_FIELD(out));
    }
    {
        typedef CountFrozen A;
        bind(m, "count_frozen", &Operations::count_frozen, SLT_FIELD(source), SLT_FIELD(offsets), SLT_FIELD(locked));
    }
    {
        typedef Expand A;
        bind(m, "expand", &Operations::expand, SLT_FIELD(source), SLT_FIELD(compact), SLT_FIELD(offsets),
             SLT_FIELD(out));
    }
    {
        typedef Pack A;
        bind(m, "pack", &Operations::pack, SLT_FIELD(source), SLT_FIELD(scores), SLT_FIELD(threshold),
             SLT_FIELD(offsets), SLT_FIELD(locked), SLT_FIELD(compact), SLT_FIELD(out), SLT_FIELD(kept));
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
        .def(py::init<const Passed<Source>::Type &, Pointer, Pointer, Pointer>(), py::kw_only(), py::arg("source"),
             py::arg("mask"), py::arg("scale"), py::arg("bias"))
        .def("forward", &LinearPlan::forward, "forward(x, batch, y, type, digits, threads): y from x, by pointers");
}
