// A matrix in digits, a fixed point for each row.
#pragma once

#include "digits.h"
#include "parallel.h"
#include "scratch.h"

namespace slt::SLT_ISA {
namespace {

template <int DIGITS>
struct Quantized {
    Scratch<DigitOf<DIGITS>> digits;  // [batch][DIGITS][pitch]
    Scratch<double> powers;
    Scratch<int64_t> corrections;  // zero * the sum of a row's integers

    // Each row of `count` stands `skipped` digits in, with zeros around it up to `padded`; see `Layout`.
    Quantized(const Input x, int64_t batch, int64_t count, int64_t skipped, int64_t padded, int64_t pitch,
              Layout layout, int bytes, int zero, int threads)
        : digits(batch * DIGITS * pitch), powers(batch), corrections(batch) {
        const Order order(layout, PAIRS<DIGITS>);
        const int64_t rows = ceil_div(16384, padded);  // a piece of work
        parallel_for(threads, ceil_div(batch, rows), [&](int64_t piece) {
            for (int64_t b = piece * rows; b < batch && b < (piece + 1) * rows; ++b) {
                const FixedPoint fixed(largest_bits(x + b * count, count), bytes);
                powers[b] = fixed.power;
                corrections[b] = zero * write_vector<DIGITS>(x + b * count, count, skipped, padded, fixed, order,
                                                             digits + b * DIGITS * pitch, pitch);
            }
        });
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
