// Direct convolution, for outputs that few weights reach: depthwise ones, and those of few channels.
//
// Sums are exact in fixed point: int32 holds the sum of up to 256 signed integers of 24 bits, and double holds any sum.
// 16-bit inputs are added in float, in the order of the terms, or in fixed point where that is faster
// (direct_outputs.h); the product with a weight is exact.
#pragma once

#include "cpu/conv/direct_lanes.h"
#include "cpu/conv/direct_planes.h"
#include "cpu/conv/direct_outputs.h"

namespace slt::SLT_ISA {
namespace {

// The most weights that the outputs of a group may have, unless each has one input: with more, a product of vectors is
// faster. Matrix units are faster much earlier, in bfloat16 at once.
inline int64_t most_direct_weights(const Direct &d, [[maybe_unused]] int64_t weight) {
#if defined(SLT_AMX)
    return d.x.data.type == Type::BFLOAT16 && d.y.data.type == Type::BFLOAT16 ? 1 << 10 : 9 << 10;
#else
#if defined(__AVX512VNNI__)
    // With strides, lanes that are pixels must be gathered one by one. Lanes that are outputs need sums that fit an
    // int32: short sums, or X of one or two digits.
    const bool pairs = d.digits < 3 && weight == SIGNED_CONSTANT && 2 * d.outputs >= LANES;
    if (d.x.channels_last && d.stride_w > 1) return (pairs ? 40 : 12) << 10;
    if (d.stride_w > 1 && d.most_taps() > 1) return d.x.data.type == Type::FLOAT32 ? 8 << 10 : 4 << 10;
#endif
    // Vectors of few channels are short products, which take more time for their outputs than for their sums.
    const bool short_vectors = d.most_taps() == 1 && d.inputs <= 96 && !d.x.channels_last && weight == SIGNED_CONSTANT;
    return short_vectors ? 40 << 10 : 18 << 10;
#endif
}

// Whether it is faster than a product of vectors. `weight`: the distribution.
inline bool direct_pays(const Direct &d, int64_t weight) {
    if (greatest(d.stride_h, d.stride_w) > ChannelPlanes::MOST_STRIDE) return false;
    const int64_t weights = d.outputs * d.inputs * d.most_taps();
    if (d.inputs > 1 && (weights > most_direct_weights(d, weight) || d.x.pixels() < 2 * LANES)) return false;
    const ChannelPlanes planes = planes_of(d);
    return planes.pays() && planes.size(1) * planes.count * d.inputs * int64_t(sizeof(double)) <= 2 * DIRECT_BYTES;
}

// Whether lanes that are channels are faster than lanes that are pixels: pixels would be transposed, fill few lanes, or
// be read or written in strides.
inline bool channel_lanes_pay(const Direct &d) {
    return d.x.channels_last || d.x.width < LANES || d.stride_w > 1 || d.step_w > 1;
}

// Computes a depthwise layer whose lanes are channels, if that is faster; returns whether it did.
template <class T>
bool run_depthwise(const Direct &d, const Weights &weights) {
    if (!channel_lanes_pay(d)) return false;
    DepthwiseLanes<T> lanes(d);
    if (!lanes.pays()) return false;
    lanes.run(weights);
    return true;
}

// Computes a layer whose lanes are outputs, if that is faster; returns whether it did.
template <class T>
bool run_outputs(const Direct &d, const int8_t *values) {
    DirectOutputs<T> outputs(d);
    if (!outputs.suits()) return false;
    outputs.run(values);
    return true;
}

// `mask`: resolved words.
inline void direct_convolution(const Direct &d, const Source &s, const uint32_t *mask) {
    const Weights weights(s, mask);
    const bool signs = s.weight == SIGNED_CONSTANT, narrow = d.x.data.type != Type::FLOAT32 && d.digits != 1;
    const bool exact = signs && small_sums(d.most_taps(), s.weight, d.digits);
    if (d.inputs == 1 && d.outputs == 1 && (narrow || exact)) {
        if (narrow ? run_depthwise<float>(d, weights) : run_depthwise<int32_t>(d, weights)) return;
    }
    Scratch<int8_t> values(s.rows * s.fan);
    parallel_for(d.threads, ceil_div(s.rows, LANES),
                 [&](int64_t piece) { materialize_rows(weights, piece * LANES, values); });
    const bool small = small_sums(d.inputs * d.most_taps(), s.weight, d.digits);
    if (PAIRS_OF_INPUTS && d.digits < 3 && small) {
        if (run_outputs<int16_t>(d, values)) return;
    } else if (narrow ? run_outputs<float>(d, values) : signs && small && run_outputs<int32_t>(d, values)) {
        return;
    }
    if (narrow)
        run_direct<float>(d, values);
    else if (!signs || !run_direct<int32_t>(d, values))
        run_direct<double>(d, values);
}

}  // namespace
}  // namespace slt::SLT_ISA
