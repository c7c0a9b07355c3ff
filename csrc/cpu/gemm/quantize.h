// A matrix in digits, a fixed point for each row; some rows at a time, so that memory does not grow with a batch.
#pragma once

#include "cpu/gemm/fixed_point.h"
#include "cpu/machine/parallel.h"
#include "cpu/machine/scratch.h"

namespace slt::SLT_ISA {
namespace {

template <int DIGITS>
struct Quantized {
    const int64_t pitch;
    Scratch<DigitOf<DIGITS>> digits;  // [batch][DIGITS][pitch]
    Scratch<double> powers;
    Scratch<int64_t> corrections;  // zero * the sum of a row's integers

    // Room for `batch` rows of `padded` digits. Their pitch is no power of two: rows must not share cache sets.
    Quantized(int64_t batch, int64_t padded)
        : pitch(pitch_of(padded)), digits(batch * DIGITS * pitch), powers(batch), corrections(batch) {}

    // Each row of `count` stands `skipped` digits in, with zeros around it up to `padded`; see `Layout`.
    void write(const Input x, int64_t batch, int64_t count, int64_t skipped, int64_t padded, Layout layout, int bytes,
               int zero, int threads) {
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

    // Rows of a batch to make at a time, in nearly equal parts: 24 MB, a block that the allocator keeps, but at least 256
    // rows, which are worth making the weights for.
    static int64_t rows_at_once(int64_t batch, int64_t padded) {
        const int64_t bytes = DIGITS * pitch_of(padded) * int64_t(sizeof(DigitOf<DIGITS>));
        return ceil_div(batch, greatest(ceil_div(batch, greatest((24 << 20) / bytes, 256)), 1));
    }

  private:
    static int64_t pitch_of(int64_t padded) { return padded + 64 / int64_t(sizeof(DigitOf<DIGITS>)); }
};

}  // namespace
}  // namespace slt::SLT_ISA
