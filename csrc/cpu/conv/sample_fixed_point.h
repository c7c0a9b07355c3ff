// The fixed point of images: each sample has its own power of two.
#pragma once

#include "cpu/gemm/fixed_point.h"
#include "cpu/machine/parallel.h"

namespace slt::SLT_ISA {
namespace {

// The largest |x| of rows [first, end) of a sample, as bits of a float32.
inline uint32_t largest_of_rows(const Images &x, int64_t sample, int64_t first, int64_t end) {
    const Input in = x.data + sample * x.channels * x.pixels();
    if (x.channels_last || end - first == x.height) {
        const int64_t row = x.width * x.channels;
        return largest_bits(in + first * row, (end - first) * row);
    }
    uint32_t most = 0;
    for (int64_t c = 0; c < x.channels; ++c) {
        const uint32_t found = largest_bits(in + c * x.pixels() + first * x.width, (end - first) * x.width);
        most = found > most ? found : most;
    }
    return most;
}

// Writes the fixed point of each sample.
inline void fixed_points(const Images &x, int digits, int threads, FixedPoint *out) {
    parallel_for(threads, x.samples,
                 [&](int64_t i) { out[i] = point_of(largest_of_rows(x, i, 0, x.height), digits); });
}

}  // namespace
}  // namespace slt::SLT_ISA
