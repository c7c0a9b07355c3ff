// The fixed point of images: each sample has its own power of two.
#pragma once

#include "cpu/gemm/fixed_point.h"
#include "cpu/machine/parallel.h"
#include "cpu/machine/scratch.h"

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

inline FixedPoint fixed_point_of(const Images &x, int64_t sample, int digits) {
    return point_of(largest_of_rows(x, sample, 0, x.height), digits);
}

// Writes the fixed point of each sample.
inline void fixed_points(const Images &x, int digits, int threads, FixedPoint *out) {
    constexpr int64_t least_part = 1 << 12;  // numbers: shorter ones take less time than threads need to start
    const int64_t numbers = x.channels * x.pixels();
    const int64_t wanted = threads == 1 || x.samples >= 2 * threads ? 1 : ceil_div(2 * threads, greatest(x.samples, 1));
    const int64_t part = greatest(ceil_div(numbers, wanted), least_part), parts = ceil_div(numbers, part);
    const Scratch<uint32_t> largest(x.samples * parts);
    parallel_for(threads, x.samples * parts, [&](int64_t piece) {
        const int64_t first = piece % parts * part;
        largest[piece] = largest_bits(x.data + (piece / parts * numbers + first), least(part, numbers - first));
    });
    for (int64_t i = 0; i < x.samples; ++i) {
        uint32_t most = 0;
        for (int64_t p = 0; p < parts; ++p) most = greatest(most, largest[i * parts + p]);
        out[i] = point_of(most, digits);
    }
}

}  // namespace
}  // namespace slt::SLT_ISA
