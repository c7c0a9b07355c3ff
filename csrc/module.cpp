// The extension module: pointers, sizes and a thread count go in, nothing comes out, and nothing is decided here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/machine/float_control.h"
#include "operations.h"

namespace py = pybind11;

namespace {

using namespace slt;
using SourceArray = std::array<int64_t, 10>;
using WindowArray = std::array<int64_t, 9>;
using Pointer = uintptr_t;

InstructionSet chosen;  // by use_instruction_set

Source source_of(const SourceArray &v) { return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9]}; }
Window window_of(const WindowArray &v) { return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]}; }

template <class T>
T *at(Pointer p) {
    return reinterpret_cast<T *>(p);
}

// A scale stays where it is: on the way through a Python float, a thread without denormal numbers makes one 0.
float float_at(Pointer p) { return *at<const float>(p); }

using Tensor = std::pair<Pointer, int>;  // and its type
Input input_of(const Tensor &v) { return {at<const char>(v.first), Type(v.second)}; }
Result result_of(const Tensor &v) { return {at<char>(v.first), Type(v.second)}; }

using Sizes = std::array<int64_t, 5>;  // of images: samples, channels, height, width, whether channels are last
template <class Byte>
ImagesOf<Byte> images_of(const Numbers<Byte> &data, const Sizes &v) {
    const bool one_pixel = v[2] * v[3] == 1;  // then both formats are the same, and the channels do follow each other
    return {data, v[0], v[1], v[2], v[3], v[4] != 0 || one_pixel};
}

// Runs an operation of the chosen instruction set without the interpreter's lock. Threads that it starts inherit its
// floating-point control.
template <class Arguments>
void run(void (*Operations::*operation)(const Arguments &), const Arguments &arguments) {
    const Operations *operations = chosen.operations;
    py::gil_scoped_release unlocked;
    const DefaultFloatControl control;
    (operations->*operation)(arguments);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of slt_kernels: functions over raw pointers, for slt_kernels.backends.cpu alone.";

    m.def("instruction_sets", [] {
        InstructionSet sets[8];
        std::vector<std::string> names;
        for (int i = 0, n = instruction_sets(sets); i < n; ++i) names.emplace_back(sets[i].name);
        return names;
    });
    m.def("use_instruction_set", [](const std::string &name) {
        InstructionSet sets[8];
        for (int i = 0, n = instruction_sets(sets); i < n; ++i)
            if (name == sets[i].name) {
                chosen = sets[i];
                return;
            }
        throw std::invalid_argument("instruction set '" + name + "' does not run here");
    });
    m.def("instruction_set", [] { return std::string(chosen.name); });

    InstructionSet sets[8];
    chosen = sets[instruction_sets(sets) - 1];

    m.def("materialize", [](const SourceArray &source, Pointer mask, Pointer out, int threads) {
        run(&Operations::materialize, {source_of(source), at<const uint32_t>(mask), at<int8_t>(out), threads});
    });
    m.def("linear_forward", [](const SourceArray &source, Pointer mask, const Tensor &x, int64_t batch, Pointer scale,
                               Pointer bias, const Tensor &y, int bytes, int threads) {
        run(&Operations::linear_forward, {source_of(source), at<const uint32_t>(mask), input_of(x), batch,
                                          float_at(scale), at<const float>(bias), result_of(y), bytes, threads});
    });
    m.def("linear_grad_input", [](const SourceArray &source, Pointer mask, const Tensor &dy, int64_t batch, Pointer scale,
                                  const Tensor &dx, int bytes, int threads) {
        run(&Operations::linear_grad_input, {source_of(source), at<const uint32_t>(mask), input_of(dy), batch,
                                             float_at(scale), result_of(dx), bytes, threads});
    });
    m.def("conv2d_forward", [](const SourceArray &source, const WindowArray &window, Pointer mask, const Tensor &x,
                               const Sizes &x_sizes, Pointer scale, Pointer bias, const Tensor &y, const Sizes &y_sizes,
                               int bytes, int threads) {
        run(&Operations::conv2d_forward,
            {source_of(source), window_of(window), at<const uint32_t>(mask), images_of(input_of(x), x_sizes),
             float_at(scale), at<const float>(bias), images_of(result_of(y), y_sizes), bytes, threads});
    });
    m.def("conv2d_grad_input", [](const SourceArray &source, const WindowArray &window, Pointer mask, const Tensor &dy,
                                  const Sizes &dy_sizes, Pointer scale, const Tensor &dx, const Sizes &dx_sizes,
                                  int bytes, int threads) {
        run(&Operations::conv2d_grad_input,
            {source_of(source), window_of(window), at<const uint32_t>(mask), images_of(input_of(dy), dy_sizes),
             float_at(scale), images_of(result_of(dx), dx_sizes), bytes, threads});
    });
    m.def("grad_scores", [](const SourceArray &source, const WindowArray &window, const Tensor &dy, const Sizes &dy_sizes,
                            const Tensor &x, const Sizes &x_sizes, Pointer scores, Pointer scale, Pointer offsets, Pointer out,
                            int bytes, int threads) {
        run(&Operations::grad_scores,
            {source_of(source), window_of(window), images_of(input_of(dy), dy_sizes), images_of(input_of(x), x_sizes),
             at<const float>(scores), float_at(scale), at<const int64_t>(offsets), at<float>(out), bytes, threads});
    });
    m.def("embedding_forward", [](const SourceArray &source, Pointer mask, Pointer offsets, Pointer index,
                                  int64_t count, Pointer scale, const Tensor &y, int threads) {
        run(&Operations::embedding_forward,
            {source_of(source), at<const uint32_t>(mask), at<const int64_t>(offsets), at<const int64_t>(index), count,
             float_at(scale), result_of(y), threads});
    });
    m.def("embedding_grad_scores", [](const SourceArray &source, Pointer index, int64_t count, Pointer starts,
                                      Pointer order, const Tensor &dy, Pointer scores, Pointer scale, Pointer offsets,
                                      Pointer out, int threads) {
        run(&Operations::embedding_grad_scores,
            {source_of(source), at<const int64_t>(index), count, at<const int64_t>(starts), at<const int64_t>(order),
             input_of(dy), at<const float>(scores), float_at(scale), at<const int64_t>(offsets), at<float>(out), threads});
    });
    m.def("count_frozen", [](const SourceArray &source, Pointer offsets, Pointer locked, int threads) {
        run(&Operations::count_frozen, {source_of(source), at<int64_t>(offsets), at<int64_t>(locked), threads});
    });
    m.def("expand", [](const SourceArray &source, Pointer compact, Pointer offsets, Pointer out, int threads) {
        run(&Operations::expand, {source_of(source), at<const uint32_t>(compact), at<const int64_t>(offsets),
                                  at<uint32_t>(out), threads});
    });
    m.def("select", [](const std::vector<Pointer> &scores, const std::vector<int64_t> &counts, int64_t rank, Pointer out,
                       int threads) {
        std::vector<const uint32_t *> tensors;
        for (const Pointer p : scores) tensors.push_back(at<const uint32_t>(p));
        run(&Operations::select,
            {tensors.data(), counts.data(), int64_t(tensors.size()), rank, at<uint32_t>(out), threads});
    });
    m.def("pack", [](const SourceArray &source, Pointer scores, uint32_t threshold, Pointer offsets, int64_t locked,
                     bool compact, Pointer out, Pointer kept, int threads) {
        run(&Operations::pack, {source_of(source), at<const uint32_t>(scores), threshold, at<const int64_t>(offsets),
                                locked, compact, at<uint32_t>(out), at<int64_t>(kept), threads});
    });
}
