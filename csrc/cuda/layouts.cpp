#include "cuda/layouts.h"

#include <utility>

#include "cuda/arguments.h"
#include "python_arguments.h"

namespace slt {

// A `Source`.
template <>
struct From<cuda::Generator> {
    static cuda::Generator python(PyObject *v) {
        const Source source = From<Source>::python(v);
        return PyErr_Occurred() ? cuda::Generator{} : cuda::generator_of(source);
    }
};

// Height and width of the input, those of the output, and a `Window`.
template <>
struct From<cuda::Image> {
    static cuda::Image python(PyObject *v) {
        const auto at = [v](int i) { return item<int32_t>(v, i); };
        const Window window = item<Window>(v, 4);
        return PyErr_Occurred() ? cuda::Image{} : cuda::image_of(at(0), at(1), at(2), at(3), window);
    }
};

// A positive number below 2^31.
template <>
struct From<cuda::Divisor> {
    static cuda::Divisor python(PyObject *v) { return cuda::divisor(uint32_t(PyLong_AsLongLong(v))); }
};

// The address and the number of scores of each tensor, one after the other.
template <>
struct From<cuda::ScoreTensors> {
    static cuda::ScoreTensors python(PyObject *v) {
        cuda::ScoreTensors all{};
        const Py_ssize_t tensors = PyTuple_Check(v) ? PyTuple_GET_SIZE(v) / 2 : 0;
        if (tensors < 1 || tensors > all.MOST) {
            PyErr_SetString(PyExc_TypeError, "expected a tuple of the addresses and sizes of some tensors");
            return all;
        }
        all.tensors = int32_t(tensors);
        for (Py_ssize_t t = 0; t < tensors; ++t) {
            all.scores[t] = item<const uint32_t *>(v, 2 * t);
            all.counts[t] = item<int64_t>(v, 2 * t + 1);
            all.first_piece[t + 1] = all.first_piece[t] + uint32_t(ceil_div(all.counts[t], all.PIECE));
        }
        return all;
    }
};

}  // namespace slt

namespace slt::cuda {

namespace {

template <class Arguments, auto member>
Field field(const char *name) {
    static const Arguments arguments{};
    const auto *at = reinterpret_cast<const char *>(&(arguments.*member));
    return {name, size_t(at - reinterpret_cast<const char *>(&arguments)), sizeof(arguments.*member),
            [](char *to, PyObject *value) { set<Arguments, member>(*reinterpret_cast<Arguments *>(to), value); }};
}

#define SLT_FIELD(member) field<A, &A::member>(#member)

template <class A>
Layout layout(const char *name, std::vector<Field> fields) {
    return {name, sizeof(A), std::move(fields)};
}

}  // namespace

const std::vector<Layout> &layouts() {
    static const std::vector<Layout> all = [] {
        std::vector<Layout> all;
        {
            typedef Clear A;
            all.push_back(layout<A>("Clear", {SLT_FIELD(words), SLT_FIELD(count)}));
        }
        {
            typedef CountFree A;
            all.push_back(layout<A>("CountFree", {SLT_FIELD(generator), SLT_FIELD(free), SLT_FIELD(locked),
                SLT_FIELD(call_starts), SLT_FIELD(lanes)}));
        }
        {
            typedef Expand A;
            all.push_back(layout<A>("Expand", {SLT_FIELD(generator), SLT_FIELD(segment_starts), SLT_FIELD(call_starts),
                SLT_FIELD(mask), SLT_FIELD(out)}));
        }
        {
            typedef Materialize A;
            all.push_back(layout<A>("Materialize", {SLT_FIELD(generator), SLT_FIELD(segment_starts),
                SLT_FIELD(call_starts), SLT_FIELD(mask), SLT_FIELD(compact), SLT_FIELD(out)}));
        }
        {
            typedef PackCompact A;
            all.push_back(layout<A>("PackCompact", {SLT_FIELD(scores), SLT_FIELD(threshold), SLT_FIELD(count),
                SLT_FIELD(mask), SLT_FIELD(locked), SLT_FIELD(kept)}));
        }
        {
            typedef PackResolved A;
            all.push_back(layout<A>("PackResolved", {SLT_FIELD(generator), SLT_FIELD(segment_starts),
                SLT_FIELD(call_starts), SLT_FIELD(scores), SLT_FIELD(threshold), SLT_FIELD(mask), SLT_FIELD(kept)}));
        }
        {
            typedef Select A;
            all.push_back(layout<A>("Select", {SLT_FIELD(tensors), SLT_FIELD(blocks), SLT_FIELD(rank), SLT_FIELD(state),
                SLT_FIELD(out)}));
        }
        {
            typedef EmbeddingForward A;
            all.push_back(layout<A>("EmbeddingForward", {SLT_FIELD(generator), SLT_FIELD(segment_starts),
                SLT_FIELD(call_starts), SLT_FIELD(index), SLT_FIELD(mask), SLT_FIELD(compact), SLT_FIELD(scale),
                SLT_FIELD(y), SLT_FIELD(type), SLT_FIELD(count)}));
        }
        {
            typedef EmbeddingGradScores A;
            all.push_back(layout<A>("EmbeddingGradScores", {SLT_FIELD(generator), SLT_FIELD(segment_starts),
                SLT_FIELD(call_starts), SLT_FIELD(index), SLT_FIELD(order), SLT_FIELD(dy), SLT_FIELD(type),
                SLT_FIELD(scores), SLT_FIELD(scale), SLT_FIELD(parts), SLT_FIELD(out), SLT_FIELD(count)}));
        }
        {
            typedef ForwardSmall A;
            all.push_back(layout<A>("ForwardSmall", {SLT_FIELD(generator), SLT_FIELD(segment_starts),
                SLT_FIELD(call_starts), SLT_FIELD(mask), SLT_FIELD(x), SLT_FIELD(scale), SLT_FIELD(bias),
                SLT_FIELD(y), SLT_FIELD(eight_rows), SLT_FIELD(batch), SLT_FIELD(pitch), SLT_FIELD(element),
                SLT_FIELD(digits), SLT_FIELD(aligned_words), SLT_FIELD(tiles_log), SLT_FIELD(cluster_log),
                SLT_FIELD(steps), SLT_FIELD(block_steps), SLT_FIELD(chunk_steps), SLT_FIELD(sums_at)}));
        }
        {
            typedef GradScores A;
            all.push_back(layout<A>("GradScores", {SLT_FIELD(generator), SLT_FIELD(image), SLT_FIELD(segment_starts),
                SLT_FIELD(call_starts), SLT_FIELD(dy), SLT_FIELD(x), SLT_FIELD(scores), SLT_FIELD(scale),
                SLT_FIELD(parts), SLT_FIELD(out), SLT_FIELD(free), SLT_FIELD(columns), SLT_FIELD(part_columns),
                SLT_FIELD(column_parts), SLT_FIELD(dy_pitch), SLT_FIELD(x_pitch), SLT_FIELD(group_rows),
                SLT_FIELD(group_channels), SLT_FIELD(row_tiles), SLT_FIELD(planes)}));
        }
        {
            typedef Digits A;
            all.push_back(layout<A>("Digits", {SLT_FIELD(x), SLT_FIELD(largest), SLT_FIELD(digits), SLT_FIELD(power),
                SLT_FIELD(length), SLT_FIELD(pitch), SLT_FIELD(plane), SLT_FIELD(pieces), SLT_FIELD(element),
                SLT_FIELD(planes), SLT_FIELD(aligned)}));
        }
        {
            typedef Product A;
            all.push_back(layout<A>("Product", {SLT_FIELD(generator), SLT_FIELD(segment_starts), SLT_FIELD(call_starts),
                SLT_FIELD(mask), SLT_FIELD(x), SLT_FIELD(power), SLT_FIELD(scale), SLT_FIELD(bias), SLT_FIELD(y),
                SLT_FIELD(sums), SLT_FIELD(mask_words), SLT_FIELD(plane), SLT_FIELD(image_pitch), SLT_FIELD(y_row),
                SLT_FIELD(y_pixel), SLT_FIELD(y_image), SLT_FIELD(pixels), SLT_FIELD(out_width),
                SLT_FIELD(group_channels), SLT_FIELD(kernel_w), SLT_FIELD(columns), SLT_FIELD(group_rows),
                SLT_FIELD(row_tiles), SLT_FIELD(column_tiles), SLT_FIELD(tiles), SLT_FIELD(parts),
                SLT_FIELD(part_calls), SLT_FIELD(depth), SLT_FIELD(kernel_h), SLT_FIELD(height), SLT_FIELD(width),
                SLT_FIELD(pitch), SLT_FIELD(stride_h), SLT_FIELD(stride_w), SLT_FIELD(padding_h),
                SLT_FIELD(padding_w), SLT_FIELD(dilation_h), SLT_FIELD(dilation_w), SLT_FIELD(load),
                SLT_FIELD(element), SLT_FIELD(aligned_words), SLT_FIELD(stages)}));
        }
        {
            typedef GradInput A;
            all.push_back(layout<A>("GradInput", {SLT_FIELD(generator), SLT_FIELD(mask), SLT_FIELD(dy),
                SLT_FIELD(power), SLT_FIELD(scale), SLT_FIELD(dx), SLT_FIELD(sums), SLT_FIELD(plane),
                SLT_FIELD(image_pitch), SLT_FIELD(dx_channel), SLT_FIELD(dx_pixel), SLT_FIELD(dx_image),
                SLT_FIELD(pixels), SLT_FIELD(width), SLT_FIELD(rows), SLT_FIELD(kernel_w), SLT_FIELD(stride_h),
                SLT_FIELD(stride_w), SLT_FIELD(columns), SLT_FIELD(channels), SLT_FIELD(all_channels),
                SLT_FIELD(channel_tiles), SLT_FIELD(column_tiles), SLT_FIELD(parts), SLT_FIELD(part_steps),
                SLT_FIELD(summands), SLT_FIELD(lead), SLT_FIELD(out_height), SLT_FIELD(out_width), SLT_FIELD(pitch),
                SLT_FIELD(padding_h), SLT_FIELD(padding_w), SLT_FIELD(dilation_h), SLT_FIELD(dilation_w),
                SLT_FIELD(copy), SLT_FIELD(whole_calls), SLT_FIELD(aligned_words), SLT_FIELD(element), SLT_FIELD(quads),
                SLT_FIELD(stages), SLT_FIELD(tiles)}));
        }
        {
            typedef Depthwise A;
            all.push_back(layout<A>("Depthwise", {SLT_FIELD(generator), SLT_FIELD(mask), SLT_FIELD(in),
                SLT_FIELD(largest), SLT_FIELD(scale), SLT_FIELD(bias), SLT_FIELD(out), SLT_FIELD(in_image),
                SLT_FIELD(out_image), SLT_FIELD(in_channel), SLT_FIELD(in_pixel), SLT_FIELD(out_channel),
                SLT_FIELD(out_pixel), SLT_FIELD(channels_last), SLT_FIELD(reverse), SLT_FIELD(digits),
                SLT_FIELD(pieces), SLT_FIELD(images), SLT_FIELD(block_images), SLT_FIELD(groups),
                SLT_FIELD(block_groups), SLT_FIELD(group_blocks), SLT_FIELD(tiles_h), SLT_FIELD(tiles_w),
                SLT_FIELD(fan), SLT_FIELD(group_rows), SLT_FIELD(group_channels), SLT_FIELD(group_out),
                SLT_FIELD(group_in), SLT_FIELD(in_height), SLT_FIELD(in_width), SLT_FIELD(out_height),
                SLT_FIELD(out_width), SLT_FIELD(kernel_h), SLT_FIELD(kernel_w), SLT_FIELD(stride_h),
                SLT_FIELD(stride_w), SLT_FIELD(padding_h), SLT_FIELD(padding_w), SLT_FIELD(dilation_h),
                SLT_FIELD(dilation_w), SLT_FIELD(up_h), SLT_FIELD(up_w), SLT_FIELD(tile_h), SLT_FIELD(tile_w),
                SLT_FIELD(tile_pixels), SLT_FIELD(tile_row), SLT_FIELD(every), SLT_FIELD(spacing), SLT_FIELD(apart),
                SLT_FIELD(in_lanes_log), SLT_FIELD(out_lanes_log)}));
        }
        return all;
    }();
    return all;
}

}  // namespace slt::cuda
